"""Laws of what came back: of which mail it is, what is logged, and which address gets no more mail."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from features.contacts import update_traits
from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import (
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_COMPLAINED,
    EMAIL_DELIVERED,
    EMAIL_OPENED,
    EMAIL_SENT,
)
from service.bounces import Feedback, Recorded, messages_in, read_report, record_reports, take_feedback
from service.database import Database
from service.erase import erase_contacts
from service.errors import NotFound
from service.links import sign_bounce
from service.settings import Settings
from service.suppression import address_hmac
from service.tables import SendRow, SuppressionRow
from tests.service.bounces import corpus
from tests.service.mailing import events, plan, send_row, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
KEY, PEPPER = "key", "pepper"
BACK = "back.kairos.example"


def sent(database: Database, n: int, *, at: datetime = NOW, **values: Any) -> list[SendRow]:
    """Mails that left to ``c0@shop.example``, ``c1@…``, as the ledger holds them."""
    keys = subscribe(database, n, now=NOW - timedelta(days=60))
    ids = plan(database, keys, now=at, state="accepted", finished_at=at, **values)
    with database.writing() as session:
        for send_id in ids:
            message_id = f"<s{send_id}.{send_id:012x}@kairos.example>"
            session.execute(update(SendRow).where(SendRow.send_id == send_id).values(message_id=message_id))
    return [send_row(database, send_id) for send_id in ids]


def returned(send: SendRow, address: str, **changes: Any) -> str:
    values = {"sender": "x@y.example", "address": address, "message_id": send.message_id, "send_id": send.send_id}
    return corpus.OURS.format(**values | changes)


def to(send: SendRow) -> str:
    return f"b+{sign_bounce(KEY, send.send_id)}@{BACK}"


def record(database: Database, *raws: str, now: datetime = NOW) -> list[Recorded]:
    reports = [read_report(raw.encode()) for raw in raws]
    with database.writing() as session:
        return record_reports(session, reports, signing_key=KEY, pepper=PEPPER, now=now)


def suppressed(database: Database) -> dict[str, str]:
    with database.reading() as session:
        return dict(session.execute(select(SuppressionRow.address_hmac, SuppressionRow.reason)).all())


def hmac(place: int) -> str:
    return address_hmac(PEPPER, f"c{place}@shop.example")


def test_a_hard_bounce_is_logged_once_and_stops_the_address(any_database: Database) -> None:
    """The event names its send and holds no address; the same report again, or another of it, changes nothing."""
    [send] = sent(any_database, 1, campaign_id="spring")
    raw = corpus.postfix(to(send), returned(send, "c0@shop.example"), "c0@shop.example")

    [first] = record(any_database, raw)
    again = record(any_database, raw, corpus.exchange(to(send), returned(send, "c0@shop.example"), "c0@shop.example"))

    assert (first.outcome, first.send_id, first.severity, first.is_suppressed) == (
        "bounced",
        send.send_id,
        "hard",
        True,
    )
    assert [one.outcome for one in again] == ["duplicate", "duplicate"]
    [event] = events(any_database, EMAIL_BOUNCED)
    told = json.loads(event.properties or "")
    assert (event.ref, event.contact_key, event.identity) == (str(send.send_id), send.contact_key, "user:c0")
    assert (told["is_permanent"], told["status"], told["code"], told["campaign_id"]) == (True, "5.1.1", 550, "spring")
    assert "@" not in (event.properties or "")
    assert send_row(any_database, send.send_id).bounce == "hard"
    assert suppressed(any_database) == {hmac(0): "hard_bounce"}


@pytest.mark.parametrize("shape", ["postfix", "exim", "qmail", "exchange", "gmail"])
def test_the_message_id_alone_finds_the_send(shape: str, database: Database) -> None:
    """Without a return path of its own: what comes back has the fingerprint that only the ledger and the mail know."""
    _, send = sent(database, 2)
    raw = corpus.SHAPES[shape][0]("hello@kairos.example", returned(send, "c1@shop.example"), "c1@shop.example")

    assert [one.send_id for one in record(database, raw)] == [send.send_id]


def test_an_address_finds_its_newest_mail_or_the_one_that_is_named(any_database: Database) -> None:
    """A relay that changed the Message-ID: the address is looked up, in any case of its letters."""
    first, _ = sent(any_database, 2)
    with any_database.writing() as session:
        session.execute(update(SendRow).values(finished_at=NOW - timedelta(days=1)))
    [newest] = plan(any_database, [first.contact_key], now=NOW - timedelta(hours=1), state="accepted", finished_at=NOW)
    named = corpus.ses("hello@kairos.example", returned(first, "C0@Shop.example"), "C0@Shop.example")
    bare = corpus.complaint("fbl@kairos.example", "", "x", told="Original-Rcpt-To: c0@shop.example\n")

    assert [(one.outcome, one.send_id) for one in record(any_database, named, bare)] == [
        ("bounced", first.send_id),
        ("complained", newest),
    ]


def test_forged_reports_are_refused(database: Database) -> None:
    """A bare number, a made-up fingerprint, a token of another key or of an open: nobody's address is stopped."""
    from service.links import sign_open

    sent(database, 1)
    [send] = [send_row(database, row) for row in [1]]
    address = "c0@shop.example"
    other = returned(send, "somebody@else.example")
    forged = returned(send, address, message_id=f"<s{send.send_id}.ffffffffffff@kairos.example>")
    raws = [
        corpus.postfix("hello@kairos.example", forged, address),
        corpus.postfix(f"b+{sign_bounce('other', send.send_id)}@{BACK}", "", address),
        corpus.postfix(f"b+{sign_open(KEY, send.send_id).lower()}@{BACK}", "", address),
        corpus.ses("hello@kairos.example", other, "somebody@else.example"),
        corpus.postfix(
            "hello@kairos.example", returned(send, "x@y.example", message_id="<other@z.example>"), "x@y.example"
        ),
    ]

    assert [one.outcome for one in record(database, *raws)] == ["refused"] * 3 + ["unmatched"] * 2
    assert suppressed(database) == {}
    assert events(database, EMAIL_BOUNCED) == []


