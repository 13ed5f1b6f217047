"""Laws of the composed check and of the daily round: what is wrong is said with a remedy, and sending goes on."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy.orm import Session

from features.checks import sample_vectors
from features.events import DAY_MICROS, NewEvent, append
from features.lake import Lake, SyncReport
from features.online import served_features
from features.snapshots import list_snapshots
from features.tables import to_micros
from features.views import DEFAULT_VIEWS
from features.vocabulary import ORDER_COMPLETED
from service.clock import SimulatedClock
from service.database import Database
from service.feature_checks import check_features, daily_round, latest_check
from service.jobs import serve_version
from service.served_vectors import VectorLog
from service.settings import Settings
from service.tables import FeatureCheckRow, ServedVectorRow
from service.worker import Daily, Worker, run
from training.calibration import Calibration
from training.estimators import RidgeLogistic
from training.serving import EVERYONE, REFERENCE_FILE, ModelCard, load_model, write_model

CONTACTS = 400


def _orders(random: np.random.Generator, name: str, count: int, begin: int, end: int) -> list[NewEvent]:
    return [
        NewEvent(
            int(random.integers(1, CONTACTS + 1)),
            ORDER_COMPLETED,
            int(random.integers(begin, end)),
            f"{name}-{n}",
            "user:1",
            ref=f"{name}-{n}",
            value_minor=int(random.integers(500, 9_000)),
        )
        for n in range(count)
    ]


@pytest.fixture
def lake(any_database: Database, settings: Settings, now: datetime) -> Lake:
    """Half a year of 400 contacts' orders in the log; the lake is still empty."""
    at = to_micros(now)
    with any_database.writing() as session:
        append(
            session,
            _orders(np.random.default_rng(1), "o", 1_500, at - 180 * DAY_MICROS, at),
            received_at=at,
            imported=True,
        )
    return Lake(settings.lake, buckets=4)


@pytest.fixture
def model_folder(any_database: Database, lake: Lake, tmp_path: Path, now: datetime) -> Path:
    """A model that serves, with the reference of the day before yesterday."""
    with any_database.reading() as session:
        lake.sync(session)
    views, trained_at = DEFAULT_VIEWS, now - timedelta(days=2)
    X = sample_vectors(lake, views, to_micros(trained_at), lambda X: EVERYONE.contains(X, views.names))
    card = ModelCard(
        "conversion", "outcome", "logistic", "test", views.name, views.version, 30, "an order",
        trained_at.isoformat(), trained_at.isoformat(), {}, EVERYONE, 1,
    )  # fmt: skip
    learned = RidgeLogistic.fit(X, np.arange(len(X)) % 2)
    write_model(tmp_path / "model", card, views, learned, Calibration(1.0, 0.0), X)
    with any_database.writing() as session:
        serve_version(session, "conversion", 1, tmp_path / "model", now=now)
    return tmp_path / "model"


def _read(database: Database, keys: list[int], as_of: datetime) -> None:
    log = VectorLog(database, 1.0)
    with database.reading() as session:
        log.record(keys, as_of, DEFAULT_VIEWS, served_features(session, keys, as_of, DEFAULT_VIEWS))
    log.close()


def test_a_store_that_is_well_has_no_problem(any_database: Database, lake: Lake, model_folder: Path, now: datetime):
    """Lake brought up, no drift two days after training, every served vector as the lake has it; kept as JSON."""
    _read(any_database, list(range(1, 50)), now)

    report = check_features(any_database, lake, now=now)

    assert (report["ok"], report["problems"]) == (True, [])
    assert report["replay"]["compared"] == 49
    model = report["models"]["conversion"]
    assert (model["vectors"], model["note"]) == (model["reference_vectors"], None)
    assert set(model["features"]) == set(DEFAULT_VIEWS.names)
    assert report["view_sets"]["default"]["missing_shares"]["days_since_click"] == 1.0
    with any_database.reading() as session:
        kept = latest_check(session)
    assert kept is not None
    assert (kept.checked_at, kept.report) == (now, json.loads(json.dumps(report, allow_nan=False)))


