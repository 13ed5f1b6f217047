"""Laws of labels: orders netted by cancellations, closed at the horizon, never changed by what came later."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.events import DAY_MICROS
from features.labels import (
    CHURN,
    CONVERSION,
    churn_horizon_days,
    label,
    order_days_within,
    usual_gaps_days,
)
from features.vocabulary import ORDER_CANCELLED, ORDER_COMPLETED, PAGE
from tests.features.logs import ORIGIN, Event, columns_of, order


def cancel(day: float, value: int, ref: int = 0, known_on: float | None = None, key: int = 1) -> Event:
    at = ORIGIN + int(day * DAY_MICROS)
    known = at if known_on is None else ORIGIN + int(known_on * DAY_MICROS)
    return Event(key, at, known, ORDER_CANCELLED, value, 0, -1, False, ref)


def order_days(events: list[Event], day: float, horizon_days: int = 10, key: int = 1) -> int:
    at = ORIGIN + int(day * DAY_MICROS)
    return int(order_days_within(columns_of(events), [key], [at], horizon_days)[0])


def test_a_label_counts_the_days_with_an_order_in_its_horizon():
    """The instant itself is inside, the horizon's end is outside, two orders of one day are one."""
    events = [order(4.9), order(5.0), order(7.2), order(7.9), order(15.0)]

    assert order_days(events, 5.0) == 2
    assert order_days(events, 5.0 + 1e-6) == 2
    assert order_days(events, 16.0) == 0
    assert order_days(events, 5.0, key=2) == 0


@pytest.mark.parametrize(
    ("cancellation", "left"),
    [
        (cancel(6.0, 1000, ref=9), 0),
        (cancel(6.0, 0, ref=9), 0),  # no value: the whole order
        (cancel(6.0, 999, ref=9), 1),  # a part
        (cancel(6.0, 1000, ref=8), 0),  # a credit note that covers the latest order
        (cancel(6.0, 999, ref=8), 1),  # a credit note for a part of it
        (cancel(5.0, 1000, ref=8), 1),  # before the order
        (cancel(6.0, 1000, ref=9, known_on=15.5), 0),  # known when the label closes
        (cancel(6.0, 1000, ref=9, known_on=15.51), 1),  # known only after it closed
        (cancel(6.0, 1000, ref=9, key=2), 1),  # another contact's
    ],
)
def test_an_order_wholly_cancelled_is_no_order(cancellation: Event, left: int):
    """By its own reference, or by a credit note that covers it; as known at the horizon's end."""
    assert order_days([order(5.6, ref=9), cancellation], 5.5) == left


def test_partial_cancellations_add_up():
    """Two halves make a whole."""
    assert order_days([order(5.6, ref=9), cancel(6.0, 500, ref=9), cancel(7.0, 500, ref=9)], 5.5) == 0


def test_a_credit_note_cancels_the_latest_order_that_stands():
    """One order each; the first, of 31 days before, is beyond reach."""
    events = [order(0.5, 100), order(30.0, 300), order(31.0, 200)]

    assert order_days([*events, cancel(31.5, 250)], 0, 60) == 2  # takes the latest, of 200
    assert order_days([*events, cancel(31.5, 250), cancel(31.6, 300)], 0, 60) == 1  # then the one before
    assert order_days([*events, cancel(31.5, 250), cancel(31.6, 300), cancel(31.7, 999)], 0, 60) == 1
    assert order_days([*events, cancel(31.5, 199)], 0, 60) == 3


