"""Laws of labels: orders netted by cancellations, closed at the horizon, never changed by what came later."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.events import DAY_MICROS
from features.labels import (
    CHURN,
    CONVERSION,
    EMAIL_CHURN,
    Gaps,
    Outcome,
    churn_horizon_days,
    deliveries_within,
    label,
    observed,
    order_days_within,
    order_gaps,
    orders_within,
    usual_gap_days,
)
from features.views import Where
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_OPENED,
    EMAIL_SENT,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    PAGE,
)
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


def gaps_of(days: list[float], is_open: bool = False) -> Gaps:
    return Gaps(np.array(days), np.full(len(days), is_open), np.ones(len(days)))


def test_the_churn_horizon_is_three_usual_gaps_within_bounds():
    """Gaps of 5, 15 and ≥ 30 days (a third each) and of 40 and ≥ 10 (a half each); one order day makes no gap.

    Of weight 2 at risk a third ends at 5 (left: 5/6), of 7/6 another at 15 (25/42), of 1/2 the rest at 40: the median.
    """
    columns = columns_of(
        [order(0), order(5), order(20), order(0, key=2), order(40, key=2), order(3, key=3), order(3.5, key=3)]
    )
    gaps = order_gaps(columns, ORIGIN + 50 * DAY_MICROS)

    assert gaps.days.tolist() == [5, 15, 30, 40, 10]
    assert gaps.is_open.tolist() == [False, False, True, False, True]
    assert gaps.weight.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1 / 2, 1 / 2])
    assert usual_gap_days(gaps) == 40.0
    assert churn_horizon_days(gaps) == 120
    assert churn_horizon_days(gaps_of([1.0])) == 30
    assert churn_horizon_days(gaps_of([300.0])) == 365
    assert churn_horizon_days(gaps_of([20.0], is_open=True)) == 365  # half of the gaps never ended


def test_open_gaps_keep_a_young_log_from_looking_hasty():
    """Everybody buys every 60 days or so. In 150 days of log mostly the short gaps have closed; the estimate knows."""
    rng = np.random.default_rng(3)
    events = []
    for key in range(1, 1001):
        day = rng.uniform(0, 60)
        while day < 150:
            events.append(order(float(day), key=key))
            day += rng.gamma(2, 30)
    gaps = order_gaps(columns_of(events), ORIGIN + 150 * DAY_MICROS)

    truth = float(np.median(rng.gamma(2, 30, 100_000)))
    closed = float(np.median(gaps.days[~gaps.is_open]))
    assert closed < 0.8 * truth
    assert abs(usual_gap_days(gaps) - truth) < abs(closed - truth) / 2


@given(
    gaps=st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=1, max_size=30),
    copies=st.integers(2, 4),
)
@settings(deadline=None)
def test_a_heavy_buyer_weighs_as_much_as_any_other(gaps: list[tuple[int, bool]], copies: int):
    """Each gap told ``copies`` times at a part of its weight changes nothing; without open gaps it is the median."""
    days, is_open = (np.array(column) for column in zip(*gaps, strict=True))
    once = Gaps(days.astype(float), is_open, np.ones(len(gaps)))
    split = Gaps(np.repeat(once.days, copies), np.repeat(is_open, copies), np.full(len(gaps) * copies, 1 / copies))

    assert usual_gap_days(split) == usual_gap_days(once)
    closed = Gaps(once.days, np.zeros(len(gaps), dtype=bool), once.weight)
    assert usual_gap_days(closed) == np.quantile(once.days, 0.5, method="inverted_cdf")
    assert usual_gap_days(once) >= usual_gap_days(closed)


def test_a_horizon_that_must_come_from_the_data_is_asked_for():
    """Churn without a number of days names what is missing."""
    with pytest.raises(ValueError, match="pass horizon_days"):
        label(CHURN, columns_of([]), [1], [ORIGIN])
    with pytest.raises(ValueError, match="at least 1 day"):
        order_days_within(columns_of([]), [1], [ORIGIN], 0)


def event(
    kind: str, day: float, ref: int = 0, *, known_on: float | None = None, human: int = -1, repeat: bool = False,
    key: int = 1, **properties: object,
) -> Event:  # fmt: skip
    at = ORIGIN + int(day * DAY_MICROS)
    known = at if known_on is None else ORIGIN + int(known_on * DAY_MICROS)
    return Event(key, at, known, kind, 0, 0, human, repeat, ref, properties or None)


def answer(outcome: Outcome, events: list[Event], day: float = 0.0) -> int:
    return int(label(outcome, columns_of(events), [1], [ORIGIN + int(day * DAY_MICROS)])[0])


def test_an_outcome_may_ask_for_any_event():
    """A name of your own, or one of several; known at the close, inside the horizon, of this contact."""
    tried = Outcome("tried", ("Sofa Tested", PAGE), 10, "some")

    assert answer(tried, [event("Sofa Tested", 3)]) == 1
    assert answer(tried, [event(PAGE, 3)]) == 1
    assert answer(tried, [event("Sofa Seen", 3), event("Sofa Tested", 10), event("Sofa Tested", 3, key=2)]) == 0
    assert answer(tried, [event("Sofa Tested", 3, known_on=10.0)]) == 1
    assert answer(tried, [event("Sofa Tested", 3, known_on=10.1)]) == 0
    assert answer(Outcome("silent", ("Sofa Tested",), 10, "none"), [event("Sofa Tested", 3)]) == 0
    assert answer(Outcome("any", ("Sofa Tested", ORDER_COMPLETED), 10, "some"), [order(2.0)]) == 1


@pytest.mark.parametrize(
    ("where", "properties", "meets"),
    [
        (Where("category", ("Shoes", "Hats")), {"category": "Hats"}, 1),
        (Where("category", ("Shoes",)), {"category": "Hats"}, 0),
        (Where("category", ("Shoes",)), {}, 0),
        (Where("products.category", ("Shoes",)), {"products": [{"category": "Hats"}, {"category": "Shoes"}]}, 1),
        (Where("price", at_least=10), {"price": "10.0"}, 1),
        (Where("price", at_least=10, at_most=20), {"price": 21}, 0),
        (Where("gift", (True,)), {"gift": "true"}, 1),
    ],
)
def test_an_outcome_may_ask_for_properties(where: Where, properties: dict[str, object], meets: int):
    """As streams of features do; one value of several is enough."""
    assert (
        answer(Outcome("shoes", ("Sofa Tested",), 10, "some", (where,)), [event("Sofa Tested", 1, **properties)])
        == meets
    )


def test_properties_filter_orders_after_they_were_netted():
    """The order for shoes is cancelled, the one for hats stands; events read without properties are refused."""
    bought = [
        order(1.0, ref=9)._replace(properties={"category": "Shoes"}),
        order(2.0, ref=8)._replace(properties={"category": "Hats"}),
    ]
    shoes, hats = (
        Outcome(name, (ORDER_COMPLETED,), 10, "some", (Where("category", (name,)),)) for name in ("Shoes", "Hats")
    )

    assert (answer(shoes, bought), answer(hats, bought)) == (1, 1)
    assert (answer(shoes, [*bought, cancel(3.0, 0, ref=9)]), answer(hats, [*bought, cancel(3.0, 0, ref=9)])) == (0, 1)
    assert shoes.needs_properties
    with pytest.raises(ValueError, match="with_properties"):
        label(shoes, replace(columns_of(bought), properties=None), [1], [ORIGIN])


def test_a_persons_first_open_or_click_of_a_mail_is_engagement():
    """A machine's is not, and the second open of one mail is none of its own."""
    assert answer(EMAIL_CHURN, []) == 1
    assert answer(EMAIL_CHURN, [event(EMAIL_OPENED, 3, 1, human=500_000)]) == 0
    assert answer(EMAIL_CHURN, [event(EMAIL_CLICKED, 3, 1, human=900_000)]) == 0
    assert answer(EMAIL_CHURN, [event(EMAIL_OPENED, 3, 1, human=499_999)]) == 1
    assert answer(EMAIL_CHURN, [event(EMAIL_OPENED, 3, 1, human=900_000, repeat=True)]) == 1


