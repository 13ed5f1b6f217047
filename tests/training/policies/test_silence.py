"""Evidence fades with its half-life; that an arm was shown enough, and that there were successes, does not."""

from __future__ import annotations

import numpy as np
import pytest

from training.policies import (
    Allocation,
    ArmStatistics,
    BetaBernoulliThompson,
    EpsilonGreedy,
    GaussianThompson,
    LinearStatistics,
    LinearThompson,
    SegmentStatistics,
    ValueStatistics,
)

HALF_LIFE_DAYS = 2.0


def allocated(policy: object, trials: list, successes: list, age_hours: list) -> Allocation:
    n, s, age = np.array(trials), np.array(successes), np.array(age_hours, dtype=float)
    if isinstance(policy, GaussianThompson):
        return policy.allocate(ValueStatistics(("a", "b"), n, s, 30.0 * s, 1000.0 * s, age))
    if isinstance(policy, LinearThompson):
        gram, moments = n[:, :, None, None] * 1.0, s[:, :, None] * 1.0
        return policy.allocate(LinearStatistics(("a", "b"), n, gram, moments, s * 1.0, age))
    return policy.allocate(ArmStatistics(("a", "b"), n, s, age))


@pytest.mark.parametrize("made", [BetaBernoulliThompson, EpsilonGreedy, GaussianThompson])
def test_a_losing_arm_that_is_hardly_shown_any_more_does_not_burn_in_again(made: type) -> None:
    """1,000 mails ten days ago, thirty-one of which the discount leaves, and a trickle since."""
    policy = made(half_life_days=HALF_LIFE_DAYS, minimum_per_arm=200.0)
    given = allocated(policy, [[1000, 4000], [1000, 50]], [[250, 1000], [100, 5]], [[240.0, 24.0]] * 2)
    assert given.pmf[1] < 0.2
    assert given.details["effective_trials"][1] < 200
    assert given.details["burning_in"] == []


@pytest.mark.parametrize("made", [BetaBernoulliThompson, EpsilonGreedy, GaussianThompson, LinearThompson])
def test_a_split_outlasts_a_silence(made: type) -> None:
    """Seven half-lives without a mail: of 2,400 successes 19 are left, but there were enough."""
    policy = made(half_life_days=HALF_LIFE_DAYS, minimum_successes=20.0)
    before, after = (
        allocated(policy, [[8000], [8000]], [[1600], [800]], [[age]] * 2) for age in (24.0, 24.0 * 7 * HALF_LIFE_DAYS)
    )
    assert before.pmf[0] > 0.9
    assert after.pmf[0] > 0.7
    assert "uniform" not in after.reason


def test_a_segment_outlasts_a_silence() -> None:
    policy = BetaBernoulliThompson(half_life_days=HALF_LIFE_DAYS, minimum_per_arm=200.0)
    trials, successes = np.full((2, 2, 1), 8000), np.array([[[1600], [800]], [[800], [1600]]])
    age = np.full((2, 2, 1), 24.0 * 7 * HALF_LIFE_DAYS)
    given = policy.allocate(SegmentStatistics(("x", "y"), ("a", "b"), trials, successes, age)).by_segment
    assert given["x"][0] > 0.7
    assert given["y"][1] > 0.7


def test_the_design_effect_still_divides_both() -> None:
    seen = ([[3000], [3000]], [[60], [30]], [[99.0], [99.0]])
    assert "uniform" not in allocated(BetaBernoulliThompson(), *seen).reason
    assert "uniform" in allocated(BetaBernoulliThompson(design_effect=3.0), *seen).reason
    burning = allocated(BetaBernoulliThompson(design_effect=3.0, minimum_per_arm=1001.0), *seen)
    assert burning.details["burning_in"] == ["a", "b"]
