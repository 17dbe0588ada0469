"""Breaks the package in one place at a time and requires that a test notices: `make mutants`.

Each mutant is a replacement of text in one file of a copy of ``src``; a few tests run against that copy, and
one of them must fail. First every replacement must fit the source, every test must be there, and all of them
must pass on an unchanged copy.

    python tests/mutants.py                      all of them
    python tests/mutants.py flip-kl no-shift     some
    python tests/mutants.py --check              only whether they fit the source and the tests
    python tests/mutants.py --list
"""

import argparse
import gc
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300.0  # seconds

# A mutant must compute something wrong, not nothing: that these were raised proves no test good.
ACCIDENTS = (NameError, AttributeError, TypeError, ImportError, SyntaxError, Warning)


@dataclass(frozen=True)
class Mutant:
    """``old``, ``count`` times in ``src/preferl/<file>``, becomes ``new``; one of ``tests`` must fail."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    count: int = 1

    def misfit(self) -> str:
        """Why the replacement does not fit the source; nothing where it does."""
        path = ROOT / "src" / "preferl" / self.file
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        found = text.count(self.old)
        if found != self.count:
            return f"src/preferl/{self.file} has this text {found} times, not {self.count}: {self.old!r}"
        try:
            compile(text.replace(self.old, self.new), str(path), "exec")
        except SyntaxError as error:
            return f"what it makes of src/preferl/{self.file} is no Python: {error}"
        return ""

    def break_(self, source: Path) -> None:
        """Applies the replacement to a copy of ``src``."""
        path = source / "preferl" / self.file
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(self.old, self.new), encoding="utf-8")


@dataclass(frozen=True)
class Verdict:
    """How a run of tests ended: pytest's exit code, the first test that failed and its exception's name, what
    was wrong with the run itself, and its seconds."""

    code: int
    test: str = ""
    error: str = ""
    trouble: str = ""
    seconds: float = 0.0


# ----------------------------------------------------------------------------------------------- the tests

GOLDEN = "tests/maths/test_golden.py"
GRADIENTS = "tests/maths/test_gradients.py"
MASKS = "tests/maths/test_masks.py"
KL = "tests/maths/test_kl.py::"
OPTIM = "tests/learning/test_optim.py"
LOOP = "tests/learning/test_fit.py::"
PASSES = "tests/learning/test_micro_batches.py::"
RECOMPUTE = "tests/models/test_recompute.py::"
PLAN = "tests/models/test_plan.py::"
HUB = "tests/models/test_hub.py::"
KILLED = LOOP + "test_a_run_that_was_killed_goes_on_to_the_same_bytes"
RESUME = "tests/stages/test_resume.py::"
DAMAGED, SIGNALS = "tests/runs/test_checkpoint.py::test_", "tests/runs/test_signals.py::test_"
GOES_ON = RESUME + "test_killed_once_it_goes_on_to_the_same_bytes"
API = "tests/test_api.py::"
MODELS = "tests/models/test_models.py::"
FAMILIES = "tests/models/test_families.py::"
PACKING = "tests/models/test_packing.py::"
SAMPLING = "tests/sampling/test_sampling.py::"
TALK = "tests/test_chat_command.py::"
CHAT = "tests/data/test_chat.py::"
SPLITS = "tests/data/test_splits.py::"
RANKINGS = "tests/data/test_rankings.py::"
LAYOUTS = "tests/data/test_layouts.py::"
MARKS = "tests/runs/test_data_loss.py::"
INPUTS = "tests/runs/test_inputs.py::"
LOCKS = "tests/runs/test_lock.py::"
TRACKING, PROGRESS = "tests/runs/test_tracking.py::", "tests/runs/test_progress.py::"
PIPELINE, SWEEP = "tests/test_pipeline.py::", "tests/test_sweep.py::"
LABEL = "tests/label/"
FRONTIER, FRONTIERS = "statistics/frontier.py", "tests/statistics/test_frontier.py"
COMPARISONS = "tests/evaluation/test_comparison.py"
PAGES = "tests/reporting/test_report_pages.py"
GATHER = "tests/reporting/test_gather.py"
TRAINER_STATE = "tests/runs/test_trainer_state.py"
PUSH = "tests/share/test_push.py::test_"
SFT = "tests/stages/test_sft.py::"
DPO = "tests/stages/test_dpo.py::"
KTO = "tests/stages/test_kto.py::"
ATTRIBUTES = "tests/stages/test_attributes.py::"
REWARD = "tests/stages/test_reward.py::"
RL = "tests/stages/test_rl.py::"
STORAGE = "tests/models/test_storage.py::"
RL_MODELS = "tests/stages/test_rl_models.py::"
GUARD, CHOSEN = "tests/stages/test_rl_guard.py::", "tests/learning/test_defaults.py::"
TOO_FAR = GUARD + "test_a_policy_that_goes_too_far_ends_the_run_and_leaves_its_last_good_weights"
FOLLOWS = GUARD + "test_values_follow_returns_that_grow_by_more_than_a_point_a_batch"
TEN_TIMES = CHOSEN + "test_a_pretrained_model_moves_by_less_the_larger_it_is_and_lora_weights_by_more"
WATCH = "tests/stages/test_rl_watch.py::"
EXACT = "tests/stages/test_rl_invariances.py::"

TOKEN_REWARDS = EXACT + "test_token_rewards_are_the_kl_of_each_response_token_and_the_score_on_the_last"
ACCUMULATED = RL + "test_accumulated_gradients_are_those_of_the_whole_batch"
CAPTURED = SAMPLING + "test_captured_logprobs_are_those_of_a_full_forward_pass"
EOS_ONCE = SAMPLING + "test_masks_count_eos_once_and_nothing_after"
SHAPED = WATCH + "test_scores_are_clipped_penalised_for_length_and_for_a_missing_eos"
PAIR_LOSSES = EXACT + "test_losses_over_pairs_are_lowest_where_the_papers_say"
ONE_PROMPT = EXACT + "test_only_responses_to_one_prompt_are_compared"
EVAL_MODE = EXACT + "test_nothing_is_in_training_mode"
BY_FORMULA = REWARD + "test_every_loss_is_its_formula_and_reaches_the_whole_trunk"
DPO_SUMS = DPO + "test_logprobs_are_sums_over_the_response_at_the_sampling_temperature"

# --------------------------------------------------------------------------------------------- the mutants

POLICY, PREFERENCE, KL_MATHS = "maths/policy.py", "maths/preference.py", "maths/kl.py"
APART = "tests/sampling/test_distributions.py::"
SAMPLES, SHIFTED, CACHED = "sampling/samples.py", "sampling/logprobs.py", "sampling/cached.py"
ALGORITHMS, ROLLOUT = "learning/algorithms.py", "learning/rollout.py"
DEFAULTS = "learning/defaults.py"
CHECKPOINT = "runs/checkpoint.py"
LEARNER, FIT, STEPS = "learning/learner.py", "learning/fit.py", "learning/optim.py"
SCALAR, STAGE = "models/reward.py", "stages/rl.py"
INSTRUCTIONS, GOLD = "judging/instructions.py", "tests/judging/test_instructions.py::"

MUTANTS = (
    # The reward and the KL.
    Mutant("flip-score", ROLLOUT, "torch.tensor(score_responses(", "-torch.tensor(score_responses(",
           (TOKEN_REWARDS,)),
    Mutant("flip-score-on-token", POLICY, "reward_BT + score_B", "reward_BT - score_B", (GOLDEN,)),
    Mutant("flip-kl", POLICY, "(-kl_coef * kl_BT)", "(kl_coef * kl_BT)", (GOLDEN,)),
    Mutant("flip-log-ratio", ROLLOUT, "kl_BT = samples.logp_BT - ref_logp_BT",
           "kl_BT = ref_logp_BT - samples.logp_BT", (TOKEN_REWARDS,)),
    Mutant("flip-kl-estimates", KL_MATHS, "(logp - ref_logp)", "(ref_logp - logp)",
           (KL + "test_expected_estimates_golden",)),
    Mutant("flip-k3", KL_MATHS, "torch.expm1(-d) + d", "torch.expm1(d) - d",
           (KL + "test_expected_estimates_golden",)),
    Mutant("exact-kl-under-the-reference", KL_MATHS, "p_BTV = logp_BTV.exp()",
           "p_BTV = ref_logits_BTV.softmax(-1)", (GOLDEN,)),
    Mutant("prompt-in-the-kl", ROLLOUT, "    kl_BT = samples.logp_BT - ref_logp_BT\n",
           """    kl_BT = samples.logp_BT - ref_logp_BT
    import dataclasses
    first, rest = samples.prompt_mask_BP[:, :1], samples.attention_BS[:, 1:]
    whole = dataclasses.replace(samples, prompt_mask_BP=first, mask_BT=rest)
    models = passes.models
    with torch.no_grad():
        ours, theirs = (f(whole).logprobs() for f in (models.distributions, models.reference_distributions))
    kl_BT[:, 0] += (ours - theirs)[:, : samples.prompt_width - 1].nan_to_num().sum(-1)
