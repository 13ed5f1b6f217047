"""The worker: settle hits, learn, guard, decide what falls due, render and send it, keep the lake in step; again."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from features.lake import Lake
from service.bounces import judge_streams
from service.campaigns import is_canary_watched, judge_canaries
from service.clock import Clock
from service.database import Database
from service.experiments import harmful_arms, pause_harmful
from service.flow.decide import decide
from service.flow.deliver import (
    IS_READY,
    STREAMS,
    Claim,
    Claimed,
    DeliveryAgent,
    Receipts,
    claim,
    may_leave,
    reconcile,
    recover,
)
from service.flow.render import Email, RenderFailure, check_sender, gather, render
from service.flow.reward import learn
from service.hits import RuleBook, settle
from service.job_runner import JobRunner
from service.links import LinkBook
from service.providers.base import provider_from_url
from service.settings import Settings
from service.tables import SendRow

log = logging.getLogger(__name__)

#: Sends are decided this long before they are due: late enough to learn within the campaign, early enough to render.
DECIDE_AHEAD = timedelta(minutes=10)
#: Sends are decided that leave within so many minutes at the rate of sending, and at most so many in one transaction.
DECIDED_MINUTES = 2.0
DECIDED_AT_ONCE = 20_000
#: Sends claimed, rendered and delivered at a time: what leaves in `BATCH_SECONDS` at the pace of the batches before, so
#: that a claim does not wait long for its departure, at least the one and at most the other.
SMALLEST_BATCH, LARGEST_BATCH = 50, 500
BATCH_SECONDS = 2.0
#: A round sends so long before it looks again at what came back, what was learned and what is to be decided.
LONGEST_SENDING_SECONDS = 120.0
#: Connections without a mail are closed after so long.
KEEP_OPEN_SECONDS = 20.0
LEASE_SECONDS = 300.0
#: Events that one transaction learns from: other writers get their turn between two.
LEARNED_AT_ONCE = 2_000
LAKE_INTERVAL = timedelta(minutes=15)
IDLE_SECONDS = 1.0
#: Complaints and bounces of the streams are looked at this often.
STREAMS_INTERVAL = timedelta(minutes=1)
#: What came back of mails whose fate is open is looked for this often.
RECONCILE_INTERVAL = timedelta(minutes=1)
#: The daily round of the feature store is looked at this often; a stop waits for it at most so long.
DAILY_INTERVAL = timedelta(minutes=15)
DAILY_STOP_SECONDS = 30.0
#: Canaries are judged this often.
CANARY_INTERVAL = timedelta(minutes=1)
#: Longest pause after rounds that failed one after the other.
LONGEST_PAUSE_SECONDS = 60.0


@dataclass(frozen=True)
class Round:
    """What one round of the worker did."""

    settled: int
    learned: int
    #: Arms that a guardrail took out of the draw.
    paused: int
    decided: int
    claimed: int
    receipts: Receipts
    #: Seconds until more may leave, where a throttle or a relay that is down holds sends back; None: nothing waits.
    wait_seconds: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether there was nothing to do."""
        return not (self.settled or self.learned or self.decided or self.claimed)


