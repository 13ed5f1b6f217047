"""One question about contacts, answered as of any cut-off: what would have been fitted there, and how it did.

Outcomes about orders share one *order model*: the chance of an order within the anchor's days, learned by the ladder
for buyers and for never-buyers apart, and a curve that carries it to any horizon (`training.order_curve`). Churn over H
days is one less the chance of an order within H, so that no two answers about one contact contradict each other. Other
declared outcomes are learned over their own horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from features.views import ViewSet
from features.vocabulary import ORDER_COMPLETED
from training.bgnbd import CannotFit
from training.datasets import DAY_MICROS, Definition, TrainingSet
from training.estimators import Estimator, OneClass
from training.gamma_gamma import GammaGamma
from training.ladder import (
    BUYER_RUNGS,
    LEAST_ROWS,
    PLAIN_RUNGS,
    Choice,
    NotEnoughData,
    Walk,
    check_enough,
    rival_column,
)
from training.order_curve import OrderCurve
from training.rungs import HISTORY, ByHistory, history_columns

Array = NDArray[np.float64]

#: Horizon at which order models are learned; longer ones follow, and so learn from later windows.
ANCHOR_DAYS = 30
#: Repeat buyers with a paid order from whom order values are told.
LEAST_SPENDERS = 30
#: The columns a model has to beat when they stand alone.
RIVALS = {"recency": "days_since_order", "orders": "orders_ever"}


def is_about_orders(asked: Definition) -> bool:
    """Whether the order model answers: any order counts, and nothing of it may be unseen."""
    outcome = asked.outcome
    return outcome.events == (ORDER_COMPLETED,) and not outcome.where and not outcome.least_deliveries


@dataclass(frozen=True)
class Fitted:
    """What would serve from a cut-off on."""

    asked: Definition
    estimator: Estimator
    choice: Choice
    curve: OrderCurve | None = None
    leads: Choice | None = None

    def probability(self, X: Array) -> Array:
        """P(outcome), shape (n,)."""
        log_odds = self.estimator.log_odds(X)
        if self.curve is None:
            return np.asarray(expit(log_odds))
        ordered = self.curve.probability(X, log_odds, self.asked.horizon_days)
        return ordered if self.asked.outcome.positive == "some" else 1 - ordered


@dataclass(frozen=True)
class Judgement:
    """What was answered at a cut-off, beside its rivals, on the contacts of that day, whose outcomes came later."""

    cutoff: int
    choice: Choice
    leads: Choice | None
    rows: TrainingSet
    #: Probabilities on ``rows`` by who gave them: ``served``, ``recipe`` where one was asked for, and the rivals.
    probabilities: dict[str, Array]
    #: Mask of the rows of never-buyers.
    is_lead: NDArray[np.bool_]


@dataclass
class Study:
    """A question with everything that is needed to answer it as of any cut-off.

    Parameters
    ----------
    asked : Definition
    learned : TrainingSet
        Rows that are learned from, over ``anchor_days``: every contact, at instants of a grid that holds the cut-offs.
    told : TrainingSet
        Rows of the question's own population and horizon, which judge; ``learned`` itself where both are the same.
    anchor_days : int
    newest : int
        Microseconds since 1970 UTC: the cut-off of what is to serve.
    views : ViewSet
    today : ndarray, shape (m, p), optional
        Vectors at ``newest`` of a fair sample of contacts.
    """

    asked: Definition
    learned: TrainingSet
    told: TrainingSet
    anchor_days: int
    newest: int
    views: ViewSet
    seed: int = 0
    today: Array | None = None
    _main: Walk = field(init=False)
    _leads: Walk | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if not is_about_orders(self.asked):
            self._main = self._walk(self.learned, PLAIN_RUNGS, self.today)
            return
        bought = self._has_bought(self.learned.X)
        today = self.today
        if bought.all():
            self._main = self._walk(self.learned, BUYER_RUNGS, today)
            return
        of_buyers = None if today is None else today[self._has_bought(today)]
        self._main = self._walk(self.learned.rows(bought), BUYER_RUNGS, of_buyers)
        self._leads = self._walk(self.learned.rows(~bought), PLAIN_RUNGS, None)

    def fit(self, cutoff: int, rung: str | None = None) -> Fitted:
        """What would serve from ``cutoff`` on, learned from what was known there.

        Parameters
        ----------
        cutoff : int
            Microseconds since 1970 UTC, on the grid.
        rung : str, optional
            Instead of the one that the ladder chooses.

        Raises
        ------
        NotEnoughData
            If nothing, or only one thing, was known to have happened.
        """
        check_enough(self._main.known(cutoff), self.asked.outcome.name)
        choice = self._main.choose(cutoff) if rung is None else Choice(rung, "asked for")
        estimator: Estimator | None = self._main.fit(cutoff, choice.rung)
        if estimator is None:
            raise NotEnoughData(f"rung {choice.rung!r} cannot be fitted on what was known then; let the ladder choose")
        if not is_about_orders(self.asked):
            return Fitted(self.asked, estimator, choice)
        leads = None
        if self._leads is not None:
            leads, of_leads = self._fit_leads(self._leads, cutoff)
            estimator = ByHistory(estimator, of_leads, self.learned.names.index(HISTORY[0]))
        return Fitted(self.asked, estimator, choice, self._curve(cutoff), leads)

    def judge(self, cutoff: int, recipe: str | None = None) -> Judgement:
        """The answers at ``cutoff`` beside those of its rivals, on the same rows.

        Parameters
        ----------
        cutoff : int
            Outcomes over the question's horizon must be in ``told``.
        recipe : str, optional
            A rung whose answers are wanted too, where it can be fitted.

        Raises
        ------
        NotEnoughData
            If what was known at ``cutoff`` does not suffice.
        """
        rows = self.told.at(cutoff)
        known = self.told.closed_by(cutoff, self.asked.horizon_days)
        if not len(rows) or not len(known) or known.y.min() == known.y.max():
            raise NotEnoughData(
                f"{len(known)} rows with {int(known.y.sum())} positive outcomes were closed {self.asked.horizon_days} "
                "days before the last cut-off; import a longer history or choose a shorter --horizon-days"
            )
        fitted = self.fit(cutoff)
        probabilities = {"served": fitted.probability(rows.X)}
        if recipe is not None and self._main.fit(cutoff, recipe) is not None:
            probabilities["recipe"] = self.fit(cutoff, recipe).probability(rows.X)
        probabilities |= self._rivals(cutoff, known, rows, fitted.curve)
        bought = self._has_bought(rows.X) if is_about_orders(self.asked) else np.ones(len(rows), dtype=bool)
        return Judgement(cutoff, fitted.choice, fitted.leads, rows, probabilities, ~bought)

    def _rivals(self, cutoff: int, known: TrainingSet, rows: TrainingSet, curve: OrderCurve | None) -> dict[str, Array]:
        found: dict[str, Array] = {}
        for name, column in RIVALS.items():
            if column in known.names:
                found[name] = rival_column(known, rows, column)
        own = Walk(known, cutoff, self.asked.horizon_days, {"logistic": ("logistic",)}, self.views, self.seed)
        try:
            logistic = own.fit(cutoff, "logistic")
        except OneClass:
            logistic = None
        if logistic is not None:
            found["logistic"] = np.asarray(expit(logistic.log_odds(rows.X)))
        if curve is not None and curve.bgnbd is not None:
            baseline = curve.baseline_probability(rows.X, self.asked.horizon_days)
            if self._leads is not None:  # it knows nothing of never-buyers: they get their rate
                bought, knew = self._has_bought(rows.X), ~self._has_bought(known.X)
                rate = (known.y[knew].sum() + 1) / (knew.sum() + 2)
                rate = rate if self.asked.outcome.positive == "some" else 1 - rate
                baseline = np.where(bought, baseline, rate)
            found["bgnbd"] = baseline if self.asked.outcome.positive == "some" else 1 - baseline
        found["base_rate"] = np.full(len(rows), np.average(known.y, weights=known.weight))
        return found

    def _fit_leads(self, walk: Walk, cutoff: int) -> tuple[Choice, Estimator]:
        known = walk.known(cutoff)
        choice = Choice("base_rates", f"{len(known)} rows of never-buyers: the rate of all of them")
        if len(known) >= LEAST_ROWS and 0 < int(known.y.sum()) < len(known):
            choice = walk.choose(cutoff)
        estimator = walk.fit(cutoff, choice.rung)
        assert estimator is not None, "base rates can always be fitted"
        return choice, estimator

    def _curve(self, cutoff: int) -> OrderCurve:
        X = self.today if cutoff == self.newest and self.today is not None else self.learned.at(cutoff).X
        columns = history_columns(self.learned.names)
        revenue = self.learned.names.index("revenue_ever")
        days = np.nan_to_num(X[:, columns[0]])
        mean = np.nan_to_num(X[:, revenue]) / np.maximum(days, 1)
        spent = (days >= 2) & (mean > 0)
        gamma_gamma = None
        if spent.sum() >= LEAST_SPENDERS:
            try:
                gamma_gamma = GammaGamma.fit(days[spent], mean[spent])
            except CannotFit:
                gamma_gamma = None
        return OrderCurve(self.anchor_days, (*columns, revenue), self._main.bgnbd(cutoff), gamma_gamma)

    def _has_bought(self, X: Array) -> NDArray[np.bool_]:
        return np.asarray(X[:, self.learned.names.index(HISTORY[0])] >= 1)

    def _walk(self, data: TrainingSet, rungs: dict[str, tuple[str, ...]], today: Array | None) -> Walk:
        return Walk(data, self.newest, self.anchor_days, rungs, self.views, self.seed, today)


def judged_cutoffs(study: Study, most: int) -> list[int]:
    """The newest cut-offs of the walk whose outcomes are told, newest first."""
    horizon, step = study.asked.horizon_days, study.anchor_days
    first = -(-horizon // step)  # steps until the outcome is closed, rounded up
    held = set(np.unique(study.told.as_of).tolist())
    return [
        instant
        for instant in (study.newest - k * step * DAY_MICROS for k in range(first, first + most))
        if instant in held
    ]
