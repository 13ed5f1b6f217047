"""Stop the mail to a mailbox provider that refuses us: more of the same makes it worse."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.halts import halt, mailbox_scope
from service.mailboxes import OTHER
from service.tables import HaltRow, SendRow

log = logging.getLogger(__name__)

#: So many refusals for reasons of policy (5.7.x) within so long halt the mail to a mailbox provider.
REFUSALS = 5
WITHIN = timedelta(minutes=10)
#: A send that fails now fell due no longer ago.
_DUE_WITHIN = timedelta(days=4)


def halt_refusing(session: Session, mailboxes: Iterable[str], *, now: datetime) -> list[str]:
    """Halt those of the mailbox providers that refused too many of the newest mails; returns which.

    ``other`` is many providers: it is halted only if most of what was handed over to it was refused as well. Whoever
    lifts a halt knows of the refusals before: only later ones count.
    """
    halted = []
    asked = sorted(set(mailboxes))
    lifted = _lifted_at(session, asked)
    for mailbox in asked:
        newest = (
            SendRow.mailbox == mailbox,
            SendRow.due_at > now - _DUE_WITHIN,
            SendRow.finished_at > max(now - WITHIN, lifted.get(mailbox, now - WITHIN)),
        )
        refused = session.scalar(
            select(func.count()).where(SendRow.state == "failed", SendRow.reason.like("5__ 5.7.%"), *newest)
        )
        if not refused or refused < REFUSALS:
            continue
        if mailbox == OTHER:
            taken = session.scalar(select(func.count()).where(SendRow.state == "accepted", *newest))
            if taken and taken >= refused:
                continue
        minutes = int(WITHIN / timedelta(minutes=1))
        reason = (
            f"{refused} mails refused for reasons of policy (5.7.x) within {minutes} minutes; see the sends' reasons"
        )
        halt(session, mailbox_scope(mailbox), reason=reason, by="kairos", now=now)
        log.warning("mail to %s is halted: %s", mailbox, reason, extra={"action": "mailbox_halted"})
        halted.append(mailbox)
    return halted


def _lifted_at(session: Session, mailboxes: Sequence[str]) -> dict[str, datetime]:
    """When the last halt of each mailbox provider was lifted."""
    scopes = {mailbox_scope(mailbox): mailbox for mailbox in mailboxes}
    query = select(HaltRow.scope, func.max(HaltRow.lifted_at)).where(HaltRow.scope.in_(scopes))
    rows = session.execute(query.where(HaltRow.lifted_at.is_not(None)).group_by(HaltRow.scope))
    return {scopes[scope]: lifted_at for scope, lifted_at in rows if lifted_at is not None}
