"""How much of an answer is due by an age, and what arms earn beside each other in the same wave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from training.policies.statistics import FloatArray, IntArray


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
    #: shape (..., n_waves): each wave's rate over the average wave's.
    level: FloatArray


def fit_waves(
    exposure: FloatArray,
    successes: IntArray | FloatArray,
    wave_concentration: float,
    *,
    tolerance: float = 1e-10,
    limit: int = 500,
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

    return WaveFit(
        effective_trials=effective,
        information=comparing_share(exposure, wave_exposure * rate, a),
        mean_rate=mean_rate,
        level=level / np.where(mean_level > 0, mean_level, 1.0)[..., None],
    )


def comparing_share(
    exposure: FloatArray, wave_weight: FloatArray, wave_concentration: float | FloatArray
) -> FloatArray:
    """Part of each arm's evidence that compares arms, not waves: shape (..., n_arms), in [0, 1]; see ``fit_waves``.

    Parameters
    ----------
    exposure : ndarray of float64, shape (..., n_arms, n_waves)
    wave_weight : ndarray of float64, shape (..., n_waves)
        Evidence of each wave as a whole (expected successes).
    wave_concentration : float or ndarray of float64 that broadcasts against shape (..., 1, n_waves)
        What is known beforehand of a wave's level, in the unit of ``wave_weight``.
    """
    wave_exposure = exposure.sum(axis=-2)
    arm_exposure = exposure.sum(axis=-1)
    total_exposure = arm_exposure.sum(axis=-1)
    # Shares of exposure, not of successes: an arm's further success then cannot shrink its own evidence.
    share = exposure / np.where(wave_exposure > 0, wave_exposure, 1.0)[..., None, :]
    m = wave_weight[..., None, :]
    v = m * wave_concentration / (m + wave_concentration)
    within = (m * share * (1 - share)).sum(axis=-1)
    centre = (v * share).sum(axis=-1) / np.maximum(v.sum(axis=-1), 1e-300)
    between = (v * (share - centre[..., None]) ** 2).sum(axis=-1)
    overall = arm_exposure / np.where(total_exposure > 0, total_exposure, 1.0)[..., None]
    pretended = m.sum(axis=-1) * overall * (1 - overall)
    information = np.where(pretended > 0, (within + between) / np.where(pretended > 0, pretended, 1.0), 0.0)
    return np.clip(information, 0.0, 1.0)


def design_effect(trials: IntArray, successes: IntArray) -> FloatArray:
    """Variance of a count of successes over that of independent trials, from contacts with several trials each.

    ``1 + (n0 - 1) rho`` with the intraclass correlation rho by analysis of variance: what an arm's evidence is too
    sure by where contacts keep their arm from mail to mail. At least 1; where every mail is drawn anew it is 1
    whatever the contacts are like, so measure it for sticky experiments only.

    Parameters
    ----------
    trials, successes : ndarray of int64, shape (..., n_contacts)
        Of one arm, or of all arms together where they differ little.

    Returns
    -------
    ndarray of float64, shape (...)

    Raises
    ------
    ValueError
        If there are fewer than 30 contacts with a trial, or more successes than trials.

    References
    ----------
    Kish (1965), "Survey Sampling". Ridout, Demetrio, Firth (1999), "Estimating intraclass correlation for binary data".

    Examples
    --------
    Contacts who answer all of their four mails or none: four mails are worth one.

    >>> float(design_effect(np.full(1000, 4), np.tile([0, 4], 500)).round(2))
    4.0
    """
    n, s = np.asarray(trials, dtype=np.float64), np.asarray(successes, dtype=np.float64)
    contacts = np.count_nonzero(n > 0, axis=-1)
    if np.min(contacts) < 30:
        raise ValueError(f"{np.min(contacts)} contacts are too few to measure how alike their answers are; collect 30")
    if np.any(s > n):
        raise ValueError("a contact has more successes than trials; count at most one success a trial")
    total = n.sum(axis=-1)
    rate = s / np.maximum(n, 1.0)
    size = (n**2).sum(axis=-1) / total  # mails of the contact of a mail drawn at random
    n0 = (total - size) / (contacts - 1)
    between = (n * (rate - (s.sum(axis=-1) / total)[..., None]) ** 2).sum(axis=-1) / (contacts - 1)
    within = (s * (1.0 - rate)).sum(axis=-1) / np.maximum(total - contacts, 1.0)
    spread = between + (n0 - 1) * within
    measurable = (spread > 0) & (total > contacts)
    correlation = np.where(measurable, (between - within) / np.where(measurable, spread, 1.0), 0.0)
    return np.asarray(1.0 + (size - 1.0) * np.maximum(correlation, 0.0), dtype=np.float64)
