"""A look through a million contacts, the health of streams beside a million sends, and raw bounces read and logged.

The name server is one on this machine that knows every domain, so that its answers cost what ours cost. SQLite flushes
at each commit as in service.
"""

from __future__ import annotations

import resource
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert, text

from features.tables import to_micros
from service.bounces import judge_streams, measure_streams, read_report, record_reports
from service.database import Database
from service.hygiene import apply_look, look, revert_look, rules_of
from service.links import sign_bounce
from service.settings import Settings
from service.tables import ContactRow, SendRow
from tests.service.bounces.corpus import OURS, postfix

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
CONTACTS = 1_000_000
EVENTS_EACH = 4
REPORTS = 2_000
BATCH = 50_000


def run() -> dict[str, Any]:
    """Contacts a second of a look, seconds of a judgement, reports a second."""
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as folder:
        settings = Settings(home=Path(folder), _env_file=None)
        database = Database(f"sqlite:///{folder}/kairos.db")
        database.upgrade()
        _fill(database)
        report: dict[str, Any] = {"contacts": CONTACTS, "sends": CONTACTS, "events": CONTACTS * EVENTS_EACH}
        began = time.perf_counter()
        rules = rules_of([name for name in rules_of().findings if name != "no_mail_server"])
        look_id = look(database, settings, rules, now=NOW, by="bench")
        seconds = time.perf_counter() - began
        report["look"] = {"seconds": round(seconds, 2), "contacts_per_second": round(CONTACTS / seconds)}
        began = time.perf_counter()
        with database.writing() as session:
            done = apply_look(session, look_id, pepper="p", now=NOW)
        report["apply"] = {"seconds": round(time.perf_counter() - began, 2), "suppressed": done["suppressed"]}
        began = time.perf_counter()
        with database.writing() as session:
            revert_look(session, look_id, pepper="p", now=NOW)
        report["revert"] = {"seconds": round(time.perf_counter() - began, 2)}
        judged = []
        for _ in range(5):
            began = time.perf_counter()
            with database.writing() as session:
                health = judge_streams(session, NOW)
            judged.append(time.perf_counter() - began)
        began = time.perf_counter()
        with database.reading() as session:
            measure_streams(session, NOW)
        report["streams"] = {
            "judged_sends": health[0].sends,
            "judge_milliseconds": round(1_000 * sorted(judged)[2], 1),
            "measure_milliseconds": round(1_000 * (time.perf_counter() - began), 1),
        }
        report["reports"] = _reports(database)
        report["peak_rss_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        database.close()
    return report


def _reports(database: Database) -> dict[str, Any]:
    raws = []
    for send_id in range(1, REPORTS + 1):
        address = f"name{send_id - 1}@{_domain(send_id - 1)}"
        mail = OURS.format(sender="x@y.example", address=address, message_id=f"<{send_id}@x.example>", send_id=send_id)
        raws.append(postfix(f"b+{sign_bounce('key', send_id)}@back.example", mail, address).encode())
    began = time.perf_counter()
    reports = [read_report(raw) for raw in raws]
    read = time.perf_counter() - began
    began = time.perf_counter()
    for start in range(0, REPORTS, 500):
        with database.writing() as session:
            record_reports(session, reports[start : start + 500], signing_key="key", pepper="p", now=NOW)
    return {
        "read_per_second": round(REPORTS / read),
        "recorded_per_second": round(REPORTS / (time.perf_counter() - began)),
    }


def _domain(place: int) -> str:
    # Half of the list at large providers, the rest spread as the domains of businesses are.
    return ("gmail.com", "outlook.com", "gmial.com")[place % 3] if place % 2 else f"shop{place % 20_011}.example"


def _fill(database: Database) -> None:
    rng = np.random.default_rng(7)
    old = NOW - timedelta(days=400)
    with database.writing() as session:
        connection = session.connection()
        for start in range(0, CONTACTS, BATCH):
            places = range(start, min(start + BATCH, CONTACTS))
            connection.execute(
                insert(ContactRow.__table__),
                [
                    {
                        "contact_key": place + 1, "user_id": f"u{place}", "email": f"name{place}@{_domain(place)}",
                        "traits": {}, "created_at": old, "updated_at": old,
                    }
                    for place in places
                ],
            )  # fmt: skip
            ages = np.sort(rng.integers(0, 7 * 86_400, len(places)))[::-1]
            connection.execute(
                insert(SendRow.__table__),
                [
                    {
                        "send_id": place + 1, "intent_key": f"i{place}", "contact_key": place + 1,
                        "stream": "marketing", "topic": "news", "template_id": "t", "template_version": 1,
                        "state": "accepted", "due_at": old, "not_after": NOW,
                        "timezone": "UTC", "assigned_local_hour": 9, "hour_propensity": 1.0,
                        "hour_reason": "best", "is_holdout": False, "is_canary": False, "lease_token": 1,
                        "attempts": 1, "created_at": old, "finished_at": NOW - timedelta(seconds=int(age)),
                        "bounce": "hard" if place % 200 == 0 else None,
                    }
                    for place, age in zip(places, ages, strict=True)
                ],
            )  # fmt: skip
        rows = (
            f"SELECT n, {to_micros(NOW)} - 86400000000 * (100 + k), (n - 1) * {EVENTS_EACH} + k, {to_micros(NOW)}, "
            "'Email Sent', 'b/' || n || '/' || k, n, NULL, 9, NULL, 0, 0, 'user:u' || n, NULL FROM "
            f"(SELECT contact_key AS n FROM contact), (SELECT 1 AS k UNION SELECT 2 UNION SELECT 3 UNION SELECT 4)"
        )
        columns = (
            "contact_key, occurred_at, seq, received_at, kind, message_id, ref, value_minor, hour_of_week, human_ppm, "
            "is_repeat, is_imported, identity, properties"
        )
        connection.execute(text(f"INSERT INTO event ({columns}) {rows} ORDER BY 1, 2"))
        top = CONTACTS * EVENTS_EACH
        connection.execute(text(f"UPDATE counter SET value = {top} WHERE name = 'event_seq'"))
        connection.execute(text(f"UPDATE counter SET value = {to_micros(NOW)} WHERE name = 'event_clock'"))
