"""Laws of signing: any verifier accepts what we sign, and nothing that matters can be changed or added afterwards."""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime
from pathlib import Path

import dkim
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import generate_private_key as elliptic
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat
from dkim.canonicalization import Relaxed

from service.dkim import Signer, signer_of
from service.settings import Settings

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
MESSAGE = (
    b"From: Kairos <hello@shop.example>\r\nTo: ann@shop.example\r\nSubject: =?utf-8?q?Caf=C3=A9?=\r\n"
    b"Date: Mon, 02 Mar 2026 09:00:00 +0000\r\nMessage-ID: <s7.1@shop.example>\r\n"
    b"List-Unsubscribe: <https://shop.example/u/x>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
    b"MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nHello   there \r\n\r\nBye\r\n\r\n\r\n"
)


def pem(key: object) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(pem(generate_private_key(65537, 2048)), "shop.example", "kairos")


def accepts(signer: Signer, message: bytes) -> bool:
    """Whether dkimpy's verifier, asked with the record we publish, accepts the mail."""
    records = {b"kairos._domainkey.shop.example.": signer.record.encode()}
    return dkim.verify(message, dnsfunc=lambda name, timeout=5: records[name])


def test_a_verifier_accepts_what_was_signed(signer: Signer) -> None:
    """The mail itself, its Message-ID among it, stays as it was; the signature stands in front of it."""
    signed = signer.sign(MESSAGE, at=NOW)
    assert signed.endswith(MESSAGE)
    assert accepts(signer, signed)
    head = signed[: -len(MESSAGE)]
    assert all(len(line) <= 78 for line in head.split(b"\r\n"))
    assert signer.sign(MESSAGE, at=NOW) == signed


@pytest.mark.parametrize(
    "name",
    ["From", "To", "Subject", "Date", "Message-ID", "List-Unsubscribe", "List-Unsubscribe-Post", "MIME-Version",
     "Content-Type"],
)  # fmt: skip
def test_no_header_that_matters_can_be_changed(signer: Signer, name: str) -> None:
    """RFC 8058 wants the two headers of unsubscribing covered; the others say who writes what to whom."""
    signed = signer.sign(MESSAGE, at=NOW)
    forged = signed.replace(f"\r\n{name}: ".encode(), f"\r\n{name}: x".encode())
    assert forged != signed
    assert not accepts(signer, forged)


@pytest.mark.parametrize("added", [b"From: a@evil.example\r\n", b"Subject: x\r\n", b"To: b@evil.example\r\n"])
def test_no_second_header_can_be_added(signer: Signer, added: bytes) -> None:
    """A second From in front would be shown instead of ours; over-signing makes it break the signature."""
    assert not accepts(signer, added + signer.sign(MESSAGE, at=NOW))


def test_the_body_may_lose_space_on_its_way_but_no_word(signer: Signer) -> None:
    """Relays trim space at line ends; nobody may change what is said."""
    signed = signer.sign(MESSAGE, at=NOW)
    assert accepts(signer, signed.replace(b"Hello   there \r\n", b"Hello there\r\n"))
    assert not accepts(signer, signed.replace(b"Bye", b"Buy"))


def test_ed25519_signs_as_rfc_8463_says() -> None:
    """The signature is that of the SHA-256 of the canonical headers, as dkimpy forms them for its own verifier."""
    key = Ed25519PrivateKey.generate()
    signer = Signer(pem(key), "shop.example", "kairos")
    signed = signer.sign(MESSAGE, at=NOW)
    head = signed[: -len(MESSAGE)].decode()
    fields = dict(part.strip().split("=", 1) for part in head.partition(":")[2].replace("\r\n", "").split(";"))
    assert fields["a"] == "ed25519-sha256"
    headers, _ = dkim.rfc822_parse(signed)
    hasher = hashlib.sha256()
    covered = [name.strip().encode() for name in fields["h"].split(":")]
    dkim.hash_headers(hasher, Relaxed, Relaxed.canonicalize_headers(headers[1:]), covered, headers[0], {})
    key.public_key().verify(base64.b64decode(fields["b"].replace(" ", "")), hasher.digest())
    with pytest.raises(InvalidSignature):
        key.public_key().verify(base64.b64decode(fields["b"].replace(" ", "")), hashlib.sha256(b"else").digest())


def test_a_key_that_cannot_sign_is_refused_with_the_remedy(tmp_path: Path) -> None:
    """At the start, not with the first mail: no file, no key, a locked key, a key of another kind."""
    locked = generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    for name, content, told in [
        ("none", None, "cannot be read"),
        ("words", b"not a key", "holds no private key"),
        ("locked", locked, "holds no private key in PEM form without a password"),
        ("curve", pem(elliptic(SECP256R1())), "neither RSA nor Ed25519"),
    ]:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        settings = Settings(home=tmp_path, dkim_key_file=path, _env_file=None)
        with pytest.raises(ValueError, match=told) as refused:
            signer_of(settings, "shop.example")
        assert "KAIROS_DKIM_KEY_FILE" in str(refused.value)
    assert signer_of(Settings(home=tmp_path, _env_file=None), "shop.example") is None


def test_a_selector_is_a_dns_name(signer: Signer) -> None:
    """It ends in a header and in a question to the name server."""
    with pytest.raises(ValueError, match="DKIM_SELECTOR"):
        Signer(pem(generate_private_key(65537, 2048)), "shop.example", "a b;c")
