"""Evaluations: what another policy would have earned on an experiment's own log."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.api.installation import Installation, allow, aware, installation
from service.evaluation import evaluate_experiment

router = APIRouter(prefix="/v1/experiments", tags=["experiments"])

#: A request evaluates no more than these: a million take minutes and gigabytes. The command has no limit.
MOST_DECISIONS = 200_000
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class TargetBody(BaseModel):
    """The policy that is asked about: one of the four."""

    model_config = ConfigDict(extra="forbid")

    policy: Literal["uniform", "logged", "best_arm"] | None = None
    arm: str | None = Field(None, min_length=1, max_length=60)
    weights: dict[str, Weight] | None = Field(None, max_length=100)
    snapshot: str | None = Field(None, min_length=1, max_length=60)

    @model_validator(mode="after")
    def _one_of_four(self) -> TargetBody:
        named = sorted(self.model_dump(exclude_none=True))
        if len(named) != 1:
            raise ValueError(f"a target is one of policy, arm, weights or snapshot, not {named}; name exactly one")
        return self


class EvaluationBody(BaseModel):
    """What is asked: a target, and the decisions it is judged on."""

    model_config = ConfigDict(extra="forbid")

    target: TargetBody
    since: datetime | None = Field(None, description="Decisions taken from here on. Default: from the first.")
    until: datetime | None = Field(None, description="Decisions taken before this instant. Default: to the last.")
    force: bool = Field(False, description="Give values where they would be refused, with what they rest on.")


@router.post("/{experiment_id}/evaluate", dependencies=[Depends(allow("read"))])
def evaluate_policy(
    experiment_id: str, body: EvaluationBody, here: Installation = Depends(installation)
) -> dict[str, Any]:
    """What the target would have earned a decision, by seven estimators with intervals, or why that cannot be told."""
    with here.database.reading() as session:
        return evaluate_experiment(
            session,
            experiment_id,
            body.target.model_dump(exclude_none=True),
            now=here.clock.now(),
            since=None if body.since is None else aware(body.since, "since"),
            until=None if body.until is None else aware(body.until, "until"),
            force=body.force,
            most=MOST_DECISIONS,
        )
