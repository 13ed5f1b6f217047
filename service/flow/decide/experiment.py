"""What an experiment asks: its arms, its reward, how it shares contacts out; checked before it is opened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from features.views import DEFAULT_VIEWS
from service.errors import Invalid
from service.tables import ExperimentRow
from training.policies import policy_from_parameters
from training.policies.base import Policy
from training.policies.fixed import Uniform
from training.policies.gaussian import GaussianThompson

KINDS = ("subject", "cta", "block", "layout")
REWARDS = ("click", "open", "conversion", "revenue")
POLICIES = ("thompson", "uniform", "fixed", "epsilon_greedy", "gaussian", "linear")
#: Policies that count who answered: they cannot tell a large order from a small one.
COUNTING = ("thompson", "epsilon_greedy")
#: What a policy takes from an experiment's settings, beside its own name.
TAKES: dict[str, tuple[str, ...]] = {
    "thompson": ("floor", "half_life_days", "maximum_change", "minimum_per_arm"),
    "uniform": (),
    "fixed": (),
    "epsilon_greedy": ("half_life_days", "maximum_change", "minimum_per_arm"),
    "gaussian": ("floor", "half_life_days", "maximum_change", "minimum_per_arm"),
    "linear": ("floor", "half_life_days"),
}
#: Values of a trait that make segments, and features of a context, at most.
MOST_SEGMENTS, MOST_FEATURES = 20, 29
#: Characters of a segment's name.
LONGEST_SEGMENT = 60
#: An arm with less would never be drawn, and nothing could be planned or weighed by it.
LEAST_FLOOR = 1e-6
LONGEST_WINDOW_HOURS = 24 * 90
#: Magnitude of a number among an arm's features, at most.
LARGEST_FEATURE = 1e9


@dataclass(frozen=True)
class Arm:
    """One answer of an experiment: a subject in Liquid, or a block in MJML."""

    arm_id: str
    content: str
    features: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NewExperiment:
    """What an experiment asks, before it is opened.

    Attributes
    ----------
    slot : str
        Template slot that the arms fill; ``subject`` fills the subject line.
    floor : float
        Probability that every arm keeps, for learning: the one knob between earning and learning.
    explore_share : float
        Share of the decisions drawn uniformly, on top of the floor.
    holdout_share : float
        Share of the people, always the same ones, for whom an arm is drawn and not shown.
    policy : str, optional
        By default ``gaussian`` where the reward is revenue, else ``thompson``.
    weights : mapping of str to float, optional
        The split of policy ``fixed``, by arm; an arm that is left out gets none.
    sticky : bool
        A contact keeps the arm of its first decision, while that arm runs.
    segment_by : mapping, optional
        ``{"trait": name, "values": [...]}``: contacts are told apart by this trait as text. Other values together are
        the segment ``other``; who has none is in no segment.
    context : mapping, optional
        ``{"features": [...]}``: columns of the default view set that policy ``linear`` sees of a contact.
    half_life_days : float, optional
        After so many days a trial counts half; None lets all count alike.
    planned_sends : int
        How many decisions are expected: reports are tightest there.
    control : str, optional
        The arm that others are compared with; by default the first.
    maximum_change : float, optional
        Most that an arm's probability moves from one snapshot to the next.
    minimum_per_arm : float, optional
        Trials up to which an arm gets its even share.
    guardrails : mapping of str to bool
        Which of ``unsubscribes`` and ``complaints`` may pause an arm.
    """

    name: str
    kind: str
    arms: Sequence[Arm]
    slot: str = ""
    reward: str = "click"
    reward_window_hours: float = 72.0
    floor: float = 0.05
    explore_share: float = 0.0
    holdout_share: float = 0.0
    policy: str | None = None
    weights: Mapping[str, float] | None = None
    sticky: bool = False
    segment_by: Mapping[str, Any] | None = None
    context: Mapping[str, Any] | None = None
    half_life_days: float | None = None
    planned_sends: int = 10_000
    control: str | None = None
    maximum_change: float | None = None
    minimum_per_arm: float | None = None
    guardrails: Mapping[str, bool] = field(default_factory=dict)

    @property
    def policy_name(self) -> str:
        """The policy that was asked for, or the reward's usual one."""
        return self.policy or ("gaussian" if self.reward == "revenue" else "thompson")

    def settings(self) -> dict[str, Any]:
        """What is kept of it as JSON, beside the columns of its own; the context is measured when it is opened."""
        return {
            "weights": None if self.weights is None else dict(self.weights),
            "sticky": self.sticky,
            "segment_by": None
            if self.segment_by is None
            else {"trait": self.segment_by["trait"], "values": list(self.segment_by["values"])},
            "half_life_days": self.half_life_days,
            "planned_sends": self.planned_sends,
            "control": self.control or self.arms[0].arm_id,
            "maximum_change": self.maximum_change,
            "minimum_per_arm": self.minimum_per_arm,
            "guardrails": {"unsubscribes": True, "complaints": True} | dict(self.guardrails),
        }


