"""Linear Thompson sampling: each contact gets each arm by its probability of being best for that contact's vector.

The reward of arm k on vector x in wave w is ``beta_k' x + omega_w`` plus noise. Everything it needs adds up over
trials, so the learner's state is folded like counts are: per arm and wave the number of trials, the sum of ``x x'``
and the sum of ``reward * x``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike
from scipy import linalg

from training.policies.base import Allocation, Context, Policy, mix_floor, won_shares
from training.policies.statistics import FloatArray, IntArray, LinearStatistics
from training.policies.waves import DelayCdf

#: Standard deviation of what all arms share, in standard deviations of the reward: wide, it hardly matters.
_COMMON = 1.0


@dataclass(frozen=True)
class LinearSums:
    """What raw trials add up to in each arm and wave."""

    #: shape (n_arms, n_waves)
    trials: IntArray
    #: shape (n_arms, n_waves, n_features, n_features)
    gram: FloatArray
    #: shape (n_arms, n_waves, n_features)
    moments: FloatArray
    #: shape (n_arms, n_waves)
    squares: FloatArray

    def __add__(self, other: LinearSums) -> LinearSums:
        """Sums of both sets of trials."""
        return LinearSums(
            self.trials + other.trials,
            self.gram + other.gram,
            self.moments + other.moments,
            self.squares + other.squares,
        )

    def statistics(
        self, arms: Sequence[str], age_hours: ArrayLike, arm_features: FloatArray | None = None
    ) -> LinearStatistics:
        """What the policy learns from, with the mean age of each cell's trials, shape (n_arms, n_waves)."""
        age = np.asarray(age_hours, dtype=np.float64)
        return LinearStatistics(tuple(arms), self.trials, self.gram, self.moments, self.squares, age, arm_features)


