"""Learn: outcomes inside their window → rewards → the learner's next snapshot.

The log is read forward from a cursor: what the provider accepted becomes trials, what people did becomes rewards. The
worker alone writes here; the learner's state is a fold of the log, so a rebuild gives the same numbers.

====================================  ================================================================================
an event delivered twice              is in the log once, and counts once
a second event of the same kind       the earliest in time is the reward, whatever came in first
outside the window, by when it        earns nothing; delivered late, but from inside the window, it counts
happened (before the decision too)
a machine's open or click             earns nothing
about a send or decision unknown      left aside
an order                              credits one decision of an experiment: `service.flow.reward.credit`
an order cancelled or refunded        takes its revenue back, and its conversion once nothing of it stands
held out, or withheld with its mail   earns what orders earn; counts in no cell
====================================  ================================================================================
"""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
from sqlalchemy import BigInteger, ColumnElement, case, delete, func, select, type_coerce, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, aliased, defer

from features.events import LoggedEvent, iterate_after
from features.tables import current
from service.flow.decide import policy_of, take_snapshot
from service.flow.reward.evidence import (
    arms_in_play,
    arms_of,
    evidence,
    policy_of_kept_arms,
    policy_under_drift,
    statistics,
)
from service.flow.reward.fold import (
    CHUNK,
    LEARNED_KINDS,
    SUMS,
    Cell,
    Fold,
    Sums,
    add_cells,
    add_matrices,
    chunks,
    decoded,
    shown_at,
    took_effect,
)
from service.tables import (
    CreditRow,
    CursorRow,
    DecisionRow,
    ErasureRow,
    ExperimentRow,
    LearnerCellRow,
    LearnerMatrixRow,
    RewardRow,
    SendRow,
    SnapshotRow,
)

__all__ = [
    "CURSOR",
    "LEARNED_KINDS",
    "SNAPSHOT_INTERVAL",
    "Learned",
    "arms_in_play",
    "arms_of",
    "evidence",
    "forget_contexts",
    "learn",
    "rebuild",
    "renew_snapshot",
    "statistics",
]

log = logging.getLogger(__name__)

CURSOR = "learner"

#: Business time that passes at least between two snapshots of an experiment.
SNAPSHOT_INTERVAL = timedelta(minutes=15)


@dataclass(frozen=True)
class Learned:
    """What one reading of the log taught."""

    events: int
    trials: int
    rewards: int
    snapshots: int
    log_seq: int
    #: The log has news that were left to the next call.
    has_more: bool = False


def learn(
    session: Session, *, now: datetime, snapshot_interval: timedelta = SNAPSHOT_INTERVAL, most: int | None = None
) -> Learned:
    """Fold the log's news into rewards and counts, and give each experiment that changed its next snapshot.

    Parameters
    ----------
    most : int, optional
        Events after which the rest, and the snapshots, are left to the next call: other writers get their turn.
    """
    cursor = _locked_cursor(session)
    fold = Fold(session)
    n_events = 0
    head = current(session, "event_seq")
    size = CHUNK if most is None else min(CHUNK, most)
    for page in _pages(iterate_after(session, cursor.position, kinds=LEARNED_KINDS, page=size), size):
        n_events += len(page)
        fold.take(page)
        cursor.position = page[-1].seq
        if most is not None and n_events >= most:
            break
    has_more = most is not None and n_events >= most
    if not has_more:
        cursor.position = max(cursor.position, head)  # what is of other kinds is not looked at again
    fold.write()
    snapshots = 0 if has_more else _snapshots(session, cursor.position, now, snapshot_interval)
    return Learned(n_events, fold.n_trials, fold.n_rewards, snapshots, cursor.position, has_more)


def rebuild(session: Session) -> None:
    """Forget the fold; the next `learn` reads the whole log again. Snapshots are kept: decisions refer to them.

    The events of erased contacts are no longer in the log. What they taught begins the new fold: counts from the
    decisions, sends and rewards that were kept of them without a name, matrices from what `forget_contexts` set aside.
    """
    _locked_cursor(session).position = 0
    session.execute(delete(LearnerCellRow))
    session.execute(delete(LearnerMatrixRow).where(LearnerMatrixRow.origin == "log"))
    session.execute(delete(CreditRow))
    is_erased = DecisionRow.contact_key.in_(select(ErasureRow.contact_key))
    erased = select(DecisionRow.decision_id).where(is_erased)
    session.execute(delete(RewardRow).where(RewardRow.decision_id.not_in(erased)))
    session.expire_all()
    add_cells(session, _taught(session, is_erased))


