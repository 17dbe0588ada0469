"""Gradients: autograd of the package against central differences of the slow reference."""

import numpy as np
import pytest
import torch

from preferl.maths import kl, policy, preference, reference

F64 = torch.float64
RNG = np.random.default_rng(0)
A_B, B_B, C_B, D_B, E_B, F_B = RNG.normal(size=(6, 5))
SCORE_BK = RNG.normal(size=(3, 4))
MASK_BK = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]])
RANK_BK = np.array([[0, 0, 1, 2], [0, 1, 1, 9], [0, 1, 9, 9]])
MARGIN_BKK = RNG.random(size=(3, 4, 4))
OUTCOME_B = np.array([1, 0, -1, 0, 1])
GOOD_B = np.array([1, 0, 0, 1, 1])
X_BT, Y_BT, Z_BT = RNG.normal(size=(3, 3, 4))
# Some ratios inside the clip range, some outside, none on its edge.
NEAR_BT = X_BT + 0.3 * Y_BT
MASK_BT = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
LOGITS_BTV, REF_BTV = RNG.normal(size=(2, 2, 3, 4))
TOKENS_BT = RNG.integers(0, 4, (2, 3))

# Module, function, positional arguments, keywords, and which arguments are differentiated.
CASES = [
    (preference, "bradley_terry_loss", [A_B, B_B, C_B], {"label_smoothing": 0.1}, [0, 1, 2]),
    (preference, "plackett_luce_loss", [SCORE_BK, MASK_BK], {}, [0]),
    (preference, "balanced_pairwise_loss", [SCORE_BK, MASK_BK], {}, [0]),
    (preference, "balanced_pairwise_loss", [SCORE_BK, MASK_BK, RANK_BK], {}, [0]),
    (
        preference,
        "balanced_pairwise_loss",
        [SCORE_BK, MASK_BK, RANK_BK, MARGIN_BKK],
        {"label_smoothing": 0.1},
        [0, 3],
    ),
    (preference, "rao_kupper_ranking_loss", [SCORE_BK, MASK_BK, RANK_BK], {"tie_margin": 0.4}, [0]),
    (preference, "centre_penalty", [SCORE_BK, MASK_BK], {}, [0]),
    (preference, "rao_kupper_loss", [A_B, B_B, OUTCOME_B], {"tie_margin": 0.4}, [0, 1]),
    (preference, "dpo_loss", [A_B, B_B, C_B, D_B], {"beta": 0.3}, [0, 1, 2, 3]),
    (preference, "dpo_loss", [A_B, B_B, C_B, D_B], {"beta": 0.3, "label_smoothing": 0.2}, [0, 1]),
    (preference, "ipo_loss", [A_B, B_B, C_B, D_B], {"beta": 0.3}, [0, 1, 2, 3]),
    (preference, "ipo_loss", [A_B, B_B, C_B, D_B], {"beta": 0.3, "label_smoothing": 0.2}, [0, 1]),
    (preference, "kto_loss", [A_B, B_B, GOOD_B], {"reference_point": 0.4, "beta": 0.7}, [0, 1]),
    (
        preference,
        "kto_loss",
        [A_B, B_B, GOOD_B],
        {"reference_point": 0.0, "beta": 2.0, "desirable_weight": 1.5, "undesirable_weight": 0.5},
        [0, 1],
    ),
    (preference, "rebel_loss", [A_B, B_B, C_B, D_B, E_B, F_B], {"eta": 0.7}, [0, 1, 2, 3, 4, 5]),
    (policy, "clipped_policy_loss", [NEAR_BT, X_BT, Z_BT], {"cliprange": 0.2}, [0]),
    (policy, "clipped_policy_loss", [NEAR_BT, X_BT, Z_BT], {"cliprange": 0.2, "dual_clip": 1.3}, [0]),
    (policy, "clipped_value_loss", [NEAR_BT, X_BT, Z_BT], {"cliprange": 0.2}, [0]),
    (policy, "response_logprobs", [LOGITS_BTV, TOKENS_BT], {"temperature": 0.7}, [0]),
    (policy, "entropy", [LOGITS_BTV], {"temperature": 0.7}, [0]),
    (policy, "masked_mean", [X_BT, MASK_BT], {}, [0]),
    (policy, "masked_sum", [X_BT, MASK_BT], {}, [0]),
    (kl, "kl_exact", [LOGITS_BTV, REF_BTV], {}, [0, 1]),
    (kl, "kl_estimate", [X_BT, Y_BT], {"kind": "k1"}, [0, 1]),
    (kl, "kl_estimate", [X_BT, Y_BT], {"kind": "k2"}, [0, 1]),
    (kl, "kl_estimate", [X_BT, Y_BT], {"kind": "k3"}, [0, 1]),
]


