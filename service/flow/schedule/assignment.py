"""Who gets which slot where slots run out: a price for each, and places given out at these prices.

Nothing here knows of mails: contacts have a value at each of a few columns (the hours of the day), belong to a class
that says which options realise which column (the slots of the window, in the class's zone), and every option takes one
place of some resources (the relay's hour, the mailbox provider's hour and day).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: Capacity of what never runs out.
UNLIMITED = 1 << 60
#: Contacts from whom prices are learned; drawn evenly from those who have a chance of a place.
SAMPLE = 20_000
#: Contacts looked at at once.
BLOCK = 65_536
#: Smoothing of the dual, in shares of the mean value: each step starts from the prices of the one before.
TEMPERATURES = (0.1, 0.03, 0.01, 0.003)
#: What a draw is multiplied by to draw again: its low digits, which the first draw did not look at, become the draw.
AGAIN = 1_048_583
#: Later options cost this share of the mean value more, over all of them: equal hours go to the earlier one.
LATENESS = 1e-5


@dataclass(frozen=True)
class Options:
    """What is on offer to each class of contacts.

    Attributes
    ----------
    column : ndarray of int64, shape (n_classes, n_options)
        Column of ``value`` that the option is worth to the class; -1 where it is not on offer.
    uses : ndarray of int64, shape (n_classes, n_options, n_uses)
        Resources of which one place is taken.
    """

    column: Ints
    uses: Ints

    def __post_init__(self) -> None:
        if self.uses.shape[:2] != self.column.shape:
            raise ValueError(f"uses of shape {self.uses.shape} do not go with columns of shape {self.column.shape}")

    def cost(self, prices: Floats) -> Floats:
        """Price of each option for each class, shape (n_classes, n_options); infinite where it is not on offer."""
        cost = prices[self.uses].sum(axis=2) if self.uses.size else np.zeros(self.column.shape)
        return np.asarray(np.where(self.column >= 0, cost, np.inf))


@dataclass(frozen=True)
class Assignment:
    """Who got what.

    Attributes
    ----------
    chosen : ndarray of int64, shape (n,)
        Option of each contact; -1 where it got none.
    wished : ndarray of int64, shape (n,)
        The option that it would have got if nothing ran out.
    ruled : ndarray of int64, shape (n,)
        The option that it takes at these prices; -1 where none is worth its price.
    prices : ndarray of float64, shape (n_resources,)
        What one more place would be worth; 0 where places are left.
    total, unbound, bound : float
        Value of what was given out; what it would be if nothing ran out; and what no way of giving out can exceed (the
        dual's value at ``prices``, weak duality).
    """

    chosen: Ints
    wished: Ints
    ruled: Ints
    prices: Floats
    total: float
    unbound: float
    bound: float


def assign(
    value: NDArray[np.floating],
    class_of: Ints,
    options: Options,
    capacity: Ints,
    *,
    draws: Floats,
    is_indifferent: NDArray[np.bool_] | None = None,
) -> Assignment:
    """Options for all contacts so that the sum of their values is as good as the greatest, and nothing is overfilled.

    The linear programme ``max sum_io v_io x_io`` over ``sum_o x_io <= 1`` and, for each resource r,
    ``sum x_io <= capacity_r`` has one price a resource as its dual. The prices minimise the dual, smoothed by an
    entropy whose weight falls to nothing (Cuturi 2013) and solved by L-BFGS-B, on a sample of the contacts: prices of a
    sample are nearly those of all (Agrawal, Wang, Ye 2014). Then each contact takes what gains it most over the price;
    where that is full, those stay who lose most elsewhere, and the others choose again among what is left.

    Parameters
    ----------
    value : ndarray of float, shape (n, n_columns)
        A value of 0 or less is worth no place.
    class_of : ndarray of int64, shape (n,)
    capacity : ndarray of int64, shape (n_resources,)
    draws : ndarray of float64, shape (n,), in [0, 1)
        Where nothing else decides, they do.
    is_indifferent : ndarray of bool, shape (n,), optional
        To whom all columns are alike: takes one of the cheapest options by its draw, and gives way to the others.

    References
    ----------
    Cuturi (2013), "Sinkhorn distances", NIPS. Agrawal, Wang, Ye (2014), "A dynamic near-optimal algorithm for online
    linear programming", Operations Research 62.
    """
    n = len(value)
    indifferent = np.zeros(n, dtype=bool) if is_indifferent is None else is_indifferent
    free = np.zeros(len(capacity))
    desk = _Desk(value, class_of, options, draws, indifferent)
    wished, gains, _ = desk.choose(options.cost(free), np.arange(n))
    unbound = float(desk.value_of(wished).sum())
    demand = _taken(options, class_of, wished, len(capacity))
    if np.all(demand <= capacity):
        return Assignment(wished, wished, wished, free, unbound, unbound, unbound)
    prices = _prices(desk, capacity, gains)
    cost = options.cost(prices)
    ruled, gains, _ = desk.choose(cost, np.arange(n))
    # What lateness took off the gains is given back, or the bound would lie below the optimum.
    bound = float(gains.sum() + prices @ np.minimum(capacity, n)) + LATENESS * desk.scale * n
    # Where an hour is to be had on several days, sharing them out wastes no place; where it is not, going straight for
    # the cheapest is the more exact. Both are tried, and the better one is kept.
    chosen = max(
        (_given_out(desk, cost, capacity, spread * desk.scale) for spread in (0.0, TEMPERATURES[-1])),
        key=lambda given: float(desk.value_of(given).sum()),
    )
    total = float(desk.value_of(chosen).sum())
    return Assignment(chosen, wished, ruled, prices, total, unbound, min(bound, unbound))


def ruled_by(
    value: NDArray[np.floating],
    class_of: Ints,
    options: Options,
    prices: Floats,
    draws: Floats,
    is_indifferent: NDArray[np.bool_],
) -> Ints:
    """The option that each contact would take at these prices if it had a place for sure; -1 where it takes none."""
    desk = _Desk(value, class_of, options, draws, is_indifferent)
    return desk.choose(options.cost(prices), np.arange(len(value)))[0]


def _given_out(desk: _Desk, cost: Floats, capacity: Ints, spread: float) -> Ints:
    room = capacity.copy()
    chosen = desk.give_out(cost, room, np.arange(len(desk.class_of)), spread)
    # What is priced a little too high stands empty: it goes to those who have nothing yet.
    left = np.flatnonzero(chosen < 0)
    chosen[left] = desk.give_out(desk.options.cost(np.zeros(len(room))), room, left)
    return _moved_up(desk, chosen, room)


def _moved_up(desk: _Desk, chosen: Ints, room: Ints) -> Ints:
    """Who would gain by a free place takes it, the greatest gain first, until nobody would."""
    options, class_of = desk.options, desk.class_of
    while True:
        is_open = np.all(room[options.uses] > 0, axis=2)
        free = np.where(is_open, desk.options.cost(np.zeros(len(room))), np.inf)
        wish, gain, _ = desk.choose(free, np.arange(len(class_of)))
        gain -= desk.value_of(chosen)
        movers = np.flatnonzero((gain > 1e-6 * desk.scale) & ~desk.indifferent)
        if not len(movers):
            return chosen
        movers = movers[np.lexsort((desk.draws[movers], -gain[movers]))]
        taken = options.uses[class_of[movers], wish[movers]]
        fits = np.ones(len(movers), dtype=bool)
        for use in range(taken.shape[1]):
            fits &= _rank(taken[:, use]) < room[taken[:, use]]
        movers, taken = movers[fits], taken[fits]
        held = movers[chosen[movers] >= 0]
        freed = options.uses[class_of[held], chosen[held]]
        room += np.bincount(freed.ravel(), minlength=len(room)) - np.bincount(taken.ravel(), minlength=len(room))
        chosen[movers] = wish[movers]


def give_out(class_of: Ints, options: Options, room: Ints, *, draws: Floats, in_order: bool = False) -> Ints:
    """Options given to contacts by their draws alone; ``room`` is lessened by what they take.

    Each option on offer is equally likely; who finds it full draws again among those that are left. With ``in_order``
    the first option that is left is taken instead, in the order of the options.
    """
    n = len(class_of)
    nothing = np.ones((n, 1), dtype=np.float32)
    flat = Options(np.where(options.column >= 0, 0, -1), options.uses)
    desk = _Desk(nothing, class_of, flat, draws, np.full(n, not in_order))
    return desk.give_out(flat.cost(np.zeros(len(room))), room, np.arange(n))


class _Desk:
    """The contacts and what is on offer to them."""

    def __init__(
        self,
        value: NDArray[np.floating],
        class_of: Ints,
        options: Options,
        draws: Floats,
        indifferent: NDArray[np.bool_],
    ) -> None:
        self.value = value
        self.class_of = class_of
        self.options = options
        self.draws = draws
        self.indifferent = indifferent
        sample = value[:: max(1, len(value) // SAMPLE)]
        best = np.maximum(sample.max(axis=1), 0.0) if sample.size else np.zeros(1)
        #: What values are measured by.
        self.scale = float(best.mean()) or 1.0
        n_options = options.column.shape[1]
        self._lateness = np.arange(n_options) / max(1, n_options) * LATENESS * self.scale

    def value_of(self, chosen: Ints) -> Floats:
        """Value of each contact's option; 0 where it has none."""
        column = self.options.column[self.class_of, np.maximum(chosen, 0)]
        rows = np.arange(len(chosen))
        return np.where(chosen >= 0, self.value[rows, np.maximum(column, 0)], 0.0).astype(np.float64)

    def choose(self, cost: Floats, rows: Ints, tries: int = 0) -> tuple[Ints, Floats, Floats]:
        """Of each row: the option that gains most over its cost (-1 where none does), that gain, and the lead.

        The lead is what is lost by taking the next best option, or none, instead.
        """
        at, least, second = self._by_column(cost)
        chosen = np.full(len(rows), -1, dtype=np.int64)
        gain, lead = np.zeros(len(rows)), np.zeros(len(rows))
        for part in _blocks(len(rows)):
            some = rows[part]
            classes = self.class_of[some]
            gains = self.value[some] - least[classes]
            here = np.arange(len(some))
            column = gains.argmax(axis=1)
            best = gains[here, column].astype(np.float64)
            with np.errstate(invalid="ignore"):
                same = second[classes, column] - least[classes, column]
            gains[here, column] = -np.inf
            other = gains.max(axis=1) if gains.shape[1] > 1 else np.full(len(some), -np.inf)
            takes = best > 0
            chosen[part] = np.where(takes, at[classes, column], -1)
            gain[part] = np.where(takes, best, 0.0)
            with np.errstate(invalid="ignore"):
                lead[part] = np.where(takes, np.minimum(np.minimum(best - np.maximum(other, 0.0), best), same), 0.0)
        drawn = self.indifferent[rows] & (chosen >= 0)
        if drawn.any():
            chosen[drawn] = self._drawn(cost, rows[drawn], tries)
            lead[drawn] = 0.0
        return chosen, gain, lead

    def _by_column(self, cost: Floats) -> tuple[Ints, NDArray[np.float32], NDArray[np.float32]]:
        """Of each class and column: the cheapest option, its cost, and that of the second cheapest."""
        shape = (len(cost), self.value.shape[1])
        at = np.full(shape, -1, dtype=np.int64)
        least, second = np.full(shape, np.inf), np.full(shape, np.inf)
        late = cost + self._lateness
        for option in range(cost.shape[1]):
            column = self.options.column[:, option]
            classes = np.flatnonzero((column >= 0) & np.isfinite(late[:, option]))
            columns = column[classes]
            mine, standing = late[classes, option], least[classes, columns]
            better = mine < standing
            second[classes, columns] = np.minimum(second[classes, columns], np.where(better, standing, mine))
            least[classes, columns] = np.minimum(mine, standing)
            at[classes[better], columns[better]] = option
        return at, least.astype(np.float32), second.astype(np.float32)

    def _drawn(self, cost: Floats, rows: Ints, tries: int) -> Ints:
        """One of the options that cost the class no more than its cheapest, each equally likely.

        Who tries again draws anew: all who found an option full have draws that lie close together.
        """
        is_cheap = cost <= cost.min(axis=1, keepdims=True) + 1e-3 * self.scale
        is_cheap &= np.isfinite(cost)
        count = is_cheap.sum(axis=1)
        order = np.argsort(~is_cheap, axis=1, kind="stable")
        classes = self.class_of[rows]
        draws = self.draws[rows] if not tries else self.draws[rows] * (AGAIN * tries) % 1.0
        return np.asarray(order[classes, (draws * count[classes]).astype(np.int64)])

    def give_out(self, cost: Floats, room: Ints, rows: Ints, spread: float = 0.0) -> Ints:
        """Option of each of ``rows`` at this cost, -1 where it gets none; ``room`` is lessened by what they take.

        Above a ``spread`` of 0, options of one column whose costs differ by no more are shared out as the smoothed
        dual does it: at their prices they are alike, and going all to the first would waste the others' places.
        """
        options = self.options
        chosen = np.full(len(rows), -1, dtype=np.int64)
        waiting = np.arange(len(rows))
        tries = 0
        while len(waiting):
            is_open = np.all(room[options.uses] > 0, axis=2)
            wish, _, lead = self.choose(np.where(is_open, cost, np.inf), rows[waiting], tries)
            waiting, wish, lead = waiting[wish >= 0], wish[wish >= 0], lead[wish >= 0]
            if not len(waiting):
                break
            if spread:
                wish = self._shared_out(np.where(is_open, cost, np.inf), rows[waiting], wish, spread)
            order = np.lexsort((self.draws[rows[waiting]], -lead))
            taken = options.uses[self.class_of[rows[waiting]], wish]
            fits = np.ones(len(waiting), dtype=bool)
            for use in range(taken.shape[1]):
                if np.any(np.bincount(taken[:, use], minlength=len(room)) > room):
                    fits[order] &= _rank(taken[order, use]) < room[taken[order, use]]
            chosen[waiting[fits]] = wish[fits]
            for use in range(taken.shape[1]):
                room -= np.bincount(taken[fits, use], minlength=len(room))
            waiting = waiting[~fits]
            tries += 1
        return chosen

    def _shared_out(self, cost: Floats, rows: Ints, wish: Ints, spread: float) -> Ints:
        """``wish``, spread over the options of the same class and column, each by its share ``exp(-cost / spread)``."""
        column, n_columns = self.options.column, self.value.shape[1]
        at_class, option = np.nonzero(np.isfinite(cost) & (column >= 0))
        group = at_class * n_columns + column[at_class, option]
        order = np.argsort(group, kind="stable")
        group, option, price = group[order], option[order], cost[at_class[order], option[order]]
        groups, first, of = np.unique(group, return_index=True, return_inverse=True)
        weight = np.exp(-(price - np.minimum.reduceat(price, first)[of]) / spread)
        running = np.cumsum(weight)
        before = running[first] - weight[first]
        share = (running - before[of]) / (np.add.reduceat(weight, first)[of])
        mine = np.searchsorted(groups, self.class_of[rows] * n_columns + column[self.class_of[rows], wish])
        by_draw = np.lexsort((self.draws[rows], mine))
        place = np.empty(len(rows))
        place[by_draw] = np.arange(len(rows))
        count = np.bincount(mine, minlength=len(groups))
        start = np.cumsum(count) - count
        quantile = (place - start[mine] + 0.5) / count[mine]
        found = np.searchsorted(of + np.minimum(share, 1.0 - 1e-12), mine + quantile * (1.0 - 2e-12))
        return np.asarray(option[found])


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))


