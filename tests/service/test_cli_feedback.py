"""Laws of `kairos bounces` and `kairos hygiene`."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.database import Database
from service.links import sign_bounce
from service.settings import Settings
from tests.service.bounces import corpus
from tests.service.mailing import plan, subscribe
from tests.service.test_cli import answer, kairos

__all__ = ["kairos"]


@pytest.fixture
def shop(kairos: Callable[..., Any], tmp_path: Path) -> Any:
    """An installation with a mail that left two hours ago."""
    answer(kairos("db", "upgrade", "--json"))
    settings = Settings(home=tmp_path / "home", _env_file=None)
    database = Database(settings.database)
    at = datetime.now(UTC) - timedelta(hours=2)
    [key] = subscribe(database, 1, now=at)
    [send_id] = plan(database, [key], now=at, state="accepted", finished_at=at)
    yield settings, send_id
    database.close()


def test_reports_are_read_from_a_folder_and_from_standard_input(
    shop: Any, kairos: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts by outcome; again they are duplicates; a broken file is left out and told."""
    settings, send_id = shop
    back = f"b+{sign_bounce(settings.signing_key, send_id)}@back.example"
    folder = tmp_path / "reports"
    folder.mkdir()
    for name, raw in {
        "a": corpus.postfix(back, "", "c0@shop.example"),
        "b": corpus.away(back, "", "c0@shop.example"),
        "c": "nothing",
    }.items():
        (folder / name).write_text(raw)

    code, out, err = kairos("bounces", "read", str(folder), "--json")
    first = json.loads(out)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((folder / "a").read_bytes())))
    second = answer(kairos("bounces", "read", "-", "--json"))
    missing, _, said = kairos("bounces", "read", str(tmp_path / "nowhere"))

    assert code == 0
    assert first == {
        "messages": 3, "outcomes": {"unreadable": 1, "bounced": 1, "ignored": 1}, "bounces": {"hard": 1},
        "suppressed": 1,
    }  # fmt: skip
    assert "left out" in err
    assert second["outcomes"] == {"duplicate": 1}
    assert (missing, "maildir" in said) == (1, True)


def test_a_look_is_shown_applied_and_taken_back(shop: Any, kairos: Callable[..., Any]) -> None:
    """Through the commands, with the ids that they print."""
    look = answer(kairos("hygiene", "look", "--rules", "never_engaged,role", "--json"))
    plain = kairos("hygiene", "show", look["id"])[1]
    applied = answer(kairos("hygiene", "apply", look["id"], "--findings", "role", "--json"))
    reverted = answer(kairos("hygiene", "revert", look["id"], "--json"))
    [listed] = answer(kairos("hygiene", "list", "--json"))["looks"]
    wrong, _, said = kairos("hygiene", "look", "--rules", "rolle")

    assert (look["contacts"], look["state"]) == (1, "previewed")
    assert "kairos hygiene apply" in plain
    assert (applied["suppressed"], reverted["freed"], listed["state"]) == (0, 0, "reverted")
    assert (wrong, "rolle" in said) == (1, True)
