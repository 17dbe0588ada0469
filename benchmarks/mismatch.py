"""By how much sampling and training disagree about the same tokens, in float32 and in bfloat16.

Log-probabilities captured while sampling from the key/value cache against those of a full forward pass, and
those of bfloat16 against float32, on left-padded prompts of 1 to 32 tokens and responses of 16: Llama and
Qwen3 (rotary positions), GPT-2 (absolute ones). Bfloat16 is emulated, and slow, on most CPUs.

python benchmarks/mismatch.py [--model runs/demo/sft] [--device cuda]
"""

import argparse

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from preferl.models.load import load_policy
from preferl.runs.devices import autocast
from preferl.sampling.cached import CachedEngine
from preferl.sampling.logprobs import policy_logprobs
from preferl.sampling.samples import Sampling

VOCABULARY = 512


def models() -> dict[str, PreTrainedModel]:
    """One small model of each family, with weights large enough for distributions that are not flat."""
    torch.manual_seed(0)
    size = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    shared = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 256,
        "initializer_range": 0.1,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    llama = LlamaConfig(intermediate_size=384, **size, **shared)
    qwen = Qwen3Config(intermediate_size=384, num_key_value_heads=2, head_dim=32, **size, **shared)
    gpt2 = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=128,
        n_layer=4,
        n_head=4,
        n_positions=256,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=2,
    )
    return {
        "Llama": LlamaForCausalLM(llama),
        "Qwen3": Qwen3ForCausalLM(qwen),
        "GPT-2": GPT2LMHeadModel(gpt2),
    }


@torch.no_grad()
def mismatch(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, float]:
    """Per token the largest |ratio - 1|, the mean |log-prob difference|, the largest to float32; and the KL
    that the mismatch alone would show, in nats per response."""
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(3, VOCABULARY, (1 + i,), generator=generator).tolist() for i in range(32)]
    sampling = Sampling(1.0, 16, (0,), (2,))
    samples = CachedEngine(model, 0, dtype=dtype).sample(prompts, sampling, generator)
    with autocast(model.device, dtype):
        full_BT = policy_logprobs(model, samples).float()
    gap_BT = samples.logp_BT - full_BT
    real = gap_BT[samples.mask_BT.bool()]
    with autocast(model.device, torch.float32):
        exact = policy_logprobs(model, samples)
    rounding = (full_BT - exact)[samples.mask_BT.bool()]
    return {
        "ratio": float((real.exp() - 1).abs().max()),
        "mean": float(real.abs().mean()),
        "kl": float(gap_BT.sum(-1).mean()),
        "against float32": float(rounding.abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=None, help="a model of your own instead")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = models()
    if options.model:
        chosen = {options.model: load_policy(options.model, torch.device(options.device))[0]}
    print(
        f"{'':12}{'':10}{'max |ratio-1|':>15}{'mean |dlogp|':>15}{'KL (nats)':>12}{'max |dlogp| to fp32':>22}"
    )
    for name, model in chosen.items():
        for dtype in (torch.float32, torch.bfloat16):
            row = mismatch(model.to(options.device).eval(), dtype)
            numbers = f"{row['ratio']:>15.1e}{row['mean']:>15.1e}{row['kl']:>12.1e}"
            print(f"{name:12}{str(dtype)[6:]:10}{numbers}{row['against float32']:>22.1e}")


if __name__ == "__main__":
    main()
