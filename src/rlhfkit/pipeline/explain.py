"""What `rlhfkit explain` does: responses of a run's policy, explained, as data and as a page."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.data import load_prompts
from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.explanation.responses import Subject, explain_responses
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.models.encoder import EncodedPrompt, Encoder
from rlhfkit.models.language import TextPolicy
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.records import Message, Prompt
from rlhfkit.report.explanation import write_explanation
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.explanations import Explanation
from rlhfkit.rundir.resume import recipe_of
from rlhfkit.training.checkpoint import Checkpoints, load_trainable, subset

__all__ = ["explain", "panel_of"]


def explain(
    directory: str | Path,
    prompts: Sequence[str | Prompt] = (),
    *,
    chat: bool = False,
    num_prompts: int = 3,
    seed: int = 0,
    progress: Progress | None = None,
) -> Explanation:
    """Why the policy of a run answers `prompts` as it does; also written to `explanation.json` and `.html` there.

    Without prompts `num_prompts` of the recipe's test prompts, or else of its prompts, are taken.
    Raises: CheckpointError where the run has no policy; ConfigError where it acts in an environment.
    """
    run, progress = RunDir(directory), progress or Progress()
    recipe = _explainable(run)
    with quiet_transformers():
        builder = Builder(recipe, run)
        notes: list[str] = []
        subject = _subject_of(builder, notes, seed=seed)
        encoder = subject.policy.language_model.encoder
        given = [_as_prompt(prompt, number, chat=chat) for number, prompt in enumerate(prompts, start=1)]
        panel = _encoded(given, encoder, builder.recipe) if given else panel_of(builder, encoder, num_prompts)
        with progress.stage("explain", total=len(panel), unit="prompt") as stage:
            explained = explain_responses(subject, panel, on_explained=lambda num: stage.advance(num, ""))
    explanation = Explanation(
        policy=str(run.model("policy")),
        reference=builder.starting_point().path,
        reward_name=subject.reward_name,
        temperature=subject.rollout.temperature,
        notes=tuple(notes),
        prompts=tuple(explained),
    )
    write_explanation(run, explanation)
    return explanation


def _explainable(run: RunDir) -> Recipe:
    """The recipe of a run whose policy answers single prompts."""
    recipe = recipe_of(run)
    if isinstance(recipe, ControlRecipe):
        raise ConfigError(
            f"{run.path} is a run of the control task {recipe.env.id}, whose policy writes no text; what it "
            f"does shows: rlhfkit evaluate {run.path}"
        )
    if recipe.env is not None:
        raise ConfigError(
            f"{run.path} acts in an environment (env.type = {recipe.env.type!r}); explained are responses to single "
            "prompts, which get one score"
        )
    if not run.model("policy").exists():
        raise CheckpointError(f"{run.path} has no policy yet; finish it with the command that began it")
    return recipe


def _subject_of(builder: Builder, notes: list[str], *, seed: int) -> Subject:
    """Policy, critic, reference and reward of a finished run."""
    recipe, run = builder.recipe, builder.run
    policy = builder.language_model(builder.source_of(run.model("policy")))
    finished = run.finished_stages().get("ppo", {})
    if recipe.ppo.constraints:
        notes.append("scores after penalties are without what the constraints of PPO cost")
    kl_coef = float(finished.get("kl_coef", recipe.ppo.kl.coef))
    return Subject(
        policy=TextPolicy(policy, _critic_of(builder, notes), temperature=recipe.rollout.temperature),
        reference=builder.language_model(builder.starting_point()),
        reward=builder.reward(recipe.reward),
        reward_name=recipe.reward.type.replace("_", " "),
        rollout=recipe.rollout,
        ppo=recipe.ppo,
        kl_coef=kl_coef,
        seed=derive_seed(recipe.seed, "explain", seed),
    )


def _critic_of(builder: Builder, notes: list[str]) -> ValueHead | ValueNetwork | None:
    """The critic of the run's last checkpoint, if there is one."""
    if builder.recipe.ppo.estimator != "gae":
        notes.append(f"{builder.recipe.ppo.estimator} has no critic, and its advantages need other responses")
        return None
    warned: list[str] = []
    try:
        checkpoint = Checkpoints(builder.run.checkpoints / "ppo", warn=warned.append).load_newest()
    except CheckpointError as error:
        warned.append(str(error))
        checkpoint = None
    if checkpoint is None:
        notes.append("the run has no checkpoint of PPO any more, so there are no values, advantages and returns")
        return None
    built = builder.policy()
    load_trainable(built, subset("policy", checkpoint.tensors))
    facts = builder.run.finished_stages().get("ppo", {})
    if facts.get("stopped") or facts.get("kept"):
        why = "was stopped" if facts.get("stopped") else "ended with its best weights"
        notes.append(
            f"values are by the critic of iteration {checkpoint.iteration}; PPO {why}, and the policy may be an "
            "earlier one"
        )
    return built.critic


def panel_of(builder: Builder, encoder: Encoder, num: int) -> list[EncodedPrompt]:
    """A fixed few of the recipe's test prompts, or else of its prompts, as the evaluation draws them."""
    recipe = builder.recipe
    table = "test_prompts" if recipe.data.test_prompts is not None else "prompts"
    records = Inputs(recipe, builder).load(table, load_prompts).records
    order = shuffled(len(records), derive_seed(recipe.evaluation_seed, "test prompts"))
    return _encoded([records[index] for index in order[:num]], encoder, recipe)


def _encoded(prompts: Sequence[Prompt], encoder: Encoder, recipe: Recipe) -> list[EncodedPrompt]:
    return [encoder.encode(prompt, max_tokens=recipe.data.prompt_limit) for prompt in prompts]


def _as_prompt(given: str | Prompt, number: int, *, chat: bool) -> Prompt:
    prompt = given if isinstance(given, Prompt) else Prompt(given, origin=f"prompt {number}")
    if chat and isinstance(prompt.content, str):
        return replace(prompt, content=(Message("user", prompt.content),))
    return prompt
