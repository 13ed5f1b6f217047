"""Where each contact's mail goes: canary, then the random-hour share, then everybody else jointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from features.events import HOUR_MICROS
from features.tables import from_micros
from service.errors import Invalid
from service.flow.schedule.assignment import Options, assign, give_out, ruled_by
from service.flow.schedule.capacity import Capacity
from service.flow.schedule.intent import Intent, Limits, Placement, Sends
from service.flow.schedule.objective import Values
from service.flow.schedule.people import People
from service.flow.schedule.window import WATCHED, Clocks, Waves, Window
from service.quiet_hours import is_quiet
from training.policies.base import hashed_draws

NO_SLOT_IN_WINDOW = "no allowed hour left in the window"
#: Of those whose first allowed hour is earliest, so many are drawn from for each of the canary.
CANARY_POOL = 4
NO_SLOT_AFTER_CANARY = "no allowed hour left in the window once the canary has been watched"


def global_holdout_draws(salt: str, contact_keys: np.ndarray) -> np.ndarray:
    """Draw of each person in [0, 1), the same in every plan: below `Limits.global_holdout` nothing is sent to it."""
    return hashed_draws(salt, "everything", contact_keys, ["global-holdout"] * len(contact_keys))


class Draws:
    """The hashed draws of a plan: the same plan again draws the same."""

    def __init__(self, salt: str, intent: Intent, contact_keys: np.ndarray) -> None:
        def draw(purpose: str, scope: str) -> np.ndarray:
            return hashed_draws(salt, scope, contact_keys, [purpose] * len(contact_keys))

        scope = f"{intent.key}:{intent.occurrence}"
        self.minute = draw("minute", scope)
        self.explore = draw("explore", scope)
        self.slot = draw("slot", scope)
        self.wave = draw("wave", scope) if intent.waves > 1 else np.zeros(len(contact_keys))
        self.holdout = draw("holdout", scope)
        self.canary = draw("canary", scope) if intent.canary_share else np.ones(len(contact_keys))
        #: By person, not by campaign: the same people are held out of everything.
        self.global_holdout = global_holdout_draws(salt, contact_keys)


@dataclass(frozen=True)
class Classes:
    """Contacts to whom the same slots are open, at the same local hours, out of the same capacity.

    Attributes
    ----------
    of : ndarray of int64, shape (n_contacts,)
    hour : ndarray of int64, shape (n_classes, n_slots)
        Local hour of each slot.
    is_open : ndarray of bool, shape (n_classes, n_slots)
        Inside the window, outside quiet hours, where the contact's pause and cap let it.
    begins : ndarray of int64, shape (n_classes, n_slots)
        First instant at which a contact of the class leaves in each slot.
    uses : ndarray of int64, shape (n_classes, n_slots, 3)
    wave : ndarray of int64, shape (n_classes,)
    """

    of: np.ndarray
    hour: np.ndarray
    is_open: np.ndarray
    begins: np.ndarray
    uses: np.ndarray
    zone: np.ndarray
    wave: np.ndarray

    @classmethod
    def among(
        cls, people: People, intent: Intent, limits: Limits, draws: Draws, window: Window, capacity: Capacity,
        clocks: Clocks, waves: Waves,
    ) -> Classes:  # fmt: skip
        """Classes of the contacts of a plan."""
        n_slots = len(window.slots)
        if intent.timing == "at_start":
            part, n_parts = waves.of(draws.wave), intent.waves
        else:  # a quarter of an hour has one local hour in every zone
            part, n_parts = (draws.minute * 4).astype(np.int64), 4
        mailbox = people.mailbox if capacity.by_mailbox else np.zeros_like(people.mailbox)
        first = np.searchsorted(window.slots, people.not_before)
        ends = np.where(people.not_after < window.end, people.not_after, window.end + HOUR_MICROS)
        behind = np.searchsorted(window.slots + HOUR_MICROS, ends, side="right")
        sizes = (n_parts, max(1, len(people.mailboxes)), n_slots + 1)
        key = (((people.zone * sizes[0] + part) * sizes[1] + mailbox) * sizes[2] + first) * sizes[2] + behind
        keys, of = np.unique(key, return_inverse=True)
        keys, behind = np.divmod(keys, sizes[2])
        keys, first = np.divmod(keys, sizes[2])
        keys, mailbox = np.divmod(keys, sizes[1])
        zone, part = np.divmod(keys, sizes[0])
        begins, ends = _instants(intent, window, waves, part)
        hour = clocks.local_hour(zone[:, None], begins)
        slot = np.arange(n_slots)
        is_open = (begins >= window.begin) & (ends < window.end) & (slot >= first[:, None]) & (slot < behind[:, None])
        if intent.stream == "marketing":
            is_open &= ~is_quiet(hour, limits.quiet_hours)
            is_open &= ~is_quiet(clocks.local_hour(zone[:, None], ends), limits.quiet_hours)
        return cls(of, hour, is_open, begins, capacity.uses[mailbox], zone, part)

    def options(self, is_open: np.ndarray, order: np.ndarray | None = None) -> Options:
        """The slots, one option each; in ``order`` where they are to be gone through."""
        column = np.where(is_open, 0, -1)
        if order is None:
            return Options(column, self.uses)
        return Options(
            np.take_along_axis(column, order, axis=1), np.take_along_axis(self.uses, order[:, :, None], axis=1)
        )

    def hours_of(self, is_open: np.ndarray, n_columns: int) -> tuple[Options, np.ndarray]:
        """The slots as realisations of the hours of the day, and the slot of each option.

        A local hour that a clock skips stands for the first instant after it, as one more option; one that a clock
        repeats is there twice, and the first costs the least.
        """
        n_classes, n_slots = self.hour.shape
        slots = np.broadcast_to(np.arange(n_slots), (n_classes, n_slots))
        if n_columns == 1:
            return Options(np.where(is_open, 0, -1), self.uses), slots
        column = np.where(is_open, self.hour, -1)
        skips = np.zeros((n_classes, n_slots), dtype=bool)
        skips[:, 1:] = is_open[:, 1:] & ((self.hour[:, 1:] - self.hour[:, :-1]) % 24 == 2)
        extra = np.flatnonzero(skips.any(axis=0))
        skipped = np.where(skips[:, extra], (self.hour[:, extra] - 1) % 24, -1)
        return (
            Options(np.hstack([column, skipped]), np.concatenate([self.uses, self.uses[:, extra]], axis=1)),
            np.hstack([slots, np.broadcast_to(extra, (n_classes, len(extra)))]),
        )


def _instants(intent: Intent, window: Window, waves: Waves, part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last instant at which a contact of that part leaves in each slot, shape (n_parts, n_slots)."""
    if intent.timing != "at_start":
        step = window.width[None, :] * part[:, None] // 4
        begins = window.slots + window.opens + step
        return begins, window.slots + window.opens + window.width[None, :] * (part[:, None] + 1) // 4 - 1
    if intent.waves > 1:
        at = window.slots[None, :] + (waves.starts[part] % HOUR_MICROS)[:, None]
        return at, at
    at = np.broadcast_to(window.slots + window.opens, (len(part), len(window.slots)))
    return at, at


