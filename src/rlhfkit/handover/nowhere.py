"""What has no place in any of the other tools: settings without effect there, and what none of them can say."""

from rlhfkit.config.watch import WatchConfig
from rlhfkit.handover.subject import Subject
from rlhfkit.handover.terms import Rule

__all__ = ["COMMON_RULES", "WITHOUT_EFFECT", "clip_range", "why_without_effect"]

WITHOUT_EFFECT = {
    "name": "only a name",
    "purpose": "only shown",
    "synthetic": "only shown",
    "stages": "PPO alone is handed over; what the stages before it made is named",
    "pretrain": "a stage before PPO",
    "sft": "a stage before PPO",
    "preferences": "a stage before PPO",
    "reward_model": "a stage before PPO",
    "judge": "no part of PPO",
    "evaluation": "no part of PPO",
    "probe": "no part of PPO",
    "dpo": "what PPO is compared with",
    "raft": "what PPO is compared with",
    "compare": "no part of PPO",
    "parallel": "how rlhfkit shares its work out",
    "cluster": "how rlhfkit shares its work out",
    "watchdog": "how rlhfkit finds that it hangs",
    "tune": "a search by rlhfkit",
    "tracking": "who gets the numbers of a run from rlhfkit; those tools have trackers of their own",
    "data": "prompts are written as PPO reads them, formatted and cut",
    "model.type": "the model is there as a directory or a hub id",
    "model.num_layers": "of a model that the run has made",
    "model.width": "of a model that the run has made",
    "model.num_heads": "of a model that the run has made",
    "model.vocabulary_tokens": "of a model that the run has made",
    "model.context_tokens": "of a model that the run has made",
    "model.device": "those tools compute on GPUs",
    "model.compile": "speed",
    "model.chat_template": "prompts are written as the template writes them",
    "reward.batch_tokens": "memory",
    "rollout.slots": "memory",
    "rollout.chunk_rows": "how rlhfkit shares its sampling out",
    "rollout.vllm.dtype": "of the own use of vLLM",
    "rollout.vllm.kv_cache_gib": "memory",
    "rollout.vllm.compile": "speed",
    "ppo.preset": "a name for settings that are said one by one",
    "ppo.checkpoint_minutes": "when rlhfkit saves",
    "ppo.num_samples": "only shown",
    "ppo.min_eos_rate": "a check before rlhfkit's first update",
    "ppo.watch": "rules that only warn",
}
"""Setting, or section, → why nothing corresponds to it. None of them changes what PPO learns."""


def why_without_effect(name: str) -> str | None:
    """Why a setting has no effect elsewhere; None where it has one."""
    parts = name.split(".")
    return next((WITHOUT_EFFECT[key] for end in range(len(parts), 0, -1)
                 if (key := ".".join(parts[:end])) in WITHOUT_EFFECT), None)  # fmt: skip


def clip_range(subject: Subject) -> float:
    """The clip range, or its mean over the run where it would fall to zero."""
    ppo = subject.recipe.ppo
    return ppo.clip_range / 2 if ppo.clip_schedule == "linear" else ppo.clip_range


def _watch_rule(name: str) -> Rule:
    return Rule(
        (f"ppo.watch.{name}",),
        lambda s: isinstance(does := getattr(s.recipe.ppo.watch, name), tuple) and bool(set(does) - {"warn"}),
        "nothing there reacts to what goes wrong",
        "no reaction",
    )


