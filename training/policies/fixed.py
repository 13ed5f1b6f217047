"""Policies that do not learn: a fixed split and the uniform one, for A/B tests and as controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from training.policies.base import CountPolicy
from training.policies.statistics import ArmStatistics, FloatArray, IntArray


@dataclass(frozen=True)
class FixedSplit(CountPolicy):
    """The same probabilities whatever happens: an A/B test.

    Parameters
    ----------
    weights : mapping of str to float
        A weight for every arm id, at or above 0, summing to any number above 0.

    Examples
    --------
    >>> FixedSplit({"a": 9, "b": 1}).pmf(ArmStatistics.empty(["b", "a"])).tolist()
    [0.1, 0.9]
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    name: ClassVar[str] = "fixed"

    def __post_init__(self) -> None:
        values = np.array(list(self.weights.values()), dtype=np.float64)
        if not np.all(np.isfinite(values)) or np.any(values < 0) or not values.sum() > 0:
            raise ValueError(f"weights {dict(self.weights)} make no split; give numbers at or above 0, one above 0")

    def shares(self, arms: tuple[str, ...], trials: IntArray, successes: IntArray, age_hours: FloatArray) -> FloatArray:
        """The weights of ``arms``, scaled to sum to one."""
        missing = [arm for arm in arms if arm not in self.weights]
        if missing:
            raise ValueError(f"the split has no weight for {missing}; name every arm, with 0 for those left out")
        weights = np.array([self.weights[arm] for arm in arms], dtype=np.float64)
        if not weights.sum() > 0:
            raise ValueError(f"every weight of {arms} is 0; give one of them a weight")
        return np.broadcast_to(weights / weights.sum(), (*trials.shape[:-2], len(arms))).copy()

    def parameters(self) -> dict[str, Any]:
        """Name and weights."""
        return {"policy": self.name, "weights": {arm: float(weight) for arm, weight in self.weights.items()}}

    def floor_of(self, n_arms: int) -> float:
        """Zero: a fixed split promises its weights, nothing more."""
        return 0.0

    def reason(self, statistics: ArmStatistics) -> str:
        """That the split is fixed."""
        return "fixed split"


@dataclass(frozen=True)
class Uniform(CountPolicy):
    """Every arm alike: the control that a learner has to beat.

    Examples
    --------
    >>> Uniform().pmf(ArmStatistics.empty(["a", "b"])).tolist()
    [0.5, 0.5]
    """

    name: ClassVar[str] = "uniform"

    def shares(self, arms: tuple[str, ...], trials: IntArray, successes: IntArray, age_hours: FloatArray) -> FloatArray:
        """One over the number of arms."""
        return np.full((*trials.shape[:-2], len(arms)), 1.0 / len(arms))

    def parameters(self) -> dict[str, Any]:
        """The name is all."""
        return {"policy": self.name}

    def floor_of(self, n_arms: int) -> float:
        """One over the number of arms."""
        return 1.0 / n_arms

    def reason(self, statistics: ArmStatistics) -> str:
        """That all arms are alike."""
        return "uniform"
