"""Campaigns: drafts, their dry run, the moment they become sends, and what came of them."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from features.tables import from_micros, to_micros
from service.api.installation import Installation, allow, aware, installation
from service.api.paging import Cursor, Limit, before, page, position
from service.api.sends import State, list_of_sends
from service.campaigns import (
    NewCampaign,
    cancel_campaign,
    create_campaign,
    find_campaign,
    plan_campaign,
    schedule_campaign,
)
from service.errors import Invalid
from service.tables import CampaignRow

router = APIRouter(prefix="/v1/campaigns", tags=["campaigns"])


class CampaignBody(BaseModel):
    """One mail to many, inside a window."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    template_id: str = Field(min_length=1, max_length=60)
    audience: dict[str, Any] = Field(
        description='{"everyone": true} or {"user_ids": ["…", …]}; with "models": ["churn"] where its scores picked '
        "them, so that outcomes can judge the scores without them"
    )
    window_start: datetime
    window_end: datetime
    experiments: list[str] = Field(default=[], max_length=20)
    topic: str = Field("marketing", min_length=1, max_length=60)
    holdout_share: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)] = 0.0
    timing: Literal["best_hour", "spread", "at_start"] = "best_hour"
    waves: int = Field(1, ge=1, le=96, description="parts, over the window, that a send `at_start` is cut into")


@router.post("", status_code=201, dependencies=[Depends(allow("write"))])
def create(body: CampaignBody, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A draft; nothing is sent before it is scheduled."""
    begin, end = aware(body.window_start, "window_start"), aware(body.window_end, "window_end")
    if end <= begin:
        raise Invalid(f"window_end {end.isoformat()} is not after window_start {begin.isoformat()}; give a window")
    with here.database.writing() as session:
        campaign_id = create_campaign(session, NewCampaign(**body.model_dump()), now=here.clock.now())
        return _shown(find_campaign(session, campaign_id))


@router.get("", dependencies=[Depends(allow("read"))])
def list_campaigns(
    limit: Limit = 50, cursor: Cursor = None, here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Campaigns, newest first."""
    query = select(CampaignRow).order_by(CampaignRow.created_at.desc(), CampaignRow.campaign_id.desc())
    last = position(here.settings.signing_key, cursor, "campaigns")
    if last is not None:
        place = (CampaignRow.created_at, CampaignRow.campaign_id)
        query = query.where(before(place, (from_micros(last[0]), last[1])))
    with here.database.reading() as session:
        rows = session.scalars(query.limit(limit + 1)).all()
    return page(
        here.settings.signing_key,
        rows,
        limit,
        _shown,
        lambda row: [to_micros(row.created_at), row.campaign_id],
        "campaigns",
    )


@router.get("/{campaign_id}", dependencies=[Depends(allow("read"))])
def read(campaign_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """One campaign."""
    with here.database.reading() as session:
        return _shown(find_campaign(session, campaign_id))


@router.post("/{campaign_id}/plan", dependencies=[Depends(allow("write"))])
def plan(campaign_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Dry run of the whole audience: counts by reason and hour. Nothing is written and nothing is sent."""
    with here.database.reading() as session:
        return dataclasses.asdict(
            plan_campaign(session, campaign_id, here.serving, here.settings, now=here.clock.now())
        )


@router.post("/{campaign_id}/schedule", dependencies=[Depends(allow("send"))])
def schedule(campaign_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Turn the draft into sends, each at its contact's hour."""
    with here.database.writing() as session:
        counts = schedule_campaign(session, campaign_id, here.serving, here.settings, now=here.clock.now())
        return _shown(find_campaign(session, campaign_id)) | {"counts": counts}


@router.post("/{campaign_id}/cancel", dependencies=[Depends(allow("send"))])
def cancel(campaign_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Take back what has not left yet."""
    with here.database.writing() as session:
        cancelled = cancel_campaign(session, campaign_id, now=here.clock.now())
        return _shown(find_campaign(session, campaign_id)) | {"cancelled": cancelled}


@router.get("/{campaign_id}/sends", dependencies=[Depends(allow("read"))])
def list_sends(
    campaign_id: str,
    state: Annotated[State | None, Query()] = None,
    limit: Limit = 50,
    cursor: Cursor = None,
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """The campaign's part of the send ledger."""
    with here.database.reading() as session:
        find_campaign(session, campaign_id)
        return list_of_sends(session, here.settings.signing_key, limit, cursor, state, campaign_id)


def _shown(row: CampaignRow) -> dict[str, Any]:
    return {
        "id": row.campaign_id,
        "name": row.name,
        "status": row.status,
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
        "created_at": row.created_at,
        "scheduled_at": row.scheduled_at,
    }
