"""Declared outcomes: what happened after an instant, within which horizon. Who is asked about is the model's to say.

A label at ``as_of`` with horizon H looks at ``[as_of, as_of + H)`` and closes at ``as_of + H``: what was not known by
then (``received_at``) does not count, so a label computed once stays what it was. Opens and clicks count when a person
made them, the first of a mail.

Orders are netted: an order wholly cancelled, as known when the label closes, is no order. A cancellation

* whose ``ref`` is that of an order of the same contact takes its value off that order (no value: all of it), also when
  it arrives before the order does; the order is wholly cancelled once nothing is left;
* with a ``ref`` of its own (a credit note) cancels the contact's latest earlier order of at most 30 days before that
  still stands, if its value covers that order's value; otherwise it is a partial return, which takes its value off that
  order and changes no label.

Some outcomes can be seen only of contacts that got mail: who got fewer than ``least_deliveries`` in the window is
censored, which `observed` tells; `training.censoring` has the weights that make up for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from features.events import DAY_MICROS, EventColumns
from features.properties import hash_ref, value_text
from features.views import Where
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_OPENED,
    EMAIL_SENT,
    HUMAN_PPM,
    IDENTIFY,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
)

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

#: A cancellation that names no order looks for one at most this long before it.
CREDIT_NOTE_DAYS = 30

#: Bounds of the churn horizon in days, and the multiple of the usual gap between them.
CHURN_HORIZON_BOUNDS = (30, 365)
CHURN_GAPS = 3.0

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Outcome:
    """A yes-or-no question about a contact's next days.

    Examples
    --------
    >>> CONVERSION.positive, CONVERSION.horizon_days
    ('some', 30)
    """

    name: str
    #: Event names, of the vocabulary or your own; any of them will do.
    events: tuple[str, ...]
    #: None: from the data, see `churn_horizon_days`.
    horizon_days: int | None
    #: Whether at least one such event is the positive answer, or none.
    positive: Literal["some", "none"]
    #: Conditions on the events' properties, all of which must hold.
    where: tuple[Where, ...] = ()
    #: Mails that must arrive within the horizon for the outcome to be seen at all.
    least_deliveries: int = 0

    @property
    def needs_properties(self) -> bool:
        """Whether it looks at properties of other events than Identify, which readers leave out otherwise."""
        return bool(self.where) and self.events != (IDENTIFY,)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Outcome:
        """The outcome that ``dataclasses.asdict`` turned into ``content``, perhaps by way of JSON."""
        fields = dict(content)
        if "event" in fields:  # as training sets of before outcomes were declared name it
            fields["events"] = (fields.pop("event"),)
        where = tuple(Where(**{**one, "values": tuple(one["values"])}) for one in fields.pop("where", ()))
        return cls(**{**fields, "events": tuple(fields["events"]), "where": where})


CONVERSION = Outcome("conversion", (ORDER_COMPLETED,), 30, "some")
CHURN = Outcome("churn", (ORDER_COMPLETED,), None, "none")
EMAIL_CHURN = Outcome("email_churn", (EMAIL_CLICKED, EMAIL_OPENED), 60, "none", least_deliveries=5)


@dataclass(frozen=True)
class OrdersWithin:
    """What was bought in a window, shape (n,)."""

    #: Distinct UTC days with an order that stands.
    days: Ints
    #: Money of those orders in minor units, less what was taken back of them.
    value_minor: Ints


def label(
    outcome: Outcome,
    columns: EventColumns,
    keys: npt.ArrayLike,
    as_of: npt.ArrayLike,
    horizon_days: int | None = None,
) -> npt.NDArray[np.int8]:
    """1 where the outcome came true within the horizon, else 0; shape as ``keys``.

    Parameters
    ----------
    outcome : Outcome
    columns : EventColumns
        Sorted events of these contacts, and perhaps of others; with properties if the outcome needs them.
    keys, as_of : array_like of int64, shape (n,)
        Contacts and instants (microseconds since 1970 UTC), in any order.
    horizon_days : int, optional
        Instead of the outcome's own.
    """
    contacts, start, end = _window(keys, as_of, _horizon(outcome, horizon_days))
    happened = np.zeros(len(contacts), dtype=bool)
    if ORDER_COMPLETED in outcome.events:
        told = _orders(columns)
        row, order = _standing(told.orders, told.cancelled_from, contacts, start, end)
        happened[row[_meets(told.orders, outcome.where)[order]]] = True
    others = tuple(name for name in outcome.events if name != ORDER_COMPLETED)
    if others:
        events = columns.take(np.flatnonzero(columns.of_kind(*others) & ~_by_machine(columns)))
        events = events.take(np.flatnonzero(_meets(events, outcome.where)))
        row, _ = _standing(events, np.full(len(events), _NEVER, dtype=np.int64), contacts, start, end)
        happened[row] = True
    return (happened if outcome.positive == "some" else ~happened).astype(np.int8)


def observed(
    outcome: Outcome,
    columns: EventColumns,
    keys: npt.ArrayLike,
    as_of: npt.ArrayLike,
    horizon_days: int | None = None,
) -> Mask:
    """Whether the outcome could be seen: enough mails arrived within the horizon; shape as ``keys``.

    It depends on the mails alone, not on what came of them: else those who answer would be seen more often.
    """
    horizon = _horizon(outcome, horizon_days)
    if outcome.least_deliveries == 0:
        return np.ones(len(np.asarray(keys)), dtype=bool)
    return deliveries_within(columns, keys, as_of, horizon) >= outcome.least_deliveries


def deliveries_within(columns: EventColumns, keys: npt.ArrayLike, as_of: npt.ArrayLike, horizon_days: int) -> Ints:
    """Number of mails sent in ``[as_of, as_of + horizon)`` that did not come back, as known at its end; shape (n,)."""
    contacts, start, end = _window(keys, as_of, horizon_days)
    sends = columns.take(np.flatnonzero(columns.of_kind(EMAIL_SENT)))
    bounces = columns.take(np.flatnonzero(columns.of_kind(EMAIL_BOUNCED) & (columns.ref != 0)))
    returned = np.full(len(sends), _NEVER, dtype=np.int64)
    came_back = np.flatnonzero(np.isin(sends.ref, bounces.ref))
    if len(came_back):
        mails = np.r_[sends.contact_key[came_back], bounces.contact_key], np.r_[sends.ref[came_back], bounces.ref]
        mail = np.unique(np.stack(mails), axis=1, return_inverse=True)[1].ravel()
        known = np.full(mail.max() + 1, _NEVER, dtype=np.int64)
        np.minimum.at(known, mail[len(came_back) :], _known_from(bounces))
        returned[came_back] = known[mail[: len(came_back)]]
    row, _ = _standing(sends, returned, contacts, start, end)
    return np.bincount(row, minlength=len(contacts)).astype(np.int64)


def order_days_within(columns: EventColumns, keys: npt.ArrayLike, as_of: npt.ArrayLike, horizon_days: int) -> Ints:
    """Number of distinct UTC days in ``[as_of, as_of + horizon)`` with an order not wholly cancelled by its end.

    Parameters
    ----------
    columns : EventColumns
        Sorted events of these contacts, and perhaps of others.
    keys, as_of : array_like of int64, shape (n,)
        Contacts and instants (microseconds since 1970 UTC), in any order.
    horizon_days : int

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    return orders_within(columns, keys, as_of, horizon_days).days


