"""What befalls an experiment and its arms after it was opened: every change is kept, with who made it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.errors import Conflict, Invalid, NotFound
from service.flow.decide import Arm, check_features, withdraw
from service.flow.decide.experiment import LEAST_FLOOR
from service.flow.reward import arms_in_play, arms_of, renew_snapshot
from service.flow.schedule.writing import GRACE
from service.tables import ArmRow, CampaignRow, DecisionRow, ExperimentRow, SnapshotRow

#: What may change while an experiment runs: nothing that would give its earlier decisions another meaning.
EDITABLE = ("name", "floor", "explore_share", "guardrails")
#: What it asks, fixed when it is opened.
FIXED = (
    "kind", "slot", "reward", "reward_window_hours", "policy", "salt", "holdout_share", "sticky", "segment_by",
    "context", "half_life_days", "planned_sends", "control", "maximum_change", "minimum_per_arm", "weights", "arms",
)  # fmt: skip
GUARDRAILS = ("unsubscribes", "complaints")
MAX_ARMS = 100
#: A longer history keeps its newest entries.
HISTORY_LENGTH = 1_000


def find_experiment(session: Session, experiment_id: str, *, for_update: bool = False) -> ExperimentRow:
    """The experiment's row.

    Raises
    ------
    NotFound
        If there is none of that id.
    """
    experiment = session.get(ExperimentRow, experiment_id, with_for_update=for_update or None)
    if experiment is None:
        raise NotFound(f"there is no experiment {experiment_id[:60]!r}; GET /v1/experiments lists them")
    return experiment


def history_of(experiment: ExperimentRow) -> list[dict[str, Any]]:
    """Changes since it was opened, oldest first: when (RFC 3339), what, who."""
    return list(experiment.settings.get("history", []))


def add_arm(session: Session, experiment_id: str, arm: Arm, *, who: str, now: datetime) -> ArmRow:
    """A new arm, in the draw at once: a snapshot with it is taken here.

    What the other arms have shown is kept; reports compare the new arm within the time in which it ran.

    Raises
    ------
    Conflict
        If the experiment has ended, has an arm of that id, has a fixed split, or is part of an approved campaign.
    Invalid
        If the arm says nothing, a number of its features is not finite or too large, or the floor does not fit one
        arm more.
    """
    experiment = _changeable(session, experiment_id)
    _check_approved(session, experiment_id, now)
    arms = arms_of(session, experiment_id)
    if any(row.arm_id == arm.arm_id for row in arms):
        raise Conflict(f"experiment {experiment_id} has an arm {arm.arm_id!r} already; give the new one another id")
    if experiment.policy == "fixed":
        raise Conflict(
            f"experiment {experiment_id} has a fixed split that gives {arm.arm_id!r} nothing; end it and open a new one"
        )
    if not arm.content.strip():
        raise Invalid(f"arm {arm.arm_id!r} has no text; write what it says")
    check_features(arm)
    if len(arms) >= MAX_ARMS:
        raise Invalid(f"an experiment takes {MAX_ARMS} arms; end this one and open a new one")
    _check_floor(experiment.floor, len(arms_in_play(session, experiment_id)) + 1)
    row = ArmRow(
        experiment_id=experiment_id,
        arm_id=arm.arm_id,
        position=max(other.position for other in arms) + 1,
        content=arm.content,
        features=dict(arm.features),
        status="running",
        created_at=now,
    )
    session.add(row)
    _note(experiment, f"arm {arm.arm_id!r} added", who=who, now=now)
    session.flush()
    renew_snapshot(session, experiment, now=now)
    return row


def pause_arm(session: Session, experiment_id: str, arm_id: str, *, reason: str, who: str, now: datetime) -> ArmRow:
    """Take an arm out of the draw at once, of waiting mails too; what it has shown goes on being rewarded."""
    return _turn_arm(session, experiment_id, arm_id, "paused", reason, who, now)


def resume_arm(session: Session, experiment_id: str, arm_id: str, *, reason: str, who: str, now: datetime) -> ArmRow:
    """Put a paused arm back into the draw; the guardrails judge it by what happens from here on."""
    return _turn_arm(session, experiment_id, arm_id, "running", reason, who, now)


def retire_arm(session: Session, experiment_id: str, arm_id: str, *, reason: str, who: str, now: datetime) -> ArmRow:
    """Take an arm out of the draw for good; rewards still to come are credited to it all the same."""
    return _turn_arm(session, experiment_id, arm_id, "retired", reason, who, now)


def rewrite_arm(session: Session, experiment_id: str, arm_id: str, content: str, *, who: str, now: datetime) -> ArmRow:
    """Change what an arm says, as long as it was never drawn.

    Raises
    ------
    Conflict
        If it was: what was shown under its name would no longer be what it says. Or if an approved campaign shows it.
    """
    experiment = _changeable(session, experiment_id)
    _check_approved(session, experiment_id, now)
    arm = _arm(session, experiment_id, arm_id)
    drawn = select(DecisionRow.decision_id).where(
        DecisionRow.experiment_id == experiment_id, DecisionRow.arm_id == arm_id
    )
    if session.scalar(drawn.limit(1)) is not None:
        raise Conflict(
            f"arm {arm_id!r} was drawn already, so its text stays; retire it and add another, "
            "or end the experiment and open a new one"
        )
    if not content.strip():
        raise Invalid(f"arm {arm_id!r} would have no text; write what it says")
    arm.content = content
    _note(experiment, f"arm {arm_id!r} rewritten", who=who, now=now)
    session.flush()
    return arm


def pause_experiment(session: Session, experiment_id: str, *, reason: str, who: str, now: datetime) -> ExperimentRow:
    """Draw no arm until it is resumed: campaigns send the template's own text."""
    return _turn(session, experiment_id, "paused", reason, who, now)


