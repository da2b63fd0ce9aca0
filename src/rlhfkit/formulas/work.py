"""What a stage of a recipe has to do, in numbers; no weights are read for it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rlhfkit.config.evaluation import num_evaluations
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import LengthRewardConfig, MixRewardConfig, RewardConfig, RewardModelRewardConfig
from rlhfkit.config.training import LoopConfig
from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.formulas.shapes import DecoderShape, shape_named

__all__ = ["Critic", "Work", "supervised_work_of", "work_of"]

Critic = Literal["separate", "shared", "none"]


RESAMPLED = "further rounds of sampling"
"""How the note on them begins."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """An iteration of PPO, all ranks together, and the models that take part."""

    policy: DecoderShape
    itemsize: int
    """Bytes of a weight: 2 in bfloat16, 4 in float32."""
    reward_models: tuple[tuple[DecoderShape, int], ...]
    """(shape, bytes of a weight) of each one that scores."""
    critic: Critic
    lora_rank: int | None
    trained_layers: int | None
    """Layers that learn, where not all do."""
    recompute: bool | Literal["auto"]
    shard: Literal["auto", "none", "fsdp"] = "auto"
    """What the recipe's `parallel.shard` says."""
    only_learns: bool = False
    """Whether it is a supervised stage: one network that neither samples nor scores, nor has a reference."""
    is_first_stage: bool = True
    """Whether PPO is what a run begins with."""
    iterations: int
    episodes: int
    minibatch_episodes: int
    epochs: int
    microbatch_tokens: int | Literal["auto"]
    forward_tokens: int
    slots: int
    prompt_tokens: int
    """Of the longest prompt."""
    response_tokens: int
    """Most of a response."""
    mean_prompt_tokens: float
    mean_response_tokens: float
    ptx_sequences: int = 0
    """Rows of texts that are learnt beside in each optimizer step."""
    keeps_average: bool = False
    """Whether there is an average of the policy's weights beside it."""
    resample_rounds: int = 0
    """Further rounds of sampling in an iteration, each planned at its most: as of all prompts."""
    evaluations: int = 0
    """On the way, in all iterations."""
    evaluated_prompts: int = 0
    """Of each of them."""
    notes: tuple[str, ...] = ()
    """What was supposed, in words."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return self.prompt_tokens + self.response_tokens

    @property
    def mean_tokens(self) -> float:
        """Tokens of a sequence in the mean."""
        return self.mean_prompt_tokens + self.mean_response_tokens

    @property
    def updates(self) -> int:
        """Optimizer steps in an iteration."""
        return self.epochs * (self.episodes // self.minibatch_episodes)

    @property
    def layers_below(self) -> int:
        """Layers that nothing trains and all models have in common."""
        return 0 if self.trained_layers is None else self.policy.layers - self.trained_layers

    @property
    def parameters_below(self) -> int:
        """Their parameters, the embeddings included."""
        if not self.layers_below:
            return 0
        embeddings = self.policy.embedding_parameters + self.policy.learned_positions * self.policy.width
        return embeddings + self.layers_below * self.policy.layer_parameters

    def trained(self, total: int) -> int:
        """How many of a network's `total` parameters learn."""
        if self.lora_rank is not None:
            return self.policy.adapter_parameters(self.lora_rank)
        return total - self.parameters_below

    @property
    def trained_networks(self) -> list[int]:
        """Parameters that learn: of the policy, and of a critic of its own."""
        found = [self.trained(self.policy.parameters)]
        return found + ([self.trained(self.policy.trunk_parameters)] if self.critic == "separate" else [])

    @property
    def learning_itemsize(self) -> int:
        """Bytes of a weight that learns: adapters are float32."""
        return 4 if self.lora_rank is not None else self.itemsize

    def with_lengths(self, *, longest_prompt: int, mean_prompt: float, mean_response: float) -> "Work":
        """The same with lengths that were seen, instead of limits."""
        return replace(
            self,
            prompt_tokens=min(self.prompt_tokens, longest_prompt),
            mean_prompt_tokens=min(self.prompt_tokens, mean_prompt),
            mean_response_tokens=min(self.response_tokens, mean_response),
            notes=tuple(note for note in self.notes if not note.startswith(("every prompt", RESAMPLED))),
        )


