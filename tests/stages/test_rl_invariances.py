"""What a rollout, a loss and an update must be, from the definitions: one unpadded row at a time, by autograd
of the formula, or by a change that must change nothing. Policy and reference differ, prompts do in length."""

import copy
import dataclasses
import json

import pytest
import torch

import trainers
from exact import tabular_task, train
from preferl.learning import monitor
from preferl.learning.algorithms import ALGORITHMS, MicroBatch
from preferl.learning.meter import Meter
from preferl.learning.models import load_models
from preferl.models import load
from preferl.models.critic import token_values
from preferl.models.reward import load_reward_model
from preferl.runs.errors import DivergedError
from preferl.sampling.samples import rows_of
from preferl.stages import rl
from seeds import SEEDS, require_at_least
from small_models import make_language_model
from trainers import flat_gradient

CPU = torch.device("cpu")
COEF = 0.37


def letters(prompts, completions, finished, **columns):
    """A reward of sd about 1 that looks at the text and at whether it ended."""
    return [
        (sum(map(ord, text)) % 101) / 30 - 1.5 + 0.1 * end
        for text, end in zip(completions, finished, strict=True)
    ]


@pytest.fixture(scope="module")
def directories(tmp_path_factory, tokenizer):
    """A policy and another reference, of each family."""
    root = tmp_path_factory.mktemp("models")
    for kind in ("llama", "gpt2"):
        model = make_language_model(kind, tokenizer)
        load.save(model, tokenizer, root / kind)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        load.save(model, tokenizer, root / f"{kind}-reference")
    return root


@pytest.fixture
def config(tmp_path, directories):
    return rl.RlConfig(
        output_dir=str(tmp_path / "rl"),
        model_name_or_path=str(directories / "llama"),
        ref_model=str(directories / "llama-reference"),
        reward_model="length",
        algorithm="rloo",
        kl_coef=COEF,
        batch_size=12,
        response_length=8,
        temperature=0.7,
        num_threads=1,
        device="cpu",
    )


def trainer_for(config: rl.RlConfig) -> rl.Trainer:
    """The loop with a reward that looks at the text, and a critic that is not 0."""
    trainer = trainers.trainer_for(config, letters)
    if trainer.learner.models.critic is not None:
        torch.manual_seed(3)
        torch.nn.init.normal_(trainer.learner.models.critic.score.weight)
    return trainer


def logits_of(model, samples, row):
    """``logits_TV`` of one response by their definition: its row alone, without padding, float64."""
    prompt = samples.tokens_BS[row, : samples.prompt_width][samples.prompt_mask_BP[row] == 1]
    response = samples.response_BT[row][samples.mask_BT[row] == 1]
    logits_TV = model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
    logits_TV = logits_TV.double() / samples.sampling.temperature
    suppressed_V = torch.zeros(logits_TV.shape[-1], dtype=torch.bool)
    suppressed_V[list(samples.sampling.suppressed)] = True
    return logits_TV.masked_fill(suppressed_V, -1e9), response


def logp_of(model, samples, row):
    """``logp_T`` of one response."""
    logits_TV, response = logits_of(model, samples, row)
    return logits_TV.log_softmax(-1)[torch.arange(len(response)), response]


def gradient(learner, batch):
    """The gradient of the policy on one minibatch of all rows."""
    trainers.backward(learner, batch)
    found = flat_gradient(learner.models.policy)
    learner.forget_gradients()
    return found


# ------------------------------------------------------------------------------------------------ rollout


