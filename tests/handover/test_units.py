"""What each tool is told, in numbers that were worked out by hand."""

from pathlib import Path

import pytest
import torch

from rlhfkit.handover.export import TARGETS
from rlhfkit.handover.subject import subject_of
from rlhfkit.handover.translate import translate
from rlhfkit.ppo import AdaptiveKL
from rlhfkit.training.optim import learning_rate_factor

HERE = Path("anywhere")


def lines_of(tool, run, *overrides, gpus=2, **options):
    """Setting there → value, of a translation with whatever substitutes it takes."""
    translation = translate(TARGETS[tool], subject_of(run, overrides, directory=HERE, gpus=gpus, **options))
    assert all(refusal.substitute for refusal in translation.refused), translation.refused
    return {line.key: line.value for line in (*translation.lines, *translation.constants)}


ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
EXPECTED = {
    "verl": {
        "data.train_batch_size": 16,  # 64 episodes are 16 prompts with 4 responses each
        f"{ROLLOUT}.n": 4,
        f"{ACTOR}.ppo_mini_batch_size": 4,  # 16 episodes are 4 prompts
        "critic.ppo_mini_batch_size": 4,
        f"{ACTOR}.ppo_epochs": 2,
        "critic.ppo_epochs": 2,
        "trainer.total_training_steps": 10,
        "trainer.critic_warmup": 4,  # the fourth iteration is the first with an update of the policy
        "data.max_prompt_length": 24,
        "data.max_response_length": 40,
        "algorithm.gamma": 0.99,
        "algorithm.lam": 0.9,
        "algorithm.use_kl_in_reward": True,
        "algorithm.kl_penalty": "kl",
        "algorithm.kl_ctrl.type": "fixed",
        "algorithm.kl_ctrl.kl_coef": 0.07,
        f"{ACTOR}.use_kl_loss": False,
        f"{ACTOR}.clip_ratio_low": 0.15,
        f"{ACTOR}.clip_ratio_high": 0.15,
        f"{ACTOR}.clip_ratio_c": 1e9,
        f"{ACTOR}.entropy_coeff": 0.002,
        f"{ACTOR}.loss_agg_mode": "token-mean",
        f"{ACTOR}.optim.lr": 3e-6,
        f"{ACTOR}.optim.lr_scheduler_type": "cosine",
        f"{ACTOR}.optim.lr_warmup_steps_ratio": 0.1,
        f"{ACTOR}.optim.weight_decay": 0.02,
        f"{ACTOR}.optim.betas": [0.9, 0.98],
        f"{ACTOR}.optim.override_optimizer_config.eps": 1e-5,  # what "auto" is in PPO
        f"{ACTOR}.optim.clip_grad": 1.0,
        "critic.optim.lr": 7e-6,
        "critic.optim.lr_scheduler_type": "constant",
        "critic.optim.weight_decay": 0.0,
        "critic.optim.override_optimizer_config.eps": 1e-7,
        "critic.optim.clip_grad": 0.5,
        "critic.cliprange_value": 0.3,
        f"{ROLLOUT}.temperature": 0.7,
        f"{ROLLOUT}.top_p": 0.9,
        f"{ROLLOUT}.top_k": -1,
        f"{ROLLOUT}.tensor_model_parallel_size": 1,
        "MEAN": 0.5,
        "DEVIATION": 0.8,
        "CLIP_SCORE": 4.0,
        f"{ACTOR}.ppo_max_token_len_per_gpu": 640,
    },
    "openrlhf": {
        "rollout.batch_size": 16,
        "rollout.n_samples_per_prompt": 4,
        "train.batch_size": 16,  # episodes
        "train.micro_batch_size": 8,  # of 64 tokens each: 10 fit into 640, but a GPU has 8 of a minibatch
        "train.max_epochs": 2,
        "train.num_episodes": 1,
        "critic.freezing_steps": 2,  # iterations 0, 1 and 2
        "data.max_len": 64,
        "rollout.max_new_tokens": 40,
        "algo.advantage.gamma": 0.99,
        "algo.advantage.lambd": 0.9,
        "algo.kl.init_coef": 0.07,
        "algo.kl.estimator": "k1",
        "actor.eps_clip_low_high": [0.15, 0.15],
        "actor.entropy_coef": 0.002,
        "actor.adam.lr": 3e-6,
        "actor.adam.betas": [0.9, 0.98],
        "actor.adam.eps": 1e-5,
        "actor.adam.weight_decay": 0.02,
        "actor.lr_scheduler": "cosine",
        "actor.lr_warmup_ratio": 0.1,
        "actor.max_norm": 1.0,
        "critic.adam.lr": 7e-6,
        "critic.adam.betas": [0.9, 0.999],
        "critic.adam.eps": 1e-7,
        "critic.lr_scheduler": "constant_with_warmup",
        "critic.lr_warmup_ratio": 0.0,
        "critic.max_norm": 0.5,
        "critic.value_clip": 0.3,
        "reward.normalize_enable": True,
        "reward.clip_range": [-4.0, 4.0],
        "rollout.temperature": 0.7,
        "rollout.top_p": 0.9,
    },
    "nemo-rl": {
        "ppo.num_prompts_per_step": 16,
        "ppo.num_generations_per_prompt": 4,
        "policy.train_global_batch_size": 16,  # episodes
        "value.train_global_batch_size": 16,
        "ppo.ppo_epochs": 2,
        "ppo.critic_ppo_epochs": 2,
        "ppo.max_num_steps": 10,
        "ppo.policy_training_start_step": 3,
        "policy.max_total_sequence_length": 64,
        "policy.generation.max_new_tokens": 40,
        "ppo.adv_estimator.gae_gamma": 0.99,
        "ppo.adv_estimator.gae_lambda": 0.9,
        "loss_fn.use_kl_in_reward": True,
        "loss_fn.reference_policy_kl_penalty": 0.07,
        "loss_fn.reference_policy_kl_type": "k1",
        "ppo.skip_reference_policy_logprobs_calculation": False,
        "loss_fn.ratio_clip_min": 0.15,
        "loss_fn.ratio_clip_max": 0.15,
        "loss_fn.ratio_clip_c": None,
        "value_loss_fn.scale": 1.0,
        "value_loss_fn.cliprange": 0.3,
        "policy.optimizer.kwargs.lr": 3e-6,
        "policy.optimizer.kwargs.weight_decay": 0.02,
        "policy.optimizer.kwargs.betas": [0.9, 0.98],
        "policy.optimizer.kwargs.eps": 1e-5,
        "policy.max_grad_norm": 1.0,
        "value.optimizer.kwargs.lr": 7e-6,
        "value.optimizer.kwargs.eps": 1e-7,
        "value.max_grad_norm": 0.5,
        "ppo.reward_scaling.source_min": 0.5 - 4 * 0.8,  # four deviations below the mean of raw scores
        "ppo.reward_scaling.source_max": 0.5 + 4 * 0.8,
        "ppo.reward_scaling.target_min": -4.0,
        "ppo.reward_scaling.target_max": 4.0,
        "ppo.reward_shaping.enabled": False,
        "policy.generation.temperature": 0.7,
        "policy.generation.top_p": 0.9,
        "policy.generation.top_k": None,
        "cluster.gpus_per_node": 2,
    },
}


