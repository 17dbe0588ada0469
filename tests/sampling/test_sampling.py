"""The cached engine: the distribution of a full forward pass, exact log-probabilities, no pad, repeatable."""

import dataclasses

import pytest
import torch
from scipy import stats

from preferl.data.records import PromptRecord
from preferl.judging.scorers import scored
from preferl.learning.rollout import Shaping, collect
from preferl.options.shared import SamplingOptions
from preferl.runs.errors import DivergedError, UsageError
from preferl.sampling.cached import CachedEngine, draw
from preferl.sampling.logprobs import policy_logprobs
from preferl.sampling.samples import Sampling, cut_at_stop, decode, rows_of
from trainers import StopsOften

PROMPTS = [[10, 11, 12, 13, 14, 15, 16], [20], [30, 31, 32]] * 8


@pytest.fixture
def sampling(tokenizer):
    """Many ids stop a response, so that rows of a random model end at different steps."""
    return Sampling(0.9, 12, (tokenizer.pad_token_id,), (tokenizer.eos_token_id, *range(40, 80)))


def engine_for(model, tokenizer, **options):
    return CachedEngine(model, tokenizer.pad_token_id, **options)


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def test_captured_logprobs_are_those_of_a_full_forward_pass(language_model, tokenizer, sampling):
    samples = engine_for(language_model, tokenizer).sample(PROMPTS, sampling, gen())
    with torch.no_grad():
        full = policy_logprobs(language_model, samples)
    assert (full - samples.logp_BT).abs().max() < 2e-5
    assert samples.finished_B.any()


def test_a_sample_does_not_depend_on_its_batch(language_model, tokenizer, sampling):
    """Also not on how many rows are decoded at once, nor on when others finish."""
    together = engine_for(language_model, tokenizer).sample(PROMPTS, sampling, gen())
    small = engine_for(language_model, tokenizer, batch_size=5).sample(PROMPTS, sampling, gen())
    assert torch.equal(together.tokens_BS, small.tokens_BS)
    torch.testing.assert_close(together.logp_BT, small.logp_BT, atol=1e-5, rtol=0)


def test_logprobs_do_not_depend_on_padding(language_model, tokenizer, sampling):
    samples = engine_for(language_model, tokenizer).sample(PROMPTS, sampling, gen())
    with torch.no_grad():
        whole = policy_logprobs(language_model, samples)
        for row in range(6):
            part = rows_of(samples, torch.tensor([row]))
            alone = policy_logprobs(language_model, part)[0]
            width = part.mask_BT.shape[1]
            assert part.prompt_width == len(PROMPTS[row])
            torch.testing.assert_close(whole[row, :width], alone, atol=1e-5, rtol=0)
            assert not whole[row, width:].any()


def test_the_same_seed_repeats_and_another_does_not(language_model, tokenizer, sampling):
    engine = engine_for(language_model, tokenizer)
    first, second = (engine.sample(PROMPTS, sampling, gen(1)) for _ in range(2))
    assert torch.equal(first.tokens_BS, second.tokens_BS)
    assert torch.equal(first.logp_BT, second.logp_BT)
    other = engine.sample(PROMPTS, sampling, gen(2))
    assert other.tokens_BS.shape != first.tokens_BS.shape or not torch.equal(other.tokens_BS, first.tokens_BS)


def test_masks_count_eos_once_and_nothing_after(language_model, tokenizer, sampling):
    samples = engine_for(language_model, tokenizer).sample(PROMPTS * 4, sampling, gen())
    for tokens, mask, logp, done in zip(
        samples.response_BT, samples.mask_BT, samples.logp_BT, samples.finished_B, strict=True
    ):
        length = int(mask.sum())
        assert mask[:length].all()
        assert not mask[length:].any()
        assert not logp[length:].any()
        assert (tokens[length:] == tokenizer.pad_token_id).all()
        assert (int(tokens[length - 1]) in sampling.stop) == bool(done)
        assert not set(sampling.stop) & set(tokens[: length - 1].tolist())
        assert done or length == sampling.response_length


