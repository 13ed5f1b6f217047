"""Confidence sequences over batches: they equal what the rows say, and refuse what cannot be said."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import pytest

from training.batches import Batches, InverseSums
from training.inference import (
    Plan,
    against_holdout,
    against_uniform,
    arm_mean,
    boundary,
    compare,
    difference,
    mixture_rho,
    overlap,
    rare_rate,
    relative_lift,
)

PLAN = Plan.for_rate(20_000, 0.2)


@dataclass
class Rows:
    """Decisions one by one, to check the sums against."""

    batch: np.ndarray
    arm: np.ndarray
    reward: np.ndarray
    propensity: np.ndarray
    batches: Batches


def drawn(
    rates: tuple[float, ...], pmf: np.ndarray, size: int, seed: int, *, money: bool = False, vary: float = 0.0
) -> Rows:
    """Rows drawn batch by batch; ``vary`` gives each row a pmf of its own around its batch's."""
    rng = np.random.default_rng(seed)
    n_batches, n_arms = pmf.shape
    batch = np.repeat(np.arange(n_batches), size)
    own = pmf[batch] * np.exp(rng.normal(0, vary, (len(batch), n_arms)))
    own /= own.sum(axis=1, keepdims=True)
    arm = (rng.random(len(batch))[:, None] > np.cumsum(own, axis=1)).sum(axis=1)
    propensity = own[np.arange(len(batch)), arm]
    reward = (rng.random(len(batch)) < np.asarray(rates)[arm]).astype(float)
    if money:
        reward *= rng.gamma(2.0, 15.0, len(batch))

    def summed(values: np.ndarray) -> np.ndarray:
        return np.bincount(batch * n_arms + arm, values, n_batches * n_arms).reshape(n_batches, n_arms)

    ones = np.ones(len(batch))
    inverse = InverseSums(
        *(summed(y / propensity) for y in (ones, reward, reward**2)),
        *(summed(y / propensity**2) for y in (ones, reward, reward**2)),
        least=np.array([propensity[arm == k].min(initial=1.0) for k in range(n_arms)]),
    )
    batches = Batches.of(
        tuple("abcd"[:n_arms]), pmf if not vary else _means(own, batch), summed(ones), summed(reward),
        summed(reward**2), inverse=inverse if vary else None,
    )  # fmt: skip
    return Rows(batch, arm, reward, propensity, batches)


def _means(own: np.ndarray, batch: np.ndarray) -> np.ndarray:
    return np.stack([own[batch == t].mean(axis=0) for t in np.unique(batch)])


LOPSIDED = np.array([[0.5, 0.3, 0.2], [0.2, 0.7, 0.1], [0.05, 0.9, 0.05], [0.6, 0.2, 0.2]])


@pytest.mark.parametrize("vary", [0.0, 0.3], ids=["one pmf a batch", "one pmf a row"])
@pytest.mark.parametrize("money", [False, True], ids=["rate", "money"])
def test_sums_give_the_estimate_and_error_of_the_rows_own_scores(money: bool, vary: float) -> None:
    rows = drawn((0.2, 0.25, 0.3), LOPSIDED, 1500, 1, money=money, vary=vary)
    model = rows.batches.model[rows.batch]
    gap = (rows.reward - model[np.arange(len(model)), rows.arm]) / rows.propensity
    scores = model[:, 1] - model[:, 0] + np.select([rows.arm == 1, rows.arm == 0], [gap, -gap], 0.0)
    found = difference(rows.batches, "b", "a", Plan(6000, 0.2), weights="equal")
    assert found.estimate[-1] == pytest.approx(scores.mean(), rel=1e-9)
    assert found.error[-1] >= scores.std() / np.sqrt(len(scores)) * (1 - 1e-9)
    assert found.error[-1] == pytest.approx(scores.std() / np.sqrt(len(scores)), rel=0.1)
    even = model.mean(axis=1) + gap / 3
    value = against_uniform(rows.batches, Plan(6000, 0.2))
    assert value.estimate[-1] == pytest.approx((rows.reward - even).mean(), rel=1e-9)


