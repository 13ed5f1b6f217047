"""Say: a send and its decisions → a mail with subject, HTML, text twin and headers."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Protocol

from liquid import BoundTemplate
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import Invalid
from service.flow.render.language import fill, parse
from service.flow.render.message import build_message, mailbox
from service.flow.render.template import (
    LINK_BEGIN,
    LINK_END,
    PIXEL,
    SUBJECT_SLOT,
    Compiled,
    SourceFormat,
    compile_filled,
    compile_template,
    prepare,
    slots_of,
    tidy,
    unescape_target,
)
from service.links import is_web_address, sign_click, sign_open, sign_trap, sign_unsubscribe, trap_html
from service.settings import Settings
from service.tables import ArmRow, ContactRow, DecisionRow, ExperimentRow, TemplateRow

__all__ = [
    "Email",
    "RenderFailure",
    "RenderInput",
    "Template",
    "check_subject",
    "compile_template",
    "gather",
    "render",
    "slots_of",
]

log = logging.getLogger(__name__)

#: Characters of a subject line once it is filled.
LONGEST_SUBJECT = 400
_LINK = re.compile(f"{LINK_BEGIN}(.*?){LINK_END}", re.DOTALL)
_HARMLESS = re.compile(r"(?:mailto|tel|sms):", re.IGNORECASE)
_ADDRESS = re.compile(r"[!#-'*+\-./0-9=?A-Z^_`a-z{|}~]+@[A-Za-z0-9.-]+")
_NOT_IN_A_LABEL = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class Template:
    """A version of a template, as stored."""

    template_id: str
    version: int
    subject: str
    source: str
    source_format: SourceFormat
    compiled_html: str


@dataclass(frozen=True, slots=True)
class RenderInput:
    """Everything one mail is made of."""

    send_id: int
    contact_key: int
    user_id: str
    email: str
    traits: Mapping[str, Any]
    template: Template
    stream: str = "marketing"
    topic: str = "marketing"
    campaign_id: str | None = None
    #: Content by slot, from the decided arms; ``subject`` replaces the template's subject line.
    arms: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Email:
    """A mail ready to leave."""

    send_id: int
    #: Envelope addresses.
    sender: str
    recipient: str
    subject: str
    html: str
    text: str
    message_id: str
    headers: tuple[tuple[str, str], ...]
    #: Different tracked targets.
    link_count: int
    message_bytes: bytes


@dataclass(frozen=True, slots=True)
class RenderFailure:
    """A mail that could not be made, and why; its neighbours are not touched."""

    send_id: int
    reason: str


class Sendable(Protocol):
    """What `gather` needs to know of a send; `service.flow.deliver.Claimed` and `SendRow` are such."""

    @property
    def send_id(self) -> int: ...
    @property
    def contact_key(self) -> int: ...
    @property
    def template_id(self) -> str: ...
    @property
    def template_version(self) -> int: ...
    @property
    def stream(self) -> str: ...
    @property
    def topic(self) -> str: ...
    @property
    def campaign_id(self) -> str | None: ...


def gather(session: Session, sends: Iterable[Sendable]) -> list[RenderInput | RenderFailure]:
    """What each send's mail is made of, in the order of ``sends``; four queries whatever their number (to 10,000)."""
    sends = list(sends)
    contact_keys = {send.contact_key for send in sends}
    contacts = {
        contact.contact_key: contact
        for contact in session.execute(
            select(ContactRow.contact_key, ContactRow.user_id, ContactRow.email, ContactRow.traits).where(
                ContactRow.contact_key.in_(contact_keys)
            )
        )
    }
    rows = session.execute(
        select(TemplateRow).where(TemplateRow.template_id.in_({send.template_id for send in sends}))
    ).scalars()
    templates = {
        (row.template_id, row.version): Template(
            template_id=row.template_id,
            version=row.version,
            subject=row.subject,
            source=row.source,
            source_format="html" if row.source_format == "html" else "mjml",
            compiled_html=row.compiled_html,
        )
        for row in rows
    }
    arms: dict[int, dict[str, str]] = defaultdict(dict)
    decided = session.execute(
        select(DecisionRow.send_id, DecisionRow.experiment_id, DecisionRow.arm_id).where(
            DecisionRow.send_id.in_([send.send_id for send in sends]),
            DecisionRow.is_holdout.is_(False),  # held out of the experiment: the template's own text stands
        )
    ).all()
    if decided:
        content = {
            (experiment_id, arm_id): (slot, text)
            for experiment_id, arm_id, slot, text in session.execute(
                select(ArmRow.experiment_id, ArmRow.arm_id, ExperimentRow.slot, ArmRow.content)
                .join(ExperimentRow, ExperimentRow.experiment_id == ArmRow.experiment_id)
                .where(ArmRow.experiment_id.in_({row.experiment_id for row in decided}))
            )
        }
        for row in decided:
            slot, text = content[row.experiment_id, row.arm_id]
            arms[row.send_id][slot] = text

    inputs: list[RenderInput | RenderFailure] = []
    for send in sends:
        contact = contacts.get(send.contact_key)
        template = templates.get((send.template_id, send.template_version))
        if contact is None or not contact.email:
            inputs.append(RenderFailure(send.send_id, "the contact has no e-mail address; identify it with one"))
        elif template is None:
            version = f"{send.template_id} version {send.template_version}"
            inputs.append(RenderFailure(send.send_id, f"template {version} does not exist"))
        else:
            inputs.append(
                RenderInput(
                    send_id=send.send_id,
                    contact_key=send.contact_key,
                    user_id=contact.user_id,
                    email=contact.email,
                    traits=contact.traits or {},
                    template=template,
                    stream=send.stream,
                    topic=send.topic,
                    campaign_id=send.campaign_id,
                    arms=arms.get(send.send_id, {}),
                )
            )
    return inputs


