"""Laws of campaigns over HTTP: drafts that change, approval by another key, second thoughts, corrections."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from service.campaigns import (
    NewCampaign,
    create_campaign,
    edit_campaign,
    lifecycle,
    prepare_campaign,
    schedule_prepared,
)
from service.clock import SimulatedClock
from service.database import Database
from service.erase import erase_contacts
from service.errors import Conflict
from service.experiments import add_arm
from service.flow.decide import Arm, NewExperiment, open_experiment
from service.settings import Settings
from service.tables import DecisionRow, SendRow
from service.templates import add_template, bundled_template
from tests.service.calling import Caller, Client
from training.serving import Serving

ARMS = (Arm("a", "One"), Arm("b", "Two"))


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """More than five recipients need an approval."""
    return settings.model_copy(update={"approval_above": 5})


@pytest.fixture
def people(database: Database, add_contacts: Callable[..., list[int]], now: datetime) -> list[int]:
    """Ten contacts who want mail, and a template."""
    with database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        return add_contacts(session, 10)


@pytest.fixture
def draft(people: list[int], caller: Callable[..., Caller], now: datetime) -> Callable[..., str]:
    """Makes a draft and gives its path."""

    def make(key: Caller | None = None, **changes: Any) -> str:
        body = {
            "name": "News",
            "template_id": "offer",
            "audience": {"everyone": True},
            "window_start": now.isoformat(),
            "window_end": (now + timedelta(hours=8)).isoformat(),
            "timing": "at_start",
        }
        answer = (key or caller("write"))("POST", "/v1/campaigns", json=body | changes)
        assert answer.status_code == 201, answer.text
        return f"/v1/campaigns/{answer.json()['id']}"

    return make


@pytest.fixture
def scheduled(draft: Callable[..., str], caller: Callable[..., Caller]) -> str:
    """Path of a campaign to ten contacts that was approved and scheduled."""
    path = draft()
    sender = caller("send")
    assert sender("POST", f"{path}/approve").status_code == 200
    assert sender("POST", f"{path}/schedule").status_code == 200
    return path


def refused(answer: Any, status: int, *words: str) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    for word in words:
        assert word in answer.json()["detail"]


# -- drafts --------------------------------------------------------------------------------------------------------


def test_a_draft_changes_and_a_scheduled_campaign_does_not(
    draft: Callable[..., str], caller: Callable[..., Caller], now: datetime
) -> None:
    """What is left out stays; who changed it is kept."""
    path, editor, sender = draft(), caller("write", "read"), caller("send")
    later = now + timedelta(hours=9)
    audience = {"user_ids": ["u1", "u2"]}
    changed = editor("PATCH", path, json={"audience": audience, "window_end": later.isoformat(), "canary_share": 0.1})
    assert changed.status_code == 200
    shown = editor("GET", path).json()
    assert (shown["audience"], shown["window_end"], shown["canary_share"]) == (
        audience,
        later.isoformat().replace("+00:00", "Z"),
        0.1,
    )
    assert (shown["name"], shown["timing"], shown["template_version"]) == ("News", "at_start", 1)
    assert len(shown["editors"]) == 1
    assert shown["created_by"] not in shown["editors"]
    assert sender("POST", f"{path}/schedule").status_code == 200
    refused(editor("PATCH", path, json={"name": "Other"}), 409, "scheduled", "only a draft")


NONSENSE: list[tuple[dict[str, Any], int, str]] = [
    ({"audience": {"nobody": True}}, 422, "not understood"),
    ({"audience": {"sends_of": {"campaign": "cmp_none"}}}, 404, "cmp_none"),
    ({"audience": {"sends_of": {"campaign": "c", "state": "x"}}}, 422, "'state'"),
    ({"audience": {"sends_of": {"campaign": "c", "states": ["planned"]}}}, 422, "planned"),
    ({"audience": {"sends_of": {"campaign": "c", "from": "yesterday"}}}, 422, "'yesterday'"),
    ({"audience": {"sends_of": {"campaign": "c", "arm": "a"}}}, 422, "experiment"),
    ({"audience": {"sends_of": {"campaign": "c", "template_version": True}}}, 422, "template_version"),
    ({"window_end": "2020-01-01T00:00:00Z"}, 422, "not after"),
    ({"window_end": "2026-05-01T00:00:00"}, 422, "time zone"),
    ({"template_id": "none"}, 404, "'none'"),
    ({"template_version": 7}, 404, "version 7"),
    ({"experiments": ["exp_none"]}, 404, "exp_none"),
    ({"canary_share": 0.9}, 422, "canary_share"),
    ({"waves": 3, "timing": "spread"}, 422, "3 waves"),
    ({"status": "scheduled"}, 422, "status"),
]


def test_a_change_that_makes_no_sense_is_refused_and_changes_nothing(
    draft: Callable[..., str], caller: Callable[..., Caller]
) -> None:
    """The problem names the value."""
    path, key = draft(), caller("write", "read")
    before = key("GET", path).json()
    for changes, status, words in NONSENSE:
        refused(key("PATCH", path, json=changes), status, words)
    assert key("GET", path).json() == before


def test_a_template_comes_back_at_any_version_and_campaigns_stay_at_theirs(
    draft: Callable[..., str], caller: Callable[..., Caller]
) -> None:
    """Version 3 equals version 1; a draft moves only when it is told to."""
    key = caller("write", "read")
    path = draft()
    first = key("GET", "/v1/templates/offer").json()
    other = {"id": "offer", "subject": "Other", "source": "<p>Other</p>", "source_format": "html"}
    assert key("POST", "/v1/templates", json=other).json()["version"] == 2
    restored = key("POST", "/v1/templates/offer/restore", json={"version": 1})
    assert (restored.status_code, restored.json()["version"]) == (201, 3)
    own = {"version": 1, "created_at": 0, "versions": []}
    assert key("GET", "/v1/templates/offer").json() | own == first | own
    refused(key("POST", "/v1/templates/offer/restore", json={"version": 9}), 404, "version 9")
    assert key("PATCH", path, json={"name": "Still"}).json()["template_version"] == 1
    assert key("PATCH", path, json={"template_version": 2}).json()["template_version"] == 2
    assert key("PATCH", path, json={"template_id": "offer"}).json()["template_version"] == 3


# -- approval ------------------------------------------------------------------------------------------------------


def test_a_large_campaign_needs_another_key(draft: Callable[..., str], caller: Callable[..., Caller]) -> None:
    """Neither who made it nor who changed it may approve it; a small one needs nobody."""
    maker, editor, sender = caller("write", "send"), caller("write", "send"), caller("send")
    path = draft(maker)
    refused(sender("POST", f"{path}/schedule"), 409, "10 contacts", "5", "not approved", f"POST {path}/approve")
    assert sender("POST", f"{path}/schedule").json()["recipients"] == 10
    refused(maker("POST", f"{path}/approve"), 403, "another key")
    assert editor("PATCH", path, json={"name": "Edited"}).status_code == 200
    refused(editor("POST", f"{path}/approve"), 403, "changed")
    assert caller("write")("PATCH", path, json={"name": "Edited again"}).status_code == 200
    refused(editor("POST", f"{path}/approve"), 403, "changed")
    refused(caller("write")("POST", f"{path}/approve"), 403, "send")
    approved = sender("POST", f"{path}/approve").json()
    assert approved["approved_by"] not in (None, approved["created_by"])
    assert maker("POST", f"{path}/schedule").status_code == 200
    small = draft(maker, audience={"user_ids": ["u1", "u2"]})
    assert maker("POST", f"{small}/schedule").status_code == 200
    refused(sender("POST", f"{small}/approve"), 409, "only a draft")


def test_an_approval_holds_for_what_was_approved(
    draft: Callable[..., str], caller: Callable[..., Caller], database: Database, now: datetime
) -> None:
    """Any change of the mails or of whom they go to voids it, an arm that was added to an experiment among them."""
    with database.writing() as session:
        experiment = open_experiment(session, NewExperiment("One", "subject", ARMS), now=now)
    maker, sender = caller("write", "send", "read"), caller("send")
    path = draft(maker, experiments=[experiment])
    for changes in (
        {"audience": {"user_ids": [f"u{i}" for i in range(8)]}},
        {"window_end": (now + timedelta(hours=7)).isoformat()},
        {"template_id": "offer"},
    ):
        assert sender("POST", f"{path}/approve").json()["approved_at"] is not None
        assert maker("PATCH", path, json=changes).json()["approved_at"] is None
        refused(maker("POST", f"{path}/schedule"), 409, "it is not approved")
    assert sender("POST", f"{path}/approve").status_code == 200
    added = maker("POST", f"/v1/experiments/{experiment}/arms", json={"id": "c", "text": "Free!"})
    assert added.status_code < 300, added.text
    refused(maker("POST", f"{path}/schedule"), 409, "changed after it was approved")
    assert sender("POST", f"{path}/approve").status_code == 200
    assert maker("POST", f"{path}/schedule").status_code == 200


def test_no_text_comes_into_a_campaign_after_it_was_approved(
    draft: Callable[..., str], caller: Callable[..., Caller], clock: SimulatedClock, database: Database, now: datetime
) -> None:
    """Until its last mail may leave, or it is cancelled; what takes text away is never refused."""
    with database.writing() as session:
        experiment = open_experiment(session, NewExperiment("One", "subject", ARMS), now=now)
    maker, sender = caller("write", "send", "read"), caller("send")
    path, arms = draft(maker, experiments=[experiment]), f"/v1/experiments/{experiment}/arms"
    small = draft(maker, experiments=[experiment], audience={"user_ids": ["u1"]})
    assert maker("POST", f"{small}/schedule").status_code == 200
    assert maker("POST", arms, json={"id": "c", "text": "Before"}).status_code == 201
    sender("POST", f"{path}/approve")
    assert sender("POST", f"{path}/schedule").status_code == 200
    campaign = path.rpartition("/")[2]
    refused(maker("POST", arms, json={"id": "d", "text": "Free!"}), 409, campaign, "approved", "cancel")
    refused(maker("PATCH", f"{arms}/a", json={"text": "Free!"}), 409, campaign)
    assert maker("PATCH", f"{arms}/c", json={"status": "paused"}).status_code == 200
    again = draft(maker, experiments=[experiment], audience={"user_ids": ["u2"]})
    sender("POST", f"{again}/approve")
    assert sender("POST", f"{again}/schedule").status_code == 200
    assert sender("POST", f"{path}/cancel").status_code == 200
    refused(maker("POST", arms, json={"id": "d", "text": "Free!"}), 409, again.rpartition("/")[2])
    clock.move_to(now + timedelta(hours=9, minutes=1))
    assert maker("POST", arms, json={"id": "d", "text": "After"}).status_code == 201


def test_others_write_while_a_campaign_is_placed(
    draft: Callable[..., str], caller: Callable[..., Caller], database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop, and whatever else: the write lock is free until the sends are known."""
    held: list[bool] = []
    place = lifecycle.planned_sends

    def slowly(*given: Any) -> Any:
        taken = client_lock.acquire(blocking=False)
        held.append(not taken)
        if taken:
            client_lock.release()
        return place(*given)

    path, sender = draft(audience={"user_ids": ["u1", "u2"]}), caller("send")
    client_lock: Any = sender.client.app.state.installation.database._write_lock
    monkeypatch.setattr(lifecycle, "planned_sends", slowly)
    assert sender("POST", f"{path}/schedule").status_code == 200
    assert held == [False]


