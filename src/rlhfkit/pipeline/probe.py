"""The stage `probe` and `rlhfkit probe`: what else changed in a run, or what a model or reward does beside its task."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.probe import ProbeConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import (
    AnswerRewardConfig,
    ChrfRewardConfig,
    MatchRewardConfig,
    RewardConfig,
    RewardModelRewardConfig,
    UnitTestsRewardConfig,
    parts_of,
)
from rlhfkit.data import load_demonstrations, load_prompts, load_texts
from rlhfkit.distributed.ranks import ranks
from rlhfkit.errors import CheckpointError, ConfigError, RewardError
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.inspection import inspect_model
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.opening import reopened
from rlhfkit.pipeline.probe_sides import Measured, measured, results_of, sides_of
from rlhfkit.probes.choose import chosen_probes, primary_of
from rlhfkit.probes.compare import over_seeds
from rlhfkit.probes.probe import Probe
from rlhfkit.probes.scorers import Scorer, by_reward, by_sentiment, by_words, read_words
from rlhfkit.report.page import report_or_warn
from rlhfkit.rewards.source import RewardSource
from rlhfkit.rundir.atomic import write_atomically
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.probe_results import ProbeResults
from rlhfkit.rundir.resume import recipe_of

__all__ = [
    "ask_reward",
    "builder_of",
    "is_chat",
    "probe",
    "probe_measured",
    "probe_model",
    "probe_run",
    "probe_seeds",
    "scorer_of",
    "training_texts",
]

MOST_TRAINING_ROWS = 20_000


def probe(ctx: RunContext) -> dict[str, Any]:
    """The run's model before PPO and its policy, and its reward → `probes.json`."""
    _probe(ctx, ctx.recipe.probe, reward=None)
    return {}


def ask_reward(ctx: RunContext) -> None:
    """Warn of what the reward pays for beside its task, before PPO teaches it → `probes.json`, of the reward alone.

    Nothing where it was asked before, or where no probe is about a reward.
    """
    config = ctx.recipe.probe
    reward = _own_reward(ctx)
    if reward is None or ctx.run.probes.exists():
        return
    probes = chosen_probes(config, directory=Path(ctx.recipe.data.directory), scorer=None)
    asked = [each for each in probes if each.of == "reward"]
    if not asked:
        return
    who = Measured(None, None, reward, ("", "", _name_of(ctx.recipe.reward)))
    try:
        with quiet_transformers():
            found = measured(
                ctx.recipe, asked, who, is_chat=is_chat(ctx), progress=ctx.progress, loop="what the reward pays for"
            )
    except RewardError as error:
        ctx.progress.warn(f"the reward was not probed: {error}")
        return
    for measure in found.of_whole():
        if measure.reading == "found":
            ctx.progress.warn(f"{measure.sentence} PPO will teach what it is paid for")
    if ctx.writes:
        write_atomically(ctx.run.probes, found.model_dump_json(indent=2) + "\n")
    ranks().wait()


def probe_run(directory: Path, config: ProbeConfig | None = None, *, reward_model: Path | None = None) -> ProbeResults:
    """Probe a run's models again, and write `probes.json` and the report.

    `config` takes the place of the recipe's probes, `reward_model` that of its reward.
    Raises: CheckpointError where the run has no model yet.
    """
    progress = Progress()
    with _again(directory, config, progress) as ctx:
        found = _probe(ctx, ctx.recipe.probe, reward=reward_model)
        report_or_warn(ctx.run, progress.warn)
    return found