def render(
    batch: Sequence[RenderInput | RenderFailure],
    *,
    now: datetime,
    settings: Settings,
    number_links: Callable[[Iterable[str]], Mapping[str, int]] | None,
) -> list[Email | RenderFailure]:
    """A mail, or the reason why there is none, for each of ``batch`` in its order.

    Parameters
    ----------
    now : datetime
        Goes into the Date header.
    number_links : callable or None
        Targets to link numbers, called once a batch: ``service.links.LinkBook(database)``. None leaves links as they
        are and puts no pixel in: a preview.
    """
    drafts = [_draft(given, settings) for given in batch]
    targets = {target for draft in drafts if isinstance(draft, _Draft) for target in draft.targets}
    numbers = number_links(sorted(targets)) if number_links is not None and targets else {}
    date = format_datetime(now)
    return [
        draft if isinstance(draft, RenderFailure) else _finish(draft, numbers, date, settings, number_links is not None)
        for draft in drafts
    ]


def check_subject(subject: str) -> None:
    """Refuse a subject line whose Liquid does not parse.

    Raises
    ------
    Invalid
        Naming what was expected.
    """
    if not subject.strip():
        raise Invalid("the subject line is empty; write what the mail is about")
    _subject(subject)


@dataclass(frozen=True, slots=True)
class _Draft:
    """A filled mail whose links are still marked."""

    given: RenderInput
    subject: str
    html: str
    text: str
    targets: frozenset[str]
    unsubscribe_url: str


@lru_cache(maxsize=2_048)
def _subject(subject: str) -> BoundTemplate:
    return parse(subject, autoescape=False, what="subject")


def _prepared(given: RenderInput) -> Compiled:
    blocks = tuple(sorted((slot, content) for slot, content in given.arms.items() if slot != SUBJECT_SLOT))
    template = given.template
    page = compile_filled(template.source, template.source_format, blocks) if blocks else template.compiled_html
    return prepare(page, is_marketing=given.stream != "transactional")


