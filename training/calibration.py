"""From raw log-odds to honest probabilities: Platt's line with a slope near 1 and the level of the newest window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]

#: Prior standard deviations: the slope stays near 1 unless the data insist; the level is nearly free.
SLOPE_SD = 0.2
INTERCEPT_SD = 1.0


@dataclass(frozen=True)
class Calibration:
    """Probability = logistic(intercept + slope x log-odds)."""

    slope: float = 1.0
    intercept: float = 0.0

    def apply(self, log_odds: Array) -> Array:
        """Probabilities of raw log-odds, same shape."""
        return np.asarray(expit(self.intercept + self.slope * log_odds), dtype=np.float64)


def fit_platt(
    log_odds: Array,
    y: NDArray[np.generic],
    *,
    slope: float | None = None,
    intercept_sd: float | None = None,
    weight: Array | None = None,
) -> Calibration:
    """Most probable line given the outcomes, a normal prior around slope 1 and one around intercept 0.

    Level drift, not a wrong slope, is what breaks a purchase model between two months; so the slope is held by its
    prior while the intercept follows the data. The priors also keep a window with one class from running to ±∞.

    Parameters
    ----------
    log_odds : ndarray, shape (n,)
        Raw scores in nats.
    y : ndarray, shape (n,)
        Outcomes, 0 or 1.
    slope : float, optional
        Keep this slope and fit the intercept alone.
    intercept_sd : float, optional
        Prior standard deviation of the intercept; default ``INTERCEPT_SD``.
    weight : ndarray, shape (n,), optional
        Of each row's log-likelihood; censoring weights of about 1.

    References
    ----------
    Platt, J. (1999), "Probabilistic outputs for support vector machines"; Cox, D. R. (1958), "Two further
    applications of a model for binary regression".

    Examples
    --------
    >>> fit_platt(np.zeros(1000), np.repeat([0.0, 1.0], 500)).intercept
    0.0
    """
    z: Array = np.asarray(log_odds, dtype=np.float64)
    outcomes: Array = np.asarray(y, dtype=np.float64)
    if z.shape != outcomes.shape or z.ndim != 1:
        raise ValueError(f"log-odds have shape {z.shape}, outcomes {outcomes.shape}; pass two vectors of one length")
    w: Array = np.ones_like(z) if weight is None else np.asarray(weight, dtype=np.float64)
    design = np.column_stack([np.ones_like(z), z])
    mean = np.array([0.0, 1.0 if slope is None else slope])
    precision = np.array([(intercept_sd or INTERCEPT_SD) ** -2, SLOPE_SD**-2])
    free = np.array([True, slope is None])
    beta = mean.copy()

    def objective(b: Array) -> float:
        eta = design @ b
        return float((w * (np.logaddexp(0, eta) - outcomes * eta)).sum() + 0.5 * (precision * (b - mean) ** 2).sum())

    value = objective(beta)
    for _ in range(50):
        p = expit(design @ beta)
        gradient = design.T @ (w * (p - outcomes)) + precision * (beta - mean)
        hessian = (design * (w * p * (1 - p))[:, None]).T @ design + np.diag(precision)
        step = np.zeros(2)
        step[free] = np.linalg.solve(hessian[np.ix_(free, free)], gradient[free])
        scale = 1.0
        while scale > 1e-6 and objective(beta - scale * step) > value:  # Newton overshoots far from the optimum
            scale /= 2
        beta = beta - scale * step
        value = objective(beta)
        if np.abs(step).max() < 1e-10:
            break
    return Calibration(slope=float(beta[1]), intercept=float(beta[0]))
