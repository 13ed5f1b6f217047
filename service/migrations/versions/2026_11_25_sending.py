"""Sending: halts, throttles, second thoughts, preferences, list hygiene, networks of hits."""

import sqlalchemy as sa
from alembic import op

revision = "20261125_06"
down_revision = "20261125_05"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("campaign", sa.Column("status_reason", sa.String(length=300), nullable=True))
    op.add_column("campaign", sa.Column("status_by", sa.String(length=60), nullable=True))
    op.add_column("campaign", sa.Column("status_at", sa.BigInteger(), nullable=True))
    op.add_column("campaign", sa.Column("objective", sa.String(length=12), nullable=True))
    op.add_column("campaign", sa.Column("canary_share", sa.Float(), nullable=False, server_default="0"))
    op.add_column("campaign", sa.Column("canary_state", sa.String(length=12), nullable=False, server_default="none"))
    op.add_column("campaign", sa.Column("corrects", sa.String(length=60), nullable=True))
    op.add_column("campaign", sa.Column("created_by", sa.String(length=60), nullable=True))
    op.add_column("campaign", sa.Column("editors", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("campaign", sa.Column("approved_at", sa.BigInteger(), nullable=True))
    op.add_column("campaign", sa.Column("approved_by", sa.String(length=60), nullable=True))
    op.add_column("campaign", sa.Column("approved_digest", sa.String(length=64), nullable=True))
    op.drop_index("ix_send_contact_key", table_name="send")  # ix_send_contact_due begins with the contact, too
    op.add_column("send", sa.Column("is_canary", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("send", sa.Column("mailbox", sa.String(length=24), nullable=True))
    op.add_column("send", sa.Column("expected_value", sa.Float(), nullable=True))
    op.create_index(
        "ix_send_canary",
        "send",
        ["campaign_id"],
        unique=False,
        sqlite_where=sa.text("is_canary IS 1"),
        postgresql_where=sa.text("is_canary IS true"),
    )
    op.add_column("send", sa.Column("bounce", sa.String(length=8), nullable=True))
    op.add_column("send", sa.Column("complained_at", sa.BigInteger(), nullable=True))
    op.create_index(
        "ix_send_finished",
        "send",
        ["stream", "state", "finished_at", "bounce", "complained_at"],
        unique=False,
        sqlite_where=sa.text("finished_at IS NOT NULL"),
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )
    op.add_column("send", sa.Column("variables", sa.JSON(), nullable=True))
    undecided = sa.text("state = 'planned' AND decided_at IS NULL")
    op.create_index(
        "ix_send_undecided", "send", ["state", "due_at", "send_id"], sqlite_where=undecided, postgresql_where=undecided
    )
    ready = sa.text("state = 'planned' AND decided_at IS NOT NULL")
    op.create_index("ix_send_ready", "send", ["stream", "due_at"], sqlite_where=ready, postgresql_where=ready)
    message = sa.text("campaign_id IS NULL")
    op.create_index(
        "ix_send_message",
        "send",
        [sa.text("substr(intent_key, 1, 40)")],
        sqlite_where=message,
        postgresql_where=message,
    )
    op.add_column("hit", sa.Column("network", sa.String(length=32), nullable=True))
    op.add_column("hit", sa.Column("known_network", sa.String(length=40), nullable=True))
    op.add_column("hit", sa.Column("is_trap", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "halt",
        sa.Column("halt_id", sa.String(length=40), nullable=False),
        sa.Column("scope", sa.String(length=60), nullable=False),
        sa.Column("reason", sa.String(length=300), nullable=False),
        sa.Column("halted_by", sa.String(length=60), nullable=False),
        sa.Column("halted_at", sa.BigInteger(), nullable=False),
        sa.Column("lifted_by", sa.String(length=60), nullable=True),
        sa.Column("lifted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("halt_id"),
    )
    op.create_index("ix_halt_open", "halt", ["lifted_at", "scope"], unique=False)
    op.create_table(
        "idempotency",
        sa.Column("key_sha256", sa.String(length=64), nullable=False),
        sa.Column("principal", sa.String(length=60), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("body", sa.Text(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key_sha256", "principal"),
    )
    op.create_index("ix_idempotency_created_at", "idempotency", ["created_at"], unique=False)
    op.create_table(
        "throttle",
        sa.Column("mailbox", sa.String(length=24), nullable=False),
        sa.Column("tokens", sa.Float(), nullable=False),
        sa.Column("counted_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("mailbox"),
    )
    op.create_table(
        "departure",
        sa.Column("day", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("mailbox", sa.String(length=24), nullable=False),
        sa.Column("mails", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", "mailbox"),
    )
    op.create_table(
        "preference",
        sa.Column("contact_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("snoozed_until", sa.BigInteger(), nullable=True),
        sa.Column("most_per_week", sa.BigInteger(), nullable=True),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("contact_key"),
    )
    op.create_table(
        "hygiene",
        sa.Column("hygiene_id", sa.String(length=40), nullable=False),
        sa.Column("state", sa.String(length=12), nullable=False),
        sa.Column("rules", sa.JSON(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=60), nullable=False),
        sa.Column("applied_at", sa.BigInteger(), nullable=True),
        sa.Column("reverted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("hygiene_id"),
    )
    op.create_table(
        "hygiene_finding",
        sa.Column("hygiene_id", sa.String(length=40), nullable=False),
        sa.Column("contact_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("finding", sa.String(length=40), nullable=False),
        sa.Column("suggestion", sa.String(length=120), nullable=True),
        sa.PrimaryKeyConstraint("hygiene_id", "contact_key", "finding"),
    )


def downgrade() -> None:
    for table in ("hygiene_finding", "hygiene", "preference", "departure", "throttle", "idempotency", "halt"):
        op.drop_table(table)
    op.drop_column("hit", "is_trap")
    op.drop_column("hit", "known_network")
    op.drop_column("hit", "network")
    op.drop_index("ix_send_message", table_name="send")
    op.drop_index("ix_send_ready", table_name="send")
    op.drop_index("ix_send_undecided", table_name="send")
    op.drop_column("send", "variables")
    op.drop_index("ix_send_canary", "send")
    op.drop_index("ix_send_finished", "send")
    op.drop_column("send", "complained_at")
    op.drop_column("send", "bounce")
    op.drop_column("send", "expected_value")
    op.drop_column("send", "mailbox")
    op.drop_column("send", "is_canary")
    op.create_index("ix_send_contact_key", "send", ["contact_key"], unique=False)
    op.drop_column("campaign", "approved_digest")
    op.drop_column("campaign", "approved_by")
    op.drop_column("campaign", "approved_at")
    op.drop_column("campaign", "editors")
    op.drop_column("campaign", "created_by")
    op.drop_column("campaign", "corrects")
    op.drop_column("campaign", "canary_state")
    op.drop_column("campaign", "canary_share")
    op.drop_column("campaign", "objective")
    op.drop_column("campaign", "status_at")
    op.drop_column("campaign", "status_by")
    op.drop_column("campaign", "status_reason")
