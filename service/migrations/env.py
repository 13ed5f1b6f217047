"""Runs migrations on the connection that `Database.upgrade` hands over."""

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext

from features.tables import UtcMicros
from service.tables import Base


def render_item(type_: str, item: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Write our column types into migrations as what they are in the database."""
    if type_ == "type" and isinstance(item, UtcMicros):
        return "sa.BigInteger()"
    return False


connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite changes a table by copying it
    render_item=render_item,
    compare_type=False,
)
with context.begin_transaction():
    context.run_migrations()
