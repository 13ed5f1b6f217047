"""Laws of a lake that things happen to: killed writers, damaged files, a full disk, stores that are no folder."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from features import lake as lake_module
from features.events import HOUR_MICROS, EventColumns, NewEvent, append, head
from features.lake import Lake, LakeError
from features.offline import historical_features
from features.store import StoreError
from features.views import DEFAULT_VIEWS
from features.vocabulary import KINDS
from service.database import Database

HERE = str(Path(__file__).resolve().parents[2])
NOON = 1_772_452_800_000_000
BUCKETS = 4
CANARY = 13

#: Works on lakes with batches so small that one sync writes deltas, compacts buckets and publishes several times; dies
#: by SIGKILL before the n-th file operation (opening, renaming, removing), or after so many seconds. Each work has a
#: process of its own, forked off one that has imported everything.
WRITER = """
import os, signal, sys, threading, time, traceback
from features import lake as lake_module
from features.lake import Lake
from service.database import Database

lake_module.CHUNK_ROWS, lake_module.FLUSH_ROWS = 150, 300
lake_module.MAX_DELTAS, lake_module.MIN_DELTA_ROWS = 2, 100

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def work(url, doing, lake_url, operations, seconds):
    database, lake, left = Database(url), Lake(lake_url, 4), [operations]

    def count(event, arguments):
        if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(arguments[0]).startswith(lake_url):
            left[0] -= 1
            if left[0] == 0:
                die()

    with database.reading() as session:
        session.connection()
        sys.addaudithook(count)
        if seconds:
            timer = threading.Timer(seconds, die)
            timer.daemon = True
            timer.start()
        begin = time.perf_counter()
        if doing == "erase":
            lake.erase([13], session)
        else:
            getattr(lake, doing)(session)
        return f"{operations - left[0]} {time.perf_counter() - begin}"

for line in sys.stdin:
    url, doing, lake_url, operations, seconds = line.split()
    receiver, sender = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(sender, work(url, doing, lake_url, int(operations), float(seconds)).encode())
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        said = pipe.read()
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    print("killed" if killed else "failed" if status else said, flush=True)
"""


def grow(database: Database, n_events: int, seed: int) -> None:
    """Append random events of forty contacts, each with a property by which its contact can be found in a file."""
    random = np.random.default_rng(seed)
    keys = random.integers(1, 41, n_events).tolist()
    events = [
        NewEvent(
            key,
            list(KINDS)[int(random.integers(len(KINDS)))],
            NOON - int(random.integers(1, 2000)) * HOUR_MICROS,
            f"{seed}-{n}",
            "user:1",
            ref=str(n % 11),
            value_minor=int(random.integers(-500, 500)),
            human_ppm=int(random.integers(0, 1_000_001)),
        )
        for n, key in enumerate(keys)
    ]
    with database.writing() as session:
        append(session, events, received_at=NOON)


@pytest.fixture(scope="module")
def writer() -> Iterator[subprocess.Popen[str]]:
    """The process that `write` asks."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": HERE},
    ) as process:  # fmt: skip
        yield process


