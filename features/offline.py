"""Vectors of many contacts at many instants, from the lake, bucket by bucket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import joblib
import numpy as np
import numpy.typing as npt
import pandas as pd

from features.lake import Lake
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
    #: Place of the log up to which the lake reached when reading began.
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
        No bucket needs another's rows, so it may run anywhere. Threads run it on one machine (reading, the sweep and
        scoring leave the interpreter's lock); ``joblib.parallel_config`` names another backend, such as Ray.
    lake : Lake
    n_jobs : int
        Buckets worked on at a time; -1 for one per core.
    """
    return _map(function, lake, list(range(lake.buckets)), n_jobs)


def _map(function: Callable[[Lake, int], T], lake: Lake, buckets: list[int], n_jobs: int) -> list[T]:
    if n_jobs == 1:
        return [function(lake, bucket) for bucket in buckets]
    return list(joblib.Parallel(n_jobs=n_jobs, prefer="threads")(joblib.delayed(function)(lake, b) for b in buckets))


def historical_features(lake: Lake, spine: pd.DataFrame, views: ViewSet, n_jobs: int = 1) -> FeatureFrame:
    """The vector of every row of ``spine`` as it stood at that row's instant.

    Parameters
    ----------
    lake : Lake
        Synced at least to what was known at the latest instant.
    spine : DataFrame
        Columns ``contact_key`` (int64) and ``as_of`` (int64 microseconds since 1970 UTC), in any order, repeats fine.
    views : ViewSet
    n_jobs : int
        Buckets worked on at a time; the result does not depend on it.

    Raises
    ------
    ValueError
        If a column is missing or not of whole numbers.
    """
    keys = _whole(spine, "contact_key")
    as_of = _whole(spine, "as_of")
    watermark = lake.watermark
    bucket_of = lake.bucket_of(keys)
    order = np.argsort(bucket_of, kind="stable")
    edges = np.searchsorted(bucket_of[order], np.arange(lake.buckets + 1))
    rows_of = {bucket: order[edges[bucket] : edges[bucket + 1]] for bucket in range(lake.buckets)}
    asked = [bucket for bucket, rows in rows_of.items() if len(rows)]

    def vectors(lake: Lake, bucket: int) -> npt.NDArray[np.float64]:
        from features.kernel import sweep  # numba: loaded where it is used

        rows = rows_of[bucket]
        return sweep(lake.read_bucket(bucket), keys[rows], as_of[rows], views)

    X = np.empty((len(keys), len(views.names)), dtype=np.float64)
    parts = _map(vectors, lake, asked, n_jobs)
    for bucket in reversed(asked):
        X[rows_of[bucket]] = parts.pop()
    return FeatureFrame(keys, as_of, X, views.names, views.version, watermark)


def _whole(spine: pd.DataFrame, name: str) -> npt.NDArray[np.int64]:
    if name not in spine.columns:
        raise ValueError(f"the spine has columns {list(spine.columns)}; it needs contact_key and as_of, both int64")
    if not pd.api.types.is_integer_dtype(spine[name]) or bool(spine[name].isna().any()):
        raise ValueError(
            f"column {name!r} of the spine is {spine[name].dtype}; pass int64 (instants as microseconds since 1970 UTC)"
        )
    return np.ascontiguousarray(spine[name].to_numpy(dtype=np.int64))
