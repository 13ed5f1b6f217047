"""Send hours in three worlds whose truth is known, where the hour does not matter, and with too little to say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from training import send_hour
from training.send_hour import (
    HOURS,
    FittedHours,
    Sends,
    burial_hours_of,
    even_weights,
    fit_global,
    fit_personal,
    too_little,
)
from training.send_hour_worlds import AUDIENCES, DAY, HourWorld

RECIPE = {"prior_events": 4.0, "visit_weight": 1.0, "prior_sends": 320.0}


@pytest.fixture(scope="module")
def world() -> HourWorld:
    """An audience of evening people, in which hours matter, personally."""
    return HourWorld.draw("evening", n_contacts=1200, seed=1)


@pytest.fixture(scope="module")
def fitted(world) -> FittedHours:
    """The model of that world."""
    return world.fit()


def assert_served_hours_earn_more(world: HourWorld) -> None:
    shares = world.captured_shares(world.fit())
    assert shares["served"] >= 0.45, shares
    assert shares["served"] >= shares["open-hour histogram"] + 0.15, shares
    assert shares["served"] >= shares["one hour for all"] + 0.15, shares


@pytest.mark.parametrize("name", AUDIENCES)
def test_served_hours_earn_more_than_open_hours_and_than_one_hour_for_all(name: str) -> None:
    """With 20 sends a contact, a fifth of them at random hours; the long version has three draws of each world."""
    assert_served_hours_earn_more(HourWorld.draw(name, n_contacts=2000, seed=1))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", AUDIENCES)
def test_served_hours_earn_more_in_every_draw(name: str, seed: int) -> None:
    """3,000 contacts."""
    assert_served_hours_earn_more(HourWorld.draw(name, seed=seed))


@pytest.mark.slow
@pytest.mark.parametrize("name", AUDIENCES)
def test_mail_alone_tells_hours_too(name: str) -> None:
    """Without a single visit to the site the answers to mail still beat their own histogram by .15."""
    world = HourWorld.draw(name, visits_per_contact=0.0, seed=0)
    shares = world.captured_shares(world.fit())

    assert shares["served"] >= 0.3, shares
    assert shares["served"] >= shares["open-hour histogram"] + 0.15, shares


def test_probabilities_are_calibrated_on_later_sends(fitted) -> None:
    """On sends after the fit, predicted and actual rates agree."""
    assert fitted.metrics["ece"] < 0.03
    assert 0.88 < fitted.metrics["predicted_over_actual"] < 1.12


def test_without_an_hour_effect_none_is_claimed() -> None:
    """Where hours do not matter the curve is flat; in 30 worlds at most 3 false claims."""
    claims = 0
    for seed in range(30):
        world = HourWorld.draw("office", n_contacts=300, sends_per_contact=10, hour_effect=False, seed=seed)
        found = world.fit()
        claims += found.model.hour_effect
        if not found.model.hour_effect:
            curves = found.model.predict_hours(world.vectors(world.end))
            assert np.ptp(curves, axis=1).max() == 0
            assert "no gain is claimed" in found.reason

    assert claims <= 3


def test_global_rates_do_not_mistake_keen_contacts_for_a_good_hour() -> None:
    """A scheduler that mails the keen at 20 h does not make 20 h look better than it is."""
    rng = np.random.default_rng(0)
    contact = np.repeat(np.arange(400), 40)
    keen = contact < 200
    hour = np.where(rng.random(len(contact)) < 0.5, np.where(keen, 20, 9), rng.integers(0, HOURS, len(contact)))
    answered = rng.random(len(contact)) < np.where(keen, 0.3, 0.1)
    sends = Sends(contact, rng.integers(0, 120, len(contact)) * DAY, hour, answered)
    raw = answered[hour == 20].mean() / answered[hour == 9].mean()

    corrected = fit_global(sends).global_rate

    assert raw > 2
    assert 0.85 < corrected[20] / corrected[9] < 1.25


def test_the_schedule_does_not_enter_the_hazard() -> None:
    """Mail that leaves mostly at 9-11 h is answered mostly then; the hazard by hour still has the true proportions."""
    world = HourWorld.draw("evening", n_contacts=4000, visits_per_contact=0.0, seed=3)
    model = fit_personal(world.sends, world.vectors(world.end), 1, world.audience.burial_hours, **RECIPE)
    opens = world.vectors(world.end)[:, 2 * HOURS : 3 * HOURS].sum(axis=0)
    assert model.personas is not None
    found = model.personas.rate[0, 0]
    true = world.activity.mean(axis=0)

    assert opens[9:12].sum() > opens[18:21].sum()
    assert np.corrcoef(found, true)[0, 1] > 0.95


@pytest.mark.parametrize("name", AUDIENCES)
def test_how_fast_mail_is_buried_is_told_by_the_delays_of_answers(name: str) -> None:
    """Though most answers come late because their readers are: the hazard by hour takes that part."""
    world = HourWorld.draw(name, n_contacts=1000, seed=2)

    assert burial_hours_of(world.sends) == pytest.approx(world.audience.burial_hours, abs=1)
    assert burial_hours_of(replace(world.sends, delay_hours=None)) == 4.0


def test_the_mean_of_personal_curves_is_the_global_curve(world) -> None:
    """Personas say how people differ; how all answer by hour is what the sends said."""
    model = fit_personal(world.sends, world.vectors(world.end), 3, 4.0, **RECIPE)
    known = send_hour.Histograms.of(world.vectors(world.end))

    np.testing.assert_allclose(model._personal(known, own=False).mean(axis=0), model.global_rate, rtol=1e-6)


def test_the_level_says_whose_habits_answer(world, fitted) -> None:
    """Nobody: all. Three visits: their like. Five sends with an answer: the contact's own."""
    X = np.zeros((4, 120))
    X[1, 72 + 20] = 3  # visits at 20 h
    X[2, 10], X[2, 24 + 10], X[2, 48 + 20] = 5, 1, 1  # sends at 10 h, one answered, at 20 h
    X[3, 10] = 5  # sends without an answer
    model = fitted.model
    curves = model.predict_hours(X)

    assert model.levels(X) == ["global", "persona", "contact", "global"]
    np.testing.assert_allclose(curves[0], model.global_rate)
    assert 17 <= curves[1].argmax() <= 20
    assert curves[3].sum() < curves[0].sum()
    assert set(model.levels(world.vectors(world.end))) == {"contact", "persona", "global"}