def test_an_address_without_recent_mail_cannot_be_bounced(database: Database) -> None:
    """Whoever knows an address cannot stop it unless we wrote to it lately."""
    sent(database, 1, at=NOW - timedelta(days=40))
    raw = corpus.postfix("hello@kairos.example", "", "c0@shop.example")

    assert [one.outcome for one in record(database, raw)] == ["unmatched"]
    assert suppressed(database) == {}


def test_a_token_does_not_stop_somebody_elses_address(database: Database) -> None:
    """Our mail to c0 comes back with c1's address in it: c1's is not touched."""
    send, _ = sent(database, 2)
    raw = corpus.postfix(to(send), returned(send, "c1@shop.example"), "c1@shop.example")

    [done] = record(database, raw)

    assert (done.outcome, done.is_suppressed) == ("bounced", False)
    assert suppressed(database) == {}


def test_a_new_address_is_not_stopped_for_the_old_one(database: Database) -> None:
    """Between the mail and its report the contact told another address."""
    [send] = sent(database, 1)
    with database.writing() as session:
        update_traits(session, {send.contact_key: {"email": "new@shop.example"}}, now=NOW)
    raw = corpus.postfix(to(send), returned(send, "c0@shop.example"), "c0@shop.example")

    [done] = record(database, raw)

    assert (done.outcome, done.is_suppressed) == ("bounced", False)
    assert "another address" in done.why


def test_a_forwarded_mail_stops_the_address_that_we_wrote_to(database: Database) -> None:
    [send] = sent(database, 1)
    raw = corpus.postfix(to(send), returned(send, "c0@shop.example"), "forwarded@elsewhere.example")

    assert [one.is_suppressed for one in record(database, raw)] == [True]
    assert suppressed(database) == {hmac(0): "hard_bounce"}


