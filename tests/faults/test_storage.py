"""A database that crashes, is locked, has no room: clients are asked to try again, the worker goes on."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from service.keys import create_key
from tests.faults.checker import check_events
from tests.faults.nemesis import DurablePostgres, fill, locked
from tests.faults.processes import wait_for
from tests.faults.town import BuildTown, Town


class Shop:
    """A client that sends events one by one and repeats each until it is taken, as Segment's clients do."""

    def __init__(self, town: Town, url: str) -> None:
        with town.database.writing() as session:
            _, self._secret = create_key(session, "shop", ["ingest"], datetime.now(UTC))
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sell)
        self.taken: list[str] = []
        self.statuses: set[int] = set()
        self.refused = 0

    def open(self) -> None:
        """Begin to send."""
        self._thread.start()

    def close(self) -> None:
        """Send what is under way, then no more."""
        self._stop.set()
        self._thread.join(timeout=120)
        assert not self._thread.is_alive(), "an event is still refused"

    def _sell(self) -> None:
        with httpx.Client(base_url=self._url, auth=(self._secret, ""), timeout=60) as http:
            while not self._stop.is_set():
                message_id = f"m{len(self.taken)}"
                event = {"event": "Quiz Finished", "userId": f"c{len(self.taken) % 50}", "messageId": message_id}
                while (status := http.post("/v1/track", json=event).status_code) != 200:
                    self.statuses.add(status)
                    self.refused += 1
                    time.sleep(0.1)
                self.taken.append(message_id)
                time.sleep(0.01)


@contextmanager
def at_work(town: Town) -> Iterator[Shop]:
    """A worker in the middle of a campaign, an API server and a client that sells; then the same, undisturbed."""
    server, url = town.launcher.server(town.settings)
    shop = Shop(town, url)
    town.send_to_everybody()
    worker = town.worker()
    shop.open()
    wait_for(lambda: town.sink.count > 10 and len(shop.taken) > 5, 180, "mails and events flow")
    yield shop
    mails, events = town.sink.count, len(shop.taken)
    wait_for(lambda: len(shop.taken) > events, 180, "events flow again")
    wait_for(lambda: town.sink.count > mails, 180, "the same worker goes on")
    shop.close()
    server.kill()
    worker.kill()
    town.end_leases()
    town.finish(seconds=300)


def compare(town: Town, shop: Shop, crashes: int) -> None:
    """Nothing lost, nothing twice, nothing half."""
    report = town.check(crashes=crashes)
    print(f"\n{town.settings.database_url}: {len(shop.taken)} events, {shop.refused} times refused; {report}")
    assert report.violations == []
    assert check_events(town.database, shop.taken) == []
    assert shop.statuses <= {503}


@pytest.mark.postgres
@pytest.mark.parametrize("crashes", [1, pytest.param(5, marks=pytest.mark.faults)])
def test_a_postgresql_that_crashes_loses_no_event_and_no_mail(
    build_town: BuildTown, durable_postgres: DurablePostgres, crashes: int
) -> None:
    """Stopped at once and started again while mails leave and events come in: 503, then everything goes on."""
    town = build_town("postgresql", 400 if crashes == 1 else 4_000)
    with at_work(town) as shop:
        for _ in range(crashes):
            before = shop.refused
            durable_postgres.crash()
            wait_for(lambda before=before: shop.refused > before, 120, "events are refused")
            durable_postgres.start()
            town.database.close()  # the connections of this test died too
            taken = len(shop.taken)
            wait_for(lambda taken=taken: len(shop.taken) > taken, 120, "events flow again")
    # The worker's death in `at_work` leaves mails in the air once more.
    compare(town, shop, crashes + 1)
    assert shop.statuses == {503}


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [2, 30])
def test_a_sqlite_file_that_is_locked_loses_no_event_and_no_mail(build_town: BuildTown, seconds: int) -> None:
    """Another process holds the write lock: a short while is waited for, a long one is 503 and tried again."""
    town = build_town("sqlite", 400 if seconds < 20 else 2_000)
    with at_work(town) as shop, locked(town.settings.home / "kairos.db"):
        time.sleep(seconds)
        mails, events = town.sink.count, len(shop.taken)
        time.sleep(0.2)
        assert (town.sink.count, len(shop.taken)) == (mails, events)
    compare(town, shop, 2)
    # SQLite is waited for 20 s.
    assert shop.statuses == (set() if seconds < 20 else {503})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "kairos-faults", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.faults
def test_a_full_disk_loses_no_event_and_no_mail(build_town: BuildTown, small_disk: Path) -> None:
    """No room for the database: 503, and nothing half written; with room again both go on."""
    town = build_town("sqlite", 300, home=small_disk / "home")
    with at_work(town) as shop:
        filler = fill(small_disk)
        wait_for(lambda: shop.refused > 3, 180, "events are refused")
        assert shutil.disk_usage(small_disk).free == 0
        filler.unlink()
    compare(town, shop, 2)
    assert shop.statuses == {503}
