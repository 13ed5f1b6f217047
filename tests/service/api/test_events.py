"""Laws of event intake over HTTP."""

import base64
import gzip
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import select, update

from service.api.events import CALLS
from service.database import Database
from service.tables import CounterRow, EventRow, QuarantineRow


def track(message_id: str = "m1", **changes: Any) -> dict[str, Any]:
    return {"type": "track", "event": "Quiz Finished", "userId": "42", "messageId": message_id} | changes


def stored(database: Database) -> list[str]:
    with database.reading() as session:
        return list(session.scalars(select(EventRow.message_id).order_by(EventRow.seq)))


@pytest.mark.parametrize("call", CALLS)
def test_every_call_of_the_protocol_is_stored(call: str, client: Any, caller: Callable[..., Any], database: Database):
    """Each path answers success once the message is in the log; single calls imply their type."""
    body = {"event": "x", "userId": "1", "messageId": "m1", "previousId": "0", "groupId": "g"}
    batch = {"batch": [{"type": "track"} | body]}
    answer = caller("ingest")("POST", f"/v1/{call}", json=batch if CALLS[call] in ("batch", "import") else body)

    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert stored(database) == ["segment/m1"]


@pytest.mark.parametrize("way", ["basic", "bearer", "body"])
def test_the_write_key_comes_in_three_ways(way: str, client: Any, caller: Callable[..., Any], database: Database):
    """As the user of Basic credentials, as a bearer token, or in the body; it is stored nowhere."""
    secret = caller("ingest").secret
    headers = {
        "basic": {"Authorization": f"Basic {base64.b64encode(f'{secret}:'.encode()).decode()}"},
        "bearer": {"Authorization": f"Bearer {secret}"},
        "body": {},
    }[way]
    answer = client.post("/v1/track", json=track(writeKey=secret, timestamp="never"), headers=headers)
    with database.reading() as session:
        kept = session.scalars(select(QuarantineRow.body)).one()

    assert answer.status_code == 422
    assert secret not in kept


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic ???"}, 401),
        ({"Authorization": "Digest x"}, 401),
    ],
)
def test_without_a_known_key_nothing_is_taken(headers: dict[str, str], status: int, client: Any, database: Database):
    """A missing, unknown or unreadable key is a problem that says where the key goes."""
    answer = client.post("/v1/batch", json={"batch": [track()]}, headers=headers)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:kairos:problem:unauthorized"
    assert "www-authenticate" in answer.headers
    assert stored(database) == []


def test_a_key_without_the_scope_takes_nothing_in(caller: Callable[..., Any], database: Database):
    """403, naming the scopes that the key has and the one that is needed."""
    answer = caller("read", "write")("POST", "/v1/track", json=track())

    assert answer.status_code == 403
    assert "read, write" in answer.json()["detail"]
    assert "ingest" in answer.json()["detail"]
    assert stored(database) == []


BROKEN = {
    "nothing": b"",
    "cut off": b'{"event": "x"',
    "text": b"hello",
    "not an object": b"[1]",
    "not UTF-8": b'{"event": "\xff"}',
    "two objects": b"{} {}",
    "nested to death": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "cut gzip": gzip.compress(b"{}" * 100)[:-10],
    "damaged gzip": b"\x1f\x8b" + b"x" * 100,
    "batch without a list": b'{"batch": {}}',
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_body_that_cannot_be_read_is_a_problem(what: str, caller: Callable[..., Any], database: Database):
    """400 with a problem body that says what is wrong and what to send; nothing is stored."""
    answer = caller("ingest")("POST", "/v1/batch", content=BROKEN[what])

    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == "urn:kairos:problem:bad-request"
    assert answer.json()["status"] == 400
    assert ";" in answer.json()["detail"]
    assert stored(database) == []


@pytest.mark.parametrize("packed", [False, True])
def test_a_body_beyond_the_limit_is_refused_early(packed: bool, caller: Callable[..., Any], database: Database):
    """413 for 6 MB, whether they come as such or as a few kilobytes of gzip."""
    body = b" " * 6_000_000
    answer = caller("ingest")("POST", "/v1/batch", content=gzip.compress(body) if packed else body)

    assert answer.status_code == 413
    assert "5,000,000" in answer.json()["detail"]


def test_a_streamed_body_beyond_the_limit_is_refused(caller: Callable[..., Any]):
    """Without a Content-Length the bytes are counted as they come."""

    async def stream() -> AsyncIterator[bytes]:
        for _ in range(12):
            yield b" " * 500_000

    answer = caller("ingest")("POST", "/v1/batch", content=stream())

    assert answer.status_code == 413


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
def test_gzip_under_a_form_content_type_is_read(
    headers: dict[str, str], caller: Callable[..., Any], database: Database
):
    """RudderStack's Node client posts gzipped JSON as a form; only the bytes are believed."""
    content = gzip.compress(json.dumps({"batch": [track()]}).encode())
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = caller("ingest")("POST", "/v1/batch", content=content, headers=form | headers)

    assert answer.json() == {"success": True}
    assert stored(database) == ["segment/m1"]


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5_000])
def test_a_number_that_is_none_costs_its_message_only(value: str, caller: Callable[..., Any], database: Database):
    """In a batch the message is set aside by name; the good ones beside it are stored, with success."""
    good, bad = json.dumps(track("good")), json.dumps(track("bad"))[:-1] + f', "properties": {{"score": {value}}}}}'
    answer = caller("ingest")("POST", "/v1/batch", content=f'{{"batch": [{bad}, {good}]}}')

    assert answer.status_code == 200
    assert answer.json()["success"] is True
    aside = answer.json()["quarantined"]
    assert [(entry["index"], "properties.score" in entry["reason"]) for entry in aside] == [(0, True)]
    assert stored(database) == ["segment/good"]


