"""Mail templates: kept version by version, shown as they would arrive."""

from __future__ import annotations

import dataclasses
import json
import logging
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.api.idempotency import REPLAYED, Asked, Replayed, once
from service.api.installation import Installation, allow, find_contact, installation
from service.api.paging import Cursor, Limit, page, position
from service.errors import Conflict, Invalid
from service.flow.render import (
    LONGEST_SUBJECT,
    Email,
    RenderFailure,
    RenderInput,
    Template,
    proofread,
    render,
    slots_of,
    traits_of,
)
from service.halts import EVERYTHING, halts_in_force, mailbox_scope, stream_scope
from service.logs import redact
from service.mailboxes import mailbox_of
from service.providers.base import Provider, provider_from_url
from service.suppression import address_hmac, sandbox_refuses
from service.tables import ContactRow, SuppressionRow, TemplateRow
from service.templates import NewTemplate, add_template, find_template, restore_template

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/templates", tags=["templates"])

#: Addresses that one test goes to.
MOST_TESTED = 5
MARK = "[Test] "
Traits = Annotated[dict[str, JsonValue], Field(description="instead of a contact's; at most 100")]


class TemplateBody(BaseModel):
    """A template, or the next version of one."""

    model_config = ConfigDict(extra="forbid")

    id: str = Field(min_length=1, max_length=60)
    subject: str = Field(min_length=1, max_length=1_000)
    source: str = Field(min_length=1, max_length=1_000_000)
    source_format: Literal["mjml", "html"] = "mjml"
    name: str = Field("", max_length=200)


