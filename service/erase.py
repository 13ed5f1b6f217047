"""Erase: whatever names or describes a person leaves the database in one transaction; `erase_files` does the files.

Its ``contact_key`` stays as a number that names nobody, so that counts, caps and experiments stay what they were.

=====================  ==========================================================================================
contact, identity      deleted, and with them the address and the traits
event                  deleted; what they taught was folded before
consent                deleted; of a person who had unsubscribed the address goes on the suppression list, as a keyed
                       hash: the refusal outlives the erasure
suppression            stays: keyed hashes
prediction,            deleted
preference,
served_vector, hit,
hygiene_finding
quarantine,            deleted where a name or the address stands in them (a link only if it is no page of everybody's)
idempotency, link
campaign               their names leave the audience
send                   cancelled if it was open; keeps key, template, state and times; zone, message id,
                       variables and the provider's words go
decision               keeps key, arm, propensity and times; segment, context and the caller's own word for the
                       occasion go
credit                 deleted: which order it was
reward, learner_cell,  stay: counts by decision and by arm; sums and single values without a contact (its counts move
learner_matrix,        to the cell without a segment)
snapshot,
feature_check,
scoring
template, experiment,  stay: written for everybody
arm, outcome,
hygiene,
serving_model,
api_key, counter,
cursor, job,
model_event
erasure                key and times: until the files have followed, and so that nothing of an old state comes back
=====================  ==========================================================================================

Of the files, lines of ``HOME/rejected`` are found by name and go first; lake, snapshots, training sets, kept scores,
mails of the outbox and the database's own free pages follow in `service.erase_files`. A model's folder holds what was
learned from many, with extreme values and eight golden vectors that no key goes with: it stays until the model is
trained again. Logs hold ids only; backups and files outside HOME are their owner's to deal with.
"""

from __future__ import annotations

import csv
import html
import json
import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus, unquote_plus

from sqlalchemy import case, delete, func, insert, literal, null, or_, select, update
from sqlalchemy.orm import Session

from features.contacts import find
from features.tables import allocate
from service.database import Database
from service.errors import NotFound
from service.flow.decide import ERASED_OCCURRENCE
from service.flow.reward import forget_contexts, learn
from service.served_vectors import forget_served
from service.settings import Settings
from service.suppression import address_hmac, refusing, suppress
from service.tables import (
    ArmRow,
    CampaignRow,
    ConsentRow,
    ContactRow,
    CounterRow,
    DecisionRow,
    ErasureRow,
    EventRow,
    HitRow,
    HygieneFindingRow,
    IdempotencyRow,
    IdentityRow,
    LinkRow,
    PredictionRow,
    PreferenceRow,
    QuarantineRow,
    SendRow,
    TemplateRow,
)

log = logging.getLogger(__name__)

#: What the ledger says of a send whose contact is no more.
REASON = "contact erased"

#: Values in one IN list.
_CHUNK = 10_000
#: Up to so many names the database looks through its texts; more are looked for here, in one pass.
_FEW = 20
#: Characters of a rejected line's cell: as many as the csv module counts on every platform.
_LONGEST_CELL = 2**31 - 1
_WORD = re.compile(r"\w(?:[\w.@+-]*\w)?")
T = TypeVar("T")


@dataclass(frozen=True)
class Erased:
    """What was taken out of the database; the files follow."""

    contacts: int
    events: int
    #: Sends that had not left and now never will.
    sends_cancelled: int
    #: Sends that were leaving at that moment: the provider may have them. They end as ``unknown``.
    sends_leaving: int


@dataclass(frozen=True)
class TakenAway:
    """Rows that `take_away` found."""

    events: int
    sends_cancelled: int
    sends_leaving: int


