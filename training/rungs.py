"""The rungs of the ladder that are not one fit: base rates, buying histories, blends; and how any of them is loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit

from training.bgnbd import BGNBD
from training.calibration import Calibration
from training.estimators import Estimator, RidgeLogistic, SmallLightGBM
from training.shipped_prior import ShippedPrior

Array = NDArray[np.float64]

#: Columns of the vector that tell a buying history: order days, time since the last and since the first.
HISTORY = ("order_days_ever", "days_since_order", "days_since_first_order")

#: Contacts by which a band's rate is drawn to the rate of all.
BAND_PRIOR = 20.0
#: Edges of the bands of recency, in horizons.
BANDS = (0.25, 0.5, 1.0, 2.0, 4.0)

#: Hazards below this are no longer told from none.
LEAST_HAZARD = 1e-12


@dataclass(frozen=True)
class BaseRates:
    """The rate of those whose last sign lies as long ago: what can be said when there is too little to learn from.

    A band's rate is the mean of a Beta posterior whose prior counts ``BAND_PRIOR`` contacts of the rate of all.

    References
    ----------
    Casella, G. (1985), "An introduction to empirical Bayes data analysis".
    """

    #: Which column is banded.
    column: int
    #: Upper ends of the bands, in its unit; beyond the last, and missing, are bands too.
    edges: tuple[float, ...]
    #: Log-odds by band, shape (len(edges) + 2,); the last where the column is missing.
    band_log_odds: Array
    #: Log-odds of all.
    overall: float

    rung = "base_rates"
    FILE = "base_rates.json"

    @classmethod
    def fit(
        cls, X: Array, y: NDArray[np.generic], column: int, horizon_days: float, weight: Array | None = None
    ) -> BaseRates:
        """Rates by band of ``column`` (days), the edges in horizons."""
        edges = tuple(float(edge * horizon_days) for edge in BANDS)
        band = _band(X[:, column], edges)
        n = len(edges) + 2
        w = np.ones(len(y)) if weight is None else weight
        happened = w * np.asarray(y, np.float64)
        overall = (float(happened.sum()) + 1) / (float(w.sum()) + 2)
        hits, rows = np.bincount(band, happened, n), np.bincount(band, w, n)
        return cls(
            column, edges, np.asarray(logit((hits + BAND_PRIOR * overall) / (rows + BAND_PRIOR))), float(logit(overall))
        )

    def log_odds(self, X: Array) -> Array:
        """Raw scores in nats, shape (n,)."""
        return np.asarray(self.band_log_odds[_band(X[:, self.column], self.edges)])

    def contributions(self, X: Array) -> tuple[Array, float]:
        """All of it from the banded column; the base is the rate of all."""
        parts = np.zeros(X.shape)
        parts[:, self.column] = self.log_odds(X) - self.overall
        return parts, self.overall

    def save(self, folder: Path) -> None:
        """Write ``base_rates.json``."""
        content = {"column": self.column, "edges": self.edges, "overall": self.overall}
        (folder / self.FILE).write_text(json.dumps({**content, "band_log_odds": self.band_log_odds.tolist()}, indent=1))

    @classmethod
    def load(cls, folder: Path) -> BaseRates:
        """Read ``base_rates.json``."""
        content = json.loads((folder / cls.FILE).read_text())
        return cls(
            content["column"],
            tuple(content["edges"]),
            np.array(content["band_log_odds"], dtype=np.float64),
            content["overall"],
        )


def _band(values: Array, edges: tuple[float, ...]) -> NDArray[np.int64]:
    band = np.searchsorted(np.array(edges), np.where(np.isfinite(values), values, 0.0), side="left")
    return np.where(np.isfinite(values), band, len(edges) + 1)


def history(X: Array, columns: tuple[int, int, int]) -> tuple[Array, Array, Array]:
    """Repeat order days, days from the first to the last, days since the first, shape (n,) each; 0 for never-buyers."""
    days, last, first = (np.nan_to_num(X[:, column]) for column in columns)
    return np.maximum(days - 1, 0.0), np.clip(first - last, 0.0, first), first


def history_columns(names: tuple[str, ...]) -> tuple[int, int, int]:
    """Where the buying history stands in a vector of these columns.

    Raises
    ------
    ValueError
        If a column is missing.
    """
    missing = [name for name in HISTORY if name not in names]
    if missing:
        raise ValueError(f"the views have no column {missing[0]!r}, from which buying histories are read; declare it")
    a, b, c = (names.index(name) for name in HISTORY)
    return a, b, c


class HistoryModel(Protocol):
    """What answers from a buying history alone."""

    def log_odds(self, frequency: Array, recency: Array, T: Array, horizon_days: float) -> Array:
        """Log-odds of an order within the horizon, shape (n,)."""
        ...


@dataclass(frozen=True)
class _BgnbdLogOdds:
    model: BGNBD

    def log_odds(self, frequency: Array, recency: Array, T: Array, horizon_days: float) -> Array:
        hazard = -np.log1p(-self.model.probability(frequency, recency, T, horizon_days))
        return np.asarray(np.log(np.expm1(np.maximum(hazard, LEAST_HAZARD))), dtype=np.float64)


@dataclass(frozen=True)
class BuyingHistory:
    """An order within the horizon, from the buying history alone: BG/NBD fitted here, or the prior that is shipped.

    What the three columns of the history give to a score are their Shapley values against a reference customer: the
    mean, over the orders in which the columns may be told, of what each adds. They add up exactly.

    References
    ----------
    Shapley, L. S. (1953), "A value for n-person games".
    """

    rung: str
    model: HistoryModel
    #: BG/NBD's parameters as they are saved; empty for the prior, which ships with the program.
    parameters: dict[str, Any]
    columns: tuple[int, int, int]
    horizon_days: int
    #: Median of each column over the customers it was made on, shape (3,).
    reference: Array

    FILE = "history.json"

    @classmethod
    def bgnbd(cls, fitted: BGNBD, X: Array, columns: tuple[int, int, int], horizon_days: int) -> BuyingHistory:
        """BG/NBD with the median customer of ``X`` as the reference."""
        return cls("bgnbd", _BgnbdLogOdds(fitted), fitted.to_dict(), columns, horizon_days, _median(X, columns))

    @classmethod
    def prior(cls, X: Array, columns: tuple[int, int, int], horizon_days: int) -> BuyingHistory:
        """The shipped prior with the median customer of ``X`` as the reference."""
        return cls("prior", ShippedPrior.load(), {}, columns, horizon_days, _median(X, columns))

    def log_odds(self, X: Array) -> Array:
        """Raw scores in nats, shape (n,)."""
        return self._of(np.ascontiguousarray(X[:, list(self.columns)]))

    def contributions(self, X: Array) -> tuple[Array, float]:
        """Shapley values of the history's columns; the base is the reference customer's score."""
        own = X[:, list(self.columns)]
        choices = list(product((False, True), repeat=3))
        together = self._of(np.concatenate([np.where(told, own, self.reference) for told in choices]))
        scores = dict(zip(choices, np.split(together, len(choices)), strict=True))
        parts = np.zeros(X.shape)
        for place, column in enumerate(self.columns):
            for told, score in scores.items():
                if told[place]:
                    before = tuple(one and i != place for i, one in enumerate(told))
                    parts[:, column] += (1 / 3, 1 / 6, 1 / 3)[sum(before)] * (score - scores[before])
        return parts, float(self._of(self.reference[None, :])[0])

    def _of(self, columns: Array) -> Array:
        frequency, recency, T = history(columns, (0, 1, 2))
        return self.model.log_odds(frequency, recency, T, self.horizon_days)

    def save(self, folder: Path) -> None:
        """Write ``history.json``."""
        content = {
            "rung": self.rung,
            "parameters": self.parameters,
            "columns": self.columns,
            "horizon_days": self.horizon_days,
            "reference": self.reference.tolist(),
        }
        (folder / self.FILE).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: Path) -> BuyingHistory:
        """Read ``history.json``."""
        content = json.loads((folder / cls.FILE).read_text())
        rung, parameters = content["rung"], content["parameters"]
        model = ShippedPrior.load() if rung == "prior" else _BgnbdLogOdds(BGNBD.from_dict(parameters))
        a, b, c = content["columns"]
        return cls(rung, model, parameters, (a, b, c), content["horizon_days"], np.array(content["reference"]))


def _median(X: Array, columns: tuple[int, int, int]) -> Array:
    return np.median(np.nan_to_num(X[:, list(columns)]), axis=0) if len(X) else np.zeros(3)


@dataclass(frozen=True)
class Blend:
    """The mean of several calibrated scores in log-odds, which is seldom far from the best of them.

    References
    ----------
    Genest, C. & Zidek, J. V. (1986), "Combining probability distributions: a critique and an annotated bibliography"
    (logarithmic pooling).
    """

    rung: str
    parts: tuple[tuple[Estimator, Calibration], ...]

    FILE = "blend.json"

    def log_odds(self, X: Array) -> Array:
        """Calibrated scores in nats, shape (n,)."""
        total = np.zeros(len(X))
        for estimator, line in self.parts:
            total += line.intercept + line.slope * estimator.log_odds(X)
        return total / len(self.parts)

    def contributions(self, X: Array) -> tuple[Array, Array]:
        """Mean of the parts' contributions, each scaled by its slope."""
        columns, base = np.zeros(X.shape), np.zeros(len(X))
        for estimator, line in self.parts:
            parts, start = estimator.contributions(X)
            columns += line.slope * parts
            base += line.intercept + line.slope * np.asarray(start)
        return columns / len(self.parts), base / len(self.parts)

    def save(self, folder: Path) -> None:
        """Write ``blend.json`` and each part into a numbered folder."""
        lines = [{"slope": line.slope, "intercept": line.intercept} for _, line in self.parts]
        (folder / self.FILE).write_text(json.dumps({"rung": self.rung, "parts": lines}, indent=1))
        for number, (estimator, _) in enumerate(self.parts):
            _save_into(estimator, folder / str(number))

    @classmethod
    def load(cls, folder: Path) -> Blend:
        """Read ``blend.json`` and its parts."""
        content = json.loads((folder / cls.FILE).read_text())
        parts = [(load_estimator(folder / str(i)), Calibration(**line)) for i, line in enumerate(content["parts"])]
        return cls(content["rung"], tuple(parts))


