"""The default engine: a plain decoding loop on the model's static key/value cache.

No ``generate()``: the loop captures the log-probability of every token as it is drawn, draws by inverse CDF
(`torch.multinomial` is several times slower), and drops finished rows from the batch. The uniforms are
drawn beforehand, one for each (sample, step), so a sample does not depend on which rows share its batch, nor
on the number of processes that share the rows out.
"""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, StaticCache

from preferl.data.tokens import pad, positions
from preferl.runs import distributed
from preferl.runs.devices import autocast
from preferl.sampling.samples import Samples, Sampling

# Rows are compacted when this share of them has finished: copying the cache is not free.
COMPACT_AT = 0.25


class CachedEngine:
    """Samples from a transformers model in this process.

    ``version`` is stamped on what is sampled; the learner counts it up with each update.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pad_id: int,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float32,
    ):
        self.model, self.pad_id, self.batch_size, self.dtype = model, pad_id, batch_size, dtype
        self.version = 0

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, generator: torch.Generator
    ) -> Samples:
        """One response to each prompt (token ids), in the order given."""
        ids_BP, prompt_mask_BP = pad(prompts, self.pad_id, "left")
        B, T = len(prompts), sampling.response_length
        # All of chance is here, before rows are sorted, shared out or dropped: none of that can change it.
        uniform_BT = torch.rand((B, T), generator=generator, dtype=torch.float64)
        tokens_BT = torch.zeros((B, T), dtype=torch.long)
        logp_BT = torch.zeros((B, T))
        mask_BT = torch.zeros((B, T), dtype=torch.long)
        finished_B = torch.zeros(B, dtype=torch.long)
        # Prompts of like length share a batch, whose left padding is then cut to its own longest prompt.
        order = distributed.shard(sorted(range(B), key=lambda i: len(prompts[i])))
        for start in range(0, len(order), self.batch_size):
            rows = torch.tensor(order[start : start + self.batch_size])
            width = int(prompt_mask_BP[rows].sum(-1).max())
            tokens, logp, mask, finished = self._decode(
                ids_BP[rows, -width:], prompt_mask_BP[rows, -width:], uniform_BT[rows], sampling
            )
            tokens_BT[rows] = tokens.cpu()
            logp_BT[rows] = logp.cpu()
            mask_BT[rows] = mask.cpu()
            finished_B[rows] = finished.cpu().long()
        # Another process's rows are 0 here and ours are 0 there, so a sum puts them together.
        for whole in (tokens_BT, logp_BT, mask_BT, finished_B):
            distributed.all_reduce(whole)
        longest = int(mask_BT.sum(-1).max())
        return Samples(
            tokens_BS=torch.cat([ids_BP, tokens_BT[:, :longest]], dim=1),
            prompt_mask_BP=prompt_mask_BP,
            mask_BT=mask_BT[:, :longest],
            logp_BT=logp_BT[:, :longest],
            finished_B=finished_B.bool(),
            sampling=sampling,
            version=self.version,
        )

    def _decode(
        self,
        ids_BP: torch.Tensor,
        prompt_mask_BP: torch.Tensor,
        uniform_BT: torch.Tensor,
        sampling: Sampling,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """``tokens_BT``, ``logp_BT``, ``mask_BT`` and ``finished_B`` of one batch, on the model's device.

        What is returned keeps all B rows. What the model computes on shrinks to the A rows that are alive:
        ``alive`` says which of the B each of them is.
        """
        device = self.model.device
        B, P = ids_BP.shape
        T = sampling.response_length
        uniform_BT = uniform_BT.to(device)
        tokens_BT = torch.full((B, T), self.pad_id, dtype=torch.long, device=device)
        logp_BT = torch.zeros((B, T), device=device)
        mask_BT = torch.zeros((B, T), dtype=torch.long, device=device)
        finished_B = torch.zeros(B, dtype=torch.bool, device=device)
        stop = torch.tensor(sampling.stop, device=device)
        suppressed = list(sampling.suppressed)

        # Masks and positions of all columns that there can be, so that a step only has to cut its own out.
        attention = torch.ones((B, P + T), dtype=torch.long, device=device)
        attention[:, :P] = prompt_mask_BP.to(device)
        position = positions(attention)
        alive = torch.arange(B, device=device)  # the rows of the batch still being decoded
        cache = TypedCache(self.dtype, config=self.model.config, max_cache_len=P + T)
        # The first step reads the whole prompts into the cache, each later one the tokens just drawn.
        inputs, place = ids_BP.to(device), slice(0, P)
        for t in range(T):
            # 1. Read it; what comes out is the distribution of token t of every row alive.
            logits_AV = self._read(inputs, place, attention, position, cache)
            # 2. Draw, each row by its own uniform of this step.
            token_A, logp_A = draw(logits_AV, uniform_BT[alive, t], sampling.temperature, suppressed)
            # 3. Keep it for the rows that were not finished before this step. A row that finishes with it
            #    keeps it too: EOS is a token that the policy chose, and counts.
            running_A = ~finished_B[alive]
            rows = alive[running_A]
            tokens_BT[rows, t] = token_A[running_A]
            logp_BT[rows, t] = logp_A[running_A]
            mask_BT[rows, t] = 1
            finished_B[rows] = torch.isin(token_A[running_A], stop)
            # 4. Drop finished rows once there are enough of them; until then they are decoded on in vain,
            #    which is cheaper than copying the cache for each.
            running_A = ~finished_B[alive]
            left = int(running_A.sum())
            if left == 0:
                break
            if left <= (1 - COMPACT_AT) * len(alive):
                alive, token_A = alive[running_A], token_A[running_A]
                attention, position = attention[running_A], position[running_A]
                keep_rows(cache, running_A)
            # 5. What was drawn is what is read next, in the column after everything read so far.
            inputs, place = token_A[:, None], slice(P + t, P + t + 1)
        return tokens_BT, logp_BT, mask_BT, finished_B

    def _read(
        self,
        inputs: torch.Tensor,
        place: slice,
        attention: torch.Tensor,
        position: torch.Tensor,
        cache: StaticCache,
    ) -> torch.Tensor:
        """``logits_AV`` after ``inputs``, the columns ``place`` of the sequences, which go into the cache."""
        with autocast(self.model.device, self.dtype):
            return self.model(
                input_ids=inputs,
                attention_mask=attention[:, : place.stop],
                position_ids=position[:, place],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]


class TypedCache(StaticCache):
    """A static cache of one dtype. Under autocast keys come in float32 (rotated) and values in bfloat16, and
    a static cache allocates both as the first keys are."""

    def __init__(self, dtype: torch.dtype, **options: Any):
        super().__init__(**options)
        self.kept_dtype = dtype

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **options: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.kept_dtype
        return super().update(key_states.to(dtype), value_states.to(dtype), *args, **options)


def keep_rows(cache: StaticCache, keep_A: torch.Tensor) -> None:
    """Drops rows from a static cache (the class itself cannot)."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[keep_A], layer.values[keep_A]
        layer.batch_size = layer.keys.shape[0]


def draw(
    logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, suppressed: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens by inverse CDF, and their log-probabilities at this temperature.

    Args:
        logits_BV: one row of logits per sequence.
        uniform_B: a draw from [0, 1) per sequence, float64.
        temperature: divides the logits.
        suppressed: ids that get probability 0.

    Returns:
        ``token_B`` (int64) and ``logp_B`` (float32).
    """
    scaled_BV = logits_BV.float() / temperature
    scaled_BV[:, suppressed] = float("-inf")
    logp_BV = scaled_BV.log_softmax(-1)
    # In float64: over a large vocabulary a float32 sum is too coarse for ids of small probability.
    cdf_BV = logp_BV.double().exp().cumsum(-1)
    # Scaled by the last entry, which rounding leaves a little off 1; right=True never picks an id of
    # probability 0 at the start of a flat stretch.
    target_B1 = uniform_B[:, None] * cdf_BV[:, -1:]
    token_B = torch.searchsorted(cdf_BV, target_B1, right=True)[:, 0]
    token_B = token_B.clamp_(max=logits_BV.shape[-1] - 1)
    return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]
