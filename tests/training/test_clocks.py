"""Clocks that moved are found, those that stood are not; zones are claimed when they can be told."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.clocks import circular_mean, infer_offsets, moved_clocks
from training.personas import Channel, Personas, fit_personas
from training.send_hour_worlds import AUDIENCES, Audience, Chronotype, HourWorld


def drawn(rng: np.random.Generator, activity: np.ndarray, events: int) -> np.ndarray:
    """Counts by hour of ``events`` draws from each row of ``activity``."""
    return rng.multinomial(events, activity / activity.sum(axis=1, keepdims=True)).astype(float)


@given(st.lists(st.integers(0, 30), min_size=24, max_size=24).filter(lambda c: sum(c) > 0), st.integers(0, 23))
def test_the_mean_hour_turns_with_the_clock(counts: list[int], turn: int) -> None:
    """Counts moved by so many hours have their mean moved by as many, and the same concentration."""
    one, other = np.array([counts], float), np.roll(np.array([counts], float), turn, axis=1)
    (mean, concentration, _), (turned, same, _) = circular_mean(one), circular_mean(other)

    assert same[0] == pytest.approx(concentration[0], abs=1e-9)
    if concentration[0] > 1e-6:
        distance = (turned[0] - mean[0] - turn + 12) % 24 - 12
        assert distance == pytest.approx(0, abs=1e-5)


def test_a_clock_that_stands_gives_no_alarm_and_one_that_moved_does() -> None:
    """Of 3,000 contacts at most 1 % false alarms; of those moved by 8 hours at least half are found at 30 events."""
    rng = np.random.default_rng(0)
    activity = np.concatenate([HourWorld.draw(name, n_contacts=1000, seed=2).activity for name in AUDIENCES])
    older, recent = drawn(rng, activity, 60), drawn(rng, activity, 30)

    assert moved_clocks(recent, older).alarm.mean() <= 0.01
    moved = moved_clocks(np.roll(recent, 8, axis=1), older)
    assert moved.alarm.mean() >= 0.5
    assert np.median(moved.hours[moved.alarm]) == pytest.approx(8, abs=1)
    assert not moved_clocks(np.roll(recent, 8, axis=1) * 0.3, older).alarm.any()  # 9 events are too few


#: People who sleep at night: a wide day, its middle an hour or so earlier or later.
ALIKE = Audience("alike", (Chronotype(1.0, peak=13.0, second=19.0, second_height=0.8, spread_hours=1.0),), 4.0)


def people(audience: str | Audience) -> tuple[Personas, np.ndarray]:
    """Personas of the visits of some whose zone is known, and the counts by their own hours of others."""
    world = HourWorld.draw(audience, n_contacts=2000, visits_per_contact=30, seed=4)
    visits = world.vectors(world.end)[:1000, 72:96]
    personas = fit_personas([Channel(visits, np.ones_like(visits))], 3)
    return personas, drawn(np.random.default_rng(1), world.activity[1000:], 60)


@pytest.mark.parametrize("ahead", [-8, -3, 0, 5, 11])
def test_a_claimed_zone_is_nearly_always_right(ahead: int) -> None:
    """Where people sleep at night: at least half are claimed, at most a tenth of the claims off by more than 2 h."""
    personas, counts = people(ALIKE)
    found = infer_offsets(np.roll(counts, -ahead, axis=1), personas.rate[0], personas.weight)
    error = np.abs((found.hours - ahead + 12) % 24 - 12)

    assert found.is_claimed.mean() >= 0.5
    assert (error[found.is_claimed] > 2).mean() <= 0.1


@pytest.mark.parametrize("audience", AUDIENCES)
def test_where_an_early_day_may_be_an_eastern_one_little_is_claimed(audience: str) -> None:
    """Shift workers and chronotypes look like other zones: fewer claims, and of all contacts hardly any wrongly."""
    personas, counts = people(audience)
    found = infer_offsets(counts, personas.rate[0], personas.weight)

    assert (found.is_claimed & (np.abs(found.hours) > 2)).mean() <= 0.05


def test_few_events_or_a_flat_day_claim_nothing() -> None:
    """Nine events are too few; a day without trough fits every zone."""
    personas, counts = people(ALIKE)
    few = np.minimum(np.cumsum(counts, axis=1), 9)
    few = np.diff(few, axis=1, prepend=0)

    assert not infer_offsets(few, personas.rate[0], personas.weight).is_claimed.any()
    assert not infer_offsets(np.full((1, 24), 10.0), personas.rate[0], personas.weight).is_claimed.any()
