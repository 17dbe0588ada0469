"""What preferl deletes, and what it never does: foreign files wherever a command may be pointed at."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import yaml

from preferl import cli
from preferl.options.shared import StageOptions
from preferl.runs.disks import DiskError
from preferl.runs.errors import UsageError
from preferl.runs.found import examine
from preferl.runs.inputs import identify
from preferl.runs.lock import LOCK
from preferl.runs.mark import MARK, check_ours, claim, read_mark, remove
from preferl.runs.record import stage_records
from preferl.runs.stage import Stage

STAGES = ("sft", "collect", "reward", "best_of", "audit", "dpo", "rl", "evaluate")
# What each stage needs before it looks at its directory: a data set, and a model that is not there.
WORLD = ["--dataset_name", "world"]
NEEDS = dict.fromkeys(("audit", "best_of", "rl", "evaluate"), WORLD)
NEEDS["collect"] = [*WORLD, "--model_name_or_path", "absent"]
KINDS = (*STAGES, "run", "sweep")


def foreign(path: Path) -> dict[Path, bytes]:
    """A project of somebody's, with every name that preferl writes itself; its files and what is in them."""
    files = {
        ".git/HEAD": "ref: refs/heads/main\n",
        "src/thesis.tex": "precious",
        "config.yaml": "stages: [build, deploy]\noutput_dir: dist\n",
        "manifest.json": "{}",
        "metrics.jsonl": '{"step": 1}\n',
        "model/model.safetensors": "weights of another program",
        "data/train.jsonl": '{"prompt": "mine"}\n',
        "state/step_1/values.json": "{}",
    }
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return content(path)


