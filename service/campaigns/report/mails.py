"""Mails with everything that came of them, a row each: answers from the log, and the orders they are credited with."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from sqlalchemy import BigInteger, ColumnElement, Select, Table, case, func, select, type_coerce
from sqlalchemy.orm import Session

from features.events import DAY_MICROS, local_hour_of_week
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_COMPLAINED,
    EMAIL_DELIVERED,
    EMAIL_OPENED,
    HUMAN_PPM,
    UNSUBSCRIBED,
)
from service.bounces.status import severity_told
from service.sales import Ints, Mails, Orders, credit_orders, pages, read_mails, read_orders, send_numbers
from service.tables import EventRow, SendRow

#: Reason of an erased contact's sends (`service.erase`).
ERASED = "contact erased"
#: Bounces, the worst first; an answer's ``severity`` is a place in it, and its length for what is no bounce.
SEVERITIES = ("hard", "policy", "soft")
ANSWERS = (EMAIL_DELIVERED, EMAIL_OPENED, EMAIL_CLICKED, EMAIL_BOUNCED, EMAIL_COMPLAINED, UNSUBSCRIBED)

_EVENT = cast(Table, EventRow.__table__)
_SEND = cast(Table, SendRow.__table__)
#: Columns of the ledger that a report reads; instants in microseconds.
_LEDGER = {
    "send_id": _SEND.c.send_id,
    "contact_key": _SEND.c.contact_key,
    "campaign_id": _SEND.c.campaign_id,
    "state": _SEND.c.state,
    "reason": _SEND.c.reason,
    "sent_at": type_coerce(func.coalesce(_SEND.c.finished_at, _SEND.c.due_at), BigInteger),
    "timezone": _SEND.c.timezone,
    "assigned_local_hour": _SEND.c.assigned_local_hour,
    "hour_propensity": _SEND.c.hour_propensity,
    "hour_reason": _SEND.c.hour_reason,
    "is_holdout": _SEND.c.is_holdout,
    "mailbox": _SEND.c.mailbox,
    #: Closed by the plan itself: nobody ever meant to send it.
    "is_closed_in_plan": case(
        (_SEND.c.state.in_(("suppressed", "unplaced")) & (_SEND.c.finished_at == _SEND.c.created_at), 1), else_=0
    ),
}
#: Types of those columns that are no texts; of texts the frame keeps numbers.
_TYPES: dict[str, Any] = {
    "send_id": np.int64,
    "contact_key": np.int64,
    "sent_at": np.int64,
    "assigned_local_hour": np.int16,
    "hour_propensity": np.float64,
    "is_holdout": np.bool_,
    "is_closed_in_plan": np.bool_,
}


@dataclass(frozen=True)
class Credits:
    """The shop's orders in a range, and the mail that each is credited to."""

    orders: Orders
    #: Number of the mail, -1 where the order is nobody's; shape (n_orders,).
    send_id: Ints


def read_credits(
    session: Session, since: int, until: int, attribution_days: int, contacts: Select[Any] | None = None
) -> Credits:
    """Orders placed in ``[since, until)`` (microseconds), the mail each is credited to, and returns of that time."""
    window = attribution_days * DAY_MICROS
    every = read_orders(session, contacts)
    inside = (every.occurred_at >= since) & (every.occurred_at < until)
    returned = (every.return_at >= since) & (every.return_at < until)
    foreign = (every.foreign_return_at >= since) & (every.foreign_return_at < until)
    orders = Orders(
        contact_key=every.contact_key[inside],
        occurred_at=every.occurred_at[inside],
        net_minor=every.net_minor[inside],
        is_undone=every.is_undone[inside],
        is_foreign=every.is_foreign[inside],
        return_contact=every.return_contact[returned],
        return_at=every.return_at[returned],
        return_minor=every.return_minor[returned],
        foreign_return_at=every.foreign_return_at[foreign],
    )
    if not inside.any():
        return Credits(orders, np.empty(0, dtype=np.int64))
    mails, click_mail, click_at = read_mails(session, since - window, until, contacts)
    place = credit_orders(orders.contact_key, orders.occurred_at, mails, click_mail, click_at, window)
    return Credits(orders, _numbers(mails, place))


def read_answers(
    session: Session, since: int, until: int | None = None, contacts: Select[Any] | None = None
) -> pd.DataFrame:
    """What came back for mails from ``since`` on (microseconds), before ``until``.

    Returns
    -------
    DataFrame
        ``send_id`` (-1: of no mail of ours), ``kind``, ``at``, ``is_human``, ``is_repeat``, ``severity`` (of a bounce,
        a place in `SEVERITIES`).
    """
    event = _EVENT.c
    query = select(
        event.ref,
        event.kind,
        event.occurred_at,
        func.coalesce(event.human_ppm, 0),
        event.is_repeat,
        case((event.kind == EMAIL_BOUNCED, event.properties)),
    ).where(event.kind.in_(ANSWERS), event.occurred_at >= since)
    if until is not None:
        query = query.where(event.occurred_at < until)
    if contacts is not None:
        query = query.where(event.contact_key.in_(contacts))
    parts = []
    for page in pages(session, query):
        ref, kind, at, ppm, repeat, properties = zip(*page, strict=True)
        parts.append(
            pd.DataFrame(
                {
                    "send_id": send_numbers(list(ref)),
                    "kind": pd.Categorical(kind, categories=ANSWERS),
                    "at": np.array(at, dtype=np.int64),
                    "is_human": np.array(ppm, dtype=np.int64) >= HUMAN_PPM,
                    "is_repeat": np.array(repeat, dtype=bool),
                    "severity": np.fromiter(map(_severity, kind, properties), dtype=np.int8, count=len(page)),
                }
            )
        )
    if parts:
        return pd.concat(parts, ignore_index=True)
    none = pd.DataFrame(columns=["send_id", "kind", "at", "is_human", "is_repeat", "severity"])
    return none.astype({"send_id": "int64", "at": "int64", "is_human": bool, "is_repeat": bool, "severity": "int8"})


