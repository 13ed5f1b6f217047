"""`kairos demo` holds what it promises: small in the usual tests, in full for three seeds among the long proofs."""

import json
from pathlib import Path

import pytest

from service.campaigns import TERMINAL_STATES
from service.cli import main
from service.demo import DemoOptions, DemoSettings, run_demo, summarise
from service.errors import Conflict


def demo(capsys, home: Path, *arguments: str) -> dict:
    """What `kairos demo --json` prints, read back; it must end with 0."""
    with pytest.raises(SystemExit) as done:
        main(["demo", "--json", "--home", str(home), *arguments])

    assert done.value.code in (0, None)
    return json.loads(capsys.readouterr().out)


def check(report: dict) -> None:
    """What holds for every demo, whatever its size and seed."""
    sends = report["sends"]

    assert sends["planned"] == sum(sends[state] for state in TERMINAL_STATES)
    assert report["still_open"] == 0
    assert sends["unknown"] == sends["failed"] == 0
    assert report["mails_in_sink"] == sends["accepted"]
    assert 0 < report["decisions"]["least_propensity"] <= 1
    assert report["decisions"]["replayed_equal"] == report["decisions"]["count"] > 0
    assert {name: model["version"] for name, model in report["models"].items()} == {
        "churn": 1,
        "conversion": 1,
        "send_hour": 1,
    }
    for name in ("churn", "conversion"):
        model = report["models"][name]
        assert model["roc_auc"] > model["recency_roc_auc"], name
    for experiment in report["experiments"]:
        assert sum(arm["share_last_wave"] for arm in experiment["arms"]) == pytest.approx(1)
    assert "sends planned, all ended" in summarise(report)


def test_a_small_demo_closes_the_loop(tmp_path, capsys):
    """500 people: every send ends, every decision replays, models beat recency; a second demo replaces the first."""
    report = demo(capsys, tmp_path / "home", "--contacts", "500", "--seed", "7")
    check(report)

    assert report["contacts"] == 500
    assert (tmp_path / "home" / "mlruns" / "mlflow.db").exists()


def test_a_demo_does_not_overwrite_what_is_no_demo(tmp_path):
    """A folder with anything else in it is refused by name."""
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(Conflict, match="--home"):
        run_demo(DemoOptions(home=tmp_path), lambda line: None)

    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_the_demo_captures_a_good_part_of_what_hours_can_give(tmp_path, capsys, seed):
    """At least .3 of (oracle - random) in true expected opens, and the learner ends nearer to the better arms."""
    report = demo(capsys, tmp_path / "home", "--seed", str(seed))
    check(report)
    print(json.dumps({"seed": seed, "hours": report["hours"], "models": report["models"]}, indent=1))

    assert report["hours"]["captured_share"] >= 0.3
    for experiment in report["experiments"]:
        best = max(experiment["arms"], key=lambda arm: arm["true_rate"])
        assert best["share_last_wave"] > best["share_first_wave"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [7, 8, 9])
def test_no_gain_is_claimed_where_hours_do_not_matter(tmp_path, capsys, seed):
    """In a world without an hour effect the model calls no hour best and the report claims nothing."""
    report = demo(capsys, tmp_path / "home", "--seed", str(seed), "--no-hour-effect")
    check(report)

    assert report["hours"]["captured_share"] is None
    assert report["hours"]["claimed_gain"] is False
    assert set(report["hours"]["reasons"]) == {"fallback"}


@pytest.mark.slow
def test_real_orders_go_round_the_loop(tmp_path, capsys, data_folder):
    """The order file's counts, the backtest's figures and a campaign to its customers."""
    path = data_folder / "online_retail_to_2011-08-31.parquet"
    report = demo(capsys, tmp_path / "home", "--orders", str(path))
    check(report)
    served = [row for row in report["backtest"]["conversion"] if row["model"] == "served"]
    roc_auc = sum(row["roc_auc"] for row in served) / len(served)
    brier = sum(row["brier"] for row in served) / len(served)
    print(f"{len(served)} cut-offs: ROC AUC {roc_auc:.4f}, Brier {brier:.4f}; import {report['import']}")

    assert len(served) == 3
    assert roc_auc >= 0.75
    assert brier <= 0.158


def test_a_demo_is_deaf_to_the_installation_around_it(tmp_path, monkeypatch):
    """Whatever the environment names, a demo's database, lake and registry lie in its own home."""
    monkeypatch.setenv("KAIROS_DATABASE_URL", "postgresql://elsewhere/production")
    monkeypatch.setenv("KAIROS_LAKE_URL", "s3://elsewhere/lake")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere")
    settings = DemoSettings(home=tmp_path)

    assert all(str(tmp_path) in place for place in (settings.database, settings.lake, settings.tracking_uri))
