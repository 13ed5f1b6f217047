"""The laws that every policy keeps. A new policy joins the list and inherits them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from training.policies import (
    Allocation,
    ArmStatistics,
    BetaBernoulliThompson,
    CountPolicy,
    DelayCdf,
    EpsilonGreedy,
    FixedSplit,
    GaussianThompson,
    Policy,
    SegmentStatistics,
    Uniform,
    ValueStatistics,
    choose,
    hashed_draws,
    policy_from_parameters,
)

ARMS = ("a", "b", "c", "d")
POLICIES: dict[str, Policy] = {
    "thompson": BetaBernoulliThompson(),
    "thompson without floor": BetaBernoulliThompson(floor=0.0, temper=1.0),
    "thompson with a high floor": BetaBernoulliThompson(floor=0.2, minimum_successes=0),
    "thompson with a measured delay": BetaBernoulliThompson(
        delay=DelayCdf(knots=((1.0, 0.3), (6.0, 0.8), (48.0, 1.0)))
    ),
    "thompson that forgets": BetaBernoulliThompson(half_life_days=0.25),
    "thompson with a pooled prior": BetaBernoulliThompson(prior_concentration=2205.0, minimum_successes=5),
    "thompson with a pooled prior and rate": BetaBernoulliThompson(prior_concentration=100.0, prior_rate=0.05),
    "thompson with burn-in": BetaBernoulliThompson(minimum_per_arm=300.0),
    "thompson with limited change": BetaBernoulliThompson(maximum_change=0.1, design_effect=1.5),
    "thompson with a decided floor": BetaBernoulliThompson(decided_floor=0.01),
    "epsilon-greedy": EpsilonGreedy(),
    "epsilon-greedy with burn-in": EpsilonGreedy(epsilon=0.2, half_life_days=2.0, minimum_per_arm=100.0),
    "gaussian": GaussianThompson(),
    "gaussian without floor": GaussianThompson(floor=0.0, temper=1.0, half_life_days=1.0),
    "gaussian with burn-in": GaussianThompson(minimum_per_arm=300.0, minimum_successes=5, maximum_change=0.1),
    "fixed": FixedSplit({"a": 1, "b": 1, "c": 5, "d": 0}),
    "uniform": Uniform(),
}
LEARNERS = [name for name in POLICIES if name not in ("fixed", "uniform")]
BY_SEGMENT = [name for name, policy in POLICIES.items() if policy.context == "segment"]
every_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
every_learner = pytest.mark.parametrize("policy", [POLICIES[name] for name in LEARNERS], ids=LEARNERS)
every_segmented = pytest.mark.parametrize("policy", [POLICIES[name] for name in BY_SEGMENT], ids=BY_SEGMENT)

Table = ArmStatistics | ValueStatistics


def counts(count: int, seed: int, arms: tuple[str, ...] = ARMS) -> list[ArmStatistics]:
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


def values(count: int, seed: int, arms: tuple[str, ...] = ARMS) -> list[ValueStatistics]:
    """The same with orders behind the successes: a lognormal of 40 on average."""
    rng = np.random.default_rng(seed)
    drawn = []
    for table in counts(count, seed, arms):
        n = table.successes
        cells = [rng.lognormal(3.5, 0.7, size) for size in n.ravel()]
        sums = np.array([cell.sum() for cell in cells]).reshape(n.shape)
        squares = np.array([(cell**2).sum() for cell in cells]).reshape(n.shape)
        drawn.append(ValueStatistics(arms, table.trials, n, sums, squares, table.age_hours))
    return drawn


def tables(policy: Policy, count: int, seed: int) -> list[Table]:
    """What ``policy`` learns from."""
    return values(count, seed) if policy.learns_from is ValueStatistics else counts(count, seed)


def empty(policy: Policy, n_waves: int) -> Table:
    return policy.learns_from.empty(ARMS, n_waves)


def pmf(policy: Policy, table: Table | SegmentStatistics, previous: Allocation | None = None) -> np.ndarray:
    return policy.allocate(table, previous=previous).pmf


def with_success(table: Table, k: int, w: int, count: int = 1) -> Table:
    """``count`` further successes of an arm in a wave, each worth the mean reward so far."""
    more = table.successes.copy()
    more[k, w] += count
    if isinstance(table, ArmStatistics):
        return replace(table, successes=more)
    worth = table.sums.sum() / max(table.successes.sum(), 1)
    sums, squares = table.sums.copy(), table.squares.copy()
    sums[k, w] += count * worth
    squares[k, w] += count * worth**2
    return replace(table, successes=more, sums=sums, squares=squares)


@every_policy
def test_pmf_sums_to_one_and_every_arm_keeps_its_floor(policy: Policy) -> None:
    for table in [*tables(policy, 20, 1), empty(policy, 0), empty(policy, 3)]:
        given = pmf(policy, table)
        assert given.shape == (len(ARMS),)
        assert abs(given.sum() - 1.0) <= 1e-9
        assert given.min() >= policy.floor_of(len(ARMS)) - 1e-15


@every_policy
def test_reordering_the_arms_reorders_the_pmf_alike(policy: Policy) -> None:
    rng = np.random.default_rng(2)
    for table in tables(policy, 12, 2):
        order = rng.permutation(len(ARMS))
        np.testing.assert_allclose(pmf(policy, table.reordered(order)), pmf(policy, table)[order], atol=1e-9)


@every_policy
def test_the_same_statistics_give_the_same_bits(policy: Policy) -> None:
    for table in tables(policy, 4, 3):
        assert pmf(policy, table).tobytes() == pmf(policy, table).tobytes()


@every_policy
def test_many_tables_at_once_give_what_each_gives_alone(policy: Policy) -> None:
    one, other = [table for table in tables(policy, 60, 4) if table.trials.shape == (4, 3)][:2]
    names = ("trials", "successes", "age_hours")
    if policy.learns_from is ValueStatistics:
        names = ("trials", "successes", "sums", "squares", "age_hours")
    both = policy.shares(ARMS, *(np.stack([getattr(one, name), getattr(other, name)]) for name in names))
    np.testing.assert_allclose(both, [pmf(policy, one), pmf(policy, other)], atol=1e-9)


@every_policy
def test_parameters_survive_json(policy: Policy) -> None:
    again = policy_from_parameters(json.loads(json.dumps(policy.parameters())))
    assert again == policy
    for table in tables(policy, 5, 5):
        assert pmf(again, table).tobytes() == pmf(policy, table).tobytes()


@every_policy
def test_parameters_left_out_take_their_defaults(policy: Policy) -> None:
    """Parameters stored before one was added still load."""
    if policy.name == "fixed":
        pytest.skip("a fixed split is nothing without its weights")
    stored = policy.parameters()
    default = type(policy)().parameters()
    assert policy_from_parameters({"policy": policy.name}).parameters() == default
    for name in [name for name in stored if stored[name] == default[name] and name != "policy"]:
        assert policy_from_parameters({key: value for key, value in stored.items() if key != name}) == policy


@pytest.fixture(scope="module")
def million_draws() -> np.ndarray:
    n = 1_000_000
    return hashed_draws("salt", "snapshot", np.arange(n), [f"send:{i}" for i in range(n)])


@every_policy
def test_propensity_is_the_frequency_of_a_million_hashed_draws(policy: Policy, million_draws: np.ndarray) -> None:
    given = pmf(policy, tables(policy, 1, 6)[0])
    n = len(million_draws)
    drawn_counts = np.bincount(choose(given, million_draws), minlength=len(given))
    drawn = given > 0
    z = (drawn_counts[drawn] - n * given[drawn]) / np.sqrt(n * np.maximum(given[drawn] * (1 - given[drawn]), 1e-12))
    assert np.abs(z).max() < 4
    assert drawn_counts[~drawn].sum() == 0


def test_propensities_are_right_in_every_decile_of_a_million_draws(million_draws: np.ndarray) -> None:
    """A row of probabilities a draw, of many snapshots: in each decile of the propensity as many draws as it says."""
    policy = BetaBernoulliThompson()
    rows = np.stack([pmf(policy, table) for table in counts(200, 11)])[np.arange(len(million_draws)) % 200]
    chosen = choose(rows, million_draws)
    for k in range(len(ARMS)):
        p = rows[:, k]
        decile = np.searchsorted(np.quantile(p, np.linspace(0.1, 0.9, 9)), p)
        for d in np.unique(decile):
            inside = decile == d
            expected, variance = p[inside].sum(), (p[inside] * (1 - p[inside])).sum()
            assert abs((chosen[inside] == k).sum() - expected) < 4 * np.sqrt(variance)


@every_policy
def test_realised_shares_pass_the_ratio_test_on_twenty_seeds(policy: Policy) -> None:
    given = pmf(policy, tables(policy, 1, 12)[0])
    drawn = given > 0
    for seed in range(20):
        draws = hashed_draws(f"salt {seed}", "snapshot", np.arange(5000), ["send:1"] * 5000)
        seen = np.bincount(choose(given, draws), minlength=len(given))
        assert stats.chisquare(seen[drawn], 5000 * given[drawn]).pvalue > 1e-4


@every_learner
def test_a_further_success_never_lowers_the_arms_share(policy: Policy) -> None:
    """Once there is evidence at all: below the minimum the split is uniform whatever happens."""
    rng = np.random.default_rng(7)
    tried = 0
    for table in tables(policy, 45, 7):
        k, w = rng.integers(len(ARMS)), rng.integers(table.trials.shape[1])
        enough = (table.successes * policy.weights(table.age_hours)).sum() >= 80
        if not enough or table.successes[k, w] >= table.trials[k, w]:
            continue
        # The quadrature is exact to about 1e-8.
        assert pmf(policy, with_success(table, k, w))[k] >= pmf(policy, table)[k] - 1e-6
        tried += 1
    assert tried > 12


@every_learner
def test_many_more_successes_raise_the_arms_share(policy: Policy) -> None:
    n = np.full((4, 3), 200)
    age = np.full((4, 3), 24.0)
    before: Table = ArmStatistics(ARMS, n * 5, n, age)
    if policy.learns_from is ValueStatistics:
        before = ValueStatistics(ARMS, n * 5, n, n * 40.0, n * 2500.0, age)
    after = with_success(with_success(with_success(before, 2, 0, 60), 2, 1, 60), 2, 2, 60)
    assert pmf(policy, after)[2] > pmf(policy, before)[2] + 0.1


@every_learner
def test_arm_names_mean_nothing_to_a_learner(policy: Policy) -> None:
    for table in tables(policy, 5, 8):
        assert pmf(policy, replace(table, arms=("w", "x", "y", "z"))).tobytes() == pmf(policy, table).tobytes()


@pytest.mark.parametrize("name", [*LEARNERS, "uniform"])
def test_without_evidence_the_split_is_uniform(name: str) -> None:
    policy = POLICIES[name]
    for table in (empty(policy, 0), empty(policy, 2)):
        np.testing.assert_allclose(pmf(policy, table), 0.25, atol=1e-9)


@every_learner
def test_the_order_of_the_waves_means_nothing(policy: Policy) -> None:
    """Counts are sums: in whatever order rewards came in, and waves are listed, the split is the same."""
    rng = np.random.default_rng(13)
    for table in tables(policy, 5, 13):
        order = rng.permutation(table.trials.shape[1])
        names = [name for name in ("trials", "successes", "sums", "squares", "age_hours") if hasattr(table, name)]
        shuffled = replace(table, **{name: getattr(table, name)[:, order] for name in names})
        np.testing.assert_allclose(pmf(policy, shuffled), pmf(policy, table), atol=1e-9)


@every_learner
def test_no_arm_moves_by_more_than_the_limit_and_the_limit_is_used(policy: Policy) -> None:
    limited = replace(policy, maximum_change=0.1)
    free = replace(policy, maximum_change=None)
    before = limited.allocate(empty(policy, 1))
    moved = []
    for table in tables(policy, 6, 14):
        after = limited.allocate(table, previous=before)
        assert abs(after.pmf.sum() - 1) <= 1e-9
        assert after.pmf.min() >= policy.floor_of(len(ARMS)) - 1e-12
        moved.append(np.abs(after.pmf - before.pmf).max())
        unlimited = np.abs(pmf(free, table) - before.pmf).max()
        assert moved[-1] == pytest.approx(min(unlimited, 0.1), abs=1e-9)
        # Step by step it gets where it would have gone at once.
        for _ in range(8):
            after = limited.allocate(table, previous=after)
        np.testing.assert_allclose(after.pmf, pmf(free, table), atol=1e-9)
    assert max(moved) > 0.099


@every_learner
def test_the_limit_goes_by_arm_name_and_lets_arms_come_and_go(policy: Policy) -> None:
    limited = replace(policy, maximum_change=0.05, minimum_successes=0)
    for table in tables(policy, 4, 15):
        before = limited.allocate(table)
        backwards = limited.allocate(table.reordered([3, 2, 1, 0]), previous=before)
        np.testing.assert_allclose(backwards.pmf[::-1], before.pmf, atol=1e-9)
        others = limited.allocate(table.reordered([1, 2, 3]), previous=before)
        assert abs(others.pmf.sum() - 1) <= 1e-9
        assert others.pmf.min() >= policy.floor_of(3) - 1e-12
        again = limited.allocate(table, previous=others)
        assert abs(again.pmf.sum() - 1) <= 1e-9
        assert again.pmf.min() >= policy.floor_of(4) - 1e-12


@every_learner
def test_an_arm_has_the_uniform_share_until_it_has_its_minimum(policy: Policy) -> None:
    """A new arm beside three with plenty of evidence; the others share what is left as their evidence says."""
    young = replace(policy, minimum_per_arm=300.0, minimum_successes=0, half_life_days=None, design_effect=1.0)
    tried = 0
    for table in tables(policy, 40, 16):
        effective = (table.trials * young.delay(table.age_hours)).sum(axis=1)
        is_new = effective < 300
        if not is_new.any() or is_new.all():
            continue
        given = pmf(young, table)
        np.testing.assert_allclose(given[is_new], 0.25)
        assert abs(given.sum() - 1) <= 1e-9
        assert given.min() >= policy.floor_of(4) - 1e-12
        tried += 1
    assert tried > 3


@pytest.mark.parametrize("kind", [ArmStatistics, ValueStatistics])
@pytest.mark.parametrize(("arms", "says"), [(("a",), "nothing to choose among 1 arm"), (("a", "a"), "repeat")])
def test_one_arm_or_repeated_arms_are_refused_with_the_remedy(kind: type, arms: tuple[str, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kind.empty(arms)


@every_policy
def test_every_allocation_says_why_in_json(policy: Policy) -> None:
    for table in (empty(policy, 1), tables(policy, 1, 17)[0]):
        allocation = policy.allocate(table)
        assert allocation.arms == ARMS
        assert allocation.reason
        assert json.loads(json.dumps(dict(allocation.details))) == dict(allocation.details)


# ------------------------------------------------------------------------------------------------------- segments


def segmented(seed: int, segments: tuple[str, ...] = ("new", "loyal", "asleep"), n: int = 3000) -> SegmentStatistics:
    """Segments of unlike levels; the second prefers the last arm, the others the first; the third is small."""
    rng = np.random.default_rng(seed)
    effect = np.array([[1.3, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.4], [1.3, 1.0, 1.0, 1.0]])[: len(segments)]
    level = np.array([0.1, 0.3, 0.05])[: len(segments), None, None]
    size = np.array([n, n, n // 10])[: len(segments), None, None]
    trials = np.broadcast_to(size, (len(segments), 4, 3))
    age = np.broadcast_to(np.array([48.0, 24.0, 4.0]), trials.shape)
    rate = level * effect[..., None] * np.array([1.0, 0.8, 1.2]) * DelayCdf()(age)
    return SegmentStatistics(segments, ARMS, trials, rng.binomial(trials, rate), age)


@every_segmented
def test_every_segments_pmf_keeps_the_laws(policy: CountPolicy) -> None:
    rng = np.random.default_rng(20)
    for seed in range(3):
        table = segmented(seed, n=int(rng.choice([100, 1000, 4000])))
        allocation = policy.allocate(table)
        order = rng.permutation(len(ARMS))
        turned = policy.allocate(table.reordered(order))
        for name in table.segments:
            given = allocation.by_segment[name]
            assert abs(given.sum() - 1) <= 1e-9
            assert given.min() >= policy.floor_of(len(ARMS)) - 1e-12
            np.testing.assert_allclose(turned.by_segment[name], given[order], atol=1e-9)
            assert given.tobytes() == policy.allocate(table).by_segment[name].tobytes()


@every_segmented
def test_one_segment_alone_answers_as_without_segments(policy: CountPolicy) -> None:
    for table in counts(3, 21):
        one = SegmentStatistics(
            ("all",), ARMS, table.trials[None], table.successes[None], np.array(table.age_hours)[None]
        )
        allocation = policy.allocate(one)
        np.testing.assert_allclose(allocation.probabilities(1, segments=["all"])[0], pmf(policy, table), atol=1e-9)


@every_segmented
def test_a_segment_without_evidence_answers_as_all_together(policy: CountPolicy) -> None:
    table = segmented(3)
    nothing = np.zeros((1, 4, 3), dtype=np.int64)
    wider = SegmentStatistics(
        (*table.segments, "empty"), ARMS, np.concatenate([table.trials, nothing]),
        np.concatenate([table.successes, nothing]), np.concatenate([table.age_hours, nothing.astype(float)]),
    )  # fmt: skip
    allocation = policy.allocate(wider)
    rows = allocation.probabilities(3, segments=["empty", "never seen", None])
    np.testing.assert_allclose(rows, np.repeat(allocation.pmf[None], 3, axis=0), atol=1e-12)


@every_segmented
def test_a_further_success_never_lowers_the_arms_share_in_its_segment(policy: CountPolicy) -> None:
    rng = np.random.default_rng(22)
    for seed in range(6):
        table = segmented(seed, n=1000)
        g, k, w = rng.integers(2), rng.integers(4), rng.integers(3)
        more = table.successes.copy()
        more[g, k, w] += 1
        name = table.segments[g]
        before, after = policy.allocate(table), policy.allocate(replace(table, successes=more))
        assert after.by_segment[name][k] >= before.by_segment[name][k] - 1e-6


@every_segmented
def test_the_limit_on_change_holds_in_every_segment(policy: CountPolicy) -> None:
    limited = replace(policy, maximum_change=0.05)
    before = limited.allocate(segmented(4, n=100))
    after = limited.allocate(segmented(4), previous=before)
    for name in before.by_segment:
        assert np.abs(after.by_segment[name] - before.by_segment[name]).max() <= 0.05 + 1e-9
