"""Who is probed, one after the other: the model before, the model after, the reward."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.probe import ProbeConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.errors import ConfigError, RewardError
from rlhfkit.machine.device import release_memory
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.language import LanguageModel
from rlhfkit.probes.choose import primary_of
from rlhfkit.probes.compare import compared
from rlhfkit.probes.lm_eval import measure_tasks
from rlhfkit.probes.probe import Measurement, Probe, Subject
from rlhfkit.rewards.source import RewardSource
from rlhfkit.rundir.probe_results import ProbeMeasure, ProbeResults, ProbeSource

__all__ = ["Measured", "Sides", "measured", "results_of", "rollout_of", "sides_of"]


@dataclass(frozen=True)
class Measured:
    """Who is measured, each read when its turn comes and let go of after it."""

    before: Callable[[], LanguageModel] | None
    after: Callable[[], LanguageModel] | None
    reward: Callable[[], RewardSource] | None
    names: tuple[str, str, str]
    """What the three are called in the results."""
    directories: tuple[str | None, str | None] = (None, None)
    """Where the two models are saved, for what reads them from there."""
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Sides:
    """What was measured."""

    before: list[Measurement]
    """Empty where nothing was before."""
    after: list[Measurement]
    """Of the model after, or the only one; then those of the reward."""


def measured(
    recipe: Recipe,
    probes: Sequence[Probe],
    who: Measured,
    *,
    is_chat: bool,
    progress: Progress,
    loop: str = "probe",
) -> ProbeResults:
    """The probes of one run, or of one model: measured, compared and tested."""
    sides = sides_of(recipe, probes, who, is_chat=is_chat, progress=progress, loop=loop)
    primary = primary_of(recipe.probe, probes)
    measures = compared(sides.before, sides.after, primary=primary, seed=derive_seed(recipe.seed, "probes"))
    return results_of(recipe, probes, who, measures)


def sides_of(
    recipe: Recipe, probes: Sequence[Probe], who: Measured, *, is_chat: bool, progress: Progress, loop: str = "probe"
) -> Sides:
    """Each probe on each side, with one model in memory at a time.

    Raises: RewardError where a reward that is asked alone fails; one beside models is left out with a warning.
    """
    config = recipe.probe
    seed = derive_seed(recipe.seed, "probes")
    subject = Subject(rollout=rollout_of(recipe), num_samples=config.num_samples, is_chat=is_chat, seed=seed)
    of_model = [each for each in probes if each.of == "model"]
    of_reward = [each for each in probes if each.of == "reward"]
    models = [side for side in (who.before, who.after) if side is not None] if of_model else []
    total = len(models) * len(of_model) + (len(of_reward) if who.reward is not None else 0)
    with progress.stage(loop, total=total, unit="probe") as stage:
        found: list[list[Measurement]] = []
        for load in models:
            model = load()
            found.append(_each(of_model, replace(subject, model=model), stage.advance))
            del model
            release_memory()
        if config.lm_eval:
            found = _with_tasks(found, who, config)
        try:
            source = who.reward() if who.reward is not None and of_reward else None
            rewarded = [] if source is None else _each(of_reward, replace(subject, reward=source), stage.advance)
        except RewardError as error:  # one that asks for columns, as of the run's own rows
            if not models:
                raise
            rewarded = []
            progress.warn(f"the reward was not probed: {error}")
    return Sides(found[0] if len(found) == 2 else [], [*(found[-1] if found else []), *rewarded])


def rollout_of(recipe: Recipe) -> RolloutConfig:
    """How probes sample."""
    tokens = recipe.probe.max_response_tokens
    return recipe.rollout.model_copy(update={"max_response_tokens": tokens, "engine": "own"})


def _with_tasks(found: list[list[Measurement]], who: Measured, config: ProbeConfig) -> list[list[Measurement]]:
    """What lm-eval says of each model beside what was found.

    Raises: ConfigError where a model has no directory.
    """
    models = [place for place, load in enumerate((who.before, who.after)) if load is not None]
    sides = found or [[] for _ in models]
    for side, place in zip(sides, models, strict=True):
        directory = who.directories[place]
        if directory is None:
            raise ConfigError("lm_eval reads models from directories, and this one is in memory; save it first")
        side += measure_tasks(directory, config.lm_eval, limit=config.max_rows, device=who.device, dtype=who.dtype)
    return sides


def results_of(
    recipe: Recipe, probes: Sequence[Probe], who: Measured, measures: Sequence[ProbeMeasure], *, num_seeds: int = 1
) -> ProbeResults:
    """The file of results."""
    known = {each.name for each in probes}
    return ProbeResults(
        probes={
            **{each.name: each.about for each in probes},
            **{measure.probe: "by lm-eval" for measure in measures if measure.probe not in known},
        },
        primary=primary_of(recipe.probe, probes),
        before=who.names[0],
        after=who.names[1],
        reward=who.names[2],
        seed=recipe.seed,
        num_seeds=num_seeds,
        num_samples=recipe.probe.num_samples,
        response_tokens=recipe.probe.max_response_tokens,
        measures=tuple(measures),
        sources=tuple(
            ProbeSource(probe=each.name, path=file.path, sha256=file.sha256, num_rows=file.num_rows)
            for each in probes
            for file in each.sources
        ),
    )


def _each(probes: Sequence[Probe], subject: Subject, on_finished: Callable[[int], None]) -> list[Measurement]:
    found = []
    for each in probes:
        found += each.measure(subject)
        on_finished(1)
    return found