def place(
    people: People,
    values: Values,
    intent: Intent,
    limits: Limits,
    draws: Draws,
    window: Window,
    capacity: Capacity,
) -> Sends:
    """Each contact's slot and the reason for it; what it takes of the capacity is reserved in the order of the roles.

    First the canary, at the first hour open to each of it, drawn from those whose first hour is early: who has to
    wait for the morning at the window's far end is not watched, so that nobody waits for them. Then those who draw
    their hour, so that the random-hour share is what it was meant to be however tight the hours are; then all others
    jointly, at prices.
    """
    n, n_slots = len(people.zone), len(window.slots)
    clocks = Clocks(people.zones, window.begin, window.end)
    waves = Waves.over(window.begin, window.end, intent.waves)
    classes = Classes.among(people, intent, limits, draws, window, capacity, clocks, waves)
    of = classes.of
    takes = np.array([why is None for why in people.reason.tolist()], dtype=bool)
    if values.gain is not None:
        takes &= values.value.max(axis=1, initial=-np.inf) > 0
    is_holdout = (draws.holdout < intent.holdout_share) | (draws.global_holdout < limits.global_holdout)
    first_open = classes.is_open.argmax(axis=1) if n_slots else np.zeros(len(classes.zone), dtype=np.int64)
    canary_share = _canary_shares(classes, first_open, takes & ~is_holdout, intent.canary_share)
    is_canary = draws.canary < canary_share
    room = capacity.places.copy()
    chosen = np.full(n, -1, dtype=np.int64)
    why = np.full(n, "fixed", dtype=object)
    rows = np.flatnonzero(is_canary)
    chosen[rows] = give_out(of[rows], classes.options(classes.is_open), room, draws=draws.slot[rows], in_order=True)
    why[rows[chosen[rows] != first_open[of[rows]]]] = "full"
    unbound_of_others = _worth(values, classes, rows, first_open[of[rows]])
    rest = takes & ~is_canary
    later = classes.is_open
    rows = rows[chosen[rows] >= 0]
    if len(rows):
        last = int(_due(intent, window, waves, classes, draws, np.maximum(chosen, 0))[rows].max())
        later = _after_canary(classes, np.unique(of[rest]), last, window)
    propensity = np.ones(n)
    at_most_below, prices = 0.0, np.zeros(len(room))
    if intent.timing == "at_start":
        rows = np.flatnonzero(rest)
        order = (
            _wave_order(classes, window, waves) if intent.waves > 1 else np.tile(np.arange(n_slots), (len(later), 1))
        )
        taken = give_out(of[rows], classes.options(later, order), room, draws=draws.slot[rows], in_order=True)
        chosen[rows] = np.where(taken >= 0, order[of[rows], np.maximum(taken, 0)], -1)
        if n_slots:
            wished = order[np.arange(len(order)), np.take_along_axis(later, order, axis=1).argmax(axis=1)]
            why[rows[chosen[rows] != wished[of[rows]]]] = "full"
            unbound_of_others += _worth(values, classes, rows, wished[of[rows]])
            if intent.waves > 1:
                propensity = _wave_propensities(classes, later, order, waves)[of, np.maximum(chosen, 0)]
    else:
        draws_hour = np.full(n, True) if intent.timing == "spread" else draws.explore < limits.explore_share
        explores = rest & draws_hour & ~(values.is_indifferent & (intent.timing != "spread"))
        rows = np.flatnonzero(explores)
        untouched = give_out(of[rows], classes.options(later), np.full_like(room, n + 1), draws=draws.slot[rows])
        chosen[rows] = give_out(of[rows], classes.options(later), room, draws=draws.slot[rows])
        why[rows] = np.where(chosen[rows] == untouched, "explore", "full")
        unbound_of_others += _worth(values, classes, rows, untouched)
        options, slot_of = classes.hours_of(later, values.value.shape[1])
        rows = np.flatnonzero(rest & ~explores)
        joint = assign(
            values.value[rows], of[rows], options, room,
            draws=draws.slot[rows], is_indifferent=values.is_indifferent[rows],
        )  # fmt: skip
        prices = joint.prices
        at_most_below = 1.0 - joint.total / joint.bound if joint.bound > 0 else 0.0
        chosen[rows] = _slots(slot_of, of[rows], joint.chosen)
        wished = _slots(slot_of, of[rows], joint.wished)
        plain = np.where(values.is_indifferent[rows], "fallback", "best").astype(object)
        why[rows] = np.where(chosen[rows] == wished, plain, "full")
        unbound_of_others += joint.unbound
        np.subtract.at(room, options.uses[of[rows], np.maximum(joint.chosen, 0)][joint.chosen >= 0].ravel(), 1)
        best = _slots(slot_of, of, ruled_by(values.value, of, options, prices, draws.slot, values.is_indifferent))
        best[rows] = np.where(chosen[rows] >= 0, chosen[rows], best[rows])
        share = 1.0 if intent.timing == "spread" else limits.explore_share
        propensity = _hour_propensities(
            classes, later, chosen, best, np.where(values.is_indifferent, 1.0, share), canary_share, first_open
        )
    is_placed = chosen >= 0
    slot = np.maximum(chosen, 0)
    due = _due(intent, window, waves, classes, draws, slot) if n_slots else np.full(n, window.begin)
    due = np.where(is_placed, due, window.begin)
    state = np.where(is_placed, "planned", "unplaced").astype(object)
    reason = np.full(n, None, dtype=object)
    missing = np.flatnonzero(takes & ~is_placed)
    reason[missing] = _unplaced(classes, later, capacity, room, people, missing, bool(intent.canary_share))
    if values.gain is not None and limits.economy is not None:
        poor = np.flatnonzero(~takes)
        reason[poor] = _unprofitable(values, poor, limits.economy.currency)
    barred = np.array([text is not None for text in people.reason.tolist()], dtype=bool)
    state[barred], reason[barred] = "suppressed", people.reason[barred]
    expected = np.full(n, np.nan)
    if values.is_known:
        rows = np.flatnonzero(is_placed)
        expected[rows] = _values_at(values, classes, rows, chosen[rows])
    zone_names = np.array(people.zones, dtype=object)
    mailbox_names = np.array([*people.mailboxes, None], dtype=object)
    return Sends(
        intent=intent,
        contact_key=np.zeros(n, dtype=np.int64),
        state=state,
        reason=reason,
        due_at=due,
        timezone=zone_names[people.zone],
        assigned_local_hour=clocks.local_hour(people.zone, due),
        hour_propensity=np.where(is_placed, propensity, 1.0),
        hour_reason=why,
        is_holdout=is_holdout,
        is_canary=is_canary & is_placed,
        mailbox=mailbox_names[people.mailbox] if len(people.mailboxes) else np.full(n, None, dtype=object),
        expected_value=expected,
        placement=Placement(
            objective=limits.objective,
            expected=float(np.nansum(expected)) if values.is_known else None,
            expected_unbound=float(unbound_of_others) if values.is_known else None,
            at_most_below=max(0.0, float(at_most_below)),
            full=_full(capacity, room, prices),
            warm_up_days=_warm_up_days(people, capacity, takes, n_slots, window),
            zones=people.zone_sources,
        ),
    )