def resume_experiment(session: Session, experiment_id: str, *, reason: str, who: str, now: datetime) -> ExperimentRow:
    """Draw again."""
    return _turn(session, experiment_id, "running", reason, who, now)


def end_experiment(session: Session, experiment_id: str, *, reason: str, who: str, now: datetime) -> ExperimentRow:
    """Draw no more; rewards still to come are counted, and the report stays."""
    return _turn(session, experiment_id, "ended", reason, who, now)


def edit_experiment(
    session: Session, experiment_id: str, changes: Mapping[str, Any], *, who: str, now: datetime
) -> ExperimentRow:
    """Change what may change while an experiment runs: name, floor, explore_share, guardrails.

    A new floor or explore share is in force at once, by a snapshot of its own.

    Raises
    ------
    Conflict
        For what is fixed when it is opened, and if it has ended.
    Invalid
        Naming the value and its limit.
    """
    experiment = _changeable(session, experiment_id)
    unknown = [name for name in changes if name not in EDITABLE and name not in FIXED]
    if unknown:
        raise Invalid(f"{', '.join(sorted(unknown))} is not known; {', '.join(EDITABLE)} and status can be changed")
    fixed = [name for name in changes if name in FIXED]
    if fixed:
        raise Conflict(
            f"{', '.join(sorted(fixed))} of experiment {experiment_id} cannot change, because what it has shown would "
            "mean something else; end it and open a new one"
        )
    if not changes:
        raise Invalid(f"nothing is to be changed; give one of {', '.join(EDITABLE)}, status")
    if "name" in changes:
        name = str(changes["name"]).strip()
        if not 0 < len(name) <= 200:
            raise Invalid(f"name has {len(name)} characters; write 1 to 200")
        _note(experiment, f"name {experiment.name!r} → {name!r}", who=who, now=now)
        experiment.name = name
    if "floor" in changes:
        floor = float(changes["floor"])
        _check_floor(floor, len(arms_in_play(session, experiment_id)))
        _note(experiment, f"floor {experiment.floor:g} → {floor:g}", who=who, now=now)
        experiment.floor = floor
    if "explore_share" in changes:
        share = float(changes["explore_share"])
        if not 0 <= share <= 1:
            raise Invalid(f"explore_share {share} is outside 0 to 1")
        _note(experiment, f"explore_share {experiment.explore_share:g} → {share:g}", who=who, now=now)
        experiment.explore_share = share
    if "guardrails" in changes:
        guardrails = check_guardrails(changes["guardrails"])
        experiment.settings = {**experiment.settings, "guardrails": guardrails_of(experiment) | guardrails}
        said = ", ".join(f"{name} {'on' if is_on else 'off'}" for name, is_on in sorted(guardrails.items()))
        _note(experiment, f"guardrails: {said}", who=who, now=now)
    session.flush()
    if {"floor", "explore_share"} & changes.keys():
        renew_snapshot(session, experiment, now=now)
    return experiment


def guardrails_of(experiment: ExperimentRow) -> dict[str, bool]:
    """Which guardrails stand; all of them unless it was said otherwise."""
    return dict.fromkeys(GUARDRAILS, True) | dict(experiment.settings.get("guardrails") or {})


