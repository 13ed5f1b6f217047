"""Laws of `training.policy_replay`: what is kept of a log is a history that the policy might have lived through."""

from dataclasses import replace

import numpy as np
import pytest

from tests.training.test_off_policy import Leader
from training.off_policy import LoggedDecisions, arm_target, evaluate
from training.off_policy_worlds import simulate_log
from training.policies import Allocation, BetaBernoulliThompson, FixedSplit, Policy, Uniform
from training.policies.statistics import LinearStatistics, SegmentStatistics, ValueStatistics
from training.policy_replay import replay_in_time


def uniform_log(n: int = 3000, seed: int = 1, **world) -> LoggedDecisions:
    return simulate_log(n, seed=seed, sharpness=0.0, **world).logged


def test_a_learner_earns_in_the_replay_what_it_earns_live():
    """80 replays of uniform logs against 80 lives of a quarter of the length: the same mean, the same last shares."""
    lived, replayed, lived_share, replayed_share = [], [], [], []
    for seed in range(80):
        log = uniform_log(2400, seed)
        again = replay_in_time(Leader(), log, seed=seed)
        life = simulate_log(600, seed=1000 + seed, policy=Leader())
        lived.append(life.logged.reward.mean())
        replayed.append(again.value)
        lived_share.append(life.behavior[life.logged.wave == 11][0, 1])
        replayed_share.append(again.pmf[-1, 1])

    for live, again in ((lived, replayed), (lived_share, replayed_share)):
        error = np.sqrt((np.var(live) + np.var(again)) / 80)
        assert abs(np.mean(live) - np.mean(again)) < 3 * error
    assert np.mean(replayed) > np.mean([uniform_log(2400, seed).reward.mean() for seed in range(20)]) + 0.015


def test_a_log_that_is_not_uniform_is_replayed_by_rejection():
    """The same value from a log of a policy that prefers some arms; only fewer decisions are kept."""
    uniform, uneven = [], []
    for seed in range(60):
        uniform.append(replay_in_time(Leader(), uniform_log(2400, seed), seed=seed))
        log = simulate_log(2400, seed=seed + 500, floor=0.1).logged
        uneven.append(replay_in_time(Leader(), log, seed=seed))
    values = [np.array([one.value for one in kind]) for kind in (uniform, uneven)]

    assert abs(values[0].mean() - values[1].mean()) < 3 * np.sqrt((values[0].var() + values[1].var()) / 60)
    assert np.mean([one.acceptance for one in uneven]) < 0.6 * np.mean([one.acceptance for one in uniform])


def test_on_uniform_rows_one_in_n_arms_is_kept():
    """Whatever the policy, its draw agrees with a uniform one with probability 1 / n_arms (Li et al. 2010)."""
    log = uniform_log(8000)
    for policy in (Uniform(), FixedSplit({"arm_0": 7, "arm_1": 1, "arm_2": 1, "arm_3": 1}), Leader()):
        found = replay_in_time(policy, log)
        assert abs(found.accepted - 2000) < 4 * np.sqrt(8000 * 0.25 * 0.75)
        assert (found.offered, found.trials.sum()) == (8000, found.accepted)


def test_a_fixed_arm_is_worth_in_the_replay_what_its_snips_says():
    """With one arm all of its rows are kept, and their mean is the estimate."""
    log = uniform_log(4000)
    found = replay_in_time(FixedSplit({"arm_0": 0, "arm_1": 1, "arm_2": 0, "arm_3": 0}), log)
    estimate = evaluate(log, arm_target(log, "arm_1"))["snips"]

    assert found.value == pytest.approx(estimate.value)
    assert found.interval == pytest.approx(estimate.interval, rel=0.01)


