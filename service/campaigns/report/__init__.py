"""What came of campaigns, one by one and over time; as values, or as CSV."""

from service.campaigns.report.campaign import STATES, TERMINAL_STATES, campaign_report
from service.campaigns.report.overview import campaigns_report, hours_report, overview
from service.campaigns.report.periods import By, Periods
from service.campaigns.report.sheets import campaign_sheet, read_sheet, sheet

__all__ = [
    "STATES",
    "TERMINAL_STATES",
    "By",
    "Periods",
    "campaign_report",
    "campaign_sheet",
    "campaigns_report",
    "hours_report",
    "overview",
    "read_sheet",
    "sheet",
]
