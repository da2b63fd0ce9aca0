"""What a study has decided before its first trial, and keeps: budget, knobs, rungs, evaluations, seeds, trials."""

import json
from dataclasses import dataclass
from typing import Literal

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.tune import TuneConfig
from rlhfkit.data.grammar import NUM_WORLDS
from rlhfkit.errors import ConfigError, ModelError
from rlhfkit.formulas.shapes import shape_of_recipe
from rlhfkit.training.rates import CONTROL_RATE, auto_learning_rate
from rlhfkit.tuning.agenda import DEFAULT, rungs_of
from rlhfkit.tuning.knobs import AnyRecipe, Knob, Params, kl_budget, overrides, settings_of, space_of, usual_params

__all__ = ["Design", "Job", "design_of", "job_overrides"]

STOPPING = ("zero_advantages", "nothing_moves", "grad_norm_exploding", "value_loss_growing")
STOPPING_TEXT = (
    "kl_exploding",
    "entropy_collapse",
    "responses_identical",
    "length_runaway",
    "length_collapse",
    "eos_lost",
)
"""Rules of the diagnosis that end a trial: what they name does not end by itself."""
BRAKE = 1.5
"""A run stops beyond so many times the KL budget: it will not come back within."""
EVALUATIONS = 20
"""In a whole run, where the recipe does not say."""
FIRST_OF_CONFIRMATION, FIRST_OF_TEST = 100, 200
"""Seeds of the search begin with the recipe's, those of the finalists and of the test come so many after it."""
SEED_STEP = NUM_WORLDS
"""Between two seeds: synthetic data stay about the same things, as files stay what they are."""


@dataclass(frozen=True)
class Job:
    """A run that is to be brought to some iteration, or to its end."""

    number: int
    """Of the trial whose settings it has."""
    seed: int
    purpose: str
    """"search", "confirmation" or "test"."""
    params: Params
    until: int | None = None
    """Iterations (control: steps) after which it pauses; None: to its end."""

    @property
    def name(self) -> str:
        """Of its run directory."""
        trial = f"trial-{self.number:03d}"
        return trial if self.purpose == "search" else f"{trial}-{self.purpose}-seed-{self.seed}"


