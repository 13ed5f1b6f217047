"""Laws of experiments, decisions, rewards, templates and campaigns over HTTP."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from service.database import Database
from service.flow.decide import open_experiment
from service.flow.reward import learn, statistics
from service.tables import ArmRow, DecisionRow
from tests.service.flow.shown import new_experiment

SUBJECTS = {
    "name": "Subject",
    "kind": "subject",
    "arms": [{"id": "plain", "text": "News"}, {"id": "loved", "text": "{{ first_name | default: 'Hello' }}, news"}],
    "reward": "click",
}
TEMPLATE = {
    "id": "hello",
    "subject": "News",
    "source": "<mjml><mj-body><mj-section><mj-column><mj-text>Hi {{ first_name | default: 'you' }}</mj-text>"
    '<mj-text><a href="https://shop.example/">shop</a> <a href="{{ unsubscribe_url }}">stop</a></mj-text>'
    "</mj-column></mj-section></mj-body></mjml>",
}


@pytest.fixture
def key(caller: Callable[..., Any]) -> Any:
    return caller("ingest", "read", "write", "send")


def opened(key: Any, **changes: Any) -> dict[str, Any]:
    answer = key("POST", "/v1/experiments", json=SUBJECTS | changes)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_an_experiment_is_opened_and_read(key: Any):
    """It runs at once with its arms in the given order; list, single view and report agree."""
    made = opened(key)
    listed = key("GET", "/v1/experiments").json()["items"]
    report = key("GET", f"/v1/experiments/{made['id']}/report").json()

    assert [arm["id"] for arm in made["arms"]] == ["plain", "loved"]
    assert made.pop("planning")["sentences"]
    assert listed == [made] == [key("GET", f"/v1/experiments/{made['id']}").json()]
    assert [(arm["id"], arm["probability"], arm["sends"], arm["interval"]) for arm in report["arms"]] == [
        ("plain", 0.5, 0, None),
        ("loved", 0.5, 0, None),
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arms": SUBJECTS["arms"][:1]}, "arm"),
        ({"arms": []}, "arm"),
        ({"arms": [SUBJECTS["arms"][0]] * 2}, "plain"),
        ({"arms": [{"id": "a"}, {"id": "b", "text": "x"}]}, "'a'"),
        ({"kind": "song"}, "kind"),
        ({"reward": "applause"}, "applause"),
        ({"floor": 0.7}, "floor"),
        ({"floor": -1}, "floor"),
        ({"policy": "oracle"}, "oracle"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_an_experiment_that_makes_no_sense_is_refused(changes: dict[str, Any], said: str, key: Any):
    """422 with a problem body that names the value; nothing is opened."""
    answer = key("POST", "/v1/experiments", json=SUBJECTS | changes)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert said in answer.json()["detail"]
    assert key("GET", "/v1/experiments").json()["items"] == []


@pytest.mark.parametrize("content", [b"{", b'{"name": }', b""])
def test_a_body_that_is_no_json_is_a_problem(content: bytes, key: Any):
    """400 or 422 as a problem body, with a remedy."""
    headers = {"Content-Type": "application/json"}
    answer = key("POST", "/v1/experiments", content=content, headers=headers)

    assert answer.status_code == (400 if content else 422)
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
def test_numbers_that_are_none_are_refused_everywhere(value: str, key: Any):
    """The problem names the field."""
    body = '{"decision_id": "d", "kind": "click", "value": ' + value + "}"
    answer = key("POST", "/v1/rewards", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 422
    assert "value" in answer.json()["detail"]


def test_a_decision_is_the_same_when_asked_again(key: Any):
    """Same experiment, contact and occurrence: same decision; replaying it from what was stored gives the same arm."""
    asked = {"experiment": opened(key)["id"], "user_ids": ["a", "b", "a"], "occurrence": "home"}
    first, again = (key("POST", "/v1/decisions", json=asked).json()["decisions"] for _ in range(2))
    shown = key("GET", f"/v1/decisions/{first[0]['decision_id']}").json()

    assert first == again
    assert [one["user_id"] for one in first] == ["a", "b"]
    assert all(0 < one["propensity"] <= 1 for one in first)
    assert shown["replay"] == {"arm": first[0]["arm"], "propensity": first[0]["propensity"], "is_equal": True}


def test_a_reward_counts_once_and_teaches(key: Any, database: Database, now: datetime):
    """Reported twice it is stored once; the learner's counts and the report show it."""
    experiment = opened(key)["id"]
    asked = {"experiment": experiment, "user_ids": ["a", "b"], "occurrence": "home"}
    decisions = key("POST", "/v1/decisions", json=asked).json()["decisions"]
    reward = {"decision_id": decisions[0]["decision_id"], "kind": "click"}
    first = key("POST", "/v1/rewards", json=[reward, reward]).json()
    again = key("POST", "/v1/rewards", json=reward).json()
    with database.writing() as session:
        learn(session, now=now + timedelta(hours=1))
    report = key("GET", f"/v1/experiments/{experiment}/report").json()

    assert (first, again) == ({"stored": 1, "duplicates": 1}, {"stored": 0, "duplicates": 1})
    assert sum(arm["sends"] for arm in report["arms"]) == 2
    assert sum(arm["successes"] for arm in report["arms"]) == 1


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/experiments/nope", None),
        ("GET", "/v1/experiments/nope/report", None),
        ("GET", "/v1/decisions/nope", None),
        ("POST", "/v1/decisions", {"experiment": "nope", "user_ids": ["a"], "occurrence": "x"}),
        ("POST", "/v1/rewards", {"decision_id": "nope", "kind": "click"}),
        ("GET", "/v1/templates/nope", None),
        ("POST", "/v1/templates/nope/preview", {}),
        ("GET", "/v1/campaigns/nope", None),
        ("POST", "/v1/campaigns/nope/plan", None),
        ("POST", "/v1/campaigns/nope/schedule", None),
        ("POST", "/v1/campaigns/nope/cancel", None),
        ("GET", "/v1/campaigns/nope/sends", None),
        ("GET", "/v1/campaigns/nope/report", None),
        ("GET", "/v1/models/nope", None),
        ("GET", "/v1/predictions?model=nope", None),
        ("GET", "/v1/nope", None),
    ],
)
def test_what_is_not_there_is_a_problem(method: str, path: str, body: Any, key: Any):
    """404 with the name in it."""
    answer = key(method, path, json=body) if body is not None else key(method, path)

    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:kairos:problem:not-found"
    assert "nope" in answer.json()["detail"]


