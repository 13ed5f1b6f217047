"""A correction: a mail to exactly those who got the wrong one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.campaigns.drafts import NewCampaign, create_campaign, find_campaign
from service.errors import Conflict
from service.flow.audience import GOT_IT, models_of
from service.tables import CampaignRow

#: A correction leaves at once; its window lets the mails of those who sleep wait for the morning.
WINDOW = timedelta(hours=24)


@dataclass(frozen=True)
class Correction:
    """What is to be put right, and with which mail.

    Attributes
    ----------
    whom : mapping
        Narrows those who got the mail: ``states``, ``template_version``, ``arm``, ``from``, ``until`` as in the
        ``sends_of`` of `service.flow.audience.find_audience`.
    """

    template_id: str
    whom: Mapping[str, Any]
    name: str = ""
    window_start: datetime | None = None
    window_end: datetime | None = None
    timing: str = "at_start"


def correct_campaign(
    session: Session, campaign_id: str, correction: Correction, *, now: datetime, by: str | None = None
) -> str:
    """Id of a new draft, to those whose mail of the campaign was accepted or may have been.

    Whom that is, is looked up when the draft is planned and scheduled: pause or cancel what is wrong first. A
    correction counts against the frequency cap like any mail, but may be one more than it allows. It leaves at once
    unless told otherwise, and not in quiet hours.

    Raises
    ------
    Conflict
        If nothing of the campaign was ever scheduled.
    """
    wrong = find_campaign(session, campaign_id)
    if wrong.scheduled_at is None:
        raise Conflict(f"campaign {campaign_id} is {wrong.status} and was never scheduled; nobody got a mail of it")
    audience: dict[str, Any] = {"sends_of": {"campaign": campaign_id, "states": list(GOT_IT), **correction.whom}}
    models = models_of(wrong.audience)
    if models:  # its mails, too, go to those whom the scores picked
        audience["models"] = models
    begin = correction.window_start or now
    new = NewCampaign(
        name=correction.name or f"Correction of {wrong.name}"[:200],
        template_id=correction.template_id,
        window_start=begin,
        window_end=correction.window_end or begin + WINDOW,
        audience=audience,
        topic=wrong.topic,
        timing=correction.timing,
        corrects=campaign_id,
    )
    return create_campaign(session, new, now=now, by=by)


def corrections_of(session: Session, campaign_id: str) -> list[str]:
    """Ids of the campaigns that put this one right, oldest first."""
    query = select(CampaignRow.campaign_id).where(CampaignRow.corrects == campaign_id)
    return list(session.scalars(query.order_by(CampaignRow.created_at, CampaignRow.campaign_id)))
