"""Laws of the verdict on a hit: which rule says what, and how often they are right together."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, HUMAN_PPM
from service.database import Database
from service.hits import Hit, RuleBook, judge, network_hash, record_hits, settle, shipped_rules
from service.tables import HitRow, SendRow
from tests.service.hits.audience import DESKTOP, LINKS, PHONE, hits_of
from tests.service.mailing import events, plan, subscribe

SENT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
SCANNER = "Mozilla/5.0 (Windows NT 6.1; WOW64) AppleWebKit/537.36 Chrome/109.0.0.0"


def accepted(database: Database, n: int, *, link_count: int = 5) -> list[int]:
    keys = subscribe(database, n, now=SENT)
    return plan(database, keys, now=SENT, state="accepted", finished_at=SENT, link_count=link_count)


def hit(send: int, link: int | None, seconds: float, agent: str = DESKTOP, **more: Any) -> Hit:
    return Hit(send, link, more.pop("method", "GET"), agent, SENT + timedelta(seconds=seconds), **more)


def settled(database: Database, hits: list[Hit], **options: Any) -> dict[tuple[str, int], tuple[bool, list[str]]]:
    """(kind, send) → whether it counts as a person's, and the rules that said so; the last event of each."""
    with database.writing() as session:
        record_hits(session, hits)
    with database.writing() as session:
        settle(session, now=SENT + timedelta(days=8), **options)
    return {
        (kind, int(event.ref or 0)): (event.human_ppm >= HUMAN_PPM, json.loads(event.properties)["rules"])
        for kind in (EMAIL_OPENED, EMAIL_CLICKED)
        for event in events(database, kind)
    }


def test_who_falls_into_the_trap_did_the_rest_too(any_database: Database) -> None:
    """A hit of the hidden link makes its agent's and its network's hits on that mail within a minute a machine's."""
    by_agent, by_network, other, later, neighbour = accepted(any_database, 5)
    found = settled(
        any_database,
        [
            hit(by_agent, None, 130, is_trap=True),
            hit(by_agent, LINKS[0], 100),
            hit(by_agent, None, 189),
            hit(by_network, None, 130, SCANNER, network="n", is_trap=True),
            hit(by_network, LINKS[0], 100, network="n"),
            hit(other, None, 130, SCANNER, network="n", is_trap=True),
            hit(other, LINKS[0], 100, network="m"),
            hit(later, None, 130, is_trap=True),
            hit(later, LINKS[0], 191),
            hit(neighbour, LINKS[0], 130),
        ],
    )
    assert found[EMAIL_CLICKED, by_agent] == (False, ["browser", "trap"])
    assert found[EMAIL_OPENED, by_agent] == (False, ["browser", "trap"])
    assert found[EMAIL_CLICKED, by_network] == (False, ["browser", "trap"])
    for person in (other, later, neighbour):
        assert found[EMAIL_CLICKED, person] == (True, ["browser"])
    assert {send for kind, send in found if kind == EMAIL_OPENED} == {by_agent, other, later, neighbour}


def test_one_place_in_many_mails_is_a_scanner(any_database: Database) -> None:
    """Twenty recipients from one network and agent in a minute; nineteen, two agents, or a proxy are not."""
    sends = accepted(any_database, 120)
    crowd, few, mixed, proxied = sends[:20], sends[20:39], sends[40:79], sends[80:110]
    found = settled(
        any_database,
        [
            *[hit(send, LINKS[0], 60 + place, network="crowd") for place, send in enumerate(crowd)],
            *[hit(send, LINKS[0], 60 + place, network="few") for place, send in enumerate(few)],
            *[hit(s, LINKS[0], 60 + p, (DESKTOP, PHONE)[p % 2], network="mixed") for p, s in enumerate(mixed)],
            *[hit(send, None, 60, "x GoogleImageProxy", network="google") for send in proxied],
        ],
    )
    assert all(found[EMAIL_CLICKED, send] == (False, ["browser", "crowd"]) for send in crowd)
    assert all(found[EMAIL_CLICKED, send] == (True, ["browser"]) for send in few)
    human = Counter(found[EMAIL_CLICKED, send][0] for send in mixed)
    assert human == {True: 19, False: 20}
    assert all(found[EMAIL_OPENED, send] == (True, ["image_proxy"]) for send in proxied)


def test_a_crowd_is_found_across_transactions(any_database: Database) -> None:
    """What was settled before counts as evidence for what settles now."""
    sends = accepted(any_database, 25)
    with any_database.writing() as session:
        record_hits(session, [hit(send, LINKS[0], 60 + place, network="crowd") for place, send in enumerate(sends)])
    for _ in range(4):
        with any_database.writing() as session:
            settle(session, now=SENT + timedelta(days=1), limit=8)
    clicks = events(any_database, EMAIL_CLICKED)
    assert [event.human_ppm >= HUMAN_PPM for event in clicks] == [False] * 25


