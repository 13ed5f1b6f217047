"""Live counts of declared outcomes: whom each asks about now, what came of the last closed window, is it enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from features.events import DAY_MICROS
from features.labels import known_since, label, observed
from features.lake import Lake
from features.offline import map_buckets
from features.snapshots import events_upto
from features.views import DEFAULT_VIEWS, ViewSet
from training.history import LogSpan, log_span, longest_horizon_days, usual_horizon_days
from training.outcomes import LEAST_CONTACTS, LEAST_OF_EACH, Declaration, Definition


@dataclass(frozen=True)
class Counts:
    """Contacts of a declared outcome, as known at an instant."""

    #: Days the outcome is awaited; estimated now, if it is declared so.
    horizon_days: int | None
    #: Contacts in the population now.
    population: int
    #: Contacts that were in it one horizon ago, and what is known of each by now.
    closed: int
    with_outcome: int
    without_outcome: int
    #: Those who got too few mails to show it.
    censored: int
    #: Days that the log covers.
    history_days: int
    trainable: bool
    #: Whether it can be trained, and what is missing.
    says: str


def counts(lake: Lake, declaration: Declaration, as_of: int, n_jobs: int = 1) -> Counts:
    """`counts_of` one declaration."""
    return counts_of(lake, [declaration], as_of, n_jobs)[0]


def counts_of(lake: Lake, declarations: Sequence[Declaration], as_of: int, n_jobs: int = 1) -> list[Counts]:
    """Counts of each declaration against what a personal score takes, in one pass over the lake.

    Parameters
    ----------
    lake : Lake
        As far as it reaches; sync it first where the newest events matter.
    declarations : sequence of Declaration
    as_of : int
        Microseconds since 1970 UTC.
    n_jobs : int
        Buckets worked on at a time.
    """
    if not declarations:
        return []
    seq = lake.watermark
    try:
        span = log_span(lake, as_of, n_jobs, seq=seq)
    except LookupError as error:
        return [Counts(one.within_days, 0, 0, 0, 0, 0, 0, False, f"not yet: {error}") for one in declarations]
    definitions: dict[int, Definition] = {}
    broken: dict[int, str] = {}
    for place, one in enumerate(declarations):
        try:
            definitions[place] = one.definition(one.within_days or usual_horizon_days(span, as_of))
        except ValueError as error:
            broken[place] = str(error)
    asked = tuple(definitions.values())
    parts = map_buckets(_CountsOfBucket(_views(asked), asked, as_of, seq), lake, n_jobs)
    found = iter(np.sum(parts, axis=0).astype(int).tolist())
    return [
        _counts(definitions[place], span, as_of, *next(found))
        if place in definitions
        else Counts(one.within_days, 0, 0, 0, 0, 0, (as_of - span.first) // DAY_MICROS, False, f"no: {broken[place]}")
        for place, one in enumerate(declarations)
    ]


def _views(asked: Sequence[Definition]) -> ViewSet:
    """The views that the populations look at, and no other."""
    columns = {bound[0] for one in asked for bounds in one.population.alternatives for bound in bounds}
    used = tuple(view for view in DEFAULT_VIEWS.views if columns & set(view.columns))
    return ViewSet("populations", used or DEFAULT_VIEWS.views[:1])


def _counts(
    asked: Definition, span: LogSpan, as_of: int, now: int, yes: int, no: int, censored: int, events: int
) -> Counts:
    history = as_of - span.first
    longest = longest_horizon_days(history)
    missing = []
    if asked.horizon_days > longest:
        missing.append(
            f"a horizon of {asked.horizon_days} days takes two of them and a burn-in, and the log has "
            f"{history // DAY_MICROS} days: import a longer history or declare at most {longest} days"
        )
    if not events:
        missing.append(f"the log has no event {' or '.join(asked.outcome.events)}: see to its spelling, or send it")
    least = ((LEAST_CONTACTS, "contacts", yes + no), (LEAST_OF_EACH, "with the outcome", yes),
             (LEAST_OF_EACH, "without it", no))  # fmt: skip
    short = [f"{have} of {wanted} {what}" for wanted, what, have in least if have < wanted]
    if short:
        missing.append(
            f"the last closed window has {', '.join(short)}: widen the population, change within_days, or wait"
        )
    says = f"can be trained: {yes:,} contacts with the outcome and {no:,} without it in the last closed window"
    if missing:
        says = f"not yet: {'; '.join(missing)}"
    if censored:
        says += f" ({censored:,} more got too few mails to show it)"
    return Counts(
        asked.horizon_days, now, yes + no + censored, yes, no, censored, history // DAY_MICROS, not missing, says
    )


@dataclass(frozen=True)
class _CountsOfBucket:
    views: ViewSet
    asked: tuple[Definition, ...]
    as_of: int
    seq: int

    def __call__(self, lake: Lake, bucket: int) -> NDArray[np.float64]:
        """Row per outcome: in the population now; with the outcome, without, censored one horizon ago; its events."""
        from features.kernel import sweep  # numba: loaded where it is used

        reads = self.views.needs_properties or any(one.outcome.needs_properties for one in self.asked)
        columns = events_upto(lake.read_bucket(bucket, reads), self.seq)
        contacts = np.unique(columns.contact_key)
        since = known_since(columns, contacts)
        found = np.zeros((len(self.asked), 5))
        moments = {self.as_of} | {self.as_of - one.horizon_days * DAY_MICROS for one in self.asked}
        for moment in moments if len(contacts) else ():
            keys = contacts[since <= moment]
            at = np.full(len(keys), moment, dtype=np.int64)
            X = sweep(columns, keys, at, self.views)
            for row, one in zip(found, self.asked, strict=True):
                mine = one.population.contains(X, self.views.names)
                if moment == self.as_of:
                    row[0], row[4] = mine.sum(), columns.of_kind(*one.outcome.events).sum()
                if moment == self.as_of - one.horizon_days * DAY_MICROS:
                    y = label(one.outcome, columns, keys[mine], at[mine], one.horizon_days)
                    is_seen = observed(one.outcome, columns, keys[mine], at[mine], one.horizon_days)
                    row[1:4] = (y[is_seen] == 1).sum(), (y[is_seen] == 0).sum(), (~is_seen).sum()
        return found
