"""Scores that outcomes will judge: who was given which probability, kept beside the lake until the horizon has passed.

A scoring lies under ``scores/<model>/v<version>-<instant>/``, one Parquet file per bucket and a manifest, written last,
that names them with their checksums. Compact on purpose: a contact takes a few bytes, so a million contacts a day can
wait for their outcomes without a row each in the database.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sqlalchemy.orm import Session

from features.lake import Lake
from features.snapshots import read_checked
from features.store import Store, StoredFile, StoreError, Unavailable, file_checksum
from features.tables import from_micros

logger = logging.getLogger(__name__)

FOLDER = "scores"
MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class KeptScores:
    """Scores of one bucket or of several, sorted by ``contact_key`` within a bucket."""

    contact_key: NDArray[np.int64]
    #: float32: judging needs no more.
    probability: NDArray[np.float32]
    #: What the rung below would have said; NaN where nothing stands beside.
    fallback: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.contact_key)

    def take(self, mask: NDArray[np.bool_]) -> KeptScores:
        """The rows where ``mask`` is true."""
        return KeptScores(self.contact_key[mask], self.probability[mask], self.fallback[mask])


@dataclass(frozen=True)
class ScoreFiles:
    """Where a scoring's scores lie: the content of its manifest."""

    folder: str
    rows: int
    files: Mapping[int, StoredFile]


def folder_of(model: str, version: int, as_of: int) -> str:
    """Folder of the scoring of ``version`` at ``as_of`` (microseconds since 1970 UTC), relative to the lake.

    Examples
    --------
    >>> folder_of("churn", 3, 0)
    'scores/churn/v3-19700101T000000000000'
    """
    if not re.fullmatch(r"[\w.-]{1,60}", model):
        raise ValueError(f"{model!r} cannot name a folder; a model's name has letters, digits, '.', '_' and '-'")
    return f"{FOLDER}/{model}/v{version}-{from_micros(as_of):%Y%m%dT%H%M%S%f}"


def keep_scores(
    lake: Lake, model: str, version: int, as_of: int, scores: KeptScores, *, session: Session | None = None
) -> ScoreFiles:
    """Write the scores beside the lake; those of contacts that were erased meanwhile are left out.

    Parameters
    ----------
    lake : Lake
    model, version
        Who scored.
    as_of : int
        Microseconds since 1970 UTC.
    scores : KeptScores
        In any order.
    session : Session, optional
        For the store's lock, see `Store.exclusive`.
    """
    folder = folder_of(model, version, as_of)
    order = np.argsort(scores.contact_key, kind="stable")
    bucket_of = lake.bucket_of(scores.contact_key)
    order = order[np.argsort(bucket_of[order], kind="stable")]
    edges = np.searchsorted(bucket_of[order], np.arange(lake.buckets + 1))
    with lake.store.exclusive(session):
        erased = np.array(sorted(lake.erased), dtype=np.int64)
        files = {}
        for bucket in np.flatnonzero(np.diff(edges)).tolist():
            of = order[edges[bucket] : edges[bucket + 1]]
            part = KeptScores(scores.contact_key[of], scores.probability[of], scores.fallback[of])
            part = part.take(~np.isin(part.contact_key, erased))
            if len(part):
                files[bucket] = _write(lake.store, folder, bucket, part)
        kept = ScoreFiles(folder, sum(file.rows for file in files.values()), files)
        _publish(lake.store, kept)
    return kept


def find_scores(lake: Lake, folder: str) -> ScoreFiles:
    """The scoring in ``folder``.

    Raises
    ------
    LookupError
        If there is none: it was pruned.
    StoreError
        If its manifest cannot be read.
    """
    found = _read_manifest(lake.store, folder)
    if found is None:
        raise LookupError(f"there are no scores in {lake.store.locate(folder)}: they were pruned or removed")
    return found


