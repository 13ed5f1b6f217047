"""Learn: outcomes inside their window → rewards → the learner's next snapshot.

The log is read forward from a cursor: what the provider accepted becomes trials, what people did becomes rewards. The
worker alone writes here; the counts are a fold of the log, so a rebuild gives the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, ColumnElement, delete, func, insert, select, type_coerce
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.events import LoggedEvent, iterate_after
from features.tables import current, from_micros, to_micros
from features.vocabulary import (
    ARM_SHOWN,
    EMAIL_CLICKED,
    EMAIL_OPENED,
    EMAIL_SENT,
    HUMAN_PPM,
    ORDER_COMPLETED,
    REWARD_RECEIVED,
)
from service.flow.decide import take_snapshot
from service.tables import (
    ArmRow,
    CursorRow,
    DecisionRow,
    ErasureRow,
    ExperimentRow,
    LearnerCellRow,
    RewardRow,
    SendRow,
    SnapshotRow,
)
from training.policies.statistics import ArmStatistics

CURSOR = "learner"
CHUNK = 5_000
LEARNED_KINDS = (EMAIL_SENT, EMAIL_OPENED, EMAIL_CLICKED, ORDER_COMPLETED, ARM_SHOWN, REWARD_RECEIVED)

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


def learn(session: Session, *, now: datetime, snapshot_interval: timedelta = SNAPSHOT_INTERVAL) -> Learned:
    """Fold the log's news into rewards and counts, and give each experiment that changed its next snapshot."""
    cursor = _locked_cursor(session)
    fold = _Fold(session)
    n_events = 0
    head = current(session, "event_seq")
    for page in _pages(iterate_after(session, cursor.position, kinds=LEARNED_KINDS)):
        n_events += len(page)
        fold.take(page)
        cursor.position = page[-1].seq
    cursor.position = max(cursor.position, head)  # what is of other kinds is not looked at again
    changed = fold.write()
    snapshots = _snapshots(session, changed, cursor.position, now, snapshot_interval)
    return Learned(n_events, fold.n_trials, fold.n_rewards, snapshots, cursor.position)


