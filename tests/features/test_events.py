"""Laws of the event log."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select

from features.events import (
    CLOCK_TOLERANCE_MICROS,
    DAY_MICROS,
    HOUR_MICROS,
    ClockWentBackwards,
    EventColumns,
    NewEvent,
    append,
    hash_ref,
    head,
    iterate_after,
    local_hour_of_week,
    read_after,
    read_by_contact,
    read_contacts,
    set_clock_back,
)
from features.tables import EventRow, to_micros
from features.vocabulary import EMAIL_OPENED, ORDER_COMPLETED, PAGE
from service.database import Database

NOON = to_micros(datetime(2026, 3, 2, 12, tzinfo=UTC))


def page(message_id: str, key: int = 1, occurred_at: int = NOON, **more: object) -> NewEvent:
    return NewEvent(key, PAGE, occurred_at, message_id, "user:1", **more)  # type: ignore[arg-type]


def rows(database: Database) -> list[EventRow]:
    with database.reading() as session:
        return list(session.scalars(select(EventRow).order_by(EventRow.seq)))


def test_a_second_delivery_changes_nothing(any_database: Database):
    """Known before, or twice in one batch: stored once, counted as duplicates, seq without a gap."""
    with any_database.writing() as session:
        first = append(session, [page("a"), page("b"), page("a", key=9)], received_at=NOON)
    with any_database.writing() as session:
        second = append(session, [page("b"), page("c"), page("a")], received_at=NOON)
    with any_database.writing() as session:
        third = append(session, [page("c")], received_at=NOON)

    assert (first.first_seq, first.stored, first.duplicates) == (1, 2, 1)
    assert (second.first_seq, second.stored, second.duplicates) == (3, 1, 2)
    assert (third.first_seq, third.stored, third.duplicates) == (None, 0, 1)
    assert [(row.seq, row.message_id, row.contact_key) for row in rows(any_database)] == [
        (1, "a", 1),
        (2, "b", 1),
        (3, "c", 1),
    ]


def test_racing_writers_leave_a_dense_log(any_database: Database):
    """Four writers, half of whose messages overlap: every message once, every place taken once."""

    def write(writer: int) -> None:
        for batch in range(15):
            messages = [f"own-{writer}-{batch}-{n}" for n in range(10)] + [f"shared-{batch}-{n}" for n in range(10)]
            with any_database.writing() as session:
                append(session, [page(message, key=writer) for message in messages], received_at=NOON)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    stored = rows(any_database)
    assert [row.seq for row in stored] == list(range(1, 4 * 150 + 150 + 1))
    assert len({row.message_id for row in stored}) == len(stored)


def test_imported_history_counts_as_known_when_it_occurred(any_database: Database):
    """An import sets received_at to occurred_at and says so; live events keep the instant they came."""
    old = NOON - 900 * DAY_MICROS
    with any_database.writing() as session:
        append(session, [page("history", occurred_at=old)], received_at=NOON, imported=True)
        append(session, [page("live", occurred_at=old)], received_at=NOON)

    history, live = rows(any_database)

    assert (history.received_at, history.is_imported) == (old, True)
    assert (live.received_at, live.is_imported) == (NOON, False)


@pytest.mark.parametrize(
    ("event", "said"),
    [
        (page("ahead", occurred_at=NOON + DAY_MICROS + 1), "more than 1 day after"),
        (page("ancient", occurred_at=-1), "outside 1970 to 2100"),
        (page("nanoseconds", occurred_at=NOON * 1000), "outside 1970 to 2100"),
        (page("x" * 201), "message_id"),
        (page(""), "message_id"),
        (page("n", ref="r" * 121), "ref"),
        (page("n", ref="a\x00b"), "NUL"),
        (page("n", human_ppm=1_000_001), "human_ppm 1000001"),
        (page("n", value_minor=2**63), "64 bits"),
        (page("n", properties={"price": float("nan")}), "not JSON"),
        (page("n", properties={"price": float("inf")}), "not JSON"),
        (page("n", timezone="Mars/Olympus"), "Mars/Olympus"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_event_is_named_and_nothing_is_stored(database: Database, event: NewEvent, said: str):
    """The error names the value and the limit; the good event beside it is not half stored."""
    with pytest.raises(ValueError, match=said), database.writing() as session:
        append(session, [page("good"), event], received_at=NOON)

    assert rows(database) == []


def test_a_clock_up_to_a_day_ahead_is_tolerated(database: Database):
    """Exactly one day ahead is stored."""
    with database.writing() as session:
        assert append(session, [page("ahead", occurred_at=NOON + DAY_MICROS)], received_at=NOON).stored == 1


def test_known_time_never_runs_backwards_along_the_log(any_database: Database):
    """A clock that is a little behind is taken forward; history is known when it occurred and moves no clock."""
    with any_database.writing() as session:
        append(session, [page("one")], received_at=NOON + 1_000)
        append(session, [page("history", occurred_at=NOON - DAY_MICROS)], received_at=NOON, imported=True)
        append(session, [page("two")], received_at=NOON)
        append(session, [page("three")], received_at=NOON + 2_000)

    assert [row.received_at for row in rows(any_database)] == [
        NOON + 1_000, NOON - DAY_MICROS, NOON + 1_000, NOON + 2_000,
    ]  # fmt: skip


def test_a_clock_that_went_back_is_refused_where_the_sender_can_try_again(any_database: Database):
    """The error names both instants and the remedy, nothing is stored; what must not be lost is taken down."""
    with any_database.writing() as session:
        append(session, [page("one")], received_at=NOON + HOUR_MICROS, most_behind=CLOCK_TOLERANCE_MICROS)
    with (
        pytest.raises(
            ClockWentBackwards, match=r"T11:54:59.*T13:00:00.*5 minutes later; set this machine's clock right"
        ),
        any_database.writing() as session,
    ):
        append(session, [page("two")], received_at=NOON - 301_000_000, most_behind=CLOCK_TOLERANCE_MICROS)
    with any_database.writing() as session:
        append(session, [page("three")], received_at=NOON - 301_000_000)

    assert [(row.message_id, row.received_at) for row in rows(any_database)] == [
        ("one", NOON + HOUR_MICROS), ("three", NOON + HOUR_MICROS),
    ]  # fmt: skip


def test_a_log_whose_clock_ran_ahead_can_be_set_back(any_database: Database):
    """Then events are taken again; an earlier clock is left as it is."""
    with any_database.writing() as session:
        append(session, [page("ahead")], received_at=NOON + 400 * DAY_MICROS)
        assert set_clock_back(session, NOON) == NOON + 400 * DAY_MICROS
        append(session, [page("now")], received_at=NOON, most_behind=CLOCK_TOLERANCE_MICROS)
        set_clock_back(session, NOON + DAY_MICROS)
        append(session, [page("then")], received_at=NOON, most_behind=CLOCK_TOLERANCE_MICROS)

    assert [row.received_at for row in rows(any_database)] == [NOON + 400 * DAY_MICROS, NOON, NOON]


def test_an_empty_batch_takes_no_lock_and_no_place(database: Database):
    """Nothing in, nothing done."""
    with database.reading() as session:
        assert append(session, [], received_at=NOON).stored == 0


zones = st.sampled_from(
    ["UTC", "Europe/London", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe", "Africa/Casablanca",
     "Pacific/Apia", "America/St_Johns", "Asia/Tehran", "Pacific/Chatham", "America/Caracas", "Asia/Pyongyang"]
)  # fmt: skip


@given(zone=zones, instants=st.lists(st.integers(3 * 365 * DAY_MICROS, 80 * 365 * DAY_MICROS), min_size=1, max_size=50))
@settings(deadline=None)
def test_the_local_hour_is_the_zones_own(zone: str, instants: list[int]):
    """Against the standard library, instant by instant, across every change of clocks since 1973."""
    hours = local_hour_of_week(np.array(instants), zone)

    local = [datetime.fromtimestamp(instant // 1_000_000, ZoneInfo(zone)) for instant in instants]
    assert hours.tolist() == [at.weekday() * 24 + at.hour for at in local]


def test_the_hour_repeats_and_jumps_with_the_clocks():
    """London, 2026-10-25: 01:30 comes twice. 2026-03-29: 01:30 never comes."""
    autumn = to_micros(datetime(2026, 10, 25, 0, 30, tzinfo=UTC)) + np.arange(3) * HOUR_MICROS
    spring = to_micros(datetime(2026, 3, 29, 0, 30, tzinfo=UTC)) + np.arange(2) * HOUR_MICROS

    assert (local_hour_of_week(autumn, "Europe/London") % 24).tolist() == [1, 1, 2]
    assert (local_hour_of_week(spring, "Europe/London") % 24).tolist() == [0, 2]


def test_the_hour_is_kept_in_the_contacts_zone(any_database: Database):
    """Monday noon in London is Monday 7 in New York; without a zone the installation's is taken."""
    events = [page("a", timezone="America/New_York"), page("b", timezone="Europe/London"), page("c")]
    with any_database.writing() as session:
        append(session, events, received_at=NOON, default_timezone="Asia/Tokyo")

    assert [row.hour_of_week for row in rows(any_database)] == [7, 12, 21]


