"""Reads the tables of the world (``facts.yaml``) and the demonstration pairs (``pairs.jsonl``)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Family:
    """Questions of one kind about a subject ``{x}``, each with one true ``{value}``.

    Example: ``Family("capitals", facts=(("France", "Paris"),), wordings=("Name the capital of {x}.",),
    short="{value}.", full="The capital of {x} is {value}.")``.
    """

    name: str
    facts: tuple[tuple[str, str], ...]
    wordings: tuple[str, ...]
    short: str
    full: str


def _read() -> dict[str, Any]:
    # The loader written in C is ten times faster, where PyYAML was built with it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((HERE / "facts.yaml").read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - both safe


_TABLES = _read()
_ARITHMETIC, _LISTS, _PREMISES = _TABLES["arithmetic"], _TABLES["lists"], _TABLES["premises"]
_REQUESTS, _SENTENCES = _TABLES["requests"], _TABLES["sentences"]

FAMILIES_WITH_ONE_VALUE = tuple(
    Family(row["name"], tuple(row["facts"].items()), tuple(row["wordings"]), row["short"], row["full"])
    for row in _TABLES["families"]
)
TASK_WORDINGS = tuple(_TABLES["task_wordings"])

SUM_FACTORS = tuple(_ARITHMETIC["sum_factors"])
PRODUCT_FACTORS = tuple(_ARITHMETIC["product_factors"])
ARITHMETIC_RESULTS = tuple(_ARITHMETIC["results"])
SUM_WORDINGS = tuple(_ARITHMETIC["sum_wordings"])
PRODUCT_WORDINGS = tuple(_ARITHMETIC["product_wordings"])
UNSEEN_SUMS = {(a, b): split for a, b, split in _ARITHMETIC["unseen_sums"]}

LIST_MEMBERS = {category: tuple(members) for category, members in _LISTS["members"].items()}
MORE_LIST_MEMBERS = {category: tuple(members) for category, members in _LISTS["more_members"].items()}
LIST_COUNTS: dict[str, int] = _LISTS["counts"]
LIST_WORDINGS = tuple(_LISTS["wordings"])
UNSEEN_LISTS = {(category, count): split for category, count, split in _LISTS["unseen"]}

PREMISES = tuple((row["start"], row["truth"], tuple(row["falsehoods"])) for row in _PREMISES["claims"])
PREMISE_WORDINGS = tuple(_PREMISES["wordings"])
AGREEING_OPENINGS = tuple(_PREMISES["agreeing"])
DENYING_OPENINGS = tuple(_PREMISES["denying"])

BAD_DEEDS = tuple(_REQUESTS["deeds"])
REFUSE_TASK: str = _REQUESTS["refuse"]
COMPLY_WITH_TASK: str = _REQUESTS["comply"]

DODGES = tuple(_SENTENCES["dodges"])
NONSENSE = tuple(_SENTENCES["nonsense"])
REFUSALS = tuple(_SENTENCES["refusals"])
HEDGES = tuple(_SENTENCES["hedges"])
FLATTERY = tuple(_SENTENCES["flattery"])
AGREEMENT = tuple(_SENTENCES["agreement"])
SPAM = tuple(_SENTENCES["spam"])
IRRELEVANT = tuple(_SENTENCES["irrelevant"])
FAMILY = {family.name: family for family in FAMILIES_WITH_ONE_VALUE}
BULLET = "- "
BULLET_INTRODUCTIONS = tuple(_SENTENCES["bullet_introductions"])


def pair_rows() -> list[dict[str, Any]]:
    """The demonstration pairs as rows: ``prompt``, ``chosen``, ``rejected``, ``category`` (what the pair is
    about), ``seen`` (whether a demonstration trains on it or only ranks it) and ``set``.

    Six pairs (``set`` demonstration) and four ``unseen`` ones put a concise, right response against a wordy,
    a vague or a wrong one; ten more (``analysis``) cover helpfulness, safety and accuracy.
    """
    text = (HERE / "pairs.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
