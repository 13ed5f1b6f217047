"""Decisions taken through the API for the caller's own pages, their replay, and the rewards reported for them."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from sqlalchemy import select
from sqlalchemy.orm import Session

from features.contacts import resolve
from features.events import NewEvent, append
from features.tables import to_micros
from features.vocabulary import ARM_SHOWN, REWARD_RECEIVED
from service.api.installation import Installation, allow, as_problem, installation
from service.errors import Invalid, NotFound
from service.flow.decide import decide_for, replay
from service.flow.ingest import minor_units
from service.suppression import identities_of, identity_of
from service.tables import ContactRow, DecisionRow, ExperimentRow

#: What an event tells of a decision.
TOLD = (
    "decision_id", "experiment_id", "arm_id", "propensity", "snapshot_id", "wave", "segment", "is_holdout",
)  # fmt: skip

router = APIRouter(prefix="/v1", tags=["decisions"])


class DecisionRequest(BaseModel):
    """For whom to choose, and on which occasion; the same occasion gets the same answer."""

    model_config = ConfigDict(extra="forbid")

    experiment: str = Field(min_length=1, max_length=60)
    user_ids: list[str] = Field(min_length=1, max_length=1_000)
    occurrence: str = Field(min_length=1, max_length=100)
    #: Arms that may be shown here; the others are left out of the draw.
    eligible: list[Annotated[str, Field(min_length=1, max_length=60)]] | None = Field(
        None, min_length=1, max_length=100
    )


class RewardBody(BaseModel):
    """What came of a decision."""

    model_config = ConfigDict(extra="forbid")

    decision_id: str = Field(min_length=1, max_length=40)
    kind: Literal["click", "open", "conversion", "revenue"]
    value: float = Field(1.0, ge=0, le=1e9, allow_inf_nan=False)
    #: When it happened, by default now: a reward that comes late counts if it happened inside the window.
    occurred_at: AwareDatetime | None = None


Rewards = Annotated[list[RewardBody], Field(min_length=1, max_length=1_000)]


@router.post("/decisions", dependencies=[Depends(allow("write"))], response_model=None)
def make_decisions(asked: DecisionRequest, here: Installation = Depends(installation)) -> dict[str, Any]:
    """An arm for each contact, with its propensity; logged as shown. Contacts that are not known yet are created.

    Who is held out of the experiment gets no arm (``holdout`` is true): show what you show without an experiment.
    """
    now = here.clock.now()
    user_ids = list(dict.fromkeys(asked.user_ids))
    with here.database.writing() as session, as_problem():
        identities = {user_id: identity_of(user_id) for user_id in user_ids}
        keys = resolve(session, list(identities.values()), now=now)
        made = decide_for(
            session,
            asked.experiment,
            [keys[identities[user_id]] for user_id in user_ids],
            # The namespace of the sends stays theirs.
            f"api:{asked.occurrence}",
            now=now,
            eligible=asked.eligible,
            cache=here.cache,
        )
        events = [
            shown_event(
                contact_key=made.contact_key[i],
                identity=identities[user_id],
                now=to_micros(now),
                decision={name: getattr(made, name)[i] for name in TOLD},
            )
            for i, user_id in enumerate(user_ids)
            if not made.is_holdout[i]
        ]
        append(session, events, received_at=to_micros(now), default_timezone=here.settings.timezone)
        return {
            "decisions": [
                {
                    "user_id": user_id,
                    "decision_id": made.decision_id[i],
                    "arm": None if made.is_holdout[i] else made.arm_id[i],
                    "holdout": made.is_holdout[i],
                    "propensity": made.propensity[i],
                    "snapshot": made.snapshot_id[i],
                }
                for i, user_id in enumerate(user_ids)
            ]
        }


@router.get("/decisions/{decision_id}", dependencies=[Depends(allow("read"))], response_model=None)
def read_decision(decision_id: str, here: Installation = Depends(installation)) -> dict[str, Any]:
    """A decision, and the same decision drawn again from what was stored.

    ``replay`` is null, and ``replay_note`` says why, if what it was drawn from went with an erased contact.
    """
    with here.database.reading() as session:
        row = session.get(DecisionRow, decision_id)
        if row is None:
            raise NotFound(f"there is no decision {decision_id[:60]!r}")
        contact = session.get(ContactRow, row.contact_key)
        again = replay(session, [decision_id])[0]
        return {
            "decision_id": row.decision_id,
            "experiment": row.experiment_id,
            "user_id": None if contact is None else contact.user_id,
            "occurrence": row.occurrence,
            "send_id": None if row.send_id is None else str(row.send_id),
            "arm": row.arm_id,
            "holdout": row.is_holdout,
            "propensity": row.propensity,
            "draw": row.draw,
            "eligible": row.eligible,
            "segment": row.segment,
            "repeats": row.repeats,
            "snapshot": row.snapshot_id,
            "wave": row.wave,
            "reason": row.reason,
            "decided_at": row.decided_at,
            "replay": None
            if again.why
            else {"arm": again.arm_id, "propensity": again.propensity, "is_equal": again.is_equal},
            "replay_note": again.why,
        }


@router.post("/rewards", dependencies=[Depends(allow("write"))], response_model=None)
def report_rewards(body: RewardBody | Rewards, here: Installation = Depends(installation)) -> dict[str, Any]:
    """Rewards of decisions, each counted once for its decision and kind, however often it is reported.

    Those that happened after the reward window are stored and earn nothing: ``late`` says how many. Those for contacts
    who were erased since are counted and not kept.
    """
    now = here.clock.now()
    rewards = body if isinstance(body, list) else [body]
    with here.database.writing() as session:
        rows = _decisions(session, [reward.decision_id for reward in rewards])
        identities = identities_of(session, {row.contact_key for row in rows.values()})
        for reward in rewards:
            if reward.decision_id not in rows:
                raise NotFound(f"there is no decision {reward.decision_id!r}; name the id that was answered")
            _check_instant(reward, rows[reward.decision_id], now)
        kept = [reward for reward in rewards if rows[reward.decision_id].contact_key in identities]
        appended = append(
            session,
            [
                NewEvent(
                    contact_key=rows[reward.decision_id].contact_key,
                    kind=REWARD_RECEIVED,
                    occurred_at=to_micros(reward.occurred_at or now),
                    message_id=f"kairos/reward/{reward.decision_id}/{reward.kind}",
                    identity=identities[rows[reward.decision_id].contact_key],
                    ref=reward.decision_id,
                    value_minor=minor_units(reward.value, here.settings.currency) if reward.kind == "revenue" else None,
                    properties={"kind": reward.kind, "value": reward.value},
                )
                for reward in kept
            ],
            received_at=to_micros(now),
            default_timezone=here.settings.timezone,
        )
        windows = _windows(session, {row.experiment_id for row in rows.values()})
    late = sum(
        (r.occurred_at or now) - rows[r.decision_id].decided_at > windows[rows[r.decision_id].experiment_id]
        for r in kept
    )
    answer = {"stored": appended.stored, "duplicates": appended.duplicates}
    answer |= {"late": late} if late else {}
    return answer | ({"erased": len(rewards) - len(kept)} if len(kept) < len(rewards) else {})


def _check_instant(reward: RewardBody, row: DecisionRow, now: datetime) -> None:
    at = reward.occurred_at
    if at is not None and not row.decided_at <= at <= now:
        raise Invalid(
            f"the reward of {reward.decision_id} is said to have happened at {at.isoformat()}, which is not between "
            f"its decision at {row.decided_at.isoformat()} and now, {now.isoformat()}; check the clock, or leave "
            "occurred_at out"
        )


def _windows(session: Session, experiment_ids: set[str]) -> dict[str, timedelta]:
    query = select(ExperimentRow.experiment_id, ExperimentRow.reward_window_hours)
    rows = session.execute(query.where(ExperimentRow.experiment_id.in_(experiment_ids)))
    return {experiment_id: timedelta(hours=hours) for experiment_id, hours in rows}


def _decisions(session: Session, decision_ids: tuple[str, ...] | list[str]) -> dict[str, DecisionRow]:
    query = select(DecisionRow).where(DecisionRow.decision_id.in_(decision_ids))
    return {row.decision_id: row for row in session.scalars(query)}


def shown_event(*, contact_key: int, identity: str, now: int, decision: dict[str, Any]) -> NewEvent:
    """The event that tells the learner of a decision taken through the API: the trial.

    Parameters
    ----------
    decision : dict
        The fields of the decision that `TOLD` names.
    """
    return NewEvent(
        contact_key=contact_key,
        kind=ARM_SHOWN,
        occurred_at=now,
        message_id=f"kairos/shown/{decision['decision_id']}",
        identity=identity,
        ref=decision["decision_id"],
        properties={"decisions": [decision]},
    )
