"""Laws of the models' endpoints: quality is shown, changes become jobs that can be asked about."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from service.database import Database
from service.jobs import serve_version
from service.model_quality import judge_due
from service.settings import Settings
from tests.service.scored import TRUTH, read_churn, score_daily, shop, write_churn


def test_the_api_shows_quality_and_takes_jobs(
    client: Any,
    caller: Callable[..., Any],
    database: Database,
    settings: Settings,
    now: datetime,
    tmp_path: Path,
) -> None:
    """Quality as JSON and as gauges; promote, rollback and train become jobs that can be asked about."""
    world, folder = shop(database, settings, now), write_churn(tmp_path / "v1", 1, now)
    with database.writing() as session:
        serve_version(session, "churn", 1, folder, now=now)
    score_daily(database, world, read_churn(folder), TRUTH, now)
    judge_due(database, world, now=now + timedelta(days=4))
    key = caller("read", "write")
    shown = key("GET", "/v1/models/churn/quality", params={"limit": 2}).json()
    jobs = [
        key("POST", "/v1/models/churn/promote", json={"version": 3}),
        key("POST", "/v1/models/churn/rollback"),
        key("POST", "/v1/models/churn/train", json={"horizon_days": 14}),
    ]

    assert len(shown["history"]) == 2
    assert shown["history"][0]["metrics"]["roc_auc"] > 0.7
    assert [job.status_code for job in jobs] == [202] * 3
    asked = key("GET", f"/v1/jobs/{jobs[2].json()['job_id']}").json()
    assert (asked["state"], asked["parameters"]) == ("queued", {"name": "churn", "horizon_days": 14})
    assert key("GET", "/v1/jobs/no").status_code == 404
    assert key("GET", "/v1/models/conversion/quality").status_code == 404
    assert key("POST", "/v1/models/nonsense/train").status_code == 422
    assert key("POST", "/v1/models/conversion/rollback").status_code == 404
    assert caller("read")("POST", "/v1/models/churn/rollback").status_code == 403
    (listed,) = key("GET", "/v1/models").json()["items"]
    assert (listed["version"], listed["why"], listed["challenger_version"]) == (1, None, None)
    text = client.get("/metrics").text
    assert 'kairos_model_predicted_over_actual{model="churn",role="served",version="1"}' in text
    assert 'kairos_model_fell_back{model="churn"} 0.0' in text
