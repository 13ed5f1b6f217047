"""Beta-Bernoulli Thompson sampling that waits for late answers and compares arms within waves only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from training.policies.base import CountPolicy, mix_floor
from training.policies.statistics import ArmStatistics, FloatArray, IntArray

#: Breakpoints of the quadrature, in standard deviations of each arm's log-odds.
_BREAKS = np.array([-10.0, -6.0, -4.0, -2.5, -1.25, 0.0, 1.25, 2.5, 4.0, 6.0, 10.0])
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(10)


@dataclass(frozen=True)
class DelayCdf:
    """Share of the answers that will ever come which have come in by an age.

    Without ``knots`` a lognormal: opens of marketing mail have a median delay of about 3 hours and a long tail.
    Inside a wave the share is common to all arms and cancels, so a wrong guess here costs little.

    Parameters
    ----------
    median_hours : float, above 0
    sigma : float, above 0
        Standard deviation of the log of the delay.
    knots : tuple of (age in hours, share), optional
        A measured curve, rising in both, read with straight lines between; replaces the lognormal.

    Examples
    --------
    >>> DelayCdf()([0.0, 3.0, 48.0]).round(3).tolist()
    [0.0, 0.5, 0.997]
    """

    median_hours: float = 3.0
    sigma: float = 1.0
    knots: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "knots", tuple((float(age), float(share)) for age, share in self.knots))
        if not (0 < self.median_hours < np.inf and 0 < self.sigma < np.inf):
            raise ValueError(
                f"delay with median {self.median_hours} h and sigma {self.sigma}: both must be above 0 and finite"
            )
        curve = np.array([(0.0, 0.0), *self.knots])
        if not np.all(np.isfinite(curve)) or np.any(np.diff(curve, axis=0) < 0) or curve.min() < 0 or curve[-1, 1] > 1:
            raise ValueError("knots of a delay must rise in age and in share, from 0 to at most 1")

    def __call__(self, age_hours: ArrayLike) -> FloatArray:
        """Share in [0, 1] by ``age_hours``, any shape."""
        age = np.asarray(age_hours, dtype=np.float64)
        if self.knots:
            ages, shares = np.array([(0.0, 0.0), *self.knots]).T
            return np.asarray(np.interp(age, ages, shares), dtype=np.float64)
        with np.errstate(divide="ignore"):
            return np.asarray(special.ndtr(np.log(age / self.median_hours) / self.sigma), dtype=np.float64)

    @classmethod
    def from_delays(cls, delays_hours: ArrayLike, age_hours: ArrayLike, n_knots: int = 64) -> DelayCdf:
        """The curve measured on past trials, by the product-limit estimator with those who never answer left out.

        Parameters
        ----------
        delays_hours : array-like of float, shape (n,)
            Hours from trial to answer, NaN where none has come in yet.
        age_hours : array-like of float, shape (n,)
            Hours from the trial to now: an answer later than this could not have been seen.

        Raises
        ------
        ValueError
            If fewer than 30 answers have come in.

        References
        ----------
        Kaplan, Meier (1958), "Nonparametric estimation from incomplete observations". Maller, Zhou (1992),
        "Estimating the proportion of immunes in a censored sample": the curve's plateau is the share that answers.
        """
        delays = np.asarray(delays_hours, dtype=np.float64)
        ages = np.asarray(age_hours, dtype=np.float64)
        answered = np.isfinite(delays) & (delays <= ages)
        n_answers = int(answered.sum())
        if n_answers < 30:
            raise ValueError(f"{n_answers} answers are too few to measure the delay; collect 30 or keep the default")
        times, events = np.unique(np.maximum(delays[answered], 0.0), return_counts=True)
        left_at = np.sort(np.where(answered, delays, ages))
        at_risk = len(left_at) - np.searchsorted(left_at, times, side="left")
        answered_by = 1.0 - np.cumprod(1.0 - events / at_risk)
        share = answered_by / answered_by[-1]
        kept = np.unique(np.linspace(0, len(times) - 1, n_knots).round().astype(int))
        return cls(knots=tuple(zip(times[kept].tolist(), share[kept].tolist(), strict=True)))

    def parameters(self) -> dict[str, Any]:
        """The curve as JSON values."""
        return {"median_hours": self.median_hours, "sigma": self.sigma, "knots": [list(knot) for knot in self.knots]}


@dataclass(frozen=True)
class WaveFit:
    """Arms' evidence with the waves' levels taken out. Leading axes as given."""

    #: shape (..., n_arms): trials that the successes stand for, at the average wave's rate.
    effective_trials: FloatArray
    #: shape (..., n_arms), in [0, 1]: part of the counts that compares arms, not waves.
    information: FloatArray
    #: shape (...,): successes per answered trial over everything.
    mean_rate: FloatArray


def fit_waves(
    exposure: FloatArray, successes: IntArray, wave_concentration: float, *, tolerance: float = 1e-10, limit: int = 500
) -> WaveFit:
    """Arm effects within waves: ``E[s_kw] = exposure_kw * b_w * theta_k`` with ``b_w`` gamma around the mean rate.

    Base rates move with the hour and the day. Counts pooled over waves under a changing allocation mistake a good
    hour for a good arm; with an effect per wave (Poisson likelihood, fitted by alternating b and theta) only what an
    arm earns beside the others in the same wave counts. Given the waves' totals, the successes of a wave are shared
    out in proportion to ``exposure_kw * theta_k`` (the conditional likelihood of a matched design), which carries
    ``m_w p_kw (1 - p_kw)`` of information on arm k, with m_w the wave's expected successes and p_kw the arm's share
    of its exposure. The prior on b_w adds ``v_w (p_kw - p_k)**2`` from between waves, ``v_w = m_w a / (m_w + a)``: all
    of it for waves of one trial, next to nothing for waves of thousands. ``information`` is the ratio of that sum to
    what the pooled counts pretend to have.

    Parameters
    ----------
    exposure : ndarray of float64, shape (..., n_arms, n_waves)
        Trials times the share of answers due by their age.
    successes : ndarray of int64, same shape
    wave_concentration : float
        ``a``: shape of the gamma prior; waves differ by a relative standard deviation of ``a ** -0.5``.

    References
    ----------
    Hausman, Hall, Griliches (1984), "Econometric models for count data", conditional Poisson with group effects.
    Deming, Stephan (1940), iterative proportional fitting.
    """
    a = wave_concentration
    by_arm, by_wave = successes.sum(axis=-1), successes.sum(axis=-2)
    arm_exposure, wave_exposure = exposure.sum(axis=-1), exposure.sum(axis=-2)
    total_exposure = arm_exposure.sum(axis=-1)
    mean_rate = by_arm.sum(axis=-1) / np.where(total_exposure > 0, total_exposure, 1.0)
    rate = np.clip(mean_rate, 1e-9, 1.0)[..., None]

    theta = np.ones_like(arm_exposure)
    for _ in range(limit):
        expected = np.einsum("...kw,...k->...w", exposure, theta)
        level = (by_wave + a) / (expected + a / rate)
        weighted = np.einsum("...kw,...w->...k", exposure, level)
        fresh = by_arm / np.where(weighted > 0, weighted, 1.0)
        scale = (fresh * arm_exposure).sum(axis=-1) / np.where(total_exposure > 0, total_exposure, 1.0)
        fresh = fresh / np.where(scale > 0, scale, 1.0)[..., None]
        moved = np.max(np.abs(fresh - theta), initial=0.0)
        theta = fresh
        if moved < tolerance:
            break
    level = (by_wave + a) / (np.einsum("...kw,...k->...w", exposure, theta) + a / rate)
    mean_level = (wave_exposure * level).sum(axis=-1) / np.where(total_exposure > 0, total_exposure, 1.0)
    effective = np.einsum("...kw,...w->...k", exposure, level) / np.where(mean_level > 0, mean_level, 1.0)[..., None]

    # Shares of exposure, not of successes: an arm's further success then cannot shrink its own evidence.
    share = exposure / np.where(wave_exposure > 0, wave_exposure, 1.0)[..., None, :]
    m = (wave_exposure * rate)[..., None, :]
    v = m * a / (m + a)
    within = (m * share * (1 - share)).sum(axis=-1)
    centre = (v * share).sum(axis=-1) / np.maximum(v.sum(axis=-1), 1e-300)
    between = (v * (share - centre[..., None]) ** 2).sum(axis=-1)
    overall = arm_exposure / np.where(total_exposure > 0, total_exposure, 1.0)[..., None]
    pretended = m.sum(axis=-1) * overall * (1 - overall)
    information = np.where(pretended > 0, (within + between) / np.where(pretended > 0, pretended, 1.0), 0.0)
    return WaveFit(effective, np.clip(information, 0.0, 1.0), mean_rate)


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
    mean = special.digamma(alpha) - special.digamma(beta)
    deviation = np.sqrt(special.polygamma(1, alpha) + special.polygamma(1, beta))
    breaks = mean[..., None] + deviation[..., None] * _BREAKS
    breaks = np.clip(np.sort(breaks.reshape(*breaks.shape[:-2], -1), axis=-1), -700.0, 700.0)
    half = np.diff(breaks, axis=-1)[..., None] / 2
    odds = (breaks[..., :-1, None] + half * (1 + _NODES)).reshape(*breaks.shape[:-1], 1, -1)
    weights = (half * _WEIGHTS).reshape(*breaks.shape[:-1], 1, -1)
    a, b = alpha[..., None], beta[..., None]
    log_x, log_rest = -np.logaddexp(0.0, -odds), -np.logaddexp(0.0, odds)
    density = np.exp(a * log_x + b * log_rest - special.betaln(a, b))
    cdf = special.betainc(a, b, np.exp(log_x))
    ones = np.ones_like(cdf[..., :1, :])
    below = np.cumprod(np.concatenate([ones, cdf[..., :-1, :]], axis=-2), axis=-2)
    above = np.cumprod(np.concatenate([ones, cdf[..., :0:-1, :]], axis=-2), axis=-2)[..., ::-1, :]
    best = (density * below * above * weights).sum(axis=-1)
    return np.asarray(best / best.sum(axis=-1, keepdims=True), dtype=np.float64)


@dataclass(frozen=True)
class BetaBernoulliThompson(CountPolicy):
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
    temper : float, in (0, 1]
        Power of the likelihood.
    minimum_successes : float
        Successes per arm, on average, from which on the split may leave the uniform one.
    prior_successes : float, above 0
        Weight of the prior, in successes, at the mean rate of all arms.
    wave_concentration : float, above 0
        See ``fit_waves``; 10 allows base rates to differ by a third between waves.
    delay : DelayCdf

    References
    ----------
    Thompson (1933), "On the likelihood that one unknown probability exceeds another". Chapelle, Li (2011), "An
    empirical evaluation of Thompson sampling". Walker, Hjort (2001), "On Bayesian consistency" (fractional
    likelihood). Vernade, Cappé, Perchet (2017), "Stochastic bandit models for delayed conversions".

    Examples
    --------
    >>> seen = ArmStatistics(("a", "b"), [[1000], [1000]], [[150], [200]], [[48.0], [48.0]])
    >>> BetaBernoulliThompson().pmf(seen).round(3).tolist()
    [0.067, 0.933]
    """

    floor: float | None = None
    temper: float = 0.5
    minimum_successes: float = 20.0
    prior_successes: float = 1.0
    wave_concentration: float = 10.0
    delay: DelayCdf = field(default_factory=DelayCdf)
    name: ClassVar[str] = "thompson"

    def __post_init__(self) -> None:
        if isinstance(self.delay, dict):
            object.__setattr__(self, "delay", DelayCdf(**self.delay))
        if self.floor is not None and not 0 <= self.floor <= 0.5:
            raise ValueError(f"floor {self.floor} does not fit two arms; choose one between 0 and 0.5")
        if not 0 < self.temper <= 1:
            raise ValueError(f"temper {self.temper} is not in (0, 1]; 1 is the plain posterior, 0.5 the default")
        for name in ("prior_successes", "wave_concentration"):
            if not 0 < getattr(self, name) < np.inf:
                raise ValueError(f"{name} {getattr(self, name)} must be above 0 and finite")
        if not 0 <= self.minimum_successes < np.inf:
            raise ValueError(f"minimum_successes {self.minimum_successes} must be 0 or more and finite")

    def floor_of(self, n_arms: int) -> float:
        """The floor of ``n_arms`` arms."""
        if self.floor is not None:
            return self.floor
        return 0.05 if n_arms <= 4 else 0.20 / n_arms

    def shares(self, arms: tuple[str, ...], trials: IntArray, successes: IntArray, age_hours: FloatArray) -> FloatArray:
        """Probabilities of being best under the tempered posterior, floor mixed in."""
        n_arms = len(arms)
        posterior = self.posterior(trials, successes, age_hours)
        best = probability_best(*posterior)
        enough = successes.sum(axis=(-1, -2)) >= self.minimum_successes * n_arms
        return mix_floor(np.where(enough[..., None], best, 1.0 / n_arms), self.floor_of(n_arms))

    def posterior(self, trials: IntArray, successes: IntArray, age_hours: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Parameters (alpha, beta) of each arm's tempered posterior, shape (..., n_arms) each."""
        fit = fit_waves(trials * self.delay(age_hours), successes, self.wave_concentration)
        weight = self.temper * fit.information
        by_arm = successes.sum(axis=-1)
        rate = np.clip(fit.mean_rate, 1e-6, 0.5)[..., None]
        alpha = self.prior_successes + weight * by_arm
        beta = self.prior_successes * (1 / rate - 1) + weight * np.maximum(fit.effective_trials - by_arm, 0.0)
        return alpha, beta

    def reason(self, statistics: ArmStatistics) -> str:
        """Whether the evidence suffices, with the counts."""
        needed, seen = self.minimum_successes * len(statistics.arms), int(statistics.successes.sum())
        if seen < needed:
            return f"uniform: {seen} successes so far, {needed:g} needed"
        return f"thompson: {seen} successes in {int(statistics.trials.sum())} trials"

    def parameters(self) -> dict[str, Any]:
        """Every parameter as JSON values."""
        return {
            "policy": self.name,
            "floor": self.floor,
            "temper": self.temper,
            "minimum_successes": self.minimum_successes,
            "prior_successes": self.prior_successes,
            "wave_concentration": self.wave_concentration,
            "delay": self.delay.parameters(),
        }
