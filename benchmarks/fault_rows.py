"""The rows of ``faults.py``: what goes wrong, the command that meets it, and how it must end."""

import gzip
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path

from fault_world import (
    AUDIT,
    BEST_OF,
    COLLECT,
    DATA,
    DIVERGED,
    DONE,
    DPO,
    EVALUATE,
    INTERRUPTED,
    LONG,
    REWARD,
    RL,
    SFT,
    USAGE,
    Fault,
    both,
    cut,
    flip,
    huge,
    interrupted,
    nothing,
    overwrite,
    own_code,
    pickled,
    remounted,
    set_key,
    signalled,
    template,
    tmpfs,
    weights,
    without,
    write_lines,
)

# ------------------------------------------------------------------------------------------------------ disks

FULL = "the disk takes no larger file"
SMALL = 3000  # bytes: a configuration fits, a model does not
DISKS = [
    Fault("full: model of sft", SFT, USAGE, FULL, largest=SMALL, mend=nothing),
    Fault("full: pairs of collect", COLLECT, USAGE, FULL, largest=SMALL, mend=nothing),
    Fault("full: model of reward", REWARD, USAGE, FULL, largest=SMALL, mend=nothing),
    Fault("full: model of dpo", DPO, USAGE, FULL, largest=SMALL, mend=nothing),
    Fault("full: checkpoint of rl", RL, USAGE, FULL, largest=20_000, mend=nothing),
    Fault("full: samples of evaluate", EVALUATE, USAGE, FULL, largest=1500, mend=nothing),
    Fault("full: scores of audit", AUDIT, USAGE, FULL, largest=1800, mend=nothing),
    Fault("full: convert", "data convert pairs.jsonl out.jsonl", USAGE, FULL, largest=500, mend=nothing),
    Fault("full: report", "report . --output page.html", USAGE, FULL, largest=SMALL, mend=nothing),
    Fault(
        "full disk of 40 KB: sft",
        f"{SFT} --output_dir out/sft",
        USAGE,
        "the disk is full",
        tmpfs("40k"),
        mend=remounted("size=40m"),
    ),
    Fault(
        "read-only disk: sft",
        f"{SFT} --output_dir out/sft",
        USAGE,
        "the disk is read-only",
        both(tmpfs("40m"), remounted("ro")),
        mend=remounted("rw"),
    ),
    Fault(
        "read-only disk: convert",
        "data convert pairs.jsonl out/pairs.jsonl",
        USAGE,
        "the disk is read-only",
        both(tmpfs("40m"), remounted("ro")),
        mend=remounted("rw"),
    ),
    Fault(
        "vanished in the middle: best_of",
        f"{BEST_OF} --reward_model rewards:gone --response_length 24",
        USAGE,
        "is gone",
        overwrite("take", "away"),
        mend=without("out"),
    ),
    Fault(
        "vanished in the middle: evaluate",
        f"{EVALUATE} --reward_model rewards:gone",
        USAGE,
        "is gone",
        overwrite("take", "away"),
        mend=without("out"),
    ),
    Fault(
        "a file for a directory",
        f"{SFT} --output_dir pairs.jsonl",
        USAGE,
        "is not a directory",
        kept=("pairs.jsonl",),
    ),
    Fault(
        "a line of 50 MB",
        f"{SFT} --dataset_name long.jsonl",
        DATA,
        "long.jsonl:2",
        lambda folder: (folder / "long.jsonl").write_text(
            '{"prompt": "a", "completion": "b"}\n{"prompt": "' + 50_000_000 * "a" + '"}\n'
        ),
    ),
    Fault("a model of a million wide", f"{SFT} --hidden_size 1000000", USAGE, "GiB"),
    Fault(
        "a configuration a million wide",
        DPO,
        USAGE,
        "GiB",
        set_key("sft/model/config.json", hidden_size=1_000_000),
    ),
    Fault(
        "a configuration of a million layers",
        DPO,
        USAGE,
        "1,000,000 layers",
        set_key("sft/model/config.json", num_hidden_layers=1_000_000),
    ),
]

# ---------------------------------------------------------------------------------------------------- signals

