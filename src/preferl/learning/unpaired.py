"""KTO: single responses called good or bad train a policy, without pairs (Ethayarajh et al. 2024,
arXiv 2402.01306).

The loss of a response (``maths.preference.kto_loss``) compares its log-ratio r = log pi / pi_ref with the
reference point z0, an estimate of KL(pi || pi_ref): the mean log-ratio of responses behind other prompts
than their own. z0 is of the whole batch and computed before its micro-batches, without a gradient, so
micro-batches and processes change nothing.

One deviation: the paper shifts the batch's responses by one, whatever they answer. Here a prompt gets the
next response of the batch that answers another prompt, since the two responses of what was a pair stand
side by side in batches by length; in a batch of one row that of the data set's next row. Where all prompts
are the same it is the next response, as in the paper.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from preferl.data.records import Comparison, DataError, Rated
from preferl.data.sources import Part, Source
from preferl.data.tokens import Extent, cut_to_fit, example_ids
from preferl.learning.fit import Sums
from preferl.maths.preference import kto_loss, kto_reference_point, kto_weights
from preferl.options.learning import KtoOptions
from preferl.runs import devices
from preferl.sampling.logprobs import policy_logprobs
from preferl.sampling.policy import Policy
from preferl.sampling.samples import Samples, written_samples


@dataclass(frozen=True)
class EncodedResponse:
    """A response as token ids, and whether it is good. ``cut``: prompt and response did not fit as a whole.

    Example: ``EncodedResponse([7, 8], [5, 1], True, False)`` with EOS 1.
    """

    prompt: list[int]
    response: list[int]
    good: bool
    cut: bool

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True)
class ResponseSplits:
    """Training and dev responses, counts of the training ones by what became of them, and what was read as
    what, in sentences; ``held_out`` where the dev responses train nothing."""

    train: list[EncodedResponse]
    dev: list[EncodedResponse]
    counts: dict[str, int]
    notes: list[str]
    held_out: bool = True
    unit: ClassVar[str] = "responses"


# ------------------------------------------------------------------------------------------------- reading


def labelled(part: Part) -> tuple[list[Rated], list[str]]:
    """Every response of a split that is good or bad, and what was read as what, in sentences.

    Rows with a label are what they say. A pair is one good and one bad response; of a ranking the responses
    of the best rank are good, those of the worst bad, and what lies between is left out.
    """
    rows = [row for row in part.rated if row.good is not None]
    notes = []
    if len(rows) < len(part.rated):
        notes.append(f"left out {len(part.rated) - len(rows)} rated responses without a label: kto needs one")
    # Comparisons of labelled rows were made of these same rows.
    comparisons = [] if part.rated else part.comparisons
    between = ties = 0
    for comparison in comparisons:
        found = ends_of(comparison)
        rows += found
        between += len(comparison.responses) - len(found) if found else 0
        ties += not found
    if comparisons:
        notes.append(f"read {len(comparisons) - ties} comparisons as good and bad responses: best and worst")
    if between:
        notes.append(f"left out {between} responses between the best and the worst of their ranking")
    if ties:
        notes.append(f"left out {ties} comparisons: all responses tie")
    return rows, notes


def ends_of(comparison: Comparison) -> list[Rated]:
    """The best responses of a comparison, good, and the worst ones, bad; none where all tie."""
    best, worst = min(comparison.ranks), max(comparison.ranks)
    if best == worst:
        return []
    finished = comparison.values("finished", True)
    rows = []
    for response, rank, ended in zip(comparison.responses, comparison.ranks, finished, strict=True):
        if rank in (best, worst):
            rows.append(Rated(comparison.prompt, response, {}, rank == best, {"finished": ended}))
    return rows


def read_responses(
    source: Source, tokenizer: Any, max_length: int, eval_rows: int, stop_texts: Sequence[str] = ()
) -> ResponseSplits:
    """Training and dev responses as token ids.

    Raises:
        DataError: no labelled response is left.
    """
    rows, notes = labelled(source.train)
    if not rows:
        raise DataError(no_labels(source))
    dev_rows = labelled(source.dev)[0][:eval_rows]
    train, dev = (
        [one for row in part if (one := encode(tokenizer, row, max_length, stop_texts))]
        for part in (rows, dev_rows)
    )
    if not train:
        raise DataError(f"'{source.name}' has no good or bad response with a token in it")
    counts = {
        "good": sum(one.good for one in train),
        "bad": sum(not one.good for one in train),
        "empty_left_out": len(rows) - len(train),
        "cut": sum(one.cut for one in train),
        "dev/responses": len(dev),
    }
    notes.append(f"{counts['good']} good and {counts['bad']} bad responses train")
    if counts["empty_left_out"]:
        notes.append(f"left out {counts['empty_left_out']} responses without a token")
    if counts["cut"]:
        notes.append(f"cut {counts['cut']} responses to max_length, or to the positions that the model has")
    if not counts["good"] or not counts["bad"]:
        only = "good" if counts["good"] else "bad"
        notes.append(
            f"all responses are {only}: nothing pulls the other way but the reference, so watch dev/kl"
        )
    return ResponseSplits(train, dev, counts, notes, held_out=source.own("dev") == source.dev)


def no_labels(source: Source) -> str:
    if source.train.rated:
        names = sorted({name for row in source.train.rated for name in row.ratings})
        return (
            f"'{source.name}' has ratings ({', '.join(names)}) and no label: kto learns from `label` true or "
            f"false; write such a column by a threshold of your own, or train a reward model on the ratings"
        )
    return source.missing("rated", "train")


def encode(
    tokenizer: Any, row: Rated, max_length: int, stop_texts: Sequence[str] = ()
) -> EncodedResponse | None:
    """A labelled response as token ids; one that was cut off while sampling, or ended by one of
    ``stop_texts``, carries no EOS: the policy did not write one. None where it has no token."""
    ended = row.columns.get("finished", True) and not any(stop in row.response for stop in stop_texts)
    prompt, response = example_ids(tokenizer, row.prompt, row.response, ended)
    kept, (fitting,) = cut_to_fit(tokenizer, prompt, [response], max_length)
    cut = len(kept) < len(prompt) or len(fitting) < len(response)
    return EncodedResponse(kept, fitting, bool(row.good), cut) if fitting else None


def mismatched(prompts: Sequence[Any]) -> list[int]:
    """For each row the next one, round the batch, whose prompt is another one; the next one where there is
    none.

    Example: ``mismatched(["a", "a", "b"])`` is ``[2, 2, 0]``.
    """
    B = len(prompts)
    found = []
    for i, prompt in enumerate(prompts):
        others = (j % B for j in range(i + 1, i + B) if prompts[j % B] != prompt)
        found.append(next(others, (i + 1) % B))
    return found


# -------------------------------------------------------------------------------------------------- training


class KtoTask:
    """What ``fit`` trains under ``--loss_type kto``: its loss, its measurements and its reference.

    Args:
        policy: what is trained.
        reference: read without gradients.
        data: the labelled responses.
        config: the options.
        max_length: of a prompt with a response to another one.
    """

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        data: ResponseSplits,
        config: KtoOptions,
        max_length: int,
    ):
        self.policy, self.reference, self.config, self.max_length = policy, reference, config, max_length
        self.rows, self.dev = data.train, data.dev
        self.weights = kto_weights(
            data.counts["good"], data.counts["bad"], config.desirable_weight, config.undesirable_weight
        )
        self.reference_N = torch.zeros(len(self.rows))
        self.reference_dev_N = self.logprobs(reference, self.dev)
        self.dev_mismatched = self.with_other_prompts(self.dev, self.dev)
        self.reference_dev_mismatched_N = self.logprobs(reference, self.dev_mismatched)
        self.reference_point = torch.zeros(())
        self.batch_counts = (0, 0)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each training row."""
        return [len(row) for row in self.rows]

    def extent(self, number: int) -> Extent:
        """What a training row is in a pass."""
        return Extent((len(self.rows[number].prompt), len(self.rows[number].response)))

    def describe(self) -> str:
        """The training set in a few words."""
        desirable, undesirable = self.weights
        good = sum(row.good for row in self.rows)
        return (
            f"{good:,} good (weight {desirable:.3g}) and {len(self.rows) - good:,} bad "
            f"(weight {undesirable:.3g}) responses"
        )

    def forward_passes(self, seen: int, read: int) -> dict[str, int]:
        """Of each model, from the rows that updates saw and the rows that were read: every row of an update
        once more for z0, by policy and reference."""
        return {"policy_update": 3 * seen, "reference_point": seen, "reference": read + seen}

    def read_reference(self, read: Sequence[int]) -> None:
        """The reference's log-probabilities of the rows that train, once."""
        self.reference_N[list(read)] = self.logprobs(self.reference, [self.rows[i] for i in read])

    def logprobs(self, policy: Policy, rows: Sequence[EncodedResponse]) -> torch.Tensor:
        """``logp_N`` without gradients, in micro-batches of like length, each process its share."""
        if not rows:
            return torch.zeros(0)
        samples = self.samples_of(rows)
        size, tokens = self.config.micro_batch_size, self.config.micro_batch_tokens
        logp_BT = policy.logprobs(samples, size, samples.attention_BS.sum(-1), tokens)
        return logp_BT.sum(-1)

    def samples_of(self, rows: Sequence[EncodedResponse]) -> Samples:
        prompts, responses = [row.prompt for row in rows], [row.response for row in rows]
        pad_id = self.policy.tokenizer.pad_token_id
        return written_samples(prompts, responses, pad_id, self.policy.sampling(self.config))

    def with_other_prompts(
        self, rows: Sequence[EncodedResponse], all_rows: Sequence[EncodedResponse]
    ) -> list[EncodedResponse]:
        """Each row's prompt with the response to another one; of a single row, one of ``all_rows``."""
        pool = list(rows)
        if len(pool) == 1:
            place = all_rows.index(pool[0])
            pool.append(all_rows[(place + 1) % len(all_rows)])
        others = mismatched([row.prompt for row in pool])
        found = []
        for row, other in zip(rows, others, strict=False):
            prompt, (response,) = cut_to_fit(
                self.policy.tokenizer, row.prompt, [pool[other].response], self.max_length
            )
            found.append(EncodedResponse(prompt, response, row.good, False))
        return found

    def prepare(self, numbers: Sequence[int]) -> None:
        """z0 of a whole batch, from the policy as it is before the update, and the batch's labels."""
        batch = [self.rows[i] for i in numbers]
        pairs = self.with_other_prompts(batch, self.rows)
        self.reference_point = kto_reference_point(
            self.logprobs(self.policy, pairs), self.logprobs(self.reference, pairs)
        )
        good = sum(row.good for row in batch)
        self.batch_counts = good, len(batch) - good

    def step(self, numbers: Sequence[int]) -> tuple[torch.Tensor, Sums, torch.Tensor]:
        """Summed loss of some rows of the prepared batch with its gradient, what is logged of them, and
        their log-ratios."""
        with devices.autocast(self.policy.device, self.policy.dtype):
            logp_BT = policy_logprobs(self.policy.model, self.samples_of([self.rows[i] for i in numbers]))
        logp_B = logp_BT.float().sum(-1)
        reference_B = self.reference_N[list(numbers)].to(logp_B.device)
        good_B = torch.tensor([int(self.rows[i].good) for i in numbers], device=logp_B.device)
        reference_point = float(self.reference_point)
        loss_B = kto_loss(logp_B, reference_B, good_B, reference_point, self.config.beta, *self.weights)
        log_ratio_B = (logp_B.detach() - reference_B).cpu()
        return loss_B.sum(), self.sums(log_ratio_B, good_B.cpu() == 1), log_ratio_B

    def sums(self, log_ratio_B: torch.Tensor, good_B: torch.Tensor) -> Sums:
        """Of some rows of the prepared batch: how many lie on their label's side of z0, their log-ratios,
        and their part of the batch's margin."""
        n, (good, bad) = len(log_ratio_B), self.batch_counts
        reference_point = float(self.reference_point)
        sums = {
            "train/accuracy": (float(on_their_side(log_ratio_B, good_B, reference_point).sum()), n),
            "train/reference_point": (reference_point * n, n),
            "train/chosen_log_ratio": (float(log_ratio_B[good_B].sum()), int(good_B.sum())),
            "train/rejected_log_ratio": (float(log_ratio_B[~good_B].sum()), int((~good_B).sum())),
        }
        if good and bad:
            # Mean of the good minus mean of the bad, as one mean over the batch's rows.
            weight_B = torch.where(good_B, 1 / good, -1 / bad) * (good + bad)
            sums["train/margin"] = (self.config.beta * float((weight_B * log_ratio_B).sum()), n)
        return sums

    def measure(self) -> dict[str, float]:
        """The loss and its parts on the dev responses, with their own z0."""
        if not self.dev:
            return {}
        reference_point = kto_reference_point(
            self.logprobs(self.policy, self.dev_mismatched), self.reference_dev_mismatched_N
        )
        logp_N = self.logprobs(self.policy, self.dev)
        good_N = torch.tensor([row.good for row in self.dev])
        loss_N = kto_loss(
            logp_N, self.reference_dev_N, good_N.int(), reference_point, self.config.beta, *self.weights
        )
        log_ratio_N = logp_N - self.reference_dev_N
        found = {
            "dev/loss": float(loss_N.mean()),
            "dev/accuracy": float(on_their_side(log_ratio_N, good_N, float(reference_point)).mean()),
            "dev/reference_point": float(reference_point),
        }
        if good_N.any():
            found["dev/chosen_log_ratio"] = float(log_ratio_N[good_N].mean())
        if not good_N.all():
            found["dev/rejected_log_ratio"] = float(log_ratio_N[~good_N].mean())
        if good_N.any() and not good_N.all():
            gap = found["dev/chosen_log_ratio"] - found["dev/rejected_log_ratio"]
            found["dev/margin"] = self.config.beta * gap
        return found


def on_their_side(log_ratio_N: torch.Tensor, good_N: torch.Tensor, reference_point: float) -> torch.Tensor:
    """1 where a good response's log-ratio is above z0 or a bad one's below, a half where it is z0."""
    sign_N = torch.sign(log_ratio_N - reference_point) * torch.where(good_N, 1.0, -1.0)
    return (1 + sign_N) / 2