def test_one_contacts_events_are_read_in_order(any_database: Database):
    """Sorted by time, then by place in the log; others' events stay out; nulls have their marks."""
    opened = NewEvent(2, EMAIL_OPENED, NOON, "o", "user:2", ref="17", human_ppm=700_000, is_repeat=True)
    bought = NewEvent(2, ORDER_COMPLETED, NOON - 5, "b", "user:2", ref="17", value_minor=1999)
    custom = NewEvent(2, "Sofa Tested", NOON, "c", "user:2")
    with any_database.writing() as session:
        append(session, [opened, page("p"), bought, custom], received_at=NOON)
    with any_database.reading() as session:
        columns = read_contacts(session, [2, 7])
        alone = read_contacts(session, [2])

    assert columns.seq.tolist() == alone.seq.tolist() == [3, 1, 4]
    assert [columns.kinds[code] for code in columns.kind] == [ORDER_COMPLETED, EMAIL_OPENED, "Sofa Tested"]
    assert columns.value_minor.tolist() == [1999, 0, 0]
    assert columns.human_ppm.tolist() == [-1, 700_000, -1]
    assert columns.is_repeat.tolist() == [False, True, False]
    assert columns.ref.tolist() == [hash_ref("17"), hash_ref("17"), 0]


def test_reading_on_from_a_watermark_sees_every_event_once(any_database: Database):
    """In pages by place and in pages by contact, the same events as the table's."""
    events = [page(f"m{n}", key=n % 7, occurred_at=NOON - (n * 7919 % 50) * HOUR_MICROS) for n in range(100)]
    with any_database.writing() as session:
        append(session, events, received_at=NOON)
    by_place: list[EventColumns] = []
    with any_database.reading() as session:
        place = 0
        while True:
            part, place = read_after(session, place, 30)
            if not len(part):
                break
            by_place.append(part)
        by_contact = list(read_by_contact(session, 90, 20))

    assert place == 100
    assert sorted(seq for part in by_place for seq in part.seq.tolist()) == list(range(1, 101))
    assert all(part.is_sorted() for part in by_place)
    joined = EventColumns.concat(by_contact)
    assert joined.seq.tolist() == [seq for part in by_contact for seq in part.seq.tolist()]  # pages follow one another
    assert sorted(joined.seq.tolist()) == list(range(1, 91))