VLLM = "rollout={max_response_tokens=40, engine='vllm'}"


@pytest.mark.parametrize("tool", EXPECTED)
def test_units_are_those_of_the_tool(tool, run):
    found = lines_of(tool, run)
    assert {key: found.get(key, "missing") for key in EXPECTED[tool]} == EXPECTED[tool]


@pytest.mark.parametrize(
    ("tool", "setting", "line", "value"),
    [
        ("verl", "ppo.value.warmup_iterations=0", "trainer.critic_warmup", 0),
        ("openrlhf", "ppo.value.warmup_iterations=0", "critic.freezing_steps", -1),
        ("nemo-rl", "ppo.value.warmup_iterations=0", "ppo.policy_training_start_step", 0),
        ("verl", "ppo.dual_clip=3.0", f"{ACTOR}.clip_ratio_c", 3.0),
        ("openrlhf", "ppo.dual_clip=3.0", "actor.dual_clip", 3.0),
        ("nemo-rl", "ppo.dual_clip=3.0", "loss_fn.ratio_clip_c", 3.0),
        ("verl", "ppo.value.clip_range=0", "critic.cliprange_value", 1e9),
        ("openrlhf", "ppo.value.clip_range=0", "critic.value_clip", 1e9),
        ("nemo-rl", "ppo.value.clip_range=0", "value_loss_fn.cliprange", None),
        ("verl", "ppo.kl.coef=0", "algorithm.use_kl_in_reward", False),
        ("openrlhf", "ppo.kl.coef=0", "algo.kl.init_coef", 0.0),
        ("nemo-rl", "ppo.kl.coef=0", "ppo.skip_reference_policy_logprobs_calculation", True),
        ("verl", "rollout.top_k=50", f"{ROLLOUT}.top_k", 50),
        ("nemo-rl", "rollout.top_k=50", "policy.generation.top_k", 50),
        ("verl", "ppo.estimator=rloo", "algorithm.adv_estimator", "rloo"),
        ("verl", "ppo.estimator='reinforce++'", "algorithm.adv_estimator", "reinforce_plus_plus"),
        ("openrlhf", "ppo.estimator='reinforce++'", "algo.advantage.estimator", "reinforce"),
        ("openrlhf", "ppo={preset='dr_grpo', group_size=4}", "algo.advantage.estimator", "dr_grpo"),
        ("verl", "ppo.clip_range_high=0.28", f"{ACTOR}.clip_ratio_high", 0.28),
        ("openrlhf", "ppo.clip_range_high=0.28", "actor.eps_clip_low_high", [0.15, 0.28]),
        ("nemo-rl", "ppo.clip_range_high=0.28", "loss_fn.ratio_clip_max", 0.28),
        ("nemo-rl", "ppo.value.gae_lambda=1.0", "ppo.adv_estimator.gae_lambda_value", 1.0),
        ("verl", "ppo.ratio=sequence", f"{ACTOR}.policy_loss.loss_mode", "gspo"),
        ("openrlhf", "ppo.ratio=sequence", "actor.policy_loss_type", "gspo"),
        ("nemo-rl", "ppo.ratio=sequence", "loss_fn.sequence_level_importance_ratios", True),
        ("nemo-rl", "ppo.ratio=sequence", "loss_fn.token_level_loss", False),
        ("verl", "ppo.objective=cispo", f"{ACTOR}.policy_loss.loss_mode", "cispo"),
        ("verl", "ppo.loss_aggregation=sequence", f"{ACTOR}.loss_agg_mode", "seq-mean-token-mean"),
        ("verl", "ppo.loss_aggregation=sequence", "critic.loss_agg_mode", "token-mean"),
        ("openrlhf", "ppo.loss_aggregation=sequence", "actor.loss_agg_mode", "seq-mean-token-mean"),
        ("nemo-rl", "ppo.loss_aggregation=sequence", "loss_fn.token_level_loss", False),
        ("verl", "ppo.loss_aggregation=constant", f"{ACTOR}.loss_scale_factor", 40),
        ("verl", "ppo.kl={place='loss', coef=0.1}", f"{ACTOR}.kl_loss_coef", 0.1),
        ("verl", "ppo.kl={place='loss', coef=0.1}", f"{ACTOR}.kl_loss_type", "k2"),
        ("verl", "ppo.kl={place='loss', coef=0.1}", "algorithm.use_kl_in_reward", False),
        ("verl", "ppo.kl={place='loss', estimator='k3'}", f"{ACTOR}.kl_loss_type", "k3+"),
        ("openrlhf", "ppo.kl={place='loss', coef=0.1}", "algo.kl.use_loss", True),
        ("openrlhf", "ppo.kl={place='loss', coef=0.1}", "algo.kl.estimator", "k2"),
        ("openrlhf", "ppo.kl={place='loss', estimator='k3'}", "algo.kl.unbiased_gradient", True),
        ("nemo-rl", "ppo.kl={place='loss', coef=0.1}", "loss_fn.use_kl_in_reward", False),
        ("nemo-rl", "ppo.kl={place='loss', estimator='k3'}", "loss_fn.use_on_policy_kl_approximation", True),
        ("openrlhf", "ppo.estimator=grpo", "algo.advantage.estimator", "group_norm"),
        ("openrlhf", "ppo.missing_eos_score=-1", "reward.stop_properly_penalty_coef", -1.0),
        ("openrlhf", "ppo.missing_eos_score=0", "reward.stop_properly_penalty_coef", 0.0),
        ("nemo-rl", "ppo.missing_eos_score=0", "ppo.reward_shaping.stop_properly_penalty_coef", 0.0),
        ("verl", "ppo.missing_eos_score=-1", "MISSING_EOS_SCORE", -1.0),
        ("verl", "model.lora={rank=8, alpha=32}", "actor_rollout_ref.model.lora_rank", 8),
        ("verl", "model.lora={rank=8, alpha=32}", "critic.model.lora_alpha", 32.0),
        ("openrlhf", "model.lora={rank=8, alpha=32}", "ds.lora.alpha", 32),
        ("nemo-rl", "model.lora={rank=8, alpha=32}", "value.dtensor_cfg.lora_cfg.dim", 8),
        ("verl", VLLM, "algorithm.rollout_correction.rollout_is", "token"),
        ("nemo-rl", VLLM, "loss_fn.truncated_importance_sampling_ratio", 2.0),
        ("openrlhf", VLLM, "algo.advantage.is_correction_threshold", [0, 2.0]),
        # A shared trunk's critic has the policy's rate times the weight of its loss.
        ("verl", "ppo.value={network='shared', coef=0.5}", "critic.optim.lr", 1.5e-6),
        ("openrlhf", "ppo.value={network='shared', coef=0.5}", "critic.adam.lr", 1.5e-6),
        ("nemo-rl", "ppo.value={network='shared', coef=0.5}", "value.optimizer.kwargs.lr", 1.5e-6),
        # A clip range that falls to zero in a line is half of it in the mean.
        ("verl", "ppo.clip_schedule=linear", f"{ACTOR}.clip_ratio_low", 0.075),
    ],
)  # fmt: skip
def test_a_setting_becomes(run, tool, setting, line, value):
    assert lines_of(tool, run, setting)[line] == value


