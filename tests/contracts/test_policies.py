"""The laws that every policy keeps. A new policy joins the list and inherits them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from training.policies import (
    ArmStatistics,
    BetaBernoulliThompson,
    CountPolicy,
    DelayCdf,
    FixedSplit,
    Uniform,
    choose,
    hashed_draws,
    policy_from_parameters,
)

ARMS = ("a", "b", "c", "d")
POLICIES = {
    "thompson": BetaBernoulliThompson(),
    "thompson without floor": BetaBernoulliThompson(floor=0.0, temper=1.0),
    "thompson with a high floor": BetaBernoulliThompson(floor=0.2, minimum_successes=0),
    "thompson with a measured delay": BetaBernoulliThompson(
        delay=DelayCdf(knots=((1.0, 0.3), (6.0, 0.8), (48.0, 1.0)))
    ),
    "fixed": FixedSplit({"a": 1, "b": 1, "c": 5, "d": 0}),
    "uniform": Uniform(),
}
LEARNERS = [name for name in POLICIES if name.startswith("thompson")]
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
every_learner = pytest.mark.parametrize("policy", [POLICIES[name] for name in LEARNERS], ids=LEARNERS)


def tables(count: int, seed: int, arms: tuple[str, ...] = ARMS) -> list[ArmStatistics]:
    """Statistics of all sorts: few and many trials, low and high rates, arms and waves without trials."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(count):
        shape = (len(arms), int(rng.integers(1, 7)))
        trials = rng.integers(0, rng.choice([20, 300, 5000]), shape) * (rng.random(shape) < 0.9)
        rates = rng.uniform(0.005, 0.4) * np.exp(rng.normal(0, 0.3, (shape[0], 1)) + rng.normal(0, 0.3, shape[1]))
        age = np.broadcast_to(np.arange(shape[1], 0, -1) * 2.0, shape)
        drawn.append(ArmStatistics(arms, trials, rng.binomial(trials, np.minimum(rates, 0.7) * DelayCdf()(age)), age))
    return drawn


@every_policy
def test_pmf_sums_to_one_and_every_arm_keeps_its_floor(policy: CountPolicy) -> None:
    for statistics in [*tables(60, 1), ArmStatistics.empty(ARMS), ArmStatistics.empty(ARMS, 3)]:
        pmf = policy.pmf(statistics)
        assert pmf.shape == (len(ARMS),)
        assert abs(pmf.sum() - 1.0) <= 1e-9
        assert pmf.min() >= policy.floor_of(len(ARMS)) - 1e-15


@every_policy
def test_reordering_the_arms_reorders_the_pmf_alike(policy: CountPolicy) -> None:
    rng = np.random.default_rng(2)
    for statistics in tables(30, 2):
        order = rng.permutation(len(ARMS))
        np.testing.assert_allclose(policy.pmf(statistics.reordered(order)), policy.pmf(statistics)[order], atol=1e-9)


@every_policy
def test_the_same_statistics_give_the_same_bits(policy: CountPolicy) -> None:
    for statistics in tables(10, 3):
        assert policy.pmf(statistics).tobytes() == policy.pmf(statistics).tobytes()


@every_policy
def test_many_tables_at_once_give_what_each_gives_alone(policy: CountPolicy) -> None:
    one, other = (s for s in tables(200, 4) if s.trials.shape == (4, 3)), None
    one, other = next(one), next(one)
    both = policy.shares(
        ARMS,
        np.stack([one.trials, other.trials]),
        np.stack([one.successes, other.successes]),
        np.stack([one.age_hours, other.age_hours]),
    )
    np.testing.assert_allclose(both, [policy.pmf(one), policy.pmf(other)], atol=1e-9)


@every_policy
def test_parameters_survive_json(policy: CountPolicy) -> None:
    again = policy_from_parameters(json.loads(json.dumps(policy.parameters())))
    assert again == policy
    for statistics in tables(5, 5):
        assert again.pmf(statistics).tobytes() == policy.pmf(statistics).tobytes()


@pytest.fixture(scope="module")
def million_draws() -> np.ndarray:
    n = 1_000_000
    return hashed_draws("salt", "snapshot", np.arange(n), [f"send:{i}" for i in range(n)])


@every_policy
def test_propensity_is_the_frequency_of_a_million_hashed_draws(policy: CountPolicy, million_draws: np.ndarray) -> None:
    pmf = policy.pmf(tables(1, 6)[0])
    n = len(million_draws)
    counts = np.bincount(choose(pmf, million_draws), minlength=len(pmf))
    drawn = pmf > 0
    z = (counts[drawn] - n * pmf[drawn]) / np.sqrt(n * np.maximum(pmf[drawn] * (1 - pmf[drawn]), 1e-12))
    assert np.abs(z).max() < 4
    assert counts[~drawn].sum() == 0


@every_learner
def test_a_further_success_never_lowers_the_arms_share(policy: CountPolicy) -> None:
    """Once there is evidence at all: below the minimum the split is uniform whatever happens."""
    rng = np.random.default_rng(7)
    tried = 0
    for statistics in tables(200, 7):
        k, w = rng.integers(len(ARMS)), rng.integers(statistics.trials.shape[1])
        if statistics.successes.sum() < 80 or statistics.successes[k, w] >= statistics.trials[k, w]:
            continue
        more = statistics.successes.copy()
        more[k, w] += 1
        raised = ArmStatistics(ARMS, statistics.trials, more, statistics.age_hours)
        assert policy.pmf(raised)[k] >= policy.pmf(statistics)[k] - 1e-6  # the quadrature is exact to about 1e-8
        tried += 1
    assert tried > 80


@every_learner
def test_many_more_successes_raise_the_arms_share(policy: CountPolicy) -> None:
    trials = np.full((4, 3), 1000)
    successes = np.full((4, 3), 200)
    better = successes.copy()
    better[2] += 60
    age = np.full((4, 3), 24.0)
    before = policy.pmf(ArmStatistics(ARMS, trials, successes, age))
    after = policy.pmf(ArmStatistics(ARMS, trials, better, age))
    assert after[2] > before[2] + 0.1


@every_learner
def test_arm_names_mean_nothing_to_a_learner(policy: CountPolicy) -> None:
    for statistics in tables(5, 8):
        renamed = ArmStatistics(("w", "x", "y", "z"), statistics.trials, statistics.successes, statistics.age_hours)
        assert policy.pmf(renamed).tobytes() == policy.pmf(statistics).tobytes()


@pytest.mark.parametrize("name", [*LEARNERS, "uniform"])
def test_without_evidence_the_split_is_uniform(name: str) -> None:
    for statistics in (ArmStatistics.empty(ARMS), ArmStatistics.empty(ARMS, 2)):
        np.testing.assert_allclose(POLICIES[name].pmf(statistics), 0.25, atol=1e-9)


@pytest.mark.parametrize(("arms", "says"), [(("a",), "nothing to choose among 1 arm"), (("a", "a"), "repeat")])
def test_one_arm_or_repeated_arms_are_refused_with_the_remedy(arms: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ArmStatistics.empty(arms)


@every_policy
def test_every_allocation_says_why(policy: CountPolicy) -> None:
    allocation = policy.allocate(ArmStatistics.empty(ARMS, 1))
    assert allocation.arms == ARMS
    assert allocation.reason
