"""What an experiment has shown, with the uncertainty of every figure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from service.experiments.counts import counted
from service.experiments.lifecycle import find_experiment


def experiment_report(session: Session, experiment_id: str, *, now: datetime) -> dict[str, Any]:
    """The report as JSON values.

    Raises
    ------
    NotFound
        If there is no such experiment.
    """
    experiment = find_experiment(session, experiment_id)
    return {
        "id": experiment_id,
        "name": experiment.name,
        "kind": experiment.kind,
        "reward": experiment.reward,
        "status": experiment.status,
        "policy": experiment.policy,
        "floor": experiment.floor,
        **counted(session, experiment, now=now),
    }
