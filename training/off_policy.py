"""What another policy would have earned on a log whose propensities are known: estimates with intervals, or a refusal.

The log says which arm each decision drew, with what probability, and what came of it. Weighting each reward by how
much more often the other policy would have drawn that arm gives an unbiased estimate of what it would have earned;
where the log hardly ever drew what the other policy draws, there is no number, and the answer says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from training.policies.base import PMF_TOLERANCE, masked
from training.policies.statistics import FloatArray, IntArray

BoolArray = NDArray[np.bool_]

#: Estimators that need the propensities only, and those that need an outcome model too.
WITHOUT_MODEL = ("ips", "snips", "clipped_ips")
WITH_MODEL = ("dm", "dr", "sndr", "switch_dr")

#: Below this effective number of decisions no value is given.
MIN_ESS = 100.0
#: A value in which a decision that was drawn with less than this counts for more than ``HEAVY_WEIGHT`` is not given.
MIN_PROPENSITY = 0.005
HEAVY_WEIGHT = 10.0
#: Clipped IPS counts no decision for more than this many; SWITCH leaves those above it to the model.
MAX_WEIGHT = 20.0
#: Draws of an arm below which nothing is said of its propensities.
MIN_DRAWS = 30
#: Weights whose mean lies further from one than both of these do not belong to the log.
MEAN_WEIGHT_Z, MEAN_WEIGHT_SLACK = 5.0, 0.05


@dataclass(frozen=True)
class LoggedDecisions:
    """A log of n decisions among n_arms arms, as arrays with one entry per decision.

    Parameters
    ----------
    arms : tuple of str, length n_arms
    arm : ndarray of int64, shape (n,)
        Index of the drawn arm.
    propensity : ndarray of float64, shape (n,), in (0, 1]
        Probability with which that arm was drawn.
    reward : ndarray of float64, shape (n,)
        What came of it once its window had passed, in any unit; 0 where nothing came.
    eligible : ndarray of bool, shape (n, n_arms), optional
        Arms that were open to the draw; all of them by default.
    contexts : ndarray of float64, shape (n, n_features), optional
        What was known of the contact; NaN is a missing value.
    segment : tuple of str or None, length n, optional
    contact_key : ndarray of int64, shape (n,), optional
        Decisions of one contact are not independent; intervals are then over contacts.
    occurred_at, reward_at : ndarray of int64, shape (n,), optional
        Microseconds since 1970 of the decision and of its reward; -1 where no reward came.
    wave : ndarray of int64, shape (n,), optional
        Decisions of one wave were drawn from one snapshot; later waves have greater numbers.

    Raises
    ------
    ValueError
        Naming the first row that cannot be and what it should be.
    """

    arms: tuple[str, ...]
    arm: IntArray
    propensity: FloatArray
    reward: FloatArray
    eligible: BoolArray | None = None
    contexts: FloatArray | None = None
    segment: tuple[str | None, ...] | None = None
    contact_key: IntArray | None = None
    occurred_at: IntArray | None = None
    reward_at: IntArray | None = None
    wave: IntArray | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arms", tuple(self.arms))
        if len(self.arms) < 2 or len(set(self.arms)) < len(self.arms):
            raise ValueError(f"arms {self.arms} must be at least two different ids")
        kinds: dict[str, Any] = {
            "propensity": np.float64, "reward": np.float64, "contexts": np.float64, "eligible": np.bool_,
        }  # fmt: skip
        n = len(self.arm)
        for one in fields(self)[1:]:
            values = getattr(self, one.name)
            if values is None:
                continue
            if one.name != "segment":
                values = np.asarray(values, dtype=kinds.get(one.name, np.int64))
                object.__setattr__(self, one.name, values)
            if len(values) != n:
                raise ValueError(f"{one.name} has {len(values)} rows and arm has {n}; give one a decision")
        if self.eligible is not None and self.eligible.shape != (n, len(self.arms)):
            raise ValueError(f"eligible has shape {self.eligible.shape}; it must be {(n, len(self.arms))}")
        if self.contexts is not None and self.contexts.ndim != 2:
            raise ValueError(f"contexts have shape {self.contexts.shape}; give them as (n, n_features)")
        _first(~((self.arm >= 0) & (self.arm < len(self.arms))), self.arm, "arm", f"0 to {len(self.arms) - 1}")
        drawable = (self.propensity > 0) & (self.propensity <= 1)
        _first(~drawable, self.propensity, "propensity", "above 0 and at most 1: what the arm was drawn with")
        _first(~np.isfinite(self.reward), self.reward, "reward", "finite; leave out what is not known yet")
        if self.eligible is not None:
            _first(~self.eligible[np.arange(n), self.arm], self.arm, "arm", "one of the eligible arms")

    def __len__(self) -> int:
        return len(self.arm)

    @property
    def n_arms(self) -> int:
        """Number of arms."""
        return len(self.arms)

    @property
    def open_arms(self) -> BoolArray:
        """Arms that were open to each draw, shape (n, n_arms)."""
        return np.ones((len(self), self.n_arms), dtype=bool) if self.eligible is None else self.eligible

    @property
    def clusters(self) -> IntArray:
        """Number of each decision's contact, from 0; each decision is its own where contacts are not told."""
        if self.contact_key is None:
            return np.arange(len(self), dtype=np.int64)
        return np.unique(self.contact_key, return_inverse=True)[1].astype(np.int64)

    @property
    def is_uniform(self) -> BoolArray:
        """Decisions whose open arms were all alike, shape (n,): the explore rows."""
        return np.abs(self.propensity * self.open_arms.sum(axis=1) - 1.0) <= PMF_TOLERANCE

    def take(self, rows: ArrayLike) -> LoggedDecisions:
        """The log of some of its rows, by mask or index."""
        index = np.arange(len(self))[np.asarray(rows)]
        chosen: dict[str, Any] = {}
        for one in fields(self)[1:]:
            values = getattr(self, one.name)
            if one.name == "segment" and values is not None:
                chosen[one.name] = tuple(values[i] for i in index)
            elif values is not None:
                chosen[one.name] = values[index]
        return replace(self, **chosen)


