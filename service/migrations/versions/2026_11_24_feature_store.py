"""Served vectors, checks, erasures; the log's clock."""

import sqlalchemy as sa
from alembic import op

revision = "20261124_01"
down_revision = "20261123_01"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "erasure",
        sa.Column("contact_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("requested_at", sa.BigInteger(), nullable=False),
        sa.Column("files_done_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("contact_key"),
    )
    op.create_table(
        "feature_check",
        sa.Column("checked_at", sa.BigInteger(), nullable=False),
        sa.Column("report", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("checked_at"),
    )
    op.create_table(
        "served_vector",
        sa.Column("contact_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("as_of", sa.BigInteger(), nullable=False),
        sa.Column("view_set", sa.String(length=16), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("vector", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("contact_key", "as_of", "view_set"),
    )
    with op.batch_alter_table("served_vector", schema=None) as batch_op:
        batch_op.create_index("ix_served_vector_as_of", ["as_of"], unique=False)
    # Known time may not run backwards along the log; imported history, known when it occurred, does not move the clock.
    op.execute(
        "insert into counter (name, value) "
        "select 'event_clock', coalesce(max(received_at), 0) from event where not is_imported"
    )
    op.execute("insert into counter (name, value) values ('event_rewrites', 0)")


def downgrade() -> None:
    op.execute("delete from counter where name in ('event_clock', 'event_rewrites')")
    op.drop_table("served_vector")
    op.drop_table("feature_check")
    op.drop_table("erasure")
