"""Faults: kill, pause, lock, fill, restart."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg

from service.database import Database
from tests.faults.processes import Running, wait_for
from tests.faults.town import OPEN_STATES, Town


def kill_again_and_again(town: Town, kills: int, rng: random.Random, *, leavers: int = 0) -> None:
    """Start a worker, let it send a random part of its share, kill -9 it, let its leases end; again.

    Parameters
    ----------
    leavers : int
        Contacts that unsubscribe beside each life of a worker.
    """
    share = len(town.contact_keys) * 9 // 10 // kills
    candidates = rng.sample(town.contact_keys, leavers * kills)
    for number in range(kills):
        worker, goal = town.worker(), town.sink.count + rng.randint(1, share)
        town.unsubscribe(candidates[number * leavers : (number + 1) * leavers])
        wait_for(lambda goal=goal: town.sink.count >= goal, 300, "mails arrive")
        time.sleep(rng.uniform(0, 0.02))
        worker.kill()
        town.end_leases()


def pause(town: Town, worker: Running) -> None:
    """SIGSTOP the worker while it sends and holds no lock: who stops with a lock keeps the others waiting."""
    for _ in range(200):
        worker.signal(signal.SIGSTOP)
        if not town.count(*OPEN_STATES):
            raise AssertionError("the worker was done before it could be stopped; give it more to do")
        if town.count("claimed", "attempting") and _nobody_writes(town.database):
            return
        worker.signal(signal.SIGCONT)
        time.sleep(0.003)
    raise AssertionError("the worker was never found between two transactions")


def _nobody_writes(database: Database) -> bool:
    if database.is_sqlite:
        with closing(sqlite3.connect(str(database.url.database), timeout=0.05, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.execute("ROLLBACK")
            return True
    time.sleep(0.02)  # what was sent to PostgreSQL before the signal may still be under way
    with database.engine.connect() as connection:
        found = connection.exec_driver_sql(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND state <> 'idle'"
        )
        return found.scalar_one() == 0


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Another process holds SQLite's write lock."""
    code = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30); "
        "connection.execute('BEGIN IMMEDIATE'); print('locked', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        holder.stdin.close()
        holder.wait(timeout=20)
        holder.stdout.close()


def fill(folder: Path) -> Path:
    """Fill a file system to its last byte; the file that does it."""
    filler = folder / "filler"
    with open(filler, "wb", buffering=0) as file:
        while room := shutil.disk_usage(folder).free:
            try:
                file.write(bytes(min(room, 1 << 20)))
            except OSError:
                break
    return filler


class DurablePostgres:
    """A PostgreSQL of our own that keeps its promises (fsync on) and can be restarted as after a crash."""

    def __init__(self, folder: Path, port: int) -> None:
        initdb, pg_ctl = shutil.which("initdb"), shutil.which("pg_ctl")
        if initdb is None or pg_ctl is None:
            raise LookupError("PostgreSQL's initdb and pg_ctl are not on PATH; install the postgresql package")
        self._user = "postgres" if os.geteuid() == 0 else None  # initdb refuses root
        if self._user:
            shutil.chown(folder, user=self._user)
        self._folder, self._pg_ctl = folder, pg_ctl
        self._options = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1 -c max_connections=200"
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{port}"
        self._run(initdb, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C")
        self.start()

    def start(self) -> None:
        """Start it, recovering what a crash left."""
        self._run(self._pg_ctl, "-w", "-l", str(self._folder / "log"), "-o", self._options, "start")

    def crash(self) -> None:
        """Stop it at once: open transactions are gone, committed ones must not be."""
        self._run(self._pg_ctl, "-w", "-m", "immediate", "stop")

    def new_database(self) -> str:
        """URL of a fresh database."""
        name = f"f{os.urandom(6).hex()}"
        with psycopg.connect(self.url.replace("+psycopg", "") + "/postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"{self.url}/{name}"

    def _run(self, command: str, *arguments: str) -> None:
        options = {"user": self._user} if self._user else {}
        subprocess.run(
            [command, "-D", str(self._folder / "data"), *arguments],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=self._folder, **options,
        )  # fmt: skip
