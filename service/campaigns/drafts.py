"""Drafts: what a campaign is before anything of it is planned."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import Invalid, NotFound
from service.flow.audience import check_rule
from service.flow.render import slots_of
from service.flow.schedule import as_utc, check_waves
from service.tables import CampaignRow, ExperimentRow
from service.templates import find_template


@dataclass(frozen=True)
class NewCampaign:
    """A campaign before it is created."""

    name: str
    template_id: str
    window_start: datetime
    window_end: datetime
    audience: Mapping[str, Any]
    experiments: Sequence[str] = ()
    topic: str = "marketing"
    holdout_share: float = 0.0
    #: best_hour | spread | at_start
    timing: str = "best_hour"
    #: Parts, spread over the window, that a send ``at_start`` is cut into.
    waves: int = 1
    #: Given where a run must repeat: the draws of hours and holdouts hang on it. Random by default.
    campaign_id: str | None = None


def create_campaign(session: Session, new: NewCampaign, *, now: datetime) -> str:
    """Id of a new campaign, a draft.

    Raises
    ------
    NotFound
        If the template or an experiment does not exist.
    Invalid
        If the audience is not understood, an experiment's slot is not in the template, or two fill the same.
    """
    check_rule(new.audience)
    check_waves(new.waves, new.timing)
    template = find_template(session, new.template_id)
    slots = dict(
        session.execute(
            select(ExperimentRow.experiment_id, ExperimentRow.slot).where(
                ExperimentRow.experiment_id.in_(new.experiments)
            )
        ).all()
    )
    for experiment_id in new.experiments:
        if experiment_id not in slots:
            raise NotFound(f"there is no experiment {experiment_id!r}; GET /v1/experiments lists them")
    offered = slots_of(template.source)
    for experiment_id, slot in slots.items():
        if slot not in offered:
            raise Invalid(
                f"experiment {experiment_id} fills the slot {slot!r}, which template {new.template_id!r} lacks; "
                f"it has {', '.join(offered)}"
            )
    filled = Counter(slots.values())
    if any(count > 1 for count in filled.values()):
        slot = filled.most_common(1)[0][0]
        raise Invalid(f"two experiments fill the slot {slot!r}; a slot takes one experiment in a campaign")
    campaign_id = new.campaign_id or f"cmp_{secrets.token_hex(6)}"
    campaign = CampaignRow(
        campaign_id=campaign_id,
        name=new.name,
        status="draft",
        template_id=new.template_id,
        template_version=template.version,
        audience=dict(new.audience),
        experiments=list(new.experiments),
        topic=new.topic,
        window_start=as_utc(new.window_start),
        window_end=as_utc(new.window_end),
        holdout_share=new.holdout_share,
        timing=new.timing,
        waves=new.waves,
        created_at=now,
        scheduled_at=None,
    )
    session.add(campaign)
    session.flush()
    return campaign_id


def find_campaign(session: Session, campaign_id: str, *, for_update: bool = False) -> CampaignRow:
    """The campaign's row.

    Raises
    ------
    NotFound
        If there is none of that id.
    """
    campaign = session.get(CampaignRow, campaign_id, with_for_update=for_update or None)
    if campaign is None:
        raise NotFound(f"there is no campaign {campaign_id!r}; GET /v1/campaigns lists them")
    return campaign