def policy_of(experiment: ExperimentRow, arms: Sequence[str] = ()) -> Policy:
    """The policy that an experiment asks for.

    Parameters
    ----------
    arms : sequence of str
        Those that it will choose among: a fixed split gives no weight to one that was added, and a floor that no
        longer fits so many, or a split that gives none of them a weight, becomes the even split.
    """
    settings = experiment.settings or {}
    weights = settings.get("weights") or {}
    if experiment.policy == "fixed" and arms and not any(weights.get(arm, 0) > 0 for arm in arms):
        return Uniform()
    floor = min(experiment.floor, 1 / len(arms)) if arms else experiment.floor
    return policy_from_parameters(_parameters(experiment.policy, {**settings, "floor": floor}, arms))


def _parameters(name: str, settings: Mapping[str, Any], arms: Sequence[str]) -> dict[str, Any]:
    given = {one: settings[one] for one in TAKES[name] if settings.get(one) is not None}
    if name == "fixed":
        given["weights"] = dict.fromkeys(arms, 0.0) | dict(settings.get("weights") or {})
    if name == "epsilon_greedy":  # the floor of each arm, as it promises it
        given["epsilon"] = min(1.0, settings["floor"] * max(len(arms), 2))
    return {"policy": GaussianThompson.name if name == "gaussian" else name, **given}


def check_experiment(new: NewExperiment) -> None:
    """Refuse an experiment that cannot be.

    Raises
    ------
    Invalid
        Naming the value, its limit and the remedy.
    """
    ids = [arm.arm_id for arm in new.arms]
    _check_arms(new, ids)
    for arm in new.arms:
        check_features(arm)
    for value, name, known in (
        (new.kind, "kind", KINDS),
        (new.reward, "reward", REWARDS),
        (new.policy_name, "policy", POLICIES),
    ):
        if value not in known:
            raise Invalid(f"{name} {value!r} is not known; write one of {', '.join(known)}")
    if not (new.floor >= LEAST_FLOOR and new.floor * len(ids) <= 1):
        raise Invalid(
            f"a floor of {new.floor} for {len(ids)} arms does not fit; choose {LEAST_FLOOR:g} ≤ floor ≤ "
            f"{1 / len(ids):.3f}"
        )
    if not 0 <= new.explore_share <= 1:
        raise Invalid(f"explore_share {new.explore_share} is outside 0 to 1")
    if not 0 <= new.holdout_share <= 0.9:
        raise Invalid(f"holdout_share {new.holdout_share} is outside 0 to 0.9")
    if not 0 < new.reward_window_hours <= LONGEST_WINDOW_HOURS:
        raise Invalid(f"reward_window_hours {new.reward_window_hours} is outside 0 to {LONGEST_WINDOW_HOURS}")
    if not 1 <= new.planned_sends <= 10**9:
        raise Invalid(f"planned_sends {new.planned_sends} is outside 1 to 1,000,000,000")
    unknown = sorted(set(new.guardrails) - {"unsubscribes", "complaints"})
    if unknown:
        raise Invalid(f"guardrail {unknown[0]!r} is not known; write unsubscribes or complaints")
    _check_segments(new)
    _check_context(new)
    _check_policy(new, ids)


def check_features(arm: Arm) -> None:
    """Refuse an arm whose features hold a number that no policy could compute with.

    Raises
    ------
    Invalid
        Naming arm, feature, value and limit.
    """
    for name, value in _numbers(arm.features):
        if not -LARGEST_FEATURE <= value <= LARGEST_FEATURE:  # a NaN, too, is nowhere between
            told = f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"{value:g}"
            raise Invalid(
                f"feature {name!r} of arm {arm.arm_id!r} is {told}; give a finite number from -1e9 to 1e9, or a text"
            )


