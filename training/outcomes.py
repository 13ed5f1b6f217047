"""Declared outcomes: who will, or will not, do what within how many days, as a user writes it down.

::

    name: silent_regulars
    population:
      all:
        - {feature: orders_ever, at_least: 3}
        - {feature: days_since_order, at_most: 90}
    event: Order Completed            # or a list of names, of the vocabulary or your own
    where: {category: [Shoes, Hats]}  # optional: values, or {at_least: 10, at_most: 20}
    happens: false                    # they will not
    within_days: 60                   # or `three usual gaps`, estimated from the orders
    at_least_deliveries: 0            # optional: seen only of contacts that got so many mails
    who: regulars                     # optional: the population in words

A bound may be a multiple of the horizon, ``{horizons: 2}``. The declarations that ship lie in ``declarations/``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from features.labels import Outcome
from features.rules import MAX_BOUNDS, MAX_DEPTH, parse_rule
from features.views import DEFAULT_VIEWS, Where
from features.vocabulary import (
    ARM_SHOWN,
    EMAIL_SENT,
    EMAIL_WITHHELD,
    KINDS,
    ORDER_COMPLETED,
    REWARD_RECEIVED,
    canonical_name,
)
from training.serving import EVERYONE, Population

#: Below any of these there is nothing to learn a personal score from.
LEAST_CONTACTS, LEAST_OF_EACH = 100, 20

FOLDER = Path(__file__).parent / "declarations"
#: ``within_days`` of an outcome whose horizon is estimated, see `features.labels.churn_horizon_days`.
USUAL = "three usual gaps"
#: Names that mean something else where a model's name may stand.
RESERVED = ("send_hour", "all", "user_id", "as_of", "why")
#: What we do ourselves, because of scores: a model of it would learn our own plan.
OUR_DOING = (EMAIL_SENT, EMAIL_WITHHELD, ARM_SHOWN, REWARD_RECEIVED)

MAX_CHARACTERS, MAX_NAME, MAX_EVENTS, MAX_CONDITIONS, MAX_VALUES = 64_000, 60, 20, 10, 200
MAX_HORIZON_DAYS = 365
MAX_DELIVERIES = 100

_NAME = re.compile(rf"[a-z][a-z0-9_]{{0,{MAX_NAME - 1}}}\Z")
_IN_HORIZONS = re.compile(r"\{(\d+) horizons?\}")
_FIELDS = ("name", "population", "event", "where", "happens", "within_days", "at_least_deliveries", "who")


@dataclass(frozen=True)
class Definition:
    """What a model of a yes-or-no outcome is asked: of whom, what, and by when."""

    outcome: Outcome
    #: On the vector, so that training, scoring and requests ask it of the same contacts.
    population: Population
    horizon_days: int
    #: What a probability of 1 would mean, for people.
    says: str

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Definition:
        """The definition that ``dataclasses.asdict`` turned into ``content``, perhaps by way of JSON."""
        return cls(
            Outcome.from_dict(content["outcome"]),
            Population.from_dict(content["population"]),
            content["horizon_days"],
            content["says"],
        )


@dataclass(frozen=True)
class Declaration:
    """An outcome as it was declared; `parse` makes one from what a user wrote, and refuses what makes no sense."""

    name: str
    #: The rule as written (`features.rules`), ``everyone``, or bounds in multiples of the horizon.
    population: Any
    events: tuple[str, ...]
    where: tuple[Where, ...]
    happens: bool
    #: None: three usual gaps between orders, estimated when it is trained and then frozen.
    within_days: int | None
    at_least_deliveries: int = 0
    who: str = ""

    def population_over(self, horizon_days: int) -> Population:
        """Whom it is asked about, where the horizon is so long.

        Raises
        ------
        ValueError
            If the rule makes no sense; the message names the place, the value and the remedy.
        """
        if self.population == "everyone":
            return EVERYONE
        rule = parse_rule(_in_days(self.population, horizon_days), DEFAULT_VIEWS)
        said = _IN_HORIZONS.sub(lambda found: str(int(found[1]) * horizon_days), self.who)
        return Population(rule.alternatives(), said or f"contacts with {rule.says}")

    def definition(self, horizon_days: int | None = None) -> Definition:
        """What a model is asked, over ``horizon_days`` or the days that were declared.

        Raises
        ------
        ValueError
            If the horizon is to come from the data and none is given, or lies outside 1 to 365.
        """
        days = self.within_days if horizon_days is None else horizon_days
        if days is None:
            raise ValueError(f"{self.name} takes its horizon from the data ({USUAL}); pass horizon_days")
        if not 1 <= days <= MAX_HORIZON_DAYS:
            raise ValueError(f"{self.name} over {days} days: a horizon has 1 to {MAX_HORIZON_DAYS} days")
        outcome = Outcome(
            self.name,
            self.events,
            self.within_days,
            "some" if self.happens else "none",
            self.where,
            self.at_least_deliveries,
        )
        return Definition(outcome, self.population_over(days), days, self.says(days))

    def says(self, horizon_days: int | None = None) -> str:
        """What a probability of 1 would mean, in one line."""
        days = self.within_days if horizon_days is None else horizon_days
        what = "order" if self.events == (ORDER_COMPLETED,) else " or ".join(f"“{name}”" for name in self.events)
        conditions = "".join(f" with {_said(one)}" for one in self.where)
        within = f"in the next {days} days" if days is not None else f"within {USUAL}"
        article = "no" if not self.happens else "an" if what == "order" else "a"
        mailed = f", of whom at least {self.at_least_deliveries} mails reach" if self.at_least_deliveries else ""
        return f"{article} {what}{conditions} {within}{mailed}"

    def as_dict(self) -> dict[str, Any]:
        """The declaration as JSON holds it; `parse` reads it again."""
        content: dict[str, Any] = {
            "name": self.name,
            "population": self.population,
            "event": list(self.events),
            "happens": self.happens,
            "within_days": USUAL if self.within_days is None else self.within_days,
        }
        if self.where:
            content["where"] = {
                one.name: list(one.values) or {"at_least": one.at_least, "at_most": one.at_most} for one in self.where
            }
        if self.at_least_deliveries:
            content["at_least_deliveries"] = self.at_least_deliveries
        if self.who:
            content["who"] = self.who
        return content


def read(text: str) -> Declaration:
    """The declaration that a YAML or JSON text holds.

    Raises
    ------
    ValueError
        If it cannot be read or makes no sense.
    """
    return parse(_document(text))


@cache
def shipped() -> Mapping[str, Declaration]:
    """The declarations that come with the program, by name."""
    return {
        declared.name: declared
        for path in sorted(FOLDER.glob("*.yaml"))
        for declared in [_declaration(_document(path.read_text(encoding="utf-8")))]
    }


def parse(content: Any) -> Declaration:
    """A user's declaration, from the mapping that YAML or JSON gave.

    Raises
    ------
    ValueError
        Naming the field, the value and what to write instead.
    """
    declared = _declaration(content)
    taken = (*shipped(), *RESERVED)
    if declared.name in taken:
        raise ValueError(f"the name {declared.name!r} is taken ({', '.join(taken)}); choose another")
    return declared


def restore(content: Any) -> Declaration:
    """The declaration that ``as_dict`` gave, whatever names and features mean by now.

    A feature that is gone is told when the outcome is counted or trained, so that it does not hide the others.
    """
    return _declaration(content, is_checked=False)


def _declaration(content: Any, *, is_checked: bool = True) -> Declaration:
    if not isinstance(content, Mapping):
        raise ValueError(f"a declaration is a mapping of {', '.join(_FIELDS)}, not {_shown(content)}")
    unknown = [str(key) for key in content if key not in _FIELDS]
    if unknown:
        raise ValueError(f"a declaration has no field {unknown[0][:60]!r}; it has {', '.join(_FIELDS)}")
    missing = [key for key in ("name", "population", "event", "happens", "within_days") if content.get(key) is None]
    if missing:
        raise ValueError(f"the declaration does not say its {missing[0]}; it takes at least {missing[0]}: …")
    name, happens, who = content["name"], content["happens"], content.get("who") or ""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ValueError(
            f"name is {_shown(name)}; write a word of a-z, 0-9 and _ that begins with a letter, of at most {MAX_NAME} "
            "characters"
        )
    if not isinstance(happens, bool):
        raise ValueError(f"happens is {_shown(happens)}; write true (they will) or false (they will not)")
    if not isinstance(who, str) or len(who) > 200:
        raise ValueError(f"who is {_shown(who)}; write the population in at most 200 characters")
    events = _events(content["event"])
    where = _where(content.get("where"))
    population = content["population"]
    declared = Declaration(
        name=name,
        population=population if population == "everyone" else _plain(population),
        events=events,
        where=where,
        happens=happens,
        within_days=_within(content["within_days"], events, where),
        at_least_deliveries=_whole("at_least_deliveries", content.get("at_least_deliveries", 0), 0, MAX_DELIVERIES),
        who=who,
    )
    if is_checked:
        declared.population_over(declared.within_days or 30)
    return declared


def _events(given: Any) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, Sequence) or not names or len(names) > MAX_EVENTS:
        raise ValueError(f"event is {_shown(given)}; write one event's name, or a list of 1 to {MAX_EVENTS}")
    events = []
    for name in names:
        if not isinstance(name, str) or not name.strip() or len(name) > 80:
            raise ValueError(f"event {_shown(name)} is no event's name; write 1 to 80 characters")
        event = canonical_name(name.strip())
        if event in OUR_DOING:
            raise ValueError(
                f"event {event!r} is what this service does itself, because of its scores: a model of it would learn "
                "our own plan. Choose something that contacts do"
            )
        known = {_letters(kind): kind for kind in KINDS}.get(_letters(event))
        if event not in KINDS and known is not None:
            raise ValueError(f"event {event!r} is no event of the log's vocabulary; did you mean {known!r}?")
        events.append(event)
    return tuple(dict.fromkeys(events))


def _where(given: Any) -> tuple[Where, ...]:
    if given is None:
        return ()
    if not isinstance(given, Mapping) or len(given) > MAX_CONDITIONS:
        raise ValueError(f"where is {_shown(given)}; write {{property: [values]}}, at most {MAX_CONDITIONS}")
    found = []
    for name, wanted in given.items():
        if not isinstance(name, str) or not name or len(name) > 200:
            raise ValueError(f"where names property {_shown(name)}; write its path, such as products.category")
        if isinstance(wanted, Mapping):
            bounds = {key: value for key, value in wanted.items() if value is not None}
            if not bounds or not set(bounds) <= {"at_least", "at_most"} or not all(map(_is_number, bounds.values())):
                raise ValueError(f"where.{name} is {_shown(wanted)}; write at_least, at_most or both, as numbers")
            found.append(Where(name, at_least=bounds.get("at_least"), at_most=bounds.get("at_most")))
            continue
        values = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
        if not 0 < len(values) <= MAX_VALUES or not all(isinstance(v, str | bool) or _is_number(v) for v in values):
            raise ValueError(
                f"where.{name} is {_shown(wanted)}; write 1 to {MAX_VALUES} values, each a text, number, true or false"
            )
        found.append(Where(name, tuple(values)))
    return tuple(found)


def _within(given: Any, events: tuple[str, ...], where: tuple[Where, ...]) -> int | None:
    if given != USUAL:
        return _whole("within_days", given, 1, MAX_HORIZON_DAYS, f", or {USUAL!r}")
    if events != (ORDER_COMPLETED,) or where:
        raise ValueError(
            f"within_days is {USUAL!r}, which is estimated between orders; for other events, or some orders only, "
            "write a number of days"
        )
    return None


def _whole(field: str, given: Any, least: int, most: int, otherwise: str = "") -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not least <= given <= most:
        raise ValueError(f"{field} is {_shown(given)}; write a whole number from {least} to {most}{otherwise}")
    return given


def _in_days(rule: Any, horizon_days: int) -> Any:
    """``rule`` with its multiples of the horizon as days."""
    if isinstance(rule, Mapping):
        if set(rule) == {"horizons"}:
            return rule["horizons"] * horizon_days if _is_number(rule["horizons"]) else rule
        return {key: _in_days(value, horizon_days) for key, value in rule.items()}
    return [_in_days(part, horizon_days) for part in rule] if isinstance(rule, list) else rule


def _plain(rule: Any, left: list[int] | None = None, depth: int = 0) -> Any:
    """A copy without the anchors that YAML may tie into knots: as JSON holds it, and of a size that can be read."""
    left = [20 * MAX_BOUNDS] if left is None else left
    left[0] -= 1
    if depth > 3 * MAX_DEPTH:
        raise ValueError(f"population nests more than {MAX_DEPTH} deep; write it flatter")
    if left[0] < 0:
        raise ValueError(f"population has more than {MAX_BOUNDS} bounds; declare several outcomes")
    if isinstance(rule, Mapping):
        return {str(key): _plain(value, left, depth + 1) for key, value in rule.items()}
    if isinstance(rule, list | tuple):
        return [_plain(part, left, depth + 1) for part in rule]
    return rule if rule is None or isinstance(rule, str | bool | int | float) else str(rule)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _letters(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


def _said(one: Where) -> str:
    if one.values:
        return f"{one.name} in ({', '.join(map(str, one.values))})"
    low = "" if one.at_least is None else f"{one.at_least:g} ≤ "
    return f"{low}{one.name}" + ("" if one.at_most is None else f" ≤ {one.at_most:g}")


def _shown(value: Any) -> str:
    return repr(value)[:80]


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice: the one that is forgotten may be the one that was meant."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _once([key for key in keys if isinstance(key, str)])
        return super().construct_mapping(node, deep)


def _once(keys: Sequence[str]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"the declaration has {key[:60]!r} twice; write it once")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _once([key for key, _ in pairs])
    return dict(pairs)


def _document(text: str) -> Any:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the declaration has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read")
    try:
        with suppress(json.JSONDecodeError):  # JSON first: its tabs and numbers such as 1e3 are not YAML's
            return json.loads(text, object_pairs_hook=_pairs)
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"the declaration is neither YAML nor JSON: {' '.join(str(error).split())[:300]}") from None
    except RecursionError:
        raise ValueError("the declaration nests too deep; write it flatter") from None
