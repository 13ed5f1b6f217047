"""What the service keeps as rows: keys, consent, templates, experiments, decisions, sends, links, predictions."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, LargeBinary, String, Text, UniqueConstraint, column, func, literal_column, text
from sqlalchemy.orm import Mapped, mapped_column

from features.tables import Base, ContactRow, CounterRow, ErasureRow, EventRow, IdentityRow

__all__ = ["Base", "ContactRow", "CounterRow", "ErasureRow", "EventRow", "IdentityRow"]


class ApiKeyRow(Base):
    """A key. Only the hash of its secret is kept."""

    __tablename__ = "api_key"

    key_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str] = mapped_column(String(120))
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class QuarantineRow(Base):
    """An event that could not be taken, kept with the reason so that it can be looked at and tried again."""

    __tablename__ = "quarantine"

    quarantine_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    source: Mapped[str] = mapped_column(String(60))
    reason: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    received_at: Mapped[datetime] = mapped_column(index=True)


class ConsentRow(Base):
    """One line of the append-only consent ledger; the newest line of (contact, channel, topic) is in force."""

    __tablename__ = "consent"

    consent_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    contact_key: Mapped[int]
    channel: Mapped[str] = mapped_column(String(20))
    topic: Mapped[str] = mapped_column(String(60))
    #: unknown | pending | subscribed | unsubscribed
    state: Mapped[str] = mapped_column(String(16))
    source: Mapped[str] = mapped_column(String(120))
    text_version: Mapped[str | None] = mapped_column(String(60))
    at: Mapped[datetime]

    __table_args__ = (Index("ix_consent_contact", "contact_key", "channel", "topic", "consent_id"),)


class SuppressionRow(Base):
    """An address that gets no mail, as a keyed hash."""

    __tablename__ = "suppression"

    address_hmac: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: unsubscribed | hard_bounce | complaint | manual | hygiene
    reason: Mapped[str] = mapped_column(String(40))
    source: Mapped[str] = mapped_column(String(120))
    at: Mapped[datetime]


class TemplateRow(Base):
    """A version of a mail template: MJML and Liquid as written, and the HTML that the MJML compiled to."""

    __tablename__ = "template"

    template_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(String(200))
    subject: Mapped[str] = mapped_column(Text)
    source: Mapped[str] = mapped_column(Text)
    #: mjml | html
    source_format: Mapped[str] = mapped_column(String(8))
    compiled_html: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime]


class ExperimentRow(Base):
    """A question asked of the recipients: which of these arms earns more of the reward?"""

    __tablename__ = "experiment"

    experiment_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    #: subject | cta | block | layout
    kind: Mapped[str] = mapped_column(String(16))
    #: Template slot that the arm fills.
    slot: Mapped[str] = mapped_column(String(60))
    #: click | open | conversion | revenue (in minor units of the reporting currency)
    reward: Mapped[str] = mapped_column(String(16))
    reward_window_hours: Mapped[float]
    floor: Mapped[float]
    explore_share: Mapped[float]
    holdout_share: Mapped[float]
    #: thompson | uniform | fixed | epsilon_greedy | gaussian | linear
    policy: Mapped[str] = mapped_column(String(24))
    salt: Mapped[str] = mapped_column(String(32))
    #: running | paused | ended
    status: Mapped[str] = mapped_column(String(12))
    created_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    #: Everything else that was asked for: see `service.flow.decide.NewExperiment`.
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)


class ArmRow(Base):
    """One answer of an experiment."""

    __tablename__ = "arm"

    experiment_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    arm_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    #: Order in which the arms were given; pmfs are listed in this order.
    position: Mapped[int]
    #: Liquid text (a subject) or MJML/HTML (a block).
    content: Mapped[str] = mapped_column(Text)
    features: Mapped[dict[str, Any]] = mapped_column(default=dict)
    #: running | paused | retired
    status: Mapped[str] = mapped_column(String(12))
    #: Why it is paused or retired, and since when.
    status_reason: Mapped[str | None] = mapped_column(String(300))
    status_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class SnapshotRow(Base):
    """The arm probabilities in force from an instant, and the statistics they were computed from; kept for replay."""

    __tablename__ = "snapshot"

    snapshot_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    snapshot_no: Mapped[int] = mapped_column(unique=True)
    experiment_id: Mapped[str] = mapped_column(String(60))
    created_at: Mapped[datetime]
    #: Last ``seq`` of the event log that the statistics hold.
    log_seq: Mapped[int]
    algorithm: Mapped[str] = mapped_column(String(60))
    #: ``{"arms": [...], "pmf": [...], ...}``, floor mixed in, summing to one: see `service.flow.decide.snapshot`.
    policy: Mapped[dict[str, Any]]
    statistics: Mapped[dict[str, Any]]
    #: Posterior draws of a policy that sees vectors: float32 in npy format, shape (n_draws, n_arms, n_features).
    ensemble: Mapped[bytes | None] = mapped_column(LargeBinary)

    __table_args__ = (Index("ix_snapshot_newest", "experiment_id", "snapshot_no"),)


class DecisionRow(Base):
    """An arm that was drawn, with everything needed to draw it again."""

    __tablename__ = "decision"

    decision_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(String(60))
    contact_key: Mapped[int]
    #: The intent it was drawn for: ``send:<id>`` or the caller's own word.
    occurrence: Mapped[str] = mapped_column(String(120))
    send_id: Mapped[int | None]
    snapshot_id: Mapped[str] = mapped_column(String(60))
    #: The sends decided together; base rates move with it.
    wave: Mapped[int]
    arm_id: Mapped[str] = mapped_column(String(60))
    propensity: Mapped[float]
    #: The hashed draw in [0, 1).
    draw: Mapped[float]
    #: Arms that were open to the draw.
    eligible: Mapped[list[Any]]
    #: Segment of the contact, where the experiment tells segments apart.
    segment: Mapped[str | None] = mapped_column(String(60))
    #: What the policy saw of the contact, as float32; goes with an erased contact.
    context: Mapped[bytes | None] = mapped_column(LargeBinary)
    #: A ghost: the arm was drawn and not shown.
    is_holdout: Mapped[bool] = mapped_column(default=False)
    #: Earlier decision of the contact whose arm a sticky experiment keeps: snapshot, draw and propensity are its.
    repeats: Mapped[str | None] = mapped_column(String(40))
    reason: Mapped[str] = mapped_column(String(200))
    decided_at: Mapped[datetime]

    __table_args__ = (
        UniqueConstraint("experiment_id", "contact_key", "occurrence", name="ux_decision_intent"),
        Index("ix_decision_send", "send_id"),
        Index("ix_decision_contact", "contact_key"),
    )


class RewardRow(Base):
    """The outcome of a decision inside its window: one row for a decision and kind, whatever is delivered twice.

    Kinds are the rewards, and ``unsubscribe`` and ``complaint``, which the guardrails count.
    """

    __tablename__ = "reward"

    decision_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    #: 1, or of revenue the minor units that stand: what was ordered less what was taken back.
    value: Mapped[float]
    occurred_at: Mapped[datetime]
    #: Event of the log that brought it.
    log_seq: Mapped[int]
    #: When all of it had been taken back (refunds, cancellations); ``value`` is then 0.
    reversed_at: Mapped[datetime | None]


class CreditRow(Base):
    """Which decision of an experiment an order is credited to: an order credits at most one."""

    __tablename__ = "credit"

    experiment_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    contact_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    order_ref: Mapped[str] = mapped_column(String(255), primary_key=True)
    decision_id: Mapped[str] = mapped_column(String(40), index=True)
    #: Minor units of the reporting currency; null where the order told no value in it.
    value_minor: Mapped[int | None]
    taken_back_minor: Mapped[int] = mapped_column(default=0)
    occurred_at: Mapped[datetime]
    log_seq: Mapped[int]


class LearnerCellRow(Base):
    """Sums of one arm in one wave and segment: the learner's state, a fold over the log up to the fold's cursor.

    An erased contact's counts move to the cell without a segment.
    """

    __tablename__ = "learner_cell"

    experiment_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    arm_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    wave: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: Empty where the experiment tells no segments apart.
    segment: Mapped[str] = mapped_column(String(60), primary_key=True, default="")
    trials: Mapped[int]
    successes: Mapped[int]
    #: Sum of the trials' instants (microseconds since 1970 / 1e6): with ``trials`` it gives the cell's mean age.
    sum_shown_at: Mapped[int]
    #: Sums of the rewards and of their squares; with a reward of 0 or 1 both equal ``successes``.
    sum_rewards: Mapped[float] = mapped_column(default=0.0)
    sum_squares: Mapped[float] = mapped_column(default=0.0)
    #: What the guardrails count.
    unsubscribes: Mapped[int] = mapped_column(default=0)
    complaints: Mapped[int] = mapped_column(default=0)


class LearnerMatrixRow(Base):
    """Sums of ``x x'`` and ``reward * x`` of one arm in one wave, for policies that see vectors."""

    __tablename__ = "learner_matrix"

    experiment_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    arm_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    wave: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: log: the fold over the log. erased: what contacts taught whose contexts are gone; a rebuild begins with it.
    origin: Mapped[str] = mapped_column(String(8), primary_key=True, default="log")
    #: float64, shape (n_features, n_features).
    gram: Mapped[bytes] = mapped_column(LargeBinary)
    #: float64, shape (n_features,).
    moments: Mapped[bytes] = mapped_column(LargeBinary)