def _numbers(features: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """The numbers among features, however deep, by the name of the feature."""
    left = list(features.items())
    while left:
        name, value = left.pop()
        if isinstance(value, Mapping):
            left += [(name, one) for one in value.values()]
        elif isinstance(value, list | tuple):
            left += [(name, one) for one in value]
        elif isinstance(value, int | float):
            yield name, value


def _check_arms(new: NewExperiment, ids: Sequence[str]) -> None:
    if len(ids) < 2:
        raise Invalid(f"{len(ids)} arm is no experiment; give at least two arms, or write the text into the template")
    if len(set(ids)) < len(ids):
        twice = sorted({arm_id for arm_id in ids if ids.count(arm_id) > 1})
        raise Invalid(f"arm ids {twice} are given twice; give each arm its own id")
    empty = [arm.arm_id for arm in new.arms if not arm.content.strip()]
    if empty:
        raise Invalid(f"arms {empty} have no text; write what they say")
    if new.control is not None and new.control not in ids:
        raise Invalid(f"control {new.control!r} is none of the arms; name one of {', '.join(ids)}")
    strangers = sorted(set(new.weights or ()) - set(ids))
    if strangers:
        raise Invalid(f"weights name {strangers}, which are no arms; name some of {', '.join(ids)}")


def _check_policy(new: NewExperiment, ids: Sequence[str]) -> None:
    name = new.policy_name
    if new.reward == "revenue" and name in COUNTING:
        raise Invalid(
            f"policy {name} counts answers and cannot tell a large order from a small one; for revenue choose gaussian "
            "or linear, or let the reward be conversion"
        )
    if (name == "fixed") != (new.weights is not None):
        raise Invalid(
            f"policy {name} {'needs' if name == 'fixed' else 'takes no'} weights; policy fixed splits by them"
        )
    for setting in ("half_life_days", "maximum_change", "minimum_per_arm"):
        value = getattr(new, setting)
        if value is None:
            continue
        if setting not in TAKES[name]:
            fitting = [policy for policy, takes in TAKES.items() if setting in takes]
            raise Invalid(f"policy {name} takes no {setting}; leave it out, or choose {' or '.join(fitting)}")
        if not (math.isfinite(value) and value > 0):
            raise Invalid(f"{setting} {value} is not above 0; give a number above 0, or leave it out")
    try:
        policy_from_parameters(_parameters(name, {**new.settings(), "floor": new.floor}, ids))
    except ValueError as error:
        raise Invalid(str(error)) from error


def _check_segments(new: NewExperiment) -> None:
    if new.segment_by is None:
        return
    trait, values = new.segment_by.get("trait"), new.segment_by.get("values")
    if set(new.segment_by) != {"trait", "values"} or not isinstance(trait, str) or not trait:
        raise Invalid('segment_by is not understood; write {"trait": "country", "values": ["DE", "FR"]}')
    if not isinstance(values, Sequence) or isinstance(values, str) or not 1 <= len(values) <= MOST_SEGMENTS:
        raise Invalid(f"segment_by tells {values!r} apart; give a list of 1 to {MOST_SEGMENTS} values")
    wrong = [one for one in values if not isinstance(one, str) or not 1 <= len(one) <= LONGEST_SEGMENT]
    if wrong or len(set(values)) < len(values):
        raise Invalid(
            f"values of segment_by are {list(values)!r}; give different texts of 1 to {LONGEST_SEGMENT} characters"
        )


def _check_context(new: NewExperiment) -> None:
    if (new.policy_name == "linear") != (new.context is not None):
        does = "needs a" if new.policy_name == "linear" else "looks at no"
        raise Invalid(f'policy {new.policy_name} {does} context, such as {{"features": ["orders_ever"]}}')
    if new.context is None:
        return
    names = new.context.get("features")
    if set(new.context) != {"features"} or not isinstance(names, Sequence) or isinstance(names, str):
        raise Invalid('context is not understood; write {"features": ["orders_ever", "revenue_ever"]}')
    if not 1 <= len(names) <= MOST_FEATURES or len(set(names)) < len(names):
        raise Invalid(f"context has {len(names)} features; give 1 to {MOST_FEATURES} different ones")
    unknown = [name for name in names if name not in DEFAULT_VIEWS.names]
    if unknown:
        raise Invalid(f"feature {unknown[0]!r} is not in the default view set; `kairos features list` has their names")