def _first(wrong: ArrayLike, values: NDArray[Any], name: str, limit: str) -> None:
    if np.any(wrong):
        row = int(np.argmax(wrong))
        raise ValueError(f"{name} {values[row]} of decision {row} must be {limit}")


def uniform_target(logged: LoggedDecisions) -> FloatArray:
    """Every open arm alike, shape (n, n_arms)."""
    return split_target(logged, dict.fromkeys(logged.arms, 1.0))


def arm_target(logged: LoggedDecisions, arm: str) -> FloatArray:
    """Always ``arm``, shape (n, n_arms).

    Raises
    ------
    ValueError
        If the arm is unknown or was not open to some decision; `can_draw` tells which.
    """
    return split_target(logged, {arm: 1.0})


def split_target(logged: LoggedDecisions, weights: Mapping[str, float]) -> FloatArray:
    """A fixed split, among the arms that were open to each decision, shape (n, n_arms).

    Parameters
    ----------
    weights : mapping of str to float
        A weight by arm, at or above 0; arms that are left out get 0.
    """
    return masked(np.broadcast_to(split_of(logged, weights), (len(logged), logged.n_arms)), logged.open_arms)


def split_of(logged: LoggedDecisions, weights: Mapping[str, float]) -> FloatArray:
    """The weights as a pmf over the log's arms, shape (n_arms,)."""
    unknown = sorted(set(weights) - set(logged.arms))
    if unknown:
        raise ValueError(f"there is no arm {', '.join(map(repr, unknown))}; the log has {', '.join(logged.arms)}")
    values = np.array([weights.get(arm, 0.0) for arm in logged.arms], dtype=np.float64)
    if not np.all(np.isfinite(values)) or np.any(values < 0) or not values.sum() > 0:
        raise ValueError(f"weights {dict(weights)} make no split; give numbers at or above 0, one of them above 0")
    return np.asarray(values / values.sum(), dtype=np.float64)


