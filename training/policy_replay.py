"""How a policy that learns would have fared: a log replayed in time, keeping what it would have decided itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import special

from features.events import HOUR_MICROS
from training.off_policy import LoggedDecisions
from training.policies.base import Allocation, Policy, masked
from training.policies.statistics import (
    ArmStatistics,
    FloatArray,
    IntArray,
    LinearStatistics,
    SegmentStatistics,
    ValueStatistics,
)

#: Below this many kept decisions no value is given.
MIN_ACCEPTED = 100


@dataclass(frozen=True)
class Replayed:
    """What a learning policy earned on the decisions of a log that it would have made itself.

    Attributes
    ----------
    offered, accepted : int
        Decisions of the log, and those kept: the policy lived through ``accepted`` decisions, not through all.
    value, standard_error : float, optional
        Mean reward of the kept decisions, with its error over contacts; None below 100 kept.
    interval : tuple of two floats, optional
    pmf : ndarray of float64, shape (n_waves, n_arms)
        The policy's probabilities at each wave, for a contact of whom nothing is known.
    trials : ndarray of int64, shape (n_arms, n_waves)
        Kept decisions.
    why : str, optional
        Why there is no value.
    """

    offered: int
    accepted: int
    value: float | None
    standard_error: float | None
    interval: tuple[float, float] | None
    pmf: FloatArray
    trials: IntArray
    why: str | None = None

    @property
    def acceptance(self) -> float:
        """Share of the offered decisions that were kept."""
        return self.accepted / self.offered if self.offered else 0.0


def replay_in_time(
    policy: Policy, logged: LoggedDecisions, *, seed: int = 0, level: float = 0.95, force: bool = False
) -> Replayed:
    """The policy's mean reward had it decided itself, learning on the way, wave by wave.

    At each wave the policy allocates from what its *kept* decisions have brought so far. A decision of the log is
    kept with probability ``c pi(a) / p(a)``, where p is the logged propensity and c the least of them. On uniform
    rows that is drawing an arm from the policy and keeping the decision if the log drew the same (Li et al. 2010);
    elsewhere it is rejection sampling (Mandel et al. 2016), and keeps fewer. What is kept is a history that the
    policy might have lived through, only shorter: ``accepted`` decisions.

    Parameters
    ----------
    logged : LoggedDecisions
        With ``wave``; with ``reward_at`` rewards become known at their own instants, else at once.
        `LoggedDecisions.is_uniform` tells the uniform rows, to hand in those only.
    seed : int
        Of what is kept, and of the policy's posterior draws.
    force : bool
        Give a value below 100 kept decisions too.

    Raises
    ------
    ValueError
        If the log has no waves, or the policy learns from what the log does not hold.

    References
    ----------
    Li, Chu, Langford, Schapire (2010), "A contextual-bandit approach to personalized news article recommendation",
    section 4. Mandel, Liu, Brunskill, Popović (2016), "Offline evaluation of online reinforcement learning
    algorithms".
    """
    if logged.wave is None:
        raise ValueError("a replay in time needs the wave of each decision; give LoggedDecisions(wave=…)")
    if policy.learns_from not in _STATISTICS:
        known = ", ".join(one.__name__ for one in _STATISTICS)
        raise ValueError(f"{policy.name} learns from {policy.learns_from.__name__}; a replay can make {known}")
    waves, at = np.unique(logged.wave, return_inverse=True)
    n_waves = len(waves)
    order = np.argsort(at, kind="stable")
    bounds = np.searchsorted(at[order], np.arange(n_waves + 1))
    happened = logged.wave * HOUR_MICROS if logged.occurred_at is None else logged.occurred_at
    chance = np.random.default_rng(seed).random(len(logged))
    least = float(logged.propensity.min(initial=1.0))
    kept = np.zeros(len(logged), dtype=bool)
    pmf = np.empty((n_waves, logged.n_arms))
    allocation: Allocation | None = None
    for wave in range(n_waves):
        rows = order[bounds[wave] : bounds[wave + 1]]
        now = int(happened[rows].min())
        statistics = _STATISTICS[policy.learns_from](logged, np.flatnonzero(kept), at, wave, happened, now)
        allocation = policy.allocate(statistics, previous=allocation, seed=seed)
        pmf[wave] = allocation.pmf
        offered = logged.take(rows)
        drawn = masked(
            allocation.probabilities(len(rows), segments=offered.segment, contexts=offered.contexts), offered.open_arms
        )
        share = drawn[np.arange(len(rows)), offered.arm]
        kept[rows] = chance[rows] * offered.propensity < least * share
    accepted = int(kept.sum())
    trials = np.bincount(logged.arm[kept] * n_waves + at[kept], minlength=logged.n_arms * n_waves)
    found = Replayed(len(logged), accepted, None, None, None, pmf, trials.reshape(logged.n_arms, n_waves))
    if accepted == 0 or (accepted < MIN_ACCEPTED and not force):
        why = f"{accepted} of {len(logged)} decisions are the policy's own, and a value takes {MIN_ACCEPTED}; log more"
        return Replayed(**(vars(found) | {"why": why}))
    mean, error = _mean_of(logged.take(kept))
    half = float(special.ndtri(0.5 + level / 2)) * error
    return Replayed(**(vars(found) | {"value": mean, "standard_error": error, "interval": (mean - half, mean + half)}))


def _mean_of(logged: LoggedDecisions) -> tuple[float, float]:
    mean = float(logged.reward.mean())
    sums = np.bincount(logged.clusters, logged.reward - mean)
    scale = len(sums) / (len(sums) - 1) if len(sums) > 1 else float("nan")
    return mean, float(np.sqrt(scale * (sums**2).sum()) / len(logged))


@dataclass(frozen=True)
class _Cells:
    """Kept decisions added up by any first axis and wave."""

    index: IntArray
    shape: tuple[int, ...]

    def total(self, values: FloatArray | None = None) -> FloatArray:
        size = int(np.prod(self.shape))
        return np.bincount(self.index, values, size).reshape(self.shape).astype(np.float64)


def _known(logged: LoggedDecisions, rows: IntArray, now: int) -> FloatArray:
    """Rewards that had come in by ``now``, 0 for the others."""
    if logged.reward_at is None:
        return logged.reward[rows]
    at = logged.reward_at[rows]
    return np.where((at >= 0) & (at <= now), logged.reward[rows], 0.0)


def _ages(cells: _Cells, happened: IntArray, rows: IntArray, now: int) -> FloatArray:
    """Mean hours since the cell's decisions, 0 where there are none."""
    hours = np.maximum(now - happened[rows], 0) / HOUR_MICROS
    return np.asarray(cells.total(hours) / np.maximum(cells.total(), 1), dtype=np.float64)