def _canary_shares(classes: Classes, first_open: np.ndarray, may: np.ndarray, share: float) -> np.ndarray:
    """Chance of each contact to be of the canary: the same for all of the earliest, nothing for the others."""
    chance = np.zeros(len(may))
    has_open = np.asarray(classes.is_open.any(axis=1))
    may = may & has_open[classes.of]
    n = int(may.sum())
    if share and n:
        first = first_open[classes.of]
        pool = int(np.ceil(min(1.0, CANARY_POOL * share) * n))
        earliest = may & (first <= np.partition(first[may], pool - 1)[pool - 1])
        chance[earliest] = share * n / earliest.sum()
    return chance


def _after_canary(classes: Classes, others: np.ndarray, last: int, window: Window) -> np.ndarray:
    """Slots open to each class once the canary, whose last mail is due at ``last``, has been watched."""
    opens = last + WATCHED // timedelta(microseconds=1)
    later = classes.is_open & (classes.begins >= opens)
    if classes.is_open[others].any() and not later[others].any():
        raise Invalid(
            f"the window from {from_micros(window.begin):%Y-%m-%d %H:%M} to {from_micros(window.end):%Y-%m-%d %H:%M} "
            f"UTC is too short for a canary: its last mail is due at {from_micros(last):%H:%M} UTC, the others may "
            f"leave from {from_micros(opens):%Y-%m-%d %H:%M} UTC on, and no allowed hour of theirs is left; end the "
            "window later, or set canary_share to 0"
        )
    return later


