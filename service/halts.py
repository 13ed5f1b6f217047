"""Stopping what leaves: everything, a stream, or the mail to one mailbox provider; until somebody lifts it."""

from __future__ import annotations

import secrets
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, literal, or_, select, update
from sqlalchemy.orm import Session

from service.tables import CampaignRow, HaltRow, SendRow

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


def leaving_allowed() -> ColumnElement[bool]:
    """Condition on `SendRow`: nothing holds the send back at this moment.

    That is: no halt in force of everything, of its stream or of its mailbox provider; its campaign, if it has one, is
    neither paused nor cancelled; and where the campaign's canary is still watched, or was found bad, the send is one
    of the canary's own.
    """
    scopes = select(HaltRow.scope).where(HaltRow.lifted_at.is_(None))
    stopped = select(CampaignRow.campaign_id).where(CampaignRow.status.in_(("paused", "cancelled")))
    watched = select(CampaignRow.campaign_id).where(CampaignRow.canary_state.in_(("waiting", "held")))
    return and_(
        literal(EVERYTHING).not_in(scopes),
        (literal(stream_scope("")) + SendRow.stream).not_in(scopes),
        (literal(mailbox_scope("")) + func.coalesce(SendRow.mailbox, "")).not_in(scopes),
        or_(
            SendRow.campaign_id.is_(None),
            and_(SendRow.campaign_id.not_in(stopped), or_(SendRow.is_canary, SendRow.campaign_id.not_in(watched))),
        ),
    )
