"""Thompson sampling: the quadrature, the delay, the comparison within waves."""

from __future__ import annotations

import numpy as np
import pytest
from river import bandit, proba

from training.policies import ArmStatistics, BetaBernoulliThompson, DelayCdf, choose
from training.policies.thompson import probability_best, probability_settled
from training.policies.waves import design_effect, fit_waves


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [
        ([2.0, 3.0, 50.0], [5.0, 5.0, 200.0]),
        ([1.0, 400.0], [4.0, 1500.0]),
        ([1.0, 1.0, 1e4], [99.0, 9.0, 9e4]),
        ([200.0, 201.0, 190.0, 205.0, 1.0], [800.0, 799.0, 810.0, 800.0, 3.0]),
    ],
)
def test_probability_best_agrees_with_a_million_posterior_draws(alpha: list[float], beta: list[float]) -> None:
    n, rng = 1_000_000, np.random.default_rng(0)
    winners = np.argmax(rng.beta(np.array(alpha), np.array(beta), (n, len(alpha))), axis=1)
    q = probability_best(np.array(alpha), np.array(beta))
    counts = np.bincount(winners, minlength=len(alpha))
    z = (counts - n * q) / np.sqrt(np.maximum(n * q * (1 - q), 1.0))
    assert np.abs(z).max() < 4


@pytest.mark.parametrize(
    ("alpha", "beta"), [([900.0, 850.0, 20.0], [3600.0, 3600.0, 90.0]), ([5000.0, 4200.0], [20_000.0, 20_000.0])]
)
def test_probability_settled_agrees_with_a_million_posterior_draws(alpha: list[float], beta: list[float]) -> None:
    n, rng = 1_000_000, np.random.default_rng(1)
    draws = rng.beta(np.array(alpha), np.array(beta), (n, len(alpha)))
    leader = int(np.argmax(np.array(alpha) / (np.array(alpha) + np.array(beta))))
    remaining = draws.max(axis=1) / draws[:, leader] - 1
    p = float(probability_settled(np.array(alpha), np.array(beta)))
    assert abs((remaining <= 0.01).sum() - n * p) < 4 * np.sqrt(n * p * (1 - p) + 1)