def erase_contacts(database: Database, settings: Settings, user_ids: Sequence[str], *, now: datetime) -> Erased:
    """Erase these contacts from the database, all of them or none, and note that their files are to follow.

    A mail that is claimed does not leave any more: its lease is broken. Whoever erased comes back under the same name
    is a new contact.

    Parameters
    ----------
    database : Database
    settings : Settings
        For the pepper, and the place of rejected import lines.
    user_ids : sequence of str
        Names of contacts as callers know them; repeats are fine.
    now : datetime
        Aware UTC.

    Raises
    ------
    NotFound
        If no contact goes by one of the names; nothing was erased then.
    """
    with database.reading() as session:
        keys = _keys_of(session, user_ids)
        names = _Names(_names_of(session, keys))
    # By name, so before the names are gone. Done again after a crash, it finds nothing more.
    _cut_rejects(settings.home / "rejected", names)
    with database.writing() as session:
        learn(session, now=now)  # a backlog is folded here, and not under the log's lock
    with database.writing() as session:
        # Locks in the order of all writers: contacts, campaigns, sends, hits, the log, the learner.
        people = _locked_contacts(session, keys)
        if not people:
            return Erased(0, 0, 0, 0)
        keys = sorted(person.contact_key for person in people)
        names = _Names(_names_of(session, keys))
        unwilling = refusing(session, keys)
        refused = [p.email for p in people if p.email and p.contact_key in unwilling]
        suppress(
            session,
            [address_hmac(settings.pepper, email) for email in refused],
            reason="unsubscribed",
            source="erasure",
            now=now,
        )
        _leave_audiences(session, names)
        _forget_quarantined(session, names)
        _forget_answers(session, names)
        _forget_links(session, keys, names)
        taken = take_away(session, keys, now=now)
        session.execute(
            insert(ErasureRow), [{"contact_key": key, "requested_at": now, "files_done_at": None} for key in keys]
        )
    log.info(
        "%d contacts erased, their files follow", len(keys), extra={"action": "contacts_erased", "contact_keys": keys}
    )
    return Erased(len(keys), taken.events, taken.sends_cancelled, taken.sends_leaving)


def take_away(session: Session, contact_keys: Collection[int], *, now: datetime) -> TakenAway:
    """Delete or blank every row of these contacts, by key alone; doing it again finds what came in since.

    Only for keys that are erased: on PostgreSQL a message, a score or a decision that was under way may bring a row
    of an erased contact after the erasure committed.
    """
    keys = sorted(contact_keys)
    cancelled, leaving = _end_sends(session, keys, now)
    for chunk in _chunks(keys):
        occurrence = ERASED_OCCURRENCE + DecisionRow.decision_id  # an intent stays one of its kind
        session.execute(
            update(DecisionRow)
            .where(
                DecisionRow.contact_key.in_(chunk),
                DecisionRow.send_id.is_(None),
                DecisionRow.occurrence.not_like(f"{ERASED_OCCURRENCE}%"),
            )
            .values(occurrence=occurrence)
        )
        session.execute(delete(ConsentRow).where(ConsentRow.contact_key.in_(chunk)))
        session.execute(delete(HygieneFindingRow).where(HygieneFindingRow.contact_key.in_(chunk)))
        session.execute(delete(PredictionRow).where(PredictionRow.contact_key.in_(chunk)))
        session.execute(delete(PreferenceRow).where(PreferenceRow.contact_key.in_(chunk)))
    forget_served(session, keys)
    events = _forget_events(session, keys, now)
    forget_contexts(session, keys)
    for chunk in _chunks(keys):
        session.execute(delete(IdentityRow).where(IdentityRow.contact_key.in_(chunk)))
        session.execute(delete(ContactRow).where(ContactRow.contact_key.in_(chunk)))
    return TakenAway(events, cancelled, leaving)


def awaiting_files(session: Session) -> set[int]:
    """Contacts that were erased and whose files have not followed yet."""
    return set(session.scalars(select(ErasureRow.contact_key).where(ErasureRow.files_done_at.is_(None))))


def _keys_of(session: Session, user_ids: Sequence[str]) -> list[int]:
    """Keys of the contacts that go by these names, their own or another one that was told."""
    found = find(session, user_ids)
    others = {f"user:{user_id}": user_id for user_id in user_ids if user_id not in found}
    for chunk in _chunks(others):
        rows = session.execute(
            select(IdentityRow.identity, IdentityRow.contact_key).where(IdentityRow.identity.in_(chunk))
        )
        found |= {others[identity]: key for identity, key in rows}
    unknown = [user_id for user_id in dict.fromkeys(user_ids) if user_id not in found]
    if unknown:
        said = ", ".join(repr(user_id[:80]) for user_id in unknown[:5]) + (", …" if len(unknown) > 5 else "")
        raise NotFound(
            f"there is no contact {said} (erased already, perhaps); nothing was erased: leave it out and try again"
        )
    return sorted(set(found.values()))


def _locked_contacts(session: Session, keys: Sequence[int]) -> list[Any]:
    """The contacts' keys and addresses; those that somebody erased meanwhile are left out."""
    columns = (ContactRow.contact_key, ContactRow.email)
    return [
        row
        for chunk in _chunks(keys)
        for row in session.execute(
            select(*columns).where(ContactRow.contact_key.in_(chunk)).order_by(ContactRow.contact_key).with_for_update()
        )
    ]


# --- What is found by name ---------------------------------------------------------------------------------------


