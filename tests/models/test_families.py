"""What must hold for every architecture; one test per promise, one case per family."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.reward_model import Normalization
from rlhfkit.padding import Sequences
from tests.tiny import FAMILIES, PAD, Directory, builder, load

pytestmark = pytest.mark.parametrize("family", FAMILIES)


def sequences(num: int = 5) -> Sequences:
    """Rows of very different lengths, some beyond the sliding windows."""
    generator = torch.Generator().manual_seed(3)

    def rows(lengths: list[int]) -> list[list[int]]:
        return [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]

    return Sequences.join(rows([1, 14, 3, 7, 20][:num]), rows([9, 2, 12, 1, 10][:num]), pad=PAD)


def theirs(model: LanguageModel, sequences: Sequences, temperature: float) -> torch.Tensor:
    """Logprobs by transformers with its own attention, one row at a time without padding."""
    alone = AutoModelForCausalLM.from_pretrained(model.causal_lm.name_or_path)
    result = torch.zeros(sequences.mask.shape)
    for row in range(len(sequences)):
        start, end = int(sequences.prompt_tokens[row]), int(sequences.lengths()[row])
        ids = sequences.ids[row : row + 1, :end]
        with torch.no_grad():
            logits = alone(ids).logits[0, start - 1 : -1] / temperature
        logits[:, PAD] = -torch.inf
        result[row, : end - start] = logits.log_softmax(-1).gather(1, ids[0, start:, None]).squeeze(1)
    return result


def test_logprobs_are_those_of_transformers_without_padding(family, directory_of: Directory):
    model = load(directory_of(family))
    with torch.no_grad():
        found = model.logprobs(sequences(), temperature=0.7)
    torch.testing.assert_close(found, theirs(model, sequences(), 0.7), rtol=0, atol=2e-5)


def test_row_alone_is_the_row_in_the_batch(family, directory_of: Directory):
    policy = TextPolicy(load(directory_of(family)), None, temperature=0.7)
    batch = sequences()
    with torch.no_grad():
        together = policy.evaluate(batch)
        reordered = policy.evaluate(batch[torch.tensor([4, 2, 0, 1, 3])])
        for row in range(len(batch)):
            alone = policy.evaluate(batch[torch.tensor([row])])
            torch.testing.assert_close(alone.logprobs[0], together.logprobs[row], rtol=0, atol=1e-5)
            torch.testing.assert_close(alone.entropy[0], together.entropy[row], rtol=0, atol=1e-5)
    torch.testing.assert_close(reordered.logprobs[2], together.logprobs[0], rtol=0, atol=1e-5)


def test_evaluate_and_logprobs_are_the_same_numbers(family, directory_of: Directory):
    model = load(directory_of(family))
    with torch.no_grad():
        evaluated = TextPolicy(model, None, temperature=0.7).evaluate(sequences())
        assert torch.equal(evaluated.logprobs, model.logprobs(sequences(), temperature=0.7))
    assert not evaluated.logprobs[~sequences().mask].any()
    assert not evaluated.entropy[~sequences().mask].any()


def test_exported_policy_needs_transformers_alone(family, directory_of: Directory, tmp_path):
    model = load(directory_of(family))
    with torch.no_grad():
        for parameter in model.causal_lm.parameters():
            parameter.mul_(1.1)
    model.save(tmp_path)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = AutoTokenizer.from_pretrained(tmp_path)("Once upon a time there was", return_tensors="pt").input_ids
    with torch.no_grad():
        found, expected = exported(ids).logits, model.head(model.trunk(ids))
    torch.testing.assert_close(found[..., :PAD], expected[..., :PAD], rtol=0, atol=2e-5)
    assert "rlhfkit" not in json.dumps(exported.config.to_dict())
    assert list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob("*.bin"))


def test_exported_reward_model_needs_transformers_alone(family, directory_of: Directory, tmp_path):
    model = builder(directory_of(family), tmp_path).fresh_reward_model(name="reward_model")
    model.save(tmp_path / "reward_model", normalization=Normalization())
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward_model")
    assert exported.config.num_labels == 1
    batch = sequences()
    with torch.no_grad():
        found = model(batch.ids, batch.lengths())
        expected = exported(batch.ids, attention_mask=(batch.ids != PAD).long()).logits.squeeze(-1)
    assert found.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_fresh_head_gives_scores_of_deviation_one(family, directory_of: Directory, tmp_path):
    model = builder(directory_of(family), tmp_path).fresh_reward_model(name="reward_model")
    weight = model.classifier.get_parameter("score.weight")
    assert weight.shape == (1, 32)
    assert weight.detach().std() == pytest.approx(1 / 33**0.5, rel=0.35)  # 32 draws: the deviation's own error is 0.13
    again = builder(directory_of(family), tmp_path).fresh_reward_model(name="reward_model")
    other = builder(directory_of(family), tmp_path).fresh_reward_model(name="judge")
    assert torch.equal(weight, again.classifier.get_parameter("score.weight"))
    assert not torch.equal(weight, other.classifier.get_parameter("score.weight"))
