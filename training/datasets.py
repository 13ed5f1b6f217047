"""What a model learns from: vectors at past instants with what happened next, and the sends with their answers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.events import EventColumns
from features.labels import known_since, label, observed, orders_within
from features.lake import Lake
from features.offline import historical_features, map_buckets
from features.properties import hash_ref
from features.snapshots import events_upto
from features.views import ViewSet
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, EMAIL_SENT, HUMAN_PPM
from training.censoring import censoring_weights, exposure_strata
from training.history import LogSpan as LogSpan
from training.history import burn_in_micros
from training.history import log_span as log_span
from training.outcomes import Definition
from training.send_hour import ANSWER_WINDOW_HOURS, HOURS, Sends

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY_MICROS = 86_400_000_000
HOUR_MICROS = DAY_MICROS // 24
#: Days between two snapshots, about; a contact's vectors a few days apart tell nearly the same story twice.
SNAPSHOT_DAYS = 14
MAX_SNAPSHOTS = 26
#: Above this many rows a training set takes only a part of the contacts, the same part each time.
MAX_ROWS = 600_000

#: Arrays of a training set, one entry a row.
COLUMNS = ("X", "y", "contact_key", "as_of", "weight", "order_days", "order_value")

#: Packages whose version may change a bit of a vector, an outcome or a fit.
LIBRARIES = ("kairos-mail", "numpy", "numba", "llvmlite", "scipy", "scikit-learn", "lightgbm")


@dataclass(frozen=True)
class TrainingSet:
    """Vectors at several instants with their outcomes, rows sorted by (as_of, contact_key)."""

    X: Array
    y: NDArray[np.int8]
    contact_key: Ints
    #: Microseconds since 1970 UTC of each row's instant.
    as_of: Ints
    names: tuple[str, ...]
    #: What it was made of, enough to make it again: view_set and its definition, the definition of the outcome,
    #: watermark, rows, instants, contacts_share, checksums (of the whole, the spine and every bucket), libraries.
    manifest: dict[str, Any] = field(default_factory=dict)
    #: How many rows each stands for, of outcomes that only some contacts could show (`training.censoring`); else 1.
    weight: Array = field(default_factory=lambda: np.empty(0))
    #: Order days in the window after each instant, and the money of those orders in minor units, net.
    order_days: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    order_value: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        for name, each in (("weight", 1.0), ("order_days", 0), ("order_value", 0)):
            if len(getattr(self, name)) != len(self.y):
                object.__setattr__(self, name, np.full(len(self.y), each))

    def __len__(self) -> int:
        return len(self.y)

    @property
    def is_weighted(self) -> bool:
        """Whether a row stands for another number than one."""
        return bool((self.weight != 1.0).any())

    def rows(self, mask: NDArray[np.bool_] | NDArray[np.intp] | slice) -> TrainingSet:
        """The rows where ``mask`` is true, or at these places."""
        return replace(self, **{name: getattr(self, name)[mask] for name in COLUMNS})

    def at(self, instant: int) -> TrainingSet:
        """The rows of one instant."""
        return self.rows(slice(*np.searchsorted(self.as_of, [instant, instant + 1]).tolist()))  # nothing is copied

    def closed_by(self, instant: int, horizon_days: int) -> TrainingSet:
        """The rows whose outcome was known at ``instant``."""
        last = instant - horizon_days * DAY_MICROS
        return self.rows(slice(0, int(np.searchsorted(self.as_of, last, side="right"))))


def snapshot_instants(newest: int, first_event: int, horizon_days: int) -> list[int]:
    """Instants about every 14 days going back from ``newest``, oldest first.

    The step divides the horizon, so that the instant a horizon before each snapshot is a snapshot too: an earlier
    cut-off then has the same training windows behind it.
    """
    step = horizon_days * DAY_MICROS // max(1, round(horizon_days / SNAPSHOT_DAYS))
    oldest = first_event + burn_in_micros(newest - first_event)
    count = min(MAX_SNAPSHOTS, (newest - oldest) // step + 1) if newest >= oldest else 0
    return [newest - i * step for i in range(count)][::-1]


def training_set(
    lake: Lake, views: ViewSet, asked: Definition, instants: Sequence[int], n_jobs: int = 1, *, seq: int | None = None
) -> TrainingSet:
    """Vectors of the population at each of ``instants``, with the outcome over the horizon after it.

    Each vector knows only what was known at its instant. A row whose outcome could not be seen (see
    `features.labels.observed`) is left out, and counted as ``censored_rows`` of the manifest. The caller sees to it
    that the outcomes are closed: the last instant plus the horizon must not lie beyond what the log has seen.

    Parameters
    ----------
    lake : Lake
        Bucket by bucket; no bucket needs another.
    views : ViewSet
    asked : Definition
    instants : sequence of int
        Microseconds since 1970 UTC.
    n_jobs : int
        Buckets worked on at a time.
    seq : int, optional
        Only events up to this place of the log enter vectors and outcomes; default the place that the lake reaches.
    """
    seq = lake.watermark if seq is None else seq
    moments = np.unique(np.asarray(instants, dtype=np.int64))
    if len(moments) == 0:
        raise ValueError("a training set needs at least one instant; pass microseconds since 1970 UTC")
    rows_per_bucket = max(1, MAX_ROWS // lake.buckets)
    job = _RowsOfBucket(views, asked, moments, max(1, rows_per_bucket // len(moments)), seq)
    parts = {bucket: part for bucket, part in enumerate(map_buckets(job, lake, n_jobs)) if part is not None}
    censored = 0
    if asked.outcome.least_deliveries:
        rows_before = sum(len(part.rows) for part in parts.values())
        parts = _weighted(parts)
        censored = rows_before - sum(len(part.rows) for part in parts.values())
    data = in_order([part.rows for part in parts.values()], views.names)
    seen = sum(part.seen for part in parts.values())
    manifest = {
        "view_set": f"{views.name}@{views.version}",
        "view_set_definition": views.definition(),
        "definition": asdict(asked),
        "watermark": int(seq),
        "rows": len(data),
        "censored_rows": censored,
        "instants": moments.tolist(),
        "contacts_share": sum(part.taken for part in parts.values()) / seen if seen else 1.0,
        "checksum": checksum(
            data.contact_key, data.as_of, data.y, data.X, *([data.weight] if data.is_weighted else [])
        ),
        "spine_checksum": checksum(data.contact_key, data.as_of),
        "buckets": {str(bucket): checksums(part.rows) for bucket, part in parts.items() if len(part.rows)},
        "libraries": libraries(),
    }
    return replace(data, manifest=manifest)


def in_order(parts: Sequence[TrainingSet], names: tuple[str, ...]) -> TrainingSet:
    """The rows of several sets as one."""
    if not parts:
        nothing = np.empty(0, np.int64)
        return TrainingSet(np.empty((0, len(names))), np.empty(0, np.int8), nothing, nothing, names)
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in COLUMNS}
    return TrainingSet(**columns, names=names).rows(np.lexsort((columns["contact_key"], columns["as_of"])))


def checksum(*arrays: NDArray[Any]) -> str:
    """SHA-256 over the bytes of ``arrays``, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def checksums(rows: TrainingSet) -> dict[str, Any]:
    """What is remembered of a bucket's rows, which lie by (contact_key, as_of), so that they can be told again."""
    sums = {
        "rows": len(rows),
        "spine": checksum(rows.contact_key, rows.as_of),
        "X": checksum(rows.X),
        "y": checksum(rows.y),
    }
    return sums | ({"weight": checksum(rows.weight)} if rows.is_weighted else {})


