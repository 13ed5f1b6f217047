"""Laws of an experiment's life over HTTP: arms come and go, it pauses and ends, what it asks stays."""

from collections.abc import Callable
from typing import Any

import pytest

SUBJECTS = {
    "name": "Subject",
    "kind": "subject",
    "arms": [{"id": "plain", "text": "News"}, {"id": "loved", "text": "Your favourites"}],
}


@pytest.fixture
def key(caller: Callable[..., Any]) -> Any:
    return caller("read", "write")


@pytest.fixture
def path(key: Any) -> str:
    answer = key("POST", "/v1/experiments", json=SUBJECTS)
    assert answer.status_code == 201, answer.text
    return f"/v1/experiments/{answer.json()['id']}"


def test_arms_come_and_go(key: Any, path: str):
    """Added, paused with a reason, resumed, retired; the history tells it with the key that did it."""
    added = key("POST", f"{path}/arms", json={"id": "offer", "text": "10 % off"})
    paused = key("PATCH", f"{path}/arms/plain", json={"status": "paused", "reason": "out of stock"})
    key("PATCH", f"{path}/arms/plain", json={"status": "running"})
    retired = key("PATCH", f"{path}/arms/loved", json={"status": "retired"})

    assert added.status_code == 201
    assert [arm["id"] for arm in added.json()["arms"]] == ["plain", "loved", "offer"]
    assert paused.json()["arms"][0]["status"] == "paused"
    assert "out of stock" in paused.json()["arms"][0]["status_reason"]
    assert [arm["status"] for arm in retired.json()["arms"]] == ["running", "retired", "running"]
    assert [entry["what"] for entry in retired.json()["history"]] == [
        "arm 'offer' added",
        "arm 'plain' paused: out of stock",
        "arm 'plain' resumed",
        "arm 'loved' retired",
    ]
    assert all(entry["who"].startswith("key ") for entry in retired.json()["history"])
    assert retired.json() == key("GET", path).json()


def test_an_experiment_is_edited_paused_and_ended(key: Any, path: str):
    """Name and floor change while it runs; afterwards nothing does."""
    edited = key("PATCH", path, json={"name": "Spring", "floor": 0.1, "guardrails": {"complaints": False}}).json()
    paused = key("PATCH", path, json={"status": "paused"}).json()
    key("PATCH", path, json={"status": "running"})
    ended = key("PATCH", path, json={"status": "ended", "reason": "decided"}).json()
    late = key("PATCH", path, json={"name": "Autumn"})

    assert (edited["name"], edited["floor"]) == ("Spring", 0.1)
    assert edited["guardrails"] == {"unsubscribes": True, "complaints": False}
    assert (paused["status"], ended["status"]) == ("paused", "ended")
    assert ended["ended_at"] is not None
    assert (late.status_code, late.json()["type"]) == (409, "urn:kairos:problem:conflict")


@pytest.mark.parametrize(
    ("part", "body", "status", "said"),
    [
        ("", {"reward": "open"}, 409, "end it and open a new one"),
        ("", {"reward_window_hours": 5}, 409, "reward_window_hours"),
        ("", {"policy": "uniform"}, 409, "policy"),
        ("", {"salt": "mine"}, 409, "salt"),
        ("", {"colour": "red"}, 422, "colour"),
        ("", {}, 422, "nothing"),
        ("", {"floor": 0.9}, 422, "floor"),
        ("", {"status": "asleep"}, 422, "status"),
        ("/arms/plain", {}, 422, "nothing"),
        ("/arms/plain", {"status": "running"}, 409, "already"),
        ("/arms/nope", {"status": "paused"}, 404, "nope"),
    ],
)
def test_a_change_that_may_not_be_is_a_problem(part: str, body: Any, status: int, said: str, key: Any, path: str):
    """409 for what is fixed, 422 for what makes no sense, and nothing is changed."""
    before = key("GET", path).json()
    answer = key("PATCH", path + part, json=body)

    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert key("GET", path).json() == before


def test_changing_needs_the_scope_write(caller: Callable[..., Any], path: str):
    """Reading is not enough."""
    reader = caller("read")

    assert reader("PATCH", path, json={"status": "paused"}).status_code == 403
    assert reader("POST", f"{path}/arms", json={"id": "c", "text": "x"}).status_code == 403


def test_opening_says_what_can_be_proved(key: Any, path: str):
    """As the plan says it again, for any number of sends and any lift."""
    made = key("POST", "/v1/experiments", json=SUBJECTS).json()
    again = key("GET", f"/v1/experiments/{made['id']}/plan").json()
    small = key("GET", f"/v1/experiments/{made['id']}/plan?sends=500&lift=0.5&holdout_share=0.1").json()

    assert made["planning"] == again
    assert again["sentences"][0].startswith("You need about ")
    assert small["sends_needed"] < again["sends_needed"]
    assert any("500 sends will not bring that many" in one for one in small["sentences"])
    assert small["holdout"]["share"] == 0.1
    assert key("GET", f"{path}/plan?sends=0").status_code == 422
    assert key("GET", f"{path}/plan?lift=60").status_code == 422
    assert key("GET", "/v1/experiments/nope/plan").status_code == 404


def test_the_report_is_a_picture_too(key: Any, path: str):
    """Before anything was shown it says so, as JSON and as a picture."""
    report = key("GET", f"{path}/report").json()
    picture = key("GET", f"{path}/report.png")

    assert report["verdict"]["kind"] == "too_early"
    assert picture.headers["content-type"] == "image/png"
    assert picture.content.startswith(b"\x89PNG")
    assert key("GET", "/v1/experiments/nope/report.png").status_code == 404


def test_everything_that_an_experiment_can_ask_is_asked_over_http(key: Any):
    """And shown again as it was asked."""
    asked = {
        "reward": "conversion", "reward_window_hours": 168, "holdout_share": 0.1, "sticky": True, "control": "loved",
        "segment_by": {"trait": "country", "values": ["DE", "FR"]}, "half_life_days": 30, "planned_sends": 50_000,
        "guardrails": {"complaints": False},
    }  # fmt: skip
    made = key("POST", "/v1/experiments", json=SUBJECTS | asked)
    fixed = key("POST", "/v1/experiments", json=SUBJECTS | {"policy": "fixed", "weights": {"plain": 1, "loved": 9}})
    money = key("POST", "/v1/experiments", json=SUBJECTS | {"reward": "revenue"})
    odd = key("POST", "/v1/experiments", json=SUBJECTS | {"control": "nope"})

    assert made.status_code == 201, made.text
    shown = made.json()
    for name in ("sticky", "control", "segment_by", "half_life_days", "planned_sends"):
        assert shown["settings"][name] == asked[name]
    assert shown["guardrails"] == {"unsubscribes": True, "complaints": False}
    assert shown["planning"]["sends"] == 50_000
    assert "10 % held out" in shown["planning"]["sentences"][-1]
    assert fixed.json()["settings"]["weights"] == {"plain": 1, "loved": 9}
    assert money.json()["policy"] == "gaussian"
    assert (odd.status_code, "nope" in odd.json()["detail"]) == (422, True)