def test_a_fold_reads_events_with_their_properties_in_the_logs_order(any_database: Database):
    """Page by page, kinds chosen, properties as they were sent."""
    events = [page(f"m{n}", properties={"n": n, "é": "\ud800 ☃"}) for n in range(12)]
    events[3] = NewEvent(5, ORDER_COMPLETED, NOON, "order", "user:5", value_minor=7)
    with any_database.writing() as session:
        append(session, events, received_at=NOON)
    with any_database.reading() as session:
        logged = list(iterate_after(session, 1, page=4))
        orders = list(iterate_after(session, 0, kinds=[ORDER_COMPLETED]))

    assert [event.seq for event in logged] == list(range(2, 13))
    assert logged[0].properties == {"n": 1, "é": "\ud800 ☃"}
    assert logged[0].is_repeat is False
    assert [(event.message_id, event.value_minor, event.properties) for event in orders] == [("order", 7, {})]


def test_a_rolled_back_append_leaves_no_trace(any_database: Database):
    """Neither rows nor places."""

    def append_and_fail() -> None:
        with any_database.writing() as session:
            append(session, [page("a")], received_at=NOON)
            raise RuntimeError("planned")

    with pytest.raises(RuntimeError):
        append_and_fail()
    with any_database.reading() as session:
        assert (head(session), session.scalar(select(func.count()).select_from(EventRow))) == (0, 0)
