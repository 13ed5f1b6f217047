"""Erase, second step: the lake and what lies beside it, the outbox and the database's free pages follow.

Every part may be done again, so a crash anywhere leaves the erasure waiting for the next round and nothing half done.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from features.events import IN_CHUNK
from features.lake import Lake
from features.snapshots import erase_from_snapshots
from service.database import Database
from service.erase import awaiting_files, take_away
from service.flow.deliver import ATTEMPT_LEASE_SECONDS, database_now
from service.settings import Settings
from service.tables import ErasureRow, SendRow
from training.score_files import erase_from_scores
from training.training_sets import erase_from_training_sets

log = logging.getLogger(__name__)

#: What was under way when a contact was erased may bring a row of theirs for so long.
STRAGGLERS = timedelta(days=2)

_SEND = re.compile(rb"^X-Kairos-Send: (\d+)\r?$", re.MULTILINE)


@dataclass(frozen=True)
class Finished:
    """What became of the erasures that waited for their files."""

    #: Contacts of whom no file holds anything any more.
    finished: int
    #: Contacts that still wait, and for what: a mail that was leaving, a reader, an unreadable file.
    waiting: int
    waits_for: str | None


def finish_erasures(database: Database, lake: Lake, settings: Settings, *, now: datetime) -> Finished:
    """Let the files follow the erasures of contacts; to be called again and again, by any number of workers.

    Parameters
    ----------
    database : Database
    lake : Lake
    settings : Settings
        For the place of the outbox.
    now : datetime
        Aware UTC.

    Raises
    ------
    StoreError
        If the lake cannot be read or written; the erasures go on waiting.
    """
    with database.reading() as session:
        waiting = awaiting_files(session)
        recent = session.scalars(select(ErasureRow.contact_key).where(ErasureRow.requested_at > now - STRAGGLERS))
        looked_at = waiting | set(recent)
    if looked_at:
        with database.writing() as session:
            take_away(session, looked_at, now=now)
    if not waiting:
        return Finished(0, 0, None)
    # The lake first: what is being written meanwhile asks it who was erased.
    with database.reading() as session:
        lake.erase(waiting, session)
    with database.reading() as session:
        erase_from_snapshots(lake, waiting, session=session)
    with database.reading() as session:
        erase_from_training_sets(lake, waiting, session=session)
    with database.reading() as session:
        erase_from_scores(lake, waiting, session=session)
    with database.reading() as session:
        leaving = _still_leaving(session, waiting)
        _remove_mails(settings.home / "outbox", set(_sends_of(session, waiting)))
    if not database.scrub():
        return Finished(0, len(waiting), "a long reader or writer of the database to end")
    done = sorted(waiting - leaving)
    with database.writing() as session:
        for start in range(0, len(done), IN_CHUNK):
            some = done[start : start + IN_CHUNK]
            session.execute(update(ErasureRow).where(ErasureRow.contact_key.in_(some)).values(files_done_at=now))
    log.info("the files of %d erased contacts are done", len(done), extra={"action": "erasures_finished"})
    return Finished(len(done), len(leaving), "a mail that was leaving to have left or not" if leaving else None)


def _sends_of(session: Session, keys: Collection[int]) -> Iterator[int]:
    ordered = sorted(keys)
    for start in range(0, len(ordered), IN_CHUNK):
        yield from session.scalars(
            select(SendRow.send_id).where(SendRow.contact_key.in_(ordered[start : start + IN_CHUNK]))
        )


def _still_leaving(session: Session, keys: Collection[int]) -> set[int]:
    """Contacts with a mail whose attempt, begun before the erasure, may not be over yet."""
    under_way = select(SendRow.contact_key).where(
        SendRow.state == "unknown", SendRow.lease_until > database_now(session)
    )
    return set(session.scalars(under_way)).intersection(keys)


def _remove_mails(outbox: Path, send_ids: set[int]) -> None:
    """Mails of these sends go, and what a crash left half written: nobody can tell whose it is."""
    if not send_ids or not outbox.is_dir():
        return
    abandoned = time.time() - ATTEMPT_LEASE_SECONDS
    for path in list(outbox.iterdir()):
        try:
            found = _SEND.search(path.read_bytes())
            is_theirs = found is not None and int(found[1]) in send_ids
            if is_theirs or (path.name.startswith(".") and path.stat().st_mtime < abandoned):
                path.unlink()
        except FileNotFoundError:
            continue  # a mail that was being written: its contact waits for the next round
