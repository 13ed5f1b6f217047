"""When does this contact engage: P(a person's click or open within 24 h | sent at local hour h), for all 24 hours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.clocks import moved_clocks
from training.hour_policy import hour_policy_value
from training.metrics import Difference, evaluate, log_losses, paired_difference
from training.personas import HOURS, PERSONAL_KERNEL_HOURS, Channel, Personas, bent, circular_kernel, fit_personas

Array = NDArray[np.float64]

NAME = "send_hour"
#: A send counts once this much time has passed, because answers are awaited this long.
ANSWER_WINDOW_HOURS = 24
#: Below either, the hours are not learned: the installation's default hour stays, and the model says so.
MIN_SENDS = 500
MIN_SPREAD_SENDS = 100
#: A contact has a curve of its own from these on; before, it is served the curve of its like, or of all.
MIN_CONTACT_SENDS = 5
MIN_CONTACT_ANSWERS = 1
MIN_CONTACT_VISITS = 10
#: From so many visits on it is known whose day a contact's is like.
MIN_PERSONA_VISITS = 3
#: Width of the circular kernel of what all answer by hour.
GLOBAL_KERNEL_HOURS = 1.0
#: Events after which further ones tell little more of whose day it is like: answers come one a mail, visits in bursts.
SATURATION = (float("inf"), 10.0)
#: Sends the prior counts for in the global curve, per hour, at least.
GLOBAL_PRIOR_SENDS = 50.0
#: A learned curve counts for at most so many answers per hour.
MAX_PRIOR_ANSWERS = 1e6
#: Sends the global curve counts for against a contact's own, when a contact's level is estimated.
LEVEL_PRIOR_SENDS = 20.0
#: The same while the global curve is estimated: next to nothing, so that hours are compared within contacts.
WITHIN_PRIOR_SENDS = 1.0
#: One-sided error rate of each of the three proofs that hours matter; together about 3 %.
PROOF_LEVEL = 0.01
#: Hours a mail stays on top: what is compared by the delays of answers, and what is taken where they are not known.
BURIAL_HOURS_GRID = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 12.0, 16.0)
USUAL_BURIAL_HOURS = 4.0
#: What is tried, the usual first, which stays unless another is provably better: personas, events the personas' curve
#: counts for against a contact's own hours, what a visit counts for beside an answer, sends the curve so far counts for
#: against a contact's own answers.
PERSONAS_GRID = (5, 3, 1)
PRIOR_EVENTS_GRID = (4.0, 16.0, float("inf"))
VISIT_WEIGHT_GRID = (1.0, 0.3)
PRIOR_SENDS_GRID = (320.0, 80.0, float("inf"))
#: Contacts whose curves are computed at once.
BLOCK_ROWS = 2_000
#: Contacts that the personas of all count for in the weights of a segment.
SEGMENT_PRIOR_CONTACTS = 50.0
#: What a send counts for at most, against the mean, where strengths are tuned (see ``even_weights``).
MAX_EVEN_WEIGHT = 10.0


@dataclass(frozen=True)
class Sends:
    """Closed sends (their 24 h have passed) as parallel arrays, shape (n_sends,), in time order."""

    contact_key: NDArray[np.int64]
    #: Microseconds since 1970 UTC.
    sent_at: NDArray[np.int64]
    #: Local hour of the send, 0-23.
    hour: NDArray[np.int64]
    #: A person opened or clicked within 24 h.
    answered: NDArray[np.bool_]
    #: Probability with which the plan chose the hour; NaN where none was logged. None: not read.
    propensity: Array | None = None
    #: Hours until the first answer; NaN without one. None: not read.
    delay_hours: Array | None = None

    def __len__(self) -> int:
        return len(self.sent_at)

    def take(self, index: NDArray[Any]) -> Sends:
        """The sends at ``index`` (positions or a mask)."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        taken: dict[str, Any] = {name: None if column is None else column[index] for name, column in columns.items()}
        return Sends(**taken)