class RestoreBody(BaseModel):
    """Which version to come back to."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)


class PreviewBody(BaseModel):
    """For whom, and with which content in the slots."""

    model_config = ConfigDict(extra="forbid")

    user_id: str | None = Field(None, max_length=255)
    traits: Traits | None = Field(None, max_length=100)
    arms: dict[str, str] = Field(default={}, description="Content by slot; `subject` replaces the subject line.")
    version: int | None = Field(None, ge=1)
    stream: Literal["marketing", "transactional"] = "marketing"

    @model_validator(mode="after")
    def _one_of_both(self) -> PreviewBody:
        if self.user_id is not None and self.traits is not None:
            raise ValueError("name a contact by user_id or give traits, not both")
        return self


class TestBody(PreviewBody):
    """A preview that is sent."""

    to: list[Annotated[str, Field(min_length=3, max_length=254)]] = Field(min_length=1, max_length=MOST_TESTED)


@router.post("", status_code=201)
def create(
    body: TemplateBody, asked: Asked = Depends(once("write")), here: Installation = Depends(installation)
) -> dict[str, Any]:
    """A new template, or a new version of one; what was sent before can still be shown as it was."""
    new = NewTemplate(body.id, body.subject, body.source, body.source_format, body.name)
    now = here.clock.now()
    with here.database.writing() as session:
        asked.begin(session, now=now)
        version = add_template(session, new, now=now)
        return asked.keep(session, _shown(find_template(session, body.id, version)))


@router.get("", dependencies=[Depends(allow("read"))])
def list_templates(
    limit: Limit = 50, cursor: Cursor = None, here: Installation = Depends(installation)
) -> dict[str, Any]:
    """Templates by id, each at its newest version."""
    newest = (
        select(TemplateRow.template_id, func.max(TemplateRow.version).label("version"))
        .group_by(TemplateRow.template_id)
        .subquery()
    )
    query = select(TemplateRow).join(
        newest, (TemplateRow.template_id == newest.c.template_id) & (TemplateRow.version == newest.c.version)
    )
    last = position(here.settings.signing_key, cursor, "templates")
    if last is not None:
        query = query.where(TemplateRow.template_id > last[0])
    with here.database.reading() as session:
        rows = session.scalars(query.order_by(TemplateRow.template_id).limit(limit + 1)).all()
    return page(here.settings.signing_key, rows, limit, _shown, lambda row: [row.template_id], "templates")


@router.get("/{template_id}", dependencies=[Depends(allow("read"))])
def read(template_id: str, version: int | None = None, here: Installation = Depends(installation)) -> dict[str, Any]:
    """One version, the newest by default, with its source and the traits it uses; and which versions there are."""
    with here.database.reading() as session:
        row = find_template(session, template_id, version)
        versions = session.execute(
            select(TemplateRow.version, TemplateRow.subject, TemplateRow.created_at)
            .where(TemplateRow.template_id == template_id)
            .order_by(TemplateRow.version.desc())
        ).all()
    used = traits_of(row.subject, row.source)
    return _shown(row) | {
        "source": row.source,
        "traits": [{"name": name, "has_fall_back": not is_bare} for name, is_bare in used.items()],
        "versions": [dict(one._mapping) for one in versions],
    }


@router.post("/{template_id}/restore", status_code=201)
def restore(
    template_id: str,
    body: RestoreBody,
    asked: Asked = Depends(once("write")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """A new version that is equal to an old one. Campaigns stay at the version they were made with."""
    now = here.clock.now()
    with here.database.writing() as session:
        asked.begin(session, now=now)
        version = restore_template(session, template_id, body.version, now=now)
        return asked.keep(session, _shown(find_template(session, template_id, version)))


@router.post("/{template_id}/preview", dependencies=[Depends(allow("read"))])
def preview(template_id: str, body: PreviewBody, here: Installation = Depends(installation)) -> dict[str, Any]:
    """The mail as it would arrive, without tracking, and what to mend. Nothing is sent and nothing is kept.

    Its headers show no address, and its way out belongs to nobody.
    """
    given = _given(here, template_id, body)
    made = _made(here, given)
    proof = proofread(given, made.subject, made.html, made.text, here.settings)
    return {
        "version": given.template.version,
        "subject": made.subject,
        "html": made.html,
        "text": made.text,
        "headers": [{"name": name, "value": "<address>" if name == "To" else value} for name, value in made.headers],
        "message_bytes": len(made.message_bytes),
        **dataclasses.asdict(proof),
    }


@router.post("/{template_id}/test")
async def send_test(
    template_id: str,
    body: TestBody,
    response: Response,
    asked: Asked = Depends(once("send")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Send the preview to up to five addresses of one's own, its subject marked; where a sandbox is set, to those only.

    It leaves like any mail, but is neither tracked nor a row of the ledger: it is no intent to mail a contact, counts
    against nobody's cap and answers for no decision. The log keeps that it was sent, by which key, and no address.
    Under an Idempotency-Key it leaves at most once: one that was cut off is not sent again.
    """
    given = await run_in_threadpool(_given, here, template_id, body)
    marked = await run_in_threadpool(_marked, here, given)
    addresses = list(dict.fromkeys(body.to))
    mails = []
    for address in addresses:
        own = dataclasses.replace(marked, email=address, nonce=secrets.token_hex(8))
        mails.append(await run_in_threadpool(_made, here, own))
    provider = provider_from_url(
        here.settings.smtp_url, home=here.settings.home, connections=here.settings.smtp_connections
    )
    try:
        await run_in_threadpool(_begin_test, here, asked, body)
    except Replayed as known:  # what is kept holds no address: they are those of this request
        response.headers[REPLAYED] = "true"
        told: dict[str, Any] = json.loads(known.answer.body)
        results = [{"to": address} | one for address, one in zip(addresses, told["results"], strict=True)]
        return told | {"results": results}
    results = [await _sent(provider, mail) for mail in mails]
    accepted = sum(result["outcome"] == "accepted" for result in results)
    log.info(
        "a template was tested",
        extra={
            "action": "template_tested",
            "template_id": template_id,
            "version": given.template.version,
            "key_id": asked.key.key_id,
            "mails": len(results),
            "accepted": accepted,
        },
    )
    answer = {"version": given.template.version, "subject": mails[0].subject, "accepted": accepted, "results": results}
    await run_in_threadpool(_keep_test, here, asked, answer)
    return answer


