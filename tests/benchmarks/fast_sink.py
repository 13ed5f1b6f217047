"""An SMTP server that only counts, in a process of its own, so that it is not what a benchmark of sending measures.

It takes a third of a millisecond of CPU a mail. It knows what a sender needs (EHLO with PIPELINING and 8BITMIME, MAIL,
RCPT, DATA, RSET, QUIT), says yes to everything and keeps nothing but the number of mails and the instants of the first
and the last.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

_END = b"\r\n.\r\n"
_YES = {b"EHLO": b"250-sink\r\n250-PIPELINING\r\n250 8BITMIME\r\n", b"DATA": b"354 go on\r\n", b"QUIT": b"221 bye\r\n"}


class Counts:
    """What arrived."""

    def __init__(self) -> None:
        self.mails = 0
        self.octets = 0
        self.first = 0.0
        self.last = 0.0


class Conversation(asyncio.Protocol):
    """One connection."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._buffer = bytearray()
        self._is_body = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink\r\n")

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        answers = bytearray()
        while True:
            if self._is_body:
                end = buffer.find(_END, max(0, len(buffer) - len(data) - len(_END)))
                if end < 0:
                    break
                counts = self._counts
                counts.mails += 1
                counts.octets += end
                counts.last = time.time()
                counts.first = counts.first or counts.last
                del buffer[: end + len(_END)]
                self._is_body = False
                answers += b"250 taken\r\n"
                continue
            end = buffer.find(b"\r\n")
            if end < 0:
                break
            verb = bytes(buffer[:4]).upper()
            del buffer[: end + 2]
            answers += _YES.get(verb, b"250 ok\r\n")
            self._is_body = verb == b"DATA"
        if answers:
            self._transport.write(bytes(answers))


async def serve() -> None:
    """Print the port, answer each line of standard input with the counts, end with it."""
    counts = Counts()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Conversation(counts), "127.0.0.1", 0, backlog=500)
    print(server.sockets[0].getsockname()[1], flush=True)
    while await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(vars(counts) | {"cpu_seconds": time.process_time()}), flush=True)


class FastSink:
    """The sink in its own process: ``with FastSink() as sink: … sink.counts()``."""

    def __enter__(self) -> FastSink:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.fast_sink"],
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        """What ``SMTP_URL`` takes to reach the sink."""
        return f"smtp://127.0.0.1:{self.port}"

    def counts(self) -> dict[str, float]:
        """Mails and octets so far, when the first and the last came (seconds since 1970), and CPU seconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))


if __name__ == "__main__":
    asyncio.run(serve())
