"""When: contacts, their hours, consent and caps → sends with `due_at`, one per intent, no arm yet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo

import numpy as np
from sqlalchemy import insert, select
from sqlalchemy.orm import Session

from features.events import DAY_MICROS, HOUR_MICROS
from features.tables import ContactRow, allocate, from_micros, to_micros
from service.errors import Conflict, Invalid
from service.flow.predict import Hours
from service.suppression import mailable
from service.tables import SendRow
from training.policies.base import hashed_draws

CAP_WINDOW_DAYS = 7

#: States that count against the frequency cap (ARCHITECTURE section 9).
COUNTED_STATES = ("planned", "claimed", "attempting", "accepted", "unknown", "held_out")

#: Contacts a planning query asks for at once.
CHUNK = 5_000

#: Share of the contacts in the first of several waves: it is drawn evenly, so it is kept small.
FIRST_WAVE_SHARE = 0.1
MAX_WAVES = 96

NO_SLOT_IN_WINDOW = "no allowed hour left in the window"


@dataclass(frozen=True)
class Intent:
    """What is to be sent, before it is known to whom and when.

    Attributes
    ----------
    key : str
        Campaign (or journey version and step): with the contact and the occurrence it makes the intent key.
    window_start, window_end : datetime
        The send leaves in ``[window_start, window_end)``.
    timing : {'best_hour', 'spread', 'at_start'}
        Each contact's best hour; a uniformly random allowed hour; at once.
    waves : int
        Parts, spread evenly over the window, that a send ``at_start`` is cut into, so that each part's arms are drawn
        from what the parts before it have taught. The other timings leave in hourly waves by themselves.
    """

    key: str
    template_id: str
    template_version: int
    window_start: datetime
    window_end: datetime
    campaign_id: str | None = None
    stream: str = "marketing"
    topic: str = "marketing"
    timing: str = "best_hour"
    occurrence: str = "1"
    holdout_share: float = 0.0
    waves: int = 1


@dataclass(frozen=True)
class Limits:
    """The installation's rules for the hour and the number of mails."""

    quiet_hours: tuple[int, int] | None
    frequency_cap: int
    rate_per_minute: int
    explore_share: float
    global_holdout: float
    default_timezone: str
    pepper: str
    salt: str
    sandbox: str = ""


@dataclass(frozen=True)
class Sends:
    """One planned send per contact, in arrays of length n_contacts.

    Attributes
    ----------
    state : ndarray of str
        ``planned``, or a terminal state: ``suppressed`` or ``unplaced``.
    reason : ndarray of object
        Why, where the state is terminal; else None.
    due_at : ndarray of int64
        Microseconds since 1970 UTC; the window's start where terminal.
    hour_propensity : ndarray of float64
        Probability with which this plan would choose this hour again, in (0, 1].
    """

    intent: Intent
    contact_key: np.ndarray
    state: np.ndarray
    reason: np.ndarray
    due_at: np.ndarray
    timezone: np.ndarray
    assigned_local_hour: np.ndarray
    hour_propensity: np.ndarray
    hour_reason: np.ndarray
    is_holdout: np.ndarray

    def __len__(self) -> int:
        return len(self.contact_key)

    def counts(self) -> dict[str, int]:
        """Contacts by state, with the reason behind a colon where there is one."""
        labels = (
            state if reason is None else f"{state}: {reason}"
            for state, reason in zip(self.state, self.reason, strict=True)
        )
        return dict(sorted(Counter(labels).items()))


def schedule(
    session: Session, intent: Intent, contact_keys: np.ndarray, hours: Hours | None, limits: Limits, *, now: datetime
) -> Sends:
    """Sends of ``intent`` to ``contact_keys``: each placed at its hour, or ended with the reason why not.

    Collisions are resolved in this order: consent and suppression, frequency cap, quiet hours and window, throughput,
    best hour. Holdouts are placed like any other send and trapped at the claim, so that both sides went through the
    same. Nothing is written.

    Parameters
    ----------
    contact_keys : ndarray of int64, shape (n_contacts,)
    hours : Hours or None
        Rows in the order of ``contact_keys``; None where no send-hour model serves.

    Raises
    ------
    Invalid
        If the window is empty or has passed, or the timing is not known.
    """
    _check(intent, now)
    zones = _timezones(session, contact_keys, limits.default_timezone)
    draws = _Draws(limits.salt, intent, contact_keys)
    placed = _place(intent, zones, hours, limits, draws, now)
    blocked = _blocked(session, intent, contact_keys, placed.due_at, limits)
    state, reason = placed.state.copy(), placed.reason.copy()
    for position, why in blocked.items():
        state[position], reason[position] = "suppressed", why
    # Only contacts that pass consent and cap take up room, so the places are given out once more among them.
    if blocked:
        keep = np.ones(len(contact_keys), dtype=bool)
        keep[list(blocked)] = False
        placed = _place(intent, zones, hours, limits, draws, now, takes_room=keep)
        state[keep], reason[keep] = placed.state[keep], placed.reason[keep]
    return replace(placed, contact_key=contact_keys, state=state, reason=reason)


