"""What policies learn from: counts, sums and matrices of each arm in each wave. They add up, so they can be folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


def _check(table: ArmStatistics | SegmentStatistics | ValueStatistics, axes: str, leading: tuple[int, ...]) -> None:
    """Turn the table's fields into arrays, and refuse what cannot have been counted."""
    object.__setattr__(table, "arms", tuple(table.arms))
    for name, dtype in (("trials", np.int64), ("successes", np.int64), ("age_hours", np.float64)):
        given = np.asarray(getattr(table, name))
        values = given.astype(dtype)
        if dtype is np.int64 and not np.array_equal(values, given):
            raise ValueError(f"{name} holds numbers that are not whole; counts are whole numbers")
        object.__setattr__(table, name, values)
        if values.ndim != len(leading) + 1 or values.shape != (*leading, np.shape(table.trials)[-1]):
            raise ValueError(f"{name} has shape {values.shape}; it must be {axes} with {leading} first")
        if not np.all(np.isfinite(values)) or np.any(values < 0):
            raise ValueError(f"{name} holds a negative or not finite number; counts and ages start at 0")
    if len(table.arms) < 2:
        raise ValueError(f"there is nothing to choose among {len(table.arms)} arm(s); give at least 2")
    if len(set(table.arms)) < len(table.arms):
        raise ValueError(f"arms {table.arms} repeat; give each arm an id of its own")
    if np.any(table.successes > table.trials):
        raise ValueError("a cell has more successes than trials; count at most one success a trial")


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
        _check(self, "(n_arms, n_waves)", (len(tuple(self.arms)),))

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
        Distinct names.
    arms : tuple of str, length n_arms
    trials, successes : ndarray of int64, shape (n_segments, n_arms, n_waves)
    age_hours : ndarray of float64, shape (n_segments, n_arms, n_waves)

    Raises
    ------
    ValueError
        As of ``ArmStatistics``, and if the segments repeat.
    """

    segments: tuple[str, ...]
    arms: tuple[str, ...]
    trials: IntArray
    successes: IntArray
    age_hours: FloatArray

    def __post_init__(self) -> None:
        object.__setattr__(self, "segments", tuple(self.segments))
        if len(set(self.segments)) < len(self.segments):
            raise ValueError(f"segments {self.segments} repeat; give each segment a name of its own")
        _check(self, "(n_segments, n_arms, n_waves)", (len(self.segments), len(tuple(self.arms))))

    def pooled(self) -> ArmStatistics:
        """All segments together: what a report shows. To compare arms use ``strata``."""
        trials = self.trials.sum(axis=0)
        hours = (self.trials * self.age_hours).sum(axis=0)
        return ArmStatistics(self.arms, trials, self.successes.sum(axis=0), hours / np.maximum(trials, 1))

    def strata(self) -> ArmStatistics:
        """Every segment's waves side by side, each a wave of its own.

        Segments differ in their rates and, once they are allocated apart, in their mix of arms. Counts added up over
        them mistake an arm shown to eager segments for a good arm; with a level for every (segment, wave) they do not.
        """
        shape = (len(self.arms), -1)
        return ArmStatistics(
            self.arms,
            np.moveaxis(self.trials, 0, 1).reshape(shape),
            np.moveaxis(self.successes, 0, 1).reshape(shape),
            np.moveaxis(self.age_hours, 0, 1).reshape(shape),
        )

    def reordered(self, order: Sequence[int]) -> SegmentStatistics:
        """The same statistics with the arms listed as ``order`` says."""
        i = list(order)
        return SegmentStatistics(
            self.segments, tuple(self.arms[k] for k in i), self.trials[:, i], self.successes[:, i], self.age_hours[:, i]
        )


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

    Raises
    ------
    ValueError
        As of ``ArmStatistics``, and if no rewards can have these sums and squares.
    """

    arms: tuple[str, ...]
    trials: IntArray
    successes: IntArray
    sums: FloatArray
    squares: FloatArray
    age_hours: FloatArray

    def __post_init__(self) -> None:
        _check(self, "(n_arms, n_waves)", (len(tuple(self.arms)),))
        for name in ("sums", "squares"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.shape != self.trials.shape:
                raise ValueError(f"{name} has shape {values.shape}; it must be {self.trials.shape} like the trials")
            if not np.all(np.isfinite(values)):
                raise ValueError(f"{name} holds a number that is not finite; leave such rewards out")
        if np.any(self.sums**2 > self.successes * self.squares * (1 + 1e-9) + 1e-9):
            raise ValueError(
                "no rewards have these sums and squares (sum**2 > successes * squares); a success is a reward other "
                "than 0, and squares adds up the squared rewards"
            )

    @classmethod
    def empty(cls, arms: Sequence[str], n_waves: int = 0) -> ValueStatistics:
        """Statistics before the first trial."""
        counts = np.zeros((len(arms), n_waves), dtype=np.int64)
        nothing = counts.astype(np.float64)
        return cls(tuple(arms), counts, counts, nothing, nothing, nothing)

    def reordered(self, order: Sequence[int]) -> ValueStatistics:
        """The same statistics with the arms listed as ``order`` says."""
        i = list(order)
        return ValueStatistics(
            tuple(self.arms[k] for k in i),
            self.trials[i], self.successes[i], self.sums[i], self.squares[i], self.age_hours[i],
        )  # fmt: skip


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
