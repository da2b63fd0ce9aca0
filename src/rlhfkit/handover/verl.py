"""The settings of verl, of its trainer `verl.trainer.main_ppo` with FSDP and vLLM."""

from collections.abc import Callable
from typing import Any

from rlhfkit.config.training import OptimConfig
from rlhfkit.handover.nowhere import COMMON_RULES, clip_range
from rlhfkit.handover.subject import UNBOUNDED, Subject
from rlhfkit.handover.terms import HERE, IN_REWARD_FILE, OMITTED, Row, Rule, Target
from rlhfkit.handover.values import (
    Value,
    clipped_above,
    constant,
    given,
    modules,
    of_kl_loss,
    penalised,
    policy_path,
    reward_path,
    with_adapters,
    with_critic,
    with_reward_model,
    with_vllm,
)

__all__ = ["VERL"]

ESTIMATORS = {"reinforce++": "reinforce_plus_plus", "reinforce++-baseline": "reinforce_plus_plus_baseline"}
AGGREGATIONS = {"token": "token-mean", "sequence": "seq-mean-token-mean", "constant": "seq-mean-token-sum-norm"}
SCHEDULES = {"constant": "constant", "cosine": "cosine", "linear": "cosine", "step": "constant"}
ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"
REWARD_MODEL = "reward.reward_model"
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def _adaptive(value: Value) -> Value:
    return lambda s: value(s) if s.is_adaptive else OMITTED


def _estimator(s: Subject) -> str:
    return str(s.recipe.ppo.estimator)


def _loss_mode(s: Subject) -> str:
    if s.recipe.ppo.objective == "cispo":
        return "cispo"
    return "gspo" if s.recipe.ppo.ratio == "sequence" else "vanilla"


def _loss_tokens(s: Subject) -> Any:
    ppo = s.recipe.ppo
    return ppo.for_rollout(s.recipe.rollout).loss_tokens if ppo.loss_aggregation == "constant" else OMITTED


def _adam(prefix: str, ours: str, *, of: Callable[[Subject], OptimConfig], rate: Value, only: Callable[[Value], Value],
          shared: str = "") -> tuple[Row, ...]:  # fmt: skip
    """The lines of one optimizer; `of` gives its settings."""

    def row(theirs: str, name: str, value: Value, unit: str, source: str) -> Row:
        also = ("ppo.value.coef",) if name == "learning_rate" else ()
        return Row(
            f"{prefix}.{theirs}", (f"{ours}.{name}",), only(value), unit, source,
            shared=(f"{shared}.{name}", *also) if shared else (),
        )  # fmt: skip

    return (
        row("lr", "learning_rate", rate, "highest rate, as here", "workers/config/optimizer.py:327"),
        row(
            "lr_scheduler_type", "schedule", lambda s: SCHEDULES[of(s).schedule],
            "moves once an iteration there, once an optimizer step here", "workers/engine_workers.py:308",
        ),
        row(
            "min_lr_ratio", "schedule", lambda s: 0.0 if SCHEDULES[of(s).schedule] == "cosine" else OMITTED,
            "share of the rate that a cosine ends with; here it ends with 0", "utils/torch_functional.py:748",
        ),
        row(
            "lr_warmup_steps_ratio", "warmup_share", lambda s: of(s).warmup_share,
            "share of the iterations there, of the optimizer steps here; with a warm-up the rate of the first "
            "iteration "
            "is 0 there", "workers/engine/fsdp/transformer_impl.py:515",
        ),
        row(
            "weight_decay", "weight_decay", lambda s: of(s).weight_decay,
            "of all weights there, of matrices alone here", "workers/config/optimizer.py:328",
        ),
        row("betas", "adam_betas", lambda s: list(of(s).adam_betas), "as here", "workers/config/optimizer.py:333"),
        row(
            "override_optimizer_config.eps", "adam_eps", lambda s: s.eps(of(s)),
            "torch's own 1e-8 where it is not overridden; PPO here takes 1e-5", "workers/config/optimizer.py:335",
        ),
        row(
            "clip_grad", "max_grad_norm", lambda s: of(s).max_grad_norm,
            "norm of the whole gradient, as here; grad_clip beside it is read by nobody",
            "workers/engine/fsdp/transformer_impl.py:806",
        ),
    )  # fmt: skip