def _names_of(session: Session, keys: Sequence[int]) -> set[str]:
    """User ids, anonymous ids and addresses of these contacts."""
    names: set[str] = set()
    for chunk in _chunks(keys):
        for user_id, email in session.execute(
            select(ContactRow.user_id, ContactRow.email).where(ContactRow.contact_key.in_(chunk))
        ):
            names |= {user_id, email} if email else {user_id}
        told = session.scalars(select(IdentityRow.identity).where(IdentityRow.contact_key.in_(chunk)))
        names.update(identity.partition(":")[2] for identity in told)
    return names


class _Names:
    """Names to look for in texts, in any case of their letters.

    A name counts where it stands as a word. One of digits alone counts only as a whole text: a user ``42`` is not meant
    by every 42.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self.exact = frozenset(names)
        self._whole = {name.strip().lower() for name in names}
        self._words = {name for name in self._whole if _WORD.fullmatch(name) and not name.isdigit()}
        self._phrases = [name for name in self._whole if not _WORD.fullmatch(name)]

    def are_in(self, text: str) -> bool:
        """Whether one of them stands in ``text``."""
        text = text.strip().lower()
        return (
            text in self._whole
            or not self._words.isdisjoint(_WORD.findall(text))
            or (bool(self._phrases) and any(phrase in text for phrase in self._phrases))
        )

    def may_be_in(self, text: str) -> bool:
        """Whether it is worth looking at the parts of ``text`` one by one."""
        text = text.lower()
        return bool(self._phrases) or not self._whole.isdisjoint(_WORD.findall(text))


def _mentioning(
    session: Session, key: Any, text: Any, names: _Names, spellings: Callable[[str], Iterable[str]]
) -> Iterator[tuple[Any, str]]:
    """Key and text of rows that may mention a name, in one of its spellings; the caller looks closer."""
    query = select(key, text)
    if len(names.exact) <= _FEW:
        spelled = {spelling.lower() for name in names.exact for spelling in spellings(name.strip())}
        query = query.where(or_(*(func.lower(text).contains(one, autoescape=True) for one in sorted(spelled))))
    for row in session.execute(query.execution_options(yield_per=1_000)):
        yield row[0], row[1]


def _leave_audiences(session: Session, names: _Names) -> None:
    """Their names leave the campaigns' lists; a list that becomes empty cannot be scheduled any more."""
    audiences = session.execute(select(CampaignRow.campaign_id, CampaignRow.audience))
    naming = [key for key, rule in audiences if not names.exact.isdisjoint(rule.get("user_ids", ()))]
    campaigns = select(CampaignRow).where(CampaignRow.campaign_id.in_(naming))
    for campaign in session.scalars(campaigns.order_by(CampaignRow.campaign_id).with_for_update()):
        left = [user_id for user_id in campaign.audience["user_ids"] if user_id not in names.exact]
        campaign.audience = {**campaign.audience, "user_ids": left}
    session.flush()


def _forget_quarantined(session: Session, names: _Names) -> None:
    found = [
        key
        for key, body in _mentioning(session, QuarantineRow.quarantine_id, QuarantineRow.body, names, _in_json)
        if any(names.are_in(text) for text in _texts(json.loads(body)))
    ]
    for chunk in _chunks(found):
        session.execute(delete(QuarantineRow).where(QuarantineRow.quarantine_id.in_(chunk)))


def _forget_answers(session: Session, names: _Names) -> None:
    """Kept answers that name them lose their text; who asks again hears that the first request has no answer."""
    found = [
        digest
        for digest, body in _mentioning(session, IdempotencyRow.key_sha256, IdempotencyRow.body, names, _in_json)
        if body and any(names.are_in(text) for text in _texts(json.loads(body)))
    ]
    for chunk in _chunks(found):
        session.execute(update(IdempotencyRow).where(IdempotencyRow.key_sha256.in_(chunk)).values(body=None))


def _in_json(name: str) -> list[str]:
    return [json.dumps(name)[1:-1]]


