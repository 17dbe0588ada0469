"""Trackers are told what a stage logs: read back as TensorBoard, W&B (offline) and trackio keep it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from preferl import cli
from preferl.options import shared
from preferl.options.sft import SftConfig
from preferl.pipeline import RunConfig, resolve
from preferl.runs import tracking
from preferl.runs.errors import UsageError
from preferl.runs.mark import claim
from preferl.runs.stage import Stage
from preferl.runs.tracking import Tracked, as_table, numbers_of

# A stage that is interrupted after step 5 and goes on from the checkpoint of step 3, in a run with a report.
SESSIONS = """
import torch
from pathlib import Path
from preferl.options.sft import SftConfig
from preferl.runs import tracking
from preferl.runs.checkpoint import Checkpoints
from preferl.runs.errors import DivergedError
from preferl.runs.mark import claim
from preferl.runs.stage import Stage

run = Path("runs/demo")
claim(run, "run", "demo")
names = ["tensorboard", "wandb", "trackio"]
config = SftConfig(output_dir=str(run / "sft"), report_to=names, device="cpu", num_threads=1)

def session(last):
    with Stage("sft", config) as stage:
        saved = stage.begin()
        checkpoints = Checkpoints(stage.state, 6, 3, stage.owner)
        for step in range(1 if saved is None else saved.step + 1, last + 1):
            row = {"train/loss": 1 / step, "dev/loss": float("nan"), "alarms": ["far", "empty"]}
            stage.log(step=step, **row)
            if step == 3:
                checkpoints.save(step, {"x": torch.zeros(1)}, {})
        if last < 6:
            raise DivergedError("interrupted")
        rows = [{"prompt": "a|b <b>c</b>", "response": "one\\ntwo", "reward": 0.5, "finished": True}]
        stage.log_samples(row for row in rows)
        stage.finish(**{"dev/accuracy": 0.75, "name": "line"})

try:
    session(5)
except DivergedError:
    session(6)
page = run / "report.html"
page.write_text("<p>the page</p>", encoding="utf-8")
for _ in range(2):  # told again it takes the place of the one before
    tracking.report(run, names, {"seed": 0}, "Gained", "## It gained", page)
"""


@dataclass
class Told:
    """What a tracker was told under one name, as it keeps it."""

    numbers: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    group: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where both sessions and the report were tracked, by a process that has no key and no variables set."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "home").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", SESSIONS],
        cwd=folder,
        env=without_trackers(folder / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder / "said.txt").write_text(done.stdout, encoding="utf-8")
    return folder


def without_trackers(home: Path) -> dict[str, str]:
    """The environment of a person who has set no tracker's variables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "TRACKIO_"))}
    return kept | {"HOME": str(home), "NETRC": str(home / "netrc"), "HF_HUB_OFFLINE": "1"}