def _of_lora(prefix: str) -> tuple[Row, ...]:
    return (
        Row(f"{prefix}.lora_rank", ("model.lora.rank",), with_adapters(lambda s: s.lora.rank),
            "as here", "workers/engine/fsdp/transformer_impl.py:361"),
        Row(f"{prefix}.lora_alpha", ("model.lora.alpha",), with_adapters(lambda s: s.lora.alpha),
            "the update is multiplied by alpha / rank, as here", "workers/engine/fsdp/transformer_impl.py:362"),
        Row(f"{prefix}.target_modules", ("model.lora.targets",), with_adapters(modules),
            "names of modules, as here", "workers/engine/fsdp/transformer_impl.py:363"),
    )  # fmt: skip


ROWS = (
    # ── advantages and KL ────────────────────────────────────────────────────────────────────────────────────────────
    Row("algorithm.adv_estimator", ("ppo.estimator",), lambda s: ESTIMATORS.get(_estimator(s), _estimator(s)),
        "of the same name; advantages of gae, and of reinforce++, are whitened over the rollout, as here",
        "trainer/ppo/core_algos.py:215"),
    Row("algorithm.gamma", ("ppo.gamma",), given("ppo.gamma"), "per token, as here", "trainer/ppo/core_algos.py:251"),
    Row("algorithm.lam", ("ppo.gae_lambda",), given("ppo.gae_lambda"),
        "per token, as here (1.0 where it is not set)", "trainer/ppo/core_algos.py:252"),
    Row("algorithm.norm_adv_by_std_in_grpo", ("ppo.normalize_std",),
        lambda s: s.recipe.ppo.normalize_std if _estimator(s) == "grpo" else OMITTED,
        "whether scores are divided by their group's deviation, as here", "trainer/ppo/core_algos.py:325"),
    Row("algorithm.use_kl_in_reward", ("ppo.kl.place", "ppo.kl.coef"), lambda s: penalised(s) and not s.kl_in_loss,
        "whether there is a KL penalty in the reward (false where it is not set)",
        "trainer/ppo/v1/trainer_base.py:1754"),
    Row(f"{ACTOR}.use_kl_loss", ("ppo.kl.place",), lambda s: penalised(s) and s.kl_in_loss,
        "whether it is a term of the loss", "workers/utils/losses.py:132"),
    Row(f"{ACTOR}.kl_loss_coef", ("ppo.kl.coef",), of_kl_loss(lambda s: s.last_kl_coef if s.is_adaptive else s.kl_coef),
        "loss per nat, as here", "workers/utils/losses.py:140"),
    Row(f"{ACTOR}.kl_loss_type", ("ppo.kl.estimator",),
        of_kl_loss(lambda s: "k2" if s.recipe.ppo.kl.estimator == "k2" else "k3+"),
        "k2 as here; k3+ has the value of k3 and the gradient of k2", "trainer/ppo/core_algos.py:2188"),
    Row("algorithm.kl_penalty", ("ppo.kl.estimator",), constant("kl"), "k1 of each token: logprob - reference's",
        "trainer/ppo/core_algos.py:2228"),
    Row("algorithm.kl_ctrl.type", ("ppo.kl.type",), lambda s: "adaptive" if s.is_adaptive else "fixed", "as here",
        "trainer/ppo/core_algos.py:206"),
    Row("algorithm.kl_ctrl.kl_coef", ("ppo.kl.coef",), lambda s: s.kl_coef,
        "reward per nat; subtracted at each token there as here, so that a sequence pays for its summed KL",
        "trainer/ppo/ray_trainer.py:106"),
    Row("algorithm.kl_ctrl.target_kl", ("ppo.kl.target",), _adaptive(lambda s: s.kl_target_per_token),
        "nats per token there, per sequence here: divided by the mean length of a response",
        "trainer/ppo/ray_trainer.py:108"),
    Row("algorithm.kl_ctrl.horizon", ("ppo.kl.horizon_episodes",),
        _adaptive(given("ppo.kl.horizon_episodes")),
        "episodes, as here", "trainer/ppo/core_algos.py:173"),
    Row("algorithm.rollout_correction.rollout_is", ("rollout.engine",),
        with_vllm(constant("token")),
        "weights of tokens for the difference between vLLM and the update, as with the engine vllm here",
        "trainer/ppo/rollout_corr_helper.py"),
    Row("algorithm.rollout_correction.rollout_is_threshold", ("rollout.importance_cap",),
        with_vllm(given("rollout.importance_cap")),
        "upper bound of such a weight, as here", "trainer/ppo/rollout_corr_helper.py"),
    # ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("data.train_files", ("data.prompts",), lambda s: f"{HERE}/prompts.jsonl",
        "the prompts in the order in which the run here draws them, each as often as it does",
        "utils/dataset/rl_dataset.py:176"),
    Row("data.val_files", ("data.prompts",), lambda s: f"{HERE}/some_prompts.jsonl",
        "needed, though nothing is validated", "trainer/ppo/v1/trainer_base.py:718"),
    Row("data.train_batch_size", ("ppo.rollout_episodes", "ppo.group_size"), lambda s: s.prompts,
        "prompts there; episodes here", "trainer/ppo/v1/trainer_base.py:534"),
    Row(f"{ROLLOUT}.n", ("ppo.group_size",), lambda s: s.group, "responses per prompt, as here",
        "trainer/ppo/v1/trainer_base.py:1781"),
    Row("data.max_prompt_length", ("data.max_prompt_tokens",), lambda s: s.max_prompt_tokens,
        "tokens; the prompts are cut already", "experimental/agent_loop/agent_loop.py:438"),
    Row("data.max_response_length", ("rollout.max_response_tokens",), given("rollout.max_response_tokens"),
        "tokens, EOS included, as here", "trainer/config/rollout/rollout.yaml"),
    Row("data.filter_overlong_prompts", (), constant(False), "none is left out", "utils/dataset/rl_dataset.py:199"),
    Row("data.shuffle", (), constant(False), "prompts.jsonl is shuffled already", "trainer/ppo/utils.py:158"),
    # ── the policy ───────────────────────────────────────────────────────────────────────────────────────────────────
    Row(f"{MODEL}.path", ("model.path",), policy_path,
        "policy and reference begin here", "workers/engine/fsdp/transformer_impl.py:277"),
    Row(f"{MODEL}.custom_chat_template", (), constant(PLAIN_TEMPLATE),
        "prompts.jsonl holds what the model's own template has written already",
        "experimental/agent_loop/agent_loop.py:540"),
    Row(f"{MODEL}.trust_remote_code", ("model.trust_remote_code",),
        lambda s: bool(s.setting("model.trust_remote_code")), "as here", "workers/config/model.py:161"),
    Row(f"{MODEL}.enable_gradient_checkpointing", ("model.gradient_checkpointing",),
        lambda s: s.recipe.model.gradient_checkpointing is not False, "memory",
        "workers/engine/fsdp/transformer_impl.py:335"),
    *_of_lora(MODEL),
    Row(f"{ACTOR}.fsdp_config.model_dtype", ("model.dtype",), constant("fp32"),
        "float32 masters, as here; products are bfloat16 there",
        "workers/engine/fsdp/transformer_impl.py:258"),
    Row(f"{ACTOR}.ppo_mini_batch_size", ("ppo.minibatch_episodes", "ppo.group_size"),
        lambda s: int(s.minibatch_prompts), "prompts there (multiplied by rollout.n); episodes here",
        "trainer/ppo/v1/trainer_base.py:1830"),
    Row(f"{ACTOR}.ppo_epochs", ("ppo.epochs",), given("ppo.epochs"), "passes over a rollout, as here",
        "trainer/ppo/v1/trainer_base.py:1853"),
    Row(f"{ACTOR}.shuffle", ("ppo.epochs",), constant(True), "minibatches are drawn anew in each epoch, as here",
        "trainer/ppo/v1/trainer_base.py:1855"),
    Row(f"{ACTOR}.data_loader_seed", ("seed",), given("seed"), "of the order in minibatches",
        "trainer/ppo/v1/trainer_base.py:1854"),
    Row(f"{ACTOR}.use_dynamic_bsz", ("ppo.microbatch_tokens",), constant(True), "microbatches are cut by tokens",
        "workers/config/actor.py:155"),
    Row(f"{ACTOR}.ppo_max_token_len_per_gpu", ("ppo.microbatch_tokens",), lambda s: s.microbatch_tokens,
        "tokens of a microbatch on each GPU; memory alone, since losses are divided by the minibatch's tokens",
        "trainer/ppo/core_algos.py:1175"),
    Row(f"{ACTOR}.clip_ratio", ("ppo.clip_range",), clip_range, "read only where the next two are null",
        "trainer/ppo/core_algos.py:1320"),
    Row(f"{ACTOR}.clip_ratio_low", ("ppo.clip_range",), clip_range, "the ratio's lower bound is 1 - this",
        "trainer/ppo/core_algos.py:1321"),
    Row(f"{ACTOR}.clip_ratio_high", ("ppo.clip_range_high", "ppo.clip_range"), clipped_above,
        "the ratio's upper bound is 1 + this", "trainer/ppo/core_algos.py:1322"),
    Row(f"{ACTOR}.clip_ratio_c", ("ppo.dual_clip",), lambda s: s.recipe.ppo.dual_clip or UNBOUNDED,
        "bound on the ratio of bad actions; always on there (3.0), so that a huge one switches it off",
        "trainer/ppo/core_algos.py:1355"),
    Row(f"{ACTOR}.policy_loss.loss_mode", ("ppo.objective", "ppo.ratio"), _loss_mode,
        "the clipped loss, by tokens or (gspo) by responses, or cispo's", "workers/utils/losses.py:99"),
    Row(f"{ACTOR}.loss_agg_mode", ("ppo.loss_aggregation",), lambda s: AGGREGATIONS[s.recipe.ppo.loss_aggregation],
        "mean over a minibatch's tokens, or over its responses of their means or of their sums, as here",
        "trainer/ppo/core_algos.py:1170"),
    Row(f"{ACTOR}.loss_scale_factor", ("ppo.loss_tokens", "rollout.max_response_tokens"), _loss_tokens,
        "what such a sum is divided by, as here", "trainer/ppo/core_algos.py:1193"),
    Row(f"{ACTOR}.entropy_coeff", ("ppo.entropy_coef",), given("ppo.entropy_coef"), "bonus per nat, as here",
        "workers/utils/losses.py:127"),
    *_adam(f"{ACTOR}.optim", "ppo.optim", of=lambda s: s.recipe.ppo.optim, rate=lambda s: s.policy_rate,
           only=lambda value: value),
    # ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Row(f"{ROLLOUT}.name", ("rollout.engine",), constant("vllm"), "what samples there", "workers/rollout/base.py:90"),
    Row(f"{ROLLOUT}.tensor_model_parallel_size", (), constant(1), "GPUs of one copy of the model (2 where it is not "
        "set)",
        "workers/rollout/vllm_rollout/vllm_async_server.py:342"),
    Row(f"{ROLLOUT}.dtype", ("model.dtype",), constant("bfloat16"), "type that vLLM samples in",
        "workers/rollout/vllm_rollout/vllm_async_server.py:326"),
    Row(f"{ROLLOUT}.load_format", ("model.lora.rank",), with_adapters(constant("safetensors")),
        "vLLM reads the base itself",
        "workers/rollout/vllm_rollout/vllm_async_server.py:327"),
    Row(f"{ROLLOUT}.seed", ("seed",), given("seed"), "of "
        "sampling", "workers/rollout/vllm_rollout/vllm_async_server.py:343"),
    Row(f"{ROLLOUT}.temperature", ("rollout.temperature",), given("rollout.temperature"),
        "divides the logits in rollout, update and reference, as here", "trainer/ppo/v1/trainer_base.py:1655"),
    Row(f"{ROLLOUT}.top_k", ("rollout.top_k",), lambda s: s.recipe.rollout.top_k or -1, "-1 keeps all, 0 here",
        "experimental/agent_loop/agent_loop.py:593"),
    Row(f"{ROLLOUT}.top_p", ("rollout.top_p",), given("rollout.top_p"), "as here",
        "experimental/agent_loop/agent_loop.py:592"),
    # ── the critic ───────────────────────────────────────────────────────────────────────────────────────────────────
    Row("critic.model.path", ("ppo.value.init",),
        with_critic(lambda s: f"{HERE}/critic" if s.is_local else s.policy_path),
        "a token classifier, whose head begins as here: (score - mean) / deviation of the reward model, or zero",
        "utils/model.py:645"),
    Row("critic.model.tokenizer_path", ("model.path",),
        with_critic(policy_path), "as the policy's",
        "trainer/config/model/hf_model.yaml"),
    Row("critic.model.trust_remote_code", ("model.trust_remote_code",),
        with_critic(lambda s: bool(s.setting("model.trust_remote_code"))), "as here", "workers/config/model.py:161"),
    *(Row(row.theirs, row.ours, with_critic(row.value), row.unit, row.source) for row in _of_lora("critic.model")),
    Row("critic.ppo_mini_batch_size", ("ppo.minibatch_episodes", "ppo.group_size"),
        with_critic(lambda s: int(s.minibatch_prompts)), "prompts there; episodes here",
        "trainer/ppo/v1/trainer_base.py:1807"),
    Row("critic.ppo_epochs", ("ppo.epochs",), with_critic(given("ppo.epochs")), "as here",
        "trainer/ppo/v1/trainer_base.py:1811"),
    Row("critic.shuffle", ("ppo.epochs",), with_critic(constant(True)), "as the policy's",
        "trainer/ppo/v1/trainer_base.py:1813"),
    Row("critic.data_loader_seed", ("seed",), with_critic(given("seed")),
        "as the policy's, so that both see the same minibatches",
        "trainer/ppo/v1/trainer_base.py:1812"),
    Row("critic.ppo_max_token_len_per_gpu", ("ppo.microbatch_tokens",), with_critic(lambda s: s.microbatch_tokens),
        "tokens of a microbatch; memory alone", "workers/config/critic.py:85"),
    Row("critic.ppo_infer_max_token_len_per_gpu", ("ppo.microbatch_tokens",),
        with_critic(lambda s: s.microbatch_tokens),
        "the one of the two that version 1 of the trainer reads", "trainer/ppo/v1/trainer_base.py:268"),
    Row("critic.loss_agg_mode", (), with_critic(constant("token-mean")),
        "the critic's loss is a mean over a minibatch's tokens, as here (the policy's where it is not set)",
        "workers/config/critic.py:94"),
    Row("critic.cliprange_value", ("ppo.value.clip_range",),
        with_critic(lambda s: s.recipe.ppo.value.clip_range or UNBOUNDED),
        "how far a value may move; always on there (0.5), so that a huge one switches it off; the loss is half the "
        "larger "
        "square, as here", "trainer/ppo/core_algos.py:2171"),
    *_adam("critic.optim", "ppo.value.optim", of=lambda s: s.critic_optim, rate=lambda s: s.critic_rate,
        only=with_critic,
           shared="ppo.optim"),
    # ── the reward ───────────────────────────────────────────────────────────────────────────────────────────────────
    Row("reward.custom_reward_function.path", ("reward",), lambda s: f"{HERE}/reward.py",
        "named so that the reward manager below is asked, and not the model alone",
        "experimental/reward_loop/reward_loop.py:146"),
    Row("reward.custom_reward_function.name", (), constant("compute_score"), "never called",
        "trainer/ppo/reward.py:75"),
    Row("reward.reward_manager.source", (), constant("importlib"), "a class out of a file", "trainer/ppo/reward.py:96"),
    Row("reward.reward_manager.name", ("reward",), constant("ScoreManager"), "the class", "trainer/ppo/reward.py:105"),
    Row("reward.reward_manager.module.path", ("reward",), lambda s: f"{HERE}/reward.py", "its file",
        "trainer/ppo/reward.py:105"),
    Row(f"{REWARD_MODEL}.enable", ("reward.type",), lambda s: s.is_reward_model, "whether a model is served",
        "trainer/ppo/utils.py:93"),
    Row(f"{REWARD_MODEL}.model_path", ("reward.path",),
        with_reward_model(reward_path),
        "a sequence classifier with one output", "experimental/reward_loop/reward_loop.py:234"),
    Row(f"{REWARD_MODEL}.rollout.name", ("reward.type",), with_reward_model(constant("vllm")), "what serves it",
        "experimental/reward_loop/reward_loop.py:233"),
    Row(f"{REWARD_MODEL}.rollout.tensor_model_parallel_size", (), with_reward_model(constant(1)),
        "GPUs of one copy (2 where it is not set)", "trainer/config/reward/reward.yaml"),
    Row(f"{REWARD_MODEL}.rollout.prompt_length", ("data.max_prompt_tokens",),
        with_reward_model(lambda s: s.max_prompt_tokens),
        "tokens", "trainer/config/reward/reward.yaml"),
    Row(f"{REWARD_MODEL}.rollout.response_length", ("rollout.max_response_tokens", "reward.max_tokens"),
        with_reward_model(given("rollout.max_response_tokens")), "tokens; nothing is cut",
        "trainer/config/reward/reward.yaml"),
    Row(f"{IN_REWARD_FILE}MEAN", ("reward",),
        with_reward_model(lambda s: s.normalization[0] if s.normalization else 0.0),
        "raw scores of the model have this mean, and what PPO sees has 0", "reward.py"),
    Row(f"{IN_REWARD_FILE}DEVIATION", ("reward",),
        with_reward_model(lambda s: s.normalization[1] if s.normalization else 1.0), "the same of the deviation, and 1",
        "reward.py"),
    Row(f"{IN_REWARD_FILE}CLIP_SCORE", ("ppo.clip_score",), given("ppo.clip_score"),
        "bound on a score's magnitude, before any penalty, as here", "reward.py"),
    Row(f"{IN_REWARD_FILE}LENGTH_PENALTY", ("ppo.length_penalty",), given("ppo.length_penalty"),
        "score per token beyond the next number, as here", "reward.py"),
    Row(f"{IN_REWARD_FILE}LENGTH_PENALTY_TOKENS", ("ppo.length_penalty_tokens",), given("ppo.length_penalty_tokens"),
        "tokens, EOS included, as here", "reward.py"),
    Row(f"{IN_REWARD_FILE}BREVITY_PENALTY", ("ppo.brevity_penalty",), given("ppo.brevity_penalty"),
        "score per token that is missing to the next number, as here", "reward.py"),
    Row(f"{IN_REWARD_FILE}BREVITY_PENALTY_TOKENS", ("ppo.brevity_penalty_tokens",), given("ppo.brevity_penalty_tokens"),
        "tokens, EOS included, as here", "reward.py"),
    Row(f"{IN_REWARD_FILE}MISSING_EOS_SCORE", ("ppo.missing_eos_score",), given("ppo.missing_eos_score"),
        "score of a response without EOS, whatever the reward says, as here", "reward.py"),
    Row(f"{IN_REWARD_FILE}MISSING_EOS_PENALTY", ("ppo.missing_eos_penalty",), given("ppo.missing_eos_penalty"),
        "subtracted from the score of such a response, as here", "reward.py"),
    # ── the run ──────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("trainer.total_training_steps", ("ppo.iterations",), lambda s: s.iterations,
        "iterations, as here; rates fall over them", "trainer/ppo/v1/trainer_base.py:769"),
    Row("trainer.total_epochs", (), constant(1), "prompts.jsonl is read once, as it holds every repetition",
        "trainer/ppo/v1/trainer_base.py:467"),
    Row("trainer.critic_warmup", ("ppo.value.warmup_iterations",), with_critic(
        lambda s: s.recipe.ppo.value.warmup_iterations + 1 if s.recipe.ppo.value.warmup_iterations else 0),
        "the first iteration there in which the policy learns, counted from 1; the number of those before it here. "
        "Meanwhile the policy's rate stands still there, and falls here", "trainer/ppo/v1/trainer_base.py:608"),
    Row("trainer.nnodes", (), constant(1), "machines", "trainer/config/ppo_trainer.yaml"),
    Row("trainer.n_gpus_per_node", (), lambda s: s.gpus, "GPUs, as --gpus says", "trainer/config/ppo_trainer.yaml"),
    Row("trainer.project_name", (), constant("rlhfkit"), "only a name", "trainer/config/ppo_trainer.yaml"),
    Row("trainer.experiment_name", ("name",), given("name"), "only a name", "trainer/config/ppo_trainer.yaml"),
    Row("trainer.logger", (), constant(["console"]), "W&B is on where it is not set",
        "trainer/config/ppo_trainer.yaml"),
    Row("trainer.val_before_train", (), constant(False), "nothing is validated", "trainer/config/ppo_trainer.yaml"),
    Row("trainer.test_freq", (), constant(-1), "nothing is validated", "trainer/config/ppo_trainer.yaml"),
    Row("trainer.save_freq", (), lambda s: max(1, s.iterations // 5), "iterations between two checkpoints",
        "trainer/config/ppo_trainer.yaml"),
    Row("trainer.default_local_dir", (), lambda s: f"{HERE}/checkpoints", "where they are written",
        "trainer/config/ppo_trainer.yaml"),
)  # fmt: skip


