"""Which rung serves and how it did: chosen on an earlier cut-off, judged on a later one, calibrated on the newest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.calibration import Calibration, fit_platt
from training.datasets import TrainingSet
from training.estimators import RUNGS, Estimator, OneClass, RidgeLogistic, SmallLightGBM
from training.metrics import bootstrap_intervals, brier, evaluate, log_losses, paired_difference, roc_auc

Array = NDArray[np.float64]

#: Below any of these there is nothing to learn a personal score from.
LEAST_CONTACTS, LEAST_OF_EACH = 100, 20
#: LightGBM loses to the logistic below about this many contacts or positive ones (measured on real orders).
LIGHTGBM_CONTACTS, LIGHTGBM_POSITIVES = 1_000, 200
#: The columns a model has to beat when they stand alone.
RIVALS = {"recency": "days_since_order", "orders": "orders_ever"}


class NotEnoughData(ValueError):
    """Too few contacts, outcomes or days for a personal score; the message has the counts and the remedy."""


@dataclass(frozen=True)
class Fitted:
    """A rung with its calibration."""

    estimator: Estimator
    calibration: Calibration

    def predict(self, X: Array) -> Array:
        """Probabilities, shape (n,)."""
        return self.calibration.apply(self.estimator.log_odds(X))


@dataclass(frozen=True)
class Judged:
    """The chosen rung on the rows of one cut-off, and what else would have been predicted there."""

    rung: str
    reason: str
    rows: TrainingSet
    #: Probabilities on ``rows`` by who gave them: ``served``, each rung, ``recency``, ``orders``, ``base_rate``.
    probabilities: dict[str, Array]
    metrics: dict[str, float]


def check_enough(data: TrainingSet, name: str) -> None:
    """Refuse a training set too small to learn a personal score from.

    Raises
    ------
    NotEnoughData
        With the counts, the limits and what to do.
    """
    contacts = len(np.unique(data.contact_key))
    with_outcome = [len(np.unique(data.contact_key[data.y == value])) for value in (1, 0)]
    if contacts < LEAST_CONTACTS or min(with_outcome) < LEAST_OF_EACH:
        raise NotEnoughData(
            f"{name} has {contacts} contacts to learn from, {with_outcome[0]} with the outcome and "
            f"{with_outcome[1]} without; a personal score takes {LEAST_CONTACTS} contacts and {LEAST_OF_EACH} of each: "
            "import a longer history or change --horizon-days"
        )


def fit_levelled(rung: str, data: TrainingSet, seed: int, slope: float = 1.0) -> Fitted:
    """The rung fitted on all rows, its level set on the newest window."""
    estimator = RUNGS[rung].fit(data.X, data.y, seed=seed)
    last = data.at(int(data.as_of.max()))
    return Fitted(estimator, fit_platt(estimator.log_odds(last.X), last.y, slope=slope))


def fit_calibrated(rung: str, data: TrainingSet, horizon_days: int, seed: int) -> Fitted:
    """The rung fitted on all rows, its level set on the newest window, its slope on a fit that had not seen it."""
    newest = int(data.as_of.max())
    last, earlier = data.at(newest), data.closed_by(newest, horizon_days)
    slope = 1.0
    if _can_learn(earlier):
        blind = RUNGS[rung].fit(earlier.X, earlier.y, seed=seed)
        slope = fit_platt(blind.log_odds(last.X), last.y).slope
    return fit_levelled(rung, data, seed, slope)


def _can_learn(data: TrainingSet) -> bool:
    return len(data) >= LEAST_CONTACTS and LEAST_OF_EACH <= int(data.y.sum()) <= len(data) - LEAST_OF_EACH


def choose_rung(data: TrainingSet, horizon_days: int, seed: int) -> tuple[str, str]:
    """The rung that wins on the newest closed window of ``data`` by log-loss, fitted without it, and why.

    ``data`` ends before the cut-off that is reported, so the choice does not flatter the report.
    """
    contacts = len(np.unique(data.contact_key))
    positives = len(np.unique(data.contact_key[data.y == 1]))
    if contacts < LIGHTGBM_CONTACTS or positives < LIGHTGBM_POSITIVES:
        return RidgeLogistic.rung, (
            f"{contacts} contacts, {positives} with the outcome: below {LIGHTGBM_CONTACTS} and {LIGHTGBM_POSITIVES} "
            "LightGBM does not beat a logistic regression"
        )
    newest = int(data.as_of.max())
    last, earlier = data.at(newest), data.closed_by(newest, horizon_days)
    if not _can_learn(earlier) or not _can_learn(last):
        return RidgeLogistic.rung, "the history is too short to compare rungs on an earlier cut-off"
    losses = {rung: log_losses(last.y, fit_levelled(rung, earlier, seed).predict(last.X)) for rung in RUNGS}
    gain = paired_difference(losses[RidgeLogistic.rung] - losses[SmallLightGBM.rung], last.contact_key)
    rung = SmallLightGBM.rung if gain.mean > 0 else RidgeLogistic.rung
    means = ", ".join(f"{name} {loss.mean():.4f}" for name, loss in losses.items())
    return rung, f"least log-loss on an earlier cut-off ({means}; {len(last)} contacts, z {gain.z:+.1f})"


def judge(data: TrainingSet, cutoff: int, horizon_days: int, seed: int) -> Judged:
    """The ladder as it would have stood at ``cutoff``, on what happened after it, beside its rivals on the same rows.

    Parameters
    ----------
    data : TrainingSet
        With rows at ``cutoff`` and rows whose outcome was known by then.
    cutoff : int
        Microseconds since 1970 UTC.

    Raises
    ------
    NotEnoughData
        If what was known at ``cutoff`` does not suffice.
    """
    known, rows = data.closed_by(cutoff, horizon_days), data.at(cutoff)
    if not _can_learn(known) or len(rows) == 0:
        raise NotEnoughData(
            f"{len(known)} rows with {int(known.y.sum())} positive outcomes were closed {horizon_days} days "
            "before the last cut-off; import a longer history or choose a shorter --horizon-days"
        )
    rung, reason = choose_rung(known, horizon_days, seed)
    probabilities = {name: fit_calibrated(name, known, horizon_days, seed).predict(rows.X) for name in RUNGS}
    probabilities["served"] = probabilities[rung]
    for name, column in RIVALS.items():
        alone = [known.names.index(column)]
        probabilities[name] = _alone(known, rows, alone)
    probabilities["base_rate"] = np.full(len(rows), known.y.mean())
    served = probabilities["served"]
    metrics = evaluate(rows.y, served)
    intervals = bootstrap_intervals(rows.y, served, rows.contact_key, rng=np.random.default_rng(seed))
    for name, (low, high) in intervals.items():
        metrics |= {f"{name}_low": low, f"{name}_high": high}
    for name in (*RUNGS, *RIVALS):
        metrics |= {f"{name}_roc_auc": roc_auc(rows.y, probabilities[name])}
        metrics |= {f"{name}_brier": brier(rows.y, probabilities[name])}
    metrics |= {"base_rate_brier": brier(rows.y, probabilities["base_rate"])}
    metrics |= {"contacts": float(len(np.unique(known.contact_key))), "positives": float(rows.y.sum())}
    return Judged(rung, reason, rows, probabilities, metrics)


def _alone(known: TrainingSet, rows: TrainingSet, columns: list[int]) -> Array:
    try:
        fitted = RidgeLogistic.fit(known.X[:, columns], known.y)
    except OneClass:
        return np.full(len(rows), known.y.mean())
    return Calibration().apply(fitted.log_odds(rows.X[:, columns]))
