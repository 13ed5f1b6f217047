"""Laws of halting a stream that does harm."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, text

from features.tables import allocate
from service.bounces import StreamHealth, judge_streams
from service.clock import SimulatedClock
from service.database import Database
from service.halts import halts_in_force, lift
from service.settings import Settings
from service.tables import SendRow
from service.worker import Worker

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def leave(
    database: Database,
    n: int,
    *,
    hard: int = 0,
    complaints: int = 0,
    before: timedelta = timedelta(hours=1),
    stream: str = "marketing",
    state: str = "accepted",
) -> None:
    """``n`` mails that left ``before`` now, the first of them bounced hard, the last complained of."""
    at = NOW - before
    with database.writing() as session:
        first = allocate(session, "send_id", n)
        rows = [
            {
                "send_id": first + i, "intent_key": f"s/{first + i}", "contact_key": 1, "stream": stream, "topic": "n",
                "template_id": "t", "template_version": 1, "state": state, "due_at": at, "not_after": at,
                "timezone": "UTC", "assigned_local_hour": 9, "hour_propensity": 1.0, "hour_reason": "best",
                "is_holdout": False, "is_canary": False, "lease_token": 0, "attempts": 1, "created_at": at,
                "finished_at": at + timedelta(microseconds=i), "bounce": "hard" if i < hard else None,
                "complained_at": at if i >= n - complaints else None,
            }
            for i in range(n)
        ]  # fmt: skip
        session.execute(insert(SendRow), rows)


def judge(database: Database, now: datetime = NOW) -> tuple[StreamHealth, list[str]]:
    with database.writing() as session:
        marketing = judge_streams(session, now)[0]
        return marketing, [row.scope for row in halts_in_force(session)]


@pytest.mark.parametrize(
    ("n", "hard", "complaints", "state"),
    [
        (999, 500, 500, "few"),
        (1_000, 29, 0, "ok"),
        (1_000, 30, 0, "bad"),
        (2_000, 0, 1, "warn"),
        (2_001, 0, 1, "ok"),
        (1_000, 0, 1, "bad"),
        (2_000, 59, 1, "warn"),
    ],
)
def test_a_stream_is_halted_from_a_thousand_sends_on(
    n: int, hard: int, complaints: int, state: str, database: Database
) -> None:
    """0.1 % complaints or 3 % hard bounces halt it, 0.05 % complaints are warned of, fewer sends prove nothing."""
    leave(database, n, hard=hard, complaints=complaints)

    health, halted = judge(database)

    assert (health.sends, health.hard_bounces, health.complaints, health.state) == (n, hard, complaints, state)
    assert halted == (["stream:marketing"] if state == "bad" else [])


def test_the_window_is_seven_days_or_the_newest_thousand(any_database: Database) -> None:
    """A quiet week is judged by older sends too; a busy one by itself, while its newest thousand do no worse."""
    leave(any_database, 700, before=timedelta(days=20), hard=700)
    leave(any_database, 900, before=timedelta(days=1))
    assert (judge(any_database)[0].sends, judge(any_database)[0].hard_bounces) == (1_000, 100)

    leave(any_database, 200, before=timedelta(hours=1), hard=2)
    assert (judge(any_database)[0].sends, judge(any_database)[0].hard_bounces) == (1_100, 2)


def test_only_mails_that_left_count(database: Database) -> None:
    """Of those that failed the refused addresses do; other streams, held-out and cancelled sends do not."""
    leave(database, 1_000)
    leave(database, 400, state="failed", hard=40)
    leave(database, 5_000, state="cancelled", hard=5_000)
    leave(database, 900, stream="transactional", hard=900)

    health, halted = judge(database)

    assert (health.sends, health.hard_bounces, halted) == (1_040, 40, ["stream:marketing"])


def test_a_lifted_stream_is_judged_by_what_leaves_from_then_on(
    any_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """The harm that halted it does not halt it again, not even when it is told late; new harm does."""
    caplog.set_level(logging.WARNING)
    leave(any_database, 2_000, complaints=5)
    assert judge(any_database)[1] == ["stream:marketing"]
    assert judge(any_database)[1] == ["stream:marketing"]
    assert [record.action for record in caplog.records] == ["stream_halted"]
    with any_database.writing() as session:
        assert lift(session, "stream:marketing", by="me", now=NOW)
        session.execute(text("UPDATE send SET complained_at = 1"))

    health, halted = judge(any_database, NOW + timedelta(hours=1))
    assert (health.state, health.sends, halted) == ("few", 0, [])

    leave(any_database, 1_500, before=-timedelta(minutes=5), hard=60)
    health, halted = judge(any_database, NOW + timedelta(hours=2))
    assert (health.sends, halted) == (1_500, ["stream:marketing"])


@pytest.mark.parametrize(("hard", "complaints", "state"), [(30, 0, "bad"), (29, 0, "ok"), (0, 4, "bad"), (0, 3, "ok")])
def test_a_busy_week_does_not_dilute_the_harm_of_an_hour(
    hard: int, complaints: int, state: str, database: Database
) -> None:
    """The newest thousand are judged beside the week; of their complaints three may still be chance."""
    leave(database, 20_000, before=timedelta(days=2))
    leave(database, 1_000, hard=hard, complaints=complaints)

    health, halted = judge(database)

    assert (health.state, bool(halted)) == (state, state == "bad")
    assert health.sends == (1_000 if state == "bad" else 21_000)


def test_the_rows_themselves_are_not_read(database: Database) -> None:
    """The index holds all that is asked: this is what keeps it fast beside ten million events."""
    leave(database, 10)
    with database.reading() as session:
        plan = session.execute(
            text(
                "EXPLAIN QUERY PLAN SELECT finished_at, bounce, complained_at FROM send WHERE stream = 'marketing' AND "
                "state = 'accepted' AND finished_at > 5 ORDER BY finished_at DESC LIMIT 10"
            )
        ).all()

    assert "USING COVERING INDEX ix_send_finished" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


def test_the_worker_looks_once_a_minute(database: Database, settings: Settings) -> None:
    """Harm that comes in is acted on by the next look; between two looks nothing is counted."""
    import asyncio

    clock = SimulatedClock(NOW)
    worker = Worker(database, settings, clock)

    def halted() -> list[str]:
        asyncio.run(worker.work())
        with database.reading() as session:
            return [row.scope for row in halts_in_force(session)]

    assert halted() == []
    leave(database, 1_000, hard=40)
    clock.move_to(NOW + timedelta(seconds=59))
    assert halted() == []
    clock.move_to(NOW + timedelta(seconds=60))
    assert halted() == ["stream:marketing"]
