"""Event intake in the Segment protocol, and the quarantine of what could not be taken."""

from __future__ import annotations

import json
import logging
import zlib
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from sqlalchemy import select

from features.tables import from_micros, to_micros
from service.api.installation import Installation, allow, check_scope, installation, installation_of, secret_of
from service.api.paging import Cursor, Limit, before, page, position
from service.api.problems import MAX_BODY, problem, problem_of, too_large
from service.errors import BadRequest, Invalid, ServiceError, Unauthorized
from service.flow.ingest import Ingested, MessageError, ingest, parse_instant
from service.tables import QuarantineRow

log = logging.getLogger(__name__)
router = APIRouter(tags=["events"])

#: Paths and the message type that each implies; the one-letter ones are those of Segment's browser library.
CALLS = {
    "track": "track",
    "identify": "identify",
    "page": "page",
    "screen": "screen",
    "alias": "alias",
    "group": "group",
    "batch": "batch",
    "import": "import",
    "t": "track",
    "i": "identify",
    "p": "page",
    "s": "screen",
    "a": "alias",
    "g": "group",
    "b": "batch",
}
SOURCE = "segment"

#: Browsers call from other origins; the key is in the request, never in a cookie, so any origin may.
CORS = {"Access-Control-Allow-Origin": "*"}
PREFLIGHT = CORS | {
    "Access-Control-Allow-Methods": "POST, OPTIONS",
    "Access-Control-Allow-Headers": "authorization, content-type, content-encoding, x-retry-count, anonymousid",
    "Access-Control-Max-Age": "86400",
}


async def take(request: Request) -> Response:
    """Messages of a Segment client: ``{"success": true}`` once they are stored for good.

    The write key comes as the user name of Basic credentials, as a bearer token or as ``writeKey`` in the body. A bad
    message in a batch is set aside in the quarantine and named in the answer; the others are stored. Bounces,
    complaints and deliveries are taken from a key that has the scope write too.
    """
    here = installation_of(request)
    call = CALLS[request.url.path.rsplit("/", 1)[-1]]
    # Clients name any content type for their gzipped JSON, so only the bytes are believed.
    raw = await request.body()
    try:
        response = await run_in_threadpool(_take, here, call, raw, request)
    except ServiceError as error:
        response = problem_of(error)
    response.headers.update(CORS)
    return response


def _take(here: Installation, call: str, raw: bytes, request: Request) -> Response:
    secret = secret_of(request)
    key = None
    if secret is not None:  # a stranger's body is not even parsed
        key = check_scope(here.authenticate(secret), "ingest")
    body = read_json(raw)
    if not isinstance(body, dict):
        raise BadRequest(f"the body is a JSON {_kind(body)}, not an object; send {{…}}")
    told = body.pop("writeKey", None)
    if key is None:
        if not isinstance(told, str) or not told:
            raise Unauthorized(
                "the request carries no write key; send it as the user name of Basic credentials, as a bearer token or "
                "as writeKey in the body"
            )
        key = check_scope(here.authenticate(told), "ingest")
    is_batch = call in ("batch", "import")
    if is_batch:
        messages = body.get("batch")
        if not isinstance(messages, list):
            raise BadRequest(f'batch is a JSON {_kind(messages)}, not an array; send {{"batch": [{{…}}, …]}}')
    else:
        messages = [{**body, "type": call}]
    with here.database.writing() as session:
        done = ingest(
            session,
            messages,
            source=SOURCE,
            now=here.clock.now(),
            sent_at=_sent_at(body) if is_batch else None,
            imported=call == "import",
            default_timezone=here.settings.timezone,
            currency=here.settings.currency,
            pepper=here.settings.pepper,
            may_report=key.allows("write"),
        )
    for outcome, count in (
        ("stored", done.stored),
        ("duplicate", done.duplicates),
        ("quarantined", len(done.quarantined)),
    ):
        here.metrics.events.labels(outcome).inc(count)
    return _answer(done, is_batch)


