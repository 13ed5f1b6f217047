"""What the shop sold, net of what was taken back, and which mail each order is credited to.

*Order*: one an order id and contact, at its earliest line. Its money stands on the day it was placed, less what was
taken back of it since, as the log knows it now.

*Taken back*: a cancellation or refund that names an order of the contact takes its value off it, or without a value all
of it; never more than the order (a shop often tells the cancellation and the refund). One that names no order of the
contact is a credit note: its value comes off the contact's latest order of at most 30 days before, and what that order
does not cover stands against the day of the note, as a return without an order. So no money is lost.

*Money*: minor units of the reporting currency. Orders in another currency are counted and not summed; what was taken
back in another currency leaves its order as it stands.

*Credit*: an order is credited to at most one mail, among those that were sent at most ``window`` before it: the one
whose link a person followed last before the order; without a click the one sent last that did not come back. It goes by
what happened when, not by what arrived first. `service.flow.reward.credit` has the same rule for decisions.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from sqlalchemy import BigInteger, Select, Table, case, func, or_, select, type_coerce
from sqlalchemy.orm import Session

from features.events import DAY_MICROS
from features.labels import CREDIT_NOTE_DAYS
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    HUMAN_PPM,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    ORDER_REFUNDED,
)
from service.tables import EventRow, SendRow

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: Rows fetched at a time.
PAGE = 50_000
#: Properties that hold a value: an event with one of them and without minor units is in another currency.
TELLING = ("revenue", "total", "value")

_EVENT = cast(Table, EventRow.__table__)
_SEND = cast(Table, SendRow.__table__)


@dataclass(frozen=True)
class OrderLines:
    """Orders and what was taken back, as told; shape (n_lines,)."""

    contact_key: Ints
    #: Microseconds since 1970 UTC.
    occurred_at: Ints
    seq: Ints
    is_order: Mask
    #: Number of the order id among those told; lines without an id have a number of their own.
    order: Ints
    #: Minor units without a sign; 0 where none were told.
    value_minor: Ints
    #: Told in another currency: its value is not among ours.
    is_foreign: Mask
    has_value: Mask

    @classmethod
    def of(cls, pages: Iterable[Sequence[Any]]) -> OrderLines:
        """Lines of (contact_key, occurred_at, seq, kind, ref, value_minor, properties of those without a value)."""
        parts = [cls._of_page(page) for page in pages if page]
        none, no = np.empty(0, dtype=np.int64), np.empty(0, dtype=bool)
        parts.append(cls(none, none, none, no, none, none, no, no))
        lines = cls(*(np.concatenate([getattr(part, one.name) for part in parts]) for one in fields(cls)))
        return replace(lines, order=np.unique(lines.order, return_inverse=True)[1].astype(np.int64))

    @classmethod
    def _of_page(cls, rows: Sequence[Any]) -> OrderLines:
        """The same, with hashes of 64 bits in place of the numbers of order ids: two of one contact never meet."""
        key, at, seq, kind, ref, value, properties = zip(*rows, strict=True)
        is_order = np.array([one == ORDER_COMPLETED for one in kind], dtype=bool)
        named = [one or f"#{place}" for one, place in zip(ref, seq, strict=True)]
        has_value = np.array([one is not None for one in value], dtype=bool)
        minor = np.array([one or 0 for one in value], dtype=np.int64)
        return cls(
            contact_key=np.array(key, dtype=np.int64),
            occurred_at=np.array(at, dtype=np.int64),
            seq=np.array(seq, dtype=np.int64),
            is_order=is_order,
            order=pd.util.hash_array(np.array(named, dtype=object)).view(np.int64),
            value_minor=np.where(is_order, minor, np.abs(minor)),
            is_foreign=~has_value & np.array([_tells_money(one) for one in properties], dtype=bool),
            has_value=has_value,
        )

    def take(self, places: npt.NDArray[Any]) -> OrderLines:
        """The lines at these places."""
        return OrderLines(*(getattr(self, one.name)[places] for one in fields(self)))


@dataclass(frozen=True)
class Orders:
    """Orders net of what was taken back, by contact and time, shape (n_orders,); and returns without an order."""

    contact_key: Ints
    occurred_at: Ints
    #: Minor units that stand; 0 for an order in another currency or without a value.
    net_minor: Ints
    #: Nothing of it stands any more.
    is_undone: Mask
    is_foreign: Mask
    #: Credit notes, or the part of them that no order covers: contact, instant and minor units, shape (n_returns,).
    return_contact: Ints
    return_at: Ints
    return_minor: Ints
    #: Cancellations and refunds in another currency, which were not netted: their instants.
    foreign_return_at: Ints


@dataclass(frozen=True)
class Mails:
    """Mails that left, by contact, time and number; shape (n_mails,)."""

    send_id: Ints
    contact_key: Ints
    #: When the provider took it.
    sent_at: Ints
    #: Accepted, and it did not come back; else only a click can earn it an order.
    has_arrived: Mask

    @classmethod
    def of(cls, send_id: Ints, contact_key: Ints, sent_at: Ints, has_arrived: Mask) -> Mails:
        """The mails in their order."""
        order = np.lexsort((send_id, sent_at, contact_key))
        return cls(send_id[order], contact_key[order], sent_at[order], has_arrived[order])

    def __len__(self) -> int:
        return len(self.send_id)

    def place_of(self, send_ids: Ints) -> Ints:
        """Place of each send, -1 where it is not among the mails."""
        by_id = np.argsort(self.send_id, kind="stable").astype(np.int64)
        return places(self.send_id[by_id], send_ids, by_id)


def net_orders(lines: OrderLines) -> Orders:
    """The orders, net of everything that was taken back."""
    lines = lines.take(np.lexsort((lines.seq, lines.occurred_at, lines.contact_key)))
    n_names = int(lines.order.max(initial=0)) + 1
    _, contact = np.unique(lines.contact_key, return_inverse=True)
    name = contact.astype(np.int64) * n_names + lines.order
    placed = np.flatnonzero(lines.is_order)
    names, first = np.unique(name[placed], return_index=True)
    at_first = np.sort(first)  # places in time order; a later line of an order that is known adds nothing
    orders = lines.take(placed[at_first])
    by_name = np.asarray(np.searchsorted(at_first, first), dtype=np.int64)  # order of each name

    back = np.flatnonzero(~lines.is_order)
    order_of = places(names, name[back], by_name)
    value = np.maximum(orders.value_minor, 0)
    taken = np.zeros(len(orders.seq), dtype=np.int64)
    told = np.zeros(len(orders.seq), dtype=bool)
    is_named = (order_of >= 0) & ~lines.is_foreign[back]
    named, line = order_of[is_named], back[is_named]
    # An order in another currency, or without a value, has nothing to take off: it is undone as a whole.
    off = np.where((lines.value_minor[line] > 0) & (value[named] > 0), lines.value_minor[line], value[named])
    np.add.at(taken, named, off)
    told[named] = True
    taken = np.minimum(taken, value)
    is_undone = told & (taken >= value)

    note = back[(order_of < 0) & ~lines.is_foreign[back] & (lines.value_minor[back] > 0)]
    against = _latest_standing(orders, ~is_undone & (value > 0), lines.contact_key[note], lines.occurred_at[note])
    covered = np.zeros(len(note), dtype=np.int64)
    found = np.flatnonzero(against >= 0)
    if len(found):
        found = found[np.argsort(against[found], kind="stable")]  # notes are in time order within an order
        order, amount = against[found], lines.value_minor[note[found]]
        begins = np.r_[True, order[1:] != order[:-1]]
        total = np.cumsum(amount) - amount
        before = total - np.repeat(total[begins], np.diff(np.r_[np.flatnonzero(begins), len(order)]))
        covered[found] = np.clip(value[order] - taken[order] - before, 0, amount)
        np.add.at(taken, order, covered[found])
        is_undone[order] |= taken[order] >= value[order]
    left = lines.value_minor[note] - covered
    return Orders(
        contact_key=orders.contact_key,
        occurred_at=orders.occurred_at,
        net_minor=orders.value_minor - taken,
        is_undone=is_undone,
        is_foreign=orders.is_foreign,
        return_contact=lines.contact_key[note][left > 0],
        return_at=lines.occurred_at[note][left > 0],
        return_minor=left[left > 0],
        foreign_return_at=lines.occurred_at[back[lines.is_foreign[back]]],
    )


def credit_orders(
    contact_key: Ints,
    occurred_at: Ints,
    mails: Mails,
    click_mail: Ints,
    click_at: Ints,
    window_micros: int,
) -> Ints:
    """Place among ``mails`` of the mail that each order is credited to, -1 where none is; shape (n_orders,).

    Parameters
    ----------
    contact_key, occurred_at : ndarray of int64, shape (n_orders,)
    mails : Mails
    click_mail, click_at : ndarray of int64, shape (n_clicks,)
        People's clicks: place of the mail and instant, in any order.
    window_micros : int
        A mail earns orders from its sending on up to this much later, both ends included.

    Examples
    --------
    Mail 1 is sent at 0 and clicked at 5, mail 2 at 8: the order at 9 goes to the clicked one, that at 14 (window 10) to
    the other.

    >>> mails = Mails.of(np.array([1, 2]), np.array([7, 7]), np.array([0, 8]), np.array([True, True]))
    >>> credit_orders(np.array([7, 7]), np.array([9, 14]), mails, np.array([0]), np.array([5]), 10).tolist()
    [0, 1]
    """
    credited = np.full(len(contact_key), -1, dtype=np.int64)
    arrived = np.flatnonzero(mails.has_arrived)
    last = _last_before(mails.contact_key[arrived], mails.sent_at[arrived], contact_key, occurred_at)
    inside = last >= 0
    inside[inside] = occurred_at[inside] - mails.sent_at[arrived[last[inside]]] <= window_micros
    credited[inside] = arrived[last[inside]]

    after = click_at >= mails.sent_at[click_mail]
    click_mail, click_at = click_mail[after], click_at[after]
    # Of two clicks at one instant the one of the later mail counts: ``mails`` are in time order within a contact.
    order = np.lexsort((click_mail, click_at, mails.contact_key[click_mail]))
    click_mail, click_at = click_mail[order], click_at[order]
    click_contact = mails.contact_key[click_mail]
    click = _last_before(click_contact, click_at, contact_key, occurred_at)
    waiting = np.flatnonzero(click >= 0)
    while len(waiting):  # each turn looks one click further back
        here = click[waiting]
        is_valid = occurred_at[waiting] - mails.sent_at[click_mail[here]] <= window_micros
        credited[waiting[is_valid]] = click_mail[here[is_valid]]
        waiting = waiting[~is_valid]
        click[waiting] -= 1
        here = click[waiting]
        goes_on = here >= 0
        goes_on[goes_on] = (click_contact[here[goes_on]] == contact_key[waiting[goes_on]]) & (
            click_at[here[goes_on]] >= occurred_at[waiting[goes_on]] - window_micros
        )
        waiting = waiting[goes_on]
    return credited


def read_orders(session: Session, contacts: Select[Any] | None = None) -> Orders:
    """Every order of the log, net of what was taken back up to now.

    All of them whatever the dates asked about, so that an order's money does not hang on the range of the report.

    Parameters
    ----------
    contacts : Select, optional
        Query of contact keys: only their orders.
    """
    event = _EVENT.c
    query = select(
        event.contact_key,
        event.occurred_at,
        event.seq,
        event.kind,
        event.ref,
        event.value_minor,
        case((event.value_minor.is_(None), event.properties)),
    ).where(event.kind.in_((ORDER_COMPLETED, ORDER_CANCELLED, ORDER_REFUNDED)))
    if contacts is not None:
        query = query.where(event.contact_key.in_(contacts))
    return net_orders(OrderLines.of(pages(session, query)))


def read_mails(
    session: Session, since: int, until: int, contacts: Select[Any] | None = None
) -> tuple[Mails, Ints, Ints]:
    """The mails that left in ``[since, until)``, and people's clicks on them: place of the mail and instant.

    A mail whose fate a crash left unknown is among them, but only a click proves that it arrived.
    """
    send, event = _SEND.c, _EVENT.c
    sent_at = type_coerce(func.coalesce(send.finished_at, send.due_at), BigInteger)
    query = select(send.send_id, send.contact_key, sent_at, case((send.state == "accepted", 1), else_=0)).where(
        send.state.in_(("accepted", "unknown")), sent_at >= since, sent_at < until
    )
    told = select(
        event.ref, event.contact_key, event.occurred_at, case((event.kind == EMAIL_CLICKED, 1), else_=0)
    ).where(
        event.occurred_at >= since,
        or_(event.kind == EMAIL_BOUNCED, (event.kind == EMAIL_CLICKED) & (event.human_ppm >= HUMAN_PPM)),
    )
    if contacts is not None:
        query, told = query.where(send.contact_key.in_(contacts)), told.where(event.contact_key.in_(contacts))
    sends = integers(session, query, 4)
    mails = Mails.of(sends[:, 0], sends[:, 1], sends[:, 2], sends[:, 3] == 1)
    parts = [np.empty((0, 4), dtype=np.int64)]
    for page in pages(session, told):
        numbers = send_numbers([row[0] for row in page])
        parts.append(np.column_stack((numbers, np.array([row[1:] for row in page], dtype=np.int64))))
    answers = np.concatenate(parts)
    place, rest = mails.place_of(answers[:, 0]), answers[:, 1:]
    is_ours = place >= 0
    is_ours[is_ours] = mails.contact_key[place[is_ours]] == rest[is_ours, 0]
    is_click = rest[:, 2] == 1
    mails.has_arrived[place[is_ours & ~is_click]] = False
    clicked = is_ours & is_click
    return mails, place[clicked], rest[clicked, 1]


def send_numbers(refs: list[str | None]) -> Ints:
    """The numbers of sends that events name, -1 for what is no number of ours."""
    return np.array(
        [int(ref) if ref and len(ref) < 19 and ref.isascii() and ref.isdigit() else -1 for ref in refs],
        dtype=np.int64,
    )


def places(known: Ints, wanted: Ints, place: Ints) -> Ints:
    """For each of ``wanted`` the value of ``place`` where it stands in ``known`` (sorted), else -1."""
    if not len(known):
        return np.full(len(wanted), -1, dtype=np.int64)
    found = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return np.where(known[found] == wanted, place[found], -1)


def pages(session: Session, query: Select[*tuple[Any, ...]]) -> Iterator[list[Any]]:
    """The query's rows, some ten thousand at a time; a server's cursor holds the rest."""
    result = session.connection().execute(query, execution_options={"stream_results": True})
    for page in result.partitions(PAGE):
        yield list(page)


def integers(session: Session, query: Select[*tuple[Any, ...]], n_columns: int) -> Ints:
    """A query's rows, all of whose columns are whole numbers, shape (n_rows, n_columns)."""
    parts = [
        np.fromiter(chain.from_iterable(page), dtype=np.int64, count=len(page) * n_columns)
        for page in pages(session, query)
    ]
    return np.concatenate(parts).reshape(-1, n_columns) if parts else np.empty((0, n_columns), dtype=np.int64)


