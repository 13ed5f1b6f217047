"""Laws of looking at the sender's set-up."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from service.campaigns import NewCampaign, create_campaign, schedule_campaign
from service.checks import check_sender
from service.database import Database
from service.errors import Conflict
from service.name_server import NameServer
from service.sender_checks import bulk_refusals, check_bulk, organisational_domain, sender_checks
from service.settings import Settings
from service.tables import CampaignRow
from tests.service.mailing import TOPIC, add_template, subscribe
from tests.service.names import LocalNames
from training.serving import Serving

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
RELAY = "smtp.relay.example"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A DKIM key file, and the public half as a record has it."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = tmp_path_factory.mktemp("dkim") / "key.pem"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return path, base64.b64encode(public).decode()


def records(public: str) -> dict[str, Any]:
    """A sender whose set-up is green."""
    parts = " ".join(f'"{text}"' for text in ("v=DKIM1; k=rsa; p=", public[:200], public[200:]))
    return {
        RELAY: {"A": ["192.0.2.25"]},
        "shop.example": {"TXT": ['"v=spf1 include:_spf.relay.example -all"', '"something=else"'], "A": ["192.0.2.80"]},
        "_spf.relay.example": {"TXT": ['"v=spf1 ip4:192.0.2.0/24 ~all"']},
        "kairos._domainkey.shop.example": {"TXT": [parts]},
        "_dmarc.shop.example": {"TXT": ['"v=DMARC1; p=quarantine; rua=mailto:d@shop.example"']},
        "back.shop.example": {"TXT": ['"v=spf1 include:_spf.relay.example -all"'], "MX": ["10 mx.shop.example."]},
    }


@pytest.fixture
def server(key: tuple[Path, str]) -> Iterator[LocalNames]:
    with LocalNames(records(key[1])) as running:
        yield running


@pytest.fixture
def green(tmp_path: Path, server: LocalNames, key: tuple[Path, str]) -> Settings:
    """Settings of a sender whose set-up is green; smtps is not asked whether it speaks TLS."""
    return Settings(
        _env_file=None,
        home=tmp_path / "home",
        smtp_url=f"smtps://{RELAY}",
        from_address="Shop <hello@shop.example>",
        return_path_domain="back.shop.example",
        public_url="https://links.shop.example",
        postal_address="1 High Street",
        dkim_key_file=key[0],
        dns_server=server.address,
        secret_key="s" * 32,
        suppression_pepper="p" * 32,
    )


def states(settings: Settings, **timeout: float) -> dict[str, str]:
    names = NameServer(settings.dns_server, timeout_seconds=timeout.get("seconds", 1.0))
    return {check.name: check.state for check in sender_checks(settings, names)}


def test_a_whole_set_up_is_green(green: Settings) -> None:
    assert set(states(green).values()) == {"ok"}
    assert bulk_refusals(green) == []


SPOILT: dict[str, tuple[str, dict[str, Any], str, str]] = {
    # name, records that differ, check, state
    "no SPF": ("back.shop.example", {"MX": ["10 mx.shop.example."]}, "spf", "fail"),
    "two SPF": ("back.shop.example", {"TXT": ['"v=spf1 -all"', '"v=spf1 ip4:192.0.2.1 -all"']}, "spf", "fail"),
    "SPF that lets everybody": ("back.shop.example", {"TXT": ['"v=spf1 a +all"']}, "spf", "fail"),
    "SPF that lets everybody, unsigned": ("back.shop.example", {"TXT": ['"v=spf1 a all"']}, "spf", "fail"),
    "SPF without the relay": ("back.shop.example", {"TXT": ['"v=spf1 ip4:198.51.100.1 -all"']}, "spf", "warn"),
    "SPF with too many look-ups": (
        "back.shop.example", {"TXT": [f'"v=spf1 {" ".join(f"a:h{i}.x" for i in range(11))} -all"']}, "spf", "fail",
    ),
    "SPF by name": ("back.shop.example", {"TXT": [f'"v=spf1 a:{RELAY} -all"']}, "spf", "ok"),
    "SPF by redirect": ("back.shop.example", {"TXT": ['"v=spf1 redirect=_spf.relay.example"']}, "spf", "ok"),
    "SPF in a circle": ("_spf.relay.example", {"TXT": ['"v=spf1 include:_spf.relay.example -all"']}, "spf", "warn"),
    "no DKIM record": ("kairos._domainkey.shop.example", {}, "dkim", "fail"),
    "another DKIM key": ("kairos._domainkey.shop.example", {"TXT": ['"v=DKIM1; p=AAAA"']}, "dkim", "fail"),
    "no DMARC": ("_dmarc.shop.example", {}, "dmarc", "fail"),
    "DMARC without a policy": ("_dmarc.shop.example", {"TXT": ['"v=DMARC1; rua=mailto:x@y.example"']}, "dmarc", "fail"),
    "two DMARC": ("_dmarc.shop.example", {"TXT": ['"v=DMARC1; p=none"', '"v=DMARC1; p=reject"']}, "dmarc", "fail"),
    "no mail server for bounces": (
        "back.shop.example", {"TXT": ['"v=spf1 include:_spf.relay.example -all"']}, "return_path", "fail",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SPOILT)
def test_one_spoilt_record_fails_its_check_alone(what: str, green: Settings, server: LocalNames) -> None:
    """The others stay as they were, and what fails says what to do."""
    name, changed, check, state = SPOILT[what]
    server.records[name] = changed
    others = {"return_path"} if name == "back.shop.example" else set()

    found = {one.name: one for one in sender_checks(green)}

    assert found[check].state == state
    assert {one.name for one in found.values() if one.state != "ok"} - {check} <= others
    if state == "fail" and what not in ("SPF with too many look-ups", "two DMARC", "DMARC without a policy"):
        assert found[check].record or "end in -all" in found[check].says


@pytest.mark.parametrize(
    ("changed", "check", "state"),
    [
        ({"dkim_key_file": None}, "dkim", "unknown"),
        ({"dkim_key_file": Path("/nowhere/key.pem")}, "dkim", "fail"),
        ({"return_path_domain": "back.other.example", "dkim_key_file": None}, "dmarc", "fail"),
        ({"return_path_domain": "back.other.example"}, "dmarc", "ok"),
        ({"return_path_domain": ""}, "return_path", "warn"),
        ({"public_url": "http://links.shop.example"}, "tracking", "fail"),
        ({"public_url": "https://127.0.0.1:8000"}, "tracking", "fail"),
        ({"public_url": "https://[::1]"}, "tracking", "fail"),
        ({"public_url": "https://192.0.2.1"}, "tracking", "fail"),
        ({"public_url": "https://track.other.example"}, "tracking", "warn"),
        ({"postal_address": "  "}, "postal_address", "fail"),
        ({"secret_key": "short"}, "secrets", "fail"),
        ({"secret_key": None}, "secrets", "warn"),
    ],
)
def test_settings_are_looked_at_too(changed: dict[str, Any], check: str, state: str, green: Settings) -> None:
    settings = Settings(_env_file=None, **{**green.model_dump(), **changed})

    assert states(settings)[check] == state


def test_a_strict_alignment_wants_the_very_domain(green: Settings, server: LocalNames) -> None:
    server.records["_dmarc.shop.example"] = {"TXT": ['"v=DMARC1; p=none; aspf=s"']}

    assert states(Settings(_env_file=None, **green.model_dump() | {"dkim_key_file": None}))["dmarc"] == "fail"


def test_a_subdomain_falls_under_the_policy_of_its_organisation(green: Settings, server: LocalNames) -> None:
    server.records["_dmarc.news.shop.example"] = {}
    settings = Settings(_env_file=None, **green.model_dump() | {"from_address": "hello@news.shop.example"})

    assert states(settings)["dmarc"] == "ok"
    assert organisational_domain("a.b.shop.co.uk") == "shop.co.uk"


def test_what_is_not_answered_is_not_green(green: Settings, server: LocalNames) -> None:
    """A silent name server: the checks fail and say so, in seconds."""
    for name in server.records:
        server.records[name] = None

    found = states(green, seconds=0.2)

    assert {name for name, state in found.items() if state == "fail"} == {"spf", "dkim", "dmarc", "return_path"}


def test_tls_is_tried(green: Settings) -> None:
    """A relay on loopback that offers none: nothing to say while mail stays here; a name that is not there fails."""
    assert states(Settings(_env_file=None, **green.model_dump() | {"smtp_url": "outbox://"}))["tls"] == "ok"
    away = Settings(_env_file=None, **green.model_dump() | {"smtp_url": "smtp://relay.invalid"})
    assert states(away)["tls"] == "fail"


def test_refusals_are_kept_for_ten_minutes_and_overridden_by_name(green: Settings, server: LocalNames) -> None:
    server.records["_dmarc.shop.example"] = {}
    bad = Settings(_env_file=None, **green.model_dump() | {"postal_address": ""})

    assert bulk_refusals(bad) == ["dmarc", "postal_address"]
    asked = server.asked.total()
    assert bulk_refusals(bad) == ["dmarc", "postal_address"]
    assert server.asked.total() == asked
    despite = Settings(_env_file=None, **bad.model_dump() | {"allow_bulk_despite": "dmarc, postal_address"})
    assert bulk_refusals(despite) == []
    [dmarc] = [check for check in check_sender(despite) if check.name == "dmarc"]
    assert dmarc.ok
    assert "in spite" in dmarc.says
    for url in ("outbox://", "smtp://127.0.0.1:25", "smtp://localhost"):
        assert bulk_refusals(Settings(_env_file=None, **bad.model_dump() | {"smtp_url": url})) == []


def test_bulk_mail_is_refused_until_green_and_small_mail_is_not(
    database: Database, green: Settings, server: LocalNames
) -> None:
    """501 recipients with a failing check: 409 with its name, and nothing is planned. 500 leave."""
    server.records["_dmarc.shop.example"] = {}
    settings = Settings(_env_file=None, **green.model_dump() | {"quiet_hours": ""})
    subscribe(database, 501, now=NOW)
    add_template(database, now=NOW)

    def schedule(n: int) -> dict[str, int]:
        with database.writing() as session:
            audience = {"user_ids": [f"c{i}" for i in range(n)]}
            new = NewCampaign("x", "offer", NOW, NOW.replace(hour=20), audience, topic=TOPIC, timing="at_start")
            campaign_id = create_campaign(session, new, now=NOW)
            session.commit()
        with database.writing() as session:
            return schedule_campaign(session, campaign_id, Serving(), settings, now=NOW)

    with pytest.raises(Conflict, match=r"501 mails.*dmarc") as refusal:
        schedule(501)
    assert refusal.value.extra == {"failing": ["dmarc"]}
    with database.reading() as session:
        assert [row.status for row in session.query(CampaignRow)] == ["draft"]
    assert sum(schedule(500).values()) == 500
    check_bulk(green.model_copy(update={"smtp_url": "outbox://"}), recipients=10**6)