def write_sends(session: Session, sends: Sends, *, now: datetime) -> int:
    """Put the sends into the ledger; returns how many rows were new.

    Raises
    ------
    Conflict
        If one of the intents is in the ledger already: an intent exists once.
    """
    if not len(sends):
        return 0
    intent = sends.intent
    existing = session.scalar(
        select(SendRow.intent_key).where(SendRow.intent_key.startswith(f"{intent.key}:", autoescape=True)).limit(1)
    )
    if existing is not None:
        raise Conflict(f"{intent.key} is in the ledger already (intent {existing}); plan a new campaign to send again")
    first = allocate(session, "send_id", len(sends))
    rows = (
        {
            "send_id": first + i,
            "intent_key": f"{intent.key}:{int(sends.contact_key[i])}:{intent.occurrence}",
            "contact_key": int(sends.contact_key[i]),
            "campaign_id": intent.campaign_id,
            "stream": intent.stream,
            "topic": intent.topic,
            "template_id": intent.template_id,
            "template_version": intent.template_version,
            "state": str(sends.state[i]),
            "reason": sends.reason[i],
            "due_at": from_micros(sends.due_at[i]),
            "not_after": intent.window_end + timedelta(hours=1),
            "timezone": str(sends.timezone[i]),
            "assigned_local_hour": int(sends.assigned_local_hour[i]),
            "hour_propensity": float(sends.hour_propensity[i]),
            "hour_reason": str(sends.hour_reason[i]),
            "is_holdout": bool(sends.is_holdout[i]),
            "lease_token": 0,
            "attempts": 0,
            "created_at": now,
            "finished_at": None if sends.state[i] == "planned" else now,
        }
        for i in range(len(sends))
    )
    for _ in range(0, len(sends), CHUNK):
        session.execute(insert(SendRow), list(islice(rows, CHUNK)))
    return len(sends)


def _check(intent: Intent, now: datetime) -> None:
    if intent.window_end <= intent.window_start:
        raise Invalid(
            f"the window ends at {intent.window_end.isoformat()}, not after its start "
            f"{intent.window_start.isoformat()}; set window_end later"
        )
    if intent.window_end <= now:
        raise Invalid(f"the window ended at {intent.window_end.isoformat()}; it is {now.isoformat()} now")
    if intent.timing not in ("best_hour", "spread", "at_start"):
        raise Invalid(f"timing {intent.timing!r} is not known; write best_hour, spread or at_start")
    if not 0 <= intent.holdout_share <= 0.9:
        raise Invalid(f"holdout_share {intent.holdout_share} is outside 0 to 0.9")
    check_waves(intent.waves, intent.timing)


def check_waves(waves: int, timing: str) -> None:
    """Whether a send of this timing can be cut into so many waves.

    Raises
    ------
    Invalid
        If there are none or too many, or if the timing has waves of its own.
    """
    if not 1 <= waves <= MAX_WAVES:
        raise Invalid(f"{waves} waves are outside 1 to {MAX_WAVES}; 8 are enough to learn within one send")
    if waves > 1 and timing != "at_start":
        raise Invalid(f"{waves} waves do not go with timing {timing!r}, which leaves in hourly waves; leave waves at 1")


