"""What mailing earned beyond not mailing, against those held out of a campaign or of all; or when it can be told."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
from sqlalchemy import BigInteger, ColumnElement, case, func, select, type_coerce
from sqlalchemy.orm import Session

from features.events import DAY_MICROS
from features.tables import from_micros, to_micros
from features.vocabulary import UNSUBSCRIBED
from service.campaigns.report.mails import Credits, read_answers
from service.flow.ingest.values import decimals_of
from service.flow.schedule.placing import global_holdout_draws
from service.sales import Ints, Orders, integers
from service.settings import Settings
from service.tables import CampaignRow, ErasureRow, SendRow
from training.incremental import Group, Incremental, incremental_profit, times_needed

METHOD = (
    "difference of mean profit per contact, by intention to treat; 95 % interval for one look, a buyer's money "
    "described by both groups together, corrected for skewness (Cornish & Fisher 1938, Johnson 1978)"
)
#: Days by which the volume of today is measured.
VOLUME_DAYS = 90
#: Farther away than this nobody waits for.
LONGEST_WAIT_DAYS = 5 * 365


def is_held_out_of_everything(contact_keys: Ints, settings: Settings) -> np.ndarray:
    """Whether each contact is in the global holdout: the draw that `service.flow.schedule` takes; shape (n,)."""
    return np.asarray(global_holdout_draws(settings.pepper, contact_keys) < settings.global_holdout, dtype=bool)


def campaign_profit(
    session: Session, campaign: CampaignRow, mails: pd.DataFrame, credits: Credits, settings: Settings, *, now: datetime
) -> dict[str, Any]:
    """What the campaign earned beyond holding out, from everybody whom its plan did not close at once.

    Net revenue of each contact from the window's start until the attribution window after its end, whatever led to it.
    Members of the global holdout are left out (they get no other mail either) unless there are no others held out, and
    so are erased contacts, on both sides.
    """
    since = to_micros(campaign.window_start)
    until = to_micros(campaign.window_end) + settings.attribution_days * DAY_MICROS
    erased = set(session.scalars(select(ErasureRow.contact_key)))
    mine = mails[~mails["is_closed_in_plan"] & ~mails["contact_key"].isin(erased)]
    globally = is_held_out_of_everything(mine["contact_key"].to_numpy(), settings)
    against = "the campaign's holdout"
    if (mine["is_holdout"] & ~globally).any():
        mine = mine[~globally]
    elif mine["is_holdout"].any():
        against = "the global holdout, which gets no other mail either"
    until_now = min(until, to_micros(now))
    keys = mine["contact_key"].to_numpy()
    revenue = net_revenue(credits.orders, keys, np.full(len(keys), since), until_now)
    found = _compared(
        keys=keys,
        is_held_out=mine["is_holdout"].to_numpy(),
        revenue=revenue,
        n_mails=mine["accepted"].to_numpy(),
        n_unsubscribes=mine["unsubscribed"].to_numpy(),
        settings=settings,
        per_day=_planned_per_day(session, now),
        now=now,
    )
    is_final = to_micros(now) >= until
    return {
        "against": against,
        "from": campaign.window_start,
        "until": from_micros(until),
        "is_final": is_final,
        "note": None if is_final else "orders still come in: the figures are those so far",
        **found,
    }


def overall_profit(
    session: Session, orders: Orders, settings: Settings, *, since: int, until: int, now: datetime
) -> dict[str, Any]:
    """What all marketing mail earned in ``[since, until)`` beyond the global holdout.

    Everybody whom a plan ever took up before ``until`` counts, from then on: a contact's first plan is before its first
    mail, so that mailing cannot have changed who is compared.
    """
    ledger = select(
        SendRow.contact_key,
        type_coerce(func.min(SendRow.created_at), BigInteger),
        func.sum(_mailed(since, until)),
        func.max(_mailed()),
    ).where(SendRow.stream == "marketing", SendRow.campaign_id.is_not(None))
    rows = integers(
        session,
        ledger.where(
            SendRow.created_at < from_micros(until), SendRow.contact_key.not_in(select(ErasureRow.contact_key))
        )
        .group_by(SendRow.contact_key)
        .order_by(SendRow.contact_key),
        4,
    )
    keys, first = rows[:, 0], np.maximum(rows[:, 1], since)
    answers = read_answers(session, since, until)
    left = answers.loc[(answers["kind"] == UNSUBSCRIBED) & (answers["send_id"] >= 0), "send_id"].unique()
    unsubscribes = np.zeros(len(keys), dtype=np.int64)
    for start in range(0, len(left), 10_000):
        chunk = left[start : start + 10_000].tolist()
        contacts = np.array(
            list(session.scalars(select(SendRow.contact_key).where(SendRow.send_id.in_(chunk)))), dtype=np.int64
        )
        place = np.searchsorted(keys, contacts)
        known = place < len(keys)
        known[known] = keys[place[known]] == contacts[known]
        np.add.at(unsubscribes, place[known], 1)
    held = is_held_out_of_everything(keys, settings)
    found = _compared(
        keys=keys,
        is_held_out=held,
        revenue=net_revenue(orders, keys, first, until),
        n_mails=rows[:, 2],
        n_unsubscribes=unsubscribes,
        settings=settings,
        per_day=None,
        now=now,
        days=(min(until, to_micros(now)) - since) / DAY_MICROS,
    )
    mailed_before = int((rows[held, 3] > 0).sum())
    note = f"{mailed_before} of those held out have had mail before the share was what it is" if mailed_before else None
    return {"against": "the global holdout", "note": note, **found}


def net_revenue(orders: Orders, contact_keys: Ints, since: Ints, until: int) -> Ints:
    """Minor units that each contact's orders and returns come to in ``[since, until)``; shape (n,).

    Parameters
    ----------
    orders : Orders
    contact_keys, since : ndarray of int64, shape (n,)
        Contacts, each once, in any order, and from when on each counts.
    until : int
    """
    by_key = np.argsort(contact_keys, kind="stable")
    known = contact_keys[by_key]
    total = np.zeros(len(known), dtype=np.int64)
    if not len(known):
        return total
    for contact, at, minor in (
        (orders.contact_key, orders.occurred_at, orders.net_minor),
        (orders.return_contact, orders.return_at, -orders.return_minor),
    ):
        place = np.minimum(np.searchsorted(known, contact), len(known) - 1)
        counts = (known[place] == contact) & (at >= since[by_key[place]]) & (at < until)
        np.add.at(total, by_key[place[counts]], minor[counts])
    return total


def _compared(
    *,
    keys: Ints,
    is_held_out: np.ndarray,
    revenue: Ints,
    n_mails: np.ndarray,
    n_unsubscribes: np.ndarray,
    settings: Settings,
    per_day: float | None,
    now: datetime,
    days: float | None = None,
) -> dict[str, Any]:
    unit = 10 ** decimals_of(settings.currency)
    mail_cost, unsubscribe_cost = settings.mail_cost * unit, settings.unsubscribe_cost * unit
    cost = mail_cost * n_mails.astype(np.float64) + unsubscribe_cost * n_unsubscribes.astype(np.float64)
    mailed, held_out = (
        Group(
            contacts=int(side.sum()),
            spent=revenue[side & (revenue != 0)].astype(np.float64),
            cost_mean=float(cost[side].mean()) if side.any() else 0.0,
            cost_variance=float(cost[side].var()) if side.any() else 0.0,
        )
        for side in (~is_held_out, is_held_out)
    )
    found = incremental_profit(mailed, held_out, margin_share=settings.margin_share)
    times = times_needed(mailed, held_out, found, least_effect=mail_cost)
    wait = _wait(found, times, mailed, held_out, per_day, days, now)
    return {
        "currency": settings.currency,
        "margin_share": settings.margin_share,
        "mailed": _shown(mailed),
        "held_out": _shown(held_out),
        "per_contact_minor": {
            "estimate": found.estimate, "lower": found.lower, "upper": found.upper, "why": found.why
        },
        "total_minor": {
            name: None if (value := getattr(found, name)) is None else value * mailed.contacts
            for name in ("estimate", "lower", "upper")
        },
        "verdict": _verdict(found),
        **wait,
        "sentence": _sentence(found, mailed.contacts, wait, settings.currency, unit),
        "method": METHOD,
    }  # fmt: skip


def _shown(side: Group) -> dict[str, Any]:
    return {
        "contacts": side.contacts,
        "buyers": len(side.spent),
        "revenue_minor": int(side.spent.sum()),
        "mean_revenue_minor": side.mean,
        "mean_cost_minor": side.cost_mean,
    }


def _verdict(found: Incremental) -> str:
    if found.lower is None or found.upper is None:
        return "not_knowable_yet"
    return "gain" if found.lower > 0 else "loss" if found.upper < 0 else "not_knowable_yet"


def _wait(
    found: Incremental,
    times: float | None,
    mailed: Group,
    held_out: Group,
    per_day: float | None,
    days: float | None,
    now: datetime,
) -> dict[str, Any]:
    """How many contacts it takes to see the effect, and from which day on that can be, by the volume of today.

    A campaign counts contacts × campaigns (each contact planned again tells more); the overall comparison counts days,
    because its contacts stay the same and go on buying.
    """
    none: dict[str, Any] = {"contacts_needed": None, "not_before": None, "why_never": None}
    if _verdict(found) != "not_knowable_yet":
        return none
    if held_out.contacts < 2 or mailed.contacts < 2:
        return none | {"why_never": "nobody to compare with: set a holdout share and wait for its first campaign"}
    if times is None:
        return none | {"why_never": "nobody bought on either side, so it cannot be told how long it takes"}
    contacts = mailed.contacts + held_out.contacts
    needed = max(round(times * contacts), contacts + 1)
    if days is not None:
        wait = max(times - 1.0, 0.0) * days
    elif per_day:
        wait = (needed - contacts) / per_day
    else:
        return none | {"contacts_needed": needed, "why_never": "nothing was planned lately, so there is no date"}
    if wait > LONGEST_WAIT_DAYS:
        share = held_out.contacts / contacts
        why = f"never at this holdout share ({100 * share:.1f} %): at today's volume it takes {wait / 365:.0f} years"
        return none | {"contacts_needed": needed, "why_never": why}
    day = (now + timedelta(days=max(wait, 1.0))).date()
    return none | {"contacts_needed": needed, "not_before": day.isoformat()}


def _sentence(found: Incremental, contacts: int, wait: dict[str, Any], currency: str, unit: int) -> str:
    def money(minor: float) -> str:
        return f"{minor * contacts / unit:,.2f} {currency}"

    if found.estimate is None:
        return f"Not knowable: {found.why}"
    verdict = _verdict(found)
    if verdict == "not_knowable_yet":
        if wait["not_before"]:
            when = f"Not knowable before {wait['not_before']}"
        else:
            when = f"Not knowable: {wait['why_never']}"
        so_far = f"{money(found.estimate)} so far"
        if found.lower is not None and found.upper is not None:
            so_far += f", anything from {money(found.lower)} to {money(found.upper)}"
        return f"{when} ({so_far})"
    word = "earned" if verdict == "gain" else "lost"
    low, high = sorted((abs(found.lower or 0.0), abs(found.upper or 0.0)))
    return f"Mailing {word} {money(abs(found.estimate))} ({money(low)} to {money(high)})"


def _planned_per_day(session: Session, now: datetime) -> float | None:
    """Campaign mails planned a day, held-out ones among them, over the last 90 days or since the first."""
    begin = now - timedelta(days=VOLUME_DAYS)
    count, first = session.execute(
        select(func.count(), type_coerce(func.min(SendRow.created_at), BigInteger)).where(
            SendRow.campaign_id.is_not(None), SendRow.created_at > begin, SendRow.created_at <= now
        )
    ).one()
    if not count:
        return None
    return float(count / max((to_micros(now) - first) / DAY_MICROS, 1.0))


def _mailed(since: int | None = None, until: int | None = None) -> ColumnElement[int]:
    """1 for a mail that left, within ``[since, until)`` where that is given, else 0."""
    left = SendRow.state == "accepted"
    if since is not None and until is not None:
        left &= (SendRow.finished_at >= from_micros(since)) & (SendRow.finished_at < from_micros(until))
    return case((left, 1), else_=0)
