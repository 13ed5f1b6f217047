"""A whole marketing mail as a mail server gets it: golden bytes, addresses, return path, signature."""

from __future__ import annotations

import asyncio
import email
import email.policy
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service.clock import SimulatedClock
from service.database import Database
from service.dkim import signer_of
from service.flow.deliver import Receipts, claim, deliver
from service.flow.render import Email, RenderFailure, RenderInput, Template, compile_template, gather, render
from service.flow.render.addresses import base_url, deliverable, mailbox
from service.flow.render.headers import LONGEST_PUBLIC_URL
from service.links import LARGEST_ID, LinkBook, read_bounce, read_unsubscribe
from service.providers.smtp import SmtpProvider
from service.settings import Settings
from service.sink import Delivery, MailSink
from service.templates import NewTemplate, add_template
from tests.service.mailing import plan, subscribe

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
SOURCE = (
    "<html><body><p>Hi {{ first_name }}, caf\u00e9 \U0001f381</p>"
    '<p><a href="https://shop.example/new?a=1&amp;b=2">Look</a></p>'
    '<p>{{ postal_address }}<br><a href="{{ unsubscribe_url }}">Unsubscribe</a></p></body></html>'
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        home=tmp_path / "home",
        secret_key="fixed",
        suppression_pepper="fixed",
        public_url="https://mail.shop.example/",
        from_address="Café Kairos <hello@shop.example>",
        return_path_domain="bounces.shop.example",
        postal_address="1 High Street, London",
        _env_file=None,
    )


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "dkim.pem"
    key = generate_private_key(65537, 2048)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return path


def sent(database: Database, settings: Settings, count: int = 1) -> tuple[Receipts, list[Delivery]]:
    """The mails of ``count`` contacts as the server got them, through claim, render and deliver."""
    keys = subscribe(database, count, now=NOW)
    with database.writing() as session:
        add_template(session, NewTemplate("offer", "Caf\u00e9 for {{ first_name }}", SOURCE, "html"), now=NOW)
    plan(database, keys, now=NOW, campaign_id=None)
    with database.writing() as session:
        claimed = claim(session, now=NOW, limit=100, lease_seconds=60, settings=settings)
    with database.reading() as session:
        inputs = gather(session, claimed.sends)
    mails = render(inputs, now=NOW, settings=settings, number_links=LinkBook(database))
    with MailSink() as sink:
        provider = SmtpProvider(sink.url, connections=2)
        receipts = asyncio.run(
            deliver(claimed.sends, mails, provider, database, clock=SimulatedClock(NOW), settings=settings)
        )
    return receipts, sink.deliveries


def test_a_marketing_mail_arrives_byte_for_byte(database: Database, settings: Settings) -> None:
    """What a real server takes from the line: each header whole on its line, text before HTML, an own return path."""
    receipts, [delivery] = sent(database, settings)
    assert receipts.accepted == 1
    expected = (Path(__file__).parent / "marketing_mail.eml").read_bytes()
    assert delivery.content.replace(b"\r\n", b"\n") == expected
    assert delivery.content.count(b"\n") == delivery.content.count(b"\r\n")
    assert delivery.recipient == "c0@shop.example"
    token, _, domain = delivery.sender.removeprefix("b+").partition("@")
    assert domain == "bounces.shop.example"
    assert read_bounce("fixed", token) == read_bounce("fixed", token.upper()) == 1
    message = email.message_from_bytes(delivery.content, policy=email.policy.default)
    way_out = re.match(r"<https://mail\.shop\.example/u/([\w-]+)>, <mailto:", message["List-Unsubscribe"])
    assert way_out is not None
    assert read_unsubscribe("fixed", way_out.group(1)) == 1


def test_a_signed_mail_arrives_as_it_was_signed(database: Database, settings: Settings, key_file: Path) -> None:
    """A verifier accepts what came over the line, and the mail is otherwise the one that would leave unsigned."""
    signing = settings.model_copy(update={"dkim_key_file": key_file})
    _, deliveries = sent(database, signing, 3)
    signer = signer_of(signing, "shop.example")
    assert signer is not None
    for delivery in deliveries:
        assert dkim.verify(delivery.content, dnsfunc=lambda name, timeout=5: signer.record.encode())
        message = email.message_from_bytes(delivery.content, policy=email.policy.default)
        signed = re.search(r"h=([^;]+);", message["DKIM-Signature"])
        assert signed is not None
        covered = [name.strip() for name in signed.group(1).split(":")]
        assert {"list-unsubscribe", "list-unsubscribe-post", "message-id", "date"} <= set(covered)
        assert covered.count("from") == 2
    page = Template("offer", 1, "x", SOURCE, "html", compile_template(SOURCE, "html"))
    one = [RenderInput(1, 1, "c0", "c0@shop.example", {}, page)]
    [plain] = render(one, now=NOW, settings=settings, number_links=None)
    [with_signature] = render(one, now=NOW, settings=signing, number_links=None)
    assert with_signature.message_id == plain.message_id
    assert with_signature.message_bytes.endswith(plain.message_bytes)


