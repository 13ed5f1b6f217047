"""When a contact will order next: from the chance within the anchor's days to any horizon, a date and an amount."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.bgnbd import BGNBD
from training.gamma_gamma import GammaGamma
from training.rungs import LEAST_HAZARD, history

Array = NDArray[np.float64]

#: A date further away than this is not told.
FARTHEST_DAYS = 3650.0
#: By which the date of the next order is told.
NEXT_ORDER_QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}


@dataclass(frozen=True)
class OrderCurve:
    """One time-to-next-order view behind every horizon: BG/NBD's survival curve, raised to each contact's own power.

    With Λ(h) = −log P(no order within h days) of BG/NBD for a contact's history, and p the probability of an order
    within the anchor's A days from whatever rung serves,

        P(no order within h) = exp(−θ Λ(h)),    θ = −log(1 − p) / Λ(A).

    A proportional-hazards model with BG/NBD as each contact's baseline: at A it says p, it rises with the horizon for
    every contact, and churn over h is one less it, by construction. Never-buyers have a constant hazard as baseline.

    References
    ----------
    Cox, D. R. (1972), "Regression models and life-tables"; Fader, P. S., Hardie, B. G. S. & Lee, K. L. (2005),
    "“Counting your customers” the easy way".
    """

    #: Horizon in days of the log-odds that the curve goes through.
    anchor_days: int
    #: Columns of the buying history (`training.rungs.HISTORY`), then of the revenue so far.
    columns: tuple[int, int, int, int]
    #: None where no one has bought twice: then everybody's hazard is constant.
    bgnbd: BGNBD | None = None
    #: None where too few bought twice to tell order values.
    gamma_gamma: GammaGamma | None = None

    FILE = "order_curve.json"

    def hazard(self, X: Array, log_odds: Array, horizon_days: float) -> Array:
        """Cumulative hazard −log P(no order within the horizon), shape (n,), given the anchor's log-odds."""
        if horizon_days == self.anchor_days:
            return np.asarray(np.logaddexp(0.0, log_odds))
        return self._of(X, log_odds).hazard(horizon_days)

    def probability(self, X: Array, log_odds: Array, horizon_days: float) -> Array:
        """P(an order within ``horizon_days``), shape (n,)."""
        return np.asarray(-np.expm1(-self.hazard(X, log_odds, horizon_days)))

    def next_order_days(self, X: Array, log_odds: Array, quantile: float) -> Array:
        """Days until the next order with probability ``quantile``, shape (n,); infinite where that is never, or later
        than ten years from now.

        BG/NBD's curve is inverted in closed form.
        """
        return self._of(X, log_odds).next_order_days(quantile)

    def expected_orders(self, X: Array, log_odds: Array, horizon_days: float) -> Array:
        """Expected number of days with an order within the horizon, shape (n,): at least the probability of one.

        BG/NBD's expected number, given that there is one, times the probability of one.
        """
        return self._of(X, log_odds).expected_orders(horizon_days)

    def expected_value(self, X: Array, log_odds: Array, horizon_days: float) -> Array:
        """Expected money (minor units) of the orders within the horizon, shape (n,); NaN where values are not known."""
        return self.value_of_an_order(X) * self.expected_orders(X, log_odds, horizon_days)

    def value_of_an_order(self, X: Array) -> Array:
        """Expected money (minor units) of a day with an order, shape (n,); NaN where values are not known."""
        if self.gamma_gamma is None:
            return np.full(len(X), np.nan)
        days = np.nan_to_num(X[:, self.columns[0]])
        mean = np.nan_to_num(X[:, self.columns[3]]) / np.maximum(days, 1)
        paid = (days > 0) & (mean > 0)
        return self.gamma_gamma.expected_value(np.where(paid, days, 0.0), np.where(paid, mean, 0.0))

    def outlook(self, X: Array, log_odds: Array, horizons: Sequence[float], own: float, farther: float) -> Outlook:
        """All that is told of each contact, from one look at its history.

        Parameters
        ----------
        horizons : sequence of float
            Days within which the chance of an order is told.
        own, farther : float
            Days within which orders and money are expected.
        """
        people, value = self._of(X, log_odds), self.value_of_an_order(X)
        orders = people.expected_orders(own)
        return Outlook(
            {h: np.asarray(-np.expm1(-people.hazard(h))) for h in horizons},
            {name: people.next_order_days(quantile) for name, quantile in NEXT_ORDER_QUANTILES.items()},
            orders,
            value * orders,
            value * people.expected_orders(farther),
        )

    def baseline_probability(self, X: Array, horizon_days: float) -> Array:
        """BG/NBD's own P(an order within the horizon), shape (n,), of buyers; to be judged beside."""
        return np.asarray(-np.expm1(-self._of(X, np.zeros(len(X))).baseline(horizon_days)))

    def _of(self, X: Array, log_odds: Array) -> _People:
        frequency, recency, T = history(X, self.columns[:3])
        bought = np.asarray(X[:, self.columns[0]] >= 1)
        alive = np.ones(len(X)) if self.bgnbd is None else self.bgnbd.probability_alive(frequency, recency, T)
        return _People(self, bought & (self.bgnbd is not None), frequency, recency, T, alive, np.asarray(log_odds))

    def save(self, folder: Path) -> None:
        """Write ``order_curve.json``."""
        content = {
            "anchor_days": self.anchor_days,
            "columns": self.columns,
            "bgnbd": None if self.bgnbd is None else self.bgnbd.to_dict(),
            "gamma_gamma": None if self.gamma_gamma is None else self.gamma_gamma.to_dict(),
        }
        (folder / self.FILE).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: Path) -> OrderCurve | None:
        """Read ``order_curve.json``; None where there is none."""
        path = folder / cls.FILE
        if not path.is_file():
            return None
        content = json.loads(path.read_text())
        a, b, c, d = content["columns"]
        return cls(
            content["anchor_days"],
            (a, b, c, d),
            None if content["bgnbd"] is None else BGNBD.from_dict(content["bgnbd"]),
            None if content["gamma_gamma"] is None else GammaGamma.from_dict(content["gamma_gamma"]),
        )


