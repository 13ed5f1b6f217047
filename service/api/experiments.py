"""Experiments: questions asked of the recipients, their arms and what they have shown so far."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.tables import from_micros, to_micros
from service.api.installation import Installation, allow, installation
from service.api.paging import Cursor, Limit, before, page, position
from service.campaigns import experiment_report
from service.errors import NotFound
from service.flow.decide import Arm, NewExperiment, open_experiment
from service.tables import ArmRow, ExperimentRow

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


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
    policy: str = "thompson"


@router.post("", status_code=201, dependencies=[Depends(allow("write"))])
def create_experiment(body: ExperimentBody, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Open an experiment; it runs at once, with equal probabilities until answers come in."""
    arms = [Arm(arm.id, arm.text if arm.text is not None else str(arm.content), arm.features) for arm in body.arms]
    new = NewExperiment(**(body.model_dump(exclude={"arms"}) | {"arms": arms}))
    with here.database.writing() as session:
        return shown_experiment(session, open_experiment(session, new, now=here.clock.now()))


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
        arms = _arms(session, [row.experiment_id for row in rows])
    return page(
        here.settings.signing_key,
        rows,
        limit,
        lambda row: _shown(row, arms.get(row.experiment_id, [])),
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
    """Arms with sends, successes, rate and interval, and the probabilities in force."""
    with here.database.reading() as session:
        return experiment_report(session, experiment_id, now=here.clock.now())


def shown_experiment(session: Session, experiment_id: str) -> dict[str, Any]:
    """An experiment as the API shows it.

    Raises
    ------
    NotFound
        If there is none of that id.
    """
    row = session.get(ExperimentRow, experiment_id)
    if row is None:
        raise NotFound(f"there is no experiment {experiment_id[:60]!r}; GET /v1/experiments lists them")
    return _shown(row, _arms(session, [experiment_id]).get(experiment_id, []))


def _arms(session: Session, experiment_ids: list[str]) -> dict[str, list[ArmRow]]:
    arms: dict[str, list[ArmRow]] = {}
    for arm in session.scalars(
        select(ArmRow).where(ArmRow.experiment_id.in_(experiment_ids)).order_by(ArmRow.position)
    ):
        arms.setdefault(arm.experiment_id, []).append(arm)
    return arms


def _shown(row: ExperimentRow, arms: list[ArmRow]) -> dict[str, Any]:
    return {
        "id": row.experiment_id,
        "name": row.name,
        "kind": row.kind,
        "slot": row.slot,
        "reward": row.reward,
        "reward_window_hours": row.reward_window_hours,
        "floor": row.floor,
        "explore_share": row.explore_share,
        "holdout_share": row.holdout_share,
        "policy": row.policy,
        "status": row.status,
        "created_at": row.created_at,
        "arms": [
            {"id": arm.arm_id, "content": arm.content, "features": arm.features, "status": arm.status} for arm in arms
        ],
    }