def test_what_is_known_never_gets_better(any_database: Database) -> None:
    """Soft, then hard: two events and a hard bounce; a soft one or a delivery afterwards changes nothing."""
    [send] = sent(any_database, 1)
    mail, address = returned(send, "c0@shop.example"), "c0@shop.example"
    soft, hard = corpus.full_mailbox(to(send), mail, address), corpus.postfix(to(send), mail, address)

    outcomes = [record(any_database, raw)[0].outcome for raw in (soft, hard, soft, hard)]
    with any_database.writing() as session:
        take_feedback(
            session, [Feedback(send.contact_key, send.send_id, "soft", NOW)], source="t", pepper=PEPPER, now=NOW
        )
    late = [record(any_database, corpus.refused_by_policy(to(send), mail, address))[0].outcome]

    assert outcomes + late == ["bounced", "bounced", "duplicate", "duplicate", "duplicate"]
    assert send_row(any_database, send.send_id).bounce == "hard"
    assert suppressed(any_database) == {hmac(0): "hard_bounce"}


def test_a_complaint_stops_the_address_and_tops_a_bounce_of_the_same_batch(any_database: Database) -> None:
    a, b = sent(any_database, 2)
    raws = [
        corpus.complaint(to(a), returned(a, "c0@shop.example"), "c0@shop.example"),
        corpus.postfix(to(b), returned(b, "c1@shop.example"), "c1@shop.example"),
        corpus.complaint(to(b), returned(b, "c1@shop.example"), "c1@shop.example"),
    ]

    assert [one.outcome for one in record(any_database, *raws)] == ["complained", "bounced", "complained"]
    assert suppressed(any_database) == {hmac(0): "complaint", hmac(1): "complaint"}
    assert len(events(any_database, EMAIL_COMPLAINED)) == 2
    assert send_row(any_database, a.send_id).complained_at == NOW


@pytest.mark.parametrize("shape", ["delayed", "relayed", "away", "letter", "not spam"])
def test_what_is_no_bounce_does_nothing(shape: str, database: Database) -> None:
    [send] = sent(database, 1)

    [done] = record(database, corpus.SHAPES[shape][0](to(send), returned(send, "c0@shop.example"), "c0@shop.example"))

    assert (done.outcome, suppressed(database)) == ("ignored", {})


def test_a_policy_never_stops_the_address(database: Database) -> None:
    """Ten refusals of us say nothing of the address."""
    sends = [sent(database, 1, at=NOW + timedelta(minutes=i))[0] for i in range(10)]
    raws = [corpus.refused_by_policy(to(send), returned(send, "c0@shop.example"), "c0@shop.example") for send in sends]

    assert {one.outcome for one in record(database, *raws, now=NOW + timedelta(hours=1))} == {"bounced"}
    assert suppressed(database) == {}
    assert send_row(database, sends[0].send_id).bounce == "policy"


SOFT_STORIES = {
    "three in a row": ("sss", True),
    "two": ("ss", False),
    "one mail told three times": ("111", False),
    "three within more than thirty days": ("s" + "." * 20 + "s" + "." * 20 + "s", False),
    "a delivery in between": ("sdss", False),
    "a delivery before": ("dsss", True),
    "a human open in between": ("soss", False),
    "a machine's open in between": ("smss", True),
    "a click in between": ("ssks", False),
    "a mail that did not come back in between": ("saass", False),
    "a mail that may still come back": ("sssa", True),
    "three after a delivery": ("ssdsss", True),
    "a delivery of the mail that came back": ("1Dss", True),
    "policies in between do not count": ("spps", False),
}


