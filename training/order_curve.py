"""When a contact will order next: from the chance within the anchor's days to any horizon, a date and an amount."""

from __future__ import annotations

import json
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
        anchor = np.logaddexp(0.0, log_odds)
        if horizon_days == self.anchor_days:
            return np.asarray(anchor)
        ratio = self._baseline(X, horizon_days) / self._baseline(X, self.anchor_days)
        return np.asarray(anchor * ratio)

    def probability(self, X: Array, log_odds: Array, horizon_days: float) -> Array:
        """P(an order within ``horizon_days``), shape (n,)."""
        return np.asarray(-np.expm1(-self.hazard(X, log_odds, horizon_days)))

    def next_order_days(self, X: Array, log_odds: Array, quantile: float) -> Array:
        """Days until the next order with probability ``quantile``, shape (n,); infinite where that is never, or later
        than ten years from now.

        BG/NBD's curve is inverted in closed form.
        """
        wanted = -np.log1p(-quantile) / np.maximum(np.logaddexp(0.0, log_odds), LEAST_HAZARD)  # in anchor hazards
        days = np.asarray(self.anchor_days * wanted)
        if self.bgnbd is not None:
            frequency, recency, T = history(X, self._history)
            bought = self._has_bought(X)
            alive = self.bgnbd.probability_alive(frequency, recency, T)
            within = -np.expm1(-wanted * self._baseline(X, self.anchor_days))
            with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
                left = np.where(within < alive, 1 - within / alive, 0.0)
                own = (self.bgnbd.alpha + T) * np.expm1(-np.log(left) / (self.bgnbd.r + frequency))
            days = np.where(bought, own, days)
        return np.where(days <= FARTHEST_DAYS, days, np.inf)

    def expected_orders(self, X: Array, log_odds: Array, horizon_days: float) -> Array:
        """Expected number of days with an order within the horizon, shape (n,): at least the probability of one.

        BG/NBD's expected number, given that there is one, times the probability of one.
        """
        hazard = self.hazard(X, log_odds, horizon_days)
        if self.bgnbd is None:
            return hazard
        frequency, recency, T = history(X, self._history)
        expected = self.bgnbd.expected_purchases(frequency, recency, T, horizon_days)
        chance = np.maximum(self.bgnbd.probability(frequency, recency, T, horizon_days), LEAST_HAZARD)
        return np.where(self._has_bought(X), -np.expm1(-hazard) * np.maximum(expected / chance, 1.0), hazard)

    def expected_value(self, X: Array, log_odds: Array, horizon_days: float) -> Array:
        """Expected money (minor units) of the orders within the horizon, shape (n,); NaN where values are not known."""
        if self.gamma_gamma is None:
            return np.full(len(X), np.nan)
        days = np.nan_to_num(X[:, self.columns[0]])
        mean = np.nan_to_num(X[:, self.columns[3]]) / np.maximum(days, 1)
        paid = (days > 0) & (mean > 0)
        value = self.gamma_gamma.expected_value(np.where(paid, days, 0.0), np.where(paid, mean, 0.0))
        return np.asarray(self.expected_orders(X, log_odds, horizon_days) * value)

    def baseline_probability(self, X: Array, horizon_days: float) -> Array:
        """BG/NBD's own P(an order within the horizon), shape (n,), of buyers; to be judged beside."""
        return np.asarray(-np.expm1(-self._baseline(X, horizon_days)))

    @property
    def _history(self) -> tuple[int, int, int]:
        return self.columns[:3]

    def _has_bought(self, X: Array) -> NDArray[np.bool_]:
        return np.asarray(X[:, self.columns[0]] >= 1)

    def _baseline(self, X: Array, horizon_days: float) -> Array:
        """BG/NBD's cumulative hazard of buyers; that of never-buyers is the horizon itself."""
        if self.bgnbd is None:
            return np.full(len(X), float(horizon_days))
        frequency, recency, T = history(X, self._history)
        hazard = -np.log1p(-self.bgnbd.probability(frequency, recency, T, horizon_days))
        return np.where(self._has_bought(X), np.maximum(hazard, np.finfo(float).tiny), float(horizon_days))

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