def test_drift_from_the_day_of_training_is_found_and_says_what_to_do(
    any_database: Database, lake: Lake, model_folder: Path, now: datetime
):
    """Everybody buys three times in a day: frequency and recency are no longer what the model knew."""
    at = to_micros(now)
    with any_database.writing() as session:
        append(session, _orders(np.random.default_rng(2), "rush", 1_200, at - DAY_MICROS, at), received_at=at)

    report = check_features(any_database, lake, now=now)

    assert not report["ok"]
    assert report["models"]["conversion"]["features"]["orders_7d"]["shifted"]
    (problem,) = report["problems"]
    assert "conversion 1" in problem
    assert "`kairos train conversion`" in problem


def test_a_model_of_before_references_and_a_broken_one_are_told_apart(
    any_database: Database, lake: Lake, model_folder: Path, now: datetime
):
    """Without a reference there is a note; files that do not load are a problem."""
    checksums = json.loads((model_folder / "checksums.json").read_text())
    (model_folder / REFERENCE_FILE).unlink()
    del checksums[REFERENCE_FILE]
    (model_folder / "checksums.json").write_text(json.dumps(checksums))

    assert load_model(model_folder).reference is None
    older = check_features(any_database, lake, now=now)
    (model_folder / "golden.json").write_text("{}")
    broken = check_features(any_database, lake, now=now + timedelta(seconds=1))

    assert older["ok"]
    assert "kairos train conversion" in older["models"]["conversion"]["note"]
    assert [problem for problem in broken["problems"] if "golden.json was altered" in problem]


def test_an_altered_vector_and_a_lake_left_behind_are_problems(any_database: Database, lake: Lake, now: datetime):
    """Each says how many, and what to run."""
    _read(any_database, [1, 2, 3], now)
    at = to_micros(now)
    with any_database.writing() as session:
        append(session, _orders(np.random.default_rng(3), "late", 5, at - DAY_MICROS, at), received_at=at)
        row = session.get_one(ServedVectorRow, (2, now, DEFAULT_VIEWS.version))
        row.vector = bytes([row.vector[0] ^ 1]) + row.vector[1:]

    report = check_features(any_database, lake, now=now + timedelta(hours=2))

    assert (report["replay"]["compared"], report["replay"]["mismatched"]) == (3, 1)
    behind, altered = report["problems"]
    assert "2:00:00" in behind
    assert "`kairos worker`" in behind
    assert "1 of 3 served vectors" in altered
    assert "`kairos features verify`" in altered


def test_a_damaged_lake_is_reported_not_raised(any_database: Database, lake: Lake, settings: Settings, now: datetime):
    """A file cut short: the check is stored, with the file and the remedy in it."""
    with any_database.reading() as session:
        lake.sync(session)
    file = next(Path(settings.lake).glob("bucket=*/*.parquet"))
    file.write_bytes(file.read_bytes()[:100])

    report = daily_round(any_database, lake, settings, now=now)

    assert report is not None
    assert not report["ok"]
    assert all(str(file) in problem and "kairos features rebuild" in problem for problem in report["problems"])
    with any_database.reading() as session:
        assert latest_check(session).report == report


def test_a_sync_of_another_in_the_midst_of_a_check_is_no_problem(any_database: Database, lake: Lake, now: datetime):
    """The lake then reaches further than the log that the check began to read; that is no other database."""

    class Shared(Lake):
        """Brought up by another, to where the log has gone on, just before it is brought up here."""

        def sync(self, session: Session) -> SyncReport:
            late = _orders(np.random.default_rng(3), "late", 5, to_micros(now) - DAY_MICROS, to_micros(now))
            with any_database.writing() as other:
                append(other, late, received_at=to_micros(now))
            with any_database.reading() as other:
                lake.sync(other)
            return super().sync(session)

    report = check_features(any_database, Shared(lake.url, buckets=4), now=now)

    assert (lake.rows, report["problems"]) == (1_505, [])