@pytest.mark.parametrize("story", SOFT_STORIES)
def test_soft_bounces_stop_an_address_after_three_without_a_sign_of_life(story: str, database: Database) -> None:
    """Each sign is a day, a point one of nothing.

    s: soft bounce of a new mail, 1: of the first mail, p: policy; d: a mail delivered, D: the first one delivered;
    a: one accepted and nothing more; o: open, m: machine's open, k: click.
    """
    days, is_stopped = SOFT_STORIES[story]
    [key] = subscribe(database, 1, now=NOW)
    start = NOW - timedelta(days=len(days))
    for day, sign in enumerate(days):
        at = start + timedelta(days=day)
        if sign == ".":
            continue
        [send_id] = plan(database, [key], now=at, state="accepted", finished_at=at)
        ref = str(send_id if sign not in "1D" else 1)
        kind, human = {
            "d": (EMAIL_DELIVERED, None), "D": (EMAIL_DELIVERED, None), "o": (EMAIL_OPENED, 900_000),
            "m": (EMAIL_OPENED, 100_000), "k": (EMAIL_CLICKED, 900_000),
        }.get(sign, (EMAIL_SENT, None))  # fmt: skip
        with database.writing() as session:
            if sign in "s1p":
                severity: Any = "policy" if sign == "p" else "soft"
                told = [Feedback(key, int(ref), severity, at)]
                take_feedback(session, told, source="test", pepper=PEPPER, now=at)
                first = [NewEvent(key, EMAIL_SENT, to_micros(at) - 5, f"{day}/sent", "user:c0", ref=ref)]
                bounced = NewEvent(
                    key, EMAIL_BOUNCED, to_micros(at), f"{day}/b", "user:c0", ref=ref, properties={"bounce": severity}
                )
                append(session, [*first, bounced], received_at=to_micros(at))
            else:
                one = NewEvent(key, kind, to_micros(at), f"{day}", "user:c0", ref=ref, human_ppm=human)
                append(session, [one], received_at=to_micros(at))

    assert suppressed(database) == ({hmac(0): "hard_bounce"} if is_stopped else {})


def test_an_erased_contact_gets_no_event(any_database: Database, settings: Settings) -> None:
    """Its mail comes back after the erasure: the token is good, but there is nobody left."""
    [send] = sent(any_database, 1)
    erase_contacts(any_database, settings, ["c0"], now=NOW)
    raw = corpus.postfix(to(send), returned(send, "c0@shop.example"), "c0@shop.example")

    assert [one.outcome for one in record(any_database, raw)] == ["unmatched"]
    assert events(any_database, EMAIL_BOUNCED) == []


def test_a_batch_is_read_in_a_fixed_number_of_queries(database: Database, count_queries: Callable[..., int]) -> None:
    """Two hundred reports of mails, addresses and tokens take as many queries as twenty."""
    sends = sent(database, 220)

    def raws(some: list[SendRow]) -> list[str]:
        return [
            corpus.postfix(
                to(send) if place % 2 else "x@y.example", returned(send, f"c{n}@shop.example"), "z@y.example"
            )
            for place, send in enumerate(some)
            for n in [send.send_id - 1]
        ]

    few = count_queries(database, lambda: record(database, *raws(sends[:20])))
    many = count_queries(database, lambda: record(database, *raws(sends[20:])))

    assert many <= few + 2
    assert len(suppressed(database)) == 220


def test_messages_are_read_from_a_file_an_mbox_a_maildir_and_a_folder(tmp_path: Path) -> None:
    """Each place gives the messages as they came; a place that is not there is told."""
    import mailbox

    raws = [corpus.letter("a@x.example", "", f"c{i}@shop.example") for i in range(3)]
    (tmp_path / "one.eml").write_text(raws[0])
    box = mailbox.mbox(tmp_path / "box")
    maildir = mailbox.Maildir(tmp_path / "dir")
    folder = tmp_path / "folder"
    folder.mkdir()
    for place, raw in enumerate(raws):
        box.add(raw)
        maildir.add(raw)
        (folder / f"{place}.eml").write_text(raw)
    box.close()

    assert list(messages_in(str(tmp_path / "one.eml"))) == [raws[0].encode()]
    for place in ("box", "dir", "folder"):
        read = [raw.decode() for raw in messages_in(str(tmp_path / place))]
        assert sorted(text.strip() for text in read) == sorted(raw.strip() for raw in raws)
    with pytest.raises(NotFound, match="maildir"):
        list(messages_in(str(tmp_path / "nowhere")))
