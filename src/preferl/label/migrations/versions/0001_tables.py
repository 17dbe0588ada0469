"""The tables, and triggers that keep events append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "settings",
        sa.Column("name", sa.String(60), primary_key=True),
        sa.Column("value", sa.JSON, nullable=False),
    )
    op.create_table(
        "annotators",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.String(60), nullable=False, unique=True),
        sa.Column("role", sa.String(20), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("password_hash", sa.Text),
        sa.Column("session", sa.Integer, nullable=False),
        sa.Column("consented_at", sa.Double),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "links",
        sa.Column("token_hash", sa.String(64), primary_key=True),
        sa.Column("annotator_id", sa.Integer, sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
        sa.Column("used_at", sa.Double),
    )
    op.create_table(
        "items",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("key", sa.String(64), nullable=False, unique=True),
        sa.Column("prompt", sa.JSON, nullable=False),
        sa.Column("responses", sa.JSON, nullable=False),
        sa.Column("columns", sa.JSON, nullable=False),
        sa.Column("gold", sa.JSON),
        sa.Column("taken", sa.Integer, nullable=False),
        sa.Column("place", sa.Double, nullable=False),
        sa.Column("score", sa.Double),
    )
    op.create_index("ix_items_taken_place", "items", ["taken", "place"])
    op.create_index("ix_items_taken_score", "items", ["taken", "score"])
    given = sa.text("gold IS NOT NULL")
    op.create_index("ix_items_gold", "items", ["place"], sqlite_where=given, postgresql_where=given)
    op.create_table(
        "assignments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("item_id", sa.Integer, sa.ForeignKey("items.id"), nullable=False),
        sa.Column("annotator_id", sa.Integer, sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("purpose", sa.String(20), nullable=False),
        sa.Column("slot", sa.Integer),
        sa.Column("state", sa.String(20), nullable=False),
        sa.Column("order", sa.JSON, nullable=False),
        sa.Column("selected", sa.String(20), nullable=False),
        sa.Column("opened_at", sa.Double, nullable=False),
        sa.Column("leased_until", sa.Double, nullable=False),
        sa.Column("event_id", sa.Integer),
        sa.UniqueConstraint("item_id", "slot"),
        sa.UniqueConstraint("item_id", "annotator_id", "purpose"),
    )
    op.create_index("ix_assignments_annotator_id_state", "assignments", ["annotator_id", "state"])
    op.create_index("ix_assignments_state_leased_until", "assignments", ["state", "leased_until"])
    op.create_table(
        "events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("assignment_id", sa.Integer, sa.ForeignKey("assignments.id"), nullable=False),
        sa.Column("annotator_id", sa.Integer, sa.ForeignKey("annotators.id"), nullable=False),
        sa.Column("kind", sa.String(20), nullable=False),
        sa.Column("nonce", sa.String(64), nullable=False),
        sa.Column("undoes", sa.Integer, sa.ForeignKey("events.id"), unique=True),
        sa.Column("ranks", sa.JSON),
        sa.Column("strength", sa.Integer),
        sa.Column("both_bad", sa.Boolean, nullable=False),
        sa.Column("flagged", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("seconds", sa.Double, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.UniqueConstraint("annotator_id", "nonce"),
    )
    op.create_index("ix_events_assignment_id", "events", ["assignment_id"])
    for statement in APPEND_ONLY[op.get_bind().dialect.name]:
        op.execute(statement)


APPEND_ONLY = {
    "sqlite": [
        f"CREATE TRIGGER events_no_{change} BEFORE {change.upper()} ON events "
        f"BEGIN SELECT RAISE(ABORT, 'events are only appended'); END"
        for change in ("update", "delete")
    ],
    "postgresql": [
        "CREATE FUNCTION events_are_appended() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'events are only appended'; END $$",
        "CREATE TRIGGER events_no_change BEFORE UPDATE OR DELETE OR TRUNCATE ON events "
        "FOR EACH STATEMENT EXECUTE FUNCTION events_are_appended()",
    ],
}