def test_declared_networks_are_machines(any_database: Database, tmp_path: Path) -> None:
    """A hit from a listed network is lowered to its probability, and says by which list."""
    (tmp_path / "theirs.txt").write_text("# scanners\n198.51.100.0/24\n2001:db8::/32\n")
    rules_file = tmp_path / "rules.yaml"
    shipped = (Path(__file__).parents[3] / "service" / "hits" / "rules.yaml").read_text()
    listed = "networks:\n  - {name: theirs, file: theirs.txt, probability: 0.02}\n"
    rules_file.write_text(shipped.replace("networks: []\n", listed))
    rules = RuleBook(rules_file).current()
    names = [
        rules.network_name(a) for a in ("198.51.100.77", "198.51.101.1", "2001:db8::5", "::ffff:198.51.100.1", "x")
    ]
    assert names == ["theirs", None, "theirs", "theirs", None]

    inside, outside = accepted(any_database, 2)
    hits = [hit(inside, LINKS[0], 100, known_network="theirs"), hit(outside, LINKS[0], 100)]
    found = settled(any_database, hits, rules=rules)
    assert found[EMAIL_CLICKED, inside] == (False, ["browser", "network theirs"])
    assert found[EMAIL_CLICKED, outside] == (True, ["browser"])


def test_a_network_is_known_by_its_hash_alone() -> None:
    """Keyed, 16 bytes, IPv6 by its first 64 bits; who comes through a proxy of ours has none."""
    first = network_hash("key", "93.184.216.34")
    assert first is not None
    assert len(bytes.fromhex(first)) == 16
    assert first != network_hash("other key", "93.184.216.34")
    assert first == network_hash("key", "::ffff:93.184.216.34")
    assert network_hash("key", "2606:4700:1:1::1") == network_hash("key", "2606:4700:1:1:ffff::2")
    assert network_hash("key", "2606:4700:1:1::1") != network_hash("key", "2606:4700:1:2::1")
    assert [network_hash("key", a) for a in ("127.0.0.1", "10.1.2.3", "192.168.0.9", "fe80::1", "", "nobody")] == [
        None
    ] * 6


@pytest.mark.parametrize(("mails", "seed"), [(1_000, 7), pytest.param(20_000, 8, marks=pytest.mark.slow)])
def test_verdicts_are_right_about_known_mailboxes(
    mails: int, seed: int, database: Database, capsys: pytest.CaptureFixture
) -> None:
    """In a world whose truth is known nearly all that counts as a person's is one, and nearly no person is lost."""
    sends = accepted(database, mails)
    world = hits_of(sends, SENT, seed)
    with database.writing() as session:
        record_hits(session, [seen.hit for seen in world])
    with database.reading() as session:
        rows = session.scalars(select(HitRow).order_by(HitRow.hit_id)).all()
        ledger = {row.send_id: row for row in session.scalars(select(SendRow))}
        verdicts = judge(session, rows, ledger, shipped_rules())
    right: Counter[tuple[str, bool, bool]] = Counter()
    by_kind: Counter[tuple[str, bool]] = Counter()
    for seen, verdict in zip(world, verdicts, strict=True):
        if verdict is None:
            assert seen.hit.is_trap
            continue
        is_human = verdict.human_ppm >= HUMAN_PPM
        right["open" if seen.hit.link_id is None else "click", seen.is_human, is_human] += 1
        by_kind[seen.who, is_human] += 1

    def shares(kind: str) -> tuple[float, float]:
        found, missed = right[kind, True, True], right[kind, True, False]
        return found / (found + right[kind, False, True]), found / (found + missed)

    with capsys.disabled():
        print(
            f"\n  seed {seed}:", ", ".join(f"{k}: precision %.3f, recall %.3f" % shares(k) for k in ("open", "click"))
        )
        for who in sorted({who for who, _ in by_kind}):
            total = by_kind[who, True] + by_kind[who, False]
            print(f"    {who}: {by_kind[who, False]} of {total} judged machine")
    for kind in ("open", "click"):
        precision, recall = shares(kind)
        assert precision >= 0.93
        assert recall >= 0.97
    # The one kind of scanner that looks in every way like a person is taken for one: nobody can do better here.
    machines = [who for who, _ in by_kind if who.startswith("scanner") and "nothing" not in who]
    caught = sum(by_kind[who, False] for who in set(machines))
    assert caught / (caught + sum(by_kind[who, True] for who in set(machines))) >= 0.98
