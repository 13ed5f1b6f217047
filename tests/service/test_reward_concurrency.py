"""Rewards from many processes, each delivered twice, everybody killed at random: the counts are exact all the same."""

import random
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, insert, select

from features.events import append
from features.tables import allocate, to_micros
from service.database import Database
from service.flow.decide import decide_for, open_experiment
from service.flow.reward import learn, rebuild, statistics
from service.tables import ContactRow, DecisionRow, EventRow
from tests.service.flow.shown import assert_same, events_of, new_experiment, state

ROOT = Path(__file__).parents[2]


def decisions(database: Database, count: int) -> str:
    """An experiment with ``count`` decisions that were shown."""
    now = datetime.now(UTC) - timedelta(hours=1)
    with database.writing() as session:
        first = allocate(session, "contact_key", count)
        keys = list(range(first, first + count))
        contact = {"traits": {}, "created_at": now, "updated_at": now}
        session.execute(insert(ContactRow), [contact | {"contact_key": k, "user_id": f"u{k}"} for k in keys])
        experiment_id = open_experiment(session, new_experiment(), now=now)
        decide_for(session, experiment_id, keys, "x", now=now)
    with database.writing() as session:
        rows = session.scalars(select(DecisionRow)).all()
        append(session, events_of(rows, now), received_at=to_micros(now))
    return experiment_id


def begin(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.service.reward_writers", *arguments], cwd=ROOT)


def run_with_kills(url: str, processes: int, stop: Path, kills: int, every: float) -> int:
    """All reporters to their end beside a worker, killing one of them ``kills`` times; returns how many were killed."""
    luck = random.Random(7)
    jobs = {f"r{n}": ("report", url, str(n), str(processes)) for n in range(processes)}
    running = {name: begin(*arguments, "0") for name, arguments in jobs.items()}
    running["worker"] = begin("learn", url, str(stop))
    killed = 0
    begun = time.monotonic()
    while killed < kills or any(process.poll() is None for name, process in running.items() if name != "worker"):
        assert time.monotonic() - begun < 1_500, "the reporters did not end"
        time.sleep(every)
        alive = sorted(name for name, process in running.items() if process.poll() is None)
        if killed < kills and alive:
            name = "worker" if killed % 3 == 0 else luck.choice(alive)
            running[name].kill()
            running[name].wait()
            killed += 1
            again = ("learn", url, str(stop)) if name == "worker" else (*jobs[name], str(killed))
            running[name] = begin(*again)
    stop.touch()
    assert running["worker"].wait(timeout=300) == 0
    assert all(process.returncode == 0 for process in running.values())
    return killed


def prove(database: Database, url: str, folder: Path, processes: int, each: int, kills: int, every: float) -> None:
    experiment_id = decisions(database, processes * each)
    killed = run_with_kills(url, processes, folder / "stop", kills, every)
    now = datetime.now(UTC)
    with database.writing() as session:
        counts = statistics(session, experiment_id, now=now)
        rewards = session.scalar(select(func.count()).where(EventRow.kind == "Reward Received"))
        live = state(session)
        rebuild(session)
        learn(session, now=now)
        again = state(session)
    print(f"{processes} × {each} rewards, each twice, {killed} kills: {int(counts.successes.sum())} successes")

    assert killed == kills
    assert rewards == processes * each
    assert counts.trials.sum() == counts.successes.sum() == len(live["rewards"]) == processes * each
    assert_same(again, live)


def url_of(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def test_rewards_are_counted_exactly_though_reporters_and_worker_die(database, tmp_path):
    """Two processes of 500 rewards each, every one delivered twice, beside a worker; two kills."""
    prove(database, url_of(database), tmp_path, processes=2, each=500, kills=2, every=1.0)


@pytest.mark.slow
@pytest.mark.parametrize("on", ["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def test_eight_times_ten_thousand_rewards_are_counted_exactly(request, tmp_path, on):
    """Each delivered twice, one of nine processes killed every second or so: exact, and a rebuild gives the same."""
    database = request.getfixturevalue("database" if on == "sqlite" else "postgres")
    prove(database, url_of(database), tmp_path, processes=8, each=10_000, kills=20, every=1.5)
