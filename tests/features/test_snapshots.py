"""Laws of snapshots: the lake's vectors as they were, whole or not there, and without those who were erased."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from features.events import DAY_MICROS, NewEvent, append
from features.lake import Lake
from features.offline import historical_features
from features.snapshots import (
    erase_from_snapshots,
    list_snapshots,
    prune_snapshots,
    read_snapshot,
    write_snapshot,
    write_vectors,
)
from features.store import StoreError
from features.views import DEFAULT_VIEWS, SEND_HOUR_VIEWS, VIEW_SETS, ViewSet
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, EMAIL_SENT, ORDER_COMPLETED, PAGE
from service.database import Database

START = 1_760_000_000_000_000
DAYS = 60
NOON = START + DAYS * DAY_MICROS
CONTACTS = 40
KINDS = (ORDER_COMPLETED, PAGE, EMAIL_SENT, EMAIL_OPENED, EMAIL_CLICKED)


def grow(database: Database, seed: int, *, received_at: int = NOON, imported: bool = False, events: int = 600) -> None:
    """Random events of forty contacts over the sixty days before ``NOON``."""
    random = np.random.default_rng(seed)
    new = [
        NewEvent(
            int(random.integers(1, CONTACTS + 1)),
            KINDS[int(random.integers(len(KINDS)))],
            NOON - 1 - int(random.integers(0, DAYS * DAY_MICROS)),
            f"{seed}-{n}",
            "user:1",
            ref=str(random.integers(0, 12)),
            value_minor=int(random.integers(0, 90_000)),
            human_ppm=int(random.integers(0, 1_000_001)),
        )
        for n in range(events)
    ]
    with database.writing() as session:
        append(session, new, received_at=received_at, imported=imported)


def synced(database: Database, lake: Lake) -> Lake:
    with database.reading() as session:
        lake.sync(session)
    return lake


@pytest.fixture
def lake(database: Database, tmp_path: Path) -> Lake:
    """Six hundred events of forty contacts in eight buckets."""
    grow(database, 1)
    return synced(database, Lake(str(tmp_path / "lake"), buckets=8))


@pytest.fixture
def in_memory(database: Database) -> Iterator[Lake]:
    """The same in a store that is no folder."""
    grow(database, 1)
    yield synced(database, Lake("memory://kairos-snapshots", buckets=8))
    fsspec.filesystem("memory").rm("/kairos-snapshots", recursive=True)


def asked(lake: Lake, views: ViewSet, keys: np.ndarray, as_of: int) -> np.ndarray:
    return historical_features(lake, pd.DataFrame({"contact_key": keys, "as_of": as_of}), views).X


def bytes_of(lake: Lake) -> dict[str, bytes]:
    return {path: lake.store.read(path) for path in lake.store.list("vectors")}


@pytest.mark.parametrize("views", VIEW_SETS.values(), ids=VIEW_SETS)
def test_a_snapshot_holds_bit_for_bit_what_the_lake_computes(lake: Lake, views: ViewSet):
    """Every contact with an event known at the instant and no other, whatever set, in one thread or in two."""
    middle = START + 3 * DAY_MICROS

    one, two = write_snapshot(lake, views, NOON), write_snapshot(lake, views, NOON, n_jobs=2)
    write_snapshot(lake, views, middle)
    frame = read_snapshot(lake, views.version, NOON)

    assert one == two
    assert sorted(frame.contact_key) == list(range(1, CONTACTS + 1))
    assert frame.X.tobytes() == asked(lake, views, frame.contact_key, NOON).tobytes()
    assert (frame.names, frame.version, frame.watermark) == (views.names, views.version, 600)
    assert len(read_snapshot(lake, views.version, middle)) == 0, "nothing was received by then"


def test_any_store_holds_snapshots(in_memory: Lake):
    """An object store: written, listed, read, erased from and pruned as in a folder."""
    snapshot = write_snapshot(in_memory, DEFAULT_VIEWS, NOON, is_daily=True)
    older = write_snapshot(in_memory, DEFAULT_VIEWS, NOON - 5, is_daily=True)

    frame = read_snapshot(in_memory, DEFAULT_VIEWS.version, NOON)
    assert frame.X.tobytes() == asked(in_memory, DEFAULT_VIEWS, frame.contact_key, NOON).tobytes()
    assert list_snapshots(in_memory) == [older, snapshot]
    assert erase_from_snapshots(in_memory, [7]) == 1  # at NOON - 5 nothing was known
    assert len(read_snapshot(in_memory, DEFAULT_VIEWS.version, NOON)) == CONTACTS - 1
    assert prune_snapshots(in_memory, 1) == [older]
    assert {path.split("/")[2] for path in in_memory.store.list("vectors")} == {snapshot.folder.split("/")[2]}


def test_a_snapshot_knows_nothing_that_the_log_took_up_later(database: Database, lake: Lake):
    """What is appended after the lake was read changes no file, also history that claims to be old."""
    before = write_snapshot(lake, DEFAULT_VIEWS, NOON)
    grow(database, 2, imported=True)

    class Growing(Lake):
        """A lake that a sync overtakes after its watermark was read."""

        def read_bucket(self, bucket: int, with_properties: bool = False):
            synced(database, lake)
            return super().read_bucket(bucket, with_properties)

    overtaken = Growing(lake.url, buckets=8)
    for path in lake.store.list("vectors"):
        lake.store.remove(path)

    assert write_snapshot(overtaken, DEFAULT_VIEWS, NOON) == before
    assert lake.watermark == 1200


def test_a_broken_off_run_goes_on_where_it_stopped(lake: Lake):
    """Without its manifest a snapshot is not there; the next run computes what is missing or damaged, and no more."""
    whole = write_snapshot(lake, DEFAULT_VIEWS, NOON)
    files = {path: data for path, data in bytes_of(lake).items() if path.endswith(".parquet")}
    lost, cut, *rest = sorted(files)
    lake.store.remove(f"{whole.folder}/manifest.json")
    lake.store.remove(lost)
    lake.store.write(cut, files[cut][:-100])
    lake.store.write(f"{whole.folder}/bucket=003-600-00000000.parquet.1f.tmp", b"half a file")
    assert list_snapshots(lake) == []
    with pytest.raises(LookupError, match=r"no snapshot of view set .* features vectors --as-of"):
        read_snapshot(lake, DEFAULT_VIEWS.version, NOON)
    computed = []

    class Watched(Lake):
        """A lake that notes which buckets are read."""

        def read_bucket(self, bucket: int, with_properties: bool = False):
            computed.append(f"bucket={bucket:03d}")
            return super().read_bucket(bucket, with_properties)

    again = write_snapshot(Watched(lake.url, buckets=8), DEFAULT_VIEWS, NOON)

    assert again == whole
    assert computed == [path.rpartition("/")[2].split("-")[0] for path in (lost, cut)]
    assert rest
    assert {path: data for path, data in bytes_of(lake).items() if path.endswith(".parquet")} == files


def test_a_crash_while_writing_leaves_the_last_snapshot_readable(lake: Lake, database: Database, monkeypatch):
    """A full disk in the midst of renewing a snapshot: the one before answers, then the next run completes."""
    before = write_snapshot(lake, DEFAULT_VIEWS, NOON)
    old = read_snapshot(lake, DEFAULT_VIEWS.version, NOON).X.tobytes()
    grow(database, 2, imported=True)
    synced(database, lake)
    put, written = lake.store._put, []

    def full_after_three(path: str, data: bytes) -> None:
        written.append(path)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        put(path, data)

    monkeypatch.setattr(lake.store, "_put", full_after_three)
    with pytest.raises(StoreError, match="No space left"):
        write_snapshot(lake, DEFAULT_VIEWS, NOON)
    assert list_snapshots(lake) == [before]
    assert read_snapshot(lake, DEFAULT_VIEWS.version, NOON).X.tobytes() == old
    monkeypatch.undo()

    after = write_snapshot(lake, DEFAULT_VIEWS, NOON)

    assert (after.watermark, after.rows) == (1200, CONTACTS)
    frame = read_snapshot(lake, DEFAULT_VIEWS.version, NOON)
    assert frame.X.tobytes() == asked(lake, DEFAULT_VIEWS, frame.contact_key, NOON).tobytes() != old
    assert len(lake.store.list("vectors")) == len(after.files) + 1, "the files of the one before are gone"


def test_an_altered_or_missing_file_is_named_and_mended(lake: Lake):
    """One changed byte, a cut or lost file, a manifest that is none: an error with file and remedy; a run mends it."""
    snapshot = write_snapshot(lake, DEFAULT_VIEWS, NOON)
    path, data = next((path, data) for path, data in bytes_of(lake).items() if path.endswith(".parquet"))
    name = path.rpartition("/")[2]
    for broken, says in ((data[:50] + b"?" + data[51:], "was altered"), (data[:-1], "cut short"), (None, "is missing")):
        if broken is None:
            lake.store.remove(path)
        else:
            lake.store.write(path, broken)
        with pytest.raises(StoreError, match=rf"{name}.*{says}.*features vectors --as-of 20"):
            read_snapshot(lake, DEFAULT_VIEWS.version, NOON)
        assert write_snapshot(lake, DEFAULT_VIEWS, NOON) == snapshot
        assert len(read_snapshot(lake, DEFAULT_VIEWS.version, NOON)) == CONTACTS
    lake.store.write(f"{snapshot.folder}/manifest.json", b"{}")
    with pytest.raises(StoreError, match=r"manifest\.json is no manifest"):
        read_snapshot(lake, DEFAULT_VIEWS.version, NOON)


def test_the_manifest_alone_says_what_a_snapshot_is(lake: Lake):
    """The view set can be made from it anew; rows and checksums are those of the files."""
    snapshot = write_snapshot(lake, DEFAULT_VIEWS, NOON)
    content = json.loads(lake.store.read(f"{snapshot.folder}/manifest.json"))

    assert ViewSet.from_definition(content["definition"]).version == snapshot.version
    assert snapshot.folder == f"vectors/set={DEFAULT_VIEWS.version}/as_of=20251208T085320000000"
    assert sum(file["rows"] for file in content["files"].values()) == content["rows"] == CONTACTS
    assert tuple(content["names"]) == DEFAULT_VIEWS.names


def test_the_newest_snapshots_of_each_set_stay(lake: Lake):
    """Pruning counts by the set's name, takes along older versions of it and runs that were broken off."""
    edited = ViewSet("default", DEFAULT_VIEWS.views[:3])
    written = [
        write_snapshot(lake, views, NOON + day, is_daily=True)
        for day, views in enumerate((edited, edited, DEFAULT_VIEWS))
    ]
    hours = write_snapshot(lake, SEND_HOUR_VIEWS, NOON, is_daily=True)
    lake.store.write(f"vectors/set={edited.version}/as_of=20240101T000000000000/bucket=001-5-00.parquet", b"x")
    begun = f"vectors/set={edited.version}/as_of=20990101T000000000000/bucket=001-5-00.parquet"
    lake.store.write(begun, b"x")

    removed = prune_snapshots(lake, 2)

    assert removed == written[:1]
    assert list_snapshots(lake) == [hours, *written[1:]]
    folders = {path.rpartition("/")[0] for path in lake.store.list("vectors")}
    assert folders == {hours.folder, written[1].folder, written[2].folder, begun.rpartition("/")[0]}
    with pytest.raises(ValueError, match="keep is 0"):
        prune_snapshots(lake, 0)


