"""Opens and clicks: raw hits are kept as they come and settle into events once they can be judged."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.orm import Session

from features.events import NewEvent, append
from features.tables import allocate, to_micros
from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, HUMAN_PPM
from service.database import Database
from service.group_commit import GroupCommit
from service.suppression import identities_of
from service.tables import ErasureRow, EventRow, HitRow, SendRow

#: Version of the rules below; it goes into each event, so that a report can tell who was judged how.
RULE_VERSION = 1
#: A hit sooner than this after the provider took the mail is a scanner's: nobody is that quick.
QUICKEST_PERSON = timedelta(seconds=5)
#: Whoever follows this many links, and this share of all the mail's links, inside the window checks them, not reads.
BURST_WINDOW = timedelta(seconds=10)
BURST_LINKS = 3
BURST_SHARE = 0.8

#: Sends settled in one transaction.
SETTLE_SENDS = 2_000

_PROGRAM = re.compile(
    r"(?<!cu)bot\b|crawl|spider|scanner|preview|python|curl/|wget|java/|okhttp|go-http|httpx|aiohttp|axios|node-fetch|"
    r"headless|phantomjs|monitor|barracuda|proofpoint|mimecast|symantec|fireeye|trendmicro|forcepoint|sophos|ironport|"
    r"safelinks|facebookexternalhit|libwww|urlresolver",
    re.IGNORECASE,
)
_IMAGE_PROXY = re.compile(r"GoogleImageProxy|ggpht\.com|YahooMailProxy", re.IGNORECASE)
_OFFICE = re.compile(r"ms-?office|microsoft office", re.IGNORECASE)

#: Probability x 1e6 that a person was behind a hit: (open, click) by class of user agent. The order matters more than
#: the figures: at or above 500,000 it counts as a person's. Apple's privacy proxy (a bare ``Mozilla/5.0``) loads every
#: image unasked; Google's and Yahoo's proxies load one when the mail is opened, and never follow links; Office loads
#: images for its reader but hands links on to a browser.
HUMAN_PPM_OF = {
    "browser": (900_000, 970_000),
    "image_proxy": (600_000, 50_000),
    "office": (800_000, 200_000),
    "apple_proxy": (100_000, 100_000),
    "program": (20_000, 20_000),
    "none": (20_000, 20_000),
}
TOO_QUICK_PPM = 30_000
BURST_PPM = 50_000
HEAD_PPM = 10_000


@dataclass(frozen=True, slots=True)
class Hit:
    """A request for a pixel (``link_id`` None) or a link, as it came."""

    send_id: int
    link_id: int | None
    #: GET | HEAD
    method: str
    user_agent: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Settled:
    """What settling made of the hits that were old enough."""

    hits: int
    events: int
    human_opens: int
    human_clicks: int
    #: Hits of sends that are no more, or whose contact was erased; the latter are deleted.
    dropped: int


def record_hits(session: Session, hits: Sequence[Hit]) -> None:
    """Keep the hits, to be judged when they settle; one insert however many they are."""
    if not hits:
        return
    first = allocate(session, "hit_id", len(hits))
    session.execute(
        insert(HitRow),
        [
            {
                "hit_id": first + place,
                "send_id": hit.send_id,
                "link_id": hit.link_id,
                "method": hit.method.upper()[:8],
                "user_agent": hit.user_agent.replace("\x00", "")[:300],
                "at": hit.at,
                "settled": False,
            }
            for place, hit in enumerate(hits)
        ],
    )


class HitBuffer:
    """Groups the hits of many requests into one commit; a request is answered once its hit is on disk.

    Examples
    --------
    ``buffer = HitBuffer(database)`` at start-up, ``await buffer.add(hit)`` in a request, ``await buffer.close()`` at
    the end.
    """

    def __init__(self, database: Database, *, wait_seconds: float = 0.025, largest: int = 500) -> None:
        self._group: GroupCommit[Hit, None] = GroupCommit(
            database, _record_group, wait_seconds=wait_seconds, largest=largest
        )

    async def add(self, hit: Hit) -> None:
        """Return once ``hit`` is committed; raises what the commit raised."""
        await self._group.add(hit)

    async def close(self) -> None:
        """Wait for the hits that are under way."""
        await self._group.drain()


def _record_group(session: Session, hits: list[Hit]) -> list[None]:
    record_hits(session, hits)
    return [None] * len(hits)


def settle(session: Session, *, now: datetime, settle_seconds: float = 60, limit: int = SETTLE_SENDS) -> Settled:
    """Turn hits older than ``settle_seconds`` into one event for each send, kind and link; at most ``limit`` sends.

    The event stands at the group's first hit of its highest human probability. A human click of a mail that no person
    opened yet brings an open with it: the images were off. Message ids come from the hits' ids, so settling the same
    hits again changes nothing.
    """
    cutoff = now - timedelta(seconds=settle_seconds)
    due = select(HitRow.send_id).where(HitRow.settled.is_(False), HitRow.at <= cutoff).distinct()
    send_ids = list(session.execute(due.order_by(HitRow.send_id).limit(limit)).scalars())
    if not send_ids:
        return Settled(0, 0, 0, 0, 0)
    # Two who settle at once: the second waits here and then finds nothing left.
    rows = session.execute(
        select(HitRow.hit_id, HitRow.send_id, HitRow.link_id, HitRow.method, HitRow.user_agent, HitRow.at)
        .where(HitRow.send_id.in_(send_ids), HitRow.settled.is_(False), HitRow.at <= cutoff)
        .order_by(HitRow.hit_id)
        .with_for_update()
    ).all()
    around = session.execute(
        select(HitRow.send_id, HitRow.link_id, HitRow.user_agent, HitRow.at).where(HitRow.send_id.in_(send_ids))
    ).all()
    sends = {
        send.send_id: send
        for send in session.execute(
            select(
                SendRow.send_id,
                SendRow.contact_key,
                SendRow.due_at,
                SendRow.finished_at,
                SendRow.created_at,
                SendRow.timezone,
                SendRow.link_count,
                SendRow.campaign_id,
            ).where(SendRow.send_id.in_(send_ids), SendRow.contact_key.not_in(select(ErasureRow.contact_key)))
        )
    }
    bursts = _bursts(around, {send_id: send.link_count for send_id, send in sends.items()})
    groups: dict[tuple[int, int | None], list[tuple[int, datetime, str, int]]] = defaultdict(list)
    first_hit: dict[tuple[int, int | None], int] = {}
    dropped = 0
    for row in rows:
        send = sends.get(row.send_id)
        if send is None:
            dropped += 1
            continue
        in_burst = any(
            begin <= row.at <= end and row.user_agent in agents for begin, end, agents in bursts.get(row.send_id, ())
        )
        human_ppm, agent_class = _judge(row, send.finished_at or send.due_at, in_burst)
        groups[row.send_id, row.link_id].append((human_ppm, row.at, agent_class, row.hit_id))
        first_hit.setdefault((row.send_id, row.link_id), row.hit_id)

    candidates = []
    for group, hits in groups.items():
        human_ppm, at, agent_class, _ = min(hits, key=lambda hit: (-hit[0], hit[1], hit[3]))
        candidates.append((at, first_hit[group], group[0], group[1], human_ppm, agent_class))
    candidates.sort()
    seen = _human_before(session, sends.values())
    identities = identities_of(session, {send.contact_key for send in sends.values()})
    events: list[NewEvent] = []
    human = Counter[str]()

    def log(kind: str, message_id: str, send_id: int, at: datetime, ppm: int, properties: dict[str, Any]) -> None:
        send = sends[send_id]
        is_human = ppm >= HUMAN_PPM
        events.append(
            NewEvent(
                contact_key=send.contact_key,
                kind=kind,
                occurred_at=to_micros(at),
                message_id=message_id,
                identity=identities.get(send.contact_key, ""),
                ref=str(send_id),
                human_ppm=ppm,
                is_repeat=is_human and (send_id, kind) in seen,
                properties=properties | {"rule_version": RULE_VERSION, "campaign_id": send.campaign_id},
                timezone=send.timezone,
            )
        )
        if is_human:
            seen.add((send_id, kind))
            human[kind] += 1

    for at, hit_id, send_id, link_id, human_ppm, agent_class in candidates:
        if link_id is None:
            log(EMAIL_OPENED, f"kairos/hit/{hit_id}", send_id, at, human_ppm, {"user_agent_class": agent_class})
            continue
        if human_ppm >= HUMAN_PPM and (send_id, EMAIL_OPENED) not in seen:
            implied = {"user_agent_class": agent_class, "implied_by": "click"}
            log(EMAIL_OPENED, f"kairos/hit/{hit_id}/open", send_id, at, human_ppm, implied)
        clicked = {"user_agent_class": agent_class, "link_id": link_id}
        log(EMAIL_CLICKED, f"kairos/hit/{hit_id}", send_id, at, human_ppm, clicked)

    for chunk in _chunks([row.hit_id for row in rows], 10_000):
        session.execute(update(HitRow).where(HitRow.hit_id.in_(chunk)).values(settled=True))
    if dropped:  # somebody opened a mail from before the contact was erased
        of_erased = select(SendRow.send_id).where(
            SendRow.send_id.in_(send_ids), SendRow.contact_key.in_(select(ErasureRow.contact_key))
        )
        session.execute(delete(HitRow).where(HitRow.send_id.in_(of_erased)))
    if events:
        append(session, events, received_at=to_micros(now))
    return Settled(len(rows), len(events), human[EMAIL_OPENED], human[EMAIL_CLICKED], dropped)


def user_agent_class(user_agent: str) -> str:
    """What kind of program speaks: ``browser, image_proxy, office, apple_proxy, program`` or ``none``.

    Examples
    --------
    >>> user_agent_class("Mozilla/5.0"), user_agent_class("python-requests/2.32"), user_agent_class("")
    ('apple_proxy', 'program', 'none')
    """
    agent = user_agent.strip()
    if not agent:
        return "none"
    if agent == "Mozilla/5.0":
        return "apple_proxy"
    if _IMAGE_PROXY.search(agent):
        return "image_proxy"
    if _PROGRAM.search(agent):
        return "program"
    if _OFFICE.search(agent):
        return "office"
    return "browser"


def _judge(hit: Any, accepted_at: datetime, in_burst: bool) -> tuple[int, str]:
    agent_class = user_agent_class(hit.user_agent)
    human_ppm = HUMAN_PPM_OF[agent_class][hit.link_id is not None]
    if hit.method != "GET":
        human_ppm = min(human_ppm, HEAD_PPM)
    if hit.at - accepted_at < QUICKEST_PERSON:
        human_ppm = min(human_ppm, TOO_QUICK_PPM)
    if in_burst:
        human_ppm = min(human_ppm, BURST_PPM)
    return human_ppm, agent_class


def _bursts(
    hits: Iterable[Any], link_counts: dict[int, int | None]
) -> dict[int, list[tuple[datetime, datetime, set[str]]]]:
    """For each send the spans, and the user agents in them, in which most of its links were followed at once."""
    clicks: dict[int, list[tuple[datetime, int, str]]] = defaultdict(list)
    for hit in hits:
        if hit.link_id is not None:
            clicks[hit.send_id].append((hit.at, hit.link_id, hit.user_agent))
    bursts: dict[int, list[tuple[datetime, datetime, set[str]]]] = {}
    for send_id, followed in clicks.items():
        needed = max(BURST_LINKS, BURST_SHARE * (link_counts.get(send_id) or 0))
        if len({link_id for _, link_id, _ in followed}) < needed:
            continue
        followed.sort()
        spans: list[tuple[datetime, datetime, set[str]]] = []
        inside, last = Counter[int](), 0
        for place, (at, link_id, agent) in enumerate(followed):
            inside[link_id] += 1
            while at - followed[last][0] > BURST_WINDOW:
                inside[followed[last][1]] -= 1
                if not inside[followed[last][1]]:
                    del inside[followed[last][1]]
                last += 1
            if len(inside) >= needed:
                # The pixel that the same program loads on its way belongs to the burst.
                begin, end = followed[last][0] - BURST_WINDOW, at + BURST_WINDOW
                if spans and begin <= spans[-1][1]:
                    spans[-1] = (spans[-1][0], end, spans[-1][2] | {agent})
                else:
                    spans.append((begin, end, {agent for _, _, agent in followed[last : place + 1]}))
        bursts[send_id] = spans
    return bursts


def _human_before(session: Session, sends: Iterable[Any]) -> set[tuple[int, str]]:
    """(send, kind) pairs that the log already holds a person's open or click of."""
    sends = list(sends)
    if not sends:
        return set()
    earliest = to_micros(min(send.created_at for send in sends))
    refs = {str(send.send_id) for send in sends}
    seen: set[tuple[int, str]] = set()
    for chunk in _chunks(sorted({send.contact_key for send in sends}), 10_000):
        query = select(EventRow.ref, EventRow.kind).where(
            EventRow.contact_key.in_(chunk),
            EventRow.occurred_at >= earliest,
            EventRow.kind.in_((EMAIL_OPENED, EMAIL_CLICKED)),
            EventRow.human_ppm >= HUMAN_PPM,
        )
        seen |= {(int(ref), kind) for ref, kind in session.execute(query) if ref in refs}
    return seen


def _chunks(items: Sequence[int], size: int) -> Iterable[list[int]]:
    walk = iter(items)
    while chunk := list(islice(walk, size)):
        yield chunk
