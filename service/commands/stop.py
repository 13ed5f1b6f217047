"""`kairos stop` and `kairos resume`: nothing leaves, or everything again."""

from __future__ import annotations

from typing import Annotated

import typer

from service.commands.shared import Json, answer, installation

app = typer.Typer(rich_markup_mode=None)

BY = "cli"
Scope = Annotated[str, typer.Option(help="everything, stream:marketing, stream:transactional or mailbox:<provider>.")]


@app.command()
def stop(
    reason: Annotated[str, typer.Option(help="Why: it is shown to everybody who looks.")],
    scope: Scope = "everything",
    as_json: Json = False,
) -> None:
    """Let no mail leave until `kairos resume`, whoever started it; acts within seconds, and nothing planned is lost.

    Example: kairos stop --reason "wrong prices in the newsletter"
    """
    from service.campaigns import stop_sending
    from service.clock import SystemClock

    with installation() as (_settings, database), database.writing() as session:
        taken = stop_sending(session, reason=reason, by=BY, now=SystemClock().now(), scope=scope)
    report = {"scope": scope, "reason": reason, "taken_back": taken}
    answer(report, as_json, lambda _: f"stopped: {scope}; {taken:,} mails were taken back from workers")


@app.command()
def resume(scope: Scope = "everything", as_json: Json = False) -> None:
    """Let mail leave again; what is too late by now expires, what would come in quiet hours waits for the morning.

    Example: kairos resume
    """
    from service.campaigns import resume_sending
    from service.clock import SystemClock

    with installation() as (settings, database), database.writing() as session:
        overdue = resume_sending(session, settings, by=BY, now=SystemClock().now(), scope=scope)
    expired, postponed = (overdue.expired, overdue.postponed) if overdue else (0, 0)
    report = {"scope": scope, "lifted": overdue is not None, "expired": expired, "postponed": postponed}
    said = f"{scope} may leave again; {expired:,} mails came too late, {postponed:,} wait for the morning"
    answer(report, as_json, lambda _: said if overdue else f"{scope} was not stopped")
