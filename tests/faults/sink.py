"""An SMTP server that never forgets: each mail is in its log, on disk, before the sender hears 250.

``python -m tests.faults.sink LOG [RULES]`` prints its port and serves until its standard input ends. ``RULES`` is
JSON, a list of objects: what to do at which phase to which recipient, and how often.

``phase``      ``connect``, ``mail``, ``rcpt``, ``data`` (the command) or ``dot`` (after the message)
``answer``     an SMTP reply, ``drop`` (break the line) or ``stall:SECONDS`` (then go on)
``recipient``  regular expression that the address must match; not for ``connect`` and ``mail``
``times``      how often for each recipient (for ``connect`` and ``mail``: in all); without it always

A mail that is dropped or stalled at its dot was taken: it is in the log, but its sender does not know or not yet.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from email.parser import BytesHeaderParser
from typing import Any

from aiosmtpd.smtp import SMTP, Envelope, Session

STALL = "stall:"


@dataclass(frozen=True)
class Rule:
    """What to do at a phase."""

    phase: str
    answer: str
    recipient: str = ""
    times: int | None = None


class Rules:
    """Which rule applies, and how often each has."""

    def __init__(self, rules: list[Rule]) -> None:
        self._rules = rules
        self._used: Counter[tuple[int, str]] = Counter()

    async def answer(self, phase: str, recipient: str = "") -> str | None:
        """What to answer instead of going on; a stall is waited for here."""
        rule = self.find(phase, recipient)
        if rule is None or not rule.startswith(STALL):
            return rule
        await stall(rule)
        return None

    def find(self, phase: str, recipient: str = "") -> str | None:
        """The answer of the rule that applies now, which is one time less for it."""
        for place, rule in enumerate(self._rules):
            if rule.phase != phase or not re.search(rule.recipient, recipient):
                continue
            self._used[place, recipient] += 1
            if rule.times is None or self._used[place, recipient] <= rule.times:
                return rule.answer
        return None


async def stall(rule: str) -> None:
    """Wait for as long as a rule's answer says."""
    await asyncio.sleep(float(rule.removeprefix(STALL)))


class Log:
    """An append-only file whose lines are on disk before they count; many mails share one flush."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._lines: list[bytes] = []
        self._flush: asyncio.Task[None] | None = None

    async def write(self, line: dict[str, Any]) -> None:
        """Return once ``line`` is on disk."""
        self._lines.append(json.dumps(line).encode() + b"\n")
        if self._flush is None or self._flush.get_name() == "begun":
            before = self._flush
            self._flush = asyncio.get_running_loop().create_task(self._flush_after(before))
        await asyncio.shield(self._flush)

    async def _flush_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        task = asyncio.current_task()
        assert task is not None
        task.set_name("begun")
        lines, self._lines = self._lines, []
        await asyncio.to_thread(self._to_disk, b"".join(lines))

    def _to_disk(self, block: bytes) -> None:
        os.write(self._file, block)
        os.fsync(self._file)


class ScriptedServer(SMTP):
    """aiosmtpd's server, which also answers out of turn."""

    def __init__(self, rules: Rules, log: Log) -> None:
        super().__init__(_Handler(rules, log), hostname="sink.example", ident="fault sink")
        self._rules = rules
        self.data_began_at = 0.0

    async def _handle_client(self) -> None:
        answer = await self._rules.answer("connect")
        if answer is None:
            await super()._handle_client()
            return
        if answer != "drop":
            await self.push(answer)
        assert self.transport is not None
        self.transport.close()

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802 - aiosmtpd's names
        assert self.envelope is not None
        self.data_began_at = time.time()
        answer = await self._rules.answer("data", ",".join(self.envelope.rcpt_tos))
        if answer is None:
            await super().smtp_DATA(arg)
        elif answer == "drop":
            _hang_up(self)
        else:
            await self.push(answer)


class _Handler:
    def __init__(self, rules: Rules, log: Log) -> None:
        self._rules = rules
        self._log = log

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[Any]
    ) -> str:
        answer = await self._rules.answer("mail")
        if answer == "drop":
            return _hang_up(server)
        if answer is None:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return answer or "250 2.1.0 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[Any]
    ) -> str:
        answer = await self._rules.answer("rcpt", address)
        if answer == "drop":
            return _hang_up(server)
        if answer is None:
            envelope.rcpt_tos.append(address)
        return answer or "250 2.1.5 OK"

    async def handle_DATA(self, server: ScriptedServer, session: Session, envelope: Envelope) -> str:  # noqa: N802
        [recipient] = envelope.rcpt_tos
        taken_at = time.time()
        answer = self._rules.find("dot", recipient) or ""
        if answer and answer != "drop" and not answer.startswith(STALL):
            return answer
        headers = BytesHeaderParser().parsebytes(envelope.original_content or b"")
        await self._log.write(
            {
                "message_id": headers["Message-ID"],
                "recipient": recipient,
                "send_id": int(headers["X-Kairos-Send"] or 0),
                "began_at": server.data_began_at,
                "taken_at": taken_at,
                "headers": [[name, str(value)] for name, value in headers.items()],
            }
        )
        if answer.startswith(STALL):
            await stall(answer)
        return _hang_up(server) if answer == "drop" else "250 2.0.0 taken"


def _hang_up(server: SMTP) -> str:
    assert isinstance(server.transport, asyncio.WriteTransport)
    server.transport.abort()
    return "421 4.4.2 line lost"


async def serve(log: str, rules: list[Rule]) -> None:
    """Serve on a free port of 127.0.0.1, printed first, until standard input ends."""
    shared, book = Rules(rules), Log(log)
    server = await asyncio.get_running_loop().create_server(lambda: ScriptedServer(shared, book), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    server.close()


if __name__ == "__main__":
    logging.getLogger("mail.log").setLevel(logging.CRITICAL)
    asyncio.run(serve(sys.argv[1], [Rule(**rule) for rule in json.loads(sys.argv[2] if sys.argv[2:] else "[]")]))
