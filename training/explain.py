"""Why a score is high or low: contributions grouped into families a marketer knows, said with their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from features.views import ViewSet
from training.estimators import Estimator

Array = NDArray[np.float64]
Values = Mapping[str, float]

#: Reasons shown in each direction.
TOP = 3
#: Nats below which a family has no say worth a sentence.
LEAST = 0.01


@dataclass(frozen=True)
class Reason:
    """What a family of features adds to one contact's score. An association in the data, not a cause."""

    #: Family of the views, as declared in ``features.views``.
    family: str
    direction: Literal["up", "down"]
    #: Log-odds it adds to the base.
    contribution: float
    #: The values behind it, in words.
    says: str
    #: The family's two weightiest columns and their values; None where missing.
    values: dict[str, float | None]


@dataclass(frozen=True)
class Explanation:
    """Contributions by family, shape (n, families); with ``base`` they add up to the raw score."""

    families: tuple[str, ...]
    contributions: Array
    base: Array


def explain(estimator: Estimator, X: Array, views: ViewSet) -> Explanation:
    """Contributions of each family of views to each raw score (log-odds before calibration).

    Columns that measure nearly the same thing share their weight in ways nobody should read anything into; their sum
    over a family is what is stable enough to show.

    References
    ----------
    Lundberg, S. M. et al. (2020), "From local explanations to global understanding with explainable AI for trees".
    """
    by_column, base = estimator.contributions(X)
    return _by_family(by_column, base, views)


def _by_family(by_column: Array, base: float | Array, views: ViewSet) -> Explanation:
    family_of = family_by_column(views)
    families = tuple(dict.fromkeys(family_of))
    member = np.array([[family == one for one in families] for family in family_of], dtype=np.float64)
    return Explanation(
        families, by_column @ member, np.broadcast_to(np.asarray(base, dtype=np.float64), (len(by_column),))
    )


def reasons(estimator: Estimator, X: Array, views: ViewSet, sign: float = 1.0) -> list[list[Reason]]:
    """Up to three reasons up and three down for each row, weightiest first.

    ``sign`` is -1 where the question is whether the estimator's event stays out.
    """
    by_column, base = estimator.contributions(X)
    by_column, base = sign * by_column, sign * np.asarray(base)
    explained = _by_family(by_column, base, views)
    family_of = family_by_column(views)
    columns = {family: [i for i, one in enumerate(family_of) if one == family] for family in explained.families}
    return [_of_row(X[i], by_column[i], explained.contributions[i], columns, views.names) for i in range(len(X))]


def family_by_column(views: ViewSet) -> list[str]:
    """Family of each column, in the set's order."""
    return [view.family for view in views.views for _ in view.columns]


def _of_row(
    x: Array, by_column: Array, by_family: Array, columns: Mapping[str, list[int]], names: tuple[str, ...]
) -> list[Reason]:
    values = {name: float(value) for name, value in zip(names, x, strict=True)}
    families = list(columns)
    order = np.argsort(-np.abs(by_family), kind="stable")
    chosen = [f for f in order if by_family[f] > LEAST][:TOP] + [f for f in order if by_family[f] < -LEAST][:TOP]
    found = []
    for f in chosen:
        weightiest = sorted(columns[families[f]], key=lambda i: -abs(by_column[i]))[:2]
        shown = {names[i]: values[names[i]] if math.isfinite(values[names[i]]) else None for i in weightiest}
        found.append(
            Reason(
                family=families[f],
                direction="up" if by_family[f] > 0 else "down",
                contribution=float(by_family[f]),
                says=_sentence(families[f], values, shown),
                values=shown,
            )
        )
    return found


def _sentence(family: str, values: Values, shown: Mapping[str, float | None]) -> str:
    say = SENTENCES.get(family)
    said = say(values) if say is not None else None
    return said or ", ".join(
        f"{name} {'missing' if value is None else f'{value:,.4g}'}" for name, value in shown.items()
    )