def test_precision_weights_are_the_rows_weighted_by_their_batchs_overlap() -> None:
    rows = drawn((0.2, 0.25, 0.3), LOPSIDED, 1500, 2)
    model = rows.batches.model[rows.batch]
    gap = (rows.reward - model[np.arange(len(model)), rows.arm]) / rows.propensity
    scores = model[:, 1] - model[:, 0] + np.select([rows.arm == 1, rows.arm == 0], [gap, -gap], 0.0)
    weight = 1 / (1 / LOPSIDED[:, 0] + 1 / LOPSIDED[:, 1])
    expected = np.average(scores, weights=weight[rows.batch])
    assert difference(rows.batches, "b", "a", PLAN).estimate[-1] == pytest.approx(expected, rel=1e-9)


def test_propensities_that_agree_within_batches_change_nothing_when_given_row_by_row() -> None:
    rows = drawn((0.2, 0.25), LOPSIDED[:, :2] / LOPSIDED[:, :2].sum(axis=1, keepdims=True), 2000, 3)
    of, p = rows.batches, rows.batches.pmf
    inverse = InverseSums(
        of.trials / p, of.sums / p, of.squares / p, of.trials / p**2, of.sums / p**2, of.squares / p**2, p.min(axis=0)
    )
    same = Batches.of(of.arms, p, of.trials, of.sums, inverse=inverse)
    for one, other in (
        (difference(of, "b", "a", PLAN, weights="equal"), difference(same, "b", "a", PLAN, weights="equal")),
        (against_uniform(of, PLAN), against_uniform(same, PLAN)),
    ):
        np.testing.assert_allclose(one.estimate, other.estimate)
        np.testing.assert_allclose(one.error, other.error, rtol=0.05)


def test_on_the_boundary_the_mixtures_likelihood_ratio_is_one_over_alpha() -> None:
    rho = mixture_rho(400.0, 0.05)
    for variance in (10.0, 400.0, 9000.0):
        reached = float(boundary(variance, rho, 0.05))
        ratio = np.sqrt(rho / (variance + rho)) * np.exp(reached**2 / (2 * (variance + rho)))
        assert ratio == pytest.approx(20.0)


def test_money_in_another_unit_gives_the_same_interval_in_that_unit() -> None:
    of = drawn((0.2, 0.3), np.tile([0.7, 0.3], (5, 1)), 2000, 4, money=True).batches
    cents = Batches.of(of.arms, of.pmf, of.trials, 100 * of.sums, 100**2 * of.squares)
    one, other = difference(of, "b", "a", Plan(10_000, 50.0)), difference(cents, "b", "a", Plan(10_000, 500_000.0))
    np.testing.assert_allclose(100 * one.lower, other.lower)
    np.testing.assert_allclose(100 * one.upper, other.upper)


def test_the_order_of_the_arms_does_not_matter() -> None:
    of = drawn((0.2, 0.25, 0.3), LOPSIDED, 2000, 5).batches
    turned = Batches.of(("c", "a", "b"), *(x[:, [2, 0, 1]] for x in (of.pmf, of.trials, of.sums)))
    np.testing.assert_allclose(difference(of, "c", "b", PLAN).upper, difference(turned, "c", "b", PLAN).upper)
    one, other = compare(of, "a", PLAN), compare(turned, "a", PLAN)
    assert {x.arm: x.sentence for x in one} == {x.arm: x.sentence for x in other}


def test_batches_that_an_arm_was_not_open_to_do_not_touch_its_comparison() -> None:
    pmf = np.array([[1.0, 0.0], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]])
    trials, sums = (
        np.array([[900, 0], [900, 0], [450, 450], [440, 460]]),
        np.array([[90, 0], [400, 0], [90, 110], [88, 120]]),
    )
    found = difference(Batches.of(("a", "b"), pmf, trials, sums), "b", "a", PLAN)
    assert np.isnan(found.estimate[1])
    assert found.units.tolist() == [0, 0, 900, 1800]
    assert found.estimate[-1] == pytest.approx(230 / 910 - 178 / 890, abs=0.006)
    assert difference(Batches.of(("a", "b"), pmf[:2], trials[:2], sums[:2]), "b", "a", PLAN).last.why is not None


