"""Laws of the last moment: halts, pauses, throttles and refusals act on what is claimed, and nothing is lost."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, date, datetime, timedelta

import pytest
from sqlalchemy import insert, select, update

from features.vocabulary import EMAIL_BOUNCED, EMAIL_SENT
from service.clock import SimulatedClock
from service.database import Database
from service.flow.deliver import Receipts, claim, close_unknown, deliver, reconcile, recover, resend_unknown
from service.halts import EVERYTHING, halt, halts_in_force, lift, mailbox_scope, stream_scope
from service.providers.smtp import SmtpProvider
from service.settings import Settings
from service.sink import MailSink
from service.tables import CampaignRow, ContactRow, DepartureRow, HaltRow, SendRow
from service.throttle import day_of
from tests.service.flow.test_deliver import outbox, send_all, take, write
from tests.service.mailing import TOPIC, add_template, events, plan, send_row, states, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def campaign(database: Database, **values: object) -> None:
    with database.writing() as session:
        row = {
            "campaign_id": "spring", "name": "p", "status": "scheduled", "template_id": "offer", "template_version": 1,
            "audience": {}, "experiments": [], "topic": TOPIC, "window_start": NOW, "window_end": NOW,
            "holdout_share": 0.0, "timing": "best_hour", "created_at": NOW,
        } | values  # fmt: skip
        session.execute(insert(CampaignRow), [row])


def stop(database: Database, what: str) -> None:
    with database.writing() as session:
        if what in ("paused", "cancelled"):
            session.execute(update(CampaignRow).values(status=what))
        elif what in ("waiting", "held"):
            session.execute(update(CampaignRow).values(canary_state=what))
        else:
            halt(session, what, reason="test", by="key_1", now=NOW)


STOPS = [EVERYTHING, stream_scope("marketing"), mailbox_scope("other"), "paused", "cancelled", "waiting", "held"]


@pytest.mark.parametrize("what", STOPS)
def test_what_is_stopped_between_claim_and_departure_does_not_leave(
    any_database: Database, settings: Settings, tmp_path, what: str
) -> None:
    """It goes back to planned without counting as a try or a departure, and leaves once the stop is lifted."""
    keys = subscribe(any_database, 2, now=NOW)
    add_template(any_database, now=NOW)
    campaign(any_database)
    plan(any_database, keys, now=NOW, campaign_id="spring")
    claimed = take(any_database, settings)
    assert len(claimed.sends) == 2
    mails = write(any_database, claimed, settings)
    stop(any_database, what)
    provider, clock = outbox(tmp_path), SimulatedClock(NOW)
    receipts = asyncio.run(deliver(claimed.sends, mails, provider, any_database, clock=clock, settings=settings))
    ended = "cancelled" if what == "cancelled" else "planned"
    assert receipts == (Receipts(cancelled=2) if what == "cancelled" else Receipts(halted=2))
    assert Counter(states(any_database).values()) == {ended: 2}
    assert not list(provider.folder.glob("*.eml"))
    with any_database.reading() as session:
        assert session.scalar(select(DepartureRow.mails)) is None
        assert set(session.scalars(select(SendRow.attempts))) == {0}
        assert all(session.scalars(select(SendRow.reason)))
    assert not take(any_database, settings).sends
    with any_database.writing() as session:
        session.execute(update(CampaignRow).values(status="scheduled", canary_state="passed"))
        session.execute(update(HaltRow).values(lifted_at=NOW))
    _, receipts = send_all(any_database, settings, provider)
    assert receipts.accepted == (0 if what == "cancelled" else 2)


def test_the_canary_leaves_while_the_others_wait(database: Database, settings: Settings) -> None:
    """Of a campaign that is watched only the canary's sends are claimed."""
    keys = subscribe(database, 2, now=NOW)
    campaign(database, canary_state="waiting")
    [first] = plan(database, keys[:1], now=NOW, campaign_id="spring", is_canary=True)
    plan(database, keys[1:], now=NOW, campaign_id="spring")
    assert [send.send_id for send in take(database, settings).sends] == [first]


