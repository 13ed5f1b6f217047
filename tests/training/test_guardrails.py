"""Guardrails: arms that drive people away are paused, arms that do not are left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from training.guardrails import harm_log_e, judge_guardrails
from training.inference_worlds import guardrail_pauses


def test_the_e_value_of_a_harmless_arm_is_at_most_one_on_average() -> None:
    """Exactly, by summing over every way in which 40 events can fall on two arms; equality at the tolerated ratio."""
    events = np.arange(41)
    table = np.stack([events, 40 - events], axis=-1)[..., None]
    trials = np.full_like(table, 1000)
    for share in (0.05, 0.5, 0.9):
        shares = np.broadcast_to(np.array([[share], [1 - share]]), table.shape)
        e = np.exp(harm_log_e(trials, table, shares)[:, 0, -1])
        for ratio in (0.3, 0.8, 1.0):
            chance = share * ratio / (1 + share * (ratio - 1))
            mean = (stats.binom.pmf(events, 40, chance) * e).sum()
            assert mean <= 1 + 1e-9
            assert ratio < 1 or mean == pytest.approx(1.0)


def test_harm_is_paused_within_ten_thousand_sends_and_equal_arms_hardly_ever() -> None:
    """1,000 runs: unsubscribes x 4 at .2 %, x 2.5 at 1 %, base rates swinging by 30 % from wave to wave."""
    assert guardrail_pauses((0.002, 0.008), runs=1000, seed=1)[:, 1].mean() >= 0.9
    assert guardrail_pauses((0.01, 0.025), runs=1000, seed=2)[:, 1].mean() >= 0.9
    for rates in ((0.002, 0.002), (0.01, 0.01, 0.01)):
        assert guardrail_pauses(rates, runs=1000, seed=3, n_sends=40_000).any(axis=1).mean() <= 0.01


def test_an_arm_shown_in_bad_hours_is_not_taken_for_a_bad_arm() -> None:
    """Arm b gets nine in ten of the mails in the wave in which everybody unsubscribes."""
    trials = np.array([[90_000, 10_000], [10_000, 90_000]])
    unsubscribes = np.array([[90, 100], [10, 900]])
    assert not any(judged.is_paused for judged in judge_guardrails(["a", "b"], trials, unsubscribes, trials * 0))


def test_harmless_arms_that_are_split_by_segment_are_left_alone_when_judged_by_segment() -> None:
    """.2 % and .8 % unsubscribes, split 10/90 and 90/10, 10,000 sends in 40 waves, realised shares: 2,000 runs.

    Pooled over segments the same counts pause an arm in most runs.
    """
    rng, runs, n_waves = np.random.default_rng(6), 2000, 40
    sizes = rng.binomial(10_000 // n_waves, 0.5, (runs, n_waves))
    first = np.stack([sizes, 10_000 // n_waves - sizes], axis=-1)  # (runs, n_waves, n_segments)
    arm_a = rng.binomial(first, np.array([0.1, 0.9]))
    trials = np.stack([arm_a, first - arm_a], axis=1)  # (runs, n_arms, n_waves, n_segments)
    events = rng.binomial(trials, np.array([0.002, 0.008]))

    def paused(shown: np.ndarray, came: np.ndarray) -> float:
        return float((harm_log_e(shown, came) >= np.log(2 / 0.01)).any(axis=(1, 2)).mean())

    by_segment = paused(trials.reshape(runs, 2, -1), events.reshape(runs, 2, -1))
    pooled = paused(trials.sum(axis=-1), events.sum(axis=-1))
    assert by_segment <= 0.01 + 2 * np.sqrt(0.01 * 0.99 / runs)
    assert pooled > 0.5


def test_an_arm_a_tenth_worse_is_left_alone() -> None:
    assert guardrail_pauses((0.01, 0.011), runs=200, seed=4, n_sends=200_000)[:, 1].mean() <= 0.05


def test_waves_may_be_told_in_any_order() -> None:
    rng = np.random.default_rng(5)
    trials = rng.integers(50, 500, (3, 12))
    events = rng.binomial(trials, 0.02)
    order = rng.permutation(12)
    np.testing.assert_allclose(harm_log_e(trials, events)[:, -1], harm_log_e(trials[:, order], events[:, order])[:, -1])


def test_complaints_above_the_limit_pause_from_a_thousand_delivered_on() -> None:
    """Of both arms alike, so that no comparison could."""
    both = judge_guardrails(["a", "b"], [[1000], [1000]], [[0], [0]], [[4], [4]])
    assert [judged.is_paused for judged in both] == [True, True]
    assert both[0].sentence == "a is paused: 4 complaints in 1,000 mails (0.40 %), above the limit of 0.3%"
    few = judge_guardrails(["a", "b"], [[999], [999]], [[0], [0]], [[4], [4]])
    assert not any(judged.is_paused for judged in few)
    at_limit = judge_guardrails(["a", "b"], [[1000], [1000]], [[0], [0]], [[3], [3]])
    assert not any(judged.is_paused for judged in at_limit)


def test_what_is_not_watched_pauses_nothing() -> None:
    judged = judge_guardrails(
        ["a", "b"], [[5000], [5000]], [[10], [80]], [[0], [40]], watch_unsubscribes=False, watch_complaints=False
    )
    assert not any(one.is_paused for one in judged)


def test_before_the_first_wave_nobody_is_accused() -> None:
    empty = np.zeros((2, 0), dtype=int)
    for judged in judge_guardrails(["a", "b"], empty, empty, empty):
        assert (judged.e_unsubscribes, judged.is_paused) == (1.0, False)


def test_impossible_counts_and_limits_are_refused() -> None:
    with pytest.raises(ValueError, match="more events than trials"):
        harm_log_e([[10], [10]], [[11], [0]])
    with pytest.raises(ValueError, match="must lie above the tolerated"):
        harm_log_e([[10], [10]], [[1], [0]], tolerated=3.0)
    with pytest.raises(ValueError, match="above 0 and below 1"):
        judge_guardrails(["a", "b"], [[10], [10]], [[1], [0]], [[0], [0]], alpha=0.0)
    with pytest.raises(ValueError, match="of 3 arms"):
        judge_guardrails(["a", "b", "c"], [[10], [10]], [[1], [0]], [[0], [0]])
