"""Laws of predictions over HTTP, with models that really serve."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.contacts import resolve
from features.lake import Lake
from features.views import DEFAULT_VIEWS, SEND_HOUR_VIEWS
from service.clock import SimulatedClock
from service.database import Database
from service.feature_checks import check_features
from service.flow.predict import refresh_serving
from service.jobs import serve_version
from service.served_vectors import VectorLog, read_served
from service.settings import Settings
from service.tables import PredictionRow
from training.calibration import Calibration
from training.estimators import RidgeLogistic
from training.send_hour import SendHourModel
from training.serving import ModelCard, Population, stamp_version, write_model


@pytest.fixture
def key(caller: Callable[..., Any]) -> Any:
    return caller("ingest", "read")


@pytest.fixture
def conversion(client: Any, database: Database, tmp_path: Path, now: datetime) -> str:
    """A conversion model, version 3, that serves everyone who ever ordered; returns the column it was fitted on."""
    rng = np.random.default_rng(7)
    X = rng.normal(size=(200, len(DEFAULT_VIEWS.names)))
    column = next(name for name in DEFAULT_VIEWS.names if "days_since_order" in name)
    card = ModelCard(
        name="conversion", kind="outcome", rung="logistic", reason="test", view_set=DEFAULT_VIEWS.name,
        view_set_version=DEFAULT_VIEWS.version, horizon_days=30, outcome="an order", as_of=now.isoformat(),
        created_at=now.isoformat(), metrics={},
        population=Population((((column, 0.0, None),),), "contacts that ordered"),
    )  # fmt: skip
    folder = tmp_path / "model"
    write_model(folder, card, DEFAULT_VIEWS, RidgeLogistic.fit(X, X[:, 0] > 0), Calibration(), X)
    stamp_version(folder, 3)
    with database.writing() as session:
        serve_version(session, "conversion", 3, folder, now=now)
        refresh_serving(session, client.app.state.installation.serving, now=now, wait=True)
    return column


def test_what_live_answers_came_from_is_recorded_for_sampled_contacts(
    key: Any, client: Any, database: Database, conversion: str, settings: Settings, clock: SimulatedClock
):
    """One contact's predictions, many's, and the vector of now; a look into the past is not. All replay."""
    here = client.app.state.installation
    here.vectors = VectorLog(database, 1.0)
    for user in ("buyer", "reader"):
        key("POST", "/v1/page", json={"userId": user})
    asked = [
        lambda: key("GET", "/v1/contacts/buyer/predictions"),
        lambda: key("POST", "/v1/predictions", json={"user_ids": ["reader", "buyer"]}),
        lambda: key("GET", "/v1/contacts/reader/vector"),
        lambda: key("GET", "/v1/contacts/reader/vector", params={"as_of": "2026-01-01T00:00:00Z"}),
    ]
    for ask in asked:
        clock.move_to(clock.now() + timedelta(seconds=1))
        assert ask().status_code == 200
    here.vectors.close()

    with database.reading() as session:
        served, _ = read_served(session)
    assert [int(at) for at in np.diff(np.sort(served.as_of))] == [1_000_000, 0, 1_000_000]
    report = check_features(database, Lake(settings.lake, settings.buckets), now=clock.now())
    assert (report["replay"]["compared"], report["replay"]["mismatched"]) == (4, 0)


def test_an_hour_says_whose_habits_and_whose_clock_it_is(
    key: Any, client: Any, database: Database, tmp_path: Path, now: datetime
):
    """Level of the answer, and the source of the zone: told, taken from a message, or the installation's."""
    curve = np.linspace(0.1, 0.3, 24)
    model = SendHourModel("global", True, 0.2, curve)
    card = ModelCard(
        "send_hour", "send_hour", "global", "", SEND_HOUR_VIEWS.name, SEND_HOUR_VIEWS.version, None, "", "", "", {}
    )
    write_model(tmp_path / "hours", card, SEND_HOUR_VIEWS, model, None, np.zeros((8, len(SEND_HOUR_VIEWS.names))))
    stamp_version(tmp_path / "hours", 1)
    with database.writing() as session:
        serve_version(session, "send_hour", 1, tmp_path / "hours", now=now)
        refresh_serving(session, client.app.state.installation.serving, now=now, wait=True)
    key("POST", "/v1/identify", json={"userId": "told", "traits": {"timezone": "Europe/Oslo"}})
    key("POST", "/v1/page", json={"userId": "seen", "context": {"timezone": "America/New_York"}})
    key("POST", "/v1/page", json={"userId": "unknown"})

    many = key("POST", "/v1/predictions", json={"user_ids": ["told", "seen", "unknown"], "models": ["send_hour"]})
    hours = [one["send_hour"] for one in many.json()["predictions"]]
    assert [(hour["timezone"], hour["timezone_source"]) for hour in hours] == [
        ("Europe/Oslo", "explicit"), ("America/New_York", "inferred"), ("UTC", "installation"),
    ]  # fmt: skip
    assert {(hour["level"], hour["best_local_hour"]) for hour in hours} == {("global", 23)}


