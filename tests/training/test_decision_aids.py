"""Posterior chances, the stop rule and winners without their luck."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training.batches import Batches, InverseSums
from training.decision_aids import DecisionAid, decision_aid, posterior_draws, shrink, shrunk_means
from training.inference import Plan
from training.inference_worlds import winners


def test_a_good_hour_is_not_a_good_arm() -> None:
    """Arm b was shown in the good hour; within each batch both arms answered alike."""
    trials = np.array([[9000, 1000], [1000, 9000]])
    clicks = np.array([[900, 100], [300, 2700]])
    pmf = trials / trials.sum(axis=1, keepdims=True)
    for squares in (clicks, clicks * 2.0):
        draws = posterior_draws(Batches.of(("a", "b"), pmf, trials, clicks, squares))
        assert 0.3 < decision_aid(("a", "b"), draws).probability_best[1] < 0.7


def contextual(effect: float, seed: int, size: int = 4000) -> Batches:
    """Eager contacts are shown arm b, where it does more; the others arm a, where b does less: 90 to 10."""
    rng = np.random.default_rng(seed)
    n_batches = 5
    batch = np.repeat(np.arange(n_batches), size)
    is_eager = rng.random(len(batch)) < 0.5
    p_b = np.where(is_eager, 0.9, 0.1)
    arm = (rng.random(len(batch)) < p_b).astype(int)
    p = np.where(arm == 1, p_b, 1 - p_b)
    rate = np.where(is_eager, 0.3, 0.1) + arm * (effect + np.where(is_eager, 0.05, -0.05))
    reward = (rng.random(len(batch)) < rate).astype(float)

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(2 * batch + arm, values, 2 * n_batches).reshape(n_batches, 2)

    over = [1 / p, reward / p, reward / p, 1 / p**2, reward / p**2, reward / p**2]
    inverse = InverseSums(*(summed(values) for values in over), least=np.array([0.1, 0.1]))
    trials = summed(np.ones(len(batch)))
    return Batches.of(("a", "b"), trials / trials.sum(axis=1, keepdims=True), trials, summed(reward), inverse=inverse)


def test_an_arm_that_eager_contacts_were_shown_is_not_a_good_arm() -> None:
    """Its average effect is 0; sums of the same batches are sure of it."""
    for seed in range(6):
        batches = contextual(0.0, seed)
        chance = decision_aid(batches.arms, posterior_draws(batches)).probability_best[1]
        assert 0.03 < chance < 0.97, (seed, chance)
        sums_only = replace(batches, inverse=None)
        assert decision_aid(batches.arms, posterior_draws(sums_only)).probability_best[1] > 0.999
        for effect in (-0.05, 0.05):
            found = decision_aid(batches.arms, posterior_draws(contextual(effect, seed)))
            assert found.leader == ("b" if effect > 0 else "a")
            assert max(found.probability_best) > 0.98


def test_with_few_successes_and_propensities_of_each_contact_there_is_no_posterior() -> None:
    with pytest.raises(ValueError, match="too early: "):
        posterior_draws(contextual(0.0, 0, size=15))


def test_chances_sum_to_one_the_leader_loses_least_and_more_evidence_is_surer() -> None:
    def aid(scale: int) -> DecisionAid:
        batches = Batches.of(
            ("a", "b", "c"), [[1 / 3] * 3], [[1000 * scale] * 3], [[200 * scale, 215 * scale, 190 * scale]]
        )
        return decision_aid(batches.arms, posterior_draws(batches))

    little, much = aid(1), aid(30)
    for found in (little, much):
        assert sum(found.probability_best) == pytest.approx(1.0)
        assert found.leader == "b"
        assert np.argmin(found.expected_loss) == 1
        assert "not error-controlled" in found.label
    assert not little.may_stop
    assert much.may_stop
    assert much.value_remaining < little.value_remaining


def test_rates_posterior_of_a_single_batch_is_the_beta_posterior() -> None:
    batches = Batches.of(("a", "b"), [[0.5, 0.5]], [[5000, 5000]], [[500, 550]])
    draws = posterior_draws(batches, 40_000)
    rng = np.random.default_rng(1)
    beta = rng.beta([501, 551], [4501, 4451], (40_000, 2))
    assert (draws[:, 1] > draws[:, 0]).mean() == pytest.approx((beta[:, 1] > beta[:, 0]).mean(), abs=0.01)


def test_money_posterior_of_a_single_batch_is_the_normal_one() -> None:
    batches = Batches.of(("a", "b"), [[0.5, 0.5]], [[5000, 5000]], [[5000, 5200]], [[30_000, 31_000]])
    draws = posterior_draws(batches, 40_000)
    gap = draws[:, 1] - draws[:, 0]
    variance = 61_000 / 10_000 - 1.02**2
    assert gap.mean() == pytest.approx(0.04, abs=0.002)
    assert gap.std() == pytest.approx(np.sqrt(2 * variance / 5000), rel=0.03)


def test_the_best_arms_shrunk_lift_is_unbiased_where_the_raw_one_is_not() -> None:
    """300 experiments of four arms, after 100 others; `kairos simulate reports` has more."""
    won = winners(300, seed=3, n_past=100)
    error = won.shrunk.std(ddof=1) / np.sqrt(len(won.shrunk))
    assert abs(won.shrunk.mean()) <= 2 * error
    assert won.raw.mean() > 5 * won.raw.std(ddof=1) / np.sqrt(len(won.raw))
    assert won.covered.mean() >= 0.93


def test_alone_an_experiment_shrinks_most_of_the_winners_luck_away() -> None:
    won = winners(200, seed=4, n_past=0, n_arms=3)
    assert abs(won.shrunk.mean()) < 0.5 * won.raw.mean()


def test_arms_alike_collapse_and_arms_apart_stay() -> None:
    alike = shrink([0.20, 0.201, 0.199], [0.01] * 3)
    apart = shrink([0.10, 0.20, 0.30], [0.002] * 3)
    assert np.ptp(alike.estimate) < 0.5 * 0.002
    np.testing.assert_allclose(apart.estimate, [0.10, 0.20, 0.30], atol=0.001)
    assert np.all((apart.lower < apart.estimate) & (apart.estimate < apart.upper))


def test_shrunk_means_are_over_the_batches_that_all_arms_were_open_to() -> None:
    pmf = [[1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]
    trials, sums = [[5000, 0], [2500, 2500], [2500, 2500]], [[4000, 0], [500, 550], [500, 550]]
    found = shrunk_means(Batches.of(("a", "b"), pmf, trials, sums), Plan.for_rate(10_000, 0.2))
    assert found is not None
    assert 0.199 < found.estimate[0] < found.estimate[1] < 0.221
    few = Batches.of(("a", "b"), [[0.5, 0.5]], [[100, 100]], [[10, 40]])
    assert shrunk_means(few, Plan.for_rate(10_000, 0.2)) is None


@pytest.mark.parametrize("errors", [[0.1], [0.1, 0.0], [0.1, -1.0]])
def test_estimates_without_errors_are_refused(errors: list[float]) -> None:
    with pytest.raises(ValueError, match="error above 0"):
        shrink([0.2, 0.3], errors)
