"""What the score rests on: exact where that can be known, and distinguished from chance by leaving tokens out."""

import math
import random
from itertools import pairwise

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from rlhfkit.explanation.alignment import at_ends, shared_out
from rlhfkit.explanation.deletion import Ablated, ablation, check_by_deletion, effects_of
from rlhfkit.explanation.gradients import integrated_gradients, prefix_scores, read_by, reward_gradients
from rlhfkit.explanation.pieces import pieces_of, sentences_of, spans_of
from rlhfkit.explanation.reasons import ABLATION, GRADIENTS, reasons_for
from rlhfkit.models.reward_model import LengthTrend, Normalization, Scale
from rlhfkit.records import Prompt
from rlhfkit.rewards.ensemble import EnsembleReward
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from tests.probes.planted import PlantedReward
from tests.training import tiny

TEXT = (
    "the soup was hot and the waiter kind but the wonderful cake came late to our table and so we left for the "
    "station where a train to the sea stood ready"
)
WORDS = TEXT.split()
PIECES = [WORDS[0], *(f" {word}" for word in WORDS[1:])]
PLACE = WORDS.index("wonderful")


def episode(text, *, finished=False):
    return ScoredText(Prompt("p"), "p", text, finished)


def paid_for(word, *, seed=0):
    """Pays 3 for a word, beside noise of a tenth that depends on the whole text."""
    planted = PlantedReward(lambda text: 10 * 3.0 * (word in text), seed=seed)

    class Tenth:
        def score(self, episodes):
            return planted.score(episodes) / 10

    return Tenth()


def test_a_planted_reward_is_attributed_to_its_word_and_the_attribution_holds():
    ablated = Ablated(paid_for("wonderful"), episode("".join(PIECES)), PIECES)
    values = ablation(ablated)
    assert max(range(len(values)), key=values.__getitem__) == PLACE
    check = check_by_deletion(ablated, values, seed=1)
    assert check.is_faithful
    assert check.p_value < 0.05
    assert check.drop == pytest.approx(3, abs=0.3)  # gone with the first token, and it stays gone


def test_a_random_attribution_holds_in_about_one_of_twenty_rewards():
    held = 0
    for seed in range(20):
        ablated = Ablated(paid_for("wonderful", seed=seed), episode("".join(PIECES)), PIECES)
        draw = random.Random(seed)
        held += check_by_deletion(ablated, [draw.random() for _ in PIECES], seed=seed).is_faithful
    assert held <= 4  # 1 expected; more than 4 has a probability below 1 %


def test_an_attribution_of_a_reward_that_looks_at_nothing_does_not_hold():
    class Nothing:
        def score(self, episodes):
            return torch.zeros(len(episodes))

    check = check_by_deletion(Ablated(Nothing(), episode("".join(PIECES)), PIECES), [1.0] * len(PIECES), seed=0)
    assert not check.is_faithful


def test_a_response_of_few_tokens_is_not_checked_and_so_not_drawn():
    reasons = reasons_for(paid_for("the"), episode("the soup"), ["the", " soup"], source="function", seed=0)
    assert reasons.attributions[0].check is None
    assert not reasons.attributions[0].may_be_drawn
    assert "fewer than 6 tokens" in reasons.notes[-1]


def test_parts_of_a_response_have_the_effect_of_what_they_say():
    text = "It was late. The cake was wonderful! We left, and came back"
    ablated = Ablated(paid_for("wonderful"), episode(text), [text])
    sentences, spans = sentences_of(text), spans_of(text)
    assert [part.text for part in sentences] == ["It was late.", " The cake was wonderful!", " We left, and came back"]
    assert "".join(part.text for part in spans) == text
    effects = {part.text: part.effect for part in effects_of(ablated, sentences)}
    assert effects[" The cake was wonderful!"] == pytest.approx(3, abs=0.3)
    assert abs(effects["It was late."]) < 0.3


def test_without_the_token_that_ends_it_a_response_is_unfinished():
    class Finished:
        def score(self, episodes):
            return torch.tensor([float(each.finished) for each in episodes])

    assert ablation(Ablated(Finished(), episode("ab", finished=True), ["a", "b", ""])) == (0.0, 0.0, 1.0)


