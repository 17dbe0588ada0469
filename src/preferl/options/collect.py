"""Options of ``preferl collect``."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from preferl.options.judging import AnnotatorOptions
from preferl.options.shared import DataOptions, SamplingOptions, StageOptions, TemplateOptions
from preferl.runs.ranges import Count, Natural, Range, RangedOptions

# Of an item that people label, or that is sampled; a ranking that is read may have more.
MOST_RESPONSES = 9


@dataclass(kw_only=True)
class PairCounts(RangedOptions):
    """Comparisons to collect in each split of the prompts."""

    train: Count = 5000
    """Pairs that train the reward model."""
    dev: Natural = 1000
    """Pairs for early stopping."""
    rl: Natural = 500
    """Pairs on the prompts of RL, to watch the reward model there."""
    eval: Natural = 5000
    """Pairs on which the reward model is reported."""


@dataclass(kw_only=True)
class CollectConfig(AnnotatorOptions, SamplingOptions, DataOptions, TemplateOptions, StageOptions):
    """Options of the collect stage."""

    output_dir: str = "runs/collect"
    """Where the stage is written."""
    model_name_or_path: str | None = None
    """Policy that writes the responses: a stage's directory, a model directory or a Hub name."""
    responses_file: str | None = None
    """JSONL of {"prompt": …, "responses": […]} to label instead of sampling."""
    layout: str | None = "pairs"
    """``pairs``: every two responses are compared by themselves (a pair has no place for a ``tie``);
    ``rankings``: all K are ranked at once (none is left out by ``skip``). Or, with pairs, the layout of
    the data set, as everywhere."""
    num_generations: Annotated[int, Range(2, MOST_RESPONSES)] = 2
    """Responses to each prompt, K >= 2."""
    matched: bool = False
    """Compare only responses of one length (within a tenth) and form (lists, headings, bold, code)."""
    adversarial: str | None = None
    """A reward model to search for mistakes: of a prompt's responses only the pair is compared on which it
    contradicts the annotator most. Sample from a policy that was trained against it."""
    add_to: str | None = None
    """Comparisons to which the new ones are added: a collect stage or files."""
    pairs: PairCounts = field(default_factory=PairCounts)
    """New comparisons (pairs, or rankings) in each split."""

    @property
    def written_as(self) -> str:
        """How comparisons are written: ``pairs`` or ``rankings``."""
        return "rankings" if self.layout == "rankings" else "pairs"

    def source(self) -> dict[str, Any]:
        """Its ``layout`` speaks of the data set only where it is neither of the two."""
        own = self.layout in ("pairs", "rankings")
        return super().source() | {"layout": None if own else self.layout}
