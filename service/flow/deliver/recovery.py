"""Take back the sends of workers that did not come back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from service.database import database_now
from service.tables import CampaignRow, SendRow


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
    over = SendRow.lease_until < database_now(session)
    again = {
        "state": "planned",
        "lease_token": SendRow.lease_token + 1,  # whoever held it and wakes up late writes nothing
        "lease_until": None,
    }
    # Rows are counted by what is returned: PostgreSQL and SQLite agree on it.
    replanned = session.execute(
        update(SendRow).where(SendRow.state == "claimed", over).values(**again).returning(SendRow.send_id)
    ).all()
    begun = (SendRow.state == "attempting") & over
    resend = begun if crash_policy == "resend" else begun & (SendRow.stream == "transactional")
    resent = session.execute(
        update(SendRow)
        .where(resend)
        .values(**again, attempts=SendRow.attempts + 1, reason="sent again after a crash, with the same Message-ID")
        .returning(SendRow.send_id)
    ).all()
    unknown = session.execute(
        update(SendRow)
        .where(begun)
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
    close_cancelled(session, now=now)
    return Recovered(len(replanned), len(resent), len(unknown))


def close_cancelled(session: Session, *, now: datetime) -> int:
    """Close what was under way when its campaign was cancelled and came back as planned; returns how many."""
    cancelled = session.scalars(select(CampaignRow.campaign_id).where(CampaignRow.status == "cancelled")).all()
    if not cancelled:
        return 0
    closed = session.execute(
        update(SendRow)
        .where(SendRow.state == "planned", SendRow.campaign_id.in_(cancelled))
        .values(state="cancelled", reason="campaign cancelled", finished_at=now)
        .returning(SendRow.send_id)
    )
    return len(closed.all())
