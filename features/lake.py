"""The log as columns: Parquet files by contact bucket, sorted by contact and time, behind a watermark.

Each bucket has at most one base file and a few deltas. New files are written beside the old ones and take effect when
the manifest that names them replaces the old manifest, so a crash at any point leaves the lake as it was. Everything
here is derived from the log: `Lake.rebuild` makes it anew, `Lake.verify` proves it equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy.orm import Session

from features.events import COLUMN_TYPES, EventColumns, KindCodes, head, read_after, read_by_contact
from features.properties import PropertyColumns, hash_ref
from features.store import Store, StoredFile, StoreError, Unavailable, file_checksum
from features.vocabulary import IDENTIFY

MANIFEST = "manifest.json"
FORMAT = 3

#: Columns that hold properties: those of Identify events apart, because most vectors need no others.
TRAITS, PROPERTIES = "traits", "properties"

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


class LakeError(StoreError):
    """The lake's files are not what its manifest says; the message names the remedy."""


class MissingFile(LakeError):
    """A file that the manifest names is not there."""


@dataclass(frozen=True)
class Manifest:
    """Which files are the lake, and up to which place of the log they reach."""

    buckets: int
    watermark: int = 0
    #: By bucket number; base first, deltas after it in the order of the log.
    files: Mapping[int, tuple[StoredFile, ...]] = field(default_factory=dict)
    #: Contacts that were erased: no event of theirs comes in again, whatever older state of the log a reader saw.
    erased: frozenset[int] = frozenset()

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
    #: Events of contacts erased from the log that files hold until they are rewritten; in neither number of rows.
    rows_awaiting_erasure: int = 0


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
        self.store = Store(url)
        self.buckets = buckets
        #: The manifest's bytes when they were read last, and what they say.
        self._last_read: tuple[bytes | None, Manifest] = (None, Manifest(buckets))
        self._manifest()

    @property
    def url(self) -> str:
        """Address of the lake."""
        return self.store.url

    # --- reading -------------------------------------------------------------------------------------------------

    @property
    def watermark(self) -> int:
        """Place of the log up to which the lake reaches; 0 for an empty lake."""
        return self._manifest().watermark

    @property
    def rows(self) -> int:
        """Events in the lake."""
        return self._manifest().rows

    @property
    def erased(self) -> frozenset[int]:
        """Contacts that were erased from the lake; nothing of theirs comes in again."""
        return self._manifest().erased

    def bucket_of(self, contact_keys: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Bucket number, 0 to ``buckets`` - 1, of each contact.

        Examples
        --------
        >>> import tempfile
        >>> Lake(tempfile.mkdtemp(), buckets=64).bucket_of([1, 2, 3])
        array([ 1, 14, 45])
        """
        return (splitmix64(contact_keys) % np.uint64(self.buckets)).astype(np.int64)

    def read_bucket(
        self, bucket: int, with_properties: bool = False, only: Collection[str] | None = None
    ) -> EventColumns:
        """Every event of the contacts of one bucket, sorted by (contact_key, occurred_at, seq).

        Parameters
        ----------
        bucket : int
        with_properties : bool
            Also the properties of other events than Identify, which are always read.
        only : collection of str, optional
            Columns to read besides those that order the events, ``traits`` among them; the others are zero. All by
            default.

        Raises
        ------
        StoreError
            If a file is missing or its bytes are not those that were written.
        """
        for attempt in range(READ_ATTEMPTS):
            files = self._manifest().files.get(bucket, ())
            try:
                events = self._events(bucket, files, with_properties, only)
                break
            except MissingFile:
                # A compaction may have replaced it: then the manifest names its successor.
                if attempt + 1 == READ_ATTEMPTS:
                    raise
        return events

    def _events(
        self,
        bucket: int,
        files: Sequence[StoredFile],
        with_properties: bool = True,
        only: Collection[str] | None = None,
    ) -> EventColumns:
        parts = []
        for file in files:
            path = _path(bucket, file.name)
            try:
                data = self.store.read(path, file)
            except FileNotFoundError:
                raise MissingFile(
                    f"{self.store.locate(path)} is missing, which the lake's manifest names; run `kairos features "
                    "rebuild`"
                ) from None
            parts.append(_from_parquet(data, with_properties=with_properties, only=only))
        # One file is sorted as it was written, and its checksum says that it still is.
        return parts[0] if len(parts) == 1 else EventColumns.concat(parts)

    def _manifest(self) -> Manifest:
        """The manifest in force; an empty one for an empty lake, or for one of an older format (a sync fills it)."""
        try:
            text = self.store.read(MANIFEST)
        except FileNotFoundError:
            return Manifest(self.buckets)
        read, manifest = self._last_read
        if text != read:  # every bucket that is read asks for it
            manifest = self._parse(text)
            self._last_read = (text, manifest)
        return manifest

    def _parse(self, text: bytes) -> Manifest:
        try:
            raw = json.loads(text)
            written_format, buckets = int(raw["format"]), int(raw["buckets"])
            if written_format == FORMAT and raw.pop("checksum") != _checksum(raw):
                raise ValueError("it was altered: its checksum is another")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise LakeError(
                f"{self.store.locate(MANIFEST)} is no manifest ({len(text):,} bytes; {error}); delete this file and "
                "run `kairos features rebuild`"
            ) from None
        if buckets != self.buckets:
            raise ValueError(
                f"lake {self.url} was made with {buckets} buckets, not {self.buckets}; set KAIROS_BUCKETS to "
                f"{buckets}, or delete the folder and run `kairos features rebuild`"
            )
        if written_format < FORMAT:
            return Manifest(self.buckets)
        if written_format > FORMAT:
            raise LakeError(
                f"lake {self.url} has format {written_format}, this program reads {FORMAT}; upgrade it, or delete the "
                "folder and run `kairos features rebuild`"
            )
        return Manifest(
            buckets,
            raw["watermark"],
            {int(bucket): tuple(StoredFile(**file) for file in files) for bucket, files in raw["files"].items()},
            frozenset(raw["erased"]),
        )

    # --- writing -------------------------------------------------------------------------------------------------

    def sync(self, session: Session) -> SyncReport:
        """The log's events after the watermark brought over, up to the head the log had at the call.

        A failure or a crash leaves the lake at a state between the old and the new one that equals the log up to its
        watermark; the next sync goes on from there.
        """
        with self.store.exclusive(session):
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
        with self.store.exclusive(session):
            return self._fill(session, head(session))

    def verify(self, session: Session, awaiting: Callable[[Session], Collection[int]] | None = None) -> VerifyReport:
        """Whether every bucket holds exactly the log's events up to the watermark, and every file its bytes.

        Parameters
        ----------
        session : Session
            That has read nothing yet: what it sees of the log must not be older than the lake.
        awaiting : callable, optional
            Gives the contacts that were erased from the log and whose files have not followed yet.
        """
        with self.store.exclusive(session):
            self.store.forget()
            manifest = self._manifest()
            pending = frozenset(awaiting(session)) if awaiting is not None else frozenset[int]()
            # What comes into the log of an erased contact the lake does not take; what it still held would be a fault.
            not_in_lake = np.array(sorted(pending - manifest.erased), dtype=np.int64)
            not_in_log = np.array(sorted(pending | manifest.erased), dtype=np.int64)
            rows_awaiting = 0
            lake_counts = np.zeros(self.buckets, dtype=np.int64)
            lake_sums = np.zeros(self.buckets, dtype=np.uint64)
            damaged: list[str] = []
            for bucket, files in manifest.files.items():
                for file in files:
                    path = _path(bucket, file.name)
                    try:
                        events = _from_parquet(self.store.read(path, file))
                    except Unavailable:
                        raise
                    except (FileNotFoundError, StoreError):
                        damaged.append(self.store.locate(path))
                        continue
                    if len(events) and (self.bucket_of(events.contact_key) != bucket).any():
                        damaged.append(self.store.locate(path))
                    if (leaves := np.isin(events.contact_key, not_in_lake)).any():
                        rows_awaiting += int(leaves.sum())
                        events = events.take(~leaves)
                    lake_counts[bucket] += len(events)
                    lake_sums[bucket : bucket + 1] += _fingerprints(events).sum(dtype=np.uint64)  # wraps, on purpose
            log_counts = np.zeros(self.buckets, dtype=np.int64)
            log_sums = np.zeros(self.buckets, dtype=np.uint64)
            for page in read_by_contact(session, manifest.watermark, CHUNK_ROWS):
                if len(not_in_log):
                    page = page.take(~np.isin(page.contact_key, not_in_log))
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
            rows_awaiting_erasure=rows_awaiting,
        )

    def erase(self, contact_keys: Collection[int], session: Session | None = None) -> int:
        """Every event of these contacts taken out, and kept out; returns how many events that were.

        Their buckets are rewritten and the files that held them deleted. The manifest remembers the keys, so that
        neither a sync that still sees an older state of the log nor a rebuild brings an event of theirs back.
        """
        keys = frozenset(int(key) for key in contact_keys)
        with self.store.exclusive(session):
            before = self._manifest()
            files = dict(before.files)
            removed = 0
            gone = np.array(sorted(keys), dtype=np.int64)
            buckets = np.unique(self.bucket_of(gone)).tolist()
            for bucket in buckets:
                events = self._events(bucket, files.get(bucket, ()))
                stay = ~np.isin(events.contact_key, gone)
                if stay.all():
                    continue
                removed += int((~stay).sum())
                del files[bucket]
                if stay.any():
                    files[bucket] = (self._write(bucket, f"base-{before.watermark}", events.take(stay)),)
            after = replace(before, files=files, erased=before.erased | keys)
            if after != before:
                self._publish(after)
            # All of their buckets: a run that was killed before it swept may have left files with their events behind.
            self._sweep(before, after, buckets)
        return removed

    def _fill(self, session: Session, upto: int) -> SyncReport:
        """Every event of the log up to ``upto``, read by the clustered index, into one base file a bucket."""
        before = self._manifest()
        building = Manifest(self.buckets, upto, erased=before.erased)
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
        if manifest.erased:
            events = events.take(~np.isin(events.contact_key, np.array(sorted(manifest.erased), dtype=np.int64)))
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
        return replace(manifest, watermark=watermark, files=files), written, compacted

    def _write(self, bucket: int, stem: str, events: EventColumns) -> StoredFile:
        """A new file; its name ends in its checksum, so a name that is in use is never given other bytes."""
        data = _to_parquet(events)
        name = f"{stem}-{file_checksum(data)[:8]}.parquet"
        return self.store.write(_path(bucket, name), data, len(events))

    def _publish(self, manifest: Manifest) -> None:
        """The lake becomes what ``manifest`` says, in one step."""
        text = {
            "format": FORMAT,
            "buckets": manifest.buckets,
            "watermark": manifest.watermark,
            "rows": manifest.rows,
            "erased": sorted(manifest.erased),
            "files": {
                str(bucket): [asdict(file) for file in files] for bucket, files in sorted(manifest.files.items())
            },
        }
        self.store.write(MANIFEST, json.dumps({**text, "checksum": _checksum(text)}).encode())

    def _sweep(self, before: Manifest, after: Manifest, written: Collection[int]) -> None:
        """Files that only ``before`` names are deleted, and in the buckets just written what a crash left behind."""
        kept = {_path(bucket, file.name) for bucket, files in after.files.items() for file in files}
        unnamed = {_path(bucket, file.name) for bucket, files in before.files.items() for file in files}
        for bucket in written:
            unnamed.update(self.store.list(_folder(bucket)))
        for path in sorted(unnamed - kept):
            self.store.remove(path)


def _checksum(manifest: Mapping[str, Any]) -> str:
    """By which a manifest knows that no byte of it changed: a wrong watermark would leave events out for good."""
    return file_checksum(json.dumps(manifest).encode())


def _folder(bucket: int) -> str:
    return f"bucket={bucket:03d}"


def _path(bucket: int, name: str) -> str:
    return f"{_folder(bucket)}/{name}"


#: One value of a property as the lake stores it, several of an event one after the other in one binary value: the
#: lists of Parquet take four times as long to read, most of it for events that have none.
_PROPERTY = np.dtype([("name", "<i8"), ("value", "<i8"), ("number", "<f8")])


def _to_parquet(events: EventColumns) -> bytes:
    used, codes = np.unique(events.kind, return_inverse=True)
    arrays: dict[str, pa.Array] = {name: pa.array(getattr(events, name)) for name in COLUMN_TYPES if name != "kind"}
    arrays["kind"] = pa.DictionaryArray.from_arrays(
        pa.array(codes.astype(np.int32)), pa.array([events.kinds[code] for code in used], type=pa.string())
    )
    columns = {name: arrays[name] for name in COLUMN_TYPES}
    properties = events.properties
    if properties is None:
        properties = PropertyColumns.empty(len(events))
    assert properties.is_complete, "events read without their properties cannot be written"
    told = events.of_kind(IDENTIFY)
    columns[TRAITS] = _packed(properties.where(told))
    columns[PROPERTIES] = _packed(properties.where(~told))
    sink = pa.BufferOutputStream()
    # Numbers are never null: said to be so, they are read in two thirds of the time.
    schema = pa.schema(
        [pa.field(name, array.type, nullable=name in (TRAITS, PROPERTIES)) for name, array in columns.items()]
    )
    pq.write_table(
        pa.table(columns, schema=schema),
        sink,
        compression="lz4",  # a fourth larger than zstd, read in half the time
        use_dictionary=["kind"],
        # The high bytes of such numbers are much alike: laid together, they shrink the file by a fifth.
        column_encoding=dict.fromkeys(("occurred_at", "received_at", "seq", "value_minor"), "BYTE_STREAM_SPLIT"),
        write_statistics=False,
    )
    return sink.getvalue().to_pybytes()


def _packed(properties: PropertyColumns) -> pa.Array:
    """The properties of each event as bytes; null where it has none."""
    values = np.empty(len(properties.name), dtype=_PROPERTY)
    for part in ("name", "value", "number"):
        values[part] = getattr(properties, part)
    offsets = properties.start * _PROPERTY.itemsize
    has_some = np.packbits(np.diff(properties.start) > 0, bitorder="little")
    buffers = [pa.py_buffer(has_some), pa.py_buffer(offsets), pa.py_buffer(values)]
    return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)


def _from_parquet(data: bytes, *, with_properties: bool = True, only: Collection[str] | None = None) -> EventColumns:
    wanted = [name for name in (*COLUMN_TYPES, TRAITS) if only is None or name in only or name in _ALWAYS]
    if with_properties:
        wanted = [*wanted, *({TRAITS} - set(wanted)), PROPERTIES]
    table = pq.ParquetFile(pa.BufferReader(data)).read(columns=wanted, use_threads=False).combine_chunks()
    if not table.num_rows:
        return EventColumns.empty()
    codes = KindCodes()
    kind = table.column("kind").chunk(0)
    arrays: dict[str, Any] = {
        name: table.column(name).chunk(0).to_numpy(zero_copy_only=False)
        if name in wanted
        else np.zeros(table.num_rows, dtype=of)
        for name, of in COLUMN_TYPES.items()
        if name != "kind"
    }
    arrays["kind"] = codes.encode(kind.dictionary.to_pylist())[kind.indices.to_numpy(zero_copy_only=False)]
    properties = None
    if TRAITS in wanted:
        properties = _unpacked(table.column(TRAITS).chunk(0), is_complete=with_properties)
    if with_properties and properties is not None:
        others = _unpacked(table.column(PROPERTIES).chunk(0))
        if len(others.name):
            properties = _merged(properties, others) if len(properties.name) else others
    return EventColumns(**arrays, kinds=codes.kinds, properties=properties)


#: By these the events lie in order, and are known.
_ALWAYS = {"contact_key", "occurred_at", "received_at", "seq", "kind"}


def _unpacked(packed: pa.Array, *, is_complete: bool = True) -> PropertyColumns:
    _, offsets, data = packed.buffers()
    width = np.int32 if packed.type == pa.binary() else np.int64
    start = np.frombuffer(offsets, dtype=width)[packed.offset : packed.offset + len(packed) + 1]
    values = np.frombuffer(b"" if data is None else data, dtype=np.uint8)[start[0] : start[-1]].view(_PROPERTY)
    start = ((start - start[0]) // _PROPERTY.itemsize).astype(np.int64)
    name, value, number = (np.ascontiguousarray(values[part]) for part in ("name", "value", "number"))
    return PropertyColumns(start, name, value, number, is_complete)


def _merged(one: PropertyColumns, other: PropertyColumns) -> PropertyColumns:
    """The properties of the same events from two lists, of which an event has at most one."""
    both = PropertyColumns.concat([one, other])
    n = len(one.start) - 1
    has_first = np.diff(one.start) > 0
    return both.take(np.where(has_first, np.arange(n), np.arange(n) + n))


def _fingerprints(events: EventColumns) -> npt.NDArray[np.uint64]:
    """A hash of every column of each event; their sum does not depend on the order of the events."""
    names = np.array([hash_ref(name) for name in events.kinds], dtype=np.int64)
    mixed = np.zeros(len(events), dtype=np.uint64)
    for name in COLUMN_TYPES:
        values = names[events.kind] if name == "kind" else getattr(events, name).astype(np.int64)
        mixed = _mix(mixed, values)
    properties = events.properties or PropertyColumns.empty(len(events))
    of_property = np.zeros(len(properties.name), dtype=np.uint64)
    for values in (properties.name, properties.value, properties.number.view(np.int64)):
        of_property = _mix(of_property, values)
    total = np.zeros(len(events), dtype=np.uint64)
    np.add.at(total, np.repeat(np.arange(len(events)), np.diff(properties.start)), of_property)
    return _mix(mixed, total.view(np.int64))


def _mix(mixed: npt.NDArray[np.uint64], values: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    return splitmix64((mixed ^ np.ascontiguousarray(values).view(np.uint64)).view(np.int64))
