"""Rows and files that the tests of this folder share."""

import gzip
import json
from pathlib import Path

from preferl.data import formats, rows
from preferl.data.records import Pair

GOOD = {"prompt": "What is 2 + 2?", "chosen": "4.", "rejected": "5."}
USER = {"role": "user", "content": "Hello"}
NICE = {"role": "assistant", "content": "Hi!"}
RUDE = {"role": "assistant", "content": "What?"}
HH = {
    "chosen": "\n\nHuman: Hello\n\nAssistant: Hi! \n\nHuman: Who are you?\n\nAssistant: A helper.",
    "rejected": "\n\nHuman: Hello\n\nAssistant: Hi! \n\nHuman: Who are you?\n\nAssistant:  Guess.\n",
}


def write(path: Path, *lines: object) -> str:
    """A file of lines: bytes and texts as they are, everything else as JSON."""
    raw = [
        x if isinstance(x, bytes) else (x if isinstance(x, str) else json.dumps(x)).encode() for x in lines
    ]
    text = b"\n".join(raw) + b"\n"
    path.write_bytes(gzip.compress(text) if path.name.endswith(".gz") else text)
    return str(path)


def pair_of(row: dict) -> Pair:
    """A row of two responses as it is read."""
    (pair,) = rows.to_pair(row).pairs()
    return pair


def load_pairs(name: str, policy: dict | None = None, limit: int | None = None):
    """A data set of pairs, and what reading it met."""
    records, report, _ = formats.load(name, "preference", policy, limit)
    return [pair for record in records for pair in record.pairs()], report
