"""What an experiment has shown, read for reports: decisions whose reward window has passed, summed up in the database.

The unit is the batch: decisions that share snapshot, wave, open arms and segment were drawn from one known pmf, so
their counts and sums say all that an estimate needs. A million decisions are a few thousand batches.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import ColumnElement, Float, Select, Text, and_, case, cast, func, null, or_, select, type_coerce
from sqlalchemy.orm import Session

from service.flow.reward.fold import shown_at, took_effect
from service.tables import DecisionRow, ExperimentRow, RewardRow, SendRow, SnapshotRow
from training.batches import InverseSums
from training.policies.base import masked
from training.policies.statistics import FloatArray, IntArray

#: Policies whose probabilities differ by the contact's vector: no pmf of theirs stands in the snapshot.
SEES_VECTORS = ("linear",)
#: Propensities that lie nearer than this are the same.
SAME_PROPENSITY = 1e-9


@dataclass(frozen=True)
class Evidence:
    """Batches in the order in which they were drawn; matured decisions only.

    Attributes
    ----------
    arms : tuple of str, length n_arms
    waves, snapshot_no : ndarray of int64, shape (n_batches,)
    segments : tuple of (str or None), length n_batches
    pmf : ndarray of float64, shape (n_batches, n_arms)
        That the batch was drawn from: closed arms, and arms that came later, have 0.
    trials, successes : ndarray of int64, shape (n_batches, n_arms)
        Units shown, and those with a reward above 0.
    sums, squares : ndarray of float64, shape (n_batches, n_arms)
        Of the rewards of the units, and of their squares.
    inverse : InverseSums, optional
        Where the pmf differs by contact; ``pmf`` is then the share in which the arms came out.
    least_propensity : ndarray of float64, shape (n_arms,)
        With which an arm was drawn; NaN for one that never was.
    unit : {'decision', 'contact'}
        A sticky experiment's contact keeps its arm, so all its decisions are one unit.
    pending : int
        Decisions shown whose window is still open; they are in none of the above.
    left_out : int
        Matured units that were not drawn from the pmf of their batch, in none of the above either: an erased
        contact's segment is gone, and with it the pmf of its draw.
    """

    arms: tuple[str, ...]
    waves: IntArray
    snapshot_no: IntArray
    segments: tuple[str | None, ...]
    pmf: FloatArray
    trials: IntArray
    successes: IntArray
    sums: FloatArray
    squares: FloatArray
    inverse: InverseSums | None
    least_propensity: FloatArray
    unit: str
    pending: int
    left_out: int

    def __len__(self) -> int:
        return len(self.waves)

    @property
    def is_uniform(self) -> np.ndarray:
        """Batches drawn evenly from every arm that was open, shape (n_batches,)."""
        is_open = self.pmf > 0
        even = is_open / np.maximum(is_open.sum(axis=1, keepdims=True), 1)
        return np.asarray(np.all(np.abs(self.pmf - even) < 1e-9, axis=1))


def read_evidence(session: Session, experiment: ExperimentRow, arms: tuple[str, ...], *, now: datetime) -> Evidence:
    """The experiment's batches up to ``now``."""
    unit = "contact" if experiment.settings.get("sticky") else "decision"
    query = _by_batch(experiment, unit, now)
    rows = session.execute(query).all()
    snapshots: dict[str, tuple[int, Mapping[str, Any]]] = {
        snapshot_id: (number, policy)
        for snapshot_id, number, policy in session.execute(
            select(SnapshotRow.snapshot_id, SnapshotRow.snapshot_no, SnapshotRow.policy).where(
                SnapshotRow.experiment_id == experiment.experiment_id
            )
        )
    }
    keys = sorted(
        {(snapshots[row.snapshot_id][0], row.wave, row.eligible, row.segment or "", row.snapshot_id) for row in rows}
    )
    place = {key[1:]: i for i, key in enumerate(keys)}
    column = {arm: k for k, arm in enumerate(arms)}
    shape = (len(keys), len(arms))
    pmf = np.zeros(shape)
    for i, (_, _, eligible, segment, snapshot_id) in enumerate(keys):
        policy = snapshots[snapshot_id][1]
        offered = set(json.loads(eligible))
        is_offered = np.array([arm in offered for arm in policy["arms"]])
        by_segment = policy.get("by_segment", {}) if segment else {}  # without a segment it is the pooled pmf
        weights = np.array(by_segment.get(segment, policy["pmf"]))
        if not np.any(weights[is_offered] > 0):  # as the draw does it
            weights = np.array(policy["pmf"])
        for arm, share in zip(policy["arms"], masked(weights, is_offered), strict=True):
            pmf[i, column[arm]] = share
    trials, successes = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    sums, squares = np.zeros(shape), np.zeros(shape)
    inverse = np.zeros((6, *shape))
    least = np.full(len(arms), np.nan)
    differs = experiment.policy in SEES_VECTORS
    left_out = 0
    for row in rows:
        at = place[row.wave, row.eligible, row.segment or "", row.snapshot_id], column[row.arm_id]
        if not differs and abs(row.least - pmf[at]) > SAME_PROPENSITY:
            left_out += row.trials
            continue
        trials[at], successes[at], sums[at], squares[at] = row.trials, row.successes, row.sums, row.squares
        inverse[:, at[0], at[1]] = row.i0, row.i1, row.i2, row.j0, row.j1, row.j2
        least[at[1]] = np.fmin(least[at[1]], row.least)
    kept = trials.sum(axis=1) > 0
    if differs:  # nobody's pmf stands in the snapshot: the share in which the open arms came out, half a unit each
        is_open = pmf > 0
        pmf = np.where(is_open, trials + 0.5, 0.0)
        pmf /= pmf.sum(axis=1, keepdims=True)
    pending = session.scalar(
        select(func.count())
        .select_from(DecisionRow)
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .where(_shown(experiment), shown_at() > now - _window(experiment))
    )
    return Evidence(
        arms=arms,
        waves=np.array([key[1] for key in keys], dtype=np.int64)[kept],
        snapshot_no=np.array([key[0] for key in keys], dtype=np.int64)[kept],
        segments=tuple(key[3] or None for key, is_kept in zip(keys, kept, strict=True) if is_kept),
        pmf=pmf[kept],
        trials=trials[kept],
        successes=successes[kept],
        sums=sums[kept],
        squares=squares[kept],
        inverse=InverseSums(*[*inverse[:, kept], least]) if differs else None,
        least_propensity=least,
        unit=unit,
        pending=int(pending or 0),
        left_out=left_out,
    )


