"""Laws of the database door."""

import threading

from sqlalchemy import inspect, select

from features.tables import CounterRow, allocate
from service.database import Database
from service.tables import Base


def test_migrations_make_exactly_the_declared_tables(any_database: Database):
    """After `upgrade` the database holds the declared tables and columns, on both databases."""
    inspector = inspect(any_database.engine)
    for table in Base.metadata.sorted_tables:
        columns = {column["name"] for column in inspector.get_columns(table.name)}

        assert {column.name for column in table.columns} == columns


def test_concurrent_allocations_never_share_a_number(any_database: Database):
    """Eight threads that each allocate 20 x 5 numbers get 800 different ones, without a gap."""
    taken: list[int] = []

    def work() -> None:
        for _ in range(20):
            with any_database.writing() as session:
                first = allocate(session, "event_seq", 5)
            taken.extend(range(first, first + 5))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(taken) == list(range(1, 801))


def test_a_reading_sees_one_state(any_database: Database):
    """What is committed meanwhile is not seen before the next reading; the connection then writes as ever."""
    value = select(CounterRow.value).where(CounterRow.name == "event_seq")
    with any_database.reading() as session:
        before = session.scalar(value)
        with any_database.writing() as other:
            allocate(other, "event_seq", 7)
        assert session.scalar(value) == before
    with any_database.reading() as session:
        assert session.scalar(value) == before + 7


def test_a_failed_writing_block_leaves_nothing(database: Database):
    """An exception inside `writing` rolls the block back."""
    try:
        with database.writing() as session:
            allocate(session, "event_seq", 7)
            raise RuntimeError("planned")
    except RuntimeError:
        with database.reading() as session:
            assert session.scalar(select(CounterRow.value).where(CounterRow.name == "event_seq")) == 0
