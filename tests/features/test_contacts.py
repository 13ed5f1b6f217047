"""Laws of contacts and their names."""

from __future__ import annotations

import threading
from datetime import datetime

import pytest
from sqlalchemy import func, select

from features.contacts import find, resolve, update_traits
from features.tables import ContactRow, IdentityRow
from service.database import Database


def test_an_identity_has_one_contact_for_ever(any_database: Database, now: datetime):
    """New ones are created once, repeats and later calls give the same key."""
    with any_database.writing() as session:
        first = resolve(session, ["user:42", "anonymous:abc", "user:42"], now=now)
    with any_database.writing() as session:
        second = resolve(session, ["anonymous:abc", "user:43", "user:42"], now=now)
        names = dict(session.execute(select(ContactRow.contact_key, ContactRow.user_id)).all())

    assert first.items() <= second.items()
    assert {names[second[identity]] for identity in second} == {"42", "43", "anonymous_id:abc"}
    assert len(names) == 3


def test_an_anonymous_contact_is_found_under_the_name_it_answers_to(any_database: Database, now: datetime):
    """`anonymous_id:abc`, as callers see it, is the contact of `anonymous:abc`, however it is spelled."""
    with any_database.writing() as session:
        keys = resolve(session, ["anonymous:abc"], now=now)
        keys |= resolve(session, ["user:anonymous_id:abc"], now=now)
        found = find(session, ["anonymous_id:abc", "nobody"])

    assert keys["anonymous:abc"] == keys["user:anonymous_id:abc"] == found["anonymous_id:abc"]
    assert "nobody" not in found


def test_racing_writers_create_each_contact_once(any_database: Database, now: datetime):
    """Four writers, the same thirty new people."""
    results: list[dict[str, int]] = []

    def work() -> None:
        for start in range(0, 30, 10):
            with any_database.writing() as session:
                results.append(resolve(session, [f"user:{n}" for n in range(start, start + 10)], now=now))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(results) == 12
    with any_database.reading() as session:
        assert session.scalar(select(func.count()).select_from(ContactRow)) == 30
        stored = dict(session.execute(select(IdentityRow.identity, IdentityRow.contact_key)).all())
    assert all(result.items() <= stored.items() for result in results)


@pytest.mark.parametrize(
    "identity", ["42", "user:", "email:a", "user:" + "x" * 256, "anonymous:" + "x" * 250, "user:\x00"]
)
def test_a_malformed_identity_is_named(database: Database, now: datetime, identity: str):
    """Nothing is created for the good one beside it."""
    with pytest.raises(ValueError, match="identity"), database.writing() as session:
        resolve(session, ["user:good", identity], now=now)
    with database.reading() as session:
        assert find(session, ["good"]) == {}


def test_traits_merge_and_the_address_stays_in_its_column(any_database: Database, now: datetime):
    """What is told is kept, what is told as null goes, an unknown key does no harm."""
    with any_database.writing() as session:
        key = resolve(session, ["user:1"], now=now)["user:1"]
        told = {"email": "a@b.example", "timezone": "Europe/Oslo", "plan": "free", "age": 7}
        update_traits(session, {key: told, 999: {"plan": "x"}}, now=now)
    with any_database.writing() as session:
        update_traits(session, {key: {"plan": "paid", "age": None, "city": "Oslo"}}, now=now)
    with any_database.reading() as session:
        row = session.get(ContactRow, key)

    assert row is not None
    assert (row.email, row.timezone, row.timezone_source) == ("a@b.example", "Europe/Oslo", "explicit")
    assert row.traits == {"plan": "paid", "city": "Oslo"}


def test_an_unknown_zone_is_refused(database: Database, now: datetime):
    """It would make every later hour wrong."""
    with database.writing() as session:
        key = resolve(session, ["user:1"], now=now)["user:1"]
    with pytest.raises(ValueError, match="Europe/Atlantis"), database.writing() as session:
        update_traits(session, {key: {"timezone": "Europe/Atlantis"}}, now=now)