class CursorRow(Base):
    """How far a reader of the log has come."""

    __tablename__ = "cursor"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    position: Mapped[int]


class CampaignRow(Base):
    """One mail to many, at each one's hour inside a window."""

    __tablename__ = "campaign"

    campaign_id: Mapped[str] = mapped_column(String(60), primary_key=True)
    name: Mapped[str] = mapped_column(String(200))
    #: draft | scheduled | paused | cancelled
    status: Mapped[str] = mapped_column(String(12))
    #: Why it is paused or cancelled, by whom (a key's id, or ``kairos``) and since when.
    status_reason: Mapped[str | None] = mapped_column(String(300))
    status_by: Mapped[str | None] = mapped_column(String(60))
    status_at: Mapped[datetime | None]
    template_id: Mapped[str] = mapped_column(String(60))
    template_version: Mapped[int]
    #: See `service.flow.audience`.
    audience: Mapped[dict[str, Any]]
    #: Experiment ids; each fills its slot of the template.
    experiments: Mapped[list[Any]]
    topic: Mapped[str] = mapped_column(String(60))
    window_start: Mapped[datetime]
    window_end: Mapped[datetime]
    holdout_share: Mapped[float]
    #: best_hour | spread (uniformly random allowed hours) | at_start
    timing: Mapped[str] = mapped_column(String(12))
    #: Parts that a send ``at_start`` is cut into.
    waves: Mapped[int] = mapped_column(default=1)
    #: engagement | profit; None: the installation's.
    objective: Mapped[str | None] = mapped_column(String(12))
    #: Share of the audience whose mails leave first and are watched; 0 = none.
    canary_share: Mapped[float] = mapped_column(default=0.0)
    #: none | waiting (its mails are out, or about to be) | passed | held | overruled (held, and somebody went on)
    canary_state: Mapped[str] = mapped_column(String(12), default="none")
    #: The campaign whose mails this one puts right.
    corrects: Mapped[str | None] = mapped_column(String(60))
    created_at: Mapped[datetime]
    #: Key that made it; another one has to approve a large one.
    created_by: Mapped[str | None] = mapped_column(String(60))
    #: Keys that changed the draft, in the order of their first change: none of them may approve it.
    editors: Mapped[list[Any]] = mapped_column(default=list)
    approved_at: Mapped[datetime | None]
    approved_by: Mapped[str | None] = mapped_column(String(60))
    #: SHA-256 of what was approved: the approval holds for nothing else.
    approved_digest: Mapped[str | None] = mapped_column(String(64))
    scheduled_at: Mapped[datetime | None]