@pytest.mark.parametrize("what", ["draft", "arm", "scheduled", "erased"])
def test_what_changes_while_a_campaign_is_placed_is_seen(
    any_database: Database, settings: Settings, add_contacts: Callable[..., list[int]], now: datetime, what: str
) -> None:
    """What was changed or scheduled by somebody else refuses it; contacts who were erased are left out."""
    settings = settings.model_copy(update={"approval_above": 0})
    with any_database.writing() as session:
        add_template(session, bundled_template("offer"), now=now)
        keys = add_contacts(session, 5)
        experiment = open_experiment(session, NewExperiment("One", "subject", ARMS), now=now)
        new = NewCampaign("News", "offer", now, now + timedelta(hours=8), {"everyone": True}, [experiment])
        campaign_id = create_campaign(session, new, now=now)
    with any_database.reading() as session:
        prepared = prepare_campaign(session, campaign_id, Serving(), settings, now=now)
    if what == "draft":
        with any_database.writing() as session:
            edit_campaign(session, campaign_id, {"topic": "offers"})
    elif what == "arm":
        with any_database.writing() as session:
            add_arm(session, experiment, Arm("c", "Three"), who="test", now=now)
    elif what == "scheduled":
        with any_database.writing() as session:
            schedule_prepared(session, prepared, settings, now=now)
    else:
        erase_contacts(any_database, settings, ["u1"], now=now)
        with any_database.writing() as session:
            assert sum(schedule_prepared(session, prepared, settings, now=now).values()) == 4
            assert set(session.scalars(select(SendRow.contact_key))) == set(keys) - {keys[1]}
        return
    words = "only a draft" if what == "scheduled" else "changed while"
    with any_database.writing() as session, pytest.raises(Conflict, match=words):
        schedule_prepared(session, prepared, settings, now=now)


