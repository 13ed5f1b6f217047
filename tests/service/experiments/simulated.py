"""A log of decisions whose truth is known: hour by hour people are shown arms, answer, and the learner learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

import numpy as np
from sqlalchemy import select

from features.contacts import resolve
from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import ARM_SHOWN, REWARD_RECEIVED
from service.database import Database
from service.flow.decide import Arm, NewExperiment, decide_for, open_experiment
from service.flow.reward import learn
from service.tables import DecisionRow

#: Expected reward of an arm at an hour since the start.
Rate = Callable[[str, int], float]


def contacts(database: Database, n: int, now: datetime) -> list[int]:
    """``n`` contacts that only the caller knows by name."""
    with database.writing() as session:
        return list(resolve(session, [f"user:s{i}" for i in range(n)], now=now).values())


def opened(database: Database, arms: Mapping[str, str], now: datetime, **asked: object) -> str:
    """A running experiment."""
    new = NewExperiment("Subjects", "subject", [Arm(name, text) for name, text in arms.items()], **asked)
    with database.writing() as session:
        return open_experiment(session, new, now=now, salt="simulated")


def live(
    database: Database,
    experiment_id: str,
    keys: list[int],
    rate: Rate,
    *,
    now: datetime,
    hours: int,
    seed: int = 1,
    kind: str = "click",
    amount: float = 1.0,
    first_hour: int = 0,
) -> datetime:
    """Let ``hours`` pass: each hour all of ``keys`` are shown an arm, and some answer 20 minutes later.

    Those held out answer at the rate of the arm ``held_out``. Returns the instant after the last hour.
    """
    rng = np.random.default_rng(seed)
    for hour in range(first_hour, first_hour + hours):
        at = now + timedelta(hours=hour)
        with database.writing() as session:
            decide_for(session, experiment_id, keys, f"api:hour-{hour}", now=at)
            rows = session.scalars(
                select(DecisionRow)
                .where(DecisionRow.experiment_id == experiment_id, DecisionRow.occurrence == f"api:hour-{hour}")
                .order_by(DecisionRow.contact_key)
            ).all()
            append(session, [_shown(row, at) for row in rows], received_at=to_micros(at))
            luck = rng.random(len(rows))
            answers = [
                _reward(row, kind, amount, at + timedelta(minutes=20))
                for row, draw in zip(rows, luck, strict=True)
                if draw < rate("held_out" if row.is_holdout else row.arm_id, hour)
            ]
            append(session, answers, received_at=to_micros(at + timedelta(minutes=21)))
        with database.writing() as session:
            learn(session, now=at + timedelta(minutes=59))
    return now + timedelta(hours=first_hour + hours)


def _shown(row: DecisionRow, at: datetime) -> NewEvent:
    names = ("decision_id", "experiment_id", "arm_id", "propensity", "snapshot_id", "wave", "segment", "is_holdout")
    return NewEvent(
        contact_key=row.contact_key,
        kind=ARM_SHOWN,
        occurred_at=to_micros(at),
        message_id=f"kairos/shown/{row.decision_id}",
        identity=f"contact:{row.contact_key}",
        ref=row.decision_id,
        properties={"decisions": [{name: getattr(row, name) for name in names}]},
    )


def _reward(row: DecisionRow, kind: str, value: float, at: datetime) -> NewEvent:
    return NewEvent(
        contact_key=row.contact_key,
        kind=REWARD_RECEIVED,
        occurred_at=to_micros(at),
        message_id=f"kairos/reward/{row.decision_id}/{kind}",
        identity=f"contact:{row.contact_key}",
        ref=row.decision_id,
        value_minor=round(100 * value) if kind == "revenue" else None,
        properties={"kind": kind, "value": value},
    )
