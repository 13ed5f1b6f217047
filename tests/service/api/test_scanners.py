"""A mail over real SMTP's bytes and real HTTP: what scanners and people do with it, and what is made of it."""

from __future__ import annotations

import asyncio
import html
import json
import re
from datetime import timedelta
from email import message_from_bytes, policy

import httpx
import pytest

from features.vocabulary import EMAIL_CLICKED, EMAIL_OPENED, HUMAN_PPM, UNSUBSCRIBED
from service.app import create_app
from service.clock import SimulatedClock
from service.database import Database
from service.demo import free_port, serving_http
from service.flow.deliver import claim, deliver
from service.flow.render import gather, render
from service.hits import settle
from service.links import LinkBook
from service.providers.smtp import SmtpProvider
from service.settings import Settings
from service.sink import MailSink
from service.suppression import consent_states
from service.tables import HitRow
from tests.conftest import NOW
from tests.service.mailing import TOPIC, add_template, events, plan, subscribe

BROWSER = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0"
#: A scanner's public address, and a person's.
SCANNER, PERSON = "93.184.216.34", "93.184.216.77"


@pytest.fixture
def installation(database: Database, settings: Settings) -> Settings:
    """Two subscribers with a template; the mails' links lead to a port of this machine."""
    port = free_port()
    add_template(database, now=NOW)
    return settings.model_copy(
        update={"public_url": f"http://127.0.0.1:{port}", "topics": f"{TOPIC}=News", "quiet_hours": ""}
    )


def mail_to(database: Database, settings: Settings, n: int) -> list[bytes]:
    """Send ``n`` mails through SMTP; their bytes as they arrived, in the order of the sends."""
    keys = subscribe(database, n, now=NOW)
    plan(database, keys, now=NOW)

    async def send() -> list[bytes]:
        with MailSink() as sink:
            with database.writing() as session:
                claimed = claim(session, now=NOW, limit=n, lease_seconds=60, settings=settings)
            with database.reading() as session:
                inputs = gather(session, claimed.sends)
            mails = render(inputs, now=NOW, settings=settings, number_links=LinkBook(database))
            provider = SmtpProvider(sink.url, connections=2)
            await deliver(claimed.sends, mails, provider, database, clock=SimulatedClock(NOW), settings=settings)
            arrived = [delivery.content for delivery in sink.deliveries]
        return sorted(arrived, key=lambda raw: int(message_from_bytes(raw)["X-Kairos-Send"]))

    return asyncio.run(send())


def links_of(raw: bytes) -> list[str]:
    """Every address of the mail: of both parts and of its headers."""
    message = message_from_bytes(raw, policy=policy.default)
    found = re.findall(r"<(http[^>]+)>", str(message["List-Unsubscribe"]))
    for part in message.walk():
        if part.get_content_maintype() == "text":
            found += re.findall(r"http://127\.0\.0\.1:\d+/[ocut]/[\w-]+", html.unescape(part.get_content()))
    return list(dict.fromkeys(found))


def test_scanners_unsubscribe_nobody_and_people_are_still_seen(database: Database, installation: Settings) -> None:
    """HEAD and GET of every address, the hidden one too: no unsubscribe, all judged machine; then a person clicks."""
    scanned, read = mail_to(database, installation, 2)
    links = {name: links_of(raw) for name, raw in (("scanned", scanned), ("read", read))}
    assert {link.split("/")[3] for link in links["scanned"]} == {"o", "c", "u", "t"}
    clock = SimulatedClock(NOW + timedelta(minutes=3))  # far beyond the five seconds, and slower than a burst
    app = create_app(installation, database, clock)
    with serving_http(app, int(installation.public_url.rpartition(":")[2])), httpx.Client(timeout=30) as client:

        def visit(method: str, url: str, address: str) -> httpx.Response:
            headers = {"User-Agent": BROWSER, "X-Forwarded-For": address}
            answer = client.request(method, url, headers=headers, follow_redirects=False)
            assert answer.status_code in (200, 302), url
            assert not answer.cookies
            return answer

        for link in links["scanned"]:
            for method in ("HEAD", "GET"):
                visit(method, link, SCANNER)
            clock.move_to(clock.now() + timedelta(seconds=8))
        click = next(link for link in links["read"] if "/c/" in link)
        assert visit("GET", click, PERSON).headers["location"].startswith("https://")
        # The mail program's one click, in both forms: without cookies, and twice is as once.
        leave = next(link for link in links["read"] if "/u/" in link)
        for body in ({"data": {"List-Unsubscribe": "One-Click"}}, {"files": {"List-Unsubscribe": (None, "One-Click")}}):
            assert events(database, UNSUBSCRIBED) == [] or len(events(database, UNSUBSCRIBED)) == 1
            assert client.post(leave, **body).status_code == 200  # type: ignore[arg-type]
    with database.writing() as session:
        settle(session, now=clock.now() + timedelta(hours=1))
    clicks, opens = events(database, EMAIL_CLICKED), events(database, EMAIL_OPENED)
    human = [(event.kind, event.ref) for event in (*clicks, *opens) if event.human_ppm >= HUMAN_PPM]
    assert sorted(human) == [(EMAIL_CLICKED, "2"), (EMAIL_OPENED, "2")]
    assert all("trap" in json.loads(event.properties or "")["rules"] for event in clicks if event.ref == "1")
    [left] = events(database, UNSUBSCRIBED)
    assert left.ref == "2"
    with database.reading() as session:
        states = consent_states(session, [1, 2], TOPIC)
        networks = {row.network for row in session.query(HitRow)}
    assert states == {1: "subscribed", 2: "unsubscribed"}
    assert len(networks) == 2  # both known by a hash, neither by its address
    assert not {SCANNER, PERSON} & networks
