"""Rules over features: whom a declaration is about, as bounds on columns of the vector.

A rule is one bound, ``{feature: orders_ever, at_least: 3}`` (or ``at_most``, or ``is``), or ``all`` or ``any`` of
several rules. It is compiled to alternatives, each a list of bounds that must all hold; a missing value meets no bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from typing import Any, Literal

from features.views import ViewSet

#: A compiled bound: column, least, most; None is no bound.
Compiled = tuple[str, float | None, float | None]

#: More than this is a mistake, or a rule nobody can read.
MAX_BOUNDS, MAX_DEPTH, MAX_ALTERNATIVES = 100, 6, 64

_PAST_ONLY = ("recency", "first_seen")
_KEYS = ("all", "any", "feature", "at_least", "at_most", "is")


@dataclass(frozen=True)
class Bound:
    """A feature within bounds, both inclusive; None is no bound."""

    feature: str
    at_least: float | None = None
    at_most: float | None = None

    @property
    def says(self) -> str:
        """The bound for people."""
        if self.at_least == self.at_most:
            return f"{self.feature} = {self.at_least:g}"
        low = "" if self.at_least is None else f"{self.at_least:g} ≤ "
        if self.at_most is None:
            return f"{self.feature} ≥ {self.at_least:g}"
        return f"{low}{self.feature} ≤ {self.at_most:g}"


@dataclass(frozen=True)
class Rule:
    """All, or any, of several rules."""

    kind: Literal["all", "any"]
    parts: tuple[Rule | Bound, ...]

    @property
    def says(self) -> str:
        """The rule for people."""
        said = [
            f"({part.says})" if isinstance(part, Rule) and len(part.parts) > 1 and part.kind != self.kind else part.says
            for part in self.parts
        ]
        return (" and " if self.kind == "all" else " or ").join(said)

    def alternatives(self) -> tuple[tuple[Compiled, ...], ...]:
        """The rule as alternatives, in the order of the rule, each with one bound a feature.

        Raises
        ------
        ValueError
            If there are more than ``MAX_ALTERNATIVES``, or no contact can meet any.

        Examples
        --------
        >>> Rule("all", (Bound("a", 1), Rule("any", (Bound("b", None, 2), Bound("a", None, 0))))).alternatives()
        ((('a', 1, None), ('b', None, 2)),)
        """
        merged = dict.fromkeys(_merged(bounds) for bounds in _expanded(self))
        found = tuple(bounds for bounds in merged if bounds is not None)
        if not found:
            raise ValueError(f"no contact can meet {self.says}; its bounds exclude each other")
        return found


def parse_rule(content: Any, views: ViewSet, where: str = "population") -> Rule:
    """The rule that ``content``, read from YAML or JSON, says.

    Parameters
    ----------
    content : mapping
    views : ViewSet
        Whose columns may be named.
    where : str
        Name of the rule in messages.

    Raises
    ------
    ValueError
        With the place, the value and what to write instead.
    """
    primitive = {column: view.primitive for view in views.views for column in view.columns}
    rule = _parsed(content, primitive, where, 0)
    rule = rule if isinstance(rule, Rule) else Rule("all", (rule,))
    count = _count(rule)
    if count > MAX_BOUNDS:
        raise ValueError(f"{where} has {count} bounds; at most {MAX_BOUNDS} are read: declare several outcomes")
    return rule


def _parsed(content: Any, primitive: Mapping[str, str], where: str, depth: int) -> Rule | Bound:
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{where} is {_shown(content)}; write {{feature: …, at_least: …}}, {{all: […]}} or {{any: […]}}"
        )
    unknown = [str(key) for key in content if key not in _KEYS]
    if unknown:
        raise ValueError(
            f"{where} has {unknown[0][:60]!r}; it is known by {', '.join(_KEYS)}. A population is who the contacts are "
            "on the day they are asked about; what happens after it is the event's to say"
        )
    kinds = [key for key in ("all", "any", "feature") if key in content]
    if len(kinds) != 1 or (kinds[0] != "feature" and len(content) > 1):
        raise ValueError(f"{where} has {', '.join(map(str, content)) or 'nothing'}; write one of all, any and feature")
    kind = kinds[0]
    if kind == "feature":
        return _bound(content, primitive, where)
    parts = content[kind]
    if not isinstance(parts, Sequence) or isinstance(parts, str) or not parts:
        raise ValueError(f"{where}.{kind} is {_shown(parts)}; write a list of at least one rule")
    if depth >= MAX_DEPTH or len(parts) > MAX_BOUNDS:
        raise ValueError(
            f"{where} nests {depth + 1} deep with {len(parts)} rules; at most {MAX_DEPTH} deep and {MAX_BOUNDS} rules "
            "are read: declare several outcomes"
        )
    read = tuple(_parsed(part, primitive, f"{where}.{kind}[{i}]", depth + 1) for i, part in enumerate(parts))
    return Rule("all" if kind == "all" else "any", read)


def _bound(content: Mapping[Any, Any], primitive: Mapping[str, str], where: str) -> Bound:
    feature = content["feature"]
    if not isinstance(feature, str) or feature not in primitive:
        near = get_close_matches(str(feature), primitive, 3, 0.5)
        said = f"; did you mean {' or '.join(near)}?" if near else ";"
        raise ValueError(f"{where} names feature {_shown(feature)}, which is none{said} `kairos features list` has all")
    numbers = {}
    for key in ("at_least", "at_most", "is"):
        if key in content:
            value = float(content[key]) if isinstance(content[key], bool | int | float) else math.nan
            if not math.isfinite(value):
                raise ValueError(f"{where}.{key} of {feature} is {_shown(content[key])}; write a number")
            numbers[key] = value
    if not numbers or ("is" in numbers and len(numbers) > 1):
        raise ValueError(f"{where} does not bound {feature}; write at_least, at_most or both, or is alone")
    least, most = (numbers.get(key, numbers.get("is")) for key in ("at_least", "at_most"))
    if least is not None and most is not None and least > most:
        raise ValueError(f"{where} asks for {feature} from {least:g} to {most:g}, which is nothing; exchange them")
    if primitive[feature] in _PAST_ONLY and most is not None and most < 0:
        raise ValueError(f"{where} asks for {feature} of at most {most:g}: that lies in the future; write 0 or more")
    return Bound(feature, least, most)


def _count(rule: Rule | Bound) -> int:
    return 1 if isinstance(rule, Bound) else sum(map(_count, rule.parts))


def _expanded(rule: Rule | Bound) -> list[tuple[Bound, ...]]:
    if isinstance(rule, Bound):
        return [(rule,)]
    parts = [_expanded(part) for part in rule.parts]
    count = sum(map(len, parts)) if rule.kind == "any" else math.prod(map(len, parts))
    if count > MAX_ALTERNATIVES:
        raise ValueError(
            f"the rule {rule.says[:200]} has {count} alternatives; at most {MAX_ALTERNATIVES} are evaluated: name "
            "fewer any inside all"
        )
    if rule.kind == "any":
        return [bounds for part in parts for bounds in part]
    return [tuple(bound for bounds in chosen for bound in bounds) for chosen in product(*parts)]


def _merged(bounds: tuple[Bound, ...]) -> tuple[Compiled, ...] | None:
    """One bound a feature; None if they exclude each other."""
    found: dict[str, tuple[float | None, float | None]] = {}
    for bound in bounds:
        least, most = found.get(bound.feature, (None, None))
        lows = [value for value in (least, bound.at_least) if value is not None]
        highs = [value for value in (most, bound.at_most) if value is not None]
        least, most = max(lows, default=None), min(highs, default=None)
        if least is not None and most is not None and least > most:
            return None
        found[bound.feature] = (least, most)
    return tuple((feature, least, most) for feature, (least, most) in found.items())


def _shown(value: Any) -> str:
    return repr(value)[:60]
