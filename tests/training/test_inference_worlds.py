"""Reports looked at all the time, in worlds whose truth is known: short runs of `kairos simulate reports`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.inference import Plan, difference
from training.inference_worlds import (
    PooledThompson,
    broken_bounds,
    effect_report,
    even_split,
    ever,
    naive_misses,
    repeat_contact_misses,
    reports_report,
    sample_ratio_alarms,
    simulate_experiment,
    weekly_season,
)
from training.policies import DelayCdf

RUNS = 200
#: Of 200 runs that err in 5 % more than 18 do in 1 % of tests; the sequences err in some 2 %.
MOST = 18
WORLD: dict[str, Any] = {"n_sends": 40_000, "n_waves": 40, "runs": RUNS, "seed": 21}


def misses(experiment: Any, rate: float, n_sends: int = 40_000) -> int:
    plan = Plan.for_rate(n_sends, rate)
    return max(
        int(ever(difference(experiment.batches, "arm_1", "arm_0", plan, weights=weights), 0.0).sum())
        for weights in ("precision", "equal")
    )


def test_without_an_effect_reports_err_rarely_where_the_usual_interval_errs_often() -> None:
    fixed = simulate_experiment(even_split(), (0.2, 0.2), **WORLD)
    season = simulate_experiment(PooledThompson(0.05), (0.2, 0.2), base=weekly_season, **WORLD)
    assert misses(fixed, 0.2) <= MOST
    assert misses(season, 0.2) <= MOST
    assert 0.18 < naive_misses(fixed).mean() < 0.45
    assert naive_misses(season).mean() > 0.65


@pytest.mark.parametrize(
    ("rates", "differs"),
    [
        ((0.2,) * 3, {"enters": (0, 20, 0), "base": weekly_season}),
        ((0.2, 0.2), {"delay": DelayCdf(), "wave_hours": 1.0}),
        ((0.02, 0.02), {}),
        ((0.002, 0.002), {}),
    ],
    ids=["arm added mid-way in a season", "delay", "rate .02", "rate .002"],
)
def test_errors_stay_rare(rates: tuple[float, ...], differs: dict[str, Any]) -> None:
    policy = PooledThompson(0.01 if rates[0] < 0.1 else 0.05)
    assert misses(simulate_experiment(policy, rates, **{**WORLD, **differs}), rates[0]) <= MOST


def test_a_model_that_has_seen_its_batch_is_found_out() -> None:
    """The planted bug: means of the batch itself, in waves of ten. At 5 % more than 11 of 100 err in 1 % of tests."""
    small: dict[str, Any] = {"n_sends": 2000, "n_waves": 200, "runs": 100, "seed": 22}
    planted = simulate_experiment(PooledThompson(0.05), (0.2, 0.2), foresight="own_batch", **small)
    right = simulate_experiment(PooledThompson(0.05), (0.2, 0.2), **small)
    assert misses(planted, 0.2, 2000) >= 20
    assert misses(right, 0.2, 2000) <= 11


def test_probabilities_logged_before_the_floor_are_found_out() -> None:
    world = {**WORLD, "n_sends": 20_000}
    experiment = simulate_experiment(PooledThompson(0.05), (0.2, 0.22), **world)
    assert sample_ratio_alarms(experiment, floor=0.05).mean() > 0.8
    assert sample_ratio_alarms(experiment).sum() <= 1


@pytest.mark.parametrize(("sticky", "unit"), [(True, "contact"), (False, "mail")], ids=["sticky", "drawn anew"])
def test_ten_mails_to_the_same_contacts_do_not_mislead(sticky: bool, unit: Any) -> None:
    for policy in (even_split(), PooledThompson(0.05)):
        assert repeat_contact_misses(policy, sticky=sticky, unit=unit, runs=RUNS, seed=23).sum() <= MOST


def test_taking_a_sticky_contacts_mails_for_units_misleads() -> None:
    wrong = repeat_contact_misses(even_split(), sticky=True, unit="mail", runs=200, seed=24, likeness=0.5)
    assert wrong.mean() > 0.15


def test_intervals_cover_the_weighted_truth_where_effects_move_with_the_season() -> None:
    experiment = simulate_experiment(PooledThompson(0.05), (0.2, 0.25), base=weekly_season, **WORLD)
    plan = Plan.for_rate(40_000, 0.2)
    for weights in ("precision", "equal"):
        found = difference(experiment.batches, "arm_1", "arm_0", plan, weights=weights)
        assert ever(found, experiment.true_difference(plan, weights)).sum() <= MOST


def test_power_of_a_fixed_split_is_as_published() -> None:
    row = effect_report(RUNS, only="fixed")[0]
    assert row["declared_precision"]["share"] >= 0.90


def test_the_same_seed_gives_the_same_runs() -> None:
    one, other = (simulate_experiment(PooledThompson(), (0.2, 0.2), **{**WORLD, "runs": 3}) for _ in range(2))
    np.testing.assert_array_equal(one.batches.sums, other.batches.sums)


def test_rates_beyond_one_are_refused() -> None:
    with pytest.raises(ValueError, match="keep them between 0 and 1"):
        simulate_experiment(even_split(), (0.9, 0.8), base=weekly_season, **WORLD)


@pytest.mark.slow
def test_acceptance_of_the_reports() -> None:
    """Every world of 1,000 runs: errors at any look, coverage, power, planted bugs, repeat contacts, guardrails."""
    assert broken_bounds(reports_report(1000)) == []
