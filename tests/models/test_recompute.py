import pytest
import torch

from rlhfkit.models.language import LanguageModel
from rlhfkit.models.layers import recompute_layers
from rlhfkit.training.memory import bytes_kept
from tests.tiny import Directory, load

IDS = torch.arange(40).view(2, 20)


def gradients(model: LanguageModel) -> list[torch.Tensor]:
    model.requires_grad_(True)
    model.trunk(IDS).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_layers_computed_a_second_time_give_the_same_gradients_from_less_memory(family, directory_of: Directory):
    plain, recomputing = (load(directory_of(family)) for _ in range(2))
    recompute_layers(recomputing.causal_lm)
    for found, expected in zip(gradients(recomputing), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    kept = [bytes_kept(lambda model=model: model.trunk(IDS), model.parameters()) for model in (plain, recomputing)]
    assert kept[1] < kept[0] / 3


def test_no_dropout_comes_with_layers_that_are_computed_a_second_time(directory_of: Directory):
    model = load(directory_of("gpt2"))
    recompute_layers(model.causal_lm)
    model.requires_grad_(True)
    torch.testing.assert_close(model.trunk(IDS), model.trunk(IDS), rtol=0, atol=0)
    assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))
