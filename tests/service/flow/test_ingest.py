"""Laws of the one door through which events enter."""

import json
import math
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.tables import from_micros
from service.database import Database
from service.errors import Conflict
from service.flow.ingest import INTERNAL, Ingested, ingest
from service.suppression import Consent, address_hmac, consent_states, release_contact, set_consent, suppress
from service.tables import ContactRow, EventRow, IdentityRow, QuarantineRow, SendRow, SuppressionRow
from tests.service.mailing import plan


def order(message_id: str = "m1", **changes: Any) -> dict[str, Any]:
    body = {
        "type": "track",
        "event": "Order Completed",
        "userId": "42",
        "messageId": message_id,
        "timestamp": "2026-03-01T12:00:00Z",
        "properties": {"order_id": "A-1", "revenue": 12.345, "currency": "GBP"},
    }
    return body | changes


def put(session: Session, messages: list[Any], now: datetime, **options: Any) -> Ingested:
    return ingest(session, messages, source=options.pop("source", "segment"), now=now, **options)


def only_event(session: Session) -> EventRow:
    return session.scalars(select(EventRow)).one()


def contact(session: Session, user_id: str = "42") -> ContactRow:
    session.expire_all()
    return session.scalars(select(ContactRow).where(ContactRow.user_id == user_id)).one()


def test_an_order_is_stored_with_its_money_and_id(any_database: Database, now: datetime):
    """Revenue becomes minor units, rounded half up in decimal; the order id becomes the reference."""
    with any_database.writing() as session:
        report = put(session, [order()], now)
        event = only_event(session)

        assert (report.stored, report.duplicates, report.quarantined) == (1, 0, ())
        assert (event.value_minor, event.ref, event.message_id) == (1235, "A-1", "segment/m1")
        assert from_micros(event.occurred_at).isoformat() == "2026-03-01T12:00:00+00:00"


def test_a_message_delivered_again_is_stored_once(any_database: Database, now: datetime):
    """The same messageId in one batch, and in a later one, changes nothing."""
    with any_database.writing() as session:
        first = put(session, [order(), order()], now)
    with any_database.writing() as session:
        again = put(session, [order()], now + timedelta(hours=1))

    assert (first.stored, first.duplicates) == (1, 1)
    assert (again.stored, again.duplicates) == (0, 1)


def test_a_message_without_an_id_is_known_by_its_content(database: Database, now: datetime):
    """Delivered twice it is one event; with another content it is another."""
    with database.writing() as session:
        anonymous_order = {key: value for key, value in order().items() if key != "messageId"}
        put(session, [anonymous_order], now)

        assert put(session, [anonymous_order], now + timedelta(minutes=1)).stored == 0
        assert put(session, [anonymous_order | {"userId": "43"}], now).stored == 1


def test_a_wrong_sender_clock_is_taken_out(database: Database, now: datetime):
    """A sender two days ahead, whose event was ten minutes old when sent: it happened ten minutes before receipt."""
    sent_at = now + timedelta(days=2)
    stamp = (sent_at - timedelta(minutes=10)).isoformat()
    with database.writing() as session:
        put(session, [order(timestamp=stamp)], now, sent_at=sent_at)

        assert from_micros(only_event(session).occurred_at) == now - timedelta(minutes=10)


def test_no_event_lies_in_the_future(database: Database, now: datetime):
    """A timestamp after the receipt counts as the receipt."""
    with database.writing() as session:
        put(session, [order(timestamp=(now + timedelta(days=30)).isoformat())], now)

        assert from_micros(only_event(session).occurred_at) == now


def test_other_currencies_are_counted_and_not_summed(database: Database, now: datetime):
    """The amount stays in the properties, the summed value is empty."""
    with database.writing() as session:
        put(session, [order(properties={"order_id": "1", "revenue": 10, "currency": "EUR"})], now)
        event = only_event(session)

        assert event.value_minor is None
        assert json.loads(event.properties or "")["revenue"] == 10


