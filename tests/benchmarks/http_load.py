"""Requests as fast as they are answered, over a few kept-alive connections, from a process of their own.

``python -m tests.benchmarks.http_load PORT CONNECTIONS FILE``: FILE holds one request line a line (``GET /path``).
Prints requests a second and milliseconds as JSON. httpx would cost more than the server that it asks.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np

_AGENT = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15"
_ONE_CLICK = b"List-Unsubscribe=One-Click"


async def load(port: int, connections: int, lines: list[str]) -> dict[str, float]:
    """Share the requests out over the connections; each sends its next when the last is answered."""
    took: list[float] = []
    waiting = iter(enumerate(lines))

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number, line in waiting:
            method, _, path = line.partition(" ")
            body = _ONE_CLICK if method == "POST" else b""
            # Each a recipient of its own: public addresses, as a proxy on this machine would tell them.
            network = f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
            head = (
                f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: {_AGENT}\r\n"
                f"X-Forwarded-For: {network}\r\nContent-Length: {len(body)}\r\n"
                "Content-Type: application/x-www-form-urlencoded\r\n\r\n"
            )
            began = time.perf_counter()
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            status, _, rest = answer.partition(b"\r\n")
            if status.split(b" ")[1] not in (b"200", b"302"):
                raise RuntimeError(f"{line}: {status.decode()}")
            length = rest.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
            await reader.readexactly(int(length))
            took.append(time.perf_counter() - began)
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(connection() for _ in range(connections)))
    seconds = time.perf_counter() - began
    p50, p99 = (np.quantile(took, [0.5, 0.99]) * 1000).tolist()
    return {"per_second": round(len(took) / seconds), "p50_ms": round(p50, 1), "p99_ms": round(p99, 1)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(load(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_text().splitlines()))))