""",
           (TOKEN_REWARDS,)),
    Mutant("kl-in-reward-and-loss", LEARNER,
           "if self.loss_kl is None and self.algorithm.kl_in_reward else 0.0",
           "if self.algorithm.kl_in_reward else 0.0",
           (EXACT + "test_a_kl_in_the_loss_is_not_in_the_reward_too",)),
    Mutant("kl-twice-in-rebel", ALGORITHMS, "return state.eta * reward_PG",
           """kl_BT = rollout.samples.logp_BT - rollout.ref_logp_BT
    kl_PG = masked_sum(kl_BT, rollout.samples.mask_BT).reshape(reward_PG.shape)
    return state.eta * (reward_PG - options.kl_coef * kl_PG)""",
           (PAIR_LOSSES + "[rebel]",)),
    Mutant("kl-coefficient-never-moves", LEARNER, "return self.state.kl.coef if",
           "return self.options.kl_coef if", (TOKEN_REWARDS,)),
    Mutant("flip-adaptive-kl", KL_MATHS, "kl / self.target - 1", "1 - kl / self.target",
           (KL + "test_adaptive_controller_golden",)),
    Mutant("adaptive-kl-per-token", STAGE, 'state.kl.update(seen["kl"],',
           'state.kl.update(seen["kl_per_token"],',
           (EXACT + "test_the_adaptive_coefficient_follows_the_kl_of_responses",)),
    Mutant("k2-per-token-in-the-loss", LEARNER, '"k2" if options.kl_estimator == "auto"',
           '"k2_token" if options.kl_estimator == "auto"',
           (EXACT + "test_the_kl_in_the_loss_is_k2_of_whole_responses",)),
    Mutant("score-on-the-first-token", POLICY, "position_T == last_B1", "position_T == 0 * last_B1",
           (GOLDEN,)),
    Mutant("score-on-the-first-pad", POLICY, "position_T == last_B1", "position_T == last_B1 + 1", (GOLDEN,)),
    Mutant("score-on-the-last-column", POLICY, "position_T == last_B1", "position_T == len(position_T) - 1",
           (GOLDEN,)),
    Mutant("reward-clip-ignored", STAGE, "clip=config.reward_clip or None,", "clip=None,", (TOKEN_REWARDS,)),
    Mutant("own-rewards-clipped", STAGE, "CLIPS[name] if known_scale else 0.0", "CLIPS[name]",
           (GUARD + "test_only_what_a_reward_model_says_is_clipped",)),
    Mutant("mixtures-clipped", "judging/scorers.py", "return all(isinstance(part, RewardModel)",
           "return any(isinstance(part, RewardModel)",
           (GUARD + "test_only_what_a_reward_model_says_is_clipped",)),
    Mutant("values-clipped", LEARNER, "self.options.cliprange_value or math.inf,",
           "self.options.cliprange_value or 0.2,", (FOLLOWS,)),
    Mutant("critic-from-the-last-token", "learning/models.py",
           'if options.value_model == "auto" and not reads_all:', "if False:",
           ("tests/stages/test_rl_first_pairs.py::test_the_policy_stays_near_its_start",)),
    Mutant("rewards-tried-after-training", "pipeline.py",
           'if functions and data and not data.startswith("@"):', "if False:",
           ("tests/judging/test_trial.py::test_a_run_refuses_it_before_its_first_stage",)),
    Mutant("notes-said-by-every-stage", "runs/progress.py", "first = note not in heard", "first = True",
           ("tests/runs/test_progress.py::test_the_stages_of_a_run_say_each_note_once",)),
    Mutant("learnt-by-heart-unsaid", "stages/sft.py", "if last > LEARNT_BY_HEART * lowest:", "if False:",
           ("tests/stages/test_sft.py::test_rows_that_are_learnt_by_heart_are_said_to_be",)),
    Mutant("few-prompts-unsaid", "data/splits.py", "if not 0 < prompts < ENOUGH_PROMPTS:", "if True:",
           ("tests/test_stage_choice.py::test_an_evaluation_on_few_prompts_is_said_to_tell_little",)),
    Mutant("advice-that-comes-too-late", STAGE, "self.state.last_kl < config.max_kl / 2",
           "self.state.last_kl < config.max_kl * 2",
           (GUARD + "test_the_advice_is_by_how_it_got_so_far",)),
    Mutant("guard-from-zero", STAGE, "kl - first <= config.max_kl", "kl <= config.max_kl",
           (GUARD + "test_the_guard_counts_from_the_first_batch",)),
    Mutant("guard-off", STAGE, "kl - first <= config.max_kl", "kl - first <= 1e9", (TOO_FAR,)),
    Mutant("guard-without-penalty", STAGE, "if not config.kl_coef:", "if config.kl_coef < 0:",
           (GUARD + "test_without_a_penalty_it_is_an_alarm_and_none_is_neither",)),
    Mutant("guard-with-penalty-silent", STAGE, "if not config.kl_coef:", "if config.kl_coef >= 0:",
           (GUARD + "test_the_command_ends_with_4",)),
    Mutant("last-good-too-late", "learning/last_good.py", "before=state.iteration - 1",
           "before=state.iteration", (TOO_FAR,)),
    Mutant("lora-at-the-rate-of-all-weights", "options/defaults.py",
           "if not start.lora or", "if start.parameters or", (TEN_TIMES,)),
    Mutant("new-models-unmarked", "models/tiny.py", "**{ORIGIN: NEW},", "**{},",
           (CHOSEN + "test_a_model_of_an_older_preferl_is_known_by_the_stages_that_made_it",)),
    Mutant("older-models-unknown", "runs/descent.py", 'return made.get("stage") == "sft"', "return False",
           (CHOSEN + "test_a_model_of_an_older_preferl_is_known_by_the_stages_that_made_it",)),
    Mutant("chosen-anew", "runs/stage.py", "kept = self.found.chosen if self.goes_on else {}",
           "kept: dict = {}", (CHOSEN + "test_an_interrupted_stage_goes_on_with_what_was_chosen_for_it",)),
    Mutant("chosen-over-given", DEFAULTS,
           "name not in leave and getattr(config, name) is None", "name not in leave",
           (CHOSEN + "test_what_was_given_stays",)),
    Mutant("flip-missing-eos-penalty", ROLLOUT, "else score_B - penalty", "else score_B + penalty",
           (SHAPED,)),
    Mutant("flip-replaced-score", ROLLOUT, "(score_B, -penalty)", "(score_B, penalty)", (SHAPED,)),
    Mutant("penalty-on-finished-responses", ROLLOUT, "torch.where(samples.finished_B, score_B, unfinished_B)",
           "torch.where(samples.finished_B, unfinished_B, score_B)", (SHAPED,)),
    Mutant("flip-length-penalty", ROLLOUT, "score_B - self.length_penalty", "score_B + self.length_penalty",
           (SHAPED,)),
    Mutant("first-kl-unchecked", STAGE, 'abs(seen["kl"]) > limit', 'abs(seen["kl"]) > 1e9',
           (EXACT + "test_a_policy_that_does_not_start_at_its_reference_stops_the_run",)),
    Mutant("scorer-told-that-all-ended", "judging/scorers.py", "finished=responses.finished,",
           "finished=[True] * len(responses.finished),", (TOKEN_REWARDS,)),
    Mutant("eos-in-the-scored-text", SAMPLES, "if real and token not in ends", "if real", (TOKEN_REWARDS,)),
    # Tokens, masks and positions.
    Mutant("no-shift", SHIFTED, "outputs_BKX[:, :-1]", "outputs_BKX[:, 1:]", (CAPTURED,)),
    Mutant("masked-tokens-in-the-head", SHIFTED, "mask_BT.flatten().nonzero()[:, 0]",
           "torch.arange(mask_BT.numel())", (APART + "test_the_logits_of_all_tokens_are_never_in_memory",)),
    Mutant("no-ban-in-parts", SHIFTED, "without_suppressed(self.head(outputs), self.samples)",
           "self.head(outputs)", (APART + "test_tokens_a_few_at_a_time_are_all_tokens_at_once[llama]",)),
    Mutant("no-soft-cap", "models/output_head.py", "torch.tanh(logits_NV / cap) * cap", "logits_NV * 1.01",
           (APART + "test_tokens_a_few_at_a_time_are_all_tokens_at_once[gemma2]",)),
    Mutant("no-shift-in-sft", "stages/sft.py", "label_BS[:, 1:]", "label_BS[:, :-1]",
           (SFT + "test_the_loss_is_the_cross_entropy_of_the_response_with_its_end",)),
    Mutant("prompt-in-the-sft-loss", "stages/sft.py", "label_BS[i, :prompt_length]", "label_BS[i, :1]",
           (SFT + "test_the_loss_is_the_cross_entropy_of_the_response_with_its_end",)),
    Mutant("eos-never-learned", "data/tokens.py", "return [*ids, tokenizer.eos_token_id] if finished else",
           "return list(ids) if finished else", (CHAT + "test_eos_ends_a_finished_response_only",)),
    Mutant("eos-not-counted", CACHED, "mask_BT[rows, t] = 1",
           "mask_BT[rows, t] = (~torch.isin(token_A[running_A], stop)).long()", (EOS_ONCE,)),
    Mutant("after-eos-counted", CACHED, "mask_BT[rows, t] = 1", "mask_BT[alive, t] = 1", (EOS_ONCE,)),
    Mutant("after-stop-text-counted", SAMPLES, "mask_BT[row, low:] = 0", "mask_BT[row, low + 1 :] = 0",
           (SAMPLING + "test_a_stop_text_ends_a_response_with_the_token_that_completes_it",)),
    Mutant("pad-sampled", CACHED, 'scaled_BV[:, suppressed] = float("-inf")', "pass",
           (SAMPLING + "test_pad_is_never_drawn_even_where_the_model_loves_it",)),
    Mutant("pad-possible-in-training", SHIFTED, "ban_V[list(samples.sampling.suppressed)] = IMPOSSIBLE",
           "pass", (SAMPLING + "test_pad_is_never_drawn_even_where_the_model_loves_it",)),
    # Without positions, or with rows mixed up, trials find out, and what is slower is as exact.
    Mutant("no-positions-in-training", "models/passes.py", 'options["position_ids"] = position_BS', "pass",
           (FAMILIES + "test_a_family_that_lets_padding_into_its_state_is_found_out",)),
    Mutant("no-positions-in-sampling", "sampling/readers.py", "self.position_AS[:, place]",
           "0 * self.position_AS[:, place]", (FAMILIES + "test_a_cache_is_used_where_it_is_exact[gpt2]",)),
    Mutant("cache-rows-mixed-up", "sampling/readers.py", "reorder_cache(rows)",
           "reorder_cache(torch.arange(len(rows)))", (FAMILIES + "test_a_cache_is_used_where_it_is_exact",)),
    Mutant("a-cache-is-not-tried", CACHED, "if worst <= MAX_ERROR or", "if True or",
           (FAMILIES + "test_samples_have_the_probabilities_of_plain_passes[mamba]",)),
    Mutant("moved-rows-read-at-their-old-places", "models/passes.py", "column_BK - first)",
           "torch.arange(keep, device=ids_BS.device).expand_as(column_BK))",
           (FAMILIES + "test_rows_that_are_moved_for_a_pass_say_the_same",)),
    Mutant("padding-is-not-tried", "models/passes.py", "return not bool(error > TOLERANCE * largest)",
           "return True", (FAMILIES + "test_a_critic_values_states_as_if_rows_were_alone[rwkv]",)),
    Mutant("one-random-number-for-all-tokens", CACHED, "uniform_BT[alive, t]", "uniform_BT[alive, 0]",
           (SAMPLING + "test_sequences_come_with_their_exact_probabilities[1.0]",)),
    Mutant("no-temperature-in-training", SHIFTED,
           "response_logprobs(logits, pick(token_BT), temperature)",
           "response_logprobs(logits, pick(token_BT), 1.0)", (CAPTURED,)),
    Mutant("no-temperature-in-sampling", CACHED, "logits_BV.float() / temperature", "logits_BV.float() / 1.0",
           (CAPTURED,)),
    Mutant("no-temperature-in-the-exact-kl", SHIFTED,
           "kl_exact(logits / temperature, other.logits(pick(other.outputs_BTX)) / temperature)",
           "kl_exact(logits, other.logits(pick(other.outputs_BTX)))", (TOKEN_REWARDS,)),
    # Advantages.
    Mutant("whitening-over-padding", POLICY, "mean = masked_mean(x_BT, mask_BT)", "mean = x_BT.mean()",
           (MASKS,)),
    Mutant("padding-whitened-in-the-update", LEARNER, "return whiten(advantage_BT, mask_BT)",
           "return whiten(advantage_BT, torch.ones_like(mask_BT))",
           (EXACT + "test_whitened_advantages_have_mean_0_and_sd_1_over_the_real_tokens",)),
    Mutant("gae-over-padding", POLICY,
           "torch.where(real_B, delta_B + gamma * lam * next_advantage_B, next_advantage_B)",
           "delta_B + gamma * lam * next_advantage_B", (MASKS,)),
    Mutant("gae-of-padding-in-the-update", ALGORITHMS, "gae(reward_BT, rollout.value_BT, mask_BT,",
           "gae(reward_BT, rollout.value_BT, torch.ones_like(mask_BT),",
           (RL + "test_nothing_in_the_padding_moves_the_gradient",)),
    Mutant("no-lambda", POLICY, "delta_B + gamma * lam * next", "delta_B + gamma * next", (GOLDEN,)),
    Mutant("return-without-value", POLICY, "(advantage_BT + value_BT).masked_fill",
           "advantage_BT.masked_fill", (GOLDEN,)),
    Mutant("self-in-the-rloo-baseline", POLICY, " * (G / (G - 1))", "", (GOLDEN,)),
    Mutant("grpo-always-scales", ALGORITHMS, "(total_reward(rollout), options.scale_rewards)",
           "(total_reward(rollout), True)",
           (EXACT + "test_grpo_divides_by_the_groups_sd_only_where_asked",)),
    Mutant("groups-mixed-up", ALGORITHMS, "rollout.samples.mask_BT).reshape(-1, rollout.group_size)",
           "rollout.samples.mask_BT).reshape(rollout.group_size, -1).T", (ONE_PROMPT + "[rloo]",)),
    Mutant("groups-interleaved", "sampling/policy.py", "repeated(records, n), repeated(tokens, n)",
           "records * n, tokens * n", (ONE_PROMPT + "[grpo]",)),
    Mutant("groups-of-worths-mixed-up", ALGORITHMS, "score_B.reshape(-1, rollout.group_size)",
           "score_B.reshape(rollout.group_size, -1).T", (ONE_PROMPT + "[online_dpo]",)),
    Mutant("groups-of-log-ratios-mixed-up", ALGORITHMS, "self.mask_BT).reshape(-1, self.group_size)",
           "self.mask_BT).reshape(self.group_size, -1).T", (PAIR_LOSSES,)),
    Mutant("advantage-not-detached", SHIFTED, "@torch.no_grad()\ndef in_micro", "def in_micro",
           (RL + "test_advantages_carry_no_gradient_and_the_reference_none",)),
    Mutant("critic-one-token-late", "models/critic.py", "hidden_BSD[:, prompt_width - 1 : -1]",
           "hidden_BSD[:, prompt_width:]", (MODELS + "test_the_critic_starts_as_the_reward_model",)),
    Mutant("value-head-one-token-late", SHIFTED, "states_BKD[:, :-1]", "states_BKD[:, 1:]",
           (RL_MODELS + "test_the_value_head_reads_the_state_before_each_token",)),
    Mutant("head-only-critic", "models/critic.py", "hidden_BSD[:, prompt_width - 1 : -1]",
           "hidden_BSD[:, prompt_width - 1 : -1].detach()",
           (EXACT + "test_the_critic_has_a_learning_rate_of_its_own_and_learns_through_its_whole_trunk",)),
    Mutant("critic-learning-rate-ignored", STAGE, 'config.critic_learning_rate if name == "critic" else None',
           "None",
           (EXACT + "test_the_critic_has_a_learning_rate_of_its_own_and_learns_through_its_whole_trunk",)),
    Mutant("critic-is-the-reward-model", "models/critic.py", "        as_trained(critic)\n",
           "        critic.requires_grad_(True)\n",
           (EVAL_MODE + "[gpt2]",)),
    Mutant("running-baseline-ignored", ALGORITHMS, 'mean if options.baseline == "batch" else before', "mean",
           (WATCH + "test_the_running_baseline_follows_the_returns",)),
    # Weights in memory.
    Mutant("stored-gradient-of-another-product", "models/storage.py",
           "gradients[0] @ weight.to(gradients[0].dtype)",
           "1.01 * gradients[0] @ weight.to(gradients[0].dtype)",
           (STORAGE + "test_gradients_flow_through_a_stored_layer_as_through_one_in_float32",)),
    Mutant("narrow-weights-trained", "learning/optim.py", "    if narrow:\n", "    if False:\n",
           (STORAGE + "test_updates_of_a_usual_size_vanish_in_bfloat16_and_are_refused",)),
    Mutant("frozen-weights-in-the-configurations-dtype", "models/storage.py",
           "if len(floating) == 1 else torch.float32", "if floating else torch.float32",
           (STORAGE + "test_the_files_say_what_is_stored_and_not_the_configuration",)),
    Mutant("merged-into-everybodys-base", "models/lora.py", "    own_weights(adapted)\n", "",
           (RL_MODELS + "test_models_are_written_merged_and_the_base_stays_for_the_others",)),
    Mutant("equal-norms-become-one", "models/storage.py",
           "            del offered[id(found)]", "            pass",
           (STORAGE + "test_weights_are_shared_where_they_are_equal_and_frozen",)),
    # Losses and updates.
    Mutant("responses-averaged-as-sums", LEARNER, "1 / (length_B * len(rows))",
           "torch.full_like(length_B, 1 / len(rows))",
           (EXACT + "test_the_first_gradient_is_the_policy_gradient[responses]",)),
    Mutant("old-values-are-the-new-ones", LEARNER, "batch.rollout.value_BT[rows, :width].to(device)",
           "value_BT.detach()",
           (EXACT + "test_the_critics_loss_is_the_clipped_one_against_the_values_of_the_rollout",)),
    Mutant("value-coefficient-ignored", LEARNER, "self.options.vf_coef * row_loss_B", "row_loss_B",
           (EXACT + "test_the_critics_loss_is_the_clipped_one_against_the_values_of_the_rollout",)),
    Mutant("no-warm-up", STEPS, "if update < warmup:", "if update < 0:", (OPTIM,)),
    Mutant("no-decay", STEPS, "return end + (1 - end) * (1 - done) if", "return 1.0 if",
           (OPTIM,)),
    Mutant("labels-with-exponential-noise", ALGORITHMS, ".log().neg().log().float()", ".log().neg().float()",
           (WATCH + "test_labels_are_drawn_as_bradley_and_terry_say",)),
    Mutant("ppo-maximum", POLICY, "gain_BT = torch.minimum(", "gain_BT = torch.maximum(", (GOLDEN,)),
    Mutant("ppo-sign", POLICY, "return -gain_BT", "return gain_BT", (GOLDEN,)),
    Mutant("no-clip", POLICY, "ratio_BT.clamp(1 - cliprange, 1 + cliprange)", "ratio_BT", (GOLDEN,)),
    Mutant("dual-clip-on-the-wrong-side", POLICY, "torch.where(advantage_BT < 0, floor",
           "torch.where(advantage_BT > 0, floor", (GOLDEN,)),
    Mutant("value-clip-minimum", POLICY, "0.5 * torch.maximum(", "0.5 * torch.minimum(", (GOLDEN,)),
    Mutant("flip-policy-gradient", ALGORITHMS, "-micro.logp_BT * micro.advantage_BT",
           "micro.logp_BT * micro.advantage_BT", (EXACT + "test_the_exact_objective_rises[reinforce]",)),
    Mutant("ratio-of-a-response-by-its-mean", ALGORITHMS,
           "masked_sum(x_BT, micro.mask_BT)[:, None]",
           "masked_sum(x_BT, micro.mask_BT)[:, None] / micro.mask_BT.sum(-1, keepdim=True)",
           (EXACT + "test_a_response_as_one_action_has_one_ratio",)),
    Mutant("rebel-eta-inverted", PREFERENCE, "gap_B / eta", "gap_B * eta", (GOLDEN,)),
    Mutant("rebel-step-inverted", ALGORITHMS, "state.eta * reward_PG", "reward_PG / state.eta",
           (PAIR_LOSSES + "[rebel]",)),
    Mutant("rebel-default-step-inverted", ALGORITHMS, "(1 / spread if spread", "(spread if spread",
           (EXACT + "test_rebel_scales_the_first_batchs_reward_differences_to_1",)),
    Mutant("online-dpo-hard-labels", ALGORITHMS, 'soft = options.preference_labels == "soft"', "soft = False",
           (PAIR_LOSSES + "[online_dpo]",)),
    Mutant("online-dpo-swapped-labels", ALGORITHMS, "micro.score_PG[:, a] - micro.score_PG[:, b]",
           "micro.score_PG[:, b] - micro.score_PG[:, a]", (PAIR_LOSSES + "[online_dpo]",)),
    Mutant("online-dpo-mean-of-logps", ALGORITHMS, "masked_sum(x_BT, self.mask_BT).reshape",
           "(masked_sum(x_BT, self.mask_BT) / self.mask_BT.sum(-1)).reshape",
           (PAIR_LOSSES + "[online_dpo]",)),
    Mutant("online-dpo-against-the-sampler", ALGORITHMS, "micro.in_groups(micro.ref_logp_BT)",
           "micro.in_groups(micro.old_logp_BT)", (PAIR_LOSSES + "[online_dpo]",)),
    Mutant("micro-batch-by-its-own-count", LEARNER,
           "weight_B=minibatch.weight_B[rows]",
           "weight_B=self.weights(rollout.samples.mask_BT, rows)[rows]",
           (ACCUMULATED + "[rloo]",)),
    Mutant("micro-batch-of-pairs-by-its-own-count", ALGORITHMS, "loss_N.sum() / micro.pairs",
           "loss_N.mean()", (ACCUMULATED + "[rebel]",)),
    Mutant("micro-batch-of-values-by-its-own-count", LEARNER, "row_loss_B.sum() / minibatch.tokens",
           "row_loss_B.sum() / mask_BT.sum()", (ACCUMULATED + "[ppo]",)),
    Mutant("old-logps-are-the-new-ones", LEARNER, "part.logp_BT.to(device).masked_fill(mask_BT == 0, 0.0)",
           "logp_BT.detach()", (EXACT + "test_every_pass_compares_with_the_probabilities_of_the_sampler",)),
    Mutant("old-logps-recomputed-each-epoch", LEARNER,
           "            moved = self.accumulate(batch, minibatch)\n",
           """            if updates and minibatch.where.endswith("minibatch 0"):
                rollout.samples.logp_BT.copy_(self.forward_in_microbatches(
                    rollout.samples, lambda part: self.models.distributions(part).logprobs()
                ))
            moved = self.accumulate(batch, minibatch)
