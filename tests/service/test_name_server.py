"""Laws of asking the domain name system."""

from __future__ import annotations

import pytest

from service.errors import Invalid
from service.name_server import NameServer, NoAnswer
from tests.service.names import LocalNames


def test_a_domain_takes_mail_by_mx_or_by_its_address() -> None:
    """MX records, an address alone, a null MX, nothing at all, no such name, and a server that fails or is silent."""
    records = {
        "mx.example": {"MX": ["20 b.mx.example.", "10 a.mx.example."]},
        "a.example": {"A": ["192.0.2.1"]},
        "aaaa.example": {"AAAA": ["2001:db8::1"]},
        "null.example": {"MX": ["0 ."], "A": ["192.0.2.1"]},
        "texts.example": {"TXT": ['"v=spf1 " "-all"']},
        "broken.example": "SERVFAIL",
        "silent.example": None,
    }
    with LocalNames(records) as server:
        names = NameServer(server.address, timeout_seconds=0.3)
        assert names.mail_servers("mx.example") == ["a.mx.example", "b.mx.example"]
        assert names.texts("texts.example") == ["v=spf1 -all"]
        takes = {name: names.takes_mail(name) for name in [*records, "nowhere.example", "a..b", "x" * 70 + ".example"]}
        with pytest.raises(NoAnswer, match=r"silent\.example"):
            names.texts("silent.example")

        assert takes == {
            "mx.example": True, "a.example": True, "aaaa.example": True, "null.example": False, "texts.example": False,
            "broken.example": None, "silent.example": None, "nowhere.example": False, "a..b": False,
            "x" * 70 + ".example": False,
        }  # fmt: skip
        assert names.without_mail(["mx.example", "nowhere.example", "broken.example"]) == {"nowhere.example"}


def test_what_was_answered_is_not_asked_again() -> None:
    with LocalNames({"mx.example": {"MX": ["10 a.mx.example."]}}) as server:
        names = NameServer(server.address)
        for _ in range(5):
            names.takes_mail("mx.example")

        assert server.asked == {"mx.example MX": 1}


@pytest.mark.parametrize(
    "server", ["ns.example:53", "127.0.0.1:x", "127.0.0.1:0", "127.0.0.1:70000", "[::1", "::1:port"]
)
def test_a_server_that_is_no_address_is_refused(server: str):
    """At once and with the remedy, not with the first question."""
    with pytest.raises(Invalid, match="KAIROS_DNS_SERVER"):
        NameServer(server)


@pytest.mark.parametrize(
    ("server", "place"), [("127.0.0.1", ("127.0.0.1", 53)), ("[::1]:5353", ("::1", 5353)), ("[::1]", ("::1", 53))]
)
def test_addresses_of_both_versions_are_taken(server: str, place: tuple[str, int]):
    resolver = NameServer(server)._resolver()
    assert (resolver.nameservers, resolver.port) == ([place[0]], place[1])