def orders_within(columns: EventColumns, keys: npt.ArrayLike, as_of: npt.ArrayLike, horizon_days: int) -> OrdersWithin:
    """Order days in ``[as_of, as_of + horizon)`` and the orders' money, both net as known at its end.

    Parameters
    ----------
    columns : EventColumns
        Sorted events of these contacts, and perhaps of others.
    keys, as_of : array_like of int64, shape (n,)
        Contacts and instants (microseconds since 1970 UTC), in any order.
    horizon_days : int
    """
    contacts, start, end = _window(keys, as_of, horizon_days)
    told = _orders(columns)
    row, order = _standing(told.orders, told.cancelled_from, contacts, start, end)
    day = told.orders.occurred_at[order] // DAY_MICROS
    fresh = np.ones(len(row), dtype=bool)
    fresh[1:] = (row[1:] != row[:-1]) | (day[1:] != day[:-1])
    value = np.zeros(len(contacts), dtype=np.int64)
    np.add.at(value, row, np.maximum(told.orders.value_minor[order] - told.taken_off(order, end[row]), 0))
    return OrdersWithin(np.bincount(row[fresh], minlength=len(contacts)).astype(np.int64), value)


def known_since(columns: EventColumns, keys: npt.ArrayLike) -> Ints:
    """First instant at which anything was known of each contact, int64's maximum if nothing ever is; shape (n,)."""
    contacts = np.asarray(keys, dtype=np.int64)
    since = np.full(len(contacts), _NEVER, dtype=np.int64)
    if len(columns):
        edges = np.flatnonzero(np.r_[True, columns.contact_key[1:] != columns.contact_key[:-1]])
        first = np.minimum.reduceat(_known_from(columns), edges)
        place = np.minimum(np.searchsorted(columns.contact_key[edges], contacts), len(edges) - 1)
        found = columns.contact_key[edges][place] == contacts
        since[found] = first[place[found]]
    return since


