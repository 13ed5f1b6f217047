"""Logs of a policy with known propensities, in worlds where the value of every other policy is known too."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.events import HOUR_MICROS
from training.off_policy import LoggedDecisions
from training.policies import ArmStatistics, CountPolicy, mix_floor
from training.policies.statistics import FloatArray, IntArray


@dataclass(frozen=True)
class LoggedWorld:
    """A simulated log with the truth beside it.

    Attributes
    ----------
    logged : LoggedDecisions
    expected : ndarray of float64, shape (n, n_arms)
        True expected reward of each arm at each decision.
    behavior : ndarray of float64, shape (n, n_arms)
        Probabilities that the arms were drawn with.
    """

    logged: LoggedDecisions
    expected: FloatArray
    behavior: FloatArray

    def value(self, target_probabilities: FloatArray) -> float:
        """True value of a target at these decisions."""
        return float((target_probabilities * self.expected).sum(axis=1).mean())


def simulate_log(
    n: int,
    *,
    seed: int,
    n_arms: int = 4,
    n_features: int = 3,
    floor: float = 0.05,
    effect: float = 0.8,
    sends_per_contact: int = 1,
    sharpness: float = 3.0,
    policy: CountPolicy | None = None,
    n_waves: int = 12,
    log_before_floor: bool = False,
) -> LoggedWorld:
    """A log of ``n`` decisions of yesterday's policy.

    Without ``policy`` the log is of a fixed policy that prefers arms by the contact's vector, wrongly in part, with a
    floor; with one, it is of that policy learning wave by wave, an hour apart.

    Parameters
    ----------
    floor : float
        Least probability of an arm under the fixed policy.
    effect : float
        Size of the arms' true effects on the log-odds; 0 is a world in which all arms are alike.
    sends_per_contact : int
        Decisions of each contact, whose answers resemble one another.
    sharpness : float
        How decided the fixed policy is; 0 is uniform.
    log_before_floor : bool
        Log the probabilities before the floor was mixed in, although draws are made after: a planted error.
    """
    world = np.random.default_rng(20_260_302)
    strength = effect * world.normal(size=(n_features + 1, n_arms))
    belief = strength + 0.5 * world.normal(size=strength.shape)
    rng = np.random.default_rng(seed)
    contact = np.arange(n) // sends_per_contact
    n_contacts = int(contact[-1]) + 1
    x = np.column_stack([np.ones(n_contacts), rng.normal(size=(n_contacts, n_features))])[contact]
    mood = 0.5 * rng.normal(size=n_contacts)[contact] if sends_per_contact > 1 else np.zeros(n)
    expected = 1.0 / (1.0 + np.exp(-(-1.5 + 0.3 * x[:, 1:2] + x @ strength + mood[:, None])))
    shuffled = rng.permutation(n)
    wave = np.empty(n, dtype=np.int64)
    wave[shuffled] = np.arange(n) * n_waves // n
    at = wave * HOUR_MICROS
    answers = rng.random(n)
    draws = rng.random(n)
    arms = tuple(f"arm_{k}" for k in range(n_arms))
    if policy is None:
        odds = np.exp(sharpness * (x @ belief))
        before = odds / odds.sum(axis=1, keepdims=True)
        behavior = mix_floor(before, floor)
        arm = _drawn(behavior, draws)
        kept = before if log_before_floor else behavior
    else:
        behavior, arm = _learned(policy, arms, expected, wave, n_waves, draws, answers)
        kept = behavior
    rows = np.arange(n)
    logged = LoggedDecisions(
        arms,
        arm,
        np.maximum(kept[rows, arm], 1e-12),
        (answers < expected[rows, arm]).astype(np.float64),
        contexts=x[:, 1:],
        contact_key=contact,
        occurred_at=at,
        wave=wave,
    )
    return LoggedWorld(logged, expected, behavior)


def _drawn(pmf: FloatArray, draws: FloatArray) -> IntArray:
    below = pmf.cumsum(axis=1)[:, :-1] <= draws[:, None]
    return np.asarray(below.sum(axis=1), dtype=np.int64)


def _learned(
    policy: CountPolicy,
    arms: tuple[str, ...],
    expected: FloatArray,
    wave: IntArray,
    n_waves: int,
    draws: FloatArray,
    answers: FloatArray,
) -> tuple[FloatArray, IntArray]:
    behavior, arm = np.empty_like(expected), np.zeros(len(wave), dtype=np.int64)
    trials, successes = (np.zeros((len(arms), n_waves), dtype=np.int64) for _ in range(2))
    for w in range(n_waves):
        age = np.broadcast_to(np.arange(w, 0, -1, dtype=np.float64), (len(arms), w))
        rows = np.flatnonzero(wave == w)
        behavior[rows] = policy.pmf(ArmStatistics(arms, trials[:, :w], successes[:, :w], age))
        arm[rows] = _drawn(behavior[rows], draws[rows])
        trials[:, w] = np.bincount(arm[rows], minlength=len(arms))
        succeeded = answers[rows] < expected[rows, arm[rows]]
        successes[:, w] = np.bincount(arm[rows][succeeded], minlength=len(arms))
    return behavior, arm
