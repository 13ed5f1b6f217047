"""Laws of `POST /v1/experiments/{id}/evaluate`: from decisions and rewards over HTTP to another policy's worth."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from service.api import evaluations
from service.clock import SimulatedClock
from service.database import Database
from service.flow.reward import learn

ASKED = {"name": "Button", "kind": "cta", "arms": [{"id": "buy", "text": "Buy"}, {"id": "look", "text": "Look"}]}


@pytest.fixture
def key(caller: Callable[..., Any]) -> Any:
    return caller("ingest", "read", "write", "send")


@pytest.fixture
def lived(key: Any, database: Database, clock: SimulatedClock) -> str:
    """An experiment with 400 decisions of which every second with the arm ``buy`` was clicked, four days later."""
    experiment = key("POST", "/v1/experiments", json=ASKED).json()["id"]
    asked = {"experiment": experiment, "user_ids": [f"u{i}" for i in range(400)], "occurrence": "home"}
    decisions = key("POST", "/v1/decisions", json=asked).json()["decisions"]
    bought = [one["decision_id"] for one in decisions if one["arm"] == "buy"][::2]
    rewards = [{"decision_id": decision_id, "kind": "click"} for decision_id in bought]
    assert key("POST", "/v1/rewards", json=rewards).json()["stored"] == len(bought)
    with database.writing() as session:
        learn(session, now=clock.now() + timedelta(hours=1))
    clock.move_to(clock.now() + timedelta(days=4))
    return experiment


def test_an_arm_is_worth_what_it_earned(lived: str, key: Any):
    """Every second click of one arm and none of the other: .5 and 0 a decision, .25 for the uniform policy."""
    path = f"/v1/experiments/{lived}/evaluate"
    answers = {
        name: key("POST", path, json={"target": target}).json()
        for name, target in {
            "buy": {"arm": "buy"},
            "look": {"weights": {"look": 2}},
            "uniform": {"policy": "uniform"},
        }.items()
    }
    snips = {
        name: next(one["value"] for one in answer["estimates"] if one["estimator"] == "snips")
        for name, answer in answers.items()
    }

    assert snips["buy"] == pytest.approx(0.5, abs=0.01)
    assert snips["look"] == 0
    assert snips["uniform"] == pytest.approx(answers["uniform"]["logged"]["value"])
    assert answers["buy"]["target"] == {"arm": "buy"}
    assert answers["buy"]["decisions"]["used"] == 400
    assert answers["buy"]["why"] is None


def test_a_request_over_too_many_decisions_is_refused_with_the_remedy(lived: str, key: Any, monkeypatch: Any):
    """The limit stands at 200,000; here it is set below what there is."""
    assert evaluations.MOST_DECISIONS == 200_000
    monkeypatch.setattr(evaluations, "MOST_DECISIONS", 399)
    refused = key("POST", f"/v1/experiments/{lived}/evaluate", json={"target": {"policy": "uniform"}})
    assert refused.status_code == 422
    assert "400 decisions, and 399 can be evaluated" in refused.json()["detail"]


def test_a_period_without_decisions_has_no_value_but_a_reason(lived: str, key: Any, clock: SimulatedClock):
    """The answer is a 200 that says why there is no number."""
    body = {"target": {"arm": "buy"}, "since": (clock.now() - timedelta(days=1)).isoformat()}
    answer = key("POST", f"/v1/experiments/{lived}/evaluate", json=body)

    assert answer.status_code == 200
    assert "widen the period" in answer.json()["why"]
    assert answer.json()["logged"]["value"] is None


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"target": {}}, 422, "exactly one"),
        ({"target": {"arm": "buy", "policy": "uniform"}}, 422, "exactly one"),
        ({"target": {"policy": "oracle"}}, 422, "uniform"),
        ({"target": {"arm": "sell"}}, 422, "'sell'"),
        ({"target": {"weights": {"buy": -1}}}, 422, "weights"),
        ({"target": {"snapshot": "snp_77"}}, 404, "snp_77"),
        ({"target": {"arm": "buy"}, "since": "2026-03-02T00:00:00"}, 422, "time zone"),
        ({"target": {"arm": "buy"}, "colour": "red"}, 422, "colour"),
        ({}, 422, "target"),
    ],
)
def test_a_question_that_makes_no_sense_is_a_problem(body: Any, status: int, said: str, lived: str, key: Any):
    """A problem body with the value in it."""
    answer = key("POST", f"/v1/experiments/{lived}/evaluate", json=body)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]


def test_evaluating_takes_a_key_that_may_read(caller: Callable[..., Any], lived: str):
    """403 without the scope; 404 for an experiment that does not exist."""
    path, body = f"/v1/experiments/{lived}/evaluate", {"target": {"policy": "uniform"}}

    assert caller("write")("POST", path, json=body).status_code == 403
    assert caller("read")("POST", path, json=body).status_code == 200
    assert caller("read")("POST", "/v1/experiments/nope/evaluate", json=body).status_code == 404
