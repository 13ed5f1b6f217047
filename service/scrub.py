"""Zero what page splits left behind in a SQLite file, while others go on writing to it.

SQLite zeroes what it deletes (``secure_delete``), but when it splits a page the cells that moved away stay as bytes in
the gap between the page's cell pointers and its cells. Nothing reads a gap, so it can be zeroed beneath SQLite, if
nothing older is written over it afterwards:

1. With an empty write-ahead log a reader is opened. While it reads, no checkpoint touches the main file: every gap in
   it is zeroed, however long that takes, and writers go on into the write-ahead log.
2. What may still hold a leftover is a page that they wrote meanwhile, all of them named in the write-ahead log. It is
   brought into the file (writers wait for that checkpoint), and under the write lock the gaps of these few pages are
   zeroed too. If a writer came in between, everything is done again.
3. A commit of ours tells the other connections to forget the pages that they keep.

It is a program of its own, because closing a file drops all locks that the process holds on it: ``python
service/scrub.py FILE``, which ends with 0 when the file is clean and with `READERS` when others stood in the way.

References
----------
"Database File Format", sections 1.6 (b-tree pages) and 4 (the write-ahead log), https://sqlite.org/fileformat2.html
"How To Corrupt An SQLite Database File", section 2.2 (locks and close), https://sqlite.org/howtocorrupt.html
"""

from __future__ import annotations

import os
import sqlite3
import struct
import sys
import time
from collections.abc import Callable, Iterator

#: Exit code: readers of an old state, or one writer after the other, stood in the way; try again later.
READERS = 75
#: Milliseconds that readers, and writers with them, are waited for.
TIMEOUT_MS = 2_000
#: Times it begins anew because a writer came in between.
ATTEMPTS = 10
#: Bytes read at a time.
CHUNK_BYTES = 8 * 2**20
#: From this page on (128 GiB of 4 KiB pages) an overflow page could be taken for a page of a b-tree.
MOST_PAGES = 0x0200_0000

#: Bytes of the header, by the first byte of a b-tree's page.
_HEADER = {2: 12, 5: 12, 10: 8, 13: 8}
_COUNTS = struct.Struct(">HH")


def scrub(path: str, *, on_step: Callable[[str], None] | None = None) -> bool:
    """Zero the gaps in all pages of the SQLite file at ``path``; False if readers or writers stood in the way.

    Parameters
    ----------
    path : str
        A database in WAL mode, without ``auto_vacuum``, whose connections all set ``secure_delete``.
    on_step : callable, optional
        Told ``frozen``, ``zeroed``, ``noted`` and ``emptied`` as they are reached; for tests, which write in between.

    Raises
    ------
    ValueError
        If the file is not of that kind.
    """
    step = on_step or (lambda _name: None)
    file = os.open(path, os.O_RDWR)
    writer, reader = _connected(path), _connected(path)
    try:
        _check_kind(writer)
        return any(_attempt(path, file, writer, reader, step) for _ in range(ATTEMPTS))
    except sqlite3.OperationalError as error:
        if "locked" not in str(error):
            raise
        return False
    finally:
        for connection in (writer, reader):
            connection.close()
        os.close(file)  # last: with it go this process's locks on the file


