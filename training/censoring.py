"""Outcomes that can be seen only of contacts that got mail: weights with which those who were seen stand for all.

Who gets few mails in the window tells nothing about whether they would have answered, so such a row has no outcome: it
is censored. The rest are not like everybody (mail goes rather to those who answered before), so each of them weighs as
many as it stands for: the inverse of the chance to be seen of contacts with the same past exposure and engagement.
Mailing less then takes rows away, but neither makes churners of those who stay nor erases them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Lower edges of the bands: mails of the last 90 days, and days since a person last opened or clicked.
SEND_BANDS = (1.0, 5.0, 10.0, 20.0)
ENGAGED_BANDS = (30.0, 90.0)
EXPOSURE_COLUMNS = ("sends_90d", "days_since_open", "days_since_click")

#: A stratum's share of seen rows is drawn to that of all by this many rows, and no row weighs more than this.
PRIOR_ROWS = 20.0
MOST_WEIGHT = 10.0


def exposure_strata(X: Array, names: tuple[str, ...]) -> Ints:
    """Number of the stratum of each vector: how much mail it had got, how lately a person had answered; shape (n,).

    Raises
    ------
    ValueError
        If the vectors lack a column that it takes.
    """
    missing = [name for name in EXPOSURE_COLUMNS if name not in names]
    if missing:
        raise ValueError(
            f"the view set has no column {missing[0]!r}, by which outcomes seen only of mailed contacts are weighted; "
            "train on a view set that has it, such as the default one"
        )
    sends, opened, clicked = (X[:, names.index(name)] for name in EXPOSURE_COLUMNS)
    engaged = np.fmin(np.where(np.isnan(opened), np.inf, opened), clicked)  # inf: never
    return np.asarray(
        np.searchsorted(SEND_BANDS, sends, side="right") * (len(ENGAGED_BANDS) + 1)
        + np.searchsorted(ENGAGED_BANDS, engaged, side="left"),
        dtype=np.int64,
    )


def censoring_weights(is_seen: NDArray[np.bool_], as_of: Ints, stratum: Ints) -> Array:
    """Weight of each row: 0 where its outcome was not seen, else the inverse chance of being seen; shape (n,).

    Stabilised: the chance of a row like it over the chance of any row of the same instant, so that weights are about 1;
    a stratum with few rows is drawn to that chance, and no weight exceeds ``MOST_WEIGHT``.

    Parameters
    ----------
    is_seen : ndarray of bool, shape (n,)
        `features.labels.observed`; it must depend on the mails alone, never on the outcome.
    as_of : ndarray of int64, shape (n,)
        Instants; mailing differs from one to the next, so each has chances of its own.
    stratum : ndarray of int64, shape (n,)
        `exposure_strata`.

    Examples
    --------
    Of 80 rows with much mail all were seen, of 80 with little a half: three in four. Drawn to that by 20 rows, the
    chances are 95/100 and 55/100, the weights 0.75/0.95 and 0.75/0.55.

    >>> seen, stratum = np.r_[np.ones(120, bool), np.zeros(40, bool)], np.repeat([1, 0], 80)
    >>> censoring_weights(seen, np.zeros(160, np.int64), stratum)[[0, 80, 159]].round(3).tolist()
    [0.789, 1.364, 0.0]

    References
    ----------
    Robins & Rotnitzky (1992), "Recovery of Information and Adjustment for Dependent Censoring Using Surrogate Markers",
    in AIDS Epidemiology: Methodological Issues.
    """
    moment = np.unique(as_of, return_inverse=True)[1]
    cell = np.unique(np.stack([moment, stratum]), axis=1, return_inverse=True)[1].ravel()
    chance = (np.bincount(moment, weights=is_seen) / np.bincount(moment))[moment]
    rows = np.bincount(cell)
    like_it = (np.bincount(cell, weights=is_seen)[cell] + PRIOR_ROWS * chance) / (rows[cell] + PRIOR_ROWS)
    return np.where(is_seen, np.minimum(chance / np.where(is_seen, like_it, 1.0), MOST_WEIGHT), 0.0)
