"""report: one self-contained HTML file from stages' files: what was gained, what it cost, was it hacked.

Reads ``summary.json``, ``metrics.jsonl`` and ``samples.jsonl`` of the stages that are there; sections appear
when their data exists. Plots are inline SVG, everything shown is escaped, and nothing is fetched. Which
stages belong together is in ``reporting/gather.py``.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from preferl.reporting.gather import Gathered, gather
from preferl.reporting.markdown import summary
from preferl.reporting.measures import Runs, Stages
from preferl.reporting.page import GENERATOR, write_page
from preferl.reporting.rounds import one_by_one
from preferl.reporting.samples import examples
from preferl.reporting.sections import sections
from preferl.reporting.used_twice import used_twice
from preferl.reporting.verdict import facts, overall, terminal_lines, verdict
from preferl.runs.errors import UsageError
from preferl.runs.inputs import hash_directory
from preferl.runs.mark import read_mark

# What every page reads of an evaluation.
NEEDED = ("policies", "comparison", "references", "signs", "training", "cost", "best_of", "num_generations")


def write(run: Path, path: Path | None = None) -> Path:
    """Writes the page of a run or of a stage, by default ``report.html`` in its directory; returns its path.

    Raises:
        UsageError: as of ``read``.
    """
    return compare([run], path)


def compare(directories: Sequence[Path], path: Path | None = None) -> Path:
    """Writes one page about runs or stages, by default at its ``usual_place``; returns its path.

    Raises:
        UsageError: as of ``read``.
    """
    return write_gathered(read(directories), path or usual_place(directories))


def usual_place(directories: Sequence[Path]) -> Path:
    """``report.html`` in a directory; of several ``comparison.html`` beside the first."""
    if len(directories) == 1:
        return directories[0] / "report.html"
    return directories[0].resolve().parent / "comparison.html"


def is_foreign(page: Path) -> bool:
    """Whether a file at a page's usual place is none of preferl's pages."""
    if not page.exists() or read_mark(page.parent) is not None:
        return False
    return GENERATOR not in page.read_text(encoding="utf-8", errors="replace")[:1000]


def read(directories: Sequence[Path]) -> Gathered:
    """What directories of runs and of stages hold.

    Raises:
        UsageError: as of ``gather``; nothing is finished; or an evaluation is damaged.
    """
    found = gather(directories, hash_directory)
    if not found.runs:
        raise UsageError(
            f"{', '.join(map(str, directories))}: no finished stage. {' '.join(found.notes)}".rstrip()
        )
    for stages in found.runs.values():
        check_evaluation(stages)
    return found


def check_evaluation(stages: Stages) -> None:
    """Refuses an evaluation that pages cannot be made of."""
    if "evaluate" not in stages:
        return
    record = stages["evaluate"]
    missing = [key for key in NEEDED if key not in record.summary]
    if missing or not record.samples:
        raise UsageError(
            f"{record.path} was made by an older preferl or is damaged (no "
            f"{missing[0] if missing else 'samples'}); run `evaluate` again with --fresh"
        )


def write_gathered(found: Gathered, path: Path) -> Path:
    """Writes the page of what was gathered."""
    alone = next(iter(found.runs.values())) if len(found.runs) == 1 else {}
    return write_page(
        path,
        name=" · ".join(found.runs),
        verdict=overall(found.runs),
        facts=facts(found.runs),
        sections=sections(found.runs),
        configs=configs(found.runs),
        made_from=[name for name, _ in one_by_one(alone)] or list(found.runs),
        examples=examples(alone),
        remarks=found.notes,
        notes=notes(alone),
    )


def markdown(found: Gathered) -> str:
    """What was gathered in short, as Markdown."""
    runs = found.runs
    return summary(" · ".join(runs), overall(runs), facts(runs), sections(runs), found.notes)


def configs(runs: Runs) -> list[tuple[str, str]]:
    """Title and YAML of every stage's options."""
    return [
        (
            stage if len(runs) == 1 else f"{name}: {stage}",
            # Lines as long as they are: what is looked for in a page, as a path, stands there in one piece.
            yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True, width=math.inf),
        )
        for name, stages in runs.items()
        for stage, record in one_by_one(stages)
    ]


def lines(found: Gathered) -> list[str]:
    """What is said of a page on the terminal: its verdict, or those of several runs; and its remarks."""
    runs = found.runs
    said = [f"verdict: {verdict(stages).word}" for stages in runs.values()]
    if len(runs) > 1:
        said = terminal_lines({name: [stages] for name, stages in runs.items()})
    return said + found.notes


def lines_of(run: Path) -> list[str]:
    """What is said of a run's page."""
    return lines(read([run]))


def notes(stages: Stages) -> list[str]:
    """What the stages said about their data, each sentence once, and what several of them used."""
    seen: dict[str, None] = {}
    for _, record in one_by_one(stages):
        for note in record.summary.get("notes", []):
            seen.setdefault(note)
    return [*seen, *used_twice(stages)]
