"""Laws of the request path: the same vectors as offline, whatever a cache remembers and whoever writes meanwhile."""

from __future__ import annotations

import gc
import random
import threading
import tracemalloc
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sqlalchemy import delete

from features.events import HOUR_MICROS, NewEvent, append
from features.lake import Lake
from features.offline import historical_features
from features.online import VectorCache, online_features, served_features
from features.tables import EventRow, allocate, from_micros, to_micros
from features.views import DEFAULT_VIEWS, EVER, FeatureView, Stream, ViewSet, Where
from service.database import Database

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
SHOES = ViewSet(
    "shoes",
    (
        FeatureView("seen", "count", Stream("all", ("Page",)), EVER, "f", "u", "d"),
        FeatureView(
            "shoes", "count", Stream("s", ("Page",), where=(Where("category", ("shoe",)),)), EVER, "f", "u", "d"
        ),
    ),
)


def write(database: Database, numbers: range, *, contacts: int = 5, at: datetime = NOW) -> None:
    """One event per number, of contacts 1 to ``contacts`` in turn, an hour apart and known at ``at``."""
    with database.writing() as session:
        append(
            session,
            [
                NewEvent(
                    1 + n % contacts,
                    ("Page", "Order Completed", "Identify")[n % 3],
                    to_micros(at) - (n % 900 + 1) * HOUR_MICROS,
                    f"m-{n}",
                    "user:1",
                    value_minor=n,
                    properties={"category": "shoe" if n % 2 else "hat", "age": n % 90},
                )
                for n in numbers
            ],
            received_at=to_micros(at),
        )


@pytest.mark.parametrize("views", [DEFAULT_VIEWS, SHOES], ids=lambda views: views.name)
def test_online_equals_offline(any_database: Database, tmp_path: Path, views: ViewSet):
    """Bit for bit, traits and properties included, for contacts with and without events."""
    write(any_database, range(600))
    lake = Lake(str(tmp_path / "lake"), buckets=4)
    keys = [3, 1, 9, 3, 5]
    with any_database.reading() as session:
        lake.sync(session)
        served = served_features(session, keys, NOW, views)
    spine = pd.DataFrame({"contact_key": keys, "as_of": to_micros(NOW)})

    offline = historical_features(lake, spine, views, seq=served.seq)

    assert served.seq == 600
    assert served.X.tobytes() == offline.X.tobytes()


def test_a_cache_answers_like_the_log(any_database: Database):
    """Through appends by other processes, erasures, few and many events at a time, and its own forgetting."""
    caches = [VectorCache(), VectorCache(most_events=150)]
    rng = random.Random(7)
    written = 0
    for step in range(60):
        if step % 3 == 0:
            count = rng.choice([0, 1, 7, 400])
            write(any_database, range(written, written + count), contacts=20)
            written += count
        if step == 40:
            with any_database.writing() as session:
                session.execute(delete(EventRow).where(EventRow.contact_key == 4))
                allocate(session, "event_rewrites", 1)
        keys = [rng.randint(1, 22) for _ in range(rng.choice([1, 1, 5]))]
        for views in (DEFAULT_VIEWS, SHOES):
            with any_database.reading() as session:
                expected = served_features(session, keys, NOW, views)
                for cache in caches:
                    given = served_features(session, keys, NOW, views, cache)
                    assert (given.seq, given.X.tobytes()) == (expected.seq, expected.X.tobytes())
    assert len(caches[0]) > len(caches[1]) > 0


def test_a_cache_spares_the_database_what_it_knows(database: Database):
    """A second question about a contact reads none of its rows; a new event of another contact changes nothing."""
    write(database, range(50))
    cache = VectorCache()
    statements: list[str] = []

    def ask() -> int:
        statements.clear()
        with database.reading() as session:
            connection = session.connection()
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.set_trace_callback(statements.append)
            online_features(session, [2], NOW, DEFAULT_VIEWS, cache)
            raw.set_trace_callback(None)
        return sum("human_ppm" in statement for statement in statements)

    assert [ask(), ask()] == [1, 0]
    write(database, range(1000, 1001), contacts=1)  # contact 1
    assert ask() == 0
    write(database, range(1001, 1006), contacts=5)  # contact 2 among them
    assert [ask(), ask()] == [1, 0]


