"""Laws of mail that is late: behind a backlog, a stalled relay, a locked database, or into quiet hours."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from datetime import timedelta

import pytest
from sqlalchemy import select, update

import service.database
from service.clock import SimulatedClock
from service.database import Database
from service.errors import Conflict
from service.flow.decide import decide
from service.flow.deliver import DeliveryAgent, Receipts, recover, resend_unknown
from service.flow.deliver.ledger import _scrub
from service.providers.smtp import SmtpProvider
from service.settings import Settings
from service.tables import CampaignRow, DepartureRow, SendRow, SuppressionRow
from tests.service.flow.test_deliver import NOW, outbox, send_all, take, write
from tests.service.mailing import add_template, campaign, plan, send_row, states, subscribe
from tests.service.providers.scripted import BODY, STALL, scripted


def test_transactional_mail_does_not_queue(any_database: Database, settings: Settings) -> None:
    """A password falls due after a backlog of marketing mail and leaves before it."""
    keys = subscribe(any_database, 4, now=NOW)
    plan(any_database, keys, now=NOW, due_at=NOW - timedelta(hours=3))
    [password] = plan(any_database, keys[:1], now=NOW, stream="transactional")
    assert [send.send_id for send in take(any_database, settings, limit=1).sends] == [password]


def test_what_is_held_is_not_drawn_and_starves_nobody(any_database: Database) -> None:
    """A paused campaign fell due first: the wave is the other's."""
    keys = subscribe(any_database, 3, now=NOW)
    with any_database.writing() as session:
        session.add_all([campaign("held", NOW, status="paused"), campaign("free", NOW)])
    held = plan(any_database, keys, now=NOW, decided_at=None, campaign_id="held", due_at=NOW - timedelta(hours=1))
    free = plan(any_database, keys, now=NOW, decided_at=None, campaign_id="free")
    with any_database.writing() as session:
        assert decide(session, now=NOW, look_ahead=timedelta(minutes=1), limit=3).send_ids == tuple(free)
        session.execute(update(CampaignRow).values(status="scheduled"))
        assert decide(session, now=NOW, look_ahead=timedelta(minutes=1), limit=3).send_ids == tuple(held)


def test_delayed_marketing_mail_waits_for_the_morning(any_database: Database, settings: Settings) -> None:
    """At 23:00 in Paris: marketing mail leaves at seven or never, other zones' and transactional mail now."""
    keys = subscribe(any_database, 4, now=NOW)
    late = NOW.replace(hour=22)
    [morning] = plan(any_database, keys[:1], now=NOW)
    [never] = plan(any_database, keys[1:2], now=NOW, not_after=late + timedelta(hours=1))
    [awake] = plan(any_database, keys[2:3], now=NOW, timezone="America/New_York")
    [receipt] = plan(any_database, keys[3:], now=NOW, stream="transactional")
    claimed = take(any_database, settings, now=late)
    assert [send.send_id for send in claimed.sends] == [receipt, awake]
    assert (claimed.postponed, claimed.expired) == (1, 1)
    assert send_row(any_database, morning).due_at == (NOW + timedelta(days=1)).replace(hour=6)
    assert send_row(any_database, never).state == "expired"


def test_a_weekly_mail_keeps_a_cap_of_one(database: Database, settings: Settings) -> None:
    """The last one left some minutes after it was due; a planned one of a paused campaign does not count."""
    [key] = subscribe(database, 1, now=NOW)
    week = timedelta(days=7)
    with database.writing() as session:
        session.add(campaign("held", NOW, status="paused"))
    plan(database, [key], now=NOW, state="accepted", due_at=NOW - week, finished_at=NOW - week + timedelta(minutes=9))
    plan(database, [key], now=NOW, due_at=NOW - timedelta(hours=1), campaign_id="held")
    [send_id] = plan(database, [key], now=NOW)
    strict = settings.model_copy(update={"frequency_cap": 1})
    assert [send.send_id for send in take(database, strict).sends] == [send_id]


def test_a_refused_sender_suppresses_nobody(database: Database, settings: Settings, tmp_path) -> None:
    """The mail is planned again, no address enters the list, and what never left is no departure."""
    keys = subscribe(database, 2, now=NOW)
    add_template(database, now=NOW)
    sends = plan(database, keys, now=NOW)
    said = "550 5.1.0 <b@shop.example>: Sender address rejected: User unknown"
    _, receipts = send_all(database, settings, outbox(tmp_path, on_recipient=lambda _: said))
    assert receipts == Receipts(deferred=2)
    assert "our sender was refused" in send_row(database, sends[0]).reason
    with database.reading() as session:
        assert session.scalars(select(SuppressionRow.reason)).all() == []
        assert session.scalars(select(DepartureRow.mails)).all() == []