def test_token_rewards_are_the_kl_of_each_response_token_and_the_score_on_the_last(config):
    """Row by row: -coef (log pi - log pi_ref) of every response token and no other, at the temperature; on
    the last one the score of the text, clipped, minus 2 without EOS. The coefficient is the controller's."""
    trainer = trainer_for(dataclasses.replace(config, reward_clip=1.0, missing_eos_penalty=2.0, kl_coef=9.0))
    learner, reference = trainer.learner, trainer.learner.models.reference
    learner.state.kl.coef = COEF
    rollout = trainer.collect()
    samples, policy = rollout.samples, learner.models.policy
    lengths = samples.mask_BT.sum(-1).tolist()
    responses = [row[:n] for row, n in zip(samples.response_BT.tolist(), lengths, strict=True)]
    ended = [response[-1] in trainer.policy.sampling(config).stop for response in responses]
    texts = [
        trainer.policy.tokenizer.decode(r[: len(r) - end]) for r, end in zip(responses, ended, strict=True)
    ]
    assert rollout.completions == texts
    scores = letters(rollout.prompts, rollout.completions, ended)
    assert rollout.score_B.tolist() == pytest.approx(scores)
    assert max(scores) > 1.0
    assert set(ended) == {True, False}
    total, exact = [], []
    with torch.no_grad():
        for row, score in enumerate(scores):
            logp_T, ref_T = (logp_of(model, samples, row) for model in (policy, reference))
            expected_T = -COEF * (logp_T - ref_T)
            expected_T[-1] += min(max(score, -1.0), 1.0) - 2.0 * (not ended[row])
            reward_T, padding = (
                rollout.reward_BT[row].double().split([len(logp_T), samples.mask_BT.shape[1] - len(logp_T)])
            )
            torch.testing.assert_close(reward_T, expected_T, atol=2e-5, rtol=1e-5)
            assert not padding.any()
            total.append(float((logp_T - ref_T).sum()))
            p_TV, q_TV = (logits_of(model, samples, row)[0].log_softmax(-1) for model in (policy, reference))
            exact.append(float((p_TV.exp() * (p_TV - q_TV)).sum()))
    row = monitor.describe(rollout, learner, None, COEF)
    assert row["kl"] == pytest.approx(sum(total) / len(total), abs=1e-4)
    assert row["kl_exact"] == pytest.approx(sum(exact) / len(exact), abs=1e-4)
    assert min(map(abs, total)) > 0.01


def test_a_kl_in_the_loss_is_not_in_the_reward_too(config):
    trainer = trainer_for(dataclasses.replace(config, kl_in="loss"))
    rollout = trainer.collect()
    assert (rollout.samples.logp_BT - rollout.ref_logp_BT).abs().max() > 0.1
    torch.testing.assert_close(rollout.reward_BT.sum(-1), rollout.shaped_B)
    assert ((rollout.reward_BT != 0).sum(-1) == 1).all()


# ------------------------------------------------------------------------------------------- advantages


def test_whitened_advantages_have_mean_0_and_sd_1_over_the_real_tokens(config):
    trainer = trainer_for(dataclasses.replace(config, algorithm="ppo"))
    rollout = trainer.collect()
    real_BT = rollout.samples.mask_BT == 1
    assert not real_BT.all()
    advantage_BT = trainer.learner.prepare(rollout).advantage_BT
    assert advantage_BT[real_BT].mean().item() == pytest.approx(0, abs=1e-6)
    assert advantage_BT[real_BT].std(correction=0).item() == pytest.approx(1, abs=1e-5)
    assert not advantage_BT[~real_BT].any()


