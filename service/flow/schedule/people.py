"""To whom: zone, mailbox provider, and whether and from when on a contact may be mailed; a few queries a chunk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
from sqlalchemy import BigInteger, func, select, type_coerce
from sqlalchemy.orm import Session

from features.events import DAY_MICROS
from features.tables import ContactRow, from_micros
from service.flow.schedule.chunks import chunks, columns_of, near, places
from service.flow.schedule.intent import Intent, Limits
from service.flow.schedule.window import Window, exists
from service.mailboxes import mailbox_of
from service.suppression import (
    EMAIL,
    MARKETING_ONLY,
    NOT_IN_SANDBOX,
    address_hmac,
    sandbox_refuses,
    snoozed_until,
)
from service.tables import ConsentRow, PreferenceRow, SendRow, SuppressionRow

CAP_WINDOW_DAYS = 7
CAP_WINDOW_MICROS = CAP_WINDOW_DAYS * DAY_MICROS

#: States that count against the frequency cap (ARCHITECTURE section 9).
COUNTED_STATES = ("planned", "claimed", "attempting", "accepted", "unknown", "held_out")

OWN_ZONE = "the contact's"
NO_ZONE = "the installation's: the contact's is not known"
WRONG_ZONE = "the installation's: the contact's is no IANA zone"


class Codes:
    """Texts by number, in the order in which they were met."""

    def __init__(self, *texts: str | None) -> None:
        self.texts: list[str | None] = list(texts)
        self._code = {text: code for code, text in enumerate(texts)}

    def of(self, text: str | None) -> int:
        """Number of a text."""
        code = self._code.get(text)
        if code is None:
            code = self._code[text] = len(self.texts)
            self.texts.append(text)
        return code

    def array(self) -> np.ndarray:
        """The texts, to be indexed by their numbers."""
        texts = np.empty(len(self.texts), dtype=object)
        texts[:] = self.texts
        return texts


@dataclass(frozen=True)
class People:
    """What the planner has to know of each contact, in arrays of length n_contacts.

    Attributes
    ----------
    zone, mailbox : ndarray of int64
        Numbers of ``zones`` and ``mailboxes``.
    reason : ndarray of object
        Why the contact gets no mail in this window; None where it may.
    not_before, not_after : ndarray of int64
        From when on and until when the cap and its own pause let it; microseconds since 1970 UTC, 0 and the window's
        end where nothing stands against it.
    """

    zone: np.ndarray
    zones: tuple[str, ...]
    #: Contacts by where their zone comes from.
    zone_sources: dict[str, int]
    mailbox: np.ndarray
    mailboxes: tuple[str, ...]
    reason: np.ndarray
    not_before: np.ndarray
    not_after: np.ndarray


@dataclass(frozen=True)
class Caps:
    """Mails in any seven days at most, and the mails that count.

    Attributes
    ----------
    most : ndarray of int64, shape (n_contacts,)
        0: no cap.
    row, at : ndarray of int64, shape (n_counted,)
        Contact and instant of each counted mail, ascending.
    """

    most: np.ndarray
    is_own: np.ndarray
    row: np.ndarray
    at: np.ndarray

    def reason(self, row: int) -> str:
        """Why the cap stands against a contact."""
        whose = "the contact's own cap" if self.is_own[row] else "frequency cap"
        return f"{whose}: {self.most[row]} mails in {CAP_WINDOW_DAYS} days"

    def gaps(self, not_before: np.ndarray, begin: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """From when and until when a further mail keeps each contact's cap, and the contacts whose cap it never keeps.

        No seven days may hold more mails than the cap, whether the others come before or after. Of several gaps the
        earliest that lasts a day is taken, or else the longest. Without a mail that stands against it the gap of a
        contact is from ``not_before`` to ``end``.

        Parameters
        ----------
        not_before : ndarray of int64, shape (n_contacts,)
        begin, end : int
            The window.
        """
        start, until = not_before.copy(), np.full(len(not_before), end, dtype=np.int64)
        last = np.arange(len(self.row)) + self.most[self.row] - 1
        whole = (self.most[self.row] > 0) & (last < len(self.row))
        whole[whole] &= self.row[last[whole]] == self.row[whole]
        whole[whole] &= self.at[last[whole]] - self.at[whole] < CAP_WINDOW_MICROS
        if not whole.any():
            return start, until, np.empty(0, dtype=np.int64)
        # As many mails as the cap allows lie within seven days: none may be added between ``low`` and ``high``.
        row, low, high = self.row[whole], self.at[last[whole]] - CAP_WINDOW_MICROS, self.at[whole] + CAP_WINDOW_MICROS
        is_last = np.append(row[1:] != row[:-1], True)
        opens = np.where(np.append(True, is_last[:-1]), 0, np.append(0, high[:-1]))
        gap_row = np.concatenate([row, row[is_last]])
        opens = np.maximum(np.concatenate([opens, high[is_last]]), not_before[gap_row])
        closes = np.minimum(np.append(low, np.full(is_last.sum(), end)), end)
        length = np.minimum(closes - np.maximum(opens, begin), DAY_MICROS)
        order = np.lexsort((opens, -length, gap_row))
        best = order[np.append(True, np.diff(gap_row[order]) != 0)]
        start[gap_row[best]], until[gap_row[best]] = opens[best], closes[best]
        return start, until, gap_row[best][length[best] <= 0]


def find_people(session: Session, intent: Intent, contact_keys: np.ndarray, limits: Limits, window: Window) -> People:
    """What stands for and against mailing each contact; the same reasons as `service.suppression.mailable` gives."""
    n = len(contact_keys)
    zones, mailboxes = Codes(limits.default_timezone), Codes()
    reasons = Codes("no such contact", None, "no e-mail address")
    zone, mailbox = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    reason = np.zeros(n, dtype=np.int64)
    not_before = np.zeros(n, dtype=np.int64)
    most = np.full(n, limits.frequency_cap if intent.stream == "marketing" else 0, dtype=np.int64)
    is_own = np.zeros(n, dtype=bool)
    sources: Counter[str] = Counter()
    suppressed = _Suppressed.of(session, intent, limits.pepper, n)
    counted: list[tuple[np.ndarray, np.ndarray]] = []
    for rows, keys in chunks(contact_keys):
        query = near(ContactRow.contact_key, keys, ContactRow.email, ContactRow.timezone)
        found, emails, named = columns_of(session, query, 3)
        place, known = places(rows, keys, found)
        whose = {
            name: (zones.of(name), OWN_ZONE) if name and exists(name) else (0, WRONG_ZONE if name else NO_ZONE)
            for name in set(named)
        }
        zone[place] = np.fromiter((whose[name][0] for name in named), np.int64, len(named))[known]
        sources.update(whose[name][1] for name in np.array(named, dtype=object)[known].tolist())
        mailbox[place] = np.fromiter(map(mailboxes.of, map(mailbox_of, emails)), np.int64, len(emails))[known]
        reason[place] = np.fromiter((1 if email else 2 for email in emails), np.int64, len(emails))[known]
        if limits.sandbox:
            out = [bool(email) and sandbox_refuses(email, limits.sandbox) for email in emails]
            reason[place[np.array(out, dtype=bool)[known]]] = reasons.of(NOT_IN_SANDBOX)
        if suppressed is not None:
            suppressed.mark(place, np.array(emails, dtype=object)[known], reason, reasons)
        if intent.stream != "marketing":
            continue
        _ask_consent(session, intent.topic, rows, keys, reason, reasons)
        _ask_preferences(session, rows, keys, not_before, most, is_own, limits.frequency_cap)
        counted.append(_counted(session, rows, keys, window))
    row = np.concatenate([part[0] for part in counted]) if counted else np.empty(0, dtype=np.int64)
    at = np.concatenate([part[1] for part in counted]) if counted else np.empty(0, dtype=np.int64)
    order = np.lexsort((at, row))
    most[most > 0] += limits.extra_cap
    caps = Caps(most, is_own, row[order], at[order])
    texts = reasons.array()[reason]
    may = reason == 1
    for one in np.flatnonzero(may & (not_before >= window.end)).tolist():
        texts[one] = snoozed_until(from_micros(int(not_before[one])))
    starts, until, capped = caps.gaps(not_before, window.begin, window.end)
    for one in capped.tolist():
        if texts[one] is None:
            texts[one] = caps.reason(one)
    # A mail planned for later in the week counts too: the plan that came first keeps its place.
    return People(
        zone=zone,
        zones=tuple(str(name) for name in zones.texts),
        zone_sources=dict(sources),
        mailbox=mailbox,
        mailboxes=tuple(str(name) for name in mailboxes.texts),
        reason=texts,
        not_before=starts,
        not_after=until,
    )


class _Suppressed:
    """The suppression list: all of it where it is shorter than the audience, else asked chunk by chunk."""

    def __init__(self, session: Session, pepper: str, listed: Any, whole: dict[str, str] | None) -> None:
        self._session = session
        self._pepper = pepper
        self._listed = listed
        self._whole = whole

    @classmethod
    def of(cls, session: Session, intent: Intent, pepper: str, contacts: int) -> _Suppressed | None:
        """What counts for mail of that stream; None where the list is empty."""
        listed = select(SuppressionRow.address_hmac, SuppressionRow.reason)
        if intent.stream == "transactional":
            listed = listed.where(SuppressionRow.reason.not_in(MARKETING_ONLY))
        length = session.scalar(select(func.count()).select_from(listed.subquery())) or 0
        if not length:
            return None
        whole = dict(zip(*columns_of(session, listed, 2), strict=True)) if length <= contacts else None
        return cls(session, pepper, listed, whole)

    def mark(self, place: np.ndarray, emails: np.ndarray, reason: np.ndarray, codes: Codes) -> None:
        """Write the reason of those whose address is on the list."""
        digests = [address_hmac(self._pepper, email) if email else "" for email in emails.tolist()]
        listed = self._whole
        if listed is None:
            query = self._listed.where(SuppressionRow.address_hmac.in_(digests))
            listed = dict(zip(*columns_of(self._session, query, 2), strict=True))
        for row, digest in zip(place.tolist(), digests, strict=True):
            if digest in listed:
                reason[row] = codes.of(f"address suppressed: {listed[digest]}")


def _ask_consent(
    session: Session, topic: str, rows: np.ndarray, keys: np.ndarray, reason: np.ndarray, codes: Codes
) -> None:
    found, states = columns_of(
        session,
        near(ConsentRow.contact_key, keys, ConsentRow.state)
        .where(ConsentRow.channel == EMAIL, ConsentRow.topic == topic)
        .order_by(ConsentRow.contact_key, ConsentRow.consent_id),
        2,
    )
    place, known = places(rows, keys, found)

    def code(state: str) -> int:
        return 1 if state == "subscribed" else codes.of(_no_consent(topic, state))

    unknown = code("unknown")
    said = np.fromiter(map(code, states), np.int64, len(states))[known]
    in_force = np.ones(len(place), dtype=bool)
    in_force[:-1] = place[:-1] != place[1:]  # the newest line is the contact's last
    place, said = place[in_force], said[in_force]
    is_open = reason[place] == 1
    reason[rows[reason[rows] == 1]] = unknown
    reason[place[is_open]] = said[is_open]


def _no_consent(topic: str, state: str) -> str:
    return f"consent to {topic!r} is {state}; marketing mail needs subscribed"


def _ask_preferences(
    session: Session,
    rows: np.ndarray,
    keys: np.ndarray,
    not_before: np.ndarray,
    most: np.ndarray,
    is_own: np.ndarray,
    cap: int,
) -> None:
    found, snoozed, weekly = columns_of(
        session,
        near(
            PreferenceRow.contact_key,
            keys,
            type_coerce(PreferenceRow.snoozed_until, BigInteger),
            PreferenceRow.most_per_week,
        ),
        3,
    )
    place, known = places(rows, keys, found)
    not_before[place] = np.array([until or 0 for until in snoozed], dtype=np.int64)[known]
    own = np.array([number or 0 for number in weekly], dtype=np.int64)[known]
    is_tighter = (own > 0) & ((cap == 0) | (own < cap))
    most[place[is_tighter]] = own[is_tighter]
    is_own[place[is_tighter]] = True


def _counted(session: Session, rows: np.ndarray, keys: np.ndarray, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """Contact and instant of the mails around the window that count against the cap."""
    week = timedelta(days=CAP_WINDOW_DAYS)
    query = near(SendRow.contact_key, keys, type_coerce(SendRow.due_at, BigInteger)).where(
        SendRow.due_at > from_micros(window.begin) - week,
        SendRow.due_at < from_micros(window.end) + week,
        SendRow.state.in_(COUNTED_STATES),
        SendRow.stream == "marketing",
    )
    found, at = columns_of(session, query, 2)
    place, known = places(rows, keys, found)
    return place, np.asarray(at, dtype=np.int64)[known]
