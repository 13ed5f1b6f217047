"""What recipients reach from their mails: the open pixel, tracked links, unsubscribing. No cookies, no key."""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable
from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.exc import SQLAlchemyError

from service.api.installation import Installation, installation_of
from service.hits import Hit
from service.links import BadToken, link_url, read_click, read_open, read_unsubscribe
from service.suppression import unsubscribe

log = logging.getLogger(__name__)
router = APIRouter(tags=["tracking"])

#: A transparent GIF of one pixel, 43 bytes.
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")

_STYLE = (
    "<style>body{font:1.1rem/1.5 system-ui,sans-serif;max-width:32rem;margin:4rem auto;padding:0 1rem}"
    "button{font:inherit;padding:.6rem 1.4rem;cursor:pointer}</style>"
)
_NEVER_STORED = {"Cache-Control": "no-store, no-cache, must-revalidate, private, max-age=0", "Pragma": "no-cache"}
_QUIET = _NEVER_STORED | {"Referrer-Policy": "no-referrer", "X-Robots-Tag": "noindex, nofollow"}
_PAGE = _QUIET | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'",
    "X-Frame-Options": "DENY",
}


@router.head("/o/{token}", include_in_schema=False)
@router.get("/o/{token}", response_class=Response)
async def open_pixel(token: str, request: Request) -> Response:
    """The open pixel; the hit is on disk when the pixel is answered."""
    here = installation_of(request)
    try:
        send_id = read_open(here.settings.signing_key, token)
    except BadToken as error:
        return _page("This picture is not here", str(error), 404)
    await _record(here, Hit(send_id, None, request.method, _agent(request), here.clock.now()))
    return Response(PIXEL, media_type="image/gif", headers=_NEVER_STORED)


@router.head("/c/{token}", include_in_schema=False)
@router.get("/c/{token}", response_class=Response)
async def follow_link(token: str, request: Request) -> Response:
    """On to the link's target, which the token names by number: nobody can redirect to what was not sent."""
    here = installation_of(request)
    try:
        send_id, link_id = read_click(here.settings.signing_key, token)
    except BadToken as error:
        return _page("This link leads nowhere", str(error), 404)
    target = here.link_targets.get(link_id)
    if target is None:
        target = await run_in_threadpool(_target, here, link_id)
    if target is None:
        return _page("This link leads nowhere", "the page it led to is no longer known", 404)
    await _record(here, Hit(send_id, link_id, request.method, _agent(request), here.clock.now()))
    return RedirectResponse(target, 302, _QUIET)


@router.head("/u/{token}", include_in_schema=False)
@router.get("/u/{token}", response_class=HTMLResponse)
def ask_to_unsubscribe(token: str, request: Request) -> Response:
    """A page with a button. Looking at it changes nothing: scanners follow every link."""
    try:
        read_unsubscribe(installation_of(request).settings.signing_key, token)
    except BadToken as error:
        return _page("This link is not valid", str(error), 404)
    button = '<form method="post"><button type="submit">Unsubscribe</button></form>'
    return _page("Unsubscribe", "Press the button and you get no more of these mails.", 200, button)


@router.post("/u/{token}", response_class=HTMLResponse)
async def unsubscribe_now(token: str, request: Request) -> Response:
    """Unsubscribe at once: the page's button, and the one click of the mail program in either form encoding.

    References
    ----------
    Levine & Herkula (2017), RFC 8058, "Signaling One-Click Functionality for List Email Headers".
    """
    here = installation_of(request)
    try:
        send_id = read_unsubscribe(here.settings.signing_key, token)
    except BadToken as error:
        return _page("This link is not valid", str(error), 404)
    # urlencoded or multipart, the words are the same; whoever posts to this address wants out either way.
    source = "one-click" if b"One-Click" in await request.body() else "unsubscribe page"
    await run_in_threadpool(_unsubscribe, here, send_id, source)
    return _page("Unsubscribed", "You get no more of these mails.", 200)


def _unsubscribe(here: Installation, send_id: int, source: str) -> None:
    with here.database.writing() as session:
        unsubscribe(session, [send_id], source=source, now=here.clock.now())


def _target(here: Installation, link_id: int) -> str | None:
    with here.database.reading() as session:
        target = link_url(session, link_id)
    if target is not None:
        if len(here.link_targets) > 10_000:
            here.link_targets.clear()
        here.link_targets[link_id] = target  # a number never changes its target
    return target


async def _record(here: Installation, hit: Hit) -> None:
    add: Callable[[Hit], Awaitable[None]] = here.hits.add
    try:
        await add(hit)
    except SQLAlchemyError as error:
        # The recipient must arrive, counted or not.
        log.error("a hit was lost: %s", error, extra={"action": "hit_lost", "send_id": hit.send_id})


def _agent(request: Request) -> str:
    return request.headers.get("user-agent", "")


def _page(title: str, text: str, status: int, more: str = "") -> HTMLResponse:
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>{_STYLE}</head>"
        f"<body><main><h1>{escape(title)}</h1><p>{escape(text)}</p>{more}</main></body></html>"
    )
    return HTMLResponse(html, status, _PAGE)
