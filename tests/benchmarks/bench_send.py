"""Mails a second through real SMTP to a local sink, beside a bare pooled loop that sends one ready-made mail.

The bare loop is aiosmtplib with eight connections, all of them busy, sending the same bytes again and again: no
database, no template, no headers of its own. Ours are workers as an operator starts them (``kairos worker``), with a
template (MJML, Liquid, a text twin), an experiment of three subject lines, tracked links and the ledger, each mail's
states on disk (SQLite with ``synchronous=FULL``, PostgreSQL with ``fsync``). Arms are drawn before; the planner and the
draw are measured by others. The sink is a process of its own (`tests.benchmarks.fast_sink`).

``KAIROS_BENCH_SENDS=200000`` adds the long run that holds a worker's memory at 50,000 mails against that at the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import cProfile
import json
import os
import pstats
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select, text

from features.contacts import resolve, update_traits
from features.tables import allocate
from service.database import Database
from service.flow.decide import Arm, NewExperiment, decide, open_experiment
from service.flow.render import compile_template, gather, render
from service.links import LinkBook
from service.settings import Settings
from service.suppression import Consent, set_consent
from service.tables import CampaignRow, SendRow, TemplateRow
from tests.benchmarks.fast_sink import FastSink

ROOT = Path(__file__).parents[2]
OFFER = (ROOT / "templates" / "email" / "offer.mjml").read_text()
CONNECTIONS = 8
N_BARE, N_SENDS = 10_000, 10_000
#: Sends of the long run; 0 leaves it out.
LONG = int(os.environ.get("KAIROS_BENCH_SENDS", "0"))
RATE = 1_000_000
EXPERIMENT = NewExperiment(
    "Subject", "subject", tuple(Arm(f"arm_{n}", f"{{{{ first_name }}}}, offer {n}") for n in range(3))
)


def run() -> dict[str, Any]:
    """Mails a second: bare, one worker, two workers; ratios to the bare loop; where a worker's time goes."""
    report: dict[str, Any] = {"connections": CONNECTIONS, "mails": N_SENDS, "cores": os.cpu_count()}
    bare = [_bare()]
    for where, opened in (("sqlite", _sqlite), ("postgresql", _postgresql)):
        with opened() as url:
            if url is None:
                report[where] = "initdb and pg_ctl are not on PATH"
                continue
            for workers in (1, 2):
                report[f"{where}_{workers}"] = _worked(url(), workers)
            bare.append(_bare())
    report["bare"] = max(bare, key=lambda one: one["per_second"]) | {"runs": [one["per_second"] for one in bare]}
    for name, found in report.items():
        if name.startswith(("sqlite_", "postgresql_")):
            found["of_bare"] = round(found["per_second"] / report["bare"]["per_second"], 3)
    report["profile"] = _profile()
    if LONG:
        with _sqlite() as url:
            report["memory"] = _worked(url(), 1, LONG)
    return report


# -- the bare loop ---------------------------------------------------------------------------------


def _bare() -> dict[str, float]:
    """aiosmtplib, eight connections, one ready-made mail of the same size."""
    with FastSink() as sink, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mail.eml"
        path.write_bytes(_ready_made())
        code = f"from tests.benchmarks.bench_send import bare_loop; bare_loop({sink.port}, {str(path)!r}, {N_BARE})"
        began = os.times().children_user + os.times().children_system
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        cpu = os.times().children_user + os.times().children_system - began
        return _speed(sink.counts(), N_BARE) | {"sender_cpu_ms_a_mail": round(1000 * cpu / N_BARE, 3)}


def bare_loop(port: int, path: str, mails: int) -> None:
    """Send ``mails`` times the file's bytes."""
    import aiosmtplib

    message, left = Path(path).read_bytes(), [mails]

    async def converse() -> None:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port, local_hostname="localhost") as client:
            while left[0] > 0:
                left[0] -= 1
                await client.sendmail("hello@kairos.example", ["u1@example.com"], message)

    async def converse_all() -> None:
        await asyncio.gather(*(converse() for _ in range(CONNECTIONS)))

    asyncio.run(converse_all())


