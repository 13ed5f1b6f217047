"""Laws of the command line."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from service.cli import app, main
from training.inference_worlds import broken_bounds

ORDERS = (
    "InvoiceNo,Quantity,InvoiceDate,UnitPrice,CustomerID\n"
    + "".join(f"{i},1,2011-0{1 + i % 8}-1{i % 9} 12:00:00,{i}.50,{i % 5}\n" for i in range(1, 40))
    + "C41,-1,2011-03-01 12:00:00,1.50,1\n42,1,2011-03-01 12:00:00,1,\n"
)

SILENT = {
    "name": "silent_regulars",
    "population": {"feature": "orders_ever", "at_least": 3},
    "event": "Order Completed",
    "happens": False,
    "within_days": 30,
}
SILENT_YAML = """
name: silent_regulars
population: {feature: orders_ever, at_least: 3}
event: Order Completed
happens: false
within_days: 30
"""


@pytest.fixture
def kairos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command in a home of its own; gives exit code, standard output, standard error."""
    import logging

    for name in list(os.environ):
        if name.startswith("KAIROS_") and name != "KAIROS_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.setenv("KAIROS_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(*arguments: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def answer(ran: tuple[int, str, str]) -> Any:
    code, out, err = ran
    assert code == 0, err
    return json.loads(out)


def commands() -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []

    def walk(command: Any, path: tuple[str, ...]) -> None:
        for name, inner in getattr(command, "commands", {}).items():
            walk(inner, (*path, name))
        if not getattr(command, "commands", None):
            found.append(path)

    walk(typer.main.get_command(app), ())
    return found


def test_every_command_shows_an_example_and_answers_json(kairos: Callable[..., Any]):
    """`--help` has an example that begins with the command; all but `serve` know `--json`."""
    assert len(commands()) >= 22
    for path in commands():
        code, out, _ = kairos(*path, "--help")

        assert code == 0
        assert f"Example: kairos {' '.join(path)}" in " ".join(out.split())
        assert ("--json" in out) == (path != ("serve",))


def test_help_answers_at_once():
    """`kairos --help` in a fresh interpreter loads nothing heavy."""
    code = (
        "import sys, time; began = time.perf_counter()\n"
        "from service.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'pandas', 'sqlalchemy', 'fastapi', 'mlflow', 'numba', 'pyarrow'} & set(sys.modules)\n"
        "print(sorted(heavy), time.process_time(), file=sys.stderr)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    heavy, _, seconds = ran.stderr.strip().rpartition(" ")

    assert heavy == "[]"
    assert float(seconds) < 0.5


def test_keys_are_made_listed_and_revoked(kairos: Callable[..., Any]):
    """The secret is shown once; the list has the id; a revoked key says when."""
    made = answer(kairos("keys", "create", "--name", "shop", "--scope", "ingest", "--scope", "read", "--json"))
    revoked = answer(kairos("keys", "revoke", made["key_id"], "--json"))
    listed = answer(kairos("keys", "list", "--json"))["keys"]

    assert made["secret"].startswith(f"kk_live_{made['key_id']}_")
    assert revoked == {"key_id": made["key_id"], "revoked": True}
    assert [(key["key_id"], key["scopes"], key["revoked_at"] is None) for key in listed] == [
        (made["key_id"], ["ingest", "read"], False)
    ]


def test_experiments_are_listed_reported_and_ended(kairos: Callable[..., Any], tmp_path: Path):
    """What the API changes the command line changes too, and the history says who."""
    from datetime import UTC, datetime

    from service.database import Database
    from service.flow.decide import Arm, NewExperiment, open_experiment
    from service.settings import Settings

    assert answer(kairos("experiments", "list", "--json")) == {"experiments": []}
    database = Database(Settings().database)
    new = NewExperiment("Subjects", "subject", (Arm("a", "One"), Arm("b", "Two"), Arm("c", "Three")))
    with database.writing() as session:
        made = open_experiment(session, new, now=datetime.now(UTC))
    database.close()
    picture = tmp_path / "report.png"
    listed = answer(kairos("experiments", "list", "--json"))["experiments"]
    shown = answer(kairos("experiments", "show", made, "--json"))
    report = answer(kairos("experiments", "report", made, "--png", str(picture), "--json"))
    words = kairos("experiments", "report", made)[1]
    kairos("experiments", "pause", made, "--arm", "b", "--reason", "out of stock")
    kairos("experiments", "pause", made)
    kairos("experiments", "resume", made)
    ended = answer(kairos("experiments", "end", made, "--reason", "decided", "--json"))
    late = kairos("experiments", "resume", made)

    assert [one["id"] for one in listed] == [made]
    assert shown["planning"]["sentences"]
    assert report["verdict"]["kind"] == "too_early"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "Too early" in words
    assert "earned against an even split" in words
    assert [entry["what"] for entry in ended["history"]] == [
        "arm 'b' paused: out of stock", "experiment paused", "experiment resumed", "experiment ended: decided",
    ]  # fmt: skip
    assert {entry["who"] for entry in ended["history"]} == {"command line"}
    assert late[0] == 1
    assert "has ended" in late[2]
    assert kairos("experiments", "report", "exp_none")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["keys", "create", "--scope", "everything"], 1, "'everything'"),
        (["keys", "revoke", "nope"], 1, "'nope'"),
        (["keys", "create"], 2, "--scope"),
        (["import", "orders", "missing.csv"], 1, "missing.csv"),
        (["import", "orders", "x.csv", "--map", "contact"], 2, "FIELD=COLUMN"),
        (["features", "get", "nobody"], 1, "'nobody'"),
        (["features", "get", "nobody", "--as-of", "soon"], 2, "'soon'"),
        (["features", "vectors", "--views", "sofas"], 2, "'sofas'"),
        (["features", "vectors", "--out", "nowhere/x.parquet"], 1, "nowhere/x.parquet"),
        (["train", "weather"], 2, "'weather'"),
        (["models", "show", "churn"], 1, "kairos train churn"),
        (["models", "rollback", "churn"], 1, "kairos train churn"),
        (["score", "--model", "churn"], 1, "kairos train churn"),
        (["experiments", "evaluate", "exp_nope", "--policy", "uniform"], 1, "'exp_nope'"),
        (["experiments", "evaluate", "exp_nope"], 2, "--snapshot"),
        (["experiments", "evaluate", "exp_nope", "--arm", "a", "--policy", "uniform"], 2, "one target"),
        (["experiments", "evaluate", "exp_nope", "--weights", "a:1"], 2, "a=.2,b=.8"),
        (["experiments", "evaluate", "exp_nope", "--arm", "a", "--since", "soon"], 2, "--since"),
        (["demo", "--orders", "missing.parquet"], 1, "missing.parquet"),
        (["fly"], 2, "fly"),
    ],
)
def test_what_fails_says_why_and_exits_so(arguments: list[str], code: int, said: str, kairos: Callable[..., Any]):
    """1 where it failed, 2 where it was called wrongly; the reason is on standard error and names the value."""
    ended, out, err = kairos(*arguments)

    assert (ended, out) == (code, "")
    assert said in err
    assert "Traceback" not in err


