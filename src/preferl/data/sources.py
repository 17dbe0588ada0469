"""A data set by name, ready for every stage: demonstrations, prompts and comparisons, split.

Each stage loads the source for itself; splits come from the data set or from a hash of the prompt
(``splits``), so all stages agree without handing files around. ``world`` is the embedded world; everything
else is read by ``formats``.
"""

import dataclasses
import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from preferl import world
from preferl.data import containers, copies, formats
from preferl.data.columns import Options
from preferl.data.files import Row, Table
from preferl.data.own_pairs import own_pairs
from preferl.data.rated import comparisons_by, labelled_comparisons
from preferl.data.records import (
    SPLITS,
    Comparison,
    DataError,
    Demonstration,
    Pair,
    Prompt,
    PromptRecord,
    Rated,
    ToolDialogue,
    UserTurn,
    prompt_key,
)
from preferl.data.splits import SHARES, Splits, check_shares, counts, divide, meaning, normalised
from preferl.data.texts import passages

# Columns that name what kind of prompt a row has; the first that tells the rows apart is taken.
PROMPT_CATEGORIES = ("category", "subset", "family", "task")
MOST_CATEGORIES = 40
# Data sets of preferl's own pairs, by the set that trains.
OWN_PAIRS = {"world:demonstration": "demonstration", "world:analysis": "analysis"}

# What the rows of a part are, by their attributes there.
KINDS = ("prompts", "demonstrations", "comparisons", "rated")

Record = TypeVar("Record", Demonstration, Comparison, Rated, PromptRecord)


@dataclass(frozen=True)
class Part:
    """The rows of one split. ``prompts`` are distinct."""

    prompts: list[PromptRecord] = field(default_factory=list)
    demonstrations: list[Demonstration] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    rated: list[Rated] = field(default_factory=list)

    @property
    def pairs(self) -> list[Pair]:
        """Every ordered pair of the comparisons."""
        return [pair for comparison in self.comparisons for pair in comparison.pairs()]


