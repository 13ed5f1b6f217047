"""The outcomes of an installation: those that ship and those that its users declared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.lake import Lake
from features.tables import to_micros
from service.database import Database
from service.errors import Conflict, NotFound
from service.tables import OutcomeRow, ServingModelRow
from training.outcome_counts import counts_of
from training.outcomes import Declaration, restore, shipped

#: Each is counted at every look at the list.
MAX_OUTCOMES = 100


@dataclass(frozen=True)
class Declared:
    """An outcome, and since when there is one of that name."""

    declaration: Declaration
    is_shipped: bool
    created_at: datetime | None = None
    updated_at: datetime | None = None


def declare(session: Session, declaration: Declaration, *, now: datetime, replace: bool = False) -> bool:
    """Keep a declaration; True if there was none of that name.

    The same declaration again changes nothing. A model that was trained on what is replaced serves on, on what it was
    trained on, until it is trained again.

    Raises
    ------
    Conflict
        If another one goes by that name and ``replace`` is not said, or there are too many.
    """
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    content = declaration.as_dict()
    inserted = session.execute(
        dialect.insert(OutcomeRow)
        .values(name=declaration.name, declaration=content, created_at=now, updated_at=now)
        .on_conflict_do_nothing()
        .returning(OutcomeRow.name)
    ).first()
    if inserted is not None:
        if int(session.scalar(select(func.count()).select_from(OutcomeRow)) or 0) > MAX_OUTCOMES:
            raise Conflict(f"{MAX_OUTCOMES} outcomes are declared already, which is the limit; replace one of them")
        return True
    row = session.get_one(OutcomeRow, declaration.name, with_for_update=True)
    if row.declaration != content:
        if not replace:
            raise Conflict(
                f"an outcome {declaration.name!r} is declared already, otherwise; declare it with replace, or choose "
                "another name"
            )
        row.declaration, row.updated_at = content, now
    return False


def find_outcome(session: Session, name: str) -> Declared:
    """The outcome that goes by ``name``.

    Raises
    ------
    NotFound
        If there is none.
    """
    if name in shipped():
        return Declared(shipped()[name], True)
    row = session.get(OutcomeRow, name)
    if row is None:
        raise NotFound(f"no outcome {name[:60]!r} is declared; `kairos outcomes list` shows those there are")
    return _declared(row)


def list_outcomes(session: Session) -> list[Declared]:
    """Those that ship, then those that were declared, by name."""
    rows = session.scalars(select(OutcomeRow).order_by(OutcomeRow.name)).all()
    return [*(Declared(one, True) for one in shipped().values()), *map(_declared, rows)]


def shown_outcomes(
    database: Database, lake: Lake | None, outcomes: Sequence[Declared], *, now: datetime
) -> list[dict[str, Any]]:
    """Outcomes as API and command line show them; with live counts as far as ``lake`` reaches, None: without."""
    declarations = [one.declaration for one in outcomes]
    found = [None] * len(outcomes) if lake is None else counts_of(lake, declarations, to_micros(now))
    with database.reading() as session:
        rows = session.execute(select(ServingModelRow.name, ServingModelRow.version)).all()
    serving = {name: version for name, version in rows}
    return [
        {
            "name": one.declaration.name,
            "says": one.declaration.says(None if counts is None else counts.horizon_days),
            "declaration": one.declaration.as_dict(),
            "is_shipped": one.is_shipped,
            "created_at": one.created_at,
            "updated_at": one.updated_at,
            "model_version": serving.get(one.declaration.name),
            "as_of": now,
            "counts": None if counts is None else asdict(counts),
        }
        for one, counts in zip(outcomes, found, strict=True)
    ]


def _declared(row: OutcomeRow) -> Declared:
    return Declared(restore(row.declaration), False, row.created_at, row.updated_at)