def test_the_floor_drops_once_little_value_remains() -> None:
    policy = BetaBernoulliThompson(decided_floor=0.01)

    def after(n: int) -> np.ndarray:
        return policy.pmf(ArmStatistics(("a", "b"), [[n], [n]], [[n // 5], [n // 4]], [[99.0], [99.0]]))

    assert after(500).min() >= 0.05
    assert after(20_000).min() == pytest.approx(0.01, abs=1e-6)
    assert policy.floor_of(2) == 0.01
    details = policy.allocate(ArmStatistics.empty(("a", "b"))).details
    assert details["floor"] == 0.05


def test_half_life_weighs_a_wave_of_that_age_half() -> None:
    policy = BetaBernoulliThompson(half_life_days=2.0, delay=DelayCdf(median_hours=1e-9))
    np.testing.assert_allclose(
        policy.exposure(np.array([100, 100, 100]), np.array([0.01, 48.0, 96.0])), [100, 50, 25], rtol=1e-3
    )


def test_a_short_memory_follows_a_change_that_a_long_one_misses() -> None:
    """Two months in which the first arm won, then a week in which the second does."""
    age = np.array([[24.0 * d for d in range(67, 0, -1)]] * 2)
    trials = np.full(age.shape, 400)
    rate = np.where(np.arange(67) < 60, [[0.24], [0.20]], [[0.20], [0.24]])
    seen = ArmStatistics(("a", "b"), trials, (trials * rate).astype(int), age)
    assert BetaBernoulliThompson().pmf(seen)[0] > 0.9
    assert BetaBernoulliThompson(half_life_days=4.0).pmf(seen)[1] > 0.75


def test_a_pooled_prior_shrinks_what_few_clicks_say() -> None:
    """Ten clicks against twenty of 1,000: by past headlines such a gap is mostly luck."""
    seen = ArmStatistics(("a", "b"), [[1000], [1000]], [[10], [20]], [[99.0], [99.0]])
    flat = BetaBernoulliThompson(minimum_successes=0, floor=0.0, temper=1.0)
    pooled = BetaBernoulliThompson(minimum_successes=0, floor=0.0, temper=1.0, prior_concentration=2205.0)
    assert flat.pmf(seen)[1] > 0.96
    assert 0.7 < pooled.pmf(seen)[1] < 0.9
    alpha, beta = pooled.posterior(seen.trials, seen.successes, seen.age_hours)
    np.testing.assert_allclose(alpha + beta, 2205 + 1000, rtol=1e-3)
    named = BetaBernoulliThompson(prior_rate=0.02, prior_concentration=2205.0, minimum_successes=0)
    alpha, beta = named.posterior(seen.trials * 0, seen.successes * 0, seen.age_hours)
    np.testing.assert_allclose(alpha, 0.02 * 2205)
    np.testing.assert_allclose(alpha + beta, 2205)


def test_a_design_effect_of_two_is_half_the_evidence() -> None:
    once = ArmStatistics(("a", "b"), [[500], [500]], [[100], [130]], [[99.0], [99.0]])
    twice = ArmStatistics(("a", "b"), [[1000], [1000]], [[200], [260]], [[99.0], [99.0]])
    np.testing.assert_allclose(BetaBernoulliThompson(design_effect=2.0).pmf(twice), BetaBernoulliThompson().pmf(once))


def test_the_design_effect_is_that_of_the_count_it_is_for() -> None:
    """Contacts of unlike rates with one to twenty mails: variance of the total over that of independent mails."""
    rng = np.random.default_rng(3)
    n = rng.integers(1, 21, 3000)
    totals, measured = [], []
    for _ in range(400):
        s = rng.binomial(n, rng.beta(0.8, 3.2, len(n)))
        totals.append(s.sum())
        measured.append(design_effect(n, s))
    assert np.mean(measured) == pytest.approx(np.var(totals) / (n.sum() * 0.2 * 0.8), rel=0.2)
    independent = [design_effect(n, rng.binomial(n, 0.2)) for _ in range(50)]
    assert np.mean(independent) < 1.1
    with pytest.raises(ValueError, match="29 contacts are too few"):
        design_effect(n[:29], n[:29] * 0)


def test_probability_best_is_exact_where_a_closed_form_exists() -> None:
    """P(X > Y) of Beta(a, 1) and Beta(b, 1) is a / (a + b)."""
    for a, b in ((1.0, 1.0), (3.0, 1.0), (40.0, 2.0), (5.0, 5.0)):
        q = probability_best(np.array([a, b]), np.array([1.0, 1.0]))
        np.testing.assert_allclose(q, [a / (a + b), b / (a + b)], atol=1e-8)


def test_a_mail_that_may_still_be_opened_is_not_a_failure() -> None:
    """An arm with fresh mail only and as many opens as its age allows stands equal to an old one."""
    due = DelayCdf()(2.0)
    trials = np.array([[10_000, 0], [0, 10_000]])
    successes = np.array([[2000, 0], [0, int(2000 * due)]])
    age = np.array([[1000.0, 2.0], [1000.0, 2.0]])
    pooled = BetaBernoulliThompson(wave_concentration=1e9)
    waiting = pooled.pmf(ArmStatistics(("old", "new"), trials, successes, age))
    np.testing.assert_allclose(waiting, 0.5, atol=0.02)
    impatient = BetaBernoulliThompson(wave_concentration=1e9, delay=DelayCdf(median_hours=1e-6))
    assert impatient.pmf(ArmStatistics(("old", "new"), trials, successes, age))[1] < 0.06


def test_a_good_hour_is_not_a_good_arm() -> None:
    """Equal arms, the first shown mostly in a wave with twice the base rate: counts alone would prefer it."""
    trials = np.array([[9000, 1000], [1000, 9000]])
    statistics = ArmStatistics(("a", "b"), trials, trials * np.array([4, 2]) // 10, np.full((2, 2), 99.0))
    np.testing.assert_allclose(BetaBernoulliThompson().pmf(statistics), 0.5, atol=0.05)
    assert BetaBernoulliThompson(wave_concentration=1e9).pmf(statistics)[0] > 0.94


def test_a_wave_of_one_arm_only_compares_nothing() -> None:
    fit = fit_waves(np.array([[5000.0, 0.0], [0.0, 5000.0]]), np.array([[1500, 0], [0, 500]]), 10.0)
    assert fit.information.max() < 0.02


def test_one_wave_and_waves_of_one_trial_keep_all_their_information() -> None:
    one = fit_waves(np.array([[500.0], [300.0]]), np.array([[100], [70]]), 10.0)
    np.testing.assert_allclose(one.information, 1.0)
    np.testing.assert_allclose(one.effective_trials, [500, 300], rtol=1e-6)
    rng = np.random.default_rng(0)
    arm = rng.integers(0, 2, 1000)
    exposure = (arm == np.arange(2)[:, None]).astype(np.float64)
    single = fit_waves(exposure, (exposure * (rng.random(1000) < 0.2)).astype(np.int64), 10.0)
    assert single.information.min() > 0.97


def test_arm_effects_within_waves_are_those_of_the_conditional_likelihood() -> None:
    """With free wave levels the fit solves sum_w s_w p_kw(theta) = s_k, the likelihood given the waves' totals."""
    rng = np.random.default_rng(1)
    exposure = rng.uniform(100, 2000, (3, 6))
    successes = rng.poisson(exposure * np.array([[0.1], [0.12], [0.2]]) * rng.uniform(0.5, 2, 6))
    fit = fit_waves(exposure, successes, 1e-9)
    theta = successes.sum(axis=1) / fit.effective_trials
    share = exposure * theta[:, None] / (exposure * theta[:, None]).sum(axis=0)
    np.testing.assert_allclose((successes.sum(axis=0) * share).sum(axis=1), successes.sum(axis=1), rtol=1e-6)


def test_a_small_list_stays_uniform_and_says_so() -> None:
    policy = BetaBernoulliThompson()
    few = ArmStatistics(("a", "b"), np.array([[50], [50]]), np.array([[2], [20]]), np.full((2, 1), 24.0))
    assert policy.pmf(few).tolist() == [0.5, 0.5]
    assert policy.reason(few) == "uniform: 22 successes so far, 40 needed"


def test_zero_floor_and_no_temper_is_pure_thompson() -> None:
    statistics = ArmStatistics(("a", "b"), np.array([[1000], [1000]]), np.array([[200], [215]]), np.full((2, 1), 1e6))
    policy = BetaBernoulliThompson(floor=0.0, temper=1.0)
    rate = 415 / 2000
    expected = probability_best(np.array([201.0, 216.0]), np.array([800.0, 785.0]) + 1 / rate - 1)
    np.testing.assert_allclose(policy.pmf(statistics), expected, atol=1e-6)


def test_the_default_floor_gives_exploration_at_most_a_fifth() -> None:
    policy = BetaBernoulliThompson()
    assert [policy.floor_of(k) for k in (2, 3, 4, 5, 10)] == [0.05, 0.05, 0.05, 0.04, 0.02]


@pytest.mark.parametrize(
    "parameters",
    [
        {"floor": 0.6}, {"floor": -0.1}, {"temper": 0.0}, {"temper": 1.5}, {"prior_successes": 0.0},
        {"wave_concentration": np.inf}, {"minimum_successes": -1.0}, {"half_life_days": 0.0}, {"minimum_per_arm": -2.0},
        {"maximum_change": 0.0}, {"design_effect": 0.5}, {"decided_floor": 0.7}, {"prior_concentration": 0.0},
        {"prior_rate": 1.5, "prior_concentration": 10.0}, {"prior_rate": 0.02},
    ],
)  # fmt: skip
def test_parameters_out_of_range_are_refused(parameters: dict) -> None:
    with pytest.raises(ValueError, match=str(next(iter(parameters.values())))):
        BetaBernoulliThompson(**parameters)


def test_the_delay_is_measured_through_censoring() -> None:
    """Kaplan-Meier on trials of which many are too young to have been answered, and most never will be."""
    rng = np.random.default_rng(0)
    n, truth = 40_000, DelayCdf(median_hours=2.0, sigma=0.8)
    age = rng.uniform(0, 72, n)
    delay = np.where(rng.random(n) < 0.25, rng.lognormal(np.log(2.0), 0.8, n), np.nan)
    seen = np.where(delay <= age, delay, np.nan)
    measured = DelayCdf.from_delays(seen, age)
    at = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 24.0])
    np.testing.assert_allclose(measured(at), truth(at), atol=0.02)
    naive = np.array([(seen[np.isfinite(seen)] <= t).mean() for t in at])
    assert np.abs(measured(at) - truth(at)).max() < np.abs(naive - truth(at)).max()


def test_too_few_answers_measure_no_delay() -> None:
    with pytest.raises(ValueError, match="29 answers are too few"):
        DelayCdf.from_delays(np.ones(29), np.full(29, 5.0))


@pytest.mark.parametrize("knots", [((1.0, 0.5), (2.0, 0.4)), ((1.0, 1.2),), ((2.0, 0.1), (1.0, 0.2)), ((1.0, np.nan),)])
def test_a_delay_curve_that_falls_is_refused(knots: tuple) -> None:
    with pytest.raises(ValueError, match="must rise"):
        DelayCdf(knots=knots)


def rivers_reward(learner: bandit.base.Policy, rates: np.ndarray, coins: np.ndarray) -> float:
    """Expected reward a round of one of River's bandits, told of every answer at once."""
    earned = 0.0
    for coin in coins:
        arm = learner.pull(range(len(rates)))
        learner.update(arm, float(coin < rates[arm]))
        earned += rates[arm]
    return earned / len(coins)


def test_mean_reward_is_not_below_rivers_bandits() -> None:
    """Stationary arms, answers at once: the policy on snapshots every 50 rounds against River's on every round."""
    rates, rounds, batch, worlds = np.array([0.1, 0.15, 0.2, 0.25, 0.3]), 3000, 50, 8
    policy = BetaBernoulliThompson(floor=0.001, minimum_successes=1, delay=DelayCdf(median_hours=1e-6))
    to_thompson, to_ucb = [], []
    for world in range(worlds):
        rng = np.random.default_rng(world)
        coins = rng.random(rounds)
        thompson = rivers_reward(bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=world), rates, coins)
        ucb = rivers_reward(bandit.UCB(delta=1, seed=world), rates, coins)
        trials, successes = np.zeros((5, 0), dtype=np.int64), np.zeros((5, 0), dtype=np.int64)
        ours = 0.0
        for _ in range(rounds // batch):
            pmf = policy.pmf(ArmStatistics(tuple("abcde"), trials, successes, np.ones(trials.shape)))
            shown = np.bincount(choose(pmf, rng.random(batch)), minlength=5)
            trials = np.concatenate([trials, shown[:, None]], axis=1)
            successes = np.concatenate([successes, rng.binomial(shown, rates)[:, None]], axis=1)
            ours += float(shown @ rates) / rounds
        to_thompson.append(ours - thompson)
        to_ucb.append(ours - ucb)
    for difference in (to_thompson, to_ucb):
        assert np.mean(difference) > -3 * np.std(difference, ddof=1) / np.sqrt(worlds) - 0.002, difference
