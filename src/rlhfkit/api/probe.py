"""`probe`: what else a model or a reward does, or what else changed."""

from collections.abc import Sequence
from pathlib import Path

from rlhfkit.api.given import HasModel, RewardLike, reward_of, trained_model
from rlhfkit.config.probe import ProbeConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.distributed.joining import join_for_good
from rlhfkit.errors import ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.models.language import LanguageModel
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.probe import builder_of, probe_measured, probe_run
from rlhfkit.pipeline.probe_sides import Measured
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.probe_results import ProbeResults
from rlhfkit.rundir.resume import recipe_of

__all__ = ["probe"]


def probe(
    model: str | Path | HasModel | None = None,
    names: Sequence[str] = (),
    *,
    before: str | Path | HasModel | None = None,
    reward: RewardLike | None = None,
    settings: ProbeConfig | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> ProbeResults:
    """Bias, safety and leakage of a model, or of two compared; and what a reward pays for.

    Example:
        >>> from rlhfkit import probe
        >>> def longer(prompts, responses):
        ...     return [len(response.split()) / 10 for response in responses]
        >>> found = probe(reward=longer, names=["reward_edits"])
        >>> [measure.name for measure in found.measures if measure.reading == "found"]
        ['length']

    Args:
        model: a model's directory or hub id, a trainer, or a run's directory: its models before and after PPO.
        names: probes by name, and files of rows; by default all that ship, or those of the run.
        before: the model before, where `model` is the one after.
        reward: what to ask what it pays for, as for `PPOTrainer`; by default a run's own.
        settings: numbers of rows and samples, and a scorer.
        seed: all randomness follows from it.
        progress: what shows bars and warnings.

    Raises: ConfigError, DataError, ModelError, RewardError where something that was given will not do.
    """
    join_for_good()
    progress = progress or Progress(quiet=True)
    if isinstance(model, str | Path) and RunDir(model).is_run():
        return _of_run(Path(model), names, before, reward, settings)
    config = settings or ProbeConfig()
    if names:
        config = ProbeConfig(**{**config.model_dump(), "names": tuple(names)})
    if model is None and before is not None:
        raise ConfigError("before = … needs the model after it; give that as the first argument")
    if model is None and reward is None:
        raise ConfigError("neither a model nor a reward was given, so there is nothing to probe; give one of them")
    builder = builder_of(config, str(model), seed=seed)
    section, source = (None, None) if reward is None else reward_of(reward)
    rewarded = None if section is None else (lambda: source or builder.reward(section))
    who = Measured(
        None if before is None else (lambda: _loaded("before", before, builder)),
        None if model is None else (lambda: _loaded("model", model, builder)),
        rewarded,
        ("before" if before is not None else "", "after" if before is not None else "model", "reward"),
    )
    return probe_measured(builder, who, is_chat=False, progress=progress)


def _loaded(argument: str, given: str | Path | HasModel, builder: Builder) -> LanguageModel:
    return trained_model(argument, given) or builder.language_model(builder.source_of(Path(str(given))))


def _of_run(
    run: Path,
    names: Sequence[str],
    before: str | Path | HasModel | None,
    reward: RewardLike | None,
    settings: ProbeConfig | None,
) -> ProbeResults:
    if before is not None or not isinstance(reward, str | Path | None):
        raise ConfigError(f"{run} is a run, which has its own models; leave before out, and give a reward by directory")
    recipe = recipe_of(RunDir(run))
    recorded = settings or (recipe.probe if isinstance(recipe, Recipe) else ProbeConfig())
    config = ProbeConfig(**{**recorded.model_dump(), "names": tuple(names) or recorded.names})
    return probe_run(run, config, reward_model=None if reward is None else Path(reward))
