"""Raw messages from where mail servers leave them: a file, an mbox, a maildir, standard input."""

from __future__ import annotations

import mailbox
import sys
from collections.abc import Iterator
from pathlib import Path

from service.bounces.report import LARGEST_MESSAGE
from service.errors import NotFound


def messages_in(place: str) -> Iterator[bytes]:
    """Raw messages of a file (one message, or an mbox), a maildir, a folder of messages, or ``-``: standard input.

    They stay where they are: reading them again changes nothing.

    Raises
    ------
    NotFound
        If there is no such file or folder.
    """
    if place == "-":
        yield sys.stdin.buffer.read(LARGEST_MESSAGE + 1)
        return
    path = Path(place)
    if not path.exists():
        raise NotFound(f"there is no {place}; name a message, an mbox, a maildir, or - for standard input")
    if path.is_dir():
        # A maildir keeps what is new apart from what was seen.
        folders = [path / name for name in ("new", "cur") if (path / name).is_dir()] or [path]
        for folder in folders:
            for file in sorted(folder.iterdir()):
                if file.is_file() and not file.name.startswith("."):
                    yield _beginning(file)
        return
    if _beginning(path, 5) != b"From ":
        yield _beginning(path)
        return
    box = mailbox.mbox(path, create=False)
    try:
        for key in box.keys():  # noqa: SIM118 - iterating the box itself would parse every message
            yield box.get_bytes(key)
    finally:
        box.close()


def _beginning(path: Path, size: int = LARGEST_MESSAGE + 1) -> bytes:
    """The file, or enough of it to be refused as too large."""
    with path.open("rb") as file:
        return file.read(size)
