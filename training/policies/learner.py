"""What every learning policy shares: late answers, discounts, the wait for evidence, burn-in and limited change."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.policies.base import Allocation, Policy, mix_floor
from training.policies.statistics import FloatArray, IntArray
from training.policies.waves import DelayCdf


@dataclass(frozen=True)
class Learner(Policy):
    """Evidence of each arm as all learning policies weigh it, and the limits that all keep.

    Parameters
    ----------
    minimum_successes : float
        Successes per arm, on average, from which on the split may leave the uniform one. Not discounted: what was
        learned may fade, but silence does not send the split back.
    prior_successes : float, above 0
        Weight of the prior, in successes, at the mean of all arms.
    wave_concentration : float, above 0
        See ``training.policies.waves.fit_waves``; 10 allows base rates to differ by a third between waves.
    delay : DelayCdf
    half_life_days : float, above 0, optional
        Age at which a trial counts half; None counts all alike. Applied when the counts are read, so what is stored
        stays whole numbers.
    minimum_per_arm : float
        Trials (answers due, not discounted) up to which an arm keeps the uniform share: a new arm's burn-in. An arm
        that was shown enough stays out of it, however little it is shown since.
    maximum_change : float, in (0, 1], optional
        Most that an arm's probability may move from one snapshot to the next.
    design_effect : float, at or above 1
        Variance of an arm's successes over that of independent trials. Where contacts keep their arm over many mails
        (sticky), see ``training.policies.waves.design_effect``; the evidence is divided by it.
    """

    minimum_successes: float = 20.0
    prior_successes: float = 1.0
    wave_concentration: float = 10.0
    delay: DelayCdf = field(default_factory=DelayCdf)
    half_life_days: float | None = None
    minimum_per_arm: float = 0.0
    maximum_change: float | None = None
    design_effect: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.delay, dict):
            object.__setattr__(self, "delay", DelayCdf(**self.delay))
        for name in ("prior_successes", "wave_concentration", "half_life_days"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} {value} must be above 0 and finite")
        for name in ("minimum_successes", "minimum_per_arm"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ValueError(f"{name} {getattr(self, name)} must be 0 or more and finite")
        if self.maximum_change is not None and not 0 < self.maximum_change <= 1:
            raise ValueError(f"maximum_change {self.maximum_change} is not in (0, 1]; leave it out for no limit")
        if not 1 <= self.design_effect < np.inf:
            raise ValueError(
                f"design_effect {self.design_effect} must be 1 or more and finite; 1 is independent trials"
            )

    def weights(self, age_hours: FloatArray) -> FloatArray:
        """Weight of a trial of that age: ``2 ** (-age / half_life)`` over the design effect, any shape."""
        if self.half_life_days is None:
            return np.full(np.shape(age_hours), 1.0 / self.design_effect)
        return np.asarray(np.exp2(-age_hours / (24.0 * self.half_life_days)) / self.design_effect, dtype=np.float64)

    def exposure(self, trials: IntArray, age_hours: FloatArray) -> FloatArray:
        """Effective trials: those whose answer is due by their age, discounted; any shape."""
        return np.asarray(trials * self.delay(age_hours) * self.weights(age_hours), dtype=np.float64)

    def due(self, trials: IntArray, age_hours: FloatArray) -> FloatArray:
        """Trials whose answer is due by their age, over the design effect, not discounted; any shape."""
        return np.asarray(trials * self.delay(age_hours) / self.design_effect, dtype=np.float64)

    def answered(self, successes: IntArray) -> FloatArray:
        """Successes over the design effect, not discounted; any shape."""
        return np.asarray(successes / self.design_effect, dtype=np.float64)

    def spread(
        self, best: FloatArray, due_trials: FloatArray, successes: FloatArray, floor: float | FloatArray
    ) -> FloatArray:
        """Arm probabilities from the shares that the evidence alone would give, shape (..., n_arms).

        Parameters
        ----------
        best : ndarray of float64, shape (..., n_arms)
        due_trials : ndarray of float64, shape (..., n_arms)
            See ``due``.
        successes : ndarray of float64, shape (...,)
            Of all arms; see ``answered``.
        floor : float, or ndarray of float64 of shape (..., 1)
        """
        n_arms = best.shape[-1]
        enough = successes >= self.minimum_successes * n_arms
        pmf = mix_floor(np.where(enough[..., None], best, 1.0 / n_arms), floor)
        return burn_in(pmf, due_trials < self.minimum_per_arm, floor)

    def limited(self, arms: tuple[str, ...], pmf: FloatArray, previous: FloatArray | None, floor: float) -> FloatArray:
        """``pmf``, moved from ``previous`` (NaN for a new arm) by at most ``maximum_change``."""
        if self.maximum_change is None or previous is None:
            return pmf
        return limit_change(pmf, previous, floor, self.maximum_change)

    def parameters(self) -> dict[str, Any]:
        """Every parameter as JSON values."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"policy": self.name, **values, "delay": self.delay.parameters()}


