"""What a stage was made of: another content of the same names makes it stale, another place does not."""

import dataclasses
import json
import os
import shutil
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest

from preferl import cli
from preferl.options.shared import StageOptions
from preferl.pipeline import KINDS
from preferl.runs import inputs
from preferl.runs.disks import DiskError
from preferl.runs.errors import UsageError
from preferl.runs.inputs import NAMING, file_hash, hash_directory, identify, seen_from
from preferl.runs.mark import MARK
from preferl.runs.stage import Stage

# Options that are texts and name neither data nor a model nor a reward.
PLAIN = {
    "near_copies",
    "judge_replies",
    "report_to",
    "config_name",
    "revision",
    *("output_dir", "device", "dtype", "split", "split_by", "dataset_format", "bad_rows", "eval_split"),
    *(
        "lr_scheduler_type",
        "columns",
        "winner",
        "label_mode",
        "tie_policy",
        "loss",
        "loss_type",
        "pooling",
        "category",
    ),
    *("kl_controller", "kl_in", "kl_estimator", "ratio_level", "loss_average", "value_model"),
    *(
        "lora_target_modules",
        "optim",
        "reward_mixture",
        "baseline",
        "preference_labels",
        "stop_sequences",
        "phrases",
    ),
}


@dataclass(kw_only=True)
class Options(StageOptions):
    output_dir: str = ""
    model_name_or_path: str | None = None
    dataset_name: str = "world"
    reward_model: str = "length"
    kl_coef: float = 0.1


def make(path: Path, name: str = "rl", fresh: bool = False, weights: str = "w", finish=True, **options):
    """A stage that leaves a model; says whether it was finished before."""
    with Stage(name, Options(output_dir=str(path), **options), fresh) as stage:
        if not stage.is_finished:
            stage.begin(keep="member-")
            stage.model.mkdir(exist_ok=True)
            (stage.model / "model.safetensors").write_text(weights)
            if finish:
                stage.finish()
    return stage.is_finished


def test_every_option_that_is_a_text_names_something_or_does_not():
    """A new option that names data, a model or a reward must be told by content."""
    texts = set()
    for config_class in KINDS.values():
        hints = typing.get_type_hints(config_class)
        names = [f.name for f in dataclasses.fields(config_class)]
        texts |= {name for name in names if str in (hints[name], *typing.get_args(hints[name]))}
    assert texts - PLAIN - set(NAMING) == set()
    assert not PLAIN & set(NAMING)


@pytest.fixture
def parts(tmp_path):
    """A model, a data set, a reward stage, an ensemble of two, and a module, as options."""
    make(tmp_path / "sft", "sft")
    make(tmp_path / "reward", "reward")
    for member in ("", "member-0", "member-1"):
        make(tmp_path / "ensemble" / member, "reward")
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    return {
        "model_name_or_path": str(tmp_path / "sft"),
        "dataset_name": str(tmp_path / "pairs.jsonl"),
        "reward_model": f"0.5*{tmp_path}/reward + 0.3*min({tmp_path}/ensemble, length) + 0.2*concise",
    }


def replace_pairs(place: Path) -> None:
    (place / "pairs.jsonl").write_text('{"prompt": "b"}\n')


def redo_parent(place: Path) -> None:
    make(place / "sft", "sft", fresh=True, weights="others")


def redo_reward(place: Path) -> None:
    make(place / "reward", "reward", fresh=True, weights="others")


def redo_member(place: Path) -> None:
    make(place / "ensemble" / "member-1", "reward", fresh=True, weights="others")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (replace_pairs, "dataset_name: .*pairs.jsonl is not what it was"),
        (redo_parent, "model_name_or_path: .*sft is not what it was"),
        (redo_reward, "reward_model: .*reward is not what it was"),
        (redo_member, "reward_model-2: .*ensemble is not what it was"),
        (lambda place: (place / "pairs.jsonl").unlink(), "dataset_name: .* not there any more"),
    ],
)
def test_another_content_makes_stale(tmp_path, parts, change, named):
    make(tmp_path / "rl", **parts)
    assert make(tmp_path / "rl", **parts)
    change(tmp_path)
    with pytest.raises(UsageError, match=rf"rl is stale \({named}\); use --fresh.*--keep_stale"):
        make(tmp_path / "rl", **parts)
    assert not make(tmp_path / "rl", fresh=True, weights="new", **parts)
    assert make(tmp_path / "rl", **parts)