def _slots(slot_of: np.ndarray, of: np.ndarray, option: np.ndarray) -> np.ndarray:
    """Slot of each contact's option; -1 where it has none."""
    return np.where(option >= 0, slot_of[of, np.maximum(option, 0)], -1)


def _values_at(values: Values, classes: Classes, rows: np.ndarray, slot: np.ndarray) -> np.ndarray:
    column = classes.hour[classes.of[rows], slot] if values.value.shape[1] > 1 else np.zeros(len(rows), dtype=np.int64)
    return values.value[rows, column].astype(np.float64)


def _worth(values: Values, classes: Classes, rows: np.ndarray, slot: np.ndarray) -> float:
    """Expected value of all these at these slots."""
    has = slot >= 0
    return float(_values_at(values, classes, rows[has], slot[has]).sum()) if has.any() else 0.0


def _wave_order(classes: Classes, window: Window, waves: Waves) -> np.ndarray:
    """Of each class, its slots in the order it tries them: its wave's and those after it, then those before it."""
    rank = np.arange(len(window.slots))[None, :]
    at = window.slots[None, :] + (waves.starts[classes.wave] % HOUR_MICROS)[:, None]
    return np.argsort(np.where(at >= waves.starts[classes.wave][:, None], rank, 10**6 - rank), axis=1, kind="stable")


