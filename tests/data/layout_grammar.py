"""Random layouts of data sets, with what they say: kinds x place of the prompt x columns of responses x
coding of the winner x dialect of messages x other columns. The generator knows the truth."""

import json
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

WORDS = st.sampled_from(
    ["apple", "stone", "river", "lamp", "[note]", "{x}", "naïve", "猫", "a:", "<b>", "7", "#"]
)
FAMILIES = [
    ("response_a", "response_b"), ("response_A", "response_B"), ("response_0", "response_1"),
    ("response_1", "response_2"),
    ("response1", "response2"), ("answer_0", "answer_1"), ("output_1", "output_2"),
    ("human_ref_A", "human_ref_B"),
    ("completion_a", "completion_b"), ("first_response", "second_response"), ("modelA", "modelB"), ("x", "y"),
]  # fmt: skip
PROMPT_COLUMNS = ["prompt", "instruction", "question", "input", "query", "history", "post", "ask"]
WINNER_COLUMNS = [
    "winner",
    "label",
    "preference",
    "choice",
    "better_response_id",
    "overall_preference",
    "verdict",
    "pick",
]
HARMLESS = {
    "id": 3,
    "source": "s",
    "language": "en",
    "model_a": "m",
    "tokens_0": 12,
    "topic": "fruit",
    "meta": {"a": [1]},
}
SUSPICIOUS = {
    "vote": [0, 1], "helpfulness": [1, 4], "fold": ["train", "test"], "response_c": ["Other.", "More."],
    "safer": [True, False],
}  # fmt: skip
CODINGS = [
    "index0", "index1", "index0(tie=2)", "flag", "flag(1=b)", "strength(-3..3, negative=a)",
    "strength(negative=b)",
    "word",
    "letters", "arrows", "onehot", "scores", "rank", "probability(a)", "probability(b)", "scale(1..2)",
]  # fmt: skip


@dataclass
class Case:
    """Rows of a layout, the options that a person gives, and what the rows say.

    ``pairs`` are (prompt, chosen, rejected) as texts; ``shown`` are (prompt, response) of demonstrations,
    ``labels`` (prompt, response, good), ``suspicious`` a column that may not be passed over.
    """

    rows: list[dict[str, Any]]
    options: dict[str, str] = field(default_factory=dict)
    pairs: set[tuple[str, str, str]] = field(default_factory=set)
    shown: set[tuple[str, str]] = field(default_factory=set)
    labels: set[tuple[str, str, bool]] = field(default_factory=set)
    ties: int = 0
    suspicious: str | None = None
    complete: bool = False

    def named(self, role: str, column: str) -> None:
        before = self.options.get("columns")
        self.options["columns"] = f"{before},{role}={column}" if before else f"{role}={column}"


def said(prompt: Any) -> str:
    """A prompt as one text: the turns after each other, roles before them."""
    if isinstance(prompt, str):
        return f"user: {prompt}"
    return " / ".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


@st.composite
def texts(draw, tag: str) -> str:
    """A text of a few words that no other row has."""
    return " ".join([tag, *draw(st.lists(WORDS, min_size=1, max_size=4))])


