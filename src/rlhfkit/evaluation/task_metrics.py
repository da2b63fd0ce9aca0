"""What a field measures: the likeliest responses of both models against those that the rows give."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.evaluation.prompts import share_estimate
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.rewards.answer import AnswerReward
from rlhfkit.rewards.chrf import sacrebleu_metrics
from rlhfkit.rewards.source import ScoredText, references_of
from rlhfkit.rollout.engine import shared_out
from rlhfkit.rollout.generation import generate
from rlhfkit.rundir.results import Confusion, Estimate, Measure, TaskResults
from rlhfkit.stats.intervals import bootstrap_interval, difference_interval

__all__ = [
    "FieldMetric",
    "Question",
    "classification",
    "likeliest_responses",
    "questions_of",
    "right_answers",
    "translation",
]

FieldMetric = Literal["classification", "translation", "answer"]

NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with every response that counts as right."""

    prompt: EncodedPrompt
    references: tuple[str, ...]


def questions_of(prompts: Sequence[EncodedPrompt], metric: FieldMetric) -> list[Question]:
    """The prompts with their references; for translation, rows of the same prompt are one question.

    A sentence has several good translations, each in a row of its own; a text has one class. What is right as an answer
    is read from the row by the reward's own rule.
    Raises: RewardError where a prompt has no reference.
    """
    if metric == "answer":
        return [Question(prompt, ()) for prompt in prompts]
    wanted_by = f'evaluation.metric = "{metric}"'
    references = references_of([prompt.prompt for prompt in prompts], wanted_by=wanted_by)
    if metric == "classification":
        return [Question(prompt, accepted) for prompt, accepted in zip(prompts, references, strict=True)]
    found: dict[tuple[int, ...], Question] = {}
    for prompt, accepted in zip(prompts, references, strict=True):
        known = found.get(prompt.ids, Question(prompt, ()))
        found[prompt.ids] = Question(known.prompt, tuple(dict.fromkeys((*known.references, *accepted))))
    return list(found.values())


def likeliest_responses(
    model: LanguageModel,
    questions: Sequence[Question],
    rollout: RolloutConfig,
    *,
    on_finished: Callable[[int], None] | None = None,
) -> list[str]:
    """Responses of greedy decoding, without the blanks around them."""
    prompts = [question.prompt.ids for question in questions]
    responses = shared_out(generate)(model, prompts, rollout, seeds=None, on_finished=on_finished)
    return [model.encoder.decode(response.ids).strip() for response in responses]


def classification(
    questions: Sequence[Question], sft: Sequence[str], policy: Sequence[str], *, seed: int
) -> TaskResults:
    """Accuracy and macro-F1 over the classes that the references name; a response that names none of them is wrong."""
    from sklearn.metrics import confusion_matrix  # type: ignore[import-untyped]

    true = np.array([question.references[0] for question in questions])
    labels = sorted(set(true.tolist()))
    places = {label: place for place, label in enumerate(labels)}
    expected = np.array([places[label] for label in true])
    answers = [np.array([places.get(response, len(labels)) for response in side]) for side in (sft, policy)]

    def macro_f1(answered: np.ndarray, rows: np.ndarray) -> float:
        # F1 = 2 right / (expected + answered), by counts: scikit-learn's takes 10 ms, a thousand times as long.
        of_rows, said = expected[rows], answered[rows]
        num = len(labels)
        both = np.bincount(of_rows, minlength=num) + np.bincount(said, minlength=num + 1)[:num]
        right = np.bincount(of_rows[of_rows == said], minlength=num)
        # A class that a resample lacks, and that nobody answers there, has no F1; as 0 it would lower the mean.
        occurs = both > 0
        return float((2 * right[occurs] / both[occurs]).mean())

    def counts(answered: np.ndarray) -> tuple[tuple[int, ...], ...]:
        matrix = confusion_matrix(expected, answered, labels=range(len(labels) + 1))
        return tuple(tuple(row) for row in matrix[: len(labels)].tolist())

    prompts = [tuple(question.prompt.ids) for question in questions]
    draws = _draws(prompts, seed)
    return TaskResults(
        num=len(questions),
        measures=(
            _accuracy([answered == expected for answered in answers], prompts),
            _measure("macro-F1", macro_f1, answers, draws, is_share=True),
        ),
        confusion=Confusion(labels=tuple(labels), sft=counts(answers[0]), policy=counts(answers[1])),
    )