def probe_seeds(directories: Sequence[Path], config: ProbeConfig | None = None) -> ProbeResults:
    """What runs of one recipe with other seeds have in common → `probes_over_seeds.json` and report of the first run.

    Raises: ConfigError where the runs are of different recipes.
    """
    progress, sides, recipes = Progress(), [], []
    for directory in directories:
        with _again(directory, config, progress) as ctx:
            recipe = ctx.recipe
            recipes.append(recipe)
            if recipe.name != recipes[0].name:
                raise ConfigError(
                    f"{directory} is a run of {recipe.name} and {directories[0]} one of {recipes[0].name}; give runs "
                    "of one recipe that differ by their seeds"
                )
            config = config or recipe.probe  # the first one's for all
            probes, who = _chosen(ctx, config), _models_of(ctx, None)
            sides.append(sides_of(recipe, probes, who, is_chat=is_chat(ctx), progress=progress))
    seed = derive_seed(recipes[0].seed, "probes")
    primary = primary_of(recipes[0].probe, probes)
    measures = over_seeds([(each.before, each.after) for each in sides], primary=primary, seed=seed)
    found = results_of(recipes[0], probes, who, measures, num_seeds=len(sides))
    if ranks().is_first:
        first = RunDir(directories[0])
        write_atomically(first.probes_over_seeds, found.model_dump_json(indent=2) + "\n")
        report_or_warn(first, progress.warn)
    return found


@contextmanager
def _again(directory: Path, config: ProbeConfig | None, progress: Progress) -> Iterator[RunContext]:
    run, recipe = RunDir(directory), recipe_of(RunDir(directory))
    if isinstance(recipe, ControlRecipe):
        raise ConfigError(f"{directory} is a run of the control task {recipe.env.id}, whose policy writes no text")
    if config is not None:
        recipe = recipe.model_copy(update={"probe": config})
    with reopened(recipe, run, ["probe"], progress=progress) as ctx:
        yield ctx


def probe_model(path: str, config: ProbeConfig, *, reward_model: Path | None = None) -> ProbeResults:
    """What a language model, or a reward model, does beside its task; nothing is written.

    Raises: ModelError where there is no model.
    """
    progress, is_reward = Progress(), _is_reward(path)
    builder = builder_of(config, path)
    reward = Path(path) if is_reward else reward_model
    chat = not is_reward and not builder.encoder(builder.source_of()).uses_fallback
    model = None if is_reward else (lambda: builder.language_model(builder.source_of()))
    names = ("", "" if is_reward else path, str(reward) if reward else "")
    who = Measured(
        None,
        model,
        _reward_of(builder, reward),
        names,
        (None, path),
        dtype=str(builder.dtype).removeprefix("torch."),
        device=str(builder.device),
    )
    return probe_measured(builder, who, is_chat=chat, progress=progress)


def builder_of(config: ProbeConfig, path: str, *, seed: int = 0) -> Builder:
    """What builds a model at `path` that no run made, and what `config` names."""
    rollout = RolloutConfig(max_response_tokens=config.max_response_tokens)
    model = PretrainedModelConfig(path=path)
    recipe = Recipe(name="probe", seed=seed, stages=("probe",), model=model, rollout=rollout, probe=config)
    return Builder(recipe, RunDir(Path(path) / "no run"))


def probe_measured(builder: Builder, who: Measured, *, is_chat: bool, progress: Progress) -> ProbeResults:
    """The probes of the builder's recipe on models and a reward that no run made."""
    config = builder.recipe.probe
    with quiet_transformers():
        probes = chosen_probes(config, directory=Path(), scorer=scorer_of(config, builder))
        return measured(builder.recipe, probes, who, is_chat=is_chat, progress=progress)


def _is_reward(path: str) -> bool:
    config = inspect_model(path, subject=path)
    return any("SequenceClassification" in name for name in config.architectures or ())


def _probe(ctx: RunContext, config: ProbeConfig, *, reward: Path | None) -> ProbeResults:
    ctx.manifest.refuse_damaged()
    probes, who = _chosen(ctx, config), _models_of(ctx, reward)
    found = measured(ctx.recipe, probes, who, is_chat=is_chat(ctx), progress=ctx.progress)
    if ctx.writes:
        write_atomically(ctx.run.probes, found.model_dump_json(indent=2) + "\n")
    ranks().wait()
    return found


def _chosen(ctx: RunContext, config: ProbeConfig) -> list[Probe]:
    """The probes of `config`, with the run's training rows and the scorer that it names."""
    return chosen_probes(
        config,
        directory=Path(ctx.recipe.data.directory),
        scorer=scorer_of(config, ctx.builder),
        training=training_texts(ctx),
    )