def test_a_parent_that_was_made_again_to_the_same_bytes_makes_nothing_stale(tmp_path, parts):
    make(tmp_path / "rl", **parts)
    make(tmp_path / "sft", "sft", fresh=True)
    assert make(tmp_path / "rl", **parts)
    (tmp_path / "sft" / "notes.md").write_text("of mine")
    assert make(tmp_path / "rl", num_threads=1, device="cpu", **parts)


def test_other_options_are_named_and_are_not_stale(tmp_path, parts):
    make(tmp_path / "rl", **parts)
    make(tmp_path / "other", "sft", weights="others")
    for changed, words in (
        ({"kl_coef": 0.2}, r"kl_coef: 0.1 -> 0.2"),
        ({"model_name_or_path": str(tmp_path / "other")}, "model_name_or_path: '.*/sft' -> '.*/other'"),
        ({"reward_model": "length"}, "reward_model: '0.5.* -> 'length'"),
    ):
        with pytest.raises(UsageError, match=rf"was finished with other options \({words}"):
            make(tmp_path / "rl", **parts | changed)


def test_a_run_that_was_moved_stays_finished(tmp_path, parts):
    make(tmp_path / "rl", **parts)
    (tmp_path / "new").mkdir()
    for name in ("sft", "reward", "ensemble", "pairs.jsonl", "rl"):
        shutil.move(tmp_path / name, tmp_path / "new" / name)
    moved = {key: value.replace(str(tmp_path), str(tmp_path / "new")) for key, value in parts.items()}
    assert make(tmp_path / "new" / "rl", **moved)
    redo_reward(tmp_path / "new")
    with pytest.raises(UsageError, match="is stale"):
        make(tmp_path / "new" / "rl", **moved)


def test_what_a_stage_writes_of_its_inputs_is_seen_from_its_directory(tmp_path, parts):
    seen = seen_from(tmp_path / "rl", parts["reward_model"])
    assert seen == "0.5*../reward + 0.3*min(../ensemble, length) + 0.2*concise"
    assert seen_from(tmp_path / "rl", "someone/model") == "someone/model"


@pytest.mark.parametrize("inside", ["", "model"])
def test_what_is_not_finished_is_no_input(tmp_path, inside):
    make(tmp_path / "sft", "sft", finish=False)
    with pytest.raises(UsageError, match=r"unfinished: .*sft.* was interrupted or still runs"):
        make(tmp_path / "rl", model_name_or_path=str(tmp_path / "sft" / inside))
    assert not (tmp_path / "rl").exists()
    # A member that is finished is a model of its own, whatever the ensemble is.
    make(tmp_path / "sft" / "member-0", "sft")
    make(tmp_path / "rl", model_name_or_path=str(tmp_path / "sft" / "member-0"))


