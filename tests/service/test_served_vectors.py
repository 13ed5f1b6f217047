"""Laws of the served vectors: recorded beside the answer, never in its way, and equal to what the lake gives."""

from __future__ import annotations

import logging
import multiprocessing
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, select

from features.checks import replay
from features.events import append
from features.lake import Lake
from features.online import Served, VectorCache, served_features
from features.tables import ErasureRow, to_micros
from features.views import DEFAULT_VIEWS, SEND_HOUR_VIEWS, VIEW_SETS
from service.database import Database
from service.feature_checks import check_features
from service.served_vectors import KEEP, VectorLog, forget_served, is_sampled, prune_served, read_served
from service.tables import ServedVectorRow
from tests.features.appending import append_until, random_events

CONTACTS = 200


def _served(n: int, seq: int = 1) -> Served:
    return Served(np.arange(n * len(DEFAULT_VIEWS.names), dtype=np.float64).reshape(n, -1), seq)


def _rows(database: Database) -> int:
    with database.reading() as session:
        return int(session.scalar(select(func.count()).select_from(ServedVectorRow)) or 0)


@pytest.fixture
def vectors(any_database: Database) -> Iterator[VectorLog]:
    """Every contact sampled; written when the test says so."""
    log = VectorLog(any_database, 1.0, wait_seconds=3600, capacity=1_000)
    yield log
    log.close()


def test_what_was_recorded_comes_back_as_it_was(any_database: Database, vectors: VectorLog, now: datetime):
    """Contact, instant, view set, place of the log, and every bit of the vector; the newest first."""
    served = _served(2, seq=41)
    served.X[0, 0], served.X[1, 1] = np.nan, -0.0
    vectors.record([7, 2**40], now, DEFAULT_VIEWS, served)
    vectors.record([7], now + timedelta(microseconds=1), SEND_HOUR_VIEWS, Served(np.ones((1, 3)), 42))
    vectors.flush()

    with any_database.reading() as session:
        found, erased = read_served(session)

    assert found.contact_key.tolist()[0] == 7
    assert sorted(found.contact_key.tolist()) == [7, 7, 2**40]
    assert found.as_of.tolist() == [to_micros(now) + 1, to_micros(now), to_micros(now)]
    assert found.seq.tolist() == [42, 41, 41]
    assert list(found.version) == [SEND_HOUR_VIEWS.version, DEFAULT_VIEWS.version, DEFAULT_VIEWS.version]
    assert {found.vector[1], found.vector[2]} == {X.tobytes() for X in served.X}
    assert (erased, vectors.written, vectors.dropped) == (set(), 3, 0)


def test_the_same_read_twice_is_one_vector(any_database: Database, vectors: VectorLog, now: datetime):
    """Two models of one request, or two requests in one microsecond: the first stands."""
    vectors.record([7], now, DEFAULT_VIEWS, _served(1, seq=1))
    vectors.record([7], now, DEFAULT_VIEWS, _served(1, seq=2))
    vectors.flush()

    with any_database.reading() as session:
        assert read_served(session)[0].seq.tolist() == [1]


def test_a_contact_is_sampled_always_or_never(any_database: Database, now: datetime):
    """The share holds over contacts, in every bucket, and a bigger share contains the smaller one."""
    keys = np.arange(100_000)
    few, more = is_sampled(keys, 0.01), is_sampled(keys, 0.1)
    buckets = Lake("memory://sampled", buckets=64).bucket_of(keys[more])

    assert few.mean() == pytest.approx(0.01, rel=0.1)
    assert not (few & ~more).any()
    assert (np.bincount(buckets, minlength=64) > 100).all()
    log = VectorLog(any_database, 0.1, wait_seconds=3600)
    log.record(keys[:1000], now, DEFAULT_VIEWS, _served(1000))
    log.close()
    with any_database.reading() as session:
        found = session.scalars(select(ServedVectorRow.contact_key)).all()
    assert sorted(found) == keys[:1000][more[:1000]].tolist()


def test_a_full_buffer_drops_and_counts(any_database: Database, vectors: VectorLog, now: datetime):
    """A thousand have room; the rest is dropped at once, without waiting and without an error."""
    vectors.record(range(900), now, DEFAULT_VIEWS, _served(900))
    begin = time.perf_counter()
    vectors.record(range(900, 1_200), now, DEFAULT_VIEWS, _served(300))

    assert time.perf_counter() - begin < 0.5
    assert vectors.dropped == 200
    vectors.flush()
    assert _rows(any_database) == vectors.written == 1_000


def test_a_database_that_refuses_costs_vectors_not_answers(
    database: Database, now: datetime, caplog: pytest.LogCaptureFixture
):
    """The table is gone: recording goes on without an error, and what was lost is counted and said."""
    with database.engine.connect() as connection:
        connection.exec_driver_sql("DROP TABLE served_vector")
        connection.commit()
    log = VectorLog(database, 1.0, wait_seconds=0.01)

    with caplog.at_level(logging.WARNING):
        log.record([1, 2], now, DEFAULT_VIEWS, _served(2))
        log.record([1, 2, 3], now, DEFAULT_VIEWS, _served(2))  # not even a fault of ours fails the read
        log.close()

    assert (log.written, log.dropped) == (0, 2)
    assert "2 served vectors were not kept" in caplog.text
    assert "cannot be recorded" in caplog.text


