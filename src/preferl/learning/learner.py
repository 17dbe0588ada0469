"""The update: a rollout's advantages, then epochs of minibatches with an algorithm's loss.

One RL step is sample → score → shape → advantages → update → measure. It is read in three files:
``stages/rl.py`` (the loop, and what is measured), ``learning/rollout.py`` (sample, score, shape) and
``learning/learner.py`` (advantages, update).

What an algorithm is stands in ``algorithms.py``, a row of a table; this file knows none by name. Losses are
sums over a micro-batch times weights that add up over the whole minibatch, so that micro-batches, and
processes that share them out, change nothing.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from preferl.data.records import PromptRecord, prompt_text
from preferl.learning.algorithms import Algorithm, Batch, MicroBatch, as_one_action, pair_count
from preferl.learning.meter import Meter
from preferl.learning.micro_batches import MicroBatches
from preferl.learning.models import RlModels
from preferl.learning.optim import clip_and_step
from preferl.learning.rollout import Rollout
from preferl.maths.kl import kl_estimate
from preferl.maths.policy import (
    clipped_value_loss,
    explained_variance,
    masked_mean,
    masked_sum,
    whiten,
)
from preferl.models.offload import Offload
from preferl.models.recompute import recomputing
from preferl.options.learning import UpdateOptions
from preferl.runs import devices, distributed
from preferl.runs.errors import DivergedError
from preferl.sampling.logprobs import Distributions, in_microbatches
from preferl.sampling.samples import Samples, rows_of

# Cached decoding against a full forward pass.
MAX_RATIO_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.3}
# Advantages whose standard deviation is below this are the rounding of log-probabilities.
MIN_ADVANTAGE_SD = 1e-5


@dataclass
class State:
    """Everything the next iteration depends on: save and restore this, and the run goes on exactly.

    ``algorithm`` is the algorithm's own state. ``drawn`` counts the prompts taken from ``prompts``;
    ``optimum`` is the best possible objective with its error, ``first_accuracy`` on how many of how many
    pairs the reward and the annotator agreed at first, ``first_kl`` and ``last_kl`` the KL of the first and
    the last batch.
    """

    iteration: int
    models: RlModels
    optimizers: dict[str, torch.optim.Optimizer]
    schedulers: dict[str, torch.optim.lr_scheduler.LambdaLR]
    kl: Any
    generator: torch.Generator
    prompts: Iterator[PromptRecord]
    forward_passes: dict[str, int]
    algorithm: Any = None
    drawn: int = 0
    optimum: tuple[float, float] | None = None
    first_accuracy: tuple[int, int] | None = None
    first_kl: float = 0.0
    last_kl: float = 0.0
    alarms: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Minibatch:
    """Rows of a batch that one update learns from: ``tokens`` of them in all; ``weight_B`` (of all rows of
    the batch) is what a token of each counts in the mean; ``where`` names the update in messages."""

    rows: torch.Tensor
    weight_B: torch.Tensor
    tokens: int
    where: str


def response_kl(kind: str, micro: MicroBatch, exact: Callable[[], torch.Tensor]) -> torch.Tensor:
    """``kl_B``: the KL that stands in the loss, of each response of a micro-batch.

    ``k2`` is of whole responses, an unbiased gradient; ``k2_token``, ``k3`` and ``exact`` are sums over
    tokens. ``exact`` gives ``kl_BT`` over the whole vocabulary; it costs a pass of the reference, so it is
    called only where it is asked for.
    """
    if kind == "exact":
        return masked_sum(exact(), micro.mask_BT)
    if kind == "k2":
        logp_B = masked_sum(micro.logp_BT, micro.mask_BT)
        ref_logp_B = masked_sum(micro.ref_logp_BT, micro.mask_BT)
        return kl_estimate(logp_B, ref_logp_B, "k2")
    estimate_BT = kl_estimate(micro.logp_BT, micro.ref_logp_BT, kind.removesuffix("_token"))
    return masked_sum(estimate_BT, micro.mask_BT)


class Learner:
    """The training side: forward passes in micro-batches, and the update."""

    def __init__(self, options: UpdateOptions, algorithm: Algorithm, state: State, dtype: torch.dtype):
        self.options, self.algorithm, self.state, self.dtype = options, algorithm, state, dtype
        self.models = state.models
        self.epochs, self.minibatches_per_epoch = algorithm.passes(options)
        self.group_size = algorithm.group_size(options)
        # Rows that stay together in minibatches and micro-batches: a loss over pairs needs whole groups.
        self.unit = algorithm.over.unit(self.group_size)
        self.passes = MicroBatches(options, self.unit)
        self.offload = Offload(self.models.device, options.offload)
        self.loss_kl = None
        if options.kl_in == "loss":
            self.loss_kl = "k2" if options.kl_estimator == "auto" else options.kl_estimator
        self.as_actions = as_one_action if options.ratio_level == "response" else lambda micro: micro

    @property
    def reward_kl_coef(self) -> float:
        """The weight of the KL inside the reward."""
        return self.state.kl.coef if self.loss_kl is None and self.algorithm.kl_in_reward else 0.0

    # ------------------------------------------------------------------- forward passes, without gradients

    def forward_in_microbatches(
        self, samples: Samples, compute: Callable[[Samples], torch.Tensor]
    ) -> torch.Tensor:
        """``compute`` over micro-batches, gathered on the CPU as one ``_BT`` tensor, 0 outside the mask."""
        return in_microbatches(
            samples,
            compute,
            self.options.micro_batch_size,
            self.models.device,
            self.dtype,
            tokens=self.passes.tokens,
        )

    def reference_logprobs(self, samples: Samples) -> torch.Tensor:
        """``ref_logp_BT`` of sampled responses."""

        with self.offload.present(self.models.reference):
            return self.forward_in_microbatches(
                samples, lambda part: self.models.reference_distributions(part).logprobs()
            )

    def values(self, samples: Samples) -> torch.Tensor:
        """``value_BT`` of sampled responses; 0 without a critic."""
        if not self.models.has_values:
            return torch.zeros(samples.mask_BT.shape)
        return self.forward_in_microbatches(samples, self.models.values)

    def exact_kl(self, samples: Samples) -> torch.Tensor:
        """``kl_B``: KL over the whole vocabulary, summed over the states that each response visits."""

        def compute(part: Samples) -> torch.Tensor:
            return self.models.distributions(part).kl_to(self.models.reference_distributions(part))

        with self.offload.present(self.models.reference):
            return self.forward_in_microbatches(samples, compute).sum(-1)

    # ------------------------------------------------------------------------------------------ advantages

    def prepare(self, rollout: Rollout) -> Batch:
        """What the algorithm makes of a rollout, advantages whitened where that is asked for."""
        options, own_state, generator = self.options, self.state.algorithm, self.state.generator
        # How much better each token turned out than expected, and the return that a critic should have
        # expected; or what whole responses are worth, for the losses that compare them.
        advantage_BT, return_BT = self.algorithm.advantage(rollout, options, own_state, generator)
        score_PG = self.algorithm.score(rollout, options, own_state, generator)
        if self.algorithm.whitens(options):
            advantage_BT = self.whitened(advantage_BT, rollout.samples.mask_BT)
        return Batch(rollout, advantage_BT, return_BT, score_PG)

    def whitened(self, advantage_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        """Advantages with mean 0 and sd 1 over the batch; of responses where each is one action."""
        # Without a reward what is left is rounding, and whitening would make it a reason to move.
        if is_rounding(advantage_BT[mask_BT != 0]):
            return advantage_BT
        if self.options.ratio_level == "response":
            # Every token of a response bears the advantage of its first: one action, one value to count.
            first_B1 = advantage_BT[:, :1]
            return whiten(first_B1, torch.ones_like(first_B1)) * mask_BT
        return whiten(advantage_BT, mask_BT)

    # ---------------------------------------------------------------------------------------------- update

    def update(self, rollout: Rollout) -> dict[str, float]:
        """All epochs and minibatches of one iteration; returns token-weighted means of what was seen."""
        # Whatever says how good the tokens were is made once, before anything moves. From here on only the
        # policy (and the critic) changes, and each minibatch asks it anew how likely it finds those tokens.
        batch, mask_BT = self.prepare(rollout), rollout.samples.mask_BT
        seen, first_error, updates = Meter(), 0.0, 0
        for minibatch in self.minibatches(mask_BT):
            # 1. Gradients of all micro-batches add up; of several processes each computes its own. What is
            #    seen on the way is the policy before this step: how far the earlier ones have moved it.
            moved = self.accumulate(batch, minibatch)
            self.count(len(minibatch.rows))
            # 2. Before the first update the policy must still be the one that sampled, every ratio 1. If it
            #    is not, sampling and training disagree, and no ratio after it would mean anything.
            if updates == 0:
                first_error = moved.maximum["ratio_error"]
                self.check_first_ratio(first_error)
            seen.merge(moved)
            # 3. Too far from the policy that sampled: its advantages are no longer this one's, so this batch
            #    has nothing more to say, nor has the gradient just added up.
            if 0 < self.options.target_kl < moved.means()["approx_kl"]:
                self.forget_gradients()
                break
            # 4. One step of every optimiser. Processes add up their gradients first, so that all clip by
            #    the same norm and keep the same weights.
            for name, optimizer in self.state.optimizers.items():
                distributed.all_reduce_gradients(optimizer)
                with self.offload.stepping(optimizer):
                    norm = clip_and_step(optimizer, self.options.max_grad_norm, f"{minibatch.where}, {name}")
                seen.add(f"{name}_grad_norm", norm, 1)
            updates += 1
        # The learning rate moves once an iteration, however many updates it had.
        for scheduler in self.state.schedulers.values():
            scheduler.step()
        # The ratio's error is a check of the first minibatch; later it is what the updates are for.
        row = seen.means() | {"first_ratio_error": first_error, "updates": updates}
        del row["ratio_error"]
        if self.models.has_values:
            explained = explained_variance(rollout.value_BT, batch.return_BT, mask_BT)
            row["explained_variance"] = float(explained)
        return row

    def minibatches(self, mask_BT: torch.Tensor) -> Iterator[Minibatch]:
        """Every minibatch of every epoch, rows in random order."""
        unit, iteration = self.unit, self.state.iteration
        for epoch in range(self.epochs):
            # Units are shuffled, not rows: a group that is compared with itself must not be torn apart.
            order = torch.randperm(len(mask_BT) // unit, generator=self.state.generator)
            for number, units in enumerate(order.chunk(self.minibatches_per_epoch)):
                # Unit u is the rows u * unit to u * unit + unit - 1.
                rows = (units[:, None] * unit + torch.arange(unit)).flatten()
                yield Minibatch(
                    rows=rows,
                    weight_B=self.weights(mask_BT, rows),
                    tokens=int(mask_BT[rows].sum()),
                    where=f"rl iteration {iteration}, epoch {epoch}, minibatch {number}",
                )

    def weights(self, mask_BT: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``weight_B``: what a token of each row counts in the mean over the minibatch ``rows``."""
        # Weights of all rows, though only those of the minibatch mean something: a micro-batch then finds
        # its own by row number, and its share of the mean does not depend on how the rows were cut up.
        length_B = mask_BT.sum(-1).float()
        average = self.algorithm.loss_average(self.options)
        if average == "tokens":
            return torch.full_like(length_B, 1 / float(length_B[rows].sum()))
        if average == "responses":
            return 1 / (length_B * len(rows))
        return torch.full_like(length_B, 1 / len(rows))

    def micro_batches(self, rows: torch.Tensor, samples: Samples) -> list[torch.Tensor]:
        """This process's rows in parts that fit into memory."""
        rows = distributed.shard(rows, self.unit)
        parts = self.passes.parts(samples.extents(rows, self.unit))
        return [rows[part.start * self.unit : part.stop * self.unit] for part in parts]

    def forget_gradients(self) -> None:
        for optimizer in self.state.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def accumulate(self, batch: Batch, minibatch: Minibatch) -> Meter:
        """Adds the gradient of a minibatch, micro-batch by micro-batch; returns what all processes saw."""
        return self.passes.accumulated(lambda: self.all_passes(batch, minibatch), self.forget_gradients)

    def all_passes(self, batch: Batch, minibatch: Minibatch) -> Meter:
        """``accumulate``, in passes of the size that is set."""
        seen = Meter()
        recompute = bool(self.options.gradient_checkpointing)
        # A reference that stands in the loss is read again by the backward pass.
        reads = self.loss_kl == "exact"
        with (
            self.offload.present(self.models.reference) if reads else contextlib.nullcontext(),
            distributed.sync_errors(),
            recomputing(self.models.policy, self.models.critic, on=recompute),
        ):
            for rows in self.micro_batches(minibatch.rows, batch.rollout.samples):
                self.backward(batch, minibatch, rows, seen)
        return seen.of_all()

    def backward(self, batch: Batch, minibatch: Minibatch, rows: torch.Tensor, seen: Meter) -> None:
        """Adds the gradient of some rows of a minibatch."""
        models, rollout = self.models, batch.rollout
        part = rows_of(rollout.samples, rows)
        count = int(part.mask_BT.sum())
        # 1. The policy as it is now reads what it once drew. A value head reads the same hidden states.
        value_BT = None
        with devices.autocast(models.device, self.dtype):
            policy = models.distributions(part)
            if models.value_head is not None:
                value_BT = models.values_of(policy.states_BTD)
        micro = self.micro_batch(batch, minibatch, rows, part, policy.logprobs())

        # 2. The algorithm's loss, of tokens or of whole responses; what comes out of `reduce` is already
        #    this part's share of the minibatch's mean, so that gradients only have to be added up.
        actions = self.as_actions(micro)
        token_or_pair_loss = self.algorithm.loss(actions, self.options)
        loss, row_loss = self.algorithm.over.reduce(token_or_pair_loss, actions)
        check_finite(row_loss, "policy loss", rollout, rows, minibatch.where)
        # 3. The KL, where it is not in the reward already.
        if self.loss_kl is not None:
            kl_loss = self.kl_loss(micro, policy)
            loss = loss + self.state.kl.coef * kl_loss
            # This micro-batch's share of the minibatch's mean, as if the others were like it.
            seen.add("kl_loss", float(kl_loss.detach()) * minibatch.tokens / count, count)
        self.observe(micro, policy, row_loss, count, seen)
        # 4. The value head is a part of the policy's graph: one loss, one backward pass.
        if value_BT is not None:
            loss = loss + self.value_loss(batch, minibatch, rows, value_BT, seen)
        loss.backward()
        # 5. A critic of its own has another graph. It is built only now that the policy's is freed, so that
        #    never both are in memory.
        if models.critic is not None:
            with devices.autocast(models.device, self.dtype):
                value_BT = models.values(part)
            self.value_loss(batch, minibatch, rows, value_BT, seen).backward()

    def micro_batch(
        self, batch: Batch, minibatch: Minibatch, rows: torch.Tensor, part: Samples, logp_BT: torch.Tensor
    ) -> MicroBatch:
        """What the loss reads of some rows, on the model's device."""
        device, width = self.models.device, part.mask_BT.shape[1]
        mask_BT, rollout = part.mask_BT.to(device), batch.rollout
        # Rows of a loss over pairs are whole groups, each known by its first row; those of a loss over tokens
        # may be any, and no group is whole.
        if self.unit > 1:
            groups = rows.reshape(-1, self.unit)[:, 0] // self.group_size
        else:
            groups = rows[:0]
        return MicroBatch(
            logp_BT=logp_BT,
            old_logp_BT=part.logp_BT.to(device).masked_fill(mask_BT == 0, 0.0),
            ref_logp_BT=rollout.ref_logp_BT[rows, :width].to(device),
            advantage_BT=batch.advantage_BT[rows, :width].to(device),
            mask_BT=mask_BT,
            score_PG=batch.score_PG[groups].to(device),
            weight_B=minibatch.weight_B[rows].to(device),
            pairs=pair_count(len(minibatch.rows), self.group_size),
            kl_coef=self.state.kl.coef,
        )

    def kl_loss(self, micro: MicroBatch, policy: Distributions) -> torch.Tensor:
        """The KL that stands beside the policy loss, weighted as its tokens are."""
        assert self.loss_kl is not None

        def exact() -> torch.Tensor:
            return policy.kl_to(self.models.reference_distributions(policy.samples))

        kl_B = response_kl(self.loss_kl, micro, exact)
        return (kl_B * micro.weight_B).sum()

    def value_loss(
        self, batch: Batch, minibatch: Minibatch, rows: torch.Tensor, value_BT: torch.Tensor, seen: Meter
    ) -> torch.Tensor:
        """The weighted value loss of some rows: a sum divided by the minibatch's token count."""
        width, device = value_BT.shape[1], value_BT.device
        mask_BT = batch.rollout.samples.mask_BT[rows, :width].to(device)
        loss_BT = clipped_value_loss(
            value_BT,
            batch.rollout.value_BT[rows, :width].to(device),
            batch.return_BT[rows, :width].to(device),
            self.options.cliprange_value or math.inf,
        )
        row_loss_B = masked_sum(loss_BT, mask_BT)
        check_finite(row_loss_B.detach(), "value loss", batch.rollout, rows, minibatch.where)
        seen.add("value_loss", masked_mean(loss_BT.detach(), mask_BT).item(), int(mask_BT.sum()))
        return self.options.vf_coef * row_loss_B.sum() / minibatch.tokens

    @torch.no_grad()
    def observe(
        self,
        micro: MicroBatch,
        policy: Distributions,
        row_loss: torch.Tensor,
        count: int,
        seen: Meter,
    ) -> None:
        """How far the policy has moved from the one that sampled, and how random it is."""
        # Always of tokens, also where the loss takes whole responses: so runs can be compared.
        mask_BT, change_BT = micro.mask_BT, micro.logp_BT - micro.old_logp_BT
        ratio_BT = change_BT.exp()
        seen.add("approx_kl", float(masked_mean(0.5 * change_BT**2, mask_BT)), count)
        outside_BT = ((ratio_BT - 1).abs() > self.options.cliprange).float()
        seen.add("clip_fraction", float(masked_mean(outside_BT, mask_BT)), count)
        seen.add("entropy", float(masked_mean(policy.entropy(), mask_BT)), count)
        seen.add("policy_loss", float(row_loss.sum()) / count, count)
        seen.add("ratio_error", float(((ratio_BT - 1).abs() * mask_BT).max()), count)

    def count(self, rows: int) -> None:
        """Forward passes of an update; a backward pass counts two."""
        passes = self.state.forward_passes
        passes["policy_update"] += 3 * rows
        if self.models.critic is not None:
            passes["critic_update"] += 3 * rows
        if self.loss_kl == "exact":
            passes["reference"] += rows

    def check_first_ratio(self, error: float) -> None:
        """Before any update the policy must give the log-probabilities captured while sampling."""
        if error > MAX_RATIO_ERROR[self.dtype]:
            raise DivergedError(
                f"rl iteration {self.state.iteration}: before the first update the probability ratio is off "
                f"1 by {error:.2e} (allowed {MAX_RATIO_ERROR[self.dtype]:.0e}): sampling and training "
                f"disagree about the policy; please report this with your model's name"
            )


def is_rounding(advantage_N: torch.Tensor) -> bool:
    """Whether advantages vary by no more than the log-probabilities they were made from are exact to."""
    return len(advantage_N) < 2 or float(advantage_N.std()) < MIN_ADVANTAGE_SD


def check_finite(loss_B: torch.Tensor, what: str, rollout: Rollout, rows: torch.Tensor, where: str) -> None:
    """Stops before the update, and names the sample, where a row's (or a pair's) loss is no number."""
    broken = (~loss_B.isfinite()).nonzero()
    if len(broken) == 0:
        return
    # A loss over pairs has one entry for each; its group begins in the same proportion of the rows.
    row = int(rows[int(broken[0]) * len(rows) // len(loss_B)])
    raise DivergedError(
        f"{where}: the {what} is not finite; stopped before the update. First at the prompt "
        f"{prompt_text(rollout.prompts[row])[-80:]!r}, response {rollout.completions[row][:80]!r}, score "
        f"{float(rollout.score_B[row]):.4g}. Lower the learning rate, or look at this reward"
    )