COMMON_RULES = (
    Rule(
        ("env",),
        lambda s: s.recipe.env is not None,
        "what is handed over is PPO on single prompts",
        remedy="write the environment for the other tool, as an agent of its own",
    ),
    Rule(
        ("ppo.clip_schedule",),
        lambda s: s.recipe.ppo.clip_schedule == "linear",
        "the clip range does not fall there",
        lambda s: f"the mean over the run for all of it, {clip_range(s):g}",
    ),
    Rule(
        ("ppo.target_kl",),
        lambda s: s.recipe.ppo.target_kl is not None,
        "no epoch is left out there, however far an update went",
        "all epochs of every iteration",
    ),
    Rule(
        ("ppo.value.init",),
        lambda s: s.has_critic and s.recipe.ppo.value.other_run is not None,
        "the critic of another run is in a checkpoint, which nothing there reads",
        "a critic that starts at the policy",
    ),
    Rule(
        ("ppo.ptx.coef", "ppo.ptx.data", "ppo.ptx.minibatch_sequences"),
        lambda s: s.recipe.ppo.ptx_table is not None,
        "texts are not learnt beside PPO there",
        "PPO's loss alone",
    ),
    Rule(
        ("ppo.ema",),
        lambda s: s.recipe.ppo.ema is not None,
        "an average of the policy's weights is not handed over",
        "the policy alone",
    ),
    Rule(
        ("ppo.entropy_target",),
        lambda s: s.recipe.ppo.entropy_target is not None,
        "the coefficient of the entropy bonus stays as it is there",
        "that of the start, ppo.entropy_coef",
    ),
    Rule(
        ("ppo.max_ref_kl",),
        lambda s: s.recipe.ppo.max_ref_kl is not None,
        "nothing stops the run there where the policy is too far from the reference",
        "no stop; look at the KL that it logs",
    ),
    Rule(
        ("ppo.end_with",),
        lambda s: s.recipe.ppo.end_with == "best",
        "no weights are ranked there",
        "the last weights",
    ),
    Rule(
        ("ppo.resample_rounds",),
        lambda s: s.recipe.ppo.resample_rounds > 0,
        "prompts whose responses all score alike do not give way to others for so many rounds there",
        "they are learnt from, and teach nothing",
    ),
    Rule(
        ("ppo.whiten_rewards",),
        lambda s: s.recipe.ppo.whiten_rewards,
        "rewards of tokens are not scaled there",
        "rewards as they are",
    ),
    *map(_watch_rule, WatchConfig.model_fields),
    Rule(
        ("ppo.constraints",),
        lambda s: bool(s.recipe.ppo.constraints),
        "there are no constraints with multipliers there",
        "the reward alone",
        remedy="subtract what they ask for from the reward, with the weight that the multiplier has come to",
    ),
    Rule(
        ("reward.combine", "reward.variance_coef"),
        lambda s: s.is_reward_model and s.has_members,
        "one reward model scores there",
        "the first member of the ensemble",
        remedy="average the members with `rlhfkit average`, and give the result",
    ),
    Rule(
        ("reward.debias_length",),
        lambda s: s.is_reward_model and bool(s.setting("reward.debias_length")),
        "a reward model's score is taken as it is there",
        "scores as they go by the length",
    ),
    Rule(
        ("ppo.value.network",),
        lambda s: s.shares_trunk,
        "the critic is a network of its own there",
        lambda s: (
            "a critic of its own that starts at the policy, with the policy's optimizer settings and "
            f"ppo.optim.learning_rate x ppo.value.coef = {s.critic_rate:g} for its rate"
        ),
    ),
    Rule(
        ("model.num_trained_layers",),
        lambda s: s.recipe.model.num_trained_layers is not None,
        "the lower layers cannot be kept as they are there",
        "all layers are trained",
    ),
    Rule(
        ("model.revision",),
        lambda s: bool(s.setting("model.revision")) and not s.is_local,
        "there is no place for a revision there",
        remedy="download that revision, and set model.path to its directory",
    ),
    Rule(
        ("rollout.max_staleness",),
        lambda s: s.recipe.rollout.max_staleness > 0,
        "the weights that sample are those of now",
        "responses of the weights of now",
    ),
    Rule(
        ("rollout.partial_tokens",),
        lambda s: s.recipe.rollout.partial_tokens is not None,
        "no response is cut after a number of tokens to go on with newer weights",
        "whole responses",
    ),
    Rule(
        ("rollout.stop_tokens",),
        lambda s: bool(s.recipe.rollout.stop_tokens),
        "a response ends with EOS alone there",
        remedy="leave rollout.stop_tokens out, after SFT on responses that end with EOS",
    ),
    Rule(
        ("reward.label",),
        lambda s: s.is_reward_model and s.setting("reward.label") is not None,
        "a reward model has one output there",
        remedy="give a reward model with one output, or a function that calls the classifier",
    ),
    Rule(
        ("rounds",),
        lambda s: s.recipe.rounds > 1,
        "there are no rounds there",
        "one PPO, against the reward model of the last round that is finished",
    ),
)
"""What none of them can say."""
