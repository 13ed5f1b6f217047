"""A campaign to a million contacts: everyone, consent, caps, joint hours, ledger rows, and the arms of every wave.

The hours are random profiles instead of a model's: what is measured here is the planner. Everything else is the real
path: the contacts, their consent, the suppression list, a ledger that holds an earlier campaign, the writing of the
rows and `decide`, wave by wave, each wave in a transaction of its own on disk.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from features.tables import to_micros
from service.database import Database
from service.flow.audience import find_audience
from service.flow.decide import Arm, NewExperiment, decide, open_experiment
from service.flow.predict import Hours
from service.flow.schedule import Intent, Limits, schedule, write_sends
from service.suppression import address_hmac, suppress
from service.tables import CampaignRow
from tests.benchmarks.measuring import child, peak_rss_mb

CONTACTS, EARLIER, SUPPRESSED = 1_000_000, 200_000, 5_000
NOW = datetime(2026, 3, 2, 6, 0, tzinfo=UTC)
ZONES = ("Europe/London", "Europe/Berlin", "America/New_York", "America/Los_Angeles", "Asia/Kolkata", None)
DOMAINS = ("gmail.com", "gmail.com", "outlook.com", "yahoo.com", "icloud.com", "example.org", "example.com")
ARMS = tuple(Arm(f"arm_{k}", f"Subject {k}") for k in range(3))
#: An hour takes 66,000 of the 1,000,000: about half of all want an hour that has no room for them.
RATE = 1_100

LIMITS = Limits(
    quiet_hours=(22, 7), frequency_cap=2, rate_per_minute=RATE, explore_share=0.1, global_holdout=0.0,
    default_timezone="UTC", pepper="bench", salt="bench", mailbox_rates={"gmail": 500},
)  # fmt: skip


def address(key: int) -> str:
    """A reserved-looking address at one of the big providers, the same at every run."""
    return f"u{key}@{DOMAINS[key % len(DOMAINS)]}"


def fill(database: Database, contacts: int) -> None:
    """Contacts with consent, of whom a fifth had a mail lately; a few are on the suppression list."""
    at = to_micros(NOW - timedelta(days=400))
    people = [
        (key, f"u{key}", address(key), ZONES[key % len(ZONES)], "explicit", "{}", at, at)
        for key in range(1, contacts + 1)
    ]
    consent = [
        (key, key, "email", "marketing", "subscribed" if key % 20 else "unsubscribed", "import", None, at)
        for key in range(1, contacts + 1)
    ]
    columns = {
        "contact": "contact_key, user_id, email, timezone, timezone_source, traits, created_at, updated_at",
        "consent": "consent_id, contact_key, channel, topic, state, source, text_version, at",
    }
    with database.writing() as session:
        connection = session.connection()
        for table, rows in (("contact", people), ("consent", consent)):
            if database.is_sqlite:
                places = ", ".join("?" * len(rows[0]))
                connection.exec_driver_sql(f"insert into {table} ({columns[table]}) values ({places})", rows)
            else:
                with connection.connection.cursor().copy(f"copy {table} ({columns[table]}) from stdin") as copy:
                    for row in rows:
                        copy.write_row(row)
        for name in ("contact_key", "consent_id"):
            connection.exec_driver_sql(f"update counter set value = {contacts} where name = '{name}'")
        hmacs = [address_hmac("bench", address(key)) for key in range(1, contacts + 1, contacts // SUPPRESSED or 1)]
        suppress(session, hmacs, reason="hard_bounce", source="bench", now=NOW)
    with database.writing() as session:
        before = NOW - timedelta(days=3)
        keys = np.arange(1, contacts + 1, CONTACTS // EARLIER)
        write_sends(
            session, schedule(session, intent("cmp_earlier", before), keys, None, LIMITS, now=before), now=before
        )


def intent(key: str, start: datetime) -> Intent:
    """A campaign of a day."""
    return Intent(key, "offer", 1, start, start + timedelta(hours=24), key, topic="marketing")


def random_hours(n: int) -> Hours:
    """A curve of each contact's own: a level, a peak somewhere, wide or narrow."""
    rng = np.random.default_rng(7)
    probabilities = np.empty((n, 24), dtype=np.float32)
    level = rng.beta(2, 12, n).astype(np.float32)
    peak, width = rng.normal(17, 4, n).astype(np.float32) % 24, rng.uniform(1.5, 6, n).astype(np.float32)
    for hour in range(24):
        away = np.abs(hour - peak)
        away = np.minimum(away, 24 - away)
        probabilities[:, hour] = level * (0.3 + np.exp(-((away / width) ** 2)))
    return Hours(1, "personal", probabilities, ("contact",) * n, np.ones(n, dtype=bool))


