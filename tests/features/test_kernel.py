"""Laws of the sweep: equal to a naive recomputation, blind to the future, the same bits however it is asked."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import duckdb
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.events import COLUMN_TYPES, DAY_MICROS, HOUR_MICROS, EventColumns
from features.kernel import sweep
from features.views import (
    ACTIVE,
    ANSWERS,
    CLICKS,
    DEFAULT_VIEWS,
    EVER,
    OPENS,
    ORDERS,
    PAGES,
    SEND_HOUR_VIEWS,
    SENDS,
    TRAITS,
    FeatureView,
    Primitive,
    Stream,
    ViewSet,
    Where,
)
from features.vocabulary import (
    EMAIL_CLICKED,
    EMAIL_OPENED,
    EMAIL_SENT,
    HUMAN_PPM,
    IDENTIFY,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    PAGE,
)
from tests.features.logs import ORIGIN, Event, columns_of, order

# --- The naive recomputation: the definitions, read aloud --------------------------------------------------------


def naive_values(event: Event, path: str) -> list[Any]:
    """Every value at ``path``, through objects and lists."""
    found: list[Any] = [event.properties or {}]
    for step in path.split("."):
        flat = [item for value in found for item in (value if isinstance(value, list) else [value])]
        found = [value[step] for value in flat if isinstance(value, dict) and step in value]
    return [item for value in found for item in (value if isinstance(value, list) else [value])]


def naive_text(value: Any) -> str:
    if value is None:
        return ""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else f"{value}".removesuffix(".0")


def naive_number(value: Any) -> float:
    if isinstance(value, str) and value.count("-") == 2:
        return pd.Timestamp(value, tz="UTC").value / 1000
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def naive_holds(event: Event, where: Where) -> bool:
    values = naive_values(event, where.name)
    if where.values:
        return any(naive_text(value) == naive_text(wanted) for value in values for wanted in where.values)
    low = -math.inf if where.at_least is None else where.at_least
    high = math.inf if where.at_most is None else where.at_most
    return any(low <= naive_number(value) <= high for value in values)


def naive_told(known: list[tuple[Event, int]], name: str) -> Any:
    """What was told last; None if nothing, or taken back."""
    told = [value for event, _ in known for value in naive_values(event, name)]
    return told[-1] if told and naive_text(told[-1]) else None


def naive_members(known: list[Event], stream: Stream) -> list[tuple[Event, int]]:
    """The events of a stream with the hour at which each counts."""

    def is_in(event: Event) -> bool:
        if event.kind not in stream.every_kind:
            return False
        if not all(naive_holds(event, where) for where in stream.where):
            return False
        if stream.human_only and event.kind in (EMAIL_OPENED, EMAIL_CLICKED):
            return event.human_ppm >= HUMAN_PPM and not event.is_repeat
        return True

    members = [(place, event) for place, event in enumerate(known) if is_in(event)]
    if stream.answers_within_hours is None:
        return [(event, event.hour_of_week) for _, event in members]
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
            answers.append((event, event.hour_of_week if stream.own_hour else send.hour_of_week))
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
            hours = [hour % 24 // width for _, hour in chosen]
            results += [hours.count(place) for place in range(view.bins)]
        elif view.primitive == "weekday_histogram":
            days_of_week = [hour // 24 for _, hour in chosen]
            results += [days_of_week.count(place) for place in range(7)]
        elif view.primitive == "distinct":
            if view.of == "ref":
                different = {str(event.ref) for event, _ in chosen if event.ref}
            else:
                different = {naive_text(value) for event, _ in chosen for value in naive_values(event, view.of)}
            results.append(len(different - {""}))
        elif view.primitive == "decayed":
            results.append(
                sum(
                    (event.value_minor if view.of else 1)
                    * 2 ** (-(as_of - event.occurred_at) / DAY_MICROS / view.half_life_days)
                    for event, _ in chosen
                )
            )
        elif view.primitive == "trait":
            told = naive_told(chosen, view.of)
            if view.values:
                results += [float(told is not None and naive_text(told) == naive_text(value)) for value in view.values]
            else:
                results.append(naive_number(told))
        elif view.primitive == "trait_recency":
            results.append((as_of - naive_number(naive_told(chosen, view.of))) / DAY_MICROS)
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
ANYTHING = Stream("anything", (ORDER_COMPLETED, PAGE, EMAIL_SENT), custom_kinds=("Custom",))
SHOES = Stream("shoes seen", (PAGE, ORDER_COMPLETED), where=(Where("items.kind", ("shoe", 7)),))
DEAR = Stream("dear shoes", (PAGE, EMAIL_OPENED), where=(Where("items.kind", ("shoe",)), Where("price", at_least=5)))
MIDDLE = Stream("answered middle", (EMAIL_OPENED,), True, 24, where=(Where("price", at_least=3, at_most=9.5),))
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
        FeatureView("day", "weekday_histogram", ACTIVE, (30,), "f", "u", "d"),
        FeatureView("answer_day", "weekday_histogram", ANSWERS, EVER, "f", "u", "d"),
        FeatureView("bins_too", "hour_histogram", ACTIVE, (30,), "f", "u", "d", bins=4),
        FeatureView("refs", "distinct", ANYTHING, WINDOWS, "f", "u", "d", of="ref"),
        FeatureView("kinds", "distinct", ANYTHING, WINDOWS, "f", "u", "d", of="items.kind"),
        FeatureView("shoes", "count", SHOES, WINDOWS, "f", "u", "d"),
        FeatureView("shoe_value", "sum", SHOES, (7,), "f", "u", "d"),
        FeatureView("dear", "count", DEAR, WINDOWS, "f", "u", "d"),
        FeatureView("middle", "count", MIDDLE, WINDOWS, "f", "u", "d"),
        FeatureView("dear_share", "rate", DEAR, EVER, "f", "u", "d", over=SHOES, prior_mean=0.5, prior_strength=2.0),
        FeatureView("faded", "decayed", ANYTHING, EVER, "f", "u", "d", half_life_days=2.5),
        FeatureView("faded_money", "decayed", ANYTHING, EVER, "f", "u", "d", of="value", half_life_days=30),
        FeatureView("price", "trait", TRAITS, EVER, "f", "u", "d", of="price"),
        FeatureView("tier", "trait", TRAITS, EVER, "f", "u", "d", of="tier", values=("gold", 2, True)),
        FeatureView("since", "trait_recency", TRAITS, EVER, "f", "u", "d", of="since"),
    ),
)  # fmt: skip

# A coarse lattice of 12 days with a microsecond to either side: ties, and edges met exactly.
STEPS, JITTERS = 72, (0, 0, 1, -1)
KEYS = (1, 1, 1, 2, 3)
KINDS = (ORDER_COMPLETED, PAGE, EMAIL_SENT, EMAIL_SENT, EMAIL_OPENED, EMAIL_CLICKED, "Custom", "Other", IDENTIFY)
PROPERTIES: tuple[dict[str, Any] | None, ...] = (
    None,
    {},
    {"price": 9.5},
    {"price": "3", "tier": "gold", "items": [{"kind": "shoe"}, {"kind": 7.0, "n": 1}, {"kind": "shoe"}]},
    {"price": 12, "tier": 2.0, "since": "2026-01-05", "items": [{"kind": "hat"}, {"other": 1}]},
    {"price": None, "tier": True, "since": None, "items": {"kind": "shoe"}},
    {"price": "dear", "tier": None, "since": "2025-11-30", "items": []},
    {"tier": "", "items": [{"kind": None}, {"kind": ""}, {"kind": "7"}]},
)
DELAYS = (0, 0, 0, 0, 1, 1_000_000, 4 * HOUR_MICROS, 8 * HOUR_MICROS, 3 * DAY_MICROS, -HOUR_MICROS)
HUMAN = (-1, 0, HUMAN_PPM - 1, HUMAN_PPM, 1_000_000)


def lattice(step: int, jitter: int) -> int:
    return ORIGIN + step * 4 * HOUR_MICROS + jitter


def event_of(
    key: int,
    at: int,
    delay: int,
    kind: str,
    value: int,
    hour: int,
    ppm: int,
    is_repeat: bool,
    ref: int,
    properties: dict[str, Any] | None,
) -> Event:
    return Event(key, at, at + delay, kind, value, hour, ppm, is_repeat, ref, properties)


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
            rng.choice(PROPERTIES),
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
            st.sampled_from(PROPERTIES),
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


@given(events=logs, asked=questions, days=st.lists(st.integers(1, 800), min_size=1, max_size=3, unique=True))
@settings(deadline=None, max_examples=40)
def test_windows_of_every_length_equal_the_naive_recomputation(
    events: list[Event], asked: list[tuple[int, int]], days: list[int]
):
    """Any number of days, alone and beside others."""
    primitives = ("count", "sum", "mean", "recency", "first_seen", "days", "gap_mean", "gap_std", "overdue", "trend")
    views = ViewSet(
        "lengths",
        (
            *(FeatureView(primitive, primitive, ANYTHING, tuple(days), "f", "u", "d") for primitive in primitives),
            FeatureView("distinct", "distinct", ANYTHING, tuple(days), "f", "u", "d", of="items.kind"),
            FeatureView("hours", "hour_histogram", ACTIVE, (days[0],), "f", "u", "d", bins=3),
        ),
    )
    keys, as_of = [key for key, _ in asked], [at for _, at in asked]

    swept = sweep(columns_of(events), keys, as_of, views)

    np.testing.assert_allclose(swept, naive_sweep(events, keys, as_of, views), rtol=1e-12, atol=1e-9)


@given(events=logs, asked=questions, seed=st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_the_order_of_arrival_does_not_matter(events: list[Event], asked: list[tuple[int, int]], seed: int):
    """The same events with the same known times, arrived in another order, give the same vectors.

    Of two traits, or two answers to one mail, at the same microsecond the later arrival counts; here there are none.
    """
    placed: dict[tuple[int, int], Event] = {}
    for event in events:
        placed.setdefault((event.contact_key, event.occurred_at), event)
    apart = list(placed.values())
    shuffled = random.Random(seed).sample(apart, len(apart))
    keys, as_of = [key for key, _ in asked], [at for _, at in asked]

    one = sweep(columns_of(apart), keys, as_of, EVERY_PRIMITIVE)
    other = sweep(columns_of(shuffled), keys, as_of, EVERY_PRIMITIVE)

    assert one.tobytes() == other.tobytes()


SQL = {
    "count": "count(occurred_at) filter ({0})",
    "sum": "coalesce(sum(value_minor) filter ({0}), 0)",
    "mean": "avg(value_minor) filter ({0})",
    "recency": f"(any_value(asked_at) - max(occurred_at) filter ({{0}})) / {DAY_MICROS}",
    "first_seen": f"(any_value(asked_at) - min(occurred_at) filter ({{0}})) / {DAY_MICROS}",
    "days": f"count(distinct occurred_at // {DAY_MICROS}) filter ({{0}})",
    "distinct": "count(distinct ref) filter ({0} and ref <> 0)",
    "decayed": f"coalesce(sum(pow(2, -(asked_at - occurred_at) / {DAY_MICROS} / 7.0)) filter ({{0}}), 0)",
}


@given(events=logs, asked=questions)
@settings(deadline=None, max_examples=30)
def test_sql_agrees(events: list[Event], asked: list[tuple[int, int]]):
    """DuckDB's range join over the same log, with a property filter, gives the same numbers."""
    stream = Stream("s", (ORDER_COMPLETED, PAGE), where=(Where("price", at_least=3.0),))
    windows: tuple[int | None, ...] = (1, 7, 30, None)
    views = ViewSet(
        "sql",
        tuple(
            FeatureView(
                primitive, cast(Primitive, primitive), stream, EVER if primitive == "decayed" else windows,
                "f", "u", "d",
                of="ref" if primitive == "distinct" else "", half_life_days=7.0 if primitive == "decayed" else 0.0,
            )
            for primitive in SQL
        ),
    )  # fmt: skip
    spine = pd.DataFrame({"i": range(len(asked)), "key": [k for k, _ in asked], "asked_at": [at for _, at in asked]})
    log = pd.DataFrame(events, columns=list(Event._fields))
    log["price"] = [max(map(naive_number, naive_values(event, "price")), default=math.nan) for event in events]
    log = log.drop(columns="properties").astype({"price": float})
    log = log.astype({name: "int64" for name in ("contact_key", "occurred_at", "received_at", "value_minor", "ref")})
    selected = ", ".join(
        SQL[view.primitive].format("true" if days is None else f"occurred_at >= asked_at - {days * DAY_MICROS}")
        for view in views.views
        for days in view.windows
    )

    with duckdb.connect(":memory:") as connection:
        connection.register("spine", spine)
        connection.register("log", log)
        expected = connection.execute(
            f"select {selected} from spine left join log on contact_key = key and occurred_at < asked_at and "
            f"received_at <= asked_at and kind in ('{ORDER_COMPLETED}', '{PAGE}') and price >= 3 and not isnan(price) "
            "group by i order by i"
        ).fetchall()

    swept = sweep(columns_of(events), spine["key"], spine["asked_at"], views)
    np.testing.assert_allclose(swept, np.array(expected, dtype=np.float64), rtol=1e-12)


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
        "sent_hour_09": 1, "answered_hour_09": 1, "answer_hour_15": 1,
    }  # fmt: skip
    assert named([sent, on_time], 3.0, SEND_HOUR_VIEWS)["answered_hour_09"] == 1
    assert named([sent, slow], 3.0, SEND_HOUR_VIEWS)["answered_hour_09"] == 0


