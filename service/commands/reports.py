"""`kairos report`: what came of campaigns and of all mail over time, as lines, JSON or CSV."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.shared import Json, answer, installation, note

if TYPE_CHECKING:
    from datetime import date

    from service.settings import Settings

app = typer.Typer(help="What came of the mail.", no_args_is_help=True, rich_markup_mode=None)

Csv = Annotated[Path | None, typer.Option("--csv", help="Write the figures to this CSV file.")]


@app.command("overview")
def overview_command(
    first: Annotated[str | None, typer.Option("--from", help="First day; by default 29 days before the last.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Last day, included; today by default.")] = None,
    by: Annotated[str, typer.Option("--by", help="day, week (from Monday) or month.")] = "day",
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """Mails, answers, orders, money and subscribers over time, in the installation's zone.

    Example: kairos report overview --from 2026-03-01 --until 2026-03-31 --by week --csv march.csv
    """
    from service.campaigns.report import Periods, overview, sheet

    if by not in ("day", "week", "month"):
        raise typer.BadParameter(f"{by!r} is no period; write day, week or month", param_hint="--by")
    with installation() as (settings, database), database.reading() as session:
        last = _day(until, "--until") or _today(settings)
        begin = _day(first, "--from") or last - timedelta(days=29)
        periods = Periods.between(begin, last, by, settings.timezone)  # type: ignore[arg-type]
        report = overview(session, settings, periods, now=datetime.now(UTC))
    _write(csv, lambda: sheet(report["periods"]))
    answer(report, as_json, _overview_lines)


@app.command("campaign")
def campaign_command(
    campaign_id: Annotated[str, typer.Argument(metavar="ID", help="The campaign's id.")],
    csv: Csv = None,
    as_json: Json = False,
) -> None:
    """What came of a campaign.

    Example: kairos report campaign cmp_1a2b3c4d5e6f --csv campaign.csv
    """
    from service.campaigns.report import campaign_report, campaign_sheet

    with installation() as (settings, database), database.reading() as session:
        report = campaign_report(session, campaign_id, settings, now=datetime.now(UTC))
    _write(csv, lambda: campaign_sheet(report))
    answer(report, as_json, _campaign_lines)


def _day(text: str | None, option: str) -> date | None:
    from datetime import date

    if text is None:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date; write it as 2026-03-02", param_hint=option) from None


def _today(settings: Settings) -> date:
    from zoneinfo import ZoneInfo

    return datetime.now(ZoneInfo(settings.timezone)).date()


def _write(path: Path | None, text: Any) -> None:
    if path is None:
        return
    try:
        # The mark lets spreadsheets read other scripts as what they are.
        path.write_text(text(), encoding="utf-8-sig", newline="")
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be written: {error.strerror}", param_hint="--csv") from None
    note(f"{path} is written")


def _money(minor: float, report: dict[str, Any]) -> str:
    from service.flow.ingest.values import decimals_of

    decimals = decimals_of(report["currency"])
    return f"{minor / 10**decimals:,.{decimals}f} {report['currency']}"


def _rate(one: dict[str, Any]) -> str:
    if one["rate"] is None:
        return str(one["why"])
    low, high = one["interval"]
    remark = " (too little data)" if one["why"] else ""
    return f"{one['count']:,} = {100 * one['rate']:.2f} % ({100 * low:.2f} to {100 * high:.2f}){remark}"


def _overview_lines(report: dict[str, Any]) -> str:
    totals = report["totals"]
    lines = [f"{report['from']} until {report['until']} ({report['timezone']})"]
    lines += [
        f"  {row['from']}  {row['accepted']:>8,} mails  {row['human_opens']:>7,} opened"
        f"  {row['human_clicks']:>7,} clicked"
        f"  {row['orders']:>6,} orders  {_money(row['revenue_minor'], report):>16}"
        f"  of it {_money(row['revenue_attributed_minor'], report)} attributed"
        for row in report["periods"]
    ]
    lines += [f"{name.replace('_', ' ')}: {_rate(one)}" for name, one in report["rates"].items()]
    lines.append(
        f"revenue {_money(totals['revenue_minor'], report)} = {_money(totals['revenue_attributed_minor'], report)} "
        f"attributed + {_money(totals['revenue_unattributed_minor'], report)} not"
    )
    for topic, rows in report["subscribers"].items():
        gained, lost = (sum(row[name] for row in rows) for name in ("new", "lost"))
        lines.append(f"subscribers to {topic}: +{gained:,} -{lost:,}, {rows[-1]['total']:,} in the end")
    lines.append(f"against {report['incremental']['against']}: {report['incremental']['sentence']}")
    return "\n".join(lines)


def _campaign_lines(report: dict[str, Any]) -> str:
    mails = report["mails"]
    told = ", ".join(f"{n:,} {state}" for state, n in report["sends"].items() if n)
    lines = [
        f"{report['name']} ({report['campaign_id']}, {report['status']}): {report['planned']:,} planned; {told}",
        f"  delivered: {mails['delivered']:,} ({mails['delivered_basis']})",
    ]
    for name in (
        "human_opens", "human_clicks", "click_to_open", "bounces_hard", "bounces_soft", "complaints", "unsubscribes",
        "conversions",
    ):  # fmt: skip
        lines.append(f"  {name.replace('_', ' ')}: {_rate(mails[name])}")
    lines.append(f"  by machines: {mails['machine_opens']:,} opened, {mails['machine_clicks']:,} clicked")
    days = report["attribution"]["days"]
    lines.append(f"  revenue within {days} days: {_money(mails['revenue_minor'], report)}, {mails['orders']:,} orders")
    lines.append(f"  against {report['incremental']['against']}: {report['incremental']['sentence']}")
    lines += [f"  {one['sends']:,} {one['state']}: {one['reason']}" for one in report["reasons"]]
    return "\n".join(lines)
