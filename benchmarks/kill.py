"""kill -9 at every kind of instant, then the same command: does it end with the same bytes? what was lost?

Every try runs a command (``preferl sft …``), kills it and gives the same command again, which must leave the
very files of a run that nobody killed. Kill points are drawn (seeded) in three ways: before a file operation,
some milliseconds after one (in the middle of a write), or at a moment of the run. Operations are drawn by
kind, so that the rare ones count: the beginning, updates, checkpoints, ``model/``, ``DONE`` and what follows.
In one try of four what goes on is killed as well.

Most tries are forked from one process that has loaded everything; some are commands of their own, which are
killed in their imports too. With ``--signal TERM`` they are asked to stop. Models are tiny and real; at least
five checkpoints or parts lie in each run.

    python benchmarks/kill.py --jobs 2                 # everything, at most 2 hours on two cores
    python benchmarks/kill.py sft rl --kills 10 --fresh 1
    python benchmarks/kill.py sft rl --kills 10 --signal TERM
"""

import argparse
import contextlib
import http.server
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from equal_runs import equal_runs, timeless
from preferl import cli, pipeline  # noqa: F401 - children find everything loaded
from preferl.data.records import SPLITS
from preferl.models import load, tiny
from preferl.runs.errors import INTERRUPTED
from small_models import TEXTS, make_language_model

TWICE = 0.25  # of the tries are killed again while they go on
AFTER_S = 0.004  # a kill after an operation comes at most so much later
LIMIT_S = 300  # a process that takes longer hangs
FRESH = 10  # tries of each command that are processes of their own
IN_IMPORTS = 0.2  # of those are killed before the command's directory is there

# ----------------------------------------------------------------------------------------------- the commands

SMALL = {"num_threads": 1, "device": "cpu"}
SAMPLING = {"response_length": 6, "sampling_batch_size": 4}
NEW_MODEL = {"hidden_size": 32, "num_heads": 4, "vocab_size": 300, "check_samples": 4}
TRAINING = {"max_steps": 18, "save_every": 3, "num_evals": 4, "train_batch_size": 8}
RL = {
    **SAMPLING,
    "num_iterations": 12,
    "save_every": 2,
    "batch_size": 8,
    "micro_batch_size": 5,
    "eval_prompts": 4,
    "missing_eos_penalty": 0.0,
    "kl_controller": "adaptive",
    "num_mini_batches": 2,
}
PAIRS = {"train": 40, "dev": 8, "rl": 4, "eval": 8}
PIPELINE: dict[str, Any] = {
    **SMALL,
    "dataset_name": "{pairs}",
    "response_length": 6,
    "sft": {**NEW_MODEL, **TRAINING, "sampling_batch_size": 4},
    "collect": {"annotator": "concise", "pairs": PAIRS, "sampling_batch_size": 4},
    "reward": {**TRAINING, "sampling_batch_size": 4, "normalise_samples": 16},
    "rl": {**RL, "num_iterations": 6, "save_every": 1},
    "evaluate": {"sampling_batch_size": 2, "best_of": [2], "best_of_prompts": 6, "max_eval_prompts": 12},
}
ROUNDS = {
    **PIPELINE,
    "stages": ["collect", "reward", "rl"],
    "model_name_or_path": "{policy}",
    "rounds": 2,
    "collect": {**PIPELINE["collect"], "model_name_or_path": "{policy}"},
    "rl": {**PIPELINE["rl"], "gold": "concise"},
}
SWEEP = {
    **ROUNDS,
    "rounds": 1,
    "sweep": {"grid": {"rl.kl_coef": [0.05, 0.5]}, "metrics": {"accuracy": "reward.eval/accuracy"}},
}
FROM_POLICY = {**SMALL, "dataset_name": "{pairs}", "model_name_or_path": "{policy}"}


@dataclass(frozen=True)
class Case:
    """A command with its options; ``kills`` of the full table."""

    command: str
    options: dict[str, Any]
    kills: int = 20


