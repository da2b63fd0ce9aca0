"""A short try of every stage of a recipe: how long each will take on this machine, and how much memory it will need.

The stages run for real, in a directory that is thrown away, each on a small part of its work: a few updates, three
iterations, some dozens of responses. What a loop took for its part tells what it will take for the whole; what a stage
does around its loops, as reading weights, is done in full and counted once.
"""

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.evaluation import num_evaluations
from rlhfkit.config.feedback import PeopleConfig, PreferencesConfig
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.config.probe import ProbeConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import STAGE_SPECS, Stage
from rlhfkit.config.tracking import TrackingConfig
from rlhfkit.config.training import LoopConfig, SupervisedConfig
from rlhfkit.data import load_prompts
from rlhfkit.errors import ConfigError
from rlhfkit.evaluation.on_the_way import EvaluationOnTheWay
from rlhfkit.machine.device import available_bytes
from rlhfkit.machine.dtype import DtypeChoice, bfloat16_saves
from rlhfkit.machine.progress import Progress, StageProgress
from rlhfkit.models.language import LanguageModel
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.control import ControlPipeline
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.pipeline.opening import open_run
from rlhfkit.pipeline.run import run_stage
from rlhfkit.pipeline.workload import Workload
from rlhfkit.probes.choose import chosen_probes
from rlhfkit.probes.on_the_way import ProbesOnTheWay
from rlhfkit.records import Preference
from rlhfkit.rollout.engine import Engine, Sample
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.rundir.atomic import write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.rundir.resume import prepare
from rlhfkit.training.memory import MemoryPlan
from rlhfkit.training.observers import Observer
from rlhfkit.training.ppo import PpoTrainer
from rlhfkit.training.sft import LearntText
from rlhfkit.training.supervised import num_supervised_updates, num_validations, split_validation
from rlhfkit.wording import counted

__all__ = ["StageForecast", "rehearse"]

T = TypeVar("T")
Supervised = TypeVar("Supervised", bound=LoopConfig)

UPDATES, ITERATIONS, CONTROL_ITERATIONS = 4, 3, 20
EPISODES, RESPONSES, PAIRS, PROBE_ROWS = 64, 64, 32, 4
FORWARD_SHARE = 1 / 3
"""Arithmetic of a forward pass, in that of an update, whose backward pass has two of its size."""


@dataclass(frozen=True)
class StageForecast:
    """What a stage will take."""

    stage: str
    seconds: float
    work: str
    """What most of the time is for, as "40 iterations of 9.8 s"."""
    peak_bytes: int | None = None
    """Most memory that the process will hold; None for a stage that trains no language model."""


# ── measuring ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Loop:
    """One loop of a stage, as its progress line would tell it."""

    name: str
    unit: str
    started: float
    marks: list[tuple[int, float]] = field(default_factory=list)
    """(units done so far, when)."""
    ended: float = 0.0

    @property
    def seconds(self) -> float:
        """What the part took."""
        return self.ended - self.started

    @property
    def pace(self) -> float:
        """Seconds of a unit. The first update or iteration, which warms up, is not counted."""
        (first, since), (done, until) = self.marks[0], self.marks[-1]
        if self.unit in ("update", "iteration") and done > first:
            return (until - since) / (done - first)
        return self.seconds / done

    def seconds_for(self, units: float) -> float:
        """What `units` of it would take."""
        return self.seconds + self.pace * (units - self.marks[-1][0]) if self.marks else self.seconds


