"""Laws of the reports' endpoints and command: a reader's key opens them, CSV is CSV, bad ranges are refused."""

import json
from datetime import timedelta

import pytest

from service.campaigns import NewCampaign, create_campaign, schedule_campaign
from service.campaigns.report import read_sheet
from service.cli import main
from service.database import Database
from service.templates import add_template, bundled_template
from training.serving import Serving

NAME = '=HYPERLINK("x"),\nжизнь'


@pytest.fixture
def with_campaign(database, settings, add_contacts, now):
    """A database with a campaign of ten sends."""
    _fill(database, settings, add_contacts, now)
    return database


def _fill(database, settings, add_contacts, now):
    with database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        add_contacts(session, 10)
        new = NewCampaign(NAME, "offer", now, now + timedelta(days=1), {"everyone": True}, campaign_id="cmp_a")
        create_campaign(session, new, now=now)
        schedule_campaign(session, "cmp_a", Serving(), settings, now=now)


def test_reports_answer_a_reader(with_campaign, caller, now):
    """JSON and CSV of each; the file has a name, and its cells come back as the report has them."""
    read = caller("read")
    report = read("GET", "/v1/campaigns/cmp_a/report").json()
    listed = read("GET", "/v1/reports/campaigns").json()
    days = read("GET", "/v1/reports/overview?from=2026-03-01&until=2026-03-03").json()
    weeks = read("GET", "/v1/reports/overview?from=2026-03-01&until=2026-03-03&by=week").json()
    file = read("GET", "/v1/campaigns/cmp_a/report?format=csv")
    hours = read("GET", "/v1/reports/hours?format=csv")

    assert (report["planned"], report["name"]) == (10, NAME)
    assert [(one["campaign_id"], one["planned"]) for one in listed["items"]] == [("cmp_a", 10)]
    assert listed["next_cursor"] is None
    assert [row["planned"] for row in days["periods"]] == [0, 10, 0]
    assert [row["planned"] for row in weeks["periods"]] == [0, 10]
    assert file.headers["content-type"].startswith("text/csv")
    assert 'filename="campaign-cmp_a.csv"' in file.headers["content-disposition"]
    assert read_sheet(file.text.removeprefix("\ufeff"))[0]["name"] == NAME
    assert hours.status_code == 200
    csv = read("GET", "/v1/reports/overview?from=2026-03-01&until=2026-03-03&format=csv").text
    assert [row["planned"] for row in read_sheet(csv.removeprefix("\ufeff"))] == ["0", "10", "0"]


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/campaigns/nope/report", 404, "no campaign 'nope'"),
        ("/v1/reports/overview?from=2026-03-02&until=2026-03-01", 422, "lies before"),
        ("/v1/reports/overview?from=1990-01-01&until=2026-03-01", 422, "at most"),
        ("/v1/reports/overview?by=year", 422, "by"),
        ("/v1/reports/campaigns?cursor=x", 422, "cursor"),
    ],
)
def test_what_cannot_be_reported_says_why(client, caller, path, status, words):
    """A problem with the value and the remedy."""
    answer = caller("read")("GET", path)

    assert (answer.status_code, words in answer.text) == (status, True), answer.text
    assert caller("ingest")("GET", path).status_code == 403


def test_the_command_tells_the_same(settings, add_contacts, now, tmp_path, monkeypatch, capsys):
    """Lines, JSON and a CSV file; an unknown campaign fails with its reason, a bad day is a usage error."""
    database = Database(settings.database)
    database.upgrade()
    _fill(database, settings, add_contacts, now)
    database.close()
    monkeypatch.setenv("KAIROS_HOME", str(settings.home))

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as done:
            main(list(words))
        said = capsys.readouterr()
        return int(done.value.code or 0), said.out, said.err

    path = tmp_path / "days.csv"
    code, out, _ = run(
        "report", "overview", "--from", "2026-03-01", "--until", "2026-03-03", "--csv", str(path), "--json"
    )
    assert (code, json.loads(out)["totals"]["planned"]) == (0, 10)
    assert [row["planned"] for row in read_sheet(path.read_text(encoding="utf-8-sig"))] == ["0", "10", "0"]
    code, out, _ = run("report", "campaign", "cmp_a")
    assert code == 0
    assert "10 planned" in out
    assert "Not knowable" in out
    code, out, _ = run("report", "overview", "--from", "2026-03-01", "--until", "2026-03-03")
    assert (code, "attributed" in out) == (0, True)
    code, _, err = run("report", "campaign", "nope")
    assert (code, "no campaign 'nope'" in err) == (1, True)
    code, _, err = run("report", "overview", "--from", "3/1/2026")
    assert (code, "2026-03-02" in err) == (2, True)
    code, _, err = run("report", "overview", "--by", "year")
    assert (code, "day, week or month" in err) == (2, True)