@dataclass(frozen=True)
class Source:
    """What a data set offers.

    Args:
        name: of the data set.
        parts: the rows of ``train``, ``dev``, ``rl`` and ``eval``.
        notes: what was read, what was left out, and how it is split, in sentences.
        categories: prompt -> what kind of prompt it is, where the data set says so.
        well_formed: whether a response to a prompt is one of the data set's language, where that is known.
        named: what makes the part of each split by the data set's own name, and of ``all`` rows.
        dialogue: whether plain-text prompts are the user's turn, where that is settled; None for what the
            model says that reads them (``read_by``).
        asked: whether a person settled that.
    """

    name: str
    parts: dict[str, Part]
    notes: list[str] = field(default_factory=list)
    categories: dict[str, str] = field(default_factory=dict)
    well_formed: Callable[[str, str], bool] | None = None
    named: dict[str, Callable[[], Part]] = field(default_factory=dict)
    dialogue: bool | None = None
    asked: bool = False

    def __getitem__(self, split: str) -> Part:
        return self.parts[split]

    @property
    def train(self) -> Part:
        return self.parts["train"]

    @property
    def dev(self) -> Part:
        return self.parts["dev"]

    @property
    def eval(self) -> Part:
        return self.parts["eval"]

    @property
    def prompts(self) -> list[PromptRecord]:
        """The prompts to train a policy on: of the rows that are marked ``rl``, else of those that train."""
        return self.parts["rl"].prompts or self.train.prompts

    def own(self, split: str) -> Part:
        """The rows of a split that are no other's: none where it is measured on rows that train."""
        return Part() if split != "train" and self[split] is self.train else self[split]

    def category(self, prompt: Prompt) -> str | None:
        """What kind of prompt it is, where the data set says so."""
        return self.categories.get(prompt_key(prompt))

    def references(self, split: str) -> dict[str, str]:
        """The data set's own response to each prompt of a split (the first one), by ``prompt_key``."""
        found: dict[str, str] = {}
        for d in self[split].demonstrations:
            if d.response.strip() and not d.columns.get("passage"):
                found.setdefault(prompt_key(d.prompt), d.response)
        return found

    def need(self, kind: str, split: str) -> list:
        """The records of a kind in a split.

        Args:
            kind: prompts, demonstrations, comparisons, pairs or rated.
            split: its name.

        Raises:
            DataError: there are none.
        """
        found = getattr(self[split], kind)
        if not found:
            raise DataError(self.missing(kind, split))
        return found

    def missing(self, kind: str, split: str) -> str:
        """Says that a split has no records of a kind, and what to do."""
        there = [name for name, part in self.parts.items() if getattr(part, kind)]
        text = f"data set '{self.name}' has no {kind}"
        if not there:
            kinds = [k for k in KINDS if any(getattr(part, k) for part in self.parts.values())]
            has = f"it has {' and '.join(kinds)}" if kinds else "it has no rows"
            return f"{text}: {has} ({'; '.join(self.notes)}). Give a data set with {kind}, see docs/data.md"
        return (
            f"{text} in the split '{split}', only in {' and '.join(there)} ({'; '.join(self.notes)}). Mark "
            f"rows as {split} in a column `split`, let --split_shares give {split} a share of a data set "
            f"without such a column (--split_by row where few prompts have many rows), or take other rows "
            f"with --split"
        )

    def training_on(self, split: str | None) -> "Source":
        """The same where a split that was asked for (``all`` for every row) is what trains.

        Raises:
            DataError: there is no such split.
        """
        if split is None:
            return self
        chosen = self._chosen(split)
        note = f"trains on the rows of '{split}'"
        if split in ("all", "dev", "eval"):
            note += "; what is measured on dev or eval is measured on rows that trained"
        return dataclasses.replace(
            self, parts=self.parts | {"train": chosen, "rl": Part()}, notes=[*self.notes, note]
        )

    def also_training_on(self, other: "Source") -> "Source":
        """The same with the comparisons that another data set trains on behind its own.

        Raises:
            DataError: there are none.
        """
        more = other.need("comparisons", "train")
        train = dataclasses.replace(self.train, comparisons=[*self.train.comparisons, *more])
        note = f"trains on {len(more):,} comparisons of {other.name} too"
        # What is measured on the rows that train is so still.
        parts = {name: train if part is self.train else part for name, part in self.parts.items()}
        return dataclasses.replace(self, parts=parts, notes=[*self.notes, note])

    def ranked_by_ratings(self, weights: Mapping[str, float]) -> "Source":
        """The same where the responses to each prompt are compared by their ratings, mixed with these
        weights; a response without one of these ratings takes no part."""

        def mixed(row: Rated) -> float | None:
            if any(name not in row.ratings for name in weights):
                return None
            return sum(weight * row.ratings[name] for name, weight in weights.items())

        made: dict[int, Part] = {}
        for part in self.parts.values():
            if id(part) not in made:  # a split that is measured on what trains is the same part still
                made[id(part)] = dataclasses.replace(part, comparisons=comparisons_by(part.rated, mixed))
        return dataclasses.replace(self, parts={name: made[id(part)] for name, part in self.parts.items()})

    def measured_on(self, split: str | None) -> "Source":
        """The same where a split that was asked for (``all`` for every row) is what is measured.

        Raises:
            DataError: there is no such split.
        """
        if split is None:
            return self
        note = f"measured on the rows of '{split}'"
        return dataclasses.replace(
            self, parts=self.parts | {"eval": self._chosen(split)}, notes=[*self.notes, note]
        )

    def read_by(self, instruct: bool, unread: Callable[[Prompt], str | None]) -> "Source":
        """The same as a model reads it: plain-text prompts as the user's turn where it has a chat template of
        its own and nothing else was asked for; and without the rows that its template cannot write.

        Args:
            instruct: whether the model has a chat template of its own.
            unread: what of a prompt the template would pass over, in words; None where it writes all of it.

        Raises:
            DataError: nothing is left.
        """
        change = RowsFor(instruct and self.dialogue is None, unread)
        parts: dict[int, Part] = {}
        for part in self.parts.values():
            if id(part) not in parts:  # of few rows dev and eval are the very rows that train
                parts[id(part)] = change(part)
        found = {name: parts[id(part)] for name, part in self.parts.items()}
        notes = change.notes()
        if not notes:
            return self
        if not any(part != Part() for part in found.values()):
            raise DataError(f"no row of '{self.name}' is left: {'; '.join(notes)}")
        return dataclasses.replace(
            self,
            parts=found,
            notes=[*self.notes, *notes],
            categories={turn_key(key): name for key, name in self.categories.items()}
            if change.turns
            else self.categories,
            named={name: functools.partial(changed, make, change) for name, make in self.named.items()},
        )

    def _chosen(self, split: str) -> Part:
        if split in self.named:
            return self.named[split]()
        if split not in self.parts:
            there = [name for name, part in self.parts.items() if self.own(name) != Part()]
            names = list(dict.fromkeys([*there, *self.named]))
            raise DataError(f"data set '{self.name}' has no split '{split}'; it has {', '.join(names)}")
        return self[split]


