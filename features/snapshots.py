"""Snapshots: the vectors of every contact at an instant, kept beside the lake as one Parquet file per bucket.

A snapshot lies under ``vectors/set=<version>/as_of=<instant>/``. Its manifest is written last and names the files, so a
snapshot is there as a whole or not at all. A file's name ends in its checksum: what a manifest names is never written
over, and a run that was broken off goes on with the files that are whole.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from features.events import EventColumns
from features.lake import READ_ATTEMPTS, Lake
from features.offline import FeatureFrame, map_buckets
from features.store import Store, StoredFile, StoreError, Unavailable, file_checksum
from features.tables import from_micros
from features.views import ViewSet

logger = logging.getLogger(__name__)

FOLDER = "vectors"
MANIFEST = "manifest.json"
FORMAT = 2

Ints = npt.NDArray[np.int64]
Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Snapshot:
    """The vectors of every contact with an event known at an instant: the content of its manifest."""

    #: Name of the view set.
    view_set: str
    #: Its version.
    version: str
    #: Microseconds since 1970 UTC.
    as_of: int
    #: Place of the log up to which events entered.
    watermark: int
    #: Vectors that it holds.
    rows: int
    #: Vectors that were taken out because their contact was erased.
    erased_rows: int = 0
    #: Whether nobody asked for it but the daily round: `prune_snapshots` leaves all others alone.
    is_daily: bool = False
    #: Columns, in order.
    names: tuple[str, ...] = field(default=(), repr=False)
    #: The view set in full, as `ViewSet.definition` gives it; ``version`` is its hash.
    definition: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    #: By bucket number; a bucket without a contact has none.
    files: Mapping[int, StoredFile] = field(default_factory=dict, repr=False)

    @property
    def folder(self) -> str:
        """Where it lies in the lake's store."""
        return _folder(self.version, self.as_of)


def write_snapshot(
    lake: Lake, views: ViewSet, as_of: int, n_jobs: int = 1, *, is_daily: bool = False, session: Session | None = None
) -> Snapshot:
    """The vectors of every contact with an event known at ``as_of``, written beside the lake.

    Run again after a crash it goes on with the files that are there, if the lake still reaches to the same place; run
    again over a complete snapshot it mends what is damaged, and renews it where the lake has gone on.

    Parameters
    ----------
    lake : Lake
    views : ViewSet
    as_of : int
        Microseconds since 1970 UTC.
    n_jobs : int
        Buckets worked on at a time; memory is that of so many buckets.
    is_daily : bool
        Whether it may be pruned with the daily ones; one that somebody asked for stays theirs.
    session : Session, optional
        For the store's lock, see `Store.exclusive`.
    """
    erased, watermark = lake.erased, lake.watermark
    store, folder = lake.store, _folder(views.version, as_of)
    there = {bucket: path for path in store.list(folder) if (bucket := _bucket_of(path, watermark)) is not None}
    job = _FileOfBucket(views, as_of, watermark, there)
    files = dict(enumerate(map_buckets(job, lake, n_jobs)))
    with store.exclusive(session):
        # Contacts erased since we began are in files written before, and a file may be gone: those once more.
        present = set(store.list(folder))
        newly_erased = np.array(sorted(lake.erased - erased), dtype=np.int64)
        again = set(lake.bucket_of(newly_erased).tolist())
        again |= {bucket for bucket, file in files.items() if file and f"{folder}/{file.name}" not in present}
        for bucket in sorted(again):
            files[bucket] = replace(job, there={})(lake, bucket)
        before = _read_manifest(store, folder)
        same = before is not None and before.watermark == watermark
        kept = {bucket: file for bucket, file in files.items() if file is not None}
        snapshot = Snapshot(
            view_set=views.name,
            version=views.version,
            as_of=as_of,
            watermark=watermark,
            rows=sum(file.rows for file in kept.values()),
            erased_rows=before.erased_rows if before is not None and same else 0,
            is_daily=is_daily and (before is None or before.is_daily),
            names=views.names,
            definition=views.definition(),
            files=kept,
        )
        _publish(store, snapshot)
    return snapshot


