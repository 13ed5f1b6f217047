"""A launcher of commands, a PostgreSQL that can crash, and towns to build on either database."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.database import Database
from tests.faults.nemesis import DurablePostgres
from tests.faults.processes import Launcher, Sink
from tests.faults.town import BuildTown, Town, settings_of


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """Starts `kairos` commands at once."""
    ready = Launcher()
    yield ready
    ready.close()


@pytest.fixture(scope="session")
def durable_postgres() -> Iterator[DurablePostgres]:
    """A PostgreSQL that keeps its promises and can be made to crash."""
    folder = Path(tempfile.mkdtemp(prefix="kairos-faults-pg-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    try:
        server = DurablePostgres(folder, port)
    except LookupError as missing:
        pytest.skip(str(missing))
    yield server
    server.crash()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def database_kind(request: pytest.FixtureRequest) -> str:
    """Each fault on SQLite and on PostgreSQL."""
    return request.param


@pytest.fixture
def build_town(
    request: pytest.FixtureRequest, launcher: Launcher, empty_sqlite: Path, tmp_path: Path
) -> Iterator[BuildTown]:
    """A function that settles ``n_people`` in a fresh installation."""
    towns: list[Town] = []

    def build(kind: str, n_people: int, *rules: dict[str, Any], home: Path | None = None, **changes: Any) -> Town:
        home = home or tmp_path / f"home{len(towns)}"
        sink = Sink(tmp_path / f"sink{len(towns)}.log", *rules)
        home.mkdir(exist_ok=True)
        if kind == "sqlite":
            shutil.copy(empty_sqlite, home / "kairos.db")
            url = f"sqlite:///{home / 'kairos.db'}"
        else:
            url = request.getfixturevalue("durable_postgres").new_database()
        database = Database(url)
        if kind != "sqlite":
            database.upgrade()
        town = Town(database, settings_of(home, url, sink.url, **changes), sink, launcher)
        towns.append(town)
        town.settle(n_people)
        return town

    yield build
    launcher.end_all()
    for town in towns:
        town.sink.close()
        town.database.close()
