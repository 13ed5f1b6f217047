"""How good a prediction was: ranking, calibration, money left on the table, each with an interval over contacts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Probabilities are kept this far from 0 and 1 before a logarithm is taken.
CLIP = 1e-12
#: Rows x replicates a bootstrap may touch; more rows mean fewer replicates, and wide data needs fewer anyway.
BOOTSTRAP_BUDGET = 20_000_000


def _checked(y: NDArray[np.generic], score: NDArray[np.generic]) -> tuple[Array, Array]:
    y, score = np.asarray(y).astype(np.float64), np.asarray(score).astype(np.float64)
    if y.ndim != 1 or y.shape != score.shape:
        raise ValueError(f"y has shape {y.shape}, the scores {score.shape}; pass two vectors of one length")
    if len(y) == 0:
        raise ValueError("no rows to judge; pass at least one outcome")
    if not np.isfinite(score).all():
        raise ValueError(f"{int((~np.isfinite(score)).sum())} scores are NaN or infinite; a score is a finite number")
    if not np.isin(y, (0.0, 1.0)).all():
        raise ValueError("outcomes must be 0 or 1")
    return np.asarray(y, np.float64), np.asarray(score, np.float64)


def roc_auc(y: NDArray[np.generic], score: NDArray[np.generic], weight: NDArray[np.generic] | None = None) -> float:
    """Probability that a random positive scores above a random negative, ties counting half; NaN with one class.

    Parameters
    ----------
    y : ndarray, shape (n,)
        Outcomes, 0 or 1.
    score : ndarray, shape (n,)
        Any number that grows with the expected outcome.
    weight : ndarray, shape (n,), optional
        How often each row counts.

    References
    ----------
    Hanley, J. A. & McNeil, B. J. (1982), "The meaning and use of the area under a ROC curve".

    Examples
    --------
    >>> roc_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
    0.75
    """
    y, score = _checked(y, score)
    order = np.argsort(score, kind="stable")
    w = _weights(y, weight)[order]
    return _auc_of_groups(y[order], w, _group_ends(score[order]))


def _weights(y: Array, weight: NDArray[np.generic] | None) -> Array:
    return np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)


def _group_ends(sorted_score: Array) -> NDArray[np.int64]:
    """Last position of each run of equal scores."""
    return np.append(np.flatnonzero(np.diff(sorted_score) > 0), len(sorted_score) - 1)


def _auc_of_groups(y: Array, w: Array, ends: NDArray[np.int64]) -> float:
    positive = np.diff(np.concatenate(([0.0], np.cumsum(w * y)[ends])))
    negative = np.diff(np.concatenate(([0.0], np.cumsum(w * (1 - y))[ends])))
    n_positive, n_negative = positive.sum(), negative.sum()
    if n_positive <= 0 or n_negative <= 0:
        return float("nan")
    below = np.cumsum(negative) - negative / 2
    return float((positive * below).sum() / (n_positive * n_negative))


def pr_auc(y: NDArray[np.generic], score: NDArray[np.generic], weight: NDArray[np.generic] | None = None) -> float:
    """Average precision: the precision at each threshold, weighted by the recall it adds; NaN without positives.

    Examples
    --------
    >>> round(pr_auc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8])), 4)
    0.8333
    """
    y, score = _checked(y, score)
    w = _weights(y, weight)
    order = np.argsort(-score, kind="stable")
    ends = _group_ends(-score[order])
    hits = np.cumsum((w * y)[order])[ends]
    if hits[-1] == 0:
        return float("nan")
    precision = hits / np.cumsum(w[order])[ends]
    return float((np.diff(np.concatenate(([0.0], hits))) * precision).sum() / hits[-1])


def brier(y: NDArray[np.generic], probability: NDArray[np.generic], weight: NDArray[np.generic] | None = None) -> float:
    """Mean squared distance of probability and outcome (Brier 1950); lower is better.

    Examples
    --------
    >>> brier(np.array([0, 1]), np.array([0.25, 0.5]))
    0.15625
    """
    y, probability = _checked(y, probability)
    return float(np.average((probability - y) ** 2, weights=_weights(y, weight)))


def log_losses(y: NDArray[np.generic], probability: NDArray[np.generic]) -> Array:
    """Negative log-likelihood of each outcome in nats, shape (n,)."""
    y, probability = _checked(y, probability)
    p = np.clip(probability, CLIP, 1 - CLIP)
    return -(y * np.log(p) + (1 - y) * np.log1p(-p))


def expected_calibration_error(
    y: NDArray[np.generic],
    probability: NDArray[np.generic],
    bins: int = 10,
    weight: NDArray[np.generic] | None = None,
) -> float:
    """Mean distance between predicted and actual rate over ``bins`` bins of equal count (ECE).

    Examples
    --------
    >>> expected_calibration_error(np.array([0, 1, 1, 1]), np.array([0.25, 0.25, 0.75, 0.75]), bins=2)
    0.25
    """
    return float(
        sum(d.rows * abs(d.predicted - d.actual) for d in deciles(y, probability, bins, weight)) / len(np.asarray(y))
    )


@dataclass(frozen=True)
class Decile:
    """One bin of equal count, lowest probabilities first."""

    rows: int
    predicted: float
    actual: float


def deciles(
    y: NDArray[np.generic],
    probability: NDArray[np.generic],
    bins: int = 10,
    weight: NDArray[np.generic] | None = None,
) -> list[Decile]:
    """Predicted and actual rate in bins of equal count; fewer bins where there are fewer rows."""
    y, probability = _checked(y, probability)
    w = _weights(y, weight)
    order = np.argsort(probability, kind="stable")
    return [
        Decile(
            rows=len(part),
            predicted=float(np.average(probability[part], weights=w[part])),
            actual=float(np.average(y[part], weights=w[part])),
        )
        for part in np.array_split(order, min(bins, len(y)))
    ]


def lift_at(
    y: NDArray[np.generic],
    score: NDArray[np.generic],
    share: float = 0.1,
    weight: NDArray[np.generic] | None = None,
) -> float:
    """Rate among the top ``share`` of scores over the rate of all; NaN without positives.

    Rows tied at the border count in proportion, so that the order of the rows does not matter.
    """
    y, score = _checked(y, score)
    if y.sum() == 0:
        return float("nan")
    w = _weights(y, weight)
    top = max(1.0, share * w.sum())
    order = np.argsort(-score, kind="stable")
    border = score[order[min(int(np.searchsorted(np.cumsum(w[order]), top - 1e-9)), len(y) - 1)]]
    above, tied = score > border, score == border
    hits = (w * y)[above].sum() + (top - w[above].sum()) * np.average(y[tied], weights=w[tied])
    return float(hits / top / np.average(y, weights=w))


def evaluate(
    y: NDArray[np.generic], probability: NDArray[np.generic], weight: NDArray[np.generic] | None = None
) -> dict[str, float]:
    """Every figure shown for a model on one set of rows.

    Parameters
    ----------
    y, probability : ndarray, shape (n,)
    weight : ndarray, shape (n,), optional
        How many contacts each row stands for.

    Returns
    -------
    dict
        ``roc_auc, pr_auc, brier, brier_skill`` (1 − Brier / that of the base rate), ``log_loss`` (nats), ``ece``,
        ``predicted_over_actual`` (total predicted over total actual), ``lift_10``, ``base_rate``, ``rows``.
    """
    y, probability = _checked(y, probability)
    w = _weights(y, weight)
    base = float(np.average(y, weights=w))
    spread = base * (1 - base)
    return {
        "roc_auc": roc_auc(y, probability, w),
        "pr_auc": pr_auc(y, probability, w),
        "brier": brier(y, probability, w),
        "brier_skill": 1 - brier(y, probability, w) / spread if spread > 0 else float("nan"),
        "log_loss": float(np.average(log_losses(y, probability), weights=w)),
        "ece": expected_calibration_error(y, probability, weight=w),
        "predicted_over_actual": float((w @ probability) / (w @ y)) if y.any() else float("nan"),
        "lift_10": lift_at(y, probability, weight=w),
        "base_rate": base,
        "rows": float(len(y)),
    }


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences and its standard error over contacts."""

    mean: float
    standard_error: float

    @property
    def z(self) -> float:
        """Mean over standard error; 0 where nothing differs."""
        return self.mean / self.standard_error if self.standard_error > 0 else 0.0