@dataclass(frozen=True)
class Histograms:
    """What is known of contacts by local hour, each of shape (n, 24), and the segments they are in."""

    sent: Array
    #: Answered sends by the hour they left at.
    answered: Array
    #: The same sends by the hour of their answer.
    answers: Array
    #: Orders and pages seen, and those of the last 30 days.
    visits: Array
    recent_visits: Array
    #: shape (n, n_segments): 1 where the contact is in a segment; each is in one at most.
    segment: Array

    @classmethod
    def of(cls, X: Array) -> Histograms:
        """From vectors of the view set ``hours``: 24 columns of each, further ones are memberships of segments."""
        X = np.asarray(X, dtype=np.float64)
        if X.ndim != 2 or X.shape[1] < 5 * HOURS:
            raise ValueError(
                f"hour vectors have shape {X.shape}; pass (n, {5 * HOURS}) columns of the view set `hours`, "
                "and one more for each segment"
            )
        if not np.isfinite(X).all():
            X = np.nan_to_num(X)
        sent, answered, answers, visits, recent = (X[:, at : at + HOURS] for at in range(0, 5 * HOURS, HOURS))
        return cls(sent, np.minimum(answered, sent), answers, visits, np.minimum(recent, visits), X[:, 5 * HOURS :])

    @cached_property
    def moved(self) -> NDArray[np.bool_]:
        """Contacts whose clock has moved (see ``training.clocks``)."""
        return moved_clocks(self.recent_visits, self.visits - self.recent_visits).alarm

    def believed(self) -> Histograms:
        """The same, where a clock has moved the last 30 days' visits only: older hours are those of another clock."""
        moved = self.moved[:, None]
        if not moved.any():
            return self
        none = np.zeros_like(self.sent)
        mail = [np.where(moved, none, part) for part in (self.sent, self.answered, self.answers)]
        return replace(
            self,
            sent=mail[0],
            answered=mail[1],
            answers=mail[2],
            visits=np.where(moved, self.recent_visits, self.visits),
        )


def burial_weights(hours: float) -> Array:
    """What a mail is worth in each hour after it was sent, shape (24 sent at, 24 met at): exp(−delay / hours)."""
    delay = np.subtract.outer(np.arange(HOURS), np.arange(HOURS)).T % HOURS
    return np.asarray(np.exp(-delay / hours), dtype=np.float64)


def answered_weights(burial: Array, hazard: Array) -> Array:
    """The same for mails that were answered, on average: at risk until the answer, shape (24 sent at, 24 met at).

    How late a mail sent at h was answered is known on average only, from ``hazard`` of shape (24,): of those answered
    within a day, the share not yet answered at a delay.
    """
    hours = (np.arange(HOURS)[:, None] + np.arange(HOURS)) % HOURS  # met at, by sent at and delay
    by_delay = np.take_along_axis(burial, hours, axis=1)
    met = hazard[hours] * by_delay
    waiting = np.cumsum(met[:, ::-1], axis=1)[:, ::-1] / met.sum(axis=1, keepdims=True)
    weights = np.empty_like(burial)
    # An answer in its hour leaves half of that hour at risk.
    np.put_along_axis(weights, hours, (waiting - 0.5 * met / met.sum(axis=1, keepdims=True)) * by_delay, axis=1)
    return weights


@dataclass(frozen=True)
class Inbox:
    """How mail meets its readers: turns what is known of contacts into events and exposures by hour."""

    burial: Array
    until_answer: Array

    @classmethod
    def of(cls, burial_hours: float, known: Histograms) -> Inbox:
        """The inbox of the contacts ``known``, whose hazard by hour says how soon answered mails are answered."""
        burial = burial_weights(burial_hours)
        until_answer, kernel = burial, circular_kernel(GLOBAL_KERNEL_HOURS)
        sent, answered, answers = known.sent.sum(axis=0), known.answered.sum(axis=0), known.answers.sum(axis=0)
        for _ in range(5):  # the exposure needs the hazard and the hazard the exposure; settles in a few rounds
            at_risk = (sent - answered) @ burial + answered @ until_answer
            hazard = (answers @ kernel + 1.0) / (at_risk @ kernel + 1.0 / max(answers.sum() / at_risk.sum(), 1e-6))
            until_answer = answered_weights(burial, hazard)
        return cls(burial, until_answer)

    def channels(self, known: Histograms) -> tuple[Channel, Channel]:
        """Answers with the hours at risk of one (each of the 24 after a send until the answer), and visits."""
        at_risk = (known.sent - known.answered) @ self.burial + known.answered @ self.until_answer
        return Channel(known.answers, at_risk), Channel(known.visits, np.ones_like(known.visits))

    def answer_probability(self, hazard: Array) -> Array:
        """P(answer within 24 h | sent at h) of hazards by hour, shape (n, 24): 1 − exp(−sum of those it meets)."""
        return np.asarray(-np.expm1(-(hazard @ self.burial.T)), dtype=np.float64)