@dataclass(frozen=True)
class Gaps:
    """Days between successive order days of buyers who came back, the gap that still runs among them; shape (n,)."""

    days: npt.NDArray[np.float64]
    #: The gap still runs: it will be at least this long.
    is_open: Mask
    #: One over the number of the contact's gaps, so that each contact weighs 1.
    weight: npt.NDArray[np.float64]

    @classmethod
    def concat(cls, parts: Sequence[Gaps]) -> Gaps:
        """The gaps of all ``parts``, which are of different contacts."""
        if not parts:
            return cls(np.empty(0), np.empty(0, dtype=bool), np.empty(0))
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("days", "is_open", "weight")))


def order_gaps(columns: EventColumns, as_of: int) -> Gaps:
    """Whole days between the order days of each contact with at least two, and since its last, as of ``as_of``."""
    told = _orders(columns)
    stands = (_known_from(told.orders) <= as_of) & (told.cancelled_from > as_of)
    key, day = told.orders.contact_key[stands], told.orders.occurred_at[stands] // DAY_MICROS
    if not len(key):
        return Gaps.concat([])
    fresh = np.r_[True, (key[1:] != key[:-1]) | (day[1:] != day[:-1])]
    key, day = key[fresh], day[fresh]
    is_open = np.r_[key[1:] != key[:-1], True]
    until = np.where(is_open, as_of // DAY_MICROS, np.r_[day[1:], 0])
    _, mine, count = np.unique(key, return_inverse=True, return_counts=True)
    repeat = count[mine] > 1
    return Gaps((until - day)[repeat].astype(np.float64), is_open[repeat], 1.0 / count[mine][repeat])


def usual_gap_days(gaps: Gaps) -> float:
    """Median days until a buyer who came back comes again; infinite where fewer than half of the gaps have an end.

    The product-limit estimate: a gap that still runs counts as long as it has run, instead of being left out (the
    usual gap of a young log would be too short) or taken for closed. Each contact weighs 1.

    Examples
    --------
    Of gaps of 10 and 30 days and one that runs since 20: a third ends at 10, the rest (1 of 1 at risk) at 30.

    >>> usual_gap_days(Gaps(np.array([10.0, 30.0, 20.0]), np.array([False, False, True]), np.ones(3)))
    30.0

    References
    ----------
    Kaplan & Meier (1958), "Nonparametric Estimation from Incomplete Observations", JASA 53.
    """
    ends, place = np.unique(gaps.days, return_inverse=True)
    closed = np.bincount(place, weights=np.where(gaps.is_open, 0.0, gaps.weight), minlength=len(ends))
    at_risk = np.bincount(place, weights=gaps.weight, minlength=len(ends))[::-1].cumsum()[::-1]
    survival = np.cumprod(1.0 - closed / at_risk)
    half = np.flatnonzero(survival <= 0.5 + 1e-12)
    return float(ends[half[0]]) if len(half) else float("inf")


def churn_horizon_days(gaps: Gaps) -> int:
    """Days without an order after which a customer is called lost: three usual gaps, within 30 and 365.

    Parameters
    ----------
    gaps : Gaps
        `order_gaps` of every bucket, put together.

    Examples
    --------
    >>> churn_horizon_days(Gaps(np.array([20.0, 31.0, 45.0]), np.zeros(3, dtype=bool), np.ones(3)))
    93
    >>> churn_horizon_days(Gaps.concat([]))
    365
    """
    low, high = CHURN_HORIZON_BOUNDS
    return round(min(max(CHURN_GAPS * usual_gap_days(gaps), low), high))


def _horizon(outcome: Outcome, horizon_days: int | None) -> int:
    days = horizon_days if horizon_days is not None else outcome.horizon_days
    if days is None:
        raise ValueError(f"outcome {outcome.name!r} takes its horizon from the data; pass horizon_days")
    return days


def _window(keys: npt.ArrayLike, as_of: npt.ArrayLike, horizon_days: int) -> tuple[Ints, Ints, Ints]:
    """Contacts, and where the window of each begins and ends."""
    if horizon_days < 1:
        raise ValueError(f"a horizon of {horizon_days} days has no outcome; name at least 1 day")
    contacts, start = np.asarray(keys, dtype=np.int64), np.asarray(as_of, dtype=np.int64)
    if contacts.shape != start.shape:
        raise ValueError(f"keys {contacts.shape} and as_of {start.shape} must be of one length")
    return contacts, start, start + horizon_days * DAY_MICROS


def _known_from(columns: EventColumns) -> Ints:
    """First instant at which each event counts: after it occurred, and received."""
    return np.maximum(columns.occurred_at + 1, columns.received_at)


def _by_machine(columns: EventColumns) -> Mask:
    """Opens and clicks that no person made, or that are not the first of their mail."""
    return columns.of_kind(EMAIL_OPENED, EMAIL_CLICKED) & ((columns.human_ppm < HUMAN_PPM) | columns.is_repeat)


def _meets(columns: EventColumns, where: tuple[Where, ...]) -> Mask:
    """Events whose properties meet every condition; of several values of one property, one is enough."""
    meets = np.ones(len(columns), dtype=bool)
    if not where or not len(columns):
        return meets
    properties = columns.properties
    if properties is None or not (properties.is_complete or columns.of_kind(IDENTIFY).all()):
        raise ValueError(
            f"the events were read without properties, and the outcome asks for {where[0].name!r}; "
            "read them with_properties"
        )
    event = np.repeat(np.arange(len(columns)), np.diff(properties.start))
    for one in where:
        hits = properties.name == hash_ref(one.name)
        if one.values:
            hits &= np.isin(properties.value, [hash_ref(value_text(value)) for value in one.values])
        else:
            hits &= properties.number >= (-np.inf if one.at_least is None else one.at_least)
            hits &= properties.number <= (np.inf if one.at_most is None else one.at_most)
        meets &= np.bincount(event[hits], minlength=len(columns)) > 0
    return meets


def _standing(events: EventColumns, undone_from: Ints, contacts: Ints, start: Ints, end: Ints) -> tuple[Ints, Ints]:
    """Pairs of a row and an event of its contact in ``[start, end)`` that is known at ``end`` and not undone by then.

    By row, and in time order within a row.
    """
    known_from = _known_from(events)
    begin = np.searchsorted(events.contact_key, contacts, side="left")
    stop = np.searchsorted(events.contact_key, contacts, side="right")
    low = _bisect(events.occurred_at, begin, stop, start)
    high = _bisect(events.occurred_at, begin, stop, end)
    n_pairs = high - low
    row = np.repeat(np.arange(len(contacts)), n_pairs)
    event = np.arange(len(row)) - np.repeat(np.cumsum(n_pairs) - n_pairs, n_pairs) + np.repeat(low, n_pairs)
    stands = (known_from[event] <= end[row]) & (undone_from[event] > end[row])
    return row[stands], event[stands]


def _bisect(times: Ints, begin: Ints, stop: Ints, instants: Ints) -> Ints:
    """For each row the first position in ``[begin, stop)`` whose time is at or after the row's instant."""
    low, high = begin.copy(), stop.copy()
    open_ = np.flatnonzero(low < high)
    while len(open_):
        middle = (low[open_] + high[open_]) // 2
        before = times[middle] < instants[open_]
        low[open_] = np.where(before, middle + 1, low[open_])
        high[open_] = np.where(before, high[open_], middle)
        open_ = open_[low[open_] < high[open_]]
    return low


@dataclass(frozen=True)
class _Orders:
    """Orders with what was taken back of them, by when that was known."""

    orders: EventColumns
    #: Instant from which each order is known to be wholly cancelled (int64's maximum: never).
    cancelled_from: Ints
    #: Partial cancellations: position of the order, instant of knowing, minor units; by order and instant.
    cut_order: Ints
    cut_from: Ints
    cut_minor: Ints

    def taken_off(self, order: Ints, at: Ints) -> Ints:
        """Minor units known at each instant of ``at`` to be taken off each order of ``order``."""
        total = np.r_[0, np.cumsum(self.cut_minor)]
        begin = np.searchsorted(self.cut_order, order, side="left")
        stop = np.searchsorted(self.cut_order, order, side="right")
        return np.asarray(total[_bisect(self.cut_from, begin, stop, at + 1)] - total[begin], dtype=np.int64)


def _orders(columns: EventColumns) -> _Orders:
    """The orders and their cancellations.

    Cancellations are taken in the order in which they became known, so what is known at an instant never depends on
    what came later.
    """
    orders = columns.take(np.flatnonzero(columns.of_kind(ORDER_COMPLETED)))
    cancelled_from = np.full(len(orders), _NEVER, dtype=np.int64)
    cancellations = columns.take(np.flatnonzero(columns.of_kind(ORDER_CANCELLED)))
    cuts: list[tuple[int, int, int]] = []
    order_known = _known_from(orders)
    cancel_known = _known_from(cancellations)
    left = orders.value_minor.copy()
    begin = np.searchsorted(orders.contact_key, cancellations.contact_key, side="left")
    stop = np.searchsorted(orders.contact_key, cancellations.contact_key, side="right")
    for c in np.lexsort((cancellations.seq, cancel_known)).tolist():
        known = int(cancel_known[c])
        value = abs(int(cancellations.value_minor[c]))
        mine = range(int(begin[c]), int(stop[c]))
        ref = int(cancellations.ref[c])
        named = [o for o in mine if ref and orders.ref[o] == ref]
        if named:
            for o in named:
                left[o] = left[o] - value if value else 0
                cuts.append((o, max(known, int(order_known[o])), value))
                if left[o] <= 0 and cancelled_from[o] == _NEVER:
                    cancelled_from[o] = max(known, int(order_known[o]))
            continue
        at = int(cancellations.occurred_at[c])
        for o in reversed(mine):
            too_late = orders.occurred_at[o] > at or order_known[o] > known
            if too_late or cancelled_from[o] != _NEVER:
                continue
            if at - orders.occurred_at[o] <= CREDIT_NOTE_DAYS * DAY_MICROS:
                cuts.append((o, known, value))
                if 0 < left[o] <= value:
                    cancelled_from[o] = known
            break
    cut = np.array(sorted(cuts), dtype=np.int64).reshape(-1, 3)
    return _Orders(orders, cancelled_from, cut[:, 0], cut[:, 1], cut[:, 2])