CASES = {
    "sft": Case("sft", {**SMALL, **NEW_MODEL, **TRAINING, **SAMPLING, "dataset_name": "{texts}"}, 100),
    "reward": Case("reward", {**FROM_POLICY, **TRAINING, **SAMPLING, "weight_average": 0.5}, 100),
    "dpo": Case("dpo", {**FROM_POLICY, **TRAINING, **SAMPLING, "check_samples": 4}, 100),
    "rl": Case("rl", {**FROM_POLICY, **RL, "reward_model": "length"}, 100),
    "collect": Case("collect", {**FROM_POLICY, **SAMPLING, "annotator": "concise", "pairs": PAIRS}, 100),
    "best_of": Case(
        "best_of",
        {**FROM_POLICY, **SAMPLING, "num_generations": 4, "reward_model": "length", "gold": "concise"},
    ),
    "evaluate": Case(
        "evaluate",
        {
            **FROM_POLICY,
            **SAMPLING,
            "sampling_batch_size": 1,
            "ref_model": "{policy}",
            "reward_model": "length",
            "gold": "concise",
            "best_of": [2],
            "best_of_prompts": 8,
        },
    ),
    "audit": Case("audit", {**SMALL, "dataset_name": "{many}", "reward_model": "length"}),
    "collect, judge": Case(
        "collect", {**SMALL, "responses_file": "{candidates}", "annotator": "{judge}?unparsable=skip"}
    ),
    "audit, judge": Case(
        "audit", {**SMALL, "dataset_name": "{pairs}", "reward_model": "{judge}?unparsable=skip"}
    ),
    "reward, 2 members": Case(
        "reward",
        {**FROM_POLICY, **TRAINING, **SAMPLING, "num_members": 2, "member_share": 0.7, "audit": False},
    ),
    "run": Case("run", PIPELINE),
    "run, 2 rounds": Case("run", ROUNDS),
    "sweep": Case("sweep", SWEEP),
}


def row(number: int) -> dict[str, Any]:
    """A prompt with a pair of responses, in one of the four splits."""
    noun = ("apple", "river", "house", "stone", "cloud", "table")[number % 6]
    return {
        "prompt": f"Tell me of {noun} {number}." + " Take your time." * (number % 3),
        "chosen": f"Thanks, the {noun} is nice." + " Yes." * (number % 2),
        "rejected": f"Shut up! The {noun} is bad.",
        "split": SPLITS[number % len(SPLITS)],
    }


def materials(folder: Path) -> dict[str, str]:
    """Writes a policy and data sets; name -> path."""
    tokenizer = tiny.train_tokenizer(TEXTS, 300)
    load.save(make_language_model("llama", tokenizer), tokenizer, folder / "policy")
    rows = [row(i) for i in range(96)]
    texts = [{"prompt": r["prompt"], "completion": r["chosen"], "split": r["split"]} for r in rows]
    both = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]]} for r in rows[:24]]
    for name, content in (
        ("pairs", rows),
        ("texts", texts),
        ("many", [row(i) for i in range(10_001)]),
        ("candidates", both),
    ):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in content))
    return {"policy": str(folder / "policy")} | {
        name: str(folder / f"{name}.jsonl") for name in ("pairs", "texts", "many", "candidates")
    }