class Stopwatch(Progress):
    """Says nothing, and keeps how long each loop took."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.loops: list[Loop] = []
        self.set_aside = 0.0
        """Seconds that are no part of any loop."""

    def now(self) -> float:
        """Seconds by a clock that stands still while something is set aside."""
        return time.monotonic() - self.set_aside

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str, completed: int = 0) -> Iterator[StageProgress]:
        """Time a loop."""
        loop = Loop(name, unit, self.now())
        self.loops.append(loop)

        def report(stage: StageProgress) -> None:
            loop.marks.append((stage.completed - completed, self.now()))

        yield StageProgress(total, unit, completed, time.monotonic, report)
        loop.ended = self.now()


@dataclass
class Timed:
    """An observer of PPO whose looks are no part of the loop: the stopwatch stands still meanwhile."""

    observer: Observer
    stopwatch: Stopwatch
    times: float
    """As many times what it did is what the planned one does."""
    seconds: dict[int, float] = field(default_factory=dict)
    """Iteration → what it took there."""

    def before_update(self, trainer: PpoTrainer, experience: Experience) -> Mapping[str, float]:
        """What the observer tells."""
        with self._timed(trainer.iteration):
            return self.observer.before_update(trainer, experience)

    def after_update(self, trainer: PpoTrainer, experience: Experience) -> Mapping[str, float]:
        """What the observer tells."""
        with self._timed(trainer.iteration):
            return self.observer.after_update(trainer, experience)

    @contextmanager
    def _timed(self, iteration: int) -> Iterator[None]:
        start = time.monotonic()
        yield
        taken = time.monotonic() - start
        self.seconds[iteration] = self.seconds.get(iteration, 0.0) + taken
        self.stopwatch.set_aside += taken

    @property
    def pace(self) -> float:
        """Seconds of one evaluation of the planned recipe: the last one's, for the first warms up."""
        return self.times * self.seconds[max(self.seconds)]


def _forecast(
    stage: str,
    seconds: float,
    loops: Sequence[Loop],
    whole: dict[str, float],
    peak: int | None,
    *,
    looks: tuple[int, float] = (0, 0.0),
) -> StageForecast:
    """From what a part of a stage took; `whole` has the units of each loop that was cut short, by its name.

    `looks`: how many evaluations on the way there are, and the seconds of one, of which nothing is in `seconds`.
    """
    around = seconds - sum(loop.seconds for loop in loops)
    by_loop = {loop.name: loop.seconds_for(whole[loop.name]) for loop in loops if loop.name in whole and loop.marks}
    uncut = sum(loop.seconds for loop in loops if loop.name not in by_loop)
    work = ""
    if by_loop:
        main = next(loop for loop in loops if loop.name == max(by_loop, key=by_loop.__getitem__))
        num = round(whole[main.name])
        work = f"{counted(num, main.unit)} of {_short(main.pace)}"
    if looks[0]:
        work += f", {counted(looks[0], 'evaluation')} of {_short(looks[1])} on the way"
    return StageForecast(stage, around + uncut + sum(by_loop.values()) + looks[0] * looks[1], work, peak)


