"""Long work: train a model and let it serve, score every contact and store the scores."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from features.lake import Lake
from features.tables import to_micros
from service.database import Database
from service.errors import Conflict, NotFound
from service.outcomes import find_outcome
from service.settings import Settings
from service.tables import PredictionRow, ServingModelRow
from training.history import log_span, usual_horizon_days
from training.scoring import Scores, score
from training.serving import ServedModel

MODELS = ("churn", "conversion", "send_hour")

#: Rows of a transaction when scores are stored, and how long one should hold the lock: its rows follow from that.
FIRST_CHUNK, LEAST_ROWS, MOST_ROWS = 1_000, 200, 20_000
AIM_SECONDS = 0.02
#: Then the lock is free for half as long: SQLite's waiters in other processes look for it now and then, in no order.
REST_SHARE = 0.5

#: Steps of the stored quantiles from which live percentiles are read.
QUANTILES = 101


def train_model(
    database: Database,
    lake: Lake,
    settings: Settings,
    name: str,
    *,
    as_of: datetime,
    now: datetime,
    horizon_days: int | None = None,
    seed: int = 0,
) -> Any:
    """A freshly trained, judged and registered version of ``name``; it serves from now on if it passed the gate.

    Any declared outcome is a model: its population, event and horizon are frozen into the version.

    Returns
    -------
    training.runs.TrainedVersion

    Raises
    ------
    NotFound
        If there is neither a model nor an outcome of that name.
    """
    from training.runs import train  # MLflow takes seconds to import; only training pays for it

    definition = None
    if name not in MODELS:
        with database.reading() as session:
            declaration = find_outcome(session, name).declaration
        until = to_micros(as_of)
        days = horizon_days or declaration.within_days or usual_horizon_days(log_span(lake, until), until)
        definition = declaration.definition(days)
    with database.reading() as session:  # for the store's lock: no transaction stays open meanwhile
        version = train(
            name,
            lake,
            as_of,
            tracking_uri=settings.tracking_uri,
            artifact_root=settings.mlruns / "artifacts",
            horizon_days=horizon_days,
            seed=seed,
            definition=definition,
            session=session,
        )
    if version.promoted:
        with database.writing() as session:
            serve_version(session, name, version.version, version.folder, now=now)
    return version


def serve_version(session: Session, name: str, version: int, folder: Path, *, now: datetime) -> None:
    """Name the files that serve ``name`` from now on; the ones before stay known as previous."""
    row = session.get(ServingModelRow, name, with_for_update=True)
    if row is None:
        session.add(
            ServingModelRow(
                name=name,
                version=version,
                path=str(folder),
                previous_version=None,
                previous_path=None,
                quantiles=None,
                promoted_at=now,
            )
        )
    elif row.version != version:
        row.previous_version, row.previous_path = row.version, row.path
        row.version, row.path, row.promoted_at, row.quantiles = version, str(folder), now, None
    session.flush()


def promote_model(database: Database, settings: Settings, name: str, version: int, *, now: datetime) -> None:
    """Let a registered version serve.

    Raises
    ------
    LookupError
        If the registry has no such version.
    """
    from training.registry import promote

    folder = promote(name, version, tracking_uri=settings.tracking_uri)
    with database.writing() as session:
        serve_version(session, name, version, folder, now=now)


def rollback_model(database: Database, settings: Settings, name: str, *, now: datetime) -> int:
    """Let the version before serve again; returns its number.

    Raises
    ------
    NotFound
        If the model never served.
    Conflict
        If it has no earlier version.
    """
    with database.reading() as session:
        row = session.get(ServingModelRow, name)
        if row is None:
            raise NotFound(f"no model {name!r} serves; run `kairos train {name}`")
        if row.previous_version is None:
            raise Conflict(f"{name} version {row.version} is the first that served; there is none to go back to")
        previous = row.previous_version
    promote_model(database, settings, name, previous, now=now)
    return previous


def score_contacts(
    database: Database,
    lake: Lake,
    model: ServedModel,
    *,
    as_of: datetime,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Scores of every contact that the model applies to, stored as its newest."""
    scores = score(lake, model, as_of)
    store_scores(database, model.name, model.version, scores, as_of=as_of, progress=progress)
    return scores


def store_scores(
    database: Database,
    name: str,
    version: int,
    scores: Scores,
    *,
    as_of: datetime,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Replace the stored scores of ``name``, in transactions so short that other writers hardly wait."""
    mark = "?" if database.is_sqlite else "%s"
    columns = ("model", "contact_key", "probability", "percentile", "as_of", "model_version", "detail")
    replaced = ", ".join(f"{column} = excluded.{column}" for column in columns[2:])
    # Past SQLAlchemy's own parameters: a row is a tuple, and the driver gets a chunk of them at once.
    upsert = (
        f"insert into prediction ({', '.join(columns)}) values ({', '.join([mark] * len(columns))}) "
        f"on conflict (model, contact_key) do update set {replaced}"
    )
    at, start, size = to_micros(as_of), 0, FIRST_CHUNK
    while start < len(scores):
        chunk = slice(start, start + size)
        keys = scores.contact_key[chunk].tolist()
        details = repeat(None) if scores.detail is None else map(json.dumps, scores.detail[chunk])
        values = (scores.probability[chunk].tolist(), scores.percentile[chunk].tolist(), repeat(at), repeat(version))
        rows = list(zip(repeat(name, len(keys)), keys, *values, details, strict=False))
        with database.writing() as session:
            begun = time.perf_counter()
            session.connection().exec_driver_sql(upsert, rows)
            session.commit()
            held = time.perf_counter() - begun
        start += len(rows)
        # At most twice as many rows as before; a busy machine gets shorter chunks.
        size = int(min(MOST_ROWS, 2 * size, max(LEAST_ROWS, len(rows) * AIM_SECONDS / held)))
        if progress is not None:
            progress(len(rows))
        if database.is_sqlite and start < len(scores):
            time.sleep(REST_SHARE * held)
    _forget_older(database, name, as_of)
    grid = np.linspace(0.0, 1.0, QUANTILES)
    with database.writing() as session:
        row = session.get(ServingModelRow, name)
        if row is not None and len(scores.probability):
            row.quantiles = np.quantile(scores.probability, grid).tolist()


def _forget_older(database: Database, name: str, as_of: datetime) -> None:
    """Drop scores of contacts that this scoring left out: the model no longer applies to them."""
    with database.reading() as session:
        stale = select(PredictionRow.contact_key).where(PredictionRow.model == name, PredictionRow.as_of < as_of)
        keys = session.scalars(stale).all()
    for start in range(0, len(keys), FIRST_CHUNK):
        with database.writing() as session:
            session.execute(
                delete(PredictionRow).where(
                    PredictionRow.model == name,
                    PredictionRow.as_of < as_of,
                    PredictionRow.contact_key.in_(keys[start : start + FIRST_CHUNK]),
                )
            )


def stored_count(session: Session, name: str) -> int:
    """How many contacts have a stored score of ``name``."""
    return int(session.scalar(select(func.count()).where(PredictionRow.model == name)) or 0)
