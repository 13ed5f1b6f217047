"""Is the feature store well? All of its checks as one stored report, and the daily round that ends with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, time, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
from sqlalchemy import delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.checks import (
    MIN_VECTORS,
    Freshness,
    Replay,
    drift,
    freshness,
    missing_shares,
    replay,
    sample_vectors,
)
from features.events import CLOCK_TOLERANCE_MICROS
from features.lake import Lake
from features.snapshots import prune_snapshots, write_snapshot
from features.store import StoreError
from features.tables import to_micros
from features.views import DEFAULT_VIEWS, VIEW_SETS, ViewSet
from service.database import Database
from service.idempotency import forget_answers
from service.served_vectors import prune_served, read_served
from service.settings import Settings
from service.tables import CursorRow, FeatureCheckRow, ServingModelRow
from training.serving import BrokenModel, ServedModel, finite, load_model

log = logging.getLogger(__name__)

#: The worker brings the lake up every quarter of an hour; events that wait this long say that it does not.
STALE_AFTER = timedelta(hours=1)
#: Reports are kept this long, daily snapshots this many days.
KEEP_REPORTS = timedelta(days=90)
KEEP_SNAPSHOTS = 14
#: A daily round that was begun and did not end is begun again after this.
ROUND_LEASE = timedelta(hours=2)
ROUND = "features_daily"


def check_features(
    database: Database, lake: Lake, *, now: datetime, n_jobs: int = 1, known_problems: Sequence[str] = ()
) -> dict[str, Any]:
    """The report of a check at ``now``, stored as the newest; ``problems`` says what is wrong and what to do.

    How far the lake is behind is taken first; then it is brought up, so that nearly every served vector can be
    computed again.

    Parameters
    ----------
    database : Database
    lake : Lake
    now : datetime
    n_jobs : int
        Buckets replayed at a time.
    known_problems : sequence of str
        What is wrong already, to stand in the report before what is found.

    Returns
    -------
    dict
        JSON-like: ``checked_at``, ``ok``, ``problems`` (texts), ``freshness``, ``models`` (by name: version, view set,
        vectors, features), ``view_sets`` (by name: version, vectors, missing shares), ``replay``.
    """
    problems = list(known_problems)
    report: dict[str, Any] = {
        "checked_at": now.isoformat(), "freshness": None, "models": {}, "view_sets": {}, "replay": None,
    }  # fmt: skip
    models = _serving_models(database, problems)
    try:
        with database.reading() as session:
            found = freshness(session, lake, now=to_micros(now))
            report["freshness"] = asdict(found)
            problems += _said_of_freshness(found)
        with database.reading() as session:  # the log as it is once the lake is ours
            lake.sync(session)
        for views in VIEW_SETS.values():
            report["view_sets"][views.name] = _view_set_report(lake, views, now)
        for model in models:
            report["models"][model.name] = shown = _model_report(lake, model, now)
            problems += _said_of_drift(model, shown["features"])
        with database.reading() as session:
            served, erased = read_served(session)
        known = {views.version: views for views in [*VIEW_SETS.values(), *(model.view_set for model in models)]}
        replayed = replay(lake, served, known, erased=erased | lake.erased, n_jobs=n_jobs)
        report["replay"] = _replay_report(replayed)
        problems += _said_of_replay(replayed)
    except StoreError as error:  # a damaged lake is what a check is there to find
        problems.append(str(error))
    report |= {"ok": not problems, "problems": problems}
    report = finite(report)
    with database.writing() as session:
        session.merge(FeatureCheckRow(checked_at=now, report=report))
        session.execute(delete(FeatureCheckRow).where(FeatureCheckRow.checked_at < now - KEEP_REPORTS))
    return report


def latest_check(session: Session) -> FeatureCheckRow | None:
    """The newest stored check."""
    return session.scalars(select(FeatureCheckRow).order_by(FeatureCheckRow.checked_at.desc()).limit(1)).first()


def _serving_models(database: Database, problems: list[str]) -> list[ServedModel]:
    with database.reading() as session:
        rows = session.scalars(select(ServingModelRow).order_by(ServingModelRow.name)).all()
    models: list[ServedModel] = []
    for row in rows:
        try:
            models.append(load_model(Path(row.path)))
        except (BrokenModel, OSError) as error:
            problems.append(f"{row.name} {row.version} cannot be checked: {error}")
    return models


def _view_set_report(lake: Lake, views: ViewSet, now: datetime) -> dict[str, Any]:
    X = sample_vectors(lake, views, to_micros(now), lambda X: np.ones(len(X), dtype=bool))
    return {"version": views.version, "vectors": len(X), "missing_shares": missing_shares(X, views.names)}


def _model_report(lake: Lake, model: ServedModel, now: datetime) -> dict[str, Any]:
    report: dict[str, Any] = {
        "version": model.version,
        "view_set": f"{model.view_set.name}@{model.view_set.version}",
        "vectors": 0,
        "reference_vectors": 0,
        "note": None,
        "features": {},
    }
    if model.reference is None:
        return report | {"note": f"no reference was kept with it; run `kairos train {model.name}`"}
    X = sample_vectors(lake, model.view_set, to_micros(now), model.contains)
    report |= {"vectors": len(X), "reference_vectors": model.reference.rows}
    if min(len(X), model.reference.rows) < MIN_VECTORS:
        report["note"] = (
            f"{len(X):,} vectors now and {model.reference.rows:,} at training are too few to tell drift; it takes "
            f"{MIN_VECTORS} of each"
        )
    for one in drift(model.reference, X, model.view_set.names):
        shown = asdict(one) | {"shifted": one.is_shifted}
        report["features"][shown.pop("name")] = shown
    return report


def _replay_report(found: Replay) -> dict[str, Any]:
    return asdict(found) | {"rate": found.rate, "interval": found.interval()}


# --- What is wrong, and what to do -------------------------------------------------------------------------------


def _said_of_freshness(found: Freshness) -> list[str]:
    said = []
    if found.seconds_behind is not None and found.seconds_behind > STALE_AFTER.total_seconds():
        said.append(
            f"the lake was {found.events_behind:,} events behind the log, the oldest since "
            f"{timedelta(seconds=round(found.seconds_behind))}; see that `kairos worker` runs, which brings them over "
            "every 15 minutes"
        )
    if found.clock_ahead_seconds * 1e6 > CLOCK_TOLERANCE_MICROS:
        said.append(
            f"the log's newest event was received {timedelta(seconds=round(found.clock_ahead_seconds))} from now: a "
            "machine's clock ran ahead, or this one's is behind; set it right, then run `kairos db clock --set-back`"
        )
    return said


def _said_of_drift(model: ServedModel, features: Mapping[str, Mapping[str, Any]]) -> list[str]:
    shifted = sorted((one["psi"], name) for name, one in features.items() if one["shifted"])[::-1]
    if not shifted:
        return []
    most = ", ".join(f"{name} (PSI {psi:.2f})" for psi, name in shifted[:5])
    return [
        f"{len(shifted)} of the {len(features)} features of {model.name} {model.version} are distributed otherwise "
        f"than when it was trained, most of all {most}; see that their events still come in as they did, then run "
        f"`kairos train {model.name}`"
    ]


def _said_of_replay(found: Replay) -> list[str]:
    if not found.mismatched:
        return []
    most = ", ".join(f"{name} ({count:,})" for name, count in list(found.by_feature.items())[:5])
    return [
        f"{found.mismatched:,} of {found.compared:,} served vectors are not what the lake gives, most of all in "
        f"{most}; run `kairos features verify`: if it finds the lake to equal the log, the vectors of the table "
        "served_vector were altered or the primitives' meaning changed without a new version"
    ]


# --- Once a day --------------------------------------------------------------------------------------------------


def daily_round(database: Database, lake: Lake, settings: Settings, *, now: datetime) -> dict[str, Any] | None:
    """The day's snapshot written, old ones and old served vectors dropped, the check made; its report.

    None if the day's round is done, or under way in another worker. The snapshot is as of the beginning of the business
    day, so a round that is made again writes the same one.
    """
    zone = ZoneInfo(settings.timezone)
    today = datetime.combine(now.astimezone(zone).date(), time(), zone)
    with database.writing() as session:
        if not _begin(session, now):
            return None
    problems = []
    try:
        with database.reading() as session:
            lake.sync(session)
        with database.reading() as session:  # for the store's lock: no transaction stays open meanwhile
            write_snapshot(lake, DEFAULT_VIEWS, to_micros(today), is_daily=True, session=session)
            prune_snapshots(lake, KEEP_SNAPSHOTS, session=session)
    except StoreError as error:
        problems.append(f"the snapshot of {today:%Y-%m-%d} could not be written: {error}")
    prune_served(database, now)
    report = check_features(database, lake, now=now, known_problems=problems)
    for problem in report["problems"]:
        log.warning("feature store: %s", problem, extra={"action": "feature_check_problem"})
    tomorrow = datetime.combine(today.date() + timedelta(days=1), time(), zone)
    with database.writing() as session:
        forget_answers(session, now=now)
        session.execute(update(CursorRow).where(CursorRow.name == ROUND).values(position=to_micros(tomorrow)))
    return report


def _begin(session: Session, now: datetime) -> bool:
    """Whether the round is due and now ours. The cursor holds the instant (µs) before which nobody begins it."""
    dialect = sqlite if session.connection().dialect.name == "sqlite" else postgresql
    session.execute(dialect.insert(CursorRow).values(name=ROUND, position=0).on_conflict_do_nothing())
    begun = session.execute(
        update(CursorRow)
        .where(CursorRow.name == ROUND, CursorRow.position <= to_micros(now))
        .values(position=to_micros(now + ROUND_LEASE))
        .returning(CursorRow.name)
    )
    return begun.scalar_one_or_none() is not None
