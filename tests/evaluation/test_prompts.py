"""Before and after on the same prompts: what is measured equals what plain loops measure."""

import hashlib
import math

import pytest
import torch

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import RewardError
from rlhfkit.evaluation.prompts import compare, distinct, estimate, win_rate
from rlhfkit.ppo import Lagrangian
from rlhfkit.rollout.constraints import Constraint
from rlhfkit.rundir.results import ConstraintResults, Estimate
from tests.training import tiny

ROLLOUT = RolloutConfig(max_response_tokens=8, temperature=0.7)


LENGTH = tiny.Scripted(lambda text: float(len(text) - 4))


def evaluated(policy, *, reward=None, judge=LENGTH, prompts=None, max_tokens=64, **options):
    return compare(
        tiny.language_model(),
        policy,
        prompts or tiny.prompts(24),
        reward=reward or tiny.count_a(),
        judge=judge,
        constraints=options.pop("constraints", ()),
        reward_name="count of a",
        judge_name="length",
        rollout=ROLLOUT,
        seed=3,
        num_samples=options.pop("num_samples", 24),
        max_tokens=max_tokens,
        on_finished=options.pop("on_finished", lambda num: None),
    )


def plain_logprobs(model, prompt, response, *, temperature, ended):
    """Log-probability of each token of a response, from whole logits."""
    ids = [*prompt.ids, *model.encoder.tokenizer(response)["input_ids"], *([tiny.EOS] if ended else [])]
    with torch.no_grad():
        logits = model.causal_lm(input_ids=torch.tensor([ids])).logits[0]
    logits = torch.cat([torch.full_like(logits[:, :1], -1e9), logits[:, 1:]], dim=1)  # PAD cannot be sampled
    logprobs = (logits / temperature).log_softmax(-1)
    return [logprobs[place - 1, ids[place]].item() for place in range(len(prompt.ids), len(ids))]


@pytest.fixture(scope="module")
def evaluation():
    return evaluated(tiny.language_model(1))


@pytest.fixture(scope="module")
def responses(evaluation):
    """Responses of "sft" and "policy"; one shorter than the limit ended by itself."""
    return {side: [getattr(sample, side) for sample in evaluation.samples] for side in ("sft", "policy")}


def test_the_reference_has_no_kl_to_itself(evaluation):
    assert evaluation.models["sft"].ref_kl == pytest.approx(0, abs=1e-6)


def test_the_same_model_twice_answers_the_same_and_ties_everywhere():
    same = evaluated(tiny.language_model())
    assert all(sample.sft == sample.policy for sample in same.samples)
    assert same.models["sft"] == same.models["policy"]
    assert same.win_rate.reward.rate == 0.5
    assert same.win_rate.reward.ties == 1.0


def test_kl_is_that_of_the_models_own_responses_at_the_sampling_temperature(evaluation, responses):
    sums = []
    for prompt, response in zip(tiny.prompts(24), responses["policy"], strict=True):
        mine, reference = (
            plain_logprobs(model, prompt, response, temperature=0.7, ended=len(response) < 8)
            for model in (tiny.language_model(1), tiny.language_model())
        )
        sums.append(sum(mine) - sum(reference))
    assert evaluation.models["policy"].ref_kl == pytest.approx(sum(sums) / 24, rel=1e-4)
    assert sum(sums) / 24 > 1


@pytest.mark.parametrize("side", ["sft", "policy"])
def test_perplexity_is_of_the_responses_under_the_reference_at_temperature_1(evaluation, responses, side):
    reference = tiny.language_model()
    logprobs = []
    for prompt, response in zip(tiny.prompts(24), responses[side], strict=True):
        logprobs += plain_logprobs(reference, prompt, response, temperature=1.0, ended=len(response) < 8)
    assert evaluation.models[side].perplexity == pytest.approx(math.exp(-sum(logprobs) / len(logprobs)), rel=1e-4)


def test_scores_of_both_sources_are_averaged_with_intervals(evaluation, responses):
    for side, texts in responses.items():
        results = evaluation.models[side]
        assert results.score.mean == pytest.approx(sum(text.count("a") for text in texts) / 24)
        assert results.judge.mean == pytest.approx(sum(len(text) - 4 for text in texts) / 24)
        assert results.score.low < results.score.mean < results.score.high
        positive = sum(len(text) > 4 for text in texts) / 24
        share = results.judge_positive_share
        assert share.mean == pytest.approx(positive)
        assert share.low < positive < share.high


def test_a_constraint_is_averaged_beside_its_limit(evaluation, responses):
    held = Constraint("letters", tiny.Scripted(len), Lagrangian(limit=3.0, is_upper=True, learning_rate=0.1))
    (found,) = evaluated(tiny.language_model(1), constraints=[held]).constraints
    assert (found.name, found.limit, found.is_upper, evaluation.constraints) == ("letters", 3.0, True, ())
    for side, texts in responses.items():
        estimate_of_side = getattr(found, side)
        assert estimate_of_side.mean == pytest.approx(sum(map(len, texts)) / 24)
        assert estimate_of_side.low < estimate_of_side.mean < estimate_of_side.high


