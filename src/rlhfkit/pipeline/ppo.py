"""The stage `ppo`: first everything that it needs is prepared, then it runs."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from rlhfkit.config.ppo import PpoConfig
from rlhfkit.config.presets import preset_words
from rlhfkit.data import load_demonstrations, load_texts
from rlhfkit.distributed.ranks import ranks
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.language import TextPolicy
from rlhfkit.pipeline.constraints import constraints_of
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.memory import fitted_ppo, peak_noted
from rlhfkit.pipeline.on_the_way import observers_of
from rlhfkit.pipeline.supervised import within_context
from rlhfkit.rollout.engine import Engine, GatheredSampler, Reference
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.multi_turn import MultiTurnRollout
from rlhfkit.rollout.text import TextRollout
from rlhfkit.rollout.vllm import VllmEngine
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ema import share_of_start
from rlhfkit.training.ppo import PpoTrainer, Rollout, constraint_rule, kl_controller, train_ppo
from rlhfkit.training.preflight import check_first_experience
from rlhfkit.training.ptx import Ptx
from rlhfkit.training.rates import announced_ppo
from rlhfkit.training.sft import encode_demonstrations, encode_texts
from rlhfkit.wording import percent

__all__ = ["PreparedPpo", "keep_ppo", "ppo", "prepared_ppo", "run_prepared"]


MUCH_OF_START, LITTLE_OF_START = 0.2, 0.05
"""Share of the weights before PPO in an average that is hardly one of the policy any more; and in one that is."""


@dataclass
class PreparedPpo:
    """All that PPO works with, ready for the next iteration."""

    policy: TextPolicy
    reference: Reference
    rollout: Rollout
    engine: VllmEngine | None
    """What samples in place of the own sampler; it is a context manager, open while PPO runs."""
    sampler: GatheredSampler | None
    """What samples where the policy's weights are parted among the ranks, and holds them whole."""
    trainer: PpoTrainer
    checkpoints: Checkpoints
    check_first: Callable[[Experience], None]
    """Raises TrainingError where the very first experience says that the run is doomed."""


def ppo(ctx: RunContext) -> dict[str, Any]:
    """The SFT model, the reward and prompts → `policy/`."""
    return run_prepared(ctx, prepared_ppo(ctx))


def prepared_ppo(ctx: RunContext) -> PreparedPpo:
    """Everything but the iterations; where an earlier start was stopped, put back to its last checkpoint."""
    recipe = ctx.recipe
    policy = ctx.builder.policy()
    language_model = policy.language_model
    ctx.tell_notes()
    ctx.try_saving("ppo", language_model.save)
    if "sft" not in recipe.stages:
        start = ctx.builder.starting_point().path
        ctx.manifest.add_model("start", start, template=language_model.encoder.template_hash)
    reference = ctx.builder.reference(policy)
    engine = ctx.builder.engine()
    sampler = ctx.builder.sampler_of(engine) if ranks().shards else None
    rollout = _rollout(ctx, policy, reference, ctx.workload.engine(sampler or engine, ctx.builder))
    kl = kl_controller(recipe.ppo.kl)
    if words := preset_words(recipe.ppo):
        ctx.progress.note(f"ppo: {words}")
    config = recipe.ppo.for_rollout(recipe.rollout)
    config = announced_ppo(config, policy, stage="ppo", progress=ctx.progress, manifest=ctx.manifest)
    # Before memory is planned, for a judge may be a model.
    observers = ctx.workload.observers(observers_of(ctx, policy, reference, sampler))
    config, optimizers = fitted_ppo(ctx, policy, rollout, config)
    table = recipe.model_dump(mode="json")
    rules = [constraint_rule(constraint) for constraint in recipe.ppo.constraints]
    trainer = PpoTrainer(
        policy, rollout, config, optimizers, recipe.seed, kl, kl.initial_coef, constraints=rules, recipe=table
    )
    trainer.observers, trainer.ptx = observers, _ptx(ctx, policy, config)
    _tell_of_average(ctx, trainer)
    checkpoints = ctx.checkpoints("ppo")
    if not trainer.resume(checkpoints, ctx.log):
        ctx.log.forget("ppo")

    def check_first(experience: Experience) -> None:
        measured = check_first_experience(
            experience,
            policy,
            reference,
            min_eos_rate=config.min_eos_rate,
            engine_dtype=None if engine is None else engine.dtype,
        )
        ctx.manifest.add_stage("ppo", **measured)

    return PreparedPpo(policy, reference, rollout, engine, sampler, trainer, checkpoints, check_first)


