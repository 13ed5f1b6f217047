"""Laws of the sweep: equal to a naive recomputation, blind to the future, the same bits however it is asked."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.events import COLUMN_TYPES, DAY_MICROS, HOUR_MICROS
from features.kernel import sweep
from features.views import (
    ACTIVE,
    ANSWERS,
    CLICKS,
    DEFAULT_VIEWS,
    OPENS,
    ORDERS,
    PAGES,
    SEND_HOUR_VIEWS,
    SENDS,
    FeatureView,
    Stream,
    ViewSet,
)
from features.vocabulary import (
    EMAIL_CLICKED,
    EMAIL_OPENED,
    EMAIL_SENT,
    HUMAN_PPM,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    PAGE,
)
from tests.features.logs import ORIGIN, Event, columns_of, order

# --- The naive recomputation: the definitions, read aloud --------------------------------------------------------


def naive_members(known: list[Event], stream: Stream) -> list[tuple[Event, int]]:
    """The events of a stream with the hour at which each counts."""

    def is_in(event: Event) -> bool:
        if event.kind not in stream.kinds:
            return False
        if stream.human_only and event.kind in (EMAIL_OPENED, EMAIL_CLICKED):
            return event.human_ppm >= HUMAN_PPM and not event.is_repeat
        return True

    members = [(place, event) for place, event in enumerate(known) if is_in(event)]
    if stream.answers_within_hours is None:
        return [(event, event.hour_of_week % 24) for _, event in members]
    answers = []
    for place, event in members:
        sends = [
            (at, send)
            for at, send in enumerate(known[:place])
            if send.kind == EMAIL_SENT
            and send.ref == event.ref != 0
            and event.occurred_at - send.occurred_at <= stream.answers_within_hours * HOUR_MICROS
        ]
        if not sends:
            continue
        at, send = sends[-1]
        if not any(at < other < place and rival.ref == event.ref for other, rival in members):
            answers.append((event, send.hour_of_week % 24))
    return answers


def naive_view(events: list[Event], as_of: int, view: FeatureView) -> list[float]:
    known = sorted(
        (event for event in events if event.occurred_at < as_of and event.received_at <= as_of),
        key=lambda event: event.occurred_at,  # stable: the log's order breaks ties
    )

    def within(stream: Stream, days: int | None, before: int = as_of) -> list[tuple[Event, int]]:
        return [
            (event, hour)
            for event, hour in naive_members(known, stream)
            if event.occurred_at < before and (days is None or event.occurred_at >= before - days * DAY_MICROS)
        ]

    results = []
    for days in view.windows:
        chosen = within(view.stream, days)
        times = [event.occurred_at for event, _ in chosen]
        first_of_day = {time // DAY_MICROS: time for time in reversed(times)}
        minutes = sorted(time // 60_000_000 for time in first_of_day.values())
        gaps = [(later - earlier) / 1440 for earlier, later in pairwise(minutes)]
        recency = (as_of - times[-1]) / DAY_MICROS if times else math.nan
        if view.primitive == "count":
            results.append(len(chosen))
        elif view.primitive == "sum":
            results.append(sum(event.value_minor for event, _ in chosen))
        elif view.primitive == "mean":
            results.append(sum(event.value_minor for event, _ in chosen) / len(chosen) if chosen else math.nan)
        elif view.primitive == "recency":
            results.append(recency)
        elif view.primitive == "first_seen":
            results.append((as_of - times[0]) / DAY_MICROS if times else math.nan)
        elif view.primitive == "days":
            results.append(len(minutes))
        elif view.primitive == "gap_mean":
            results.append(sum(gaps) / len(gaps) if gaps else math.nan)
        elif view.primitive == "gap_std":
            results.append(float(np.std(gaps, ddof=1)) if len(gaps) > 1 else math.nan)
        elif view.primitive == "overdue":
            results.append(recency / (sum(gaps) / len(gaps)) if gaps else math.nan)
        elif view.primitive == "rate":
            assert view.over is not None
            trials = len(within(view.over, days))
            results.append((len(chosen) + view.prior_mean * view.prior_strength) / (trials + view.prior_strength))
        elif view.primitive == "trend":
            assert days is not None
            results.append(len(chosen) - len(within(view.stream, days, as_of - days * DAY_MICROS)))
        elif view.primitive == "hour_histogram":
            width = 24 // view.bins
            hours = [hour // width for _, hour in chosen]
            results += [hours.count(place) for place in range(view.bins)]
        else:
            raise AssertionError(view.primitive)
    return results


def naive_sweep(events: Sequence[Event], keys: Sequence[int], as_of: Sequence[int], views: ViewSet) -> np.ndarray:
    return np.array(
        [
            [
                value
                for view in views.views
                for value in naive_view([event for event in events if event.contact_key == key], at, view)
            ]
            for key, at in zip(keys, as_of, strict=True)
        ],
        dtype=np.float64,
    ).reshape(len(keys), len(views.names))


# --- Random logs -------------------------------------------------------------------------------------------------

WINDOWS = (1, 2, 7, 30, None)
ANYTHING = Stream("anything", (ORDER_COMPLETED, PAGE, EMAIL_SENT, "Custom"))
EVERY_PRIMITIVE = ViewSet(
    "every primitive",
    (
        *(
            FeatureView(f"{name}_{primitive}", primitive, stream, windows, "f", "u", "d")
            for name, stream, windows in (
                ("any", ANYTHING, WINDOWS),
                ("order", ORDERS, (3, 10)),
                ("answer", ANSWERS, (7, None)),
            )
            for primitive in (
                "count", "sum", "mean", "recency", "first_seen", "days", "gap_mean", "gap_std", "overdue",
            )
        ),
        FeatureView("rate", "rate", OPENS, WINDOWS, "f", "u", "d", over=SENDS, prior_mean=0.25, prior_strength=4.0),
        FeatureView("trend", "trend", PAGES, (1, 3, 30), "f", "u", "d"),
        FeatureView("hour", "hour_histogram", ACTIVE, (7,), "f", "u", "d"),
        FeatureView("bins", "hour_histogram", ANSWERS, (None,), "f", "u", "d", bins=6),
        FeatureView("clicks", "count", CLICKS, (7,), "f", "u", "d"),
    ),
)  # fmt: skip

# A coarse lattice of 12 days with a microsecond to either side: ties, and edges met exactly.
STEPS, JITTERS = 72, (0, 0, 1, -1)
KEYS = (1, 1, 1, 2, 3)
KINDS = (ORDER_COMPLETED, PAGE, EMAIL_SENT, EMAIL_SENT, EMAIL_OPENED, EMAIL_CLICKED, "Custom", "Other")
DELAYS = (0, 0, 0, 0, 1, 1_000_000, 4 * HOUR_MICROS, 8 * HOUR_MICROS, 3 * DAY_MICROS, -HOUR_MICROS)
HUMAN = (-1, 0, HUMAN_PPM - 1, HUMAN_PPM, 1_000_000)


def lattice(step: int, jitter: int) -> int:
    return ORIGIN + step * 4 * HOUR_MICROS + jitter


def event_of(
    key: int, at: int, delay: int, kind: str, value: int, hour: int, ppm: int, is_repeat: bool, ref: int
) -> Event:
    return Event(key, at, at + delay, kind, value, hour, ppm, is_repeat, ref)


def crowded_log(seed: int) -> list[Event]:
    """Eighty events, most of one contact: what small examples seldom show (many a day, many of one mail)."""
    rng = random.Random(seed)
    return [
        event_of(
            rng.choice(KEYS),
            lattice(rng.randint(0, STEPS), rng.choice(JITTERS)),
            rng.choice(DELAYS) if seed % 3 else 0,  # a third of the logs without late events: the fast path
            rng.choice(KINDS),
            rng.randint(-1_000, 1_000_000),
            rng.randint(0, 167),
            rng.choice(HUMAN),
            rng.random() < 0.3,
            rng.randint(0, 3),
        )
        for _ in range(80)
    ]


instants = st.builds(lattice, st.integers(0, STEPS), st.sampled_from(JITTERS))
logs = st.one_of(
    st.lists(
        st.builds(
            event_of,
            st.sampled_from(KEYS),
            instants,
            st.sampled_from(DELAYS),
            st.sampled_from(KINDS),
            st.integers(-1_000, 1_000_000),
            st.integers(0, 167),
            st.sampled_from(HUMAN),
            st.booleans(),
            st.integers(0, 3),
        ),
        max_size=20,
    ),
    st.integers(0, 2**32).map(crowded_log),
)
questions = st.lists(st.tuples(st.sampled_from((1, 1, 1, 2, 3, 4)), instants), min_size=1, max_size=12)


@pytest.mark.parametrize("views", [EVERY_PRIMITIVE, DEFAULT_VIEWS, SEND_HOUR_VIEWS], ids=lambda views: views.name)
@given(events=logs, asked=questions)
@settings(deadline=None, max_examples=60)
def test_the_sweep_equals_a_naive_recomputation(views: ViewSet, events: list[Event], asked: list[tuple[int, int]]):
    """Over random logs with ties, late, repeated and machine events, for contacts with and without events."""
    keys, as_of = [key for key, _ in asked], [at for _, at in asked]

    swept = sweep(columns_of(events), keys, as_of, views)

    np.testing.assert_allclose(swept, naive_sweep(events, keys, as_of, views), rtol=1e-12, atol=1e-9)


@given(events=logs, asked=questions)
@settings(deadline=None, max_examples=60)
def test_a_vector_has_the_same_bits_however_it_is_asked_for(events: list[Event], asked: list[tuple[int, int]]):
    """Many contacts and instants at once, or one contact's events and one instant, as online."""
    together = sweep(columns_of(events), [key for key, _ in asked], [at for _, at in asked], EVERY_PRIMITIVE)

    alone = [
        sweep(columns_of([event for event in events if event.contact_key == key]), [key], [at], EVERY_PRIMITIVE)[0]
        for key, at in asked
    ]

    assert together.tobytes() == np.array(alone).tobytes()