@dataclass(frozen=True)
class Holdout:
    """Those who were held out, and those who were shown an arm, draw by draw.

    Attributes
    ----------
    trials : ndarray of int64, shape (n_draws, 2)
        Units: held out first, shown second.
    sums, squares : ndarray of float64, shape (n_draws, 2)
        Of the units' rewards, and of their squares.
    unit : {'contact', 'contact in a campaign'}
    """

    trials: IntArray
    sums: FloatArray
    squares: FloatArray
    unit: str


def read_holdout(session: Session, experiment: ExperimentRow, *, now: datetime) -> Holdout:
    """Both sides of the experiment's holdout, each unit's rewards added up.

    An experiment's own holdout is drawn once a person, so the person is the unit. A campaign's is drawn campaign by
    campaign: there each campaign is compared within itself. Where neither held anybody out the counts are zero.
    """
    by_person = experiment.holdout_share > 0
    held = DecisionRow.is_holdout if by_person else func.coalesce(SendRow.state, "") == "held_out"
    states = ("accepted",) if by_person else ("accepted", "held_out")
    draw = null() if by_person else SendRow.campaign_id
    side = case((held, 0), else_=1)
    units = (
        select(cast(draw, Text).label("draw"), side.label("side"), func.sum(_reward(experiment)).label("r"))
        .select_from(DecisionRow)
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .outerjoin(RewardRow, _is_reward(experiment))
        .where(
            DecisionRow.experiment_id == experiment.experiment_id,
            or_(DecisionRow.send_id.is_(None), SendRow.state.in_(states)),
            shown_at() <= now - _window(experiment),
        )
        .group_by(*(() if by_person else (draw,)), side, DecisionRow.contact_key)
        .subquery()
    )
    r = units.c.r
    rows = session.execute(
        select(units.c.draw, units.c.side, func.count(), func.sum(r), func.sum(r * r)).group_by(
            units.c.draw, units.c.side
        )
    ).all()
    draws = {name: i for i, name in enumerate(sorted({row.draw or "" for row in rows}))}
    trials = np.zeros((len(draws), 2), dtype=np.int64)
    sums, squares = np.zeros((len(draws), 2)), np.zeros((len(draws), 2))
    for name, side, n, total, square in rows:
        at = draws[name or ""], side
        trials[at], sums[at], squares[at] = n, total, square
    return Holdout(trials, sums, squares, "contact" if by_person else "contact in a campaign")