@dataclass(frozen=True)
class SendHourModel:
    """Global send-hour rates, and how far a contact's persona, own hours and own answers bend them.

    A mail sent at s meets its reader's hazard h(t) in each of the 24 hours t that follow, less the later. With A and E
    a contact's answered and all sends by hour, ⊛K a circular kernel, c the factor that brings the mean of all
    contacts' curves to the global rate by hour:
    q(s) = c(s) (1 − exp(−Σ_t h(t) exp(−(t − s) / τ))) and p(s) = ((A⊛K)(s) + a q(s)) / ((E⊛K)(s) + a),
    the mean of a Beta posterior whose prior counts ``a`` sends. The hazard is that of the contact's personas
    (``training.personas``), bent by the contact's own answers and visits.

    References
    ----------
    Prentice, R. L. & Gloeckler, L. A. (1978), "Regression analysis of grouped survival data with application to breast
    cancer data" (hazards in discrete time); Clayton, D. & Kaldor, J. (1987), "Empirical Bayes estimates of
    age-standardized relative risks"; Casella, G. (1985), "An introduction to empirical Bayes data analysis".
    """

    #: default (too few sends) | flat (hours do not provably differ) | global | personal
    rung: str
    #: False where hours do not provably differ: curves are then flat and no hour is called best.
    hour_effect: bool
    #: Rate over all hours.
    rate: float
    #: Exposure-corrected rate by local send hour, shape (24,).
    global_rate: Array
    #: None where the hours were not learned.
    personas: Personas | None = None
    #: shape (n_segments, K): weights of the personas among the contacts of each segment, shrunk to those of all.
    segment_weight: Array | None = None
    #: Hours in which a mail loses all but 1/e of the attention it gets.
    burial_hours: float = USUAL_BURIAL_HOURS
    #: shape (24, 24): hours at risk of a mail that was answered (see ``answered_weights``).
    until_answer: Array | None = None
    #: shape (24,): global rate over the mean of the contacts' hazard curves.
    correction: Array | None = None
    prior_events: float = PRIOR_EVENTS_GRID[0]
    visit_weight: float = VISIT_WEIGHT_GRID[0]
    prior_sends: float = PRIOR_SENDS_GRID[0]

    FILE = "hours.json"

    def predict_hours(self, X: Array) -> Array:
        """P(human click or open within 24 h | sent at local hour h), shape (n, 24), of vectors of the set ``hours``."""
        X = np.asarray(X, dtype=np.float64)
        if len(X) > BLOCK_ROWS:  # what fits into the processor's cache is done in half the time
            parts = [self.predict_hours(X[at : at + BLOCK_ROWS]) for at in range(0, len(X), BLOCK_ROWS)]
            return np.concatenate(parts)
        known = Histograms.of(X).believed()
        if not self.hour_effect:
            return np.repeat(self._flat(known)[:, None], HOURS, axis=1)
        curves = self._global(known)
        if self.rung == "personal":
            level = self._level_of(known)
            for rows, own in ((level == 3, True), ((level == 1) | (level == 2), False)):
                if rows.any():
                    curves[rows] = self._personal(_take(known, rows), own)
        return curves

    def predict(self, X: Array) -> Array:
        """P(human click or open within 24 h) at each contact's best hour, shape (n,)."""
        return np.asarray(self.predict_hours(X).max(axis=1), dtype=np.float64)

    def levels(self, X: Array) -> list[str]:
        """Whose habits each contact's curve is made of: one of ``LEVELS``.

        ``contact``: its own; ``persona``: of those whose day its visits resemble; ``segment``: of its segment;
        ``global``: of all; ``default``: nobody's, too few sends were spread over the hours.
        """
        if self.rung == "default":
            return ["default"] * len(X)
        if not self.hour_effect or self.rung != "personal":
            return ["global"] * len(X)
        return [LEVELS[1:][level] for level in self._level_of(Histograms.of(X).believed())]

    def _level_of(self, known: Histograms) -> NDArray[np.int64]:
        """0 global, 1 segment, 2 persona, 3 contact."""
        visits = known.visits.sum(axis=1)
        mailed = (known.sent.sum(axis=1) >= MIN_CONTACT_SENDS) & (known.answered.sum(axis=1) >= MIN_CONTACT_ANSWERS)
        in_segment = known.segment.any(axis=1) if self.segment_weight is not None else np.zeros(len(visits), bool)
        return np.select(
            [mailed | (visits >= MIN_CONTACT_VISITS), visits >= MIN_PERSONA_VISITS, in_segment], [3, 2, 1], 0
        )

    def _level(self, known: Histograms, curve: Array) -> Array:
        """How much more or less than all a contact answers, given the hours it was sent at; shape (n, 1)."""
        prior = LEVEL_PRIOR_SENDS * self.rate
        level = (known.answered.sum(axis=1) + prior) / (known.sent @ curve + prior)
        return np.asarray(level[:, None], dtype=np.float64)

    def _flat(self, known: Histograms) -> Array:
        return _bounded(self._level(known, np.full(HOURS, self.rate))[:, 0] * self.rate)

    def _global(self, known: Histograms) -> Array:
        return _bounded(self._level(known, self.global_rate) * self.global_rate)

    @cached_property
    def _inbox(self) -> Inbox:
        burial = burial_weights(self.burial_hours)
        return Inbox(burial, burial if self.until_answer is None else self.until_answer)

    def _hazard_curve(self, known: Histograms, own: bool) -> Array:
        """q(s) before the correction."""
        assert self.personas is not None
        channels = self._inbox.channels(known)
        expected = self.personas.know(channels, self._log_weight(known))
        hazard = expected.rate[0]
        if own:
            weights = (1.0, self.visit_weight)
            own_hazard = hazard * bent(expected, channels, weights, self.prior_events)
            # The level is known already: bent hours answer as many of the mails so far, and of one more at any hour.
            exposure = channels[0].exposure + self._inbox.burial.mean(axis=0)
            one = np.ones(HOURS)
            hazard = own_hazard * ((hazard * exposure) @ one / ((own_hazard * exposure) @ one))[:, None]
        return self._inbox.answer_probability(hazard)

    def _shape(self, known: Histograms) -> Array:
        """How the contact's hours differ from those of all, its own answers at each send hour left aside."""
        curve = self._hazard_curve(known.believed(), own=True)
        return np.asarray(curve / curve.mean(axis=1, keepdims=True), dtype=np.float64)

    def _log_weight(self, known: Histograms) -> Array | None:
        if self.segment_weight is None or known.segment.shape[1] != len(self.segment_weight):
            return None
        assert self.personas is not None
        inside = known.segment / np.maximum(known.segment.sum(axis=1, keepdims=True), 1)
        outside = 1 - inside.sum(axis=1, keepdims=True)
        return np.asarray(np.log(inside @ self.segment_weight + outside * self.personas.weight), dtype=np.float64)

    def _personal(self, known: Histograms, own: bool) -> Array:
        assert self.correction is not None
        curve = self._hazard_curve(known, own) * self.correction
        if own and np.isfinite(self.prior_sends):
            kernel = circular_kernel(PERSONAL_KERNEL_HOURS)
            curve = (known.answered @ kernel + self.prior_sends * curve) / (known.sent @ kernel + self.prior_sends)
        return _bounded(curve)

    def save(self, folder: Path) -> None:
        """Write ``hours.json``."""
        content = {
            name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(self).items()
        }
        content["personas"] = None if self.personas is None else self.personas.as_json()
        for name in ("prior_events", "prior_sends"):
            content[name] = None if np.isinf(content[name]) else content[name]
        (folder / self.FILE).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: Path) -> SendHourModel:
        """Read ``hours.json``.

        Raises
        ------
        ValueError
            If the file was written by another version of the program.
        """
        content = json.loads((folder / cls.FILE).read_text())
        if set(content) != {field.name for field in fields(cls)}:
            raise ValueError(
                f"{folder / cls.FILE} is not written as this program reads hours; run `kairos train {NAME}`"
            )
        for name in ("prior_events", "prior_sends"):
            content[name] = float("inf") if content[name] is None else content[name]
        for name in ("global_rate", "segment_weight", "until_answer", "correction"):
            if content[name] is not None:
                content[name] = np.array(content[name], dtype=np.float64)
        if content["personas"] is not None:
            content["personas"] = Personas.from_json(content["personas"])
        return cls(**content)