def _arm_cells(logged: LoggedDecisions, rows: IntArray, at: IntArray, n_waves: int) -> _Cells:
    return _Cells(logged.arm[rows] * n_waves + at[rows], (logged.n_arms, n_waves))


def _counts(
    logged: LoggedDecisions, rows: IntArray, at: IntArray, wave: int, happened: IntArray, now: int
) -> ArmStatistics:
    cells = _arm_cells(logged, rows, at, wave)
    succeeded = (_known(logged, rows, now) > 0).astype(np.float64)
    return ArmStatistics(
        logged.arms, cells.total().astype(np.int64), cells.total(succeeded).astype(np.int64),
        _ages(cells, happened, rows, now),
    )  # fmt: skip


def _values(
    logged: LoggedDecisions, rows: IntArray, at: IntArray, wave: int, happened: IntArray, now: int
) -> ValueStatistics:
    cells, reward = _arm_cells(logged, rows, at, wave), _known(logged, rows, now)
    return ValueStatistics(
        logged.arms, cells.total().astype(np.int64), cells.total((reward != 0).astype(np.float64)).astype(np.int64),
        cells.total(reward), cells.total(reward**2), _ages(cells, happened, rows, now),
    )  # fmt: skip


def _segments(
    logged: LoggedDecisions, rows: IntArray, at: IntArray, wave: int, happened: IntArray, now: int
) -> SegmentStatistics:
    if logged.segment is None:
        raise ValueError("the policy tells segments apart and the log has none; give LoggedDecisions(segment=…)")
    names, of = np.unique(np.array([name or "" for name in logged.segment], dtype=np.str_), return_inverse=True)
    shape = (len(names), logged.n_arms, wave)
    cells = _Cells((of[rows] * logged.n_arms + logged.arm[rows]) * wave + at[rows], shape)
    succeeded = (_known(logged, rows, now) > 0).astype(np.float64)
    return SegmentStatistics(
        tuple(names.tolist()), logged.arms, cells.total().astype(np.int64), cells.total(succeeded).astype(np.int64),
        _ages(cells, happened, rows, now),
    )  # fmt: skip


def _moments(
    logged: LoggedDecisions, rows: IntArray, at: IntArray, wave: int, happened: IntArray, now: int
) -> LinearStatistics:
    if logged.contexts is None:
        raise ValueError("the policy learns from vectors and the log has none; give LoggedDecisions(contexts=…)")
    rows = rows[~np.isnan(logged.contexts[rows]).any(axis=1)]
    cells, reward, x = _arm_cells(logged, rows, at, wave), _known(logged, rows, now), logged.contexts[rows]
    width = x.shape[1]
    gram = np.zeros((*cells.shape, width, width))
    moments = np.zeros((*cells.shape, width))
    for i in range(width):
        moments[..., i] = cells.total(reward * x[:, i])
        for j in range(i, width):
            gram[..., i, j] = gram[..., j, i] = cells.total(x[:, i] * x[:, j])
    return LinearStatistics(
        logged.arms, cells.total().astype(np.int64), gram, moments, cells.total(reward**2),
        _ages(cells, happened, rows, now),
    )  # fmt: skip


_STATISTICS = {
    ArmStatistics: _counts,
    ValueStatistics: _values,
    SegmentStatistics: _segments,
    LinearStatistics: _moments,
}