SIGNALS = [
    Fault(f"{number.name} in training", LONG, INTERRUPTED, "same command", during=signalled(number))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
] + [
    Fault(
        "SIGHUP that nohup ignores",
        f"{SFT} --num_train_epochs 80 --save_every 20",
        DONE,
        "out",
        during=signalled(signal.SIGHUP),
        ignored=signal.SIGHUP,
    ),
]

# ------------------------------------------------------------------------------------------------------ locks

LOCKS = [
    Fault("a second command on one stage", LONG, USAGE, "out", first=LONG),
    Fault("--fresh while another one works", f"{LONG} --fresh", USAGE, "out", first=LONG),
    Fault("an unfinished stage is no policy", DPO, USAGE, "unfinished", without("sft/DONE")),
    Fault(
        "an unfinished stage is no data",
        f"{REWARD} --dataset_name collect",
        USAGE,
        "unfinished",
        without("collect/DONE"),
    ),
]

# ---------------------------------------------------------------------------------------------- damaged files

STORED = f"{SFT} --output_dir sft"
DAMAGED = [
    Fault(
        "config.yaml: not YAML", STORED, USAGE, "sft/config.yaml", overwrite("sft/config.yaml", "a: [1\nb: }")
    ),
    Fault("config.yaml: a list", STORED, USAGE, "sft/config.yaml", overwrite("sft/config.yaml", "- a\n")),
    Fault("manifest.json: cut", "report .", USAGE, "manifest.json", cut("sft/manifest.json")),
    Fault("manifest.json: a list", "report .", USAGE, "manifest.json", overwrite("sft/manifest.json", "[]")),
    Fault("summary.json: cut", "report .", USAGE, "summary.json", cut("rl/summary.json")),
    Fault("metrics.jsonl: a bad line", "report .", USAGE, "metrics.jsonl:1", flip("rl/metrics.jsonl", 0)),
    Fault("metrics.jsonl: last line cut", "report .", DONE, "report.html", cut("rl/metrics.jsonl", 0.9)),
    Fault(
        "samples.jsonl: not UTF-8",
        "report .",
        USAGE,
        "samples.jsonl:1",
        overwrite("rl/samples.jsonl", b"\xff\n"),
    ),
    Fault("weights: cut", DPO, USAGE, "'sft'", cut("sft/model/model.safetensors")),
    Fault("weights: bit in the header", DPO, USAGE, "'sft'", flip("sft/model/model.safetensors")),
    Fault("weights: empty", RL, USAGE, "'reward'", overwrite("reward/model/model.safetensors", "")),
    Fault(
        "weights: of another model",
        DPO,
        USAGE,
        "other sizes",
        set_key("sft/model/config.json", intermediate_size=64),
    ),
    Fault("model config.json: cut", DPO, USAGE, "'sft'", cut("sft/model/config.json")),
    Fault("reward's config.json: cut", AUDIT, USAGE, "'reward'", cut("reward/model/config.json")),
    Fault("tokenizer.json: cut", DPO, USAGE, "'sft'", cut("sft/model/tokenizer.json")),
    Fault("tokenizer.json: a bit", DPO, USAGE, "'sft'", flip("sft/model/tokenizer.json", 0)),
    Fault("tokenizer_config.json: cut", DPO, USAGE, "'sft'", cut("sft/model/tokenizer_config.json")),
    Fault("model/ is missing", DPO, USAGE, "'sft'", without("sft/model")),
    Fault(
        "checkpoint: tensors cut",
        LONG,
        DONE,
        "passed over",
        during=interrupted(lambda step: os.truncate(step / "tensors.safetensors", 1000)),
    ),
    Fault(
        "checkpoint: a bit of the tensors",
        LONG,
        DONE,
        "passed over",
        during=interrupted(lambda step: flip("tensors.safetensors", -9)(step)),
    ),
    Fault(
        "checkpoint: values cut",
        LONG,
        DONE,
        "passed over",
        during=interrupted(lambda step: os.truncate(step / "values.json", 20)),
    ),
]

# --------------------------------------------------------------------------------------------------- bad data


def rows(*lines: str | bytes) -> Callable[[Path], object]:
    joined = b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines)
    return overwrite("bad.jsonl", joined)