def _steps(s: Subject, schedule: str) -> bool:
    return schedule in [s.recipe.ppo.optim.schedule, *([s.critic_optim.schedule] if s.has_critic else [])]


RULES = (
    *COMMON_RULES,
    Rule(
        ("ppo.optim.schedule", "ppo.value.optim.schedule"),
        lambda s: _steps(s, "linear"),
        "rates are constant or fall as a cosine there",
        "a cosine to zero, which has the same beginning, mean and end",
    ),
    Rule(
        ("ppo.optim.schedule", "ppo.value.optim.schedule", "ppo.optim.step_updates", "ppo.optim.step_factor",
         "ppo.value.optim.step_updates", "ppo.value.optim.step_factor"),
        lambda s: _steps(s, "step"),
        "rates are constant or fall as a cosine there",
        "constant rates",
    ),
    Rule(
        ("model.dtype",),
        lambda s: s.recipe.model.dtype == "float32",
        "products are bfloat16 there, since its attention knows no float32",
        "bfloat16 products with float32 masters",
    ),
    Rule(
        ("ppo.kl.target",),
        lambda s: s.is_adaptive and s.response_tokens is None,
        "the target is one per token there, and the mean length of a response is not known",
        lambda s: f"the target divided by rollout.max_response_tokens, {s.recipe.rollout.max_response_tokens}; better "
        "say --response-tokens N",
    ),
    Rule(
        ("ppo.estimator", "ppo.kl.coef"),
        lambda s: (_estimator(s) == "grpo" and s.recipe.ppo.normalize_std and penalised(s) and not s.kl_in_loss),
        "grpo divides the score less the KL penalty by the deviation there, and the score alone here",
        "the KL penalty within the normalised score",
    ),
    Rule(
        ("ppo.estimator", "ppo.kl.coef", "ppo.gamma"),
        lambda s: _estimator(s) == "reinforce++-baseline"
        and ((penalised(s) and not s.kl_in_loss) or s.recipe.ppo.gamma < 1),
        "the KL of the whole response counts for each of its tokens there, without discount, and is compared within "
        "the group, too",
        "their way",
    ),
    Rule(
        ("ppo.kl.estimator",),
        lambda s: s.kl_in_loss and penalised(s) and s.recipe.ppo.kl.estimator == "k3",
        "the KL in the loss is not weighed by the ratio there",
        "k3+, whose gradient is the same in the first update of a rollout",
    ),
    Rule(
        ("ppo.kl.type", "ppo.kl.place"),
        lambda s: s.kl_in_loss and s.is_adaptive,
        "the coefficient of the KL in the loss stays as it is there",
        lambda s: f"a fixed coefficient of {s.last_kl_coef:g}",
    ),
    Rule(
        ("ppo.value.gae_lambda",),
        lambda s: s.has_critic and s.recipe.ppo.value.gae_lambda not in (None, s.recipe.ppo.gae_lambda),
        "the critic has the lambda of the advantages there",
        "that one",
    ),
    Rule(
        ("ppo.dual_clip", "ppo.ratio"),
        lambda s: s.recipe.ppo.ratio == "sequence" and s.recipe.ppo.dual_clip is not None,
        "there is no dual clip for the ratio of a response there",
        "none",
    ),
    Rule(
        ("ppo.minibatch_episodes", "ppo.group_size"),
        lambda s: s.minibatch_prompts != int(s.minibatch_prompts),
        "a minibatch is whole prompts there",
        remedy="set ppo.minibatch_episodes to a multiple of ppo.group_size",
    ),
    Rule(
        ("ppo.minibatch_episodes",),
        lambda s: s.recipe.ppo.minibatch_episodes % s.gpus != 0,
        "a minibatch is shared out evenly there",
        remedy="set it to a multiple of --gpus",
    ),
    Rule(
        ("reward.type",),
        lambda s: not (s.is_reward_model or s.is_function),
        "a reward is a model or a Python function there",
        remedy='write it as a Python function, and set reward={type="function", function="module:name"}',
    ),
    Rule(
        ("ppo.value.init",),
        lambda s: s.has_critic and not s.is_local,
        "its head begins with random numbers there, unless a critic lies ready, which is made of a model's directory",
        "a critic that begins at the policy, with a random head",
    ),
)  # fmt: skip

VERL = Target(
    name="verl",
    version="0.9.1",
    where="verl/",
    rows=ROWS,
    rules=RULES,
    remarks=(
        "vLLM samples there, and its logprobs differ a little from those of the update; without the engine vllm in the "
        "recipe nothing corrects for it (algorithm.rollout_correction does)",
        "a response that reaches the limit is taken for finished, as here: no value follows its last token",
    ),
)
