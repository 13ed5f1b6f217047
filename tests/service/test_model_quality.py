"""Laws of the score history: kept, judged when the horizon has passed, and a model that provably lost falls back."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from features.events import DAY_MICROS, NewEvent, append
from features.lake import Lake
from features.tables import to_micros
from features.vocabulary import EMAIL_SENT, EMAIL_WITHHELD
from service.database import Database
from service.errors import Conflict, NotFound
from service.flow.predict import refresh_serving
from service.jobs import rollback_model, score_round, serve_version
from service.model_quality import judge_due, keep_scoring, prune_scores, quality
from service.settings import Settings
from service.tables import JobRow, PredictionRow, ScoringRow, ServingModelRow
from tests.service.scored import (
    CONTACTS,
    DAYS,
    HORIZON,
    TRUTH,
    read_churn,
    score_daily,
    scores_of,
    shop,
    vectors,
    write_churn,
)
from training.serving import BrokenModel, ServedOutcome, Serving
from training.treatments import treatment_of


@pytest.fixture
def world(database: Database, settings: Settings, now: datetime) -> Lake:
    """Twelve days of orders from ``now`` on, in the log and in the lake."""
    return shop(database, settings, now)


@pytest.fixture
def model(database: Database, tmp_path: Path, now: datetime) -> ServedOutcome:
    """Version 1 of churn; it serves."""
    folder = write_churn(tmp_path / "v1", 1, now)
    with database.writing() as session:
        serve_version(session, "churn", 1, folder, now=now)
    return read_churn(folder)


def test_scores_are_judged_when_their_horizon_has_passed_and_not_before(
    database: Database, world: Lake, model: ServedOutcome, now: datetime
) -> None:
    """Right scores: the ratio is one, no alarm, a plain sentence, and no proof against them; the others wait."""
    score_daily(database, world, model, TRUTH, now)

    assert judge_due(database, world, now=now + timedelta(days=HORIZON, microseconds=-1)) == []
    judged = judge_due(database, world, now=now + timedelta(days=6))
    assert len(judged) == 5
    with database.reading() as session:
        shown = quality(session, "churn")
    assert shown["waiting"] == {"scorings": 5, "next_due_at": now + timedelta(days=5 + HORIZON)}
    newest = shown["history"][0]
    assert newest["metrics"]["predicted_over_actual"] == pytest.approx(1, abs=0.15)
    assert newest["metrics"]["roc_auc"] > 0.75
    assert (newest["alarms"], newest["left_out"], newest["judged"]) == ([], 0, CONTACTS)
    assert newest["gain_over_fallback"] > 0
    assert shown["says"].startswith("On 6 March 2026 churn named these 10; ")
    assert "have left since (no order in the next 2 days); of 10 random ones" in shown["says"]
    assert shown["test"]["e_value"] < 1
    # Five days of three in turn: every contact once, two thirds of them twice.
    assert CONTACTS * 1.5 < shown["test"]["outcomes"] < CONTACTS * 1.9
    assert [event["kind"] for event in shown["events"]] == ["promoted"]


def test_a_model_that_lost_falls_back_says_why_and_is_trained_anew(
    database: Database, world: Lake, model: ServedOutcome, now: datetime
) -> None:
    """The world turned round: it answers with its base rate, a training waits; promoted again, it answers in full."""
    score_daily(database, world, model, 1 - TRUTH, now)
    judge_due(database, world, now=now + timedelta(days=DAYS))

    serving, X = Serving(), vectors()[:5]
    with database.reading() as session:
        row = session.get_one(ServingModelRow, "churn")
        shown = quality(session, "churn")
        (job,) = session.scalars(select(JobRow)).all()
        refresh_serving(session, serving, now=now, wait=True)
    assert row.fell_back_at == now + timedelta(days=DAYS)
    assert "scores of version 1 were provably worse than base_rate" in str(row.fell_back_why)
    assert shown["events"][0]["kind"] == "fell_back"
    assert (job.kind, job.parameters, job.state) == ("train", {"name": "churn"}, "queued")
    fallen = serving.get("churn")
    assert fallen is not None
    assert (fallen.rung, serving.why["churn"]) == ("base_rate", row.fell_back_why)
    np.testing.assert_allclose(fallen.predict(X), TRUTH.mean())
    # Scored on, it has nothing to compare: no proof grows against the lower rung.
    assert keep_scoring(database, world, fallen, scores_of(np.full(CONTACTS, TRUTH.mean())), as_of=now)

    with database.writing() as session:
        serve_version(session, "churn", 1, Path(row.path), now=now + timedelta(days=DAYS))
    with database.reading() as session:
        refresh_serving(session, serving, now=now, wait=True)
        assert quality(session, "churn")["test"]["e_value"] == 1.0
    np.testing.assert_array_equal(serving.get("churn").predict(X), model.predict(X))


def test_versions_trained_one_after_the_other_share_one_test(
    database: Database, world: Lake, model: ServedOutcome, now: datetime, tmp_path: Path
) -> None:
    """Trained oftener than outcomes come, each day's served scoring counts once; who chooses by hand begins anew."""
    for day in range(6):
        version = day // 2 + 1
        served = read_churn(write_churn(tmp_path / f"v{version}", version, now))
        at = now + timedelta(days=day)
        with database.writing() as session:
            serve_version(session, "churn", version, tmp_path / f"v{version}", now=at, kind="trained", reason="fine")
        for hour in (0, 2):
            keep_scoring(database, world, served, scores_of(1 - TRUTH), as_of=at + timedelta(hours=hour))
    judge_due(database, world, now=now + timedelta(days=DAYS))

    with database.reading() as session:
        shown = quality(session, "churn")
        assert session.get_one(ServingModelRow, "churn").fell_back_at is not None
    assert shown["test"]["versions"] == [1, 2, 3]
    assert shown["test"]["outcomes"] == 2 * CONTACTS
    with database.writing() as session:
        serve_version(session, "churn", 2, tmp_path / "v2", now=now + timedelta(days=DAYS))
    with database.reading() as session:
        assert quality(session, "churn")["test"]["outcomes"] == 0