""",
           (EXACT + "test_every_pass_compares_with_the_probabilities_of_the_sampler",)),
    Mutant("first-ratio-unchecked", LEARNER, "if error > MAX_RATIO_ERROR[self.dtype]:", "if error > 1e9:",
           (RL + "test_a_wrong_behaviour_probability_is_found_before_the_update",)),
    Mutant("target-kl-never-stops", LEARNER, "if 0 < self.options.target_kl",
           "if 1e9 < self.options.target_kl",
           (WATCH + "test_updates_stop_when_the_policy_has_moved_too_far",)),
    Mutant("rows-drawn-with-replacement", LEARNER, "torch.randperm(len(mask_BT) // unit,",
           "torch.randint(len(mask_BT) // unit, (len(mask_BT) // unit,),",
           (EXACT + "test_each_epoch_takes_every_row_once_and_pairs_stay_whole",)),
    Mutant("groups-torn-apart", LEARNER, "unit, iteration = self.unit,", "unit, iteration = 1,",
           (EXACT + "test_each_epoch_takes_every_row_once_and_pairs_stay_whole[rebel]",)),
    Mutant("random-noise-update", STEPS, "    optimizer.step()\n",
           """    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad = torch.randn_like(parameter.grad)
    optimizer.step()
""",
           (EXACT + "test_the_exact_objective_rises[rebel]",)),
    Mutant("gradients-never-cleared", STEPS, "    optimizer.zero_grad(set_to_none=True)\n", "",
           (OPTIM,)),
    Mutant("gradients-never-clipped", STEPS, "(parameters, max_grad_norm)",
           '(parameters, float("inf"))', (OPTIM,)),
    Mutant("reference-follows-the-policy", LEARNER, "            updates += 1\n",
           """            updates += 1
            self.models.reference.load_state_dict(self.models.policy.state_dict())
