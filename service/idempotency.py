"""Answers kept for a day by the caller's Idempotency-Key: asked twice, done once.

References
----------
Jena & Dalal (2025), "The Idempotency-Key HTTP Header Field", draft-ietf-httpapi-idempotency-key-header-07.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.errors import Conflict, Invalid
from service.tables import IdempotencyRow

#: So long an answer is kept; after it the key is free again.
KEPT = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Answer:
    """What was answered the first time."""

    status: int
    #: JSON.
    body: str


def begin(session: Session, key: str, principal: str, fingerprint: str, *, now: datetime) -> Answer | None:
    """None if the request is the first under its key, which is then taken; else what the first one was answered.

    Whoever takes the key and does the work in one transaction, with `keep` before its end, needs no more: another
    request with the key waits for the commit, and a crash frees the key with the work.

    Parameters
    ----------
    session : Session
        From ``Database.writing()``.
    key : str
        The caller's; only its SHA-256 is kept.
    principal : str
        Who asks: keys of different callers have nothing to do with each other.
    fingerprint : str
        SHA-256 of what is asked, 64 hexadecimal digits.

    Raises
    ------
    Conflict
        If the first request was begun in an earlier transaction and has no answer: it is under way, or was cut off.
    Invalid
        If the first request asked for something else.
    """
    forget_answers(session, now=now)
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    digest = _digest(key)
    row = {"key_sha256": digest, "principal": principal, "fingerprint": fingerprint, "created_at": now}
    taken = dialect.insert(IdempotencyRow).values(row).on_conflict_do_nothing().returning(IdempotencyRow.principal)
    if session.execute(taken).first() is not None:
        return None
    known = session.get_one(IdempotencyRow, (digest, principal))
    if known.fingerprint != fingerprint:
        raise Invalid(
            "this Idempotency-Key belongs to another request; send that one again, word by word, or take a new key"
        )
    if known.status is None or known.body is None:
        raise Conflict(
            "the first request with this Idempotency-Key is under way, or was cut off before its end; try again in a "
            "moment, and if it stays so, look at what it did and take a new key"
        )
    return Answer(known.status, known.body)


def keep(session: Session, key: str, principal: str, answer: Answer) -> None:
    """Write down what the request that `begin` let through is answered."""
    row = session.get_one(IdempotencyRow, (_digest(key), principal))
    row.status, row.body = answer.status, answer.body
    session.flush()


def forget_answers(session: Session, *, now: datetime) -> int:
    """How many answers were older than a day and are gone."""
    is_old = IdempotencyRow.created_at <= now - KEPT
    # Those that somebody else is forgetting are left to them.
    digests = session.scalars(select(IdempotencyRow.key_sha256).where(is_old).with_for_update(skip_locked=True)).all()
    if digests:
        session.execute(delete(IdempotencyRow).where(IdempotencyRow.key_sha256.in_(digests), is_old))
    return len(digests)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