@pytest.mark.parametrize("line", ["critic.optim.lr", "critic.model.path", "trainer.critic_warmup"])
def test_without_a_critic_nothing_is_said_of_one(run, line):
    assert line in lines_of("verl", run)
    assert line not in lines_of("verl", run, "ppo.estimator=rloo")


def test_a_penalty_on_the_length_is_the_same_line_there(run):
    """Ours is 0.1 per token beyond 30; of 36 tokens 0.6."""
    overrides = ("ppo.length_penalty=0.1", "ppo.length_penalty_tokens=30")
    openrlhf, nemo = (lines_of(tool, run, *overrides) for tool in ("openrlhf", "nemo-rl"))
    for buffer, most, longest in (
        (openrlhf["reward.overlong_buffer_len"], openrlhf["reward.overlong_penalty_factor"], 40),
        (
            nemo["ppo.reward_shaping.overlong_buffer_length"],
            nemo["ppo.reward_shaping.overlong_buffer_penalty"],
            nemo["ppo.reward_shaping.max_response_length"],
        ),
    ):
        exceeding = 36 - (longest - buffer)  # as both tools count
        assert -exceeding / buffer * most == pytest.approx(-0.6)


ADAPTIVE = "ppo.kl={type='adaptive', coef=0.1, target=6.0, horizon_episodes=2000}"


