"""The arguments of OpenRLHF, of `openrlhf.cli.train_ppo_ray` with DeepSpeed and vLLM."""

from collections.abc import Callable

from rlhfkit.config.training import OptimConfig
from rlhfkit.handover.nowhere import COMMON_RULES, clip_range
from rlhfkit.handover.subject import UNBOUNDED, Subject
from rlhfkit.handover.terms import HERE, OMITTED, Row, Rule, Target
from rlhfkit.handover.values import (
    Value,
    clipped_above,
    constant,
    given,
    modules,
    of_kl_loss,
    policy_path,
    reward_path,
    with_adapters,
    with_critic,
    with_reward_model,
    with_vllm,
)

__all__ = ["OPENRLHF"]

ESTIMATORS = {
    "gae": "gae",
    "rloo": "rloo",
    "grpo": "group_norm",
    "reinforce++": "reinforce",
    "reinforce++-baseline": "reinforce_baseline",
}
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine", "step": "constant_with_warmup"}
MAKER, MODELS, ARGUMENTS = "trainer/ppo_utils/experience_maker.py", "models/model.py", "cli/train_ppo_ray.py"
LOSS, DEEPSPEED = "models/loss.py", "utils/deepspeed/deepspeed.py"


def _if_set(value: Value) -> Value:
    """The value, where it is not zero or nothing: there is no argument that says so."""
    return lambda s: found if (found := value(s)) else OMITTED


def _adam(who: str, ours: str, *, of: Callable[[Subject], OptimConfig], rate: Value, only: Callable[[Value], Value],
          shared: str = "") -> tuple[Row, ...]:  # fmt: skip
    """The arguments of one optimizer; `of` gives its settings."""

    def row(theirs: str, name: str, value: Value, unit: str, source: str) -> Row:
        also = ("ppo.value.coef",) if name == "learning_rate" else ()
        return Row(
            f"{who}.{theirs}", (f"{ours}.{name}",), only(value), unit, source,
            shared=(f"{shared}.{name}", *also) if shared else (),
        )  # fmt: skip

    return (
        row("adam.lr", "learning_rate", rate, "highest rate, as here", f"{DEEPSPEED}:361"),
        row("adam.betas", "adam_betas", lambda s: list(of(s).adam_betas), "as here (0.9 0.95 where they are not set)",
            f"{DEEPSPEED}:362"),
        row("adam.eps", "adam_eps", lambda s: s.eps(of(s)), "1e-8 where it is not set; PPO here takes 1e-5",
            f"{DEEPSPEED}:363"),
        row("adam.weight_decay", "weight_decay", lambda s: of(s).weight_decay,
            "of all but biases and weights of norms, by their names; of matrices here",
            "utils/deepspeed/deepspeed_utils.py:124"),
        row("lr_scheduler", "schedule", lambda s: SCHEDULES[of(s).schedule],
            "moves with each optimizer step, as here, to zero (to a tenth where it is not set)", f"{DEEPSPEED}:379"),
        row("lr_warmup_ratio", "warmup_share", lambda s: of(s).warmup_share,
            "share of the optimizer steps, as here (0.03 where it is not set)", f"{DEEPSPEED}:381"),
        row("max_norm", "max_grad_norm", lambda s: of(s).max_grad_norm, "norm of the whole gradient, as here",
            f"{DEEPSPEED}:387"),
    )  # fmt: skip


def _estimator(s: Subject) -> str:
    ppo = s.recipe.ppo
    return ESTIMATORS[ppo.estimator] if ppo.normalize_std else "dr_grpo"


def _kl_coef(s: Subject) -> float:
    return s.last_kl_coef if s.is_adaptive else s.kl_coef


def _clip(s: Subject) -> list[float]:
    limit = s.recipe.ppo.clip_score or UNBOUNDED
    return [-limit, limit]


def _overlong(s: Subject) -> tuple[int, float]:
    """(tokens, most that is subtracted) of the one penalty that grows with the length there; zeros without one."""
    ppo, longest = s.recipe.ppo, s.recipe.rollout.max_response_tokens
    if ppo.missing_eos_penalty:
        return 1, ppo.missing_eos_penalty
    buffer = longest - ppo.length_penalty_tokens
    return (buffer, ppo.length_penalty * buffer) if ppo.length_penalty and buffer > 0 else (0, 0.0)


