"""Rates by segment, shrunk to what all segments say of an arm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from training.policies.statistics import FloatArray
from training.policies.waves import fit_waves

#: Bounds of the concentration of segments around the common effect of an arm.
LEAST_CONCENTRATION, MOST_CONCENTRATION = 20.0, 2000.0


def segment_posterior(
    exposure: FloatArray,
    answered: FloatArray,
    *,
    prior: Callable[[FloatArray], tuple[FloatArray, FloatArray]],
    temper: float,
    wave_concentration: float,
) -> tuple[FloatArray, FloatArray]:
    """Parameters (alpha, beta) of every (segment, arm)'s posterior, shape (n_segments, n_arms) each.

    ``theta_gk ~ Beta(kappa mu_gk, kappa (1 - mu_gk))``. The mean ``mu_gk`` is the arm's posterior mean in the *other*
    segments, so that no answer counts twice, at the segment's own level (an eager segment is eager for every arm;
    that says nothing about arms). ``kappa`` is learned (``segment_concentration``), and combined with how sure the
    other segments are of the arm: ``1 / kappa + 1 / (alpha_k + beta_k)``. Evidence is compared within (segment,
    wave) and tempered.

    Parameters
    ----------
    exposure, answered : ndarray of float64, shape (n_segments, n_arms, n_waves)
        Effective trials and successes.
    prior : function from mean rate, shape (...), to (alpha, beta) of an arm before any trial
    temper, wave_concentration : float
        As of ``BetaLearner``.

    References
    ----------
    Gelman et al. (2013), "Bayesian Data Analysis", chapter 5 (hierarchical Beta-binomial).
    """
    n_segments, n_arms, n_waves = exposure.shape
    strata = fit_waves(
        np.moveaxis(exposure, 0, 1).reshape(n_arms, -1),
        np.moveaxis(answered, 0, 1).reshape(n_arms, -1),
        wave_concentration,
    )
    level = strata.level.reshape(n_segments, 1, n_waves)
    weight = temper * strata.information
    by_cell = answered.sum(axis=-1)
    at_mean_level = (exposure * level).sum(axis=-1)
    prior_alpha, prior_beta = prior(strata.mean_rate)
    successes, failures = by_cell.sum(axis=0), np.maximum(strata.effective_trials - by_cell.sum(axis=0), 0.0)
    pooled_rate = (prior_alpha + weight * successes) / (prior_alpha + prior_beta + weight * (successes + failures))
    alpha = prior_alpha + weight * (successes - by_cell)
    beta = prior_beta + weight * np.maximum(strata.effective_trials - at_mean_level - (successes - by_cell), 0.0)
    sureness = alpha + beta
    mean = alpha / sureness

    own = fit_waves(exposure, answered, wave_concentration)
    kappa = segment_concentration(
        own.information * own.effective_trials,
        own.information * by_cell,
        _at_own_level(np.broadcast_to(pooled_rate, mean.shape), own.effective_trials, by_cell, wave_concentration),
    )
    mean = _at_own_level(mean, own.effective_trials, by_cell, wave_concentration)
    concentration = np.maximum(1.0 / (1.0 / kappa + 1.0 / sureness), 0.5 / np.minimum(mean, 1.0 - mean))
    evidence = temper * own.information
    return (
        concentration * mean + evidence * by_cell,
        concentration * (1.0 - mean) + evidence * np.maximum(own.effective_trials - by_cell, 0.0),
    )


def _at_own_level(mean: FloatArray, trials: FloatArray, successes: FloatArray, concentration: float) -> FloatArray:
    """``mean`` times how eager the segment is, itself shrunk to one by ``concentration`` successes."""
    expected = (trials * mean).sum(axis=-1, keepdims=True)
    eager = (successes.sum(axis=-1, keepdims=True) + concentration) / (expected + concentration)
    return np.asarray(np.clip(mean * eager, 1e-6, 1.0 - 1e-6), dtype=np.float64)


def segment_concentration(trials: FloatArray, successes: FloatArray, expected_rate: FloatArray) -> float:
    """Concentration kappa of ``theta_gk ~ Beta(kappa mu_gk, kappa (1 - mu_gk))`` by moments, within [20, 2000].

    Pearson's statistic ``sum (s - n mu)**2 / (n mu (1 - mu))`` has per degree of freedom the mean ``1 + (n - 1) /
    (kappa + 1)``. Segments that agree give the upper bound.

    Parameters
    ----------
    trials, successes, expected_rate : ndarray of float64, shape (n_segments, n_arms)

    References
    ----------
    Williams (1982), "Extra-binomial variation in logistic linear models". Kleinman (1973), "Proportions with
    extraneous variance".
    """
    seen = trials > 1.0
    n, mu = trials[seen], expected_rate[seen]
    freedom = (np.count_nonzero(seen.any(axis=1)) - 1) * (trials.shape[1] - 1)
    if freedom < 1 or len(n) == 0:
        return MOST_CONCENTRATION
    pearson = ((successes[seen] - n * mu) ** 2 / (n * mu * (1 - mu))).sum()
    correlation = (pearson / freedom - 1.0) / np.mean(n - 1.0)
    if correlation <= 1.0 / (MOST_CONCENTRATION + 1.0):
        return MOST_CONCENTRATION
    return float(np.clip(1.0 / correlation - 1.0, LEAST_CONCENTRATION, MOST_CONCENTRATION))