def forget_contexts(session: Session, contact_keys: Collection[int]) -> None:
    """Take what decisions of erased contacts tell of them, and keep what they taught.

    Counts move from the cells of their segments to those without one, and their part of the matrices to rows of its
    own, from which a rebuild begins. Orders they were credited with go; the rewards stay. Call it once everything in
    the log about them is learned; doing it again finds what came in since.
    """
    for keys in chunks(sorted(contact_keys)):
        mine = DecisionRow.contact_key.in_(keys)
        moved: dict[Cell, Sums] = defaultdict(Sums)
        for cell, sums in _taught(session, mine & DecisionRow.segment.is_not(None)).items():
            for place, sign in ((cell, -1), ((*cell[:3], ""), 1)):
                moved[place].add(sums, sign)
        add_cells(session, moved)
        matrices = _taught_matrices(session, mine)
        add_matrices(session, matrices, "erased")
        add_matrices(session, {place: [-gram, -moments] for place, (gram, moments) in matrices.items()}, "log")
        is_telling = DecisionRow.segment.is_not(None) | DecisionRow.context.is_not(None)
        session.execute(update(DecisionRow).where(mine, is_telling).values(segment=None, context=None))
        is_empty = [getattr(LearnerCellRow, name) == 0 for name in SUMS]  # a rebuild has no such cell
        of_moved = LearnerCellRow.experiment_id.in_({cell[0] for cell in moved})
        session.execute(delete(LearnerCellRow).where(of_moved, *is_empty))
        session.execute(delete(CreditRow).where(CreditRow.contact_key.in_(keys)))


def renew_snapshot(
    session: Session,
    experiment: ExperimentRow,
    *,
    now: datetime,
    log_seq: int | None = None,
    watches_drift: bool = False,
) -> str:
    """Id of a fresh snapshot of what is folded so far: what was edited of the experiment is in force from here on.

    Parameters
    ----------
    log_seq : int, optional
        By default the place of the log up to which it is folded.
    watches_drift : bool
        Shorten the policy's half-life where an arm's rate has changed, and say so in the reason. River is loaded for
        it, which takes a second: for the worker, not for a request.
    """
    if log_seq is None:  # before anything is read: what is folded meanwhile is no part of the snapshot
        log_seq = _locked_cursor(session).position
    in_play = arms_in_play(session, experiment.experiment_id)
    policy, note = policy_of_kept_arms(session, experiment, policy_of(experiment, in_play)), ""
    if watches_drift:
        policy, note = policy_under_drift(session, experiment, policy, now=now)
    return take_snapshot(
        session,
        experiment,
        evidence(session, experiment, now=now, policy=policy),
        log_seq=log_seq,
        now=now,
        policy=policy,
        running=in_play,
        note=note,
        totals=_totals(session, [experiment.experiment_id]).get(experiment.experiment_id, ()),
    ).snapshot_id


def _taught(session: Session, which: ColumnElement[bool]) -> dict[Cell, Sums]:
    """What decisions that were shown add to the cells, from the decisions, sends and rewards themselves."""
    value = func.coalesce(RewardRow.value, 0.0)
    seconds = type_coerce(shown_at(), BigInteger) // 1_000_000
    cell = (DecisionRow.experiment_id, DecisionRow.arm_id, DecisionRow.wave, func.coalesce(DecisionRow.segment, ""))
    shown = which & took_effect() & DecisionRow.is_holdout.is_(False)
    earned = (
        select(*cell, func.count(), func.sum(seconds), func.sum(case((value > 0, 1), else_=0)),
               func.sum(value), func.sum(value * value))
        .join(ExperimentRow, ExperimentRow.experiment_id == DecisionRow.experiment_id)
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .outerjoin(
            RewardRow, (RewardRow.decision_id == DecisionRow.decision_id) & (RewardRow.kind == ExperimentRow.reward)
        )
        .where(shown)
        .group_by(*cell)
    )  # fmt: skip
    taught = {
        (experiment, arm, wave, segment): Sums(n, int(k), int(at), float(total), float(squares))
        for experiment, arm, wave, segment, n, at, k, total, squares in session.execute(earned)
    }
    harms = (
        select(*cell, RewardRow.kind, func.count())
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .join(RewardRow, RewardRow.decision_id == DecisionRow.decision_id)
        .where(shown, RewardRow.kind.in_(("unsubscribe", "complaint")))
        .group_by(*cell, RewardRow.kind)
    )
    for experiment, arm, wave, segment, kind, count in session.execute(harms):
        taught[experiment, arm, wave, segment].harm(kind, count)
    return taught


def _taught_matrices(session: Session, which: ColumnElement[bool]) -> dict[tuple[str, str, int], list[np.ndarray]]:
    """Sums of ``x x'`` and ``reward * x`` of decisions that were shown and whose context is kept."""
    query = (
        select(DecisionRow.experiment_id, DecisionRow.arm_id, DecisionRow.wave, DecisionRow.context, RewardRow.value)
        .join(ExperimentRow, ExperimentRow.experiment_id == DecisionRow.experiment_id)
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .outerjoin(
            RewardRow, (RewardRow.decision_id == DecisionRow.decision_id) & (RewardRow.kind == ExperimentRow.reward)
        )
        .where(which, took_effect(), DecisionRow.is_holdout.is_(False), DecisionRow.context.is_not(None))
    )
    matrices: dict[tuple[str, str, int], list[np.ndarray]] = {}
    for experiment, arm, wave, context, value in session.execute(query):
        x = decoded(context or b"")
        sums = matrices.setdefault((experiment, arm, wave), [np.zeros((len(x), len(x))), np.zeros(len(x))])
        sums[0] += np.outer(x, x)
        sums[1] += (value or 0.0) * x
    return matrices


