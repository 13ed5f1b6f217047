"""The draw: asks of contacts → an arm for each, from the probabilities over the arms that are open to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from operator import itemgetter
from typing import Any, NamedTuple, cast

import numpy as np
from sqlalchemy import Table, bindparam, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased, defer

from features.online import VectorCache
from features.tables import to_micros
from service.flow.decide.contexts import contexts_of, projection_of, segments_of
from service.flow.decide.snapshot import allocation_of
from service.tables import ArmRow, DecisionRow, ExperimentRow, SnapshotRow
from training.policies.base import Allocation, choose, hashed_draws

CHUNK = 5_000
_COLUMNS = tuple(column.name for column in DecisionRow.__table__.columns)
#: Characters of a decision's reason.
LONGEST_REASON = 200


@dataclass(frozen=True)
class Desk:
    """An experiment with its allocation in force and the arms that are open to the draw, in the allocation's order."""

    experiment: ExperimentRow
    snapshot_id: str
    allocation: Allocation
    open_arms: tuple[str, ...]

    def among(self, arms: Sequence[str]) -> Desk:
        """The same with only these arms open, where they are."""
        chosen = set(arms)
        open_arms = tuple(arm for arm in self.open_arms if arm in chosen)
        return Desk(self.experiment, self.snapshot_id, self.allocation, open_arms)


class Ask(NamedTuple):
    """For whom an arm is wanted, and on which occasion."""

    contact_key: int
    #: ``send:<id>`` or the caller's own word.
    occurrence: str
    wave: int
    send_id: int | None = None


_other = aliased(SnapshotRow)
#: Statements are written once: building one takes longer than the database takes to answer it.
_NEWEST = (
    select(ExperimentRow, SnapshotRow)
    .join(
        SnapshotRow,
        SnapshotRow.snapshot_no
        == select(func.max(_other.snapshot_no))
        .where(_other.experiment_id == ExperimentRow.experiment_id)
        .scalar_subquery(),
    )
    .where(ExperimentRow.experiment_id.in_(bindparam("ids", expanding=True)))
    .order_by(ExperimentRow.experiment_id)
    .options(defer(SnapshotRow.statistics))
)
_RUNNING = select(ArmRow.experiment_id, ArmRow.arm_id).where(
    ArmRow.experiment_id.in_(bindparam("ids", expanding=True)), ArmRow.status == "running"
)


def desks(session: Session, experiment_ids: set[str]) -> list[Desk]:
    """The desks of these experiments, by id; one that is no longer running has no open arm."""
    ids = {"ids": list(experiment_ids)}
    running: dict[str, set[str]] = {}
    for experiment_id, arm_id in session.execute(_RUNNING, ids):
        running.setdefault(experiment_id, set()).add(arm_id)
    opened = []
    for experiment, snapshot in session.execute(_NEWEST, ids):
        allocation = allocation_of(snapshot)
        can_be_drawn = running.get(experiment.experiment_id, set()) if experiment.status == "running" else set()
        open_arms = tuple(
            arm
            for arm, probability in zip(allocation.arms, allocation.pmf.tolist(), strict=True)
            if arm in can_be_drawn and probability > 0
        )
        opened.append(Desk(experiment, snapshot.snapshot_id, allocation, open_arms))
    return opened


def draw(
    session: Session,
    desk: Desk,
    asks: Sequence[Ask],
    *,
    now: datetime,
    cache: VectorCache | None = None,
    tell_written: bool = True,
) -> tuple[list[dict[str, Any]], set[str]]:
    """A decision for each ask, in its order, and the ids of those that were written; none if no arm is open.

    One whose intent somebody else decided meanwhile is not written: that other one is in force.
    In a sticky experiment a contact's further decisions repeat its own first one whose arm is still open: arm,
    propensity, snapshot, draw and wave are those of that decision, which ``repeats`` names. The wave too, because arms
    are compared among those who were drawn together: by a later hour they are people of unlike mixtures.
    """
    if not desk.open_arms:  # the template's own text stands, and no decision is claimed
        return [], set()
    rows: dict[int, dict[str, Any]] = {}
    if (desk.experiment.settings or {}).get("sticky"):
        kept = _kept_decisions(session, desk, [ask.contact_key for ask in asks])
        repeating = {i: kept[ask.contact_key] for i, ask in enumerate(asks) if ask.contact_key in kept}
        rows |= {i: _repeated(first, asks[i], now) for i, first in repeating.items()}
        first_ask: dict[int, int] = {}
        for i, ask in enumerate(asks):
            if i not in rows:
                first_ask.setdefault(ask.contact_key, i)
        rows |= _drawn(session, desk, asks, list(first_ask.values()), now, cache)
        for i, ask in enumerate(asks):
            if i not in rows:
                rows[i] = _repeated(rows[first_ask[ask.contact_key]], ask, now)
    else:
        rows = _drawn(session, desk, asks, range(len(asks)), now, cache)
    if tell_written:
        written = _write(session, list(rows.values()))
    else:
        _write_many(session, rows.values())
        written = set()
    return [rows[i] for i in range(len(asks))], written