@pytest.mark.parametrize("algorithm", ["rloo", "grpo", "rebel", "online_dpo"])
def test_only_responses_to_one_prompt_are_compared(config, algorithm):
    """A constant of each prompt's own on the rewards changes no gradient."""
    trainer = trainer_for(dataclasses.replace(config, algorithm=algorithm, num_generations=3))
    learner, rollout = trainer.learner, trainer.collect()
    assert len(set(rollout.prompts)) == 4
    own = {prompt: 3.0 * i for i, prompt in enumerate(sorted(set(rollout.prompts)))}
    constant_B = torch.tensor([own[prompt] for prompt in rollout.prompts])
    reward_BT = rollout.reward_BT.clone()
    reward_BT[torch.arange(12), rollout.samples.mask_BT.sum(-1) - 1] += constant_B
    moved = dataclasses.replace(rollout, reward_BT=reward_BT, shaped_B=rollout.shaped_B + constant_B)
    plain, shifted = (gradient(learner, learner.prepare(r)) for r in (rollout, moved))
    assert plain.abs().max() > 1e-4
    torch.testing.assert_close(shifted, plain, atol=1e-4 * float(plain.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("scale", [True, False])
def test_grpo_divides_by_the_groups_sd_only_where_asked(config, scale):
    trainer = trainer_for(dataclasses.replace(config, algorithm="grpo", scale_rewards=scale))
    rollout = trainer.collect()
    advantage_BT = trainer.learner.prepare(rollout).advantage_BT
    for start in range(0, 12, 4):
        total = rollout.reward_BT[start : start + 4].sum(-1)
        expected = (total - total.mean()) / (total.std(correction=0) if scale else 1)
        for i in range(4):
            real_T = rollout.samples.mask_BT[start + i] == 1
            assert advantage_BT[start + i][real_T].tolist() == pytest.approx(
                [float(expected[i])] * int(real_T.sum()), abs=1e-5
            )


# ----------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("average", ["tokens", "responses", "sum"])
def test_the_first_gradient_is_the_policy_gradient(config, average):
    """That of -sum of advantage * log pi. A token weighs 1 / tokens of the batch (tokens), 1 / responses
    (sum), or that divided by the tokens of its response (responses)."""
    trainer = trainer_for(dataclasses.replace(config, loss_average=average))
    batch = trainer.learner.prepare(trainer.collect())
    found = gradient(trainer.learner, batch)
    policy, samples = trainer.learner.models.policy, batch.rollout.samples
    length_B = samples.mask_BT.sum(-1).tolist()
    total = torch.zeros((), dtype=torch.float64)
    for row, n in enumerate(length_B):
        weight = {"tokens": 1 / sum(length_B), "responses": 1 / (12 * n), "sum": 1 / 12}[average]
        total = total - weight * (batch.advantage_BT[row, :n] * logp_of(policy, samples, row)).sum()
    total.backward()
    expected = flat_gradient(policy)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_the_critics_loss_is_the_clipped_one_against_the_values_of_the_rollout(config):
    """vf_coef * mean over tokens of 1/2 max((v - R)^2, (clip(v, old - e, old + e) - R)^2), with v = old plus
    steps of both signs, inside the clip and beyond."""
    trainer = trainer_for(dataclasses.replace(config, algorithm="ppo", vf_coef=0.3))
    batch = trainer.learner.prepare(trainer.collect())
    mask_BT, old_BT, return_BT = batch.rollout.samples.mask_BT, batch.rollout.value_BT, batch.return_BT
    step_BT = torch.randn(mask_BT.shape, generator=torch.Generator().manual_seed(0)) * 0.4
    value_BT = (old_BT + step_BT).requires_grad_()
    minibatch = trainers.whole(trainer.learner, batch)
    loss = trainer.learner.value_loss(batch, minibatch, torch.arange(12), value_BT, Meter())
    clipped_BT = old_BT + step_BT.clamp(-0.2, 0.2)
    worse_BT = torch.maximum((old_BT + step_BT - return_BT) ** 2, (clipped_BT - return_BT) ** 2)
    expected = 0.3 * 0.5 * float((worse_BT * mask_BT).sum()) / int(mask_BT.sum())
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_kl_in_the_loss_is_k2_of_whole_responses(config):
    """Its gradient: that of coef * mean over responses of 1/2 (log pi(y|x) - log pi_ref(y|x))^2."""
    trainer = trainer_for(dataclasses.replace(config, kl_in="loss", loss_average="sum"))
    learner = trainer.learner
    batch = learner.prepare(trainer.collect())
    whole = gradient(learner, batch)
    learner.state.kl.coef = 0.0
    found = whole - gradient(learner, batch)
    policy, reference = learner.models.policy, learner.models.reference
    samples = batch.rollout.samples
    total = torch.zeros((), dtype=torch.float64)
    for row in range(12):
        with torch.no_grad():
            ref = logp_of(reference, samples, row).sum()
        total = total + 0.5 * (logp_of(policy, samples, row).sum() - ref) ** 2
    (COEF * total / 12).backward()
    expected = flat_gradient(policy)
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_rebel_scales_the_first_batchs_reward_differences_to_1(config):
    trainer = trainer_for(dataclasses.replace(config, algorithm="rebel", num_generations=2))
    score_PG = trainer.learner.prepare(trainer.collect()).score_PG
    gap_P = score_PG[:, 0] - score_PG[:, 1]
    assert (gap_P**2).mean().item() == pytest.approx(1, rel=1e-5)


def policy_loss(learner, micro):
    """The micro-batch's share of the loss, and what each row or pair lost."""
    algorithm = learner.algorithm
    return algorithm.over.reduce(algorithm.loss(micro, learner.options), micro)


@pytest.mark.parametrize("algorithm", ["rebel", "online_dpo"])
def test_losses_over_pairs_are_lowest_where_the_papers_say(config, algorithm):
    """REBEL: log-ratio to the sampler = eta * reward; online DPO with soft labels: log-ratio to the reference
    = score / beta; each up to a constant of the prompt. There and only there the gradient is 0."""
    options = dataclasses.replace(config, algorithm=algorithm, num_generations=3, rebel_eta=0.4)
    trainer = trainer_for(options)
    batch = trainer.learner.prepare(trainer.collect())
    rollout = batch.rollout
    mask_BT, old_BT, ref_BT = rollout.samples.mask_BT, rollout.samples.logp_BT, rollout.ref_logp_BT
    if algorithm == "rebel":
        from_BT, step_B = old_BT, 0.4 * rollout.reward_BT.sum(-1)
    else:
        from_BT, step_B = ref_BT, rollout.shaped_B / COEF
    constant_B = torch.arange(4.0).repeat_interleave(3)
    at_optimum_BT = from_BT + ((step_B + constant_B) / mask_BT.sum(-1))[:, None] * mask_BT
    slopes = []
    for logp_BT in (at_optimum_BT, old_BT):
        logp_BT = logp_BT.clone().requires_grad_()
        micro = MicroBatch(
            logp_BT, old_BT, ref_BT, batch.advantage_BT, mask_BT, batch.score_PG, torch.ones(12), 12, COEF
        )
        loss, loss_N = policy_loss(trainer.learner, micro)
        assert len(loss_N) == 12  # four groups of three pairs
        loss.backward()
        slopes.append(float(logp_BT.grad.abs().max()))
    assert slopes[0] < 1e-5
    assert slopes[1] > 1e-3


def test_a_response_as_one_action_has_one_ratio(config):
    """exp(sum of log-ratios), clipped as a whole, times the advantage of its first state."""
    options = dataclasses.replace(config, algorithm="ppo", ratio_level="response", loss_average="sum")
    trainer = trainer_for(options)
    batch = trainer.learner.prepare(trainer.collect())
    samples, mask_BT = batch.rollout.samples, batch.rollout.samples.mask_BT
    step_BT = 0.1 * torch.randn(mask_BT.shape, generator=torch.Generator().manual_seed(0)) * mask_BT
    micro = MicroBatch(
        samples.logp_BT + step_BT,
        samples.logp_BT,
        batch.rollout.ref_logp_BT,
        batch.advantage_BT,
        mask_BT,
        batch.score_PG,
        torch.full((12,), 1 / 12),
        0,
        COEF,
    )
    loss, _ = policy_loss(trainer.learner, trainer.learner.as_actions(micro))
    ratio_B, advantage_B = step_BT.sum(-1).exp(), batch.advantage_BT[:, 0]
    gain_B = torch.minimum(ratio_B * advantage_B, ratio_B.clamp(0.8, 1.2) * advantage_B)
    assert ((ratio_B - 1).abs() > 0.2).any()
    assert loss.item() == pytest.approx(-gain_B.mean().item(), abs=1e-6)


# ----------------------------------------------------------------------------------------------- update


def test_every_pass_compares_with_the_probabilities_of_the_sampler(config):
    """The policy moves from pass to pass, the denominator of the ratio does not."""
    trainer = trainer_for(dataclasses.replace(config, num_ppo_epochs=3, learning_rate=1e-2))
    learner, rollout, seen = trainer.learner, trainer.collect(), []
    algorithm = learner.algorithm

    def spy(micro, options):
        seen.append(micro)
        return algorithm.loss(micro, options)

    learner.algorithm = dataclasses.replace(algorithm, loss=spy)
    sampled = sorted(rollout.samples.logp_BT.sum(-1).tolist())
    learner.update(rollout)
    assert len(seen) == 3
    for number, micro in enumerate(seen):
        assert sorted(micro.old_logp_BT.sum(-1).tolist()) == pytest.approx(sampled, abs=1e-5)
        moved = float((micro.logp_BT.detach() - micro.old_logp_BT).abs().max())
        assert (moved > 1e-2) == (number > 0)


@pytest.mark.parametrize("algorithm", ["ppo", "rebel"])
def test_each_epoch_takes_every_row_once_and_pairs_stay_whole(config, algorithm):
    options = dataclasses.replace(
        config, algorithm=algorithm, num_ppo_epochs=2, num_mini_batches=3, num_generations=2
    )
    trainer = trainer_for(options)
    minibatches = list(trainer.learner.minibatches(trainer.collect().samples.mask_BT))
    orders = []
    for epoch in range(2):
        parts = [m.rows for m in minibatches if f"epoch {epoch}," in m.where]
        assert [len(rows) for rows in parts] == [4, 4, 4]
        order = torch.cat(parts).tolist()
        assert sorted(order) == list(range(12))
        orders.append(order)
        if algorithm == "rebel":
            assert all(b == a + 1 and a % 2 == 0 for a, b in zip(order[::2], order[1::2], strict=True))
    assert orders[0] != orders[1]


def test_the_critic_has_a_learning_rate_of_its_own_and_learns_through_its_whole_trunk(config):
    trainer = trainer_for(dataclasses.replace(config, algorithm="ppo", critic_learning_rate=0.0))
    models, rollout = trainer.learner.models, trainer.collect()
    before = {name: load.weights_hash(getattr(models, name)) for name in ("policy", "critic", "reference")}
    trainer.learner.update(rollout)
    after = {name: load.weights_hash(getattr(models, name)) for name in before}
    assert [name for name in before if before[name] != after[name]] == ["policy"]

    value_BT = models.values(rollout.samples)
    (value_BT**2 * rollout.samples.mask_BT).sum().backward()
    still = [name for name, p in models.critic.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_the_exact_objective_rises(algorithm):
    """By enumeration of all 40 responses: towards the optimum from the first iterations on, never above."""
    early, final = [], []
    for seed in SEEDS:
        config = rl.RlConfig(
            algorithm=algorithm,
            kl_coef=0.5,
            batch_size=64,
            num_iterations=15,
            learning_rate=0.1,
            warmup_ratio=0.0,
            max_grad_norm=1e9,
            missing_eos_penalty=0.0,
            reward_clip=0.0,
            seed=seed,
        )
        curve = train(tabular_task(seed), config, every=5)
        early.append(curve.fraction[0])
        final.append(curve.final)
        assert not {"negative_kl", "above_best"} & set(curve.alarms)
    require_at_least(0.15, 0.03, early)
    require_at_least(0.35, 0.15, final)
    require_at_least(0.0, -0.1, [b - a for a, b in zip(early, final, strict=True)])
    assert max(final) < 1


# ------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize(
    ("kind", "options"),
    [("gpt2", {}), ("gpt2", {"value_model": "policy"}), ("llama", {"lora_r": 2, "ref_model": None})],
    ids=["gpt2", "critic-from-policy", "lora"],
)
def test_nothing_is_in_training_mode(config, directories, tmp_path, kind, options):
    """GPT-2 has dropout in its configuration; a dropped unit would make every ratio and every KL a lie."""
    torch.manual_seed(0)
    load.save(*load_reward_model(str(directories / kind), CPU, True), tmp_path / "reward")
    changed = {
        "algorithm": "ppo",
        "model_name_or_path": str(directories / kind),
        "ref_model": str(directories / f"{kind}-reference"),
        "reward_model": str(tmp_path / "reward"),
    }
    trainer = trainer_for(dataclasses.replace(config, **(changed | options)))
    models, _, scorer = load_models(trainer.config, True, CPU)
    every = [models.policy, models.critic, scorer.model]
    every += [models.reference] if models.reference is not None else []
    assert not [m for model in every for m in model.modules() if m.training]
    assert models.critic is not scorer.model
    learner, rollout = trainer.learner, trainer.collect()
    batch = learner.prepare(rollout)
    assert torch.equal(gradient(learner, batch), gradient(learner, batch))
    learner.update(rollout)
    assert not [m for m in learner.models.policy.modules() if m.training]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_values_do_not_depend_on_the_padding(config, directories, kind):
    """GPT-2 counts positions absolutely: a left-padded prompt must start at position 0."""
    name = str(directories / kind)
    trainer = trainer_for(dataclasses.replace(config, algorithm="ppo", model_name_or_path=name))
    samples, critic = trainer.collect().samples, trainer.learner.models.critic
    with torch.no_grad():
        together_BT = token_values(critic, samples.tokens_BS, samples.attention_BS, samples.prompt_width)
        for row in range(12):
            one = rows_of(samples, torch.tensor([row]))
            # No padding is left, so no mask and no positions are needed.
            hidden_SD = critic.base_model(input_ids=one.tokens_BS).last_hidden_state[0]
            expected_T = critic.score(hidden_SD[one.prompt_width - 1 : -1])[:, 0]
            torch.testing.assert_close(together_BT[row, : len(expected_T)], expected_T, atol=1e-4, rtol=1e-4)


# --------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def running(config, tmp_path):
    """A configuration that ``run`` can start from files."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Name thing {i}."}) + "\n" for i in range(20)))
    return dataclasses.replace(
        config, dataset_name=str(prompts), ref_model=None, num_iterations=3, eval_every=0
    )


def test_a_policy_that_does_not_start_at_its_reference_stops_the_run(config):
    trainer = trainer_for(config)
    trainer.config = dataclasses.replace(config, ref_model=None)
    with pytest.raises(DivergedError, match="KL of the first batch"):
        trainer.iterate(1)


def test_a_reference_that_moves_stops_the_run(running, monkeypatch):
    iterate = rl.Trainer.iterate

    def and_move(self, iteration):
        found = iterate(self, iteration)
        next(self.learner.models.reference.parameters()).data.add_(1e-3)
        return found

    monkeypatch.setattr(rl.Trainer, "iterate", and_move)
    with pytest.raises(DivergedError, match="frozen reference have changed"):
        rl.run(running)


def test_the_adaptive_coefficient_follows_the_kl_of_responses(running, config):
    """Ziegler et al. 2019, section 2.2: coef *= 1 + clip(kl / target - 1, -.2, .2) * n / horizon, in nats per
    response; the next batch is penalised by it. The target is near enough that nothing is clipped."""
    base = dataclasses.replace(running, ref_model=config.ref_model, learning_rate=1e-6)
    kl = metrics(rl.run(dataclasses.replace(base, num_iterations=1)))[0]["train/kl"]
    options = {"kl_controller": "adaptive", "kl_target": 1.1 * kl, "kl_horizon": 100.0}
    rows = metrics(rl.run(dataclasses.replace(base, **options), fresh=True))
    coef, errors = COEF, []
    for row in rows:
        assert row["kl_coef"] == pytest.approx(coef, rel=1e-9)
        errors.append(row["train/kl"] / (1.1 * kl) - 1)
        coef *= 1 + min(max(errors[-1], -0.2), 0.2) * 12 / 100
    assert errors[0] == pytest.approx(-1 / 11)


def metrics(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_copies_of_a_policy_are_not_the_policy(config):
    """What the engine samples from is what is trained; the reference shares no tensor with it."""
    trainer = trainer_for(dataclasses.replace(config, algorithm="ppo"))
    models = trainer.learner.models
    assert trainer.policy.engine.model is models.policy
    trained = {p.data_ptr() for p in models.policy.parameters()}
    for other in (models.reference, models.critic):
        assert not trained & {p.data_ptr() for p in other.parameters()}
    kept = copy.deepcopy(models.reference.state_dict())
    trainer.learner.update(trainer.collect())
    assert all(torch.equal(kept[name], now) for name, now in models.reference.state_dict().items())
