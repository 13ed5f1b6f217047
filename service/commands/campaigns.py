"""`kairos campaigns`: look at them, schedule them, think again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.commands.shared import Json, answer, installation, instant_of, outline

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from service.database import Database
    from service.settings import Settings
    from training.serving import Serving

campaigns = typer.Typer(help="Campaigns: one mail to many.", no_args_is_help=True, rich_markup_mode=None)

#: What the command line is called where a key would be: it may approve what a key has made, and the reverse.
BY = "cli"
Id = Annotated[str, typer.Argument(metavar="CAMPAIGN", help="Its id, such as cmp_1a2b3c4d5e6f.")]


@campaigns.command("list")
def list_all(
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="Newest so many.")] = 50, as_json: Json = False
) -> None:
    """Campaigns, newest first.

    Example: kairos campaigns list --limit 10
    """
    from sqlalchemy import select

    from service.campaigns import campaign_details
    from service.tables import CampaignRow

    with installation() as (_settings, database), database.reading() as session:
        newest = select(CampaignRow).order_by(CampaignRow.created_at.desc(), CampaignRow.campaign_id.desc())
        report = {"campaigns": [campaign_details(row) for row in session.scalars(newest.limit(limit))]}
    answer(report, as_json, _table)


@campaigns.command()
def show(campaign: Id, as_json: Json = False) -> None:
    """One campaign: how it stands, who said so and why, its mails by state, and what corrects it.

    Example: kairos campaigns show cmp_1a2b3c4d5e6f
    """
    with installation() as (_settings, database), database.reading() as session:
        answer(_complete(session, campaign), as_json, outline)


@campaigns.command()
def plan(campaign: Id, as_json: Json = False) -> None:
    """Dry run of the whole audience; nothing is written and nothing is sent.

    Example: kairos campaigns plan cmp_1a2b3c4d5e6f
    """
    from service.campaigns import plan_campaign
    from service.clock import SystemClock

    with installation() as (settings, database):
        serving = _serving(database)
        with database.reading() as session:
            report = dataclasses.asdict(plan_campaign(session, campaign, serving, settings, now=SystemClock().now()))
    answer(report, as_json, outline)


@campaigns.command()
def approve(campaign: Id, as_json: Json = False) -> None:
    """Agree to a draft as it stands; one that was made or changed here needs a key of somebody else.

    Example: kairos campaigns approve cmp_1a2b3c4d5e6f
    """
    from service.campaigns import approve_campaign
    from service.clock import SystemClock

    with _changing() as (session, _settings):
        approve_campaign(session, campaign, by=BY, now=SystemClock().now())
        report = _complete(session, campaign)
    answer(report, as_json, outline)


@campaigns.command()
def schedule(campaign: Id, as_json: Json = False) -> None:
    """Turn a draft into sends, each at its contact's hour; a running worker sends them.

    Example: kairos campaigns schedule cmp_1a2b3c4d5e6f
    """
    from service.campaigns import prepare_campaign, schedule_prepared
    from service.clock import SystemClock

    with installation() as (settings, database):
        serving, now = _serving(database), SystemClock().now()
        with database.reading() as session:
            prepared = prepare_campaign(session, campaign, serving, settings, now=now)
        with database.writing() as session:
            counts = schedule_prepared(session, prepared, settings, now=now, by=BY)
            report = _complete(session, campaign) | {"counts": counts}
    answer(report, as_json, outline)


@campaigns.command()
def pause(
    campaign: Id,
    reason: Annotated[str, typer.Option(help="Why: it is shown with the campaign.")] = "no reason was given",
    as_json: Json = False,
) -> None:
    """Let nothing more of it leave until it is resumed; acts within seconds.

    Example: kairos campaigns pause cmp_1a2b3c4d5e6f --reason "wrong price"
    """
    from service.campaigns import pause_campaign
    from service.clock import SystemClock

    with _changing() as (session, _settings):
        taken = pause_campaign(session, campaign, reason=reason, by=BY, now=SystemClock().now())
        report = _complete(session, campaign) | {"taken_back": taken}
    answer(report, as_json, outline)


@campaigns.command()
def resume(
    campaign: Id,
    force: Annotated[bool, typer.Option("--force", help="Go on although its canary was found bad.")] = False,
    as_json: Json = False,
) -> None:
    """Let a paused campaign go on; what is too late by now expires.

    Example: kairos campaigns resume cmp_1a2b3c4d5e6f
    """
    from service.campaigns import resume_campaign
    from service.clock import SystemClock

    with _changing() as (session, settings):
        resumed = resume_campaign(session, campaign, settings, by=BY, now=SystemClock().now(), force=force)
        report = _complete(session, campaign) | dataclasses.asdict(resumed)
    answer(report, as_json, outline)


@campaigns.command()
def cancel(
    campaign: Id,
    reason: Annotated[str | None, typer.Option(help="Why: it is shown with the campaign and its mails.")] = None,
    as_json: Json = False,
) -> None:
    """Take back what has not left yet, for good.

    Example: kairos campaigns cancel cmp_1a2b3c4d5e6f --reason "the offer is over"
    """
    from service.campaigns import cancel_campaign
    from service.clock import SystemClock

    with _changing() as (session, _settings):
        cancelled = cancel_campaign(session, campaign, now=SystemClock().now(), reason=reason, by=BY)
        report = _complete(session, campaign) | {"cancelled": cancelled}
    answer(report, as_json, outline)


@campaigns.command()
def correct(
    campaign: Id,
    template: Annotated[str, typer.Option(help="The right mail: a template's id.")],
    name: Annotated[str, typer.Option(help="Name of the new campaign.")] = "",
    version: Annotated[int | None, typer.Option(min=1, help="Only mails of this version of the template.")] = None,
    arm: Annotated[str | None, typer.Option(help="Only mails that showed this arm: EXPERIMENT=ARM.")] = None,
    begin: Annotated[str | None, typer.Option("--from", help="Only mails that left from this instant on.")] = None,
    until: Annotated[str | None, typer.Option(help="Only mails that left before this instant.")] = None,
    as_json: Json = False,
) -> None:
    """Make a draft to exactly those who got the campaign's mail, or may have; then plan and schedule it.

    Example: kairos campaigns correct cmp_1a2b3c4d5e6f --template apology --from 2026-03-02T09:00:00Z
    """
    from service.campaigns import Correction, correct_campaign
    from service.clock import SystemClock

    whom: dict[str, Any] = {}
    if version is not None:
        whom["template_version"] = version
    if arm is not None:
        experiment, is_pair, arm_id = arm.partition("=")
        if not is_pair:
            raise typer.BadParameter(f"{arm!r} is no pair; write it as EXPERIMENT=ARM", param_hint="--arm")
        whom["arm"] = {"experiment": experiment, "arm": arm_id}
    with _changing() as (session, settings):
        if begin is not None:
            whom["from"] = instant_of(begin, settings, "--from", end_of_day=False).isoformat()
        if until is not None:
            whom["until"] = instant_of(until, settings, "--until").isoformat()
        made = correct_campaign(session, campaign, Correction(template, whom, name), now=SystemClock().now(), by=BY)
        report = _complete(session, made)
    answer(report, as_json, outline)


@contextmanager
def _changing() -> Iterator[tuple[Session, Settings]]:
    with installation() as (settings, database), database.writing() as session:
        yield session, settings


def _complete(session: Session, campaign_id: str) -> dict[str, Any]:
    from service.campaigns import campaign_in_full, find_campaign

    return campaign_in_full(session, find_campaign(session, campaign_id))


def _serving(database: Database) -> Serving:
    """The models that serve, as the API has them."""
    from service.clock import SystemClock
    from service.flow.predict import refresh_serving
    from training.serving import Serving

    serving = Serving()
    with database.reading() as session:
        refresh_serving(session, serving, now=SystemClock().now(), wait=True)
    return serving


def _table(report: dict[str, Any]) -> str:
    lines = [
        f"{one['id']:20} {one['status']:10} {one['window_start']:%Y-%m-%d %H:%M}  {one['name']}"
        for one in report["campaigns"]
    ]
    return "\n".join(lines) or "no campaigns yet"
