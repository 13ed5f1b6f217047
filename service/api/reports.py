"""Reports: what came of a campaign, of all mail over time, and hour by hour; JSON, or CSV for spreadsheets."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from fastapi import APIRouter, Depends, Query, Request, Response
from sqlalchemy import select

from features.tables import from_micros, to_micros
from service.api.installation import Installation, allow, installation
from service.api.paging import Cursor, before, page, position
from service.campaigns.report import (
    By,
    Periods,
    campaign_report,
    campaign_sheet,
    campaigns_report,
    hours_report,
    overview,
    sheet,
)
from service.tables import CampaignRow


async def one_at_a_time(request: Request) -> AsyncIterator[None]:
    """A report reads all mails of its range into memory: one is made at a time, the others wait their turn."""
    state = request.app.state
    if not hasattr(state, "report_turn"):
        state.report_turn = asyncio.Semaphore(1)
    async with state.report_turn:
        yield


router = APIRouter(prefix="/v1", tags=["reports"], dependencies=[Depends(allow("read")), Depends(one_at_a_time)])

Format = Annotated[Literal["json", "csv"], Query(description="`csv` reads in a spreadsheet; texts cannot run there.")]
From = Annotated[date | None, Query(alias="from", description="First day, in the installation's zone.")]
Until = Annotated[date | None, Query(description="Last day, included; today by default.")]

#: Days of a report that names no first day.
DEFAULT_DAYS = 30


@router.get("/campaigns/{campaign_id}/report", response_model=None)
def of_campaign(
    campaign_id: str, format: Format = "json", here: Installation = Depends(installation)
) -> dict[str, Any] | Response:
    """What came of a campaign: mails, answers, orders and money, by hour and arm, and profit against the holdout."""
    with here.database.reading() as session:
        report = campaign_report(session, campaign_id, here.settings, now=here.clock.now())
    return _csv(campaign_sheet(report), f"campaign-{campaign_id}") if format == "csv" else finite(report)


@router.get("/reports/overview", response_model=None)
def over_time(
    first: From = None,
    until: Until = None,
    by: Annotated[By, Query(description="Weeks begin on Monday.")] = "day",
    format: Format = "json",
    here: Installation = Depends(installation),
) -> dict[str, Any] | Response:
    """Mails, answers, orders, money and subscribers of each period; attributed + unattributed = the shop's revenue."""
    periods = periods_of(here, first, until, by)
    with here.database.reading() as session:
        report = overview(session, here.settings, periods, now=here.clock.now())
    return _csv(sheet(report["periods"]), "overview") if format == "csv" else finite(report)


@router.get("/reports/hours", response_model=None)
def by_hour(
    first: From = None,
    until: Until = None,
    format: Format = "json",
    here: Installation = Depends(installation),
) -> dict[str, Any] | Response:
    """What came of the mails of a range, by the local hour they were assigned and the one they left at."""
    periods = periods_of(here, first, until, "day")
    with here.database.reading() as session:
        report = hours_report(session, here.settings, periods, now=here.clock.now())
    if format == "csv":
        parts = [name for name, rows in report.items() if isinstance(rows, list)]
        return _csv(sheet({"part": name} | row for name in parts for row in report[name]), "hours")
    return finite(report)


@router.get("/reports/campaigns", response_model=None)
def side_by_side(
    format: Format = "json",
    limit: Annotated[int, Query(ge=1, le=200, description="Campaigns a page; the mails of all of them are read.")] = 20,
    cursor: Cursor = None,
    here: Installation = Depends(installation),
) -> dict[str, Any] | Response:
    """Campaigns with their key figures, newest first."""
    key = here.settings.signing_key
    query = select(CampaignRow).order_by(CampaignRow.created_at.desc(), CampaignRow.campaign_id.desc())
    last = position(key, cursor, "campaign reports")
    if last is not None:
        query = query.where(before((CampaignRow.created_at, CampaignRow.campaign_id), (from_micros(last[0]), last[1])))
    with here.database.reading() as session:
        rows = session.scalars(query.limit(limit + 1)).all()
        figures = campaigns_report(session, here.settings, rows[:limit], now=here.clock.now())
    if format == "csv":
        return _csv(sheet(figures), "campaigns")
    told = {one["campaign_id"]: one for one in figures}
    return finite(
        page(
            key,
            rows,
            limit,
            lambda row: told[row.campaign_id],
            lambda row: [to_micros(row.created_at), row.campaign_id],
            "campaign reports",
        )
    )


def periods_of(here: Installation, first: date | None, until: date | None, by: By) -> Periods:
    """The periods asked about: by default the thirty days up to today, in the installation's zone."""
    last = until or here.clock.now().astimezone(ZoneInfo(here.settings.timezone)).date()
    return Periods.between(first or last - timedelta(days=DEFAULT_DAYS - 1), last, by, here.settings.timezone)


def finite(value: Any) -> Any:
    """The value with null for numbers that are none, which JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return value.isoformat() if isinstance(value, datetime) else value


def _csv(text: str, name: str) -> Response:
    # The mark lets spreadsheets read other scripts as what they are.
    return Response(
        ("\ufeff" + text).encode(),
        media_type="text/csv; charset=utf-8",
        headers={
            "Content-Disposition": f'attachment; filename="{"".join(c for c in name if c.isalnum() or c in "-_")}.csv"'
        },
    )
