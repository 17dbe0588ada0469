"""The update: a rollout's advantages, then epochs of minibatches with an algorithm's loss.

What an algorithm is stands in ``stages/rl.py``, a row of a table; this file knows none by name. Losses are
sums over a micro-batch times weights that add up over the whole minibatch, so that micro-batches, and
processes that share them out, change nothing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from preferl.data.records import Prompt, prompt_text
from preferl.learning.models import RlModels
from preferl.learning.optim import clip_and_step
from preferl.learning.rollout import Rollout
from preferl.maths import kl as kl_maths
from preferl.maths import policy as maths
from preferl.runs import devices, distributed
from preferl.runs.config import OptimOptions
from preferl.runs.errors import DivergedError
from preferl.sampling.logprobs import logprobs_of
from preferl.sampling.samples import Samples, rows_of

# Cached decoding against a full forward pass.
MAX_RATIO_ERROR = {torch.float32: 1e-4, torch.bfloat16: 0.3}
# Advantages whose standard deviation is below this are the rounding of log-probabilities.
ROUNDING = 1e-5


@dataclass(kw_only=True)
class UpdateOptions(OptimOptions):
    """How a batch of responses becomes updates of the policy. 0 or ``auto``: the algorithm's own default."""

    algorithm: str = "ppo"
    """``ppo``, ``reinforce``, ``rloo``, ``grpo``, ``rebel`` or ``online_dpo``."""
    num_generations: int = 0
    """Responses to each prompt: k of RLOO, G of GRPO (usually 4), 2 or more for REBEL and online DPO."""
    num_ppo_epochs: int = 0
    """Passes over each batch (usually ppo 2, rebel 4, online_dpo 2, others 1)."""
    num_mini_batches: int = 0
    """Minibatches, and so updates, in each pass (usually ppo 4, others 1)."""
    micro_batch_size: int = 128
    """Sequences in one forward and backward pass; a smaller one saves memory and changes nothing."""
    kl_coef: float = 0.1
    """Weight of the KL to the reference (the beta of online DPO)."""
    kl_in: str = "reward"
    """``reward``: k1 of every token is subtracted from the reward, an unbiased gradient. ``loss``: an
    estimate is added to the loss (``kl_estimator``)."""
    kl_estimator: str = "auto"
    """In the reward ``k1``. In the loss ``k2`` of whole responses (unbiased), or per token ``k2_token``,
    ``k3`` or ``exact`` over the vocabulary (biased by a few per cent: docs/algorithms.md)."""
    cliprange: float = 0.2
    """Clip of the probability ratio."""
    dual_clip: float = 0.0
    """PPO's second clip, of the ratio where the advantage is negative (3 is usual); 0 for none."""
    ratio_level: str = "token"
    """``token``, or ``response``: one ratio, one clip and one advantage for each response."""
    target_kl: float = 0.0
    """Stop a batch's updates when the policy has moved this far from the one that sampled (nats per token,
    0.01 to 0.05 is usual); 0 for never."""
    cliprange_value: float = 0.2
    """Clip of the value's change."""
    vf_coef: float = 0.5
    """Weight of the value loss."""
    gamma: float = 1.0
    """Discount."""
    lam: float = 0.95
    """GAE's lambda."""
    whiten_rewards: bool = False
    """Scale token rewards to sd 1 over the batch, their mean kept (TRL's meaning; ppo only)."""
    whiten_advantages: bool | None = None
    """Normalise advantages over the batch to mean 0, sd 1; unset: ppo does, with the KL in the reward."""
    loss_average: str = "auto"
    """``tokens`` (each counts alike), ``responses`` (a mean over each response first: GRPO as published,
    kinder to long wrong answers) or ``sum`` (a sum over each response: Dr. GRPO). Usually tokens, grpo
    responses."""
    scale_rewards: bool = True
    """GRPO: divide by the group's standard deviation, as published; it changes the objective."""
    baseline: str = "batch"
    """REINFORCE: the mean return of the ``batch``, or a ``running`` mean of the batches before."""
    baseline_decay: float = 0.9
    """REINFORCE: decay of the running mean."""
    rebel_eta: float = 0.0
    """REBEL: the step; 0 for 1 / sd of the difference of two rewards, as the first batch has it."""
    preference_labels: str = "soft"
    """Online DPO: ``soft`` (both outcomes, weighted by their Bradley-Terry probability), ``sampled`` (drawn
    from it) or ``hard`` (the higher score wins)."""


