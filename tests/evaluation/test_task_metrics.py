"""What a field measures: against hand-computed tables, and against scikit-learn and sacrebleu called directly."""

import math
import random

import pytest
import sacrebleu
import torch
from sklearn.metrics import f1_score

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.rewards import AnswerRewardConfig
from rlhfkit.errors import RewardError
from rlhfkit.evaluation.task_metrics import (
    Question,
    classification,
    likeliest_responses,
    questions_of,
    right_answers,
    translation,
)
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.records import Prompt
from rlhfkit.rewards.answer import AnswerReward
from rlhfkit.rundir.results import Measure
from tests.training import tiny


def prompt(text: str = "a", reference: str | None = "b") -> EncodedPrompt:
    return EncodedPrompt(Prompt(text, reference=reference), text, tuple(map(ord, text)), was_cut=False)


def questions(*references: str) -> list[Question]:
    return [Question(prompt(f"question {number}"), (reference,)) for number, reference in enumerate(references)]


def by_name(results) -> dict[str, Measure]:
    return {measure.name: measure for measure in results.measures}


# ── classification ───────────────────────────────────────────────────────────────────────────────────────────────────

TRUE = questions("good", "good", "good", "bad", "bad")
BEFORE = ["good", "bad", "fine", "bad", "good"]
AFTER = ["good", "good", "bad", "bad", "bad"]


def test_accuracy_confusion_and_macro_f1_by_hand():
    results = classification(TRUE, BEFORE, AFTER, seed=0)
    assert results.num == 5
    assert results.confusion.labels == ("bad", "good")
    # Rows: bad, good; columns: bad, good, none of them.
    assert results.confusion.sft == ((1, 1, 0), (1, 1, 1))
    assert results.confusion.policy == ((2, 0, 0), (1, 2, 0))
    assert results.confusion.has_others
    found = by_name(results)
    assert found["accuracy"].sft.mean == pytest.approx(2 / 5)
    assert found["accuracy"].policy.mean == pytest.approx(4 / 5)
    assert found["accuracy"].difference.mean == pytest.approx(2 / 5)
    # F1 = 2 * right / (so called + truly so). Before: bad 2/(2+2), good 2/(2+3). After: bad 4/(3+2), good 4/(2+3).
    assert found["macro-F1"].sft.mean == pytest.approx((1 / 2 + 2 / 5) / 2)
    assert found["macro-F1"].policy.mean == pytest.approx((4 / 5 + 4 / 5) / 2)


def test_macro_f1_is_scikit_learns():
    draw = random.Random(0)
    true, before, after = ([draw.choice("abc") for _ in range(60)] for _ in range(3))
    found = by_name(classification(questions(*true), before, after, seed=0))["macro-F1"]
    assert found.sft.mean == pytest.approx(f1_score(true, before, average="macro"))
    assert found.policy.mean == pytest.approx(f1_score(true, after, average="macro"))


def test_intervals_hold_what_the_normal_approximation_says():
    true = questions(*["good"] * 400)
    before, after = ["good"] * 200 + ["bad"] * 200, ["good"] * 280 + ["bad"] * 120
    found = classification(true, before, after, seed=1).measures[0]
    # Share p of n: p ± 1.96 sqrt(p (1 - p) / n); the difference is 1 for 80 prompts and 0 for the others, so p = 0.2.
    for estimate, p in ((found.sft, 0.5), (found.policy, 0.7), (found.difference, 0.2)):
        half = 1.96 * math.sqrt(p * (1 - p) / 400)
        # 1000 resamples place a quantile to within about a tenth of the interval.
        assert (estimate.low, estimate.high) == pytest.approx((p - half, p + half), abs=0.2 * half)


