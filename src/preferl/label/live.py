"""What happens beside the pages while people label: simulated annotators judge the same items, a policy
writes new ones, reward models are trained on what has come in and say which items are worth a label next.

Each is a command of its own over the project's database; the pages need none of them and load no model.
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from sqlalchemy import func, select

from preferl.data import sources
from preferl.data.files import write_rows
from preferl.data.records import Comparison, PromptRecord
from preferl.data.rows import ranking_row
from preferl.judging.annotators import Annotator, load_annotator
from preferl.judging.judges import PairwiseJudge
from preferl.judging.scorers import Ensemble, load_scorer, scored
from preferl.label import export
from preferl.label.accounts import Account, Accounts
from preferl.label.answers import Answer
from preferl.label.judgements import Item, read_items, read_judgements
from preferl.label.project import read_project
from preferl.label.queue import order_for
from preferl.label.schema import DATABASE, assignments, items
from preferl.label.store import Store
from preferl.models.load import load_tokenizer, read_by
from preferl.options.collect import MOST_RESPONSES
from preferl.options.judging import AnnotatorOptions
from preferl.options.shared import DataOptions, DeviceOptions, SamplingOptions, TemplateOptions
from preferl.runs import devices
from preferl.runs.descent import with_data_set
from preferl.runs.errors import UsageError
from preferl.runs.progress import say
from preferl.runs.ranges import Count, Natural, Range, Several
from preferl.sampling.policy import Policy
from preferl.stages import collect, reward

PAUSE_SECONDS = 5.0
MOST_BARREN = 20
# Strength 1, 2 or 3 by how sure a simulated annotator is of its choice.
STRENGTH_BOUNDS = (0.7, 0.9)
# Refitted models choose items; what is reported is trained by `preferl reward` on splits of its own.


@dataclass(kw_only=True)
class SimulateConfig(AnnotatorOptions, DeviceOptions):
    """Options of ``preferl label simulate``."""

    db: str = DATABASE
    """The project's database."""
    name: str = "simulated"
    """Name of the simulated annotator; the same name goes on where it stopped."""
    count: Natural = 0
    """Judge at most so many items; 0 for all."""


@dataclass(kw_only=True)
class FeedConfig(SamplingOptions, DataOptions, TemplateOptions, DeviceOptions):
    """Options of ``preferl label feed``."""

    db: str = DATABASE
    """The project's database."""
    model_name_or_path: str = "runs/rl"
    """Policy that writes the responses; loaded anew when its files change."""
    split: str | None = None
    """Which prompts of the data set to take."""
    num_generations: Annotated[int, Range(2, MOST_RESPONSES)] = 2
    """Responses to each prompt."""
    ahead: Count = 50
    """Items without any judgement to keep in store."""
    batch: Count = 16
    """Prompts to sample at once."""
    once: bool = False
    """Fill up once and stop."""


@dataclass(kw_only=True)
class RefitConfig(reward.RewardConfig):
    """Options of ``preferl label refit``: those of ``preferl reward``, and when to train."""

    db: str = DATABASE
    """The project's database."""
    output_dir: str = "runs/label"
    """Each training has a folder of its own in it, named after the number of judgements."""
    num_members: Several = 4
    """Members of the ensemble: items on which they disagree come first."""
    every: Count = 50
    """Train again after so many new judgements."""
    once: bool = False
    """Train once and stop."""


# ------------------------------------------------------------------------------------------------- simulating


def simulate(config: SimulateConfig, store: Store) -> None:
    """Lets a simulated annotator judge items that it has not judged."""
    with devices.prepared(config.seed, config.device, config.dtype, config.num_threads) as (device, _):
        _simulate(config, store, device)


def _simulate(config: SimulateConfig, store: Store, device: torch.device) -> None:
    if config.tie_policy == "skip":
        raise UsageError("tie_policy skip leaves pairs out; use coin or tie")
    annotator = load_annotator(config, config.seed, device)
    account = simulated_account(Accounts(store.database), config.name)
    with store.database.read() as connection:
        done = {j.item_id for j in read_judgements(connection) if j.annotator_id == account.id}
        left = [item for item in read_items(connection).values() if item.id not in done]
        seed = read_project(connection).seed
    chosen = [shown_to(item, account.id, seed) for item in left[: config.count or None]]
    pairs = [item for item in chosen if len(item.responses) == 2]
    rankings = [item for item in chosen if len(item.responses) > 2]
    rng = np.random.default_rng([config.seed, len(done)])
    answers = judge_pairs(annotator, pairs, rng)
    if rankings and not isinstance(annotator, Annotator):
        raise UsageError("a judge compares two responses; the project has items with more")
    answers += [(item.id, Answer(ranks=rank(annotator, item, rng))) for item in rankings]  # type: ignore[arg-type]
    say(f"label: {config.name} judged {store.record(account.id, answers)} items")