@dataclass(frozen=True)
class Batch:
    """A rollout with its advantages; the ``_BT`` tensors are 0 outside the mask."""

    rollout: Rollout
    advantage_BT: torch.Tensor
    return_BT: torch.Tensor


@dataclass(frozen=True)
class MicroBatch:
    """What a loss reads: rows of a batch, with the log-probabilities under the policy as it is now.

    With ``ratio_level`` response the ``_BT`` tensors have one column, the sum over each response.
    """

    logp_BT: torch.Tensor
    old_logp_BT: torch.Tensor
    ref_logp_BT: torch.Tensor
    advantage_BT: torch.Tensor
    mask_BT: torch.Tensor
    group_size: int
    kl_coef: float

    def in_groups(self, x_BT: torch.Tensor) -> torch.Tensor:
        """``x_PG``: sums over each response, one row per prompt."""
        return maths.masked_sum(x_BT, self.mask_BT).reshape(-1, self.group_size)

    def worth(self) -> torch.Tensor:
        """``worth_PG``: what each response is worth, for algorithms that compare whole responses."""
        return self.advantage_BT[:, 0].reshape(-1, self.group_size)


@dataclass(frozen=True)
class Algorithm:
    """One row of the table.

    ``advantage`` gives (advantage_BT, return_BT) from a rollout; with ``pairs`` what each response is worth,
    on each of its tokens. ``loss`` gives the loss of each token, ``loss_BT``, or with ``pairs`` of each pair
    of responses to one prompt, ``loss_N``. ``several_passes``: the loss allows more than one update on a
    batch; ``kl_in_reward`` False: the loss holds the KL itself. The rest are the defaults of options left at
    0 or ``auto``.
    """

    advantage: Callable[[Rollout, UpdateOptions, "State"], tuple[torch.Tensor, torch.Tensor]]
    loss: Callable[[MicroBatch, UpdateOptions], torch.Tensor]
    critic: bool = False
    pairs: bool = False
    several_passes: bool = True
    kl_in_reward: bool = True
    generations: int = 1
    least_generations: int = 1
    epochs: int = 1
    mini_batches: int = 1
    whiten: bool = False
    average: str = "tokens"

    def group_size(self, options: UpdateOptions) -> int:
        """Responses to each prompt."""
        return options.num_generations or self.generations

    def passes(self, options: UpdateOptions) -> tuple[int, int]:
        """Epochs over a batch, and minibatches in each."""
        return options.num_ppo_epochs or self.epochs, options.num_mini_batches or self.mini_batches


@dataclass
class State:
    """Everything the next iteration depends on: save and restore this, and the run goes on exactly.

    ``drawn`` counts the prompts taken from ``prompts``; ``best`` is the best possible objective with its
    error, ``first_accuracy`` on how many of how many pairs the reward and the annotator agreed at first.
    """

    iteration: int
    models: RlModels
    optimizers: dict[str, torch.optim.Optimizer]
    schedulers: dict[str, torch.optim.lr_scheduler.LambdaLR]
    kl: Any
    generator: torch.Generator
    prompts: Iterator[Prompt]
    forward_passes: dict[str, int]
    drawn: int = 0
    baseline: float | None = None
    rebel_eta: float | None = None
    best: tuple[float, float] | None = None
    first_accuracy: tuple[int, int] | None = None
    alarms: dict[str, Any] = field(default_factory=dict)