def paired_difference(values: Array, contact_key: NDArray[np.int64]) -> Difference:
    """Mean of row-wise differences with a standard error that lets the rows of a contact move together.

    Examples
    --------
    >>> paired_difference(np.array([1.0, 3.0]), np.array([1, 2]))
    Difference(mean=2.0, standard_error=1.0)
    """
    values = np.asarray(values, dtype=np.float64)
    mean = float(values.mean())
    _, cluster = np.unique(contact_key, return_inverse=True)
    sums = np.bincount(cluster, weights=values - mean)
    n_clusters = len(sums)
    if n_clusters < 2:
        return Difference(mean, float("inf"))
    return Difference(mean, float(np.sqrt((sums**2).sum() * n_clusters / (n_clusters - 1)) / len(values)))


def bootstrap_mean(
    values: Array,
    contact_key: NDArray[np.int64],
    *,
    rng: np.random.Generator,
    replicates: int = 1000,
    level: float = 0.9,
) -> tuple[float, float]:
    """Percentile interval of the mean of row-wise ``values`` when whole contacts are drawn again.

    Rows of one contact at several instants tell the same story more than once; drawing contacts keeps them together.

    References
    ----------
    Field, C. A. & Welsh, A. H. (2007), "Bootstrapping clustered data".

    Examples
    --------
    >>> bootstrap_mean(np.ones(50), np.arange(50), rng=np.random.default_rng(0))
    (1.0, 1.0)
    """
    _, cluster = np.unique(contact_key, return_inverse=True)
    sums, rows = np.bincount(cluster, weights=values), np.bincount(cluster)
    means = np.empty(replicates)
    for i in range(replicates):
        drawn = rng.integers(0, len(sums), len(sums))
        means[i] = sums[drawn].sum() / rows[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
