"""What an experiment has shown: intervals that hold whenever one looks and however the arms were allocated.

The unit of input is the batch: decisions drawn from one pmf. Within a batch the pmf is fixed, so sums of the rewards
suffice. Every estimate is an average of augmented inverse-propensity scores, and every interval is a time-uniform
confidence sequence over the batches in the order in which they were drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from training.batches import Batches
from training.policies.statistics import FloatArray

#: An arm needs this many successes before its interval is told: below, the normal approximation fails at rare rewards.
NEEDED_SUCCESSES = 30.0
#: A figure is refused below this effective sample size, or where an arm had less than the least propensity.
NEEDED_SAMPLE = 100.0
LEAST_PROPENSITY = 0.005

#: Precision that a learning allocation gathers, as a share of an even split's: what the sequences are tuned for.
LEARNING_PRECISION = 0.4

#: ``equal``: a batch counts by its units; ``precision``: by its comparison's precision, had all arms one variance.
Weights = Literal["precision", "equal"]


# ----------------------------------------------------------------------------------------------- confidence sequences


@dataclass(frozen=True)
class Plan:
    """What was expected before the start: it sets where the confidence sequences are narrowest, never what they hold.

    Parameters
    ----------
    units : int
        Planned units of all arms.
    variance : float
        Expected variance of a unit's reward; ``for_rate`` gives that of a rate.
    """

    units: int
    variance: float

    def __post_init__(self) -> None:
        if self.units < 1 or not 0 < self.variance < np.inf:
            raise ValueError(
                f"a plan of {self.units} units with variance {self.variance} is none; give units ≥ 1 and a variance "
                "above 0, both fixed before the start"
            )

    @classmethod
    def for_rate(cls, units: int, rate: float) -> Plan:
        """The plan for a reward of 0 or 1."""
        if not 0 < rate < 1:
            raise ValueError(f"a rate of {rate} has no variance; give the expected rate, above 0 and below 1")
        return cls(units, rate * (1 - rate))


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval, or why there is none."""

    estimate: float | None
    lower: float | None
    upper: float | None
    alpha: float
    #: Why a figure is refused or too early; None when all stand.
    why: str | None = None

    @property
    def is_positive(self) -> bool:
        """Whether the whole interval lies above zero."""
        return self.lower is not None and self.lower > 0

    @property
    def is_negative(self) -> bool:
        """Whether the whole interval lies below zero."""
        return self.upper is not None and self.upper < 0


@dataclass(frozen=True)
class ConfidenceSequence:
    """An estimate and its interval after each batch: all of them hold at once with probability 1 - alpha.

    Attributes
    ----------
    estimate, lower, upper : ndarray of float64, shape (..., n_batches)
        The interval is infinite until every side has ``needed`` successes; the estimate is NaN before the first unit.
    units : ndarray of float64, shape (..., n_batches)
        Units so far that the estimate is from.
    successes : ndarray of float64, shape (..., n_batches)
        Effective successes so far of the side that has fewest.
    sides : tuple of str
        Arms that the estimate is of.
    """

    estimate: FloatArray
    lower: FloatArray
    upper: FloatArray
    units: FloatArray
    successes: FloatArray
    #: Standard error of the estimate, for a single look.
    error: FloatArray
    sides: tuple[str, ...]
    alpha: float
    needed: float = NEEDED_SUCCESSES

    def excludes(self, value: ArrayLike) -> NDArray[np.bool_]:
        """Looks at which the interval leaves ``value`` (broadcast over the looks) out, shape (..., n_batches)."""
        at = np.asarray(value, dtype=np.float64)
        return np.asarray((self.lower > at) | (self.upper < at), dtype=np.bool_)

    @property
    def last(self) -> Interval:
        """After the last batch (without leading axes)."""
        if self.estimate.size == 0 or not np.isfinite(self.estimate[-1]):
            return Interval(None, None, None, self.alpha, "no matured units yet")
        estimate, successes = float(self.estimate[-1]), float(self.successes[-1])
        if successes < self.needed:
            return Interval(estimate, None, None, self.alpha, too_early(successes, self.needed))
        return Interval(estimate, float(self.lower[-1]), float(self.upper[-1]), self.alpha)

    def rows(self) -> list[dict[str, float | None]]:
        """One row a look for a plot, None where there is no figure (without leading axes)."""
        return [
            {"units": float(units), "estimate": _finite(estimate), "lower": _finite(lower), "upper": _finite(upper)}
            for units, estimate, lower, upper in zip(self.units, self.estimate, self.lower, self.upper, strict=True)
        ]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def too_early(successes: float, needed: float = NEEDED_SUCCESSES) -> str:
    """What to say below the gate.

    Examples
    --------
    >>> too_early(12.0)
    'too early: 12 of 30 successes'
    """
    return f"too early: {int(successes)} of {needed:g} successes"