def test_a_segment_answers_for_those_of_whom_nothing_else_is_known(world) -> None:
    """Its personas' weights are those of its contacts, shrunk to those of all: a small one is nearly like all."""
    late = world.activity[:, 20:24].mean(axis=1) > world.activity[:, 11:14].mean(axis=1)
    small = np.zeros(len(late), bool)
    small[np.flatnonzero(late)[:3]] = True
    segments = np.column_stack([late & ~small, small]).astype(float)
    X = np.concatenate([world.vectors(world.end), segments], axis=1)
    model = fit_personal(world.sends, X, 5, 4.0, **RECIPE)
    newcomers = np.zeros((3, 122))
    newcomers[0, 120] = newcomers[1, 121] = 1

    assert model.levels(newcomers) == ["segment", "segment", "global"]
    of_late, of_few, of_all = (curve / curve.sum() for curve in model.predict_hours(newcomers))
    assert of_late[18:22].sum() > of_all[18:22].sum() * 1.05
    assert np.abs(of_few - of_all).sum() < 0.5 * np.abs(of_late - of_all).sum()


def test_more_answers_at_an_hour_never_lower_its_rate(world, fitted) -> None:
    """One more send that was answered in its hour does not lower that hour's probability."""
    X = world.vectors(world.end)[:200]
    X = X[[level == "contact" for level in fitted.model.levels(X)]]
    more = X.copy()
    for column in (15, 24 + 15, 48 + 15):
        more[:, column] += 1
    model = fitted.model

    assert (model.predict_hours(more)[:, 15] >= model.predict_hours(X)[:, 15] - 1e-12).all()


def test_a_moved_clock_is_counted_and_its_older_hours_are_not_looked_at(world) -> None:
    """Of contacts that are up 9 hours earlier since a month the old mail and visits no longer speak."""
    X = world.vectors(world.end)
    X[:100, 72:120] = 0
    X[:100, 72 + 8] = X[:100, 96 + 8] = 12  # lately
    X[:100, 72 + 20] = 30  # before
    model = fit_personal(world.sends, X, 5, 4.0, **RECIPE)
    lately = np.zeros((100, 120))
    lately[:, 72 + 8] = lately[:, 96 + 8] = 12

    known = send_hour.Histograms.of(X)
    assert known.moved[:100].all()
    assert known.moved[100:].mean() < 0.01
    np.testing.assert_array_equal(model.predict_hours(X[:100]), model.predict_hours(lately))
    metrics: dict[str, float] = {}
    assert "the clocks of 1" in send_hour._clock_note(known, metrics)
    assert metrics["clocks_moved"] >= 100


def test_too_few_or_unspread_sends_keep_the_default_hour_and_say_so(world) -> None:
    """Below 500 sends, or with nearly all at one hour, nothing is learned and the reason has the counts."""
    few = world.sends.take(np.arange(312))
    at_ten = replace(world.sends, hour=np.full(len(world.sends), 10))

    assert "312 sends" in str(too_little(few))
    assert "0 of them" in str(too_little(at_ten))
    assert too_little(world.sends) is None
    model = send_hour.default_model(few, str(too_little(few))).model
    assert (model.rung, model.hour_effect) == ("default", False)
    assert model.levels(np.zeros((1, 120))) == ["default"]


def test_even_weights_let_every_hour_speak_as_loud() -> None:
    """Sums by hour are alike where no hour is rarer than ten times the mean; the mean weight is 1."""
    hour = np.repeat(np.arange(HOURS), np.arange(10, 10 + HOURS))
    weight = even_weights(hour)

    assert weight.mean() == pytest.approx(1.0)
    np.testing.assert_allclose(np.bincount(hour, weight), len(hour) / HOURS)


def test_hours_survive_their_file(fitted, world, tmp_path) -> None:
    """What is read back predicts the same to the last bit; a file of another version is refused with the remedy."""
    fitted.model.save(tmp_path)
    X = world.vectors(world.end)[:20]

    np.testing.assert_array_equal(
        send_hour.SendHourModel.load(tmp_path).predict_hours(X), fitted.model.predict_hours(X)
    )
    (tmp_path / "hours.json").write_text('{"rung": "personal", "shape_prior": 30.0}')
    with pytest.raises(ValueError, match="kairos train send_hour"):
        send_hour.SendHourModel.load(tmp_path)


def test_blocks_do_not_change_a_bit(fitted, world) -> None:
    """Many contacts at once or one by one: the same curves."""
    X = np.tile(world.vectors(world.end), (3, 1))
    assert len(X) > send_hour.BLOCK_ROWS

    together = fitted.model.predict_hours(X)
    np.testing.assert_allclose(together[[5, 2500]], fitted.model.predict_hours(X[[5, 2500]]), rtol=1e-12)
