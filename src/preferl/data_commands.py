"""``preferl data``: what a data set holds, checked, described and written in our columns."""

from collections.abc import Iterator
from pathlib import Path

from preferl.data import formats, sources
from preferl.data.columns import Options
from preferl.data.containers import own_split, read_rows
from preferl.data.files import Table
from preferl.data.formats import ReadReport
from preferl.data.layouts import chosen_layouts
from preferl.data.records import DataError
from preferl.data.splits import meaning
from preferl.options.shared import DataCommandOptions
from preferl.runs.progress import printable


def validate(name: str, how: DataCommandOptions) -> bool:
    """Checks every row and prints what is wrong; returns whether something is."""
    report = formats.validate(part_of(name, how.split), how.dataset_format, Options(**how.reading()))
    for kind, count in sorted(report.left_out.items()):
        print(f"{kind}: {count}")
        for example in report.examples[kind]:
            print(f"  {printable(example)}")
    tell(report)
    # What is whole and says nothing yet is no defect, nor is what was to be left out.
    counted = set(report.left_out) - set(formats.EXCUSED)
    return bool(counted) and how.bad_rows != "skip"


def convert(name: str, out: Path, layout: str | None = None, *, how: DataCommandOptions) -> None:
    """Writes a data set in our columns."""
    policy = sources.policy_of(how.bad_rows)
    options = Options(**how.reading())
    tell(formats.convert(part_of(name, how.split), out, layout, policy, how.dataset_format, options))


def describe(name: str, how: DataCommandOptions) -> None:
    """Prints what a data set is read as, and how it is split."""
    source = sources.load_source(name, how.dataset_format, bad_rows=how.bad_rows, **how.reading())
    for note in source.measured_on(how.split).notes:
        print(printable(note))
    for split, part in source.parts.items():
        kinds = [f"{len(found):,} {kind}" for kind in sources.KINDS if (found := getattr(part, kind))]
        if kinds:
            print(f"{split}: {', '.join(kinds)}")


def layouts(how: DataCommandOptions) -> None:
    """Prints the layouts that are known, one a line."""
    for layout in chosen_layouts(how.layout):
        of = f"  ({layout.of})" if layout.of else ""
        print(f"{layout.name}: {layout.kind} by {layout.what_it_says()}{of}")


def tell(report: ReadReport) -> None:
    """Prints what was read as what."""
    print(printable(report.summary()))
    for note in report.notes:
        print(printable(note))


def part_of(name: str, split: str | None) -> str | Table:
    """A data set, or the rows of one split of it under the data set's own name or ours.

    Raises:
        DataError: it has no such split.
    """
    if split in (None, "all"):
        return name
    rows = list(read_rows(name))
    named = [own_split(row) for row in rows]
    wanted = [
        row for row, own in zip(rows, named, strict=True) if own is not None and split in (own, meaning(own))
    ]
    if not wanted:
        there = ", ".join(sorted({own for own in named if own})) or "none of its own"
        raise DataError(f"data set '{name}' has no split '{split}'; it has {there}")
    return Part(wanted, name)


class Part(Table):
    """Some rows of a data set, with their places."""

    def __init__(self, rows: list, name: str):
        super().__init__((), name)
        self.part = rows

    def read(self) -> Iterator:
        """Every row with its place."""
        yield from self.part