def _ready_made() -> bytes:
    """The bytes of one of the worker's mails."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), _env_file=None)
        database = Database(settings.database)
        database.upgrade()
        _fill(database, settings, 1)
        with database.reading() as session:
            given = gather(session, session.scalars(select(SendRow)).all())
        [mail] = render(given, now=datetime.now(UTC), settings=settings, number_links=LinkBook(database))
        database.close()
        return mail.message_bytes  # type: ignore[union-attr]


# -- our worker ------------------------------------------------------------------------------------


def _worked(url: str, workers: int, mails: int = N_SENDS) -> dict[str, Any]:
    """So many worker processes send a campaign; from the first mail at the sink to the last one."""
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as folder, FastSink() as sink:
        settings = _settings(Path(folder), url, sink.url)
        database = Database(url)
        database.upgrade()
        _fill(database, settings, mails)
        environment = {**os.environ, **settings.environment(), "PYTHONPATH": str(ROOT)}
        processes = [
            subprocess.Popen([sys.executable, "-m", "service.cli", "worker"], env=environment, cwd=folder)
            for _ in range(workers)
        ]
        resident: dict[str, int] = {}
        try:
            while (arrived := sink.counts())["mails"] < mails:
                if arrived["mails"] >= mails // 4 and "mb_at_a_quarter" not in resident:
                    resident["mb_at_a_quarter"] = _resident_mb(processes[0].pid)
                if any(process.poll() is not None for process in processes):
                    raise RuntimeError("a worker ended before its time")
                time.sleep(0.05)
            resident["mb_at_the_end"] = _resident_mb(processes[0].pid)
            cpu = [_cpu_seconds(process.pid) for process in processes]
            time.sleep(1.0)  # the last results are on their way to the disk
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(60)
        with database.reading() as session:
            rows = session.execute(select(SendRow.state, func.count()).group_by(SendRow.state))
            states = {state: count for state, count in rows}
        database.close()
        if states != {"accepted": mails}:
            raise RuntimeError(f"not every mail was accepted: {states}")
        return _speed(sink.counts(), mails) | {"worker_cpu_ms_a_mail": round(1000 * sum(cpu) / mails, 3)} | resident


def _settings(folder: Path, url: str, smtp_url: str) -> Settings:
    return Settings(
        home=folder,
        database_url=url,
        smtp_url=smtp_url,
        smtp_connections=CONNECTIONS,
        send_rate_per_minute=RATE,
        quiet_hours="",
        frequency_cap=3,
        public_url="https://mail.kairos.example",
        score_hours=0,
        retrain_days=0,
        _env_file=None,
    )


def _fill(database: Database, settings: Settings, mails: int) -> None:
    """A campaign to ``mails`` contacts, due now, arms drawn."""
    now = datetime.now(UTC)
    for start in range(0, mails, 20_000):
        identities = [f"user:u{number}" for number in range(start, min(start + 20_000, mails))]
        with database.writing() as session:
            keys = resolve(session, identities, now=now)
            traits = {
                keys[identity]: {
                    "email": f"{identity[5:]}@example.com",
                    "first_name": f"Name{identity[6:]}",
                    "company": "Kairos",
                    "last_product": "a blue chair",
                }
                for identity in identities
            }
            update_traits(session, traits, now=now)
            set_consent(session, [Consent(key, "news", "subscribed", "bench") for key in keys.values()], now=now)
            if start == 0:
                experiment_id = open_experiment(session, EXPERIMENT, now=now)
                session.add(
                    TemplateRow(
                        template_id="offer", version=1, name="Offer", subject="An offer", source=OFFER,
                        source_format="mjml", compiled_html=compile_template(OFFER, "mjml"), created_at=now,
                    )
                )  # fmt: skip
                session.execute(insert(CampaignRow), [_campaign(experiment_id, now)])
            first = allocate(session, "send_id", len(keys))
            session.execute(
                insert(SendRow),
                [_send(first + place, key, now) for place, key in enumerate(keys.values())],
            )
    while True:
        with database.writing() as session:
            if not decide(session, now=now, look_ahead=timedelta(minutes=1), limit=20_000).send_ids:
                break
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


def _campaign(experiment_id: str, now: datetime) -> dict[str, Any]:
    return {
        "campaign_id": "bench", "name": "Bench", "status": "scheduled", "template_id": "offer", "template_version": 1,
        "audience": {"everyone": True}, "experiments": [experiment_id], "topic": "news", "window_start": now,
        "window_end": now + timedelta(days=1), "holdout_share": 0.0, "timing": "at_start", "created_at": now,
    }  # fmt: skip


def _send(send_id: int, contact_key: int, now: datetime) -> dict[str, Any]:
    return {
        "send_id": send_id, "intent_key": f"bench/{contact_key}", "contact_key": contact_key, "campaign_id": "bench",
        "stream": "marketing", "topic": "news", "template_id": "offer", "template_version": 1, "state": "planned",
        "due_at": now, "not_after": now + timedelta(days=1), "timezone": "Europe/London", "assigned_local_hour": 10,
        "hour_propensity": 1.0, "hour_reason": "fixed", "is_holdout": False, "mailbox": "other", "created_at": now,
        "lease_token": 0, "attempts": 0,
    }  # fmt: skip


def _speed(counts: dict[str, float], mails: int) -> dict[str, float]:
    seconds = counts["last"] - counts["first"]
    return {
        "per_second": round(mails / seconds, 1),
        "octets_a_mail": round(counts["octets"] / mails),
        "sink_cpu_ms_a_mail": round(1000 * counts["cpu_seconds"] / mails, 3),
    }


def _resident_mb(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))) // 1024


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# -- where the time goes ---------------------------------------------------------------------------


def _profile() -> dict[str, Any]:
    """Shares of a worker's CPU time by part, from a profile of one worker in a process of its own."""
    with FastSink() as sink, tempfile.TemporaryDirectory(prefix="kairos-bench-") as folder:
        url = f"sqlite:///{folder}/kairos.db"
        settings = _settings(Path(folder), url, sink.url)
        database = Database(url)
        database.upgrade()
        _fill(database, settings, N_SENDS // 2)
        database.close()
        code = "from tests.benchmarks.bench_send import profile_worker; profile_worker()"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **settings.environment(), "PYTHONPATH": str(ROOT)},
            cwd=folder,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))


