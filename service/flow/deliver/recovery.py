"""Take back the sends of workers that did not come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from service.database import database_now
from service.flow.deliver.ledger_rows import CANCELLED, cancelled_among
from service.tables import SendRow


@dataclass(frozen=True, slots=True)
class Recovered:
    """What became of the sends of workers that did not come back."""

    #: Claimed but never begun: planned again.
    replanned: int
    #: Begun, and to be sent again with the same Message-ID.
    resent: int
    #: Begun, held for reconciling.
    unknown: int


def recover(session: Session, *, now: datetime, crash_policy: str = "hold") -> Recovered:
    """Take back the sends of workers whose lease ended without a result.

    Parameters
    ----------
    crash_policy : str
        ``hold``: a marketing mail that may have left becomes ``unknown`` (one lost beats one doubled); ``resend``: it
        is sent again with the same Message-ID, as transactional mail always is.
    """
    overdue = select(SendRow.send_id).where(SendRow.lease_until < database_now(session))

    def ended(*which: ColumnElement[bool]) -> ColumnElement[bool]:
        # A worker that hangs inside a transaction keeps its rows locked: they wait, the others do not.
        return SendRow.send_id.in_(overdue.where(*which).with_for_update(skip_locked=True))

    again = {
        "state": "planned",
        "lease_token": SendRow.lease_token + 1,  # whoever held it and wakes up late writes nothing
        "lease_until": None,
    }
    # Rows are counted by what is returned: PostgreSQL and SQLite agree on it.
    replanned = session.execute(
        update(SendRow)
        .where(ended(SendRow.state == "claimed"))
        .values(**again)
        .returning(SendRow.send_id, SendRow.campaign_id)
    ).all()
    begun = SendRow.state == "attempting"
    resend = begun if crash_policy == "resend" else begun & (SendRow.stream == "transactional")
    resent = session.execute(
        update(SendRow)
        .where(ended(resend))
        .values(**again, attempts=SendRow.attempts + 1, reason="sent again after a crash, with the same Message-ID")
        .returning(SendRow.send_id, SendRow.campaign_id)
    ).all()
    unknown = session.execute(
        update(SendRow)
        .where(ended(begun))
        .values(
            state="unknown",
            lease_token=SendRow.lease_token + 1,
            lease_until=None,
            attempts=SendRow.attempts + 1,
            finished_at=now,
            reason="the worker stopped while the message was leaving; look for its Message-ID, then resend or close",
        )
        .returning(SendRow.send_id)
    ).all()
    _close_cancelled(session, {row.send_id: row.campaign_id for row in (*replanned, *resent)}, now)
    return Recovered(len(replanned), len(resent), len(unknown))


def _close_cancelled(session: Session, again: Mapping[int, str | None], now: datetime) -> None:
    """Close those of the mails planned again whose campaign was cancelled while they were under way."""
    cancelled = cancelled_among(session, set(again.values()))
    over = [send_id for send_id, campaign_id in again.items() if campaign_id in cancelled]
    if over:
        session.execute(
            update(SendRow)
            .where(SendRow.send_id.in_(over))
            .values(state="cancelled", reason=CANCELLED, finished_at=now)
        )
