"""Plain counts of an experiment's arms, as of now: what came in so far, whether or not its window is over."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.experiments.lifecycle import newest_snapshot
from service.flow.reward import arms_of, statistics
from service.flow.reward.fold import took_effect
from service.tables import DecisionRow, ExperimentRow, RewardRow, SendRow, SnapshotRow


def counted(session: Session, experiment: ExperimentRow, *, now: datetime) -> dict[str, Any]:
    """Arms with their counts, rate with a 95 % Wilson interval, probability in force, and share wave by wave.

    The interval is for one look and assumes that the split did not follow the answers; what holds under peeking and
    adaptive allocation are the report's confidence sequences.
    """
    experiment_id = experiment.experiment_id
    counts = statistics(session, experiment_id, now=now)
    snapshot = newest_snapshot(session, experiment_id)
    in_force = dict(zip(snapshot.policy["arms"], snapshot.policy["pmf"], strict=True))
    kinds = _rewards_by_arm(session, experiment_id)
    n_waves, first_wave, last_wave = _wave_shares(session, experiment_id)
    arms = []
    for i, arm in enumerate(arms_of(session, experiment_id)):
        trials, successes = int(counts.trials[i].sum()), int(counts.successes[i].sum())
        arms.append(
            {
                "id": arm.arm_id,
                "status": arm.status,
                "status_reason": arm.status_reason,
                "sends": trials,
                "successes": successes,
                "rate": successes / trials if trials else None,
                "interval": wilson(successes, trials),
                "rewards": kinds.get(arm.arm_id, {}),
                "probability": in_force.get(arm.arm_id),
                "share_first_wave": first_wave.get(arm.arm_id),
                "share_last_wave": last_wave.get(arm.arm_id),
            }
        )
    return {"snapshot": snapshot.snapshot_id, "waves": n_waves, "arms": arms}


def wilson(successes: int, trials: int, z: float = 1.959964) -> list[float] | None:
    """Wilson's interval of a rate; None without trials.

    References
    ----------
    Wilson (1927), "Probable inference, the law of succession, and statistical inference".

    Examples
    --------
    >>> [round(x, 3) for x in wilson(2, 10)]
    [0.057, 0.51]
    """
    if trials == 0:
        return None
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    half = z * float(np.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)))
    scale = 1 + z * z / trials
    return [max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)]


def _rewards_by_arm(session: Session, experiment_id: str) -> dict[str, dict[str, int]]:
    """Rewards that stand, by kind, of decisions that were shown: neither of ghosts nor of orders taken back."""
    rows = session.execute(
        select(DecisionRow.arm_id, RewardRow.kind, func.count())
        .join(RewardRow, RewardRow.decision_id == DecisionRow.decision_id)
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .where(
            DecisionRow.experiment_id == experiment_id,
            DecisionRow.is_holdout.is_(False),
            took_effect(),
            RewardRow.value > 0,
        )
        .group_by(DecisionRow.arm_id, RewardRow.kind)
    )
    rewards: dict[str, dict[str, int]] = {}
    for arm, kind, count in rows:
        rewards.setdefault(arm, {})[kind] = count
    return rewards


def _wave_shares(session: Session, experiment_id: str) -> tuple[int, dict[str, float], dict[str, float]]:
    """Number of waves, and the arm probabilities that were in force in the first and in the last."""
    rows = session.execute(
        select(DecisionRow.wave, func.max(SnapshotRow.snapshot_no))
        .join(SnapshotRow, SnapshotRow.snapshot_id == DecisionRow.snapshot_id)
        .where(DecisionRow.experiment_id == experiment_id)
        .group_by(DecisionRow.wave)
        .order_by(DecisionRow.wave)
    ).all()
    if not rows:
        return 0, {}, {}
    ends = [rows[0][1], rows[-1][1]]
    policies: dict[int, dict[str, Any]] = dict(
        session.execute(
            select(SnapshotRow.snapshot_no, SnapshotRow.policy).where(SnapshotRow.snapshot_no.in_(ends))
        ).all()
    )
    first, last = (dict(zip(policies[end]["arms"], policies[end]["pmf"], strict=True)) for end in ends)
    return len(rows), first, last
