"""Will a customer who may leave silently buy again, and how often: the BG/NBD model of counts and last times."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh_tridiagonal
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

Array = NDArray[np.float64]

#: Standard deviation of the logarithm of each parameter under the prior that holds flat likelihoods in place (time
#: measured in mean ages). CDNOW's optimum moves by less than .0002 for it.
LOG_SD = 30.0
#: Parameters (time in mean ages) act as if within e^±15, where gamma functions keep their digits; only data without
#: spread come near.
LOG_BOUND = 15.0
#: Different rows from which the starts are tried on an evenly spaced part; the best then runs on all rows.
SEARCH_ROWS = 20_000
#: Starts for (r, a, b); alpha follows from the mean repeat rate.
STARTS = ((0.25, 0.8, 2.5), (1.0, 0.3, 3.0), (3.0, 1.0, 10.0), (0.5, 0.05, 1.0))
#: Nodes of the integral over the dropout probability, for horizons up to FAR times alpha + T and beyond: relative
#: errors stay below 1e-8 up to a hundred times alpha + T.
NODES, FAR_NODES = 32, 256
FAR = 8.0
#: Rows x nodes per block, so that a million customers need tens of megabytes.
BLOCK = 2_000_000


class CannotFit(ValueError):
    """The data say too little about the model; the message names what is missing and what to do."""


@dataclass(frozen=True)
class BGNBD:
    """Purchases come at random at a rate of one's own until, after one of them, the customer leaves for good.

    Rates are gamma distributed over customers (shape r, rate alpha), the probability of leaving after a repeat purchase
    beta distributed (a, b), both independent. A customer is three numbers: the count of repeat purchases ``frequency``
    (x), the time from first to last purchase ``recency`` (t_x) and from first purchase to now ``T``.

    A customer who never bought again has had no occasion to leave, so the model holds all of them for alive: rank by
    `probability`, which falls with their age, not by `probability_alive`.

    References
    ----------
    Fader, P. S., Hardie, B. G. S. & Lee, K. L. (2005), "“Counting your customers” the easy way: an alternative to the
    Pareto/NBD model", Marketing Science 24(2).

    Examples
    --------
    CDNOW's customers in weeks: two repeat purchases, the last after 30.43 of 38.86 weeks, give 1.226 more in 39 weeks.

    >>> cdnow = BGNBD(r=0.243, alpha=4.414, a=0.793, b=2.426)
    >>> round(float(cdnow.expected_purchases(2, 30.43, 38.86, 39.0)[0]), 3)
    1.226
    """

    r: float
    #: In the time unit of the data.
    alpha: float
    a: float
    b: float
    #: At the parameters, without the prior; NaN where they were set by hand.
    log_likelihood: float = float("nan")
    #: Sum of the weights.
    n_customers: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters outside the model."""
        for name in ("r", "alpha", "a", "b"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value}; each BG/NBD parameter is a positive, finite number")

    @classmethod
    def fit(cls, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, *, weight: ArrayLike | None = None) -> BGNBD:
        """The most probable parameters under a nearly flat prior; the same data give the same numbers.

        Equal customers are counted once; time is measured in mean ages while fitting, so days and weeks give the same
        model.

        Parameters
        ----------
        frequency : array_like, shape (n,)
            Repeat purchases x, 0 or more; count days with a purchase less one.
        recency : array_like, shape (n,)
            Time from first to last purchase, 0 to ``T``; not looked at where x is 0.
        T : array_like, shape (n,)
            Time from first purchase to now, in the same unit.
        weight : array_like, shape (n,), optional
            How many customers each row stands for.

        Raises
        ------
        CannotFit
            Where there is no customer, no repeat purchase, or no time has passed.

        References
        ----------
        Fader, Hardie & Lee (2005), equation 6.
        """
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

        x, t_x, age = checked_customers(frequency, recency, T)
        weights = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
        if weights.shape != x.shape or not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError(
                f"weights have shape {weights.shape} for {len(x)} customers; pass one finite number ≥ 0 for each"
            )
        total = float(weights.sum())
        repeats = float(weights @ x)
        if total == 0:
            raise CannotFit("there are 0 customers; fit once someone has ordered")
        if repeats == 0:
            raise CannotFit(
                f"none of {total:g} customers bought again, so nothing tells rates from leaving; wait for repeat "
                "purchases, or score with ShippedPrior"
            )
        unit = float(weights @ age) / total
        if unit == 0:
            raise CannotFit(f"all {total:g} customers have T = 0; fit when time has passed since their first purchases")
        with threadpool_limits(1):  # sums are all BLAS has to do here, and its threads wait longer than they add
            log_parameters, cost = _search(x, t_x / unit, age / unit, weights)
        r, alpha, a, b = np.exp(np.clip(log_parameters, -LOG_BOUND, LOG_BOUND))
        # A density of times in one unit is not that in another: each repeat purchase brings one 1/unit.
        log_likelihood = -cost - repeats * np.log(unit)
        return cls(float(r), float(alpha * unit), float(a), float(b), float(log_likelihood), round(total))

    def log_survival(self, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, horizons: ArrayLike) -> Array:
        """Log of the probability of no purchase within each horizon from now, shape (n, k).

        Parameters
        ----------
        frequency, recency, T : array_like, shape (n,)
            As in `fit`.
        horizons : array_like, shape (k,)
            Ascending, in the unit of ``T``, 0 or more.
        """
        x, t_x, age = checked_customers(frequency, recency, T)
        ahead = np.atleast_1d(np.asarray(horizons, dtype=np.float64))
        if ahead.ndim != 1 or not np.isfinite(ahead).all() or (ahead < 0).any() or (np.diff(ahead) < 0).any():
            raise ValueError(f"horizons are {ahead.tolist()}; pass finite times ≥ 0 in ascending order")
        gone = self._log_odds_gone(x, t_x, age)[:, None]
        no_purchase = -(self.r + x)[:, None] * np.log1p(ahead / (self.alpha + age)[:, None])
        return np.asarray(np.logaddexp(-np.logaddexp(0, -gone), -np.logaddexp(0, gone) + no_purchase))

    def probability(self, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, horizon: float) -> Array:
        """Probability of at least one purchase within ``horizon`` from now, shape (n,).

        It is P(alive) (1 − ((alpha + T) / (alpha + T + horizon))^(r + x)).
        """
        x, t_x, age = checked_customers(frequency, recency, T)
        no_purchase = -(self.r + x) * np.log1p(_checked_horizon(horizon) / (self.alpha + age))
        return np.asarray(self.probability_alive(x, t_x, age) * -np.expm1(no_purchase))

    def expected_purchases(self, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike, horizon: float) -> Array:
        """Expected number of purchases within ``horizon`` from now, shape (n,); a count, not a probability.

        The paper's equation 10 divides by a − 1 and takes a hypergeometric function that overflows for frequent buyers.
        Here the same expectation is P(alive) times an integral over the dropout probability p, whose law given that the
        customer is alive is Beta(a, b + x), of (1 − (1 + p horizon / (alpha + T))^−(r + x)) / p: smooth, positive, and
        exact to eight digits by Gauss's rule for that beta law.

        References
        ----------
        Fader, Hardie & Lee (2005), equation 10; Golub, G. H. & Welsch, J. H. (1969), "Calculation of Gauss quadrature
        rules".
        """
        x, t_x, age = checked_customers(frequency, recency, T)
        ahead = _checked_horizon(horizon) / (self.alpha + age)
        while_alive = np.zeros_like(x)
        order = np.lexsort((ahead > FAR, x))
        changes = (np.diff(x[order]) != 0) | np.diff(ahead[order] > FAR)
        for alike in np.split(order, np.flatnonzero(changes) + 1) if len(x) else ():
            count, nodes = float(x[alike[0]]), FAR_NODES if ahead[alike[0]] > FAR else NODES
            p, share = _beta_nodes(self.a, self.b + count, nodes)
            for part in np.array_split(alike, 1 + len(alike) * nodes // BLOCK):
                none = np.log1p(ahead[part, None] * p)
                none *= -(self.r + count)
                while_alive[part] = np.einsum("ij,j->i", np.expm1(none, out=none), -share / p)
        return np.asarray(self.probability_alive(x, t_x, age) * while_alive)

    def probability_alive(self, frequency: ArrayLike, recency: ArrayLike, T: ArrayLike) -> Array:
        """Probability that the customer has not left, shape (n,); 1 where nothing was bought again.

        References
        ----------
        Fader, P. S. & Hardie, B. G. S. (2008), "Computing P(alive) using the BG/NBD model".
        """
        x, t_x, age = checked_customers(frequency, recency, T)
        return np.asarray(np.exp(-np.logaddexp(0, self._log_odds_gone(x, t_x, age))))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> BGNBD:
        """The model that `to_dict` wrote."""
        return cls(**content)

    def _log_odds_gone(self, x: Array, t_x: Array, age: Array) -> Array:
        """Log-odds of having left, shape (n,); −∞ where x is 0."""
        with np.errstate(divide="ignore"):
            prior = np.where(x > 0, np.log(self.a) - np.log(np.maximum(self.b + x - 1, 1e-300)), -np.inf)
        return np.asarray(prior + (self.r + x) * np.log1p((age - t_x) / (self.alpha + t_x)))


@dataclass(frozen=True)
class _Rows:
    """Different customers with their weights, and what all of them together say of each count and each age.

    Gamma functions are then taken once per count and logarithms once per time; only repeat buyers need a row of theirs.
    """

    counts: Array
    recencies: Array
    ages: Array
    #: Customers per count, customers per age, repeat purchases per age.
    count_weight: Array
    age_weight: Array
    age_repeats: Array
    #: Repeat buyers: where count, recency and age stand in the values above, and the weight.
    at_count: NDArray[np.int64]
    at_recency: NDArray[np.int64]
    at_age: NDArray[np.int64]
    weight: Array

    @classmethod
    def of(cls, x: Array, t_x: Array, age: Array, weight: Array) -> _Rows:
        counts, at_count = np.unique(x, return_inverse=True)
        recencies, at_recency = np.unique(t_x, return_inverse=True)
        ages, at_age = np.unique(age, return_inverse=True)
        again = np.flatnonzero(x > 0)
        # Three places of at most a few million each stay below 2^63 together.
        code = (at_count[again] * len(recencies) + at_recency[again]) * len(ages) + at_age[again]
        _, first, group = np.unique(code, return_index=True, return_inverse=True)
        first = again[first]
        return cls(
            counts, recencies, ages,
            _sums(at_count, weight), _sums(at_age, weight),
            _sums(at_age, weight * x),
            at_count[first], at_recency[first], at_age[first], _sums(group, weight[again]),
        )  # fmt: skip

    def cost(self, log_parameters: Array) -> tuple[float, Array]:
        """Negative log-likelihood and its gradient by the logarithms of (r, alpha, a, b)."""
        r, alpha, a, b = np.exp(np.clip(log_parameters, -LOG_BOUND, LOG_BOUND))
        x, n_x = self.counts, self.count_weight
        again = x > 0
        occasions = np.where(again, b + x - 1, 1.0)
        log_age, log_recency = np.log(alpha + self.ages), np.log(alpha + self.recencies)
        exponent = (r + x)[self.at_count]
        log_ratio = log_age[self.at_age] - log_recency[self.at_recency]
        gone = np.where(again, np.log(a) - np.log(occasions), 0.0)[self.at_count] + exponent * log_ratio  # log-odds
        small = np.exp(-np.abs(gone))
        left = self.weight * np.where(gone > 0, 1.0, small) / (1 + small)

        value = n_x @ (gammaln(r + x) - gammaln(r) + r * np.log(alpha))
        value += n_x @ (gammaln(a + b) - gammaln(a + b + x) + gammaln(b + x) - gammaln(b))
        value -= (r * self.age_weight + self.age_repeats) @ log_age
        value += self.weight @ (np.maximum(gone, 0) + np.log1p(small))

        left_x = np.bincount(self.at_count, weights=left, minlength=len(x))
        per_time = 1 / (alpha + self.recencies)[self.at_recency] - 1 / (alpha + self.ages)[self.at_age]
        d_r = n_x @ (digamma(r + x) - digamma(r) + np.log(alpha)) - self.age_weight @ log_age + left @ log_ratio
        d_alpha = n_x.sum() * r / alpha - (r * self.age_weight + self.age_repeats) @ (1 / (alpha + self.ages))
        d_alpha -= left @ (exponent * per_time)
        both = digamma(a + b) - digamma(a + b + x)
        d_a = n_x @ both + left.sum() / a
        d_b = n_x @ (both + digamma(b + x) - digamma(b)) - left_x @ (again / occasions)
        return -float(value), -np.array([d_r * r, d_alpha * alpha, d_a * a, d_b * b])

    def penalised(self, log_parameters: Array) -> tuple[float, Array]:
        """Cost per customer with the prior's part."""
        n = self.count_weight.sum()
        value, gradient = self.cost(log_parameters)
        value += 0.5 * float(log_parameters @ log_parameters) / LOG_SD**2
        return value / n, (gradient + log_parameters / LOG_SD**2) / n


def _search(x: Array, t_x: Array, age: Array, weight: Array) -> tuple[Array, float]:
    """Logarithms of the best parameters, and their negative log-likelihood; time is in mean ages."""
    rate = float(weight @ x / weight.sum())
    step = 1 + len(x) // SEARCH_ROWS
    rows = _Rows.of(x[::step], t_x[::step], age[::step], weight[::step])
    starts = [np.log([r, r / rate, a, b]) for r, a, b in STARTS]
    best, value = min((_descend(rows, start, np.eye(4)) for start in starts), key=lambda end: end[1])
    if step > 1:
        basis = _rounding(rows, best)
        rows = _Rows.of(x, t_x, age, weight)
        # Along the part's curvature the valley is round, so all rows are visited about eight times, not thirty.
        best, value = _descend(rows, best, basis)
    if not np.isfinite(value):
        raise CannotFit(
            "the likelihood is not finite at any start; check that times share one unit and counts are days"
        )
    return best, rows.cost(best)[0]


def _descend(rows: _Rows, start: Array, basis: Array) -> tuple[Array, float]:
    """Where the penalised cost is least, and its value, searched along the columns of ``basis``."""

    def along(step: Array) -> tuple[float, Array]:
        value, gradient = rows.penalised(start + basis @ step)
        return value, basis.T @ gradient

    end = minimize(
        along, np.zeros(4), jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-7}
    )
    return start + basis @ end.x, float(end.fun) if np.isfinite(end.fun) else np.inf


