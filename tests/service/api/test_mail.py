"""Laws of templates, their tests, rehearsals and messages over HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, select

from features.contacts import resolve
from service.clock import SimulatedClock
from service.database import Database
from service.halts import EVERYTHING, halt, lift
from service.settings import Settings
from service.sink import MailSink
from service.suppression import address_hmac, suppress
from service.tables import EventRow, LinkRow, SendRow
from service.worker import Worker
from tests.service.calling import Client

HELLO = {
    "id": "hello",
    "subject": "Hi {{ first_name | default: 'you' }}",
    "source": "<p>Hello {{ first_name }}, <a href='https://shop.example/new'>look</a> at what is new in the shop today."
    "{% slot block %}{% endslot %}</p><p>{{ postal_address }}</p><a href='{{ unsubscribe_url }}'>out</a>",
    "source_format": "html",
}


@pytest.fixture
def sink() -> Iterator[MailSink]:
    with MailSink() as running:
        yield running


@pytest.fixture
def settings(settings: Settings, sink: MailSink) -> Settings:
    return settings.model_copy(update={"smtp_url": sink.url, "postal_address": "1 High Street"})


@pytest.fixture
def key(caller: Callable[..., Any], database: Database, add_contacts: Any) -> Any:
    call = caller("read", "write", "send")
    with database.writing() as session:
        add_contacts(session, 4)
    assert call("POST", "/v1/templates", json=HELLO).status_code == 201
    return call


def test_a_template_tells_its_versions_and_traits(key: Any) -> None:
    """Each version can be read again; traits without a fall-back are named."""
    key("POST", "/v1/templates", json=HELLO | {"subject": "Second"})
    newest = key("GET", "/v1/templates/hello").json()
    first = key("GET", "/v1/templates/hello?version=1").json()
    assert [one["version"] for one in newest["versions"]] == [2, 1]
    assert [one["subject"] for one in newest["versions"]] == ["Second", HELLO["subject"]]
    assert (newest["subject"], first["subject"], first["source"]) == ("Second", HELLO["subject"], HELLO["source"])
    assert first["traits"] == [{"name": "first_name", "has_fall_back": False}]
    assert key("GET", "/v1/templates/hello?version=9").status_code == 404


def test_a_preview_shows_the_mail_and_what_to_mend(key: Any) -> None:
    """For a contact or for traits; with headers, sizes, preview text and warnings; without an address or tracking."""
    mine = key("POST", "/v1/templates/hello/preview", json={"user_id": "u1"}).json()
    given = key("POST", "/v1/templates/hello/preview", json={"traits": {"first_name": "Ελένη"}}).json()
    arms = {"block": "<img src='https://cdn.example/x.png'>", "subject": "BUY NOW"}
    poor = key("POST", "/v1/templates/hello/preview", json={"arms": arms}).json()
    assert mine["subject"] == "Hi N1"
    assert mine["warnings"] == {}
    assert mine["preview_text"].startswith("Hello N1, look at what is new")
    assert mine["links"] == ["https://shop.example/new"]
    assert mine["html_bytes"] == len(mine["html"].encode()) < mine["message_bytes"]
    assert mine["subject_characters"] == 5
    assert "Ελένη" in given["text"]
    assert set(poor["warnings"]) == {"image-without-alt", "shouting-subject"}
    headers = {one["name"]: one["value"] for one in mine["headers"]}
    assert headers["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert "example.com" not in str(mine)
    assert "/o/" not in mine["html"]
    both = key("POST", "/v1/templates/hello/preview", json={"user_id": "u1", "traits": {}})
    assert both.status_code == 422
    assert "not both" in both.json()["detail"]


def test_a_test_is_sent_marked_and_leaves_no_trace_but_a_line_in_the_log(
    key: Any, sink: MailSink, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Real mail through the provider, each with a Message-ID of its own; no row, no event, no tracked link."""
    caplog.set_level(logging.INFO)
    to = ["me@shop.example", "you@shop.example"]
    answer = key("POST", "/v1/templates/hello/test", json={"user_id": "u1", "to": to})
    again = key("POST", "/v1/templates/hello/test", json={"user_id": "u1", "to": to[:1]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["accepted"] == 2
    assert again.json()["subject"] == "[Test] Hi N1"
    assert [one.recipient for one in sink.deliveries] == [*to, to[0]]
    contents = [one.content.decode() for one in sink.deliveries]
    assert all("Subject: [Test] Hi N1\r\n" in content for content in contents)
    assert all("https://shop.example/new" in content for content in contents)
    assert len({line for content in contents for line in content.split("\r\n") if line.startswith("Message-ID")}) == 3
    with database.reading() as session:
        for table in (SendRow, LinkRow, EventRow):
            assert session.scalar(select(func.count()).select_from(table)) == 0
    lines = [one for one in caplog.records if getattr(one, "action", "") == "template_tested"]
    assert [(one.mails, one.accepted) for one in lines] == [(2, 2), (1, 1)]
    assert "shop.example" not in " ".join(str(vars(one)) for one in lines)


def test_a_test_goes_to_few_and_to_nobody_who_is_barred(
    key: Any, sink: MailSink, database: Database, settings: Settings, now: datetime
) -> None:
    """At most five, none on the suppression list, none that is no address, none while sending is halted."""
    path = "/v1/templates/hello/test"
    with database.writing() as session:
        digest = address_hmac(settings.pepper, "gone@shop.example")
        suppress(session, [digest], reason="complaint", source="test", now=now)
    many = key("POST", path, json={"to": [f"a{i}@shop.example" for i in range(6)]})
    barred = key("POST", path, json={"to": ["me@shop.example", "gone@shop.example"]})
    broken = key("POST", path, json={"to": ["me@shop.example\r\nBcc: you@shop.example"]})
    with database.writing() as session:
        halt(session, EVERYTHING, reason="wrong price", by="test", now=now)
    halted = key("POST", path, json={"to": ["me@shop.example"]})
    with database.writing() as session:
        lift(session, EVERYTHING, by="test", now=now)
    assert [many.status_code, barred.status_code, broken.status_code, halted.status_code] == [422, 422, 422, 409]
    assert "to.1 is on the suppression list" in barred.json()["detail"]
    assert "control character" in broken.json()["detail"]
    assert "halted" in halted.json()["detail"]
    assert sink.count == 0


def test_a_test_minds_the_halt_of_its_mailbox_provider(
    key: Any, sink: MailSink, database: Database, now: datetime
) -> None:
    """Where mail to a provider is halted, a test does not knock there either; others leave."""
    with database.writing() as session:
        halt(session, "mailbox:gmail", reason="refused", by="kairos", now=now)
    path = "/v1/templates/hello/test"
    halted = key("POST", path, json={"to": ["me@shop.example", "me@gmail.com"]})
    assert (halted.status_code, sink.count) == (409, 0)
    assert "mailbox:gmail" in halted.json()["detail"]
    assert key("POST", path, json={"to": ["me@shop.example"]}).json()["accepted"] == 1


def test_the_mark_of_a_test_keeps_no_mail_from_leaving(key: Any, sink: MailSink) -> None:
    """A subject as long as one may be is shortened; one that was filled with Liquid's signs stays as it is."""
    path = "/v1/templates/hello/test"
    for subject, marked in (("x" * 400, f"[Test] {'x' * 392}…"), ("x" * 393, f"[Test] {'x' * 393}")):
        answer = key("POST", path, json={"to": ["me@shop.example"], "arms": {"subject": subject}})
        assert answer.status_code == 200, answer.text
        assert answer.json()["subject"] == marked
    odd = {"traits": {"first_name": "{{ 1 }} & {% raw %}"}, "to": ["me@shop.example"]}
    assert key("POST", path, json=odd).json()["subject"] == "[Test] Hi {{ 1 }} & {% raw %}"
    assert sink.count == 3


def test_a_sandbox_holds_tests_too(client: Client, key: Any, settings: Settings, sink: MailSink) -> None:
    """Where mail leaves to some addresses only, a test does as well."""
    here = client.app.state.installation
    here.settings = settings.model_copy(update={"sandbox": "me@shop.example, @lab.example"})
    path = "/v1/templates/hello/test"
    inside = key("POST", path, json={"to": ["Me@shop.example", "x@lab.example"]})
    outside = key("POST", path, json={"to": ["me@shop.example", "you@shop.example"]})
    assert inside.json()["accepted"] == 2
    assert outside.status_code == 422
    assert "to.1 lies outside the sandbox" in outside.json()["detail"]
    assert sink.count == 2


def test_a_test_that_a_relay_refuses_says_so(client: Client, key: Any, settings: Settings) -> None:
    """The relay's answer is the answer."""
    with MailSink(on_recipient=lambda address: "550 5.1.1 no such user") as refusing:
        client.app.state.installation.settings = settings.model_copy(update={"smtp_url": refusing.url})
        answer = key("POST", "/v1/templates/hello/test", json={"to": ["me@shop.example"]}).json()
    assert answer["accepted"] == 0
    assert answer["results"][0]["outcome"] == "rejected"
    assert answer["results"][0]["code"] == 550


def test_a_plan_rehearses_the_mail(key: Any, now: datetime) -> None:
    """Sample mails of real contacts under their user ids; links are looked at when asked, none in our own network."""
    inward = HELLO | {"id": "inward", "source": HELLO["source"].replace("https://shop.example", "http://127.0.0.1:1")}
    key("POST", "/v1/templates", json=inward)
    arms = [{"id": "a", "text": "One {{ first_name }}"}, {"id": "b", "text": "Two"}]
    experiment = key("POST", "/v1/experiments", json={"name": "S", "kind": "subject", "arms": arms, "reward": "click"})
    campaign = key(
        "POST",
        "/v1/campaigns",
        json={
            "name": "Spring",
            "template_id": "inward",
            "audience": {"everyone": True},
            "experiments": [experiment.json()["id"]],
            "window_start": now.isoformat(),
            "window_end": (now + timedelta(days=1)).isoformat(),
        },
    ).json()
    path = f"/v1/campaigns/{campaign['id']}/plan"
    plain = key("POST", path)
    looked = key("POST", path, json={"check_links": True, "samples": 2})
    assert plain.status_code == 200, plain.text
    rehearsal = plain.json()["rehearsal"]
    assert plain.json()["planned"] == rehearsal["audience"] == 4
    assert {one["user_id"] for one in rehearsal["samples"]} == {"u0", "u1", "u2", "u3"}
    assert {one["subject"] for one in rehearsal["samples"]} >= {"Two"}
    assert [one["arms"] for one in rehearsal["combinations"]] == [{"subject": "a"}, {"subject": "b"}]
    assert "example.com" not in plain.text
    assert rehearsal["dead_links"] is None
    [dead] = looked.json()["rehearsal"]["dead_links"]
    assert dead["url"] == "http://127.0.0.1:1/new"
    assert "private network" in dead["says"]
    assert len(looked.json()["rehearsal"]["samples"]) == 2
    assert key("POST", path, json={"samples": 13}).status_code == 422


def test_a_message_is_made_once_sent_and_explained(
    key: Any, caller: Callable[..., Any], database: Database, settings: Settings, clock: SimulatedClock, sink: MailSink
) -> None:
    """The same Idempotency-Key answers the same message; its history says what happened, in order."""
    body = {"user_id": "u1", "template_id": "hello", "variables": {"first_name": "Dr. Ann"}}
    first = key("POST", "/v1/messages", json=body, headers={"Idempotency-Key": "order-7"})
    again = key("POST", "/v1/messages", json=body, headers={"Idempotency-Key": "order-7"})
    other = key("POST", "/v1/messages", json=body | {"user_id": "u2"}, headers={"Idempotency-Key": "order-7"})
    someone_elses = caller("send")("POST", "/v1/messages", json=body, headers={"Idempotency-Key": "order-7"})
    assert [first.status_code, again.status_code, other.status_code, someone_elses.status_code] == [201, 200, 409, 201]
    assert first.json() == again.json()
    assert someone_elses.json()["id"] != first.json()["id"]
    key.client.runner.run(Worker(database, settings, clock).work())
    shown = key("GET", f"/v1/messages/{first.json()['id']}").json()
    assert shown["state"] == "accepted"
    assert shown["why"]["person"]["says"] == "a program asked for this message to this contact"
    assert shown["why"]["hour"]["reason"] == "fixed"
    assert shown["why"]["variant"] == []
    assert [step["what"] for step in shown["history"]] == ["planned", "decided", "accepted", "Email Sent"]
    assert "Subject: Hi Dr. Ann" in sink.deliveries[0].content.decode()


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"user_id": "nobody"}, 404, "no contact 'nobody'"),
        ({"template_id": "none"}, 404, "none"),
        ({"variables": {"x": "y" * 9_000}}, 422, "at most 8,192"),
        ({"send_at": "2026-03-02T09:00:00"}, 422, "send_at"),
        ({"within_hours": 0}, 422, "within_hours"),
        ({"stream": "spam"}, 422, "stream"),
    ],
)
def test_a_message_that_cannot_be_is_refused(key: Any, changes: dict[str, Any], status: int, said: str) -> None:
    """With the value and the limit."""
    answer = key("POST", "/v1/messages", json={"user_id": "u1", "template_id": "hello"} | changes)
    assert answer.status_code == status
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("message_id", ["9", "x", "9" * 40, "-1", "٣"])
def test_a_message_that_is_none_is_not_found(key: Any, message_id: str) -> None:
    """Whatever is asked for."""
    assert key("GET", f"/v1/messages/{message_id}").status_code == 404