#: What ``levels`` may say.
LEVELS = ("default", "global", "segment", "persona", "contact")


def _bounded(rate: Array) -> Array:
    return np.clip(rate, 1e-6, 0.999)


def _take(known: Histograms, rows: NDArray[np.bool_]) -> Histograms:
    if rows.all():
        return known
    return Histograms(*(getattr(known, field.name)[rows] for field in fields(known)))


@dataclass(frozen=True)
class Slice:
    """Vectors known at an instant, and the sends that came after it: ``row[i]`` is the vector of send i's contact."""

    X: Array
    sends: Sends
    row: NDArray[np.int64]

    def losses(self, curves: Array) -> Array:
        """Negative log-likelihood of each send's answer under curves of shape (n, 24)."""
        return log_losses(self.sends.answered, curves[self.row, self.sends.hour])


@dataclass(frozen=True)
class FittedHours:
    """A model, why it is what it is, and how it did on later sends."""

    model: SendHourModel
    reason: str
    metrics: dict[str, float]


def fit_global(sends: Sends, shape: Array | None = None) -> SendHourModel:
    """Exposure-corrected rates by hour: contact levels and hour rates estimated in turn, the hours shrunk.

    Who is mailed at an hour differs from hour to hour (a scheduler sends to the keen at their best hour), so answers
    are compared with those expected from the same contacts' levels: a Poisson regression with contact effects, whose
    hour effects are consistent however few sends a contact has.

    Parameters
    ----------
    sends : Sends
    shape : ndarray, shape (24,), optional
        What the hours are shrunk to, up to a factor; a flat curve by default.

    References
    ----------
    Hausman, J., Hall, B. & Griliches, Z. (1984), "Econometric models for count data with an application to the
    patents–R&D relationship" (fixed effects).
    """
    rate = (sends.answered.sum() + 0.5) / (len(sends) + 1)
    _, contact = np.unique(sends.contact_key, return_inverse=True)
    answered = sends.answered.astype(np.float64)
    kernel = circular_kernel(GLOBAL_KERNEL_HOURS)
    contact_answers, hour_answers = np.bincount(contact, answered), np.bincount(sends.hour, answered, HOURS)
    learned = shape is not None
    shape = np.ones(HOURS) if shape is None else shape / shape[sends.hour].mean()
    curve = rate * shape
    prior, prior_answers = WITHIN_PRIOR_SENDS * rate, GLOBAL_PRIOR_SENDS * rate
    for _ in range(20):
        level = (contact_answers + prior) / (np.bincount(contact, curve[sends.hour]) + prior)
        expected = np.bincount(sends.hour, level[contact], HOURS) * rate * shape
        if learned:
            prior_answers = max(prior_answers, _prior_answers(hour_answers, expected))
        factor = (hour_answers @ kernel + prior_answers) / (expected @ kernel + prior_answers)
        curve = _bounded(rate * shape * factor)
    return SendHourModel(rung="global", hour_effect=True, rate=float(rate), global_rate=curve)


