"""The page of a run in rounds: what each round's labels brought, beside the round before."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhfkit.report.probes import ProbePage, probe_page
from rlhfkit.report.svg import Chart, Level, Series, line_chart
from rlhfkit.rundir.contents import Facts, read_facts
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import Estimate, Evaluation, WinRate, read_results
from rlhfkit.wording import number

__all__ = ["RoundResult", "RoundsPage", "rounds_page"]

NUM_SAMPLES = 4


@dataclass(frozen=True, slots=True)
class RoundResult:
    """One round, as far as it has come."""

    number: int
    link: str | None
    """Address of its own report, beside this one."""
    num_pairs: int | None
    """Preferences that its reward model was trained on: those of all rounds so far."""
    accuracy: Estimate | None
    """Of its reward model, on held-out pairs of all rounds so far."""
    before: Estimate | None
    """What the judge (or else the reward) says of the SFT model's responses."""
    after: Estimate | None
    """The same of its policy's."""
    ref_kl: float | None
    against_sft: WinRate | None
    against_last: WinRate | None


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's response, and what the judge (or else the reward) says of it."""

    name: str
    response: str
    score: float | None


@dataclass(frozen=True, slots=True)
class PromptOverRounds:
    """A held-out prompt, and how the models answered it, round after round."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True, slots=True)
class RoundsPage:
    """What the template shows."""

    headline: str
    lead: str
    judge_name: str
    rounds: tuple[RoundResult, ...]
    chart: Chart | None
    samples: tuple[PromptOverRounds, ...]
    probes: ProbePage | None
    """Of the newest round that was probed."""


def rounds_page(facts: Facts, run: RunDir) -> RoundsPage:
    """What there is to show of the rounds so far.

    Raises: CheckpointError where a file is damaged.
    """
    wanted = int(facts.setting("rounds") or 1)
    found = [round_facts for number in range(1, wanted + 1) if (round_facts := _round(run, number))]
    rounds = tuple(result for result, _ in found)
    evaluations = [facts.evaluation for _, facts in found if facts.evaluation]
    judge = "the reward model" if not evaluations else _name_of_judge(evaluations[0])
    finished = [result for result in rounds if result.after is not None]
    return RoundsPage(
        headline=_headline(finished, wanted),
        lead="Each round asks people about the newest policy's responses, trains the reward model on all labels so "
        f"far, and PPO from the SFT model again. What counts here is what {judge} says of responses to held-out "
        "prompts.",
        judge_name=judge,
        rounds=rounds,
        chart=_chart(finished, judge),
        samples=_samples([(result.number, facts.evaluation) for result, facts in found if facts.evaluation]),
        probes=_probes(found),
    )


def _probes(found: Sequence[tuple[RoundResult, Facts]]) -> ProbePage | None:
    """Each round begins at the SFT model again, so that the newest one's probes have the whole change."""
    probed = [(result.number, page) for result, facts in found if (page := probe_page(facts.probes))]
    if not probed:
        return None
    number, page = probed[-1]
    return replace(page, title=f"What else changed, in round {number}")


def _samples(evaluations: list[tuple[int, Evaluation]]) -> tuple[PromptOverRounds, ...]:
    """The prompts that every round has answered; all rounds draw the same ones."""
    if not evaluations:
        return ()
    by_prompt = [{sample.prompt: sample for sample in evaluation.samples} for _, evaluation in evaluations]
    shared = [prompt for prompt in by_prompt[0] if all(prompt in samples for samples in by_prompt)]
    found = []
    for prompt in shared[:NUM_SAMPLES]:
        first = by_prompt[0][prompt]
        answers = [Answer("Before PPO", first.sft, first.score_sft if first.judge_sft is None else first.judge_sft)]
        for (round_number, _), samples in zip(evaluations, by_prompt, strict=True):
            sample = samples[prompt]
            score = sample.score_policy if sample.judge_policy is None else sample.judge_policy
            answers.append(Answer(f"Round {round_number}", sample.policy, score))
        found.append(PromptOverRounds(prompt, tuple(answers)))
    return tuple(found)


def _round(run: RunDir, number: int) -> tuple[RoundResult, Facts] | None:
    directory = run.round(number)
    if not directory.is_run():
        return None
    facts = read_facts(directory)
    models = facts.evaluation.models if facts.evaluation else {}
    accuracy = None
    if (tested := facts.reward_model) and tested.accuracy_low is not None and tested.accuracy_high is not None:
        accuracy = Estimate(mean=tested.accuracy, low=tested.accuracy_low, high=tested.accuracy_high)
    against_last = read_results(directory.against_last, Evaluation)
    return RoundResult(
        number=number,
        link=f"{directory.path.name}/{directory.report.name}" if directory.report.exists() else None,
        num_pairs=facts.finished.get("preferences", {}).get("num_train_pairs"),
        accuracy=accuracy,
        before=(models["sft"].judge or models["sft"].score) if "sft" in models else None,
        after=(models["policy"].judge or models["policy"].score) if "policy" in models else None,
        ref_kl=models["policy"].ref_kl if "policy" in models else None,
        against_sft=_win_rate(facts.evaluation),
        against_last=_win_rate(against_last),
    ), facts


def _win_rate(evaluation: Evaluation | None) -> WinRate | None:
    if evaluation is None or evaluation.win_rate is None:
        return None
    return evaluation.win_rate.judge or evaluation.win_rate.reward


def _name_of_judge(evaluation: Evaluation) -> str:
    return evaluation.judge_name if evaluation.models["policy"].judge else "the reward model"


def _headline(finished: list[RoundResult], wanted: int) -> str:
    if not finished:
        return f"None of {wanted} rounds is finished yet"
    first, last = finished[0], finished[-1]
    assert first.after is not None and last.after is not None
    if len(finished) == 1:
        return f"Round 1 of {wanted}: mean score {number(last.after.mean)}"
    return f"Mean score {number(first.after.mean)} after round 1, {number(last.after.mean)} after round {last.number}"


def _chart(finished: list[RoundResult], judge: str) -> Chart | None:
    after = [result.after for result in finished if result.after]
    if len(after) < 2:
        return None
    before = finished[0].before
    return line_chart(
        [
            Series(
                "policy",
                [float(result.number) for result in finished],
                [estimate.mean for estimate in after],
                spread=[((estimate.high or 0.0) - (estimate.low or 0.0)) / 2 for estimate in after],
            )
        ],
        title="Score after each round",
        x_label="round",
        y_label=f"mean score by {judge}",
        caption="On the same held-out prompts; the band is the 95 % interval.",
        levels=[Level(before.mean, "before PPO")] if before else [],
    )