GOOD_PAIR = '{"prompt": "a", "chosen": "b", "rejected": "c"}'
GOOD_RATING = '{"prompt": "a", "completion": "b", "label": true}'
ON_BAD = f"{REWARD} --dataset_name bad.jsonl --bad_rows error"
SFT_BAD = f"{SFT} --dataset_name bad.jsonl --bad_rows error"
BAD_DATA = [
    Fault("no such file", f"{SFT} --dataset_name nowhere.jsonl", DATA, "nowhere.jsonl"),
    Fault("an empty file", ON_BAD, DATA, "bad.jsonl", overwrite("bad.jsonl", "")),
    Fault("not JSON", ON_BAD, DATA, "bad.jsonl:2", rows(GOOD_PAIR, "{")),
    Fault("not an object", ON_BAD, DATA, "bad.jsonl:2", rows(GOOD_PAIR, "[1]")),
    Fault("not UTF-8", ON_BAD, DATA, "bad.jsonl:2", rows(GOOD_PAIR, b'{"prompt": "\xff"}')),
    Fault("half a surrogate", ON_BAD, DATA, "bad.jsonl:2", rows(GOOD_PAIR, '{"prompt": "\\ud800"}')),
    Fault("a thousand brackets", ON_BAD, DATA, "bad.jsonl:2", rows(GOOD_PAIR, "[" * 100_000)),
    Fault(
        "pair: a number for a text",
        ON_BAD,
        DATA,
        "bad.jsonl:2",
        rows(GOOD_PAIR, GOOD_PAIR.replace('"b"', "7")),
    ),
    Fault(
        "pair: a column is missing",
        ON_BAD,
        DATA,
        "bad.jsonl:2",
        rows(GOOD_PAIR, '{"prompt": "a", "chosen": "b"}'),
    ),
    Fault(
        "ranking: ranks of another number",
        ON_BAD,
        DATA,
        "bad.jsonl:1",
        rows('{"prompt": "a", "responses": ["b", "c"], "ranks": [1]}'),
    ),
    Fault(
        "comparison: z is 7",
        ON_BAD,
        DATA,
        "bad.jsonl:1",
        rows('{"prompt": "a", "response_a": "b", "response_b": "c", "z": 7}'),
    ),
    Fault(
        "rated: a label that is a text",
        SFT_BAD,
        DATA,
        "bad.jsonl:21",
        rows(*20 * [GOOD_RATING], GOOD_RATING.replace("true", '"good"')),
    ),
    Fault(
        "messages: a turn without a role",
        SFT_BAD,
        DATA,
        "bad.jsonl:1",
        rows('{"messages": [{"content": "a"}]}'),
    ),
    Fault(
        "responses_file: not UTF-8",
        "collect --responses_file bad.jsonl --output_dir out",
        DATA,
        "bad.jsonl:1",
        rows(b'{"prompt": "\xff"}'),
    ),
    Fault(
        "responses_file: a number for a prompt",
        "collect --responses_file bad.jsonl --output_dir out",
        DATA,
        "bad.jsonl:1",
        rows('{"prompt": 7, "responses": ["a", "b"]}'),
    ),
    Fault(
        "gzip: cut",
        f"{REWARD} --dataset_name bad.jsonl.gz",
        DATA,
        "bad.jsonl.gz",
        overwrite("bad.jsonl.gz", gzip.compress(GOOD_PAIR.encode() * 9)[:-20]),
    ),
    Fault(
        "parquet: not one",
        f"{REWARD} --dataset_name bad.parquet",
        DATA,
        "bad.parquet",
        overwrite("bad.parquet", "PAR1 nothing PAR1"),
    ),
    Fault("a name of control characters", f"{SFT} --dataset_name '\x1b[2J\rgood.jsonl'", DATA, "\\x1b"),
    Fault(
        "a column of control characters", ON_BAD, DATA, "\\x1b", rows('{"\\u001b[31m": "\\u202e", "\\r": 1}')
    ),
]

# ---------------------------------------------------------------------------------------------------- numbers

