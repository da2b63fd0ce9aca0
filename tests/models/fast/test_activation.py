import shutil

import pytest
import torch
from transformers.activations import GELUTanh, NewGELUActivation

from rlhfkit.models.fast.activation import TanhGELU
from tests.tiny import Directory, load

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="a CPU's programs need a C++ compiler"
)


def by_definition(x: torch.Tensor) -> torch.Tensor:
    """x (1 + tanh u) / 2 in float64."""
    wide = x.double()
    return 0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))


@pytest.mark.parametrize("run_compiled", [False, pytest.param(True, marks=[needs_compiler, pytest.mark.thorough])])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 8e-3)])
def test_activation_and_its_gradient_are_those_of_the_definition(run_compiled, dtype, tolerance):
    x = torch.cat([torch.linspace(-12, 12, 1001), torch.tensor([0.0, 1e4, -1e4])]).to(dtype).requires_grad_()
    act = torch.compile(TanhGELU()) if run_compiled else TanhGELU()
    found = act(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    wide = x.detach().double().requires_grad_()
    expected = by_definition(wide)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), wide)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("family", "num"), [("gpt2", 2), ("gemma", 2), ("llama", 0)])
def test_models_that_have_it_get_it(family, num, directory_of: Directory):
    modules = list(load(directory_of(family)).modules())
    assert sum(isinstance(module, TanhGELU) for module in modules) == num
    assert not any(isinstance(module, NewGELUActivation | GELUTanh) for module in modules)
