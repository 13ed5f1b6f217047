"""Campaigns: drafts, their dry run, approval, the moment they become sends, second thoughts, and what came of them."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from features.tables import from_micros, to_micros
from service.api.idempotency import Asked, once
from service.api.installation import Installation, allow, aware, installation
from service.api.paging import Cursor, Limit, before, page, position
from service.api.sends import State, list_of_sends
from service.campaigns import (
    Correction,
    NewCampaign,
    approve_campaign,
    campaign_details,
    campaign_in_full,
    cancel_campaign,
    correct_campaign,
    create_campaign,
    edit_campaign,
    find_campaign,
    pause_campaign,
    plan_campaign,
    prepare_campaign,
    resume_campaign,
    schedule_prepared,
)
from service.keys import Key
from service.link_check import check_links
from service.rehearsal import MOST_SAMPLES, rehearse_campaign
from service.tables import CampaignRow

router = APIRouter(prefix="/v1/campaigns", tags=["campaigns"])


Share = Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False)]
AUDIENCE = (
    '{"everyone": true}, {"user_ids": ["…", …]} or {"sends_of": {"campaign": "…", "states": […]}}; with '
    '"models": ["churn"] where its scores picked them, so that outcomes can judge the scores without them'
)
CANARY = "share of the audience whose mails leave first; the others wait until an hour has shown no harm"


class CampaignBody(BaseModel):
    """One mail to many, inside a window."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    template_id: str = Field(min_length=1, max_length=60)
    template_version: int | None = Field(None, ge=1, description="the newest version if left out")
    audience: dict[str, Any] = Field(description=AUDIENCE)
    window_start: datetime
    window_end: datetime
    experiments: list[str] = Field(default=[], max_length=20)
    topic: str = Field("marketing", min_length=1, max_length=60)
    holdout_share: Share = 0.0
    timing: Literal["best_hour", "spread", "at_start"] = "best_hour"
    waves: int = Field(1, ge=1, le=96, description="parts, over the window, that a send `at_start` is cut into")
    canary_share: Share | None = Field(None, description=CANARY + "; KAIROS_CANARY_SHARE if left out")
    objective: Literal["engagement", "profit"] | None = Field(None, description="KAIROS_OBJECTIVE if left out")


class CampaignChange(BaseModel):
    """What is to change of a draft; what is left out, or null, stays."""

    model_config = ConfigDict(extra="forbid")

    name: str | None = Field(None, min_length=1, max_length=200)
    template_id: str | None = Field(None, min_length=1, max_length=60, description="at its newest version by default")
    template_version: int | None = Field(None, ge=1)
    audience: dict[str, Any] | None = Field(None, description=AUDIENCE)
    window_start: datetime | None = None
    window_end: datetime | None = None
    experiments: list[str] | None = Field(None, max_length=20)
    topic: str | None = Field(None, min_length=1, max_length=60)
    holdout_share: Share | None = None
    timing: Literal["best_hour", "spread", "at_start"] | None = None
    waves: int | None = Field(None, ge=1, le=96)
    canary_share: Share | None = Field(None, description=CANARY)
    objective: Literal["engagement", "profit"] | None = None


class ReasonBody(BaseModel):
    """Why."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field("no reason was given", min_length=1, max_length=250)


class ResumeBody(BaseModel):
    """Whether to go on although the canary was found bad."""

    model_config = ConfigDict(extra="forbid")

    force: bool = False


class ShownArm(BaseModel):
    """An arm of an experiment."""

    model_config = ConfigDict(extra="forbid")

    experiment: str = Field(min_length=1, max_length=60)
    arm: str = Field(min_length=1, max_length=60)


class CorrectionBody(BaseModel):
    """The right mail, and who of those who got the wrong one is to have it: all, unless narrowed down."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    template_id: str = Field(min_length=1, max_length=60)
    name: str = Field("", max_length=200)
    states: list[Literal["accepted", "unknown"]] = Field(default=["accepted", "unknown"], min_length=1)
    template_version: int | None = Field(None, ge=1, description="only mails of this version of the template")
    arm: ShownArm | None = Field(None, description="only mails that showed this arm")
    begin: datetime | None = Field(None, alias="from", description="only mails that left from this instant on")
    until: datetime | None = Field(None, description="only mails that left before this instant")
    window_start: datetime | None = Field(None, description="now if left out")
    window_end: datetime | None = Field(None, description="a day after the start if left out")
    timing: Literal["best_hour", "spread", "at_start"] = "at_start"


