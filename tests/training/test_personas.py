"""Personas: what the mixture says, by hand, by law, and of when real people write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.personas import Channel, Personas, bent, fit_personas, hours_of_day
from training.send_hour_worlds import HourWorld

#: Local time of the students whose messages CollegeMsg is.
UTC_OFFSET_HOURS = -7


def test_the_share_is_what_bayes_says() -> None:
    """Two personas, one event at an hour where the rates are 2 and 1, levels all but fixed: two to one."""
    rate = np.ones((1, 2, 24))
    rate[0, 0, 9], rate[0, 0, 21], rate[0, 1, 9], rate[0, 1, 21] = 2, 1, 1, 2
    personas = Personas(np.array([0.5, 0.5]), rate, np.array([1e9]), np.array([1e9]))
    counts = np.zeros((1, 24))
    counts[0, 9] = 1

    share = personas.know([Channel(counts, np.full((1, 24), 0.1))]).share[0]

    np.testing.assert_allclose(share, [2 / 3, 1 / 3], rtol=1e-5)


def test_personas_of_a_known_mixture_are_found() -> None:
    """Three shifts give three curves that peak where the shifts' visits do, which come later in the day than mail."""
    world = HourWorld.draw("shift", n_contacts=2000, visits_per_contact=25, seed=0)
    visits = world.vectors(world.end)[:, 72:96]
    personas = fit_personas([Channel(visits, np.ones_like(visits))], 3)
    peaks = personas.rate[0].argmax(axis=1)

    for true in (23, 15, 17):
        assert (np.abs((peaks - true + 12) % 24 - 12) <= 1).sum() == 1
    np.testing.assert_allclose(personas.weight, 1 / 3, atol=0.15)


@given(seed=st.integers(0, 10_000), turn=st.integers(0, 23))
def test_shares_and_bends_are_sane_and_exposure_scales_rates(seed: int, turn: int) -> None:
    """Shares sum to 1, bends are positive, nobody's bend is 1, and twice the exposure at half the rate is the same."""
    rng = np.random.default_rng(seed)
    counts, exposure = rng.poisson(0.5, (5, 24)).astype(float), rng.uniform(0.1, 2, (5, 24))
    counts[0], exposure[0] = 0, 0
    rate = np.roll(rng.uniform(0.2, 2, (1, 3, 24)), turn, axis=2)
    personas = Personas(np.array([0.2, 0.3, 0.5]), rate, np.array([2.0]), np.array([5.0]))
    half = Personas(personas.weight, rate / 2, personas.level_shape, personas.saturation)
    channel = Channel(counts, exposure)
    known = personas.know([channel])
    again = half.know([Channel(counts, 2 * exposure)])
    bend = bent(known, [channel], [1.0], 4.0)

    np.testing.assert_allclose(known.share.sum(axis=1), 1)
    np.testing.assert_allclose(again.share, known.share, atol=1e-9)
    np.testing.assert_allclose(known.share[0], personas.weight)
    assert (bend > 0).all()
    np.testing.assert_allclose(bend[0], 1)
    np.testing.assert_array_equal(bent(known, [channel], [1.0], np.inf), 1)


def test_nobody_has_no_personas() -> None:
    """Neither of no contacts nor in no number."""
    with pytest.raises(ValueError, match="0 contacts"):
        fit_personas([Channel(np.zeros((0, 24)), np.zeros((0, 24)))], 3)
    with pytest.raises(ValueError, match="0 personas"):
        fit_personas([Channel(np.ones((2, 24)), np.ones((2, 24)))], 0)


@pytest.mark.data
def test_when_real_people_write_is_told_better_by_their_own_hours(data_folder: Path) -> None:
    """CollegeMsg, temporal 70/30, strengths chosen in the first part: .02 nats better than everybody's histogram."""
    messages = pd.read_csv(data_folder / "collegemsg_first70.csv.gz").sort_values("unix_time", kind="stable")
    _, person = np.unique(messages.sender, return_inverse=True)
    hour = (messages.unix_time.to_numpy() // 3600 + UTC_OFFSET_HOURS) % 24
    n = len(messages)

    def parts(begin: float, end: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        first, last = int(begin * n), int(end * n)
        counts = np.bincount(person[:first] * 24 + hour[:first], minlength=24 * (person.max() + 1))
        return counts.reshape(-1, 24).astype(float), person[first:last], hour[first:last]

    def loss(known: np.ndarray, later_person: np.ndarray, later_hour: np.ndarray, k: int, prior_events: float) -> float:
        return float(-np.log(hours_of_day(known, k, prior_events)[later_person, later_hour]).mean())

    grid = [(k, events) for k in (1, 3, 5) for events in (4.0, 8.0, 16.0, 32.0)]
    inner = parts(0.5, 0.7)
    k, events = min(grid, key=lambda choice: loss(*inner, *choice))
    counts, later_person, later_hour = parts(0.7, 1.0)
    everybody = counts.sum(axis=0) + 1
    global_loss = -np.log((everybody / everybody.sum())[later_hour]).mean()

    assert k > 1
    assert global_loss - loss(counts, later_person, later_hour, k, events) >= 0.02
