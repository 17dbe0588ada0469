"""Prompts for a real model: people's questions, each with an instruction that a function can check.

Reads the first question of every dialogue of a data set (by default hh-rlhf helpful: from the Hub, or from
the folder $PREFERL_DATA), adds instructions (preferl/judging/instructions.py), and writes prompts with their
split, which is by question. The reward `instructions` is their truth. By default the kinds of instructions
are two that SmolLM2-135M-Instruct follows a third of the time: what is never done is never rewarded, and a
few hundred labels say little about many kinds.

python benchmarks/instruction_prompts.py [--kinds words use json] [--out runs/smollm2-prompts.jsonl]
"""

import argparse
from collections import Counter
from pathlib import Path

from preferl.data import sources
from preferl.data.files import write_rows
from preferl.data.splits import by_hash, normalised
from preferl.judging.instructions import tasks_of
from preferl.runs.progress import say

IN_A_SENTENCE_OR_TWO = ("words", "sentences")


def questions_of(name: str) -> list[str]:
    """The first turn of every prompt of a data set."""
    source = sources.load_source(name)
    prompts = [record.prompt for split in ("train", "dev", "eval") for record in source[split].prompts]
    return [prompt if isinstance(prompt, str) else prompt[0]["content"] for prompt in prompts]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", nargs="+", default=["Anthropic/hh-rlhf:helpful-base"])
    parser.add_argument("--most", type=int, default=1000, help="questions at most")
    parser.add_argument("--per_question", type=int, default=1)
    parser.add_argument(
        "--kinds", nargs="+", default=list(IN_A_SENTENCE_OR_TWO), help="or use, avoid, begin, end, list, json"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2-prompts.jsonl"))
    options = parser.parse_args()
    questions = [question for name in options.questions for question in questions_of(name)]
    tasks = tasks_of(questions, options.per_question, options.seed, options.kinds)[
        : options.most * options.per_question
    ]
    splits = by_hash([normalised(task.question) for task in tasks], (0.7, 0.1, 0.2), "question").names
    rows = [
        {"prompt": [{"role": "user", "content": task.prompt}], "category": task.kind, "split": split}
        for task, split in zip(tasks, splits, strict=True)
    ]
    write_rows(options.out, rows)
    say(
        f"{options.out}: {len(rows)} prompts, {dict(Counter(splits))}, {dict(Counter(t.kind for t in tasks))}"
    )


if __name__ == "__main__":
    main()
