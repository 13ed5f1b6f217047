"""How a policy fares where the best arm depends on the contact: worlds with vectors whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.policies import (
    Allocation,
    ArmStatistics,
    DelayCdf,
    LinearStatistics,
    LinearSums,
    LinearThompson,
    Policy,
    choose,
    hashed_draws,
    sums_of,
)
from training.policies.statistics import FloatArray, IntArray
from training.worlds import day_and_night

#: Decisions an hour, by which rounds become ages; an hour is a wave.
ROUNDS_PER_HOUR = 1000
N_FEATURES = 20


@dataclass(frozen=True)
class ContextualWorld:
    """Rounds of one contact each: its vector and the probability of a click under every arm.

    Attributes
    ----------
    contexts : ndarray of float32, shape (n_rounds, n_features)
        The first feature is 1.
    rates : ndarray of float64, shape (n_rounds, n_arms)
    draws : ndarray of float64, shape (n_rounds,), in [0, 1)
        A click follows where it lies below the shown arm's rate: every policy meets the same luck.
    starts, ends : ndarray of int64, shape (n_arms,)
        An arm can be shown from one round to before the other.
    arm_features : ndarray of float64, shape (n_arms, n_arm_features), optional
    """

    contexts: NDArray[np.float32]
    rates: FloatArray
    draws: FloatArray
    starts: IntArray
    ends: IntArray
    arm_features: FloatArray | None = None

    @property
    def arms(self) -> tuple[str, ...]:
        """Ids of the arms."""
        return tuple(f"arm_{k:03d}" for k in range(self.rates.shape[1]))

    def open_rates(self) -> FloatArray:
        """Rates with NaN where an arm cannot be shown, shape (n_rounds, n_arms)."""
        at = np.arange(len(self.rates))[:, None]
        return np.where((self.starts <= at) & (at < self.ends), self.rates, np.nan)

    def captured(self, chosen: IntArray, rounds: slice | NDArray[np.bool_] = slice(None)) -> float:
        """Share of the way from the random choice to the oracle that the chosen arms go, in expected clicks."""
        open_rates = self.open_rates()[rounds]
        mine = np.take_along_axis(self.rates[rounds], chosen[rounds, None], axis=1).mean()
        random, oracle = np.nanmean(open_rates, axis=1).mean(), np.nanmax(open_rates, axis=1).mean()
        return float((mine - random) / (oracle - random))

    def best_fixed(self) -> int:
        """The arm with the highest mean rate."""
        return int(self.rates.mean(axis=0).argmax())


def _logistic(logits: FloatArray) -> FloatArray:
    return np.asarray(1 / (1 + np.exp(-logits)), dtype=np.float64)


def linear_world(seed: int, n_rounds: int = 50_000, *, redrawn_at: int | None = None) -> ContextualWorld:
    """Ten arms, twenty features (a 1, nine normal, ten of 0 or 1), clicks logistic in them.

    Shown at random arms are clicked in .10 to .11 of the rounds, the best fixed arm in .13 to .17, the best arm of
    each round in .31 to .35.

    Parameters
    ----------
    redrawn_at : int, optional
        Round from which on the coefficients are new ones.
    """
    rng = np.random.default_rng(seed)
    n_arms = 10
    normal = rng.standard_normal((n_rounds, 9))
    binary = rng.random((n_rounds, 10)) < 0.5
    x = np.concatenate([np.ones((n_rounds, 1)), normal, binary], axis=1)
    rates = np.empty((n_rounds, n_arms))
    cuts = [0, n_rounds if redrawn_at is None else redrawn_at, n_rounds]
    for start, end in pairwise(cuts):
        beta = rng.normal(0, 0.35, (n_arms, N_FEATURES))
        beta[:, 0] = -2.7 + rng.normal(0, 0.25, n_arms) - 0.5 * beta[:, 10:].sum(axis=1)
        rates[start:end] = _logistic(x[start:end] @ beta.T)
    return ContextualWorld(
        x.astype(np.float32),
        rates,
        rng.random(n_rounds),
        np.zeros(n_arms, dtype=np.int64),
        np.full(n_arms, n_rounds, dtype=np.int64),
    )


def replaced_arms_world(
    seed: int, n_rounds: int = 50_000, *, n_open: int = 10, n_replaced: int = 3, lives: int = 5_000, own: float = 0.1
) -> ContextualWorld:
    """Every ``lives`` rounds some arms are replaced; what an arm is like follows from its six-dimensional embedding.

    Ten arms are open at a time, and the oldest ``n_replaced`` of them leave. An arm's coefficients (ten features,
    clicks logistic in them) are ``W e_k`` plus normal ones of its own with the standard deviation ``own``.
    """
    rng = np.random.default_rng(seed)
    changes = -(-n_rounds // lives) - 1
    n_arms = n_open + n_replaced * changes
    x = np.concatenate([np.ones((n_rounds, 1)), rng.standard_normal((n_rounds, 9))], axis=1)
    embedding = np.concatenate([np.ones((n_arms, 1)), rng.standard_normal((n_arms, 6))], axis=1)
    w = rng.normal(0, 0.3, (x.shape[1], 7))
    beta = embedding @ w.T + rng.normal(0, own, (n_arms, x.shape[1]))
    beta[:, 0] += -2.4
    starts = np.repeat(np.arange(changes + 1) * lives, [n_open] + [n_replaced] * changes)
    leaves = np.repeat(np.arange(1, changes + 1) * lives, n_replaced)
    ends = np.append(leaves, np.full(n_arms - len(leaves), n_rounds))
    return ContextualWorld(x.astype(np.float32), _logistic(x @ beta.T), rng.random(n_rounds), starts, ends, embedding)


def round_delay(delay_rounds: int) -> DelayCdf:
    """The delay of a world whose rewards come in ``delay_rounds`` later, as seen on hourly cells by their mean age."""
    if delay_rounds == 0:
        return DelayCdf(knots=((1e-9, 1.0), (1.0, 1.0)))
    hours = delay_rounds / ROUNDS_PER_HOUR
    return DelayCdf(knots=((max(hours - 0.5, 1e-9), 0.0), (hours + 0.5, 1.0)))


def choose_in_turn(
    policy: Policy,
    world: ContextualWorld,
    *,
    batch: int = 100,
    delay_rounds: int = 0,
    apart: bool = False,
    seed: int = 0,
) -> IntArray:
    """The arm chosen in each round, by the code that the service decides with.

    Parameters
    ----------
    batch : int
        Rounds that share one allocation.
    delay_rounds : int
        A reward is known once so many rounds and the batch are over.
    apart : bool
        Hide the arms' features and the arms that are no longer shown: the control without a learned prior.

    Returns
    -------
    ndarray of int64, shape (n_rounds,)
    """
    n_rounds, n_arms = world.rates.shape
    n_waves, d = -(-n_rounds // ROUNDS_PER_HOUR), world.contexts.shape[1]
    trials, squares = np.zeros((n_arms, n_waves), dtype=np.int64), np.zeros((n_arms, n_waves))
    shown_at = np.zeros((n_arms, n_waves))
    gram, moments = np.zeros((n_arms, n_waves, d, d)), np.zeros((n_arms, n_waves, d))
    chosen = np.empty(n_rounds, dtype=np.int64)
    known = 0

    def sums(rounds: NDArray[np.int64], clicks: NDArray[np.bool_]) -> tuple[slice, LinearSums]:
        """Sums of some rounds, and the waves they are of."""
        waves = rounds // ROUNDS_PER_HOUR
        touched = slice(int(waves[0]), int(waves[-1]) + 1)
        size = {"n_arms": n_arms, "n_waves": touched.stop - touched.start}
        return touched, sums_of(chosen[rounds], waves - touched.start, world.contexts[rounds], clicks, **size)

    for start in range(0, n_rounds, batch):
        rewarded = np.arange(known, max(known, start - delay_rounds))
        if len(rewarded):
            known += len(rewarded)
            at, fresh = sums(rewarded, world.draws[rewarded] < world.rates[rewarded, chosen[rewarded]])
            moments[:, at] += fresh.moments
            squares[:, at] += fresh.squares
        age = np.where(trials > 0, (start - shown_at / np.maximum(trials, 1)) / ROUNDS_PER_HOUR, 0.0)
        running = [world.arms[k] for k in np.flatnonzero((world.starts <= start) & (start < world.ends))]
        allocation = _allocation(policy, world, (trials, gram, moments, squares, age), running, apart, seed + start)
        rounds = np.arange(start, min(start + batch, n_rounds))
        pmf = allocation.probabilities(len(rounds), contexts=world.contexts[rounds])
        draws = hashed_draws("world", f"snapshot-{seed}-{start}", rounds, ["send"] * len(rounds))
        chosen[rounds] = np.array([world.arms.index(arm) for arm in allocation.arms])[choose(pmf, draws)]
        at, fresh = sums(rounds, np.zeros(len(rounds), dtype=np.bool_))
        trials[:, at] += fresh.trials
        gram[:, at] += fresh.gram
        np.add.at(shown_at, (chosen[rounds], rounds // ROUNDS_PER_HOUR), rounds)
    return chosen


def _allocation(
    policy: Policy,
    world: ContextualWorld,
    sums: tuple[IntArray, FloatArray, FloatArray, FloatArray, FloatArray],
    running: Sequence[str],
    apart: bool,
    seed: int,
) -> Allocation:
    kept = np.array([world.arms.index(arm) for arm in running])
    trials, gram, moments, squares, age = sums
    if not isinstance(policy, LinearThompson):
        clicks = squares[kept].round().astype(np.int64)
        return policy.allocate(ArmStatistics(tuple(running), trials[kept], clicks, age[kept]), seed=seed)
    if apart:
        alone = (trials[kept], gram[kept], moments[kept], squares[kept], age[kept])
        return policy.allocate(LinearStatistics(tuple(running), *alone), seed=seed)
    # Arms that were never shown teach nothing: leave them out, for speed.
    kept = np.union1d(kept, np.flatnonzero(trials.sum(axis=1)))
    features = None if world.arm_features is None else world.arm_features[kept]
    arms = tuple(world.arms[k] for k in kept)
    statistics = LinearStatistics(arms, trials[kept], gram[kept], moments[kept], squares[kept], age[kept], features)
    return policy.allocate(statistics, seed=seed, running=running)


def shares_without_effect(
    policy: LinearThompson,
    *,
    n_arms: int = 2,
    n_features: int = 2,
    n_sends: int = 40_000,
    n_waves: int = 40,
    runs: int,
    seed: int,
) -> FloatArray:
    """Last mean probabilities over contacts where all arms are the same, shape (runs, n_arms).

    Hourly waves with a base rate of 20 %, give or take 30 % by day and night; the vector moves the rate, the arm does
    not.
    """
    arms = tuple(f"arm_{k}" for k in range(n_arms))
    per_wave = n_sends // n_waves
    size = {"n_arms": n_arms, "n_waves": n_waves}
    last = np.empty((runs, n_arms))
    for run in range(runs):
        rng = np.random.default_rng([seed, run])
        slopes = rng.normal(0, 0.02, n_features - 1)
        sums = sums_of([], [], np.empty((0, n_features)), [], **size)
        for wave in range(n_waves + 1):
            age = np.broadcast_to(np.maximum(wave - np.arange(n_waves, dtype=np.float64), 0), (n_arms, n_waves))
            allocation = policy.allocate(sums.statistics(arms, age), seed=int(rng.integers(2**31)))
            x = np.concatenate([np.ones((per_wave, 1)), rng.standard_normal((per_wave, n_features - 1))], axis=1)
            pmf = allocation.probabilities(per_wave, contexts=x)
            if wave == n_waves:
                last[run] = pmf.mean(axis=0)
                break
            base = 0.2 * day_and_night(np.array([float(wave)]))
            clicks = rng.random(per_wave) < np.clip(base + x[:, 1:] @ slopes, 0, 1)
            fresh = sums_of(choose(pmf, rng.random(per_wave)), np.full(per_wave, wave), x, clicks, **size)
            sums = sums + fresh
    return last