def _answer(done: Ingested, is_batch: bool) -> Response:
    if not done.quarantined:
        return JSONResponse({"success": True})
    aside = [
        {
            "index": entry.index,
            "quarantine_id": entry.quarantine_id,
            "reason": entry.reason,
            "event_kept": entry.event_kept,
        }
        for entry in done.quarantined
    ]
    if is_batch or all(entry.event_kept for entry in done.quarantined):
        # An error status would make the client drop the good messages with the bad one, or send both again for hours.
        return JSONResponse({"success": True, "quarantined": aside})
    reason = "; ".join(entry.reason for entry in done.quarantined)
    return problem(422, Invalid.slug, Invalid.title, f"{reason} (kept in the quarantine)", quarantined=aside)


def read_json(raw: bytes) -> Any:
    """What a body holds: JSON in UTF-8, gzipped or not, whatever its headers say.

    NaN and Infinity are read, so that the one message that holds them can be set aside without its neighbours.

    Raises
    ------
    BadRequest
        If it is no such thing.
    TooLarge
        If it unpacks to more than `MAX_BODY`.
    """
    if raw[:2] == b"\x1f\x8b":
        raw = _gunzip(raw)
    if not raw.strip():
        raise BadRequest("the body is empty; send one JSON object")
    try:
        return json.loads(raw.decode("utf-8-sig"), parse_int=_integer)
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8 at byte {error.start}; send JSON in UTF-8") from None
    except json.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error.msg} at character {error.pos}; send one JSON object") from None
    except RecursionError:
        raise BadRequest("the body is nested too deep to be read; nest at most 32 levels") from None


def _gunzip(raw: bytes) -> bytes:
    parts: list[bytes] = []
    size = 0
    try:
        while raw:
            unpacker = zlib.decompressobj(wbits=31)
            parts.append(unpacker.decompress(raw, MAX_BODY + 1 - size))
            size += len(parts[-1])
            if size > MAX_BODY:
                raise too_large(size)
            if not unpacker.eof:
                raise BadRequest("the gzip body ends too early; send it whole")
            raw = unpacker.unused_data
    except zlib.error as error:
        raise BadRequest(f"the gzip body is damaged ({error}); send it again") from None
    return b"".join(parts)


def _integer(text: str) -> int | float:
    # Beyond 4,300 digits Python refuses, and beyond 19 no column takes it: such a number is a float, maybe infinite.
    return int(text) if len(text) < 20 else float(text)


def _sent_at(body: dict[str, Any]) -> Any:
    try:
        return parse_instant(body["sentAt"], "sentAt") if body.get("sentAt") else None
    except MessageError as error:
        # Without it the timestamps are believed as they are; no reason to lose a batch.
        log.warning("sentAt of a batch was left out: %s", error, extra={"action": "sent_at_ignored"})
        return None


def _kind(value: Any) -> str:
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null (or missing)"}
    return names.get(type(value), "number")


for _call in CALLS:
    router.add_api_route(
        f"/v1/{_call}",
        take,
        methods=["POST"],
        name=f"take_{_call}",
        summary=f"Segment: {CALLS[_call]}",
        include_in_schema=len(_call) > 1,
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": {"type": "object"}}}}},
    )
    router.add_api_route(
        f"/v1/{_call}",
        lambda: Response(status_code=204, headers=PREFLIGHT),
        methods=["OPTIONS"],
        name=f"preflight_{_call}",
        include_in_schema=False,
    )


@router.get("/v1/quarantine", dependencies=[Depends(allow("read"))])
def list_quarantine(
    limit: Limit = 50, cursor: Cursor = None, here: Installation = Depends(installation)
) -> dict[str, Any]:
    """What could not be taken, newest first, with the reason."""
    query = select(QuarantineRow).order_by(QuarantineRow.received_at.desc(), QuarantineRow.quarantine_id.desc())
    last = position(here.settings.signing_key, cursor, "quarantine")
    if last is not None:
        at = (QuarantineRow.received_at, QuarantineRow.quarantine_id)
        query = query.where(before(at, (from_micros(last[0]), last[1])))
    with here.database.reading() as session:
        rows = session.scalars(query.limit(limit + 1)).all()
    return page(
        here.settings.signing_key,
        rows,
        limit,
        lambda row: {
            "quarantine_id": row.quarantine_id,
            "source": row.source,
            "reason": row.reason,
            "message": json.loads(row.body),
            "received_at": row.received_at,
        },
        lambda row: [to_micros(row.received_at), row.quarantine_id],
        "quarantine",
    )
