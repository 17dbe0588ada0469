"""What the rows of ``faults.py`` are made of: commands, the small world in which they run, and damages to it.

A row is data: what is prepared, what is run, with which exit code it ends and what it says. It works in a
folder of its own, a copy of a world in which every stage is finished (``build``).
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file

DONE, USAGE, DATA, DIVERGED, INTERRUPTED = 0, 2, 3, 4, 75
OUT = "--output_dir out --response_length 6"
SFT = (
    "sft --dataset_name demos.jsonl --vocab_size 300 --hidden_size 16 --num_layers 1 --num_heads 2 "
    f"--max_length 64 --num_train_epochs 2 --check_samples 4 {OUT}"
)
COLLECT = (
    "collect --model_name_or_path sft --dataset_name prompts.jsonl --annotator length --pairs.train 16 "
    f"--pairs.dev 4 --pairs.rl 0 --pairs.eval 6 {OUT}"
)
REWARD = (
    "reward --model_name_or_path sft --dataset_name pairs.jsonl --num_evals 2 --max_length 64 --audit false "
    f"--normalise_samples 8 {OUT}"
)
DPO = (
    "dpo --model_name_or_path sft --dataset_name pairs.jsonl --num_evals 2 --max_length 64 --check_samples 4 "
    f"{OUT}"
)
RL = (
    "rl --model_name_or_path sft --reward_model reward --dataset_name prompts.jsonl --algorithm rloo "
    f"--num_generations 2 --batch_size 8 --num_iterations 4 --eval_prompts 4 {OUT}"
)
BEST_OF = (
    "best_of --model_name_or_path sft --reward_model reward --dataset_name prompts.jsonl --num_generations 4 "
    f"--max_prompts 8 --dev_prompts 2 {OUT}"
)
EVALUATE = (
    "evaluate --model_name_or_path rl --ref_model sft --reward_model reward --dataset_name prompts.jsonl "
    f"--best_of [2] --max_eval_prompts 4 --best_of_prompts 4 {OUT}"
)
AUDIT = "audit --reward_model reward --dataset_name pairs.jsonl"
# A command takes a second here; slowed so that something can happen meanwhile.
LONG = f"{SFT} --num_train_epochs 1000 --save_every 20"


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        name: what goes wrong.
        command: options of ``preferl``, as on a command line.
        code: the exit code that it must end with.
        says: what its last line must hold.
        prepare: does the damage, in the row's folder, before the command runs.
        during: does it while the command runs, given the process and the folder.
        largest: no file may become larger (bytes), as on a disk that fills up.
        mend: takes the damage away; the same command must then end with 0.
        kept: files that must be as they were before.
        ignored: a signal that is ignored when the command starts, as nohup does.
        first: another command, which is at work when this one starts; the last line must name its process.
    """

    name: str
    command: str
    code: int
    says: str
    prepare: Callable[[Path], object] = lambda folder: None
    during: Callable[[int, Path], object] | None = None
    largest: int | None = None
    mend: Callable[[Path], object] | None = None
    kept: tuple[str, ...] = ()
    ignored: int | None = None
    first: str | None = None


# -------------------------------------------------------------------------------------------- the small world

REWARDS = """
import math, shutil
from pathlib import Path

def nan(prompts, completions, **columns):
    return [math.nan] * len(completions)

def infinite(prompts, completions, **columns):
    return [math.inf] * len(completions)

def none(prompts, completions, **columns):
    return [None] * len(completions)

def short(prompts, completions, **columns):
    return [0.0]

def raises(prompts, completions, **columns):
    raise ValueError("no\\x1b[2J idea")

def gone(prompts, completions, **columns):
    if Path("take").exists():
        Path("take").unlink()
        shutil.rmtree("out")
    return [float(len(text)) for text in completions]
"""


def build(folder: Path, preferl: Callable[[str], None]) -> None:
    """Data files, and a finished stage of each kind that other stages read."""
    prompts = [f"Say a word that begins with {letter}." for letter in "abcdefghijklmnopqrstuvwx"]
    rows = [{"prompt": p, "completion": f"{p[-2]} is for {p[-2] * 3}."} for p in prompts]
    pairs = [row | {"chosen": row["completion"], "rejected": "No word."} for row in rows]
    write_lines(folder / "prompts.jsonl", [{"prompt": p} for p in prompts])
    write_lines(folder / "demos.jsonl", rows)
    write_lines(folder / "pairs.jsonl", [{k: r[k] for k in ("prompt", "chosen", "rejected")} for r in pairs])
    (folder / "rewards.py").write_text(REWARDS)
    for name, command in (("sft", SFT), ("collect", COLLECT), ("reward", REWARD), ("rl", RL)):
        preferl(f"{command} --output_dir {name}")


