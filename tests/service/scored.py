"""Twelve days in the life of a shop whose customers' chances to leave are known, and churn models over it."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from features.events import DAY_MICROS, NewEvent, append
from features.lake import Lake
from features.tables import to_micros
from features.views import DEFAULT_VIEWS
from features.vocabulary import ORDER_COMPLETED
from service.database import Database
from service.model_quality import keep_scoring
from service.settings import Settings
from training.calibration import Calibration
from training.estimators import RidgeLogistic
from training.scoring import Scores, percentile_ranks
from training.serving import EVERYONE, ModelCard, ServedOutcome, load_model, write_model

CONTACTS = 900
DAYS = 12
HORIZON = 2
KEYS = np.arange(1, CONTACTS + 1)
#: Chance that a contact orders on a day; who does not within the horizon has left.
DAILY = np.random.default_rng(3).beta(1.2, 1.2, CONTACTS)
TRUTH = (1 - DAILY) ** HORIZON


def vectors() -> np.ndarray:
    return np.random.default_rng(1).gamma(1.0, 10.0, (300, len(DEFAULT_VIEWS.names)))


def write_churn(folder: Path, version: int, as_of: datetime, name: str = "churn") -> Path:
    X = vectors()
    card = ModelCard(
        name, "outcome", "logistic", "test", DEFAULT_VIEWS.name, DEFAULT_VIEWS.version, HORIZON,
        f"no order in the next {HORIZON} days", as_of.isoformat(), as_of.isoformat(),
        {"base_rate": float(TRUTH.mean())}, EVERYONE, version,
    )  # fmt: skip
    write_model(folder, card, DEFAULT_VIEWS, RidgeLogistic.fit(X, X[:, version] > 8), Calibration(), X)
    return folder


def scores_of(probability: np.ndarray) -> Scores:
    fallback = np.full(CONTACTS, TRUTH.mean())
    return Scores(KEYS, probability, percentile_ranks(probability), None, fallback)


def shop(database: Database, settings: Settings, now: datetime) -> Lake:
    """Twelve days of orders from ``now`` on, in the log and in the lake."""
    orders = np.random.default_rng(4).random((CONTACTS, DAYS)) < DAILY[:, None]
    events = [
        NewEvent(int(i) + 1, ORDER_COMPLETED, to_micros(now) + int(day) * DAY_MICROS + 3_600_000_000 * 5,
                 f"o-{i}-{day}", f"user:{i}", ref=f"o-{i}-{day}", value_minor=900)
        for i, day in zip(*np.nonzero(orders), strict=True)
    ]  # fmt: skip
    lake = Lake(settings.lake, buckets=4)
    with database.writing() as session:
        append(session, events, received_at=to_micros(now) + DAYS * DAY_MICROS, imported=True)
    with database.reading() as session:
        lake.sync(session)
    return lake


def score_daily(
    database: Database, lake: Lake, model: ServedOutcome, p: np.ndarray, now: datetime, **role: Any
) -> None:
    for day in range(DAYS - HORIZON):
        assert keep_scoring(database, lake, model, scores_of(p), as_of=now + timedelta(days=day), **role)


def read_churn(folder: Path) -> ServedOutcome:
    """The loaded model of a folder that `write_churn` wrote."""
    loaded = load_model(folder)
    assert isinstance(loaded, ServedOutcome)
    return loaded
