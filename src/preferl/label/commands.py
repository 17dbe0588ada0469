"""``preferl label``: serve the pages, add people, write out what they said."""

import contextlib
import dataclasses
import getpass
import ipaddress
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from sqlalchemy.exc import OperationalError

from preferl.label import export
from preferl.label.accounts import Account, Accounts, install_secret
from preferl.label.items import read_gold, read_items
from preferl.label.project import Project
from preferl.label.schema import DATABASE, Database, describe_url, open_database, parse_url
from preferl.label.store import Store
from preferl.options.shared import ReadOptions
from preferl.runs.config import instantiate, parser_for
from preferl.runs.errors import UsageError
from preferl.runs.progress import say
from preferl.runs.ranges import Range, Seed

USAGE = """\
usage: preferl label --items F [--db URL] [options]   serve the labelling pages
       preferl label user NAME [--db URL] [options]   add a person, or a new one-time link; --password asks
       preferl label export OUT [--db URL] [options]  write what was judged
       preferl label simulate [--db URL] [options]    let a simulated annotator judge the same items
       preferl label feed [--db URL] [options]        sample new items from a policy while people label
       preferl label refit [--db URL] [options]       train reward models meanwhile, and choose items by them
`preferl label --help` and `preferl label COMMAND --help` list the options.
"""
ABOUT = {
    "": "Serve the labelling pages. Other commands: preferl label user | export | simulate | feed | refit.",
    "user": "preferl label user NAME: add a person, or a new one-time link; --password asks for a password.",
    "export": "preferl label export OUT: write what was judged.",
    "simulate": "Let a simulated annotator judge the items that people judge.",
    "feed": "Sample new items from a policy while people label.",
    "refit": "Train reward models while people label, and let them choose the next items.",
}
KEEP_ALIVE_SECONDS = 75  # people read for a while between two requests


@dataclass(kw_only=True)
class ServeConfig(ReadOptions):
    """Options of the labelling pages. Those of the project are remembered: a later start needs only --db."""

    items: str | None = None
    """What to label: a collect stage, any file or Hub name of preferences, or rows of prompt + responses."""
    gold: str | None = None
    """Preferences or rankings of known answer, mixed in to check annotators."""
    db: str = DATABASE
    """A file (SQLite), or a postgresql:// URL."""
    host: str = "127.0.0.1"
    """Address to listen at. Others than this machine's own ask everybody for a password."""
    port: Annotated[int, Range(0, 65535)] = 8000
    """Port to listen at; 0 takes a free one."""
    public_url: str | None = None
    """Address under which people reach the pages where that is another one, such as a proxy's with TLS."""
    proxy: str | None = None
    """Address of a proxy in front of the pages, whose word about who asks (X-Forwarded-For) is taken; without
    it the limit of sign-ins counts the address that connects."""
    lead: str = "lead"
    """Name of the lead, who is added at the first start."""
    title: str | None = None
    """The question above every item."""
    guidelines: str | None = None
    """Markdown file to show beside every item (``preferl design-reward`` writes one)."""
    consent: str | None = None
    """Markdown file that people agree to at first use."""
    markdown: bool | None = None
    """Show responses as sanitised Markdown instead of plain text."""
    overlap: int | None = None
    """Judgements of each item, by different people (default 1)."""
    gold_share: float | None = None
    """Share of an annotator's items with a known answer (default 0.1)."""
    repeat_share: float | None = None
    """Share of an annotator's items that come again, turned round (default 0.05)."""
    repeat_gap: int | None = None
    """Items between a judgement and its repeat, at least (default 10)."""
    lease_seconds: float | None = None
    """After so long without a sign of life an item goes to somebody else (default 900)."""
    idle_seconds: float | None = None
    """Longest time on one item that statistics count (default 300)."""
    selection: str | None = None
    """``random`` (default) or ``informative``: what ``preferl label refit`` finds most uncertain first."""
    random_share: float | None = None
    """With ``informative``: share chosen at random all the same (default 0.2)."""
    seed: Seed | None = None
    """Of the order of items and responses (default 0); fixed once there are items."""


@dataclass(kw_only=True)
class UserConfig:
    """Options of ``preferl label user NAME``."""

    db: str = DATABASE
    """The project's database."""
    role: str | None = None
    """``annotator`` (as new people are) or ``lead``; changes what somebody is already."""
    url: str = "http://127.0.0.1:8000"
    """Address of the pages, for the link."""


