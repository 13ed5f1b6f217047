"""Laws of health, metrics, documentation, and of problems that no noun owns."""

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from features.lake import Lake
from service.app import create_app
from service.clock import SimulatedClock
from service.database import Database
from service.feature_checks import check_features
from service.keys import create_key
from service.settings import Settings
from tests.service.calling import Caller, Client


def test_alive_and_ready(client: Any):
    """On a migrated database with an empty lake the service is ready."""
    assert client.get("/healthz").json() == {"status": "alive"}
    ready = client.get("/readyz")

    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    assert ready.json()["checks"] == {"database": "ok", "lake": "ok"}


def test_a_database_of_another_version_is_not_ready(client: Any, database: Database):
    """503 that names the remedy; the process itself stays alive."""
    with database.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'older'")
        connection.commit()
    ready = client.get("/readyz")

    assert ready.status_code == 503
    assert "kairos db upgrade" in ready.json()["checks"]["database"]
    assert client.get("/healthz").status_code == 200


def test_metrics_count_requests_events_and_sends(client: Any, caller: Callable[..., Any]):
    """By route template, never by path: an id must not make a series of its own."""
    key = caller("ingest", "read")
    batch = [{"type": "track", "event": "x", "userId": "secret-id"}, {"type": "track", "userId": "1"}]
    key("POST", "/v1/batch", json={"batch": batch})
    key("GET", "/v1/contacts/secret-id/events")
    text = client.get("/metrics").text

    assert 'kairos_events_total{outcome="stored"} 1.0' in text
    assert 'kairos_events_total{outcome="quarantined"} 1.0' in text
    assert re.search(r'kairos_requests_total\{method="POST",route="/v1/batch",status="200"\} 1.0', text)
    assert "# TYPE kairos_sends gauge" in text
    assert "secret-id" not in text


def test_metrics_show_the_newest_check_of_the_feature_store(
    client: Any, database: Database, settings: Settings, clock: SimulatedClock
):
    """Before the first there is none; then its figures, its age, and nothing that it could not tell."""
    before = client.get("/metrics").text
    check_features(database, Lake(settings.lake, settings.buckets), now=clock.now())
    clock.move_to(clock.now() + timedelta(seconds=90))
    after = client.get("/metrics").text

    assert "kairos_feature_check" not in before
    assert 'kairos_vectors_logged_total{outcome="written"} 0.0' in before
    for line in (
        "kairos_feature_check_age_seconds 90.0",
        "kairos_feature_check_problems 0.0",
        "kairos_feature_freshness_seconds 0.0",
        "kairos_lake_events_behind 0.0",
        "kairos_vectors_replayed 0.0",
        "kairos_vectors_mismatched 0.0",
        "# TYPE kairos_feature_psi gauge",
        "# TYPE kairos_feature_ks gauge",
        "# TYPE kairos_feature_missing_share gauge",
    ):
        assert line in after
    assert "NaN" not in after


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("DELETE", "/v1/batch", 405), ("PUT", "/healthz", 405), ("GET", "/v1/contacts", 401)],
)
def test_every_refusal_is_a_problem(method: str, path: str, status: int, client: Any):
    """The framework's own errors have the same form as ours."""
    answer = client.request(method, path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert {"type", "title", "status", "detail"} <= set(answer.json())
    assert answer.json()["status"] == status


def test_an_unforeseen_failure_tells_nothing_of_the_inside(
    client: Any, caller: Callable[..., Any], database: Database, caplog: pytest.LogCaptureFixture
):
    """500 as a problem without the exception's words; the log has them."""
    caller("ingest")("POST", "/v1/track", json={"event": "x", "userId": "42"})
    with database.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE event SET properties = 'no json', kind = 'x'")
        connection.commit()
    answer = caller("read")("GET", "/v1/contacts/42/events")

    assert (answer.status_code, answer.json()["type"]) == (500, "urn:kairos:problem:internal")
    assert "JSON" not in answer.json()["detail"]
    assert any(getattr(record, "action", "") == "request_failed" for record in caplog.records)


def test_the_description_names_every_endpoint(client: Any):
    """OpenAPI 3.1 with the paths of the contract, described in words."""
    described = client.get("/openapi.json").json()

    assert described["openapi"].startswith("3.1")
    for path in (
        "/v1/batch", "/v1/contacts/{user_id}/vector", "/v1/predictions", "/v1/experiments/{experiment_id}/report",
        "/v1/decisions/{decision_id}", "/v1/rewards", "/v1/templates/{template_id}/preview",
        "/v1/campaigns/{campaign_id}/schedule", "/v1/sends", "/v1/quarantine", "/v1/models/{name}", "/u/{token}",
    ):  # fmt: skip
        assert path in described["paths"]
    assert all(
        operation.get("description") for methods in described["paths"].values() for operation in methods.values()
    )


@pytest.mark.postgres
def test_everything_pages_on_postgresql_too(settings: Settings, postgres: Database, clock: SimulatedClock):
    """Events go in; every list turns its pages, and texts that PostgreSQL cannot keep are a problem, not a failure."""
    with postgres.writing() as session:
        _, secret = create_key(session, "all", ["admin"], clock.now())
    with Client(create_app(settings, postgres, clock)) as client:
        key = Caller(client, secret)
        good = [{"type": "track", "event": "x", "userId": f"u{i}", "messageId": f"m{i}"} for i in range(4)]
        bad = [{"type": "track", "event": i, "userId": "u0", "note": "\x00"} for i in range(4)]
        more = [{"type": "track", "event": "x", "userId": "u0", "messageId": f"n{i}"} for i in range(4)]
        assert key("POST", "/v1/batch", json={"batch": [*good, *bad, *more]}).json()["success"] is True
        arms = [{"id": "a", "text": "A"}, {"id": "b", "text": "B"}]
        for i in range(4):
            body = {"name": f"n{i}", "kind": "subject", "arms": arms}
            assert key("POST", "/v1/experiments", json=body).status_code == 201
        for path in ("/v1/contacts", "/v1/contacts/u0/events", "/v1/quarantine", "/v1/experiments"):
            first = key("GET", path, params={"limit": 3}).json()
            rest = key("GET", path, params={"limit": 3, "cursor": first["next_cursor"]}).json()
            assert len(first["items"]) == 3
            assert rest["items"]
            assert not [item for item in rest["items"] if item in first["items"]]
        assert key("GET", "/v1/contacts/%00").status_code == 422
        nameless = {"name": "\x00", "kind": "subject", "arms": arms}
        assert key("POST", "/v1/experiments", json=nameless).status_code == 422
        assert key("GET", "/v1/sends").json() == {"items": [], "next_cursor": None}
        assert client.get("/readyz").status_code == 200