def test_a_template_is_kept_version_by_version_and_previewed(key: Any):
    """The second version does not touch the first; the preview fills in the contact's traits and the arms."""
    key("POST", "/v1/identify", json={"userId": "42", "traits": {"first_name": "Ann"}})
    first = key("POST", "/v1/templates", json=TEMPLATE)
    second = key("POST", "/v1/templates", json=TEMPLATE | {"subject": "Other news"})
    assert (first.status_code, first.json()["version"], second.json()["version"]) == (201, 1, 2)

    shown = key("POST", "/v1/templates/hello/preview", json={"user_id": "42", "arms": {"subject": "{{ first_name }}!"}})
    old = key("POST", "/v1/templates/hello/preview", json={"version": 1})
    assert shown.json()["subject"] == "Ann!"
    assert "Hi Ann" in shown.json()["text"]
    assert old.json()["subject"] == "News"
    assert [(one["id"], one["version"]) for one in key("GET", "/v1/templates").json()["items"]] == [("hello", 2)]


@pytest.mark.parametrize(
    "changes",
    [
        {"source": "<mjml><mj-body><mj-section></mj-body></mjml>"},
        {"source": TEMPLATE["source"].replace("{{ first_name", "{% if first_name")},
        {"subject": "{{ first_name"},
        {"id": "Not An Id"},
        {"source_format": "docx"},
    ],
)
def test_a_template_that_does_not_compile_is_refused(changes: dict[str, str], key: Any):
    """422 naming what is wrong; no version is kept."""
    answer = key("POST", "/v1/templates", json=TEMPLATE | changes)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.json()["detail"]) > 20
    assert key("GET", "/v1/templates").json()["items"] == []


