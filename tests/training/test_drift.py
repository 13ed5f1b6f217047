"""ADWIN on an arm's residuals: planted changes raise an alarm, none rarely does."""

from __future__ import annotations

import numpy as np
import pytest

from training.drift import arm_residuals, drift_alarm, drift_alarms, shortened_half_life
from training.policies import ArmStatistics, BetaBernoulliThompson, DelayCdf, SegmentStatistics
from training.worlds import day_and_night

AT_ONCE = DelayCdf(median_hours=1e-6)


def waves(rng: np.random.Generator, rate: np.ndarray, trials: int = 500) -> ArmStatistics:
    """Two arms over hourly waves, the oldest first."""
    n = np.full(rate.shape, trials)
    age = np.broadcast_to(np.arange(rate.shape[1], 0, -1) * 1.0, rate.shape)
    return ArmStatistics(("a", "b"), n, rng.binomial(n, rate), age)


def test_a_planted_change_is_found_soon_and_a_calm_series_rarely_alarms() -> None:
    rng = np.random.default_rng(0)
    found, late, where, false = 0, [], [], 0
    for _ in range(40):
        turned = np.where(np.arange(96) < 60, [[0.20], [0.20]], [[0.20], [0.26]])
        alarm = drift_alarms(waves(rng, turned), delay=AT_ONCE)[1]
        after = [i for i in alarm.alarms if i >= 60]
        found += bool(after)
        late += [after[0] - 60] if after else []
        where += [alarm.changed_at] if after else []
        calm = drift_alarms(waves(rng, np.full((2, 96), 0.2)), delay=AT_ONCE)
        false += any(alarm.alarms for alarm in calm)
    assert found >= 38
    assert np.median(late) <= 24
    assert abs(np.median(where) - 60) <= 2
    assert false <= 2


def test_a_base_rate_that_moves_is_no_drift() -> None:
    """Both arms fall from 25 to 15 %, by day and night: in 40 series hardly an alarm; the plain rate alarms."""
    rng = np.random.default_rng(1)
    hours = np.arange(96.0)
    rate = np.stack([(0.25 - 0.10 * hours / 95) * day_and_night(hours)] * 2)
    alarms = naive = 0
    for _ in range(40):
        seen = waves(rng, rate)
        alarms += any(alarm.alarms for alarm in drift_alarms(seen, delay=AT_ONCE))
        naive += bool(drift_alarm((seen.successes[0] - 100.0) / np.sqrt(500 * 0.2 * 0.8)).alarms)
    assert alarms <= 2
    assert naive > 30


def test_residuals_are_standard_where_nothing_changes() -> None:
    rng = np.random.default_rng(2)
    residuals = arm_residuals(waves(rng, np.array([[0.1], [0.3]]) * np.ones(400)), delay=AT_ONCE)
    assert np.abs(residuals.mean(axis=1)).max() < 0.05
    # Two arms share a wave's level, so a part of the noise is the level's own.
    assert np.all((residuals.std(axis=1) > 0.4) & (residuals.std(axis=1) < 1.1))


def test_the_shortened_half_life_lets_the_policy_follow_the_change() -> None:
    """Arms swap: without an alarm the old winner keeps the traffic, with it the new one gets it."""
    rng = np.random.default_rng(3)
    turned = np.where(np.arange(144) < 110, [[0.26], [0.20]], [[0.20], [0.26]])
    seen = waves(rng, turned)
    shorter = shortened_half_life(seen, drift_alarms(seen, delay=AT_ONCE), 30.0)
    assert shorter is not None
    assert shorter < 1.5
    assert BetaBernoulliThompson(half_life_days=30.0, delay=AT_ONCE).pmf(seen)[0] > 0.9
    assert BetaBernoulliThompson(half_life_days=shorter, delay=AT_ONCE).pmf(seen)[1] > 0.8


def test_without_an_alarm_the_half_life_stays_and_it_never_grows() -> None:
    rng = np.random.default_rng(4)
    calm = waves(rng, np.full((2, 40), 0.2))
    assert shortened_half_life(calm, [], None) is None
    assert shortened_half_life(calm, [], 30.0) == 30.0
    turned = waves(rng, np.where(np.arange(96) < 48, [[0.2], [0.2]], [[0.2], [0.3]]))
    alarms = drift_alarms(turned, delay=AT_ONCE)
    assert shortened_half_life(turned, alarms, 0.5) == 0.5


