"""What the lead sees: progress, agreement, and how each annotator works. Every share has its interval.

People and simulated annotators are counted apart; items of known answer and repeats count only where it says
so.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
from sqlalchemy import func, select

from preferl.data.records import prompt_text
from preferl.data.types import Measures
from preferl.label.judgements import (
    AnswerTable,
    Item,
    StoredJudgement,
    labels,
    read_items,
    read_judgements,
    table_of,
)
from preferl.label.project import Project, read_project
from preferl.label.schema import assignments, items
from preferl.label.store import Store
from preferl.statistics import agreement, wilson_interval

MOST_FLAGS = 100


def dashboard(store: Store) -> Measures:
    """Everything on the lead's page."""
    with store.database.read() as connection:
        project = read_project(connection)
        judgements = read_judgements(connection)
        texts = read_items(connection)
        open_claims = connection.scalar(
            select(func.count())
            .select_from(assignments)
            .where(assignments.c.state == "open", assignments.c.leased_until > store.clock())
        )
        taken = connection.execute(
            select(items.c.taken, func.count()).where(items.c.gold.is_(None)).group_by(items.c.taken)
        ).all()
    people = [j for j in judgements if j.kind == "human"]
    simulated = [j for j in judgements if j.kind == "sim"]
    table = table_of(labels(people))
    kappas = pairwise_kappas(table)
    return {
        "project": project,
        "progress": progress(project, people, taken, open_claims or 0, store.clock()),
        "agreement": agreement_of(table, kappas),
        "annotators": [
            annotator_row(project, name, own, texts)
            | {"kappa": mean_or_none(k for pair, k in kappas.items() if name in pair)}
            for name, own in by_name(people)
        ],
        "simulated": [
            annotator_row(project, name, own, texts) | {"same": same_as_people(own, people)}
            for name, own in by_name(simulated)
        ],
        "selection": selection_rows(people),
        "flags": [
            {
                "annotator": j.annotator,
                "item": j.item_id,
                "prompt": prompt_text(texts[j.item_id].prompt),
                "reason": j.reason,
            }
            for j in reversed(people)
            if j.flagged
        ][:MOST_FLAGS],
    }


def by_name(judgements: Iterable[StoredJudgement]) -> list[tuple[str, list[StoredJudgement]]]:
    ordered = sorted(judgements, key=lambda j: j.annotator)
    return [(name, list(own)) for name, own in itertools.groupby(ordered, key=lambda j: j.annotator)]


def progress(
    project: Project, people: Sequence[StoredJudgement], taken: Any, open_claims: int, now: float
) -> Measures:
    """Counts, and the pace of the last hour and day."""
    judged = [j for j in people if j.ranks is not None]
    wanted = sum(count for _, count in taken)
    done = len(labels(people))
    hours = sum(min(j.seconds, project.idle_seconds) for j in judged) / 3600
    return {
        "item_count": wanted,
        "judgements_wanted": wanted * project.overlap,
        "judgements": done,
        "share": done / (wanted * project.overlap) if wanted else 0.0,
        "open": open_claims,
        "skipped": sum(j.ranks is None for j in people),
        "flagged": sum(j.flagged for j in people),
        "last_hour": sum(j.at > now - 3600 for j in judged),
        "last_day": sum(j.at > now - 86400 for j in judged),
        "per_hour": len(judged) / hours if hours else None,
        "median_seconds": median_seconds(project, judged),
    }


def pairwise_kappas(table: AnswerTable) -> dict[tuple[str, str], float]:
    """Cohen's kappa of every two annotators for whom it is defined."""
    found = {}
    for first, second in itertools.combinations(range(len(table.annotators)), 2):
        try:
            kappa = agreement.cohen_kappa(table.choice_AU[first], table.choice_AU[second])
        except agreement.Undefined:
            continue
        found[table.annotators[first], table.annotators[second]] = kappa
    return found


def mean_or_none(numbers: Iterable[float]) -> float | None:
    found = list(numbers)
    return mean(found) if found else None


def agreement_of(table: AnswerTable, kappas: dict[tuple[str, str], float]) -> Measures:
    """Krippendorff's alpha of choices and strengths, and the kappas; a text where one is undefined."""
    return {
        "annotators": len(table.annotators),
        "units": int(((~np.isnan(table.choice_AU)).sum(0) >= 2).sum()) if table.units else 0,
        "alpha_nominal": defined(lambda: agreement.krippendorff_alpha(table.choice_AU, "nominal")),
        "alpha_ordinal": defined(lambda: agreement.krippendorff_alpha(table.strength_AU, "ordinal")),
        "fleiss": defined(lambda: agreement.fleiss_kappa(table.choice_AU)),
        "cohen": mean(kappas.values()) if kappas else "no two annotators share items with different answers",
        "same_choice": same_choice(table),
    }


