"""No address in the logs: a worker that sends, bounces, fails, reads reports and is told of bounces."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from datetime import UTC, datetime

import pytest
from sqlalchemy import select

from service.bounces import read_report, record_reports
from service.clock import SimulatedClock
from service.database import Database
from service.flow.ingest import ingest
from service.logs import configure
from service.settings import Settings
from service.sink import MailSink
from service.tables import EventRow, HygieneRow, QuarantineRow, SendRow
from service.worker import Worker
from tests.service.bounces import corpus
from tests.service.mailing import add_template, plan, send_row, states, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
CANARY = "zqcanary"


@pytest.fixture
def lines() -> object:
    """What the process logs, from DEBUG on."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    stream = io.StringIO()
    configure("DEBUG", stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)


def test_no_address_is_logged_or_kept(any_database: Database, settings: Settings, lines: io.StringIO) -> None:
    """Every way to fail names the address on the wire; logs, ledger, events and quarantine never do."""
    answers = {
        f"{CANARY}1": "550 5.1.1 <{}>: no such user {}",
        f"{CANARY}2": "452 4.2.2 mailbox of {} is full",
        f"{CANARY}3": "554 5.7.1 {} is blocked",
    }

    def refuse(address: str) -> str | None:
        said = answers.get(address.partition("@")[0])
        return said.replace("{}", address) if said else None

    def drop(address: str) -> str | None:
        return "drop" if address.startswith(f"{CANARY}4") else None

    keys = subscribe(any_database, 7, now=NOW, prefix=CANARY)
    add_template(any_database, now=NOW)
    ids = plan(any_database, keys[:6], now=NOW)
    [broken] = plan(any_database, keys[6:], now=NOW, template_version=9)
    with MailSink(on_recipient=refuse, on_message=drop) as sink:
        clock = SimulatedClock(NOW)
        worker = Worker(any_database, settings.model_copy(update={"smtp_url": sink.url, "quiet_hours": ""}), clock)
        asyncio.run(worker.work())
    report = corpus.postfix("x@y.example", "", f"{CANARY}0@shop.example", says=f"550 5.1.1 {CANARY}0 is unknown")
    bounced = {"type": "track", "event": "Email Bounced", "userId": f"{CANARY}5",
               "properties": {"is_permanent": True, "reason": f"<{CANARY}5@shop.example> is unknown"}}  # fmt: skip
    with any_database.writing() as session:
        now = clock.now()
        assert record_reports(
            session, [read_report(report.encode())], signing_key=settings.signing_key, pepper="p", now=now
        )[0].is_suppressed
        ingest(session, [bounced, {"type": "track", "event": f"{CANARY}5@shop.example" * 9, "userId": "x"}],
               source="segment", now=now, pepper="p")  # fmt: skip

    found = states(any_database)
    assert [found[send_id] for send_id in (*ids, broken)] == [
        "accepted", "failed", "planned", "failed", "unknown", "accepted", "failed",
    ]  # fmt: skip
    assert send_row(any_database, ids[1]).bounce == "hard"
    logged = lines.getvalue()
    assert '"action": "report_bounced"' in logged
    assert all(json.loads(line)["logger"] for line in logged.splitlines())
    with any_database.reading() as session:
        kept = [
            *(row.reason or "" for row in session.scalars(select(SendRow))),
            *(row.properties or "" for row in session.scalars(select(EventRow))),
            *(row.body + row.reason for row in session.scalars(select(QuarantineRow))),
            *(json.dumps(row.report) for row in session.scalars(select(HygieneRow))),
        ]
    assert "@shop.example" not in logged + "".join(kept)
    assert CANARY not in logged.replace(f'"{CANARY}5"', "")