# --- Erasing -----------------------------------------------------------------------------------------------------


def test_a_snapshot_that_somebody_asked_for_stays(lake: Lake):
    """However old, and also if the daily round wrote it before, or renews it afterwards."""
    days = range(4)
    for day in days:
        write_snapshot(lake, DEFAULT_VIEWS, NOON + day, is_daily=True)
    asked = [write_snapshot(lake, DEFAULT_VIEWS, NOON + day) for day in (-5, 0)]
    assert write_snapshot(lake, DEFAULT_VIEWS, NOON, is_daily=True) == asked[1]

    assert [one.as_of - NOON for one in prune_snapshots(lake, 1)] == [1, 2]
    assert [one.as_of - NOON for one in list_snapshots(lake)] == [-5, 0, 3]


def test_an_erased_contact_is_in_no_snapshot_and_no_other_is_touched(lake: Lake):
    """Only the files of its bucket change; the manifest counts what was taken out and goes on holding."""
    for views in (DEFAULT_VIEWS, SEND_HOUR_VIEWS):
        write_snapshot(lake, views, NOON)
    frame = read_snapshot(lake, DEFAULT_VIEWS.version, NOON)
    before = bytes_of(lake)
    own = int(lake.bucket_of([7])[0])

    lake.erase([7])
    assert erase_from_snapshots(lake, [7]) == 2
    assert erase_from_snapshots(lake, [7]) == 0

    changed = {path.rpartition("/")[2].split("-")[0] for path, _ in bytes_of(lake).items() ^ before.items()}
    assert changed == {f"bucket={own:03d}", "manifest.json"}
    after = read_snapshot(lake, DEFAULT_VIEWS.version, NOON)
    others = frame.contact_key != 7
    assert after.contact_key.tolist() == frame.contact_key[others].tolist()
    assert after.X.tobytes() == frame.X[others].tobytes()
    assert [(one.rows, one.erased_rows) for one in list_snapshots(lake)] == [(CONTACTS - 1, 1)] * 2
    for path, data in bytes_of(lake).items():
        if path.endswith(".parquet"):
            assert 7 not in pq.read_table(BytesIO(data))["contact_key"].to_pylist()


