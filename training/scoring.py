"""All contacts → probabilities, bucket by bucket."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from features.lake import Lake
from features.offline import map_buckets
from features.tables import to_micros
from training.fallback import fallback_of
from training.serving import ServedHours, ServedModel

Array = NDArray[np.float64]
Part = tuple[NDArray[np.int64], Array, Array, list[dict[str, Any]]]

#: Contacts whose vectors are computed at once.
CHUNK = 50_000


@dataclass(frozen=True)
class Scores:
    """Scores of every contact that the model may be asked about, sorted by ``contact_key``, shape (n,)."""

    contact_key: NDArray[np.int64]
    #: P(outcome); for ``send_hour`` P(answer) at the best hour.
    probability: Array
    #: Share of the scored contacts at or below this probability, 0-1.
    percentile: Array
    #: For ``send_hour`` a dict each: best_local_hour (None without an hour effect) and level; else None.
    detail: list[dict[str, Any]] | None = None
    #: What the rung below says of the same contacts, to be compared once outcomes are known; None if there is none.
    fallback: Array | None = None

    def __len__(self) -> int:
        return len(self.contact_key)


def score(lake: Lake, model: ServedModel, as_of: datetime, n_jobs: int = 1) -> Scores:
    """Scores of all contacts with events known at ``as_of``, through the sweep that training and requests use.

    Parameters
    ----------
    lake : Lake
    model : ServedModel
    as_of : datetime
        Aware.
    n_jobs : int
        Buckets worked on at a time.
    """
    parts = map_buckets(_ScoresOfBucket(model, to_micros(as_of)), lake, n_jobs)
    keys = np.concatenate([part[0] for part in parts]) if parts else np.empty(0, dtype=np.int64)
    probability = np.concatenate([part[1] for part in parts]) if parts else np.empty(0)
    order = np.argsort(keys, kind="stable")
    detail = fallback = None
    if isinstance(model, ServedHours):
        together = [one for part in parts for one in part[3]]
        detail = [together[i] for i in order]
    elif fallback_of(model) is not None:
        fallback = np.concatenate([part[2] for part in parts])[order]
    return Scores(keys[order], probability[order], percentile_ranks(probability[order]), detail, fallback)


def percentile_ranks(values: Array) -> Array:
    """Share of ``values`` at or below each of them, 0-1.

    Examples
    --------
    >>> percentile_ranks(np.array([0.2, 0.1, 0.2, 0.9])).tolist()
    [0.75, 0.25, 0.75, 1.0]
    """
    return np.asarray(np.searchsorted(np.sort(values), values, side="right") / max(1, len(values)), dtype=np.float64)


@dataclass(frozen=True)
class _ScoresOfBucket:
    model: ServedModel
    as_of: int

    def __call__(self, lake: Lake, bucket: int) -> Part:
        from features.kernel import sweep  # numba: loaded where it is used

        columns = lake.read_bucket(bucket, self.model.view_set.needs_properties)
        known = (columns.occurred_at < self.as_of) & (columns.received_at <= self.as_of)
        contacts = np.unique(columns.contact_key[known])
        keys, probabilities, details = [contacts[:0]], [np.empty(0)], []
        below, by_fallback = fallback_of(self.model), [np.empty(0)]
        for start in range(0, len(contacts), CHUNK):
            chunk = contacts[start : start + CHUNK]
            X = sweep(columns, chunk, np.full(len(chunk), self.as_of, dtype=np.int64), self.model.view_set)
            asked = self.model.contains(X)
            keys.append(chunk[asked])
            if isinstance(self.model, ServedHours):
                curves = self.model.predict_hours(X[asked])
                probabilities.append(curves.max(axis=1))
                best = curves.argmax(axis=1).tolist() if self.model.hour_effect else [None] * len(curves)
                levels = self.model.levels(X[asked])
                details += [{"best_local_hour": b, "level": level} for b, level in zip(best, levels, strict=True)]
            else:
                probabilities.append(self.model.predict(X[asked]))
                if below is not None:
                    by_fallback.append(below.predict(X[asked]))
        return np.concatenate(keys), np.concatenate(probabilities), np.concatenate(by_fallback), details
