"""Mailboxes whose truth is known: people, the proxies of their mail programs, and four kinds of scanners.

The shares and delays are ours, after what the field reports (scanners follow all links within seconds of the delivery,
Apple's proxy loads pictures unasked, people take minutes): the world shows that the rules do not contradict each other
and what they miss, not how well they do on anybody's list.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from service.hits import Hit

LINKS = (11, 12, 13, 14, 15)
PHONE = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 Version/18.1 Mobile/15E148"
DESKTOP = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0"
OLD_DESKTOP = "Mozilla/5.0 (Windows NT 6.1; WOW64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/109.0.0.0"
GMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"


@dataclass(frozen=True)
class Seen:
    """A hit, whether a person was behind it, and who sent it."""

    hit: Hit
    is_human: bool
    who: str


def hits_of(send_ids: list[int], sent_at: datetime, seed: int) -> list[Seen]:
    """What happens to these mails, accepted within one minute from ``sent_at``, in a week."""
    rng = np.random.default_rng(seed)
    seen: list[Seen] = []

    def add(who: str, send: int, link: int | None, seconds: float, agent: str, network: str, **more: object) -> None:
        at = sent_at + timedelta(seconds=float(seconds))
        method = str(more.get("method", "GET"))
        hit = Hit(send, link, method, agent, at, network=network, is_trap=bool(more.get("trap")))
        seen.append(Seen(hit, who.startswith("person"), who))

    for place, send in enumerate(send_ids):
        mailbox = rng.choice(["apple", "gmail", "work"], p=[0.4, 0.35, 0.25])
        home = f"home{place}"
        agent = PHONE if mailbox == "apple" else DESKTOP
        network = f"office{place % 40}" if mailbox == "work" else home
        # One in three reads it, between a minute and two days later; one reader in five follows one to three links.
        if rng.random() < 0.33:
            begin = 60 + rng.lognormal(np.log(3600 * 3), 1.4)
            if mailbox == "apple":
                pass  # the proxy loaded the picture long ago
            elif mailbox == "gmail":
                add("person, by Google's proxy", send, None, begin, GMAIL, f"google{rng.integers(8)}")
            else:
                add("person", send, None, begin, agent, network)
            if rng.random() < 0.2:
                chosen = rng.choice(LINKS, size=rng.integers(1, 4), replace=False)
                for number, link in enumerate(chosen):
                    add("person", send, int(link), begin + 15 + 40 * number + rng.exponential(20), agent, network)
        if mailbox == "apple":
            add("Apple's proxy", send, None, rng.uniform(1, 7200), "Mozilla/5.0", f"apple{rng.integers(30)}")
        if mailbox == "work":
            kind = rng.choice(
                ["honest", "quick", "slow", "single", "lone", "none"], p=[0.2, 0.2, 0.2, 0.15, 0.03, 0.22]
            )
            begin = rng.uniform(0.2, 3)
            if kind == "honest":
                for link in LINKS:
                    add("scanner that gives its name", send, link, begin, "Barracuda Sentinel (EE)", "barracuda")
                add(
                    "scanner that gives its name",
                    send,
                    LINKS[0],
                    begin + 1,
                    "Barracuda Sentinel (EE)",
                    "b",
                    method="HEAD",
                )
            elif kind == "quick":
                for number, link in enumerate(LINKS):
                    add("scanner at the delivery", send, link, begin + number, OLD_DESKTOP, f"gateway{place % 3}")
            elif (
                kind == "slow"
            ):  # beyond five seconds, and slower than any burst; it takes all links, the hidden one too
                begin = rng.uniform(60, 900)
                for number, link in enumerate(LINKS):
                    add("scanner that takes its time", send, link, begin + 8 * number, DESKTOP, f"cloud{place}")
                add("scanner that takes its time", send, None, begin + 45, DESKTOP, f"cloud{place}", trap=True)
            elif kind == "single":  # one link each, from one place
                add("scanner of one link", send, LINKS[0], rng.uniform(62, 118), OLD_DESKTOP, "sandbox")
            elif kind == "lone":  # nothing gives it away
                add("scanner that nothing gives away", send, LINKS[1], rng.uniform(30, 900), DESKTOP, f"lone{place}")
    return seen