def read_ledger(session: Session, *where: ColumnElement[bool]) -> pd.DataFrame:
    """The ledger's rows that meet the conditions, as a frame with the columns of `_LEDGER`, by send.

    Rows become arrays page by page: some 60 bytes a mail are kept, however long its texts are.
    """
    parts: dict[str, list[np.ndarray]] = {name: [] for name in _LEDGER}
    texts: dict[str, dict[str, int]] = {name: {} for name in _LEDGER if name not in _TYPES}
    for page in pages(session, select(*_LEDGER.values()).where(*where)):
        for name, column in zip(_LEDGER, zip(*page, strict=True), strict=True):
            if name in _TYPES:
                parts[name].append(np.array(column, dtype=_TYPES[name]))
            else:
                parts[name].append(_codes(column, texts[name]))
    frame = pd.DataFrame(
        {
            name: np.concatenate([np.empty(0, dtype=_TYPES[name]), *parts.pop(name)])
            if name in _TYPES
            else pd.Categorical.from_codes(
                np.concatenate([np.empty(0, dtype=np.int32), *parts.pop(name)]), categories=pd.Index(texts[name])
            )
            for name in _LEDGER
        }
    )
    return frame.sort_values("send_id", ignore_index=True)


def with_outcomes(ledger: pd.DataFrame, answers: pd.DataFrame, credits: Credits) -> pd.DataFrame:
    """The ledger's mails with what came of each.

    Delivered is what providers said arrived, in each campaign of whose accepted mails they told of most; else what was
    accepted and did not come back (``is_told`` says which): one stray report must not make the others undelivered. A
    mail that a person opened, clicked, complained of or left by has arrived either way.
    """
    mails = ledger.copy()
    ids = mails["send_id"]
    human, machine = answers["is_human"], ~answers["is_human"]

    def told(kind: str, which: pd.Series | None = None) -> pd.Series:
        chosen = answers["kind"] == kind
        if which is not None:
            chosen &= which
        return ids.isin(answers.loc[chosen, "send_id"])

    mails["accepted"] = mails["state"] == "accepted"
    mails["is_erased"] = mails["reason"] == ERASED
    mails["opened"] = told(EMAIL_OPENED, human)
    mails["clicked"] = told(EMAIL_CLICKED, human)
    mails["machine_opened"] = told(EMAIL_OPENED, machine)
    mails["machine_clicked"] = told(EMAIL_CLICKED, machine)
    worst = answers[answers["kind"] == EMAIL_BOUNCED].groupby("send_id")["severity"].min()
    severity = worst.reindex(ids, fill_value=len(SEVERITIES)).to_numpy()
    for place, name in enumerate(SEVERITIES):
        mails[f"bounced_{name}"] = severity == place
    came_back = pd.Series(severity < len(SEVERITIES), index=mails.index)
    mails["complained"] = told(EMAIL_COMPLAINED)
    mails["unsubscribed"] = told(UNSUBSCRIBED)
    arrived = mails["opened"] | mails["clicked"] | mails["complained"] | mails["unsubscribed"]
    by_provider = told(EMAIL_DELIVERED)
    asked = mails["accepted"] & ~mails["is_erased"]
    share = (by_provider | came_back)[asked].groupby(_campaign(mails)[asked]).mean()
    told_of = share.index[share > 0.5]
    # Bounces alone are no provider's reports of deliveries: whoever tells of none leaves nothing to count.
    told_of = told_of[told_of.isin(_campaign(mails)[by_provider])]
    mails["is_told"] = _campaign(mails).isin(told_of)
    mails["delivered"] = by_provider.where(mails["is_told"], mails["accepted"] & ~came_back) | arrived
    stands = ~credits.orders.is_undone
    of = pd.DataFrame({"send_id": credits.send_id, "orders": stands, "revenue_minor": credits.orders.net_minor})
    by_send = of.groupby("send_id").sum().reindex(ids, fill_value=0)
    mails["orders"] = by_send["orders"].to_numpy().astype(np.int64)
    mails["revenue_minor"] = by_send["revenue_minor"].to_numpy().astype(np.int64)
    return mails


def actual_local_hours(mails: pd.DataFrame) -> pd.Series:
    """Local hour (0-23) at which each mail left, in its contact's zone."""
    hours = pd.Series(0, index=mails.index, dtype="int64")
    for zone, of_zone in mails.groupby("timezone", observed=True):
        at = of_zone["sent_at"].to_numpy()
        hours.loc[of_zone.index] = local_hour_of_week(at, str(zone)).astype(np.int64) % 24
    return hours


def _numbers(mails: Mails, place: Ints) -> Ints:
    return np.where(place >= 0, mails.send_id[place], -1) if len(mails) else np.full(len(place), -1, dtype=np.int64)


def _campaign(mails: pd.DataFrame) -> pd.Series:
    """Number of each mail's campaign, -1 for messages of none."""
    return mails["campaign_id"].cat.codes


def _codes(column: Iterable[str | None], known: dict[str, int]) -> np.ndarray:
    """Numbers of texts, in the order in which they came; -1 for None."""
    return np.array([-1 if text is None else known.setdefault(text, len(known)) for text in column], dtype=np.int32)


def _severity(kind: str, properties: str | None) -> int:
    if kind != EMAIL_BOUNCED:
        return len(SEVERITIES)
    return SEVERITIES.index(severity_told(json.loads(properties or "{}")))
