"""The linear policy: laws of the contract for vectors, wave effects, delay, discount, priors from the other arms."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from training.policies import (
    DelayCdf,
    LinearStatistics,
    LinearThompson,
    choose,
    hashed_draws,
    masked,
    policy_from_parameters,
    sums_of,
)
from training.policies.base import won_shares

ARMS = ("a", "b", "c", "d")
N_FEATURES = 6
POLICIES = {
    "linear": LinearThompson(),
    "without floor": LinearThompson(floor=0.0),
    "explores more": LinearThompson(scale=2.0, n_draws=200),
    "discounted": LinearThompson(half_life_days=2.0, arm_deviation=0.2),
    "measured delay": LinearThompson(delay=DelayCdf(knots=((1.0, 0.3), (6.0, 0.8), (48.0, 1.0)))),
}
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())


def vectors(n: int, seed: int, n_features: int = N_FEATURES) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.concatenate([np.ones((n, 1)), rng.normal(size=(n, n_features - 1)).clip(-4, 4)], axis=1)


def seen(
    seed: int,
    *,
    n: int = 8000,
    n_waves: int = 3,
    arms: tuple[str, ...] = ARMS,
    spread: float = 0.05,
    rate: float = 0.15,
    age: float = 99.0,
    arm_features: np.ndarray | None = None,
) -> LinearStatistics:
    """Statistics of clicks whose probability is linear in the vector, arms drawn evenly."""
    rng = np.random.default_rng(seed)
    x = vectors(n, seed + 1000)
    arm, wave = rng.integers(len(arms), size=n), rng.integers(n_waves, size=n)
    beta = rng.normal(0, spread, (len(arms), N_FEATURES))
    click = rng.random(n) < (rate + (x * beta[arm]).sum(axis=1)).clip(0, 1)
    sums = sums_of(arm, wave, x, click, n_arms=len(arms), n_waves=n_waves)
    return sums.statistics(arms, np.full((len(arms), n_waves), age), arm_features)


def reordered(statistics: LinearStatistics, order: list[int]) -> LinearStatistics:
    return LinearStatistics(
        tuple(statistics.arms[i] for i in order),
        *(getattr(statistics, name)[order] for name in ("trials", "gram", "moments", "squares", "age_hours")),
    )


@every_policy
def test_probabilities_of_every_contact_sum_to_one_and_keep_the_floor(policy: LinearThompson) -> None:
    contexts = np.concatenate([vectors(500, 1), 1000 * vectors(10, 2), np.full((3, N_FEATURES), np.nan)])
    for statistics in [*(seen(seed) for seed in range(5)), seen(5, n=40), seen(6, age=0.0)]:
        allocation = policy.allocate(statistics, seed=3)
        rows = np.concatenate([allocation.probabilities(len(contexts), contexts=contexts), allocation.pmf[None, :]])
        assert np.abs(rows.sum(axis=1) - 1).max() <= 1e-9
        assert rows.min() >= policy.floor_of(len(ARMS)) - 1e-15
        np.testing.assert_array_equal(rows[-4:-1], np.repeat(allocation.pmf[None, :], 3, axis=0))


@every_policy
def test_reordering_the_arms_reorders_the_draws_bit_for_bit(policy: LinearThompson) -> None:
    """Draws are made in the order of the names, so even their noise follows the arms."""
    order = [2, 0, 3, 1]
    for seed in range(3):
        one = policy.allocate(seen(seed), seed=seed)
        other = policy.allocate(reordered(seen(seed), order), seed=seed)
        np.testing.assert_array_equal(other.ensemble, one.ensemble[:, order])
        np.testing.assert_array_equal(other.pmf, one.pmf[order])


@every_policy
def test_the_same_statistics_and_seed_give_the_same_bits(policy: LinearThompson) -> None:
    one, again, other = (policy.allocate(seen(1), seed=seed) for seed in (7, 7, 8))
    assert one.ensemble.dtype == np.float32
    assert one.ensemble.shape == (policy.n_draws, len(ARMS), N_FEATURES)
    assert one.ensemble.tobytes() == again.ensemble.tobytes()
    assert one.pmf.tobytes() == again.pmf.tobytes()
    assert one.ensemble.tobytes() != other.ensemble.tobytes()


@every_policy
def test_parameters_survive_json(policy: LinearThompson) -> None:
    again = policy_from_parameters(json.loads(json.dumps(policy.parameters())))
    assert again == policy
    assert policy_from_parameters({"policy": "linear"}) == LinearThompson()


def test_a_batch_of_one_is_a_batch_of_many_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    ensemble = rng.normal(size=(100, 10, 30)).astype(np.float32)
    contexts = rng.normal(size=(3000, 30)).astype(np.float32)
    together = won_shares(ensemble, contexts)
    for start in (0, 1, 777, 2999):
        assert won_shares(ensemble, contexts[start : start + 1]).tobytes() == together[start : start + 1].tobytes()
    np.testing.assert_array_equal(won_shares(ensemble, contexts[::-1]), together[::-1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_a_vector_with_a_number_that_is_not_finite_is_none(value: float) -> None:
    """1e39 is finite, but no float32."""
    allocation = LinearThompson().allocate(seen(3, n=3000))
    contexts = vectors(3, 4)
    contexts[1, 2] = value
    given = allocation.probabilities(3, contexts=contexts)
    np.testing.assert_array_equal(given[1], allocation.pmf)
    np.testing.assert_array_equal(given[[0, 2]], allocation.probabilities(2, contexts=contexts[[0, 2]]))


def test_a_score_is_the_float32_sum_in_the_order_of_the_features() -> None:
    rng = np.random.default_rng(1)
    ensemble = rng.normal(size=(50, 7, 12)).astype(np.float32)
    contexts = rng.normal(size=(400, 12)).astype(np.float32)
    score = contexts[:, 0, None, None] * ensemble[:, :, 0]
    for feature in range(1, 12):
        score = score + contexts[:, feature, None, None] * ensemble[:, :, feature]
    won = (score.argmax(axis=2)[:, :, None] == np.arange(7)).sum(axis=1)
    np.testing.assert_array_equal(won_shares(ensemble, contexts), won / 50)


def test_ties_go_to_the_first_arm_and_no_contact_is_no_work() -> None:
    ensemble = np.ones((10, 3, 2), dtype=np.float32)
    assert won_shares(ensemble, np.ones((1, 2), np.float32)).tolist() == [[1, 0, 0]]
    assert won_shares(ensemble, np.ones((0, 2), np.float32)).shape == (0, 3)
    with pytest.raises(ValueError, match="do not fit an ensemble of 2 features"):
        won_shares(ensemble, np.ones((1, 3), np.float32))


def test_a_million_draws_come_out_as_often_as_their_propensity_says() -> None:
    """Per decile of the propensity, over all contacts and arms."""
    n = 100_000
    contexts = vectors(n, 3).astype(np.float32)
    allocation = LinearThompson(scale=1.5).allocate(seen(2, n=3000), seed=1).explored(0.05)
    pmf = allocation.probabilities(n, contexts=contexts)
    deciles = np.clip((pmf * 10).astype(int), 0, 9)
    expected, variance, drawn = np.zeros(10), np.zeros(10), np.zeros(10)
    for send in range(10):
        arm = choose(pmf, hashed_draws("salt", "snapshot", np.arange(n), [f"send:{send}"] * n))
        expected += np.bincount(deciles.ravel(), pmf.ravel(), 10)
        # The arms of one decision exclude each other: the variance of a sum of indicators of one row.
        inside = np.stack([np.where(deciles == d, pmf, 0).sum(axis=1) for d in range(10)])
        variance += (inside * (1 - inside)).sum(axis=1)
        drawn += np.bincount(deciles[np.arange(n), arm], minlength=10)
    tried = variance > 0
    assert tried.sum() >= 8
    assert np.abs((drawn - expected)[tried] / np.sqrt(variance[tried])).max() < 4
    np.testing.assert_array_equal(drawn[~tried], expected[~tried])


def test_eligible_arms_share_what_the_others_leave() -> None:
    pmf = LinearThompson().allocate(seen(1)).probabilities(50, contexts=vectors(50, 5))
    rows = masked(pmf, np.array([True, False, True, True]))
    assert (rows[:, 1] == 0).all()
    np.testing.assert_allclose(rows[:, 0] / rows[:, 2], pmf[:, 0] / pmf[:, 2])


def test_statistics_of_parts_add_up_to_those_of_the_whole() -> None:
    rng = np.random.default_rng(4)
    n, limits = 1000, {"n_arms": 3, "n_waves": 4}
    raw = rng.integers(3, size=n), rng.integers(4, size=n), vectors(n, 6), rng.exponential(size=n)
    whole = sums_of(*raw, **limits)
    parts = [sums_of(*(column[i::7] for column in raw), **limits) for i in range(7)]
    for name in ("trials", "gram", "moments", "squares"):
        np.testing.assert_allclose(sum(getattr(part, name) for part in parts), getattr(whole, name), rtol=1e-12)
    arm, wave, x, reward = raw
    in_cell = (arm == 2) & (wave == 1)
    np.testing.assert_allclose(whole.gram[2, 1], np.einsum("ni,nj->ij", x[in_cell], x[in_cell]))
    np.testing.assert_allclose(whole.moments[2, 1], reward[in_cell] @ x[in_cell])
    assert whole.squares[2, 1] == pytest.approx((reward[in_cell] ** 2).sum())
    shown = sums_of(arm, wave, x, np.zeros(n), **limits)
    np.testing.assert_array_equal(shown.gram, whole.gram)
    assert not shown.moments.any()
    empty = sums_of([], [], np.empty((0, 3)), [], **limits)
    assert empty.gram.shape == (3, 4, 3, 3)
    assert not empty.trials.any()


def test_more_successes_raise_an_arms_share() -> None:
    """In expectation over the draws: with the noise of 400 draws left out by common random numbers."""
    statistics = seen(3, spread=0.0)
    contexts, policy = vectors(300, 7), LinearThompson(floor=0.0, n_draws=400, arm_deviation=0.1)
    shares = []
    for more in (0, 10, 20, 40, 80):
        moments, squares = statistics.moments.copy(), statistics.squares.copy()
        mean_x = statistics.gram[1, 0, 0] / statistics.trials[1, 0]
        moments[1, 0] += more * mean_x  # further trials of arm b answered, their vectors the average one
        squares[1, 0] += more
        raised = LinearStatistics(ARMS, statistics.trials, statistics.gram, moments, squares, statistics.age_hours)
        shares.append(policy.allocate(raised, seed=1).probabilities(300, contexts=contexts)[:, 1].mean())
    assert np.all(np.diff(shares) > 0)
    assert shares[-1] > shares[0] + 0.3


def test_a_swing_of_the_base_with_a_changing_allocation_moves_no_arm() -> None:
    """Rewards without noise: what waves differ by goes into their effects, whatever the allocation."""
    rng = np.random.default_rng(5)
    n_waves, per_wave = 12, 3000
    n = n_waves * per_wave
    wave = np.repeat(np.arange(n_waves), per_wave)
    base = np.where(wave % 2 == 0, 0.5, -0.5)
    favoured = np.where(wave % 2 == 0, 0.9, 0.1)
    arm = (rng.random(n) < favoured).astype(int)  # arm 1 is shown when the base is high
    x = vectors(n, 8)
    beta = np.array([[1.0, 0.2, 0, 0, 0, 0], [0.9, -0.2, 0, 0, 0, 0]])
    reward = (x * beta[arm]).sum(axis=1) + base + rng.normal(0, 0.3, n)
    sums = sums_of(arm, wave, x, reward, n_arms=2, n_waves=n_waves)
    mean = LinearThompson().posterior(sums.statistics(("a", "b"), np.full((2, n_waves), 99.0))).mean
    np.testing.assert_allclose(mean[1] - mean[0], beta[1] - beta[0], atol=0.03)
    one_wave = sums_of(arm, 0 * wave, x, reward, n_arms=2, n_waves=1)
    pooled = LinearThompson().posterior(one_wave.statistics(("a", "b"), np.full((2, 1), 99.0))).mean
    assert pooled[1, 0] - pooled[0, 0] > 0.5  # in one wave the good hours pass for a good arm


def test_waves_with_late_answers_teach_the_same_as_complete_ones() -> None:
    """Half the answers of a young wave are in: counted by their age, the arms' effects are those of all answers."""
    rng = np.random.default_rng(6)
    n = 40_000
    x, arm = vectors(n, 9), rng.integers(2, size=n)
    wave = (rng.random(n) < np.where(arm == 1, 0.8, 0.2)).astype(int)  # arm b mostly in the young wave
    click = rng.random(n) < 0.2
    is_in = (wave == 0) | (rng.random(n) < 0.5)
    age = np.tile([500.0, 3.0], (2, 1))
    sums = sums_of(arm, wave, x, click & is_in, n_arms=2, n_waves=2)
    known, ignored = (
        LinearThompson(delay=delay).posterior(sums.statistics(("a", "b"), age)).mean
        for delay in (DelayCdf(), DelayCdf(median_hours=1e-6))
    )
    assert abs(known[1, 0] - known[0, 0]) < 0.02  # 3.5 standard errors
    assert known[:, 0] == pytest.approx(0.2, abs=0.01)
    assert ignored[:, 0].mean() < 0.18


