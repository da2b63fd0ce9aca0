"""`evaluate` and `sample`: what models do, before and after."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rlhfkit.api.given import (
    DataSource,
    Gathered,
    HasModel,
    ModelSource,
    RewardLike,
    gathered_prompts,
    settings_of,
    trained_model,
)
from rlhfkit.api.opened import Opened
from rlhfkit.api.show import evaluation_html
from rlhfkit.api.words import Words
from rlhfkit.config.evaluation import EvaluationConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.distributed.joining import join_for_good
from rlhfkit.errors import ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.evaluate import compared
from rlhfkit.pipeline.generate import generate
from rlhfkit.rollout.generation import generate as generated
from rlhfkit.rundir.results import Evaluation

__all__ = ["BeforeAndAfter", "evaluate", "sample"]

EVERY_PROMPT = 1_000_000_000


WORDS = Words({r"\b(data\.)?test_prompts\b": "prompts"}, rollout=("rollout", RolloutConfig))


class BeforeAndAfter(Evaluation):
    """What `evaluate` found: `models["sft"]` is the one before, `models["policy"]` the one after."""

    def __str__(self) -> str:
        before, after = (self.models[name].score.mean for name in ("sft", "policy"))
        won = "" if self.win_rate is None else f", better on {self.win_rate.reward.rate:.0%}"
        return f"score {before:.3g} before, {after:.3g} after, on {self.num_prompts} prompts{won}"

    def _repr_html_(self) -> str:
        return evaluation_html(self)


@WORDS.of
def evaluate(
    before: ModelSource,
    after: str | Path | HasModel,
    *,
    prompts: DataSource,
    reward: RewardLike,
    judge: RewardLike | None = None,
    rollout: RolloutConfig | None = None,
    num_prompts: int | None = None,
    num_samples: int = 12,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> BeforeAndAfter:
    """Scores of two models' responses to the same prompts, with 95 % intervals, win rate, KL and samples.

    Example:
        >>> from rlhfkit import RolloutConfig, evaluate
        >>> def reward(prompts, responses):
        ...     return [float(len(response)) for response in responses]
        >>> short = RolloutConfig(max_response_tokens=8)
        >>> found = evaluate(model_dir, model_dir, prompts=["One", "Two"], reward=reward, rollout=short)
        >>> found.models["sft"].score.mean == found.models["policy"].score.mean
        True
        >>> found.models["policy"].ref_kl  # to the model before, in nats summed per sequence
        0.0

    Args:
        before: directory or hub id of the model before, which is the reference of the KL, or a trainer.
        after: the same of the model after.
        prompts: prompts that neither was trained on: texts, conversations, rows, a file, a `datasets.Dataset`.
        reward: what scores responses, as for `PPOTrainer`.
        judge: a second opinion that training never saw.
        rollout: length and temperature of responses.
        num_prompts: how many of the prompts, drawn by the seed; by default all.
        num_samples: pairs of responses that the result shows.
        device: where to compute.
        dtype: type of the weights.
        seed: all randomness follows from it.
        progress: what shows notes, warnings and bars.

    Raises: ConfigError, DataError, ModelError, RewardError where something that was given will not do.
    """
    join_for_good()
    gathered = Gathered()
    gathered.add_model(before, None, {"device": device, "dtype": dtype})
    gathered.add_data(prompts=["-"], test_prompts=prompts)  # the stage has training prompts, which it must not repeat
    gathered.add_reward(reward)
    gathered.add_evaluation(EvaluationConfig(num_prompts=num_prompts or EVERY_PROMPT, num_samples=num_samples), judge)
    opened = Opened(
        "ppo",
        gathered,
        by="evaluate",
        words=WORDS,
        seed=seed,
        run_dir=None,
        progress=progress,
        left=("evaluate",),
        rollout=settings_of("rollout", rollout, RolloutConfig, taker="evaluate"),
    )
    ctx, trained = opened.ctx, trained_model("after", after)
    try:
        with quiet_transformers():
            first = ctx.builder.language_model(ctx.builder.starting_point())
            second = trained or ctx.builder.language_model(ctx.builder.source_of(Path(str(after))))
            found = compared(ctx, first, second)
    finally:
        opened.close()
    return BeforeAndAfter.model_validate(found.model_dump())


@WORDS.of
def sample(
    model: str | Path | HasModel,
    prompts: Sequence[Any],
    *,
    max_response_tokens: int | None = None,
    temperature: float | None = None,
    seed: int = 0,
) -> list[str]:
    """A response to each prompt, in order.

    Example:
        >>> from rlhfkit import sample
        >>> len(sample(model_dir, ["Once upon a time", "There was"], max_response_tokens=4, seed=1))
        2

    Args:
        model: a model's directory or hub id, a run's directory (its newest model), or a trainer.
        prompts: texts, conversations or rows.
        max_response_tokens: longest response; by default the run's, or 128.
        temperature: 0 takes the likeliest token; by default the run's, or 1.
        seed: all randomness follows from it.

    Raises: ModelError where there is no model; DataError where one of `prompts` is none; ConfigError where no prompt
        fits beside the response.
    """
    join_for_good()
    records = gathered_prompts(prompts)
    language_model = trained_model("model", model)
    if language_model is None:
        limits = {"max_response_tokens": max_response_tokens, "temperature": temperature}
        with quiet_transformers():
            return list(generate(str(model), records, seed=seed, **limits))  # type: ignore[arg-type]
    rollout = RolloutConfig(max_response_tokens=max_response_tokens or 128, temperature=temperature or 1.0)
    room = (language_model.context_tokens or 1 << 20) - rollout.max_response_tokens
    if room < 1:
        raise ConfigError(
            f"max_response_tokens = {rollout.max_response_tokens} leaves no room for a prompt in the model's context "
            f"of {language_model.context_tokens} tokens; give a smaller number"
        )
    encoded = [language_model.encoder.encode(prompt, max_tokens=room).ids for prompt in records]
    seeds = None if temperature == 0 else [derive_seed(seed, "generate", row) for row in range(len(encoded))]
    responses = generated(language_model, encoded, rollout, seeds=seeds)
    return [language_model.encoder.decode(response.ids) for response in responses]
