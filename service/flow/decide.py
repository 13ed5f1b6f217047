"""Choose: the sends due in the next minutes (a wave) → an arm for each, with its propensity, logged.

Deciding late is what lets one campaign learn within itself: the arms of a send are drawn from the snapshot that is in
force when the send falls due, not when it was planned.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

import numpy as np
from sqlalchemy import func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.tables import allocate, to_micros
from service.errors import Conflict, Invalid, NotFound
from service.tables import ArmRow, CampaignRow, DecisionRow, ExperimentRow, SendRow, SnapshotRow
from training.policies import policy_from_parameters
from training.policies.base import CountPolicy, choose, hashed_draws
from training.policies.fixed import Uniform
from training.policies.statistics import ArmStatistics
from training.policies.thompson import BetaBernoulliThompson

HOUR_MICROS = 3_600_000_000
KINDS = ("subject", "cta", "block", "layout")
REWARDS = ("click", "open", "conversion")
POLICIES = ("thompson", "uniform")
CHUNK = 5_000
_PARALLEL = ("decision_id", "experiment_id", "contact_key", "arm_id", "propensity", "snapshot_id")


@dataclass(frozen=True)
class Arm:
    """One answer of an experiment: a subject in Liquid, or a block in MJML."""

    arm_id: str
    content: str
    features: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class NewExperiment:
    """What an experiment asks, before it is opened.

    Attributes
    ----------
    slot : str
        Template slot that the arms fill; ``subject`` fills the subject line.
    floor : float
        Probability that every arm keeps, for learning: the one knob between earning and learning.
    explore_share : float
        Share of the decisions drawn uniformly, on top of the floor.
    """

    name: str
    kind: str
    arms: Sequence[Arm]
    slot: str = ""
    reward: str = "click"
    reward_window_hours: float = 72.0
    floor: float = 0.05
    explore_share: float = 0.0
    holdout_share: float = 0.0
    policy: str = "thompson"


@dataclass(frozen=True)
class Decisions:
    """The decisions of a wave, in parallel tuples, and the sends that were decided (with or without an experiment)."""

    decision_id: tuple[str, ...]
    experiment_id: tuple[str, ...]
    contact_key: tuple[int, ...]
    arm_id: tuple[str, ...]
    propensity: tuple[float, ...]
    snapshot_id: tuple[str, ...]
    send_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.decision_id)


@dataclass(frozen=True)
class Replay:
    """A decision drawn again from what was stored."""

    decision_id: str
    arm_id: str
    propensity: float
    is_equal: bool


def open_experiment(session: Session, new: NewExperiment, *, now: datetime, salt: str | None = None) -> str:
    """Id of a new, running experiment with its first snapshot (uniform: nothing is known yet).

    Parameters
    ----------
    salt : str, optional
        What makes this experiment's draws its own; drawn at random by default, given where a run must repeat.

    Raises
    ------
    Invalid
        Naming the value, its limit and the remedy.
    """
    _check(new)
    experiment_id = f"exp_{secrets.token_hex(6)}"
    experiment = ExperimentRow(
        experiment_id=experiment_id,
        name=new.name,
        kind=new.kind,
        slot=new.slot or new.kind,
        reward=new.reward,
        reward_window_hours=new.reward_window_hours,
        floor=new.floor,
        explore_share=new.explore_share,
        holdout_share=new.holdout_share,
        policy=new.policy,
        salt=salt or secrets.token_hex(8),
        status="running",
        created_at=now,
    )
    arms = [
        ArmRow(
            experiment_id=experiment_id,
            arm_id=arm.arm_id,
            position=position,
            content=arm.content,
            features=dict(arm.features),
            status="running",
            created_at=now,
        )
        for position, arm in enumerate(new.arms)
    ]
    session.add(experiment)
    session.add_all(arms)
    session.flush()
    take_snapshot(session, experiment, ArmStatistics.empty([arm.arm_id for arm in new.arms]), log_seq=0, now=now)
    return experiment_id


def take_snapshot(
    session: Session, experiment: ExperimentRow, statistics: ArmStatistics, *, log_seq: int, now: datetime
) -> SnapshotRow:
    """The arm probabilities that follow from ``statistics``, kept with them for replay."""
    policy = policy_of(experiment)
    number = allocate(session, "snapshot_no", 1)
    snapshot = SnapshotRow(
        snapshot_id=f"snp_{number}",
        snapshot_no=number,
        experiment_id=experiment.experiment_id,
        created_at=now,
        log_seq=log_seq,
        algorithm=policy.name,
        policy={
            "arms": list(statistics.arms),
            "pmf": _pmf(policy, statistics, experiment.explore_share).tolist(),
            "reason": policy.reason(statistics),
            "parameters": policy.parameters(),
            "explore_share": experiment.explore_share,
        },
        statistics={
            "trials": statistics.trials.tolist(),
            "successes": statistics.successes.tolist(),
            "age_hours": statistics.age_hours.tolist(),
        },
    )
    session.add(snapshot)
    session.flush()
    return snapshot


def policy_of(experiment: ExperimentRow) -> CountPolicy:
    """The policy that an experiment asks for."""
    if experiment.policy == "uniform":
        return Uniform()
    return BetaBernoulliThompson(floor=experiment.floor)


def _pmf(policy: CountPolicy, statistics: ArmStatistics, explore_share: float) -> np.ndarray:
    """The policy's arm probabilities of shape (n_arms,), with the explore share mixed in uniformly."""
    pmf = policy.pmf(statistics)
    return (1 - explore_share) * pmf + explore_share / len(pmf)