def can_draw(logged: LoggedDecisions, pmf: FloatArray) -> BoolArray:
    """Decisions at which an arm of the pmf was open, shape (n,); about the others the target says nothing.

    Parameters
    ----------
    pmf : ndarray of float64, shape (n_arms,) or (n, n_arms)
    """
    return np.asarray((np.where(logged.open_arms, pmf, 0.0).sum(axis=1) > 0), dtype=np.bool_)


def best_arm_target(logged: LoggedDecisions, *, folds: int = 5, seed: int = 0) -> FloatArray:
    """Always the arm that did best on *other* contacts, shape (n, n_arms).

    The arm that did best on the very decisions it is judged by owes part of its figure to luck. Here each fold of
    contacts gets the arm with the best self-normalised mean on the other folds, among those open to the decision.
    """
    fold = contact_folds(logged, folds, seed)
    weight, value = np.empty((folds, logged.n_arms)), np.empty((folds, logged.n_arms))
    for f in range(folds):
        other = fold != f
        inverse = 1.0 / logged.propensity[other]
        weight[f] = np.bincount(logged.arm[other], inverse, logged.n_arms)
        value[f] = np.bincount(logged.arm[other], inverse * logged.reward[other], logged.n_arms)
    mean = np.where(weight > 0, value / np.where(weight > 0, weight, 1.0), -np.inf)
    ranked = np.where(logged.open_arms, mean[fold], -np.inf)
    ranked = np.where(logged.open_arms & ~np.isfinite(ranked), -1e300, ranked)
    return np.eye(logged.n_arms)[ranked.argmax(axis=1)]


def contact_folds(logged: LoggedDecisions, folds: int, seed: int) -> IntArray:
    """A fold for each decision, shape (n,), the same for all decisions of a contact."""
    clusters = logged.clusters
    n_clusters = int(clusters.max(initial=-1)) + 1
    order = np.random.default_rng(seed).permutation(n_clusters)
    return np.asarray(order[clusters] % folds, dtype=np.int64)


@dataclass(frozen=True)
class Calibration:
    """Whether an arm was drawn as often as its propensities say.

    Attributes
    ----------
    opened : int
        Decisions that the arm was open to.
    inverse_sum : float
        Sum of the inverse propensities of its draws: what ``opened`` is expected to be.
    z : float, optional
        Difference in standard errors, over contacts; None below 30 draws.
    """

    arm: str
    draws: int
    opened: int
    inverse_sum: float
    z: float | None


def calibration(logged: LoggedDecisions) -> tuple[Calibration, ...]:
    """Each arm's draws against its propensities: a log that kept other probabilities than it drew from shows here.

    ``E[1{A = k} / p] = 1`` at every decision that arm k was open to, if the log's draws include it, so the inverse
    propensities of its draws add up to the number of those decisions.
    """
    clusters = logged.clusters
    told = []
    for k, arm in enumerate(logged.arms):
        opened, drawn = logged.open_arms[:, k], logged.arm == k
        excess = np.where(drawn, 1.0 / logged.propensity, 0.0) - opened
        scale = float(np.sqrt((np.bincount(clusters, excess) ** 2).sum())) if len(logged) else 0.0
        known = drawn.sum() >= MIN_DRAWS and scale > 0
        told.append(
            Calibration(
                arm, int(drawn.sum()), int(opened.sum()), float((excess + opened).sum()),
                float(excess.sum() / scale) if known else None,
            )
        )  # fmt: skip
    return tuple(told)


