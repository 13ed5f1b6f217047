"""Bounces and complaints as raw messages, as a mail server hands them over."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.concurrency import run_in_threadpool

from service.api.installation import Installation, allow, installation
from service.bounces import read_report, record_reports

router = APIRouter(prefix="/v1/bounces", tags=["bounces"], dependencies=[Depends(allow("ingest"))])


@router.post(
    "",
    openapi_extra={
        "requestBody": {"content": {"message/rfc822": {"schema": {"type": "string", "format": "binary"}}}},
    },
)
async def take_report(request: Request, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Take a delivery status notification, a feedback report, or any raw message that came to the return path.

    The answer says what it was. What is no report, or of no mail of ours, is answered with 200 too: a mail server that
    pipes its messages here must not send them back. The same message again changes nothing.
    """
    return await run_in_threadpool(_take, here, await request.body())


def _take(here: Installation, raw: bytes) -> dict[str, Any]:
    report = read_report(raw)
    settings = here.settings
    with here.database.writing() as session:
        [done] = record_reports(
            session,
            [report],
            signing_key=settings.signing_key,
            pepper=settings.pepper,
            now=here.clock.now(),
            has_return_paths=bool(settings.return_path_domain),
        )
    return {
        "outcome": done.outcome,
        "why": done.why,
        "send_id": None if done.send_id is None else str(done.send_id),
        "severity": done.severity,
        "status": report.status,
        "is_suppressed": done.is_suppressed,
    }