def _attempt(
    path: str,
    file: int,
    writer: sqlite3.Connection,
    reader: sqlite3.Connection,
    step: Callable[[str], None],
) -> bool:
    """Whether the file became clean; False if a writer came in at the wrong moment."""
    size = writer.execute("PRAGMA page_size").fetchone()[0]
    _empty_wal(writer)
    reader.execute("BEGIN")
    try:
        reader.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if _wal_bytes(path):  # else the reader reads the main file alone, and nothing may be written into it
            return False
        step("frozen")
        usable = size - os.pread(file, 21, 0)[20]
        pages = os.fstat(file).st_size // size
        in_a_chunk = max(1, CHUNK_BYTES // size)
        for first in range(1, pages + 1, in_a_chunk):
            _zero_gaps(file, size, usable, first, min(in_a_chunk, pages + 1 - first))
        os.fsync(file)  # now, so that little is left to flush while writers wait
        step("zeroed")
        writer.execute("BEGIN IMMEDIATE")
        written = sorted(set(_pages_in_wal(path, size)))
        noted = writer.execute("PRAGMA data_version").fetchone()
        writer.execute("ROLLBACK")
    finally:
        reader.execute("ROLLBACK")
    step("noted")
    _empty_wal(writer)
    step("emptied")
    writer.execute("BEGIN IMMEDIATE")
    try:
        if _wal_bytes(path) or writer.execute("PRAGMA data_version").fetchone() != noted:
            return False
        for page in written:
            _zero_gaps(file, size, usable, page, 1)
        os.fsync(file)
        version = writer.execute("PRAGMA user_version").fetchone()[0]
        writer.execute(f"PRAGMA user_version={(version + 1) % 2**31}")
        writer.execute("COMMIT")
    finally:
        if writer.in_transaction:
            writer.execute("ROLLBACK")
    return True


def _zero_gaps(file: int, size: int, usable: int, first: int, count: int) -> None:
    """Zero the gaps of ``count`` pages from number ``first`` on."""
    start = (first - 1) * size
    data = os.pread(file, count * size, start)
    zeros = bytes(size)
    for page in range(0, len(data) - size + 1, size):
        at = page + (100 if start + page == 0 else 0)  # the first page begins with the file's header
        header = _HEADER.get(data[at])
        if header is None:
            continue  # of an overflowing row, or free: no gap in it
        cells, content = _COUNTS.unpack_from(data, at + 3)
        gap, end = at + header + 2 * cells, page + (content or 65_536)
        if not gap <= end <= page + usable:
            raise ValueError(
                f"page {(start + page) // size + 1} has {cells} cells from byte {content} of {usable} on, as no page "
                "of a b-tree has; run `PRAGMA integrity_check`"
            )
        if data[gap:end] != zeros[: end - gap]:
            os.pwrite(file, zeros[: end - gap], start + gap)


def _pages_in_wal(path: str, size: int) -> Iterator[int]:
    """Numbers of the pages that the write-ahead log holds, of transactions that were rolled back too."""
    with open(f"{path}-wal", "rb") as wal:
        salts = wal.read(32)[16:24]
        while len(frame := wal.read(24)) == 24:
            if frame[8:16] != salts:
                return  # left over from before the log began anew
            yield int.from_bytes(frame[:4], "big")
            wal.seek(size, os.SEEK_CUR)


def _connected(path: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA secure_delete=ON")
    connection.execute(f"PRAGMA busy_timeout={TIMEOUT_MS}")
    return connection


def _check_kind(connection: sqlite3.Connection) -> None:
    for pragma, wanted in (("journal_mode", "wal"), ("auto_vacuum", 0)):
        found = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
        if found != wanted:
            raise ValueError(f"{pragma} of the database is {found!r}, not {wanted!r}; run `PRAGMA {pragma}={wanted}`")
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    if pages >= MOST_PAGES:
        raise ValueError(f"the database has {pages:,} pages, {MOST_PAGES:,} are too many to scrub; move to PostgreSQL")


def _empty_wal(connection: sqlite3.Connection) -> None:
    """Bring the write-ahead log into the file and cut it to nothing; locked if somebody reads an old state."""
    until = time.monotonic() + TIMEOUT_MS / 1000
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > until:
            raise sqlite3.OperationalError("database is locked by a reader")
        time.sleep(0.02)  # another's checkpoint is not waited for by SQLite


def _wal_bytes(path: str) -> int:
    try:
        return os.stat(f"{path}-wal").st_size
    except FileNotFoundError:
        return 0


if __name__ == "__main__":
    sys.exit(0 if scrub(sys.argv[1]) else READERS)
