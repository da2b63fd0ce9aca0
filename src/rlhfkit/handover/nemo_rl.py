"""The settings of NeMo RL, of its `examples/run_ppo.py` with the DTensor backend and vLLM."""

from collections.abc import Callable
from typing import Any

from rlhfkit.config.training import OptimConfig
from rlhfkit.handover.nowhere import COMMON_RULES, clip_range
from rlhfkit.handover.subject import Subject
from rlhfkit.handover.terms import HERE, OMITTED, Row, Rule, Target
from rlhfkit.handover.values import (
    Value,
    clipped_above,
    constant,
    given,
    of_kl_loss,
    policy_path,
    reward_path,
    with_adapters,
    with_vllm,
)

__all__ = ["NEMO_RL"]

PPO, GAE, LOSS = "algorithms/ppo.py", "algorithms/advantage_estimator.py", "algorithms/loss/loss_functions.py"
SHAPING, SCALING, DATA = "algorithms/reward_functions.py", "algorithms/grpo.py (scale_rewards)", "data/processors.py"
WORKER, BASE = "models/value/workers/dtensor_value_worker_v2.py", "examples/configs/ppo_math_1B.yaml"
REWARD_ENV, SETUP = "environments/reward_model_environment.py", "models/automodel/setup.py"
ENV = "env.reward_model"
FAR = 1000.0
"""Deviations beyond which no score is: what the scaling of rewards has for bounds where nothing clips them."""


def _penalised(s: Subject) -> bool:
    return _kl_coef(s) > 0


def _kl_coef(s: Subject) -> float:
    return s.last_kl_coef if s.is_adaptive else s.kl_coef


def _schedule(s: Subject, optim: OptimConfig) -> list[dict[str, Any]]:
    """Torch's schedulers, in passes over a rollout; the last entry says where one follows the other."""
    warmup = round(optim.warmup_share * s.passes)
    left = max(1, s.passes - warmup)
    name = "torch.optim.lr_scheduler."
    after: dict[str, dict[str, Any]] = {
        "constant": {"name": f"{name}ConstantLR", "kwargs": {"factor": 1.0, "total_iters": left}},
        "linear": {"name": f"{name}LinearLR", "kwargs": {"start_factor": 1.0, "end_factor": 0.0, "total_iters": left}},
        "cosine": {"name": f"{name}CosineAnnealingLR", "kwargs": {"T_max": left, "eta_min": 0.0}},
        "step": {
            "name": f"{name}StepLR",
            "kwargs": {"step_size": max(1, round(optim.step_updates / _per_pass(s))), "gamma": optim.step_factor},
        },
    }
    rising = {"start_factor": 1 / (warmup + 1), "end_factor": 1.0, "total_iters": warmup}
    first = [{"name": f"{name}LinearLR", "kwargs": rising}] if warmup else []
    return [*first, after[optim.schedule], {"milestones": [warmup] if warmup else []}]


def _per_pass(s: Subject) -> int:
    return s.recipe.ppo.rollout_episodes // s.recipe.ppo.minibatch_episodes


def _adam(
    who: str, ours: str, *, of: Callable[[Subject], OptimConfig], rate: Value, shared: str = ""
) -> tuple[Row, ...]:

    def row(theirs: str, names: tuple[str, ...], value: Value, unit: str, source: str) -> Row:
        also = ("ppo.value.coef",) if names == ("learning_rate",) else ()
        return Row(
            f"{who}.{theirs}", tuple(f"{ours}.{name}" for name in names), value, unit, source,
            shared=(*(f"{shared}.{name}" for name in names), *also) if shared else (),
        )  # fmt: skip

    return (
        row("optimizer.kwargs.lr", ("learning_rate",), rate, "highest rate, as here", BASE),
        row("optimizer.kwargs.weight_decay", ("weight_decay",), lambda s: of(s).weight_decay,
            "of all weights there (0.01 where it is not set), of matrices alone here", BASE),
        row("optimizer.kwargs.betas", ("adam_betas",), lambda s: list(of(s).adam_betas), "as here", BASE),
        row("optimizer.kwargs.eps", ("adam_eps",), lambda s: s.eps(of(s)),
            "1e-8 where it is not set; PPO here takes 1e-5", BASE),
        row("scheduler", ("schedule", "warmup_share", "step_updates", "step_factor"), lambda s: _schedule(s, of(s)),
            "torch's schedulers; move once in each pass over a rollout there, with each optimizer step here",
            f"{WORKER} (train)"),
        row("max_grad_norm", ("max_grad_norm",), lambda s: of(s).max_grad_norm, "norm of the whole gradient, as here",
            f"{WORKER} (train)"),
    )  # fmt: skip


