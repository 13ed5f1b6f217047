"""Declared outcomes: read, refused with a remedy, counted, and leak-free."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from features import labels
from features.events import NewEvent, append
from features.lake import Lake
from features.tables import to_micros
from features.views import DEFAULT_VIEWS, Where
from features.vocabulary import ORDER_CANCELLED, ORDER_COMPLETED, PAGE
from service.database import Database
from training import churn, conversion, ladder, outcomes
from training.datasets import DAY_MICROS, Definition, TrainingSet, training_set
from training.history import log_span, usual_horizon_days
from training.leaks import leak
from training.outcome_counts import counts, counts_of
from training.outcomes import Declaration, parse, read, restore, shipped
from training.serving import EVERYONE, Population

BEGIN = 1_770_000_000_000_000
SILENT = """
name: silent_regulars
population: {all: [{feature: orders_ever, at_least: 3}, {feature: days_since_order, at_most: 90}]}
event: Order Completed   # or [names]
happens: false
within_days: 60
"""


def written(**changes: Any) -> dict[str, Any]:
    content = {
        "name": "silent_regulars",
        "population": {"feature": "orders_ever", "at_least": 3},
        "event": ORDER_COMPLETED,
        "happens": False,
        "within_days": 60,
    }
    return {key: value for key, value in (content | changes).items() if value is not None}


def test_a_declaration_becomes_the_question_of_a_model() -> None:
    """Population as bounds, outcome, horizon, and what a probability means; another horizon may be asked for."""
    declared = read(SILENT)

    definition = declared.definition()

    assert definition.population.alternatives == ((("orders_ever", 3.0, None), ("days_since_order", None, 90.0)),)
    assert definition.population.says == "contacts with orders_ever ≥ 3 and days_since_order ≤ 90"
    assert (definition.outcome.events, definition.outcome.positive) == ((ORDER_COMPLETED,), "none")
    assert definition.says == "no order in the next 60 days"
    assert declared.definition(30).horizon_days == 30
    assert Definition.from_dict(json.loads(json.dumps(asdict(definition)))) == definition


def test_yaml_and_json_say_the_same_and_survive_storage() -> None:
    """With every field; names of before are read as their successors."""
    full = written(
        event=["Completed Order", "Sofa Tested"], where={"category": ["Shoes", 3], "price": {"at_least": 5}},
        at_least_deliveries=2, who="regulars of {3 horizons} days",
    )  # fmt: skip
    declared = read(json.dumps(full, indent="\t"))

    assert parse(declared.as_dict()) == declared
    assert parse(json.loads(json.dumps(declared.as_dict()))) == declared
    assert declared.events == (ORDER_COMPLETED, "Sofa Tested")
    assert declared.where == (Where("category", ("Shoes", 3)), Where("price", at_least=5))
    assert declared.population_over(10).says == "regulars of 30 days"
    assert "category in (Shoes, 3) with 5 ≤ price" in declared.says(60)
    assert read(SILENT) == parse(written(population=read(SILENT).population))
    assert parse(written(population="everyone")).population_over(9) == EVERYONE


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "churn"}, "'churn' is taken"),
        ({"name": "send_hour"}, "'send_hour' is taken"),
        ({"name": "why"}, "'why' is taken"),
        ({"name": "Silent Regulars"}, "'Silent Regulars'; write a word"),
        ({"name": "a" * 61}, "at most 60"),
        ({"name": "a\n"}, "write a word"),
        ({"name": None}, "does not say its name"),
        ({"happens": "no"}, "'no'; write true"),
        ({"within_days": 0}, "0; write a whole number from 1 to 365"),
        ({"within_days": 366}, "366"),
        ({"within_days": 30.5}, "30.5"),
        ({"within_days": True}, "True"),
        ({"within_days": "three usual gaps", "event": "Page"}, "estimated between orders"),
        ({"event": []}, r"\[\]; write one event"),
        ({"event": ""}, "1 to 80 characters"),
        ({"event": 7}, "7; write one event"),
        ({"event": "order completed"}, "did you mean 'Order Completed'"),
        ({"event": "Email Sent"}, "does itself"),
        ({"event": ["Page", "Reward Received"]}, "does itself"),
        ({"where": ["category"]}, "write {property"),
        ({"where": {"category": []}}, "1 to 200 values"),
        ({"where": {"category": {"above": 3}}}, "at_least, at_most or both"),
        ({"where": {"category": [{"a": 1}]}}, "1 to 200 values"),
        ({"population": {"feature": "churn_probability", "at_least": 0.5}}, "'churn_probability', which is none"),
        ({"population": {"feature": "days_since_order", "at_most": {"horizons": "two"}}}, "write a number"),
        ({"population": "nobody"}, "'nobody'"),
        ({"at_least_deliveries": -1}, "-1; write a whole number from 0 to 100"),
        ({"horizon": 3}, "no field 'horizon'"),
        ({"who": 3}, "write the population"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_remedy(changes: dict[str, Any], said: str) -> None:
    """Field, value, and what to write instead."""
    with pytest.raises(ValueError, match=said):
        parse(written(**changes))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not None"),
        ("- a\n- b", "is a mapping"),
        ("name: [", "neither YAML nor JSON"),
        ("name: a\nname: b", "'name' twice"),
        ('{"name": "a", "name": "b"}', "'name' twice"),
        ("name: !!python/object/apply:os.getcwd []", "neither YAML nor JSON"),
        ("[" * 60_000, "too deep"),
        ("x" * 64_001, "64,001 characters"),
        (
            "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nname: bomb\nevent: Page\n"
            "happens: true\nwithin_days: 3\npopulation: {all: &c [*b, *b, *b, *b, *b, *b, *b, *b, *b, *b, *b, *b, *b]}",
            "no field 'a'",
        ),
        ("&a\nname: knot\nevent: Page\nhappens: true\nwithin_days: 3\npopulation: {all: [*a]}", "nests more than"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text: str, said: str) -> None:
    """Syntax, keys told twice, objects of Python, depth, size, knots of anchors."""
    with pytest.raises(ValueError, match=said):
        read(text)


def test_what_ships_is_what_was_built_in() -> None:
    """Commerce churn, conversion and e-mail churn are declarations like any other."""
    named = shipped()

    assert sorted(named) == ["churn", "conversion", "email_churn"]
    assert named["churn"].definition(45).outcome == labels.CHURN
    assert churn.population(45) == Population(
        ((("orders_ever", 1, None), ("days_since_order", 0, 90)),), "contacts with an order in the last 90 days"
    )
    assert named["conversion"].definition() == Definition(
        labels.CONVERSION, conversion.POPULATION, 30, "an order in the next 30 days"
    )
    assert [len(of) for of in conversion.POPULATION.alternatives] == [1, 1, 1]
    assert set(named["email_churn"].definition().outcome.events) == set(labels.EMAIL_CHURN.events)
    assert named["email_churn"].definition().outcome.least_deliveries == 5
    with pytest.raises(ValueError, match="takes its horizon from the data"):
        named["churn"].definition()
    with pytest.raises(ValueError, match="366 days"):
        named["churn"].definition(366)


def _naive_counts(shop: Any, declared: Declaration, until: int) -> list[int]:
    definition = declared.definition()
    now = training_set(shop.lake, DEFAULT_VIEWS, definition, [until])
    then = training_set(shop.lake, DEFAULT_VIEWS, definition, [until - definition.horizon_days * DAY_MICROS])
    return [len(now) + now.manifest["censored_rows"], int((then.y == 1).sum()), int((then.y == 0).sum())]


def test_counts_are_those_of_the_last_closed_window(shop) -> None:
    """As training would see them, several outcomes in one pass; e-mail churn says who could not be seen."""
    until = to_micros(shop.now)
    silent, email = read(SILENT), shipped()["email_churn"]

    several = counts_of(shop.lake, [silent, email, shipped()["churn"]], until)

    assert several[0] == counts(shop.lake, silent, until)
    for found, declared in zip(several, (silent, email), strict=False):
        assert [found.population, found.with_outcome, found.without_outcome] == _naive_counts(shop, declared, until)
        assert found.closed == found.with_outcome + found.without_outcome + found.censored
    assert several[0].trainable
    assert several[0].says.startswith("can be trained")
    assert several[1].censored > 0
    assert "too few mails" in several[1].says
    assert several[2].horizon_days == usual_horizon_days(log_span(shop.lake, until), until)
    assert counts_of(shop.lake, [], until) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"event": "Sofa Tested", "happens": True}, "no event Sofa Tested.*0 of 20 with the outcome"),
        ({"event": "Sofa Tested"}, "0 of 20 without it"),
        ({"population": {"feature": "orders_ever", "at_least": 500}}, "0 of 100 contacts"),
        ({"within_days": 200}, "259 days.*declare at most 107 days"),
    ],
)
def test_what_is_missing_is_said(changes: dict[str, Any], said: str, shop) -> None:
    """No positives, one class, too few customers, a horizon longer than the history."""
    found = counts(shop.lake, parse(written(**changes)), to_micros(shop.now))

    assert not found.trainable
    assert found.says.startswith("not yet")
    assert re.search(said, found.says)


def test_counts_and_training_ask_for_as_much() -> None:
    """What is said before training is what training then checks."""
    assert (outcomes.LEAST_CONTACTS, outcomes.LEAST_OF_EACH) == (ladder.LEAST_CONTACTS, ladder.LEAST_OF_EACH)


def test_a_feature_that_is_gone_is_told_and_hides_no_other(shop) -> None:
    """A stored declaration outlives the view set it was written for."""
    gone = restore(written(population={"feature": "sofas_tested", "at_least": 1}))

    found = counts_of(shop.lake, [gone, read(SILENT)], to_micros(shop.now))

    assert [one.trainable for one in found] == [False, True]
    assert "'sofas_tested', which is none" in found[0].says


def test_an_empty_lake_has_nothing_to_count(tmp_path) -> None:
    """It says so instead of failing."""
    found = counts(Lake(str(tmp_path), buckets=2), shipped()["churn"], BEGIN)

    assert (found.trainable, found.horizon_days, found.population) == (False, None, 0)
    assert "holds no event" in found.says


def test_who_comes_into_the_log_later_is_asked_about_by_nobody(database: Database, tmp_path) -> None:
    """“Never ordered” holds of strangers too; their first order would give them away as contacts."""
    begin = BEGIN
    told = [(1, PAGE, 0), (1, ORDER_COMPLETED, 50), (2, ORDER_COMPLETED, 50), (3, PAGE, 0)]
    with database.writing() as session:
        events = [
            NewEvent(key, kind, begin + day * DAY_MICROS, f"{n}", "user:1") for n, (key, kind, day) in enumerate(told)
        ]
        append(session, events, received_at=begin + 90 * DAY_MICROS, imported=True)
    lake = Lake(str(tmp_path / "lake"), buckets=2)
    with database.reading() as session:
        lake.sync(session)
    never = parse(written(population={"feature": "orders_ever", "is": 0}, happens=True, within_days=30))

    data = training_set(lake, DEFAULT_VIEWS, never.definition(), [begin + 40 * DAY_MICROS])
    found = counts(lake, never, begin + 70 * DAY_MICROS)

    assert (data.contact_key.tolist(), data.y.tolist()) == ([1, 3], [1, 0])
    assert (found.with_outcome, found.without_outcome) == (1, 1)


def test_a_cancellation_that_arrives_later_changes_no_vector_and_labels_know_it_at_the_close(
    database: Database, tmp_path
) -> None:
    """Received after ``as_of``: the vector stays. Received before the close: no order; after it: the order counts."""
    begin = BEGIN

    def at(day: float) -> int:
        return begin + int(day * DAY_MICROS)

    definition = shipped()["conversion"].definition(30)
    lake = Lake(str(tmp_path / "lake"), buckets=2)
    rows = []
    for told in (
        [NewEvent(1, ORDER_COMPLETED, at(0), "o0", "user:1", "r0", 900), *_orders(at(45))],
        [NewEvent(key, ORDER_CANCELLED, at(46), f"c{key}", "user:1", f"r{key}", 500) for key in (1, 2)],
    ):
        with database.writing() as session:
            append(session, told[:2], received_at=at(47), imported=told[0].kind == ORDER_COMPLETED)
            append(session, told[2:], received_at=at(47), imported=True)
        with database.reading() as session:
            lake.sync(session)
        rows.append(training_set(lake, DEFAULT_VIEWS, definition, [at(40)]))

    before, after = rows
    np.testing.assert_array_equal(before.X, after.X)
    assert (before.y.tolist(), after.y.tolist()) == ([1], [0])
    assert (before.order_value.tolist(), after.order_value.tolist()) == ([500], [0])
    early = training_set(lake, DEFAULT_VIEWS, Definition(definition.outcome, definition.population, 6, ""), [at(40)])
    assert early.y.tolist() == [1]  # closed at day 46: the cancellation was received on day 47


def _orders(at: int) -> list[NewEvent]:
    return [NewEvent(1, ORDER_COMPLETED, at, "o1", "user:1", "r1", 500)]


def _set(X: np.ndarray, y: np.ndarray) -> TrainingSet:
    n = len(y)
    return TrainingSet(X, y.astype(np.int8), np.arange(n), np.zeros(n, np.int64), ("noise", "renewal", "plan"))


def test_a_feature_that_separates_the_classes_is_a_leak() -> None:
    """Above, below, or only by being there; with a late one in a thousand too. Noise, and few rows, are none."""
    rng = np.random.default_rng(0)
    y = rng.random(3_000) < 0.3
    X = rng.normal(size=(3_000, 3))

    assert leak(_set(X, y)) is None
    for leaked in (X[:, 1] + 20 * y, X[:, 1] - 20 * y, np.where(y, X[:, 1], np.nan), np.where(y, np.nan, X[:, 1])):
        told = leak(_set(np.column_stack([X[:, 0], leaked, X[:, 2]]), y))
        assert told is not None
        assert "the feature renewal alone" in told
    late = X[:, 1] + 20 * y
    late[0] = 20.0 - late[0]
    assert leak(_set(np.column_stack([X[:, 0], late, X[:, 2]]), y)) is not None
    assert leak(_set(X, np.zeros(3_000))) is None  # one class
    assert leak(_set(np.ones((3_000, 3)), y)) is None  # constant features
    assert leak(_set(X[:30], X[:30, 0] > 0)) is None  # too few to tell from chance


def test_the_shop_does_not_leak(shop) -> None:
    """Real outcomes of the made-up shop separate by no single feature."""
    data = training_set(shop.lake, DEFAULT_VIEWS, read(SILENT).definition(), [to_micros(shop.now) - 60 * DAY_MICROS])

    assert 0 < data.y.sum() < len(data)
    assert leak(data) is None
