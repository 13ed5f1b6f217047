"""What every engine is asked in `bench_sweep`: 40 columns of 200 k contacts at 4 instants, from the same Parquet files.

The columns are those that one `GROUP BY` of SQL gives: counts, sums, means, first and last times over windows. An event
counts at an instant if it occurred before it and was received by it; opens and clicks count if a person made them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.events import DAY_MICROS
from features.views import (
    CANCELLATIONS,
    CART,
    CLICKS,
    OPENS,
    ORDERS,
    PAGES,
    PRODUCTS,
    SENDS,
    FeatureView,
    Primitive,
    Stream,
    ViewSet,
)
from tests.benchmarks.synthetic_log import START

EVENTS, CONTACTS = 10_000_000, 200_000
INSTANTS = START + np.array([90, 180, 270, 365], dtype=np.int64) * DAY_MICROS

#: No event is in two of them, so that SQL may group by them.
STREAMS = (ORDERS, CANCELLATIONS, SENDS, OPENS, CLICKS, PAGES, PRODUCTS, CART)


def _view(name: str, primitive: Primitive, stream: Stream, *windows: int | None) -> FeatureView:
    return FeatureView(name, primitive, stream, windows, "shared", "", "What SQL gives too.")


SHARED_VIEWS = ViewSet(
    "shared",
    (
        _view("orders", "count", ORDERS, 7, 30, 90, 180, 365, None),
        _view("revenue", "sum", ORDERS, 30, 90, 365, None),
        _view("order_value", "mean", ORDERS, 365, None),
        _view("days_since_order", "recency", ORDERS, None),
        _view("days_since_first_order", "first_seen", ORDERS, None),
        _view("cancellations", "count", CANCELLATIONS, 90, None),
        _view("cancelled_value", "sum", CANCELLATIONS, 365),
        _view("sends", "count", SENDS, 1, 7, 30, 90),
        _view("days_since_send", "recency", SENDS, None),
        _view("opens", "count", OPENS, 30, 90),
        _view("days_since_open", "recency", OPENS, None),
        _view("clicks", "count", CLICKS, 30, 90),
        _view("days_since_click", "recency", CLICKS, None),
        _view("pages", "count", PAGES, 1, 7, 30),
        _view("days_since_page", "recency", PAGES, None),
        _view("product_views", "count", PRODUCTS, 1, 7, 30),
        _view("days_since_product", "recency", PRODUCTS, None),
        _view("cart_adds", "count", CART, 1, 7, 30),
        _view("days_since_cart", "recency", CART, None),
    ),
)
assert len(SHARED_VIEWS.names) == 40


@dataclass(frozen=True)
class Column:
    """One asked-for column as an engine of SQL's kind sees it."""

    name: str
    primitive: Primitive
    #: Number of its stream in `STREAMS`.
    stream: int
    #: µs; None is everything before the instant.
    window: int | None


COLUMNS = tuple(
    Column(name, view.primitive, STREAMS.index(view.stream), days and days * DAY_MICROS)
    for view in SHARED_VIEWS.views
    for name, days in zip(view.columns, view.windows, strict=True)
)


def spine(contacts: npt.NDArray[np.int64], instants: npt.NDArray[np.int64]) -> pd.DataFrame:
    """Every contact at every instant."""
    return pd.DataFrame({"contact_key": np.repeat(contacts, len(instants)), "as_of": np.tile(instants, len(contacts))})


def largest_difference(ours: Path, theirs: Path) -> float:
    """Largest relative difference of two saved matrices; infinite if they differ in shape or in what is missing."""
    a, b = np.load(ours, mmap_mode="r"), np.load(theirs, mmap_mode="r")
    if a.shape != b.shape:
        return float("inf")
    worst = 0.0
    for start in range(0, len(a), 50_000):
        x, y = np.asarray(a[start : start + 50_000]), np.asarray(b[start : start + 50_000])
        missing = np.isnan(x)
        if not np.array_equal(missing, np.isnan(y)):
            return float("inf")
        apart = np.abs(x - y)[~missing] / np.maximum(1.0, np.abs(x[~missing]))
        worst = max(worst, float(apart.max(initial=0.0)))
    return worst
