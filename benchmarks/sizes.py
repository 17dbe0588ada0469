"""What works where: models of four sizes, three ways of training, three machines, planned and not run.

    python benchmarks/sizes.py

A table in Markdown, by ``models.plan`` from configurations on the meta device: what sft (rows of 1,024
tokens) and PPO (policy, reference, reward model, critic; prompts of 128 tokens, 128 new ones) take with the
passes that are chosen. Frozen weights are bfloat16, trained ones float32; a GPU computes in bfloat16.
"yes" fits (↻: with activations made again for the gradient); a number alone is what it needs.
"""

import torch
from transformers import AutoConfig

from preferl.models import plan

GIB = 2**30
LLAMA = {"num_hidden_layers": 16, "num_key_value_heads": 8, "vocab_size": 128256}
SIZES = {
    "135M (SmolLM2)": (
        "llama",
        {
            "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
            "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
        },
    ),
    "0.5B (Qwen2.5)": (
        "qwen2",
        {
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
        },
    ),
    "1B (Llama 3.2)": (
        "llama",
        LLAMA | {
            "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "head_dim": 64,
            "tie_word_embeddings": True,
        },
    ),
    "8B (Llama 3.1)": (
        "llama",
        LLAMA | {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "tie_word_embeddings": False,
        },
    ),
}  # fmt: skip
WAYS = {
    "full": plan.Levers(),
    "LoRA": plan.Levers(lora_r=16),
    "QLoRA": plan.Levers(lora_r=16, load_in_4bit=True, optim="adamw_8bit"),
}
MACHINES = {
    "16 GB laptop": plan.Machine(16e9, 16e9, "a laptop", True),
    "24 GB GPU": plan.Machine(24e9, 24e9, "a GPU", False),
    "80 GB GPU": plan.Machine(80e9, 80e9, "a GPU", False),
}


def main() -> None:
    print(f"| model | stage | training | {' | '.join(MACHINES)} |")
    print("|" + "---|" * (3 + len(MACHINES)))
    for size, (family, options) in SIZES.items():
        config = AutoConfig.for_model(family, **options)
        for stage, of in (("sft", sft), ("PPO", ppo)):
            for way, levers in WAYS.items():
                cells = [cell(of(config, levers), levers, machine) for machine in MACHINES.values()]
                print(f"| {size} | {stage} | {way} | {' | '.join(cells)} |")


def sft(config: object, levers: plan.Levers) -> plan.Work:
    """One model, and a few samples at the end."""
    policy = plan.Role("policy", config, torch.bfloat16, trained=True)
    return plan.Work([policy], row_tokens=1024, length=1024, batch_rows=32, cached_tokens=8192)


def ppo(config: object, levers: plan.Levers) -> plan.Work:
    """Four models of one size: four on one base with LoRA."""
    own = not levers.lora_r
    roles = [
        plan.Role("policy", config, torch.bfloat16, trained=True),
        plan.Role("reference", config, torch.bfloat16, owns_base=own),
        plan.Role("reward", config, torch.bfloat16, logits=False, owns_base=own),
        plan.Role("critic", config, torch.bfloat16, trained=True, logits=False, owns_base=own),
    ]
    return plan.Work(roles, row_tokens=256, length=256, batch_rows=64, cached_tokens=64 * 256)


def cell(work: plan.Work, levers: plan.Levers, machine: plan.Machine) -> str:
    """Whether it fits, and in what size of passes; or what it would need."""
    dtype = torch.float32 if machine.is_cpu else torch.bfloat16
    found = plan.plan(work, levers, dtype, machine)
    needed = (found.total + machine.process) / GIB
    if not found.fits(machine):
        return f"{needed:,.0f} GiB"
    again = " ↻" if found.recompute else ""
    return f"yes: {needed:,.1f} GiB, {found.tokens:,} tokens{again}"


if __name__ == "__main__":
    main()