def _of_lora(who: str) -> tuple[Row, ...]:
    prefix = f"{who}.dtensor_cfg.lora_cfg"
    return (
        Row(f"{prefix}.enabled", ("model.lora",), with_adapters(constant(True)), "as here", BASE),
        Row(f"{prefix}.dim", ("model.lora.rank",), with_adapters(lambda s: s.lora.rank), "rank", BASE),
        Row(f"{prefix}.alpha", ("model.lora.alpha",), with_adapters(lambda s: s.lora.alpha),
            "the update is multiplied by alpha / rank, as here", BASE),
        Row(f"{prefix}.match_all_linear", ("model.lora.targets",),
            with_adapters(lambda s: s.lora.targets == "all-linear"), "whether all linear layers have one", BASE),
        Row(f"{prefix}.target_modules", ("model.lora.targets",),
            with_adapters(lambda s: [] if s.lora.targets == "all-linear" else list(s.lora.targets)),
            "or those of these names", BASE),
    )  # fmt: skip


def _range(s: Subject) -> tuple[float, float, float]:
    """(lowest and highest raw score, bound of what becomes of them)."""
    mean, std = s.normalization or (0.0, 1.0)
    limit = s.recipe.ppo.clip_score or FAR
    return mean - limit * std, mean + limit * std, limit


def _scales(s: Subject) -> bool:
    return s.normalization is not None or s.recipe.ppo.clip_score is not None


def _scaled(value: Value) -> Value:
    return lambda s: value(s) if _scales(s) else OMITTED


def _missing_eos(s: Subject) -> float:
    """What is subtracted for a missing EOS; in place of a score of its own that score below the mean, which is 0."""
    ppo = s.recipe.ppo
    return ppo.missing_eos_penalty or max(0.0, -(ppo.missing_eos_score or 0.0))


def _overlong(s: Subject) -> tuple[int, float]:
    """(tokens, most that is subtracted) of the penalty that grows with the length; zeros without one."""
    ppo, longest = s.recipe.ppo, s.recipe.rollout.max_response_tokens
    if _missing_eos(s):
        return 1, _missing_eos(s)
    buffer = longest - ppo.length_penalty_tokens
    return (buffer, ppo.length_penalty * buffer) if ppo.length_penalty and buffer > 0 else (0, 0.0)


def _zeroed(s: Subject) -> bool:
    return s.recipe.ppo.missing_eos_score == 0


SHAPED = ("ppo.missing_eos_penalty", "ppo.missing_eos_score", "ppo.length_penalty", "ppo.length_penalty_tokens")


def _shaped(value: Value) -> Value:
    return lambda s: value(s) if _overlong(s)[0] and not _zeroed(s) else OMITTED


def _precision(s: Subject) -> str:
    return "float32" if s.recipe.model.dtype == "float32" else "bfloat16"


DTENSOR = {
    "_v2": True,
    "enabled": True,
    "sequence_parallel": False,
    "tensor_parallel_size": 1,
    "context_parallel_size": 1,
    "custom_parallel_plan": None,
}

