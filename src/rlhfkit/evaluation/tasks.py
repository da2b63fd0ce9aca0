"""What a field measures: the likeliest responses of both models against those that the rows give."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from rlhfkit.config.schema import RolloutConfig
from rlhfkit.evaluation.results import Confusion, Estimate, Measure, TaskResults
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.template import EncodedPrompt
from rlhfkit.rewards.chrf import sacrebleu_metrics
from rlhfkit.rewards.source import references_of
from rlhfkit.rollout.generation import generate

__all__ = ["FieldMetric", "Question", "classification", "likeliest_responses", "questions_of", "translation"]

FieldMetric = Literal["classification", "translation"]

NUM_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with every response that counts as right."""

    prompt: EncodedPrompt
    references: tuple[str, ...]


def questions_of(prompts: Sequence[EncodedPrompt], metric: FieldMetric) -> list[Question]:
    """The prompts with their references; for translation, rows of the same prompt are one question.

    A sentence has several good translations, each in a row of its own; a text has one class.
    Raises: RewardError where a prompt has no reference.
    """
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
    responses = generate(model, prompts, rollout, seeds=None, on_finished=on_finished)
    return [model.encoder.decode(response.ids).strip() for response in responses]


def classification(
    questions: Sequence[Question], sft: Sequence[str], policy: Sequence[str], *, seed: int
) -> TaskResults:
    """Accuracy and macro-F1 over the classes that the references name; a response that names none of them is wrong."""
    from sklearn.metrics import confusion_matrix, f1_score  # type: ignore[import-untyped]

    true = np.array([question.references[0] for question in questions])
    labels = sorted(set(true.tolist()))
    places = {label: place for place, label in enumerate(labels)}
    expected = np.array([places[label] for label in true])
    answers = [np.array([places.get(response, len(labels)) for response in side]) for side in (sft, policy)]

    def accuracy(answered: np.ndarray, rows: np.ndarray) -> float:
        return float(np.mean(answered[rows] == expected[rows]))

    def macro_f1(answered: np.ndarray, rows: np.ndarray) -> float:
        classes = range(len(labels))
        return float(f1_score(expected[rows], answered[rows], labels=classes, average="macro", zero_division=0.0))

    def counts(answered: np.ndarray) -> tuple[tuple[int, ...], ...]:
        matrix = confusion_matrix(expected, answered, labels=range(len(labels) + 1))
        return tuple(tuple(row) for row in matrix[: len(labels)].tolist())

    draws = _draws(len(questions), seed)
    return TaskResults(
        num=len(questions),
        measures=(
            _measure("accuracy", accuracy, answers, draws, is_share=True),
            _measure("macro-F1", macro_f1, answers, draws, is_share=True),
        ),
        confusion=Confusion(labels=tuple(labels), sft=counts(answers[0]), policy=counts(answers[1])),
    )


def translation(questions: Sequence[Question], sft: Sequence[str], policy: Sequence[str], *, seed: int) -> TaskResults:
    """Corpus chrF and BLEU by sacrebleu with its defaults, from 0 to 100, against all references of a sentence."""
    metrics = sacrebleu_metrics('evaluation.metric = "translation"')
    most = max(len(question.references) for question in questions)
    references = [
        [question.references[index] if index < len(question.references) else None for question in questions]
        for index in range(most)
    ]
    draws = _draws(len(questions), seed)
    measures = []
    for name, metric in (("chrF", metrics.CHRF()), ("BLEU", metrics.BLEU(force=True))):
        # What corpus_score() adds up: its own bootstrap resamples one system alone, so that a difference has none.
        counts = [np.array(metric._extract_corpus_statistics(side, references)) for side in (sft, policy)]
        measures.append(_measure(name, partial(_corpus_score, metric), counts, draws, is_share=False))
    return TaskResults(num=len(questions), measures=tuple(measures))


def _corpus_score(metric: Any, counts: np.ndarray, rows: np.ndarray) -> float:
    """Score of the sentences `rows`, out of what each adds to the corpus."""
    return float(metric._compute_score_from_stats(counts[rows].sum(0)).score)


def _draws(num: int, seed: int) -> np.ndarray:
    """Rows of every resample; the same for both models, so that their difference is that on the same prompts."""
    return np.random.default_rng(seed).integers(num, size=(NUM_RESAMPLES, num))


def _measure(
    name: str,
    measure: Callable[[np.ndarray, np.ndarray], float],
    answers: Sequence[np.ndarray],
    draws: np.ndarray,
    *,
    is_share: bool,
) -> Measure:
    """`measure` of both models and of their difference, with percentile bootstrap intervals.

    Source: Koehn 2004, "Statistical Significance Tests for Machine Translation Evaluation", sections 3 and 4.
    """
    every = np.arange(draws.shape[1])
    sft, policy = (measure(side, every) for side in answers)
    resampled = np.array([[measure(side, rows) for rows in draws] for side in answers])
    return Measure(
        name=name,
        is_share=is_share,
        sft=_estimate(sft, resampled[0]),
        policy=_estimate(policy, resampled[1]),
        difference=_estimate(policy - sft, resampled[1] - resampled[0]),
    )


def _estimate(value: float, resampled: np.ndarray) -> Estimate:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Estimate(mean=value, low=float(low), high=float(high))
