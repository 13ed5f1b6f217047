"""Idempotency-Key: a request that creates something, sent twice, creates it once and is answered the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request, Response
from pydantic import TypeAdapter
from sqlalchemy.orm import Session

from service.api.installation import allow
from service.idempotency import Answer, begin, keep
from service.keys import Key

#: As the framework writes what an endpoint returns.
_JSON = TypeAdapter(dict[str, Any])
REPLAYED = "Idempotent-Replayed"


class Replayed(Exception):
    """Leaves the endpoint with the first request's answer; the transaction that it leaves wrote nothing."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks, and under which Idempotency-Key, if any: without one every request is a new one."""

    key: Key
    idempotency_key: str | None
    fingerprint: str

    def begin(self, session: Session, *, now: datetime) -> None:
        """Take the Idempotency-Key: before the work, and in its transaction.

        Raises
        ------
        Replayed
            If it was answered before; the caller gets that answer.
        Conflict, Invalid
            As `service.idempotency.begin`.
        """
        if self.idempotency_key is None:
            return
        known = begin(session, self.idempotency_key, self.key.key_id, self.fingerprint, now=now)
        if known is not None:
            raise Replayed(known)

    def keep(self, session: Session, body: dict[str, Any], status: int = 201) -> dict[str, Any]:
        """``body``, kept as the answer; no address may stand in it."""
        if self.idempotency_key is not None:
            answer = Answer(status, _JSON.dump_json(body).decode())
            keep(session, self.idempotency_key, self.key.key_id, answer)
        return body


def once(scope: str) -> Callable[..., Awaitable[Asked]]:
    """A dependency that lets a request through if its key has ``scope``, and knows its Idempotency-Key."""

    async def asked(
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=255,
                description="the same again, within a day, is answered the same and done once",
            ),
        ] = None,
        key: Key = Depends(allow(scope)),
    ) -> Asked:
        return Asked(key, idempotency_key, "" if idempotency_key is None else await _fingerprint(request))

    return asked


def install(app: FastAPI) -> None:
    """Let a request that was answered before be answered the same."""

    @app.exception_handler(Replayed)
    def again(_request: Request, known: Replayed) -> Response:
        answer = known.answer
        return Response(answer.body, answer.status, {REPLAYED: "true"}, media_type="application/json")


async def _fingerprint(request: Request) -> str:
    """SHA-256 of what is asked; of JSON its meaning counts, not its spaces and the order of its names."""
    body = await request.body()
    try:
        said = json.dumps(json.loads(body), sort_keys=True).encode()
    except (ValueError, RecursionError):
        said = body  # YAML, say: word by word
    path = f"{request.method} {request.url.path}?{request.url.query}\n"
    return hashlib.sha256(path.encode() + said).hexdigest()