#: Parts of the work, by functions that nothing else of the list calls.
PARTS = {
    "claim": ("claiming.py", "claim"),
    "gather": ("render/__init__.py", "gather"),
    "render": ("render/__init__.py", "render"),
    "ledger": ("group_commit.py", "_commit"),
    "conversation": ("smtp.py", ""),
}


def profile_worker() -> None:
    """Send what is due under the profiler and print the parts' shares as JSON."""
    import threading

    from service.clock import SystemClock
    from service.worker import Worker

    settings = Settings()
    database = Database(settings.database)
    profiles: list[cProfile.Profile] = []

    def in_thread(*_: Any) -> None:  # the first call in each new thread
        profile = cProfile.Profile(time.thread_time)
        profiles.append(profile)
        with contextlib.suppress(ValueError):
            profile.enable()

    threading.setprofile(in_thread)
    mine = cProfile.Profile(time.thread_time)
    profiles.append(mine)
    mine.enable()
    asyncio.run(Worker(database, settings, SystemClock()).work())
    mine.disable()
    threading.setprofile(None)  # type: ignore[arg-type]
    stats = pstats.Stats(mine)
    for profile in profiles:
        if profile is not mine:
            profile.create_stats()
            stats.add(profile)
    total = sum(entry[2] for entry in stats.stats.values())  # type: ignore[attr-defined]
    parts: dict[str, float] = {}
    own: list[tuple[float, str]] = []
    for (path, _, name), (_, _, alone, within, _) in stats.stats.items():  # type: ignore[attr-defined]
        own.append((alone, f"{Path(path).name}:{name}"))
        for part, (suffix, function) in PARTS.items():
            if path.endswith(suffix) and name == function:
                parts[part] = parts.get(part, 0.0) + within
    print(
        json.dumps(
            {
                "cpu_seconds": round(total, 2),
                "shares": {part: round(seconds / total, 3) for part, seconds in parts.items()},
                "own_time": {name: round(seconds / total, 3) for seconds, name in sorted(own, reverse=True)[:25]},
            }
        )
    )


# -- databases -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _sqlite() -> Iterator[Any]:
    with tempfile.TemporaryDirectory(prefix="kairos-bench-") as folder:
        yield lambda: f"sqlite:///{folder}/{time.time_ns()}.db"


@contextlib.contextmanager
def _postgresql() -> Iterator[Any]:
    """A throwaway cluster with its durability on."""
    initdb, pg_ctl = shutil.which("initdb"), shutil.which("pg_ctl")
    if initdb is None or pg_ctl is None:
        yield None
        return
    user = "postgres" if os.geteuid() == 0 else None  # initdb refuses root
    folder = Path(tempfile.mkdtemp(prefix="kairos-bench-pg-"))
    if user:
        shutil.chown(folder, user=user)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    options: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder} | (
        {"user": user} if user else {}
    )
    data = str(folder / "data")
    subprocess.run([initdb, "-D", data, "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"], **options)
    server = f"-k {folder} -p {port} -c listen_addresses=127.0.0.1"
    subprocess.run([pg_ctl, "-D", data, "-w", "-l", str(folder / "log"), "-o", server, "start"], **options)

    def fresh() -> str:
        name = f"b{time.time_ns()}"
        admin = Database(f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres")
        with admin.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        admin.close()
        return f"postgresql+psycopg://postgres@127.0.0.1:{port}/{name}"

    try:
        yield fresh
    finally:
        subprocess.run([pg_ctl, "-D", data, "-w", "-m", "immediate", "stop"], **options)
        shutil.rmtree(folder, ignore_errors=True)
