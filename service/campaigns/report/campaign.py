"""What came of a campaign: its mails, people's answers, orders and money, and what it earned beyond not mailing."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any

import pandas as pd
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.tables import from_micros, to_micros
from service.campaigns.drafts import find_campaign
from service.campaigns.report.figures import funnel
from service.campaigns.report.holdouts import campaign_profit
from service.campaigns.report.mails import (
    Credits,
    actual_local_hours,
    read_answers,
    read_credits,
    read_ledger,
    with_outcomes,
)
from service.experiments import experiment_report
from service.settings import Settings
from service.tables import CampaignRow, ModelEventRow, SendRow

#: The ledger's terminal states (ARCHITECTURE section 6); every intent ends in one of them.
TERMINAL_STATES = ("accepted", "failed", "unknown", "suppressed", "held_out", "unplaced", "cancelled", "expired")
STATES = ("planned", "claimed", "attempting", *TERMINAL_STATES)
#: Reasons that are listed one by one; the relays' words are many.
MOST_REASONS = 100


def campaign_report(session: Session, campaign_id: str, settings: Settings, *, now: datetime) -> dict[str, Any]:
    """The campaign's figures as JSON values; money in minor units of the reporting currency.

    An order counts on the mail that it is credited to within ``settings.attribution_days`` (`service.sales`); the
    profit against the holdout counts every order of the contacts, whatever led to it.

    Raises
    ------
    NotFound
        If there is no such campaign.
    """
    campaign = find_campaign(session, campaign_id)
    mails, credits = mails_of(session, campaign, settings, now=now)
    left = mails.loc[mails["state"].isin(("accepted", "unknown")), "sent_at"]
    by_state = mails["state"].value_counts()
    matures = from_micros(left.max()) + timedelta(days=settings.attribution_days) if len(left) else None
    return {
        "campaign_id": campaign_id,
        "name": campaign.name,
        "status": campaign.status,
        "as_of": now,
        "currency": settings.currency,
        "planned": len(mails),
        "sends": {state: int(by_state.get(state, 0)) for state in STATES},
        "reasons": _reasons(mails),
        "mails": funnel(mails),
        "attribution": {
            "days": settings.attribution_days,
            "rule": "last human click within the days after the mail, else the last mail that arrived",
            "complete_at": matures,
            "is_complete": matures is not None and now >= matures,
        },
        "by_assigned_local_hour": rows_by(mails[mails["accepted"]], "assigned_local_hour", "hour"),
        "by_actual_local_hour": by_actual_hour(mails),
        "by_hour_reason": rows_by(mails[mails["accepted"]], "hour_reason", "hour_reason"),
        "by_mailbox": rows_by(mails[mails["accepted"]], "mailbox", "mailbox"),
        "incremental": campaign_profit(session, campaign, mails, credits, settings, now=now),
        "experiments": [experiment_report(session, experiment_id, now=now) for experiment_id in campaign.experiments],
        "corrects": campaign.corrects,
        "corrected_by": list(
            session.scalars(
                select(CampaignRow.campaign_id)
                .where(CampaignRow.corrects == campaign_id)
                .order_by(CampaignRow.created_at, CampaignRow.campaign_id)
            )
        ),
        "models": _models(session, campaign),
    }


def mails_of(
    session: Session, campaign: CampaignRow, settings: Settings, *, now: datetime
) -> tuple[pd.DataFrame, Credits]:
    """The campaign's mails with what came of each, and the orders of its contacts."""
    ledger = read_ledger(session, SendRow.campaign_id == campaign.campaign_id)
    contacts = select(SendRow.contact_key).where(SendRow.campaign_id == campaign.campaign_id)
    left = ledger.loc[ledger["state"].isin(("accepted", "unknown")), "sent_at"]
    since = min([to_micros(campaign.window_start), *([int(left.min())] if len(left) else [])])
    credits = read_credits(session, since, to_micros(now) + 1, settings.attribution_days, contacts)
    return with_outcomes(ledger, read_answers(session, since, None, contacts), credits), credits


def by_actual_hour(mails: pd.DataFrame) -> list[dict[str, Any]]:
    """The figures by the local hour at which mails left, but for erased contacts, whose zone is gone."""
    told = mails[mails["accepted"] & ~mails["is_erased"]]
    return rows_by(told.assign(hour=actual_local_hours(told)), "hour", "hour")


def rows_by(mails: pd.DataFrame, column: str, name: str) -> list[dict[str, Any]]:
    """The figures of each part of the mails, by the values of a column."""
    part = mails[column]
    is_text = isinstance(part.dtype, pd.CategoricalDtype)
    if is_text:
        named = sorted({*part.cat.categories, "unknown"})
        part = part.cat.set_categories(named).fillna("unknown")
    return [
        {name: str(value) if is_text else int(str(value))} | funnel(mails.loc[places])
        for value, places in mails.groupby(part, sort=True, observed=True).groups.items()
    ]


def _reasons(ledger: pd.DataFrame) -> list[dict[str, Any]]:
    """Mails that did not leave, by state and reason, the most frequent first; what is rare is put together."""
    told = ledger[ledger["reason"].notna() & (ledger["state"] != "accepted")]
    counts = Counter(zip(told["state"], told["reason"], strict=True)).most_common()
    rest: Counter[str] = Counter()
    for (state, _), n in counts[MOST_REASONS:]:
        rest[state] += n
    return [
        {"state": state, "reason": reason, "sends": n}
        for (state, reason), n in [
            *counts[:MOST_REASONS],
            *(((state, "other reasons"), n) for state, n in rest.items()),
        ]
    ]


def _models(session: Session, campaign: CampaignRow) -> list[dict[str, Any]]:
    """Models behind the plan, and the version that was in force when it was made; None where that is not known."""
    names = list(
        dict.fromkeys((["send_hour"] if campaign.timing == "best_hour" else []) + campaign.audience.get("models", []))
    )
    if campaign.scheduled_at is None:
        return [{"name": name, "version": None} for name in names]
    rows = session.execute(
        select(ModelEventRow.model, ModelEventRow.version)
        .where(ModelEventRow.model.in_(names), ModelEventRow.at <= campaign.scheduled_at)
        .order_by(ModelEventRow.at)
    )
    in_force: dict[str, int] = dict(rows.all())
    return [{"name": name, "version": in_force.get(name)} for name in names]