class RowsFor:
    """Makes the rows of a part those that a model reads (``Source.read_by``), and counts what it did."""

    def __init__(self, turns: bool, unread: Callable[[Prompt], str | None]):
        self.turns, self.unread = turns, unread
        self.turned = 0
        self.left_out: Counter[str] = Counter()

    def __call__(self, part: Part) -> Part:
        return Part(
            prompts=self._rows(part.prompts),
            demonstrations=self._rows(part.demonstrations),
            comparisons=self._rows(part.comparisons),
            rated=self._rows(part.rated),
        )

    def _rows(self, records: list[Record]) -> list[Record]:
        found = []
        for record in records:
            reason = self.unread(record.prompt)
            if reason is not None:
                self.left_out[reason] += 1
            elif self.turns and isinstance(record.prompt, str):
                self.turned += 1
                found.append(dataclasses.replace(record, prompt=UserTurn(record.prompt, by_template=True)))
            else:
                found.append(record)
        return found

    def notes(self) -> list[str]:
        """What was done, in sentences."""
        notes = []
        if self.turned:
            notes.append(
                "plain-text prompts are read as the user's turn, since the model has a chat template "
                "(--as_dialogue false keeps them bare)"
            )
        for reason, count in self.left_out.items():
            notes.append(f"left out {count:,} rows: the model's chat template does not write {reason}")
        return notes


def changed(make: Callable[[], Part], change: RowsFor) -> Part:
    return change(make())


def turn_key(key: str) -> str:
    """The ``prompt_key`` of a user's turn from that of its text; that of messages as it is."""
    if key.startswith("["):
        return key
    return prompt_key(UserTurn(key.removeprefix("text:")))


# ------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Entry:
    """What one row gives: its record, what of it can be imitated, what is asked in it (with all its other
    columns), and the split that the data set gives it."""

    record: Any
    demonstrations: list[Demonstration]
    asked: PromptRecord
    own: str | None


