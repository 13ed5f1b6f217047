"""Laws of the declared features."""

from __future__ import annotations

import dataclasses
import json

import pytest

from features.views import (
    DEFAULT_VIEWS,
    EVER,
    ORDERS,
    SEMANTICS,
    SEND_HOUR_VIEWS,
    SENDS,
    TRAITS,
    VIEW_SETS,
    FeatureView,
    Stream,
    ViewSet,
    Where,
)


def orders(**changes: object) -> FeatureView:
    view = FeatureView("orders", "count", ORDERS, (30,), "frequency", "orders", "Orders placed.")
    return dataclasses.replace(view, **changes)  # type: ignore[arg-type]


def test_the_default_set_has_its_families():
    """At least eighty columns, and none of the families the models lean on is missing."""
    families = {row["family"] for row in DEFAULT_VIEWS.describe()}

    assert len(DEFAULT_VIEWS.names) >= 80
    assert families == {
        "recency", "frequency", "monetary", "regularity", "email", "fatigue", "web", "cart", "hours", "cancellations",
        "traits",
    }  # fmt: skip


def test_the_send_hour_set_has_five_histograms_of_24_hours():
    """In the order that the model reads them."""
    names = ("sent_hour", "answered_hour", "answer_hour", "visit_hour", "recent_visit_hour")
    assert SEND_HOUR_VIEWS.names == tuple(f"{name}_{hour:02d}" for name in names for hour in range(24))


def test_own_hours_are_asked_of_answers_only():
    """Of every event the hour is its own anyway; the flag changes the set's version, its absence does not."""
    with pytest.raises(ValueError, match="answers_within_hours"):
        Stream("mail opened", ("Email Opened",), own_hour=True)
    answers = Stream("answers", ("Email Opened",), True, answers_within_hours=24)
    own = dataclasses.replace(answers, own_hour=True)
    sets = [ViewSet("s", (FeatureView("h", "hour_histogram", of, (30,), "f", "u", "d"),)) for of in (answers, own)]

    assert sets[0].version != sets[1].version
    assert all(ViewSet.from_definition(one.definition()).version == one.version for one in sets)


@pytest.mark.parametrize("views", VIEW_SETS.values(), ids=VIEW_SETS)
def test_every_column_is_described(views: ViewSet):
    """Name, family, unit, null rule, owner and description, one row per column, in order."""
    rows = views.describe()

    assert [row["name"] for row in rows] == list(views.names)
    assert all(row[key] for row in rows for key in ("family", "unit", "null_rule", "owner", "description"))


@pytest.mark.parametrize("views", VIEW_SETS.values(), ids=VIEW_SETS)
def test_the_program_fills_every_column_once(views: ViewSet):
    """No column is left to chance, none is written twice."""
    program = views.program
    direct = [
        column + place
        for _, column, bins in program.operation_table.tolist()
        for place in range(bins)
        if column < program.n_columns
    ]
    derived = program.derived_table[:, 1].tolist()
    scanned = program.scan_table[:, 1].tolist()

    assert sorted(direct + derived + scanned) == list(range(len(views.names)))


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": (31,)},
        {"primitive": "days"},
        {"stream": Stream("order", ("Order Refunded",))},
        {"stream": Stream("order", ORDERS.kinds, custom_kinds=("Order Placed",))},
        {"stream": Stream("order", ORDERS.kinds, where=(Where("category", ("shoes",)),))},
        {"stream": Stream("order", ORDERS.kinds, human_only=True)},
        {"name": "purchases"},
    ],
    ids=str,
)
def test_a_change_of_meaning_changes_the_version(changes: dict[str, object]):
    """A model is fed nothing that merely looks like what it learned from."""
    assert ViewSet("a", (orders(),)).version != ViewSet("a", (orders(**changes),)).version


def test_words_for_people_do_not_change_the_version():
    """A better description retires no model."""
    reworded = orders(description="How often they bought.", owner="ada", family="f", unit="pieces")

    assert ViewSet("a", (orders(),)).version == ViewSet("b", (reworded,)).version


def test_a_version_is_the_same_in_every_release():
    """It is written into models and files: a change of the canonical form would orphan them all."""
    tiny = ViewSet("tiny", (FeatureView("orders", "count", ORDERS, (30, None), "f", "u", "d"),))

    assert tiny.version == "e25584fe47da7969"


def test_the_order_of_columns_is_part_of_the_version():
    """Models read columns by place."""
    first, second = orders(), orders(name="order_days", primitive="days")

    assert ViewSet("a", (first, second)).version != ViewSet("a", (second, first)).version


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"windows": ()}, "at least one"),
        ({"windows": (0,)}, "from 1 to 36525"),
        ({"windows": (10**9,)}, "from 1 to 36525"),
        ({"windows": (2.5,)}, "whole number of days"),
        ({"primitive": "cuont"}, "'cuont'; choose of .*'count'"),
        ({"name": ""}, "name it by what it measures"),
        ({"name": "contact_key"}, "name it by what it measures"),
        ({"primitive": "rate"}, "`over`"),
        ({"primitive": "rate", "over": SENDS}, "prior_strength"),
        ({"primitive": "trend", "windows": EVER}, "none before"),
        ({"primitive": "hour_histogram", "bins": 7}, "divides 24"),
        ({"primitive": "hour_histogram", "bins": 0}, "divides 24"),
        ({"primitive": "hour_histogram", "windows": (7, 30)}, "takes one"),
        ({"primitive": "decayed", "half_life_days": 7}, "it takes .None,."),
        ({"primitive": "decayed", "windows": EVER}, "half_life_days 0.0; name a number above 0"),
        ({"primitive": "decayed", "windows": EVER, "half_life_days": 7, "of": "price"}, "of='value'"),
        ({"primitive": "distinct"}, "does not say of what"),
        ({"primitive": "trait", "windows": EVER}, "does not say of what"),
        ({"values": ("gold",)}, "only a trait"),
    ],
    ids=str,
)
def test_a_view_that_means_nothing_is_refused(changes: dict[str, object], said: str):
    """When it is declared, with what to change."""
    with pytest.raises(ValueError, match=said):
        orders(**changes)


