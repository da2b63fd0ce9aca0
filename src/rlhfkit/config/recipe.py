"""A whole recipe: one section of settings for each subject, and what has to fit between them.

A recipe is a TOML file whose tables are the fields of `Recipe`. Each section is a frozen class in a file of its own,
with its help under each field. Nothing computed is stored here, and nothing here imports torch, so that `--help` and
the check of a recipe are instant.
"""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from rlhfkit.config.cluster import ClusterConfig
from rlhfkit.config.data import DataConfig, GuessTextsConfig
from rlhfkit.config.envs import GuessEnvConfig, TextEnvConfig
from rlhfkit.config.evaluation import CompareConfig, EvaluationConfig
from rlhfkit.config.feedback import PreferencesConfig
from rlhfkit.config.model import ModelConfig
from rlhfkit.config.parallel import ParallelConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.config.probe import PROBES_OF_REWARD, ProbeConfig
from rlhfkit.config.rewards import (
    BagOfWordsRewardConfig,
    MixRewardConfig,
    RewardConfig,
    RewardModelRewardConfig,
    answer_rule,
    parts_of,
    shared_parts,
)
from rlhfkit.config.section import MAY_CHANGE, Section
from rlhfkit.config.stages import BASELINES, STAGE_SPECS, Stage
from rlhfkit.config.tracking import TrackingConfig
from rlhfkit.config.training import DpoConfig, JudgeConfig, PretrainConfig, RaftConfig, RewardModelConfig, SftConfig
from rlhfkit.config.tune import TuneConfig
from rlhfkit.config.watchdog import WatchdogConfig

__all__ = ["Recipe"]


