"""Questions to the domain name system: which records there are, and whether a domain takes mail."""

from __future__ import annotations

import ipaddress
import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import dns.exception
import dns.rdatatype
import dns.resolver

from service.errors import Invalid

#: Seconds for one question, all tries together.
TIMEOUT_SECONDS = 3.0
#: Questions that are open at once when many domains are looked up.
AT_ONCE = 32


class NoAnswer(Exception):
    """The name server did not answer, or could not: nothing is known of the name."""


class NameServer:
    """Answers of a name server, kept for as long as they are good.

    Parameters
    ----------
    server : str
        ``address:port`` or ``address`` (an IP address; of version 6 with a port in brackets: ``[::1]:53``) of the
        server to ask; empty: the system's.

    Raises
    ------
    Invalid
        If ``server`` is no such thing.
    """

    def __init__(self, server: str = "", *, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._server = _place_of(server) if server else None
        self._timeout_seconds = timeout_seconds
        self._cache = dns.resolver.LRUCache(100_000)
        self._local = threading.local()

    def texts(self, name: str) -> list[str]:
        """TXT records of ``name``, the parts of each put together; none where there are none.

        Raises
        ------
        NoAnswer
            If the server does not answer.
        """
        return [b"".join(record.strings).decode("utf-8", "replace") for record in self._ask(name, "TXT")]

    def mail_servers(self, domain: str) -> list[str]:
        """Hosts of the MX records, most preferred first; ``""`` stands for one that says: no mail (RFC 7505).

        Raises
        ------
        NoAnswer
            If the server does not answer.
        """
        records = sorted(self._ask(domain, "MX"), key=lambda record: record.preference)
        return [str(record.exchange).rstrip(".") for record in records]

    def addresses(self, host: str) -> list[str]:
        """IP addresses of ``host``.

        Raises
        ------
        NoAnswer
            If the server does not answer.
        """
        return [record.address for kind in ("A", "AAAA") for record in self._ask(host, kind)]

    def takes_mail(self, domain: str) -> bool | None:
        """Whether a mail server is there for ``domain`` (MX, else an address: RFC 5321, 5.1); None: nobody answers."""
        try:
            hosts = self.mail_servers(domain)
            return any(hosts) if hosts else bool(self.addresses(domain))
        except NoAnswer:
            return None

    def without_mail(self, domains: Iterable[str]) -> set[str]:
        """Those of the domains that take no mail for certain; many are asked at once."""
        asked = list(domains)
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = pool.map(self.takes_mail, asked)
            return {domain for domain, takes in zip(asked, answers, strict=True) if takes is False}

    def _ask(self, name: str, kind: str) -> list:
        try:
            return list(self._resolver().resolve(name, kind, search=False, raise_on_no_answer=False).rrset or ())
        except dns.resolver.NXDOMAIN:
            return []
        except (dns.resolver.NoNameservers, dns.exception.Timeout, OSError) as error:
            raise NoAnswer(f"no answer for {kind} of {name} ({type(error).__name__})") from None
        except (dns.exception.DNSException, UnicodeError):  # a name that cannot be: too long, an empty label
            return []

    def _resolver(self) -> dns.resolver.Resolver:
        resolver: dns.resolver.Resolver | None = getattr(self._local, "resolver", None)
        if resolver is None:
            resolver = dns.resolver.Resolver(configure=self._server is None)
            if self._server is not None:
                resolver.nameservers, resolver.port = [self._server[0]], self._server[1]
            resolver.lifetime = self._timeout_seconds
            resolver.timeout = self._timeout_seconds / 2
            resolver.cache = self._cache
            self._local.resolver = resolver
        return resolver


def _place_of(server: str) -> tuple[str, int]:
    """Address and port of a name server."""
    found = re.fullmatch(r"\[([^]]+)\](?::(\d{1,5}))?|([^:]+)(?::(\d{1,5}))?", server)
    host, port = (found[1] or found[3], int(found[2] or found[4] or 53)) if found else (server, 53)
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        address = ""
    if not address or not 1 <= port <= 65535:
        raise Invalid(
            f"KAIROS_DNS_SERVER is {server[:60]!r}; give an IP address, with or without a port: 192.0.2.53, "
            "192.0.2.53:53, [2001:db8::53] or [2001:db8::53]:53"
        )
    return address, port
