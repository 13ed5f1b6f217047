"""Laws of looking through the list, of applying it and of taking it back."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from features.contacts import resolve, update_traits
from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import EMAIL_BOUNCED, EMAIL_CLICKED, EMAIL_OPENED, EMAIL_SENT, ORDER_COMPLETED
from service.database import Database
from service.erase import erase_contacts
from service.errors import Conflict, Invalid, NotFound
from service.hygiene import apply_look, find_look, look, revert_look, rules_of, shown_look
from service.name_server import NameServer
from service.settings import Settings
from service.suppression import address_hmac, mailable, release, suppress
from service.tables import ContactRow, HygieneFindingRow, SuppressionRow
from tests.service.names import LocalNames

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)
ADDRESSES = {
    "ann": "ann@shop.example",
    "twin": "Ann@shop.example",
    "slip": "bob@gmial.com",
    "desk": "info@shop.example",
    "hour": "x1@yopmail.com",
    "dead": "cy@dead.example",
    "silent": "di@silent.example",
    "good": "ed@shop.example",
}
RECORDS: dict[str, Any] = {
    "shop.example": {"MX": ["10 mx.shop.example."]},
    "gmial.com": {"A": ["192.0.2.1"]},
    "yopmail.com": {"MX": ["10 mx.yopmail.com."]},
    "silent.example": "SERVFAIL",
}


def fill(database: Database, addresses: dict[str, str] = ADDRESSES) -> dict[str, int]:
    with database.writing() as session:
        keys = resolve(session, [f"user:{name}" for name in addresses], now=NOW - timedelta(days=400))
        named = {name: keys[f"user:{name}"] for name in addresses}
        update_traits(session, {named[n]: {"email": a} for n, a in addresses.items()}, now=NOW - timedelta(days=400))
    return named


def looked(database: Database, settings: Settings, *findings: str, now: datetime = NOW, **limits: int) -> str:
    with LocalNames(RECORDS) as server:
        names = NameServer(server.address, timeout_seconds=1)
        return look(database, settings, rules_of(findings or None, **limits), now=now, by="test", names=names)


def shown(database: Database, hygiene_id: str) -> dict[str, list[str]]:
    with database.reading() as session:
        report = shown_look(session, find_look(session, hygiene_id))
    return {one["finding"]: [example["user_id"] for example in one["examples"]] for one in report["findings"]}


def listed(database: Database) -> dict[str, tuple[str, str]]:
    with database.reading() as session:
        rows = session.execute(select(SuppressionRow.address_hmac, SuppressionRow.reason, SuppressionRow.source))
        return {digest: (reason, source) for digest, reason, source in rows}


def hmac(name: str) -> str:
    return address_hmac("p", ADDRESSES[name])


def apply(database: Database, hygiene_id: str, *findings: str, now: datetime = LATER) -> dict[str, Any]:
    with database.writing() as session:
        return apply_look(session, hygiene_id, pepper="p", now=now, findings=findings or None)


def revert(database: Database, hygiene_id: str) -> int:
    with database.writing() as session:
        return revert_look(session, hygiene_id, pepper="p", now=LATER)


def test_a_look_finds_and_changes_nothing(any_database: Database, settings: Settings) -> None:
    """Each finding with the contacts it is for, by user id; what a name server does not answer is no finding."""
    fill(any_database)

    hygiene_id = looked(any_database, settings)

    assert shown(any_database, hygiene_id) == {
        "syntax": [], "no_mail_server": ["dead"], "typo_domain": ["slip"], "role": ["desk"], "disposable": ["hour"],
        "never_engaged": [], "soft_bounces": [], "duplicate": ["twin"],
    }  # fmt: skip
    assert listed(any_database) == {}
    with any_database.reading() as session:
        row = find_look(session, hygiene_id)
        assert (row.state, row.report["contacts"], row.report["found"]) == ("previewed", 8, 5)
        kept = json.dumps([row.report, row.rules])
        assert "@" not in kept
        assert session.scalar(
            select(HygieneFindingRow.suggestion).where(HygieneFindingRow.finding == "typo_domain")
        ) == ("gmail.com")


def test_applying_suppresses_and_taking_back_frees_exactly_these(any_database: Database, settings: Settings) -> None:
    """What was on the list before stays, what bounced or complained in between stays, nothing else is touched."""
    keys = fill(any_database)
    with any_database.writing() as session:
        suppress(session, [hmac("desk")], reason="complaint", source="x", now=NOW)
    hygiene_id = looked(any_database, settings)

    done = apply(any_database, hygiene_id)

    source = f"hygiene/{hygiene_id}"
    assert done["suppressed"] == 3
    assert listed(any_database) == {hmac(n): ("hygiene", source) for n in ("slip", "hour")} | {
        hmac("dead"): ("manual", source), hmac("desk"): ("complaint", "x")
    }  # fmt: skip
    with any_database.reading() as session:
        receipts = mailable(session, [keys["slip"], keys["dead"]], "", pepper="p", stream="transactional")
    assert receipts == {keys["slip"]: None, keys["dead"]: "address suppressed: manual"}
    with any_database.writing() as session:
        assert mailable(session, [keys["dead"]], "news", pepper="p") == {keys["dead"]: "address suppressed: manual"}
        assert suppress(session, [hmac("hour")], reason="hard_bounce", source="smtp", now=LATER) == 1
    assert revert(any_database, hygiene_id) == 2
    assert listed(any_database) == {hmac("desk"): ("complaint", "x"), hmac("hour"): ("hard_bounce", "smtp")}
    with any_database.reading() as session:
        assert session.scalar(select(func.count()).select_from(ContactRow)) == 8


def test_some_findings_can_be_applied_alone(database: Database, settings: Settings) -> None:
    fill(database)
    hygiene_id = looked(database, settings)

    assert apply(database, hygiene_id, "disposable", "role")["suppressed"] == 2
    assert set(listed(database)) == {hmac("hour"), hmac("desk")}


def test_what_two_looks_found_stays_until_both_are_taken_back(any_database: Database, settings: Settings) -> None:
    fill(any_database)
    first, second = looked(any_database, settings), looked(any_database, settings, "role", now=LATER)
    apply(any_database, first)
    assert apply(any_database, second)["suppressed"] == 0

    assert revert(any_database, first) == 3
    assert listed(any_database) == {hmac("desk"): ("hygiene", f"hygiene/{second}")}
    assert revert(any_database, second) == 1
    assert listed(any_database) == {}


def test_a_contact_that_told_something_new_since_is_left_alone(database: Database, settings: Settings) -> None:
    """Between the look and its application it mended its address."""
    keys = fill(database)
    hygiene_id = looked(database, settings, "typo_domain", "role")
    with database.writing() as session:
        update_traits(session, {keys["slip"]: {"email": "bob@gmail.com"}}, now=NOW + timedelta(minutes=1))

    assert apply(database, hygiene_id) == {
        "findings": ["typo_domain", "role"], "contacts": 1, "suppressed": 1, "changed_since": 1,
    }  # fmt: skip


def test_refusals_name_the_value_and_the_remedy(database: Database, settings: Settings) -> None:
    fill(database)
    hygiene_id = looked(database, settings, "role", "duplicate")
    with pytest.raises(NotFound, match="hyg_none"):
        apply(database, "hyg_none")
    with pytest.raises(Invalid, match="alias"):
        apply(database, hygiene_id, "duplicate")
    with pytest.raises(Invalid, match="disposable"):
        apply(database, hygiene_id, "disposable")
    with pytest.raises(Conflict, match="previewed"):
        revert(database, hygiene_id)
    with pytest.raises(Conflict, match="30 days"):
        apply(database, hygiene_id, now=NOW + timedelta(days=31))
    apply(database, hygiene_id)
    with pytest.raises(Conflict, match="applied"):
        apply(database, hygiene_id)
    with pytest.raises(Invalid, match="rolle"):
        rules_of(["rolle"])
    with pytest.raises(Invalid, match="least_days is 0"):
        rules_of(None, least_days=0)
    with database.writing() as session, pytest.raises(ValueError, match="smtp"):
        release(session, "smtp")


def test_an_unsubscribed_address_bars_all_mail_once_it_bounces(any_database: Database) -> None:
    """The stronger reason takes the weaker one's place, never the other way round."""
    order = [("manual", "hygiene/a"), ("unsubscribed", "erasure"), ("hard_bounce", "smtp"), ("unsubscribed", "erasure"),
             ("complaint", "arf"), ("manual", "hygiene/b")]  # fmt: skip
    added = []
    with any_database.writing() as session:
        for reason, source in order:
            added.append(suppress(session, ["d" * 64], reason=reason, source=source, now=NOW))

    assert added == [1, 1, 1, 0, 0, 0]
    assert listed(any_database) == {"d" * 64: ("hard_bounce", "smtp")}


