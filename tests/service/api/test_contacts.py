"""Laws of contacts and their predictions over HTTP."""

from collections.abc import Callable
from typing import Any

import pytest

from service.clock import SimulatedClock


@pytest.fixture
def key(caller: Callable[..., Any]) -> Any:
    return caller("ingest", "read")


def put(key: Any, *messages: dict[str, Any]) -> None:
    assert key("POST", "/v1/batch", json={"batch": list(messages)}).json() == {"success": True}


def identify(user_id: str = "42", **traits: Any) -> dict[str, Any]:
    return {"type": "identify", "userId": user_id, "messageId": f"i-{user_id}", "traits": traits}


def test_a_profile_shows_what_was_told(key: Any):
    """Traits, address, zone, names and the consent in force."""
    put(key, identify(email="ann@shop.example", plan="gold", timezone="Europe/Berlin", email_consent="subscribed"))
    profile = key("GET", "/v1/contacts/42").json()

    assert profile["user_id"] == "42"
    assert (profile["email"], profile["timezone"]) == ("ann@shop.example", "Europe/Berlin")
    assert profile["traits"] == {"plan": "gold"}
    assert profile["identities"] == ["user:42"]
    assert [(line["topic"], line["state"], line["source"]) for line in profile["consent"]] == [
        ("marketing", "subscribed", "segment")
    ]


@pytest.mark.parametrize("user_id", ["a/b", "a/events", "ü ?#%", "anonymous_id:7"])
def test_any_name_can_be_asked_for(user_id: str, key: Any):
    """Slashes, signs and anonymous contacts, percent-encoded in the path."""
    from urllib.parse import quote

    if user_id.startswith("anonymous_id:"):
        put(key, {"type": "page", "anonymousId": "7"})
    else:
        put(key, identify(user_id))

    assert key("GET", f"/v1/contacts/{quote(user_id, safe='')}/vector").json()["user_id"] == user_id


def test_an_unknown_contact_is_a_problem(key: Any):
    """404 names the contact and the remedy, on every path."""
    for path in ("", "/events", "/vector", "/predictions"):
        answer = key("GET", f"/v1/contacts/nobody{path}")

        assert answer.status_code == 404
        assert answer.json()["type"] == "urn:kairos:problem:not-found"
        assert "'nobody'" in answer.json()["detail"]


def test_a_vector_knows_only_what_was_known_then(key: Any, clock: SimulatedClock):
    """The vector as of an instant before the event is blind to it; every feature has a name and a number or null."""
    before = clock.now().isoformat()
    clock.move_to(clock.now().replace(hour=15))
    put(
        key,
        {"type": "track", "event": "Order Completed", "userId": "42", "properties": {"order_id": "1", "revenue": 5}},
    )
    clock.move_to(clock.now().replace(hour=16))
    now_vector = key("GET", "/v1/contacts/42/vector").json()
    then_vector = key("GET", "/v1/contacts/42/vector", params={"as_of": before}).json()

    assert now_vector["view_set"] == then_vector["view_set"]
    assert len(now_vector["features"]) >= 40
    assert now_vector["features"] != then_vector["features"]


@pytest.mark.parametrize("as_of", ["2026-03-02T09:00:00", "soon"])
def test_an_instant_without_a_zone_is_refused(as_of: str, key: Any):
    """422 names the value."""
    put(key, identify())
    answer = key("GET", "/v1/contacts/42/vector", params={"as_of": as_of})

    assert answer.status_code == 422
    assert as_of in str(answer.json())


def test_predictions_without_a_model_are_null_with_a_why(key: Any):
    """Each model that does not serve yet is null, and the why names the command that changes it."""
    put(key, identify())
    one = key("GET", "/v1/contacts/42/predictions").json()
    many = key("POST", "/v1/predictions", json={"user_ids": ["42", "nobody"], "models": ["churn"]}).json()

    assert (one["churn"], one["conversion"], one["send_hour"]) == (None, None, None)
    assert "kairos train churn" in one["why"]["churn"]
    assert many["unknown"] == ["nobody"]
    assert many["predictions"][0]["churn"] is None