""",
           (EXACT + "test_copies_of_a_policy_are_not_the_policy",)),
    Mutant("frozen-weights-unchecked", STAGE,
           "if value != hashes[name]]", "if False]", (EXACT + "test_a_reference_that_moves_stops_the_run",)),
    Mutant("lora-reference-is-the-policy", "learning/models.py", "reference = twin(base)",
           "reference = base",
           (RL_MODELS + "test_a_fresh_lora_policy_is_the_base_and_its_reference_stays_so",)),
    Mutant("moments-not-restored", "runs/checkpoint.py", "        if own:\n", "        if False:\n",
           (WATCH + "test_an_interrupted_run_goes_on_to_the_same_bytes[rebel]",)),
    # Dropout: GPT-2 has it, Llama has none.
    Mutant("dropout-in-the-policy", "models/load.py", "return model.to(device).eval(), tokenizer",
           "return model.to(device).train(), tokenizer", (EVAL_MODE + "[gpt2]",)),
    Mutant("dropout-in-the-reward-model", SCALAR,
           "    return model.to(device).eval(), tokenizer\n\n\ndef check_pooling",
           "    return model.to(device).train(), tokenizer\n\n\ndef check_pooling",
           (MODELS + "test_scores_do_not_depend_on_the_batch[gpt2]",)),
    Mutant("dropout-in-the-critic-from-the-policy", "models/critic.py",
           "return model.to(device).eval()", "return model.to(device).train()",
           (EVAL_MODE + "[critic-from-policy]",)),
    Mutant("dropout-in-the-critic", "models/critic.py", "        return critic.eval()",
           "        return critic.train()", (EVAL_MODE + "[gpt2]",)),
    Mutant("dropout-in-the-update", LEARNER, "        batch, mask_BT = self.prepare(rollout),",
           "        self.models.policy.train()\n        batch, mask_BT = self.prepare(rollout),",
           (EVAL_MODE + "[gpt2]",)),
    Mutant("lora-dropout-while-measuring", SCALAR, "            layer.eval()\n", "            pass\n",
           (REWARD + "test_lora_dropout_is_on_in_training_and_nowhere_else",)),
    Mutant("lora-dropout-never", SCALAR, "        layer.train()\n", "        layer.eval()\n",
           (REWARD + "test_lora_dropout_is_on_in_training_and_nowhere_else",)),
    # Preferences: DPO and the reward model.
    Mutant("dpo-mean-of-logps", "stages/dpo.py", "logp_BT.float().sum(-1)", "logp_BT.float().mean(-1)",
           (DPO_SUMS,)),
    Mutant("dpo-swapped-labels", "stages/dpo.py", "loss(*logp_B2.unbind(-1), *reference_B2.unbind(-1),",
           "loss(*logp_B2.flip(-1).unbind(-1), *reference_B2.flip(-1).unbind(-1),",
           (DPO + "test_the_gradient_is_that_of_the_formula",)),
    Mutant("dpo-without-reference", PREFERENCE,
           "(policy_chosen_B - ref_chosen_B) - (policy_rejected_B - ref_rejected_B)",
           "policy_chosen_B - policy_rejected_B", (GOLDEN,)),
    Mutant("dpo-without-beta", PREFERENCE, "_smoothed_logistic(beta * gap_B,", "_smoothed_logistic(gap_B,",
           (GOLDEN,)),
    Mutant("dpo-another-pairs-reference", "stages/dpo.py", "reference_N2[list(numbers)]",
           "reference_N2[: len(numbers)]",
           (DPO + "test_a_policy_that_is_its_reference_has_the_known_first_loss",)),
    Mutant("dpo-prompt-in-the-sum", "stages/dpo.py",
           "    prompts = [pair.prompt for pair in pairs] * 2",
           """    pairs = [
        EncodedPair(p.prompt[:1], p.prompt[1:] + p.chosen, p.prompt[1:] + p.rejected, p.cut)
        for p in pairs
    ]
    prompts = [pair.prompt for pair in pairs] * 2""",
           (DPO_SUMS,)),
    Mutant("dpo-micro-batch-by-its-own-count", "stages/dpo.py", ".sum(), sums", ".mean(), sums",
           (DPO + "test_accumulated_gradients_are_those_of_the_whole_batch",)),
    # KTO: the reference point and the labels.
    Mutant("kto-swapped-labels", PREFERENCE, "torch.where(good_B == 1, good_loss_B, bad_loss_B)",
           "torch.where(good_B == 0, good_loss_B, bad_loss_B)", (GRADIENTS,)),
    Mutant("kto-reference-point-below-zero", PREFERENCE, ".detach().mean().clamp(min=0)", ".detach().mean()",
           (KTO + "test_loss_and_gradient_are_the_formulas_and_micro_batches_change_nothing",)),
    Mutant("kto-reference-point-of-matched-pairs", "learning/unpaired.py",
           "pairs = self.with_other_prompts(batch, self.rows)", "pairs = batch",
           (KTO + "test_loss_and_gradient_are_the_formulas_and_micro_batches_change_nothing",)),
    Mutant("kto-another-rows-reference", "learning/unpaired.py", "self.reference_N[list(numbers)].to",
           "self.reference_N[: len(numbers)].to",
           (KTO + "test_loss_and_gradient_are_the_formulas_and_micro_batches_change_nothing",)),
    Mutant("kto-the-middle-of-rankings-is-bad", "learning/unpaired.py", "if rank in (best, worst):",
           "if rank:", (KTO + "test_rankings_give_their_best_and_worst_responses",)),
    # Ratings by attribute.
    Mutant("a-missing-rating-counts", PREFERENCE,
           "torch.where(mask_BK != 0, rating_BK, predicted_BK.detach())", "rating_BK.nan_to_num()",
           (ATTRIBUTES + "test_the_loss_is_least_squares_over_the_ratings_there_are",)),
    Mutant("a-mixture-without-its-scale", "models/attributes.py",
           "return float(weight_K @ np.array(mean_K)), math.sqrt(variance)",
           "return float(weight_K @ np.array(mean_K)), 1.0",
           (ATTRIBUTES + "test_heads_on_the_scale_of_the_ratings_and_their_mixture_as_one_head",)),
    Mutant("a-mixture-in-another-order", "models/attributes.py",
           "np.array([weights.get(name, 0.0) for name in attributes]", "np.array([*weights.values()]",
           (ATTRIBUTES + "test_another_mixture_is_named_behind_the_directory",)),
    Mutant("reward-model-swapped-labels", PREFERENCE, "rank_BK[..., :, None] < rank_BK[..., None, :]",
           "rank_BK[..., :, None] > rank_BK[..., None, :]", (BY_FORMULA + "[balanced]",)),
    Mutant("reward-model-swapped-rows", "learning/comparisons.py", "finished[i]) for i in order]",
           "finished[i]) for i in order[::-1]]",
           (REWARD + "test_a_batch_holds_every_response_once_with_its_place",)),
    Mutant("flip-margin", PREFERENCE, "gap_BKK - margin_BKK", "gap_BKK + margin_BKK",
           (BY_FORMULA + "[margin]",)),
    Mutant("flip-label-smoothing", PREFERENCE,
           "-(1 - label_smoothing) * logsigmoid(gap_B) - label_smoothing * logsigmoid(-gap_B)",
           "-label_smoothing * logsigmoid(gap_B) - (1 - label_smoothing) * logsigmoid(-gap_B)", (GRADIENTS,)),
    Mutant("head-only-reward-model", "models/attributes.py",
           "model.score(hidden_BSD[rows, mask_BS.sum(-1) - 1])",
           "model.score(hidden_BSD[rows, mask_BS.sum(-1) - 1].detach())", (BY_FORMULA + "[bradley_terry]",)),
    Mutant("head-only-packed-reward-model", "models/packing.py",
           "head(hidden_GWD[groups[:, None], packed.last_GK.to(device)])",
           "head(hidden_GWD[groups[:, None], packed.last_GK.to(device)].detach())",
           (PACKING + "test_scores_and_gradients_are_those_of_separate_rows[llama-last]",)),
    Mutant("score-of-the-last-column", "models/attributes.py", "[rows, mask_BS.sum(-1) - 1]", "[rows, -1]",
           (MODELS + "test_the_score_is_read_at_the_last_real_token",)),
    Mutant("cut-off-responses-scored-with-eos", SCALAR, "self.encode(p, c, bool(f))",
           "self.encode(p, c, True)", (MODELS + "test_scores_do_not_depend_on_the_batch[llama]",)),
    Mutant("reward-mean-not-subtracted", SCALAR, "mask_BS.to(device)) - mean",
           "mask_BS.to(device))",
           (MODELS + "test_reward_models_load_with_plain_transformers_up_to_a_constant[llama]",)),
    Mutant("reward-scaled-the-wrong-way", SCALAR, "head.weight.div_(sd)", "head.weight.mul_(sd)",
           (MODELS + "test_reward_models_load_with_plain_transformers_up_to_a_constant[llama]",)),
    # ------------------------------------------------------------------------------------ labelling by people
    Mutant("one-slot-too-many", "label/queue.py", "range(1, project.overlap + 1)",
           "range(1, project.overlap + 2)",
           (LABEL + "test_store.py::test_people_at_once_never_get_the_same_slot",
            LABEL + "test_store.py::test_a_late_answer_counts_while_the_slot_is_free",
            LABEL + "test_store.py::test_a_lease_that_ran_out_gives_the_item_to_somebody_else")),
    Mutant("strength-as-shown", "label/answers.py", "strength if order[0] == 0 else -strength", "strength",
           (LABEL + "test_store.py::test_what_is_stored_is_in_the_items_own_order",)),
    Mutant("ranks-as-shown", "label/answers.py", "dict(zip(order, places, strict=True))",
           "dict(enumerate(places))",
           (LABEL + "test_store.py::test_what_is_stored_is_in_the_items_own_order",)),
    Mutant("repeats-not-turned-round", "label/queue.py", "first.scalar_one()[::-1]", "first.scalar_one()",
           (LABEL + "test_store.py::test_repeats_come_later_and_turned_round",)),
    Mutant("leases-without-end", "label/queue.py", 'assignments.c.leased_until < bindparam("now")',
           'assignments.c.leased_until < bindparam("now") - 1e9',
           (LABEL + "test_store.py::test_a_lease_that_ran_out_gives_the_item_to_somebody_else",)),
    Mutant("others-items-answered", "label/queue.py",
           'bindparam("assignment"), assignments.c.annotator_id == bindparam("annotator")',
           'bindparam("assignment"), bindparam("annotator") > 0',
           (LABEL + "test_store.py::test_others_items_cannot_be_judged",)),
    Mutant("nonce-unread", "label/store.py", "                return before.id\n", "                pass\n",
           (LABEL + "test_store.py::test_the_same_nonce_is_one_judgement",)),
    Mutant("units-not-turned", "label/judgements.py", "1 if chance(\"unit\", *unit) < 0.5 else -1", "1",
           (LABEL + "test_statistics.py::test_agreement_does_not_hang_on_the_order_of_the_file",)),
    Mutant("every-pair-an-observation", "label/statistics.py",
           "wilson_interval(found * len(rows), len(rows))",
           "wilson_interval(*map(sum, zip(*rows, strict=True)))",
           (LABEL + "test_statistics.py::test_a_ranking_is_one_observation",)),
    Mutant("dawid-skene-transposed", "statistics/agreement.py", '"aud,acd->uc"', '"aud,adc->uc"',
           ("tests/statistics/test_agreement.py::test_the_posterior_is_bayes_rule_by_enumeration",)),
    Mutant("posterior-not-turned-back", "label/export.py", "fit.values_C * turn", "fit.values_C",
           (LABEL + "test_export.py::test_careless_annotators_are_outweighed",)),
    Mutant("cross-site-posts", "label/security.py",
           'return site not in ("same-origin", "none")', "return False",
           (LABEL + "test_pages.py::test_posts_from_other_sites_are_refused",)),
    Mutant("sessions-of-any-project", "label/dependencies.py",
           'session.get("project") == service.project_id', "True",
           (LABEL + "test_pages.py::test_a_session_is_of_one_project",)),
    Mutant("formulas-in-csv", "label/export.py", "value.startswith(FORMULA_STARTS)",
           'value.startswith("=")',
           (LABEL + "test_pages.py::test_no_cell_of_a_csv_is_a_formula",)),
    # Ceilings, and what few rows say.
    Mutant("errors-leave-the-ceiling", "statistics/labels.py",
           "p_N + error_rate * (1 - 2 * p_N) if error_rate else p_N", "p_N",
           ("tests/statistics/test_labels.py",)),
    Mutant("a-place-is-known", "statistics/labels.py", "when_first_N + when_second_N", "2 * when_first_N",
           ("tests/statistics/test_labels.py",)),
    Mutant("errors-are-not-collected", "stages/collect.py",
           "annotator.label_probability(judged.utility_a_N, judged.utility_b_N)", "judged.probability_N",
           ("tests/stages/test_collect.py::"
            "test_the_best_possible_accuracy_counts_errors_and_the_bias_for_a_place",)),
    # Judges.
    Mutant("reasoning-is-read", "judging/verdicts.py", "verdict = labelled(lines[-1], alone)",
           "verdict = labelled(lines[0], alone)",
           ("tests/judging/test_verdicts_read.py::test_a_verdict_is_read_through_its_decoration",)),
    Mutant("paid-twice", "judging/endpoints.py",
           "self.store.get(key) if self.store is not None else None", "None",
           ("tests/judging/test_replies.py::test_what_is_kept_is_the_question_and_the_answer",)),
    Mutant("a-filter-ends-the-run", "judging/answers.py",
           'PairRefused(f"refused by a content filter', 'WrongForAll(f"refused by a content filter',
           ("tests/judging/test_endpoints.py::test_what_is_wrong_with_one_pair_counts_against_that_pair",)),
    Mutant("no-fewer-at-a-time", "judging/endpoints.py", "max(1, self.limit // 2)", "self.limit",
           ("tests/judging/test_endpoints.py::test_requests_at_a_time_fall_and_climb_again",)),
    # The truth of real models.
    Mutant("no-price-for-no-end", INSTRUCTIONS, '"cut_off": -1.0', '"cut_off": 0.0',
           (GOLD + "test_the_price_of_nonsense",)),
    Mutant("the-question-again-is-news", INSTRUCTIONS, "contents_of(response) - contents_of(task.prompt)",
           "contents_of(response)", (GOLD + "test_the_price_of_nonsense",)),
    Mutant("json-with-more-beside-it", INSTRUCTIONS, "set(value) != {key}", "key not in value",
           (GOLD + "test_what_an_instruction_decides",)),
    Mutant("everything-has-ended", INSTRUCTIONS, "if finished is None else finished", "if True else finished",
           (GOLD + "test_one_reward_by_name_everywhere",)),
    Mutant("other-prompts-are-sampled-first", "judging/scorers.py",
           "isinstance(part, WorldUtility | InstructionUtility)", "isinstance(part, WorldUtility)",
           (GOLD + "test_other_prompts_are_refused_before_anything_is_sampled",)),
    Mutant("no-coin-within-the-width", "judging/annotators.py",
           'self.tie_width if self.tie_policy == "coin" else 0.0', "0.0",
           ("tests/judging/test_annotators.py::test_a_coin_decides_what_lies_within_the_width",)),
    Mutant("a-few-are-resampled", "statistics/intervals.py", "    if n < FEW:", "    if n < 2:",
           ("tests/statistics/test_intervals.py::test_intervals_of_very_few_cover_the_truth",)),
    Mutant("pairs-of-a-prompt-are-independent", "statistics/calibration.py",
           "effective = n**2 / float((np.bincount(cluster_N) ** 2).sum())", "effective = float(n)",
           ("tests/statistics/test_intervals.py::test_shares_of_very_few_prompts_count_a_prompt_once",)),
    Mutant("the-kept-weights-pass-for-the-last", "stages/reward.py",
           '"dev/final_loss": fitted.last["dev/loss"],\n            "dev/final_accuracy"',
           '"dev/final_loss": fitted.best["dev/loss"],\n            "dev/final_accuracy"',
           (REWARD + "test_the_last_weights_are_measured_beside_the_kept_ones",)),
    Mutant("one-reference-sample", "stages/reward.py", "reference.respond(prompts, each,",
           "reference.respond(prompts, 1,",
           (REWARD + "test_few_prompts_are_answered_several_times_to_normalise",)),
    Mutant("the-answer-is-called-ours-alone", "data/sources.py",
           "        other_columns[answer] = row.value", "        answer = row.value",
           ("tests/data/test_sources.py::"
            "test_a_reward_function_sees_the_answer_by_the_name_that_the_file_gives_it",)),
    Mutant("demonstrations-are-imitated-whatever-the-reward", "stage_choice.py",
           'return Choice([*first, "rl", *evaluated], f"demonstrations, and',
           'Choice([*first, "rl", *evaluated], f"demonstrations, and',
           ("tests/test_stage_choice.py::test_the_stages_follow_from_the_data",)),
    Mutant("nothing-is-added-to-train-on", "data/sources.py", "comparisons=[*self.train.comparisons, *more]",
           "comparisons=[*self.train.comparisons]",
           (REWARD + "test_preferls_own_pairs_are_trained_on_by_one_option",)),
    # Evaluation, frontiers, pages.
    Mutant("best-of-n-ignores-ties", FRONTIER, "order_PK, share_T[tie_PK], -1)",
           "order_PK, np.broadcast_to(picked_K, score_PK.shape), -1)", (FRONTIERS,)),
    Mutant("best-of-n-takes-the-worst", FRONTIER, "* n / m_K)[::-1]", "* n / m_K)", (FRONTIERS,)),
    Mutant("tilt-times-beta", FRONTIER, "keepdims=True)) / beta)", "keepdims=True)) * beta)", (FRONTIERS,)),
    Mutant("turning-point-of-the-other-form", FRONTIER, "np.exp(alpha / beta - 1)", "np.exp(alpha / beta)",
           (FRONTIERS,)),
    Mutant("length-not-controlled", "statistics/intervals.py", "x_N = np.tanh(gap_N / (gap_N.std() or 1.0))",
           "x_N = np.tanh(np.abs(gap_N) / (gap_N.std() or 1.0))",
           ("tests/statistics/test_intervals.py",)),
    Mutant("a-tie-is-a-win", "evaluation/comparison.py", "proportion(wins + ties / 2,",
           "proportion(wins + ties,",
           (COMPARISONS,)),
    Mutant("any-likelihood-judges", "evaluation/pool.py", '"likelihood": pool.logp_PK}',
           '"likelihood": score_PK}', (COMPARISONS,)),
    Mutant("prediction-by-the-raw-score", "evaluation/pool.py",
           'pool.value_PK["score"] if score_PK is None else score_PK', 'pool.value_PK["score"]',
           (COMPARISONS,)),
    Mutant("log-ratio-turned-round", "stages/evaluate.py", "rl.logp_N - reference_logp_N",
           "reference_logp_N - rl.logp_N", ("tests/stages/test_evaluate.py::test_every_kl_has_its_sign",)),
    Mutant("kl-per-prompt-without-its-clusters", "stages/evaluate.py",
           "kl_P = log_ratio_N.reshape(responses.length_PG.shape).mean(-1)", "kl_P = log_ratio_N",
           ("tests/stages/test_evaluate.py",)),
    Mutant("hacked-is-only-worse", "reporting/verdict.py", 'key != "score" and proxy["difference_low"] > 0',
           'key != "score" and proxy["difference_low"] > 1e9', (PAGES,)),
    Mutant("signs-do-not-count", "reporting/verdict.py",
           "    if risen_signs(summary):\n        return Verdict(f",
           "    if False:\n        return Verdict(f", (PAGES,)),
    Mutant("a-judge-that-disagrees-is-not-heard", "reporting/verdict.py",
           'judge["win_rate_high"] < 0.5', 'judge["win_rate_high"] < 0', (PAGES,)),
    Mutant("an-old-checkpoints-curves", "runs/trainer_state.py",
           "key=numbered.__getitem__, reverse=True)", "key=numbered.__getitem__)", (TRAINER_STATE,)),
    Mutant("infinite-rewards-are-curves", "runs/trainer_state.py", "if math.isfinite(value)}", "}",
           (TRAINER_STATE,)),
    Mutant("the-loss-is-the-gain", "reporting/samples.py", "else after - before", "else before - after",
           ("tests/reporting/test_samples.py",)),
    Mutant("the-training-signal-is-gold", "reporting/measures.py", "if key not in signals", "if key",
           (PAGES,)),
    Mutant("an-annotator-is-gold", "pipeline.py", '"gold": truth,\n        },\n    }',
           '"gold": annotator,\n        },\n    }',
           (PIPELINE + "test_gold_is_the_worlds_own_reward_whoever_labelled",)),
    Mutant("only-falls-beside-a-rise", FRONTIER, "if self.alpha <= 0 and (self(", "if (self(", (FRONTIERS,)),
    Mutant("turns-behind-what-was-measured", FRONTIER,
           "self.turning_high is not None and self.turning_high <= self.largest_kl",
           "self.turning_high is not None", (FRONTIERS,)),
    Mutant("points-of-a-run-are-independent", FRONTIER,
           "np.add.at(pull_R2, run_N, q_N2 * residual_N[:, None])",
           "pull_R2 = q_N2 * residual_N[:, None]", (FRONTIERS,)),
    Mutant("adjusted-by-the-wrong-sign", "reporting/frontier.py", 'row["score"] - coef * row["log_ratio"]',
           'row["score"] + coef * row["log_ratio"]', (PAGES,)),
    Mutant("the-newest-reward-is-the-one", "reporting/gather.py",
           "chosen = [path for path in own if path in led] or own", "chosen = own", (GATHER,)),
    Mutant("all-stages-are-related", "reporting/gather.py",
           "return one in self.ancestors(other) or other in self.ancestors(one)", "return True", (GATHER,)),
    Mutant("made-again-goes-unsaid", "reporting/gather.py",
           'self._hash(place) not in (row["hash"], "")', "False", (GATHER,)),
    Mutant("rounds-count-from-nought", "reporting/rounds.py", "row[key] + shift[key] for key",
           "row[key] for key", (GATHER,)),
    Mutant("everybody-sees-it", "share/push.py", "private=not target.public", "private=target.public",
           (PUSH + "a_name_without_an_owner_is_ones_own",
            PUSH + "the_model_arrives_byte_for_byte_with_its_card_and_its_report")),
    Mutant("public-is-found-out-later", "share/push.py", "if not info.private and not public:",
           "if info.private and not public:", (PUSH + "public_is_only_what_was_asked_to_be",)),
    Mutant("people-keep-their-names", "share/data.py", 'f"annotator-{len(self.of) + 1}"', "text",
           (PUSH + "data_goes_only_on_request_and_with_pseudonyms",)),
    Mutant("keys-are-not-looked-for", "share/private.py",
           "looked_for = self.keys if only_keys else self.secrets", "looked_for = []",
           (PUSH + "what_must_not_leave_is_refused_before_anything_is_made",)),
    Mutant("pages-keep-paths", "share/private.py", "text = self._paths.sub(", "self._paths.sub(",
           ("tests/share/test_card.py::test_nothing_in_it_is_private",)),
    Mutant("references-to-stages-not-waited-for", "sweep/plan.py", "for reference in stage.reads]",
           'for reference in stage.reads if reference.startswith("@/")]',
           (SWEEP + "test_named_points_refer_to_stages_of_their_own_and_of_each_other",)),
    # The loop of sft, reward and dpo.
    Mutant("part-by-its-own-count", FIT, "loss = loss_sum / total",
           "loss = loss_sum / self.objective.count(part)",
           (LOOP + "test_micro_batches_change_nothing_but_rounding",)),
    Mutant("best-weights-go-on-training", FIT, "p.detach().clone() for n, p in self.parameters",
           "p.detach() for n, p in self.parameters",
           (LOOP + "test_the_best_weights_are_those_of_the_lowest_dev_loss",)),
    Mutant("last-weights-are-called-the-best", FIT, "if better and self.keeps_best:", "if False:",
           (LOOP + "test_the_best_weights_are_those_of_the_lowest_dev_loss",)),
    Mutant("best-weights-lost-on-resume", FIT, "        if best:\n", "        if False:\n",
           (LOOP + "test_a_run_that_was_killed_goes_on_to_the_same_bytes",)),
    Mutant("average-goes-on-training", FIT, "p.data = own[name]", "pass",
           (LOOP + "test_the_average_is_measured_and_kept_and_made_only_where_asked",)),
    Mutant("average-not-measured", FIT, "self.average.applied() if self.average",
           "self.average.applied() if 0",
           (LOOP + "test_the_average_is_measured_and_kept_and_made_only_where_asked",)),
    Mutant("average-never-updated", FIT, "            self.average.update()\n", "            pass\n",
           (LOOP + "test_the_average_is_measured_and_kept_and_made_only_where_asked",)),
    Mutant("last-rows-of-an-epoch-left-out", FIT, "math.ceil(len(lengths) / options.train_batch_size)",
           "len(lengths) // options.train_batch_size", (LOOP + "test_epochs_are_passes",)),
    Mutant("end-not-measured", FIT, "for k in range(1, options.num_evals + 1)",
           "for k in range(options.num_evals)",
           (LOOP + "test_held_out_rows_are_measured_as_often_as_asked_and_at_the_end",)),
    Mutant("patience-never-ends", FIT, "fitted.misses + 1", "1",
           (LOOP + "test_training_stops_when_nothing_gets_better",)),
    # Splits, kinds of rows.
    Mutant("case-makes-another-prompt", "data/splits.py", ".casefold()", "",
           (SPLITS + "test_case_and_code_of_a_letter_make_no_other_prompt",)),
    Mutant("one-letter-of-two-codes", "data/splits.py",
           'unicodedata.normalize("NFKC", dialogue_text(prompt))',
           "dialogue_text(prompt)", (SPLITS + "test_case_and_code_of_a_letter_make_no_other_prompt",)),
    Mutant("hash-of-the-raw-prompt", "data/sources.py", "normalised(entry.asked.prompt)",
           "str(entry.asked.prompt)",
           (SPLITS + "test_a_prompt_has_one_split_in_every_file",)),
    Mutant("a-fifth-is-taken", "data/splits.py", '{"dev": 0.1, "eval": 0.1}', '{"dev": 0.2, "eval": 0.2}',
           (SPLITS + "test_train_alone_gives_a_tenth_to_each_of_the_others",)),
    Mutant("few-prompts-divided", "data/splits.py", "len(distinct) < FEWEST", "len(distinct) < 3",
           (SPLITS + "test_fewer_than_ten_prompts_all_train_and_it_is_said",)),
    Mutant("few-training-prompts-divided", "data/splits.py", "len(training) < FEWEST", "len(training) < 3",
           (SPLITS + "test_little_that_trains_gives_nothing_away",)),
    Mutant("one-split-counts-as-its-own", "data/splits.py", "(len(raw) == 1 and not complete)", "False",
           (SPLITS + "test_a_data_set_of_one_split_is_divided_and_can_still_be_named",)),
    Mutant("any-values-fit-a-layout", "data/recognise.py",
           "if not all(self.has_shape(path, shape) for path, shape in layout.when.items()):", "if False:",
           ("tests/data/test_comparisons.py::test_single_responses_with_a_label_or_ratings",)),
    Mutant("bad-labels-are-good", "data/layouts.py", "return False if word in BAD",
           "return True if word in BAD",
           (LAYOUTS + "test_what_is_called_bad_is_not_imitated_whatever_is_asked",)),
    Mutant("flags-turned-round", "data/winners.py", '(n == 1) == (winner.side == "a")',
           '(n == 1) != (winner.side == "a")', (LAYOUTS + "test_codings_of_one_column",)),
    Mutant("strengths-turned-round", "data/winners.py", '(n < 0) == (winner.side == "a")',
           '(n > 0) == (winner.side == "a")', (LAYOUTS + "test_codings_of_one_column",)),
    Mutant("what-is-not-used-is-passed-over", "data/recognise.py",
           'if self.options.dataset_format == "auto":', "if False:",
           (LAYOUTS + "test_what_looks_as_if_it_counted_is_not_passed_over",)),
    Mutant("one-of-several-meanings-is-taken", "data/codings.py", "if len(fits) == 1:", "if fits:",
           (LAYOUTS + "test_what_can_mean_several_things_is_asked_and_the_answer_taken",)),
    Mutant("rankings-written-as-pairs", "data/formats.py", "WHOLE_LAYOUTS | PAIR_LAYOUTS",
           "PAIR_LAYOUTS | WHOLE_LAYOUTS", (RANKINGS + "test_conversion_to_pairs_and_to_rankings",)),
    # What may be deleted.
    Mutant("folders-of-others-deleted", "runs/stage.py", 'if inside and inside.kind == "stage" and not',
           "if path.is_dir() and not",
           (MARKS + "test_members_of_an_ensemble_go_only_with_their_mark",)),
    Mutant("any-directory-taken", "runs/mark.py", "if inside and not only_ours and", "if False and",
           (MARKS + "test_a_foreign_directory_is_left_as_it_is",)),
    Mutant("any-programs-mark", "runs/mark.py", 'found["program"] != PROGRAM', "False",
           (MARKS + "test_the_mark_of_another_program_is_none",)),
    Mutant("unmarked-stages-begun-anew", "runs/found.py", "contents(path) and read_mark(path) is None",
           "False", (MARKS + "test_old_stages_are_read_and_never_deleted",)),
    Mutant("links-followed", "runs/mark.py",
           "    if path.is_dir() and not path.is_symlink():\n        shutil.rmtree(path)",
           "    if path.is_dir():\n        shutil.rmtree(path.resolve())",
           (MARKS + "test_of_a_link_only_the_link_is_deleted",)),
    # What makes a stage stale, and who works in a directory.
    Mutant("stale-is-finished", "runs/inputs.py", 'if old is None or old["hash"] == new.content',
           "if True", (INPUTS + "test_another_content_makes_stale",)),
    Mutant("members-are-no-content", "runs/inputs.py", "yield from _files_in(inside)", "yield from ()",
           (INPUTS + "test_another_content_makes_stale",)),
    Mutant("unfinished-is-an-input", "runs/inputs.py", "        refuse_unfinished(path)\n", "",
           (INPUTS + "test_what_is_not_finished_is_no_input",)),
    Mutant("place-is-content", "runs/inputs.py",
           'options[option] = options[option].replace(found.name, "@")', "pass",
           (INPUTS + "test_a_run_that_was_moved_stays_finished",)),
    Mutant("a-redo-is-forgotten", "runs/stage.py",
           "same and redo is not None and found.redo == redo", "False",
           (INPUTS + "test_a_redo_that_was_interrupted_goes_on",)),
    Mutant("work-is-lost-in-silence", "runs/stage.py",
           "found.is_unfinished and not same and checkpoint.has_work(self.state)", "False",
           (INPUTS + "test_an_unfinished_stage_is_not_begun_anew_in_silence",)),
    Mutant("done-goes-last", "runs/stage.py", '*("DONE", "summary.json"', '*("summary.json"',
           (INPUTS + "test_after_an_error_in_any_step_the_same_command_goes_on",)),
    Mutant("nobody-is-locked-out", "runs/lock.py", "if holder is not None:", "if False:",
           (LOCKS + "test_nor_does_a_command_work_inside_a_run_that_is_held",)),
    Mutant("a-dead-host-holds-for-ever", "runs/lock.py", "st_mtime < STALE_S", "st_mtime < 1e12",
           (LOCKS + "test_a_holder_on_another_host_counts_while_its_heart_beats",)),
    # Configuration and pipeline.
    Mutant("usual-value-beats-the-given-one", "pipeline.py",
           "usual_values | run | own", "run | own | usual_values",
           (PIPELINE + "test_an_explicit_option_wins_where_it_equals_the_default",)),
    Mutant("a-given-default-counts-as-not-given", "pipeline.py",
           "config, own = before.config, before.config.of(name)",
           """config = before.config
    usually = vars(config_class(kind, config.of(name))())
    own = {key: value for key, value in config.of(name).items() if value != usually.get(key)}""",
           (PIPELINE + "test_an_explicit_option_wins_where_it_equals_the_default",)),
    Mutant("references-to-the-first-round", "pipeline.py", "@/{rounds[-1]}", "@/{rounds[0]}",
           (PIPELINE + "test_a_reference_names_the_newest_stage_of_its_name",)),
    Mutant("content-without-what-is-read", "pipeline.py", "lambda found: read[found[0]]",
           "lambda found: found[0]", (PIPELINE + "test_content_is_kind_options_and_what_is_read",)),
    Mutant("threads-are-content", "pipeline.py", "if name not in NOT_COMPARED", 'if name != "output_dir"',
           (PIPELINE + "test_content_is_kind_options_and_what_is_read",)),
    Mutant("stages-anew-do-not-spread", "pipeline.py", "    elif found.is_stale or (", "    elif (",
           ("tests/test_sweep.py::test_what_reads_from_a_stage_that_became_another_is_made_anew",)),
    Mutant("redos-are-done-once-more", "pipeline.py", "found.redo != redo or", "True or",
           ("tests/test_sweep.py::test_a_redo_that_was_interrupted_goes_on_as_one",)),
    # What an algorithm brings.
    Mutant("own-options-lost", STAGE, "if own is None or issubclass(RlConfig, own)", "if True",
           (RL + "test_the_algorithm_of_contributing_is_a_file_of_a_person",)),
    Mutant("own-options-unchecked", STAGE, "        own.check(config)\n", "        pass\n",
           (RL + "test_options_that_cannot_work_are_refused",)),
    Mutant("own-state-not-restored", STAGE, 'type(state.algorithm)(**values["algorithm"])', "state.algorithm",
           (WATCH + "test_an_interrupted_run_goes_on_to_the_same_bytes[rebel]",)),
    # Going on after an interruption.
    Mutant("schedule-not-restored", FIT,
           '        restore_schedule(self.optimizer, self.scheduler, saved.values["scheduler"])\n', "",
           (KILLED + "[how0-4]",)),
    Mutant("average-not-restored", FIT,
           '            self.average.restore(below("average/", saved.tensors))\n', "            pass\n",
           (KILLED + "[how1-4]",)),
    Mutant("best-weights-forgotten", FIT, "        if best:\n", "        if not best:\n",
           (LOOP + "test_the_best_weights_of_before_an_interruption_are_kept",)),
    Mutant("best-loss-forgotten", FIT, 'Fitted(**saved.values["fitted"])', "Fitted(step=saved.step)",
           (LOOP + "test_the_best_weights_of_before_an_interruption_are_kept",)),
    Mutant("passes-of-any-size", "data/tokens.py", "more * sum(wider) > most_tokens",
           "sum(wider) > most_tokens", (PASSES + "test_parts_are_all_rows_in_order_and_none_is_too_large",)),
    Mutant("gradient-twice-where-memory-runs-out", "learning/micro_batches.py", "        forget()\n",
           "        pass\n",
           (PASSES + "test_where_memory_runs_out_passes_are_halved_once_and_the_gradient_is_the_same",)),
    Mutant("activations-kept-all-the-same", "models/recompute.py", "layer.training = True",
           "layer.training = False", (RECOMPUTE + "test_the_gradient_is_the_same_and_less_is_kept[llama]",)),
    Mutant("shards-of-a-model-not-read", "models/hub.py",
           "get_checkpoint_shard_files(source, index)[0]", "[]",
           (HUB + "test_the_stored_dtype_of_a_model_in_shards_is_known_on_the_first_run",)),
    Mutant("sizes-chosen-anew-where-a-stage-goes-on", "models/plan.py",
           "stage.found.chosen if stage.goes_on else {}", "{}",
           (PLAN + "test_what_was_chosen_stays_where_a_stage_goes_on",)),
    Mutant("plan-by-what-is-free", "models/plan.py", "cls(machine_memory(), ", "cls(free_memory(), ",
           (PLAN + "test_what_cannot_fit_is_refused_before_anything_is_loaded",)),
    Mutant("dropout-of-no-step", FIT,
           "torch.manual_seed(derived_seed(self.seed", "int(derived_seed(self.seed",
           (GOES_ON + "[reward with LoRA]",)),
    Mutant("changed-checkpoints-taken", CHECKPOINT,
           'if contents.get(f"sha256 of {name}") != sha256_of(path / name)', "if False",
           (DAMAGED + "what_cannot_be_gone_on_from_is_named_and_the_one_before_is_taken",)),
    Mutant("checkpoints-of-others-taken", CHECKPOINT, 'contents.get("owner") != owner', "False",
           (DAMAGED + "a_whole_folder_of_another_run_is_not_gone_on_from",)),
    Mutant("signal-saves-nothing", CHECKPOINT, "            return bool(self.every)\n",
           "            return False\n", (LOOP + "test_a_signal_in_the_last_update_loses_nothing",)),
    Mutant("second-signal-waits", "runs/signals.py", "if not hangs_up and", "if False and",
           (SIGNALS + "twice_means_now",)),
    Mutant("ignored-signals-taken", "runs/signals.py", "is not signal.SIG_IGN", "is not None",
           (SIGNALS + "what_was_ignored_at_the_start_stays_ignored",)),
    Mutant("signals-wait-for-ever", "runs/signals.py", "if left > 0 else 0", "if left > 0 else first",
           (SIGNALS + "what_takes_too_long_is_left",)),
    Mutant("other-rates-extended", STEPS, 'if kind != "constant":', "if False:",
           (LOOP + "test_a_longer_run_that_would_have_been_another_is_refused",)),
    Mutant("logged-twice", "runs/stage.py", "math.inf) <= step]", "math.inf) <= step + 1]",
           (KILLED + "[how0-7]",)),
    Mutant("samples-logged-twice", "runs/stage.py", ".get(key, math.inf) <= step]", ".get(key, 0) <= step]",
           (GOES_ON + "[sft]",)),
    Mutant("half-a-line-stays", "runs/stage.py", '''content[: content.rfind(b"\\n") + 1]''', "content",
           (KILLED + "[how0-4]",)),
    Mutant("parts-draw-anew", "stages/collect.py",
           '                generator.set_state(tensors["generator"])\n',
           "", (GOES_ON + "[collect]",)),
    Mutant("count-of-own-rows", FIT, "self.objective.count(rows), Meter()",
           "self.objective.count(distributed.shard(rows)), Meter()",
           ("tests/stages/test_fit_parallel.py::test_sft_trains_as_one",)),
    # preferl from Python.
    Mutant("every-function-is-the-same", "api.py", "return Hasher.hash(value)", 'return ""',
           (API + "test_another_function_is_another_reward",)),
    Mutant("weights-of-rewards-ignored", "api.py", "as_scorer(rewards, device, weights)",
           "as_scorer(rewards, device)", (API + "test_rewards_are_added_up_by_their_weights",)),
    Mutant("temporary-directories-stay", "api.py",
           "weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)", "pass",
           (API + "test_five_lines_from_rows_to_a_policy",)),
    Mutant("errors-speak-of-flags", "api.py", "lambda flag: ARGUMENTS.get(flag[1], flag[1])",
           "lambda flag: flag[0]", (API + "test_the_same_call_again_is_finished",)),
    Mutant("quiet-for-ever", "runs/progress.py", "        console.quiet = before\n", "        pass\n",
           (API + "test_nothing_global_changes", API + "test_what_was_read_is_said")),
    Mutant("transformers-stays-silent", "models/load.py", "        logging.set_verbosity(verbosity)\n",
           "        pass\n", (API + "test_nothing_global_changes",)),
    Mutant("every-data-set-is-the-same", "api.py", "_digest(table.rows)", '_digest("")',
           (API + "test_the_same_call_again_is_finished",)),
    Mutant("splits-in-memory-ignored", "data/files.py", "_object(value), split)", "_object(value), None)",
           (API + "test_splits_however_they_are_given",)),
    # Before anything is loaded: columns, places, what a model decides, this machine.
    Mutant("absent-columns-found-late", "data/formats.py",
           "        refuse_absent(name, options)", "        pass",
           ("tests/data/test_named_columns.py::test_a_wrong_column_is_refused_before_a_row_is_read",)),
    Mutant("keys-with-escapes-refused", "data/named_columns.py", 'r"[\\w .-]*"', 'r".*"',
           ("tests/data/test_named_columns.py::test_nothing_is_refused_that_a_row_may_have",)),
    Mutant("places-seen-late", "runs/stage.py", "        refuse_no_place(self.path)\n", "",
           ("tests/runs/test_mark.py",)),
    Mutant("every-process-marks", "runs/mark.py", "@distributed.main_writes\ndef claim", "def claim",
           ("tests/runs/test_mark.py",)),
    Mutant("printed-as-if-new", "resolved.py",
           "made[name], lora=lora, untrained=False", "made[name], lora=lora",
           ("tests/test_pipeline.py::test_the_printed_configuration_says_what_the_stages_chose",)),
    Mutant("threads-on-a-busy-machine", "doctor.py", "max(round(cores - load), 1)", "cores",
           ("tests/test_doctor.py::test_a_busy_machine_is_told_how_many_threads_help",)),
    # While it runs: trackers, samples, slow steps.
    Mutant("tracked-steps-come-twice", "runs/tracking.py", "step <= self.tracked.known", "step < 0",
           (TRACKING + "test_trackio_has_every_step_once",
            TRACKING + "test_wandb_has_every_step_once_under_one_name")),
    Mutant("trackers-end-runs", "runs/tracking.py", "except Exception as error:  # noqa: BLE001",
           "except UsageError as error:  # noqa: BLE001",
           (TRACKING + "test_a_tracker_that_fails_is_named_once_and_ends_nothing",)),
    Mutant("trackers-make-stages-stale", "runs/inputs.py", '"offload", "report_to"', '"offload"',
           (TRACKING + "test_whom_it_tells_makes_no_other_stage",)),
    Mutant("slow-steps-said-for-ever", "runs/progress.py", " and not self.is_slow:", ":",
           (PROGRESS + "test_slow_steps_are_said_again_only_after_usual_ones",)),
    Mutant("longer-texts-are-slowness", "learning/fit.py",
           "time.perf_counter() - started, run.tokens(batches[step - 1])", "time.perf_counter() - started",
           (LOOP + "test_a_batch_of_more_tokens_may_take_longer",)),
    Mutant("samples-at-every-step", "runs/progress.py", "now - self.last_samples < interval",
           "now < self.last_samples", (PROGRESS + "test_samples_come_at_first_at_last_and_every_so_often",)),
    # A dialogue with a policy.
    Mutant("chat-takes-the-start", "runs/policies.py", 'KINDS = ("rl", "dpo", "sft")',
           'KINDS = ("sft", "dpo", "rl")',
           (TALK + "test_a_run_stands_for_its_rl_with_the_sampling_of_its_evaluation",)),
    Mutant("scorer-as-policy", "models/load.py", 'getattr(config, "architectures", None) or []', "[]",
           (MODELS + "test_a_reward_model_is_no_policy",)),
    Mutant("worse-is-better", "chat.py", '"chosen": chosen.text, "rejected": rejected.text',
           '"chosen": rejected.text, "rejected": chosen.text',
           (TALK + "test_turns_are_kept_and_a_preference_goes_on",)),
    Mutant("pairs-overwritten", "runs/pair_files.py", 'open(path, "ab+")', 'open(path, "wb+")',
           (TALK + "test_what_was_preferred_is_read_back",)),
    Mutant("stop-text-shown-past", "sampling/streaming.py",
           "return any(stop in decoded for stop in self.stop_texts)", "return False",
           (TALK + "test_a_stop_text_ends_the_drawing",)),
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ checking


def misfits(mutants: Sequence[Mutant]) -> list[str]:
    """What no longer fits the source or the tests, a sentence for each."""
    wrong = [f"{m.name}: {why}" for m in mutants if (why := m.misfit())]
    files = sorted({test.split("::")[0] for m in mutants for test in m.tests})
    wrong += [f"there is no {file}" for file in files if not (ROOT / file).is_file()]
    there = tests_in([file for file in files if (ROOT / file).is_file()])
    missing = [(m.name, test) for m in mutants for test in m.tests if test not in there]
    return wrong + [f"{name}: there is no test {test}" for name, test in missing]


def tests_in(files: Sequence[str]) -> set[str]:
    """The names of the tests in some files, with and without their parameters, and of the files."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *files]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"the tests cannot be collected:\n{found.stdout[-2000:]}{found.stderr[-2000:]}")
    names = [line for line in found.stdout.splitlines() if "::" in line]
    return {part for name in names for part in (name, name.split("[")[0], name.split("::")[0])}


