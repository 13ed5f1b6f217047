"""Send hours in a small world whose truth is known, and in one where the hour does not matter."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from training import send_hour
from training.send_hour import HOURS, FittedHours, Sends, Slice, fit_global, fit_hours, too_little

DAY = 86_400_000_000
DAYS = 120


@dataclass(frozen=True)
class Clocks:
    """Contacts with hidden favourite hours, mailed mostly at 9–11 h, and their true answer rates, shape (n, 24)."""

    sends: Sends
    activity: tuple[np.ndarray, np.ndarray, np.ndarray]
    truth: np.ndarray

    @classmethod
    def draw(cls, seed: int, n: int, per_contact: int, contrast: float, explored: float = 0.2) -> Clocks:
        """``contrast`` 0: no hour is better than another."""
        rng = np.random.default_rng(seed)
        peak = rng.choice([8.0, 13.0, 20.0], n) + rng.normal(0, 1.2, n)
        level = rng.gamma(4, 0.25, n)
        hill = np.exp(-0.5 * (((np.arange(HOURS) - peak[:, None] + 12) % 24 - 12) / 3) ** 2)
        shape = hill / hill.mean(axis=1, keepdims=True)
        truth = np.clip(0.15 * level[:, None] * (1 - contrast + contrast * shape / 2), 0, 0.9)
        contact = np.repeat(np.arange(n), per_contact)
        usual = rng.choice([9, 10, 11], len(contact))
        hour = np.where(rng.random(len(contact)) < explored, rng.integers(0, HOURS, len(contact)), usual)
        at = rng.integers(0, DAYS, len(contact)) * DAY + hour * DAY // 24
        order = np.argsort(at, kind="stable")
        answered = rng.random(len(contact)) < truth[contact, hour]
        sends = Sends(contact[order], at[order], hour[order], answered[order])
        active = np.repeat(np.arange(n), rng.poisson(15, n))
        cumulated = np.cumsum((hill + 0.05) / (hill + 0.05).sum(axis=1, keepdims=True), axis=1)
        active_hour = np.minimum((rng.random((len(active), 1)) > cumulated[active]).sum(axis=1), 23)
        return cls(sends, (active, rng.integers(0, DAYS, len(active)) * DAY, active_hour), truth)

    def vectors(self, instant: int) -> np.ndarray:
        """Histograms of what was known at ``instant``, shape (n, 72)."""
        X = np.zeros((len(self.truth), 3 * HOURS))
        old = self.sends.sent_at < instant - DAY
        answered = old & self.sends.answered
        np.add.at(X, (self.sends.contact_key[old], self.sends.hour[old]), 1)
        np.add.at(X, (self.sends.contact_key[answered], 24 + self.sends.hour[answered]), 1)
        contact, at, hour = self.activity
        np.add.at(X, (contact[at < instant], 48 + hour[at < instant]), 1)
        return X

    def fit(self) -> FittedHours:
        """The model as ``training.runs`` fits it from the log."""
        first, second = (int(t) for t in np.quantile(self.sends.sent_at, [0.5, 0.7]))

        def between(begin: int, end: int) -> Sends:
            return self.sends.take((self.sends.sent_at >= begin) & (self.sends.sent_at < end))

        def later(begin: int, end: int) -> Slice:
            sends = between(begin, end)
            return Slice(self.vectors(begin), sends, sends.contact_key)

        return fit_hours(
            between(0, first - DAY),
            later(first, second),
            between(0, second - DAY),
            later(second, (DAYS + 1) * DAY),
            self.sends,
            self.vectors((DAYS + 1) * DAY),
        )

    def captured(self, curves: np.ndarray) -> float:
        """Share of (best hour − random hour) that the curves' best hours earn in truth."""
        chosen = self.truth[np.arange(len(self.truth)), curves.argmax(axis=1)].mean()
        return float((chosen - self.truth.mean()) / (self.truth.max(axis=1).mean() - self.truth.mean()))


@pytest.fixture(scope="module")
def clocks() -> Clocks:
    """A world in which hours matter, personally."""
    return Clocks.draw(1, n=1200, per_contact=15, contrast=0.8)


