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
from preferl.label.judgements import Item, Judgement, Table, labels, read_items, read_judgements, table_of
from preferl.label.schema import assignments, items
from preferl.label.store import Project, Store, project_of
from preferl.maths import agreement
from preferl.maths.stats import wilson_interval

MOST_FLAGS = 100
Row = dict[str, Any]


def dashboard(store: Store) -> Row:
    """Everything on the lead's page."""
    with store.database.read() as connection:
        project = project_of(connection)
        judgements = read_judgements(connection)
        texts = read_items(connection)
        open_claims = connection.scalar(
            select(func.count()).select_from(assignments).where(assignments.c.state == "open")
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


def by_name(judgements: Iterable[Judgement]) -> list[tuple[str, list[Judgement]]]:
    ordered = sorted(judgements, key=lambda j: j.annotator)
    return [(name, list(own)) for name, own in itertools.groupby(ordered, key=lambda j: j.annotator)]


def progress(project: Project, people: Sequence[Judgement], taken: Any, open_claims: int, now: float) -> Row:
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


def pairwise_kappas(table: Table) -> dict[tuple[str, str], float]:
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


def agreement_of(table: Table, kappas: dict[tuple[str, str], float]) -> Row:
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


def same_choice(table: Table) -> float | str:
    """Share of pairs of judgements of one unit that say the same."""
    same = both = 0
    for first, second in itertools.combinations(table.choice_AU, 2):
        shared_U = ~np.isnan(first) & ~np.isnan(second)
        both += int(shared_U.sum())
        same += int((first[shared_U] == second[shared_U]).sum())
    return same / both if both else "no item has two judgements yet"


def annotator_row(project: Project, name: str, own: Sequence[Judgement], texts: dict[int, Item]) -> Row:
    """How one annotator works."""
    judged = [j for j in own if j.ranks is not None]
    choices = [choice for j in judged for _, choice in j.choices()]
    return {
        "name": name,
        "judged": len(judged),
        "skipped": sum(j.ranks is None for j in own),
        "flagged": sum(j.flagged for j in own),
        "ties": share(sum(choice == 0 for choice in choices), len(choices)),
        "both_bad": share(sum(j.both_bad for j in judged), len(judged)),
        "median_seconds": median_seconds(project, judged),
        "first_wins": first_wins(judged),
        "flips": flips(judged),
        "gold": gold_accuracy(judged, texts),
    }


def median_seconds(project: Project, judged: Sequence[Judgement]) -> float | None:
    """Median time on an item; longer than the idle time counts as that."""
    return median(min(j.seconds, project.idle_seconds) for j in judged) if judged else None


def share(count: int, total: int) -> Row | None:
    """A proportion with Wilson's 95 % interval, or None of nothing."""
    if not total:
        return None
    low, high = wilson_interval(count, total)
    return {"share": count / total, "low": low, "high": high, "count": count, "total": total}


def first_wins(judged: Sequence[Judgement]) -> Row | None:
    """How often what was shown earlier won, ties left out; one half where the position does not matter.

    ``biased``: the interval does not hold one half.
    """
    wins = total = 0
    for j in judged:
        place = {response: position for position, response in enumerate(j.order)}
        for (a, b), choice in j.choices():
            if choice:
                total += 1
                wins += (choice > 0) == (place[a] < place[b])
    found = share(wins, total)
    return found and found | {"biased": not found["low"] <= 0.5 <= found["high"]}


def flips(judged: Sequence[Judgement]) -> Row | None:
    """Of the pairs that an annotator decided twice, the share decided the other way the second time."""
    first = {j.item_id: dict(j.choices()) for j in judged if j.purpose == "label"}
    turned = total = 0
    for j in judged:
        if j.purpose != "repeat" or j.item_id not in first:
            continue
        for pair, choice in j.choices():
            before = first[j.item_id][pair]
            if choice and before:
                total += 1
                turned += choice != before
    return share(turned, total)


def gold_accuracy(judged: Sequence[Judgement], texts: dict[int, Item]) -> Row | None:
    """Share of the pairs with a known answer that were judged so; a tie is not."""
    right = total = 0
    for j in judged:
        gold = texts[j.item_id].gold
        if j.purpose != "gold" or gold is None:
            continue
        for (a, b), choice in j.choices():
            answer = int(np.sign(gold[b] - gold[a]))
            if answer:
                total += 1
                right += choice == answer
    return share(right, total)


def selection_rows(people: Sequence[Judgement]) -> list[Row]:
    """Random and informative items side by side."""
    rows = []
    for selected in ("random", "informative"):
        own = [j for j in labels(people) if j.selected == selected]
        if own:
            choices = [choice for j in own for _, choice in j.choices()]
            rows.append(
                {
                    "selected": selected,
                    "judgements": len(own),
                    "ties": share(sum(choice == 0 for choice in choices), len(choices)),
                    "same_choice": same_choice(table_of(own)),
                }
            )
    return rows if len(rows) == 2 else []


def same_as_people(simulated: Sequence[Judgement], people: Sequence[Judgement]) -> Row | None:
    """How often a simulated annotator says what most people said, ties left out."""
    votes: Counter[tuple[int, tuple[int, int]]] = Counter()
    for j in labels(people):
        for pair, choice in j.choices():
            votes[j.item_id, pair] += choice
    products = [
        choice * votes[j.item_id, pair] for j in labels(simulated, "sim") for pair, choice in j.choices()
    ]
    return share(sum(p > 0 for p in products), sum(p != 0 for p in products))