def burial_hours_of(sends: Sends) -> float:
    """Hours in which a mail loses all but 1/e of its readers' attention, by the delays at which mail was answered.

    The likeliest of a grid, for hazards that are any function of the hour times exp(−delay / hours): delays alone
    would take an evening reader's habit for mail that stays on top for long.

    References
    ----------
    Prentice, R. L. & Gloeckler, L. A. (1978), "Regression analysis of grouped survival data with application to breast
    cancer data".
    """
    if sends.delay_hours is None or not sends.answered.any():
        return USUAL_BURIAL_HOURS
    answered = sends.answered & np.isfinite(sends.delay_hours)
    delay = np.clip(np.where(answered, sends.delay_hours, HOURS), 0, HOURS).astype(np.int64)
    table = np.zeros((HOURS, HOURS + 1))
    np.add.at(table, (sends.hour, delay), 1)
    waiting = table[:, ::-1].cumsum(axis=1)[:, ::-1][:, :HOURS]  # not answered before each delay
    met_at = (np.arange(HOURS)[:, None] + np.arange(HOURS)) % HOURS
    events = np.bincount(met_at.ravel(), table[:, :HOURS].ravel(), HOURS)
    late = float((table[:, :HOURS] @ np.arange(HOURS)).sum())

    def log_likelihood(hours: float) -> float:
        at_risk = np.bincount(met_at.ravel(), (waiting * np.exp(-np.arange(HOURS) / hours)).ravel(), HOURS)
        some = events > 0
        return float((events[some] * np.log(events[some] / at_risk[some])).sum()) - late / hours

    return max(BURIAL_HOURS_GRID, key=log_likelihood)