@pytest.mark.parametrize("seed", range(4))
def test_answers_of_a_busy_contact_equal_the_naive_recomputation(seed: int):
    """A thousand events in two days of a few hundred mails: more lie between than are looked back at one by one."""
    rng = random.Random(seed)
    log = []
    for n in range(1000):
        at = ORIGIN + rng.randint(0, 2 * 24 * 60) * 60_000_000
        kind = EMAIL_SENT if n % 2 else rng.choice((EMAIL_OPENED, EMAIL_CLICKED))
        delay = 0 if seed % 2 else rng.choice((0, 4 * HOUR_MICROS))
        log.append(Event(1, at, at + delay, kind, 0, n % 168, rng.choice(HUMAN), n % 9 == 0, rng.randint(0, 300)))
    views = ViewSet("answers", (FeatureView("hour", "hour_histogram", ANSWERS, EVER, "f", "u", "d"),))
    as_of = [ORIGIN + DAY_MICROS, ORIGIN + 3 * DAY_MICROS]

    swept = sweep(columns_of(log), [1, 1], as_of, views)

    assert swept.sum() > 50
    assert swept.tolist() == naive_sweep(log, [1, 1], as_of, views).tolist()


def cpu_seconds(columns: EventColumns, views: ViewSet) -> float:
    """The cheapest of three sweeps."""
    at, took = ORIGIN + 2 * DAY_MICROS, []
    for _ in range(3):
        begin = time.process_time()
        sweep(columns, [1], [at], views)
        took.append(time.process_time() - begin)
    return min(took)