def test_recording_does_not_wait_for_a_writer_that_holds_the_database(database: Database, now: datetime):
    """While another transaction holds SQLite's only lock for a while, a request's vectors are taken within a blink."""
    log = VectorLog(database, 1.0, wait_seconds=0.0)
    seconds = []
    with database.writing():
        for n in range(200):
            begin = time.perf_counter()
            log.record([n], now, DEFAULT_VIEWS, _served(1))
            seconds.append(time.perf_counter() - begin)
            time.sleep(0.001)
    log.close()

    assert sorted(seconds)[197] < 0.005  # p99: half of what a whole read over HTTP may take
    assert (_rows(database), log.dropped) == (200, 0)


def test_old_surplus_and_erased_vectors_are_pruned(any_database: Database, vectors: VectorLog, now: datetime):
    """What is older than 14 days, what is beyond the newest so many, and what an erased contact left."""
    for hours in range(30):
        vectors.record([1, 2, 3], now - timedelta(hours=hours), DEFAULT_VIEWS, _served(3))
    vectors.record([1, 2, 3], now - KEEP - timedelta(seconds=1), DEFAULT_VIEWS, _served(3))
    vectors.flush()
    with any_database.writing() as session:
        session.add(ErasureRow(contact_key=2, requested_at=now, files_done_at=None))
    with any_database.reading() as session:
        assert read_served(session)[1] == {2}

    assert prune_served(any_database, now) == 31 + 2
    assert _rows(any_database) == 60
    assert prune_served(any_database, now, most=20) == 40
    with any_database.reading() as session:
        found, _ = read_served(session)
    assert len(found) == 20
    assert set(found.contact_key.tolist()) == {1, 3}
    assert found.as_of.min() == to_micros(now - timedelta(hours=9))


def test_a_busy_writer_keeps_the_table_bounded_by_itself(
    database: Database, now: datetime, monkeypatch: pytest.MonkeyPatch
):
    """Between two daily rounds too: each so many rows the oldest beyond the limit go."""
    monkeypatch.setattr("service.served_vectors.PRUNE_EVERY", 100)
    monkeypatch.setattr("service.served_vectors.prune_served.__defaults__", (150,))
    log = VectorLog(database, 1.0, wait_seconds=3600)
    for n in range(10):
        log.record(range(100), now + timedelta(seconds=n), DEFAULT_VIEWS, _served(100))
        log.flush()
    log.close()

    assert log.written == 1_000
    assert _rows(database) <= 150


def test_an_erased_contact_is_not_recorded_any_more(any_database: Database, vectors: VectorLog, now: datetime):
    """Neither what waits in memory when it is erased, nor what was kept."""
    vectors.record([1, 2], now, DEFAULT_VIEWS, _served(2))
    vectors.flush()
    vectors.record([1, 2], now + timedelta(seconds=1), DEFAULT_VIEWS, _served(2))
    with any_database.writing() as session:
        session.add(ErasureRow(contact_key=2, requested_at=now, files_done_at=None))
        assert forget_served(session, {2, 99}) == 1
    vectors.flush()

    with any_database.reading() as session:
        assert set(session.scalars(select(ServedVectorRow.contact_key))) == {1}


def test_the_writing_thread_ends_when_there_is_nothing_left(any_database: Database, now: datetime):
    """And begins anew with the next vector."""
    log = VectorLog(any_database, 1.0, wait_seconds=0.01)
    for n in range(3):
        log.record([n], now, DEFAULT_VIEWS, _served(1))
        deadline = time.monotonic() + 20
        while log._thread is not None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert log._thread is None
        assert _rows(any_database) == n + 1


def test_ten_thousand_served_vectors_replay_without_a_mismatch(any_database: Database, tmp_path: Path):
    """Two threads read through a cache, a process appends late, repeated and imported events: not one differs.

    The reads go the way of a request, and every vector goes through the log of served vectors and its table. To show
    that the replay could fail: from the log as it ended, without the place each vector saw, some would differ.
    """
    random = np.random.default_rng(5)
    begin = to_micros(datetime.now(UTC))
    with any_database.writing() as session:
        history = random_events(random, "history", 4_000, CONTACTS, begin, late_days=200)
        append(session, history, received_at=begin, imported=True)
    context = multiprocessing.get_context("spawn")
    started, stop = context.Event(), context.Event()
    url = any_database.url.render_as_string(hide_password=False)
    appender = context.Process(target=append_until, args=(url, CONTACTS, started, stop), daemon=True)
    appender.start()
    assert started.wait(60)

    log, cache, failures = VectorLog(any_database, 1.0, wait_seconds=0.2, capacity=20_000), VectorCache(), []

    def read(seed: int) -> None:
        own = np.random.default_rng(seed)
        try:
            for n in range(600):
                # Mostly one contact, as a request asks; every fifth a batch.
                keys = own.choice(CONTACTS + 5, 40 if n % 5 == 0 else 1, replace=False) + 1
                views = SEND_HOUR_VIEWS if n % 4 == 1 else DEFAULT_VIEWS
                as_of = datetime.now(UTC)
                with any_database.reading() as session:
                    given = served_features(session, keys.tolist(), as_of, views, cache)
                log.record(keys, as_of, views, given)
        except Exception as error:
            failures.append(error)

    readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    stop.set()
    appender.join(60)
    log.close()
    assert (failures, appender.exitcode, log.dropped) == ([], 0, 0)

    lake = Lake(str(tmp_path / "lake"), buckets=16)
    report = check_features(any_database, lake, now=datetime.now(UTC))

    assert report["replay"]["compared"] >= 10_000
    assert (report["replay"]["mismatched"], report["replay"]["skipped"], report["problems"]) == (0, {}, [])
    assert report["replay"]["interval"][1] < 0.0004
    with any_database.reading() as session:
        served, _ = read_served(session)
    assert len(np.unique(served.seq)) > 5
    served.seq[:] = lake.watermark
    assert replay(lake, served, {views.version: views for views in VIEW_SETS.values()}).mismatched > 0