def judging(connection: Any) -> None:
    """A judge behind an endpoint, in a process of its own: it sends its URL, and prefers what thanks."""

    class Judge(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            text = self.rfile.read(int(self.headers["Content-Length"]))
            if not text:  # who asked was killed while asking
                return
            body = json.loads(text)
            text = body["messages"][0]["content"]
            verdict = "VERDICT: A" if text.find("Thanks") < text.find("Shut up") else "VERDICT: B"
            reply = verdict if "RESPONSE B" in text else f"SCORE: {9 if 'Thanks' in text else 2}"
            choice = {"message": {"content": reply}, "finish_reason": "stop"}
            usage = {"prompt_tokens": len(text), "completion_tokens": len(reply)}
            data = json.dumps({"choices": [choice], "usage": usage}).encode()
            with contextlib.suppress(ConnectionError):  # whoever asked was killed
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        connection.send(f"judge:http://127.0.0.1:{server.server_address[1]}/v1#stub")
        server.serve_forever()


@contextlib.contextmanager
def judge() -> Iterator[str]:
    """What names the judge, as long as the context lasts."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=judging, args=(there,), daemon=True)
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def placed(value: Any, paths: dict[str, str]) -> Any:
    """Options with the paths of the materials in them."""
    if isinstance(value, dict):
        return {key: placed(inside, paths) for key, inside in value.items()}
    return value.format(**paths) if isinstance(value, str) else value


# ------------------------------------------------------------------------------------------------ one process


@dataclass
class Operations:
    """The file operations of a process below a directory, in order, as Python's audit hooks report them."""

    root: str
    kill_at: int | None = None
    tell: int | None = None  # a pipe: told of that operation instead of killed there
    number: int = signal.SIGKILL
    seen: list[str] = field(default_factory=list)
    parts: int = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        kind = self.kind(event, arguments)
        if kind is None:
            return
        if len(self.seen) == self.kill_at:
            if self.tell is None:
                os.kill(os.getpid(), self.number)
            else:
                os.write(self.tell, b"x")
        self.seen.append(kind)

    def kind(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        """What is done to what; None for anything but a change below the directory."""
        if event == "open":
            path, mode, flags = arguments
            writes = bool(set(mode) & set("wax+")) if mode else flags & (os.O_WRONLY | os.O_RDWR)
            if not writes:
                return None
        elif event == "os.rename":
            path = arguments[1]
        elif event in ("os.remove", "os.rmdir", "os.mkdir"):
            # Inside of a tree that is removed names are relative to an open directory.
            path = arguments[0] if arguments[-1] == -1 else f"{self.root}/state/{arguments[0]}"
        else:
            return None
        path = os.path.abspath(os.fspath(path)) if isinstance(path, str | os.PathLike) else ""
        if not path.startswith(self.root):
            return None
        self.parts += event == "os.rename" and os.path.basename(path).startswith("part_")
        return kind_of(path)


def kind_of(path: str) -> str:
    """What a file of a run is for."""
    folders, name = path.split("/")[:-1], path.split("/")[-1]
    if "state" in folders:
        return "checkpoint"
    if "judge_replies" in folders:
        return "reply"
    if {"model", "value_model", "adapter", "data"} & {*folders, name.removeprefix(".").removesuffix(".tmp")}:
        return "model"
    if name in ("metrics.jsonl", "samples.jsonl"):
        return "update"
    if name.removesuffix(".tmp") in ("summary.json", "audit.json", "DONE", "state"):
        return "end"
    return "begin"


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (-9 killed), what it said, how long it took."""

    code: int
    said: str
    seconds: float
    operations: Sequence[str] = ()
    parts: int = 0


@dataclass(frozen=True)
class Kill:
    """Where a process is killed: at an operation, ``after`` so many seconds from it, or from the start; and
    by which signal."""

    operation: int | None = None
    after: float | None = None
    number: int = signal.SIGKILL


def forked(argv: Sequence[str], root: Path, kill: Kill | None = None) -> Ended:
    """The command in a child of this process, in the folder around ``root``, killed where ``kill`` says."""
    log, note = root.with_suffix(".log"), root.with_suffix(".note")
    log.touch()  # a child may be killed before it opens it
    told, tell = os.pipe()
    began = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            signal.alarm(LIMIT_S)
            os.chdir(root.parent)
            os.close(told)
            written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(written, 1)
            os.dup2(written, 2)
            hook = Operations(str(root))
            if kill is not None:
                hook.kill_at, hook.tell = kill.operation, None if kill.after is None else tell
                hook.number = kill.number
            sys.addaudithook(hook)
            code = cli.main(list(argv))
            note.write_text(json.dumps([hook.seen, hook.parts]))
        finally:
            os._exit(code)
    os.close(tell)
    if kill is not None and kill.after is not None:
        if kill.operation is None or os.read(told, 1):
            time.sleep(kill.after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, kill.number)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.close(told)
    seen, parts = json.loads(note.read_text()) if code == 0 else ((), 0)
    return Ended(code, log.read_text(), time.monotonic() - began, seen, parts)


def commanded(argv: Sequence[str], root: Path, kill: Kill | None = None, in_imports: bool = False) -> Ended:
    """The command as a process of its own, killed so long after it starts, or after its directory is made."""
    log = root.with_suffix(".log")
    began = time.monotonic()
    with open(log, "w") as file:
        program = [sys.executable, "-m", "preferl", *argv]
        process = subprocess.Popen(program, stdout=file, stderr=file, cwd=root.parent)
        if kill is not None and kill.after is not None:
            while not in_imports and process.poll() is None and not (root / ".preferl.json").exists():
                time.sleep(0.002)
            time.sleep(kill.after)
            process.send_signal(kill.number)
        code = process.wait()
    return Ended(code, log.read_text(), time.monotonic() - began)


# ---------------------------------------------------------------------------------------------------- one try


def stages(root: Path) -> list[Path]:
    """The directories of stages at and below a directory; of an ensemble those of its members too."""
    return sorted(
        path.parent for path in root.rglob("config.yaml") if (path.parent / "manifest.json").exists()
    )


def lost(root: Path) -> int:
    """Updates that were made, and lie behind the last checkpoint: they are made again."""
    again = 0
    for stage in stages(root):
        log = stage / "metrics.jsonl"
        if (stage / "DONE").exists() or not log.exists():
            continue
        whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
        steps = [json.loads(line).get("step", 0) for line in whole]
        kept = [int(p.name.removeprefix("step_")) for p in stage.glob("state/step_*")]
        again += max(0, max(steps, default=0) - max(kept, default=0))
    return again


def parts_in(root: Path) -> int:
    return sum(1 for _ in root.rglob("part_*"))


def differences(root: Path, reference: Path) -> list[str]:
    """What a run that was killed left otherwise than one that was not."""
    names, expected = ({str(p.relative_to(r)) for p in r.rglob("*")} for r in (root, reference))
    found = [f"too much: {name}" for name in sorted(names - expected)]
    found += [f"missing: {name}" for name in sorted(expected - names)]
    for stage in stages(reference):
        try:
            equal_runs(root / stage.relative_to(reference), stage)
        except (AssertionError, OSError) as error:
            found.append(f"{stage.name}: {error}"[:300])
    table = "table.json"
    if (reference / table).exists():
        one, other = (timeless(json.loads((r / table).read_text())) for r in (root, reference))
        found += ["table.json differs"] if one != other else []
    return found


@dataclass
class Tally:
    """What came of the kills of a command."""

    kills: int = 0
    from_checkpoint: int = 0
    from_start: int = 0
    finished: int = 0
    differences: list[str] = field(default_factory=list)
    updates_lost: list[int] = field(default_factory=list)
    parts_lost: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def restart(self, ended: Ended) -> None:
        """Counts how a command began that was given again."""
        if "goes on after" in ended.said:
            self.from_checkpoint += 1
        elif "finished before" in ended.said:
            self.finished += 1
        else:
            self.from_start += 1


class Tries:
    """All tries of one command."""

    def __init__(self, name: str, folder: Path, paths: dict[str, str], seed: int, number: int):
        self.name, self.folder, self.paths, self.signal = name, folder, paths, number
        self.rng = random.Random(f"{name}/{seed}")
        self.tally = Tally()
        self.number = 0
        began = time.monotonic()
        self.reference = folder / "reference" / "out"
        self.whole = forked(self.argv(self.reference), self.reference)
        if self.whole.code:
            raise SystemExit(f"{name}: the run that nobody kills fails:\n{self.whole.said}")
        by_kind: dict[str, list[int]] = {}
        for at, kind in enumerate(self.whole.operations):
            by_kind.setdefault(kind, []).append(at)
        self.by_kind = by_kind
        self.seconds = self.whole.seconds  # of a run, about
        logs = [log.read_text() for log in self.reference.rglob("metrics.jsonl")]
        self.trains = any('"step"' in log for log in logs)
        self.tally.seconds = time.monotonic() - began

    def argv(self, root: Path) -> list[str]:
        """The command of a run. Each has a folder of its own, in which it has the same name: where a model
        lies is written into data."""
        case = CASES[self.name]
        root.parent.mkdir()
        options = placed(case.options, self.paths) | {"output_dir": root.name}
        root.with_suffix(".yaml").write_text(yaml.safe_dump(options))
        return [case.command, "--config", f"{root.name}.yaml"]

    def draw(self) -> Kill:
        """A kill point of a forked process."""
        how = self.rng.choice(("before an operation", "after one", "at a moment"))
        if how == "at a moment":
            return Kill(None, self.rng.uniform(0, self.seconds), self.signal)
        operation = self.rng.choice(self.by_kind[self.rng.choice(sorted(self.by_kind))])
        after = None if how == "before an operation" else self.rng.uniform(0, AFTER_S)
        return Kill(operation, after, self.signal)

    def one(self, start: Callable[[Sequence[str], Path], Ended], again: Callable[..., Ended]) -> None:
        """Kills one run, perhaps twice, and lets it end.

        Args:
            start: starts the command and kills it.
            again: gives the command again; kills that too where it is given a ``Kill``.
        """
        self.number += 1
        root = self.folder / f"try-{self.number}" / "out"
        argv, began = self.argv(root), time.monotonic()
        ended = start(argv, root)
        if ended.code == 0:  # it was over before the kill came: no try
            self.seconds = min(self.seconds, ended.seconds)
            shutil.rmtree(root.parent)
            return
        twice = self.rng.random() < TWICE
        # Before a command has loaded what handles the other signals they kill too.
        while ended.code in (-self.signal, INTERRUPTED):
            self.tally.kills += 1
            if self.trains:
                self.tally.updates_lost.append(lost(root))
            ready = parts_in(root)
            ended = again(argv, root, self.draw() if twice else None)
            self.tally.restart(ended)
            twice = False
            if ended.operations and self.whole.parts:
                self.tally.parts_lost.append(max(0, ready + ended.parts - self.whole.parts))
        found = [f"exit {ended.code}: {ended.said[-400:]}"] if ended.code else []
        found += differences(root, self.reference) if not ended.code else []
        self.tally.differences += [f"{root.parent.name}: {text}" for text in found]
        self.tally.seconds += time.monotonic() - began
        if not found:
            shutil.rmtree(root.parent)

    def forked(self) -> None:
        self.one(partial(forked, kill=self.draw()), forked)

    def fresh(self, in_imports: bool) -> None:
        """By a command of its own, in its imports or later."""
        at = self.rng.uniform(0, 4.0 if in_imports else self.seconds)

        def again(argv: Sequence[str], root: Path, kill: Kill | None) -> Ended:
            return commanded(argv, root)

        self.one(partial(commanded, kill=Kill(None, at, self.signal), in_imports=in_imports), again)


def tries(
    name: str,
    folder: Path,
    paths: dict[str, str],
    kills: int | None,
    fresh: int,
    seed: int,
    number: int,
) -> Tally:
    """All tries of one command; ``fresh`` of the kills are of commands of their own."""
    own = folder / name.replace(", ", "-").replace(" ", "-")
    own.mkdir()
    run = Tries(name, own, paths, seed, number)
    wanted = CASES[name].kills if kills is None else kills
    fresh = min(fresh, wanted)
    while run.tally.kills < wanted - fresh:
        run.forked()
    before = run.tally.kills
    while run.tally.kills < before + fresh:
        run.fresh(run.tally.kills - before < IN_IMPORTS * fresh)
    return run.tally


# -------------------------------------------------------------------------------------------------- the table


HEAD = "| command | kills | went on | from 0 | was done | differences | updates lost | parts lost | minutes |"


def line(name: str, tally: Tally) -> str:
    def spread(counts: list[int]) -> str:
        return f"{median(counts):g}, at most {max(counts)}" if counts else ""

    cells = [name, tally.kills, tally.from_checkpoint, tally.from_start, tally.finished]
    cells += [len(tally.differences), spread(tally.updates_lost), spread(tally.parts_lost)]
    return "| " + " | ".join(map(str, [*cells, f"{tally.seconds / 60:.1f}"])) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("commands", nargs="*", metavar="COMMAND", help=", ".join(map(repr, CASES)))
    parser.add_argument("--kills", type=int, help="of each command; by default 100 or 20")
    parser.add_argument("--fresh", type=int, default=FRESH, help="of these by commands of their own")
    parser.add_argument("--signal", choices=("KILL", "TERM", "INT", "HUP"), default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    chosen = options.commands or list(CASES)
    unknown = [name for name in chosen if name not in CASES]
    if unknown:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="preferl-kill-")).resolve()
    work = partial(
        tries,
        folder=folder,
        paths=materials(folder),
        kills=options.kills,
        fresh=options.fresh,
        seed=options.seed,
        number=signal.Signals[f"SIG{options.signal}"],
    )
    print(HEAD)
    print("| --- " * HEAD.count(" |") + "|", flush=True)
    found: list[str] = []
    with contextlib.ExitStack() as context:
        work.keywords["paths"]["judge"] = context.enter_context(judge())
        pool = context.enter_context(multiprocessing.get_context("fork").Pool(options.jobs))
        for name, tally in zip(chosen, pool.imap(work, chosen), strict=True):
            print(line(name, tally), flush=True)
            found += [f"{name}: {text}" for text in tally.differences]
    for text in found:
        print(text)
    if found:
        raise SystemExit(f"{len(found)} differences; the runs are in {folder}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
