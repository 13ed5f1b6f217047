"""Beta-Bernoulli Thompson sampling that waits for late answers and compares arms within waves only."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import special

from training.policies.base import Allocation, Context, CountPolicy
from training.policies.learner import Learner, previous_pmf
from training.policies.segments import segment_posterior
from training.policies.statistics import ArmStatistics, FloatArray, IntArray, SegmentStatistics
from training.policies.waves import DelayCdf, fit_waves

__all__ = ["BetaBernoulliThompson", "BetaLearner", "DelayCdf", "fit_waves", "probability_best", "probability_settled"]

#: Breakpoints of the quadrature, in standard deviations of each arm's log-odds.
_BREAKS = np.array([-10.0, -6.0, -4.0, -2.5, -1.25, 0.0, 1.25, 2.5, 4.0, 6.0, 10.0])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)
#: An experiment is decided when with this probability no arm is better than the best one by more than this part.
DECIDED_PROBABILITY, DECIDED_MARGIN = 0.95, 0.01


def probability_best(alpha: FloatArray, beta: FloatArray) -> FloatArray:
    """Probability that each of several independent Beta variables is the largest.

    ``q_k`` is the integral of f_k times the product of the other F_j, by Gauss-Legendre on pieces cut at every arm's
    quantiles on the log-odds scale, where a Beta density is close to a normal one. Exact to about 1e-8.

    Parameters
    ----------
    alpha, beta : ndarray of float64, shape (..., n_arms), at or above about 0.5

    Returns
    -------
    ndarray of float64, shape (..., n_arms), summing to one along the last axis

    Examples
    --------
    P(X > Y) of X ~ Beta(2, 1) and Y ~ Beta(1, 1) is E[X] = 2/3.

    >>> probability_best(np.array([2.0, 1.0]), np.array([1.0, 1.0])).round(8).tolist()
    [0.66666667, 0.33333333]
    """
    odds, weights = _pieces(alpha, beta)
    a, b = alpha[..., None], beta[..., None]
    log_x, log_rest = -np.logaddexp(0.0, -odds), -np.logaddexp(0.0, odds)
    density = np.exp(a * log_x + b * log_rest - special.betaln(a, b))
    cdf = special.betainc(a, b, np.exp(log_x))
    ones = np.ones_like(cdf[..., :1, :])
    below = np.cumprod(np.concatenate([ones, cdf[..., :-1, :]], axis=-2), axis=-2)
    above = np.cumprod(np.concatenate([ones, cdf[..., :0:-1, :]], axis=-2), axis=-2)[..., ::-1, :]
    best = (density * below * above * weights).sum(axis=-1)
    return np.asarray(best / best.sum(axis=-1, keepdims=True), dtype=np.float64)


def probability_settled(alpha: FloatArray, beta: FloatArray, margin: float = DECIDED_MARGIN) -> FloatArray:
    """Probability that no arm is better than the one with the highest mean by more than ``margin`` of its rate.

    At .95 the 95 % quantile of the potential value remaining, ``(max_k theta_k - theta_best) / theta_best``, is
    ``margin``: by quadrature, where the literature draws.

    Parameters
    ----------
    alpha, beta : ndarray of float64, shape (..., n_arms)

    Returns
    -------
    ndarray of float64, shape (...)

    References
    ----------
    Scott (2015), "Multi-armed bandit experiments in the online service economy": value remaining.

    Examples
    --------
    >>> round(float(probability_settled(np.array([900.0, 700.0]), np.array([100.0, 300.0]))), 4)
    1.0
    """
    odds, weights = _pieces(alpha, beta)
    leader = np.argmax(alpha / (alpha + beta), axis=-1)[..., None]
    a, b = (np.take_along_axis(values, leader, axis=-1) for values in (alpha, beta))
    log_x, log_rest = -np.logaddexp(0.0, -odds[..., 0, :]), -np.logaddexp(0.0, odds[..., 0, :])
    density = np.exp(a * log_x + b * log_rest - special.betaln(a, b)) * weights[..., 0, :]
    reach = np.minimum((1.0 + margin) * np.exp(log_x), 1.0)
    cdf = special.betainc(alpha[..., None], beta[..., None], reach[..., None, :])
    others = np.where(np.arange(alpha.shape[-1])[:, None] == leader[..., None], 1.0, cdf)
    return np.asarray((density * others.prod(axis=-2)).sum(axis=-1) / density.sum(axis=-1), dtype=np.float64)


def _pieces(alpha: FloatArray, beta: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Nodes on the log-odds scale and their weights, shape (..., 1, n_nodes), cut at every arm's quantiles."""
    mean = special.digamma(alpha) - special.digamma(beta)
    deviation = np.sqrt(special.polygamma(1, alpha) + special.polygamma(1, beta))
    breaks = mean[..., None] + deviation[..., None] * _BREAKS
    breaks = np.clip(np.sort(breaks.reshape(*breaks.shape[:-2], -1), axis=-1), -700.0, 700.0)
    half = np.diff(breaks, axis=-1)[..., None] / 2
    odds = (breaks[..., :-1, None] + half * (1 + _NODES)).reshape(*breaks.shape[:-1], 1, -1)
    weights = (half * _WEIGHTS).reshape(*breaks.shape[:-1], 1, -1)
    return odds, weights


