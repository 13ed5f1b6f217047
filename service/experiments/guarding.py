"""Guardrails: an arm that drives people away, or that they complain about, is taken out of the draw at once."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import numpy as np
from sqlalchemy import case, func, select
from sqlalchemy.orm import Session

from features.events import HOUR_MICROS
from features.tables import from_micros, to_micros
from service.experiments.evidence import SEES_VECTORS
from service.experiments.lifecycle import find_experiment, guardrails_of, pause_arm
from service.flow.reward import arms_of
from service.flow.reward.fold import HARMS, shown_at, took_effect
from service.tables import ArmRow, DecisionRow, ExperimentRow, LearnerCellRow, RewardRow, SendRow
from training.guardrails import Judgement, judge_guardrails
from training.policies.statistics import IntArray

log = logging.getLogger(__name__)

WHO = "guardrail"


@dataclass(frozen=True)
class HarmfulArm:
    """A running arm that is to be paused, and why."""

    experiment_id: str
    arm_id: str
    reason: str


def harmful_arms(session: Session) -> list[HarmfulArm]:
    """Running arms of running experiments that their guardrails speak against."""
    found = []
    told = (
        select(LearnerCellRow.experiment_id)
        .join(ExperimentRow, ExperimentRow.experiment_id == LearnerCellRow.experiment_id)
        .where(ExperimentRow.status == "running", LearnerCellRow.unsubscribes + LearnerCellRow.complaints > 0)
    )
    experiments = session.scalars(
        select(ExperimentRow)
        .where(ExperimentRow.status == "running", ExperimentRow.experiment_id.in_(told))
        .order_by(ExperimentRow.experiment_id)
    ).all()
    for experiment in experiments:
        arms = arms_of(session, experiment.experiment_id)
        running = {arm.arm_id for arm in arms if arm.status == "running"}
        for one in _judged(session, experiment, arms):
            if one.is_paused and one.arm in running:
                reason = one.sentence.removeprefix(f"{one.arm} is paused: ")
                found.append(HarmfulArm(experiment.experiment_id, one.arm, reason))
    return found


def pause_harmful(session: Session, harmful: Sequence[HarmfulArm], *, now: datetime) -> int:
    """Pause these arms; only a person resumes them. Returns how many.

    An arm that no longer runs, or whose experiment does not, is skipped: a person was faster.
    """
    n_paused = 0
    for one in harmful:
        experiment = find_experiment(session, one.experiment_id, for_update=True)
        arm = session.get(ArmRow, (one.experiment_id, one.arm_id), populate_existing=True)
        if experiment.status != "running" or arm is None or arm.status != "running":
            continue
        n_paused += 1
        pause_arm(session, one.experiment_id, one.arm_id, reason=f"guardrail: {one.reason}", who=WHO, now=now)
        log.warning(
            "an arm was paused by its guardrail: %s",
            one.reason,
            extra={"action": "arm_paused", "experiment_id": one.experiment_id, "arm_id": one.arm_id},
        )
    return n_paused


def judged_arms(session: Session, experiment: ExperimentRow) -> list[dict[str, Any]]:
    """How things stand with each arm: evidence that it does more harm than the others (1: none, 100: paused)."""
    return [asdict(one) for one in _judged(session, experiment, arms_of(session, experiment.experiment_id))]


def arms_by_status(session: Session) -> dict[str, int]:
    """Arms of experiments that have not ended: running, paused, paused_by_guardrail, retired."""
    status = case(
        ((ArmRow.status == "paused") & ArmRow.status_reason.like("guardrail:%"), "paused_by_guardrail"),
        else_=ArmRow.status,
    )
    query = (
        select(status, func.count())
        .join(ExperimentRow, ExperimentRow.experiment_id == ArmRow.experiment_id)
        .where(ExperimentRow.status != "ended")
        .group_by(status)
    )
    none = dict.fromkeys(("running", "paused", "paused_by_guardrail", "retired"), 0)
    return none | dict(session.execute(query).all())


def _judged(session: Session, experiment: ExperimentRow, arms: Sequence[ArmRow]) -> list[Judgement]:
    """What the guardrails say of each arm, in the order of ``arms``.

    Arms are compared within strata of wave and segment, in each of which one pmf held. Where the pmf follows the
    contact's vector there are no such strata, and of a decision only the probability of the arm that was drawn is
    logged: there arms are not compared, and the limit on complaints alone stands.
    """
    watched = guardrails_of(experiment)
    names = [arm.arm_id for arm in arms]
    waves, trials, unsubscribes, complaints = _harms(session, experiment.experiment_id, names)
    # A person who resumed an arm has seen the evidence so far: it is judged by what was sent since.
    judged: dict[str, Judgement] = {}
    since: dict[int, list[str]] = defaultdict(list)
    for arm in arms:
        is_resumed = arm.status == "running" and arm.status_at is not None
        since[to_micros(arm.status_at) // HOUR_MICROS if is_resumed and arm.status_at else -1].append(arm.arm_id)
    is_sticky = bool(experiment.settings.get("sticky"))
    for wave, of_arms in since.items():
        if is_sticky and wave >= 0:  # what is sent now counts in the wave of each contact's first decision
            resumed_at = from_micros(wave * HOUR_MICROS + HOUR_MICROS)
            counts = _harms_shown_from(session, experiment.experiment_id, names, resumed_at)
        else:
            later = waves > wave
            counts = trials[:, later], unsubscribes[:, later], complaints[:, later]
        for one in judge_guardrails(
            names,
            *counts,
            watch_unsubscribes=watched["unsubscribes"],
            watch_complaints=watched["complaints"],
            has_one_pmf=experiment.policy not in SEES_VECTORS,
        ):
            if one.arm in of_arms:
                judged[one.arm] = one
    return [judged[name] for name in names]


def _harms(session: Session, experiment_id: str, arms: Sequence[str]) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Wave of each stratum, and mails, unsubscribes and complaints of shape (n_arms, n_strata).

    A stratum is a wave's segment. Contacts without one are a stratum too; erased contacts of all segments are counted
    there, and as long as they are few that stratum's law holds nearly.
    """
    cell = LearnerCellRow
    rows = session.execute(
        select(cell.arm_id, cell.wave, cell.segment, cell.trials, cell.unsubscribes, cell.complaints).where(
            cell.experiment_id == experiment_id
        )
    ).all()
    return _by_stratum(rows, arms)