def test_below_thirty_successes_there_is_an_estimate_and_no_interval() -> None:
    batches = Batches.of(("a", "b"), [[0.5, 0.5]], [[1000, 1000]], [[40, 12]])
    last = difference(batches, "b", "a", PLAN).last
    assert last.estimate is not None
    assert (last.lower, last.upper, last.why) == (None, None, "too early: 12 of 30 successes")
    assert compare(batches, "a", PLAN)[0].sentence == "b against a: too early: 12 of 30 successes"
    assert difference(batches, "b", "a", PLAN).rows()[0]["lower"] is None


def test_one_great_order_does_not_pass_for_thirty_successes() -> None:
    squares, sums = [[40 * 30.0**2, 49 * 30.0**2 + 9000.0**2]], [[40 * 30.0, 49 * 30.0 + 9000.0]]
    batches = Batches.of(("a", "b"), [[0.5, 0.5]], [[1000, 1000]], sums, squares)
    assert compare(batches, "a", Plan(2000, 100.0))[0].verdict == "too_early"


def test_a_clear_winner_a_clear_loser_and_the_undecided_are_called_so() -> None:
    of = drawn((0.20, 0.26, 0.14, 0.203), np.full((10, 4), 0.25), 6000, 6).batches
    better, worse, neither = compare(of, "a", Plan.for_rate(60_000, 0.2))
    assert (better.verdict, worse.verdict, neither.verdict) == ("better", "worse", "undecided")
    assert better.sentence.startswith("b is better than a by ")
    assert worse.sentence.startswith("c is worse than a by ")
    assert neither.sentence.startswith("undecided: d may be anything from ")
    assert better.interval.alpha == pytest.approx(0.05 / 3)
    for comparison in (better, worse, neither):
        low, high = comparison.lift.lower, comparison.lift.upper
        assert (low > 0, high < 0) == (comparison.interval.is_positive, comparison.interval.is_negative)


def test_lift_holds_the_true_ratio_and_is_the_ratio_of_means() -> None:
    missed = 0
    for seed in range(20):
        of = drawn((0.20, 0.24), np.full((4, 2), 0.5), 2500, seed).batches
        lift = relative_lift(of, "b", "a", PLAN)
        missed += not lift.lower <= 0.2 <= lift.upper
        means = [arm_mean(of, arm, PLAN, weights="equal").estimate[-1] for arm in "ab"]
        assert lift.estimate == pytest.approx(means[1] / means[0] - 1, abs=1e-6)
    assert missed <= 1  # at most 5 % ever; a single look of a sequence misses in some .2 %


def test_figures_of_an_arm_with_next_to_no_propensity_are_refused() -> None:
    of = drawn((0.2, 0.25), np.array([[0.5, 0.5], [0.998, 0.002]]), 20_000, 7).batches
    comparison = compare(of, "a", PLAN)[0]
    assert comparison.verdict == "refused"
    assert comparison.interval.lower is None
    assert "raise its floor" in comparison.sentence


def test_effective_sample_is_that_of_the_weights() -> None:
    of = Batches.of(("a", "b"), [[0.5, 0.5], [0.9, 0.1]], [[100, 100], [180, 20]], [[20, 20], [36, 4]])
    a, b = overlap(of)
    w = np.array([2.0] * 100 + [10.0] * 20)
    assert b.effective_sample == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert (b.maximum_weight, b.least_propensity) == (10.0, 0.1)
    assert b.why == "too early: effective sample of b is 67, 100 needed"
    assert a.why is None


