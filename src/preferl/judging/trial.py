"""Reward functions tried on the first rows before anything is loaded or trained: a wrong name, a column that
is not there and scores of another number are said at once, and not after the stages before."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from preferl.data.records import PromptRecord, columns_of
from preferl.data.sources import Source
from preferl.judging.reward_functions import RewardFunction, check_columns, load_function
from preferl.judging.utilities import NotSampled, named_utility
from preferl.options.judging import names_judge
from preferl.runs.errors import UsageError
from preferl.runs.inputs import names_in
from preferl.runs.objects import object_of

SCORERS = ("reward_model", "gold", "held_out_reward")
"""Options that say what scores."""
ROWS = 2
WRITTEN = "I do not know."


def functions_of(options: Any) -> dict[str, RewardFunction]:
    """The functions of a person's own that score in a stage, by name.

    Args:
        options: of the stage.

    Raises:
        UsageError: one cannot be imported, or is no function.
    """
    texts = [getattr(options, name, None) for name in SCORERS]
    names = [name for text in texts if text and object_of(text) is None for name in names_in(text)]
    return {name: load_function(name) for name in names if is_function(name)}


def is_function(name: str) -> bool:
    """Whether a name in a reward's text is ``module:function``."""
    return (
        ":" in name
        and not names_judge(name)
        and not Path(name.split("#")[0]).exists()
        and named_utility(name) is None
    )


def try_out(functions: Mapping[str, RewardFunction], source: Source) -> None:
    """Calls functions once, with the first prompts of a data set and a text as response.

    Raises:
        UsageError: one asks for a column that is not there, fails, or returns something else than a number
            for each response.
    """
    records = first_prompts(source) if functions else ()
    if not records:
        return  # whoever needs prompts says that there are none
    columns = columns_of(records)
    check_columns(columns)
    for function in functions.values():
        try:
            function(
                [record.prompt for record in records],
                [WRITTEN] * len(records),
                finished=[True] * len(records),
                **columns,
            )
        except NotSampled:
            continue  # of tokens something is known when they are sampled
        except UsageError as error:
            raise UsageError(
                f"{error}. It was tried on the first {len(records)} prompts with {WRITTEN!r} as the "
                f"response; nothing was trained"
            ) from error


def first_prompts(source: Source) -> Sequence[PromptRecord]:
    """Some prompts of a data set, of whichever split has any."""
    for split in ("train", "dev", "eval"):
        if source[split].prompts:
            return source[split].prompts[:ROWS]
    return ()
