"""A world whose truth is known: contacts with hidden hours, tastes and lives, and how they answer a mail.

For the demo, the simulate command, tests and notebooks. Nothing that learns or decides may import it: what is
learned must come out of the events. The past that the world hands out is written in ``training.simulated_past``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from features.tables import from_micros, to_micros
from training.policies.base import FloatArray, IntArray, hashed_draws

HOUR = 3_600_000_000
DAY = 24 * HOUR
#: Days beyond the past for which purchases and visits are drawn too, so that a running demo can go on.
DAYS_BEYOND = 45

#: Mean share of living contacts that opens a mail with this subject line, over all hours.
SUBJECTS = {"plain": 0.18, "question": 0.22, "personal": 0.28}
#: Mean share of the openers that clicks when the mail carries this block.
BLOCKS = {"bestsellers": 0.22, "for_you": 0.34}
ZONES = ("Europe/London", "Europe/Berlin", "America/New_York", "America/Los_Angeles", "Asia/Tokyo")
ZONE_SHARES = (0.35, 0.30, 0.20, 0.10, 0.05)
#: Local hour at which each chronotype is most awake to mail, and its share of the contacts.
CHRONOTYPES = {"morning": (7.5, 0.30), "noon": (12.5, 0.20), "evening": (19.5, 0.35), "night": (22.5, 0.15)}
#: A mail sinks in the inbox: what arrives ``h`` hours before its reader is seen ``exp(-h / BURIED_HOURS)`` as often.
BURIED_HOURS = 3.0
#: Share of mail's fate that hangs on the hour at all; the rest is read whenever it comes. With .65 the best hour of
#: each contact is worth some 1.9 times a random one (1.6 in the trial of send hours on real clocks).
HOUR_CONTRAST = 0.65
OPEN_DELAY_MEDIAN_HOURS, OPEN_DELAY_SIGMA = 3.0, 1.0
PROXY_SHARE, SCANNER_SHARE, UNSUBSCRIBE_RATE = 0.15, 0.03, 0.0015
#: What Apple's mail privacy proxy says it is; and a person's mail program.
PROXY_AGENT = "Mozilla/5.0"
HUMAN_AGENT = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Mobile/15E148"
)
_UNIFORMS = 16
_FIRST_NAMES = (
    "Ada",
    "Ben",
    "Chloé",
    "Dmitri",
    "Elif",
    "Farid",
    "Grace",
    "Hana",
    "Ida",
    "Jonas",
    "Kofi",
    "Léa",
    "Mei",
    "Noor",
)


@dataclass(frozen=True, slots=True)
class SimulatedContact:
    """What a business knows of a contact."""

    user_id: str
    email: str | None
    name: str | None
    timezone: str
    is_subscribed: bool
    joined_at: datetime


@dataclass(frozen=True, slots=True)
class Response:
    """When a contact answers one mail; None for what does not happen."""

    open_at: datetime | None
    click_at: datetime | None
    unsubscribe_at: datetime | None
    #: A privacy proxy fetches the images seconds after delivery.
    machine_open_at: datetime | None
    #: A security scanner follows the links seconds after delivery.
    machine_click_at: datetime | None


@dataclass(frozen=True)
class Answers:
    """Responses of many mails as microseconds since 1970 UTC, -1 for what does not happen; shape (n,) each."""

    open_at: IntArray
    click_at: IntArray
    unsubscribe_at: IntArray
    machine_open_at: IntArray
    machine_click_at: IntArray


@dataclass(frozen=True, eq=False, repr=False)
class World:
    """The hidden truth of every contact. Arrays are of shape (n_contacts, ...)."""

    seed: int
    start: int
    n_days: int
    user_ids: tuple[str, ...]
    contacts: tuple[SimulatedContact, ...]
    has_hour_effect: bool
    #: True where contacts and purchases come from a file, so that only mail is simulated.
    has_given_orders: bool
    zone: IntArray
    zones: tuple[str, ...]
    #: shape (n, 24): how awake to mail and to the shop at each local hour; mean one.
    activity: FloatArray
    #: shape (n, 24): factor of the open probability by the local hour at which a mail arrives; mean one.
    attention: FloatArray
    engagement: FloatArray
    #: shape (n, 3) and (n, 2): personal factor of each subject line and block; mean about one.
    subject_taste: FloatArray
    block_taste: FloatArray
    on_proxy: NDArray[np.bool_]
    behind_scanner: NDArray[np.bool_]
    joined_at: IntArray
    #: When the contact turns away for good; int64's maximum for those who do not.
    dropout_at: IntArray
    #: Contact index and instant of every purchase, sorted by instant.
    purchase_contact: IntArray
    purchase_at: IntArray

    @classmethod
    def generate(
        cls,
        n_contacts: int,
        n_days: int,
        seed: int,
        *,
        start: datetime,
        hour_effect: bool = True,
        orders: pd.DataFrame | None = None,
        orders_zone: str = "Europe/London",
    ) -> World:
        """A world that begins at ``start`` and has a past of ``n_days``; the same seed gives the same world.

        Parameters
        ----------
        n_contacts : int
            Not used with ``orders``.
        start : datetime, aware
        hour_effect : bool
            False: nobody prefers any hour, for mail or anything else.
        orders : DataFrame, optional
            Real purchases, columns ``user_id`` and ``ordered_at`` (aware datetimes or microseconds since 1970 UTC).
            Contacts are those of the file, in ``orders_zone``. Their answers to mail then know nothing of their
            orders, so that no simulated event can give a real outcome away.
        """
        rng = np.random.default_rng([seed, 1])
        first = to_micros(start)
        if orders is None:
            if n_contacts < 1 or n_days < 1:
                raise ValueError(
                    f"a world of {n_contacts} contacts and {n_days} days is empty; ask for at least 1 of each"
                )
            user_ids = tuple(f"u{i:06d}" for i in range(1, n_contacts + 1))
        else:
            missing = {"user_id", "ordered_at"} - set(orders.columns)
            if missing:
                raise ValueError(f"orders lack the column(s) {sorted(missing)}; give user_id and ordered_at")
            user_ids = tuple(sorted(set(orders["user_id"].astype(str))))
        n = len(user_ids)
        zones = ZONES if orders is None else (orders_zone,)
        zone = rng.choice(len(ZONES), n, p=ZONE_SHARES) if orders is None else np.zeros(n, dtype=np.int64)
        activity = _activity(rng, n) if hour_effect else np.ones((n, 24))
        buried = np.exp(-np.arange(24) / BURIED_HOURS)
        attention = np.stack([activity[:, np.arange(s, s + 24) % 24] @ buried for s in range(24)], axis=1)
        engagement = 0.3 + 1.4 * rng.beta(2, 2, n)
        if orders is None:
            joined_at = first + (rng.uniform(-120, 0.7 * n_days, n) * DAY).astype(np.int64)
            dropout_at, purchase_contact, purchase_at = _purchases(rng, joined_at, engagement, first, n_days)
        else:
            purchase_contact, purchase_at = _given(orders, user_ids)
            joined_at = np.full(n, np.iinfo(np.int64).max)
            np.minimum.at(joined_at, purchase_contact, purchase_at)
            dropout_at = np.full(n, np.iinfo(np.int64).max)
        return cls(
            seed=seed,
            start=first,
            n_days=n_days,
            user_ids=user_ids,
            contacts=_contacts(rng, user_ids, [zones[z] for z in zone], joined_at),
            has_hour_effect=hour_effect,
            has_given_orders=orders is not None,
            zone=zone,
            zones=zones,
            activity=activity,
            attention=1 - HOUR_CONTRAST + HOUR_CONTRAST * attention / attention.mean(axis=1, keepdims=True),
            engagement=engagement,
            subject_taste=rng.lognormal(-(0.15**2) / 2, 0.15, (n, len(SUBJECTS))),
            block_taste=rng.lognormal(-(0.2**2) / 2, 0.2, (n, len(BLOCKS))),
            on_proxy=rng.random(n) < PROXY_SHARE,
            behind_scanner=rng.random(n) < SCANNER_SHARE,
            joined_at=joined_at,
            dropout_at=dropout_at,
            purchase_contact=purchase_contact,
            purchase_at=purchase_at,
        )

    @property
    def end(self) -> datetime:
        """The end of the past: ``start`` and ``n_days``."""
        return from_micros(self.start + self.n_days * DAY)

    @property
    def days_beyond(self) -> int:
        """Days after the past for which purchases and visits are known."""
        return DAYS_BEYOND

    @cached_property
    def _index(self) -> dict[str, int]:
        return {user_id: i for i, user_id in enumerate(self.user_ids)}

    def index_of(self, user_ids: Sequence[str]) -> IntArray:
        """Row of each contact in the world's arrays."""
        try:
            return np.array([self._index[user_id] for user_id in user_ids], dtype=np.int64)
        except KeyError as error:
            raise LookupError(f"contact {error.args[0]!r} is not in this world of {len(self.user_ids)}") from None

    @cached_property
    def _past(self) -> list[Any]:
        from training.simulated_past import events_of

        return events_of(self)

    def history(self, until: datetime, since: datetime | None = None) -> list[Any]:
        """Events in ``[since, until)``, oldest first, as ``simulated_past.SimulatedEvent``.

        Purchases, visits and past mail with its answers; with given orders, mail only. A past mail's open may lie
        after ``until``; asking later then brings it.
        """
        last = bisect_left(self._past, to_micros(until), key=lambda event: event.occurred_at)
        if since is None:
            return self._past[:last]
        return self._past[bisect_left(self._past, to_micros(since), key=lambda event: event.occurred_at) : last]

    # Answers -----------------------------------------------------------------------------------------------------

    def respond(self, user_id: str, sent_at: datetime, *, subject: str, block: str, occurrence: str) -> Response:
        """How the contact answers one mail; depends on nothing but the world's seed and the arguments."""
        return self.respond_many([user_id], [sent_at], subjects=[subject], blocks=[block], occurrences=[occurrence])[0]

    def respond_many(
        self,
        user_ids: Sequence[str],
        sent_at: Sequence[datetime],
        *,
        subjects: Sequence[str],
        blocks: Sequence[str],
        occurrences: Sequence[str],
    ) -> list[Response]:
        """How each contact answers its mail, whatever the order of calls.

        Parameters
        ----------
        subjects, blocks : sequence of str
            Keys of ``SUBJECTS`` and ``BLOCKS``.
        occurrences : sequence of str
            What makes the mail unique for its contact, such as the send's id: the counter of the random numbers.
        """
        index = self.index_of(user_ids)
        uniforms = np.stack(
            [hashed_draws(f"world/{self.seed}", str(j), index, occurrences) for j in range(_UNIFORMS)], axis=1
        )
        chosen = [_position(SUBJECTS, "subject", name) for name in subjects]
        shown = [_position(BLOCKS, "block", name) for name in blocks]
        sent = np.array([to_micros(instant) for instant in sent_at], dtype=np.int64)
        open_rate = np.array(list(SUBJECTS.values()))[chosen] * self.subject_taste[index, chosen]
        click_rate = np.array(list(BLOCKS.values()))[shown] * self.block_taste[index, shown]
        answers = self.answers(index, sent, open_rate, click_rate, uniforms)
        columns = [
            answers.open_at,
            answers.click_at,
            answers.unsubscribe_at,
            answers.machine_open_at,
            answers.machine_click_at,
        ]
        rows = np.stack(columns, axis=1).tolist()
        return [Response(*(None if at < 0 else from_micros(at) for at in row)) for row in rows]

    def answers(
        self, index: IntArray, sent_at: IntArray, open_rate: FloatArray, click_rate: FloatArray, uniforms: FloatArray
    ) -> Answers:
        """Answers of many mails, given the uniform numbers (n, 16) that they are drawn with."""
        hour = self.local_hours(index, sent_at)
        opens = uniforms[:, 0] < self._open(index, hour, sent_at, open_rate)
        # Of four candidate delays the one that falls on a waking hour is the likelier: opens are lognormally late,
        # and happen when the contact is about.
        delays = (
            OPEN_DELAY_MEDIAN_HOURS * HOUR * np.exp(OPEN_DELAY_SIGMA * ndtri(np.clip(uniforms[:, 1:5], 1e-9, 1 - 1e-9)))
        )
        candidates = sent_at[:, None] + np.clip(delays, 5e6, 14 * DAY).astype(np.int64)
        awake = np.cumsum(
            np.stack([self.activity[index, self.local_hours(index, at)] for at in candidates.T], axis=1), axis=1
        )
        picked = (uniforms[:, 5:6] * awake[:, -1:] >= awake).sum(axis=1)
        open_at = np.where(opens, candidates[np.arange(len(index)), np.minimum(picked, 3)], -1)
        clicks = opens & (uniforms[:, 6] < np.minimum(click_rate, 0.95))
        pause = np.exp(np.log(40e6) + ndtri(np.clip(uniforms[:, 7], 1e-9, 1 - 1e-9))).astype(np.int64)
        leaves = uniforms[:, 8] < UNSUBSCRIBE_RATE * np.where(opens, 4, 0)
        proxied = self.on_proxy[index] & (uniforms[:, 9] < 0.95)
        scanned = self.behind_scanner[index] & (uniforms[:, 10] < 0.9)
        seconds = (1e6 * (1 + 7 * uniforms[:, 11:14])).astype(np.int64)
        return Answers(
            open_at=open_at,
            click_at=np.where(clicks, open_at + 3_000_000 + pause, -1),
            unsubscribe_at=np.where(leaves, open_at + 90_000_000 + seconds[:, 2], -1),
            machine_open_at=np.where(proxied, sent_at + seconds[:, 0], -1),
            machine_click_at=np.where(scanned, sent_at + seconds[:, 1], -1),
        )

    def _open(self, index: IntArray, hour: IntArray, at: IntArray, rate: FloatArray) -> FloatArray:
        p = rate * self.engagement[index] * self.attention[index, hour] * self.vitality(index, at)
        return np.asarray(np.minimum(p, 0.95), dtype=np.float64)

    def vitality(self, index: IntArray, at: IntArray) -> FloatArray:
        """Factor of all activity: one in life, falling to .2 from 10 days before to 20 days after turning away."""
        past = (at - self.dropout_at[index].astype(np.float64)) / DAY
        return np.asarray(1.0 - 0.8 * np.clip((past + 10) / 30, 0, 1), dtype=np.float64)

    def offsets(self, index: IntArray, at: IntArray) -> IntArray:
        """Microseconds by which each contact's local time is ahead of UTC at its instant."""
        result = np.empty(len(index), dtype=np.int64)
        for z, name in enumerate(self.zones):
            rows = np.flatnonzero(self.zone[index] == z)
            hours, where = np.unique(at[rows] // HOUR, return_inverse=True)
            zone = ZoneInfo(name)
            known = [from_micros(hour * HOUR).astimezone(zone).utcoffset() or timedelta() for hour in hours.tolist()]
            result[rows] = np.array([offset // timedelta(microseconds=1) for offset in known], dtype=np.int64)[where]
        return result

    def local_hours(self, index: IntArray, at: IntArray) -> IntArray:
        """Local hour of the day (0-23) of each contact at its instant."""
        return np.asarray((at + self.offsets(index, at)) // HOUR % 24, dtype=np.int64)

    # Truth, for reports after the run ----------------------------------------------------------------------------

    def open_probability(
        self,
        user_ids: Sequence[str],
        local_hours: ArrayLike | None = None,
        *,
        at: datetime | None = None,
        subject: str | None = None,
    ) -> FloatArray:
        """True probability that each contact opens a mail that arrives at a local hour.

        Parameters
        ----------
        local_hours : array-like of int, shape (n,), optional
            Without it, all 24 hours are given: shape (n, 24).
        at : datetime, optional
            By default the end of the past.
        subject : str, optional
            By default the mean over the subject lines.
        """
        index = self.index_of(user_ids)
        names = list(SUBJECTS) if subject is None else [subject]
        columns = [_position(SUBJECTS, "subject", name) for name in names]
        instant = np.full(len(index), to_micros(at or self.end))
        hours = (
            np.arange(24)[None, :].repeat(len(index), axis=0)
            if local_hours is None
            else np.asarray(local_hours)[:, None]
        )
        rates = np.array(list(SUBJECTS.values()))[columns] * self.subject_taste[index][:, columns]
        p = np.stack(
            [
                np.mean([self._open(index, hour, instant, rates[:, c]) for c in range(len(columns))], axis=0)
                for hour in hours.T
            ],
            axis=1,
        )
        return p if local_hours is None else np.asarray(p[:, 0], dtype=np.float64)

    def true_rates(
        self,
        experiment: str,
        *,
        user_ids: Sequence[str] | None = None,
        local_hours: ArrayLike | None = None,
        at: datetime | None = None,
    ) -> dict[str, float]:
        """True mean reward per mail of each arm: opens for ``"subject"``, clicks for ``"block"``.

        Over ``user_ids`` (all by default) at ``local_hours`` (all 24 alike by default), other choices alike.
        """
        users = self.user_ids if user_ids is None else user_ids
        if experiment == "subject":
            return {
                name: float(self.open_probability(users, local_hours, at=at, subject=name).mean()) for name in SUBJECTS
            }
        if experiment != "block":
            raise ValueError(f"experiment {experiment!r} is unknown to the world; choose subject or block")
        opens = self.open_probability(users, local_hours, at=at).reshape(len(users), -1).mean(axis=1)
        index = self.index_of(users)
        return {
            name: float((opens * np.minimum(rate * self.block_taste[index, j], 0.95)).mean())
            for j, (name, rate) in enumerate(BLOCKS.items())
        }

    def hours_report(
        self,
        user_ids: Sequence[str],
        chosen_hours: ArrayLike,
        allowed_hours: Sequence[int],
        seed: int,
        *,
        at: datetime | None = None,
    ) -> dict[str, Any]:
        """What the chosen hours are worth in truth, between random hours (0) and the best hour of each contact (1).

        Parameters
        ----------
        chosen_hours : array-like of int, shape (n,)
        allowed_hours : sequence of int
            Local hours among which random and best are taken.
        seed : int
            Of the bootstrap over contacts.

        Returns
        -------
        dict
            ``captured_share`` and its 95 % ``interval`` (None where no hour is better than another), expected opens
            per mail at the chosen, random and best hours, ``gain`` = chosen − random, and ``claim``.
        """
        if len(user_ids) == 0 or len(allowed_hours) == 0:
            raise ValueError(
                f"{len(user_ids)} contacts and {len(allowed_hours)} allowed hours; give at least 1 of each"
            )
        allowed = np.unique(np.asarray(allowed_hours, dtype=np.int64))
        truth = self.open_probability(user_ids, at=at)
        chosen = truth[np.arange(len(truth)), np.asarray(chosen_hours, dtype=np.int64)]
        random, best = truth[:, allowed].mean(axis=1), truth[:, allowed].max(axis=1)
        report: dict[str, Any] = {
            "contacts": len(truth),
            "opens_per_mail": {
                "chosen": float(chosen.mean()), "random": float(random.mean()), "best": float(best.mean())
            },
            "gain": float((chosen - random).mean()),
        }  # fmt: skip
        if (best - random).mean() < 1e-9:
            return report | {"captured_share": None, "interval": None, "claim": "no hour effect"}
        rng = np.random.default_rng(seed)
        pairs = np.stack([chosen - random, best - random], axis=1)
        resampled = np.stack([pairs[rng.integers(0, len(pairs), len(pairs))].sum(axis=0) for _ in range(1000)])
        low, high = np.quantile(resampled[:, 0] / resampled[:, 1], [0.025, 0.975])
        share = pairs[:, 0].sum() / pairs[:, 1].sum()
        claim = "better than random hours" if low > 0 else "not shown to be better than random hours"
        return report | {"captured_share": float(share), "interval": [float(low), float(high)], "claim": claim}


def _position(arms: dict[str, float], what: str, name: str) -> int:
    if name not in arms:
        raise ValueError(f"{what} {name!r} is unknown to the world; choose one of {', '.join(arms)}")
    return list(arms).index(name)


def _activity(rng: np.random.Generator, n: int) -> FloatArray:
    """Waking curve of each contact: a wide hill round the chronotype's hour, moved a little, and a lower one."""
    centres, shares = np.array(list(CHRONOTYPES.values())).T
    centre = centres[rng.choice(len(centres), n, p=shares)] + rng.normal(0, 1, n)
    second = centre + rng.normal(9, 2, n)
    width = rng.uniform(2.5, 5.0, n)

    def hill(peak: FloatArray, concentration: FloatArray) -> FloatArray:
        angle = 2 * np.pi * (np.arange(24) + 0.5 - peak[:, None]) / 24
        return np.asarray(np.exp(concentration[:, None] * (np.cos(angle) - 1)), dtype=np.float64)

    raw = hill(centre, width) + 0.25 * hill(second, width) + 0.04
    return np.asarray(raw / raw.mean(axis=1, keepdims=True), dtype=np.float64)


def _purchases(
    rng: np.random.Generator, joined_at: IntArray, engagement: FloatArray, start: int, n_days: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Each contact buys at its own pace and after each purchase may turn away for good (as in BG/NBD).

    The past and ``DAYS_BEYOND`` it are drawn. A quarter never buys.

    References
    ----------
    Fader, Hardie, Lee (2005), "Counting your customers the easy way: an alternative to the Pareto/NBD model".
    """
    n = len(joined_at)
    per_day = rng.gamma(1.0, 1 / 30, n) * engagement
    buys = rng.random(n) > 0.25
    gaps = rng.gamma(1.5, 1 / 1.5, (n, 60)) / np.maximum(per_day, 1e-4)[:, None]
    at = joined_at[:, None] + (np.cumsum(gaps, axis=1).clip(max=4000) * DAY).astype(np.int64)
    stays = rng.random((n, 60)) >= rng.beta(1.2, 9.0, n)[:, None]
    alive = np.cumprod(np.concatenate([np.ones((n, 1)), stays[:, :-1]], axis=1), axis=1).astype(bool)
    turned = np.where(stays.all(axis=1), 59, np.argmin(stays, axis=1))
    dropout_at = np.where(buys, at[np.arange(n), turned], joined_at + (rng.exponential(150, n) * DAY).astype(np.int64))
    season = 0.8 + 0.2 * np.sin(2 * np.pi * (at - start) / (90 * DAY))
    kept = (
        alive
        & buys[:, None]
        & (rng.random((n, 60)) < season)
        & (at < start + (n_days + DAYS_BEYOND) * DAY)
        & (at >= start)
    )
    contact, position = np.nonzero(kept)
    order = np.argsort(at[contact, position], kind="stable")
    return dropout_at, contact[order], at[contact, position][order]


def _given(orders: pd.DataFrame, user_ids: tuple[str, ...]) -> tuple[IntArray, IntArray]:
    times = orders["ordered_at"]
    if isinstance(times.dtype, pd.DatetimeTZDtype):
        micros = times.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]").astype(np.int64)
    elif pd.api.types.is_integer_dtype(times.dtype):
        micros = times.to_numpy(np.int64)
    else:
        raise ValueError(f"ordered_at is {times.dtype}; give aware datetimes or microseconds since 1970 UTC")
    contact = np.searchsorted(np.array(user_ids), orders["user_id"].astype(str).to_numpy(dtype=np.str_))
    order = np.argsort(micros, kind="stable")
    return contact[order].astype(np.int64), micros[order]


def _contacts(
    rng: np.random.Generator, user_ids: tuple[str, ...], zones: list[str], joined_at: IntArray
) -> tuple[SimulatedContact, ...]:
    """Names and addresses: reserved domains only; some lack a name, a few an address or the wish for mail."""
    n = len(user_ids)
    nameless, addressless, unwilling = (rng.random(n) < share for share in (0.06, 0.01, 0.04))
    names = rng.integers(0, len(_FIRST_NAMES), n)
    domains = ("example.com", "example.org", "example.net")
    return tuple(
        SimulatedContact(
            user_id=user_id,
            email=None if addressless[i] else f"{user_id.lower()}@{domains[i % 3]}",
            name=None if nameless[i] else _FIRST_NAMES[names[i]],
            timezone=zones[i],
            is_subscribed=not unwilling[i],
            joined_at=from_micros(int(joined_at[i])),
        )
        for i, user_id in enumerate(user_ids)
    )