def _locked_cursor(session: Session) -> CursorRow:
    """The fold's place in the log, locked to the commit: of two workers one folds, the other then finds nothing new."""
    cursor = session.get(CursorRow, CURSOR, with_for_update=True)
    if cursor is None:
        dialect = sqlite if session.connection().dialect.name == "sqlite" else postgresql
        first = dialect.insert(CursorRow).values(name=CURSOR, position=0).on_conflict_do_nothing()
        session.execute(first)  # where another worker is creating it, this waits for its commit
        cursor = session.get_one(CursorRow, CURSOR, with_for_update=True)
    return cursor


def _pages(events: Iterable[LoggedEvent], size: int) -> Iterable[list[LoggedEvent]]:
    page: list[LoggedEvent] = []
    for event in events:
        page.append(event)
        if len(page) == size:
            yield page
            page = []
    if page:
        yield page


_other = aliased(SnapshotRow)
#: The newest snapshot of each running experiment, found by its index and read without its arrays.
_NEWEST = (
    select(SnapshotRow)
    .join(
        ExperimentRow,
        SnapshotRow.snapshot_no
        == select(func.max(_other.snapshot_no))
        .where(_other.experiment_id == ExperimentRow.experiment_id)
        .scalar_subquery(),
    )
    .where(ExperimentRow.status == "running")
    .options(defer(SnapshotRow.statistics), defer(SnapshotRow.ensemble))
)


def _snapshots(session: Session, log_seq: int, now: datetime, interval: timedelta) -> int:
    last = {row.experiment_id: row for row in session.scalars(_NEWEST)}
    running = session.scalars(select(ExperimentRow).where(ExperimentRow.status == "running")).all()
    # Only those whose snapshot is old enough can have news that are due: the sums are for them.
    due = {one for one, row in last.items() if now - row.created_at >= interval}
    totals = _totals(session, due) if due else {}
    taken = 0
    for experiment in running:
        before = last.get(experiment.experiment_id)
        folded = totals.get(experiment.experiment_id, [0, 0, 0.0])
        # News that came too soon after a snapshot wait for the next one; what somebody edited does not.
        if (
            before is None
            or _is_edited(session, experiment, before)
            or (experiment.experiment_id in due and _seen(before) != folded)
        ):
            taken += _is_renewed(session, experiment, log_seq, now)
    return taken


def _is_renewed(session: Session, experiment: ExperimentRow, log_seq: int, now: datetime) -> bool:
    """Whether its next snapshot could be taken: one experiment that cannot be learned from stops no other."""
    experiment_id = experiment.experiment_id
    try:
        with session.begin_nested():
            renew_snapshot(session, experiment, now=now, log_seq=log_seq, watches_drift=True)
    except Exception:
        log.exception("experiment %s keeps its snapshot: the next one could not be taken", experiment_id)
        return False
    return True


def _is_edited(session: Session, experiment: ExperimentRow, before: SnapshotRow) -> bool:
    """Whether arms, policy or explore share are no longer those that the snapshot was taken for."""
    in_play = arms_in_play(session, experiment.experiment_id)
    asked = before.policy.get("asked", before.policy["parameters"])
    return (
        tuple(before.policy["arms"]) != in_play
        or before.policy["explore_share"] != experiment.explore_share
        or json.loads(json.dumps(policy_of(experiment, in_play).parameters())) != asked
    )


def _totals(session: Session, experiment_ids: Collection[str]) -> dict[str, list[float]]:
    """Trials, successes and rewards folded so far, by experiment."""
    query = (
        select(
            LearnerCellRow.experiment_id,
            func.sum(LearnerCellRow.trials),
            func.sum(LearnerCellRow.successes),
            func.sum(LearnerCellRow.sum_rewards),
        )
        .where(LearnerCellRow.experiment_id.in_(experiment_ids))
        .group_by(LearnerCellRow.experiment_id)
    )
    return {
        experiment_id: [int(trials), int(successes), float(rewards)]
        for experiment_id, trials, successes, rewards in session.execute(query)
    }


def _seen(snapshot: SnapshotRow) -> list[float]:
    """The totals that a snapshot holds."""
    totals = snapshot.policy.get("totals")
    if totals is not None:
        return list(totals) or [0, 0, 0.0]
    trials, successes = (int(np.sum(snapshot.statistics[name], dtype=np.int64)) for name in ("trials", "successes"))
    return [trials, successes, float(successes)]