def test_a_cache_holds_no_more_than_it_counts(database: Database):
    """Of a batch with a contact of 20,000 events, too many to keep, the small contact beside it is all that stays."""
    write(database, range(20_000), contacts=1)  # contact 1
    with database.writing() as session:
        append(session, [NewEvent(2, "Page", to_micros(NOW) - 1, "small", "user:2")], received_at=to_micros(NOW))

    def ask(cache: VectorCache) -> None:
        with database.reading() as session:
            served_features(session, [1, 2], NOW, DEFAULT_VIEWS, cache)

    ask(VectorCache())  # what is loaded and compiled once
    cache = VectorCache(most_events=1000)
    tracemalloc.start()
    try:
        ask(cache)
        gc.collect()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(cache) == 1
    assert kept < 200_000  # bytes; the batch has more than a million


def test_an_older_reader_neither_reads_nor_spoils_the_newest_state(database: Database):
    """Its own transaction is what it sees; the cache stays as new as it was, for whom it asked about alone, too."""
    write(database, range(30))
    cache = VectorCache()
    with database.reading() as older:
        before = served_features(older, [1, 2], NOW, DEFAULT_VIEWS)
        write(database, range(30, 60))
        with database.reading() as newer:
            after = served_features(newer, [1, 2], NOW, DEFAULT_VIEWS, cache)
        again = served_features(older, [1, 2, 3], NOW, DEFAULT_VIEWS, cache)
    with database.reading() as newer:
        last = served_features(newer, [1, 2, 3], NOW, DEFAULT_VIEWS, cache)
        expected = served_features(newer, [1, 2, 3], NOW, DEFAULT_VIEWS)

    assert (before.seq, after.seq, again.seq, last.seq) == (30, 60, 30, 60)
    assert again.X[:2].tobytes() == before.X.tobytes() != after.X.tobytes()
    assert after.X.tobytes() == last.X[:2].tobytes()
    assert again.X[2].tobytes() != last.X[2].tobytes()
    assert last.X.tobytes() == expected.X.tobytes()


def test_caches_of_several_readers_stay_true_while_events_come_in(any_database: Database, tmp_path: Path):
    """Four readers with caches of their own, one writer; every vector equals the lake's at the place it saw."""
    write(any_database, range(100), contacts=8)
    stop = threading.Event()
    served: list[tuple[int, int, bytes]] = []
    failures: list[BaseException] = []

    def read(seed: int) -> None:
        cache, rng = VectorCache(), random.Random(seed)
        try:
            while not stop.is_set():
                key = rng.randint(1, 9)
                with any_database.reading() as session:
                    vector = served_features(session, [key], NOW, DEFAULT_VIEWS, cache)
                served.append((key, vector.seq, vector.X.tobytes()))
        except BaseException as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for reader in readers:
        reader.start()
    for n in range(100, 400, 3):
        write(any_database, range(n, n + 3), contacts=8)
    stop.set()
    for reader in readers:
        reader.join()

    assert not failures
    lake = Lake(str(tmp_path / "lake"), buckets=1)
    with any_database.reading() as session:
        lake.sync(session)
    assert len({seq for _, seq, _ in served}) > 20
    for seq in {seq for _, seq, _ in served}:
        keys = sorted({key for key, at, _ in served if at == seq})
        spine = pd.DataFrame({"contact_key": keys, "as_of": to_micros(NOW)})
        X = historical_features(lake, spine, DEFAULT_VIEWS, seq=seq).X
        expected = {key: row.tobytes() for key, row in zip(keys, X, strict=True)}
        assert all(vector == expected[key] for key, at, vector in served if at == seq)


def test_what_is_received_after_the_instant_is_not_served(database: Database):
    """A writer whose clock runs a minute ahead: its event counts once the reader's clock is there too."""
    write(database, range(9), contacts=1, at=from_micros(to_micros(NOW) + 60_000_000))

    with database.reading() as session:
        now = online_features(session, [1], NOW, DEFAULT_VIEWS)
        soon = online_features(session, [1], from_micros(to_micros(NOW) + 60_000_000), DEFAULT_VIEWS)

    orders = DEFAULT_VIEWS.names.index("orders_ever")
    assert (now[0, orders], soon[0, orders]) == (0, 3)
    assert np.isnan(now[0, DEFAULT_VIEWS.names.index("age")])
