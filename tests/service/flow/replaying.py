"""Replay of every decision of a log in a process of its own: ``python -m tests.service.flow.replaying <url>``."""

from __future__ import annotations

import json
import sys

from sqlalchemy import select

from service.database import Database
from service.flow.decide import replay
from service.tables import DecisionRow


def replayed(url: str) -> dict[str, int]:
    """How many decisions there are, and how many of them are the same bit for bit."""
    database = Database(url)
    with database.reading() as session:
        ids = session.scalars(select(DecisionRow.decision_id).order_by(DecisionRow.decision_id)).all()
        again = replay(session, ids)
    database.close()
    return {"decisions": len(again), "equal": sum(one.is_equal for one in again)}


if __name__ == "__main__":
    print(json.dumps(replayed(sys.argv[1])))
