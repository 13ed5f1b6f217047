"""Laws of opens and clicks."""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select

from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, HUMAN_PPM
from service.database import Database
from service.hits import Hit, HitBuffer, Settled, record_hits, settle, shipped_rules
from service.tables import HitRow
from tests.service.mailing import events, plan, subscribe

SENT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
BROWSER = "Mozilla/5.0 (iPhone; CPU iPhone OS 18_0 like Mac OS X) AppleWebKit/605.1.15"
GMAIL = "Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)"
MINUTE = timedelta(minutes=1)


def accepted(database: Database, n: int = 1, *, link_count: int | None = 4) -> list[int]:
    """Sends accepted at SENT, of one contact each."""
    keys = subscribe(database, n, now=SENT)
    return plan(database, keys, now=SENT, state="accepted", finished_at=SENT, link_count=link_count)


def hit(database: Database, *hits: tuple[int, int | None, float, str], method: str = "GET") -> None:
    """Record hits given as (send, link, seconds after the send was accepted, user agent)."""
    with database.writing() as session:
        record_hits(
            session, [Hit(send, link, method, agent, SENT + timedelta(seconds=s)) for send, link, s, agent in hits]
        )


def settle_all(database: Database, at: datetime = SENT + timedelta(days=1)) -> Settled:
    with database.writing() as session:
        return settle(session, now=at)


