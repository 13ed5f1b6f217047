"""Epsilon-greedy: the control that shows what weighing the evidence is worth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from training.policies.statistics import FloatArray
from training.policies.thompson import BetaLearner


@dataclass(frozen=True)
class EpsilonGreedy(BetaLearner):
    """The arm with the best posterior mean gets ``1 - epsilon``, and ``epsilon`` is spread evenly over all.

    It waits for late answers and compares arms within waves as Thompson sampling does, so what it earns less is the
    price of not weighing how sure the evidence is. Arms whose means are equal share.

    Parameters
    ----------
    epsilon : float, in [0, 1]

    Other parameters are those of ``BetaLearner`` and ``Learner``.

    References
    ----------
    Sutton, Barto (2018), "Reinforcement Learning", section 2.2.

    Examples
    --------
    >>> from training.policies.statistics import ArmStatistics
    >>> seen = ArmStatistics(("a", "b"), [[1000], [1000]], [[150], [200]], [[48.0], [48.0]])
    >>> EpsilonGreedy().pmf(seen).round(3).tolist()
    [0.05, 0.95]
    """

    epsilon: float = 0.1
    temper: float = 1.0
    name: ClassVar[str] = "epsilon_greedy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"epsilon {self.epsilon} is no share; choose one between 0 and 1")

    def floor_of(self, n_arms: int) -> float:
        """Epsilon over the number of arms."""
        return self.epsilon / n_arms

    def preferred(self, alpha: FloatArray, beta: FloatArray) -> FloatArray:
        """All to the best mean; arms within rounding of it share."""
        mean = alpha / (alpha + beta)
        best = mean >= mean.max(axis=-1, keepdims=True) * (1 - 1e-9)
        return np.asarray(best / best.sum(axis=-1, keepdims=True), dtype=np.float64)
