"""Event in: messages become rows of the log, contacts learn their traits, consent changes at once."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeVar

from sqlalchemy import select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features import contacts, events
from features.tables import from_micros, to_micros
from features.vocabulary import EMAIL_COMPLAINED, EMAIL_DELIVERED
from service.bounces import Feedback, severity_told, take_feedback
from service.flow.ingest.message import INTERNAL, REPORTED, Message, kept_body, read_message
from service.flow.ingest.values import (
    MAX_MINOR,
    MessageError,
    decimals_of,
    minor_units,
    parse_instant,
    valid_address,
)
from service.suppression import Consent, consent_states, set_consent
from service.tables import ConsentRow, ContactRow, EventRow, IdentityRow, QuarantineRow, SendRow

__all__ = [
    "INTERNAL",
    "MAX_MINOR",
    "Ingested",
    "MessageError",
    "Quarantined",
    "decimals_of",
    "ingest",
    "minor_units",
    "parse_instant",
    "valid_address",
]

log = logging.getLogger(__name__)

#: Topic of consent that a message states without naming one.
DEFAULT_TOPIC = "marketing"
#: Values in one IN list; SQLite takes 32,766 parameters a statement.
_CHUNK = 10_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A message, or a part of one, that was set aside."""

    #: Place in the batch, from 0.
    index: int
    quarantine_id: str
    #: What is wrong, with the value and the remedy.
    reason: str
    #: The event itself was stored; only the part that the reason names was left out.
    event_kept: bool


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of a batch."""

    stored: int
    duplicates: int
    quarantined: tuple[Quarantined, ...]


def ingest(
    session: Session,
    messages: Sequence[Any],
    *,
    source: str,
    now: datetime,
    sent_at: datetime | None = None,
    imported: bool = False,
    default_timezone: str = "UTC",
    currency: str = "GBP",
    pepper: str | None = None,
    may_report: bool = True,
) -> Ingested:
    """What was stored, what was known already and what was set aside; one bad message costs its batch nothing.

    Parameters
    ----------
    session : Session
        An open writing transaction; the caller commits.
    messages : sequence of dict
        Messages of the Segment protocol, as their JSON held them.
    source : str
        Where they come from, the prefix of their message ids: ``segment`` for the API. `INTERNAL` may use the names
        that Kairos reserves for itself.
    now : datetime
        Instant of receipt, aware. No event lies after it.
    sent_at : datetime or None
        The sender's clock when it sent the batch. An event's time is ``now − (sent_at − timestamp)``, which takes a
        wrong clock of the sender out; without it the timestamp is believed.
    imported : bool
        History: its events count as known when they occurred.
    default_timezone : str
        IANA zone of contacts that have none.
    currency : str
        ISO 4217 code of the installation; amounts in others are kept in the properties and not summed.
    pepper : str or None
        Keys the suppression list, for bounces and complaints; without it a batch that holds one is refused.
    may_report : bool
        The sender is a server, not a browser, whose key everybody can read: it may tell of bounces, complaints and
        deliveries. What others tell of them is set aside.

    Raises
    ------
    ValueError
        If the batch holds a bounce or a complaint and there is no ``pepper``.
    ClockWentBackwards
        If ``now`` is more than 5 minutes behind the log's newest event; nothing is stored then, clients send again.

    References
    ----------
    Segment, "HTTP API" and "Spec: Common Fields" (timestamps).
    """
    taken: list[Message] = []
    aside: list[tuple[Quarantined, Any]] = []
    for index, body in enumerate(messages):
        try:
            message = read_message(
                body,
                source=source,
                received_at=now,
                sent_at=sent_at,
                currency=currency,
                may_report=may_report,
            )
        except MessageError as refusal:
            aside.append((_quarantined(index, source, body, str(refusal), event_kept=False), body))
            continue
        taken.append(message)
        aside.extend((_quarantined(index, source, body, reason, event_kept=True), body) for reason in message.refused)
    _set_aside(session, aside, source, now)

    # A message delivered again must not write its traits or its consent again: newer ones may have come since.
    known = _known_messages(session, [message.message_id for message in taken])
    fresh = {message.message_id: message for message in reversed(taken) if message.message_id not in known}
    ordered = [message for message in taken if fresh.get(message.message_id) is message]
    stored = 0
    if ordered:
        keys = _resolve(session, ordered, now)
        _learn_traits(session, ordered, keys, now)
        zones = _zones(session, ordered, keys, now)
        # Contact rows before the consent ledger's counter, the log's lock last: every writer takes them in this order.
        ordered, feedback = _without_others_mails(session, ordered, keys)
        if feedback:
            if pepper is None:
                raise ValueError("a bounce or complaint came in without the pepper; pass the installation's")
            take_feedback(session, feedback, source=source, pepper=pepper, now=now)
        _change_consent(session, ordered, keys, source, now)
        appended = events.append(
            session,
            [_new_event(message, keys[message.identity], zones) for message in ordered],
            received_at=to_micros(now),
            imported=imported,
            default_timezone=default_timezone,
            most_behind=events.CLOCK_TOLERANCE_MICROS,
        )
        stored = appended.stored
    quarantined = tuple(entry for entry, _ in aside)
    if quarantined:
        log.warning("%d messages or parts set aside", len(quarantined), extra={"action": "events_quarantined"})
    return Ingested(stored, len(taken) - stored, quarantined)


def _quarantined(index: int, source: str, body: Any, reason: str, *, event_kept: bool) -> Quarantined:
    # Named by its content: the same bad message delivered ten times is one row.
    digest = hashlib.blake2b(f"{source}\n{reason}\n{kept_body(body)}".encode(), digest_size=16)
    return Quarantined(index, f"q_{digest.hexdigest()}", reason, event_kept)


def _set_aside(session: Session, aside: Sequence[tuple[Quarantined, Any]], source: str, now: datetime) -> None:
    rows = {
        entry.quarantine_id: {
            "quarantine_id": entry.quarantine_id,
            "source": source[:60],
            "reason": entry.reason,
            "body": kept_body(body),
            "received_at": now,
        }
        for entry, body in aside
    }
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    for chunk in _chunks(sorted(rows.values(), key=lambda row: str(row["quarantine_id"])), 500):
        session.execute(dialect.insert(QuarantineRow).values(chunk).on_conflict_do_nothing())


def _known_messages(session: Session, message_ids: Sequence[str]) -> set[str]:
    known: set[str] = set()
    for chunk in _chunks(message_ids, _CHUNK):
        known.update(session.scalars(select(EventRow.message_id).where(EventRow.message_id.in_(chunk))))
    return known


def _resolve(session: Session, messages: Sequence[Message], now: datetime) -> dict[str, int]:
    """Contact of each identity. A further name that nobody has used yet is given to the contact that tells it."""
    told = sorted({other for message in messages for other in message.also})
    used: set[str] = set()
    for chunk in _chunks(told, _CHUNK):
        used.update(session.scalars(select(IdentityRow.identity).where(IdentityRow.identity.in_(chunk))))
    owner: dict[str, str] = {}
    for message in messages:
        used.add(message.identity)
        for other in message.also:
            # A name that already stands for somebody is a merge, and no matter of one batch. `alias` does not say
            # which of its two names is meant, so that either being known settles it.
            if other not in used and not (used & set(message.also)):
                owner[other] = owner.get(message.identity, message.identity)
        used.update(message.also)
    identities = {owner.get(message.identity, message.identity) for message in messages}
    keys = contacts.resolve(session, sorted(identities), now=now)
    if owner:
        dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
        rows = [{"identity": name, "contact_key": keys[of], "created_at": now} for name, of in sorted(owner.items())]
        for part in _chunks(rows, 1_000):
            session.execute(dialect.insert(IdentityRow).values(part).on_conflict_do_nothing())
    return {message.identity: keys[owner.get(message.identity, message.identity)] for message in messages}


def _learn_traits(session: Session, messages: Sequence[Message], keys: dict[str, int], now: datetime) -> None:
    merged: dict[int, dict[str, Any]] = {}
    for message in sorted(messages, key=lambda message: message.occurred_at):
        if message.traits:
            merged.setdefault(keys[message.identity], {}).update(message.traits)
    if merged:
        contacts.update_traits(session, merged, now=now)


def _change_consent(
    session: Session, messages: Sequence[Message], keys: dict[str, int], source: str, now: datetime
) -> None:
    asked: dict[tuple[int, str], str] = {}
    leaving = {keys[message.identity] for message in messages if message.consent == "unsubscribed"}
    topics = _topics(session, leaving)
    for message in sorted(messages, key=lambda message: message.occurred_at):
        key = keys[message.identity]
        if message.consent == "unsubscribed":
            # Without a topic it means all of them.
            named = (message.properties or {}).get("topic")
            for topic in [named] if isinstance(named, str) and 0 < len(named) <= 60 else topics[key]:
                asked[key, topic] = "unsubscribed"
        elif message.consent == "subscribed":
            asked.setdefault((key, DEFAULT_TOPIC), "subscribed")
    # Programs send the traits they know again and again; such an old `subscribed` must not undo what the person did
    # since. Coming back takes a fresh act of the person (a form, the preferences page).
    wishing = [key for (key, topic), state in asked.items() if topic == DEFAULT_TOPIC and state == "subscribed"]
    states = consent_states(session, wishing, DEFAULT_TOPIC)
    changes = [
        Consent(key, topic, "unsubscribed" if state == "unsubscribed" else "subscribed", source)
        for (key, topic), state in asked.items()
        if state == "unsubscribed" or states[key] not in ("unsubscribed", "subscribed")
    ]
    set_consent(session, changes, now=now)


def _without_others_mails(
    session: Session, messages: Sequence[Message], keys: dict[str, int]
) -> tuple[list[Message], list[Feedback]]:
    """The messages, and the bounces and complaints among them.

    One that names a mail counts for that mail only if it went to the contact; else it is of the contact alone: nobody
    can blame a mail to somebody else. One that names an address counts against the contact's only if it is the same.
    """
    named = {
        int(message.ref)
        for message in messages
        if message.kind in REPORTED and message.ref and message.ref.isdecimal() and len(message.ref) < 19
    }
    owners: dict[str, int] = {}
    for chunk in _chunks(sorted(named), _CHUNK):
        query = select(SendRow.send_id, SendRow.contact_key).where(SendRow.send_id.in_(chunk))
        owners.update({str(send_id): key for send_id, key in session.execute(query)})
    addresses: dict[int, str] = {}
    for chunk in _chunks(sorted({keys[message.identity] for message in messages if message.address}), _CHUNK):
        now_at = select(ContactRow.contact_key, ContactRow.email).where(ContactRow.contact_key.in_(chunk))
        addresses.update({key: (email or "").lower() for key, email in session.execute(now_at)})
    delivered: dict[int, int] = {}
    for message in messages:
        if message.kind == EMAIL_DELIVERED:
            key = keys[message.identity]
            delivered[key] = max(message.occurred_at, delivered.get(key, 0))
    checked, feedback = [], []
    for message in messages:
        if message.kind in REPORTED:
            key = keys[message.identity]
            ref = message.ref if message.ref is not None and owners.get(message.ref) == key else None
            message = replace(message, ref=ref)
            if message.kind != EMAIL_DELIVERED:
                feedback.append(
                    Feedback(
                        contact_key=key,
                        send_id=int(ref) if ref is not None else None,
                        kind=_kind_of(message),
                        occurred_at=from_micros(message.occurred_at),
                        is_of_its_address=message.address in (None, addresses.get(key))
                        and (message.kind == EMAIL_COMPLAINED or message.occurred_at >= delivered.get(key, 0)),
                    )
                )
        checked.append(message)
    return checked, feedback


def _kind_of(message: Message) -> Literal["hard", "soft", "policy", "complaint"]:
    return "complaint" if message.kind == EMAIL_COMPLAINED else severity_told(message.properties or {})


def _topics(session: Session, contact_keys: set[int]) -> dict[int, list[str]]:
    topics = {key: [DEFAULT_TOPIC] for key in contact_keys}
    for chunk in _chunks(sorted(contact_keys), _CHUNK):
        query = select(ConsentRow.contact_key, ConsentRow.topic).where(ConsentRow.contact_key.in_(chunk)).distinct()
        for key, topic in session.execute(query):
            if topic != DEFAULT_TOPIC:
                topics[key].append(topic)
    return topics


def _zones(session: Session, messages: Sequence[Message], keys: dict[str, int], now: datetime) -> dict[int, str | None]:
    """Zone of each contact; one that has told none is taken to live where its newest message says it was."""
    zones: dict[int, str | None] = {}
    for chunk in _chunks(sorted(set(keys.values())), _CHUNK):
        query = select(ContactRow.contact_key, ContactRow.timezone).where(ContactRow.contact_key.in_(chunk))
        zones.update({key: zone for key, zone in session.execute(query)})
    inferred = {
        keys[message.identity]: message.timezone
        for message in sorted(messages, key=lambda message: message.occurred_at)
        if message.timezone is not None and zones[keys[message.identity]] is None
    }
    if inferred:
        told = {key: {"timezone": zone} for key, zone in inferred.items()}
        contacts.update_traits(session, told, now=now, timezone_source="inferred")
    return zones | inferred


def _new_event(message: Message, contact_key: int, zones: dict[int, str | None]) -> events.NewEvent:
    return events.NewEvent(
        contact_key=contact_key,
        kind=message.kind,
        occurred_at=message.occurred_at,
        message_id=message.message_id,
        identity=message.identity,
        ref=message.ref,
        value_minor=message.value_minor,
        properties=message.properties,
        # Where the contact was at that moment, if the message says so; else where it lives.
        timezone=message.timezone or zones.get(contact_key),
    )


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    listed = list(items)
    for start in range(0, len(listed), size):
        yield listed[start : start + size]
