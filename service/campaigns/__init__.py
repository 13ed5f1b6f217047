"""Campaigns: one mail to many. Draft, plan (a dry run of the whole audience), schedule, think again, report."""

from service.campaigns.approval import approve_campaign
from service.campaigns.canary import is_canary_watched, judge_canaries
from service.campaigns.correcting import Correction, correct_campaign, corrections_of
from service.campaigns.drafts import NewCampaign, create_campaign, edit_campaign, find_campaign
from service.campaigns.lifecycle import (
    Resumed,
    cancel_campaign,
    pause_campaign,
    prepare_campaign,
    resume_campaign,
    resume_sending,
    schedule_campaign,
    schedule_prepared,
    stop_sending,
)
from service.campaigns.planning import CampaignPlan, limits_of, plan_campaign
from service.campaigns.report import STATES, TERMINAL_STATES, campaign_report
from service.campaigns.shown import campaign_details, campaign_in_full

__all__ = [
    "STATES",
    "TERMINAL_STATES",
    "CampaignPlan",
    "Correction",
    "NewCampaign",
    "Resumed",
    "approve_campaign",
    "campaign_details",
    "campaign_in_full",
    "campaign_report",
    "cancel_campaign",
    "correct_campaign",
    "corrections_of",
    "create_campaign",
    "edit_campaign",
    "find_campaign",
    "is_canary_watched",
    "judge_canaries",
    "limits_of",
    "pause_campaign",
    "plan_campaign",
    "prepare_campaign",
    "resume_campaign",
    "resume_sending",
    "schedule_campaign",
    "schedule_prepared",
    "stop_sending",
]
