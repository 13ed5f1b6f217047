"""What a contact asked for: its topics, a break, how often; read and set by programs such as a shop's account page."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from service.api.installation import Installation, allow, aware, find_contact, installation
from service.errors import Conflict, Invalid
from service.keys import Key
from service.preferences import Preferences, Wishes, preferences_of, set_preferences
from service.suppression import topics_in_force

# Included before the contacts, whose shortest path takes whatever is left.
router = APIRouter(prefix="/v1/contacts", tags=["contacts"])


class PreferencesBody(BaseModel):
    """What the contact asks for now; break and frequency are set as they stand here, topics where they are named."""

    model_config = ConfigDict(extra="forbid")

    topics: dict[str, bool] = Field({}, max_length=100, description="Topic → whether mail about it is wanted.")
    snoozed_until: datetime | None = Field(None, description="No marketing mail before; null: no break.")
    most_per_week: int | None = Field(None, description="Marketing mails in any 7 days at most; null: the usual cap.")
    source: str | None = Field(
        None,
        min_length=1,
        max_length=80,
        description="What the person did, such as “account page”; needed to bring back who had unsubscribed.",
    )


@router.get("/{user_id:path}/preferences", dependencies=[Depends(allow("read"))])
def read_preferences(user_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Topics with the consent in force, break, frequency, and the cap that results."""
    with here.database.reading() as session:
        return _shown(session, here, user_id, find_contact(session, user_id))


@router.put("/{user_id:path}/preferences")
def put_preferences(
    user_id: str,
    body: PreferencesBody,
    key: Key = Depends(allow("write")),
    here: Installation = Depends(installation),
) -> dict[str, Any]:
    """Set what the contact asks for, as its preferences page would."""
    until = None if body.snoozed_until is None else aware(body.snoozed_until, "snoozed_until")
    with here.database.writing() as session:
        contact = find_contact(session, user_id)
        states = {topic: state for (_, topic), state in topics_in_force(session, [contact]).items()}
        known = [*here.settings.topic_names, *states]
        for topic, is_wanted in body.topics.items():
            if topic not in known:
                raise Invalid(
                    f"there is no topic {topic[:60]!r} (there are {', '.join(known)}); add it to KAIROS_TOPICS"
                )
            if is_wanted and states.get(topic) == "unsubscribed" and body.source is None:
                raise Conflict(
                    f"the contact has unsubscribed from {topic!r}; only the person's own act brings it back: "
                    "say in source what it was, such as account page"
                )
        wishes = Wishes(contact, body.topics, Preferences(until, body.most_per_week))
        source = f"api {key.key_id}" + ("" if body.source is None else f": {body.source}")
        set_preferences(session, [wishes], source=source, now=here.clock.now())
        return _shown(session, here, user_id, contact)


def _shown(session: Session, here: Installation, user_id: str, contact_key: int) -> dict[str, Any]:
    asked = preferences_of(session, [contact_key]).get(contact_key, Preferences())
    states = {topic: state for (_, topic), state in topics_in_force(session, [contact_key]).items()}
    topics = dict.fromkeys(here.settings.topic_names, "unknown") | states
    now = here.clock.now()
    return {
        "user_id": user_id,
        "topics": topics,
        "snoozed_until": asked.snoozed_until if asked.snoozed_until and asked.snoozed_until > now else None,
        "most_per_week": asked.most_per_week,
        "frequency_cap": here.settings.frequency_cap or None,
    }
