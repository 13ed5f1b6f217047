"""What a test can prove, said before it begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from training.inference import Plan, difference
from training.inference_worlds import even_split, simulate_experiment
from training.planning import lift_between_arms, lift_provable, sends_needed


def test_with_the_sends_needed_the_lift_is_proved_about_as_often_as_promised() -> None:
    for rate, lift in ((0.2, 0.1), (0.03, 0.25)):
        n = sends_needed(rate, lift).sends
        experiment = simulate_experiment(
            even_split(), (rate, rate * (1 + lift)), n_sends=n, n_waves=20, runs=600, seed=1
        )
        found = difference(experiment.batches, "arm_1", "arm_0", Plan.for_rate(n, rate))
        assert 0.76 <= (found.lower > 0).any(axis=-1).mean() <= 0.90


def test_eight_thousand_contacts_with_five_percent_held_out_prove_82_percent_at_one_look() -> None:
    """At a base rate of 3 % by the usual two-proportion computation; at any look it takes more."""
    said = lift_provable(8_000, 0.05, 0.03, looks="one")
    assert said.sentence.startswith("With 8,000 contacts and 5 % held out only a lift of ≥ 82 % can be proved")
    assert lift_provable(8_000, 0.05, 0.03).lift > said.lift


def test_the_two_plans_are_each_others_inverse() -> None:
    for rate, lift in ((0.2, 0.08), (0.01, 0.5)):
        n = sends_needed(rate, lift, allocation=(0.4, 0.3, 0.3)).sends
        assert lift_between_arms(n, rate, allocation=(0.4, 0.3, 0.3)).lift == pytest.approx(lift, rel=1e-3)


def test_more_power_rarer_rewards_smaller_lifts_more_arms_and_lopsided_splits_need_more() -> None:
    usual = sends_needed(0.2, 0.1).sends
    for harder in (
        sends_needed(0.2, 0.1, power=0.9),
        sends_needed(0.02, 0.1),
        sends_needed(0.2, 0.05),
        sends_needed(0.2, 0.1, allocation=(1 / 3, 1 / 3, 1 / 3)),
        sends_needed(0.2, 0.1, allocation=(0.95, 0.05)),
    ):
        assert harder.sends > usual
    assert sends_needed(0.2, 0.1, looks="one").sends < usual


def test_one_look_is_the_textbook_figure() -> None:
    """Two proportions, .20 and .22, 80 % power, two-sided 5 %: 6,507 an arm (unpooled variances)."""
    assert sends_needed(0.20, 0.10, looks="one").sends == pytest.approx(2 * 6507, abs=4)


def test_what_cannot_be_proved_is_said() -> None:
    assert lift_provable(100, 0.01, 0.3).lift is None
    assert "no lift can be proved" in lift_provable(100, 0.01, 0.3).sentence
    assert lift_between_arms(10, 0.3).lift is None
    assert "plan more sends" in lift_between_arms(10, 0.3).sentence
    assert lift_between_arms(10**9, 1 - 1e-7).lift is None


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"base_rate": 0.0}, "above 0 and below 1"),
        ({"lift": 0.0}, "not 0"),
        ({"lift": 1e-17}, "1e-06 or more"),
        ({"allocation": (1e-310, 1.0)}, "shares of 1e-06 or more"),
        ({"lift": 9.0}, "between 0 and 1"),
        ({"power": 1.0}, "probability of success"),
        ({"alpha": 0.0}, "error probability"),
        ({"allocation": (1.0,)}, "two or more arms"),
        ({"allocation": (0.9, 0.9)}, "sum to 1"),
    ],
)
def test_impossible_plans_are_refused(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        sends_needed(**{"base_rate": 0.2, "lift": 0.1, **asked})


@pytest.mark.parametrize("share", [0.0, 1.0, np.nan])
def test_a_holdout_needs_two_sides(share: float) -> None:
    with pytest.raises(ValueError, match="no comparison"):
        lift_provable(1000, share, 0.1)
