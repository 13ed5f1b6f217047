"""The canary: the first mails of a campaign, watched for harm before the others may leave."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from datetime import datetime

from scipy import special
from sqlalchemy import ColumnElement, String, and_, cast, func, or_, select, update
from sqlalchemy.orm import Session

from features.tables import EventRow, to_micros
from features.vocabulary import EMAIL_BOUNCED, EMAIL_COMPLAINED, UNSUBSCRIBED
from service.bounces.status import severity_told
from service.campaigns.overdue import settle_overdue
from service.flow.schedule import WATCHED
from service.halts import take_back
from service.settings import Settings
from service.tables import CampaignRow, SendRow

log = logging.getLogger(__name__)

WHO = "kairos"
#: Level of the one-sided lower bound that has to lie above a limit.
ALPHA = 0.05
#: Share of the canary that has to have been watched; the rest may still be deferred by a slow provider.
WATCHED_SHARE = 0.9

_OUT = ("accepted", "failed", "unknown")
_OPEN = ("planned", "claimed", "attempting")
_WATCHED_ONES = and_(CampaignRow.canary_state == "waiting", CampaignRow.status.in_(("scheduled", "paused")))


@dataclass(frozen=True, slots=True)
class Limit:
    """How much of something a campaign may cause."""

    what: str
    #: Share of the canary's mails.
    share: float
    #: So many at least before it is held against the campaign, however few mails the canary has.
    least: int


LIMITS = (
    Limit("mails refused for good or impossible to make", 0.03, 3),
    Limit("complaints", 0.001, 2),
    Limit("unsubscribes", 0.01, 3),
)


@dataclass(frozen=True, slots=True)
class Harm:
    """What the mails of a canary have caused."""

    #: Mails that left, and those that still will: what each share is of.
    mails: int
    refused: int
    complaints: int
    unsubscribes: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found of a canary."""

    campaign_id: str
    #: passed | held
    state: str
    says: str


def find_harm(harm: Harm) -> str | None:
    """Why the canary speaks against its campaign, or None.

    A campaign is held when the one-sided 95 % lower bound of a rate (Clopper & Pearson 1934) lies above its limit:
    3 % of mails refused for good, 0.1 % complaints, 1 % unsubscribes; and never for fewer than 3, 2 and 3 of them, for
    in a canary of fifty one single complaint would pass the bound.

    The shares are of all mails of the canary, those that have still to leave among them. Counts only grow, so whoever
    looks after every mail holds a campaign exactly if its final counts do: looking often costs no error rate, and a bad
    canary is still found before it is out.

    Error rates, exact from the binomial law: a campaign that lies right at one of the limits is held by that limit in
    at most 5 % of cases; one with 1 % refused, 0.02 % complaints and 0.3 % unsubscribes, which is usual, in less than
    one of a thousand, with 50, 500 or 5,000 mails. Of bad ones are found:

    ======== ============ ================ ================
    mails    10 % refused .5 % complaints  4 % unsubscribes
    ======== ============ ================ ================
    50       57 %         3 %              32 %
    500      100 %        46 %             100 %
    5,000    100 %        100 %            100 %
    ======== ============ ================ ================

    A canary of fifty is thus a test of the template and the list, not of complaints: these take some thousands.
    """
    counts = (harm.refused, harm.complaints, harm.unsubscribes)
    for limit, count in zip(LIMITS, counts, strict=True):
        if count < limit.least:
            continue
        # Lower bound p with P(X >= count | p) = ALPHA; the binomial tail is a beta distribution.
        bound = float(special.betaincinv(count, harm.mails - count + 1, ALPHA))
        if bound > limit.share:
            return (
                f"canary: {count:,} {limit.what} of {harm.mails:,} mails ({count / harm.mails:.2%}), certainly above "
                f"{bound:.2%}, where the limit is {limit.share:.1%}"
            )
    return None


def judge_canaries(session: Session, settings: Settings, *, now: datetime) -> list[Judgement]:
    """Judge the canaries that are watched: hold the campaigns of bad ones, let the others' mails go.

    Harm is looked for at each call; a canary passes once each of its mails has been tried and nine in ten have been
    out for 60 minutes. One of which no mail left shows nothing: it holds its campaign while others wait for it. A held
    campaign is paused with the reason. Mails whose last useful moment comes while the canary
    is still watched end as ``expired``; they are never sent late. Two queries a watched campaign.
    """
    watched = session.scalars(
        select(CampaignRow).where(_WATCHED_ONES).order_by(CampaignRow.campaign_id).with_for_update()
    ).all()
    judged = []
    for campaign in watched:
        if campaign.window_end <= now:
            _expire(session, campaign.campaign_id, now)
        judgement = _judge(session, campaign, now)
        if judgement is None:
            continue
        campaign.canary_state = judgement.state
        if judgement.state == "held":
            campaign.status, campaign.status_reason = "paused", judgement.says[:300]
            campaign.status_by, campaign.status_at = WHO, now
        session.flush()
        if judgement.state == "held":
            take_back(session)
        elif campaign.status == "scheduled":
            why = "its campaign's canary was watched"
            settle_overdue(session, SendRow.campaign_id == campaign.campaign_id, settings, reason=why, now=now)
        log.info(
            "%s", judgement.says, extra={"action": f"canary_{judgement.state}", "campaign_id": campaign.campaign_id}
        )
        judged.append(judgement)
    return judged