def test_a_deferred_mail_of_a_cancelled_campaign_ends(any_database: Database, settings: Settings, tmp_path) -> None:
    """It was under way when the campaign was cancelled, and comes back as cancelled; nor is one sent again by hand."""
    keys = subscribe(any_database, 2, now=NOW)
    add_template(any_database, now=NOW)
    with any_database.writing() as session:
        session.add(campaign("spring", NOW))
    [send_id] = plan(any_database, keys[:1], now=NOW, campaign_id="spring")
    [lost] = plan(any_database, keys[1:], now=NOW, campaign_id="spring", state="unknown", finished_at=NOW)

    def cancel(_: str) -> str:
        with any_database.writing() as session:
            session.execute(update(CampaignRow).values(status="cancelled"))
        return "451 4.3.0 later"

    _, receipts = send_all(any_database, settings, outbox(tmp_path, on_message=cancel))
    assert receipts == Receipts(cancelled=1)
    assert states(any_database)[send_id] == "cancelled"
    with any_database.writing() as session, pytest.raises(Conflict, match="cancelled"):
        resend_unknown(session, lost, now=NOW)


def test_a_result_outlives_a_locked_database(
    database: Database, settings: Settings, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program locks the file while the relay takes the mail: the result is written once it lets go."""
    keys = subscribe(database, 1, now=NOW)
    add_template(database, now=NOW)
    [send_id] = plan(database, keys, now=NOW)
    monkeypatch.setattr(service.database, "BUSY_TIMEOUT_MS", 20)
    impatient = Database(str(database.engine.url), is_durable=False)
    other = sqlite3.connect(str(database.engine.url.database), isolation_level=None, check_same_thread=False)

    def lock(_: str) -> None:
        other.execute("BEGIN IMMEDIATE")
        threading.Timer(0.5, other.execute, ["ROLLBACK"]).start()

    _, receipts = send_all(impatient, settings, outbox(tmp_path, on_message=lock))
    assert receipts == Receipts(accepted=1)
    assert send_row(database, send_id).state == "accepted"
    impatient.close()
    other.close()


def test_one_stalled_mail_does_not_stop_the_others(database: Database, settings: Settings) -> None:
    """The relay never answers one final dot: its batch returns, the next leaves, and a stop waits for the answer."""
    keys = subscribe(database, 6, now=NOW)
    add_template(database, now=NOW)
    sends = plan(database, keys, now=NOW)

    async def scenario() -> tuple[list[Receipts], bool]:
        async with scripted({BODY: STALL}) as server:
            provider = SmtpProvider(f"smtp://127.0.0.1:{server.port}", connections=2, data_timeout_seconds=1.5)
            done = []
            clock = SimulatedClock(NOW)
            async with DeliveryAgent(provider, database, clock=clock, settings=settings, patience_seconds=0.2) as agent:
                for _ in range(2):
                    claimed = await asyncio.to_thread(take, database, settings, limit=3)
                    mails = await asyncio.to_thread(write, database, claimed, settings)
                    done.append(await agent.deliver(claimed.sends, mails))
                was_waiting = agent.is_waiting
            return done, was_waiting

    assert asyncio.run(scenario()) == ([Receipts(accepted=2), Receipts(accepted=3)], True)
    assert sorted(states(database)[send_id] for send_id in sends) == ["accepted"] * 5 + ["unknown"]


@pytest.mark.postgres
def test_recovery_passes_over_rows_that_a_hung_worker_locks(postgres: Database, settings: Settings) -> None:
    """A worker stopped inside a transaction holds one row: the other is taken back at once."""
    keys = subscribe(postgres, 2, now=NOW)
    hung, other = plan(postgres, keys, now=NOW)
    take(postgres, settings)
    with postgres.writing() as session:
        session.execute(update(SendRow).values(lease_until=NOW - timedelta(days=900)))
    with postgres.writing() as worker:
        worker.scalar(select(SendRow).where(SendRow.send_id == hung).with_for_update())
        with postgres.writing() as session:
            assert recover(session, now=NOW).replanned == 1
    assert states(postgres) == {hung: "claimed", other: "planned"}


@pytest.mark.parametrize(
    ("reply", "recipient", "kept"),
    [
        ("5.1.1 ANN.SMITH unknown", "ann.smith@shop.example", "5.1.1 <address> unknown"),
        ("5.1.1 user Al unknown, always", "al@shop.example", "5.1.1 user <address> unknown, always"),
        ("5.7.1 refused", "5@shop.example", "5.7.1 refused"),
    ],
)
def test_a_reply_is_kept_without_names(reply: str, recipient: str, kept: str) -> None:
    """Whatever the case, however short."""
    assert _scrub(reply, recipient) == kept