@contextmanager
def timed(parts: dict[str, float], name: str) -> Iterator[None]:
    """Seconds of the block under ``name``, and on stderr; its CPU seconds are what it takes of a machine for itself."""
    began, cpu = time.perf_counter(), time.process_time()
    yield
    parts[name] = round(time.perf_counter() - began, 1)
    parts[f"{name}_cpu"] = round(time.process_time() - cpu, 1)
    told = f"{parts[name]} s ({parts[f'{name}_cpu']} s of CPU), peak {peak_rss_mb()} MB"
    print(f"  {name}: {told}", file=sys.stderr, flush=True)


def measure(url: str, contacts: int = CONTACTS) -> dict[str, Any]:
    """Seconds by part on a database that is filled first."""
    database = Database(url)
    database.upgrade()
    fill(database, contacts)
    if not database.is_sqlite:
        with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("vacuum analyze")
    parts: dict[str, float] = {}
    with database.writing() as session:
        experiment = open_experiment(session, NewExperiment("Bench", "subject", ARMS), now=NOW, salt="bench")
        session.add(
            CampaignRow(
                campaign_id="cmp_1", name="Bench", status="scheduled", template_id="offer", template_version=1,
                audience={"everyone": True}, experiments=[experiment], topic="marketing", window_start=NOW,
                window_end=NOW + timedelta(hours=24), holdout_share=0.0, timing="best_hour", created_at=NOW,
                scheduled_at=NOW,
            )
        )  # fmt: skip
    with database.writing() as session:
        with timed(parts, "everyone"):
            audience = find_audience(session, {"everyone": True}, as_of=NOW)
        hours = random_hours(len(audience.contact_keys))
        with timed(parts, "schedule"):
            sends = schedule(session, intent("cmp_1", NOW), audience.contact_keys, hours, LIMITS, now=NOW)
        with timed(parts, "counts"):
            counts = sends.counts()
        with timed(parts, "write"):
            write_sends(session, sends, now=NOW)
            session.commit()
    placement = sends.placement
    del sends, hours, audience
    plan_mb = peak_rss_mb()
    decided = waves = 0
    with timed(parts, "decide"):
        for hour in range(26):
            at = NOW + timedelta(hours=hour)
            while True:
                with database.writing() as session:
                    done = decide(session, now=at, look_ahead=timedelta(minutes=10))
                waves += 1
                decided += len(done)
                if len(done.send_ids) < 20_000:
                    break
    database.close()
    return {
        "contacts": contacts,
        "seconds_by_part": parts,
        "plan_seconds": round(sum(parts[name] for name in ("everyone", "schedule", "counts", "write")), 1),
        "plan_cpu_seconds": round(sum(parts[f"{name}_cpu"] for name in ("everyone", "schedule", "counts", "write")), 1),
        "decide_seconds": parts["decide"],
        "decide_cpu_seconds": parts["decide_cpu"],
        "decisions": decided,
        "calls_of_decide": waves,
        "plan_peak_rss_mb": plan_mb,
        "peak_rss_mb": peak_rss_mb(),
        "counts": counts,
        "expected": placement.expected,
        "expected_without_limits": placement.expected_unbound,
        "at_most_below_the_best": placement.at_most_below,
        "full": len(placement.full),
    }


def run() -> dict[str, Any]:
    """The plan and its arms, on SQLite; in a process of its own, so that its memory is what it takes."""
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as folder:
        return child("bench_plan", f"sqlite:///{Path(folder) / 'plan.db'}")


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else CONTACTS)))