def _tells_money(properties: str | None) -> bool:
    if not properties:
        return False
    told = json.loads(properties)
    return any(told.get(name) not in (None, "") for name in TELLING)


def _last_before(key: Ints, at: Ints, wanted_key: Ints, wanted_at: Ints) -> Ints:
    """Place of the last of (key, at) (sorted) at or before each wanted instant of the same key, else -1."""
    n = len(key)
    keys, times = np.r_[key, wanted_key], np.r_[at, wanted_at]
    is_wanted = np.r_[np.zeros(n, dtype=bool), np.ones(len(wanted_key), dtype=bool)]
    order = np.lexsort((is_wanted, times, keys))
    place = np.where(order < n, order, -1)
    # ``key, at`` are sorted, so places rise along the order and the running maximum is the last one.
    last = np.maximum.accumulate(place) if len(place) else place
    result = np.empty(len(wanted_key), dtype=np.int64)
    wanted = order >= n
    result[order[wanted] - n] = last[wanted]
    is_other = result >= 0
    is_other[is_other] = key[result[is_other]] != wanted_key[is_other]
    result[is_other] = -1
    return result


def _latest_standing(orders: OrderLines, stands: Mask, contact_key: Ints, at: Ints) -> Ints:
    """Place of each contact's latest order at or before ``at``, of at most 30 days before, else -1."""
    standing = np.flatnonzero(stands)
    last = _last_before(orders.contact_key[standing], orders.occurred_at[standing], contact_key, at)
    found = last >= 0
    found[found] = at[found] - orders.occurred_at[standing[last[found]]] <= CREDIT_NOTE_DAYS * DAY_MICROS
    result = np.full(len(at), -1, dtype=np.int64)
    result[found] = standing[last[found]]
    return result
