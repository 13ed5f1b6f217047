"""From what came back to the log: which mail it was of, and what follows from it."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import EMAIL_BOUNCED, EMAIL_COMPLAINED
from service.bounces.feedback import Feedback, take_feedback
from service.bounces.report import Report
from service.bounces.status import Severity
from service.links import BadToken, read_bounce
from service.suppression import identity_of
from service.tables import ContactRow, EventRow, SendRow

log = logging.getLogger(__name__)

#: A report that names only an address is believed of a mail that left within so many days.
ADDRESS_DAYS = 30
_OURS = re.compile(r"<s(\d{1,19})\.[0-9a-f]{6,64}@[^<>@\s]+>")
_LARGEST_ID = 2**63 - 1
_CHUNK = 5_000

Outcome = Literal["bounced", "complained", "duplicate", "refused", "unmatched", "ignored"]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a report."""

    outcome: Outcome
    why: str
    send_id: int | None = None
    severity: Severity | None = None
    #: The address gets no more mail because of it.
    is_suppressed: bool = False


def record_reports(
    session: Session,
    reports: Sequence[Report],
    *,
    signing_key: str,
    pepper: str,
    now: datetime,
    has_return_paths: bool = False,
) -> list[Recorded]:
    """What became of each report: logged as an event of its send, known already, refused, or of no mail of ours.

    A report is of a send if it came to the send's own return path, if it returns a mail with the Message-ID that the
    ledger holds (its fingerprint cannot be guessed), or if it names an address that had mail within `ADDRESS_DAYS`
    days. A token or a Message-ID that looks like ours and is not refuses the report. One send bounces once, and once
    more if a hard bounce follows a soft one, however many reports say so.

    Parameters
    ----------
    has_return_paths : bool
        Every mail has a return path of its own (``KAIROS_RETURN_PATH_DOMAIN``): a true bounce comes to it, and one
        that names nothing but an address is not believed, for everybody could write it.
    """
    claims = [_claim(report, signing_key) for report in reports]
    sends = _sends(session, SendRow.send_id, {claim.send_id for claim in claims if claim.send_id is not None})
    by_id = {send.send_id: send for send in sends}
    searched = [
        report
        for report, claim in zip(reports, claims, strict=True)
        if report.kind != "none"
        and claim.send_id is None
        and not claim.refusal
        and not (has_return_paths and report.kind == "bounce")
    ]
    by_address = _recent_sends(session, {address for report in searched for address in report.recipients}, now)

    results: list[Recorded | None] = [None] * len(reports)
    fresh: dict[str, tuple[int, Any, Report]] = {}
    for place, (report, claim) in enumerate(zip(reports, claims, strict=True)):
        if report.kind == "none":
            results[place] = Recorded("ignored", report.why)
        elif claim.refusal:
            results[place] = Recorded("refused", claim.refusal)
        else:
            send = by_id.get(claim.send_id) if claim.send_id is not None else _named(report, by_address)
            if send is not None and claim.message_id is not None and claim.message_id != send.message_id:
                results[place] = Recorded("refused", "its Message-ID looks like ours, but we never sent that one")
            elif send is None:
                results[place] = Recorded("unmatched", "no mail that we sent can be found in it")
            else:
                message_id = _event_id(report, send.send_id)
                if message_id in fresh:
                    results[place] = _duplicate(report, send.send_id)
                else:
                    fresh[message_id] = (place, send, report)
    known: set[str] = set()
    for chunk in _chunks(sorted(fresh)):
        known.update(session.scalars(select(EventRow.message_id).where(EventRow.message_id.in_(chunk))))
    # After a hard bounce a soft one of the same mail tells nothing new.
    taken = {
        message_id: (place, send, report)
        for message_id, (place, send, report) in fresh.items()
        if message_id not in known and not (report.severity in ("soft", "policy") and send.bounce == "hard")
    }
    for message_id, (place, send, report) in fresh.items():
        if message_id not in taken:
            results[place] = _duplicate(report, send.send_id)
    feedback = [_feedback(send, report, now) for _, send, report in taken.values()]
    suppressed = take_feedback(session, feedback, source="report", pepper=pepper, now=now)
    if taken:
        append(
            session,
            [_event(message_id, send, report, now) for message_id, (_, send, report) in taken.items()],
            received_at=to_micros(now),
        )
    for (place, send, report), told in zip(taken.values(), feedback, strict=True):
        is_suppressed = told.is_of_its_address and send.contact_key in suppressed
        outcome: Outcome = "complained" if report.kind == "complaint" else "bounced"
        why = f"{outcome}{f' ({report.severity})' if report.severity else ''}"
        why += "; its address gets no more mail" if is_suppressed else ""
        why += "" if told.is_of_its_address else "; the contact has another address by now"
        results[place] = Recorded(outcome, why, send.send_id, report.severity, is_suppressed)
    done = [result for result in results if result is not None]
    for result in done:
        log.info(
            "a report: %s", result.why,
            extra={"action": f"report_{result.outcome}", "send_id": result.send_id, "severity": result.severity},
        )  # fmt: skip
    return done


