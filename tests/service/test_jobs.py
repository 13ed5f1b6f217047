"""Laws of the queue of jobs: one holder at a time, nothing lost with a worker, done in a process of its own."""

from __future__ import annotations

import shutil
import threading
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from service.clock import SimulatedClock
from service.database import Database
from service.job_queue import ATTEMPTS, HEAVY, QUICK, Job, enqueue, find_job, finish, hold, put_back, take
from service.job_runner import JobRunner, enqueue_due
from service.jobs import serve_version
from service.settings import Settings
from service.tables import JobRow, ServingModelRow
from tests.service.scored import write_churn

KINDS = (*HEAVY, *QUICK)


def _add(database: Database, now: datetime, *kinds: str) -> list[str]:
    with database.writing() as session:
        return [
            enqueue(session, kind, {"name": "churn"}, now=now + timedelta(seconds=n)) for n, kind in enumerate(kinds)
        ]


def _take(database: Database, now: datetime, lease_seconds: float = 60.0, kinds: tuple[str, ...] = KINDS) -> Job | None:
    with database.writing() as session:
        return take(session, kinds, now=now, lease_seconds=lease_seconds)


def _state(database: Database, job_id: str) -> str:
    with database.reading() as session:
        return find_job(session, job_id).state


def test_heavy_work_goes_on_one_at_a_time_and_quick_work_does_not_wait(any_database: Database, now: datetime) -> None:
    """Oldest first; a training keeps a scoring waiting, and no promotion."""
    first, second, third = _add(any_database, now, "train", "score", "promote")
    held = _take(any_database, now, kinds=HEAVY)
    assert held is not None
    assert held.job_id == first
    assert _take(any_database, now, kinds=HEAVY) is None
    quick = _take(any_database, now, kinds=QUICK)
    assert quick is not None
    assert quick.job_id == third
    with any_database.writing() as session:
        assert finish(session, held, "done", "well", now=now)
    following = _take(any_database, now, kinds=HEAVY)
    assert following is not None
    assert following.job_id == second


def test_a_job_of_a_dead_worker_is_begun_again_and_given_up_at_last(any_database: Database, now: datetime) -> None:
    """The lease over, another takes it; who held it can no longer write; after two deaths it has failed."""
    (job_id,) = _add(any_database, now, "train")
    dead = _take(any_database, now, lease_seconds=-1)
    alive = _take(any_database, now, lease_seconds=-1)
    assert dead is not None
    assert alive is not None
    assert (dead.attempt, alive.attempt) == (1, ATTEMPTS)
    with any_database.writing() as session:
        assert not finish(session, dead, "done", "late", now=now)
        assert not hold(session, dead, lease_seconds=60)
        assert hold(session, alive, lease_seconds=-1)
    assert _take(any_database, now) is None
    assert _state(any_database, job_id) == "failed"


def test_a_job_that_was_put_back_is_as_if_not_begun(any_database: Database, now: datetime) -> None:
    (job_id,) = _add(any_database, now, "train")
    for _ in range(ATTEMPTS + 2):
        held = _take(any_database, now)
        assert held is not None
        assert held.attempt == 1
        with any_database.writing() as session:
            assert put_back(session, held)
    assert _state(any_database, job_id) == "queued"


def test_workers_that_race_never_take_the_same_job(any_database: Database, now: datetime) -> None:
    """Six threads, twenty quick jobs: each is taken once."""
    ids = _add(any_database, now, *["promote"] * 20)
    taken: list[str] = []

    def work() -> None:
        while (job := _take(any_database, now)) is not None:
            taken.append(job.job_id)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken) == sorted(ids)


def test_the_same_id_is_one_job_and_an_unknown_kind_is_refused(any_database: Database, now: datetime) -> None:
    for _ in range(2):
        with any_database.writing() as session:
            enqueue(session, "score", {}, now=now, job_id="score-1")
    with any_database.reading() as session:
        assert len(session.scalars(select(JobRow)).all()) == 1
    with any_database.writing() as session, pytest.raises(ValueError, match="no kind of job"):
        enqueue(session, "dance", {}, now=now)


@pytest.fixture
def served(settings: Settings, empty_sqlite: Path, tmp_path: Path, now: datetime) -> tuple[Database, Settings]:
    """A home in which version 2 of churn serves after version 1; its registry is away."""
    settings = Settings(home=settings.home, MLFLOW_TRACKING_URI="file:///nowhere", _env_file=None)
    settings.home.mkdir(parents=True)
    shutil.copy(empty_sqlite, settings.home / "kairos.db")
    database = Database(settings.database, is_durable=False)
    with database.writing() as session:
        for version in (1, 2):
            serve_version(session, "churn", version, write_churn(tmp_path / f"v{version}", version, now), now=now)
    return database, settings


def test_jobs_are_done_in_processes_of_their_own(served: tuple[Database, Settings], now: datetime) -> None:
    """One rolls back, one fails with its reason, which names what is wrong; the runner itself changes nothing."""
    database, settings = served
    with database.writing() as session:
        good = enqueue(session, "rollback", {"name": "churn"}, now=now)
        bad = enqueue(session, "promote", {"name": "churn", "version": 7}, now=now + timedelta(seconds=1))
    runner = JobRunner(database, settings.model_copy(update={"score_hours": 0}), SimulatedClock(now))
    runner.look()
    runner.wait()

    with database.reading() as session:
        done, failed = find_job(session, good), find_job(session, bad)
        serving = session.get_one(ServingModelRow, "churn")
    assert (done.state, done.message, done.finished_at) == ("done", "churn version 1 serves again", now)
    assert (failed.state, failed.lease_until) == ("failed", None)
    assert "MLflow no longer takes a folder" in str(failed.message)
    assert (serving.version, serving.previous_version) == (1, 2)
    database.close()


def test_a_worker_that_stops_lets_the_job_wait_for_the_next(served: tuple[Database, Settings], now: datetime) -> None:
    """The process ends at once, and nothing is counted against the job."""
    database, settings = served
    with database.writing() as session:
        job_id = enqueue(session, "rollback", {"name": "churn"}, now=now)
    runner = JobRunner(database, settings.model_copy(update={"score_hours": 0}), SimulatedClock(now))
    runner.look()
    while _state(database, job_id) == "queued":
        time.sleep(0.01)
    runner.stop()

    with database.reading() as session:
        job = find_job(session, job_id)
    assert (job.state, job.attempts) == ("queued", 0)
    database.close()


def test_scoring_and_training_fall_due_by_themselves(served: tuple[Database, Settings], now: datetime) -> None:
    """A day after the last scoring, a week after promotion or the last try; 0 switches each off; asked twice, once."""
    database, settings = served
    assert enqueue_due(database, settings, now=now) == [f"score-{now:%Y%m%d%H}"]
    assert enqueue_due(database, settings, now=now) == []
    assert enqueue_due(database, settings, now=now + timedelta(hours=23)) == []
    later = now + timedelta(days=7)
    assert enqueue_due(database, settings, now=later) == [f"score-{later:%Y%m%d%H}", f"train-churn-{later:%Y%m%d}"]
    assert enqueue_due(database, settings, now=later + timedelta(hours=1)) == []
    with database.reading() as session:
        assert find_job(session, f"train-churn-{later:%Y%m%d}").parameters == {"name": "churn", "horizon_days": 2}
    off = settings.model_copy(update={"score_hours": 0, "retrain_days": 0})
    assert enqueue_due(database, off, now=now + timedelta(days=99)) == []
    with database.writing() as session:
        session.execute(update(JobRow).values(state="failed"))
    database.close()
