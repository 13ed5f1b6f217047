"""The dry run: the whole audience placed, counted and shown; nothing is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.tables import from_micros
from service.campaigns.drafts import find_campaign
from service.experiments import planning
from service.flow.audience import find_audience
from service.flow.predict import Hours, predict
from service.flow.schedule import Intent, Limits, Sends, schedule
from service.settings import Settings
from service.tables import CampaignRow, ExperimentRow
from training.policies.thompson import DelayCdf
from training.serving import Serving

#: From this audience on, a send at once with an experiment is better cut into waves, and into how many.
WAVES_FROM, SUGGESTED_WAVES = 3_000, 8
#: Share of a wave's answers that should be in before the next one leaves.
ANSWERED_BETWEEN_WAVES = 0.3


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
        sandbox=settings.sandbox,
    )


def plan_campaign(
    session: Session, campaign_id: str, serving: Serving, settings: Settings, *, now: datetime
) -> CampaignPlan:
    """The whole audience placed, counted and shown; nothing is written."""
    campaign = find_campaign(session, campaign_id)
    sends, audience_size, unknown = planned_sends(session, campaign, serving, settings, now)
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


def planned_sends(
    session: Session, campaign: CampaignRow, serving: Serving, settings: Settings, now: datetime
) -> tuple[Sends, int, tuple[str, ...]]:
    """The campaign's sends, the size of its audience, and the named user ids that no contact answers to."""
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
    limits = limits_of(settings)
    if campaign.corrects and limits.frequency_cap:  # who got the wrong mail must not go without the right one
        limits = replace(limits, frequency_cap=limits.frequency_cap + 1)
    sends = schedule(session, intent, audience.contact_keys, hours, limits, now=now)
    return sends, len(audience.contact_keys), audience.unknown
