"""Laws of the declared features."""

from __future__ import annotations

import dataclasses

import pytest

from features.views import DEFAULT_VIEWS, EVER, ORDERS, SEND_HOUR_VIEWS, SENDS, VIEW_SETS, FeatureView, Stream, ViewSet


def orders(**changes: object) -> FeatureView:
    view = FeatureView("orders", "count", ORDERS, (30,), "frequency", "orders", "Orders placed.")
    return dataclasses.replace(view, **changes)  # type: ignore[arg-type]


def test_the_default_set_has_its_families():
    """At least forty columns, and none of the families the models lean on is missing."""
    families = {row["family"] for row in DEFAULT_VIEWS.describe()}

    assert len(DEFAULT_VIEWS.names) >= 40
    assert families == {
        "recency", "frequency", "monetary", "regularity", "email", "fatigue", "web", "cart", "hours", "cancellations",
    }  # fmt: skip


def test_the_send_hour_set_has_three_histograms_of_24_hours():
    """In the order that the model reads them."""
    assert SEND_HOUR_VIEWS.names == tuple(
        f"{name}_hour_{hour:02d}" for name in ("sent", "answered", "active") for hour in range(24)
    )


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

    assert sorted(direct + derived) == list(range(len(views.names)))


@pytest.mark.parametrize(
    "changes",
    [
        {"windows": (31,)},
        {"primitive": "days"},
        {"stream": Stream("order", ("Order Placed",))},
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


def test_the_order_of_columns_is_part_of_the_version():
    """Models read columns by place."""
    first, second = orders(), orders(name="order_days", primitive="days")

    assert ViewSet("a", (first, second)).version != ViewSet("a", (second, first)).version


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"windows": ()}, "at least one"),
        ({"windows": (0,)}, "≥ 1 days"),
        ({"primitive": "rate"}, "`over`"),
        ({"primitive": "rate", "over": SENDS}, "prior_strength"),
        ({"primitive": "trend", "windows": EVER}, "none before"),
        ({"primitive": "hour_histogram", "bins": 7}, "divides 24"),
        ({"primitive": "hour_histogram", "windows": (7, 30)}, "one window"),
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
