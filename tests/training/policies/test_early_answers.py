"""Answers that come sooner than the delay curve has them prove nothing about arms."""

from __future__ import annotations

import numpy as np
import pytest

from training.policies import GaussianThompson, LinearThompson, ValueStatistics, sums_of


@pytest.mark.parametrize("policy", [LinearThompson(), GaussianThompson()], ids=["linear", "gaussian"])
@pytest.mark.parametrize("rate", [0.05, 0.20])
def test_equal_arms_stay_near_even_where_every_answer_is_in_after_a_quarter_of_an_hour(
    policy: LinearThompson | GaussianThompson, rate: float
) -> None:
    """The curve has not one answer in a hundred due by then."""
    age = np.full((2, 1), 0.25)
    for seed in range(8):
        rng = np.random.default_rng(seed)
        reward = (rng.random(4000) < rate).astype(float)
        arm = np.arange(4000) % 2
        if isinstance(policy, LinearThompson):
            x = np.stack([np.ones(4000), rng.standard_normal(4000)], axis=1)
            seen = sums_of(arm, 0 * arm, x, reward, n_arms=2, n_waves=1).statistics(("a", "b"), age)
            pmf = policy.allocate(seen, seed=seed).pmf
        else:
            value = reward * rng.gamma(2.0, 15.0, 4000)
            counted = (np.bincount(arm, of)[:, None] for of in (np.ones(4000), reward, value, value**2))
            pmf = policy.pmf(ValueStatistics(("a", "b"), *counted, age))
        assert 0.2 < pmf.min() <= pmf.max() < 0.8, (seed, pmf)
