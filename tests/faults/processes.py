"""What the faults happen to: a mail server, workers and API servers, each a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """The condition's value, once it is true; fails after ``seconds``."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {seconds:g} s")
        time.sleep(0.01)
    return found


@dataclass(frozen=True)
class Delivery:
    """A mail that the sink took: times are seconds since 1970 on this machine's clock."""

    message_id: str
    recipient: str
    send_id: int
    #: When DATA was announced, and when the final dot had come.
    began_at: float
    taken_at: float
    headers: list[tuple[str, str]] = field(repr=False)


class Sink:
    """The mail server of `tests.faults.sink`; mails stay in its log when it ends."""

    def __init__(self, log: Path, *rules: dict[str, Any]) -> None:
        self.log = log
        self._counted = self._read = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.sink", str(log), json.dumps(rules)],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        self.url = f"smtp://127.0.0.1:{self.port}"

    @property
    def count(self) -> int:
        """Mails taken so far."""
        if self.log.exists():
            with self.log.open("rb") as file:
                file.seek(self._read)
                fresh = file.read()
            self._read += len(fresh)
            self._counted += fresh.count(b"\n")
        return self._counted

    def deliveries(self) -> list[Delivery]:
        """What was taken, in order."""
        if not self.log.exists():
            return []
        return [Delivery(**json.loads(line)) for line in self.log.read_text().splitlines()]

    def close(self) -> None:
        """End the server."""
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            assert end is not None
            end.close()


class Running:
    """A `kairos` command that runs, held by a descriptor: its number may be another process's once it has ended."""

    def __init__(self, pid: int, log: Path) -> None:
        self.pid = pid
        self.log = log
        self._descriptor = os.pidfd_open(pid)

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        try:
            signal.pidfd_send_signal(self._descriptor, 0)
        except ProcessLookupError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        signal.pidfd_send_signal(self._descriptor, number)

    def close(self) -> None:
        """Let go of it, once it has ended."""
        os.close(self._descriptor)

    def kill(self) -> None:
        """End it at once, as a power cut would, and wait until it is gone."""
        if self.is_alive:
            self.signal(signal.SIGKILL)
        wait_for(lambda: not self.is_alive, 60, f"process {self.pid} ends after SIGKILL")

    def stop(self, seconds: float = 60) -> None:
        """Ask it to end, and wait."""
        if self.is_alive:
            self.signal(signal.SIGTERM)
        wait_for(lambda: not self.is_alive, seconds, f"process {self.pid} ends after SIGTERM")


class Launcher:
    """Starts `kairos` commands; see `tests.faults.launcher`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.launcher"],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._answers = self._process.stdin, self._process.stdout
        self._started: list[Running] = []
        if self._answers.readline() != "ready\n":
            raise AssertionError("the launcher of commands did not start")

    def start(self, settings: Settings, *arguments: str) -> Running:
        """``kairos ARGUMENTS`` with these settings, its output in ``<home>/<command>.log``."""
        log = settings.home / f"{arguments[0]}.log"
        order = {"arguments": arguments, "environment": settings.environment(), "log": str(log)}
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        running = Running(int(self._answers.readline()), log)
        self._started.append(running)
        return running

    def worker(self, settings: Settings) -> Running:
        """``kairos worker``."""
        return self.start(settings, "worker")

    def server(self, settings: Settings) -> tuple[Running, str]:
        """``kairos serve --no-worker``, answering, and its address."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        running = self.start(settings, "serve", "--no-worker", "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: _answers(url), 180, f"{url} answers")
        return running, url

    def end_all(self) -> None:
        """Kill every command that still runs."""
        for running in self._started:
            if running.is_alive:
                running.signal(signal.SIGKILL)
        for running in self._started:
            wait_for(lambda running=running: not running.is_alive, 60, f"process {running.pid} ends")
            running.close()
        self._started.clear()

    def close(self) -> None:
        """End every command, and the launcher."""
        self.end_all()
        self._orders.close()
        self._process.wait(timeout=120)
        self._answers.close()


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
