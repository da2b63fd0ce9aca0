import pytest
import torch
from torch import nn

from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import GenerationError
from rlhfkit.models.fast import weight_layout as reordering
from rlhfkit.models.fast.weight_layout import ReorderedWeights
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.lora import add_lora
from rlhfkit.rollout import generation
from rlhfkit.rollout.generation import generate
from tests.tiny import Directory, load

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")

PROMPTS = [[row % 200 + 1] * (row % 5 + 1) for row in range(9)]
CONFIG = RolloutConfig(max_response_tokens=12, temperature=0.7, slots=4)


@pytest.fixture(autouse=True)
def _tiny_weights_are_worth_it(monkeypatch):
    monkeypatch.setattr(reordering, "FEWEST_WEIGHTS", 0)


def sampled(model: LanguageModel, *, num_reordered: int | None = None):
    """Responses, with as many layers reordered as the model is expected to have."""
    assert num_reordered is None or len(model.reordered_weights.layers) == num_reordered
    return generate(model, PROMPTS, CONFIG, seeds=range(len(PROMPTS)))


@pytest.mark.parametrize(("family", "num_layers"), [("gpt2", 2 * 4 + 1), ("llama", 2 * 7 + 1), ("opt", 2 * 6 + 1)])
def test_samples_are_those_of_the_plain_weights(family, num_layers, directory_of: Directory, monkeypatch):
    ours = sampled(load(directory_of(family)), num_reordered=num_layers)
    monkeypatch.setattr(generation, "worth_reordering", lambda config: False)
    theirs = sampled(load(directory_of(family)))
    assert [response.ids for response in ours] == [response.ids for response in theirs]
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(our.logprobs), torch.tensor(their.logprobs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 7, 64, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_is_that_of_the_plain_weights_for_any_number_of_rows(rows, dtype):
    torch.manual_seed(0)
    layer = nn.Linear(48, 32).to(dtype)
    x = torch.randn(rows, 3, 48).to(dtype)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    with torch.no_grad(), ReorderedWeights(layer).in_use(64):
        found = layer(x)
    assert found.dtype == dtype
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


def test_each_call_sees_the_weights_as_they_are_now(directory_of: Directory):
    model = load(directory_of("gpt2"))
    before = sampled(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    after = sampled(model)
    fresh = load(directory_of("gpt2"))
    fresh.load_state_dict(model.state_dict())
    assert after == sampled(fresh)
    assert after != before


def test_adapters_act_on_top_of_the_reordered_weights(directory_of: Directory, monkeypatch):
    def adapted() -> LanguageModel:
        model = load(directory_of("llama"))
        torch.manual_seed(3)
        peft_model = add_lora(model.causal_lm, LoraConfig(rank=2, alpha=8))
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.5)
        return LanguageModel(peft_model, model.encoder)

    ours = sampled(adapted())
    monkeypatch.setattr(generation, "worth_reordering", lambda config: False)
    assert [response.ids for response in ours] == [response.ids for response in sampled(adapted())]
    assert [response.ids for response in ours] != [response.ids for response in sampled(load(directory_of("llama")))]


def test_model_is_as_it_was_afterwards_even_where_sampling_fails(directory_of: Directory):
    model = load(directory_of("gpt2"))
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(GenerationError):
        sampled(model)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not reordering._REORDERED


def test_small_weights_and_short_responses_are_left_alone(directory_of: Directory, monkeypatch):
    monkeypatch.undo()
    assert load(directory_of("gpt2")).reordered_weights.layers == []
    assert not generation.worth_reordering(RolloutConfig(max_response_tokens=2))
