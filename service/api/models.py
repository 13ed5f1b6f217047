"""Models: which version of each serves now, and what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends
from sqlalchemy import select

from service.api.installation import Installation, allow, installation
from service.errors import NotFound
from service.tables import ServingModelRow

router = APIRouter(prefix="/v1/models", tags=["models"], dependencies=[Depends(allow("read"))])


@router.get("")
def list_models(here: Installation = Depends(installation)) -> dict[str, Any]:
    """Every model that was promoted, with the version that serves."""
    with here.database.reading() as session:
        rows = session.scalars(select(ServingModelRow).order_by(ServingModelRow.name)).all()
    return {"items": [_shown(row, here) for row in rows], "next_cursor": None}


@router.get("/{name}")
def read_model(name: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """One model, with its card: data, rung, judgement."""
    with here.database.reading() as session:
        row = session.get(ServingModelRow, name)
    if row is None:
        raise NotFound(f"no model {name[:60]!r} was promoted; `kairos train {name[:60]}` trains and promotes one")
    return _shown(row, here) | {"card": _card(Path(row.path))}


def _shown(row: ServingModelRow, here: Installation) -> dict[str, Any]:
    loaded = here.serving.get(row.name)
    return {
        "name": row.name,
        "version": row.version,
        "previous_version": row.previous_version,
        "promoted_at": row.promoted_at,
        "rung": None if loaded is None else loaded.rung,
        #: What this process has loaded; it follows a promotion within seconds.
        "loaded_version": None if loaded is None else loaded.version,
    }


def _card(folder: Path) -> dict[str, Any] | None:
    """The model's own description, one JSON file among its files."""
    try:
        return json.loads((folder / "model.json").read_text())
    except (OSError, ValueError):
        return None
