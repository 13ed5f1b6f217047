"""What a model learns from: vectors at past instants with what happened next, and the sends with their answers."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from features.events import EventColumns
from features.labels import Outcome, label, usual_gaps_days
from features.lake import Lake
from features.offline import historical_features, map_buckets
from features.properties import hash_ref
from features.snapshots import events_upto
from features.views import ViewSet
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, EMAIL_SENT, HUMAN_PPM
from training.send_hour import ANSWER_WINDOW_HOURS, HOURS, Sends
from training.serving import Population

Array = NDArray[np.float64]
Ints = NDArray[np.int64]

DAY_MICROS = 86_400_000_000
HOUR_MICROS = DAY_MICROS // 24
#: Days between two snapshots, about; a contact's vectors a few days apart tell nearly the same story twice.
SNAPSHOT_DAYS = 14
MAX_SNAPSHOTS = 26
#: The first days of a log are not learned from: windows are still filling. At most a quarter of a short history.
BURN_IN_DAYS = 45
#: Above this many rows a training set takes only a part of the contacts, the same part each time.
MAX_ROWS = 600_000

#: Packages whose version may change a bit of a vector, an outcome or a fit.
LIBRARIES = ("kairos-mail", "numpy", "numba", "llvmlite", "scipy", "scikit-learn", "lightgbm")


@dataclass(frozen=True)
class Definition:
    """What a model of a yes-or-no outcome is asked: of whom, what, and by when."""

    outcome: Outcome
    #: On the vector, so that training, scoring and requests ask it of the same contacts.
    population: Population
    horizon_days: int
    #: What a probability of 1 would mean, for people.
    says: str

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Definition:
        """The definition that ``dataclasses.asdict`` turned into ``content``, perhaps by way of JSON."""
        return cls(
            Outcome(**content["outcome"]),
            Population.from_dict(content["population"]),
            content["horizon_days"],
            content["says"],
        )


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

    def __len__(self) -> int:
        return len(self.y)

    def rows(self, mask: NDArray[np.bool_]) -> TrainingSet:
        """The rows where ``mask`` is true."""
        return TrainingSet(
            self.X[mask], self.y[mask], self.contact_key[mask], self.as_of[mask], self.names, self.manifest
        )

    def at(self, instant: int) -> TrainingSet:
        """The rows of one instant."""
        return self.rows(self.as_of == instant)

    def closed_by(self, instant: int, horizon_days: int) -> TrainingSet:
        """The rows whose outcome was known at ``instant``."""
        return self.rows(self.as_of + horizon_days * DAY_MICROS <= instant)


def snapshot_instants(newest: int, first_event: int, horizon_days: int) -> list[int]:
    """Instants about every 14 days going back from ``newest``, oldest first.

    The step divides the horizon, so that the instant a horizon before each snapshot is a snapshot too: an earlier
    cut-off then has the same training windows behind it.
    """
    step = horizon_days * DAY_MICROS // max(1, round(horizon_days / SNAPSHOT_DAYS))
    oldest = first_event + burn_in_micros(newest - first_event)
    count = min(MAX_SNAPSHOTS, (newest - oldest) // step + 1) if newest >= oldest else 0
    return [newest - i * step for i in range(count)][::-1]


def burn_in_micros(history_micros: int) -> int:
    """First part of a history that is not learned from: 45 days, at most a quarter."""
    return min(BURN_IN_DAYS * DAY_MICROS, history_micros // 4)


def training_set(
    lake: Lake, views: ViewSet, asked: Definition, instants: Sequence[int], n_jobs: int = 1, *, seq: int | None = None
) -> TrainingSet:
    """Vectors of the population at each of ``instants``, with the outcome over the horizon after it.

    Each vector knows only what was known at its instant. The caller sees to it that the outcomes are closed: the last
    instant plus the horizon must not lie beyond what the log has seen.

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
    data = in_order([part.rows for part in parts.values()], views.names)
    seen = sum(part.seen for part in parts.values())
    manifest = {
        "view_set": f"{views.name}@{views.version}",
        "view_set_definition": views.definition(),
        "definition": asdict(asked),
        "watermark": int(seq),
        "rows": len(data),
        "instants": moments.tolist(),
        "contacts_share": sum(part.taken for part in parts.values()) / seen if seen else 1.0,
        "checksum": checksum(data.contact_key, data.as_of, data.y, data.X),
        "spine_checksum": checksum(data.contact_key, data.as_of),
        "buckets": {str(bucket): checksums(part.rows) for bucket, part in parts.items() if len(part.rows)},
        "libraries": libraries(),
    }
    return TrainingSet(data.X, data.y, data.contact_key, data.as_of, views.names, manifest)