def test_who_gets_too_few_mails_is_not_seen():
    """Five mails that arrive within the horizon, whatever came of them; a bounce known only later takes none away."""
    mails = [event(EMAIL_SENT, day, ref) for ref, day in enumerate((1, 11, 21, 31, 41), 1)]
    strange = [event(EMAIL_BOUNCED, 2, 1, key=2), event(EMAIL_BOUNCED, 2, 77), event(EMAIL_BOUNCED, 2)]

    def seen(events: list[Event]) -> tuple[int, bool]:
        columns, at = columns_of(events), [ORIGIN]
        return int(deliveries_within(columns, [1], at, 60)[0]), bool(observed(EMAIL_CHURN, columns, [1], at)[0])

    assert seen([*mails, *strange]) == (5, True)
    assert seen([*mails, event(EMAIL_CLICKED, 12, 2, human=900_000)]) == (5, True)
    assert seen(mails[1:]) == (4, False)
    assert seen([*mails[1:], event(EMAIL_SENT, 60, 6)]) == (4, False)
    assert seen([*mails, event(EMAIL_BOUNCED, 12, 2)]) == (4, False)
    assert seen([*mails, event(EMAIL_BOUNCED, 12, 2, known_on=61)]) == (5, True)
    assert observed(CONVERSION, columns_of([]), [1, 2], [ORIGIN] * 2).all()


