"""Models: which version of each serves, what it says of itself, what outcomes say of it; jobs that change it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from service.api.installation import Installation, allow, installation
from service.errors import Invalid, NotFound
from service.flow.predict import MODELS
from service.job_queue import enqueue, find_job
from service.model_quality import quality
from service.outcomes import find_outcome
from service.tables import JobRow, ServingModelRow

router = APIRouter(prefix="/v1", tags=["models"])


class PromotionBody(BaseModel):
    """Which version is to serve."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)


class TrainingBody(BaseModel):
    """How to train."""

    model_config = ConfigDict(extra="forbid")

    horizon_days: int | None = Field(default=None, ge=1, le=365)


@router.get("/models", dependencies=[Depends(allow("read"))])
def list_models(here: Installation = Depends(installation)) -> dict[str, Any]:
    """Every model that was promoted, with the version that serves."""
    with here.database.reading() as session:
        rows = session.scalars(select(ServingModelRow).order_by(ServingModelRow.name)).all()
    return {"items": [_shown(row, here) for row in rows], "next_cursor": None}


@router.get("/models/{name}", dependencies=[Depends(allow("read"))])
def read_model(name: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """One model, with its card: data, rung, judgement."""
    row = _serving(name, here)
    return _shown(row, here) | {"card": _card(Path(row.path))}


@router.get("/models/{name}/quality", dependencies=[Depends(allow("read"))])
def read_quality(
    name: str, limit: int = Query(30, ge=1, le=200), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """What outcomes say of the model: the plain sentence, the test in force, judged scorings, what befell it."""
    with here.database.reading() as session:
        return quality(session, name, limit=limit)


@router.post("/models/{name}/promote", status_code=202, dependencies=[Depends(allow("write"))])
def promote(name: str, body: PromotionBody, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A job that lets a registered version serve, once its files prove whole."""
    _known(name, here)
    return _asked(here, "promote", {"name": name, "version": body.version})


@router.post("/models/{name}/rollback", status_code=202, dependencies=[Depends(allow("write"))])
def rollback(name: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A job that lets the version before serve again."""
    _serving(name, here)
    return _asked(here, "rollback", {"name": name})


@router.post("/models/{name}/train", status_code=202, dependencies=[Depends(allow("write"))])
def train(name: str, body: TrainingBody | None = None, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A job that trains, judges and registers a version; it serves if it passes."""
    _known(name, here)
    asked = body or TrainingBody()
    return _asked(here, "train", {"name": name, "horizon_days": asked.horizon_days})


@router.get("/jobs/{job_id}", dependencies=[Depends(allow("read"))])
def read_job(job_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """What became of a job: queued, running, done or failed, with a message."""
    with here.database.reading() as session:
        return _shown_job(find_job(session, job_id))


def _asked(here: Installation, kind: str, parameters: dict[str, Any]) -> dict[str, Any]:
    with here.database.writing() as session:
        job_id = enqueue(session, kind, parameters, now=here.clock.now())
        return _shown_job(find_job(session, job_id))


def _known(name: str, here: Installation) -> None:
    if name in MODELS:
        return
    with here.database.reading() as session:
        try:
            find_outcome(session, name)
        except NotFound:
            raise Invalid(
                f"there is no model {name[:60]!r}; choose from {', '.join(MODELS)}, or declare an outcome of that name"
            ) from None


def _serving(name: str, here: Installation) -> ServingModelRow:
    with here.database.reading() as session:
        row = session.get(ServingModelRow, name)
    if row is None:
        raise NotFound(f"no model {name[:60]!r} was promoted; `kairos train {name[:60]}` trains and promotes one")
    return row


def _shown_job(row: JobRow) -> dict[str, Any]:
    names = ("job_id", "kind", "parameters", "state", "message", "created_at", "started_at", "finished_at")
    return {name: getattr(row, name) for name in names}


def _shown(row: ServingModelRow, here: Installation) -> dict[str, Any]:
    loaded = here.serving.get(row.name)
    return {
        "name": row.name,
        "version": row.version,
        "previous_version": row.previous_version,
        "challenger_version": row.challenger_version,
        "promoted_at": row.promoted_at,
        "rung": None if loaded is None else loaded.rung,
        #: What this process has loaded; it follows a promotion within seconds.
        "loaded_version": None if loaded is None else loaded.version,
        #: Why something else answers than the version as it was trained; null if all is well.
        "why": here.serving.why.get(row.name),
        "fell_back_at": row.fell_back_at,
    }


def _card(folder: Path) -> dict[str, Any] | None:
    """The model's own description, one JSON file among its files."""
    try:
        return json.loads((folder / "model.json").read_text())
    except (OSError, ValueError):
        return None
