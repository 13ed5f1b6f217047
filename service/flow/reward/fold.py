"""The fold: pages of the log → trials, rewards and credits, gathered over one reading and written once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import ColumnElement, delete, func, insert, or_, select, tuple_, type_coerce, update
from sqlalchemy.orm import Session

from features.events import HOUR_MICROS, LoggedEvent, read_of_contacts
from features.tables import UtcMicros, from_micros, to_micros
from features.vocabulary import (
    ARM_SHOWN,
    EMAIL_CLICKED,
    EMAIL_COMPLAINED,
    EMAIL_OPENED,
    EMAIL_SENT,
    EMAIL_WITHHELD,
    HUMAN_PPM,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    ORDER_REFUNDED,
    REWARD_RECEIVED,
    UNSUBSCRIBED,
)
from service.flow.reward.credit import ORDERED, Earned, Order, Shown, credited, earned, orders_of, reported_reward
from service.tables import (
    CreditRow,
    DecisionRow,
    ExperimentRow,
    LearnerCellRow,
    LearnerMatrixRow,
    RewardRow,
    SendRow,
)

CHUNK = 5_000
LEARNED_KINDS = (
    EMAIL_SENT,
    EMAIL_WITHHELD,
    EMAIL_OPENED,
    EMAIL_CLICKED,
    UNSUBSCRIBED,
    EMAIL_COMPLAINED,
    ORDER_COMPLETED,
    ORDER_CANCELLED,
    ORDER_REFUNDED,
    ARM_SHOWN,
    REWARD_RECEIVED,
)
_SHOWING = (EMAIL_SENT, EMAIL_WITHHELD, ARM_SHOWN)
_ORDERING = (ORDER_COMPLETED, ORDER_CANCELLED, ORDER_REFUNDED)
#: What a mail's events tell of its decisions, by kind.
_ANSWERS = {EMAIL_OPENED: "open", EMAIL_CLICKED: "click", UNSUBSCRIBED: "unsubscribe", EMAIL_COMPLAINED: "complaint"}
#: Column of a cell that counts a harm.
HARMS = {"unsubscribe": "unsubscribes", "complaint": "complaints"}
#: Columns of a cell that add up.
SUMS = ("trials", "successes", "sum_shown_at", "sum_rewards", "sum_squares", "unsubscribes", "complaints")
T = TypeVar("T")

Cell = tuple[str, str, int, str]


@dataclass
class Sums:
    """What is added to a cell; may be negative."""

    trials: int = 0
    successes: int = 0
    sum_shown_at: int = 0
    sum_rewards: float = 0.0
    sum_squares: float = 0.0
    unsubscribes: int = 0
    complaints: int = 0

    def reward(self, old: float, new: float) -> None:
        """One trial's reward becomes ``new`` where it was ``old``."""
        self.successes += (new > 0) - (old > 0)
        self.sum_rewards += new - old
        self.sum_squares += new * new - old * old

    def harm(self, kind: str, count: int) -> None:
        """``count`` people left, or complained."""
        setattr(self, HARMS[kind], getattr(self, HARMS[kind]) + count)

    def add(self, other: Sums, sign: int) -> None:
        """Everything of ``other``, times ``sign``."""
        for name in SUMS:
            setattr(self, name, getattr(self, name) + sign * getattr(other, name))


