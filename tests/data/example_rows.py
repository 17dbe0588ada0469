"""Rows and files that the tests of this folder share."""

import gzip
import json
from pathlib import Path

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