def _begin_test(here: Installation, asked: Asked, body: TestBody) -> None:
    """Committed before the first mail leaves: no second request sends it again, whatever becomes of this one."""
    with here.database.writing() as session:
        asked.begin(session, now=here.clock.now())
        _check_may_leave(session, here, body)


def _keep_test(here: Installation, asked: Asked, answer: dict[str, Any]) -> None:
    kept = [{**one, "says": redact(one["says"])} for one in answer["results"]]
    for one in kept:
        del one["to"]
    with here.database.writing() as session:
        asked.keep(session, answer | {"results": kept}, 200)


def _marked(here: Installation, given: RenderInput) -> RenderInput:
    """The same with "[Test]" before its subject; of a long one the end is left out instead of the mail."""
    subject = _made(here, given).subject
    if len(subject) > LONGEST_SUBJECT - len(MARK):
        subject = f"{subject[: LONGEST_SUBJECT - len(MARK) - 1]}…"
    # As a value, not as a template: what the subject was filled with is not looked at again.
    return dataclasses.replace(
        given,
        arms=dict(given.arms) | {"subject": MARK + "{{ tested_subject }}"},
        variables=dict(given.variables) | {"tested_subject": subject},
    )


def _given(here: Installation, template_id: str, body: PreviewBody) -> RenderInput:
    with here.database.reading() as session:
        row = find_template(session, template_id, body.version)
        contact = None
        if body.user_id is not None:
            contact = session.get(ContactRow, find_contact(session, body.user_id))
    return RenderInput(
        send_id=0,
        contact_key=0 if contact is None else contact.contact_key,
        user_id="" if contact is None else contact.user_id,
        email=(contact.email if contact is not None else None) or "preview@kairos.example",
        traits=(body.traits or {}) if contact is None else contact.traits,
        template=Template.of(row),
        stream=body.stream,
        arms=body.arms,
    )


def _made(here: Installation, given: RenderInput) -> Email:
    [made] = render([given], now=here.clock.now(), settings=here.settings, number_links=None)
    if isinstance(made, RenderFailure):
        raise Invalid(made.reason)
    return made


def _check_may_leave(session: Session, here: Installation, body: TestBody) -> None:
    wanted = [address_hmac(here.settings.pepper, address) for address in body.to]
    barred = set(session.scalars(select(SuppressionRow.address_hmac).where(SuppressionRow.address_hmac.in_(wanted))))
    scopes = {EVERYTHING, stream_scope(body.stream), *(mailbox_scope(mailbox_of(address)) for address in body.to)}
    halted = [one.scope for one in halts_in_force(session) if one.scope in scopes]
    if halted:
        raise Conflict(f"sending is halted ({', '.join(halted)}); POST /v1/resume lifts it")
    for place, address in enumerate(body.to):
        if sandbox_refuses(address, here.settings.sandbox):
            raise Invalid(f"to.{place} lies outside the sandbox; KAIROS_SANDBOX lists what mail may leave to")
        if address_hmac(here.settings.pepper, address) in barred:
            raise Invalid(f"to.{place} is on the suppression list; a test goes to nobody who bounced or asked to stop")


async def _sent(provider: Provider, mail: Email) -> dict[str, Any]:
    async with provider.connection() as connection:
        receipt = await connection.check(mail.sender, mail.recipient)
        if receipt.outcome == "accepted":
            receipt = await connection.transmit(mail.message_bytes)
    return {"to": mail.recipient, "outcome": receipt.outcome, "code": receipt.code, "says": receipt.text}


def _shown(row: TemplateRow) -> dict[str, Any]:
    return {
        "id": row.template_id,
        "version": row.version,
        "name": row.name,
        "subject": row.subject,
        "source_format": row.source_format,
        "slots": list(slots_of(row.source)),
        "created_at": row.created_at,
    }
