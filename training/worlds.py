"""How a policy fares in worlds whose truth is known: late answers, day and night, falling base rates, no effect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.policies import BetaBernoulliThompson, CountPolicy, DelayCdf
from training.policies.statistics import FloatArray, IntArray

#: Relative base rate at an hour since the start, an array function.
BaseRate = Callable[[FloatArray], FloatArray]


def steady(hours: FloatArray) -> FloatArray:
    """The same base rate at every hour."""
    return np.ones_like(hours)


def day_and_night(hours: FloatArray) -> FloatArray:
    """A swing of 30 % either way within 24 hours."""
    return np.asarray(1.0 + 0.3 * np.sin(2 * np.pi * hours / 24.0), dtype=np.float64)


@dataclass(frozen=True)
class Responses:
    """Many runs of one policy in one world."""

    #: shape (runs, n_waves, n_arms): probabilities that each wave was drawn from.
    shares: FloatArray
    #: shape (runs, n_arms): probabilities after the last wave.
    last_share: FloatArray
    #: shape (runs,): expected successes missed against always choosing the best arm.
    regret: FloatArray
    #: Expected successes that the uniform split would have missed.
    uniform_regret: float
    #: shape (runs, n_arms, n_waves)
    trials: IntArray
    #: shape (runs, n_arms, n_waves): successes in the end, those still to come included.
    successes: IntArray


def simulate_responses(
    policy: CountPolicy,
    rates: tuple[float, ...],
    *,
    n_sends: int,
    n_waves: int,
    runs: int,
    seed: int,
    wave_hours: float = 2.0,
    base: BaseRate = steady,
    delay: DelayCdf | None = None,
    pooled: bool = False,
) -> Responses:
    """Runs of a send in waves, all at once: each wave is drawn from the pmf of what has come in when it leaves.

    Answers come in by their delay: those pending at one look have come in by the next with probability
    ``(F(b) - F(a)) / (1 - F(a))``, which gives the same counts as a delay drawn for every mail.

    Parameters
    ----------
    policy : CountPolicy
    rates : tuple of float, length n_arms
        True success rate of each arm at a base rate of one.
    n_sends, n_waves : int
        Sends in all, cut into equal waves, ``wave_hours`` apart.
    runs : int
        Independent repetitions.
    base : function of hours since the start
        Multiplies every arm's rate.
    delay : DelayCdf, optional
        True delay of an answer; a lognormal with a median of 3 hours by default.
    pooled : bool
        Show the policy the counts added up over waves, as textbook bandits have them: the harness's teeth.
    """
    rng = np.random.default_rng(seed)
    true_delay = delay or DelayCdf()
    n_arms = len(rates)
    edges = np.linspace(0, n_sends, n_waves + 1).round().astype(np.int64)
    sizes = edges[1:] - edges[:-1]
    starts: FloatArray = np.arange(n_waves + 1, dtype=np.float64) * wave_hours
    truth: FloatArray = np.asarray(rates)[:, None] * base(starts[:-1])
    if truth.min() < 0 or truth.max() > 1:
        raise ValueError(f"rates reach from {truth.min():.3g} to {truth.max():.3g}; keep them between 0 and 1")
    arms = tuple(f"arm_{k}" for k in range(n_arms))
    trials = np.zeros((runs, n_arms, n_waves), dtype=np.int64)
    seen, pending = np.zeros_like(trials), np.zeros_like(trials)
    shares = np.empty((runs, n_waves + 1, n_arms))
    for wave in range(n_waves + 1):
        before, now = true_delay(np.maximum(starts[wave] - wave_hours - starts[:-1], 0)), starts[wave] - starts[:-1]
        due = np.clip((true_delay(np.maximum(now, 0)) - before) / np.maximum(1 - before, 1e-12), 0, 1)
        arrived = rng.binomial(pending, due)
        seen, pending = seen + arrived, pending - arrived
        age = np.broadcast_to(np.maximum(now, 0.0), trials.shape)
        table = (trials[..., :wave], seen[..., :wave], age[..., :wave])
        if pooled:
            total = trials.sum(axis=-1, keepdims=True)
            mean_share = (trials * true_delay(age)).sum(axis=-1, keepdims=True) / np.maximum(total, 1)
            table = (total, seen.sum(axis=-1, keepdims=True), _age_of(true_delay, mean_share))
        shares[:, wave] = policy.shares(arms, *table)
        if wave < n_waves:
            trials[:, :, wave] = rng.multinomial(sizes[wave], shares[:, wave])
            pending[:, :, wave] = rng.binomial(trials[:, :, wave], truth[:, wave])
    missed: FloatArray = truth.max(axis=0) - truth
    return Responses(
        shares=shares[:, :-1],
        last_share=shares[:, -1],
        regret=(shares[:, :-1] * (missed * sizes).T).sum(axis=(1, 2)),
        uniform_regret=float((missed.mean(axis=0) * sizes).sum()),
        trials=trials,
        successes=seen + pending,
    )


def _age_of(delay: DelayCdf, share: FloatArray) -> FloatArray:
    """Age by which ``share`` of the answers has come in: one age that stands for all pooled waves."""
    ages = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 4000)])
    return np.asarray(np.interp(share, delay(ages), ages), dtype=np.float64)


def no_effect_misses(last_share: FloatArray) -> NDArray[np.bool_]:
    """Runs whose last share of the first arm lies outside 10-90 %."""
    return np.asarray(np.abs(last_share[:, 0] - 0.5) > 0.4, dtype=np.bool_)


def responses_report(seeds: int = 100, runs: int = 200, *, seed: int = 7) -> dict[str, Any]:
    """The policy in three worlds, beside what it is meant to beat: JSON values with their standard errors.

    Parameters
    ----------
    seeds : int
        Runs of the world with three unlike arms: 20,000 sends in 8 waves two hours apart, open rates .18/.22/.28.
    runs : int
        Runs of the world with two identical arms (40,000 sends in 40 hourly waves, 20 % give or take 30 % by day and
        night), of the same under plain pooled Thompson sampling, and a quarter as many of the falling base rate
        (100,000 sends in 50 waves, 25 % falling to 15 %, one arm 10 % better).
    """
    policy = BetaBernoulliThompson()
    plain = BetaBernoulliThompson(temper=1.0, floor=0.01)
    unlike = simulate_responses(policy, (0.18, 0.22, 0.28), n_sends=20_000, n_waves=8, runs=seeds, seed=seed)
    ratio = unlike.regret / unlike.uniform_regret
    alike: dict[str, Any] = {"n_sends": 40_000, "n_waves": 40, "wave_hours": 1.0, "base": day_and_night, "runs": runs}
    misses = no_effect_misses(simulate_responses(policy, (0.2, 0.2), seed=seed + 1, **alike).last_share)
    pooled = no_effect_misses(simulate_responses(plain, (0.2, 0.2), seed=seed + 1, pooled=True, **alike).last_share)
    few = max(1, runs // 4)
    sinking: dict[str, Any] = {
        "n_sends": 100_000, "n_waves": 50, "wave_hours": 1.0, "runs": few, "seed": seed + 2,
        "base": lambda hours: 1.0 - 0.4 * hours / 49.0,
    }  # fmt: skip
    better = simulate_responses(policy, (0.25, 0.275), **sinking).last_share[:, 1]
    better_pooled = simulate_responses(plain, (0.25, 0.275), pooled=True, **sinking).last_share[:, 1]
    return {
        "three_arms": {
            "rates": [0.18, 0.22, 0.28],
            "runs": seeds,
            "regret_share_of_uniform": float(ratio.mean()),
            "standard_error": _standard_error(ratio),
            "worst_run": float(ratio.max()),
            "first_wave_share": unlike.shares[:, 0].mean(axis=0).tolist(),
            "last_wave_share": unlike.shares[:, -1].mean(axis=0).tolist(),
            "bound": 0.5,
        },
        "identical_arms": {
            "runs": runs,
            "outside_10_90": float(misses.mean()),
            "standard_error": _standard_error(misses),
            "pooled_outside_10_90": float(pooled.mean()),
            "bound": 0.05,
        },
        "falling_base": {
            "runs": few,
            "mean_last_share": float(better.mean()),
            "standard_error": _standard_error(better),
            "pooled_mean_last_share": float(better_pooled.mean()),
            "bound": 0.85,
        },
    }


def _standard_error(values: NDArray[Any]) -> float | None:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