def test_a_single_bad_message_is_a_problem_and_is_kept(caller: Callable[..., Any], database: Database):
    """422 names value and remedy; the message lies in the quarantine, which the API shows."""
    key = caller("ingest", "read")
    answer = key("POST", "/v1/track", content='{"event": "x", "userId": "1", "properties": {"revenue": NaN}}')
    listed = key("GET", "/v1/quarantine").json()["items"]

    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("properties.revenue is nan; send a finite number")
    assert [entry["quarantine_id"] for entry in listed] == [answer.json()["quarantined"][0]["quarantine_id"]]


def test_unknown_fields_do_no_harm(caller: Callable[..., Any], database: Database):
    """Fields that nobody knows, beside and inside the message, are no reason to refuse it."""
    body = {"batch": [track(_metadata={"a": 1}, channel="server", integrations={})], "zzz": 1, "sentAt": "not a time"}

    assert caller("ingest")("POST", "/v1/batch", json=body).json() == {"success": True}
    assert stored(database) == ["segment/m1"]


def test_the_same_delivery_twice_is_stored_once(caller: Callable[..., Any], database: Database):
    """A client that retries gets success again, and the log holds one row."""
    key = caller("ingest")
    answers = [key("POST", "/v1/batch", json={"batch": [track()]}).json() for _ in range(3)]

    assert answers == [{"success": True}] * 3
    assert stored(database) == ["segment/m1"]


def test_history_counts_as_known_when_it_happened(caller: Callable[..., Any], database: Database):
    """What comes by /v1/import is marked so and is known from its own time on."""
    caller("ingest")("POST", "/v1/import", json={"batch": [track(timestamp="2025-01-01T00:00:00Z")]})
    with database.reading() as session:
        event = session.scalars(select(EventRow)).one()

    assert event.is_imported
    assert event.received_at == event.occurred_at


def test_a_browser_may_ask_before_it_sends(client: Any, caller: Callable[..., Any]):
    """The preflight allows the headers that the browser libraries send; the answer can be read by any origin."""
    asked = client.request("OPTIONS", "/v1/t", headers={"Origin": "https://shop.example"})
    answer = caller("ingest")("POST", "/v1/t", content=json.dumps(track()), headers={"Content-Type": "text/plain"})

    assert asked.status_code == 204
    assert "authorization" in asked.headers["access-control-allow-headers"]
    assert answer.headers["access-control-allow-origin"] == "*"


def test_a_database_that_is_away_asks_for_patience(caller: Callable[..., Any], database: Database):
    """503 with Retry-After, so that clients try again instead of dropping the batch."""
    key = caller("ingest")
    key("POST", "/v1/track", json=track("before"))
    with database.engine.connect() as connection:
        connection.exec_driver_sql("ALTER TABLE event RENAME TO away")
        connection.commit()
    answer = key("POST", "/v1/track", json=track("during"))

    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["type"] == "urn:kairos:problem:unavailable"


def test_the_quarantine_is_read_page_by_page(caller: Callable[..., Any]):
    """Every entry once, newest first, through opaque cursors."""
    key = caller("ingest", "read")
    key("POST", "/v1/batch", json={"batch": [track(f"m{i}", event=i) for i in range(5)]})
    seen, cursor = [], None
    for _ in range(10):
        page = key("GET", "/v1/quarantine", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
        seen += [entry["reason"] for entry in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert sorted(reason[:10] for reason in seen) == [f"event is {i}" for i in range(5)]


def test_a_clock_that_went_back_is_no_reason_to_lose_events(
    client: Any, caller: Callable[..., Any], database: Database
):
    """503 with Retry-After, which clients obey by sending again; nothing is stored, and the remedy is named."""
    ingesting = caller("ingest")
    assert ingesting("POST", "/v1/track", json=track("m1")).status_code == 200
    with database.writing() as session:
        session.execute(update(CounterRow).where(CounterRow.name == "event_clock").values(value=CounterRow.value * 2))

    answer = ingesting("POST", "/v1/track", json=track("m2"))

    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "60")
    assert "kairos db clock --set-back" in answer.json()["detail"]
    assert stored(database) == ["segment/m1"]
