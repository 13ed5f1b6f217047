"""Laws of the lake: it equals the log, whatever happened on the way."""

from __future__ import annotations

import pickle
import threading
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import delete, text, update
from sqlalchemy.exc import DatabaseError

from features import lake as lake_module
from features.events import HOUR_MICROS, EventColumns, NewEvent, append, head, read_contacts
from features.lake import FORMAT, Lake, LakeError, Manifest, splitmix64
from features.properties import PropertyColumns
from features.store import ADVISORY_LOCK, StoreError
from features.tables import EventRow
from service.database import Database

NOON = 1_772_452_800_000_000


def grow(database: Database, n_events: int, seed: int, contacts: int = 40) -> None:
    """Append random events of random contacts, some late, some custom, some imported."""
    random = np.random.default_rng(seed)
    events = [
        NewEvent(
            int(random.integers(1, contacts)),
            ("Page", "Order Completed", "Email Opened", "Sofa Tested", "Identify")[int(random.integers(5))],
            NOON - int(random.integers(0, 2000)) * HOUR_MICROS,
            f"{seed}-{n}",
            "user:1",
            ref=None if n % 3 else str(n % 11),
            value_minor=None if n % 2 else int(random.integers(-500, 500)),
            human_ppm=None if n % 5 else int(random.integers(0, 1_000_001)),
            is_repeat=n % 7 == 0,
            properties=None
            if n % 4
            else {"plan": f"p{n % 3}", "at": {"n": n, "none": None}, "items": [{"id": 1}, {"id": "b"}]},
        )
        for n in range(n_events)
    ]
    with database.writing() as session:
        append(session, events, received_at=NOON, imported=seed % 2 == 0)


def everything(lake: Lake) -> EventColumns:
    return EventColumns.concat([lake.read_bucket(bucket) for bucket in range(lake.buckets)])


def names_of(lake: Lake) -> list[str]:
    return sorted(path.name for path in Path(lake.url).rglob("*.parquet"))


# --- Buckets -----------------------------------------------------------------------------------------------------