def test_a_model_that_serves_answers_with_reasons(key: Any, conversion: str, now: datetime):
    """Probability, version, rung and reasons for whom the model is about; a null with the why for whom it is not."""
    order = {"event": "Order Completed", "userId": "buyer", "timestamp": "2026-02-01T00:00:00Z"}
    key("POST", "/v1/track", json=order | {"properties": {"order_id": "1", "revenue": 9.5}})
    key("POST", "/v1/page", json={"userId": "reader"})
    one = key("GET", "/v1/contacts/buyer/predictions").json()
    many = key("POST", "/v1/predictions", json={"user_ids": ["reader", "buyer"]}).json()["predictions"]

    assert 0 < one["conversion"]["probability"] < 1
    assert (one["conversion"]["model_version"], one["conversion"]["rung"]) == (3, "logistic")
    assert all(reason["says"] for reason in one["conversion"]["reasons"])
    assert many[1] == one
    assert many[0]["conversion"] is None
    assert "contacts that ordered" in many[0]["why"]["conversion"]


def test_the_card_of_a_model_is_shown(key: Any, conversion: str):
    """Which version serves, which is loaded, and what it says of itself."""
    shown = key("GET", "/v1/models/conversion").json()

    assert (shown["version"], shown["loaded_version"], shown["previous_version"]) == (3, 3, None)
    assert shown["card"]["outcome"] == "an order"
    assert [model["name"] for model in key("GET", "/v1/models").json()["items"]] == ["conversion"]


@pytest.fixture
def scores(database: Database, now: datetime) -> list[float]:
    """Stored churn scores of nine contacts, two of them equal."""
    probabilities = [0.1, 0.2, 0.3, 0.4, 0.5, 0.5, 0.7, 0.8, 0.9]
    with database.writing() as session:
        keys = resolve(session, [f"user:{i}" for i in range(9)], now=now)
        session.add_all(
            PredictionRow(
                model="churn", contact_key=keys[f"user:{i}"], probability=probability, percentile=(i + 1) / 9,
                as_of=now, model_version=1, detail=None,
            )
            for i, probability in enumerate(probabilities)
        )  # fmt: skip
    return probabilities


@pytest.mark.parametrize("sort", ["-probability", "probability"])
def test_stored_scores_are_ranked_page_by_page(sort: str, key: Any, scores: list[float]):
    """Each once in the order asked for, equal scores over a page's end included."""
    seen, cursor = [], None
    for _ in range(10):
        asked = {"model": "churn", "sort": sort, "limit": 2} | ({"cursor": cursor} if cursor else {})
        page = key("GET", "/v1/predictions", params=asked).json()
        seen += [(item["probability"], item["user_id"]) for item in page["items"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break

    assert [probability for probability, _ in seen] == sorted(scores, reverse=sort.startswith("-"))
    assert len(set(seen)) == 9


def test_stored_scores_are_asked_for_between_bounds(key: Any, scores: list[float]):
    """Both bounds belong to the answer; bounds that are none are problems; an empty range is an empty list."""
    inside = key("GET", "/v1/predictions", params={"model": "churn", "min": 0.5, "max": 0.8}).json()["items"]

    assert [item["probability"] for item in inside] == [0.8, 0.7, 0.5, 0.5]
    assert key("GET", "/v1/predictions", params={"model": "churn", "min": 0.95}).json()["items"] == []
    for wrong in ({"min": 0.9, "max": 0.1}, {"min": "nan"}, {"max": 2}, {"sort": "luck"}):
        assert key("GET", "/v1/predictions", params={"model": "churn"} | wrong).status_code == 422


@pytest.mark.parametrize(
    "body",
    [{}, {"user_ids": []}, {"user_ids": ["a"] * 1001}, {"user_ids": ["a"], "models": ["weather"]}, {"user_ids": [1]}],
)
def test_a_live_call_that_makes_no_sense_is_refused(body: dict[str, Any], key: Any):
    """422 as a problem that names the field."""
    answer = key("POST", "/v1/predictions", json=body)

    assert answer.status_code == 422
    assert answer.json()["type"] == "urn:kairos:problem:invalid"