def test_the_target_of_the_kl_is_one_per_token_there(run):
    """The responses of the run have 24 tokens in the mean."""
    found = lines_of("verl", run, ADAPTIVE)
    assert found["algorithm.kl_ctrl.target_kl"] == 6.0 / 24
    assert found["algorithm.kl_ctrl.horizon"] == 2000
    assert lines_of("verl", run, ADAPTIVE, response_tokens=12)["algorithm.kl_ctrl.target_kl"] == 0.5


@pytest.mark.parametrize("nats", [1.0, 5.9, 6.4, 30.0])
def test_the_coefficient_moves_as_here(run, nats):
    """By verl's rule (core_algos.py:170): clip(KL per token / target - 1, -0.2, 0.2) * episodes / horizon."""
    found = lines_of("verl", run, ADAPTIVE)
    error = min(max(nats / 24 / found["algorithm.kl_ctrl.target_kl"] - 1, -0.2), 0.2)
    episodes = found["data.train_batch_size"] * found[f"{ROLLOUT}.n"]
    theirs = found["algorithm.kl_ctrl.kl_coef"] * (1 + error * episodes / found["algorithm.kl_ctrl.horizon"])
    assert theirs == pytest.approx(AdaptiveKL(0.1, 6.0, 2000).next(0.1, nats, 64))


@pytest.mark.parametrize("tool", ["openrlhf", "nemo-rl"])
def test_a_coefficient_that_must_stay_is_the_one_that_the_run_ended_with(run, tool):
    line = {"openrlhf": "algo.kl.init_coef", "nemo-rl": "loss_fn.reference_policy_kl_penalty"}[tool]
    assert lines_of(tool, run, ADAPTIVE)[line] == 0.21


SCHEDULES = [
    ("constant", 0.0),
    ("linear", 0.0),
    ("linear", 0.25),
    ("cosine", 0.0),
    ("cosine", 0.25),
    ("constant", 0.25),
]


@pytest.mark.parametrize(("schedule", "warmup"), SCHEDULES)
def test_the_rates_of_nemo_rl_are_those_of_the_first_update_of_each_pass(run, schedule, warmup):
    """Its schedulers move once a pass; with one update in each pass they are ours."""
    overrides = (
        f"ppo.optim={{learning_rate=1.0, schedule='{schedule}', warmup_share={warmup}}}",
        "ppo.minibatch_episodes=64",
    )
    *parts, last = lines_of("nemo-rl", run, *overrides)["policy.scheduler"]
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1.0)
    made = [
        getattr(torch.optim.lr_scheduler, part["name"].split(".")[-1])(optimizer, **part["kwargs"]) for part in parts
    ]
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, made, last["milestones"])
    config = subject_of(run, overrides, directory=HERE).recipe.ppo.optim
    for update in range(20):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(learning_rate_factor(config, update, 20)), update
        optimizer.step()
        scheduler.step()


def test_steps_of_the_rate_are_counted_in_passes_there(run):
    optim = "ppo.optim={learning_rate=1e-6, schedule='step', step_updates=8, step_factor=0.3}"
    step = lines_of("nemo-rl", run, optim)["policy.scheduler"][0]["kwargs"]
    assert step == {"step_size": 2, "gamma": 0.3}  # a pass over 64 episodes is 4 updates of 16