@given(events=logs, planted=logs, asked=questions)
@settings(deadline=None, max_examples=60)
def test_what_was_not_known_changes_no_vector(events: list[Event], planted: list[Event], asked: list[tuple[int, int]]):
    """Events of the future, and events of the past that came later, leave a vector as it was."""
    keys, as_of = [key for key, _ in asked], [at for _, at in asked]
    horizon = max(as_of)
    future = [event._replace(occurred_at=max(event.occurred_at, horizon)) for event in planted]
    late = [event._replace(received_at=horizon + 1) for event in planted if event.occurred_at < horizon]

    before = sweep(columns_of(events), keys, as_of, EVERY_PRIMITIVE)
    after = sweep(columns_of(events + future + late), keys, as_of, EVERY_PRIMITIVE)

    assert before.tobytes() == after.tobytes()


@given(events=logs, asked=questions)
@settings(deadline=None, max_examples=30)
def test_sql_agrees_on_counts_sums_and_recency(events: list[Event], asked: list[tuple[int, int]]):
    """DuckDB's range join gives the same numbers."""
    views = ViewSet(
        "sql",
        tuple(
            FeatureView(name, primitive, ORDERS, (7, 30, None), "f", "u", "d")
            for name, primitive in (("n", "count"), ("s", "sum"), ("r", "recency"))
        ),
    )
    spine = pd.DataFrame({"i": range(len(asked)), "key": [k for k, _ in asked], "asked_at": [at for _, at in asked]})
    log = pd.DataFrame(events, columns=list(Event._fields))
    log = log.astype({name: "int64" for name in ("contact_key", "occurred_at", "received_at", "value_minor")})
    windows = {
        "7d": f"occurred_at >= asked_at - {7 * DAY_MICROS}",
        "30d": f"occurred_at >= asked_at - {30 * DAY_MICROS}",
        "": "true",
    }
    counts = ", ".join(f"count(occurred_at) filter ({w})" for w in windows.values())
    sums = ", ".join(f"coalesce(sum(value_minor) filter ({w}), 0)" for w in windows.values())
    recencies = ", ".join(
        f"(any_value(asked_at) - max(occurred_at) filter ({w})) / {DAY_MICROS}" for w in windows.values()
    )

    with duckdb.connect(":memory:") as connection:
        connection.register("spine", spine)
        connection.register("log", log)
        expected = connection.execute(
            f"select {counts}, {sums}, {recencies} from spine left join log on contact_key = key and "
            f"occurred_at < asked_at and received_at <= asked_at and kind = '{ORDER_COMPLETED}' group by i order by i"
        ).fetchnumpy()

    swept = sweep(columns_of(events), spine["key"], spine["asked_at"], views)
    sql = np.column_stack([np.ma.filled(column.astype(float), np.nan) for column in expected.values()])
    np.testing.assert_allclose(swept, sql, rtol=1e-12)


