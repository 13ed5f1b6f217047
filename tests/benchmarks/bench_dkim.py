"""A mail made and signed: what Liquid, MIME and DKIM cost, and our signature beside dkimpy's own on the same bytes.

Both sign the very same mail of the shipped template with the same RSA-2048 key, one after the other, mail by mail, so
that whatever else the machine does falls on both.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dkim
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from service.dkim import OVERSIGNED, SIGNED, Signer
from service.flow.render import Email, RenderInput, Template, compile_template, render
from service.settings import CHECKOUT, Settings

MAILS = 200
NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def run(mails: int = MAILS) -> dict[str, Any]:
    """CPU milliseconds a mail of rendering, of our signature and of dkimpy's, and the ratio of the pairs' medians."""
    key = generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    signer = Signer(pem, "kairos.example", "kairos")
    made, render_ms = _mails(mails)
    ours: list[float] = []
    theirs: list[float] = []
    for message in made:
        began = time.process_time()
        signed = signer.sign(message, at=NOW)
        ours.append(time.process_time() - began)
        began = time.process_time()
        header = _by_dkimpy(message, pem)
        theirs.append(time.process_time() - began)
        for whole in (signed, header + message):
            if not dkim.verify(whole, dnsfunc=lambda name, timeout=5: signer.record.encode()):
                raise AssertionError("a signature does not verify")
    ours_ms, theirs_ms = (statistics.median(times) * 1000 for times in (ours, theirs))
    return {
        "mails": mails,
        "message_bytes": round(statistics.mean(map(len, made))),
        "render_cpu_ms": round(render_ms, 3),
        "sign_cpu_ms": round(ours_ms, 3),
        "dkimpy_sign_cpu_ms": round(theirs_ms, 3),
        "times_faster_than_dkimpy": round(theirs_ms / ours_ms, 1),
    }


def _mails(count: int) -> tuple[list[bytes], float]:
    source = (CHECKOUT / "templates" / "email" / "offer.mjml").read_text()
    template = Template("offer", 1, "For {{ first_name }}", source, "mjml", compile_template(source, "mjml"))
    numbers: dict[str, int] = {}

    def number(urls: Iterable[str]) -> dict[str, int]:
        return {url: numbers.setdefault(url, len(numbers) + 1) for url in urls}

    with TemporaryDirectory() as home:
        settings = Settings(home=Path(home), _env_file=None)  # type: ignore[call-arg]
        inputs = [
            RenderInput(i, i, f"u{i}", f"u{i}@shop.example", {"first_name": f"N{i}"}, template) for i in range(count)
        ]
        render(inputs[:10], now=NOW, settings=settings, number_links=number)
        rounds = []
        for _ in range(5):
            began = time.process_time()
            made = render(inputs, now=NOW, settings=settings, number_links=number)
            rounds.append((time.process_time() - began) / count * 1000)
    return [mail.message_bytes for mail in made if isinstance(mail, Email)], min(rounds)


def _by_dkimpy(message: bytes, pem: bytes) -> bytes:
    return bytes(
        dkim.sign(
            message,
            b"kairos",
            b"kairos.example",
            pem,
            canonicalize=(b"relaxed", b"relaxed"),
            include_headers=[*SIGNED, *OVERSIGNED],
        )
    )


if __name__ == "__main__":
    print(json.dumps(run(), indent=2))
