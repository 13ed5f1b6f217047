"""Laws of what mail servers and people of the list tell by HTTP: bounces, complaints, looks through the list."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from features.contacts import update_traits
from service.clock import SimulatedClock
from service.database import Database
from service.halts import halt
from service.job_runner import do_job
from service.links import sign_bounce
from service.settings import Settings
from service.tables import JobRow, SendRow, SuppressionRow
from tests.service.bounces import corpus
from tests.service.mailing import plan, subscribe


def mail(database: Database, settings: Settings, clock: SimulatedClock) -> tuple[int, str]:
    """A mail that left, and the report of its bounce."""
    now = clock.now()
    [key] = subscribe(database, 1, now=now)
    [send_id] = plan(database, [key], now=now, state="accepted", finished_at=now)
    back = f"b+{sign_bounce(settings.signing_key, send_id)}@back.example"
    return send_id, corpus.postfix(back, "", "c0@shop.example")


def test_a_report_is_taken_once(
    caller: Callable[..., Any], database: Database, settings: Settings, clock: SimulatedClock
) -> None:
    """The answer says what it was, of which mail, and what follows; the same again changes nothing."""
    send_id, raw = mail(database, settings, clock)
    post = caller("ingest")

    first = post("POST", "/v1/bounces", content=raw, headers={"Content-Type": "message/rfc822"})
    again = post("POST", "/v1/bounces", content=raw, headers={"Content-Type": "message/rfc822"})

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == {
        "outcome": "bounced", "why": "bounced (hard); its address gets no more mail", "send_id": str(send_id),
        "severity": "hard", "status": "5.1.1", "is_suppressed": True,
    }  # fmt: skip
    assert again.json()["outcome"] == "duplicate"
    assert "@" not in first.text


def test_what_is_no_report_is_answered_so_that_no_server_sends_it_back(caller: Callable[..., Any]) -> None:
    """A letter and a report of nobody are 200; what is no message is 422; another scope is 403."""
    post = caller("ingest")
    letter = corpus.letter("x@y.example", "", "z@y.example")
    stranger = corpus.postfix("x@y.example", "", "z@y.example")

    assert [post("POST", "/v1/bounces", content=raw).json()["outcome"] for raw in (letter, stranger)] == [
        "ignored",
        "unmatched",
    ]
    refused = post("POST", "/v1/bounces", content="no message")
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:kairos:problem:invalid")
    assert post("POST", "/v1/bounces", content=b"x" * 5_000_001).status_code == 413
    assert caller("read")("POST", "/v1/bounces", content=letter).status_code == 403


def test_a_look_is_asked_for_shown_applied_and_taken_back(
    caller: Callable[..., Any], database: Database, settings: Settings, clock: SimulatedClock
) -> None:
    """POST leaves a job to the worker; what it found is listed and read, then applied, then reverted."""
    keys = subscribe(database, 3, now=clock.now())
    with database.writing() as session:
        update_traits(session, {keys[0]: {"email": "info@gmial.com"}}, now=clock.now())
    write, read = caller("write"), caller("read")
    clock.move_to(clock.now() + timedelta(hours=1))

    asked = write("POST", "/v1/hygiene", json={"findings": ["role", "typo_domain"], "least_days": 30})
    assert asked.status_code == 202
    with database.reading() as session:
        job = session.scalars(select(JobRow)).one()
    assert (job.job_id, job.kind) == (asked.json()["job_id"], "hygiene")
    said = do_job(database, settings, job.kind, job.parameters, now=clock.now())
    [listed] = read("GET", "/v1/hygiene").json()["items"]
    look_id = listed["id"]
    shown = read("GET", f"/v1/hygiene/{look_id}").json()
    applied = write("POST", f"/v1/hygiene/{look_id}/apply", json={"findings": ["role"]})
    again = write("POST", f"/v1/hygiene/{look_id}/apply")
    reverted = write("POST", f"/v1/hygiene/{look_id}/revert")

    assert look_id in said
    assert (listed["state"], listed["contacts"], listed["counts"]) == ("previewed", 3, {"role": 1, "typo_domain": 1})
    assert shown["rules"]["least_days"] == 30
    assert shown["findings"][1]["examples"] == [{"user_id": "c0", "suggestion": "gmail.com"}]
    assert applied.json()["suppressed"] == 1
    assert (again.status_code, reverted.json()["freed"]) == (409, 1)
    with database.reading() as session:
        assert session.scalars(select(SuppressionRow)).all() == []
    assert write("POST", "/v1/hygiene", json={"findings": ["rolle"]}).status_code == 422
    assert read("GET", "/v1/hygiene/hyg_none").status_code == 404
    assert read("POST", "/v1/hygiene", json={}).status_code == 403


def test_metrics_show_how_sending_goes(client: Any, database: Database, clock: SimulatedClock) -> None:
    """Lag of the queue, mails of the last minute, rates of the newest sends, what is stopped."""
    now = clock.now()
    keys = subscribe(database, 10, now=now)
    plan(database, keys[:1], now=now - timedelta(seconds=90))
    sent = plan(database, keys[1:], now=now, state="accepted", finished_at=now - timedelta(seconds=30))
    free = client.get("/metrics").text.splitlines()
    with database.writing() as session:
        session.execute(update(SendRow).where(SendRow.send_id.in_(sent[:3])).values(bounce="hard"))
        session.execute(update(SendRow).where(SendRow.send_id == sent[4]).values(complained_at=now))
        halt(session, "mailbox:gmail", reason="x", by="kairos", now=now)
        halt(session, "stream:marketing", reason="x", by="kairos", now=now)

    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")

    assert "kairos_queue_lag_seconds 90.0" in free
    assert float(lines["kairos_queue_lag_seconds"]) == 0  # what is halted does not lag
    assert float(lines['kairos_sends_per_minute{stream="marketing"}']) == 9
    assert float(lines['kairos_hard_bounce_rate{stream="marketing"}']) == 3 / 9
    assert float(lines['kairos_complaint_rate{stream="marketing"}']) == 1 / 9
    assert float(lines['kairos_halts{scope="mailbox"}']) == 1
    assert float(lines['kairos_halts{scope="everything"}']) == 0
    assert float(lines['kairos_sends{state="accepted"}']) == 9