def test_rewards_that_have_not_come_in_teach_nothing():
    """With every reward a year late the learner stays where it began; at once, it moves."""
    log = uniform_log(12_000)
    late = replace(log, reward_at=np.where(log.reward > 0, log.occurred_at + 365 * 86_400_000_000, -1))
    soon = replace(log, reward_at=np.where(log.reward > 0, log.occurred_at, -1))
    pmfs = [replay_in_time(BetaBernoulliThompson(), one).pmf for one in (late, soon, log)]

    assert pmfs[0] == pytest.approx(np.full((12, 4), 0.25))
    assert pmfs[1][-1].max() > 0.5
    assert np.array_equal(pmfs[1], pmfs[2])


def test_an_arm_that_was_not_open_is_not_waited_for():
    """Where an arm was shut, the others share its probability."""
    log = uniform_log(3000)
    eligible = np.ones((3000, 4), dtype=bool)
    eligible[log.arm != 0, 0] = False
    open_arms = eligible.sum(axis=1)
    found = replay_in_time(Uniform(), replace(log, eligible=eligible, propensity=1 / open_arms))

    assert abs(found.accepted - (0.25 * 3000)) < 4 * np.sqrt(3000 * 0.25 * 0.75)


class Recorder(Policy):
    """Stays uniform and keeps the last statistics that it was shown."""

    name = "recorder"

    def __init__(self, learns_from: type) -> None:
        self.kind = learns_from
        self.seen = None

    @property
    def learns_from(self):  # type: ignore[override]
        return self.kind

    def allocate(self, statistics, *, previous=None, seed=0):
        self.seen = statistics
        return Allocation(statistics.arms, np.full(4, 0.25), "uniform")

    def parameters(self):
        return {"policy": self.name}

    def floor_of(self, n_arms):
        return 1 / n_arms


def test_every_kind_of_statistics_adds_up_to_what_was_kept():
    """Values, segments and matrices of the waves before the last are those of the kept decisions."""
    log = uniform_log(2000)
    log = replace(log, segment=tuple("new" if key % 3 else None for key in log.contact_key))
    seen = {}
    for kind in (ValueStatistics, SegmentStatistics, LinearStatistics):
        recorder = Recorder(kind)
        found = replay_in_time(recorder, log, seed=3)
        seen[kind] = recorder.seen
    before = found.trials[:, :-1]
    linear, segments, values = seen[LinearStatistics], seen[SegmentStatistics], seen[ValueStatistics]

    assert np.array_equal(values.trials, before)
    assert np.array_equal(segments.trials.sum(axis=0), before)
    assert segments.segments == ("", "new")
    assert np.array_equal(linear.trials, before)
    assert np.array_equal(values.sums.sum(), segments.successes.sum())
    assert np.array_equal(values.sums, values.squares)
    assert linear.gram == pytest.approx(np.swapaxes(linear.gram, -1, -2))
    assert linear.squares == pytest.approx(values.squares)
    traces = np.trace(linear.gram.sum(axis=(0, 1)))
    assert traces == pytest.approx(3 * before.sum(), rel=0.15)  # three standard normal features


def test_what_cannot_be_replayed_is_refused():
    """Too few kept decisions give no value; a log without waves, segments or vectors says what it lacks."""
    few = replay_in_time(Uniform(), uniform_log(200))
    none = uniform_log(200).take(np.zeros(200, dtype=bool))

    assert few.value is None
    assert "a value takes 100" in few.why
    assert replay_in_time(Uniform(), uniform_log(200), force=True).value is not None
    assert (replay_in_time(Uniform(), none, force=True).value, replay_in_time(Uniform(), none).acceptance) == (None, 0)
    with pytest.raises(ValueError, match="wave"):
        replay_in_time(Uniform(), replace(uniform_log(200), wave=None))
    with pytest.raises(ValueError, match="segment"):
        replay_in_time(Recorder(SegmentStatistics), uniform_log(200))
    with pytest.raises(ValueError, match="contexts"):
        replay_in_time(Recorder(LinearStatistics), replace(uniform_log(200), contexts=None))
    with pytest.raises(ValueError, match="learns from dict"):
        replay_in_time(Recorder(dict), uniform_log(200))
