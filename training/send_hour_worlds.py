"""Three audiences whose true hours are known (office, evening, shift workers): what hours chosen from a log are worth.

For tests and notebooks; nothing that learns may import it. Each contact has a hidden curve of activity round the clock.
A mail meets it hour by hour while later mail buries it; the first hour in which it is met is the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.personas import circular_kernel
from training.send_hour import ANSWER_WINDOW_HOURS, HOURS, FittedHours, Sends, Slice, fit_hours

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

HOUR = 3_600_000_000
DAY = 24 * HOUR
USUAL_HOURS = (9, 10, 11)
#: The hour that everybody gets where nobody's hours are known.
FIXED_HOUR = 10
#: Of the truth in these worlds: what all contacts answer to a mail at a random hour, about; spread of their levels.
MEAN_ANSWER_RATE = 0.13
LEVEL_SHAPE = 3.0


@dataclass(frozen=True)
class Chronotype:
    """A way to spend the day: hours of the higher and the lower hill of activity, and their spread over people."""

    share: float
    peak: float
    second: float
    second_height: float
    spread_hours: float = 1.2
    #: Concentration of the hills (von Mises); 4 is a hill about 4 hours wide at half height each way.
    concentration: float = 4.0


@dataclass(frozen=True)
class Audience:
    """What makes a world: its chronotypes, and how fast mail is buried in its inboxes."""

    name: str
    chronotypes: tuple[Chronotype, ...]
    burial_hours: float


AUDIENCES = {
    audience.name: audience
    for audience in (
        Audience(
            "office",
            (
                Chronotype(0.55, peak=14.0, second=9.5, second_height=0.6, spread_hours=2.0),
                Chronotype(0.25, peak=7.5, second=18.0, second_height=0.8),
                Chronotype(0.20, peak=20.5, second=12.5, second_height=0.3),
            ),
            burial_hours=5.0,
        ),
        Audience(
            "evening",
            (
                Chronotype(0.45, peak=19.0, second=12.5, second_height=0.25, spread_hours=1.3),
                Chronotype(0.30, peak=22.5, second=16.0, second_height=0.2),
                Chronotype(0.25, peak=12.5, second=7.5, second_height=0.4),
            ),
            burial_hours=4.0,
        ),
        Audience(
            "shift",
            (
                Chronotype(0.34, peak=14.5, second=4.5, second_height=0.4, spread_hours=1.0),
                Chronotype(0.33, peak=0.0, second=11.0, second_height=0.4, spread_hours=1.0),
                Chronotype(0.33, peak=7.5, second=17.5, second_height=0.5, spread_hours=1.0),
            ),
            burial_hours=6.0,
        ),
    )
}


@dataclass(frozen=True)
class HourWorld:
    """Contacts, their mail with its answers, their visits, and the truth."""

    audience: Audience
    #: shape (n, 24): activity by local hour, mean one.
    activity: Array
    #: shape (n, 24): P(answer within 24 h | sent at local hour).
    truth: Array
    #: In time order, with the probability that the schedule gave the hour.
    sends: Sends
    #: Hours from each send to its answer; -1 without.
    delay: Ints
    #: Contact, instant and local hour of each visit to the site.
    visits: tuple[Ints, Ints, Ints]
    n_days: int

    @classmethod
    def draw(
        cls,
        name: str | Audience,
        *,
        n_contacts: int = 3000,
        sends_per_contact: int = 20,
        explored: float = 0.2,
        visits_per_contact: float = 6.0,
        n_days: int = 180,
        hour_effect: bool = True,
        seed: int = 0,
    ) -> HourWorld:
        """A world of ``name`` (a key of ``AUDIENCES``, or an audience); the same seed gives the same world.

        Parameters
        ----------
        explored : float
            Share of sends at a uniformly random hour; the others leave at 9, 10 or 11.
        visits_per_contact : float
            Mean; contacts differ by a factor of a gamma distribution of shape 1.
        hour_effect : bool
            False: nobody is more awake at one hour than at another.
        """
        audience = AUDIENCES[name] if isinstance(name, str) else name
        rng = np.random.default_rng([seed, *audience.name.encode()])
        n = n_contacts
        activity = _activity(rng, audience, n) if hour_effect else np.ones((n, HOURS))
        level = rng.gamma(LEVEL_SHAPE, 1 / LEVEL_SHAPE, n)
        delays = np.arange(HOURS)
        decay = np.exp(-delays / audience.burial_hours)
        base = -np.log1p(-MEAN_ANSWER_RATE) / decay.sum()
        met = activity[:, (np.arange(HOURS)[:, None] + delays) % HOURS] * decay  # (n, sent at, delay)
        hazard = base * level[:, None, None] * met
        truth = -np.expm1(-hazard.sum(axis=2))

        contact = np.repeat(np.arange(n), sends_per_contact)
        is_random = rng.random(len(contact)) < explored
        hour = np.where(is_random, rng.integers(0, HOURS, len(contact)), rng.choice(USUAL_HOURS, len(contact)))
        propensity = explored / HOURS + np.where(np.isin(hour, USUAL_HOURS), (1 - explored) / len(USUAL_HOURS), 0.0)
        sent_at = rng.integers(0, n_days, len(contact)) * DAY + hour * HOUR
        order = np.argsort(sent_at, kind="stable")
        contact, hour, sent_at, propensity = contact[order], hour[order], sent_at[order], propensity[order]
        # A unit exponential against the cumulative hazard: the hour in which it is passed is the answer's.
        passed = rng.exponential(size=len(contact))[:, None] <= np.cumsum(hazard[contact, hour], axis=1)
        delay = np.where(passed.any(axis=1), passed.argmax(axis=1), -1)
        known = np.where(delay >= 0, delay, np.nan)
        sends = Sends(contact, sent_at, hour, delay >= 0, propensity, known)

        visitor = np.repeat(np.arange(n), rng.poisson(visits_per_contact * rng.gamma(1.0, 1.0, n)))
        # On the site people are about a little more in the evening than in their mail.
        leisure = 1 + 0.4 * np.cos(2 * np.pi * (np.arange(HOURS) + 0.5 - 20.5) / HOURS)
        about = np.cumsum(activity * (leisure if hour_effect else 1.0), axis=1)[visitor]
        visit_hour = (rng.random((len(visitor), 1)) * about[:, -1:] >= about).sum(axis=1)
        visit_at = rng.integers(0, n_days, len(visitor)) * DAY + visit_hour * HOUR
        return cls(audience, activity, truth, sends, delay, (visitor, visit_at, visit_hour), n_days)

    @property
    def end(self) -> int:
        """An instant by which every answer is known, in microseconds from the world's begin."""
        return (self.n_days + 2) * DAY

    def vectors(self, instant: int) -> Array:
        """What the view set ``hours`` measures of every contact at ``instant``, shape (n, 120)."""
        n = len(self.truth)
        sends, (visitor, visit_at, visit_hour) = self.sends, self.visits
        # Answers come within a day, so those to mail of the last day may not have come yet.
        sent = (sends.sent_at < instant) & (sends.sent_at >= instant - 365 * DAY)
        answer_at = sends.sent_at + self.delay * HOUR
        answered = sent & sends.answered & (answer_at < instant)
        seen = (visit_at < instant) & (visit_at >= instant - 365 * DAY)
        recent = seen & (visit_at >= instant - 30 * DAY)
        answer_hour = (sends.hour + self.delay) % HOURS
        parts = (
            (sends.contact_key[sent], sends.hour[sent]),
            (sends.contact_key[answered], sends.hour[answered]),
            (sends.contact_key[answered], answer_hour[answered]),
            (visitor[seen], visit_hour[seen]),
            (visitor[recent], visit_hour[recent]),
        )
        counts = [np.bincount(who * HOURS + hour, minlength=n * HOURS).reshape(n, HOURS) for who, hour in parts]
        return np.concatenate(counts, axis=1).astype(np.float64)

    def fit(self) -> FittedHours:
        """The model, fitted on this past as ``training.runs`` fits it on a log's."""
        sends = self.sends
        tune_from, judge_from = (int(t) for t in np.quantile(sends.sent_at, [0.5, 0.7]))

        def known_at(instant: int) -> Sends:
            return sends.take(sends.sent_at + ANSWER_WINDOW_HOURS * HOUR <= instant)

        def after(begin: int, end: int) -> Slice:
            later = sends.take((sends.sent_at >= begin) & (sends.sent_at < end))
            return Slice(self.vectors(begin), later, later.contact_key)

        tuning, judging = after(tune_from, judge_from), after(judge_from, self.end)
        return fit_hours(known_at(tune_from), tuning, known_at(judge_from), judging, sends, self.vectors(self.end))

    def captured(self, curves: Array) -> float:
        """Share of what each contact's best hour earns over the fixed hour that the curves' best hours earn, in truth.

        Parameters
        ----------
        curves : ndarray, shape (n, 24) or (24,)
        """
        hour = np.broadcast_to(curves, self.truth.shape).argmax(axis=1)
        chosen = self.truth[np.arange(len(hour)), hour].mean()
        fixed, best = self.truth[:, FIXED_HOUR].mean(), self.truth.max(axis=1).mean()
        return float((chosen - fixed) / (best - fixed))

    def captured_shares(self, fitted: FittedHours) -> dict[str, float]:
        """What the model's hours capture, beside a smoothed histogram of open hours and one curve for all."""
        X = self.vectors(self.end)
        return {
            # Where no hour is called best, the fixed one stays.
            "served": self.captured(fitted.model.predict_hours(X)) if fitted.model.hour_effect else 0.0,
            "open-hour histogram": self.captured(smoothed_open_hours(X[:, 2 * HOURS : 3 * HOURS])),
            "one hour for all": self.captured(fitted.model.global_rate),
        }