@dataclass(frozen=True, slots=True)
class _Claim:
    """Which send a report says it is of, before the ledger was asked."""

    send_id: int | None = None
    #: Set where the ledger has to hold this Message-ID for the claim to be true.
    message_id: str | None = None
    refusal: str = ""


def _claim(report: Report, signing_key: str) -> _Claim:
    if report.kind == "none":
        return _Claim()
    for token in report.tokens:
        try:
            return _Claim(read_bounce(signing_key, token))
        except BadToken:
            continue
    ours = _OURS.fullmatch(report.message_id or "")
    if ours and int(ours.group(1)) <= _LARGEST_ID:
        return _Claim(int(ours.group(1)), report.message_id)
    if report.tokens:
        return _Claim(refusal="it came to a return path that we did not sign")
    return _Claim()


def _sends(session: Session, column: Any, values: set[Any], *conditions: ColumnElement[bool]) -> list[Any]:
    """Sends whose contact is there, with what an event and a decision about the address need."""
    return [
        row
        for chunk in _chunks(sorted(values))
        for row in session.execute(
            select(
                SendRow.send_id,
                SendRow.contact_key,
                SendRow.campaign_id,
                SendRow.template_id,
                SendRow.template_version,
                SendRow.stream,
                SendRow.timezone,
                SendRow.message_id,
                SendRow.bounce,
                SendRow.finished_at,
                ContactRow.user_id,
                ContactRow.email,
            )
            .join(ContactRow, ContactRow.contact_key == SendRow.contact_key)
            .where(column.in_(chunk), *conditions)
        )
    ]


def _recent_sends(session: Session, addresses: set[str], now: datetime) -> dict[str, list[Any]]:
    """By address in small letters, the mails that left to it lately, newest first."""
    if not addresses:
        return {}
    spelled = addresses | {address.lower() for address in addresses}
    spelled |= {f"{local}@{domain.lower()}" for local, _, domain in (address.partition("@") for address in addresses)}
    keys: set[int] = set()
    for chunk in _chunks(sorted(spelled)):
        keys.update(session.scalars(select(ContactRow.contact_key).where(ContactRow.email.in_(chunk))))
    since = now - timedelta(days=ADDRESS_DAYS)
    left = SendRow.state.in_(("accepted", "unknown"))
    found: dict[str, list[Any]] = defaultdict(list)
    for send in _sends(session, SendRow.contact_key, keys, left, SendRow.due_at > since, SendRow.finished_at > since):
        found[send.email.lower()].append(send)
    return {address: sorted(sends, key=lambda send: send.finished_at, reverse=True) for address, sends in found.items()}


def _named(report: Report, by_address: dict[str, list[Any]]) -> Any | None:
    """The mail to an address of the report: the one whose number it names, else the newest."""
    sends = [send for address in report.recipients for send in by_address.get(address.lower(), [])]
    return next((send for send in sends if send.send_id == report.named_send), sends[0] if sends else None)


def _event_id(report: Report, send_id: int) -> str:
    if report.kind == "complaint":
        return f"kairos/complained/{send_id}"
    # As the ledger names a bounce at the door: a relay's report of the same refusal is no second one.
    return f"kairos/bounced/{send_id}" if report.severity == "hard" else f"kairos/bounced/{send_id}/{report.severity}"


def _duplicate(report: Report, send_id: int) -> Recorded:
    return Recorded("duplicate", "it was told before", send_id, report.severity)


def _feedback(send: Any, report: Report, now: datetime) -> Feedback:
    named = {address.lower() for address in report.recipients}
    kind: Any = "complaint" if report.kind == "complaint" else report.severity
    # The contact may have told another address since. Of a forwarded mail the report names the other mailbox, and the
    # returned To the one that we wrote to; a report that names none is of the address that the mail went to.
    is_same = not named or (send.email or "").lower() in named
    return Feedback(send.contact_key, send.send_id, kind, now, is_same)


def _event(message_id: str, send: Any, report: Report, now: datetime) -> NewEvent:
    properties: dict[str, Any] = {
        "campaign_id": send.campaign_id,
        "template_id": send.template_id,
        "template_version": send.template_version,
        "stream": send.stream,
        "source": "report",
    }
    if report.kind == "bounce":
        properties |= {
            "is_permanent": report.severity == "hard",
            "bounce": report.severity,
            "code": report.code,
            "status": report.status,
            "diagnostic": report.diagnostic,
        }
    return NewEvent(
        contact_key=send.contact_key,
        kind=EMAIL_COMPLAINED if report.kind == "complaint" else EMAIL_BOUNCED,
        occurred_at=to_micros(now),
        message_id=message_id,
        identity=identity_of(send.user_id),
        ref=str(send.send_id),
        properties=properties,
        timezone=send.timezone,
    )


def _chunks(items: list[Any]) -> list[list[Any]]:
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
