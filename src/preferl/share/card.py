"""The model card of a run: what it is, how it was made, what came out, what nobody measured, what it cost,
and how to make it again.

Numbers and sentences are those of the report, from the same readers. Front matter is written by
huggingface_hub. Whatever is foreign (names, options, what a model wrote) is escaped as Markdown, and what
must not leave this machine is replaced in the finished text (``private.py``).
"""

import json
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import yaml

from preferl import __version__
from preferl.options.help import GROUPS, default_of
from preferl.pipeline import KINDS, plain
from preferl.reporting import cost, evaluation, hacking, rewards, training
from preferl.reporting.formats import brackets
from preferl.reporting.hacking import risen_signs
from preferl.reporting.markdown import cell, of_table, rows
from preferl.reporting.measures import NAMES, main_measure
from preferl.reporting.page import Maker, Table
from preferl.reporting.verdict import facts, verdict
from preferl.runs.files import read_json, read_yaml
from preferl.runs.mark import read_mark, was_ours
from preferl.runs.record import StageRecord, read_config
from preferl.share.subject import Base, Subject, base_of, hub_name
from preferl.stages.report import notes

UNKNOWN = "not known to preferl: look"
WORLD_LICENSE = "apache-2.0"  # the embedded world is a part of preferl
DIGITS = 16  # of a SHA-256 that are shown
MOST_TEXT = 2000  # characters of an option that are shown
RESULTS: tuple[Maker, ...] = (
    evaluation.policies_table,
    evaluation.win_rates_table,
    hacking.signs_table,
    hacking.over_optimisation_table,
    training.alarms_table,
    rewards.reward_table,
    rewards.benchmark_table,
)
COSTS: tuple[Maker, ...] = (cost.stages_table, cost.equal_cost_table)
WHAT = {
    "sft": "A language model, fine-tuned on demonstrations",
    "dpo": "A language model, fine-tuned on preferences themselves ({loss_type}, β = {beta})",
    "rl": "A language model, fine-tuned with {algorithm} against the reward “{reward_model}” under a KL "
    "penalty of {kl_coef} ({kl_controller}) to the model that it started from",
    "reward": "A reward model: it gives a response to a prompt one number, the higher the better by the "
    "labels that it was trained on",
}
VALUE_MODEL = (
    "The value model (critic) of a training run: it estimates the reward that a response will end with"
)


def model_card(subject: Subject, title: str | None = None, license: str | None = None) -> Any:
    """The card of a model, as ``huggingface_hub.ModelCard``.

    Args:
        subject: the model.
        title: by default the run's name; a repository's name once there is one.
        license: of the model, an identifier of the Hub; by default that of base and data, where it is known
            and one, or else ``unknown``.
    """
    from huggingface_hub import ModelCard

    title = title or subject.name
    base = base_of(subject.record)
    known = licenses(subject, base)
    front = front_matter(subject, base, title, license or common(known)).to_yaml()
    sections = [
        f"# {cell(title)}",
        what_it_is(subject, base),
        use(subject, title),
        "## How it was made\n\n" + how_it_was_made(subject),
        "## Results\n\n" + results(subject),
        "## What was not measured\n\n" + bullets(not_measured(subject)),
        "## Cost\n\n" + tables(subject, COSTS),
        "## To make it again\n\n" + again(subject),
        "## Licences\n\n" + license_table(known, license or common(known)),
        f"Made by [preferl](https://github.com/preferl/preferl) {__version__} from the files of the run; "
        f"local paths stand here as names.",
    ]
    return ModelCard(subject.private.clean(f"---\n{front}\n---\n\n" + "\n\n".join(sections) + "\n"))


def bullets(sentences: Sequence[str]) -> str:
    return "\n".join(f"- {cell(sentence)}" for sentence in sentences)