OVERLONG = ("ppo.missing_eos_penalty", "ppo.length_penalty", "ppo.length_penalty_tokens")


def _critic_path(s: Subject) -> str:
    return f"{HERE}/critic" if s.critic_starts_from_reward_model else policy_path(s)


def _is_normalised(s: Subject) -> bool:
    return s.normalization is not None or s.critic_normalization is not None


GPUS = (
    ("actor", lambda s: s.gpus),
    ("ref", lambda s: s.gpus),
    ("critic", with_critic(lambda s: s.gpus)),
    ("reward", with_reward_model(lambda s: s.gpus)),
)

ROWS = (
    # ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("actor.model_name_or_path", ("model.path", "model.trust_remote_code"), policy_path,
        "policy and reference begin here; code of the model's directory may run there, whatever "
        "model.trust_remote_code "
        "says", f"{ARGUMENTS}:173"),
    Row("critic.model_name_or_path", ("ppo.value.init",), with_critic(_critic_path),
        "the run's reward model, whose normalised score is the first value, as here; or the policy with a head of "
        "N(0, 1 / (width + 1)^2), where it is zero here", f"trainer/ray/ppo_critic.py:207, {MODELS}:164"),
    Row("reward.model_name_or_path", ("reward.path",), with_reward_model(reward_path),
        "a sequence classifier with one output; it reads the policy's tokens, EOS included", f"{MAKER}:144"),
    Row("reward.normalize_enable", ("reward",), _is_normalised,
        "(raw - mean) / std, of reward model and critic, with mean and std out of the config.json of each, where this "
        "export wrote them", f"{MODELS}:238, {MODELS}:309"),
    Row("reward.remote_url", ("reward.function",), lambda s: f"{HERE}/reward.py" if s.is_function else OMITTED,
        "a file with `reward_func`", "utils/agent.py:198"),
    Row("ds.value_head_prefix", (), constant("score"), "name of the head", f"{MODELS}:74"),
    Row("ds.param_dtype", ("model.dtype",), constant("bf16"), "type of the weights, beside float32 masters",
        f"{MODELS}:94"),
    Row("ds.lora.rank", ("model.lora.rank",), with_adapters(lambda s: s.lora.rank), "as here", f"{MODELS}:132"),
    Row("ds.lora.alpha", ("model.lora.alpha",), with_adapters(lambda s: int(s.lora.alpha)),
        "the update is multiplied by alpha / rank, as here; whole there", f"{MODELS}:133"),
    Row("ds.lora.target_modules", ("model.lora.targets",), with_adapters(modules),
        "names of modules, as here", f"{MODELS}:134"),
    Row("actor.gradient_checkpointing_enable", ("model.gradient_checkpointing",),
        lambda s: s.recipe.model.gradient_checkpointing is not False, "memory", "trainer/ray/ppo_actor.py:549"),
    # ── data and lengths ─────────────────────────────────────────────────────────────────────────────────────────────
    Row("data.prompt_dataset", ("data.prompts",), lambda s: f"{HERE}/prompts.jsonl",
        "each prompt as often as the run here draws it; shuffled there", "trainer/ppo_trainer.py:30"),
    Row("data.input_key", (), constant("prompt"), "the model's template stands around it already",
        "datasets/prompts_dataset.py:39"),
    Row("data.label_key", ("reward.function",), lambda s: "label" if s.is_function else OMITTED,
        "the prompt as the function sees it, and its columns", "datasets/prompts_dataset.py:44"),
    Row("data.max_len", ("data.max_prompt_tokens", "rollout.max_response_tokens"), lambda s: s.sequence_tokens,
        "tokens of prompt and response together", "utils/agent.py:227"),
    Row("rollout.max_new_tokens", ("rollout.max_response_tokens",), given("rollout.max_response_tokens"),
        "tokens, EOS included, as here", "trainer/ppo_utils/samples_generator.py:203"),
    # ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("rollout.batch_size", ("ppo.rollout_episodes", "ppo.group_size"), lambda s: s.prompts,
        "prompts there; episodes here", "trainer/ppo_utils/samples_generator.py:100"),
    Row("rollout.n_samples_per_prompt", ("ppo.group_size",), lambda s: s.group, "responses per prompt, as here",
        "trainer/ppo_utils/samples_generator.py:100"),
    Row("train.batch_size", ("ppo.minibatch_episodes",), given("ppo.minibatch_episodes"),
        "episodes of an optimizer step, of all GPUs, as here", f"{DEEPSPEED}:110"),
    Row("train.micro_batch_size", ("ppo.microbatch_tokens",), lambda s: s.microbatch_rows,
        "sequences there, tokens here: as many of the greatest length as fit; memory alone", f"{DEEPSPEED}:110"),
    Row("rollout.micro_batch_size", ("ppo.microbatch_tokens",), lambda s: s.microbatch_rows,
        "the same of passes without a gradient", f"{MAKER}:71"),
    Row("train.max_epochs", ("ppo.epochs",), given("ppo.epochs"), "passes over a rollout, as here",
        "trainer/ray/ppo_actor.py:175"),
    Row("train.num_episodes", ("ppo.iterations",), constant(1),
        "passes over prompts.jsonl, which holds prompts for all iterations", "trainer/ppo_trainer.py:520"),
    Row("train.seed", ("seed",), given("seed"), "of everything", ARGUMENTS),
    # ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Row("rollout.temperature", ("rollout.temperature",), given("rollout.temperature"),
        "divides the logits in rollout, update and reference, as here", "models/actor.py:270"),
    Row("rollout.top_p", ("rollout.top_p",), given("rollout.top_p"), "as here",
        "trainer/ppo_utils/samples_generator.py:201"),
    # ── KL, advantages, loss ─────────────────────────────────────────────────────────────────────────────────────────
    Row("algo.kl.init_coef", ("ppo.kl.coef",), _kl_coef,
        "reward per nat; subtracted at each token there as here, so that a sequence pays for its summed KL. 0 leaves "
        "the "
        "reference out", "models/utils.py:144"),
    Row("algo.kl.use_loss", ("ppo.kl.place",), of_kl_loss(constant(True)),
        "the KL is a term of the loss, and not in the reward", "trainer/ray/ppo_actor.py:318"),
    Row("algo.kl.unbiased_gradient", ("ppo.kl.estimator",),
        of_kl_loss(lambda s: True if s.recipe.ppo.kl.estimator == "k3" else OMITTED),
        "the KL's own gradient, weighed by the ratio, as here; there the weight is bounded", "models/utils.py:115"),
    Row("algo.kl.estimator", ("ppo.kl.estimator",), given("ppo.kl.estimator"),
        "k1 is logprob - reference's of each token, there cut to [-10, 10]", "models/utils.py:95"),
    Row("algo.advantage.estimator", ("ppo.estimator", "ppo.normalize_std"), _estimator,
        "grpo is group_norm there, or dr_grpo without the deviation; advantages of gae and reinforce are whitened over "
        "the rollout, as here", f"{MAKER}:325"),
    Row("algo.advantage.gamma", ("ppo.gamma",), given("ppo.gamma"), "per token, as here", f"{MAKER}:382"),
    Row("algo.advantage.lambd", ("ppo.gae_lambda",), given("ppo.gae_lambda"),
        "per token, as here (1 where it is not set)", f"{MAKER}:383"),
    Row("algo.advantage.is_correction_level", ("rollout.engine",),
        with_vllm(constant("token")),
        "weights of tokens for the difference between vLLM and the update, as with the engine vllm here",
        f"{LOSS}:216"),
    Row("algo.advantage.is_correction_mode", ("rollout.engine",),
        with_vllm(constant("clip")), "weights are bounded, as here", f"{LOSS}:216"),
    Row("algo.advantage.is_correction_threshold", ("rollout.importance_cap",),
        with_vllm(lambda s: [0, s.recipe.rollout.importance_cap]),
        "lowest and highest weight; here it has an upper bound alone", "models/loss.py:235"),
    Row("actor.policy_loss_type", ("ppo.ratio",), lambda s: "gspo" if s.recipe.ppo.ratio == "sequence" else "ppo",
        "the clipped loss, by tokens or by responses", f"{LOSS}:186"),
    Row("actor.loss_agg_mode", ("ppo.loss_aggregation",),
        lambda s: "seq-mean-token-mean" if s.recipe.ppo.loss_aggregation == "sequence" else "token-mean",
        "mean over a minibatch's tokens, or over its responses of their means, as here", f"{LOSS}:32"),
    Row("actor.eps_clip_low_high", ("ppo.clip_range", "ppo.clip_range_high"),
        lambda s: [clip_range(s), clipped_above(s)],
        "the ratio stays within 1 - first and 1 + second", f"{LOSS}:201"),
    Row("actor.dual_clip", ("ppo.dual_clip",), _if_set(given("ppo.dual_clip")),
        "bound on the ratio of bad actions; off where it is not set, as here", f"{LOSS}:203"),
    Row("actor.entropy_coef", ("ppo.entropy_coef",), _if_set(given("ppo.entropy_coef")), "bonus per nat, as here",
        "trainer/ray/ppo_actor.py:353"),
    Row("critic.value_clip", ("ppo.value.clip_range",),
        with_critic(lambda s: s.recipe.ppo.value.clip_range or UNBOUNDED),
        "how far a value may move; always on there (0.5), so that a huge one switches it off; the loss is half the "
        "larger "
        "square, as here", f"{LOSS}:283"),
    Row("critic.freezing_steps", ("ppo.value.warmup_iterations",),
        with_critic(lambda s: s.recipe.ppo.value.warmup_iterations - 1),
        "number, counted from 0, of the last iteration without an update of the policy; how many they are here. "
        "Meanwhile "
        "the policy's rate stands still there, and falls here", "trainer/ppo_trainer.py:272"),
    # ── optimizers ───────────────────────────────────────────────────────────────────────────────────────────────────
    *_adam("actor", "ppo.optim", of=lambda s: s.recipe.ppo.optim, rate=lambda s: s.policy_rate,
        only=lambda value: value),
    *_adam("critic", "ppo.value.optim", of=lambda s: s.critic_optim, rate=lambda s: s.critic_rate, only=with_critic,
           shared="ppo.optim"),
    # ── the reward ───────────────────────────────────────────────────────────────────────────────────────────────────
    Row("reward.clip_range", ("ppo.clip_score",), _clip,
        "bound on a score, before the KL is subtracted; always on there (-10 10), so that a huge one switches it off",
        "models/utils.py:142"),
    Row("reward.stop_properly_penalty_coef", ("ppo.missing_eos_score",),
        lambda s: OMITTED if s.recipe.ppo.missing_eos_score is None else s.recipe.ppo.missing_eos_score,
        "score of a response that was cut off, where it is negative, and otherwise a factor of it, which 0 is too",
        "trainer/ppo_utils/length_penalty.py:98"),
    Row("reward.overlong_buffer_len", OVERLONG, _if_set(lambda s: _overlong(s)[0]),
        "tokens below the limit from which a penalty grows, in a line", "trainer/ppo_utils/length_penalty.py:41"),
    Row("reward.overlong_penalty_factor", OVERLONG, _if_set(lambda s: _overlong(s)[1]),
        "what is subtracted at the limit", "trainer/ppo_utils/length_penalty.py:54"),
    # ── the machine ──────────────────────────────────────────────────────────────────────────────────────────────────
    *(Row(f"{role}.num_gpus_per_node", (), value, "GPUs, as --gpus says", ARGUMENTS) for role, value in GPUS),
    Row("vllm.num_engines", (), lambda s: s.gpus, "what samples: one on each GPU", ARGUMENTS),
    Row("vllm.gpu_memory_utilization", (), constant(0.5), "share of a GPU's memory", ARGUMENTS),
    Row("train.colocate_all", (), constant(True), "all models share the GPUs, in turn", ARGUMENTS),
    Row("vllm.enable_sleep", (), constant(True), "memory", ARGUMENTS),
    Row("ds.enable_sleep", (), constant(True), "memory", ARGUMENTS),
    Row("ckpt.output_dir", (), lambda s: f"{HERE}/trained", "where the policy is written", ARGUMENTS),
    Row("ckpt.path", (), lambda s: f"{HERE}/checkpoints", "where checkpoints are written", ARGUMENTS),
)  # fmt: skip