class Recipe(Section):
    """A whole run.

    Example:
        >>> from rlhfkit import load_recipe
        >>> load_recipe("demo").recipe.stages[0]
        'pretrain'
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    """Name of the recipe and of its run directory."""
    purpose: Annotated[str, MAY_CHANGE] = ""
    """One line that the report shows."""
    synthetic: bool = False
    """Whether data and people are made up; the report says so."""
    seed: NonNegativeInt = 0
    """All randomness follows from this."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    """What to do, in order."""
    rounds: PositiveInt = 1
    """How often to go round the loop: sample from the newest policy, label, train the reward model, PPO."""
    model: ModelConfig
    """The language model to start from."""
    data: DataConfig = DataConfig()
    """What to read."""
    pretrain: PretrainConfig = PretrainConfig()
    """Settings of the stage."""
    sft: SftConfig = SftConfig()
    """Settings of the stage."""
    preferences: PreferencesConfig = PreferencesConfig()
    """Settings of the stage."""
    reward_model: RewardModelConfig = RewardModelConfig()
    """Settings of the stage."""
    judge: JudgeConfig = JudgeConfig()
    """Settings of the stage."""
    reward: RewardConfig = RewardModelRewardConfig(type="reward_model")
    """What PPO maximises."""
    env: TextEnvConfig | None = None
    """The environment that PPO acts in, in place of single prompts and their reward."""
    rollout: RolloutConfig = RolloutConfig()
    """How responses are sampled."""
    ppo: PpoConfig = PpoConfig()
    """Settings of the stage."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Settings of the stage `evaluate`."""
    probe: ProbeConfig = ProbeConfig()
    """Settings of the stage `probe`."""
    dpo: DpoConfig = DpoConfig()
    """Settings of the stage."""
    raft: RaftConfig = RaftConfig()
    """Settings of the stage."""
    compare: CompareConfig = CompareConfig()
    """Settings of the stage."""
    parallel: Annotated[ParallelConfig, MAY_CHANGE] = ParallelConfig()
    """What several processes part among them."""
    cluster: Annotated[ClusterConfig, MAY_CHANGE] = ClusterConfig()
    """Who works on the run on a Ray cluster."""
    watchdog: Annotated[WatchdogConfig, MAY_CHANGE] = WatchdogConfig()
    """What happens when a stage gives no sign of life."""
    tracking: Annotated[TrackingConfig, MAY_CHANGE] = TrackingConfig()
    """Which other tools get the numbers of the run."""
    tune: Annotated[TuneConfig, MAY_CHANGE] = TuneConfig()
    """What `rlhfkit tune` searches."""

    @property
    def uses_reward(self) -> bool:
        """Whether responses get the score of `reward`, rather than that of the environment alone."""
        return self.env is None or self.env.type == "replay" or (self.env.type == "function" and self.env.add_reward)

    @property
    def has_reward(self) -> bool:
        """Whether `reward` can be had: it names no model of this run that no stage makes."""
        return self.uses_reward and not any(_faults_of_reward("reward", self.reward, self))

    def for_context(self, context: int | None) -> "Recipe":
        """The recipe with a number where `data.max_prompt_tokens` is "auto", for a model of so many positions."""
        if self.data.max_prompt_tokens != "auto":
            return self
        limit = self.data.prompt_limit
        if context is not None:
            room = context - self.rollout.max_response_tokens
            limit = max(1, min(limit, room if self.env is None else min(room, context // 2)))
        return self.model_copy(update={"data": self.data.model_copy(update={"max_prompt_tokens": limit})})

    @property
    def evaluation_seed(self) -> int:
        """The seed of held-out prompts and of the answers to them."""
        return self.seed if self.evaluation.seed is None else self.evaluation.seed

    @property
    def uses_prompts(self) -> bool:
        """Whether PPO and the evaluation read prompts, rather than what an environment says."""
        return self.env is None or self.env.type == "replay"

    @model_validator(mode="after")
    def _sections_fit(self) -> "Recipe":
        faults = list(_faults(self))
        if faults:
            raise ValueError("; ".join(faults))
        return self


def _faults(recipe: Recipe) -> Iterator[str]:
    """What is wrong between the sections of a recipe."""
    stages = recipe.stages
    if len(set(stages)) != len(stages):
        yield f"stages {list(stages)} names one twice; name each once"
    order = [stage for stage in STAGE_SPECS if stage in stages]
    if list(dict.fromkeys(stages)) != order:
        yield f"stages {list(stages)} are not in order; write {order}"
    if (recipe.model.type == "scratch") != ("pretrain" in stages):
        yield 'model.type = "scratch" and the stage "pretrain" belong together; use both or neither'
    for stage in order:
        field = STAGE_SPECS[stage].data[0]
        is_made = field == "preferences" and "preferences" in stages
        is_played = stage in ("ppo", "evaluate") and not recipe.uses_prompts
        needs_it = STAGE_SPECS[stage].needs_data and not is_made and not is_played
        if getattr(recipe.data, field) is None and needs_it:
            yield f'the stage "{stage}" reads data.{field}, which is not set; add [data.{field}]'
    if "preferences" in stages:
        for table in ("preferences", "test_preferences"):
            if getattr(recipe.data, table) is not None:
                yield f'the stage "preferences" makes what data.{table} would read; leave one of the two out'
    if recipe.rounds > 1 and (missing := {"preferences", "reward_model", "ppo"} - set(stages)):
        yield f"rounds = {recipe.rounds} goes round the stages preferences, reward_model and ppo; add {sorted(missing)}"
    if recipe.rounds > 1 and recipe.reward_model.init == "base" and "sft" in stages:
        yield 'rounds begin at the SFT model, and know no base; set reward_model.init = "sft", or rounds = 1'
    yield from _faults_of_baselines(recipe)
    if recipe.env is not None and "ppo" not in stages:
        yield f'env.type = "{recipe.env.type}" is what PPO acts in; add the stage "ppo", or leave [env] out'
    if isinstance(recipe.env, GuessEnvConfig) and isinstance(recipe.data.texts, GuessTextsConfig):
        rules = [(rules.highest, rules.max_guesses) for rules in (recipe.env, recipe.data.texts)]
        if rules[0] != rules[1]:
            yield f"env and data.texts differ, {rules[0]} and {rules[1]}; set highest and max_guesses alike"
    if "ppo" in stages:
        if recipe.uses_reward:
            yield from _faults_of_reward("reward", recipe.reward, recipe)
        for index, constraint in enumerate(recipe.ppo.constraints):
            yield from _faults_of_reward(f"ppo.constraints[{index}].source", constraint.source, recipe)
        learnt = recipe.ppo.ptx_table
        if learnt is not None and getattr(recipe.data, learnt) is None:
            yield f"ppo.ptx.coef = {recipe.ppo.ptx.coef:g} learns data.{learnt}, which is not set; add [data.{learnt}]"
        if recipe.ppo.value.init == "reward_model" and "reward_model" not in stages:
            yield (
                'ppo.value.init = "reward_model" starts from the reward model of this run; '
                'add the stage "reward_model" or choose "policy"'
            )
        yield from _faults_on_the_way(recipe)
    if recipe.env is not None and recipe.evaluation.metric != "none":
        yield f'evaluation.metric = "{recipe.evaluation.metric}" is of single responses; leave it out, or [env]'
    if recipe.evaluation.metric == "answer" and answer_rule(recipe.reward) is None:
        yield (
            f'evaluation.metric = "answer" reads answers as reward.type = "answer" does, and the reward is '
            f'"{recipe.reward.type}"; set that, or another metric'
        )
    if recipe.env is not None and recipe.rollout.max_staleness:
        yield (
            f"rollout.max_staleness = {recipe.rollout.max_staleness} is of single responses: an environment answers "
            "the weights of now; leave it out, or [env]"
        )
    if recipe.env is not None and recipe.rollout.partial_tokens is not None:
        yield (
            f"rollout.partial_tokens = {recipe.rollout.partial_tokens} is of single responses: an environment answers "
            "whole ones; leave it out, or [env]"
        )
    if recipe.ppo.resample_rounds and (recipe.env is not None or recipe.rollout.max_staleness):
        yield (
            f"ppo.resample_rounds = {recipe.ppo.resample_rounds} is of single responses by the weights of now; set it "
            "to 0, or leave out [env] and rollout.max_staleness"
        )
    if recipe.env is not None and recipe.cluster.trainers > 1:
        yield (
            f"cluster.trainers = {recipe.cluster.trainers} with [env]: its turns are played by one trainer, which asks "
            "the samplers for each; leave it out"
        )
    if "evaluate" in stages:
        if "ppo" not in stages:
            yield 'the stage "evaluate" compares the model before PPO with the one after; add the stage "ppo"'
        if recipe.evaluation.judge is not None:
            yield from _faults_of_reward("evaluation.judge", recipe.evaluation.judge, recipe)
            if recipe.uses_reward:
                yield from shared_parts(recipe.evaluation.judge, recipe.reward, {})
        elif not recipe.uses_reward:
            pass  # what the environment pays is the truth, and needs no second opinion
        elif "judge" not in stages and recipe.evaluation.metric == "none":
            yield (
                'evaluation needs a judge that PPO never saw; add the stage "judge" or set evaluation.judge (or, where '
                "the rows give the right responses, evaluation.metric)"
            )
        elif any(
            isinstance(part, BagOfWordsRewardConfig) and part.path is None for _, part in parts_of(recipe.reward, "")
        ):
            yield 'reward.type = "bag_of_words" without a path maximises the judge of this run; set evaluation.judge'


def _faults_of_baselines(recipe: Recipe) -> Iterator[str]:
    """What the stages that are compared with PPO cannot do."""
    stages = [stage for stage in (*BASELINES, "compare") if stage in recipe.stages]
    if stages and recipe.rounds > 1:
        yield f"rounds = {recipe.rounds} leave no one model for {stages} to begin with; leave them out, or rounds = 1"
    if stages and recipe.env is not None:
        yield f"{stages} answer single prompts, and [env] has turns; leave one of the two out"
    if "compare" in stages and "ppo" not in recipe.stages:
        yield 'the stage "compare" compares PPO with others; add the stage "ppo"'
    elif "raft" in stages and "ppo" not in recipe.stages:
        yield from _faults_of_reward("reward", recipe.reward, recipe)


def _faults_on_the_way(recipe: Recipe) -> Iterator[str]:
    """What evaluation on the way needs, and what needs it."""
    best = recipe.ppo.watch.best_metric
    if not recipe.evaluation.every_iterations:
        needs = "is measured by evaluations on the way; set evaluation.every_iterations, as to 10"
        if recipe.evaluation.probes:
            yield f"evaluation.probes = {list(recipe.evaluation.probes)} {needs}"
        if best.removeprefix("-").startswith("evaluation/"):
            yield f'ppo.watch.best_metric = "{best}" {needs}'
        return
    every = f"evaluation.every_iterations = {recipe.evaluation.every_iterations}"
    if recipe.uses_prompts and recipe.data.test_prompts is None:
        yield f"{every} evaluates on held-out prompts; add [data.test_prompts], or leave it out"
    for name in sorted(PROBES_OF_REWARD.intersection(recipe.evaluation.probes)):
        yield f'evaluation.probes = "{name}" is about the reward, which PPO does not change; name it in probe.names'
    if recipe.evaluation.judge is not None and "evaluate" not in recipe.stages:
        yield from _faults_of_reward("evaluation.judge", recipe.evaluation.judge, recipe)


def _faults_of_reward(name: str, reward: object, recipe: Recipe) -> Iterator[str]:
    """Where a reward is a model of this run, but no stage makes it."""
    if isinstance(reward, MixRewardConfig):
        for index, part in enumerate(reward.parts):
            yield from _faults_of_reward(f"{name}.parts[{index}].source", part.source, recipe)
    if isinstance(reward, RewardModelRewardConfig) and reward.path is None and "reward_model" in recipe.stages:
        wanted, trained = reward.max_tokens, recipe.reward_model.max_tokens
        if wanted is not None and wanted != trained:
            yield (
                f"{name}.max_tokens = {wanted}, but the reward model is trained on sequences of up to "
                f"reward_model.max_tokens = {trained}; leave {name}.max_tokens out"
            )
    if isinstance(reward, RewardModelRewardConfig) and reward.path is None and "reward_model" not in recipe.stages:
        yield (
            f'{name}.type = "reward_model" without a path scores with the reward model of this run; '
            f'add the stage "reward_model" or set {name}.path'
        )
    makes_bag_of_words = "judge" in recipe.stages and recipe.judge.type == "bag_of_words"
    if isinstance(reward, BagOfWordsRewardConfig) and reward.path is None and not makes_bag_of_words:
        yield (
            f'{name}.type = "bag_of_words" without a path scores with the bag of words of this run; '
            f'add the stage "judge" with judge.type = "bag_of_words" or set {name}.path'
        )
