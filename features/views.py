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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_args

from features.properties import value_text
from features.vocabulary import (
    CHECKOUT_STARTED,
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_COMPLAINED,
    EMAIL_OPENED,
    EMAIL_SENT,
    IDENTIFY,
    KINDS,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    PAGE,
    PRODUCT_ADDED,
    PRODUCT_VIEWED,
    SCREEN,
    UNSUBSCRIBED,
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
    "weekday_histogram",
    "distinct",
    "decayed",
    "trait",
    "trait_recency",
]

#: Primitives whose value is undefined without enough events; the others are 0 or their prior.
NAN_WITHOUT: dict[str, str] = {
    "mean": "no event in the window",
    "recency": "no event in the window",
    "first_seen": "no event in the window",
    "gap_mean": "fewer than 2 days with an event",
    "gap_std": "fewer than 3 days with an event",
    "overdue": "fewer than 2 days with an event",
    "trait": "nothing told, or no number",
    "trait_recency": "nothing told, or no instant",
}

#: A century: a longer window is a mistake of units.
MAX_WINDOW_DAYS = 36_525
MAX_ANSWER_HOURS = 24 * MAX_WINDOW_DAYS
#: Columns that a frame of vectors has besides.
RESERVED = ("contact_key", "as_of", "user_id")

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True)
class Where:
    """A condition on a property: one of these values, or a number within bounds.

    Parameters
    ----------
    name : str
        The property; a path with dots inside objects and lists, such as ``products.category``. Of several values of
        one event, one is enough.
    values : tuple of (str, int, float or bool)
        The property is one of them; ``1``, ``1.0`` and ``"1"`` are the same.
    at_least, at_most : float, optional
        The property as a number lies within.
    """

    name: str
    values: tuple[str | float | bool, ...] = ()
    at_least: float | None = None
    at_most: float | None = None

    def __post_init__(self) -> None:
        if not self.name or not (self.values or self.at_least is not None or self.at_most is not None):
            raise ValueError(f"condition on property {self.name!r} asks nothing; name values, at_least or at_most")
        if self.values and not (self.at_least is None and self.at_most is None):
            raise ValueError(f"condition on property {self.name!r} has values and bounds; write two conditions")


@dataclass(frozen=True)
class Stream:
    """Which of a contact's events a view looks at.

    Parameters
    ----------
    name : str
        For people.
    kinds : tuple of str
        Event names of the vocabulary (``features/vocabulary.py``).
    human_only : bool
        Of opens and clicks, only those by a person (probability ≥ ½), the first per send. Other kinds are not touched.
    answers_within_hours : int, optional
        An event counts only as the first answer to its send: a mail with the same ``ref`` was sent before it, at most
        this long, and no other event of the stream answered that mail earlier. Its hour is then the hour of the send.
    own_hour : bool
        An answer's hour is the hour of the answer instead.
    where : tuple of Where
        Conditions on the events' properties, all of which must hold.
    custom_kinds : tuple of str
        Event names of your own, outside the vocabulary.

    Raises
    ------
    ValueError
        If a name in ``kinds`` is not in the vocabulary, or ``answers_within_hours`` is no whole number of hours from 1
        to a century.
    """

    name: str
    kinds: tuple[str, ...]
    human_only: bool = False
    answers_within_hours: int | None = None
    where: tuple[Where, ...] = ()
    custom_kinds: tuple[str, ...] = ()
    own_hour: bool = False

    def __post_init__(self) -> None:
        if self.own_hour and not self.answers_within_hours:
            raise ValueError(
                f"stream {self.name!r} asks for the answers' own hours and counts every event, at its own hour anyway; "
                "name answers_within_hours or leave own_hour out"
            )
        for kind in self.kinds:
            if kind not in KINDS:
                near = get_close_matches(kind, KINDS, 1)
                raise ValueError(
                    f"stream {self.name!r} looks at events {kind!r}, which the vocabulary does not know; "
                    + (f"did you mean {near[0]!r}? " if near else "")
                    + "Put the name of an event of your own into custom_kinds"
                )
        if not self.every_kind or "" in self.every_kind:
            raise ValueError(f"stream {self.name!r} looks at no event; name at least one kind")
        hours = self.answers_within_hours
        if hours is not None and not (isinstance(hours, int) and 1 <= hours <= MAX_ANSWER_HOURS):
            raise ValueError(
                f"stream {self.name!r} has answers_within_hours {hours!r}; name a whole number of hours from 1 to "
                f"{MAX_ANSWER_HOURS}, or None if its events answer no mail"
            )

    @property
    def every_kind(self) -> tuple[str, ...]:
        """All event names, sorted."""
        return tuple(sorted({*self.kinds, *self.custom_kinds}))

    @property
    def says(self) -> str:
        """The definition in one line, for documentation."""
        said = " | ".join((*self.kinds, *self.custom_kinds))
        if self.human_only:
            said += ", by a person"
        if self.answers_within_hours:
            said += f", answering a mail within {self.answers_within_hours} h"
        if self.own_hour:
            said += ", at its own hour"
        for where in self.where:
            if where.values:
                said += f", {where.name} in ({', '.join(map(str, where.values))})"
            else:
                low = "" if where.at_least is None else f"{where.at_least:g} ≤ "
                high = "" if where.at_most is None else f" ≤ {where.at_most:g}"
                said += f", {low}{where.name}{high}"
        return said


