"""Events written by hand, as the arrays that features are computed from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from features.events import COLUMN_TYPES, DAY_MICROS, EventColumns, KindCodes
from features.properties import PropertyColumns
from features.vocabulary import ORDER_COMPLETED

#: Day 0 of the examples: a midnight UTC.
ORIGIN = 1_770_000_000_000_000 // DAY_MICROS * DAY_MICROS


class Event(NamedTuple):
    contact_key: int
    occurred_at: int
    received_at: int
    kind: str
    value_minor: int
    hour_of_week: int
    human_ppm: int
    is_repeat: bool
    ref: int
    properties: dict[str, Any] | None = None


def columns_of(events: Sequence[Event]) -> EventColumns:
    """The events as arrays; their place in the sequence is their seq."""
    codes = KindCodes()
    kind = codes.encode([event.kind for event in events])
    arrays = {
        name: np.array([getattr(event, name) for event in events], dtype=dtype)
        for name, dtype in COLUMN_TYPES.items()
        if name not in ("kind", "seq")
    }
    properties = PropertyColumns.parse([event.properties and json.dumps(event.properties) for event in events])
    seq = np.arange(len(events))
    return EventColumns(**arrays, kind=kind, seq=seq, kinds=codes.kinds, properties=properties).sorted()


def order(day: float, value: int = 1000, key: int = 1, ref: int = 0) -> Event:
    """An order, known when it was placed, ``day`` days after `ORIGIN`."""
    at = ORIGIN + int(day * DAY_MICROS)
    return Event(key, at, at, ORDER_COMPLETED, value, 0, -1, False, ref)