#: Start of the intent key of a single message: ``message:`` and 32 hexadecimal digits of what its caller named it by.
MESSAGE_KEY = func.substr(column("intent_key"), literal_column("1"), literal_column("40"))


class SendRow(Base):
    """The ledger: one row for one intent to mail one contact, and what became of it."""

    __tablename__ = "send"

    send_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: campaign (or journey version and step), contact and occurrence in one string: an intent exists once.
    intent_key: Mapped[str] = mapped_column(String(200), unique=True)
    contact_key: Mapped[int]
    campaign_id: Mapped[str | None] = mapped_column(String(60), index=True)
    #: marketing | transactional
    stream: Mapped[str] = mapped_column(String(16))
    topic: Mapped[str] = mapped_column(String(60))
    template_id: Mapped[str] = mapped_column(String(60))
    template_version: Mapped[int]
    #: planned | claimed | attempting, or terminal: accepted | failed | unknown | suppressed | held_out | unplaced |
    #: cancelled | expired
    state: Mapped[str] = mapped_column(String(12))
    reason: Mapped[str | None] = mapped_column(String(300))
    due_at: Mapped[datetime]
    #: After this it is better not sent at all.
    not_after: Mapped[datetime]
    timezone: Mapped[str] = mapped_column(String(64))
    #: Local hour (0-23) that the plan chose, and the probability with which it would choose it again.
    assigned_local_hour: Mapped[int]
    hour_propensity: Mapped[float]
    #: best | explore | fallback | fixed | full (the wished hour had no room)
    hour_reason: Mapped[str] = mapped_column(String(16))
    is_holdout: Mapped[bool]
    #: One of the campaign's first mails, which the others wait for.
    is_canary: Mapped[bool] = mapped_column(default=False)
    #: Mailbox provider of the address when it was planned: `service.mailboxes`.
    mailbox: Mapped[str | None] = mapped_column(String(24))
    #: What the plan's objective expected of the mail at its hour.
    expected_value: Mapped[float | None]
    #: Values that came with a message for its template; they go with an erased contact.
    variables: Mapped[dict[str, Any] | None]
    decided_at: Mapped[datetime | None]
    #: Raised at each claim: a worker that lost its lease can no longer write.
    lease_token: Mapped[int] = mapped_column(default=0)
    #: In the database's own clock.
    lease_until: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    message_id: Mapped[str | None] = mapped_column(String(200))
    smtp_code: Mapped[int | None]
    #: Different tracked links of the mail: somebody who follows nearly all of them at once is a scanner.
    link_count: Mapped[int | None]
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    #: How it came back, if it did: hard | soft | policy (see `service.bounces`).
    bounce: Mapped[str | None] = mapped_column(String(8))
    #: When it was marked as spam.
    complained_at: Mapped[datetime | None]

    __table_args__ = (
        Index("ix_send_due", "state", "due_at"),
        Index("ix_send_contact_due", "contact_key", "due_at"),
        Index(
            "ix_send_canary",
            "campaign_id",
            sqlite_where=text("is_canary IS 1"),
            postgresql_where=text("is_canary IS true"),
        ),
        # The newest sends of a stream with what came of them, read without touching the rows.
        Index(
            "ix_send_finished", "stream", "state", "finished_at", "bounce", "complained_at",
            sqlite_where=text("finished_at IS NOT NULL"), postgresql_where=text("finished_at IS NOT NULL"),
        ),
        Index(
            "ix_send_message",
            MESSAGE_KEY,
            sqlite_where=text("campaign_id IS NULL"),
            postgresql_where=text("campaign_id IS NULL"),
        ),
        # What waits for its arms: however many decided mails are held back, the next wave is found at once.
        Index(
            "ix_send_undecided",
            "state",
            "due_at",
            "send_id",
            sqlite_where=text("state = 'planned' AND decided_at IS NULL"),
            postgresql_where=text("state = 'planned' AND decided_at IS NULL"),
        ),
        # What may be claimed: a million that wait for their arms, or for a campaign that is paused, are not looked at.
        Index(
            "ix_send_ready", "stream", "due_at",
            sqlite_where=text("state = 'planned' AND decided_at IS NOT NULL"),
            postgresql_where=text("state = 'planned' AND decided_at IS NOT NULL"),
        ),
    )  # fmt: skip