def is_canary_watched(session: Session) -> bool:
    """Whether there is a canary to judge."""
    return session.scalar(select(CampaignRow.campaign_id).where(_WATCHED_ONES).limit(1)) is not None


def _judge(session: Session, campaign: CampaignRow, now: datetime) -> Judgement | None:
    is_open = SendRow.state.in_(_OPEN)
    mails, failed, watched, untried = session.execute(
        select(
            func.count(),
            func.count().filter(SendRow.state == "failed"),
            func.count().filter(SendRow.state.in_(_OUT), SendRow.finished_at <= now - WATCHED),
            func.count().filter(is_open, SendRow.attempts == 0),
        ).where(_canary_of(campaign.campaign_id), or_(SendRow.state.in_(_OUT), is_open))
    ).one()
    harm = _harm(session, campaign, mails, failed)
    says = find_harm(harm)
    if says is not None:
        return Judgement(campaign.campaign_id, "held", says)
    if not mails:
        return _judge_nothing(session, campaign)
    if untried or watched < WATCHED_SHARE * mails:
        return None
    says = (
        f"canary passed: of {harm.mails:,} mails {harm.refused:,} were refused, {harm.complaints:,} complained of and "
        f"{harm.unsubscribes:,} answered by leaving"
    )
    return Judgement(campaign.campaign_id, "passed", says)


def _judge_nothing(session: Session, campaign: CampaignRow) -> Judgement:
    """Of a canary of which no mail left: whether its campaign does harm is open, as long as others wait for it."""
    waiting = select(SendRow.send_id).where(
        SendRow.campaign_id == campaign.campaign_id, SendRow.is_canary.is_(False), SendRow.state == "planned"
    )
    if session.scalar(waiting.limit(1)) is None:
        return Judgement(campaign.campaign_id, "passed", "canary passed: none of its mails left, and none waits for it")
    ends = session.execute(
        select(SendRow.state, SendRow.reason, func.count().label("mails"))
        .where(_canary_of(campaign.campaign_id))
        .group_by(SendRow.state, SendRow.reason)
        .order_by(func.count().desc(), SendRow.state, SendRow.reason)
    ).all()
    most = f", {ends[0].mails:,} of them {ends[0].state} ({ends[0].reason or 'no reason is kept'})" if ends else ""
    says = f"canary: none of its {sum(end.mails for end in ends):,} mails left, so nothing was watched{most}"
    return Judgement(campaign.campaign_id, "held", says)


def _harm(session: Session, campaign: CampaignRow, mails: int, failed: int) -> Harm:
    """Harm is counted by mail; an event that names no mail counts for the one that its contact got before it."""
    named = EventRow.ref == cast(SendRow.send_id, String)
    answers = (EMAIL_COMPLAINED, UNSUBSCRIBED)
    after = and_(EventRow.ref.is_(None), EventRow.kind.in_(answers), EventRow.occurred_at >= SendRow.finished_at)
    events = session.execute(
        select(SendRow.send_id, EventRow.kind, EventRow.properties)
        .join(EventRow, EventRow.contact_key == SendRow.contact_key)
        .where(
            _canary_of(campaign.campaign_id),
            SendRow.state.in_(("accepted", "unknown")),
            EventRow.occurred_at >= to_micros(campaign.scheduled_at or campaign.created_at),
            EventRow.kind.in_((EMAIL_BOUNCED, *answers)),
            or_(named, after),
        )
    )
    harmed: dict[str, set[int]] = {EMAIL_BOUNCED: set(), EMAIL_COMPLAINED: set(), UNSUBSCRIBED: set()}
    for send_id, kind, properties in events:
        if kind != EMAIL_BOUNCED or severity_told(json.loads(properties or "{}")) == "hard":
            harmed[kind].add(send_id)
    return Harm(mails, failed + len(harmed[EMAIL_BOUNCED]), len(harmed[EMAIL_COMPLAINED]), len(harmed[UNSUBSCRIBED]))


def _canary_of(campaign_id: str) -> ColumnElement[bool]:
    return and_(SendRow.campaign_id == campaign_id, SendRow.is_canary.is_(True), SendRow.is_holdout.is_(False))


def _expire(session: Session, campaign_id: str, now: datetime) -> None:
    session.execute(
        update(SendRow)
        .where(
            SendRow.campaign_id == campaign_id,
            SendRow.state == "planned",
            SendRow.is_canary.is_(False),
            SendRow.not_after < now,
        )
        .values(
            state="expired",
            reason="its last useful moment passed while its campaign's canary was watched",
            finished_at=now,
        )
    )
