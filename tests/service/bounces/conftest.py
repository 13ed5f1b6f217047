"""Counting queries."""

from collections.abc import Callable

import pytest
from sqlalchemy import event

from service.database import Database


@pytest.fixture
def count_queries() -> Callable[[Database, Callable[[], object]], int]:
    """Statements that a piece of work sends to a SQLite database's writer."""

    def count(database: Database, work: Callable[[], object]) -> int:
        statements = []

        def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            statements.append(statement)

        event.listen(database._writer, "before_cursor_execute", note)
        try:
            work()
        finally:
            event.remove(database._writer, "before_cursor_execute", note)
        return len(statements)

    return count
