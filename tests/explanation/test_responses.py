"""Token by token: sums are what was logged, distributions are exact, and the lens ends with the model itself."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.explanation.change import exact_kl, positions_of
from rlhfkit.explanation.lens import lens_distributions, lens_of
from rlhfkit.explanation.pieces import pieces_of
from rlhfkit.explanation.responses import Subject, explain_responses
from rlhfkit.models.language import TextPolicy
from rlhfkit.padding import Sequences
from rlhfkit.records import Prompt
from tests.tiny import byte_tokenizer, load, save_family
from tests.training import tiny

COEF = 0.2


@pytest.fixture(scope="module")
def subject():
    """A policy that is another model than its reference, with penalties on the score."""
    return Subject(
        policy=tiny.policy(1),
        reference=tiny.language_model(2),
        reward=Vowels(),
        reward_name="vowels",
        rollout=RolloutConfig(max_response_tokens=10),
        ppo=PpoConfig(missing_eos_score=-1.0, clip_score=3.0),
        kl_coef=COEF,
        seed=4,
    )


class Vowels:
    def score(self, episodes):
        return torch.tensor([float(sum(map(each.response.count, "aei"))) for each in episodes])


@pytest.fixture(scope="module")
def explained(subject):
    encoder = subject.policy.language_model.encoder
    prompts = [encoder.encode(Prompt(text), max_tokens=8) for text in ("ab", "c", "dd")]
    return explain_responses(subject, prompts)


def test_sums_of_tokens_are_score_kl_and_shaped_reward(explained):
    for one in explained:
        assert sum(one.tokens.kl) == pytest.approx(one.ref_kl, abs=1e-5)
        assert sum(one.tokens.reward) == pytest.approx(one.shaped_score - COEF * one.ref_kl, abs=1e-5)
        assert one.score == sum(map(one.response.count, "aei"))
        expected = min(one.score, 3.0) if one.finish_reason != "length" else -1.0
        assert one.shaped_score == expected


def test_advantage_is_return_less_value_and_the_last_one_is_reward_less_value(explained):
    for one in explained:
        tokens = one.tokens
        for value, advantage, returns in zip(tokens.value, tokens.advantage, tokens.returns, strict=True):
            assert advantage == pytest.approx(returns - value, abs=1e-5)
        assert tokens.advantage[-1] == pytest.approx(tokens.reward[-1] - tokens.value[-1], abs=1e-5)
        assert tokens.ratio is None


def test_a_policy_without_a_critic_has_no_values(subject):
    bare = replace(subject, policy=tiny.policy(1, critic=None))
    prompt = bare.policy.language_model.encoder.encode(Prompt("ab"), max_tokens=8)
    (one,) = explain_responses(bare, [prompt])
    assert one.tokens.value is None
    assert one.tokens.advantage is None


def test_kl_over_the_vocabulary_is_that_of_torch_and_forbidden_tokens_count_nothing(subject, explained):
    logits, others = torch.randn(3, 9, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    expected = kl_divergence(Categorical(logits=logits), Categorical(logits=others))
    assert torch.allclose(exact_kl(logits.log_softmax(-1), others.log_softmax(-1)), expected)
    logits[:, 4] = -torch.inf
    assert torch.isfinite(exact_kl(logits.log_softmax(-1), others.log_softmax(-1))).all()
    assert all(position.kl > 0 for one in explained for position in one.positions)


def test_a_policy_that_is_its_reference_has_moved_nowhere(subject):
    model = subject.reference
    inputs = Sequences.join([[2, 3]], [[4, 5, 6]], pad=tiny.PAD)
    (positions,) = positions_of(model, model, inputs, temperature=1.0)
    assert [(position.kl, position.up, position.down) for position in positions] == 3 * [(0.0, (), ())]


def test_tokens_that_went_up_and_down_have_the_probabilities_of_the_models(subject):
    policy, reference = subject.policy.language_model, subject.reference
    inputs = Sequences.join([[2, 3]], [[4, 5]], pad=tiny.PAD)
    (positions,) = positions_of(policy, reference, inputs, temperature=1.0, num_shifts=3)
    with torch.no_grad():
        ids = torch.tensor([[2, 3]])
        after, before = (model.causal_lm(ids).logits[0, -1, 1:].softmax(-1) for model in (policy, reference))
    gained = (after - before).sort(descending=True)
    for shift, token in zip(positions[0].up, gained.indices[:3].tolist(), strict=True):
        assert shift.after == pytest.approx(float(after[token]), abs=1e-5)
        assert shift.before == pytest.approx(float(before[token]), abs=1e-5)
    assert positions[0].down[0].after - positions[0].down[0].before == pytest.approx(float(gained.values[-1]), abs=1e-5)


def test_likeliest_responses_part_where_their_texts_do(explained):
    for one in explained:
        parted = one.divergence
        if parted.index is None:
            assert parted.before == parted.after
            continue
        assert parted.before.startswith(parted.shared)
        assert parted.after.startswith(parted.shared)
        if parted.old and parted.new:
            assert parted.old.text != parted.new.text
            assert parted.old.before >= parted.new.before  # of the reference the old token is the likelier one
            assert parted.new.after >= parted.old.after
    assert any(one.divergence.index is not None for one in explained)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma", "opt"])
def test_the_lens_of_the_last_layer_is_the_model_itself(family, directory_of):
    model = load(directory_of(family))
    ids = [5, 6, 7, 8, 9]
    inputs = Sequences.join([ids[:2]], [ids[2:]], pad=model.encoder.pad_id)
    layers = lens_distributions(model, inputs)
    with torch.no_grad():
        logits = model.causal_lm(torch.tensor([ids])).logits[0, 1:-1].float()
    logits[:, model.encoder.pad_id] = -1e9
    assert len(layers) == 2
    assert torch.allclose(layers[-1].exp(), logits.softmax(-1), atol=1e-5)
    assert not torch.allclose(layers[0].exp(), layers[1].exp(), atol=1e-2)


def test_the_new_token_overtakes_in_the_layer_from_which_on_it_stays_above():
    one, other = tiny.language_model(1, num_layers=3), tiny.language_model(2, num_layers=3)
    inputs = Sequences.join([[2, 3]], [[4, 5, 6, 7]], pad=tiny.PAD)
    lens = lens_of(one, other, inputs)
    assert len(lens.kl) == 3
    assert lens.agreement[-1] == 1.0
    assert lens.tokens
    for token in lens.tokens:
        first = token.overtakes
        assert all(
            new > old for new, old in zip(token.new_after[first - 1 :], token.old_after[first - 1 :], strict=True)
        )
        assert first == 1 or token.new_after[first - 2] <= token.old_after[first - 2]


def test_a_letter_of_several_tokens_is_one_piece(tmp_path):
    encoder = load(save_family("gpt2", tmp_path, tokenizer=byte_tokenizer())).encoder
    ids = encoder.continuation_ids("aé😀b")
    pieces = pieces_of(encoder, ids)
    assert "".join(pieces) == "aé😀b"
    assert len(pieces) == len(ids) == 8


def test_what_is_explained_leaves_the_policy_as_it_was(subject, explained):
    fresh = tiny.policy(1)
    assert isinstance(fresh, TextPolicy)
    for (name, one), (_, other) in zip(subject.policy.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(one, other), name