def _rounding(rows: _Rows, at: Array) -> Array:
    """Directions and lengths, shape (4, 4), along which the cost at ``at`` curves by 1."""
    step = 1e-4
    ahead = [rows.penalised(at + step * e)[1] - rows.penalised(at - step * e)[1] for e in np.eye(4)]
    curvature = np.array(ahead) / (2 * step)
    values, directions = np.linalg.eigh((curvature + curvature.T) / 2)
    return np.asarray(directions / np.sqrt(np.maximum(values, 1e-6)))


@lru_cache(maxsize=4096)  # a count comes again and again
def _beta_nodes(a: float, b: float, nodes: int) -> tuple[Array, Array]:
    """Places in (0, 1) and shares summing to 1 with which a sum is the expectation under Beta(a, b).

    The recurrence of the Jacobi polynomials makes a symmetric tridiagonal matrix; its eigenvalues are the nodes, the
    squared first parts of its eigenvectors the shares. Nothing overflows, however large b is.
    """
    k = np.arange(1, nodes, dtype=np.float64)
    u, v = b - 1, a - 1  # exponents of 1 − z and 1 + z on [−1, 1], z = 2p − 1
    s = 2 * k + u + v
    diagonal = np.concatenate([[(v - u) / (u + v + 2)], (v - u) * (v + u) / (s * (s + 2))])
    square = 4 * k * (k + u) * (k + v) * (k + u + v) / (s**2 * (s + 1) * np.where(s == 1, 1.0, s - 1))
    square[0] = 4 * (1 + u) * (1 + v) / ((2 + u + v) ** 2 * (3 + u + v))
    z, vectors = eigh_tridiagonal(diagonal, np.sqrt(square))
    return np.maximum((1 + z) / 2, 1e-300), vectors[0] ** 2


