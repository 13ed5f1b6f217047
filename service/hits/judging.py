"""What the rules say of hits: how probably a person was behind each, and which rules said so."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, distinct, func, select, type_coerce
from sqlalchemy.orm import Session

from features.tables import to_micros
from service.hits.rules import Burst, Rules, Trap, ppm
from service.tables import HitRow

MINUTE_MICROS = 60_000_000
#: What is read around the hits: as far as any rule looks.
_AROUND = timedelta(seconds=70)
_QUERY_CHUNK = 10_000

Spans = list[tuple[datetime, datetime, set[str]]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How probably a person was behind a hit."""

    #: Probability x 1e6.
    human_ppm: int
    user_agent_class: str
    #: The class of the user agent, then the rules that fired, in the order in which they are asked.
    rules: tuple[str, ...]


def judge(session: Session, hits: Sequence[Any], sends: Mapping[int, Any], rules: Rules) -> list[Verdict | None]:
    """A verdict on each of ``hits``, in their order; None for the trap's own and for hits of no known send.

    Two queries whatever their number: the other hits of the same mails, and the crowds of their minutes.

    Parameters
    ----------
    hits : sequence of rows
        With the columns of `HitRow`, best in the order of time: what lies between the first and the last is read.
    sends : mapping of int to rows
        By send id, with ``due_at, finished_at, link_count``.
    """
    known = [hit for hit in hits if hit.send_id in sends]
    if not known:
        return [None] * len(hits)
    begin, end = min(hit.at for hit in known), max(hit.at for hit in known)
    around = _around(session, {hit.send_id for hit in known}, begin - _AROUND, end + _AROUND)
    limits = rules.limits
    bursts = _bursts(around, sends, limits.burst) if limits.burst else {}
    traps = _traps(around) if limits.trap else {}
    crowds: set[tuple[str | None, str, int]] = set()
    if limits.crowd and any(hit.network is not None for hit in known):
        crowds = _crowds(session, begin, end, limits.crowd.recipients)
    verdicts: list[Verdict | None] = []
    for hit in hits:
        send = sends.get(hit.send_id)
        if send is None or hit.is_trap:
            verdicts.append(None)
            continue
        agent = rules.agent(hit.user_agent)
        human_ppm = ppm(agent.open if hit.link_id is None else agent.click)
        fired = [agent.name]
        if hit.known_network in rules.network_ppm:
            fired.append(f"network {hit.known_network}")
            human_ppm = min(human_ppm, rules.network_ppm[hit.known_network])
        if limits.head and hit.method != "GET":
            fired.append("head")
            human_ppm = min(human_ppm, ppm(limits.head.probability))
        if limits.too_quick:
            taken_at = send.finished_at or send.due_at
            if hit.at - taken_at < timedelta(seconds=limits.too_quick.seconds):
                fired.append("too_quick")
                human_ppm = min(human_ppm, ppm(limits.too_quick.probability))
        if limits.burst and any(
            first <= hit.at <= last and hit.user_agent in agents for first, last, agents in bursts.get(hit.send_id, ())
        ):
            fired.append("burst")
            human_ppm = min(human_ppm, ppm(limits.burst.probability))
        if limits.trap and _is_trapped(hit, traps.get(hit.send_id, ()), limits.trap):
            fired.append("trap")
            human_ppm = min(human_ppm, ppm(limits.trap.probability))
        place = (hit.network, hit.user_agent, to_micros(hit.at) // MINUTE_MICROS)
        if limits.crowd and not agent.proxy and place in crowds:
            fired.append("crowd")
            human_ppm = min(human_ppm, ppm(limits.crowd.probability))
        verdicts.append(Verdict(human_ppm, agent.name, tuple(fired)))
    return verdicts


def _around(session: Session, send_ids: set[int], begin: datetime, end: datetime) -> list[Any]:
    """Hits of these sends on links and traps, settled or not; the pixel's tell nothing about others."""
    ordered = sorted(send_ids)
    columns = (HitRow.send_id, HitRow.link_id, HitRow.user_agent, HitRow.network, HitRow.is_trap, HitRow.at)
    rows: list[Any] = []
    for start in range(0, len(ordered), _QUERY_CHUNK):
        query = select(*columns).where(
            HitRow.send_id.in_(ordered[start : start + _QUERY_CHUNK]),
            HitRow.at.between(begin, end),
            HitRow.link_id.is_not(None) | HitRow.is_trap,
        )
        rows += session.execute(query).all()
    return rows


def _bursts(around: Iterable[Any], sends: Mapping[int, Any], rule: Burst) -> dict[int, Spans]:
    """For each send the spans, and the user agents in them, in which most of its links were followed at once."""
    window = timedelta(seconds=rule.seconds)
    clicks: dict[int, list[tuple[datetime, int, str]]] = defaultdict(list)
    for hit in around:
        if not hit.is_trap:
            clicks[hit.send_id].append((hit.at, hit.link_id, hit.user_agent))
    bursts: dict[int, Spans] = {}
    for send_id, followed in clicks.items():
        needed = max(rule.links, rule.share * (sends[send_id].link_count or 0))
        if len({link_id for _, link_id, _ in followed}) < needed:
            continue
        followed.sort()
        spans: Spans = []
        inside, last = Counter[int](), 0
        for place, (at, link_id, agent) in enumerate(followed):
            inside[link_id] += 1
            while at - followed[last][0] > window:
                inside[followed[last][1]] -= 1
                if not inside[followed[last][1]]:
                    del inside[followed[last][1]]
                last += 1
            if len(inside) >= needed:
                # The pixel that the same program loads on its way belongs to the burst.
                begin, end = followed[last][0] - window, at + window
                if spans and begin <= spans[-1][1]:
                    spans[-1] = (spans[-1][0], end, spans[-1][2] | {agent})
                else:
                    spans.append((begin, end, {agent for _, _, agent in followed[last : place + 1]}))
        bursts[send_id] = spans
    return bursts


def _traps(around: Iterable[Any]) -> dict[int, list[Any]]:
    """The trap's hits by send."""
    traps: dict[int, list[Any]] = defaultdict(list)
    for hit in around:
        if hit.is_trap:
            traps[hit.send_id].append(hit)
    return traps


def _is_trapped(hit: Any, traps: Iterable[Any], rule: Trap) -> bool:
    return any(
        abs((hit.at - trap.at).total_seconds()) <= rule.seconds
        and (hit.user_agent == trap.user_agent or (hit.network is not None and hit.network == trap.network))
        for trap in traps
    )


def _crowds(session: Session, begin: datetime, end: datetime, recipients: int) -> set[tuple[str | None, str, int]]:
    """(network, user agent, minute since 1970) in which that many recipients' mails were hit from one place."""
    first = to_micros(begin) // MINUTE_MICROS * MINUTE_MICROS
    last = (to_micros(end) // MINUTE_MICROS + 1) * MINUTE_MICROS
    at = type_coerce(HitRow.at, BigInteger)
    minute = at // MINUTE_MICROS
    query = (
        select(HitRow.network, HitRow.user_agent, minute)
        # Both values of ``settled``, for the index that begins with it.
        .where(HitRow.settled.in_((False, True)), at >= first, at < last, HitRow.network.is_not(None))
        .group_by(HitRow.network, HitRow.user_agent, minute)
        .having(func.count(distinct(HitRow.send_id)) >= recipients)
    )
    return {(network, agent, int(number)) for network, agent, number in session.execute(query)}
