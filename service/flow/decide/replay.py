"""Replay: a decision taken again from what was stored, bit for bit, or the proof that something was altered."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.tables import ErasureRow
from service.errors import NotFound
from service.flow.decide.draw import draws_of, probabilities
from service.flow.decide.snapshot import allocation_of, is_intact
from service.tables import DecisionRow, ExperimentRow, SnapshotRow
from training.policies.base import Allocation, choose

CHUNK = 5_000
#: Before a decision's id it stands for the caller's own word for the occasion, once its contact is erased.
ERASED_OCCURRENCE = "erased:"
_ERASED = "the contact was erased, and with it what the draw was made from"
_COLUMNS = tuple(
    getattr(DecisionRow, name)
    for name in (
        "decision_id", "experiment_id", "contact_key", "occurrence", "snapshot_id", "arm_id", "propensity", "draw",
        "eligible", "segment", "context", "repeats",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Replay:
    """A decision drawn again from what was stored.

    Attributes
    ----------
    is_equal : bool
        Arm, propensity and draw are those that were logged, and the snapshot is the one that was taken.
    why : str, optional
        Why it cannot be drawn again; arm and propensity are then those that were logged.
    """

    decision_id: str
    arm_id: str
    propensity: float
    is_equal: bool
    why: str | None = None


def replay(session: Session, decision_ids: Sequence[str]) -> tuple[Replay, ...]:
    """Each decision drawn again: probabilities from its snapshot, the arm from the hashed draw.

    The snapshot of a policy that learns from counts is computed again from its statistics; that of a policy with an
    ensemble is held against the fingerprint that was taken of it. A decision that repeats another (sticky) is drawn as
    the one it repeats.

    Raises
    ------
    NotFound
        If a decision is not known.
    """
    checked: dict[str, _Checked] = {}
    replays: list[Replay] = []
    for start in range(0, len(decision_ids), CHUNK):
        chunk = decision_ids[start : start + CHUNK]
        found = _decisions(session, chunk)
        for decision_id in chunk:
            if decision_id not in found:
                raise NotFound(f"there is no decision {decision_id!r}")
        firsts = _decisions(session, {row["repeats"] for row in found.values() if row["repeats"]})
        own = {decision_id: firsts.get(row["repeats"], row) for decision_id, row in found.items()}
        _check_snapshots(session, {row["snapshot_id"] for row in own.values()}, checked)
        again = _drawn_again(session, own, checked)
        gone = _cannot_be(session, own)
        for decision_id in chunk:
            row = found[decision_id]
            if decision_id in gone:
                replays.append(Replay(decision_id, row["arm_id"], row["propensity"], False, _ERASED))
                continue
            arm, propensity, draw = again[decision_id]
            is_equal = (
                (arm, propensity, draw) == (row["arm_id"], row["propensity"], row["draw"])
                and row["snapshot_id"] == own[decision_id]["snapshot_id"]
                and (row["repeats"] is None or row["repeats"] in firsts)
                and checked[row["snapshot_id"]].is_intact
            )
            replays.append(Replay(decision_id, arm, propensity, is_equal))
    return tuple(replays)


@dataclass(frozen=True)
class _Checked:
    allocation: Allocation
    is_intact: bool


def _decisions(session: Session, decision_ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    wanted = sorted(decision_ids)
    if not wanted:
        return {}
    rows = session.execute(select(*_COLUMNS).where(DecisionRow.decision_id.in_(wanted))).mappings()
    return {row["decision_id"]: dict(row) for row in rows}


def _check_snapshots(session: Session, snapshot_ids: set[str], checked: dict[str, _Checked]) -> None:
    fresh = sorted(snapshot_ids - checked.keys())
    if not fresh:
        return
    snapshots = _snapshots(session, fresh)
    before = _snapshots(session, {row.policy["previous"] for row in snapshots.values() if row.policy.get("previous")})
    for snapshot_id, snapshot in snapshots.items():
        previous = before.get(snapshot.policy.get("previous") or "")
        checked[snapshot_id] = _Checked(allocation_of(snapshot), is_intact(snapshot, previous))


def _snapshots(session: Session, snapshot_ids: Iterable[str]) -> dict[str, SnapshotRow]:
    query = select(SnapshotRow).where(SnapshotRow.snapshot_id.in_(sorted(snapshot_ids)))
    return {row.snapshot_id: row for row in session.scalars(query.execution_options(populate_existing=True))}


def _drawn_again(
    session: Session, decisions: Mapping[str, Mapping[str, Any]], checked: Mapping[str, _Checked]
) -> dict[str, tuple[str, float, float]]:
    """Arm, propensity and draw of each decision, those of one snapshot and mask together."""
    experiment_ids = {row["experiment_id"] for row in decisions.values()}
    salts: dict[str, str] = dict(
        session.execute(
            select(ExperimentRow.experiment_id, ExperimentRow.salt).where(
                ExperimentRow.experiment_id.in_(experiment_ids)
            )
        ).all()
    )
    groups: dict[tuple[str, str, tuple[str, ...]], list[str]] = defaultdict(list)
    for decision_id, row in decisions.items():
        groups[row["experiment_id"], row["snapshot_id"], tuple(row["eligible"])].append(decision_id)
    again: dict[str, tuple[str, float, float]] = {}
    for (experiment_id, snapshot_id, open_arms), ids in groups.items():
        rows = [decisions[decision_id] for decision_id in ids]
        allocation = checked[snapshot_id].allocation
        pmf = probabilities(
            allocation,
            open_arms,
            len(rows),
            segments=[row["segment"] for row in rows],
            contexts=_contexts(allocation, [row["context"] for row in rows]),
        )
        draws = draws_of(
            salts[experiment_id], snapshot_id, [r["contact_key"] for r in rows], [r["occurrence"] for r in rows]
        )
        index = choose(pmf, draws)
        for n, decision_id in enumerate(ids):
            again[decision_id] = (open_arms[index[n]], float(pmf[n, index[n]]), float(draws[n]))
    return again


def _contexts(allocation: Allocation, kept: Sequence[bytes | None]) -> np.ndarray | None:
    if allocation.ensemble is None:
        return None
    width = allocation.ensemble.shape[2]
    contexts = np.full((len(kept), width), np.nan, dtype=np.float32)
    for n, context in enumerate(kept):
        if context is not None:
            contexts[n] = np.frombuffer(context, dtype="<f4")
    return contexts


def _cannot_be(session: Session, decisions: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Decisions whose contact was erased together with what the draw was made from."""
    keys = sorted({row["contact_key"] for row in decisions.values()})
    erased = set(session.scalars(select(ErasureRow.contact_key).where(ErasureRow.contact_key.in_(keys))))
    if not erased:
        return set()
    experiment_ids = {row["experiment_id"] for row in decisions.values() if row["contact_key"] in erased}
    looking = {
        experiment_id
        for experiment_id, settings in session.execute(
            select(ExperimentRow.experiment_id, ExperimentRow.settings).where(
                ExperimentRow.experiment_id.in_(experiment_ids)
            )
        )
        if settings and (settings.get("segment_by") or settings.get("context"))
    }
    return {
        decision_id
        for decision_id, row in decisions.items()
        if row["contact_key"] in erased
        and (row["experiment_id"] in looking or row["occurrence"].startswith(ERASED_OCCURRENCE))
    }
