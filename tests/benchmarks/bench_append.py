"""Events into a log of a million contacts, and on into the lake: events a second, and a sync beside a rebuild.

New events are those of random contacts, with properties, so that they land all over the clustered log. SQLite flushes
at each commit as in service. PostgreSQL runs in a throwaway cluster on this machine where its programs are found.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np

from features.events import NewEvent, append
from features.lake import Lake
from features.tables import to_micros
from service.database import Database
from tests.benchmarks.filled_database import CONTACTS, EVENTS, fill, million_contacts
from tests.benchmarks.measuring import large_files
from tests.benchmarks.synthetic_log import NAMES, PRODUCTS, PROPERTIES, SHARE, user_id

#: Events of a batch, and how many batches of that size.
BATCHES = {1_000: 60, 20_000: 10}
#: Share of the log that arrives between two syncs.
NEW_SHARE = 0.01


def run() -> dict[str, Any]:
    """Events a second by size of batch; seconds of a rebuild and of a sync."""
    report: dict[str, Any] = {"contacts": CONTACTS, "events": EVENTS}
    with large_files() as folder, million_contacts(folder) as (database, seconds):
        report["sqlite"] = {"filling_seconds": round(seconds, 1), **_measure(database)}
    with _postgresql() as server:
        if server is None:
            report["postgresql"] = "initdb and pg_ctl are not on PATH"
        else:
            database = Database(server)
            began = time.perf_counter()
            fill(database)
            report["postgresql"] = {"filling_seconds": round(time.perf_counter() - began, 1), **_measure(database)}
            database.close()
    return report


def _measure(database: Database) -> dict[str, Any]:
    rng = np.random.default_rng()
    with tempfile.TemporaryDirectory() as folder:
        lake = Lake(folder)
        with database.reading() as session:
            began, cpu = time.perf_counter(), time.process_time()
            rebuilt = lake.rebuild(session)
        rebuild = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
        measured: dict[str, Any] = {
            f"at_{size:,}_a_batch": _append(database, rng, size, n) for size, n in BATCHES.items()
        }
        with database.reading() as session:
            lake.sync(session)
        _append(database, rng, int(EVENTS * NEW_SHARE), 1)
        with database.reading() as session:
            began, cpu = time.perf_counter(), time.process_time()
            synced = lake.sync(session)
        sync = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    return {
        **measured,
        "rebuild": {name: round(value, 2) for name, value in rebuild.items()} | {"events": rebuilt.rows},
        "sync": {name: round(value, 2) for name, value in sync.items()} | {"events": synced.rows},
        "sync_over_rebuild": round(sync["seconds"] / rebuild["seconds"], 3),
        "sync_over_rebuild_cpu": round(sync["cpu_seconds"] / rebuild["cpu_seconds"], 3),
    }


def _append(database: Database, rng: np.random.Generator, size: int, batches: int) -> dict[str, float]:
    took = []
    for _ in range(batches):
        now = to_micros(datetime.now(UTC))
        events = _new_events(rng, size, now)
        began = time.perf_counter()
        with database.writing() as session:
            stored = append(session, events, received_at=now).stored
        took.append(time.perf_counter() - began)
        assert stored == size
    p50, p99 = np.quantile(took, [0.5, 0.99]).tolist()
    return {
        "events_per_second": round(size * batches / sum(took)),
        "batch_p50_ms": round(p50 * 1000, 1),
        "batch_p99_ms": round(p99 * 1000, 1),
    }


def _new_events(rng: np.random.Generator, size: int, now: int) -> list[NewEvent]:
    """What comes in over HTTP: random contacts, the last minutes, a client's random ids, properties."""
    keys = rng.integers(1, CONTACTS + 1, size).tolist()
    kinds = rng.choice(len(NAMES), size, p=list(SHARE.values())).tolist()
    letters = rng.integers(0, 2**63, (size, 2)).tolist()
    ago = (rng.integers(0, 600_000, size) * 1_000).tolist()
    events = []
    for key, kind, (high, low), before in zip(keys, kinds, letters, ago, strict=True):
        name = NAMES[kind]
        events.append(
            NewEvent(
                contact_key=key,
                kind=name,
                occurred_at=now - before,
                message_id=f"api/ajs-{high:016x}{low:016x}",
                identity=f"user:{user_id(key)}",
                ref=str(low % PRODUCTS) if "Product" in name else None,
                value_minor=low % 20_000 if "Product" in name or "Order" in name else None,
                human_ppm=900_000 if name in ("Email Opened", "Email Link Clicked") else None,
                properties={what: values[low % len(values)] for what, values in PROPERTIES.get(name, {}).items()},
                timezone="Europe/London",
            )
        )
    return events


@contextmanager
def _postgresql() -> Iterator[str | None]:
    """SQLAlchemy URL of a database in a fresh cluster on loopback, with the server's own settings of durability."""
    initdb, pg_ctl = shutil.which("initdb"), shutil.which("pg_ctl")
    if initdb is None or pg_ctl is None:
        yield None
        return
    user = "postgres" if os.geteuid() == 0 else None  # initdb refuses root
    with (
        tempfile.TemporaryDirectory(prefix="kairos-pg-", ignore_cleanup_errors=True) as folder,
        socket.socket() as probe,
    ):
        if user:
            shutil.chown(folder, user=user)
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
        probe.close()
        data = f"{folder}/data"
        options: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, "user": user}
        subprocess.run([initdb, "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"], **options)
        flags = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c shared_buffers=1GB -c max_wal_size=8GB"
        subprocess.run([pg_ctl, "-D", data, "-w", "-l", f"{folder}/log", "-o", flags, "start"], **options)
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([pg_ctl, "-D", data, "-w", "-m", "immediate", "stop"], **options)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
