"""Sampling: preferl's cached engine against transformers' generate(), side by side on the same model.

    python benchmarks/sampling.py [--batch 256] [--length 48] [--repeats 5]

Both draw from the whole distribution at temperature 1 with EOS impossible, so that they do the same work; the
engine also returns every token's log-probability. Repeats alternate; the ratio is that of the medians.
"""

import argparse
import statistics
import time

import torch
from transformers import GenerationConfig

from preferl.models import tiny
from preferl.sampling.cached import CachedEngine
from preferl.sampling.samples import Sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = tiny.train_tokenizer(["some text to make a vocabulary from"], 2048)
    model = tiny.tiny_model(tokenizer).eval()
    model.resize_token_embeddings(2048, mean_resizing=False)
    prompts = torch.randint(10, 2000, (options.batch, options.prompt))
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id

    engine = CachedEngine(model, pad, batch_size=options.batch)
    sampling = Sampling(1.0, options.length, (pad, eos), (eos,))
    generation = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=options.length,
        pad_token_id=pad, eos_token_id=None, suppress_tokens=[pad, eos],
    )  # fmt: skip

    def ours() -> None:
        engine.sample(prompts.tolist(), sampling, torch.Generator().manual_seed(0))

    @torch.no_grad()
    def theirs() -> None:
        model.generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=generation)

    seconds: dict[str, list[float]] = {"preferl": [], "generate": []}
    for repeat in range(options.repeats + 1):
        for name, run in (("preferl", ours), ("generate", theirs)):
            started = time.perf_counter()
            run()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    tokens = options.batch * options.length
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:>9}  {value:.3f} s  {tokens / value:,.0f} tokens/s")
    print(f"preferl takes {medians['preferl'] / medians['generate']:.2f} of the time of generate()")


if __name__ == "__main__":
    main()