@router.post("", status_code=201)
def create(
    body: CampaignBody, asked: Asked = Depends(once("write")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """A draft; nothing is sent before it is scheduled."""
    given = _aware(body.model_dump())
    if body.canary_share is None:
        given["canary_share"] = here.settings.canary_share
    now = here.clock.now()
    with here.database.writing() as session:
        asked.begin(session, now=now)
        campaign_id = create_campaign(session, NewCampaign(**given), now=now, by=asked.key.key_id)
        return asked.keep(session, campaign_details(find_campaign(session, campaign_id)))


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
        campaign_details,
        lambda row: [to_micros(row.created_at), row.campaign_id],
        "campaigns",
    )


@router.get("/{campaign_id}", dependencies=[Depends(allow("read"))])
def read(campaign_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """One campaign: what it is, how it stands, who said so and why, its mails by state, and what corrects it."""
    with here.database.reading() as session:
        return campaign_in_full(session, find_campaign(session, campaign_id))


@router.patch("/{campaign_id}")
def change(
    campaign_id: str,
    body: CampaignChange,
    key: Key = Depends(allow("write")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Change a draft. An approval that it had is void."""
    changes = _aware(body.model_dump(exclude_none=True))
    with here.database.writing() as session:
        return campaign_details(edit_campaign(session, campaign_id, changes, by=key.key_id))


class PlanBody(BaseModel):
    """How closely to look."""

    model_config = ConfigDict(extra="forbid")

    samples: int = Field(6, ge=1, le=MOST_SAMPLES, description="mails to show, of typical and of awkward contacts")
    check_links: bool = Field(False, description="ask each web address whether it answers")


@router.post("/{campaign_id}/plan", dependencies=[Depends(allow("write"))])
def plan(campaign_id: str, body: PlanBody | None = None, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Dry run of the whole audience: counts by reason and hour, and a rehearsal of the mail itself.

    Nothing is written and nothing is sent. The sample mails name their contacts by user id, never by address.
    """
    body, now = body or PlanBody(), here.clock.now()
    with here.database.reading() as session:
        planned = plan_campaign(session, campaign_id, here.serving, here.settings, now=now)
        campaign = find_campaign(session, campaign_id)
        rehearsal = rehearse_campaign(session, campaign, here.settings, now=now, samples=body.samples)
    if body.check_links:  # with the database let go: a stranger's server may take its time
        rehearsal = rehearsal.with_links(check_links(rehearsal.links))
    return dataclasses.asdict(planned) | {"rehearsal": dataclasses.asdict(rehearsal)}


@router.post("/{campaign_id}/approve")
def approve(
    campaign_id: str, key: Key = Depends(allow("send")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Agree to the draft as it stands, with a key that neither made nor changed it."""
    with here.database.writing() as session:
        return campaign_details(approve_campaign(session, campaign_id, by=key.key_id, now=here.clock.now()))


@router.post("/{campaign_id}/schedule")
def schedule(
    campaign_id: str, key: Key = Depends(allow("send")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Turn the draft into sends, each at its contact's hour. A large one has to be approved before."""
    now = here.clock.now()
    with here.database.reading() as session:
        prepared = prepare_campaign(session, campaign_id, here.serving, here.settings, now=now)
    with here.database.writing() as session:
        counts = schedule_prepared(session, prepared, here.settings, now=now, by=key.key_id)
        return campaign_details(find_campaign(session, campaign_id)) | {"counts": counts}


@router.post("/{campaign_id}/pause")
def pause(
    campaign_id: str,
    body: ReasonBody | None = None,
    key: Key = Depends(allow("send")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Let nothing more leave until it is resumed; mails that a worker holds are taken back."""
    reason = (body or ReasonBody()).reason
    with here.database.writing() as session:
        taken = pause_campaign(session, campaign_id, reason=reason, by=key.key_id, now=here.clock.now())
        return campaign_in_full(session, find_campaign(session, campaign_id)) | {"taken_back": taken}


@router.post("/{campaign_id}/resume")
def resume(
    campaign_id: str,
    body: ResumeBody | None = None,
    key: Key = Depends(allow("send")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Go on. What is too late by now expires with the reason; what would leave in quiet hours waits for the morning."""
    force = (body or ResumeBody()).force
    with here.database.writing() as session:
        resumed = resume_campaign(session, campaign_id, here.settings, by=key.key_id, now=here.clock.now(), force=force)
        return campaign_in_full(session, find_campaign(session, campaign_id)) | dataclasses.asdict(resumed)


@router.post("/{campaign_id}/cancel")
def cancel(
    campaign_id: str,
    body: ReasonBody | None = None,
    key: Key = Depends(allow("send")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Take back what has not left yet."""
    reason = None if body is None else body.reason
    with here.database.writing() as session:
        cancelled = cancel_campaign(session, campaign_id, now=here.clock.now(), reason=reason, by=key.key_id)
        return campaign_in_full(session, find_campaign(session, campaign_id)) | {"cancelled": cancelled}


@router.post("/{campaign_id}/correct", status_code=201)
def correct(
    campaign_id: str,
    body: CorrectionBody,
    asked: Asked = Depends(once("write")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """A draft to exactly those who got the campaign's mail, or may have. It is planned and scheduled like any other."""
    _aware(body.model_dump())
    given = body.model_dump(mode="json", by_alias=True, exclude_none=True)
    narrowing = ("states", "template_version", "arm", "from", "until")
    whom = {str(name): given[name] for name in narrowing if name in given}
    correction = Correction(body.template_id, whom, body.name, body.window_start, body.window_end, body.timing)
    now = here.clock.now()
    with here.database.writing() as session:
        asked.begin(session, now=now)
        made = correct_campaign(session, campaign_id, correction, now=now, by=asked.key.key_id)
        return asked.keep(session, campaign_details(find_campaign(session, made)))


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


def _aware(given: dict[str, Any]) -> dict[str, Any]:
    """The same, if every instant in it says its zone."""
    for name, value in given.items():
        if isinstance(value, datetime):
            aware(value, name)
    return given
