"""The two rungs that learn a yes-or-no outcome: ridge logistic regression and a small LightGBM, kept as plain files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Inverse ridge strength on standardised columns. Weak data lean on it; with thousands of rows it hardly matters.
LOGISTIC_C = 0.05
#: A standardised value is held within ± this, so that one wholesaler's order cannot swing a linear score.
Z_LIMIT = 5.0

#: Rows that a logistic regression scores at a time: what stays in a processor's cache is scored in half the time.
ROWS_AT_ONCE = 2_000

LIGHTGBM_TREES = 200
#: Rows from which a second thread pays; below, its waiting costs a busy machine far more than it saves.
TWO_THREADS_FROM = 200_000
LIGHTGBM_PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "num_leaves": 15,
    "learning_rate": 0.03,
    "min_data_in_leaf": 40,
    "feature_fraction": 0.7,
    "lambda_l2": 2.0,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


class OneClass(ValueError):
    """Only one outcome occurs, so there is nothing to tell apart."""


class Estimator(Protocol):
    """A fitted rung: log-odds for vectors, and what each column gave to them."""

    @property
    def rung(self) -> str:
        """Name of the rung: ``logistic`` or ``lightgbm``."""
        ...

    def log_odds(self, X: Array) -> Array:
        """Raw scores in nats, shape (n,), of vectors of shape (n, p); NaN marks a missing value."""
        ...

    def contributions(self, X: Array) -> tuple[Array, float | Array]:
        """What each column adds to each score, shape (n, p), and the base they add to."""
        ...

    def save(self, folder: Path) -> None:
        """Write the rung's one plain file into ``folder``."""
        ...


def _check_outcomes(y: NDArray[np.generic]) -> None:
    positives = int(np.asarray(y).sum())
    if positives in (0, len(y)):
        raise OneClass(
            f"{positives} of {len(y)} outcomes are positive; learning needs both kinds, train on a longer history"
        )


@dataclass(frozen=True)
class RidgeLogistic:
    """Logistic regression with an L2 penalty on compressed, standardised columns and flags of missing values.

    A column x enters as z = (sign(x) log(1 + |x|) − centre) / scale, held within ±5, 0 where x is missing; a column
    that had missing values in training has a flag beside it.

    References
    ----------
    Hoerl, A. E. & Kennard, R. W. (1970), "Ridge regression"; le Cessie, S. & van Houwelingen, J. C. (1992), "Ridge
    estimators in logistic regression".
    """

    center: Array
    scale: Array
    #: One per column.
    coefficients: Array
    #: One per column; 0 where the column was never missing in training.
    missing_coefficients: Array
    #: Share of missing values in training, one per column.
    missing_share: Array
    intercept: float

    rung = "logistic"
    FILE = "logistic.json"

    @classmethod
    def fit(
        cls,
        X: Array,
        y: NDArray[np.generic],
        *,
        seed: int = 0,
        weight: Array | None = None,
        left_out: NDArray[np.bool_] | None = None,
    ) -> RidgeLogistic:
        """The penalised maximum-likelihood fit; the same data give the same coefficients (``seed`` is not used).

        Parameters
        ----------
        X : ndarray, shape (n, p)
        y : ndarray, shape (n,)
            Outcomes, 0 or 1.
        weight : ndarray, shape (n,), optional
            How often each row counts.
        left_out : ndarray of bool, shape (p,), optional
            Columns that get no say.
        """
        from sklearn.linear_model import LogisticRegression
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

        _check_outcomes(y)
        compressed, is_missing = _compress(X)
        present = np.maximum((~is_missing).sum(axis=0), 1)
        center = np.where(is_missing, 0.0, compressed).sum(axis=0) / present
        spread = np.sqrt((np.where(is_missing, 0.0, compressed - center) ** 2).sum(axis=0) / present)
        scale = np.where(spread > 1e-9, spread, 1.0)
        missing_share = is_missing.mean(axis=0)
        told = (spread > 1e-9) & (True if left_out is None else ~left_out)
        flagged = np.flatnonzero((missing_share > 0) & (missing_share < 1) & (True if left_out is None else ~left_out))
        design = np.hstack(
            [
                _standardise(compressed, is_missing, center, scale)[:, told],
                is_missing[:, flagged] - missing_share[flagged],
            ]
        )
        if not design.shape[1]:  # every column is constant: the level is all there is to learn
            design = np.zeros((len(X), 1))
        logistic = LogisticRegression(C=LOGISTIC_C, solver="newton-cholesky", max_iter=200, tol=1e-8)
        with threadpool_limits(2 if len(X) >= TWO_THREADS_FROM else 1):
            fitted = logistic.fit(design, y, sample_weight=weight)
        missing_coefficients = np.zeros(X.shape[1])
        coefficients = np.zeros(X.shape[1])
        # A column without variance in training has no say, whatever it holds later.
        coefficients[told] = fitted.coef_[0, : told.sum()]
        missing_coefficients[flagged] = fitted.coef_[0, told.sum() : told.sum() + len(flagged)]
        return cls(center, scale, coefficients, missing_coefficients, missing_share, float(fitted.intercept_[0]))

    def log_odds(self, X: Array) -> Array:
        """Raw scores in nats, shape (n,)."""
        has_say = (self.coefficients != 0) | (self.missing_coefficients != 0)
        # Picking columns copies them one by one, which costs more than computing a few for nothing.
        used = np.flatnonzero(has_say) if has_say.mean() < 0.5 else slice(None)
        out = np.empty(len(X))
        for start in range(0, len(X), ROWS_AT_ONCE):
            part = X[start : start + ROWS_AT_ONCE, used]
            missing = ~np.isfinite(part)
            z = np.abs(part)
            z += 1
            np.log(z, out=z)
            np.copysign(z, part, out=z)
            z -= self.center[used]
            z /= self.scale[used]
            np.clip(z, -Z_LIMIT, Z_LIMIT, out=z)
            z *= self.coefficients[used]
            np.copyto(z, self.missing_coefficients[used], where=missing)
            out[start : start + len(part)] = z.sum(axis=1)  # BLAS would add up differently in a batch of another size
        return out + (self.intercept - self.missing_share @ self.missing_coefficients)

    def contributions(self, X: Array) -> tuple[Array, float]:
        """Coefficient times centred value, the flag of a missing value with its column; the base is the intercept."""
        compressed, is_missing = _compress(X)
        parts = _standardise(compressed, is_missing, self.center, self.scale) * self.coefficients
        parts += (is_missing - self.missing_share) * self.missing_coefficients
        return parts, self.intercept

    def save(self, folder: Path) -> None:
        """Write ``logistic.json``."""
        content = {
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "coefficients": self.coefficients.tolist(),
            "missing_coefficients": self.missing_coefficients.tolist(),
            "missing_share": self.missing_share.tolist(),
            "intercept": self.intercept,
        }
        (folder / self.FILE).write_text(json.dumps(content, indent=1))

    @classmethod
    def load(cls, folder: Path) -> RidgeLogistic:
        """Read ``logistic.json``."""
        content = json.loads((folder / cls.FILE).read_text())
        intercept = float(content.pop("intercept"))
        return cls(
            **{name: np.array(values, dtype=np.float64) for name, values in content.items()}, intercept=intercept
        )