def _prior_answers(answers: NDArray[Any], expected: NDArray[Any]) -> float:
    """Answers an expected curve counts for per hour: the fewer, the more the hours differ from it beyond chance.

    By moments: answers vary by ``expected`` + ``expected``² / prior.

    References
    ----------
    Clayton, D. & Kaldor, J. (1987), "Empirical Bayes estimates of age-standardized relative risks".
    """
    excess = float(((answers - expected) ** 2 - expected).sum())
    return float((expected**2).sum()) / excess if excess > 0 else float(MAX_PRIOR_ANSWERS)


def fit_personal(sends: Sends, X: Array, n_personas: int, burial_hours: float, **strengths: Any) -> SendHourModel:
    """The personal model: personas and inbox of the contacts ``X``, and the global curve of ``sends`` beside them.

    Parameters
    ----------
    sends : Sends
        Closed when ``X`` was known.
    X : ndarray
        Vectors of contacts; those whose clocks have moved teach by their last 30 days' visits only.
    strengths
        ``prior_events``, ``visit_weight``, ``prior_sends`` of the model.
    """
    known = Histograms.of(X).believed()
    inbox = Inbox.of(burial_hours, known)
    channels = inbox.channels(known)
    personas = fit_personas(channels, n_personas, SATURATION)
    model = SendHourModel(
        rung="personal",
        hour_effect=True,
        rate=1.0,
        global_rate=np.ones(HOURS),
        personas=personas,
        segment_weight=_segment_weight(personas, channels, known.segment),
        burial_hours=burial_hours,
        until_answer=inbox.until_answer,
        **strengths,
    )
    mean = model._hazard_curve(known, own=False).mean(axis=0)
    common = fit_global(sends, mean)
    return replace(
        model, rate=common.rate, global_rate=common.global_rate, correction=np.asarray(common.global_rate / mean)
    )


def _segment_weight(personas: Personas, channels: Sequence[Channel], segment: Array) -> Array | None:
    """Weights of the personas in each segment; a segment of few contacts has nearly those of all."""
    if segment.shape[1] == 0:
        return None
    inside = segment.T @ personas.know(channels).share
    prior = SEGMENT_PRIOR_CONTACTS * personas.weight
    return np.asarray((inside + prior) / (segment.sum(axis=0)[:, None] + SEGMENT_PRIOR_CONTACTS), dtype=np.float64)


def too_little(sends: Sends) -> str | None:
    """Why these sends cannot tell hours apart; None if they may."""
    spread = len(sends) - int(np.bincount(sends.hour, minlength=HOURS).max(initial=0))
    if len(sends) >= MIN_SENDS and spread >= MIN_SPREAD_SENDS:
        return None
    return (
        f"{len(sends)} sends are older than 24 h and {spread} of them left outside the commonest hour; learning hours "
        f"takes {MIN_SENDS} and {MIN_SPREAD_SENDS}: the default hour stays, send one campaign spread over the day"
    )


def default_model(sends: Sends, reason: str) -> FittedHours:
    """The flat curve of an installation that has not sent enough."""
    model = replace(fit_global(sends), rung="default", hour_effect=False)
    return FittedHours(model, reason, {"sends": float(len(sends)), "hour_effect": 0.0})


