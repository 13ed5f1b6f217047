"""Long work: train a model and let it serve, score every contact and store the scores."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Collection
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
from service.flow.predict import refresh_serving
from service.model_quality import judge_due, keep_scoring, note_event, prune_scores
from service.outcomes import find_outcome
from service.settings import Settings
from service.tables import PredictionRow, ServingModelRow
from training.history import log_span, usual_horizon_days
from training.scoring import Scores, score
from training.serving import BrokenModel, ServedModel, Serving, load_model, read_card

log = logging.getLogger(__name__)

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
    with database.writing() as session:
        if version.promoted:
            serve_version(session, name, version.version, version.folder, now=now, kind="trained", reason=version.gate)
        else:
            row = session.get(ServingModelRow, name, with_for_update=True)
            if row is not None:
                row.challenger_version, row.challenger_path = version.version, str(version.folder)
    return version


def serve_version(
    session: Session,
    name: str,
    version: int,
    folder: Path,
    *,
    now: datetime,
    kind: str = "promoted",
    reason: str = "",
) -> None:
    """Name the files that serve ``name`` from now on; the ones before stay known as previous.

    A model that had fallen back answers in full again. Its test begins anew then, and when a person chooses a version
    or asks another question; a version that was trained anew goes on with it: trained weekly, none would serve until
    its own outcomes are known.
    """
    row = session.get(ServingModelRow, name, with_for_update=True)
    note_event(session, name, kind, version, reason or "by hand", now=now)
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
                tested_from=now,
            )
        )
        session.flush()
        return
    if kind != "trained" or row.fell_back_at is not None or not _ask_the_same(Path(row.path), folder):
        row.tested_from = now
    if row.version != version:
        row.previous_version, row.previous_path = row.version, row.path
        row.version, row.path, row.promoted_at, row.quantiles = version, str(folder), now, None
    row.fell_back_at = row.fell_back_why = None
    if row.challenger_version == version:
        row.challenger_version = row.challenger_path = None
    session.flush()


def _ask_the_same(one: Path, other: Path) -> bool:
    """Whether the versions in these folders await the same outcome over the same days."""
    try:
        cards = [read_card(folder) for folder in (one, other)]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return cards[0].horizon_days == cards[1].horizon_days and cards[0].outcome == cards[1].outcome


def promote_model(database: Database, settings: Settings, name: str, version: int, *, now: datetime) -> None:
    """Let a registered version serve, once its files were loaded and gave their golden rows what they should.

    Raises
    ------
    LookupError
        If the registry has no such version.
    BrokenModel
        If its files are missing or altered; nothing has changed then.
    """
    from training import registry

    folder = registry.model_version(name, version, tracking_uri=settings.tracking_uri).folder
    load_model(folder)
    registry.promote(name, version, tracking_uri=settings.tracking_uri)
    with database.writing() as session:
        serve_version(session, name, version, folder, now=now)


def rollback_model(database: Database, settings: Settings, name: str, *, now: datetime) -> int:
    """Let the version before serve again, with the registry or without it; returns its number.

    Raises
    ------
    NotFound
        If the model never served.
    Conflict
        If it has no earlier version.
    BrokenModel
        If the files of the earlier version are missing or altered; nothing has changed then.
    """
    with database.reading() as session:
        row = session.get(ServingModelRow, name)
        if row is None:
            raise NotFound(f"no model {name!r} serves; run `kairos train {name}`")
        if row.previous_version is None or row.previous_path is None:
            raise Conflict(f"{name} version {row.version} is the first that served; there is none to go back to")
        previous, folder, reason = row.previous_version, Path(row.previous_path), f"from version {row.version}"
    load_model(folder)
    with database.writing() as session:
        serve_version(session, name, previous, folder, now=now, kind="rolled_back", reason=reason)
    from training import registry

    try:
        registry.promote(name, previous, tracking_uri=settings.tracking_uri)
    except Exception as error:  # what serves stands in the database: a registry that is away must not keep it
        log.warning(
            "%s %d serves, but the registry could not be told: %s", name, previous, error,
            extra={"action": "registry_not_told", "model": name},
        )  # fmt: skip
    return previous


def score_contacts(
    database: Database,
    lake: Lake,
    model: ServedModel,
    *,
    as_of: datetime,
    progress: Callable[[int], None] | None = None,
) -> Scores:
    """Scores of every contact that the model applies to, stored as its newest and kept to be judged by outcomes."""
    scores = score(lake, model, as_of)
    store_scores(database, model.name, model.version, scores, as_of=as_of, progress=progress)
    keep_scoring(database, lake, model, scores, as_of=as_of)
    return scores


def score_round(
    database: Database, lake: Lake, *, now: datetime, only: Collection[str] | None = None
) -> dict[str, str]:
    """Score with every serving model and, in its shadow, with its challenger; then judge what has come of age.

    ``only`` names the models to score with; all that serve by default.

    Returns
    -------
    dict of str to str
        What was done or went wrong, by model; a model that fails does not keep the others.
    """
    serving, told = Serving(), {}
    with database.reading() as session:
        lake.sync(session)
        refresh_serving(session, serving, now=now, wait=True)
        rows = session.scalars(select(ServingModelRow).order_by(ServingModelRow.name)).all()
    for row in rows:
        if only is not None and row.name not in only:
            continue
        model = serving.get(row.name)
        if model is None:
            told[row.name] = serving.why.get(row.name, "does not serve")
            continue
        scores = score_contacts(database, lake, model, as_of=now)
        told[row.name] = f"{len(scores):,} contacts scored by version {model.version}"
        if row.challenger_version is not None and row.challenger_path is not None:
            try:
                challenger = load_model(Path(row.challenger_path))
            except (BrokenModel, OSError) as error:
                told[row.name] += f"; challenger {row.challenger_version} not scored: {error}"
                continue
            if keep_scoring(database, lake, challenger, score(lake, challenger, now), as_of=now, role="challenger"):
                told[row.name] += f", and by challenger {challenger.version} in its shadow"
    for judged in judge_due(database, lake, now=now):
        told[judged.model] = f"{told.get(judged.model, '')}; scoring of {judged.as_of:%Y-%m-%d} judged".strip("; ")
    prune_scores(database, lake, now=now)
    return told


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