@dataclass(frozen=True)
class Waves:
    """When the parts of a send leave, and the share of the contacts in each.

    Attributes
    ----------
    starts : ndarray of int64, shape (n_waves,)
        Microseconds since 1970 UTC.
    shares : ndarray of float64, shape (n_waves,)
    """

    starts: np.ndarray
    shares: np.ndarray

    @classmethod
    def over(cls, begin: int, end: int, n: int) -> Waves:
        """``n`` waves at even distances over ``[begin, end)``: as far apart as the window allows.

        Examples
        --------
        >>> Waves.over(0, 400, 4).starts.tolist(), Waves.over(0, 400, 4).shares.round(2).tolist()
        ([0, 100, 200, 300], [0.1, 0.3, 0.3, 0.3])
        """
        starts = begin + (end - begin) * np.arange(n, dtype=np.int64) // n
        rest = [(1 - FIRST_WAVE_SHARE) / (n - 1)] * (n - 1) if n > 1 else []
        return cls(starts, np.array([FIRST_WAVE_SHARE, *rest] if n > 1 else [1.0]))

    def of(self, draws: np.ndarray) -> np.ndarray:
        """Wave of each contact, by its draw in [0, 1)."""
        return np.minimum(np.searchsorted(np.cumsum(self.shares), draws, side="right"), len(self.shares) - 1)


class _Draws:
    """The hashed draws of a plan: the same plan again draws the same."""

    def __init__(self, salt: str, intent: Intent, contact_keys: np.ndarray) -> None:

        def draw(purpose: str, scope: str) -> np.ndarray:
            return hashed_draws(salt, scope, contact_keys, [purpose] * len(contact_keys))

        scope = f"{intent.key}:{intent.occurrence}"
        self.minute = draw("minute", scope)
        self.explore = draw("explore", scope)
        self.slot = draw("slot", scope)
        self.wave = draw("wave", scope)
        self.holdout = draw("holdout", scope)
        #: By person, not by campaign: the same people are held out of everything.
        self.global_holdout = draw("global-holdout", "everything")


def _timezones(session: Session, contact_keys: np.ndarray, default: str) -> np.ndarray:
    known: dict[int, str | None] = {}
    for start in range(0, len(contact_keys), CHUNK):
        chunk = contact_keys[start : start + CHUNK].tolist()
        query = select(ContactRow.contact_key, ContactRow.timezone).where(ContactRow.contact_key.in_(chunk))
        known.update(session.execute(query).all())
    return np.array([known.get(key) or default for key in contact_keys.tolist()], dtype=object)


