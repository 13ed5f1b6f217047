"""What came of a campaign."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.campaigns.correcting import corrections_of
from service.campaigns.drafts import find_campaign
from service.experiments import experiment_report
from service.tables import SendRow

#: The ledger's terminal states (ARCHITECTURE section 6); every intent ends in one of them.
TERMINAL_STATES = ("accepted", "failed", "unknown", "suppressed", "held_out", "unplaced", "cancelled", "expired")
STATES = ("planned", "claimed", "attempting", *TERMINAL_STATES)


def campaign_report(session: Session, campaign_id: str, *, now: datetime) -> dict[str, Any]:
    """Sends by state, and each experiment with its arms: sends, opens, clicks, share of the first and last wave."""
    campaign = find_campaign(session, campaign_id)
    states = {state: 0 for state in STATES}
    states.update(
        session.execute(
            select(SendRow.state, func.count()).where(SendRow.campaign_id == campaign_id).group_by(SendRow.state)
        ).all()
    )
    return {
        "campaign_id": campaign_id,
        "status": campaign.status,
        "corrects": campaign.corrects,
        "corrections": corrections_of(session, campaign_id),
        "sends": states,
        "experiments": [experiment_report(session, experiment_id, now=now) for experiment_id in campaign.experiments],
    }
