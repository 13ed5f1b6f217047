"""A process that appends to the log while others read it: events of now, late ones, repeated ones, imported history."""

from __future__ import annotations

from datetime import UTC, datetime
from multiprocessing.synchronize import Event

import numpy as np

from features.events import DAY_MICROS, NewEvent, append
from features.tables import to_micros
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, EMAIL_SENT, IDENTIFY, ORDER_COMPLETED, PAGE
from service.database import Database

KINDS = (ORDER_COMPLETED, PAGE, EMAIL_SENT, EMAIL_OPENED, EMAIL_CLICKED, IDENTIFY, "Sofa Tested")


def random_events(
    random: np.random.Generator, batch: str, count: int, contacts: int, now: int, *, late_days: float
) -> list[NewEvent]:
    """Events of the last ``late_days`` days before ``now``, every tenth under an id that was used before."""
    return [
        NewEvent(
            int(random.integers(1, contacts + 1)),
            KINDS[int(random.integers(len(KINDS)))],
            int(now - random.integers(0, int(late_days * DAY_MICROS))),
            f"{batch}-{n}" if n % 10 else f"repeated-{int(random.integers(50))}",
            "user:1",
            ref=str(random.integers(0, 40)),
            value_minor=int(random.integers(0, 90_000)),
            human_ppm=int(random.integers(0, 1_000_001)),
            properties={"category": f"c{int(random.integers(5))}", "plan": str(random.integers(3))},
        )
        for n in range(count)
    ]


def append_until(url: str, contacts: int, started: Event, stop: Event) -> None:
    """Append batch after batch until ``stop``: mostly of this second, some late, every fifth imported history."""
    database, random, batch = Database(url, is_durable=False), np.random.default_rng(11), 0
    while not stop.is_set():
        now = to_micros(datetime.now(UTC))
        late_days = (0.00001, 0.00001, 3, 0.00001, 90)[batch % 5]
        events = random_events(random, f"b{batch}", 20, contacts, now, late_days=late_days)
        with database.writing() as session:
            append(session, events, received_at=to_micros(datetime.now(UTC)), imported=batch % 5 == 4)
        started.set()
        batch += 1
        stop.wait(0.02)
    database.close()