@dataclass(frozen=True)
class _FileOfBucket:
    """The file of a bucket's vectors; one that is ``there`` is taken if it is whole."""

    views: ViewSet
    as_of: int
    watermark: int
    there: Mapping[int, str]

    def __call__(self, lake: Lake, bucket: int) -> StoredFile | None:
        path = self.there.get(bucket)
        if path is not None:
            data = lake.store.read(path)
            written = file_checksum(data)
            if path.endswith(f"-{written[:8]}.parquet"):
                rows = pq.ParquetFile(pa.BufferReader(data)).metadata.num_rows
                return StoredFile(path.rpartition("/")[2], rows, len(data), written)
        keys, X = _vectors(lake, bucket, self.views, self.as_of, self.watermark)
        if not len(keys):
            return None
        return _write(
            lake.store,
            _folder(self.views.version, self.as_of),
            bucket,
            self.watermark,
            _table(keys, X, self.views.names),
        )


def _vectors(lake: Lake, bucket: int, views: ViewSet, as_of: int, seq: int) -> tuple[Ints, Vectors]:
    from features.kernel import sweep  # numba: loaded where it is used

    columns = events_upto(lake.read_bucket(bucket, views.needs_properties), seq)
    contacts = np.unique(columns.contact_key[(columns.occurred_at < as_of) & (columns.received_at <= as_of)])
    return contacts, sweep(columns, contacts, np.full(len(contacts), as_of, dtype=np.int64), views)


def events_upto(columns: EventColumns, seq: int) -> EventColumns:
    """The events as they stood when the log ended at place ``seq``."""
    return columns.take(columns.seq <= seq) if len(columns) and int(columns.seq.max()) > seq else columns


def read_snapshot(lake: Lake, version: str, as_of: int) -> FeatureFrame:
    """The vectors of a snapshot, by bucket and contact.

    Parameters
    ----------
    lake : Lake
    version : str
        Version of the view set.
    as_of : int
        Microseconds since 1970 UTC.

    Raises
    ------
    LookupError
        If there is no complete snapshot of that version at that instant.
    StoreError
        If a file is missing or its bytes are not those that were written.
    """
    instant = from_micros(as_of).isoformat()
    for attempt in range(READ_ATTEMPTS):
        snapshot = _read_manifest(lake.store, _folder(version, as_of))
        if snapshot is None:
            break
        try:
            return _frame(lake.store, snapshot)
        except FileNotFoundError as error:
            # An erasure may have replaced it: then the manifest names its successor.
            if attempt + 1 == READ_ATTEMPTS:
                raise StoreError(f"file {error} of a snapshot is missing; {_remedy(snapshot)}") from None
    raise LookupError(
        f"there is no snapshot of view set {version} at {instant} in {lake.url}; "
        f"`kairos features vectors --as-of {instant}` writes one"
    )


def _frame(store: Store, snapshot: Snapshot) -> FeatureFrame:
    keys = np.empty(snapshot.rows, dtype=np.int64)
    X = np.empty((snapshot.rows, len(snapshot.names)), dtype=np.float64)
    first = 0
    for _, file in sorted(snapshot.files.items()):
        table = _read(store, snapshot, file)
        rows = slice(first, first + table.num_rows)
        keys[rows] = table.column(0).to_numpy()
        for i in range(len(snapshot.names)):
            X[rows, i] = table.column(i + 1).to_numpy()
        first = rows.stop
    as_of = np.full(len(keys), snapshot.as_of, dtype=np.int64)
    return FeatureFrame(keys, as_of, X, snapshot.names, snapshot.version, snapshot.watermark)


def list_snapshots(lake: Lake) -> list[Snapshot]:
    """Every complete snapshot, oldest first."""
    found = [_read_manifest(lake.store, folder) for folder in _folders(lake.store)]
    return sorted((one for one in found if one is not None), key=lambda one: (one.as_of, one.view_set, one.version))