def mixture_rho(variance: float, alpha: float) -> float:
    """Parameter of the boundary that makes it narrowest once the variance sum has come to ``variance``.

    References
    ----------
    Howard, Ramdas, McAuliffe, Sekhon (2021), "Time-uniform, nonparametric, nonasymptotic confidence sequences",
    section 3.2 (approximation of the Lambert function).
    """
    if not (0 < alpha < 1 and 0 < variance < np.inf):
        raise ValueError(f"alpha {alpha} and variance {variance}: give alpha between 0 and 1, variance above 0")
    c = 2 * np.log(1 / alpha)
    return float(variance / (c + np.log1p(c)))


def boundary(variance: ArrayLike, rho: float, alpha: float) -> FloatArray:
    """How far a sum of mean zero strays from zero, ever, with probability ``alpha``.

    ``sqrt((V + rho) ln((V + rho) / (rho alpha**2)))`` with V the sum's variance so far: the two-sided normal mixture.
    With an estimated variance it holds asymptotically, at all times at once.

    Parameters
    ----------
    variance : array-like of float
        V so far.

    References
    ----------
    Robbins (1970), "Statistical methods related to the law of the iterated logarithm". Howard, Ramdas, McAuliffe,
    Sekhon (2021), equation 14. Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas (2024), "Time-uniform central limit theory
    and asymptotic confidence sequences".

    Examples
    --------
    >>> float(boundary(100.0, mixture_rho(100.0, 0.05), 0.05).round(2))
    30.35
    """
    total = np.asarray(variance, dtype=np.float64) + rho
    return np.asarray(np.sqrt(total * np.log(total / (rho * alpha**2))), dtype=np.float64)


def arm_mean(
    batches: Batches, arm: str, plan: Plan, *, alpha: float = 0.05, weights: Weights = "precision"
) -> ConfidenceSequence:
    """Mean reward of ``arm`` over the batches that it was open to; the interval is this arm's alone."""
    k = batches.index(arm)
    coefficients = np.zeros(len(batches.arms))
    coefficients[k] = 1.0
    pmf = batches.pmf[..., k]
    weight = _weights(batches, weights, pmf, pmf > 0)
    n_arms = len(batches.arms)
    per_unit = plan.variance * (LEARNING_PRECISION / n_arms if weights == "precision" else n_arms)
    return _linear(batches, coefficients, weight, plan.units * per_unit, alpha, [k])


def difference(
    batches: Batches, arm: str, control: str, plan: Plan, *, alpha: float = 0.05, weights: Weights = "precision"
) -> ConfidenceSequence:
    """Mean reward of ``arm`` less that of ``control``, over the batches that both were open to.

    A unit's score for arm k is ``m_k + 1{drawn} (y - m_k) / p_k``, unbiased for the arm's mean whatever the
    allocation learned from the batches before. Scores are averaged with weights that are known before the batch:
    ``equal`` gives the average effect over the units; ``precision``, ``1 / (1/p_arm + 1/p_control)``, is the inverse
    of the score's variance when both arms have one variance, bounds every unit's weight by 1, and gives an average
    effect in which batches of a lopsided split count less. The variance is the greater of the scores' own and the
    one foreseen from rates, because scores of rare rewards hide their variance until a rare unit succeeds.

    References
    ----------
    Robins, Rotnitzky, Zhao (1994), "Estimation of regression coefficients when some regressors are not always
    observed". Hadad, Hirshberg, Zhan, Wager, Athey (2021), "Confidence intervals for policy evaluation in adaptive
    experiments". Waudby-Smith, Wu, Ramdas, Karampatziakis, Mineiro (2024), "Anytime-valid off-policy inference for
    contextual bandits". Crump, Hotz, Imbens, Mitnik (2009), "Dealing with limited overlap in estimation of average
    treatment effects" (the weights).
    """
    k, c = batches.index(arm), batches.index(control)
    if k == c:
        raise ValueError(f"arm {arm!r} cannot be compared with itself; name another control")
    coefficients = np.zeros(len(batches.arms))
    coefficients[[k, c]] = 1.0, -1.0
    weight, expected = _pair_weights(batches, k, c, plan, weights)
    return _linear(batches, coefficients, weight, expected, alpha, [k, c])