def _compress(X: Array) -> tuple[Array, NDArray[np.bool_]]:
    X = np.asarray(X, dtype=np.float64)
    is_missing = ~np.isfinite(X)
    return np.sign(X) * np.log(1 + np.abs(X)), is_missing  # log1p takes twice as long and adds nothing here


def _standardise(compressed: Array, is_missing: NDArray[np.bool_], center: Array, scale: Array) -> Array:
    return np.where(is_missing, 0.0, np.clip((compressed - center) / scale, -Z_LIMIT, Z_LIMIT))


class SmallLightGBM:
    """200 trees of 15 leaves; the bound on leaves and rows per leaf is what keeps it honest on a few thousand contacts.

    References
    ----------
    Ke, G. et al. (2017), "LightGBM: a highly efficient gradient boosting decision tree"; Lundberg, S. M. et al. (2020),
    "From local explanations to global understanding with explainable AI for trees".
    """

    rung = "lightgbm"
    FILE = "booster.txt"

    def __init__(self, text: str) -> None:
        import lightgbm

        self._text = text
        self._booster = lightgbm.Booster(model_str=text)

    @classmethod
    def fit(
        cls, X: Array, y: NDArray[np.generic], *, seed: int = 0, weight: Array | None = None, **parameters: Any
    ) -> SmallLightGBM:
        """The boosted trees; the same data and ``seed`` give the same trees.

        Parameters
        ----------
        X : ndarray, shape (n, p)
        y : ndarray, shape (n,)
            Outcomes, 0 or 1.
        weight : ndarray, shape (n,), optional
            How often each row counts.
        **parameters
            Of LightGBM, instead of those in ``LIGHTGBM_PARAMETERS``.
        """
        import lightgbm

        _check_outcomes(y)
        threads = 2 if len(X) >= TWO_THREADS_FROM else 1
        data = lightgbm.Dataset(
            X, np.asarray(y, dtype=np.float64), weight=weight, params={"verbose": -1, "num_threads": threads}
        )
        parameters = {**LIGHTGBM_PARAMETERS, **parameters, "seed": seed, "num_threads": threads}
        booster = lightgbm.train(parameters, data, LIGHTGBM_TREES)
        return cls(booster.model_to_string())

    def log_odds(self, X: Array) -> Array:
        """Raw scores in nats, shape (n,)."""
        # One thread: starting a second costs more than it saves on one row, and batches run bucket-parallel.
        return np.asarray(self._booster.predict(X, raw_score=True, num_threads=1), dtype=np.float64)

    def contributions(self, X: Array) -> tuple[Array, Array]:
        """SHAP values of the columns; the base is the expected raw score, shape (n,)."""
        parts = np.asarray(self._booster.predict(X, pred_contrib=True, num_threads=1), dtype=np.float64)
        return parts[:, :-1], parts[:, -1]

    def save(self, folder: Path) -> None:
        """Write ``booster.txt`` in LightGBM's own text format."""
        (folder / self.FILE).write_text(self._text)

    @classmethod
    def load(cls, folder: Path) -> SmallLightGBM:
        """Read ``booster.txt``."""
        return cls((folder / cls.FILE).read_text())


#: The rungs by name, lowest first.
RUNGS: dict[str, type[RidgeLogistic] | type[SmallLightGBM]] = {
    RidgeLogistic.rung: RidgeLogistic,
    SmallLightGBM.rung: SmallLightGBM,
}
