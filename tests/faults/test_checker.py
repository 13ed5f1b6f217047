"""The checker finds each kind of wrong: a fault run that it passes means something."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from features.events import NewEvent, append
from features.tables import to_micros
from service.database import Database
from service.tables import SendRow
from tests.faults.checker import check, check_events
from tests.faults.processes import Delivery
from tests.service.mailing import plan, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
Campaign = tuple[Database, list[Delivery]]


@pytest.fixture
def campaign(database: Database) -> Campaign:
    """Four sends that arrived and are called so."""
    keys = subscribe(database, 4, now=NOW)
    ids = plan(database, keys, now=NOW, state="accepted", finished_at=NOW, attempts=1)
    at = NOW.timestamp()
    deliveries = [Delivery(f"<{i}@x>", f"c{n}@shop.example", i, at + n, at + n + 0.1, []) for n, i in enumerate(ids)]
    with database.writing() as session:
        for send_id in ids:
            change = update(SendRow).where(SendRow.send_id == send_id)
            session.execute(change.values(message_id=f"<{send_id}@x>", campaign_id="spring"))
        events = [
            NewEvent(key, "Email Sent", to_micros(NOW), f"kairos/sent/{i}", f"user:c{i}", ref=str(i))
            for key, i in zip(keys, ids, strict=True)
        ]
        append(session, events, received_at=to_micros(NOW))
    return database, deliveries


def alter(campaign: Campaign, **values: object) -> int:
    """Change the first send; its id."""
    database, deliveries = campaign
    with database.writing() as session:
        session.execute(update(SendRow).where(SendRow.send_id == deliveries[0].send_id).values(**values))
    return deliveries[0].send_id


def test_what_is_in_order_passes(campaign: Campaign) -> None:
    """Nothing is found where nothing is wrong, with every limit at its edge."""
    left = {1: NOW.timestamp()}
    report = check(*campaign, cap=1, left_at=left, rate_per_minute={"shop.example": 4})
    assert report.violations == []
    assert (report.deliveries, report.duplicates, report.lost, report.unaccounted) == (4, 0, 0, 0)


#: What is done to the campaign's deliveries, and the invariant that must speak.
SPOILED: dict[str, tuple[str, Callable[[list[Delivery]], list[Delivery]]]] = {
    "lost": ("I2: 1 sends are called accepted", lambda all_: all_[1:]),
    "twice": ("I3: 1 duplicates", lambda all_: [*all_, all_[0]]),
    "of no send": ("I2: 1 mails arrived of no send", lambda all_: [*all_, replace(all_[0], send_id=99)]),
    "renamed": ("I3: 1 sends arrived under another", lambda all_: [replace(all_[0], message_id="<?@x>"), *all_[1:]]),
}


@pytest.mark.parametrize("how", SPOILED)
def test_what_arrived_wrongly_is_found(campaign: Campaign, how: str) -> None:
    """Lost, doubled, unknown and renamed mails."""
    said, spoil = SPOILED[how]
    found = check(campaign[0], spoil(campaign[1])).violations
    assert len(found) == 1
    assert found[0].startswith(said)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"state": "attempting"}, "I2: 1 sends did not end"),
        ({"state": "failed", "reason": "550"}, "I2: 1 sends arrived and are called otherwise"),
        ({"state": "unknown", "reason": "line"}, "I3: 1 unknown with 0 crashes"),
        ({"state": "unknown"}, "I2: 1 sends ended without a reason"),
        ({"decided_at": None}, "I8: 1 sends left without a decision"),
        ({"contact_key": 2}, "I3: 1 contacts stand twice"),
        ({"state": "held_out", "reason": "holdout"}, "I1: the log tells 1 sends otherwise"),
    ],
)
def test_a_ledger_that_tells_it_wrongly_is_found(campaign: Campaign, values: dict[str, object], said: str) -> None:
    """States, reasons, decisions and intents that do not fit what arrived."""
    alter(campaign, **values)
    assert any(found.startswith(said) for found in check(*campaign).violations)


def test_mail_beyond_consent_cap_and_rate_is_found(campaign: Campaign) -> None:
    """After an unsubscribe, over the cap, faster than the domain's rate."""
    database, deliveries = campaign
    alter(campaign, contact_key=2)
    left = {2: (NOW - timedelta(seconds=5)).timestamp()}
    found = check(database, deliveries, cap=1, left_at=left, rate_per_minute={"shop.example": 3}).violations
    assert [one[:2] for one in found] == ["I3", "I4", "I5", "I6"]


def test_the_policies_differ_in_what_a_crash_may_do(campaign: Campaign) -> None:
    """A double after a crash is allowed where mails are resent, an unknown where they are held; not the reverse."""
    database, deliveries = campaign
    doubled = [*deliveries, deliveries[0]]
    assert check(database, doubled, crashes=1, connections=1, crash_policy="resend").violations == []
    assert check(database, doubled, crashes=1, connections=1).violations
    alter(campaign, state="unknown", reason="line")
    assert not any("I3" in one for one in check(database, deliveries, crashes=1, connections=1).violations)
    found = check(database, deliveries, crashes=1, connections=1, crash_policy="resend").violations
    assert any(one.startswith("I3: 1 unknown") for one in found)


def test_an_event_that_is_not_stored_is_found(campaign: Campaign) -> None:
    """What a client was told is taken has to be there."""
    assert check_events(campaign[0], ["sent/1"], source="kairos") == []
    assert check_events(campaign[0], ["sent/99"], source="kairos") == [
        "I1: event sent/99 was accepted and is stored 0 times"
    ]