def test_a_mail_of_a_campaign_says_why_this_person_hour_and_variant(
    key: Any, database: Database, settings: Settings, clock: SimulatedClock, now: datetime
) -> None:
    """Consent and audience, the hour's rule and its probability, the arm with its replay: support answers from here."""
    arms = [{"id": "a", "text": "One"}, {"id": "b", "text": "Two"}]
    experiment = key("POST", "/v1/experiments", json={"name": "S", "kind": "subject", "arms": arms, "reward": "click"})
    window = {"window_start": now.isoformat(), "window_end": (now + timedelta(days=1)).isoformat()}
    campaign = key(
        "POST",
        "/v1/campaigns",
        json={"name": "Spring", "template_id": "hello", "audience": {"user_ids": ["u1", "u2"]}, "timing": "at_start",
              "experiments": [experiment.json()["id"]], **window},
    ).json()  # fmt: skip
    key("POST", f"/v1/campaigns/{campaign['id']}/schedule")
    key.client.runner.run(Worker(database, settings, clock).work())
    with database.reading() as session:
        own = resolve(session, ["user:u1"], now=now)["user:u1"]
        send_id = session.scalars(select(SendRow.send_id).where(SendRow.contact_key == own)).one()
    why = key("GET", f"/v1/messages/{send_id}").json()["why"]
    assert why["person"]["campaign"] == "Spring"
    assert "u2" not in str(why)
    assert "subscribed" in why["person"]["basis"]
    [variant] = why["variant"]
    assert variant["propensity"] == 0.5
    assert variant["eligible"] == ["a", "b"]
    replay = key("GET", variant["replay"]).json()
    assert replay["arm"] == variant["arm"]
    assert replay["replay"]["is_equal"]
