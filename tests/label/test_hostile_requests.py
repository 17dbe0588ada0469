"""Requests that lie about who asks, ask for what is not theirs, or come while the database is away."""

import contextlib
import http.client
import urllib.parse

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from preferl.label import commands
from preferl.label.accounts import MOST_ATTEMPTS, Accounts
from preferl.label.app import create_app
from preferl.label.dependencies import Options
from preferl.label.schema import open_database
from preferl.label.store import Store
from preferl.runs.errors import UsageError
from projects import PASSWORD, pairs


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "label.sqlite")


@pytest.fixture
def client(store, accounts):
    store.add_items(pairs(3))
    accounts.set_password(accounts.add("Ann").id, PASSWORD)
    app = create_app(store, accounts, Options(secret="s" * 32, hosts=("localhost",)))
    return TestClient(app, base_url="http://localhost", follow_redirects=False, raise_server_exceptions=False)


def sign_in(client) -> None:
    assert client.post("/login", data={"name": "Ann", "password": PASSWORD}).status_code == 303


def test_what_the_pages_take_is_told_to_those_who_are_signed_in(client):
    assert client.get("/openapi.json").headers["location"] == "/login"
    for path in ("/docs", "/redoc"):
        assert client.get(path).status_code == 404
    sign_in(client)
    assert "/judgements" in client.get("/openapi.json").json()["paths"]


def test_a_database_that_is_away_gives_a_page(client, store):
    sign_in(client)
    client.post("/consent")
    assert client.get("/label").status_code == 200
    with store.database.write() as connection:  # as if its disk were taken away
        for table in ("settings", "items", "annotators"):
            connection.execute(text(f"ALTER TABLE {table} RENAME TO {table}_away"))
    for path in ("/label", "/health", "/dashboard"):
        answer = client.get(path)
        assert answer.status_code == 503, path
        assert "The database does not answer just now" in answer.text
        assert "OperationalError" not in answer.text
    with store.database.write() as connection:
        for table in ("settings", "items", "annotators"):
            connection.execute(text(f"ALTER TABLE {table}_away RENAME TO {table}"))
    assert client.get("/label").status_code == 200


def test_a_database_that_goes_away_under_a_command_is_said(url, store):
    store.add_items(pairs(2))
    with store.database.write() as connection:
        connection.execute(text("ALTER TABLE annotators RENAME TO away"))
    with pytest.raises(UsageError, match=r"the database does not answer any more: no such table"):
        commands.main(["user", "Bob", "--db", url])


# ---------------------------------------------------------------------------------------- who it is that asks


@pytest.fixture
def listening(tmp_path, monkeypatch):
    """``preferl label`` itself with some options, in a thread; gives its port."""
    import threading

    import uvicorn

    servers = []
    began = threading.Event()
    startup = uvicorn.Server.startup

    async def noted(self, sockets=None):
        await startup(self, sockets)
        servers.append((self, sockets[0].getsockname()[1]))
        began.set()

    monkeypatch.setattr(uvicorn.Server, "startup", noted)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    threads = []

    def listen(url: str, **options) -> int:
        config = commands.ServeConfig(db=url, port=0, **options)
        thread = threading.Thread(target=commands.serve, args=(config,))
        thread.start()
        threads.append(thread)
        assert began.wait(30)
        return servers[-1][1]

    yield listen
    for server, _ in servers:
        server.should_exit = True
    for thread in threads:
        thread.join(30)


def guess(port: int, forwarded: str) -> int:
    """A wrong password from an address that the request only claims."""
    form = urllib.parse.urlencode({"name": "Ann", "password": "a wrong one"})
    kind = {"Content-Type": "application/x-www-form-urlencoded", "X-Forwarded-For": forwarded}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request("POST", "/login", form, kind)
        return connection.getresponse().status


@pytest.mark.parametrize(("proxy", "limited"), [(None, True), ("10.9.9.9", True), ("127.0.0.1", False)])
def test_the_limit_of_guesses_counts_who_connects(url, listening, proxy, limited):
    """Only where a proxy at that very address is named is its word taken about who asks."""
    database = open_database(url)
    Store(database).add_items(pairs(2))
    accounts = Accounts(database)
    accounts.set_password(accounts.add("Ann").id, PASSWORD)
    database.close()
    port = listening(url, proxy=proxy)
    answers = [guess(port, f"10.0.0.{i}") for i in range(MOST_ATTEMPTS + 2)]
    assert answers == [401] * MOST_ATTEMPTS + 2 * [429 if limited else 401]