@dataclass(frozen=True)
class Design:
    """What is fixed."""

    recipe: AnyRecipe
    knobs: tuple[Knob, ...]
    kl: float | None
    total: int
    """Iterations of a whole run; of a control task, steps."""
    every: int
    """Between two evaluations."""
    rungs: tuple[int, ...]
    metric: str
    """"judge", "score" or "return"."""

    @property
    def tune(self) -> TuneConfig:
        """The section."""
        return self.recipe.tune

    @property
    def is_control(self) -> bool:
        """Whether it is a control task."""
        return isinstance(self.recipe, ControlRecipe)

    @property
    def unit(self) -> Literal["iterations", "steps"]:
        """What lengths are counted in."""
        return "steps" if self.is_control else "iterations"

    @property
    def stages_before(self) -> list[str]:
        """What all runs share, and is made once."""
        stages: list[str] = list(self.recipe.stages)
        return [] if self.is_control else stages[: stages.index("ppo")]

    @property
    def default_params(self) -> Params:
        """What the recipe says."""
        return {knob.name: knob.default for knob in self.knobs if knob.default is not None}

    @property
    def usual_params(self) -> Params | None:
        """What the second trial has: usual settings, by the model's size. None where the recipe has just these."""
        usual = usual_params(self.knobs, self.recipe, rates_of(self.recipe))
        is_whole = len(usual) == len(self.knobs)
        return usual if is_whole and usual != self.default_params else None

    def seed_of_trial(self, number: int) -> int:
        """Trials take the seeds of the search in turn; the default has the recipe's own."""
        return self.recipe.seed + number % self.tune.num_seeds * SEED_STEP

    @property
    def confirmation_seeds(self) -> range:
        """Of the finalists."""
        return self._seeds(FIRST_OF_CONFIRMATION, self.tune.confirmation_seeds)

    @property
    def test_seeds(self) -> range:
        """Of winner and default."""
        return self._seeds(FIRST_OF_TEST, self.tune.test_seeds)

    def _seeds(self, after: int, num: int) -> range:
        first = self.recipe.seed + after * SEED_STEP
        return range(first, first + num * SEED_STEP, SEED_STEP)

    def with_trials(self, num: int) -> "Design":
        """The same with another number of trials."""
        tune = self.tune.model_copy(update={"trials": num})
        return design_of(self.recipe.model_copy(update={"tune": tune}))

    def until_iteration(self, job: Job) -> int | None:
        """Where `rlhfkit run --until` pauses."""
        if job.until is None or job.until >= self.total:
            return None
        if not isinstance(self.recipe, ControlRecipe):
            return job.until
        return -(-job.until // steps_per_iteration(self.recipe, job.params))


def design_of(recipe: AnyRecipe) -> Design:
    """What a search of this recipe is.

    Raises: ConfigError where the recipe has no PPO, goes in rounds, or its space makes no sense.
    """
    if isinstance(recipe, Recipe):
        if "ppo" not in recipe.stages:
            raise ConfigError(f'recipe {recipe.name} has no stage "ppo", whose settings are searched; add it')
        if recipe.rounds > 1:
            raise ConfigError(f"recipe {recipe.name} goes in {recipe.rounds} rounds; search with rounds=1")
    tune, kl = recipe.tune, kl_budget(recipe)
    total = recipe.ppo.env_steps if isinstance(recipe, ControlRecipe) else recipe.ppo.iterations
    least = min(tune.min_rung_iterations, total)
    if isinstance(recipe, ControlRecipe):
        least = min(total, tune.min_rung_iterations * recipe.ppo.num_envs * recipe.ppo.rollout_steps)
    every = _every(recipe, total, least)
    rungs = rungs_of(
        total,
        every=every,
        least=least,
        reduction=tune.reduction,
        planned=tune.trials,
        finalists=tune.finalists,
    )
    return Design(
        recipe=recipe,
        knobs=space_of(recipe, rates_of(recipe)),
        kl=kl,
        total=total,
        every=every,
        rungs=rungs,
        metric="return" if isinstance(recipe, ControlRecipe) else _metric(recipe),
    )


def _every(recipe: AnyRecipe, total: int, least: int) -> int:
    """Iterations (steps) between two evaluations."""
    wanted = recipe.tune.every_iterations or max(1, total // EVALUATIONS)
    if isinstance(recipe, Recipe) and recipe.tune.every_iterations is None and recipe.evaluation.every_iterations:
        wanted = recipe.evaluation.every_iterations
    return max(1, min(wanted, least // 2))


def _metric(recipe: Recipe) -> str:
    """What is maximised: the judge's score, which PPO does not see, where there is a judge."""
    return "judge" if recipe.evaluation.judge is not None or "judge" in recipe.stages else "score"


def rates_of(recipe: AnyRecipe) -> tuple[float, float]:
    """Learning rates of policy and critic that go by the model's size.

    Raises: ConfigError where the size is not known.
    """
    if isinstance(recipe, ControlRecipe):
        return CONTROL_RATE, CONTROL_RATE
    try:
        shape = shape_of_recipe(recipe.model)
    except (ConfigError, ModelError) as error:
        raise ConfigError(f"a search goes by the size of the model, which is not known here: {error}") from error
    lora = recipe.model.lora is not None
    return (
        auto_learning_rate("policy", num_weights=shape.parameters, lora=lora),
        auto_learning_rate("value", num_weights=shape.trunk_parameters + shape.width + 1, lora=lora),
    )


def steps_per_iteration(recipe: ControlRecipe, params: Params) -> int:
    """Steps of a rollout with these settings."""
    settings = settings_of({name: params[name] for name in params.keys() & {"rollout_steps"}}, recipe)
    return int(settings.get("ppo.rollout_steps", recipe.ppo.rollout_steps)) * recipe.ppo.num_envs


def job_overrides(design: Design, job: Job) -> list[str]:
    """What makes the recipe that of the job, as the command line takes it.

    The default keeps all that it says, and is never ended by a rule: it is what a user would have had.
    """
    recipe, is_default = design.recipe, job.number == DEFAULT
    settings = {} if is_default else settings_of(job.params, recipe)
    changed = overrides(settings)
    rules = STOPPING if design.is_control else STOPPING + STOPPING_TEXT
    changed += [f"ppo.watch.{rule}=stop" for rule in rules if not is_default]
    changed.append(f"seed={job.seed}")
    if isinstance(recipe, ControlRecipe):
        return [*changed, "num_seeds=1", "evaluation.record=false"]
    is_test, has_judge = job.purpose == "test", design.metric == "judge"
    stages = [*design.stages_before, "ppo", *(["evaluate"] if is_test and has_judge else [])]
    # The stage `evaluate` takes other prompts than the evaluations on the way, but it needs a judge.
    prompts = recipe.evaluation_seed + (is_test and not has_judge)
    assert design.kl is not None
    return [
        *changed,
        f"stages={json.dumps(stages)}",
        f"evaluation.every_iterations={design.every}",
        f"evaluation.seed={prompts}",
        "evaluation.num_explained=0",
        "ppo.end_with=best",
        f"ppo.watch.best_metric=evaluation/{design.metric}",
        f"ppo.watch.best_max_ref_kl={design.kl:g}",
        f"ppo.max_ref_kl={BRAKE * design.kl:g}",
    ]
