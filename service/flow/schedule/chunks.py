"""What the database knows of many contacts: a query a chunk, put in the order of the contacts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import InstrumentedAttribute, Session

#: Contacts a query asks for at once.
CHUNK = 10_000


def chunks(contact_keys: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows and keys of some contacts, by ascending key."""
    order = np.argsort(contact_keys, kind="stable")
    for start in range(0, len(order), CHUNK):
        rows = order[start : start + CHUNK]
        yield rows, contact_keys[rows]


def near(key: InstrumentedAttribute[int], keys: np.ndarray, *columns: Any) -> Any:
    """The rows of these contacts, or of a range that holds few others: that spares the database a list of keys."""
    return select(key, *columns).where(among(key, keys))


def among(key: InstrumentedAttribute[int], keys: np.ndarray) -> ColumnElement[bool]:
    """Whether a key is one of the ascending ``keys``, or lies among them where that is nearly the same."""
    if keys[-1] - keys[0] < 2 * len(keys):
        return key.between(int(keys[0]), int(keys[-1]))
    return key.in_(keys.tolist())


def columns_of(session: Session, query: Any, count: int) -> list[Sequence[Any]]:
    """The query's columns as the driver gives them: a million rows need no objects. Instants are asked for as int."""
    result = session.connection().execute(query)
    rows = result.cursor.fetchall() if result.cursor is not None else []
    result.close()
    return list(zip(*rows, strict=True)) if rows else [()] * count


def places(rows: np.ndarray, keys: np.ndarray, found: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the contacts that were asked for, and which of ``found`` they are; both in its order."""
    asked = np.asarray(found, dtype=np.int64)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    known = keys[at] == asked
    return rows[at[known]], known
