"""How a project is labelled: the settings that every page goes by, kept in the database."""

from dataclasses import dataclass
from typing import Annotated

from sqlalchemy import Connection, select

from preferl.label.schema import settings
from preferl.runs.errors import UsageError
from preferl.runs.ranges import Count, Natural, Range, Seed, Share, check_ranges

PROJECT_ID = "id"  # beside the settings
SELECTIONS = ("random", "informative")
# Built once, as every page reads them: building a statement takes longer than running it.
SETTINGS = select(settings).where(settings.c.name != PROJECT_ID)


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project's settings.

    Example: ``Project(overlap=3, selection="informative")``.
    """

    title: str = "Which response is better?"
    overlap: Count = 1
    """Judgements of each item, by different people."""
    gold_share: Share = 0.1
    """Share of an annotator's items with a known answer, while there are any they have not seen."""
    repeat_share: Share = 0.05
    """Share of an annotator's items that they have judged before, now turned round."""
    repeat_gap: Natural = 10
    """Items between a judgement and its repeat, at least."""
    lease_seconds: Annotated[float, Range(1)] = 900.0
    """After so long without a sign of life an item is given to somebody else."""
    idle_seconds: Annotated[float, Range(1)] = 300.0
    """Longest time on an item that statistics count."""
    selection: str = "random"
    """``random``, or ``informative``: where a reward-model ensemble disagrees most."""
    random_share: Share = 0.2
    """With ``informative``: share of items that are chosen at random all the same, for comparison."""
    markdown: bool = False
    """Show responses as (sanitised) Markdown."""
    guidelines: str = ""
    consent: str = ""
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.selection not in SELECTIONS:
            raise UsageError(f"selection '{self.selection}' is unknown; use {' or '.join(SELECTIONS)}")


def read_project(connection: Connection) -> Project:
    """The settings as they now are; what was never set has its default."""
    return Project(**{row.name: row.value for row in connection.execute(SETTINGS)})
