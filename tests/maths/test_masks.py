"""Invariances: what masked cells hold, how rows are padded, ordered and batched changes nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from preferl.maths import policy, preference

F64 = torch.float64
JUNK = np.array([1e300, -1e300, 12345.0, -7.0])
UNIFORM = settings(max_examples=60, deadline=None, derandomize=True)


def values_of(arguments):
    """Tensors for numpy arrays, everything else as it is."""
    return [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]


@st.composite
def batches(draw, min_real=1, prefix=False):
    """Arrays of values and a mask with junk in masked cells: on the right, on the left, or in between."""
    seed, B, T = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 4)), draw(st.integers(2, 7))
    rng = np.random.default_rng(seed)
    real_BT = np.zeros((B, T), dtype=bool)
    for row in real_BT:
        count = rng.integers(min(min_real, T), T + 1)
        row[:count] = True
        if not prefix:
            rng.shuffle(row)
    x, y = np.where(real_BT, rng.normal(size=(2, B, T)), rng.choice(JUNK, size=(2, B, T)))
    return x, y, rng.normal(size=B), real_BT


PER_TOKEN = {
    "gae": lambda x, y, s, mask: policy.gae(x, y, mask, 0.9, 0.8)[0],
    "gae returns": lambda x, y, s, mask: policy.gae(x, y, mask, 0.9, 0.8)[1],
    "returns_to_go": lambda x, y, s, mask: policy.returns_to_go(x, mask, 0.9),
    "token_level_reward": lambda x, y, s, mask: policy.token_level_reward(s, x, mask, 0.1),
}
PER_ROW = {
    "masked_sum": lambda x, y, s, mask: policy.masked_sum(x, mask),
    "plackett_luce_loss": lambda x, y, s, mask: preference.plackett_luce_loss(x, mask),
    "rao_kupper_ranking_loss": lambda x, y, s, mask: preference.rao_kupper_ranking_loss(
        x, mask, (y > 0).long(), 0.3
    ),
    "centre_penalty": lambda x, y, s, mask: preference.centre_penalty(x, mask),
    "balanced_pairwise_loss": lambda x, y, s, mask: preference.balanced_pairwise_loss(x, mask),
}
WHOLE_BATCH = {
    "masked_mean": lambda x, y, mask: policy.masked_mean(x, mask),
    "whiten": lambda x, y, mask: policy.whiten(x, mask),
    "whiten, mean kept": lambda x, y, mask: policy.whiten(x, mask, shift_mean=False),
    "explained_variance": lambda x, y, mask: policy.explained_variance(x, y, mask),
}


@pytest.mark.parametrize("name", PER_TOKEN)
@UNIFORM
@given(batch=batches())
def test_each_token_is_as_in_its_row_alone_without_padding(name, batch):
    x_BT, y_BT, score_B, real_BT = batch
    together = PER_TOKEN[name](*values_of([x_BT, y_BT, score_B, real_BT.astype(int)])).numpy()
    assert (together[~real_BT] == 0).all()
    for b, real in enumerate(real_BT):
        alone = [x_BT[b : b + 1, real], y_BT[b : b + 1, real], score_B[b : b + 1]]
        expected = PER_TOKEN[name](*values_of([*alone, np.ones_like(alone[0])])).numpy()
        np.testing.assert_allclose(together[b, real], expected[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", PER_ROW)
@UNIFORM
@given(batch=batches())
def test_each_row_is_as_alone_without_padding(name, batch):
    x_BT, y_BT, score_B, real_BT = batch
    together = PER_ROW[name](*values_of([x_BT, y_BT, score_B, real_BT])).numpy()
    for b, real in enumerate(real_BT):
        alone = [x_BT[b : b + 1, real], y_BT[b : b + 1, real], score_B[b : b + 1]]
        expected = PER_ROW[name](*values_of([*alone, np.ones_like(alone[0])])).numpy()
        np.testing.assert_allclose(together[b], expected[0], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", WHOLE_BATCH)
@UNIFORM
@given(batch=batches(min_real=2))
def test_a_batch_is_as_one_long_row_of_its_real_tokens(name, batch):
    x_BT, y_BT, _, real_BT = batch
    together = WHOLE_BATCH[name](*values_of([x_BT, y_BT, real_BT])).numpy()
    flat = [x_BT[real_BT][None], y_BT[real_BT][None], np.ones((1, real_BT.sum()))]
    expected = WHOLE_BATCH[name](*values_of(flat)).numpy()
    if together.ndim:
        assert (together[~real_BT] == 0).all()
        together, expected = together[real_BT], expected[0]
    np.testing.assert_allclose(together, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", [*PER_ROW, "masked_mean"])
@UNIFORM
@given(batch=batches())
def test_masked_cells_get_no_gradient(name, batch):
    x_BT, y_BT, score_B, real_BT = values_of(batch)
    x_BT.requires_grad_()
    if name in PER_ROW:
        out = PER_ROW[name](x_BT, y_BT, score_B, real_BT).sum()
    else:
        out = policy.masked_mean(x_BT, real_BT)
    out.backward()
    assert x_BT.grad.isfinite().all()
    assert not x_BT.grad[~real_BT].any()


@pytest.mark.parametrize("name", [*PER_TOKEN, *PER_ROW])
@UNIFORM
@given(batch=batches(), seed=st.integers(0, 1000))
def test_the_order_of_rows_does_not_matter(name, batch, seed):
    x_BT, y_BT, score_B, real_BT = values_of(batch)
    order_B = torch.randperm(len(x_BT), generator=torch.Generator().manual_seed(seed))
    function = (PER_TOKEN | PER_ROW)[name]
    moved = function(x_BT[order_B], y_BT[order_B], score_B[order_B], real_BT[order_B])
    assert torch.equal(moved, function(x_BT, y_BT, score_B, real_BT)[order_B])


@pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32])
def test_masks_may_be_bool_int_or_float(kind):
    x_BT = torch.tensor([[1.0, 2.0, 9.0], [3.0, 9.0, 9.0]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0]]).to(kind)
    score_B = torch.tensor([1.0, 2.0])
    assert policy.masked_sum(x_BT, mask_BT).tolist() == [3, 3]
    assert policy.masked_mean(x_BT, mask_BT).item() == 2
    assert policy.token_level_reward(score_B, x_BT, mask_BT, 1.0).tolist() == [[-1, -1, 0], [-1, 0, 0]]
    assert policy.returns_to_go(x_BT, mask_BT, 1.0).tolist() == [[3, 2, 0], [3, 0, 0]]
    assert preference.plackett_luce_loss(x_BT, mask_BT)[1].item() == 0


@UNIFORM
@given(batch=batches(), shift=st.floats(-50, 50))
def test_a_constant_on_the_score_leaves_the_whitened_advantages_of_lambda_one(batch, shift):
    """With gamma = lambda = 1 it adds the same to every token's advantage, and the mean is taken out."""
    x_BT, y_BT, score_B, real_BT = values_of(batch)

    def whitened(score_B):
        reward_BT = policy.token_level_reward(score_B, x_BT, real_BT, 0.1)
        return policy.whiten(policy.gae(reward_BT, y_BT, real_BT, 1.0, 1.0)[0], real_BT)

    if real_BT.sum() > 1:
        torch.testing.assert_close(whitened(score_B + shift), whitened(score_B), rtol=1e-9, atol=1e-9)
