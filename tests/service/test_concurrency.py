"""One SQLite file, three processes that write: hits, sends and a scoring at once, none locked out."""

import json
import multiprocessing
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlalchemy import func, insert, select, update

from features.events import NewEvent, append
from features.lake import Lake
from features.tables import to_micros
from features.vocabulary import ORDER_COMPLETED
from service.database import Database
from service.settings import Settings
from service.suppression import Consent, set_consent
from service.tables import ContactRow, HitRow, PredictionRow, SendRow
from service.templates import add_template, bundled_template
from tests.service import writers

HITS_PER_SECOND, SENDS_PER_SECOND = 200, 300


def prepare(home, n_contacts: int, n_sends: int) -> Settings:
    """Contacts with an order each in log and lake, and sends that are due."""
    settings = Settings(home=home, _env_file=None)
    database = Database(settings.database)
    database.upgrade()
    now = datetime.now(UTC)
    with database.writing() as session:
        keys = range(1, n_contacts + 1)
        contact = {"traits": {}, "created_at": now, "updated_at": now}
        session.execute(
            insert(ContactRow),
            [contact | {"contact_key": k, "user_id": f"u{k}", "email": f"u{k}@example.com"} for k in keys],
        )
        at = to_micros(now - timedelta(days=3))
        append(
            session,
            [NewEvent(k, ORDER_COMPLETED, at, f"o{k}", f"user:u{k}", ref=f"o{k}", value_minor=900) for k in keys],
            received_at=to_micros(now),
        )
        add_template(session, bundled_template("plain"), now=now)
        set_consent(session, [Consent(k, "marketing", "subscribed", "test") for k in range(1, n_sends + 1)], now=now)
        row = {
            "stream": "marketing", "topic": "marketing", "template_id": "plain", "template_version": 1,
            "state": "planned", "due_at": now, "not_after": now + timedelta(hours=2), "timezone": "UTC",
            "assigned_local_hour": 9, "hour_propensity": 1.0, "hour_reason": "fixed", "is_holdout": False,
            "decided_at": now, "lease_token": 0, "attempts": 0, "created_at": now,
        }  # fmt: skip
        session.execute(
            insert(SendRow),
            [row | {"send_id": k, "intent_key": f"x:{k}:1", "contact_key": k} for k in range(1, n_sends + 1)],
        )
        session.execute(update(SendRow).values(finished_at=None))
    with database.reading() as session:
        Lake(settings.lake, settings.buckets).sync(session)
    database.close()
    return settings


def write_at_once(home, seconds: float, n_contacts: int) -> tuple[Database, dict]:
    """Run the three writers at once; returns the database and what each counted and how long its writes took."""
    n_sends = min(n_contacts, int(seconds * SENDS_PER_SECOND))
    settings = prepare(home, n_contacts, n_sends)
    context = multiprocessing.get_context("spawn")
    jobs = {
        "hits": (writers.track, (str(home), seconds, HITS_PER_SECOND)),
        "sends": (writers.send, (str(home), seconds, SENDS_PER_SECOND)),
        "scores": (writers.score_everyone, (str(home),)),
    }
    begin = time.monotonic()
    running = {
        name: context.Process(target=job, args=(*arguments, str(home / f"{name}.json")))
        for name, (job, arguments) in jobs.items()
    }
    for process in running.values():
        process.start()
    for name, process in running.items():
        process.join(timeout=seconds * 4 + 120)
        assert process.exitcode == 0, f"the writer of {name} failed"
    report = {name: json.loads((home / f"{name}.json").read_text()) for name in jobs}
    return Database(settings.database), report | {"elapsed": time.monotonic() - begin, "n_sends": n_sends}


def check_nothing_lost(database: Database, report: dict, seconds: float, n_contacts: int) -> None:
    """What each writer counted is in the file: all of it, once."""
    with database.reading() as session:
        hits = session.scalar(select(func.count()).select_from(HitRow))
        accepted = session.scalar(select(func.count()).where(SendRow.state == "accepted"))
        scored = session.scalar(select(func.count()).select_from(PredictionRow))
    database.close()

    assert report["hits"]["count"] == hits == int(seconds * HITS_PER_SECOND)
    assert report["sends"]["count"] == accepted == report["n_sends"]
    assert report["scores"]["count"] == scored == n_contacts


def test_hits_sends_and_a_scoring_share_one_file(tmp_path):
    """In three seconds of all three nothing is lost and nobody is told that the database is locked."""
    database, report = write_at_once(tmp_path, 3, 5_000)
    check_nothing_lost(database, report, 3, 5_000)


@pytest.mark.slow
def test_for_a_minute_no_writer_waits_long(tmp_path):
    """60 s of 200 hits/s, 300 sends/s and a scoring of 100 k contacts: the 99th percentile of a write is < 100 ms."""
    database, report = write_at_once(tmp_path, 60, writers.N_SCORED)
    check_nothing_lost(database, report, 60, writers.N_SCORED)
    waits = {name: report[name]["seconds"] for name in ("hits", "sends", "scores")}
    for name, seconds in waits.items():
        p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1000
        print(
            f"{name}: {len(seconds)} writes, p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {max(seconds) * 1000:.0f} ms"
        )
    print(f"elapsed {report['elapsed']:.0f} s")

    assert np.quantile(np.concatenate(list(waits.values())), 0.99) < 0.1
