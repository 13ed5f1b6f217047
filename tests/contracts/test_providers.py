"""Laws that every provider keeps."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from service.providers.base import Provider, Receipt
from service.providers.outbox import OutboxProvider
from service.providers.smtp import SmtpProvider
from service.sink import MailSink

Answer = Callable[[str], str | None]
MESSAGE = b"Subject: hello\r\nX-Kairos-Send: 1\r\n\r\n.a dot begins this line\r\nand this ends it\r\n"


class Bench:
    """A provider and what arrived through it."""

    def __init__(self, provider: Provider, arrived: Callable[[], list[bytes]]) -> None:
        self.provider = provider
        self.arrived = arrived


@contextmanager
def _smtp(_folder: Path, on_recipient: Answer | None, on_message: Answer | None) -> Iterator[Bench]:
    with MailSink(on_recipient=on_recipient, on_message=on_message) as sink:
        provider = SmtpProvider(sink.url, connections=2, command_timeout_seconds=5, data_timeout_seconds=5)
        yield Bench(provider, lambda: [delivery.content for delivery in sink.deliveries])


@contextmanager
def _outbox(folder: Path, on_recipient: Answer | None, on_message: Answer | None) -> Iterator[Bench]:
    provider = OutboxProvider(folder, connections=2, on_recipient=on_recipient, on_message=on_message)
    yield Bench(provider, lambda: [path.read_bytes() for path in sorted(folder.glob("*.eml"))])


@pytest.fixture(params=[_smtp, _outbox], ids=["smtp", "outbox"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., AbstractContextManager[Bench]]:
    def build(*, on_recipient: Answer | None = None, on_message: Answer | None = None) -> AbstractContextManager[Bench]:
        return request.param(tmp_path / "outbox", on_recipient, on_message)

    return build


def only(address: str, answer: str) -> Answer:
    return lambda recipient: answer if recipient == address else None


async def _send(provider: Provider, recipients: list[str]) -> list[tuple[Receipt, Receipt | None]]:
    receipts: list[tuple[Receipt, Receipt | None]] = []
    async with provider.connection() as connection:
        for recipient in recipients:
            checked = await connection.check("from@kairos.example", recipient)
            sent = await connection.transmit(MESSAGE) if checked.outcome == "accepted" else None
            receipts.append((checked, sent))
    return receipts


def test_an_accepted_mail_arrives_byte_for_byte(bench) -> None:
    """What is transmitted and accepted arrives once, unchanged, leading dots included."""
    with bench() as ready:
        [(checked, sent)] = asyncio.run(_send(ready.provider, ["a@shop.example"]))
        assert (checked.outcome, sent.outcome, sent.code) == ("accepted", "accepted", 250)
        assert ready.arrived() == [MESSAGE]


def test_a_check_alone_sends_nothing(bench) -> None:
    """Between check and transmit nothing has left, and an abandoned mail never does."""

    async def check_and_abandon(provider: Provider) -> Receipt:
        async with provider.connection() as connection:
            await connection.check("from@kairos.example", "a@shop.example")
            await connection.abandon()
            await connection.check("from@kairos.example", "b@shop.example")
            return await connection.transmit(MESSAGE)

    with bench() as ready:
        assert asyncio.run(check_and_abandon(ready.provider)).outcome == "accepted"
        assert len(ready.arrived()) == 1


@pytest.mark.parametrize(
    ("answer", "outcome", "is_bad_address"),
    [
        ("550 5.1.1 no such user", "rejected", True),
        ("550 5.7.1 policy", "rejected", False),
        ("451 4.7.1 come back later", "deferred", False),
    ],
)
@pytest.mark.parametrize("phase", ["on_recipient", "on_message"])
def test_a_refusal_keeps_its_code_and_spares_the_next_mail(bench, phase, answer, outcome, is_bad_address) -> None:
    """4xx is deferred, 5xx rejected, 5.1.x a bad address, in both phases; the conversation goes on after it."""
    with bench(**{phase: only("bad@shop.example", answer)}) as ready:
        receipts = asyncio.run(_send(ready.provider, ["bad@shop.example", "good@shop.example"]))
        refused = receipts[0][0] if phase == "on_recipient" else receipts[0][1]
        assert (refused.outcome, refused.code, refused.is_bad_address) == (outcome, int(answer[:3]), is_bad_address)
        assert receipts[1][1].outcome == "accepted"
        assert len(ready.arrived()) == 1


def test_a_line_lost_before_the_message_defers(bench) -> None:
    """A connection that breaks before the message began leaves no doubt: try again."""
    with bench(on_recipient=only("bad@shop.example", "drop")) as ready:
        receipts = asyncio.run(_send(ready.provider, ["bad@shop.example", "good@shop.example"]))
        assert receipts[0][0].outcome == "deferred"
        assert receipts[1][1].outcome == "accepted"


def test_a_line_lost_after_the_message_is_unknown(bench) -> None:
    """A connection that breaks after the message began leaves the outcome unknown, and the next mail finds a line."""
    with bench(on_message=only("bad@shop.example", "drop")) as ready:
        receipts = asyncio.run(_send(ready.provider, ["bad@shop.example", "good@shop.example"]))
        assert receipts[0][1].outcome == "unknown"
        assert receipts[1][1].outcome == "accepted"
