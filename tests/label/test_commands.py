"""``preferl label`` as a person starts it: projects, people, links, what is refused."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from loopback import assert_heard_here_alone
from preferl.cli import main
from preferl.label import commands
from preferl.label.accounts import Accounts
from preferl.label.judgements import read_items
from preferl.label.schema import open_database
from preferl.label.store import Store
from preferl.runs.errors import UsageError
from projects import PASSWORD


@pytest.fixture(autouse=True)
def own_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": f"P{i}", "chosen": f"a{i}", "rejected": f"b{i}", "margin": 0.5} for i in range(4)]
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return path


@pytest.fixture
def db(tmp_path):
    return str(tmp_path / "label.sqlite")


def prepared(db, **options):
    store = Store(open_database(db))
    commands.prepare(store, commands.ServeConfig(db=db, **options))
    return store


def start(*arguments):
    """A server in a process of its own, and the lines that it prints until it listens."""
    command = [sys.executable, "-m", "preferl", "label", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "open http" in line or "serving at" in line:
            return process, "".join(lines)
    raise AssertionError("".join(lines))


# --------------------------------------------------------------------------------------------------- serving


def test_it_serves_prints_a_link_and_stops_at_a_signal(rows, db, tmp_path):
    process, said = start("--items", str(rows), "--db", db, "--port", "0", "--overlap", "2")
    try:
        assert "4 new items" in said
        assert "4 items, 8 judgements to go" in said
        link = re.search(r"open (http://127\.0\.0\.1:\d+/link/\S+) ", said)[1]
        with urllib.request.urlopen(link) as answer:
            assert "Welcome, lead" in answer.read().decode()
        port = int(re.search(r":(\d+)/", link)[1])
        assert_heard_here_alone(port)
    finally:
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    assert "every judgement is stored" in rest
    assert "error" not in rest
    assert process.returncode == 0
    (secret,) = (tmp_path / "config" / "preferl").iterdir()
    assert secret.stat().st_mode & 0o077 == 0


def test_a_port_in_use_is_said_to_be(rows, db, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["label", "--items", str(rows), "--db", db, "--port", port]) == 2
    assert "another --port" in capsys.readouterr().err


@pytest.mark.parametrize("extra", [["--host", "0.0.0.0"], ["--public_url", "https://label.example"]])
def test_where_others_can_reach_it_the_lead_needs_a_password_first(rows, db, capsys, monkeypatch, extra):
    command = ["label", "--items", str(rows), "--db", db, "--port", "0", *extra]
    assert main(command) == 2
    assert "has no password" in capsys.readouterr().err
    monkeypatch.setattr("getpass.getpass", lambda prompt: PASSWORD)
    assert main(["label", "user", "lead", "--role", "lead", "--password", "--db", db]) == 0
    process, said = start(*command[1:])
    process.kill()
    process.communicate()
    assert "serving at" in said
    assert "/link/" not in said


def test_settings_and_items_are_remembered(rows, db):
    prepared(db, items=str(rows), overlap=3, title="Kinder?")
    store = prepared(db)
    assert (store.project().overlap, store.project().title, store.progress().left) == (3, "Kinder?", 12)
    assert prepared(db, items=str(rows)).progress().items == 4


def test_labels_that_were_there_are_left_behind(rows, db):
    store = prepared(db, items=str(rows))
    claim = store.claim(Accounts(store.database).add("Ann").id)
    assert claim is not None
    with store.database.read() as connection:
        found = read_items(connection).values()
    assert all("margin" not in item.columns and item.gold is None for item in found)


def test_items_come_from_stages_rankings_and_bare_responses(tmp_path, db):
    stage = tmp_path / "collect"
    (stage / "data").mkdir(parents=True)
    for split in ("train", "eval"):
        row = {"prompt": split, "chosen": "a", "rejected": "b", "split": split, "p_chosen": 0.9}
        (stage / "data" / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    (stage / "data" / "dev.jsonl").touch()  # a split of no pairs
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"prompt": "r", "responses": ["x", "y", "z"]}) + "\n")
    ranked = tmp_path / "ranked.jsonl"
    ranked.write_text(json.dumps({"prompt": "s", "responses": ["x", "y"], "ranks": [2, 1]}) + "\n")
    for source in (stage, bare, ranked):
        store = prepared(db, items=str(source))
    assert store.progress().items == 4


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("", 3, "no rows"),
        ('{"text": "x"}\n', 3, "nothing to compare"),
        ('{"prompt": "x", "responses": ["one"]}\n', 3, "2 to 9"),
        ('{"prompt": "x", "responses": ["one", "one"]}\n', 3, "different"),
        ('{"prompt": "x", "responses": ["one", 2]}\n', 3, "list of texts"),
        ('{"prompt": "x", "responses": ["one", "two"]}\nnot json\n', 3, "invalid_json"),
    ],
)
def test_files_without_items_are_refused(tmp_path, db, capsys, text, code, words):
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    assert main(["label", "--items", str(path), "--db", db]) == code
    assert words in capsys.readouterr().err


def test_what_is_missing_is_said(tmp_path, db, capsys):
    assert main(["label", "--db", db]) == 2
    assert "--items" in capsys.readouterr().err
    assert main(["label", "--items", str(tmp_path / "none.jsonl"), "--db", db]) == 3
    assert main(["label", "--guidelines", str(tmp_path / "none.md"), "--db", db]) == 2
    assert "guidelines" in capsys.readouterr().err
    assert main(["label", "serve"]) == 2
    assert "usage: preferl label" in capsys.readouterr().err


def test_gold_items_need_an_answer_and_get_it(rows, tmp_path, db):
    store = prepared(db, items=str(rows), gold=str(rows))
    assert store.progress().items == 4  # the same texts stay what they were
    gold = tmp_path / "gold.jsonl"
    gold.write_text(json.dumps({"prompt": "G", "chosen": "right", "rejected": "wrong"}) + "\n")
    store = prepared(db, gold=str(gold))
    with store.database.read() as connection:
        (answer,) = [item.gold for item in read_items(connection).values() if item.gold]
    assert answer == [1, 2]
    assert store.progress().items == 4


# ----------------------------------------------------------------------------------------------------- people


def test_people_get_links_and_passwords(rows, db, capsys, monkeypatch):
    prepared(db, items=str(rows))
    capsys.readouterr()
    assert main(["label", "user", "Ann", "--db", db, "--url", "http://host:1/"]) == 0
    first = capsys.readouterr().out.strip()
    assert re.fullmatch(r"http://host:1/link/\S{32}", first)
    assert main(["label", "user", "Ann", "--db", db]) == 0
    assert capsys.readouterr().out.strip() != first
    accounts = Accounts(open_database(db))
    assert [account.name for account in accounts.all()] == ["Ann"]
    assert accounts.owner_of(first.rsplit("/", 1)[1]).name == "Ann"
    monkeypatch.setattr("getpass.getpass", lambda prompt: "short")
    assert main(["label", "user", "Ann", "--password", "--db", db]) == 2
    assert "10 to" in capsys.readouterr().err
    monkeypatch.setattr("getpass.getpass", lambda prompt: PASSWORD)
    assert main(["label", "user", "Ann", "--password", "--db", db]) == 0
    assert accounts.sign_in("Ann", PASSWORD)


@pytest.mark.parametrize("name", [" ", "x" * 61, "a\nb", "a\x00b"])
def test_names_that_cannot_be_used_are_refused(rows, db, name):
    store = prepared(db, items=str(rows))
    with pytest.raises(UsageError, match="1 to 60"):
        Accounts(store.database).add(name)


def test_people_need_a_project_and_a_role(tmp_path, rows, db, capsys):
    assert main(["label", "user", "Ann", "--db", str(tmp_path / "none.sqlite")]) == 2
    assert "there is no project" in capsys.readouterr().err
    prepared(db, items=str(rows))
    assert main(["label", "user", "Ann", "--role", "king", "--db", db]) == 2
    assert main(["label", "user", "Ann", "--db", db]) == 0
    assert main(["label", "user", "Ann", "--role", "lead", "--db", db]) == 0
    assert main(["label", "user", "Ann", "--db", db]) == 0
    assert [account.role for account in Accounts(open_database(db)).all()] == ["lead"]


@pytest.mark.parametrize("name", ["we?ird.sqlite", "a b%20c#d.sqlite"])
def test_files_may_have_odd_names(rows, tmp_path, name):
    prepared(str(tmp_path / name), items=str(rows))
    assert (tmp_path / name).exists()
    assert {path.name for path in tmp_path.iterdir() if path.is_file()} >= {name}


def test_reading_makes_no_database(tmp_path, capsys):
    for db in (str(tmp_path / "none.sqlite"), f"sqlite:///{tmp_path}/none.sqlite"):
        assert main(["label", "export", str(tmp_path / "x.jsonl"), "--db", db]) == 2
        assert "there is no project" in capsys.readouterr().err
    assert list(tmp_path.glob("none*")) == []


def test_help_is_there_for_every_command(capsys):
    for command in ([], ["user"], ["export"], ["simulate"], ["feed"], ["refit"]):
        with pytest.raises(SystemExit) as stop:
            main(["label", *command, "--help"])
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert "--db" in said
        assert "(SQLite)" in said or "The project's database" in said  # what an option is for, too


def test_the_pages_load_no_model(rows):
    code = "import sys, preferl.label.commands, preferl.label.app; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
