"""Experiments: questions asked of the recipients, their arms and what they have shown so far."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import select

from features.tables import from_micros, to_micros
from service.api.idempotency import Asked, once
from service.api.installation import Installation, allow, installation
from service.api.paging import Cursor, Limit, before, page, position
from service.errors import Invalid
from service.experiments import (
    add_arm,
    edit_experiment,
    end_experiment,
    experiment_report,
    find_experiment,
    keep_base,
    pause_arm,
    pause_experiment,
    planning,
    plot_report,
    resume_arm,
    resume_experiment,
    retire_arm,
    rewrite_arm,
    shown_experiment,
    shown_experiments,
)
from service.experiments.planning import DEFAULT_PLANNED_SENDS
from service.flow.decide import Arm, NewExperiment, open_experiment
from service.keys import Key
from service.tables import ExperimentRow
from training.planning import LEAST_LIFT

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Above = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ArmBody(BaseModel):
    """One answer: the text of a subject or of a button, or the content of a block."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=60)
    text: str | None = Field(None, max_length=100_000)
    content: str | None = Field(None, max_length=100_000)
    features: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_of_both(self) -> ArmBody:
        if (self.text is None) == (self.content is None):
            raise ValueError(f"arm {self.id!r} needs either text (a subject, a button) or content (a block)")
        return self

    def arm(self) -> Arm:
        """As the flow has it."""
        return Arm(self.id, self.text if self.text is not None else str(self.content), self.features)


class ExperimentBody(BaseModel):
    """What is asked."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200)
    kind: Literal["subject", "cta", "block", "layout"]
    arms: list[ArmBody] = Field(max_length=100)
    slot: str = Field("", max_length=60)
    reward: str = "click"
    reward_window_hours: Annotated[float, Field(gt=0, le=24 * 90, allow_inf_nan=False)] = 72.0
    floor: Share = 0.05
    explore_share: Share = 0.0
    holdout_share: Share = 0.0
    policy: str | None = None
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] | None = None
    sticky: bool = False
    segment_by: dict[str, Any] | None = None
    context: dict[str, Any] | None = None
    half_life_days: Above | None = None
    planned_sends: Annotated[int, Field(ge=1, le=1_000_000_000)] = DEFAULT_PLANNED_SENDS
    control: str | None = Field(None, max_length=60)
    maximum_change: Above | None = None
    minimum_per_arm: Above | None = None
    guardrails: dict[str, bool] = {}


class ChangeBody(BaseModel):
    """What may change while it runs; a field that is fixed when it is opened is refused with 409."""

    model_config = ConfigDict(extra="allow")

    status: Literal["running", "paused", "ended"] | None = None
    reason: str = Field("", max_length=200)
    name: str | None = Field(None, min_length=1, max_length=200)
    floor: Share | None = None
    explore_share: Share | None = None
    guardrails: dict[str, bool] | None = None


class ArmChangeBody(BaseModel):
    """What may change of an arm."""

    model_config = ConfigDict(extra="forbid")

    status: Literal["running", "paused", "retired"] | None = None
    reason: str = Field("", max_length=200)
    text: str | None = Field(None, max_length=100_000)
    content: str | None = Field(None, max_length=100_000)


@router.post("", status_code=201)
def create_experiment(
    body: ExperimentBody, asked: Asked = Depends(once("write")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Open an experiment; it runs at once, with equal probabilities until answers come in."""
    arms = [arm.arm() for arm in body.arms]
    new = NewExperiment(**(body.model_dump(exclude={"arms"}) | {"arms": arms}))
    now = here.clock.now()
    with here.database.writing() as session:
        asked.begin(session, now=now)
        experiment_id = open_experiment(session, new, now=now)
        experiment = find_experiment(session, experiment_id)
        keep_base(session, experiment)
        shown = shown_experiment(session, experiment_id) | {"planning": planning(session, experiment)}
        return asked.keep(session, shown)


