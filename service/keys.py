"""API keys: made once, shown once, kept as a hash, allowed to do what their scopes say."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import Invalid, NotFound, Unauthorized
from service.tables import ApiKeyRow

SCOPES = ("ingest", "read", "write", "send", "admin")
PREFIX = "kk_live"
#: Seconds for which a process may go on trusting a key that another process has revoked.
CACHE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Key:
    """A key that was recognised."""

    key_id: str
    name: str
    scopes: frozenset[str]

    def allows(self, scope: str) -> bool:
        """Whether the key may do what needs ``scope``; ``admin`` may do everything."""
        return scope in self.scopes or "admin" in self.scopes


def create_key(session: Session, name: str, scopes: Iterable[str], now: datetime) -> tuple[str, str]:
    """Id and secret of a new key. The secret is returned here and nowhere else: only its hash is kept.

    Raises
    ------
    Invalid
        If a scope is not one of ``SCOPES``, none is given, or the name is empty or longer than 120 characters.
    """
    wanted = sorted(set(scopes))
    unknown = [scope for scope in wanted if scope not in SCOPES]
    if unknown or not wanted:
        said = f"scope {unknown[0]!r} does not exist" if unknown else "no scope was given"
        raise Invalid(f"{said}; choose from {', '.join(SCOPES)}")
    if not 1 <= len(name) <= 120:
        raise Invalid(f"the key's name has {len(name)} characters; give it 1 to 120")
    key_id = secrets.token_hex(6)
    secret = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    session.add(
        ApiKeyRow(
            key_id=key_id, secret_sha256=_sha256(secret), name=name, scopes=wanted, created_at=now, revoked_at=None
        )
    )
    session.flush()
    return key_id, secret


def authenticate(session: Session, secret: str) -> Key:
    """The key behind ``secret``.

    Raises
    ------
    Unauthorized
        If no key has this secret, or it was revoked.
    """
    # A secret holds 256 random bits: a plain hash cannot be guessed backwards, and looking it up by its hash gives
    # no timing hint about the secret.
    row = session.scalar(select(ApiKeyRow).where(ApiKeyRow.secret_sha256 == _sha256(secret)))
    if row is None or row.revoked_at is not None:
        state = "is not known" if row is None else f"was revoked at {row.revoked_at.isoformat()}"  # type: ignore[union-attr]
        raise Unauthorized(f"the key {_shown(secret)} {state}; make one with `kairos keys create --scope …`")
    return Key(row.key_id, row.name, frozenset(row.scopes))


def revoke_key(session: Session, key_id: str, now: datetime) -> None:
    """Take a key out of use; doing so twice changes nothing.

    Raises
    ------
    NotFound
        If there is no such key.
    """
    row = session.get(ApiKeyRow, key_id)
    if row is None:
        raise NotFound(f"there is no key {key_id!r}; `kairos keys list` shows the ids")
    if row.revoked_at is None:
        row.revoked_at = now
        session.flush()


def list_keys(session: Session) -> list[ApiKeyRow]:
    """Every key ever made, oldest first."""
    return list(session.scalars(select(ApiKeyRow).order_by(ApiKeyRow.created_at, ApiKeyRow.key_id)))


class KeyCache:
    """Recognised keys of one process, each trusted for `CACHE_SECONDS` before the database is asked again."""

    def __init__(self) -> None:
        self._keys: dict[str, tuple[float, Key]] = {}
        self._lock = threading.Lock()

    def get(self, secret: str) -> Key | None:
        """The key, if it was recognised less than `CACHE_SECONDS` ago."""
        found = self._keys.get(_sha256(secret))
        return found[1] if found and found[0] > time.monotonic() else None

    def put(self, secret: str, key: Key) -> None:
        """Remember a recognised key."""
        with self._lock:
            if len(self._keys) > 1000:
                self._keys.clear()
            self._keys[_sha256(secret)] = (time.monotonic() + CACHE_SECONDS, key)


def _sha256(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def _shown(secret: str) -> str:
    """As much of a secret as may be repeated to its sender."""
    parts = secret.split("_", 3)
    return f"{PREFIX}_{parts[2][:12]}_…" if len(parts) == 4 and secret.startswith(f"{PREFIX}_") else "that was given"