def fit_hours(
    before_tuning: Sends, tuning: Slice, before_judging: Sends, judging: Slice, everything: Sends, X: Array
) -> FittedHours:
    """The rung that predicts later answers best, with its strengths tuned on later answers too.

    Parameters
    ----------
    before_tuning, before_judging, everything : Sends
        Closed sends up to the first split, up to the second, and up to now.
    tuning, judging : Slice
        The sends after the first split up to the second, and after the second, with the vectors known at the split.
    X : ndarray, shape (n, 120) and more
        Vectors now.
    """
    tuned = _tune(before_tuning, tuning)
    assert tuned.personas is not None
    recipe: dict[str, Any] = {"n_personas": len(tuned.personas)} | {
        name: getattr(tuned, name) for name in ("burial_hours", "prior_events", "visit_weight", "prior_sends")
    }
    judged = fit_personal(before_judging, judging.X, **recipe)
    known = Histograms.of(judging.X).believed()
    curves = {
        "flat": np.repeat(judged._flat(known)[:, None], HOURS, axis=1),
        "global": replace(judged, rung="global").predict_hours(judging.X),
        "personal": judged.predict_hours(judging.X),
    }
    losses = {name: judging.losses(curve) for name, curve in curves.items()}
    even = even_weights(judging.sends.hour)
    rung = "personal" if even @ losses["personal"] < even @ losses["global"] else "global"
    gain = paired_difference(losses["flat"] - losses[rung], judging.sends.contact_key)
    p_global = hours_differ(everything)
    p_personal = activity_matters(replace(tuned, prior_events=PRIOR_EVENTS_GRID[0]), tuning, judging)
    proven = _proofs(gain, p_global, p_personal)
    model = replace(fit_personal(everything, X, **recipe), rung=rung if proven else "flat", hour_effect=bool(proven))
    served = curves[rung] if proven else curves["flat"]
    metrics = evaluate(judging.sends.answered, served[judging.row, judging.sends.hour])
    metrics |= {f"{name}_log_loss": float(loss.mean()) for name, loss in losses.items()}
    metrics |= {
        "sends": float(len(everything)),
        "gain_over_flat_nats": gain.mean,
        "gain_over_flat_z": gain.z,
        "hours_differ_p": p_global,
        "activity_matters_p": p_personal,
        "hour_effect": float(bool(proven)),
        "flat_roc_auc": evaluate(judging.sends.answered, curves["flat"][judging.row, judging.sends.hour])["roc_auc"],
    }
    notes = _clock_note(Histograms.of(X), metrics)
    if judging.sends.propensity is not None:
        by_send = curves[rung][judging.row]
        sends = judging.sends
        metrics |= hour_policy_value(
            sends.contact_key, sends.hour, sends.answered, judging.sends.propensity, by_send.argmax(axis=1), by_send
        ).as_metrics()
    better = f"{rung} curves predicted {len(judging.sends)} later sends best of global and personal"
    if proven:
        reason = f"{better}; {' and '.join(proven)}"
    else:
        reason = (
            f"hours do not provably differ (gain on later sends {gain.mean:+.5f} nats, z {gain.z:.1f}; "
            f"p {p_global:.2f} over all hours, {p_personal:.2f} along activity): curves are flat and no gain is claimed"
        )
    return FittedHours(model, reason + notes, metrics)


def _clock_note(known: Histograms, metrics: dict[str, float]) -> str:
    """Puts into ``metrics`` whose clocks have moved; a word of alarm where some have."""
    together = [part.sum(axis=0, keepdims=True) for part in (known.recent_visits, known.visits - known.recent_visits)]
    everybody = moved_clocks(*together)
    count = int(known.moved.sum())
    metrics["clocks_moved"] = float(count)
    if np.isfinite(everybody.hours[0]):
        metrics["clock_moved_hours"] = float(everybody.hours[0])
    note = ""
    if count:
        note += (
            f"; the clocks of {count} contacts moved by more than 3 h in 30 days: their older hours are not looked at"
        )
    if everybody.alarm[0]:
        note += (
            f"; clock alarm: the mean hour of all visits moved by {everybody.hours[0]:+.1f} h in 30 days, "
            "look at the time zone of what sends the events"
        )
    return note


def even_weights(hour: NDArray[np.int64]) -> Array:
    """Weights, of mean 1, that let every hour speak as loud, shape (n,): most mail leaves at the few usual hours.

    A curve is asked for its best of all hours, so it must be right at hours that few mails left at too; none of these
    counts more than ten times the mean, lest a handful decide.
    """
    count = np.bincount(hour, minlength=HOURS)
    weight = np.minimum(len(hour) / HOURS / np.maximum(count, 1), MAX_EVEN_WEIGHT)[hour]
    return np.asarray(weight / weight.mean(), dtype=np.float64)