def probabilities(
    allocation: Allocation,
    open_arms: Sequence[str],
    n: int,
    *,
    segments: Sequence[str | None] | None = None,
    contexts: np.ndarray | None = None,
) -> np.ndarray:
    """Probabilities of ``n`` contacts over the open arms alone, shape (n, n_open), each row summing to one.

    A contact whose ensemble gives the open arms nothing is drawn by the probabilities of a contact without a vector.
    """
    columns = [allocation.arms.index(arm) for arm in open_arms]
    rows = allocation.probabilities(n, segments=segments, contexts=contexts)[:, columns]
    rows = np.where(rows.sum(axis=1, keepdims=True) > 0, rows, allocation.pmf[columns])
    rows = np.ascontiguousarray(rows)  # one order of summation, however many contacts are asked about
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def draws_of(salt: str, snapshot_id: str, contact_keys: Sequence[int], occurrences: Sequence[str]) -> np.ndarray:
    """The hashed draw of each decision, in [0, 1)."""
    return hashed_draws(salt, snapshot_id, np.asarray(contact_keys, dtype=np.int64), occurrences)


def held_out(salt: str, share: float, contact_keys: Sequence[int]) -> np.ndarray:
    """Who of these people is held out of an experiment, shape (n,): the same ones at every decision."""
    keys = np.asarray(contact_keys, dtype=np.int64)
    return np.asarray(hashed_draws(salt, "holdout", keys, ["holdout"] * len(keys)) < share)


def encoded(context: np.ndarray) -> bytes:
    """A context as a decision keeps it: float32, little-endian."""
    return np.ascontiguousarray(context, dtype="<f4").tobytes()


def _drawn(
    session: Session,
    desk: Desk,
    asks: Sequence[Ask],
    positions: Sequence[int],
    now: datetime,
    cache: VectorCache | None,
) -> dict[int, dict[str, Any]]:
    """The decisions of the asks at ``positions``, by position."""
    if not positions:
        return {}
    experiment, allocation = desk.experiment, desk.allocation
    experiment_id = experiment.experiment_id
    settings = experiment.settings or {}
    keys = [asks[i].contact_key for i in positions]
    occurrences = [asks[i].occurrence for i in positions]
    segments: list[str | None] = [None] * len(keys)
    if settings.get("segment_by"):
        segments = segments_of(session, settings["segment_by"], keys)
    projection = projection_of(settings)
    contexts = None if projection is None else contexts_of(session, projection, keys, now=now, cache=cache)
    pmf = probabilities(allocation, desk.open_arms, len(keys), segments=segments, contexts=contexts)
    draws = draws_of(experiment.salt, desk.snapshot_id, keys, occurrences)
    index = choose(pmf, draws)
    chances = pmf[np.arange(len(keys)), index].tolist()
    arms = [desk.open_arms[arm] for arm in index.tolist()]
    uniform = draws.tolist()
    is_holdout = held_out(experiment.salt, experiment.holdout_share, keys).tolist()
    masked = len(desk.open_arms) < len(allocation.arms)
    reason = (allocation.reason + ("; paused arms left out" if masked else ""))[:LONGEST_REASON]
    eligible = list(desk.open_arms)
    return {
        i: {
            "decision_id": decision_id(experiment_id, keys[n], occurrences[n]),
            "experiment_id": experiment_id,
            "contact_key": int(keys[n]),
            "occurrence": occurrences[n],
            "send_id": asks[i].send_id,
            "snapshot_id": desk.snapshot_id,
            "wave": int(asks[i].wave),
            "arm_id": arms[n],
            "propensity": chances[n],
            "draw": uniform[n],
            "eligible": eligible,
            "segment": segments[n],
            "context": None if contexts is None else encoded(contexts[n]),
            "is_holdout": is_holdout[n],
            "repeats": None,
            "reason": reason,
            "decided_at": now,
        }
        for n, i in enumerate(positions)
    }


