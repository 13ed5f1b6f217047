"""Properties of events as columns: every value at every path as a hash and, where it is one, a number."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from features.tables import to_micros

_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d{1,2})?\Z")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]|\Z)")


@dataclass(frozen=True)
class PropertyColumns:
    """The values of the events' properties, those of event ``i`` at ``start[i]`` to ``start[i + 1]``.

    A nested object's values lie under the path with dots (``address.city``), each item of a list under the list's own
    path (``products.category``), so that an event may have several values of one name.
    """

    #: shape (n_events + 1,)
    start: npt.NDArray[np.int64]
    #: `hash_ref` of the path, shape (n_values,)
    name: npt.NDArray[np.int64]
    #: `hash_ref` of the value as text; 0 for null and the empty text.
    value: npt.NDArray[np.int64]
    #: The value as a number: 1 and 0 for true and false, microseconds since 1970 for ISO dates; NaN for other texts.
    number: npt.NDArray[np.float64]
    #: False if only traits (the properties of Identify events) were read.
    is_complete: bool = True

    @classmethod
    def empty(cls, n_events: int, *, is_complete: bool = True) -> PropertyColumns:
        """Events without properties."""
        none = np.empty(0, dtype=np.int64)
        return cls(np.zeros(n_events + 1, dtype=np.int64), none, none, np.empty(0), is_complete)

    @classmethod
    def parse(cls, texts: Sequence[str | None], *, is_complete: bool = True) -> PropertyColumns:
        """Columns of the events' properties, each a JSON object as text, or None."""
        lengths = np.zeros(len(texts) + 1, dtype=np.int64)
        names: list[int] = []
        values: list[int] = []
        numbers: list[float] = []
        for event, text in enumerate(texts, 1):
            if text:
                found = _exploded(text)
                lengths[event] = len(found[0])
                names.extend(found[0])
                values.extend(found[1])
                numbers.extend(found[2])
        return cls(
            np.cumsum(lengths),
            np.array(names, dtype=np.int64),
            np.array(values, dtype=np.int64),
            np.array(numbers, dtype=np.float64),
            is_complete,
        )

    @classmethod
    def concat(cls, parts: Sequence[PropertyColumns]) -> PropertyColumns:
        """The properties of the events of all ``parts``, one after the other."""
        lengths = np.concatenate([np.diff(part.start) for part in parts])
        return cls(
            np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
            np.concatenate([part.name for part in parts]),
            np.concatenate([part.value for part in parts]),
            np.concatenate([part.number for part in parts]),
            all(part.is_complete for part in parts),
        )

    def take(self, index: npt.NDArray[Any] | slice) -> PropertyColumns:
        """The properties of the events at ``index`` (positions, a mask or a slice), in that order."""
        first, lengths = self.start[:-1][index], np.diff(self.start)[index]
        if not len(self.name):
            return PropertyColumns.empty(len(lengths), is_complete=self.is_complete)
        start = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        place = np.repeat(first - start[:-1], lengths) + np.arange(start[-1])
        return PropertyColumns(start, self.name[place], self.value[place], self.number[place], self.is_complete)

    def where(self, events: npt.NDArray[np.bool_]) -> PropertyColumns:
        """The same events, those outside the mask ``events`` without properties."""
        lengths = np.where(events, np.diff(self.start), 0)
        kept = np.repeat(events, np.diff(self.start))
        return PropertyColumns(
            np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)]),
            self.name[kept],
            self.value[kept],
            self.number[kept],
            self.is_complete,
        )


def hash_ref(ref: str | None) -> int:
    """First 8 bytes of BLAKE2b of ``ref`` as a signed integer; 0 for None or an empty text.

    Examples
    --------
    >>> hash_ref(None), hash_ref("536365") == hash_ref("536365"), hash_ref("1") == hash_ref("2")
    (0, True, False)
    """
    if not ref:
        return 0
    return int.from_bytes(blake2b(ref.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little", signed=True)


def value_text(value: Any) -> str | None:
    """The text under which a scalar is compared: ``1``, ``1.0`` and ``"1"`` are the same.

    Examples
    --------
    >>> value_text(1.0), value_text(True), value_text("Shoes"), value_text(None)
    ('1', 'true', 'Shoes', None)
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    return str(value)


def _flatten(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _flatten(f"{path}.{name}" if path else name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _flatten(path, inner)
    else:
        yield path, value


#: Texts come again and again: the same page, the same category, the same few shapes of an event.
@lru_cache(maxsize=20_000)
def _exploded(text: str) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    found = [(_name(path), *_scalar(value)) for path, value in _flatten("", json.loads(text))]
    if not found:
        return (), (), ()
    names, values, numbers = zip(*found, strict=True)
    return names, values, numbers


@lru_cache(maxsize=20_000)
def _name(path: str) -> int:
    return hash_ref(path)


@lru_cache(maxsize=50_000, typed=True)
def _scalar(value: Any) -> tuple[int, float]:
    return hash_ref(value_text(value)), _number(value)


def _number(value: Any) -> float:
    # + 0.0 turns -0.0 into 0.0: the two are equal, so the cache above would answer either by whichever came first.
    if isinstance(value, bool | int | float):
        return float(value) + 0.0 if abs(value) < 2**1023 else math.nan
    if isinstance(value, str) and len(value) <= 40:
        if _NUMBER.match(value):
            return float(value) + 0.0
        if _DATE.match(value):
            try:
                instant = datetime.fromisoformat(value)
            except ValueError:
                return math.nan
            return float(to_micros(instant if instant.tzinfo else instant.replace(tzinfo=UTC)))
    return math.nan
