"""The Bradley-Terry reward model: its loss, what it reads, and what it is worth on pairs it has not seen."""

import dataclasses
import json
import math

import pytest
import torch

from rlhfkit.config.training import OptimConfig, RewardModelConfig
from rlhfkit.errors import RewardError, TrainingError
from rlhfkit.machine.progress import Progress
from rlhfkit.models.loading import load_classifier
from rlhfkit.models.reward_model import Normalization, RewardModel, read_normalization
from rlhfkit.records import Preference, Prompt
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.reward_model import (
    EncodedPair,
    bradley_terry_loss,
    encode_pairs,
    measure,
    normalization_of,
    score_pairs,
    train_reward_model,
)
from tests.training import tiny

# With an epsilon this large, AdamW moves the weights by the negative gradient: rate * m / (sqrt(v) + eps) = gradient.
PLAIN = OptimConfig(learning_rate=1e7, adam_eps=1e7, schedule="constant", max_grad_norm=1e9)

PAIRS = [
    EncodedPair([2, 3, 4, 1], [2, 3, 5, 6, 7, 1], 0.0),
    EncodedPair([8, 9, 2, 2, 2, 3, 1], [8, 9, 1], 0.5),
    EncodedPair([4, 1], [5, 1], 0.0),
    EncodedPair([10, 11, 12, 1], [10, 13, 1], 2.0),
]


def settings(**changes):
    return RewardModelConfig(**{"minibatch_pairs": 4, "validation_share": 0.0, "optim": PLAIN, **changes})


def train(model, pairs, config, directory, *, progress=None):
    run = RunDir(directory)
    checkpoints = Checkpoints(run.checkpoints / "reward_model", warn=pytest.fail)
    with RunLog(run) as log:
        result = train_reward_model(
            model,
            pairs,
            config,
            stage="reward_model",
            seed=0,
            log=log,
            checkpoints=checkpoints,
            progress=progress or Progress(quiet=True),
        )
    return result, [json.loads(line) for line in run.metrics.read_text().splitlines()]


def plain_score(model, ids):
    """The head's output at the last of `ids`, without padding."""
    return model.classifier.score(model.classifier.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])[0]


# ── loss ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_bradley_terry_loss_by_hand():
    chosen, rejected = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.0, 0.0, 1.0])
    expected = [math.log(1 + math.exp(-1)), math.log(2), math.log(1 + math.exp(3))]
    assert bradley_terry_loss(chosen, rejected, torch.zeros(3)).tolist() == pytest.approx(expected)


def test_margin_shifts_the_loss():
    chosen, rejected = torch.tensor([1.0]), torch.tensor([0.25])
    assert bradley_terry_loss(chosen, rejected, torch.tensor([0.75])).item() == pytest.approx(math.log(2))
    shifted = bradley_terry_loss(chosen, rejected, torch.tensor([0.5]))
    torch.testing.assert_close(shifted, bradley_terry_loss(chosen - 0.5, rejected, torch.zeros(1)))


def test_bradley_terry_gradient_by_hand():
    chosen, rejected = torch.tensor([1.0], requires_grad=True), torch.tensor([0.0], requires_grad=True)
    torch.autograd.backward(bradley_terry_loss(chosen, rejected, torch.tensor([0.5])))
    expected = 1 / (1 + math.exp(0.5))  # 1 - sigmoid(1 - 0 - 0.5)
    assert chosen.grad.item() == pytest.approx(-expected)
    assert rejected.grad.item() == pytest.approx(expected)


def test_loss_of_very_different_scores_is_finite():
    chosen = torch.tensor([-1000.0], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(1), torch.zeros(1))
    torch.autograd.backward(loss)
    assert loss.item() == 1000.0
    assert chosen.grad.item() == -1.0


def step_of(config, directory):
    model = tiny.reward_model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    _, (row,) = train(model, PAIRS, config, directory)
    return row, {name: before[name] - weight.detach() for name, weight in model.named_parameters()}