STORIES: dict[str, tuple[list[tuple[str, int, int | None]], set[str]]] = {
    # kind, days ago, human probability in ppm; in the order of time
    "never answered": ([(EMAIL_SENT, 200 - i, None) for i in range(10)], {"never_engaged"}),
    "too few mails": ([(EMAIL_SENT, 200 - i, None) for i in range(9)], set()),
    "too short a time": ([(EMAIL_SENT, 80 - i, None) for i in range(20)], set()),
    "one of the ten came back": (
        [(EMAIL_SENT, 200 - i, None) for i in range(10)] + [(EMAIL_BOUNCED, 150, None)], set()
    ),
    "a person opened once": ([(EMAIL_SENT, 200 - i, None) for i in range(10)] + [(EMAIL_OPENED, 3, 600_000)], set()),
    "a machine opened": (
        [(EMAIL_SENT, 200 - i, None) for i in range(10)] + [(EMAIL_CLICKED, 3, 400_000)], {"never_engaged"}
    ),
    "bought meanwhile": ([(EMAIL_SENT, 200 - i, None) for i in range(10)] + [(ORDER_COMPLETED, 5, None)], set()),
    "bought long before": (
        [(ORDER_COMPLETED, 300, None)] + [(EMAIL_SENT, 200 - i, None) for i in range(10)], {"never_engaged"}
    ),
    "three soft bounces": ([(EMAIL_BOUNCED, days, None) for days in (170, 90, 2)], {"soft_bounces"}),
    "two soft bounces, one long ago": ([(EMAIL_BOUNCED, days, None) for days in (190, 90, 2)], set()),
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_silence_and_refusal_are_found(story: str, database: Database, settings: Settings) -> None:
    [key] = fill(database, {"ann": "ann@shop.example"}).values()
    told, expected = STORIES[story]
    with database.writing() as session:
        new = [
            NewEvent(
                key, kind, to_micros(NOW - timedelta(days=days)), f"m{place}", "user:ann", ref=f"{place}",
                human_ppm=human, properties={"bounce": "soft"} if kind == EMAIL_BOUNCED else None,
            )
            for place, (kind, days, human) in enumerate(told)
        ]  # fmt: skip
        append(session, new, received_at=to_micros(NOW))

    found = shown(database, looked(database, settings, "never_engaged", "soft_bounces"))

    assert {finding for finding, users in found.items() if users} == expected


def test_an_erased_contact_leaves_the_findings(database: Database, settings: Settings) -> None:
    fill(database)
    hygiene_id = looked(database, settings)

    erase_contacts(database, settings, ["dead"], now=NOW)

    assert shown(database, hygiene_id)["no_mail_server"] == []
    with database.reading() as session:
        assert session.scalar(select(func.count()).where(HygieneFindingRow.finding == "no_mail_server")) == 0


def test_a_user_id_that_is_an_address_is_not_shown(database: Database, settings: Settings) -> None:
    fill(database, {"info@shop.example": "info@shop.example"})

    assert shown(database, looked(database, settings, "role"))["role"] == ["[address removed]"]


def test_pages_of_the_list_are_all_read(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same findings however small the steps are."""
    from service.hygiene import looks

    fill(database)
    whole = shown(database, looked(database, settings))
    monkeypatch.setattr(looks, "CHUNK", 3)
    steps: list[tuple[int, int]] = []
    with LocalNames(RECORDS) as server:
        names = NameServer(server.address)
        told = look(database, settings, rules_of(), now=NOW, by="t", names=names, step=lambda *at: steps.append(at))

    assert shown(database, told) == whole
    assert steps == [(3, 8), (6, 8), (8, 8)]