# ------------------------------------------------------------------------------------------------- running


class Witness:
    """A pytest plugin that keeps the first failure."""

    def __init__(self) -> None:
        self.test = self.error = self.trouble = ""

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        if self.test:
            return
        self.test, self.error = node.nodeid, call.excinfo.type.__name__
        if getattr(report, "when", None) != "call":
            self.trouble = f"failed outside of the test itself: {call.excinfo.exconly()}"
        elif issubclass(call.excinfo.type, ACCIDENTS):
            self.trouble = f"the mutant does not run: {call.excinfo.exconly()}"


def examine(source: str, module: str, tests: Sequence[str], stop: bool, place: str) -> None:
    """Runs tests against the copy ``source`` of ``src``, in a process of its own; the verdict goes into
    ``place``."""
    log = os.open(f"{place}/log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    assert not any(name.split(".")[0] == "preferl" for name in sys.modules)
    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = source  # of commands that tests start
    sys.path.insert(0, source)
    gc.freeze()  # what was imported beforehand is not searched for garbage
    import pytest

    witness = Witness()
    arguments = [*tests, "-q", "-p", "no:cacheprovider", f"--basetemp={place}/tmp"]
    # Some of pytest's plugins came with what was imported beforehand.
    arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning", *(["-x"] if stop else [])]
    code = int(pytest.main(arguments, plugins=[witness]))
    files = {name: str(m.__file__) for name, m in sys.modules.items() if name.split(".")[0] == "preferl"}
    strangers = [file for file in files.values() if not file.startswith(source + os.sep)]
    trouble = witness.trouble
    if strangers or not files:
        trouble = f"not the copy was tested but {strangers[:1]}"
    elif module and module not in files:
        trouble = f"{module} was never imported by the tests"
    elif code not in (0, 1):
        trouble = f"pytest ended with exit code {code}"
    verdict = {"code": code, "test": witness.test, "error": witness.error, "trouble": trouble}
    Path(place, "verdict.json").write_text(json.dumps(verdict))


def run(mutant: Mutant | None, tests: Sequence[str], context: Any) -> Verdict:
    """Copies ``src``, breaks it, and runs tests against it; without a mutant all of them to the end."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as place:
        source = Path(place).resolve() / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        module = ""
        if mutant is not None:
            mutant.break_(source)
            module = "preferl." + mutant.file.removesuffix(".py").replace("/", ".")
        process = context.Process(
            target=examine, args=(str(source), module, tests, mutant is not None, place)
        )
        process.start()
        process.join(TIMEOUT * (1 if mutant else 10))
        if process.is_alive():
            process.kill()
            process.join()
        seconds = time.perf_counter() - started
        found = Path(place, "verdict.json")
        if not found.exists():
            log = Path(place, "log")
            tail = log.read_text(errors="replace")[-2000:] if log.exists() else ""
            return Verdict(-1, trouble=f"no verdict after {seconds:.0f} s\n{tail}", seconds=seconds)
        verdict = Verdict(**json.loads(found.read_text()), seconds=seconds)
        if mutant is None and verdict.code:
            print(Path(place, "log").read_text(errors="replace")[-4000:])
        return verdict


def line_of(mutant: Mutant, verdict: Verdict) -> str:
    if verdict.trouble:
        outcome = f"NO VERDICT: {verdict.trouble}"
    elif verdict.code == 0:
        outcome = f"SURVIVED {', '.join(mutant.tests)}"
    else:
        outcome = f"killed by {verdict.test} ({verdict.error})"
    return f"{mutant.name:<40} {mutant.file:<20} {verdict.seconds:5.1f} s  {outcome}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="only these mutants")
    parser.add_argument("--list", action="store_true", help="print names and files, run nothing")
    parser.add_argument("--check", action="store_true", help="whether all fits the source; run nothing")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="how many at a time")
    options = parser.parse_args()
    known = {mutant.name: mutant for mutant in MUTANTS}
    assert len(known) == len(MUTANTS), "two mutants of one name"
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no mutant is called {', '.join(unknown)}; see --list")
    chosen = [known[name] for name in options.names] or list(MUTANTS)
    if options.list:
        print("\n".join(f"{mutant.name:<40} src/preferl/{mutant.file}" for mutant in chosen))
        return 0

    wrong = misfits(chosen)
    if wrong:
        print("\n".join(wrong))
        print("source or tests have changed: adapt these mutants")
        return 1
    if options.check:
        print(f"{len(chosen)} mutants fit the source, and their tests are there")
        return 0

    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    context = multiprocessing.get_context("forkserver")
    # Imported once, not in every process; nothing of the package itself.
    context.set_forkserver_preload(["pytest", "hypothesis", "torch", "scipy.stats", "peft", "datasets"])
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    # A whole file stands for each of its tests.
    tests = [test for test in tests if not any(test.startswith((f"{o}[", f"{o}::")) for o in tests)]
    clean = run(None, tests, context)
    if clean.code or clean.trouble:
        print(f"the unchanged package FAILED: {clean.test} {clean.trouble}")
        return 1
    print(f"the unchanged package passed in {clean.seconds:.1f} s")
    killed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = pool.map(lambda mutant: run(mutant, mutant.tests, context), chosen)
        for mutant, verdict in zip(chosen, verdicts, strict=True):
            print(line_of(mutant, verdict), flush=True)
            killed += verdict.code == 1 and not verdict.trouble
    print(f"{killed} of {len(chosen)} mutants killed")
    return int(killed < len(chosen))


if __name__ == "__main__":
    sys.exit(main())
