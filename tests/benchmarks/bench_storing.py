"""Scores into SQLite: rows a second, and how long each chunk keeps other writers waiting.

A million contacts are scored twice (the second time every row is replaced), flushed at each commit as in service, while
another process writes one small row every 20 ms and times its waits. CPU seconds tell the cost where the machine is
shared.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Event
from typing import Any

import numpy as np
from sqlalchemy import update

from features.tables import CounterRow
from service.database import Database
from service.jobs import store_scores
from tests.benchmarks.measuring import large_files
from training.scoring import Scores, percentile_ranks

CONTACTS = 1_000_000


def run(contacts: int = CONTACTS) -> dict[str, Any]:
    """Rows a second of a first scoring and of one that replaces it, and the milliseconds that writers waited."""
    rng = np.random.default_rng(0)
    report: dict[str, Any] = {"contacts": contacts}
    with large_files() as folder:
        path = folder / "storing.db"
        url = f"sqlite:///{path}"
        database = _TimedDatabase(url)
        database.upgrade()
        for name in ("first", "replacing"):
            probability = rng.beta(1, 4, contacts)
            scores = Scores(np.arange(1, contacts + 1), probability, percentile_ranks(probability))
            database.held.clear()
            as_of = datetime(2026, 3, 2, tzinfo=UTC) + timedelta(days=name == "replacing")
            with _another_writer(url) as waits:
                wall, cpu = time.perf_counter(), time.process_time()
                store_scores(database, "churn", 1, scores, as_of=as_of)
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            report[name] = {
                "rows_per_second": round(contacts / wall),
                "rows_per_cpu_second": round(contacts / cpu),
                "chunks": len(database.held),
                "held_ms": _quantiles(database.held),
                "other_writer_waited_ms": _quantiles(waits),
            }
        database.close()
        for file in folder.glob("storing.db*"):
            file.unlink()
    return report


def _quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p99, most = (np.quantile(seconds, [0.5, 0.99, 1.0]) * 1000).tolist()
    return {"p50": round(p50, 1), "p99": round(p99, 1), "max": round(most, 1)}


class _TimedDatabase(Database):
    """Remembers how long each writing block took."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.held: list[float] = []

    @contextmanager
    def writing(self):
        begun = time.perf_counter()
        with super().writing() as session:
            yield session
        self.held.append(time.perf_counter() - begun)


def _write(url: str, stop: Event, waits: Any) -> None:
    database, took = Database(url), []
    while not stop.wait(0.02):
        begun = time.perf_counter()
        with database.writing() as session:
            session.execute(update(CounterRow).where(CounterRow.name == "link_id").values(value=CounterRow.value + 1))
        took.append(time.perf_counter() - begun)
    database.close()
    waits.send(took)


@contextmanager
def _another_writer(url: str):
    """A process that writes meanwhile; its waits in seconds are in the list after the block."""
    context = multiprocessing.get_context("spawn")
    stop, (receiver, sender) = context.Event(), context.Pipe(duplex=False)
    process = context.Process(target=_write, args=(url, stop, sender))
    process.start()
    waits: list[float] = []
    yield waits
    stop.set()
    waits += receiver.recv()
    process.join()


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