def decide(session: Session, *, now: datetime, look_ahead: timedelta, limit: int = 20_000) -> Decisions:
    """An arm for every planned send that falls due before ``now + look_ahead``, in each experiment of its campaign.

    The sends of one hour are a wave: base rates move with the hour, so arms are compared within it. Draws are hashed
    (`training.policies.base.hashed_draws`), so the same call again draws the same.
    """
    due = session.execute(
        select(SendRow.send_id, SendRow.contact_key, SendRow.campaign_id, SendRow.due_at)
        .where(SendRow.state == "planned", SendRow.decided_at.is_(None), SendRow.due_at < now + look_ahead)
        .order_by(SendRow.due_at, SendRow.send_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    campaign_ids = {row.campaign_id for row in due if row.campaign_id}
    experiments_of: dict[str, list[str]] = dict(
        session.execute(
            select(CampaignRow.campaign_id, CampaignRow.experiments).where(CampaignRow.campaign_id.in_(campaign_ids))
        ).all()
    )
    asked = {experiment_id for ids in experiments_of.values() for experiment_id in ids}
    drawn: list[Decisions] = []
    for desk in _desks(session, asked):
        rows = [row for row in due if desk.experiment.experiment_id in experiments_of.get(row.campaign_id, ())]
        if rows:
            drawn.append(
                _draw(
                    session,
                    desk,
                    contact_keys=[row.contact_key for row in rows],
                    occurrences=[f"send:{row.send_id}" for row in rows],
                    send_ids=[row.send_id for row in rows],
                    waves=[to_micros(row.due_at) // HOUR_MICROS for row in rows],
                    now=now,
                )
            )
    send_ids = [row.send_id for row in due]
    for start in range(0, len(send_ids), CHUNK):
        chunk = send_ids[start : start + CHUNK]
        session.execute(update(SendRow).where(SendRow.send_id.in_(chunk)).values(decided_at=now))
    return _joined(drawn, tuple(send_ids))


def decide_for(
    session: Session, experiment_id: str, contact_keys: Sequence[int], occurrence: str, *, now: datetime
) -> Decisions:
    """An arm of one experiment for each contact, for the caller's own ``occurrence``; asked again, the same answer.

    Raises
    ------
    NotFound
        If there is no such experiment.
    Conflict
        If it has ended or all its arms are paused.
    """
    desks = _desks(session, {experiment_id})
    if not desks:
        raise NotFound(f"there is no experiment {experiment_id!r}; GET /v1/experiments lists them")
    made = _made(session, experiment_id, occurrence, contact_keys)
    fresh = [key for key in dict.fromkeys(contact_keys) if key not in made]
    if fresh and (desks[0].experiment.status == "ended" or not desks[0].eligible):
        raise Conflict(f"experiment {experiment_id} has no running arm; resume an arm or open a new experiment")
    if fresh:
        wave = to_micros(now) // HOUR_MICROS
        _draw(session, desks[0], fresh, [occurrence] * len(fresh), None, [wave] * len(fresh), now)
        made |= _made(session, experiment_id, occurrence, fresh)
    return Decisions(**{name: tuple(getattr(made[key], name) for key in contact_keys) for name in _PARALLEL})


def _made(session: Session, experiment_id: str, occurrence: str, contact_keys: Sequence[int]) -> dict[int, DecisionRow]:
    query = select(DecisionRow).where(DecisionRow.experiment_id == experiment_id, DecisionRow.occurrence == occurrence)
    return {
        row.contact_key: row
        for start in range(0, len(contact_keys), CHUNK)
        for row in session.scalars(query.where(DecisionRow.contact_key.in_(contact_keys[start : start + CHUNK])))
    }


def replay(session: Session, decision_ids: Sequence[str]) -> tuple[Replay, ...]:
    """Each decision drawn again: its snapshot's pmf from the stored statistics, the arm from the hashed draw.

    Raises
    ------
    NotFound
        If a decision is not known.
    """
    replays: list[Replay] = []
    pmfs: dict[str, dict[str, float]] = {}
    for start in range(0, len(decision_ids), CHUNK):
        chunk = decision_ids[start : start + CHUNK]
        rows = session.execute(
            select(DecisionRow, SnapshotRow, ExperimentRow)
            .join(SnapshotRow, SnapshotRow.snapshot_id == DecisionRow.snapshot_id)
            .join(ExperimentRow, ExperimentRow.experiment_id == DecisionRow.experiment_id)
            .where(DecisionRow.decision_id.in_(chunk))
        )
        found = {row[0].decision_id: row for row in rows}
        for decision_id in chunk:
            if decision_id not in found:
                raise NotFound(f"there is no decision {decision_id!r}")
            decision, snapshot, experiment = found[decision_id]
            if snapshot.snapshot_id not in pmfs:
                policy = policy_from_parameters(snapshot.policy["parameters"])
                assert isinstance(policy, CountPolicy)
                again = _pmf(policy, statistics_of(snapshot), snapshot.policy["explore_share"])
                pmfs[snapshot.snapshot_id] = dict(zip(snapshot.policy["arms"], again.tolist(), strict=True))
            weights = np.array([pmfs[snapshot.snapshot_id][arm] for arm in decision.eligible])
            pmf = weights / weights.sum()
            draw = _draws(experiment, snapshot.snapshot_id, [decision.contact_key], [decision.occurrence])
            index = int(choose(pmf, draw)[0])
            arm, propensity = decision.eligible[index], float(pmf[index])
            is_equal = arm == decision.arm_id and propensity == decision.propensity and float(draw[0]) == decision.draw
            replays.append(Replay(decision_id, arm, propensity, is_equal))
    return tuple(replays)


def statistics_of(snapshot: SnapshotRow) -> ArmStatistics:
    """The counts that a snapshot was computed from."""
    kept = snapshot.statistics
    n_arms = len(snapshot.policy["arms"])
    return ArmStatistics(
        arms=tuple(snapshot.policy["arms"]),
        trials=np.array(kept["trials"], dtype=np.int64).reshape(n_arms, -1),
        successes=np.array(kept["successes"], dtype=np.int64).reshape(n_arms, -1),
        age_hours=np.array(kept["age_hours"], dtype=np.float64).reshape(n_arms, -1),
    )


@dataclass(frozen=True)
class _Desk:
    """An experiment with its snapshot in force and the arms that are open to the draw."""

    experiment: ExperimentRow
    snapshot: SnapshotRow
    eligible: tuple[str, ...]
    pmf: np.ndarray


def _desks(session: Session, experiment_ids: set[str]) -> list[_Desk]:
    newest = (
        select(SnapshotRow.experiment_id, func.max(SnapshotRow.snapshot_no).label("number"))
        .where(SnapshotRow.experiment_id.in_(experiment_ids))
        .group_by(SnapshotRow.experiment_id)
        .subquery()
    )
    snapshots = session.scalars(select(SnapshotRow).join(newest, SnapshotRow.snapshot_no == newest.c.number))
    snapshot_of = {snapshot.experiment_id: snapshot for snapshot in snapshots}
    running: dict[str, set[str]] = {}
    for experiment_id, arm_id in session.execute(
        select(ArmRow.experiment_id, ArmRow.arm_id).where(
            ArmRow.experiment_id.in_(experiment_ids), ArmRow.status == "running"
        )
    ):
        running.setdefault(experiment_id, set()).add(arm_id)
    desks = []
    for experiment in session.scalars(
        select(ExperimentRow)
        .where(ExperimentRow.experiment_id.in_(experiment_ids))
        .order_by(ExperimentRow.experiment_id)
    ):
        snapshot = snapshot_of[experiment.experiment_id]
        open_arms = running.get(experiment.experiment_id, set())
        pairs = [
            (arm, weight)
            for arm, weight in zip(snapshot.policy["arms"], snapshot.policy["pmf"], strict=True)
            if arm in open_arms
        ]
        weights = np.array([weight for _, weight in pairs], dtype=np.float64)
        pmf = weights / weights.sum() if len(pairs) else weights
        desks.append(_Desk(experiment, snapshot, tuple(arm for arm, _ in pairs), pmf))
    return desks


def _draw(
    session: Session,
    desk: _Desk,
    contact_keys: Sequence[int],
    occurrences: Sequence[str],
    send_ids: Sequence[int] | None,
    waves: Sequence[int],
    now: datetime,
) -> Decisions:
    experiment, snapshot = desk.experiment, desk.snapshot
    if not desk.eligible:  # every arm is paused: the template's own text stands, and no decision is claimed
        return _joined([], ())
    draws = _draws(experiment, snapshot.snapshot_id, contact_keys, occurrences)
    index = choose(desk.pmf, draws)
    masked = len(desk.eligible) < len(snapshot.policy["arms"])
    reason = snapshot.policy["reason"] + ("; paused arms left out" if masked else "")
    rows = [
        {
            "decision_id": _decision_id(experiment.experiment_id, contact_keys[i], occurrences[i]),
            "experiment_id": experiment.experiment_id,
            "contact_key": int(contact_keys[i]),
            "occurrence": occurrences[i],
            "send_id": None if send_ids is None else send_ids[i],
            "snapshot_id": snapshot.snapshot_id,
            "wave": int(waves[i]),
            "arm_id": desk.eligible[index[i]],
            "propensity": float(desk.pmf[index[i]]),
            "draw": float(draws[i]),
            "eligible": list(desk.eligible),
            "reason": reason,
            "decided_at": now,
        }
        for i in range(len(contact_keys))
    ]
    # Two who ask the same at once get one answer: in one order, and the second leaves the first's row alone.
    dialect = sqlite if session.connection().dialect.name == "sqlite" else postgresql
    once = dialect.insert(DecisionRow).on_conflict_do_nothing()
    ordered = sorted(rows, key=lambda row: (row["contact_key"], row["occurrence"]))
    for start in range(0, len(ordered), CHUNK):
        session.execute(once, ordered[start : start + CHUNK])
    return Decisions(**{name: tuple(row[name] for row in rows) for name in _PARALLEL})


def _draws(
    experiment: ExperimentRow, snapshot_id: str, contact_keys: Sequence[int], occurrences: Sequence[str]
) -> np.ndarray:
    return hashed_draws(experiment.salt, snapshot_id, np.asarray(contact_keys, dtype=np.int64), occurrences)


def _decision_id(experiment_id: str, contact_key: int, occurrence: str) -> str:
    intent = f"{experiment_id}|{contact_key}|{occurrence}"
    return f"dec_{blake2b(intent.encode(), digest_size=14).hexdigest()}"


def _joined(parts: Sequence[Decisions], send_ids: tuple[int, ...]) -> Decisions:
    joined = {name: tuple(value for part in parts for value in getattr(part, name)) for name in _PARALLEL}
    return Decisions(**joined, send_ids=send_ids)


def _check(new: NewExperiment) -> None:
    ids = [arm.arm_id for arm in new.arms]
    if len(ids) < 2:
        raise Invalid(f"{len(ids)} arm is no experiment; give at least two arms, or write the text into the template")
    if len(set(ids)) < len(ids):
        twice = sorted({arm_id for arm_id in ids if ids.count(arm_id) > 1})
        raise Invalid(f"arm ids {twice} are given twice; give each arm its own id")
    for value, name, known in (
        (new.kind, "kind", KINDS),
        (new.reward, "reward", REWARDS),
        (new.policy, "policy", POLICIES),
    ):
        if value not in known:
            raise Invalid(f"{name} {value!r} is not known; write one of {', '.join(known)}")
    if not 0 < new.floor * len(ids) <= 1:
        raise Invalid(f"a floor of {new.floor} for {len(ids)} arms does not fit; choose 0 < floor ≤ {1 / len(ids):.3f}")
    if not 0 <= new.explore_share <= 1:
        raise Invalid(f"explore_share {new.explore_share} is outside 0 to 1")
    if new.holdout_share != 0:
        raise Invalid(f"holdout_share {new.holdout_share} of an experiment is not applied; set it on the campaign")
    if not 0 < new.reward_window_hours <= 24 * 90:
        raise Invalid(f"reward_window_hours {new.reward_window_hours} is outside 0 to {24 * 90}")
    empty = [arm.arm_id for arm in new.arms if not arm.content.strip()]
    if empty:
        raise Invalid(f"arms {empty} have no text; write what they say")