def test_the_ways_out_stay_on_one_line_with_the_longest_ids_and_urls(settings: Settings) -> None:
    """With a PUBLIC_URL of 600 characters, the largest id and the longest From, no line passes 998 octets."""
    url = "https://" + "a" * 50 + ".example/" + "p" * (LONGEST_PUBLIC_URL - 67)
    assert len(url) == LONGEST_PUBLIC_URL
    sender = "h" * 64 + "@" + ".".join(["d" * 60] * 3) + ".ex"
    longest = settings.model_copy(update={"public_url": url, "from_address": sender})
    page = Template("t", 1, "x", "<p>x</p>", "html", "<p>x</p>")
    [mail] = render(
        [RenderInput(LARGEST_ID, 1, "u", "a@shop.example", {}, page, campaign_id="c" * 60, topic="t" * 60)],
        now=NOW,
        settings=longest,
        number_links=None,
    )
    assert isinstance(mail, Email)
    lines = mail.message_bytes.split(b"\r\n\r\n")[0].split(b"\r\n")
    [way_out] = [line for line in lines if line.startswith(b"List-Unsubscribe:")]
    assert way_out.startswith(b"List-Unsubscribe: <https://")
    assert way_out.endswith(b">")
    assert max(map(len, lines)) == len(way_out) <= 998
    assert b"List-Unsubscribe-Post: List-Unsubscribe=One-Click" in lines
    assert len(mail.sender.partition("@")[0]) <= 64
    beyond = longest.model_copy(update={"public_url": url + "p" * 400})
    [failed] = render([RenderInput(1, 1, "u", "a@shop.example", {}, page)], now=NOW, settings=beyond, number_links=None)
    assert isinstance(failed, RenderFailure)
    assert "a line takes 998" in failed.reason


