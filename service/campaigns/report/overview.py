"""What happened over time: mails, answers, orders and subscribers by day, week or month; hours; campaigns side by side.

Everything counts in the period in which it happened, in the installation's zone: a mail when it left, an answer when it
came, an order when it was placed (less what was taken back of it since), a return without an order when it was told.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

import numpy as np
import pandas as pd
from sqlalchemy import BigInteger, Table, func, literal_column, select, type_coerce
from sqlalchemy.orm import Session

from features.events import QUARTER_MICROS
from features.tables import from_micros, to_micros
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_COMPLAINED,
    EMAIL_DELIVERED,
    EMAIL_OPENED,
    UNSUBSCRIBED,
)
from service.campaigns.report.campaign import TERMINAL_STATES, by_actual_hour, mails_of, rows_by
from service.campaigns.report.figures import funnel, rate, weighted
from service.campaigns.report.holdouts import overall_profit
from service.campaigns.report.mails import (
    SEVERITIES,
    Credits,
    read_answers,
    read_credits,
    read_ledger,
    with_outcomes,
)
from service.campaigns.report.periods import Periods
from service.sales import Ints
from service.settings import Settings
from service.suppression import EMAIL
from service.tables import CampaignRow, ConsentRow, ErasureRow, SendRow

_CONSENT = cast(Table, ConsentRow.__table__)


def overview(session: Session, settings: Settings, periods: Periods, *, now: datetime) -> dict[str, Any]:
    """Figures of each period, their sums with rates, subscribers by topic, and profit against the global holdout.

    ``revenue_attributed_minor + revenue_unattributed_minor = revenue_minor`` holds in every row. What erased contacts
    answered, bought and subscribed to is gone with them; their mails stay.
    """
    since, until = periods.since, periods.until
    answers = read_answers(session, since, until)
    credits = read_credits(session, since, until, settings.attribution_days)
    columns = _ledger(session, periods) | _answers(answers, periods) | _money(credits, periods)
    growth = _growth(session, periods)
    for name in ("subscribers_new", "subscribers_lost"):
        columns[name] = sum((topic[name] for topic in growth.values()), np.zeros(len(periods), dtype=np.int64))
    rows = [
        {"from": start.isoformat()} | {name: int(values[place]) for name, values in columns.items()}
        for place, start in enumerate(periods.starts)
    ]
    totals = {name: int(values.sum()) for name, values in columns.items()}
    return {
        "from": periods.starts[0].isoformat(),
        "until": periods.end.isoformat(),
        "timezone": settings.timezone,
        "currency": settings.currency,
        "attribution_days": settings.attribution_days,
        "as_of": now,
        "contacts_erased": session.scalar(select(func.count()).select_from(ErasureRow)),
        "periods": rows,
        "totals": totals,
        "delivered_basis": _basis(answers),
        "rates": _rates(totals),
        "subscribers": _subscribers(growth, periods),
        "incremental": overall_profit(session, credits.orders, settings, since=since, until=until, now=now),
    }


def hours_report(session: Session, settings: Settings, periods: Periods, *, now: datetime) -> dict[str, Any]:
    """What came of the mails that left in the range, by the local hour they were assigned and the one they left at.

    Hours that the model chose answer better because the people there do. Only mails whose hour was drawn
    (``random_by_assigned_local_hour``: the reason is ``explore``) compare one hour with another, and there the
    ``weighted`` figures, in which a mail counts as the reciprocal of the probability of its hour (Horvitz & Thompson
    1952, by Hajek's ratio): some contacts have few hours open. Mails that left at another hour than they drew because
    it was full, or that no model told anything of, are not among them.
    """
    mails = _mails(session, settings, periods, now)
    random = mails[mails["hour_reason"] == "explore"]
    return {
        "from": periods.starts[0].isoformat(),
        "until": periods.end.isoformat(),
        "as_of": now,
        "currency": settings.currency,
        "by_assigned_local_hour": rows_by(mails, "assigned_local_hour", "hour"),
        "by_actual_local_hour": by_actual_hour(mails),
        "random_by_assigned_local_hour": [
            row | {"weighted": weighted(random[random["assigned_local_hour"] == row["hour"]])}
            for row in rows_by(random, "assigned_local_hour", "hour")
        ],
        "by_hour_reason": rows_by(mails, "hour_reason", "hour_reason"),
    }


def campaigns_report(
    session: Session, settings: Settings, campaigns: Sequence[CampaignRow], *, now: datetime
) -> list[dict[str, Any]]:
    """Key figures of these campaigns, in their order: planned, mails by state, and what came of those that left."""
    reports = []
    for campaign in campaigns:  # one after the other, so that no more than one's mails are in memory
        mails, _ = mails_of(session, campaign, settings, now=now)
        states = mails["state"].value_counts()
        reports.append(
            {
                "campaign_id": campaign.campaign_id,
                "name": campaign.name,
                "status": campaign.status,
                "scheduled_at": campaign.scheduled_at,
                "currency": settings.currency,
                "planned": len(mails),
                "sends": {state: int(states.get(state, 0)) for state in TERMINAL_STATES},
                "mails": funnel(mails),
            }
        )
    return reports


def _mails(session: Session, settings: Settings, periods: Periods, now: datetime) -> pd.DataFrame:
    begin, end = from_micros(periods.since), from_micros(periods.until)
    left = (SendRow.state == "accepted", SendRow.finished_at >= begin, SendRow.finished_at < end)
    ledger = read_ledger(session, *left)
    since = int(ledger["sent_at"].min()) if len(ledger) else to_micros(now)
    credits = read_credits(session, since, to_micros(now) + 1, settings.attribution_days)
    return with_outcomes(ledger, read_answers(session, since), credits)


def _ledger(session: Session, periods: Periods) -> dict[str, Ints]:
    """Mails planned by when they were, and by how they ended by when they did."""
    columns = {"planned": np.zeros(len(periods), dtype=np.int64)}
    columns |= {state: np.zeros(len(periods), dtype=np.int64) for state in TERMINAL_STATES}
    for column in (SendRow.created_at, SendRow.finished_at):
        quarter = _quarter(column)
        query = (
            select(SendRow.state, quarter, func.count())
            .where(column >= from_micros(periods.since), column < from_micros(periods.until))
            .group_by(SendRow.state, quarter)
        )
        for state, at, count in session.execute(query):
            name = "planned" if column is SendRow.created_at else state
            if name in columns:
                columns[name] += periods.sums(
                    np.array([at * QUARTER_MICROS], dtype=np.int64), np.array([count], dtype=np.int64)
                )
    return columns


def _answers(answers: pd.DataFrame, periods: Periods) -> dict[str, Ints]:
    """Mails answered, each once a kind, when it first was."""
    ours, human = answers["send_id"] >= 0, answers["is_human"]
    first = ~answers["is_repeat"]
    kind = answers["kind"]

    def when(which: pd.Series) -> Ints:
        at = answers.loc[which.index[which]].query("send_id >= 0").groupby("send_id")["at"].min()
        return periods.sums(at.to_numpy(dtype=np.int64))

    bounces = answers.loc[(kind == EMAIL_BOUNCED) & ours]
    worst = bounces[bounces["severity"] == bounces.groupby("send_id")["severity"].transform("min")]
    came_back = {name: when(worst["severity"] == place) for place, name in enumerate(SEVERITIES)}
    return {
        "delivered_reports": when(kind == EMAIL_DELIVERED),
        "human_opens": when((kind == EMAIL_OPENED) & human & first),
        "human_clicks": when((kind == EMAIL_CLICKED) & human & first),
        "machine_opens": when((kind == EMAIL_OPENED) & ~human),
        "machine_clicks": when((kind == EMAIL_CLICKED) & ~human),
        "bounces_hard": came_back["hard"],
        "bounces_soft": came_back["soft"],
        "bounces_policy": came_back["policy"],
        "complaints": when(kind == EMAIL_COMPLAINED),
        "unsubscribes": when(kind == UNSUBSCRIBED),
        "unsubscribes_elsewhere": periods.sums(
            answers.loc[(kind == UNSUBSCRIBED) & ~ours, "at"].to_numpy(dtype=np.int64)
        ),
    }


def _money(credits: Credits, periods: Periods) -> dict[str, Ints]:
    orders = credits.orders
    stands, credited = ~orders.is_undone, credits.send_id >= 0
    at, net = orders.occurred_at, orders.net_minor
    attributed = periods.sums(at[credited], net[credited])
    returns = periods.sums(orders.return_at, orders.return_minor)
    total = periods.sums(at, net) - returns
    return {
        "orders": periods.sums(at[stands]),
        "orders_undone": periods.sums(at[~stands]),
        "orders_attributed": periods.sums(at[stands & credited]),
        "orders_other_currency": periods.sums(at[orders.is_foreign]),
        "takebacks_other_currency": periods.sums(orders.foreign_return_at),
        "revenue_minor": total,
        "revenue_attributed_minor": attributed,
        "revenue_unattributed_minor": periods.sums(at[~credited], net[~credited]) - returns,
        "returns_without_order_minor": returns,
    }


def _growth(session: Session, periods: Periods) -> dict[str, dict[str, Any]]:
    """By topic: subscriptions and losses by period, and subscribers at the end of each.

    A contact that subscribes again is new again; erased contacts have left the ledger, and with them these figures.
    """
    line = _CONSENT.c
    before = func.lag(line.state).over(partition_by=(line.contact_key, line.topic), order_by=line.consent_id)
    lines = (
        select(line.topic, _quarter(line.at).label("quarter"), line.state, func.coalesce(before, "").label("before"))
        .where(line.channel == EMAIL)
        .subquery()
    )
    is_new = (lines.c.state == "subscribed") & (lines.c.before != "subscribed")
    is_lost = (lines.c.state != "subscribed") & (lines.c.before == "subscribed")
    query = (
        select(lines.c.topic, lines.c.quarter, is_new.label("is_new"), func.count())
        .where(is_new | is_lost)
        .group_by(lines.c.topic, lines.c.quarter, is_new)
    )
    changes: dict[str, list[tuple[int, bool, int]]] = {}
    for topic, quarter, new, count in session.execute(query):
        changes.setdefault(topic, []).append((quarter * QUARTER_MICROS, bool(new), count))
    growth: dict[str, dict[str, Any]] = {}
    for topic in sorted(changes):
        at = np.array([change[0] for change in changes[topic]], dtype=np.int64)
        new = np.array([change[1] for change in changes[topic]], dtype=bool)
        count = np.array([change[2] for change in changes[topic]], dtype=np.int64)
        gained, lost = periods.sums(at[new], count[new]), periods.sums(at[~new], count[~new])
        earlier = at < periods.since
        base = int(np.where(new, count, -count)[earlier].sum())
        growth[topic] = {
            "subscribers_new": gained, "subscribers_lost": lost, "total": base + np.cumsum(gained - lost)
        }  # fmt: skip
    return growth


def _subscribers(growth: dict[str, dict[str, Any]], periods: Periods) -> dict[str, list[dict[str, Any]]]:
    return {
        topic: [
            {
                "from": start.isoformat(),
                "new": int(of["subscribers_new"][place]),
                "lost": int(of["subscribers_lost"][place]),
                "net": int(of["subscribers_new"][place] - of["subscribers_lost"][place]),
                "total": int(of["total"][place]),
            }
            for place, start in enumerate(periods.starts)
        ]
        for topic, of in growth.items()
    }


def _basis(answers: pd.DataFrame) -> str:
    if (answers["kind"] == EMAIL_DELIVERED).any():
        return "delivered_reports are what providers told; rates are of mails accepted"
    return "providers told of no deliveries; rates are of mails accepted"


def _rates(totals: dict[str, int]) -> dict[str, Any]:
    """Rates of the whole range; its edges cut some mails off from their answers."""
    accepted = totals["accepted"]
    named = (
        "human_opens",
        "human_clicks",
        "bounces_hard",
        "bounces_soft",
        "bounces_policy",
        "complaints",
        "unsubscribes",
    )
    return {name: rate(min(totals[name], accepted), accepted, "mails accepted") for name in named}


def _quarter(column: Any) -> Any:
    """Quarter hours since 1970: days of every zone begin at one, and so few rows come back."""
    return type_coerce(column, BigInteger).op("/", return_type=BigInteger())(literal_column(str(QUARTER_MICROS)))
