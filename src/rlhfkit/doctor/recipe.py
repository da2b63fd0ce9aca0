"""Whether a recipe would run here, and be worth it: its files, its data, its model, its reward, its environment.

What exists is tried with a few real rows; what an earlier stage of the recipe is yet to make is reported as skipped.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.feedback import PeopleConfig
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.rewards import (
    BagOfWordsRewardConfig,
    LlmJudgeRewardConfig,
    MixRewardConfig,
    RewardConfig,
    RewardModelRewardConfig,
)
from rlhfkit.data import Loaded
from rlhfkit.doctor.budget import scored_within
from rlhfkit.doctor.data import (
    examine_ends,
    examine_leakage,
    examine_lengths,
    examine_pairs,
    examine_table,
    examine_unread,
    spaced,
)
from rlhfkit.doctor.encoding import examine_first_prompt, examine_joins, examine_special_tokens, examine_template
from rlhfkit.doctor.environments import examine_control, examine_text_episodes
from rlhfkit.doctor.findings import Finding, checked, ok, skipped, warning
from rlhfkit.doctor.first_rollout import (
    Trial,
    examine_ending,
    examine_numbers,
    examine_temperature,
    try_env,
    try_prompts,
)
from rlhfkit.doctor.forecast import examine_forecast
from rlhfkit.doctor.model import examine_likelihood, examine_vocabulary
from rlhfkit.doctor.reward import examine_accuracy, examine_report, examine_scores
from rlhfkit.doctor.signal import examine_prompts, examine_weight
from rlhfkit.doctor.subject import NUM_PROMPTS, Subject, context_tokens, inspected, texts_of, texts_of_data
from rlhfkit.doctor.system import examine_port, examine_run_directory
from rlhfkit.errors import ConfigError, RewardError, RlhfkitError
from rlhfkit.models.inspection import context_of
from rlhfkit.models.language import TextPolicy
from rlhfkit.models.loading import load_tokenizer, quiet_transformers
from rlhfkit.padding import Sequences
from rlhfkit.records import Preference
from rlhfkit.rewards.source import RewardSource
from rlhfkit.rollout.engine import Reference
from rlhfkit.rundir.directory import RunDir

__all__ = [
    "examine_recipe",
]


def examine_recipe(loaded: LoadedRecipe, directory: Path, *, forecast: bool = False) -> Iterator[Finding]:
    """Findings on a recipe that would run in `directory`, and what its stages will take; nothing is written there."""
    has_fault = False
    for finding in _examine_parts(loaded, directory):
        has_fault |= finding.verdict == "fault"
        yield finding
    if not forecast:
        return
    if has_fault:
        yield skipped("forecast.whole", "there are faults to fix first")
    else:
        yield from checked("forecast.whole", lambda: examine_forecast(loaded, RunDir(directory)))


def _examine_parts(loaded: LoadedRecipe, directory: Path) -> Iterator[Finding]:
    recipe, run = loaded.recipe, RunDir(directory)
    can_continue = False
    for finding in checked("recipe.run_directory", lambda: examine_run_directory(run, recipe)):
        can_continue |= finding.verdict == "ok"
        yield finding
    if isinstance(recipe, ControlRecipe):
        yield from checked("environment.contract", lambda: examine_control(recipe))
        return
    with tempfile.TemporaryDirectory() as nowhere, quiet_transformers():
        try:
            subject = Subject(recipe, run if can_continue else RunDir(Path(nowhere) / "run"))
        except ConfigError as error:  # the device
            yield from checked("model.device", _raising(error))
            return
        yield from checked("model.dtype", lambda: _dtype(subject))
        for part in PARTS:
            yield from part(subject)


def _raising(error: RlhfkitError) -> Callable[[], Iterable[Finding]]:
    def raise_it() -> Iterable[Finding]:
        raise error

    return raise_it


def _dtype(subject: Subject) -> Iterator[Finding]:
    """Whether the type that the recipe asks for is one that this machine is fast in."""
    choice = subject.builder.dtype_choice
    yield Finding("model.dtype", "warning" if choice.is_slow else "ok", choice.seen, choice.advice)


# ── the parts, in order ──────────────────────────────────────────────────────────────────────────────────────────────


def _inputs(subject: Subject) -> Iterator[Finding]:
    """What a run tries before its first stage."""
    for name, check in subject.inputs.checks(subject.stages or list(subject.recipe.stages)):
        label = INPUT_NAMES.get(name, name)

        def found(check: Callable[[], object] = check) -> Iterable[Finding]:
            check()
            return ()

        for finding in checked(label, found):
            subject.failed.add(name)
            yield finding
    subject.recipe = subject.inputs.recipe  # with the limit for prompts that fits the model
    annotators = subject.recipe.preferences.annotators
    if "preferences" in subject.stages and isinstance(annotators, PeopleConfig):
        yield from examine_port(annotators.port, host=annotators.host, name="recipe.port")


INPUT_NAMES = {
    "model": "model.files",
    "env": "environment.contract",
    "reward": "reward.trial",
    "evaluation.judge": "judge.trial",
    "evaluation.metric": "data.references",
    "evaluation.probes": "probe.rows",
    "probe": "probe.rows",
    "preferences": "data.labelling",
}


def _data(subject: Subject) -> Iterator[Finding]:
    """Rows, lengths, ends, pairs, leakage."""
    tables: dict[str, Loaded[Any]] = subject.inputs.loaded()
    encoder, recipe = subject.inputs.encoder, subject.recipe
    for name, loaded in tables.items():
        yield from checked(f"data.{name}", lambda name=name, loaded=loaded: examine_table(name, loaded))  # type: ignore[misc]
    if not tables:
        return
    if encoder is None:
        why = subject.why_no_model.replace("model yet", "tokenizer yet")
        yield skipped("data.lengths", f"tokens cannot be counted: {why}")
    else:
        yield from checked(
            "data.lengths", lambda: examine_lengths(tables, recipe, encoder, context=context_tokens(subject))
        )
    if encoder is not None:
        yield from checked("data.joins", lambda: examine_joins(subject.inputs.remarks()))
    if "demonstrations" in tables and "sft" in recipe.stages and encoder is not None:
        rows = tables["demonstrations"].records
        yield from checked("data.ends", lambda: examine_ends(rows, recipe, encoder, context=context_tokens(subject)))
    for name in ("preferences", "judge_preferences"):
        if name in tables:
            yield from checked(f"data.{name}", lambda name=name: examine_pairs(name, tables[name].records))  # type: ignore[misc]
    yield from checked("data.leakage", lambda: examine_leakage(tables))
    yield from checked("data.unread", lambda: examine_unread(subject.inputs.unread()))


def _model(subject: Subject) -> Iterator[Finding]:
    """Files, special tokens, template, vocabulary, and whether the weights know the texts."""
    source = subject.source
    if subject.why_no_model or source is None:
        yield skipped("model.weights", subject.why_no_model)
        return
    if source.trust_remote_code:
        yield warning(
            "model.remote_code",
            "model.trust_remote_code = true: Python code that comes with the model is executed",
            "leave it off, unless you have read that code",
        )
    yield from checked("model.files", lambda: _files(subject))
    yield from checked("model.pad_and_eos", lambda: examine_special_tokens(source))
    encoder, prompts = subject.builder.encoder(source), subject.prompts()
    if any(not isinstance(prompt.content, str) for prompt in prompts):
        goes_on = subject.recipe.env is not None
        yield from checked("model.template", lambda: examine_template(encoder, goes_on=goes_on))
    elif prompts and not encoder.uses_fallback:
        yield ok("model.template", "the model has a chat template, which is not used: prompts are plain text")
    if prompts:
        limit = subject.recipe.data.prompt_limit
        yield from checked("model.first_prompt", lambda: examine_first_prompt(encoder, prompts[0], max_tokens=limit))
    for finding in checked("model.weights", lambda: _weights(subject)):
        if finding.verdict == "fault" and finding.name == "model.weights":
            subject.failed.add("model")
        yield finding


def _files(subject: Subject) -> Iterator[Finding]:
    config, recipe = inspected(subject), subject.recipe
    context = context_of(config)
    wanted = recipe.data.prompt_limit + recipe.rollout.max_response_tokens
    room = f"{wanted} tokens of prompt and response fit its context of {context}" if context else "no limit of context"
    yield ok("model.files", f"{subject.source.path if subject.source else ''}: {config.model_type}; {room}")


def _weights(subject: Subject) -> Iterator[Finding]:
    model, recipe = subject.model, subject.recipe
    num = sum(parameter.numel() for parameter in model.causal_lm.parameters())
    yield ok("model.weights", f"{num / 1e6:.1f} million, {str(model.dtype).removeprefix('torch.')} on {model.device}")
    source = subject.source
    assert source is not None
    _, notes = load_tokenizer(source)
    config = inspected(subject)
    num_rows = int(getattr(config, "vocab_size", 0) or len(model.encoder.tokenizer))
    yield from examine_vocabulary(model, num_rows=num_rows, num_added=len(notes))
    texts = texts_of(subject)
    if texts:
        yield from examine_likelihood(model, texts, seed=recipe.seed)


def _trial(subject: Subject) -> Iterator[Finding]:
    """A first experience; where there is no model, only the reward, on texts of the data."""
    recipe = subject.recipe
    if "ppo" not in recipe.stages:
        return
    yield from examine_prompts(recipe, subject.records("prompts"))
    if subject.why_no_model:  # which is shown above
        pass
    elif _cannot_sample(subject):
        yield skipped("model.trial", _cannot_sample(subject))
    else:
        trial: list[Trial] = []
        yield from checked("model.trial", lambda: _sampled(subject, trial))
        if trial:
            yield from _scores_of(subject, trial[0])
            return
    yield from checked("reward.scores", lambda: _scores_of_data(subject))


def _cannot_sample(subject: Subject) -> str:
    if subject.recipe.env is not None and "env" in subject.failed:
        return "the environment is at fault, as shown above"
    if subject.recipe.uses_prompts and not subject.prompts():
        return "there are no prompts"
    return ""


def _sampled(subject: Subject, made: list[Trial]) -> Iterator[Finding]:
    recipe, model = subject.recipe, subject.model
    policy = TextPolicy(model, None, temperature=recipe.rollout.temperature)

    def reference(sequences: Sequences) -> Any:
        return model.logprobs(sequences, temperature=recipe.rollout.temperature)

    reward, _ = _reward(subject, recipe.reward) if recipe.uses_reward else (None, "")
    try:
        trial = _try(subject, policy, reference, reward)
    except RewardError as error:  # the model can be looked at all the same
        subject.failed.add("reward")
        yield from checked("reward.scores", _raising(error))
        trial = _try(subject, policy, reference, None)
    made.append(trial)
    yield from examine_numbers(trial)
    yield from examine_temperature(trial)
    yield from examine_ending(trial, recipe, comes_after_sft=subject.is_before_sft)


def _try(subject: Subject, policy: TextPolicy, reference: Reference, reward: RewardSource | None) -> Trial:
    recipe, encoder = subject.recipe, policy.language_model.encoder
    if recipe.env is None:
        limit = recipe.data.prompt_limit
        prompts = [encoder.encode(row, max_tokens=limit) for row in spaced(subject.prompts(), NUM_PROMPTS)]
        return try_prompts(
            policy, reference, prompts, reward=reward, rollout=recipe.rollout, ppo=recipe.ppo, seed=recipe.seed
        )
    return try_env(
        policy,
        reference,
        subject.builder.env_factory(recipe.env, subject.records("prompts", "test_prompts")),
        reward=reward,
        uses_reward=recipe.uses_reward,
        rollout=recipe.rollout,
        ppo=recipe.ppo,
        max_prompt_tokens=recipe.data.prompt_limit,
        seed=recipe.seed,
    )


def _reward(subject: Subject, config: RewardConfig) -> tuple[RewardSource | None, str]:
    """The reward where it can be had already, or why not."""
    missing = _unmade(subject, config)
    if "reward" in subject.failed or missing:
        return None, missing or "it is at fault, as shown above"
    return subject.builder.reward(config), ""


def _unmade(subject: Subject, config: RewardConfig) -> str:
    match config:
        case MixRewardConfig():
            return next((why for part in config.parts if (why := _unmade(subject, part.source))), "")
        case RewardModelRewardConfig(path=None):
            made = subject.run.model("reward_model").exists()
            return "" if made else "there is no reward model yet: the stage reward_model makes it"
        case BagOfWordsRewardConfig(path=None):
            return "" if subject.run.model("judge").exists() else "there is no judge yet: the stage judge makes it"
        case LlmJudgeRewardConfig():
            return "it may cost money, so it is tried on two responses only"
        case _:
            return ""


def _scores_of(subject: Subject, trial: Trial) -> Iterator[Finding]:
    recorder = trial.recorder
    if recorder.source is not None:
        yield from checked("reward.scores", lambda: _scores_of_model(subject, trial))
        yield from checked("reward.penalties", lambda: _penalties(trial))
        yield from examine_weight(subject.recipe, recorder.scores)
        yield from checked("reward.accuracy", lambda: _accuracy(subject, recorder.source))
    elif subject.recipe.uses_reward:
        _, why = _reward(subject, subject.recipe.reward)
        if "reward" not in subject.failed:
            yield skipped("reward.scores", why)


def _scores_of_model(subject: Subject, trial: Trial) -> Iterator[Finding]:
    recorder = trial.recorder
    texts = texts_of_data(subject)
    if recorder.source is None or len(set(recorder.scores)) > 1 or not texts:
        yield from examine_scores(recorder.episodes, recorder.scores, of_model=True)
        return
    # A rare reward, as 1 for the right word, is not a constant one.
    scores = scored_within(recorder.source, texts)
    if len(set(scores)) == 1:
        yield from examine_scores(recorder.episodes, recorder.scores, of_model=True)
        return
    words = (
        f"all {len(recorder.scores)} responses of the model score {recorder.scores[0]:g}, while responses of the data "
        f"score {min(scores):.3g} to {max(scores):.3g}"
    )
    if subject.is_before_sft:
        yield skipped("reward.scores", f"{words}; SFT, which comes first, may bring the model there")
    else:
        yield warning(
            "reward.scores",
            f"{words}: it seldom finds what is paid for",
            "train it with SFT first, pay for steps on the way, or raise ppo.rollout_episodes",
        )


def _penalties(trial: Trial) -> Iterator[Finding]:
    """Penalties must not make equal what the reward tells apart."""
    shaped, raw = trial.experience.scores, trial.recorder.scores
    is_whole = not trial.recorder.num_skipped  # what is skipped stands as 0
    if shaped is not None and is_whole and len(set(raw)) > 1 and float(shaped.min()) == float(shaped.max()):
        yield warning(
            "reward.penalties",
            f"scores differ, but after clip_score and penalties all {len(shaped)} are {float(shaped[0]):g}",
            "look at ppo.missing_eos_score, clip_score and the penalties",
        )


def _scores_of_data(subject: Subject) -> Iterator[Finding]:
    recipe = subject.recipe
    if not recipe.uses_reward:
        return
    source, why = _reward(subject, recipe.reward)
    if source is None:
        if "reward" not in subject.failed:
            yield skipped("reward.scores", why)
        return
    episodes = texts_of_data(subject)
    if not episodes:
        yield skipped("reward.scores", "no model can answer yet, and the data hold no responses")
        return
    scores = scored_within(source, episodes)
    yield from examine_scores(episodes, scores, of_model=False)
    yield from _accuracy(subject, source)


def _accuracy(subject: Subject, source: RewardSource | None) -> Iterator[Finding]:
    """On people's pairs, where there are any, or as the run measured it when it trained the reward model."""
    is_own = isinstance(subject.recipe.reward, RewardModelRewardConfig) and subject.recipe.reward.path is None
    if is_own and subject.run.reward_model_report.exists():
        yield from examine_report(subject.run.reward_model_report)
        return
    test: Sequence[Preference] = subject.records("test_preferences", "judge_preferences", "preferences")
    if source is not None and test:
        measures = "test_preferences" in subject.inputs.loaded()
        # What a bag of words learns of the pairs is no measure for a reward that has learnt nothing.
        is_learnt = isinstance(subject.recipe.reward, RewardModelRewardConfig | BagOfWordsRewardConfig)
        train: Sequence[Preference] = subject.records("preferences") if measures and is_learnt else []
        yield from examine_accuracy(source, train, test, subject.inputs.encoder, seed=subject.recipe.seed)


def _environment(subject: Subject) -> Iterator[Finding]:
    """What the check of the inputs did not ask: whether seeds matter."""
    env = subject.recipe.env
    if env is None or "env" in subject.failed:
        return
    if env.type == "function" and not env.check:
        yield warning("environment.contract", "not checked, as env.check = false", "leave env.check out")
    else:
        yield ok("environment.contract", f"{env.type}: a TextEnv that is the same twice, as far as a few episodes show")
    factory = subject.builder.env_factory(env, subject.records("prompts", "test_prompts"))
    yield from checked("environment.episodes", lambda: examine_text_episodes(factory))


PARTS: tuple[Callable[[Subject], Iterator[Finding]], ...] = (_inputs, _data, _model, _trial, _environment)
"""What is looked at, in order."""