def _pair_weights(batches: Batches, k: int, c: int, plan: Plan, weights: Weights) -> tuple[FloatArray, float]:
    """Weights of a comparison, and the variance sum that its plan expects."""
    p_arm, p_control = batches.pmf[..., k], batches.pmf[..., c]
    both = (p_arm > 0) & (p_control > 0)
    overlap = p_arm * p_control / np.where(both, p_arm + p_control, 1.0)
    n_arms = len(batches.arms)
    per_unit = plan.variance * (LEARNING_PRECISION / (2 * n_arms) if weights == "precision" else 2 * n_arms)
    return _weights(batches, weights, overlap, both), plan.units * per_unit


def _weights(batches: Batches, weights: Weights, precision: FloatArray, is_open: NDArray[np.bool_]) -> FloatArray:
    if weights not in ("precision", "equal"):
        raise ValueError(f"weights {weights!r} are unknown; choose precision or equal")
    if weights == "precision" and batches.inverse is not None:
        raise ValueError("propensities differ within batches, so precision weights are not known; choose equal ones")
    return np.where(is_open, precision if weights == "precision" else 1.0, 0.0)


@dataclass(frozen=True)
class _Residuals:
    """Sums of e and e**2 over an arm's units, plain and over p and p**2, with e the reward less the model's mean."""

    plain: FloatArray
    squares: FloatArray
    over_p: FloatArray
    squares_over_p: FloatArray
    squares_over_p2: FloatArray
    #: Expected sum of ``1 / p**2`` over the arm's units.
    precision: FloatArray


def _residuals(batches: Batches) -> _Residuals:
    m, n = batches.model, batches.trials
    plain = batches.sums - n * m
    squares = np.maximum(batches.squares - 2 * m * batches.sums + n * m**2, 0.0)
    if batches.inverse is None:
        p = np.where(batches.pmf > 0, batches.pmf, 1.0)
        precision = np.where(batches.pmf > 0, batches.n_units[..., None] / p, 0.0)
        return _Residuals(plain, squares, plain / p, squares / p, squares / p**2, precision)
    of = batches.inverse
    return _Residuals(
        plain,
        squares,
        of.sums - m * of.weights,
        np.maximum(of.squares - 2 * m * of.sums + m**2 * of.weights, 0.0),
        np.maximum(of.squared_squares - 2 * m * of.squared_sums + m**2 * of.squared_weights, 0.0),
        of.squared_weights,
    )


def _linear(
    batches: Batches, coefficients: FloatArray, weight: FloatArray, expected: float, alpha: float, sides: Sequence[int]
) -> ConfidenceSequence:
    """Confidence sequence of ``sum_k coefficients_k * mean_k``."""
    of = _residuals(batches)
    level = batches.model @ coefficients
    slope = (of.over_p * coefficients).sum(axis=-1)
    units = batches.n_units
    return _sequence(
        batches,
        score_sums=units * level + slope,
        score_squares=units * level**2 + 2 * level * slope + (of.squares_over_p2 * coefficients**2).sum(axis=-1),
        foreseen=(of.precision * batches.variance * coefficients**2).sum(axis=-1),
        weight=weight,
        expected=expected,
        alpha=alpha,
        sides=sides,
    )


def _sequence(
    batches: Batches,
    *,
    score_sums: FloatArray,
    score_squares: FloatArray,
    foreseen: FloatArray,
    weight: FloatArray,
    expected: float,
    alpha: float,
    sides: Sequence[int],
) -> ConfidenceSequence:
    weighted_units = np.cumsum(weight * batches.n_units, axis=-1)
    has = weighted_units > 0
    total = np.where(has, weighted_units, 1.0)
    estimate = np.cumsum(weight * score_sums, axis=-1) / total
    squared = weight**2
    variance = np.maximum(
        np.cumsum(squared * score_squares, axis=-1)
        - 2 * estimate * np.cumsum(squared * score_sums, axis=-1)
        + estimate**2 * np.cumsum(squared * batches.n_units, axis=-1),
        np.cumsum(squared * foreseen, axis=-1),
    )
    variance = np.maximum(variance, 0.0)
    half = boundary(variance, mixture_rho(expected, alpha), alpha) / total
    counted = weight > 0
    successes = _effective_successes(batches, counted)[..., list(sides)].min(axis=-1)
    is_told = has & (successes >= NEEDED_SUCCESSES)
    return ConfidenceSequence(
        estimate=np.where(has, estimate, np.nan),
        lower=np.where(is_told, estimate - half, -np.inf),
        upper=np.where(is_told, estimate + half, np.inf),
        units=np.cumsum(np.where(counted, batches.n_units, 0), axis=-1).astype(np.float64),
        successes=successes,
        error=np.sqrt(variance) / total,
        sides=tuple(batches.arms[side] for side in sides),
        alpha=alpha,
    )