def test_many_hits_are_one_event(any_database: Database) -> None:
    """Hits of one send and link settle into one immutable event; settling again adds nothing."""
    [send] = accepted(any_database)
    hit(
        any_database,
        (send, None, 100, BROWSER),
        (send, None, 101, BROWSER),
        (send, 5, 110, BROWSER),
        (send, 5, 111, BROWSER),
    )
    assert settle_all(any_database) == Settled(hits=4, events=2, human_opens=1, human_clicks=1, dropped=0)
    assert settle_all(any_database) == Settled(0, 0, 0, 0, 0)
    [opened], [clicked] = events(any_database, EMAIL_OPENED), events(any_database, EMAIL_CLICKED)
    assert (opened.ref, opened.identity, opened.is_repeat, opened.hour_of_week) == (str(send), "user:c0", False, 10)
    assert opened.human_ppm >= HUMAN_PPM <= clicked.human_ppm
    assert clicked.occurred_at == (SENT + timedelta(seconds=110) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(
        microseconds=1
    )
    properties = json.loads(clicked.properties)
    assert (properties["link_id"], properties["rule_version"], properties["user_agent_class"]) == (5, 2, "browser")


def test_a_hit_settles_when_it_is_a_minute_old(any_database: Database) -> None:
    """Younger hits wait: what shows them to be a machine's may still come."""
    [send] = accepted(any_database)
    hit(any_database, (send, None, 100, BROWSER))
    assert settle_all(any_database, SENT + timedelta(seconds=159)).hits == 0
    assert settle_all(any_database, SENT + timedelta(seconds=160)).human_opens == 1


def test_a_second_human_open_is_a_repeat(any_database: Database) -> None:
    """Only the first human open of a send counts; later ones say so, in one settling and across two."""
    [send] = accepted(any_database)
    hit(any_database, (send, 5, 100, BROWSER), (send, 6, 130, BROWSER))
    settle_all(any_database, SENT + 10 * MINUTE)
    hit(any_database, (send, None, 3600, BROWSER), (send, 5, 3600, BROWSER))
    settle_all(any_database)
    assert [event.is_repeat for event in events(any_database, EMAIL_CLICKED)] == [False, True, True]
    assert [event.is_repeat for event in events(any_database, EMAIL_OPENED)] == [False, True]


def test_a_human_click_implies_an_open(any_database: Database) -> None:
    """Images off: a person's click brings the open with it; a machine's does not."""
    human, machine = accepted(any_database, 2)
    hit(any_database, (human, 5, 100, BROWSER), (machine, 5, 100, "python-requests/2.32"))
    settle_all(any_database)
    [opened] = events(any_database, EMAIL_OPENED)
    clicked = {event.ref: event for event in events(any_database, EMAIL_CLICKED)}
    assert opened.ref == str(human)
    assert opened.human_ppm == clicked[str(human)].human_ppm


@pytest.mark.parametrize(
    ("agent", "link", "is_human"),
    [
        (BROWSER, None, True),
        (BROWSER, 5, True),
        (GMAIL, None, True),
        (GMAIL, 5, False),
        ("Mozilla/5.0", None, False),
        ("Mozilla/5.0 (compatible; Barracuda Sentinel)", 5, False),
        ("Mozilla/5.0 (compatible; bingbot/2.0)", 5, False),
        ("python-requests/2.32", None, False),
        ("", None, False),
    ],
)
def test_the_user_agent_tells_machines(any_database: Database, agent: str, link: int | None, is_human: bool) -> None:
    """Proxies, scanners and programs are not people; Gmail's image proxy loads when a person opens."""
    [send] = accepted(any_database)
    hit(any_database, (send, link, 100, agent))
    settled = settle_all(any_database)
    assert (settled.human_opens + settled.human_clicks > 0) == is_human


def test_a_phone_that_is_called_cubot_is_no_robot() -> None:
    """Names of devices are not taken for names of robots."""
    assert shipped_rules().agent("Mozilla/5.0 (Linux; Android 13; CUBOT X70) AppleWebKit/537.36").name == "browser"


def test_nobody_clicks_within_five_seconds(any_database: Database) -> None:
    """What comes sooner after the relay took the mail is a scanner, whatever it calls itself."""
    quick, slow = accepted(any_database, 2)
    hit(any_database, (quick, 5, 4.9, BROWSER), (slow, 5, 5.1, BROWSER))
    settle_all(any_database)
    assert [event.ref for event in events(any_database, EMAIL_CLICKED) if event.human_ppm >= HUMAN_PPM] == [str(slow)]


def test_who_follows_every_link_at_once_is_a_scanner(any_database: Database) -> None:
    """Four of five links in ten seconds are a machine's, its open too; over minutes, or two links, a person's."""
    burst, patient, short = accepted(any_database, 3, link_count=5)
    hit(any_database, *[(burst, link, 100 + 2 * link, BROWSER) for link in range(4)], (burst, None, 99, BROWSER))
    hit(any_database, *[(patient, link, 100 + 60 * link, BROWSER) for link in range(4)])
    hit(any_database, *[(short, link, 100 + link, BROWSER) for link in range(2)])
    settle_all(any_database)
    human = {event.ref for event in events(any_database, EMAIL_CLICKED) if event.human_ppm >= HUMAN_PPM}
    assert human == {str(patient), str(short)}
    assert str(burst) not in {e.ref for e in events(any_database, EMAIL_OPENED) if e.human_ppm >= HUMAN_PPM}


def test_a_person_after_a_scanner_still_counts(any_database: Database) -> None:
    """A scanner at delivery does not hide the person who clicks an hour later."""
    [send] = accepted(any_database, link_count=4)
    hit(any_database, *[(send, link, 1 + link, BROWSER) for link in range(4)])
    settle_all(any_database, SENT + 5 * MINUTE)
    hit(any_database, (send, 2, 3600, BROWSER))
    assert settle_all(any_database).human_clicks == 1


def test_head_requests_are_machines(any_database: Database) -> None:
    """A HEAD reads nothing."""
    [send] = accepted(any_database)
    hit(any_database, (send, 5, 100, BROWSER), method="HEAD")
    assert settle_all(any_database).human_clicks == 0


def test_hits_of_a_send_that_is_gone_are_dropped(any_database: Database) -> None:
    """An erased contact's mail may still be opened: nothing is logged, nothing fails."""
    [send] = accepted(any_database)
    hit(any_database, (10**9, None, 100, BROWSER), (send, None, 100, BROWSER))
    assert settle_all(any_database) == Settled(hits=2, events=1, human_opens=1, human_clicks=0, dropped=1)


def test_two_who_settle_at_once_make_one_event(any_database: Database) -> None:
    """Workers that settle the same hits together log each of them once."""
    sends = accepted(any_database, 40)
    hit(any_database, *[(send, None, 100, BROWSER) for send in sends])
    threads = [threading.Thread(target=settle_all, args=(any_database,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event.ref for event in events(any_database, EMAIL_OPENED)) == sorted(map(str, sends))


def test_a_request_is_answered_once_its_hit_is_on_disk(any_database: Database) -> None:
    """Hits of many requests at once share few commits, and each is there when its request goes on."""
    commits: list[int] = []

    async def scenario() -> None:
        buffer = HitBuffer(any_database)

        async def request(number: int) -> None:
            await buffer.add(Hit(number, None, "GET", BROWSER, SENT))
            if number % 50 == 0:
                with any_database.reading() as session:
                    assert session.execute(select(HitRow.hit_id).where(HitRow.send_id == number)).all()

        write = buffer._group._write
        buffer._group._write = lambda session, items: (commits.append(len(items)), write(session, items))[1]
        await asyncio.gather(*(request(number) for number in range(300)))
        await buffer.close()

    asyncio.run(scenario())
    with any_database.reading() as session:
        assert session.execute(select(func.count()).select_from(HitRow)).scalar_one() == 300
    assert sum(commits) == 300
    assert len(commits) <= 10


def test_a_commit_that_fails_is_told_to_its_requests(database: Database) -> None:
    """A request whose hit could not be kept hears of it, and the next one works."""

    async def scenario() -> None:
        buffer = HitBuffer(database)
        bad = Hit(1, None, "GET", BROWSER, datetime(2026, 3, 2))  # noqa: DTZ001 - no time zone, on purpose
        with pytest.raises(Exception, match="time zone"):
            await buffer.add(bad)
        await buffer.add(Hit(2, None, "GET", BROWSER, SENT))

    asyncio.run(scenario())
    with database.reading() as session:
        assert session.execute(select(HitRow.send_id)).scalars().all() == [2]