@dataclass(frozen=True)
class FeatureView:
    """One measured thing, over one or several windows.

    Raises
    ------
    ValueError
        If the definition does not make sense; the message names the view, the value and what to write instead.
    """

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
    #: What different things are counted by (``ref`` or a property), the trait's name, or for a decayed sum ``value``.
    of: str = ""
    #: A trait as one column (1 or 0) for each of these values, instead of its number.
    values: tuple[str | float | bool, ...] = ()
    #: After so many days an event counts half in a decayed count.
    half_life_days: float = 0.0

    def __post_init__(self) -> None:
        if not self.name or self.name in RESERVED:
            raise ValueError(f"a view cannot be called {self.name!r}; name it by what it measures")
        if self.primitive not in get_args(Primitive):
            raise ValueError(f"view {self.name!r} has primitive {self.primitive!r}; choose of {get_args(Primitive)}")
        if not self.windows or any(
            days is not None and not (isinstance(days, int) and 1 <= days <= MAX_WINDOW_DAYS) for days in self.windows
        ):
            raise ValueError(
                f"view {self.name!r} has windows {self.windows}; name at least one, each a whole number of days from 1 "
                f"to {MAX_WINDOW_DAYS}, or None for everything"
            )
        if self.primitive == "rate" and (self.over is None or self.prior_strength <= 0):
            raise ValueError(f"rate {self.name!r} needs `over` and a prior_strength above 0, so that 0/0 has a value")
        if self.primitive == "trend" and None in self.windows:
            raise ValueError(f"trend {self.name!r} compares a window with the one before; everything has none before")
        if self.primitive == "hour_histogram" and (self.bins < 1 or 24 % self.bins):
            raise ValueError(f"histogram {self.name!r} has {self.bins} bins; name a number that divides 24")
        if self.primitive in ("hour_histogram", "weekday_histogram") and len(self.windows) != 1:
            raise ValueError(f"histogram {self.name!r} has windows {self.windows}; a histogram takes one")
        if self.primitive in ("decayed", "trait", "trait_recency") and self.windows != (None,):
            raise ValueError(f"{self.primitive} {self.name!r} has windows {self.windows}; it takes (None,), everything")
        if self.primitive == "decayed" and not self.half_life_days > 0:
            raise ValueError(f"decayed {self.name!r} has half_life_days {self.half_life_days}; name a number above 0")
        if self.primitive == "decayed" and self.of not in ("", "value"):
            raise ValueError(f"decayed {self.name!r} is of {self.of!r}; write of='value' for money, or nothing")
        if self.primitive in ("distinct", "trait", "trait_recency") and not self.of:
            raise ValueError(
                f"{self.primitive} {self.name!r} does not say of what; write of='<ref, property or trait>'"
            )
        if self.values and self.primitive != "trait":
            raise ValueError(f"{self.primitive} {self.name!r} has values; only a trait is spread over columns")

    @property
    def null_rule(self) -> str:
        """What the columns hold for a contact without events."""
        if self.primitive == "rate":
            return f"{self.prior_mean:g} (the prior) without a {self.over.name if self.over else 'trial'}"
        if self.primitive == "trait" and self.values:
            return "0 where another value, or none, was told"
        if self.primitive in NAN_WITHOUT:
            return f"missing with {NAN_WITHOUT[self.primitive]}"
        return "0 without events"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order.

        ``<name>_<days>d``, or ``<name>_ever`` beside other windows; of a histogram ``<name>_<first hour or day>``, of
        a spread trait ``<name>_<value>``.
        """
        if self.primitive == "hour_histogram":
            return tuple(f"{self.name}_{hour:02d}" for hour in range(0, 24, 24 // self.bins))
        if self.primitive == "weekday_histogram":
            return tuple(f"{self.name}_{day}" for day in WEEKDAYS)
        if self.values:
            return tuple(f"{self.name}_{_slug(value)}" for value in self.values)
        ever = self.name if len(self.windows) == 1 else f"{self.name}_ever"
        return tuple(ever if days is None else f"{self.name}_{days}d" for days in self.windows)

    def definition_of(self, column: int) -> str:
        """What column number ``column`` of the view measures, in one line."""
        several = self.primitive in ("hour_histogram", "weekday_histogram") or bool(self.values)
        days = self.windows[0 if several else column]
        said = f"{self.primitive}({self.stream.says})"
        if self.of:
            said = f"{self.primitive} of {self.of} ({self.stream.says})"
        if self.over is not None:
            said += f" / count({self.over.says}), prior {self.prior_mean:g} x {self.prior_strength:g}"
        if self.half_life_days:
            said += f", half-life {self.half_life_days:g} d"
        if self.values:
            said += f" = {self.values[column]}"
        return said + (", ever" if days is None else f", last {days} d")


def _slug(value: str | float | bool) -> str:
    return "_".join("".join(c if c.isalnum() else " " for c in (value_text(value) or "")).split()).lower()


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
TRAITS = Stream("traits told", (IDENTIFY,))
REFUSALS = Stream("unsubscribed or complained", (UNSUBSCRIBED, EMAIL_COMPLAINED))
ACTIVE = Stream(
    "anything a person did",
    (EMAIL_OPENED, EMAIL_CLICKED, ORDER_COMPLETED, PAGE, SCREEN, PRODUCT_VIEWED, PRODUCT_ADDED, CHECKOUT_STARTED),
    human_only=True,
)
ANSWERS = Stream(
    "mail opened or clicked by a person within a day", (EMAIL_OPENED, EMAIL_CLICKED), True, answers_within_hours=24
)
ANSWERS_BY_OWN_HOUR = Stream(
    "mail opened or clicked by a person within a day, when it was", (EMAIL_OPENED, EMAIL_CLICKED), True,
    answers_within_hours=24, own_hour=True,
)  # fmt: skip
VISITS = Stream("order, page or screen", (ORDER_COMPLETED, PAGE, SCREEN))

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
    FeatureView(
        "orders_decayed", "decayed", ORDERS, EVER, "frequency", "orders", "Orders, an old one counting less.",
        half_life_days=90,
    ),
    FeatureView("orders_trend", "trend", ORDERS, (30, 90), "frequency", "orders", "Orders, less the window before."),
    FeatureView("revenue", "sum", ORDERS, (30, 90, 365, None), "monetary", "minor units", "Money of the orders."),
    FeatureView(
        "revenue_decayed", "decayed", ORDERS, EVER, "monetary", "minor units", "Money, old money counting less.",
        of="value", half_life_days=90,
    ),
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
    FeatureView("sends_trend", "trend", SENDS, (7,), "fatigue", "mails", "Mails less those of the week before."),
    FeatureView("refusals", "count", REFUSALS, EVER, "fatigue", "events", "Unsubscribes and complaints."),
    FeatureView(
        "clicks_decayed", "decayed", CLICKS, EVER, "email", "mails", "Clicks, an old one counting less.",
        half_life_days=30,
    ),
    FeatureView("pages", "count", PAGES, (1, 7, 30), "web", "views", "Pages or screens seen."),
    FeatureView("page_days", "days", PAGES, (30,), "web", "days", "Days (UTC) with a page seen."),
    FeatureView("pages_trend", "trend", PAGES, (7,), "web", "views", "Pages less those of the week before."),
    FeatureView("product_views", "count", PRODUCTS, (1, 7, 30), "web", "views", "Products looked at."),
    FeatureView(
        "products_seen", "distinct", PRODUCTS, (30,), "web", "products", "Different products looked at.", of="ref"
    ),
    FeatureView(
        "activity_decayed", "decayed", ACTIVE, EVER, "web", "events", "Signs of life, an old one counting less.",
        half_life_days=14,
    ),
    FeatureView("days_since_page", "recency", PAGES, EVER, "web", "days", "Time since the last page."),
    FeatureView("days_since_product", "recency", PRODUCTS, EVER, "web", "days", "Time since a product was looked at."),
    FeatureView("cart_adds", "count", CART, (1, 7, 30), "cart", "events", "Products put into the cart."),
    FeatureView("checkouts", "count", CHECKOUTS, (7,), "cart", "events", "Checkouts begun."),
    FeatureView("days_since_cart", "recency", CART, EVER, "cart", "days", "Time since a product went into the cart."),
    FeatureView("active_hour", "hour_histogram", ACTIVE, (365,), "hours", "events", "Life by local hour.", bins=8),
    FeatureView(
        "active_day", "weekday_histogram", ACTIVE, (365,), "hours", "events", "Life by local day of the week."
    ),
    FeatureView(
        "days_since_created", "trait_recency", TRAITS, EVER, "traits", "days",
        "Age of the account, by the trait `createdAt` that programs tell.", of="createdAt",
    ),
    FeatureView("age", "trait", TRAITS, EVER, "traits", "years", "The trait `age`.", of="age"),
    FeatureView("days_since_told", "recency", TRAITS, EVER, "traits", "days", "Time since traits were last told."),
    FeatureView("products_carted", "distinct", CART, (7,), "cart", "products", "Different products carted.", of="ref"),
)  # fmt: skip

_SEND_HOUR = (
    FeatureView("sent_hour", "hour_histogram", SENDS, (365,), "hours", "mails", "Mails by local hour of sending."),
    FeatureView(
        "answered_hour", "hour_histogram", ANSWERS, (365,), "hours", "mails",
        "Mails opened or clicked by a person within 24 h, by the local hour they left at.",
    ),
    FeatureView(
        "answer_hour", "hour_histogram", ANSWERS_BY_OWN_HOUR, (365,), "hours", "mails",
        "The same mails by the local hour at which they were opened or clicked first.",
    ),
    FeatureView("visit_hour", "hour_histogram", VISITS, (365,), "hours", "events", "Orders and pages by local hour."),
    FeatureView(
        "recent_visit_hour", "hour_histogram", VISITS, (30,), "hours", "events",
        "Orders and pages of the last 30 days by local hour: a clock that has moved shows here.",
    ),
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

    @cached_property
    def needs_properties(self) -> bool:
        """Whether a view looks at properties of other events than Identify, which readers leave out otherwise."""
        reads = ("trait", "trait_recency")
        return any(
            stream.every_kind != (IDENTIFY,)
            and (stream.where or view.primitive in reads or (view.primitive == "distinct" and view.of != "ref"))
            for view in self.views
            for stream in (view.stream, view.over)
            if stream is not None
        )

    def describe(self) -> list[dict[str, str]]:
        """One row per column for documentation: what it measures, of what, its unit and its null rule."""
        return [
            {
                "name": column,
                "view": view.name,
                "family": view.family,
                "primitive": view.primitive,
                "stream": view.stream.name,
                "definition": view.definition_of(number),
                "unit": view.unit,
                "null_rule": view.null_rule,
                "owner": view.owner,
                "description": view.description,
            }
            for view in self.views
            for number, column in enumerate(view.columns)
        ]

    def definition(self) -> dict[str, Any]:
        """The set as JSON holds it: all that `from_definition` needs, whatever this file says by then."""
        return {"name": self.name, "semantics": SEMANTICS, "views": [asdict(view) for view in self.views]}

    @classmethod
    def from_definition(cls, definition: Mapping[str, Any]) -> ViewSet:
        """The set that ``definition()`` described, with the same version.

        Raises
        ------
        ValueError
            If the definition was written under another meaning of the primitives, or is none.
        """
        try:
            name, semantics, written = definition["name"], definition["semantics"], definition["views"]
            if semantics != SEMANTICS:
                raise ValueError(
                    f"view set {name!r} was declared under semantics {semantics}, this program computes semantics "
                    f"{SEMANTICS}; train the model again"
                )
            return cls(str(name), tuple(_view(view) for view in written))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"this is no definition of a view set ({error!r}); it has name, semantics, views"
            ) from None


def _view(written: Mapping[str, Any]) -> FeatureView:
    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value

    def stream(of: Mapping[str, Any] | None) -> Stream | None:
        if of is None:
            return None
        fields = {name: tuples(value) for name, value in of.items() if name != "where"}
        kinds = (*fields["kinds"], *fields["custom_kinds"])
        where = tuple(Where(**{name: tuples(value) for name, value in one.items()}) for one in of["where"])
        return Stream(
            **{
                **fields,
                "kinds": tuple(kind for kind in kinds if kind in KINDS),
                "custom_kinds": tuple(kind for kind in kinds if kind not in KINDS),
                "where": where,
            }
        )

    values = {name: tuples(value) for name, value in written.items() if name not in ("stream", "over")}
    return FeatureView(**values, stream=stream(written["stream"]), over=stream(written["over"]))  # type: ignore[arg-type]


def _definition(view: FeatureView) -> dict[str, Any]:
    def where(one: Where) -> list[Any]:
        return [one.name, sorted(value_text(value) or "" for value in one.values), one.at_least, one.at_most]

    def stream(of: Stream | None) -> list[Any] | None:
        if of is None:
            return None
        plain = [list(of.every_kind), of.human_only, of.answers_within_hours]
        if of.own_hour:
            plain.append("own_hour")
        return [*plain, sorted(map(where, of.where), key=str)] if of.where else plain

    told = {
        "of": view.of,
        "values": [value_text(value) for value in view.values],
        "half_life_days": view.half_life_days,
    }
    return {
        "columns": view.columns,
        "primitive": view.primitive,
        "stream": stream(view.stream),
        "over": stream(view.over),
        "windows": view.windows,
        "prior": [view.prior_mean, view.prior_strength],
        "bins": view.bins if view.primitive == "hour_histogram" else None,
        **{name: value for name, value in told.items() if value},
    }


DEFAULT_VIEWS = ViewSet("default", _DEFAULT)
SEND_HOUR_VIEWS = ViewSet("hours", _SEND_HOUR)

#: Every set by its name.
VIEW_SETS: dict[str, ViewSet] = {views.name: views for views in (DEFAULT_VIEWS, SEND_HOUR_VIEWS)}
