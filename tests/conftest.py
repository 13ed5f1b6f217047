"""What the tests share: real databases (SQLite, a throwaway PostgreSQL), a home, the folder of real data."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from features.contacts import resolve, update_traits
from service.database import Database
from service.settings import Settings
from service.suppression import Consent, set_consent

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)  # a Monday

#: MLflow's server imports it; imported here it would only repeat MLflow's advice.
collect_ignore = ["benchmarks/rival_mlflow.py"]


@pytest.fixture
def now() -> datetime:
    """A fixed instant: Monday 2026-03-02 09:00 UTC."""
    return NOW


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a fresh installation in a temporary home, deaf to the machine's environment."""
    return Settings(home=tmp_path / "home", _env_file=None)


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty SQLite file to copy from."""
    path = tmp_path_factory.mktemp("sqlite") / "empty.db"
    database = Database(f"sqlite:///{path}")
    database.upgrade()
    with database.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return path


@pytest.fixture
def database(empty_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    """A fresh SQLite database."""
    path = tmp_path / "kairos.db"
    shutil.copy(empty_sqlite, path)
    fresh = Database(f"sqlite:///{path}", is_durable=False)
    yield fresh
    fresh.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """SQLAlchemy URL prefix of a throwaway PostgreSQL cluster on loopback."""
    initdb = shutil.which("initdb")
    pg_ctl = shutil.which("pg_ctl")
    if initdb is None or pg_ctl is None:
        pytest.skip("PostgreSQL's initdb and pg_ctl are not on PATH; install the postgresql package to run this")
    user = "postgres" if os.geteuid() == 0 else None  # initdb refuses root
    folder = Path(tempfile.mkdtemp(prefix="kairos-pg-"))
    if user:
        shutil.chown(folder, user=user)
    port = _free_port()
    run = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "cwd": folder}
    if user:
        run["user"] = user
    data = folder / "data"
    subprocess.run([initdb, "-D", str(data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"], **run)
    options = (
        f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c fsync=off -c synchronous_commit=off "
        "-c full_page_writes=off -c max_connections=200"
    )
    subprocess.run([pg_ctl, "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start"], **run)
    yield f"postgresql+psycopg://postgres@127.0.0.1:{port}"
    subprocess.run([pg_ctl, "-D", str(data), "-w", "-m", "immediate", "stop"], **run)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def empty_postgres(postgres_server: str) -> str:
    """Name of a migrated, empty PostgreSQL database to copy from."""
    name = "empty"
    _on_server(postgres_server, f"CREATE DATABASE {name}")
    database = Database(f"{postgres_server}/{name}")
    database.upgrade()
    database.close()
    return name


@pytest.fixture
def postgres(postgres_server: str, empty_postgres: str) -> Iterator[Database]:
    """A fresh, migrated PostgreSQL database."""
    name = f"t{os.urandom(6).hex()}"
    _on_server(postgres_server, f"CREATE DATABASE {name} TEMPLATE {empty_postgres}")
    fresh = Database(f"{postgres_server}/{name}")
    yield fresh
    fresh.close()
    _on_server(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def _on_server(server: str, statement: str) -> None:
    admin = Database(f"{server}/postgres")
    with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(statement))
    admin.close()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def any_database(request: pytest.FixtureRequest) -> Database:
    """The same test on SQLite and on PostgreSQL."""
    return request.getfixturevalue("database" if request.param == "sqlite" else "postgres")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder of real data, named by KAIROS_TEST_DATA; without it the test is skipped."""
    named = os.environ.get("KAIROS_TEST_DATA")
    if not named:
        pytest.skip("KAIROS_TEST_DATA names no folder of real data; see DECISIONS.md, “Test data”")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"KAIROS_TEST_DATA={named} is no folder")
    return folder


@pytest.fixture
def add_contacts(now: datetime) -> Callable[..., list[int]]:
    """A function that adds ``count`` contacts with reserved addresses, subscribed unless told otherwise."""

    def add(
        session: Session,
        count: int,
        *,
        zones: Sequence[str] = ("Europe/London",),
        consent: str = "subscribed",
        prefix: str = "u",
    ) -> list[int]:
        found = resolve(session, [f"user:{prefix}{i}" for i in range(count)], now=now)
        keys = [found[f"user:{prefix}{i}"] for i in range(count)]
        traits = {
            key: {"email": f"{prefix}{i}@example.com", "timezone": zones[i % len(zones)], "first_name": f"N{i}"}
            for i, key in enumerate(keys)
        }
        update_traits(session, traits, now=now)
        set_consent(session, [Consent(key, "marketing", consent, "test") for key in keys], now=now)
        return keys

    return add