# --- Examples a reader can check by hand -------------------------------------------------------------------------


def named(events: list[Event], day: float, views: ViewSet = DEFAULT_VIEWS, key: int = 1) -> dict[str, float]:
    at = ORIGIN + int(day * DAY_MICROS)
    return dict(zip(views.names, sweep(columns_of(events), [key], [at], views)[0].tolist(), strict=True))


def test_regularity_is_measured_between_days_with_an_order():
    """Orders on days 0, 10, 10 and 30: gaps of 10 and 20, mean 15, sample deviation 7.07."""
    vector = named([order(0.5), order(10.5), order(10.6), order(30.5)], 40.5)

    assert vector["order_gap"] == 15.0
    assert vector["order_gap_std"] == pytest.approx(math.sqrt(50))
    assert vector["order_overdue"] == pytest.approx(10 / 15)
    assert (vector["orders_ever"], vector["order_days_ever"]) == (4, 3)


def test_a_window_includes_its_first_instant_and_excludes_its_last():
    """An order exactly 7 days before counts in 7 days; one at the instant itself does not count yet."""
    vector = named([order(3.0), order(10.0)], 10.0)

    assert (vector["orders_7d"], vector["days_since_order"]) == (1, 7.0)
    assert named([order(3.0)], 10.0 + 1e-6)["orders_7d"] == 0