def load_source(
    name: str | Table | Source,
    dataset_format: str = "auto",
    max_rows: int | None = None,
    opening_words: int = 12,
    max_response_words: int | None = None,
    max_prompt_words: int | None = None,
    as_dialogue: bool | None = None,
    bad_rows: str = "default",
    split_shares: Sequence[float] = SHARES,
    split_by: str = "prompt",
    seed: int = 0,
    columns: str | Mapping[str, Any] | None = None,
    winner: str | None = None,
    layout: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
    near_copies: str = "auto",
) -> Source:
    """Reads a data set and splits it.

    Args:
        name: ``world``, ``world:demonstration`` or ``world:analysis`` (preferl's own pairs), a stage's
            directory (its ``data/``), a Hub name, a file, a folder, or rows in memory. A source that was
            loaded before is it already.
        dataset_format: ``auto``, or one of ``formats.KINDS``.
        max_rows: read at most this many rows.
        opening_words: a plain text is cut into prompt and response after so many words.
        max_response_words: a plain text's response ends with the last sentence that fits.
        max_prompt_words: leave longer prompts out.
        as_dialogue: read a plain-text prompt as the user's turn; None for what ``Source.read_by`` is told.
            Plain texts and their openings never are one.
        bad_rows: ``default``, ``skip`` or ``error``.
        split_shares: of train, dev and eval, where the data set has no splits of its own.
        split_by: ``prompt``, or ``row``: rows with one prompt may come into several splits.
        seed: of the embedded world.
        columns: which column is what, as ``--columns`` takes it.
        winner: what says which response won, as ``--winner`` takes it.
        layout: of the table, or a YAML file that adds to it.
        config_name: of a data set that has several configurations.
        revision: of a data set of the Hub.
        near_copies: ``auto``, ``always`` or ``never``.

    Raises:
        DataError: no such data set, rows that the policy does not allow, or an option it does not know.
    """
    if isinstance(name, Source):
        return name
    if isinstance(name, str):
        name = containers.named(name, config=config_name, revision=revision)
    if name == "world":
        return world_source(seed)
    if isinstance(name, str) and name.startswith("world:"):
        check_choice("dataset_name", name, ("world", *OWN_PAIRS))
        return own_pairs_source(name)
    check_choice("dataset_format", dataset_format, ("auto", *formats.KINDS))
    check_choice("split_by", split_by, ("prompt", "row"))
    check_choice("near_copies", near_copies, ("auto", "always", "never"))
    check_shares(split_shares)
    options = Options(columns=columns, winner=winner, layout=layout)
    loaded = formats.load(name, dataset_format, policy_of(bad_rows), max_rows, options)
    kind = loaded.report.kind
    notes = [loaded.report.summary(), *loaded.report.notes]
    entries = [
        entry_of(kind, record, row, loaded.report.answer)
        for record, row in zip(loaded.records, loaded.rows, strict=True)
    ]
    if kind == "rated":
        labels = [entry.record.good for entry in entries]
        if any(label is not None for label in labels):
            good = sum(label is not False for label in labels)
            notes.append(
                f"{good} of {len(entries)} rated responses are demonstrations; the others are called bad"
            )
        else:
            notes.append(f"{len(entries)} rated responses, demonstrations whatever their ratings")
        both = labelled_comparisons([entry.record for entry in entries])
        if both:
            prompts = len({prompt_key(comparison.prompt) for comparison in both})
            pairs = sum(len(comparison.pairs()) for comparison in both)
            notes.append(f"{prompts} prompts have good and bad responses: {pairs} pairs")
    if kind == "text":
        cut = [in_passages(entry, opening_words, max_response_words) for entry in entries]
        kept = [entry for entry in cut if entry]
        count = sum(len(entry.demonstrations) for entry in kept)
        notes.append(
            f"{len(entries)} texts in {count} passages; left out {len(entries) - len(kept)} texts: no "
            f"sentence ends in the words after the opening"
        )
        entries = kept
    if max_prompt_words is not None:
        fitting = [entry for entry in entries if word_count(entry.asked.prompt) <= max_prompt_words]
        notes.append(
            f"left out {len(entries) - len(fitting)} of {len(entries)} rows: "
            f"prompt over {max_prompt_words} words"
        )
        entries = fitting
    asked = as_dialogue is not None and kind != "text"
    if kind == "text":
        if as_dialogue:
            notes.append("the openings of texts are no user's turns, whatever as_dialogue says")
        as_dialogue = False
    if as_dialogue:
        entries = [as_user_turn(entry) for entry in entries]
    splits = divide(
        keys_of(entries, split_by),
        [entry.own for entry in entries],
        split_shares,
        complete=formats.written_by_us(str(name)),
        unit=split_by,
    )
    parts, named = parts_of(entries, splits, kind)
    notes.append(describe_splits(splits))
    if not formats.written_by_us(str(name)):
        prompts = keys_of(entries, "prompt")
        notes += copies.contained(prompts, [entry.own for entry in entries])
        notes += copies.across_splits(prompts, splits.names, near_copies).sentences()
    categories = categories_of(entries)
    return Source(str(name), parts, notes, categories, named=named, dialogue=as_dialogue, asked=asked)


def load_beside(option: str, **arguments: Any) -> Source:
    """Reads a data set that stands beside the one of ``dataset_name``.

    Args:
        option: that names it, for messages.
        arguments: of ``load_source``.

    Raises:
        DataError: as ``load_source``.
    """
    try:
        return load_source(**arguments)
    except DataError as error:
        if not re.search(r"--(columns|winner|dataset_format|config_name)\b", str(error)):
            raise
        raise DataError(
            f"{option}: {error} (such options speak of dataset_name alone; write this data set in our "
            f"columns with them, `preferl data convert {arguments['name']} OUT.jsonl …`, and name that file)"
        ) from error