def test_splitmix64_gives_the_published_numbers():
    """The generator's first three outputs from seed 1234567 (Vigna's reference)."""
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + step * gamma) % 2**64 for step in range(3)]

    hashed = splitmix64(np.array(states, dtype=np.uint64))

    assert hashed.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_splitmix64_equals_its_scalar_definition(values: list[int]):
    """Vectorised 64-bit wrapping is Python's arithmetic modulo 2^64."""
    mask = 2**64 - 1

    def scalar(x: int) -> int:
        z = (x + 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    assert splitmix64(np.array(values, dtype=np.int64)).tolist() == [scalar(value & mask) for value in values]


def test_consecutive_keys_spread_evenly(tmp_path: Path):
    """64,000 consecutive keys in 64 buckets: each bucket within a tenth or so of a thousand."""
    counts = np.bincount(Lake(str(tmp_path)).bucket_of(np.arange(64_000)), minlength=64)

    assert counts.min() > 880
    assert counts.max() < 1120


# --- The lake equals the log -------------------------------------------------------------------------------------


def test_the_lake_equals_the_log_after_every_sync(
    any_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Through first sync, deltas and compactions; contacts lie in their buckets, sorted; verify agrees."""
    monkeypatch.setattr(lake_module, "CHUNK_ROWS", 150)
    monkeypatch.setattr(lake_module, "FLUSH_ROWS", 250)
    lake = Lake(str(tmp_path / "lake"), buckets=4)
    compacted = 0
    for step, n_events in enumerate([0, 700, 20, 0, 30, 10, 600, 5, 5]):
        grow(any_database, n_events, seed=step)
        with any_database.reading() as session:
            report = lake.sync(session)
            verdict = lake.verify(session)
            assert lake.watermark == report.watermark == head(session)
        compacted += report.buckets_compacted
        assert (verdict.equal, verdict.rows_lake, report.rows) == (True, lake.rows, n_events)

    assert compacted > 0
    events = everything(lake)
    assert sorted(events.seq.tolist()) == list(range(1, 1371))
    for bucket in range(4):
        part = lake.read_bucket(bucket)
        assert part.is_sorted()
        assert set(lake.bucket_of(part.contact_key).tolist()) == {bucket}
    named = [file.name for files in lake._manifest().files.values() for file in files]
    assert names_of(lake) == sorted(named)  # nothing lies about


def test_a_sync_of_nothing_new_writes_nothing(database: Database, tmp_path: Path):
    """No files, no change of the manifest."""
    lake = Lake(str(tmp_path / "lake"), buckets=4)
    grow(database, 50, seed=1)
    with database.reading() as session:
        lake.sync(session)
        before = (tmp_path / "lake" / "manifest.json").stat().st_mtime_ns
        report = lake.sync(session)

    assert (report.rows, report.files_written) == (0, 0)
    assert (tmp_path / "lake" / "manifest.json").stat().st_mtime_ns == before


class Crashing(Lake):
    """Dies when the files are written and the manifest is not."""

    def _publish(self, manifest: Manifest) -> None:
        raise KeyboardInterrupt


@pytest.mark.parametrize("doing", ["sync", "rebuild"])
def test_a_crash_before_the_manifest_leaves_the_old_lake(database: Database, tmp_path: Path, doing: str):
    """The lake stays readable and equal to the log at its old watermark; the next sync mends and sweeps."""
    url = str(tmp_path / "lake")
    lake = Lake(url, buckets=4)
    grow(database, 300, seed=1)
    with database.reading() as session:
        lake.sync(session)
    before = everything(lake)
    grow(database, 300, seed=2)

    with database.reading() as session:
        with pytest.raises(KeyboardInterrupt):
            getattr(Crashing(url, buckets=4), doing)(session)
        assert lake.watermark == 300
        assert lake.verify(session).equal
        assert everything(lake).seq.tolist() == before.seq.tolist()
        assert len(names_of(lake)) > 4

        lake.sync(session)
        assert lake.verify(session).equal
    assert len(names_of(lake)) == sum(len(files) for files in lake._manifest().files.values())


def test_a_rebuild_makes_the_same_lake(any_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where a bucket is spilled in parts on the way; damage is gone afterwards."""
    monkeypatch.setattr(lake_module, "CHUNK_ROWS", 100)
    monkeypatch.setattr(lake_module, "FLUSH_ROWS", 150)
    lake = Lake(str(tmp_path / "lake"), buckets=3)
    grow(any_database, 500, seed=1)
    with any_database.reading() as session:
        lake.sync(session)
        next(Path(lake.url).rglob("*.parquet")).unlink()
        assert not lake.verify(session).equal
        lake.rebuild(session)

        assert lake.verify(session).equal
    assert len(names_of(lake)) == 3


def test_damage_is_noticed(database: Database, tmp_path: Path):
    """Bytes changed or lost, or a file: reading says which and what to do, verify names the file."""
    lake = Lake(str(tmp_path / "lake"), buckets=1)
    grow(database, 200, seed=1)
    with database.reading() as session:
        lake.sync(session)
        path = next(Path(lake.url).rglob("*.parquet"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        verdict = lake.verify(session)

    assert not verdict.equal
    assert verdict.damaged_files == (str(path),)
    with pytest.raises(StoreError, match=f"{path.name} was altered.* run `kairos features rebuild`"):
        lake.read_bucket(0)
    path.write_bytes(data[:-1])
    with pytest.raises(StoreError, match=f"{path.name} has .* bytes instead of .* run `kairos features rebuild`"):
        lake.read_bucket(0)
    path.unlink()
    with pytest.raises(LakeError, match="features rebuild"):
        lake.read_bucket(0)


def test_verify_notices_rows_that_differ(database: Database, tmp_path: Path):
    """A changed value, with every file intact, shows in its bucket."""
    lake = Lake(str(tmp_path / "lake"), buckets=4)
    grow(database, 200, seed=1)
    with database.reading() as session:
        lake.sync(session)
    with database.writing() as session:
        session.execute(update(EventRow).where(EventRow.seq == 77).values(value_minor=123456))
    with database.reading() as session:
        verdict = lake.verify(session)

    assert (verdict.equal, len(verdict.differing_buckets), verdict.damaged_files) == (False, 1, ())


def test_another_bucket_count_is_refused(database: Database, tmp_path: Path):
    """Rows would be looked for where they are not."""
    grow(database, 10, seed=1)
    with database.reading() as session:
        Lake(str(tmp_path), buckets=4).sync(session)

    with pytest.raises(ValueError, match="made with 4 buckets, not 8"):
        Lake(str(tmp_path), buckets=8)


def test_a_lake_of_another_database_is_refused(database: Database, postgres: Database, tmp_path: Path):
    """A watermark beyond the log's head is no progress but a mistake."""
    lake = Lake(str(tmp_path), buckets=4)
    grow(database, 10, seed=1)
    with database.reading() as session:
        lake.sync(session)
    with postgres.reading() as session, pytest.raises(LakeError, match="another database"):
        lake.sync(session)


def test_a_lake_may_lie_in_an_object_store(database: Database):
    """The same code through fsspec, here its in-memory store, also from another process's copy of the object."""
    lake = Lake("memory://kairos-test-lake", buckets=4)
    for seed in (1, 2, 3):
        grow(database, 60, seed=seed)
        with database.reading() as session:
            lake.sync(session)
            assert lake.verify(session).equal

    assert len(everything(pickle.loads(pickle.dumps(lake)))) == 180


def test_a_statement_that_fails_does_not_keep_the_lock(postgres: Database):
    """The lock of an object store is not the session's: its transaction may be lost, the next writer gets the lock."""
    store = Lake("memory://kairos-test-lock", buckets=4).store
    with postgres.reading() as session, pytest.raises(DatabaseError), store.exclusive(session):
        session.execute(text("select 1 / 0"))
    with postgres.engine.connect() as other:
        free = other.execute(text("select pg_try_advisory_lock(:key)"), {"key": ADVISORY_LOCK}).scalar_one()

    assert free


def test_readers_are_not_disturbed_by_compactions(database: Database, tmp_path: Path):
    """While syncs replace files, every read sees whole buckets that only grow."""
    lake = Lake(str(tmp_path / "lake"), buckets=2)
    grow(database, 200, seed=0)
    with database.reading() as session:
        lake.sync(session)
    done = threading.Event()
    sizes: list[int] = []
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                sizes.append(len(lake.read_bucket(0)))
        except BaseException as error:
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for seed in range(1, 25):
        grow(database, 30, seed=seed)
        with database.reading() as session:
            lake.sync(session)
    done.set()
    reader.join()

    assert errors == []
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 2


@pytest.mark.parametrize("seconds", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_the_lake_equals_the_log_while_four_writers_race(postgres: Database, tmp_path: Path, seconds: int):
    """No watermark passes a row that commits later; afterwards every row is there once."""
    lake = Lake(str(tmp_path / "lake"), buckets=16)
    until = time.monotonic() + seconds
    written = [0] * 4

    def write(writer: int) -> None:
        while time.monotonic() < until:
            size = 1 + (writer * 7 + written[writer]) % 60
            events = [
                NewEvent(1 + (written[writer] + n) % 500, "Page", NOON - n, f"{writer}-{written[writer] + n}", "user:1")
                for n in range(size)
            ]
            with postgres.writing() as session:
                append(session, events, received_at=NOON)
            written[writer] += size

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    syncs = 0
    while time.monotonic() < until:
        with postgres.reading() as session:
            lake.sync(session)
        syncs += 1
    for thread in threads:
        thread.join()
    with postgres.reading() as session:
        lake.sync(session)
        verdict = lake.verify(session)

    assert syncs > 1
    assert verdict.equal
    assert verdict.rows_lake == lake.watermark == sum(written) > 0
    assert sorted(everything(lake).seq.tolist()) == list(range(1, sum(written) + 1))


# --- Properties --------------------------------------------------------------------------------------------------


def listed(properties: PropertyColumns | None) -> list[list[tuple[int, int, float]]]:
    assert properties is not None
    rows = list(zip(properties.name.tolist(), properties.value.tolist(), properties.number.tolist(), strict=True))
    return [rows[begin:end] for begin, end in pairwise(properties.start.tolist())]


def test_properties_come_back_as_the_log_holds_them(any_database: Database, tmp_path: Path):
    """All of them when asked for; else those of Identify events, the traits."""
    lake = Lake(str(tmp_path / "lake"), buckets=2)
    grow(any_database, 200, seed=1)
    with any_database.reading() as session:
        lake.sync(session)
    grow(any_database, 50, seed=2)
    with any_database.reading() as session:
        lake.sync(session)
        keys = sorted(set(everything(lake).contact_key.tolist()))
        for with_properties in (True, False):
            log = read_contacts(session, keys, with_properties)
            read = EventColumns.concat([lake.read_bucket(bucket, with_properties) for bucket in range(2)])
            assert str(listed(log.properties)) == str(listed(read.properties))  # as text, so that NaN equals NaN
            told = [len(values) for values in listed(read.properties)]
            assert {kind for kind, n in zip(read.kind.tolist(), told, strict=True) if n} == (
                set(read.kind.tolist()) if with_properties else {read.kinds.index("Identify")}
            )


def test_a_changed_property_is_noticed(database: Database, tmp_path: Path):
    """Verify compares properties too."""
    lake = Lake(str(tmp_path / "lake"), buckets=2)
    grow(database, 100, seed=1)
    with database.reading() as session:
        lake.sync(session)
        assert lake.verify(session).equal
    with database.writing() as session:
        session.execute(update(EventRow).where(EventRow.seq == 1).values(properties='{"plan":"p1"}'))
    with database.reading() as session:
        assert len(lake.verify(session).differing_buckets) == 1


# --- Erasure -----------------------------------------------------------------------------------------------------


def test_an_erased_contact_is_gone_and_stays_gone(database: Database, tmp_path: Path):
    """Out of every file; neither a sync that saw the log before the erasure nor a rebuild brings it back."""
    lake = Lake(str(tmp_path / "lake"), buckets=2)
    grow(database, 300, seed=1)
    with database.reading() as session:
        lake.sync(session)
    grow(database, 100, seed=3)
    with database.reading() as earlier:
        assert head(earlier) == 400  # this session's state of the log is from before the erasure
        with database.writing() as session:
            session.execute(delete(EventRow).where(EventRow.contact_key.in_([7, 8])))
        before = everything(lake)
        files = set(names_of(lake))
        removed = lake.erase([7, 8])
        assert removed == int(np.isin(before.contact_key, [7, 8]).sum()) > 0
        assert files - set(names_of(lake))
        lake.sync(earlier)

    assert not np.isin(everything(lake).contact_key, [7, 8]).any()
    with database.reading() as session:
        assert lake.verify(session).equal
        lake.rebuild(session)
        assert lake.verify(session).equal
    assert not np.isin(everything(lake).contact_key, [7, 8]).any()
    assert lake.erase([7]) == 0


def test_a_lake_of_an_older_format_is_filled_anew(database: Database, tmp_path: Path):
    """It is derived from the log, so an upgrade costs a sync and no thought."""
    lake = Lake(str(tmp_path / "lake"), buckets=2)
    grow(database, 100, seed=1)
    with database.reading() as session:
        lake.sync(session)
    manifest = tmp_path / "lake" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format": {FORMAT}', f'"format": {FORMAT - 1}'))
    with database.reading() as session:
        assert Lake(str(tmp_path / "lake"), buckets=2).sync(session).rows == 100
        assert lake.verify(session).equal