def test_a_contact_without_events_gets_the_null_rules():
    """Counts 0, recencies missing, rates at their prior."""
    vector = named([order(1.0, key=2)], 10.0)

    assert vector["orders_ever"] == vector["revenue_ever"] == vector["active_hour_00"] == 0
    assert math.isnan(vector["days_since_order"])
    assert math.isnan(vector["order_gap"])
    assert (vector["open_rate_30d"], vector["click_rate_30d"]) == (0.2, 0.03)


def test_a_rate_is_drawn_to_its_prior():
    """One open of one mail: (1 + 0.2 x 5) / (1 + 5)."""
    at = ORIGIN + DAY_MICROS
    sent = Event(1, at, at, EMAIL_SENT, 0, 9, -1, False, 5)
    opened = Event(1, at + HOUR_MICROS, at + HOUR_MICROS, EMAIL_OPENED, 0, 10, 900_000, False, 5)

    assert named([sent, opened], 3.0)["open_rate_30d"] == pytest.approx(2 / 6)


def test_an_answer_counts_once_at_the_hour_of_its_send():
    """Sent at 9, opened at 15 and clicked at 16 the same day: one answered mail at 9. At 24 h one, later none."""
    at = ORIGIN + 9 * HOUR_MICROS
    sent = Event(1, at, at, EMAIL_SENT, 0, 24 + 9, -1, False, 5)
    opened = Event(1, at + 6 * HOUR_MICROS, at + 6 * HOUR_MICROS, EMAIL_OPENED, 0, 24 + 15, 900_000, False, 5)
    clicked = Event(1, at + 7 * HOUR_MICROS, at + 7 * HOUR_MICROS, EMAIL_CLICKED, 0, 24 + 16, 900_000, False, 5)
    on_time = opened._replace(occurred_at=at + DAY_MICROS, received_at=at + DAY_MICROS)
    slow = opened._replace(occurred_at=at + DAY_MICROS + 1, received_at=at + DAY_MICROS + 1)

    vector = named([sent, opened, clicked], 3.0, SEND_HOUR_VIEWS)

    assert {name: value for name, value in vector.items() if value} == {
        "sent_hour_09": 1, "answered_hour_09": 1, "active_hour_15": 1, "active_hour_16": 1,
    }  # fmt: skip
    assert named([sent, on_time], 3.0, SEND_HOUR_VIEWS)["answered_hour_09"] == 1
    assert named([sent, slow], 3.0, SEND_HOUR_VIEWS)["answered_hour_09"] == 0


