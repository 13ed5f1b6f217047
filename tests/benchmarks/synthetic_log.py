"""Made-up event logs of any size: the same people and habits as a lake, or as rows of a database.

What the engines feel is kept real: some contacts are ten times as active as others, opens and clicks name the mail
they answer, half of them are machines', a few events arrive up to a day late, times have milliseconds, products and
shopping carts have properties. What no engine feels (which page, whose order) is drawn evenly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from joblib import Parallel, delayed

from features.events import DAY_MICROS, EventColumns, KindCodes, local_hour_of_week
from features.lake import Lake, Manifest, splitmix64
from features.properties import PropertyColumns, hash_ref
from features.store import StoredFile
from features.vocabulary import (
    CHECKOUT_STARTED,
    EMAIL_BOUNCED,
    EMAIL_CLICKED,
    EMAIL_OPENED,
    EMAIL_SENT,
    IDENTIFY,
    ORDER_CANCELLED,
    ORDER_COMPLETED,
    PAGE,
    PRODUCT_ADDED,
    PRODUCT_VIEWED,
)

START = 1_700_000_000_000_000  # 2023-11-14, µs since 1970
DAYS = 365
LATE_SHARE = 0.02
PRODUCTS = 5_000

#: Share of the events by kind; what a shop with a weekly newsletter sees.
SHARE = {
    PAGE: 0.27, PRODUCT_VIEWED: 0.19, PRODUCT_ADDED: 0.05, CHECKOUT_STARTED: 0.02, ORDER_COMPLETED: 0.05,
    ORDER_CANCELLED: 0.01, EMAIL_SENT: 0.22, EMAIL_OPENED: 0.12, EMAIL_CLICKED: 0.045, EMAIL_BOUNCED: 0.005,
    IDENTIFY: 0.02,
}  # fmt: skip
NAMES = tuple(SHARE)
_CARRIES_VALUE = (PRODUCT_VIEWED, PRODUCT_ADDED, CHECKOUT_STARTED, ORDER_COMPLETED, ORDER_CANCELLED)
_IS_ANSWER = (EMAIL_OPENED, EMAIL_CLICKED)

CATEGORIES = tuple(f"{what} for {whom}" for what in ("Shoes", "Shirts", "Coats") for whom in ("her", "him", "kids"))
PATHS = tuple(f"/shelf/{number}" for number in range(200))
AGES = tuple(str(age) for age in range(18, 88))
#: Of each kind with properties: their names and possible values.
PROPERTIES: dict[str, dict[str, tuple[str, ...]]] = {
    PAGE: {"path": PATHS},
    PRODUCT_VIEWED: {"category": CATEGORIES},
    PRODUCT_ADDED: {"category": CATEGORIES},
    ORDER_COMPLETED: {"category": CATEGORIES, "coupon": ("", "WELCOME", "SPRING")},
    IDENTIFY: {"age": AGES, "plan": ("free", "plus", "family")},
}


@dataclass(frozen=True)
class Drawn:
    """Events by contact and time, as numbers; `as_columns` and `as_rows` give them their form."""

    contact_key: npt.NDArray[np.int64]
    occurred_at: npt.NDArray[np.int64]
    received_at: npt.NDArray[np.int64]
    #: 1 for the event received first.
    seq: npt.NDArray[np.int64]
    #: Index into `NAMES`.
    kind: npt.NDArray[np.int32]
    value_minor: npt.NDArray[np.int64]
    human_ppm: npt.NDArray[np.int32]
    is_repeat: npt.NDArray[np.bool_]
    #: Number of the send, product or order that it is about; 0 for none.
    subject: npt.NDArray[np.int64]
    #: Which of the possible values its properties have.
    choice: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.seq)


def draw(rng: np.random.Generator, contacts: npt.NDArray[np.int64], n_events: int, start: int = START) -> Drawn:
    """A year of ``n_events`` events of these contacts (ascending keys) from ``start`` (µs) on."""
    activity = rng.lognormal(0.0, 1.0, len(contacts))
    contact_key = np.repeat(contacts, rng.multinomial(n_events, activity / activity.sum()))
    at = start + rng.integers(0, DAYS * DAY_MICROS // 1_000, n_events) * 1_000
    at = at[np.lexsort((at, contact_key))]
    kind = rng.choice(len(NAMES), n_events, p=list(SHARE.values())).astype(np.int32)
    late = rng.random(n_events) < LATE_SHARE
    received_at = at + rng.integers(50, 5_000, n_events) * 1_000 + late * rng.integers(0, DAY_MICROS, n_events)
    seq = np.empty(n_events, dtype=np.int64)
    seq[np.argsort(received_at, kind="stable")] = np.arange(1, n_events + 1)

    answers = _of(kind, *_IS_ANSWER)
    subject = np.where(_of(kind, PRODUCT_VIEWED, PRODUCT_ADDED), 1 + rng.integers(0, PRODUCTS, n_events), seq)
    subject[_of(kind, PAGE, IDENTIFY)] = 0
    place = np.arange(n_events)
    last_send = np.maximum.accumulate(np.where(_of(kind, EMAIL_SENT), place, -1))
    known = answers & (last_send >= 0)
    known[known] = contact_key[last_send[known]] == contact_key[known]
    subject[known] = subject[last_send[known]]
    value = rng.integers(100, 20_000, n_events)
    return Drawn(
        contact_key=contact_key,
        occurred_at=at,
        received_at=received_at,
        seq=seq,
        kind=kind,
        value_minor=np.where(_of(kind, *_CARRIES_VALUE), value, 0),
        human_ppm=np.where(answers, np.where(rng.random(n_events) < 0.5, 900_000, 100_000), -1).astype(np.int32),
        is_repeat=answers & (rng.random(n_events) < 0.1),
        subject=subject,
        choice=rng.integers(0, 2**31, n_events),
    )


def _of(kind: npt.NDArray[np.int32], *names: str) -> npt.NDArray[np.bool_]:
    return np.isin(kind, [NAMES.index(name) for name in names])


def as_columns(drawn: Drawn) -> EventColumns:
    """The events as a bucket of a lake holds them."""
    codes = KindCodes()
    return EventColumns(
        contact_key=drawn.contact_key,
        occurred_at=drawn.occurred_at,
        received_at=drawn.received_at,
        seq=drawn.seq,
        kind=codes.encode(NAMES)[drawn.kind],
        value_minor=drawn.value_minor,
        hour_of_week=local_hour_of_week(drawn.occurred_at, "UTC"),
        human_ppm=drawn.human_ppm,
        is_repeat=drawn.is_repeat,
        # Any fixed 64-bit hash serves; BLAKE2b of ten million texts would take longer than what is measured.
        ref=np.where(drawn.subject == 0, 0, splitmix64(drawn.subject).view(np.int64)),
        kinds=codes.kinds,
        properties=_properties(drawn),
    ).sorted()


def _properties(drawn: Drawn) -> PropertyColumns:
    counts = np.array([len(PROPERTIES.get(name, {})) for name in NAMES])[drawn.kind]
    start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    name, value = np.zeros(start[-1], dtype=np.int64), np.zeros(start[-1], dtype=np.int64)
    number = np.full(start[-1], np.nan)
    for code, kind in enumerate(NAMES):
        events = np.flatnonzero(drawn.kind == code)
        for place, (key, values) in enumerate(PROPERTIES.get(kind, {}).items()):
            at, chosen = start[events] + place, drawn.choice[events] % len(values)
            name[at] = hash_ref(key)
            value[at] = np.array([hash_ref(one) for one in values])[chosen]
            number[at] = np.array([float(one) if one.isdigit() else np.nan for one in values])[chosen]
    return PropertyColumns(start, name, value, number)


def write_lake(folder: str, n_contacts: int, n_events: int, buckets: int = 64) -> Lake:
    """A lake of contacts 1 to ``n_contacts``, made bucket by bucket, so that its size does not show in memory."""
    lake = Lake(folder, buckets)
    keys = np.arange(1, n_contacts + 1)
    bucket_of = lake.bucket_of(keys)
    edges = np.concatenate([[0], np.cumsum(np.bincount(bucket_of, minlength=buckets))]) * n_events // n_contacts
    sizes = np.diff(edges).tolist()
    watermark = (max(sizes) + 1) * buckets
    written = Parallel(n_jobs=-1)(
        delayed(_write_bucket)(lake, bucket, keys[bucket_of == bucket], sizes[bucket], watermark)
        for bucket in range(buckets)
    )
    lake._publish(Manifest(buckets, watermark, {bucket: (file,) for bucket, file in enumerate(written)}))
    assert lake.rows == n_events
    return lake


def _write_bucket(
    lake: Lake, bucket: int, contacts: npt.NDArray[np.int64], n_events: int, watermark: int
) -> StoredFile:
    drawn = draw(np.random.default_rng([n_events, bucket]), contacts, n_events)
    # Places in the log: in each bucket in the order of receipt, none given twice.
    columns = as_columns(replace(drawn, seq=drawn.seq * lake.buckets + bucket))
    return lake._write(bucket, f"base-{watermark}", columns)


#: Columns of `as_rows`, in the order of the event table's clustered index.
ROW = (
    "contact_key", "occurred_at", "seq", "received_at", "kind", "message_id", "ref", "value_minor", "hour_of_week",
    "human_ppm", "is_repeat", "is_imported", "identity", "properties",
)  # fmt: skip


def user_id(contact_key: int) -> str:
    """The caller's id of a contact."""
    return f"u{contact_key:07d}"