def _wave_propensities(classes: Classes, is_open: np.ndarray, order: np.ndarray, waves: Waves) -> np.ndarray:
    """Probability of each slot for each class: that of the waves that leave in it, in the class's zone."""
    in_order = np.take_along_axis(is_open, order, axis=1)
    has_slot = in_order.any(axis=1)
    slot = order[np.arange(len(order)), in_order.argmax(axis=1)]
    zones, zone = np.unique(classes.zone, return_inverse=True)
    # A wave without a contact in this audience still could have had one: its share is that of its own slot.
    by_zone = np.zeros((len(zones), is_open.shape[1]))
    for z in range(len(zones)):
        seen: set[int] = set()
        for c in np.flatnonzero((zone == z) & has_slot).tolist():
            if int(classes.wave[c]) not in seen:
                seen.add(int(classes.wave[c]))
                by_zone[z, slot[c]] += waves.shares[classes.wave[c]]
    return np.maximum(by_zone[zone], 1e-12)


def _hour_propensities(
    classes: Classes,
    is_open: np.ndarray,
    chosen: np.ndarray,
    best: np.ndarray,
    share: np.ndarray,
    canary_share: np.ndarray,
    first_open: np.ndarray,
) -> np.ndarray:
    """Probability of each contact's local hour: ``(1 - e) [it is the best] + e * allowed slots at it / allowed slots``.

    With a canary of share c that leaves at the first open hour, this counts for ``1 - c``.
    """
    n_classes, n_slots = is_open.shape
    if not n_slots:
        return np.ones(len(chosen))
    of = classes.of
    at_hour = np.zeros((n_classes, 24))
    np.add.at(at_hour, (np.repeat(np.arange(n_classes), n_slots), classes.hour.ravel()), is_open.ravel())
    evenly = at_hour / np.maximum(is_open.sum(axis=1, keepdims=True), 1)
    hour = classes.hour[of, np.maximum(chosen, 0)]
    best_hour = np.where(best >= 0, classes.hour[of, np.maximum(best, 0)], -1)
    propensity = (1.0 - share) * (hour == best_hour) + share * evenly[of, hour]
    if canary_share.any():
        is_first = hour == classes.hour[of, first_open[of]]
        propensity = (1.0 - canary_share) * propensity + canary_share * is_first
    return np.clip(propensity, 1e-12, 1.0)


