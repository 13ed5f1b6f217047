"""Decisions: segments, vectors, holdouts and ends of experiments; credits of orders; the learner's matrices."""

import sqlalchemy as sa
from alembic import op

revision = "20261125_04"
down_revision = "20261125_03"
branch_labels = None
depends_on = None

CELL = "experiment_id, arm_id, wave, trials, successes, sum_shown_at"


def upgrade() -> None:
    op.add_column("experiment", sa.Column("ended_at", sa.BigInteger(), nullable=True))
    op.add_column("experiment", sa.Column("settings", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("arm", sa.Column("status_reason", sa.String(length=300), nullable=True))
    op.add_column("arm", sa.Column("status_at", sa.BigInteger(), nullable=True))
    op.add_column("snapshot", sa.Column("ensemble", sa.LargeBinary(), nullable=True))
    op.add_column("decision", sa.Column("segment", sa.String(length=60), nullable=True))
    op.add_column("decision", sa.Column("context", sa.LargeBinary(), nullable=True))
    op.add_column("decision", sa.Column("is_holdout", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("decision", sa.Column("repeats", sa.String(length=40), nullable=True))
    op.create_index("ix_decision_contact", "decision", ["contact_key"], unique=False)
    op.drop_index("ix_snapshot_experiment_id", table_name="snapshot")
    op.create_index("ix_snapshot_newest", "snapshot", ["experiment_id", "snapshot_no"], unique=False)
    op.add_column("reward", sa.Column("reversed_at", sa.BigInteger(), nullable=True))
    op.create_table(
        "credit",
        sa.Column("experiment_id", sa.String(length=60), nullable=False),
        sa.Column("contact_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("order_ref", sa.String(length=255), nullable=False),
        sa.Column("decision_id", sa.String(length=40), nullable=False),
        sa.Column("value_minor", sa.BigInteger(), nullable=True),
        sa.Column("taken_back_minor", sa.BigInteger(), nullable=False),
        sa.Column("occurred_at", sa.BigInteger(), nullable=False),
        sa.Column("log_seq", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", "contact_key", "order_ref"),
    )
    op.create_index("ix_credit_decision_id", "credit", ["decision_id"], unique=False)
    op.create_table(
        "learner_matrix",
        sa.Column("experiment_id", sa.String(length=60), nullable=False),
        sa.Column("arm_id", sa.String(length=60), nullable=False),
        sa.Column("wave", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("origin", sa.String(length=8), nullable=False),
        sa.Column("gram", sa.LargeBinary(), nullable=False),
        sa.Column("moments", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", "arm_id", "wave", "origin"),
    )
    op.rename_table("learner_cell", "learner_cell_before")
    op.create_table(
        "learner_cell",
        sa.Column("experiment_id", sa.String(length=60), nullable=False),
        sa.Column("arm_id", sa.String(length=60), nullable=False),
        sa.Column("wave", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("segment", sa.String(length=60), nullable=False),
        sa.Column("trials", sa.BigInteger(), nullable=False),
        sa.Column("successes", sa.BigInteger(), nullable=False),
        sa.Column("sum_shown_at", sa.BigInteger(), nullable=False),
        sa.Column("sum_rewards", sa.Double(), nullable=False),
        sa.Column("sum_squares", sa.Double(), nullable=False),
        sa.Column("unsubscribes", sa.BigInteger(), nullable=False),
        sa.Column("complaints", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", "arm_id", "wave", "segment", name="learner_cell_key"),
    )
    op.execute(
        f"insert into learner_cell ({CELL}, segment, sum_rewards, sum_squares, unsubscribes, complaints) "
        f"select {CELL}, '', successes, successes, 0, 0 from learner_cell_before"
    )
    op.drop_table("learner_cell_before")


def downgrade() -> None:
    op.rename_table("learner_cell", "learner_cell_after")
    op.create_table(
        "learner_cell",
        sa.Column("experiment_id", sa.String(length=60), nullable=False),
        sa.Column("arm_id", sa.String(length=60), nullable=False),
        sa.Column("wave", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("trials", sa.BigInteger(), nullable=False),
        sa.Column("successes", sa.BigInteger(), nullable=False),
        sa.Column("sum_shown_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("experiment_id", "arm_id", "wave"),
    )
    op.execute(
        f"insert into learner_cell ({CELL}) select experiment_id, arm_id, wave, sum(trials), sum(successes), "
        "sum(sum_shown_at) from learner_cell_after group by experiment_id, arm_id, wave"
    )
    op.drop_table("learner_cell_after")
    op.drop_table("learner_matrix")
    op.drop_index("ix_credit_decision_id", table_name="credit")
    op.drop_table("credit")
    op.drop_column("reward", "reversed_at")
    op.drop_index("ix_snapshot_newest", table_name="snapshot")
    op.create_index("ix_snapshot_experiment_id", "snapshot", ["experiment_id"], unique=False)
    op.drop_index("ix_decision_contact", table_name="decision")
    for column in ("repeats", "is_holdout", "context", "segment"):
        op.drop_column("decision", column)
    op.drop_column("snapshot", "ensemble")
    op.drop_column("arm", "status_at")
    op.drop_column("arm", "status_reason")
    op.drop_column("experiment", "settings")
    op.drop_column("experiment", "ended_at")
