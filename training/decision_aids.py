"""What to do next with an experiment: the posterior's chances, the stop rule, and winners without their luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from training.batches import Batches, InverseSums
from training.inference import Plan, arm_mean
from training.policies.statistics import FloatArray
from training.policies.thompson import BetaBernoulliThompson

#: Stop when what another arm could still add is below this share of the leader's rate, with 95 % probability.
STOP_BELOW = 0.01


@dataclass(frozen=True)
class DecisionAid:
    """What the posterior says: help for a decision, without any guarantee over repeated looks."""

    arms: tuple[str, ...]
    probability_best: tuple[float, ...]
    #: Reward a unit that one expects to lose by settling on the arm.
    expected_loss: tuple[float, ...]
    #: Most probable best arm.
    leader: str
    #: With 95 % probability another arm adds no more than this share of the leader's mean; None without a base.
    value_remaining: float | None
    may_stop: bool
    label: str = "decision aid from the posterior; not error-controlled"


def posterior_draws(batches: Batches, n_draws: int = 10_000, seed: int = 0) -> FloatArray:
    """Draws of the arms' mean rewards, compared within batches only, shape (n_draws, n_arms).

    For a reward of 0 or 1 the Beta posterior of Thompson sampling without tempering; else a normal one with a common
    variance and an effect a batch taken out. Where propensities differ within batches an arm's contacts are not the
    batch's, and sums mistake an arm shown to eager contacts for a good one: there a normal one around the arms' means
    by inverse propensities, over the batches that all arms were open to. The arms are drawn apart, though what a
    batch's contacts have in common moves them together: that makes the draws less sure, never surer.

    Parameters
    ----------
    batches : Batches
        Without leading axes.

    Raises
    ------
    ValueError
        If propensities differ within batches and an arm has too few successes for a normal posterior.
    """
    rng = np.random.default_rng(seed)
    if batches.inverse is not None:
        common = _open_to_all(batches)
        # A plan only says where an interval is narrowest; neither estimate nor error depends on it.
        means = [arm_mean(common, arm, Plan(1, 1.0), weights="equal") for arm in batches.arms]
        why = next((mean.last.why for mean in means if mean.last.why is not None), None)
        if why is not None:
            raise ValueError(f"no posterior of the arms where all were open: {why}")
        centre, error = [mean.estimate[-1] for mean in means], [mean.error[-1] for mean in means]
        return np.asarray(rng.normal(centre, error, (n_draws, len(means))), dtype=np.float64)
    trials, sums = batches.trials.T, batches.sums.T
    if np.array_equal(batches.sums, batches.squares):
        ages = np.full(trials.shape, 1e6)
        policy = BetaBernoulliThompson(temper=1.0, minimum_successes=0.0)
        alpha, beta = policy.posterior(trials, sums.round().astype(np.int64), ages)
        return np.asarray(rng.beta(alpha, beta, (n_draws, len(batches.arms))), dtype=np.float64)
    n = batches.trials.astype(np.float64)
    units = np.maximum(n.sum(axis=-1, keepdims=True), 1.0)
    mean = batches.sums.sum() / max(n.sum(), 1.0)
    variance = max(batches.squares.sum() / max(n.sum(), 1.0) - mean**2, 1e-12)
    # Within batches: sum_t [diag(n_t) - n_t n_t' / N_t]; a unit's worth of prior on each arm at the common mean.
    information = (np.diag(n.sum(axis=0)) - (n / units).T @ n + np.eye(len(batches.arms))) / variance
    gain = (batches.sums - n * (batches.sums.sum(axis=-1, keepdims=True) / units)).sum(axis=0) / variance
    covariance = np.linalg.inv(information)
    effects = rng.multivariate_normal(covariance @ gain, covariance, n_draws, method="cholesky")
    return np.asarray(mean + effects - effects.mean(axis=1, keepdims=True), dtype=np.float64)


def decision_aid(arms: Sequence[str], draws: FloatArray, *, stop_below: float = STOP_BELOW) -> DecisionAid:
    """Probability of being best, expected loss, and whether what remains to be won is worth going on.

    Parameters
    ----------
    arms : sequence of str, length n_arms
    draws : ndarray of float64, shape (n_draws, n_arms)
        Posterior draws of the arms' means.
    stop_below : float
        Stop rule: the potential value remaining, ``(max_k mean_k - mean_leader) / mean_leader``, has its 95th
        percentile below this share.

    References
    ----------
    Scott (2015), "Multi-armed bandit experiments in the online service economy" (potential value remaining).
    """
    best = draws.max(axis=1)
    wins = np.bincount(draws.argmax(axis=1), minlength=len(arms)) / len(draws)
    leader = int(wins.argmax())
    own = draws[:, leader]
    remaining = float(np.quantile((best - own) / own, 0.95)) if np.all(own > 0) else None
    return DecisionAid(
        arms=tuple(arms),
        probability_best=tuple(wins.tolist()),
        expected_loss=tuple((best[:, None] - draws).mean(axis=0).tolist()),
        leader=arms[leader],
        value_remaining=remaining,
        may_stop=remaining is not None and remaining < stop_below,
    )


@dataclass(frozen=True)
class Shrunk:
    """Arms' means drawn towards their common one: what to expect of the winner from now on."""

    estimate: FloatArray
    lower: FloatArray
    upper: FloatArray
    #: Standard deviation of the arms' true means, as the data have it.
    spread: float