def _tell_of_average(ctx: RunContext, trainer: PpoTrainer) -> None:
    """Say what the average will be of, and warn where it would mostly be the model before PPO."""
    if trainer.ema is None:
        return
    decay, num = trainer.ema.decay, trainer.optimizers["policy"].num_updates
    of_start = share_of_start(decay, num)
    words = (
        f"ppo.ema = {decay:g} averages the policy's weights over about the last {min(num, round(1 / (1 - decay)))} of "
        f"{num} updates; those before PPO weigh {percent(of_start)} in the end"
    )
    if of_start > MUCH_OF_START:
        lower = LITTLE_OF_START ** (1 / num)
        ctx.progress.warn(f"{words}: lower it to {lower:.2g}, and they weigh {percent(LITTLE_OF_START)}")
    else:
        ctx.progress.note(words)


def _ptx(ctx: RunContext, policy: TextPolicy, config: PpoConfig) -> Ptx | None:
    """What the policy learns beside PPO, if anything; rows are cut to the longest sequence of PPO itself."""
    if config.ptx_table is None:
        return None
    model, prompt = policy.language_model, ctx.recipe.data.prompt_limit
    most = within_context(prompt + ctx.recipe.rollout.max_response_tokens, model)
    if config.ptx_table == "texts":
        texts, num_cut = encode_texts(ctx.load("texts", load_texts).records, model.encoder, max_tokens=most)
    else:
        rows = ctx.load("demonstrations", load_demonstrations).records
        texts, num_cut, _ = encode_demonstrations(
            rows, model.encoder, max_prompt_tokens=prompt, max_tokens=most, turns=ctx.recipe.sft.turns
        )
    if num_cut:
        ctx.progress.note(
            f"ppo.ptx: {num_cut} of {len(texts)} rows of data.{config.ptx_table} were cut to {most} tokens"
        )
    tokens = config.microbatch_tokens
    assert tokens != "auto"  # decided by what memory has room for
    return Ptx(policy, texts, config.ptx.coef, config.ptx_sequences, tokens, seed=derive_seed(ctx.recipe.seed, "ppo"))


def run_prepared(ctx: RunContext, prepared: PreparedPpo) -> dict[str, Any]:
    """The iterations that are left → `policy/`."""
    trainer = prepared.trainer
    num_iterations, done = trainer.config.iterations, trainer.iteration
    with (
        peak_noted(ctx, "ppo"),
        prepared.engine or nullcontext(),
        ctx.progress.stage("ppo", total=num_iterations, unit="iteration", completed=done) as stage,
    ):
        train_ppo(
            trainer,
            log=ctx.log,
            checkpoints=prepared.checkpoints,
            progress=stage,
            check_first=prepared.check_first,
            after_first=ctx.tell_paths,
            until=ctx.workload.until,
        )
    return keep_ppo(ctx, prepared)


def keep_ppo(ctx: RunContext, prepared: PreparedPpo) -> dict[str, Any]:
    """What the iterations have made → `policy/`, and their average → `ema/`; the facts for `stages.json`."""
    trainer = prepared.trainer
    if trainer.outcome:
        ctx.progress.warn(f"stopped after {trainer.iteration} iterations: {trainer.outcome}")
    elif trainer.kept is not None:
        ctx.progress.note(f"PPO is done; {trainer.kept.words}")
    model = prepared.policy.language_model
    ctx.save_model("ppo", model if prepared.sampler is None else prepared.sampler.up_to_date(model))
    if trainer.ema is not None:
        with trainer.ema.in_place(prepared.policy):
            whole = model if prepared.sampler is None else prepared.sampler.up_to_date(model)
            ctx.save_model("ppo", whole, name="ema")
    facts = {"iterations": trainer.iteration, "stopped": trainer.outcome, "kl_coef": trainer.kl_coef}
    return facts if trainer.kept is None else {**facts, **trainer.kept.as_facts()}


def _rollout(ctx: RunContext, policy: TextPolicy, reference: Reference, engine: Engine | None) -> Rollout:
    """Where PPO's experience comes from: single prompts, or an environment."""
    recipe, stem = ctx.recipe, policy.language_model.stem
    constraints = constraints_of(ctx, stem=stem)
    if recipe.env is None:
        return TextRollout(
            policy,
            reference,
            ctx.workload.reward(lambda: ctx.builder.reward(recipe.reward, stem=stem), ctx.builder),
            ctx.prompts("prompts", policy.language_model.encoder),
            rollout=recipe.rollout,
            ppo=recipe.ppo,
            seed=recipe.seed,
            engine=engine,
            constraints=constraints,
        )
    return MultiTurnRollout(
        policy,
        reference,
        ctx.env_factory("prompts"),
        reward=ctx.builder.reward(recipe.reward, stem=stem) if recipe.uses_reward else None,
        rollout=recipe.rollout,
        ppo=recipe.ppo,
        max_prompt_tokens=recipe.data.prompt_limit,
        seed=recipe.seed,
        engine=engine,
        constraints=constraints,
        tell=ctx.progress.note,
    )