def fenced(text: str, language: str = "") -> str:
    """A block of code that nothing in the text can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def tables(subject: Subject, makers: Sequence[Maker]) -> str:
    """The tables of the report that these makers make."""
    runs = {subject.name: subject.stages}
    made = [make(runs) for make in makers]
    return "\n\n".join(of_table(part) for part in made if isinstance(part, Table))


# ---------------------------------------------------------------------------------------------- front matter


def front_matter(subject: Subject, base: Base, title: str, license: str) -> Any:
    """What the Hub reads: ``huggingface_hub.ModelCardData``."""
    from huggingface_hub import ModelCardData

    adapter, critic = subject.part == "adapter", subject.part == "value_model"
    results = [] if critic else eval_results(subject)
    data = sorted({name for one in subject.data() if one.on_hub and (name := hub_name(one.name))})
    if critic:
        kind = ["value-model"]
    elif subject.is_reward:
        kind = ["reward-model"]
    else:
        kind = [subject.record.kind, *algorithm_tag(subject)]
    return ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=hub_name(base.name) if base.name is not None and base.on_hub else None,
        base_model_relation=("adapter" if adapter else "finetune") if base.on_hub else None,
        pipeline_tag=None if critic or subject.is_reward else "text-generation",
        license=license,
        datasets=data or None,
        tags=["preferl", "rlhf", *kind],
        model_name=title.split("/")[-1] if results else None,
        eval_results=results or None,
    )


def algorithm_tag(subject: Subject) -> list[str]:
    """The algorithm of rl, or the loss of dpo, unless it is a person's own."""
    config = subject.record.config
    name = str(config.get("algorithm") or config.get("loss_type") or "")
    return [name] if name and ":" not in name and name != "sigmoid" else []


def eval_results(subject: Subject) -> list[Any]:
    """Win rates against the start by every measure, or a reward model's accuracy, with their intervals."""
    from huggingface_hub import EvalResult

    measured = subject.evaluation or subject.record
    data = str(measured.config.get("dataset_name"))
    task = {
        "task_type": "text-classification" if subject.is_reward else "text-generation",
        "dataset_type": hub_name(data) or "preferl",
        "dataset_name": "the embedded world" if data == "world" else subject.private.clean(data),
        "dataset_split": measured.config.get("split") or "eval",
    }
    measures: list[tuple[str, str, float]] = []  # type, what it is, value
    if subject.is_reward and "eval/accuracy" in subject.record.summary:
        summary = subject.record.summary
        name = f"accuracy on held-out pairs, 95 % interval {ends(summary, 'eval/accuracy')}"
        measures.append(("accuracy", name, summary["eval/accuracy"]))
    elif subject.evaluation is not None:
        summary = subject.evaluation.summary
        for key, measure in NAMES.items():
            if key in summary["comparison"]:
                row = summary["comparison"][key]
                name = f"win rate against the start by {measure}, 95 % interval {ends(row, 'win_rate')}"
                measures.append(("win_rate", name, row["win_rate"]))
        kl = summary["policies"]["policy"]["kl"]
        measures.append(("kl", "KL to the start, nats per response", kl))
    return [
        EvalResult(**task, metric_type=kind, metric_name=name, metric_value=round(value, 4))
        for kind, name, value in measures
        if math.isfinite(value)
    ]


def ends(row: dict[str, Any], key: str) -> str:
    """[low, high] of a 95 % interval of a share, for a file of YAML."""
    return brackets(row, key, "{:.3f}".format).replace("\u00a0", " ")


# ------------------------------------------------------------------------------------------------ what it is


def what_it_is(subject: Subject, base: Base) -> str:
    """What it is, from what, and the verdict, in a paragraph each."""
    config = dict(subject.record.config)
    for option in ("algorithm", "loss_type"):
        name = str(config.get(option, ""))
        config[option] = "DPO" if name == "sigmoid" else name if ":" in name else name.upper()
    text = VALUE_MODEL if subject.part == "value_model" else WHAT[subject.record.kind].format_map(config)
    if subject.part == "adapter":
        start = read_json(subject.folder / "adapter_config.json").get("base_model_name_or_path")
        text += f"; these are the trained LoRA weights alone, which belong to the model {start}"
    found = verdict(subject.stages)
    return f"{cell(text)}. {origin(base)}\n\n**{cell(found.word)}.** {cell(found.text)}"


def origin(base: Base) -> str:
    """What everything began from."""
    if base.name is None:
        return "It began as a small model that preferl made, with random weights."
    content = f" ({base.content[:DIGITS]})" if base.content else ""
    if base.on_hub:
        name = hub_name(base.name)
        return f"It began as [{cell(str(name))}](https://huggingface.co/{name}){content}."
    where = "the folder" if base.place is not None else "the model"
    return f"It began as {where} {cell(base.name)}{content}; where that comes from is {UNKNOWN}."


