"""Mail templates: kept version by version, shown as they would arrive."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from sqlalchemy import func, select

from service.api.installation import Installation, allow, find_contact, installation
from service.api.paging import Cursor, Limit, page, position
from service.errors import Conflict, Invalid
from service.flow.render import (
    Email,
    RenderFailure,
    RenderInput,
    Template,
    proofread,
    render,
    slots_of,
    traits_of,
)
from service.halts import halts_in_force
from service.keys import Key
from service.providers.base import Provider, provider_from_url
from service.suppression import address_hmac
from service.tables import ContactRow, SuppressionRow, TemplateRow
from service.templates import NewTemplate, add_template, find_template, restore_template

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/templates", tags=["templates"])

#: Addresses that one test goes to.
MOST_TESTED = 5
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


@router.post("", status_code=201, dependencies=[Depends(allow("write"))])
def create(body: TemplateBody, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A new template, or a new version of one; what was sent before can still be shown as it was."""
    new = NewTemplate(body.id, body.subject, body.source, body.source_format, body.name)
    with here.database.writing() as session:
        version = add_template(session, new, now=here.clock.now())
        return _shown(find_template(session, body.id, version))


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


@router.post("/{template_id}/restore", status_code=201, dependencies=[Depends(allow("write"))])
def restore(template_id: str, body: RestoreBody, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A new version that is equal to an old one. Campaigns stay at the version they were made with."""
    with here.database.writing() as session:
        version = restore_template(session, template_id, body.version, now=here.clock.now())
        return _shown(find_template(session, template_id, version))


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
    key: Key = Depends(allow("send")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Send the preview to up to five addresses of one's own, its subject marked; where a sandbox is set, to those only.

    It leaves like any mail, but is neither tracked nor a row of the ledger: it is no intent to mail a contact, counts
    against nobody's cap and answers for no decision. The log keeps that it was sent, by which key, and no address.
    """
    given = await run_in_threadpool(_given, here, template_id, body)
    subject = given.arms.get("subject", given.template.subject)
    marked = dataclasses.replace(given, arms=dict(given.arms) | {"subject": f"[Test] {subject}"})
    await run_in_threadpool(_check_may_leave, here, body)
    mails = []
    for address in dict.fromkeys(body.to):
        own = dataclasses.replace(marked, email=address, nonce=secrets.token_hex(8))
        mails.append(await run_in_threadpool(_made, here, own))
    provider = provider_from_url(
        here.settings.smtp_url, home=here.settings.home, connections=here.settings.smtp_connections
    )
    results = [await _sent(provider, mail) for mail in mails]
    accepted = sum(result["outcome"] == "accepted" for result in results)
    log.info(
        "a template was tested",
        extra={
            "action": "template_tested",
            "template_id": template_id,
            "version": given.template.version,
            "key_id": key.key_id,
            "mails": len(results),
            "accepted": accepted,
        },
    )
    return {"version": given.template.version, "subject": mails[0].subject, "accepted": accepted, "results": results}


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


def _check_may_leave(here: Installation, body: TestBody) -> None:
    with here.database.reading() as session:
        wanted = [address_hmac(here.settings.pepper, address) for address in body.to]
        barred = set(
            session.scalars(select(SuppressionRow.address_hmac).where(SuppressionRow.address_hmac.in_(wanted)))
        )
        halted = [one.scope for one in halts_in_force(session) if one.scope in ("everything", f"stream:{body.stream}")]
    if halted:
        raise Conflict(f"sending is halted ({', '.join(halted)}); POST /v1/resume lifts it")
    allowed = [one.strip().lower() for one in here.settings.sandbox.split(",") if one.strip()]
    for place, address in enumerate(body.to):
        domain = f"@{address.rpartition('@')[2]}".lower()
        if allowed and address.lower() not in allowed and domain not in allowed:
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
