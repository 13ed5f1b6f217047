"""Long work that was asked for: rows that wait, are taken by one worker at a time, and say what became of them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.database import database_now
from service.errors import NotFound
from service.tables import CursorRow, JobRow

#: Work of minutes to hours; one at a time in the whole installation. The other kinds take seconds and wait for nobody.
HEAVY = ("train", "score", "hygiene")
QUICK = ("promote", "rollback")
#: A job whose worker died is begun again; one that kills its worker twice is given up.
ATTEMPTS = 2
LOCK = "jobs"


@dataclass(frozen=True, slots=True)
class Job:
    """A job that a worker holds."""

    job_id: str
    kind: str
    parameters: Mapping[str, Any]
    #: Which attempt it is: who holds an earlier one can no longer write.
    attempt: int


def enqueue(
    session: Session, kind: str, parameters: Mapping[str, Any], *, now: datetime, job_id: str | None = None
) -> str:
    """Id of a job that waits to be done; with the ``job_id`` of one that exists, nothing is added."""
    if kind not in (*HEAVY, *QUICK):
        raise ValueError(f"{kind!r} is no kind of job; choose one of {', '.join((*HEAVY, *QUICK))}")
    job_id = job_id or f"job_{secrets.token_hex(8)}"
    dialect = sqlite if session.connection().dialect.name == "sqlite" else postgresql
    values = {
        "job_id": job_id, "kind": kind, "parameters": dict(parameters), "state": "queued", "created_at": now,
        "attempts": 0,
    }  # fmt: skip
    session.execute(dialect.insert(JobRow).values(**values).on_conflict_do_nothing())
    return job_id


def is_waiting(session: Session, kinds: Collection[str]) -> bool:
    """Whether a job of these kinds may be there to be taken."""
    over = (JobRow.state == "running") & (JobRow.lease_until < database_now(session))
    found = select(JobRow.job_id).where(JobRow.kind.in_(kinds), or_(JobRow.state == "queued", over)).limit(1)
    return session.scalar(found) is not None


def take(session: Session, kinds: Collection[str], *, now: datetime, lease_seconds: float) -> Job | None:
    """The oldest waiting job of these kinds, held until its lease ends; None if there is none, or heavy work goes on.

    Jobs of dead workers are put back on the way, or end as failed at their last attempt.
    """
    _one_at_a_time(session)
    clock = database_now(session)
    over = (JobRow.state == "running") & (JobRow.lease_until < clock)
    session.execute(
        update(JobRow)
        .where(over, JobRow.attempts >= ATTEMPTS)
        .values(state="failed", finished_at=now, message=f"its worker ended while it ran, {ATTEMPTS} times")
    )
    session.execute(update(JobRow).where(over).values(state="queued"))
    if set(kinds) & set(HEAVY):
        going_on = select(JobRow.job_id).where(JobRow.state == "running", JobRow.kind.in_(HEAVY)).limit(1)
        if session.scalar(going_on) is not None:
            return None
    oldest = select(JobRow).where(JobRow.state == "queued", JobRow.kind.in_(kinds))
    row = session.scalars(oldest.order_by(JobRow.created_at, JobRow.job_id).limit(1)).first()
    if row is None:
        return None
    row.state, row.started_at, row.attempts = "running", now, row.attempts + 1
    row.lease_until = clock + timedelta(seconds=lease_seconds)
    session.flush()
    return Job(row.job_id, row.kind, row.parameters, row.attempts)


def _one_at_a_time(session: Session) -> None:
    """Lock what all takers lock, to the end of the transaction."""
    dialect = sqlite if session.connection().dialect.name == "sqlite" else postgresql
    session.execute(dialect.insert(CursorRow).values(name=LOCK, position=0).on_conflict_do_nothing())
    session.execute(update(CursorRow).where(CursorRow.name == LOCK).values(position=CursorRow.position + 1))


def hold(session: Session, job: Job, *, lease_seconds: float) -> bool:
    """Renew the lease; False if the job is no longer ours."""
    until = database_now(session) + timedelta(seconds=lease_seconds)
    return _write(session, job, lease_until=until)


def finish(session: Session, job: Job, state: str, message: str, *, now: datetime) -> bool:
    """Write what became of the job (``done`` or ``failed``); False if it is no longer ours."""
    return _write(session, job, state=state, message=message[:4000], finished_at=now, lease_until=None)


def put_back(session: Session, job: Job) -> bool:
    """Let the job wait again, as if it had not been begun: its worker stops."""
    return _write(session, job, state="queued", attempts=job.attempt - 1, lease_until=None)


def _write(session: Session, job: Job, **values: Any) -> bool:
    mine = (JobRow.job_id == job.job_id) & (JobRow.state == "running") & (JobRow.attempts == job.attempt)
    return session.execute(update(JobRow).where(mine).values(**values).returning(JobRow.job_id)).scalar() is not None


def find_job(session: Session, job_id: str) -> JobRow:
    """The job's row.

    Raises
    ------
    NotFound
        If there is none of that id.
    """
    row = session.get(JobRow, job_id)
    if row is None:
        raise NotFound(f"there is no job {job_id[:60]!r}; who asks for one is told its id")
    return row
