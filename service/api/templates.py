"""Mail templates: kept version by version, shown as they would arrive."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import func, select

from service.api.installation import Installation, allow, find_contact, installation
from service.api.paging import Cursor, Limit, page, position
from service.errors import Invalid
from service.flow.render import RenderFailure, RenderInput, Template, render, slots_of
from service.tables import ContactRow, TemplateRow
from service.templates import NewTemplate, add_template, find_template, restore_template

router = APIRouter(prefix="/v1/templates", tags=["templates"])


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
    arms: dict[str, str] = Field(default={}, description="Content by slot; `subject` replaces the subject line.")
    version: int | None = Field(None, ge=1)


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
def read(template_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """The newest version, with its source."""
    with here.database.reading() as session:
        row = find_template(session, template_id)
    return _shown(row) | {"source": row.source}


@router.post("/{template_id}/restore", status_code=201, dependencies=[Depends(allow("write"))])
def restore(template_id: str, body: RestoreBody, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A new version that is equal to an old one. Campaigns stay at the version they were made with."""
    with here.database.writing() as session:
        version = restore_template(session, template_id, body.version, now=here.clock.now())
        return _shown(find_template(session, template_id, version))


@router.post("/{template_id}/preview", dependencies=[Depends(allow("read"))])
def preview(template_id: str, body: PreviewBody, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Subject, HTML and text as they would arrive, without tracking. Nothing is sent and nothing is kept."""
    with here.database.reading() as session:
        row = find_template(session, template_id, body.version)
        contact = None
        if body.user_id is not None:
            contact = session.get(ContactRow, find_contact(session, body.user_id))
    given = RenderInput(
        send_id=0,
        contact_key=0 if contact is None else contact.contact_key,
        user_id="" if contact is None else contact.user_id,
        email=(contact.email if contact is not None else None) or "preview@kairos.example",
        traits={} if contact is None else contact.traits,
        template=Template(
            row.template_id,
            row.version,
            row.subject,
            row.source,
            "html" if row.source_format == "html" else "mjml",
            row.compiled_html,
        ),
        arms=body.arms,
    )
    made = render([given], now=here.clock.now(), settings=here.settings, number_links=None)[0]
    if isinstance(made, RenderFailure):
        raise Invalid(made.reason)
    return {"version": row.version, "subject": made.subject, "html": made.html, "text": made.text}


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