def read_scores(lake: Lake, found: ScoreFiles, bucket: int) -> KeptScores:
    """The scores of one bucket's contacts.

    Raises
    ------
    StoreError
        If the file is missing or its bytes are not those that were written.
    """
    file = found.files.get(bucket)
    if file is None:
        return KeptScores(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
    return _read(lake.store, found.folder, file)


def remove_scores(lake: Lake, folder: str, *, session: Session | None = None) -> None:
    """Remove a scoring's files, manifest first."""
    with lake.store.exclusive(session):
        _remove(lake.store, folder)


def erase_from_scores(lake: Lake, contact_keys: Collection[int], *, session: Session | None = None) -> int:
    """Take these contacts out of every kept scoring; returns how many scores that were.

    Call it after `Lake.erase`, so that scores which are being kept meanwhile leave them out too. A scoring with a file
    that cannot be read is removed: nobody can tell what is in it.
    """
    gone = np.array(sorted({int(key) for key in contact_keys}), dtype=np.int64)
    buckets = set(lake.bucket_of(gone).tolist())
    store, erased = lake.store, 0
    with store.exclusive(session):
        for folder in sorted({path.rpartition("/")[0] for path in store.list(FOLDER)}):
            try:
                found = _read_manifest(store, folder)
                after = None if found is None else _without(store, found, gone, buckets)
            except Unavailable:
                raise  # the store's fault, not the file's: it stays, and the erasure is tried again
            except StoreError as error:
                logger.warning(
                    "kept scores are removed, because they cannot be read to erase a contact: %s", error,
                    extra={"action": "scores_removed", "folder": folder},
                )  # fmt: skip
                found = after = None
            if found is None or after is None:  # nobody writes now: it was broken off
                _remove(store, folder)
                continue
            if after.rows == found.rows:  # an erasure that waits for something else is done again and again
                _sweep(store, found)
                continue
            _publish(store, after)
            erased += found.rows - after.rows
    return erased


def _without(store: Store, found: ScoreFiles, gone: NDArray[np.int64], buckets: Collection[int]) -> ScoreFiles:
    files = dict(found.files)
    for bucket in sorted(set(buckets) & files.keys()):
        scores = _read(store, found.folder, files[bucket])
        stay = ~np.isin(scores.contact_key, gone)
        if stay.all():
            continue
        del files[bucket]
        if stay.any():
            files[bucket] = _write(store, found.folder, bucket, scores.take(stay))
    return ScoreFiles(found.folder, sum(file.rows for file in files.values()), files)


def _write(store: Store, folder: str, bucket: int, scores: KeptScores) -> StoredFile:
    """A new file; its name ends in its checksum, so that what a manifest names is never written over."""
    sink = pa.BufferOutputStream()
    table = pa.table(
        {"contact_key": scores.contact_key, "probability": scores.probability, "fallback": scores.fallback}
    )
    # Ascending keys as differences: a byte each instead of eight.
    pq.write_table(
        table, sink, compression="zstd", compression_level=1, write_statistics=False,
        use_dictionary=["fallback"], column_encoding={"contact_key": "DELTA_BINARY_PACKED"},
    )  # fmt: skip
    data = sink.getvalue().to_pybytes()
    return store.write(f"{folder}/bucket={bucket:03d}-{file_checksum(data)[:8]}.parquet", data, table.num_rows)


def _read(store: Store, folder: str, file: StoredFile) -> KeptScores:
    remedy = "this scoring cannot be judged any more; delete its folder"
    try:
        data = read_checked(store, f"{folder}/{file.name}", file, remedy)
    except FileNotFoundError:
        raise StoreError(f"{store.locate(f'{folder}/{file.name}')} is missing; {remedy}") from None
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).combine_chunks()
    return KeptScores(*(table.column(name).to_numpy() for name in ("contact_key", "probability", "fallback")))


def _publish(store: Store, found: ScoreFiles) -> None:
    content: dict[str, Any] = {
        "format": FORMAT,
        "folder": found.folder,
        "rows": found.rows,
        "files": {str(bucket): asdict(file) for bucket, file in sorted(found.files.items())},
    }
    store.write(f"{found.folder}/{MANIFEST}", json.dumps(content).encode())
    _sweep(store, found)


def _sweep(store: Store, found: ScoreFiles) -> None:
    """Files that it does not name are deleted: a writer that was killed left them."""
    store.keep_only(found.folder, (MANIFEST, *(file.name for file in found.files.values())))


def _read_manifest(store: Store, folder: str) -> ScoreFiles | None:
    path = f"{folder}/{MANIFEST}"
    try:
        data = store.read(path)
    except FileNotFoundError:
        return None
    try:
        content = json.loads(data)
        if content["format"] != FORMAT or content["folder"] != folder:
            raise ValueError(f"its format is not {FORMAT} or it is of another folder")
        files = {int(bucket): StoredFile(**file) for bucket, file in content["files"].items()}
        return ScoreFiles(folder, int(content["rows"]), files)
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{store.locate(path)} is no manifest of kept scores ({len(data):,} bytes; {error}); delete its folder"
        ) from None


def _remove(store: Store, folder: str) -> None:
    """Manifest first: what is half removed is no scoring."""
    store.remove(f"{folder}/{MANIFEST}")
    store.remove_folder(folder)
