"""Who may be mailed: the consent ledger, the suppression list of keyed hashes, and unsubscribing."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import islice
from typing import Literal, TypeVar

from sqlalchemy import delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from features.events import NewEvent, append
from features.tables import allocate, to_micros
from features.vocabulary import UNSUBSCRIBED
from service.errors import Conflict, Invalid
from service.logs import redact
from service.tables import ConsentRow, ContactRow, ErasureRow, PreferenceRow, SendRow, SuppressionRow

log = logging.getLogger(__name__)

ConsentState = Literal["unknown", "pending", "subscribed", "unsubscribed"]
STATES = ("unknown", "pending", "subscribed", "unsubscribed")
EMAIL = "email"
SNOOZED = "snoozed"
NOT_IN_SANDBOX = "sandbox: the address is not among those that KAIROS_SANDBOX allows"
#: Beginning of the source of what a look through the list suppressed; it can be taken back.
HYGIENE = "hygiene/"
#: Reasons that bar marketing mail only.
MARKETING_ONLY = ("unsubscribed", "hygiene")
#: Our own event: somebody took a contact's address off the suppression list; what was told before it counts no more.
ADDRESS_RELEASED = "Address Released"

_QUERY_CHUNK = 10_000
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Consent:
    """What a contact was asked and answered, for the ledger."""

    contact_key: int
    topic: str
    state: ConsentState
    #: Where it was given: ``one-click``, ``preferences``, ``import <file>``, ``api``.
    source: str
    #: Version of the text that the contact agreed to.
    text_version: str | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """What unsubscribing did."""

    #: Contacts whose consent was changed now.
    changed: tuple[int, ...]
    #: Contacts that had been unsubscribed before.
    already: tuple[int, ...]
    #: Send ids that name no send, or that of a contact who was erased.
    unknown: tuple[int, ...]


def address_hmac(pepper: str, address: str) -> str:
    """Keyed hash of an address, the same for every spelling in capitals: HMAC-SHA256, 64 hexadecimal digits.

    Examples
    --------
    >>> address_hmac("p", " Ann@Shop.Example") == address_hmac("p", "ann@shop.example")
    True
    """
    return hmac.digest(pepper.encode(), address.strip().lower().encode(), hashlib.sha256).hex()


def suppress(session: Session, hmacs: Iterable[str], *, reason: str, source: str, now: datetime) -> int:
    """How many addresses were put on the suppression list, or are on it now for a stronger reason.

    What is on the list keeps its reason, with two exceptions. What list hygiene put there gives way to any other
    reason, because hygiene can be taken back and that reason must outlive it. And what bars marketing mail only gives
    way to what bars all mail.

    Parameters
    ----------
    hmacs : iterable of str
        Keyed hashes of the addresses, from `address_hmac`: the list never holds an address.
    reason : str
        ``hard_bounce``, ``complaint`` or ``manual``; ``unsubscribed`` and ``hygiene`` stop marketing mail only.
    """
    rows = [
        {"address_hmac": digest, "reason": reason, "source": source[:120], "at": now} for digest in sorted(set(hmacs))
    ]
    if not rows:
        return 0
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    is_hygiene = source.startswith(HYGIENE)
    weaker = SuppressionRow.source.startswith(HYGIENE, autoescape=True)
    if reason not in MARKETING_ONLY:
        weaker = weaker | SuppressionRow.reason.in_(MARKETING_ONLY)
    added = 0
    for chunk in _chunks(rows, 1_000):
        statement = dialect.insert(SuppressionRow).values(chunk)
        if is_hygiene:
            statement = statement.on_conflict_do_nothing()
        else:
            given = statement.excluded
            statement = statement.on_conflict_do_update(
                index_elements=[SuppressionRow.address_hmac],
                set_={"reason": given.reason, "source": given.source, "at": given.at},
                where=weaker,
            )
        added += len(session.execute(statement.returning(SuppressionRow.address_hmac)).all())
    return added


def release(session: Session, source: str) -> int:
    """How many addresses were taken off the list again: those, and only those, that ``source`` put there.

    Raises
    ------
    ValueError
        If the source is not list hygiene: no other reason is ever taken back in bulk.
    """
    if not source.startswith(HYGIENE):
        raise ValueError(f"{source!r} cannot be taken back; only what begins with {HYGIENE} can")
    gone = delete(SuppressionRow).where(SuppressionRow.source == source).returning(SuppressionRow.address_hmac)
    return len(session.execute(gone).all())


def release_contact(session: Session, contact_key: int, *, reason: str, by: str, pepper: str, now: datetime) -> str:
    """Why the contact's address was on the suppression list; it is off now, and the log says who took it off and why.

    What a bounce, a complaint, list hygiene or a hand put there can be taken off. Consent stays as it is.

    Parameters
    ----------
    by : str
        A key's id, or the command.

    Raises
    ------
    Invalid
        If no reason is given, or a longer one than 300 characters.
    Conflict
        If the contact has no address, it is not on the list, or the person unsubscribed it.
    """
    reason = reason.strip()
    if not 1 <= len(reason) <= 300:
        raise Invalid(f"the reason has {len(reason)} characters; say in 1 to 300 why the address may get mail again")
    row = session.get_one(ContactRow, contact_key)
    if not row.email:
        raise Conflict("the contact has no address, so that none is suppressed; send an identify call with one")
    listed = session.get(SuppressionRow, address_hmac(pepper, row.email), with_for_update=True)
    if listed is None:
        raise Conflict("the contact's address is not suppressed; see its consent and preferences for what else bars it")
    if listed.reason == "unsubscribed":
        raise Conflict("the contact unsubscribed its address; only it can come back, by a form or its preferences page")
    was, source = listed.reason, listed.source
    session.delete(listed)
    session.flush()
    event = NewEvent(
        contact_key=contact_key,
        kind=ADDRESS_RELEASED,
        occurred_at=to_micros(now),
        message_id=f"kairos/released/{contact_key}/{to_micros(now)}",
        identity=identity_of(row.user_id),
        properties={"was": was, "source": source, "reason": redact(reason), "by": by},
    )
    append(session, [event], received_at=to_micros(now))
    log.warning(
        "a contact's address was taken off the suppression list: %s",
        redact(reason),
        extra={"action": "address_released", "contact_key": contact_key, "was": was, "by": by},
    )
    return was


def set_consent(session: Session, changes: Sequence[Consent], *, now: datetime) -> int:
    """Number of lines written to the ledger; what repeats the line in force word by word is not written again.

    Raises
    ------
    ValueError
        If a state is none of the four.
    """
    for change in changes:
        if change.state not in STATES:
            raise ValueError(f"{change.state!r} is no consent state; use one of {', '.join(STATES)}")
    if not changes:
        return 0
    # The counter's lock comes before the look at what is in force, so that two who write at once see each other.
    first = allocate(session, "consent_id", len(changes))
    force = _lines_in_force(session, {change.contact_key for change in changes})
    rows = []
    for place, change in enumerate(changes):
        line = (change.state, change.source[:120], change.text_version)
        if force.get((change.contact_key, change.topic)) == line:
            continue
        force[change.contact_key, change.topic] = line
        rows.append(
            {
                "consent_id": first + place,
                "contact_key": change.contact_key,
                "channel": EMAIL,
                "topic": change.topic,
                "state": change.state,
                "source": change.source[:120],
                "text_version": change.text_version,
                "at": now,
            }
        )
    if rows:
        session.execute(insert(ConsentRow), rows)
    return len(rows)


def consent_states(session: Session, contact_keys: Iterable[int], topic: str) -> dict[int, str]:
    """State in force of each contact for a topic; ``unknown`` where the ledger has no line."""
    keys = list(dict.fromkeys(contact_keys))
    force = _lines_in_force(session, keys, topic)
    return {key: force[key, topic][0] if (key, topic) in force else "unknown" for key in keys}


def refusing(session: Session, contact_keys: Iterable[int]) -> set[int]:
    """Those of the contacts who have unsubscribed from a topic, whichever."""
    return {key for (key, _), line in _lines_in_force(session, contact_keys).items() if line[0] == "unsubscribed"}


def mailable(
    session: Session,
    contact_keys: Iterable[int],
    topic: str,
    *,
    pepper: str,
    stream: Literal["marketing", "transactional"] | str = "marketing",
    sandbox: str = "",
    now: datetime | None = None,
) -> dict[int, str | None]:
    """Why a contact may not be mailed, or None where it may; four queries for ten thousand contacts.

    Marketing mail needs an address that is not suppressed, the consent ``subscribed`` and no break that the contact
    asked for; transactional mail needs the address, not bounced, not complained of and not barred by hand. Both need
    an address that the sandbox allows.

    Parameters
    ----------
    sandbox : str
        `Settings.sandbox`; empty allows every address.
    now : datetime, optional
        When it would leave: a break that lasts longer bars it. None: breaks are not looked at.
    """
    keys = list(dict.fromkeys(contact_keys))
    reasons: dict[int, str | None] = {key: "no such contact" for key in keys}
    hashes: dict[str, list[int]] = {}
    for chunk in _chunks(keys, _QUERY_CHUNK):
        query = select(ContactRow.contact_key, ContactRow.email).where(ContactRow.contact_key.in_(chunk))
        for key, email in session.execute(query):
            reasons[key] = None if email else "no e-mail address"
            if email:
                reasons[key] = NOT_IN_SANDBOX if sandbox_refuses(email, sandbox) else None
                hashes.setdefault(address_hmac(pepper, email), []).append(key)
    for digests in _chunks(hashes, _QUERY_CHUNK):
        listed = select(SuppressionRow.address_hmac, SuppressionRow.reason)
        for digest, reason in session.execute(listed.where(SuppressionRow.address_hmac.in_(digests))):
            if stream == "transactional" and reason in MARKETING_ONLY:
                continue
            for key in hashes[digest]:
                reasons[key] = f"address suppressed: {reason}"
    if stream != "transactional":
        open_keys = [key for key, reason in reasons.items() if reason is None]
        for key, state in consent_states(session, open_keys, topic).items():
            if state != "subscribed":
                reasons[key] = f"consent to {topic!r} is {state}; marketing mail needs subscribed"
        if now is not None:
            open_keys = [key for key in open_keys if reasons[key] is None]
            for key, until in snoozed(session, open_keys, now=now).items():
                reasons[key] = snoozed_until(until)
    return reasons


def snoozed_until(until: datetime) -> str:
    """Why a contact that asked for a break gets no marketing mail."""
    return f"{SNOOZED} until {until.isoformat(timespec='minutes')}"


def sandbox_refuses(address: str, sandbox: str) -> bool:
    """Whether `Settings.sandbox` keeps mail from this address; it names the addresses and domains that get any.

    Examples
    --------
    >>> sandbox = "ann@shop.example, @kairos.example"
    >>> [sandbox_refuses(to, sandbox) for to in ("Ann@Shop.example", "bob@kairos.example", "bob@shop.example")]
    [False, False, True]
    """
    plain, allowed = address.strip().lower(), _allowed(sandbox)
    return bool(allowed) and plain not in allowed and f"@{plain.rpartition('@')[2]}" not in allowed


def snoozed(session: Session, contact_keys: Iterable[int], *, now: datetime) -> dict[int, datetime]:
    """Those of the contacts who asked for a break from marketing mail that lasts at ``now``, and until when."""
    breaks: dict[int, datetime] = {}
    for chunk in _chunks(contact_keys, _QUERY_CHUNK):
        query = select(PreferenceRow.contact_key, PreferenceRow.snoozed_until)
        rows = session.execute(query.where(PreferenceRow.contact_key.in_(chunk), PreferenceRow.snoozed_until > now))
        breaks |= {key: until for key, until in rows if until is not None}
    return breaks


def topics_in_force(session: Session, contact_keys: Iterable[int]) -> dict[tuple[int, str], str]:
    """(contact, topic) → state of every topic that the ledger has a line of."""
    return {pair: line[0] for pair, line in _lines_in_force(session, contact_keys).items()}


def unsubscribe(session: Session, send_ids: Iterable[int], *, source: str, now: datetime) -> Unsubscribed:
    """Unsubscribe the contacts of these sends from the sends' topics, and log it; doing it twice changes nothing.

    Planned sends stay as they are: the claim looks at consent again and closes them with the reason.

    Parameters
    ----------
    source : str
        Where it was asked: ``one-click``, ``preferences page``, ``mailto``.
    """
    wanted = list(dict.fromkeys(send_ids))
    query = select(SendRow.send_id, SendRow.contact_key, SendRow.topic, SendRow.campaign_id, SendRow.timezone)
    erased = select(ErasureRow.contact_key)
    sends = session.execute(query.where(SendRow.send_id.in_(wanted), SendRow.contact_key.not_in(erased))).all()
    # As in set_consent: first the lock, then the look, so that of two clicks at once only the first one counts.
    if sends:
        allocate(session, "consent_id", 1)
    force = _lines_in_force(session, {send.contact_key for send in sends})
    identities = identities_of(session, {send.contact_key for send in sends})
    changes, events, already = [], [], []
    for send in sends:
        line = force.get((send.contact_key, send.topic))
        if line is not None and line[0] == "unsubscribed":
            already.append(send.contact_key)
            continue
        force[send.contact_key, send.topic] = ("unsubscribed", source, None)
        changes.append(Consent(send.contact_key, send.topic, "unsubscribed", source))
        events.append(
            NewEvent(
                contact_key=send.contact_key,
                kind=UNSUBSCRIBED,
                occurred_at=to_micros(now),
                message_id=f"kairos/unsubscribed/{send.send_id}/{to_micros(now)}",
                identity=identities.get(send.contact_key, ""),
                ref=str(send.send_id),
                properties={"topic": send.topic, "source": source, "campaign_id": send.campaign_id},
                timezone=send.timezone,
            )
        )
    set_consent(session, changes, now=now)
    if events:
        append(session, events, received_at=to_micros(now))
    found = {send.send_id for send in sends}
    return Unsubscribed(
        changed=tuple(change.contact_key for change in changes),
        already=tuple(already),
        unknown=tuple(send_id for send_id in wanted if send_id not in found),
    )


def identities_of(session: Session, contact_keys: Iterable[int]) -> dict[int, str]:
    """Identity (``user:…`` or ``anonymous:…``) under which our own events of a contact enter the log."""
    identities: dict[int, str] = {}
    for chunk in _chunks(list(dict.fromkeys(contact_keys)), _QUERY_CHUNK):
        query = select(ContactRow.contact_key, ContactRow.user_id).where(ContactRow.contact_key.in_(chunk))
        identities |= {key: identity_of(user_id) for key, user_id in session.execute(query)}
    return identities


def identity_of(user_id: str) -> str:
    """Identity of a contact's own name.

    Examples
    --------
    >>> identity_of("42"), identity_of("anonymous_id:a1")
    ('user:42', 'anonymous:a1')
    """
    if user_id.startswith("anonymous_id:"):
        return "anonymous:" + user_id.removeprefix("anonymous_id:")
    return f"user:{user_id}"


@lru_cache(maxsize=8)
def _allowed(sandbox: str) -> frozenset[str]:
    return frozenset(part for part in (part.strip().lower() for part in sandbox.split(",")) if part)


def _lines_in_force(
    session: Session, contact_keys: Iterable[int], topic: str | None = None
) -> dict[tuple[int, str], tuple[str, str, str | None]]:
    force: dict[tuple[int, str], tuple[str, str, str | None]] = {}
    for chunk in _chunks(list(contact_keys), _QUERY_CHUNK):
        newest = select(func.max(ConsentRow.consent_id)).where(
            ConsentRow.contact_key.in_(chunk), ConsentRow.channel == EMAIL
        )
        if topic is not None:
            newest = newest.where(ConsentRow.topic == topic)
        newest = newest.group_by(ConsentRow.contact_key, ConsentRow.topic)
        query = select(
            ConsentRow.contact_key, ConsentRow.topic, ConsentRow.state, ConsentRow.source, ConsentRow.text_version
        ).where(ConsentRow.consent_id.in_(newest))
        for key, line_topic, state, source, text_version in session.execute(query):
            force[key, line_topic] = (state, source, text_version)
    return force


def _chunks(items: Iterable[T] | Mapping[T, object], size: int) -> Iterator[list[T]]:
    walk = iter(items)
    while chunk := list(islice(walk, size)):
        yield chunk
