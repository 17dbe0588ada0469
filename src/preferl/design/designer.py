"""``preferl design-reward "behaviour"``: protocol, guidelines and evaluation criteria for a target behaviour.

Written from templates; with ``--model`` a language model rewrites them for exactly this behaviour. The
guidelines go into the labelling pages: ``preferl label --guidelines DIR/guidelines.md``.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from preferl.runs.config import instantiate, parser_for
from preferl.runs.errors import UsageError
from preferl.runs.files import write_atomically
from preferl.runs.progress import say

HERE = Path(__file__).parent
DOCUMENTS = ("protocol.md", "guidelines.md", "criteria.md")
LONGEST = 2000
USAGE = 'preferl design-reward "behaviour"'


@dataclass(kw_only=True)
class DesignConfig:
    """Options of ``preferl design-reward``."""

    output_dir: str = "design"
    """Folder to write protocol.md, guidelines.md, criteria.md and prompt.md into."""
    model: str | None = None
    """Language model that rewrites the drafts: ``judge:<directory or Hub name>`` or ``judge:<URL>#<model>``,
    as a judge is named (docs/judges.md). Without it the drafts are the result."""
    max_tokens: int = 6000
    """Longest answer of the model."""
    fresh: bool = False
    """Replace documents that are there already."""


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    arguments = ["--fresh=true" if a == "--fresh" else a for a in arguments]
    parser = parser_for(DesignConfig, USAGE, (__doc__ or "").strip())
    if not arguments or arguments[0] in ("--help", "-h"):
        parser.parse_args(["--help"])
    behaviour, *rest = arguments
    if behaviour.startswith("-"):
        raise UsageError(f"name the behaviour first: {USAGE.replace('behaviour', 'helpfulness')} …")
    config = instantiate(parser, DesignConfig, parser.parse_args(rest))
    for path in write(behaviour, config):
        print(path)
    return 0


def write(behaviour: str, config: DesignConfig) -> list[Path]:
    """Writes the documents; returns their paths.

    Raises:
        UsageError: there is no behaviour, or documents are there already.
    """
    behaviour = " ".join(behaviour.split())
    if not 1 <= len(behaviour) <= LONGEST:
        raise UsageError(f"the behaviour has {len(behaviour)} characters; describe it in 1 to {LONGEST}")
    folder = Path(config.output_dir)
    there = [name for name in (*DOCUMENTS, "prompt.md") if (folder / name).exists()]
    if there and not config.fresh:
        raise UsageError(f"{folder / there[0]} exists; give another --output_dir, or --fresh to replace it")
    documents = drafts(behaviour)
    if config.model:
        documents |= rewritten(documents["prompt.md"], config)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents.items():
        write_atomically(folder / name, text)
    return [folder / name for name in documents]


def knowledge(behaviour: str) -> dict[str, Any]:
    """What the templates say about a behaviour; a free text gets the general advice."""
    known = yaml.safe_load((HERE / "behaviours.yaml").read_text(encoding="utf-8"))
    general = known.pop("general")
    for name, own in known.items():
        if behaviour.lower() in (name, *own["names"]):
            return general | own | {"title": name}
    return general | {"title": behaviour}


def drafts(behaviour: str) -> dict[str, str]:
    """The three documents and the prompt for a language model, by file name."""
    # Markdown, not HTML: the pages make it safe where they show it.
    environment = Environment(
        loader=PackageLoader("preferl.design", "."), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["quoted"] = lambda text: "\n".join(f"    {line}" for line in text.splitlines())
    environment.filters["capitalize_first"] = lambda text: text[:1].upper() + text[1:]
    values = knowledge(behaviour)
    documents = {name: environment.get_template(name).render(values) for name in DOCUMENTS}
    inside = {name.removesuffix(".md"): text for name, text in documents.items()}
    return documents | {"prompt.md": environment.get_template("prompt.md").render(values | inside)}


def rewritten(prompt: str, config: DesignConfig) -> dict[str, str]:
    """The documents as a language model writes them; a draft stays where its answer has none.

    Raises:
        UsageError: the answer holds none of them.
    """
    import torch

    from preferl.judging.backends import CUT_OFF, load_backend, parse_judge

    backend = load_backend(parse_judge(config.model or ""), torch.device("cpu"))
    message = {"role": "user", "content": prompt}
    (answer,) = backend.complete([[message]], max_tokens=config.max_tokens, temperature=0.0)
    found = sections(answer.removesuffix(CUT_OFF))
    if answer.endswith(CUT_OFF) and found:
        found.popitem()  # the last one is not whole
    if not found:
        raise UsageError(
            f"{config.model} answered without the lines === protocol.md, === guidelines.md, === criteria.md; "
            f"raise --max_tokens, try another model, or leave --model out"
        )
    for name in DOCUMENTS:
        if name not in found:
            say(f"design-reward: {config.model} wrote no {name}; the template's stays")
    return found


def sections(answer: str) -> dict[str, str]:
    """The documents in an answer, by the lines that name them."""
    parts = re.split(r"^=== *(\S+) *$", answer, flags=re.MULTILINE)
    return {
        name: text.strip() + "\n"
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
        if name in DOCUMENTS and text.strip()
    }