def checked_customers(frequency: ArrayLike, recency: ArrayLike, T: ArrayLike) -> tuple[Array, Array, Array]:
    """Checked counts, recencies and ages, shape (n,); recency is 0 where nothing was bought again."""
    x, t_x, age = (np.atleast_1d(np.asarray(each, dtype=np.float64)) for each in (frequency, recency, T))
    if x.ndim != 1 or not x.shape == t_x.shape == age.shape:
        raise ValueError(
            f"frequency, recency and T have shapes {x.shape}, {t_x.shape} and {age.shape}; pass three vectors of one "
            "length"
        )
    t_x = np.where(x == 0, 0.0, t_x)
    wrong = ~(np.isfinite(x) & np.isfinite(t_x) & np.isfinite(age) & (x >= 0) & (t_x >= 0) & (t_x <= age))
    # The beta law counts occasions to leave, so half a purchase has no meaning in it.
    wrong |= x != np.floor(x)
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"customer {i} has frequency {x[i]:g}, recency {t_x[i]:g}, T {age[i]:g}; a frequency is a whole number ≥ 0 "
            "and 0 ≤ recency ≤ T in one unit"
        )
    return x, t_x, age


def _sums(group: NDArray[np.int64], values: Array) -> Array:
    return np.asarray(np.bincount(group, weights=values), dtype=np.float64)


def _checked_horizon(horizon: float) -> float:
    if not (np.isfinite(horizon) and horizon >= 0):
        raise ValueError(f"the horizon is {horizon}; pass a finite time ≥ 0 in the unit of T")
    return float(horizon)
