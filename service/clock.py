"""What time it is for the business; a simulated clock lets days pass in seconds."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Tells the business time as an aware UTC datetime. Leases use the database's own clock instead."""

    def now(self) -> datetime:
        """Aware UTC datetime."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> datetime:
        """Aware UTC datetime of this machine."""
        return datetime.now(UTC)


class SimulatedClock:
    """A clock that stands until it is moved; safe to read from many threads."""

    def __init__(self, start: datetime) -> None:
        self._now = start.astimezone(UTC)
        self._lock = threading.Lock()

    def now(self) -> datetime:
        """The instant that it was last moved to."""
        with self._lock:
            return self._now

    def move_to(self, instant: datetime) -> None:
        """Move forward to ``instant``.

        Raises
        ------
        ValueError
            If ``instant`` lies before the present one: business time does not run backwards.
        """
        with self._lock:
            if instant < self._now:
                raise ValueError(f"cannot move the clock back from {self._now.isoformat()} to {instant.isoformat()}")
            self._now = instant.astimezone(UTC)
