"""The sender's set-up: what mailbox providers look for before they take bulk mail, each with the record to publish."""

from __future__ import annotations

import base64
import ipaddress
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parseaddr
from functools import partial
from threading import Lock
from typing import Literal
from urllib.parse import urlsplit

from service.errors import Conflict
from service.name_server import NameServer, NoAnswer
from service.settings import Settings

State = Literal["ok", "warn", "fail", "unknown"]

#: Questions that an SPF record may cause, RFC 7208 section 4.6.4.
MOST_SPF_LOOKUPS = 10
#: Bulk mail is refused above so many recipients while a required check fails.
BULK_ABOVE = 500
#: An answer to `bulk_refusals` is good for so long.
CACHE_SECONDS = 600.0
#: Public suffixes of two labels under which companies register; others are taken to have one.
_SECOND_LEVEL = re.compile(
    r"(?:com|co|org|net|ac|or|ne|gov|me|ltd|plc)\.(?:uk|au|nz|jp|za|br|mx|ar|tr|cn|hk|sg|tw|my|in|kr|il|pl|ua)"
)


@dataclass(frozen=True, slots=True)
class SenderCheck:
    """One part of the sender's set-up, how it is, and what to do."""

    name: str
    #: unknown: it cannot be told from here.
    state: State
    says: str
    #: The DNS record to publish, as a zone file has it; empty where none is missing.
    record: str = ""
    #: Bulk mail is refused while it fails.
    is_required: bool = True


def sender_checks(settings: Settings, names: NameServer | None = None) -> list[SenderCheck]:
    """How the sender's set-up is: SPF, DKIM, DMARC, return path, tracking, postal address, secrets, TLS.

    Names are asked for side by side. What a name server does not answer fails: unseen is not green.

    References
    ----------
    Kitterman (2014), RFC 7208 (SPF); Crocker et al. (2011), RFC 6376 (DKIM); Kucherawy & Zwicky (2015), RFC 7489
    (DMARC); Google, "Email sender guidelines" (2024).
    """
    names = names or NameServer(settings.dns_server)
    domain = parseaddr(settings.from_address)[1].rpartition("@")[2].lower()
    if not domain:
        return [SenderCheck("from", "fail", f"KAIROS_FROM_ADDRESS {settings.from_address!r} holds no address")]
    checks: list[Callable[[], SenderCheck]] = [
        partial(_spf, settings, domain, names),
        partial(_dkim, settings, domain, names),
        partial(_dmarc, settings, domain, names),
        partial(_return_path, settings, domain, names),
        partial(_tracking, settings, domain),
        partial(_postal_address, settings),
        partial(_secrets, settings),
        partial(_tls, settings),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(lambda check: check(), checks))