def simulated_account(accounts: Accounts, name: str) -> Account:
    """The simulated annotator of this name; added where there is none.

    Raises:
        UsageError: the name is a person's.
    """
    known = next((account for account in accounts.all() if account.name == name), None)
    if known is not None and known.kind != "sim":
        raise UsageError(f"'{name}' is a person; give the simulated annotator another --name")
    return known or accounts.add(name, kind="sim")


def shown_to(item: Item, annotator_id: int, seed: int) -> Item:
    """An item with its responses in the order in which this annotator is shown them."""
    order = order_for(seed, item.id, annotator_id, len(item.responses))
    return dataclasses.replace(item, responses=[item.responses[i] for i in order])


def judge_pairs(
    annotator: Annotator | PairwiseJudge, pairs: Sequence[Item], rng: np.random.Generator
) -> list[tuple[int, Answer]]:
    """Choices with strengths; pairs on which a judge said nothing readable are left out."""
    if not pairs:
        return []
    first, second = ([item.responses[side] for item in pairs] for side in (0, 1))
    judged = annotator([item.prompt for item in pairs], first, second, rng)
    answers = []
    for i, item in enumerate(pairs):
        if not judged.kept_N[i]:
            continue
        if judged.tied_N[i]:
            answers.append((item.id, Answer(ranks=[1, 1], strength=0)))
            continue
        first_wins = bool(judged.first_wins_N[i])
        probability = float(judged.probability_N[i])
        sure = probability if first_wins else 1 - probability
        strength = 1 + sum(sure >= bound for bound in STRENGTH_BOUNDS)
        ranks = [1, 2] if first_wins else [2, 1]
        answers.append((item.id, Answer(ranks=ranks, strength=strength if first_wins else -strength)))
    return answers


def rank(annotator: Annotator, item: Item, rng: np.random.Generator) -> list[int]:
    return annotator.rank(annotator.utilities([item.prompt] * len(item.responses), item.responses), rng)


# ---------------------------------------------------------------------------------------------------- feeding


def feed(config: FeedConfig, store: Store) -> None:
    """Keeps ``ahead`` items in store that nobody has judged, sampled from the policy as it is now."""
    config = with_data_set(config)
    with devices.prepared(config.seed, config.device, config.dtype, config.num_threads) as (device, dtype):
        _feed(config, store, device, dtype)


def _feed(config: FeedConfig, store: Store, device: torch.device, dtype: torch.dtype) -> None:
    source = sources.load_source(**config.source()).training_on(config.split)
    source = read_by(source, [load_tokenizer(config.model_name_or_path, config.chat_template_kwargs)])
    for note in source.notes:
        say(f"label: {note}")
    upcoming = collect.rounds(source.need("prompts", "train"), config.seed, config.split)
    seen, policy = None, None
    generator = devices.generator(config.seed, "feed", str(store.clock()))
    barren = 0
    while True:
        missing = config.ahead - count_untouched(store)
        if missing > 0:
            now = fingerprint(Path(config.model_name_or_path))
            if policy is None or now != seen:
                policy, seen = (
                    Policy.load(config.model_name_or_path, device, dtype, config.chat_template_kwargs),
                    now,
                )
            prompts = list(itertools.islice(upcoming, min(config.batch, missing)))
            found = sample_items(config, policy, prompts, generator)
            new, _ = store.add_items(found)
            say(f"label: {new} new items from {config.model_name_or_path}")
            barren = 0 if new else barren + 1
            if barren == MOST_BARREN:
                raise UsageError(
                    f"{config.model_name_or_path} writes nothing new: its responses were equal, empty or "
                    f"there already in {MOST_BARREN} samples; raise --temperature or give other prompts"
                )
            continue
        if config.once:
            return
        time.sleep(PAUSE_SECONDS)


def count_untouched(store: Store) -> int:
    with store.database.read() as connection:
        query = select(func.count()).select_from(items).where(items.c.taken == 0, items.c.gold.is_(None))
        return connection.scalar(query) or 0


