"""Laws of the Idempotency-Key: what creates something, sent twice, creates it once and is answered the same."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from service.clock import SimulatedClock
from service.database import Database
from service.errors import Conflict, Invalid
from service.idempotency import Answer, begin, forget_answers, keep
from service.settings import Settings
from service.sink import MailSink
from service.tables import CampaignRow, IdempotencyRow
from service.templates import add_template, bundled_template
from tests.service.calling import Caller, Client

ONE, OTHER = "1" * 64, "2" * 64
ARMS = [{"id": "a", "text": "One"}, {"id": "b", "text": "Two"}]
OUTCOME = {
    "name": "silent_regulars",
    "population": {"all": [{"feature": "orders_ever", "at_least": 3}]},
    "event": "Order Completed",
    "happens": False,
    "within_days": 60,
}


@pytest.fixture
def sink() -> Iterator[MailSink]:
    with MailSink() as running:
        yield running


@pytest.fixture
def settings(settings: Settings, sink: MailSink) -> Settings:
    return settings.model_copy(update={"smtp_url": sink.url})


@pytest.fixture
def key(caller: Callable[..., Caller], database: Database, add_contacts: Any, now: datetime) -> Caller:
    with database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        add_contacts(session, 3)
    return caller("read", "write", "send")


def draft(now: datetime, **changes: Any) -> dict[str, Any]:
    window = {"window_start": now.isoformat(), "window_end": (now + timedelta(hours=8)).isoformat()}
    return {"name": "News", "template_id": "offer", "audience": {"user_ids": ["u1"]}} | window | changes


def under(word: str) -> dict[str, str]:
    return {"Idempotency-Key": word}


def test_what_creates_creates_once(key: Caller, now: datetime) -> None:
    """Every POST that makes something: the same status and body again, said to be a replay, and nothing is made."""
    hello = {"id": "hello", "subject": "Hi", "source": "<p>Hi</p>", "source_format": "html"}
    experiment = {"name": "S", "kind": "subject", "arms": ARMS}
    wrong = key("POST", "/v1/campaigns", json=draft(now)).json()["id"]
    key("POST", f"/v1/campaigns/{wrong}/schedule")
    asked = key("POST", "/v1/experiments", json=experiment).json()["id"]
    lists = ("/v1/campaigns", "/v1/experiments", "/v1/outcomes", "/v1/jobs")
    for path, body in (
        ("/v1/campaigns", draft(now)),
        (f"/v1/campaigns/{wrong}/correct", {"template_id": "offer"}),
        ("/v1/templates", hello),
        ("/v1/templates/hello/restore", {"version": 1}),
        ("/v1/experiments", experiment),
        (f"/v1/experiments/{asked}/arms", {"id": "c", "text": "Three"}),
        ("/v1/outcomes?counts=false", OUTCOME),
        ("/v1/hygiene", {}),
    ):
        first = key("POST", path, json=body, headers=under("k-" + path))
        assert first.status_code in (201, 202), first.text
        before = [key("GET", one).json() for one in lists]
        again = key("POST", path, json=body, headers=under("k-" + path))
        assert (again.status_code, again.json()) == (first.status_code, first.json())
        assert again.headers["Idempotent-Replayed"] == "true"
        assert "Idempotent-Replayed" not in first.headers
        assert [key("GET", one).json() for one in lists] == before
    assert [one["version"] for one in key("GET", "/v1/templates/hello").json()["versions"]] == [2, 1]


def test_a_key_belongs_to_its_caller_and_its_request(
    key: Caller, caller: Callable[..., Caller], database: Database, now: datetime
) -> None:
    """Another body or path: 422, and nothing is made. Another caller: another key. Without one: a new one each time."""
    path = "/v1/campaigns"
    made = [key("POST", path, json=draft(now), headers=under("k")).json()["id"]]
    reordered = json.dumps(dict(reversed(draft(now).items())), indent=1)
    same = key("POST", path, content=reordered, headers=under("k") | {"Content-Type": "application/json"})
    assert same.json()["id"] == made[0]
    experiment = {"name": "S", "kind": "cta", "arms": ARMS}
    for other, body in ((path, draft(now, name="Other")), ("/v1/experiments", experiment)):
        refusal = key("POST", other, json=body, headers=under("k"))
        assert refusal.status_code == 422
        assert "Idempotency-Key" in refusal.json()["detail"]
    made.append(caller("write")("POST", path, json=draft(now), headers=under("k")).json()["id"])
    made += [key("POST", path, json=draft(now)).json()["id"] for _ in range(2)]
    with database.reading() as session:
        assert set(session.scalars(select(CampaignRow.campaign_id))) == set(made)
        assert session.scalar(select(func.count()).select_from(IdempotencyRow)) == 2
        assert "k" not in session.scalars(select(IdempotencyRow.key_sha256)).all()
    assert len(set(made)) == 4
    assert key("POST", path, json=draft(now), headers=under("k" * 256)).status_code == 422


def test_what_failed_may_be_tried_again(key: Caller, now: datetime) -> None:
    """A refusal makes nothing and is not kept: what it asked for may be there by now."""
    body = draft(now, template_id="late")
    assert key("POST", "/v1/campaigns", json=body, headers=under("k")).status_code == 404
    late = {"id": "late", "subject": "Hi", "source": "<p>Hi</p>", "source_format": "html"}
    assert key("POST", "/v1/templates", json=late).status_code == 201
    assert key("POST", "/v1/campaigns", json=body, headers=under("k")).status_code == 201


def test_many_at_once_make_one(client: Client, key: Caller, database: Database, now: datetime) -> None:
    """All of them get the answer of the first."""
    headers = {"Authorization": f"Bearer {key.secret}"} | under("k")

    async def all_at_once() -> set[str]:
        calls = [client.http.post("/v1/campaigns", json=draft(now), headers=headers) for _ in range(6)]
        return {answer.json()["id"] for answer in await asyncio.gather(*calls)}

    assert len(client.runner.run(all_at_once())) == 1
    with database.reading() as session:
        assert session.scalar(select(func.count()).select_from(CampaignRow)) == 1


def test_a_test_mail_leaves_once_and_its_address_is_not_kept(
    key: Caller, sink: MailSink, database: Database, now: datetime
) -> None:
    """The replay names the addresses that it was asked for; one that was cut off is a conflict, and sends nothing."""
    path, body = "/v1/templates/offer/test", {"to": ["me@shop.example", "you@shop.example"]}
    first = key("POST", path, json=body, headers=under("k"))
    again = key("POST", path, json=body, headers=under("k"))
    assert (first.status_code, first.json()["accepted"]) == (200, 2)
    assert again.json() == first.json()
    assert again.headers["Idempotent-Replayed"] == "true"
    assert sink.count == 2
    with database.writing() as session:
        [row] = session.scalars(select(IdempotencyRow))
        assert "@" not in str(row.body)
        row.status = row.body = None
    cut = key("POST", path, json=body, headers=under("k"))
    assert cut.status_code == 409
    assert "cut off" in cut.json()["detail"]
    assert sink.count == 2


def test_an_answer_is_kept_for_a_day(key: Caller, clock: SimulatedClock, database: Database, now: datetime) -> None:
    """Then the key is free, and the answer gone."""
    first = key("POST", "/v1/campaigns", json=draft(now), headers=under("k")).json()["id"]
    clock.move_to(now + timedelta(hours=23, minutes=59))
    assert key("POST", "/v1/campaigns", json=draft(now), headers=under("k")).json()["id"] == first
    clock.move_to(now + timedelta(hours=24))
    assert key("POST", "/v1/campaigns", json=draft(now), headers=under("k")).json()["id"] != first
    with database.writing() as session:
        assert forget_answers(session, now=now + timedelta(hours=47)) == 0
        assert forget_answers(session, now=now + timedelta(hours=48)) == 1


# -- in the table --------------------------------------------------------------------------------------------------


class _CutOff(Exception):
    """The first one ends before its commit."""


def test_the_second_waits_for_the_first(any_database: Database, now: datetime) -> None:
    """The second transaction under a key sees the first's answer, or does the work if the first came to nothing."""
    for fails in (False, True):
        key, found = f"k{fails}", []
        begun = threading.Event()

        def second(key: str = key, begun: threading.Event = begun, found: list[Answer | None] = found) -> None:
            begun.wait(5)
            with any_database.writing() as session:
                found.append(begin(session, key, "p", ONE, now=now))

        thread = threading.Thread(target=second)
        thread.start()
        try:
            with any_database.writing() as session:
                assert begin(session, key, "p", ONE, now=now) is None
                begun.set()
                thread.join(0.2)
                assert thread.is_alive()
                keep(session, key, "p", Answer(201, "{}"))
                if fails:
                    raise _CutOff
        except _CutOff:
            assert fails
        thread.join(10)
        assert found == [None if fails else Answer(201, "{}")]


def test_under_way_is_a_conflict_and_another_request_is_refused(any_database: Database, now: datetime) -> None:
    """As the draft of the header field says: 409 and 422."""
    with any_database.writing() as session:
        assert begin(session, "k", "p", ONE, now=now) is None
    with any_database.writing() as session, pytest.raises(Conflict, match="under way"):
        begin(session, "k", "p", ONE, now=now)
    with any_database.writing() as session, pytest.raises(Invalid, match="another request"):
        begin(session, "k", "p", OTHER, now=now)
    with any_database.writing() as session:
        assert begin(session, "k", "p", OTHER, now=now + timedelta(hours=24)) is None