def _effective_successes(batches: Batches, counted: NDArray[np.bool_]) -> FloatArray:
    """``(sum y)**2 / sum y**2`` so far: the successes of a reward of 0 or 1, fewer where a few rewards tower."""
    sums = np.cumsum(np.where(counted[..., None], batches.sums, 0.0), axis=-2)
    squares = np.cumsum(np.where(counted[..., None], batches.squares, 0.0), axis=-2)
    return np.asarray(sums**2 / np.where(squares > 0, squares, 1.0), dtype=np.float64)


# ------------------------------------------------------------------------------------------------------- comparisons


@dataclass(frozen=True)
class Comparison:
    """One arm against the control: what can be said, at the level that holds for all such comparisons together."""

    arm: str
    control: str
    #: Weighted by precision where propensities allow it: what the verdict is from.
    difference: ConfidenceSequence
    #: The average effect over all units.
    average: ConfidenceSequence
    #: Of the last look; refused with its reason.
    interval: Interval
    #: ``arm / control - 1`` at the last look.
    lift: Interval
    #: too_early | refused | better | worse | undecided
    verdict: str
    sentence: str


def compare(batches: Batches, control: str, plan: Plan, *, alpha: float = 0.05) -> tuple[Comparison, ...]:
    """Every other arm against the control, each at ``alpha / (n_arms - 1)`` (without leading axes)."""
    level = alpha / (len(batches.arms) - 1)
    weights: Weights = "equal" if batches.inverse is not None else "precision"
    support = {of.arm: of for of in overlap(batches)}
    batches.index(control)
    made = []
    for arm in batches.arms:
        if arm == control:
            continue
        sequence = difference(batches, arm, control, plan, alpha=level, weights=weights)
        average = difference(batches, arm, control, plan, alpha=level, weights="equal")
        refused = support[arm].why or support[control].why
        if refused is not None:
            interval = lift = Interval(None, None, None, level, refused)
        else:
            interval = sequence.last
            lift = _lift(batches, arm, control, plan, level, weights) if interval.why is None else interval
            if interval.why is not None:
                lift = Interval(None, None, None, level, interval.why)
        verdict, sentence = _verdict(arm, control, interval, lift, refused is not None)
        made.append(Comparison(arm, control, sequence, average, interval, lift, verdict, sentence))
    return tuple(made)


def _verdict(arm: str, control: str, interval: Interval, lift: Interval, is_refused: bool) -> tuple[str, str]:
    if interval.why is not None:
        return ("refused" if is_refused else "too_early"), f"{arm} against {control}: {interval.why}"
    low, high = lift.lower, lift.upper
    if interval.is_positive and low is not None:
        return "better", f"{arm} is better than {control} by {_span(low, high)}"
    if interval.is_negative and high is not None:
        return "worse", f"{arm} is worse than {control} by {_span(-high, None if low is None else -low)}"
    low_text = "an unknown share" if low is None else _percent(-low)
    high_text = "an unknown share" if high is None else _percent(high)
    return "undecided", (f"undecided: {arm} may be anything from {low_text} worse to {high_text} better than {control}")


def _span(low: float, high: float | None) -> str:
    if high is None:
        return f"at least {_percent(low)}"
    same = _percent(low) == _percent(high)
    return f"{100 * low:.1f} to {100 * high:.1f} %" if same else f"{100 * low:.0f} to {_percent(high)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def relative_lift(batches: Batches, arm: str, control: str, plan: Plan, *, alpha: float = 0.05) -> Interval:
    """``arm / control - 1`` with its interval, at the last look (without leading axes).

    The interval holds every ratio r for which zero lies in the confidence sequence of ``mean_arm - r mean_control``.
    Its bounds lie above zero exactly when the difference's do. A bound is None where the control's mean cannot be
    told from zero.

    References
    ----------
    Fieller (1954), "Some problems in interval estimation".
    """
    return _lift(batches, arm, control, plan, alpha, "equal" if batches.inverse is not None else "precision")


