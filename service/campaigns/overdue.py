"""Mails that waited behind a pause, a halt or a canary beyond the moment they were planned for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from service.quiet_hours import next_open
from service.settings import Settings
from service.tables import SendRow


@dataclass(frozen=True, slots=True)
class Overdue:
    """What became of planned mails whose moment passed while something held them back."""

    #: Past their last useful moment, or they will be in the morning: they end, with the reason.
    expired: int
    #: It is night where their contact lives: they leave in the morning.
    postponed: int


def settle_overdue(
    session: Session, which: ColumnElement[bool], settings: Settings, *, reason: str, now: datetime
) -> Overdue:
    """Before held mails are let go: end those that are too late, and let no marketing mail leave in quiet hours.

    The plan put each mail at an allowed hour; after a pause that hour is over, and "at once" may be three in the
    morning. A statement a time zone, not a contact. What falls due in the future stays as planned.

    Parameters
    ----------
    which : condition on `SendRow`
        The mails to look at: those of a campaign, or all.
    reason : str
        What held them back.
    """
    overdue = (SendRow.state == "planned", SendRow.due_at <= now, which)
    too_late = f"its last useful moment passed while it was held back: {reason}"
    expired = _end(session, (*overdue, SendRow.not_after < now), too_late, now)
    postponed = 0
    if settings.quiet is not None:
        marketing = (*overdue, SendRow.stream == "marketing")
        for name in session.scalars(select(SendRow.timezone).where(*marketing).distinct()).all():
            morning = next_open(now, name, settings.quiet)
            if morning <= now:
                continue
            asleep = (*marketing, SendRow.timezone == name)
            too_late = f"its last useful moment passes in its contact's quiet hours, after it was held back: {reason}"
            expired += _end(session, (*asleep, SendRow.not_after < morning), too_late, now)
            moved = update(SendRow).where(*asleep).values(due_at=morning)
            postponed += len(session.execute(moved.returning(SendRow.send_id)).all())
    return Overdue(expired, postponed)


def _end(session: Session, which: Sequence[ColumnElement[bool]], reason: str, now: datetime) -> int:
    ended = update(SendRow).where(*which)
    ended = ended.values(state="expired", reason=reason[:300], finished_at=now, lease_until=None)
    return len(session.execute(ended.returning(SendRow.send_id)).all())