@pytest.mark.parametrize(
    ("is_upper", "interval", "beyond", "is_broken"),
    [
        (True, (18.0, 20.0), -1.0, False),
        (True, (19.0, 23.0), 1.0, False),
        (True, (20.5, 22.5), 1.5, True),
        (False, (20.5, 22.5), -1.5, False),
        (False, (17.0, 19.0), 2.0, True),
        (True, (None, 21.0), 1.0, True),
    ],
)
def test_a_constraint_is_broken_where_its_whole_interval_is_beyond(is_upper, interval, beyond, is_broken):
    low, high = interval
    mean = high if low is None else (low + high) / 2
    after = Estimate(mean=mean, low=low, high=None if low is None else high)
    found = ConstraintResults(name="words", limit=20, is_upper=is_upper, sft=Estimate(mean=27), policy=after)
    assert (found.beyond, found.is_broken) == (beyond, is_broken)
    assert found.wanted == ("at most 20" if is_upper else "at least 20")


def test_win_rate_counts_a_tie_as_half(evaluation, responses):
    wins = ties = 0
    for before, after in zip(responses["sft"], responses["policy"], strict=True):
        wins += after.count("a") > before.count("a")
        ties += after.count("a") == before.count("a")
    rate = (wins + ties / 2) / 24
    found = evaluation.win_rate.reward
    assert 0 < ties < 24
    assert (found.rate, found.ties) == pytest.approx((rate, ties / 24))
    assert found.low < rate < found.high


def test_lengths_and_endings_are_counted(evaluation, responses):
    for side, texts in responses.items():
        assert evaluation.models[side].eos_rate == sum(len(text) < 8 for text in texts) / 24
        assert evaluation.models[side].response_tokens == sum(min(len(text) + 1, 8) for text in texts) / 24


def test_the_size_of_a_microbatch_changes_nothing(evaluation):
    other = evaluated(tiny.language_model(1), max_tokens=10_000)
    assert other.samples == evaluation.samples
    assert other.models["policy"].ref_kl == pytest.approx(evaluation.models["policy"].ref_kl, rel=1e-5)


def test_progress_hears_of_every_response():
    finished = []
    evaluated(tiny.language_model(1), on_finished=finished.append)
    assert sum(finished) == 48


def test_samples_are_the_first_prompts_with_their_scores():
    evaluation = evaluated(tiny.language_model(1), num_samples=3)
    assert [sample.prompt for sample in evaluation.samples] == [prompt.text for prompt in tiny.prompts(3)]
    for sample in evaluation.samples:
        assert (sample.score_sft, sample.score_policy) == (sample.sft.count("a"), sample.policy.count("a"))
        assert (sample.judge_sft, sample.judge_policy) == (len(sample.sft) - 4, len(sample.policy) - 4)
    assert (evaluation.reward_name, evaluation.judge_name) == ("count of a", "length")


def test_every_prompt_has_a_row_of_numbers_by_which_runs_are_compared(evaluation, responses):
    for row, (before, after, prompt) in enumerate(zip(*responses.values(), tiny.prompts(24), strict=True)):
        found = evaluation.prompts[row]
        assert found.prompt == hashlib.sha256(prompt.text.encode()).hexdigest()[:16]
        assert (found.score_sft, found.score_policy) == (before.count("a"), after.count("a"))
        assert (found.judge_sft, found.judge_policy) == (len(before) - 4, len(after) - 4)
    mean_kl = sum(found.ref_kl for found in evaluation.prompts) / 24
    assert evaluation.models["policy"].ref_kl == pytest.approx(mean_kl, rel=1e-5)
    assert len({found.ref_kl for found in evaluation.prompts}) > 12
    assert len(evaluated(tiny.language_model(1), num_samples=3).prompts) == 24


def test_without_a_judge_nothing_is_said_in_its_name(evaluation):
    alone = evaluated(tiny.language_model(1), judge=None)
    assert alone.win_rate == evaluation.win_rate.model_copy(update={"judge": None})
    nothing = {"judge": None, "judge_positive_share": None}
    assert alone.models == {side: found.model_copy(update=nothing) for side, found in evaluation.models.items()}
    nothing = {"judge_sft": None, "judge_policy": None}
    assert alone.samples == tuple(sample.model_copy(update=nothing) for sample in evaluation.samples)


@pytest.mark.parametrize("source", ["reward", "judge"])
def test_a_score_that_is_nan_is_an_error(source):
    with pytest.raises(RewardError, match=r"returned nan for response 0"):
        evaluated(tiny.language_model(1), **{source: tiny.Scripted(lambda text: math.nan)})


# ── distinct-n ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_distinct_by_hand():
    texts = ["the cat saw the cat", "the dog"]
    assert distinct(texts, 1) == 4 / 7  # the cat saw dog
    assert distinct(texts, 2) == 4 / 5  # the-cat cat-saw saw-the the-dog; no pair goes across texts


def test_distinct_of_nothing_is_0():
    assert distinct([], 1) == 0
    assert distinct(["one", ""], 2) == 0


# ── ties and repeated prompts ────────────────────────────────────────────────────────────────────────────────────────


def test_many_ties_do_not_widen_the_interval_of_a_win_rate():
    found = win_rate([1.0] * 70 + [0.0] * 930, [0.0] * 970 + [1.0] * 30)
    assert (found.rate, found.ties) == pytest.approx((0.52, 0.9))
    assert (found.low, found.high) == pytest.approx((0.510, 0.530), abs=1e-3)


def test_answers_to_one_prompt_count_as_one_where_they_agree():
    ours, prompts = [float(row < 200) for row in range(300)], [row // 30 for row in range(300)]
    theirs = [0.5] * 300
    alone, together = win_rate(ours, theirs), win_rate(ours, theirs, prompts)
    assert alone.rate == together.rate == pytest.approx(2 / 3)
    # 7 of 10 prompts are won (one of them by 20 of 30): about as wide as Wilson's of 10, with t of 9 degrees.
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert estimate(ours, prompts).low < estimate(ours).low
