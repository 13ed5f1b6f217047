"""The replies of a mail server, in the order of what was asked."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass

#: Octets of one reply. RFC 5321 section 4.5.3.1.5 allows 512 a line; a server that talks on without an end is none.
LONGEST_REPLY = 32_768

_LINE_END = re.compile(rb"\r\n|\r|\n")
_REPLY_LINE = re.compile(rb"([2-5][0-9][0-9])([ -]?)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server answered: its code, and its lines joined by a space."""

    code: int
    text: str


class LineLost(Exception):
    """The line ended, stalled or spoke nonsense; ``replies`` holds what had been answered before."""

    def __init__(self, why: str, replies: list[Reply]) -> None:
        super().__init__(why)
        self.replies = replies


class Wire(asyncio.Protocol):
    """Takes over an open line once the greeting and its introductions are done.

    Attributes
    ----------
    fault : str or None
        Why the line can no longer be used; None while it can.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self.fault: str | None = None
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._lines: list[str] = []
        self._replies: list[Reply] = []
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None
        transport.set_protocol(self)

    async def ask(self, data: bytes, replies: int, timeout_seconds: float) -> list[Reply]:
        """Write ``data`` and wait for so many replies.

        Raises
        ------
        LineLost
            If the line ends, if a reply is none, or if the replies take longer.
        """
        if self.fault is not None or self._transport.is_closing():
            raise LineLost(self.fault or "it was closed", [])
        self._replies, self._wanted = [], replies
        waiter = self._waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_seconds, self._break, f"no answer in {timeout_seconds:g} s")
        self._transport.write(data)
        try:
            await waiter
        except asyncio.CancelledError:
            self.fault = "it was given up"
            raise
        finally:
            timer.cancel()
            self._waiter = None
        if len(self._replies) < replies:
            raise LineLost(self.fault or "it was closed", self._replies)
        return self._replies

    def data_received(self, data: bytes) -> None:
        """Replies, or parts of them."""
        buffer = self._buffer
        buffer += data
        if len(buffer) > LONGEST_REPLY:
            self._break("the server's reply has no end")
            return
        while self.fault is None and (end := buffer.find(b"\n")) >= 0:
            line = bytes(buffer[:end]).rstrip(b"\r")
            del buffer[: end + 1]
            found = _REPLY_LINE.fullmatch(line)
            if found is None:
                self._break("the server spoke no SMTP")
                return
            code, more, text = found.groups()
            self._lines.append(text.decode("utf-8", "replace").strip())
            if more == b"-":
                if len(self._lines) > 100:
                    self._break("the server's reply has no end")
                continue
            reply = Reply(int(code), " ".join(self._lines))
            self._lines = []
            if self._waiter is None or len(self._replies) >= self._wanted:
                # Mostly 421 before it hangs up. What it says unasked would be taken for an answer to the next question.
                self._break(f"the server said {reply.code} unasked")
                return
            self._replies.append(reply)
            if len(self._replies) == self._wanted:
                self._wake()

    def eof_received(self) -> bool:
        """The server hung up."""
        self._break("the server hung up")
        return False

    def connection_lost(self, error: Exception | None) -> None:
        """The line is gone."""
        self._break("the server hung up" if error is None else type(error).__name__)

    def _break(self, why: str) -> None:
        if self.fault is None:
            self.fault = why
            self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def as_data(message: bytes) -> bytes:
    r"""``message`` as DATA takes it: every line ends with CRLF, a leading dot is doubled, the final dot follows.

    Examples
    --------
    >>> as_data(b"a\n.b")
    b'a\r\n..b\r\n.\r\n'
    """
    if message.count(b"\n") != message.count(b"\r\n") or message.count(b"\r") != message.count(b"\r\n"):
        message = _LINE_END.sub(b"\r\n", message)
    if not message.endswith(b"\r\n"):
        message += b"\r\n"
    message = message.replace(b"\r\n.", b"\r\n..")
    if message.startswith(b"."):
        message = b"." + message
    return message + b".\r\n"
