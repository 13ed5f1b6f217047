"""Choose: the sends due in the next minutes (a wave) → an arm for each, with its propensity, logged.

Deciding late is what lets one campaign learn within itself: the arms of a send are drawn from the snapshot that is in
force when the send falls due, not when it was planned.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any

from sqlalchemy import BigInteger, bindparam, select, text, type_coerce
from sqlalchemy.orm import Session

from features.events import HOUR_MICROS
from features.online import VectorCache
from features.tables import to_micros
from service.errors import Conflict, Invalid, NotFound
from service.flow.decide.contexts import Projection
from service.flow.decide.draw import CHUNK, Ask, Desk, desks, draw
from service.flow.decide.experiment import (
    KINDS,
    POLICIES,
    REWARDS,
    Arm,
    NewExperiment,
    check_experiment,
    check_features,
    policy_of,
)
from service.flow.decide.replay import ERASED_OCCURRENCE, Replay, replay
from service.flow.decide.snapshot import allocation_of, statistics_of, take_snapshot
from service.flow.decide.withdrawal import withdraw
from service.halts import leaving_allowed
from service.tables import ArmRow, CampaignRow, DecisionRow, ExperimentRow, SendRow
from training.policies.base import Policy
from training.policies.statistics import ArmStatistics, LinearStatistics, ValueStatistics

__all__ = [
    "ERASED_OCCURRENCE",
    "KINDS",
    "POLICIES",
    "REWARDS",
    "Arm",
    "Decisions",
    "NewExperiment",
    "Replay",
    "allocation_of",
    "check_experiment",
    "check_features",
    "decide",
    "decide_for",
    "open_experiment",
    "policy_of",
    "replay",
    "statistics_of",
    "take_snapshot",
    "withdraw",
]

_PARALLEL = (
    "decision_id", "experiment_id", "contact_key", "arm_id", "propensity", "snapshot_id", "is_holdout", "wave",
    "segment",
)  # fmt: skip
_MADE = select(*(getattr(DecisionRow, name) for name in _PARALLEL)).where(
    DecisionRow.experiment_id == bindparam("experiment_id"),
    DecisionRow.occurrence == bindparam("occurrence"),
    DecisionRow.contact_key.in_(bindparam("keys", expanding=True)),
)

#: Word for word the condition of the index that holds these rows alone: a bound value would not find it.
IS_UNDECIDED = text("send.state = 'planned' AND send.decided_at IS NULL")

_STICKY = (
    select(ExperimentRow.experiment_id)
    .where(
        ExperimentRow.experiment_id.in_(bindparam("ids", expanding=True)),
        ExperimentRow.settings["sticky"].as_boolean(),
    )
    .order_by(ExperimentRow.experiment_id)
    .with_for_update()
)


@dataclass(frozen=True)
class Decisions:
    """The decisions of a wave, in parallel tuples, and the sends that were decided (with or without an experiment)."""

    decision_id: tuple[str, ...]
    experiment_id: tuple[str, ...]
    contact_key: tuple[int, ...]
    arm_id: tuple[str, ...]
    propensity: tuple[float, ...]
    snapshot_id: tuple[str, ...]
    #: True: the arm was drawn and is not shown.
    is_holdout: tuple[bool, ...]
    wave: tuple[int, ...]
    segment: tuple[str | None, ...]
    send_ids: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.decision_id)


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
    check_experiment(new)
    experiment_id = f"exp_{secrets.token_hex(6)}"
    own_salt = salt or secrets.token_hex(8)
    settings = new.settings()
    if new.context is not None:
        seed = int.from_bytes(own_salt.encode(), "little")
        settings["context"] = Projection.measure(session, new.context["features"], now=now, seed=seed).kept()
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
        policy=new.policy_name,
        salt=own_salt,
        status="running",
        created_at=now,
        settings=settings,
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
    ids = [arm.arm_id for arm in new.arms]
    n_features = 0 if new.context is None else 1 + len(new.context["features"])
    take_snapshot(session, experiment, _nothing(policy_of(experiment, ids), ids, n_features), log_seq=0, now=now)
    return experiment_id


def _nothing(
    policy: Policy, arms: Sequence[str], n_features: int
) -> ArmStatistics | ValueStatistics | LinearStatistics:
    """What a policy learns from, before the first trial."""
    none = ArmStatistics.empty(arms)
    floats = none.age_hours
    if policy.learns_from is ValueStatistics:
        return ValueStatistics(none.arms, none.trials, none.successes, floats, floats, floats)
    if policy.learns_from is LinearStatistics:
        gram = floats.reshape(len(arms), 0, 1, 1).repeat(n_features, axis=2).repeat(n_features, axis=3)
        return LinearStatistics(none.arms, none.trials, gram, gram[..., 0], floats, floats)
    return none


def decide(
    session: Session, *, now: datetime, look_ahead: timedelta, limit: int = 20_000, cache: VectorCache | None = None
) -> Decisions:
    """An arm for every planned send that falls due before ``now + look_ahead``, in each experiment of its campaign.

    What a halt, a pause or a canary holds back is not drawn for: it is once it may leave. What is too late to leave
    passes without a draw, for the claim to close it.

    The sends of one hour are a wave: base rates move with the hour, so arms are compared within it. Draws are hashed
    (`training.policies.base.hashed_draws`), so the same call again draws the same.
    """
    due = session.execute(
        select(
            SendRow.send_id,
            SendRow.contact_key,
            SendRow.campaign_id,
            type_coerce(SendRow.due_at, BigInteger).label("due_micros"),
            SendRow.not_after,
        )
        .where(IS_UNDECIDED, SendRow.due_at < now + look_ahead, leaving_allowed())
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
    drawn: list[Mapping[str, Any]] = []
    for desk in _desks(session, asked):
        asks = [
            Ask(row.contact_key, f"send:{row.send_id}", row.due_micros // HOUR_MICROS, row.send_id)
            for row in due
            if row.not_after >= now and desk.experiment.experiment_id in experiments_of.get(row.campaign_id, ())
        ]
        if asks:
            drawn += draw(session, desk, asks, now=now, cache=cache, tell_written=False)[0]
    send_ids = [row.send_id for row in due]
    if send_ids:
        connection = session.connection()
        mark = "?" if connection.dialect.name == "sqlite" else "%s"
        connection.exec_driver_sql(
            f"UPDATE send SET decided_at = {mark} WHERE send_id = {mark}", [(to_micros(now), i) for i in send_ids]
        )
    columns = zip(*map(itemgetter(*_PARALLEL), drawn), strict=True) if drawn else [()] * len(_PARALLEL)
    return Decisions(**dict(zip(_PARALLEL, columns, strict=True)), send_ids=tuple(send_ids))


def decide_for(
    session: Session,
    experiment_id: str,
    contact_keys: Sequence[int],
    occurrence: str,
    *,
    now: datetime,
    eligible: Sequence[str] | None = None,
    cache: VectorCache | None = None,
) -> Decisions:
    """An arm of one experiment for each contact, for the caller's own ``occurrence``; asked again, the same answer.

    Parameters
    ----------
    eligible : sequence of str, optional
        The arms that may be shown here, by default all: the others are left out of the draw, and so it is logged.
    cache : VectorCache, optional
        Spares the database the events of contacts that were asked about lately.

    Raises
    ------
    NotFound
        If there is no such experiment.
    Invalid
        If ``eligible`` names an arm that it does not have.
    Conflict
        If it has ended, or none of the eligible arms is running.
    """
    found = _desks(session, {experiment_id})
    if not found:
        raise NotFound(f"there is no experiment {experiment_id!r}; GET /v1/experiments lists them")
    desk = found[0] if eligible is None else _narrowed(session, found[0], eligible)
    made = _made(session, experiment_id, occurrence, contact_keys)
    fresh = [key for key in dict.fromkeys(contact_keys) if key not in made]
    if fresh and not desk.open_arms:
        among = "" if eligible is None else f" among {', '.join(eligible)}"
        raise Conflict(f"experiment {experiment_id} has no running arm{among}; resume an arm or open a new experiment")
    if fresh:
        wave = to_micros(now) // HOUR_MICROS
        rows, written = draw(session, desk, [Ask(key, occurrence, wave) for key in fresh], now=now, cache=cache)
        made |= {row["contact_key"]: row for row in rows}
        others = [row["contact_key"] for row in rows if row["decision_id"] not in written]
        made |= _made(session, experiment_id, occurrence, others)
    return Decisions(**{name: tuple(made[key][name] for key in contact_keys) for name in _PARALLEL})


def _desks(session: Session, experiment_ids: set[str]) -> list[Desk]:
    """The desks, those of sticky experiments locked to the commit: two first decisions of a contact would differ.

    Arms and snapshots are read once the lock is had: whoever held it may have changed them. On SQLite whoever writes
    is alone already.
    """
    if session.connection().dialect.name != "sqlite":
        session.execute(_STICKY, {"ids": list(experiment_ids)}).all()
    return desks(session, experiment_ids)


def _narrowed(session: Session, desk: Desk, eligible: Sequence[str]) -> Desk:
    query = select(ArmRow.arm_id).where(ArmRow.experiment_id == desk.experiment.experiment_id)
    arms = session.scalars(query.order_by(ArmRow.position)).all()
    strangers = [arm for arm in eligible if arm not in arms]
    if strangers:
        raise Invalid(f"eligible names {strangers[0]!r}, which is no arm; name some of {', '.join(arms)}")
    return desk.among(eligible)


def _made(
    session: Session, experiment_id: str, occurrence: str, contact_keys: Sequence[int]
) -> dict[int, Mapping[str, Any]]:
    asked = {"experiment_id": experiment_id, "occurrence": occurrence}
    return {
        row["contact_key"]: dict(row)
        for start in range(0, len(contact_keys), CHUNK)
        for row in session.execute(_MADE, asked | {"keys": list(contact_keys[start : start + CHUNK])}).mappings()
    }
