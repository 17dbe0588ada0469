"""Reward functions tried before anything is loaded or trained: a wrong name, a column that is not there and
scores of another number are said at once, and not after the stages before."""

from collections.abc import Mapping, Sequence
from typing import Any

from preferl.data.records import PromptRecord, columns_of
from preferl.data.sources import Source
from preferl.judging.reward_functions import (
    ARGUMENTS,
    Progress,
    RewardFunction,
    check_columns,
    load_function,
)
from preferl.judging.scorers import functions_named
from preferl.judging.utilities import NotSampled
from preferl.runs.errors import UsageError

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
    return {name: load_function(name) for text in texts if text for name in functions_named(text)}


def refuse_missing_columns(functions: Mapping[str, RewardFunction], source: Source) -> None:
    """Refuses functions that ask for what the rows of a data set do not have. Nothing is called.

    Raises:
        UsageError: one does, or a column has the name of what functions are given by preferl.
    """
    records = first_prompts(source) if functions else ()
    if not records:
        return  # whoever needs prompts says that there are none
    columns = columns_of(records)
    check_columns(columns)
    for function in functions.values():
        function.check_arguments(dict.fromkeys(ARGUMENTS) | columns)


def try_out(functions: Mapping[str, RewardFunction], source: Source) -> None:
    """Calls functions once, with the first prompts of a data set and a text as response.

    Raises:
        UsageError: one asks for a column that is not there, fails, or returns something else than a number
            for each response.
    """
    refuse_missing_columns(functions, source)
    records = first_prompts(source)
    for function in functions.values() if records else ():
        try:
            function(
                [record.prompt for record in records],
                [WRITTEN] * len(records),
                finished=[True] * len(records),
                trainer_state=Progress(1, 1),
                **columns_of(records),
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
