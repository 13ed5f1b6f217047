"""Approval: a large campaign leaves only after another key than its makers' has agreed to exactly this campaign."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from service.campaigns.drafts import EDITABLE, find_campaign
from service.errors import Conflict, Forbidden
from service.tables import ArmRow, CampaignRow


def approve_campaign(session: Session, campaign_id: str, *, by: str, now: datetime) -> CampaignRow:
    """Agree to the draft as it stands: audience, window, template version, experiments and their arms.

    A change of any of them voids it. The list behind an audience may grow: what is approved is its rule.

    Raises
    ------
    Conflict
        If the campaign is not a draft.
    Forbidden
        If ``by`` made the draft or last changed it.
    """
    campaign = find_campaign(session, campaign_id, for_update=True)
    if campaign.status != "draft":
        raise Conflict(f"campaign {campaign_id} is {campaign.status}; only a draft can be approved")
    if by == campaign.created_by or by in campaign.editors:
        did = "made" if by == campaign.created_by else "changed"
        raise Forbidden(f"key {by} {did} campaign {campaign_id}; another key with the scope send has to approve it")
    campaign.approved_at, campaign.approved_by = now, by
    campaign.approved_digest = digest_of(session, campaign)
    session.flush()
    return campaign


def check_approval(session: Session, campaign: CampaignRow, recipients: int, approval_above: int) -> None:
    """Refuse to schedule a campaign that needs an approval and has none for what it is now.

    Raises
    ------
    Conflict
        Naming the recipients, the limit and how to get the approval.
    """
    if not approval_above or recipients <= approval_above:
        return
    if campaign.approved_digest == digest_of(session, campaign):
        return
    stands = "it is not approved" if campaign.approved_at is None else "it was changed after it was approved"
    raise Conflict(
        f"campaign {campaign.campaign_id} goes to {recipients:,} contacts, above the {approval_above:,} of "
        f"KAIROS_APPROVAL_ABOVE, and {stands}; a key that neither made nor changed it has to call "
        f"POST /v1/campaigns/{campaign.campaign_id}/approve",
        recipients=recipients,
        approval_above=approval_above,
    )


def digest_of(session: Session, campaign: CampaignRow) -> str:
    """SHA-256 of what the mails depend on."""
    arms = session.execute(
        select(ArmRow.experiment_id, ArmRow.arm_id, ArmRow.content)
        .where(ArmRow.experiment_id.in_(campaign.experiments))
        .order_by(ArmRow.experiment_id, ArmRow.arm_id)
    )
    what = {name: getattr(campaign, name) for name in EDITABLE if name != "name"}
    what["arms"] = [list(arm) for arm in arms]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()
