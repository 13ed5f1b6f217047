"""The dry run: the whole audience placed, counted and shown; nothing is written."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.tables import from_micros
from service.campaigns.drafts import find_campaign
from service.errors import Invalid
from service.experiments import planning
from service.flow.audience import find_audience
from service.flow.predict import Hours, predict
from service.flow.schedule import Economy, Intent, Limits, Placement, Sends, schedule
from service.mailboxes import rates_of
from service.settings import Settings
from service.tables import CampaignRow, ExperimentRow
from training.policies.thompson import DelayCdf
from training.serving import Serving

#: From this audience on, a send at once with an experiment is better cut into waves, and into how many.
WAVES_FROM, SUGGESTED_WAVES = 3_000, 8
#: Contacts whose hours are asked for at once.
HOURS_CHUNK = 50_000
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
        Planned sends by why they leave at that hour: see `service.flow.schedule.Sends`.
    personal_hours : int
        Planned sends at the hour that their contact's own curve chose; the others' hour was drawn, or fixed.
    mailboxes : dict of str to int
        Planned sends by mailbox provider.
    canary : int
        Planned sends that leave first.
    placement : Placement
        The objective, what the plan is expected to bring and what it would without limits, the slots that are full
        with the price of a place, the days of warm-up that it would take, and whose time zones were not known.
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
    personal_hours: int = 0
    mailboxes: dict[str, int] = field(default_factory=dict)
    canary: int = 0
    placement: Placement | None = None


def limits_of(settings: Settings, objective: str | None = None) -> Limits:
    """The planner's rules, from the installation's settings; ``objective`` goes before theirs.

    Raises
    ------
    Invalid
        If the objective is not known, or a mailbox provider's rate is none.
    """
    wanted = objective or settings.objective
    if wanted not in ("engagement", "profit"):
        raise Invalid(f"objective {wanted!r} is not known; write engagement or profit")
    economy = Economy(
        currency=settings.currency,
        margin_share=settings.margin_share,
        mail_cost=settings.mail_cost,
        unsubscribe_cost=settings.unsubscribe_cost,
        attribution_days=settings.attribution_days,
    )
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
        mailbox_rates=rates_of(settings.mailbox_rates),
        warm_up_from=settings.warm_up_from,
        economy=economy if wanted == "profit" else None,
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
        advice=(*_advice(campaign, audience_size, bool(asked)), *_advice_on_room(sends)),
        personal_hours=int((sends.hour_reason[planned] == "best").sum()),
        mailboxes={name: n for name, n in sorted(Counter(sends.mailbox[planned].tolist()).items()) if name},
        canary=int(sends.is_canary[planned].sum()),
        placement=sends.placement,
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


def _advice_on_room(sends: Sends) -> tuple[str, ...]:
    """What more room would be worth, where the hours run out."""
    placement = sends.placement
    told = [
        f"The mails to {mailbox} take {days} days of the warm-up; the window holds fewer: the rest is unplaced."
        for mailbox, days in sorted(placement.warm_up_days.items())
    ]
    dearest = max(placement.full, key=lambda one: one["price"], default=None)
    if dearest is not None and dearest["price"] > 0 and placement.expected is not None:
        whose = f" to {dearest['mailbox']}" if dearest["mailbox"] else ""
        unit = "" if placement.objective == "profit" else " answers"
        told.append(
            f"{len(placement.full)} hours or days are full; one more place{whose} at "
            f"{dearest['at']:%Y-%m-%d %H:%M} UTC would bring {dearest['price']:.2g}{unit}. The plan expects "
            f"{placement.expected:,.4g}{unit}, without these limits {placement.expected_unbound:,.4g}."
        )
    return tuple(told)


def _hours(session: Session, contact_keys: np.ndarray, serving: Serving, now: datetime) -> Hours | None:
    """The send-hour model's answer for each contact, a part of them at a time: their vectors need not all fit."""
    parts = []
    for start in range(0, max(1, len(contact_keys)), HOURS_CHUNK):
        some = contact_keys[start : start + HOURS_CHUNK]
        part = predict(session, some, serving, as_of=now, models=["send_hour"]).hours
        if part is None:
            return None
        parts.append(replace(part, probabilities=part.probabilities.astype(np.float32)))
    return Hours(
        version=parts[0].version,
        rung=parts[0].rung,
        probabilities=np.concatenate([part.probabilities for part in parts]),
        level=tuple(level for part in parts for level in part.level),
        is_usable=np.concatenate([part.is_usable for part in parts]),
    )


def planned_sends(
    session: Session, campaign: CampaignRow, serving: Serving, settings: Settings, now: datetime
) -> tuple[Sends, int, tuple[str, ...]]:
    """The campaign's sends, the size of its audience, and the named user ids that no contact answers to."""
    audience = find_audience(session, campaign.audience, as_of=now)
    hours: Hours | None = None
    if campaign.timing == "best_hour":
        hours = _hours(session, audience.contact_keys, serving, now)
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
        canary_share=campaign.canary_share or 0.0,
    )
    limits = limits_of(settings, campaign.objective)
    if campaign.corrects:
        limits = replace(limits, extra_cap=1)
    sends = schedule(session, intent, audience.contact_keys, hours, limits, now=now)
    return sends, len(audience.contact_keys), audience.unknown
