"""Evidence: the folded cells and matrices as the statistics that a policy learns from."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from features.tables import to_micros
from service.flow.decide import policy_of
from service.flow.decide.snapshot import Statistics
from service.flow.reward.fold import took_effect
from service.tables import (
    ArmRow,
    DecisionRow,
    ExperimentRow,
    LearnerCellRow,
    LearnerMatrixRow,
    RewardRow,
    SendRow,
)
from training.drift import drift_alarms, shortened_half_life
from training.policies import DelayCdf, policy_from_parameters
from training.policies.base import Policy
from training.policies.statistics import ArmStatistics, LinearStatistics, SegmentStatistics, ValueStatistics
from training.policies.waves import design_effect

#: Waves below which no change of an arm's rate is looked for.
LEAST_WAVES = 20
#: Contacts, at least and at most, by whose answers it is measured how alike those of one contact are.
LEAST_CONTACTS, MOST_CONTACTS = 30, 20_000


def statistics(session: Session, experiment_id: str, *, now: datetime) -> ArmStatistics:
    """The folded counts of an experiment: all arms in their order, waves ascending, segments together."""
    arms = [arm.arm_id for arm in arms_of(session, experiment_id)]
    return _Table(session, experiment_id, arms, now).counts()


def evidence(session: Session, experiment: ExperimentRow, *, now: datetime, policy: Policy | None = None) -> Statistics:
    """What the experiment's policy learns from: of the arms of `arms_in_play`, or of all where arms teach one another.

    Parameters
    ----------
    policy : Policy, optional
        By default the experiment's own.
    """
    in_play = arms_in_play(session, experiment.experiment_id)
    policy = policy or policy_of(experiment, in_play)
    if policy.learns_from is LinearStatistics:
        rows = arms_of(session, experiment.experiment_id)
        table = _Table(session, experiment.experiment_id, [arm.arm_id for arm in rows], now)
        return table.linear(_arm_features(rows))
    table = _Table(session, experiment.experiment_id, in_play, now)
    if policy.learns_from is ValueStatistics:
        return table.values()
    if _tells_segments_apart(experiment, policy, table):
        return table.segments()
    return table.counts()


def policy_under_drift(
    session: Session, experiment: ExperimentRow, policy: Policy, *, now: datetime
) -> tuple[Policy, str]:
    """The policy with its half-life shortened to what an arm's changed rate asks for, and what to say of it.

    `training.drift` looks at each arm's residuals, wave by wave. A policy that cannot discount stays as it is, and so
    does one with fewer than 20 waves. Where it tells segments apart, they are looked at apart: it shows each of them
    other arms, so that a change of who comes would pass for one of an arm's rate. For a policy that sees vectors there
    are no such groups, and no drift is looked for.
    """
    delay = getattr(policy, "delay", None)
    if policy.context == "vector" or not isinstance(delay, DelayCdf):
        return policy, ""
    arms = [arm.arm_id for arm in arms_of(session, experiment.experiment_id)]
    table = _Table(session, experiment.experiment_id, arms, now)
    counts = table.segments() if _tells_segments_apart(experiment, policy, table) else table.counts()
    if counts.trials.shape[-1] < LEAST_WAVES:
        return policy, ""
    alarms = drift_alarms(counts, delay=delay)
    parameters = policy.parameters()
    before = parameters["half_life_days"]
    half_life_days = shortened_half_life(counts, alarms, before)
    if half_life_days == before or half_life_days is None:
        return policy, ""
    changed = ", ".join(alarm.arm for alarm in alarms if alarm.changed_at is not None)
    shortened = policy_from_parameters(parameters | {"half_life_days": half_life_days})
    return shortened, f"; half-life {half_life_days:.3g} days: the rate of {changed} changed"


def _tells_segments_apart(experiment: ExperimentRow, policy: Policy, table: _Table) -> bool:
    return policy.context == "segment" and bool(table.names) and bool((experiment.settings or {}).get("segment_by"))


def policy_of_kept_arms(session: Session, experiment: ExperimentRow, policy: Policy) -> Policy:
    """The policy of a sticky experiment: ten mails to one contact are less evidence than ten to ten contacts.

    By how much, `training.policies.waves.design_effect` measures on the contacts with the lowest keys. Where each mail
    is drawn anew, and for a policy that cannot weigh its evidence, nothing changes.
    """
    parameters = policy.parameters()
    if not (experiment.settings or {}).get("sticky") or "design_effect" not in parameters:
        return policy
    succeeded = (
        (RewardRow.decision_id == DecisionRow.decision_id)
        & (RewardRow.kind == experiment.reward)
        & (RewardRow.value > 0)
    )
    by_contact = session.execute(
        select(func.count(), func.count(RewardRow.decision_id))
        .select_from(DecisionRow)
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .outerjoin(RewardRow, succeeded)
        .where(DecisionRow.experiment_id == experiment.experiment_id, DecisionRow.is_holdout.is_(False), took_effect())
        .group_by(DecisionRow.contact_key)
        .order_by(DecisionRow.contact_key)
        .limit(MOST_CONTACTS)
    ).all()
    if len(by_contact) < LEAST_CONTACTS:
        return policy
    trials, successes = np.array(by_contact, dtype=np.int64).T
    return policy_from_parameters(parameters | {"design_effect": float(design_effect(trials, successes))})


def arms_in_play(session: Session, experiment_id: str) -> tuple[str, ...]:
    """The arms that a snapshot chooses among, in their order: all but the retired, unless fewer than two remain.

    Paused ones are among them: they are left out of each draw, and may come back at once.
    """
    rows = arms_of(session, experiment_id)
    kept = [arm.arm_id for arm in rows if arm.status != "retired"]
    return tuple(kept if len(kept) >= 2 else [arm.arm_id for arm in rows])


def arms_of(session: Session, experiment_id: str) -> Sequence[ArmRow]:
    """Arms in the order in which pmfs list them."""
    query = select(ArmRow).where(ArmRow.experiment_id == experiment_id)
    return session.scalars(query.order_by(ArmRow.position, ArmRow.arm_id)).all()


class _Table:
    """An experiment's cells as arrays of shape (n_segments, n_arms, n_waves)."""

    def __init__(self, session: Session, experiment_id: str, arms: Sequence[str], now: datetime) -> None:
        self._session = session
        self._experiment_id = experiment_id
        self._now_seconds = to_micros(now) / 1e6
        self.arms = tuple(arms)
        cells = session.scalars(
            select(LearnerCellRow).where(
                LearnerCellRow.experiment_id == experiment_id, LearnerCellRow.arm_id.in_(self.arms)
            )
        ).all()
        self.waves = sorted({cell.wave for cell in cells})
        self.names = tuple(sorted({cell.segment for cell in cells}))
        self._arm_at = {arm: i for i, arm in enumerate(self.arms)}
        self._wave_at = {wave: i for i, wave in enumerate(self.waves)}
        segment_at = {name: i for i, name in enumerate(self.names)}
        self._index = (
            [segment_at[cell.segment] for cell in cells],
            [self._arm_at[cell.arm_id] for cell in cells],
            [self._wave_at[cell.wave] for cell in cells],
        )
        self._cells = cells

    def _column(self, name: str, dtype: type) -> np.ndarray:
        table: np.ndarray = np.zeros((len(self.names), len(self.arms), len(self.waves)), dtype)
        table[self._index] = [getattr(cell, name) for cell in self._cells]
        return table

    def _age(self, trials: np.ndarray, shown_at: np.ndarray) -> np.ndarray:
        mean = shown_at / np.maximum(trials, 1)
        return np.where(trials > 0, np.maximum(0.0, (self._now_seconds - mean) / 3600), 0.0)

    def _pooled(self) -> dict[str, Any]:
        trials = self._column("trials", np.int64).sum(axis=0)
        age = self._age(trials, self._column("sum_shown_at", np.int64).sum(axis=0))
        return {"arms": self.arms, "trials": trials, "age_hours": age}

    def counts(self) -> ArmStatistics:
        return ArmStatistics(successes=self._column("successes", np.int64).sum(axis=0), **self._pooled())

    def segments(self) -> SegmentStatistics:
        trials = self._column("trials", np.int64)
        age = self._age(trials, self._column("sum_shown_at", np.int64))
        return SegmentStatistics(self.names, self.arms, trials, self._column("successes", np.int64), age)

    def values(self) -> ValueStatistics:
        return ValueStatistics(
            successes=self._column("successes", np.int64).sum(axis=0),
            sums=self._column("sum_rewards", np.float64).sum(axis=0),
            squares=self._column("sum_squares", np.float64).sum(axis=0),
            **self._pooled(),
        )

    def linear(self, arm_features: np.ndarray | None) -> LinearStatistics:
        rows = self._session.scalars(
            select(LearnerMatrixRow).where(
                LearnerMatrixRow.experiment_id == self._experiment_id, LearnerMatrixRow.arm_id.in_(self.arms)
            )
        ).all()
        width = max((len(np.frombuffer(row.moments)) for row in rows), default=1)
        gram = np.zeros((len(self.arms), len(self.waves), width, width))
        moments = np.zeros((len(self.arms), len(self.waves), width))
        for row in rows:
            place = self._arm_at[row.arm_id], self._wave_at[row.wave]
            gram[place] += np.frombuffer(row.gram).reshape(width, width)
            moments[place] += np.frombuffer(row.moments)
        seen = np.rint(gram[:, :, 0, 0]).astype(np.int64)  # trials with a vector
        return LinearStatistics(
            gram=gram,
            moments=moments,
            squares=self._column("sum_squares", np.float64).sum(axis=0),
            arm_features=arm_features,
            **self._pooled() | {"trials": seen},
        )


def _arm_features(arms: Sequence[ArmRow]) -> np.ndarray | None:
    """A leading 1 and the numbers that every arm's features have in common, shape (n_arms, n_arm_features)."""
    numbers = [
        {name: float(value) for name, value in (arm.features or {}).items() if isinstance(value, int | float)}
        for arm in arms
    ]
    common = sorted(set.intersection(*(set(own) for own in numbers)))
    if not common:
        return None
    return np.array([[1.0, *(own[name] for name in common)] for own in numbers])
