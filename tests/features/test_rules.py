"""Laws of rules: a compiled rule holds where the rule as written does, and what makes no sense is told apart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.rules import MAX_ALTERNATIVES, parse_rule
from features.views import DEFAULT_VIEWS

FEATURES = ("orders_ever", "days_since_order", "sends_90d", "open_rate_30d")
numbers = st.integers(0, 4)
bounds = st.builds(
    lambda feature, key, value: {"feature": feature, key: value},
    st.sampled_from(FEATURES),
    st.sampled_from(("at_least", "at_most", "is")),
    numbers,
)
rules = st.recursive(
    bounds,
    lambda parts: st.builds(
        lambda kind, of: {kind: of}, st.sampled_from(("all", "any")), st.lists(parts, min_size=1, max_size=3)
    ),
    max_leaves=8,
)
vectors = st.fixed_dictionaries({name: st.one_of(numbers.map(float), st.just(math.nan)) for name in FEATURES})


def naive(rule: dict[str, Any], vector: dict[str, float]) -> bool:
    if "all" in rule or "any" in rule:
        return (all if "all" in rule else any)(naive(part, vector) for part in next(iter(rule.values())))
    value = vector[rule["feature"]]
    return (
        not math.isnan(value)
        and {
            "at_least": value >= rule.get("at_least", 0),
            "at_most": value <= rule.get("at_most", 0),
            "is": value == rule.get("is"),
        }[next(key for key in rule if key != "feature")]
    )


@given(rule=rules, told=st.lists(vectors, min_size=1, max_size=10))
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_compiled_rule_holds_where_the_rule_does(rule: dict[str, Any], told: list[dict[str, float]]):
    """All and any in any nesting, missing values among them; said without failing."""
    parsed = parse_rule(rule, DEFAULT_VIEWS)
    try:
        compiled = parsed.alternatives()
    except ValueError:
        assert not any(naive(rule, vector) for vector in told)
        return
    for vector in told:
        held = any(
            all(
                (low is None or vector[name] >= low) and (high is None or vector[name] <= high) and vector[name] >= 0
                for name, low, high in alternative
            )
            for alternative in compiled
        )
        assert held == naive(rule, vector)
    assert all(name in parsed.says for name in np.unique([name for of in compiled for name, _, _ in of]))


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("everybody", "'everybody'"),
        ({}, "nothing"),
        ({"all": []}, r"population.all is \[\]"),
        ({"all": [{"feature": "orders_ever"}]}, r"population.all\[0\] does not bound orders_ever"),
        ({"feature": "orders_evr", "at_least": 1}, "'orders_evr'.*did you mean orders_ever"),
        ({"feature": ["x"], "at_least": 1}, r"\['x'\]"),
        ({"feature": "orders_ever", "at_least": "many"}, "'many'; write a number"),
        ({"feature": "orders_ever", "at_least": math.nan}, "write a number"),
        ({"feature": "orders_ever", "is": None}, "None; write a number"),
        ({"feature": "orders_ever", "is": 1, "at_least": 0}, "is alone"),
        ({"feature": "orders_ever", "at_least": 3, "at_most": 2}, "from 3 to 2"),
        ({"feature": "days_since_order", "at_most": -1}, "future"),
        ({"feature": "orders_ever", "in_next_days": 30}, "'in_next_days'.*on the day"),
        ({"any": [{"feature": "orders_ever", "is": 1}], "feature": "x"}, "one of all, any and feature"),
        ({"event": "Order Completed"}, "'event'"),
    ],
)
def test_a_rule_without_sense_is_refused_by_place_and_value(rule: Any, said: str):
    """And with what to write instead."""
    with pytest.raises(ValueError, match=said):
        parse_rule(rule, DEFAULT_VIEWS)


def test_rules_nobody_can_read_are_refused():
    """Too many alternatives, too deep, bounds that exclude each other."""
    either = {"any": [{"feature": name, "at_least": 1} for name in FEATURES[:3]]}
    wide = parse_rule({"all": [either] * 4}, DEFAULT_VIEWS)
    deep: dict[str, Any] = {"feature": "orders_ever", "is": 1}
    for _ in range(8):
        deep = {"all": [deep]}

    with pytest.raises(ValueError, match=f"81 alternatives; at most {MAX_ALTERNATIVES}"):
        wide.alternatives()
    with pytest.raises(ValueError, match="deep"):
        parse_rule(deep, DEFAULT_VIEWS)
    with pytest.raises(ValueError, match="101"):
        parse_rule({"any": [{"feature": "orders_ever", "is": 1}] * 101}, DEFAULT_VIEWS)
    with pytest.raises(ValueError, match="exclude each other"):
        parse_rule({"all": [{"feature": "orders_ever", "is": n} for n in (1, 2)]}, DEFAULT_VIEWS).alternatives()
