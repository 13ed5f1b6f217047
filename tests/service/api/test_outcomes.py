"""Laws of declared outcomes over HTTP: shown with live counts, and models like any other."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import yaml

from features.lake import Lake
from service.app import create_app
from service.clock import SimulatedClock
from service.database import Database
from service.demo import write_events
from service.errors import NotFound
from service.flow.predict import refresh_serving
from service.jobs import score_contacts, train_model
from service.keys import create_key
from service.model_quality import asked_outcome
from service.outcomes import declare
from service.settings import Settings
from tests.service.calling import Caller, Client
from training.ladder import NotEnoughData
from training.outcomes import parse
from training.simulation import World

SILENT: dict[str, Any] = {
    "name": "silent_regulars",
    "population": {"all": [{"feature": "orders_ever", "at_least": 1}, {"feature": "days_since_order", "at_most": 90}]},
    "event": "Order Completed",
    "happens": False,
    "within_days": 30,
}
SHIPPED = ["churn", "conversion", "email_churn"]


@pytest.fixture
def api(any_database: Database, settings: Settings, now: datetime) -> Iterator[Caller]:
    """A caller of an application over either database, who may read and write."""
    with any_database.writing() as session:
        secret = create_key(session, "test", ["read", "write"], now)[1]
    with Client(create_app(settings, any_database, SimulatedClock(now))) as client:
        yield Caller(client, secret)


def test_outcomes_are_declared_and_read_over_http(api: Caller) -> None:
    """JSON and YAML; 201, then 200; 409 with another content unless it is to replace; 404, 422 with the remedy."""
    made = api("POST", "/v1/outcomes", json=SILENT)
    again = api("POST", "/v1/outcomes", content=yaml.safe_dump(SILENT), headers={"content-type": "application/yaml"})
    other = SILENT | {"within_days": 45}
    refused = api("POST", "/v1/outcomes", json=other)
    replaced = api("POST", "/v1/outcomes", params={"replace": True}, json=other)
    listed = api("GET", "/v1/outcomes").json()

    assert (made.status_code, again.status_code, refused.status_code, replaced.status_code) == (201, 200, 409, 200)
    assert made.json()["says"] == "no order in the next 30 days"
    assert "holds no event" in made.json()["counts"]["says"]
    assert replaced.json()["declaration"]["within_days"] == 45
    assert [one["name"] for one in listed["items"]] == [*SHIPPED, "silent_regulars"]
    assert listed["next_cursor"] is None
    assert api("GET", "/v1/outcomes/silent_regulars", params={"counts": False}).json()["counts"] is None
    assert api("GET", "/v1/outcomes/sofas").status_code == 404


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        (b"{", 422, "neither YAML nor JSON"),
        (b"", 422, "not None"),
        (b"\xff", 400, "not UTF-8"),
        (yaml.safe_dump(SILENT | {"name": "churn"}).encode(), 422, "'churn' is taken"),
        (yaml.safe_dump(SILENT | {"population": {"feature": "order_ever", "is": 1}}).encode(), 422, "orders_ever"),
        (b"x" * 70_000, 422, "70,000 characters"),
    ],
)
def test_a_bad_declaration_is_a_problem(content: bytes, status: int, said: str, client: Any, caller: Any) -> None:
    """With what to write instead; a key that may only read declares nothing."""
    answered = caller("write")("POST", "/v1/outcomes", content=content)

    assert (answered.status_code, said in answered.json()["detail"]) == (status, True)
    assert caller("read")("POST", "/v1/outcomes", json=SILENT).status_code == 403
    assert client.post("/v1/outcomes", json=SILENT).status_code == 401


def test_a_declared_outcome_is_a_model_like_any_other(
    database: Database, settings: Settings, caller: Any, client: Any, clock: SimulatedClock
) -> None:
    """From the declaration to counts, a trained version with its own population, scores, and answers over HTTP."""
    world = World.generate(400, 200, 7, start=clock.now() - timedelta(days=200))
    write_events(database, world.history(world.end), now=world.end, imported=True)
    clock.move_to(world.end)
    key = caller("read", "write")
    lake = Lake(settings.lake, settings.buckets)
    with database.reading() as session:
        lake.sync(session)
    user = str(world.user_ids[0])
    before = key("GET", f"/v1/contacts/{user}/predictions").json()
    declared = key("POST", "/v1/outcomes", json=SILENT).json()
    assert declared["counts"]["trainable"], declared["counts"]["says"]
    assert declared["counts"]["population"] > 100

    at = {"as_of": world.end, "now": world.end}
    version = train_model(database, lake, settings, "silent_regulars", **at)

    assert version.promoted, version.gate
    here = client.app.state.installation
    with database.reading() as session:
        refresh_serving(session, here.serving, now=world.end, wait=True)
    model = here.serving.get("silent_regulars")
    assert model is not None
    assert model.card.horizon_days == 30
    assert model.card.population == parse(SILENT).population_over(30)
    scores = score_contacts(database, lake, model, as_of=world.end)
    assert len(scores) == declared["counts"]["population"]
    assert asked_outcome(model) == parse(SILENT).definition().outcome
    assert key("GET", "/v1/models/silent_regulars/quality").json()["waiting"]["scorings"] == 1
    stored = key("GET", "/v1/predictions", params={"model": "silent_regulars", "limit": 200}).json()["items"]
    assert len(stored) == min(200, len(scores))
    asked = {"user_ids": [stored[0]["user_id"]], "models": ["silent_regulars"]}
    live = key("POST", "/v1/predictions", json=asked).json()["predictions"][0]
    assert live["silent_regulars"]["probability"] == pytest.approx(stored[0]["probability"])
    assert "churn" not in live
    assert "silent_regulars" not in before
    assert "silent_regulars" in key("GET", f"/v1/contacts/{user}/predictions").json()
    assert key("GET", "/v1/outcomes/silent_regulars").json()["model_version"] == version.version
    nobody = key("POST", "/v1/predictions", json=asked | {"models": ["sofas"]})
    assert (nobody.status_code, "silent_regulars" in nobody.json()["detail"]) == (422, True)

    with database.writing() as session:
        for changes in (
            {"name": "tested", "event": "Sofa Tested", "happens": True},
            {"name": "few", "population": {"feature": "orders_ever", "at_least": 300}},
            {"name": "long", "within_days": 150},
        ):
            declare(session, parse(SILENT | changes), now=world.end)
    for name, said in (("tested", "0 with it"), ("few", "0 contacts"), ("long", "history")):
        with pytest.raises(NotEnoughData, match=said):
            train_model(database, lake, settings, name, **at)
    with pytest.raises(NotFound, match="'sofas'"):
        train_model(database, lake, settings, "sofas", **at)
