"""What a customer will bring within a year: how often they will buy times what they spend."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from training.bgnbd import BGNBD
from training.gamma_gamma import GammaGamma


def expected_revenue(
    bgnbd: BGNBD,
    gamma_gamma: GammaGamma,
    frequency: ArrayLike,
    recency: ArrayLike,
    T: ArrayLike,
    mean_value: ArrayLike,
    horizon: float = 365.0,
) -> NDArray[np.float64]:
    """Revenue expected within ``horizon`` from now, shape (n,), in the currency of ``mean_value``; not discounted.

    Parameters
    ----------
    bgnbd, gamma_gamma
        Fitted models; both count the same repeat purchases.
    frequency, recency, T : array_like, shape (n,)
        Repeat purchases, time from first to last purchase, time from first purchase to now.
    mean_value : array_like, shape (n,)
        Mean value of the repeat purchases; not looked at, and NaN if you like, where there is none.
    horizon : float
        In the unit of ``T``; the default is a year of days.

    References
    ----------
    Fader, P. S., Hardie, B. G. S. & Lee, K. L. (2005), "RFM and CLV: using iso-value curves for customer base
    analysis".

    Examples
    --------
    1.226 purchases in 39 weeks, each of 25.2 after two of 23 (everybody's mean is 35.2):

    >>> cdnow = BGNBD(r=0.243, alpha=4.414, a=0.793, b=2.426), GammaGamma(p=6.25, q=3.74, v=15.44)
    >>> round(float(expected_revenue(*cdnow, 2, 30.43, 38.86, 23.0, horizon=39.0)[0]), 1)
    30.9
    """
    purchases = bgnbd.expected_purchases(frequency, recency, T, horizon)
    return np.asarray(purchases * gamma_gamma.expected_value(frequency, mean_value))