@dataclass(kw_only=True)
class ExportConfig:
    """Options of ``preferl label export OUT``: .jsonl, .jsonl.gz, .parquet or .csv."""

    db: str = DATABASE
    """The project's database."""
    layout: str | None = None
    """``explicit`` (pairs, what `preferl reward --dataset_name` reads), ``implicit``, ``hh``, ``ranking``,
    ``comparison`` or ``csv``; by default pairs, and csv for .csv."""
    aggregate: str = "none"
    """``none``: a row for each judgement; ``majority`` or ``dawid_skene``: one for each item."""
    kind: str = "human"
    """``human``, ``sim`` or ``all``."""


def main(arguments: list[str]) -> int:
    """Runs one of the commands; returns the exit code.

    Raises:
        UsageError: the database went away while it was used.
    """
    try:
        return run_command(arguments)
    except OperationalError as error:
        reason = (str(error.orig).strip().splitlines() or ["no reason given"])[0]
        raise UsageError(
            f"the database does not answer any more: {reason}; what was stored before is safe: see that it "
            f"runs and has room, and run the same command again"
        ) from error


def run_command(arguments: list[str]) -> int:
    match arguments:
        case ["user", name, *rest] if not name.startswith("-"):
            return user(name, rest)
        case ["export", out, *rest] if not out.startswith("-"):
            return write_export(Path(out), rest)
        case [("user" | "export") as command, "--help" | "-h"]:
            config_class = {"user": UserConfig, "export": ExportConfig}[command]
            parse_options(config_class, command, ["--help"])
        case [("simulate" | "feed" | "refit") as command, *rest]:
            return run_worker(command, rest)
        case [word, *_] if not word.startswith("-"):
            print(USAGE, end="", file=sys.stderr)
            return 2
    return serve(parse_options(ServeConfig, "", arguments))


def parse_options(config_class: type, command: str, arguments: list[str]) -> Any:
    """A command's options."""
    parser = parser_for(config_class, f"preferl label {command}".strip(), ABOUT[command], arguments)
    return instantiate(parser, config_class, parser.parse_args(arguments))


# -------------------------------------------------------------------------------------------------- serving


def serve(config: ServeConfig) -> int:
    """Prepares the project and serves its pages until it is stopped."""
    database = open_database(config.db)
    try:
        store, accounts = Store(database), Accounts(database)
        prepare(store, config)
        public = not is_loopback(config.host) or config.public_url is not None
        lead = lead_account(accounts, config.lead)
        if public and not lead.has_password:
            raise UsageError(
                f"others can reach {config.public_url or config.host}, and '{lead.name}' has no password; "
                f"set one first: preferl label user {lead.name} --role lead --password --db {config.db}"
            )
        listen(store, accounts, lead, config, public)
    finally:
        database.close()
    return 0


def prepare(store: Store, config: ServeConfig) -> None:
    """Settings and items, as far as they are given."""
    changes: dict[str, Any] = {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(Project)
        if getattr(config, field.name) is not None
    }
    for name in ("guidelines", "consent"):
        if name in changes:
            changes[name] = read_text(name, changes[name])
    store.configure(**changes)
    if config.items:
        rankings, report = read_items(config.items, config)
        new, old = store.add_items(rankings)
        say(f"label: {report}; {new} new items{f', {old} were there before' if old else ''}")
    if config.gold:
        new, old = store.add_items(read_gold(config.gold, config), gold=True)
        there = f"; {old} were there before and stay what they were" if old else ""
        say(f"label: {new} new items of known answer{there}")
    if not store.progress().items:
        raise UsageError(
            f"the project in {describe_url(store.database.url)} has no items; give --items with a collect "
            f"stage or a file of preferences"
        )


