"""What recipients reach from their mails: open pixel, tracked links, trap, preferences. No cookies, no key."""

from __future__ import annotations

import base64
import logging

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from service.api.installation import Installation, installation_of
from service.api.recipient_page import (
    NEVER_STORED,
    QUIET,
    Answer,
    Choices,
    asked_preferences,
    notice,
    preferences_page,
    read_answer,
)
from service.hits import Hit, network_hash
from service.links import BadToken, link_url, read_click, read_open, read_trap, read_unsubscribe
from service.preferences import Preferences, Wishes, preferences_of, set_preferences
from service.suppression import topics_in_force, unsubscribe
from service.tables import ContactRow, SendRow

log = logging.getLogger(__name__)
router = APIRouter(tags=["tracking"])

#: A transparent GIF of one pixel, 43 bytes.
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")
SOURCE = "preferences page"


@router.head("/o/{token}", include_in_schema=False)
@router.get("/o/{token}", response_class=Response)
async def open_pixel(token: str, request: Request) -> Response:
    """The open pixel; the hit is on disk when the pixel is answered."""
    here = installation_of(request)
    try:
        send_id = read_open(here.settings.signing_key, token)
    except BadToken as error:
        return notice("This picture is not here", str(error), 404)
    await _record(here, request, send_id)
    return Response(PIXEL, media_type="image/gif", headers=NEVER_STORED)


@router.head("/c/{token}", include_in_schema=False)
@router.get("/c/{token}", response_class=Response)
async def follow_link(token: str, request: Request) -> Response:
    """On to the link's target, which the token names by number: nobody can redirect to what was not sent."""
    here = installation_of(request)
    try:
        send_id, link_id = read_click(here.settings.signing_key, token)
    except BadToken as error:
        return notice("This link leads nowhere", str(error), 404)
    target = here.link_targets.get(link_id)
    if target is None:
        target = await run_in_threadpool(_target, here, link_id)
    if target is None:
        return notice("This link leads nowhere", "the page it led to is no longer known", 404)
    await _record(here, request, send_id, link_id)
    return RedirectResponse(target, 302, QUIET)


@router.head("/t/{token}", include_in_schema=False)
@router.get("/t/{token}", response_class=HTMLResponse)
async def fall_into_trap(token: str, request: Request) -> Response:
    """The link that people do not see: who follows it checks mails, and so do its other hits on the mail."""
    here = installation_of(request)
    try:
        send_id = read_trap(here.settings.signing_key, token)
    except BadToken as error:
        return notice("This link leads nowhere", str(error), 404)
    await _record(here, request, send_id, is_trap=True)
    return notice("Nothing to see here", "This link is hidden in our mails to tell programs from people.")


@router.head("/u/{token}", include_in_schema=False)
@router.get("/u/{token}", response_class=HTMLResponse)
def show_preferences(token: str, request: Request) -> Response:
    """Topics, a break, how often, or nothing any more. Looking at it changes nothing: scanners follow every link."""
    here = installation_of(request)
    try:
        send_id = read_unsubscribe(here.settings.signing_key, token)
    except BadToken as error:
        return notice("This link is not valid", str(error), 404)
    with here.database.reading() as session:
        send = _send(session, send_id)
        if send is None:
            return _gone()
        return preferences_page(_choices(session, here, send), now=here.clock.now())


@router.post("/u/{token}", response_class=HTMLResponse)
async def choose_preferences(token: str, request: Request) -> Response:
    """Carry out the form, or the mail program's one click in either form encoding: at once, and twice is as once."""
    here = installation_of(request)
    try:
        send_id = read_unsubscribe(here.settings.signing_key, token)
    except BadToken as error:
        return notice("This link is not valid", str(error), 404)
    answer = read_answer(await request.body())
    if answer.does == "one_click":
        await run_in_threadpool(_unsubscribe, here, send_id)
        return notice("Unsubscribed", "You get no more of these mails.")
    return await run_in_threadpool(_carry_out, here, send_id, answer)


def _unsubscribe(here: Installation, send_id: int) -> None:
    with here.database.writing() as session:
        unsubscribe(session, [send_id], source="one-click", now=here.clock.now())


def _carry_out(here: Installation, send_id: int, answer: Answer) -> Response:
    now = here.clock.now()
    with here.database.writing() as session:
        send = _send(session, send_id)
        if send is None:
            return _gone()
        choices = _choices(session, here, send)
        if answer.does == "unsubscribe":
            unsubscribe(session, [send_id], source=SOURCE, now=now)
            done = f"You get no more {choices.names[send.topic]}."
        else:
            preferences = None
            if answer.does == "leave":
                topics = dict.fromkeys(choices.names, False)
                done = "You get no more of our mails."
            else:
                # Only what the page offers; a box that was empty and stayed empty is no refusal.
                topics = {
                    topic: is_wanted
                    for topic, is_wanted in answer.topics.items()
                    if topic in choices.names and is_wanted != (topic in choices.subscribed)
                }
                preferences = asked_preferences(answer, choices.preferences, now=now)
                done = "Saved."
            wishes = Wishes(
                contact_key=send.contact_key,
                topics=topics,
                preferences=preferences,
                send_id=send_id,
                campaign_id=send.campaign_id,
                timezone=send.timezone,
            )
            set_preferences(session, [wishes], source=SOURCE, now=now)
        return preferences_page(_choices(session, here, send), now=now, done=done)


def _send(session: Session, send_id: int) -> SendRow | None:
    """The send, if its contact is still known."""
    known = select(ContactRow.contact_key)
    return session.scalar(select(SendRow).where(SendRow.send_id == send_id, SendRow.contact_key.in_(known)))


def _choices(session: Session, here: Installation, send: SendRow) -> Choices:
    states = {topic: state for (_, topic), state in topics_in_force(session, [send.contact_key]).items()}
    names = here.settings.topic_names
    # The mail's own topic, and others that the contact was ever asked about, may not be among those that are declared.
    names = names | {topic: topic for topic in (send.topic, *sorted(states)) if topic not in names}
    return Choices(
        about=send.topic,
        names=names,
        subscribed=frozenset(topic for topic, state in states.items() if state == "subscribed"),
        preferences=preferences_of(session, [send.contact_key]).get(send.contact_key, Preferences()),
        cap=here.settings.frequency_cap,
    )


def _gone() -> HTMLResponse:
    return notice("You are not in our lists", "This address was taken out of our lists; there is nothing to choose.")


def _target(here: Installation, link_id: int) -> str | None:
    with here.database.reading() as session:
        target = link_url(session, link_id)
    if target is not None:
        if len(here.link_targets) > 10_000:
            here.link_targets.clear()
        here.link_targets[link_id] = target  # a number never changes its target
    return target


async def _record(
    here: Installation, request: Request, send_id: int, link_id: int | None = None, *, is_trap: bool = False
) -> None:
    address = "" if request.client is None else request.client.host
    hit = Hit(
        send_id,
        link_id,
        request.method,
        request.headers.get("user-agent", ""),
        here.clock.now(),
        network=network_hash(here.settings.signing_key, address),
        known_network=here.hit_rules.current().network_name(address),
        is_trap=is_trap,
    )
    try:
        await here.hits.add(hit)
    except SQLAlchemyError as error:
        # The recipient must arrive, counted or not.
        log.error("a hit was lost: %s", error, extra={"action": "hit_lost", "send_id": hit.send_id})
