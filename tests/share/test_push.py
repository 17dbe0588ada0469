"""What arrives at the Hub, byte for byte, and what must not: a stub of it listens on localhost."""

import json
import os
import pickle
import subprocess
import sys

import pytest
from huggingface_hub import DatasetCard, HfApi, ModelCard

import stub_uploads
from preferl import cli, pipeline
from preferl.runs.errors import UsageError
from preferl.share.data import is_of_people
from preferl.share.options import PushOptions
from preferl.share.push import push
from run_to_share import KEY, MACHINE, PEOPLE, USER
from stub_uploads import TOKEN, Hub, Repository

# huggingface_hub hands files to httpx in a way that is still allowed there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "ann/polite"
YES = PushOptions(yes=True)
OF_MODEL = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def with_page():
    """Asked for by a test in which the report is drawn."""


@pytest.fixture(autouse=True)
def without_page(request, monkeypatch):
    """Most tests are about what happens to a page, whichever it is."""
    if "with_page" not in request.fixturenames:
        monkeypatch.setattr("preferl.share.push.report_of", lambda subject: "a page")


def pushed(hub, kind="model", name=NAME):
    return hub.repositories[kind, name]


def test_the_model_arrives_byte_for_byte_with_its_card_and_its_report(run, hub, api, with_page):
    address = push(run.path, NAME, YES, api)
    there = pushed(hub)
    assert there.private
    assert address == f"{api.endpoint}/{NAME}"
    model = run.path / "rl" / "model"
    assert there.files.keys() == {"README.md", "report.html", *(file.name for file in model.iterdir())}
    assert set(OF_MODEL) <= there.files.keys()
    for file in model.iterdir():
        assert there.files[file.name] == file.read_bytes(), file.name
    card = ModelCard(there.files["README.md"].decode())
    assert f'from_pretrained("{NAME}")' in card.text
    assert card.data.license == "unknown"
    page = there.files["report.html"].decode()
    assert "preferl report" in page
    assert "&lt;script&gt;xss()" in page
    assert not hub.unauthorised
    assert "PUT /lfs/" in " ".join(hub.asked)  # weights went through LFS


def test_nothing_private_arrives(run, hub, api, with_page):
    push(run.path, NAME, YES, api)
    push(run.path, "ann/judge", PushOptions(yes=True, stage="reward"), api)
    sent = hub.text()
    words = (USER, MACHINE, KEY, "judges-own-secret-value", "llm.internal", "my_runs", str(run.home), TOKEN)
    assert not [word for word in (*words, *PEOPLE, "env.json", "command.txt") if word in sent]
    assert "weights of the critic" not in sent
    assert "Look into ./secret.txt on [machine]." in pushed(hub).files["report.html"].decode()


def test_a_second_push_sends_what_has_changed_and_deletes_nothing(run, hub, api):
    push(run.path, NAME, YES, api)
    pushed(hub).files["theirs.md"] = b"by somebody else"
    puts = sum(line.startswith("PUT") for line in hub.asked)
    push(run.path, NAME, YES, api)
    assert len(pushed(hub).commits) == 1  # nothing had changed
    push(run.path, NAME, PushOptions(yes=True, license="mit"), api)
    assert pushed(hub).commits[1] == ["README.md"]
    assert pushed(hub).files["theirs.md"] == b"by somebody else"
    assert sum(line.startswith("PUT") for line in hub.asked) == puts


def test_public_is_only_what_was_asked_to_be(run, hub, api, capsys):
    push(run.path, NAME, PushOptions(yes=True, public=True), api)
    assert not pushed(hub).private
    sent = len(hub.bodies)
    with pytest.raises(UsageError, match=r"there already and public.*--public"):
        push(run.path, NAME, YES, api)
    assert len(hub.bodies) == sent + 2  # who am I, and what is there
    hub.repositories["model", "ann/mine"] = Repository(private=True)
    push(run.path, "ann/mine", PushOptions(yes=True, public=True), api)
    assert pushed(hub, name="ann/mine").private
    assert "stays so" in " ".join(capsys.readouterr().out.split())


def test_a_name_without_an_owner_is_ones_own(run, hub, api):
    push(run.path, "polite", YES, api)
    assert list(hub.repositories) == [("model", NAME)]


@pytest.mark.parametrize("answer", ["y", "n", None])
def test_it_shows_the_files_and_asks(run, hub, api, capsys, monkeypatch, answer):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: answer is not None, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    if answer == "y":
        push(run.path, NAME, PushOptions(), api)
        assert pushed(hub).files
    else:
        with pytest.raises(UsageError, match="nothing was uploaded"):
            push(run.path, NAME, PushOptions(), api)
        assert not hub.repositories
    said = capsys.readouterr().out
    assert "to the model repository ann/polite (private, a new one)" in said
    assert "model.safetensors" in said
    assert "report.html" in said


