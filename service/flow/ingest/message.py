"""One message of the Segment protocol, read and checked: what it says, or why it cannot be taken."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from email_validator import EmailNotValidError

from features import vocabulary
from features.tables import to_micros
from service.flow.ingest.values import (
    MessageError,
    checked_text,
    is_zone,
    minor_units,
    parse_instant,
    said,
    usual_address,
)
from service.logs import redact, redacted
from service.suppression import ADDRESS_RELEASED

TYPES = ("track", "identify", "page", "screen", "group", "alias")

#: Source of events that Kairos itself emits; only these may bear the reserved names.
INTERNAL = "kairos"

#: Names that Kairos emits itself: from outside they could forge a send, an answer or a reward. (Bounces and complaints
#: may come from outside, from a provider's events: see `REPORTED`.)
EMITTED = frozenset(
    {
        vocabulary.EMAIL_SENT,
        vocabulary.EMAIL_WITHHELD,
        vocabulary.EMAIL_OPENED,
        vocabulary.EMAIL_CLICKED,
        vocabulary.ARM_SHOWN,
        vocabulary.REWARD_RECEIVED,
        ADDRESS_RELEASED,
    }
)
#: What mail servers and providers tell of a mail. It stops addresses and whole streams, so that only a key that a
#: server keeps may tell it: everybody who visits a page can read the key in the page.
REPORTED = frozenset({vocabulary.EMAIL_BOUNCED, vocabulary.EMAIL_COMPLAINED, vocabulary.EMAIL_DELIVERED})
#: Names that belong to calls of their own (`identify` writes the history of traits).
OWN_CALLS = {vocabulary.IDENTIFY: "identify", vocabulary.ALIAS: "alias", vocabulary.GROUP: "group"}

#: Longest names and ids; the columns they go to hold a little more.
MAX_NAME, MAX_ID, MAX_REF, MAX_MESSAGE_ID = 80, 240, 120, 150
_MONEY = ("revenue", "total", "value")
_PRICED = (vocabulary.PRODUCT_VIEWED, vocabulary.PRODUCT_ADDED)


@dataclass(frozen=True, slots=True)
class Message:
    """What a checked message says. Its address is in ``traits["email"]`` and nowhere else."""

    kind: str
    identity: str
    #: Microseconds since 1970 UTC.
    occurred_at: int
    message_id: str
    ref: str | None = None
    value_minor: int | None = None
    properties: dict[str, Any] | None = None
    timezone: str | None = None
    #: Further names of the same contact, told by `alias` and `identify`.
    also: tuple[str, ...] = ()
    #: Traits to merge, with the validated ``email`` and ``timezone``; None for other calls.
    traits: dict[str, Any] | None = None
    #: Consent for mail that the message states: subscribed | unsubscribed | None.
    consent: str | None = None
    #: Parts that were left out although the event is kept.
    refused: list[str] = field(default_factory=list)
    #: Address that a report of a mail names, to be compared with the contact's; it is never stored.
    address: str | None = field(default=None, repr=False)


def read_message(
    body: Any,
    *,
    source: str,
    received_at: datetime,
    sent_at: datetime | None,
    currency: str,
    may_report: bool = True,
) -> Message:
    """The message, checked.

    Parameters
    ----------
    body : Any
        What the sender's JSON held for this message.
    source : str
        Prefix of the message id; `INTERNAL` may use the reserved names.
    received_at : datetime
        Instant of receipt, aware.
    sent_at : datetime or None
        The sender's own clock when it sent the batch; its difference to ``received_at`` is the sender's clock error.
    currency : str
        Currency whose amounts are summed; amounts in others stay in the properties.
    may_report : bool
        The sender may tell what became of a mail (`REPORTED`).

    Raises
    ------
    MessageError
        If the message cannot be taken.
    """
    if not isinstance(body, Mapping):
        raise MessageError(f'the message is {said(body)}, not an object; send {{"type": "track", …}}')
    text = checked_text(body)
    type_ = body.get("type")
    if type_ not in TYPES:
        raise MessageError(f"type is {said(type_)}; send one of {', '.join(TYPES)}")
    context = _object(body, "context")
    occurred_at = _occurred_at(body, received_at, sent_at)
    user, anonymous = _id(body, "userId"), _id(body, "anonymousId")
    if user is not None and user.startswith("anonymous_id:"):
        raise MessageError(
            f"userId {said(user)} begins with anonymous_id:, which names contacts without a userId; send anonymousId"
        )
    if user is None and anonymous is None:
        raise MessageError("the message has neither userId nor anonymousId; send one of them, as text")
    identity = f"user:{user}" if user is not None else f"anonymous:{anonymous}"
    also: tuple[str, ...] = ()
    traits: dict[str, Any] | None = None
    consent: str | None = None
    refused: list[str] = []
    address: str | None = None

    if type_ == "track":
        kind = _event_name(body, internal=source == INTERNAL)
        properties = _object(body, "properties")
        if kind in REPORTED:
            if not may_report:
                raise MessageError(
                    f"event {kind!r} can stop mail, and this key has the scope ingest only, like a browser's, which "
                    "everybody can read; send it from a server, with a key that has the scope write too"
                )
            address = _address_told(properties, context)
        consent = "unsubscribed" if kind == vocabulary.UNSUBSCRIBED else None
    elif type_ in ("page", "screen"):
        kind = vocabulary.PAGE if type_ == "page" else vocabulary.SCREEN
        told = {key: body[key] for key in ("name", "category") if body.get(key) is not None}
        properties = {**told, **_object(body, "properties")}
    elif type_ == "identify":
        kind = vocabulary.IDENTIFY
        # RudderStack's SDKs put the traits of an identify call into its context.
        traits = {**_object(context, "traits", "context."), **_object(body, "traits")}
        consent = _read_traits(traits, refused)
        properties = {key: value for key, value in traits.items() if key != "email"}
        also = (f"anonymous:{anonymous}",) if user is not None and anonymous is not None else ()
    elif type_ == "group":
        kind = vocabulary.GROUP
        group = _id(body, "groupId")
        if group is None:
            raise MessageError("the group call has no groupId; send it as text")
        properties = {"group_id": group, **_object(body, "traits")}
    else:
        kind = vocabulary.ALIAS
        previous = _id(body, "previousId")
        if previous is None:
            raise MessageError("the alias call has no previousId; send the name that the contact had before")
        properties = {"previous_id": previous}
        also = (f"anonymous:{previous}", f"user:{previous}")

    zone = context.get("timezone")
    return Message(
        kind=kind,
        identity=identity,
        occurred_at=occurred_at,
        message_id=_message_id(body, text, source, occurred_at),
        ref=_ref(kind, properties),
        value_minor=_value_minor(kind, properties, currency),
        properties=_without_addresses(properties),
        timezone=zone if isinstance(zone, str) and is_zone(zone) else None,
        also=also,
        traits=None if traits is None else {**_without_addresses(traits), **_address_of(traits)},
        consent=consent,
        refused=refused,
        address=address,
    )


def kept_body(body: Any) -> str:
    """The message as text for the quarantine, without addresses and safe for every database."""
    try:
        return json.dumps(redacted(body), ensure_ascii=True, default=repr)
    except (RecursionError, ValueError):
        return json.dumps({"kept": False, "why": "nested too deep to be written down"})


def _object(body: Mapping[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    value = body.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MessageError(f"{prefix}{name} is {said(value)}, not an object; send {{…}} or leave it out")
    return dict(value)


def _id(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise MessageError(f"{name} is {said(value)}; send it as text")
    text = str(value).strip()
    if not 1 <= len(text) <= MAX_ID:
        raise MessageError(f"{name} has {len(text)} characters; send 1 to {MAX_ID}")
    return text


def _event_name(body: Mapping[str, Any], *, internal: bool) -> str:
    name = body.get("event")
    if not isinstance(name, str) or not name.strip():
        raise MessageError(f"event is {said(name)}; send the event's name as text, such as Order Completed")
    kind = vocabulary.canonical_name(name.strip())
    if len(kind) > MAX_NAME:
        raise MessageError(f"event has {len(kind)} characters; the limit is {MAX_NAME}")
    if internal:
        return kind
    if kind in EMITTED:
        raise MessageError(f"event {kind!r} is reserved: Kairos records it itself; use another name")
    if kind in OWN_CALLS:
        raise MessageError(f"event {kind!r} is reserved for the {OWN_CALLS[kind]} call; send type {OWN_CALLS[kind]}")
    return kind


def _occurred_at(body: Mapping[str, Any], received_at: datetime, sent_at: datetime | None) -> int:
    stamp = body.get("timestamp") or body.get("originalTimestamp")
    if stamp is None:
        return to_micros(received_at)
    instant = parse_instant(stamp)
    own = body.get("sentAt")
    sent = parse_instant(own, "sentAt") if own else sent_at
    if sent is not None:
        # The sender's clock may be wrong, its differences are not: age at sending, counted back from receipt.
        instant = received_at - (sent - instant)
    micros = to_micros(min(instant, received_at))
    if micros < 0:
        raise MessageError(f"timestamp {stamp} with sentAt {own or sent_at} lies before 1970; check the sender's clock")
    return micros


def _message_id(body: Mapping[str, Any], text: str, source: str, occurred_at: int) -> str:
    given = body.get("messageId")
    if isinstance(given, int) and not isinstance(given, bool):
        given = str(given)
    if isinstance(given, str) and 0 < len(given) <= MAX_MESSAGE_ID:
        return f"{source}/{given}"
    if given is not None and not isinstance(given, str):
        raise MessageError(f"messageId is {said(given)}; send it as text, a fresh one for each message")
    # Without an id of its own a message is known by its content; one that does not say when it happened also by
    # the instant it came, or two visits of a page would be one.
    content = given or (text if body.get("timestamp") or body.get("originalTimestamp") else f"{text}@{occurred_at}")
    return f"{source}/content-{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}"


def _read_traits(traits: dict[str, Any], refused: list[str]) -> str | None:
    """Check address, zone and consent in place; what is wrong is left out and said in ``refused``."""
    if traits.get("email") is not None:
        try:
            given = traits["email"]
            if not isinstance(given, str):
                raise MessageError("it is no text")
            traits["email"] = usual_address(given)
        except (EmailNotValidError, MessageError) as error:
            shown = said(traits.pop("email"))
            refused.append(
                f"traits.email {redact(shown)} is no address ({redact(str(error))}); the event was kept without it"
            )
    zone = traits.get("timezone")
    if zone is not None and not (isinstance(zone, str) and is_zone(zone)):
        del traits["timezone"]
        refused.append(f"traits.timezone {said(zone)} is no IANA time zone; send one such as Europe/London")
    consent = traits.pop("email_consent", None)
    if consent is not None and consent not in ("subscribed", "unsubscribed"):
        refused.append(f"traits.email_consent {said(consent)} is not known; send subscribed or unsubscribed")
        return None
    return consent


def _ref(kind: str, properties: Mapping[str, Any]) -> str | None:
    declared = vocabulary.KINDS.get(kind)
    names = (declared.ref,) if declared is not None and declared.ref else vocabulary.REF_PROPERTIES
    for name in names:
        value = properties.get(name)
        if value is None or value == "":
            continue
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise MessageError(f"properties.{name} is {said(value)}; send it as text")
        if len(str(value)) > MAX_REF:
            raise MessageError(f"properties.{name} has {len(str(value))} characters; the limit is {MAX_REF}")
        return str(value)
    return None


def _value_minor(kind: str, properties: Mapping[str, Any], currency: str) -> int | None:
    for name in (*_MONEY, "price") if kind in _PRICED else _MONEY:
        value = properties.get(name)
        if value is None:
            continue
        if kind not in vocabulary.KINDS and not isinstance(value, int | float):
            continue  # `value` or `total` of somebody's own event need not be money
        minor = minor_units(value, currency, f"properties.{name}")
        told = properties.get("currency")
        if told is not None and not isinstance(told, str):
            raise MessageError(f"properties.currency is {said(told)}; send an ISO 4217 code such as {currency}")
        return minor if told is None or told.strip().upper() in ("", currency) else None
    return None


def _without_addresses(properties: dict[str, Any]) -> dict[str, Any]:
    """The properties with every address in them removed (ARCHITECTURE section 9: they live with the contact only)."""
    return redacted({key: value for key, value in properties.items() if key != "email"})


def _address_told(properties: Mapping[str, Any], context: Mapping[str, Any]) -> str | None:
    """The address that a report is of, in small letters."""
    traits = context.get("traits")
    places = [properties.get("email"), properties.get("recipient"), properties.get("to")]
    places.append(traits.get("email") if isinstance(traits, Mapping) else None)
    return next((told.strip().lower() for told in places if isinstance(told, str) and "@" in told), None)


def _address_of(traits: Mapping[str, Any]) -> dict[str, Any]:
    return {"email": traits["email"]} if "email" in traits else {}