def test_tensorboard_has_every_step_once(folder):
    sft = in_tensorboard(folder / "runs/demo/sft")
    assert [step for step, _ in sft.numbers["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert sft.numbers["train/loss"][3] == (4, pytest.approx(0.25))
    assert sft.numbers["alarms"][0] == (1, 2.0)
    assert sft.numbers["dev/loss"][0][1] != sft.numbers["dev/loss"][0][1]  # nan
    assert "num_train_epochs: 5.0" in sft.texts["options"]
    assert "dev/accuracy: 0.75" in sft.texts["summary"]
    assert "| a&#124;b &#60;b&#62;c&#60;/b&#62; | one<br>two | 0.5 | True |" in sft.texts["samples"]
    report = in_tensorboard(folder / "runs/demo/report")
    assert report.texts["verdict"] == "Gained"
    assert report.texts["report"].startswith("## It gained")


def test_wandb_has_every_step_once_under_one_name(folder):
    sessions = [in_wandb(file) for file in sorted((folder / "runs/demo/sft/wandb").glob("offline-*/*.wandb"))]
    assert len(sessions) == 2
    first, second = sessions
    # Offline W&B cannot go on with a file: a second one bears the same id, and goes on where it ended.
    assert first.config["_id"] == second.config["_id"]
    assert [step for step, _ in first.numbers["train/loss"]] == [1, 2, 3, 4, 5]
    assert [step for step, _ in second.numbers["train/loss"]] == [6]
    assert second.config["num_train_epochs"] == 5.0
    assert (second.config["_name"], second.group, second.config["_project"]) == (
        "demo/sft",
        "demo",
        "preferl",
    )
    assert second.texts["dev/accuracy"] == "0.75"
    assert [first.config["_exit"], second.config["_exit"]] == [1, 0]
    (table,) = (folder / "runs/demo/sft/wandb").glob("offline-*/files/media/table/samples*.json")
    kept = json.loads(table.read_text())
    assert kept["columns"] == ["prompt", "response", "reward", "finished"]
    assert kept["data"] == [["a|b <b>c</b>", "one\ntwo", 0.5, True]]


def test_wandb_has_the_report_as_an_artifact(folder):
    files = sorted((folder / "runs/demo/report/wandb").glob("offline-*/*.wandb"))
    told = in_wandb(files[-1])
    assert (told.config["_name"], told.group) == ("demo/report", "demo")
    assert told.texts["verdict"] == '"Gained"'
    assert told.config["_artifact"] == f"report-{told.config['_id']}"
    assert in_wandb(files[0]).config["_id"] == told.config["_id"]


def test_trackio_has_every_step_once(folder):
    told = in_trackio(folder / "runs/demo/trackio")
    assert told.keys() == {"demo/sft", "demo/report"}
    sft = told["demo/sft"]
    assert [step for step, _ in sft.numbers["train/loss"]] == [1, 2, 3, 4, 5, 6]
    assert sft.group == "demo"
    assert sft.config["num_train_epochs"] == 5.0
    assert "one\\ntwo" in sft.texts["samples"]
    assert "dev/accuracy: 0.75" in sft.texts["summary"]
    assert "Gained" in told["demo/report"].texts["verdict"]
    kept = [
        file.read_bytes() for file in (folder / "runs/demo/trackio/artifacts").rglob("*") if file.is_file()
    ]
    assert b"<p>the page</p>" in kept


def test_files_lie_in_the_run_and_it_is_said_how_to_look(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["home", "runs", "said.txt"]
    written = {path.relative_to(folder / "home").parts[1] for path in (folder / "home").glob("*/*")}
    assert written <= {"wandb", "share"}  # W&B's own logs and staging; nothing of trackio
    assert not list((folder / "home").rglob("*trackio*"))
    said = (folder / "said.txt").read_text()
    assert said.count("report_to tensorboard: tensorboard --logdir runs/demo\n") == 1
    offline = (
        "report_to wandb: offline, as it has no key (`wandb login`); wandb sync runs/demo/*/wandb/offline"
    )
    assert said.count(offline) == 1
    assert (
        said.count("report_to trackio: TRACKIO_DIR=runs/demo/trackio trackio show --project preferl\n") == 1
    )
    assert "Trackio" not in said  # what it prints itself
    assert "passed over" not in said  # nothing of trackers looks like a checkpoint


# ------------------------------------------------------------------------------------------------ reading


def in_tensorboard(stage: Path) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(stage / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    return Told(
        {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]},
        {tag.removesuffix("/text_summary"): text for tag, text in texts.items()},
    )


def records_of(file: Path) -> Iterator[Any]:
    """The records of a file of W&B: LevelDB's log format after seven bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, part, block = file.read_bytes(), 7, b"", 32768
    while place + 7 <= len(data):
        if block - place % block < 7:
            place += block - place % block
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        part += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or its last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def in_wandb(file: Path) -> Told:
    told = Told()
    for record in records_of(file):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            told.group = run.run_group
            told.config |= {"_id": run.run_id, "_name": run.display_name, "_project": run.project}
            told.config |= {item.key: json.loads(item.value_json) for item in run.config.update}
        elif kind == "history":
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if re.fullmatch(r"-?[\d.e-]+", item.value_json):
                    step = record.history.step.num
                    told.numbers.setdefault(name, []).append((step, float(item.value_json)))
        elif kind == "summary":
            told.texts |= {
                item.key or "/".join(item.nested_key): item.value_json for item in record.summary.update
            }
        elif kind == "artifact":
            told.config["_artifact"] = record.artifact.name
        elif kind == "exit":
            told.config["_exit"] = record.exit.exit_code
    return told


def in_trackio(folder: Path) -> dict[str, Told]:
    """Read by a process of its own: trackio's folder is chosen when it is loaded."""
    script = (
        "import json, trackio\n"
        "from trackio.sqlite_storage import SQLiteStorage\n"
        "for run in trackio.Api().runs('preferl'):\n"
        "    rows = SQLiteStorage.get_logs('preferl', run.name, run_id=run.id)\n"
        "    print(json.dumps([run.name, run.config, rows], default=str))\n"
    )
    command = [sys.executable, "-c", script]
    variables = os.environ | {"TRACKIO_DIR": str(folder)}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    found: dict[str, Told] = {}
    for line in done.stdout.splitlines():
        name, config, rows = json.loads(line)
        assert name not in found  # one run for both sessions
        told = found[name] = Told(group=config["_Group"], config=config)
        for row in rows:
            for key, value in row.items():
                if isinstance(value, dict):
                    told.texts[key] = json.dumps(value)
                elif isinstance(value, float):
                    told.numbers.setdefault(key, []).append((row["step"], value))
    return found


# ----------------------------------------------------------------------------------------------- failing


def config_of(folder: Path, *names: str) -> SftConfig:
    return SftConfig(output_dir=str(folder / "sft"), report_to=list(names), device="cpu", num_threads=1)


def tracked_stage(folder: Path, *names: str) -> None:
    with Stage("sft", config_of(folder, *names)) as stage:
        stage.begin()
        for step in range(1, 5):
            stage.log(step=step, loss=1.0 / step)
        stage.finish(loss=0.25)


def test_a_tracker_that_fails_is_named_once_and_ends_nothing(tmp_path, monkeypatch, capsys):
    from torch.utils.tensorboard import SummaryWriter

    write, told = SummaryWriter.add_scalar, []

    def full(self, name, value, step):
        told.append(step)
        if step == 2:
            raise OSError(28, "No space left on device\nat all")
        return write(self, name, value, step)

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    tracked_stage(tmp_path, "tensorboard")
    assert told == [1, 2]
    said = [line for line in capsys.readouterr().out.splitlines() if "failed" in line]
    assert len(said) == 1
    assert said[0].startswith(
        "sft: tensorboard failed and is left out from here on (OSError: [Errno 28] No space"
    )
    assert len((tmp_path / "sft/metrics.jsonl").read_text().splitlines()) == 4
    assert (tmp_path / "sft/DONE").exists()


def test_without_a_network_a_run_goes_on(tmp_path):
    script = (
        "from pathlib import Path\n"
        "from preferl.options.sft import SftConfig\n"
        "from preferl.runs.stage import Stage\n"
        "config = SftConfig(output_dir='sft', report_to='wandb,tensorboard', device='cpu', num_threads=1)\n"
        "with Stage('sft', config) as stage:\n"
        "    stage.begin()\n"
        "    stage.log(step=1, loss=1.0)\n"
        "    stage.finish(loss=1.0)\n"
    )
    nowhere = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}
    command = [sys.executable, "-c", script]
    variables = without_trackers(tmp_path) | nowhere
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("sft: wandb failed and is left out from here on (CommError: ") == 1
    assert (tmp_path / "sft/DONE").exists()
    assert in_tensorboard(tmp_path / "sft").numbers["loss"] == [(1, 1.0)]


# ---------------------------------------------------------------------------------------------- the option


def test_unknown_trackers_are_refused_with_the_known_ones(capsys):
    for command in ("rl", "run"):
        assert cli.main([command, "--report_to", "tensorboard,mlflow"]) == 2
        assert (
            "report_to 'mlflow' is unknown; use tensorboard, wandb, trackio, or []" in capsys.readouterr().err
        )


def test_a_tracker_that_is_not_installed_is_refused_with_the_way_to_it(monkeypatch):
    monkeypatch.setattr(shared.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"package wandb is not installed: pip install 'preferl\[track\]'"):
        SftConfig(report_to="wandb")


def test_a_run_tells_every_stage_whom_to_tell():
    given = RunConfig(report_to=["tensorboard"], rl={"report_to": []})
    found = {name: options.report_to for name, options in resolve(given).items()}
    assert found.pop("rl") == []
    assert list(found) == ["sft", "collect", "reward", "evaluate"]
    assert all(names == ["tensorboard"] for names in found.values())


def test_whom_it_tells_makes_no_other_stage(tmp_path):
    tracked_stage(tmp_path)
    assert not (tmp_path / "sft/tensorboard").exists()
    assert Stage("sft", config_of(tmp_path, "tensorboard")).is_finished


def test_done_anew_a_stage_begins_its_curves_anew(tmp_path):
    tracked_stage(tmp_path, "tensorboard")
    before = list((tmp_path / "sft/tensorboard").iterdir())
    with Stage("sft", config_of(tmp_path, "tensorboard"), fresh=True) as stage:
        stage.begin()
        stage.log(step=1, loss=9.0)
        stage.finish()
    assert in_tensorboard(tmp_path / "sft").numbers["loss"] == [(1, 9.0)]
    assert not any(path.exists() for path in before)


# ------------------------------------------------------------------------------------------------- names


def test_stages_of_a_run_lie_together(tmp_path):
    sweep, seed = tmp_path / "lr", tmp_path / "lr/kl-0.1/seed-0"
    claim(sweep, "sweep", "lr")
    claim(seed, "run", "seed-0")
    claim(seed / "reward", "stage", "reward")
    found = Tracked(seed / "rl", {}, tmp_path / "ids")
    assert (found.name, found.group, found.root) == ("lr/kl-0.1/seed-0/rl", "lr/kl-0.1/seed-0", sweep)
    member = Tracked(seed / "reward/member-1", {}, tmp_path / "ids")
    assert (member.name, member.group) == ("lr/kl-0.1/seed-0/reward/member-1", "lr/kl-0.1/seed-0")
    alone = Tracked(tmp_path / "sft", {}, tmp_path / "ids")
    assert (alone.name, alone.group, alone.root) == ("sft", None, tmp_path / "sft")


def test_numbers_are_told_and_nothing_else():
    row = {"reward": 0.5, "worst": "-inf", "alarms": [], "left_out": {"tied": 2}, "name": "x", "gap": None}
    assert numbers_of(row) == {"reward": 0.5, "worst": -float("inf"), "alarms": 0.0, "left_out/tied": 2.0}


def test_texts_cannot_leave_their_cell():
    table = as_table([{"a": "x | y\n<script>*b*\x1b[0m"}, {"b": None}])
    assert table.splitlines() == [
        "| a | b |",
        "| --- | --- |",
        "| x &#124; y<br>&#60;script&#62;&#42;b&#42;&#92;x1b&#91;0m |  |",
        "|  | None |",
    ]


def test_a_damaged_note_of_names_ends_nothing(tmp_path):
    (tmp_path / "ids.json").write_text("{broken")
    assert tracking.ids_in(tmp_path / "ids.json") == {}
    shutil.rmtree(tmp_path)
    assert tracking.ids_in(tmp_path / "ids.json") == {}
