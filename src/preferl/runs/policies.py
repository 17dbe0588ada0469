"""Which language model a person means: named by a run, a stage, a model's directory or a name of the Hub.

It is found from files alone, so that what cannot be meant is refused before torch is loaded.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from preferl.runs.errors import UsageError
from preferl.runs.mark import read_mark
from preferl.runs.record import is_sweep, read_config, read_manifest, stage_of, stages_begun

KINDS = ("rl", "dpo", "sft")  # stages that make a policy; of a run the last of the first kind that it has
NEVER = ("backbone",)  # a language model from which only the reward model starts
SAMPLED = ("temperature", "response_length", "stop_sequences")
HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")
# How the classes of models that score texts are called, in transformers and here.
SCORING = ("ForSequenceClassification", "RewardModel")
WHAT_TO_GIVE = "give a run (runs/mine), one of its stages, the folder of a model or a Hub name (owner/name)"


@dataclass(frozen=True)
class FoundPolicy:
    """A language model, as a person named it.

    Args:
        given: the name.
        path: the directory of a stage or of a model, a GGUF file, or a name of the Hub.
        why: which of a run's models it is; empty where the model itself was named.
        sampling: the values of ``SAMPLED`` with which preferl sampled from it, where that is on record.
        sampled_in: the stage whose record that is.
        reward: the reward of a run.

    Example: ``FoundPolicy("runs/a", "runs/a/rl", "its rl", {"temperature": 0.8}, "runs/a/evaluate",
    "runs/a/reward")``.
    """

    given: str
    path: str
    why: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)
    sampled_in: str = ""
    reward: str | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of the model's files; None for a name of the Hub."""
        path = Path(self.path)
        if not path.exists():
            return None
        return path / "model" if has_model(path) else path


def find_policy(name: str) -> FoundPolicy:
    """The language model that is meant by a name.

    Raises:
        UsageError: there is no such folder, or what it holds writes no text.
    """
    path = Path(name)
    refuse_missing(name)
    if not path.exists() or path.suffix == ".gguf":
        return FoundPolicy(name, name)
    if not path.is_dir():
        raise UsageError(f"'{name}' is a file; {WHAT_TO_GIVE}")
    if is_sweep(path):
        raise UsageError(f"'{name}' is a sweep of several runs; name one of them, as {name}/POINT/seed-0")
    if (path / "manifest.json").exists():
        return of_stage(name, path)
    if any((path / file).exists() for file in ("config.json", "adapter_config.json")) or any(
        path.glob("*.gguf")
    ):
        refuse_scorer(name, kinds_in(path))
        # The model of a stage, named by its own folder, is sampled as that stage samples.
        made_in = path.parent if (path.parent / "manifest.json").exists() else None
        return FoundPolicy(name, name, **sampled_by(made_in))
    begun = stages_begun(path)
    mark = read_mark(path)
    if begun or (mark is not None and mark.kind == "run"):
        return of_run(name, begun)
    raise UsageError(f"'{name}' holds no run, no stage and no model; {WHAT_TO_GIVE}")


def refuse_missing(name: str) -> None:
    """Refuses a name that is neither a path that is there nor one that the Hub could know.

    Raises:
        UsageError: it is none.
    """
    if not Path(name).exists() and not HUB_NAME.fullmatch(name):
        raise UsageError(f"there is no folder '{name}'; {WHAT_TO_GIVE}")


def of_stage(name: str, path: Path) -> FoundPolicy:
    """The model of a stage."""
    kind = read_manifest(path).get("stage")
    if kind == "reward":
        raise scores_only(name)
    if kind not in KINDS:
        raise UsageError(
            f"'{name}' is a stage of the kind {kind}, which makes no language model; name one of the kind "
            f"{', '.join(KINDS)}"
        )
    if not has_model(path):
        raise UsageError(
            f"'{name}' is not finished, and a stage writes its model at its end; give its command again, or "
            f"name another"
        )
    return FoundPolicy(name, name, **sampled_by(path))