def _models_of(ctx: RunContext, reward: Path | None) -> Measured:
    """The model before and after PPO; of a run without PPO the one it has; its reward, or the one that was named."""
    run, builder = ctx.run, ctx.builder
    start, policy = builder.starting_point(), run.model("policy")
    source = _own_reward(ctx) if reward is None else _reward_of(builder, reward)
    name = "" if source is None else _name_of(ctx.recipe.reward) if reward is None else str(reward)
    if not policy.exists():
        if not Path(start.path).exists() and "sft" in ctx.recipe.stages:
            raise CheckpointError(f"{run.path} has no model yet; finish it with the command that began it")
        return Measured(
            None,
            lambda: builder.language_model(start),
            source,
            ("", start.path, name),
            (None, start.path),
            dtype=str(builder.dtype).removeprefix("torch."),
            device=str(builder.device),
        )
    return Measured(
        lambda: builder.language_model(start),
        lambda: builder.language_model(builder.source_of(policy)),
        source,
        ("SFT model" if "sft" in ctx.recipe.stages else start.path, "policy", name),
        (start.path, str(policy)),
        dtype=str(builder.dtype).removeprefix("torch."),
        device=str(builder.device),
    )


NEED_REFERENCES = (MatchRewardConfig, ChrfRewardConfig, AnswerRewardConfig, UnitTestsRewardConfig)
"""Rewards that compare with what the row of the prompt gives; the rows of probes give nothing."""


def _own_reward(ctx: RunContext) -> Callable[[], RewardSource] | None:
    """What reads the run's reward; None where there is none, or it compares with right responses that probes lack."""
    config, builder = ctx.recipe.reward, ctx.builder
    parts = [part for _, part in parts_of(config, "")]
    needs_reference = any(isinstance(part, NEED_REFERENCES) for part in parts)
    names_own = any(isinstance(part, RewardModelRewardConfig) and part.path is None for part in parts)
    is_missing = names_own and not ctx.run.model("reward_model").exists()
    if not ctx.recipe.uses_reward or needs_reference or is_missing:
        return None
    return lambda: builder.reward(config)


def _name_of(reward: RewardConfig) -> str:
    return reward.type.replace("_", " ")


def _reward_of(builder: Builder, directory: Path | None) -> Callable[[], RewardSource] | None:
    if directory is None:
        return None
    return lambda: builder.reward(RewardModelRewardConfig(path=str(directory)))


def training_texts(ctx: RunContext) -> list[str]:
    """Rows that the run's models have learnt from, as texts."""
    data = ctx.recipe.data
    if data.demonstrations is not None:
        rows = ctx.load("demonstrations", load_demonstrations).records
        texts = [f"{row.prompt.content}{row.response}" for row in rows if isinstance(row.prompt.content, str)]
        return (texts or [row.response for row in rows])[:MOST_TRAINING_ROWS]
    return [] if data.texts is None else ctx.load("texts", load_texts).records[:MOST_TRAINING_ROWS]


def is_chat(ctx: RunContext) -> bool:
    """Whether the run's prompts are conversations."""
    if ctx.recipe.data.prompts is None:
        return False
    return not isinstance(ctx.load("prompts", load_prompts).records[0].content, str)


def scorer_of(config: ProbeConfig, builder: Builder) -> Scorer | None:
    """What the user gives to score samples: a classifier, a lexicon with weights, or a list of words."""
    if config.scorer is None:
        return None
    path = Path(builder.recipe.data.directory) / config.scorer
    if not path.exists():
        raise ConfigError(
            f"scorer = {str(config.scorer)!r} is not there; expected a file of words, a lexicon, or the directory of a "
            "sequence-classification model"
        )
    if path.is_dir():
        label = config.scorer_label
        source = builder.reward(RewardModelRewardConfig(path=str(path), label=label))
        return by_reward(source, is_log_probability=label is not None)
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        has_weights = "\t" in file.readline()
    if has_weights:
        return replace(by_sentiment(path), name=path.stem)
    return by_words(read_words(path), name=path.stem, said=f"has a word of {path.name}")
