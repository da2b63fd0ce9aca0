"""What looks at PPO while it runs, and at what is compared with it, as the recipe says."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypedDict

from rlhfkit.config.recipe import Recipe
from rlhfkit.config.stages import Stage
from rlhfkit.data import load_prompts
from rlhfkit.distributed.ranks import ranks
from rlhfkit.evaluation.on_the_way import Answers, EvaluationOnTheWay, answers_in_env, answers_to_prompts
from rlhfkit.explanation.on_the_way import PanelOnTheWay
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.models.encoder import EncodedPrompt, Encoder
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.pipeline.constraints import constraints_of
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.probe import is_chat, scorer_of, training_texts
from rlhfkit.pipeline.probe_sides import rollout_of
from rlhfkit.probes.choose import chosen_probes
from rlhfkit.probes.on_the_way import ProbesOnTheWay
from rlhfkit.probes.probe import Probe, Subject
from rlhfkit.rewards.source import RewardSource
from rlhfkit.rollout.constraints import Constraint
from rlhfkit.rollout.engine import GatheredSampler, Reference, Sample, sample_of
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.observers import Observer

__all__ = ["evaluation_of", "observers_of", "prompts_on_the_way"]


def observers_of(
    ctx: RunContext, policy: TextPolicy, reference: Reference, sampler: GatheredSampler | None
) -> list[Observer]:
    """Who looks at each iteration; `sampler` holds the policy's weights whole, where they are parted among ranks."""
    evaluation = ctx.recipe.evaluation
    if not evaluation.every_iterations:
        return []
    times = Times(every=evaluation.every_iterations, iterations=ctx.recipe.ppo.iterations, log=ctx.log)
    found: list[Observer] = [EvaluationOnTheWay(_answers(ctx, policy, reference, sampler), **times)]
    if evaluation.probes:
        found.append(ProbesOnTheWay(*_probes(ctx, policy, sampler), **times))
    if evaluation.num_explained and (why := _why_no_panel(ctx.recipe, sampler)):
        ctx.progress.note(f"no responses are explained while PPO runs: {why}")
    elif evaluation.num_explained:
        found.append(_panel(ctx, policy, times))
    return found


def _why_no_panel(recipe: Recipe, sampler: GatheredSampler | None) -> str | None:
    """Why there is no panel, where there is none."""
    if recipe.env is not None:
        return "a panel is of responses to single prompts, and this policy acts in an environment"
    return None if sampler is None else "a panel reads the weights whole, and they are parted among the processes"


def _panel(ctx: RunContext, policy: TextPolicy, times: "Times") -> PanelOnTheWay:
    """The first of the held-out prompts, token by token. A reward model, which remembers nothing, is that of PPO."""
    recipe = ctx.recipe
    return PanelOnTheWay(
        prompts_on_the_way(ctx, policy.language_model.encoder)[: recipe.evaluation.num_explained],
        sample=lambda: sample_of(None, policy.language_model),
        reward=None if recipe.reward.type == "reward_model" else ctx.builder.reward(recipe.reward),
        seed=recipe.seed,
        **times,
    )


class Times(TypedDict):
    """When it is time, and where what was seen is written."""

    every: int
    iterations: int
    log: RunLog


class Sources(TypedDict):
    """What scores the answers, and what samples them."""

    judge: RewardSource | None
    reward: RewardSource | None
    constraints: list[Constraint]
    sample: Callable[[], Sample]


def _answers(
    ctx: RunContext, policy: TextPolicy, reference: Reference, sampler: GatheredSampler | None
) -> Callable[[], Answers]:
    """What has the policy answer. It samples with the own engine, as the stage `evaluate` does."""
    recipe, model = ctx.recipe, policy.language_model
    own = None if sampler is None else GatheredSampler(sampler.copy, None)
    judge, _ = ctx.builder.judge()
    # Beside a judge it would say little of PPO alone, and may cost money.
    is_asked = judge is None or recipe.env is not None or "compare" in recipe.stages
    needs_reward = recipe.uses_reward and is_asked
    # A source of its own: one that counts its calls, or draws by a generator of its own, goes on in PPO as without.
    reward = ctx.builder.reward(recipe.reward) if needs_reward else None

    def sample() -> Sample:
        return sample_of(own, model)

    sources = Sources(judge=judge, reward=reward, constraints=constraints_of(ctx), sample=sample)
    if recipe.env is not None:
        factory = ctx.env_factory("test_prompts")
        return partial(answers_in_env, policy, reference, factory, recipe, **sources)
    prompts = prompts_on_the_way(ctx, model.encoder)
    return partial(answers_to_prompts, policy, reference, prompts, recipe, **sources)


def evaluation_of(ctx: RunContext, stage: Stage, model: LanguageModel) -> Callable[[int], Mapping[str, float]] | None:
    """What evaluates a model that a stage other than PPO trains, which is the reference now, by reward and judge.

    It answers the prompts of PPO's evaluations on the way, with the same random numbers. None without such prompts.
    """
    recipe = ctx.recipe
    if recipe.data.test_prompts is None:
        ctx.progress.note(f"{stage}: its KL to where it began is not measured, for there are no data.test_prompts")
        return None
    policy = TextPolicy(model, None, temperature=recipe.rollout.temperature)
    reference = ctx.builder.reference(policy)
    own = ctx.builder.sampler_of(None) if ranks().shards else None
    judge, _ = ctx.builder.judge()
    reward = ctx.builder.reward(recipe.reward) if recipe.has_reward else None
    prompts = prompts_on_the_way(ctx, model.encoder)

    def evaluate(iteration: int) -> Mapping[str, float]:
        answers = answers_to_prompts(
            policy, reference, prompts, recipe, judge=judge, reward=reward, sample=lambda: sample_of(own, model)
        )
        ctx.log.write_observation(stage, iteration, "evaluation", answers.rows())
        return answers.metrics()

    return evaluate


def prompts_on_the_way(ctx: RunContext, encoder: Encoder) -> list[EncodedPrompt]:
    """Held-out prompts, of which the stage `evaluate` takes as few as there are enough for both.

    Weights that were chosen by their answers to some prompts are best judged by others.
    """
    recipe = ctx.recipe
    loaded = ctx.load("test_prompts", load_prompts).records
    order = shuffled(
        len(loaded), derive_seed(recipe.evaluation_seed, "test prompts")
    )  # whose first ones that stage takes
    chosen = [loaded[index] for index in order[::-1][: recipe.evaluation.num_prompts_on_the_way]]
    return ctx.encoded(chosen, encoder, "test_prompts")


def _probes(
    ctx: RunContext, policy: TextPolicy, sampler: GatheredSampler | None
) -> tuple[list[Probe], Subject, Callable[[], LanguageModel]]:
    """The probes, how they measure, and what gives the policy's weights whole."""
    recipe, model = ctx.recipe, policy.language_model
    config = recipe.probe.model_copy(update={"names": recipe.evaluation.probes, "primary": ""})
    probes = chosen_probes(
        config,
        directory=Path(recipe.data.directory),
        scorer=scorer_of(config, ctx.builder),
        training=training_texts(ctx),
    )
    subject = Subject(
        rollout=rollout_of(recipe),
        num_samples=config.num_samples,
        is_chat=is_chat(ctx),
        seed=derive_seed(recipe.seed, "probes"),
    )
    of_model = [probe for probe in probes if probe.of == "model"]
    return of_model, subject, lambda: model if sampler is None else sampler.up_to_date(model)
