"""``preferl doctor``: versions, devices, disk and known problems, without loading a model; with ``--config``
what each training stage of a configuration will take of memory and time, and what would make it fit.
"""

import dataclasses
import importlib
import importlib.util
import os
import re
import shutil
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from preferl.options.defaults import TRAINING
from preferl.runs import memory
from preferl.runs.environment import environment
from preferl.runs.errors import UsageError
from preferl.runs.files import read_json, read_yaml
from preferl.runs.lock import holder_of
from preferl.runs.mark import read_mark
from preferl.runs.progress import say

GIB = 2**30


def main(folder: Path | None = None) -> int:
    """Prints what this machine has; returns 0 where nothing is wrong, 1 otherwise."""
    folder = folder or Path.cwd()
    found = environment()
    say(f"preferl {found['preferl']}, Python {found['python']}, {found['platform']}")
    say("  " + ", ".join(f"{name} {version}" for name, version in found["packages"].items()))
    problems = [f"{name} is not installed" for name, v in found["packages"].items() if v == "not installed"]
    problems += device_lines()
    for line in (memory_line(), busy_line(os.cpu_count() or 1), *extra_lines()):
        if line:
            say(f"  {line}")
    free = shutil.disk_usage(folder).free
    say(f"  disk: {free / GIB:.1f} GiB free in {folder}")
    if free < 2 * GIB:
        problems.append(f"less than 2 GiB free in {folder}: a run may not be saved whole")
    data = os.environ.get("PREFERL_DATA")
    if data:
        say(f"  PREFERL_DATA: {data}")
        if not Path(data).is_dir():
            problems.append(f"PREFERL_DATA names {data}, which is no folder")
    else:
        say("  PREFERL_DATA (a folder with copies of data sets of the Hub) is not set: they are downloaded")
    for line in at_work(folder / "runs"):
        say(f"  {line}")
    if not os.access(folder, os.W_OK):
        problems.append(f"{folder} cannot be written")
    for problem in problems:
        say(f"  problem: {problem}")
    say("no known problem" if not problems else f"{len(problems)} problem(s)")
    return 1 if problems else 0


def at_work(runs: Path) -> list[str]:
    """Which runs, sweeps and stages a command is working on now, and which command that is."""
    if not runs.is_dir():
        return []
    holders = {path: holder_of(path) for path in sorted(runs.iterdir()) if read_mark(path) is not None}
    return [f"running: {path}, by {holder}" for path, holder in holders.items() if holder is not None]


def device_lines() -> list[str]:
    """Says which devices there are; returns problems."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    say(f"  CPU: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    if not torch.cuda.is_available():
        say("  GPU: none that torch sees; everything runs on the CPU in float32")
        return gpu_without_torch()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        say(f"  GPU {index}: {properties.name}, {properties.total_memory / GIB:.0f} GiB")
    if not torch.cuda.is_bf16_supported():
        return ["the GPU has no bfloat16; float32 is used, at twice the memory"]
    return []


def gpu_without_torch() -> list[str]:
    """A problem where the system has a GPU of NVIDIA's that torch does not see."""
    if shutil.which("nvidia-smi") is None:
        return []
    import torch

    if torch.version.cuda is None:
        return [
            f"there is a GPU (nvidia-smi), and torch {torch.__version__} is a build for CPUs: "
            f"pip install --force-reinstall torch (pip's own build on Linux is CUDA's)"
        ]
    return [
        f"there is a GPU (nvidia-smi) that torch {torch.__version__} does not see: its build is of CUDA "
        f"{torch.version.cuda}; compare the driver's in nvidia-smi, and look at CUDA_VISIBLE_DEVICES"
    ]


def memory_line() -> str:
    """What is free of the memory that a process can have, or nothing where the system does not say."""
    free, there = memory.free_memory(), memory.machine_memory()
    if there == float("inf"):
        return ""
    return (
        f"memory: {free / GIB:.1f} GiB free of {there / GIB:.1f}; `preferl doctor --config FILE` says what a "
        f"run takes"
    )


def busy_line(cores: int) -> str:
    """What to do where other programs compute too; nothing where at least one core is free. The threads of a
    matrix product wait for the slowest of them, so with one core too few all of them are slow."""
    try:
        load = os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows
        return ""
    if load <= cores - 1 or load < 0.5:
        return ""
    spare = max(round(cores - load), 1)
    return (
        f"busy: {load:.1f} of {cores} cores were in use over the last minute; beside other programs "
        f"--num_threads {spare} is faster than {cores} threads that wait for each other"
    )


EXTRAS = {
    "label": "the labelling pages",
    "postgres": "labels in PostgreSQL",
    "quant": "QLoRA and AdamW in eight bits",
    "gguf": "models stored as GGUF",
    "track": "TensorBoard, W&B and trackio, for --report_to",
    "serve": "a policy behind OpenAI's API, for preferl serve",
}


def extra_lines() -> list[str]:
    """Optional parts that are not installed, what each is for, and how it is."""
    found = []
    for extra, purpose in EXTRAS.items():
        missing = [name for name in packages_of(extra) if not is_installed(name)]
        if missing:
            found.append(f"not installed: {', '.join(missing)} ({purpose}); pip install 'preferl[{extra}]'")
    return found