def test_gradient_is_of_the_mean_over_pairs(tmp_path):
    model = tiny.reward_model()
    differences = [plain_score(model, pair.chosen) - plain_score(model, pair.rejected) for pair in PAIRS]
    margins = [pair.margin for pair in PAIRS]
    losses = [(1 + (margin - difference).exp()).log() for difference, margin in zip(differences, margins, strict=True)]
    expected = torch.stack(losses).mean()
    torch.autograd.backward(expected)
    row, step = step_of(settings(), tmp_path)
    assert row["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert row["accuracy"] == sum(difference.item() > 0 for difference in differences) / 4
    assert max(float(gradient.abs().max()) for gradient in step.values()) > 0.1
    for name, parameter in model.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(step[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("microbatch_tokens", [1, 24, 40])
def test_microbatches_do_not_change_loss_and_gradient(tmp_path, microbatch_tokens):
    row, step = step_of(settings(), tmp_path / "whole")
    other_row, other = step_of(settings(microbatch_tokens=microbatch_tokens), tmp_path / "parts")
    assert other_row["loss"] == pytest.approx(row["loss"], rel=1e-5)
    for name, gradient in step.items():
        torch.testing.assert_close(other[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


# ── what it reads ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_score_is_read_at_the_eos_and_not_at_the_padding():
    model = tiny.reward_model()
    chosen, rejected = score_pairs(model, PAIRS)
    expected = [[plain_score(model, side).item() for side in (pair.chosen, pair.rejected)] for pair in PAIRS]
    torch.testing.assert_close(torch.stack([chosen, rejected], dim=1), torch.tensor(expected))
    with torch.no_grad():
        cut, _ = score_pairs(model, [EncodedPair(pair.chosen[:-1], pair.rejected[:-1], 0.0) for pair in PAIRS])
    assert (cut - chosen).abs().min().item() > 1e-3  # without the EOS it is another score


def test_pairs_are_prompt_response_and_eos():
    preferences = [Preference(Prompt("ab"), "cd", "e", margin=0.3), Preference(Prompt("a"), "b", "c")]
    model = tiny.reward_model()
    assert encode_pairs(preferences, model, max_tokens=12, use_margin=True) == [
        EncodedPair([2, 3, 4, 5, 1], [2, 3, 6, 1], 0.3, "ab"),
        EncodedPair([2, 3, 1], [2, 4, 1], 0.0, "a"),
    ]
    assert [p.margin for p in encode_pairs(preferences, model, max_tokens=12, use_margin=False)] == [0.0, 0.0]


def test_an_overlong_pair_loses_the_beginning_of_its_prompt():
    (pair,) = encode_pairs([Preference(Prompt("abcd"), "ef", "g")], tiny.reward_model(), max_tokens=5, use_margin=False)
    assert pair == EncodedPair([4, 5, 6, 7, 1], [3, 4, 5, 8, 1], 0.0, "abcd")


# ── learning, killing ────────────────────────────────────────────────────────────────────────────────────────────────


def many_pairs(num, seed=0):
    """The response with more "a" wins; it is the longer one as often as not."""
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    while len(pairs) < num:
        sides = [
            torch.randint(2, 14, (int(torch.randint(2, 7, (), generator=generator)),), generator=generator).tolist()
            for _ in range(2)
        ]
        better, worse = sorted(sides, key=lambda side: -side.count(2))
        if better.count(2) > worse.count(2):
            pairs.append(EncodedPair([5, *better, 1], [5, *worse, 1], 0.0))
    return pairs


def test_preferences_are_learnt_and_hold_on_pairs_not_seen(tmp_path):
    model = tiny.reward_model()
    config = settings(epochs=4, minibatch_pairs=16, optim=OptimConfig(learning_rate=1e-2), validation_share=0.1)
    before = measure(model, many_pairs(100, seed=1), max_tokens=4096)["accuracy"]
    result, _ = train(model, many_pairs(300), config, tmp_path)
    after = measure(model, many_pairs(100, seed=1), max_tokens=4096)["accuracy"]
    assert before < 0.7
    assert after > 0.9
    assert result["validation/accuracy"] > 0.9


@pytest.mark.parametrize("kill_after", [1, 5])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, kill_after):
    config = settings(epochs=2, minibatch_pairs=4, validation_share=0.2, checkpoint_minutes=1e-9, optim=OptimConfig())
    pairs = many_pairs(20)
    whole, resumed = tiny.reward_model(), tiny.reward_model()
    result, rows = train(whole, pairs, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        interrupted = tiny.Interrupting("reward_model", kill_after)
        train(tiny.reward_model(), pairs, config, tmp_path / "killed", progress=interrupted)
    assert train(resumed, pairs, config, tmp_path / "killed") == (result, rows)
    for name, weight in whole.named_parameters():
        assert torch.equal(dict(resumed.named_parameters())[name], weight), name


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    model = tiny.reward_model()
    pairs = [*PAIRS[:3], dataclasses.replace(PAIRS[3], margin=math.nan)]
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    with pytest.raises(TrainingError, match="loss of stage reward_model is nan in iteration 0"):
        train(model, pairs, settings(), tmp_path)
    assert all(torch.equal(before[name], weight) for name, weight in model.named_parameters())


# ── what it is worth ─────────────────────────────────────────────────────────────────────────────────────────────────


class Known:
    """Scores a sequence with the number that `scores` has for its first token."""

    def __init__(self, scores):
        self.scores = torch.tensor(scores)
        self.encoder, self.device = tiny.encoder(), self.scores.device

    def __call__(self, ids, lengths):
        return self.scores[ids[:, 0]]


def test_accuracy_calibration_and_lengths_by_hand():
    # Scores of tokens 0 to 6; a pair's confidence is sigmoid(|difference|): 0.5, 0.62, 0.73, 0.95.
    model = Known([0.0, 0.0, 0.5, 1.0, 3.0, 0.0, 3.0])
    pairs = [
        EncodedPair([0], [1, 9, 9, 9], 0.0),  # a tie: half right; shorter by 3
        EncodedPair([2, 9], [0, 9, 9, 9], 0.0),  # right, 0.5; shorter by 2
        EncodedPair([0, 9], [2, 9, 9], 0.0),  # wrong, 0.5; shorter by 1
        EncodedPair([3], [0], 0.0),  # right, 1; as long
        EncodedPair([4, 9], [5], 0.0),  # right, 3; longer by 1
        EncodedPair([5, 9, 9], [6], 0.0),  # wrong, 3; longer by 2
    ]
    report = measure(model, pairs, max_tokens=10)
    assert report["accuracy"] == pytest.approx(3.5 / 6)
    assert report["accuracy_low"] < 3.5 / 6 < report["accuracy_high"]
    assert report["num_pairs"] == 6

    def sigmoid(x):
        return 1 / (1 + math.exp(-x))

    assert report["calibration"] == [
        {"confidence": pytest.approx(0.5), "accuracy": pytest.approx(0.5), "count": 1},
        {"confidence": pytest.approx(sigmoid(0.5)), "accuracy": pytest.approx(0.5), "count": 2},
        {"confidence": pytest.approx(sigmoid(1)), "accuracy": pytest.approx(1.0), "count": 1},
        {"confidence": pytest.approx(sigmoid(3)), "accuracy": pytest.approx(0.5), "count": 2},
    ]
    assert report["by_length_difference"] == [
        {"label": "chosen shorter by 2 to 3 tokens", "accuracy": pytest.approx(0.75), "count": 2},
        {"label": "chosen shorter by 0 to 1 tokens", "accuracy": pytest.approx(0.5), "count": 2},
        {"label": "chosen longer by 1 to 2 tokens", "accuracy": pytest.approx(0.5), "count": 2},
    ]


def test_a_confidence_of_one_is_in_the_last_bin():
    report = measure(Known([0.0, 100.0]), [EncodedPair([1], [0], 0.0)], max_tokens=10)
    assert report["calibration"] == [{"confidence": 1.0, "accuracy": 1.0, "count": 1}]
    assert report["by_length_difference"] == []  # there is nothing to compare it with


@pytest.mark.parametrize(
    ("longer", "groups"),
    [
        ([0, 0, 0, 0, 0, 0], []),
        ([1, 1, 1, 1, 1, 5], []),
        ([0, 0, 1, 1, 1, 1], [("as long as each other", 2), ("chosen longer by 1 token", 4)]),
        ([2, 2, 2, 2, 5, 7], [("chosen longer by 2 tokens", 4), ("chosen longer by 5 to 7 tokens", 2)]),
    ],
)
def test_pairs_of_the_same_length_difference_are_in_one_group(longer, groups):
    pairs = [EncodedPair([1] * (1 + more), [0], 0.0) for more in longer]
    found = measure(Known([0.0, 1.0]), pairs, max_tokens=10)["by_length_difference"]
    assert [(group["label"], group["count"]) for group in found] == groups


# ── normalisation ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_normalisation_gives_the_reference_scores_mean_0_and_deviation_1():
    raw = torch.tensor([1.0, 2.0, 6.0])
    normalization = normalization_of(raw)
    assert normalization.mean == pytest.approx(3.0)
    assert normalization.std == pytest.approx(math.sqrt(14 / 3))


def test_a_reward_model_that_says_the_same_of_everything_is_refused():
    with pytest.raises(RewardError, match=r"gives all 4 reference responses the score 0\.7; train it on more pairs"):
        normalization_of(torch.full((4,), 0.7))


def test_scores_that_differ_by_rounding_alone_are_the_same():
    raw = torch.tensor([1000.0, 1000.0001, 1000.0, 1000.0001])  # neighbours in float32
    assert float(raw.std()) > 1e-6
    with pytest.raises(RewardError, match="gives all 4 reference responses the score 1000"):
        normalization_of(raw)


def test_normalisation_goes_through_the_saved_directory(tmp_path):
    model = tiny.reward_model()
    generator = torch.Generator().manual_seed(0)
    responses = ["".join(tiny.LETTERS[i] for i in torch.randint(0, 12, (5,), generator=generator)) for _ in range(64)]
    episodes = [ScoredText(Prompt("ab"), "ab", response) for response in responses]
    raw = RewardModelReward(model, Normalization()).raw_scores(episodes)
    model.save(tmp_path / "rm", normalization=normalization_of(raw))

    classifier = load_classifier(
        str(tmp_path / "rm"), tiny.encoder().tokenizer, device=tiny.CPU, dtype=torch.float32, num_labels=1
    )
    loaded = RewardModelReward(RewardModel(classifier, tiny.encoder()), read_normalization(tmp_path / "rm"))
    scores = loaded.score(episodes)
    assert float(raw.mean().abs()) > 1e-3
    assert float(scores.mean()) == pytest.approx(0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(scores, (raw - raw.mean()) / raw.std(correction=0), atol=1e-5, rtol=1e-5)


def test_pairs_of_one_prompt_widen_the_interval_of_the_accuracy():
    difference = [1.0] * 60 + [-1.0] * 20
    pairs = [EncodedPair([2], [0], 0.0) if won > 0 else EncodedPair([0], [2], 0.0) for won in difference]
    repeated = [dataclasses.replace(pair, prompt=number // 10) for number, pair in enumerate(pairs)]
    scores = Known([0.0, 0.0, 1.0])
    alone, together = measure(scores, pairs, max_tokens=10), measure(scores, repeated, max_tokens=10)
    assert (alone["accuracy"], alone["num_prompts"]) == (0.75, 80)
    assert (together["accuracy"], together["num_prompts"]) == (0.75, 8)
    # Wilson's of 60 of 80 is 0.6453 to 0.8320, and a correction of 1 / 320 is made for steps.
    assert (alone["accuracy_low"], alone["accuracy_high"]) == pytest.approx((0.6420, 0.8347), abs=3e-4)
    # Each prompt is all or nothing, so it is as good as 6 of 8, of which Wilson's is 0.4093 to 0.9285.
    assert (together["accuracy_low"], together["accuracy_high"]) == pytest.approx((0.4093, 0.9285), abs=4e-3)