def test_contacts_and_events_are_read_page_by_page(key: Any):
    """Every contact and every event once, whatever the page's size."""
    put(key, *(identify(str(i)) for i in range(7)))
    put(
        key,
        *({"type": "track", "event": f"e{i}", "userId": "0", "timestamp": "2026-03-01T00:00:00Z"} for i in range(7)),
    )
    for path, name in (("/v1/contacts", "user_id"), ("/v1/contacts/0/events", "seq")):
        seen, cursor = [], None
        for _ in range(10):
            page = key("GET", path, params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
            seen += [item[name] for item in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break

        assert len(seen) == len(set(seen)) == (7 if name == "user_id" else 8)


@pytest.mark.parametrize(
    "params", [{"limit": 0}, {"limit": 201}, {"limit": "many"}, {"cursor": "x"}, {"cursor": "W10.AAAA"}]
)
def test_a_page_that_cannot_be_is_a_problem(params: dict[str, Any], key: Any):
    """422 names the parameter or says that the cursor is not ours."""
    answer = key("GET", "/v1/contacts", params=params)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert next(iter(params)) in answer.json()["detail"]


def test_a_cursor_opens_only_its_own_list(key: Any):
    """One of another contact's events is refused."""
    put(key, *({"type": "track", "event": "e", "userId": u, "messageId": f"{u}{i}"} for u in "ab" for i in range(3)))
    cursor = key("GET", "/v1/contacts/a/events", params={"limit": 1}).json()["next_cursor"]

    assert key("GET", "/v1/contacts/a/events", params={"cursor": cursor}).status_code == 200
    assert key("GET", "/v1/contacts/b/events", params={"cursor": cursor}).status_code == 422


def test_an_erased_contact_is_no_more(key: Any, caller: Callable[..., Any]):
    """202 says that the files follow; every path then answers 404, as does erasing again; others stay."""
    writer = caller("write")
    put(key, identify("a/b", email="ann@shop.example"), identify("43"))
    erased = writer("DELETE", "/v1/contacts/a%2Fb")

    assert erased.status_code == 202
    told = erased.json()
    assert "out of the database" in told.pop("note")
    assert told == {
        "user_id": "a/b", "events": 1, "sends_cancelled": 0, "sends_leaving": 0, "pending": "files",
    }  # fmt: skip
    for path in ("", "/events", "/vector", "/predictions"):
        assert key("GET", f"/v1/contacts/a%2Fb{path}").status_code == 404
    again = writer("DELETE", "/v1/contacts/a%2Fb")
    assert (again.status_code, again.json()["type"]) == (404, "urn:kairos:problem:not-found")
    assert [item["user_id"] for item in key("GET", "/v1/contacts").json()["items"]] == ["43"]


def test_erasing_needs_the_right_to_write(key: Any):
    """A key that may only read and ingest is refused, and nothing happens."""
    put(key, identify())

    assert key("DELETE", "/v1/contacts/42").status_code == 403
    assert key("GET", "/v1/contacts/42").status_code == 200


def test_rewards_for_an_erased_contact_are_counted_and_not_kept(caller: Callable[..., Any]):
    """A caller that reports late is told; its other rewards are stored."""
    key = caller("read", "write")
    arms = [{"id": "a", "content": "A"}, {"id": "b", "content": "B"}]
    body = {"name": "Test", "kind": "subject", "arms": arms, "reward": "click"}
    experiment = key("POST", "/v1/experiments", json=body).json()["id"]
    asked = {"experiment": experiment, "user_ids": ["x", "y"], "occurrence": "once"}
    made = {one["user_id"]: one["decision_id"] for one in key("POST", "/v1/decisions", json=asked).json()["decisions"]}
    key("DELETE", "/v1/contacts/x")
    told = key("POST", "/v1/rewards", json=[{"decision_id": id_, "kind": "click"} for id_ in made.values()])

    assert told.json() == {"stored": 1, "duplicates": 0, "erased": 1}
    gone, stays = (key("GET", f"/v1/decisions/{made[name]}").json() for name in "xy")
    assert (gone["user_id"], gone["replay"], "was erased" in gone["replay_note"]) == (None, None, True)
    assert (stays["user_id"], stays["replay"]["is_equal"], stays["replay_note"]) == ("y", True, None)


def test_only_an_admin_releases_an_address(key: Any, caller: Callable[..., Any]):
    """403 for others; a browser's key cannot put it on the list, a server's can."""
    put(key, identify("42", email="ann@shop.example"))
    spam = {"type": "track", "event": "Email Marked as Spam", "userId": "42", "properties": {}}
    assert "scope write" in key("POST", "/v1/batch", json={"batch": [spam]}).json()["quarantined"][0]["reason"]
    body = {"reason": "the shop's mistake"}
    admin = caller("admin")
    assert admin("POST", "/v1/contacts/42/release", json=body).status_code == 409
    put(caller("ingest", "write"), spam)

    assert caller("write")("POST", "/v1/contacts/42/release", json=body).status_code == 403
    assert admin("POST", "/v1/contacts/42/release", json=body).json()["was"] == "complaint"
    [event] = key("GET", "/v1/contacts/42/events?event=Address Released").json()["items"]
    assert event["properties"]["reason"] == body["reason"]