def packages_of(extra: str) -> list[str]:
    """Names of the packages that an extra adds."""
    try:
        lines = metadata.requires("preferl") or []
    except metadata.PackageNotFoundError:  # from a folder of sources
        return []
    requirements = [line for line in lines if re.search(rf"extra == ['\"]{extra}['\"]", line)]
    return [re.match(r"[\w.-]+", line)[0] for line in requirements]  # type: ignore[index]


def is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


# ------------------------------------------------------------------------------------------------- the plan

PROBE_SECONDS = 5.0
MODELS = ("model_name_or_path", "ref_model", "reward_model", "reference_policy")


def main_plan(file: Path, stage: str | None = None) -> int:
    """Prints the plan of every training stage of a configuration; returns 1 where one does not fit.

    Args:
        file: of ``preferl run``, or of one stage.
        stage: which one; by default what the manifest beside the file says.

    Raises:
        UsageError: the file is no such configuration.
    """
    problems = []
    speeds: dict[tuple[str, str], float] = {}
    for name, kind, options in planned_stages(file, stage):
        problems += say_plan(name, kind, options, speeds)
    for problem in problems:
        say(f"  problem: {problem}")
    return 1 if problems else 0


def planned_stages(file: Path, stage: str | None) -> list[tuple[str, str, Any]]:
    """Name, kind and options of each training stage of a configuration. What a stage reads that no stage has
    made yet is taken to be like what that stage will start from."""
    from preferl import pipeline
    from preferl.stage_choice import with_stages

    given = read_yaml(file)
    beside = file.parent / "manifest.json"
    if stage is None and beside.exists():
        stage = read_json(beside).get("stage")
    if stage is not None:
        return [(stage, stage, stage_options(stage, given))]
    of_run = {field.name for field in dataclasses.fields(pipeline.RunOptions)}
    if not all(name in of_run or isinstance(value, Mapping) for name, value in given.items()):
        raise UsageError(
            f"{file} has options that no run has: if it is the configuration of a stage, say of which with "
            f"--stage, as --stage {TRAINING[0]}"
        )
    config, chosen = with_stages(pipeline.RunConfig(**given))
    if chosen:
        say(chosen)
    found, like = [], {}
    for name, options in pipeline.resolve(config).items():
        kind = config.kinds.get(name) or pipeline.NAMES.get(name.partition("-")[0], name)
        changes = {}
        for option in MODELS:
            text = getattr(options, option, None)
            for path, start in like.items():
                if isinstance(text, str) and path in text and not Path(path, "DONE").exists():
                    text = changes[option] = text.replace(path, start)
        options = dataclasses.replace(options, **changes)
        if getattr(options, "model_name_or_path", None):
            like[options.output_dir] = options.model_name_or_path
        if kind in TRAINING:
            found.append((name, kind, options))
    return found


def stage_options(kind: str, given: Mapping[str, Any]) -> Any:
    """The options of a training stage.

    Raises:
        UsageError: it is none, or has no such option.
    """
    from preferl.runs.config import checked

    if kind not in TRAINING:
        raise UsageError(
            f"'{kind}' trains nothing and has no plan; the stages that do are {', '.join(TRAINING)}"
        )
    module = importlib.import_module(f"preferl.stages.{kind}")
    if kind == "rl":
        return checked(module.config_class(given.get("algorithm", "ppo")), given)
    return checked(getattr(module, f"{kind.title()}Config"), given)


def say_plan(name: str, kind: str, options: Any, speeds: dict[tuple[str, str], float]) -> list[str]:
    """Says what a stage takes; returns what is wrong with it."""
    from preferl.models import plan
    from preferl.runs import devices

    module = importlib.import_module(f"preferl.stages.{kind}")
    work = module.work_of(options)
    if not work.roles:
        say(f"{name}: a model that is made here, or whose configuration is not there yet: nothing to plan")
        return []
    device = devices.chosen_device(options.device)
    dtype = devices.chosen_dtype(options.dtype, options.device)
    machine = plan.Machine.here(device)
    found = plan.plan(work, plan.Levers.of(options), dtype, machine)
    for line in plan.lines(found, machine):
        say(f"{name}: {line}")
    for line in plan.table(found):
        say(f"  {line}")
    if (device.type, str(dtype)) not in speeds:
        speeds[device.type, str(dtype)] = measured_speed(device, dtype)
    speed = speeds[device.type, str(dtype)]
    for line in plan.time_lines(work, found, rows_of(options, work.rows), speed):
        say(f"  {line}")
    if found.fits(machine):
        return []
    return [plan.refusal(options, found, name, module.work_of, dtype, machine)]


def rows_of(options: Any, rows: int | None) -> int | None:
    """Rows that a run reads: those that its options say, or its data has; None where it is not there."""
    if rows is not None:
        return rows
    from preferl.data import sources
    from preferl.data.records import DataError

    try:
        train = sources.load_source(**options.source()).train
    except (UsageError, DataError, TypeError):  # it is not made yet, or depends on the model
        return None
    return max(len(train.demonstrations), len(train.comparisons), len(train.rated))


def measured_speed(device: Any, dtype: Any) -> float:
    """Floating-point operations a second of products of matrices as large as a layer's."""
    import torch

    a, b = (torch.randn(1024, 1024, device=device, dtype=dtype) for _ in range(2))
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < PROBE_SECONDS:
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        done += 4
    return done * 2 * 1024**3 / (time.perf_counter() - started)
