"""Is the feature store well? Freshness, missing shares, drift from what a model knew, replay of served vectors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv, chdtri, kolmogi, kolmogorov
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from features.events import EventColumns, head
from features.tables import EventRow, current

if TYPE_CHECKING:
    from features.lake import Lake
    from features.views import ViewSet

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

#: Below so many vectors on either side no drift is told: deciles of fewer are noise.
MIN_VECTORS = 100
#: The bands of PSI in common use: below the first nothing happened, from the second on a model is looked at.
WATCH_PSI, SHIFTED_PSI = 0.1, 0.25
#: Chance that all features of a set together give one false alarm (shared out among them evenly, after Bonferroni).
ALPHA = 0.001
#: Vectors of a sample: chance then moves PSI by 0.001, and a sweep of them takes a part of a second.
SAMPLE_VECTORS = 20_000
#: Added to the count of each bin, so that an empty one has a finite logarithm (Krichevsky and Trofimov, 1981).
SMOOTHING = 0.5
#: Rows after the watermark that are looked through for one that tells since when the lake is behind.
LOOK_AHEAD = 10_000
#: Events that a replay holds at a time, each vector with its own copy of its contact's.
REPLAY_EVENTS = 2_000_000
#: Mismatches of which the values are told.
EXAMPLES = 10


# --- Freshness ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Freshness:
    """How far the lake is behind the log, and the log's clock beside ours."""

    head: int
    watermark: int
    #: Places of the log that the lake has not reached; below 0 if it reaches beyond: it is another log's.
    events_behind: int
    #: Since the oldest of those was received; 0 if there is none, None if only imported history was found.
    seconds_behind: float | None
    #: Since the newest event was received; None for a log without any.
    newest_event_age_seconds: float | None
    #: By how much the log's newest event lies ahead of our clock: above 0, a clock ran ahead or ours is behind.
    clock_ahead_seconds: float


def freshness(session: Session, lake: Lake, *, now: int) -> Freshness:
    """Where log and lake stand at ``now`` (microseconds since 1970 UTC)."""
    watermark = lake.watermark  # before the log: another may bring the lake up meanwhile
    at, clock = head(session), current(session, "event_clock")
    waiting: float | None = 0.0
    if at > watermark:
        # Imported history says when it occurred, not when it came: it cannot tell since when it has waited.
        ahead = select(EventRow.received_at, EventRow.is_imported).where(EventRow.seq > watermark)
        ahead = ahead.order_by(EventRow.seq).limit(LOOK_AHEAD)
        rows = ahead.subquery()
        oldest = session.scalar(select(func.min(rows.c.received_at)).where(rows.c.is_imported.is_(False)))
        waiting = None if oldest is None else max(0, now - oldest) / 1e6
    return Freshness(
        head=at,
        watermark=watermark,
        events_behind=at - watermark,
        seconds_behind=waiting,
        newest_event_age_seconds=max(0, now - clock) / 1e6 if clock else None,
        clock_ahead_seconds=max(0, clock - now) / 1e6,
    )