def test_a_challenger_is_judged_beside_the_champion_and_never_lets_it_fall(
    database: Database, world: Lake, model: ServedOutcome, now: datetime, tmp_path: Path
) -> None:
    """Both stand in the history by role; a bad shadow is no proof against who serves."""
    challenger = read_churn(write_churn(tmp_path / "v2", 2, now))
    score_daily(database, world, model, TRUTH, now)
    score_daily(database, world, challenger, 1 - TRUTH, now, role="challenger")
    judge_due(database, world, now=now + timedelta(days=DAYS))

    with database.reading() as session:
        shown = quality(session, "churn")
    by_role = {one["role"]: one["metrics"]["roc_auc"] for one in shown["history"]}
    assert by_role["served"] > 0.7
    assert by_role["challenger"] < 0.3
    assert shown["fell_back_at"] is None


def test_what_cannot_be_judged_is_not_kept_or_says_so(
    database: Database, world: Lake, model: ServedOutcome, now: datetime
) -> None:
    """A past before the training is not kept; a lost file becomes a note; pruned files leave their results."""
    assert not keep_scoring(database, world, model, scores_of(TRUTH), as_of=now - timedelta(days=1))
    hours = replace(model, card=replace(model.card, name="send_hour", horizon_days=None))
    assert not keep_scoring(database, world, hours, scores_of(TRUTH), as_of=now)
    score_daily(database, world, model, TRUTH, now)
    with database.reading() as session:
        folders = session.scalars(select(ScoringRow.folder).order_by(ScoringRow.as_of)).all()
    shutil.rmtree(Path(world.url) / str(folders[0]))
    ended = now + timedelta(days=DAYS)
    judge_due(database, world, now=ended)

    assert prune_scores(database, world, now=ended + timedelta(days=29)) == 0
    assert prune_scores(database, world, now=ended + timedelta(days=31)) == DAYS - HORIZON
    assert world.store.list("scores") == []
    with database.reading() as session:
        rows = session.scalars(select(ScoringRow).order_by(ScoringRow.as_of)).all()
    assert "could not be judged" in rows[0].result["note"]
    assert [row.folder for row in rows] == [None] * len(rows)
    assert rows[1].result["judged"] == CONTACTS


def test_the_same_day_again_brings_no_second_look(
    database: Database, world: Lake, model: ServedOutcome, now: datetime
) -> None:
    """Scored twice a day, both are judged; the test takes the first."""
    for hour in (0, 3):
        keep_scoring(database, world, model, scores_of(TRUTH), as_of=now + timedelta(hours=hour))
    judge_due(database, world, now=now + timedelta(days=DAYS))

    with database.reading() as session:
        rows = session.scalars(select(ScoringRow).order_by(ScoringRow.as_of)).all()
    assert rows[0].result["test"]["outcomes"] > 0
    assert rows[1].result["test"]["outcomes"] == 0
    assert rows[1].result["judged"] == CONTACTS