def test_a_wrong_setting_is_named(kairos: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """The message has the variable's name and the value."""
    monkeypatch.setenv("KAIROS_TIMEZONE", "Mars/Olympus")
    code, _, err = kairos("keys", "list")

    assert code == 1
    assert "KAIROS_TIMEZONE" in err
    assert "Mars/Olympus" in err


def test_orders_go_in_and_vectors_come_out(kairos: Callable[..., Any], tmp_path: Path):
    """Import, import again, sync, verify, a vector as of the end of a day."""
    (tmp_path / "orders.csv").write_text(ORDERS)
    tried = answer(kairos("import", "orders", "orders.csv", "--dry-run", "--json"))
    first = answer(kairos("import", "orders", "orders.csv", "--timezone", "Europe/London", "--json"))
    again = answer(kairos("import", "orders", "orders.csv", "--timezone", "Europe/London", "--json"))
    synced = answer(kairos("features", "sync", "--json"))
    verified = answer(kairos("features", "verify", "--json"))
    vector = answer(kairos("features", "get", "1", "--as-of", "2011-08-31", "--json"))

    assert (tried["orders"], tried["set_aside"], tried["events_stored"]) == (39, 1, 0)
    assert (first["orders"], first["cancellations"], first["events_stored"], again["events_stored"]) == (39, 1, 40, 0)
    assert (synced["rows"], verified["equal"]) == (40, True)
    assert vector["as_of"] == "2011-09-01T00:00:00+00:00"
    assert len(vector["features"]) >= 40


def test_a_check_that_finds_something_fails_and_says_what_to_do(kairos: Callable[..., Any], tmp_path: Path):
    """A store that is well is 0; a file of the lake that was cut short is 1, with the file and the remedy."""
    (tmp_path / "orders.csv").write_text(ORDERS)
    kairos("import", "orders", "orders.csv")
    well = answer(kairos("features", "check", "--json"))
    file = next((tmp_path / "home" / "lake").glob("bucket=*/*.parquet"))
    file.write_bytes(file.read_bytes()[:-9])
    code, out, _ = kairos("features", "check")

    assert (well["ok"], well["problems"], well["freshness"]["events_behind"]) == (True, [], 40)
    assert code == 1
    assert f"WRONG    {file}" in out
    assert "`kairos features rebuild`" in out


def test_people_read_what_programs_read(kairos: Callable[..., Any], tmp_path: Path):
    """Without `--json` each command answers in lines."""
    (tmp_path / "orders.csv").write_text(ORDERS)
    for arguments in (
        ["db", "upgrade"],
        ["import", "orders", "orders.csv"],
        ["features", "list"],
        ["features", "rebuild"],
        ["features", "get", "1"],
        ["features", "check"],
        ["keys", "list"],
        ["outcomes", "list"],
        ["simulate", "world", "--contacts", "20", "--days", "10"],
        ["worker", "--once"],
        ["doctor"],
    ):
        code, out, err = kairos(*arguments)

        assert code == 0, err
        assert out.strip()
        assert not out.startswith("{")


def test_the_simulated_reports_fail_exactly_when_a_figure_lies_outside_its_bound(kairos: Callable[..., Any]):
    code, out, err = kairos("simulate", "reports", "--runs", "2", "--json")
    report = json.loads(out)

    assert {"no_effect", "effect", "planted", "repeat_contacts", "guardrails", "winners"} <= set(report)
    assert code == int(bool(broken_bounds(report)))
    assert len(err.splitlines()) == len(broken_bounds(report))


def test_the_doctor_names_what_is_wrong(kairos: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    """On a fresh home the database has no tables; with a mail server that is away, that too is said."""
    fresh_code, fresh, _ = kairos("doctor", "--json")
    kairos("db", "upgrade")
    code, _, _ = kairos("doctor", "--json")
    monkeypatch.setenv("KAIROS_SMTP_URL", "smtp://127.0.0.1:1")
    away_code, away, _ = kairos("doctor", "--json")

    assert fresh_code == 1
    assert "kairos db upgrade" in next(one["says"] for one in json.loads(fresh)["checks"] if one["name"] == "database")
    assert code == 0
    assert away_code == 1
    assert [one["name"] for one in json.loads(away)["checks"] if not one["ok"]] == ["mail"]


def test_the_command_line_declares_and_lists(kairos: Callable[..., Any], tmp_path: Path) -> None:
    """A file in, counts out; what is wrong with it is said; its name can then be trained."""
    (tmp_path / "silent.yaml").write_text(SILENT_YAML)
    (tmp_path / "wrong.yaml").write_text("name: Wrong")
    declared = answer(kairos("outcomes", "declare", "silent.yaml", "--json"))
    again = answer(kairos("outcomes", "declare", "silent.yaml", "--json"))
    listed = answer(kairos("outcomes", "list", "--json"))["outcomes"]
    code, out, _ = kairos("outcomes", "list")
    (tmp_path / "silent.yaml").write_text(json.dumps(SILENT | {"within_days": 45}))

    assert (declared["created"], again["created"], declared["counts"]["trainable"]) == (True, False, False)
    assert [one["name"] for one in listed] == ["churn", "conversion", "email_churn", "silent_regulars"]
    assert code == 0
    assert "no order in the next 30 days" in out
    for arguments, said in (
        (("declare", "silent.yaml"), "with replace"),
        (("declare", "wrong.yaml"), "does not say its population"),
        (("declare", "missing.yaml"), "missing.yaml"),
    ):
        code, _, err = kairos("outcomes", *arguments)
        assert (code, said in err) == (1, True), err
    assert answer(kairos("outcomes", "declare", "silent.yaml", "--replace", "--json"))["says"].endswith("45 days")
    assert kairos("train", "silent_regulars")[0] == 1  # there is no event to learn from
    assert kairos("score", "--model", "silent_regulars")[0] == 1
    assert kairos("train", "sofas")[0] == 2


def test_an_experiment_is_evaluated_on_its_own_log(kairos: Callable[..., Any], tmp_path: Path):
    """Decisions of five days ago with their clicks: the report as JSON and in lines; a date cuts the period by days."""
    from datetime import UTC, datetime, timedelta

    from features.contacts import resolve
    from service.database import Database
    from service.flow.decide import Arm, NewExperiment, decide_for, open_experiment
    from service.tables import RewardRow

    kairos("db", "upgrade")
    then = datetime.now(UTC) - timedelta(days=5)
    database = Database(f"sqlite:///{tmp_path / 'home' / 'kairos.db'}")
    with database.writing() as session:
        keys = list(resolve(session, [f"user:u{i}" for i in range(300)], now=then).values())
        arms = (Arm("a", "One"), Arm("b", "Two"))
        experiment = open_experiment(session, NewExperiment("Test", "subject", arms), now=then)
        made = decide_for(session, experiment, keys, "home", now=then)
        for decision_id in [one for one, arm in zip(made.decision_id, made.arm_id, strict=True) if arm == "b"][::2]:
            session.add(RewardRow(decision_id=decision_id, kind="click", value=1.0, occurred_at=then, log_seq=1))
    database.close()
    asked = ("experiments", "evaluate", experiment)
    found = answer(kairos(*asked, "--arm", "b", "--json"))
    same = answer(kairos(*asked, "--weights", "b=2,a=0", "--until", then.date().isoformat(), "--json"))
    nothing = answer(kairos(*asked, "--policy", "uniform", "--until", "2020-01-01", "--json"))
    code, out, _ = kairos(*asked, "--policy", "uniform", "--since", (then - timedelta(days=1)).date().isoformat())

    snips = next(one["value"] for one in found["estimates"] if one["estimator"] == "snips")
    assert snips == pytest.approx(0.5, abs=0.01)
    assert same["estimates"] == found["estimates"]
    assert nothing["says"].startswith("no value: there is no decision")
    assert code == 0
    assert "300 decisions of 300 contacts" in out
    assert "snips" in out


def test_a_simulated_world_is_written_as_messages(kairos: Callable[..., Any], tmp_path: Path):
    """One Segment message a line; the same seed gives the same file."""
    arguments = ["simulate", "world", "--contacts", "30", "--days", "20", "--seed", "3", "--json"]
    report = answer(kairos(*arguments, "--out", "a.jsonl"))
    answer(kairos(*arguments, "--out", "b.jsonl"))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()

    assert len(lines) == report["events"] > 0
    assert {"type", "event", "userId", "messageId", "timestamp"} <= set(json.loads(lines[0]))
    assert (tmp_path / "a.jsonl").read_text() == (tmp_path / "b.jsonl").read_text()


def test_serve_answers_until_it_is_told_to_stop(tmp_path: Path):
    """The whole service as a process: it gets ready on a fresh home, and ends cleanly on SIGTERM."""
    import signal

    import httpx

    from service.demo import free_port

    port = free_port()
    environment = {**os.environ, "KAIROS_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        for _ in range(300):
            try:
                ready = httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.1)
        assert ready.json()["status"] == "ready"
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()

    assert process.returncode == 0
    assert "Traceback" not in err


def test_vectors_go_into_a_snapshot_or_a_file(kairos: Callable[..., Any], tmp_path: Path):
    """The same vectors either way, of every contact known at the instant; the report says how many and how long."""
    import pandas as pd

    (tmp_path / "orders.csv").write_text(ORDERS)
    answer(kairos("import", "orders", "orders.csv", "--json"))
    kept = answer(kairos("features", "vectors", "--as-of", "2011-08-31", "--json"))
    taken = answer(kairos("features", "vectors", "--as-of", "2011-08-31", "--out", "vectors.parquet", "--json"))
    snapshot = pd.concat([pd.read_parquet(path) for path in sorted(Path(kept["written"]).glob("*.parquet"))])
    file = pd.read_parquet(tmp_path / "vectors.parquet").set_index("contact_key").sort_index()

    assert kept["rows"] == taken["rows"] == len(file) == 5
    assert kept["columns"] == taken["columns"] == len(file.columns)
    assert kept["view_set"].startswith("default@")
    assert kept["seconds"] >= 0
    pd.testing.assert_frame_equal(file, snapshot.set_index("contact_key").sort_index())
    one = answer(kairos("features", "get", "1", "--as-of", "2011-08-31", "--json"))["features"]
    assert any(file.loc[key, "revenue_ever"] == one["revenue_ever"] for key in file.index)


def test_an_erasure_whose_files_fail_says_what_is_done(kairos: Callable[..., Any], tmp_path: Path):
    """The contact is gone from the database, and the command succeeds; it names the fault and who goes on."""
    (tmp_path / "orders.csv").write_text(ORDERS)
    answer(kairos("import", "orders", "orders.csv", "--json"))
    answer(kairos("features", "sync", "--json"))
    (tmp_path / "home" / "lake" / "manifest.json").write_text("{}")
    code, out, _ = kairos("contacts", "erase", "1")
    report = answer(kairos("contacts", "erase", "2", "--json"))

    assert code == 0
    assert "1 contacts erased" in out
    assert "manifest.json is no manifest" in out
    assert "`kairos worker` tries again" in out
    assert (report["contacts"], report["files"]["finished"], report["files"]["waiting"]) == (1, 0, 1)
    assert kairos("contacts", "erase", "1")[0] == 1


def test_contacts_are_erased_with_their_files(kairos: Callable[..., Any], tmp_path: Path):
    """Database and lake at once; a name that nobody has stops the command before it erases anybody."""
    (tmp_path / "orders.csv").write_text(ORDERS)
    answer(kairos("import", "orders", "orders.csv", "--json"))
    answer(kairos("features", "sync", "--json"))
    code, _, err = kairos("contacts", "erase", "1", "nobody")
    assert (code, "'nobody'" in err) == (1, True)
    report = answer(kairos("contacts", "erase", "1", "2", "--json"))

    assert (report["contacts"], report["files"]["finished"], report["files"]["waiting"]) == (2, 2, 0)
    assert report["events"] > 10
    assert answer(kairos("features", "verify", "--json"))["equal"]
    assert kairos("features", "get", "1")[0] == 1