def in_dialect(turns: list[dict[str, str]], dialect: str) -> Any:
    """Messages as a data set writes them."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    plain = [dict(turn) for turn in turns]
    shapes = {
        "role": plain,
        "from": [{"from": names[t["role"]], "value": t["content"]} for t in turns],
        "parts": [{"role": t["role"], "content": [{"type": "text", "text": t["content"]}]} for t in turns],
        "json": json.dumps(plain, ensure_ascii=False),
        "repr": repr(plain),
    }
    return shapes[dialect]


def in_template(turns: list[dict[str, str]], family: str, opened: bool) -> str:
    """Messages as a model's template writes them out."""
    begin, end = {
        "ChatML": ("<|im_start|>{}\n", "<|im_end|>\n"),
        "Llama 3": ("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
        "Gemma": ("<start_of_turn>{}\n", "<end_of_turn>\n"),
        "Zephyr": ("<|{}|>\n", "</s>\n"),
    }[family]
    role = {"assistant": "model"} if family == "Gemma" else {}
    text = "".join(begin.format(role.get(t["role"], t["role"])) + t["content"] + end for t in turns)
    return text + (begin.format(role.get("assistant", "assistant")) if opened else "")


PLACES = ["text", "messages", "marks", "template", "nested", "joined"]


@st.composite
def prompts(draw, case: Case, count: int, may_be_messages: bool = True) -> list[str]:
    """Puts a prompt into each row; returns what each asks, as ``said`` writes it."""
    place = draw(st.sampled_from(PLACES if may_be_messages else ["text", "nested", "joined"]))
    column = draw(st.sampled_from(PROMPT_COLUMNS))
    dialect = draw(st.sampled_from(["role", "from", "parts", "json", "repr"]))
    family = draw(st.sampled_from(["ChatML", "Llama 3", "Gemma", "Zephyr"]))
    longer = draw(st.booleans())
    with_system = draw(st.booleans()) if place in ("text", "nested") else False
    found = []
    for i in range(count):
        asked = draw(texts(f"Ask {i}"))
        turns = [{"role": "user", "content": asked}]
        if longer:
            turns = [
                {"role": "user", "content": f"Before {i}"},
                {"role": "assistant", "content": f"Well {i}"},
                *turns,
            ]
        row = case.rows[i]
        if place == "text":
            row[column] = asked
        elif place == "messages":
            row[column] = in_dialect(turns, dialect)
        elif place == "marks":
            speaker = {"user": "Human", "assistant": "Assistant"}
            row[column] = (
                "".join(f"\n\n{speaker[t['role']]}: {t['content']}" for t in turns) + "\n\nAssistant:"
            )
        elif place == "template":
            row[column] = in_template(turns, family, opened=True)
        elif place == "nested":
            row["info"] = {"post": asked, "title": "T"}
        else:
            row["instruction"], row["input"] = asked, f"More {i}" if i % 2 else ""
        if place == "joined" and i % 2:
            turns = [{"role": "user", "content": f"{asked}\n\nMore {i}"}]
        elif place in ("text", "nested", "joined"):
            turns = [{"role": "user", "content": asked}]
        if with_system:
            row["system"] = f"Be kind {i}" if i % 2 else ""
            turns = [{"role": "system", "content": row["system"]}, *turns] if row["system"] else turns
        found.append(said(turns))
    path = {"nested": "info.post", "joined": "instruction+input"}.get(place, column)
    if case.complete or place in ("nested", "joined"):
        case.named("prompt", path)
    return found


@st.composite
def compared(draw) -> Case:
    """Two responses a row, and who won in one of many codings."""
    count = draw(st.integers(3, 7))
    case = Case([{} for _ in range(count)], complete=draw(st.booleans()))
    asked = draw(prompts(case, count))
    first, second = draw(st.sampled_from(FAMILIES))
    coding = draw(st.sampled_from(CODINGS))
    column = draw(st.sampled_from([c for c in WINNER_COLUMNS if c not in case.rows[0]]))
    dialect = draw(st.sampled_from(["plain", "plain", "role", "from", "json"]))
    if (first, column) == ("response1", "overall_preference"):  # HelpSteer3's, whose coding is known
        column = "verdict"
    columns: list[str] = []
    for i, row in enumerate(case.rows):
        a, b = draw(texts(f"A{i}")), draw(texts(f"B{i}"))
        outcome = draw(st.sampled_from([1, -1, 0]))  # who is better: a, b, nobody
        if coding in ("flag", "flag(1=b)", "index0") and outcome == 0:
            outcome = 1
        if coding == "index1" and first.endswith("0") and outcome == 0:
            outcome = 1  # 0 is the place of the first response whose name counts from 0
        if coding == "index0(tie=2)" and i == 0:
            outcome = 1  # 1 and 2 alone would be places from 1 to everybody
        for name, text in ((first, a), (second, b)):
            row[name] = (
                text if dialect == "plain" else in_dialect([{"role": "assistant", "content": text}], dialect)
            )
        values = label(coding, outcome, column, draw(st.integers(1, 3)))
        row |= values
        columns = list(values)
        if outcome:
            case.pairs.add((asked[i], a, b) if outcome == 1 else (asked[i], b, a))
        case.ties += outcome == 0
    if case.complete:
        case.named("response_a", first)
        case.named("response_b", second)
        named = {"letters": "word", "arrows": "word"}.get(coding, coding)
        case.options["winner"] = f"{','.join(columns)}:{named}"
    return case


def label(coding: str, outcome: int, column: str, size: int) -> dict[str, Any]:
    """The columns that say who won."""
    place = {1: 0, -1: 1, 0: 2}[outcome]
    if coding == "onehot":
        return {
            f"{column}_a": int(place == 0),
            f"{column}_b": int(place == 1),
            f"{column}_tie": int(place == 2),
        }
    if coding in ("scores", "rank"):
        better = 1 if coding == "scores" else -1
        stem = "score" if coding == "scores" else "rank"
        return {f"{stem}_{s}": 2.5 + sign * better * outcome * size / 4 for s, sign in (("a", 1), ("b", -1))}
    sides = {
        "index0": [0, 1, None],
        "index1": [1, 2, 0],
        "index0(tie=2)": [0, 1, 2],
        "flag": [True, False, None],
        "flag(1=b)": [0, 1, None],
        "strength(-3..3, negative=a)": [-size, size, 0],
        "strength(negative=b)": [size / 2, -size / 2, 0],
        "word": ["model_a", "model_b", "tie (bothbad)"],
        "letters": ["A", "B", "tie"],
        "arrows": ["A>B", "B>>A", "A=B"],
        "probability(a)": [0.5 + size / 10, 0.5 - size / 10, 0.5],
        "probability(b)": [0.5 - size / 10, 0.5 + size / 10, 0.5],
        "scale(1..2)": [1 + size / 10, 2 - size / 10, 1.5],
    }
    return {column: sides[coding][place]}


@st.composite
def paired(draw) -> Case:
    """``chosen`` and ``rejected``: with a prompt, or as whole dialogues."""
    count = draw(st.integers(3, 7))
    case = Case([{} for _ in range(count)], complete=True)
    good, bad = draw(st.sampled_from([("chosen", "rejected"), ("good", "bad"), ("response_j", "response_k")]))
    whole = draw(st.booleans())
    dialect = draw(
        st.sampled_from(
            ["role", "from", "parts", "json", "repr", "marks", "ChatML", "Llama 3", "Gemma", "Zephyr"]
        )
    )
    asked = [] if whole else draw(prompts(case, count))
    repeated = not whole and draw(st.booleans())
    for i, row in enumerate(case.rows):
        a, b = draw(texts(f"A{i}")), draw(texts(f"B{i}"))
        turns = [{"role": "user", "content": f"Ask {i} again"}]
        for name, text in ((good, a), (bad, b)):
            both = [*turns, {"role": "assistant", "content": text}]
            if not whole:
                row[name] = text
            elif dialect == "marks":
                row[name] = f"\n\nHuman: Ask {i} again\n\nAssistant: {text}"
            elif dialect in ("role", "from", "parts", "json", "repr"):
                row[name] = in_dialect(both, dialect)
            else:
                row[name] = in_template(both, dialect, opened=False)
        case.pairs.add((said(turns) if whole else asked[i], a, b))
    plain = [c for c in case.rows[0] if c in PROMPT_COLUMNS and isinstance(case.rows[0][c], str)]
    if (
        repeated
        and len(plain) == 1
        and "system" not in case.rows[0]
        and case.rows[0][plain[0]].startswith("Ask")
    ):
        for row in case.rows:
            row[good], row[bad] = (f"{row[plain[0]]} {row[name]}" for name in (good, bad))
        case.pairs = {(p, f" {a}", f" {b}") for p, a, b in case.pairs}
    case.named("chosen", good)
    case.named("rejected", bad)
    return case


@st.composite
def rated(draw) -> Case:
    """Ratings of single responses, several rows a prompt, by one of them or a weighted sum."""
    count = draw(st.integers(2, 5))
    case = Case([{} for _ in range(count)], complete=True)
    asked = draw(prompts(case, count))
    column = draw(st.sampled_from(["response", "completion", "answer_text"]))
    weighted = draw(st.booleans())
    rows = []
    for i, row in enumerate(case.rows):
        scores = []
        for k in range(draw(st.integers(2, 4))):
            text, one, two = draw(texts(f"R{i} {k}")), draw(st.integers(0, 4)), draw(st.integers(0, 4))
            scores.append((2 * one - two if weighted else one, text))
            rows.append({**row, column: text, "helpfulness": one, "verbosity": two})
        case.pairs |= {(asked[i], a, b) for x, a in scores for y, b in scores if x > y}
        case.ties += len({score for score, _ in scores}) == 1
    case.rows = rows
    case.named("completion", column)
    case.options["winner"] = "2*helpfulness + -1*verbosity" if weighted else "helpfulness"
    if not weighted:
        case.named("unused", "verbosity")
    return case


@st.composite
def labelled(draw) -> Case:
    """Unpaired good and bad labels."""
    count = draw(st.integers(3, 7))
    case = Case([{} for _ in range(count)], complete=True)
    asked = draw(prompts(case, count))
    words = draw(
        st.sampled_from(
            [(True, False), (1, 0), ("True", "False"), ("thumbs_up", "thumbs_down"), ("good", "bad")]
        )
    )
    for i, row in enumerate(case.rows):
        text, good = draw(texts(f"R{i}")), draw(st.booleans())
        row |= {"completion": text, "label": words[0] if good else words[1]}
        case.labels.add((asked[i], text, good))
    case.named("completion", "completion")
    case.named("label", "label")
    return case


@st.composite
def demonstrated(draw) -> Case:
    """Demonstrations: a prompt and a response, or messages."""
    count = draw(st.integers(3, 7))
    case = Case([{} for _ in range(count)], complete=True)
    if draw(st.booleans()):
        column = draw(st.sampled_from(["messages", "conversations", "dialog"]))
        dialect = draw(st.sampled_from(["role", "from", "parts", "json", "repr"]))
        for i, row in enumerate(case.rows):
            text = draw(texts(f"R{i}"))
            turns = [{"role": "user", "content": f"Ask {i}"}]
            row[column] = in_dialect([*turns, {"role": "assistant", "content": text}], dialect)
            case.shown.add((said(turns), text))
        case.named("messages", column)
        return case
    asked = draw(prompts(case, count))
    column = draw(st.sampled_from(["completion", "response", "output", "reply_text"]))
    for i, row in enumerate(case.rows):
        row[column] = draw(texts(f"R{i}"))
        case.shown.add((asked[i], row[column]))
    case.named("completion", column)
    return case


@st.composite
def cases(draw) -> Case:
    """Any layout, with columns beside it that mean nothing or must not be passed over."""
    case = draw(st.one_of(compared(), compared(), paired(), rated(), labelled(), demonstrated()))
    for name in draw(st.lists(st.sampled_from(sorted(HARMLESS)), max_size=2, unique=True)):
        for row in case.rows:
            row.setdefault(name, HARMLESS[name])
    if draw(st.integers(0, 4)) == 0:
        name = draw(st.sampled_from(sorted(SUSPICIOUS)))
        if not any(
            name in row or any(name in str(value) for value in case.options.values()) for row in case.rows
        ):
            case.suspicious = name
            for i, row in enumerate(case.rows):
                row[name] = SUSPICIOUS[name][i % 2]
    return case
