"""The log as columns: Parquet files by contact bucket, sorted by contact and time, behind a watermark.

Each bucket has at most one base file and a few deltas. New files are written beside the old ones and take effect when
the manifest that names them replaces the old manifest, so a crash at any point leaves the lake as it was. Everything
here is derived from the log: `Lake.rebuild` makes it anew, `Lake.verify` proves it equal.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from sqlalchemy.orm import Session

from features.events import COLUMN_TYPES, EventColumns, KindCodes, hash_ref, head, read_after, read_by_contact

MANIFEST = "manifest.json"
FORMAT = 1

#: Rows read from the log at a time.
CHUNK_ROWS = 200_000
#: Rows gathered in memory before files are written (about 70 bytes each).
FLUSH_ROWS = 2_000_000
#: A bucket is compacted when it has more deltas than this …
MAX_DELTAS = 4
#: … or when they hold more than this share of its base (and are worth the work).
MAX_DELTA_SHARE = 0.2
MIN_DELTA_ROWS = 5_000

#: Times a reader looks at the manifest again when a compaction took a file away under it.
READ_ATTEMPTS = 5


class LakeError(ValueError):
    """The lake's files are not what its manifest says; the message names the remedy."""


@dataclass(frozen=True)
class LakeFile:
    """A Parquet file of one bucket."""

    name: str
    rows: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Which files are the lake, and up to which place of the log they reach."""

    buckets: int
    watermark: int = 0
    #: By bucket number; base first, deltas after it in the order of the log.
    files: Mapping[int, tuple[LakeFile, ...]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Events in the lake."""
        return sum(file.rows for files in self.files.values() for file in files)


@dataclass(frozen=True)
class SyncReport:
    """What a sync brought over."""

    #: Events read from the log.
    rows: int
    #: Place of the log up to which the lake now reaches.
    watermark: int
    files_written: int
    buckets_compacted: int


@dataclass(frozen=True)
class VerifyReport:
    """Whether the lake holds exactly the log's events up to its watermark."""

    equal: bool
    watermark: int
    rows_lake: int
    rows_log: int
    #: Buckets whose rows differ from the log's in number or content.
    differing_buckets: tuple[int, ...]
    #: Files that are missing, or whose bytes are not those that were written.
    damaged_files: tuple[str, ...]


def splitmix64(values: npt.ArrayLike) -> npt.NDArray[np.uint64]:
    """One step of SplitMix64 for each value: a fixed, well-mixed hash, the same on every machine and version.

    References
    ----------
    Steele, Lea, Flood (2014), "Fast splittable pseudorandom number generators", OOPSLA; constants of Vigna's
    ``splitmix64.c``.

    Examples
    --------
    >>> splitmix64([0])  # first output of the generator seeded with 0
    array([16294208416658607535], dtype=uint64)
    """
    z = np.asarray(values).astype(np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)), dtype=np.uint64)


