"""Campaigns: one mail to many. Create, plan (a dry run of the whole audience), schedule, cancel, report."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from features.tables import from_micros
from service.errors import Conflict, Invalid, NotFound
from service.experiments import experiment_report, planning
from service.flow.audience import check_rule, find_audience
from service.flow.predict import Hours, predict
from service.flow.render import slots_of
from service.flow.schedule import Intent, Limits, Sends, as_utc, check_waves, schedule, write_sends
from service.settings import Settings
from service.tables import CampaignRow, ExperimentRow, SendRow
from service.templates import find_template
from training.policies.thompson import DelayCdf
from training.serving import Serving

#: The ledger's terminal states (ARCHITECTURE section 6); every intent ends in one of them.
TERMINAL_STATES = ("accepted", "failed", "unknown", "suppressed", "held_out", "unplaced", "cancelled", "expired")
STATES = ("planned", "claimed", "attempting", *TERMINAL_STATES)

#: From this audience on, a send at once with an experiment is better cut into waves, and into how many.
WAVES_FROM, SUGGESTED_WAVES = 3_000, 8
#: Share of a wave's answers that should be in before the next one leaves.
ANSWERED_BETWEEN_WAVES = 0.3


@dataclass(frozen=True)
class NewCampaign:
    """A campaign before it is created."""

    name: str
    template_id: str
    window_start: datetime
    window_end: datetime
    audience: Mapping[str, Any]
    experiments: Sequence[str] = ()
    topic: str = "marketing"
    holdout_share: float = 0.0
    #: best_hour | spread | at_start
    timing: str = "best_hour"
    #: Parts, spread over the window, that a send ``at_start`` is cut into.
    waves: int = 1
    #: Given where a run must repeat: the draws of hours and holdouts hang on it. Random by default.
    campaign_id: str | None = None


@dataclass(frozen=True)
class CampaignPlan:
    """What scheduling would do, without doing it.

    Attributes
    ----------
    counts : dict of str to int
        Contacts by state and reason.
    local_hours : dict of int to int
        Planned sends by the contact's local hour.
    hour_reasons : dict of str to int
        Planned sends by why they leave at that hour: best, explore, fallback, fixed.
    holdouts : int
        Planned sends that will be held out.
    unknown : tuple of str
        User ids of the audience that no contact answers to.
    waves : tuple of dict
        Instants at which parts of a send ``at_start`` leave, with their sends.
    experiments : tuple of dict
        What each experiment can prove with so many sends.
    advice : tuple of str
        What the plan would do well to change, if anything.
    """

    campaign_id: str
    audience: int
    planned: int
    counts: dict[str, int]
    local_hours: dict[int, int]
    hour_reasons: dict[str, int]
    holdouts: int
    first_due: datetime | None
    last_due: datetime | None
    unknown: tuple[str, ...]
    waves: tuple[dict[str, Any], ...] = ()
    experiments: tuple[dict[str, Any], ...] = ()
    advice: tuple[str, ...] = ()


def limits_of(settings: Settings) -> Limits:
    """The planner's rules, from the installation's settings."""
    return Limits(
        quiet_hours=settings.quiet,
        frequency_cap=settings.frequency_cap,
        rate_per_minute=settings.send_rate_per_minute,
        explore_share=settings.explore_share,
        global_holdout=settings.global_holdout,
        default_timezone=settings.timezone,
        pepper=settings.pepper,
        salt=settings.pepper,
    )


def create_campaign(session: Session, new: NewCampaign, *, now: datetime) -> str:
    """Id of a new campaign, a draft.

    Raises
    ------
    NotFound
        If the template or an experiment does not exist.
    Invalid
        If the audience is not understood, an experiment's slot is not in the template, or two fill the same.
    """
    check_rule(new.audience)
    check_waves(new.waves, new.timing)
    template = find_template(session, new.template_id)
    slots = dict(
        session.execute(
            select(ExperimentRow.experiment_id, ExperimentRow.slot).where(
                ExperimentRow.experiment_id.in_(new.experiments)
            )
        ).all()
    )
    for experiment_id in new.experiments:
        if experiment_id not in slots:
            raise NotFound(f"there is no experiment {experiment_id!r}; GET /v1/experiments lists them")
    offered = slots_of(template.source)
    for experiment_id, slot in slots.items():
        if slot not in offered:
            raise Invalid(
                f"experiment {experiment_id} fills the slot {slot!r}, which template {new.template_id!r} lacks; "
                f"it has {', '.join(offered)}"
            )
    filled = Counter(slots.values())
    if any(count > 1 for count in filled.values()):
        slot = filled.most_common(1)[0][0]
        raise Invalid(f"two experiments fill the slot {slot!r}; a slot takes one experiment in a campaign")
    campaign_id = new.campaign_id or f"cmp_{secrets.token_hex(6)}"
    campaign = CampaignRow(
        campaign_id=campaign_id,
        name=new.name,
        status="draft",
        template_id=new.template_id,
        template_version=template.version,
        audience=dict(new.audience),
        experiments=list(new.experiments),
        topic=new.topic,
        window_start=as_utc(new.window_start),
        window_end=as_utc(new.window_end),
        holdout_share=new.holdout_share,
        timing=new.timing,
        waves=new.waves,
        created_at=now,
        scheduled_at=None,
    )
    session.add(campaign)
    session.flush()
    return campaign_id


def plan_campaign(
    session: Session, campaign_id: str, serving: Serving, settings: Settings, *, now: datetime
) -> CampaignPlan:
    """The whole audience placed, counted and shown; nothing is written."""
    campaign = find_campaign(session, campaign_id)
    sends, audience_size, unknown = _sends(session, campaign, serving, settings, now)
    planned = sends.state == "planned"
    due = sends.due_at[planned]
    n_planned = int(planned.sum())
    instants, sizes = np.unique(due, return_counts=True) if campaign.timing == "at_start" else ((), ())
    asked = session.scalars(select(ExperimentRow).where(ExperimentRow.experiment_id.in_(campaign.experiments))).all()
    return CampaignPlan(
        campaign_id=campaign_id,
        audience=audience_size,
        planned=n_planned,
        counts=sends.counts(),
        local_hours={
            int(hour): int(n)
            for hour, n in zip(*np.unique(sends.assigned_local_hour[planned], return_counts=True), strict=True)
        },
        hour_reasons=dict(sorted(Counter(sends.hour_reason[planned].tolist()).items())),
        holdouts=int(sends.is_holdout[planned].sum()),
        first_due=from_micros(due.min()) if len(due) else None,
        last_due=from_micros(due.max()) if len(due) else None,
        unknown=unknown,
        waves=tuple({"at": from_micros(at), "sends": int(n)} for at, n in zip(instants, sizes, strict=True)),
        experiments=tuple(
            {"id": one.experiment_id, "name": one.name}
            | planning(session, one, sends=n_planned, holdout_share=campaign.holdout_share or None)
            for one in asked
        )
        if n_planned
        else (),
        advice=_advice(campaign, audience_size, bool(asked)),
    )


def _advice(campaign: CampaignRow, audience_size: int, has_experiment: bool) -> tuple[str, ...]:
    """Whether the campaign can learn within itself, and what would let it."""
    if campaign.timing != "at_start" or not has_experiment:
        return ()
    if campaign.waves == 1:
        if audience_size < WAVES_FROM:
            return ()
        return (
            f"All {audience_size:,} mails leave at once, so nothing is learned within this send; set waves to "
            f"{SUGGESTED_WAVES} and give it a window.",
        )
    apart = (campaign.window_end - campaign.window_start) / campaign.waves
    delay = DelayCdf()
    ages = np.geomspace(0.01, 1000.0, 2000)
    wanted = timedelta(hours=float(np.interp(ANSWERED_BETWEEN_WAVES, delay(ages), ages)))
    if apart >= wanted:
        return ()
    hours, needed = apart.total_seconds() / 3600, wanted.total_seconds() / 3600
    return (
        f"Waves lie {hours:.2g} h apart, when {100 * float(delay(hours)):.0f} % of the answers have come in; "
        f"a window of {needed * campaign.waves:.0f} h lets each learn from the one before.",
    )


def schedule_campaign(
    session: Session, campaign_id: str, serving: Serving, settings: Settings, *, now: datetime
) -> dict[str, int]:
    """Put every send of the campaign into the ledger; returns the contacts by state and reason.

    Raises
    ------
    Conflict
        If the campaign is not a draft.
    """
    campaign = find_campaign(session, campaign_id, for_update=True)
    if campaign.status != "draft":
        raise Conflict(f"campaign {campaign_id} is {campaign.status}; only a draft can be scheduled")
    sends, _, _ = _sends(session, campaign, serving, settings, now)
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
        "sends": states,
        "experiments": [experiment_report(session, experiment_id, now=now) for experiment_id in campaign.experiments],
    }


def find_campaign(session: Session, campaign_id: str, *, for_update: bool = False) -> CampaignRow:
    """The campaign's row.

    Raises
    ------
    NotFound
        If there is none of that id.
    """
    campaign = session.get(CampaignRow, campaign_id, with_for_update=for_update or None)
    if campaign is None:
        raise NotFound(f"there is no campaign {campaign_id!r}; GET /v1/campaigns lists them")
    return campaign


def _sends(
    session: Session, campaign: CampaignRow, serving: Serving, settings: Settings, now: datetime
) -> tuple[Sends, int, tuple[str, ...]]:
    audience = find_audience(session, campaign.audience, as_of=now)
    hours: Hours | None = None
    if campaign.timing == "best_hour":
        hours = predict(session, audience.contact_keys, serving, as_of=now, models=["send_hour"]).hours
    intent = Intent(
        key=campaign.campaign_id,
        template_id=campaign.template_id,
        template_version=campaign.template_version,
        window_start=campaign.window_start,
        window_end=campaign.window_end,
        campaign_id=campaign.campaign_id,
        topic=campaign.topic,
        timing=campaign.timing,
        holdout_share=campaign.holdout_share,
        waves=campaign.waves,
    )
    sends = schedule(session, intent, audience.contact_keys, hours, limits_of(settings), now=now)
    return sends, len(audience.contact_keys), audience.unknown
