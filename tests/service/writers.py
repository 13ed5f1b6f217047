"""The three writers of the concurrency proof, each a process of its own, with every write timed."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy.orm import Session

from features.lake import Lake
from features.views import DEFAULT_VIEWS
from service.clock import SystemClock
from service.database import Database
from service.flow.deliver import claim, deliver
from service.flow.render import gather, render
from service.hits import Hit, HitBuffer
from service.jobs import store_scores
from service.links import LinkBook
from service.providers.base import provider_from_url
from service.settings import Settings
from service.sink import MailSink
from training.calibration import Calibration
from training.estimators import RidgeLogistic
from training.scoring import score
from training.serving import ModelCard, load_model, write_model

N_SCORED = 100_000


class TimedDatabase(Database):
    """Remembers how long each writing block took, waiting for the lock and committing included."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.seconds: list[float] = []

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """As in `Database`, timed."""
        begin = time.perf_counter()
        with super().writing() as session:
            yield session
        self.seconds.append(time.perf_counter() - begin)


def track(home: str, seconds: float, per_second: int, answer: str) -> None:
    """Tracking hits at an even pace, each answered when it is on disk."""
    database = TimedDatabase(Settings(home=Path(home), _env_file=None).database)

    async def hits() -> int:
        buffer, tasks, begin = HitBuffer(database), [], time.perf_counter()
        for number in range(int(seconds * per_second)):
            await asyncio.sleep(max(0.0, begin + number / per_second - time.perf_counter()))
            hit = Hit(number % 1000 + 1, None, "GET", "Mozilla/5.0 (X11) Firefox/140.0", datetime.now(UTC))
            tasks.append(asyncio.ensure_future(buffer.add(hit)))
        await asyncio.gather(*tasks)
        await buffer.close()
        return len(tasks)

    _answer(answer, database, asyncio.run(hits()))


def send(home: str, seconds: float, per_second: int, answer: str) -> None:
    """Planned sends claimed, rendered and handed to a real SMTP sink at an even pace."""

    async def sends(database: Database, settings: Settings) -> int:
        provider = provider_from_url(settings.smtp_url, home=settings.home, connections=settings.smtp_connections)
        links, accepted, begin = LinkBook(database), 0, time.perf_counter()
        while accepted < seconds * per_second:
            await asyncio.sleep(max(0.0, begin + accepted / per_second - time.perf_counter()))
            with database.writing() as session:
                taken = claim(session, now=datetime.now(UTC), limit=100, lease_seconds=60, settings=settings)
            if not taken.sends:
                break
            with database.reading() as session:
                inputs = gather(session, taken.sends)
            emails = render(inputs, now=datetime.now(UTC), settings=settings, number_links=links)
            receipts = await deliver(taken.sends, emails, provider, database, clock=SystemClock(), settings=settings)
            accepted += receipts.accepted
        return accepted

    with MailSink(keep=False) as sink:
        settings = Settings(home=Path(home), smtp_url=sink.url, frequency_cap=0, _env_file=None)
        database = TimedDatabase(settings.database)
        accepted = asyncio.run(sends(database, settings))
        if sink.count != accepted:
            raise AssertionError(f"the sink took {sink.count} mails, the ledger says {accepted}")
    _answer(answer, database, accepted)


def score_everyone(home: str, answer: str) -> None:
    """A scoring of every contact: vectors from the lake, a served model, stored scores."""
    settings = Settings(home=Path(home), _env_file=None)
    database = TimedDatabase(settings.database)
    rng = np.random.default_rng(7)
    X = rng.gamma(1.0, 10.0, (500, len(DEFAULT_VIEWS.names)))
    card = ModelCard(
        "conversion", "outcome", "logistic", "proof", DEFAULT_VIEWS.name, DEFAULT_VIEWS.version, 30, "an order",
        datetime.now(UTC).isoformat(), datetime.now(UTC).isoformat(), {},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        learned = RidgeLogistic.fit(X, rng.integers(0, 2, 500))
        write_model(Path(folder), card, DEFAULT_VIEWS, learned, Calibration(1.0, 0.0), X)
        now = datetime.now(UTC)
        scores = score(Lake(settings.lake, settings.buckets), load_model(Path(folder)), now)
        store_scores(database, "conversion", 1, scores, as_of=now)
    _answer(answer, database, len(scores))


def _answer(path: str, database: TimedDatabase, count: int) -> None:
    Path(path).write_text(json.dumps({"count": count, "seconds": database.seconds}))
    database.close()
