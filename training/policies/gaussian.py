"""Thompson sampling on real-valued rewards (revenue a mail), compared within waves, waiting for late answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import special

from training.policies.base import Allocation
from training.policies.learner import Learner, previous_pmf
from training.policies.statistics import FloatArray, IntArray, ValueStatistics
from training.policies.waves import comparing_share

#: Breakpoints of the quadrature, in scales of each arm's posterior.
_BREAKS = np.array([-10.0, -6.0, -4.0, -2.5, -1.25, 0.0, 1.25, 2.5, 4.0, 6.0, 10.0])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
#: Rewards that the common variance weighs in an arm's own.
VARIANCE_PRIOR = 20.0


def probability_largest(mean: FloatArray, scale: FloatArray, freedom: FloatArray) -> FloatArray:
    """Probability that each of several independent Student t variables is the largest.

    The integral of f_k times the product of the other F_j, by Gauss-Legendre on pieces cut at every arm's quantiles.

    Parameters
    ----------
    mean, scale, freedom : ndarray of float64, shape (..., n_arms)
        ``scale`` above 0; ``freedom`` (degrees) at or above about 20, where ten scales hold all but 1e-8.

    Returns
    -------
    ndarray of float64, shape (..., n_arms), summing to one along the last axis

    Examples
    --------
    >>> probability_largest(np.array([1.0, 1.0]), np.array([0.1, 0.3]), np.array([20.0, 50.0])).round(6).tolist()
    [0.5, 0.5]
    """
    breaks = mean[..., None] + scale[..., None] * _BREAKS
    breaks = np.sort(breaks.reshape(*breaks.shape[:-2], -1), axis=-1)
    half = np.diff(breaks, axis=-1)[..., None] / 2
    x = (breaks[..., :-1, None] + half * (1 + _NODES)).reshape(*breaks.shape[:-1], 1, -1)
    weights = (half * _WEIGHTS).reshape(*breaks.shape[:-1], 1, -1)
    nu, s = freedom[..., None], scale[..., None]
    z = (x - mean[..., None]) / s
    norm = special.gammaln((nu + 1) / 2) - special.gammaln(nu / 2) - np.log(nu * np.pi) / 2
    density = np.exp(norm - (nu + 1) / 2 * np.log1p(z**2 / nu)) / s
    cdf = special.stdtr(nu, z)
    ones = np.ones_like(cdf[..., :1, :])
    below = np.cumprod(np.concatenate([ones, cdf[..., :-1, :]], axis=-2), axis=-2)
    above = np.cumprod(np.concatenate([ones, cdf[..., :0:-1, :]], axis=-2), axis=-2)[..., ::-1, :]
    best = (density * below * above * weights).sum(axis=-1)
    return np.asarray(best / best.sum(axis=-1, keepdims=True), dtype=np.float64)


@dataclass(frozen=True)
class GaussianThompson(Learner):
    """Thompson sampling on the mean reward of a trial, where most trials earn nothing and a few earn a lot.

    What is assumed: a wave's sum is normal around ``exposure * (mu_k + b_w)``. That is the central limit theorem, not
    a claim on single orders; it holds once an arm has tens of rewards and no single one is a large part of its sum,
    so cap what one order may count for before it is logged. Against heavy tails three guards stand: the variance is
    unknown (Student t, with as many degrees as rewards), an arm's own is shrunk to that of all arms (a lucky large
    order cannot make its arm look sure), and until ``minimum_successes`` rewards an arm the split stays uniform.

    The wave effect ``b_w`` is normal with a relative standard deviation of ``wave_concentration ** -0.5`` around the
    mean reward, and integrated out: arms are compared within waves. Arms are shrunk to the common mean, as by
    ``prior_successes`` rewards. The likelihood is tempered as that of ``BetaBernoulliThompson``.

    Parameters
    ----------
    floor : float, optional
        Least probability of an arm; by default .05 up to four arms, above that .20 shared by all.
    temper : float, in (0, 1]
        Power of the likelihood.

    Other parameters are those of ``Learner``.

    References
    ----------
    Gelman et al. (2013), "Bayesian Data Analysis", section 3.2 (normal with unknown variance) and chapter 15 (varying
    effects). Honda, Takemura (2014), "Optimality of Thompson sampling for Gaussian bandits depends on priors".

    Examples
    --------
    Two arms of 5,000 mails, 200 orders each, of 30 and of 36 on average:

    >>> seen = ValueStatistics(
    ...     ("a", "b"), [[5000], [5000]], [[200], [200]], [[6000.0], [7200.0]], [[2.4e5], [3.4e5]], [[99.0], [99.0]]
    ... )
    >>> GaussianThompson().pmf(seen).round(2).tolist()
    [0.17, 0.83]
    """

    floor: float | None = None
    temper: float = 0.5
    name: ClassVar[str] = "gaussian_thompson"
    learns_from: ClassVar[type] = ValueStatistics

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.floor is not None and not 0 <= self.floor <= 0.5:
            raise ValueError(f"floor {self.floor} does not fit two arms; choose one between 0 and 0.5")
        if not 0 < self.temper <= 1:
            raise ValueError(f"temper {self.temper} is not in (0, 1]; 1 is the plain posterior, 0.5 the default")

    def floor_of(self, n_arms: int) -> float:
        """The floor of ``n_arms`` arms."""
        if self.floor is not None:
            return self.floor
        return 0.05 if n_arms <= 4 else 0.20 / n_arms

    def posterior(
        self, trials: IntArray, successes: IntArray, sums: FloatArray, squares: FloatArray, age_hours: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean, scale and degrees of freedom of each arm's Student t, in the reward's unit: shape (..., n_arms) each.

        With effective trials e, sums S and ``tau**2 = sigma**2 / a`` (a in trials), integrating b_w out of the normal
        likelihood leaves the precision ``diag(e_k) - sum_w e_w e_w' / (e_.w + a)`` and the score ``S_k - sum_w e_kw
        S_.w / (e_.w + a)``, both over sigma**2.
        """
        weight = self.weights(age_hours)
        s, q, n, shown = sums * weight, squares * weight, successes * weight, (trials * weight).sum(axis=-1)
        # Answers may come sooner than the curve has them: no cell has fewer answers due than it has successes.
        e = np.maximum(self.exposure(trials, age_hours), n)
        n_arms = trials.shape[-2]
        by_arm = np.maximum(e.sum(axis=-1), 1e-300)
        total = np.maximum(by_arm.sum(axis=-1), 1e-300)
        mean = s.sum(axis=(-1, -2)) / total
        second = q.sum(axis=(-1, -2)) / total
        least = 1e-6 * second + 1e-300
        # Around the mean over the trials shown; per trial due, for that is what the precision counts.
        around = q.sum(axis=-1) - s.sum(axis=-1) ** 2 / np.maximum(shown, 1e-300)
        own = np.maximum(around, 0.0) / by_arm
        common = np.maximum((own * by_arm).sum(axis=-1) / total, least)
        n_own = n.sum(axis=-1)
        variance = (VARIANCE_PRIOR * common[..., None] + n_own * own) / (VARIANCE_PRIOR + n_own)

        a = np.clip(self.wave_concentration * common / np.maximum(mean**2, 1e-300), 1e-6, 1e15)[..., None]
        by_wave = e.sum(axis=-2)
        shrunk = e / (by_wave + a)[..., None, :]
        precision = np.eye(n_arms) * by_arm[..., None] - np.einsum("...kw,...jw->...kj", shrunk, e)
        score = s.sum(axis=-1) - (shrunk * s.sum(axis=-2)[..., None, :]).sum(axis=-1)
        share_rewarded = np.clip(n.sum(axis=(-1, -2)) / total, 1e-6, 1.0)
        prior = (self.prior_successes / share_rewarded)[..., None]
        centre = np.linalg.solve(
            self.temper * precision + np.eye(n_arms) * prior[..., None],
            (self.temper * score + prior * mean[..., None])[..., None],
        )[..., 0]
        evidence = self.temper * comparing_share(e, by_wave, a[..., None]) * e.sum(axis=-1)
        return centre, np.sqrt(variance / (prior + evidence)), VARIANCE_PRIOR + self.temper * n_own

    def shares(
        self,
        arms: tuple[str, ...],
        trials: IntArray,
        successes: IntArray,
        sums: FloatArray,
        squares: FloatArray,
        age_hours: FloatArray,
    ) -> FloatArray:
        """Arm probabilities of many tables at once, shape (..., n_arms); tables as in ``ValueStatistics``."""
        best = probability_largest(*self.posterior(trials, successes, sums, squares, age_hours))
        return self.spread(
            best,
            self.exposure(trials, age_hours).sum(axis=-1),
            (successes * self.weights(age_hours)).sum(axis=(-1, -2)),
            self.floor_of(len(arms)),
        )

    def pmf(self, statistics: ValueStatistics) -> FloatArray:
        """Arm probabilities, shape (n_arms,), in the order of ``statistics.arms``."""
        table = statistics
        return self.shares(table.arms, table.trials, table.successes, table.sums, table.squares, table.age_hours)

    def allocate(self, statistics: ValueStatistics, *, previous: Allocation | None = None, seed: int = 0) -> Allocation:
        """Arm probabilities with their reason; nothing is drawn, so ``seed`` is not used."""
        table = statistics
        floor = self.floor_of(len(table.arms))
        pmf = self.limited(table.arms, self.pmf(table), previous_pmf(previous, table.arms), floor)
        mean, scale, _ = self.posterior(table.trials, table.successes, table.sums, table.squares, table.age_hours)
        n_effective = self.exposure(table.trials, table.age_hours).sum(axis=-1)
        return Allocation(
            table.arms,
            pmf,
            self.reason(table),
            details={
                "effective_trials": n_effective.tolist(),
                "effective_successes": (table.successes * self.weights(table.age_hours)).sum(axis=-1).tolist(),
                "posterior_mean": mean.tolist(),
                "posterior_scale": scale.tolist(),
                "floor": floor,
                "burning_in": [a for a, n in zip(table.arms, n_effective, strict=True) if n < self.minimum_per_arm],
            },
        )

    def reason(self, statistics: ValueStatistics) -> str:
        """Whether the evidence suffices, with the counts."""
        needed = self.minimum_successes * len(statistics.arms)
        seen = float((statistics.successes * self.weights(statistics.age_hours)).sum())
        if seen < needed:
            return f"uniform: {int(seen)} rewards so far, {needed:g} needed"
        return f"{self.name}: {int(statistics.successes.sum())} rewards in {int(statistics.trials.sum())} trials"
