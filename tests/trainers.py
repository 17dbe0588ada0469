"""The loop of ``preferl rl`` as ``run`` makes it, on small models whose responses end at different steps."""

import dataclasses

import torch

from preferl.data.records import PromptRecord
from preferl.learning.algorithms import find_algorithm
from preferl.learning.learner import Minibatch
from preferl.learning.meter import Meter
from preferl.learning.models import load_models
from preferl.sampling.cached import CachedEngine
from preferl.sampling.policy import Policy
from preferl.stages import rl

CPU = torch.device("cpu")
PROMPTS = [PromptRecord(f"Name thing {i} {'please ' * (i % 5)}") for i in range(12)]


class StopsOften(Policy):
    """Many ids stop a response, so that rows of a random model end at different steps."""

    def sampling(self, options):
        usual = super().sampling(options)
        return dataclasses.replace(usual, stop=(*usual.stop, *range(40, 80)))


def trainer_for(config: rl.RlConfig, scorer=None) -> rl.Trainer:
    """A trainer with twelve prompts; by default with the reward of the configuration."""
    models, tokenizer, own_scorer = load_models(config, find_algorithm(config.algorithm).critic, CPU)
    config = rl.with_defaults(config, models, scorer or own_scorer)
    engine = CachedEngine(models.policy, tokenizer.pad_token_id)
    return rl.Trainer(
        config=config,
        policy=StopsOften(models.policy, tokenizer, torch.float32, engine),
        learner=rl.learner_for(config, models, PROMPTS, torch.float32),
        scorer=scorer or own_scorer,
        gold=None,
        held_out=[],
    )


def backward(learner, batch, rows=None) -> None:
    """Adds the gradient of one minibatch of all rows, or of some."""
    minibatch = whole(learner, batch, rows)
    for micro in learner.micro_batches(minibatch.rows, batch.rollout.samples):
        learner.backward(batch, minibatch, micro, Meter())


def whole(learner, batch, rows=None) -> Minibatch:
    """All rows of a batch, or some, as one minibatch."""
    mask_BT = batch.rollout.samples.mask_BT
    rows = torch.arange(len(mask_BT)) if rows is None else rows
    return Minibatch(rows, learner.weights(mask_BT, rows), int(mask_BT[rows].sum()), "here")


def flat_gradient(model) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