def previous_pmf(previous: Allocation | None, arms: tuple[str, ...], segment: str | None = None) -> FloatArray | None:
    """What ``previous`` gave each of ``arms`` (in ``segment``), NaN for an arm that it does not know."""
    if previous is None:
        return None
    pmf = previous.pmf if segment is None else previous.by_segment.get(segment, previous.pmf)
    given = dict(zip(previous.arms, pmf.tolist(), strict=True))
    return np.array([given.get(arm, np.nan) for arm in arms])


def burn_in(pmf: FloatArray, is_new: NDArray[np.bool_], floor: float | FloatArray) -> FloatArray:
    """The uniform share for arms that are new; the others share the rest as before, none below ``floor``.

    Examples
    --------
    >>> burn_in(np.array([0.75, 0.15, 0.1]), np.array([False, False, True]), 0.05).round(4).tolist()
    [0.5458, 0.1208, 0.3333]
    """
    n_arms = pmf.shape[-1]
    if not np.any(is_new):
        return pmf
    above = np.where(is_new, 0.0, pmf - floor)
    n_new = is_new.sum(axis=-1, keepdims=True)
    free = 1.0 - n_new / n_arms - (n_arms - n_new) * floor
    total = above.sum(axis=-1, keepdims=True)
    even = np.where(is_new, 0.0, 1.0 / np.maximum(n_arms - n_new, 1))
    share = np.where(total > 0, above / np.where(total > 0, total, 1.0), even)
    return np.asarray(np.where(is_new, 1.0 / n_arms, floor + np.maximum(free, 0.0) * share), dtype=np.float64)


def limit_change(pmf: FloatArray, previous: FloatArray, floor: float, maximum_change: float) -> FloatArray:
    """``pmf`` reached from ``previous`` as far as no arm's probability moves by more than ``maximum_change``.

    All arms go the same part of their way, so the sum stays one and the floor is kept. Where arms come or go the
    others are first scaled to what the new arms leave, and lifted to the floor: that part of the move is not limited.

    Parameters
    ----------
    pmf, previous : ndarray of float64, shape (n_arms,)
        ``previous`` is NaN for arms that were not there.

    Examples
    --------
    >>> limit_change(np.array([0.9, 0.1]), np.array([0.5, 0.5]), 0.1, 0.2).round(4).tolist()
    [0.7, 0.3]
    """
    known = ~np.isnan(previous)
    held = previous[known].sum()
    if held <= 0:
        return pmf
    start = pmf.copy()
    start[known] = previous[known] / held * (1.0 - pmf[~known].sum())
    even = 1.0 / len(pmf)
    short = start < floor
    if np.any(short):
        lift = min(1.0, float(np.max((floor - start[short]) / (even - start[short]))))
        start = (1.0 - lift) * start + lift * even
    way = float(np.max(np.abs(pmf - start)))
    return np.asarray(start + min(1.0, maximum_change / way if way > 0 else 1.0) * (pmf - start), dtype=np.float64)
