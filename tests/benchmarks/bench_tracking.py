"""Opens and clicks: requests a second of one server process beside one that does nothing, and hits settled a second."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from features.tables import allocate
from service.app import create_app
from service.database import Database
from service.demo import free_port
from service.hits import settle
from service.links import link_ids, sign_click, sign_open, sign_unsubscribe
from service.settings import Settings
from service.tables import ContactRow, HitRow, SendRow
from tests.benchmarks.measuring import child

SENT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
REQUESTS, CONNECTIONS = 20_000, 64
CONTACTS, HITS = 300_000, 1_000_000
AGENTS = [
    *(f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_{n} like Mac OS X) AppleWebKit/605.1.{n}" for n in range(400)),
    "Mozilla/5.0",
    "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)",
    "python-requests/2.32",
]


def run() -> dict[str, Any]:
    """Each kind of request in the same run, in turns; then a million hits, four fifths of them opens."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), _env_file=None)
        database = Database(settings.database)
        database.upgrade()
        _fill(database)
        report = _requests(settings, database, Path(folder))
        report["settle"] = _settle(database)
        database.close()
    for name in ("pixel", "click"):
        report[f"{name}_over_nothing"] = round(report[name]["per_second"] / report["nothing"]["per_second"], 2)
    return report


def _fill(database: Database) -> None:
    contacts, sends = range(1, CONTACTS + 1), 20_000
    for start in range(0, CONTACTS, sends):
        with database.writing() as session:
            session.execute(
                insert(ContactRow),
                [
                    {
                        "contact_key": key,
                        "user_id": f"c{key}",
                        "email": f"c{key}@shop.example",
                        "traits": {},
                        "created_at": SENT,
                        "updated_at": SENT,
                    }
                    for key in contacts[start : start + sends]
                ],
            )
            session.execute(insert(SendRow), [_send(key) for key in contacts[start : start + sends]])


def _send(key: int) -> dict[str, Any]:
    return {
        "send_id": key, "intent_key": f"bench/{key}", "contact_key": key, "campaign_id": "bench", "stream": "marketing",
        "topic": "marketing", "template_id": "offer", "template_version": 1, "state": "accepted", "due_at": SENT,
        "not_after": SENT + timedelta(days=1), "timezone": "Europe/London", "assigned_local_hour": 9,
        "hour_propensity": 1.0, "hour_reason": "best", "is_holdout": False, "is_canary": False, "decided_at": SENT,
        "lease_token": 1, "attempts": 1, "link_count": 5, "created_at": SENT, "finished_at": SENT,
    }  # fmt: skip


def _requests(settings: Settings, database: Database, folder: Path) -> dict[str, Any]:
    with database.writing() as session:
        [link] = link_ids(session, ["https://shop.example/new"]).values()
    key = settings.signing_key
    lines = {
        "nothing": ["GET /healthz"] * REQUESTS,
        "pixel": [f"GET /o/{sign_open(key, send)}" for send in range(1, REQUESTS + 1)],
        "click": [f"GET /c/{sign_click(key, send, link)}" for send in range(1, REQUESTS + 1)],
        "one_click": [f"POST /u/{sign_unsubscribe(key, send)}" for send in range(1, REQUESTS // 10 + 1)],
    }
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(settings, port), daemon=True)
    server.start()
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in lines}
    try:
        _wait_for(port)
        for _ in range(3):
            for name, some in lines.items():
                path = folder / f"{name}.txt"
                path.write_text("\n".join(some))
                few = 8 if name == "one_click" else CONNECTIONS
                rounds[name].append(child("http_load", str(port), str(few), str(path)))
    finally:
        server.terminate()
        server.join()
    best = {name: max(found, key=lambda one: one["per_second"]) for name, found in rounds.items()}
    return {"requests": REQUESTS, "connections": CONNECTIONS, **best}


def serve(settings: Settings, port: int) -> None:
    """One server process, as `kairos serve --no-worker` runs it."""
    import uvicorn

    app = create_app(settings, Database(settings.database))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


def _wait_for(port: int) -> None:
    import httpx

    for _ in range(300):
        try:
            httpx.get(f"http://127.0.0.1:{port}/healthz").raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.1)
    raise RuntimeError(f"the server on port {port} did not start within 30 seconds")


def _settle(database: Database) -> dict[str, float]:
    """Hits spread over four hours after the mails left."""
    rng = np.random.default_rng(7)
    sends = rng.integers(1, CONTACTS + 1, HITS).tolist()
    links = np.where(rng.random(HITS) < 0.8, 0, rng.integers(1, 6, HITS)).tolist()
    seconds = np.sort(rng.uniform(1, 4 * 3600, HITS)).tolist()
    agents = rng.integers(0, len(AGENTS), HITS).tolist()
    with database.writing() as session:
        first = allocate(session, "hit_id", HITS)
    for start in range(0, HITS, 50_000):
        with database.writing() as session:
            session.execute(
                insert(HitRow),
                [
                    {
                        "hit_id": first + place,
                        "send_id": sends[place],
                        "link_id": links[place] or None,
                        "method": "GET",
                        "user_agent": AGENTS[agents[place]],
                        "network": f"{sends[place]:032x}",
                        "known_network": None,
                        "is_trap": False,
                        "at": SENT + timedelta(seconds=seconds[place]),
                        "settled": False,
                    }
                    for place in range(start, min(start + 50_000, HITS))
                ],
            )
    now, settled, events, slices = datetime.now(UTC) + timedelta(minutes=5), 0, 0, []
    began, cpu = time.perf_counter(), time.process_time()
    while True:
        since = time.perf_counter()
        with database.writing() as session:
            done = settle(session, now=now)
        if not done.hits:
            break
        slices.append(time.perf_counter() - since)
        settled, events = settled + done.hits, events + done.events
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    tenth = max(1, len(slices) // 10)
    return {
        "hits": settled,
        "events": events,
        "hits_per_second": round(settled / wall),
        "hits_per_cpu_second": round(settled / cpu),
        # A cost that grew with what was settled before would show here.
        "last_tenth_over_first": round(sum(slices[-tenth:]) / sum(slices[:tenth]), 2),
        "longest_transaction_ms": round(max(slices) * 1000),
    }