def rebuild(session: Session) -> None:
    """Forget the fold; the next `learn` reads the whole log again. Snapshots are kept: decisions refer to them.

    The events of erased contacts are no longer in the log. What they taught begins the new fold, counted from the
    decisions, sends and rewards that were kept of them without a name.
    """
    _locked_cursor(session).position = 0
    session.execute(delete(LearnerCellRow))
    erased = select(DecisionRow.decision_id).join(ErasureRow, ErasureRow.contact_key == DecisionRow.contact_key)
    session.execute(delete(RewardRow).where(RewardRow.decision_id.not_in(erased)))
    is_success = (RewardRow.kind == ExperimentRow.reward) & (RewardRow.value > 0)
    shown_at = type_coerce(func.coalesce(SendRow.finished_at, DecisionRow.decided_at), BigInteger)
    cell = (DecisionRow.experiment_id, DecisionRow.arm_id, DecisionRow.wave)
    kept = (
        select(*cell, func.count(), func.count(RewardRow.decision_id), func.sum(shown_at // 1_000_000))
        .join(ErasureRow, ErasureRow.contact_key == DecisionRow.contact_key)
        .join(ExperimentRow, ExperimentRow.experiment_id == DecisionRow.experiment_id)
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .outerjoin(RewardRow, (RewardRow.decision_id == DecisionRow.decision_id) & is_success)
        .where(_took_effect())
        .group_by(*cell)
    )
    cells = [
        {"experiment_id": experiment, "arm_id": arm, "wave": wave, "trials": n, "successes": k, "sum_shown_at": int(at)}
        for experiment, arm, wave, n, k, at in session.execute(kept)
    ]
    if cells:
        session.execute(insert(LearnerCellRow), cells)
    session.flush()


def _took_effect() -> ColumnElement[bool]:
    """A decision taken through the API was shown at once, one for a mail when the mail left."""
    return (DecisionRow.send_id.is_(None)) | (SendRow.state == "accepted")


def statistics(session: Session, experiment_id: str, *, now: datetime) -> ArmStatistics:
    """The folded counts of an experiment: arms in their order, waves ascending."""
    arms = tuple(
        session.scalars(select(ArmRow.arm_id).where(ArmRow.experiment_id == experiment_id).order_by(ArmRow.position))
    )
    cells = session.scalars(select(LearnerCellRow).where(LearnerCellRow.experiment_id == experiment_id)).all()
    waves = sorted({cell.wave for cell in cells})
    column = {wave: i for i, wave in enumerate(waves)}
    row = {arm: i for i, arm in enumerate(arms)}
    shape = (len(arms), len(waves))
    trials, successes, age = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape)
    now_seconds = to_micros(now) / 1e6
    for cell in cells:
        at = row[cell.arm_id], column[cell.wave]
        trials[at], successes[at] = cell.trials, cell.successes
        if cell.trials:
            age[at] = max(0.0, (now_seconds - cell.sum_shown_at / cell.trials) / 3600)
    return ArmStatistics(arms=arms, trials=trials, successes=successes, age_hours=age)


def _locked_cursor(session: Session) -> CursorRow:
    """The fold's place in the log, locked to the commit: of two workers one folds, the other then finds nothing new."""
    cursor = session.get(CursorRow, CURSOR, with_for_update=True)
    if cursor is None:
        dialect = sqlite if session.connection().dialect.name == "sqlite" else postgresql
        first = dialect.insert(CursorRow).values(name=CURSOR, position=0).on_conflict_do_nothing()
        session.execute(first)  # where another worker is creating it, this waits for its commit
        cursor = session.get_one(CursorRow, CURSOR, with_for_update=True)
    return cursor


def _pages(events: Iterable[LoggedEvent]) -> Iterable[list[LoggedEvent]]:
    page: list[LoggedEvent] = []
    for event in events:
        page.append(event)
        if len(page) == CHUNK:
            yield page
            page = []
    if page:
        yield page


@dataclass(frozen=True)
class _Shown:
    """A decision that took effect, as the fold needs it."""

    decision_id: str
    experiment_id: str
    arm_id: str
    wave: int
    reward: str
    window_micros: int
    send_id: int | None
    shown_at: int
    contact_key: int


class _Fold:
    """Counts gathered over the pages of one reading, written once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.cells: dict[tuple[str, str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        self.n_trials = 0
        self.n_rewards = 0

    def take(self, page: Sequence[LoggedEvent]) -> None:
        """Trials first: an answer in the page may belong to a send of the same page."""
        self._take_trials(page)
        self._take_rewards([*self._answers(page), *self._reported(page)])
        self._take_rewards(self._orders(page))

    def _take_trials(self, page: Sequence[LoggedEvent]) -> None:
        for event in page:
            if event.kind not in (EMAIL_SENT, ARM_SHOWN):
                continue
            for decision in event.properties.get("decisions", ()):
                cell = self.cells[decision["experiment_id"], decision["arm_id"], int(decision["wave"])]
                cell[0] += 1
                cell[2] += event.occurred_at // 1_000_000
                self.n_trials += 1

    def _answers(self, page: Sequence[LoggedEvent]) -> list[tuple[_Shown, str, float, LoggedEvent]]:
        kinds = {EMAIL_OPENED: "open", EMAIL_CLICKED: "click"}
        events = [
            event
            for event in page
            if event.kind in kinds
            and (event.human_ppm or 0) >= HUMAN_PPM
            and not event.is_repeat
            and (event.ref or "").isdigit()
        ]
        by_send: dict[int, list[_Shown]] = defaultdict(list)
        for shown in self._shown(send_ids=[int(event.ref or 0) for event in events]):
            by_send[shown.send_id or 0].append(shown)
        return [(shown, kinds[event.kind], 1.0, event) for event in events for shown in by_send[int(event.ref or 0)]]

    def _orders(self, page: Sequence[LoggedEvent]) -> list[tuple[_Shown, str, float, LoggedEvent]]:
        """One order credits one send: that of the last human click inside the window, else the last send."""
        events = [event for event in page if event.kind == ORDER_COMPLETED and not event.is_imported]
        by_contact: dict[int, list[_Shown]] = defaultdict(list)
        for shown in self._shown(contact_keys=sorted({event.contact_key for event in events})):
            by_contact[shown.contact_key].append(shown)
        clicked = self._clicked([shown.decision_id for all_shown in by_contact.values() for shown in all_shown])
        credited = []
        for event in events:
            inside = [
                shown
                for shown in by_contact[event.contact_key]
                if shown.reward == "conversion" and 0 <= event.occurred_at - shown.shown_at <= shown.window_micros
            ]
            if not inside:
                continue
            # Only clicks that stand before the order in the log: however the log is cut, the credit is the same.
            before = (event.occurred_at, event.seq)
            by_click = [
                s
                for s in inside
                if s.decision_id in clicked
                and clicked[s.decision_id] < before
                and clicked[s.decision_id][1] < event.seq
            ]
            last = (
                max(by_click, key=lambda s: clicked[s.decision_id])
                if by_click
                else max(inside, key=lambda s: s.shown_at)
            )
            by_experiment: dict[str, _Shown] = {}
            for s in sorted(inside, key=lambda s: (s.send_id is not None and s.send_id == last.send_id, s.shown_at)):
                if s.send_id is None or s.send_id == last.send_id:
                    by_experiment[s.experiment_id] = s  # the credited send's decision, else the experiment's last
            credited += [(s, "conversion", 1.0, event) for s in by_experiment.values()]
        return credited

    def _reported(self, page: Sequence[LoggedEvent]) -> list[tuple[_Shown, str, float, LoggedEvent]]:
        events = [event for event in page if event.kind == REWARD_RECEIVED and event.ref]
        shown_of = {shown.decision_id: shown for shown in self._shown(decision_ids=[str(e.ref) for e in events])}
        return [
            (shown_of[str(event.ref)], str(event.properties["kind"]), float(event.properties["value"]), event)
            for event in events
            if event.ref in shown_of
        ]

    def _shown(
        self,
        *,
        send_ids: Sequence[int] = (),
        contact_keys: Sequence[int] = (),
        decision_ids: Sequence[str] = (),
    ) -> Iterable[_Shown]:
        query = (
            select(DecisionRow, ExperimentRow.reward, ExperimentRow.reward_window_hours, SendRow.finished_at)
            .join(ExperimentRow, ExperimentRow.experiment_id == DecisionRow.experiment_id)
            .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
            .where(_took_effect())
        )
        for column, wanted in (
            (DecisionRow.send_id, send_ids),
            (DecisionRow.contact_key, contact_keys),
            (DecisionRow.decision_id, decision_ids),
        ):
            for start in range(0, len(wanted), CHUNK):
                rows = self.session.execute(query.where(column.in_(wanted[start : start + CHUNK])))
                for decision, reward, window_hours, finished_at in rows:
                    yield _Shown(
                        decision.decision_id,
                        decision.experiment_id,
                        decision.arm_id,
                        decision.wave,
                        reward,
                        int(window_hours * 3_600_000_000),
                        decision.send_id,
                        to_micros(finished_at or decision.decided_at),
                        decision.contact_key,
                    )

    def _clicked(self, decision_ids: Sequence[str]) -> dict[str, tuple[int, int]]:
        query = select(RewardRow.decision_id, RewardRow.occurred_at, RewardRow.log_seq).where(RewardRow.kind == "click")
        clicked: dict[str, tuple[int, int]] = {}
        for start in range(0, len(decision_ids), CHUNK):
            chunk = decision_ids[start : start + CHUNK]
            for decision_id, at, seq in self.session.execute(query.where(RewardRow.decision_id.in_(chunk))):
                clicked[decision_id] = (to_micros(at), seq)
        return clicked

    def _take_rewards(self, candidates: Sequence[tuple[_Shown, str, float, LoggedEvent]]) -> None:
        """Keep the first of each (decision, kind) inside its window; what is delivered twice changes nothing."""
        inside = [
            (shown, kind, value, event)
            for shown, kind, value, event in candidates
            if 0 <= event.occurred_at - shown.shown_at <= shown.window_micros
        ]
        ids = sorted({shown.decision_id for shown, _, _, _ in inside})
        kept: set[tuple[str, str]] = set()
        for start in range(0, len(ids), CHUNK):
            query = select(RewardRow.decision_id, RewardRow.kind).where(
                RewardRow.decision_id.in_(ids[start : start + CHUNK])
            )
            kept.update(self.session.execute(query).all())
        rows: list[dict[str, Any]] = []
        for shown, kind, value, event in inside:
            if (shown.decision_id, kind) in kept:
                continue
            kept.add((shown.decision_id, kind))
            rows.append(
                {
                    "decision_id": shown.decision_id,
                    "kind": kind,
                    "value": value,
                    "occurred_at": from_micros(event.occurred_at),
                    "log_seq": event.seq,
                }
            )
            if kind == shown.reward and value > 0:
                self.cells[shown.experiment_id, shown.arm_id, shown.wave][1] += 1
                self.n_rewards += 1
        if rows:
            self.session.execute(insert(RewardRow), rows)

    def write(self) -> set[str]:
        """Add the gathered counts to the stored ones; returns the experiments that changed."""
        changed = {experiment_id for experiment_id, _, _ in self.cells}
        stored = {
            (cell.experiment_id, cell.arm_id, cell.wave): cell
            for cell in self.session.scalars(select(LearnerCellRow).where(LearnerCellRow.experiment_id.in_(changed)))
        }
        for key, (trials, successes, sum_shown_at) in self.cells.items():
            cell = stored.get(key)
            if cell is None:
                experiment_id, arm_id, wave = key
                self.session.add(
                    LearnerCellRow(
                        experiment_id=experiment_id,
                        arm_id=arm_id,
                        wave=wave,
                        trials=trials,
                        successes=successes,
                        sum_shown_at=sum_shown_at,
                    )
                )
            else:
                cell.trials += trials
                cell.successes += successes
                cell.sum_shown_at += sum_shown_at
        self.session.flush()
        return changed


def _snapshots(session: Session, changed: set[str], log_seq: int, now: datetime, interval: timedelta) -> int:
    newest = dict(
        session.execute(
            select(SnapshotRow.experiment_id, func.max(SnapshotRow.snapshot_no)).group_by(SnapshotRow.experiment_id)
        ).all()
    )
    taken = 0
    running = session.scalars(select(ExperimentRow).where(ExperimentRow.status == "running")).all()
    last = {
        row.experiment_id: row
        for row in session.scalars(select(SnapshotRow).where(SnapshotRow.snapshot_no.in_(newest.values())))
    }
    for experiment in running:
        before = last.get(experiment.experiment_id)
        # News that came too soon after a snapshot wait for the next one: compare positions, not only this reading.
        if before is not None and now - before.created_at < interval:
            continue
        if experiment.experiment_id in changed or _is_behind(session, experiment.experiment_id, before):
            counts = statistics(session, experiment.experiment_id, now=now)
            take_snapshot(session, experiment, counts, log_seq=log_seq, now=now)
            taken += 1
    return taken


def _is_behind(session: Session, experiment_id: str, snapshot: SnapshotRow | None) -> bool:
    if snapshot is None:
        return True
    trials, successes = session.execute(
        select(func.sum(LearnerCellRow.trials), func.sum(LearnerCellRow.successes)).where(
            LearnerCellRow.experiment_id == experiment_id
        )
    ).one()
    seen = snapshot.statistics
    return (int(trials or 0), int(successes or 0)) != (
        int(np.sum(seen["trials"], dtype=np.int64)),
        int(np.sum(seen["successes"], dtype=np.int64)),
    )
