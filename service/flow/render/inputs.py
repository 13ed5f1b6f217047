"""What mails are made of: templates, contacts, arms and variables of sends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.flow.render.template import SourceFormat
from service.tables import ArmRow, ContactRow, DecisionRow, ExperimentRow, SendRow, TemplateRow

__all__ = ["RenderFailure", "RenderInput", "Template", "gather"]


@dataclass(frozen=True, slots=True)
class Template:
    """A version of a template, as stored."""

    template_id: str
    version: int
    subject: str
    source: str
    source_format: SourceFormat
    compiled_html: str

    @classmethod
    def of(cls, row: TemplateRow) -> Template:
        """The version that ``row`` holds."""
        return cls(
            template_id=row.template_id,
            version=row.version,
            subject=row.subject,
            source=row.source,
            source_format="html" if row.source_format == "html" else "mjml",
            compiled_html=row.compiled_html,
        )


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
    #: Values that came with this message alone; they win over traits of the same name.
    variables: Mapping[str, Any] = field(default_factory=dict)
    #: Gives a mail without a send of its own, such as a test, a Message-ID of its own.
    nonce: str = ""


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
    """What each send's mail is made of, in the order of ``sends``; at most five queries for up to 10,000 of them."""
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
    templates = {(row.template_id, row.version): Template.of(row) for row in rows}
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
    messages = [send.send_id for send in sends if send.campaign_id is None]  # only these come with variables
    variables: dict[int, Any] = {}
    if messages:
        query = select(SendRow.send_id, SendRow.variables).where(SendRow.send_id.in_(messages))
        variables = {row.send_id: row.variables for row in session.execute(query) if row.variables}

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
                    variables=variables.get(send.send_id, {}),
                )
            )
    return inputs
