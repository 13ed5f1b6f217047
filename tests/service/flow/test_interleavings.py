"""In whatever order claims, departures, crashes, pauses and unsubscribes fall: no mail too many, none to who left."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections import Counter, defaultdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from service.clock import SimulatedClock
from service.database import Database
from service.flow.deliver import Claimed, claim, deliver, recover
from service.flow.render import Email
from service.halts import EVERYTHING, halt, lift
from service.providers.base import Receipt
from service.settings import Settings
from service.suppression import unsubscribe
from service.tables import SendRow
from tests.service.mailing import plan, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
CAP = 2


class Recorder:
    """A provider that takes every message and remembers when; ``crash`` ends the sender with the message on its way."""

    connections, pause_seconds = 2, 0.0

    def __init__(self) -> None:
        self.left: list[int] = []
        self.crash = False

    def connection(self) -> Recorder:
        return self

    async def __aenter__(self) -> Recorder:
        return self

    async def __aexit__(self, *_error: object) -> None:
        return None

    async def check(self, sender: str, recipient: str) -> Receipt:
        return Receipt("accepted", 250, "ok")

    async def transmit(self, message: bytes) -> Receipt:
        self.left.append(int(message))
        if self.crash:
            raise asyncio.CancelledError
        return Receipt("accepted", 250, "ok")

    async def abandon(self) -> None:
        return None


def mail(send: Claimed) -> Email:
    return Email(send.send_id, "f@k.example", "t@k.example", "s", "", "", "<m@k>", (), 0, str(send.send_id).encode())


def interleave(database: Database, settings: Settings, seed: int, steps: int) -> Counter[str]:
    """One random history over a few contacts; asserts the laws at every departure and at the end."""
    draw = random.Random(seed)
    now, relay = NOW, Recorder()
    keys = subscribe(database, 3, now=now, prefix=f"s{seed}x")
    contact: dict[int, int] = {}
    held: list[tuple[Claimed, ...]] = []
    gone_since: dict[int, int] = {}  # contact → departures before its unsubscribe was committed
    stopped_since: int | None = None
    done: Counter[str] = Counter()

    def departures() -> None:
        departed = defaultdict(int)
        for place, send_id in enumerate(relay.left):
            key = contact[send_id]
            assert place < gone_since.get(key, len(relay.left)), "a mail left after its contact's unsubscribe"
            departed[key] += 1
        assert max(departed.values(), default=0) <= CAP, "a contact got more mails than the cap"
        assert max(Counter(relay.left).values(), default=0) <= 1, "a mail left twice"
        assert stopped_since is None or len(relay.left) == stopped_since, "a mail left while everything was stopped"

    for _ in range(steps):
        step = draw.choice(("plan", "claim", "claim", "send", "send", "crash", "expire", "unsubscribe", "stop", "wait"))
        done[step] += 1
        if step == "plan":
            key = draw.choice(keys)
            [send_id] = plan(database, [key], now=now)
            contact[send_id] = key
        elif step == "claim":
            with database.writing() as session:
                taken = claim(session, now=now, limit=draw.randint(1, 3), lease_seconds=60, settings=settings)
            if taken.sends:
                held.append(taken.sends)
        elif step in ("send", "crash") and held:
            sends = held.pop(draw.randrange(len(held)))
            relay.crash = step == "crash"
            try:
                asyncio.run(
                    deliver(
                        sends,
                        [mail(send) for send in sends],
                        relay,
                        database,
                        clock=SimulatedClock(now),
                        settings=settings,
                    )
                )
            except asyncio.CancelledError:
                done["crashed"] += 1
            departures()
        elif step == "expire":  # every lease ends: who holds a claim is fenced off from now on
            with database.writing() as session:
                session.execute(update(SendRow).values(lease_until=datetime(2020, 1, 1, tzinfo=UTC)))
                recover(session, now=now)
        elif step == "unsubscribe" and contact:
            send_id = draw.choice(list(contact))
            with database.writing() as session:
                unsubscribe(session, [send_id], source="test", now=now)
            gone_since.setdefault(contact[send_id], len(relay.left))
        elif step == "stop":
            with database.writing() as session:
                if stopped_since is None:
                    halt(session, EVERYTHING, reason="test", by="test", now=now)
                    stopped_since = len(relay.left)
                else:
                    lift(session, EVERYTHING, by="test", now=now)
                    stopped_since = None
        elif step == "wait":
            now += timedelta(seconds=30)
    departures()
    with database.reading() as session:
        rows = session.execute(select(SendRow.send_id, SendRow.state).where(SendRow.send_id.in_(contact))).all()
    state = {row.send_id: row.state for row in rows}
    assert {send_id for send_id, one in state.items() if one == "accepted"} <= set(relay.left)
    assert all(state[send_id] in ("accepted", "unknown", "attempting") for send_id in relay.left)
    return done


def _run(empty: Path, settings: Settings, steps_wanted: int, seed: int) -> Counter[str]:
    done: Counter[str] = Counter()
    strict = settings.model_copy(update={"frequency_cap": CAP})
    while done.total() < steps_wanted:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "k.db"
            shutil.copy(empty, path)
            database = Database(f"sqlite:///{path}", is_durable=False)
            done += interleave(database, strict, seed, 60)
            database.close()
        seed += 1
    return done


def test_no_order_of_events_sends_a_mail_too_many(empty_sqlite: Path, settings: Settings) -> None:
    """The short version: 360 random steps."""
    done = _run(empty_sqlite, settings, 360, seed=1)
    assert min(done[step] for step in ("claim", "send", "crashed", "expire", "unsubscribe", "stop")) >= 1


@pytest.mark.slow
def test_in_ten_thousand_interleavings_no_mail_is_too_many(empty_sqlite: Path, settings: Settings) -> None:
    """10,000 random steps in histories of 60."""
    done = _run(empty_sqlite, settings, 10_000, seed=1_000)
    assert done["send"] > 500