class Worker:
    """Does the service's work, a round at a time.

    Parameters
    ----------
    clock : Clock
        Business time; a simulated clock makes a worker live through days in seconds.
    lake : Lake, optional
        Kept in step with the log if given.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock, lake: Lake | None = None) -> None:
        self.database = database
        self.settings = settings
        self.clock = clock
        self.lake = lake
        check_sender(settings, now=clock.now())
        self.provider = provider_from_url(settings.smtp_url, home=settings.home, connections=settings.smtp_connections)
        self._links = LinkBook(database)
        self._hit_rules = RuleBook(settings.hit_rules)
        self._lake_due_at = clock.now()
        self._lake_failures = 0
        self._lake_lock = threading.Lock()
        self._agent = DeliveryAgent(self.provider, database, clock=clock, settings=settings)
        self._batch = SMALLEST_BATCH
        self._sent_at = time.monotonic()
        self._began_at = clock.now()
        self._canaries_judged_at = clock.now() - CANARY_INTERVAL
        #: Harm may have been learned that nobody has judged yet: at the start, by a worker before this one.
        self._is_guard_due = True
        self._streams_due_at = self._reconcile_due_at = clock.now()

    async def work(self) -> Round:
        """One round: what has settled is learned before what falls due is decided."""
        settled, learned, paused, decided = await asyncio.to_thread(self._prepare)
        claimed, receipts, wait_seconds = await self._send_due()
        self._begin_lake_work()
        return Round(settled, learned, paused, decided, claimed, receipts, wait_seconds)

    async def close(self) -> None:
        """Close the connections to the relay, once it has answered for what it was given."""
        await self._agent.hang_up()

    def _prepare(self) -> tuple[int, int, int, int]:
        now = self.clock.now()
        with self.database.writing() as session:
            recover(session, now=now, crash_policy=self.settings.crash_policy)
            if now >= self._reconcile_due_at:
                self._reconcile_due_at = now + RECONCILE_INTERVAL
                reconcile(session, now=now)
        settled = 0
        while True:  # a page of sends a transaction, so that other writers get their turn
            with self.database.writing() as session:
                hits = settle(session, now=now, rules=self._hit_rules.current()).hits
            if not hits:
                break
            settled += hits
        learned = 0
        while True:
            with self.database.writing() as session:
                read = learn(session, now=now, most=LEARNED_AT_ONCE)
            learned += read.events
            self._is_guard_due |= read.events > 0
            if not read.has_more:
                break
        paused = self._guard(now) if self._is_guard_due else 0
        self._is_guard_due = False
        self._judge_canaries(now)
        if now >= self._streams_due_at:
            self._streams_due_at = now + STREAMS_INTERVAL
            with self.database.writing() as session:
                judge_streams(session, now)
        with self.database.writing() as session:
            decided = decide(session, now=now, look_ahead=DECIDE_AHEAD, limit=self._room(session, now))
        self._began_at = now
        return settled, learned, paused, len(decided.send_ids)

    def _room(self, session: Session, now: datetime) -> int:
        """Sends to decide now: what leaves within `DECIDED_MINUTES`, less what is decided and waits.

        Of a million mails that fall due at once each is drawn shortly before it leaves, from what the others taught.
        """
        rate = self.settings.send_rate_per_minute
        minutes = max(DECIDED_MINUTES, (now - self._began_at) / timedelta(minutes=1))
        waiting = session.scalar(
            select(func.count()).where(
                IS_READY, SendRow.stream.in_(STREAMS), SendRow.due_at < now + DECIDE_AHEAD, may_leave()
            )
        )
        return min(DECIDED_AT_ONCE, max(0, int(rate * minutes) - int(waiting or 0)))

    def _guard(self, now: datetime) -> int:
        """Take the arms out of the draw that their guardrails speak against; returns how many."""
        with self.database.reading() as session:
            harmful = harmful_arms(session)
        if not harmful:
            return 0
        with self.database.writing() as session:
            return pause_harmful(session, harmful, now=now)

    def _judge_canaries(self, now: datetime) -> None:
        """Hold the campaigns whose first mails did harm, and let the others' mails go."""
        if abs(now - self._canaries_judged_at) < CANARY_INTERVAL:
            return
        self._canaries_judged_at = now
        with self.database.reading() as session:
            is_watched = is_canary_watched(session)
        if is_watched:
            with self.database.writing() as session:
                judge_canaries(session, self.settings, now=now)

    async def _send_due(self) -> tuple[int, Receipts, float | None]:
        """Deliver what is due; while one batch leaves, the next one is claimed and rendered."""
        total, claimed_total = Receipts(), 0
        if self.provider.pause_seconds > 0:
            return 0, total, self.provider.pause_seconds
        until = time.monotonic() + LONGEST_SENDING_SECONDS
        claimed, emails = await asyncio.to_thread(self._ready)
        while claimed.sends:
            is_last = time.monotonic() >= until
            coming = None if is_last else asyncio.ensure_future(asyncio.to_thread(self._ready))
            began = time.monotonic()
            try:
                receipts = await self._agent.deliver(claimed.sends, emails)
            finally:
                following = (Claim((), 0, 0), []) if coming is None else await coming
            self._pace(len(claimed.sends), time.monotonic() - began)
            total, claimed_total = _added(total, receipts), claimed_total + len(claimed.sends)
            claimed, emails = following
        if claimed_total:
            self._sent_at = time.monotonic()
        elif time.monotonic() - self._sent_at > KEEP_OPEN_SECONDS and not self._agent.is_waiting:
            await self._agent.hang_up()
        return claimed_total, total, self.provider.pause_seconds or claimed.wait_seconds

    def _pace(self, sends: int, seconds: float) -> None:
        """Let the next batch be what left in `BATCH_SECONDS`."""
        wished = int(sends * BATCH_SECONDS / max(seconds, 1e-3))
        self._batch = max(SMALLEST_BATCH, min(LARGEST_BATCH, wished, 2 * self._batch))

    def _ready(self) -> tuple[Claim, list[Email | RenderFailure]]:
        """The next batch, claimed and rendered; none while the relay cannot be reached."""
        while self.provider.pause_seconds <= 0:
            with self.database.writing() as session:
                claimed = claim(
                    session,
                    now=self.clock.now(),
                    limit=self._batch,
                    lease_seconds=LEASE_SECONDS,
                    settings=self.settings,
                )
            if claimed.sends or not (claimed.expired or claimed.suppressed or claimed.postponed):
                return claimed, self._render(claimed.sends)
        return Claim((), 0, 0), []  # else the batch was closed or put off on the way, and there may be more behind it

    def _render(self, sends: Sequence[Claimed]) -> list[Email | RenderFailure]:
        if not sends:
            return []
        with self.database.reading() as session:
            inputs = gather(session, sends)
        return render(inputs, now=self.clock.now(), settings=self.settings, number_links=self._links)

    def _begin_lake_work(self) -> None:
        """Begin what is due of the lake, in a thread beside the sending: neither its work nor its faults delay a mail.

        The end of the event loop waits for it.
        """
        now = self.clock.now()
        if self.lake is None or now < self._lake_due_at or not self._lake_lock.acquire(blocking=False):
            return
        self._lake_due_at = now + LAKE_INTERVAL
        asyncio.get_running_loop().run_in_executor(None, self._keep_lake, self.lake, now)

    def _keep_lake(self, lake: Lake, now: datetime) -> None:
        """Bring the lake up to the log, and let the files of erased contacts follow."""
        from service.erase_files import finish_erasures  # loads the models' libraries: not before a worker runs

        try:
            try:
                with self.database.reading() as session:
                    lake.sync(session)
                self._lake_failures = 0
            except Exception:
                self._lake_failures += 1
                pause = min(LAKE_INTERVAL, timedelta(minutes=2 ** min(self._lake_failures, 10)))
                self._lake_due_at = now + pause
                log.exception(
                    "the lake could not be brought up to the log; it is tried again in %s", pause,
                    extra={"action": "lake_not_synced"},
                )  # fmt: skip
            try:
                finish_erasures(self.database, lake, self.settings, now=now)
            except Exception:
                log.exception(
                    "files of erased contacts could not be rewritten; they wait for the next round",
                    extra={"action": "erasures_not_finished"},
                )
        finally:
            self._lake_lock.release()