def test_the_discount_forgets_what_was() -> None:
    rng = np.random.default_rng(7)
    n = 20_000
    x, arm, wave = vectors(n, 10), rng.integers(2, size=n), rng.integers(2, size=n)
    sign = np.where(wave == 1, 1.0, -1.0) * np.where(arm == 1, 1.0, -1.0)
    click = rng.random(n) < 0.2 + 0.05 * sign  # arm b was worse, and is better in the fresh wave
    sums = sums_of(arm, wave, x, click, n_arms=2, n_waves=2)
    statistics = sums.statistics(("a", "b"), np.tile([2400.0, 100.0], (2, 1)))
    kept, forgotten = (LinearThompson(half_life_days=days).posterior(statistics).mean for days in (None, 10.0))
    assert abs(kept[1, 0] - kept[0, 0]) < 0.02
    assert forgotten[1, 0] - forgotten[0, 0] == pytest.approx(0.1, abs=0.02)


def test_a_design_effect_of_two_is_half_the_evidence() -> None:
    once = seen(5, n=3000)
    twice = replace(once, **{name: 2 * getattr(once, name) for name in ("trials", "gram", "moments", "squares")})
    halved = LinearThompson(design_effect=2.0, half_life_days=20.0).posterior(twice)
    whole = LinearThompson(half_life_days=20.0).posterior(once)
    np.testing.assert_allclose(halved.mean, whole.mean)
    np.testing.assert_allclose(halved.precision_root, whole.precision_root)
    policy = policy_from_parameters(json.loads(json.dumps(LinearThompson(design_effect=2.0).parameters())))
    assert policy == LinearThompson(design_effect=2.0)
    few = replace(once, moments=once.moments * 0.02, squares=once.squares * 0.02)
    least = {"minimum_successes": float(few.moments[:, :, 0].sum() ** 2 / few.squares.sum() / len(few.arms))}
    assert "uniform" not in LinearThompson(**least).allocate(few).reason
    assert "uniform" in LinearThompson(**least, design_effect=1.1).allocate(few).reason