def _short(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


# ── the rehearsal of a language recipe ───────────────────────────────────────────────────────────────────────────────


@dataclass
class Rehearsal(Workload):
    """A little of each stage of `planned`; what it sees on the way tells what the whole will take."""

    planned: Recipe
    finished: Collection[str]
    """Stages that the run itself has done already."""
    whole: dict[str, float] = field(default_factory=dict)
    """Loop → how many units it has in the planned recipe."""
    peaks: dict[str, int] = field(default_factory=dict)
    shortened: "Shortened | None" = None
    """What samples in PPO, where the rehearsed SFT is not what gives responses their length."""
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    timed: list[Timed] = field(default_factory=list)
    """What looks at PPO while it runs."""

    def recipe(self, recipe: Recipe) -> Recipe:
        """After SFT, with responses as long as SFT teaches them to be."""
        if self.shortened is None:
            return recipe
        rollout = recipe.rollout.model_copy(update={"max_response_tokens": self.shortened.mean_tokens})
        return recipe.model_copy(update={"rollout": rollout})

    def recipe_in_memory(self, recipe: Recipe) -> Recipe:
        """The planned one, whose responses are of full length."""
        return self.planned

    def lesson(
        self, stage: Stage, rows: Sequence[T], config: Supervised, *, minibatch_rows: int
    ) -> tuple[Sequence[T], Supervised]:
        """Rows for a few updates, spread over all of them."""
        num = len(rows)
        if stage == "reward_model" and "preferences" in self.planned.stages:
            num = max(num, self.planned.preferences.num_pairs)  # of which the rehearsal has sampled a few
        share = config.validation_share if isinstance(config, SupervisedConfig) else 0.0
        train, held_out = split_validation(num, share, seed=0)
        updates = num_supervised_updates(len(train), minibatch_rows, config.epochs)
        # A validation is a forward pass over all held-out rows.
        validation = FORWARD_SHARE * len(held_out) / minibatch_rows
        self.whole[stage] = updates + num_validations(updates) * validation
        if stage == "sft":
            self.shortened = self._as_demonstrated(rows)
        step = max(1, len(rows) // (UPDATES * minibatch_rows))
        part = rows[::step][: UPDATES * minibatch_rows]
        epochs = math.ceil(UPDATES / math.ceil(len(part) / minibatch_rows))
        return part, config.model_copy(update={"epochs": epochs, **({"validation_share": 0.0} if share else {})})

    def _as_demonstrated(self, rows: Sequence[object]) -> "Shortened":
        """After the whole of SFT responses are as long as what it learns from, which a few updates do not teach."""
        most = self.planned.rollout.max_response_tokens
        lengths = [min(len(row.ids) - row.learnt_from, most) for row in rows if isinstance(row, LearntText)]
        return Shortened(self.planned.rollout, lengths)

    def test_pairs(self, pairs: list[Preference]) -> list[Preference]:
        """A few of them."""
        made = "preferences" in self.planned.stages and "preferences" not in self.finished
        self.whole["measure"] = self.planned.preferences.num_test_pairs if made else len(pairs)
        return pairs[:PAIRS]

    def engine(self, engine: Engine | None, builder: Builder) -> Engine | None:
        """The recipe's own engine, or responses that are cut to the lengths that SFT teaches."""
        return engine or self.shortened

    def observers(self, observers: list[Observer]) -> list[Observer]:
        """The same, with what each takes for the rows of the planned recipe kept apart."""
        times = {EvaluationOnTheWay: _evaluated_times(self.planned), ProbesOnTheWay: _probed_times(self.planned)}
        self.timed = [Timed(each, self.stopwatch, times.get(type(each), 1.0)) for each in observers]
        return list(self.timed)

    @property
    def looks(self) -> tuple[int, float]:
        """How many evaluations on the way there are in the planned recipe, and the seconds of one."""
        every, iterations = self.planned.evaluation.every_iterations, self.planned.ppo.iterations
        return num_evaluations(every=every, iterations=iterations), sum(each.pace for each in self.timed)

    def check_memory(self, stage: Stage, plan: MemoryPlan, microbatch_tokens: int, builder: Builder) -> None:
        """Raises: ConfigError where memory is too small for what the recipe wants."""
        self.peaks[stage] = plan.peak(microbatch_tokens)
        needed, free = self.peaks[stage] - plan.held, available_bytes(builder.device)
        if needed > free:
            raise ConfigError(
                f"{stage} needs {self.peaks[stage] / 2**30:.1f} GiB, {needed / 2**30:.1f} GiB more than it holds after "
                f"reading its models, and {free / 2**30:.1f} GiB are free; set {STAGE_SPECS[stage].sections[0]}."
                'microbatch_tokens = "auto", which takes what fits, or model.lora, '
                f"{_smaller_type(builder)}a smaller model"
            )


@dataclass(frozen=True)
class Shortened:
    """The own sampler, as an engine whose responses are cut to given lengths."""

    rollout: RolloutConfig
    lengths: Sequence[int]
    importance_cap: float = 2.0

    @property
    def mean_tokens(self) -> int:
        """Mean length, in whole tokens."""
        return max(1, round(sum(self.lengths) / len(self.lengths)))

    def loaded(self, model: LanguageModel) -> Sample:
        """What samples."""

        def sample(
            model: LanguageModel,
            prompts: Sequence[Sequence[int]],
            config: RolloutConfig,
            *,
            seeds: Sequence[int] | None,
            on_finished: Callable[[int], None] | None = None,
            offsets: Sequence[int] | None = None,
        ) -> list[Response]:
            responses = generate(model, prompts, self.rollout, seeds=seeds, on_finished=on_finished, offsets=offsets)
            drawn = [self.lengths[seed % len(self.lengths)] for seed in seeds or range(len(prompts))]
            return [_cut_response(response, length) for response, length in zip(responses, drawn, strict=True)]

        return sample


def _smaller_type(builder: Builder) -> str:
    """An advice to compute in bfloat16, where that is none that costs many times the time."""
    return 'model.dtype = "bfloat16", ' if builder.dtype.itemsize > 2 and bfloat16_saves(builder.device) else ""


def _cut_response(response: Response, length: int) -> Response:
    if len(response.ids) <= length:
        return response
    return Response(response.ids[:length], response.logprobs[:length], "length")


def _cut(recipe: Recipe) -> Recipe:
    """The recipe with a little of everything."""
    ppo, preferences, evaluation = recipe.ppo, recipe.preferences, recipe.evaluation
    cut_ppo = {
        "iterations": ITERATIONS,
        "rollout_episodes": _few_episodes(ppo),
        "min_eos_rate": 0.0,
        "value": ppo.value.model_copy(update={"warmup_iterations": 0}),  # they cost less than the others
    }
    cut_preferences = {
        "num_pairs": min(preferences.num_pairs, PAIRS),
        "num_test_pairs": min(preferences.num_test_pairs, PAIRS // 2),
        "num_candidates": 0,
        "database": None,
        "round": 1,
    }
    num_normalized = min(recipe.reward_model.normalization_responses, RESPONSES)
    return recipe.model_copy(
        update={
            "rounds": 1,
            "tracking": TrackingConfig(),
            "ppo": ppo.model_copy(update=cut_ppo),
            # Whole responses: in a few iterations what is cut at first would only be waited for.
            "rollout": recipe.rollout.model_copy(update={"partial_tokens": None}),
            "preferences": preferences.model_copy(update=cut_preferences),
            "reward_model": recipe.reward_model.model_copy(update={"normalization_responses": num_normalized}),
            "evaluation": evaluation.model_copy(
                update={
                    "num_prompts": min(evaluation.num_prompts, RESPONSES),
                    "num_prompts_on_the_way": min(evaluation.num_prompts_on_the_way, RESPONSES),
                    "every_iterations": min(evaluation.every_iterations, 1) * ITERATIONS,  # in the first, and the last
                }
            ),
            "probe": _cut_probe(recipe.probe),
        }
    )


def _few_episodes(ppo: PpoConfig) -> int:
    """Whole minibatches and whole groups."""
    granule = math.lcm(ppo.minibatch_episodes, ppo.group_size)
    return min(ppo.rollout_episodes, max(granule, EPISODES // granule * granule))


def _units(planned: Recipe, cut: Recipe, inputs: Inputs) -> dict[str, float]:
    """Loop → its units in the planned recipe, where these do not depend on what a stage reads."""
    num = planned.evaluation.num_prompts
    if planned.uses_prompts and "evaluate" in planned.stages:
        num = min(num, len(inputs.load("test_prompts", load_prompts).records))
    return {
        "ppo": planned.ppo.iterations * planned.ppo.rollout_episodes / cut.ppo.rollout_episodes,
        "normalise": planned.reward_model.normalization_responses,
        "pairs": 2 * _sampled_pairs(planned.preferences),
        **dict.fromkeys(
            ("evaluate", "classification", "translation", "answer"), num * (2 if planned.ppo.ema is None else 3)
        ),
        **({"probe": _probe_units(planned)} if "probe" in planned.stages else {}),
    }


def _cut_probe(probe: ProbeConfig) -> ProbeConfig:
    return probe.model_copy(update={"max_rows": PROBE_ROWS})


def _probe_units(planned: Recipe) -> float:
    """Probes of two models and a reward, as many times as the planned ones have more rows."""
    probes = chosen_probes(planned.probe, directory=Path(planned.data.directory), training=["-"])
    return _rows_more(planned, planned.probe) * sum(2 if probe.of == "model" else 1 for probe in probes)


def _rows_more(planned: Recipe, config: ProbeConfig) -> float:
    """As many times the rows of the rehearsed probes are those of the planned ones."""
    directory = Path(planned.data.directory)
    whole, part = (
        sum(probe.num_rows for probe in chosen_probes(each, directory=directory, training=["-"]))
        for each in (config, _cut_probe(config))
    )
    return whole / part


def _probed_times(planned: Recipe) -> float:
    names = planned.evaluation.probes
    return _rows_more(planned, planned.probe.model_copy(update={"names": names, "primary": ""})) if names else 1.0


def _evaluated_times(planned: Recipe) -> float:
    num = planned.evaluation.num_prompts_on_the_way
    return num / min(num, RESPONSES)


def _sampled_pairs(preferences: PreferencesConfig) -> int:
    return max(preferences.num_pairs, preferences.num_candidates) + preferences.num_test_pairs


def rehearse(
    loaded: LoadedRecipe, run: RunDir, stage_room: Path, *, dtype: DtypeChoice | None = None
) -> Iterator[StageForecast]:
    """A forecast for each stage that `run` has not finished, tried in the empty directory `stage_room`.

    `dtype` is the type that the run will compute in; by default it is chosen as the run would choose it.
    It ends early at a stage that waits for people.
    Raises: RlhfkitError where a stage cannot run as the recipe has it.
    """
    if isinstance(loaded.recipe, ControlRecipe):
        yield _rehearse_control(loaded, loaded.recipe, stage_room)
        return
    planned, room = loaded.recipe, RunDir(stage_room)
    cut, finished = _cut(planned), run.finished_stages()
    cut_loaded = LoadedRecipe(cut, loaded.text, loaded.overrides)
    prepare(room, cut_loaded, fresh=False)
    _link_outputs(run, room, finished)
    rehearsal = Rehearsal(planned, finished)
    dtype = dtype or Builder(planned, run).dtype_choice
    with open_run(cut_loaded, stage_room, progress=rehearsal.stopwatch, dtype=dtype, workload=rehearsal) as ctx:
        rehearsal.whole |= _units(planned, cut, ctx.inputs)
        for stage in planned.stages:
            if stage in finished:
                continue
            if stage == "preferences" and isinstance(planned.preferences.annotators, PeopleConfig):
                return
            yield _forecast_of(ctx, stage, rehearsal)


def _forecast_of(ctx: RunContext, stage: Stage, rehearsal: Rehearsal) -> StageForecast:
    """Do a part of the stage, and say what the whole will take."""
    stopwatch = rehearsal.stopwatch
    before, start = len(stopwatch.loops), stopwatch.now()
    run_stage(ctx, stage)
    seconds, loops, peak = stopwatch.now() - start, stopwatch.loops[before:], rehearsal.peaks.get(stage)
    return _forecast(
        stage, seconds, loops, rehearsal.whole, peak, looks=rehearsal.looks if stage == "ppo" else (0, 0.0)
    )


def _link_outputs(run: RunDir, room: RunDir, finished: dict[str, dict[str, object]]) -> None:
    for spec in STAGE_SPECS.values():
        for name in spec.writes if spec.name in finished else ():
            if (run.path / name).exists():
                os.symlink((run.path / name).absolute(), room.path / name)
    write_json(room.stages, finished)


def _rehearse_control(loaded: LoadedRecipe, planned: ControlRecipe, stage_room: Path) -> StageForecast:
    """A few iterations of one seed. Its short episodes say little of the evaluation, which is small beside them."""
    ppo, num_episodes = planned.ppo, min(planned.evaluation.num_episodes, 10)
    iterations = min(ppo.iterations, CONTROL_ITERATIONS)
    cut = planned.model_copy(
        update={
            "num_seeds": 1,
            "ppo": ppo.model_copy(update={"env_steps": iterations * ppo.num_envs * ppo.rollout_steps}),
            "evaluation": planned.evaluation.model_copy(update={"num_episodes": num_episodes, "record": False}),
        }
    )
    room, stopwatch, threads = RunDir(stage_room), Stopwatch(), torch.get_num_threads()
    prepare(room, LoadedRecipe(cut, loaded.text, loaded.overrides), fresh=False)
    start = time.monotonic()
    try:
        with RunLog(room) as log:
            ControlPipeline(cut, room, log, stopwatch).do()
    finally:
        torch.set_num_threads(threads)  # the pipeline takes one
    training, evaluation = stopwatch.loops[0].name, planned.evaluation.num_episodes / num_episodes
    whole = {training: planned.num_seeds * ppo.iterations, "evaluate": planned.num_seeds * evaluation}
    return _forecast("control", time.monotonic() - start, stopwatch.loops, whole, None)
