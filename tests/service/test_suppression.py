"""Laws of consent and suppression."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import func, select

from features.vocabulary import UNSUBSCRIBED
from service.database import Database
from service.suppression import (
    Consent,
    address_hmac,
    consent_states,
    mailable,
    set_consent,
    suppress,
    unsubscribe,
)
from service.tables import ConsentRow, SuppressionRow
from tests.service.mailing import TOPIC, events, plan, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
PEPPER = "pepper"


def test_the_newest_line_is_in_force(any_database: Database) -> None:
    """Consent is the newest line of its topic; other topics and contacts are not touched; no line is unknown."""
    a, b = subscribe(any_database, 2, now=NOW)
    with any_database.writing() as session:
        set_consent(session, [Consent(a, TOPIC, "unsubscribed", "page"), Consent(a, TOPIC, "pending", "form")], now=NOW)
        assert consent_states(session, [a, b, 999], TOPIC) == {a: "pending", b: "subscribed", 999: "unknown"}
        assert consent_states(session, [a], "another") == {a: "unknown"}


def test_the_ledger_keeps_every_change_and_no_repeat(any_database: Database) -> None:
    """Each change is a line of its own; the same answer from the same source is not written twice."""
    [key] = subscribe(any_database, 1, now=NOW)
    with any_database.writing() as session:
        for state in ("unsubscribed", "subscribed", "subscribed"):
            set_consent(session, [Consent(key, TOPIC, state, "page", "v2")], now=NOW)
        lines = session.execute(select(ConsentRow.state).order_by(ConsentRow.consent_id)).scalars().all()
    assert lines == ["subscribed", "unsubscribed", "subscribed"]


def test_a_state_outside_the_four_is_refused(database: Database) -> None:
    """Nothing is written of a batch with a state that does not exist."""
    with database.writing() as session, pytest.raises(ValueError, match="'yes' is no consent state"):
        set_consent(session, [Consent(1, TOPIC, "yes", "page")], now=NOW)


def test_a_suppressed_address_keeps_its_first_reason(any_database: Database) -> None:
    """Suppressing again adds nothing, whatever the capitals, and the list holds no address."""
    with any_database.writing() as session:
        assert (
            suppress(session, [address_hmac(PEPPER, "Ann@Shop.example")], reason="complaint", source="x", now=NOW) == 1
        )
        assert suppress(session, [address_hmac(PEPPER, "ann@shop.example ")], reason="manual", source="x", now=NOW) == 0
        row = session.execute(select(SuppressionRow)).scalar_one()
    assert row.reason == "complaint"
    assert "ann" not in f"{row.address_hmac} {row.source}".lower()
    assert address_hmac("another pepper", "ann@shop.example") != row.address_hmac


def test_mailable_asks_three_queries_for_all(any_database: Database) -> None:
    """The number of queries does not grow with the number of contacts."""
    keys = subscribe(any_database, 1000, now=NOW)
    counted: list[str] = []
    sqlalchemy_event.listen(any_database.engine, "before_cursor_execute", lambda *args: counted.append(args[2]))
    with any_database.reading() as session:
        reasons = mailable(session, keys, TOPIC, pepper=PEPPER)
    assert set(reasons.values()) == {None}
    assert len([query for query in counted if query.startswith("SELECT")]) == 3


def test_unsubscribing_twice_is_unsubscribing_once(any_database: Database) -> None:
    """One line in the ledger, one event, however often it is asked; unknown sends are told."""
    [key] = subscribe(any_database, 1, now=NOW)
    first, second = plan(any_database, [key], now=NOW) + plan(any_database, [key], now=NOW)
    with any_database.writing() as session:
        assert unsubscribe(session, [first, second, 10**9], source="one-click", now=NOW).unknown == (10**9,)
    with any_database.writing() as session:
        again = unsubscribe(session, [first], source="one-click", now=NOW + timedelta(days=1))
    assert (again.changed, again.already) == ((), (key,))
    assert [event.ref for event in events(any_database, UNSUBSCRIBED)] == [str(first)]
    with any_database.reading() as session:
        assert consent_states(session, [key], TOPIC) == {key: "unsubscribed"}


def test_unsubscribing_at_once_from_many_places_counts_once(any_database: Database) -> None:
    """A mail program and a scanner that post together write one line and one event."""
    [key] = subscribe(any_database, 1, now=NOW)
    sends = [plan(any_database, [key], now=NOW)[0] for _ in range(6)]

    def post(send_id: int) -> None:
        with any_database.writing() as session:
            unsubscribe(session, [send_id], source="one-click", now=NOW)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(post, sends))
    assert len(events(any_database, UNSUBSCRIBED)) == 1
    with any_database.reading() as session:
        assert session.execute(select(func.count()).select_from(ConsentRow)).scalar_one() == 2


def test_who_subscribes_again_may_unsubscribe_again(any_database: Database) -> None:
    """The same link works again after a new subscription, as a new event."""
    [key] = subscribe(any_database, 1, now=NOW)
    [send_id] = plan(any_database, [key], now=NOW)
    for day in range(2):
        at = NOW + timedelta(days=day)
        with any_database.writing() as session:
            unsubscribe(session, [send_id], source="one-click", now=at)
            set_consent(session, [Consent(key, TOPIC, "subscribed", "form")], now=at)
    assert len(events(any_database, UNSUBSCRIBED)) == 2
