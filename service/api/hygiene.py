"""List hygiene: looks through the list, applied or taken back."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select

from features.tables import from_micros, to_micros
from service.api.idempotency import Asked, once
from service.api.installation import Installation, allow, installation
from service.api.paging import Cursor, Limit, before, page, position
from service.hygiene import apply_look, find_look, revert_look, rules_of, shown_look
from service.job_queue import enqueue
from service.tables import HygieneRow

router = APIRouter(prefix="/v1/hygiene", tags=["hygiene"])


class LookBody(BaseModel):
    """What to look for; everything if nothing is said."""

    model_config = ConfigDict(extra="forbid")

    findings: list[str] | None = Field(None, description="Only these findings.")
    least_deliveries: int | None = Field(None, description="Mails without an answer (default 10).")
    least_days: int | None = Field(None, description="Days since the first of them (default 90).")
    soft_bounces: int | None = Field(None, description="Soft bounces (default 3).")
    soft_days: int | None = Field(None, description="Days that they lie within (default 180).")


class ApplyBody(BaseModel):
    """Which findings to act on; all that can be applied if nothing is said."""

    model_config = ConfigDict(extra="forbid")

    findings: list[str] | None = None


@router.post("", status_code=202)
def begin_look(
    wanted: LookBody, asked: Asked = Depends(once("write")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Let a worker look through the list; `GET /v1/jobs/{id}` says when it is done, and the look's id."""
    rules, now = rules_of(**wanted.model_dump()), here.clock.now()
    with here.database.writing() as session:
        asked.begin(session, now=now)
        job_id = enqueue(session, "hygiene", {"rules": rules.as_json(), "by": asked.key.key_id}, now=now)
        return asked.keep(session, {"job_id": job_id, "state": "queued"}, 202)


@router.get("", dependencies=[Depends(allow("read"))])
def list_looks(limit: Limit = 50, cursor: Cursor = None, here: Installation = Depends(installation)) -> dict[str, Any]:
    """The looks, newest first, with their counts."""
    key = here.settings.signing_key
    query = select(HygieneRow).order_by(HygieneRow.created_at.desc(), HygieneRow.hygiene_id.desc())
    last = position(key, cursor, "hygiene")
    if last is not None:
        query = query.where(before((HygieneRow.created_at, HygieneRow.hygiene_id), (from_micros(last[0]), last[1])))
    with here.database.reading() as session:
        rows = session.scalars(query.limit(limit + 1)).all()
    return page(
        key,
        rows,
        limit,
        lambda row: {
            "id": row.hygiene_id,
            "state": row.state,
            "created_at": row.created_at,
            "created_by": row.created_by,
            **row.report,
        },
        lambda row: [to_micros(row.created_at), row.hygiene_id],
        "hygiene",
    )


@router.get("/{hygiene_id}", dependencies=[Depends(allow("read"))])
def read_look(hygiene_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A look: counts by finding, with some contacts of each by user id."""
    with here.database.reading() as session:
        return shown_look(session, find_look(session, hygiene_id))


@router.post("/{hygiene_id}/apply", dependencies=[Depends(allow("write"))])
def apply(
    hygiene_id: str, asked: ApplyBody | None = None, here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Suppress the addresses that the look found. Nothing is deleted; `revert` takes it back."""
    with here.database.writing() as session:
        done = apply_look(
            session,
            hygiene_id,
            pepper=here.settings.pepper,
            now=here.clock.now(),
            findings=asked.findings if asked else None,
        )
    return {"id": hygiene_id, "state": "applied", **done}


@router.post("/{hygiene_id}/revert", dependencies=[Depends(allow("write"))])
def revert(hygiene_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Take an applied look back: its addresses, and no others, get mail again."""
    with here.database.writing() as session:
        freed = revert_look(session, hygiene_id, pepper=here.settings.pepper, now=here.clock.now())
    return {"id": hygiene_id, "state": "reverted", "freed": freed}
