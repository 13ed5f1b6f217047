"""Mail into a folder: each message one .eml file, for a first look around and for tests."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from service.providers.base import Receipt, classify

#: What to answer a recipient: an SMTP reply such as ``550 5.1.1 no such user``, ``drop``, or None to accept.
Answer = Callable[[str], str | None]
_number = itertools.count()


class OutboxProvider:
    """Writes mails into ``folder``.

    Parameters
    ----------
    folder : Path
        Made when it does not exist.
    connections : int
        How many mails may be under way at once.
    on_recipient, on_message : callable, optional
        What a relay would answer to RCPT and after the message; ``drop`` breaks the line there.
    """

    def __init__(
        self,
        folder: Path,
        *,
        connections: int = 8,
        on_recipient: Answer | None = None,
        on_message: Answer | None = None,
    ) -> None:
        self.folder = folder
        self.connections = connections
        self.on_recipient = on_recipient
        self.on_message = on_message

    @property
    def pause_seconds(self) -> float:
        """A folder is always there."""
        return 0.0

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[OutboxConnection]:
        """A conversation with the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        yield OutboxConnection(self)


class OutboxConnection:
    """One conversation with the folder."""

    def __init__(self, provider: OutboxProvider) -> None:
        self._provider = provider
        self._recipient: str | None = None

    async def check(self, sender: str, recipient: str) -> Receipt:
        """What the provider was told to answer, else yes."""
        answer = self._provider.on_recipient(recipient) if self._provider.on_recipient else None
        if answer == "drop":
            return Receipt("deferred", None, "the line was lost before the message began")
        receipt = _receipt(answer or "250 2.1.5 OK")
        self._recipient = recipient if receipt.outcome == "accepted" else None
        return receipt

    async def transmit(self, message: bytes) -> Receipt:
        """Write the file, complete or not at all."""
        recipient, self._recipient = self._recipient, None
        if recipient is None:
            return Receipt("deferred", None, "no recipient was announced")
        answer = self._provider.on_message(recipient) if self._provider.on_message else None
        if answer == "drop":
            return Receipt("unknown", None, "the line was lost after the message began")
        receipt = _receipt(answer or "250 2.0.0 OK")
        if receipt.outcome == "accepted":
            try:
                await asyncio.to_thread(_write, self._provider.folder, message)
            except OSError as failure:
                return Receipt("deferred", 452, f"4.3.1 the outbox cannot be written: {failure.strerror}")
        return receipt

    async def abandon(self) -> None:
        """Forget the announced recipient."""
        self._recipient = None


def _receipt(answer: str) -> Receipt:
    code, _, text = answer.partition(" ")
    return classify(int(code), text)


def _write(folder: Path, message: bytes) -> None:
    name = f"{time.time_ns()}-{os.getpid()}-{next(_number)}"
    fresh = folder / f".{name}"
    fresh.write_bytes(message)
    fresh.rename(folder / f"{name}.eml")
