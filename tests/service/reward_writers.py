"""The processes of the proof that rewards are counted exactly: reporters and a worker, each of which may be killed.

Run as ``python -m tests.service.reward_writers report|learn <url> …``; a process that is killed is begun again, and
goes on from what the database holds.
"""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import REWARD_RECEIVED
from service.database import Database
from service.flow.reward import learn
from service.tables import DecisionRow
from service.worker import LEARNED_AT_ONCE

#: Rewards of one request.
BATCH = 100


def report(url: str, number: int, of: int, seed: int) -> None:
    """Report a click for each decision that is this process's share, each twice, in batches of a random order."""
    database = Database(url)
    with database.reading() as session:
        rows = session.execute(
            select(DecisionRow.decision_id, DecisionRow.contact_key, DecisionRow.decided_at).order_by(
                DecisionRow.decision_id
            )
        ).all()
    mine = rows[number::of]
    rng = np.random.default_rng(seed)
    twice = rng.permutation(np.repeat(np.arange(len(mine)), 2))
    for start in range(0, len(twice), BATCH):
        now = datetime.now(UTC)
        events = [
            NewEvent(
                mine[i].contact_key, REWARD_RECEIVED, to_micros(mine[i].decided_at) + 1,
                f"kairos/reward/{mine[i].decision_id}/click", "user:x", ref=mine[i].decision_id,
                properties={"kind": "click", "value": 1.0},
            )
            for i in twice[start : start + BATCH]
        ]  # fmt: skip
        while True:  # as a client does that was told to try again
            try:
                with database.writing() as session:
                    append(session, events, received_at=to_micros(now))
                break
            except OperationalError:
                time.sleep(0.2)
    database.close()


def learn_on(url: str, stop: str) -> None:
    """Fold the log's news again and again until the file ``stop`` is there, and once more."""
    database = Database(url)
    while True:
        is_last = Path(stop).exists()
        try:
            with database.writing() as session:
                has_more = learn(session, now=datetime.now(UTC), most=LEARNED_AT_ONCE).has_more
        except OperationalError:
            continue
        if is_last and not has_more:
            break
        time.sleep(0.05)
    database.close()


if __name__ == "__main__":
    if sys.argv[1] == "report":
        report(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
    else:
        learn_on(sys.argv[2], sys.argv[3])
