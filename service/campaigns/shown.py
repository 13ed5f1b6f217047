"""A campaign as it is shown."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.campaigns.correcting import corrections_of
from service.campaigns.report import STATES
from service.tables import CampaignRow, SendRow


def campaign_details(row: CampaignRow) -> dict[str, Any]:
    """What the campaign is and how it stands, as API and command line show it."""
    return {
        "id": row.campaign_id,
        "name": row.name,
        "status": row.status,
        "status_reason": row.status_reason,
        "status_by": row.status_by,
        "status_at": row.status_at,
        "template_id": row.template_id,
        "template_version": row.template_version,
        "audience": row.audience,
        "experiments": row.experiments,
        "topic": row.topic,
        "window_start": row.window_start,
        "window_end": row.window_end,
        "holdout_share": row.holdout_share,
        "timing": row.timing,
        "waves": row.waves,
        "objective": row.objective,
        "canary_share": row.canary_share,
        "canary_state": row.canary_state,
        "corrects": row.corrects,
        "created_at": row.created_at,
        "created_by": row.created_by,
        "editors": row.editors,
        "approved_at": row.approved_at,
        "approved_by": row.approved_by,
        "scheduled_at": row.scheduled_at,
    }


def campaign_in_full(session: Session, row: CampaignRow) -> dict[str, Any]:
    """The same with its mails by state and the campaigns that put it right."""
    states = dict.fromkeys(STATES, 0) | dict(
        session.execute(
            select(SendRow.state, func.count()).where(SendRow.campaign_id == row.campaign_id).group_by(SendRow.state)
        ).all()
    )
    return campaign_details(row) | {"sends": states, "corrections": corrections_of(session, row.campaign_id)}