class Fold:
    """What the pages of one reading add to the learner's state."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.cells: dict[Cell, Sums] = defaultdict(Sums)
        self.matrices: dict[tuple[str, str, int], list[np.ndarray]] = {}
        self.n_trials = 0
        self.n_rewards = 0
        rows = session.execute(select(ExperimentRow.experiment_id, ExperimentRow.reward, ExperimentRow.settings)).all()
        self._ordered = sorted(row.experiment_id for row in rows if row.reward in ORDERED)
        self._seeing = {row.experiment_id for row in rows if (row.settings or {}).get("context")}

    def take(self, page: Sequence[LoggedEvent]) -> None:
        """Trials first: an answer in the page may belong to a send of the same page."""
        self._take_trials(page)
        shown = self._shown_of(page)
        self._take_rewards([*self._answers(page, shown), *self._reported(page, shown)])
        if self._ordered:
            self._take_orders(page, shown)

    def _take_trials(self, page: Sequence[LoggedEvent]) -> None:
        trials = [
            (decision, event.occurred_at)
            for event in page
            if event.kind in (EMAIL_SENT, ARM_SHOWN)
            for decision in event.properties.get("decisions", ())
            if not decision.get("is_holdout")
        ]
        for decision, at in trials:
            place = (decision["experiment_id"], decision["arm_id"], int(decision["wave"]))
            cell = self.cells[*place, decision.get("segment") or ""]
            cell.trials += 1
            cell.sum_shown_at += at // 1_000_000
            self.n_trials += 1
        seen = {
            decision["decision_id"]: (decision["experiment_id"], decision["arm_id"], int(decision["wave"]))
            for decision, _ in trials
            if decision["experiment_id"] in self._seeing
        }
        by_place: dict[tuple[str, str, int], list[np.ndarray]] = defaultdict(list)
        for chunk in chunks(seen):
            query = select(DecisionRow.decision_id, DecisionRow.context).where(
                DecisionRow.decision_id.in_(chunk), DecisionRow.context.is_not(None)
            )
            for decision_id, context in self.session.execute(query):
                by_place[seen[decision_id]].append(decoded(context or b""))
        for place, contexts in by_place.items():
            x = np.stack(contexts)
            self._matrix(place, x.shape[1])[0] += x.T @ x

    def _matrix(self, place: tuple[str, str, int], width: int) -> list[np.ndarray]:
        if place not in self.matrices:
            self.matrices[place] = [np.zeros((width, width)), np.zeros(width)]
        return self.matrices[place]

    # --- What mails' events and callers tell of single decisions ------------------------------------------------

    def _shown_of(self, page: Sequence[LoggedEvent]) -> dict[str, list[Shown]]:
        """Decisions that the page's answers and reports are about, by the events' ``ref``."""
        answered = {event.ref for event in page if event.kind in _ANSWERS and (event.ref or "").isdigit()}
        reported = {event.ref for event in page if event.kind == REWARD_RECEIVED and event.ref}
        found: dict[str, list[Shown]] = defaultdict(list)
        send_ids = sorted(int(ref) for ref in answered if ref and int(ref) < 2**63)
        for shown in self._shown(DecisionRow.send_id, send_ids):
            found[str(shown.send_id)].append(shown)
        for shown in self._shown(DecisionRow.decision_id, sorted(ref for ref in reported if ref)):
            found[shown.decision_id].append(shown)
        return found

    def _answers(self, page: Sequence[LoggedEvent], shown: dict[str, list[Shown]]) -> Iterator[_Candidate]:
        for event in page:
            kind = _ANSWERS.get(event.kind)
            if kind is None or event.is_repeat:
                continue
            by_machine = kind not in HARMS and (event.human_ppm or 0) < HUMAN_PPM
            for one in () if by_machine else shown.get(event.ref or "", ()):
                # A program may name a send when it tells that somebody left: only that contact's own counts.
                if not one.is_ghost and (kind not in HARMS or one.contact_key == event.contact_key):
                    yield _Candidate(one, kind, 1.0, event)

    def _reported(self, page: Sequence[LoggedEvent], shown: dict[str, list[Shown]]) -> Iterator[_Candidate]:
        for event in page:
            if event.kind != REWARD_RECEIVED:
                continue
            kind, value = reported_reward(event)
            for one in shown.get(event.ref or "", ()):
                is_by_orders = kind in ORDERED and one.reward in ORDERED
                if not is_by_orders and (kind in ORDERED or not one.is_ghost):
                    yield _Candidate(one, kind, value, event)

    def _take_rewards(self, candidates: Iterable[_Candidate]) -> None:
        """Keep the earliest of each (decision, kind) inside its window; what is delivered twice changes nothing."""
        first: dict[tuple[str, str], _Candidate] = {}
        for one in candidates:
            place = (one.shown.decision_id, one.kind)
            if one.shown.is_inside(one.event.occurred_at) and (place not in first or one.at < first[place].at):
                first[place] = one
        stored = self._stored_rewards(sorted({decision_id for decision_id, _ in first}))
        new, changed = [], []
        for place, one in first.items():
            before = stored.get(place)
            if before is None:
                new.append(one)
            elif one.at < (to_micros(before.occurred_at), before.log_seq):
                changed.append(one)
            else:
                continue
            self._count(one.shown, one.kind, 0.0 if before is None else before.value, one.value, before is None)
        if new:
            self.session.execute(insert(RewardRow), [one.row() for one in new])
        self._update_rewards([one.row() for one in changed])

    def _count(self, shown: Shown, kind: str, old: float, new: float, is_first: bool) -> None:
        """Let a decision's cell and matrix follow its reward."""
        if shown.is_ghost:
            return
        cell = (shown.experiment_id, shown.arm_id, shown.wave, shown.segment)
        if kind in HARMS:
            self.cells[cell].harm(kind, int(is_first))
        elif kind == shown.reward and new != old:
            self.cells[cell].reward(old, new)
            self.n_rewards += new > old
            if shown.context is not None:
                x = decoded(shown.context)
                self._matrix(cell[:3], len(x))[1] += (new - old) * x

    # --- What orders earn -----------------------------------------------------------------------------------------

    def _take_orders(self, page: Sequence[LoggedEvent], shown: dict[str, list[Shown]]) -> None:
        """Credit anew whatever of these contacts' orders, clicks and showings the page has news about."""
        ordered = set(self._ordered)
        touched = {event.contact_key for event in page if event.kind in _ORDERING and not event.is_imported}
        for event in page:
            if event.kind in _SHOWING:
                decisions = event.properties.get("decisions", ())
                if any(decision["experiment_id"] in ordered for decision in decisions):
                    touched.add(event.contact_key)
            elif event.kind in (EMAIL_CLICKED, REWARD_RECEIVED):
                touched |= {one.contact_key for one in shown.get(event.ref or "", ()) if one.experiment_id in ordered}
        upto = page[-1].seq
        for chunk in chunks(sorted(touched)):
            of_contact: dict[int, list[Shown]] = defaultdict(list)
            for one in self._shown(DecisionRow.contact_key, chunk, DecisionRow.experiment_id.in_(self._ordered)):
                of_contact[one.contact_key].append(one)
            if of_contact:
                self._credit(of_contact, upto)

    def _credit(self, of_contact: dict[int, list[Shown]], upto: int) -> None:
        kinds = (*_ORDERING, EMAIL_CLICKED, REWARD_RECEIVED)
        events: dict[int, list[LoggedEvent]] = defaultdict(list)
        # From the beginning: an order's earliest line may lie before every decision, and is then the one that counts.
        for event in read_of_contacts(self.session, sorted(of_contact), kinds=kinds, since=0, upto=upto):
            events[event.contact_key].append(event)
        credits: dict[Shown, list[Order]] = {}
        rewards: dict[tuple[Shown, str], Earned] = {}
        for key, mine in of_contact.items():
            own = credited(mine, events[key], orders_of(events[key]))
            credits |= own
            rewards |= earned(mine, events[key], own)
        self._store_credits(sorted(of_contact), credits)
        self._store_earned([one for mine in of_contact.values() for one in mine], rewards)

    def _store_credits(self, contact_keys: Sequence[int], credits: dict[Shown, list[Order]]) -> None:
        rows = {
            (one.experiment_id, one.contact_key, order.ref): {
                "decision_id": one.decision_id,
                "value_minor": order.value_minor,
                "taken_back_minor": order.taken_back_minor,
                "occurred_at": from_micros(order.occurred_at),
                "log_seq": order.seq,
            }
            for one, orders in credits.items()
            for order in orders
        }
        stored = {
            (row.experiment_id, row.contact_key, row.order_ref): row
            for row in self.session.scalars(
                select(CreditRow).where(
                    CreditRow.experiment_id.in_(self._ordered), CreditRow.contact_key.in_(contact_keys)
                )
            )
        }
        for place, values in rows.items():
            if place in stored:
                for name, value in values.items():
                    setattr(stored[place], name, value)
            else:
                key = dict(zip(("experiment_id", "contact_key", "order_ref"), place, strict=True))
                self.session.add(CreditRow(**key, **values))
        for place in stored.keys() - rows.keys():
            self.session.delete(stored[place])
        self.session.flush()

    def _store_earned(self, shown: Sequence[Shown], rewards: dict[tuple[Shown, str], Earned]) -> None:
        stored = self._stored_rewards(sorted(one.decision_id for one in shown))
        by_id = {one.decision_id: one for one in shown}
        new, changed, gone = [], [], []
        for (one, kind), reward in rewards.items():
            before = stored.get((one.decision_id, kind))
            row = {
                "decision_id": one.decision_id,
                "kind": kind,
                "value": reward.value,
                "occurred_at": from_micros(reward.occurred_at),
                "log_seq": reward.seq,
                "reversed_at": None if reward.reversed_at is None else from_micros(reward.reversed_at),
            }
            if before is None:
                new.append(row)
            elif any(getattr(before, name) != value for name, value in row.items()):
                changed.append(row)
            self._count(one, kind, 0.0 if before is None else before.value, reward.value, before is None)
        kept = {(one.decision_id, kind) for one, kind in rewards}
        for place, before in stored.items():
            if place[1] in ORDERED and place not in kept:  # an earlier click has come in: another decision earned it
                gone.append(place)
                self._count(by_id[place[0]], place[1], before.value, 0.0, False)
        if new:
            self.session.execute(insert(RewardRow), new)
        self._update_rewards(changed)
        for chunk in chunks(gone):
            self.session.execute(delete(RewardRow).where(tuple_(RewardRow.decision_id, RewardRow.kind).in_(chunk)))

    # --- Rows -----------------------------------------------------------------------------------------------------

    def _shown(self, column: Any, wanted: Sequence[Any], *conditions: ColumnElement[bool]) -> Iterator[Shown]:
        """The decisions that took effect whose ``column`` is one of ``wanted``."""
        query = (
            select(
                DecisionRow.decision_id,
                DecisionRow.experiment_id,
                DecisionRow.arm_id,
                DecisionRow.wave,
                DecisionRow.segment,
                ExperimentRow.reward,
                ExperimentRow.reward_window_hours,
                DecisionRow.send_id,
                SendRow.finished_at,
                DecisionRow.decided_at,
                DecisionRow.contact_key,
                DecisionRow.is_holdout,
                SendRow.state,
                DecisionRow.context,
            )
            .join(ExperimentRow, ExperimentRow.experiment_id == DecisionRow.experiment_id)
            .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
            .where(took_effect() | (SendRow.state == "held_out"), *conditions)
        )
        for chunk in chunks(wanted):
            for row in self.session.execute(query.where(column.in_(chunk))):
                yield Shown(
                    decision_id=row.decision_id,
                    experiment_id=row.experiment_id,
                    arm_id=row.arm_id,
                    wave=row.wave,
                    segment=row.segment or "",
                    reward=row.reward,
                    window_micros=int(row.reward_window_hours * HOUR_MICROS),
                    send_id=row.send_id,
                    shown_at=to_micros(row.finished_at or row.decided_at),
                    contact_key=row.contact_key,
                    is_ghost=row.is_holdout or row.state == "held_out",
                    context=row.context,
                )

    def _stored_rewards(self, decision_ids: Sequence[str]) -> dict[tuple[str, str], Any]:
        query = select(
            RewardRow.decision_id,
            RewardRow.kind,
            RewardRow.value,
            RewardRow.occurred_at,
            RewardRow.log_seq,
            RewardRow.reversed_at,
        )
        return {
            (row.decision_id, row.kind): row
            for chunk in chunks(decision_ids)
            for row in self.session.execute(query.where(RewardRow.decision_id.in_(chunk)))
        }

    def _update_rewards(self, rows: Sequence[dict[str, Any]]) -> None:
        if rows:
            self.session.execute(update(RewardRow), list(rows))

    def write(self) -> None:
        """Add what was gathered to the stored cells and matrices."""
        add_cells(self.session, self.cells)
        add_matrices(self.session, self.matrices, "log")


