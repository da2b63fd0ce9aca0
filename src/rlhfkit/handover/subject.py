"""What is handed over: a recipe, or a run with the models that it made, in numbers that no tool names differently."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from pathlib import Path
from typing import Any

from rlhfkit.config.load import load_recipe, with_overrides
from rlhfkit.config.model import LoraConfig, ScratchModelConfig
from rlhfkit.config.ppo import AdaptiveKLConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import FunctionRewardConfig, RewardModelRewardConfig
from rlhfkit.config.section import Section
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import CheckpointError, ConfigError, ModelError
from rlhfkit.rundir.contents import Facts, read_facts
from rlhfkit.rundir.directory import RunDir

__all__ = ["UNBOUNDED", "Subject", "setting_of", "subject_of", "value_text"]

NORMALIZATION_FILE = "rlhfkit_reward.json"
PPO_EPS = 1e-5
UNBOUNDED = 1_000_000_000.0
"""What stands for "no bound" where a tool wants a number; in plain digits, as some parsers take -1e9 for an option."""


@dataclass(frozen=True)
class Subject:
    """A recipe that may be handed over, and the run that it is of."""

    recipe: Recipe
    run: RunDir | None
    facts: Facts | None
    gpus: int
    given_response_tokens: float | None
    rates: tuple[float, float]
    """Learning rates of policy and critic."""
    max_prompt_tokens: int
    directory: Path
    """Where the files are written."""

    # ── counts ───────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def group(self) -> int:
        """Responses per prompt."""
        return self.recipe.ppo.group_size

    @property
    def prompts(self) -> int:
        """Prompts per iteration."""
        return self.recipe.ppo.rollout_episodes // self.group

    @property
    def minibatch_prompts(self) -> float:
        """Prompts per optimizer step; not whole where a minibatch cuts a group."""
        return self.recipe.ppo.minibatch_episodes / self.group

    @property
    def iterations(self) -> int:
        """Rounds of collect and update."""
        return self.recipe.ppo.iterations

    @property
    def passes(self) -> int:
        """Passes over rollouts, of the whole run."""
        return self.iterations * self.recipe.ppo.epochs

    @property
    def updates(self) -> int:
        """Optimizer steps of the whole run."""
        return self.iterations * self.recipe.ppo.updates_per_iteration

    @property
    def sequence_tokens(self) -> int:
        """Longest prompt and longest response."""
        return self.max_prompt_tokens + self.recipe.rollout.max_response_tokens

    @property
    def microbatch_tokens(self) -> int:
        """Tokens of a forward and backward pass: never less than one sequence."""
        wanted = self.recipe.ppo.microbatch_tokens
        return max(self.sequence_tokens, 8192 if wanted == "auto" else wanted)

    @property
    def microbatch_rows(self) -> int:
        """The same in whole sequences of the greatest length, and a divisor of each GPU's minibatch."""
        share = max(1, self.recipe.ppo.minibatch_episodes // self.gpus)
        fitting = max(1, min(share, self.microbatch_tokens // self.sequence_tokens))
        return next(rows for rows in range(fitting, 0, -1) if share % rows == 0)

    # ── optimizers ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def has_critic(self) -> bool:
        """Whether there are values."""
        return self.recipe.ppo.estimator == "gae"

    @property
    def shares_trunk(self) -> bool:
        """Whether the critic is a head on the policy, with the policy's optimizer."""
        return self.has_critic and self.recipe.ppo.value.network == "shared"

    @property
    def critic_optim(self) -> OptimConfig:
        """Settings of the critic's optimizer."""
        return self.recipe.ppo.optim if self.shares_trunk else self.recipe.ppo.value.optim

    @property
    def policy_rate(self) -> float:
        """Highest learning rate of the policy."""
        return self.rates[0]

    @property
    def critic_rate(self) -> float:
        """Highest learning rate of the critic, which is one of its own there.

        Of a head on the policy's trunk the weight of its loss becomes a factor of the rate: Adam divides the gradient
        by its size, so that a weight on a loss that stands alone would do nothing.
        """
        return self.rates[0] * self.recipe.ppo.value.coef if self.shares_trunk else self.rates[1]

    @staticmethod
    def eps(optim: OptimConfig) -> float:
        """Adam's epsilon; "auto" is what it stands for in PPO."""
        return PPO_EPS if optim.adam_eps == "auto" else optim.adam_eps

    @property
    def lora(self) -> LoraConfig:
        """The adapters of a recipe that trains some."""
        assert self.recipe.model.lora is not None
        return self.recipe.model.lora

    # ── KL ───────────────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def is_adaptive(self) -> bool:
        """Whether the coefficient of the KL penalty moves."""
        return isinstance(self.recipe.ppo.kl, AdaptiveKLConfig)

    @property
    def kl_in_loss(self) -> bool:
        """Whether the KL penalty is a term of the loss, and not in the reward."""
        return self.recipe.ppo.kl.place == "loss"

    @property
    def kl_coef(self) -> float:
        """Reward per nat, at the start."""
        return self.recipe.ppo.kl.coef

    @property
    def last_kl_coef(self) -> float:
        """The coefficient that a finished run ended with; of a recipe alone that of the start."""
        record = {} if self.facts is None else self.facts.finished.get("ppo", {})
        return float(record.get("kl_coef", self.kl_coef))

    @property
    def response_tokens(self) -> float | None:
        """Mean length of a response: as given, or else as the run has seen it."""
        if self.given_response_tokens is not None:
            return self.given_response_tokens
        rows = () if self.facts is None else self.facts.metrics.get("ppo", ())
        lengths = [float(row["response_tokens/mean"]) for row in rows if "response_tokens/mean" in row]
        return fsum(lengths) / len(lengths) if lengths else None

    @property
    def kl_target_per_token(self) -> float:
        """The target in nats per token: of a sequence, by its mean length (the longest, where that is unknown)."""
        assert isinstance(self.recipe.ppo.kl, AdaptiveKLConfig)
        return self.recipe.ppo.kl.target / (self.response_tokens or self.recipe.rollout.max_response_tokens)

    # ── models and reward ────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def policy_path(self) -> str:
        """The model that PPO starts from and is held to.

        Raises: CheckpointError, ConfigError where nothing has made it yet.
        """
        made = "sft" if "sft" in self.recipe.stages else "base" if "pretrain" in self.recipe.stages else None
        if made is None:
            assert not isinstance(self.recipe.model, ScratchModelConfig)  # such a recipe has the stage
            return _place(self.recipe.model.path)
        return self._made(made)

    @property
    def is_local(self) -> bool:
        """Whether the model that PPO starts from is a directory here."""
        return Path(self.policy_path).is_dir()

    @property
    def is_reward_model(self) -> bool:
        """Whether the reward is one of a model."""
        return isinstance(self.recipe.reward, RewardModelRewardConfig)

    @property
    def is_function(self) -> bool:
        """Whether the reward is a Python function."""
        return isinstance(self.recipe.reward, FunctionRewardConfig)

    @cached_property
    def reward_path(self) -> str:
        """The reward model. Raises: CheckpointError, ConfigError where nothing has made it yet."""
        reward = self.recipe.reward
        assert isinstance(reward, RewardModelRewardConfig)
        return self._made("reward_model") if reward.path is None else _place(reward.path)

    @cached_property
    def has_members(self) -> bool:
        """Whether the reward model is an ensemble."""
        place = Path(self.reward_path)
        return (place / "members").is_dir() or (place / "heads.safetensors").exists()

    @cached_property
    def normalization(self) -> tuple[float, float] | None:
        """(mean, deviation) by which the reward's scores are normalised here; None where they stay raw."""
        return _normalization(Path(self.reward_path)) if self.is_reward_model else None

    @cached_property
    def critic_path(self) -> str:
        """What the critic starts from: the run's own reward model, wherever the reward is from, or the policy."""
        return self._made("reward_model") if self.critic_starts_from_reward_model else self.policy_path

    @cached_property
    def critic_normalization(self) -> tuple[float, float] | None:
        """The same of the critic's first values."""
        return _normalization(Path(self.critic_path)) if self.critic_starts_from_reward_model else None

    @property
    def critic_starts_from_reward_model(self) -> bool:
        """Whether the critic's first values are the scores of the reward model; else its head is zero."""
        init = self.recipe.ppo.value.init
        has_one = "reward_model" in self.recipe.stages
        return self.has_critic and not self.shares_trunk and has_one and init in ("auto", "reward_model")

    def _made(self, name: str) -> str:
        if self.run is None:
            raise ConfigError(
                f"the recipe makes the model that is handed over (its stages are {list(self.recipe.stages)}); run it "
                "first (rlhfkit run), and export the run's directory"
            )
        rounds = sorted(self.run.path.glob("round-*"), key=lambda path: (len(path.name), path.name), reverse=True)
        for place in (self.run.path, *rounds):
            if (place / name).is_dir():
                return str((place / name).resolve())
        raise CheckpointError(f"{self.run.path} has no {name}/ yet; go on with the run until that stage is done")

    def setting(self, name: str) -> Any:
        """Value of a dotted setting of the recipe."""
        return setting_of(self.recipe, name)

    def origin(self, name: str) -> str:
        """How a setting is called in comments: a model that the run has made by its directory."""
        made = {"model.path": "sft" if "sft" in self.recipe.stages else "base", "reward.path": "reward_model"}
        is_made = self.run is not None and (
            (name == "model.path" and {"sft", "pretrain"} & set(self.recipe.stages))
            or (name == "reward.path" and self.setting("reward.path") is None)
        )
        if is_made:
            return f"{made[name]}/ of the run = {self.policy_path if name == 'model.path' else self.reward_path}"
        return f"{name} = {value_text(self.setting(name))}"


def _normalization(directory: Path) -> tuple[float, float] | None:
    path = directory / NORMALIZATION_FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["normalization"]
        mean, std = float(found["mean"]), float(found["std"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is damaged ({error}); put back the file that was saved with the model") from error
    return None if (mean, std) == (0.0, 1.0) else (mean, std)


def value_text(value: Any) -> str:
    """A setting's value as a recipe has it; of a section its type alone."""
    if isinstance(value, Section):
        return f'"{value.type}"' if hasattr(value, "type") else "…"
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def setting_of(recipe: Recipe, name: str) -> Any:
    """Value of a dotted setting; None below a section that is not there."""
    value: Any = recipe
    for key in name.split("."):
        value = getattr(value, key, None)
    return value


def _place(path: str) -> str:
    """A directory as an absolute path; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def subject_of(
    run_or_recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    directory: Path,
    gpus: int = 1,
    response_tokens: float | None = None,
) -> Subject:
    """What is handed over of a run's directory, or of a recipe's name or file.

    Raises: ConfigError where it is a control task, or has no PPO.
    """
    run = RunDir(run_or_recipe)
    facts = None
    if run.is_run():
        facts = read_facts(run)
        recipe = with_overrides(facts.config, overrides, name=str(run.path), is_resolved=True)
    else:
        recipe = load_recipe(run_or_recipe, overrides).recipe
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"{recipe.name} is a control task, and those tools train language models; nothing to export")
    if "ppo" not in recipe.stages:
        raise ConfigError(f'{recipe.name} has no stage "ppo", which is what would be handed over; its stages are '
                          f"{list(recipe.stages)}")  # fmt: skip
    part = Subject(
        recipe=recipe,
        run=run if facts is not None else None,
        facts=facts,
        gpus=gpus,
        given_response_tokens=response_tokens,
        rates=(0.0, 0.0),
        max_prompt_tokens=0,
        directory=directory,
    )
    from rlhfkit.handover.model import context_of_model, rates_of

    return Subject(
        recipe=recipe,
        run=part.run,
        facts=facts,
        gpus=gpus,
        given_response_tokens=response_tokens,
        rates=rates_of(part),
        max_prompt_tokens=recipe.for_context(context_of_model(part)).data.prompt_limit,
        directory=directory,
    )
