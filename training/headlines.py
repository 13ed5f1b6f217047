"""What a bandit would have earned on real headline tests: true rates by empirical Bayes, clicks simulated from them.

The Upworthy Research Archive (Matias, Munger, Le Quere, Ebersole 2021, "The Upworthy Research Archive, a time series
of 32,487 experiments in U.S. media") holds impressions and clicks of each headline of each test. An observed rate is
noisier than the truth, so the best observed headline looks better than it is; here each headline's true rate is drawn
from its posterior under the tests' common spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.policies import BetaBernoulliThompson, DelayCdf
from training.policies.statistics import FloatArray, IntArray

#: Concentration of headlines' true rates around their test's mean: arm ~ Beta(m k, (1 - m) k).
CONCENTRATION = 2205.0
COLUMNS = ("clickability_test_id", "impressions", "clicks", "randomization_suspect_week")
_AT_ONCE = DelayCdf(median_hours=1e-6)

#: Thompson sampling where nothing but the counts of the test itself is known, and with what past tests say of how
#: much headlines differ: the prior then does what temper, floor and the wait for evidence do without it.
FLAT = BetaBernoulliThompson(temper=1.0, floor=0.0, minimum_successes=0.0, delay=_AT_ONCE)
POOLED = BetaBernoulliThompson(
    temper=1.0, floor=0.0, minimum_successes=0.0, delay=_AT_ONCE, prior_concentration=CONCENTRATION
)


@dataclass(frozen=True)
class HeadlineTests:
    """Tests with as many headlines each, padded: shape (n_tests, n_arms), ``is_arm`` says which are real."""

    impressions: IntArray
    clicks: IntArray
    is_arm: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.is_arm)


def read_headline_tests(path: Path, n_tests: int | None = None, *, seed: int = 0) -> HeadlineTests:
    """Valid tests (weeks with sound randomisation, at least two headlines, at least one click), ``n_tests`` at random.

    Rows of one headline that differ in the picture only are arms of their own, as they were shown.

    Raises
    ------
    ValueError
        If a column is missing or fewer valid tests are there than asked for.
    """
    frame = pd.read_parquet(path)
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise ValueError(f"{path.name} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}")
    frame = frame[~frame["randomization_suspect_week"] & (frame["impressions"] > 0)]
    grouped = frame.groupby("clickability_test_id", sort=True)[["impressions", "clicks"]]
    tests = [
        (group["impressions"].to_numpy(np.int64), group["clicks"].to_numpy(np.int64))
        for _, group in grouped
        if len(group) > 1 and group["clicks"].sum() > 0
    ]
    if n_tests is not None:
        if n_tests > len(tests):
            raise ValueError(f"{path.name} has {len(tests)} valid tests, not {n_tests}; ask for fewer")
        chosen = np.random.default_rng(seed).choice(len(tests), n_tests, replace=False)
        tests = [tests[i] for i in sorted(chosen)]
    width = max((len(impressions) for impressions, _ in tests), default=0)
    shape = (len(tests), width)
    impressions, clicks = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for i, (shown, clicked) in enumerate(tests):
        impressions[i, : len(shown)], clicks[i, : len(shown)] = shown, clicked
    return HeadlineTests(impressions, clicks, impressions > 0)


def draw_true_rates(tests: HeadlineTests, rng: np.random.Generator, concentration: float = CONCENTRATION) -> FloatArray:
    """A true rate of every headline, shape (n_tests, n_arms): Beta(m k + clicks, (1 - m) k + impressions - clicks).

    ``m`` is the test's own rate. Padding gets rate 0.

    References
    ----------
    Efron (2010), "Large-Scale Inference", chapter 1 (empirical Bayes).
    """
    mean = (tests.clicks.sum(axis=1) / tests.impressions.sum(axis=1))[:, None]
    alpha = concentration * mean + tests.clicks
    beta = concentration * (1 - mean) + tests.impressions - tests.clicks
    return np.where(tests.is_arm, rng.beta(alpha, beta), 0.0)


def earned(
    policy: BetaBernoulliThompson, rates: FloatArray, is_arm: NDArray[np.bool_], n_sends: int, n_batches: int,
    rng: np.random.Generator, *, n_draws: int = 100,
) -> FloatArray:  # fmt: skip
    """Expected clicks of each test, shape (n_tests,): equal batches, each allocated by what came before.

    An arm's share of a batch is the share of ``n_draws`` draws from the policy's posterior that it wins, not the
    quadrature that a snapshot takes: hundreds of tests in dozens of batches are thirty times as fast so, and the mean
    is the same.
    """
    sizes = np.diff(np.round(np.linspace(0, n_sends, n_batches + 1)).astype(np.int64))
    total = np.zeros(len(rates))
    for n_arms in np.unique(is_arm.sum(axis=1)):
        rows = np.flatnonzero(is_arm.sum(axis=1) == n_arms)
        truth = rates[rows, :n_arms]
        trials = np.zeros((len(rows), n_arms, 1), dtype=np.int64)
        clicks, age = np.zeros_like(trials), np.full(trials.shape, 1.0)
        for batch, size in enumerate(sizes):
            if batch:
                alpha, beta = policy.posterior(trials, clicks, age)
                winners = rng.beta(alpha, beta, (n_draws, *alpha.shape)).argmax(axis=-1)
                shares = (winners[..., None] == np.arange(n_arms)).mean(axis=0)
            else:
                shares = np.full(truth.shape, 1.0 / n_arms)
            total[rows] += size * (shares * truth).sum(axis=1)
            shown = rng.multinomial(size, shares)
            trials[..., 0] += shown
            clicks[..., 0] += rng.binomial(shown, truth)
    return total


def earned_by_split(
    rates: FloatArray, is_arm: NDArray[np.bool_], n_sends: int, share: float, rng: np.random.Generator
) -> FloatArray:
    """Expected clicks of a split test on ``share`` of the sends whose winner gets the rest, shape (n_tests,)."""
    n_arms = is_arm.sum(axis=1)
    tested = round(share * n_sends)
    pvals = is_arm / n_arms[:, None]
    shown = rng.multinomial(tested, pvals)
    clicks = rng.binomial(shown, rates)
    observed = np.where(is_arm, clicks / np.maximum(shown, 1) + 1e-9 * rng.random(rates.shape), -1.0)
    winner = np.take_along_axis(rates, observed.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.asarray(tested * (rates * pvals).sum(axis=1) + (n_sends - tested) * winner, dtype=np.float64)


def headlines_report(
    tests: HeadlineTests, *, sends: tuple[int, ...] = (2_000, 10_000, 50_000), draws: int = 20, seed: int = 0
) -> dict[str, Any]:
    """Share of (oracle - uniform) that each way of sending captures, with 95 % intervals over tests.

    The share is that of all tests together: gains added up, over gaps added up. Its interval comes from 1,000
    bootstrap samples of tests, each with all of its noise draws.

    Parameters
    ----------
    tests : HeadlineTests
    sends : tuple of int
        Recipients of a test.
    draws : int
        True rates and clicks drawn anew.
    """
    ways: Mapping[str, tuple[BetaBernoulliThompson, int] | float] = {
        "uniform": (FLAT, 1),
        "split 20 %": 0.2,
        "split 50 %": 0.5,
        "thompson, 10 batches": (FLAT, 10),
        "thompson, pooled prior, 10 batches": (POOLED, 10),
        "thompson, 50 batches": (FLAT, 50),
        "thompson, pooled prior, 50 batches": (POOLED, 50),
    }
    rng = np.random.default_rng(seed)
    gains = np.zeros((len(sends), len(ways), draws, len(tests)))
    gaps = np.zeros((len(sends), draws, len(tests)))
    for draw in range(draws):
        rates = draw_true_rates(tests, rng)
        uniform = rates.sum(axis=1) / tests.is_arm.sum(axis=1)
        for i, n in enumerate(sends):
            gaps[i, draw] = n * (rates.max(axis=1) - uniform)
            for j, way in enumerate(ways.values()):
                clicks = (
                    earned_by_split(rates, tests.is_arm, n, way, rng)
                    if isinstance(way, float)
                    else earned(way[0], rates, tests.is_arm, n, way[1], rng)
                )
                gains[i, j, draw] = clicks - n * uniform
    weights = rng.multinomial(len(tests), np.full(len(tests), 1 / len(tests)), size=1000)
    rows = []
    for i, n in enumerate(sends):
        gap = gaps[i].sum(axis=0)
        for j, name in enumerate(ways):
            gain = gains[i, j].sum(axis=0)
            sampled = (weights @ gain) / (weights @ gap)
            by_draw = gains[i, j].sum(axis=1) / gaps[i].sum(axis=1)
            low, high = np.quantile(sampled, [0.025, 0.975])
            rows.append(
                {
                    "sends": n, "way": name, "captured": float(gain.sum() / gap.sum()),
                    "low": float(low), "high": float(high),
                    "standard_error_of_noise": float(by_draw.std(ddof=1) / np.sqrt(draws)) if draws > 1 else None,
                }
            )  # fmt: skip
    rate = float((tests.clicks.sum(axis=1) / tests.impressions.sum(axis=1)).mean())
    return {"tests": len(tests), "draws": draws, "mean_rate": rate, "captured": rows}