def test_the_money_of_a_window_is_net():
    """Two days, three orders; a part of one is taken back in time, of another too late, a third is cancelled."""
    events = [
        order(1.0, 100, ref=1), order(1.5, 200, ref=2), order(2.0, 400, ref=3), order(11.0, 800, ref=4),
        cancel(3.0, 30, ref=1), cancel(4.0, 20, ref=1), cancel(3.0, 50, ref=2, known_on=10.5), cancel(5.0, 0, ref=3),
    ]  # fmt: skip
    found = orders_within(columns_of(events), [1, 1, 2], [ORIGIN, ORIGIN + 11 * DAY_MICROS, ORIGIN], 10)

    assert found.days.tolist() == [1, 1, 0]
    assert found.value_minor.tolist() == [100 - 30 - 20 + 200, 800, 0]
    note = orders_within(columns_of([order(1.0, 300), cancel(2.0, 100, ref=7)]), [1], [ORIGIN], 10)
    assert (note.days.tolist(), note.value_minor.tolist()) == ([1], [200])  # a credit note for a part


@given(events=shop_logs, day=st.integers(0, 60), horizon=st.integers(1, 40))
@settings(deadline=None, max_examples=80)
def test_what_was_known_at_the_close_is_all_that_counts(events: list[Event], day: int, horizon: int):
    """Without what became known later, answer, mails and money are the same; no window holds more than was ordered."""
    at, close = ORIGIN + day * DAY_MICROS, ORIGIN + (day + horizon) * DAY_MICROS
    early = [one for one in events if max(one.occurred_at + 1, one.received_at) <= close]
    then, now = (orders_within(columns_of(told), [1, 2], [at, at], horizon) for told in (early, events))

    assert then.days.tolist() == now.days.tolist()
    assert then.value_minor.tolist() == now.value_minor.tolist()
    gross = [
        sum(
            e.value_minor
            for e in early
            if e.kind == ORDER_COMPLETED and e.contact_key == key and at <= e.occurred_at < close
        )
        for key in (1, 2)
    ]
    assert all(0 <= net <= most for net, most in zip(now.value_minor.tolist(), gross, strict=True))


def test_an_outcome_survives_json():
    """As manifests keep it; one of before outcomes were declared is read too."""
    outcome = Outcome(
        "shoes", ("Sofa Tested",), 10, "some", (Where("category", ("Shoes", 3)), Where("price", at_least=1))
    )

    assert Outcome.from_dict(json.loads(json.dumps(asdict(outcome)))) == outcome
    old = {"name": "conversion", "event": ORDER_COMPLETED, "horizon_days": 30, "positive": "some"}
    assert Outcome.from_dict(old) == CONVERSION
