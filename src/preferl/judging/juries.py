"""Several judges as one, and what every use of judges shares: loading them, keeping their replies, and saying
what became of them.

    load_pairwise_judge("majority(judge:http://host/v1#a, judge:http://host/v1#b, judge:runs/c)", device)
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from preferl.data.records import Prompt
from preferl.judging.backends import KeptReplies, LocalBackend, load_backend
from preferl.judging.endpoints import EndpointBackend
from preferl.judging.judges import (
    PAIRWISE,
    Judge,
    JudgeCounts,
    PairwiseJudge,
    PointwiseJudge,
    ScoreComparer,
)
from preferl.judging.replies import FOLDER, ReplyStore
from preferl.options.judging import JudgeConfig, jury_of, parse_judge
from preferl.runs import distributed
from preferl.runs.checkpoint import Parts
from preferl.runs.errors import UsageError
from preferl.statistics.agreement import Undefined, krippendorff_alpha


class Jury(Judge):
    """What juries of both kinds share. A judge that wrote nothing readable has no say; where none did, the
    first judge's ``unparsable`` says what happens.

    Args:
        name: as it was given.
        how: ``majority`` or ``mean``.
        judges: all of one kind.
    """

    def __init__(self, name: str, how: str, judges: Sequence[Judge]):
        super().__init__(name, judges[0].backend, judges[0].config)
        self.how, self.judges = how, list(judges)
        for judge in self.judges:
            judge.config = dataclasses.replace(judge.config, unparsable="skip")
        self.answers: list[list[float]] = [[] for _ in judges]

    @property
    def members(self) -> list[Judge]:
        return self.judges

    def together(self, value_JN: np.ndarray) -> np.ndarray:
        """One value of each column from those of the judges, NaN where none has one."""
        for said, value_N in zip(self.answers, value_JN, strict=True):
            said += value_N.tolist()
        known_JN = ~np.isnan(value_JN)
        said_N = known_JN.sum(0)
        if self.how == "mean":
            total_N = np.where(known_JN, value_JN, 0.0).sum(0)
            return np.divide(total_N, said_N, out=np.full(len(said_N), np.nan), where=said_N > 0)
        found_N = self.decided(value_JN)
        return np.where(said_N > 0, found_N, np.nan)

    def decided(self, value_JN: np.ndarray) -> np.ndarray:
        """What the majority says: 1 where more judges prefer the first, 0 where more the second, else 0.5."""
        with np.errstate(invalid="ignore"):
            lead_N = (value_JN > 0.5).sum(0) - (value_JN < 0.5).sum(0)
        return (1 + np.sign(lead_N)) / 2

    def agreement(self) -> dict[str, Any]:
        """Krippendorff's alpha of the judges: of their verdicts (nominal) or scores (ordinal); None with a
        reason where it is not defined."""
        answer_JN = np.array(self.answers, dtype=np.float64)
        level: Any = "ordinal"
        if self.question is PAIRWISE:
            answer_JN, level = np.sign(answer_JN - 0.5), "nominal"
        try:
            return {"krippendorff_alpha": krippendorff_alpha(answer_JN, level), "judges": len(self.judges)}
        except Undefined as error:
            return {"krippendorff_alpha": None, "reason": str(error), "judges": len(self.judges)}

    def report(self) -> dict[str, Any]:
        """The jury's counts and agreement; tokens and cost of all its judges, and of each."""
        own = dataclasses.asdict(self.counts)
        of_each: dict[str, Any] = {}
        for number, judge in enumerate(self.judges, 1):
            name = judge.name if judge.name not in of_each else f"{judge.name} ({number})"
            of_each[name] = judge.report()
        for name in ("prompt_tokens", "completion_tokens", "cost"):
            if any(name in row for row in of_each.values()):
                own[name] = sum(row.get(name, 0) for row in of_each.values())
        return own | {"agreement": self.agreement(), "by_judge": of_each}

    def state(self, whole: bool = True) -> dict[str, Any]:
        return {
            "counts": dataclasses.asdict(self.counts),
            "answers": self.answers,
            "judges": [judge.state(whole) for judge in self.judges],
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.counts = JudgeCounts(**state["counts"])
        self.answers = [list(said) for said in state["answers"]]
        for judge, own in zip(self.judges, state["judges"], strict=True):
            judge.restore(own)

    def advice(self) -> str:
        return "; ".join(f"{judge.name}: {judge.advice()}" for judge in self.judges if judge.examples)

    def _count(self, before: Sequence[JudgeCounts], own: JudgeCounts) -> None:
        """Adds what the judges counted since ``before`` and what became of it together."""
        since = JudgeCounts()
        for judge, then in zip(self.judges, before, strict=True):
            now = dataclasses.astuple(judge.counts)
            since += JudgeCounts(*(a - b for a, b in zip(now, dataclasses.astuple(then), strict=True)))
        self.record(dataclasses.replace(since, judged=own.judged, dropped=own.dropped))


class PairwiseJury(Jury, PairwiseJudge):
    """Several judges of pairs as one annotator: ``majority`` of their verdicts, or the ``mean`` of their
    P(first)."""

    def probabilities(
        self, prompts: Sequence[Prompt], responses_a: Sequence[str], responses_b: Sequence[str]
    ) -> np.ndarray:
        before = [judge.counts for judge in self.judges]
        said = []
        for judge in self.judges:
            assert isinstance(judge, PairwiseJudge)
            said.append(judge.probabilities(prompts, responses_a, responses_b))
        probability_N = self.together(np.array(said))
        dropped = int(np.isnan(probability_N).sum())
        self._count(before, JudgeCounts(judged=len(probability_N), dropped=dropped))
        return probability_N


class PointwiseJury(Jury, PointwiseJudge):
    """Several judges of single responses as one scorer: the ``mean`` of their scores, or with ``majority``
    their median."""

    def decided(self, value_JN: np.ndarray) -> np.ndarray:
        """The median: at least half of the judges say so much, and half no more."""
        known_N = ~np.isnan(value_JN).all(0)
        found_N = np.full(value_JN.shape[1], np.nan)
        found_N[known_N] = np.nanmedian(value_JN[:, known_N], axis=0)
        return found_N

    def __call__(self, prompts: Sequence[Prompt], completions: Sequence[str], **columns: Any) -> list[float]:
        before = [judge.counts for judge in self.judges]
        said = []
        for judge in self.judges:
            assert isinstance(judge, PointwiseJudge)
            said.append(judge(prompts, completions))
        score_N = self.together(np.array(said, dtype=np.float64).reshape(len(self.judges), -1))
        self.unread = set(np.flatnonzero(np.isnan(score_N)).tolist())
        self._count(before, JudgeCounts(judged=len(score_N), dropped=len(self.unread)))
        return score_N.tolist()


# ------------------------------------------------------------------------------------------ kept and reported


def keep_replies(judges: Iterable[Judge], stage: Path, parts: Parts | None = None) -> None:
    """Lets judges keep what they are told.

    Args:
        judges: by themselves or as juries.
        stage: the directory in which replies of endpoints are kept, unless a judge's options name another.
        parts: where answers of local models are kept, where the stage does not keep what it makes of them.
    """
    for member in (member for judge in judges for member in judge.members):
        backend = member.backend
        if isinstance(backend, EndpointBackend):
            if member.config.replies is None:
                backend.store = ReplyStore(stage / FOLDER, own=distributed.world_size() == 1)
        elif parts is not None and isinstance(backend, LocalBackend):
            member.backend = KeptReplies(backend, parts)


def report_on(judges: Iterable[Judge], say: Callable[[str], None]) -> dict[str, Any]:
    """Says what became of all questions, and returns it for the summary: ``judges`` by name, or nothing where
    there were none."""
    found: dict[str, Any] = {}
    for judge in judges:
        report = judge.report()
        kept = sum(member.backend.usage.kept for member in judge.members)
        for line in what_judges_said(report, kept):
            say(f"the judge: {line}")
        found[judge.name] = report
    return {"judges": found} if found else {}


def what_judges_said(report: dict[str, Any], kept: int) -> list[str]:
    """Lines about a report: how many verdicts, what could not be read and why, tokens, cost, agreement.

    Args:
        report: of `Judge.report`.
        kept: replies that were read from disk.
    """
    said = [
        f"{report['judged']} judged by {report['asked']} replies, {report['unparsable']} of them unreadable "
        f"({report['refused']} refused, {report['cut_off']} cut off, {report['empty']} empty); "
        f"{report['dropped']} left out, {report['inconsistent']} changed with the order"
    ]
    tokens = (
        f"{report.get('prompt_tokens', 0):,} tokens asked, {report.get('completion_tokens', 0):,} written"
    )
    if report.get("without_token_counts"):
        tokens += f" ({report['without_token_counts']} replies did not say)"
    tokens += f", cost {report['cost']:g}" if "cost" in report else ""
    said.append(tokens + (f"; {kept} replies had been kept before" if kept else ""))
    for name, row in report.get("by_judge", dict.fromkeys([""], report)).items():
        by = f" by {name}" if name else ""
        said += [
            f"unreadable{by}, for example: {example['reply']} to {example['prompt']!r}"
            for example in row["examples"][:2]
        ]
    if "agreement" in report:
        alpha = report["agreement"]["krippendorff_alpha"]
        text = f"undefined ({report['agreement'].get('reason')})" if alpha is None else f"{alpha:.2f}"
        said.append(f"agreement of {report['agreement']['judges']} judges: Krippendorff's alpha {text}")
    return said


# ---------------------------------------------------------------------------------------------------- loading


def load_pairwise_judge(spec: str, device: torch.device, config: JudgeConfig | None = None) -> PairwiseJudge:
    """The annotator of a spec (see `parse_judge`), which may be a jury.

    Raises:
        UsageError: the spec is wrong or its model cannot be loaded.
    """
    jury = jury_of(spec)
    if jury is not None:
        how, members = jury
        return PairwiseJury(spec, how, [load_pairwise_judge(member, device, config) for member in members])
    parsed = parse_judge(spec, config)
    kind = ScoreComparer if parsed.config.ask == "pointwise" else PairwiseJudge
    return kind(spec, load_backend(parsed, device), parsed.config)


def load_pointwise_judge(
    spec: str, device: torch.device, config: JudgeConfig | None = None
) -> PointwiseJudge:
    """The scorer of a spec (see `parse_judge`), which may be a jury.

    Raises:
        UsageError: the spec is wrong or its model cannot be loaded.
    """
    jury = jury_of(spec)
    if jury is not None:
        how, members = jury
        return PointwiseJury(spec, how, [load_pointwise_judge(member, device, config) for member in members])
    parsed = parse_judge(spec, config)
    if parsed.config.ask == "pairwise":
        raise UsageError(
            f"'{spec}' is to compare two responses, and here each is scored by itself; leave ask=pairwise out"
        )
    return PointwiseJudge(spec, load_backend(parsed, device), parsed.config)
