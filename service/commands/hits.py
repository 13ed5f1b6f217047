"""`kairos hits`: the rules that tell people from machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from service.commands.shared import Json, answer, installation, outline

# Heavy imports stand inside the commands: `kairos --help` answers at once.

group = typer.Typer(
    help="Opens and clicks, and the rules that tell people from machines.", no_args_is_help=True, rich_markup_mode=None
)


@group.command("compare")
def compare_command(
    file: Annotated[Path, typer.Argument(help="Rules to try, in the form of KAIROS_HIT_RULES.")],
    days: Annotated[float, typer.Option(min=0.01, max=3650, help="Days back from now.")] = 30,
    as_json: Json = False,
) -> None:
    """What other rules would have said of the hits of the last days; events stay as they were judged.

    Example: kairos hits compare rules.yaml --days 7
    """
    from datetime import UTC, datetime, timedelta

    from service.hits import RuleBook, compare, load_rules

    with installation() as (settings, database):
        current, other = RuleBook(settings.hit_rules).current(), load_rules(file)
        now = datetime.now(UTC)
        with database.reading() as session:
            compared = compare(session, current, other, since=now - timedelta(days=days), until=now)
    report = {"current_version": current.version, "other_version": other.version, **vars(compared)}
    answer(report, as_json, outline)