def write(
    writer: subprocess.Popen[str], database: Database, lake: Path, doing: str, operations: int = 0, seconds: float = 0.0
) -> tuple[int, float]:
    """File operations and seconds that the work took, or (0, 0) if it was killed on the way."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    print(database.url, doing, lake, operations, seconds, file=writer.stdin, flush=True)
    said = writer.stdout.readline().split()
    if said == ["killed"]:
        return 0, 0.0
    assert said != ["failed"], "its standard error says why"
    count, took = said
    return int(count), float(took)


def everything(lake: Lake) -> EventColumns:
    return EventColumns.concat([lake.read_bucket(bucket) for bucket in range(lake.buckets)])


def files_of(lake: Lake) -> set[str]:
    """Files that lie in the lake, less the lock."""
    return {path.name for path in Path(lake.url).rglob("*") if path.is_file()} - {".lock"}


def named_by(lake: Lake) -> set[str]:
    manifest = json.loads((Path(lake.url) / "manifest.json").read_text())
    return {"manifest.json"} | {file["name"] for files in manifest["files"].values() for file in files}


# --- Killed ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("points", [6, pytest.param(40, marks=pytest.mark.slow)])
@pytest.mark.parametrize("doing", ["sync", "rebuild", "erase"])
def test_a_writer_killed_anywhere_leaves_a_lake_that_the_next_completes(
    writer: subprocess.Popen[str], database: Database, tmp_path: Path, doing: str, points: int
):
    """kill -9 in syncing, compacting, rebuilding, erasing: at different file operations, the last one, random instants.

    At once the lake is whole and equal to the log up to the watermark that it names; after the next run it is equal to
    the log up to its head. What was half done is swept away, at the latest when its bucket is written again.
    """
    random = np.random.default_rng(len(doing))
    before, whole = tmp_path / "before", tmp_path / "whole"
    grow(database, 800, seed=1)
    with database.reading() as session:
        Lake(str(before), BUCKETS).sync(session)
    grow(database, 1500, seed=2)
    shutil.copytree(before, whole)
    operations, seconds = write(writer, database, whole, doing)
    assert operations > 10
    timed = points // 6
    others = random.permutation(operations - 1)[: points - timed - 1] + 1
    ends = [(operations, 0.0), *((int(at), 0.0) for at in others)]
    ends += [(0, random.uniform(0, seconds)) for _ in range(timed)]
    for number, end in enumerate(ends):
        folder = tmp_path / f"killed-{number}"
        shutil.copytree(before, folder)
        went = write(writer, database, folder, doing, *end)
        assert went == (0, 0.0) or not end[0], end  # a timer may ring after the end
        lake = Lake(str(folder), BUCKETS)
        with database.reading() as session:
            assert CANARY in lake.erased or lake.verify(session).equal, end
            assert lake.watermark in range(800, 2301)
            assert len(everything(lake)) == lake.rows

            if doing == "erase":
                lake.erase([CANARY], session)
                assert CANARY not in set(everything(lake).contact_key.tolist())
                assert lake.rows == Lake(str(whole), BUCKETS).rows
            else:
                lake.sync(session)
                assert lake.verify(session).equal
                assert lake.watermark == head(session) == 2300
                lake.rebuild(session)
        assert files_of(lake) == named_by(lake), end


# --- Damaged -----------------------------------------------------------------------------------------------------


@pytest.fixture
def lake(database: Database, tmp_path: Path) -> Lake:
    """A lake of 800 events, in step with the log."""
    lake = Lake(str(tmp_path / "lake"), BUCKETS)
    grow(database, 800, seed=1)
    with database.reading() as session:
        lake.sync(session)
    return lake


def test_any_byte_of_a_bucket_that_changed_is_noticed(database: Database, lake: Lake):
    """At a hundred places of a file, and cut anywhere: reading and verifying name it; the other buckets still serve.

    A sync that has to compact the bucket fails too, and changes nothing; a rebuild mends.
    """
    random = np.random.default_rng(1)
    path = next(Path(lake.url, "bucket=002").iterdir())
    data = path.read_bytes()
    others = [len(lake.read_bucket(bucket)) for bucket in (0, 1, 3)]
    for place in random.integers(0, len(data), 100).tolist():
        changed = bytearray(data)
        changed[place] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        with pytest.raises(StoreError, match=f"{path} was altered: .*`kairos features rebuild`"):
            lake.read_bucket(2)
    for length in (0, 1, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(StoreError, match=f"{path} has {length:,} bytes instead of {len(data):,}: .* rebuild`"):
            lake.read_bucket(2)

    assert [len(lake.read_bucket(bucket)) for bucket in (0, 1, 3)] == others
    grow(database, 6 * 2500, seed=2)  # more than a bucket takes without being compacted
    with database.reading() as session:
        with pytest.raises(StoreError, match=str(path)):
            lake.sync(session)
        assert (lake.watermark, lake.rows) == (800, 800)
        assert lake.verify(session).damaged_files == (str(path),)
        lake.rebuild(session)
        assert lake.verify(session).equal


def test_a_missing_bucket_file_is_named_with_the_way_back(
    database: Database, lake: Lake, monkeypatch: pytest.MonkeyPatch
):
    """Whoever reads the bucket says which file and what to do: a reader, an erasure, a compaction; doing it mends."""
    path = next(Path(lake.url, f"bucket={int(lake.bucket_of([CANARY])[0]):03d}").iterdir())
    path.unlink()
    monkeypatch.setattr(lake_module, "MIN_DELTA_ROWS", 100)
    grow(database, 1500, seed=2)  # then more than a bucket takes without being compacted

    with database.reading() as session:
        for attempt in (
            lambda: everything(lake),
            lambda: lake.erase([CANARY], session),
            lambda: lake.sync(session),
        ):
            with pytest.raises(LakeError, match=f"^{path} is missing, .*; run `kairos features rebuild`$"):
                attempt()
        assert (lake.watermark, lake.erased) == (800, frozenset())
        lake.rebuild(session)
        assert lake.erase([CANARY], session) > 0
        assert lake.verify(session).damaged_files == ()


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "7", '"lake"', "garbage", "half", "no files", "other watermark"]
)
def test_a_manifest_that_is_none_is_named_with_the_way_back(database: Database, lake: Lake, text: str):
    """Cut short, or anything else: opening, reading and syncing say which file and what to do; doing it mends."""
    path = Path(lake.url, "manifest.json")
    whole = path.read_text()
    others = {
        "half": whole[: len(whole) // 2],
        "no files": whole.replace('"files"', '"fills"'),
        "other watermark": whole.replace('"watermark": 800', '"watermark": 900'),  # would leave 100 events out for good
    }
    path.write_text(others.get(text, text))

    with database.reading() as session:
        for attempt in (lambda: Lake(lake.url, BUCKETS), lambda: lake.read_bucket(0), lambda: lake.sync(session)):
            with pytest.raises(LakeError, match=f"{path} is no manifest .* delete this file and run `kairos features"):
                attempt()
        path.unlink()
        lake.rebuild(session)
        assert lake.verify(session).equal
        assert files_of(lake) == named_by(lake)


# --- A full disk -------------------------------------------------------------------------------------------------


def kairos(database: Database, lake: Path, home: Path, *arguments: str, limit: int | None = None) -> tuple[int, str]:
    """Exit code and standard error of a `kairos` command, which may write no file longer than ``limit``."""
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": HERE, "KAIROS_HOME": str(home), "KAIROS_LAKE_URL": str(lake),
             "KAIROS_BUCKETS": str(BUCKETS), "KAIROS_DATABASE_URL": database.url.render_as_string(hide_password=False)},
        preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))),
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "kairos-test", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_lake_as_it_was(database: Database, small_disk: Path, tmp_path: Path):
    """The command names file and remedy; readers read on; with space again, the next sync goes on from there."""
    where = small_disk / "lake"
    grow(database, 800, seed=1)
    lake = Lake(str(where), BUCKETS)
    with database.reading() as session:
        lake.sync(session)
    before = [len(lake.read_bucket(bucket)) for bucket in range(BUCKETS)]
    grow(database, 3000, seed=2)
    with open(small_disk / "filler", "wb", buffering=0) as filler:
        while room := shutil.disk_usage(small_disk).free:
            filler.write(bytes(room))

    for doing in ("sync", "rebuild"):
        code, said = kairos(database, where, tmp_path, "features", doing)
        assert code == 1
        assert said.startswith(f"kairos: {where}/")
        assert "could not be written: No space left on device; free space" in said
        assert [len(lake.read_bucket(bucket)) for bucket in range(BUCKETS)] == before
        assert {name for name in files_of(lake) if name.endswith(".tmp")} == set()

    (small_disk / "filler").unlink()
    with database.reading() as session:
        lake.sync(session)
        assert lake.verify(session).equal
    assert (lake.rows, files_of(lake)) == (3800, named_by(lake))


def test_a_file_that_may_not_grow_leaves_the_lake_as_it_was(database: Database, lake: Lake, tmp_path: Path):
    """A quota, as RLIMIT_FSIZE sets one: as a full disk, for who is not root."""
    grow(database, 20_000, seed=2)

    code, said = kairos(database, Path(lake.url), tmp_path, "features", "sync", limit=40_000)

    assert code == 1
    assert "could not be written: File too large; free space" in said
    assert (lake.watermark, lake.rows) == (800, 800)
    with database.reading() as session:
        assert lake.verify(session).equal
        lake.sync(session)
        assert lake.verify(session).equal
    assert files_of(lake) == named_by(lake)


# --- Stores that are no folder -----------------------------------------------------------------------------------


def test_a_lake_in_an_object_store_gives_the_bits_of_one_in_a_folder(database: Database, lake: Lake):
    """Synced, compacted, erased from, rebuilt, verified; vectors come out the same, in this process and in a copy."""
    remote = Lake("memory://kairos-faults/lake", BUCKETS)
    spine = pd.DataFrame({"contact_key": np.arange(60) % 42, "as_of": NOON + np.arange(60) * 20 * HOUR_MICROS})
    for seed in range(2, 9):
        grow(database, 100, seed=seed)
        with database.reading() as session:
            lake.sync(session)
            remote.sync(session)
            assert remote.verify(session).equal
        there = historical_features(remote, spine, DEFAULT_VIEWS)
        assert there.X.tobytes() == historical_features(lake, spine, DEFAULT_VIEWS).X.tobytes()
    assert np.nanmax(there.X) > 1
    with database.reading() as session:
        assert remote.erase([CANARY], session) == lake.erase([CANARY], session) > 0
        remote.rebuild(session)
    assert CANARY not in set(everything(remote).contact_key.tolist())
    assert everything(remote).seq.tolist() == everything(lake).seq.tolist()
