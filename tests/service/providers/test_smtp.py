"""What is particular to SMTP, to the outbox and to their choice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.providers.base import provider_from_url
from service.providers.outbox import OutboxProvider
from service.providers.smtp import SmtpProvider
from service.sink import MailSink


def test_the_url_names_the_provider(tmp_path: Path) -> None:
    """smtp, smtps and outbox; the password may hold any sign, percent-encoded."""
    relay = provider_from_url("smtp://us%40shop:p%2Fw@relay.example", home=tmp_path, connections=3)
    assert isinstance(relay, SmtpProvider)
    assert (relay.host, relay.port, relay.connections) == ("relay.example", 25, 3)
    assert (relay._username, relay._password) == ("us@shop", "p/w")
    assert provider_from_url("smtps://relay.example", home=tmp_path, connections=3).port == 465
    outbox = provider_from_url("outbox://", home=tmp_path, connections=3)
    assert isinstance(outbox, OutboxProvider)
    assert outbox.folder == tmp_path / "outbox"


@pytest.mark.parametrize("url", ["http://relay.example", "relay.example:25", "smtp://"])
def test_a_url_that_names_nothing_is_refused_without_showing_it(tmp_path: Path, url: str) -> None:
    """The message says what to write, and does not repeat what may hold a password."""
    with pytest.raises(ValueError, match="smtp://host:port"):
        provider_from_url(url, home=tmp_path, connections=1)


def test_a_connection_carries_many_mails() -> None:
    """Mails go one after the other through one conversation, and through a new one when the relay hung up between."""

    async def scenario(provider: SmtpProvider) -> None:
        async with provider.connection() as connection:
            for number in range(3):
                assert (await connection.check("f@shop.example", f"a{number}@shop.example")).outcome == "accepted"
                assert (await connection.transmit(b"Subject: x\r\n\r\nx\r\n")).outcome == "accepted"
                if number == 1:
                    connection._client.transport.abort()

    with MailSink() as sink:
        asyncio.run(scenario(SmtpProvider(sink.url, connections=1, command_timeout_seconds=5)))
        assert [delivery.recipient[:2] for delivery in sink.deliveries] == ["a0", "a1", "a2"]


def test_an_outbox_that_cannot_be_written_defers(tmp_path: Path) -> None:
    """A full or missing disk is a reason to try again, not to lose the mail."""

    async def scenario() -> str:
        provider = OutboxProvider(tmp_path / "outbox")
        async with provider.connection() as connection:
            await connection.check("f@shop.example", "a@shop.example")
            provider.folder.rmdir()
            return (await connection.transmit(b"x")).outcome

    assert asyncio.run(scenario()) == "deferred"