def read_text(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--{name} {path} cannot be read: {error}; give a Markdown file") from error


def lead_account(accounts: Accounts, name: str) -> Account:
    """The project's lead; added where there is none of this name."""
    leads = [account for account in accounts.all() if account.leads]
    for account in leads:
        if account.name == name or name == ServeConfig.lead:
            return account
    return accounts.add(name, "lead")


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def listen(store: Store, accounts: Accounts, lead: Account, config: ServeConfig, public: bool) -> None:
    """Serves until interrupted."""
    import uvicorn

    from preferl.label.app import create_app
    from preferl.label.dependencies import Options

    listener = listening_socket(config.host, config.port)
    port = listener.getsockname()[1]
    host = f"[{config.host}]" if ":" in config.host else config.host
    address = config.public_url or f"http://{host}:{port}"
    hosts = ("localhost", "127.0.0.1", "[::1]", urlsplit(address).hostname or "")
    options = Options(
        secret=install_secret(),
        hosts=("*",) if public and config.public_url is None else hosts,
        public=public,
        https=address.startswith("https://"),
    )

    class Server(uvicorn.Server):
        """Says where it serves once it does: before, nothing would take an interrupt in order."""

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            progress = store.progress()
            left = f"{progress.items} items, {progress.left} judgements to go"
            say(f"label: {left}, in {describe_url(store.database.url)}")
            if public:
                say(f"label: serving at {address}")
            else:
                link = f"{address}/link/{accounts.link(lead.id)}"
                say(f"label: open {link} (works once, signs in as {lead.name})")
            db = f" --db {config.db}" if config.db != DATABASE else ""
            invite = f"preferl label user NAME --url {address}{db}"
            say(f"label: `{invite}` makes links for other people; Ctrl+C stops")

    server = Server(
        uvicorn.Config(
            create_app(store, accounts, options),
            log_level="warning",
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            # Anybody can write X-Forwarded-For, and so be somebody else at each wrong password.
            proxy_headers=config.proxy is not None,
            forwarded_allow_ips=config.proxy or "",
        )
    )
    # Having shut down in order, the server raises the interrupt that made it stop.
    with listener, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    say("label: stopped; every judgement is stored")


def listening_socket(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UsageError: the address is not to be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # The protocol is named because asyncio turns Nagle's algorithm off only where it is: 40 ms an answer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # so that the link works from the moment when it is printed
    except OSError as error:
        listener.close()
        raise UsageError(
            f"cannot listen at {host}:{port}: {error.strerror}; choose another --port (0 takes a free one)"
        ) from error
    return listener


def run_worker(command: str, arguments: list[str]) -> int:
    """One of the commands that run beside the pages, and load models."""
    from preferl.label import live

    config_class, run = live.COMMANDS[command]
    config = parse_options(config_class, command, arguments)
    database = open_existing(config.db)
    try:
        run(config, Store(database))
    finally:
        database.close()
    return 0


# ------------------------------------------------------------------------------------------- people, exports


def open_existing(url: str) -> Database:
    """The database of a project that was begun."""
    address = parse_url(url)
    if address.get_backend_name() == "sqlite" and not Path(str(address.database)).exists():
        raise UsageError(f"there is no project at {url}; give --db, or begin one: preferl label --items F")
    return open_database(url)


def user(name: str, arguments: list[str]) -> int:
    """Adds a person where there is none of this name; prints a one-time link, or asks for a password."""
    with_password = "--password" in arguments
    config = parse_options(UserConfig, "user", [a for a in arguments if a != "--password"])
    # The first lead's password may be set before there is anything to label.
    database = open_database(config.db) if config.role == "lead" else open_existing(config.db)
    try:
        accounts = Accounts(database)
        known = next((account for account in accounts.all() if account.name == name.strip()), None)
        if known and known.kind == "sim":
            raise UsageError(f"'{name}' is a simulated annotator and cannot sign in; choose another name")
        if known and config.role not in (None, known.role):
            accounts.set_role(known.id, config.role)
        account = accounts.named(name) if known else accounts.add(name, config.role or "annotator")
        if with_password:
            accounts.set_password(account.id, getpass.getpass(f"Password for {account.name}: "))
            print(f"{account.name} ({account.role}) can sign in at {config.url}/login")
        else:
            print(f"{config.url.rstrip('/')}/link/{accounts.link(account.id)}")
    finally:
        database.close()
    return 0


def write_export(out: Path, arguments: list[str]) -> int:
    """Writes the judgements to a file."""
    config = parse_options(ExportConfig, "export", arguments)
    layout = config.layout or ("csv" if out.name.endswith(".csv") else "explicit")
    if (layout == "csv") != out.name.endswith(".csv"):
        raise UsageError(f"layout {layout} does not fit {out.name}; csv goes into .csv, others into .jsonl")
    database = open_existing(config.db)
    try:
        rows = export.write(Store(database), out, layout, config.aggregate, config.kind)
    finally:
        database.close()
    print(f"{out}: {rows} rows")
    return 0
