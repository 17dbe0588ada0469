"""Who may do what: names and passwords (argon2), one-time links, the secret that signs sessions."""

import hashlib
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import ColumnElement, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from preferl.label.schema import Database, annotators, links
from preferl.runs.errors import UsageError

ROLES = ("annotator", "lead")
SHORTEST_PASSWORD = 10
LONGEST_PASSWORD = 200
LINK_SECONDS = 24 * 3600.0
# After so many attempts for one name from one address within the window, sign-in waits for its end.
MOST_ATTEMPTS, ATTEMPT_WINDOW = 10, 300.0
MOST_REMEMBERED = 10_000
MOST_HASHING = 2  # at a time: each takes 64 MiB


@dataclass(frozen=True)
class Account:
    """A person, or a simulated annotator (``kind`` sim), who cannot sign in."""

    id: int
    name: str
    role: str
    kind: str
    has_password: bool
    consented: bool
    session: int

    @property
    def leads(self) -> bool:
        return self.role == "lead"


class Accounts:
    """The people of a project."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time):
        self.database, self.clock = database, clock
        self.hasher = PasswordHasher()
        # Verified where there is no such name, so that the time does not tell.
        self.nobody = self.hasher.hash(secrets.token_hex(8))
        self.attempts: dict[tuple[str, str], list[float]] = {}
        self.guard, self.hashing = threading.Lock(), threading.BoundedSemaphore(MOST_HASHING)

    def add(self, name: str, role: str = "annotator", kind: str = "human") -> Account:
        """A new account, without a password.

        Raises:
            UsageError: the name is taken or unusable, or the role unknown.
        """
        name = name.strip()
        if not 1 <= len(name) <= 60 or not name.isprintable():
            raise UsageError(f"name {name!r} cannot be used; take 1 to 60 printable characters")
        check_role(role)
        try:
            with self.database.write() as connection:
                connection.execute(
                    insert(annotators).values(
                        name=name, role=role, kind=kind, session=0, created_at=self.clock()
                    )
                )
        except IntegrityError as error:
            raise UsageError(f"there is already an account called '{name}'") from error
        return self.named(name)

    def named(self, name: str) -> Account:
        """Raises UsageError where there is none."""
        with self.database.read() as connection:
            row = connection.execute(select(annotators).where(annotators.c.name == name.strip())).first()
        if row is None:
            raise UsageError(f"there is no account called '{name}'; `preferl label user {name}` adds it")
        return account_of(row)

    def find(self, annotator_id: int) -> Account | None:
        with self.database.read() as connection:
            row = connection.execute(select(annotators).where(annotators.c.id == annotator_id)).first()
        return account_of(row) if row else None

    def all(self) -> list[Account]:
        with self.database.read() as connection:
            rows = connection.execute(select(annotators).order_by(annotators.c.id)).all()
        return [account_of(row) for row in rows]

    def consent(self, annotator_id: int) -> None:
        with self.database.write() as connection:
            connection.execute(
                update(annotators).where(annotators.c.id == annotator_id).values(consented_at=self.clock())
            )

    # --------------------------------------------------------------------------------------------- passwords

    def set_password(self, annotator_id: int, password: str) -> None:
        """Sets a password; sessions that were open end.

        Raises:
            UsageError: it is too short or too long.
        """
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
            raise UsageError(
                f"the password has {len(password)} characters; take {SHORTEST_PASSWORD} to {LONGEST_PASSWORD}"
            )
        hashed = self.hasher.hash(password)
        with self.database.write() as connection:
            connection.execute(
                update(annotators)
                .where(annotators.c.id == annotator_id)
                .values(password_hash=hashed, session=annotators.c.session + 1)
            )

    def sign_in(self, name: str, password: str, address: str = "") -> Account | None:
        """The account, or None where name and password do not fit.

        Raises:
            TooManyAttempts: for this name, from this address, just now.
        """
        name = name.strip()
        key = (name, address)
        self.count_attempt(key)
        row = None
        if name.isprintable():
            with self.database.read() as connection:
                row = connection.execute(
                    select(annotators).where(annotators.c.name == name, annotators.c.kind == "human")
                ).first()
        hashed = row.password_hash if row is not None else None
        try:
            with self.hashing:
                self.hasher.verify(hashed or self.nobody, password[: LONGEST_PASSWORD + 1])
        except (VerificationError, InvalidHashError):
            return None
        with self.guard:
            self.attempts.pop(key, None)
        return account_of(row) if row is not None and hashed else None

    def count_attempt(self, key: tuple[str, str]) -> None:
        """Counts before the password is checked, so that many at once gain nothing."""
        with self.guard:
            since = self.clock() - ATTEMPT_WINDOW
            if len(self.attempts) >= MOST_REMEMBERED:
                self.attempts = {k: times for k, times in self.attempts.items() if times[-1] > since}
                if len(self.attempts) >= MOST_REMEMBERED:
                    raise TooManyAttempts
            recent = [at for at in self.attempts.get(key, []) if at > since]
            if len(recent) >= MOST_ATTEMPTS:
                raise TooManyAttempts
            self.attempts[key] = [*recent, self.clock()]

    def end_sessions(self, annotator_id: int) -> None:
        """Nobody stays signed in to this account."""
        with self.database.write() as connection:
            connection.execute(
                update(annotators)
                .where(annotators.c.id == annotator_id)
                .values(session=annotators.c.session + 1)
            )

    def set_role(self, annotator_id: int, role: str) -> None:
        """Raises UsageError where the role is unknown."""
        check_role(role)
        with self.database.write() as connection:
            connection.execute(update(annotators).where(annotators.c.id == annotator_id).values(role=role))

    # ------------------------------------------------------------------------------------------------- links

    def link(self, annotator_id: int, seconds: float = LINK_SECONDS) -> str:
        """A token that signs in once; only its hash is kept."""
        token = secrets.token_urlsafe(24)
        with self.database.write() as connection:
            connection.execute(
                insert(links).values(
                    token_hash=hashed_token(token),
                    annotator_id=annotator_id,
                    expires_at=self.clock() + seconds,
                )
            )
        return token

    def owner_of(self, token: str) -> Account | None:
        """Whose link this is, where it can still be used."""
        with self.database.read() as connection:
            row = connection.execute(
                select(annotators)
                .join_from(annotators, links, links.c.annotator_id == annotators.c.id)
                .where(links.c.token_hash == hashed_token(token), self.usable())
            ).first()
        return account_of(row) if row else None

    def use_link(self, token: str) -> Account | None:
        """Signs in with a link; the second time it is None."""
        owner = self.owner_of(token)
        with self.database.write() as connection:
            used = connection.execute(
                update(links)
                .where(links.c.token_hash == hashed_token(token), self.usable())
                .values(used_at=self.clock())
            ).rowcount
        return owner if used == 1 else None

    def usable(self) -> ColumnElement[bool]:
        return links.c.used_at.is_(None) & (links.c.expires_at > self.clock())


class TooManyAttempts(Exception):
    """Somebody tries passwords."""


def check_role(role: str) -> None:
    if role not in ROLES:
        raise UsageError(f"role '{role}' is unknown; use {' or '.join(ROLES)}")


def account_of(row: Row) -> Account:
    return Account(
        id=row.id,
        name=row.name,
        role=row.role,
        kind=row.kind,
        has_password=row.password_hash is not None,
        consented=row.consented_at is not None,
        session=row.session,
    )


def hashed_token(token: str) -> str:
    """Tokens are long and random: a plain hash cannot be searched."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def secret_file() -> Path:
    folder = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(folder) / "preferl" / "label-secret"


def install_secret(path: Path | None = None) -> str:
    """The secret that signs this installation's sessions; made at first use, readable by its owner alone.

    Raises:
        UsageError: others can read the file.
    """
    path = path or secret_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        pass
    else:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UsageError(f"{path} signs sessions, but others can read it; chmod 600 {path}, or delete it")
    secret = path.read_text().strip()
    if len(secret) < 32:
        raise UsageError(f"{path} holds no secret of 32 characters; delete it, and a new one is made")
    return secret
