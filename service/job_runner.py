"""Jobs done beside the sending: each in a process of its own, so that a training neither slows nor stops a send.

As a program, ``python -m service.job_runner JOB_ID ATTEMPT NOW`` does one job and says on its last line what it did.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, select

from service.clock import Clock
from service.database import Database
from service.job_queue import HEAVY, QUICK, Job, enqueue, finish, hold, is_waiting, put_back, take
from service.settings import Settings
from service.tables import JobRow, ScoringRow, ServingModelRow
from training.serving import read_card

log = logging.getLogger(__name__)

#: The queue is looked at this often, and for what falls due by itself that often.
LOOK_SECONDS = 2.0
SCHEDULE_INTERVAL = timedelta(minutes=15)
LEASE_SECONDS = 120.0
HOLD_EVERY_SECONDS = 20.0
POLL_SECONDS = 0.2


class JobRunner:
    """Takes jobs from the queue and lets processes do them, one heavy and one quick at a time.

    A job whose process ends badly is ``failed`` with the reason. One whose worker dies ends with it, and another worker
    begins it again when the lease is over.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock) -> None:
        self.database = database
        self.settings = settings
        self.clock = clock
        self._stop = threading.Event()
        self._looked_at: float | None = None
        self._scheduled_at: datetime | None = None
        self._threads: dict[tuple[str, ...], threading.Thread] = {}

    def look(self) -> None:
        """Begin what waits, and put into the queue what is due by itself; returns soon, and raises nothing."""
        if self._looked_at is not None and time.monotonic() - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = time.monotonic()
        try:
            self._look()
        except Exception:
            log.exception("the queue of jobs could not be looked at", extra={"action": "jobs_not_looked_at"})

    def _look(self) -> None:
        now = self.clock.now()
        if self._scheduled_at is None or now - self._scheduled_at >= SCHEDULE_INTERVAL:
            self._scheduled_at = now
            enqueue_due(self.database, self.settings, now=now)
        for kinds in (HEAVY, QUICK):
            thread = self._threads.get(kinds)
            if thread is not None and thread.is_alive():
                continue
            with self.database.reading() as session:
                waiting = is_waiting(session, kinds)
            if waiting:
                self._threads[kinds] = threading.Thread(target=self._work, args=(kinds,), name="jobs", daemon=True)
                self._threads[kinds].start()

    def wait(self) -> None:
        """Wait until what was begun is done."""
        for thread in list(self._threads.values()):
            thread.join()

    def stop(self) -> None:
        """End the processes; their jobs wait for the next worker."""
        self._stop.set()
        self.wait()

    def _work(self, kinds: Collection[str]) -> None:
        while not self._stop.is_set():
            try:
                with self.database.writing() as session:
                    job = take(session, kinds, now=self.clock.now(), lease_seconds=LEASE_SECONDS)
                if job is None:
                    return
                self._do(job)
            except Exception:
                log.exception("a job could not be run", extra={"action": "job_not_run"})
                return

    def _do(self, job: Job) -> None:
        log.info("job %s (%s) begins", job.job_id, job.kind, extra={"action": "job_begun", "job_id": job.job_id})
        with subprocess.Popen(
            [sys.executable, "-m", "service.job_runner", job.job_id, str(job.attempt), self.clock.now().isoformat()],
            env=os.environ | self.settings.environment(),
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,  # its end tells the process that we are no more
            text=True,
        ) as process:
            outcome = self._watch(job, process)
        if outcome is None:
            return
        state, message = outcome
        with self.database.writing() as session:
            finish(session, job, state, message, now=self.clock.now())
        log.log(
            logging.INFO if state == "done" else logging.ERROR,
            "job %s (%s) %s: %s", job.job_id, job.kind, state, message,
            extra={"action": f"job_{state}", "job_id": job.job_id},
        )  # fmt: skip

    def _watch(self, job: Job, process: subprocess.Popen[str]) -> tuple[str, str] | None:
        """State and message once the process has ended; None if the job is no longer ours."""
        assert process.stdout is not None
        lines: list[str] = []
        reader = threading.Thread(target=lambda stream: lines.extend(stream), args=(process.stdout,), daemon=True)
        reader.start()
        held_at = time.monotonic()
        while process.poll() is None:
            if self._stop.wait(POLL_SECONDS):
                process.kill()
                with self.database.writing() as session:
                    put_back(session, job)
                return None
            if time.monotonic() - held_at >= HOLD_EVERY_SECONDS:
                held_at = time.monotonic()
                with self.database.writing() as session:
                    is_ours = hold(session, job, lease_seconds=LEASE_SECONDS)
                if not is_ours:
                    process.kill()
                    return None
        reader.join()
        said = [line.strip() for line in lines if line.strip()]
        if process.returncode == 0:
            return "done", said[-1] if said else "done"
        if process.returncode == 1 and said:
            return "failed", said[-1]
        return "failed", f"its process ended with code {process.returncode}; the worker's log may say why"