def libraries() -> dict[str, str]:
    """Versions of what computes here, and on what kind of machine."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was not installed
            continue
    return found


@dataclass(frozen=True)
class _RowsOfBucket:
    views: ViewSet
    asked: Definition
    moments: Ints
    most_contacts: int
    seq: int

    def __call__(self, lake: Lake, bucket: int) -> _Part | None:
        from features.kernel import sweep  # numba: loaded where it is used

        reads = self.views.needs_properties or self.asked.outcome.needs_properties
        columns = events_upto(lake.read_bucket(bucket, reads), self.seq)
        contacts = np.unique(columns.contact_key)
        seen = len(contacts)
        if seen == 0:
            return None
        if seen > self.most_contacts:
            # Keys lie in a bucket by a hash, so the first of a fixed shuffle are a fair and stable part of it.
            contacts = np.sort(np.random.default_rng(bucket).permutation(contacts)[: self.most_contacts])
        keys, as_of = np.repeat(contacts, len(self.moments)), np.tile(self.moments, len(contacts))
        X = sweep(columns, keys, as_of, self.views)
        # Who comes into the log later is nobody yet: to ask about them would look at what happens next.
        is_known = np.repeat(known_since(columns, contacts), len(self.moments)) <= as_of
        belongs = self.asked.population.contains(X, self.views.names) & is_known
        keys, as_of, X = keys[belongs], as_of[belongs], X[belongs]
        rows = with_outcomes(self.asked, columns, X, keys, as_of, self.views.names)
        is_seen = observed(self.asked.outcome, columns, keys, as_of, self.asked.horizon_days)
        return _Part(rows, is_seen, seen, len(contacts))


def with_outcomes(
    asked: Definition, columns: EventColumns, X: Array, keys: Ints, as_of: Ints, names: tuple[str, ...]
) -> TrainingSet:
    """Vectors with what ``columns`` tell of each one's window."""
    y = label(asked.outcome, columns, keys, as_of, asked.horizon_days)
    orders = orders_within(columns, keys, as_of, asked.horizon_days)
    return TrainingSet(X, y, keys, as_of, names, order_days=orders.days, order_value=orders.value_minor)


