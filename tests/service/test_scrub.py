"""Laws of scrubbing: no deleted byte stays in the file, whoever writes meanwhile; nobody is refused, no row changes."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from service.database import Database
from service.scrub import scrub

CANARY = b"zqcanary"
#: A writer in a process of its own; says how many rows it added and the longest that it waited.
WRITER = """
import random, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=20)
connection.execute("PRAGMA secure_delete=ON")
draw, added, longest = random.Random(int(sys.argv[2])), 0, 0.0
print("ready", flush=True)
until = time.monotonic() + float(sys.argv[3])
while time.monotonic() < until:
    began = time.monotonic()
    connection.execute("BEGIN IMMEDIATE")
    for _ in range(20):
        connection.execute("INSERT INTO said VALUES (?, ?, ?)", (draw.random(), "other", "x" * draw.randrange(9_000)))
    connection.execute("COMMIT")
    added, longest = added + 20, max(longest, time.monotonic() - began)
    time.sleep(0.002)
print(added, longest)
"""


def _connected(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, timeout=20)
    connection.execute("PRAGMA secure_delete=ON")
    return connection


def _add(connection: sqlite3.Connection, draw: random.Random, rows: int, who: str) -> None:
    """Rows all over the table, some of them longer than a page."""
    connection.execute("BEGIN IMMEDIATE")
    for _ in range(rows):
        said = who * draw.choice([1, 5, 20, 20, 20, 900])
        connection.execute("INSERT INTO said VALUES (?, ?, ?)", (draw.random(), who, said))
    connection.execute("COMMIT")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database from which a third of the rows, those of the canary, were deleted after pages had been split."""
    path = tmp_path / "kairos.db"
    connection = _connected(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE said (key REAL, who TEXT, text TEXT, PRIMARY KEY (key, who)) WITHOUT ROWID")
    connection.execute("CREATE INDEX by_text ON said (text)")
    draw = random.Random(7)
    for _ in range(60):
        _add(connection, draw, 100, "other")
        _add(connection, draw, 50, CANARY.decode())
    connection.execute("DELETE FROM said WHERE who = ?", (CANARY.decode(),))
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert CANARY in path.read_bytes()  # else these tests show nothing
    return path


def _rows(path: Path) -> list[tuple[object, ...]]:
    connection = _connected(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    rows = connection.execute("SELECT * FROM said ORDER BY key").fetchall()
    connection.close()
    return rows


def _bytes(path: Path) -> bytes:
    return b"".join(one.read_bytes() for one in path.parent.iterdir())


def test_nothing_deleted_stays_and_every_row_does(file: Path):
    """In no page of table or index; doing it again changes nothing."""
    rows = _rows(file)
    assert scrub(str(file))
    assert CANARY not in _bytes(file)
    assert scrub(str(file))
    assert _rows(file) == rows


@pytest.mark.parametrize("writes_at", [(), ("frozen", "zeroed"), ("frozen", "zeroed", "noted")])
def test_pages_that_a_writer_keeps_bring_nothing_back(file: Path, writes_at: tuple[str, ...]):
    """A writer who read every page before writes all over the table at each step, and after it."""
    writer, draw = _connected(file), random.Random(8)
    writer.execute("PRAGMA cache_size=-262144")
    writer.execute("SELECT sum(length(text)) FROM said").fetchone()
    steps: list[str] = []

    def write(step: str) -> None:
        steps.append(step)
        if step in writes_at and steps.count("noted") < 3:
            _add(writer, draw, 100, "other")
        if step == "emptied":  # the last moment at which it may read what is still to be zeroed
            writer.execute("SELECT sum(length(text)) FROM said").fetchone()

    assert scrub(str(file), on_step=write)
    assert steps.count("noted") == (3 if "noted" in writes_at else 1)  # else no writer came in between
    assert CANARY not in _bytes(file)
    for _ in range(20):
        _add(writer, draw, 100, "other")
    writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    writer.close()

    assert CANARY not in _bytes(file)
    written = sum(step in writes_at for step in steps) - ("noted" in writes_at)
    assert len(_rows(file)) == 6_000 + 100 * written + 2_000


def test_writers_of_other_processes_go_on(file: Path):
    """Two of them write without a pause; none waits near as long as the 20 seconds that it would, no row is lost."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(file), str(seed), "3"], stdout=subprocess.PIPE, text=True)
        for seed in (1, 2)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    database = Database(f"sqlite:///{file}")
    done = 0
    while any(writer.poll() is None for writer in writers):
        done += database.scrub()
    told = [writer.communicate()[0].split() for writer in writers]
    assert database.scrub()
    database.close()

    assert done >= 1
    assert max(float(longest) for _, longest in told) < 10.0
    assert len(_rows(file)) == 6_000 + sum(int(added) for added, _ in told)
    assert CANARY not in _bytes(file)


def test_a_reader_of_an_old_state_stands_in_the_way(file: Path):
    """While somebody reads what was there before a deletion, it says so; afterwards it does its work."""
    reader, writer = _connected(file), _connected(file)
    _add(writer, random.Random(9), 10, "other")
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM said").fetchone()
    database = Database(f"sqlite:///{file}")
    assert not database.scrub()
    reader.execute("ROLLBACK")

    assert database.scrub()
    assert CANARY not in _bytes(file)
    for one in (reader, writer):
        one.close()
    database.close()


def test_what_is_no_such_database_is_refused(tmp_path: Path):
    """With the setting, what it is, and what it should be."""
    path = tmp_path / "kairos.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA auto_vacuum=FULL")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE said (text TEXT)")
    connection.close()
    with pytest.raises(ValueError, match="auto_vacuum of the database is 1, not 0"):
        scrub(str(path))

    with pytest.raises(RuntimeError, match="auto_vacuum"):
        Database(f"sqlite:///{path}").scrub()
