"""Mails with everything that came of them, a row each: answers from the log, and the orders they are credited with."""

from __future__ import annotations

import json
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
    EMAIL_OPENED,
    HUMAN_PPM,
    UNSUBSCRIBED,
)
from service.sales import Ints, Mails, Orders, credit_orders, pages, read_mails, read_orders, send_numbers
from service.tables import EventRow, SendRow

#: Reason of an erased contact's sends (`service.erase`).
ERASED = "contact erased"
#: A provider's word that a mail arrived (Segment's e-mail vocabulary).
EMAIL_DELIVERED = "Email Delivered"
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
    "hour_reason": _SEND.c.hour_reason,
    "is_holdout": _SEND.c.is_holdout,
    "mailbox": _SEND.c.mailbox,
    #: Closed by the plan itself: nobody ever meant to send it.
    "is_closed_in_plan": case(
        (_SEND.c.state.in_(("suppressed", "unplaced")) & (_SEND.c.finished_at == _SEND.c.created_at), 1), else_=0
    ),
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
        ``send_id`` (-1: of no mail of ours), ``kind``, ``at``, ``is_human``, ``is_repeat``, ``is_hard``.
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
                    "is_hard": np.array([_is_hard(one) for one in properties], dtype=bool),
                }
            )
        )
    if parts:
        return pd.concat(parts, ignore_index=True)
    none = pd.DataFrame(columns=["send_id", "kind", "at", "is_human", "is_repeat", "is_hard"])
    return none.astype({"send_id": "int64", "at": "int64", "is_human": bool, "is_repeat": bool, "is_hard": bool})


def read_ledger(session: Session, *where: ColumnElement[bool]) -> pd.DataFrame:
    """The ledger's rows that meet the conditions, as a frame with the columns of `_LEDGER`, by send."""
    rows = [row for page in pages(session, select(*_LEDGER.values()).where(*where)) for row in page]
    columns = zip(*rows, strict=True) if rows else ([] for _ in _LEDGER)
    frame = pd.DataFrame(dict(zip(_LEDGER, columns, strict=True)))
    for name in ("send_id", "contact_key", "sent_at", "assigned_local_hour"):
        frame[name] = frame[name].astype("int64")
    for name in ("is_holdout", "is_closed_in_plan"):
        frame[name] = frame[name].astype(bool)
    return frame.sort_values("send_id", ignore_index=True)


def with_outcomes(ledger: pd.DataFrame, answers: pd.DataFrame, credits: Credits) -> tuple[pd.DataFrame, str]:
    """The ledger's mails with what came of each, and what ``delivered`` rests on.

    Delivered is what providers said arrived, where they said so of any of these mails; else what was accepted and did
    not come back. A mail that a person opened, clicked, complained of or left by has arrived either way.
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
    mails["bounced_hard"] = told(EMAIL_BOUNCED, answers["is_hard"])
    mails["bounced_soft"] = told(EMAIL_BOUNCED) & ~mails["bounced_hard"]
    mails["complained"] = told(EMAIL_COMPLAINED)
    mails["unsubscribed"] = told(UNSUBSCRIBED)
    arrived = mails["opened"] | mails["clicked"] | mails["complained"] | mails["unsubscribed"]
    by_provider = told(EMAIL_DELIVERED)
    if by_provider.any():
        basis = "what the provider reported as delivered"
        mails["delivered"] = by_provider | arrived
    else:
        basis = "accepted by the provider, less what came back"
        mails["delivered"] = (mails["accepted"] & ~mails["bounced_hard"] & ~mails["bounced_soft"]) | arrived
    stands = ~credits.orders.is_undone
    of = pd.DataFrame({"send_id": credits.send_id, "orders": stands, "revenue_minor": credits.orders.net_minor})
    by_send = of.groupby("send_id").sum().reindex(ids, fill_value=0)
    mails["orders"] = by_send["orders"].to_numpy().astype(np.int64)
    mails["revenue_minor"] = by_send["revenue_minor"].to_numpy().astype(np.int64)
    return mails, basis


def actual_local_hours(mails: pd.DataFrame) -> pd.Series:
    """Local hour (0-23) at which each mail left, in its contact's zone."""
    hours = pd.Series(0, index=mails.index, dtype="int64")
    for zone, of_zone in mails.groupby("timezone"):
        at = of_zone["sent_at"].to_numpy()
        hours.loc[of_zone.index] = local_hour_of_week(at, str(zone)).astype(np.int64) % 24
    return hours


def _numbers(mails: Mails, place: Ints) -> Ints:
    return np.where(place >= 0, mails.send_id[place], -1) if len(mails) else np.full(len(place), -1, dtype=np.int64)


def _is_hard(properties: str | None) -> bool:
    """Whether a bounce is told to be for good."""
    if not properties:
        return False
    told = json.loads(properties)
    if told.get("bounce") is not None:
        return bool(told["bounce"] == "hard")
    if told.get("is_permanent") is not None:
        return bool(told["is_permanent"])
    return str(told.get("type", "")).strip().lower() in ("hard", "permanent", "hardbounce")