def shrink(
    estimates: ArrayLike,
    errors: ArrayLike,
    *,
    past: Sequence[tuple[ArrayLike, ArrayLike]] = (),
    level: float = 0.95,
) -> Shrunk:
    """The arms' means without the winner's curse: each a compromise with the mean of all, by what noise deserves.

    The best of several noisy figures is too high on average. With true means normal around a common one, the
    posterior mean is not, whichever arm one picks by it. The spread of the true means is averaged over its posterior,
    with a half-Cauchy prior at the scale of the errors; ``past`` experiments (estimates and errors of their arms,
    in the same unit) tell it better than two or three arms can.

    Parameters
    ----------
    estimates, errors : array-like of float, shape (n_arms,)
        Means and their standard errors, from the same units.
    past : sequence of (estimates, errors)
        Of one experiment, shape (n_arms,), or of several alike, shape (n_experiments, n_arms).
    level : float
        Of the intervals.

    References
    ----------
    Efron, Morris (1973), "Stein's estimation rule and its competitors". Morris (1983), "Parametric empirical Bayes
    inference". Gelman (2006), "Prior distributions for variance parameters in hierarchical models". Efron (2011),
    "Tweedie's formula and selection bias".

    Examples
    --------
    >>> shrink([0.20, 0.22, 0.24], [0.02, 0.02, 0.02]).estimate.round(3).tolist()
    [0.214, 0.22, 0.226]
    """
    y, s = np.asarray(estimates, dtype=np.float64), np.asarray(errors, dtype=np.float64)
    if y.ndim != 1 or len(y) < 2 or s.shape != y.shape or not np.all(np.isfinite(y)) or not np.all(s > 0):
        raise ValueError(f"{len(y)} estimates with errors {s}: give at least two, each with an error above 0")
    scale = float(np.sqrt(np.mean(s**2)))
    taus = scale * np.concatenate([[0.0], np.geomspace(0.02, 50.0, 100)])
    width = np.gradient(taus)
    log_posterior = np.log(width) - np.log1p((taus / scale) ** 2) + _spread_log_likelihood(y, s, taus)
    for arms, deviations in past:
        likelihood = _spread_log_likelihood(np.asarray(arms), np.asarray(deviations), taus)
        log_posterior += likelihood.reshape(-1, len(taus)).sum(axis=0)
    chance = np.exp(log_posterior - special.logsumexp(log_posterior))[:, None]
    precision = 1 / (taus[:, None] ** 2 + s**2)
    centre = (precision * y).sum(axis=1, keepdims=True) / precision.sum(axis=1, keepdims=True)
    keep = taus[:, None] ** 2 * precision
    mean = centre + keep * (y - centre)
    # Of an arm given the spread: its own variance, and that of the common mean.
    variance = keep * s**2 + (1 - keep) ** 2 / precision.sum(axis=1, keepdims=True)
    estimate = (chance * mean).sum(axis=0)
    deviation = np.sqrt((chance * (variance + (mean - estimate) ** 2)).sum(axis=0))
    reach = special.ndtri(0.5 + level / 2) * deviation
    return Shrunk(estimate, estimate - reach, estimate + reach, float((chance[:, 0] * taus).sum()))


def shrunk_means(
    batches: Batches, plan: Plan, *, past: Sequence[tuple[ArrayLike, ArrayLike]] = (), level: float = 0.95
) -> Shrunk | None:
    """The arms' mean rewards, shrunk, over the batches that all arms were open to (without leading axes).

    Equal weights, so that every arm's mean is over the same units. None while an arm has too few successes there.
    """
    common = _open_to_all(batches)
    means = [arm_mean(common, arm, plan, weights="equal") for arm in batches.arms]
    if not all(mean.last.why is None for mean in means):
        return None
    return shrink([mean.estimate[-1] for mean in means], [mean.error[-1] for mean in means], past=past, level=level)


def _open_to_all(batches: Batches) -> Batches:
    """The batches that every arm was open to: there the arms' means are over the same units."""
    together = np.flatnonzero((batches.pmf > 0).all(axis=-1))
    inverse = batches.inverse
    if inverse is not None:
        sums = {of.name: getattr(inverse, of.name)[together] for of in fields(InverseSums) if of.name != "least"}
        inverse = replace(inverse, **sums)
    own = {name: getattr(batches, name)[together] for name in ("pmf", "trials", "sums", "squares", "model", "variance")}
    return replace(batches, **own, inverse=inverse)


def _spread_log_likelihood(y: FloatArray, s: FloatArray, taus: FloatArray) -> FloatArray:
    """Log likelihood of each spread with the common mean integrated out, shape (..., n_taus) of (..., n_arms)."""
    precision = 1 / (taus[:, None] ** 2 + s[..., None, :] ** 2)
    total = precision.sum(axis=-1)
    centre = (precision * y[..., None, :]).sum(axis=-1) / total
    misfit = (precision * (y[..., None, :] - centre[..., None]) ** 2).sum(axis=-1)
    return np.asarray(0.5 * (np.log(precision).sum(axis=-1) - np.log(total) - misfit), dtype=np.float64)
