"""Single messages: one mail to one contact, asked for by a program, and why a mail was sent as it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from sqlalchemy import literal, select, update
from sqlalchemy.orm import Session

from features.tables import CounterRow, from_micros
from service.campaigns import limits_of
from service.errors import Conflict, Invalid, NotFound
from service.flow.predict import predict
from service.flow.render import RenderFailure, RenderInput, Template, render
from service.flow.render.template import GIVEN
from service.flow.schedule import Intent, as_utc, schedule, write_sends
from service.settings import Settings
from service.suppression import consent_states
from service.tables import MESSAGE_KEY, CampaignRow, ContactRow, DecisionRow, EventRow, ExperimentRow, SendRow
from service.templates import find_template
from training.serving import Serving

#: Bytes of a message's variables as JSON.
LARGEST_VARIABLES = 8_192
#: Hours in which a message is worth sending, by stream: a receipt still is after a weekend's outage.
USEFUL_HOURS = {"marketing": 24.0, "transactional": 72.0}
LONGEST_USEFUL_HOURS = 24.0 * 14

_HOURS = {
    "best": "the hour at which this contact most probably engages, inside the window",
    "explore": "a random allowed hour: a share of the mails is sent so, to learn which hours are good",
    "fallback": "a random allowed hour: too little is known of this contact's hours",
    "full": "the wished hour had no room left, so the next best one that had",
}


@dataclass(frozen=True)
class NewMessage:
    """A message before it is planned."""

    contact_key: int
    template_id: str
    template_version: int | None = None
    #: transactional (a receipt, a password: no consent, no quiet hours, no cap) | marketing
    stream: str = "transactional"
    topic: str = "transactional"
    variables: Mapping[str, Any] = field(default_factory=dict)
    #: Not before this instant; at once by default.
    send_at: datetime | None = None
    #: At the contact's best hour instead of at once.
    best_hour: bool = False
    #: Hours after which it is better not sent; by default as the stream wants it.
    within_hours: float | None = None


@dataclass(frozen=True)
class Created:
    """Where the message stands in the ledger, and whether this call put it there."""

    send_id: int
    is_new: bool


def create_message(
    session: Session,
    new: NewMessage,
    serving: Serving,
    settings: Settings,
    *,
    now: datetime,
    idempotency_key: str,
) -> Created:
    """One row of the ledger for the message; asked for again under the same key, the same row.

    A message that may not be sent (no consent, a suppressed address, no allowed hour left) is a row with its reason.
    Transactional messages are sent without regard to consent, quiet hours, cap and holdouts.

    Parameters
    ----------
    session : Session
        From ``Database.writing()``.
    idempotency_key : str
        The caller's own word for this message, with what makes it the caller's.

    Raises
    ------
    Conflict
        If the key was used for another message.
    Invalid
        If the variables are too large or named like what every mail has, the time has passed, or the template cannot
        be filled with them.
    NotFound
        If there is no such template.
    """
    variables = _checked(new.variables)
    begin = now if new.send_at is None else as_utc(new.send_at)
    hours = USEFUL_HOURS[new.stream] if new.within_hours is None else new.within_hours
    if not 0 < hours <= LONGEST_USEFUL_HOURS:
        raise Invalid(f"within_hours {hours} is not between 0 and {LONGEST_USEFUL_HOURS:.0f}")
    key = f"message:{hashlib.sha256(idempotency_key.encode()).hexdigest()[:32]}"
    said = json.dumps([_plain(new), variables], sort_keys=True, default=str)
    occurrence = hashlib.sha256(said.encode()).hexdigest()[:16]
    known = _known(session, key, occurrence)
    if known is not None:
        return known
    template = find_template(session, new.template_id, new.template_version)
    _try_out(session, new, Template.of(template), variables, settings, now)
    # Numbers of sends are given out under this lock: whoever holds the same key has committed, or comes after us.
    session.execute(select(CounterRow.value).where(CounterRow.name == "send_id").with_for_update())
    known = _known(session, key, occurrence)
    if known is not None:
        return known
    intent = Intent(
        key=key,
        template_id=template.template_id,
        template_version=template.version,
        window_start=begin,
        window_end=begin + timedelta(hours=hours),
        stream=new.stream,
        topic=new.topic,
        timing="best_hour" if new.best_hour else "at_start",
        occurrence=occurrence,
    )
    keys = np.array([new.contact_key], dtype=np.int64)
    best = predict(session, keys, serving, as_of=now, models=["send_hour"]).hours if new.best_hour else None
    limits = limits_of(settings)
    if new.stream == "transactional":
        limits = replace(limits, global_holdout=0.0)
    write_sends(session, schedule(session, intent, keys, best, limits, now=now), now=now)
    own = SendRow.intent_key == f"{key}:{new.contact_key}:{occurrence}"
    if variables:
        session.execute(update(SendRow).where(own).values(variables=variables))
    return Created(session.scalars(select(SendRow.send_id).where(own)).one(), is_new=True)


def _known(session: Session, key: str, occurrence: str) -> Created | None:
    """The message that was made under this key, found by the start of its intent key: `MESSAGE_KEY`."""
    known = session.execute(
        select(SendRow.send_id, SendRow.intent_key).where(SendRow.campaign_id.is_(None), literal(key) == MESSAGE_KEY)
    ).first()
    if known is None:
        return None
    if not known.intent_key.endswith(f":{occurrence}"):
        raise Conflict(
            f"this Idempotency-Key belongs to message {known.send_id}, which says something else; send the same "
            "body again, or take a new key for a new message"
        )
    return Created(known.send_id, is_new=False)


def explain_message(session: Session, send_id: int) -> dict[str, Any]:
    """How a mail of the ledger stands, what became of it, and why this person, this hour and this variant.

    Raises
    ------
    NotFound
        If the ledger has no such row.
    """
    send = session.get(SendRow, send_id)
    if send is None:
        raise NotFound(f"there is no message {send_id}; POST /v1/messages answers the id of one")
    contact = session.get(ContactRow, send.contact_key)
    return {
        "id": str(send.send_id),
        "user_id": None if contact is None else contact.user_id,
        "state": send.state,
        "reason": send.reason,
        "stream": send.stream,
        "topic": send.topic,
        "campaign_id": send.campaign_id,
        "template_id": send.template_id,
        "template_version": send.template_version,
        "variables": send.variables or {},
        "due_at": send.due_at,
        "not_after": send.not_after,
        "attempts": send.attempts,
        "message_id": send.message_id,
        "smtp_code": send.smtp_code,
        "why": {
            "person": _why_person(session, send),
            "hour": {
                "reason": send.hour_reason,
                "says": _why_hour(send),
                "timezone": send.timezone,
                "local_hour": send.assigned_local_hour,
                "propensity": send.hour_propensity,
            },
            "variant": _why_variant(session, send),
            "held_out": send.is_holdout,
        },
        "history": _history(session, send),
    }


def _checked(variables: Mapping[str, Any]) -> dict[str, Any]:
    taken = GIVEN & set(variables)
    if taken:
        raise Invalid(f"variables may not be called {', '.join(sorted(taken))}: every mail has these; use another name")
    try:
        size = len(json.dumps(variables, allow_nan=False).encode())
    except ValueError as error:
        raise Invalid(f"variables hold a number that is none ({error}); send null or leave it out") from error
    if size > LARGEST_VARIABLES:
        raise Invalid(f"variables have {size:,} bytes as JSON; at most {LARGEST_VARIABLES:,} are kept with a message")
    return dict(variables)


def _plain(new: NewMessage) -> list[Any]:
    at = None if new.send_at is None else as_utc(new.send_at).isoformat()
    return [
        new.contact_key, new.template_id, new.template_version, new.stream, new.topic, at, new.best_hour,
        new.within_hours,
    ]  # fmt: skip


def _try_out(
    session: Session,
    new: NewMessage,
    template: Template,
    variables: Mapping[str, Any],
    settings: Settings,
    now: datetime,
) -> None:
    """Fill the template now: who asked hears of it, not the ledger tonight."""
    contact = session.get_one(ContactRow, new.contact_key)
    if not contact.email:
        return  # the plan says so
    given = RenderInput(
        send_id=0,
        contact_key=new.contact_key,
        user_id=contact.user_id,
        email=contact.email,
        traits=contact.traits or {},
        template=template,
        stream=new.stream,
        topic=new.topic,
        variables=variables,
    )
    [made] = render([given], now=now, settings=settings, number_links=None)
    if isinstance(made, RenderFailure):
        raise Invalid(f"template {template.template_id!r} {made.reason}; mend the variables or the template")


def _why_hour(send: SendRow) -> str:
    if send.hour_reason != "fixed":
        return _HOURS.get(send.hour_reason, send.hour_reason)
    if send.is_canary:
        return "the first hour allowed: it is one of the canary's mails, which leave before the others and are watched"
    if send.campaign_id is None:
        return "the time that was asked for, or the first allowed hour after it"
    return "the campaign leaves at once: its wave, or the first allowed hour of its window"


def _why_person(session: Session, send: SendRow) -> dict[str, Any]:
    consent = consent_states(session, [send.contact_key], send.topic).get(send.contact_key, "unknown")
    basis = f"consent to {send.topic!r} is {consent} now"
    if send.stream == "transactional":
        basis = "transactional mail needs no consent, only an address that is not bounced, complained of or barred"
        if send.state == "suppressed":
            basis += f"; this one is not sent: {send.reason}"
    if send.campaign_id is None:
        return {"says": "a program asked for this message to this contact", "basis": basis}
    campaign = session.get(CampaignRow, send.campaign_id)
    if campaign is None:
        return {"says": "a campaign that is no more chose this contact", "basis": basis}
    rule = {name: value for name, value in campaign.audience.items() if name != "user_ids"}
    named = "the campaign names this contact" if "user_ids" in campaign.audience else "the campaign's audience has it"
    return {"says": named, "campaign": campaign.name, "audience": rule, "basis": basis}


def _why_variant(session: Session, send: SendRow) -> list[dict[str, Any]]:
    rows = session.execute(
        select(DecisionRow, ExperimentRow.slot)
        .join(ExperimentRow, ExperimentRow.experiment_id == DecisionRow.experiment_id)
        .where(DecisionRow.send_id == send.send_id)
        .order_by(DecisionRow.experiment_id)
    ).all()
    return [
        {
            "decision_id": row.decision_id,
            "experiment": row.experiment_id,
            "slot": slot,
            "arm": None if row.is_holdout else row.arm_id,
            "propensity": row.propensity,
            "eligible": row.eligible,
            "snapshot": row.snapshot_id,
            "wave": row.wave,
            "reason": row.reason,
            "replay": f"/v1/decisions/{row.decision_id}",
        }
        for row, slot in rows
    ]


def _history(session: Session, send: SendRow) -> list[dict[str, Any]]:
    """What the ledger and the log say of the mail, in the order it happened."""
    steps: list[tuple[datetime, int, dict[str, Any]]] = []

    def step(at: datetime | None, rank: int, what: str, **more: Any) -> None:
        if at is not None:
            steps.append((at, rank, {"at": at, "what": what, **more}))

    is_refused = send.state in ("suppressed", "unplaced") and send.finished_at == send.created_at
    step(send.created_at, 0, "planned" if not is_refused else send.state, reason=send.reason if is_refused else None)
    step(send.decided_at, 1, "decided")
    if not is_refused:
        step(send.finished_at, 2, send.state, reason=send.reason, smtp_code=send.smtp_code)
    events = session.execute(
        select(EventRow.kind, EventRow.occurred_at, EventRow.human_ppm)
        .where(
            EventRow.contact_key == send.contact_key,
            EventRow.ref == str(send.send_id),
            EventRow.kind.startswith("Email "),
        )
        .order_by(EventRow.occurred_at)
    )
    for kind, occurred_at, human_ppm in events:
        human = {} if human_ppm is None else {"human_probability": human_ppm / 1e6}
        step(from_micros(occurred_at), 3, kind, **human)
    return [one for _, _, one in sorted(steps, key=lambda found: found[:2])]
