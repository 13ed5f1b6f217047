"""What must be true of a campaign whatever happened to it: the mail server's log against the ledger.

The server wrote each mail to disk before it said 250, so its log is what really arrived. Invariants, by their numbers
in the project's notes on reliability:

I1  an event that was accepted is stored exactly once (`check_events`), and so is what the ledger logs of its sends
I2  every send ends in a terminal state, with a reason where it was not accepted
I3  a send arrives at most once (policy hold), or once more for each mail a crash left in the air (policy resend),
    always under one Message-ID
I4  nothing arrives whose contact's unsubscribe was on disk before the mail began
I5  no contact gets more marketing mail than the cap
I6  no domain gets more in any minute than its rate allows, and 5 %
I8  what left was decided before: one decision for each experiment, with its propensity
(I7 is about journeys, which this tree does not have.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from service.campaigns import TERMINAL_STATES
from service.database import Database
from service.tables import CampaignRow, DecisionRow, EventRow, SendRow
from tests.faults.processes import Delivery

#: A mail whose unsubscribe came while it was between the ledger and the wire: it is in the air.
IN_THE_AIR_SECONDS = 2.0


@dataclass(frozen=True)
class Report:
    """Counts of a run, and every invariant that it broke."""

    deliveries: int
    #: Deliveries beyond the first of a send.
    duplicates: int
    unknown: int
    unknown_but_delivered: int
    #: Sends that are called accepted and did not arrive.
    lost: int
    #: Sends that did not end, or arrived and are called something else, and mails of no send.
    unaccounted: int
    by_state: dict[str, int]
    violations: list[str]

    def __str__(self) -> str:
        states = ", ".join(f"{state} {n}" for state, n in sorted(self.by_state.items()))
        return (
            f"{self.deliveries} deliveries, {self.duplicates} duplicates, {self.unknown} unknown of which "
            f"{self.unknown_but_delivered} arrived, {self.lost} lost, {self.unaccounted} unaccounted; {states}"
        )


def check(
    database: Database,
    deliveries: Sequence[Delivery],
    *,
    crashes: int = 0,
    connections: int = 8,
    crash_policy: str = "hold",
    cap: int = 0,
    left_at: Mapping[int, float] | None = None,
    rate_per_minute: Mapping[str, int] | None = None,
) -> Report:
    """Compare the server's log with the ledger.

    Parameters
    ----------
    crashes : int
        Times that a worker was killed, stopped beyond its lease or lost its line, all its connections at once.
    connections : int
        Mails that one worker can have in the air.
    cap : int
        Marketing mails that a contact may get; 0 = any number. A run is shorter than the cap's seven days.
    left_at : mapping of contact key to seconds since 1970
        When an unsubscribe was on disk.
    rate_per_minute : mapping of domain to int
        Most mails in any minute.
    """
    with database.reading() as session:
        sends = session.scalars(select(SendRow)).all()
        asked = dict(session.execute(select(CampaignRow.campaign_id, CampaignRow.experiments)).all())
        decisions = session.scalars(select(DecisionRow).where(DecisionRow.send_id.is_not(None))).all()
        told = session.execute(
            select(EventRow.kind, EventRow.ref).where(EventRow.kind.in_(("Email Sent", "Email Withheld")))
        )
        logged = Counter(told)
    arrived: dict[int, list[Delivery]] = defaultdict(list)
    for delivery in deliveries:
        arrived[delivery.send_id].append(delivery)
    wrong: list[str] = []
    known = {send.send_id for send in sends}
    strays = [delivery for delivery in deliveries if delivery.send_id not in known]
    if strays:
        wrong.append(f"I2: {len(strays)} mails arrived of no send, such as {strays[0].message_id}")

    open_ = [send for send in sends if send.state not in TERMINAL_STATES]
    mute = [send for send in sends if send.state in TERMINAL_STATES and send.state != "accepted" and not send.reason]
    wrong += _first("I2: {n} sends did not end, such as {it.send_id} ({it.state})", open_)
    wrong += _first("I2: {n} sends ended without a reason, such as {it.send_id} ({it.state})", mute)
    lost = [send for send in sends if send.state == "accepted" and not arrived[send.send_id]]
    wrong += _first("I2: {n} sends are called accepted and did not arrive, such as {it.send_id}", lost)
    # After a resend a later attempt may end otherwise than the one that arrived unseen; the row then tells of both.
    miscalled = [
        send
        for send in sends
        if arrived[send.send_id]
        and send.state in TERMINAL_STATES
        and send.state not in ("accepted", "unknown")
        and not (crash_policy == "resend" and send.attempts)
    ]
    wrong += _first("I2: {n} sends arrived and are called otherwise, such as {it.send_id} ({it.state})", miscalled)

    duplicates = sum(len(of_send) - 1 for of_send in arrived.values() if of_send)
    unknown = [send for send in sends if send.state == "unknown"]
    in_the_air = connections * crashes
    if duplicates > (in_the_air if crash_policy == "resend" else 0):
        wrong.append(f"I3: {duplicates} duplicates under the policy {crash_policy} with {crashes} crashes")
    if len(unknown) > (0 if crash_policy == "resend" else in_the_air):
        wrong.append(f"I3: {len(unknown)} unknown with {crashes} crashes of {connections} connections")
    renamed = [
        send for send in sends if {delivery.message_id for delivery in arrived[send.send_id]} - {send.message_id}
    ]
    wrong += _first("I3: {n} sends arrived under another Message-ID, such as {it.send_id}", renamed)
    intents = Counter((send.campaign_id, send.contact_key) for send in sends if send.campaign_id)
    doubled = [intent for intent, n in intents.items() if n > 1]
    wrong += _first("I3: {n} contacts stand twice in a campaign, such as {it}", doubled)

    late = [
        send
        for send in sends
        if left_at and send.contact_key in left_at
        for delivery in arrived[send.send_id]
        if delivery.began_at > left_at[send.contact_key] + IN_THE_AIR_SECONDS
    ]
    wrong += _first("I4: {n} mails left after their contact had unsubscribed, such as {it.send_id}", late)
    if cap:
        got = Counter(send.contact_key for send in sends if send.stream == "marketing" and arrived[send.send_id])
        over = [contact_key for contact_key, n in got.items() if n > cap]
        wrong += _first(f"I5: {{n}} contacts got more than {cap} mails, such as {{it}}", over)
    for domain, limit in (rate_per_minute or {}).items():
        fastest = most_in_a_minute(d.taken_at for d in deliveries if d.recipient.endswith(f"@{domain}"))
        if fastest > limit * 1.05:
            wrong.append(f"I6: {domain} got {fastest} mails in a minute; its limit is {limit}")

    drawn: dict[int, dict[str, DecisionRow]] = defaultdict(dict)
    for decision in decisions:
        drawn[decision.send_id or 0][decision.experiment_id] = decision
    left = [send for send in sends if send.state in ("accepted", "unknown", "held_out") or arrived[send.send_id]]
    undecided = [
        send
        for send in left
        if send.decided_at is None
        or any(
            (decision := drawn[send.send_id].get(experiment_id)) is None
            or not 0 < decision.propensity <= 1
            or any(delivery.began_at < decision.decided_at.timestamp() for delivery in arrived[send.send_id])
            for experiment_id in asked.get(send.campaign_id or "", ())
        )
    ]
    wrong += _first("I8: {n} sends left without a decision before, such as {it.send_id}", undecided)
    mislogged = [
        send
        for send in sends
        if logged["Email Sent", str(send.send_id)] != (send.state == "accepted")
        or logged["Email Withheld", str(send.send_id)] != (send.state == "held_out")
    ]
    wrong += _first("I1: the log tells {n} sends otherwise than the ledger, such as {it.send_id}", mislogged)
    return Report(
        deliveries=len(deliveries),
        duplicates=duplicates,
        unknown=len(unknown),
        unknown_but_delivered=sum(bool(arrived[send.send_id]) for send in unknown),
        lost=len(lost),
        unaccounted=len(open_) + len(miscalled) + len(strays),
        by_state=dict(Counter(send.state for send in sends)),
        violations=wrong,
    )


def check_events(database: Database, message_ids: Iterable[str], source: str = "segment") -> list[str]:
    """What is wrong with the events that a client was told are taken: each is stored exactly once (I1)."""
    with database.reading() as session:
        stored = Counter(
            session.scalars(select(EventRow.message_id).where(EventRow.message_id.startswith(f"{source}/"))).all()
        )
    wrong = []
    for message_id in message_ids:
        if stored[f"{source}/{message_id}"] != 1:
            wrong.append(f"I1: event {message_id} was accepted and is stored {stored[f'{source}/{message_id}']} times")
    return wrong


def most_in_a_minute(times: Iterable[float]) -> int:
    """Most instants in any span of sixty seconds.

    Examples
    --------
    >>> most_in_a_minute([0.0, 1.0, 60.5, 60.9, 200.0])
    3
    """
    ordered = sorted(times)
    most = begin = 0
    for place, at in enumerate(ordered):
        while ordered[begin] <= at - 60:
            begin += 1
        most = max(most, place - begin + 1)
    return most


def _first(words: str, found: Sequence[object]) -> list[str]:
    return [words.format(n=len(found), it=found[0])] if found else []