def test_pad_is_never_drawn_even_where_the_model_loves_it(policy_directory, tokenizer, sampling):
    from preferl.models.load import load_policy

    model, _ = load_policy(str(policy_directory), torch.device("cpu"))
    bias = torch.zeros(len(tokenizer))
    bias[tokenizer.pad_token_id] = 100.0
    model.lm_head.register_forward_hook(lambda module, inputs, output: output + bias)
    samples = engine_for(model, tokenizer).sample(PROMPTS, sampling, gen())
    real = samples.response_BT[samples.mask_BT.bool()]
    assert tokenizer.pad_token_id not in real.tolist()
    assert torch.isfinite(samples.logp_BT).all()
    with torch.no_grad():
        assert (policy_logprobs(model, samples) - samples.logp_BT).abs().max() < 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sequences_come_with_their_exact_probabilities(tokenizer, temperature):
    """Chi-square of 200,000 two-token sequences against all probabilities, by enumeration."""
    from small_models import make_language_model

    model = make_language_model("llama", tokenizer)
    allowed = [tokenizer.eos_token_id, 40, 41, 42]
    ban = torch.full((len(tokenizer),), -1e9)
    ban[allowed] = 0.0
    model.lm_head.register_forward_hook(lambda module, inputs, output: output / 3 + ban)
    sampling = Sampling(temperature, 2, (tokenizer.pad_token_id,), (tokenizer.eos_token_id,))
    n = 200_000
    engine = engine_for(model, tokenizer, batch_size=4000)
    samples = engine.sample([[10, 11]] * n, sampling, gen(7))

    with torch.no_grad():
        first = (model(torch.tensor([[10, 11]])).logits[0, -1] / temperature).softmax(-1)
        expected = {(allowed[0],): first[allowed[0]].item()}
        for a in allowed[1:]:
            second = (model(torch.tensor([[10, 11, a]])).logits[0, -1] / temperature).softmax(-1)
            expected |= {(a, b): (first[a] * second[b]).item() for b in allowed}
    assert sum(expected.values()) == pytest.approx(1, abs=1e-5)
    counts = dict.fromkeys(expected, 0)
    for tokens, mask in zip(samples.response_BT.tolist(), samples.mask_BT.sum(-1).tolist(), strict=True):
        counts[tuple(tokens[:mask])] += 1
    p = torch.tensor(list(expected.values()), dtype=torch.float64)
    chi = stats.chisquare(list(counts.values()), (p / p.sum() * n).numpy())
    assert chi.pvalue > 1e-3, chi


def test_inverse_cdf_never_picks_the_impossible():
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    uniform = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    token, logp = draw(logits, uniform, 1.0, [0])
    assert token.tolist() == [1, 2]
    expected = torch.tensor([1.0, 0.0]).log_softmax(-1)
    torch.testing.assert_close(logp, expected)


def test_a_stop_text_ends_a_response_with_the_token_that_completes_it(language_model, tokenizer, sampling):
    """That token is the last that counts; a response without the text stays whole."""
    engine = engine_for(language_model, tokenizer)
    whole = engine.sample(PROMPTS, dataclasses.replace(sampling, stop_texts=("e", "o")), gen())
    cut, lengths = cut_at_stop(whole, tokenizer), whole.mask_BT.sum(-1).tolist()
    shortened = 0
    for row, length in enumerate(lengths):
        tokens = whole.response_BT[row].tolist()
        ends = [n for n in range(1, length + 1) if set("eo") & set(tokenizer.decode(tokens[:n]))]
        kept = int(cut.mask_BT[row].sum())
        assert kept == (ends[0] if ends else length)
        assert bool(cut.finished_B[row]) == bool(ends or whole.finished_B[row])
        torch.testing.assert_close(cut.logp_BT[row, :kept], whole.logp_BT[row, :kept], atol=0, rtol=0)
        assert (cut.response_BT[row, kept:] == tokenizer.pad_token_id).all()
        shortened += kept < length
    assert 0 < shortened < len(lengths)


class ZeroLearner:
    """A reference that is the policy itself."""

    def reference_logprobs(self, samples):
        return samples.logp_BT - 0.5 * samples.mask_BT

    def values(self, samples):
        return torch.zeros(samples.mask_BT.shape)


def test_a_rollout_scores_the_text_and_places_the_reward(language_model, tokenizer):
    seen = {}

    def scorer(prompts, completions, finished, **columns):
        seen.update(prompts=prompts, completions=completions, finished=finished)
        return [float(len(text)) for text in completions]

    prompts = [f"prompt {i}" for i in range(len(PROMPTS))]
    out = collect(
        StopsOften(language_model, tokenizer),
        [PromptRecord(prompt) for prompt in prompts],
        scorer,
        ZeroLearner(),
        SamplingOptions(response_length=12),
        gen(),
        kl_coef=0.1,
        shaping=Shaping(missing_eos_penalty=2.0),
    )
    assert seen["prompts"] == prompts
    assert out.completions == decode(tokenizer, out.samples)
    assert not any(tokenizer.eos_token in text for text in out.completions)
    length = out.samples.mask_BT.sum(-1)
    expected = out.score_B - 2.0 * (~out.samples.finished_B) - 0.1 * 0.5 * length
    torch.testing.assert_close(out.reward_BT.sum(-1), expected)
    assert out.group_size == 1


@pytest.mark.parametrize(
    ("scores", "message"), [([1.0], "1 scores for 2"), ([1.0, None], "None"), ([float("nan"), 1.0], "nan")]
)
def test_bad_scores_stop_the_run(scores, message):
    with pytest.raises((UsageError, DivergedError), match=message):
        scored(lambda prompts, completions: scores, ["p", "p"], ["a", "b"])


def test_rows(language_model, tokenizer, sampling):
    samples = engine_for(language_model, tokenizer).sample(PROMPTS, sampling, gen())
    part = rows_of(samples, torch.tensor([1, 4]))
    assert part.prompt_width == 1
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, torch.Tensor):
            assert len(value) == 2, field.name