def use(subject: Subject, title: str) -> str:
    """How it is loaded."""
    where = json.dumps(title)
    if subject.part == "adapter":
        auto = "AutoPeftModelForSequenceClassification" if subject.is_reward else "AutoPeftModelForCausalLM"
        code = f"from peft import {auto}\n\nmodel = {auto}.from_pretrained({where})"
        return fenced(code, "python")
    scalar = subject.is_reward or subject.part == "value_model"
    auto = "AutoModelForSequenceClassification" if scalar else "AutoModelForCausalLM"
    code = f"from transformers import {auto}, AutoTokenizer\n"
    file = subject.folder / "config.json"
    architectures = read_json(file).get("architectures") or [""] if file.is_file() else [""]
    if architectures[0].startswith("MeanPooled"):
        code += "import preferl.models.reward  # which registers its architecture: pip install preferl\n"
    code += f"\nmodel = {auto}.from_pretrained({where})\ntokenizer = AutoTokenizer.from_pretrained({where})"
    if subject.is_reward:
        code += "\n# the reward of a prompt with its response: model(**tokens).logits[:, 0]"
    return fenced(code, "python")


# ------------------------------------------------------------------------------------------- how it was made


def how_it_was_made(subject: Subject) -> str:
    """Every stage that led to it with what it read; the options of its own; what was said about the data."""
    steps = [
        (name, cost.work_of(record.kind, record.summary), read_by(record)) for name, record in subject.steps()
    ]
    text = rows(("stage", "what it did", "what it read"), steps)
    text += (
        f"\n\nIn brackets stand the first {DIGITS} digits of the SHA-256 of what was read, or of the Hub's "
        f"revision. Options of the last stage:\n\n{rows(('option', 'value'), options_of(subject.record))}"
    )
    said = notes(subject.stages)
    return f"{text}\n\nAbout the data:\n\n{bullets(said)}" if said else text


def read_by(record: StageRecord) -> str:
    """What a stage read, by the option that named it."""
    parents = record.manifest.get("parents", {})
    found = {role: f"{role}: {row['name']} ({row['hash'][:DIGITS]})" for role, row in parents.items()}
    name = record.config.get("dataset_name")
    if name is not None and "dataset_name" not in parents:
        found["dataset_name"] = "the embedded world" if name == "world" else f"dataset_name: {name}"
    return "; ".join(found.values()) or "–"


def options_of(record: StageRecord) -> list[tuple[str, str]]:
    """The options that people change, with the values that they had; those that were not used left out."""
    chosen = record.manifest.get("chosen", {})
    names = [name for group in GROUPS[record.kind].values() for name in group if name != "output_dir"]
    shown = []
    for name in names:
        value = record.config.get(name)
        if value == "auto":
            value = chosen.get(name, value)
        if value or name == "seed":
            shown.append((name, flag_value(value)[:MOST_TEXT]))
    return shown


# ---------------------------------------------------------------------------------------------------- results


def results(subject: Subject) -> str:
    """The few numbers of the report and its first tables."""
    runs = {subject.name: subject.stages}
    parts = [rows(("", "", ""), facts(runs)), tables(subject, RESULTS)]
    if subject.evaluation is not None:
        risen = risen_signs(subject.evaluation.summary)
        parts.insert(1, f"Signs of gaming that rose beyond noise: {cell(', '.join(risen) or 'none')}.")
    return "\n\n".join(part for part in parts if part)


def not_measured(subject: Subject) -> list[str]:
    """What a reader may take for known and is not."""
    found = []
    measured = subject.evaluation
    if subject.is_reward:
        if not any(record.kind == "audit" for record in subject.stages.values()):
            found.append("How it rates pairs of other data sets than its own.")
        found.append(
            "Whether a policy that is trained against it learns what was meant, or what it overrates."
        )
    elif measured is None:
        found.append("Whether it is better than what it started from: no evaluation was run.")
    else:
        summary, config = measured.summary, measured.config
        key = main_measure(summary)
        if key != "gold":
            found.append(f"The truth: it is judged by the {NAMES[key]}, which is no more than a proxy of it.")
        if "judge" not in summary["comparison"]:
            found.append("What a judge, or people, would say of its responses beside those of the start.")
        found.append(
            f"Prompts of another kind than the {summary['prompts']:,} of the evaluation, another temperature "
            f"than {summary['temperature']}, and responses of over {config.get('response_length')} tokens."
        )
    found += [
        "Other seeds: one training was run, and intervals are over prompts or pairs, not over trainings.",
        "Knowledge, reasoning, code, safety, fairness, languages: no benchmark of these is part of the run.",
    ]
    return found


