"""Quiet hours: local hours at which no marketing mail leaves."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import overload

import numpy as np
from numpy.typing import NDArray

from features.events import zone_of


@overload
def is_quiet(local_hour: int, quiet: tuple[int, int] | None) -> bool: ...
@overload
def is_quiet(local_hour: NDArray[np.int64], quiet: tuple[int, int] | None) -> NDArray[np.bool_]: ...
def is_quiet(local_hour: int | NDArray[np.int64], quiet: tuple[int, int] | None) -> bool | NDArray[np.bool_]:
    """Whether no marketing mail leaves at this local hour, or at each of these.

    Parameters
    ----------
    local_hour : int or ndarray of int64
        0 to 23.
    quiet : (int, int), optional
        First quiet local hour, and the first that is not any more; it may pass midnight.

    Examples
    --------
    >>> is_quiet(23, (22, 7)), is_quiet(7, (22, 7)), is_quiet(3, None)
    (True, False, False)
    """
    begin, end = quiet or (0, 0)
    from_begin, before_end = local_hour >= begin, local_hour < end
    return from_begin & before_end if begin <= end else from_begin | before_end


def next_open(instant: datetime, timezone: str, quiet: tuple[int, int] | None) -> datetime:
    """The first instant from this one on at which marketing mail may leave, in UTC.

    Examples
    --------
    >>> next_open(datetime(2026, 3, 2, 23, 30, tzinfo=UTC), "Europe/Paris", (22, 7)).isoformat()
    '2026-03-03T06:00:00+00:00'
    """
    local = instant.astimezone(zone_of(timezone))
    if quiet is None or not is_quiet(local.hour, quiet):
        return instant.astimezone(UTC)
    morning = local.replace(hour=quiet[1] % 24, minute=0, second=0, microsecond=0)
    if morning <= local:
        morning += timedelta(days=1)
    return morning.astimezone(UTC)
