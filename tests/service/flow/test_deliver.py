"""Laws of the ledger: what is sent, what is not, and what is known of it after a fault."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, update

from features.vocabulary import EMAIL_BOUNCED, EMAIL_SENT, EMAIL_WITHHELD
from service.clock import SimulatedClock
from service.database import Database
from service.flow.decide import decide
from service.flow.deliver import Claim, Receipts, claim, deliver, recover
from service.flow.render import Email, RenderFailure, gather, render
from service.links import LinkBook
from service.providers.base import Provider
from service.providers.outbox import OutboxProvider
from service.providers.smtp import SmtpProvider
from service.settings import Settings
from service.sink import MailSink
from service.suppression import address_hmac, mailable, suppress, unsubscribe
from service.tables import ArmRow, CampaignRow, ContactRow, DecisionRow, ExperimentRow, SendRow
from tests.service.mailing import TOPIC, add_template, campaign, events, plan, send_row, states, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def take(database: Database, settings: Settings, *, now: datetime = NOW, limit: int = 500) -> Claim:
    with database.writing() as session:
        return claim(session, now=now, limit=limit, lease_seconds=60, settings=settings)


def write(database: Database, claimed: Claim, settings: Settings, now: datetime = NOW) -> list[Email | RenderFailure]:
    with database.reading() as session:
        inputs = gather(session, claimed.sends)
    return render(inputs, now=now, settings=settings, number_links=LinkBook(database))


def send_all(
    database: Database, settings: Settings, provider: Provider, *, now: datetime = NOW, limit: int = 500
) -> tuple[Claim, Receipts]:
    claimed = take(database, settings, now=now, limit=limit)
    mails = write(database, claimed, settings, now)
    work = deliver(claimed.sends, mails, provider, database, clock=SimulatedClock(now), settings=settings)
    return claimed, asyncio.run(work)


def outbox(tmp_path: Path, **answers: Callable[[str], str | None]) -> OutboxProvider:
    return OutboxProvider(tmp_path / "outbox", connections=4, **answers)


def arrived(provider: OutboxProvider) -> list[str]:
    texts = [path.read_text() for path in provider.folder.glob("*.eml")]
    return sorted(line[4:] for text in texts for line in text.splitlines() if line.startswith("To: "))


# -- the way it should go --------------------------------------------------------------------------


def test_a_due_send_is_accepted_and_logged(any_database: Database, settings: Settings) -> None:
    """Over real SMTP: the mail arrives, the row is accepted, and the event holds what training needs of it."""
    [key] = subscribe(any_database, 1, now=NOW)
    add_template(any_database, now=NOW)
    [send_id] = plan(any_database, [key], now=NOW, campaign_id="spring")
    with any_database.writing() as session:
        decision = {
            "decision_id": "d1", "experiment_id": "e1", "contact_key": key, "occurrence": f"send:{send_id}",
            "send_id": send_id, "snapshot_id": "s1", "wave": 3, "arm_id": "a", "propensity": 0.25, "draw": 0.1,
            "eligible": ["a"], "reason": "", "decided_at": NOW,
        }  # fmt: skip
        session.execute(insert(DecisionRow), [decision])
        _arm(session)
    with MailSink() as sink:
        _, receipts = send_all(any_database, settings, SmtpProvider(sink.url, connections=2))
    assert receipts == Receipts(accepted=1)
    [delivery] = sink.deliveries
    assert delivery.recipient == "c0@shop.example"
    row = send_row(any_database, send_id)
    assert (row.state, row.smtp_code, row.attempts, row.finished_at, row.lease_until) == ("accepted", 250, 1, NOW, None)
    assert row.message_id.encode() in delivery.content
    assert row.link_count == 1
    [event] = events(any_database, EMAIL_SENT)
    assert (event.contact_key, event.ref, event.identity, event.hour_of_week) == (key, str(send_id), "user:c0", 10)
    assert json.loads(event.properties) == {
        "campaign_id": "spring", "template_id": "offer", "template_version": 1, "stream": "marketing",
        "assigned_local_hour": 10, "local_hour": 10, "hour_propensity": 0.5, "hour_reason": "best", "attempts": 1,
        "decisions": [
            {
                "decision_id": "d1", "experiment_id": "e1", "arm_id": "a", "propensity": 0.25, "snapshot_id": "s1",
                "wave": 3, "segment": None, "is_holdout": False,
            }
        ],
    }  # fmt: skip


def _arm(session) -> None:
    experiment = {
        "experiment_id": "e1", "name": "e", "kind": "subject", "slot": "subject", "reward": "click",
        "reward_window_hours": 72.0, "floor": 0.1, "explore_share": 0.0, "holdout_share": 0.0, "policy": "uniform",
        "salt": "s", "status": "running", "created_at": NOW,
    }  # fmt: skip
    session.execute(insert(ExperimentRow), [experiment])
    arm = {
        "experiment_id": "e1", "arm_id": "a", "position": 0, "content": "Arm a", "features": {}, "status": "running",
        "created_at": NOW,
    }  # fmt: skip
    session.execute(insert(ArmRow), [arm])


@pytest.mark.parametrize("n_sends", [120])
def test_two_workers_send_each_mail_once(any_database: Database, settings: Settings, n_sends: int) -> None:
    """Workers that claim at the same time share the sends: each leaves exactly once, none is left."""
    keys = subscribe(any_database, n_sends, now=NOW)
    add_template(any_database, now=NOW)
    plan(any_database, keys, now=NOW)
    faults: list[BaseException] = []

    def work(provider: Provider) -> None:
        try:
            while True:
                claimed, _ = send_all(any_database, settings, provider, limit=15)
                if not claimed.sends:
                    return
        except BaseException as fault:
            faults.append(fault)

    with MailSink() as sink:
        threads = [threading.Thread(target=work, args=(SmtpProvider(sink.url, connections=3),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not faults
    assert Counter(states(any_database).values()) == {"accepted": n_sends}
    assert Counter(Counter(delivery.recipient for delivery in sink.deliveries).values()) == {1: n_sends}
    assert len(events(any_database, EMAIL_SENT)) == n_sends


def test_only_due_decided_sends_of_running_campaigns_are_claimed(any_database: Database, settings: Settings) -> None:
    """What is due later, not decided, or of a paused campaign stays planned."""
    keys = subscribe(any_database, 4, now=NOW)
    due, _, _, _ = (
        plan(any_database, [keys[0]], now=NOW)[0],
        plan(any_database, [keys[1]], now=NOW, due_at=NOW + timedelta(seconds=1)),
        plan(any_database, [keys[2]], now=NOW, decided_at=None),
        plan(any_database, [keys[3]], now=NOW, campaign_id="paused"),
    )
    with any_database.writing() as session:
        campaign = {
            "campaign_id": "paused", "name": "p", "status": "paused", "template_id": "offer", "template_version": 1,
            "audience": {}, "experiments": [], "topic": TOPIC, "window_start": NOW, "window_end": NOW,
            "holdout_share": 0.0, "timing": "best_hour", "created_at": NOW,
        }  # fmt: skip
        session.execute(insert(CampaignRow), [campaign])
    assert [send.send_id for send in take(any_database, settings).sends] == [due]
    assert Counter(states(any_database).values()) == {"claimed": 1, "planned": 3}


# -- who is not mailed -----------------------------------------------------------------------------


def test_who_unsubscribed_after_planning_gets_nothing(
    any_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """Consent is looked at again inside the claim: the send ends suppressed, with the reason."""
    keys = subscribe(any_database, 2, now=NOW)
    add_template(any_database, now=NOW)
    leaves, stays = plan(any_database, keys, now=NOW)
    with any_database.writing() as session:
        unsubscribe(session, [leaves], source="one-click", now=NOW)
    provider = outbox(tmp_path)
    claimed, receipts = send_all(any_database, settings, provider)
    assert (claimed.suppressed, receipts.accepted) == (1, 1)
    assert arrived(provider) == ["c1@shop.example"]
    assert states(any_database) == {leaves: "suppressed", stays: "accepted"}
    assert "unsubscribed" in send_row(any_database, leaves).reason


def test_who_unsubscribes_after_the_claim_gets_nothing(
    any_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """Consent is looked at once more right before the message leaves."""
    keys = subscribe(any_database, 2, now=NOW)
    add_template(any_database, now=NOW)
    leaves, stays = plan(any_database, keys, now=NOW)
    claimed = take(any_database, settings)
    mails = write(any_database, claimed, settings)
    with any_database.writing() as session:
        unsubscribe(session, [leaves], source="one-click", now=NOW)
    provider = outbox(tmp_path)
    clock = SimulatedClock(NOW)
    receipts = asyncio.run(deliver(claimed.sends, mails, provider, any_database, clock=clock, settings=settings))
    assert receipts == Receipts(accepted=1, suppressed=1)
    assert arrived(provider) == ["c1@shop.example"]
    assert states(any_database) == {leaves: "suppressed", stays: "accepted"}


@pytest.mark.parametrize(
    ("stream", "why", "state"),
    [
        ("marketing", "no address", "suppressed"),
        ("marketing", "complaint", "suppressed"),
        ("marketing", "no consent", "suppressed"),
        ("transactional", "no address", "suppressed"),
        ("transactional", "complaint", "suppressed"),
        ("transactional", "no consent", "accepted"),
    ],
)
def test_each_bar_closes_the_send_with_its_reason(
    database: Database, settings: Settings, tmp_path: Path, stream: str, why: str, state: str
) -> None:
    """No address and a suppressed address stop every mail, missing consent stops marketing mail."""
    [key] = subscribe(database, 1, now=NOW)
    add_template(database, now=NOW)
    topic = "another topic" if why == "no consent" else TOPIC
    [send_id] = plan(database, [key], now=NOW, stream=stream, topic=topic)
    with database.writing() as session:
        if why == "no address":
            session.execute(update(ContactRow).values(email=None))
        if why == "complaint":
            suppress(session, [address_hmac(settings.pepper, "C0@shop.example")], reason=why, source="t", now=NOW)
    provider = outbox(tmp_path)
    send_all(database, settings, provider)
    row = send_row(database, send_id)
    assert row.state == state
    if state == "suppressed":
        assert row.reason
        assert not provider.folder.exists()


def test_the_cap_counts_seven_days_back(any_database: Database, settings: Settings) -> None:
    """Marketing mails beyond the cap are suppressed, later due ones first; old, failed, transactional are free."""
    [key] = subscribe(any_database, 1, now=NOW)
    day = timedelta(days=1)
    done = {"state": "accepted", "finished_at": NOW - 3 * day, "due_at": NOW - 3 * day}
    plan(any_database, [key], now=NOW, **done)
    plan(any_database, [key], now=NOW, **done | {"state": "held_out"})
    plan(any_database, [key], now=NOW, **done | {"state": "failed"})
    plan(any_database, [key], now=NOW, **done | {"stream": "transactional"})
    plan(any_database, [key], now=NOW, **done | {"finished_at": NOW - 8 * day, "due_at": NOW - 8 * day})
    second = plan(any_database, [key], now=NOW)
    first = plan(any_database, [key], now=NOW, due_at=NOW - timedelta(minutes=1))
    receipt = plan(any_database, [key], now=NOW, stream="transactional")
    claimed = take(any_database, settings)
    assert [send.send_id for send in claimed.sends] == [*receipt, *first]
    assert send_row(any_database, second[0]).reason == "frequency cap: 3 marketing mails in 7 days, at most 3"


@pytest.mark.postgres
def test_two_claims_at_once_keep_the_cap(postgres: Database, settings: Settings) -> None:
    """Two workers that claim two sends of one contact let only the first due one through: the second waits its turn."""
    [key] = subscribe(postgres, 1, now=NOW)
    strict = settings.model_copy(update={"frequency_cap": 1})
    early, late = plan(postgres, [key], now=NOW, due_at=NOW - timedelta(minutes=1)) + plan(postgres, [key], now=NOW)
    second: list[Claim] = []
    thread = threading.Thread(target=lambda: second.append(take(postgres, strict, limit=1)))
    with postgres.writing() as one:
        first = claim(one, now=NOW, limit=1, lease_seconds=60, settings=strict)
        thread.start()
        thread.join(0.2)
        assert not second  # the buckets are the first one's until it commits
    thread.join()
    assert [send.send_id for send in first.sends] == [early]
    assert second[0].sends == ()
    assert states(postgres) == {early: "claimed", late: "suppressed"}


def test_a_stale_send_expires(any_database: Database, settings: Settings, tmp_path: Path) -> None:
    """After its last useful moment a mail is not sent, decided or not."""
    keys = subscribe(any_database, 2, now=NOW)
    old = {"due_at": NOW - timedelta(hours=2), "not_after": NOW - timedelta(seconds=1)}
    stale = plan(any_database, [keys[0]], now=NOW, **old) + plan(
        any_database, [keys[1]], now=NOW, decided_at=None, **old
    )
    with any_database.writing() as session:
        assert decide(session, now=NOW, look_ahead=timedelta(0)).send_ids == (stale[1],)
    claimed, _ = send_all(any_database, settings, outbox(tmp_path))
    assert claimed == Claim((), 2, 0)
    assert states(any_database) == dict.fromkeys(stale, "expired")
    assert send_row(any_database, stale[0]).reason


def test_a_holdout_is_made_logged_and_trapped(any_database: Database, settings: Settings, tmp_path: Path) -> None:
    """A held-out send is rendered like any other, becomes an Email Withheld event and never reaches the provider."""
    [key] = subscribe(any_database, 1, now=NOW)
    add_template(any_database, now=NOW)
    [send_id] = plan(any_database, [key], now=NOW, is_holdout=True)
    provider = outbox(tmp_path)
    claimed, receipts = send_all(any_database, settings, provider)
    assert claimed.sends[0].is_holdout
    assert receipts == Receipts(held_out=1)
    assert not provider.folder.exists()
    assert (send_row(any_database, send_id).state, send_row(any_database, send_id).attempts) == ("held_out", 0)
    [event] = events(any_database, EMAIL_WITHHELD)
    assert (event.ref, event.contact_key) == (str(send_id), key)
    assert not events(any_database, EMAIL_SENT)


def test_mails_tell_by_which_models_scores_their_audience_was_picked(
    any_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """Sent and withheld alike, so that outcomes can judge the score without them; other campaigns tell nothing."""
    keys = subscribe(any_database, 3, now=NOW)
    add_template(any_database, now=NOW)
    common = {
        "name": "c", "status": "scheduled", "template_id": "offer", "template_version": 1, "experiments": [],
        "topic": TOPIC, "window_start": NOW, "window_end": NOW + timedelta(days=1), "holdout_share": 0.0,
        "timing": "at_start", "created_at": NOW,
    }  # fmt: skip
    picked = {"campaign_id": "win-back", "audience": {"user_ids": ["c0", "c1"], "models": ["churn"]}}
    with any_database.writing() as session:
        session.execute(
            insert(CampaignRow), [common | picked, common | {"campaign_id": "news", "audience": {"everyone": True}}]
        )
    plan(any_database, keys[:1], now=NOW, campaign_id="win-back")
    plan(any_database, keys[1:2], now=NOW, campaign_id="win-back", is_holdout=True)
    plan(any_database, keys[2:], now=NOW, campaign_id="news")
    send_all(any_database, settings, outbox(tmp_path))

    told = {row.contact_key: json.loads(row.properties).get("models") for row in events(any_database, EMAIL_SENT)}
    [withheld] = events(any_database, EMAIL_WITHHELD)
    assert told == {keys[0]: ["churn"], keys[2]: None}
    assert json.loads(withheld.properties)["models"] == ["churn"]


# -- what the provider answers ---------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["on_recipient", "on_message"])
def test_a_deferred_mail_is_tried_again_later_and_later(
    any_database: Database, settings: Settings, tmp_path: Path, phase: str
) -> None:
    """4xx: again after 5 minutes, 1 hour, 4 hours, until its last useful moment; then it expires."""
    [key] = subscribe(any_database, 1, now=NOW)
    add_template(any_database, now=NOW)
    [send_id] = plan(any_database, [key], now=NOW, not_after=NOW + timedelta(hours=6))
    provider = outbox(tmp_path, **{phase: lambda _: "451 4.7.1 come back later"})
    now, waits = NOW, []
    for _ in range(3):
        _, receipts = send_all(any_database, settings, provider, now=now)
        assert receipts == Receipts(deferred=1)
        row = send_row(any_database, send_id)
        assert (row.state, row.smtp_code) == ("planned", 451)
        waits.append(row.due_at - now)
        assert not take(any_database, settings, now=row.due_at - timedelta(seconds=1)).sends
        now = row.due_at
    assert waits == [timedelta(minutes=5), timedelta(hours=1), timedelta(hours=4)]
    _, receipts = send_all(any_database, settings, provider, now=now)
    assert receipts == Receipts(expired=1)
    assert "451 4.7.1 come back later" in send_row(any_database, send_id).reason


def test_a_deferred_mail_leaves_once_the_relay_takes_it(
    any_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """After a deferral the mail is sent, once, with its Message-ID."""
    [key] = subscribe(any_database, 1, now=NOW)
    add_template(any_database, now=NOW)
    [send_id] = plan(any_database, [key], now=NOW)
    send_all(any_database, settings, outbox(tmp_path, on_message=lambda _: "421 4.3.2 closing"))
    message_id = send_row(any_database, send_id).message_id
    provider = outbox(tmp_path)
    send_all(any_database, settings, provider, now=NOW + timedelta(minutes=5))
    row = send_row(any_database, send_id)
    assert (row.state, row.attempts, row.message_id) == ("accepted", 2, message_id)
    assert arrived(provider) == ["c0@shop.example"]


def test_a_bad_address_fails_and_is_never_tried_again(
    any_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """5.1.x: the send fails, the address goes on the list as a hash, a bounce is logged; nothing names the address."""
    [key] = subscribe(any_database, 1, now=NOW, prefix="longname")
    add_template(any_database, now=NOW)
    [send_id] = plan(any_database, [key], now=NOW)
    answer = "550 5.1.1 <longname0@shop.example>: longname0 unknown"
    _, receipts = send_all(any_database, settings, outbox(tmp_path, on_recipient=lambda _: answer))
    assert receipts == Receipts(failed=1)
    row = send_row(any_database, send_id)
    assert (row.state, row.reason) == ("failed", "550 5.1.1 <address> <address> unknown")
    with any_database.reading() as session:
        barred = mailable(session, [key], TOPIC, pepper=settings.pepper, stream="transactional")
    assert barred == {key: "address suppressed: hard_bounce"}
    assert [event.ref for event in events(any_database, EMAIL_BOUNCED)] == [str(send_id)]


def test_a_policy_refusal_fails_without_suppressing(database: Database, settings: Settings, tmp_path: Path) -> None:
    """5.7.x is about us, not about the address."""
    [key] = subscribe(database, 1, now=NOW)
    add_template(database, now=NOW)
    plan(database, [key], now=NOW)
    _, receipts = send_all(database, settings, outbox(tmp_path, on_recipient=lambda _: "550 5.7.1 policy"))
    assert receipts == Receipts(failed=1)
    with database.reading() as session:
        assert mailable(session, [key], TOPIC, pepper=settings.pepper) == {key: None}


def test_a_line_lost_after_the_message_is_unknown_and_not_resent(any_database: Database, settings: Settings) -> None:
    """Over real SMTP: the sink took the mail and hung up. The row says unknown, and no later pass sends it again."""
    keys = subscribe(any_database, 3, now=NOW)
    add_template(any_database, now=NOW)
    lost, *others = plan(any_database, keys, now=NOW)
    with MailSink(on_message=lambda address: "drop" if address.startswith("c0@") else None) as sink:
        provider = SmtpProvider(sink.url, connections=1)
        _, receipts = send_all(any_database, settings, provider)
        assert receipts == Receipts(accepted=2, unknown=1)
        later = NOW + timedelta(hours=5)
        with any_database.writing() as session:
            recover(session, now=later)
        send_all(any_database, settings, provider, now=later)
    assert states(any_database) == {lost: "unknown"} | dict.fromkeys(others, "accepted")
    assert Counter(delivery.recipient for delivery in sink.deliveries)["c0@shop.example"] == 1
    assert "line was lost" in send_row(any_database, lost).reason


def test_a_relay_that_is_down_defers_everything(database: Database, settings: Settings) -> None:
    """No conversation at all: nothing is failed, everything waits."""
    keys = subscribe(database, 5, now=NOW)
    add_template(database, now=NOW)
    plan(database, keys, now=NOW)
    with MailSink() as sink:
        url = sink.url
    _, receipts = send_all(database, settings, SmtpProvider(url, connections=2, command_timeout_seconds=2))
    assert receipts == Receipts(deferred=5)


def test_a_mail_that_cannot_be_made_fails_alone(database: Database, settings: Settings, tmp_path: Path) -> None:
    """A row that does not render ends failed with the reason; its neighbours are sent."""
    keys = subscribe(database, 3, now=NOW)
    add_template(database, now=NOW, subject="{{ first_name }}")
    bad, *_ = plan(database, keys, now=NOW)
    with database.writing() as session:
        session.execute(
            update(ContactRow).where(ContactRow.contact_key == keys[0]).values(traits={"first_name": "A\nB"})
        )
    _, receipts = send_all(database, settings, outbox(tmp_path))
    assert receipts == Receipts(accepted=2, failed=1)
    assert "U+000A" in send_row(database, bad).reason


# -- faults ----------------------------------------------------------------------------------------


def test_a_worker_that_lost_its_lease_writes_nothing(
    any_database: Database, settings: Settings, tmp_path: Path
) -> None:
    """Fencing: what another worker has claimed since is neither sent nor overwritten by the one that slept."""
    [key] = subscribe(any_database, 1, now=NOW)
    add_template(any_database, now=NOW)
    [send_id] = plan(any_database, [key], now=NOW)
    slept = take(any_database, settings)
    mails = write(any_database, slept, settings)
    _expire_leases(any_database)
    with any_database.writing() as session:
        assert recover(session, now=NOW).replanned == 1
    awake = take(any_database, settings)
    provider, clock = outbox(tmp_path), SimulatedClock(NOW)
    late = asyncio.run(deliver(slept.sends, mails, provider, any_database, clock=clock, settings=settings))
    assert late == Receipts(lost=1)
    assert (send_row(any_database, send_id).state, arrived(provider)) == ("claimed", [])
    done = asyncio.run(deliver(awake.sends, mails, provider, any_database, clock=clock, settings=settings))
    assert done == Receipts(accepted=1)
    assert arrived(provider) == ["c0@shop.example"]


def test_a_live_lease_is_not_taken(any_database: Database, settings: Settings) -> None:
    """While its lease runs, a claimed send is neither recovered nor claimed again."""
    keys = subscribe(any_database, 1, now=NOW)
    plan(any_database, keys, now=NOW)
    assert len(take(any_database, settings).sends) == 1
    with any_database.writing() as session:
        assert recover(session, now=NOW).replanned == 0
    assert take(any_database, settings).sends == ()


@pytest.mark.parametrize(
    ("stream", "crash_policy", "state"),
    [
        ("marketing", "hold", "unknown"),
        ("marketing", "resend", "planned"),
        ("transactional", "hold", "planned"),
    ],
)
def test_what_a_crash_left_attempting(
    any_database: Database, settings: Settings, stream: str, crash_policy: str, state: str
) -> None:
    """One lost beats one doubled for marketing mail, unless told otherwise; transactional mail goes out again."""
    [key] = subscribe(any_database, 1, now=NOW)
    [send_id] = plan(any_database, [key], now=NOW, stream=stream)
    take(any_database, settings)
    with any_database.writing() as session:
        session.execute(update(SendRow).values(state="attempting", message_id="<s1.x@kairos.example>"))
    _expire_leases(any_database)
    with any_database.writing() as session:
        recover(session, now=NOW, crash_policy=crash_policy)
    row = send_row(any_database, send_id)
    assert (row.state, row.message_id, row.attempts) == (state, "<s1.x@kairos.example>", 1)
    assert row.reason


def test_a_dead_worker_leaves_only_what_was_in_the_air(any_database: Database, settings: Settings) -> None:
    """A worker that dies mid-batch: after recovery every mail was sent once or is unknown, and those are few."""

    keys = subscribe(any_database, 30, now=NOW)
    add_template(any_database, now=NOW)
    plan(any_database, keys, now=NOW)
    claimed = take(any_database, settings)
    mails = write(any_database, claimed, settings)
    with MailSink() as sink:
        provider = SmtpProvider(sink.url, connections=3)

        async def die() -> None:
            clock = SimulatedClock(NOW)
            work = asyncio.ensure_future(
                deliver(claimed.sends, mails, provider, any_database, clock=clock, settings=settings)
            )
            while sink.count < 9:
                await asyncio.sleep(0.001)
            work.cancel()
            await asyncio.wait([work])

        asyncio.run(die())
        _expire_leases(any_database)
        with any_database.writing() as session:
            recovered = recover(session, now=NOW)
        assert recovered.unknown <= 2 * provider.connections
        send_all(any_database, settings, provider)
    counts = Counter(states(any_database).values())
    assert counts["accepted"] + counts["unknown"] == 30
    deliveries = Counter(delivery.recipient for delivery in sink.deliveries)
    assert max(deliveries.values()) == 1
    assert len(deliveries) >= counts["accepted"]


def _expire_leases(database: Database) -> None:
    with database.writing() as session:
        session.execute(update(SendRow).values(lease_until=datetime(2020, 1, 1, tzinfo=UTC)))


def test_the_sandbox_and_the_cap_of_corrections_hold_at_the_claim(any_database: Database, settings: Settings) -> None:
    """Who is not allowed is suppressed with the reason; a correction may be one mail more than the cap."""
    keys = subscribe(any_database, 3, now=NOW)
    add_template(any_database, now=NOW)
    with any_database.writing() as session:
        session.add(campaign("wrong", NOW))
        session.add(campaign("right", NOW, corrects="wrong"))
    outside, ann, bob = keys
    plan(any_database, [ann, bob], now=NOW, campaign_id="wrong", state="accepted", finished_at=NOW)
    [kept_out] = plan(any_database, [outside], now=NOW, campaign_id="wrong")
    [correction] = plan(any_database, [ann], now=NOW, campaign_id="right")
    [second] = plan(any_database, [ann], now=NOW + timedelta(minutes=1), campaign_id="right")
    [news] = plan(any_database, [bob], now=NOW, campaign_id="wrong")
    here = settings.model_copy(update={"frequency_cap": 1, "sandbox": "C1@shop.example,c2@shop.example"})
    claimed = take(any_database, here, now=NOW + timedelta(minutes=1))
    assert [send.send_id for send in claimed.sends] == [correction]
    assert send_row(any_database, kept_out).state == "suppressed"
    assert str(send_row(any_database, kept_out).reason).startswith("sandbox: ")
    assert "at most 2" in str(send_row(any_database, second).reason)
    assert "at most 1" in str(send_row(any_database, news).reason)
