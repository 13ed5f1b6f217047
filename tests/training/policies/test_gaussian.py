"""Thompson sampling on revenue: the quadrature, the comparison within waves, heavy tails, units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.policies import DelayCdf, GaussianThompson, ValueStatistics
from training.policies.gaussian import probability_largest

AT_ONCE = DelayCdf(median_hours=1e-6)


def table(rng: np.random.Generator, trials: np.ndarray, rate: np.ndarray, mean_order: np.ndarray) -> ValueStatistics:
    """Orders of a lognormal with a coefficient of variation of 1.3."""
    n = rng.binomial(trials, rate)
    worth = [rng.lognormal(-0.5, 1.0, size) * m for size, m in zip(n.ravel(), mean_order.ravel(), strict=True)]
    sums = np.array([cell.sum() for cell in worth]).reshape(n.shape)
    squares = np.array([(cell**2).sum() for cell in worth]).reshape(n.shape)
    return ValueStatistics(tuple("abcde"[: len(n)]), trials, n, sums, squares, np.full(n.shape, 99.0))


@pytest.mark.parametrize(
    ("mean", "scale", "freedom"),
    [
        ([1.0, 1.2, 0.9], [0.1, 0.2, 0.05], [20.0, 40.0, 200.0]),
        ([0.0, 0.0], [1.0, 30.0], [25.0, 25.0]),
        ([5.0, 5.1, 5.2, 5.0, 4.0], [0.1, 0.1, 0.1, 1.0, 0.01], [20.0, 30.0, 40.0, 50.0, 1e6]),
    ],
)
def test_probability_largest_agrees_with_a_million_draws(mean: list, scale: list, freedom: list) -> None:
    n, rng = 1_000_000, np.random.default_rng(0)
    draws = np.array(mean) + np.array(scale) * rng.standard_t(np.array(freedom), (n, len(mean)))
    counts = np.bincount(np.argmax(draws, axis=1), minlength=len(mean))
    q = probability_largest(np.array(mean), np.array(scale), np.array(freedom))
    z = (counts - n * q) / np.sqrt(np.maximum(n * q * (1 - q), 1.0))
    assert np.abs(z).max() < 4


def test_the_currency_means_nothing() -> None:
    rng = np.random.default_rng(1)
    euros = table(rng, np.full((3, 4), 2000), np.full((3, 4), 0.03), np.full((3, 4), 40.0))
    cents = replace(euros, sums=euros.sums * 100, squares=euros.squares * 1e4)
    np.testing.assert_allclose(GaussianThompson().pmf(cents), GaussianThompson().pmf(euros), atol=1e-9)


def test_one_enormous_order_does_not_win_the_test() -> None:
    """Equal arms but for a single order of two hundred times the mean: its arm leads, but is not sure."""
    rng = np.random.default_rng(2)
    even = table(rng, np.full((2, 4), 5000), np.full((2, 4), 0.02), np.full((2, 4), 40.0))
    sums, squares = even.sums.copy(), even.squares.copy()
    sums[0, 0] += 200 * 40.0
    squares[0, 0] += (200 * 40.0) ** 2
    pmf = GaussianThompson().pmf(replace(even, sums=sums, squares=squares))
    assert 0.5 < pmf[0] < 0.9
    # The same money spread over many orders is evidence.
    many = replace(even, successes=even.successes + np.array([[50], [0]]), sums=even.sums + np.array([[2000.0], [0.0]]),
                   squares=even.squares + np.array([[80_000.0], [0.0]]))  # fmt: skip
    assert GaussianThompson().pmf(many)[0] > pmf[0]


def test_a_good_hour_is_not_a_good_arm() -> None:
    """Equal arms, the first shown mostly in a wave with twice the revenue: sums alone would prefer it."""
    trials = np.array([[90_000, 10_000], [10_000, 90_000]])
    orders = trials * np.array([4, 2]) // 100
    seen = ValueStatistics(("a", "b"), trials, orders, orders * 40.0, orders * 3200.0, np.full((2, 2), 99.0))
    np.testing.assert_allclose(GaussianThompson().pmf(seen), 0.5, atol=0.1)
    assert GaussianThompson(wave_concentration=1e9).pmf(seen)[0] > 0.9


def test_a_mail_that_may_still_earn_is_not_a_failure() -> None:
    due = float(DelayCdf()(2.0))
    trials = np.array([[10_000, 0], [0, 10_000]])
    orders = np.array([[400, 0], [0, int(400 * due)]])
    age = np.array([[1000.0, 2.0], [1000.0, 2.0]])
    seen = ValueStatistics(("old", "new"), trials, orders, orders * 40.0, orders * 3200.0, age)
    pooled = GaussianThompson(wave_concentration=1e9)
    np.testing.assert_allclose(pooled.pmf(seen), 0.5, atol=0.03)
    assert replace(pooled, delay=AT_ONCE).pmf(seen)[1] < 0.06


def test_with_few_rewards_the_split_is_uniform_and_says_so() -> None:
    orders = np.array([[5], [30]])
    seen = ValueStatistics(("a", "b"), [[900], [900]], orders, orders * 40.0, orders * 3200.0, np.full((2, 1), 99.0))
    policy = GaussianThompson()
    assert policy.pmf(seen).tolist() == [0.5, 0.5]
    assert policy.allocate(seen).reason == "uniform: 35 rewards so far, 40 needed"


def test_refunds_may_make_a_sum_negative() -> None:
    rng = np.random.default_rng(3)
    seen = table(rng, np.full((2, 3), 3000), np.full((2, 3), 0.03), np.full((2, 3), 40.0))
    pmf = GaussianThompson().pmf(replace(seen, sums=seen.sums * np.array([[1.0], [-0.2]])))
    assert pmf[0] == pytest.approx(0.95, abs=0.01)


def test_scales_are_those_of_repeated_experiments() -> None:
    """Untempered, the posterior's scale of an arm's mean is the spread that the mean shows over 400 repetitions."""
    rng = np.random.default_rng(4)
    policy = GaussianThompson(temper=1.0, wave_concentration=1e9, delay=AT_ONCE)
    means, scales = [], []
    for _ in range(400):
        seen = table(rng, np.full((2, 2), 2500), np.full((2, 2), 0.05), np.full((2, 2), 40.0))
        mean, scale, _ = policy.posterior(seen.trials, seen.successes, seen.sums, seen.squares, seen.age_hours)
        means.append(mean)
        scales.append(scale)
    assert np.mean(scales) == pytest.approx(np.std(means, ddof=1), rel=0.1)
    np.testing.assert_allclose(np.mean(means, axis=0), 0.05 * 40.0, atol=4 * np.mean(scales) / 20)


def test_arms_alike_stay_near_even_and_a_better_one_wins() -> None:
    """Tables of 20,000 mails at 3 %: outside 10-90 % in at most 5 % of 200; revenue + 30 % gets most."""
    rng = np.random.default_rng(5)
    policy = GaussianThompson()
    trials, rate = np.full((2, 5), 2000), np.full((2, 5), 0.03) * np.array([1.3, 0.8, 1.0, 0.7, 1.2])
    alike = np.array([policy.pmf(table(rng, trials, rate, np.full((2, 5), 40.0)))[0] for _ in range(200)])
    assert np.mean(np.abs(alike - 0.5) > 0.4) <= 0.05
    better = [policy.pmf(table(rng, trials, rate, np.array([[40.0], [52.0]]) * np.ones(5)))[1] for _ in range(50)]
    assert np.mean(better) > 0.75


@pytest.mark.parametrize("parameters", [{"floor": 0.6}, {"temper": 0.0}, {"half_life_days": 0.0}])
def test_parameters_out_of_range_are_refused(parameters: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(parameters.values())))):
        GaussianThompson(**parameters)


@pytest.mark.parametrize(
    ("sums", "squares", "says"),
    [([[np.nan], [0.0]], [[1.0], [0.0]], "not finite"), ([[9.0], [0.0]], [[1.0], [0.0]], "no rewards have these sums"),
     ([[1.0, 2.0], [0.0, 0.0]], [[1.0], [0.0]], "shape")],
)  # fmt: skip
def test_impossible_rewards_are_refused(sums: list, squares: list, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ValueStatistics(("a", "b"), [[5], [5]], [[1], [0]], sums, squares, [[1.0], [1.0]])