def naive_order_days(events: list[Event], key: int, start: int, end: int) -> int:
    """What is known at the end, the cancellations taken one by one as they became known."""
    mine = [(place, event) for place, event in enumerate(events) if event.contact_key == key]
    known_from = {place: max(event.occurred_at + 1, event.received_at) for place, event in mine}
    mine = sorted(((p, e) for p, e in mine if known_from[p] <= end), key=lambda pe: (pe[1].occurred_at, pe[0]))
    orders = [(place, event) for place, event in mine if event.kind == ORDER_COMPLETED]
    left = {place: event.value_minor for place, event in orders}
    cancelled: set[int] = set()
    for place, event in sorted(mine, key=lambda pe: (known_from[pe[0]], pe[0])):
        if event.kind != ORDER_CANCELLED:
            continue
        # An order that its cancellation names may be told after it; then it is cancelled as soon as it is known.
        named = [p for p, o in orders if event.ref != 0 and o.ref == event.ref]
        for p in named:
            left[p] = left[p] - abs(event.value_minor) if event.value_minor else 0
            if left[p] <= 0:
                cancelled.add(p)
        if named:
            continue
        standing = [
            (p, o)
            for p, o in orders
            if p not in cancelled and o.occurred_at <= event.occurred_at and known_from[p] <= known_from[place]
        ]
        if standing:
            p, latest = standing[-1]
            near = event.occurred_at - latest.occurred_at <= 30 * DAY_MICROS
            if near and 0 < left[p] <= abs(event.value_minor):
                cancelled.add(p)
    return len({o.occurred_at // DAY_MICROS for p, o in orders if p not in cancelled and start <= o.occurred_at < end})


halves = st.integers(0, 120)
shop_logs = st.lists(
    st.builds(
        lambda key, half, delay, kind, value, ref: Event(
            key,
            ORIGIN + half * DAY_MICROS // 2,
            ORIGIN + half * DAY_MICROS // 2 + delay * DAY_MICROS,
            kind,
            value,
            0,
            -1,
            False,
            0 if kind == ORDER_COMPLETED and ref == 3 else ref,
        ),
        st.integers(1, 2),
        halves,
        st.sampled_from((0, 0, 0, 3, 20)),
        st.sampled_from((ORDER_COMPLETED, ORDER_COMPLETED, ORDER_CANCELLED, PAGE)),
        st.sampled_from((0, 50, 100, 100, 200)),
        st.integers(0, 3),
    ),
    max_size=25,
)


@given(
    events=shop_logs,
    asked=st.lists(st.tuples(st.integers(0, 3), halves, st.integers(1, 40)), min_size=1, max_size=8),
)
@settings(deadline=None, max_examples=150)
def test_labels_equal_a_naive_recomputation_from_what_was_known(events: list[Event], asked: list[tuple[int, int, int]]):
    """Over random shops with late orders and cancellations; nothing that came after the close enters."""
    # A named order that becomes known after its cancellation is the one case in which order of arrival matters to
    # which order a later credit note takes; shops tell orders first, so the comparison keeps to those.
    told = {(e.contact_key, e.ref): max(e.occurred_at + 1, e.received_at) for e in events if e.kind == ORDER_COMPLETED}
    events = [
        event
        for event in events
        if event.kind != ORDER_CANCELLED
        or event.ref == 0
        or told.get((event.contact_key, event.ref), 0) <= max(event.occurred_at + 1, event.received_at)
    ]
    for key, half, horizon in asked:
        start = ORIGIN + half * DAY_MICROS // 2
        end = start + horizon * DAY_MICROS

        swept = order_days_within(columns_of(events), [key], [start], horizon)[0]

        assert swept == naive_order_days(events, key, start, end)


@given(events=shop_logs)
@settings(deadline=None, max_examples=60)
def test_many_labels_at_once_are_each_ones_own(events: list[Event]):
    """Any order of contacts and instants, repeats and strangers among them."""
    keys = np.array([2, 1, 1, 9, 2, 1] * 4)
    as_of = ORIGIN + np.arange(24) * 3 * DAY_MICROS
    columns = columns_of(events)

    together = order_days_within(columns, keys, as_of, 14)

    assert together.tolist() == [
        int(order_days_within(columns, [key], [at], 14)[0]) for key, at in zip(keys, as_of, strict=True)
    ]


def test_conversion_is_an_order_within_30_days_and_churn_is_none():
    """The same log, the two opposite questions."""
    columns = columns_of([order(1.0, key=1), order(90.0, key=1), order(60.0, key=2)])
    early = [ORIGIN + 80 * DAY_MICROS] * 3

    assert label(CONVERSION, columns, [1, 2, 3], early).tolist() == [1, 0, 0]
    assert label(CHURN, columns, [1, 2, 3], early, 30).tolist() == [0, 1, 1]


def test_the_churn_horizon_is_three_usual_gaps_within_bounds():
    """Gaps of 10 (contact 1, mean of 5 and 15) and 40 days: median 25, horizon 75."""
    columns = columns_of(
        [order(0), order(5), order(20), order(0, key=2), order(40, key=2), order(3, key=3), order(3.5, key=3)]
    )
    now = ORIGIN + 50 * DAY_MICROS

    assert usual_gaps_days(columns, now).tolist() == [10.0, 40.0]
    assert churn_horizon_days(usual_gaps_days(columns, now)) == 75
    assert churn_horizon_days([1.0]) == 30
    assert churn_horizon_days([300.0]) == 365


def test_a_horizon_that_must_come_from_the_data_is_asked_for():
    """Churn without a number of days names what is missing."""
    with pytest.raises(ValueError, match="pass horizon_days"):
        label(CHURN, columns_of([]), [1], [ORIGIN])
    with pytest.raises(ValueError, match="at least 1 day"):
        order_days_within(columns_of([]), [1], [ORIGIN], 0)