@dataclass(frozen=True)
class ByHistory:
    """Buyers and never-buyers (leads) scored by estimators of their own."""

    buyers: Estimator
    leads: Estimator
    #: The column of order days.
    column: int

    FILE = "by_history.json"

    @property
    def rung(self) -> str:
        """The buyers' rung."""
        return self.buyers.rung

    def rungs(self, X: Array) -> list[str]:
        """Which rung answers for each row."""
        return [self.buyers.rung if bought else self.leads.rung for bought in self.has_bought(X)]

    def has_bought(self, X: Array) -> NDArray[np.bool_]:
        """Mask of the buyers."""
        return np.asarray(X[:, self.column] >= 1)

    def log_odds(self, X: Array) -> Array:
        """Calibrated scores in nats, shape (n,)."""
        bought = self.has_bought(X)
        if bought.all():
            return self.buyers.log_odds(X)
        out = np.empty(len(X))
        out[bought], out[~bought] = self.buyers.log_odds(X[bought]), self.leads.log_odds(X[~bought])
        return out

    def contributions(self, X: Array) -> tuple[Array, Array]:
        """Each row's by the estimator that scores it."""
        bought = self.has_bought(X)
        columns, base = np.empty(X.shape), np.empty(len(X))
        for mask, estimator in ((bought, self.buyers), (~bought, self.leads)):
            columns[mask], base[mask] = estimator.contributions(X[mask])
        return columns, base

    def save(self, folder: Path) -> None:
        """Write ``by_history.json``, ``buyers/`` and ``leads/``."""
        (folder / self.FILE).write_text(json.dumps({"column": self.column}))
        _save_into(self.buyers, folder / "buyers")
        _save_into(self.leads, folder / "leads")

    @classmethod
    def load(cls, folder: Path) -> ByHistory:
        """Read what `save` wrote."""
        content = json.loads((folder / cls.FILE).read_text())
        return cls(load_estimator(folder / "buyers"), load_estimator(folder / "leads"), content["column"])


#: What a folder holds is told by its file.
KINDS: tuple[Any, ...] = (RidgeLogistic, SmallLightGBM, BaseRates, BuyingHistory, Blend, ByHistory)


def load_estimator(folder: Path) -> Estimator:
    """The estimator whose files lie in ``folder``.

    Raises
    ------
    ValueError
        If there is none.
    """
    for kind in KINDS:
        if (folder / kind.FILE).is_file():
            estimator: Estimator = kind.load(folder)
            return estimator
    raise ValueError(f"{folder} holds no estimator: none of {', '.join(kind.FILE for kind in KINDS)}")


def _save_into(estimator: Estimator, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    estimator.save(folder)