def work_of(recipe: Recipe, policy: DecoderShape, *, itemsize: int, response_tokens: float | None = None) -> Work:
    """PPO of `recipe` on a model of shape `policy`.

    `response_tokens`: mean length of responses, by default the limit.
    Raises: ConfigError where the recipe has no PPO, or lengths do not fit the model.
    """
    if "ppo" not in recipe.stages:
        raise ConfigError(f"a plan is of PPO, and recipe {recipe.name} has the stages {', '.join(recipe.stages)} alone")
    recipe = recipe.for_context(policy.context)
    prompt, response = recipe.data.prompt_limit, recipe.rollout.max_response_tokens
    if policy.context is not None and prompt + response > policy.context:
        raise ConfigError(
            f"data.max_prompt_tokens = {prompt} and rollout.max_response_tokens = {response} are more than the context "
            f"of {policy.name}, {policy.context} tokens; lower one of them"
        )
    if response_tokens is not None and not 1 <= response_tokens <= response:
        raise ConfigError(
            f"--response-tokens {response_tokens:g} is not between 1 and rollout.max_response_tokens = {response}"
        )
    trained = recipe.model.num_trained_layers
    if trained is not None and trained >= policy.layers:
        raise ConfigError(f"model.num_trained_layers = {trained}, but {policy.name} has {policy.layers} layers")
    ppo, notes = recipe.ppo, []
    if response_tokens is None:
        notes.append(
            f"every prompt has {prompt} tokens and every response {response}, the limits; shorter ones cost less"
        )
    if recipe.env is not None:
        notes.append("an episode is planned as one response; the environment's own time and words are not")
    evaluations = num_evaluations(every=recipe.evaluation.every_iterations, iterations=ppo.iterations)
    if evaluations:
        notes.append("an evaluation on the way is planned as a rollout of its prompts; its probes are not")
    if ppo.ptx_sequences:
        notes.append("rows that are learnt beside PPO (ppo.ptx) are planned as of the length of its own")
    if ppo.resample_rounds:
        notes.append(
            f"{RESAMPLED} (ppo.resample_rounds = {ppo.resample_rounds}) are planned as of all prompts, the most; a run "
            "samples again only those whose responses all score alike"
        )
    if recipe.rollout.engine == "vllm":
        notes.append("planned with the own sampler; vLLM has a cache and weights of its own")
    rewards = [recipe.reward] if recipe.uses_reward else []
    scorers = [
        _reward_models(reward, policy, itemsize, members=recipe.reward_model.ensemble.members)
        for reward in (*rewards, *(constraint.source for constraint in ppo.constraints))
    ]
    models = tuple(model for found, _ in scorers for model in found)
    remarks = [word for _, words in scorers for word in words]
    lora = recipe.model.lora
    return Work(
        policy=policy,
        itemsize=itemsize,
        reward_models=models,
        critic="none" if ppo.estimator != "gae" else ppo.value.network,
        lora_rank=None if lora is None else lora.rank,
        trained_layers=trained,
        recompute=recipe.model.gradient_checkpointing,
        shard=recipe.parallel.shard,
        is_first_stage=recipe.stages[0] == "ppo",
        iterations=ppo.iterations,
        episodes=ppo.rollout_episodes,
        minibatch_episodes=ppo.minibatch_episodes,
        epochs=ppo.epochs,
        microbatch_tokens=ppo.microbatch_tokens,
        forward_tokens=ppo.forward_tokens,
        slots=recipe.rollout.slots,
        prompt_tokens=prompt,
        response_tokens=response,
        mean_prompt_tokens=prompt,
        mean_response_tokens=response_tokens or response,
        ptx_sequences=ppo.ptx_sequences,
        keeps_average=ppo.ema is not None,
        resample_rounds=ppo.resample_rounds,
        evaluations=evaluations,
        evaluated_prompts=recipe.evaluation.num_prompts_on_the_way,
        notes=(*notes, *remarks),
    )


def supervised_work_of(
    recipe: Recipe, config: LoopConfig, policy: DecoderShape, *, itemsize: int, rows: int, row_tokens: int
) -> Work:
    """A supervised stage of `recipe` with minibatches of so many rows, each of up to `row_tokens`."""
    longest, lora = min(row_tokens, policy.context or row_tokens), recipe.model.lora
    return Work(
        policy=policy,
        itemsize=itemsize,
        reward_models=(),
        critic="none",
        lora_rank=None if lora is None else lora.rank,
        trained_layers=recipe.model.num_trained_layers,
        recompute=recipe.model.gradient_checkpointing is True,
        shard=recipe.parallel.shard,
        only_learns=True,
        iterations=1,
        episodes=rows,
        minibatch_episodes=rows,
        epochs=config.epochs,
        microbatch_tokens=config.microbatch_tokens,
        forward_tokens=longest,
        slots=1,
        prompt_tokens=0,
        response_tokens=longest,
        mean_prompt_tokens=0,
        mean_response_tokens=longest,
    )


def _reward_models(
    reward: RewardConfig, policy: DecoderShape, itemsize: int, *, members: int
) -> tuple[tuple[tuple[DecoderShape, int], ...], list[str]]:
    """The models that score, and what was supposed of them; the run's own reward model has so many `members`."""
    match reward:
        case MixRewardConfig():
            found = [_reward_models(part.source, policy, itemsize, members=members) for part in reward.parts]
            return tuple(model for models, _ in found for model in models), [
                word for _, words in found for word in words
            ]
        case RewardModelRewardConfig(path=None):
            return ((policy, itemsize),) * members, []
        case RewardModelRewardConfig():
            try:
                shape = shape_named(str(reward.path))
            except (ConfigError, ModelError) as error:
                return ((policy, itemsize),), [f"the reward model is taken for one of the policy's shape ({error})"]
            place = Path(str(reward.path))
            is_ours = (place / "rlhfkit_reward.json").exists()
            num = 1 + sum(path.name.isdecimal() for path in (place / "members").glob("*"))
            return ((shape, itemsize if is_ours else 4),) * num, []
        case LengthRewardConfig():
            return (), []
        case _:
            return (), [f'the time of reward.type = "{reward.type}" is not known, and not part of the plan']