def _known(values: Values, name: str) -> float | None:
    value = values.get(name, math.nan)
    return value if math.isfinite(value) else None


def _counted(value: float | None, one: str, many: str) -> str | None:
    return None if value is None else f"{value:,.0f} {one if value == 1 else many}"


def _joined(*parts: str | None) -> str | None:
    return ", ".join(part for part in parts if part) or None


def _recency(values: Values) -> str | None:
    since, first, active = (
        _known(values, n) for n in ("days_since_order", "days_since_first_order", "days_since_active")
    )
    if since is None:
        return _joined("no order so far", None if active is None else f"last active {active:.0f} d ago")
    return _joined(f"last order {since:.0f} d ago", None if first is None else f"first {first:.0f} d ago")


def _regularity(values: Values) -> str | None:
    since, gap = _known(values, "days_since_order"), _known(values, "order_gap")
    if since is None:
        return "no order so far"
    return f"last order {since:.0f} d ago, " + ("no usual gap yet" if gap is None else f"usual gap {gap:.0f} d")


def _frequency(values: Values) -> str | None:
    recent = _known(values, "orders_90d")
    return _joined(
        _counted(_known(values, "orders_ever"), "order", "orders"), None if recent is None else f"{recent:.0f} in 90 d"
    )


def _monetary(values: Values) -> str | None:
    average, spent = _known(values, "order_value_365d"), _known(values, "revenue_365d")
    return _joined(
        None if average is None else f"{average / 100:,.2f} per order",
        None if spent is None else f"{spent / 100:,.2f} spent in 365 d",
    )


def _cancellations(values: Values) -> str | None:
    return _counted(_known(values, "cancellations_ever"), "cancellation", "cancellations")


def _email(values: Values) -> str | None:
    sent, opened, clicked = (_known(values, name) for name in ("sends_90d", "opens_90d", "clicks_90d"))
    if not sent:
        return "no mail in 90 d"
    return f"{sent:.0f} mails in 90 d: {opened or 0:.0f} opened, {clicked or 0:.0f} clicked"


def _fatigue(values: Values) -> str | None:
    sent = _counted(_known(values, "recent_sends_7d"), "mail", "mails")
    return sent and f"{sent} in 7 d"


def _web(values: Values) -> str | None:
    pages, viewed = _known(values, "pages_30d"), _known(values, "product_views_30d")
    said = _joined(_counted(pages, "page", "pages"), _counted(viewed, "product viewed", "products viewed"))
    return said and f"{said} in 30 d"


def _cart(values: Values) -> str | None:
    added = _counted(_known(values, "cart_adds_30d"), "product", "products")
    return added and f"{added} put into the cart in 30 d"


def _hours(values: Values) -> str | None:
    bins = {name: value for name, value in values.items() if name.startswith("active_hour_") and value > 0}
    if not bins:
        return "no active hours known"
    begin = int(max(bins, key=lambda name: bins[name]).removeprefix("active_hour_"))
    width = 24 // max(1, sum(name.startswith("active_hour_") for name in values))
    return f"mostly active {begin:02d}–{(begin + width) % 24:02d} h"


def _traits(values: Values) -> str | None:
    created, told = _known(values, "days_since_created"), _known(values, "days_since_told")
    return _joined(
        None if created is None else f"account {created:.0f} d old",
        "told nothing about themselves" if told is None else f"traits last told {told:.0f} d ago",
    )


#: How a family's values are said; a family that is missing here is said by its columns' names. Money has two decimals.
SENTENCES: dict[str, Callable[[Values], str | None]] = {
    "recency": _recency,
    "regularity": _regularity,
    "frequency": _frequency,
    "monetary": _monetary,
    "cancellations": _cancellations,
    "email": _email,
    "fatigue": _fatigue,
    "web": _web,
    "cart": _cart,
    "hours": _hours,
    "traits": _traits,
}