def test_the_daily_round_is_made_once_a_business_day(any_database: Database, lake: Lake, tmp_path: Path, now: datetime):
    """By one of several workers; its snapshot is as of local midnight, and old ones go after fourteen days."""
    settings = Settings(home=tmp_path / "home", timezone="America/New_York", _env_file=None)
    reports: list[Any] = []

    def worker() -> None:
        reports.append(daily_round(any_database, Lake(settings.lake, buckets=4), settings, now=now))

    threads = [threading.Thread(target=worker) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sum(report is not None for report in reports) == 1
    (snapshot,) = list_snapshots(lake)
    midnight = now.replace(hour=5, minute=0)  # New York, in winter
    assert (snapshot.version, snapshot.as_of) == (DEFAULT_VIEWS.version, to_micros(midnight))
    assert daily_round(any_database, lake, settings, now=midnight + timedelta(hours=23, minutes=59)) is None
    for day in range(1, 17):
        assert daily_round(any_database, lake, settings, now=midnight + timedelta(days=day)) is not None
    assert len(list_snapshots(lake)) == 14


def test_a_round_that_fails_leaves_sending_alone_and_is_tried_again(
    any_database: Database, lake: Lake, settings: Settings, now: datetime, caplog: pytest.LogCaptureFixture
):
    """The table of served vectors is gone: logged, the worker's rounds go on, two hours later it is tried anew."""
    with any_database.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE served_vector RENAME TO away")
        connection.commit()
    clock = SimulatedClock(now)

    with caplog.at_level(logging.ERROR):
        assert run(any_database, settings, clock, threading.Event(), lake=lake, until_idle=True) == 2
    assert "daily round failed" in caplog.text
    with any_database.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO served_vector")
        connection.commit()
    daily = Daily(any_database, settings, clock, lake)
    for hours, done in ((1, False), (2, True), (3, True)):
        clock.move_to(now + timedelta(hours=hours))
        daily.look()
        daily.wait()
        with any_database.reading() as session:
            assert (latest_check(session) is not None) == done
    with any_database.reading() as session:
        assert latest_check(session).checked_at == now + timedelta(hours=2)


def test_a_damaged_lake_delays_no_round_of_the_worker(
    any_database: Database, lake: Lake, settings: Settings, now: datetime, caplog: pytest.LogCaptureFixture
):
    """It is logged and tried again after 2, 4, 8 minutes; once it is mended, the lake follows the log."""
    clock = SimulatedClock(now)
    worker = Worker(any_database, settings, clock, lake)
    lake.store.write("manifest.json", b"{}")
    failed = []
    for minute in range(20):
        clock.move_to(now + timedelta(minutes=minute))
        with caplog.at_level(logging.ERROR):
            asyncio.run(worker.work())
        if "lake could not be brought up" in caplog.text:
            failed.append(minute)
        caplog.clear()
    assert failed == [0, 2, 6, 14]
    lake.store.remove("manifest.json")
    clock.move_to(now + timedelta(minutes=29))
    asyncio.run(worker.work())

    assert lake.rows == 1_500


def test_a_long_sync_of_the_lake_holds_no_mail(any_database: Database, lake: Lake, settings: Settings, now: datetime):
    """While another process has the lake, round after round is done; the sync follows when it lets go."""
    clock = SimulatedClock(now)
    worker = Worker(any_database, settings, clock, lake)

    async def rounds() -> None:
        with Lake(settings.lake, buckets=4).store.exclusive():
            for minute in range(30):
                clock.move_to(now + timedelta(minutes=minute))
                await worker.work()
            assert lake.rows == 0

    asyncio.run(rounds())

    assert lake.rows == 1_500


def test_reports_are_kept_for_ninety_days(any_database: Database, lake: Lake, now: datetime):
    """An older one goes with the next check."""
    with any_database.writing() as session:
        for days in (10, 91):
            session.add(FeatureCheckRow(checked_at=now - timedelta(days=days), report={}))

    check_features(any_database, lake, now=now)

    with any_database.reading() as session:
        assert session.get(FeatureCheckRow, now - timedelta(days=91)) is None
        assert session.get(FeatureCheckRow, now - timedelta(days=10)) is not None
