"""The default engine: a plain decoding loop on the model's cache.

No ``generate()``: the loop captures the log-probability of every token as it is drawn, draws by inverse CDF
(`torch.multinomial` is several times slower), and drops finished rows from the batch. The uniforms are
drawn beforehand, one for each (sample, step), so a sample does not depend on which rows share its batch, nor
on the number of processes that share the rows out.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from transformers import PreTrainedModel

from preferl.data.tokens import Extent, pad, parts_that_fit, positions
from preferl.maths.policy import response_logprobs
from preferl.models.passes import call, probe_room, probe_rows, text_config
from preferl.models.shapes import cache_tokens
from preferl.runs import distributed
from preferl.runs.devices import autocast
from preferl.runs.progress import say
from preferl.sampling.readers import MakeReader, dynamic, static, whole
from preferl.sampling.samples import Samples, Sampling

# Rows are compacted when this share of them has finished: copying the cache is not free.
COMPACT_AT = 0.25
# Nats by which a token's log-probability from a cache may be off that of a plain pass, in float32: what the
# learner allows before the first update (``MAX_RATIO_ERROR``). Rounding makes 1e-6 in small models, 2e-5 in
# one of 135M parameters; the steps of some families (Zamba 2, Nemotron-H) are off by more with each token.
MAX_ERROR = 1e-4
PROBE_LENGTH = 16  # tokens sampled to see whether a cache is as exact
# Sees the tokens of each step, of the rows that were running; whether it has seen enough.
Watch = Callable[[list[int]], bool]
# What a family's code may raise when it is given a cache that it does not know.
FOREIGN = (RuntimeError, TypeError, ValueError, AttributeError, LookupError, AssertionError)


class CachedEngine:
    """Samples from a transformers model in this process.

    ``version`` is stamped on what is sampled; the learner counts it up with each update. ``watch`` sees the
    tokens as they are drawn, and may end the sampling; what is drawn does not depend on it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pad_id: int,
        batch_size: int = 256,
        dtype: torch.dtype = torch.float32,
        watch: Watch | None = None,
    ):
        self.model, self.pad_id, self.batch_size, self.dtype = model, pad_id, batch_size, dtype
        self.watch = watch
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
        extents = [Extent((len(prompts[i]), T)) for i in order]
        for place in parts_that_fit(extents, self.batch_size, cache_tokens(self.model)):
            rows = torch.tensor(order[place])
            width = int(prompt_mask_BP[rows].sum(-1).max())
            tokens, logp, mask, finished = sample_batch(
                self._make_reader,
                self.model,
                ids_BP[rows, -width:],
                prompt_mask_BP[rows, -width:],
                uniform_BT[rows],
                sampling,
                self.pad_id,
                self.dtype,
                self.watch,
            )
            tokens_BT[rows] = tokens.cpu()
            logp_BT[rows] = logp.cpu()
            mask_BT[rows] = mask.cpu()
            finished_B[rows] = finished.cpu().long()
        # Another process's rows are 0 here and ours are 0 there, so a sum puts them together.
        for part in (tokens_BT, logp_BT, mask_BT, finished_B):
            distributed.all_reduce(part)
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

    @property
    def _make_reader(self) -> MakeReader:
        """How the model is read, found out once for each model and dtype."""
        known = _readers.setdefault(self.model, {})
        if self.dtype not in known:
            known[self.dtype], why_not = find_reader(self.model, self.pad_id, self.dtype)
            if known[self.dtype] is whole:
                say(
                    f"'{self.model.config.name_or_path}' ({self.model.config.model_type}) cannot be sampled "
                    f"from a cache ({why_not}): every token reads its whole sequence again, which is slower "
                    f"and as exact"
                )
        return known[self.dtype]


_readers: "WeakKeyDictionary[Any, dict[torch.dtype, MakeReader]]" = WeakKeyDictionary()


