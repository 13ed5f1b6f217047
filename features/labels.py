"""Declared outcomes: what happened after an instant, within which horizon. Who is asked about is the model's to say.

A label at ``as_of`` with horizon H looks at ``[as_of, as_of + H)`` and closes at ``as_of + H``: what was not known by
then (``received_at``) does not count, so a label computed once stays what it was.

Orders are netted: an order wholly cancelled, as known when the label closes, is no order. A cancellation

* whose ``ref`` is that of an order of the same contact takes its value off that order (no value: all of it), also when
  it arrives before the order does; the order is wholly cancelled once nothing is left;
* with a ``ref`` of its own (a credit note) cancels the contact's latest earlier order of at most 30 days before that
  still stands, if its value covers that order's value; otherwise it is a partial return and changes no label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from features.events import DAY_MICROS, EventColumns
from features.vocabulary import ORDER_CANCELLED, ORDER_COMPLETED

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
    event: str
    #: None: from the data, see `churn_horizon_days`.
    horizon_days: int | None
    #: Whether at least one day with the event is the positive answer, or none.
    positive: Literal["some", "none"]


CONVERSION = Outcome("conversion", ORDER_COMPLETED, 30, "some")
CHURN = Outcome("churn", ORDER_COMPLETED, None, "none")


def label(
    outcome: Outcome,
    columns: EventColumns,
    keys: npt.ArrayLike,
    as_of: npt.ArrayLike,
    horizon_days: int | None = None,
) -> npt.NDArray[np.int8]:
    """1 where the outcome came true within the horizon, else 0; shape as ``keys``."""
    happened = order_days_within(columns, keys, as_of, _horizon(outcome, horizon_days)) > 0
    return (happened if outcome.positive == "some" else ~happened).astype(np.int8)


def order_days_within(
    columns: EventColumns, keys: npt.ArrayLike, as_of: npt.ArrayLike, horizon_days: int
) -> npt.NDArray[np.int64]:
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
    if horizon_days < 1:
        raise ValueError(f"a horizon of {horizon_days} days has no outcome; name at least 1 day")
    start = np.asarray(as_of, dtype=np.int64)
    return _order_days(columns, keys, start, start + horizon_days * DAY_MICROS)


def usual_gaps_days(columns: EventColumns, as_of: int) -> npt.NDArray[np.float64]:
    """Mean days between successive order days of each contact with at least two, as known at ``as_of``.

    Returns
    -------
    ndarray of float64, shape (n_repeat_buyers,)
        Whole days between first and last order day, over the number of gaps.
    """
    orders, cancelled_from = _orders(columns)
    stands = (_known_from(orders) <= as_of) & (cancelled_from > as_of)
    key, day = orders.contact_key[stands], orders.occurred_at[stands] // DAY_MICROS
    if not len(key):
        return np.empty(0)
    fresh = np.r_[True, (key[1:] != key[:-1]) | (day[1:] != day[:-1])]
    key, day = key[fresh], day[fresh]
    edges = np.flatnonzero(np.r_[True, key[1:] != key[:-1], True])
    first, last = edges[:-1], edges[1:] - 1
    repeat = last > first
    return np.asarray((day[last] - day[first])[repeat] / (last - first)[repeat], dtype=np.float64)


def churn_horizon_days(gaps: npt.ArrayLike) -> int:
    """Days without an order after which a customer is called lost: three usual gaps, within 30 and 365.

    Parameters
    ----------
    gaps : array_like of float, shape (n_repeat_buyers,)
        `usual_gaps_days` of every bucket, put together.

    Examples
    --------
    >>> churn_horizon_days([20.0, 31.0, 45.0]), churn_horizon_days([2.0]), churn_horizon_days([])
    (93, 30, 365)
    """
    low, high = CHURN_HORIZON_BOUNDS
    values = np.asarray(gaps, dtype=np.float64)
    if not len(values):
        return high
    return int(np.clip(round(CHURN_GAPS * float(np.median(values))), low, high))


def _horizon(outcome: Outcome, horizon_days: int | None) -> int:
    days = horizon_days if horizon_days is not None else outcome.horizon_days
    if days is None:
        raise ValueError(f"outcome {outcome.name!r} takes its horizon from the data; pass horizon_days")
    return days


def _known_from(columns: EventColumns) -> npt.NDArray[np.int64]:
    """First instant at which each event counts: after it occurred, and received."""
    return np.maximum(columns.occurred_at + 1, columns.received_at)


def _order_days(
    columns: EventColumns, keys: npt.ArrayLike, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Distinct UTC days in ``[start, end)`` with a standing order, as known at ``end``."""
    contacts = np.asarray(keys, dtype=np.int64)
    if contacts.shape != start.shape:
        raise ValueError(f"keys {contacts.shape} and as_of {start.shape} must be of one length")
    orders, cancelled_from = _orders(columns)
    known_from = _known_from(orders)
    begin = np.searchsorted(orders.contact_key, contacts, side="left")
    stop = np.searchsorted(orders.contact_key, contacts, side="right")
    low = _bisect(orders.occurred_at, begin, stop, start)
    high = _bisect(orders.occurred_at, begin, stop, end)
    n_pairs = high - low
    row = np.repeat(np.arange(len(contacts)), n_pairs)
    order = np.arange(len(row)) - np.repeat(np.cumsum(n_pairs) - n_pairs, n_pairs) + np.repeat(low, n_pairs)
    stands = (known_from[order] <= end[row]) & (cancelled_from[order] > end[row])
    row, day = row[stands], orders.occurred_at[order[stands]] // DAY_MICROS
    fresh = np.ones(len(row), dtype=bool)
    fresh[1:] = (row[1:] != row[:-1]) | (day[1:] != day[:-1])
    return np.bincount(row[fresh], minlength=len(contacts)).astype(np.int64)


def _bisect(
    times: npt.NDArray[np.int64],
    begin: npt.NDArray[np.int64],
    stop: npt.NDArray[np.int64],
    instants: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
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


def _orders(columns: EventColumns) -> tuple[EventColumns, npt.NDArray[np.int64]]:
    """The orders, and the instant from which each is known to be wholly cancelled (int64's maximum: never).

    Cancellations are taken in the order in which they became known, so what is known at an instant never depends on
    what came later.
    """
    orders = columns.take(np.flatnonzero(columns.of_kind(ORDER_COMPLETED)))
    cancelled_from = np.full(len(orders), _NEVER, dtype=np.int64)
    cancellations = columns.take(np.flatnonzero(columns.of_kind(ORDER_CANCELLED)))
    if not len(cancellations) or not len(orders):
        return orders, cancelled_from
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
                if left[o] <= 0 and cancelled_from[o] == _NEVER:
                    cancelled_from[o] = max(known, int(order_known[o]))
            continue
        at = int(cancellations.occurred_at[c])
        for o in reversed(mine):
            too_late = orders.occurred_at[o] > at or order_known[o] > known
            if too_late or cancelled_from[o] != _NEVER:
                continue
            if at - orders.occurred_at[o] <= CREDIT_NOTE_DAYS * DAY_MICROS and 0 < left[o] <= value:
                cancelled_from[o] = known
            break
    return orders, cancelled_from
