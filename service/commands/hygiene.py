"""`kairos hygiene`: look through the list, apply what was found, take it back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from service.commands.shared import Json, answer, installation, outline, plain, progress

app = typer.Typer(help="Addresses that harm the sender: found, shown, suppressed, given back.", no_args_is_help=True)

Look = Annotated[str, typer.Argument(metavar="ID", help="Id of a look.")]
Findings = Annotated[str | None, typer.Option("--findings", help="Only these, comma-separated; default all.")]


@app.command("look")
def look_command(
    rules: Annotated[str | None, typer.Option(help="Findings to look for, comma-separated; default all.")] = None,
    least_deliveries: Annotated[int | None, typer.Option(help="Mails without an answer; default 10.")] = None,
    least_days: Annotated[int | None, typer.Option(help="Days since the first of them; default 90.")] = None,
    soft_bounces: Annotated[int | None, typer.Option(help="Soft bounces; default 3.")] = None,
    soft_days: Annotated[int | None, typer.Option(help="Days that they lie within; default 180.")] = None,
    as_json: Json = False,
) -> None:
    """Look through all addresses and show what harms; nothing is changed.

    Example: kairos hygiene look --rules typo_domain,role
    """
    from datetime import UTC, datetime

    from service.hygiene import find_look, look, rules_of, shown_look

    wanted = rules_of(
        _names(rules),
        least_deliveries=least_deliveries,
        least_days=least_days,
        soft_bounces=soft_bounces,
        soft_days=soft_days,
    )
    with installation() as (settings, database), progress("contacts") as step:
        look_id = look(database, settings, wanted, now=datetime.now(UTC), by="kairos hygiene look", step=step)
        with database.reading() as session:
            report = shown_look(session, find_look(session, look_id))
    answer(report, as_json, _lines)


@app.command()
def show(look: Look, as_json: Json = False) -> None:
    """Show a look again.

    Example: kairos hygiene show hyg_0a1b2c3d4e5f
    """
    from service.hygiene import find_look, shown_look

    with installation() as (_, database), database.reading() as session:
        report = shown_look(session, find_look(session, look))
    answer(report, as_json, _lines)


@app.command("list")
def list_looks(as_json: Json = False) -> None:
    """List the looks, newest first.

    Example: kairos hygiene list
    """
    from sqlalchemy import select

    from service.tables import HygieneRow

    with installation() as (_, database), database.reading() as session:
        rows = session.scalars(select(HygieneRow).order_by(HygieneRow.created_at.desc()).limit(200)).all()
        report = {
            "looks": [
                {"id": row.hygiene_id, "state": row.state, "created_at": row.created_at, **row.report} for row in rows
            ]
        }
    answer(
        report,
        as_json,
        lambda shown: "\n".join(
            f"{look['id']}  {look['state']:9}  {look['created_at']:%Y-%m-%d %H:%M}  {look['found']:,} of "
            f"{look['contacts']:,} contacts"
            for look in shown["looks"]
        ),
    )


@app.command()
def apply(look: Look, findings: Findings = None, as_json: Json = False) -> None:
    """Suppress the addresses that a look found; `revert` takes it back.

    Example: kairos hygiene apply hyg_0a1b2c3d4e5f --findings no_mail_server,disposable
    """
    from datetime import UTC, datetime

    from service.hygiene import apply_look

    with installation() as (settings, database), database.writing() as session:
        done = apply_look(session, look, pepper=settings.pepper, now=datetime.now(UTC), findings=_names(findings))
    answer({"id": look, "state": "applied", **done}, as_json, outline)


@app.command()
def revert(look: Look, as_json: Json = False) -> None:
    """Take an applied look back: exactly its addresses get mail again, unless something else speaks against it.

    Example: kairos hygiene revert hyg_0a1b2c3d4e5f
    """
    from datetime import UTC, datetime

    from service.hygiene import revert_look

    with installation() as (settings, database), database.writing() as session:
        freed = revert_look(session, look, pepper=settings.pepper, now=datetime.now(UTC))
    answer({"id": look, "state": "reverted", "freed": freed}, as_json, outline)


def _names(listed: str | None) -> list[str] | None:
    return [name.strip() for name in listed.split(",") if name.strip()] if listed else None


def _lines(report: dict[str, Any]) -> str:
    lines = [f"look {report['id']} ({report['state']}): {report['found']:,} of {report['contacts']:,} contacts"]
    for one in report["findings"]:
        shown = ", ".join(
            example["user_id"] + (f" → {example['suggestion']}" if example.get("suggestion") else "")
            for example in one["examples"]
        )
        lines.append(f"  {one['finding']:15} {one['contacts']:>9,}  {one['says']}{f': {shown}' if shown else ''}")
    if report["applied"]:
        lines.append(outline({"applied": plain(report["applied"])}, "  "))
    elif report["state"] == "previewed":
        lines.append(f"`kairos hygiene apply {report['id']} [--findings …]` suppresses them, `revert` takes it back")
    return "\n".join(lines)