@dataclass(frozen=True)
class BetaLearner(Learner, CountPolicy):
    """A policy on the Beta posterior of each arm's rate; a subclass says what it makes of the posterior.

    Parameters
    ----------
    temper : float, in (0, 1]
        Power of the likelihood.
    prior_concentration : float, above 0, optional
        Past tests' spread of arms: arm ~ Beta(m k, (1 - m) k), in place of ``prior_successes``. Early answers are
        then shrunk as much as past tests deserved: k is about 2,200 for headlines clicked at 1.3 %.
    prior_rate : float, in (0, 1), optional
        m; without it the experiment's own mean rate, so that another level than in past tests does no harm.
    """

    temper: float = 0.5
    prior_rate: float | None = None
    prior_concentration: float | None = None
    context: ClassVar[Context] = "segment"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temper <= 1:
            raise ValueError(f"temper {self.temper} is not in (0, 1]; 1 is the plain posterior, 0.5 the default")
        if self.prior_concentration is not None and not 0 < self.prior_concentration < np.inf:
            raise ValueError(f"prior_concentration {self.prior_concentration} must be above 0 and finite")
        if self.prior_rate is not None and not 0 < self.prior_rate < 1:
            raise ValueError(f"prior_rate {self.prior_rate} is not in (0, 1); give a rate, or leave it out")
        if self.prior_rate is not None and self.prior_concentration is None:
            raise ValueError(f"prior_rate {self.prior_rate} has no weight; give prior_concentration too")

    @abstractmethod
    def preferred(self, alpha: FloatArray, beta: FloatArray) -> FloatArray:
        """Shares that the posterior alone would give, shape (..., n_arms)."""

    def floor_in_force(self, alpha: FloatArray, beta: FloatArray) -> float | FloatArray:
        """Floor under this posterior: one number, or an array of shape (..., 1)."""
        return self.floor_of(alpha.shape[-1])

    def prior(self, mean_rate: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Parameters (alpha, beta) of an arm's prior, of the shape of ``mean_rate``."""
        if self.prior_concentration is None:
            rate = np.clip(mean_rate, 1e-6, 0.5)
            return np.full_like(rate, self.prior_successes), self.prior_successes * (1 / rate - 1)
        rate = np.full_like(mean_rate, self.prior_rate or 0.0) if self.prior_rate else np.clip(mean_rate, 1e-6, 0.5)
        # At least half a success: below, a Beta density has no peak and no quadrature.
        weight = np.maximum(self.prior_concentration, 0.5 / rate)
        return rate * weight, (1 - rate) * weight

    def shares(self, arms: tuple[str, ...], trials: IntArray, successes: IntArray, age_hours: FloatArray) -> FloatArray:
        """What the posterior prefers, with floor and burn-in."""
        alpha, beta = self.posterior(trials, successes, age_hours)
        best, floor = self.preferred(alpha, beta), self.floor_in_force(alpha, beta)
        due, answered = self.due(trials, age_hours), self.answered(successes)
        return self.spread(best, due.sum(axis=-1), answered.sum(axis=(-1, -2)), floor)

    def posterior(self, trials: IntArray, successes: IntArray, age_hours: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Parameters (alpha, beta) of each arm's tempered posterior, shape (..., n_arms) each."""
        return self._posterior(self.exposure(trials, age_hours), successes * self.weights(age_hours))

    def _posterior(self, exposure: FloatArray, answered: FloatArray) -> tuple[FloatArray, FloatArray]:
        fit = fit_waves(exposure, answered, self.wave_concentration)
        weight = self.temper * fit.information
        by_arm = answered.sum(axis=-1)
        prior_alpha, prior_beta = self.prior(fit.mean_rate)
        alpha = prior_alpha[..., None] + weight * by_arm
        return alpha, prior_beta[..., None] + weight * np.maximum(fit.effective_trials - by_arm, 0.0)

    def allocate(
        self, statistics: ArmStatistics | SegmentStatistics, *, previous: Allocation | None = None, seed: int = 0
    ) -> Allocation:
        """Arm probabilities with their reason; of ``SegmentStatistics`` also each segment's own.

        A segment is shrunk to the others (``training.policies.segments``). One with fewer successes than
        ``minimum_successes`` an arm answers as all segments together, and so does a segment never seen.

        Parameters
        ----------
        statistics : ArmStatistics or SegmentStatistics
        previous : Allocation, optional
            The one in force, as this policy gave it (before exploration was mixed in).
        seed : int
            Not used: nothing is drawn.
        """
        arms = statistics.arms
        table = statistics.strata() if isinstance(statistics, SegmentStatistics) else statistics
        exposure, kept = self.exposure(table.trials, table.age_hours), self._kept(table)
        alpha, beta = self._posterior(exposure, kept)
        floor = float(np.asarray(self.floor_in_force(alpha, beta)).reshape(-1)[0])
        due = self.due(table.trials, table.age_hours).sum(axis=-1)
        target = self.spread(self.preferred(alpha, beta), due, self.answered(table.successes).sum(), floor)
        pmf = self.limited(arms, target, previous_pmf(previous, arms), floor)
        by_segment: Mapping[str, FloatArray] = {}
        if isinstance(statistics, SegmentStatistics) and len(statistics.segments) > 1:
            by_segment = self._by_segment(statistics, pmf, due, previous)
        return Allocation(
            arms,
            pmf,
            self.reason(table),
            details={
                "effective_trials": exposure.sum(axis=-1).tolist(),
                "effective_successes": kept.sum(axis=-1).tolist(),
                "posterior_mean": (alpha / (alpha + beta)).tolist(),
                "settled": float(probability_settled(alpha, beta)),
                "floor": floor,
                "burning_in": [arm for arm, n in zip(arms, due, strict=True) if n < self.minimum_per_arm],
            },
            by_segment=by_segment,
        )

    def _kept(self, table: ArmStatistics | SegmentStatistics) -> FloatArray:
        return np.asarray(table.successes * self.weights(table.age_hours), dtype=np.float64)

    def _by_segment(
        self, statistics: SegmentStatistics, pooled: FloatArray, due: FloatArray, previous: Allocation | None
    ) -> Mapping[str, FloatArray]:
        arms = statistics.arms
        kept = self._kept(statistics)
        exposure = self.exposure(statistics.trials, statistics.age_hours)
        alpha, beta = segment_posterior(
            exposure, kept, prior=self.prior, temper=self.temper, wave_concentration=self.wave_concentration
        )
        floor = np.broadcast_to(np.asarray(self.floor_in_force(alpha, beta)), (len(alpha), 1))
        successes = self.answered(statistics.successes).sum(axis=(-1, -2))
        target = self.spread(self.preferred(alpha, beta), np.broadcast_to(due, alpha.shape), successes, np.array(floor))
        own = successes >= self.minimum_successes * len(arms)
        own &= exposure.sum(axis=(-1, -2)) > 0
        return {
            name: self.limited(arms, target[g], previous_pmf(previous, arms, name), float(floor[g, 0]))
            if own[g]
            else pooled
            for g, name in enumerate(statistics.segments)
        }

    def reason(self, statistics: ArmStatistics) -> str:
        """Whether the evidence suffices, with the counts."""
        needed, seen = self.minimum_successes * len(statistics.arms), float(self.answered(statistics.successes).sum())
        if seen < needed:
            return f"uniform: {int(seen)} successes so far, {needed:g} needed"
        return f"{self.name}: {int(statistics.successes.sum())} successes in {int(statistics.trials.sum())} trials"


@dataclass(frozen=True)
class BetaBernoulliThompson(BetaLearner):
    """Thompson sampling on success rates: each arm gets its probability of being best, with a floor.

    Differs from the textbook in five ways, each because mail needs it. A mail without an answer counts as a trial
    only for the share of answers due by its age (``delay``). Arms are compared within waves (``fit_waves``). The
    evidence is tempered: the probability of being best is uniform on [0, 1] when two arms are the same, so an
    untempered allocation ends outside 10-90 % in a fifth of all tests without an effect. Every arm keeps a floor. And
    until there are ``minimum_successes`` an arm on average the split stays uniform and says so.

    Parameters
    ----------
    floor : float, optional
        Least probability of an arm; by default .05 up to four arms, above that .20 shared by all.
    decided_floor : float, optional
        Floor once the experiment is decided: with 95 % probability no arm is better than the best by more than 1 %
        (``probability_settled``).

    Other parameters are those of ``BetaLearner`` and ``Learner``.

    References
    ----------
    Thompson (1933), "On the likelihood that one unknown probability exceeds another". Chapelle, Li (2011), "An
    empirical evaluation of Thompson sampling". Walker, Hjort (2001), "On Bayesian consistency" (fractional
    likelihood). Vernade, Cappé, Perchet (2017), "Stochastic bandit models for delayed conversions". Russac, Vernade,
    Cappé (2019), "Weighted linear bandits for non-stationary environments" (discount).

    Examples
    --------
    >>> seen = ArmStatistics(("a", "b"), [[1000], [1000]], [[150], [200]], [[48.0], [48.0]])
    >>> BetaBernoulliThompson().pmf(seen).round(3).tolist()
    [0.067, 0.933]
    """

    floor: float | None = None
    decided_floor: float | None = None
    name: ClassVar[str] = "thompson"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("floor", "decided_floor"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 0.5:
                raise ValueError(f"{name} {value} does not fit two arms; choose one between 0 and 0.5")

    def floor_of(self, n_arms: int) -> float:
        """Least probability of an arm of ``n_arms``, decided or not."""
        floor = self._learning_floor(n_arms)
        return floor if self.decided_floor is None else min(floor, self.decided_floor)

    def _learning_floor(self, n_arms: int) -> float:
        if self.floor is not None:
            return self.floor
        return 0.05 if n_arms <= 4 else 0.20 / n_arms

    def floor_in_force(self, alpha: FloatArray, beta: FloatArray) -> float | FloatArray:
        """The floor, or the lower one where the experiment is decided."""
        floor = self._learning_floor(alpha.shape[-1])
        if self.decided_floor is None:
            return floor
        settled = probability_settled(alpha, beta) >= DECIDED_PROBABILITY
        return np.where(settled[..., None], min(floor, self.decided_floor), floor)

    def preferred(self, alpha: FloatArray, beta: FloatArray) -> FloatArray:
        """Probability of being best."""
        return probability_best(alpha, beta)