def test_where_propensities_differ_by_row_the_least_of_them_counts_and_not_their_mean() -> None:
    """Arm b has about a third of the batch, and some contacts saw it once in hundreds."""
    rows = drawn((0.2, 0.25), np.array([[0.7, 0.3]]), 20_000, 21, vary=2.0)
    for k, one in enumerate(overlap(rows.batches)):
        least = rows.propensity[rows.arm == k].min()
        assert (one.least_propensity, one.maximum_weight) == (least, 1 / least)
    assert rows.batches.pmf.min() > 0.2
    assert "raise its floor" in compare(rows.batches, "a", PLAN)[0].sentence
    assert "too early" in overlap(replace(rows.batches, inverse=nobody_drawn(rows.batches)))[1].why


def nobody_drawn(batches: Batches) -> InverseSums:
    """The sums had arm b never been drawn."""
    of = batches.inverse
    without = {f.name: np.where([True, False], getattr(of, f.name), 0.0) for f in fields(of)}
    return InverseSums(**without | {"least": np.where([True, False], of.least, np.nan)})


def test_an_even_split_earns_nothing_over_an_even_split_and_a_good_one_does() -> None:
    flat = against_uniform(drawn((0.2, 0.3), np.full((5, 2), 0.5), 4000, 8).batches, PLAN).last
    good = against_uniform(drawn((0.2, 0.3), np.tile([0.2, 0.8], (5, 1)), 4000, 9).batches, PLAN).last
    assert flat.lower < 0 < flat.upper
    assert good.is_positive
    assert good.lower < 0.03 < good.upper


def test_against_a_holdout_real_valued_rewards_compare_by_person() -> None:
    rng = np.random.default_rng(10)
    held = rng.random(20_000) < 0.1
    money = rng.gamma(1.0, 20.0, 20_000) * (rng.random(20_000) < np.where(held, 0.1, 0.2))
    by = [held, ~held]
    trials, sums, squares = ([[(x * side).sum() for side in by]] for x in (np.ones(20_000), money, money**2))
    last = against_holdout(0.1, trials, sums, squares, Plan(20_000, 100.0)).last
    assert last.is_positive
    assert last.lower < 2.0 < last.upper


def test_before_the_first_matured_decision_nothing_is_claimed() -> None:
    empty = Batches.of(("a", "b"), np.empty((0, 2)), np.empty((0, 2)), np.empty((0, 2)))
    assert difference(empty, "b", "a", PLAN).last.why == "no matured units yet"
    assert against_uniform(empty, PLAN).last.why == "no matured units yet"
    assert compare(empty, "a", PLAN)[0].interval.estimate is None


def test_a_rare_rate_is_held_at_every_look() -> None:
    rng = np.random.default_rng(11)
    trials = np.full((1000, 40), 250)
    lower, upper = rare_rate(trials, rng.binomial(trials, 0.002))
    missed = ((lower > 0.002) | (upper < 0.002)).any(axis=1).mean()
    assert missed <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1000)
    assert np.all(lower <= upper + 1e-12)
    assert upper[:, -1].mean() < 0.005


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_a_plan_needs_a_rate_with_variance(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0 and below 1"):
        Plan.for_rate(100, rate)


def test_impossible_questions_are_refused_with_the_remedy() -> None:
    of = drawn((0.2, 0.25), np.full((2, 2), 0.5), 500, 12, vary=0.2).batches
    with pytest.raises(ValueError, match="choose equal ones"):
        difference(of, "b", "a", PLAN)
    with pytest.raises(ValueError, match="not among a, b"):
        compare(of, "z", PLAN)
    with pytest.raises(ValueError, match="with itself"):
        difference(of, "a", "a", PLAN, weights="equal")
    with pytest.raises(ValueError, match="holds nobody out"):
        against_holdout(0.0, [[0, 10]], [[0, 1]], [[0, 1]], PLAN)
    with pytest.raises(ValueError, match="more events than trials"):
        rare_rate([10], [11])
    with pytest.raises(ValueError, match="fixed before the start"):
        Plan(0, 0.1)