def test_of_several_who_schedule_at_once_one_wins(
    draft: Callable[..., str], client: Client, caller: Callable[..., Caller], database: Database
) -> None:
    """The others are told that it is scheduled; each contact is in the ledger once."""
    path = draft(audience={"user_ids": ["u1", "u2"]})
    headers = {"Authorization": f"Bearer {caller('send').secret}"}

    async def all_at_once() -> list[int]:
        calls = [client.http.post(f"{path}/schedule", headers=headers) for _ in range(4)]
        return sorted(answer.status_code for answer in await asyncio.gather(*calls))

    assert client.runner.run(all_at_once()) == [200, 409, 409, 409]
    with database.reading() as session:
        assert len(session.scalars(select(SendRow.send_id)).all()) == 2


# -- second thoughts -----------------------------------------------------------------------------------------------


def test_a_campaign_shows_who_paused_it_and_why(
    scheduled: str, caller: Callable[..., Caller], clock: SimulatedClock, now: datetime
) -> None:
    """Paused with its reason, resumed, cancelled for good; what makes no sense is refused."""
    sender, reader = caller("send"), caller("read")
    refused(reader("POST", f"{scheduled}/pause"), 403, "send")
    paused = sender("POST", f"{scheduled}/pause", json={"reason": "wrong price"}).json()
    assert (paused["status"], paused["status_reason"], paused["taken_back"]) == ("paused", "wrong price", 0)
    assert sender("POST", f"{scheduled}/pause", json={"reason": "again"}).json()["status_reason"] == "wrong price"
    shown = reader("GET", scheduled).json()
    assert shown["status_by"] == paused["status_by"]
    assert shown["status_at"] == now.isoformat().replace("+00:00", "Z")
    assert (shown["sends"]["planned"], shown["sends"]["accepted"], shown["corrections"]) == (10, 0, [])
    resumed = sender("POST", f"{scheduled}/resume").json()
    assert (resumed["status"], resumed["planned"], resumed["expired"], resumed["postponed"]) == ("scheduled", 10, 0, 0)
    refused(sender("POST", f"{scheduled}/resume"), 409, "only a paused one")
    cancelled = sender("POST", f"{scheduled}/cancel", json={"reason": "over"}).json()
    assert (cancelled["cancelled"], cancelled["sends"]["cancelled"], cancelled["status_reason"]) == (10, 10, "over")
    assert sender("POST", f"{scheduled}/cancel").json()["cancelled"] == 0
    refused(sender("POST", f"{scheduled}/pause"), 409, "cancelled")
    refused(sender("POST", f"{scheduled}/pause", json={"reason": ""}), 422, "reason")