BAD = {
    "not an object": ["list"],
    "unknown type": order(type="purchase"),
    "no identity": {key: value for key, value in order().items() if key != "userId"},
    "identity of a wrong type": order(userId={"id": 1}),
    "identity too long": order(userId="x" * 241),
    "identity of the reserved form": order(userId="anonymous_id:7"),
    "no event name": {key: value for key, value in order().items() if key != "event"},
    "event name of a wrong type": order(event=["x"]),
    "event name too long": order(event="x" * 81),
    "NaN": order(properties={"revenue": math.nan}),
    "infinite": order(properties={"deep": [{"x": math.inf}]}),
    "NUL": order(properties={"note": "a\x00b"}),
    "NUL in a name": order(properties={"a\x00": 1}),
    "half a surrogate": order(properties={"note": "\ud800"}),
    "too large": order(properties={"note": "x" * 33_000}),
    "too deep": order(properties=json.loads('{"a":' * 40 + "1" + "}" * 40)),
    "properties of a wrong type": order(properties=[1]),
    "money of a wrong type": order(properties={"revenue": True}),
    "money that is no number": order(properties={"revenue": "a lot"}),
    "money beyond all bounds": order(properties={"revenue": 1e30}),
    "money in words that Decimal knows": order(properties={"revenue": "Infinity"}),
    "no time": order(timestamp="yesterday"),
    "time of a wrong type": order(timestamp=1),
    "time before 1970": order(timestamp="1960-01-01T00:00:00Z"),
    "reserved name": order(event="Email Sent"),
    "reserved alias": order(event="Email Clicked"),
    "reserved call": order(event="Identify"),
    "reference of a wrong type": order(properties={"order_id": [1]}),
    "alias without a previous id": {"type": "alias", "userId": "42"},
    "group without a group": {"type": "group", "userId": "42"},
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_message_is_set_aside_and_its_neighbours_are_kept(what: str, database: Database, now: datetime):
    """It goes to the quarantine with a reason; the good messages before and after it are stored."""
    with database.writing() as session:
        report = put(session, [order("before"), BAD[what], order("after")], now)
        row = session.scalars(select(QuarantineRow)).one()

        assert report.stored == 2
        assert [entry.index for entry in report.quarantined] == [1]
        assert row.reason == report.quarantined[0].reason
        assert len(row.reason) < 300


def test_bad_messages_are_set_aside_on_postgresql_too(any_database: Database, now: datetime):
    """Not one of them raises in either database, and delivered twice each is one row."""
    with any_database.writing() as session:
        put(session, list(BAD.values()), now)
        report = put(session, [*BAD.values(), order("good")], now)

        assert report.stored == 1
        assert len(session.scalars(select(QuarantineRow)).all()) == len(BAD)


def test_the_reason_names_the_value_and_the_remedy(database: Database, now: datetime):
    """NaN in a property: where it is, what it is, what to do."""
    with database.writing() as session:
        report = put(session, [BAD["NaN"]], now)

    assert report.quarantined[0].reason == "properties.revenue is nan; send a finite number or leave it out"


def test_unknown_names_and_fields_are_kept(database: Database, now: datetime):
    """A caller's own event is stored under its own name with everything it carried."""
    with database.writing() as session:
        put(session, [order(event="Quiz Finished", properties={"score": 7, "deep": {"a": [1]}}, whatever=1)], now)
        event = only_event(session)

        assert event.kind == "Quiz Finished"
        assert json.loads(event.properties or "") == {"score": 7, "deep": {"a": [1]}}


def test_reserved_names_are_open_to_kairos_itself(database: Database, now: datetime):
    """What Kairos emits may enter by the same door."""
    with database.writing() as session:
        report = put(session, [order(event="Email Sent", properties={"send_id": 7})], now, source=INTERNAL)

        assert report.stored == 1
        assert only_event(session).ref == "7"


@pytest.mark.parametrize("place", ["traits", "context"])
def test_identify_keeps_the_address_out_of_the_log(place: str, any_database: Database, now: datetime):
    """Traits from `traits` or, as RudderStack sends them, `context.traits`; the address goes to the contact only."""
    told = {
        "email": "Ann@Shop.example",
        "first_name": "Ann",
        "timezone": "Europe/Berlin",
        "note": "cc bob@shop.example",
    }
    body = {"type": "identify", "userId": "42", "messageId": "i1"}
    with any_database.writing() as session:
        put(session, [body | ({"traits": told} if place == "traits" else {"context": {"traits": told}})], now)
        event, row = only_event(session), contact(session)

        assert (row.email, row.timezone, row.traits["first_name"]) == ("Ann@shop.example", "Europe/Berlin", "Ann")
        assert event.kind == "Identify"
        assert "@" not in (event.properties or "")
        assert "@" not in json.dumps(row.traits)
        assert event.hour_of_week == 10  # Monday 09:00 UTC is 10:00 in Berlin


def test_a_bad_address_costs_only_the_address(database: Database, now: datetime):
    """The identify is stored with its other traits; the address is set aside with the reason."""
    body = {"type": "identify", "userId": "42", "traits": {"email": "ann at shop", "plan": "gold", "timezone": "Mars"}}
    with database.writing() as session:
        report = put(session, [body], now)
        row = contact(session)

        assert (report.stored, row.email, row.traits, row.timezone) == (1, None, {"plan": "gold"}, None)
        assert [entry.event_kept for entry in report.quarantined] == [True, True]
        assert "'ann at shop'" in report.quarantined[0].reason


def test_an_old_identify_delivered_again_does_not_undo_a_newer_one(database: Database, now: datetime):
    """A retry of the first message after the second leaves the second's trait."""
    first = {"type": "identify", "userId": "42", "messageId": "1", "traits": {"plan": "free"}}
    second = {"type": "identify", "userId": "42", "messageId": "2", "traits": {"plan": "gold"}}
    with database.writing() as session:
        put(session, [first, second], now)
        put(session, [first], now)

        assert contact(session).traits == {"plan": "gold"}


def test_unsubscribing_from_outside_counts_at_once(any_database: Database, now: datetime):
    """An `Unsubscribed` event closes every topic the contact has; one that names a topic closes that."""
    with any_database.writing() as session:
        put(session, [{"type": "identify", "userId": "42", "traits": {"email_consent": "subscribed"}}], now)
        key = contact(session).contact_key
        set_consent(session, [Consent(key, "news", "subscribed", "form")], now=now)
        assert consent_states(session, [key], "marketing") == {key: "subscribed"}

        put(session, [{"type": "track", "event": "Unsubscribed", "userId": "42"}], now)

        assert consent_states(session, [key], "marketing") == {key: "unsubscribed"}
        assert consent_states(session, [key], "news") == {key: "unsubscribed"}


def test_a_repeated_trait_never_subscribes_again_who_unsubscribed(database: Database, now: datetime):
    """Programs repeat the traits they know; an unsubscribed person stays so."""
    wish = {"type": "identify", "userId": "42", "traits": {"email_consent": "subscribed"}}
    with database.writing() as session:
        put(session, [wish | {"messageId": "1"}], now)
        put(session, [{"type": "identify", "userId": "42", "traits": {"email_consent": "unsubscribed"}}], now)
        put(session, [wish | {"messageId": "2"}], now)
        key = contact(session).contact_key

        assert consent_states(session, [key], "marketing") == {key: "unsubscribed"}


def test_alias_gives_an_unknown_name_to_the_contact(any_database: Database, now: datetime):
    """What comes under the previous name afterwards belongs to the same contact."""
    with any_database.writing() as session:
        put(session, [{"type": "alias", "userId": "42", "previousId": "a1"}], now)
        put(session, [{"type": "page", "anonymousId": "a1", "name": "Home"}], now)

        assert set(session.scalars(select(EventRow.contact_key))) == {contact(session).contact_key}
        assert set(session.scalars(select(EventRow.kind))) == {"Alias", "Page"}


def test_alias_leaves_a_known_name_where_it_is(database: Database, now: datetime):
    """A name that already has a contact is a merge, which an alias alone does not do."""
    with database.writing() as session:
        put(session, [{"type": "page", "anonymousId": "a1"}], now)
        put(session, [{"type": "alias", "userId": "42", "previousId": "a1"}], now)
        owner = session.scalar(select(IdentityRow.contact_key).where(IdentityRow.identity == "anonymous:a1"))

        assert owner == contact(session, "anonymous_id:a1").contact_key != contact(session).contact_key


def test_a_batch_of_many_contacts_takes_few_statements(database: Database, now: datetime):
    """A thousand contacts take as many statements as one: no query stands in a loop."""
    from sqlalchemy import event as hook

    def count(messages: list[Any]) -> int:
        statements: list[str] = []
        with database.writing() as session:
            listener = lambda *args: statements.append(args[2])  # noqa: E731
            hook.listen(database.engine, "before_cursor_execute", listener)
            put(session, messages, now)
            hook.remove(database.engine, "before_cursor_execute", listener)
        return len(statements)

    def identify(i: int) -> dict[str, Any]:
        return {
            "type": "identify",
            "userId": f"u{i}",
            "messageId": f"n{i}",
            "traits": {"plan": i, "email_consent": "subscribed"},
        }

    assert count([identify(i) for i in range(1, 1001)]) <= count([identify(0)]) + 2


def test_a_zone_that_nobody_told_is_inferred_and_gives_way_to_one_that_was(any_database: Database, now: datetime):
    """`context.timezone` fills the gap, marked as inferred; a trait replaces it, and later contexts do not."""
    page = {"type": "page", "userId": "42", "context": {"timezone": "America/New_York"}}
    told = {"type": "identify", "userId": "42", "traits": {"timezone": "Europe/Berlin"}}
    with any_database.writing() as session:
        put(session, [page | {"messageId": "1"}], now)
        first = contact(session)
        assert (first.timezone, first.timezone_source) == ("America/New_York", "inferred")

        put(session, [told, page | {"messageId": "2"}], now)
        second = contact(session)
        assert (second.timezone, second.timezone_source) == ("Europe/Berlin", "explicit")
        assert {row.hour_of_week for row in session.scalars(select(EventRow).where(EventRow.kind == "Page"))} == {4}


# -- what providers tell of our mail -----------------------------------------------------------------------------------

PEPPER = "pepper"


def told(event: str, message_id: str, user_id: str = "42", **properties: Any) -> dict[str, Any]:
    return order(message_id, event=event, userId=user_id, timestamp="2026-03-02T08:00:00Z", properties=properties)


def stopped(session: Session) -> dict[str, str]:
    return dict(session.execute(select(SuppressionRow.source, SuppressionRow.reason)).all())


def with_address(session: Session, now: datetime, *user_ids: str) -> None:
    put(
        session,
        [
            {"type": "identify", "userId": user_id, "traits": {"email": f"{user_id}@shop.example"}}
            for user_id in user_ids
        ],
        now - timedelta(days=60),
    )


@pytest.mark.parametrize(
    ("event", "properties", "reason"),
    [
        ("Email Marked as Spam", {}, "complaint"),
        ("Email Bounced", {"is_permanent": True}, "hard_bounce"),
        ("Email Bounced", {"type": "hard", "reason": "550 5.1.1 unknown"}, "hard_bounce"),
        ("Email Bounced", {"status": "5.1.1"}, "hard_bounce"),
        ("Email Bounced", {"is_permanent": False}, None),
        ("Email Bounced", {"is_permanent": True, "code": "550 5.7.1 blocked"}, None),
        ("Email Bounced", {}, None),
    ],
)
def test_a_complaint_or_hard_bounce_stops_the_address_at_once(
    event: str, properties: dict[str, Any], reason: str | None, any_database: Database, now: datetime
):
    """In the same transaction as the event; the list holds no address, the log no words with one."""
    with any_database.writing() as session:
        with_address(session, now, "42")
        report = put(session, [told(event, "b1", **properties)], now, pepper=PEPPER)

        assert (report.stored, report.quarantined) == (1, ())
        assert stopped(session) == ({"segment": reason} if reason else {})
        expected = [address_hmac(PEPPER, "42@shop.example")] if reason else []
        assert session.scalars(select(SuppressionRow.address_hmac)).all() == expected


def test_three_soft_bounces_in_one_batch_or_three_stop_the_address(any_database: Database, now: datetime):
    """Those of the log and those that come count together; delivered again they do not count again."""
    with any_database.writing() as session:
        with_address(session, now, "a", "b", "c")
        soft = [told("Email Bounced", f"{user}{i}", user, is_permanent=False) for user in "ab" for i in range(2)]
        put(session, soft, now, pepper=PEPPER)
        put(session, soft, now, pepper=PEPPER)
        assert stopped(session) == {}
        put(session, [told("Email Bounced", "a2", "a", is_permanent=False)], now, pepper=PEPPER)
        put(session, [told("Email Bounced", f"c{i}", "c", is_permanent=False) for i in range(3)], now, pepper=PEPPER)
        digests = set(session.scalars(select(SuppressionRow.address_hmac)))

        assert digests == {address_hmac(PEPPER, f"{user}@shop.example") for user in "ac"}


def test_an_event_marks_only_a_mail_of_its_own_contact(any_database: Database, now: datetime):
    """A bounce of a contact's own mail is in the ledger; one that names somebody else's mail blames nobody."""
    with any_database.writing() as session:
        with_address(session, now, "a", "b")
    with any_database.reading() as session:
        mine, other = contact(session, "a").contact_key, contact(session, "b").contact_key
    first, second = plan(any_database, [mine, other], now=now, state="accepted")
    with any_database.writing() as session:
        put(session, [told("Email Marked as Spam", "1", "a", send_id=str(first))], now, pepper=PEPPER)
        put(session, [told("Email Marked as Spam", "2", "a", send_id=str(second))], now, pepper=PEPPER)
        put(session, [told("Email Bounced", "3", "b", send_id=second, is_permanent=True)], now, pepper=PEPPER)
        put(session, [told("Email Delivered", "4", "b", send_id=str(first))], now, pepper=PEPPER)
        put(session, [told("Email Bounced", "5", "b", send_id="9" * 30, is_permanent=False)], now, pepper=PEPPER)
        marks = {
            row.send_id: (row.bounce, row.complained_at is not None)
            for row in session.execute(select(SendRow.send_id, SendRow.bounce, SendRow.complained_at))
        }
        refs = session.execute(
            select(EventRow.message_id, EventRow.ref).where(EventRow.kind.like("Email%")).order_by(EventRow.message_id)
        ).all()

    assert marks == {first: (None, True), second: ("hard", False)}
    assert [tuple(row) for row in refs] == [
        ("segment/1", str(first)), ("segment/2", None), ("segment/3", str(second)), ("segment/4", None),
        ("segment/5", None),
    ]  # fmt: skip


def test_without_the_pepper_a_bounce_is_refused_whole(database: Database, now: datetime):
    """A caller that could not suppress must not lose the bounce."""
    with pytest.raises(ValueError, match="pepper"), database.writing() as session:
        put(session, [told("Email Bounced", "b1", is_permanent=True)], now)
    with database.reading() as session:
        assert session.scalars(select(EventRow)).all() == []


@pytest.mark.parametrize("event", ["Email Marked as Spam", "Email Bounced", "Email Delivered"])
def test_a_browsers_key_cannot_tell_of_mails(event: str, any_database: Database, now: datetime):
    """Whoever reads the key in a page could stop anybody's mail: it is set aside, with the remedy, and does nothing."""
    with any_database.writing() as session:
        with_address(session, now, "42")
        report = put(session, [told(event, "b1", is_permanent=True)], now, pepper=PEPPER, may_report=False)

        assert report.stored == 0
        assert "scope write" in report.quarantined[0].reason
        assert stopped(session) == {}


@pytest.mark.parametrize(
    ("address", "occurred", "later", "is_stopped"),
    [
        ("42@shop.example", "2026-03-02T08:00:00Z", None, True),
        ("42@SHOP.example", "2026-03-02T08:00:00Z", None, True),
        ("old@shop.example", "2026-03-02T08:00:00Z", None, False),
        (None, "2025-11-02T08:00:00Z", None, False),
        (None, "2026-03-01T08:00:00Z", "Email Delivered", False),
        (None, "2026-03-01T08:00:00Z", "Address Released", False),
    ],
)
def test_an_old_bounce_does_not_stop_the_address_of_today(
    address: str | None, occurred: str, later: str | None, is_stopped: bool, any_database: Database, now: datetime
):
    """One of another address, of long ago, or from before a sign that the address works; it is logged all the same."""
    properties = {"is_permanent": True} | ({"email": address} if address else {})
    bounce = told("Email Bounced", "b1", **properties) | {"timestamp": occurred}
    with any_database.writing() as session:
        with_address(session, now, "42")
        if later:
            source = "kairos" if later == "Address Released" else "segment"
            put(session, [told(later, "d1")], now, pepper=PEPPER, source=source)
        assert put(session, [bounce], now, pepper=PEPPER).stored == 1

        assert bool(stopped(session)) == is_stopped
        assert "@" not in str(session.scalars(select(EventRow.properties)).all())


def test_a_released_address_starts_anew(any_database: Database, now: datetime):
    """Off the list, logged with who and why; soft bounces from before do not count any more, unsubscribing stays."""
    with any_database.writing() as session:
        with_address(session, now, "42")
        key = contact(session).contact_key
        soft = [told("Email Bounced", f"b{i}", is_permanent=False) for i in range(3)]
        put(session, soft, now, pepper=PEPPER)
        assert list(stopped(session).values()) == ["hard_bounce"]

        assert release_contact(session, key, reason="a mistake", by="me", pepper=PEPPER, now=now) == "hard_bounce"

        assert stopped(session) == {}
        event = session.scalars(select(EventRow).where(EventRow.kind == "Address Released")).one()
        assert json.loads(event.properties)["by"] == "me"
        put(session, [told("Email Bounced", "b4", is_permanent=False)], now, pepper=PEPPER)
        assert stopped(session) == {}
        with pytest.raises(Conflict, match="not suppressed"):
            release_contact(session, key, reason="again", by="me", pepper=PEPPER, now=now)
        suppress(session, [address_hmac(PEPPER, "42@shop.example")], reason="unsubscribed", source="x", now=now)
        with pytest.raises(Conflict, match="unsubscribed"):
            release_contact(session, key, reason="again", by="me", pepper=PEPPER, now=now)
