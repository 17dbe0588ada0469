"""What is asked of the distributions of tokens is the same where their logits are never whole in memory."""

from collections.abc import Iterator

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from families import DECODERS, WITH_VISION, decoder, with_vision
from preferl.models import output_head
from preferl.models.adapters import quiet_peft
from preferl.sampling.logprobs import distributions
from preferl.sampling.samples import Samples, Sampling, written_samples

SAMPLING = Sampling(temperature=0.7, response_length=9, suppressed=(0,), stop=(2,))


def some_samples(seed: int = 0) -> Samples:
    """Prompts and responses of unlike lengths."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return torch.randint(3, 90, (length,), generator=generator).tolist()

    prompts, responses = [text(n) for n in (5, 2, 7)], [text(n) for n in (9, 4, 1)]
    return written_samples(prompts, responses, 0, SAMPLING)


@pytest.fixture
def few_tokens_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of two tokens are the most that may be in memory."""
    monkeypatch.setattr(output_head, "LOGITS_BYTES", 2 * 4 * 99)


def statistics(policy: PreTrainedModel, reference: PreTrainedModel, apart: bool) -> Iterator[torch.Tensor]:
    """Log-probabilities, entropy and KL, and the gradient of each by the policy's parameters."""
    samples = some_samples()
    weight_BT = torch.rand(samples.mask_BT.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        of_reference = distributions(reference, samples)
    for name in ("logprobs", "entropy", "kl"):
        now = distributions(policy, samples)
        assert (now.head is not None) == apart
        value_BT = now.kl_to(of_reference) if name == "kl" else getattr(now, name)()
        yield value_BT.detach()
        policy.zero_grad()
        (value_BT * weight_BT).sum().backward()
        yield torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", [*DECODERS, *WITH_VISION, "lora"])
def test_tokens_a_few_at_a_time_are_all_tokens_at_once(name, request):
    """To 1e-5, in value and in gradient, in every family, with padding on the left and suppressed ids."""
    build = with_vision if name in WITH_VISION else decoder
    policy, reference = (build("llama" if name == "lora" else name, seed) for seed in (0, 1))
    if name == "lora":
        options = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
        with quiet_peft():
            policy = get_peft_model(policy, options)
    whole = list(statistics(policy, reference, apart=False))
    request.getfixturevalue("few_tokens_at_once")
    parts = list(statistics(policy, reference, apart=True))
    for expected, found in zip(whole, parts, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-5, atol=1e-5 * max(1.0, float(expected.abs().max()))
        )


def test_the_logits_of_all_tokens_are_never_in_memory(few_tokens_at_once, monkeypatch):
    """Nor those of prompts: the head reads two tokens at a time, and the pass makes one column."""
    policy, samples = decoder("llama"), some_samples()
    distributions(policy, samples)  # tries, once, what the model does
    read = []
    apply = output_head.Head.__call__

    def watched(head: output_head.Head, states_ND: torch.Tensor) -> torch.Tensor:
        read.append(len(states_ND))
        return apply(head, states_ND)

    monkeypatch.setattr(output_head.Head, "__call__", watched)
    made = []
    policy.lm_head.register_forward_hook(lambda *args: made.append(args[2].shape[:2]))
    distributions(policy, samples).logprobs().sum().backward()
    assert max(read) == 2
    assert sum(read) == 2 * int(samples.mask_BT.sum())  # and once more for the gradient
    assert made == [(3, 1)]


def test_a_model_that_cannot_be_taken_apart_is_read_whole_and_that_is_said_once(few_tokens_at_once, capsys):
    policy, samples = decoder("llama"), some_samples()
    forward = policy.lm_head.forward
    policy.lm_head.forward = lambda states: forward(states) ** 3  # nothing that its configuration tells
    for _ in range(2):
        assert distributions(policy, samples).head is None
    assert capsys.readouterr().out.count("a llama model cannot be taken apart before its logits") == 1