def test_five_refusals_for_policy_halt_the_mailbox_provider(
    any_database: Database, settings: Settings, tmp_path
) -> None:
    """5.7.x from one provider fails five mails and halts the rest to it; others go on; no address is suppressed."""
    keys = subscribe(any_database, 12, now=NOW)
    add_template(any_database, now=NOW)
    with any_database.writing() as session:
        session.execute(
            update(ContactRow)
            .where(ContactRow.contact_key.in_(keys[:8]))
            .values(email=ContactRow.user_id + "@gmail.com")
        )
    plan(any_database, keys, now=NOW)
    provider = outbox(tmp_path, on_recipient=lambda to: "550 5.7.26 not wanted" if "gmail" in to else None)
    provider.connections = 1
    _, receipts = send_all(any_database, settings, provider)
    assert receipts.accepted == 4
    assert 5 <= receipts.failed <= 8
    with any_database.reading() as session:
        [standing] = halts_in_force(session)
        assert (standing.scope, standing.halted_by) == ("mailbox:gmail", "kairos")
        assert "5.7.x" in standing.reason
    before = states(any_database)
    later = subscribe(any_database, 1, now=NOW, prefix="late")
    with any_database.writing() as session:
        session.execute(update(ContactRow).where(ContactRow.contact_key == later[0]).values(email="x@gmail.com"))
    plan(any_database, later, now=NOW)
    _, receipts = send_all(any_database, settings, provider)
    assert receipts.failed == receipts.accepted == 0
    with any_database.writing() as session:
        lift(session, "mailbox:gmail", by="key_1", now=NOW)
    soon = NOW + timedelta(minutes=1)
    _, receipts = send_all(any_database, settings, provider, now=soon)
    assert receipts.failed == 9 - sum(state == "failed" for state in before.values())
    with any_database.reading() as session:
        assert not halts_in_force(session)  # whoever lifted it knew of the refusals before


def test_a_full_mailbox_is_a_soft_bounce(any_database: Database, settings: Settings, tmp_path) -> None:
    """552 5.2.2: the send fails, the log holds a bounce that is not permanent, the address may be mailed again."""
    [key] = subscribe(any_database, 1, now=NOW)
    add_template(any_database, now=NOW)
    plan(any_database, [key], now=NOW)
    _, receipts = send_all(any_database, settings, outbox(tmp_path, on_message=lambda _: "552 5.2.2 mailbox full"))
    assert receipts == Receipts(failed=1)
    [bounce] = events(any_database, EMAIL_BOUNCED)
    assert '"is_permanent":false' in bounce.properties
    plan(any_database, [key], now=NOW)
    assert len(take(any_database, settings).sends) == 1


def test_a_mail_deferred_for_three_days_expires(database: Database, settings: Settings, tmp_path) -> None:
    """4xx to the end: after 72 hours the mail expires with the last answer, however far off its last useful moment."""
    [key] = subscribe(database, 1, now=NOW)
    add_template(database, now=NOW)
    [send_id] = plan(database, [key], now=NOW, not_after=NOW + timedelta(days=30))
    provider, now = outbox(tmp_path, on_recipient=lambda _: "451 4.7.1 later"), NOW
    settings = settings.model_copy(update={"quiet_hours": ""})
    while (row := send_row(database, send_id)).state == "planned":
        now = row.due_at
        send_all(database, settings, provider, now=now)
    assert row.state == "expired"
    assert "72 hours" in row.reason
    assert timedelta(hours=64) < now - NOW <= timedelta(hours=72)


def test_an_outage_of_the_relay_costs_no_try(database: Database, settings: Settings) -> None:
    """While nobody answers, mails wait for seconds, not hours, and are not counted as tried."""
    keys = subscribe(database, 3, now=NOW)
    add_template(database, now=NOW)
    ids = plan(database, keys, now=NOW)
    with MailSink() as sink:
        url = sink.url
    send_all(database, settings, SmtpProvider(url, connections=2, command_timeout_seconds=2))
    rows = [send_row(database, send_id) for send_id in ids]
    assert {(row.state, row.attempts) for row in rows} == {("planned", 0)}
    assert all(NOW < row.due_at <= NOW + timedelta(seconds=5) for row in rows)
    assert all(row.reason.startswith("waits for the relay") for row in rows)


def test_what_the_warm_up_has_no_room_for_waits_or_expires_with_the_reason(
    any_database: Database, settings: Settings, tmp_path
) -> None:
    """50 leave on the first day; of the rest one is of no use tomorrow and says why; the others leave then."""
    cold = settings.model_copy(update={"warm_up_from": date(2026, 3, 1)})
    keys = subscribe(any_database, 54, now=NOW)
    add_template(any_database, now=NOW)
    plan(any_database, keys[:53], now=NOW)
    [stale] = plan(
        any_database, keys[53:], now=NOW, due_at=NOW + timedelta(seconds=1), not_after=NOW + timedelta(hours=2)
    )
    provider = outbox(tmp_path)
    assert send_all(any_database, cold, provider)[1].accepted == 50
    later = NOW + timedelta(hours=3)
    claimed, receipts = send_all(any_database, cold, provider, now=later)
    assert (claimed.expired, receipts.accepted) == (1, 0)
    assert "warm-up to other" in send_row(any_database, stale).reason
    assert send_all(any_database, cold, provider, now=NOW + timedelta(days=1))[1].accepted == 3
    with any_database.reading() as session:
        left = dict(session.execute(select(DepartureRow.day, DepartureRow.mails)).all())
    assert left == {day_of(NOW): 50, day_of(NOW) + 1: 3}