@dataclass(frozen=True)
class Estimate:
    """What a policy would have earned a decision, by one estimator; without a value where it was refused.

    Attributes
    ----------
    value, standard_error : float, optional
        In the reward's unit, per decision.
    interval : tuple of two floats, optional
    gain, gain_interval : optional
        The same of value minus what the log earned.
    ess : float, optional
        Effective number of decisions of the weights used (Kish 1965); None for the model alone, which uses none.
    max_weight : float, optional
    why : str, optional
        Why there is no value.
    """

    estimator: str
    value: float | None
    standard_error: float | None
    interval: tuple[float, float] | None
    gain: float | None
    gain_interval: tuple[float, float] | None
    ess: float | None
    max_weight: float | None
    why: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Estimates of one target policy's value on one log, with what they rest on.

    Attributes
    ----------
    n, n_contacts : int
    logged_value : float
        Mean reward of the log; NaN of an empty one.
    logged_standard_error : float
        Over contacts.
    ess : float
        Effective number of decisions of the full weights.
    max_weight, mean_weight, mean_weight_error : float
        Greatest weight; the mean, which is one within its error if the propensities are right and the log could draw
        whatever the target draws.
    least_propensity : float
        Of the decisions that the target could have drawn too; 1 if there are none.
    why : str, optional
        Why no estimator has a value.
    """

    n: int
    n_contacts: int
    logged_value: float
    logged_standard_error: float
    ess: float
    max_weight: float
    mean_weight: float
    mean_weight_error: float
    least_propensity: float
    level: float
    why: str | None
    estimates: tuple[Estimate, ...] = field(default_factory=tuple)

    def __getitem__(self, estimator: str) -> Estimate:
        for estimate in self.estimates:
            if estimate.estimator == estimator:
                return estimate
        known = ", ".join(estimate.estimator for estimate in self.estimates)
        raise LookupError(f"there is no estimate {estimator!r}; there are {known}")

    def table(self) -> pd.DataFrame:
        """One row an estimator."""
        rows = []
        for one in self.estimates:
            low, high = one.interval or (None, None)
            gain_low, gain_high = one.gain_interval or (None, None)
            rows.append(
                {
                    "estimator": one.estimator, "value": one.value, "standard_error": one.standard_error, "low": low,
                    "high": high, "gain": one.gain, "gain_low": gain_low, "gain_high": gain_high, "ess": one.ess,
                    "max_weight": one.max_weight,
                }
            )  # fmt: skip
        return pd.DataFrame(rows).set_index("estimator").astype(np.float64)


def effective_sample_size(weights: FloatArray) -> float:
    """``(sum w)**2 / sum w**2``: equally weighted decisions with the same variance; 0 if every weight is 0.

    References
    ----------
    Kish (1965), "Survey sampling".

    Examples
    --------
    >>> effective_sample_size(np.array([1.0, 1.0, 0.0, 2.0])).__round__(4)
    2.6667
    """
    squares = float((weights**2).sum())
    return float(weights.sum()) ** 2 / squares if squares > 0 else 0.0


def evaluate(
    logged: LoggedDecisions,
    target_probabilities: FloatArray,
    outcome_model: FloatArray | None = None,
    *,
    estimators: Sequence[str] | None = None,
    clip: float = MAX_WEIGHT,
    switch: float = MAX_WEIGHT,
    level: float = 0.95,
    bootstrap: int = 0,
    seed: int = 0,
    force: bool = False,
    min_ess: float = MIN_ESS,
    min_propensity: float = MIN_PROPENSITY,
) -> Evaluation:
    """What the target policy would have earned a decision.

    With ``w = pi(a) / p`` for the drawn arm a, ``q`` the outcome model and ``q_pi = sum_k pi(k) q(k)``:

    ============= ================================================================================================
    ips           mean of ``w r``: unbiased (Horvitz, Thompson 1952)
    snips         ``sum w r / sum w``: not moved by a constant added to all rewards (Swaminathan, Joachims 2015)
    clipped_ips   mean of ``min(w, clip) r``: less variance, too low for rewards above 0 (Ionides 2008)
    dm            mean of ``q_pi``: as good as the model, whose own error its interval does not hold
    dr            mean of ``q_pi + w (r - q(a))``: unbiased whatever the model (Dudík, Langford, Li 2011)
    sndr          ``mean of q_pi + sum w (r - q(a)) / sum w`` (Thomas, Brunskill 2016, weighted doubly robust)
    switch_dr     dr, with the model alone where ``w > switch`` (Wang, Agarwal, Dudík 2017)
    ============= ================================================================================================

    Parameters
    ----------
    target_probabilities : ndarray of float64, shape (n, n_arms)
        The target's pmf at each decision, 0 for arms that were not open; hold it fixed before looking at the log, or
        learn it from other contacts: on the decisions it was chosen by, its luck is counted as skill.
    outcome_model : ndarray of float64, shape (n, n_arms), optional
        Expected reward of each arm at each decision, from a model that has not seen the contact
        (`training.reward_models.fit_outcomes`).
    estimators : sequence of str, optional
        All that can be had by default.
    clip, switch : float, at or above 0
    level : float, in (0, 1)
        Of the intervals: normal, with standard errors over contacts, or percentiles of ``bootstrap`` draws of
        contacts if that is above 0.
    force : bool
        Give values even where they would be refused: below ``min_ess``, where a draw below ``min_propensity`` counts
        for more than ten, and where the mean weight says that propensities and draws do not belong together.

    Raises
    ------
    ValueError
        If the target is no pmf over the open arms, if an estimator is unknown or lacks its model.

    References
    ----------
    Horvitz, Thompson (1952), "A generalization of sampling without replacement from a finite universe".
    Kish (1965), "Survey sampling". Ionides (2008), "Truncated importance sampling". Dudík, Langford, Li (2011),
    "Doubly robust policy evaluation and learning". Swaminathan, Joachims (2015), "The self-normalized estimator for
    counterfactual learning". Thomas, Brunskill (2016), "Data-efficient off-policy policy evaluation for
    reinforcement learning". Wang, Agarwal, Dudík (2017), "Optimal and adaptive off-policy evaluation in contextual
    bandits". Standard errors of ratios and of clusters by linearisation: Liang, Zeger (1986), "Longitudinal data
    analysis using generalized linear models".

    Examples
    --------
    Arm b was drawn a quarter of the time, so each of its rewards stands for four decisions:

    >>> log = LoggedDecisions(("a", "b"), [0, 0, 0, 1], [0.75, 0.75, 0.75, 0.25], [1, 0, 0, 1])
    >>> found = evaluate(log, arm_target(log, "b"), force=True)
    >>> found["ips"].value, found.mean_weight, found.ess
    (1.0, 1.0, 1.0)
    >>> evaluate(log, arm_target(log, "b"))["ips"].why
    'the decisions that the target shares with the log are worth 1, and a value takes 100; log with a higher floor'
    """
    possible = WITHOUT_MODEL if outcome_model is None else (*WITHOUT_MODEL, *WITH_MODEL)
    chosen = tuple(possible if estimators is None else estimators)
    _check(logged, target_probabilities, outcome_model, chosen, clip, switch, level)
    n, rows = len(logged), np.arange(len(logged))
    clusters = logged.clusters
    n_clusters = int(clusters.max(initial=-1)) + 1
    weight = target_probabilities[rows, logged.arm] / logged.propensity
    mean, error = _mean(weight, clusters)
    logged_mean, logged_error = _mean(logged.reward, clusters)
    taken = logged.propensity[weight > 0]
    found = Evaluation(
        n, n_clusters, logged_mean, logged_error, effective_sample_size(weight), float(weight.max(initial=0.0)),
        mean, error, float(taken.min(initial=1.0)), level, None,
    )  # fmt: skip
    why = _refusal(found, weight, logged.propensity, min_ess, min_propensity)
    impossible = found.ess == 0  # nothing to force: no decision is shared
    if why is not None and (impossible or not force):
        none = (None, None, None, None, None)
        refused = tuple(Estimate(name, *none, *_used(name, weight, clip, switch), why) for name in chosen)
        return replace(found, why=why, estimates=refused)
    model_value = model_drawn = np.zeros(n)
    if outcome_model is not None:
        model_value = (target_probabilities * outcome_model).sum(axis=1)
        model_drawn = outcome_model[rows, logged.arm]
    half = float(special.ndtri(0.5 + level / 2))
    terms = [_terms(name, weight, logged.reward, model_value, model_drawn, clip, switch) for name in chosen]
    estimates = [
        _estimate(name, one, logged.reward, clusters, half, _used(name, weight, clip, switch))
        for name, one in zip(chosen, terms, strict=True)
    ]
    if bootstrap:
        values, gains = _resampled(terms, logged.reward, clusters, bootstrap, seed)
        tails = [0.5 - level / 2, 0.5 + level / 2]
        estimates = [
            replace(
                one,
                interval=_pair(np.nanquantile(values[:, i], tails)),
                gain_interval=_pair(np.nanquantile(gains[:, i], tails)),
            )
            for i, one in enumerate(estimates)
        ]
    return replace(found, estimates=tuple(estimates))


def _check(
    logged: LoggedDecisions,
    target: FloatArray,
    model: FloatArray | None,
    chosen: Sequence[str],
    clip: float,
    switch: float,
    level: float,
) -> None:
    shape = (len(logged), logged.n_arms)
    if target.shape != shape:
        raise ValueError(f"target_probabilities have shape {target.shape}; they must be {shape}")
    off = np.where(np.all(target >= 0, axis=1), np.abs(target.sum(axis=1) - 1.0), np.inf)
    _first(off > PMF_TOLERANCE, target, "target_probabilities", "a pmf: no negative number, sum 1 within 1e-9")
    _first(
        ((target > 0) & ~logged.open_arms).any(axis=1), target, "target_probabilities",
        "0 for arms that were not open; use split_target or training.policies.masked",
    )  # fmt: skip
    if model is not None and (model.shape != shape or not np.all(np.isfinite(model))):
        raise ValueError(f"outcome_model of shape {model.shape} must be finite and of shape {shape}")
    known = (*WITHOUT_MODEL, *WITH_MODEL)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise ValueError(f"estimators {unknown} are unknown; choose from {', '.join(known)}")
    lacking = [name for name in chosen if name in WITH_MODEL and model is None]
    if lacking:
        raise ValueError(
            f"{', '.join(lacking)} need an outcome model; give one, as fit_outcomes does, or leave them out"
        )
    if not (clip >= 0 and switch >= 0 and 0 < level < 1):
        raise ValueError(f"clip {clip} and switch {switch} must be 0 or more, level {level} between 0 and 1")


def _refusal(
    found: Evaluation, weight: FloatArray, propensity: FloatArray, min_ess: float, min_propensity: float
) -> str | None:
    if found.n == 0:
        return "there is no decision to learn from; widen the period"
    if found.ess < min_ess:
        return (
            f"the decisions that the target shares with the log are worth {found.ess:.0f}, and a value takes "
            f"{min_ess:.0f}; log with a higher floor"
        )
    rarest = int(np.argmin(np.where(weight > HEAVY_WEIGHT, propensity, 1.0)))
    if weight[rarest] > HEAVY_WEIGHT and propensity[rarest] < min_propensity:
        return (
            f"a decision that was drawn with probability {propensity[rarest]:.3g} would count for "
            f"{weight[rarest]:.0f}, and below {min_propensity:g} a few such draws decide; log with a higher floor"
        )
    off = abs(found.mean_weight - 1.0)
    if off > max(MEAN_WEIGHT_SLACK, MEAN_WEIGHT_Z * found.mean_weight_error):
        return (
            f"the weights average {found.mean_weight:.3f} and should average 1: the logged propensities are not what "
            "arms were drawn with, or the log could not draw what the target draws; see calibration"
        )
    return None


def _mean(values: FloatArray, clusters: IntArray) -> tuple[float, float]:
    """Mean and its standard error over clusters."""
    if not len(values):
        return float("nan"), float("nan")
    mean = float(values.mean())
    return mean, _error(values - mean, clusters)


def _error(influence: FloatArray, clusters: IntArray) -> float:
    """Standard error of the mean whose influence function this is, centred, over clusters."""
    sums = np.bincount(clusters, influence)
    if len(sums) < 2:
        return float("nan")
    return float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(influence))


def _used(name: str, weight: FloatArray, clip: float, switch: float) -> tuple[float | None, float | None]:
    """ESS and greatest of the weights that an estimator uses."""
    if name == "dm":
        return None, None
    used = weight
    if name == "clipped_ips":
        used = np.minimum(weight, clip)
    elif name == "switch_dr":
        used = np.where(weight <= switch, weight, 0.0)
    return effective_sample_size(used), float(used.max(initial=0.0))


def _terms(
    name: str,
    weight: FloatArray,
    reward: FloatArray,
    model_value: FloatArray,
    model_drawn: FloatArray,
    clip: float,
    switch: float,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Each estimate is ``mean(base) + sum(numerator) / sum(denominator)`` of these."""
    one, none = np.ones_like(weight), np.zeros_like(weight)
    if name == "ips":
        return none, weight * reward, one
    if name == "snips":
        return none, weight * reward, weight
    if name == "clipped_ips":
        return none, np.minimum(weight, clip) * reward, one
    if name == "dm":
        return model_value, none, one
    if name == "sndr":
        return model_value, weight * (reward - model_drawn), weight
    used = np.where(weight <= switch, weight, 0.0) if name == "switch_dr" else weight
    return model_value, used * (reward - model_drawn), one


