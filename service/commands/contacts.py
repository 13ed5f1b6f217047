"""`kairos contacts release`: an address that was suppressed may get mail again."""

from __future__ import annotations

from typing import Annotated

import typer

from service.commands.shared import Json, answer, installation

app = typer.Typer(rich_markup_mode=None)

BY = "cli"


@app.command()
def release(
    user_id: Annotated[str, typer.Argument(metavar="USER_ID", help="The contact's user_id.")],
    reason: Annotated[str, typer.Option(help="Why the address may get mail again; the log keeps it.")],
    as_json: Json = False,
) -> None:
    """Take the address of a contact off the suppression list: after a bounce or complaint by mistake, or by hand.

    Who unsubscribed comes back by a form or the preferences page only, and consent stays as it is.

    Example: kairos contacts release 17850 --reason "the mailbox was full for a day, says the customer"
    """
    from service.api.installation import find_contact
    from service.clock import SystemClock
    from service.suppression import release_contact

    now = SystemClock().now()
    with installation() as (settings, database), database.writing() as session:
        contact_key = find_contact(session, user_id)
        was = release_contact(session, contact_key, reason=reason, by=BY, pepper=settings.pepper, now=now)
    report = {"user_id": user_id, "was": was, "reason": reason, "by": BY, "at": now}
    answer(report, as_json, lambda _: f"{user_id} may get mail again; it was suppressed: {was}")
