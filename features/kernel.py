"""The one sweep that evaluates every windowed feature at any instants, for one contact or for all.

The events of a contact lie sorted by time. For its instants, in ascending order, the sweep moves one pointer per
window edge forward; counts and sums are differences of integer prefix sums, so a value depends on the events in its
window alone and never on which other instants were asked about. Training, batch scoring and the request path call
this same function, so they cannot drift apart.

Known time: an event enters the vector at ``as_of`` if ``occurred_at < as_of`` and ``received_at <= as_of``. A contact
for which the second condition ever bites (an event that had happened at some instant but was not yet received) is
swept once per instant over the events known then; all others are swept once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
import numpy.typing as npt
from numba import njit

from features.events import DAY_MICROS, HOUR_MICROS, EventColumns
from features.properties import PropertyColumns, hash_ref, value_text
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, EMAIL_SENT, HUMAN_PPM

if TYPE_CHECKING:
    from features.views import FeatureView, Stream, ViewSet

MINUTE_MICROS = 60_000_000
MINUTES_PER_DAY = 1440.0

# What an operation writes. `_values` and `_derive` below give each its meaning.
COUNT, SUM, MEAN, RECENCY, FIRST_SEEN, DAYS, GAP_MEAN, GAP_STD, OVERDUE, HOURS, WEEKDAYS = range(11)
RATE, TREND = range(2)
# What goes over the stream's events by itself, in `_scan`.
DISTINCT, DECAYED, DECAYED_VALUE, TRAIT, TRAIT_IS, TRAIT_RECENCY = range(6)

_IN_WINDOW = {
    "count": COUNT,
    "sum": SUM,
    "mean": MEAN,
    "recency": RECENCY,
    "first_seen": FIRST_SEEN,
    "days": DAYS,
    "gap_mean": GAP_MEAN,
    "gap_std": GAP_STD,
    "overdue": OVERDUE,
    "hour_histogram": HOURS,
    "weekday_histogram": WEEKDAYS,
}
_SCANNED = {"distinct": DISTINCT, "decayed": DECAYED, "trait": TRAIT, "trait_recency": TRAIT_RECENCY}
_NEEDS_VALUES = {SUM, MEAN}
_NEEDS_DAYS = {DAYS, GAP_MEAN, GAP_STD, OVERDUE}
_NEEDS_HOURS = {HOURS, WEEKDAYS}
_NAN_WITHOUT_EVENTS = {MEAN, RECENCY, FIRST_SEEN, GAP_MEAN, GAP_STD, OVERDUE}

#: Bins of the histograms of a group: 24 hours, then 7 weekdays.
HISTOGRAM_BINS = 24 + 7

#: Up to so many events of a stream, comparing each with every window's edge beats a search for the edges.
FEW_EVENTS = 64

#: Events looked back at for what a contact's answers answer, per event of theirs, before a hash table is made.
LOOKS_BACK = 32

#: One bit of a 64-bit mask per stream; the last bit stays free, as that of no stream.
MAX_STREAMS = 63


@dataclass(frozen=True)
class Program:
    """A view set as flat arrays: streams → groups (a stream's windows) → operations, and what is derived from them."""

    streams: tuple[Stream, ...]
    #: Per stream: first group, end of groups, needs values, needs days, needs hours, answers within µs (0: any event),
    #: first condition, end of conditions, first scan, end of scans, answers by the hour of their send.
    stream_table: npt.NDArray[np.int64]
    #: Per group: window in µs (-1: everything), first operation, end of operations, has a histogram.
    group_table: npt.NDArray[np.int64]
    #: Per operation: code, column, bins. Columns from ``n_columns`` on are kept aside for what is derived.
    operation_table: npt.NDArray[np.int64]
    #: Per scan: code, column, window in µs (-1: everything), hash of what it is of (0: ``ref``), hash of a value; and
    #: the rate of decay per µs.
    scan_table: npt.NDArray[np.int64]
    scan_rates: npt.NDArray[np.float64]
    #: Per condition: hash of the property, first value, end of values (none: bounds); the values' hashes; the bounds.
    where_table: npt.NDArray[np.int64]
    where_values: npt.NDArray[np.int64]
    where_bounds: npt.NDArray[np.float64]
    #: Per derived column: code, column, first operand, second operand; and (prior mean, prior strength).
    derived_table: npt.NDArray[np.int64]
    derived_priors: npt.NDArray[np.float64]
    #: The vector without events, but for what is derived.
    blank: npt.NDArray[np.float64]
    n_columns: int
    n_hidden: int
    needs_properties: bool
    #: By the names behind an event's codes: which streams an event of that kind is in.
    tables_of_kinds: dict[tuple[str, ...], tuple[Any, ...]] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def columns_read(self) -> frozenset[str]:
        """Columns of the events that the kernel looks at, beside those by which they lie in order and are known."""
        stream, scan = self.stream_table, self.scan_table
        codes, of = scan[:, 0], scan[:, 3]
        needs = {
            "value_minor": stream[:, 2].any() or (codes == DECAYED_VALUE).any(),
            "hour_of_week": stream[:, 4].any(),
            "human_ppm": any(one.human_only for one in self.streams),
            "is_repeat": any(one.human_only for one in self.streams),
            "ref": stream[:, 5].any() or ((codes == DISTINCT) & (of == 0)).any(),
            "traits": self.needs_properties or np.isin(codes, (TRAIT, TRAIT_IS, TRAIT_RECENCY)).any()
            or (stream[:, 6] < stream[:, 7]).any() or ((codes == DISTINCT) & (of != 0)).any(),
        }  # fmt: skip
        return frozenset(name for name, is_needed in needs.items() if is_needed)

    def kind_tables(self, kinds: tuple[str, ...]) -> tuple[Any, ...]:
        """Per kind code: stream bits for people and for machines, numbers of its streams, is it a send."""
        tables = self.tables_of_kinds.get(kinds)
        if tables is None:
            human = np.zeros(len(kinds), dtype=np.uint64)
            machine = np.zeros(len(kinds), dtype=np.uint64)
            for bit, stream in enumerate(self.streams):
                for code, kind in enumerate(kinds):
                    if kind in stream.every_kind:
                        human[code] |= np.uint64(1 << bit)
                        if not (stream.human_only and kind in (EMAIL_OPENED, EMAIL_CLICKED)):
                            machine[code] |= np.uint64(1 << bit)
            members = [
                [s for s in range(len(self.streams)) if human[code] >> np.uint64(s) & np.uint64(1)]
                for code in range(len(kinds))
            ]
            # Rows are filled up with a stream that takes nothing: loops of one length need no branch.
            streams = np.full((len(kinds), max(map(len, members), default=0)), len(self.streams), dtype=np.int64)
            for code, numbers in enumerate(members):
                streams[code, : len(numbers)] = numbers
            tables = (human, machine, streams, np.array([kind == EMAIL_SENT for kind in kinds], dtype=bool))
            if len(self.tables_of_kinds) >= 256:  # custom names come in endless combinations
                self.tables_of_kinds.clear()
            self.tables_of_kinds[kinds] = tables
        return tables


def compile_views(view_set: ViewSet) -> Program:
    """The arrays that the kernel runs for ``view_set``.

    Raises
    ------
    ValueError
        If the set looks at more than 64 different streams.
    """
    operations: dict[tuple[Stream, int, int, int], int] = {}  # (stream, window, code, bins) → column
    scans: dict[tuple[Stream, int, int, str, str, float], int] = {}  # (…, window, code, of, value, half-life) → column
    derived: list[tuple[int, int, tuple[Stream, int], tuple[Stream, int], float, float]] = []
    column = 0
    for view in view_set.views:
        for window in view.windows:
            micros = -1 if window is None else window * DAY_MICROS
            measured: list[tuple[dict[Any, int], Any, int]] = []  # where to, key, columns
            if view.primitive == "rate":
                assert view.over is not None
                derived.append((RATE, column, (view.stream, micros), (view.over, micros), *_prior(view)))
                column += 1
            elif view.primitive == "trend":
                derived.append((TREND, column, (view.stream, micros), (view.stream, 2 * micros), 0.0, 0.0))
                column += 1
            elif view.primitive in _SCANNED:
                code = _SCANNED[view.primitive]
                if view.primitive == "decayed" and view.of:
                    code = DECAYED_VALUE
                texts = [value_text(value) or "" for value in view.values]
                for text in texts or [""]:
                    key = (view.stream, micros, TRAIT_IS if texts else code, view.of, text, view.half_life_days)
                    measured.append((scans, key, 1))
            else:
                bins = {"hour_histogram": view.bins, "weekday_histogram": 7}.get(view.primitive, 1)
                measured.append((operations, (view.stream, micros, _IN_WINDOW[view.primitive], bins), bins))
            for table, of, width in measured:
                if of in table:
                    raise ValueError(
                        f"view {view.name!r} measures what another view of set {view_set.name!r} measures already "
                        f"({view.primitive} of {view.stream.name!r}, {window} days); remove one"
                    )
                table[of] = column
                column += width
    n_columns = column
    for _, _, first, second, _, _ in derived:
        for stream, micros in (first, second):
            if (stream, micros, COUNT, 1) not in operations:
                operations[stream, micros, COUNT, 1] = column
                column += 1
    streams = tuple(dict.fromkeys([key[0] for key in operations] + [key[0] for key in scans]))
    if len(streams) > MAX_STREAMS:
        raise ValueError(f"view set {view_set.name!r} looks at {len(streams)} streams; the kernel takes {MAX_STREAMS}")
    stream_rows: list[list[int]] = []
    group_rows: list[list[int]] = []
    operation_rows: list[list[int]] = []
    scan_rows: list[list[int]] = []
    scan_rates: list[float] = []
    where_rows: list[list[int]] = []
    where_values: list[int] = []
    where_bounds: list[list[float]] = []
    for stream in streams:
        first_group, first_scan, first_where = len(group_rows), len(scan_rows), len(where_rows)
        codes = {code for of, _, code, _ in operations if of == stream}
        for micros in sorted({micros for of, micros, _, _ in operations if of == stream}):
            mine = [(k, out) for k, out in operations.items() if k[0] == stream and k[1] == micros]
            first_operation = len(operation_rows)
            operation_rows += [[code, out, bins] for (_, _, code, bins), out in mine]
            histograms = {code for (_, _, code, _), _ in mine} & _NEEDS_HOURS
            group_rows.append([micros, first_operation, len(operation_rows), int(bool(histograms))])
        for (of, micros, code, what, text, half_life_days), out in scans.items():
            if of == stream:
                scan_rows.append([code, out, micros, 0 if what == "ref" else hash_ref(what), hash_ref(text)])
                scan_rates.append(math.log(2) / (half_life_days * DAY_MICROS) if half_life_days else 0.0)
        for where in stream.where:
            first_value = len(where_values)
            where_values += [hash_ref(value_text(value)) for value in where.values]
            where_rows.append([hash_ref(where.name), first_value, len(where_values)])
            where_bounds.append(
                [
                    -math.inf if where.at_least is None else where.at_least,
                    math.inf if where.at_most is None else where.at_most,
                ]
            )
        stream_rows.append(
            [
                first_group,
                len(group_rows),
                int(bool(codes & _NEEDS_VALUES)),
                int(bool(codes & _NEEDS_DAYS)),
                int(bool(codes & _NEEDS_HOURS)),
                (stream.answers_within_hours or 0) * HOUR_MICROS,
                first_where,
                len(where_rows),
                first_scan,
                len(scan_rows),
                int(bool(stream.answers_within_hours) and not stream.own_hour),
            ]
        )
    blank = np.zeros(n_columns)
    for (_, _, code, _), out in operations.items():
        if code in _NAN_WITHOUT_EVENTS:
            blank[out] = np.nan
    for (_, _, code, *_), out in scans.items():
        if code in (TRAIT, TRAIT_RECENCY):
            blank[out] = np.nan
    return Program(
        streams=streams,
        stream_table=np.array(stream_rows, dtype=np.int64).reshape(-1, 11),
        group_table=np.array(group_rows, dtype=np.int64).reshape(-1, 4),
        operation_table=np.array(operation_rows, dtype=np.int64).reshape(-1, 3),
        scan_table=np.array(scan_rows, dtype=np.int64).reshape(-1, 5),
        scan_rates=np.array(scan_rates, dtype=np.float64),
        where_table=np.array(where_rows, dtype=np.int64).reshape(-1, 3),
        where_values=np.array(where_values, dtype=np.int64),
        where_bounds=np.array(where_bounds, dtype=np.float64).reshape(-1, 2),
        derived_table=np.array(
            [[code, out, operations[*a, COUNT, 1], operations[*b, COUNT, 1]] for code, out, a, b, _, _ in derived],
            dtype=np.int64,
        ).reshape(-1, 4),
        derived_priors=np.array([[mean, strength] for *_, mean, strength in derived], dtype=np.float64).reshape(-1, 2),
        blank=blank,
        n_columns=n_columns,
        n_hidden=column - n_columns,
        needs_properties=view_set.needs_properties,
    )


def _prior(view: FeatureView) -> tuple[float, float]:
    return view.prior_mean, view.prior_strength


def sweep(
    columns: EventColumns,
    keys: npt.ArrayLike,
    as_of: npt.ArrayLike,
    view_set: ViewSet,
) -> npt.NDArray[np.float64]:
    """Vector of every (contact, instant), from the events known at that instant.

    Parameters
    ----------
    columns : EventColumns
        Sorted events, of these contacts and perhaps of others.
    keys : array_like of int64, shape (n,)
        ``contact_key`` of each instant, in any order, repeats welcome. Contacts without events get the null rules.
    as_of : array_like of int64, shape (n,)
        Microseconds since 1970 UTC.
    view_set : ViewSet

    Returns
    -------
    ndarray of float64, shape (n, n_columns)
        In the order of ``keys``, columns as ``view_set.names``. The same contact, instant and events give the same
        bits, whatever else is asked in the call.

    Raises
    ------
    ValueError
        If ``keys`` and ``as_of`` differ in shape, the events are not sorted by contact and time, or the set looks at
        properties that were not read.
    """
    out = np.empty((np.size(keys), view_set.program.n_columns), dtype=np.float64)
    sweep_into(out, np.arange(len(out)), columns, keys, as_of, view_set)
    return out


def sweep_into(
    out: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    columns: EventColumns,
    keys: npt.ArrayLike,
    as_of: npt.ArrayLike,
    view_set: ViewSet,
) -> None:
    """The same vectors, written to the rows ``rows`` of ``out``: what is large need not be held twice.

    Parameters
    ----------
    out : ndarray of float64, shape (m, n_columns)
        Other rows are not touched, so that several threads may fill one array.
    rows : ndarray of int64, shape (n,)
        Row of each instant.
    columns, keys, as_of, view_set
        As of `sweep`.
    """
    program = view_set.program
    instants = np.ascontiguousarray(as_of, dtype=np.int64)
    contacts = np.ascontiguousarray(keys, dtype=np.int64)
    if contacts.ndim != 1 or contacts.shape != instants.shape:
        raise ValueError(f"keys {contacts.shape} and as_of {instants.shape} must be one-dimensional and of one length")
    if rows.shape != contacts.shape or out.shape[1] != program.n_columns:
        raise ValueError(f"rows {rows.shape} and out {out.shape} do not fit {contacts.shape} × {program.n_columns}")
    if not len(contacts):
        return
    if int(rows.min()) < 0 or int(rows.max()) >= len(out):
        raise ValueError(f"rows {int(rows.min())} to {int(rows.max())} lie outside the {len(out)} rows of out")
    order = _order(contacts, instants)
    human, machine, streams_of, is_send = program.kind_tables(columns.kinds)
    properties = columns.properties
    if program.needs_properties and len(columns) and not (properties is not None and properties.is_complete):
        raise ValueError(
            f"view set {view_set.name!r} looks at properties, which these events were read without; read them with "
            "with_properties=True"
        )
    if properties is None:
        properties = PropertyColumns.empty(len(columns))
    sorted_events = _kernel()(
        columns.contact_key,
        columns.occurred_at,
        columns.received_at,
        columns.kind,
        columns.value_minor,
        columns.hour_of_week,
        columns.human_ppm,
        columns.is_repeat,
        columns.ref,
        properties.start,
        properties.name,
        properties.value,
        properties.number,
        human,
        machine,
        streams_of,
        is_send,
        contacts,
        instants,
        order,
        rows,
        program.stream_table,
        program.group_table,
        program.operation_table,
        program.scan_table,
        program.scan_rates,
        program.where_table,
        program.where_values,
        program.where_bounds,
        program.derived_table,
        program.derived_priors,
        program.blank,
        program.n_hidden,
        out,
    )
    if not sorted_events:
        raise ValueError("the events are not sorted by (contact_key, occurred_at); call EventColumns.sorted() first")


def _order(contacts: npt.NDArray[np.int64], instants: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions by (contact, instant)."""
    n = len(contacts)
    if n == 1:
        return np.zeros(1, dtype=np.int64)
    ahead = contacts[1:] > contacts[:-1]
    if bool(np.all(ahead | ((contacts[1:] == contacts[:-1]) & (instants[1:] >= instants[:-1])))):
        return np.arange(n, dtype=np.int64)
    return np.lexsort((instants, contacts)).astype(np.int64, copy=False)


@cache
def _kernel() -> Any:
    """The compiled sweep; loaded from Numba's cache in under a second once it was compiled on this machine."""

    def array(of: Any, ndim: int = 1) -> Any:
        return numba.types.Array(of, ndim, "C", readonly=True)

    t = numba.types
    signature = t.boolean(
        array(t.int64),  # contact_key
        array(t.int64),  # occurred_at
        array(t.int64),  # received_at
        array(t.int32),  # kind
        array(t.int64),  # value_minor
        array(t.int16),  # hour_of_week
        array(t.int32),  # human_ppm
        array(t.boolean),  # is_repeat
        array(t.int64),  # ref
        array(t.int64),  # property_start
        array(t.int64),  # property_name
        array(t.int64),  # property_value
        array(t.float64),  # property_number
        array(t.uint64),  # human
        array(t.uint64),  # machine
        array(t.int64, 2),  # streams_of
        array(t.boolean),  # is_send
        array(t.int64),  # contacts
        array(t.int64),  # instants
        array(t.int64),  # order
        array(t.int64),  # target
        array(t.int64, 2),  # stream_table
        array(t.int64, 2),  # group_table
        array(t.int64, 2),  # operation_table
        array(t.int64, 2),  # scan_table
        array(t.float64),  # scan_rates
        array(t.int64, 2),  # where_table
        array(t.int64),  # where_values
        array(t.float64, 2),  # where_bounds
        array(t.int64, 2),  # derived_table
        array(t.float64, 2),  # derived_priors
        array(t.float64),  # blank
        t.int64,  # n_hidden
        t.Array(t.float64, 2, "C"),  # out
    )
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(signature, cache=True, **options)(_sweep)
    except RuntimeError:  # no folder to cache in (a read-only installation): compile in memory
        return njit(signature, **options)(_sweep)


def _sweep(
    contact_key: Any,
    occurred_at: Any,
    received_at: Any,
    kind: Any,
    value_minor: Any,
    hour_of_week: Any,
    human_ppm: Any,
    is_repeat: Any,
    ref: Any,
    property_start: Any,
    property_name: Any,
    property_value: Any,
    property_number: Any,
    human: Any,
    machine: Any,
    streams_of: Any,
    is_send: Any,
    contacts: Any,
    instants: Any,
    order: Any,
    target: Any,
    stream_table: Any,
    group_table: Any,
    operation_table: Any,
    scan_table: Any,
    scan_rates: Any,
    where_table: Any,
    where_values: Any,
    where_bounds: Any,
    derived_table: Any,
    derived_priors: Any,
    blank: Any,
    n_hidden: int,
    out: Any,
) -> bool:
    n_events = len(contact_key)
    n_instants = len(contacts)
    capacity = 256  # events of one contact
    known = np.empty(capacity, np.int64)
    mask = np.empty(capacity, np.uint64)
    send_hour = np.empty(capacity, np.int16)
    scratch = np.empty((6, capacity + 1), np.int64)
    members = np.empty((len(stream_table) + 1, capacity + 1), np.int64)
    counts = np.empty(len(stream_table) + 1, np.int64)
    by_kind = True  # no stream asks for more than the kind, and whether a person did it
    for s in range(len(stream_table)):
        by_kind &= stream_table[s, 5] == 0 and stream_table[s, 6] == stream_table[s, 7]
    histogram = np.zeros(HISTOGRAM_BINS, np.int64)
    items = np.empty((5, 4 * capacity), np.int64)  # different things: a hash table and lists for `_distinct`
    asked = 16  # instants of one contact
    ends = np.empty(asked, np.int64)
    rows = np.empty(asked, np.int64)
    before = np.empty(asked, np.int64)
    lows = np.empty(asked, np.int64)
    bounds = np.empty(asked * (1 + len(group_table)), np.int64)
    places = np.empty(asked * (1 + len(group_table)), np.int64)
    hidden = np.empty((asked, n_hidden), np.float64)

    begin = 0
    first = 0
    while first < n_instants:
        key = contacts[order[first]]
        last = first + 1
        while last < n_instants and contacts[order[last]] == key:
            last += 1
        n_asked = last - first
        if n_asked > asked:
            asked = 2 * n_asked
            ends = np.empty(asked, np.int64)
            rows = np.empty(asked, np.int64)
            before = np.empty(asked, np.int64)
            lows = np.empty(asked, np.int64)
            bounds = np.empty(asked * (1 + len(group_table)), np.int64)
            places = np.empty(asked * (1 + len(group_table)), np.int64)
            hidden = np.empty((asked, n_hidden), np.float64)
        for k in range(n_asked):
            rows[k] = target[order[first + k]]
            ends[k] = instants[order[first + k]]
            for column in range(len(blank)):  # streams without events are passed over later
                out[rows[k], column] = blank[column]
            for column in range(n_hidden):
                hidden[k, column] = 0.0

        begin = _seek(contact_key, begin, key)
        end = begin
        late = False
        p = 0
        while end < n_events and contact_key[end] == key:
            at = occurred_at[end]
            if end > begin and at < occurred_at[end - 1]:
                return False
            while p < n_asked and ends[p] <= at:
                p += 1
            if p < n_asked and received_at[end] > ends[p]:
                late = True
            end += 1
        if end < n_events and contact_key[end] < key:
            return False
        if end - begin > capacity:
            capacity = 2 * (end - begin)
            known = np.empty(capacity, np.int64)
            mask = np.empty(capacity, np.uint64)
            send_hour = np.empty(capacity, np.int16)
            scratch = np.empty((6, capacity + 1), np.int64)
            members = np.empty((len(stream_table) + 1, capacity + 1), np.int64)
        most_items = end - begin + property_start[end] - property_start[begin]
        if 4 * most_items > items.shape[1]:
            items = np.empty((5, 8 * most_items), np.int64)

        # All instants in one round; a late contact's one by one, each over the events known then.
        for a in range(n_asked if late else 1):
            z = a + 1 if late else n_asked
            if by_kind and not late:
                _enlist_by_kind(begin, end, kind, human_ppm, is_repeat, human, machine, streams_of, members, counts)
            else:
                n = 0
                for i in range(begin, end):
                    if not late or (occurred_at[i] < ends[a] and received_at[i] <= ends[a]):
                        known[n] = i
                        n += 1
                _assign(
                    begin, known, n, occurred_at, kind, hour_of_week, human_ppm, is_repeat, ref, human, machine,
                    is_send, property_start, property_name, property_value, property_number, stream_table,
                    where_table, where_values, where_bounds, mask, send_hour,
                )  # fmt: skip
                _enlist(known, n, kind, mask, streams_of, members, counts)
            _values(
                begin, occurred_at, value_minor, hour_of_week, ref, property_start, property_name, property_value,
                property_number, members, counts, send_hour, ends[a:z], rows[a:z], stream_table, group_table,
                operation_table, scan_table, scan_rates, scratch, histogram, items, before, lows, bounds,
                places, out, hidden[a:z],
            )  # fmt: skip
            _derive(rows[a:z], derived_table, derived_priors, out, hidden[a:z])
        begin = end
        first = last
    return True


@njit(nogil=True, error_model="numpy")
def _seek(keys: Any, start: int, key: int) -> int:
    """First position from ``start`` on whose key is at least ``key``: doubling steps, then bisection."""
    n = len(keys)
    step = 1
    low = start
    high = start
    while high < n and keys[high] < key:
        low = high + 1
        high += step
        step *= 2
    if high > n:
        high = n
    while low < high:
        middle = (low + high) // 2
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, error_model="numpy")
def _assign(
    first: int,
    known: Any,
    n: int,
    time: Any,
    kind: Any,
    hour: Any,
    human_ppm: Any,
    is_repeat: Any,
    ref: Any,
    human: Any,
    machine: Any,
    is_send: Any,
    property_start: Any,
    property_name: Any,
    property_value: Any,
    property_number: Any,
    stream_table: Any,
    where_table: Any,
    where_values: Any,
    where_bounds: Any,
    mask: Any,
    send_hour: Any,
) -> None:
    """Which streams each known event is in, as bits of ``mask``; of answers also the hour of the send they answer."""
    for i in range(n):
        e = known[i]
        mask[i] = human[kind[e]] if human_ppm[e] >= HUMAN_PPM and not is_repeat[e] else machine[kind[e]]
    for s in range(len(stream_table)):
        bit = np.uint64(1) << np.uint64(s)
        for w in range(stream_table[s, 6], stream_table[s, 7]):
            for i in range(n):
                if mask[i] & bit and not _holds(
                    known[i], property_start, property_name, property_value, property_number,
                    where_table[w], where_values, where_bounds[w],
                ):  # fmt: skip
                    mask[i] &= ~bit
        if stream_table[s, 5] != 0:
            _keep_answers(first, known, n, time, kind, hour, ref, is_send, bit, stream_table[s, 5], mask, send_hour)


@njit(nogil=True, error_model="numpy")
def _keep_answers(
    first: int,
    known: Any,
    n: int,
    time: Any,
    kind: Any,
    hour: Any,
    ref: Any,
    is_send: Any,
    bit: Any,
    within: int,
    mask: Any,
    send_hour: Any,
) -> None:
    """Of a stream's events only the first answer to each send stays, with the hour of that send.

    An event answers if the last that came before it with its ``ref``, of the stream's events and the sends, is a send
    and not too long ago. Most are found a few events back; where too many lie between, a hash table holds the last one
    of every ``ref`` for the events that are left.
    """
    i = n - 1
    looks = LOOKS_BACK * n
    while i >= 0 and looks > 0:  # backwards: an earlier event's bit still says "in the stream" when it is asked
        if not mask[i] & bit:
            i -= 1
            continue
        e = known[i]
        answers = False
        j = i - 1
        while j >= 0 and ref[e] != 0 and time[known[j]] >= time[e] - within:
            if ref[known[j]] == ref[e]:
                if is_send[kind[known[j]]]:
                    answers = True
                    send_hour[e - first] = hour[known[j]]
                    break
                if mask[j] & bit:
                    break
            j -= 1
        if not answers:
            mask[i] &= ~bit
        looks -= i - j
        i -= 1
    if i < 0:
        return
    left = i + 1
    size = 2
    while size < 2 * left:
        size *= 2
    slot = np.full(size, -1, np.int64)
    for i in range(left):
        e = known[i]
        is_in = mask[i] & bit != 0
        if not (is_in or is_send[kind[e]]):
            continue
        last = -1
        if ref[e] != 0:
            place = (ref[e] ^ (ref[e] >> 32)) & (size - 1)
            while slot[place] >= 0 and ref[slot[place]] != ref[e]:
                place = (place + 1) & (size - 1)
            last = slot[place]
            slot[place] = e
        if is_in:
            if last >= 0 and is_send[kind[last]] and time[last] >= time[e] - within:
                send_hour[e - first] = hour[last]
            else:
                mask[i] &= ~bit


@njit(nogil=True, error_model="numpy")
def _enlist_by_kind(
    begin: int,
    end: int,
    kind: Any,
    human_ppm: Any,
    is_repeat: Any,
    human: Any,
    machine: Any,
    streams_of: Any,
    members: Any,
    counts: Any,
) -> None:
    """The events of each stream, where an event's kind and whether a person did it say all: one pass, no branch."""
    for s in range(len(counts)):
        counts[s] = 0
    for e in range(begin, end):
        code = kind[e]
        by_person = np.uint64(0) - np.uint64((human_ppm[e] >= HUMAN_PPM) & (not is_repeat[e]))  # all bits or none
        bits = machine[code] | (human[code] & by_person)
        for p in range(streams_of.shape[1]):
            s = streams_of[code, p]
            members[s, counts[s]] = e  # an event outside the stream is overwritten by the next
            counts[s] += np.int64((bits >> np.uint64(s)) & np.uint64(1))


@njit(nogil=True, error_model="numpy")
def _enlist(known: Any, n: int, kind: Any, mask: Any, streams_of: Any, members: Any, counts: Any) -> None:
    """The known events of each stream, in their order: an event is looked at for the few streams of its kind."""
    for s in range(len(counts)):
        counts[s] = 0
    for i in range(n):
        bits = mask[i]
        if bits == 0:
            continue
        code = kind[known[i]]
        for p in range(streams_of.shape[1]):
            s = streams_of[code, p]
            members[s, counts[s]] = known[i]  # without a branch: an event outside the stream is overwritten by the next
            counts[s] += np.int64((bits >> np.uint64(s)) & np.uint64(1))


@njit(nogil=True, error_model="numpy")
def _holds(
    event: int, start: Any, name: Any, value: Any, number: Any, where: Any, where_values: Any, bounds: Any
) -> bool:
    """Whether one of the event's values of the condition's property meets it."""
    for p in range(start[event], start[event + 1]):
        if name[p] != where[0]:
            continue
        if where[1] == where[2]:
            if bounds[0] <= number[p] <= bounds[1]:
                return True
        else:
            for v in range(where[1], where[2]):
                if value[p] == where_values[v]:
                    return True
    return False


@njit(nogil=True, error_model="numpy")
def _values(
    first: int,
    time: Any,
    value: Any,
    hour: Any,
    ref: Any,
    property_start: Any,
    property_name: Any,
    property_value: Any,
    property_number: Any,
    members: Any,
    counts: Any,
    send_hour: Any,
    ends: Any,
    rows: Any,
    stream_table: Any,
    group_table: Any,
    operation_table: Any,
    scan_table: Any,
    scan_rates: Any,
    scratch: Any,
    histogram: Any,
    items: Any,
    before: Any,
    lows: Any,
    bounds: Any,
    places: Any,
    out: Any,
    hidden: Any,
) -> None:
    """Every operation of every stream at the ascending instants ``ends``, written to ``out`` (or kept aside).

    Arrays of one contact are used by index, without slices: a view of an array costs more than such a contact's events.
    """
    n_columns = out.shape[1]
    times = scratch[0]
    sums = scratch[1]
    hours = scratch[2]
    ordinal = scratch[3]  # of the event's UTC day among the stream's days with an event
    starts = scratch[4]  # minute of the first event of each such day
    squares = scratch[5]  # prefix sums of the squared minutes between those
    for s in range(len(stream_table)):
        with_values = stream_table[s, 2] != 0
        with_days = stream_table[s, 3] != 0
        with_hours = stream_table[s, 4] != 0
        by_send = stream_table[s, 10] != 0
        n = counts[s]
        if n == 0:
            continue
        for i in range(n):
            times[i] = time[members[s, i]]
        # Where the windows end and begin among the stream's events: the instants, then a row for each group.
        n_bounds = len(ends)
        for k in range(len(ends)):
            bounds[k] = ends[k]
        for g in range(stream_table[s, 0], stream_table[s, 1]):
            window = group_table[g, 0]
            for k in range(len(ends)):
                bounds[n_bounds + k] = ends[k] - window if window >= 0 else times[0]
            n_bounds += len(ends)
        _count_before(times, n, bounds, n_bounds, places)
        for k in range(len(ends)):
            before[k] = places[k]
        if with_values:
            sums[0] = 0
            for i in range(n):
                sums[i + 1] = sums[i] + value[members[s, i]]
        if with_hours:
            for i in range(n):
                hours[i] = send_hour[members[s, i] - first] if by_send else hour[members[s, i]]
        if with_days:
            n_days = 0
            day = np.int64(-1)
            squares[0] = 0
            for i in range(n):
                if times[i] // DAY_MICROS != day:
                    day = times[i] // DAY_MICROS
                    starts[n_days] = times[i] // MINUTE_MICROS
                    if n_days > 0:
                        gap = starts[n_days] - starts[n_days - 1]
                        squares[n_days] = squares[n_days - 1] + gap * gap
                    n_days += 1
                ordinal[i] = n_days - 1
        for c in range(stream_table[s, 8], stream_table[s, 9]):
            code = scan_table[c, 0]
            if code == DISTINCT:
                _distinct(
                    members, s, n, times, ref, property_start, property_name, property_value, ends, rows,
                    scan_table[c, 1], scan_table[c, 2], scan_table[c, 3], items, out,
                )  # fmt: skip
            elif code in (DECAYED, DECAYED_VALUE):
                _decayed(
                    members, s, times, value, ends, rows, before, scan_table[c, 1], scan_rates[c],
                    code == DECAYED_VALUE, out,
                )  # fmt: skip
            else:
                _trait(
                    members, s, property_start, property_name, property_value, property_number, ends, rows, before,
                    code, scan_table[c, 1], scan_table[c, 3], scan_table[c, 4], out,
                )  # fmt: skip
        for g in range(stream_table[s, 0], stream_table[s, 1]):
            row = (1 + g - stream_table[s, 0]) * len(ends)
            for k in range(len(ends)):
                lows[k] = places[row + k]
            if group_table[g, 3]:
                _histograms(
                    hours, before, lows, rows, operation_table, group_table[g, 1], group_table[g, 2], histogram, out
                )
            # One operation at a time over all instants: what it is gets asked once, not at each of them.
            for o in range(group_table[g, 1], group_table[g, 2]):
                code = operation_table[o, 0]
                column = operation_table[o, 1]
                if code == COUNT and column >= n_columns:
                    for k in range(len(ends)):
                        hidden[k, column - n_columns] = float(before[k] - lows[k])
                elif code == COUNT:
                    for k in range(len(ends)):
                        out[rows[k], column] = float(before[k] - lows[k])
                elif code == SUM:
                    for k in range(len(ends)):
                        out[rows[k], column] = float(sums[before[k]] - sums[lows[k]])
                elif code == MEAN:
                    for k in range(len(ends)):
                        count = before[k] - lows[k]
                        total = float(sums[before[k]] - sums[lows[k]])
                        out[rows[k], column] = total / count if count > 0 else np.nan
                elif code == RECENCY:
                    for k in range(len(ends)):
                        some = before[k] > lows[k]
                        out[rows[k], column] = (ends[k] - times[before[k] - 1]) / DAY_MICROS if some else np.nan
                elif code == FIRST_SEEN:
                    for k in range(len(ends)):
                        some = before[k] > lows[k]
                        out[rows[k], column] = (ends[k] - times[lows[k]]) / DAY_MICROS if some else np.nan
                elif code == DAYS:
                    for k in range(len(ends)):
                        some = before[k] > lows[k]
                        out[rows[k], column] = float(ordinal[before[k] - 1] - ordinal[lows[k]] + 1) if some else 0.0
                elif code in (GAP_MEAN, GAP_STD, OVERDUE):
                    for k in range(len(ends)):
                        out[rows[k], column] = _regularity(
                            code, times, ordinal, starts, squares, lows[k], before[k], ends[k]
                        )


@njit(nogil=True, error_model="numpy")
def _regularity(code: int, times: Any, ordinal: Any, starts: Any, squares: Any, low: int, high: int, end: int) -> float:
    """A measure of the gaps between the days with an event among those in ``[low, high)``; NaN without a gap."""
    if high <= low or ordinal[high - 1] == ordinal[low]:
        return np.nan
    a = ordinal[low]
    z = ordinal[high - 1]
    n_gaps = z - a
    # The window may begin within day a: its first event there opens the first gap.
    opened = times[low] // MINUTE_MICROS
    total = starts[z] - opened
    if code == GAP_MEAN:
        return total / MINUTES_PER_DAY / n_gaps
    if code == OVERDUE:
        usual = total / MINUTES_PER_DAY / n_gaps
        return (end - times[high - 1]) / DAY_MICROS / usual
    if n_gaps == 1:
        return np.nan
    gap = starts[a + 1] - opened
    square = gap * gap + squares[z] - squares[a + 1]
    return np.sqrt((n_gaps * square - total * total) / (n_gaps * (n_gaps - 1))) / MINUTES_PER_DAY


@njit(nogil=True, error_model="numpy")
def _histograms(
    hours: Any, before: Any, lows: Any, rows: Any, operation_table: Any, first: int, last: int, histogram: Any, out: Any
) -> None:
    """Events by local hour and by local weekday in the windows that end before ``before`` and begin at ``lows``."""
    histogram[:] = 0
    hi = 0
    lo = 0
    for k in range(len(rows)):
        while hi < before[k]:
            histogram[hours[hi] % 24] += 1
            histogram[24 + hours[hi] // 24] += 1
            hi += 1
        while lo < lows[k]:
            histogram[hours[lo] % 24] -= 1
            histogram[24 + hours[lo] // 24] -= 1
            lo += 1
        for o in range(first, last):
            column = operation_table[o, 1]
            if operation_table[o, 0] == WEEKDAYS:
                for b in range(7):
                    out[rows[k], column + b] = float(histogram[24 + b])
            elif operation_table[o, 0] == HOURS:
                bins = operation_table[o, 2]
                width = 24 // bins
                for b in range(bins):
                    total = 0
                    for h in range(b * width, (b + 1) * width):
                        total += histogram[h]
                    out[rows[k], column + b] = float(total)


@njit(nogil=True, error_model="numpy")
def _count_before(times: Any, n: int, bounds: Any, n_bounds: int, places: Any) -> None:
    """How many of the ``n`` ascending times lie before each bound: where a window begins or ends among them.

    Each of a few times is compared with every bound, several bounds at once and without a branch to mispredict; among
    many, each bound is sought by bisection.
    """
    if n <= FEW_EVENTS:
        for b in range(n_bounds):
            places[b] = 0
        for i in range(n):
            at = times[i]
            for b in range(n_bounds):
                places[b] += np.int64(at < bounds[b])
        return
    for b in range(n_bounds):
        low = 0
        length = n
        while length > 1:
            half = length >> 1
            low += half if times[low + half - 1] < bounds[b] else 0
            length -= half
        places[b] = low + np.int64(times[low] < bounds[b])


@njit(nogil=True, error_model="numpy")
def _distinct(
    members: Any,
    s: int,
    n: int,
    times: Any,
    ref: Any,
    start: Any,
    name: Any,
    value: Any,
    ends: Any,
    rows: Any,
    column: int,
    window: int,
    what: int,
    items: Any,
    out: Any,
) -> None:
    """Number of different values in the window, at the ascending instants ``ends``.

    A value enters with the first of its items in the window and leaves with the last: an item that enters is new if
    the one before it of the same value lies before the window, one that leaves takes its value along if the one after
    it lies behind the window.
    """
    slot, found, at, before, after = items[0], items[1], items[2], items[3], items[4]
    m = 0
    for i in range(n):
        e = members[s, i]
        if what == 0:
            if ref[e] != 0:
                found[m] = ref[e]
                at[m] = times[i]
                m += 1
        else:
            for p in range(start[e], start[e + 1]):
                if name[p] == what and value[p] != 0:
                    found[m] = value[p]
                    at[m] = times[i]
                    m += 1
    size = 1
    while size < 2 * m:
        size *= 2
    for place in range(size):
        slot[place] = -1
    for i in range(m):
        place = (found[i] ^ (found[i] >> 32)) & (size - 1)
        while slot[place] >= 0 and found[slot[place]] != found[i]:
            place = (place + 1) & (size - 1)
        before[i] = slot[place]
        if before[i] >= 0:
            after[before[i]] = i
        after[i] = m
        slot[place] = i
    lo = 0
    hi = 0
    count = 0
    for k in range(len(ends)):
        while hi < m and at[hi] < ends[k]:
            count += before[hi] < lo
            hi += 1
        if window >= 0:
            while lo < hi and at[lo] < ends[k] - window:
                count -= after[lo] >= hi
                lo += 1
        out[rows[k], column] = float(count)


@njit(nogil=True, error_model="numpy")
def _decayed(
    members: Any,
    s: int,
    times: Any,
    value: Any,
    ends: Any,
    rows: Any,
    before: Any,
    column: int,
    rate: float,
    of_value: bool,
    out: Any,
) -> None:
    """Sum over the events of exp(-rate x age), weighted by their value if asked, at the ascending instants ``ends``.

    Carried from event to event, not from instant to instant: so the bits depend on the events alone.
    """
    total = 0.0
    hi = 0
    for k in range(len(ends)):
        while hi < before[k]:
            if hi > 0:
                total *= np.exp(-rate * (times[hi] - times[hi - 1]))
            total += float(value[members[s, hi]]) if of_value else 1.0
            hi += 1
        out[rows[k], column] = total * np.exp(-rate * (ends[k] - times[hi - 1])) if hi > 0 else 0.0


@njit(nogil=True, error_model="numpy")
def _trait(
    members: Any,
    s: int,
    start: Any,
    name: Any,
    value: Any,
    number: Any,
    ends: Any,
    rows: Any,
    before: Any,
    code: int,
    column: int,
    what: int,
    wanted: int,
    out: Any,
) -> None:
    """What was told last of a trait before each of the ascending instants ``ends``; null takes it back."""
    told = np.int64(0)
    told_number = np.nan
    hi = 0
    for k in range(len(ends)):
        while hi < before[k]:
            e = members[s, hi]
            for p in range(start[e], start[e + 1]):
                if name[p] == what:
                    told = value[p]
                    told_number = number[p]
            hi += 1
        result = np.nan
        if code == TRAIT_IS:
            result = 1.0 if told == wanted else 0.0
        elif told != 0 and code == TRAIT:
            result = told_number
        elif told != 0:
            result = (ends[k] - _micros(told_number)) / DAY_MICROS
        out[rows[k], column] = result


@njit(nogil=True, error_model="numpy")
def _micros(instant: float) -> float:
    """Microseconds since 1970 of a number that is seconds, milliseconds or microseconds since 1970 (1973 to 5138)."""
    if instant < 1e11:
        return instant * 1e6
    if instant < 1e14:
        return instant * 1e3
    return instant


@njit(nogil=True, error_model="numpy")
def _derive(rows: Any, derived_table: Any, derived_priors: Any, out: Any, hidden: Any) -> None:
    """What is computed from counts: rates drawn to their prior, and trends."""
    n_columns = out.shape[1]
    for k in range(len(rows)):
        row = rows[k]
        for d in range(len(derived_table)):
            x = derived_table[d, 2]
            y = derived_table[d, 3]
            a = out[row, x] if x < n_columns else hidden[k, x - n_columns]
            b = out[row, y] if y < n_columns else hidden[k, y - n_columns]
            if derived_table[d, 0] == RATE:
                strength = derived_priors[d, 1]
                out[row, derived_table[d, 1]] = (a + derived_priors[d, 0] * strength) / (b + strength)
            else:  # TREND: y counts both windows, so the one before holds b - a
                out[row, derived_table[d, 1]] = a - (b - a)