# --- What falls due by itself ------------------------------------------------------------------------------------


def enqueue_due(database: Database, settings: Settings, *, now: datetime) -> list[str]:
    """Put a scoring into the queue when the last one is ``score_hours`` old, a training when a model is too old.

    Each gets an id that names its day or hour, so that several workers add it once. Returns the ids that are due.
    """
    due: list[tuple[str, str, dict[str, Any]]] = []
    with database.reading() as session:
        rows = session.scalars(select(ServingModelRow).order_by(ServingModelRow.name)).all()
        if not rows:
            return []
        asked = session.scalar(select(func.max(JobRow.created_at)).where(JobRow.kind == "score"))
        scored = session.scalar(select(func.max(ScoringRow.as_of)).where(ScoringRow.role == "served"))
        trained = session.scalars(select(JobRow).where(JobRow.kind == "train")).all()
    if settings.score_hours:
        last = max((at for at in (scored, asked) if at is not None), default=None)
        if last is None or now - last >= timedelta(hours=settings.score_hours):
            due.append((f"score-{now:%Y%m%d%H}", "score", {}))
    if settings.retrain_days:
        for row in rows:
            attempts = [job.created_at for job in trained if job.parameters.get("name") == row.name]
            if now - max([row.promoted_at, *attempts]) >= timedelta(days=settings.retrain_days):
                # The same question again: what the horizon was when a person chose the model, it stays.
                parameters = {"name": row.name, "horizon_days": _horizon_of(row)}
                due.append((f"train-{row.name[:20]}-{now:%Y%m%d}", "train", parameters))
    if due:
        with database.writing() as session:
            for job_id, kind, parameters in due:
                enqueue(session, kind, parameters, now=now, job_id=job_id)
    return [job_id for job_id, _, _ in due]


def _horizon_of(row: ServingModelRow) -> int | None:
    try:
        return read_card(Path(row.path)).horizon_days
    except (OSError, ValueError, KeyError, TypeError):
        return None


# --- One job, in its own process ---------------------------------------------------------------------------------


def do_job(database: Database, settings: Settings, kind: str, parameters: dict[str, Any], *, now: datetime) -> str:
    """Do one job; a sentence on what was done."""
    from features.engine import use_engine
    from features.lake import Lake
    from service.jobs import promote_model, rollback_model, score_round, train_model

    if kind == "promote":
        promote_model(database, settings, parameters["name"], parameters["version"], now=now)
        return f"{parameters['name']} version {parameters['version']} serves"
    if kind == "rollback":
        version = rollback_model(database, settings, parameters["name"], now=now)
        return f"{parameters['name']} version {version} serves again"
    if kind == "hygiene":
        from service.hygiene import look, rules_of

        look_id = look(database, settings, rules_of(**parameters["rules"]), now=now, by=parameters["by"])
        return f"look {look_id} is there to be applied or not"
    use_engine(settings.engine, settings.engine_address)
    lake = Lake(settings.lake, settings.buckets)
    if kind == "score":
        told = score_round(database, lake, now=now, only=parameters.get("models"))
        return "; ".join(f"{name}: {said}" for name, said in told.items()) or "no model serves"
    with database.reading() as session:
        lake.sync(session)
    trained = train_model(
        database, lake, settings, parameters["name"], as_of=now, now=now, horizon_days=parameters.get("horizon_days")
    )
    if trained.promoted and settings.score_hours:
        with database.writing() as session:
            enqueue(session, "score", {"models": [trained.name]}, now=now)
    fate = "serves" if trained.promoted else "does not serve"
    return f"{trained.name} version {trained.version} ({trained.rung}) {fate}: {trained.gate}"


def _end_with_parent() -> None:
    """End when the worker that began us is gone: it holds our standard input open, and writes nothing to it."""
    sys.stdin.read()
    os._exit(3)


def main(job_id: str, attempt: int, now: datetime) -> int:
    """Do the job of this id, if this attempt still holds it; the exit code."""
    from service.job_queue import find_job
    from service.logs import configure

    threading.Thread(target=_end_with_parent, daemon=True).start()
    settings = Settings()
    configure(settings.log_level)
    database = Database(settings.database)
    try:
        with database.reading() as session:
            row = find_job(session, job_id)
        if (row.state, row.attempts) != ("running", attempt):
            print(f"job {job_id} is not ours any more")  # noqa: T201
            return 1
        print(do_job(database, settings, row.kind, row.parameters, now=now), flush=True)  # noqa: T201
        return 0
    except Exception as error:
        log.exception("job %s failed", job_id, extra={"action": "job_failed", "job_id": job_id})
        print(" ".join(f"{error}".split()) or type(error).__name__, flush=True)  # noqa: T201
        return 1
    finally:
        database.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), datetime.fromisoformat(sys.argv[3])))