@dataclass(frozen=True)
class _Candidate:
    """An event that may earn a decision a reward."""

    shown: Shown
    kind: str
    value: float
    event: LoggedEvent

    @property
    def at(self) -> tuple[int, int]:
        return self.event.occurred_at, self.event.seq

    def row(self) -> dict[str, Any]:
        return {
            "decision_id": self.shown.decision_id,
            "kind": self.kind,
            "value": self.value,
            "occurred_at": from_micros(self.event.occurred_at),
            "log_seq": self.event.seq,
        }


def took_effect() -> ColumnElement[bool]:
    """A decision taken through the API was shown at once, one for a mail when the mail left."""
    return or_(DecisionRow.send_id.is_(None), SendRow.state == "accepted")


def shown_at() -> ColumnElement[datetime]:
    """When that was: of a mail, when it left."""
    return type_coerce(func.coalesce(SendRow.finished_at, DecisionRow.decided_at), UtcMicros)


def decoded(context: bytes) -> np.ndarray:
    """A decision's context as float64, shape (n_features,)."""
    return np.frombuffer(context, dtype="<f4").astype(np.float64)


def add_cells(session: Session, cells: dict[Cell, Sums]) -> None:
    """Add sums to the stored cells; those that are new are made."""
    stored = {
        (row.experiment_id, row.arm_id, row.wave, row.segment): row
        for row in session.scalars(
            select(LearnerCellRow).where(
                LearnerCellRow.experiment_id.in_({cell[0] for cell in cells}),
                LearnerCellRow.wave.in_({cell[2] for cell in cells}),
            )
        )
    }
    for cell, sums in cells.items():
        values = {name: getattr(sums, name) for name in SUMS}
        if cell in stored:
            for name, value in values.items():
                setattr(stored[cell], name, getattr(stored[cell], name) + value)
        else:
            place = dict(zip(("experiment_id", "arm_id", "wave", "segment"), cell, strict=True))
            session.add(LearnerCellRow(**place, **values))
    session.flush()


