"""Laws of `kairos campaigns`, `kairos stop` and `kairos resume`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.campaigns import NewCampaign, create_campaign
from service.cli import main
from service.database import Database
from service.templates import add_template, bundled_template


@pytest.fixture
def kairos(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, Any]]]:
    """Runs a command with ``--json`` over the database; gives exit code and answer, or what it said of its failure."""
    for name in list(os.environ):
        if name.startswith("KAIROS_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KAIROS_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAIROS_DATABASE_URL", database.url.render_as_string(hide_password=False))
    monkeypatch.setenv("KAIROS_APPROVAL_ABOVE", "5")
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*arguments: str) -> tuple[int, Any]:
        code = 0
        try:
            main([*arguments, "--json"])
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        out, err = capsys.readouterr()
        return code, json.loads(out) if code == 0 else err

    return run


@pytest.fixture
def campaign_id(database: Database, add_contacts: Callable[..., list[int]]) -> str:
    """A draft of somebody's, to ten contacts, for now."""
    now = datetime.now(UTC)
    with database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        add_contacts(session, 10)
        new = NewCampaign("News", "offer", now, now + timedelta(days=2), {"everyone": True}, timing="at_start")
        return create_campaign(session, new, now=now, by="somebody")


def test_a_campaign_goes_through_its_life(kairos: Callable[..., tuple[int, Any]], campaign_id: str) -> None:
    """Planned, approved, scheduled, paused, resumed, corrected, cancelled: each step says how it stands."""
    assert [one["id"] for one in kairos("campaigns", "list")[1]["campaigns"]] == [campaign_id]
    assert kairos("campaigns", "plan", campaign_id)[1]["counts"] == {"planned": 10}
    code, said = kairos("campaigns", "schedule", campaign_id)
    assert (code, "approve" in said) == (1, True)
    assert kairos("campaigns", "approve", campaign_id)[1]["approved_by"] == "cli"
    assert kairos("campaigns", "schedule", campaign_id)[1]["counts"] == {"planned": 10}
    paused = kairos("campaigns", "pause", campaign_id, "--reason", "wrong price")[1]
    assert (paused["status"], paused["status_reason"], paused["status_by"]) == ("paused", "wrong price", "cli")
    assert kairos("campaigns", "resume", campaign_id)[1]["status"] == "scheduled"
    made = kairos(
        "campaigns", "correct", campaign_id, "--template", "offer", "--arm", "exp_1=a", "--from", "2026-03-02"
    )
    assert made[1]["audience"]["sends_of"]["arm"] == {"experiment": "exp_1", "arm": "a"}
    assert made[1]["audience"]["sends_of"]["from"] == "2026-03-02T00:00:00+00:00"
    code, said = kairos("campaigns", "approve", made[1]["id"])
    assert (code, "another key" in said) == (1, True)
    assert kairos("campaigns", "cancel", campaign_id, "--reason", "over")[1]["cancelled"] == 10
    shown = kairos("campaigns", "show", campaign_id)[1]
    assert (shown["sends"]["cancelled"], shown["corrections"]) == (10, [made[1]["id"]])
    assert kairos("campaigns", "correct", campaign_id, "--template", "offer", "--arm", "exp_1")[0] == 2
    assert kairos("campaigns", "show", "cmp_none")[0] == 1


def test_stop_and_resume(kairos: Callable[..., tuple[int, Any]], database: Database) -> None:
    """They say what they did, or that there was nothing to lift."""
    assert kairos("stop", "--reason", "wrong price") == (
        0,
        {"scope": "everything", "reason": "wrong price", "taken_back": 0},
    )
    assert kairos("stop")[0] == 2
    assert kairos("stop", "--reason", "x", "--scope", "all")[0] == 1
    assert kairos("resume")[1]["lifted"] is True
    assert kairos("resume")[1] == {"scope": "everything", "lifted": False, "expired": 0, "postponed": 0}
