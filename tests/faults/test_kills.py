"""Workers that are killed, stopped and doubled: what arrives, and what the ledger says of it."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest
from sqlalchemy import func, select

from service.database import Database
from service.errors import Conflict
from service.tables import SendRow
from tests.faults.nemesis import kill_again_and_again, pause
from tests.faults.processes import wait_for
from tests.faults.town import OPEN_STATES, BuildTown

#: In short: each fault on one database, each database under one policy or more; the long runs are the whole table.
SHORT = [("sqlite", "hold"), pytest.param("postgresql", "resend", marks=pytest.mark.postgres)]


def run_of_kills(build_town: BuildTown, kind: str, policy: str, *, n_people: int, kills: int) -> None:
    """Kill workers of a campaign, let the last one finish, compare."""
    town = build_town(kind, n_people, crash_policy=policy)
    town.send_to_everybody(holdout_share=0.05)
    begin = time.monotonic()
    kill_again_and_again(town, kills, random.Random(f"{kind} {policy}"), leavers=max(1, n_people // 1000))
    town.finish(seconds=600)
    report = town.check(crashes=kills)
    print(f"\n{kind}, {policy}: {n_people} sends, {kills} kills, {time.monotonic() - begin:.0f} s: {report}")

    assert report.violations == []
    assert sum(report.by_state.values()) == n_people
    assert report.by_state["accepted"] > 0.8 * n_people


@pytest.mark.parametrize(("kind", "policy"), SHORT)
def test_workers_killed_at_any_moment_lose_and_double_nothing(build_town: BuildTown, kind: str, policy: str) -> None:
    """Policy hold: nothing twice, what was in the air is unknown. Resend: nothing lost, what was in the air twice."""
    run_of_kills(build_town, kind, policy, n_people=120, kills=2)


@pytest.mark.faults
@pytest.mark.parametrize("policy", ["hold", "resend"])
def test_fifty_kills_in_ten_thousand_mails(build_town: BuildTown, database_kind: str, policy: str) -> None:
    """The figures of the promise: 50 × kill -9 in 10,000 mails."""
    run_of_kills(build_town, database_kind, policy, n_people=10_000, kills=50)


@pytest.mark.postgres
def test_a_stopped_worker_overwrites_nothing_when_it_goes_on(build_town: BuildTown) -> None:
    """SIGSTOP beyond the lease, another worker takes over, SIGCONT: the ledger stays as the other one wrote it."""
    stop_and_go_on(build_town, "postgresql", "hold", n_people=150)


@pytest.mark.faults
@pytest.mark.parametrize("policy", ["hold", "resend"])
def test_stopped_workers_of_a_large_campaign(build_town: BuildTown, database_kind: str, policy: str) -> None:
    """As above, ten workers one after the other in one campaign, all of them going on at the end."""
    stop_and_go_on(build_town, database_kind, policy, n_people=10_000, stops=10)


def stop_and_go_on(build_town: BuildTown, kind: str, policy: str, *, n_people: int, stops: int = 1) -> None:
    """Stop worker after worker, let another finish the campaign, let the stopped ones go on."""
    town = build_town(kind, n_people, crash_policy=policy)
    town.send_to_everybody()
    asleep = []
    for _ in range(stops):
        worker, before = town.worker(), town.sink.count
        wait_for(lambda before=before: town.sink.count > before, 180, "a mail arrives")
        pause(town, worker)
        asleep.append(worker)
        town.end_leases()
    town.finish(seconds=600)
    written = town.ledger()
    for worker in asleep:
        worker.signal(signal.SIGCONT)
    for worker in asleep:
        worker.stop()
    report = town.check(crashes=stops)
    print(f"\n{kind}, {policy}: {n_people} sends, {stops} workers stopped: {report}")

    assert town.ledger() == written
    assert report.violations == []
    assert sum(report.by_state.values()) == n_people


def test_two_workers_and_two_schedulers_share_without_a_double(build_town: BuildTown) -> None:
    """Two campaigns to the same people, each scheduled by two at once, two workers, one mail a contact by the cap."""
    share(build_town, "sqlite", n_people=100)


@pytest.mark.faults
def test_two_workers_and_two_schedulers_share_forty_thousand(build_town: BuildTown, database_kind: str) -> None:
    """As above, with 40,000 sends."""
    share(build_town, database_kind, n_people=20_000)


def share(build_town: BuildTown, kind: str, *, n_people: int) -> None:
    """Two workers run while each of two campaigns is scheduled twice, at once."""
    town = build_town(kind, n_people, frequency_cap=1)
    campaigns = [town.new_campaign(name=name) for name in ("first", "second")]
    workers = [town.worker() for _ in range(2)]
    refused: list[str] = []
    start = threading.Barrier(4)

    def schedule(campaign_id: str) -> None:
        own = Database(town.settings.database)
        start.wait()
        try:
            town.schedule(campaign_id, own)
        except Conflict as conflict:
            refused.append(str(conflict))
        finally:
            own.close()

    threads = [threading.Thread(target=schedule, args=(campaign_id,)) for campaign_id in campaigns for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: not town.count(*OPEN_STATES), 900, "every send ends")
    for worker in workers:
        worker.stop()
    report = town.check()
    print(f"\n{kind}: 2 x {n_people} sends, two workers, two schedulers: {report}")

    assert len(refused) == 2
    assert report.violations == []
    assert sum(report.by_state.values()) == 2 * n_people
    assert report.by_state["accepted"] == n_people == report.deliveries


@pytest.mark.faults
@pytest.mark.postgres
def test_a_waiting_worker_takes_over_when_the_lease_ends(build_town: BuildTown) -> None:
    """The real leases, waited for: another worker goes on within five seconds of their end."""
    town = build_town("postgresql", 200)
    town.send_to_everybody()
    dead = town.worker()
    wait_for(lambda: town.sink.count > 20, 180, "mails arrive")
    dead.kill()
    mails = town.sink.count
    with town.database.reading() as session:
        leases = session.execute(
            select(SendRow.state, func.min(SendRow.lease_until), func.max(SendRow.lease_until))
            .where(SendRow.state.in_(("claimed", "attempting")))
            .group_by(SendRow.state)
        )
        ends = {state: (first, last) for state, first, last in leases}
    waiting = town.worker()
    claimed_until = ends["claimed"][0].timestamp()
    wait_for(lambda: town.sink.count > mails, claimed_until - time.time() + 60, "the waiting worker goes on")
    resumed = time.time() - claimed_until
    wait_for(
        lambda: not town.count(*OPEN_STATES), ends["attempting"][1].timestamp() - time.time() + 60, "every send ends"
    )
    ended = time.time() - ends["attempting"][1].timestamp()
    waiting.kill()
    report = town.check(crashes=1)
    print(f"\nresumed {resumed:.1f} s after the claims' lease, ended {ended:.1f} s after the last attempt's: {report}")

    assert report.violations == []
    assert 0 <= resumed < 5
    assert ended < 5
