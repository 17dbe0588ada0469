"""The wheel: all of preferl is in it, and its dependencies are those that it uses."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from preferl.models import load, tiny
from small_models import TEXTS, make_language_model, write_pairs

ROOT = Path(__file__).resolve().parents[1]
IMPORTED_AS = {"pyyaml": "yaml", "scikit-learn": "sklearn"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder in which the wheel of this checkout is unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        content.extractall(folder / "site")
    return folder / "site"


def test_it_holds_every_file_of_the_package(installed):
    source = ROOT / "src"
    files = {
        file.relative_to(source)
        for file in (source / "preferl").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files <= {file.relative_to(installed) for file in installed.rglob("*")}


def test_it_works_outside_of_the_checkout(installed, tmp_path):
    """Its configurations are found by name, and what the tutorial imports is there."""
    script = (
        "import preferl, preferl.cli, preferl.maths.reference as r\n"
        f"assert preferl.__file__.startswith({str(installed)!r}), preferl.__file__\n"
        "assert abs(float(r.bradley_terry_loss([0.0], [0.0])[0]) - 0.6931) < 1e-4\n"
        "raise SystemExit(preferl.cli.main(['run', '--config', 'tutorial', '--print_config']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "output_dir: runs/tutorial" in done.stdout


# The README as a stranger follows it: installed from the wheel, in a folder of one's own.
# What stands there instead of models of the Hub, and of stages that other commands have made.
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-0.6B", "runs/demo/sft", "trl_output")
STAGES = (
    "--response_length 6 --rl.num_iterations 1 --rl.batch_size 4 --rl.eval_prompts 2 --evaluate.best_of '[]' "
    "--evaluate.max_eval_prompts 2"
)
# How a command begins -> what makes it small; None: another test runs it.
SMALL = {
    "pip": None,  # what the fixture does
    "xdg-open": None,
    "preferl run --dataset_name pairs.jsonl": f"{STAGES} --reward.audit false --reward.normalise_samples 4",
    "preferl run --dataset_name questions.jsonl": STAGES,
    "preferl run --config hacking": "--print_config",
    "preferl data describe": "",
    "preferl doctor": "",
    "preferl reward": "--audit false --normalise_samples 4",
    "preferl dpo": "--response_length 6 --check_samples 2",
    "preferl audit": "",
    "preferl evaluate": "--response_length 6 --best_of '[]' --max_eval_prompts 2 --split all",
    "preferl chat": "--prompt 'Name thing 3.' --response_length 6",
    "preferl serve": None,  # it would stay
    "preferl card": "",
    "preferl push": "--dry_run",
}
SMALL_PYTHON = {
    "kl_coef=0.1)": "kl_coef=0.1, response_length=6, num_iterations=1, batch_size=4)",
    "=reward.model)": "=reward.model, response_length=6, best_of=[], max_eval_prompts=2)",
}
FOLLOW = """
import json, sys, preferl
from preferl import cli
assert preferl.__file__.startswith(sys.argv[1]), preferl.__file__
for command in json.loads(sys.argv[2]):
    print("$", *command, flush=True)
    if cli.main(command):
        raise SystemExit(f"{command} failed")
exec(sys.argv[3])
print("found", found.win_rate, found.kl, len(policy.metrics))
"""


def section(title: str) -> tuple[list[str], list[str]]:
    """The commands and the Python of a section of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    commands = [line for kind, body in blocks if not kind for line in body.splitlines()]
    return commands, [body for kind, body in blocks if kind == "python"]


def small(command: str) -> list[str] | None:
    """A command of the README, cut down; None where it is not run."""
    words = shlex.split(command, comments=True)
    fitting = [start for start in SMALL if command.startswith(start)]
    assert fitting, f"say in SMALL how `{shlex.join(words)}` of the README can be run in seconds"
    more = SMALL[max(fitting, key=len)]
    if more is None:
        return None
    return [*("model" if word in MODELS else word for word in words[1:]), *shlex.split(more)]


@pytest.mark.slow
def test_the_readme_can_be_followed_from_it(installed, tmp_path):
    commands, (function,) = section("Your data, your model")
    _, (python,) = section("From Python")
    (tmp_path / "my_rewards.py").write_text(function, encoding="utf-8")
    write_pairs(tmp_path / "pairs.jsonl")
    write_pairs(tmp_path / "rewardbench.jsonl")
    rows = [{"question": f"Thing {i}?", "answer": "Yes."} for i in range(12)]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (tmp_path / "my.yaml").write_text(
        "{dataset_name: pairs.jsonl, model_name_or_path: model, stages: [reward, rl]}"
    )
    tokenizer = tiny.train_tokenizer(TEXTS, 300)
    tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    load.save(make_language_model("llama", tokenizer), tokenizer, tmp_path / "model")
    for whole, cut in SMALL_PYTHON.items():
        assert whole in python
        python = python.replace(whole, cut)
    for name in MODELS:
        python = python.replace(name, "model")
    followed = [arguments for command in commands if (arguments := small(command))]
    assert len(followed) >= 8
    done = subprocess.run(
        [sys.executable, "-P", "-c", FOLLOW, str(installed), json.dumps(followed), python],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith("found ")
    for report in ("runs/mine/report.html", "runs/exact/report.html"):
        assert (tmp_path / report).is_file()


def test_every_dependency_is_imported():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))
    for requirement in project["dependencies"]:
        name = re.match(r"[\w-]+", requirement)[0]
        module = IMPORTED_AS.get(name, name.replace("-", "_"))
        assert re.search(rf"^\s*(from|import) {module}\b", text, flags=re.M), f"{name} is not used"
