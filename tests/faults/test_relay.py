"""A mail server that defers, refuses, lies and hangs up: each send's state says so, neighbours go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.providers.base import Receipt
from service.providers.smtp import SmtpProvider
from service.suppression import mailable
from service.tables import ContactRow, SendRow
from tests.faults.processes import Sink, wait_for
from tests.faults.town import BuildTown, Town

DEFERRED = {
    "c13": ("rcpt", "451 4.7.1 greylisted"),
    "c14": ("rcpt", "421 4.3.2 closing"),
    "c15": ("data", "450 4.2.0 busy"),
    "c16": ("data", "421 4.3.2 closing"),
    "c17": ("dot", "451 4.3.0 try again"),
    "c18": ("dot", "421 4.3.2 closing"),
}
REFUSED = {"c19": ("rcpt", "550 5.1.1 no such user"), "c20": ("dot", "552 5.2.2 mailbox full")}


def rule(name: str, phase: str, answer: str, times: int | None = None) -> dict[str, Any]:
    return {"phase": phase, "answer": answer, "recipient": f"^{name}@", "times": times}


def sends(town: Town) -> dict[str, SendRow]:
    """Each contact's send, by the name before the @."""
    with town.database.reading() as session:
        rows = session.execute(
            select(ContactRow.email, SendRow).join(SendRow, SendRow.contact_key == ContactRow.contact_key)
        )
        return {(row.email or "").partition("@")[0]: row.SendRow for row in rows}


def test_each_answer_of_a_relay_has_its_state(build_town: BuildTown) -> None:
    """4xx in any phase: later, once, nobody suppressed. 5.1.1 suppresses, 5.2.2 does not. A lost line is unknown."""
    town = build_town(
        "sqlite",
        30,
        {"phase": "mail", "answer": "450 4.7.1 slow down", "times": 1},
        # A 421 at RCPT opens a new line once before the mail waits.
        *(rule(name, *answer, times=2 if name == "c14" else 1) for name, answer in DEFERRED.items()),
        *(rule(name, *answer) for name, answer in REFUSED.items()),
        rule("c21", "dot", "drop"),
        rule("c22", "dot", "stall:3"),
        rule("c23", "rcpt", "drop", times=1),
        smtp_connections=4,
    )
    town.send_to_everybody()
    # The one whose MAIL was refused, whoever it was, waits too; and c23, if its line was a fresh one.
    worker = town.worker()
    wait_for(lambda: town.sink.count and not town.count("claimed", "attempting"), 180, "the first round ends")
    worker.kill()
    first = sends(town)
    waits = {name for name, send in first.items() if send.state == "planned"}
    assert set(DEFERRED) <= waits
    assert len(waits - set(DEFERRED)) <= 2
    assert all(first[name].attempts == 1 for name in waits)
    assert all(first[name].smtp_code == int(answer[:3]) for name, (_, answer) in DEFERRED.items())
    town.let_pass(hours=2)
    town.finish(seconds=180)
    found = sends(town)
    report = town.check(crashes=1)

    assert report.violations == []
    assert (report.duplicates, report.unknown, report.unknown_but_delivered) == (0, 1, 1)
    assert {name: send.state for name, send in found.items() if send.state != "accepted"} == {
        "c19": "failed",
        "c20": "failed",
        "c21": "unknown",
    }
    assert all(found[name].attempts == 2 for name in DEFERRED)
    assert "line was lost" in str(found["c21"].reason)
    slow = next(delivery for delivery in town.sink.deliveries() if delivery.recipient.startswith("c22@"))
    assert found["c22"].finished_at is not None
    assert found["c22"].finished_at.timestamp() - slow.began_at >= 3
    with town.database.reading() as session:
        barred = mailable(session, town.contact_keys, "marketing", pepper=town.settings.pepper)
    assert {key for key, why in barred.items() if why} == {found["c19"].contact_key}


@pytest.fixture
def stalling(tmp_path: Path) -> Iterator[Sink]:
    sink = Sink(tmp_path / "sink.log", rule("slow", "dot", "stall:3"))
    yield sink
    sink.close()


def test_who_waits_too_little_for_the_dot_does_not_know(stalling: Sink) -> None:
    """A relay that takes longer than we wait may have taken the mail: unknown, and the next mail finds a new line."""
    provider = SmtpProvider(stalling.url, connections=1, data_timeout_seconds=1)

    async def send(names: list[str]) -> list[Receipt]:
        receipts = []
        async with provider.connection() as connection:
            for name in names:
                assert (await connection.check("from@kairos.example", f"{name}@shop.example")).outcome == "accepted"
                message = f"Message-ID: <{name}@x>\r\nX-Kairos-Send: 1\r\n\r\nx\r\n".encode()
                receipts.append(await connection.transmit(message))
        return receipts

    slow, quick = asyncio.run(send(["slow", "quick"]))
    assert (slow.outcome, quick.outcome) == ("unknown", "accepted")
    wait_for(lambda: stalling.count == 2, 10, "the slow mail is taken after all")


@pytest.mark.faults
def test_a_relay_that_takes_a_minute_is_waited_for(build_town: BuildTown) -> None:
    """RFC 5321 lets it take ten minutes; giving up earlier makes doubles."""
    town = build_town("sqlite", 200, rule("c1", "dot", "stall:60"), smtp_connections=4)
    town.send_to_everybody()
    begin = time.monotonic()
    town.finish(seconds=180)
    report = town.check()

    assert report.violations == []
    assert (report.by_state, report.deliveries) == ({"accepted": 200}, 200)
    assert time.monotonic() - begin >= 60