def in_order(parts: Sequence[TrainingSet], names: tuple[str, ...]) -> TrainingSet:
    """The rows of several sets as one."""
    if not parts:
        nothing = np.empty(0, np.int64)
        return TrainingSet(np.empty((0, len(names))), np.empty(0, np.int8), nothing, nothing, names)
    X, y, keys, as_of = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("X", "y", "contact_key", "as_of")
    )
    order = np.lexsort((keys, as_of))
    return TrainingSet(X[order], y[order], keys[order], as_of[order], names)


def checksum(*arrays: NDArray[Any]) -> str:
    """SHA-256 over the bytes of ``arrays``, one after the other."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def checksums(rows: TrainingSet) -> dict[str, Any]:
    """What is remembered of a bucket's rows, which lie by (contact_key, as_of), so that they can be told again."""
    return {
        "rows": len(rows),
        "spine": checksum(rows.contact_key, rows.as_of),
        "X": checksum(rows.X),
        "y": checksum(rows.y),
    }


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

        columns = events_upto(lake.read_bucket(bucket, self.views.needs_properties), self.seq)
        contacts = np.unique(columns.contact_key)
        seen = len(contacts)
        if seen == 0:
            return None
        if seen > self.most_contacts:
            # Keys lie in a bucket by a hash, so the first of a fixed shuffle are a fair and stable part of it.
            contacts = np.sort(np.random.default_rng(bucket).permutation(contacts)[: self.most_contacts])
        keys, as_of = np.repeat(contacts, len(self.moments)), np.tile(self.moments, len(contacts))
        X = sweep(columns, keys, as_of, self.views)
        belongs = self.asked.population.contains(X, self.views.names)
        keys, as_of, X = keys[belongs], as_of[belongs], X[belongs]
        y = label(self.asked.outcome, columns, keys, as_of, self.asked.horizon_days)
        return _Part(TrainingSet(X, y, keys, as_of, self.views.names), seen, len(contacts))


@dataclass(frozen=True)
class _Part:
    """Rows of one bucket, how many contacts it has and of how many of them the rows are."""

    rows: TrainingSet
    seen: int
    taken: int


@dataclass(frozen=True)
class LogSpan:
    """First event (microseconds since 1970 UTC) and the usual gaps, in days, of buyers who came back."""

    first: int
    gaps_days: Array


def log_span(lake: Lake, as_of: int, n_jobs: int = 1, *, seq: int | None = None) -> LogSpan:
    """What the log covers up to place ``seq``, as known at ``as_of`` (microseconds since 1970 UTC).

    Raises
    ------
    LookupError
        If the log is empty.
    """
    parts = [
        part
        for part in map_buckets(_SpanOfBucket(as_of, lake.watermark if seq is None else seq), lake, n_jobs)
        if part is not None
    ]
    if not parts:
        raise LookupError("the lake holds no event before that instant; import history or sync the lake first")
    return LogSpan(min(part[0] for part in parts), np.concatenate([part[1] for part in parts]))


@dataclass(frozen=True)
class _SpanOfBucket:
    as_of: int
    seq: int

    def __call__(self, lake: Lake, bucket: int) -> tuple[int, Array] | None:
        columns = events_upto(lake.read_bucket(bucket), self.seq)
        columns = columns.take((columns.occurred_at < self.as_of) & (columns.received_at <= self.as_of))
        if len(columns) == 0:
            return None
        return int(columns.occurred_at.min()), usual_gaps_days(columns, self.as_of)


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
