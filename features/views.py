"""The declared features: the file a data scientist edits.

A view says what is measured (a primitive), of which events (a stream), over which windows. Each window gives one
column, a histogram one column per bin. The window of ``days`` at ``as_of`` is ``[as_of - days, as_of)``; ``None`` is
everything before ``as_of``. Columns are float64; what "no events" means is the view's null rule.

To add a feature, add a view to ``DEFAULT_VIEWS`` below: training, batch scoring and the request path all pick it up,
and the set's version changes with it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from features.vocabulary import (
    CHECKOUT_STARTED,
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_OPENED,
    EMAIL_SENT,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    PAGE,
    PRODUCT_ADDED,
    PRODUCT_VIEWED,
    SCREEN,
)

if TYPE_CHECKING:
    from features.kernel import Program

Primitive = Literal[
    "count",
    "sum",
    "mean",
    "recency",
    "first_seen",
    "days",
    "gap_mean",
    "gap_std",
    "overdue",
    "rate",
    "trend",
    "hour_histogram",
]

#: Primitives whose value is undefined without enough events; the others are 0 or their prior.
NAN_WITHOUT: dict[str, str] = {
    "mean": "no event in the window",
    "recency": "no event in the window",
    "first_seen": "no event in the window",
    "gap_mean": "fewer than 2 days with an event",
    "gap_std": "fewer than 3 days with an event",
    "overdue": "fewer than 2 days with an event",
}


@dataclass(frozen=True)
class Stream:
    """Which of a contact's events a view looks at.

    Parameters
    ----------
    name : str
        For people.
    kinds : tuple of str
        Event names.
    human_only : bool
        Of opens and clicks, only those by a person (probability ≥ ½), the first per send. Other kinds are not touched.
    answers_within_hours : int, optional
        An event counts only as the first answer to its send: a mail with the same ``ref`` was sent before it, at most
        this long, and no other event of the stream answered that mail earlier. Its hour is then the hour of the send.
    """

    name: str
    kinds: tuple[str, ...]
    human_only: bool = False
    answers_within_hours: int | None = None


@dataclass(frozen=True)
class FeatureView:
    """One measured thing, over one or several windows."""

    name: str
    primitive: Primitive
    stream: Stream
    #: Lengths in days; None is everything before ``as_of``.
    windows: tuple[int | None, ...]
    family: str
    unit: str
    description: str
    owner: str = "kairos"
    #: The denominator of a rate.
    over: Stream | None = None
    #: A rate is (count + prior_mean x prior_strength) / (count of ``over`` + prior_strength).
    prior_mean: float = 0.0
    prior_strength: float = 0.0
    #: Number of bins of an hour histogram; divides 24.
    bins: int = 24

    def __post_init__(self) -> None:
        if not self.windows or any(days is not None and days < 1 for days in self.windows):
            raise ValueError(f"view {self.name!r} has windows {self.windows}; name at least one of ≥ 1 days, or None")
        if self.primitive == "rate" and (self.over is None or self.prior_strength <= 0):
            raise ValueError(f"rate {self.name!r} needs `over` and a prior_strength above 0, so that 0/0 has a value")
        if self.primitive == "trend" and None in self.windows:
            raise ValueError(f"trend {self.name!r} compares a window with the one before; everything has none before")
        if self.primitive == "hour_histogram" and (24 % self.bins or len(self.windows) != 1):
            raise ValueError(f"histogram {self.name!r} needs a number of bins that divides 24, and one window")

    @property
    def null_rule(self) -> str:
        """What the columns hold for a contact without events."""
        if self.primitive == "rate":
            return f"{self.prior_mean:g} (the prior) without a {self.over.name if self.over else 'trial'}"
        if self.primitive in NAN_WITHOUT:
            return f"missing with {NAN_WITHOUT[self.primitive]}"
        return "0 without events"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order: ``<name>_<days>d``, or ``<name>_<first hour>`` of a histogram's bins."""
        if self.primitive == "hour_histogram":
            return tuple(f"{self.name}_{hour:02d}" for hour in range(0, 24, 24 // self.bins))
        ever = self.name if len(self.windows) == 1 else f"{self.name}_ever"
        return tuple(ever if days is None else f"{self.name}_{days}d" for days in self.windows)


# --- What we look at ---------------------------------------------------------------------------------------------

ORDERS = Stream("order", (ORDER_COMPLETED,))
CANCELLATIONS = Stream("cancellation", (ORDER_CANCELLED,))
SENDS = Stream("mail sent", (EMAIL_SENT,))
OPENS = Stream("mail opened by a person", (EMAIL_OPENED,), human_only=True)
CLICKS = Stream("mail clicked by a person", (EMAIL_CLICKED,), human_only=True)
BOUNCES = Stream("mail bounced", (EMAIL_BOUNCED,))
PAGES = Stream("page or screen seen", (PAGE, SCREEN))
PRODUCTS = Stream("product viewed", (PRODUCT_VIEWED,))
CART = Stream("product put into the cart", (PRODUCT_ADDED,))
CHECKOUTS = Stream("checkout begun", (CHECKOUT_STARTED,))
ACTIVE = Stream(
    "anything a person did",
    (EMAIL_OPENED, EMAIL_CLICKED, ORDER_COMPLETED, PAGE, SCREEN, PRODUCT_VIEWED, PRODUCT_ADDED, CHECKOUT_STARTED),
    human_only=True,
)
ANSWERS = Stream(
    "mail opened or clicked by a person within a day", (EMAIL_OPENED, EMAIL_CLICKED), True, answers_within_hours=24
)
ENGAGED = Stream("click, open, order or page", (EMAIL_CLICKED, EMAIL_OPENED, ORDER_COMPLETED, PAGE), human_only=True)

# --- What we measure ---------------------------------------------------------------------------------------------

EVER = (None,)

_DEFAULT = (
    # name, primitive, stream, windows, family, unit, description
    FeatureView("days_since_order", "recency", ORDERS, EVER, "recency", "days", "Time since the last order."),
    FeatureView("days_since_first_order", "first_seen", ORDERS, EVER, "recency", "days", "Time since the first order."),
    FeatureView("days_since_active", "recency", ACTIVE, EVER, "recency", "days", "Time since the last sign of life."),
    FeatureView("days_known", "first_seen", ACTIVE, EVER, "recency", "days", "Time since the first sign of life."),
    FeatureView("orders", "count", ORDERS, (7, 30, 90, 180, 365, None), "frequency", "orders", "Orders placed."),
    FeatureView("order_days", "days", ORDERS, (90, 365, None), "frequency", "days", "Days (UTC) with an order."),
    FeatureView("orders_trend", "trend", ORDERS, (30, 90), "frequency", "orders", "Orders, less the window before."),
    FeatureView("revenue", "sum", ORDERS, (30, 90, 365, None), "monetary", "minor units", "Money of the orders."),
    FeatureView("order_value", "mean", ORDERS, (365, None), "monetary", "minor units", "Money per order."),
    FeatureView("order_gap", "gap_mean", ORDERS, EVER, "regularity", "days", "Usual time between days with an order."),
    FeatureView("order_gap_std", "gap_std", ORDERS, EVER, "regularity", "days", "How much that time varies (sample)."),
    FeatureView("order_overdue", "overdue", ORDERS, EVER, "regularity", "ratio", "Time since an order / usual gap."),
    FeatureView("cancellations", "count", CANCELLATIONS, (90, None), "cancellations", "events", "Orders undone."),
    FeatureView("cancelled_value", "sum", CANCELLATIONS, (365,), "cancellations", "minor units", "Money taken back."),
    FeatureView("sends", "count", SENDS, (30, 90), "email", "mails", "Mails sent: the exposure."),
    FeatureView("opens", "count", OPENS, (30, 90), "email", "mails", "Mails opened by a person."),
    FeatureView("clicks", "count", CLICKS, (30, 90), "email", "mails", "Mails clicked by a person."),
    FeatureView("bounces", "count", BOUNCES, (90,), "email", "mails", "Mails that came back."),
    FeatureView(
        "open_rate", "rate", OPENS, (30, 90), "email", "share", "Opens per mail, drawn to the prior.",
        over=SENDS, prior_mean=0.2, prior_strength=5.0,
    ),
    FeatureView(
        "click_rate", "rate", CLICKS, (30, 90), "email", "share", "Clicks per mail, drawn to the prior.",
        over=SENDS, prior_mean=0.03, prior_strength=10.0,
    ),
    FeatureView("days_since_send", "recency", SENDS, EVER, "email", "days", "Time since the last mail."),
    FeatureView("days_since_open", "recency", OPENS, EVER, "email", "days", "Time since a person last opened."),
    FeatureView("days_since_click", "recency", CLICKS, EVER, "email", "days", "Time since a person last clicked."),
    FeatureView("recent_sends", "count", SENDS, (1, 7), "fatigue", "mails", "Mails of the last days."),
    FeatureView("pages", "count", PAGES, (1, 7, 30), "web", "views", "Pages or screens seen."),
    FeatureView("page_days", "days", PAGES, (30,), "web", "days", "Days (UTC) with a page seen."),
    FeatureView("pages_trend", "trend", PAGES, (7,), "web", "views", "Pages less those of the week before."),
    FeatureView("product_views", "count", PRODUCTS, (1, 7, 30), "web", "views", "Products looked at."),
    FeatureView("days_since_page", "recency", PAGES, EVER, "web", "days", "Time since the last page."),
    FeatureView("days_since_product", "recency", PRODUCTS, EVER, "web", "days", "Time since a product was looked at."),
    FeatureView("cart_adds", "count", CART, (1, 7, 30), "cart", "events", "Products put into the cart."),
    FeatureView("checkouts", "count", CHECKOUTS, (7,), "cart", "events", "Checkouts begun."),
    FeatureView("days_since_cart", "recency", CART, EVER, "cart", "days", "Time since a product went into the cart."),
    FeatureView("active_hour", "hour_histogram", ACTIVE, (365,), "hours", "events", "Life by local hour.", bins=8),
)  # fmt: skip

_SEND_HOUR = (
    FeatureView("sent_hour", "hour_histogram", SENDS, (365,), "hours", "mails", "Mails by local hour of sending."),
    FeatureView(
        "answered_hour", "hour_histogram", ANSWERS, (365,), "hours", "mails",
        "Mails opened or clicked by a person within 24 h, by the local hour they left at.",
    ),
    FeatureView("active_hour", "hour_histogram", ENGAGED, (365,), "hours", "events", "Signs of life by local hour."),
)  # fmt: skip


# --- A set of views and its version ------------------------------------------------------------------------------

#: Raise it when the meaning of a primitive changes: old models must not be fed new meanings.
SEMANTICS = 1


class ViewSet:
    """Views evaluated together; their columns, in order, are what a model was trained on.

    Parameters
    ----------
    name : str
        For people and for the model's files.
    views : tuple of FeatureView

    Raises
    ------
    ValueError
        If two columns would bear one name.

    Examples
    --------
    >>> tiny = ViewSet("tiny", (FeatureView("orders", "count", ORDERS, (30, None), "f", "orders", "Orders."),))
    >>> tiny.names
    ('orders_30d', 'orders_ever')
    """

    def __init__(self, name: str, views: tuple[FeatureView, ...]) -> None:
        self.name = name
        self.views = views
        #: Column names, in order.
        self.names: tuple[str, ...] = tuple(column for view in views for column in view.columns)
        doubled = sorted({column for column in self.names if self.names.count(column) > 1})
        if doubled:
            raise ValueError(f"view set {name!r} would have two columns named {doubled[0]!r}; rename one of the views")

    def __repr__(self) -> str:
        return f"ViewSet({self.name!r}, {len(self.names)} columns, version {self.version})"

    @cached_property
    def version(self) -> str:
        """First 16 hex digits of the SHA-256 of the definitions; words for people do not enter it."""
        text = json.dumps(
            [SEMANTICS, [_definition(view) for view in self.views]], sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def program(self) -> Program:
        """The set as flat arrays, ready for the kernel."""
        from features.kernel import compile_views  # numba: loaded where it is used

        return compile_views(self)

    def describe(self) -> list[dict[str, str]]:
        """One row per column for documentation: what it measures, of what, its unit and its null rule."""
        return [
            {
                "name": column,
                "view": view.name,
                "family": view.family,
                "primitive": view.primitive,
                "stream": view.stream.name,
                "unit": view.unit,
                "null_rule": view.null_rule,
                "owner": view.owner,
                "description": view.description,
            }
            for view in self.views
            for column in view.columns
        ]


def _definition(view: FeatureView) -> dict[str, Any]:
    def stream(of: Stream | None) -> list[Any] | None:
        return None if of is None else [sorted(of.kinds), of.human_only, of.answers_within_hours]

    return {
        "columns": view.columns,
        "primitive": view.primitive,
        "stream": stream(view.stream),
        "over": stream(view.over),
        "windows": view.windows,
        "prior": [view.prior_mean, view.prior_strength],
        "bins": view.bins if view.primitive == "hour_histogram" else None,
    }


DEFAULT_VIEWS = ViewSet("default", _DEFAULT)
SEND_HOUR_VIEWS = ViewSet("hours", _SEND_HOUR)

#: Every set by its name.
VIEW_SETS: dict[str, ViewSet] = {views.name: views for views in (DEFAULT_VIEWS, SEND_HOUR_VIEWS)}