def test_a_new_arm_with_features_starts_at_what_the_others_say_of_them() -> None:
    rng = np.random.default_rng(8)
    n_arms, n = 12, 60_000
    features = np.concatenate([np.ones((n_arms, 1)), rng.normal(size=(n_arms, 2))], axis=1)
    w = rng.normal(0, 0.04, (3, N_FEATURES))
    w[0, 0] = 0.3
    beta = features @ w
    x, arm = vectors(n, 11), rng.integers(n_arms - 1, size=n)  # the last arm is new
    click = rng.random(n) < (x * beta[arm]).sum(axis=1)
    names = tuple(f"arm_{k:02d}" for k in range(n_arms))
    sums = sums_of(arm, 0 * arm, x, click, n_arms=n_arms, n_waves=1)
    statistics = sums.statistics(names, np.full((n_arms, 1), 99.0), features)
    posterior = LinearThompson().posterior(statistics)
    np.testing.assert_allclose(posterior.mean[-1], beta[-1], atol=0.03)
    without = sums.statistics(names, np.full((n_arms, 1), 99.0))
    blind = LinearThompson().posterior(without).mean
    np.testing.assert_allclose(blind[-1], blind[:-1].mean(axis=0), atol=0.01)
    assert np.abs(posterior.mean[-1] - beta[-1]).max() < 0.5 * np.abs(blind[-1] - beta[-1]).max()