def _texts(value: Any, name: str = "") -> Iterator[str]:
    """Every text of a JSON value, and the numbers under names such as ``userId``."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key
            yield from _texts(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, name)
    elif isinstance(value, str) or (isinstance(value, int) and name.lower().endswith("id")):
        yield str(value)


def _forget_links(session: Session, keys: Sequence[int], names: _Names) -> None:
    """Targets with a name in them, unless they were written into a template or others followed them too."""
    found = {
        link_id: url
        for link_id, url in _mentioning(session, LinkRow.link_id, LinkRow.url, names, _in_urls)
        if names.may_be_in(unquote_plus(url))
        and any(names.are_in(part) for part in re.split(r"[/?&=#;,]", unquote_plus(url)))
    }
    if not found:
        return
    mine = set(keys)
    for chunk in _chunks(found):
        followed = (
            select(HitRow.link_id, SendRow.contact_key)
            .join(SendRow, SendRow.send_id == HitRow.send_id)
            .where(HitRow.link_id.in_(chunk))
            .distinct()
        )
        for link_id, contact_key in session.execute(followed):
            if contact_key not in mine:
                found.pop(link_id, None)
    written = [
        html.unescape(text)
        for text in (*session.scalars(select(TemplateRow.source)), *session.scalars(select(ArmRow.content)))
    ]
    gone = [link_id for link_id, url in found.items() if not any(url in text for text in written)]
    for chunk in _chunks(gone):
        session.execute(delete(LinkRow).where(LinkRow.link_id.in_(chunk)))


def _in_urls(name: str) -> list[str]:
    return [name, quote(name, safe=""), quote_plus(name)]


def _cut_rejects(folder: Path, names: _Names) -> None:
    """Lines of rejected imports that mention a name are taken out; a file without lines is removed."""
    csv.field_size_limit(_LONGEST_CELL)  # by default 131,072: one longer cell would stop every erasure
    for path in sorted(folder.glob("*.rejected.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file))
        # The first column is the number of the line.
        kept = [line for line in lines[1:] if not any(names.are_in(cell) for cell in line[1:])]
        if len(kept) == len(lines) - 1:
            continue
        if not kept:
            path.unlink()
            continue
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        with beside.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows([lines[0], *kept])
        beside.replace(path)


# --- What is found by key ----------------------------------------------------------------------------------------


def _end_sends(session: Session, keys: Sequence[int], now: datetime) -> tuple[int, int]:
    """Open sends end, all are blanked, their hits go; how many were cancelled, and how many were leaving.

    Hits that come later are deleted when they settle.
    """
    sends = [
        row
        for chunk in _chunks(keys)
        for row in session.execute(
            select(SendRow.send_id, SendRow.state)
            .where(SendRow.contact_key.in_(chunk), SendRow.reason.is_distinct_from(REASON))
            .order_by(SendRow.send_id)
            .with_for_update()
        )
    ]
    leaving, is_open = SendRow.state == "attempting", SendRow.state.in_(("planned", "claimed", "attempting"))
    for chunk in _chunks([send.send_id for send in sends]):
        session.execute(
            update(SendRow)
            .where(SendRow.send_id.in_(chunk))
            .values(
                # Whether a message that was leaving has left, only its provider knows.
                state=case((leaving, "unknown"), (is_open, "cancelled"), else_=SendRow.state),
                finished_at=case((is_open, literal(now, SendRow.finished_at.type)), else_=SendRow.finished_at),
                # Who holds it can no longer write, and what is claimed no longer begins.
                lease_token=case((is_open, SendRow.lease_token + 1), else_=SendRow.lease_token),
                # Until then the outbox may still get the message: the files are not done before.
                lease_until=case((SendRow.state == "claimed", None), else_=SendRow.lease_until),
                reason=REASON,
                timezone="UTC",
                message_id=None,
                variables=null(),
                mailbox=None,
                expected_value=None,
            )
        )
        hits = list(
            session.scalars(
                select(HitRow.hit_id).where(HitRow.send_id.in_(chunk)).order_by(HitRow.hit_id).with_for_update()
            )
        )
        for some in _chunks(hits):
            session.execute(delete(HitRow).where(HitRow.hit_id.in_(some)))
    states = [send.state for send in sends]
    return states.count("planned") + states.count("claimed"), states.count("attempting")


def _forget_events(session: Session, keys: Sequence[int], now: datetime) -> int:
    if not any(
        session.scalar(select(EventRow.seq).where(EventRow.contact_key.in_(chunk)).limit(1)) is not None
        for chunk in _chunks(keys)
    ):
        return 0
    # Nobody appends meanwhile, and what is in the log of them is learned before it goes.
    session.execute(update(CounterRow).where(CounterRow.name == "event_seq").values(value=CounterRow.value))
    learn(session, now=now)
    deleted = 0
    for chunk in _chunks(keys):
        done: Any = session.execute(delete(EventRow).where(EventRow.contact_key.in_(chunk)))
        deleted += done.rowcount
    allocate(session, "event_rewrites", 1)
    return deleted


def _chunks(items: Iterable[T]) -> Iterator[list[T]]:
    listed = list(items)
    for start in range(0, len(listed), _CHUNK):
        yield listed[start : start + _CHUNK]