def test_the_same_seed_gives_the_same_interval():
    first, again, other = (classification(TRUE, BEFORE, AFTER, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.measures[0].sft.mean == other.measures[0].sft.mean


def test_equal_models_differ_by_nothing():
    accuracy, macro_f1 = (measure.difference for measure in classification(TRUE, BEFORE, BEFORE, seed=0).measures)
    assert accuracy.mean == macro_f1.mean == 0
    assert accuracy.low == -accuracy.high < 0  # few rows that agree do not show that all would
    assert (macro_f1.low, macro_f1.high) == (None, None)


def test_a_class_that_a_resample_lacks_does_not_lower_macro_f1():
    true = questions(*["good"] * 9, "bad")  # a third of the resamples has no "bad"
    right = ["good"] * 9 + ["bad"]
    accuracy, macro_f1 = classification(true, right, right, seed=0).measures
    assert (macro_f1.sft.mean, macro_f1.sft.low, macro_f1.sft.high) == (1, None, None)
    low = 0.687790  # the p for which 0.975 - p = 1.959964 sqrt(p (1 - p) / 10): Wilson's of 10 of 10, half corrected
    assert (accuracy.sft.low, accuracy.sft.high) == pytest.approx((low, 1), abs=1e-6)


# ── right answers ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_share_of_right_answers_by_hand():
    solutions = ["1 + 2 = 3\n#### 3", "#### 1,200", "#### 7", "#### 9"]
    rows = [
        EncodedPrompt(Prompt(f"question {i}", columns={"solution": text}), "", (i,), was_cut=False)
        for i, text in enumerate(solutions)
    ]
    asked = questions_of(rows, "answer")
    rule = AnswerReward(AnswerRewardConfig(column="solution", after="####"))
    before, after = ["3", "#### 1200", "#### 8", ""], ["#### 3.0", "so #### 1,200", "#### 7 #### 8", "9"]
    results = right_answers(asked, before, after, seed=0, rule=rule)
    (found,) = results.measures
    assert (results.num, found.name, results.confusion) == (4, "accuracy", None)
    assert (found.sft.mean, found.policy.mean, found.difference.mean) == (0.25, 0.5, 0.25)


# ── translation ──────────────────────────────────────────────────────────────────────────────────────────────────────

FRENCH = ["Je suis si fatigué !", "Il me le faut.", "Tom m’a quittée.", "Ne bouge pas, s'il te plaît."]
WORSE = ["Je suis fatigué.", "Il faut.", "Tom est là.", "Ne bougez pas."]
BETTER = ["Je suis si fatigué.", "Il le faut.", "Tom m’a quittée.", "Ne bouge pas, s'il vous plaît."]


def test_corpus_chrf_and_bleu_are_sacrebleus():
    found = by_name(translation(questions(*FRENCH), WORSE, BETTER, seed=0))
    assert list(found) == ["chrF", "BLEU"]
    for name, score in (("chrF", sacrebleu.corpus_chrf), ("BLEU", sacrebleu.corpus_bleu)):
        before, after = (score(side, [FRENCH]).score for side in (WORSE, BETTER))
        assert found[name].sft.mean == pytest.approx(before)
        assert found[name].policy.mean == pytest.approx(after)
        assert found[name].difference.mean == pytest.approx(after - before)
        assert found[name].difference.low <= after - before <= found[name].difference.high


def test_the_best_of_several_references_counts():
    asked = [Question(prompt(), ("Va !", "Marche.", "Bouge !")), Question(prompt(), ("Salut.",))]
    found = by_name(translation(asked, ["Va !", "Salut !"], ["Marche.", "Salut."], seed=0))["chrF"]
    references = [["Va !", "Salut."], ["Marche.", None], ["Bouge !", None]]
    assert found.sft.mean == pytest.approx(sacrebleu.corpus_chrf(["Va !", "Salut !"], references).score)
    assert found.policy.mean == pytest.approx(100)


# ── questions and answers ────────────────────────────────────────────────────────────────────────────────────────────


def test_translations_of_one_sentence_are_one_question():
    rows = [prompt("Go.", " Va !"), prompt("Hi.", " Salut."), prompt("Go.", " Bouge !"), prompt("Go.", " Va !")]
    found = questions_of(rows, "translation")
    assert [(question.prompt.text, question.references) for question in found] == [
        ("Go.", ("Va !", "Bouge !")),
        ("Hi.", ("Salut.",)),
    ]


def test_texts_to_classify_are_questions_of_their_own():
    found = questions_of([prompt("Nice.", " good"), prompt("Nice.", " bad")], "classification")
    assert [question.references for question in found] == [("good",), ("bad",)]


@pytest.mark.parametrize("metric", ["classification", "translation"])
def test_a_prompt_without_a_reference_cannot_be_measured(metric):
    with pytest.raises(RewardError, match=f'evaluation.metric = "{metric}" compares with the right response'):
        questions_of([prompt(), prompt(reference=None)], metric)


def test_the_likeliest_responses_are_greedy():
    model, asked = tiny.language_model(2), [Question(encoded, ("a",)) for encoded in tiny.prompts(6)]
    responses = likeliest_responses(model, asked, RolloutConfig(max_response_tokens=5, temperature=3.0))
    for question, response in zip(asked, responses, strict=True):
        assert response == greedy(model, list(question.prompt.ids), num=5)


def greedy(model, ids: list[int], *, num: int) -> str:
    """The likeliest token, again and again, from whole logits."""
    found: list[int] = []
    while len(found) < num and found[-1:] != [tiny.EOS]:
        logits = model.causal_lm(input_ids=torch.tensor([ids + found])).logits[0, -1]
        logits[tiny.PAD] = -math.inf  # PAD cannot be sampled
        found.append(int(logits.argmax()))
    return model.encoder.decode([token for token in found if token != tiny.EOS])


def test_values_are_written_as_people_write_them():
    share = classification(TRUE, BEFORE, AFTER, seed=0).measures[0]
    assert (share.shown(0.712), share.shown_difference(-0.0912)) == ("71.2\u202f%", "−9.1")
    points = share.model_copy(update={"is_share": False})
    assert (points.shown(34.91), points.shown_difference(1.5)) == ("34.9", "+1.5")