def test_arms_that_are_no_longer_shown_teach_and_are_not_drawn() -> None:
    allocation = LinearThompson().allocate(seen(1), running=("d", "a"))
    assert allocation.arms == ("d", "a")
    assert allocation.ensemble.shape[1] == 2
    assert allocation.probabilities(5, contexts=vectors(5, 1)).shape == (5, 2)
    with pytest.raises(ValueError, match="must be one or more distinct arms"):
        LinearThompson().allocate(seen(1), running=("z",))


def test_the_noise_is_tempered_at_the_mean_vector_and_scaled_away_from_it() -> None:
    statistics = seen(9)
    posterior = LinearThompson().posterior(statistics)
    mean_x = np.append(1.0, np.full(N_FEATURES - 1, 0.3))
    rng = np.random.default_rng(1)
    drawn = posterior.draws(20_000, rng, scale=0.3, mean_scale=1.4, mean_x=mean_x)
    covariance = np.linalg.inv(posterior.precision_root @ posterior.precision_root.T)
    block = covariance.reshape(4, N_FEATURES, 4, N_FEATURES)[1, :, 1]
    departure = np.append(0.0, np.ones(N_FEATURES - 1))
    np.testing.assert_allclose((drawn[:, 1] @ mean_x).std(), 1.4 * np.sqrt(mean_x @ block @ mean_x), rtol=0.03)
    np.testing.assert_allclose((drawn[:, 1] @ departure).std(), 0.3 * np.sqrt(departure @ block @ departure), rtol=0.03)
    np.testing.assert_allclose(drawn.mean(axis=0), posterior.mean, atol=0.002)


