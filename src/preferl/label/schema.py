"""The tables, and opening a database: SQLite in one file, or PostgreSQL by URL.

What annotators say is in ``events`` and only ever appended (triggers refuse anything else); ``assignments``
say who has which item, and point at the event that counts.
"""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    URL,
    Boolean,
    Column,
    Connection,
    Double,
    Engine,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, DatabaseError, NoSuchModuleError

from preferl.runs.errors import UsageError

DATABASE = "runs/label/label.sqlite"
# The newest migration; a test holds it equal to what alembic finds.
HEAD = "0001"
WRITER_LOCK = 0x70726566  # "pref": the key of PostgreSQL's advisory lock

# Names that alembic and PostgreSQL can refer to.
metadata = MetaData(
    naming_convention={
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

settings = Table(
    "settings",
    metadata,
    Column("name", String(60), primary_key=True),
    Column("value", JSON, nullable=False),
)

annotators = Table(
    "annotators",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", String(60), nullable=False, unique=True),
    Column("role", String(20), nullable=False),  # annotator, lead
    Column("kind", String(20), nullable=False),  # human, sim
    Column("password_hash", Text),
    Column("session", Integer, nullable=False, default=0),  # counts up when sessions must end
    Column("consented_at", Double),
    Column("created_at", Double, nullable=False),
)

links = Table(
    "links",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False),
    Column("expires_at", Double, nullable=False),
    Column("used_at", Double),
)

items = Table(
    "items",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", String(64), nullable=False, unique=True),  # hash of prompt and responses
    Column("prompt", JSON, nullable=False),
    Column("responses", JSON, nullable=False),
    Column("columns", JSON, nullable=False),  # what else the row held
    Column("gold", JSON(none_as_null=True)),  # the right places, for items that check annotators
    Column("taken", Integer, nullable=False, default=0),  # slots of people that are claimed or done
    Column("place", Double, nullable=False),  # seeded random number: the order of random selection
    Column("score", Double),  # disagreement of a reward-model ensemble: the order of informative selection
    Index("ix_items_taken_place", "taken", "place"),
    Index("ix_items_taken_score", "taken", "score"),
)
GIVEN = items.c.gold.is_not(None)
Index("ix_items_gold", items.c.place, sqlite_where=GIVEN, postgresql_where=GIVEN)

assignments = Table(
    "assignments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("item_id", ForeignKey("items.id"), nullable=False),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False),
    Column("purpose", String(20), nullable=False),  # label, gold, repeat, sim
    Column("slot", Integer),  # 1 to overlap while a label is claimed or done: an item has each once
    Column("state", String(20), nullable=False),  # open, done, left, expired
    Column("order", JSON, nullable=False),  # which response is shown at each position
    Column("selected", String(20), nullable=False),  # random, informative
    Column("opened_at", Double, nullable=False),
    Column("leased_until", Double, nullable=False),
    Column("event_id", Integer),  # the judgement or skip that counts
    UniqueConstraint("item_id", "slot"),
    UniqueConstraint("item_id", "annotator_id", "purpose"),
    Index("ix_assignments_annotator_id_state", "annotator_id", "state"),
    Index("ix_assignments_state_leased_until", "state", "leased_until"),
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("assignment_id", ForeignKey("assignments.id"), nullable=False),
    Column("annotator_id", ForeignKey("annotators.id"), nullable=False),
    Column("kind", String(20), nullable=False),  # judge, skip, undo
    Column("nonce", String(64), nullable=False),
    Column("undoes", ForeignKey("events.id"), unique=True),
    Column("ranks", JSON(none_as_null=True)),  # places of the responses in the item's own order, 1 the best
    Column("strength", Integer),  # of pairs: 3 first much better … 0 tie … -3, in the item's own order
    Column("both_bad", Boolean, nullable=False, default=False),
    Column("flagged", Boolean, nullable=False, default=False),
    Column("reason", Text, nullable=False, default=""),
    Column("seconds", Double, nullable=False),  # from showing to answering
    Column("at", Double, nullable=False),  # Unix time
    UniqueConstraint("annotator_id", "nonce"),
    Index("ix_events_assignment_id", "assignment_id"),
)


class Database:
    """Connections to one database; writing transactions come one after the other, in every process.

    SQLite runs in WAL mode with ``synchronous=FULL``: what was committed survives a kill and a power cut.
    """

    def __init__(self, url: str | URL):
        self.url = parse_url(url)
        self.engine = connect(self.url)
        self.writing = threading.Lock()

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self.engine.connect() as connection:
            if self.engine.dialect.name == "postgresql":
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that nobody else writes beside; committed at the end, rolled back on an error."""
        with self.writing, self.engine.connect() as connection:
            connection = connection.execution_options(preferl_write=True)
            with connection.begin():
                if self.engine.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": WRITER_LOCK})
                yield connection

    def close(self) -> None:
        self.engine.dispose()


def open_database(url: str | URL) -> Database:
    """Connects, and brings the tables to the newest migration.

    Raises:
        UsageError: the database cannot be reached, or a newer preferl has migrated it.
    """
    database = Database(url)
    try:
        migrate(database)
    except UsageError:
        database.close()
        raise
    except DatabaseError as error:
        database.close()
        reason = str(error.orig).strip().splitlines()[0]
        raise UsageError(
            f"the database {describe_url(database.url)} cannot be used: {reason}; check --db, its rights and "
            f"that its server runs"
        ) from error
    return database


def migrate(database: Database) -> None:
    """Runs the migrations that are missing; looks at one row where none is."""
    with database.read() as connection:
        version = None
        if inspect(connection).has_table("alembic_version"):
            version = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
    if version == HEAD:
        return
    from alembic import command

    config = alembic_config()
    with database.write() as connection:
        config.attributes["connection"] = connection
        from alembic.util import CommandError

        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise UsageError(
                f"the database {describe_url(database.url)} is at migration {version}, which this preferl "
                f"does not know: update preferl"
            ) from error


def alembic_config() -> Any:
    """The migrations of this package."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def parse_url(url: str | URL) -> URL:
    """A file name as SQLite's URL, and PostgreSQL's URLs with the driver.

    Raises:
        UsageError: another kind of database, or none that could keep anything.
    """
    if isinstance(url, URL):
        return url
    if "://" not in url:
        # Not as text: a question mark in a file's name would start the URL's options.
        return URL.create("sqlite", database=url)
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise UsageError("--db is no URL; use a file name or postgresql://…") from error
    if parsed.drivername in ("postgres", "postgresql"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise UsageError("--db must name a file: judgements in memory would be lost")
    if parsed.drivername not in ("sqlite", "postgresql+psycopg"):
        raise UsageError(
            f"--db {parsed.drivername}://… is not supported; use a file name (SQLite) or postgresql://…"
        )
    return parsed


def describe_url(url: URL) -> str:
    """What a person is told of a database: its file, or its URL without the password."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return url.render_as_string(hide_password=True)


def connect(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        try:
            return create_engine(url, pool_size=10, max_overflow=30, pool_pre_ping=True)
        except (ModuleNotFoundError, NoSuchModuleError) as error:
            raise UsageError("PostgreSQL needs its driver: pip install 'preferl[postgres]'") from error
    path = Path(str(url.database)).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Judgements and password hashes are nobody else's business; SQLite's other files follow this one.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    engine = create_engine(url, pool_size=10, max_overflow=30)

    @event.listens_for(engine, "connect")
    def configure(connection: Any, record: Any) -> None:
        # The driver's own transactions start too late; "begin" below starts them.
        connection.isolation_level = None
        for pragma in ("busy_timeout=20000", "journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A transaction that reads first and writes later could meet another's write in between.
        writes = connection.get_execution_options().get("preferl_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
