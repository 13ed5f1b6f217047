"""`kairos bounces`: read what came back."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

import typer

from service.commands.shared import Json, answer, installation, note

app = typer.Typer(help="Bounces and complaints that came back as mail.", no_args_is_help=True)

#: Messages of one transaction.
CHUNK = 500


@app.callback()
def bounces() -> None:
    """Bounces and complaints that came back as mail."""


@app.command()
def read(
    place: Annotated[str, typer.Argument(help="A message, an mbox, a maildir, or - for standard input.")],
    as_json: Json = False,
) -> None:
    """Read delivery status notifications and feedback reports: log them, and stop the addresses that are dead.

    Messages stay where they are; reading them again changes nothing.

    Example: kairos bounces read /var/mail/bounces
    """
    from datetime import UTC, datetime
    from itertools import islice

    from service.bounces import messages_in, read_report, record_reports
    from service.errors import ServiceError

    outcomes: Counter[str] = Counter()
    severities: Counter[str] = Counter()
    suppressed = 0
    with installation() as (settings, database):
        raw = messages_in(place)
        while chunk := list(islice(raw, CHUNK)):
            reports = []
            for message in chunk:
                try:
                    reports.append(read_report(message))
                except ServiceError as error:
                    outcomes["unreadable"] += 1
                    note(f"a message was left out: {error}")
            with database.writing() as session:
                done = record_reports(
                    session,
                    reports,
                    signing_key=settings.signing_key,
                    pepper=settings.pepper,
                    now=datetime.now(UTC),
                    has_return_paths=bool(settings.return_path_domain),
                )
            outcomes.update(one.outcome for one in done)
            severities.update(one.severity for one in done if one.outcome == "bounced" and one.severity)
            suppressed += sum(one.is_suppressed for one in done)
    report = {
        "messages": outcomes.total(),
        "outcomes": dict(outcomes),
        "bounces": dict(severities),
        "suppressed": suppressed,
    }
    answer(report, as_json, _lines)


def _lines(report: dict[str, Any]) -> str:
    said = ", ".join(f"{count:,} {outcome}" for outcome, count in report["outcomes"].items()) or "none"
    hard = ", ".join(f"{count:,} {severity}" for severity, count in report["bounces"].items())
    return (
        f"{report['messages']:,} messages: {said}{f' ({hard})' if hard else ''}; "
        f"{report['suppressed']:,} addresses get no more mail"
    )