def test_arms_that_do_not_differ_keep_comparable_shares() -> None:
    """A single look; the slow proof is in test_contextual_worlds.py."""
    outside = 0
    for run in range(8):
        statistics, contexts = seen(run, n=20_000, spread=0.0, rate=0.2, arms=("a", "b")), vectors(500, run)
        share = LinearThompson().allocate(statistics, seed=run).probabilities(500, contexts=contexts)[:, 0].mean()
        outside += abs(share - 0.5) > 0.4
    assert outside == 0


def test_until_there_are_enough_successes_the_split_is_uniform_and_says_so() -> None:
    for statistics in (seen(1, n=40), seen(1, n=0), seen(1, n=0, n_waves=0)):
        allocation = LinearThompson().allocate(statistics)
        assert allocation.ensemble is None
        np.testing.assert_allclose(allocation.pmf, 0.25)
        assert allocation.reason.startswith("uniform: ")
        assert "8 needed" in allocation.reason
    later = LinearThompson().allocate(seen(1))
    assert later.reason == f"linear: {seen(1).squares.sum():.0f} successes in 8000 trials"
    assert later.uniform == pytest.approx(0.2)


def test_money_and_clicks_in_other_units_give_the_same_probabilities() -> None:
    """Nothing but ratios of rewards counts: the unit of a revenue changes no decision."""
    clicks = seen(4)
    cents = LinearStatistics(
        ARMS, clicks.trials, clicks.gram, 5000 * clicks.moments, 5000**2 * clicks.squares, clicks.age_hours
    )
    contexts = vectors(500, 12)
    one, other = (LinearThompson().allocate(s).probabilities(500, contexts=contexts) for s in (clicks, cents))
    np.testing.assert_allclose(one, other, atol=0.011)  # a draw may flip by rounding


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arms": ("a",)}, "no choice"),
        ({"arms": ("a", "a", "b", "c")}, "no choice"),
        ({"moments": np.full((4, 3, N_FEATURES), np.nan)}, "moments holds a number that is not finite"),
        ({"gram": np.zeros((4, 3, 2, 2))}, "gram has shape"),
        ({"trials": np.full((4, 3), -1)}, "trials holds a negative number"),
        ({"trials": np.full((4, 3), 7)}, "first feature of a vector must be 1"),
        ({"arm_features": np.zeros((4, 2))}, "do not begin with a 1"),
        ({"arm_features": np.ones((3, 2))}, "arm_features has shape"),
    ],
)
def test_statistics_that_do_not_fit_are_refused_with_the_remedy(change: dict, says: str) -> None:
    kept = seen(1)
    fields = {name: getattr(kept, name) for name in ("arms", "trials", "gram", "moments", "squares", "age_hours")}
    with pytest.raises(ValueError, match=says):
        LinearThompson().allocate(LinearStatistics(**(fields | change)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"floor": 0.6}, "does not fit two arms"),
        ({"scale": 0.0}, "scale 0.0 must be above 0"),
        ({"temper": 1.5}, "temper 1.5 is not in"),
        ({"half_life_days": -1.0}, "half_life_days -1.0 must be above 0"),
        ({"arm_deviation": np.inf}, "arm_deviation inf"),
        ({"n_draws": 5}, "n_draws 5 is not from 10 to 1000"),
        ({"minimum_successes": -1.0}, "minimum_successes"),
        ({"design_effect": 0.5}, "design_effect 0.5 must be 1 or more"),
    ],
)
def test_parameters_out_of_range_are_refused(change: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        LinearThompson(**change)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (([0], [0], [[1.0]], [0.0, 1.0]), "one of each per trial"),
        (([2], [0], [[1.0]], [0.0]), "arm indices reach from 2 to 2"),
        (([0], [-1], [[1.0]], [0.0]), "wave indices reach from -1 to -1"),
        (([0], [0], [[1.0]], [np.nan]), "not finite"),
        (([0], [0], [[np.inf]], [1.0]), "not finite"),
    ],
)
def test_raw_trials_that_do_not_fit_are_refused(raw: tuple, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sums_of(*raw, n_arms=2, n_waves=1)
