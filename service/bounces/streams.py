"""Is a stream doing harm? Too many complaints or hard bounces among its newest sends halt it until it is lifted."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from sqlalchemy import case, func, literal, select, union_all
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.checks import Check
from service.database import Database
from service.halts import halt, halts_in_force, stream_scope
from service.tables import HaltRow, SendRow

log = logging.getLogger(__name__)

STREAMS = ("marketing", "transactional")
#: Complaints are warned of at half of what halts; mailbox providers act at 0.1 to 0.3 %.
COMPLAINTS_WARN, COMPLAINTS_HALT = 0.0005, 0.001
HARD_BOUNCES_HALT = 0.03
#: Judged are the sends of so many days, but at least and at most so many of the newest.
WINDOW_DAYS, LEAST_SENDS, MOST_SENDS = 7, 1_000, 500_000
#: Complaints that the newest `LEAST_SENDS` of a busier week must hold to halt: of fewer the one-sided 95 % lower bound
#: (Clopper & Pearson 1934) lies below the limit, and a busy stream has a great many such windows a week.
LEAST_COMPLAINTS = 4
#: States in which a mail has, or may have, reached its provider.
_LEFT = ("accepted", "unknown", "failed")


@dataclass(frozen=True, slots=True)
class StreamHealth:
    """A stream's newest sends and what came of them."""

    stream: str
    sends: int
    hard_bounces: int
    complaints: int
    #: few (not enough sends to judge) | ok | warn | bad
    state: Literal["few", "ok", "warn", "bad"]
    #: What is too high, with the figures; empty where nothing is.
    says: str

    @property
    def complaint_rate(self) -> float:
        """Complaints per send, 0-1."""
        return self.complaints / self.sends if self.sends else 0.0

    @property
    def hard_bounce_rate(self) -> float:
        """Hard bounces per send, 0-1."""
        return self.hard_bounces / self.sends if self.sends else 0.0


def measure_streams(session: Session, now: datetime) -> list[StreamHealth]:
    """Health of each stream, judged by its sends of the last `WINDOW_DAYS` days and by its newest `LEAST_SENDS`.

    The worse of the two is told: a busy week must not dilute the harm of an hour. Of the newest thousand alone
    complaints count from `LEAST_COMPLAINTS` on.

    Only sends since the last halt of the stream was lifted count: what led to it must not halt the stream again.
    """
    lifted: dict[str, datetime | None] = dict(
        session.execute(
            select(HaltRow.scope, func.max(HaltRow.lifted_at))
            .where(HaltRow.scope.in_([stream_scope(stream) for stream in STREAMS]))
            .group_by(HaltRow.scope)
        ).all()
    )
    found = []
    for stream in STREAMS:
        since = lifted.get(stream_scope(stream))
        latest = _health(stream, *_counts(session, stream, since, LEAST_SENDS))
        recent = max(since, now - timedelta(days=WINDOW_DAYS)) if since else now - timedelta(days=WINDOW_DAYS)
        counts = _counts(session, stream, recent, MOST_SENDS)
        if counts[0] <= LEAST_SENDS:
            found.append(latest)
            continue
        week = _health(stream, *counts)
        is_certain = latest.complaints >= LEAST_COMPLAINTS or latest.hard_bounce_rate >= HARD_BOUNCES_HALT
        found.append(latest if week.state != "bad" and latest.state == "bad" and is_certain else week)
    return found


def judge_streams(session: Session, now: datetime) -> list[StreamHealth]:
    """Health of each stream; one that does harm is halted, and says so in the log; half-way there it is warned of."""
    health = measure_streams(session, now)
    standing = {row.scope for row in halts_in_force(session)}
    for one in health:
        scope = stream_scope(one.stream)
        extra = {
            "stream": one.stream,
            "sends": one.sends,
            "complaints": one.complaints,
            "hard_bounces": one.hard_bounces,
        }
        if one.state == "bad" and scope not in standing:
            halt(session, scope, reason=f"{one.says}; see to the list, then lift it by hand", by="kairos", now=now)
            log.error(
                "the %s stream was halted: %s", one.stream, one.says, extra={"action": "stream_halted", **extra}
            )  # fmt: skip
        elif one.state == "warn":
            log.warning("the %s stream: %s", one.stream, one.says, extra={"action": "stream_warned", **extra})
    return health


def check_streams(database: Database, now: datetime) -> Check:
    """For `kairos doctor`: whether complaints and hard bounces of every stream are low."""
    try:
        with database.reading() as session:
            health = measure_streams(session, now)
    except SQLAlchemyError:
        return Check("streams", False, "cannot be looked up while the database does not answer or has no tables")
    said = "; ".join(f"{one.stream}: {one.says or _figures(one)}" for one in health)
    return Check("streams", all(one.state != "bad" for one in health), said)


def _figures(one: StreamHealth) -> str:
    if one.state == "few":
        return f"{one.sends:,} mails so far, too few to judge (from {LEAST_SENDS:,} on)"
    return f"{one.complaint_rate:.2%} complaints, {one.hard_bounce_rate:.1%} hard bounces of {one.sends:,} mails"


def _counts(session: Session, stream: str, since: datetime | None, most: int) -> tuple[int, int, int]:
    """Sends, hard bounces and complaints among the newest ``most`` since an instant.

    One range of ``ix_send_finished`` a state, newest first; the rows themselves are not read.
    """
    newest = []
    for state in _LEFT:
        query = select(
            SendRow.finished_at.label("at"),
            SendRow.bounce.label("bounce"),
            SendRow.complained_at.label("complained_at"),
        ).where(SendRow.stream == stream, SendRow.state == state, SendRow.finished_at.is_not(None))
        if since is not None:
            query = query.where(SendRow.finished_at > since)
        if state == "failed":  # of those that failed only a refused address is a mail that came back
            query = query.where(SendRow.bounce == "hard")
        newest.append(select(query.order_by(SendRow.finished_at.desc()).limit(most).subquery()))
    together = union_all(*newest).subquery()
    window = select(together).order_by(together.c.at.desc()).limit(most).subquery()
    row = session.execute(
        select(
            func.count(),
            func.coalesce(func.sum(case((window.c.bounce == "hard", literal(1)), else_=0)), 0),
            func.count(window.c.complained_at),
        ).select_from(window)
    ).one()
    return int(row[0]), int(row[1]), int(row[2])


def _health(stream: str, sends: int, hard_bounces: int, complaints: int) -> StreamHealth:
    if sends < LEAST_SENDS:
        return StreamHealth(stream, sends, hard_bounces, complaints, "few", "")
    complaint_rate, bounce_rate = complaints / sends, hard_bounces / sends
    said = []
    if complaint_rate >= COMPLAINTS_WARN:
        share = f"{complaint_rate:.2%}, at most {COMPLAINTS_HALT:.1%}"
        said.append(f"{complaints:,} of {sends:,} mails were marked as spam ({share})")
    if bounce_rate >= HARD_BOUNCES_HALT:
        share = f"{bounce_rate:.1%}, at most {HARD_BOUNCES_HALT:.0%}"
        said.append(f"{hard_bounces:,} of {sends:,} addresses do not exist ({share})")
    is_bad = complaint_rate >= COMPLAINTS_HALT or bounce_rate >= HARD_BOUNCES_HALT
    return StreamHealth(
        stream, sends, hard_bounces, complaints, "bad" if is_bad else "warn" if said else "ok", "; ".join(said)
    )