def test_a_late_event_counts_from_the_instant_it_was_received():
    """An order of day 1 that arrived on day 5 is unknown on day 4 and known, as of day 1, on day 6."""
    late = order(1.0)._replace(received_at=ORIGIN + 5 * DAY_MICROS)

    assert named([late], 4.0)["orders_ever"] == 0
    assert named([late], 6.0)["days_since_order"] == 5.0


def test_what_arrives_at_the_instant_is_known_at_it():
    """For a contact with a late event too: one order received exactly at day 4 counts there, one a moment later not."""
    at = ORIGIN + 4 * DAY_MICROS
    in_time, late = order(1.0)._replace(received_at=at), order(2.0)._replace(received_at=at + 1)

    assert named([in_time], 4.0)["orders_ever"] == 1
    assert named([in_time, late], 4.0)["orders_ever"] == 1


def test_a_window_that_opens_within_a_day_opens_the_first_gap_there():
    """Orders at 6:00 and 18:00 of day 0 and 18:00 of day 9: from noon of day 0 the gap is 9 days, else 9.5."""
    ten_days = ViewSet("ten days", (FeatureView("gap", "gap_mean", ORDERS, (10, None), "f", "days", "d"),))

    vector = named([order(0.25), order(0.75), order(9.75)], 10.5, ten_days)

    assert vector == {"gap_10d": 9.0, "gap_ever": 9.5}


def test_results_come_in_the_callers_order():
    """Keys and instants may be given in any order, with repeats."""
    columns = columns_of([order(1.0), order(2.0, key=2), order(3.0, key=2)])
    keys = [2, 1, 2, 7, 2]
    as_of = [ORIGIN + day * DAY_MICROS for day in (10, 10, 3, 10, 10)]

    orders = sweep(columns, keys, as_of, DEFAULT_VIEWS)[:, DEFAULT_VIEWS.names.index("orders_ever")]

    assert orders.tolist() == [2, 1, 1, 0, 2]


def test_unsorted_events_are_refused():
    """The sweep cannot be fed what it would silently misread."""
    columns = columns_of([order(1.0), order(2.0), order(3.0)]).take(np.array([2, 0, 1]))

    with pytest.raises(ValueError, match="not sorted"):
        sweep(columns, [1], [ORIGIN + 10 * DAY_MICROS], DEFAULT_VIEWS)


def test_read_only_arrays_are_swept():
    """Arrays mapped from a file or shared between processes need no copy."""
    columns = columns_of([order(1.0)])
    for name in COLUMN_TYPES:
        getattr(columns, name).flags.writeable = False

    assert sweep(columns, [1], [ORIGIN + 2 * DAY_MICROS], DEFAULT_VIEWS)[0, 0] == 1.0


def test_keys_and_instants_must_pair_up():
    """A shape that does not fit is named."""
    with pytest.raises(ValueError, match="one length"):
        sweep(columns_of([]), [1, 2], [ORIGIN], DEFAULT_VIEWS)


def test_a_log_of_another_vocabulary_is_read_alike():
    """Codes of custom kinds differ between logs; the vector does not."""
    cancelled = order(1.0)._replace(kind=ORDER_CANCELLED)

    first = named([order(0.5)._replace(kind="Zebra"), cancelled, order(2.0)], 5.0)
    second = named([order(0.5)._replace(kind="Aardvark"), cancelled, order(2.0)], 5.0)

    assert list(first.values()) == pytest.approx(list(second.values()), nan_ok=True)
    assert first["cancellations_ever"] == 1