def test_a_provider_over_its_rate_does_not_hold_up_the_others(database: Database, settings: Settings) -> None:
    """Two a claim to gmail; what is behind them in the queue goes on; what is held back says how long it waits."""
    slow = settings.model_copy(update={"mailbox_rates": "gmail=60"})
    keys = subscribe(database, 20, now=NOW)
    plan(database, keys[:10], now=NOW, mailbox="gmail", due_at=NOW - timedelta(minutes=1))
    plan(database, keys[10:], now=NOW, mailbox="other")
    taken = [take(database, slow, limit=10) for _ in range(3)]
    assert [Counter(send.mailbox for send in one.sends) for one in taken] == [{"gmail": 2}, {"other": 10}, {}]
    assert 0 < taken[2].wait_seconds <= 1.1


# -- what a crash left open ------------------------------------------------------------------------


def unknown(database: Database, **values: object) -> int:
    [key] = subscribe(database, 1, now=NOW)
    [send_id] = plan(
        database, [key], now=NOW, state="unknown", reason="crash", finished_at=NOW, attempts=1,
        message_id="<s1.x@kairos.example>", **values,
    )  # fmt: skip
    return send_id


def test_an_unknown_send_is_sent_again_by_hand(any_database: Database, settings: Settings, tmp_path) -> None:
    """With the same Message-ID, and time enough to leave, even if its last useful moment has passed."""
    send_id = unknown(any_database, not_after=NOW - timedelta(hours=1))
    add_template(any_database, now=NOW)
    with any_database.writing() as session:
        resend_unknown(session, send_id, now=NOW, by="key_1")
    row = send_row(any_database, send_id)
    assert (row.state, row.not_after, row.finished_at) == ("planned", NOW + timedelta(hours=1), None)
    assert "key_1" in row.reason
    _, receipts = send_all(any_database, settings, outbox(tmp_path))
    assert receipts == Receipts(accepted=1)
    assert send_row(any_database, send_id).attempts == 2


@pytest.mark.parametrize(("kind", "state"), [("Email Delivered", "accepted"), (EMAIL_BOUNCED, "failed")])
def test_what_comes_back_of_a_mail_closes_it(any_database: Database, kind: str, state: str) -> None:
    """A delivery proves that it left, a bounce that it failed; one that arrived enters the log as sent, once."""
    from features.events import NewEvent, append
    from features.tables import to_micros

    send_id = unknown(any_database)
    with any_database.writing() as session:
        assert reconcile(session, now=NOW) == {}
        event = NewEvent(
            contact_key=send_row(any_database, send_id).contact_key, kind=kind, occurred_at=to_micros(NOW),
            message_id="provider/1", identity="user:c0", ref=str(send_id),
        )  # fmt: skip
        append(session, [event], received_at=to_micros(NOW))
    with any_database.writing() as session:
        assert reconcile(session, now=NOW) == {state: 1}
        assert reconcile(session, now=NOW) == {}
    assert send_row(any_database, send_id).state == state
    assert len(events(any_database, EMAIL_SENT)) == (state == "accepted")


def test_after_two_days_an_unknown_send_is_left_to_people(any_database: Database) -> None:
    """It stays unknown and says so; a person may still close it."""
    send_id = unknown(any_database)
    with any_database.writing() as session:
        assert reconcile(session, now=NOW + timedelta(hours=49)) == {"unknown": 1}
        assert reconcile(session, now=NOW + timedelta(hours=50)) == {}
    assert send_row(any_database, send_id).reason.startswith("crash; ")  # what was said first stays
    assert "48 hours" in send_row(any_database, send_id).reason
    with any_database.writing() as session:
        close_unknown(session, send_id, "failed", by="key_1", now=NOW)
        lift(session, EVERYTHING, by="key_1", now=NOW)
    assert send_row(any_database, send_id).state == "failed"


def test_what_comes_back_of_a_cancelled_campaign_ends(any_database: Database, settings: Settings) -> None:
    """A claim that a crash left behind is planned again by recovery, and closed if its campaign was cancelled."""
    [key] = subscribe(any_database, 1, now=NOW)
    campaign(any_database)
    [send_id] = plan(any_database, [key], now=NOW, campaign_id="spring")
    with any_database.writing() as session:
        claim(session, now=NOW, limit=1, lease_seconds=-1, settings=settings)
        session.execute(update(CampaignRow).values(status="cancelled"))
    with any_database.writing() as session:
        recover(session, now=NOW)
    assert states(any_database) == {send_id: "cancelled"}