def tensor(array):
    return torch.tensor(array, dtype=F64 if array.dtype.kind == "f" else torch.long)


@pytest.mark.parametrize(
    ("module", "name", "arguments", "keywords", "free"),
    CASES,
    ids=[f"{c[1]}-{i}" for i, c in enumerate(CASES)],
)
def test_value_and_gradient(module, name, arguments, keywords, free):
    ours, slow = getattr(module, name), getattr(reference, name)
    inputs = [tensor(a).requires_grad_(i in free) for i, a in enumerate(arguments)]
    out = ours(*inputs, **keywords)
    np.testing.assert_allclose(out.detach().numpy(), slow(*arguments, **keywords), rtol=1e-12, atol=1e-13)

    # A weighted sum, so that a gradient in the wrong row shows.
    weight = np.linspace(1.0, 2.0, out.numel()).reshape(out.shape)
    (out * torch.tensor(weight)).sum().backward()
    for i in free:

        def total(x, i=i):
            return float((slow(*arguments[:i], x, *arguments[i + 1 :], **keywords) * weight).sum())

        numeric = reference.central_difference(total, arguments[i])
        scale = np.abs(numeric).max()
        assert scale > 0
        np.testing.assert_allclose(inputs[i].grad.numpy(), numeric, rtol=1e-6, atol=1e-8 * scale)


def test_clipping_cuts_the_gradient_where_it_should():
    """Ratio beyond the clip range, and the advantage asks for more: no gradient; the other way: all of it."""
    log_ratio_BT = torch.tensor([[1.5, 0.5, 1.5, 0.5, 1.0, 1.0]], dtype=F64).log().requires_grad_()
    advantage_BT = torch.tensor([[1.0, 1, -1, -1, 1, -1]], dtype=F64)
    policy.clipped_policy_loss(log_ratio_BT, torch.zeros(1, 6, dtype=F64), advantage_BT, 0.2).sum().backward()
    np.testing.assert_allclose(log_ratio_BT.grad, [[0, -0.5, 1.5, 0, -1, 1]], atol=1e-15)


def test_value_clipping_cuts_the_gradient_only_where_the_clipped_error_is_larger():
    value_BT = torch.tensor([[0.5, 0.5, 0.3]], dtype=F64, requires_grad=True)
    old_BT = torch.tensor([[0.2, 0.2, 0.2]], dtype=F64)
    return_BT = torch.tensor([[1.0, 0.0, 1.0]], dtype=F64)
    policy.clipped_value_loss(value_BT, old_BT, return_BT, 0.2).sum().backward()
    np.testing.assert_allclose(value_BT.grad, [[0, 0.5, -0.7]], atol=1e-15)


@pytest.mark.parametrize("far", [1000.0, -1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_far_apart_scores_keep_finite_losses_and_gradients(far, dtype):
    score_BK = torch.tensor([[far, 0.0]], dtype=dtype, requires_grad=True)
    chosen_B, rejected_B = score_BK.unbind(-1)
    zero_B = torch.zeros_like(chosen_B)
    losses = [
        preference.bradley_terry_loss(chosen_B, rejected_B, label_smoothing=0.1),
        preference.plackett_luce_loss(score_BK),
        preference.balanced_pairwise_loss(score_BK),
        preference.rao_kupper_loss(chosen_B, rejected_B, torch.tensor([0]), 60.0),
        preference.dpo_loss(chosen_B, rejected_B, zero_B, zero_B, 1.0),
    ]
    for loss_B in losses:
        (gradient_BK,) = torch.autograd.grad(loss_B.sum(), score_BK, retain_graph=True)
        assert loss_B.isfinite().all()
        assert gradient_BK.isfinite().all()
    assert losses[1].item() == losses[2].item() == max(0.0, -far)


def test_impossible_tokens_leave_values_and_gradients_finite():
    logits_BTV = torch.tensor([[[0.3, -0.2, -torch.inf]]], dtype=F64, requires_grad=True)
    ref_BTV = torch.tensor([[[0.1, 0.4, -torch.inf]]], dtype=F64, requires_grad=True)
    for value, short in [
        (policy.entropy(logits_BTV, 0.7), policy.entropy(logits_BTV[..., :2], 0.7)),
        (kl.kl_exact(logits_BTV, ref_BTV), kl.kl_exact(logits_BTV[..., :2], ref_BTV[..., :2])),
    ]:
        (gradient,) = torch.autograd.grad(value.sum(), logits_BTV)
        (expected,) = torch.autograd.grad(short.sum(), logits_BTV)
        assert value.item() == pytest.approx(short.item(), rel=1e-14)
        np.testing.assert_allclose(gradient, expected, atol=1e-15)