@pytest.mark.parametrize(
    ("written", "header", "address"),
    [
        ('"Shop, Inc." <a@shop.example>', '"Shop, Inc." <a@shop.example>', "a@shop.example"),
        ("Bücher <hallo@bücher.example>", "=?utf-8?q?B=C3=BCcher?= <hallo@xn--bcher-kva.example>", None),
        ("a@shop.example", "a@shop.example", "a@shop.example"),
    ],
)
def test_a_sender_is_written_as_headers_want_it(written: str, header: str, address: str | None) -> None:
    """Commas, accents and domains of other scripts in FROM_ADDRESS reach the header in ASCII, and as one address."""
    assert mailbox(written) == (header, address or "hallo@xn--bcher-kva.example")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("ann+tag@shop.example", "ann+tag@shop.example"),
        ('"ann b"@shop.example', '"ann b"@shop.example'),
        ('"a\\"b"@shop.example', '"a\\"b"@shop.example'),
        ("ann@BÜCHER.example", "ann@xn--bcher-kva.example"),
        ("ann@例え.テスト", "ann@xn--r8jz45g.xn--zckzah"),
    ],
)
def test_addresses_arrive_at_their_mailbox(database: Database, settings: Settings, given: str, expected: str) -> None:
    """Quoted names and domains of other scripts pass the envelope and the To header of a real server."""
    assert deliverable(given) == expected
    page = Template("t", 1, "x", "<p>x</p>", "html", "<p>x</p>")
    [mail] = render([RenderInput(1, 1, "u", given, {}, page)], now=NOW, settings=settings, number_links=None)
    assert mail.recipient == dict(mail.headers)["To"] == expected

    async def send() -> list[Delivery]:
        with MailSink() as sink:
            async with SmtpProvider(sink.url, connections=1).connection() as connection:
                assert (await connection.check(mail.sender, mail.recipient)).outcome == "accepted"
                assert (await connection.transmit(mail.message_bytes)).outcome == "accepted"
            return sink.deliveries

    [delivery] = asyncio.run(send())
    assert delivery.recipient == expected


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("email", "ann@shop.example\r\nBcc: all@shop.example", "control character"),
        ("email", "ann@shop.example\nBcc: all@shop.example", "control character"),
        ("email", "ann@shop.example, bob@shop.example", "one plain mailbox"),
        ("email", "Ann <ann@shop.example>", "one plain mailbox|no domain name"),
        ("email", "ann@shop.example>", "no domain name"),
        ("email", "änn@shop.example", "beyond ASCII"),
        ("email", "ann", "no name or no domain"),
        ("email", "ann@", "no name or no domain"),
        ("email", "ann@-shop.example", "no domain name"),
        ("email", "a" * 65 + "@shop.example", "65 characters before its @"),
        ("email", "a@" + ".".join(["d" * 60] * 5), "in all|no domain name"),
        ("email", "ann@\u2488com.example", "domain"),
        ("email", '"ann\r\n"@shop.example', "control character"),
        ("first_name", "Ann\r\nBcc: all@shop.example", "control character U\\+000A"),
        ("first_name", "Ann\u2028Bcc: all@shop.example", "control character U\\+2028"),
        ("first_name", "Ann\x00", "control character U\\+0000"),
        ("campaign_id", "spring\r\nBcc: all@shop.example", "control character"),
        ("campaign_id", "früh", "beyond ASCII"),
    ],
)
def test_what_would_break_out_of_a_header_fails_its_row_alone(
    settings: Settings, field: str, value: str, told: str
) -> None:
    """The row ends with a reason that does not repeat the address; its neighbours go."""
    page = Template("t", 1, "Hi {{ first_name }}", "<p>x</p>", "html", "<p>x</p>")
    values = {"email": "ann@shop.example", "campaign_id": "spring"} | ({} if field == "first_name" else {field: value})
    bad = RenderInput(
        1, 1, "u1", values["email"], {"first_name": value if field == "first_name" else "Ann"}, page,
        campaign_id=values["campaign_id"],
    )  # fmt: skip
    good = RenderInput(2, 2, "u2", "bob@shop.example", {"first_name": "Bob"}, page, campaign_id="spring")
    failed, fine = render([bad, good], now=NOW, settings=settings, number_links=None)
    assert isinstance(failed, RenderFailure)
    assert re.search(told, failed.reason)
    assert "ann@" not in failed.reason
    assert isinstance(fine, Email)
    assert b"Bcc" not in fine.message_bytes


def test_a_topic_cannot_break_out_of_its_headers(settings: Settings) -> None:
    """Whatever a topic is called, List-ID and Feedback-ID carry letters, digits and hyphens of it."""
    page = Template("t", 1, "x", "<p>x</p>", "html", "<p>x</p>")
    [mail] = render(
        [RenderInput(1, 1, "u", "a@shop.example", {}, page, topic="News\r\nBcc: x@y.example>")],
        now=NOW,
        settings=settings,
        number_links=None,
    )
    assert dict(mail.headers)["List-ID"] == "<news-bcc-x-y-example.shop.example>"
    assert b"\r\nBcc" not in mail.message_bytes


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"from_address": "nobody"}, "holds no mail address"),
        ({"from_address": "Shop\r\nBcc: x@y.example <a@shop.example>"}, "control character"),
        ({"public_url": "shop.example"}, "PUBLIC_URL"),
        ({"public_url": "https://shop.example/ü"}, "percent-encoded"),
        ({"dkim_key_file": Path("/nowhere/key.pem")}, "KAIROS_DKIM_KEY_FILE"),
    ],
)
def test_a_setting_that_spoils_every_mail_fails_none(settings: Settings, changes: dict[str, Any], told: str) -> None:
    """The batch stops with the reason and the sends stay claimable: nobody's mail ends as failed for it."""
    page = Template("t", 1, "x", "<p>x</p>", "html", "<p>x</p>")
    with pytest.raises(ValueError, match=told):
        render(
            [RenderInput(1, 1, "u", "a@shop.example", {}, page)],
            now=NOW,
            settings=settings.model_copy(update=changes),
            number_links=None,
        )


def test_public_url_of_another_script_becomes_ascii() -> None:
    """One-click links stand in a header, which carries no other letters."""
    assert base_url("https://bücher.example:8443/m/") == "https://xn--bcher-kva.example:8443/m"
