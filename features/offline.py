"""Vectors of many contacts at many instants, from the lake, bucket by bucket."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from features.engine import is_local, run
from features.lake import Lake, LakeError
from features.views import ViewSet

T = TypeVar("T")


@dataclass(frozen=True)
class FeatureFrame:
    """Vectors in the order of the spine that asked for them."""

    #: shape (n,)
    contact_key: npt.NDArray[np.int64]
    #: Microseconds since 1970 UTC, shape (n,)
    as_of: npt.NDArray[np.int64]
    #: shape (n, n_columns)
    X: npt.NDArray[np.float64]
    names: tuple[str, ...]
    #: Version of the view set.
    version: str
    #: Place of the log up to which events entered.
    watermark: int

    def __len__(self) -> int:
        return len(self.contact_key)

    def to_pandas(self) -> pd.DataFrame:
        """One row per instant: ``contact_key``, ``as_of`` (µs) and the columns by name."""
        frame = pd.DataFrame(self.X, columns=list(self.names), copy=False)
        frame.insert(0, "as_of", self.as_of)
        frame.insert(0, "contact_key", self.contact_key)
        return frame


def map_buckets(function: Callable[[Lake, int], T], lake: Lake, n_jobs: int = 1) -> list[T]:
    """``function(lake, bucket)`` of every bucket, in the order of the buckets.

    Parameters
    ----------
    function : callable
        No bucket needs another's rows, so it may run anywhere: in threads, or on a cluster (`features.engine`), for
        which it must pickle.
    lake : Lake
    n_jobs : int
        Buckets worked on at a time; -1 for one per core. Ray takes 1 for every CPU of the cluster.

    Raises
    ------
    LakeError
        If a node of the cluster does not see the lake.
    """
    return list(map_tasks(function, lake, ((bucket,) for bucket in range(lake.buckets)), n_jobs))


def map_tasks(
    function: Callable[..., T], lake: Lake, tasks: Iterable[tuple[Any, ...]], n_jobs: int, watermark: int | None = None
) -> Iterator[T]:
    """``function(lake, *task)`` of every task, wherever the engine runs it and the lake is seen up to ``watermark``."""
    if not is_local():
        return run(_Elsewhere(function, lake, lake.watermark if watermark is None else watermark), tasks, n_jobs)
    return run(partial(function, lake), tasks, n_jobs)


@dataclass(frozen=True)
class _Elsewhere(Generic[T]):
    """``function`` on another machine, if that machine sees the lake as we do.

    A folder that is not there reads as a lake that is still empty: without this the vectors would be all zero.
    """

    function: Callable[..., T]
    lake: Lake
    watermark: int

    def __call__(self, *task: Any) -> T:
        reached = self.lake.watermark
        if reached < self.watermark:
            raise LakeError(
                f"on {platform.node()} the lake {self.lake.url} reaches to place {reached} of the log, where it was "
                f"started to {self.watermark}: put the lake on a store that every node sees (KAIROS_LAKE_URL, such as "
                "s3://bucket/lake or a shared folder), or set KAIROS_ENGINE=local"
            )
        return self.function(self.lake, *task)


def historical_features(
    lake: Lake, spine: pd.DataFrame, views: ViewSet, n_jobs: int = 1, *, seq: int | None = None
) -> FeatureFrame:
    """The vector of every row of ``spine`` as it stood at that row's instant.

    Parameters
    ----------
    lake : Lake
        Synced at least to what was known at the latest instant.
    spine : DataFrame
        Columns ``contact_key`` (int64) and ``as_of`` (int64 microseconds since 1970 UTC), in any order, repeats fine.
    views : ViewSet
    n_jobs : int
        Buckets worked on at a time; the result depends neither on it nor on the engine.
    seq : int, optional
        Only events up to this place of the log enter, as if it had ended there: what an earlier lake, or a request
        that saw this place, knew. Left out, it is the place that the lake reaches at the call.

    Raises
    ------
    ValueError
        If a column is missing or not of whole numbers, or the lake does not reach to ``seq``.
    LakeError
        If a file of the lake is damaged, or a node of the cluster does not see the lake.
    """
    keys = _whole(spine, "contact_key")
    as_of = _whole(spine, "as_of")
    watermark = lake.watermark
    if seq is not None and seq > watermark:
        raise ValueError(
            f"seq is {seq} and lake {lake.url} reaches to place {watermark} of the log; run `kairos features sync`"
        )
    bucket_of = lake.bucket_of(keys)
    order = np.argsort(bucket_of, kind="stable")
    edges = np.searchsorted(bucket_of[order], np.arange(lake.buckets + 1))
    asked = np.flatnonzero(np.diff(edges)).tolist()
    rows = [order[edges[bucket] : edges[bucket + 1]] for bucket in asked]
    vectors = _VectorsOfBucket(views, watermark if seq is None else seq)
    # A worker gets its bucket's part of the spine. Threads write their vectors into place; from elsewhere they are put
    # there as they come: X is never held twice.
    if is_local():
        X = np.empty((len(keys), len(views.names)))
        into = ((bucket, keys[of], as_of[of], X, of) for bucket, of in zip(asked, rows, strict=True))
        for _ in map_tasks(vectors, lake, into, n_jobs):
            pass
    else:
        # Filled, not just allocated: a bucket's rows lie all over it, so that the first part to be put into place
        # would wait for every page of it while the other parts heap up.
        X = np.full((len(keys), len(views.names)), np.nan)
        tasks = ((bucket, keys[of], as_of[of]) for bucket, of in zip(asked, rows, strict=True))
        for of, part in zip(rows, map_tasks(vectors, lake, tasks, n_jobs, watermark), strict=True):
            X[of] = part
    return FeatureFrame(keys, as_of, X, views.names, views.version, watermark if seq is None else seq)


@dataclass(frozen=True)
class _VectorsOfBucket:
    views: ViewSet
    seq: int

    def __call__(
        self,
        lake: Lake,
        bucket: int,
        keys: npt.NDArray[np.int64],
        as_of: npt.NDArray[np.int64],
        out: npt.NDArray[np.float64] | None = None,
        rows: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.float64]:
        from features.kernel import sweep_into  # numba: loaded where it is used

        columns = lake.read_bucket(bucket, self.views.needs_properties, self.views.program.columns_read)
        if len(columns) and columns.seq.max() > self.seq:
            columns = columns.take(columns.seq <= self.seq)
        if out is None or rows is None:
            out, rows = np.empty((len(keys), len(self.views.names))), np.arange(len(keys))
        sweep_into(out, rows, columns, keys, as_of, self.views)
        return out


def _whole(spine: pd.DataFrame, name: str) -> npt.NDArray[np.int64]:
    if name not in spine.columns:
        raise ValueError(f"the spine has columns {list(spine.columns)}; it needs contact_key and as_of, both int64")
    if not pd.api.types.is_integer_dtype(spine[name]) or bool(spine[name].isna().any()):
        raise ValueError(
            f"column {name!r} of the spine is {spine[name].dtype}; pass int64 (instants as microseconds since 1970 UTC)"
        )
    return np.ascontiguousarray(spine[name].to_numpy(dtype=np.int64))