# ------------------------------------------------------------------------------------------- making it again


def again(subject: Subject) -> str:
    """The configuration and the command, or every stage's command, and the versions."""
    file = subject.run / "config.yaml"
    mark = read_mark(subject.run)
    is_run = mark.kind == "run" if mark else was_ours(subject.run, "run", subject.run.name)
    if is_run and file.is_file():
        text = yaml.safe_dump(read_yaml(file), sort_keys=False, allow_unicode=True, width=math.inf)
        parts = [
            "With this as `config.yaml`:",
            fenced(text, "yaml"),
            fenced("preferl run --config config.yaml", "sh"),
        ]
    else:
        parts = [fenced("\n".join(command_of(record) for _, record in subject.steps()), "sh")]
    parts.append(
        "Names of files, folders and functions are those of their author's machine, without paths; rewards "
        "and other functions of a person's own are not part of this repository."
    )
    made = subject.record.manifest.get("environment", {})
    versions = {"preferl": made.get("preferl", "?"), "Python": made.get("python", "?")}
    parts.append(rows(("made with", "version"), list((versions | made.get("packages", {})).items())))
    return "\n\n".join(parts)


def command_of(record: StageRecord) -> str:
    """The command of a stage, with the options that were given."""
    defaults = {
        field.name: default_of(field)
        for field in fields(KINDS[record.kind])
        if field.default is not MISSING or field.default_factory is not MISSING
    }
    given = {
        name: value
        for name, value in read_config(record.path).items()
        if name not in defaults or plain(defaults[name]) != value
    }
    words = [f"--{name}={flag_value(value)}" for name, value in given.items() if value is not None]
    return " ".join(["preferl", record.kind, *map(shlex.quote, words)])


def flag_value(value: Any) -> str:
    """A value as it is written after a flag."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


# --------------------------------------------------------------------------------------------------- licences


def licenses(subject: Subject, base: Base) -> list[tuple[str, str | None]]:
    """Every model and data set from outside that it was made from, and its licence where it is known."""
    found: list[tuple[str, str | None]] = []
    if base.name is not None:
        found.append((f"the model {base.name}", license_of(base.name, base.place, "model")))
    for data in subject.data():
        known = WORLD_LICENSE if data.is_world else license_of(data.name, data.place, "dataset")
        found.append((str(data) if data.is_world else f"the data {data}", known))
    return found


def common(known: Sequence[tuple[str, str | None]]) -> str:
    """The licence that everything has; ``unknown`` where one is not known, or there are several."""
    found = {license for _, license in known}
    only = next(iter(found)) if len(found) == 1 else None
    return only or "unknown"


def license_of(name: str, place: Path | None, kind: str) -> str | None:
    """The licence that a card names: beside a folder's files, or of the Hub where it lies in the cache."""
    from huggingface_hub import RepoCard, try_to_load_from_cache

    repository = hub_name(name)
    if place is not None:
        card = (place if place.is_dir() else place.parent) / "README.md"
    elif repository is not None:
        cached = try_to_load_from_cache(repository, "README.md", repo_type=kind)
        card = Path(cached) if isinstance(cached, str) else None
    else:
        return None
    if card is None or not card.is_file():
        return None
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---"):
        return None
    try:
        found = RepoCard(text, ignore_metadata_errors=True).data.get("license")
    except (ValueError, TypeError, yaml.YAMLError):  # a card that somebody wrote by hand
        return None
    return found if isinstance(found, str) else None


def license_table(known: Sequence[tuple[str, str | None]], license: str) -> str:
    """The licence of the model, and of what it was made from."""
    text = f"This model: {cell(license)}."
    if license == "unknown":
        text += " Whoever publishes it chooses its licence, within those of what it was made from."
    table = rows(("made from", "licence"), [(name, found or UNKNOWN) for name, found in known])
    return f"{text}\n\n{table}" if known else text