def _harms_shown_from(
    session: Session, experiment_id: str, arms: Sequence[str], since: datetime
) -> tuple[IntArray, IntArray, IntArray]:
    """Mails, unsubscribes and complaints of shape (n_arms, n_strata) of what was shown from ``since`` on."""
    segment = func.coalesce(DecisionRow.segment, "").label("segment")
    harms = [func.coalesce(func.sum(case((RewardRow.kind == kind, 1), else_=0)), 0) for kind in HARMS]
    rows = session.execute(
        select(DecisionRow.arm_id, DecisionRow.wave, segment, func.count(DecisionRow.decision_id.distinct()), *harms)
        .outerjoin(SendRow, SendRow.send_id == DecisionRow.send_id)
        .outerjoin(RewardRow, (RewardRow.decision_id == DecisionRow.decision_id) & RewardRow.kind.in_(HARMS))
        .where(
            DecisionRow.experiment_id == experiment_id,
            DecisionRow.is_holdout.is_(False),
            took_effect(),
            shown_at() >= since,
        )
        .group_by(DecisionRow.arm_id, DecisionRow.wave, segment)
    ).all()
    return _by_stratum(rows, arms)[1:]


def _by_stratum(rows: Sequence[Any], arms: Sequence[str]) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """Rows of arm, wave, segment, mails, unsubscribes and complaints as arrays, strata in the order of the waves."""
    strata = sorted({(wave, segment) for _, wave, segment, *_ in rows})
    column = {stratum: i for i, stratum in enumerate(strata)}
    line = {arm: k for k, arm in enumerate(arms)}
    counts = np.zeros((3, len(arms), len(strata)), dtype=np.int64)
    for arm, wave, segment, *told in rows:
        counts[:, line[arm], column[wave, segment]] = told
    return np.array([wave for wave, _ in strata], dtype=np.int64), counts[0], counts[1], counts[2]
