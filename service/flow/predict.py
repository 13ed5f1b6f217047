"""Expect: vectors → `Predictions`: probabilities with the model's version, rung and reasons, or a why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.online import Served, VectorCache, served_features
from features.views import ViewSet
from service.tables import ServingModelRow
from training.explain import Reason
from training.serving import ServedHours, ServedOutcome, Serving, Wanted

#: Answered for every contact, whether they serve yet or not; declared outcomes join once a model of them serves.
MODELS = ("churn", "conversion", "send_hour")

#: Contacts whose vectors are computed at once.
CHUNK = 10_000

#: Is told what was served: contacts, instant, view set, and their vectors with the place of the log that they saw.
Record = Callable[[np.ndarray, datetime, ViewSet, Served], None]


@dataclass(frozen=True)
class ScoredModel:
    """One model's answer for each contact.

    Attributes
    ----------
    probability : ndarray of float64, shape (n_contacts,)
        NaN where the model does not apply; ``why`` then says so.
    percentile : ndarray of float64, shape (n_contacts,)
        Share (0-1) of the last scored contacts at or below; NaN before the first scoring.
    why : tuple of (str or None), length n_contacts
    reasons : tuple of tuple of Reason, length n_contacts
    rungs, rung_reasons : tuple of str, length n_contacts
        Which rung of the ladder answers for the contact, and why that one.
    outlook : tuple of (dict or None), length n_contacts
        Where the model is about orders: the chance of one within several horizons, the date of the next, and what is
        expected to be spent (see `training.serving.ServedOutcome.outlook`).
    """

    model: str
    version: int
    rung: str
    probability: np.ndarray
    percentile: np.ndarray
    why: tuple[str | None, ...]
    reasons: tuple[tuple[Reason, ...], ...]
    #: Days the outcome is awaited.
    horizon_days: int | None
    rungs: tuple[str, ...]
    rung_reasons: tuple[str, ...]
    outlook: tuple[dict[str, Any] | None, ...]


@dataclass(frozen=True)
class Hours:
    """What the send-hour model expects of each contact.

    Attributes
    ----------
    probabilities : ndarray of float64, shape (n_contacts, 24)
        P(a person answers within 24 h | sent at local hour h).
    level : tuple of str
        Whose habits answered: ``contact``, ``persona``, ``segment``, ``global`` or ``default``.
    is_usable : ndarray of bool, shape (n_contacts,)
        False where the hours do not provably differ: no hour is then called best.
    """

    version: int
    rung: str
    probabilities: np.ndarray
    level: tuple[str, ...]
    is_usable: np.ndarray


@dataclass(frozen=True)
class Predictions:
    """What each contact is expected to do, as of an instant; ``missing`` says why a model gave nothing at all."""

    contact_keys: np.ndarray
    as_of: datetime
    scored: Mapping[str, ScoredModel] = field(default_factory=dict)
    hours: Hours | None = None
    missing: Mapping[str, str] = field(default_factory=dict)


def refresh_serving(session: Session, serving: Serving, *, now: datetime, wait: bool = False) -> None:
    """Let ``serving`` load the versions that the database names; what cannot be loaded leaves the old one in place."""
    rows = session.scalars(select(ServingModelRow)).all()
    wanted = {
        row.name: Wanted(
            row.version,
            row.path,
            row.previous_version,
            row.previous_path,
            row.fell_back_why if row.fell_back_at is not None else None,
        )
        for row in rows
    }
    serving.refresh(wanted, now=now, wait=wait)


def known_models(serving: Serving) -> tuple[str, ...]:
    """Models that can be asked: the three of every installation, and each declared outcome whose model serves."""
    return (*MODELS, *sorted(set(serving.versions) - set(MODELS)))


def predict(
    session: Session,
    contact_keys: np.ndarray | Sequence[int],
    serving: Serving,
    *,
    as_of: datetime,
    models: Sequence[str] | None = None,
    with_reasons: bool = True,
    cache: VectorCache | None = None,
    record: Record | None = None,
) -> Predictions:
    """Live predictions of ``models``, by default all, for each contact, from its events known at ``as_of``.

    Each model gets vectors of the view set it was trained on; models that share a set share its vectors.
    """
    keys = np.asarray(contact_keys, dtype=np.int64)
    models = known_models(serving) if models is None else models
    loaded = {name: model for name in models if (model := serving.get(name)) is not None}
    missing = {name: f"no {name} model serves yet; run `kairos train {name}`" for name in models if name not in loaded}
    view_sets = {model.view_set.version: model.view_set for model in loaded.values()}
    vectors = {version: _vectors(session, keys, as_of, views, cache, record) for version, views in view_sets.items()}
    outcomes = {name: model for name, model in loaded.items() if isinstance(model, ServedOutcome)}
    scored: dict[str, ScoredModel] = {}
    if outcomes:
        reference = _reference(session, list(outcomes))
        for name, model in outcomes.items():
            scored[name] = _score(model, vectors[model.view_set.version], reference.get(name), with_reasons)
    hours = None
    by_hour = loaded.get("send_hour")
    if isinstance(by_hour, ServedHours):
        own = vectors[by_hour.view_set.version]
        hours = Hours(
            version=by_hour.version,
            rung=by_hour.rung,
            probabilities=by_hour.predict_hours(own),
            level=tuple(by_hour.levels(own)),
            is_usable=np.full(len(keys), by_hour.hour_effect, dtype=bool),
        )
    return Predictions(keys, as_of, scored, hours, missing)


def _vectors(
    session: Session,
    keys: np.ndarray,
    as_of: datetime,
    views: ViewSet,
    cache: VectorCache | None,
    record: Record | None,
) -> np.ndarray:
    parts = [np.empty((0, len(views.names)))]
    for start in range(0, len(keys), CHUNK):
        some = keys[start : start + CHUNK]
        served = served_features(session, some.tolist(), as_of, views, cache)
        if record is not None:
            record(some, as_of, views, served)
        parts.append(served.X)
    return np.concatenate(parts)


def _reference(session: Session, models: Sequence[str]) -> dict[str, list[float]]:
    rows = session.execute(
        select(ServingModelRow.name, ServingModelRow.quantiles).where(ServingModelRow.name.in_(models))
    )
    return {name: quantiles for name, quantiles in rows if quantiles}


def _score(model: ServedOutcome, vectors: np.ndarray, quantiles: list[float] | None, with_reasons: bool) -> ScoredModel:
    applies = model.contains(vectors)
    outside = f"{model.name} is asked about {model.card.population.says}; this contact is not among them"
    probability = np.full(len(vectors), np.nan)
    percentile = np.full(len(vectors), np.nan)
    reasons: list[tuple[Reason, ...]] = [()] * len(vectors)
    rungs, rung_reasons = [model.rung] * len(vectors), [model.card.reason] * len(vectors)
    outlook: list[dict[str, Any] | None] = [None] * len(vectors)
    if applies.any():
        probability[applies] = model.predict(vectors[applies])
        if quantiles:
            percentile[applies] = np.interp(probability[applies], quantiles, np.linspace(0.0, 1.0, len(quantiles)))
        if with_reasons:
            own = vectors[applies]
            told = (model.reasons(own), model.rungs(own), model.rung_reasons(own), model.outlook(own))
            for place, row in enumerate(np.flatnonzero(applies)):
                reasons[row] = tuple(told[0][place])
                rungs[row], rung_reasons[row] = told[1][place], told[2][place]
                outlook[row] = None if told[3] is None else told[3][place]
    why = tuple(None if inside else outside for inside in applies)
    return ScoredModel(
        model.name, model.version, model.rung, probability, percentile, why, tuple(reasons),
        model.card.horizon_days, tuple(rungs), tuple(rung_reasons), tuple(outlook),
    )  # fmt: skip
