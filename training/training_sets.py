"""Training sets that can be made again: who was asked about, when, and what came of it, kept beside the lake.

A set lies under ``training/<model>-<id>/``: per bucket the spine with its outcomes (contact_key, as_of, y, and weight
where rows stand for others), and a manifest, written last. The vectors are not kept: the lake gives them again, bit for
bit, from the events up to the place of the log that the set was made at.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from features.labels import observed
from features.lake import Lake
from features.offline import map_buckets
from features.snapshots import events_upto, read_checked
from features.store import Store, StoredFile, StoreError, Unavailable, file_checksum
from features.views import ViewSet
from training.datasets import (
    Array,
    Definition,
    Ints,
    TrainingSet,
    checksum,
    checksums,
    in_order,
    libraries,
    with_outcomes,
)

logger = logging.getLogger(__name__)

FOLDER = "training"
MANIFEST = "manifest.json"
FORMAT = 2

#: Columns of a bucket's file; the last one only where rows are weighted.
SPINE = ("contact_key", "as_of", "y", "weight")

#: Sets of so many newest runs of a model stay.
KEEP = 5

Manifest = dict[str, Any]


class NotReproduced(ValueError):
    """A training set made again is not the one that was saved."""


def save(lake: Lake, name: str, data: TrainingSet, *, saved_at: datetime, session: Session | None = None) -> Manifest:
    """Keep what it takes to make ``data`` again, and of older sets of ``name`` the four newest.

    Parameters
    ----------
    lake : Lake
    name : str
        Of the model.
    data : TrainingSet
        As `training_set` gives it, all of its rows.
    saved_at : datetime
        Aware; tells the newest sets from the oldest.
    session : Session, optional
        For the store's lock, see `Store.exclusive`.

    Returns
    -------
    dict
        The manifest: that of ``data`` with its folder, files and the contacts that were erased meanwhile.
    """
    told = json.dumps([name, data.manifest], sort_keys=True)
    folder = f"{FOLDER}/{name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}"
    order = np.lexsort((data.as_of, data.contact_key))
    bucket_of = lake.bucket_of(data.contact_key)[order]
    rows_of = {int(bucket): order[bucket_of == bucket] for bucket in np.unique(bucket_of)}
    spines = {str(bucket): checksum(data.contact_key[of], data.as_of[of]) for bucket, of in rows_of.items()}
    if spines != {bucket: sums["spine"] for bucket, sums in data.manifest["buckets"].items()}:
        raise ValueError(f"the {len(data)} rows are not those of the set's manifest; save the set as it was made")
    with lake.store.exclusive(session):
        erased = np.array(sorted(lake.erased), dtype=np.int64)  # some perhaps while the model was trained
        files = {}
        for bucket, of in rows_of.items():
            kept = of[~np.isin(data.contact_key[of], erased)]
            if len(kept):
                files[bucket] = _write(
                    lake.store,
                    folder,
                    bucket,
                    _Spine(*(getattr(data, column)[kept] for column in SPINE)),
                )
        manifest = {
            "format": FORMAT,
            "name": name,
            "folder": folder,
            "saved_at": saved_at.isoformat(),
            **data.manifest,
            "erased_rows": len(data) - sum(file.rows for file in files.values()),
            "files": {str(bucket): asdict(file) for bucket, file in files.items()},
        }
        _publish(lake.store, manifest)
        _prune(lake.store, name)
    return manifest


def reproduce(lake: Lake, manifest: Mapping[str, Any], n_jobs: int = 1) -> TrainingSet:
    """The set that ``manifest`` tells of, made again from the lake and compared bucket by bucket.

    What the log took up since, late events and imported history too, does not enter.

    Parameters
    ----------
    lake : Lake
    manifest : mapping
        As `save` returned it and the run keeps it.
    n_jobs : int
        Buckets worked on at a time.

    Returns
    -------
    TrainingSet
        Vectors and outcomes as they were. Rows of contacts that were erased since are left out: its manifest counts
        them (``erased_rows``) and names the buckets whose checksum can then no longer be compared
        (``unchecked_buckets``; their outcomes still are).

    Raises
    ------
    LookupError
        If the set was pruned.
    StoreError
        If a file of it was damaged.
    NotReproduced
        If a bucket's vectors or outcomes differ, or the lake does not reach that far.
    """
    folder = manifest["folder"]
    current = _read_manifest(lake.store, folder)
    if current is None:
        raise LookupError(
            f"{lake.store.locate(folder)} is not there: a model keeps its {KEEP} newest training sets; train it again"
        )
    if lake.watermark < manifest["watermark"]:
        raise NotReproduced(
            f"the set was made at place {manifest['watermark']} of the log, lake {lake.url} reaches to "
            f"{lake.watermark}; run `kairos features sync`"
        )
    views = ViewSet.from_definition(manifest["view_set_definition"])
    files = {int(bucket): StoredFile(**file) for bucket, file in current["files"].items()}
    job = _BucketAgain(
        folder, files, views, Definition.from_dict(manifest["definition"]), manifest["watermark"], lake.erased
    )
    parts = map_buckets(job, lake, n_jobs)
    unchecked, differing = [], []
    for bucket, sums in manifest["buckets"].items():
        part = parts[int(bucket)]
        if len(part.rows) < sums["rows"]:
            unchecked.append(int(bucket))
        elif checksums(part.rows) != sums:
            differing.append(int(bucket))
        if part.differing_outcomes:
            differing.append(int(bucket))
    if differing:
        raise NotReproduced(
            f"buckets {sorted(set(differing))} of {folder} give other vectors or outcomes than when it was made"
            f"{_changed_libraries(manifest['libraries'])}; `kairos features verify` tells if the lake equals the log"
        )
    data = in_order([part.rows for part in parts], views.names)
    told = {**manifest, "erased_rows": manifest["rows"] - len(data), "unchecked_buckets": unchecked}
    return replace(data, manifest=told)


def erase_from_training_sets(lake: Lake, contact_keys: Collection[int], *, session: Session | None = None) -> int:
    """Take these contacts' rows out of every saved set; returns how many rows that were.

    Call it after `Lake.erase`, so that a set which is being made meanwhile leaves them out too. A set with a file that
    cannot be read is removed: nobody can tell what is in it.
    """
    gone = np.array(sorted({int(key) for key in contact_keys}), dtype=np.int64)
    buckets = set(lake.bucket_of(gone).tolist())
    store, erased = lake.store, 0
    with store.exclusive(session):
        for folder in _folders(store):
            try:
                manifest = _read_manifest(store, folder)
                after = None if manifest is None else _without(store, manifest, gone, buckets)
            except Unavailable:
                raise  # the store's fault, not the set's: it stays, and the erasure is tried again
            except StoreError as error:
                logger.warning(
                    "a training set is removed, because it cannot be read to erase a contact: %s", error,
                    extra={"action": "training_set_removed", "folder": folder},
                )  # fmt: skip
                manifest = after = None
            if manifest is None or after is None:  # nobody writes one now: it was broken off
                _remove(store, folder)
                continue
            if after == manifest:  # an erasure that waits for something else is done again and again
                _sweep(store, manifest)
                continue
            _publish(store, after)
            erased += after["erased_rows"] - manifest["erased_rows"]
    return erased


@dataclass(frozen=True)
class _Spine:
    contact_key: Ints
    as_of: Ints
    y: NDArray[np.int8]
    weight: Array

    def take(self, mask: NDArray[np.bool_]) -> _Spine:
        return _Spine(*(getattr(self, column)[mask] for column in SPINE))


@dataclass(frozen=True)
class _Again:
    rows: TrainingSet
    #: Rows whose outcome is not the one that was saved.
    differing_outcomes: int


@dataclass(frozen=True)
class _BucketAgain:
    folder: str
    files: Mapping[int, StoredFile]
    views: ViewSet
    asked: Definition
    seq: int
    erased: frozenset[int]

    def __call__(self, lake: Lake, bucket: int) -> _Again:
        from features.kernel import sweep  # numba: loaded where it is used

        file = self.files.get(bucket)
        if file is None:
            return _Again(in_order([], self.views.names), 0)
        spine = _read(lake.store, self.folder, file)
        spine = spine.take(~np.isin(spine.contact_key, np.array(sorted(self.erased), dtype=np.int64)))
        reads = self.views.needs_properties or self.asked.outcome.needs_properties
        columns = events_upto(lake.read_bucket(bucket, reads), self.seq)
        X = sweep(columns, spine.contact_key, spine.as_of, self.views)
        rows = with_outcomes(self.asked, columns, X, spine.contact_key, spine.as_of, self.views.names)
        is_seen = observed(self.asked.outcome, columns, spine.contact_key, spine.as_of, self.asked.horizon_days)
        # Weights come from all contacts' exposure, also of those that were erased since: they are kept, not made again.
        return _Again(replace(rows, weight=spine.weight), int(((rows.y != spine.y) | ~is_seen).sum()))


def _changed_libraries(then: Mapping[str, str]) -> str:
    now = libraries()
    changed = [
        f"{one} {then.get(one)} then, {now.get(one)} now"
        for one in sorted({*then, *now})
        if then.get(one) != now.get(one)
    ]
    return f" ({'; '.join(changed)})" if changed else ""


def _without(store: Store, manifest: Manifest, gone: Ints, buckets: Collection[int]) -> Manifest:
    files = {int(bucket): StoredFile(**file) for bucket, file in manifest["files"].items()}
    for bucket in sorted(set(buckets) & files.keys()):
        spine = _read(store, manifest["folder"], files[bucket])
        stay = ~np.isin(spine.contact_key, gone)
        if stay.all():
            continue
        del files[bucket]
        if stay.any():
            files[bucket] = _write(store, manifest["folder"], bucket, spine.take(stay))
    return {
        **manifest,
        "erased_rows": manifest["rows"] - sum(file.rows for file in files.values()),
        "files": {str(bucket): asdict(file) for bucket, file in sorted(files.items())},
    }


def _write(store: Store, folder: str, bucket: int, spine: _Spine) -> StoredFile:
    """A new file; its name ends in its checksum, so that what a manifest names is never written over."""
    sink = pa.BufferOutputStream()
    is_weighted = bool((spine.weight != 1.0).any())
    table = pa.table({name: getattr(spine, name) for name in (SPINE if is_weighted else SPINE[:-1])})
    pq.write_table(table, sink, compression="zstd", compression_level=1, write_statistics=False)
    data = sink.getvalue().to_pybytes()
    return store.write(f"{folder}/bucket={bucket:03d}-{file_checksum(data)[:8]}.parquet", data, table.num_rows)


def _read(store: Store, folder: str, file: StoredFile) -> _Spine:
    remedy = f"delete {folder} and train again"
    try:
        data = read_checked(store, f"{folder}/{file.name}", file, remedy)
    except FileNotFoundError:
        raise StoreError(f"{store.locate(f'{folder}/{file.name}')} is missing; {remedy}") from None
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).combine_chunks()
    columns = {name: table.column(name).to_numpy() for name in table.column_names}
    return _Spine(**{"weight": np.ones(table.num_rows)} | columns)


def _publish(store: Store, manifest: Manifest) -> None:
    folder = manifest["folder"]
    store.write(f"{folder}/{MANIFEST}", json.dumps(manifest).encode())
    _sweep(store, manifest)


def _sweep(store: Store, manifest: Manifest) -> None:
    """Files that it does not name are deleted: a writer that was killed left them."""
    store.keep_only(manifest["folder"], (MANIFEST, *(file["name"] for file in manifest["files"].values())))


def _read_manifest(store: Store, folder: str) -> Manifest | None:
    path = f"{folder}/{MANIFEST}"
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    try:
        manifest = dict(json.loads(data))
        if manifest["format"] != FORMAT or manifest["folder"] != folder:
            raise ValueError(f"its format is not {FORMAT} or it is of another folder")
        return manifest
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{store.locate(path)} is no manifest of a training set ({len(data):,} bytes; {error}); delete its folder"
        ) from None


def _folders(store: Store) -> list[str]:
    return sorted({path.rpartition("/")[0] for path in store.list(FOLDER)})


def _prune(store: Store, name: str) -> None:
    """Only the newest sets of ``name`` stay; what a run that was broken off left behind goes."""
    mine = []
    for folder in _folders(store):
        manifest = _read_manifest(store, folder)
        if manifest is None:
            _remove(store, folder)
        elif manifest["name"] == name:
            mine.append((datetime.fromisoformat(manifest["saved_at"]), folder))
    for _, folder in sorted(mine)[:-KEEP]:
        _remove(store, folder)


def _remove(store: Store, folder: str) -> None:
    """Manifest first: what is half removed is no training set."""
    store.remove(f"{folder}/{MANIFEST}")
    store.remove_folder(folder)
