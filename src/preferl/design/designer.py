"""``preferl design-reward "behaviour"``: protocol, guidelines and evaluation criteria for a target behaviour.

Written from templates for the behaviours that ``behaviours.yaml`` knows, with examples of each. For any other
behaviour a language model writes them: ``--model``, or by hand with ``prompt.md`` and ``--answer``. The
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
EXAMPLES = "## Worked examples"  # in guidelines.md
LONGEST = 2000
USAGE = 'preferl design-reward "behaviour"'


@dataclass(kw_only=True)
class DesignConfig:
    """Options of ``preferl design-reward``."""

    output_dir: str = "design"
    """Folder to write protocol.md, guidelines.md, criteria.md and prompt.md into."""
    model: str | None = None
    """Language model that writes the documents for exactly this behaviour: ``judge:<directory or Hub name>``
    or ``judge:<URL>#<model>``, as a judge is named (docs/judges.md). Without it the drafts are the result,
    where preferl knows the behaviour."""
    answer: str | None = None
    """File with what a language model answered to ``prompt.md``, where it was asked by hand."""
    max_tokens: int = 6000
    """Longest answer of the model."""
    fresh: bool = False
    """Replace documents that are there already."""


def main(arguments: list[str]) -> int:
    """Runs the command; returns the exit code."""
    arguments = ["--fresh=true" if a == "--fresh" else a for a in arguments]
    parser = parser_for(DesignConfig, USAGE, (__doc__ or "").strip(), arguments or ["--help"])
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
        UsageError: there is no behaviour; documents are there already; or nothing here knows the behaviour,
            and no language model is to write about it.
    """
    behaviour = " ".join(behaviour.split())
    if not 1 <= len(behaviour) <= LONGEST:
        raise UsageError(f"the behaviour has {len(behaviour)} characters; describe it in 1 to {LONGEST}")
    if config.model and config.answer:
        raise UsageError("--model and --answer are both given; one of them writes the documents")
    folder, known = Path(config.output_dir), bool(knowledge(behaviour)["examples"])
    documents = drafts(behaviour)
    if not (known or config.model or config.answer):
        prompt = folder / "prompt.md"
        if not prompt.exists() or config.fresh:
            write_atomically(prompt, documents["prompt.md"])
        raise UsageError(
            f"there are examples of {', '.join(list(behaviours())[1:])}, and none of '{behaviour}': "
            f"guidelines without examples would be about nothing. A language model writes them: name one, as "
            f"--model judge:URL#NAME, or give {prompt} to any, and its answer back with --answer FILE"
        )
    # The prompt may be there: its answer is what is given now.
    written = DOCUMENTS if config.answer else (*DOCUMENTS, "prompt.md")
    there = [name for name in written if (folder / name).exists()]
    if there and not config.fresh:
        raise UsageError(f"{folder / there[0]} exists; give another --output_dir, or --fresh to replace it")
    if config.model or config.answer:
        documents |= rewritten(documents["prompt.md"], config, whole=not known)
    for name in written:
        write_atomically(folder / name, documents[name])
    return [folder / name for name in written]


def behaviours() -> dict[str, Any]:
    """What ``behaviours.yaml`` says about each behaviour; ``general`` is about any."""
    return yaml.safe_load((HERE / "behaviours.yaml").read_text(encoding="utf-8"))


def knowledge(behaviour: str) -> dict[str, Any]:
    """What the templates say about a behaviour; of one that is not known the general advice, without
    examples."""
    known = behaviours()
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


def rewritten(prompt: str, config: DesignConfig, whole: bool) -> dict[str, str]:
    """The documents as a language model writes them; a draft stays where its answer has none.

    Args:
        prompt: what it is asked.
        config: the model, or the file with its answer.
        whole: nothing is left to a draft: all three have to be there, and the guidelines have examples.

    Raises:
        UsageError: the answer holds none of them, or not what it has to.
    """
    who, found = config.model or config.answer, answered(prompt, config)
    missing = [name for name in DOCUMENTS if name not in found]
    if not found or (whole and missing):
        lines = ", ".join(f"=== {name}" for name in missing)
        raise UsageError(
            f"{who} answered without the lines {lines}; raise --max_tokens, or ask another model"
        )
    if whole and EXAMPLES not in found["guidelines.md"]:
        raise UsageError(
            f"{who} wrote guidelines without '{EXAMPLES}', which only it can give; ask it again, or another"
        )
    for name in missing:
        say(f"design-reward: {who} wrote no {name}; the template's stays")
    return found


def answered(prompt: str, config: DesignConfig) -> dict[str, str]:
    """The documents in the answer of ``config.model``, or in the file ``config.answer``.

    Raises:
        UsageError: the file cannot be read.
    """
    if config.answer:
        try:
            return sections(Path(config.answer).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"--answer {config.answer} cannot be read as text: {error}") from error
    import torch

    from preferl.judging.backends import load_backend
    from preferl.judging.replies import CUT_OFF
    from preferl.options.judging import parse_judge

    backend = load_backend(parse_judge(config.model or ""), torch.device("cpu"))
    message = {"role": "user", "content": prompt}
    (answer,) = backend.complete([[message]], max_tokens=config.max_tokens, temperature=0.0)
    if answer.problem not in (None, CUT_OFF):
        raise UsageError(f"{config.model} wrote nothing that can be read: {answer.problem}")
    found = sections(answer.text)
    if answer.problem == CUT_OFF and found:
        found.popitem()  # the last one is not whole
    return found


def sections(answer: str) -> dict[str, str]:
    """The documents in an answer, by the lines that name them."""
    parts = re.split(r"^=== *(\S+) *$", answer, flags=re.MULTILINE)
    return {
        name: text.strip() + "\n"
        for name, text in zip(parts[1::2], parts[2::2], strict=True)
        if name in DOCUMENTS and text.strip()
    }