ROWS = (
    # ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("ppo.num_prompts_per_step", ("ppo.rollout_episodes", "ppo.group_size"), lambda s: s.prompts,
        "prompts there; episodes here", f"{PPO} (ppo_train)"),
    Row("ppo.num_generations_per_prompt", ("ppo.group_size",), lambda s: s.group, "responses per prompt, as here",
        f"{PPO} (ppo_train)"),
    Row("ppo.max_num_steps", ("ppo.iterations",), lambda s: s.iterations, "iterations, as here", f"{PPO} (ppo_train)"),
    Row("ppo.max_num_epochs", (), constant(1), "prompts.jsonl is read once, as it holds every repetition",
        f"{PPO} (ppo_train)"),
    Row("ppo.ppo_epochs", ("ppo.epochs",), given("ppo.epochs"),
        "passes over a rollout, as here, but in the same order each time", f"{PPO} (ppo_train)"),
    Row("ppo.critic_ppo_epochs", ("ppo.epochs",), given("ppo.epochs"), "the same of the critic", f"{PPO} (ppo_train)"),
    Row("ppo.policy_training_start_step", ("ppo.value.warmup_iterations",), given("ppo.value.warmup_iterations"),
        "iterations in which only the critic learns, as here. Meanwhile the policy's rate stands still there, and "
        "falls "
        "here", f"{PPO} (ppo_train)"),
    Row("ppo.seed", ("seed",), given("seed"), "of everything", f"{PPO} (setup)"),
    Row("policy.train_global_batch_size", ("ppo.minibatch_episodes",), given("ppo.minibatch_episodes"),
        "episodes of an optimizer step, of all GPUs, as here", f"{WORKER} (train)"),
    Row("policy.train_micro_batch_size", ("ppo.microbatch_tokens",), lambda s: s.microbatch_rows,
        "sequences there, tokens here: as many of the greatest length as fit; memory alone", f"{WORKER} (train)"),
    Row("value.train_global_batch_size", ("ppo.minibatch_episodes",), given("ppo.minibatch_episodes"),
        "the same of the critic", f"{WORKER} (train)"),
    Row("value.train_micro_batch_size", ("ppo.microbatch_tokens",), lambda s: s.microbatch_rows,
        "the same of the critic", f"{WORKER} (train)"),
    # ── KL, advantages, loss ─────────────────────────────────────────────────────────────────────────────────────────
    Row("loss_fn.use_kl_in_reward", ("ppo.kl.place", "ppo.kl.coef"), lambda s: _penalised(s) and not s.kl_in_loss,
        "whether the KL penalty is in the reward, and then not in the loss (in the loss where it is not set)",
        f"{LOSS} (ClippedPGLossFn)"),
    Row("loss_fn.reference_policy_kl_penalty", ("ppo.kl.coef",), _kl_coef,
        "reward per nat; subtracted at each token there as here, so that a sequence pays for its summed KL",
        f"{GAE} (_build_token_level_rewards)"),
    Row("loss_fn.reference_policy_kl_type", ("ppo.kl.estimator",), lambda s: "k3" if s.kl_in_loss else "k1",
        "k1 is logprob - reference's of each token, there cut to [-10, 10] (k3 where it is not set); in the loss k3 "
        "has the gradient there that k2 has here, and with the next line that of k3", LOSS),
    Row("loss_fn.use_on_policy_kl_approximation", ("ppo.kl.estimator",),
        of_kl_loss(lambda s: s.recipe.ppo.kl.estimator == "k3"),
        "whether the ratio to what sampled weighs the KL in the loss", LOSS),
    Row("ppo.skip_reference_policy_logprobs_calculation", ("ppo.kl.coef",), lambda s: not _penalised(s),
        "whether the reference is left out (true where it is not set)", f"{PPO} (ppo_train)"),
    Row("ppo.adv_estimator.name", ("ppo.estimator",), constant("gae"), "as here", f"{GAE} (GAEConfig)"),
    Row("ppo.adv_estimator.gae_gamma", ("ppo.gamma",), given("ppo.gamma"), "per token, as here",
        f"{GAE} (_compute_gae)"),
    Row("ppo.adv_estimator.gae_lambda", ("ppo.gae_lambda",), given("ppo.gae_lambda"), "per token, as here",
        f"{GAE} (_compute_gae)"),
    Row("ppo.adv_estimator.gae_lambda_policy", ("ppo.value.gae_lambda", "ppo.gae_lambda"),
        lambda s: OMITTED if s.recipe.ppo.value.gae_lambda is None else s.recipe.ppo.gae_lambda,
        "of the advantages, where the next is set", f"{GAE} (GAEConfig)"),
    Row("ppo.adv_estimator.gae_lambda_value", ("ppo.value.gae_lambda",),
        lambda s: OMITTED if s.recipe.ppo.value.gae_lambda is None else s.recipe.ppo.value.gae_lambda,
        "of the returns that the critic learns, as here", f"{GAE} (GAEConfig)"),
    Row("ppo.adv_estimator.normalize_advantages", (), constant(True), "whitened over the rollout, as here",
        f"{GAE} (_reward_whiten)"),
    Row("loss_fn.ratio_clip_min", ("ppo.clip_range",), clip_range, "the ratio's lower bound is 1 - this", LOSS),
    Row("loss_fn.ratio_clip_max", ("ppo.clip_range_high", "ppo.clip_range"), clipped_above,
        "the ratio's upper bound is 1 + this (0.28 where "
        "it is not set)", LOSS),
    Row("loss_fn.ratio_clip_c", ("ppo.dual_clip",), given("ppo.dual_clip"),
        "bound on the ratio of bad actions; null switches it off (10 where it is not set)", LOSS),
    Row("loss_fn.sequence_level_importance_ratios", ("ppo.ratio",), lambda s: s.recipe.ppo.ratio == "sequence",
        "whether the ratio is that of a response, as here", LOSS),
    Row("loss_fn.token_level_loss", ("ppo.loss_aggregation",),
        lambda s: s.recipe.ppo.loss_aggregation != "sequence" and s.recipe.ppo.ratio == "token",
        "mean over a minibatch's tokens, or over its responses of their means, as here", LOSS),
    Row("loss_fn.use_importance_sampling_correction", ("rollout.engine",), with_vllm(constant(True)),
        "weights of tokens for the difference between vLLM and the update, as with the engine vllm here", LOSS),
    Row("loss_fn.truncated_importance_sampling_type", ("rollout.engine",), with_vllm(constant("tis")),
        "weights are bounded, as here", LOSS),
    Row("loss_fn.truncated_importance_sampling_ratio", ("rollout.importance_cap",),
        with_vllm(lambda s: s.recipe.rollout.importance_cap), "upper bound of such a weight, as here", LOSS),
    Row("value_loss_fn.scale", (), constant(1.0), "weight of the critic's loss, which has an optimizer of its own (0.4 "
        "where it is not set)", f"{LOSS} (MseValueLossFn)"),
    Row("value_loss_fn.cliprange", ("ppo.value.clip_range",), lambda s: s.recipe.ppo.value.clip_range or None,
        "how far a value may move; null switches it off; the loss is half the larger square, as here",
        f"{LOSS} (MseValueLossFn)"),
    # ── the reward ───────────────────────────────────────────────────────────────────────────────────────────────────
    Row("ppo.reward_scaling.enabled", ("reward", "ppo.clip_score"), _scales,
        "a straight line from raw scores to those that PPO sees (on where it is not set)", SCALING),
    Row("ppo.reward_scaling.source_min", ("reward", "ppo.clip_score"), _scaled(lambda s: _range(s)[0]),
        "mean - bound x deviation of raw scores; lower ones are cut", SCALING),
    Row("ppo.reward_scaling.source_max", ("reward", "ppo.clip_score"), _scaled(lambda s: _range(s)[1]),
        "mean + bound x deviation of raw scores; higher ones are cut", SCALING),
    Row("ppo.reward_scaling.target_min", ("ppo.clip_score",), _scaled(lambda s: -_range(s)[2]),
        "what the lowest becomes, in deviations; without ppo.clip_score so far out that nothing is cut", SCALING),
    Row("ppo.reward_scaling.target_max", ("ppo.clip_score",), _scaled(lambda s: _range(s)[2]), "and the highest",
        SCALING),
    Row("ppo.reward_shaping.enabled", SHAPED, lambda s: _overlong(s)[0] > 0 or _zeroed(s),
        "penalties on the length, after the scaling, as here (on where it is not set)", SHAPING),
    Row("ppo.reward_shaping.stop_properly_penalty_coef", ("ppo.missing_eos_score",),
        lambda s: 0.0 if _zeroed(s) else None,
        "factor of the score of a response that was cut off", SHAPING),
    Row("ppo.reward_shaping.max_response_length", ("rollout.max_response_tokens",),
        _shaped(given("rollout.max_response_tokens")), "tokens", SHAPING),
    Row("ppo.reward_shaping.overlong_buffer_length", SHAPED, _shaped(lambda s: _overlong(s)[0]),
        "tokens below that from which a penalty grows, in a line", SHAPING),
    Row("ppo.reward_shaping.overlong_buffer_penalty", SHAPED, _shaped(lambda s: _overlong(s)[1]),
        "what is subtracted at the limit", SHAPING),
    Row("ppo.overlong_filtering", (), constant(False), "responses that were cut off are learnt from, as here",
        f"{PPO} (ppo_train)"),
    Row("ppo.use_dynamic_sampling", (), constant(False), "no prompt is left out, as here", f"{PPO} (PPOConfig)"),
    Row(f"{ENV}.enabled", ("reward.type",), constant(True), "a reward model scores", REWARD_ENV),
    Row(f"{ENV}.model_name", ("reward.path",), reward_path,
        "a sequence classifier with one output; EOS is put behind responses that were cut off, too", REWARD_ENV),
    Row(f"{ENV}.tokenizer.name", ("reward.path",), reward_path, "its tokenizer", REWARD_ENV),
    Row(f"{ENV}.tokenizer.chat_template", (), constant(None), "texts are joined as they are", SETUP),
    Row(f"{ENV}.precision", ("model.dtype",), _precision, "type of its weights", REWARD_ENV),
    Row(f"{ENV}.batch_size", ("ppo.microbatch_tokens",), lambda s: s.microbatch_rows, "sequences; memory alone",
        REWARD_ENV),
    Row(f"{ENV}.logprob_batch_size", ("ppo.microbatch_tokens",), lambda s: s.microbatch_rows,
        "sequences; memory alone", REWARD_ENV),
    Row(f"{ENV}.checkpoint_path", (), constant(None), "weights are those of the directory", REWARD_ENV),
    Row(f"{ENV}.max_model_len", ("reward.max_tokens",), lambda s: s.sequence_tokens + 1, "tokens", REWARD_ENV),
    Row(f"{ENV}.resources.gpus_per_node", (), constant(1), "GPUs of its own", REWARD_ENV),
    Row(f"{ENV}.resources.num_nodes", (), constant(1), "machines", REWARD_ENV),
    *(Row(f"{ENV}.dtensor_cfg.{key}", (), constant(value), "as in examples/configs/grpo_rm_1B.yaml", REWARD_ENV)
      for key, value in DTENSOR.items()),
    # ── data and lengths ─────────────────────────────────────────────────────────────────────────────────────────────
    Row("data.train.dataset_name", (), constant("ResponseDataset"), "rows of a file",
        "data/datasets/response_datasets"),
    Row("data.train.data_path", ("data.prompts",), lambda s: f"{HERE}/prompts.jsonl",
        "the prompts in the order in which the run here draws them, each as often as it does",
        "data/datasets/response_datasets"),
    Row("data.train.input_key", (), constant("input"), "the model's template stands around it already",
        "data/datasets/response_datasets"),
    Row("data.train.output_key", (), constant("output"), "empty", "data/datasets/response_datasets"),
    Row("data.validation", (), constant(None), "nothing is validated", "data/utils.py"),
    Row("data.shuffle", (), constant(False), "prompts.jsonl is shuffled already", f"{PPO} (setup)"),
    Row("data.max_input_seq_length", ("data.max_prompt_tokens",), lambda s: s.max_prompt_tokens,
        "tokens; a longer prompt would not be learnt from; they are cut already", DATA),
    Row("data.default.processor", (), constant("math_hf_data_processor"), "tokens of the prompt as it is", DATA),
    Row("data.default.env_name", ("reward.type",), constant("reward_model"), "what scores", "environments/utils.py"),
    Row("policy.max_total_sequence_length", ("data.max_prompt_tokens", "rollout.max_response_tokens"),
        lambda s: s.sequence_tokens, "tokens of prompt and response together", BASE),
    Row("value.max_total_sequence_length", ("data.max_prompt_tokens", "rollout.max_response_tokens"),
        lambda s: s.sequence_tokens, "the same of the critic", BASE),
    Row("policy.generation.max_new_tokens", ("rollout.max_response_tokens",), given("rollout.max_response_tokens"),
        "tokens, EOS included, as here", BASE),
    # ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("policy.model_name", ("model.path", "model.trust_remote_code"), policy_path,
        "policy and reference begin here; code of the model's directory may run there, whatever "
        "model.trust_remote_code "
        "says", SETUP),
    Row("policy.tokenizer.name", ("model.path",), policy_path, "its tokenizer", SETUP),
    Row("policy.tokenizer.chat_template", (), constant(None),
        "null passes texts on as they are; prompts.jsonl holds what the model's own template has written", SETUP),
    Row("policy.precision", ("model.dtype",), _precision, "type of the products", SETUP),
    Row("policy.dtensor_cfg.activation_checkpointing", ("model.gradient_checkpointing",),
        lambda s: s.recipe.model.gradient_checkpointing is not False, "memory", BASE),
    Row("value.model_name", ("ppo.value.init",), lambda s: f"{HERE}/critic" if s.is_local else s.policy_path,
        "a token classifier, whose head begins as here: (score - mean) / deviation of the reward model, or zero",
        SETUP),
    Row("value.tokenizer.name", ("model.path",), policy_path, "as the policy's", SETUP),
    Row("value.tokenizer.chat_template", (), constant(None), "as the policy's", SETUP),
    Row("value.precision", ("model.dtype",), _precision, "as the policy's", SETUP),
    *_of_lora("policy"), *_of_lora("value"),
    *_adam("policy", "ppo.optim", of=lambda s: s.recipe.ppo.optim, rate=lambda s: s.policy_rate),
    *_adam("value", "ppo.value.optim", of=lambda s: s.critic_optim, rate=lambda s: s.critic_rate, shared="ppo.optim"),
    # ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("policy.generation.temperature", ("rollout.temperature",), given("rollout.temperature"),
        "divides the logits in rollout, update and reference, as here", BASE),
    Row("policy.generation.top_p", ("rollout.top_p",), given("rollout.top_p"), "as here", BASE),
    Row("policy.generation.top_k", ("rollout.top_k",), lambda s: s.recipe.rollout.top_k or None,
        "null keeps all, 0 here", BASE),
    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("ppo.val_period", (), constant(0), "nothing is validated", f"{PPO} (ppo_train)"),
    Row("ppo.val_at_start", (), constant(False), "nothing is validated", f"{PPO} (ppo_train)"),
    Row("checkpointing.metric_name", (), constant(None), "nothing is validated", f"{PPO} (ppo_train)"),
    Row("checkpointing.checkpoint_dir", (), lambda s: f"{HERE}/checkpoints", "where they are written", BASE),
    Row("checkpointing.save_period", (), lambda s: max(1, s.iterations // 5), "iterations between two", BASE),
    Row("logger.log_dir", (), lambda s: f"{HERE}/logs", "where it logs", BASE),
    Row("cluster.gpus_per_node", (), lambda s: s.gpus, "GPUs, as --gpus says, the reward model's included", BASE),
    Row("cluster.num_nodes", (), constant(1), "machines", BASE),
)  # fmt: skip


def _needs_two(s: Subject) -> bool:
    return s.gpus < 2


RULES = (
    *COMMON_RULES,
    Rule(
        ("ppo.objective",),
        lambda s: s.recipe.ppo.objective == "cispo",
        "there is the clipped loss alone there",
        remedy='export to verl, or set ppo.objective = "clip"',
    ),
    Rule(
        ("ppo.loss_aggregation", "ppo.loss_tokens"),
        lambda s: s.recipe.ppo.loss_aggregation == "constant",
        "no constant length divides the loss there",
        "the mean over tokens, in which all of a minibatch's weigh the same, too",
    ),
    Rule(
        ("ppo.ratio", "ppo.loss_aggregation"),
        lambda s: s.recipe.ppo.ratio == "sequence" and s.recipe.ppo.loss_aggregation != "sequence",
        "the ratio of a response goes with the mean over responses alone there",
        "that mean",
    ),
    Rule(
        ("ppo.estimator", "ppo.normalize_std"),
        lambda s: not s.has_critic,
        "examples/run_ppo.py has a critic, and its run_grpo.py does not penalise the KL as here",
        remedy='export to verl, or set ppo.estimator = "gae"',
    ),
    Rule(
        ("ppo.kl.type", "ppo.kl.target", "ppo.kl.horizon_episodes"),
        lambda s: s.is_adaptive,
        "the coefficient stays as it is there",
        lambda s: f"a fixed coefficient of {s.last_kl_coef:g}"
        + (", with which the run ended" if s.last_kl_coef != s.kl_coef else ", that of the start"),
    ),
    Rule(
        ("ppo.entropy_coef",),
        lambda s: s.recipe.ppo.entropy_coef > 0,
        "there is no bonus for entropy there",
        "none",
    ),
    Rule(
        ("ppo.missing_eos_score",),
        lambda s: bool(s.recipe.ppo.missing_eos_score),
        "what a response without EOS gets there is a factor of its score",
        lambda s: (
            f"{_missing_eos(s):g} is subtracted from the score of a response of the greatest length, so that it is "
            f"{s.recipe.ppo.missing_eos_score:g} in the mean"
            if _missing_eos(s) else "scores as they are"
        ),
    ),
    Rule(
        ("ppo.missing_eos_penalty",),
        lambda s: bool(s.recipe.ppo.missing_eos_penalty),
        "what is punished there is the greatest length, also where EOS is the last token that had room",
        "the same penalty for the greatest length",
    ),
    Rule(
        ("ppo.length_penalty", "ppo.missing_eos_penalty", "ppo.missing_eos_score"),
        lambda s: bool(s.recipe.ppo.length_penalty) and (bool(_missing_eos(s)) or _zeroed(s)),
        "there is one penalty alone there",
        "the one for a missing EOS",
    ),
    Rule(
        ("ppo.brevity_penalty", "ppo.brevity_penalty_tokens"),
        lambda s: bool(s.recipe.ppo.brevity_penalty),
        "there is no penalty on short responses there",
        "none",
    ),
    Rule(
        ("reward.type",),
        lambda s: not s.is_reward_model,
        "what scores there is a reward model or an environment of its own",
        remedy="write an EnvironmentInterface for it, and set env and data.default.env_name",
    ),
    Rule(
        ("ppo.minibatch_episodes",),
        lambda s: _needs_two(s) or s.recipe.ppo.minibatch_episodes % (s.gpus - 1) != 0,
        "the reward model has a GPU of its own there, and a minibatch is shared out evenly among the others",
        remedy="give --gpus 2 or more, and a minibatch that one less divides",
    ),
    Rule(
        ("ppo.value.init",),
        lambda s: s.has_critic and not s.is_local,
        "its head begins with random numbers there, unless a critic lies ready, which is made of a model's directory",
        "a critic that begins at the policy, with a random head",
    ),
)  # fmt: skip

NEMO_RL = Target(
    name="nemo-rl",
    version="main of August to October 2026",
    where="nemo_rl/",
    rows=ROWS,
    rules=RULES,
    remarks=(
        "PyPI has only a placeholder (0.0.0); what was read is https://github.com/NVIDIA-NeMo/RL",
        "code of a model's directory runs there without asking",
        "vLLM samples there, and its logprobs differ a little from those of the update; without the engine vllm in the "
        "recipe nothing corrects for it (loss_fn.use_importance_sampling_correction does)",
        "minibatches keep their order in all epochs; here they are drawn anew",
    ),
)
