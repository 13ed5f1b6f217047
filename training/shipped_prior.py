"""Will a customer buy, in a shop that has no outcomes yet: a logistic regression learned on simulated shops.

``python -m training.shipped_prior`` learns it anew and rewrites ``shipped_prior.json``, to the same numbers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from training.bgnbd import checked_customers

Array = NDArray[np.float64]

FILE = "shipped_prior.json"

#: What the file was learned with; a test holds the file against it.
SETTINGS: dict[str, Any] = {
    "seed": 0,
    "n_shops": 1000,
    "n_customers": 400,
    "horizons_per_customer": 2,
    "horizon_days": [5, 365],
    "ridge": 1.0,
}
#: Digits kept of each number, so that another machine's rounding gives the same file.
DIGITS = 5

#: Beyond this silence (see `prior_inputs`) a customer counts as if they had bought a little later: the log-odds of the
#: long lost level off instead of running to −∞ where no simulated shop has told.
SILENCE_LIMIT = 12.0
LOG_RATIO_LIMIT = 7.0
GAPS_LIMIT = 100.0
LOG_EXPECTED_LIMIT = 6.0

#: The inputs in order. Those of the horizon come last; each grows with it, and none may have a coefficient below 0.
CUSTOMER_INPUTS = (
    "one_time_buyer",
    "log_count",
    "log_count_squared",
    "idle_share",
    "overdue_below_1",
    "log_overdue_below_3",
    "silence",
)
HORIZON_INPUTS = (
    "log_horizon_below_age",
    "log_horizon_by_gap",
    "log_horizon_by_log_count",
    "log_horizon_while_active",
    "log_expected_below_1",
)


@dataclass(frozen=True)
class ShippedPrior:
    """Log-odds of a purchase within a horizon from counts and ratios of times alone: no unit, no outcome of one's own.

    The level is that of an average simulated shop; where some outcomes are known, let `training.calibration.fit_platt`
    set it right. The log-odds never fall as the horizon grows.

    References
    ----------
    Fader, P. S., Hardie, B. G. S. & Lee, K. L. (2005), "“Counting your customers” the easy way"; le Cessie, S. & van
    Houwelingen, J. C. (1992), "Ridge estimators in logistic regression".

    Examples
    --------
    Six orders in a year, the last a week ago, against one order a year ago:

    >>> log_odds = ShippedPrior.load().log_odds([5, 0], [358, 0], [365, 365], 30)
    >>> bool(log_odds[0] > -1), bool(log_odds[1] < -2)
    (True, True)
    """

    inputs: tuple[str, ...]
    #: Mean of each input over the simulated customers, and log-odds per unit of it; shape (n_inputs,).
    center: Array
    coefficients: Array
    #: Log-odds of the customer at every centre.
    intercept: float
    #: Settings, worlds and size of what it was learned on.
    trained_on: dict[str, Any]

    @classmethod
    def load(cls) -> ShippedPrior:
        """The prior that ships with the package."""
        return cls.from_dict(json.loads(files("training").joinpath(FILE).read_text(encoding="utf-8")))

    def log_odds(self, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, horizon_days: ArrayLike) -> Array:
        """Raw scores in nats, shape (n,).

        Parameters
        ----------
        frequency, recency, T : array_like, shape (n,)
            Days with an order less one; days from first to last order; days from first order to now.
        horizon_days : float or array_like, shape (n,)
            Above 0, in the unit of ``T``; only ratios of times count.
        """
        parts, base = self.contributions(frequency, recency, T, horizon_days)
        return np.asarray(parts.sum(axis=1) + base)

    def contributions(
        self, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, horizon_days: ArrayLike
    ) -> tuple[Array, float]:
        """What each of `inputs` adds to each score, shape (n, n_inputs), and the base they add to."""
        X = prior_inputs(frequency, recency, T, horizon_days)
        return np.asarray((X - self.center) * self.coefficients), self.intercept

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and words, for JSON."""
        return {
            "answers": "log-odds of at least one order day within a horizon",
            "trained_on": self.trained_on,
            "intercept": self.intercept,
            "inputs": {
                name: {"center": float(center), "coefficient": float(coefficient)}
                for name, center, coefficient in zip(self.inputs, self.center, self.coefficients, strict=True)
            },
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ShippedPrior:
        """The prior that `to_dict` wrote."""
        names = CUSTOMER_INPUTS + HORIZON_INPUTS
        if tuple(content["inputs"]) != names:
            raise ValueError(
                f"the prior names the inputs {list(content['inputs'])}, the code computes {list(names)}; learn it anew "
                "with python -m training.shipped_prior"
            )
        columns = content["inputs"].values()
        return cls(
            names,
            np.array([column["center"] for column in columns]),
            np.array([column["coefficient"] for column in columns]),
            float(content["intercept"]),
            content["trained_on"],
        )


def prior_inputs(frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, horizon_days: ArrayLike) -> Array:
    """The inputs named in `CUSTOMER_INPUTS` and `HORIZON_INPUTS`, shape (n, n_inputs); finite for every customer.

    With x repeat purchases over t_x, T since the first and H ahead: the idle share is (T − t_x) / T; overdue is the
    time since the last purchase in mean gaps t_x / x; silence is (x + 1/2) log (T / t_x), the log-odds of having left
    that BG/NBD gives but for constants; expected is (x + 1/2) log (1 + H / T), its count of purchases ahead while
    alive, here as log (e^expected − 1), the log-odds of at least one. Without a repeat purchase silence is 0.
    """
    x, t_x, age = checked_customers(frequency, recency, T)
    horizon = np.broadcast_to(np.asarray(horizon_days, dtype=np.float64), x.shape)
    if not (np.isfinite(horizon) & (horizon > 0)).all():
        raise ValueError(f"the horizons go from {horizon.min()} to {horizon.max()} days; pass finite times above 0")
    again = x > 0
    has_past = again & (age > 0)
    share = np.where(has_past, t_x / np.where(has_past, age, 1.0), 1.0)
    share = np.maximum(share, np.exp(-SILENCE_LIMIT / (x + 0.5)))
    overdue = x * (1 - share) / share
    silence = -(x + 0.5) * np.log(share)
    log_count = np.log1p(x)
    with np.errstate(divide="ignore", over="ignore"):  # a first order at this instant has T = 0
        log_ratio = np.clip(np.log(horizon / age), -LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    gaps_ahead = np.minimum(np.exp(log_ratio) * x / share, GAPS_LIMIT)
    expected = np.minimum((x + 0.5) * np.log1p(np.exp(log_ratio)), LOG_EXPECTED_LIMIT)
    columns = (
        np.where(again, 0.0, 1.0),
        log_count,
        log_count**2,
        1 - share,
        np.minimum(overdue, 1),
        np.log1p(np.minimum(overdue, 3)),
        silence,
        np.minimum(log_ratio, 0),
        np.log1p(gaps_ahead),
        log_count * log_ratio,
        np.exp(-silence) * log_ratio,
        np.minimum(np.log(np.expm1(expected)), 0),
    )
    return np.column_stack(columns)


def train_prior(seed: int = SETTINGS["seed"], **changed: Any) -> ShippedPrior:
    """The prior learned on simulated shops, each shop weighing the same; one seed, one result.

    Parameters
    ----------
    seed : int
        Of the shops and horizons.
    **changed
        Other values for `SETTINGS`, such as fewer shops for a rehearsal.
    """
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

    from training.simulated_shops import CDNOW, NATURE, simulate_shops

    settings = {**SETTINGS, **changed, "seed": seed}
    rng = np.random.default_rng(seed)
    customers = simulate_shops(rng, settings["n_shops"], settings["n_customers"])
    low, high = settings["horizon_days"]
    rows = np.repeat(np.arange(len(customers.shop)), settings["horizons_per_customer"])
    horizon = np.round(np.exp(rng.uniform(np.log(low), np.log(high), len(rows))))
    X = prior_inputs(customers.frequency[rows], customers.recency[rows], customers.T[rows], horizon)
    y = (customers.days_to_next[rows] <= horizon).astype(np.float64)
    weight = 1 / np.bincount(customers.shop)[customers.shop[rows]]
    weight *= len(rows) / weight.sum()
    is_bound = np.arange(X.shape[1]) >= len(CUSTOMER_INPUTS)
    with threadpool_limits(1):
        center, coefficients, intercept = _fit_bounded_logistic(X, y, weight, is_bound, settings["ridge"])
    return ShippedPrior(
        CUSTOMER_INPUTS + HORIZON_INPUTS,
        _rounded(center),
        _rounded(coefficients),
        float(_rounded(np.array([intercept]))[0]),
        {
            "data": "simulated customers only; no order of a real shop was looked at",
            "settings": settings,
            "shops": {name: list(value) if isinstance(value, tuple) else value for name, value in NATURE.items()},
            "first_shop": CDNOW,
            "rows": len(rows),
            "share_with_an_order": round(float(np.average(y, weights=weight)), 4),
        },
    )


def _fit_bounded_logistic(
    X: Array, y: Array, weight: Array, is_bound: NDArray[np.bool_], ridge: float
) -> tuple[Array, Array, float]:
    """Centres, coefficients (those bound are ≥ 0) and intercept of the ridge fit on standardised columns.

    Newton's method; each step is a least-squares problem within the bounds, so it ends at the exact optimum.

    References
    ----------
    Stark, P. B. & Parker, R. L. (1995), "Bounded-variable least squares: an algorithm and applications".
    """
    from scipy.optimize import lsq_linear

    center, spread = np.average(X, axis=0, weights=weight), X.std(axis=0)
    scale = np.where(spread > 1e-9, spread, 1.0)
    design = np.column_stack([np.ones(len(X)), (X - center) / scale])
    least = np.concatenate([[-np.inf], np.where(is_bound, 0.0, -np.inf)])
    penalty = np.concatenate([[1e-6], np.full(X.shape[1], ridge)])
    beta = np.zeros(design.shape[1])
    for _ in range(50):
        p = expit(design @ beta)
        gradient = design.T @ (weight * (p - y)) + penalty * beta
        hessian = (design * (weight * p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        root = np.linalg.cholesky(hessian).T
        target = root @ beta - np.linalg.solve(root.T, gradient)
        step = lsq_linear(root, target, bounds=(least, np.inf), method="bvls", tol=1e-12).x - beta
        beta = beta + step
        if np.abs(step).max() < 1e-9:
            break
    return center, beta[1:] / scale, float(beta[0])


def _rounded(values: Array) -> Array:
    return np.array([float(f"{value:.{DIGITS}g}") for value in values])


def write_prior(path: Path | None = None) -> None:
    """Learn the prior and write its file, by default the one in this folder that ships."""
    target = Path(__file__).with_name(FILE) if path is None else path
    text = json.dumps(train_prior().to_dict(), indent=1, ensure_ascii=False)
    target.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_prior()