def prune_snapshots(lake: Lake, keep: int, *, session: Session | None = None) -> list[Snapshot]:
    """Of each view set, by name, only the ``keep`` newest daily snapshots stay; returns those that were removed.

    Snapshots that somebody asked for stay. Daily ones of older versions of a set age out with it, and what a run that
    was broken off left behind goes once a later snapshot is complete.
    """
    if keep < 1:
        raise ValueError(f"keep is {keep}; at least the newest snapshot must stay, so pass 1 or more")
    store = lake.store
    with store.exclusive(session):
        snapshots = list_snapshots(lake)
        complete = {snapshot.folder for snapshot in snapshots}
        newest = max((snapshot.as_of for snapshot in snapshots), default=0)
        left = [folder for folder in _folders(store) if folder not in complete]
        for folder in left:
            if folder.rpartition("=")[2] < _instant(newest):
                _remove(store, folder)
        removed: list[Snapshot] = []
        for name in sorted({snapshot.view_set for snapshot in snapshots}):
            removed += [one for one in snapshots if one.is_daily and one.view_set == name][:-keep]
        for snapshot in removed:
            _remove(store, snapshot.folder)
    return removed


def erase_from_snapshots(lake: Lake, contact_keys: Collection[int], *, session: Session | None = None) -> int:
    """Take these contacts' vectors out of every snapshot; returns how many vectors that were.

    Only the files of their buckets are rewritten. Call it after `Lake.erase`, so that a snapshot which is being written
    meanwhile leaves them out too. A snapshot with a file that cannot be read is removed: nobody can tell what is in it.
    """
    gone = np.array(sorted({int(key) for key in contact_keys}), dtype=np.int64)
    buckets = set(lake.bucket_of(gone).tolist())
    store, erased = lake.store, 0
    with store.exclusive(session):
        for folder in _folders(store):
            try:
                snapshot = _read_manifest(store, folder)
                if snapshot is None:
                    _forget_unfinished(store, folder, buckets)
                    continue
                after = _without(store, snapshot, gone, buckets)
            except Unavailable:
                raise  # the store's fault, not the snapshot's: it stays, and the erasure is tried again
            except (StoreError, FileNotFoundError) as error:
                logger.warning(
                    "a snapshot is removed, because it cannot be read to erase a contact: %s", error,
                    extra={"action": "snapshot_removed", "folder": folder},
                )  # fmt: skip
                _remove(store, folder)
                continue
            if after == snapshot:  # an erasure that waits for something else is done again and again
                _sweep(store, snapshot)
                continue
            _publish(store, after)
            erased += after.erased_rows - snapshot.erased_rows
    return erased


def _forget_unfinished(store: Store, folder: str, buckets: Collection[int]) -> None:
    """What a run that is not complete has written of these buckets, or was writing when it was broken off."""
    for path in store.list(folder):
        if path.endswith(".tmp") or _bucket_of(path) in buckets:
            store.remove(path)


def _without(store: Store, snapshot: Snapshot, gone: Ints, buckets: Collection[int]) -> Snapshot:
    files = dict(snapshot.files)
    for bucket in sorted(set(buckets) & files.keys()):
        table = _read(store, snapshot, files[bucket])
        stay = ~np.isin(table.column("contact_key").to_numpy(), gone)
        if stay.all():
            continue
        del files[bucket]
        if stay.any():
            files[bucket] = _write(store, snapshot.folder, bucket, snapshot.watermark, table.filter(pa.array(stay)))
    rows = sum(file.rows for file in files.values())
    return replace(snapshot, files=files, rows=rows, erased_rows=snapshot.erased_rows + snapshot.rows - rows)