def find_reader(model: Any, pad_id: int, dtype: torch.dtype) -> tuple[MakeReader, str]:
    """The fastest way to read a model whose samples have the log-probabilities of plain, unpadded passes, and
    why a faster one has not. What a family can do is tried; nobody has to know its name.

    A few rows of unlike length are sampled, of which some end and are dropped.
    """
    T = probe_room(model, PROBE_LENGTH)
    prompts = probe_rows(model, (9, 5, 7, 9), T)
    ids_BP, prompt_mask_BP = pad(prompts, pad_id, "left")
    size = text_config(model).vocab_size
    # One in sixteen of all tokens ends a row here.
    sampling = Sampling(temperature=1.0, response_length=T, suppressed=(), stop=tuple(range(0, size, 16)))
    uniform_BT = torch.rand(
        (len(prompts), T), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    why_not = ""
    for make_reader in (static, dynamic):
        try:
            drawn = sample_batch(make_reader, model, ids_BP, prompt_mask_BP, uniform_BT, sampling, pad_id)
            worst = float(np.max(list(_errors(model, prompts, *drawn[:3]))))
            if dtype != torch.float32:  # exact enough it cannot be, but it must run
                sample_batch(make_reader, model, ids_BP, prompt_mask_BP, uniform_BT, sampling, pad_id, dtype)
        except torch.OutOfMemoryError:
            raise
        except FOREIGN as error:
            why_not = f"{type(error).__name__} with the {make_reader.__name__} one"
            continue
        if worst <= MAX_ERROR or not math.isfinite(worst):  # no numbers: whoever samples says so
            return make_reader, ""
        why_not = f"log-probabilities would be off by {worst:.1g}"
    return whole, why_not


@torch.no_grad()
def _errors(
    model: Any,
    prompts: Sequence[Sequence[int]],
    tokens_BT: torch.Tensor,
    logp_BT: torch.Tensor,
    mask_BT: torch.Tensor,
) -> Iterator[float]:
    """How far the log-probabilities of each row are off those of a plain pass over it alone."""
    for prompt, tokens_T, logp_T, mask_T in zip(prompts, tokens_BT, logp_BT, mask_BT, strict=True):
        length = int(mask_T.sum())
        ids_1S = torch.cat([torch.tensor([prompt], device=tokens_T.device), tokens_T[None, :length]], dim=1)
        mask_1S = torch.ones_like(ids_1S)
        with torch.autocast(model.device.type, enabled=False):
            logits_1SV = call(model, ids_1S, mask_1S, positions(mask_1S)).logits.float()
        exact_T = response_logprobs(logits_1SV[:, -length - 1 : -1], ids_1S[:, -length:], 1.0)[0]
        yield float((exact_T - logp_T[:length]).abs().max())


@torch.no_grad()
def sample_batch(
    make_reader: MakeReader,
    model: Any,
    ids_BP: torch.Tensor,
    prompt_mask_BP: torch.Tensor,
    uniform_BT: torch.Tensor,
    sampling: Sampling,
    pad_id: int,
    dtype: torch.dtype = torch.float32,
    watch: Watch | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """``tokens_BT``, ``logp_BT``, ``mask_BT`` and ``finished_B`` of one batch, on the model's device.

    What is returned keeps all B rows. What the model computes on shrinks to the A rows that are alive:
    ``alive`` says which of the B each of them is.
    """
    B, P = ids_BP.shape
    T = sampling.response_length
    device = model.device
    attention_BS = torch.ones((B, P + T), dtype=torch.long, device=device)
    attention_BS[:, :P] = prompt_mask_BP.to(device)
    reader = make_reader(model, attention_BS, dtype)
    uniform_BT = uniform_BT.to(device)
    tokens_BT = torch.full((B, T), pad_id, dtype=torch.long, device=device)
    logp_BT = torch.zeros((B, T), device=device)
    mask_BT = torch.zeros((B, T), dtype=torch.long, device=device)
    finished_B = torch.zeros(B, dtype=torch.bool, device=device)
    stop = torch.tensor(sampling.stop, device=device)
    suppressed = list(sampling.suppressed)
    alive = torch.arange(B, device=device)  # the rows of the batch still being decoded
    # The first step reads the whole prompts, each later one the tokens just drawn.
    inputs = ids_BP.to(device)
    for t in range(T):
        # 1. Read it; what comes out is the distribution of token t of every row alive.
        with autocast(device, dtype):
            logits_AV = reader.read(inputs)
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
        if watch is not None and watch(token_A[running_A].tolist()):
            break
        # 4. Drop finished rows once there are enough of them; until then they are decoded on in vain,
        #    which is cheaper than copying the cache for each.
        running_A = ~finished_B[alive]
        left = int(running_A.sum())
        if left == 0:
            break
        if left <= (1 - COMPACT_AT) * len(alive):
            alive, token_A = alive[running_A], token_A[running_A]
            reader.keep(running_A.nonzero()[:, 0])
        # 5. What was drawn is what is read next, in the column after everything read so far.
        inputs = token_A[:, None]
    return tokens_BT, logp_BT, mask_BT, finished_B


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