def _place(
    intent: Intent,
    zones: np.ndarray,
    hours: Hours | None,
    limits: Limits,
    draws: _Draws,
    now: datetime,
    takes_room: np.ndarray | None = None,
) -> Sends:
    n = len(zones)
    begin = max(to_micros(intent.window_start), to_micros(now))
    end = to_micros(intent.window_end)
    slots = np.arange(begin - begin % HOUR_MICROS, end, HOUR_MICROS, dtype=np.int64)
    waves = Waves.over(begin, end, intent.waves)
    earliest = waves.starts[waves.of(draws.wave)]
    # A contact keeps its minute in every slot, so that the mails of an hour are spread over it; a wave keeps its own.
    if intent.waves > 1:
        offset = earliest % HOUR_MICROS
    elif intent.timing == "at_start":
        offset = np.zeros(n, dtype=np.int64)
    else:
        offset = (draws.minute * HOUR_MICROS).astype(np.int64)
    local_hour = np.empty((n, len(slots)), dtype=np.int8)
    for zone in np.unique(zones):
        rows = np.flatnonzero(zones == zone)
        local_micros = slots + _utc_offsets(str(zone), slots)
        local_hour[rows] = ((local_micros[None, :] + offset[rows, None]) // HOUR_MICROS) % 24
    instant = slots[None, :] + offset[:, None]
    if intent.timing == "at_start" and intent.waves == 1:
        instant = np.maximum(instant, begin)
    allowed = (instant >= begin) & (instant < end)
    if limits.quiet_hours is not None and intent.stream == "marketing":
        allowed &= ~_is_quiet(local_hour, limits.quiet_hours)
    preference, propensity_of, why = _preferences(intent, local_hour, allowed, hours, limits.explore_share, draws)
    if intent.waves > 1:
        quiet = limits.quiet_hours if intent.stream == "marketing" else None
        preference = _wave_preference(instant, earliest)
        propensity_of = _wave_propensities(waves, zones, slots, (begin, end), quiet)
    taken = np.ones(n, dtype=bool) if takes_room is None else takes_room
    chosen = _give_out(preference, allowed & taken[:, None], capacity=limits.rate_per_minute * 60, order=draws.slot)
    state = np.where(chosen >= 0, "planned", "unplaced").astype(object)
    reason = np.full(n, None, dtype=object)
    has_allowed = allowed.any(axis=1)
    reason[(chosen < 0) & ~has_allowed] = NO_SLOT_IN_WINDOW
    reason[(chosen < 0) & has_allowed] = f"the window's hours are full at {limits.rate_per_minute} mails a minute"
    safe = np.maximum(chosen, 0)
    rows = np.arange(n)
    if len(slots):  # moved on from a full hour: no draw chose it, so it stands as one of the allowed ones
        wished = np.argmax(np.where(allowed, preference, -np.inf), axis=1)
        moved = (chosen >= 0) & (chosen != wished)
        why = np.where(moved, "full", why).astype(object)
        propensity_of[moved] = 1.0 / np.maximum(allowed.sum(axis=1), 1)[moved, None]
    return Sends(
        intent=intent,
        contact_key=np.zeros(n, dtype=np.int64),
        state=state,
        reason=reason,
        due_at=np.where(chosen >= 0, instant[rows, safe] if len(slots) else 0, begin),
        timezone=zones,
        assigned_local_hour=local_hour[rows, safe].astype(np.int64) if len(slots) else np.zeros(n, dtype=np.int64),
        hour_propensity=np.where(chosen >= 0, propensity_of[rows, safe], 1.0) if len(slots) else np.ones(n),
        hour_reason=why,
        is_holdout=(draws.holdout < intent.holdout_share) | (draws.global_holdout < limits.global_holdout),
    )


def _wave_preference(instant: np.ndarray, earliest: np.ndarray) -> np.ndarray:
    """The first slot from the wave's start on; where there is none left in the window, the last one before it."""
    rank = np.arange(instant.shape[1], dtype=np.float64)[None, :]
    return np.where(instant >= earliest[:, None], -rank, rank - 1e6)


def _wave_propensities(
    waves: Waves, zones: np.ndarray, slots: np.ndarray, window: tuple[int, int], quiet: tuple[int, int] | None
) -> np.ndarray:
    """Probability of each slot for each contact, shape (n, n_slots): that of the waves whose slot it is."""
    propensities = np.zeros((len(zones), len(slots)))
    instant = slots[None, :] + (waves.starts % HOUR_MICROS)[:, None]
    preference = _wave_preference(instant, waves.starts)
    inside = (instant >= window[0]) & (instant < window[1])
    for zone in np.unique(zones):
        local_hour = ((instant + _utc_offsets(str(zone), slots)[None, :]) // HOUR_MICROS) % 24
        is_open = inside if quiet is None else inside & ~_is_quiet(local_hour, quiet)
        has_slot = is_open.any(axis=1)
        chosen = np.where(is_open, preference, -np.inf).argmax(axis=1)[has_slot]
        propensities[zones == zone] = np.bincount(chosen, weights=waves.shares[has_slot], minlength=len(slots))
    return propensities


def _utc_offsets(zone: str, instants: np.ndarray) -> np.ndarray:
    tz = ZoneInfo(zone)
    seconds = [from_micros(t).astimezone(tz).utcoffset() or timedelta() for t in instants.tolist()]
    return np.array([int(offset.total_seconds()) for offset in seconds], dtype=np.int64) * 1_000_000


def _is_quiet(local_hour: np.ndarray, quiet: tuple[int, int]) -> np.ndarray:
    begin, end = quiet
    if begin <= end:
        return (local_hour >= begin) & (local_hour < end)
    return (local_hour >= begin) | (local_hour < end)


def _preferences(
    intent: Intent,
    local_hour: np.ndarray,
    allowed: np.ndarray,
    hours: Hours | None,
    explore_share: float,
    draws: _Draws,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score of each slot (higher is preferred), its probability under the plan's rule, and the rule's name."""
    n, n_slots = local_hour.shape
    count = np.maximum(allowed.sum(axis=1), 1)
    by_time = -np.arange(n_slots, dtype=np.float64)[None, :] * 1e-9
    if intent.timing == "at_start":
        return np.broadcast_to(by_time, (n, n_slots)).copy(), np.ones((n, n_slots)), np.full(n, "fixed", dtype=object)
    # The k-th allowed slot with k uniform: every allowed slot is equally likely.
    rank = np.cumsum(allowed, axis=1) - 1
    uniform_pick = allowed & (rank == (draws.slot * count).astype(np.int64)[:, None])
    uniform = np.where(uniform_pick, 1.0, 0.0) + by_time
    uniform_propensity = np.broadcast_to(1.0 / count[:, None], (n, n_slots))
    if intent.timing == "spread" or hours is None:
        why = np.full(n, "explore" if intent.timing == "spread" else "fallback", dtype=object)
        return uniform, uniform_propensity.copy(), why
    expected = np.take_along_axis(hours.probabilities, local_hour.astype(np.int64), axis=1)
    scored = np.where(allowed, expected, -1.0) + by_time
    best = np.zeros((n, n_slots), dtype=bool)
    best[np.arange(n), np.argmax(scored, axis=1)] = True
    explores = draws.explore < explore_share
    is_uniform = explores | ~hours.is_usable
    preference = np.where(is_uniform[:, None], uniform, scored)
    mixed = (1 - explore_share) * best + explore_share * uniform_propensity
    propensity = np.where(hours.is_usable[:, None], mixed, uniform_propensity)
    why = np.where(~hours.is_usable, "fallback", np.where(explores, "explore", "best")).astype(object)
    return preference, propensity, why


def _give_out(preference: np.ndarray, allowed: np.ndarray, *, capacity: int, order: np.ndarray) -> np.ndarray:
    """Slot of each contact, -1 where none is left: its preferred one, or the next while a slot is full.

    Who keeps a full slot is drawn (``order``), and a contact that has a place keeps it.
    """
    n, n_slots = preference.shape
    chosen = np.full(n, -1, dtype=np.int64)
    room = np.full(n_slots, capacity, dtype=np.int64)
    open_slots = allowed.copy()
    waiting = np.flatnonzero(open_slots.any(axis=1)) if n_slots else np.empty(0, dtype=np.int64)
    while len(waiting):
        wish = np.argmax(np.where(open_slots[waiting], preference[waiting], -np.inf), axis=1)
        ranked = np.lexsort((order[waiting], wish))
        sorted_wish = wish[ranked]
        starts = np.searchsorted(sorted_wish, sorted_wish, side="left")
        fits = np.arange(len(ranked)) - starts < room[sorted_wish]
        winners = ranked[fits]
        chosen[waiting[winners]] = wish[winners]
        room -= np.bincount(wish[winners], minlength=n_slots)
        waiting = waiting[ranked[~fits]]
        open_slots[np.ix_(waiting, np.flatnonzero(room <= 0))] = False
        waiting = waiting[open_slots[waiting].any(axis=1)]
    return chosen


def _blocked(
    session: Session, intent: Intent, contact_keys: np.ndarray, due_at: np.ndarray, limits: Limits
) -> dict[int, str]:
    """Position → reason of the contacts that may not be mailed, or would pass the frequency cap."""
    blocked: dict[int, str] = {}
    for start in range(0, len(contact_keys), CHUNK):
        keys = contact_keys[start : start + CHUNK].tolist()
        reasons = mailable(
            session, keys, intent.topic, pepper=limits.pepper, stream=intent.stream, sandbox=limits.sandbox
        )
        is_capped = intent.stream == "marketing" and limits.frequency_cap > 0
        earlier = _earlier_sends(session, keys, intent) if is_capped else {}
        for i, key in enumerate(keys, start):
            if reasons.get(key) is not None:
                blocked[i] = str(reasons[key])
                continue
            since = due_at[i] - CAP_WINDOW_DAYS * DAY_MICROS
            count = sum(since < at <= due_at[i] for at in earlier.get(key, ()))
            if is_capped and count >= limits.frequency_cap:
                blocked[i] = f"frequency cap: {limits.frequency_cap} mails in {CAP_WINDOW_DAYS} days"
    return blocked


def _earlier_sends(session: Session, keys: list[int], intent: Intent) -> dict[int, list[int]]:
    query = select(SendRow.contact_key, SendRow.due_at).where(
        SendRow.contact_key.in_(keys),
        SendRow.due_at > intent.window_start - timedelta(days=CAP_WINDOW_DAYS),
        SendRow.due_at <= intent.window_end,
        SendRow.state.in_(COUNTED_STATES),
        SendRow.stream == "marketing",
    )
    earlier: dict[int, list[int]] = {}
    for key, due in session.execute(query):
        earlier.setdefault(key, []).append(to_micros(due))
    return earlier


def as_utc(instant: datetime) -> datetime:
    """``instant`` in UTC.

    Raises
    ------
    Invalid
        If it carries no time zone.
    """
    if instant.tzinfo is None:
        raise Invalid(f"{instant.isoformat()} has no time zone; write it as 2026-03-01T09:00:00Z")
    return instant.astimezone(UTC)
