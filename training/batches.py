"""An experiment's matured decisions as sums over batches: decisions drawn from one pmf.

Within a batch the pmf is fixed, so sums of the rewards suffice for every estimate and interval of the reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from training.policies.statistics import FloatArray, IntArray

#: Trials that the pooled mean counts for beside an arm's own past.
SHRINKAGE_TRIALS = 200.0


@dataclass(frozen=True)
class InverseSums:
    """Sums over each arm's units of powers of 1 / propensity, where propensities differ within a batch.

    Attributes
    ----------
    weights, sums, squares : ndarray of float64, shape (..., n_batches, n_arms)
        Sums of ``1 / p``, ``y / p`` and ``y**2 / p``, with y the unit's reward and p the logged propensity of its arm.
    squared_weights, squared_sums, squared_squares : ndarray of float64, same shape
        The same with ``1 / p**2``.
    least : ndarray of float64, shape (..., n_arms)
        Least propensity with which each arm was drawn, over all batches; NaN for one that never was.
    """

    weights: FloatArray
    sums: FloatArray
    squares: FloatArray
    squared_weights: FloatArray
    squared_sums: FloatArray
    squared_squares: FloatArray
    least: FloatArray


@dataclass(frozen=True)
class Batches:
    """Matured decisions as sums, batch by batch in the order drawn; leading axes are runs of a simulation.

    A unit is what was drawn: a decision, or a contact where it keeps its arm. Its reward is all that it brought, so
    for contacts ``sums`` and ``squares`` are of contacts' totals.

    Parameters
    ----------
    arms : tuple of str, length n_arms
    pmf : ndarray of float64, shape (..., n_batches, n_arms)
        Probabilities that the batch was drawn from; 0 for an arm that was not open to it. Where propensities differ
        within batches (policies that see vectors), their mean.
    trials : ndarray of int64, same shape
    sums, squares : ndarray of float64, same shape
        Of the units' rewards, and of their squares.
    model : ndarray of float64, same shape
        Mean reward of each arm as foreseen from data before the batch, never from the batch itself.
    variance : ndarray of float64, same shape
        Variance of a unit's reward, foreseen likewise.
    inverse : InverseSums, optional
        Where propensities differ within batches.

    Raises
    ------
    ValueError
        If shapes differ, arms repeat, a number is impossible, or an arm without probability has trials.
    """

    arms: tuple[str, ...]
    pmf: FloatArray
    trials: IntArray
    sums: FloatArray
    squares: FloatArray
    model: FloatArray
    variance: FloatArray
    inverse: InverseSums | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", tuple(self.arms))
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms {self.arms} make no comparison; give at least two different ones")
        object.__setattr__(self, "trials", np.asarray(self.trials, dtype=np.int64))
        for name in ("pmf", "sums", "squares", "model", "variance"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        for name in ("pmf", "trials", "sums", "squares", "model", "variance"):
            values = getattr(self, name)
            if values.shape != self.trials.shape or values.ndim < 2 or values.shape[-1] != len(self.arms):
                raise ValueError(
                    f"{name} has shape {values.shape}, trials {self.trials.shape}; all must be (..., n_batches, "
                    f"{len(self.arms)}), one number an arm"
                )
            if not np.all(np.isfinite(values)):
                raise ValueError(f"{name} holds a number that is not finite; leave out rewards that are unknown")
        if np.any(self.trials < 0) or np.any(self.squares < 0) or np.any(self.variance < 0):
            raise ValueError("trials, squares and variance cannot be negative; check how they were summed")
        if np.any(self.pmf < 0) or np.any(np.abs(self.pmf.sum(axis=-1) - 1.0) > 1e-6):
            raise ValueError("a batch's pmf needs no negative number and the sum 1; give the pmf that was drawn from")
        if np.any((self.pmf == 0) & (self.trials > 0)):
            raise ValueError("an arm with probability 0 has trials; give the pmf with paused arms masked as drawn")

    @classmethod
    def of(
        cls,
        arms: Sequence[str],
        pmf: ArrayLike,
        trials: ArrayLike,
        sums: ArrayLike,
        squares: ArrayLike | None = None,
        *,
        waves: ArrayLike | None = None,
        prior_mean: float = 0.0,
        inverse: InverseSums | None = None,
    ) -> Batches:
        """Batches with means and variances foreseen from the batches before.

        Parameters
        ----------
        squares : array-like, optional
            By default ``sums``: rewards of 0 or 1.
        waves : array-like of int, shape (n_batches,), optional
            See ``predictable_means``.
        prior_mean : float
            Mean reward foreseen before the first batch, such as the installation's base rate: it makes the first
            batch's scores less noisy and can be anything that was known before.
        """
        count, total = np.asarray(trials, dtype=np.int64), np.asarray(sums, dtype=np.float64)
        square = total if squares is None else np.asarray(squares, dtype=np.float64)
        model = predictable_means(count, total, waves, prior_mean)
        # Of a reward of 0 or 1 the second moment is the mean; of others nothing is known before the first batch.
        second = predictable_means(count, square, waves, prior_mean if np.array_equal(total, square) else 0.0)
        variance = np.maximum(second - model**2, 0.0)
        return cls(
            tuple(arms), np.asarray(pmf, dtype=np.float64), count, total, square, model, variance, inverse=inverse
        )

    def index(self, arm: str) -> int:
        """Position of ``arm``."""
        if arm not in self.arms:
            raise ValueError(f"arm {arm!r} is not among {', '.join(self.arms)}")
        return self.arms.index(arm)

    @property
    def n_units(self) -> IntArray:
        """Units of each batch, shape (..., n_batches)."""
        return np.asarray(self.trials.sum(axis=-1), dtype=np.int64)


def predictable_means(
    trials: ArrayLike, sums: ArrayLike, waves: ArrayLike | None = None, prior_mean: float = 0.0
) -> FloatArray:
    """Mean reward of each arm in each batch as the batches before foresee it, shrunk to the mean of all arms.

    With ``m`` the mean of all arms so far: ``(sums_k + 200 m) / (trials_k + 200)``. The batch's own rewards never
    enter: a model that has seen them is no martingale's, and no interval built on it holds.

    Parameters
    ----------
    trials, sums : array-like, shape (..., n_batches, n_arms)
    waves : array-like of int, shape (n_batches,), optional
        Batches of one wave share its base rate: earlier batches of the same wave move the foreseen level, shrunk
        likewise.
    prior_mean : float
        Before the first trial.

    Returns
    -------
    ndarray of float64, shape (..., n_batches, n_arms)

    Examples
    --------
    >>> predictable_means([[100, 100], [50, 50]], [[10, 30], [5, 5]]).round(4).tolist()
    [[0.0, 0.0], [0.1667, 0.2333]]
    """
    count, total = np.asarray(trials, dtype=np.float64), np.asarray(sums, dtype=np.float64)
    seen, earned = _before(count), _before(total)
    all_seen, all_earned = seen.sum(axis=-1, keepdims=True), earned.sum(axis=-1, keepdims=True)
    pooled = np.where(all_seen > 0, all_earned / np.maximum(all_seen, 1.0), prior_mean)
    means = np.asarray((earned + SHRINKAGE_TRIALS * pooled) / (seen + SHRINKAGE_TRIALS), dtype=np.float64)
    if waves is None:
        return means
    wave_of = np.asarray(waves)
    if wave_of.shape != count.shape[-2:-1]:
        raise ValueError(f"{wave_of.shape} waves for {count.shape[-2]} batches; give one a batch")
    foreseen, came = (count * means).sum(axis=-1), total.sum(axis=-1)
    prior = SHRINKAGE_TRIALS * pooled[..., 0]
    for wave in np.unique(wave_of):
        of_wave = np.flatnonzero(wave_of == wave)
        expected = _before(foreseen[..., of_wave, None])[..., 0] + prior[..., of_wave]
        level = (_before(came[..., of_wave, None])[..., 0] + prior[..., of_wave]) / np.where(
            expected > 0, expected, 1.0
        )
        means[..., of_wave, :] *= np.where(expected > 0, level, 1.0)[..., None]
    return means


def _before(values: FloatArray) -> FloatArray:
    """Sum over the batches before each, along the last axis but one."""
    return np.cumsum(values, axis=-2) - values
