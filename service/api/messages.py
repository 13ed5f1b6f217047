"""Single messages: a receipt, a reminder; and why any mail of the ledger was sent as it was."""

from __future__ import annotations

import secrets
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from service.api.installation import Installation, allow, find_contact, installation
from service.errors import NotFound
from service.keys import Key
from service.links import LARGEST_ID
from service.messages import LONGEST_USEFUL_HOURS, NewMessage, create_message, explain_message

router = APIRouter(prefix="/v1/messages", tags=["messages"])


class MessageBody(BaseModel):
    """One mail to one contact."""

    model_config = ConfigDict(extra="forbid")

    user_id: str = Field(min_length=1, max_length=255)
    template_id: str = Field(min_length=1, max_length=60)
    template_version: int | None = Field(None, ge=1, description="the newest version if left out")
    stream: Literal["transactional", "marketing"] = "transactional"
    topic: str | None = Field(None, min_length=1, max_length=60, description="the stream's name if left out")
    variables: dict[str, JsonValue] = Field(
        default={}, description="values for the template, to 8 KB; they win over traits of the same name"
    )
    send_at: AwareDatetime | None = Field(None, description="not before; at once if left out")
    best_hour: bool = Field(False, description="at the hour at which the contact most probably engages")
    within_hours: Annotated[float, Field(gt=0, le=LONGEST_USEFUL_HOURS, allow_inf_nan=False)] | None = Field(
        None, description="after so many hours it is better not sent: 72 for transactional mail, 24 for marketing"
    )


@router.post("", status_code=201)
def create(
    body: MessageBody,
    answer: Response,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
    key: Key = Depends(allow("send")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Put one message into the ledger; the same Idempotency-Key again answers the same message (200).

    A message that may not be sent is answered too: its ``state`` and ``reason`` say why.
    """
    own = f"{key.key_id}/{idempotency_key or secrets.token_hex(16)}"
    with here.database.writing() as session:
        new = NewMessage(
            contact_key=find_contact(session, body.user_id),
            template_id=body.template_id,
            template_version=body.template_version,
            stream=body.stream,
            topic=body.topic or body.stream,
            variables=body.variables,
            send_at=body.send_at,
            best_hour=body.best_hour,
            within_hours=body.within_hours,
        )
        made = create_message(session, new, here.serving, here.settings, now=here.clock.now(), idempotency_key=own)
        if not made.is_new:
            answer.status_code = 200
        return explain_message(session, made.send_id)


@router.get("/{message_id}", dependencies=[Depends(allow("read"))])
def read(message_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """How a mail stands, of a campaign too, what became of it, and why this person, hour and variant."""
    is_number = message_id.isascii() and message_id.isdigit() and len(message_id) <= 19
    if not is_number or int(message_id) > LARGEST_ID:
        raise NotFound(f"there is no message {message_id[:60]!r}; POST /v1/messages answers the id of one")
    with here.database.reading() as session:
        return explain_message(session, int(message_id))