NUMBERS = [
    Fault("NaN in the policy: rl", RL, DIVERGED, "'sft' has weights", weights("sft", math.nan)),
    Fault("NaN in the policy: collect", COLLECT, DIVERGED, "'sft'", weights("sft", math.nan)),
    Fault("NaN in the policy: evaluate", EVALUATE, DIVERGED, "'rl'", weights("rl", math.nan)),
    Fault(
        "infinity in the reference: dpo", f"{DPO} --ref_model rl", DIVERGED, "'rl'", weights("rl", math.inf)
    ),
    Fault("NaN in the base: reward", REWARD, DIVERGED, "'sft'", weights("sft", math.nan)),
    Fault("NaN in the reward: rl", RL, DIVERGED, "'reward'", weights("reward", math.nan)),
    Fault("NaN in the reward: audit", AUDIT, DIVERGED, "'reward'", weights("reward", math.nan)),
    Fault("weights that overflow: collect", COLLECT, DIVERGED, "sft", huge("sft")),
    Fault("weights that overflow: evaluate", EVALUATE, DIVERGED, "rl", huge("rl")),
    Fault("weights that overflow: dpo", DPO, DIVERGED, "not finite", huge("sft")),
    Fault("a reward of NaN: rl", f"{RL} --reward_model rewards:nan", DIVERGED, "'rewards:nan'"),
    Fault("a reward of NaN: audit", f"{AUDIT} --reward_model rewards:nan", DIVERGED, "'rewards:nan'"),
    Fault("a reward of NaN: best_of", f"{BEST_OF} --reward_model rewards:nan", DIVERGED, "'rewards:nan'"),
    Fault("a reward of NaN: evaluate", f"{EVALUATE} --reward_model rewards:nan", DIVERGED, "'rewards:nan'"),
    Fault("a part of NaN: rl", f"{RL} --reward_model '1*reward + 1*rewards:nan'", DIVERGED, "'rewards:nan'"),
    Fault(
        "a gold of infinity: evaluate", f"{EVALUATE} --gold rewards:infinite", DIVERGED, "'rewards:infinite'"
    ),
    Fault(
        "an annotator of infinity", f"{COLLECT} --annotator rewards:infinite", DIVERGED, "'rewards:infinite'"
    ),
    Fault(
        "an annotator of NaN: rankings",
        f"{COLLECT} --layout rankings --annotator rewards:nan",
        DIVERGED,
        "'rewards:nan'",
    ),
    Fault("an annotator without words", f"{COLLECT} --annotator rewards:none", USAGE, "None"),
    Fault("a reward of too few scores", f"{RL} --reward_model rewards:short", USAGE, "1 scores for"),
    Fault("a reward that raises", f"{RL} --reward_model rewards:raises", USAGE, "'rewards:raises'"),
    Fault("a loss that diverges: sft", f"{SFT} --learning_rate 1e30", DIVERGED, "learning rate"),
    Fault(
        "a loss that diverges: reward",
        f"{REWARD} --learning_rate 1e30",
        DIVERGED,
        "stopped before the update",
    ),
    Fault("a loss that diverges: dpo", f"{DPO} --learning_rate 1e30", DIVERGED, ""),
    Fault("a loss that diverges: rl", f"{RL} --learning_rate 1e30", DIVERGED, ""),
]

# --------------------------------------------------------------------------------------------- hostile models

HOSTILE = [
    Fault("a model with code of its own", DPO, USAGE, "code of its own", own_code),
    Fault("weights as a pickle", DPO, USAGE, "safetensors", pickled),
    Fault("an unknown architecture", DPO, USAGE, "'sft'", set_key("sft/model/config.json", model_type="nix")),
    Fault(
        "sizes that make no sense",
        DPO,
        USAGE,
        "'sft'",
        set_key("sft/model/config.json", num_attention_heads=-1),
    ),
    Fault(
        "an activation that is none",
        DPO,
        USAGE,
        "'sft'",
        set_key("sft/model/config.json", hidden_act="__import__('os')"),
    ),
    Fault(
        "template: what the sandbox forbids",
        COLLECT,
        DATA,
        "chat template of 'sft/model'",
        template("sft", "{{ messages.__class__.__mro__[1].__subclasses__() }}"),
    ),
    Fault(
        "template: an endless range",
        COLLECT,
        DATA,
        "chat template of 'sft/model'",
        template("sft", "{% for i in range(10**12) %}a{% endfor %}"),
    ),
    Fault(
        "template: refuses",
        COLLECT,
        DATA,
        "only system",
        template("sft", "{{ raise_exception('only system') }}"),
    ),
    Fault("template: is none", COLLECT, DATA, "chat template of 'sft/model'", template("sft", "{% if %}")),
    Fault(
        "template: cuts through a text",
        COLLECT,
        DATA,
        "chat template of 'sft/model'",
        both(
            template("sft", "{{ messages[0]['content'][:5] }}"),
            lambda folder: write_lines(
                folder / "prompts.jsonl", 8 * [{"prompt": [{"role": "user", "content": "say <|user|>"}]}]
            ),
        ),
    ),
    Fault(
        "a stage that leads outside, with its kind",
        "run --config outside.yaml",
        USAGE,
        "../x",
        overwrite(
            "outside.yaml", "output_dir: out\nstages: [../x]\n../x: {kind: sft, dataset_name: demos.jsonl}\n"
        ),
    ),
    Fault("a stage that leads outside", "run --stages [sft,../x] --output_dir out", USAGE, "../x"),
    Fault(
        "a reference to nothing",
        "run --stages [sft] --sft.model_name_or_path @/nothing --output_dir out",
        USAGE,
        "@/nothing",
    ),
    Fault("an option of control characters", "sft --\x1b[2Joption 1", USAGE, "\\x1b"),
    Fault("a command of control characters", "\x1b]0;owned\x07", USAGE, "\\x1b"),
]

