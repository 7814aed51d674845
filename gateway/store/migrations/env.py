"""Alembic's entry: runs the migrations on the connection that :func:`gateway.store.engine.upgrade` hands over."""

from typing import Any, Literal

from alembic import context

from gateway.store.schema import Utc, metadata


def render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Write our own column type as what it is in the database, so that a migration does not depend on the code."""
    return "sa.DateTime(timezone=True)" if kind == "type" and isinstance(item, Utc) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,
    render_item=render_item,
    transaction_per_migration=False,
)
with context.begin_transaction():
    context.run_migrations()