def _rank(keys: Ints) -> Ints:
    """How many of the same key stand before each."""
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    rank = np.empty(len(keys), dtype=np.int64)
    rank[order] = np.arange(len(keys)) - np.searchsorted(in_order, in_order)
    return rank


def _taken(options: Options, class_of: Ints, chosen: Ints, n_resources: int) -> Ints:
    """Places that these options take of each resource."""
    has = chosen >= 0
    uses = options.uses[class_of[has], chosen[has]]
    return np.bincount(uses.ravel(), minlength=n_resources)


def _prices(desk: _Desk, capacity: Ints, gains: Floats) -> Floats:
    """Prices from a sample of those who have a chance of a place: first of all, then of those near one."""
    rows = np.flatnonzero(gains > 0)
    prices = np.zeros(len(capacity))
    while len(rows):
        # Evenly over the values, so that a sample holds its share of the best.
        by_value = rows[np.argsort(gains[rows], kind="stable")]
        sample = by_value[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(np.int64)]
        share = len(sample) / len(rows)
        prices, placed = _Dual(desk, sample, capacity.astype(np.float64) * share).solve(prices)
        contenders = max(SAMPLE, int(2 * placed / share))
        if share == 1.0 or contenders > 0.7 * len(rows):
            break
        cost = desk.options.cost(prices)
        margin = np.empty(len(rows), dtype=np.float32)
        _, least, _ = desk._by_column(cost)
        for part in _blocks(len(rows)):
            some = rows[part]
            margin[part] = (desk.value[some] - least[desk.class_of[some]]).max(axis=1)
        rows = np.sort(rows[np.argpartition(-margin, contenders - 1)[:contenders]])
    return prices