def test_a_dry_run_asks_nothing_of_the_hub(run, hub, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert push(run.path, NAME, PushOptions(dry_run=True, with_data=True)) is None
    assert not hub.asked
    said = capsys.readouterr().out
    assert "model.safetensors" in said
    assert "labels-of-people/train.jsonl" in said


def spoil(folder, how):
    if how == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    elif how == "pickle that is called safetensors":
        (folder / "more.safetensors").write_bytes(pickle.dumps({"a": 1}))
    elif how == "link":
        secret = folder.parents[3] / "secret.txt"
        secret.write_text("precious")
        (folder / "notes.txt").symlink_to(secret)
    elif how == "key":
        (folder / "chat_template.jinja").write_text(f"{{# {KEY} #}}")
    elif how == "home":
        (folder / "chat_template.jinja").write_text(f"{{# from {folder.parents[3]}/template #}}")
    elif how == "no weights":
        (folder / "model.safetensors").unlink()


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("pickle", r"pytorch_model.bin may be a pickle.*safetensors"),
        ("pickle that is called safetensors", r"more.safetensors is no file of safetensors"),
        ("link", r"notes.txt is a link"),
        ("key", r"chat_template.jinja holds an API key.*take it out"),
        ("home", r"chat_template.jinja holds .*path"),
        ("no weights", r"holds no safetensors"),
    ],
)
def test_what_must_not_leave_is_refused_before_anything_is_made(run, hub, api, how, words):
    spoil(run.path / "rl" / "model", how)
    with pytest.raises(UsageError, match=words) as error:
        push(run.path, NAME, YES, api)
    assert KEY not in str(error.value)
    assert not hub.repositories


def test_paths_in_configurations_become_names_and_strangers_stay(run, hub, api, capsys):
    folder = run.path / "rl" / "model"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"_name_or_path": str(run.path / "sft" / "model")})
    )
    (folder / "train.py").write_text("print()")
    push(run.path, NAME, YES, api)
    assert json.loads(pushed(hub).files["config.json"]) == config | {"_name_or_path": "sft/model"}
    assert "train.py" not in pushed(hub).files
    said = capsys.readouterr().out
    assert "config.json: paths in it became names" in said
    assert "left out: train.py" in said