def test_who_was_written_to_because_of_the_score_is_read_off_the_log(
    database: Database, settings: Settings, now: datetime
) -> None:
    """Sent and withheld within the window, by this model; other models, other days and plain mails are not meant."""
    at, day = to_micros(now), DAY_MICROS

    def mail(key: int, kind: str, when: int, campaign: str, models: list[str] | None) -> NewEvent:
        told: dict[str, Any] = {"campaign_id": campaign} | ({} if models is None else {"models": models})
        return NewEvent(key, kind, when, f"{key}-{kind}-{when}", "user:x", ref=f"{key}-{when}", properties=told)

    events = [
        mail(1, EMAIL_SENT, at + day, "a", ["churn", "conversion"]),
        mail(2, EMAIL_WITHHELD, at + day, "a", ["churn"]),
        mail(3, EMAIL_SENT, at + day, "a", ["conversion"]),
        mail(4, EMAIL_SENT, at + day, "a", None),
        mail(5, EMAIL_SENT, at + 2 * day, "a", ["churn"]),  # after the window
        mail(6, EMAIL_SENT, at - 1, "a", ["churn"]),  # before
        mail(7, EMAIL_WITHHELD, at, "a", ["churn"]),
        mail(7, EMAIL_SENT, at + day, "b", ["churn"]),
    ]
    lake = Lake(settings.lake, buckets=1)
    with database.writing() as session:
        append(session, events, received_at=at + 3 * day, imported=True)
    with database.reading() as session:
        lake.sync(session)
    found = treatment_of(lake.read_bucket(0, True), np.arange(1, 9), "churn", at, at + 2 * day)

    assert np.flatnonzero(found.treated).tolist() == [0, 6]
    assert np.flatnonzero(found.picked_by).tolist() == [0, 1, 6]
    assert len(set(found.picked_by[[0, 1, 6]].tolist())) == 1  # the first campaign that picked each


def test_rollback_restores_the_old_answers_exactly_without_a_registry(
    database: Database, model: ServedOutcome, now: datetime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """To the last bit; a registry that is away is told in the log, files that are away are an error before anything."""
    settings = Settings(home=tmp_path / "home", MLFLOW_TRACKING_URI="file:///nowhere", _env_file=None)
    X, serving = vectors(), Serving()
    with pytest.raises(Conflict, match="first that served"):
        rollback_model(database, settings, "churn", now=now)
    with pytest.raises(NotFound, match="kairos train conversion"):
        rollback_model(database, settings, "conversion", now=now)
    second = write_churn(tmp_path / "v2", 2, now)
    with database.writing() as session:
        serve_version(session, "churn", 2, second, now=now)

    assert rollback_model(database, settings, "churn", now=now) == 1
    with database.reading() as session:
        refresh_serving(session, serving, now=now, wait=True)
    assert serving.get("churn").predict(X).tobytes() == model.predict(X).tobytes()
    assert "the registry could not be told" in caplog.text
    shutil.rmtree(second)
    with pytest.raises(BrokenModel):
        rollback_model(database, settings, "churn", now=now)
    with database.reading() as session:
        assert session.get_one(ServingModelRow, "churn").version == 1


def test_without_the_champions_files_a_fresh_process_serves_the_previous(
    database: Database, model: ServedOutcome, now: datetime, tmp_path: Path
) -> None:
    """What the database names decides; the reason is there to be shown."""
    second = write_churn(tmp_path / "v2", 2, now)
    with database.writing() as session:
        serve_version(session, "churn", 2, second, now=now)
    shutil.rmtree(second)
    serving = Serving()
    with database.reading() as session:
        refresh_serving(session, serving, now=now, wait=True)

    assert serving.versions == {"churn": 1}
    assert "version 2 does not load" in serving.why["churn"]


def test_a_round_scores_stores_keeps_and_shadows(
    database: Database, world: Lake, model: ServedOutcome, now: datetime, tmp_path: Path
) -> None:
    """Everybody's score is stored by the champion alone; the challenger's are kept beside it; what is due is judged."""
    challenger = write_churn(tmp_path / "v2", 2, now)
    with database.writing() as session:
        row = session.get_one(ServingModelRow, "churn")
        row.challenger_version, row.challenger_path = 2, str(challenger)
    told = score_round(database, world, now=now + timedelta(days=1))
    again = score_round(database, world, now=now + timedelta(days=1 + HORIZON))

    assert "by challenger 2 in its shadow" in told["churn"]
    assert "scoring of 2026-03-03 judged" in again["churn"]
    with database.reading() as session:
        assert set(session.scalars(select(PredictionRow.model_version))) == {1}
        roles = [(row.role, row.version, row.judged_at is None) for row in session.scalars(select(ScoringRow))]
    assert sorted(roles) == [
        ("challenger", 2, False), ("challenger", 2, True), ("served", 1, False), ("served", 1, True),
    ]  # fmt: skip
    with database.writing() as session:
        serve_version(session, "churn", 2, challenger, now=now)
        assert session.get_one(ServingModelRow, "churn").challenger_version is None
