"""An experiment as the API and the command line show it: what it asks, its arms, what befell it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.experiments.lifecycle import find_experiment, guardrails_of, history_of
from service.flow.reward import arms_of
from service.tables import ArmRow, ExperimentRow

#: Settings that are shown under their own name where they were given.
_SHOWN_SETTINGS = (
    "sticky", "segment_by", "context", "half_life_days", "planned_sends", "control", "maximum_change",
    "minimum_per_arm", "weights",
)  # fmt: skip


def shown_experiment(session: Session, experiment_id: str) -> dict[str, Any]:
    """One experiment with its arms and its history.

    Raises
    ------
    NotFound
        If there is none of that id.
    """
    row = find_experiment(session, experiment_id)
    return _shown(row, arms_of(session, experiment_id))


def shown_experiments(session: Session, rows: Sequence[ExperimentRow]) -> list[dict[str, Any]]:
    """Several of them, in their order, read at once."""
    ids = [row.experiment_id for row in rows]
    arms: dict[str, list[ArmRow]] = {}
    query = select(ArmRow).where(ArmRow.experiment_id.in_(ids)).order_by(ArmRow.position)
    for arm in session.scalars(query):
        arms.setdefault(arm.experiment_id, []).append(arm)
    return [_shown(row, arms.get(row.experiment_id, [])) for row in rows]


def _shown(row: ExperimentRow, arms: Sequence[ArmRow]) -> dict[str, Any]:
    return {
        "id": row.experiment_id,
        "name": row.name,
        "kind": row.kind,
        "slot": row.slot,
        "reward": row.reward,
        "reward_window_hours": row.reward_window_hours,
        "floor": row.floor,
        "explore_share": row.explore_share,
        "holdout_share": row.holdout_share,
        "policy": row.policy,
        "status": row.status,
        "created_at": row.created_at,
        "ended_at": row.ended_at,
        "guardrails": guardrails_of(row),
        "settings": {name: row.settings[name] for name in _SHOWN_SETTINGS if row.settings.get(name) is not None},
        "history": history_of(row),
        "arms": [
            {
                "id": arm.arm_id,
                "content": arm.content,
                "features": arm.features,
                "status": arm.status,
                "status_reason": arm.status_reason,
                "status_at": arm.status_at,
            }
            for arm in arms
        ],
    }
