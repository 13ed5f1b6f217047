"""Laws of reading what came back."""

from __future__ import annotations

import base64
import contextlib
import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.bounces import LARGEST_MESSAGE, read_report, severity_of
from service.errors import Invalid, TooLarge
from tests.service.bounces.corpus import OURS, SHAPES, complaint, postfix

ADDRESS = "jane.doe77@shop.example"
MESSAGE_ID = "<s41.0123456789ab@kairos.example>"
RETURNED = OURS.format(sender="b+tok3n@back.kairos.example", address=ADDRESS, message_id=MESSAGE_ID, send_id=41)


@pytest.mark.parametrize("ends", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_is_what_it_is(shape: str, ends: str) -> None:
    """Kind and severity, the return path's token, the mail that came back, the address; no address in the words."""
    write, kind, severity = SHAPES[shape]
    raw = write("b+tok3n@back.kairos.example", RETURNED, ADDRESS).replace("\n", ends).encode()

    report = read_report(raw)

    assert (report.kind, report.severity) == (kind, severity)
    assert "jane" not in repr(report)
    assert "@" not in report.diagnostic
    if kind != "none":
        assert report.tokens == ("tok3n",)
        assert ADDRESS in report.recipients
        assert report.message_id == (MESSAGE_ID if shape != "ses" else "<0100019ce@eu-west-1.relay.example>")
        assert report.named_send == 41
    else:
        assert report.why


def test_a_notification_in_base64_is_read_too() -> None:
    """Some gateways encode the part that machines are to read."""
    raw = postfix("b+t@back.example", RETURNED, ADDRESS)
    head, _, rest = raw.partition("Content-Type: message/delivery-status\n\n")
    fields, _, tail = rest.partition("\n\n--XX")
    coded = base64.encodebytes(fields.encode()).decode()
    raw = f"{head}Content-Type: message/delivery-status\nContent-Transfer-Encoding: base64\n\n{coded}\n--XX{tail}"

    report = read_report(raw.encode())

    assert (report.kind, report.status) == ("bounce", "5.1.1")


def test_a_complaint_tells_the_address_when_the_mail_is_cut_out() -> None:
    report = read_report(complaint("fbl@kairos.example", "", ADDRESS, told=f"Original-Rcpt-To: <{ADDRESS}>\n").encode())

    assert (report.kind, report.recipients) == ("complaint", (ADDRESS,))


@pytest.mark.parametrize(
    ("status", "code", "text", "severity"),
    [
        ("5.1.1", 550, "", "hard"),
        ("5.1.2", 550, "", "hard"),
        ("5.1.10", 550, "", "hard"),
        ("5.1.7", 550, "bad sender address syntax", "policy"),
        ("5.1.8", 553, "sender's domain does not exist", "policy"),
        ("5.2.1", 550, "mailbox disabled", "soft"),
        ("5.2.2", 552, "", "soft"),
        ("5.2.3", 552, "message too large", "policy"),
        ("5.4.7", 554, "expired", "soft"),
        ("5.7.1", 550, "user unknown, says a filter", "policy"),
        ("4.2.2", 452, "", "soft"),
        (None, 550, "Requested action not taken: mailbox unavailable, no such user", "hard"),
        (None, 551, "user not found", "hard"),
        (None, 552, "storage", "soft"),
        (None, 554, "Message rejected as spam", "policy"),
        (None, 550, "rejected", "soft"),
        ("5.0.0", None, "unknown user", "hard"),
        (None, None, "", "soft"),
    ],
)
def test_severity_follows_the_enhanced_code_then_the_words(
    status: str | None, code: int | None, text: str, severity: str
) -> None:
    """Only what says that there is no such mailbox is hard: when in doubt an address gets another chance."""
    assert severity_of(status, code, text) == severity


@pytest.mark.parametrize("raw", [b"", b"\n\n", b"hello", b"\x00\xff\xfe", b" \r\n \r\n"])
def test_what_is_no_message_is_refused_with_the_remedy(raw: bytes) -> None:
    with pytest.raises(Invalid, match="message/rfc822"):
        read_report(raw)


def test_a_message_over_the_limit_is_refused() -> None:
    with pytest.raises(TooLarge, match="5,000,000"):
        read_report(b"From: a@b.example\n\n" + b"x" * LARGEST_MESSAGE)


def test_a_message_nested_without_end_is_read_or_refused() -> None:
    """Ten thousand parts inside each other stop nobody."""
    raw = "From: mailer-daemon@x.example\n"
    for place in range(10_000):
        raw += f'Content-Type: multipart/mixed; boundary="b{place}"\n\n--b{place}\n'
    with contextlib.suppress(Invalid):
        assert read_report(raw.encode()).kind == "none"


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(sorted(SHAPES)))
def test_damaged_reports_never_break_the_reader(seed: int, shape: str) -> None:
    """Bytes changed, cut out and put in at random: a report or a refusal, nothing else."""
    rng = random.Random(seed)
    raw = bytearray(SHAPES[shape][0]("b+tok3n@back.kairos.example", RETURNED, ADDRESS).encode())
    for _ in range(rng.randint(1, 12)):
        at = rng.randrange(len(raw))
        if rng.random() < 0.5:
            raw[at] = rng.randrange(256)
        else:
            raw[at : at + rng.randint(0, 40)] = os.urandom(rng.randint(0, 8))
    with contextlib.suppress(Invalid):
        assert read_report(bytes(raw)).kind in ("bounce", "complaint", "none")
