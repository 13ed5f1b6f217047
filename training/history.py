"""What the log covers: since when, how often buyers come back, and how long an outcome it can tell of."""

from __future__ import annotations

from dataclasses import dataclass

from features.events import DAY_MICROS
from features.labels import CHURN_HORIZON_BOUNDS, Gaps, churn_horizon_days, order_gaps
from features.lake import Lake
from features.offline import map_buckets
from features.snapshots import events_upto

#: The first days of a log are not learned from: windows are still filling. At most a quarter of a short history.
BURN_IN_DAYS = 45


def burn_in_micros(history_micros: int) -> int:
    """First part of a history that is not learned from: 45 days, at most a quarter."""
    return min(BURN_IN_DAYS * DAY_MICROS, history_micros // 4)


def longest_horizon_days(history_micros: int) -> int:
    """Days of the longest outcome that a history can judge: two horizons and the burn-in must fit into it."""
    return max(0, (history_micros - burn_in_micros(history_micros)) // (2 * DAY_MICROS))


def usual_horizon_days(span: LogSpan, until: int) -> int:
    """Three usual gaps, at most a third of the history: windows to learn from are left before the one that judges."""
    history = until - span.first
    bearable = (history - burn_in_micros(history)) // (3 * DAY_MICROS)
    return min(churn_horizon_days(span.gaps), max(CHURN_HORIZON_BOUNDS[0], bearable))


@dataclass(frozen=True)
class LogSpan:
    """First event (microseconds since 1970 UTC) and the gaps between the order days of buyers who came back."""

    first: int
    gaps: Gaps


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
    return LogSpan(min(part[0] for part in parts), Gaps.concat([part[1] for part in parts]))


@dataclass(frozen=True)
class _SpanOfBucket:
    as_of: int
    seq: int

    def __call__(self, lake: Lake, bucket: int) -> tuple[int, Gaps] | None:
        columns = events_upto(lake.read_bucket(bucket), self.seq)
        columns = columns.take((columns.occurred_at < self.as_of) & (columns.received_at <= self.as_of))
        if len(columns) == 0:
            return None
        return int(columns.occurred_at.min()), order_gaps(columns, self.as_of)
