"""Score history and what outcomes said of it; challengers, fallen-back models, leases of jobs."""

import sqlalchemy as sa
from alembic import op

revision = "20261125_03"
down_revision = "20261125_02"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "scoring",
        sa.Column("model", sa.String(length=60), nullable=False),
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("as_of", sa.BigInteger(), nullable=False),
        sa.Column("role", sa.String(length=12), nullable=False),
        sa.Column("rung", sa.String(length=40), nullable=False),
        sa.Column("fallback", sa.String(length=40), nullable=True),
        sa.Column("horizon_days", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=False),
        sa.Column("contacts", sa.BigInteger(), nullable=False),
        sa.Column("summary", sa.JSON(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=True),
        sa.Column("due_at", sa.BigInteger(), nullable=False),
        sa.Column("judged_at", sa.BigInteger(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("model", "version", "as_of"),
    )
    op.create_index("ix_scoring_due", "scoring", ["judged_at", "due_at"], unique=False)
    op.create_table(
        "model_event",
        sa.Column("event_id", sa.String(length=40), nullable=False),
        sa.Column("model", sa.String(length=60), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_index("ix_model_event_model", "model_event", ["model", "at"], unique=False)
    op.add_column("serving_model", sa.Column("challenger_version", sa.BigInteger(), nullable=True))
    op.add_column("serving_model", sa.Column("challenger_path", sa.Text(), nullable=True))
    op.add_column("serving_model", sa.Column("tested_from", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("serving_model", sa.Column("fell_back_at", sa.BigInteger(), nullable=True))
    op.add_column("serving_model", sa.Column("fell_back_why", sa.Text(), nullable=True))
    op.add_column("job", sa.Column("attempts", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("job", sa.Column("lease_until", sa.BigInteger(), nullable=True))
    if op.get_bind().dialect.name == "sqlite":  # see `service.tables.PredictionRow`
        _remake_prediction(sqlite_with_rowid=False)


def downgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        _remake_prediction()
        op.create_index("ix_prediction_rank", "prediction", ["model", "probability"], unique=False)
    op.drop_column("job", "lease_until")
    op.drop_column("job", "attempts")
    for column in ("fell_back_why", "fell_back_at", "tested_from", "challenger_path", "challenger_version"):
        op.drop_column("serving_model", column)
    op.drop_table("model_event")
    op.drop_table("scoring")


def _remake_prediction(**options: bool) -> None:
    op.drop_index("ix_prediction_rank", "prediction", if_exists=True)
    op.rename_table("prediction", "prediction_before")
    op.create_table(
        "prediction",
        sa.Column("model", sa.String(length=60), nullable=False),
        sa.Column("contact_key", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("probability", sa.Double(), nullable=False),
        sa.Column("percentile", sa.Double(), nullable=False),
        sa.Column("as_of", sa.BigInteger(), nullable=False),
        sa.Column("model_version", sa.BigInteger(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("model", "contact_key"),
        **options,
    )
    columns = "model, contact_key, probability, percentile, as_of, model_version, detail"
    op.execute(f"insert into prediction ({columns}) select {columns} from prediction_before order by 1, 2")
    op.drop_table("prediction_before")
