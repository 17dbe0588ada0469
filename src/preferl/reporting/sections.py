"""What the page of runs shows, section by section; each maker decides whether it has something to show."""

from preferl.reporting import (
    cost,
    elsewhere,
    evaluation,
    frontier,
    hacking,
    reward_attributes,
    rewards,
    rewards_beside,
    training,
)
from preferl.reporting.measures import Runs, evaluated
from preferl.reporting.page import Maker, Section, section

# Title of a section -> what makes its plots and tables.
SECTIONS: dict[str, tuple[Maker, ...]] = {
    "Did it work?": (
        evaluation.gains_plot,
        evaluation.side_by_side,
        evaluation.policies_table,
        evaluation.win_rates_table,
        evaluation.categories_table,
        evaluation.responses_table,
        training.rl_reward_plot,
        training.rl_kl_plot,
        elsewhere.reward_plot,
        elsewhere.kl_plot,
    ),
    "What the KL bought": (
        frontier.frontier_plots,
        frontier.trade_off_plot,
        frontier.prediction_table,
        frontier.adjusted_table,
    ),
    "Was the reward hacked?": (
        hacking.over_optimisation_plot,
        hacking.shared_turning_plot,
        hacking.best_of_n_plot,
        hacking.signs_plot,
        training.rl_length_plot,
        elsewhere.length_plot,
        hacking.over_optimisation_table,
        hacking.signs_table,
        training.alarms_table,
    ),
    "What it cost": (
        cost.equal_cost_plot,
        cost.break_even_plot,
        cost.equal_cost_table,
        cost.stages_table,
        cost.memory_table,
    ),
    "The reward model": (
        rewards.reward_plot,
        rewards.reward_loss_plot,
        rewards.reward_scores_plot,
        rewards.calibration_plot,
        rewards.reward_table,
        rewards.verification_table,
        rewards.audit_table,
        reward_attributes.attributes_plot,
        reward_attributes.attributes_table,
        rewards.analysis_table,
        rewards.benchmark_table,
        rewards.bias_table,
        rewards.disagreement_table,
    ),
    "How it was trained": (
        training.rl_health_plot,
        training.dpo_plot,
        training.sft_plot,
        elsewhere.health_plot,
        training.rounds_table,
        training.bad_numbers_table,
        training.checks_table,
    ),
    "How they were trained": (training.training_plots,),
}


# What a stage of a kind shows by itself, where a run has several of which none goes on from another.
BY_KIND: dict[str, tuple[Maker, ...]] = {
    "sft": (training.sft_plot,),
    "reward": SECTIONS["The reward model"],
    "dpo": (training.dpo_plot,),
    "rl": (
        training.rl_reward_plot,
        training.rl_kl_plot,
        training.rl_length_plot,
        training.rl_health_plot,
    ),
}


def sections(runs: Runs) -> list[Section]:
    """Everything that there is data for; of several runs, about those that were evaluated where any was."""
    if len(runs) == 1:
        (stages,) = runs.values()
        made = [section(title, makers, runs) for title, makers in SECTIONS.items()]
        return made + [
            section(f"The {record.manifest['stage']} stage {name}", makers, {name: {kind: record}})
            for name, record in stages.items()
            if (kind := record.manifest["stage"]) != name and (makers := BY_KIND.get(kind))
        ]
    judged = evaluated(runs) or runs
    beside = section("Rewards side by side", (rewards_beside.rewards_table,), runs)
    return [beside, *(section(title, makers, judged) for title, makers in SECTIONS.items())]