def _kept_decisions(session: Session, desk: Desk, contact_keys: Sequence[int]) -> dict[int, Mapping[str, Any]]:
    """The decision of a sticky experiment that each contact keeps: its own first draw whose arm is open."""
    columns = DecisionRow.__table__.columns
    query = (
        select(*columns)
        .where(
            DecisionRow.experiment_id == desk.experiment.experiment_id,
            DecisionRow.repeats.is_(None),
            DecisionRow.arm_id.in_(desk.open_arms),
        )
        .order_by(DecisionRow.decided_at, DecisionRow.decision_id)
    )
    kept: dict[int, Mapping[str, Any]] = {}
    wanted = sorted(set(contact_keys))
    for start in range(0, len(wanted), CHUNK):
        chunk = query.where(DecisionRow.contact_key.in_(wanted[start : start + CHUNK]))
        for row in session.execute(chunk).mappings():
            kept.setdefault(row["contact_key"], dict(row))
    return kept


def _repeated(first: Mapping[str, Any], ask: Ask, now: datetime) -> dict[str, Any]:
    return {
        **first,
        "decision_id": decision_id(first["experiment_id"], ask.contact_key, ask.occurrence),
        "occurrence": ask.occurrence,
        "send_id": ask.send_id,
        "repeats": first["decision_id"],
        "reason": f"sticky: the arm of {first['decision_id']}",
        "decided_at": now,
    }


def _write(session: Session, rows: Sequence[dict[str, Any]]) -> set[str]:
    """Ids of the rows that were new. Two who ask the same at once get one answer: the second leaves the first's row."""
    dialect = sqlite if session.connection().dialect.name == "sqlite" else postgresql
    table = cast(Table, DecisionRow.__table__)  # plain rows, no entities: this is on the path of a request
    once = dialect.insert(table).on_conflict_do_nothing().returning(table.c.decision_id)
    ordered = sorted(rows, key=lambda row: (row["contact_key"], row["occurrence"]))
    written: set[str] = set()
    for start in range(0, len(ordered), CHUNK):
        written.update(session.connection().execute(once, ordered[start : start + CHUNK]).scalars())
    return written


def _write_many(session: Session, rows: Iterable[Mapping[str, Any]]) -> None:
    """The same for a wave, as plain tuples, where nobody asks which of the rows were new."""
    connection = session.connection()
    names = [name for name in _COLUMNS if name not in ("eligible", "decided_at")]
    mark = "?" if connection.dialect.name == "sqlite" else "%s"
    statement = (
        f"INSERT INTO decision ({', '.join(names)}, eligible, decided_at) "
        f"VALUES ({', '.join([mark] * (len(names) + 2))}) ON CONFLICT DO NOTHING"
    )
    ordered = sorted(rows, key=itemgetter("contact_key", "occurrence"))
    eligible = {id(row["eligible"]): row["eligible"] for row in ordered}  # one list for all of a draw
    as_json = {place: json.dumps(arms) for place, arms in eligible.items()}
    values = itemgetter(*names)
    decided_at = to_micros(ordered[0]["decided_at"]) if ordered else 0
    for start in range(0, len(ordered), CHUNK):
        part = ordered[start : start + CHUNK]
        connection.exec_driver_sql(
            statement, [(*values(row), as_json[id(row["eligible"])], decided_at) for row in part]
        )


def decision_id(experiment_id: str, contact_key: int, occurrence: str) -> str:
    """Id of a decision: a hash of its intent, so that an intent has one."""
    intent = f"{experiment_id}|{contact_key}|{occurrence}"
    return f"dec_{blake2b(intent.encode(), digest_size=14).hexdigest()}"