def test_the_order_in_which_waves_are_listed_means_nothing() -> None:
    rng = np.random.default_rng(5)
    seen = waves(rng, np.where(np.arange(96) < 48, [[0.2], [0.2]], [[0.2], [0.3]]))
    order = rng.permutation(96)
    shuffled = ArmStatistics(seen.arms, seen.trials[:, order], seen.successes[:, order], seen.age_hours[:, order])
    assert drift_alarms(shuffled, delay=AT_ONCE) == drift_alarms(seen, delay=AT_ONCE)


def segments(rng: np.random.Generator, rate: np.ndarray, n_waves: int = 96) -> SegmentStatistics:
    """Two segments whose split moves from even to 90/10, each towards another arm; ``rate`` by segment and arm."""
    share = np.linspace(0.5, 0.9, n_waves)
    to_first = np.rint(500 * np.stack([share, 1 - share])).astype(int)
    n = np.stack([to_first, 500 - to_first], axis=1)
    age = np.broadcast_to(np.arange(n_waves, 0, -1) * 1.0, n.shape)
    return SegmentStatistics(("x", "y"), ("a", "b"), n, rng.binomial(n, np.broadcast_to(rate, n.shape)), age)


@pytest.mark.parametrize(
    "rate", [[[0.30, 0.30], [0.10, 0.10]], [[0.30, 0.15], [0.10, 0.13]]], ids=["eager", "each likes another arm"]
)
def test_an_allocation_that_comes_to_target_segments_is_no_drift(rate: list) -> None:
    rng = np.random.default_rng(6)
    stationary = [segments(rng, np.array(rate)[:, :, None]) for _ in range(10)]
    assert not any(alarm.alarms for seen in stationary for alarm in drift_alarms(seen, delay=AT_ONCE))
    assert sum(any(a.alarms for a in drift_alarms(seen.pooled(), delay=AT_ONCE)) for seen in stationary) >= 5


def test_a_change_planted_in_segments_is_found() -> None:
    rng = np.random.default_rng(7)
    rate = np.array([[0.30, 0.20], [0.10, 0.20]])[:, :, None] * np.ones(96)
    rate[:, 1, 60:] += 0.10
    found = 0
    for _ in range(10):
        seen = segments(rng, rate)
        alarms = drift_alarms(seen, delay=AT_ONCE)
        found += any(alarm.changed_at is not None and abs(alarm.changed_at - 60) <= 6 for alarm in alarms)
        assert (shortened_half_life(seen, alarms, None) is None) == (not any(alarm.alarms for alarm in alarms))
    assert found >= 9


def test_one_segment_is_all_contacts_together_and_none_is_no_alarm() -> None:
    rng = np.random.default_rng(8)
    seen = waves(rng, np.where(np.arange(96) < 48, [[0.2], [0.2]], [[0.2], [0.3]]))
    one = SegmentStatistics(("",), seen.arms, seen.trials[None], seen.successes[None], seen.age_hours[None])
    np.testing.assert_array_equal(arm_residuals(one, delay=AT_ONCE), arm_residuals(seen, delay=AT_ONCE))
    alarms = drift_alarms(seen, delay=AT_ONCE)
    assert drift_alarms(one, delay=AT_ONCE) == alarms
    assert shortened_half_life(one, alarms, 30.0) == shortened_half_life(seen, alarms, 30.0)
    nothing = np.zeros((0, 2, 0))
    unseen = SegmentStatistics((), ("a", "b"), nothing, nothing, nothing)
    assert [alarm.alarms for alarm in drift_alarms(unseen, delay=AT_ONCE)] == [(), ()]


@pytest.mark.parametrize(
    ("residuals", "delta", "says"),
    [([1.0, np.nan], 0.002, "finite"), ([[1.0]], 0.002, "finite"), ([1.0], 0.0, "not between 0 and 1")],
)
def test_what_is_no_series_is_refused(residuals: list, delta: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        drift_alarm(residuals, delta=delta)