def test_a_function_of_a_persons_own_is_told_by_its_file(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_rewards.py").write_text("polite = len\n")
    make(tmp_path / "rl", reward_model="own_rewards:polite")
    assert make(tmp_path / "rl", reward_model="own_rewards:polite")
    (tmp_path / "own_rewards.py").write_text("polite = max\n")
    with pytest.raises(UsageError, match=r"stale.*own_rewards:polite is not what it was"):
        make(tmp_path / "rl", reward_model="own_rewards:polite")
    assert "own_rewards" not in sys.modules
    # What is installed is told by its version; a word before a colon is no module of a person's.
    assert identify({"reward_model": "json:dumps"}).inputs == {}
    assert identify({"reward_model": "keyword:please"}).inputs == {}
    (tmp_path / "ppo" / "state").mkdir(parents=True)  # `--algorithm ppo --output_dir ppo`, while it runs
    monkeypatch.chdir(tmp_path)
    assert identify({"algorithm": "ppo"}).inputs == {}
    (tmp_path / "own.py").write_text("row = None")
    assert list(identify({"algorithm": "own:row"}).inputs) == ["algorithm"]


def test_a_hub_name_is_told_by_its_revision(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    refs = tmp_path / "hub" / "models--someone--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("1111")
    make(tmp_path / "rl", model_name_or_path="someone/model")
    manifest = json.loads((tmp_path / "rl" / "manifest.json").read_text())
    assert manifest["parents"] == {"model_name_or_path": {"name": "someone/model", "hash": "1111"}}
    (refs / "main").write_text("2222")
    with pytest.raises(UsageError, match=r"stale.*someone/model is not what it was"):
        make(tmp_path / "rl", model_name_or_path="someone/model")
    shutil.rmtree(tmp_path / "hub")  # not known any more: not known to be another
    assert make(tmp_path / "rl", model_name_or_path="someone/model")


def test_the_revision_of_a_data_set_may_be_an_options(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "datasets--someone--pairs"
    for name, commit in (("main", "1111"), ("v1", "2222")):
        (folder / "refs").mkdir(parents=True, exist_ok=True)
        (folder / "refs" / name).write_text(commit)
    (folder / "snapshots" / "3333").mkdir(parents=True)

    def content(name, **options):
        return identify({"dataset_name": name, **options}).inputs["dataset_name"].content

    assert content("someone/pairs") == content("someone/pairs", revision=None) == "1111"
    assert content("someone/pairs", revision="v1") == content("someone/pairs@v1") == "2222"
    assert content("someone/pairs:config[test]", revision="3333") == "3333"
    # Of the model and of other data sets nothing was said.
    beside = identify({"dataset_name": "world", "also_train_on": "someone/pairs", "revision": "v1"}).inputs
    assert beside["also_train_on"].content == "1111"


def test_done_belongs_to_its_manifest(tmp_path, parts):
    make(tmp_path / "rl", **parts)
    file = tmp_path / "rl" / "manifest.json"
    manifest = json.loads(file.read_text())
    for text in (json.dumps(manifest | {"options": manifest["options"] | {"kl_coef": 9}}), "{", ""):
        file.write_text(text)
        with pytest.raises(UsageError, match=r"rl: the record of this stage is damaged .*--fresh"):
            make(tmp_path / "rl", **parts)
    make(tmp_path / "rl", fresh=True, **parts)
    assert make(tmp_path / "rl", **parts)


def test_a_stage_from_before_inputs_were_recorded_counts_as_finished(tmp_path, parts, capsys):
    make(tmp_path / "rl", **parts)
    manifest = json.loads((tmp_path / "rl" / "manifest.json").read_text())
    (tmp_path / "rl" / "manifest.json").write_text(json.dumps(manifest | {"parents": {}}))
    manifest.pop("options")
    (tmp_path / "rl" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "rl" / "DONE").write_text("2026-10-01T09:00:00+0000\n")
    redo_reward(tmp_path)
    assert make(tmp_path / "rl", **parts)
    assert "finished before" in capsys.readouterr().out.split("did not record inputs yet")[0]
    with pytest.raises(UsageError, match="other options"):
        make(tmp_path / "rl", **parts | {"kl_coef": 3.0})


# ------------------------------------------------------------------------------------------ unfinished work


def test_an_unfinished_stage_is_not_begun_anew_in_silence(tmp_path, parts, capsys):
    make(tmp_path / "rl", finish=False, **parts)
    # Nothing to lose: said.
    make(tmp_path / "rl", finish=False, **parts | {"kl_coef": 0.3})
    assert "rl: begins anew, nothing had been kept: kl_coef: 0.1 -> 0.3" in capsys.readouterr().out
    kept = tmp_path / "rl" / "state" / "step_3"
    kept.mkdir(parents=True)
    for changed in ({"kl_coef": 0.4}, {"kl_coef": 0.3, "reward_model": "concise"}):
        with pytest.raises(UsageError, match=r"unfinished and was begun with other options.*--fresh"):
            make(tmp_path / "rl", **parts | changed)
    replace_pairs(tmp_path)
    with pytest.raises(UsageError, match=r"pairs.jsonl is not what it was"):
        make(tmp_path / "rl", **parts | {"kl_coef": 0.3})
    assert kept.exists()
    make(tmp_path / "rl", fresh=True, **parts)
    assert not kept.exists()


def test_a_redo_that_was_interrupted_goes_on(tmp_path, parts):
    make(tmp_path / "rl", **parts)
    kept = tmp_path / "rl" / "state" / "part_1"
    for fresh in (True, False):
        make(tmp_path / "rl", fresh=True, finish=False, **parts)
        kept.mkdir(parents=True)
        with Stage("rl", Options(output_dir=str(tmp_path / "rl"), **parts), fresh) as stage:
            stage.begin()
            assert kept.exists()
            stage.finish()
    # A stage that was interrupted without --fresh is begun anew with it.
    make(tmp_path / "other", finish=False, **parts)
    (tmp_path / "other" / "state" / "part_1").mkdir(parents=True)
    with Stage("rl", Options(output_dir=str(tmp_path / "other"), **parts), fresh=True) as stage:
        stage.begin()
        assert not (tmp_path / "other" / "state" / "part_1").exists()


def test_what_was_chosen_when_it_was_begun_is_chosen_again(tmp_path):
    make(tmp_path / "rl", finish=False, num_threads=0)
    file = tmp_path / "rl" / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["chosen"] |= {"num_threads": 3, "dtype": "bfloat16"}
    file.write_text(json.dumps(manifest))
    import torch

    with Stage("rl", Options(output_dir=str(tmp_path / "rl"))) as stage:
        assert (torch.get_num_threads(), stage.dtype) == (3, torch.bfloat16)
    with Stage("rl", Options(output_dir=str(tmp_path / "rl"), num_threads=2, dtype="float32")) as stage:
        assert (torch.get_num_threads(), stage.dtype) == (2, torch.float32)


# --------------------------------------------------------------------------- an error in any step of a redo

WRITES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
bomb: dict = {"under": None, "left": 0, "error": None}


def _explode(event: str, arguments: tuple) -> None:
    """An audit hook: the step that would change something below a directory fails, after so many others."""
    if bomb["under"] is None:
        return
    writes = event in WRITES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))
    if writes and str(arguments[0]).startswith(bomb["under"]):
        bomb["left"] -= 1
        if bomb["left"] < 0:
            raise bomb["error"]


@pytest.fixture(scope="module")
def audit_hook():
    sys.addaudithook(_explode)  # stays, and does nothing without a directory


class Killed(BaseException):
    pass


@pytest.mark.parametrize("error", [Killed(), OSError(28, "No space left on device")], ids=["kill", "full"])
@pytest.mark.parametrize("fresh", [False, True])
def test_after_an_error_in_any_step_the_same_command_goes_on(tmp_path, audit_hook, error, fresh):
    other = tmp_path / "elsewhere"
    make(other / "new", weights="new")
    expected = hash_directory(other / "new")
    for step in range(200):
        path = tmp_path / f"{step}"
        if fresh:
            make(path, weights="old")
            (path / "notes.md").write_text("mine")
        bomb.update(under=str(path), left=step, error=error)
        try:
            make(path, fresh=fresh, weights="new")
            failed = False
        except (Killed, DiskError):
            failed = True
        finally:
            bomb.update(under=None)
        done = (path / "DONE").exists()
        if done and fresh:  # never both: done, and something of it gone
            assert {(path / "model" / "model.safetensors").read_text()} <= {"old", "new"}
            assert (path / "summary.json").exists()
        make(path, fresh=fresh, weights="new")
        assert (path / "DONE").exists()
        assert (path / MARK).exists()
        assert hash_directory(path) == expected
        assert not fresh or (path / "notes.md").read_text() == "mine"
        if not failed:
            break
    assert not failed
    assert step > 8


# ------------------------------------------------------------------------------------------------- commands


def test_keep_stale_takes_a_stage_as_it_is(tmp_path, capsys):
    path, pairs = tmp_path / "audit", tmp_path / "pairs.jsonl"
    row = {"prompt": "Say.", "chosen": "Yes, gladly.", "rejected": "No."}
    pairs.write_text("".join(json.dumps(row | {"chosen": f"Yes {i}."}) + "\n" for i in range(12)))
    command = ["audit", "--reward_model", "length", "--dataset_name", str(pairs), "--output_dir", str(path)]
    assert cli.main(command) == 0
    pairs.write_text("".join(json.dumps(row | {"chosen": f"Never {i}."}) + "\n" for i in range(12)))
    capsys.readouterr()
    assert cli.main(command) == 2
    assert "pairs.jsonl is not what it was" in capsys.readouterr().err
    before = (path / "summary.json").read_bytes()
    assert cli.main([*command, "--keep_stale"]) == 0
    assert "audit: kept, though stale: dataset_name" in capsys.readouterr().out
    assert (path / "summary.json").read_bytes() == before
    assert cli.main([*command, "--fresh"]) == 0
    assert cli.main(command) == 0


# --------------------------------------------------------------------------------------------------- hashes


def test_hashes_of_large_files_are_remembered_until_they_change(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "LARGE", 8)
    monkeypatch.setattr("platformdirs.user_cache_path", lambda name: tmp_path / "cache" / name)
    file, read = tmp_path / "weights", []
    digest = inputs.sha256_of
    monkeypatch.setattr(inputs, "sha256_of", lambda path: read.append(path) or digest(path))
    file.write_bytes(b"0123456789")
    file_hash(file)  # written just now: it may change within one tick of its time
    os.utime(file, (1e9, 1e9))
    first = file_hash(file)
    assert file_hash(file) == first
    assert len(read) == 2
    file.write_bytes(b"9876543210")
    os.utime(file, (1e9, 1e9 + 1))
    second = file_hash(file)
    assert second != first
    assert len(read) == 3
    (tmp_path / "other").write_bytes(b"0123456789")
    os.utime(tmp_path / "other", (1e9, 1e9 + 1))
    os.replace(tmp_path / "other", file)  # another inode
    assert file_hash(file) == first