def sums_of(
    arm: ArrayLike, wave: ArrayLike, x: ArrayLike, reward: ArrayLike, *, n_arms: int, n_waves: int
) -> LinearSums:
    """The sums of ``LinearStatistics`` over trials; sums of parts add up to the sums of the whole.

    A fold may add the gram when a trial is shown and the moments when its reward comes in: rewards of 0 add nothing
    but trials and gram.

    Parameters
    ----------
    arm, wave : array-like of int, shape (n,)
        From 0 on, below ``n_arms`` and ``n_waves``.
    x : array-like of float, shape (n, n_features)
        The first feature is 1.
    reward : array-like of float, shape (n,)

    Examples
    --------
    >>> sums = sums_of([0, 0, 1], [0, 0, 0], [[1, 2], [1, 3], [1, 0]], [0, 1, 0], n_arms=2, n_waves=1)
    >>> sums.trials.tolist(), sums.gram[0, 0].tolist(), sums.moments[0, 0].tolist()
    ([[2], [1]], [[2.0, 5.0], [5.0, 13.0]], [1.0, 3.0])
    """
    vectors, rewards = np.asarray(x, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    arms, waves = np.asarray(arm, dtype=np.int64), np.asarray(wave, dtype=np.int64)
    if vectors.ndim != 2 or not arms.shape == waves.shape == rewards.shape == vectors.shape[:1]:
        raise ValueError(
            f"{arms.shape} arms, {waves.shape} waves, {vectors.shape} vectors and {rewards.shape} rewards do not fit; "
            "give one of each per trial"
        )
    for name, index, limit in (("arm", arms, n_arms), ("wave", waves, n_waves)):
        if len(index) and (index.min() < 0 or index.max() >= limit):
            raise ValueError(
                f"{name} indices reach from {index.min()} to {index.max()}; keep them from 0 to {limit - 1}"
            )
    if not (np.isfinite(vectors).all() and np.isfinite(rewards).all()):
        raise ValueError("a vector or a reward is not finite; leave trials without a vector or with a NaN reward out")
    d, n_cells = vectors.shape[1], n_arms * n_waves
    cell = arms * n_waves + waves
    gram, moments = np.zeros((n_cells, d, d)), np.zeros((n_cells, d))
    order = np.argsort(cell, kind="stable")
    present, starts = np.unique(cell[order], return_index=True)
    for at, rows in zip(present.tolist(), np.split(order, starts[1:]), strict=True) if len(present) else ():
        gram[at] = vectors[rows].T @ vectors[rows]
        moments[at] = rewards[rows] @ vectors[rows]
    shape = (n_arms, n_waves)
    return LinearSums(
        np.bincount(cell, minlength=n_cells).astype(np.int64).reshape(shape),
        gram.reshape(*shape, d, d),
        moments.reshape(*shape, d),
        np.asarray(np.bincount(cell, weights=rewards**2, minlength=n_cells).reshape(shape), dtype=np.float64),
    )


@dataclass(frozen=True)
class LinearPosterior:
    """Normal posterior of all arms' coefficients together: arms are compared within waves, so they hang together."""

    #: shape (n_arms, n_features)
    mean: FloatArray
    #: shape (n_arms * n_features, n_arms * n_features): lower Cholesky factor of the precision, in reward units.
    precision_root: FloatArray
    #: Standard deviation of the reward within waves.
    reward_deviation: float

    def draws(
        self, n_draws: int, rng: np.random.Generator, *, scale: float, mean_scale: float, mean_x: FloatArray
    ) -> FloatArray:
        """Coefficients drawn around the posterior mean, shape (n_draws, n_arms, n_features).

        The noise has the posterior's covariance, with ``mean_scale`` times its deviation at the vector ``mean_x`` and
        ``scale`` times its deviation in what departs from it.
        """
        noise = rng.standard_normal((n_draws, self.mean.size))
        away = linalg.solve_triangular(self.precision_root, noise.T, lower=True, trans="T", check_finite=False).T
        away = away.reshape(n_draws, *self.mean.shape)
        drawn = self.mean + scale * away
        drawn[:, :, 0] += (mean_scale - scale) * (away @ mean_x)
        return np.asarray(drawn, dtype=np.float64)


@dataclass(frozen=True)
class _Evidence:
    """What the trials say of the coefficients, in standard deviations of the reward, wave effects taken out."""

    precision: FloatArray
    moments: FloatArray
    reward_deviation: float


@dataclass(frozen=True)
class LinearThompson(Policy):
    """Thompson sampling on a linear model of the reward, for contacts with a vector.

    A snapshot stores an ensemble of draws of all arms' coefficients; an arm's probability for a contact is the share
    of the draws that it wins on the contact's vector, floor mixed in. What mail adds to the textbook:

    * **Wave effects.** Base rates move with the hour. A normal effect per wave, common to all arms, is integrated out
      exactly, so that what differs between waves teaches nothing about arms, however the allocation changed.
    * **Late answers.** A trial counts for the share of the answers due by its age, a reward counts whole.
    * **Discount.** Trials lose half their weight in ``half_life_days``.
    * **Prior from the other arms.** ``beta_k = W e_k + delta_k``: W is learned from all arms, so a new arm starts at
      ``W e_k`` of its features ``e_k`` (without features at what all arms have in common), and an arm that is no
      longer shown keeps teaching.

    Parameters
    ----------
    floor : float, optional
        Least probability of an arm; by default .05 up to four arms, above that .20 shared by all.
    scale : float, above 0
        Of the posterior's standard deviation in how draws differ between contacts. The textbook's 1 explores more
        than pays off where vectors are wide.
    temper : float, in (0, 1]
        Power of the likelihood for the arms' effects on the average contact, as in ``BetaBernoulliThompson``: where
        the arms do not differ, it keeps the split near the uniform one.
    half_life_days : float above 0, optional
        None: no discount.
    n_draws : int, from 10 to 1000
        Size of the ensemble.
    minimum_successes : float
        Successes per arm, on average, from which on the split may leave the uniform one.
    wave_concentration : float, above 0
        Waves' base rates differ by a relative standard deviation of ``wave_concentration ** -0.5``, as in
        ``training.policies.waves.fit_waves``.
    arm_deviation : float above 0, optional
        Prior standard deviation of ``delta_k``, in standard deviations of the reward; by default .3, and .1 where arms
        have features, which explain the rest.
    feature_deviation : float, above 0
        Prior standard deviation of the weights W of arm features, in standard deviations of the reward.
    delay : DelayCdf

    References
    ----------
    Agrawal, Goyal (2013), "Thompson sampling for contextual bandits with linear payoffs". Lindley, Smith (1972),
    "Bayes estimates for the linear model" (hierarchical prior). Henderson (1975), "Best linear unbiased estimation
    and prediction under a selection model" (mixed model equations, by which the wave effects are taken out).

    Examples
    --------
    Arm b is better where the second feature is positive, worse where it is negative.

    >>> x = np.stack([np.ones(4000), np.tile([1.0, -1.0], 2000)], axis=1)
    >>> arm = np.repeat([0, 1], 2000)
    >>> reward = np.arange(4000) % 10 < np.where(arm == 1, np.where(x[:, 1] > 0, 5, 1), 3)
    >>> seen = sums_of(arm, 0 * arm, x, reward, n_arms=2, n_waves=1).statistics(("a", "b"), [[99.0], [99.0]])
    >>> LinearThompson().allocate(seen).probabilities(2, contexts=x[:2]).round(2).tolist()
    [[0.05, 0.95], [0.95, 0.05]]
    """

    floor: float | None = None
    scale: float = 0.3
    temper: float = 0.5
    half_life_days: float | None = None
    n_draws: int = 100
    minimum_successes: float = 2.0
    wave_concentration: float = 10.0
    arm_deviation: float | None = None
    feature_deviation: float = 0.3
    delay: DelayCdf = field(default_factory=DelayCdf)
    name: ClassVar[str] = "linear"
    context: ClassVar[Context] = "vector"
    learns_from: ClassVar[type] = LinearStatistics

    def __post_init__(self) -> None:
        if isinstance(self.delay, dict):
            object.__setattr__(self, "delay", DelayCdf(**self.delay))
        if self.floor is not None and not 0 <= self.floor <= 0.5:
            raise ValueError(f"floor {self.floor} does not fit two arms; choose one between 0 and 0.5")
        for name in ("scale", "half_life_days", "wave_concentration", "arm_deviation", "feature_deviation"):
            value = getattr(self, name)
            if value is not None and not 0 < value < np.inf:
                raise ValueError(f"{name} {value} must be above 0 and finite")
        if not 0 < self.temper <= 1:
            raise ValueError(f"temper {self.temper} is not in (0, 1]; 1 is the plain posterior, 0.5 the default")
        if not 10 <= self.n_draws <= 1000:
            raise ValueError(f"n_draws {self.n_draws} is not from 10 to 1000; 100 is the default")
        if not 0 <= self.minimum_successes < np.inf:
            raise ValueError(f"minimum_successes {self.minimum_successes} must be 0 or more and finite")

    def floor_of(self, n_arms: int) -> float:
        """The floor of ``n_arms`` arms."""
        if self.floor is not None:
            return self.floor
        return 0.05 if n_arms <= 4 else 0.20 / n_arms

    def allocate(
        self,
        statistics: LinearStatistics,
        *,
        previous: Allocation | None = None,
        seed: int = 0,
        running: Sequence[str] | None = None,
    ) -> Allocation:
        """The ensemble of posterior draws, and the probabilities of a contact without a vector: at the mean vector.

        Parameters
        ----------
        statistics : LinearStatistics
        previous : Allocation, optional
            Not used.
        seed : int
            Of the draws: the same statistics and seed give the same bits, in whatever order the arms are listed.
        running : sequence of str, optional
            The arms to choose among, at least one; the others only teach the prior. By default all.

        Raises
        ------
        ValueError
            If the statistics do not fit together, or an arm of ``running`` is not in them.
        """
        statistics = _checked(statistics)
        arms = statistics.arms if running is None else tuple(running)
        if not arms or len(set(arms)) < len(arms) or not set(arms) <= set(statistics.arms):
            raise ValueError(f"running arms {arms} must be one or more distinct arms of {statistics.arms}")
        floor = self.floor_of(len(arms))
        uniform = mix_floor(np.full(len(arms), 1.0 / len(arms)), floor)
        trials, total = int(statistics.trials.sum()), statistics.moments[:, :, 0].sum()
        # Of rewards of 0 and 1 the number of ones; of unequal ones the number of equal ones that vary as much.
        seen, needed = total**2 / max(statistics.squares.sum(), 1e-300), self.minimum_successes * len(arms)
        counts = {"trials": trials, "effective_successes": float(seen), "minimum_successes": float(needed)}
        if seen < needed or seen == 0:
            reason = f"uniform: {seen:.0f} successes so far, {needed:g} needed"
            return Allocation(arms, uniform, reason, counts, uniform=1.0)
        # By name, so that listing the arms otherwise changes no bit.
        order = sorted(range(len(statistics.arms)), key=lambda k: statistics.arms[k])
        ordered = _reordered(statistics, order)
        posterior = self.posterior(ordered)
        mean_x = ordered.gram[:, :, 0].sum(axis=(0, 1)) / trials
        drawn = posterior.draws(
            self.n_draws, np.random.default_rng(seed), scale=self.scale, mean_scale=self.temper**-0.5, mean_x=mean_x
        )
        ensemble = np.ascontiguousarray(drawn[:, [ordered.arms.index(arm) for arm in arms]], dtype=np.float32)
        share = won_shares(ensemble, mean_x.astype(np.float32)[None, :])[0]
        details = {**counts, "reward_deviation": posterior.reward_deviation}
        reason = f"linear: {seen:.0f} successes in {trials} trials"
        return Allocation(arms, mix_floor(share, floor), reason, details, ensemble=ensemble, uniform=len(arms) * floor)

    def parameters(self) -> dict[str, Any]:
        """Every parameter as JSON values."""
        return {
            "policy": self.name,
            "floor": self.floor,
            "scale": self.scale,
            "temper": self.temper,
            "half_life_days": self.half_life_days,
            "n_draws": self.n_draws,
            "minimum_successes": self.minimum_successes,
            "wave_concentration": self.wave_concentration,
            "arm_deviation": self.arm_deviation,
            "feature_deviation": self.feature_deviation,
            "delay": self.delay.parameters(),
        }

    def posterior(self, statistics: LinearStatistics) -> LinearPosterior:
        """Posterior of all arms' coefficients, wave effects integrated out."""
        evidence = self._evidence(statistics)
        n_arms, _, n_features = statistics.moments.shape
        known = np.zeros((n_arms, 0)) if statistics.arm_features is None else statistics.arm_features[:, 1:]
        own = self.arm_deviation or (0.1 if known.shape[1] else 0.3)
        # Covariance of W e_k + delta_k between arms, the same for every feature of the vector.
        covariance = _COMMON**2 + self.feature_deviation**2 * known @ known.T + own**2 * np.eye(n_arms)
        prior = np.kron(np.linalg.inv(covariance), np.eye(n_features))
        root = linalg.cholesky(prior + evidence.precision, lower=True, check_finite=False)
        mean = linalg.cho_solve((root, True), evidence.moments, check_finite=False)
        sigma = evidence.reward_deviation
        return LinearPosterior(sigma * mean.reshape(n_arms, n_features), root / sigma, sigma)

    def _evidence(self, statistics: LinearStatistics) -> _Evidence:
        n_arms, _, d = statistics.moments.shape
        kept = np.ones_like(statistics.age_hours)
        if self.half_life_days is not None:
            kept = 0.5 ** (statistics.age_hours / 24 / self.half_life_days)
        sums, squares, trials = statistics.moments[:, :, 0], statistics.squares, statistics.trials
        # Answers may come sooner than the curve has them: no cell has fewer answers due than it has successes.
        answered = np.minimum(sums**2 / np.maximum(squares, 1e-300), trials) / np.maximum(trials, 1)
        due = kept * np.maximum(self.delay(statistics.age_hours), answered)
        exposure = (due * trials).sum(axis=0)
        by_wave = (kept * sums).sum(axis=0)
        total = max(float(exposure.sum()), 1.0)
        rate = by_wave.sum() / total
        # Rewards vary around their mean over the trials shown; per trial due, for that is what the precision counts.
        second, shown_trials = float((kept * squares).sum()), max(float((kept * trials).sum()), 1e-300)
        variance = max(second - float(by_wave.sum()) ** 2 / shown_trials, 1e-6 * second, 1e-300) / total
        # A wave's effect has the variance rate**2 / wave_concentration.
        weight = exposure + self.wave_concentration * variance / max(rate**2, 1e-12 * variance)
        gram = np.matmul(due[:, None, :], statistics.gram.reshape(n_arms, -1, d * d)).reshape(n_arms, d, d)
        shown = (due[:, :, None] * statistics.gram[:, :, :, 0]).transpose(0, 2, 1).reshape(n_arms * d, -1)
        precision = -(shown / weight) @ shown.T
        by_arm = precision.reshape(n_arms, d, n_arms, d)
        by_arm[np.arange(n_arms), :, np.arange(n_arms), :] += gram
        moments = np.matmul(kept[:, None, :], statistics.moments)[:, 0].ravel() - shown @ (by_wave / weight)
        sigma = float(np.sqrt(variance))
        return _Evidence(precision, moments / sigma, sigma)


def _checked(statistics: LinearStatistics) -> LinearStatistics:
    """The same as arrays, refused where they do not fit together."""
    arms, trials = tuple(statistics.arms), np.asarray(statistics.trials)
    if len(arms) < 2 or len(set(arms)) < len(arms):
        raise ValueError(f"arms {arms} are no choice; give two or more distinct ids")
    n_arms, n_waves = len(arms), trials.shape[-1]
    n_features = np.shape(statistics.moments)[-1]
    shapes = {
        "trials": (n_arms, n_waves),
        "gram": (n_arms, n_waves, n_features, n_features),
        "moments": (n_arms, n_waves, n_features),
        "squares": (n_arms, n_waves),
        "age_hours": (n_arms, n_waves),
    }
    arrays = {name: np.asarray(getattr(statistics, name), dtype=np.float64) for name in shapes}
    arm_features = statistics.arm_features
    if arm_features is not None:
        arm_features = np.asarray(arm_features, dtype=np.float64)
        arrays["arm_features"], shapes["arm_features"] = arm_features, (n_arms, arm_features.shape[-1])
        if arm_features.ndim == 2 and not np.all(arm_features[:, 0] == 1):
            raise ValueError("arm_features do not begin with a 1; put the constant first")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}; with {n_arms} arms it must be {shape}")
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name} holds a number that is not finite; leave such trials out")
    for name in ("trials", "squares", "age_hours"):
        if np.any(arrays[name] < 0):
            raise ValueError(f"{name} holds a negative number; counts, squares and ages start at 0")
    if not np.allclose(arrays["gram"][:, :, 0, 0], trials, atol=1e-6):
        raise ValueError("the gram's first entry is not the number of trials; the first feature of a vector must be 1")
    return LinearStatistics(
        arms,
        trials.astype(np.int64),
        arrays["gram"],
        arrays["moments"],
        arrays["squares"],
        arrays["age_hours"],
        arm_features,
    )


def _reordered(statistics: LinearStatistics, order: Sequence[int]) -> LinearStatistics:
    index = list(order)
    features = statistics.arm_features
    return LinearStatistics(
        tuple(statistics.arms[i] for i in index),
        statistics.trials[index],
        statistics.gram[index],
        statistics.moments[index],
        statistics.squares[index],
        statistics.age_hours[index],
        None if features is None else features[index],
    )