def _steps(s: Subject) -> bool:
    return "step" in (s.recipe.ppo.optim.schedule, s.critic_optim.schedule if s.has_critic else "")


RULES = (
    *COMMON_RULES,
    Rule(
        ("ppo.kl.type", "ppo.kl.target", "ppo.kl.horizon_episodes"),
        lambda s: s.is_adaptive,
        "an adaptive coefficient does not work there, as its own code says (trainer/ppo_trainer.py:252)",
        lambda s: f"a fixed coefficient of {s.last_kl_coef:g}"
        + (", with which the run ended" if s.last_kl_coef != s.kl_coef else ", that of the start"),
    ),
    Rule(
        ("ppo.optim.schedule", "ppo.value.optim.schedule", "ppo.optim.step_updates", "ppo.optim.step_factor",
         "ppo.value.optim.step_updates", "ppo.value.optim.step_factor"),
        _steps,
        "rates do not drop now and then there",
        "constant rates",
    ),
    Rule(
        ("model.dtype",),
        lambda s: s.recipe.model.dtype == "float32",
        "weights are bfloat16 there",
        "bfloat16 with float32 masters",
    ),
    Rule(
        ("model.lora.alpha",),
        lambda s: s.recipe.model.lora is not None and s.recipe.model.lora.alpha != int(s.recipe.model.lora.alpha),
        "it is a whole number there",
        remedy="set it to a whole number",
    ),
    Rule(
        ("ppo.estimator", "ppo.kl.coef"),
        lambda s: s.recipe.ppo.estimator in ("rloo", "grpo") and _kl_coef(s) > 0 and not s.kl_in_loss,
        "a response is compared within its group by its score alone there, and each token then pays for the KL that "
        "follows it; here the KL of the whole response counts for each token, and is compared, too",
        "their way",
    ),
    Rule(
        ("ppo.value.gae_lambda",),
        lambda s: s.has_critic and s.recipe.ppo.value.gae_lambda not in (None, s.recipe.ppo.gae_lambda),
        "the critic has the lambda of the advantages there",
        "that one",
    ),
    Rule(
        ("ppo.gamma",),
        lambda s: s.recipe.ppo.estimator == "reinforce++-baseline" and s.recipe.ppo.gamma < 1,
        "it is 1 for reinforce_baseline there",
        "1",
    ),
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
        "gspo's loss is always the mean over responses of their means there",
        "that mean",
    ),
    Rule(
        ("rollout.top_k",),
        lambda s: s.recipe.rollout.top_k != 0,
        "there is no argument for it",
        "all tokens, which is what PPO's ratio wants",
    ),
    Rule(
        ("ppo.missing_eos_score",),
        lambda s: (s.recipe.ppo.missing_eos_score or 0) > 0,
        "a positive number is a factor of the score there",
        remedy="set ppo.missing_eos_score to 0 or less",
    ),
    Rule(
        ("ppo.missing_eos_score", "ppo.clip_score"),
        lambda s: abs(s.recipe.ppo.missing_eos_score or 0) > (s.recipe.ppo.clip_score or UNBOUNDED),
        "scores are clipped after it was set there",
        lambda s: f"{-(s.recipe.ppo.clip_score or 0):g} for a response without EOS",
    ),
    Rule(
        ("ppo.missing_eos_penalty",),
        lambda s: bool(s.recipe.ppo.missing_eos_penalty),
        "what is punished there is the greatest length, also where EOS is the last token that had room",
        "the same penalty for the greatest length",
    ),
    Rule(
        ("ppo.missing_eos_penalty", "ppo.length_penalty"),
        lambda s: bool(s.recipe.ppo.missing_eos_penalty and s.recipe.ppo.length_penalty),
        "there is one penalty on the length alone there",
        "the one for a missing EOS",
    ),
    Rule(
        ("ppo.clip_score", "ppo.length_penalty", "ppo.missing_eos_penalty"),
        lambda s: s.recipe.ppo.clip_score is not None and _overlong(s)[0] > 0,
        "scores are clipped after the penalties there, before them here",
        "the other order",
    ),
    Rule(
        ("ppo.brevity_penalty", "ppo.brevity_penalty_tokens"),
        lambda s: bool(s.recipe.ppo.brevity_penalty),
        "there is no penalty on short responses there",
        "none",
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
        ("reward.max_tokens",),
        lambda s: s.is_reward_model and (s.setting("reward.max_tokens") or s.sequence_tokens) < s.sequence_tokens,
        "the reward model reads whole sequences there",
        "nothing is cut",
    ),
)  # fmt: skip

OPENRLHF = Target(
    name="openrlhf",
    version="0.11.2",
    where="openrlhf/",
    rows=ROWS,
    rules=RULES,
    remarks=(
        "code of a model's directory runs there without asking (trust_remote_code=True in its loaders)",
        "vLLM samples there, and its logprobs differ a little from those of the update; without the engine vllm in the "
        "recipe nothing corrects for it (--algo.advantage.is_correction_level does)",
        "prompts are shuffled as a whole there, so that one may come again before all were seen",
    ),
)