@router.get("", dependencies=[Depends(allow("read"))])
def list_experiments(
    limit: Limit = 50, cursor: Cursor = None, here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Experiments, newest first."""
    query = select(ExperimentRow).order_by(ExperimentRow.created_at.desc(), ExperimentRow.experiment_id.desc())
    last = position(here.settings.signing_key, cursor, "experiments")
    if last is not None:
        place = (ExperimentRow.created_at, ExperimentRow.experiment_id)
        query = query.where(before(place, (from_micros(last[0]), last[1])))
    with here.database.reading() as session:
        rows = session.scalars(query.limit(limit + 1)).all()
        shown = {one["id"]: one for one in shown_experiments(session, rows)}
    return page(
        here.settings.signing_key,
        rows,
        limit,
        lambda row: shown[row.experiment_id],
        lambda row: [to_micros(row.created_at), row.experiment_id],
        "experiments",
    )


@router.get("/{experiment_id}", dependencies=[Depends(allow("read"))])
def read_experiment(experiment_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """One experiment with its arms."""
    with here.database.reading() as session:
        return shown_experiment(session, experiment_id)


@router.get("/{experiment_id}/report", dependencies=[Depends(allow("read"))])
def report_experiment(experiment_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """What it has shown: counts of this moment, and comparisons that hold however often they are read."""
    with here.database.reading() as session:
        return experiment_report(session, experiment_id, now=here.clock.now())


@router.get(
    "/{experiment_id}/report.png",
    dependencies=[Depends(allow("read"))],
    response_class=Response,
    responses={200: {"content": {"image/png": {}}}},
)
def plot_experiment(experiment_id: str, here: Installation = Depends(installation)) -> Response:
    """The report as a picture: each arm's mean with its interval over time, and the shares of the draws."""
    with here.database.reading() as session:
        report = experiment_report(session, experiment_id, now=here.clock.now())
    return Response(plot_report(report), media_type="image/png", headers={"Cache-Control": "no-store"})


@router.get("/{experiment_id}/plan", dependencies=[Depends(allow("read"))])
def plan_experiment(
    experiment_id: str,
    sends: Annotated[int | None, Query(ge=1, le=1_000_000_000)] = None,
    lift: Annotated[float | None, Query(ge=LEAST_LIFT, le=100, allow_inf_nan=False)] = None,
    holdout_share: Annotated[float | None, Query(ge=0, le=0.9, allow_inf_nan=False)] = None,
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """How many sends a lift takes to prove, and which lift so many sends can prove."""
    with here.database.reading() as session:
        experiment = find_experiment(session, experiment_id)
        return planning(session, experiment, sends=sends, lift=lift, holdout_share=holdout_share)


@router.patch("/{experiment_id}")
def change_experiment(
    experiment_id: str,
    body: ChangeBody,
    here: Installation = Depends(installation),
    key: Key = Depends(allow("write")),
) -> dict[str, Any]:
    """Pause, resume or end it; change its name, floor, explore share or guardrails. What it asks stays as it is."""
    now, who = here.clock.now(), _who(key)
    changes = body.model_dump(exclude_unset=True, exclude_none=True, exclude={"status", "reason"})
    with here.database.writing() as session:
        if changes or body.status is None:
            edit_experiment(session, experiment_id, changes, who=who, now=now)
        if body.status is not None:
            turn = {"running": resume_experiment, "paused": pause_experiment, "ended": end_experiment}[body.status]
            turn(session, experiment_id, reason=body.reason, who=who, now=now)
        return shown_experiment(session, experiment_id)


@router.post("/{experiment_id}/arms", status_code=201)
def create_arm(
    experiment_id: str,
    body: ArmBody,
    here: Installation = Depends(installation),
    asked: Asked = Depends(once("write")),
) -> dict[str, Any]:
    """A new arm, in the draw at once."""
    now = here.clock.now()
    with here.database.writing() as session:
        asked.begin(session, now=now)
        add_arm(session, experiment_id, body.arm(), who=_who(asked.key), now=now)
        return asked.keep(session, shown_experiment(session, experiment_id))


@router.patch("/{experiment_id}/arms/{arm_id}")
def change_arm(
    experiment_id: str,
    arm_id: str,
    body: ArmChangeBody,
    here: Installation = Depends(installation),
    key: Key = Depends(allow("write")),
) -> dict[str, Any]:
    """Pause, resume or retire an arm, or give it another text while it was never drawn."""
    now, who = here.clock.now(), _who(key)
    text = body.text if body.text is not None else body.content
    if text is None and body.status is None:
        raise Invalid("nothing is to be changed; give status (running, paused, retired), text or content")
    with here.database.writing() as session:
        if text is not None:
            rewrite_arm(session, experiment_id, arm_id, text, who=who, now=now)
        if body.status is not None:
            turn = {"running": resume_arm, "paused": pause_arm, "retired": retire_arm}[body.status]
            turn(session, experiment_id, arm_id, reason=body.reason, who=who, now=now)
        return shown_experiment(session, experiment_id)


def _who(key: Key) -> str:
    return f"key {key.key_id}"
