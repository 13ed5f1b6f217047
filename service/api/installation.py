"""What the handlers share: the parts of the running installation, and the doors in front of them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.contacts import find
from features.online import VectorCache
from service.api.metrics import Metrics
from service.clock import Clock
from service.database import Database
from service.errors import Forbidden, Invalid, NotFound, Unauthorized
from service.hits import HitBuffer, RuleBook
from service.keys import Key, KeyCache, authenticate
from service.served_vectors import VectorLog
from service.settings import Settings
from service.tables import IdentityRow

if TYPE_CHECKING:
    from training.serving import Serving


@dataclass
class Installation:
    """The parts of a running installation; one an app."""

    settings: Settings
    database: Database
    clock: Clock
    serving: Serving
    hits: HitBuffer
    hit_rules: RuleBook
    vectors: VectorLog
    metrics: Metrics
    keys: KeyCache = field(default_factory=KeyCache)
    #: Events of the contacts that were asked about lately.
    cache: VectorCache = field(default_factory=VectorCache)
    #: Targets of tracked links that were asked for lately, by number.
    link_targets: dict[int, str] = field(default_factory=dict)

    def authenticate(self, secret: str) -> Key:
        """The key behind ``secret``, remembered for some seconds."""
        key = self.keys.get(secret)
        if key is None:
            with self.database.reading() as session:
                key = authenticate(session, secret)
            self.keys.put(secret, key)
        return key


# Dependencies are coroutines because FastAPI sends every other one through a thread of its own, which costs a request
# more than most of what is done in it.


async def installation(request: Request) -> Installation:
    """The installation that serves this request."""
    return installation_of(request)


def installation_of(request: Request) -> Installation:
    """The installation that serves this request, for those who are no dependency."""
    return request.app.state.installation


_bearer = HTTPBearer(auto_error=False, description="A key of `kairos keys create --scope …`.")


def allow(scope: str) -> Callable[..., Awaitable[Key]]:
    """A dependency that lets a request through if its key has ``scope``.

    The key comes as ``Authorization: Bearer …`` or as the user name of Basic credentials.
    """

    async def check(request: Request, _shown_in_docs: HTTPAuthorizationCredentials | None = Depends(_bearer)) -> Key:
        secret = secret_of(request)
        if secret is None:
            raise Unauthorized("the request carries no key; send Authorization: Bearer <key>")
        here = installation_of(request)
        key = here.keys.get(secret)
        if key is None:
            key = await run_in_threadpool(here.authenticate, secret)
        return check_scope(key, scope)

    return check


def check_scope(key: Key, scope: str) -> Key:
    """The key, if it has ``scope``.

    Raises
    ------
    Forbidden
        If it has not.
    """
    if not key.allows(scope):
        has = ", ".join(sorted(key.scopes))
        raise Forbidden(f"key {key.key_id} has the scopes {has}; this needs {scope}: make a key that has it")
    return key


def secret_of(request: Request) -> str | None:
    """The key's secret in the Authorization header, or None if there is none.

    Raises
    ------
    Unauthorized
        If the header is there but cannot be read.
    """
    header = request.headers.get("authorization")
    if not header:
        return None
    scheme, _, rest = header.partition(" ")
    if scheme.lower() == "bearer" and rest.strip():
        return rest.strip()
    if scheme.lower() == "basic":
        try:
            name, _, _ = base64.b64decode(rest.strip(), validate=True).decode("utf-8").partition(":")
        except (binascii.Error, ValueError):
            name = ""
        if name:
            return name
    raise Unauthorized("the Authorization header cannot be read; send Bearer <key>, or Basic with the key as user name")


@contextmanager
def as_problem() -> Iterator[None]:
    """Turn the ``ValueError`` and ``LookupError`` with which `features` and `training` speak into problems.

    Subclasses such as ``KeyError`` pass through: they are bugs, and no message for the caller.
    """
    try:
        yield
    except (ValueError, LookupError) as error:
        if type(error) is ValueError:
            raise Invalid(str(error)) from error
        if type(error) is LookupError:
            raise NotFound(str(error)) from error
        raise


def find_contact(session: Session, user_id: str) -> int:
    """Key of the contact that goes by ``user_id``, its own name or another one that was told.

    Raises
    ------
    NotFound
        If nobody does.
    """
    found = find(session, [user_id])
    if user_id in found:
        return found[user_id]
    key = session.scalar(select(IdentityRow.contact_key).where(IdentityRow.identity == f"user:{user_id}"))
    if key is None:
        raise NotFound(f"there is no contact {user_id[:80]!r}; send an identify or track call for it first")
    return int(key)


def aware(instant: datetime, name: str) -> datetime:
    """``instant``, if it says its zone.

    Raises
    ------
    Invalid
        If it does not.
    """
    if instant.tzinfo is None:
        raise Invalid(f"{name} {instant.isoformat()} has no time zone; write it as in {instant.isoformat()}Z")
    return instant