def fingerprint(policy: Path) -> tuple[Any, ...]:
    """Changes when a policy's files do; empty for a Hub name."""
    return tuple(sorted((str(p), p.stat().st_mtime_ns) for p in policy.rglob("*.safetensors")))


def sample_items(
    config: FeedConfig, policy: Policy, prompts: Sequence[PromptRecord], generator: torch.Generator
) -> list[Comparison]:
    """Responses of the policy to each prompt; empty and equal ones are left out."""
    K = config.num_generations
    made = policy.respond(prompts, K, generator, config)
    columns = {
        "policy": str(config.model_name_or_path),
        "temperature": config.temperature,
        "sampled_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    found = []
    for i, record in enumerate(prompts):
        texts = dict.fromkeys(text for text in made.completions[i * K : (i + 1) * K] if text.strip())
        if len(texts) >= 2:
            found.append(Comparison(record.prompt, list(texts), [1] * len(texts), None, dict(columns)))
    return found


# ------------------------------------------------------------------------------------------------- refitting


def refit(config: RefitConfig, store: Store) -> None:
    """Trains an ensemble whenever ``every`` new judgements are there, and scores what is left by it."""
    device = devices.chosen_device(config.device)
    before = 0
    while True:
        count = count_judgements(store)
        if config.once and not count:
            raise UsageError("there is no judgement to train on yet")
        if count and (count - before >= config.every or config.once):
            train_and_score(config, store, count, device)
            before = count
        if config.once:
            return
        time.sleep(PAUSE_SECONDS)


def count_judgements(store: Store) -> int:
    """Judgements of people that make the data set."""
    with store.database.read() as connection:
        wanted = (assignments.c.purpose == "label") & (assignments.c.state == "done")
        return connection.scalar(select(func.count()).select_from(assignments).where(wanted)) or 0


def train_and_score(config: RefitConfig, store: Store, count: int, device: Any) -> Path:
    """One training on the judgements so far; returns the reward stage's directory."""
    folder = Path(config.output_dir) / f"refit-{count:06d}"
    rankings = export.records(store, "majority")
    # Divided anew by a hash of the prompt: an item's old split says nothing about who judged it.
    rows = [{k: v for k, v in ranking_row(r).items() if k != "split"} for r in rankings]
    write_rows(folder / "judgements.jsonl", rows)
    own = {f.name: getattr(config, f.name) for f in dataclasses.fields(reward.RewardConfig)}
    own |= {"output_dir": str(folder / "reward"), "dataset_name": str(folder / "judgements.jsonl")}
    path = reward.run(reward.RewardConfig(**own))
    ensemble = load_scorer(str(path), device)
    if not isinstance(ensemble, Ensemble):
        raise UsageError(f"{path} is no ensemble; give --num_members 2 or more")
    with store.database.read() as connection:
        unfinished = (items.c.taken < read_project(connection).overlap) & items.c.gold.is_(None)
        left = set(connection.scalars(select(items.c.id).where(unfinished)))
        found = [item for item in read_items(connection).values() if item.id in left]
    scores = disagreement(ensemble, found)
    store.set_scores(scores)
    say(f"label: {count} judgements: {len(scores)} items scored by {path}")
    return path


def disagreement(ensemble: Ensemble, found: Sequence[Item]) -> dict[int, float]:
    """Standard deviation over the members of the difference of two responses' scores; of more responses the
    largest of all pairs (Gleave and Irving 2022 on what such uncertainty can and cannot do)."""
    if not found:
        return {}
    prompts = [item.prompt for item in found for _ in item.responses]
    scored(ensemble, prompts, [text for item in found for text in item.responses])
    score_MN = np.array(list(ensemble.last_parts.values()), dtype=np.float64)
    scores, at = {}, 0
    for item in found:
        K = len(item.responses)
        score_MK = score_MN[:, at : at + K]
        at += K
        gaps = (score_MK[:, i] - score_MK[:, j] for i, j in itertools.combinations(range(K), 2))
        scores[item.id] = max(float(gap_M.std()) for gap_M in gaps)
    return scores


COMMANDS: dict[str, tuple[type, Callable[[Any, Store], None]]] = {
    "simulate": (SimulateConfig, simulate),
    "feed": (FeedConfig, feed),
    "refit": (RefitConfig, refit),
}