def test_an_adapter_goes_by_itself(run, hub, api):
    adapter = run.path / "rl" / "adapter"
    adapter.mkdir()
    weights = (run.path / "rl" / "model" / "model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    start = {"base_model_name_or_path": str(run.path / "sft"), "r": 4}
    (adapter / "adapter_config.json").write_text(json.dumps(start))
    (adapter / "README.md").write_text(f"peft's own card, with {run.home}")
    push(run.path, NAME, PushOptions(yes=True, part="adapter"), api)
    there = pushed(hub).files
    assert there.keys() == {"README.md", "report.html", "adapter_model.safetensors", "adapter_config.json"}
    assert json.loads(there["adapter_config.json"])["base_model_name_or_path"] == "sft"
    card = ModelCard(there["README.md"].decode())
    assert card.data.library_name == "peft"
    assert "which belong to the model sft" in card.text


def test_data_goes_only_on_request_and_with_pseudonyms(run, hub, api):
    push(run.path, NAME, PushOptions(yes=True, with_data=True), api)
    there = pushed(hub, "dataset", f"{NAME}-data")
    assert there.private
    assert there.files.keys() == {"README.md", "labels-of-people/train.jsonl", "labels-of-people/eval.jsonl"}
    rows = [json.loads(line) for line in there.files["labels-of-people/train.jsonl"].splitlines()]
    assert [row["annotator"] for row in rows] == ["annotator-1", "annotator-2", "annotator-1"]
    assert {row["annotators"] for row in rows} == {"annotator-1, annotator-2"}
    assert {row["annotator_kind"] for row in rows} == {"human"}
    assert {row["source"] for row in rows} == {"sft"}
    assert [row["prompt"] for row in rows] == ["Say 0.", "Say 1.", "Say 2."]
    card = DatasetCard(there.files["README.md"].decode())
    assert "2 who labelled have pseudonyms" in card.text
    files = [one["path"] for one in card.data.configs[0]["data_files"]]
    assert sorted(files) == ["labels-of-people/eval.jsonl", "labels-of-people/train.jsonl"]
    assert not [word for word in (*PEOPLE, USER, MACHINE) if word in hub.text()]


def test_a_row_with_a_key_stops_the_data(run, hub, api):
    with open(run.home / "labels of people.jsonl", "a") as file:
        file.write(json.dumps({"prompt": f"Use {KEY}.", "chosen": "a", "rejected": "b"}) + "\n")
    with pytest.raises(UsageError, match=r"labels of people.jsonl.*5 holds an API key.*--with_data"):
        push(run.path, NAME, PushOptions(yes=True, with_data=True), api)
    assert not hub.repositories


@pytest.mark.parametrize(
    ("column", "of_people"),
    [("annotator", True), ("workerId", True), ("source_annotator", True), ("annotator_chosen", True),
     ("email", True), ("annotator_kind", False), ("rater_comment", False), ("user", False)],
)  # fmt: skip
def test_columns_of_people_are_known_by_their_names(column, of_people):
    assert is_of_people(column) == of_people


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ({"whoami": 401}, r"does not know this token \(401\): log in with `hf auth login`"),
        ({"create": 401}, r"does not know this token \(401\)"),
        ({"create": 403}, r"may not write to ann/polite \(403\).*right to write"),
        ({"preupload": 403}, r"may not write to ann/polite \(403\)"),
        ({"put": 403}, r"may not write to ann/polite \(403\)"),
        ({"create": 409}, r"ann/polite is taken.*\(409\).*another name"),
        ({"commit": 412}, r"ann/polite is taken, or being changed \(412\): give the command again"),
        ({"commit": 400}, r"did not take ann/polite \(400: .*commit is refused"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(run, hub, api, refuse, words):
    hub.refuse = refuse
    with pytest.raises(UsageError, match=words) as error:
        push(run.path, NAME, YES, api)
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)


def test_a_token_that_may_only_read_is_known_at_once(run, hub, api):
    hub.role = "read"
    with pytest.raises(UsageError, match=r"token of ann may only read"):
        push(run.path, NAME, YES, api)
    assert hub.asked == ["GET /api/whoami-v2"]


def test_no_token_no_network_no_name(run, hub, monkeypatch):
    with pytest.raises(UsageError, match=r"'a/b/c' is no name of a repository: write owner/name"):
        push(run.path, "a/b/c", YES)
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token=TOKEN)
    with pytest.raises(
        UsageError, match=r"\(http://127.0.0.1:9\) cannot be reached.*where there is a network"
    ):
        push(run.path, NAME, YES, nowhere)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(
        UsageError, match=r"no token for the Hub: log in with `hf auth login`, or set HF_TOKEN"
    ):
        push(run.path, NAME, YES)
    assert not hub.asked


def test_the_command_as_a_person_gives_it_without_torch(run):
    hub = Hub()
    check = (
        "import sys, preferl.cli as c\n"
        f"code = c.main(['push', {str(run.path)!r}, 'polite', '--yes', '--with_data'])\n"
        "sys.exit(code or (9 if {'torch', 'transformers'} & set(sys.modules) else 0))"
    )
    with stub_uploads.serving(hub) as url:
        settings = os.environ | {"HF_ENDPOINT": url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-c", check]
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{url}/{NAME}\n" in done.stdout
    assert f"{url}/datasets/{NAME}-data" in done.stdout
    assert pushed(hub).files["model.safetensors"]
    # Outside of the test's own process machine and user have their real names.
    assert str(run.home) not in hub.text()


def test_a_run_asks_first_and_pushes_last(run, hub, monkeypatch, capsys):
    """``preferl run --push_to_hub``: hours of training do not end with a name that is wrong."""
    done = []
    monkeypatch.setattr(pipeline, "run", lambda config, *_: done.append((config, list(hub.asked))))
    given = ["run", "--output_dir", str(run.path), "--push_to_hub"]
    assert cli.main([*given, "polite"]) == 0
    (found,) = done
    assert found[1] == ["GET /api/whoami-v2", "GET /api/models/ann/polite"]
    assert pushed(hub).private
    assert cli.main([*given, "a/b/c"]) == 2
    assert cli.main([*given, "polite", "--stages", '["collect"]', "--model_name_or_path", "org/base"]) == 2
    assert len(done) == 1
    assert "no stage of this run makes a model" in capsys.readouterr().err
    hub.refuse = {"commit": 403}
    assert cli.main([*given, "polite2"]) == 2
    assert f"the run is whole, and `preferl push {run.path} polite2` tries again" in capsys.readouterr().err
    assert cli.main(["sweep", "--seeds", "2", "--push_to_hub", "x"]) == 2
    assert "--push_to_hub is for one run" in capsys.readouterr().err
