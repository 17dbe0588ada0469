"""Alembic's entry: runs migrations on the connection that ``schema.migrate`` hands over."""

from alembic import context

from preferl.label.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