class _Remembered:
    """Refusals by settings, for `CACHE_SECONDS`."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._answers: dict[tuple[object, ...], tuple[float, list[str]]] = {}

    def get(self, settings: Settings) -> list[str]:
        key = tuple(str(value) for value in settings.model_dump().values())
        with self._lock:
            known = self._answers.get(key)
        if known is not None and time.monotonic() - known[0] < CACHE_SECONDS:
            return known[1]
        failing = [check.name for check in sender_checks(settings) if check.is_required and check.state == "fail"]
        with self._lock:
            self._answers = {key: (time.monotonic(), failing)}
        return failing


_REMEMBERED = _Remembered()


def bulk_refusals(settings: Settings) -> list[str]:
    """Names of the required checks that fail and that `allow_bulk_despite` does not name; kept for ten minutes.

    Empty where mail does not leave this machine (``outbox://``, a relay on loopback).
    """
    if not leaves_this_machine(settings):
        return []
    allowed = {name.strip() for name in settings.allow_bulk_despite.split(",")}
    return [name for name in _REMEMBERED.get(settings) if name not in allowed]


def check_bulk(settings: Settings, *, recipients: int) -> None:
    """Refuse a mail to more than `BULK_ABOVE` recipients while a required check fails.

    Raises
    ------
    Conflict
        Naming the checks that fail.
    """
    failing = bulk_refusals(settings) if recipients > BULK_ABOVE else []
    if failing:
        raise Conflict(
            f"{recipients:,} mails are not sent while these checks fail: {', '.join(failing)}; `kairos doctor` says "
            "what to do (or name them in KAIROS_ALLOW_BULK_DESPITE to send in spite of them)",
            failing=failing,
        )


def leaves_this_machine(settings: Settings) -> bool:
    """Whether mail is handed to a relay that is not on this machine."""
    url = urlsplit(settings.smtp_url)
    return url.scheme in ("smtp", "smtps") and not _is_loopback(url.hostname or "")


def organisational_domain(domain: str) -> str:
    """The domain that an organisation registered: one label below the public suffix (of a short list, else the last).

    Examples
    --------
    >>> organisational_domain("mail.news.shop.example"), organisational_domain("mail.shop.co.uk")
    ('shop.example', 'shop.co.uk')
    """
    labels = domain.lower().rstrip(".").split(".")
    return ".".join(labels[-3:] if _SECOND_LEVEL.fullmatch(".".join(labels[-2:])) else labels[-2:])


def _spf(settings: Settings, domain: str, names: NameServer) -> SenderCheck:
    envelope = settings.return_path_domain.lower() or domain
    relay = urlsplit(settings.smtp_url).hostname or ""
    wanted = f'{envelope}. IN TXT "v=spf1 {_mechanism(relay)} -all"'
    try:
        records = _spf_records(envelope, names)
        if not records:
            return SenderCheck("spf", "fail", f"{envelope} has no SPF record; publish one that lists the relay", wanted)
        if len(records) > 1:
            says = f"{envelope} has {len(records)} SPF records, which counts as none; leave one"
            return SenderCheck("spf", "fail", says, wanted)
        if re.search(r"(?:^|\s)\+?all(?:\s|$)", records[0]):
            return SenderCheck("spf", "fail", f"the SPF record of {envelope} lets everybody send (+all); end in -all")
        lookups, covers = _follow_spf(envelope, relay, names)
    except NoAnswer as error:
        return _silent("spf", error)
    if lookups > MOST_SPF_LOOKUPS:
        says = f"the SPF record of {envelope} takes {lookups} look-ups, at most {MOST_SPF_LOOKUPS} are made; shorten it"
        return SenderCheck("spf", "fail", says)
    if leaves_this_machine(settings) and not covers:
        says = (
            f"the SPF record of {envelope} does not name {relay} as we see it; if its mails leave from other "
            "addresses, add what its provider says"
        )
        return SenderCheck("spf", "warn", says, wanted)
    return SenderCheck("spf", "ok", f"{envelope} has one SPF record with {lookups} look-ups")


def _mechanism(relay: str) -> str:
    try:
        return f"ip{ipaddress.ip_address(relay).version}:{relay}"
    except ValueError:
        return f"a:{relay}" if relay else "a mx"


def _spf_records(domain: str, names: NameServer) -> list[str]:
    return [text for text in names.texts(domain) if re.match(r"v=spf1(?:\s|$)", text, re.IGNORECASE)]


def _follow_spf(domain: str, relay: str, names: NameServer) -> tuple[int, bool]:
    """Look-ups that the record causes, includes followed, and whether an address of the relay is in it."""
    try:
        ours = {ipaddress.ip_address(relay)}
    except ValueError:
        ours = {ipaddress.ip_address(address) for address in names.addresses(relay)} if relay else set()
    lookups, covers = 0, False
    waiting, seen = [domain], {domain}
    while waiting and lookups <= MOST_SPF_LOOKUPS:
        at = waiting.pop()
        for term in " ".join(_spf_records(at, names)[:1]).split()[1:]:
            name, _, value = term.lstrip("+-~?").partition("=" if term.lower().startswith("redirect=") else ":")
            name = name.lower()
            if name in ("include", "redirect", "a", "mx", "exists", "ptr") or name.startswith(("a/", "mx/")):
                lookups += 1
            if term.startswith(("-", "~", "?")):
                continue
            if name in ("include", "redirect") and value.lower() not in seen:
                seen.add(value.lower())
                waiting.append(value.lower())
            elif name in ("ip4", "ip6"):
                covers |= _in_network(ours, value)
            elif name == "a" or name.startswith("a/"):
                host = value.partition("/")[0] or at
                covers |= host == relay or bool(ours & {ipaddress.ip_address(one) for one in names.addresses(host)})
            elif name == "mx" or name.startswith("mx/"):
                hosts = names.mail_servers(value.partition("/")[0] or at)[:10]
                covers |= relay in hosts or any(
                    ours & {ipaddress.ip_address(one) for one in names.addresses(host)} for host in hosts if host
                )
    return lookups, covers


def _in_network(addresses: set[ipaddress.IPv4Address | ipaddress.IPv6Address], network: str) -> bool:
    try:
        inside = ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
    return any(address in inside for address in addresses if address.version == inside.version)


def _dkim(settings: Settings, domain: str, names: NameServer) -> SenderCheck:
    if settings.dkim_key_file is None:
        says = (
            "the relay has to sign; whether it does cannot be seen from here: look at a mail's Authentication-Results"
        )
        return SenderCheck("dkim", "unknown", says)
    name = f"{settings.dkim_selector}._domainkey.{domain}"
    try:
        ours, kind = _public_key(settings)
    except (OSError, ValueError) as error:
        says = (
            f"the key in KAIROS_DKIM_KEY_FILE cannot be read ({type(error).__name__}); give a PEM file of a private key"
        )
        return SenderCheck("dkim", "fail", says)
    wanted = f'{name}. IN TXT "v=DKIM1; k={kind}; p={ours}"'
    try:
        records = [text for text in names.texts(name) if "p=" in text]
    except NoAnswer as error:
        return _silent("dkim", error)
    if not records:
        return SenderCheck("dkim", "fail", f"there is no DKIM record at {name}; publish the key's other half", wanted)
    published = _tags(records[0]).get("p", "").replace(" ", "")
    if published != ours:
        return SenderCheck("dkim", "fail", f"the DKIM record at {name} is of another key; publish ours", wanted)
    return SenderCheck("dkim", "ok", f"the DKIM record at {name} is that of our key")


def _public_key(settings: Settings) -> tuple[str, str]:
    """The public half of the DKIM key as a record has it, and its kind."""
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    path = settings.dkim_key_file
    if path is None:
        raise ValueError("there is no key file")
    key = load_pem_private_key(path.read_bytes(), password=None)
    if isinstance(key, ed25519.Ed25519PrivateKey):
        raw = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(raw).decode(), "ed25519"
    if not isinstance(key, rsa.RSAPrivateKey):
        raise ValueError("neither RSA nor Ed25519")
    written = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(written).decode(), "rsa"


def _dmarc(settings: Settings, domain: str, names: NameServer) -> SenderCheck:
    organisation = organisational_domain(domain)
    wanted = f'_dmarc.{organisation}. IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@{organisation}"'
    records: list[str] = []
    place = ""
    try:
        for place in dict.fromkeys((domain, organisation)):
            records = [text for text in names.texts(f"_dmarc.{place}") if text.lower().startswith("v=dmarc1")]
            if records:
                break
    except NoAnswer as error:
        return _silent("dmarc", error)
    if not records:
        return SenderCheck("dmarc", "fail", f"{domain} has no DMARC record; publish one, p=none to begin with", wanted)
    if len(records) > 1:
        return SenderCheck(
            "dmarc", "fail", f"{place} has {len(records)} DMARC records, which counts as none; leave one"
        )
    tags = _tags(records[0])
    policy = tags.get("p", "").lower()
    if policy not in ("none", "quarantine", "reject"):
        return SenderCheck("dmarc", "fail", f"the DMARC record of {place} has no policy p=none, quarantine or reject")
    # One of the two has to be aligned. Our own signature is always of the From's domain.
    envelope = settings.return_path_domain.lower() or domain
    is_strict = tags.get("aspf", "r").lower() == "s"
    is_aligned = envelope == domain if is_strict else organisational_domain(envelope) == organisation
    if not is_aligned and settings.dkim_key_file is None:
        how = "under it" if not is_strict else "equal to it (aspf=s)"
        says = (
            f"the return path's domain {envelope} is not {how}: with {domain} in From, DMARC then rests on the relay's "
            "signature alone; set KAIROS_RETURN_PATH_DOMAIN to a name of the same domain, or KAIROS_DKIM_KEY_FILE"
        )
        return SenderCheck("dmarc", "fail", says)
    return SenderCheck(
        "dmarc", "ok", f"{place} has a DMARC record (p={policy}), and {envelope} or the DKIM key is aligned"
    )


def _return_path(settings: Settings, domain: str, names: NameServer) -> SenderCheck:
    envelope = settings.return_path_domain.lower()
    if not envelope:
        says = (
            "bounces go to the mailbox of KAIROS_FROM_ADDRESS and are matched by their Message-ID; a domain of its "
            f"own in KAIROS_RETURN_PATH_DOMAIN, such as bounces.{domain}, tells each for certain"
        )
        return SenderCheck("return_path", "warn", says, is_required=False)
    try:
        takes = bool(names.mail_servers(envelope) or names.addresses(envelope))
    except NoAnswer as error:
        return _silent("return_path", error)
    if not takes:
        says = f"{envelope} takes no mail, so bounces are lost; publish its mail server"
        return SenderCheck("return_path", "fail", says, f"{envelope}. IN MX 10 mail.{organisational_domain(domain)}.")
    return SenderCheck("return_path", "ok", f"{envelope} takes the bounces")


def _tracking(settings: Settings, domain: str) -> SenderCheck:
    url = urlsplit(settings.public_url)
    host = (url.hostname or "").lower()
    if _is_loopback(host):
        says = f"recipients cannot reach KAIROS_PUBLIC_URL {settings.public_url}; give the address they can"
        return SenderCheck("tracking", "fail", says)
    if url.scheme != "https":
        says = f"KAIROS_PUBLIC_URL {settings.public_url} is not https; one-click unsubscribe needs it (RFC 8058)"
        return SenderCheck("tracking", "fail", says)
    if _is_ip(host):
        says = f"KAIROS_PUBLIC_URL {settings.public_url} is a bare IP address, as in phishing; give it a name"
        return SenderCheck("tracking", "fail", says)
    if organisational_domain(host) != organisational_domain(domain):
        says = f"links lead to {host} while From says {domain}; a name of one domain is trusted more"
        return SenderCheck("tracking", "warn", says, f"links.{organisational_domain(domain)}. IN CNAME {host}.")
    return SenderCheck("tracking", "ok", f"links lead to {host}, by https")


def _postal_address(settings: Settings) -> SenderCheck:
    if not settings.postal_address.strip():
        says = "the law wants the sender's postal address in marketing mail; set KAIROS_POSTAL_ADDRESS"
        return SenderCheck("postal_address", "fail", says)
    return SenderCheck("postal_address", "ok", "is set")


def _secrets(settings: Settings) -> SenderCheck:
    made = [
        name
        for name, given in (("SECRET_KEY", settings.secret_key), ("SUPPRESSION_PEPPER", settings.suppression_pepper))
        if given is None and not (settings.home / name.lower()).exists()
    ]
    if made:
        says = (
            f"{' and '.join(made)} will be made in HOME when first used; keep HOME, or links and suppressions are lost"
        )
        return SenderCheck("secrets", "warn", says, is_required=False)
    short = [
        name
        for name, key in (("SECRET_KEY", settings.signing_key), ("SUPPRESSION_PEPPER", settings.pepper))
        if len(key) < 16
    ]
    if short:
        says = f"{' and '.join(short)} has fewer than 16 characters and can be guessed; give a random one once"
        return SenderCheck("secrets", "fail", says)
    return SenderCheck("secrets", "ok", "SECRET_KEY and SUPPRESSION_PEPPER are kept")


def _tls(settings: Settings) -> SenderCheck:
    import smtplib
    import ssl

    url = urlsplit(settings.smtp_url)
    if not leaves_this_machine(settings):
        return SenderCheck("tls", "ok", "mail does not leave this machine")
    if url.scheme == "smtps":
        return SenderCheck("tls", "ok", f"{url.hostname} is spoken to by TLS from the start")
    try:
        with smtplib.SMTP(str(url.hostname), url.port or 25, timeout=5) as server:
            server.ehlo()
            if not server.has_extn("starttls"):
                says = f"{url.hostname} offers no TLS, and mailbox providers want it; use another relay or port"
                return SenderCheck("tls", "fail", says)
            server.starttls(context=ssl.create_default_context())
    except (OSError, smtplib.SMTPException) as error:
        says = f"{url.hostname} cannot be asked for TLS ({type(error).__name__}); see to KAIROS_SMTP_URL"
        return SenderCheck("tls", "fail", says)
    return SenderCheck("tls", "ok", f"{url.hostname} speaks TLS with a good certificate")


def _silent(name: str, error: NoAnswer) -> SenderCheck:
    return SenderCheck(name, "fail", f"{error}; see to the network and to KAIROS_DNS_SERVER, then look again")


def _tags(record: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in record.split(";") if "=" in part)
    return {name.strip().lower(): value.strip() for name, _, value in pairs}


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    if host in ("", "localhost") or host.endswith(".localhost"):
        return True
    return _is_ip(host) and ipaddress.ip_address(host).is_loopback