def draft(key: Any, now: datetime) -> dict[str, Any]:
    people = [
        {
            "type": "identify",
            "userId": f"p{i}",
            "traits": {"email": f"p{i}@example.com", "email_consent": "subscribed"} if i else {},
        }
        for i in range(4)
    ]
    assert key("POST", "/v1/batch", json={"batch": people}).json() == {"success": True}
    assert key("POST", "/v1/templates", json=TEMPLATE).status_code == 201
    body = {
        "name": "Spring",
        "template_id": "hello",
        "audience": {"everyone": True},
        "experiments": [opened(key)["id"]],
        "window_start": now.isoformat(),
        "window_end": (now + timedelta(hours=24)).isoformat(),
    }
    answer = key("POST", "/v1/campaigns", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def test_a_campaign_is_planned_scheduled_and_cancelled(key: Any, now: datetime):
    """The plan writes nothing; scheduling makes one send a contact, with reasons; cancelling takes back what waits."""
    campaign = draft(key, now)
    path = f"/v1/campaigns/{campaign['id']}"
    plan = key("POST", f"{path}/plan").json()
    before = key("GET", f"{path}/sends").json()["items"]
    scheduled = key("POST", f"{path}/schedule").json()
    sends = key("GET", f"{path}/sends").json()["items"]
    again = key("POST", f"{path}/schedule")
    cancelled = key("POST", f"{path}/cancel").json()
    report = key("GET", f"{path}/report").json()

    assert (plan["audience"], plan["planned"], before) == (4, 3, [])
    assert scheduled["status"] == "scheduled"
    assert sorted(send["state"] for send in sends) == ["planned"] * 3 + ["suppressed"]
    assert next(send for send in sends if send["user_id"] == "p0")["reason"] == "no e-mail address"
    assert (again.status_code, again.json()["type"]) == (409, "urn:kairos:problem:conflict")
    assert (cancelled["status"], cancelled["cancelled"]) == ("cancelled", 3)
    assert (report["sends"]["cancelled"], report["sends"]["suppressed"]) == (3, 1)


def test_scheduling_needs_its_own_scope(key: Any, caller: Callable[..., Any], now: datetime):
    """Who may write drafts may not send them."""
    campaign = draft(key, now)
    writer = caller("read", "write")

    assert writer("POST", f"/v1/campaigns/{campaign['id']}/plan").status_code == 200
    assert writer("POST", f"/v1/campaigns/{campaign['id']}/schedule").status_code == 403


@pytest.mark.parametrize(
    ("changes", "status", "said"),
    [
        ({"template_id": "nope"}, 404, "nope"),
        ({"experiments": ["nope"]}, 404, "nope"),
        ({"audience": {"colour": "red"}}, 422, "colour"),
        ({"window_start": "2026-03-02T09:00:00"}, 422, "window_start"),
        ({"window_end": "2020-01-01T00:00:00Z"}, 422, "window"),
        ({"holdout_share": 0.9}, 422, "holdout_share"),
    ],
)
def test_a_campaign_that_makes_no_sense_is_refused(
    changes: dict[str, Any], status: int, said: str, key: Any, now: datetime
):
    """The problem names the value."""
    campaign = draft(key, now)
    kept = ("name", "template_id", "audience", "experiments", "window_start", "window_end")
    answer = key("POST", "/v1/campaigns", json={name: campaign[name] for name in kept} | changes)

    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert len(key("GET", "/v1/campaigns").json()["items"]) == 1


def test_a_template_shows_the_slots_that_experiments_may_fill(key: Any):
    """As its source names them, the subject first."""
    hero = "{% slot hero %}<mj-text>Hi</mj-text>{% endslot %}"
    source = f"<mjml><mj-body><mj-section><mj-column>{hero}</mj-column></mj-section></mj-body></mjml>"
    answer = key("POST", "/v1/templates", json={"id": "slotted", "subject": "News", "source": source})

    assert answer.json()["slots"] == ["subject", "hero"]


def test_who_is_held_out_gets_no_arm(key: Any, database: Database, now: datetime):
    """``arm`` is null and ``holdout`` true; the decision is logged with the arm that was drawn, and is no trial."""
    experiment = opened_with(database, now, holdout_share=0.5)
    users = [f"u{i}" for i in range(40)]
    asked = {"experiment": experiment, "user_ids": users, "occurrence": "home"}
    made = key("POST", "/v1/decisions", json=asked).json()["decisions"]
    held = [one for one in made if one["holdout"]]
    with database.writing() as session:
        learn(session, now=now + timedelta(hours=1))
        trials = statistics(session, experiment, now=now).trials.sum()
    shown = key("GET", f"/v1/decisions/{held[0]['decision_id']}").json()

    assert 8 < len(held) < 32
    assert {one["arm"] for one in held} == {None}
    assert trials == 40 - len(held)
    assert shown["holdout"] is True
    assert shown["arm"] in ("a", "b", "c")
    assert shown["replay"]["is_equal"] is True


def test_eligible_arms_all_paused_and_unknown_ones(key: Any, database: Database, now: datetime):
    """Only the eligible are drawn; none of them running is 409 with the remedy, an unknown one 422."""
    experiment = opened_with(database, now)
    asked = {"experiment": experiment, "user_ids": ["a", "b", "c"], "occurrence": "home", "eligible": ["b"]}
    made = key("POST", "/v1/decisions", json=asked).json()["decisions"]
    unknown = key("POST", "/v1/decisions", json=asked | {"occurrence": "2", "eligible": ["z"]})
    with database.writing() as session:
        session.execute(update(ArmRow).values(status="paused"))
    paused = key("POST", "/v1/decisions", json=asked | {"occurrence": "3", "eligible": None})

    assert {(one["arm"], one["propensity"]) for one in made} == {("b", 1.0)}
    assert (unknown.status_code, paused.status_code) == (422, 409)
    assert "'z'" in unknown.json()["detail"]
    assert "resume an arm" in paused.json()["detail"]


def test_rewards_say_when_they_happened(key: Any, database: Database, clock: Any, now: datetime):
    """From inside the window they count however late; outside it they earn nothing; impossible instants are 422."""
    experiment = opened_with(database, now)
    asked = {"experiment": experiment, "user_ids": ["a", "b", "c"], "occurrence": "home"}
    ids = [one["decision_id"] for one in key("POST", "/v1/decisions", json=asked).json()["decisions"]]
    clock.move_to(now + timedelta(hours=100))

    def told(decision_id: str, hours: float) -> Any:
        at = (now + timedelta(hours=hours)).isoformat()
        return key("POST", "/v1/rewards", json={"decision_id": decision_id, "kind": "click", "occurred_at": at})

    assert told(ids[0], 5).json() == {"stored": 1, "duplicates": 0}
    assert told(ids[1], 80).json() == {"stored": 1, "duplicates": 0, "late": 1}
    for hours in (-1, 101):
        answer = told(ids[2], hours)
        assert answer.status_code == 422
        assert "check the clock" in answer.json()["detail"]
    with database.writing() as session:
        learn(session, now=now + timedelta(hours=100))
        assert statistics(session, experiment, now=now).successes.sum() == 1


def test_a_linear_decision_over_http_replays(key: Any, database: Database, now: datetime):
    """What the policy saw of a contact is kept with the decision, and drawn again from."""
    key(
        "POST",
        "/v1/track",
        json={"userId": "a", "event": "Order Completed", "properties": {"order_id": "1", "total": 9}},
    )
    experiment = opened_with(database, now, policy="linear", context={"features": ["orders_ever"]})
    asked = {"experiment": experiment, "user_ids": ["a", "new"], "occurrence": "home"}
    made = key("POST", "/v1/decisions", json=asked).json()["decisions"]

    for one in made:
        assert key("GET", f"/v1/decisions/{one['decision_id']}").json()["replay"]["is_equal"] is True
    with database.reading() as session:
        assert all(len(context) == 8 for context in session.scalars(select(DecisionRow.context)))


def opened_with(database: Database, now: datetime, **changes: Any) -> str:
    with database.writing() as session:
        return open_experiment(session, new_experiment(**changes), now=now, salt="api")