def _lift(batches: Batches, arm: str, control: str, plan: Plan, alpha: float, weights: Weights) -> Interval:
    k, c = batches.index(arm), batches.index(control)
    weight, expected = _pair_weights(batches, k, c, plan, weights)

    def sequence_at(ratio: float) -> Interval:
        coefficients = np.zeros(len(batches.arms))
        coefficients[[k, c]] = 1.0, -ratio
        return _linear(batches, coefficients, weight, expected, alpha, [k, c]).last

    own = sequence_at(0.0)
    total = sequence_at(-1.0)
    if own.estimate is None or total.estimate is None or own.why is not None:
        return Interval(None, None, None, alpha, own.why or "no matured units yet")
    base = total.estimate - own.estimate
    if base <= 0:
        return Interval(None, None, None, alpha, f"the control's mean {base:.4g} is no base for a lift")
    centre = own.estimate / base

    def holds(ratio: float) -> bool:
        at = sequence_at(ratio)
        return at.lower is None or at.upper is None or at.lower <= 0 <= at.upper

    def bound(direction: float) -> float | None:
        inside, step = centre, max(abs(centre), 1.0) / 64
        while holds(inside + direction * step):
            inside, step = inside + direction * step, step * 2
            if step > 1e4:
                return None
        outside = inside + direction * step
        for _ in range(40):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if holds(middle) else (inside, middle)
        return inside - 1

    return Interval(centre - 1, bound(-1.0), bound(1.0), alpha)


def against_uniform(batches: Batches, plan: Plan, *, alpha: float = 0.05) -> ConfidenceSequence:
    """Reward a unit of the allocation as it was, less that of an even split over the same open arms.

    The even split's value is the mean of the open arms' scores on the same rows. In the reward's unit: times the
    units it is what the policy has earned.
    """
    is_open = batches.pmf > 0
    share = is_open / is_open.sum(axis=-1, keepdims=True)
    of, n, m = _residuals(batches), batches.trials, batches.model
    # score = y - sum_j share_j m_j - share_a (y - m_a) / p_a, with a the drawn arm
    level = m - (share * m).sum(axis=-1, keepdims=True)
    slope = of.plain - share * of.over_p
    curve = of.squares - 2 * share * of.squares_over_p + share**2 * of.squares_over_p2
    p = np.where(is_open, batches.pmf, 1.0)
    spread = batches.n_units[..., None] * batches.variance * (batches.pmf - share) ** 2 / p
    return _sequence(
        batches,
        score_sums=(n * level + slope).sum(axis=-1),
        score_squares=(n * level**2 + 2 * level * slope + curve).sum(axis=-1),
        foreseen=np.where(is_open, spread, 0.0).sum(axis=-1),
        weight=np.ones(batches.pmf.shape[:-1]),
        expected=plan.units * plan.variance,
        alpha=alpha,
        sides=[k for k in range(len(batches.arms)) if is_open[..., k].any()] or [0],
    )


def against_holdout(
    share: float,
    trials: ArrayLike,
    sums: ArrayLike,
    squares: ArrayLike,
    plan: Plan,
    *,
    alpha: float = 0.05,
    waves: ArrayLike | None = None,
) -> ConfidenceSequence:
    """Reward a unit of those mailed, less that of those held out by a draw with probability ``share``.

    Only rewards that need no mail compare (conversions, revenue). Where the same people are held out of many mails,
    the unit is the person: give sums and squares of their totals.

    Parameters
    ----------
    share : float, in (0, 1)
        Probability of being held out.
    trials, sums, squares : array-like, shape (..., n_batches, 2)
        Held out first, mailed second.
    """
    if not 0 < share < 1:
        raise ValueError(f"a holdout share of {share} holds nobody out or everybody; give one above 0 and below 1")
    count = np.asarray(trials, dtype=np.int64)
    pmf = np.broadcast_to([share, 1 - share], count.shape)
    batches = Batches.of(("held_out", "mailed"), pmf, count, sums, squares, waves=waves)
    weight = np.full(count.shape[:-1], share * (1 - share))
    expected = plan.units * plan.variance * share * (1 - share)
    return _linear(batches, np.array([-1.0, 1.0]), weight, expected, alpha, [0, 1])


# ------------------------------------------------------------------------------------- what the figures rest on