def test_erasing_a_whole_bucket_leaves_no_file_of_it(lake: Lake):
    """A bucket without a contact has no file."""
    snapshot = write_snapshot(lake, DEFAULT_VIEWS, NOON)
    keys = [key for key in range(1, CONTACTS + 1) if lake.bucket_of([key])[0] == 3]

    assert erase_from_snapshots(lake, keys) == len(keys)

    assert 3 not in list_snapshots(lake)[0].files
    assert len(read_snapshot(lake, snapshot.version, NOON)) == CONTACTS - len(keys)


@pytest.mark.parametrize("moment", [1, 7], ids=["its file not yet written", "its file written"])
def test_who_is_erased_while_a_snapshot_is_written_is_not_in_it(lake: Lake, moment: int):
    """The erasure finds no manifest yet: the run that writes leaves the contact out itself."""

    class Erasing(Lake):
        """A lake from which a contact is erased just after a bucket was read."""

        def read_bucket(self, bucket: int, with_properties: bool = False):
            columns = super().read_bucket(bucket, with_properties)
            if bucket == moment and 1 not in self.erased:
                lake.erase([1])
                erase_from_snapshots(lake, [1])
            return columns

    assert lake.bucket_of([1]).tolist() == [1]
    snapshot = write_snapshot(Erasing(lake.url, buckets=8), DEFAULT_VIEWS, NOON)

    frame = read_snapshot(lake, DEFAULT_VIEWS.version, NOON)
    assert 1 not in frame.contact_key
    assert len(frame) == snapshot.rows == CONTACTS - 1
    assert len(lake.store.list("vectors")) == len(snapshot.files) + 1


