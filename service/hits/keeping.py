"""Raw hits, written down as they come."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from sqlalchemy import insert
from sqlalchemy.orm import Session

from features.tables import allocate
from service.database import Database
from service.group_commit import GroupCommit
from service.tables import HitRow


@dataclass(frozen=True, slots=True)
class Hit:
    """A request for a pixel (``link_id`` None) or a link, as it came."""

    send_id: int
    link_id: int | None
    #: GET | HEAD
    method: str
    user_agent: str
    at: datetime
    #: `network_hash` of where it came from.
    network: str | None = None
    #: Name of the declared network that it came from: `service.hits.rules.Rules.network_name`.
    known_network: str | None = None
    #: The link that people do not see.
    is_trap: bool = False


def network_hash(key: str, address: str) -> str | None:
    """Keyed hash of a network, by which hits are known to come from one place: HMAC-SHA256, 16 bytes as hexadecimal.

    An IPv6 address counts by its first 64 bits, for one host has as many as it likes. An address that is not public
    is a proxy of our own, or none: everybody comes through it, so it has no hash.

    Examples
    --------
    >>> network_hash("k", "2606:4700::1") == network_hash("k", "2606:4700::2"), network_hash("k", "127.0.0.1")
    (True, None)
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return None
    ip = getattr(ip, "ipv4_mapped", None) or ip
    if not ip.is_global:
        return None
    return hmac.digest(_network_key(key), ip.packed[:8], hashlib.sha256)[:16].hex()


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
                "network": hit.network,
                "known_network": hit.known_network,
                "is_trap": hit.is_trap,
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


@lru_cache(maxsize=8)
def _network_key(key: str) -> bytes:
    return hmac.digest(key.encode(), b"kairos networks of hits", hashlib.sha256)
