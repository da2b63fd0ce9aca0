"""The average of the policy's weights in a report: a table beside the model before PPO and the policy."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rlhfkit.rundir.results import EmaResults, Evaluation, ModelResults, WinRate
from rlhfkit.wording import number, percent, score

__all__ = ["EmaRow", "EmaTable", "ema_table"]


@dataclass(frozen=True, slots=True)
class EmaRow:
    """A number of the three models."""

    name: str
    before: str
    policy: str
    ema: str


@dataclass(frozen=True, slots=True)
class EmaTable:
    """All that a report says of the average."""

    rows: tuple[EmaRow, ...]
    words: str
    """How often its response beats the policy's."""


def ema_table(evaluation: Evaluation | None) -> EmaTable | None:
    """The table; None where the run keeps no average, or is not evaluated yet."""
    if evaluation is None or evaluation.ema is None or not {"sft", "policy"} <= evaluation.models.keys():
        return None
    return EmaTable(tuple(_rows(evaluation, evaluation.ema)), _words(evaluation, evaluation.ema))


def _words(evaluation: Evaluation, ema: EmaResults) -> str:
    judge, reward = ema.against_policy.judge, ema.against_policy.reward
    win, who = (reward, evaluation.reward_name) if judge is None else (judge, evaluation.judge_name)
    what = "episodes" if evaluation.in_environment else "prompts"
    return (
        f"It beats the policy on {percent(win.rate)} of {evaluation.num_prompts} {what} by {who} "
        f"({percent(0.95)} interval: {percent(win.low)} to {percent(win.high)}; a tie counts half)."
    )


def _rows(evaluation: Evaluation, ema: EmaResults) -> Iterator[EmaRow]:
    models = evaluation.models["sft"], evaluation.models["policy"], ema.model
    if evaluation.task is not None and ema.task is not None:
        for measured, of_ema in zip(evaluation.task.measures, ema.task.measures, strict=True):
            means = measured.sft.mean, measured.policy.mean, of_ema.policy.mean
            yield EmaRow(measured.name, *map(measured.shown, means))
    yield _row("return" if evaluation.in_environment else f"score ({evaluation.reward_name})", models, _score)
    if all(model.judge is not None for model in models):
        yield _row(f"score ({evaluation.judge_name})", models, _judge)
    if evaluation.win_rate is not None:
        won, of_average = evaluation.win_rate, ema.win_rate
        yield _won(evaluation.reward_name, won.reward, of_average.reward)
        if won.judge is not None and of_average.judge is not None:
            yield _won(evaluation.judge_name, won.judge, of_average.judge)
    for held, averaged in zip(evaluation.constraints, ema.constraints, strict=True):
        means = held.sft.mean, held.policy.mean, averaged.policy.mean
        yield EmaRow(f"{held.name} ({held.wanted})", *map(number, means))
    yield _row("KL to the reference, nats per sequence", models, lambda model: number(model.ref_kl))
    yield _row("response length, tokens", models, lambda model: number(model.response_tokens))
    yield _row("distinct-2", models, lambda model: number(model.distinct_2, 2))
    yield _row("perplexity", models, lambda model: number(model.perplexity))


def _row(name: str, models: tuple[ModelResults, ...], shown: Callable[[ModelResults], str]) -> EmaRow:
    before, policy, ema = map(shown, models)
    return EmaRow(name, before, policy, ema)


def _won(by: str, policy: WinRate, ema: WinRate) -> EmaRow:
    return EmaRow(f"win rate ({by})", "", percent(policy.rate), percent(ema.rate))


def _score(model: ModelResults) -> str:
    return f"{score(model.score.mean)} ({model.score.words(score)})"


def _judge(model: ModelResults) -> str:
    return "" if model.judge is None else f"{score(model.judge.mean)} ({model.judge.words(score)})"