def right_answers(
    questions: Sequence[Question], sft: Sequence[str], policy: Sequence[str], *, seed: int, rule: AnswerReward
) -> TaskResults:
    """The share of questions with the right answer, by the rule of the reward; `seed` draws nothing here."""
    right = []
    for side in (sft, policy):
        asked = [question.prompt.prompt for question in questions]
        texts = [ScoredText(prompt, "", response) for prompt, response in zip(asked, side, strict=True)]
        right.append(rule.score(texts).numpy() == 1)
    prompts = [tuple(question.prompt.ids) for question in questions]
    return TaskResults(num=len(questions), measures=(_accuracy(right, prompts),))


def translation(questions: Sequence[Question], sft: Sequence[str], policy: Sequence[str], *, seed: int) -> TaskResults:
    """Corpus chrF and BLEU by sacrebleu with its defaults, from 0 to 100, against all references of a sentence."""
    metrics = sacrebleu_metrics('evaluation.metric = "translation"')
    most = max(len(question.references) for question in questions)
    references = [
        [question.references[index] if index < len(question.references) else None for question in questions]
        for index in range(most)
    ]
    draws = _draws(range(len(questions)), seed)
    measures = []
    for name, metric in (("chrF", metrics.CHRF()), ("BLEU", metrics.BLEU(force=True))):
        # What corpus_score() adds up: its own bootstrap resamples one system alone, so that a difference has none.
        counts = [np.array(metric._extract_corpus_statistics(side, references)) for side in (sft, policy)]
        measures.append(_measure(name, partial(_corpus_score, metric), counts, draws, is_share=False))
    return TaskResults(num=len(questions), measures=tuple(measures))


def _corpus_score(metric: Any, counts: np.ndarray, rows: np.ndarray) -> float:
    """Score of the sentences `rows`, out of what each adds to the corpus."""
    return float(metric._compute_score_from_stats(counts[rows].sum(0)).score)


@dataclass(frozen=True)
class _Draws:
    """Rows of every resample; the same for both models, so that their difference is that on the same prompts."""

    rows: list[np.ndarray]
    num_rows: int
    num_groups: int


def _draws(groups: Sequence[Hashable], seed: int) -> _Draws:
    """Resamples of whole groups, as of the rows of one prompt."""
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    each = [np.array(rows) for rows in members.values()]
    drawn = np.random.default_rng(seed).integers(len(each), size=(NUM_RESAMPLES, len(each)))
    return _Draws([np.concatenate([each[index] for index in line]) for line in drawn], len(groups), len(each))


def _accuracy(right: Sequence[np.ndarray], prompts: Sequence[Hashable]) -> Measure:
    """Accuracy of both models and its difference on the same prompts, with score intervals."""
    sft, policy = (share_estimate(side.tolist(), prompts) for side in right)
    differences = (right[1].astype(float) - right[0].astype(float)).tolist()
    low, high = difference_interval(differences, prompts)
    difference = Estimate(mean=policy.mean - sft.mean, low=low, high=high)
    return Measure(name="accuracy", is_share=True, sft=sft, policy=policy, difference=difference)


def _measure(
    name: str,
    measure: Callable[[np.ndarray, np.ndarray], float],
    answers: Sequence[np.ndarray],
    draws: _Draws,
    *,
    is_share: bool,
) -> Measure:
    """`measure` of both models and of their difference, with bootstrap intervals over the same resamples.

    Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation", sections 3 and 4.
    """
    every = np.arange(draws.num_rows)
    sft, policy = (measure(side, every) for side in answers)
    resampled = np.array([[measure(side, rows) for rows in draws.rows] for side in answers])
    return Measure(
        name=name,
        is_share=is_share,
        sft=_estimate(sft, resampled[0], draws.num_groups),
        policy=_estimate(policy, resampled[1], draws.num_groups),
        difference=_estimate(policy - sft, resampled[1] - resampled[0], draws.num_groups),
    )


def _estimate(value: float, resampled: np.ndarray, num_groups: int) -> Estimate:
    low, high = bootstrap_interval(resampled.tolist(), num_groups)
    return Estimate(mean=value, low=low, high=high)
