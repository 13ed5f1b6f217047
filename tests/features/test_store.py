"""Laws of the store: what it cannot do it says in one sentence, and what it did not write it does not take away."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from features.lake import Lake, Manifest
from features.snapshots import erase_from_snapshots, list_snapshots, write_snapshot
from features.store import NotWritten, Store, StoreError, Unavailable
from features.views import EVER, FeatureView, Stream, ViewSet
from tests.features.logs import ORIGIN, columns_of, order

HERE = str(Path(__file__).resolve().parents[2])


class DriverError(Exception):
    """As botocore raises them: no OSError."""


class OutOfReach(MemoryFileSystem):
    """An object store behind an endpoint that can be taken away; some drivers then raise errors of their own."""

    protocol = "outofreach"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    find = AbstractFileSystem.find  # as most drivers have it: nothing is found where `ls` fails
    port: int | None = None
    raises_its_own = False

    def _connect(self) -> None:
        if self.port is None:
            return
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=5).close()
        except OSError:
            if self.raises_its_own:
                raise DriverError(f'Could not connect to the endpoint URL: "http://127.0.0.1:{self.port}"') from None
            raise

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._connect()
        return super().ls(path, detail, **kwargs)

    def info(self, path: str, **kwargs: Any) -> Any:
        self._connect()
        return super().info(path, **kwargs)

    def cat_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._connect()
        return super().cat_file(path, *args, **kwargs)

    def pipe_file(self, path: str, *args: Any, **kwargs: Any) -> Any:
        self._connect()
        return super().pipe_file(path, *args, **kwargs)

    def rm_file(self, path: str) -> None:
        self._connect()
        super().rm_file(path)


@pytest.fixture(params=[False, True], ids=["system's error", "driver's own error"])
def remote(request: pytest.FixtureRequest) -> Iterator[type[OutOfReach]]:
    """An object store that is there until its ``port`` is one where nobody listens."""
    fsspec.register_implementation("outofreach", OutOfReach, clobber=True)
    OutOfReach.store.clear()
    OutOfReach.port, OutOfReach.raises_its_own = None, request.param
    yield OutOfReach
    OutOfReach.port = None


def closed_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_store_that_does_not_answer_is_named_with_its_address(remote: type[OutOfReach]):
    """Reading, writing, listing and removing; what is merely not there is still that."""
    store = Store("outofreach://bucket/lake")
    store.write("a/one", b"1")
    with pytest.raises(FileNotFoundError):
        store.read("a/other")
    store.remove("a/other")
    assert (store.list("a"), store.list("b"), store.list()) == (["a/one"], [], ["a/one"])

    remote.port = closed_port()

    why = r"could not be {}: .*[Cc]on.*; see that the store answers at this address .* try again"
    for doing in (lambda: store.read("a/one"), lambda: store.read("a/other"), lambda: store.remove("a/one")):
        with pytest.raises(Unavailable, match="^outofreach://bucket/lake/a/o.* " + why.format("reached")):
            doing()
    for folder in ("a", "b", ""):
        with pytest.raises(Unavailable, match=f"^outofreach://bucket/lake/?{folder} " + why.format("reached")):
            store.list(folder)
    for folder in ("a", "b"):
        with pytest.raises(Unavailable, match=f"^outofreach://bucket/lake/{folder} " + why.format("reached")):
            store.remove_folder(folder)
    with pytest.raises(NotWritten, match=r"^outofreach://bucket/lake/a/one \(2 bytes\) " + why.format("written")):
        store.write("a/one", b"22")
    with pytest.raises(StoreError, match="could not be reached"):
        Lake("outofreach://bucket/lake")
    remote.port = None
    assert store.read("a/one") == b"1"
    store.remove_folder("a")
    assert store.list() == []


WRITER = """
import os, signal, sys
from features.store import Store

def stop(event, arguments):
    if event == "os.rename":
        print("about to rename", flush=True)
        if sys.argv[2] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdin.readline()

store = Store(sys.argv[1])
sys.addaudithook(stop)
if sys.argv[2] == "die":
    with store.exclusive():
        store.write("held", b"1")
else:
    store.write("free", b"1")
"""


def test_only_what_a_killed_lock_holder_left_behind_is_swept(tmp_path: Path):
    """A writer without the lock is not robbed of the file it is about to rename; that of a killed holder goes."""

    def start(how: str) -> subprocess.Popen[str]:
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), how],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": HERE},
        )  # fmt: skip
        assert writer.stdout is not None
        assert writer.stdout.readline() == "about to rename\n"
        return writer

    free, killed = start("wait"), start("die")
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert sorted(path.name.split(".")[0] for path in tmp_path.glob("*.tmp")) == ["free", "held"]

    with Store(str(tmp_path)).exclusive():
        pass

    free.communicate("go on")
    assert free.returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"free", ".lock"}


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path):
    """Where a file is expected lies a folder: the system's words, and what to do."""
    (tmp_path / "manifest.json").mkdir()

    with pytest.raises(Unavailable, match=f"^{tmp_path}/manifest.json could not be reached: Is a directory; mend the"):
        Lake(str(tmp_path))


def test_a_snapshot_outlives_an_erasure_while_the_store_is_away(remote: type[OutOfReach]):
    """Nothing is known of its files: it is not taken for damaged and removed, the erasure is tried again."""
    lake = Lake("outofreach://bucket/lake", buckets=2)
    events = columns_of([order(1.0, key=key) for key in (1, 2, 3)])
    files = {}
    for bucket in range(2):
        mine = events.take(lake.bucket_of(events.contact_key) == bucket)
        files[bucket] = (lake._write(bucket, "base-3", mine),) if len(mine) else ()
    lake._publish(Manifest(2, 3, files))
    views = ViewSet("orders", (FeatureView("orders", "count", Stream("o", ("Order Completed",)), EVER, "f", "u", "d"),))
    whole = write_snapshot(lake, views, ORIGIN + 10**12)
    remote.port = closed_port()

    with pytest.raises(Unavailable):
        erase_from_snapshots(lake, [2])

    remote.port = None
    assert list_snapshots(lake) == [whole]
    assert erase_from_snapshots(lake, [2]) == 1