# ------------------------------------------------------------------------------------------------ bad options


def refused(command: str, option: str, value: str, says: str | None = None) -> Fault:
    name = says or option.rsplit(".", 1)[-1]
    return Fault(f"{option} {value}", f"{command} --{option} {value}", USAGE, f"{name} is")


OPTIONS = [
    refused("sft", "learning_rate", "-1"),
    refused("sft", "learning_rate", ".nan"),
    refused("sft", "train_batch_size", "0"),
    refused("sft", "seed", str(2**64)),
    refused("sft", "seed", "-1"),
    refused("sft", "num_train_epochs", "0"),
    refused("sft", "max_length", "1"),
    refused("sft", "split_shares", "[2,-1,0]"),
    refused("reward", "label_smoothing", "0.6"),
    refused("reward", "num_members", "0"),
    refused("reward", "weight_average", "2"),
    refused("dpo", "beta", "0"),
    refused("dpo", "temperature", "0"),
    refused("rl", "kl_coef", "-0.1"),
    refused("rl", "gamma", "1.5"),
    refused("rl", "batch_size", "0"),
    refused("rl", "critic_learning_rate", "-1"),
    refused("collect --model_name_or_path sft", "pairs.train", "-5", "train"),
    refused("collect --model_name_or_path sft", "error_rate", "0.9"),
    refused("collect --model_name_or_path sft", "num_generations", "1"),
    refused("best_of", "top_fraction", "0"),
    refused("evaluate", "best_of", "[0]"),
    refused("audit", "max_pairs", "0"),
    refused("run", "rl.kl_coef", "-1"),
    refused("run", "rounds", "0"),
    refused("sweep --sweep.grid.rl.kl_coef [0.1]", "sweep.seeds", "[-1]", "seeds"),
    refused("sft", "learning_rate", "fast"),
    Fault("a judge's option", "run --collect.annotator judge:x?retries=-1", USAGE, "retries is -1"),
    Fault("an unknown option", "rl --learnin_rate 1", USAGE, "learning_rate"),
    Fault("an unknown command", "trian", USAGE, "unknown command"),
]

DATABASES = [
    Fault("label: no database", "label export out.jsonl --db nowhere.sqlite", USAGE, "nowhere.sqlite"),
    Fault(
        "label: a damaged database",
        "label --items pairs.jsonl --port 0 --db bad.sqlite",
        USAGE,
        "bad.sqlite",
        overwrite("bad.sqlite", "SQLite format 3, or not"),
    ),
    Fault(
        "label: a database that is away",
        "label user Ann --db postgresql://127.0.0.1:1/x",
        USAGE,
        "127.0.0.1:1",
    ),
    Fault(
        "label: a read-only disk",
        "label --items pairs.jsonl --port 0 --db out/label.sqlite",
        USAGE,
        "out/label",
        both(tmpfs("4m"), remounted("ro")),
    ),
]

GROUPS = {
    "disks": DISKS,
    "signals": SIGNALS,
    "locks": LOCKS,
    "damaged": DAMAGED,
    "data": BAD_DATA,
    "numbers": NUMBERS,
    "hostile": HOSTILE,
    "options": OPTIONS,
    "databases": DATABASES,
}
