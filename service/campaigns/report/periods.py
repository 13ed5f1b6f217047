"""Days, weeks and months of the installation's zone, as instants; a day may have 23 or 25 hours."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from features.tables import to_micros
from service.errors import Invalid

By = Literal["day", "week", "month"]
#: Periods that one report may have.
MOST_PERIODS = 3_700


@dataclass(frozen=True)
class Periods:
    """Successive periods; the first and the last may be cut by the range asked about."""

    #: First local date of each.
    starts: tuple[date, ...]
    #: Local date after the last one.
    end: date
    #: Instants (microseconds since 1970 UTC) at which they begin, and the last one ends; shape (n + 1,).
    edges: npt.NDArray[np.int64]

    @classmethod
    def between(cls, first: date, last: date, by: By, timezone: str) -> Periods:
        """The periods from local date ``first`` to local date ``last``, both included.

        Raises
        ------
        Invalid
            If the range is empty or has too many periods.

        Examples
        --------
        >>> spring = Periods.between(date(2026, 3, 28), date(2026, 3, 30), "day", "Europe/London")
        >>> (np.diff(spring.edges) // 3_600_000_000).tolist()
        [24, 23, 24]
        """
        if last < first:
            raise Invalid(f"until {last} lies before from {first}; give a range that ends on or after its first day")
        if (last - first).days > MOST_PERIODS:
            raise Invalid(f"{first} to {last} are {(last - first).days} days; ask for at most {MOST_PERIODS}")
        starts = [first]
        while (following := _next(starts[-1], by)) <= last:
            starts.append(following)
        end = last + timedelta(days=1)
        zone = ZoneInfo(timezone)
        edges = [to_micros(datetime.combine(day, time(), zone)) for day in (*starts, end)]
        return cls(tuple(starts), end, np.array(edges, dtype=np.int64))

    @property
    def since(self) -> int:
        """Instant at which the first one begins."""
        return int(self.edges[0])

    @property
    def until(self) -> int:
        """Instant at which the last one has ended."""
        return int(self.edges[-1])

    def __len__(self) -> int:
        return len(self.starts)

    def sums(self, at: npt.NDArray[np.int64], amounts: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
        """Amounts (by default 1 each) by the period in which ``at`` falls; what lies outside is left out."""
        place = np.searchsorted(self.edges, at, side="right") - 1
        inside = (place >= 0) & (place < len(self))
        total = np.zeros(len(self), dtype=np.int64)
        np.add.at(total, place[inside], 1 if amounts is None else amounts[inside])
        return total


def _next(day: date, by: By) -> date:
    if by == "day":
        return day + timedelta(days=1)
    if by == "week":  # from Monday on (ISO 8601)
        return day + timedelta(days=7 - day.weekday())
    return date(day.year + day.month // 12, day.month % 12 + 1, 1)