class Daily:
    """Lets the feature store's daily round run beside the sending, in a thread of its own.

    Which of several workers does it, and whether it is due at all, the database says. A fault in it is logged and
    stays there; the round is then tried again some hours later.
    """

    def __init__(self, database: Database, settings: Settings, clock: Clock, lake: Lake) -> None:
        self.database = database
        self.settings = settings
        self.clock = clock
        self.lake = lake
        self._looked_at: datetime | None = None
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin a round if one may be due and none is under way; returns at once."""
        now = self.clock.now()
        if self._looked_at is not None and now - self._looked_at < DAILY_INTERVAL:
            return
        if self._thread is not None and self._thread.is_alive():
            return
        self._looked_at = now
        self._thread = threading.Thread(target=self._round, args=(now,), name="features-daily", daemon=True)
        self._thread.start()

    def wait(self, seconds: float | None = None) -> None:
        """Wait until the round is done, at most ``seconds``."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _round(self, now: datetime) -> None:
        from service.feature_checks import daily_round  # loads the models' libraries: not before a worker runs

        try:
            daily_round(self.database, self.lake, self.settings, now=now)
        except Exception:
            log.exception("the feature store's daily round failed", extra={"action": "daily_round_failed"})


def run(
    database: Database,
    settings: Settings,
    clock: Clock,
    stop: threading.Event,
    *,
    lake: Lake | None = None,
    once: bool = False,
    until_idle: bool = False,
) -> int:
    """Work until ``stop`` is set (or one round, or until there is nothing to do); returns how many rounds were done.

    A round that fails is logged and tried again after a pause that doubles up to a minute: what it had committed
    stands, and a lease takes care of the rest.
    """
    return asyncio.run(_run(database, settings, clock, stop, lake, once, until_idle))


async def _run(
    database: Database,
    settings: Settings,
    clock: Clock,
    stop: threading.Event,
    lake: Lake | None,
    once: bool,
    until_idle: bool,
) -> int:
    rounds, failures = 0, 0
    worker = Worker(database, settings, clock, lake)
    daily = None if lake is None else Daily(database, settings, clock, lake)
    jobs = None if lake is None else JobRunner(database, settings, clock)
    while not stop.is_set():
        started, now = time.monotonic(), clock.now()
        try:
            done = await worker.work()
            failures = 0
        except Exception:
            if once or until_idle:
                raise
            failures += 1
            log.exception("a round of the worker failed", extra={"action": "worker_round_failed"})
            await asyncio.sleep(min(LONGEST_PAUSE_SECONDS, 2.0**failures))
            continue
        rounds += 1
        if daily is not None and jobs is not None:
            daily.look()
            await asyncio.to_thread(jobs.look)
        # What waits for a throttle is not done; under a clock that stands, or for a relay, it would wait for ever.
        waits = done.wait_seconds is not None and worker.provider.pause_seconds <= 0 and clock.now() != now
        if once or (until_idle and done.is_idle and not waits):
            break
        if done.is_idle or done.wait_seconds is not None:
            pause = IDLE_SECONDS if done.wait_seconds is None else min(IDLE_SECONDS, done.wait_seconds)
            await asyncio.sleep(max(0.0, pause - (time.monotonic() - started)))
    await worker.close()
    if daily is not None:
        await asyncio.to_thread(daily.wait, None if once or until_idle else DAILY_STOP_SECONDS)
    if jobs is not None:
        await asyncio.to_thread(jobs.wait if once or until_idle else jobs.stop)
    return rounds


def _added(one: Receipts, other: Receipts) -> Receipts:
    names = Receipts.__dataclass_fields__
    return Receipts(**{name: getattr(one, name) + getattr(other, name) for name in names})
