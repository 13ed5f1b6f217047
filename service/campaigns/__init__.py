"""Campaigns: one mail to many. Create, plan (a dry run of the whole audience), schedule, cancel, report."""

from service.campaigns.drafts import NewCampaign, create_campaign, find_campaign
from service.campaigns.lifecycle import cancel_campaign, schedule_campaign
from service.campaigns.planning import CampaignPlan, limits_of, plan_campaign
from service.campaigns.report import STATES, TERMINAL_STATES, campaign_report

__all__ = [
    "STATES",
    "TERMINAL_STATES",
    "CampaignPlan",
    "NewCampaign",
    "campaign_report",
    "cancel_campaign",
    "create_campaign",
    "find_campaign",
    "limits_of",
    "plan_campaign",
    "schedule_campaign",
]
