"""Outcomes: what a model may be trained to foretell, as users declare it, with live counts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Query, Request, Response

from features.lake import Lake
from features.store import StoreError
from service.api.idempotency import REPLAYED, Asked, Replayed, once
from service.api.installation import Installation, allow, as_problem, installation
from service.errors import BadRequest, Unavailable
from service.outcomes import Declared, declare, find_outcome, list_outcomes, shown_outcomes
from training.outcomes import read

router = APIRouter(prefix="/v1/outcomes", tags=["outcomes"])

_EXAMPLE = {
    "name": "silent_regulars",
    "population": {"all": [{"feature": "orders_ever", "at_least": 3}, {"feature": "days_since_order", "at_most": 90}]},
    "event": "Order Completed",
    "happens": False,
    "within_days": 60,
}
_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": {"type": "object"}, "example": _EXAMPLE},
            "application/yaml": {"schema": {"type": "string"}},
        },
    }
}
_COUNTS = Query(True, alias="counts", description="false leaves the live counts out, which read the lake.")


async def _text(request: Request) -> str:
    try:
        return (await request.body()).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 ({error.reason} at byte {error.start}); send YAML or JSON") from None


@router.post("", status_code=201, openapi_extra=_BODY)
def declare_outcome(
    response: Response,
    text: str = Depends(_text),
    replace: bool = Query(False, description="Put it in the place of another declaration of that name."),
    with_counts: bool = _COUNTS,
    asked: Asked = Depends(once("write")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Declare an outcome in JSON or YAML; 200 if it was declared before. `kairos train NAME` makes a model of it.

    Under the same Idempotency-Key it is declared once; the live counts are those of this moment.
    """
    with as_problem():
        declaration = read(text)
    now = here.clock.now()
    try:
        with here.database.writing() as session:
            asked.begin(session, now=now)
            created = declare(session, declaration, now=now, replace=replace)
            # The counts read the lake, which must not be done in here: they are made anew each time.
            asked.keep(session, {}, 201 if created else 200)
    except Replayed as known:
        response.status_code, response.headers[REPLAYED] = known.answer.status, "true"
    else:
        response.status_code = 201 if created else 200
    return read_outcome(declaration.name, with_counts, here)


@router.get("", dependencies=[Depends(allow("read"))])
def list_declared(with_counts: bool = _COUNTS, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Every outcome: those that ship, then those that were declared."""
    with here.database.reading() as session:
        outcomes = list_outcomes(session)
    return {"items": _shown(outcomes, with_counts, here), "next_cursor": None}


@router.get("/{name}", dependencies=[Depends(allow("read"))])
def read_outcome(name: str, with_counts: bool = _COUNTS, here: Installation = Depends(installation)) -> dict[str, Any]:
    """One outcome, with whom it asks about now and what came of the last closed window."""
    with here.database.reading() as session:
        outcome = find_outcome(session, name)
    return _shown([outcome], with_counts, here)[0]


def _shown(outcomes: list[Declared], with_counts: bool, here: Installation) -> list[dict[str, Any]]:
    lake = Lake(here.settings.lake, here.settings.buckets) if with_counts else None
    try:
        return shown_outcomes(here.database, lake, outcomes, now=here.clock.now())
    except StoreError as error:
        raise Unavailable(f"the lake cannot be counted: {error}") from error