def write_lines(path: Path, rows: list) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---------------------------------------------------------------------------------------------------- damages


def overwrite(name: str, content: str | bytes) -> Callable[[Path], object]:
    """Other content in a file."""
    data = content.encode() if isinstance(content, str) else content

    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return prepare


def cut(name: str, share: float = 0.5) -> Callable[[Path], object]:
    """Only the first part of a file, as a power cut leaves it."""

    def prepare(folder: Path) -> None:
        path = folder / name
        os.truncate(path, int(path.stat().st_size * share))

    return prepare


def flip(name: str, at: int = 12) -> Callable[[Path], object]:
    """One bit turned, ``at`` bytes from the start."""

    def prepare(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 0x40
        (folder / name).write_bytes(bytes(data))

    return prepare


def set_key(name: str, **changes: object) -> Callable[[Path], object]:
    """Other values in a JSON file."""

    def prepare(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return prepare


def weights(model: str, value: float) -> Callable[[Path], object]:
    """One weight of a model is no number."""

    def prepare(folder: Path) -> None:
        path = folder / model / "model" / "model.safetensors"
        tensors = load_file(path)
        tensors[sorted(tensors)[-1]].view(-1)[0] = value
        save_file(tensors, path, metadata={"format": "pt"})

    return prepare


def huge(model: str) -> Callable[[Path], object]:
    """Finite weights that overflow as soon as they are used."""

    def prepare(folder: Path) -> None:
        path = folder / model / "model" / "model.safetensors"
        tensors = load_file(path)
        tensors["model.norm.weight"] *= 3e38  # the last thing before the logits
        save_file(tensors, path, metadata={"format": "pt"})

    return prepare


def template(model: str, text: str) -> Callable[[Path], object]:
    """Another chat template, and prompts that use it."""

    def prepare(folder: Path) -> None:
        (folder / model / "model" / "chat_template.jinja").write_text(text)
        rows = [json.loads(line) for line in (folder / "prompts.jsonl").read_text().splitlines()]
        talk = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
        write_lines(folder / "prompts.jsonl", talk)

    return prepare


def own_code(folder: Path) -> None:
    """A model of an architecture of its own, with the code that says what it is."""
    model = folder / "sft" / "model"
    auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}
    set_key("sft/model/config.json", model_type="evil", auto_map=auto_map)(folder)
    (model / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\n")


def pickled(folder: Path) -> None:
    """Weights as a pickle, which could run anything."""
    model = folder / "sft" / "model"
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")


def tmpfs(size: str) -> Callable[[Path], object]:
    """``out`` is a disk of its own, of so many bytes."""

    def prepare(folder: Path) -> None:
        (folder / "out").mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder / "out")]
        subprocess.run(mount, check=True)

    return prepare


def remounted(options: str) -> Callable[[Path], object]:
    def mend(folder: Path) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(folder / "out")], check=True)

    return mend


def both(*prepares: Callable[[Path], object]) -> Callable[[Path], object]:
    def prepare(folder: Path) -> None:
        for each in prepares:
            each(folder)

    return prepare


def without(name: str) -> Callable[[Path], object]:
    """A stage, or a file, that is not there any more."""

    def prepare(folder: Path) -> None:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return prepare


def nothing(folder: Path) -> None:
    """What was wrong is right by itself: the disk has room again."""


def signalled(number: int) -> Callable[[int, Path], object]:
    """A signal once the first checkpoint is there."""

    def during(process: int, folder: Path) -> None:
        until(lambda: any((folder / "out" / "state").glob("step_*")))
        os.kill(process, number)

    return during


def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not true() and time.monotonic() < limit:
        time.sleep(0.02)


def interrupted(damage: Callable[[Path], object]) -> Callable[[int, Path], object]:
    """Killed once two checkpoints are there, and then something happens to the last one."""

    def during(process: int, folder: Path) -> None:
        state = folder / "out" / "state"
        until(lambda: len(list(state.glob("step_*"))) > 1)
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        damage(max(state.glob("step_*"), key=lambda path: int(path.name[5:])))

    return during
