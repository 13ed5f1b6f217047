"""One contact's vector now, with 1 M contacts in SQLite: in process, over HTTP, and beside it Feast's SDK on SQLite.

The contacts asked about are drawn evenly, so that nearly every one is met for the first time: what the cache saves is
measured by asking the same ones again. Over HTTP a real server process answers one request after another on one
connection. Feast runs in an environment of its own (`make feast`), which `KAIROS_FEAST_PYTHON` or `.venv-feast` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from features.lake import Lake
from features.online import VectorCache, online_features
from features.views import DEFAULT_VIEWS
from service.database import Database
from service.demo import free_port, write_contacts, write_events
from service.jobs import train_model
from service.keys import create_key
from service.settings import Settings
from tests.benchmarks.filled_database import CONTACTS, EVENTS, million_contacts
from tests.benchmarks.measuring import child, large_files, latency, peak_rss_mb
from tests.benchmarks.synthetic_log import user_id
from training.simulation import World

CALLS, BATCHES, BATCH = 5_000, 300, 100
ROOT = Path(__file__).parents[2]


def run() -> dict[str, Any]:
    """Milliseconds at the median and the 99th percentile."""
    with large_files() as folder, million_contacts(folder) as (database, seconds):
        report = {
            "contacts": CONTACTS,
            "events": EVENTS,
            "filling_seconds": round(seconds, 1),
            "columns": len(DEFAULT_VIEWS.names),
            "in_process": _in_process(database),
            "http": _over_http(database),
        }
    return {**report, "feast": _feast()}


def _in_process(database: Database) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    now = datetime.now(UTC)
    keys = rng.integers(1, CONTACTS + 1, CALLS).tolist()
    batches = rng.integers(1, CONTACTS + 1, (BATCHES, BATCH)).tolist()

    def read(some: list[int], cache: VectorCache | None = None) -> None:
        with database.reading() as session:
            online_features(session, some, now, DEFAULT_VIEWS, cache)

    cache = VectorCache()
    return {
        "one_contact": latency([lambda key=key: read([key]) for key in keys]),
        "one_contact_first_through_cache": latency([lambda key=key: read([key], cache) for key in keys], warm=0),
        "one_contact_again_from_cache": latency([lambda key=key: read([key], cache) for key in keys]),
        "hundred_contacts": latency([lambda some=some: read(some) for some in batches]),
        "peak_rss_mb": peak_rss_mb(),
    }


def _over_http(database: Database) -> dict[str, Any]:
    now = datetime.now(UTC)
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(
            home=Path(home), database_url=str(database.url), public_url=f"http://127.0.0.1:{port}", _env_file=None
        )
        _train_models(database, settings, now)
        with database.writing() as session:
            _, secret = create_key(session, f"bench {now:%H%M%S}", ["read"], now)
        users = [user_id(key) for key in np.random.default_rng(2).integers(1, CONTACTS + 1, CALLS).tolist()]
        with (
            _server(settings, port),
            httpx.Client(
                base_url=settings.public_url, headers={"Authorization": f"Bearer {secret}"}, timeout=30
            ) as client,
        ):

            def ask(path: str) -> None:
                client.get(path).raise_for_status()

            return {
                "nothing": latency([lambda: ask("/healthz")] * CALLS),
                "vector": latency([lambda user=user: ask(f"/v1/contacts/{user}/vector") for user in users]),
                "predictions": latency([lambda user=user: ask(f"/v1/contacts/{user}/predictions") for user in users]),
            }


def _train_models(database: Database, settings: Settings, now: datetime) -> None:
    """Models of a small world; they serve from ``database``, whose contacts they are then asked about."""
    with tempfile.TemporaryDirectory() as folder:
        small = Database(f"sqlite:///{folder}/small.db", is_durable=False)
        small.upgrade()
        world = World.generate(2_000, 120, 7, start=now - timedelta(days=120))
        write_contacts(small, world)
        write_events(small, world.history(now), now=now, imported=True)
        lake = Lake(f"{folder}/lake", settings.buckets)
        with small.reading() as session:
            lake.sync(session)
        small.close()
        for name in ("churn", "conversion", "send_hour"):
            train_model(database, lake, settings, name, as_of=now, now=now)


@contextmanager
def _server(settings: Settings, port: int) -> Iterator[None]:
    """The API as `kairos serve --no-worker` runs it, in a process of its own."""
    environment = {
        **os.environ,
        "KAIROS_HOME": str(settings.home),
        "KAIROS_DATABASE_URL": settings.database,
        "KAIROS_PUBLIC_URL": settings.public_url,
        "KAIROS_LOG_LEVEL": "WARNING",
    }
    command = [sys.executable, "-m", "service.cli", "serve", "--no-worker", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                httpx.get(f"{settings.public_url}/readyz").raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _feast() -> dict[str, Any]:
    python = os.environ.get("KAIROS_FEAST_PYTHON") or str(ROOT / ".venv-feast" / "bin" / "python")
    if not Path(python).exists():
        return {
            "installed": False,
            "how": "`make feast` makes .venv-feast (Feast holds pandas below 3, so it needs an environment of its own)",
        }
    with tempfile.TemporaryDirectory() as folder:
        return child("rival_feast", folder, python=python)


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