def _estimate(
    name: str,
    terms: tuple[FloatArray, FloatArray, FloatArray],
    reward: FloatArray,
    clusters: IntArray,
    half: float,
    used: tuple[float | None, float | None],
) -> Estimate:
    base, numerator, denominator = terms
    ratio = float(numerator.sum() / denominator.sum())
    value = float(base.mean()) + ratio
    gain = value - float(reward.mean())
    influence = base - base.mean() + (numerator - ratio * denominator) / denominator.mean()
    error = _error(influence, clusters)
    reach, gain_reach = half * error, half * _error(influence - (reward - reward.mean()), clusters)
    interval, gain_interval = (value - reach, value + reach), (gain - gain_reach, gain + gain_reach)
    return Estimate(name, value, error, interval, gain, gain_interval, *used)


def _resampled(
    terms: Sequence[tuple[FloatArray, FloatArray, FloatArray]],
    reward: FloatArray,
    clusters: IntArray,
    replicates: int,
    seed: int,
) -> tuple[FloatArray, FloatArray]:
    """Values and gains with the clusters drawn again, shape (replicates, n_estimators) each."""
    columns = [reward, np.ones_like(reward), *(one for three in terms for one in three)]
    sums = np.stack([np.bincount(clusters, column) for column in columns], axis=1)
    rng = np.random.default_rng(seed)
    again = np.empty((replicates, sums.shape[1]))
    for b in range(replicates):
        again[b] = np.bincount(rng.integers(0, len(sums), len(sums)), minlength=len(sums)) @ sums
    n, base, numerator, denominator = again[:, 1:2], again[:, 2::3], again[:, 3::3], again[:, 4::3]
    values = base / n + numerator / np.where(denominator > 0, denominator, np.nan)
    return values, values - again[:, :1] / n


def _pair(ends: FloatArray) -> tuple[float, float]:
    return float(ends[0]), float(ends[1])