def defined(estimate: Callable[[], float]) -> float | str:
    try:
        return estimate()
    except agreement.Undefined as error:
        return str(error)


def same_choice(table: AnswerTable) -> float | str:
    """Share of pairs of judgements of one unit that say the same."""
    same = both = 0
    for first, second in itertools.combinations(table.choice_AU, 2):
        shared_U = ~np.isnan(first) & ~np.isnan(second)
        both += int(shared_U.sum())
        same += int((first[shared_U] == second[shared_U]).sum())
    return same / both if both else "no item has two judgements yet"


def annotator_row(
    project: Project, name: str, own: Sequence[StoredJudgement], texts: dict[int, Item]
) -> Measures:
    """How one annotator works."""
    judged = [j for j in own if j.ranks is not None]
    return {
        "name": name,
        "judged": len(judged),
        "skipped": sum(j.ranks is None for j in own),
        "flagged": sum(j.flagged for j in own),
        "ties": share(ties(j) for j in judged),
        "both_bad": share((int(j.both_bad), 1) for j in judged),
        "median_seconds": median_seconds(project, judged),
        "first_wins": first_wins(judged),
        "flips": flips(judged),
        "gold": gold_accuracy(judged, texts),
    }


def median_seconds(project: Project, judged: Sequence[StoredJudgement]) -> float | None:
    """Median time on an item; longer than the idle time counts as that."""
    return median(min(j.seconds, project.idle_seconds) for j in judged) if judged else None


def share(counts: Iterable[tuple[int, int]]) -> Measures | None:
    """A proportion with Wilson's 95 % interval, or None of nothing.

    Args:
        counts: successes and trials of each judgement. The pairs of one ranking hang together, so that a
            judgement is one observation in the interval, however many pairs it decides.
    """
    rows = [(count, total) for count, total in counts if total]
    if not rows:
        return None
    found = sum(count for count, _ in rows) / sum(total for _, total in rows)
    low, high = wilson_interval(found * len(rows), len(rows))
    return {"share": found, "low": low, "high": high, "total": len(rows)}


def ties(j: StoredJudgement) -> tuple[int, int]:
    choices = [choice for _, choice in j.choices()]
    return choices.count(0), len(choices)


def first_wins(judged: Sequence[StoredJudgement]) -> Measures | None:
    """How often what was shown earlier won, ties left out; one half where the position does not matter.

    ``biased``: the interval does not hold one half.
    """
    counts = []
    for j in judged:
        place = {response: position for position, response in enumerate(j.order)}
        won = [(choice > 0) == (place[a] < place[b]) for (a, b), choice in j.choices() if choice]
        counts.append((sum(won), len(won)))
    found = share(counts)
    return found and found | {"biased": not found["low"] <= 0.5 <= found["high"]}


def flips(judged: Sequence[StoredJudgement]) -> Measures | None:
    """Of the pairs that an annotator decided twice, the share decided the other way the second time."""
    first = {j.item_id: dict(j.choices()) for j in judged if j.purpose == "label"}
    counts = []
    for j in judged:
        if j.purpose == "repeat" and j.item_id in first:
            before = first[j.item_id]
            turned = [choice != before[pair] for pair, choice in j.choices() if choice and before[pair]]
            counts.append((sum(turned), len(turned)))
    return share(counts)


def gold_accuracy(judged: Sequence[StoredJudgement], texts: dict[int, Item]) -> Measures | None:
    """Share of the pairs with a known answer that were judged so; a tie is not."""
    counts = []
    for j in judged:
        gold = texts[j.item_id].gold
        if j.purpose == "gold" and gold is not None:
            answers = [(int(np.sign(gold[b] - gold[a])), choice) for (a, b), choice in j.choices()]
            right = [choice == answer for answer, choice in answers if answer]
            counts.append((sum(right), len(right)))
    return share(counts)


def selection_rows(people: Sequence[StoredJudgement]) -> list[Measures]:
    """Random and informative items side by side."""
    rows = []
    for selected in ("random", "informative"):
        own = [j for j in labels(people) if j.selected == selected]
        if own:
            rows.append(
                {
                    "selected": selected,
                    "judgements": len(own),
                    "ties": share(ties(j) for j in own),
                    "same_choice": same_choice(table_of(own)),
                }
            )
    return rows if len(rows) == 2 else []


def same_as_people(
    simulated: Sequence[StoredJudgement], people: Sequence[StoredJudgement]
) -> Measures | None:
    """How often a simulated annotator says what most people said, ties left out."""
    votes: Counter[tuple[int, tuple[int, int]]] = Counter()
    for j in labels(people):
        for pair, choice in j.choices():
            votes[j.item_id, pair] += choice
    counts = []
    for j in labels(simulated, "sim"):
        products = [choice * votes[j.item_id, pair] for pair, choice in j.choices()]
        counts.append((sum(p > 0 for p in products), sum(p != 0 for p in products)))
    return share(counts)
