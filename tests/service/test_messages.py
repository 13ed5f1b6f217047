"""Laws of single messages: one row for one intent, transactional mail before all rules, and an answer to “why?”."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from service.clock import SimulatedClock
from service.database import Database
from service.erase import erase_contacts
from service.errors import Conflict, Invalid, NotFound
from service.messages import NewMessage, create_message, explain_message
from service.settings import Settings
from service.sink import MailSink
from service.suppression import address_hmac, suppress
from service.tables import SendRow
from service.templates import NewTemplate, add_template
from service.worker import Worker
from training.serving import Serving

RECEIPT = "<p>Order {{ order }} of {{ first_name }}</p>{% for line in lines %}<p>{{ line.name }}</p>{% endfor %}"
VARIABLES = {"order": "A-7", "first_name": "Ann Maria", "lines": [{"name": "Shoe"}, {"name": "Sock"}]}


@pytest.fixture
def shop(any_database: Database, add_contacts: Any, now: datetime) -> tuple[Database, list[int]]:
    """A shop with a receipt and three contacts, the last without consent."""
    with any_database.writing() as session:
        add_template(session, NewTemplate("receipt", "Your order {{ order }}", RECEIPT, "html"), now=now)
        keys = add_contacts(session, 2) + add_contacts(session, 1, prefix="no", consent="unknown")
    return any_database, keys


def create(database: Database, settings: Settings, new: NewMessage, *, now: datetime, key: str = "k") -> Any:
    with database.writing() as session:
        return create_message(session, new, Serving(), settings, now=now, idempotency_key=key)


def told(database: Database, send_id: int) -> dict[str, Any]:
    with database.reading() as session:
        return explain_message(session, send_id)


async def work(database: Database, settings: Settings, now: datetime) -> None:
    await Worker(database, settings, SimulatedClock(now)).work()


def test_a_receipt_leaves_at_night_without_consent_over_the_cap(
    shop: tuple[Database, list[int]], settings: Settings, now: datetime
) -> None:
    """Transactional mail heeds neither consent, quiet hours, cap nor holdout; its variables fill the template."""
    database, keys = shop
    night = now.replace(hour=2)
    strict = settings.model_copy(update={"frequency_cap": 1, "global_holdout": 0.5, "quiet_hours": "00-23"})
    with MailSink() as sink:
        sending = strict.model_copy(update={"smtp_url": sink.url})
        made = [
            create(database, sending, NewMessage(keys[2], "receipt", variables=VARIABLES), now=night, key=f"k{i}")
            for i in range(8)
        ]
        asyncio.run(work(database, sending, night))
    assert [told(database, one.send_id)["state"] for one in made] == ["accepted"] * 8
    content = sink.deliveries[0].content.decode()
    assert "Subject: Your order A-7" in content
    assert "Ann Maria" in content
    assert "Sock" in content
    assert "List-Unsubscribe" not in content


def test_the_same_key_makes_one_message_even_at_once(
    shop: tuple[Database, list[int]], settings: Settings, now: datetime
) -> None:
    """Eight calls at the same moment, one row; another body under the key is a conflict, another key a second row."""
    database, keys = shop
    new = NewMessage(keys[0], "receipt", variables=VARIABLES)
    made: list[Any] = []
    threads = [threading.Thread(target=lambda: made.append(create(database, settings, new, now=now))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({one.send_id for one in made}) == 1
    assert sorted(one.is_new for one in made) == [False] * 7 + [True]
    assert create(database, settings, new, now=now + timedelta(days=1)).send_id == made[0].send_id
    for other in (replace(new, variables={"order": "B-8"}), replace(new, contact_key=keys[1])):
        with pytest.raises(Conflict, match="something else"):
            create(database, settings, other, now=now)
    assert create(database, settings, new, now=now, key="k2").is_new
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(SendRow)) == 2


def test_a_marketing_message_keeps_all_rules(
    shop: tuple[Database, list[int]], settings: Settings, now: datetime
) -> None:
    """No consent: a row with its reason. At the best hour: outside the quiet hours, with a way to tell why."""
    database, keys = shop
    refused = create(database, settings, NewMessage(keys[2], "receipt", stream="marketing", topic="marketing"), now=now)
    answer = told(database, refused.send_id)
    assert answer["state"] == "suppressed"
    assert "consent" in answer["reason"]
    assert [step["what"] for step in answer["history"]] == ["suppressed"]
    best = NewMessage(keys[0], "receipt", stream="marketing", topic="marketing", best_hour=True)
    answer = told(database, create(database, settings, best, now=now.replace(hour=23), key="best").send_id)
    assert answer["state"] == "planned"
    assert 7 <= answer["why"]["hour"]["local_hour"] < 22
    assert answer["why"]["hour"]["reason"] == "fallback"
    assert 0 < answer["why"]["hour"]["propensity"] < 1


def test_a_message_waits_for_its_time_and_expires_after_it(
    shop: tuple[Database, list[int]], settings: Settings, now: datetime
) -> None:
    """``send_at`` is not before, ``within_hours`` is when it is no longer worth it."""
    database, keys = shop
    later = NewMessage(keys[0], "receipt", send_at=now + timedelta(hours=5), within_hours=2)
    answer = told(database, create(database, settings, later, now=now).send_id)
    assert answer["due_at"] == now + timedelta(hours=5)
    assert answer["not_after"] == now + timedelta(hours=8)  # the ledger's hour of grace


def test_a_bounced_address_gets_no_receipt(shop: tuple[Database, list[int]], settings: Settings, now: datetime) -> None:
    """A receipt to a dead mailbox is a row with its reason, not a try."""
    database, keys = shop
    with database.writing() as session:
        digest = address_hmac(settings.pepper, "u0@example.com")
        suppress(session, [digest], reason="hard_bounce", source="test", now=now)
    answer = told(database, create(database, settings, NewMessage(keys[0], "receipt"), now=now).send_id)
    assert (answer["state"], answer["reason"]) == ("suppressed", "address suppressed: hard_bounce")


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"template_id": "none"}, NotFound, "none"),
        ({"variables": {"text": "x" * 9_000}}, Invalid, "at most 8,192"),
        ({"variables": {"unsubscribe_url": "https://evil.example"}}, Invalid, "unsubscribe_url"),
        ({"variables": {"n": float("nan")}}, Invalid, "a number that is none"),
        ({"variables": {"order": "A\r\nBcc: x@y.example"}}, Invalid, "control character"),
        ({"within_hours": 0}, Invalid, "within_hours 0"),
        ({"send_at": datetime(2020, 1, 1)}, Invalid, "no time zone"),  # noqa: DTZ001 - that is the point
    ],
)
def test_what_cannot_be_sent_is_refused_at_once(
    shop: tuple[Database, list[int]],
    settings: Settings,
    now: datetime,
    changes: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    """Who asks hears of it, with the value; the ledger keeps nothing."""
    database, keys = shop
    with pytest.raises(error, match=words):
        create(database, settings, replace(NewMessage(keys[0], "receipt"), **changes), now=now)
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(SendRow)) == 0


def test_a_time_that_has_passed_is_refused(shop: tuple[Database, list[int]], settings: Settings, now: datetime) -> None:
    """A message for yesterday is a mistake of the caller, not a mail of today."""
    database, keys = shop
    with pytest.raises(Invalid, match="window ended"):
        create(database, settings, NewMessage(keys[0], "receipt", send_at=now - timedelta(days=9)), now=now)


def test_variables_go_with_an_erased_contact(
    shop: tuple[Database, list[int]], settings: Settings, now: datetime
) -> None:
    """What a message said to somebody is theirs."""
    database, keys = shop
    made = create(database, settings, NewMessage(keys[0], "receipt", variables=VARIABLES), now=now)
    kept = create(database, settings, NewMessage(keys[1], "receipt", variables=VARIABLES), now=now, key="other")
    erase_contacts(database, settings, ["u0"], now=now)
    assert told(database, made.send_id)["variables"] == {}
    assert told(database, made.send_id)["user_id"] is None
    assert told(database, kept.send_id)["variables"] == VARIABLES
    with database.reading() as session:
        blank = select(SendRow.send_id).where(SendRow.variables.is_(None))
        assert session.scalars(blank).all() == [made.send_id]