def smoothed_open_hours(opens: Array, prior_opens: float = 10.0) -> Array:
    """What is usually done: each contact's histogram of open hours, smoothed and shrunk to that of all, shape (n, 24).

    It takes the hours at which mail is sent for hours that people like.
    """
    kernel = circular_kernel(1.0)
    everybody = opens.sum(axis=0) @ kernel
    return np.asarray(opens @ kernel / kernel[0].sum() + prior_opens * everybody / everybody.sum(), dtype=np.float64)


def _activity(rng: np.random.Generator, audience: Audience, n: int) -> Array:
    kinds = audience.chronotypes
    kind = rng.choice(len(kinds), n, p=[one.share for one in kinds])
    columns = np.array([(k.peak, k.second, k.second_height, k.spread_hours, k.concentration) for k in kinds])[kind]
    peak, second, height, spread, concentration = columns.T
    # Both hills move together: a late riser is late all day.
    moved = rng.normal(0, 1, n) * spread
    concentration = concentration * np.exp(rng.normal(0, 0.25, n))

    def hill(centre: Array) -> Array:
        angle = 2 * np.pi * (np.arange(HOURS) + 0.5 - centre[:, None]) / HOURS
        return np.asarray(np.exp(concentration[:, None] * (np.cos(angle) - 1)), dtype=np.float64)

    raw = hill(peak + moved) + (height * np.exp(rng.normal(0, 0.3, n)))[:, None] * hill(second + moved) + 0.04
    return np.asarray(raw / raw.mean(axis=1, keepdims=True), dtype=np.float64)
