"""Segments: shrinkage, levels, and Simpson's paradox."""

from __future__ import annotations

import numpy as np
import pytest

from training.policies import BetaBernoulliThompson, DelayCdf, EpsilonGreedy, SegmentStatistics
from training.policies.segments import segment_concentration

AT_ONCE = DelayCdf(median_hours=1e-6)


def seen(trials: np.ndarray, successes: np.ndarray) -> SegmentStatistics:
    names = tuple(f"segment {g}" for g in range(len(trials)))
    return SegmentStatistics(names, ("a", "b"), trials, successes, np.full(trials.shape, 99.0))


def test_an_arm_shown_to_eager_segments_is_not_a_good_arm() -> None:
    """Equal arms; each segment got mostly one of them. Added up, the eager segment's arm would win by far."""
    trials = np.array([[[9000], [1000]], [[1000], [9000]]])
    table = seen(trials, trials * np.array([4, 1])[:, None, None] // 10)
    np.testing.assert_allclose(BetaBernoulliThompson().allocate(table).pmf, 0.5, atol=0.1)
    assert BetaBernoulliThompson().pmf(table.pooled())[0] > 0.94


def test_a_segment_that_differs_gets_its_own_arm_and_a_small_one_borrows() -> None:
    trials = np.array([[[4000], [4000]], [[4000], [4000]], [[4000], [4000]], [[250], [250]]])
    rates = np.array([[0.2, 0.24], [0.2, 0.24], [0.3, 0.2], [0.2, 0.2]])
    allocation = BetaBernoulliThompson().allocate(seen(trials, (trials * rates[..., None]).astype(np.int64)))
    assert allocation.by_segment["segment 0"][1] > 0.85
    assert allocation.by_segment["segment 2"][0] > 0.9
    small = seen(trials[[0, 1, 3]], (trials * rates[..., None]).astype(np.int64)[[0, 1, 3]])
    assert BetaBernoulliThompson().allocate(small).by_segment["segment 2"][1] > 0.7


def test_shrinkage_beats_each_for_itself_and_all_for_one() -> None:
    """Truly varied segments: squared error of the posterior means over 40 worlds."""
    rng = np.random.default_rng(0)
    policy = EpsilonGreedy(delay=AT_ONCE)
    from training.policies.segments import segment_posterior

    errors = np.zeros(3)
    for _ in range(40):
        truth = rng.beta(0.2 * 300, 0.8 * 300, (12, 3))
        trials = np.broadcast_to(rng.integers(60, 500, (12, 1, 1)), (12, 3, 1)).astype(float)
        successes = rng.binomial(trials.astype(int), truth[..., None]).astype(float)
        alpha, beta = segment_posterior(trials, successes, prior=policy.prior, temper=1.0, wave_concentration=10.0)
        estimates = (
            alpha / (alpha + beta),
            (successes / trials)[..., 0],
            np.broadcast_to((successes.sum(axis=0) / trials.sum(axis=0))[:, 0], truth.shape),
        )
        errors += [((estimate - truth) ** 2).mean() for estimate in estimates]
    assert errors[0] < 0.9 * errors[1]
    assert errors[0] < 0.9 * errors[2]


@pytest.mark.parametrize("kappa", [50.0, 400.0])
def test_the_concentration_is_measured_beside_unlike_levels(kappa: float) -> None:
    """Expected rates as the policy makes them: of the arms over all, at each segment's own level."""
    rng = np.random.default_rng(1)
    mu = np.array([0.1, 0.2, 0.3]) * rng.uniform(0.5, 1.5, (60, 1))
    measured = []
    for _ in range(40):
        truth = rng.beta(mu * kappa, (1 - mu) * kappa)
        n = rng.integers(100, 2000, (60, 3)).astype(float)
        s = rng.binomial(n.astype(int), truth).astype(float)
        arm = s.sum(axis=0) / n.sum(axis=0)
        level = s.sum(axis=1, keepdims=True) / (n * arm).sum(axis=1, keepdims=True)
        measured.append(segment_concentration(n, s, level * arm))
    assert np.median(measured) == pytest.approx(kappa, rel=0.25)


def test_segments_that_agree_get_the_upper_bound_and_wild_ones_the_lower() -> None:
    n = np.full((30, 2), 1000.0)
    rate = np.full((30, 2), 0.2)
    assert segment_concentration(n, n * rate, rate) == 2000.0
    assert segment_concentration(n, n * np.tile([[0.9, 0.01], [0.01, 0.9]], (15, 1)), rate) == 20.0
    assert segment_concentration(n[:1], n[:1] * 0.5, rate[:1]) == 2000.0


def test_repeated_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="repeat"):
        SegmentStatistics(("x", "x"), ("a", "b"), np.ones((2, 2, 1)), np.ones((2, 2, 1)), np.ones((2, 2, 1)))