def test_what_is_resumed_too_late_expires_with_the_reason(
    scheduled: str, caller: Callable[..., Caller], clock: SimulatedClock, now: datetime
) -> None:
    """Nothing is sent late without saying so."""
    sender = caller("send", "read")
    sender("POST", f"{scheduled}/pause", json={"reason": "wrong price"})
    clock.move_to(now + timedelta(days=3))
    assert sender("POST", f"{scheduled}/resume").json()["expired"] == 10
    sends = sender("GET", f"{scheduled}/sends").json()["items"]
    assert {send["state"] for send in sends} == {"expired"}
    assert "its campaign was paused (wrong price)" in sends[0]["reason"]


def test_what_is_resumed_at_night_leaves_in_the_morning(
    draft: Callable[..., str], caller: Callable[..., Caller], clock: SimulatedClock, now: datetime
) -> None:
    """Quiet hours of the contact hold for mails that waited behind a halt of everything."""
    sender = caller("send", "read")
    window_end = (now + timedelta(days=2)).isoformat()
    path = draft(audience={"user_ids": ["u1", "u2"]}, window_end=window_end)
    sender("POST", f"{path}/schedule")
    assert sender("POST", "/v1/stop", json={"reason": "wrong price"}).status_code == 200
    clock.move_to(now.replace(hour=23))
    resumed = sender("POST", "/v1/resume").json()
    assert (resumed["lifted"], resumed["postponed"], resumed["expired"]) == (True, 2, 0)
    due = {send["due_at"] for send in sender("GET", f"{path}/sends").json()["items"]}
    assert due == {(now.replace(hour=7) + timedelta(days=1)).isoformat().replace("+00:00", "Z")}


