"""The last good weights of a run that went too far, saved as models that other commands take by name."""

from typing import Any

import torch

from preferl.learning.learner import State
from preferl.runs import checkpoint
from preferl.runs.checkpoint import below
from preferl.runs.stage import Stage

DIRECTORY = "last_good"


@torch.no_grad()
def keep(state: State, tokenizer: Any, stage: Stage) -> str:
    """Writes the newest checkpoint whose policy was still near enough as models to ``last_good/``; returns
    where they are, as a sentence. The run is over: its optimisers are dropped."""
    # A batch is drawn before its iteration's update: the policy that is too far is the one after the
    # iteration before, and all older ones are good.
    state.optimizers.clear()  # the moments make room for those that are read
    saved = checkpoint.latest(stage.state, stage.owner, before=state.iteration - 1)
    if saved is None:
        return (
            "no checkpoint of an earlier iteration was kept (save_every), so the last good weights are those "
            "that it started from"
        )
    for role, parameters in state.models.trained().items():
        weights = below(f"{role}/weights/", saved.tensors)
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    state.models.save(tokenizer, stage.path / DIRECTORY, stage.config.model_name_or_path)
    return (
        f"the last good weights that were kept, those after iteration {saved.step}, are in "
        f"{stage.path / DIRECTORY / 'model'}, for any --model_name_or_path"
    )
