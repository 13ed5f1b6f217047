"""Contacts, arms, templates, models and tokens that are meant to do harm: each stays alone with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import insert, select, update

from features.views import SEND_HOUR_VIEWS
from service.app import create_app
from service.campaigns import NewCampaign, create_campaign, schedule_campaign
from service.database import Database
from service.flow.predict import refresh_serving
from service.flow.render.addresses import mailbox
from service.links import link_ids, sign_click
from service.settings import Settings
from service.tables import ContactRow, SendRow, ServingModelRow
from service.templates import add_template, bundled_template
from tests.faults.town import BuildTown
from tests.service.calling import Client
from training.personas import Personas
from training.send_hour import SendHourModel
from training.serving import ModelCard, Serving, stamp_version, write_model

#: Traits that would make another header, another recipient or a mail without end; by contact.
POISON: dict[int, dict[str, object]] = {
    1: {"first_name": "Ann\r\nBcc: all@evil.example"},
    2: {"first_name": "Ann\nX-Kairos-Send: 1"},
    3: {"first_name": "Ann\u2028Bcc: all@evil.example"},
    4: {"first_name": "x" * 5_000},
}
POISONED_ADDRESS = 5
N_PEOPLE = 40


def test_poisonous_traits_and_arms_fail_their_own_mails_only(build_town: BuildTown) -> None:
    """Through a real worker: headers are not injected, a bomb ends at once, the neighbours get their mail."""
    town = build_town("sqlite", N_PEOPLE, frequency_cap=3)
    keys = town.contact_keys
    with town.database.writing() as session:
        offer = replace(bundled_template("offer"), subject="For you, {{ first_name }}")
        add_template(session, offer, now=datetime.now(UTC))
        for place, traits in POISON.items():
            session.execute(update(ContactRow).where(ContactRow.contact_key == keys[place]).values(traits=traits))
        address = "c5@shop5.example\r\nBcc: all@evil.example"
        session.execute(
            update(ContactRow).where(ContactRow.contact_key == keys[POISONED_ADDRESS]).values(email=address)
        )
        bomb = "{% for i in (1..999) %}{% for j in (1..999) %}{{ first_name }}{% endfor %}{% endfor %}"
        add_template(
            session,
            replace(offer, template_id="bomb", source=offer.source.replace("</mj-body>", BLOCK.format(bomb))),
            now=datetime.now(UTC),
        )
    offer_id = town.send_to_everybody(experiments=[])
    few = {"user_ids": ["c10", "c11"]}
    bomb_id = town.send_to_everybody(template_id="bomb", experiments=[], audience=few)
    town.finish(seconds=180)
    report = town.check()
    with town.database.reading() as session:
        rows = session.scalars(select(SendRow)).all()
    poisoned = {keys[place] for place in (*POISON, POISONED_ADDRESS)}
    offers = {row.contact_key: row for row in rows if row.campaign_id == offer_id}

    assert report.violations == []
    assert {key for key, row in offers.items() if row.state == "failed"} == poisoned
    assert all(row.reason for row in offers.values() if row.state == "failed")
    assert sum(row.state == "accepted" for row in offers.values()) == N_PEOPLE - len(poisoned)
    assert {row.state for row in rows if row.campaign_id == bomb_id} == {"failed"}
    for delivery in town.sink.deliveries():
        names = [name.lower() for name, _ in delivery.headers]
        assert "bcc" not in names
        assert names.count("x-kairos-send") == 1
        assert "evil.example" not in delivery.recipient


BLOCK = "<mj-section><mj-column><mj-text>{}</mj-text></mj-column></mj-section></mj-body>"


@pytest.mark.parametrize("written", ["Shop\r\nBcc: x@evil.example <a@shop.example>", "Shop\x00 <a@shop.example>"])
def test_a_sender_with_a_line_break_is_refused(written: str) -> None:
    """The From of the installation cannot bring another header in."""
    with pytest.raises(ValueError, match=r"U\+00"):
        mailbox(written)


@pytest.mark.parametrize("what", ["missing", "altered", "whole"])
def test_sending_goes_on_without_a_model(
    database: Database, settings: Settings, add_contacts, tmp_path: Path, what: str
) -> None:
    """A send-hour model whose files are gone or altered is refused; the plan falls back and says so on every send."""
    now = datetime.now(UTC)
    folder = tmp_path / "model"
    if what != "missing":
        _write_hours(folder)
    if what == "altered":
        largest = max(folder.iterdir(), key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        largest.write_bytes(data)
    with database.writing() as session:
        add_contacts(session, 20)
        add_template(session, bundled_template("plain"), now=now)
        row = {"name": "send_hour", "version": 1, "path": str(folder), "promoted_at": now, "tested_from": now}
        session.execute(insert(ServingModelRow), [row])
        serving = Serving()
        refresh_serving(session, serving, now=now, wait=True)
        assert ("send_hour" in serving.versions) == (what == "whole")
        assert ("send_hour" in serving.why) == (what != "whole")
        window = {"window_start": now, "window_end": now + timedelta(hours=24)}
        campaign = NewCampaign("Hours", "plain", audience={"everyone": True}, timing="best_hour", **window)
        campaign_id = create_campaign(session, campaign, now=now)
        schedule_campaign(session, campaign_id, serving, settings, now=now)
    with database.reading() as session:
        sends = session.scalars(select(SendRow)).all()

    assert len(sends) == 20
    assert {send.state for send in sends} == {"planned"}
    assert ({send.hour_reason for send in sends} == {"fallback"}) == (what != "whole")


def _write_hours(folder: Path) -> None:
    """A send-hour model that would serve."""
    rng = np.random.default_rng(0)
    personas = Personas(np.array([0.3, 0.7]), rng.uniform(0.1, 0.3, (2, 2, 24)), np.array([3.0, 1.0]), np.full(2, 5.0))
    hours = SendHourModel("personal", True, 0.2, rng.uniform(0.1, 0.3, 24), personas, correction=np.ones(24))
    card = ModelCard(
        "send_hour", "send_hour", "personal", "a test", SEND_HOUR_VIEWS.name, SEND_HOUR_VIEWS.version, 1, "engagement",
        datetime.now(UTC).isoformat(), datetime.now(UTC).isoformat(), {}, version=1,
    )  # fmt: skip
    write_model(folder, card, SEND_HOUR_VIEWS, hours, None, rng.poisson(1.0, (30, 120)).astype(float))
    stamp_version(folder, 1)


TARGET = "https://shop.example/new"


@pytest.fixture
def visitor(database: Database, settings: Settings) -> Iterator[tuple[Client, str]]:
    with database.writing() as session:
        link_id = link_ids(session, [TARGET])[TARGET]
    with Client(create_app(settings, database)) as client:
        yield client, sign_click(settings.signing_key, 1, link_id)


def test_no_altered_token_leads_anywhere(visitor: tuple[Client, str]) -> None:
    """Every place altered, cut or followed by another address: 404 and no Location; only what we signed leads on."""
    client, token = visitor
    assert client.get(f"/c/{token}", follow_redirects=False).headers["location"] == TARGET
    altered = [token[:i] + ("A" if token[i] != "A" else "B") + token[i + 1 :] for i in range(len(token))]
    altered += [token[:i] for i in range(1, len(token))]
    altered += [
        "//evil.example", "%2F%2Fevil.example", "javascript:alert(1)", "javascript%3Aalert(1)", "https://evil.example",
        f"{token}//evil.example", f"{token}%2F%2Fevil.example", f"{token}@evil.example", f"{token}/../evil",
        f"{token}%0d%0aLocation:%20https://evil.example", "..%2F..%2Fetc%2Fpasswd", "\\\\evil.example",
    ]  # fmt: skip
    for path in altered:
        answer = client.get(f"/c/{path}", follow_redirects=False)
        assert answer.status_code in (404, 405), path
        assert "location" not in answer.headers
        assert "evil" not in answer.text.lower() or "nothing answers" in answer.text