def _due(intent: Intent, window: Window, waves: Waves, classes: Classes, draws: Draws, slot: np.ndarray) -> np.ndarray:
    """When each contact leaves in its slot: at its own minute, so that the mails of an hour are spread over it."""
    if intent.timing != "at_start":
        return window.slots[slot] + window.opens[slot] + (draws.minute * window.width[slot]).astype(np.int64)
    if intent.waves > 1:
        return window.slots[slot] + waves.starts[classes.wave[classes.of]] % HOUR_MICROS
    return window.slots[slot] + window.opens[slot]


def _unplaced(
    classes: Classes,
    is_open: np.ndarray,
    capacity: Capacity,
    room: np.ndarray,
    people: People,
    rows: np.ndarray,
    has_canary: bool,
) -> np.ndarray:
    """Why each of these found no place."""
    texts = np.full(len(rows), None, dtype=object)
    told: dict[int, str] = {}
    for place, row in enumerate(rows.tolist()):
        c = int(classes.of[row])
        if c not in told:
            told[c] = _why_unplaced(classes, is_open, capacity, room, people.mailboxes, c, has_canary)
        texts[place] = told[c]
    return texts


def _why_unplaced(
    classes: Classes, is_open: np.ndarray, capacity: Capacity, room: np.ndarray, mailboxes: Sequence[str], c: int,
    has_canary: bool,
) -> str:  # fmt: skip
    if not is_open[c].any():
        return NO_SLOT_AFTER_CANARY if has_canary and classes.is_open[c].any() else NO_SLOT_IN_WINDOW
    uses = classes.uses[c][is_open[c]]
    full = [np.all(room[uses[:, use]] <= 0) for use in range(3)]
    use = next((use for use in (2, 1, 0) if full[use]), 0)
    limit = capacity.names[int(uses[0, use])]
    whose = f" to {limit['mailbox']}" if limit.get("mailbox") else ""
    if use == 2:
        return f"the window's days are full: a new sending address is warmed up{whose}"
    return f"the window's hours are full at {limit['limit']}{whose}"


def _unprofitable(values: Values, rows: np.ndarray, currency: str) -> np.ndarray:
    """Expected profit of the best hour, where that is nothing or a loss."""
    assert values.gain is not None
    gain = values.gain[rows]
    texts = np.empty(len(rows), dtype=object)
    texts[:] = [
        f"expected profit {brought - values.cost:.3g} {currency}: an expected margin of {brought:.3g} is below the "
        f"{values.cost:.3g} that the mail and its unsubscribes cost"
        for brought in gain.tolist()
    ]
    return texts


def _full(capacity: Capacity, room: np.ndarray, prices: np.ndarray) -> tuple[dict[str, Any], ...]:
    """What has no place left, or a price."""
    is_full = ((room <= 0) | (prices > 0)) & (capacity.places < 1 << 50)
    return tuple(
        capacity.names[resource]
        | {"mails": int(capacity.places[resource] - room[resource]), "price": float(prices[resource])}
        for resource in np.flatnonzero(is_full[:-1]).tolist()
    )


def _warm_up_days(
    people: People, capacity: Capacity, takes: np.ndarray, n_slots: int, window: Window
) -> dict[str, int]:
    if not capacity.warm_up or not n_slots:
        return {}
    counts = np.bincount(people.mailbox[takes], minlength=len(people.mailboxes))
    needed = capacity.days_needed(dict(zip(people.mailboxes, counts.tolist(), strict=True)))
    has = (from_micros(window.end - 1).date() - from_micros(window.begin).date()) // timedelta(days=1) + 1
    return {mailbox: days for mailbox, days in needed.items() if days > has}