def of_run(name: str, begun: Sequence[tuple[str, Path]]) -> FoundPolicy:
    """The policy of a run: the one that was evaluated last, else what rl made, else dpo, else sft; of several
    the last, which started from the others."""
    of_kind: dict[str, list[tuple[str, Path]]] = {}
    for stage, path in begun:
        of_kind.setdefault(str(read_manifest(path).get("stage")), []).append((stage, path))
    policies = [
        one for kind in KINDS for one in reversed(of_kind.get(kind, [])) if one[0] not in NEVER
    ]  # the nearest to the end of a run first
    made = [one for one in policies if has_model(one[1])]
    if not made:
        raise UsageError(
            f"the run '{name}' has no finished stage that makes a policy ({', '.join(KINDS)}); give its "
            f"command again, or name a model"
        )
    evaluations = [path for _, path in of_kind.get("evaluate", [])]
    judged = judged_by(evaluations[-1]) if evaluations else None
    stage, path = next((one for one in made if one[1].resolve() == judged), made[0])
    why = f"its {stage}" + (", which was evaluated" if path != made[0][1] else "")
    for other, place in policies[: policies.index((stage, path))]:
        why += f"; {other} is not finished" if not has_model(place) else ""
    sampled = sampled_by(evaluations[-1] if evaluations else path)
    return FoundPolicy(name, str(path), why, **sampled, reward=reward_of(of_kind))


def judged_by(evaluation: Path) -> Path | None:
    """The stage whose model an evaluation is about; None where that is no record of a stage."""
    parent = read_manifest(evaluation).get("parents", {}).get("model_name_or_path", {})
    if "path" not in parent:
        return None
    return stage_of((evaluation / parent["path"]).resolve())


def reward_of(of_kind: dict[str, list[tuple[str, Path]]]) -> str | None:
    """The reward of a run: of its reward stage, of several the last; else what rl was trained against."""
    made = [path for _, path in of_kind.get("reward", []) if (path / "DONE").exists()]
    if made:
        return str(made[-1])
    trained = [read_config(path).get("reward_model") for _, path in of_kind.get("rl", [])]
    return trained[-1] if trained else None


def sampled_by(stage: Path | None) -> dict[str, Any]:
    """How a stage samples, as arguments of ``FoundPolicy``."""
    if stage is None or not (stage / "config.yaml").exists():
        return {}
    options = read_config(stage)
    known = {key: options[key] for key in SAMPLED if options.get(key) is not None}
    return {"sampling": known, "sampled_in": str(stage)} if known else {}


def has_model(stage: Path) -> bool:
    return (stage / "model" / "config.json").exists()


def kinds_in(directory: Path) -> list[str]:
    """The classes of a model that its directory names; none where it does not say. Whoever loads it says what
    is wrong with a damaged file."""
    found: list[str] = []
    for file, key in (("config.json", "architectures"), ("adapter_config.json", "task_type")):
        try:
            value = json.loads((directory / file).read_text(encoding="utf-8"))[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found += value if isinstance(value, list) else [value]
    return ["ForSequenceClassification" if kind == "SEQ_CLS" else str(kind) for kind in found]


def refuse_scorer(name: str, architectures: Sequence[str]) -> None:
    """Refuses a reward model where a language model is needed. One with tied embeddings has all weights of a
    language model, and would write nonsense.

    Args:
        name: what a person called it.
        architectures: the classes that its configuration names.

    Raises:
        UsageError: it is one.
    """
    if architectures and all(kind.endswith(SCORING) for kind in architectures):
        raise scores_only(name)


def scores_only(name: str) -> UsageError:
    return UsageError(
        f"'{name}' is a reward model (or another classifier): it scores texts and writes none; name the "
        f"policy here, and the reward model with --reward_model where a command has that option"
    )
