"""What TRL and Stable-Baselines3 call a setting, and what it is called here."""

from collections.abc import Collection
from typing import NamedTuple

from rlhfkit.config.section import Section

__all__ = ["ELSEWHERE", "Names", "named_elsewhere"]


class Names(NamedTuple):
    """Names of others for one setting, or for the like one of several sections."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    """Dotted, as in a recipe; those of the section `ppo` are of text or of a control task, whichever has them."""
    note: str = ""
    """What is not the same."""


ELSEWHERE = (
    Names(("ppo_epochs", "num_ppo_epochs", "n_epochs"), ("ppo.epochs",)),
    Names(
        ("batch_size",), ("ppo.rollout_episodes", "ppo.minibatch_steps"), "in a control task a minibatch, as with SB3"
    ),
    Names(("mini_batch_size",), ("ppo.minibatch_episodes",)),
    Names(
        ("per_device_train_batch_size",),
        ("sft.minibatch_sequences", "reward_model.minibatch_pairs", "ppo.minibatch_episodes"),
        "of all devices together",
    ),
    Names(
        ("gradient_accumulation_steps",),
        ("sft.microbatch_tokens", "reward_model.microbatch_tokens", "ppo.microbatch_tokens"),
        "parts a minibatch by itself",
    ),
    Names(
        ("learning_rate",), ("sft.optim.learning_rate", "reward_model.optim.learning_rate", "ppo.optim.learning_rate")
    ),
    Names(
        ("lr_scheduler_type",), ("sft.optim.schedule", "reward_model.optim.schedule", "ppo.optim.schedule"), "by name"
    ),
    Names(
        ("num_train_epochs",), ("sft.epochs", "reward_model.epochs", "ppo.iterations"), "in PPO the number of rollouts"
    ),
    Names(("total_episodes", "steps"), ("ppo.iterations",), "rollouts: total_episodes / rollout_episodes"),
    Names(("total_timesteps",), ("ppo.env_steps",)),
    Names(("n_steps",), ("ppo.rollout_steps",)),
    Names(("n_envs",), ("ppo.num_envs",)),
    Names(("init_kl_coef", "kl_coef"), ("ppo.kl.coef",)),
    Names(("adap_kl_ctrl",), ("ppo.kl",), "a FixedKLConfig, or an AdaptiveKLConfig"),
    Names(("target",), ("ppo.kl.target",), "of an AdaptiveKLConfig"),
    Names(("horizon",), ("ppo.kl.horizon_episodes",), "of an AdaptiveKLConfig"),
    Names(("target_kl",), ("ppo.target_kl",), "ends an iteration's epochs; the KL to the reference is steered by kl"),
    Names(("cliprange",), ("ppo.clip_range",)),
    Names(("cliprange_value", "clip_range_vf"), ("ppo.value.clip_range",)),
    Names(("vf_coef",), ("ppo.value.coef",), "where the trunk is shared"),
    Names(("ent_coef",), ("ppo.entropy_coef",)),
    Names(("gamma",), ("ppo.gamma",)),
    Names(("lam",), ("ppo.gae_lambda",)),
    Names(
        ("max_grad_norm",), ("sft.optim.max_grad_norm", "reward_model.optim.max_grad_norm", "ppo.optim.max_grad_norm")
    ),
    Names(("response_length", "max_new_tokens"), ("rollout.max_response_tokens",)),
    Names(("temperature",), ("rollout.temperature",)),
    Names(("max_length",), ("sft.max_tokens", "reward_model.max_tokens", "dpo.max_tokens")),
    Names(("beta",), ("dpo.beta",), "of a DPOConfig; in PPO the KL coefficient is kl"),
    Names(("loss_type",), ("dpo.loss",), "of a DPOConfig"),
)

SECTIONS = {
    "PpoConfig": "ppo",
    "ControlPpoConfig": "ppo",
    "RolloutConfig": "rollout",
    "SftConfig": "sft",
    "PretrainConfig": "sft",
    "RewardModelConfig": "reward_model",
    "DpoConfig": "dpo",
}
"""Class → the section of a recipe whose names it has."""


def named_elsewhere(name: str, section: type[Section], root: type[Section]) -> str:
    """What a setting that others call `name` is called here, where it was looked for in `section`; empty if unknown.

    `root` is what the whole is of: a recipe, whose names are dotted, or a section that a program makes.
    """
    found = {ours: names.note for names in ELSEWHERE if name in names.theirs for ours in names.ours}
    inside, in_recipe = SECTIONS.get(section.__name__), "stages" in root.model_fields
    near = [ours for ours in found if ours.partition(".")[0] == inside and _key(ours) in section.model_fields]
    if not near and in_recipe:
        near = [ours for ours in found if _key(ours) in _settings_of(root, ours.partition(".")[0])]
    if not near and inside == "ppo" and not in_recipe:  # what a rollout needs is given beside PPO's settings
        near = [ours for ours in found if ours.startswith("rollout.")]
    if not near:
        return ""
    written = (
        near if in_recipe else [ours.replace("rollout.", "RolloutConfig.").removeprefix(f"{inside}.") for ours in near]
    )
    note = found[near[0]]
    return " or ".join(written) + (f" ({note})" if note else "")


def _key(ours: str) -> str:
    return ours.split(".")[1]


def _settings_of(root: type[Section], name: str) -> Collection[str]:
    kind = root.model_fields[name].annotation if name in root.model_fields else None
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else ()
