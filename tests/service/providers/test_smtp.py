"""What is particular to SMTP, to the outbox and to their choice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.providers.base import Receipt, classify, provider_from_url
from service.providers.outbox import OutboxProvider
from service.providers.smtp import SmtpProvider
from service.sink import MailSink
from tests.service.providers.scripted import BODY, DATA, EHLO, GREETING, HANG_UP, MAIL, RCPT, STALL, Scripted, scripted


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
                    connection._wire._transport.abort()

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


# -- servers that stall, lie or hang up ------------------------------------------------------------


@pytest.mark.parametrize(
    "answer", [STALL, HANG_UP, b"hello there\r\n", b"\xff\xfe\x00\r\n", b"2\r\n", b"421 4.3.2 bye\r\n"]
)
@pytest.mark.parametrize("phase", [EHLO, MAIL, RCPT, DATA, BODY])
def test_each_fault_has_a_clear_outcome_and_spares_the_next_mail(phase: str, answer: bytes) -> None:
    """Before the message left: deferred; after it: unknown, unless a 4xx says no. The next mail goes through."""

    async def scenario() -> tuple[list[Receipt], Scripted]:
        async with scripted({phase: answer}) as server:
            provider = SmtpProvider(
                f"smtp://127.0.0.1:{server.port}", connections=1, command_timeout_seconds=0.2, data_timeout_seconds=0.2
            )
            receipts = []
            async with provider.connection() as connection:
                for number in range(2):
                    receipt = await connection.check("f@shop.example", f"a{number}@shop.example")
                    if receipt.outcome == "accepted":
                        receipt = await connection.transmit(b"Subject: x\r\n\r\nx\r\n")
                    receipts.append(receipt)
                    provider._closed_until = 0.0  # the pause is over
            return receipts, server

    receipts, server = asyncio.run(scenario())
    first, second = (receipt.outcome for receipt in receipts)
    if phase == BODY:
        assert first == ("deferred" if answer.startswith(b"421") else "unknown")
        assert len(server.taken) == 2
    else:  # a line that was lost before anything left may be opened anew for the same mail
        assert first in (("deferred",) if phase == DATA else ("deferred", "accepted"))
        assert len(server.taken) == [first, second].count("accepted")
    assert receipts[0].text
    assert second == "accepted"


@pytest.mark.parametrize(
    ("phase", "answer", "outcome"),
    [
        (MAIL, b"250 yes to everything\r\n", "accepted"),
        (RCPT, b"354 go on\r\n", "deferred"),
        (DATA, b"250 yes to everything\r\n", "deferred"),
        (BODY, b"354 go on\r\n", "unknown"),
    ],
)
def test_a_server_that_says_yes_to_another_question_is_not_believed(phase: str, answer: bytes, outcome: str) -> None:
    """A positive reply that does not belong to the question proves nothing: no mail is called accepted by it."""

    async def scenario() -> Receipt:
        async with scripted({phase: answer}) as server:
            provider = SmtpProvider(f"smtp://127.0.0.1:{server.port}", connections=1, command_timeout_seconds=1)
            async with provider.connection() as connection:
                receipt = await connection.check("f@shop.example", "a@shop.example")
                return await connection.transmit(b"x\r\n") if receipt.outcome == "accepted" else receipt

    assert asyncio.run(scenario()).outcome == outcome


def test_a_relay_that_is_down_is_asked_once(caplog: pytest.LogCaptureFixture) -> None:
    """Refused connections and a 421 greeting: one attempt and one line in the log, then a pause for all connections."""

    async def scenario() -> tuple[list[Receipt], int, float]:
        async with scripted(dict.fromkeys([GREETING], b"421 4.3.2 too busy\r\n")) as server:
            provider = SmtpProvider(f"smtp://127.0.0.1:{server.port}", connections=2, command_timeout_seconds=1)
            receipts = []
            for _ in range(3):
                async with provider.connection() as connection:
                    receipts += [await connection.check("f@shop.example", f"a{n}@shop.example") for n in range(5)]
            return receipts, server.connections, provider.pause_seconds

    receipts, connections, pause = asyncio.run(scenario())
    assert connections == 1
    assert {(receipt.outcome, receipt.is_relay_down) for receipt in receipts} == {("deferred", True)}
    assert 4 < pause <= 5
    assert len([record for record in caplog.records if record.message.startswith("the relay cannot")]) == 1


@pytest.mark.parametrize(
    "address", ["a b@shop.example", "a@shop.example>\r\nRCPT TO:<x@shop.example", "ü@shop.example"]
)
def test_an_address_that_would_break_the_envelope_is_refused(address: str) -> None:
    """No command can be smuggled through an address; nothing is asked of the relay."""

    async def scenario() -> Receipt:
        provider = SmtpProvider("smtp://127.0.0.1:9", connections=1)
        async with provider.connection() as connection:
            return await connection.check("f@shop.example", address)

    assert asyncio.run(scenario()).outcome == "rejected"


KINDS = ("is_bad_address", "is_full_mailbox", "is_policy", "is_sender")


@pytest.mark.parametrize(
    ("code", "text", "kinds"),
    [
        (550, "5.1.1 no such user", {"is_bad_address"}),
        (550, "5.1.8 bad sender", {"is_sender"}),
        (550, "5.1.7 bad sender address syntax", {"is_sender"}),
        (550, "5.1.0 <b@shop.example>: Sender address rejected: User unknown", {"is_sender"}),
        (550, "Sender verify failed", {"is_sender"}),
        (550, "5.1.0 address rejected", set()),
        (550, "No such user here", {"is_bad_address"}),
        (552, "5.2.2 mailbox full", {"is_full_mailbox"}),
        (552, "too much mail data", {"is_full_mailbox"}),
        (552, "5.3.4 message too big", set()),
        (550, "5.7.1 policy", {"is_policy"}),
        (452, "4.2.2 mailbox full", set()),
        (250, "5.1.1 nonsense", set()),
    ],
)
def test_a_refusal_is_of_one_kind(code: int, text: str, kinds: set[str]) -> None:
    """Hard, soft, about us, or none of these; only refusals are any."""
    receipt = classify(code, text)
    assert {name for name in KINDS if getattr(receipt, name)} == kinds


@pytest.mark.parametrize(
    ("said", "kinds"),
    [
        (b"550 5.1.1 no such user", {"is_sender"}),
        (b"552 quota", {"is_sender"}),
        (b"550 5.7.1 not allowed", {"is_policy"}),
    ],
)
def test_an_answer_to_mail_never_speaks_of_the_recipient(said: bytes, kinds: set[str]) -> None:
    """Whatever its words are."""

    async def scenario() -> Receipt:
        async with (
            scripted({MAIL: said + b"\r\n"}) as server,
            SmtpProvider(f"smtp://127.0.0.1:{server.port}", connections=1).connection() as connection,
        ):
            return await connection.check("f@shop.example", "a@shop.example")

    receipt = asyncio.run(scenario())
    assert {name for name in KINDS if getattr(receipt, name)} == kinds


@pytest.mark.parametrize("verb", [MAIL, "RSET"])
def test_a_line_that_the_relay_closes_is_opened_anew(verb: str) -> None:
    """421 on a line that carried mails before: the next mail goes over a new line, at once."""

    async def scenario() -> tuple[list[str], int]:
        async with scripted({}) as server:
            async with SmtpProvider(f"smtp://127.0.0.1:{server.port}", connections=1).connection() as connection:
                outcomes = [(await connection.check("f@shop.example", "a@shop.example")).outcome]
                if verb == MAIL:
                    outcomes.append((await connection.transmit(b"x")).outcome)
                server.script[verb] = b"421 4.7.0 enough\r\n"
                outcomes.append((await connection.check("f@shop.example", "b@shop.example")).outcome)
            return outcomes, server.connections

    outcomes, connections = asyncio.run(scenario())
    assert set(outcomes) == {"accepted"}
    assert connections == 2
