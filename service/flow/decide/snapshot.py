"""Snapshots: the allocation in force from an instant, the statistics it follows from, and what proves it unaltered."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from hashlib import blake2b
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.tables import allocate
from service.flow.decide.experiment import policy_of
from service.tables import ExperimentRow, SnapshotRow
from training.policies import policy_from_parameters
from training.policies.base import Allocation, Policy
from training.policies.linear import LinearThompson
from training.policies.statistics import ArmStatistics, LinearStatistics, SegmentStatistics, ValueStatistics

Statistics = ArmStatistics | SegmentStatistics | ValueStatistics | LinearStatistics

#: Arrays that a snapshot keeps of its statistics. The matrices of a linear policy are too large for every snapshot:
#: it keeps the drawn ensemble instead, which is what decisions follow from.
_KEPT: dict[type, tuple[str, ...]] = {
    ArmStatistics: ("trials", "successes", "age_hours"),
    SegmentStatistics: ("trials", "successes", "age_hours"),
    ValueStatistics: ("trials", "successes", "sums", "squares", "age_hours"),
    LinearStatistics: ("trials", "squares", "age_hours"),
}


def take_snapshot(
    session: Session,
    experiment: ExperimentRow,
    statistics: Statistics,
    *,
    log_seq: int,
    now: datetime,
    policy: Policy | None = None,
    running: Sequence[str] | None = None,
    note: str = "",
    totals: Sequence[float] = (),
) -> SnapshotRow:
    """The allocation that follows from ``statistics``, kept with them for replay.

    Parameters
    ----------
    statistics : of the class that the policy learns from
        Its arms are those that the snapshot lists.
    policy : Policy, optional
        By default the experiment's own.
    running : sequence of str, optional
        Of a linear policy the arms to choose among; the others only teach them.
    note : str
        Added to the reason: why the policy is not the experiment's own.
    totals : sequence of float
        Sums over everything that was folded, by which the next reading sees whether there is news.
    """
    asked = policy_of(experiment, running or statistics.arms)
    policy = policy or asked
    before = _newest(session, experiment.experiment_id)
    number = allocate(session, "snapshot_no", 1)
    digest = blake2b(f"{experiment.salt}|{number}".encode(), digest_size=6).digest()
    seed = int.from_bytes(digest, "little")
    previous = None if before is None else unexplored(before)
    if isinstance(policy, LinearThompson) and isinstance(statistics, LinearStatistics):
        own = policy.allocate(statistics, previous=previous, seed=seed, running=running)
    else:
        own = policy.allocate(statistics, previous=previous, seed=seed)
    allocation = own.explored(experiment.explore_share)
    snapshot = SnapshotRow(
        snapshot_id=f"snp_{number}",
        snapshot_no=number,
        experiment_id=experiment.experiment_id,
        created_at=now,
        log_seq=log_seq,
        algorithm=policy.name,
        policy={
            "arms": list(allocation.arms),
            "pmf": allocation.pmf.tolist(),
            "by_segment": {name: pmf.tolist() for name, pmf in allocation.by_segment.items()},
            "uniform": allocation.uniform,
            "reason": f"{allocation.reason}{note}",
            "details": dict(allocation.details),
            "parameters": policy.parameters(),
            "asked": asked.parameters(),
            "explore_share": experiment.explore_share,
            "own": {"pmf": own.pmf.tolist(), "by_segment": {name: q.tolist() for name, q in own.by_segment.items()}}
            if experiment.explore_share
            else None,
            "seed": seed,
            "previous": None if before is None else before.snapshot_id,
            "totals": list(totals),
            "fingerprint": fingerprint(allocation),
        },
        statistics=_kept_statistics(statistics),
        ensemble=None if allocation.ensemble is None else _npy(allocation.ensemble),
    )
    session.add(snapshot)
    session.flush()
    return snapshot


def allocation_of(snapshot: SnapshotRow) -> Allocation:
    """The allocation that a snapshot stores."""
    kept = snapshot.policy
    return Allocation(
        arms=tuple(kept["arms"]),
        pmf=np.array(kept["pmf"], dtype=np.float64),
        reason=kept.get("reason", ""),
        details=kept.get("details", {}),
        by_segment=_pmfs(kept.get("by_segment", {})),
        ensemble=None if snapshot.ensemble is None else np.load(io.BytesIO(snapshot.ensemble), allow_pickle=False),
        uniform=kept.get("uniform", kept["explore_share"]),
    )


def unexplored(snapshot: SnapshotRow) -> Allocation:
    """The same without the share that is drawn evenly on top: what a policy limits its changes against."""
    stored, own = allocation_of(snapshot), snapshot.policy.get("own")
    if own is None:
        return stored
    return replace(stored, pmf=np.array(own["pmf"], dtype=np.float64), by_segment=_pmfs(own["by_segment"]))


def recomputed(snapshot: SnapshotRow, previous: SnapshotRow | None) -> Allocation | None:
    """The allocation computed again from the stored statistics; None for an ensemble, whose matrices are not kept.

    Parameters
    ----------
    previous : SnapshotRow or None
        The one that the snapshot names as in force before it.
    """
    statistics = statistics_of(snapshot)
    if isinstance(statistics, LinearStatistics):
        return None
    kept = snapshot.policy
    policy = policy_from_parameters(kept["parameters"])
    before = None if previous is None else unexplored(previous)
    own = policy.allocate(statistics, previous=before, seed=kept.get("seed", 0))
    return own.explored(kept["explore_share"])


def is_intact(snapshot: SnapshotRow, previous: SnapshotRow | None) -> bool:
    """Whether the stored allocation is the one that was taken: its fingerprint, and what its statistics say again."""
    stored = allocation_of(snapshot)
    told = snapshot.policy.get("fingerprint")
    if told is not None and told != fingerprint(stored):
        return False
    again = recomputed(snapshot, previous)
    return again is None or _is_same(stored, again)


def fingerprint(allocation: Allocation) -> str:
    """BLAKE2b of everything that a draw takes from an allocation."""
    segments = sorted((name, pmf.tolist()) for name, pmf in allocation.by_segment.items())
    told = json.dumps([list(allocation.arms), allocation.pmf.tolist(), segments, allocation.uniform])
    digest = blake2b(told.encode(), digest_size=16)
    if allocation.ensemble is not None:
        digest.update(np.ascontiguousarray(allocation.ensemble, dtype="<f4").tobytes())
    return digest.hexdigest()


def statistics_of(snapshot: SnapshotRow) -> Statistics:
    """The statistics that a snapshot was computed from; of a linear policy without the matrices."""
    kept = snapshot.statistics
    arms = tuple(kept.get("arms") or snapshot.policy["arms"])
    if "sums" in kept:
        return ValueStatistics(arms=arms, **{name: _table(kept, name, len(arms)) for name in _KEPT[ValueStatistics]})
    if "segments" in kept:
        names = tuple(kept["segments"])
        shape = (len(names), len(arms), -1) if names else (0, len(arms), 0)
        cells: dict[str, Any] = {
            name: np.array(kept[name], dtype=_dtype(name)).reshape(shape) for name in _KEPT[SegmentStatistics]
        }
        return SegmentStatistics(segments=names, arms=arms, **cells)
    tables: dict[str, Any] = {name: _table(kept, name, len(arms)) for name in ("trials", "age_hours")}
    if "successes" in kept:
        return ArmStatistics(arms=arms, successes=_table(kept, "successes", len(arms)), **tables)
    n_waves = tables["trials"].shape[1]
    nothing = np.zeros((len(arms), n_waves, 0))
    return LinearStatistics(
        arms=arms, gram=nothing[..., None], moments=nothing, squares=_table(kept, "squares", len(arms)), **tables
    )


def _kept_statistics(statistics: Statistics) -> dict[str, Any]:
    kept: dict[str, Any] = {name: getattr(statistics, name).tolist() for name in _KEPT[type(statistics)]}
    kept["arms"] = list(statistics.arms)
    if isinstance(statistics, SegmentStatistics):
        kept["segments"] = list(statistics.segments)
    return kept


def _table(kept: Mapping[str, Any], name: str, n_arms: int) -> np.ndarray:
    return np.array(kept[name], dtype=_dtype(name)).reshape(n_arms, -1)


def _dtype(name: str) -> type:
    return np.int64 if name in ("trials", "successes") else np.float64


def _pmfs(kept: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {name: np.array(pmf, dtype=np.float64) for name, pmf in kept.items()}


def _npy(ensemble: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(ensemble, dtype=np.float32), allow_pickle=False)
    return file.getvalue()


def _is_same(one: Allocation, other: Allocation) -> bool:
    return (
        one.arms == other.arms
        and np.array_equal(one.pmf, other.pmf)
        and one.uniform == other.uniform
        and one.by_segment.keys() == other.by_segment.keys()
        and all(np.array_equal(pmf, other.by_segment[name]) for name, pmf in one.by_segment.items())
    )


def _newest(session: Session, experiment_id: str) -> SnapshotRow | None:
    query = select(SnapshotRow).where(SnapshotRow.experiment_id == experiment_id)
    return session.scalars(query.order_by(SnapshotRow.snapshot_no.desc()).limit(1)).first()
