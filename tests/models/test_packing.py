"""Packed scores are those of separate rows: for every family, pooling and shape of comparison."""

import random

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from preferl.models import packing
from preferl.models.mean_pooling import mean_pooled
from preferl.models.packing import can_pack, chunks_of_like_length, flat_scores, pack, shared_prefix
from preferl.models.reward import load_reward_model, raw_scores

CPU = torch.device("cpu")
SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "initializer_range": 0.3,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "sliding_window": None,
    "num_labels": 1,
}


def make_model(family: str, pooling: str, **changes):
    torch.manual_seed(0)
    options = SIZES | changes
    if family == "gpt2":
        options = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        options |= {"initializer_range": 0.3, "pad_token_id": 0, "num_labels": 1}
    config = AutoConfig.for_model(family, **options)
    if pooling == "mean":
        return mean_pooled(AutoModel.from_config(config)).eval()
    return AutoModelForSequenceClassification.from_config(config).eval()


def groups_of(seed: int, sizes=(2, 3, 2, 5, 1, 2)) -> list[list[list[int]]]:
    """Comparisons of several sizes: beginnings of any length, also none, and a response inside another."""
    rng = random.Random(seed)

    def ids(count):
        return [rng.randrange(2, 90) for _ in range(count)]

    groups = []
    for size in sizes:
        prompt = ids(rng.choice([0, 3, 9, 17]))
        groups.append([prompt + ids(rng.randint(1, 9)) for _ in range(size)])
    same = ids(12)
    return [*groups, [same, same + ids(3)], [same, list(same)]]


def one_by_one(model, groups):
    return torch.cat(
        [
            raw_scores(model, torch.tensor([row]), torch.ones(1, len(row), dtype=torch.long))
            for g in groups
            for row in g
        ]
    )


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("family", packing.PACKABLE)
def test_scores_and_gradients_are_those_of_separate_rows(family, pooling, monkeypatch):
    model = make_model(family, pooling)
    assert can_pack(model)
    monkeypatch.setattr(packing, "CPU_CHUNK_TOKENS", 60)
    monkeypatch.setattr(packing, "MIN_SHARE_SAVED", -1.0)
    groups = groups_of(1)
    weight = torch.randn(sum(map(len, groups)), generator=torch.Generator().manual_seed(2))
    grads = []
    expected = one_by_one(model, groups)
    assert expected.std() > 0.05
    for packed in (False, True):
        score = flat_scores(model, 0, groups, packed)
        torch.testing.assert_close(score, expected, rtol=1e-4, atol=2e-5)
        model.zero_grad()
        (score * weight).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for separate, together in zip(*grads, strict=True):
        torch.testing.assert_close(together, separate, rtol=1e-3, atol=1e-4)


def test_a_packed_row_holds_the_common_beginning_once():
    packed = pack([[[5, 6, 7, 8], [5, 6, 9]], [[4], [4, 3]]], pad_id=0)
    assert packed.ids_GW.tolist() == [[5, 6, 7, 8, 9], [4, 4, 3, 0, 0]]
    assert packed.position_GW.tolist() == [[0, 1, 2, 3, 2], [0, 0, 1, 0, 0]]
    assert packed.last_GK.tolist() == [[3, 4], [0, 2]]
    assert packed.member_GKW[0].tolist() == [[1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    sees = packed.mask_G1WW[0, 0].long().tolist()
    assert sees == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]]
    assert packed.mask_G1WW[1, 0].long()[:3, :3].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert shared_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert shared_prefix([[1], [1, 2]]) == 0


def test_fewer_tokens_are_read(monkeypatch):
    model = make_model("llama", "last")
    read = []
    model.base_model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    prompt = list(range(2, 42))
    groups = [[[*prompt, 50 + i], [*prompt, 70 + i]] for i in range(4)]
    flat_scores(model, 0, groups, packed=True)
    assert sum(read) == 4 * 42
    read.clear()
    flat_scores(model, 0, groups)
    assert sum(read) == 8 * 41
    read.clear()
    short = [[[2, 3, 4, 5, 6, 7, 8], [9, 3, 4, 5, 6, 7, 8]]]
    flat_scores(model, 0, short, packed=True)
    assert sum(read) == 14, "nothing in common: nothing to win"


def test_rows_of_like_length_share_a_pass():
    assert chunks_of_like_length([9, 2, 3, 8], 18) == [[1, 2], [3, 0]]
    assert chunks_of_like_length([9, 2, 30], 8) == [[1], [0], [2]]
    assert chunks_of_like_length([9, 2, 30], None) == [[1, 0, 2]]


def test_what_cannot_be_packed_is_not(encoder_directory):
    encoder, _ = load_reward_model(str(encoder_directory), CPU)
    assert not can_pack(encoder)
    assert not can_pack(mean_pooled(encoder.base_model))
    assert not can_pack(make_model("mistral", "last", sliding_window=16))
    eager = make_model("llama", "last", attn_implementation="eager")
    assert not can_pack(eager)


def test_a_model_whose_packed_scores_differ_is_read_row_by_row(monkeypatch):
    model = make_model("llama", "last")
    right = packing.packed_scores
    monkeypatch.setattr(packing, "packed_scores", lambda *args: right(*args) + 0.01)
    assert not can_pack(model)


def test_a_model_without_a_trunk_of_transformers_is_read_row_by_row():
    model = make_model("llama", "last")

    class Wrapped(torch.nn.Module):
        score = torch.nn.Linear(32, 1)

        def base_model(self, **inputs):
            return model.base_model(**inputs)

    assert not can_pack(Wrapped())