def _draft(given: RenderInput | RenderFailure, settings: Settings) -> _Draft | RenderFailure:
    if isinstance(given, RenderFailure):
        return given
    unsubscribe_url = f"{_base(settings)}/u/{sign_unsubscribe(settings.signing_key, given.send_id)}"
    context = {
        **given.traits,
        "user_id": given.user_id,
        "campaign_id": given.campaign_id,
        "unsubscribe_url": unsubscribe_url,
    }
    try:
        compiled = _prepared(given)
        subject = fill(_subject(given.arms.get(SUBJECT_SLOT, given.template.subject)), context).strip()
        if len(subject) > LONGEST_SUBJECT:
            raise ValueError(f"the subject has {len(subject)} characters; at most {LONGEST_SUBJECT} are sent")
        page = fill(compiled.html, context)
        text = tidy(fill(compiled.text, context)) + "\n"
    except Exception as error:
        return _failure(given, error)
    ours = f"{_base(settings)}/"
    targets = frozenset(
        target
        for target in map(unescape_target, _LINK.findall(page))
        if is_web_address(target) and not target.startswith(f"{ours}u/")
    )
    return _Draft(given, subject, page, text, targets, unsubscribe_url)


def _finish(
    draft: _Draft, numbers: Mapping[str, int], date: str, settings: Settings, is_tracked: bool
) -> Email | RenderFailure:
    given, key, base = draft.given, settings.signing_key, _base(settings)
    tokens: dict[str, str] = {}

    def tracked(target: str) -> str:
        if not is_web_address(target):
            return target if _HARMLESS.match(target) or target.startswith("#") else "#"
        if target not in numbers:
            return target
        if target not in tokens:
            tokens[target] = f"{base}/c/{sign_click(key, given.send_id, numbers[target])}"
        return tokens[target]

    def in_html(match: re.Match[str]) -> str:
        return _attribute(tracked(unescape_target(match.group(1))))

    def in_text(match: re.Match[str]) -> str:
        return tracked(match.group(1).strip())

    pixel = f'<img src="{base}/o/{sign_open(key, given.send_id)}" width="1" height="1" alt="" style="display:block">'
    if given.stream != "transactional":
        pixel = trap_html(base, sign_trap(key, given.send_id)) + pixel
    html = _LINK.sub(in_html, draft.html).replace(PIXEL, pixel if is_tracked else "", 1)
    text = _LINK.sub(in_text, draft.text)
    try:
        from_header, sender = mailbox(settings.from_address)
        domain = sender.rpartition("@")[2]
        if not _ADDRESS.fullmatch(given.email):
            raise ValueError("the contact's e-mail address is not one plain ASCII address; identify it with another")
        message_id = f"<s{given.send_id}.{_fingerprint(key, given.send_id)}@{domain}>"
        headers = [
            ("From", from_header),
            ("To", given.email),
            ("Subject", draft.subject),
            ("Date", date),
            ("Message-ID", message_id),
        ]
        if given.stream != "transactional":
            token = draft.unsubscribe_url.rpartition("/")[2]
            topic = _NOT_IN_A_LABEL.sub("-", given.topic.lower()).strip("-") or "mail"
            headers += [
                ("List-Unsubscribe", f"<{draft.unsubscribe_url}>, <mailto:{sender}?subject=unsubscribe%20{token}>"),
                ("List-Unsubscribe-Post", "List-Unsubscribe=One-Click"),
                ("List-ID", f"<{topic}.{domain}>"),
                ("Feedback-ID", f"{given.campaign_id or given.template.template_id}:{topic}:{given.stream}:kairos"),
            ]
        headers.append(("X-Kairos-Send", str(given.send_id)))
        body = build_message(headers, text=text, html=html)
    except Exception as error:
        return _failure(given, error)
    return Email(
        send_id=given.send_id,
        sender=sender,
        recipient=given.email,
        subject=draft.subject,
        html=html,
        text=text,
        message_id=message_id,
        headers=tuple(headers),
        link_count=len(draft.targets),
        message_bytes=body,
    )


def _failure(given: RenderInput, error: Exception) -> RenderFailure:
    reason = f"could not be rendered: {error}"[:300]
    if not isinstance(error, ValueError | Invalid):
        # An unforeseen fault of one row must not take the batch with it, but somebody has to look at it.
        log.exception("a mail could not be rendered", extra={"action": "render_failed", "send_id": given.send_id})
    return RenderFailure(given.send_id, reason)


def _attribute(target: str) -> str:
    return target.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;").replace(">", "&gt;")


def _base(settings: Settings) -> str:
    return settings.public_url.rstrip("/")


def _fingerprint(key: str, send_id: int) -> str:
    return blake2b(f"message {send_id}".encode(), key=key.encode()[:64], digest_size=6).hexdigest()