def test_two_columns_never_share_a_name():
    """Nor is one thing measured twice."""
    with pytest.raises(ValueError, match="two columns named 'orders_30d'"):
        ViewSet("a", (orders(), orders(primitive="days")))
    with pytest.raises(ValueError, match="measures already"):
        _ = ViewSet("a", (orders(), orders(name="again"))).program


def test_an_unknown_event_is_refused_when_the_view_is_declared():
    """A typing error must not become a column of zeros; an event of one's own is named as such."""
    with pytest.raises(ValueError, match=r"'Order Complete', which .* did you mean 'Order Completed'\?"):
        Stream("orders", ("Order Complete",))
    with pytest.raises(ValueError, match="custom_kinds"):
        Stream("sofas", ("Sofa Tested",))
    for custom_kinds in ((), ("",)):
        with pytest.raises(ValueError, match="looks at no event"):
            Stream("nothing", (), custom_kinds=custom_kinds)

    assert Stream("sofas", (), custom_kinds=("Sofa Tested",)).every_kind == ("Sofa Tested",)


@pytest.mark.parametrize("hours", [0, -24, 1.5, 10**9])
def test_answers_take_time(hours: float):
    """Within no time nothing is answered, and 0 would mean any event; None says that."""
    with pytest.raises(ValueError, match=rf"'answers' has answers_within_hours {hours}; .* from 1 to 876600, or None"):
        Stream("answers", ("Email Opened",), answers_within_hours=hours)  # type: ignore[arg-type]

    assert Stream("answers", ("Email Opened",), answers_within_hours=1).answers_within_hours == 1


def test_a_condition_that_asks_nothing_is_refused():
    """Nor one that asks two things."""
    with pytest.raises(ValueError, match="asks nothing"):
        Where("category")
    with pytest.raises(ValueError, match="write two conditions"):
        Where("price", (3,), at_least=1)


EVERYTHING = ViewSet(
    "everything",
    (
        orders(stream=Stream("shoes", ("Order Completed",), where=(Where("category", ("shoes", 7)),))),
        orders(name="sofas", stream=Stream("sofas", ("Page",), custom_kinds=("Sofa Tested",))),
        orders(name="price", primitive="distinct", of="price", windows=(7, None)),
        FeatureView("tier", "trait", TRAITS, EVER, "f", "u", "d", of="tier", values=("Gold plus", True, 2)),
        FeatureView("faded", "decayed", ORDERS, EVER, "f", "u", "d", half_life_days=2.5),
    ),
)


@pytest.mark.parametrize("views", [*VIEW_SETS.values(), EVERYTHING], ids=lambda views: views.name)
def test_a_set_is_restored_from_its_definition(views: ViewSet):
    """Through JSON, with the same version, columns and words for people."""
    restored = ViewSet.from_definition(json.loads(json.dumps(views.definition())))

    assert (restored.version, restored.names) == (views.version, views.names)
    assert restored.describe() == views.describe()


def test_a_definition_under_other_semantics_is_refused():
    """Or none at all."""
    with pytest.raises(ValueError, match=f"semantics {SEMANTICS}; train the model again"):
        ViewSet.from_definition(DEFAULT_VIEWS.definition() | {"semantics": SEMANTICS + 1})
    with pytest.raises(ValueError, match="no definition of a view set"):
        ViewSet.from_definition({"columns": []})


def test_a_kind_that_left_the_vocabulary_is_still_looked_at():
    """An old model's set outlives the vocabulary it was declared in."""
    old = json.loads(json.dumps(EVERYTHING.definition()))
    old["views"][1]["stream"] |= {"kinds": ["Page", "Sofa Tested"], "custom_kinds": []}

    assert ViewSet.from_definition(old).version == EVERYTHING.version


def test_only_sets_that_look_at_properties_ask_for_them():
    """Traits are always read; other properties cost time."""
    assert not DEFAULT_VIEWS.needs_properties
    assert not SEND_HOUR_VIEWS.needs_properties
    assert EVERYTHING.needs_properties
    assert not ViewSet("traits", (FeatureView("age", "trait", TRAITS, EVER, "f", "u", "d", of="age"),)).needs_properties


def test_a_spread_trait_names_a_column_for_each_value():
    """In words that a data frame takes."""
    assert EVERYTHING.names[-4:] == ("tier_gold_plus", "tier_true", "tier_2", "faded")