def message_id(seq: int) -> str:
    """An id as clients make them: random letters, so that neighbours in the log are strangers in the index.

    Examples
    --------
    >>> message_id(1)
    'api/ajs-910a2dec89025cc1'
    """
    return f"api/ajs-{int(splitmix64([seq])[0]):016x}"


def as_rows(drawn: Drawn, first: int, last: int) -> Iterator[tuple[Any, ...]]:
    """Events ``first`` to ``last`` as rows of the event table."""
    part = slice(first, last)
    texts = {kind: [json.dumps(one, separators=(",", ":")) for one in _objects(kind)] for kind in PROPERTIES}
    columns = (
        drawn.contact_key[part], drawn.occurred_at[part], drawn.seq[part], drawn.received_at[part], drawn.kind[part],
        splitmix64(drawn.seq[part]), drawn.subject[part], drawn.value_minor[part],
        local_hour_of_week(drawn.occurred_at[part], "UTC"), drawn.human_ppm[part], drawn.is_repeat[part],
        drawn.choice[part],
    )  # fmt: skip
    for key, at, seq, received, code, message, subject, value, hour, human, repeat, choice in zip(
        *(column.tolist() for column in columns), strict=True
    ):
        kind = NAMES[code]
        objects = texts.get(kind)
        yield (
            key, at, seq, received, kind, f"api/ajs-{message:016x}", str(subject) if subject else None, value or None,
            hour, None if human < 0 else human, repeat, False, f"user:{user_id(key)}",
            None if objects is None else objects[choice % len(objects)],
        )  # fmt: skip


def _objects(kind: str) -> list[dict[str, str]]:
    """Every combination of property values that events of ``kind`` carry."""
    objects: list[dict[str, str]] = [{}]
    for name, values in PROPERTIES[kind].items():
        objects = [{**one, name: value} for one in objects for value in values]
    return objects
