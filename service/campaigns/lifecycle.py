"""From draft to sends, and second thoughts."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.campaigns.drafts import find_campaign
from service.campaigns.planning import planned_sends
from service.errors import Conflict
from service.flow.schedule import write_sends
from service.sender_checks import check_bulk
from service.settings import Settings
from service.tables import SendRow
from training.serving import Serving


def schedule_campaign(
    session: Session, campaign_id: str, serving: Serving, settings: Settings, *, now: datetime
) -> dict[str, int]:
    """Put every send of the campaign into the ledger; returns the contacts by state and reason.

    Raises
    ------
    Conflict
        If the campaign is not a draft, or it is bulk mail and the sender's set-up is not green.
    """
    campaign = find_campaign(session, campaign_id, for_update=True)
    if campaign.status != "draft":
        raise Conflict(f"campaign {campaign_id} is {campaign.status}; only a draft can be scheduled")
    sends, _, _ = planned_sends(session, campaign, serving, settings, now)
    check_bulk(settings, recipients=int((sends.state == "planned").sum()))
    write_sends(session, sends, now=now)
    campaign.status, campaign.scheduled_at = "scheduled", now
    return sends.counts()


def cancel_campaign(session: Session, campaign_id: str, *, now: datetime) -> int:
    """Cancel what has not left yet; returns how many sends were cancelled."""
    campaign = find_campaign(session, campaign_id, for_update=True)
    cancelled = session.scalars(
        update(SendRow)
        .where(SendRow.campaign_id == campaign_id, SendRow.state == "planned")
        .values(state="cancelled", reason="campaign cancelled", finished_at=now)
        .returning(SendRow.send_id)
    ).all()
    campaign.status = "cancelled"
    return len(cancelled)