class IdempotencyRow(Base):
    """A request under an Idempotency-Key and what it was answered, for a day: see `service.idempotency`."""

    __tablename__ = "idempotency"

    key_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    #: Id of the API key that asked.
    principal: Mapped[str] = mapped_column(String(60), primary_key=True)
    #: SHA-256 of method, path, query and body.
    fingerprint: Mapped[str] = mapped_column(String(64))
    #: None, as the body, while it is under way.
    status: Mapped[int | None]
    #: JSON; it may name contacts, never an address.
    body: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(index=True)


class HaltRow(Base):
    """Sending stopped, of everything or a part of it, until somebody lifts it: see `service.halts`."""

    __tablename__ = "halt"

    halt_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    #: everything | stream:<stream> | mailbox:<mailbox>
    scope: Mapped[str] = mapped_column(String(60))
    reason: Mapped[str] = mapped_column(String(300))
    #: A key's id, a command, or ``kairos`` where it stopped by itself.
    halted_by: Mapped[str] = mapped_column(String(60))
    halted_at: Mapped[datetime]
    lifted_by: Mapped[str | None] = mapped_column(String(60))
    lifted_at: Mapped[datetime | None]

    __table_args__ = (Index("ix_halt_open", "lifted_at", "scope"),)


class ThrottleRow(Base):
    """The token bucket of a mailbox provider, or of all mail: what may still leave now."""

    __tablename__ = "throttle"

    #: A mailbox provider, or ``all``.
    mailbox: Mapped[str] = mapped_column(String(24), primary_key=True)
    #: Mails that may leave; a whole claim is taken out at once.
    tokens: Mapped[float]
    #: Business time up to which tokens were earned.
    counted_at: Mapped[datetime]