def test_a_stop_is_shown_and_lifted(caller: Callable[..., Caller], people: list[int]) -> None:
    """With its reason and who it was; scopes that do not exist are refused; lifting nothing says so."""
    sender, reader = caller("send"), caller("read")
    assert reader("GET", "/v1/stop").json() == {"stopped": False, "halts": []}
    refused(reader("POST", "/v1/stop", json={"reason": "x"}), 403, "send")
    refused(sender("POST", "/v1/stop", json={}), 422, "reason")
    refused(sender("POST", "/v1/stop", json={"reason": "x", "scope": "stream:news"}), 422, "stream:marketing")
    stopped = sender("POST", "/v1/stop", json={"reason": "wrong price"}).json()
    assert (stopped["stopped"], stopped["halts"][0]["reason"], stopped["taken_back"]) == (True, "wrong price", 0)
    sender("POST", "/v1/stop", json={"reason": "too many bounces", "scope": "mailbox:gmail"})
    assert [halt["scope"] for halt in reader("GET", "/v1/stop").json()["halts"]] == ["everything", "mailbox:gmail"]
    assert sender("POST", "/v1/resume").json()["stopped"] is False
    assert sender("POST", "/v1/resume").json()["lifted"] is False
    assert [halt["scope"] for halt in reader("GET", "/v1/stop").json()["halts"]] == ["mailbox:gmail"]
    assert sender("POST", "/v1/resume", json={"scope": "mailbox:gmail"}).json()["halts"] == []


# -- corrections ---------------------------------------------------------------------------------------------------


def test_a_correction_goes_to_exactly_those_who_got_the_wrong_mail(
    scheduled: str, caller: Callable[..., Caller], database: Database, now: datetime
) -> None:
    """Accepted and unknown, narrowed by arm and time; the report of the wrong one names it."""
    key = caller("write", "read")
    with database.writing() as session:
        sends = session.execute(select(SendRow.send_id, SendRow.contact_key).order_by(SendRow.send_id)).all()
        states = ["accepted"] * 4 + ["unknown"] * 2 + ["failed", "held_out", "cancelled", "planned"]
        for place, ((send_id, contact_key), state) in enumerate(zip(sends, states, strict=True)):
            session.execute(
                update(SendRow)
                .where(SendRow.send_id == send_id)
                .values(state=state, finished_at=now + timedelta(minutes=place))
            )
            session.add(decision(send_id, contact_key, "a" if place % 2 else "b", now, is_holdout=place == 1))
    made = key("POST", f"{scheduled}/correct", json={"template_id": "offer"})
    assert made.status_code == 201, made.text
    assert (made.json()["corrects"], made.json()["timing"], made.json()["status"]) == (
        scheduled.rpartition("/")[2],
        "at_start",
        "draft",
    )
    assert made.json()["name"] == "Correction of News"

    def audience(**whom: Any) -> int:
        path = key("POST", f"{scheduled}/correct", json={"template_id": "offer", **whom}).json()["id"]
        return int(key("POST", f"/v1/campaigns/{path}/plan").json()["audience"])

    assert audience() == 6
    assert audience(states=["unknown"]) == 2
    assert audience(arm={"experiment": "exp", "arm": "a"}) == 2  # the ghost of a holdout saw nothing
    assert audience(arm={"experiment": "exp", "arm": "b"}) == 3
    at = [(now + timedelta(minutes=minutes)).isoformat() for minutes in (2, 4)]
    assert audience(**{"from": at[0], "until": at[1]}) == 2
    assert audience(template_version=1) == 6
    assert audience(template_version=2) == 0
    shown = key("GET", scheduled).json()
    assert len(shown["corrections"]) == 8
    assert made.json()["id"] in shown["corrections"]
    assert key("GET", f"/v1/campaigns/{made.json()['id']}").json()["corrects"] == scheduled.rpartition("/")[2]


