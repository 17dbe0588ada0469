"""What an engine returns: token ids, masks and the log-probabilities with which it drew them."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from preferl.data.tokens import Extent, pad, written_text

TENSORS = ("tokens_BS", "prompt_mask_BP", "mask_BT", "logp_BT", "finished_B")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: softmax(logits / temperature), with ``suppressed`` ids (pad, and those that stand
    for no text) impossible.

    ``stop`` ids (EOS) end a response, and so do ``stop_texts`` (``cut_at_stop``). No top-k or top-p:
    a truncated distribution makes KL negative.
    """

    temperature: float
    response_length: int
    suppressed: tuple[int, ...]
    stop: tuple[int, ...]
    stop_texts: tuple[str, ...] = ()

    @property
    def fill_id(self) -> int:
        """What stands where there is no token; masks say where that is."""
        return (*self.suppressed, *self.stop)[0]


@dataclass(frozen=True)
class Samples:
    """Responses from an engine. B sequences, P prompt columns, T response columns, S = P + T.

    Prompts are left-padded, so column t of every ``_BT`` tensor is response token t. ``mask_BT`` counts
    EOS once and nothing after it.

    Example (P = 2, T = 3; row 0 stopped by EOS = 1 at once, row 1 was cut off)::

        tokens_BS   = [[0, 7, 1, 0, 0], [5, 6, 8, 9, 4]]     0 is pad
        prompt_mask_BP = [[0, 1], [1, 1]]
        mask_BT     = [[1, 0, 0], [1, 1, 1]]
        logp_BT     = [[-0.7, 0, 0], [-1.2, -0.1, -2.0]]
        finished_B  = [True, False]
        version     = 0                                       the learner's update count when sampled
    """

    tokens_BS: torch.Tensor
    prompt_mask_BP: torch.Tensor
    mask_BT: torch.Tensor
    logp_BT: torch.Tensor
    finished_B: torch.Tensor
    sampling: Sampling
    version: int

    @property
    def prompt_width(self) -> int:
        return self.prompt_mask_BP.shape[1]

    @property
    def attention_BS(self) -> torch.Tensor:
        return torch.cat([self.prompt_mask_BP, self.mask_BT], dim=1)

    @property
    def response_BT(self) -> torch.Tensor:
        return self.tokens_BS[:, self.prompt_width :]

    def extents(self, rows: torch.Tensor, unit: int = 1) -> list[Extent]:
        """What ``rows`` are in a pass; of every ``unit`` of them, which stay together, one."""
        lengths_B2 = torch.stack([self.prompt_mask_BP.sum(-1), self.mask_BT.sum(-1)], dim=1)[rows]
        longest_N2 = lengths_B2.view(-1, unit, 2).amax(1)
        return [Extent((prompt, response), unit) for prompt, response in longest_N2.tolist()]

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by their names, for a file."""
        return {name: getattr(self, name) for name in TENSORS}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor], sampling: Sampling) -> "Samples":
        """What ``tensors`` gave, with the parameters of their sampling."""
        return cls(**{name: tensors[name] for name in TENSORS}, sampling=sampling, version=0)


def written_samples(
    prompts: Sequence[list[int]], responses: Sequence[list[int]], pad_id: int, sampling: Sampling
) -> Samples:
    """Token ids of prompts and of responses that a data set holds, as an engine would have returned them."""
    prompt_BP, prompt_mask_BP = pad(prompts, pad_id, "left")
    response_BT, mask_BT = pad(responses, pad_id, "right")
    return Samples(
        tokens_BS=torch.cat([prompt_BP, response_BT], dim=1),
        prompt_mask_BP=prompt_mask_BP,
        mask_BT=mask_BT,
        # Whatever wrote them did not say how likely they were: nothing may be computed from this.
        logp_BT=torch.full(mask_BT.shape, math.nan),
        finished_B=torch.tensor([response[-1] in sampling.stop for response in responses]),
        sampling=sampling,
        version=0,
    )


def rows_of(samples: Samples, rows: torch.Tensor) -> Samples:
    """Some rows of ``samples``, with the padding that only the others needed cut away."""
    prompt_mask, mask = samples.prompt_mask_BP[rows], samples.mask_BT[rows]
    P, prompt = samples.prompt_width, int(prompt_mask.sum(-1).max())
    response = int(mask.sum(-1).max())
    return Samples(
        tokens_BS=samples.tokens_BS[rows, P - prompt : P + response],
        prompt_mask_BP=prompt_mask[:, P - prompt :],
        mask_BT=mask[:, :response],
        logp_BT=samples.logp_BT[rows, :response],
        finished_B=samples.finished_B[rows],
        sampling=samples.sampling,
        version=samples.version,
    )


def joined(parts: Sequence[Samples]) -> Samples:
    """The rows of several samples of one sampling, one after the other, padded to the widest of them."""
    first = parts[0]
    P = max(part.prompt_width for part in parts)
    T = max(part.mask_BT.shape[1] for part in parts)
    pad_id = first.sampling.fill_id
    columns: dict[str, list[torch.Tensor]] = {name: [] for name in TENSORS}
    for part in parts:
        before, after = P - part.prompt_width, T - part.mask_BT.shape[1]
        columns["tokens_BS"].append(F.pad(part.tokens_BS, (before, after), value=pad_id))
        columns["prompt_mask_BP"].append(F.pad(part.prompt_mask_BP, (before, 0)))
        columns["mask_BT"].append(F.pad(part.mask_BT, (0, after)))
        columns["logp_BT"].append(F.pad(part.logp_BT, (0, after)))
        columns["finished_B"].append(part.finished_B)
    whole = {name: torch.cat(tensors) for name, tensors in columns.items()}
    return Samples(**whole, sampling=first.sampling, version=first.version)


def cut_at_stop(samples: Samples, tokenizer: Any) -> Samples:
    """Ends every response after the token with which one of ``sampling.stop_texts`` is complete.

    The text stays in, as a full stop would; what follows is as if it had not been sampled, and the response
    counts as finished. The probability of what is left is unchanged: stopping looks only at the past.
    """
    texts = samples.sampling.stop_texts
    if not texts:
        return samples

    def stops(tokens: list[int]) -> bool:
        written = tokenizer.decode(tokens)
        return any(text in written for text in texts)

    mask_BT, finished_B = samples.mask_BT.clone(), samples.finished_B.clone()
    lengths = samples.mask_BT.sum(-1).tolist()
    for row, tokens in enumerate(samples.response_BT.tolist()):
        if not stops(tokens[: lengths[row]]):
            continue
        # The shortest prefix with a stop text in it, by halving: as the prefix grows, whether there is one
        # only ever turns true. Decoding token by token would miss texts that several tokens make up.
        low, high = 1, lengths[row]
        while low < high:
            middle = (low + high) // 2
            if stops(tokens[:middle]):
                high = middle
            else:
                low = middle + 1
        mask_BT[row, low:] = 0
        finished_B[row] = True
    # What follows is overwritten as if it had never been drawn, and columns that nobody needs any more go.
    width = int(mask_BT.sum(-1).max())
    tokens_BS = samples.tokens_BS.clone()
    after_BT = mask_BT == 0
    tokens_BS[:, samples.prompt_width :][after_BT] = samples.sampling.fill_id
    return dataclasses.replace(
        samples,
        tokens_BS=tokens_BS[:, : samples.prompt_width + width],
        mask_BT=mask_BT[:, :width],
        logp_BT=samples.logp_BT.masked_fill(after_BT, 0.0)[:, :width],
        finished_B=finished_B,
    )


def decode(tokenizer: Any, samples: Samples) -> list[str]:
    """Responses as text, what ended them and padding left out; other special tokens stay visible."""
    ends = set(samples.sampling.stop) | set(samples.sampling.suppressed)
    rows = zip(
        samples.response_BT.tolist(),
        samples.mask_BT.tolist(),
        samples.tokens_BS[:, samples.prompt_width - 1].tolist(),
        samples.finished_B.tolist(),
        strict=True,
    )
    texts = []
    for tokens, mask, before, finished in rows:
        written = [token for token, real in zip(tokens, mask, strict=True) if real and token not in ends]
        texts.append(written_text(tokenizer, written, before, finished))
    return texts
