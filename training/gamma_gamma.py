"""What a customer spends per purchase: the Gamma-Gamma model, which leans on everybody where one's orders are few."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from training.bgnbd import CannotFit

Array = NDArray[np.float64]

#: Standard deviation of log p, log (q − 1) and log v (money in mean values) under the prior that holds flat likelihoods
#: in place; CDNOW's optimum moves by less than .001 for it.
LOG_SD = 30.0
#: The parameters act as if within e^±12; only data without spread come near.
LOG_BOUND = 12.0
#: Starts for (p, q); v follows from the mean value.
STARTS = ((6.0, 4.0), (1.5, 2.0), (20.0, 10.0))


@dataclass(frozen=True)
class GammaGamma:
    """Each customer's order values are gamma distributed (shape p), their scale inverse gamma over customers (q, v).

    A customer's mean order value is then drawn towards the mean of all, the more the fewer orders there are. Values are
    taken as independent of how often a customer buys; look at their correlation before trusting the product of both.
    q is kept above 1, so that the mean over all customers exists.

    References
    ----------
    Fader, P. S. & Hardie, B. G. S. (2013), "The Gamma-Gamma model of monetary value"; Fader, P. S., Hardie, B. G. S. &
    Lee, K. L. (2005), "RFM and CLV: using iso-value curves for customer base analysis".

    Examples
    --------
    At CDNOW's parameters a customer without repeat orders is worth 35.2 an order; one of 10 in mean over 5 is drawn
    from 10 to 12.

    >>> cdnow = GammaGamma(p=6.25, q=3.74, v=15.44)
    >>> [round(float(value), 1) for value in cdnow.expected_value([0, 5], [0.0, 10.0])]
    [35.2, 12.0]
    """

    p: float
    q: float
    #: In the currency of the data.
    v: float
    #: At the parameters, without the prior; NaN where they were set by hand.
    log_likelihood: float = float("nan")
    #: Sum of the weights of the customers it was fitted on.
    n_customers: int = 0

    def __post_init__(self) -> None:
        """Refuse parameters without a mean."""
        for name, least in (("p", 0.0), ("q", 1.0), ("v", 0.0)):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > least):
                raise ValueError(f"{name} is {value}; pass a finite number above {least:g}")

    @classmethod
    def fit(cls, frequency: ArrayLike, mean_value: ArrayLike, *, weight: ArrayLike | None = None) -> GammaGamma:
        """The most probable parameters under a nearly flat prior; the same data give the same numbers.

        Parameters
        ----------
        frequency : array_like, shape (n,)
            Orders that each mean is taken over; customers with 0 are left out. In the paper, repeat purchase days.
        mean_value : array_like, shape (n,)
            Mean value of those orders, above 0, in one currency; leave out or set right what nets to nothing.
        weight : array_like, shape (n,), optional
            How many customers each row stands for.

        Raises
        ------
        CannotFit
            Where nobody has an order to average, or all averages are the same.

        References
        ----------
        Fader & Hardie (2013), equation 1a.
        """
        from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

        x, mean = _spenders(frequency, mean_value)
        weights = np.ones(len(x)) if weight is None else np.asarray(weight, dtype=np.float64)
        if weights.shape != x.shape or not np.isfinite(weights).all() or (weights < 0).any():
            raise ValueError(
                f"weights have shape {weights.shape} for {len(x)} customers; pass one finite number ≥ 0 for each"
            )
        used = (x > 0) & (weights > 0)
        x, mean, weights = x[used], mean[used], weights[used]
        total = float(weights.sum())
        if total == 0:
            raise CannotFit(
                "0 customers have an order to average; fit once someone has, or use the mean value of orders"
            )
        if mean.max() <= mean.min() * (1 + 1e-9):
            raise CannotFit(
                f"the mean value of all {total:g} customers is {mean[0]:g}; without spread there is nothing to learn, "
                "take it as everybody's"
            )
        unit = float(weights @ mean) / total
        likelihood = _Likelihood(x, mean / unit, weights)
        with threadpool_limits(1):  # BLAS has little to do here, and its threads wait longer than they add
            ends = [_descend(likelihood, np.log([p, q - 1, (q - 1) / p])) for p, q in STARTS]
        best, value = min(ends, key=lambda end: end[1])
        if not np.isfinite(value):
            raise CannotFit("the likelihood is not finite at any start; check that values share one currency")
        p, over, v = np.exp(np.clip(best, -LOG_BOUND, LOG_BOUND))
        log_likelihood = -likelihood.cost(best)[0] - total * np.log(unit)  # densities of money in another unit
        return cls(float(p), float(1 + over), float(v * unit), float(log_likelihood), round(total))

    def expected_value(self, frequency: ArrayLike, mean_value: ArrayLike) -> Array:
        """Expected value of one more order, shape (n,), in the currency of the data.

        It is p (v + x m) / (p x + q − 1), a weighted mean of one's own mean m and everybody's p v / (q − 1).

        Parameters
        ----------
        frequency, mean_value : array_like, shape (n,)
            As in `fit`; where ``frequency`` is 0 the mean is not looked at and may be NaN.

        References
        ----------
        Fader & Hardie (2013), equation 5.
        """
        x, mean = _spenders(frequency, mean_value)
        return np.asarray(self.p * (self.v + x * mean) / (self.p * x + self.q - 1))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> GammaGamma:
        """The model that `to_dict` wrote."""
        return cls(**content)


@dataclass(frozen=True)
class _Likelihood:
    x: Array
    mean: Array
    weight: Array

    def cost(self, log_parameters: Array) -> tuple[float, Array]:
        """Negative log-likelihood and its gradient by (log p, log (q − 1), log v)."""
        p, over, v = np.exp(np.clip(log_parameters, -LOG_BOUND, LOG_BOUND))
        q = 1 + over
        px, spent = p * self.x, self.x * self.mean
        log_all, log_spent = np.log(v + spent), np.log(spent)
        each = gammaln(px + q) - gammaln(px) - gammaln(q) + q * np.log(v) + px * log_spent - np.log(self.mean)
        each -= (px + q) * log_all
        both = digamma(px + q)
        d_p = (self.weight * self.x * (both - digamma(px) + log_spent - log_all)).sum()
        d_q = (self.weight * (both - digamma(q) + np.log(v) - log_all)).sum()
        d_v = (self.weight * (q / v - (px + q) / (v + spent))).sum()
        return -float((self.weight * each).sum()), -np.array([d_p * p, d_q * over, d_v * v])


def _descend(likelihood: _Likelihood, start: Array) -> tuple[Array, float]:
    n = likelihood.weight.sum()

    def penalised(log_parameters: Array) -> tuple[float, Array]:
        value, gradient = likelihood.cost(log_parameters)
        prior = 0.5 * float((log_parameters**2).sum()) / LOG_SD**2
        return (value + prior) / n, (gradient + log_parameters / LOG_SD**2) / n

    end = minimize(penalised, start, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-7})
    return np.asarray(end.x, dtype=np.float64), float(end.fun) if np.isfinite(end.fun) else np.inf


def _spenders(frequency: ArrayLike, mean_value: ArrayLike) -> tuple[Array, Array]:
    """Checked counts and means, shape (n,); the mean is 1 where there is no order, and counts for nothing there."""
    x, mean = (np.atleast_1d(np.asarray(each, dtype=np.float64)) for each in (frequency, mean_value))
    if x.ndim != 1 or x.shape != mean.shape:
        raise ValueError(f"frequency and mean_value have shapes {x.shape} and {mean.shape}; pass two of one length")
    mean = np.where(x == 0, 1.0, mean)
    wrong = ~(np.isfinite(x) & np.isfinite(mean) & (x >= 0) & (mean > 0))
    if wrong.any():
        i = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"customer {i} has {x[i]:g} orders of {mean[i]:g} in mean; frequencies are ≥ 0, means above 0: "
            "leave out orders that net to nothing"
        )
    return x, mean