class DepartureRow(Base):
    """Mails handed over on a day (UTC), by mailbox provider: what the warm-up counts."""

    __tablename__ = "departure"

    #: Days since 1970-01-01 UTC.
    day: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    mailbox: Mapped[str] = mapped_column(String(24), primary_key=True)
    mails: Mapped[int]


class PreferenceRow(Base):
    """What a contact asked for on the preferences page beside its topics, which the consent ledger holds."""

    __tablename__ = "preference"

    contact_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    #: No marketing mail before this instant.
    snoozed_until: Mapped[datetime | None]
    #: Marketing mails in any seven days at most; None: the installation's cap.
    most_per_week: Mapped[int | None]
    updated_at: Mapped[datetime]


class HygieneRow(Base):
    """A look through the list for addresses that harm it: shown first, applied or not, and taken back if need be."""

    __tablename__ = "hygiene"

    hygiene_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    #: previewed | applied | reverted
    state: Mapped[str] = mapped_column(String(12))
    rules: Mapped[dict[str, Any]]
    #: Contacts found by finding, and examples by user id.
    report: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    created_by: Mapped[str] = mapped_column(String(60))
    applied_at: Mapped[datetime | None]
    reverted_at: Mapped[datetime | None]


class HygieneFindingRow(Base):
    """A contact that a look through the list found, and why."""

    __tablename__ = "hygiene_finding"

    hygiene_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    contact_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    finding: Mapped[str] = mapped_column(String(40), primary_key=True)
    #: A better spelling of the domain, if there is one.
    suggestion: Mapped[str | None] = mapped_column(String(120))


class LinkRow(Base):
    """A target of tracked links; tokens carry its number, so no token can redirect to what we did not send."""

    __tablename__ = "link"

    link_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    url_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    url: Mapped[str] = mapped_column(Text)


class HitRow(Base):
    """A raw hit on a pixel or link; it settles into an event once it can be judged."""

    __tablename__ = "hit"

    hit_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    send_id: Mapped[int] = mapped_column(index=True)
    #: None for the open pixel.
    link_id: Mapped[int | None]
    #: GET | HEAD
    method: Mapped[str] = mapped_column(String(8))
    user_agent: Mapped[str] = mapped_column(String(300))
    #: Keyed hash of the network address; the address itself is not kept.
    network: Mapped[str | None] = mapped_column(String(32))
    #: Name of the network in the rules of hits that the address lay in.
    known_network: Mapped[str | None] = mapped_column(String(40))
    #: The link that people do not see.
    is_trap: Mapped[bool] = mapped_column(default=False)
    at: Mapped[datetime]
    settled: Mapped[bool] = mapped_column(default=False)

    __table_args__ = (Index("ix_hit_open", "settled", "at"),)


class PredictionRow(Base):
    """The newest stored score of a contact."""

    __tablename__ = "prediction"

    model: Mapped[str] = mapped_column(String(60), primary_key=True)
    contact_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    probability: Mapped[float]
    #: Share of the scored contacts at or below this probability, 0-1.
    percentile: Mapped[float]
    as_of: Mapped[datetime]
    model_version: Mapped[int]
    #: Best local hour and its level for ``send_hour``; else None.
    detail: Mapped[dict[str, Any] | None]

    # SQLite does without the index: each chunk of a scoring would rewrite pages all over it, and 100,000 rows a second
    # would become 5,000. It looks through the model's rows instead (a million in a third of a second).
    __table_args__ = (
        Index("ix_prediction_rank", "model", "probability").ddl_if(dialect="postgresql"),
        {"sqlite_with_rowid": False},
    )


