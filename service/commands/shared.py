"""What the commands share: an open installation, answers as lines or JSON, instants as people write them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from features.lake import Lake
    from service.database import Database
    from service.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
AsOf = Annotated[
    str | None,
    typer.Option("--as-of", help="Instant (RFC 3339), or a date: the end of that day in the installation's zone."),
]


@contextmanager
def installation(*, lasting: bool = False) -> Iterator[tuple[Settings, Database]]:
    """Settings and an open database with this version's tables; a fresh one gets them."""
    from service.checks import check_database, is_fresh
    from service.database import Database
    from service.errors import Unavailable
    from service.settings import Settings

    settings = Settings()
    # A command that ends says what it did by itself; what runs on says it in its log.
    configure_logs("WARNING" if settings.log_level.upper() == "INFO" and not lasting else settings.log_level)
    database = Database(settings.database)
    try:
        if is_fresh(database):
            database.upgrade()
        check = check_database(database)
        if not check.ok:
            raise Unavailable(f"the database: {check.says}")
        yield settings, database
    finally:
        database.close()


def open_lake(settings: Settings) -> Lake:
    """The lake, and the engine that works on its buckets."""
    from features.engine import use_engine
    from features.lake import Lake

    use_engine(settings.engine, settings.engine_address)
    return Lake(settings.lake, settings.buckets)


def instant_of(text: str | None, settings: Settings, option: str = "--as-of", *, end_of_day: bool = True) -> datetime:
    """The instant that an option names; a bare date is the end (or start) of that day in the installation's zone."""
    from zoneinfo import ZoneInfo

    if text is None:
        return datetime.now(UTC)
    zone = ZoneInfo(settings.timezone)
    try:
        if len(text) == 10:
            day = date.fromisoformat(text) + timedelta(days=1 if end_of_day else 0)
            return datetime.combine(day, time(), zone).astimezone(UTC)
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is no instant; write 2026-03-02 or 2026-03-02T09:00:00Z", param_hint=option
        ) from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=zone)).astimezone(UTC)


def date_of(text: str) -> date:
    """The day that an option names."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no date; write it as 2026-03-02", param_hint="--start") from None


def configure_logs(level: str) -> None:
    """Let the logs go to standard error from ``level`` on."""
    from service.logs import configure

    configure(level)


def plain(value: Any) -> Any:
    """Dataclasses, times and paths as JSON has them; a number that is none becomes null."""
    import dataclasses
    import math
    from collections.abc import Mapping

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def answer(report: dict[str, Any], as_json: bool, lines: Callable[[dict[str, Any]], str]) -> None:
    """Print a report: one JSON object, or the lines that ``lines`` makes of it."""
    print(json.dumps(plain(report), ensure_ascii=False) if as_json else lines(report))  # noqa: T201


def outline(report: Any, indent: str = "") -> str:
    """A nested report as indented lines."""
    lines = []
    for key, value in report.items():
        if isinstance(value, dict) and value:
            lines += [f"{indent}{key}", outline(value, indent + "  ")]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            lines.append(f"{indent}{key}")
            lines += [outline(one, indent + "  ") for one in value]
        else:
            lines.append(f"{indent}{key}: {f'{value:.4g}' if isinstance(value, float) else value}")
    return "\n".join(lines)


def note(text: str) -> None:
    """Tell how the work goes on, on standard error."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal; nothing where standard error is a file."""
    from tqdm import tqdm

    with tqdm(desc=what, unit="", disable=not sys.stderr.isatty(), leave=False, file=sys.stderr) as bar:

        def step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield step