class Lake:
    """The columnar copy of the log.

    Parameters
    ----------
    url : str
        A folder, or any address that fsspec knows (``s3://…``). One process at a time may sync, verify or rebuild;
        any number may read meanwhile. On a local folder a file lock sees to that.
    buckets : int
        Number of contact buckets; fixed when the lake is made.

    Raises
    ------
    ValueError
        If ``buckets`` is not 1 to 1,000, or the lake at ``url`` was made with another number.
    """

    def __init__(self, url: str, buckets: int = 64) -> None:
        if not 1 <= buckets <= 1000:
            raise ValueError(f"a lake has 1 to 1000 buckets, not {buckets}; 64 suits most installations")
        self.url = str(url)
        self.buckets = buckets
        self._thread_lock = threading.Lock()
        self._open()
        self._manifest()

    def _open(self) -> None:
        self._fs, self._root = url_to_fs(self.url)
        self._is_local = "file" in ((self._fs.protocol,) if isinstance(self._fs.protocol, str) else self._fs.protocol)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker process needs to open the same lake."""
        return {"url": self.url, "buckets": self.buckets}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._thread_lock = threading.Lock()
        self._open()

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def watermark(self) -> int:
        """Place of the log up to which the lake reaches; 0 for an empty lake."""
        return self._manifest().watermark

    @property
    def rows(self) -> int:
        """Events in the lake."""
        return self._manifest().rows

    def bucket_of(self, contact_keys: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Bucket number, 0 to ``buckets`` - 1, of each contact.

        Examples
        --------
        >>> import tempfile
        >>> Lake(tempfile.mkdtemp(), buckets=64).bucket_of([1, 2, 3])
        array([ 1, 14, 45])
        """
        return (splitmix64(contact_keys) % np.uint64(self.buckets)).astype(np.int64)

    def read_bucket(self, bucket: int) -> EventColumns:
        """Every event of the contacts of one bucket, sorted by (contact_key, occurred_at, seq).

        Raises
        ------
        LakeError
            If a file is missing or has another size than the manifest says.
        """
        for attempt in range(READ_ATTEMPTS):
            files = self._manifest().files.get(bucket, ())
            try:
                parts = [self._read_file(bucket, file) for file in files]
            except FileNotFoundError as error:
                if attempt + 1 == READ_ATTEMPTS:
                    raise LakeError(
                        f"file {error} of bucket {bucket} of lake {self.url} is missing; run `kairos features rebuild`"
                    ) from None
                continue  # a compaction replaced it: the manifest names its successor
            events = EventColumns.concat(parts)
            break
        assert events.is_sorted()
        return events

    def _read_file(self, bucket: int, file: LakeFile) -> EventColumns:
        data = self._fs.cat_file(self._path(bucket, file.name))
        if len(data) != file.size:
            raise LakeError(
                f"file {file.name} of bucket {bucket} of lake {self.url} has {len(data)} bytes instead of {file.size}; "
                "run `kairos features rebuild`"
            )
        return _from_parquet(data)

    def _manifest(self) -> Manifest:
        try:
            raw = json.loads(self._fs.cat_file(f"{self._root}/{MANIFEST}"))
        except FileNotFoundError:
            return Manifest(self.buckets)
        if raw["format"] != FORMAT:
            raise LakeError(f"lake {self.url} has format {raw['format']}, this program reads {FORMAT}; rebuild it")
        if raw["buckets"] != self.buckets:
            raise ValueError(
                f"lake {self.url} was made with {raw['buckets']} buckets, not {self.buckets}; set KAIROS_BUCKETS to "
                f"{raw['buckets']}, or delete the folder and run `kairos features rebuild`"
            )
        return Manifest(
            raw["buckets"],
            raw["watermark"],
            {int(bucket): tuple(LakeFile(**file) for file in files) for bucket, files in raw["files"].items()},
        )

    # --- writing -------------------------------------------------------------------------------------------------

    def sync(self, session: Session) -> SyncReport:
        """The log's events after the watermark brought over, up to the head the log had at the call.

        A failure or a crash leaves the lake at a state between the old and the new one that equals the log up to its
        watermark; the next sync goes on from there.
        """
        with self._exclusive():
            manifest = self._manifest()
            upto = head(session)
            if manifest.watermark == 0 and upto > 0:
                return self._fill(session, upto)
            if manifest.watermark > upto:
                raise LakeError(
                    f"lake {self.url} reaches to place {manifest.watermark} of the log, whose head is {upto}; it "
                    "belongs to another database: run `kairos features rebuild`"
                )
            rows = written = compacted = 0
            while manifest.watermark < upto:
                parts: list[EventColumns] = []
                watermark = manifest.watermark
                while watermark < upto and sum(map(len, parts)) < FLUSH_ROWS:
                    part, watermark = read_after(session, watermark, min(CHUNK_ROWS, upto - watermark))
                    if not len(part):
                        watermark = upto  # places without a row: erased
                        break
                    parts.append(part)
                before = manifest
                manifest, files, buckets = self._add(manifest, EventColumns.concat(parts), watermark)
                self._publish(manifest)
                self._sweep(before, manifest, [b for b, of in manifest.files.items() if of != before.files.get(b)])
                rows += sum(map(len, parts))
                written += files
                compacted += buckets
            return SyncReport(rows, manifest.watermark, written, compacted)

    def rebuild(self, session: Session) -> SyncReport:
        """The whole lake made anew from the log; readers see the old one until the new one is complete."""
        with self._exclusive():
            return self._fill(session, head(session))

    def verify(self, session: Session) -> VerifyReport:
        """Whether every bucket holds exactly the log's events up to the watermark, and every file its bytes."""
        with self._exclusive():
            manifest = self._manifest()
            lake_counts = np.zeros(self.buckets, dtype=np.int64)
            lake_sums = np.zeros(self.buckets, dtype=np.uint64)
            damaged: list[str] = []
            for bucket, files in manifest.files.items():
                for file in files:
                    path = self._path(bucket, file.name)
                    try:
                        data = self._fs.cat_file(path)
                    except FileNotFoundError:
                        damaged.append(path)
                        continue
                    if hashlib.sha256(data).hexdigest() != file.sha256:
                        damaged.append(path)
                        continue
                    events = _from_parquet(data)
                    if len(events) and (self.bucket_of(events.contact_key) != bucket).any():
                        damaged.append(path)
                    lake_counts[bucket] += len(events)
                    lake_sums[bucket : bucket + 1] += _fingerprints(events).sum(dtype=np.uint64)  # wraps, on purpose
            log_counts = np.zeros(self.buckets, dtype=np.int64)
            log_sums = np.zeros(self.buckets, dtype=np.uint64)
            for page in read_by_contact(session, manifest.watermark, CHUNK_ROWS):
                bucket_of = self.bucket_of(page.contact_key)
                np.add.at(log_counts, bucket_of, 1)
                np.add.at(log_sums, bucket_of, _fingerprints(page))
        differing = np.flatnonzero((lake_counts != log_counts) | (lake_sums != log_sums))
        return VerifyReport(
            equal=not len(differing) and not damaged,
            watermark=manifest.watermark,
            rows_lake=int(lake_counts.sum()),
            rows_log=int(log_counts.sum()),
            differing_buckets=tuple(differing.tolist()),
            damaged_files=tuple(damaged),
        )

    def _fill(self, session: Session, upto: int) -> SyncReport:
        """Every event of the log up to ``upto``, read by the clustered index, into one base file a bucket."""
        before = self._manifest()
        building = Manifest(self.buckets, upto)
        rows = 0
        parts: list[EventColumns] = []
        for page in read_by_contact(session, upto, CHUNK_ROWS):
            parts.append(page)
            rows += len(page)
            if sum(map(len, parts)) >= FLUSH_ROWS:
                building, _, _ = self._add(building, EventColumns.concat(parts), upto, compact=False)
                parts = []
        building, _, _ = self._add(building, EventColumns.concat(parts), upto, compact=False)
        spilled = {bucket: files for bucket, files in building.files.items() if len(files) > 1}
        whole = dict(building.files)
        for bucket, files in spilled.items():
            whole[bucket] = (self._write(bucket, f"base-{upto}", self._events(bucket, files)),)
        manifest = replace(building, files=whole)
        self._publish(manifest)
        self._sweep(before, manifest, whole)
        return SyncReport(rows, upto, len(whole), len(spilled))

    def _add(
        self, manifest: Manifest, events: EventColumns, watermark: int, *, compact: bool = True
    ) -> tuple[Manifest, int, int]:
        """The manifest with ``events`` in new files; how many files were written and buckets compacted."""
        files = dict(manifest.files)
        written = compacted = 0
        bucket_of = self.bucket_of(events.contact_key)
        order = np.argsort(bucket_of, kind="stable")
        edges = np.searchsorted(bucket_of[order], np.arange(self.buckets + 1))
        for bucket in range(self.buckets):
            first, last = edges[bucket], edges[bucket + 1]
            if first == last:
                continue
            new = events.take(order[first:last])
            old = files.get(bucket, ())
            delta_rows = sum(file.rows for file in old[1:]) + len(new)
            too_many = len(old) > MAX_DELTAS
            too_much = bool(old) and delta_rows > max(MIN_DELTA_ROWS, MAX_DELTA_SHARE * old[0].rows)
            if not old:
                files[bucket] = (self._write(bucket, f"base-{watermark}", new),)
            elif compact and (too_many or too_much):
                merged = EventColumns.concat([self._events(bucket, old), new])
                files[bucket] = (self._write(bucket, f"base-{watermark}", merged),)
                compacted += 1
            else:
                files[bucket] = (*old, self._write(bucket, f"delta-{manifest.watermark + 1}-{watermark}", new))
            written += 1
        return Manifest(self.buckets, watermark, files), written, compacted

    def _events(self, bucket: int, files: Sequence[LakeFile]) -> EventColumns:
        return EventColumns.concat([self._read_file(bucket, file) for file in files])

    def _write(self, bucket: int, stem: str, events: EventColumns) -> LakeFile:
        """A new file; its name ends in its checksum, so a name that is in use is never given other bytes."""
        data = _to_parquet(events)
        sha256 = hashlib.sha256(data).hexdigest()
        name = f"{stem}-{sha256[:8]}.parquet"
        self._put(self._path(bucket, name), data)
        return LakeFile(name, len(events), len(data), sha256)

    def _publish(self, manifest: Manifest) -> None:
        """The lake becomes what ``manifest`` says, in one step."""
        text = {
            "format": FORMAT,
            "buckets": manifest.buckets,
            "watermark": manifest.watermark,
            "rows": manifest.rows,
            "files": {
                str(bucket): [asdict(file) for file in files] for bucket, files in sorted(manifest.files.items())
            },
        }
        self._put(f"{self._root}/{MANIFEST}", json.dumps(text).encode())

    def _put(self, path: str, data: bytes) -> None:
        """The whole of ``data`` at ``path``, or nothing: renamed into place, or one object put."""
        if not self._is_local:
            self._fs.pipe_file(path, data)
            return
        os.makedirs(os.path.dirname(path), exist_ok=True)
        beside = f"{path}.{uuid.uuid4().hex}.tmp"
        try:
            with open(beside, "wb") as file:
                file.write(data)
            os.replace(beside, path)
        except BaseException:
            if os.path.exists(beside):
                os.remove(beside)
            raise

    def _sweep(self, before: Manifest, after: Manifest, written: Collection[int]) -> None:
        """Files that only ``before`` names are deleted, and in the buckets just written what a crash left behind."""
        kept = {self._path(bucket, file.name) for bucket, files in after.files.items() for file in files}
        unnamed = {self._path(bucket, file.name) for bucket, files in before.files.items() for file in files} - kept
        self._fs.invalidate_cache()
        for bucket in written:
            for path in self._fs.ls(f"{self._root}/bucket={bucket:03d}", detail=False):
                if path not in kept:
                    unnamed.add(path)
        for path in unnamed:
            try:
                self._fs.rm_file(path)
            except FileNotFoundError:
                continue

    def _path(self, bucket: int, name: str) -> str:
        return f"{self._root}/bucket={bucket:03d}/{name}"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One writer at a time: among threads, and on a local folder among processes."""
        with self._thread_lock:
            if not self._is_local:
                yield
                return
            import fcntl

            os.makedirs(self._root, exist_ok=True)
            with open(f"{self._root}/.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield


def _to_parquet(events: EventColumns) -> bytes:
    used, codes = np.unique(events.kind, return_inverse=True)
    arrays: dict[str, pa.Array] = {name: pa.array(getattr(events, name)) for name in COLUMN_TYPES if name != "kind"}
    arrays["kind"] = pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32)), pa.array([events.kinds[code] for code in used], type=pa.string())
    )
    table = pa.table({name: arrays[name] for name in COLUMN_TYPES})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", compression_level=1, use_dictionary=["kind"], write_statistics=False
    )
    return sink.getvalue().to_pybytes()


def _from_parquet(data: bytes) -> EventColumns:
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).combine_chunks()
    if not table.num_rows:
        return EventColumns.empty()
    codes = KindCodes()
    kind = table.column("kind").chunk(0)
    arrays: dict[str, Any] = {
        name: table.column(name).chunk(0).to_numpy(zero_copy_only=False) for name in COLUMN_TYPES if name != "kind"
    }
    arrays["kind"] = codes.encode(kind.dictionary.to_pylist())[kind.indices.to_numpy(zero_copy_only=False)]
    return EventColumns(**arrays, kinds=codes.kinds)


def _fingerprints(events: EventColumns) -> npt.NDArray[np.uint64]:
    """A hash of every column of each event; their sum does not depend on the order of the events."""
    names = np.array([hash_ref(name) for name in events.kinds], dtype=np.int64)
    mixed = np.zeros(len(events), dtype=np.uint64)
    for name in COLUMN_TYPES:
        values = names[events.kind] if name == "kind" else getattr(events, name).astype(np.int64)
        mixed = splitmix64((mixed ^ values.view(np.uint64)).view(np.int64))
    return mixed