def check_guardrails(guardrails: Mapping[str, Any]) -> dict[str, bool]:
    """The switches, if they are some of those that there are."""
    odd = {name: value for name, value in guardrails.items() if name not in GUARDRAILS or not isinstance(value, bool)}
    if odd:
        raise Invalid(f'guardrails {odd} are not understood; write {{"unsubscribes": true, "complaints": true}}')
    return dict(guardrails)


def newest_snapshot(session: Session, experiment_id: str) -> SnapshotRow:
    """The snapshot in force; every experiment has one from its opening on."""
    newest = select(func.max(SnapshotRow.snapshot_no)).where(SnapshotRow.experiment_id == experiment_id)
    return session.scalars(select(SnapshotRow).where(SnapshotRow.snapshot_no == newest.scalar_subquery())).one()


def _turn(session: Session, experiment_id: str, status: str, reason: str, who: str, now: datetime) -> ExperimentRow:
    experiment = _changeable(session, experiment_id)
    if experiment.status == status:
        raise Conflict(f"experiment {experiment_id} is {status} already")
    experiment.status = status
    if status == "ended":
        experiment.ended_at = now
    _note(experiment, _said(f"experiment {_WORDS[status]}", reason), who=who, now=now)
    session.flush()
    if status != "running":
        withdraw(session, experiment_id)
    return experiment


#: What turning something to a status is called.
_WORDS = {"running": "resumed", "paused": "paused", "retired": "retired", "ended": "ended"}


def _turn_arm(
    session: Session, experiment_id: str, arm_id: str, status: str, reason: str, who: str, now: datetime
) -> ArmRow:
    experiment = _changeable(session, experiment_id)
    arm = _arm(session, experiment_id, arm_id)
    if arm.status == "retired":
        raise Conflict(f"arm {arm_id!r} is retired and stays so; add its text again under another id")
    if arm.status == status:
        raise Conflict(f"arm {arm_id!r} is {status} already")
    arm.status, arm.status_at = status, now
    arm.status_reason = f"{reason or _WORDS[status]} (by {who})"[:300]
    _note(experiment, _said(f"arm {arm_id!r} {_WORDS[status]}", reason), who=who, now=now)
    session.flush()
    if status != "running":
        withdraw(session, experiment_id, [arm_id])
    return arm


def _changeable(session: Session, experiment_id: str) -> ExperimentRow:
    experiment = find_experiment(session, experiment_id, for_update=True)
    if experiment.status == "ended":
        raise Conflict(f"experiment {experiment_id} has ended, and nothing of it changes any more; open a new one")
    return experiment


def _check_approved(session: Session, experiment_id: str, now: datetime) -> None:
    """Refuse text that nobody has agreed to while an approved campaign, scheduled and in its window, would show it."""
    approved = session.execute(
        select(CampaignRow.campaign_id, CampaignRow.experiments, CampaignRow.window_end).where(
            CampaignRow.approved_digest.is_not(None),
            CampaignRow.status.in_(("scheduled", "paused")),
            CampaignRow.window_end > now - GRACE,
        )
    )
    for campaign_id, experiments, window_end in approved:
        if experiment_id in experiments:
            raise Conflict(
                f"experiment {experiment_id} is part of campaign {campaign_id}, which was approved as it is and sends "
                f"until {window_end + GRACE:%Y-%m-%d %H:%M} UTC: pause or retire an arm, or cancel the campaign and "
                "make a new one; arms can be added and rewritten again after that"
            )


def _arm(session: Session, experiment_id: str, arm_id: str) -> ArmRow:
    arm = session.get(ArmRow, (experiment_id, arm_id))
    if arm is None:
        known = ", ".join(row.arm_id for row in arms_of(session, experiment_id))
        raise NotFound(f"experiment {experiment_id} has no arm {arm_id[:60]!r}; it has {known}")
    return arm


def _check_floor(floor: float, n_arms: int) -> None:
    if not (floor >= LEAST_FLOOR and floor * n_arms <= 1):
        raise Invalid(
            f"a floor of {floor:g} for {n_arms} arms does not fit; choose {LEAST_FLOOR:g} ≤ floor ≤ {1 / n_arms:.3f}"
        )


def _said(what: str, reason: str) -> str:
    return f"{what}: {reason}" if reason else what


def _note(experiment: ExperimentRow, what: str, *, who: str, now: datetime) -> None:
    entry = {"at": now.isoformat(), "what": what[:500], "who": who}
    history = [*history_of(experiment), entry][-HISTORY_LENGTH:]
    experiment.settings = {**experiment.settings, "history": history}