# --- Drift -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureReference:
    """One feature's distribution as counts at its percentiles; what lies beyond the 1st and 99th is not kept."""

    name: str
    missing: int
    #: The different values among the 1st to 99th percentiles (each an observed value), ascending.
    grid: tuple[float, ...]
    #: Values below each of them, and values up to it: with both an atom is exact.
    below: tuple[int, ...]
    upto: tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """Distributions of a set's features that later ones are held against; no contact is in it."""

    rows: int
    features: tuple[FeatureReference, ...]

    def as_json(self) -> dict[str, Any]:
        """The reference as JSON has it."""
        return {
            "rows": self.rows,
            "features": {
                one.name: {
                    "missing": one.missing,
                    "grid": list(one.grid),
                    "below": list(one.below),
                    "upto": list(one.upto),
                }
                for one in self.features
            },
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Reference:
        """The reference that `as_json` gave."""
        return cls(
            int(content["rows"]),
            tuple(
                FeatureReference(name, one["missing"], tuple(one["grid"]), tuple(one["below"]), tuple(one["upto"]))
                for name, one in content["features"].items()
            ),
        )


@dataclass(frozen=True)
class Drift:
    """How far one feature's present distribution lies from the reference; None where there are too few vectors."""

    name: str
    #: Population stability index over deciles of the reference and a bin of the missing.
    psi: float | None
    #: What chance alone would hardly exceed with this many vectors (`ALPHA`).
    psi_by_chance: float | None
    #: Greatest distance of the distribution functions, of the values that are there.
    ks: float | None
    #: The distance that chance alone would hardly exceed (`ALPHA`), and the chance of one such as ``ks``.
    ks_by_chance: float | None
    ks_p_value: float | None
    missing_share: float
    missing_share_reference: float

    @property
    def is_shifted(self) -> bool:
        """Whether a model should be looked at: PSI in its upper band, and more than chance.

        KS needs no rule of its own: PSI is Jeffreys' divergence of the bins, and that is at least 4 D² (after Pinsker)
        for a distance D of the distribution functions at an edge, so a distance of 0.25 comes with a PSI of 0.25.
        """
        return self.psi is not None and self.psi_by_chance is not None and self.psi >= max(
            SHIFTED_PSI, self.psi_by_chance
        )  # fmt: skip


def missing_shares(X: Array, names: Sequence[str]) -> dict[str, float]:
    """Share of the vectors that have no finite value, by feature; NaN of no vectors."""
    shares = (~np.isfinite(X)).mean(axis=0).tolist() if len(X) else [float("nan")] * len(names)
    return dict(zip(names, shares, strict=True))


def reference_of(X: Array, names: Sequence[str]) -> Reference:
    """The distributions of the columns of ``X``, shape ``(n, len(names))``, NaN where a value is missing.

    Examples
    --------
    >>> reference = reference_of(np.array([[0.0], [0.0], [1.0], [np.nan]]), ["orders"])
    >>> reference.features[0]
    FeatureReference(name='orders', missing=1, grid=(0.0, 1.0), below=(0, 2), upto=(2, 3))
    """
    features = []
    for name, values in zip(names, _sorted_columns(X, names), strict=True):
        n = len(values)
        ranks = -(-np.arange(1, 100) * n // 100)  # ceil(q n), in whole numbers: the inverse distribution function
        grid = np.unique(values[ranks - 1]) if n else values
        below, upto = _counts(values, grid)
        features.append(
            FeatureReference(
                name, len(X) - n, tuple(grid.tolist()), tuple(map(int, below)), tuple(map(int, upto))
            )
        )  # fmt: skip
    return Reference(len(X), tuple(features))


def drift(reference: Reference, X: Array, names: Sequence[str]) -> list[Drift]:
    """Each feature's PSI, KS and missing share against ``reference``, as far as `MIN_VECTORS` allow.

    PSI: bins are cut at the deciles of the reference's values; a value that holds two deciles or more (such as 0) is
    a bin of its own, and the missing are one. With shares ``p`` and ``q`` of the bins, each count raised by ½,
    ``PSI = Σ (q - p) ln(q / p)``. Where nothing changed, ``PSI / (1/n + 1/m)`` is about χ² with one degree less than
    there are bins that anything fell into; its quantile says what chance would do.

    KS: taken at the reference's percentiles and just below them. Between two of these the distribution functions can
    lie further apart by 0.01 at most, the share of the reference there; values that hold more of it are all among
    them. p-values are Kolmogorov's limit; for values with ties they err on the side of no alarm.

    Parameters
    ----------
    reference : Reference
    X : ndarray, shape (n, len(names))
        Vectors of the same population now; rows should be different contacts (repeats make chance look smaller).
    names : sequence of str
        Every one must be a feature of the reference.

    Raises
    ------
    LookupError
        If the reference lacks a feature.

    References
    ----------
    Siddiqi (2006), "Credit Risk Scorecards": PSI and its bands of 0.1 and 0.25. Yurdakul (2018), "Statistical
    Properties of Population Stability Index": its distribution where nothing changed. Smirnov (1948), "Table for
    estimating the goodness of fit of empirical distributions".

    Examples
    --------
    Half of the reference is 0 and half 1, 1,000 each; now a quarter is 0. By hand: the bins that hold anything are {0}
    and {1}, (0.75 - 0.5) ln(0.75 / 0.5) + (0.25 - 0.5) ln(0.25 / 0.5) = 0.2747; KS is 0.25.

    >>> then, now = np.repeat([0.0, 1.0], 1000)[:, None], np.repeat([0.0, 1.0, 1.0, 1.0], 500)[:, None]
    >>> found = drift(reference_of(then, ["bought"]), now, ["bought"])[0]
    >>> round(found.psi, 3), found.ks, found.is_shifted
    (0.274, 0.25, True)
    """
    of_name = {one.name: one for one in reference.features}
    lacking = [name for name in names if name not in of_name]
    if lacking:
        raise LookupError(
            f"the reference has no feature {lacking[0]!r}; it is another view set's: train the model again"
        )
    alpha = ALPHA / max(1, len(names))
    enough = min(reference.rows, len(X)) >= MIN_VECTORS
    columns = _sorted_columns(X, names) if enough else [np.empty(0)] * len(names)
    missing = missing_shares(X, names)
    return [
        _drift(of_name[name], reference.rows, values, len(X), missing[name], alpha, enough)
        for name, values in zip(names, columns, strict=True)
    ]


def _drift(
    then: FeatureReference, rows: int, values: Array, n: int, missing: float, alpha: float, enough: bool
) -> Drift:
    missing_then = then.missing / rows if rows else float("nan")
    if not enough:
        return Drift(then.name, None, None, None, None, None, missing, missing_then)
    grid = np.array(then.grid)
    below_then, upto_then = np.array(then.below, dtype=np.int64), np.array(then.upto, dtype=np.int64)
    below, upto = _counts(values, grid)
    present_then, present = rows - then.missing, len(values)

    cuts_then, cuts = _at_deciles(below_then, upto_then, below, upto, present_then)
    bins_then = np.append(np.diff(cuts_then, prepend=0, append=present_then), then.missing)
    bins = np.append(np.diff(cuts, prepend=0, append=present), n - present)
    psi, used = _psi(bins_then, bins)
    psi_by_chance = float(chdtri(max(1, used - 1), alpha)) * (1 / rows + 1 / n)

    ks = ks_by_chance = p_value = None
    if min(present_then, present) >= MIN_VECTORS:
        ks = float(
            max(
                np.abs(below_then / present_then - below / present).max(),
                np.abs(upto_then / present_then - upto / present).max(),
            )
        )
        root = float(np.sqrt(present_then * present / (present_then + present)))
        ks_by_chance, p_value = float(kolmogi(alpha)) / root, float(kolmogorov(root * ks))
    return Drift(then.name, psi, psi_by_chance, ks, ks_by_chance, p_value, missing, missing_then)


def _sorted_columns(X: Array, names: Sequence[str]) -> list[Array]:
    if X.ndim != 2 or X.shape[1] != len(names):
        raise ValueError(f"X has shape {X.shape}, {len(names)} names were given; pass one name a column")
    return [np.sort(column[np.isfinite(column)]) for column in X.T]


def _counts(values: Array, grid: Array) -> tuple[Ints, Ints]:
    """How many of the sorted ``values`` lie below each point of ``grid``, and how many up to it."""
    return np.searchsorted(values, grid, side="left"), np.searchsorted(values, grid, side="right")


def _at_deciles(below_then: Ints, upto_then: Ints, below: Ints, upto: Ints, present_then: int) -> tuple[Ints, Ints]:
    """Values, then and now, up to each cut: the reference's deciles, and just below those that come twice."""
    ranks = -(-np.arange(1, 10) * present_then // 10)
    places, times = np.unique(np.searchsorted(upto_then, ranks), return_counts=True)
    if not present_then:
        places = places[:0]
    cuts_then: list[int] = []
    cuts: list[int] = []
    for place, repeats in zip(places, times, strict=False):
        if repeats > 1:
            cuts_then.append(int(below_then[place]))
            cuts.append(int(below[place]))
        cuts_then.append(int(upto_then[place]))
        cuts.append(int(upto[place]))
    return np.array(cuts_then, dtype=np.int64), np.array(cuts, dtype=np.int64)


def _psi(then: Ints, now: Ints) -> tuple[float, int]:
    """PSI of the counts of the bins, and in how many of them anything lies."""
    used = (then + now) > 0
    p = (then[used] + SMOOTHING) / (then[used] + SMOOTHING).sum()
    q = (now[used] + SMOOTHING) / (now[used] + SMOOTHING).sum()
    return float(((q - p) * np.log(q / p)).sum()), int(used.sum())


def sample_vectors(
    lake: Lake,
    views: ViewSet,
    as_of: int,
    belongs: Callable[[Array], npt.NDArray[np.bool_]],
    most: int = SAMPLE_VECTORS,
) -> Array:
    """Vectors at ``as_of`` of contacts with an event known then, about ``most`` of those that ``belongs`` picks.

    Contacts lie in buckets by a hash, so a few whole buckets (and a fixed shuffle within them) are a fair sample that
    costs no reading of the rest.
    """
    from features.kernel import sweep  # numba: loaded where it is used

    parts: list[Array] = [np.empty((0, len(views.names)))]
    for bucket in range(lake.buckets):
        columns = lake.read_bucket(bucket, with_properties=views.needs_properties)
        known = (columns.occurred_at < as_of) & (columns.received_at <= as_of)
        contacts = np.random.default_rng(bucket).permutation(np.unique(columns.contact_key[known]))
        for start in range(0, len(contacts), most):
            chunk = contacts[start : start + most]
            X = sweep(columns, chunk, np.full(len(chunk), as_of, dtype=np.int64), views)
            parts.append(X[belongs(X)])
            if sum(map(len, parts)) >= most:
                return np.concatenate(parts)[:most]
    return np.concatenate(parts)


# --- Replay ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ServedVectors:
    """Vectors that requests were answered from, with all that is needed to compute them again; shape (n,) each."""

    contact_key: Ints
    #: Microseconds since 1970 UTC.
    as_of: Ints
    #: Head of the log that the vector saw.
    seq: Ints
    #: Version of the view set.
    version: Sequence[str]
    #: float64, little-endian, in the order of the set's columns.
    vector: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.vector)


@dataclass(frozen=True)
class Mismatch:
    """A value that was served and another one that the lake gives."""

    feature: str
    as_of: int
    seq: int
    served: float
    recomputed: float


@dataclass(frozen=True)
class Replay:
    """What came of computing served vectors again."""

    compared: int
    mismatched: int
    #: Mismatches by feature; a vector of another length than the set's counts under ``(length)``.
    by_feature: dict[str, int]
    #: Vectors that could not be compared, by why.
    skipped: dict[str, int]
    examples: tuple[Mismatch, ...] = ()

    @property
    def rate(self) -> float | None:
        """Share of the compared vectors that differ; None without any."""
        return self.mismatched / self.compared if self.compared else None

    def interval(self, level: float = 0.95) -> tuple[float, float] | None:
        """Exact interval of the rate, for vectors that differ independently of one another; None without any.

        References
        ----------
        Clopper and Pearson (1934), "The use of confidence or fiducial limits illustrated in the case of the binomial".

        Examples
        --------
        Of none in n, the upper end is 1 - 0.025^(1/n):

        >>> low, high = Replay(10_000, 0, {}, {}).interval()
        >>> low, round(high, 6)
        (0.0, 0.000369)
        """
        n, k, tail = self.compared, self.mismatched, (1 - level) / 2
        if n == 0:
            return None
        low = float(betaincinv(k, n - k + 1, tail)) if k else 0.0
        high = float(betaincinv(k + 1, n - k, 1 - tail)) if k < n else 1.0
        return low, high


def replay(
    lake: Lake,
    served: ServedVectors,
    view_sets: Mapping[str, ViewSet],
    *,
    erased: Collection[int] = (),
    n_jobs: int = 1,
) -> Replay:
    """The served vectors computed again from the lake, each at its instant from the log as far as it saw it.

    Values must agree to the bit (two missing ones agree). Each vector is swept over its own copy of its contact's
    events up to its ``seq``, so any number of different instants and places of the log go through one call of the
    kernel; a bucket is read once.

    Parameters
    ----------
    lake : Lake
        Vectors that saw more of the log than it holds are left out and counted.
    served : ServedVectors
    view_sets : mapping of str to ViewSet
        By version; vectors of other versions are left out and counted.
    erased : collection of int
        Contacts whose events are gone: their vectors are left out and counted.
    n_jobs : int
        Buckets worked on at a time.
    """
    from features.offline import map_tasks

    watermark = lake.watermark
    gone = np.isin(served.contact_key, np.fromiter(erased, dtype=np.int64, count=len(erased)))
    unknown = np.array([version not in view_sets for version in served.version], dtype=bool) & ~gone
    ahead = (served.seq > watermark) & ~gone & ~unknown
    skipped = {
        "of erased contacts": int(gone.sum()),
        "of unknown view-set versions": int(unknown.sum()),
        "beyond the lake": int(ahead.sum()),
    }
    versions, bucket_of = np.array(served.version, dtype=object), lake.bucket_of(served.contact_key)
    compared = ~(gone | unknown | ahead)
    tasks = []
    for bucket in np.unique(bucket_of[compared]).tolist():
        mine = np.flatnonzero(compared & (bucket_of == bucket))
        mine = mine[np.lexsort((served.as_of[mine], served.contact_key[mine]))]
        parts = {
            version: ServedVectors(
                served.contact_key[rows],
                served.as_of[rows],
                served.seq[rows],
                [version] * len(rows),
                [served.vector[row] for row in rows.tolist()],
            )
            for version in sorted(set(versions[mine].tolist()))
            if len(rows := mine[versions[mine] == version])
        }
        tasks.append((bucket, parts))
    mismatched, by_feature, examples = 0, dict[str, int](), list[Mismatch]()
    for differing, features, found in map_tasks(_ReplayBucket(dict(view_sets)), lake, tasks, n_jobs, watermark):
        mismatched += differing
        examples += found[: EXAMPLES - len(examples)]
        for name, count in features.items():
            by_feature[name] = by_feature.get(name, 0) + count
    by_feature = dict(sorted(by_feature.items(), key=lambda item: (-item[1], item[0])))
    return Replay(
        int(compared.sum()), mismatched, by_feature, {why: n for why, n in skipped.items() if n}, tuple(examples)
    )


@dataclass(frozen=True)
class _ReplayBucket:
    view_sets: Mapping[str, ViewSet]

    def __call__(
        self, lake: Lake, bucket: int, parts: Mapping[str, ServedVectors]
    ) -> tuple[int, dict[str, int], list[Mismatch]]:
        """Mismatched vectors, mismatches by feature, and some of them."""
        with_properties = any(self.view_sets[version].needs_properties for version in parts)
        events = lake.read_bucket(bucket, with_properties=with_properties)
        mismatched, by_feature, examples = 0, dict[str, int](), list[Mismatch]()
        for version, served in parts.items():
            views = self.view_sets[version]
            sound = np.array([len(vector) == 8 * len(views.names) for vector in served.vector], dtype=bool)
            if not sound.all():
                by_feature["(length)"] = by_feature.get("(length)", 0) + int((~sound).sum())
                mismatched += int((~sound).sum())
            rows = np.flatnonzero(sound)
            for some in _in_portions(events, served, rows):
                then = np.frombuffer(b"".join(served.vector[row] for row in some), dtype="<f8")
                then = then.reshape(len(some), len(views.names))
                now = _swept_again(events, served, some, views)
                differs = (then.view(np.int64) != now.view(np.int64)) & ~(np.isnan(then) & np.isnan(now))
                mismatched += int(differs.any(axis=1).sum())
                for row, column in np.argwhere(differs)[: EXAMPLES - len(examples)].tolist():
                    at = int(some[row])
                    examples.append(
                        Mismatch(
                            views.names[column],
                            int(served.as_of[at]),
                            int(served.seq[at]),
                            float(then[row, column]),
                            float(now[row, column]),
                        )
                    )
                for column in np.flatnonzero(differs.any(axis=0)).tolist():
                    name = views.names[column]
                    by_feature[name] = by_feature.get(name, 0) + int(differs[:, column].sum())
        return mismatched, by_feature, examples


def _in_portions(events: EventColumns, served: ServedVectors, rows: Ints) -> list[Ints]:
    """``rows`` cut where their contacts' events, one copy a vector, would be more than fit."""
    first, last = _ranges(events, served.contact_key[rows])
    portion = np.cumsum(last - first) // REPLAY_EVENTS
    return [part for part in np.split(rows, np.flatnonzero(np.diff(portion)) + 1) if len(part)]


def _swept_again(events: EventColumns, served: ServedVectors, rows: Ints, views: ViewSet) -> Array:
    """Vectors of ``rows``, each as of a contact of its own that has the events up to its ``seq``."""
    from features.kernel import sweep  # numba: loaded where it is used

    first, last = _ranges(events, served.contact_key[rows])
    owner = np.repeat(np.arange(len(rows)), last - first)
    start = np.cumsum(last - first) - (last - first)
    place = np.arange(len(owner)) - start[owner] + first[owner]
    seen = events.seq[place] <= served.seq[rows][owner]
    copies = replace(events.take(place[seen]), contact_key=owner[seen].astype(np.int64))
    return sweep(copies, np.arange(len(rows)), served.as_of[rows], views)


def _ranges(events: EventColumns, keys: Ints) -> tuple[Ints, Ints]:
    return np.searchsorted(events.contact_key, keys, "left"), np.searchsorted(events.contact_key, keys, "right")