def test_answers_of_a_busy_contact_cost_little_more_than_any_events():
    """60,000 events within a day, each answer 30,000 behind its mail: it is not sought among those between.

    Every second mail is answered twice, of which the first counts; every hundredth answer has no mail.
    """
    n = 30_000
    step = DAY_MICROS // (4 * n)
    sent = [Event(1, ORIGIN + i * step, ORIGIN + i * step, EMAIL_SENT, 0, i % 24, -1, False, i + 1) for i in range(n)]
    opened = [
        Event(1, ORIGIN + (n + i) * step, ORIGIN + (n + i) * step, EMAIL_OPENED, 0, 0, 900_000, False,
              i // 2 * 2 + 1 if i % 100 else -i - 1)
        for i in range(n)
    ]  # fmt: skip
    answered = {event.ref - 1 for event in opened if event.ref > 0}
    columns = columns_of(sent + opened)
    answers = ViewSet("answers", (FeatureView("hour", "hour_histogram", ANSWERS, EVER, "f", "u", "d"),))
    opens = ViewSet("opens", (FeatureView("hour", "hour_histogram", OPENS, EVER, "f", "u", "d"),))

    vector = sweep(columns, [1], [ORIGIN + 2 * DAY_MICROS], answers)[0]

    assert vector.tolist() == [sum(place % 24 == hour for place in answered) for hour in range(24)]
    assert cpu_seconds(columns, answers) < 20 * cpu_seconds(columns, opens)


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


def told(day: float, **traits: Any) -> Event:
    at = ORIGIN + int(day * DAY_MICROS)
    return Event(1, at, at, IDENTIFY, 0, 0, -1, False, 0, traits)


def test_traits_are_those_told_last_before_the_instant():
    """Age 41 on day 1, 42 on day 5, taken back on day 9; each holds until the next is told."""
    log = [told(1, age=41, createdAt="2026-01-01"), told(5, age="42"), told(9, age=None, plan="x")]

    assert [named(log, day)["age"] for day in (1, 2, 5, 6)] == pytest.approx([math.nan, 41, 41, 42], nan_ok=True)
    assert math.isnan(named(log, 10)["age"])
    assert named(log, 10)["days_since_created"] == (ORIGIN + 10 * DAY_MICROS - 1_767_225_600_000_000) / DAY_MICROS


@pytest.mark.parametrize("instant", [1_767_225_600, 1_767_225_600_000, 1_767_225_600_000_000, "2026-01-01T00:00:00Z"])
def test_an_instant_may_be_told_in_seconds_or_as_text(instant: float | str):
    """Programs send `createdAt` in all of these."""
    days = named([told(1, createdAt=instant)], 10)["days_since_created"]

    assert days == (ORIGIN + 10 * DAY_MICROS - 1_767_225_600_000_000) / DAY_MICROS


def test_a_late_trait_does_not_leak():
    """Told on day 1, received on day 5: unknown on day 4."""
    late = told(1, age=41)._replace(received_at=ORIGIN + 5 * DAY_MICROS)

    assert math.isnan(named([late], 4)["age"])
    assert named([late], 5)["age"] == 41


def test_half_counts_after_a_half_life():
    """Orders 0 and 90 days old with a half-life of 90 days: 1 + ½; of the money 10 + 20 / 2."""
    vector = named([order(10.0, value=20), order(100.0 - 1e-9, value=10)], 100.0)

    assert vector["orders_decayed"] == pytest.approx(1.5)
    assert vector["revenue_decayed"] == pytest.approx(20.0)


def test_properties_that_were_not_read_are_asked_for():
    """Rather than counted as absent."""
    views = ViewSet("shoes", (FeatureView("shoes", "count", SHOES, EVER, "f", "u", "d"),))
    columns = columns_of([order(1.0)])
    unread = [
        dataclasses.replace(columns, properties=None),
        dataclasses.replace(columns, properties=dataclasses.replace(columns.properties, is_complete=False)),
    ]

    for without in unread:
        with pytest.raises(ValueError, match="with_properties=True"):
            sweep(without, [1], [ORIGIN + 2 * DAY_MICROS], views)


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
