"""Say: a send and its decisions → a mail with subject, HTML, text twin and headers."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from liquid import BoundTemplate

from service.dkim import Signer, signer_of
from service.errors import Invalid
from service.flow.render.addresses import ascii_domain, base_url, mailbox
from service.flow.render.headers import mail_headers, return_path
from service.flow.render.inputs import RenderFailure, RenderInput, Template, gather
from service.flow.render.language import fill, parse
from service.flow.render.message import build_message
from service.flow.render.proofread import Proof, proofread
from service.flow.render.template import (
    LINK_BEGIN,
    LINK_END,
    PIXEL,
    SUBJECT_SLOT,
    Compiled,
    compile_filled,
    compile_template,
    prepare,
    slots_of,
    tidy,
    traits_of,
    unescape_target,
    with_way_out,
)
from service.links import is_web_address, sign_click, sign_open, sign_trap, sign_unsubscribe, trap_html
from service.settings import Settings

__all__ = [
    "Email",
    "Proof",
    "RenderFailure",
    "RenderInput",
    "Template",
    "check_sender",
    "check_subject",
    "compile_template",
    "gather",
    "proofread",
    "render",
    "slots_of",
    "traits_of",
]

log = logging.getLogger(__name__)

#: Characters of a subject line once it is filled.
LONGEST_SUBJECT = 400
_LINK = re.compile(f"{LINK_BEGIN}(.*?){LINK_END}", re.DOTALL)
_HARMLESS = re.compile(r"(?:mailto|tel|sms):", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Email:
    """A mail ready to leave."""

    send_id: int
    #: Envelope addresses: the return path, and the contact's address in ASCII.
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

    Raises
    ------
    ValueError
        If the settings let no mail be made: see `check_sender`.
    """
    house = _house(settings, now)
    drafts = [_draft(given, house) for given in batch]
    targets = {target for draft in drafts if isinstance(draft, _Draft) for target in draft.targets}
    numbers = number_links(sorted(targets)) if number_links is not None and targets else {}
    return [
        draft if isinstance(draft, RenderFailure) else _finish(draft, numbers, house, number_links is not None)
        for draft in drafts
    ]


def check_sender(settings: Settings, *, now: datetime) -> None:
    """Refuse settings with which no mail could be made; a worker looks before it claims anything.

    Raises
    ------
    ValueError
        If ``FROM_ADDRESS``, ``PUBLIC_URL``, ``RETURN_PATH_DOMAIN`` or the DKIM key cannot be used, with the remedy.
    """
    _house(settings, now)


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
class _House:
    """What all mails of a batch share."""

    key: str
    base: str
    from_header: str
    from_address: str
    return_path_domain: str
    postal_address: str
    signer: Signer | None
    now: datetime


def _house(settings: Settings, now: datetime) -> _House:
    from_header, from_address = mailbox(settings.from_address)
    return _House(
        key=settings.signing_key,
        base=base_url(settings.public_url),
        from_header=from_header,
        from_address=from_address,
        return_path_domain=ascii_domain(settings.return_path_domain) if settings.return_path_domain else "",
        postal_address=settings.postal_address,
        signer=signer_of(settings, from_address.rpartition("@")[2]),
        now=now,
    )


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
    return prepare(page)


def _draft(given: RenderInput | RenderFailure, house: _House) -> _Draft | RenderFailure:
    if isinstance(given, RenderFailure):
        return given
    unsubscribe_url = f"{house.base}/u/{sign_unsubscribe(house.key, given.send_id)}"
    context = {
        **given.traits,
        **given.variables,
        "user_id": given.user_id,
        "campaign_id": given.campaign_id,
        "unsubscribe_url": unsubscribe_url,
        # The sender's, even where it is empty: a contact's own address may be a trait of the same name.
        "postal_address": house.postal_address,
    }
    try:
        compiled = _prepared(given)
        subject = fill(_subject(given.arms.get(SUBJECT_SLOT, given.template.subject)), context).strip()
        if len(subject) > LONGEST_SUBJECT:
            raise ValueError(f"the subject has {len(subject)} characters; at most {LONGEST_SUBJECT} are sent")
        page = fill(compiled.html, context)
        text = tidy(fill(compiled.text, context)) + "\n"
        # A template may have forgotten it, or show it to some only: nobody gets marketing mail without a way out.
        if (
            given.stream != "transactional" and f"{LINK_BEGIN}{unsubscribe_url}" not in text
        ):  # the text has what is shown
            page, text = with_way_out(page, text, unsubscribe_url, house.postal_address)
    except Exception as error:
        return _failure(given, error)
    ways_out = f"{house.base}/u/"
    targets = frozenset(
        target
        for target in map(unescape_target, set(_LINK.findall(page)))
        if is_web_address(target) and not target.startswith(ways_out)
    )
    return _Draft(given, subject, page, text, targets, unsubscribe_url)


def _finish(draft: _Draft, numbers: Mapping[str, int], house: _House, is_tracked: bool) -> Email | RenderFailure:
    given, key, base = draft.given, house.key, house.base
    tokens: dict[str, str] = {}

    def tracked(target: str) -> str:
        if target not in tokens:
            if target in numbers:
                tokens[target] = f"{base}/c/{sign_click(key, given.send_id, numbers[target])}"
            elif is_web_address(target) or _HARMLESS.match(target) or target.startswith("#"):
                tokens[target] = target
            else:
                tokens[target] = "#"
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
        headers = mail_headers(
            given,
            subject=draft.subject,
            now=house.now,
            from_header=house.from_header,
            from_address=house.from_address,
            unsubscribe_url=draft.unsubscribe_url,
            signing_key=key,
        )
        body = build_message(headers, text=text, html=html)
        if house.signer is not None:
            body = house.signer.sign(body, at=house.now)
        sender = return_path(key, given.send_id, house.return_path_domain) or house.from_address
    except Exception as error:
        return _failure(given, error)
    shown = dict(headers)
    return Email(
        send_id=given.send_id,
        sender=sender,
        recipient=shown["To"],
        subject=draft.subject,
        html=html,
        text=text,
        message_id=shown["Message-ID"],
        headers=headers,
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
