import pytest
import torch
from transformers import LlamaConfig
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as attention_with_sinks

from rlhfkit.errors import ModelError
from rlhfkit.models import loading
from rlhfkit.models.attention import WRITTEN_OUT, additive_masks, implementations_for, written_out_attention
from tests.tiny import Directory, load

LOWEST = torch.finfo(torch.float32).min


class Module(torch.nn.Module):
    """What transformers' own attention asks of the layer that it is part of."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def states(groups: int, queries: int, keys: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(groups)
    shapes = [(3, 4, queries, 8), (3, 4 // groups, keys, 8), (3, 4 // groups, keys, 8)]
    return [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]


def mask(queries: int, keys: int) -> torch.Tensor:
    """Causal, and the first key of row 2 is out of bounds for all but the first query."""
    allowed = torch.ones(3, 1, queries, keys, dtype=torch.bool).tril(keys - queries)
    allowed[2, :, 1:, 0] = False
    return torch.zeros(allowed.shape).masked_fill(~allowed, LOWEST)


def compare(found: torch.Tensor, expected: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    ours = torch.autograd.grad((found * weights).sum(), inputs)
    theirs = torch.autograd.grad((expected * weights).sum(), inputs)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=0, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(("queries", "keys"), [(6, 6), (1, 6), (2, 6)])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("is_masked", [True, False])
def test_output_and_gradients_are_those_of_transformers(groups, queries, keys, softcap, is_masked):
    inputs = states(groups, queries, keys)
    options = {"attention_mask": mask(queries, keys) if is_masked else None, "scaling": 0.3, "softcap": softcap}
    expected, _ = eager_attention_forward(Module(groups), *inputs, **options)
    found, weights = written_out_attention(Module(groups), *inputs, **options)
    assert weights is None
    compare(found, expected, inputs)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_output_and_gradients_are_those_of_torch(groups):
    inputs = states(groups, 6, 6)
    expected = torch.nn.functional.scaled_dot_product_attention(*inputs, attn_mask=mask(6, 6), enable_gqa=True)
    found, _ = written_out_attention(Module(groups), *inputs, mask(6, 6))
    compare(found, expected.transpose(1, 2), inputs)


def test_dropout_is_always_off():
    inputs = states(1, 6, 6)
    first, _ = written_out_attention(Module(1), *inputs, mask(6, 6), dropout=0.9)
    second, _ = written_out_attention(Module(1), *inputs, mask(6, 6))
    assert torch.equal(first, second)


def test_the_fused_kernel_is_left_to_accelerators():
    assert implementations_for(torch.device("cuda")) == ["sdpa", WRITTEN_OUT]
    assert implementations_for(torch.device("cpu")) == [WRITTEN_OUT]


@pytest.mark.parametrize(("family", "expected"), [("qwen2", "sdpa"), ("gemma2", WRITTEN_OUT)])
def test_a_model_that_has_no_fused_kernel_gets_the_attention_written_out(
    family, expected, directory_of: Directory, monkeypatch
):
    monkeypatch.setattr(loading, "implementations_for", lambda _: ["sdpa", WRITTEN_OUT])
    assert load(directory_of(family)).config._attn_implementation == expected


@pytest.mark.parametrize("groups", [1, 2])
def test_looking_at_nothing_is_what_transformers_makes_of_it(groups):
    inputs = states(groups, 2, 6)
    module = Module(groups)
    module.sinks = torch.randn(4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    expected, _ = attention_with_sinks(module, *inputs, mask(2, 6), scaling=0.3)
    found, _ = written_out_attention(module, *inputs, mask(2, 6), scaling=0.3, s_aux=module.sinks)
    compare(found, expected, [*inputs, module.sinks])


def test_a_bias_by_position_is_refused_since_it_is_not_known():
    with pytest.raises(ModelError, match="bias by position"):
        written_out_attention(Module(1), *states(1, 2, 6), None, position_bias=torch.zeros(2, 6))


# ── masks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def masks(window: int | None, layer_types: list[str] | None):
    config = LlamaConfig()
    config.sliding_window, config.layer_types = window, layer_types
    places = torch.arange(4)[None]
    return additive_masks(config, torch.ones(1, 4, 4, dtype=torch.bool).tril(), places, places, torch.float32)


FULL = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]
NEAR = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]  # a window of 2: itself and the one before


def shape_of(mask: torch.Tensor) -> list[list[int]]:
    assert mask.shape == (1, 1, 4, 4)
    assert set(mask.unique().tolist()) <= {0.0, LOWEST}
    return (mask[0, 0] == 0).int().tolist()


def test_without_a_window_the_mask_is_what_is_allowed():
    assert shape_of(masks(None, None)) == FULL
    assert shape_of(masks(2, ["full_attention", "full_attention"])) == FULL


def test_a_window_cuts_what_is_far():
    assert shape_of(masks(2, None)) == NEAR


def test_layers_that_differ_get_a_mask_each():
    both = masks(2, ["full_attention", "sliding_attention"])
    assert {name: shape_of(mask) for name, mask in both.items()} == {
        "full_attention": FULL,
        "sliding_attention": NEAR,
    }
    alike = masks(2, ["sliding_attention"])
    assert shape_of(alike["sliding_attention"]) == NEAR


def test_window_counts_places_in_the_sequence_not_in_the_row():
    """Two sequences packed: the second begins again at place 0."""
    config = LlamaConfig()
    config.sliding_window = 2
    places = torch.tensor([[0, 1, 0, 1]])
    mask = additive_masks(config, torch.ones(1, 4, 4, dtype=torch.bool), places, places, torch.float32)
    assert shape_of(mask) == [[1, 1, 1, 1]] * 4
