"""What policies learn from: counts, sums and matrices of each arm in each wave. They add up, so they can be folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class ArmStatistics:
    """Counts of each arm in each wave: all that a policy without context learns from. They add up.

    Parameters
    ----------
    arms : tuple of str, length n_arms
        Distinct arm ids, in the order in which pmfs list them.
    trials : ndarray of int64, shape (n_arms, n_waves)
        Decisions shown: mails accepted by the provider.
    successes : ndarray of int64, shape (n_arms, n_waves)
        Trials with a reward so far; at most ``trials``.
    age_hours : ndarray of float64, shape (n_arms, n_waves)
        Mean age of the cell's trials at the snapshot; 0 where there are none.

    Raises
    ------
    ValueError
        If there are fewer than two arms, if they repeat, if the shapes differ, or if a count is impossible.
    """

    arms: tuple[str, ...]
    trials: IntArray
    successes: IntArray
    age_hours: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", tuple(self.arms))
        for name, dtype in (("trials", np.int64), ("successes", np.int64), ("age_hours", np.float64)):
            given = np.asarray(getattr(self, name))
            values = given.astype(dtype)
            if dtype is np.int64 and not np.array_equal(values, given):
                raise ValueError(f"{name} holds numbers that are not whole; counts are whole numbers")
            object.__setattr__(self, name, values)
            if values.ndim != 2 or values.shape != (len(self.arms), np.shape(self.trials)[-1]):
                raise ValueError(
                    f"{name} has shape {values.shape}; it must be (n_arms, n_waves) with n_arms = {len(self.arms)}"
                )
            if not np.all(np.isfinite(values)) or np.any(values < 0):
                raise ValueError(f"{name} holds a negative or not finite number; counts and ages start at 0")
        if len(self.arms) < 2:
            raise ValueError(f"there is nothing to choose among {len(self.arms)} arm(s); give at least 2")
        if len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms {self.arms} repeat; give each arm an id of its own")
        if np.any(self.successes > self.trials):
            raise ValueError("a cell has more successes than trials; count at most one success a trial")

    @classmethod
    def empty(cls, arms: Sequence[str], n_waves: int = 0) -> ArmStatistics:
        """Statistics before the first trial."""
        counts = np.zeros((len(arms), n_waves), dtype=np.int64)
        return cls(tuple(arms), counts, counts, counts.astype(np.float64))

    def __add__(self, other: ArmStatistics) -> ArmStatistics:
        """Cells added up, ages averaged over the trials; both sides must list the same arms and waves.

        Examples
        --------
        >>> day = ArmStatistics(("a", "b"), [[2], [3]], [[1], [0]], [[4.0], [4.0]])
        >>> (day + day).trials.tolist()
        [[4], [6]]
        """
        if self.arms != other.arms or self.trials.shape != other.trials.shape:
            raise ValueError(
                f"cannot add statistics of {other.arms} to those of {self.arms}: arms and waves must agree"
            )
        trials = self.trials + other.trials
        hours = self.trials * self.age_hours + other.trials * other.age_hours
        return ArmStatistics(self.arms, trials, self.successes + other.successes, hours / np.maximum(trials, 1))

    def reordered(self, order: Sequence[int]) -> ArmStatistics:
        """The same statistics with the arms listed as ``order`` says."""
        index = list(order)
        return ArmStatistics(
            tuple(self.arms[i] for i in index), self.trials[index], self.successes[index], self.age_hours[index]
        )


@dataclass(frozen=True)
class SegmentStatistics:
    """Counts by segment: what a policy learns from that answers each segment apart, shrunk to all of them.

    Parameters
    ----------
    segments : tuple of str, length n_segments
    arms : tuple of str, length n_arms
    trials, successes : ndarray of int64, shape (n_segments, n_arms, n_waves)
    age_hours : ndarray of float64, shape (n_segments, n_arms, n_waves)
    """

    segments: tuple[str, ...]
    arms: tuple[str, ...]
    trials: IntArray
    successes: IntArray
    age_hours: FloatArray

    def pooled(self) -> ArmStatistics:
        """All segments together."""
        trials = self.trials.sum(axis=0)
        hours = (self.trials * self.age_hours).sum(axis=0)
        return ArmStatistics(self.arms, trials, self.successes.sum(axis=0), hours / np.maximum(trials, 1))


@dataclass(frozen=True)
class ValueStatistics:
    """Sums of a real-valued reward (revenue) of each arm in each wave; a trial without a reward counts as 0.

    Parameters
    ----------
    arms : tuple of str, length n_arms
    trials : ndarray of int64, shape (n_arms, n_waves)
    successes : ndarray of int64, shape (n_arms, n_waves)
        Trials with a reward other than 0.
    sums, squares : ndarray of float64, shape (n_arms, n_waves)
        Of the rewards, and of their squares.
    age_hours : ndarray of float64, shape (n_arms, n_waves)
    """

    arms: tuple[str, ...]
    trials: IntArray
    successes: IntArray
    sums: FloatArray
    squares: FloatArray
    age_hours: FloatArray


@dataclass(frozen=True)
class LinearStatistics:
    """What a linear model of the reward needs of each arm in each wave: all of it additive.

    Parameters
    ----------
    arms : tuple of str, length n_arms
    trials : ndarray of int64, shape (n_arms, n_waves)
    gram : ndarray of float64, shape (n_arms, n_waves, n_features, n_features)
        Sum of ``x x'`` over the trials; the first feature is 1.
    moments : ndarray of float64, shape (n_arms, n_waves, n_features)
        Sum of ``reward * x``.
    squares : ndarray of float64, shape (n_arms, n_waves)
        Sum of squared rewards.
    age_hours : ndarray of float64, shape (n_arms, n_waves)
    arm_features : ndarray of float64, shape (n_arms, n_arm_features), optional
        What is known of an arm before its first trial, a leading 1 included: its prior mean is learned from the
        other arms.
    """

    arms: tuple[str, ...]
    trials: IntArray
    gram: FloatArray
    moments: FloatArray
    squares: FloatArray
    age_hours: FloatArray
    arm_features: FloatArray | None = None
