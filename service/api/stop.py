"""Stop everything, and go on: every send halts within seconds, whoever started it."""

from __future__ import annotations

import dataclasses
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from service.api.installation import Installation, allow, installation
from service.campaigns import resume_sending, stop_sending
from service.halts import EVERYTHING, halts_in_force
from service.keys import Key

router = APIRouter(prefix="/v1", tags=["stop"])

SCOPE = "everything, stream:marketing, stream:transactional or mailbox:<provider>"


class StopBody(BaseModel):
    """Why, and what."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=300)
    scope: str = Field(EVERYTHING, max_length=60, description=SCOPE)


class ResumeBody(BaseModel):
    """What may leave again."""

    model_config = ConfigDict(extra="forbid")

    scope: str = Field(EVERYTHING, max_length=60, description=SCOPE)


@router.get("/stop", dependencies=[Depends(allow("read"))])
def read(here: Installation = Depends(installation)) -> dict[str, Any]:
    """What is stopped now, since when, by whom and why; halts that Kairos set by itself among them."""
    with here.database.reading() as session:
        return stopped(session)


@router.post("/stop")
def stop(
    body: StopBody, key: Key = Depends(allow("send")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Let nothing leave until it is resumed; mails that a worker holds are taken back. Nothing planned is lost."""
    with here.database.writing() as session:
        taken = stop_sending(session, reason=body.reason, by=key.key_id, now=here.clock.now(), scope=body.scope)
        return stopped(session) | {"taken_back": taken}


@router.post("/resume")
def resume(
    body: ResumeBody | None = None, key: Key = Depends(allow("send")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Lift a halt. What is too late by now expires; what would leave in quiet hours waits for the morning."""
    scope = (body or ResumeBody()).scope
    with here.database.writing() as session:
        overdue = resume_sending(session, here.settings, by=key.key_id, now=here.clock.now(), scope=scope)
        done = {"expired": 0, "postponed": 0} if overdue is None else dataclasses.asdict(overdue)
        return stopped(session) | {"lifted": overdue is not None} | done


def stopped(session: Session) -> dict[str, Any]:
    """The halts in force as they are shown."""
    halts = halts_in_force(session)
    return {
        "stopped": any(row.scope == EVERYTHING for row in halts),
        "halts": [
            {"id": row.halt_id, "scope": row.scope, "reason": row.reason, "by": row.halted_by, "at": row.halted_at}
            for row in halts
        ],
    }
