"""Laws of the declared rules."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from service.cli import app
from service.database import Database
from service.errors import Invalid
from service.hits import Hit, RuleBook, compare, load_rules, record_hits, settle, shipped_rules
from service.hits.rules import SHIPPED
from tests.service.mailing import plan, subscribe

SENT = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
BROWSER = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"


def written(path: Path, **changes: Any) -> Path:
    """The shipped rules with changes at their top, in a file; its time moves on with each writing."""
    declared = yaml.safe_load(SHIPPED.read_text()) | changes
    path.write_text(yaml.safe_dump(declared))
    os.utime(path, ns=(written.tick, written.tick))
    written.tick += 1_000_000_000
    return path


written.tick = 1_700_000_000_000_000_000


@pytest.mark.parametrize(
    ("agent", "name"),
    [
        ("", "none"),
        ("  ", "none"),
        ("Mozilla/5.0", "apple_proxy"),
        ("Mozilla/5.0 (Windows NT 5.1; rv:11.0) Gecko Firefox/11.0 (via ggpht.com GoogleImageProxy)", "image_proxy"),
        ("YahooMailProxy; https://help.yahoo.com/kb/yahoo-mail-proxy-SLN28749.html", "image_proxy"),
        ("Outlook-iOS/709.2226530.prod.iphone (3.24.1)", "mail_program"),
        ("Mozilla/4.0 (compatible; MSIE 7.0; Windows NT 10.0; Microsoft Outlook 16.0.17029; ms-office)", "office"),
        ("Microsoft Office/16.0 (Windows NT 10.0; Microsoft Outlook 16.0.12026; Pro)", "office"),
        ("Mozilla/5.0 (compatible; Barracuda Sentinel)", "program"),
        ("python-requests/2.32", "program"),
        ("Mozilla/5.0 (compatible; Cincraw/1.0; +http://cincrawdata.net/bot/)", "program"),
        ("Nuzzel", "crawler"),
        (BROWSER, "browser"),
        ("Mozilla/5.0 (Linux; Android 13; CUBOT X70) AppleWebKit/537.36", "browser"),
        ("Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Thunderbird/128.3.0", "browser"),
        ("Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko)", "browser"),
    ],
)
def test_agents_are_told_apart(agent: str, name: str) -> None:
    """Proxies before programs, mail programs before robots' lists, what nobody names is a browser."""
    assert shipped_rules().agent(agent).name == name


def test_changed_rules_are_in_force_at_once(tmp_path: Path) -> None:
    """The book reads a changed file anew; one that is wrong or gone leaves the last good rules."""
    path = written(tmp_path / "rules.yaml", version="a")
    book = RuleBook(path)
    first = book.current()
    assert book.current() is first
    written(path, version="b")
    assert book.current().version == "b"
    path.write_text("version: [")
    assert book.current().version == "b"
    path.unlink()
    assert book.current().version == "b"
    written(path, version="c")
    assert book.current().version == "c"


def test_a_changed_list_of_networks_is_in_force_at_once(tmp_path: Path) -> None:
    """The lists that the rules name are watched, too."""
    networks = tmp_path / "theirs.txt"
    networks.write_text("192.0.2.0/24\n")
    book = RuleBook(
        written(tmp_path / "rules.yaml", networks=[{"name": "theirs", "file": "theirs.txt", "probability": 0.0}])
    )
    assert book.current().network_name("198.51.100.1") is None
    networks.write_text("192.0.2.0/24\n198.51.100.0/24\n")
    assert book.current().network_name("198.51.100.1") == "theirs"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": None}, "version"),
        ({"agents": [{"name": "x", "patterns": ["("], "open": 0.1, "click": 0.1}]}, "is no regular expression"),
        ({"agents": [{"name": "browser", "open": 0.1, "click": 0.1}]}, "'browser' stands twice"),
        ({"agents": [{"name": "x", "open": 1.1, "click": 0.1}]}, "agents.0.open"),
        ({"networks": [{"name": "x", "cidrs": ["10.0.0.0/33"], "probability": 0}]}, "is no network"),
        ({"networks": [{"name": "x", "file": "gone.txt", "probability": 0}]}, "gone.txt"),
        ({"rules": {"burst": {"seconds": 61, "links": 3, "share": 0.8, "probability": 0}}}, "rules.burst.seconds"),
        ({"rules": {"tarp": {}}}, "rules.tarp"),
    ],
)
def test_wrong_rules_are_refused_by_name(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    """The error names the place and the value, and a server does not start with it."""
    with pytest.raises(Invalid, match=says.replace(".", r"\.").replace("(", r"\(")):
        RuleBook(written(tmp_path / "rules.yaml", **changes))
    with pytest.raises(Invalid, match="cannot be read"):
        load_rules(tmp_path / "none.yaml")


def test_a_rule_that_is_left_out_is_off(database: Database, tmp_path: Path) -> None:
    """Without rules the user agent alone decides, and the event says by which version."""
    [send] = plan(database, subscribe(database, 1, now=SENT), now=SENT, state="accepted", finished_at=SENT)
    with database.writing() as session:
        record_hits(session, [Hit(send, 5, "HEAD", BROWSER, SENT + timedelta(seconds=1))])
    rules = load_rules(written(tmp_path / "rules.yaml", rules={}))
    with database.writing() as session:
        assert settle(session, now=SENT + timedelta(hours=1), rules=rules).human_clicks == 1


def test_other_rules_can_be_tried_on_what_was_judged(any_database: Database, tmp_path: Path) -> None:
    """Counts of what would be judged otherwise and why; nothing that was judged changes."""
    sends = plan(any_database, subscribe(any_database, 3, now=SENT), now=SENT, state="accepted", finished_at=SENT)
    with any_database.writing() as session:
        hits = [
            Hit(send, 5, "GET", BROWSER, SENT + timedelta(seconds=s))
            for send, s in zip(sends, (3, 20, 90), strict=True)
        ]
        record_hits(session, hits)
    with any_database.writing() as session:
        settle(session, now=SENT + timedelta(hours=1))
    strict = load_rules(written(tmp_path / "s.yaml", rules={"too_quick": {"seconds": 30, "probability": 0.01}}))
    lax = load_rules(written(tmp_path / "l.yaml", rules={}))
    with any_database.reading() as session:
        span = {"since": SENT, "until": SENT + timedelta(days=1)}
        stricter = compare(session, shipped_rules(), strict, **span)
        laxer = compare(session, shipped_rules(), lax, **span)
        beyond = compare(session, shipped_rules(), lax, since=SENT + timedelta(days=1), until=SENT + timedelta(days=2))
    assert (stricter.hits, stricter.human_by_both, stricter.machine_by_both) == (3, 1, 1)
    assert (stricter.would_become_machine, stricter.because) == (1, {"browser": 1, "too_quick": 1})
    assert (laxer.would_become_human, laxer.would_become_machine) == (1, 0)
    assert beyond.hits == 0


def test_rules_are_compared_from_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`kairos hits compare FILE --json`; a file that is wrong ends it with its reason."""
    monkeypatch.setenv("KAIROS_HOME", str(tmp_path / "home"))
    path = written(tmp_path / "rules.yaml", version="mine")
    done = CliRunner().invoke(app, ["hits", "compare", str(path), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert (report["current_version"], report["other_version"], report["hits"]) == (2, "mine", 0)
    path.write_text("agents: 3")
    assert CliRunner().invoke(app, ["hits", "compare", str(path)]).exit_code == 1