def policy_of(bad_rows: str) -> dict[str, str]:
    """What ``--bad_rows`` means for every kind of defect."""
    check_choice("bad_rows", bad_rows, ("default", "skip", "error"))
    return {} if bad_rows == "default" else {"*": bad_rows}


def check_choice(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise DataError(f"{option} '{value}' is unknown; use {', '.join(known)}")


def entry_of(kind: str, record: Any, row: Row, answer: str | None = None) -> Entry:
    """A record with what else its row gives.

    Args:
        kind: of the record.
        record: what was read.
        row: what it was read from, in our columns.
        answer: what the file calls its column of completions: reward functions see it by that name too.
    """
    columns = record.columns
    record = with_tools(record)
    # What can be imitated: of several responses the best one, and none that is called bad.
    demonstrations: list[Demonstration] = []
    if isinstance(record, Comparison):
        demonstrations = [Demonstration(record.prompt, record.best(), columns)]
    elif isinstance(record, Rated):
        if record.good is not False:
            demonstrations = [Demonstration(record.prompt, record.response, columns)]
    elif isinstance(record, Demonstration):
        demonstrations = [record]
    assert isinstance(row.value, dict)
    other_columns = {name: value for name, value in row.value.items() if name != "prompt"}
    if answer is not None and "completion" in row.value:
        other_columns[answer] = row.value["completion"]
    own = columns.get("split")
    return Entry(
        record=record,
        demonstrations=demonstrations,
        asked=PromptRecord(record.prompt, other_columns),
        own=own if isinstance(own, str) else row.split,
    )


def with_tools(record: Record) -> Record:
    """A record whose messages know the ``tools`` of its row, a list or its JSON."""
    tools = record.columns.get("tools")
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            return record
    if not tools or not isinstance(tools, list) or not isinstance(record.prompt, list):
        return record
    return dataclasses.replace(record, prompt=ToolDialogue(record.prompt, tools))


def in_passages(entry: Entry, opening_words: int, max_response_words: int | None) -> Entry | None:
    """A plain text as demonstrations one after the other; None where no sentence ends after the opening."""
    if entry.record.prompt:  # a dialogue that the text wrote down
        return entry
    pieces = passages(entry.record, opening_words, max_response_words)
    if not pieces:
        return None
    asked = PromptRecord(pieces[0].prompt, entry.asked.columns)
    return dataclasses.replace(entry, demonstrations=pieces, asked=asked)


def as_user_turn(entry: Entry) -> Entry:
    """The same where plain-text prompts became the user's turn."""
    return dataclasses.replace(
        entry,
        record=dialogue(entry.record),
        demonstrations=[dialogue(d) for d in entry.demonstrations],
        asked=dialogue(entry.asked),
    )


def keys_of(entries: Sequence[Entry], split_by: str) -> list[str]:
    """What decides about each row's split: its prompt, or all of it."""
    prompts = [normalised(entry.asked.prompt) for entry in entries]
    if split_by == "prompt":
        return prompts
    rows = [json.dumps(entry.asked.columns, sort_keys=True, default=str) for entry in entries]
    return [f"{prompt}\n{row}" for prompt, row in zip(prompts, rows, strict=True)]


def parts_of(
    entries: Sequence[Entry], splits: Splits, kind: str
) -> tuple[dict[str, Part], dict[str, Callable[[], Part]]]:
    """The rows of our four splits, and what makes the part of each split by the data set's own name."""
    ours: dict[str, list[Entry]] = {name: [] for name in SPLITS}
    own: dict[str, list[Entry]] = {}
    for entry, name in zip(entries, splits.names, strict=True):
        if name in ours:
            ours[name].append(entry)
        # What was taken out of a data set's train rows is no longer among them.
        if entry.own:
            stayed = name == (meaning(entry.own) or entry.own)
            if stayed or not splits.keeps_own:
                own.setdefault(entry.own, []).append(entry)
    parts = {name: part_of(rows, kind) for name, rows in ours.items()}
    for name in splits.on_train:
        parts[name] = parts["train"]
    own.setdefault("all", list(entries))
    return parts, {name: functools.partial(part_of, rows, kind) for name, rows in own.items()}


def describe_splits(splits: Splits) -> str:
    """How many rows each split has and what divided them, in a sentence."""
    sentence = f"split: {counts(splits)} ({splits.how})"
    if splits.on_train:
        sentence += f"; {' and '.join(splits.on_train)} measured on rows that train"
    others = sorted(set(splits.names) - set(SPLITS))
    if others:
        sentence += f"; the rows of {', '.join(others)} are used where --split names them"
    return sentence


def part_of(entries: Sequence[Entry], kind: str) -> Part:
    """One split's rows."""
    records = [entry.record for entry in entries]
    ranked = kind in ("preference", "ranking")
    return Part(
        prompts=distinct(entry.asked for entry in entries),
        demonstrations=[d for entry in entries for d in entry.demonstrations],
        comparisons=labelled_comparisons(records) if kind == "rated" else records if ranked else [],
        rated=records if kind == "rated" else [],
    )


def categories_of(entries: Sequence[Entry]) -> dict[str, str]:
    """Prompt -> category, by the first of ``PROMPT_CATEGORIES`` that every row has and that varies."""
    for column in PROMPT_CATEGORIES:
        values = [entry.record.columns.get(column) for entry in entries]
        if all(isinstance(v, str) and v for v in values) and 2 <= len(set(values)) <= MOST_CATEGORIES:
            return {prompt_key(e.asked.prompt): str(v) for e, v in zip(entries, values, strict=True)}
    return {}


def distinct(records: Iterable[PromptRecord]) -> list[PromptRecord]:
    """Each prompt once, in the order in which they came, with the columns of its first row."""
    seen: dict[str, PromptRecord] = {}
    for record in records:
        seen.setdefault(prompt_key(record.prompt), record)
    return list(seen.values())


def dialogue(record: Record) -> Record:
    """A record whose plain-text prompt became the user's turn."""
    if not isinstance(record.prompt, str):
        return record
    return dataclasses.replace(record, prompt=UserTurn(record.prompt))


def word_count(prompt: Prompt) -> int:
    if isinstance(prompt, str):
        return len(prompt.split())
    return sum(len(message["content"].split()) for message in prompt)


# ----------------------------------------------------------------------------------------------- the world


def world_source(seed: int = 0) -> Source:
    """The embedded world: its SFT corpus, and its prompts in four splits."""
    parts = {split: Part() for split in SPLITS}
    categories = {}
    for prompt in world.shuffled_prompts(seed):
        message: Prompt = [{"role": "user", "content": prompt.text}]
        parts[prompt.split].prompts.append(PromptRecord(message))
        categories[prompt_key(message)] = prompt.family
    for split in ("train", "dev", "eval"):
        for prompt, response in world.sft_corpus(seed, split=split):
            message = [{"role": "user", "content": prompt.text}]
            parts[split].demonstrations.append(Demonstration(message, response, {}))
    count = sum(len(part.prompts) for part in parts.values())
    note = f"the embedded world: {count} prompts, {len(parts['train'].demonstrations)} demonstrations"

    def everything() -> Part:
        whole = Part()
        for part in parts.values():
            whole.prompts.extend(part.prompts)
            whole.demonstrations.extend(part.demonstrations)
        return whole

    return Source("world", parts, [note], categories, world.well_formed, {"all": everything})


def own_pairs_source(name: str) -> Source:
    """Pairs of preferl's own: a set that trains, and the four unseen ones as dev and as eval."""
    pairs = {"train": own_pairs(OWN_PAIRS[name])} | dict.fromkeys(("dev", "eval"), own_pairs("unseen"))
    parts = {"rl": Part()}
    for split, rows in pairs.items():
        parts[split] = Part(
            prompts=[PromptRecord(pair.prompt) for pair in rows],
            demonstrations=[Demonstration(pair.prompt, pair.chosen, {}) for pair in rows],
            comparisons=[pair.comparison() for pair in rows],
        )
    note = (
        f"pairs of preferl's own: {len(pairs['train'])} train, {len(pairs['eval'])} others are dev and eval"
    )
    categories = {prompt_key(p.prompt): p.columns["category"] for rows in pairs.values() for p in rows}
    return Source(name, parts, [note], categories)