@pytest.fixture(scope="module")
def fitted(clocks) -> FittedHours:
    """The model of that world."""
    return clocks.fit()


def test_personal_hours_earn_more_than_past_open_hours_and_than_one_hour_for_all(clocks, fitted) -> None:
    """The shrunk, exposure-corrected curves beat the naive mode of answered hours and the best hour of all."""
    X = clocks.vectors((DAYS + 1) * DAY)
    personal = clocks.captured(fitted.model.predict_hours(X))

    assert fitted.model.hour_effect
    assert fitted.model.rung == "personal"
    assert personal > 0.5
    assert personal > clocks.captured(X[:, 24:48]) + 0.1
    assert personal > clocks.captured(np.tile(fitted.model.global_rate, (len(X), 1))) + 0.1


def test_probabilities_are_calibrated_on_later_sends(fitted) -> None:
    """On sends after the fit, predicted and actual rates agree."""
    assert fitted.metrics["ece"] < 0.04
    assert 0.85 < fitted.metrics["predicted_over_actual"] < 1.15


def test_without_an_hour_effect_none_is_claimed() -> None:
    """Where hours do not matter the curve is flat; in 30 worlds at most 3 false claims."""
    claims = 0
    for seed in range(30):
        clocks = Clocks.draw(seed, n=400, per_contact=10, contrast=0.0)
        found = clocks.fit()
        claims += found.model.hour_effect
        if not found.model.hour_effect:
            curves = found.model.predict_hours(clocks.vectors(DAYS * DAY))
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
    sends = Sends(contact, rng.integers(0, DAYS, len(contact)) * DAY, hour, answered)
    raw = answered[hour == 20].mean() / answered[hour == 9].mean()

    corrected = fit_global(sends).global_rate

    assert raw > 2
    assert 0.85 < corrected[20] / corrected[9] < 1.25


def test_a_contact_nobody_knows_gets_the_curve_of_all(clocks, fitted) -> None:
    """Below 5 sends or 1 answer, and without activity, the level is global and the curve that of all."""
    nobody = np.zeros((1, 72))
    known = clocks.vectors(DAYS * DAY)

    assert fitted.model.levels(nobody) == ["global"]
    np.testing.assert_allclose(fitted.model.predict_hours(nobody)[0], fitted.model.global_rate)
    assert set(fitted.model.levels(known)) == {"contact", "global"} or set(fitted.model.levels(known)) == {"contact"}


def test_more_answers_at_an_hour_never_lower_its_rate(clocks, fitted) -> None:
    """One more answered send at an hour does not lower that hour's probability."""
    X = clocks.vectors(DAYS * DAY)[:50]
    more = X.copy()
    more[:, 15] += 1
    more[:, 24 + 15] += 1
    model = fitted.model

    assert (model.predict_hours(more)[:, 15] >= model.predict_hours(X)[:, 15] - 1e-12).all()


def test_too_few_or_unspread_sends_keep_the_default_hour_and_say_so(clocks) -> None:
    """Below 500 sends, or with nearly all at one hour, nothing is learned and the reason has the counts."""
    few = clocks.sends.take(np.arange(312))
    at_ten = Sends(
        clocks.sends.contact_key, clocks.sends.sent_at, np.full(len(clocks.sends), 10), clocks.sends.answered
    )

    assert "312 sends" in str(too_little(few))
    assert "0 of them" in str(too_little(at_ten))
    assert too_little(clocks.sends) is None
    model = send_hour.default_model(few, str(too_little(few))).model
    assert (model.rung, model.hour_effect) == ("default", False)


def test_hours_survive_their_file(fitted, clocks, tmp_path) -> None:
    """What is read back predicts the same to the last bit."""
    fitted.model.save(tmp_path)
    X = clocks.vectors(DAYS * DAY)[:20]

    np.testing.assert_array_equal(
        send_hour.SendHourModel.load(tmp_path).predict_hours(X), fitted.model.predict_hours(X)
    )
