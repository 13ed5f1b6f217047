"""The window as slots of an hour, the waves of a send at its start, and what o'clock it is in a zone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np

from features.events import HOUR_MICROS
from features.tables import from_micros, to_micros
from service.flow.schedule.intent import Intent

#: Zones stand off UTC by whole quarters of an hour, and clocks change at them.
QUARTER_MICROS = HOUR_MICROS // 4
#: Share of the contacts in the first of several waves: it is drawn evenly, so it is kept small.
FIRST_WAVE_SHARE = 0.1
#: A mail of a canary counts as watched once it has been out so long: half of those who complain or leave do so within
#: the hour. All others wait for the last of them.
WATCHED = timedelta(minutes=60)


@dataclass(frozen=True)
class Window:
    """Slots of an hour, the first and the last of which may be partly outside.

    Attributes
    ----------
    begin, end : int
        Microseconds since 1970 UTC; it begins now where it had begun before.
    slots : ndarray of int64, shape (n_slots,)
        Starts of the hours, whole hours UTC.
    opens, width : ndarray of int64, shape (n_slots,)
        What of each hour lies inside: microseconds from its start on, and how many.
    """

    begin: int
    end: int
    slots: np.ndarray
    opens: np.ndarray
    width: np.ndarray

    @classmethod
    def of(cls, intent: Intent, now: datetime) -> Window:
        """The window of an intent, from ``now`` on."""
        begin = max(to_micros(intent.window_start), to_micros(now))
        end = to_micros(intent.window_end)
        slots = np.arange(begin - begin % HOUR_MICROS, end, HOUR_MICROS, dtype=np.int64)
        opens = np.maximum(begin - slots, 0)
        return cls(begin, end, slots, opens, np.minimum(end - slots, HOUR_MICROS) - opens)


@dataclass(frozen=True)
class Waves:
    """When the parts of a send leave, and the share of the contacts in each.

    Attributes
    ----------
    starts : ndarray of int64, shape (n_waves,)
        Microseconds since 1970 UTC.
    shares : ndarray of float64, shape (n_waves,)
    """

    starts: np.ndarray
    shares: np.ndarray

    @classmethod
    def over(cls, begin: int, end: int, n: int) -> Waves:
        """``n`` waves at even distances over ``[begin, end)``: as far apart as the window allows.

        Examples
        --------
        >>> Waves.over(0, 400, 4).starts.tolist(), Waves.over(0, 400, 4).shares.round(2).tolist()
        ([0, 100, 200, 300], [0.1, 0.3, 0.3, 0.3])
        """
        starts = begin + (end - begin) * np.arange(n, dtype=np.int64) // n
        rest = [(1 - FIRST_WAVE_SHARE) / (n - 1)] * (n - 1) if n > 1 else []
        return cls(starts, np.array([FIRST_WAVE_SHARE, *rest] if n > 1 else [1.0]))

    def of(self, draws: np.ndarray) -> np.ndarray:
        """Wave of each contact, by its draw in [0, 1)."""
        return np.minimum(np.searchsorted(np.cumsum(self.shares), draws, side="right"), len(self.shares) - 1)


class Clocks:
    """What o'clock it is in some zones, at any instant of a stretch of time.

    Parameters
    ----------
    zones : sequence of str
    begin, end : int
        Microseconds since 1970 UTC.
    """

    def __init__(self, zones: Sequence[str], begin: int, end: int) -> None:
        self._first = begin // QUARTER_MICROS
        quarters = np.arange(self._first, end // QUARTER_MICROS + 1) * QUARTER_MICROS
        self._offsets = np.array([utc_offsets(zone, quarters) for zone in zones], dtype=np.int64).reshape(
            len(zones), len(quarters)
        )

    def local_hour(self, zone: np.ndarray, instant: np.ndarray) -> np.ndarray:
        """Local hour, 0 to 23, of each instant in the zone of that number; the two are broadcast."""
        quarter = np.clip(instant // QUARTER_MICROS - self._first, 0, self._offsets.shape[1] - 1)
        return np.asarray((instant + self._offsets[zone, quarter]) // HOUR_MICROS % 24)


@lru_cache(maxsize=2048)
def exists(zone: str) -> bool:
    """Whether there is an IANA zone of that name."""
    try:
        ZoneInfo(zone)
    except (KeyError, ValueError, OSError):
        return False
    return True


def utc_offsets(zone: str, instants: np.ndarray) -> np.ndarray:
    """How far a zone stands off UTC at each instant, in microseconds."""
    tz = ZoneInfo(zone)
    offsets = [from_micros(t).astimezone(tz).utcoffset() or timedelta() for t in instants.tolist()]
    return np.array([offset // timedelta(microseconds=1) for offset in offsets], dtype=np.int64)
