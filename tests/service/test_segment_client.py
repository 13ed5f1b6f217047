"""Unmodified Segment clients deliver into a running service."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from service.app import create_app
from service.database import Database
from service.demo import free_port, serving_http
from service.keys import create_key
from service.settings import Settings
from service.tables import EventRow


class Service:
    """A service on a real port of this machine, with one key."""

    def __init__(self, settings: Settings, database: Database, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.database = database
        with database.writing() as session:
            _, self.key = create_key(session, "shop", ["ingest", "read"], datetime.now(UTC))

    def get(self, path: str) -> Any:
        answer = httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {self.key}"}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self) -> list[EventRow]:
        with self.database.reading() as session:
            return list(session.scalars(select(EventRow).order_by(EventRow.seq)))


@pytest.fixture
def service(settings: Settings, database: Database) -> Iterator[Service]:
    port = free_port()
    with serving_http(create_app(settings, database), port):
        yield Service(settings, database, port)


def segment_client(service: Service, errors: list[Any], **options: Any) -> Any:
    from segment.analytics.client import Client

    def note(error: Exception, batch: Any = None) -> None:
        errors.append(error)

    return Client(service.key, host=service.url, on_error=note, upload_interval=0.1, **options)


@pytest.mark.parametrize("gzip", [False, True])
def test_the_segment_client_delivers_and_everything_answers_for_the_contact(gzip: bool, service: Service):
    """identify and track arrive; profile, events, vector and predictions of the contact answer."""
    errors: list[Any] = []
    client = segment_client(service, errors, gzip=gzip)
    client.identify("42", {"email": "ann@example.com", "plan": "gold", "email_consent": "subscribed"})
    ordered_at = datetime.now(UTC) - timedelta(days=3)
    client.track("42", "Order Completed", {"order_id": "A-1", "revenue": 25.5}, timestamp=ordered_at)
    client.page("42", name="Home")
    client.shutdown()

    assert errors == []
    profile = service.get("/v1/contacts/42")
    vector = service.get("/v1/contacts/42/vector")
    predictions = service.get("/v1/contacts/42/predictions")
    events = service.get("/v1/contacts/42/events")["items"]

    assert (profile["email"], profile["traits"]["plan"]) == ("ann@example.com", "gold")
    assert {event["event"] for event in events} == {"Identify", "Order Completed", "Page"}
    order = next(event for event in events if event["event"] == "Order Completed")
    assert order["value_minor"] == 2550
    assert abs(datetime.fromisoformat(order["occurred_at"]) - ordered_at) < timedelta(seconds=5)
    assert any(value not in (None, 0) for value in vector["features"].values())
    assert predictions["churn"] is None
    assert predictions["why"]["churn"]


def test_a_delivery_that_is_repeated_is_stored_once(service: Service):
    """The same message sent by two clients, as after a lost answer, is one event."""
    for _ in range(2):
        errors: list[Any] = []
        client = segment_client(service, errors)
        client.track("42", "Quiz Finished", {"score": 3}, message_id="the-same")
        client.shutdown()
        assert errors == []

    assert [event.message_id for event in service.events()] == ["segment/the-same"]


def test_a_wrong_key_is_told_to_the_client(service: Service):
    """The client gets one error that names the key, and nothing is stored."""
    errors: list[Any] = []
    service.key = "kk_live_wrong"
    client = segment_client(service, errors)
    client.track("42", "Quiz Finished")
    client.shutdown()

    assert len(errors) == 1
    assert "401" in str(errors[0])
    assert service.events() == []


def test_many_messages_arrive_in_batches_without_loss(service: Service):
    """A thousand messages, one of them bad: all the others are in the log, and the client saw no error."""
    errors: list[Any] = []
    client = segment_client(service, errors, max_queue_size=2000)
    for i in range(1000):
        client.track(f"u{i % 50}", "Email Sent" if i == 500 else "Quiz Finished", {"i": i})
    client.shutdown()

    assert errors == []
    assert len(service.events()) == 999
