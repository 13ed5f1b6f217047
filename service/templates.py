"""Templates of mails: checked, compiled and kept version by version; and the ones that come with Kairos."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from service.errors import Invalid, NotFound
from service.flow.render import check_subject, compile_template
from service.settings import CHECKOUT
from service.tables import TemplateRow

_PACKAGED = Path(__file__).parent / "_templates"
_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}")


@dataclass(frozen=True)
class NewTemplate:
    """A template before it is kept: MJML or HTML with Liquid, and the subject where no experiment gives one."""

    template_id: str
    subject: str
    source: str
    source_format: str = "mjml"
    name: str = ""


def add_template(session: Session, new: NewTemplate, *, now: datetime) -> int:
    """Number of the template's new version; earlier ones stay, so that what was sent can be shown as it was.

    Raises
    ------
    Invalid
        If the id, the subject or the source is not acceptable; names the line and the remedy.
    """
    if not _ID.fullmatch(new.template_id):
        raise Invalid(f"template id {new.template_id!r} is not acceptable; use up to 60 of a-z, 0-9, - and _")
    check_subject(new.subject)
    compiled = compile_template(new.source, new.source_format)  # type: ignore[arg-type]  # it refuses unknown formats
    last = session.scalar(select(func.max(TemplateRow.version)).where(TemplateRow.template_id == new.template_id))
    version = int(last or 0) + 1
    session.add(
        TemplateRow(
            template_id=new.template_id,
            version=version,
            name=new.name or new.template_id,
            subject=new.subject,
            source=new.source,
            source_format=new.source_format,
            compiled_html=compiled,
            created_at=now,
        )
    )
    session.flush()
    return version


def restore_template(session: Session, template_id: str, version: int, *, now: datetime) -> int:
    """Number of a new version that is equal to an old one; campaigns stay at the version they were made with.

    Raises
    ------
    NotFound
        If there is no such version.
    """
    old = find_template(session, template_id, version)
    again = NewTemplate(template_id, old.subject, old.source, old.source_format, old.name)
    return add_template(session, again, now=now)


def find_template(session: Session, template_id: str, version: int | None = None) -> TemplateRow:
    """A version of a template, the newest by default.

    Raises
    ------
    NotFound
        If there is none.
    """
    query = select(TemplateRow).where(TemplateRow.template_id == template_id)
    if version is not None:
        query = query.where(TemplateRow.version == version)
    row = session.scalars(query.order_by(TemplateRow.version.desc()).limit(1)).first()
    if row is None:
        which = f"template {template_id[:60]!r}" if version is None else f"version {version} of {template_id[:60]!r}"
        raise NotFound(f"there is no {which}; GET /v1/templates lists them")
    return row


def bundled_template(template_id: str, subject: str = "News from the shop") -> NewTemplate:
    """A template that comes with Kairos, from ``templates/email``.

    Raises
    ------
    NotFound
        Naming those that there are.
    """
    folder = next(path for path in (CHECKOUT / "templates" / "email", _PACKAGED / "email") if path.is_dir())
    path = folder / f"{template_id}.mjml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.mjml")))
        raise NotFound(f"no template {template_id!r} comes with Kairos; there are {known}")
    return NewTemplate(template_id, subject, path.read_text(encoding="utf-8"))
