"""Laws of declared outcomes: kept once, found by name."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from service.database import Database
from service.errors import Conflict, NotFound
from service.outcomes import MAX_OUTCOMES, declare, find_outcome, list_outcomes
from training.outcomes import parse

SILENT: dict[str, Any] = {
    "name": "silent_regulars",
    "population": {"all": [{"feature": "orders_ever", "at_least": 1}, {"feature": "days_since_order", "at_most": 90}]},
    "event": "Order Completed",
    "happens": False,
    "within_days": 30,
}
SHIPPED = ["churn", "conversion", "email_churn"]


def test_a_declaration_is_kept_once(any_database: Database, now: datetime) -> None:
    """The same again changes nothing; another one of that name is refused, or replaces it when asked to."""
    later = now + timedelta(days=1)
    other = parse(SILENT | {"within_days": 45})
    with any_database.writing() as session:
        assert declare(session, parse(SILENT), now=now)
        assert not declare(session, parse(SILENT), now=later)
    with (
        pytest.raises(Conflict, match=r"'silent_regulars' is declared already.*replace"),
        any_database.writing() as session,
    ):
        declare(session, other, now=later)
    with any_database.reading() as session:
        kept = find_outcome(session, "silent_regulars")
    assert (kept.declaration, kept.created_at, kept.updated_at) == (parse(SILENT), now, now)
    with any_database.writing() as session:
        assert not declare(session, other, now=later, replace=True)
    with any_database.reading() as session:
        kept = find_outcome(session, "silent_regulars")
        assert (kept.declaration, kept.created_at, kept.updated_at) == (other, now, later)
        assert [one.declaration.name for one in list_outcomes(session)] == [*SHIPPED, "silent_regulars"]
        assert find_outcome(session, "churn").is_shipped
        with pytest.raises(NotFound, match="kairos outcomes list"):
            find_outcome(session, "sofas")


def test_of_several_who_declare_at_once_one_wins(any_database: Database, now: datetime) -> None:
    """The others hear of the conflict; none fails otherwise."""
    heard: list[str] = []

    def work(days: int) -> None:
        try:
            with any_database.writing() as session:
                declare(session, parse(SILENT | {"within_days": days}), now=now)
            heard.append("declared")
        except Conflict:
            heard.append("conflict")

    threads = [threading.Thread(target=work, args=(days,)) for days in range(10, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(heard) == ["conflict"] * 5 + ["declared"]


def test_there_is_a_limit(database: Database, now: datetime) -> None:
    """One more is refused, and not kept."""
    with database.writing() as session:
        for number in range(MAX_OUTCOMES):
            declare(session, parse(SILENT | {"name": f"outcome_{number}"}), now=now)
    with pytest.raises(Conflict, match="100 outcomes"), database.writing() as session:
        declare(session, parse(SILENT), now=now)
    with database.reading() as session:
        assert len(list_outcomes(session)) == MAX_OUTCOMES + len(SHIPPED)
