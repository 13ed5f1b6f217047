"""Predictions: live ones for named contacts, stored scores for questions about everybody."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.contacts import find
from service.api.installation import Installation, allow, installation
from service.api.paging import Cursor, Limit, after, before, page, position
from service.errors import Invalid, NotFound
from service.flow.predict import Predictions, known_models, predict
from service.settings import Settings
from service.tables import ContactRow, PredictionRow

router = APIRouter(prefix="/v1/predictions", tags=["predictions"], dependencies=[Depends(allow("read"))])

#: Contacts of one live call.
MAX_LIVE = 1_000


class PredictionRequest(BaseModel):
    """Whom and what to predict."""

    model_config = ConfigDict(extra="forbid")

    user_ids: list[str] = Field(min_length=1, max_length=MAX_LIVE)
    models: list[str] | None = Field(None, min_length=1, description="By name; every model that serves by default.")


@router.post("", response_model=None)
def predict_live(asked: PredictionRequest, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Live predictions of up to 1,000 contacts; null with a why where nothing can be said."""
    known = known_models(here.serving)
    for name in asked.models or ():
        if name not in known:
            raise Invalid(f"there is no model {name[:60]!r}; choose from {', '.join(known)}")
    user_ids = list(dict.fromkeys(asked.user_ids))
    now = here.clock.now()
    with here.database.reading() as session:
        found = find(session, user_ids)
        missing = [user_id for user_id in user_ids if user_id not in found]
        present = [user_id for user_id in user_ids if user_id in found]
        if not present:
            raise NotFound(f"there is no contact {missing[0][:80]!r}; send an identify or track call for it first")
        predictions = predict(
            session,
            [found[user_id] for user_id in present],
            here.serving,
            as_of=now,
            models=asked.models,
            cache=here.cache,
            record=here.vectors.record,
        )
        return {
            "predictions": shown_predictions(session, predictions, present, here.settings),
            "unknown": missing,
        }


@router.get("")
def list_predictions(
    model: str = Query(max_length=60, description="churn, conversion, send_hour, or a declared outcome."),
    minimum: Annotated[float, Query(alias="min", ge=0, le=1)] = 0.0,
    maximum: Annotated[float, Query(alias="max", ge=0, le=1)] = 1.0,
    sort: Literal["-probability", "probability"] = "-probability",
    limit: Limit = 50,
    cursor: Cursor = None,
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Stored scores of the last scoring, between two probabilities."""
    if minimum > maximum:
        raise Invalid(f"min {minimum} lies above max {maximum}; exchange them")
    asked = ("predictions", model, minimum, maximum, sort)
    last = position(here.settings.signing_key, cursor, *asked)
    place = (PredictionRow.probability, PredictionRow.contact_key)
    query = (
        select(PredictionRow, ContactRow.user_id)
        .join(ContactRow, ContactRow.contact_key == PredictionRow.contact_key)
        .where(PredictionRow.model == model, PredictionRow.probability.between(minimum, maximum))
    )
    if sort == "-probability":
        query = query.order_by(PredictionRow.probability.desc(), PredictionRow.contact_key.desc())
        query = query if last is None else query.where(before(place, last))
    else:
        query = query.order_by(PredictionRow.probability, PredictionRow.contact_key)
        query = query if last is None else query.where(after(place, last))
    with here.database.reading() as session:
        rows = session.execute(query.limit(limit + 1)).all()
        if not rows and last is None and not _was_scored(session, model):
            raise NotFound(f"no scores of {model!r} are stored; run `kairos score --model {model}`")
    return page(
        here.settings.signing_key,
        rows,
        limit,
        lambda row: {
            "user_id": row[1],
            "model": row[0].model,
            "probability": row[0].probability,
            "percentile": row[0].percentile,
            "as_of": row[0].as_of,
            "model_version": row[0].model_version,
            "detail": row[0].detail,
        },
        lambda row: [row[0].probability, row[0].contact_key],
        *asked,
    )


def shown_predictions(
    session: Session, predictions: Predictions, user_ids: Sequence[str], settings: Settings
) -> list[dict[str, Any]]:
    """Predictions as the API answers them, one object a contact; ``why`` says what each null is for."""
    keys = [int(key) for key in predictions.contact_keys]
    asked = select(ContactRow.contact_key, ContactRow.timezone, ContactRow.timezone_source)
    zones: dict[int, tuple[str | None, str | None]] = {
        key: (zone, source) for key, zone, source in session.execute(asked.where(ContactRow.contact_key.in_(keys)))
    }
    shown = []
    for i, (user_id, key) in enumerate(zip(user_ids, keys, strict=True)):
        one: dict[str, Any] = {"user_id": user_id, "as_of": predictions.as_of}
        why = dict(predictions.missing)
        one.update(dict.fromkeys(why))
        for name, scored in predictions.scored.items():
            reason = scored.why[i]
            if reason is not None:
                one[name], why[name] = None, reason
                continue
            one[name] = {
                "probability": float(scored.probability[i]),
                "percentile": None if math.isnan(scored.percentile[i]) else float(scored.percentile[i]),
                "rung": scored.rungs[i],
                "rung_reason": scored.rung_reasons[i],
                "model_version": scored.version,
                "horizon_days": scored.horizon_days,
                **(scored.outlook[i] or {}),
                "reasons": [dataclasses.asdict(found) for found in scored.reasons[i]],
            }
        if predictions.hours is not None:
            hours = predictions.hours
            usable = bool(hours.is_usable[i])
            zone, source = zones.get(key, (None, None))
            one["send_hour"] = {
                "best_local_hour": int(hours.probabilities[i].argmax()) if usable else None,
                "timezone": zone or settings.timezone,
                "timezone_source": source or "explicit" if zone else "installation",
                "probabilities": hours.probabilities[i].tolist(),
                "level": hours.level[i],
                "rung": hours.rung,
                "model_version": hours.version,
            }
            if not usable:
                why["send_hour.best_local_hour"] = "the hours do not provably differ, so none is called best"
        one["why"] = why
        shown.append(one)
    return shown


def _was_scored(session: Session, model: str) -> bool:
    return session.scalar(select(PredictionRow.model).where(PredictionRow.model == model).limit(1)) is not None