class _Dual:
    """The smoothed dual over some contacts: ``capacity @ p + t sum_i log(1 + sum_o exp((v_io - p_o) / t))``."""

    def __init__(self, desk: _Desk, rows: Ints, capacity: Floats) -> None:
        order = np.argsort(desk.class_of[rows], kind="stable")
        rows = rows[order]
        self._value = desk.value[rows].astype(np.float64)
        classes, self._class = np.unique(desk.class_of[rows], return_inverse=True)
        self._first = np.searchsorted(self._class, np.arange(len(classes)))
        n_columns = self._value.shape[1]
        column = desk.options.column[classes]
        at_class, option = np.nonzero(column >= 0)
        by_group = np.argsort(at_class * n_columns + column[at_class, option], kind="stable")
        at_class, option = at_class[by_group], option[by_group]
        group = at_class * n_columns + column[at_class, option]
        self._groups, self._group_first, self._group_of = np.unique(group, return_index=True, return_inverse=True)
        self._uses = desk.options.uses[classes][at_class, option]
        self._shape = (len(classes), n_columns)
        self._capacity = np.minimum(capacity, len(rows))
        self._scale = desk.scale

    def solve(self, start: Floats) -> tuple[Floats, float]:
        """Prices at the least smoothing, and the contacts that take a place at them."""
        prices = start
        #: Only what can run out needs a price: everything else is wanted by fewer than it takes.
        most = np.bincount(self._uses.ravel(), minlength=len(start)) > 0
        active = np.flatnonzero(most & (self._capacity < len(self._value)))
        placed = 0.0
        for temperature in TEMPERATURES:
            weight = temperature * self._scale

            def smoothed(some: Floats, weight: float = weight) -> tuple[float, Floats]:
                full = np.zeros(len(start))
                full[active] = some * self._scale
                dual, slope, _ = self._at(full, weight)
                return dual / self._scale, slope[active]

            found = minimize(
                smoothed,
                prices[active] / self._scale,
                jac=True,
                method="L-BFGS-B",
                bounds=[(0.0, None)] * len(active),
                options={"maxiter": 150, "maxcor": 20, "ftol": 1e-9},
            )
            prices = np.zeros(len(start))
            prices[active] = found.x * self._scale
            placed = self._at(prices, weight)[2]
        return prices, placed

    def _at(self, prices: Floats, weight: float) -> tuple[float, Floats, float]:
        cheap = -prices[self._uses].sum(axis=1) / weight
        # Options of one column are alike to a contact: their sum is taken once a class.
        most = np.maximum.reduceat(cheap, self._group_first)
        inner = np.exp(cheap - most[self._group_of])
        sums = np.add.reduceat(inner, self._group_first)
        offers = np.full(self._shape[0] * self._shape[1], -np.inf)
        offers[self._groups] = most + np.log(sums)
        scores = self._value / weight + offers.reshape(self._shape)[self._class]
        top = np.maximum(scores.max(axis=1), 0.0)
        shares = np.exp(scores - top[:, None])
        total = np.exp(-top) + shares.sum(axis=1)
        shares /= total[:, None]
        by_class = np.add.reduceat(shares, self._first, axis=0).ravel()
        flow = by_class[self._groups][self._group_of] * inner / sums[self._group_of]
        taken = np.zeros(len(prices))
        for use in range(self._uses.shape[1]):
            taken += np.bincount(self._uses[:, use], weights=flow, minlength=len(prices))
        dual = float(self._capacity @ prices + weight * np.sum(top + np.log(total)))
        return dual, self._capacity - taken, float(flow.sum())