def test_a_run_that_was_broken_off_keeps_nothing_of_an_erased_contact(lake: Lake):
    """Files without a manifest, and half-written ones, are cleared of it too."""
    snapshot = write_snapshot(lake, DEFAULT_VIEWS, NOON)
    lake.store.remove(f"{snapshot.folder}/manifest.json")
    lake.store.write(f"{snapshot.folder}/bucket=000-600-00000000.parquet.1f.tmp", b"half a file")

    lake.erase([7])
    erase_from_snapshots(lake, [7])

    left = [path.rpartition("/")[2].split("-")[0] for path in lake.store.list("vectors")]
    assert f"bucket={lake.bucket_of([7])[0]:03d}" not in left
    assert len(left) == len(snapshot.files) - 1
    assert write_snapshot(lake, DEFAULT_VIEWS, NOON).rows == CONTACTS - 1


def test_a_snapshot_that_cannot_be_read_does_not_survive_an_erasure(lake: Lake, caplog):
    """Nobody can tell who is in a damaged file, so it goes, with a warning; the others stay."""
    broken, whole = (write_snapshot(lake, DEFAULT_VIEWS, NOON + day) for day in (0, 1))
    own = broken.files[int(lake.bucket_of([7])[0])]
    lake.store.write(f"{broken.folder}/{own.name}", b"damaged")

    assert erase_from_snapshots(lake, [7]) == 1

    assert [one.folder for one in list_snapshots(lake)] == [whole.folder]
    assert not lake.store.list(broken.folder)
    assert "cannot be read to erase" in caplog.text


# --- One file ----------------------------------------------------------------------------------------------------


def test_the_one_file_holds_the_same_vectors(lake: Lake, tmp_path: Path):
    """What a data scientist takes away equals the snapshot; a failure leaves no half file."""
    write_snapshot(lake, DEFAULT_VIEWS, NOON)
    frame = read_snapshot(lake, DEFAULT_VIEWS.version, NOON)

    rows = write_vectors(lake, DEFAULT_VIEWS, NOON, tmp_path / "vectors.parquet")
    taken = pd.read_parquet(tmp_path / "vectors.parquet")

    assert rows == len(taken) == CONTACTS
    assert taken["contact_key"].tolist() == frame.contact_key.tolist()
    assert taken[list(frame.names)].to_numpy().tobytes() == frame.X.tobytes()
    with pytest.raises(StoreError, match="nowhere"):
        write_vectors(lake, DEFAULT_VIEWS, NOON, tmp_path / "nowhere" / "vectors.parquet")
    assert sorted(path.name for path in tmp_path.glob("*.parquet*")) == ["vectors.parquet"]
