"""Off-policy value of an hour policy: exact where it can be, right on later sends, wrong on those learned from."""

from __future__ import annotations

import numpy as np
import pytest

from training.hour_policy import HourPolicyValue, hour_policy_value
from training.send_hour import fit_personal
from training.send_hour_worlds import DAY, HourWorld


def judged(world: HourWorld, *, held_out: bool) -> tuple[HourPolicyValue, float]:
    """Estimate and truth of a policy that trusts a contact's own answers too much."""
    sends = world.sends
    split = int(np.quantile(sends.sent_at, 0.7))
    learned = sends.take(sends.sent_at + DAY <= split) if held_out else sends
    asked = sends.take(sends.sent_at >= split) if held_out else sends
    X = world.vectors(split if held_out else world.end)
    curves = fit_personal(learned, X, 5, 4.0, prior_events=1.0, visit_weight=1.0, prior_sends=3.0).predict_hours(X)
    chosen = curves.argmax(axis=1)
    window = (chosen[:, None] + np.arange(-1, 2)) % 24
    truth = np.take_along_axis(world.truth, window, axis=1).mean(axis=1)[asked.contact_key].mean()
    assert asked.propensity is not None
    value = hour_policy_value(
        asked.contact_key, asked.hour, asked.answered, asked.propensity, chosen[asked.contact_key],
        curves[asked.contact_key],
    )  # fmt: skip
    return value, float(truth)


@pytest.mark.parametrize(
    "name", ["evening", pytest.param("office", marks=pytest.mark.slow), pytest.param("shift", marks=pytest.mark.slow)]
)
def test_later_sends_tell_the_truth_and_those_learned_from_do_not(name: str) -> None:
    """On held-out sends the interval covers the true value; on its own sends the policy looks twice as good."""
    world = HourWorld.draw(name, seed=0)
    later, truth = judged(world, held_out=True)
    same, truth_now = judged(world, held_out=False)

    assert later.interval is not None
    assert same.dr is not None
    assert later.interval[0] <= truth <= later.interval[1]
    assert later.snips == pytest.approx(truth, abs=0.04)
    assert same.dr > 1.5 * truth_now
    assert same.snips is not None
    assert same.snips > 1.5 * truth_now


def test_random_hours_are_worth_what_they_earned() -> None:
    """Uniform log, uniform weights: IPS is the scaled mean, SNIPS the mean of the sends in the window."""
    rng = np.random.default_rng(0)
    hour = rng.integers(0, 24, 24_000)
    answered = rng.random(len(hour)) < np.where(np.abs(hour - 12) <= 1, 0.3, 0.1)
    flat = np.full((len(hour), 24), 0.12)
    value = hour_policy_value(
        np.arange(len(hour)), hour, answered, np.full(len(hour), 1 / 24), np.full(len(hour), 12), flat
    )
    inside = np.abs(hour - 12) <= 1

    assert value.ess == pytest.approx(inside.sum())
    assert value.clipped_share == 0
    assert value.snips == pytest.approx(answered[inside].mean())
    assert value.dr == pytest.approx(answered[inside].mean())  # a flat model: its errors are all corrected
    assert value.ips == pytest.approx(8 * answered[inside].sum() / len(hour))
    assert value.gain_interval is not None
    assert value.gain_interval[0] > 0.1


def test_weights_are_cut_and_counted() -> None:
    """One chance in a thousand would weigh 333; it weighs 20."""
    n = 1000
    rare = np.arange(n) % 2 == 0
    value = hour_policy_value(
        np.arange(n), np.full(n, 9), np.ones(n, bool), np.where(rare, 0.001, 0.25), np.full(n, 9), np.full((n, 24), 0.5)
    )
    heavy, light = 20.0, 4 / 3

    assert value.clipped_share == 0.5
    assert value.ess == pytest.approx(500 * (heavy + light) ** 2 / (heavy**2 + light**2))
    assert value.ips == pytest.approx((heavy + light) / 2)
    assert value.snips == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("propensity", "hour", "why"),
    [(np.nan, 9, "no send logged"), (1.0, 21, "worth 0"), (1.0, 9, "worth 60")],
    ids=["none-logged", "none-in-the-window", "too-few"],
)
def test_too_little_gives_no_value_and_says_why(propensity: float, hour: int, why: str) -> None:
    """Below an effective 100 sends there is no number to misread."""
    n = 60
    value = hour_policy_value(
        np.arange(n), np.full(n, hour), np.ones(n, bool), np.full(n, propensity), np.full(n, 9), np.full((n, 24), 0.5)
    )

    assert (value.ips, value.snips, value.dr, value.interval) == (None, None, None, None)
    assert why in str(value.reason)
    assert "policy_dr" not in value.as_metrics()
