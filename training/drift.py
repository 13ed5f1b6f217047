"""Whether an arm's rate has changed, and how much sooner the learner should then forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from training.policies.statistics import ArmStatistics, FloatArray, SegmentStatistics
from training.policies.waves import DelayCdf, fit_waves

#: What happened before a change counts this much once the half-life is shortened to it.
WEIGHT_OF_THE_PAST = 0.25


@dataclass(frozen=True)
class DriftAlarm:
    """Changes found in one arm's residuals.

    Attributes
    ----------
    arm : str
    alarms : tuple of int
        Positions in the series, ascending, at which a change was noticed.
    changed_at : int or None
        Where the present regime begins, by the last alarm: a position in the series.
    """

    arm: str
    alarms: tuple[int, ...]
    changed_at: int | None


def arm_residuals(
    statistics: ArmStatistics | SegmentStatistics, *, delay: DelayCdf, wave_concentration: float = 10.0
) -> FloatArray:
    """What each arm earned in each wave beyond what it earns beside the others over all waves, shape (n_arms, n_waves).

    Standardised (Pearson): successes less those expected at the arm's effect and the wave's level, over the square
    root of the latter's binomial variance. Zero where nothing was expected. Base rates cancel: a good hour is no drift.

    Of segments, every arm's effect in a segment and every (segment, wave)'s level are taken out before a wave's
    segments are added up: an arm that comes to be shown to eager segments, or to those that like it, is no drift.

    Parameters
    ----------
    statistics : ArmStatistics or SegmentStatistics
    delay : DelayCdf
    wave_concentration : float
        See ``fit_waves``.
    """
    table = _by_segment(statistics)
    exposure = table.trials * delay(table.age_hours)
    fit = fit_waves(exposure, table.successes, wave_concentration)
    by_arm = table.successes.sum(axis=-1)
    rate = by_arm / np.where(fit.effective_trials > 0, fit.effective_trials, 1.0)
    expected_rate = np.clip(rate[:, :, None] * fit.level[:, None, :], 0.0, 1.0)
    variance = (exposure * expected_rate * (1.0 - expected_rate)).sum(axis=0)
    surplus = (table.successes - exposure * expected_rate).sum(axis=0)
    known = variance > 0
    return np.asarray(np.where(known, surplus / np.sqrt(np.where(known, variance, 1.0)), 0.0), dtype=np.float64)


def drift_alarm(residuals: ArrayLike, *, arm: str = "", delta: float = 0.002) -> DriftAlarm:
    """Changes of the mean of a series of standardised residuals, by ADWIN.

    Parameters
    ----------
    residuals : array-like of float, shape (n,)
        In order of time, one a wave or one a trial.
    arm : str
        For the record.
    delta : float, in (0, 1)
        ADWIN's bound on the probability of a false alarm at one look.

    Raises
    ------
    ValueError
        If a residual is not finite, or ``delta`` is no probability.

    References
    ----------
    Bifet, Gavaldà (2007), "Learning from time-changing data with adaptive windowing".
    """
    series = np.asarray(residuals, dtype=np.float64)
    if series.ndim != 1 or not np.all(np.isfinite(series)):
        raise ValueError(f"residuals of shape {series.shape} must be one finite series; leave out waves without trials")
    if not 0 < delta < 1:
        raise ValueError(f"delta {delta} is not between 0 and 1; 0.002 is the usual choice")
    from river.drift import ADWIN  # only the worker needs it, and it is slow to import

    detector = ADWIN(delta=delta, clock=1)
    alarms: list[int] = []
    changed_at: int | None = None
    for i, value in enumerate(series.tolist()):
        detector.update(value)
        if detector.drift_detected:
            begin = alarms[-1] + 1 if alarms else 0  # River begins a new window after an alarm
            changed_at = begin + _split(series[begin : i + 1])
            alarms.append(i)
    return DriftAlarm(arm, tuple(alarms), changed_at)


def _split(series: FloatArray) -> int:
    """Where the second of two regimes begins, were there two: the split with the largest standardised gap of means.

    References
    ----------
    Hinkley (1970), "Inference about the change-point in a sequence of random variables".
    """
    n = len(series)
    if n < 2:
        return 0
    before = np.arange(1, n)
    head = np.cumsum(series)[:-1]
    gap = head / before - (series.sum() - head) / (n - before)
    return int(before[np.argmax(gap**2 * before * (n - before))])


def drift_alarms(
    statistics: ArmStatistics | SegmentStatistics, *, delay: DelayCdf, delta: float = 0.002
) -> tuple[DriftAlarm, ...]:
    """One verdict an arm on its waves, oldest first by age.

    Where a policy targets segments give ``SegmentStatistics``: counts added up over segments drift with the allocation.

    Examples
    --------
    >>> seen = ArmStatistics(("a", "b"), [[9] * 5] * 2, [[2] * 5] * 2, [[50.0, 40.0, 30.0, 20.0, 10.0]] * 2)
    >>> [alarm.alarms for alarm in drift_alarms(seen, delay=DelayCdf())]
    [(), ()]
    """
    order = _oldest_first(statistics)
    residuals = arm_residuals(statistics, delay=delay)[:, order]
    return tuple(drift_alarm(row, arm=arm, delta=delta) for arm, row in zip(statistics.arms, residuals, strict=True))


def shortened_half_life(
    statistics: ArmStatistics | SegmentStatistics,
    alarms: Sequence[DriftAlarm],
    half_life_days: float | None,
    *,
    least_days: float = 0.25,
) -> float | None:
    """The half-life under which what came before the last change counts a quarter; never longer than it was.

    Parameters
    ----------
    statistics : ArmStatistics or SegmentStatistics
        Those that the alarms are of.
    half_life_days : float or None
        The one in force.
    least_days : float
        Shorter than this the learner would forget what it has just learned.

    Examples
    --------
    A change eight days ago: half-life four days.

    >>> age = [[24.0 * day for day in range(10, 0, -1)]] * 2
    >>> seen = ArmStatistics(("a", "b"), [[90] * 10] * 2, [[20] * 10] * 2, age)
    >>> shortened_half_life(seen, [DriftAlarm("a", (6,), 2)], 30.0)
    4.0
    """
    changes = [alarm.changed_at for alarm in alarms if alarm.changed_at is not None]
    if not changes:
        return half_life_days
    age_days = _mean_age(statistics)[_oldest_first(statistics)] / 24.0
    days_ago = float(age_days[min(max(changes), len(age_days) - 1)])
    shorter = max(least_days, days_ago / float(-np.log2(WEIGHT_OF_THE_PAST)))
    return shorter if half_life_days is None else min(half_life_days, shorter)


def _by_segment(statistics: ArmStatistics | SegmentStatistics) -> SegmentStatistics:
    if isinstance(statistics, SegmentStatistics):
        return statistics
    return SegmentStatistics(
        ("",), statistics.arms, statistics.trials[None], statistics.successes[None], statistics.age_hours[None]
    )


def _mean_age(statistics: ArmStatistics | SegmentStatistics) -> FloatArray:
    """Mean age in hours of each wave's trials, shape (n_waves,)."""
    table = _by_segment(statistics)
    mails = np.maximum(table.trials.sum(axis=(0, 1)), 1)
    return np.asarray((table.trials * table.age_hours).sum(axis=(0, 1)) / mails, dtype=np.float64)


def _oldest_first(statistics: ArmStatistics | SegmentStatistics) -> list[int]:
    return [int(i) for i in np.argsort(-_mean_age(statistics), kind="stable")]