def content(path: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def command(name: str, path: Path, fresh: bool) -> list[str]:
    more = ["--sweep.grid", "{sft.seed: [1, 2]}"] if name == "sweep" else NEEDS.get(name, [])
    return [name, *more, "--output_dir", str(path), *(["--fresh"] if fresh else [])]


@pytest.fixture(
    params=["directly", "through a link", "with a mark of another program", "without config.yaml"]
)
def project(request, tmp_path):
    """Somebody's directory, the path by which a command is pointed at it, and what is in it."""
    own = tmp_path / "own"
    foreign(own)
    if request.param == "with a mark of another program":
        (own / MARK).write_text(json.dumps({"program": "another", "kind": "stage", "name": "sft"}))
    if request.param == "without config.yaml":
        (own / "config.yaml").unlink()
    path = own
    if request.param == "through a link":
        path = tmp_path / "link"
        path.symlink_to(own)
    return path, own, content(own)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_foreign_directory_is_left_as_it_is(project, name, fresh, capsys):
    path, own, before = project
    assert cli.main(command(name, path, fresh)) == 2
    assert "nothing was changed" in capsys.readouterr().err
    assert content(own) == before


@dataclass(kw_only=True)
class Options(StageOptions):
    output_dir: str = ""
    model_name_or_path: str | None = None


def begin(
    path: Path, name: str = "sft", fresh: bool = False, done: bool = False, keep=None, model=None, seed=0
):
    """The stage of a command; it leaves a model."""
    options = Options(output_dir=str(path), seed=seed, model_name_or_path=model)
    with Stage(name, options, fresh) as stage:
        stage.begin(keep=keep)
        (path / "model").mkdir()
        (path / "model" / "model.safetensors").write_text("trained for a week")
        if done:
            stage.finish()
    return stage


def stage_at(path: Path, name: str = "sft", done: bool = True, seed: int = 0) -> Stage:
    """A finished (or interrupted) stage with a few files."""
    return begin(path, name, done=done, seed=seed)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_is_no_place_for_a_stage(tmp_path, name, fresh, capsys):
    """Its stages would be lost."""
    run = tmp_path / "run"
    claim(run, "run", "run")
    (run / "config.yaml").write_text("stages: [sft]\n")
    stage_at(run / "sft")
    before = content(run)
    assert cli.main(command(name, run, fresh)) == 2
    assert "holds a run, not the stage" in capsys.readouterr().err
    # The parent of marked stages that bears no mark itself is no place either.
    (run / MARK).unlink()
    del before[run / MARK]
    assert cli.main(command(name, run, fresh)) == 2
    assert content(run) == before


@pytest.mark.parametrize("name", [name for name in KINDS if name != "sft"])
@pytest.mark.parametrize("fresh", [False, True])
def test_a_stage_is_replaced_by_its_own_kind_only(tmp_path, name, fresh, capsys):
    stage_at(tmp_path / "out")
    before = content(tmp_path)
    assert cli.main(command(name, tmp_path / "out", fresh)) == 2
    assert "holds the stage sft, not" in capsys.readouterr().err
    assert content(tmp_path) == before


def test_doing_a_stage_again_leaves_what_no_stage_wrote(tmp_path):
    outside = tmp_path / "outside"
    foreign(outside)
    precious = content(outside)
    stage = stage_at(tmp_path / "sft", seed=0)
    (stage.path / "notes.md").write_text("what I think of it")
    (stage.path / ".git").mkdir()
    (stage.path / ".git" / "HEAD").write_text("ref")
    (stage.path / "data").symlink_to(outside, target_is_directory=True)
    (stage.path / "metrics.jsonl").unlink(missing_ok=True)
    (stage.path / "metrics.jsonl").symlink_to(outside / "metrics.jsonl")
    begin(stage.path, fresh=True, seed=1)
    assert not (stage.path / "DONE").exists()
    assert (stage.path / "notes.md").read_text() == "what I think of it"
    assert (stage.path / ".git" / "HEAD").read_text() == "ref"
    assert not os.path.lexists(stage.path / "data")
    assert content(outside) == precious


def test_members_of_an_ensemble_go_only_with_their_mark(tmp_path):
    stage = stage_at(tmp_path / "reward", "reward")
    stage_at(stage.path / "member-0", "reward")
    foreign(stage.path / "member-1")
    precious = content(stage.path / "member-1")
    (stage.path / "DONE").unlink()
    begin(stage.path, "reward", keep="member-")
    assert (stage.path / "member-0" / "DONE").exists()
    begin(stage.path, "reward", keep="member-", fresh=True)
    assert not (stage.path / "member-0").exists()
    assert content(stage.path / "member-1") == precious


def test_a_stage_never_replaces_what_it_reads(tmp_path):
    stage = stage_at(tmp_path / "sft")
    link = tmp_path / "link"
    link.symlink_to(stage.path)
    for path in (stage.path, link):
        with pytest.raises(
            UsageError, match=r"is the model_name_or_path that sft reads.*nothing was changed"
        ):
            begin(stage.path, fresh=True, model=str(path))
    assert (stage.path / "model" / "model.safetensors").exists()


@pytest.mark.parametrize("kind", ["run", "sweep", "stage"])
def test_the_mark_is_the_first_file(tmp_path, kind, monkeypatch):
    """Whatever stops the next step, the directory is known as ours."""

    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    claim(tmp_path / "out", kind, "sft")
    mark = read_mark(tmp_path / "out")
    assert mark is not None
    assert (mark.kind, mark.name) == (kind, "sft")
    assert [p.name for p in (tmp_path / "out").iterdir()] == [MARK]
    if kind == "stage":
        monkeypatch.setattr("preferl.runs.stage.write_atomically", full)
        with pytest.raises(DiskError, match="the disk is full"):
            begin(tmp_path / "new")
        assert {p.name for p in (tmp_path / "new").iterdir()} == {MARK, LOCK}
        monkeypatch.undo()
        begin(tmp_path / "new")


def test_a_full_disk_at_the_mark_leaves_a_directory_that_can_be_used(tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("preferl.runs.mark.write_json", full)
    with pytest.raises(OSError, match="No space left"):
        claim(tmp_path / "out", "stage", "sft")
    monkeypatch.undo()
    claim(tmp_path / "out", "stage", "sft")
    assert read_mark(tmp_path / "out")


def test_the_mark_of_another_program_is_none(tmp_path):
    claim(tmp_path / "a", "run", "a")
    mark = json.loads((tmp_path / "a" / MARK).read_text())
    (tmp_path / "a" / MARK).write_text(json.dumps(mark | {"program": "other"}))
    assert read_mark(tmp_path / "a") is None


def test_of_a_link_only_the_link_is_deleted(tmp_path):
    foreign(tmp_path / "there")
    before = content(tmp_path / "there")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there", target_is_directory=True)
    remove(link)
    assert not link.is_symlink()
    assert content(tmp_path / "there") == before
    remove(tmp_path / "there")
    assert not (tmp_path / "there").exists()
    remove(tmp_path / "there")  # what is not there is no error


# ------------------------------------------------------------------------------------- from before the mark


@pytest.fixture
def old_run(tmp_path):
    """A run as preferl wrote it before there were marks, its reward stage interrupted."""
    run = tmp_path / "old"
    config = {"output_dir": str(run), "stages": ["sft"], "rounds": 1, "dataset_name": "world"}
    for name, done in (("sft", True), ("reward", False)):
        stage_at(run / name, name, done)
        (run / name / MARK).unlink()
        (run / name / LOCK).unlink()
        manifest = json.loads((run / name / "manifest.json").read_text())
        del manifest["options"], manifest["chosen"]
        (run / name / "manifest.json").write_text(json.dumps(manifest))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    (run / "command.txt").write_text("preferl run\n")
    (run / "env.json").write_text("{}")
    return run


def test_old_stages_are_read_and_never_deleted(old_run):
    before = content(old_run)
    options = identify(asdict(Options(output_dir=str(old_run / "sft"))))
    assert examine(old_run / "sft", "sft", options).is_this_finished(old_run / "sft")
    assert [name for name, record in stage_records(old_run) if record.done] == ["sft"]
    for name, fresh in (("sft", True), ("reward", False), ("reward", True)):
        with pytest.raises(
            UsageError, match="did not mark its directories yet, and nothing in it is deleted"
        ):
            Stage(name, Options(output_dir=str(old_run / name)), fresh)
    assert content(old_run) == before


def test_old_runs_go_on_and_keep_no_mark(old_run):
    check_ours(old_run, "run", "old")
    with pytest.raises(UsageError, match="holds no preferl sweep"):
        check_ours(old_run, "sweep", "old")
    claim(old_run, "run", "old")
    assert not (old_run / MARK).exists()


def test_stages_made_one_by_one_may_become_a_run(tmp_path):
    stage_at(tmp_path / "runs" / "sft")
    claim(tmp_path / "runs", "run", "runs")
    assert read_mark(tmp_path / "runs").kind == "run"
    assert (tmp_path / "runs" / "sft" / "DONE").exists()