def _by_batch(experiment: ExperimentRow, unit: str, now: datetime) -> Select[Any]:
    eligible = cast(DecisionRow.eligible, Text).label("eligible")
    key = (DecisionRow.snapshot_id, DecisionRow.wave, eligible, DecisionRow.segment, DecisionRow.arm_id)
    matured = shown_at() <= now - _window(experiment)
    joined: Select[*tuple[Any, ...]] = (
        select(*key, DecisionRow.propensity.label("p"), _reward(experiment).label("r"))
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .outerjoin(RewardRow, _is_reward(experiment))
        .where(_shown(experiment), matured)
    )
    if unit == "contact":  # the first decision's batch, and the rewards of all that followed from it
        key_of_contact = (DecisionRow.snapshot_id, eligible, DecisionRow.segment, DecisionRow.arm_id)
        joined = (
            select(
                *key_of_contact,
                func.min(DecisionRow.wave).label("wave"),
                func.min(DecisionRow.propensity).label("p"),
                func.sum(_reward(experiment)).label("r"),
            )
            .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
            .outerjoin(RewardRow, _is_reward(experiment))
            .where(_shown(experiment), matured)
            .group_by(DecisionRow.contact_key, *key_of_contact)
        )
    units = joined.subquery()
    batch = (units.c.snapshot_id, units.c.wave, units.c.eligible, units.c.segment, units.c.arm_id)
    p, r = units.c.p, units.c.r
    measured = [
        func.count().label("trials"),
        func.sum(case((r > 0, 1), else_=0)).label("successes"),
        func.sum(r).label("sums"),
        func.sum(r * r).label("squares"),
        func.min(p).label("least"),
        func.sum(1.0 / p).label("i0"),
        func.sum(r / p).label("i1"),
        func.sum(r * r / p).label("i2"),
        func.sum(1.0 / (p * p)).label("j0"),
        func.sum(r / (p * p)).label("j1"),
        func.sum(r * r / (p * p)).label("j2"),
    ]
    # Units of a batch and arm share one propensity, unless an erased contact's is that of the segment it was in.
    alike = () if experiment.policy in SEES_VECTORS else (p,)
    return select(*batch, *measured).group_by(*batch, *alike)


def _shown(experiment: ExperimentRow) -> ColumnElement[bool]:
    """Decisions of the experiment whose arm was shown: through the API at once, in a mail when it left."""
    return and_(
        DecisionRow.experiment_id == experiment.experiment_id,
        DecisionRow.is_holdout.is_(False),
        took_effect(),
    )


def _window(experiment: ExperimentRow) -> timedelta:
    return timedelta(hours=experiment.reward_window_hours)


def _is_reward(experiment: ExperimentRow) -> ColumnElement[bool]:
    return and_(RewardRow.decision_id == DecisionRow.decision_id, RewardRow.kind == experiment.reward)


def _reward(experiment: ExperimentRow) -> ColumnElement[float]:
    """The unit's reward: money as it is, anything else 1 where it came."""
    value = func.coalesce(RewardRow.value, 0.0)
    return type_coerce(value if experiment.reward == "revenue" else case((value > 0, 1.0), else_=0.0), Float)
