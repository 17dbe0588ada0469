"""Scores of many responses without reading anything twice: rows of like length, common beginnings once.

Responses to one prompt begin alike. Packed, a row holds that beginning and then the rest of every response; a
token sees the beginning and its own response and has the position that it has there, so the scores are those
of separate rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from preferl.data.tokens import Extent, pad, parts_that_fit
from preferl.models.mean_pooling import MeanPooledRewardModel
from preferl.models.reward import is_decoder, raw_scores

Group = Sequence[Sequence[int]]
"""Token ids of the responses to one prompt, each with the prompt before it."""

CPU_CHUNK_TOKENS = 2048
"""Padded tokens that a CPU reads at once; an accelerator takes the whole batch."""
PACKABLE = ("gpt2", "gpt_neox", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3")
"""Families of decoders that take positions and a mask of every token for every token."""
MIN_SHARE_SAVED = 0.1
"""Share of the tokens that packing must save; below it the wider attention costs more."""


@dataclass(frozen=True)
class Packed:
    """G groups of at most K responses in rows of W tokens.

    ``mask_G1WW`` is True where a token (row) sees another (column). ``member_GKW`` is 1 on the tokens of a
    response, the common beginning included, and ``last_GK`` the place of its last one.
    """

    ids_GW: torch.Tensor
    position_GW: torch.Tensor
    mask_G1WW: torch.Tensor
    member_GKW: torch.Tensor
    last_GK: torch.Tensor


def shared_prefix(group: Group) -> int:
    """How many tokens all rows begin with; every row keeps one of its own."""
    most = min(map(len, group)) - 1
    first = group[0]
    return next((i for i in range(most) if any(row[i] != first[i] for row in group)), most)


def pack(groups: Sequence[Group], pad_id: int) -> Packed:
    """Groups as packed rows, padded on the right."""
    rows, segments, places = [], [], []
    for group in groups:
        prefix = shared_prefix(group)
        row, segment, place = list(group[0][:prefix]), [0] * prefix, list(range(prefix))
        for number, response in enumerate(group, 1):
            row += response[prefix:]
            segment += [number] * (len(response) - prefix)
            place += range(prefix, len(response))
        rows.append(row)
        segments.append(segment)
        places.append(place)
    ids_GW, real_GW = pad(rows, pad_id, "right")
    position_GW, _ = pad(places, 0, "right")
    segment_GW, _ = pad(segments, -1, "right")
    common_GW = segment_GW == 0
    mine_GWW = (segment_GW[:, :, None] == segment_GW[:, None, :]) | common_GW[:, None, :]
    width, most = ids_GW.shape[1], max(map(len, groups))
    causal_WW = torch.ones(width, width, dtype=torch.bool).tril()
    own_GKW = segment_GW[:, None] == torch.arange(1, most + 1)[:, None]
    last_GK = (own_GKW * torch.arange(width)).amax(-1)
    member_GKW = (own_GKW | common_GW[:, None]) & (real_GW[:, None] == 1)
    return Packed(ids_GW, position_GW, (mine_GWW & causal_WW)[:, None], member_GKW.long(), last_GK)


def packed_scores(model: PreTrainedModel, packed: Packed) -> torch.Tensor:
    """Scores ``score_GK`` (float32, mean not subtracted; meaningless where a group has fewer responses)."""
    device = model.device
    hidden_GWD = model.base_model(
        input_ids=packed.ids_GW.to(device),
        attention_mask=packed.mask_G1WW.to(device),
        position_ids=packed.position_GW.to(device),
        use_cache=False,
    ).last_hidden_state
    head = model.score
    if isinstance(model, MeanPooledRewardModel):
        member_GKW = packed.member_GKW.to(device)
        sum_GK = (head(hidden_GWD)[..., 0].float()[:, None] * member_GKW).sum(-1)
        return sum_GK / member_GKW.sum(-1)
    groups = torch.arange(len(packed.ids_GW), device=device)
    return head(hidden_GWD[groups[:, None], packed.last_GK.to(device)])[..., 0].float()


def can_pack(model: PreTrainedModel) -> bool:
    """Whether packed scores are those of separate rows: tried on two groups of random tokens.

    Only decoders of ``PACKABLE`` families with full attention are tried.
    """
    trunk = model.base_model
    if not isinstance(trunk, PreTrainedModel) or not is_decoder(model):
        return False
    config = trunk.config
    if config._attn_implementation != "sdpa" or config.model_type not in PACKABLE:
        return False
    if getattr(config, "sliding_window", None):
        return False
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(2, config.vocab_size, (2, 12), generator=generator).tolist()
    groups = [[row[:5] + row[5:8], row[:5] + row[8:], row[:5] + row[9:]] for row in tokens]
    with torch.no_grad():
        packed_N, separate_N = (flat_scores(model, 0, groups, packed) for packed in (True, False))
    return torch.allclose(packed_N, separate_N, rtol=1e-3, atol=1e-4)


def flat_scores(
    model: PreTrainedModel, pad_id: int, groups: Sequence[Group], packed: bool = False
) -> torch.Tensor:
    """Scores of all rows of all groups, one after the other (float32, mean not subtracted); gradients flow.

    With ``packed`` what the rows of a group begin with in common is read once, where that saves enough.
    """
    counts = [len(group) for group in groups]
    most = CPU_CHUNK_TOKENS if model.device.type == "cpu" else None
    rows = [row for group in groups for row in group]
    widths = [sum(map(len, group)) - shared_prefix(group) * (len(group) - 1) for group in groups]
    parts, order = [], []
    if packed and sum(widths) <= (1 - MIN_SHARE_SAVED) * sum(map(len, rows)):
        starts = [sum(counts[:g]) for g in range(len(groups))]
        for chunk in chunks_of_like_length(widths, most):
            score_GK = packed_scores(model, pack([groups[g] for g in chunk], pad_id))
            parts += [score_GK[i, : counts[g]] for i, g in enumerate(chunk)]
            order += [starts[g] + k for g in chunk for k in range(counts[g])]
    else:
        for chunk in chunks_of_like_length([len(row) for row in rows], most):
            ids_BS, mask_BS = pad([rows[i] for i in chunk], pad_id, "right")
            parts.append(raw_scores(model, ids_BS.to(model.device), mask_BS.to(model.device)))
            order += chunk
    score_N = torch.cat(parts)
    return torch.zeros_like(score_N).index_copy(0, torch.tensor(order, device=score_N.device), score_N)


def chunks_of_like_length(lengths: Sequence[int], most_tokens: int | None) -> list[list[int]]:
    """Row numbers from short to long, in chunks of at most so many padded tokens (or one row).

    Example:
        >>> chunks_of_like_length([9, 2, 3, 8], 18)
        [[1, 2], [3, 0]]
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    extents = [Extent((lengths[i],)) for i in order]
    return [order[part] for part in parts_that_fit(extents, most_tokens=most_tokens)]
