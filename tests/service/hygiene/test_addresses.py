"""Laws of what an address alone tells."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import Invalid
from service.hygiene.addresses import DISPOSABLE, AddressRules, disposable_domains, domain_suggestion
from service.mailboxes import DOMAINS

ALL = ("syntax", "typo_domain", "role", "disposable", "no_mail_server")


@pytest.mark.parametrize(
    ("domain", "meant"),
    [
        ("gmial.com", "gmail.com"),
        ("gmal.com", "gmail.com"),
        ("gmaill.com", "gmail.com"),
        ("mgail.com", "gmail.com"),
        ("gnail.com", "gmail.com"),
        ("gmail.con", "gmail.com"),
        ("hotmial.com", "hotmail.com"),
        ("hotmai.com", "hotmail.com"),
        ("outlok.com", "outlook.com"),
        ("yaho.com", "yahoo.com"),
        ("yahoo.cm", "yahoo.com"),
        ("iclod.com", "icloud.com"),
        *(
            (real, None)
            for real in ("mail.com", "email.com", "ymail.com", "gmx.com", "hotmail.be", "yahoo.se", "live.nl")
        ),
    ],
)
def test_slips_of_the_keys_are_told_and_real_neighbours_are_not(domain: str, meant: str | None) -> None:
    assert domain_suggestion(domain) == meant


def test_no_mailbox_provider_is_a_slip() -> None:
    assert [domain for domains in DOMAINS.values() for domain in domains if domain_suggestion(domain)] == []


@pytest.mark.parametrize(
    ("address", "findings"),
    [
        ("ann@shop.example", []),
        ("Ann.O'Neil+x@Shop.example", []),
        ("info@shop.example", ["role"]),
        ("Sales+2026@shop.example", ["role"]),
        ("information.desk@shop.example", []),
        ("ann@mailinator.com", ["disposable"]),
        ("ann@eu.mailinator.com", ["disposable"]),
        ("ann@notmailinator.com", []),
        ("ann@dead.example", ["no_mail_server"]),
        ("ann", ["syntax"]),
        ("ann@localhost", ["syntax"]),
        (".ann@shop.example", ["syntax"]),
        ("a b@shop.example", ["syntax"]),
        ("ann@shop..example", ["syntax"]),
        ("x" * 65 + "@shop.example", ["syntax"]),
        ("änn@shop.example", ["syntax"]),
        ("info@gmial.com", ["typo_domain", "role"]),
    ],
)
def test_each_address_has_its_findings(address: str, findings: list[str]) -> None:
    rules = AddressRules(ALL, without_mail={"dead.example"})

    assert [finding for finding, _ in rules.of(address)] == findings
    assert [finding for finding, _ in rules.of(address)] == findings, "judged again from memory"


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_is_judged(local: str, domain: str) -> None:
    """Whatever stands in the column, there is an answer; what email-validator refuses is a finding."""
    from email_validator import EmailNotValidError, validate_email

    address = f"{local}@{domain}"
    found = AddressRules(["syntax"]).of(address)
    try:
        validate_email(address, check_deliverability=False, test_environment=True, allow_smtputf8=False, strict=True)
    except EmailNotValidError:
        assert found == [("syntax", None)]
    else:
        assert found == []


def test_a_file_in_home_takes_the_place_of_our_domains(tmp_path: Path) -> None:
    assert "yopmail.com" in disposable_domains(tmp_path) == DISPOSABLE
    (tmp_path / "disposable_domains.txt").write_text("# ours\nHour.example\n\n")
    assert disposable_domains(tmp_path) == {"hour.example"}
    (tmp_path / "disposable_domains.txt").write_text("hour.example\nnot a domain\n")
    with pytest.raises(Invalid, match="line 2"):
        disposable_domains(tmp_path)
