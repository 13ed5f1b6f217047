"""How arms are chosen: policies as pure functions from counts to explicit probabilities, and the hashed draw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.policies.base import (
    Allocation,
    CountPolicy,
    Policy,
    choose,
    hashed_draw,
    hashed_draws,
    masked,
    mix_floor,
)
from training.policies.epsilon import EpsilonGreedy
from training.policies.fixed import FixedSplit, Uniform
from training.policies.gaussian import GaussianThompson
from training.policies.linear import LinearSums, LinearThompson, sums_of
from training.policies.statistics import ArmStatistics, LinearStatistics, SegmentStatistics, ValueStatistics
from training.policies.thompson import BetaBernoulliThompson
from training.policies.waves import DelayCdf

__all__ = [
    "Allocation",
    "ArmStatistics",
    "BetaBernoulliThompson",
    "CountPolicy",
    "DelayCdf",
    "EpsilonGreedy",
    "FixedSplit",
    "GaussianThompson",
    "LinearStatistics",
    "LinearSums",
    "LinearThompson",
    "Policy",
    "SegmentStatistics",
    "Uniform",
    "ValueStatistics",
    "choose",
    "hashed_draw",
    "hashed_draws",
    "masked",
    "mix_floor",
    "policy_from_parameters",
    "sums_of",
]

_POLICIES: dict[str, type[Policy]] = {
    policy.name: policy
    for policy in (
        BetaBernoulliThompson,
        EpsilonGreedy,
        FixedSplit,
        GaussianThompson,
        LinearThompson,
        Uniform,
    )
}


def policy_from_parameters(parameters: Mapping[str, Any]) -> Policy:
    """The policy whose ``parameters()`` these are; those left out take their defaults.

    Raises
    ------
    ValueError
        If the name or a parameter is unknown.

    Examples
    --------
    >>> policy_from_parameters({"policy": "thompson", "floor": 0.1}).floor_of(3)
    0.1
    """
    values = dict(parameters)
    name = values.pop("policy", None)
    if name not in _POLICIES:
        raise ValueError(f"policy {name!r} is unknown; choose one of {', '.join(sorted(_POLICIES))}")
    try:
        return _POLICIES[name](**values)
    except TypeError as error:
        raise ValueError(f"parameters {sorted(values)} do not fit policy {name!r}: {error}") from error
