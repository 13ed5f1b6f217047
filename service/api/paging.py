"""Lists in pages: an opaque signed cursor that remembers where the last page ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query
from itsdangerous import BadData, URLSafeSerializer
from sqlalchemy import ColumnElement, literal, tuple_
from sqlalchemy.orm import QueryableAttribute

from service.errors import Invalid

MAX_LIMIT = 200

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="Items a page.")]
Cursor = Annotated[str | None, Query(max_length=500, description="`next_cursor` of the page before.")]

T = TypeVar("T")


def position(signing_key: str, cursor: str | None, *query: Any) -> list[Any] | None:
    """Sort values of the last item that the caller has seen, or None for the first page.

    Parameters
    ----------
    query : values
        What the list was asked for: a cursor of one list does not open another.

    Raises
    ------
    Invalid
        If the cursor was not given out by us for this list.
    """
    if cursor is None:
        return None
    try:
        asked, last = _signer(signing_key).loads(cursor)
    except (BadData, ValueError, TypeError):
        asked, last = None, None
    if asked != [str(value) for value in query]:
        raise Invalid("the cursor is not one of this list; pass next_cursor unchanged, or none to begin anew")
    return list(last)


def before(columns: Sequence[QueryableAttribute[Any]], values: Sequence[Any]) -> ColumnElement[bool]:
    """Condition of lying before ``values`` in the order of ``columns``, each value bound in its column's type."""
    return tuple_(*columns) < tuple_(*_bound(columns, values))


def after(columns: Sequence[QueryableAttribute[Any]], values: Sequence[Any]) -> ColumnElement[bool]:
    """Condition of lying after ``values`` in the order of ``columns``."""
    return tuple_(*columns) > tuple_(*_bound(columns, values))


def _bound(columns: Sequence[QueryableAttribute[Any]], values: Sequence[Any]) -> list[Any]:
    # In a tuple comparison SQLAlchemy does not hand the column's type on; an instant would be compared as text.
    return [literal(value, column.type) for column, value in zip(columns, values, strict=True)]


def page(
    signing_key: str,
    rows: Sequence[T],
    limit: int,
    show: Callable[[T], dict[str, Any]],
    sort_values: Callable[[T], Sequence[Any]],
    *query: Any,
) -> dict[str, Any]:
    """A page of ``rows``, of which one more than ``limit`` was read to know whether there is a next one."""
    shown = rows[:limit]
    following = None
    if len(rows) > limit:
        following = _signer(signing_key).dumps([[str(value) for value in query], list(sort_values(shown[-1]))])
    return {"items": [show(row) for row in shown], "next_cursor": following}


def _signer(signing_key: str) -> URLSafeSerializer:
    return URLSafeSerializer(signing_key, salt="cursor")