def write_vectors(lake: Lake, views: ViewSet, as_of: int, file: Path) -> int:
    """The same vectors as one Parquet file, a row group per bucket; returns their number.

    The file appears when it is complete.
    """
    watermark, rows = lake.watermark, 0
    beside = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        with pq.ParquetWriter(
            beside,
            _table(np.empty(0, np.int64), np.empty((0, len(views.names))), views.names).schema,
            compression="zstd",
            compression_level=1,
        ) as writer:
            for bucket in range(lake.buckets):
                keys, X = _vectors(lake, bucket, views, as_of, watermark)
                if len(keys):
                    writer.write_table(_table(keys, X, views.names))
                    rows += len(keys)
        os.replace(beside, file)
    except OSError as error:
        raise StoreError(
            f"{file} could not be written: {error.strerror or error}; free space or name another place"
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return rows


# --- Files -------------------------------------------------------------------------------------------------------


def _instant(as_of: int) -> str:
    return from_micros(as_of).strftime("%Y%m%dT%H%M%S%f")


def _folder(version: str, as_of: int) -> str:
    return f"{FOLDER}/set={version}/as_of={_instant(as_of)}"


def _folders(store: Store) -> list[str]:
    """Folders of all snapshots, complete or not."""
    return sorted({path.rpartition("/")[0] for path in store.list(FOLDER)})


def _bucket_of(path: str, watermark: int | None = None) -> int | None:
    """Number of the bucket that a file is of; None if it is none, or of another watermark."""
    name = path.rpartition("/")[2]
    if not name.startswith("bucket=") or not name.endswith(".parquet"):
        return None
    bucket, written_at, _ = name.removeprefix("bucket=").split("-")
    return int(bucket) if watermark is None or int(written_at) == watermark else None


def _table(keys: Ints, X: Vectors, names: tuple[str, ...]) -> pa.Table:
    arrays = [pa.array(keys), *(pa.array(X[:, i]) for i in range(len(names)))]
    return pa.table(arrays, names=["contact_key", *names])


def _write(store: Store, folder: str, bucket: int, watermark: int, table: pa.Table) -> StoredFile:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", compression_level=1, write_statistics=False)
    data = sink.getvalue().to_pybytes()
    name = f"bucket={bucket:03d}-{watermark}-{file_checksum(data)[:8]}.parquet"
    return store.write(f"{folder}/{name}", data, table.num_rows)


def _read(store: Store, snapshot: Snapshot, file: StoredFile) -> pa.Table:
    path = f"{snapshot.folder}/{file.name}"
    data = read_checked(store, path, file, _remedy(snapshot))
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).combine_chunks()


def read_checked(store: Store, path: str, file: StoredFile, remedy: str) -> bytes:
    """The bytes of ``file`` at ``path``.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    StoreError
        If its bytes are not those that were written; the message ends in ``remedy``.
    """
    data = store.read(path)
    if len(data) != file.size:
        raise StoreError(
            f"{store.locate(path)} has {len(data):,} bytes instead of {file.size:,}: it was cut short or written over; "
            f"{remedy}"
        )
    if file_checksum(data) != file.checksum:
        raise StoreError(
            f"{store.locate(path)} was altered: its checksum is not the {file.checksum} of what was written; {remedy}"
        )
    return data


def _remedy(snapshot: Snapshot) -> str:
    return (
        f"run `kairos features vectors --as-of {from_micros(snapshot.as_of).isoformat()}` or delete {snapshot.folder}"
    )


def _publish(store: Store, snapshot: Snapshot) -> None:
    """The snapshot becomes what its manifest says, in one step; files that it does not name are deleted."""
    content = {"format": FORMAT, **asdict(snapshot)}
    content["files"] = {str(bucket): asdict(file) for bucket, file in sorted(snapshot.files.items())}
    store.write(f"{snapshot.folder}/{MANIFEST}", json.dumps(content).encode())
    _sweep(store, snapshot)


def _sweep(store: Store, snapshot: Snapshot) -> None:
    """Files that its manifest does not name are deleted: a writer that was killed left them."""
    store.keep_only(snapshot.folder, (MANIFEST, *(file.name for file in snapshot.files.values())))


def _read_manifest(store: Store, folder: str) -> Snapshot | None:
    path = f"{folder}/{MANIFEST}"
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data)
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        files = {int(bucket): StoredFile(**file) for bucket, file in content.pop("files").items()}
        return Snapshot(**{**content, "names": tuple(content["names"]), "files": files})
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{store.locate(path)} is no manifest of a snapshot ({len(data):,} bytes; {error}); delete its folder"
        ) from None


def _remove(store: Store, folder: str) -> None:
    """Manifest first: what is half removed is no snapshot."""
    store.remove(f"{folder}/{MANIFEST}")
    store.remove_folder(folder)
