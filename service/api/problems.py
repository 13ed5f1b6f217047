"""Errors as RFC 9457 problem bodies with stable types, naming the value and the remedy."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from features.events import ClockWentBackwards
from service.errors import BadRequest, Invalid, NotFound, ServiceError, TooLarge, Unauthorized, Unavailable
from service.logs import redact

log = logging.getLogger(__name__)

#: Bytes of a request's body, and of what it unpacks to.
MAX_BODY = 5_000_000
RETRY_SECONDS = 5


def problem(
    status: int, slug: str, title: str, detail: str, headers: dict[str, str] | None = None, **extra: Any
) -> JSONResponse:
    """A problem response.

    References
    ----------
    Nottingham, Wilde & Dalal (2023), RFC 9457, "Problem Details for HTTP APIs".
    """
    body = {"type": f"urn:kairos:problem:{slug}", "title": title, "status": status, "detail": detail, **extra}
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def problem_of(error: ServiceError) -> JSONResponse:
    """The problem response of one of our errors."""
    headers = {}
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = 'Bearer realm="kairos", Basic realm="kairos"'
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(RETRY_SECONDS)
    return problem(error.status_code, error.slug, error.title, redact(error.detail), headers, **error.extra)


def install(app: FastAPI) -> None:
    """Let every error of ``app`` answer as a problem."""

    @app.exception_handler(ServiceError)
    def ours(_request: Request, error: ServiceError) -> JSONResponse:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    def unacceptable(_request: Request, error: RequestValidationError) -> JSONResponse:
        wrong = error.errors()
        for entry in wrong:
            if entry["type"] == "json_invalid":
                where = entry["loc"][-1]
                said = entry.get("ctx", {}).get("error", "it is not JSON")
                return problem_of(
                    BadRequest(f"the body is not JSON: {said} at character {where}; send one JSON object")
                )
        entries = [_entry(entry) for entry in wrong]
        said = "; ".join(f"{entry['location']}: {entry['message']}" for entry in entries[:3])
        return problem_of(Invalid(said, errors=entries))

    @app.exception_handler(HTTPException)
    def framework(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        path = redact(request.url.path)
        if error.status_code == 404:
            detail = f"nothing answers at {path}; /docs lists what does"
            return problem(404, NotFound.slug, NotFound.title, detail, headers)
        if error.status_code == 405:
            detail = f"{request.method} is not understood at {path}; use {headers.get('allow', 'another method')}"
            return problem(405, "method-not-allowed", "The method is not understood here", detail, headers)
        if error.status_code == 400:
            return problem_of(BadRequest(f"the body cannot be read ({error.detail}); send one JSON object"))
        return problem(error.status_code, f"http-{error.status_code}", "The request failed", str(error.detail), headers)

    def away(request: Request, error: Exception) -> JSONResponse:
        log.error("the database does not answer", extra={"action": "database_away", "error": str(error)})
        return problem_of(Unavailable("the database does not answer; nothing was stored, send it again later"))

    for kind in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(kind, away)

    @app.exception_handler(ClockWentBackwards)
    def clock_is_wrong(request: Request, error: ClockWentBackwards) -> JSONResponse:
        log.error("events are refused: %s", error, extra={"action": "clock_went_backwards"})
        answer = problem_of(Unavailable(f"{error}; nothing was stored, send it again later"))
        answer.headers["Retry-After"] = "60"
        return answer

    @app.exception_handler(DataError)
    @app.exception_handler(UnicodeEncodeError)
    def unstorable(_request: Request, error: Exception) -> JSONResponse:
        # PostgreSQL keeps no NUL, no database keeps half a surrogate pair; which value it was, the driver does not say.
        said = "a text of the request holds a NUL character or half of a surrogate pair, or a number is too large"
        return problem_of(Invalid(f"{said}; remove it"))

    @app.exception_handler(Exception)
    def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("a request failed", exc_info=error, extra={"action": "request_failed", "path": request.url.path})
        return problem(
            500, "internal", "Something failed on our side", "the failure was logged; try again or report it"
        )


def _entry(entry: dict[str, Any] | Any) -> dict[str, Any]:
    return {"location": _dotted(entry["loc"]), "message": entry["msg"], "value": redact(repr(entry.get("input"))[:120])}


def _dotted(location: Sequence[Any]) -> str:
    return ".".join(str(part) for part in location)


class BoundedBody:
    """Middleware that refuses bodies over `MAX_BODY`, told or streamed, before they fill the memory."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, unless its body is too large."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        if told.isdigit() and int(told) > MAX_BODY:
            await problem_of(too_large(int(told)))(scope, receive, send)
            return
        taken = 0
        started = False

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MAX_BODY:
                raise _Overflow
            return message

        async def noted(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self._app(scope, bounded, noted)
        except _Overflow:
            if started:
                raise
            await problem_of(too_large(taken))(scope, receive, send)


class _Overflow(BaseException):
    """Outside `Exception`, so that no handler on the way takes it for a body that cannot be read."""


def too_large(size: int) -> TooLarge:
    """The error of a body of ``size`` bytes."""
    return TooLarge(f"the body has at least {size:,} bytes; the limit is {MAX_BODY:,}: send fewer items at once")