def _weighted(parts: dict[int, _Part]) -> dict[int, _Part]:
    """The rows whose outcome was seen, each weighing as many as it stands for."""
    if not parts:
        return parts
    weight = censoring_weights(
        np.concatenate([part.is_seen for part in parts.values()]),
        np.concatenate([part.rows.as_of for part in parts.values()]),
        np.concatenate([exposure_strata(part.rows.X, part.rows.names) for part in parts.values()]),
    )
    ends = np.cumsum([len(part.rows) for part in parts.values()])[:-1]
    return {
        bucket: replace(
            part, rows=replace(part.rows, weight=mine).rows(part.is_seen), is_seen=part.is_seen[part.is_seen]
        )
        for (bucket, part), mine in zip(parts.items(), np.split(weight, ends), strict=True)
    }


@dataclass(frozen=True)
class _Part:
    """Rows of one bucket, whose outcome was seen, how many contacts it has and of how many of them the rows are."""

    rows: TrainingSet
    is_seen: NDArray[np.bool_]
    seen: int
    taken: int


def closed_sends(lake: Lake, as_of: int, n_jobs: int = 1, *, seq: int | None = None) -> Sends:
    """Every send older than 24 h at ``as_of`` with whether a person answered within 24 h, in time order.

    Only events up to place ``seq`` of the log enter; default the place that the lake reaches.
    """
    parts = map_buckets(_SendsOfBucket(as_of, lake.watermark if seq is None else seq), lake, n_jobs)
    columns = [np.concatenate([getattr(part, name) for part in parts]) for name in Sends.__dataclass_fields__]
    sends = Sends(*columns)
    return sends.take(np.lexsort((sends.contact_key, sends.sent_at)))


@dataclass(frozen=True)
class _SendsOfBucket:
    as_of: int
    seq: int

    def __call__(self, lake: Lake, bucket: int) -> Sends:
        return sends_of(events_upto(lake.read_bucket(bucket, with_properties=True), self.seq), self.as_of)


def sends_of(columns: EventColumns, as_of: int) -> Sends:
    """Closed sends among ``columns``; an open or click of a person answers the send with its ``ref``.

    Propensities are those that the sends logged (property ``hour_propensity``); NaN where none was, or none was read.
    """
    window = ANSWER_WINDOW_HOURS * HOUR_MICROS
    columns = columns.take(columns.received_at <= as_of)
    sent = columns.take(columns.of_kind(EMAIL_SENT) & (columns.occurred_at + window <= as_of))
    is_human = columns.human_ppm >= HUMAN_PPM
    answers = columns.take(columns.of_kind(EMAIL_OPENED, EMAIL_CLICKED) & is_human & (columns.ref != 0))
    delays = np.full(len(sent), window + 1, dtype=np.int64)
    if len(sent) and len(answers):
        order = np.argsort(sent.ref, kind="stable")
        place = np.minimum(np.searchsorted(sent.ref[order], answers.ref), len(sent) - 1)
        send = order[place]
        delay = answers.occurred_at - sent.occurred_at[send]
        is_answer = (sent.ref[send] == answers.ref) & (sent.contact_key[send] == answers.contact_key)
        in_time = is_answer & (delay >= 0) & (delay <= window)
        np.minimum.at(delays, send[in_time], delay[in_time])
    answered = delays <= window
    hour = sent.hour_of_week.astype(np.int64) % HOURS
    delay_hours = np.where(answered, delays / HOUR_MICROS, np.nan)
    return Sends(sent.contact_key, sent.occurred_at, hour, answered, _numbers(sent, "hour_propensity"), delay_hours)


def _numbers(columns: EventColumns, name: str) -> Array:
    """The number that each event's property ``name`` holds; NaN where it holds none."""
    numbers = np.full(len(columns), np.nan)
    told = columns.properties
    if told is not None and len(told.name):
        at = np.flatnonzero(told.name == hash_ref(name))
        numbers[np.searchsorted(told.start, at, side="right") - 1] = told.number[at]
    return numbers


def vectors_of(
    lake: Lake, views: ViewSet, contacts: Ints, as_of: int, n_jobs: int = 1, *, seq: int | None = None
) -> Array:
    """Vectors of ``contacts`` at one instant, in their order."""
    spine = pd.DataFrame({"contact_key": contacts, "as_of": np.full(len(contacts), as_of, dtype=np.int64)})
    return historical_features(lake, spine, views, n_jobs, seq=seq).X