def decision(send_id: int, contact_key: int, arm: str, now: datetime, *, is_holdout: bool) -> DecisionRow:
    return DecisionRow(
        decision_id=f"dec_{send_id}",
        experiment_id="exp",
        contact_key=contact_key,
        occurrence=f"send:{send_id}",
        send_id=send_id,
        snapshot_id="s",
        wave=1,
        arm_id=arm,
        propensity=0.5,
        draw=0.5,
        eligible=["a", "b"],
        is_holdout=is_holdout,
        reason="drawn",
        decided_at=now,
    )


def test_a_correction_may_pass_the_cap_by_one(
    scheduled: str, caller: Callable[..., Caller], database: Database, now: datetime
) -> None:
    """Who had three mails of three still gets the correction; a further newsletter, and a second correction, not."""
    key = caller("write", "send", "read")
    with database.writing() as session:
        session.execute(update(SendRow).values(state="accepted", finished_at=now))
    for _ in range(2):
        extra = key("POST", f"{scheduled}/correct", json={"template_id": "offer"}).json()["id"]
        caller("send")("POST", f"/v1/campaigns/{extra}/approve")
        assert key("POST", f"/v1/campaigns/{extra}/schedule").json()["counts"] == {"planned": 10}
    path = f"/v1/campaigns/{key('POST', f'{scheduled}/correct', json={'template_id': 'offer'}).json()['id']}"
    assert key("POST", f"{path}/plan").json()["counts"] == {"planned": 10}
    news = key("PATCH", path, json={"name": "Fourth"})
    assert news.status_code == 200
    caller("send")("POST", f"{path}/approve")
    key("POST", f"{path}/schedule")
    path = f"/v1/campaigns/{key('POST', f'{scheduled}/correct', json={'template_id': 'offer'}).json()['id']}"
    assert list(key("POST", f"{path}/plan").json()["counts"]) == ["suppressed: frequency cap: 4 mails in 7 days"]


def test_only_what_was_sent_can_be_corrected(draft: Callable[..., str], caller: Callable[..., Caller]) -> None:
    """A draft has no wrong mails."""
    refused(caller("write")("POST", f"{draft()}/correct", json={"template_id": "offer"}), 409, "never scheduled")


# -- the sandbox ---------------------------------------------------------------------------------------------------


def test_a_plan_counts_whom_the_sandbox_keeps_out(
    database: Database, people: list[int], settings: Settings, now: datetime
) -> None:
    """Only allowed addresses are planned; the others are counted with the reason."""
    from service.campaigns import NewCampaign, create_campaign, plan_campaign
    from training.serving import Serving

    here = settings.model_copy(update={"sandbox": "u3@example.com, @kairos.example"})
    with database.writing() as session:
        new = NewCampaign("News", "offer", now, now + timedelta(hours=8), {"everyone": True})
        plan = plan_campaign(session, create_campaign(session, new, now=now), Serving(), here, now=now)
    assert plan.counts == {
        "planned": 1,
        "suppressed: sandbox: the address is not among those that KAIROS_SANDBOX allows": 9,
    }