class Learner:
    """The training side: forward passes in micro-batches, and the update."""

    def __init__(self, options: UpdateOptions, algorithm: Algorithm, state: State, dtype: torch.dtype):
        self.options, self.algorithm, self.state, self.dtype = options, algorithm, state, dtype
        self.models = state.models
        self.epochs, self.pieces = algorithm.passes(options)
        self.group_size = algorithm.group_size(options)
        # Rows that stay together in minibatches and micro-batches: a loss over pairs needs whole groups.
        self.unit = self.group_size if algorithm.pairs else 1
        self.average = algorithm.average if options.loss_average == "auto" else options.loss_average
        in_reward = options.kl_in == "reward"
        # Dividing advantages by their sd but not the KL beside them would change the coefficient.
        whiten = algorithm.whiten and in_reward
        self.whiten = whiten if options.whiten_advantages is None else options.whiten_advantages
        self.loss_kl = (
            None if in_reward else ("k2" if options.kl_estimator == "auto" else options.kl_estimator)
        )

    @property
    def reward_kl_coef(self) -> float:
        """The weight of the KL inside the reward."""
        return self.state.kl.coef if self.loss_kl is None and self.algorithm.kl_in_reward else 0.0

    def micro_batches(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """This process's rows in parts that fit into memory."""
        rows = distributed.shard(rows, self.unit)
        size = max(self.options.micro_batch_size // self.unit, 1) * self.unit
        return rows.split(size) if len(rows) else ()

    @torch.no_grad()
    def forward_in_microbatches(
        self, samples: Samples, compute: Callable[[Samples], torch.Tensor]
    ) -> torch.Tensor:
        """``compute`` over micro-batches, gathered on the CPU as one ``_BT`` tensor, 0 outside the mask."""
        out_BT = torch.zeros(samples.mask_BT.shape)
        order = distributed.shard(samples.mask_BT.sum(-1).argsort())
        for rows in order.split(self.options.micro_batch_size) if len(order) else ():
            part = rows_of(samples, rows)
            with devices.autocast(self.models.device, self.dtype):
                value = compute(part).float().cpu() * part.mask_BT
            out_BT[rows, : value.shape[1]] = value
        return distributed.all_reduce(out_BT)

    def reference_logprobs(self, samples: Samples) -> torch.Tensor:
        return self.forward_in_microbatches(
            samples, lambda part: logprobs_of(self.models.reference_logits(part), part)
        )

    def values(self, samples: Samples) -> torch.Tensor:
        if not self.models.has_values:
            return torch.zeros(samples.mask_BT.shape)
        return self.forward_in_microbatches(samples, self.models.values)

    def exact_kl(self, samples: Samples) -> torch.Tensor:
        """``kl_B``: KL over the whole vocabulary, summed over the states that each response visits."""

        def kl(part: Samples) -> torch.Tensor:
            temperature = part.sampling.temperature
            return kl_maths.kl_exact(
                self.models.logits(part) / temperature, self.models.reference_logits(part) / temperature
            )

        return self.forward_in_microbatches(samples, kl).sum(-1)

    def prepare(self, rollout: Rollout) -> Batch:
        """Advantages, whitened where that is asked for."""
        mask_BT = rollout.samples.mask_BT
        advantage_BT, return_BT = self.algorithm.advantage(rollout, self.options, self.state)
        # Without a reward what is left is rounding, and whitening would make it a reason to move.
        if self.whiten and not is_rounding(advantage_BT[mask_BT != 0]):
            if self.options.ratio_level == "response":
                first_B1 = advantage_BT[:, :1]
                advantage_BT = maths.whiten(first_B1, torch.ones_like(first_B1)) * mask_BT
            else:
                advantage_BT = maths.whiten(advantage_BT, mask_BT)
        return Batch(rollout, advantage_BT, return_BT)

    def update(self, rollout: Rollout) -> dict[str, float]:
        """All epochs and minibatches of one iteration; returns token-weighted means of what was seen."""
        options, state = self.options, self.state
        batch, mask_BT = self.prepare(rollout), rollout.samples.mask_BT
        seen, first_error, updates = Meter(), 0.0, 0
        for epoch, number, rows in self.minibatches(len(mask_BT)):
            where = f"rl iteration {state.iteration}, epoch {epoch}, minibatch {number}"
            weight_B, tokens = self.weights(mask_BT, rows), int(mask_BT[rows].sum())
            moved = Meter()
            with distributed.sync_errors():
                for micro in self.micro_batches(rows):
                    self.backward(batch, micro, weight_B, tokens, len(rows), moved, where)
            moved = moved.of_all()
            self.count(len(rows))
            if epoch == 0 and number == 0:
                first_error = moved.maximum["ratio_error"]
                self.check_first_ratio(first_error)
            seen.merge(moved)
            if 0 < options.target_kl < moved.means()["approx_kl"]:
                self.forget_gradients()
                break
            for name, optimizer in state.optimizers.items():
                distributed.all_reduce_gradients(optimizer)
                norm = clip_and_step(optimizer, options.max_grad_norm, f"{where}, {name}")
                seen.add(f"{name}_grad_norm", norm, 1)
            updates += 1
        for scheduler in state.schedulers.values():
            scheduler.step()
        row = seen.means() | {"first_ratio_error": first_error, "updates": updates}
        del row["ratio_error"]
        if self.models.has_values:
            explained = maths.explained_variance(rollout.value_BT, batch.return_BT, mask_BT)
            row["explained_variance"] = float(explained)
        return row

    def minibatches(self, size: int) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Epoch, number and rows of every minibatch in random order."""
        unit = self.unit
        for epoch in range(self.epochs):
            order = torch.randperm(size // unit, generator=self.state.generator)
            for number, units in enumerate(order.chunk(self.pieces)):
                yield epoch, number, (units[:, None] * unit + torch.arange(unit)).flatten()

    def weights(self, mask_BT: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """``weight_B``: what a token of each row counts in the mean over the minibatch ``rows``."""
        length_B = mask_BT.sum(-1).float()
        if self.average == "tokens":
            return torch.full_like(length_B, 1 / float(length_B[rows].sum()))
        if self.average == "responses":
            return 1 / (length_B * len(rows))
        return torch.full_like(length_B, 1 / len(rows))

    def forget_gradients(self) -> None:
        for optimizer in self.state.optimizers.values():
            optimizer.zero_grad(set_to_none=True)

    def backward(
        self,
        batch: Batch,
        rows: torch.Tensor,
        weight_B: torch.Tensor,
        tokens: int,
        size: int,
        seen: "Meter",
        where: str = "rl",
    ) -> None:
        """Adds the gradient of one micro-batch of a minibatch of ``size`` responses and ``tokens`` tokens."""
        models, rollout = self.models, batch.rollout
        part = rows_of(rollout.samples, rows)
        device, width = models.device, part.mask_BT.shape[1]
        mask_BT, weight_B1 = part.mask_BT.to(device), weight_B[rows, None].to(device)
        count, value_BT = int(part.mask_BT.sum()), None

        with devices.autocast(device, self.dtype):
            if models.value_head is not None:
                logits_BTV, value_BT = models.logits_and_values(part)
            else:
                logits_BTV = models.logits(part)
        logp_BT = logprobs_of(logits_BTV, part)
        micro = MicroBatch(
            logp_BT=logp_BT,
            old_logp_BT=part.logp_BT.to(device).masked_fill(mask_BT == 0, 0.0),
            ref_logp_BT=rollout.ref_logp_BT[rows, :width].to(device),
            advantage_BT=batch.advantage_BT[rows, :width].to(device),
            mask_BT=mask_BT,
            group_size=rollout.group_size,
            kl_coef=self.state.kl.coef,
        )
        loss, row_loss_B = self.policy_loss(micro, weight_B1, size)
        check_finite(row_loss_B, "policy loss", rollout, rows, where)
        if self.loss_kl is not None:
            kl_loss = self.kl_loss(micro, logits_BTV, part, weight_B1)
            loss = loss + self.state.kl.coef * kl_loss
            # This micro-batch's share of the minibatch's mean, as if the others were like it.
            seen.add("kl_loss", float(kl_loss.detach()) * tokens / count, count)
        self.observe(micro, logits_BTV, part.sampling.temperature, row_loss_B, count, seen)
        if value_BT is not None:
            loss = loss + self.value_loss(batch, rows, value_BT, mask_BT, tokens, seen, where)
        loss.backward()
        if models.critic is not None:
            with devices.autocast(device, self.dtype):
                value_BT = models.values(part)
            self.value_loss(batch, rows, value_BT, mask_BT, tokens, seen, where).backward()

    def policy_loss(
        self, micro: MicroBatch, weight_B1: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The micro-batch's share of the loss, and what each row (or pair) lost."""
        options = self.options
        if self.algorithm.pairs:
            loss_N = self.algorithm.loss(micro, options)
            pairs = size // self.group_size * math.comb(self.group_size, 2)
            return loss_N.sum() / pairs, loss_N.detach()
        if options.ratio_level == "response":
            micro = as_one_action(micro)
        loss_BT = self.algorithm.loss(micro, options)
        row_loss_B = maths.masked_sum(loss_BT, micro.mask_BT)
        return (row_loss_B * weight_B1[:, 0]).sum(), row_loss_B.detach()

    def kl_loss(
        self, micro: MicroBatch, logits_BTV: torch.Tensor, part: Samples, weight_B1: torch.Tensor
    ) -> torch.Tensor:
        """The KL that stands beside the policy loss, weighted as its tokens are."""
        if self.loss_kl == "exact":
            temperature = part.sampling.temperature
            reference_BTV = self.models.reference_logits(part) / temperature
            kl_BT = kl_maths.kl_exact(logits_BTV / temperature, reference_BTV)
        elif self.loss_kl == "k2":
            logp_B1, ref_B1 = (
                maths.masked_sum(x, micro.mask_BT)[:, None] for x in (micro.logp_BT, micro.ref_logp_BT)
            )
            return (kl_maths.kl_estimate(logp_B1, ref_B1, "k2") * weight_B1).sum()
        else:
            assert self.loss_kl is not None
            kind = self.loss_kl.removesuffix("_token")
            kl_BT = kl_maths.kl_estimate(micro.logp_BT, micro.ref_logp_BT, kind)
        return (maths.masked_sum(kl_BT, micro.mask_BT) * weight_B1[:, 0]).sum()

    def value_loss(
        self,
        batch: Batch,
        rows: torch.Tensor,
        value_BT: torch.Tensor,
        mask_BT: torch.Tensor,
        tokens: int,
        seen: "Meter",
        where: str,
    ) -> torch.Tensor:
        """The weighted value loss of some rows: a sum divided by the minibatch's token count."""
        width, device = value_BT.shape[1], value_BT.device
        loss_BT = maths.clipped_value_loss(
            value_BT,
            batch.rollout.value_BT[rows, :width].to(device),
            batch.return_BT[rows, :width].to(device),
            self.options.cliprange_value,
        )
        row_loss_B = maths.masked_sum(loss_BT, mask_BT)
        check_finite(row_loss_B.detach(), "value loss", batch.rollout, rows, where)
        seen.add("value_loss", maths.masked_mean(loss_BT.detach(), mask_BT).item(), int(mask_BT.sum()))
        return self.options.vf_coef * row_loss_B.sum() / tokens

    @torch.no_grad()
    def observe(
        self,
        micro: MicroBatch,
        logits_BTV: torch.Tensor,
        temperature: float,
        row_loss_B: torch.Tensor,
        count: int,
        seen: "Meter",
    ) -> None:
        """How far the policy has moved from the one that sampled, and how random it is."""
        mask_BT, change_BT = micro.mask_BT, micro.logp_BT - micro.old_logp_BT
        ratio_BT = change_BT.exp()
        seen.add("approx_kl", float(maths.masked_mean(0.5 * change_BT**2, mask_BT)), count)
        outside_BT = ((ratio_BT - 1).abs() > self.options.cliprange).float()
        seen.add("clip_fraction", float(maths.masked_mean(outside_BT, mask_BT)), count)
        entropy_BT = maths.entropy(logits_BTV, temperature)
        seen.add("entropy", float(maths.masked_mean(entropy_BT, mask_BT)), count)
        seen.add("policy_loss", float(row_loss_B.sum()) / count, count)
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
    return len(advantage_N) < 2 or float(advantage_N.std()) < ROUNDING


def as_one_action(micro: MicroBatch) -> MicroBatch:
    """Each response as a single action: log-probabilities summed, the advantage of its first state."""

    def whole(x_BT: torch.Tensor) -> torch.Tensor:
        return maths.masked_sum(x_BT, micro.mask_BT)[:, None]

    return MicroBatch(
        logp_BT=whole(micro.logp_BT),
        old_logp_BT=whole(micro.old_logp_BT),
        ref_logp_BT=whole(micro.ref_logp_BT),
        advantage_BT=micro.advantage_BT[:, :1],
        mask_BT=torch.ones_like(micro.mask_BT[:, :1]),
        group_size=micro.group_size,
        kl_coef=micro.kl_coef,
    )


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


class Meter:
    """Weighted means of named numbers, and their maxima."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {}
        self.weight: dict[str, float] = {}
        self.maximum: dict[str, float] = {}

    def add(self, name: str, value: float, weight: float) -> None:
        self.total[name] = self.total.get(name, 0.0) + value * weight
        self.weight[name] = self.weight.get(name, 0.0) + weight
        self.maximum[name] = max(self.maximum.get(name, -math.inf), value)

    def merge(self, other: "Meter") -> None:
        for name, total in other.total.items():
            self.total[name] = self.total.get(name, 0.0) + total
            self.weight[name] = self.weight.get(name, 0.0) + other.weight[name]
            self.maximum[name] = max(self.maximum.get(name, -math.inf), other.maximum[name])

    def of_all(self) -> "Meter":
        """What all processes have seen."""
        whole = Meter()
        for meter in distributed.all_gather(self):
            whole.merge(meter)
        return whole

    def means(self) -> dict[str, float]:
        return {name: self.total[name] / self.weight[name] for name in self.total}