@dataclass(frozen=True)
class Outlook:
    """What contacts are expected to order, each array of shape (n,)."""

    #: Chance of an order by days ahead.
    within: Mapping[float, Array]
    #: Days until the next one by `NEXT_ORDER_QUANTILES`; infinite where that is never.
    next_order_days: Mapping[str, Array]
    #: Days with an order, and their money in minor units, within the own horizon; and the money within the farther one.
    orders: Array
    value_minor: Array
    farther_value_minor: Array


@dataclass(frozen=True)
class _People:
    """Contacts as the curve sees them: their history is read once, whatever is asked."""

    curve: OrderCurve
    #: Mask of those whose baseline is BG/NBD's.
    bought: NDArray[np.bool_]
    frequency: Array
    recency: Array
    T: Array
    alive: Array
    log_odds: Array

    def baseline(self, horizon_days: float) -> Array:
        """BG/NBD's cumulative hazard of buyers; that of never-buyers is the horizon itself."""
        if self.curve.bgnbd is None:
            return np.full(len(self.T), float(horizon_days))
        hazard = -np.log1p(-self._chance(horizon_days))
        return np.where(self.bought, np.maximum(hazard, np.finfo(float).tiny), float(horizon_days))

    def hazard(self, horizon_days: float) -> Array:
        """Cumulative hazard within the horizon."""
        anchor = np.logaddexp(0.0, self.log_odds)
        if horizon_days == self.curve.anchor_days:
            return np.asarray(anchor)
        return np.asarray(anchor * (self.baseline(horizon_days) / self.baseline(self.curve.anchor_days)))

    def next_order_days(self, quantile: float) -> Array:
        """Days until the next order with probability ``quantile``; infinite beyond ten years."""
        anchor = self.curve.anchor_days
        wanted = -np.log1p(-quantile) / np.maximum(np.logaddexp(0.0, self.log_odds), LEAST_HAZARD)  # anchor hazards
        days = np.asarray(anchor * wanted)
        model = self.curve.bgnbd
        if model is not None:
            within = -np.expm1(-wanted * self.baseline(anchor))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                left = np.where(within < self.alive, 1 - within / self.alive, 0.0)
                own = (model.alpha + self.T) * np.expm1(-np.log(left) / (model.r + self.frequency))
            days = np.where(self.bought, own, days)
        return np.where(days <= FARTHEST_DAYS, days, np.inf)

    def expected_orders(self, horizon_days: float) -> Array:
        """Expected days with an order within the horizon."""
        hazard, model = self.hazard(horizon_days), self.curve.bgnbd
        if model is None:
            return hazard
        expected = model.expected_purchases(self.frequency, self.recency, self.T, horizon_days)
        chance = np.maximum(self._chance(horizon_days), LEAST_HAZARD)
        return np.where(self.bought, -np.expm1(-hazard) * np.maximum(expected / chance, 1.0), hazard)

    def _chance(self, horizon_days: float) -> Array:
        """BG/NBD's chance of an order within the horizon (Fader, Hardie & Lee 2005)."""
        model = self.curve.bgnbd
        assert model is not None
        none = -(model.r + self.frequency) * np.log1p(horizon_days / (model.alpha + self.T))
        return np.asarray(self.alive * -np.expm1(none))
