"""Stopping what leaves: everything, a stream, or the mail to one mailbox provider; until somebody lifts it."""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.tables import HaltRow

EVERYTHING = "everything"


def stream_scope(stream: str) -> str:
    """Scope of a halt of one stream: ``marketing`` or ``transactional``."""
    return f"stream:{stream}"


def mailbox_scope(mailbox: str) -> str:
    """Scope of a halt of the mail to one mailbox provider: see `service.mailboxes`."""
    return f"mailbox:{mailbox}"


def halt(session: Session, scope: str, *, reason: str, by: str, now: datetime) -> str:
    """Id of the halt of ``scope`` in force; one that is in force already stays as it is, with its first reason.

    Every claim and every group of mails about to leave looks at it, so that it acts within a second.
    """
    standing = session.scalar(select(HaltRow.halt_id).where(HaltRow.scope == scope, HaltRow.lifted_at.is_(None)))
    if standing is not None:
        return standing
    row = HaltRow(
        halt_id=f"halt_{secrets.token_hex(6)}",
        scope=scope,
        reason=reason[:300],
        halted_by=by[:60],
        halted_at=now,
        lifted_by=None,
        lifted_at=None,
    )
    session.add(row)
    session.flush()
    return row.halt_id


def lift(session: Session, scope: str, *, by: str, now: datetime) -> bool:
    """Whether there was a halt of ``scope`` to lift."""
    lifted = session.execute(
        update(HaltRow)
        .where(HaltRow.scope == scope, HaltRow.lifted_at.is_(None))
        .values(lifted_at=now, lifted_by=by[:60])
        .returning(HaltRow.halt_id)
    ).all()
    return bool(lifted)


def halts_in_force(session: Session) -> list[HaltRow]:
    """The halts that nobody has lifted, oldest first."""
    return list(session.scalars(select(HaltRow).where(HaltRow.lifted_at.is_(None)).order_by(HaltRow.halted_at)))