class ServedVectorRow(Base):
    """A vector that a request was answered from (a sample of them), kept to be computed again from the lake."""

    __tablename__ = "served_vector"

    contact_key: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    as_of: Mapped[datetime] = mapped_column(primary_key=True)
    #: Version of the view set.
    view_set: Mapped[str] = mapped_column(String(16), primary_key=True)
    #: Head of the log that the vector saw.
    seq: Mapped[int]
    #: float64, little-endian, in the order of the set's columns.
    vector: Mapped[bytes] = mapped_column(LargeBinary)

    __table_args__ = (Index("ix_served_vector_as_of", "as_of"),)


class FeatureCheckRow(Base):
    """The outcome of a check of the feature store."""

    __tablename__ = "feature_check"

    checked_at: Mapped[datetime] = mapped_column(primary_key=True)
    report: Mapped[dict[str, Any]]


class ServingModelRow(Base):
    """Which files serve a model now, and which served before."""

    __tablename__ = "serving_model"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    version: Mapped[int]
    path: Mapped[str] = mapped_column(Text)
    previous_version: Mapped[int | None]
    previous_path: Mapped[str | None] = mapped_column(Text)
    #: Probabilities of the last scoring at equal steps from the least to the greatest: percentiles of live answers.
    quantiles: Mapped[list[Any] | None]
    promoted_at: Mapped[datetime]
    #: Trained and not promoted: scored in the shadow of the champion, so that outcomes can compare the two.
    challenger_version: Mapped[int | None]
    challenger_path: Mapped[str | None] = mapped_column(Text)
    #: Scorings from here on count in the test that lets the model fall back: since a person chose it, or it fell back.
    tested_from: Mapped[datetime]
    #: Since when the version answers with its own lower rung, and what proved that it has to; None while it need not.
    fell_back_at: Mapped[datetime | None]
    fell_back_why: Mapped[str | None] = mapped_column(Text)


class ScoringRow(Base):
    """One scoring of all contacts: what was asked, where the scores are kept, and what outcomes said of them later."""

    __tablename__ = "scoring"

    model: Mapped[str] = mapped_column(String(60), primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    as_of: Mapped[datetime] = mapped_column(primary_key=True)
    #: served | challenger
    role: Mapped[str] = mapped_column(String(12))
    rung: Mapped[str] = mapped_column(String(40))
    #: What stands beside each score to be compared with: the lower rung, or ``base_rate``; None if nothing does.
    fallback: Mapped[str | None] = mapped_column(String(40))
    horizon_days: Mapped[int]
    #: The outcome that was asked for, as `features.labels.Outcome` has it, and what it says to people.
    outcome: Mapped[dict[str, Any]]
    contacts: Mapped[int]
    #: Mean and distribution of the scores.
    summary: Mapped[dict[str, Any]]
    #: Folder of the score files in the lake's store; None once they are pruned.
    folder: Mapped[str | None] = mapped_column(Text)
    #: When the horizon has passed.
    due_at: Mapped[datetime]
    judged_at: Mapped[datetime | None]
    result: Mapped[dict[str, Any] | None]

    __table_args__ = (Index("ix_scoring_due", "judged_at", "due_at"),)


class ModelEventRow(Base):
    """What befell a model, and why: promoted, rolled back, fallen back."""

    __tablename__ = "model_event"

    event_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    model: Mapped[str] = mapped_column(String(60))
    at: Mapped[datetime]
    #: trained (and promoted) | promoted (by hand) | rolled_back | fell_back
    kind: Mapped[str] = mapped_column(String(16))
    version: Mapped[int]
    reason: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index("ix_model_event_model", "model", "at"),)


class OutcomeRow(Base):
    """An outcome that a user declared; what `training.outcomes` reads."""

    __tablename__ = "outcome"

    name: Mapped[str] = mapped_column(String(60), primary_key=True)
    declaration: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class JobRow(Base):
    """Long work that was asked for: training, scoring, imports through the API."""

    __tablename__ = "job"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(40))
    parameters: Mapped[dict[str, Any]]
    #: queued | running | done | failed
    state: Mapped[str] = mapped_column(String(12), index=True)
    message: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    #: How often a worker began it; one that a crash cut short is begun once more.
    attempts: Mapped[int] = mapped_column(default=0)
    #: In the database's own clock: a running job whose worker no longer renews this is nobody's.
    lease_until: Mapped[datetime | None]