def _tune(before: Sends, later: Slice) -> SendHourModel:
    """Personas, then how strongly a contact's own hours count: what predicts later answers best.

    A less usual choice must be better by more than a standard error, so that noise chooses the usual one.

    References
    ----------
    Breiman, L., Friedman, J., Olshen, R. & Stone, C. (1984), "Classification and regression trees" (one-SE rule).
    """
    even = even_weights(later.sends.hour)

    def best(candidates: Sequence[SendHourModel]) -> SendHourModel:
        losses = [even * later.losses(one.predict_hours(later.X)) for one in candidates]
        least = min(range(len(losses)), key=lambda i: float(losses[i].mean()))
        gain = paired_difference(losses[0] - losses[least], later.sends.contact_key)
        return candidates[least if gain.z > 1 else 0]

    burial_hours = burial_hours_of(before)
    chosen = best([fit_personal(before, later.X, k, burial_hours) for k in PERSONAS_GRID])
    return best(
        [
            replace(chosen, prior_events=events, visit_weight=visit, prior_sends=sends)
            for events, visit, sends in product(PRIOR_EVENTS_GRID, VISIT_WEIGHT_GRID, PRIOR_SENDS_GRID)
            if np.isfinite(events) or visit == VISIT_WEIGHT_GRID[0]
        ]
    )


def _proofs(gain: Difference, p_global: float, p_personal: float) -> list[str]:
    from scipy.stats import norm

    proofs = []
    if gain.z > norm.isf(PROOF_LEVEL):
        proofs.append(f"they beat a flat curve there (z {gain.z:.1f})")
    if p_global < PROOF_LEVEL:
        proofs.append(f"answers differ by hour within contact and day (p {p_global:.4f})")
    if p_personal < PROOF_LEVEL:
        proofs.append(f"answers follow a contact's own active hours (p {p_personal:.4f})")
    return proofs


def hours_differ(sends: Sends) -> float:
    """p-value of “no hour effect”: daily and half-daily waves in a linear model with contact and day effects.

    Contact effects keep who is mailed at an hour, day effects keep which campaign ran, out of the comparison.
    """
    angle = 2 * np.pi * sends.hour / HOURS
    waves = np.column_stack([np.cos(angle), np.sin(angle), np.cos(2 * angle), np.sin(2 * angle)])
    statistic, rank = _within_test(waves, sends)
    from scipy.stats import chi2

    return float(chi2.sf(statistic @ statistic, rank)) if rank else 1.0


def activity_matters(model: SendHourModel, *slices: Slice) -> float:
    """One-sided p-value of “answers do not follow the contact's own active hours”, known before the sends."""
    from scipy.stats import norm

    shape = np.concatenate([np.log(model._shape(Histograms.of(s.X)))[s.row, s.sends.hour] for s in slices])
    columns = ("contact_key", "sent_at", "hour", "answered")
    sends = Sends(*(np.concatenate([getattr(s.sends, name) for s in slices]) for name in columns))
    # Within contact and slice: a later vector knows the earlier slice's answers, and must not be compared across it.
    part = np.repeat(np.arange(len(slices)), [len(s.sends) for s in slices])
    statistic, rank = _within_test(shape[:, None], sends, part)
    return float(norm.sf(statistic[0])) if rank else 1.0


def _within_test(regressors: Array, sends: Sends, part: NDArray[np.int64] | None = None) -> tuple[Array, int]:
    """Score of each regressor within contact (and part) and day, in standard errors over contacts, and their rank.

    References
    ----------
    Frisch, R. & Waugh, F. V. (1933), "Partial time regressions as compared with individual trends"; Liang, K.-Y. &
    Zeger, S. L. (1986), "Longitudinal data analysis using generalized linear models" (cluster-robust variance).
    """
    _, contact = np.unique(sends.contact_key, return_inverse=True)
    _, day = np.unique(sends.sent_at // 86_400_000_000, return_inverse=True)
    own = contact if part is None else np.unique(contact * (part.max() + 1) + part, return_inverse=True)[1]
    both = np.column_stack([sends.answered.astype(np.float64), regressors])
    for _ in range(20):  # alternating projections; a few rounds suffice for nearly balanced panels
        for group in (own, day):
            count = np.bincount(group)
            for column in range(both.shape[1]):
                both[:, column] -= (np.bincount(group, both[:, column]) / count)[group]
    residual, within = both[:, 0], both[:, 1:]
    moments = np.column_stack([np.bincount(contact, residual * within[:, j]) for j in range(within.shape[1])])
    values, vectors = np.linalg.eigh(moments.T @ moments)
    kept = values > max(values.max(initial=0.0), 1e-12) * 1e-8
    scores = (moments.sum(axis=0) @ vectors[:, kept]) / np.sqrt(values[kept])
    if regressors.shape[1] == 1 and kept.any():
        scores = np.array([float(moments.sum()) / float(np.sqrt((moments**2).sum()))])  # keep the sign of the effect
    return scores, int(kept.sum())