@dataclass(frozen=True)
class Overlap:
    """How much of an arm was seen, for estimates by weighting."""

    arm: str
    effective_sample: float
    maximum_weight: float
    least_propensity: float
    #: Why figures of the arm are refused; None when they stand.
    why: str | None


def overlap(batches: Batches) -> tuple[Overlap, ...]:
    """Effective sample size, greatest weight and least propensity of each arm (without leading axes).

    Where propensities differ within batches all three are of the logged ones; the mean of a batch hides the least.

    References
    ----------
    Kish (1965), "Survey sampling": ``(sum w)**2 / sum w**2``.
    """
    made = []
    for k, arm in enumerate(batches.arms):
        pmf, n = batches.pmf[..., k], batches.trials[..., k]
        is_open = (pmf > 0) & (batches.n_units > 0)
        w = np.where(is_open, 1 / np.where(is_open, pmf, 1.0), 0.0)
        first, second = (n * w).sum(), (n * w**2).sum()
        if batches.inverse is not None:
            first, second = batches.inverse.weights[..., k].sum(), batches.inverse.squared_weights[..., k].sum()
        effective = float(first**2 / second) if second > 0 else 0.0
        least = float(pmf[is_open].min()) if is_open.any() else 0.0
        greatest = float(w[n > 0].max()) if (n > 0).any() else 0.0
        is_known = True
        if batches.inverse is not None:
            is_known = bool(np.isfinite(batches.inverse.least[k]))
            least = float(batches.inverse.least[k]) if is_known else 0.0
            greatest = 1 / least if is_known else 0.0
        why = None
        if is_known and least < LEAST_PROPENSITY:
            why = f"refused: {arm} had a propensity of {least:.2g}, below {LEAST_PROPENSITY}; raise its floor"
        elif effective < NEEDED_SAMPLE:
            why = f"too early: effective sample of {arm} is {effective:.0f}, {NEEDED_SAMPLE:.0f} needed"
        made.append(Overlap(arm, effective, greatest, least, why))
    return tuple(made)


# ---------------------------------------------------------------------------------------------------- rare outcomes


def rare_rate(trials: ArrayLike, events: ArrayLike, *, alpha: float = 0.05) -> tuple[FloatArray, FloatArray]:
    """Lower and upper bound of a rare rate after each batch: exact at any count, whenever one looks.

    For outcomes of one or two in a thousand (unsubscribes) on the uniform slice, where no normal approximation holds.
    The capital of a bettor against rate p who mixes all bets by Beta(1/2, 1/2) is
    ``B(s + 1/2, f + 1/2) / B(1/2, 1/2) / (p**s (1 - p)**f)`` after s events and f others; rates against which it
    reached ``1 / alpha`` are out. It asks for one rate over the batches given.

    Parameters
    ----------
    trials, events : array-like of int, shape (..., n_batches)

    Returns
    -------
    tuple of two ndarrays of float64, shape (..., n_batches)

    References
    ----------
    Waudby-Smith, Ramdas (2024), "Estimating means of bounded random variables by betting". Ville (1939), "Étude
    critique de la notion de collectif". Robbins (1970), for the mixture.

    Examples
    --------
    >>> lower, upper = rare_rate([10_000], [20])
    >>> round(float(lower[0]), 5), round(float(upper[0]), 5)
    (0.00071, 0.00432)
    """
    n = np.cumsum(np.asarray(trials, dtype=np.float64), axis=-1)
    s = np.cumsum(np.asarray(events, dtype=np.float64), axis=-1)
    f = n - s
    if np.any(f < 0) or np.any(s < 0):
        raise ValueError("more events than trials, or fewer than none; count at most one event a trial")
    mixed = special.betaln(s + 0.5, f + 0.5) - special.betaln(0.5, 0.5)
    centre = s / np.maximum(n, 1.0)

    def edge(outer: float) -> FloatArray:
        inside, outside = centre, np.full_like(centre, outer)
        for _ in range(60):
            middle = (inside + outside) / 2
            log_capital = mixed - special.xlogy(s, middle) - special.xlog1py(f, -middle)
            is_in = log_capital < -np.log(alpha)
            inside, outside = np.where(is_in, middle, inside), np.where(is_in, outside, middle)
        return np.asarray(inside, dtype=np.float64)

    return np.maximum.accumulate(edge(0.0), axis=-1), np.minimum.accumulate(edge(1.0), axis=-1)
