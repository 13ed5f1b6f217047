"""Drafts: what a campaign is before anything of it is planned."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.errors import Conflict, Invalid, NotFound
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
    #: Version of the template; None: the newest there is now.
    template_version: int | None = None
    #: Share of the audience whose mails leave first and are watched.
    canary_share: float = 0.0
    #: engagement | profit; None: the installation's.
    objective: str | None = None
    #: The campaign whose mails this one puts right.
    corrects: str | None = None
    #: Given where a run must repeat: the draws of hours and holdouts hang on it. Random by default.
    campaign_id: str | None = None


#: What may change of a draft.
EDITABLE = tuple(field.name for field in fields(NewCampaign) if field.name not in ("corrects", "campaign_id"))


def create_campaign(session: Session, new: NewCampaign, *, now: datetime, by: str | None = None) -> str:
    """Id of a new campaign, a draft.

    Parameters
    ----------
    by : str, optional
        Key that asks for it: another one has to approve a large campaign.

    Raises
    ------
    NotFound
        If the template, an experiment or the campaign of a ``sends_of`` audience does not exist.
    Invalid
        If the audience is not understood, the window is empty, an experiment's slot is not in the template, or two fill
        the same.
    """
    campaign_id = new.campaign_id or f"cmp_{secrets.token_hex(6)}"
    campaign = CampaignRow(
        campaign_id=campaign_id,
        status="draft",
        canary_state="none",
        corrects=new.corrects,
        created_at=now,
        created_by=by,
        editors=[],
        **_checked(session, new),
    )
    session.add(campaign)
    session.flush()
    return campaign_id


def edit_campaign(
    session: Session, campaign_id: str, changes: Mapping[str, Any], *, by: str | None = None
) -> CampaignRow:
    """Change a draft; what is not named stays. An approval that it had is void.

    The template stays at the version that it was made with, unless another template or version is named.

    Parameters
    ----------
    changes : mapping
        Some of `EDITABLE`.

    Raises
    ------
    Conflict
        If the campaign is not a draft.
    NotFound, Invalid
        As `create_campaign`.
    """
    campaign = find_campaign(session, campaign_id, for_update=True)
    if campaign.status != "draft":
        raise Conflict(
            f"campaign {campaign_id} is {campaign.status}; only a draft can be changed: cancel it and make a new one"
        )
    unknown = sorted(set(changes) - set(EDITABLE))
    if unknown:
        raise Invalid(f"{unknown[0]!r} of a campaign cannot be changed; what can is {', '.join(EDITABLE)}")
    now_is = NewCampaign(**{name: getattr(campaign, name) for name in EDITABLE})
    if "template_id" in changes and "template_version" not in changes:
        now_is = replace(now_is, template_version=None)
    for name, value in _checked(session, replace(now_is, **changes)).items():
        setattr(campaign, name, value)
    if by is not None and by not in campaign.editors:
        campaign.editors = [*campaign.editors, by]
    campaign.approved_at = campaign.approved_by = campaign.approved_digest = None
    session.flush()
    return campaign


def find_campaign(session: Session, campaign_id: str, *, for_update: bool = False) -> CampaignRow:
    """The campaign's row.

    Raises
    ------
    NotFound
        If there is none of that id.
    """
    campaign = session.get(CampaignRow, campaign_id, with_for_update=for_update or None)
    if campaign is None:
        raise NotFound(f"there is no campaign {campaign_id[:60]!r}; GET /v1/campaigns lists them")
    return campaign


def _checked(session: Session, new: NewCampaign) -> dict[str, Any]:
    """The columns of a draft that can be sent."""
    check_rule(new.audience)
    corrected = new.audience.get("sends_of", {}).get("campaign")
    if corrected is not None:
        find_campaign(session, corrected)
    check_waves(new.waves, new.timing)
    begin, end = as_utc(new.window_start), as_utc(new.window_end)
    if end <= begin:
        raise Invalid(f"window_end {end.isoformat()} is not after window_start {begin.isoformat()}; give a window")
    if not 0 <= new.canary_share <= 0.5:
        raise Invalid(f"canary_share {new.canary_share} is outside 0 to 0.5; 0.05 watches the first twentieth")
    if new.objective not in (None, "engagement", "profit"):
        raise Invalid(f"objective {new.objective!r} is not known; write engagement or profit, or leave it out")
    template = find_template(session, new.template_id, new.template_version)
    _check_slots(session, new, slots_of(template.source))
    return {
        "name": new.name,
        "template_id": new.template_id,
        "template_version": template.version,
        "audience": dict(new.audience),
        "experiments": list(new.experiments),
        "topic": new.topic,
        "window_start": begin,
        "window_end": end,
        "holdout_share": new.holdout_share,
        "timing": new.timing,
        "waves": new.waves,
        "canary_share": new.canary_share,
        "objective": new.objective,
    }


def _check_slots(session: Session, new: NewCampaign, offered: Sequence[str]) -> None:
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
