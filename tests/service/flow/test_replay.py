"""Every decision of a log, taken again in a fresh process: the same bits, and a changed snapshot shows."""

import json
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import func, insert, select, update

from features.events import NewEvent, append
from features.tables import allocate, to_micros
from service.database import Database
from service.flow.decide import open_experiment
from service.flow.reward import learn
from service.tables import ArmRow, ContactRow, SnapshotRow
from tests.service.flow.replaying import replayed
from tests.service.flow.shown import new_experiment, reward, show

ROOT = Path(__file__).parents[3]


def log_of(database: Database, now, contacts: int, rounds: int) -> int:
    """Decisions of a Thompson experiment by segment and of a linear one, with a snapshot a round; how many."""
    rng = np.random.default_rng(5)
    with database.writing() as session:
        first = allocate(session, "contact_key", contacts)
        keys = list(range(first, first + contacts))
        places = [{"country": "DE"}, {"country": "FR"}, {"country": "PL"}, {}]
        session.execute(
            insert(ContactRow),
            [
                {"contact_key": k, "user_id": f"u{k}", "traits": places[k % 4], "created_at": now, "updated_at": now}
                for k in keys
            ],
        )
        bought = [k for k in keys if k % 3]
        orders = [
            NewEvent(
                k, "Order Completed", to_micros(now) - 3_600_000_000 * (k % 50 + 1), f"b{k}", "user:x", ref=f"b{k}",
                value_minor=100 + k % 977,
            )
            for k in bought
        ]  # fmt: skip
        append(session, orders, received_at=to_micros(now))
        rule = {"trait": "country", "values": ["DE", "FR"]}
        ids = [
            open_experiment(session, new_experiment(segment_by=rule, maximum_change=0.3, explore_share=0.1), now=now),
            open_experiment(
                session,
                new_experiment(
                    policy="linear", context={"features": ["orders_ever", "revenue_ever", "orders_decayed"]}
                ),
                now=now,
            ),
        ]
    at = now
    for number in range(rounds):
        with database.writing() as session:
            for experiment_id in ids:
                rows = show(session, experiment_id, keys, f"round-{number}", at)
                lucky = rng.random(len(rows)) < [0.1 + 0.2 * (row.arm_id == "b") for row in rows]
                append(
                    session,
                    [reward(row, at) for row, won in zip(rows, lucky, strict=True) if won],
                    received_at=to_micros(at),
                )
            if number == rounds // 2:
                session.execute(update(ArmRow).where(ArmRow.arm_id == "c").values(status="paused"))
        at += timedelta(hours=30)
        with database.writing() as session:
            learn(session, now=at)
    return contacts * rounds * len(ids)


def fresh_process(database: Database) -> dict[str, int]:
    url = database.url.render_as_string(hide_password=False)
    done = subprocess.run(
        [sys.executable, "-m", "tests.service.flow.replaying", url], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def prove(database: Database, now, contacts: int, rounds: int) -> None:
    count = log_of(database, now, contacts, rounds)
    began = time.perf_counter()
    assert fresh_process(database) == {"decisions": count, "equal": count}
    print(f"{count} decisions replayed bit for bit in {time.perf_counter() - began:.1f} s")
    with database.writing() as session:
        newest = session.scalar(select(func.max(SnapshotRow.snapshot_no)).where(SnapshotRow.ensemble.is_not(None)))
        used = session.scalars(
            select(SnapshotRow).where(SnapshotRow.ensemble.is_not(None), SnapshotRow.snapshot_no < newest)
        ).first()
        used.policy = used.policy | {"uniform": used.policy["uniform"] + 1e-12}
    url = database.url.render_as_string(hide_password=False)
    assert replayed(url) == {"decisions": count, "equal": count - contacts}


def test_a_log_replays_in_a_fresh_process(database, now):
    """2,400 decisions, Thompson by segment and linear, over four snapshots each."""
    prove(database, now, contacts=300, rounds=4)


@pytest.mark.slow
def test_a_hundred_thousand_decisions_replay_in_a_fresh_process(database, now):
    """Every one, bit for bit; a snapshot changed by 1e-12 is found out."""
    prove(database, now, contacts=10_000, rounds=5)
