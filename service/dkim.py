"""DKIM: what a domain signs its mails with, and the signature of a mail."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime
from functools import lru_cache
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from dkim import fold, hash_headers, rfc822_parse
from dkim.canonicalization import CanonicalizationPolicy

from service.settings import Settings

#: Headers that a signature covers where a mail has them; RFC 8058 wants the two of unsubscribing among them.
SIGNED = (
    b"from", b"to", b"subject", b"date", b"message-id", b"list-unsubscribe", b"list-unsubscribe-post", b"list-id",
    b"feedback-id", b"mime-version", b"content-type",
)  # fmt: skip
#: Named once more than they stand in the mail: adding another one breaks the signature (RFC 6376 section 8.15).
OVERSIGNED = (b"from", b"to", b"subject")
#: Receivers such as Gmail take no smaller RSA key.
SMALLEST_RSA_BITS = 1024

_POLICY = CanonicalizationPolicy.from_c_value(b"relaxed/relaxed")
_PREHASHED = Prehashed(SHA256())
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


class Signer:
    """Signs the mails of a domain.

    Canonical forms and the choice of headers are dkimpy's, the arithmetic is `cryptography`'s: dkimpy's own RSA, in
    Python, takes most of ten milliseconds a mail.

    Parameters
    ----------
    pem : bytes
        An RSA or Ed25519 private key, not encrypted.
    domain, selector : str
        The public key stands in the TXT record of ``<selector>._domainkey.<domain>``.

    Raises
    ------
    ValueError
        If the key is none of these, or too small, or the selector is no DNS label.

    References
    ----------
    Crocker, Hansen & Kucherawy (2011), RFC 6376, "DomainKeys Identified Mail (DKIM) Signatures".
    Levine (2018), RFC 8463, "A New Cryptographic Signature Method for DKIM".
    """

    def __init__(self, pem: bytes, domain: str, selector: str) -> None:
        if not _LABEL.fullmatch(selector):
            raise ValueError(f"DKIM_SELECTOR {selector!r} is no DNS name; write one such as kairos or mail2026")
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise ValueError(f"it holds no private key in PEM form without a password ({error})") from error
        if isinstance(key, RSAPrivateKey):
            if key.key_size < SMALLEST_RSA_BITS:
                raise ValueError(f"its RSA key has {key.key_size} bits; receivers want 2048")
        elif not isinstance(key, Ed25519PrivateKey):
            raise ValueError("its key is neither RSA nor Ed25519, the two that DKIM knows")
        self.domain = domain
        self.selector = selector
        self._key: RSAPrivateKey | Ed25519PrivateKey = key
        self._is_rsa = isinstance(key, RSAPrivateKey)

    @property
    def record(self) -> str:
        """Text of the TXT record at ``<selector>._domainkey.<domain>``."""
        public = self._key.public_key()
        if self._is_rsa:
            shown = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return f"v=DKIM1; k=rsa; p={base64.b64encode(shown).decode()}"
        shown = public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return f"v=DKIM1; k=ed25519; p={base64.b64encode(shown).decode()}"

    def sign(self, message: bytes, *, at: datetime) -> bytes:
        """``message`` with its DKIM-Signature in front.

        Parameters
        ----------
        message : bytes
            Headers and body with CRLF line ends.
        at : datetime
            Goes into the signature.
        """
        head, _, body = message.partition(b"\r\n\r\n")
        headers = _POLICY.canonicalize_headers(rfc822_parse(head)[0])
        stands = {name for name, _ in headers}
        covered = [name for name in SIGNED if name in stands]
        covered += [name for name in OVERSIGNED if name in stands]
        body_hash = base64.b64encode(hashlib.sha256(_POLICY.canonicalize_body(body)).digest())
        fields = [
            b"v=1",
            b"a=rsa-sha256" if self._is_rsa else b"a=ed25519-sha256",
            b"c=relaxed/relaxed",
            b"d=" + self.domain.encode("ascii"),
            b"s=" + self.selector.encode("ascii"),
            b"t=%d" % int(at.timestamp()),
            b"h=" + b" : ".join(covered),
            b"bh=" + body_hash,
            b"b=",
        ]
        name = b"DKIM-Signature"
        value = b" " + fold(b"; ".join(fields), len(name))
        hasher = hashlib.sha256()
        hash_headers(hasher, _POLICY, headers, covered, (name, value), {})
        digest = hasher.digest()
        if isinstance(self._key, RSAPrivateKey):
            signature = self._key.sign(digest, PKCS1v15(), _PREHASHED)
        else:
            signature = self._key.sign(digest)
        code = base64.b64encode(signature)
        lines = b"\r\n ".join(code[start : start + 70] for start in range(0, len(code), 70))
        return b"%s:%s\r\n %s\r\n%s" % (name, value, lines, message)


def signer_of(settings: Settings, domain: str) -> Signer | None:
    """Who signs the mails from ``domain``; None where the relay does.

    Raises
    ------
    ValueError
        If ``DKIM_KEY_FILE`` cannot be read or holds no key that can sign, with the remedy.
    """
    if settings.dkim_key_file is None:
        return None
    return _loaded(settings.dkim_key_file, settings.dkim_selector, domain)


@lru_cache(maxsize=8)
def _loaded(path: Path, selector: str, domain: str) -> Signer:
    remedy = "make one with `openssl genrsa 2048`, or leave KAIROS_DKIM_KEY_FILE empty to let the relay sign"
    try:
        return Signer(path.read_bytes(), domain, selector)
    except OSError as error:
        raise ValueError(f"the DKIM key file {path} cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise ValueError(f"the DKIM key file {path} cannot sign: {error}; {remedy}") from error