class Linear(nn.Module):
    """score = weights · sum of the embeddings."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.weights = nn.Embedding(7, 5), torch.randn(5)

    def forward(self, ids):
        return self.embedding(ids).sum(1) @ self.weights


def test_integrated_gradients_of_a_linear_head_are_exact():
    pytest.importorskip("captum")
    model, ids, baseline = Linear(), torch.tensor([[1, 4, 2]]), torch.tensor([[1, 0, 0]])
    (values,), completeness = integrated_gradients(model, [model.embedding], [ids], [baseline])
    rows = model.embedding.weight.detach()
    by_hand = [float((rows[token] - rows[before]) @ model.weights) for token, before in ((1, 1), (4, 0), (2, 0))]
    assert values == pytest.approx(by_hand, abs=1e-6)
    assert completeness.is_complete
    assert completeness.error < 1e-5


def test_integrated_gradients_that_do_not_add_up_are_said_to():
    pytest.importorskip("captum")

    class Step(Linear):
        def forward(self, ids):  # its gradient is zero everywhere but at one point of the way
            return (20_000 * (super().forward(ids) - 1.23456)).sigmoid()

    model = Step()
    _, completeness = integrated_gradients(
        lambda ids: model(ids), [model.embedding], [torch.tensor([[4, 2]])], [torch.tensor([[0, 0]])]
    )
    assert completeness.num_steps == 400
    assert completeness.error > 0.05
    assert not completeness.is_complete


@pytest.fixture(scope="module")
def rewards():
    return RewardModelReward(tiny.reward_model(3), Normalization(mean=0.5, std=2.0), max_tokens=48)


RESPONSE = "abcdefghijkl"
WHOLE = ScoredText(Prompt("ab"), "ab", RESPONSE, True)
TOKENS = [*RESPONSE, ""]


def first_head(scores):
    return scores[:, 0]


def reads_of(*members):
    return [read_by(member, WHOLE, TOKENS) for member in members]


def test_prefix_scores_are_those_of_the_prefixes_and_end_with_the_score(rewards):
    whole = ScoredText(Prompt("ab"), "ab", RESPONSE, False)
    read = read_by(rewards, whole, list(RESPONSE))
    prefixes = [ScoredText(Prompt("ab"), "ab", RESPONSE[:end], False) for end in range(1, len(RESPONSE) + 1)]
    assert list(prefix_scores([read], first_head)) == pytest.approx(rewards.score(prefixes).tolist(), abs=1e-5)


def test_gradients_of_a_reward_model_share_out_the_score_and_leave_the_model_as_it_was(rewards):
    pytest.importorskip("captum")
    whole = ScoredText(Prompt("ab"), "ab", RESPONSE, True)
    before, embedding = rewards.score([whole]), rewards.model.classifier.get_input_embeddings()
    read = read_by(rewards, whole, [*RESPONSE, ""])
    values, completeness = reward_gradients([read], first_head)
    # The baseline by hand: the mean embedding in place of each token of the response.
    embeddings = embedding(read.ids).detach().clone()
    embeddings[:, read.start :] = embedding.weight.detach().mean(0)
    hidden = rewards.model.classifier.base_model(inputs_embeds=embeddings).last_hidden_state[:, -1]
    baseline = (float(rewards.model.classifier.score(hidden).detach()) - 0.5) / 2
    assert completeness.expected == pytest.approx(float(before) - baseline, abs=1e-5)
    assert sum(values) == pytest.approx(completeness.expected, rel=0.05)
    assert rewards.model.classifier.get_input_embeddings() is embedding
    assert torch.equal(rewards.score([whole]), before)


def scored_by(seed, *, mean=0.0, further=None):
    """A reward model, with a further head where the seed of one is given."""
    model = tiny.reward_model(seed)
    scales = [Scale(Normalization(mean, 2.0))]
    if further is not None:
        model.further_heads = torch.randn(1, tiny.WIDTH, generator=torch.Generator().manual_seed(further))
        scales.append(Scale(Normalization(0.25, 0.5)))
    return RewardModelReward(model, scales, max_tokens=48)


@pytest.mark.parametrize("how", ["mean", "min", "mean_minus_variance"])
@pytest.mark.parametrize("shared", ["nothing", "trunk"])
def test_an_ensemble_is_read_as_its_members_together_score(how, shared):
    pytest.importorskip("captum")
    members = [scored_by(3), scored_by(4)] if shared == "nothing" else [scored_by(3, further=0)]
    ensemble = EnsembleReward(members, how=how, variance_coef=0.5)
    reasons = reasons_for(ensemble, WHOLE, TOKENS, source="reward model", seed=0)
    prefixes = [ScoredText(Prompt("ab"), "ab", RESPONSE[:end], False) for end in range(1, len(RESPONSE) + 1)]
    expected = [*ensemble.score(prefixes).tolist(), float(ensemble.score([WHOLE]))]
    assert list(reasons.prefix_scores) == pytest.approx(expected, abs=1e-5)
    gradients = next(each for each in reasons.attributions if each.method == GRADIENTS)
    assert sum(gradients.values) == pytest.approx(gradients.completeness.expected, rel=0.05)
    assert reasons.notes == ()


def test_an_ensembles_gradients_are_those_of_its_members_combined():
    pytest.importorskip("captum")
    low, high = scored_by(3, mean=50.0), scored_by(4)
    alone = [reward_gradients(reads_of(member), first_head)[0] for member in (low, high)]
    for how, expected in (("mean", [sum(pair) / 2 for pair in zip(*alone, strict=True)]), ("min", alone[0])):
        together = EnsembleReward([low, high], how=how, variance_coef=0.0)
        values, _ = reward_gradients(reads_of(low, high), together.combine)
        assert values == pytest.approx(expected, abs=1e-5)


def test_prefix_scores_end_with_the_score_where_the_length_is_taken_out():
    trend = LengthTrend(slope=0.25, mean_tokens=4.0, std=0.5, correlation=0.7)
    reward = RewardModelReward(
        tiny.reward_model(3), [Scale(Normalization(0.5, 2.0), trend)], max_tokens=48, debias_length=True
    )
    found, plain = prefix_scores(reads_of(reward), first_head), prefix_scores(reads_of(scored_by(3)), first_head)
    assert found[-1] == pytest.approx(float(reward.score([WHOLE])), abs=1e-5)
    # Two letters: the raw score, less a quarter of what they are shorter than four tokens, over 0.5.
    assert found[1] == pytest.approx((2.0 * plain[1] - 0.5 - 0.25 * (2 - 4)) / 0.5, abs=1e-4)


def test_a_head_drawn_at_random_is_explained_otherwise():
    """Adebayo et al. 2018, arXiv 1810.03292: what stays as it was under another head says nothing of the head."""
    pytest.importorskip("captum")

    def explained():
        reads = reads_of(reward)
        prefixes = prefix_scores(reads, first_head)
        steps = [prefixes[0], *(after - before for before, after in pairwise(prefixes))]
        return {"gradients": reward_gradients(reads, first_head)[0], "prefixes": steps, "ablation": left_out()}

    def left_out():
        return ablation(Ablated(reward, WHOLE, TOKENS))

    reward = scored_by(3)
    head = reward.model.classifier.score.weight
    own = explained()
    with torch.no_grad():
        head.mul_(3.0)
    scaled = explained()
    alike = {name: [] for name in own}
    for seed in range(8):
        with torch.no_grad():
            head.copy_(torch.randn(head.shape, generator=torch.Generator().manual_seed(seed)))
        for name, values in explained().items():
            alike[name].append(abs(spearmanr(own[name], values).statistic))
    for name, values in own.items():
        assert spearmanr(values, scaled[name]).statistic > 0.99  # the same head, only longer
        assert sum(alike[name]) / len(alike[name]) < 0.5  # of 13 tokens without anything in common: 0.23


def test_a_response_that_the_reward_model_reads_in_part_has_no_gradients(rewards):
    reasons = reasons_for(
        rewards, ScoredText(Prompt("ab"), "ab", 5 * RESPONSE, True), [*(5 * RESPONSE), ""], source="rm", seed=0
    )
    assert [attribution.method for attribution in reasons.attributions] == [ABLATION]
    assert "a part of the response alone" in reasons.notes[0]


def test_without_captum_the_other_methods_stay_and_the_install_line_is_said(rewards, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "captum.attr", None)
    whole = ScoredText(Prompt("ab"), "ab", RESPONSE, True)
    reasons = reasons_for(rewards, whole, [*RESPONSE, ""], source="reward model", seed=0)
    assert GRADIENTS not in [attribution.method for attribution in reasons.attributions]
    assert "pip install 'rlhfkit[explain]'" in reasons.notes[0]


def test_numbers_of_other_tokens_are_shared_out_by_letters_and_keep_their_sum():
    values = shared_out([6.0, 3.0, 1.0], ["abc", "def", ""], ["ab", "cde", "f", ""])
    assert values == pytest.approx([4.0, 2.0 + 2.0, 1.0, 1.0])
    assert math.fsum(values) == pytest.approx(10)
    assert at_ends([1.0, 2.0, 3.0], ["abc", "def", ""], ["ab", "cd", "ef", ""], before=0.0) == [0.0, 1.0, 2.0, 3.0]


def test_pieces_of_tokens_join_to_the_text_and_special_tokens_add_nothing():
    encoder = tiny.encoder()
    ids = [*encoder.continuation_ids("abc"), tiny.EOS]
    assert pieces_of(encoder, ids) == ["a", "b", "c", ""]
