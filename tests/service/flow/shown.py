"""Decisions that were shown, what came of them, and the learner's whole state, as the tests of learning use them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.events import NewEvent, append
from features.tables import to_micros
from service.api.decisions import TOLD, shown_event
from service.flow.decide import Arm, NewExperiment, decide_for
from service.flow.schedule import schedule, write_sends
from service.tables import CampaignRow, CreditRow, DecisionRow, LearnerCellRow, LearnerMatrixRow, RewardRow
from tests.service.flow.plans import intent, limits

ARMS = (Arm("a", "One"), Arm("b", "Two"), Arm("c", "Three"))


def new_experiment(**changes: Any) -> NewExperiment:
    return NewExperiment(**{"name": "Test", "kind": "subject", "arms": ARMS, **changes})


def plan_campaign(
    session: Session, keys: Sequence[int], experiments: list[str], now: datetime, window_hours: int = 24
) -> None:
    """A scheduled campaign to these contacts, its sends spread over the window."""
    session.add(
        CampaignRow(
            campaign_id="cmp_1",
            name="One",
            status="scheduled",
            template_id="offer",
            template_version=1,
            audience={"everyone": True},
            experiments=experiments,
            topic="marketing",
            window_start=now,
            window_end=now + timedelta(hours=window_hours),
            holdout_share=0.0,
            timing="spread",
            created_at=now,
            scheduled_at=now,
        )
    )
    plan = intent(now, timing="spread", window_end=now + timedelta(hours=window_hours))
    write_sends(session, schedule(session, plan, np.array(keys), None, limits(), now=now), now=now)


def show(
    session: Session, experiment_id: str, keys: Sequence[int], occurrence: str, now: datetime
) -> list[DecisionRow]:
    """Decisions for these contacts as the API takes them, in their order, the shown ones logged as shown."""
    made = decide_for(session, experiment_id, keys, occurrence, now=now)
    rows = {
        row.decision_id: row
        for row in session.scalars(select(DecisionRow).where(DecisionRow.decision_id.in_(made.decision_id)))
    }
    append(session, events_of([rows[one] for one in made.decision_id], now), received_at=to_micros(now))
    return [rows[one] for one in made.decision_id]


def events_of(rows: Sequence[DecisionRow], now: datetime) -> list[NewEvent]:
    """What the API logs of decisions: those that were shown."""
    return [
        shown_event(
            contact_key=row.contact_key,
            identity=f"user:{row.contact_key}",
            now=to_micros(now),
            decision={name: getattr(row, name) for name in TOLD},
        )
        for row in rows
        if not row.is_holdout
    ]


def reward(row: DecisionRow, at: datetime, kind: str = "click", value: float = 1.0) -> NewEvent:
    """A reward as the API reports it."""
    return NewEvent(
        row.contact_key, "Reward Received", to_micros(at), f"kairos/reward/{row.decision_id}/{kind}", "user:x",
        ref=row.decision_id, value_minor=round(value) if kind == "revenue" else None,
        properties={"kind": kind, "value": value},
    )  # fmt: skip


def order(key: int, at: datetime, ref: str, value: int | None = 1000, kind: str = "Order Completed") -> NewEvent:
    """An order of a contact, or what was taken back of it."""
    return NewEvent(key, kind, to_micros(at), f"{kind}:{ref}:{value}:{at}", "user:x", ref=ref, value_minor=value)


def state(session: Session) -> dict[str, Any]:
    """The learner's cells, matrices, rewards and credits; without where in the log a reward came from."""
    session.flush()
    session.expire_all()
    cells = session.scalars(select(LearnerCellRow)).all()
    matrices: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for row in session.scalars(select(LearnerMatrixRow)):
        place = (row.experiment_id, row.arm_id, row.wave)
        parts = [np.frombuffer(row.gram), np.frombuffer(row.moments)]
        matrices[place] = (
            parts if place not in matrices else [a + b for a, b in zip(matrices[place], parts, strict=True)]
        )
    counts = ("trials", "successes", "sum_shown_at", "unsubscribes", "complaints", "sum_rewards", "sum_squares")
    return {
        "cells": {
            (c.experiment_id, c.arm_id, c.wave, c.segment): tuple(getattr(c, name) for name in counts)
            for c in cells
            if any(getattr(c, name) for name in counts)
        },
        "matrices": matrices,
        "rewards": {
            (r.decision_id, r.kind): (r.value, r.occurred_at, r.reversed_at) for r in session.scalars(select(RewardRow))
        },
        "credits": {
            (c.experiment_id, c.contact_key, c.order_ref): (c.decision_id, c.value_minor, c.taken_back_minor)
            for c in session.scalars(select(CreditRow))
        },
    }


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Counts, rewards and credits exactly; sums and matrices to 1e-9."""
    assert one["rewards"] == other["rewards"]
    assert one["credits"] == other["credits"]
    assert one["cells"].keys() == other["cells"].keys()
    for place, cell in one["cells"].items():
        assert cell[:5] == other["cells"][place][:5]
        np.testing.assert_allclose(cell[5:], other["cells"][place][5:], rtol=1e-9, atol=1e-9)
    assert one["matrices"].keys() == other["matrices"].keys()
    for place, parts in one["matrices"].items():
        for mine, theirs in zip(parts, other["matrices"][place], strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-9)
