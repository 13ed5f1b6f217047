"""A mail server that answers as a test tells it to: raw bytes, stalls, hang-ups, at each phase."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

GREETING, EHLO, MAIL, RCPT, DATA, BODY = "greeting", "EHLO", "MAIL", "RCPT", "DATA", "body"
YES = {
    GREETING: b"220 here\r\n", EHLO: b"250-here\r\n250 PIPELINING\r\n", MAIL: b"250 2.1.0 ok\r\n",
    RCPT: b"250 2.1.5 ok\r\n", DATA: b"354 go on\r\n", BODY: b"250 2.0.0 taken\r\n", "RSET": b"250 ok\r\n",
}  # fmt: skip
STALL, HANG_UP = b"stall", b"hang up"


class Scripted:
    """How it answers; ``script`` maps a phase to the answer of the first mail (later ones get a yes)."""

    def __init__(self, script: dict[str, bytes]) -> None:
        self.script = dict(script)
        self.port = 0
        self.connections = 0
        self.taken: list[bytes] = []

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if not await self._say(writer, GREETING):
                return
            while line := await reader.readline():
                verb = line[:4].decode("latin-1").upper()
                if verb == "DATA":
                    if not await self._say(writer, DATA):
                        return
                    body = await reader.readuntil(b"\r\n.\r\n")
                    self.taken.append(body)
                    if not await self._say(writer, BODY):
                        return
                elif verb in YES:
                    if not await self._say(writer, verb):
                        return
                elif verb == "QUIT":
                    writer.write(b"221 bye\r\n")
                    return
                else:
                    writer.write(b"250 ok\r\n")
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _say(self, writer: asyncio.StreamWriter, phase: str) -> bool:
        answer = self.script.pop(phase, YES[phase])
        if answer == STALL:
            await asyncio.sleep(60)
        if answer in (STALL, HANG_UP):
            return False
        writer.write(answer)
        await writer.drain()
        return True


@asynccontextmanager
async def scripted(script: dict[str, bytes]) -> AsyncIterator[Scripted]:
    """The server, on a free port of 127.0.0.1."""
    server = Scripted(script)
    listening = await asyncio.start_server(server.talk, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
