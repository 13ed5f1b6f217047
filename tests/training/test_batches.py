"""Matured decisions as sums, and means foreseen from the past only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.batches import Batches, predictable_means

EVEN = np.full((3, 2), 0.5)
TRIALS = np.array([[50, 50], [60, 40], [45, 55]])
SUMS = np.array([[10, 12], [15, 9], [8, 14]])


def test_a_batchs_own_rewards_never_enter_what_is_foreseen_for_it() -> None:
    for batch in range(3):
        changed = SUMS.copy()
        changed[batch] += 20
        before, after = predictable_means(TRIALS, SUMS), predictable_means(TRIALS, changed)
        np.testing.assert_array_equal(before[: batch + 1], after[: batch + 1])
        assert batch == 2 or np.all(before[batch + 1 :] < after[batch + 1 :])


def test_much_past_outweighs_the_mean_of_all_arms_and_little_does_not() -> None:
    much = predictable_means([[100_000, 100_000], [1, 1]], [[10_000, 30_000], [0, 0]])[1]
    little = predictable_means([[10, 10], [1, 1]], [[1, 3], [0, 0]])[1]
    np.testing.assert_allclose(much, [0.1, 0.3], atol=0.001)
    np.testing.assert_allclose(little, [0.2, 0.2], atol=0.006)


def test_before_the_first_batch_the_prior_mean_is_foreseen() -> None:
    np.testing.assert_array_equal(predictable_means(TRIALS, SUMS, prior_mean=0.25)[0], [0.25, 0.25])


def test_earlier_batches_of_a_wave_move_the_level_foreseen_for_its_later_ones() -> None:
    trials = np.full((3, 2), 1000)
    sums = np.array([[200, 200], [400, 400], [0, 0]])
    same_wave = predictable_means(trials, sums, [0, 1, 1])[2]
    other_wave = predictable_means(trials, sums, [0, 1, 2])[2]
    assert np.all(same_wave > 0.35)
    np.testing.assert_allclose(other_wave, 0.3)


def test_variance_of_a_rate_is_that_of_its_foreseen_mean() -> None:
    batches = Batches.of(("a", "b"), EVEN, TRIALS, SUMS)
    np.testing.assert_allclose(batches.variance, batches.model * (1 - batches.model))


@pytest.mark.parametrize(
    ("differs", "says"),
    [
        ({"arms": ("a", "a")}, "two different ones"),
        ({"arms": ("a",)}, "two different ones"),
        ({"pmf": EVEN * 1.1}, "the sum 1"),
        ({"pmf": np.tile([1.0, 0.0], (3, 1))}, "probability 0 has trials"),
        ({"trials": -TRIALS}, "cannot be negative"),
        ({"sums": SUMS * np.nan}, "not finite"),
        ({"sums": SUMS[:2]}, "shape"),
    ],
)
def test_impossible_batches_are_refused(differs: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {
        "arms": ("a", "b"), "pmf": EVEN, "trials": TRIALS, "sums": SUMS, "squares": SUMS,
        "model": EVEN, "variance": EVEN, **differs,
    }  # fmt: skip
    with pytest.raises(ValueError, match=says):
        Batches(**given)


def test_waves_are_one_a_batch() -> None:
    with pytest.raises(ValueError, match="give one a batch"):
        predictable_means(TRIALS, SUMS, [0, 1])