def add_matrices(session: Session, matrices: dict[tuple[str, str, int], list[np.ndarray]], origin: str) -> None:
    """Add ``[gram, moments]`` to the stored matrices of an origin; those that are new are made."""
    stored = {
        (row.experiment_id, row.arm_id, row.wave): row
        for row in session.scalars(
            select(LearnerMatrixRow).where(
                LearnerMatrixRow.experiment_id.in_({place[0] for place in matrices}),
                LearnerMatrixRow.wave.in_({place[2] for place in matrices}),
                LearnerMatrixRow.origin == origin,
            )
        )
    }
    for place, (gram, moments) in matrices.items():
        row = stored.get(place)
        if row is None:
            key = dict(zip(("experiment_id", "arm_id", "wave"), place, strict=True))
            row = LearnerMatrixRow(**key, origin=origin, gram=gram.tobytes(), moments=moments.tobytes())
            session.add(row)
        else:
            row.gram = (np.frombuffer(row.gram).reshape(gram.shape) + gram).tobytes()
            row.moments = (np.frombuffer(row.moments) + moments).tobytes()
    session.flush()


def chunks(items: Iterable[T], size: int = CHUNK) -> Iterator[list[T]]:
    """``items`` in lists of at most ``size``."""
    listed = list(items)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]
