"""Campaigns cut into waves."""

import sqlalchemy as sa
from alembic import op

revision = "20261125_05"
down_revision = "20261125_04"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("campaign", sa.Column("waves", sa.BigInteger(), nullable=False, server_default="1"))


def downgrade() -> None:
    op.drop_column("campaign", "waves")
