"""Behind every fast path there is a plain one: the numbers stay, one line says why, and nothing else happens."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.machine.fast_paths import FastPaths
from rlhfkit.models import hidden_states as reading
from rlhfkit.models.attention import OWN_ATTENTION, WRITTEN_OUT, try_attention, written_out_attention
from rlhfkit.models.fast import weight_layout as reordering
from rlhfkit.models.fast.compiling import COMPILED, compiled
from rlhfkit.models.fast.weight_layout import REORDERED, ReorderedWeights
from rlhfkit.models.hidden_states import PACKED
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.value import ValueHead
from rlhfkit.padding import Sequences
from rlhfkit.rollout.generation import generate
from tests.tiny import CPU, PAD, Directory, load

PROMPTS = [[row % 200 + 1] * (row % 5 + 1) for row in range(9)]
CONFIG = RolloutConfig(max_response_tokens=12, temperature=0.7, slots=4)


def sampled(model: LanguageModel):
    return generate(model, PROMPTS, CONFIG, seeds=range(len(PROMPTS)))


def gradients(model: LanguageModel) -> list[torch.Tensor]:
    """Logprobs of a short and of longer rows, which are packed, and the gradient of their sum."""
    policy = TextPolicy(model.requires_grad_(True), ValueHead(model.width, CPU), temperature=0.7)
    rows = Sequences.join([[1, 2, 3, 4, 5, 6, 7, 8], [9], [4]], [[10, 11, 12], [13], [15, 16]], pad=PAD)
    logprobs = policy.evaluate(rows).logprobs
    logprobs.sum().backward()
    found = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return [logprobs.detach(), *found]


def lines_of(model: LanguageModel) -> list[str]:
    said: list[str] = []
    model.paths = FastPaths(said.append)
    return said


# ── reordered weights ────────────────────────────────────────────────────────────────────────────────────────────────


def raises(*_):
    raise RuntimeError("could not create a primitive descriptor for the reorder primitive")


def halves(weight, rows):
    return torch.ops.mkldnn._reorder_linear_weight.default(weight * 0.5, rows)


class Operators:
    """Stands for torch.ops.mkldnn where one operator is another."""

    def __init__(self, reorder):
        self._reorder_linear_weight = reorder
        self._linear_pointwise = torch.ops.mkldnn._linear_pointwise


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
@pytest.mark.parametrize(("reorder", "why"), [(raises, "could not create"), (halves, "numbers differ")])
def test_weights_that_cannot_be_reordered_stay_as_they_are(reorder, why, directory_of: Directory, monkeypatch):
    monkeypatch.setattr(reordering, "FEWEST_WEIGHTS", 0)
    expected = sampled(load(directory_of("gpt2")))
    monkeypatch.setattr(reordering, "mkldnn", lambda: Operators(reorder))
    model = load(directory_of("gpt2"))
    said = lines_of(model)
    assert [response.ids for response in sampled(model)] == [response.ids for response in expected]
    assert len(said) == 1 and why in said[0]
    assert model.paths.is_off(REORDERED)
    assert model.reordered_weights.nbytes == 0  # so that memory is not planned for it


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_right_whether_the_cpu_has_the_type_or_not(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(192, 96).to(dtype)
    x = torch.randn(5, 192).to(dtype)
    weights = ReorderedWeights(layer)
    with torch.no_grad(), weights.in_use(5):
        found = layer(x)
    expected = x.double() @ layer.weight.double().T + layer.bias.double()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert weights.paths.is_off(REORDERED) or weights.paths.is_tried(REORDERED, dtype)


# ── compiled code ────────────────────────────────────────────────────────────────────────────────────────────────────


def failing(error):
    def fake_compile(function, **_):
        def call(*args, **kwargs):
            raise error

        return call

    return fake_compile


def wrong_numbers(function, **_):
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        return result * 1.5 if isinstance(result, torch.Tensor) else (result[0] * 1.5, *result[1:])

    return call


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.5


def wrong_gradients(function, **_):
    def call(*args, **kwargs):
        result = function(*args, **kwargs)
        if isinstance(result, torch.Tensor):
            return WrongGradient.apply(result)
        return (WrongGradient.apply(result[0]), *result[1:])

    return call


@pytest.mark.parametrize(
    ("fake", "why"),
    [
        (failing(RuntimeError("InvalidCxxCompiler: No working C++ compiler found")), "No working C++ compiler"),
        (failing(PermissionError(13, "Permission denied", "/nonexistent/cache")), "Permission denied"),
        (wrong_numbers, "numbers differ"),
        (wrong_gradients, "numbers differ"),
    ],
    ids=["no compiler", "no cache", "wrong numbers", "wrong gradients"],
)
def test_where_compiling_fails_training_has_the_numbers_of_the_plain_code(
    fake, why, directory_of: Directory, monkeypatch
):
    expected = gradients(load(directory_of("llama")))
    monkeypatch.setattr(torch, "compile", fake)
    model = load(directory_of("llama"))
    said = lines_of(model)
    model.run_compiled()
    found = gradients(model)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert len(said) == 1 and why in said[0]
    assert model.paths.is_off(COMPILED)


def test_where_compiling_fails_samples_are_those_of_the_plain_code(directory_of: Directory, monkeypatch):
    expected = sampled(load(directory_of("llama")))
    monkeypatch.setattr(torch, "compile", failing(RuntimeError("no")))
    model = load(directory_of("llama"))
    said = lines_of(model)
    model.run_compiled()
    assert sampled(model) == expected
    assert len(said) == 1


def test_lack_of_memory_while_compiling_is_not_hidden(directory_of: Directory, monkeypatch):
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    monkeypatch.setattr(torch, "compile", failing(error))
    model = load(directory_of("llama"))
    model.run_compiled()
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        gradients(model)


def test_a_later_shape_that_cannot_be_compiled_runs_as_plain_code(monkeypatch):
    calls = []

    def fake_compile(function, **_):
        def call(x):
            calls.append(len(x))
            if len(x) > 2:
                raise torch._dynamo.exc.TorchDynamoException("backend failed")
            return function(x)

        return call

    monkeypatch.setattr(torch, "compile", fake_compile)
    said: list[str] = []
    paths = FastPaths(said.append)
    double = compiled(lambda x: 2 * x, paths=paths)
    with torch.no_grad():
        assert double(torch.ones(2)).tolist() == [2.0, 2.0]
        assert double(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert len(said) == 1 and "backend failed" in said[0]


WITHOUT_COMPILER = """
import sys, torch
from tests.models.test_plain_paths import gradients, lines_of
from tests.tiny import load
model = load(sys.argv[1])
said = lines_of(model)
model.run_compiled()
gradients(model)
print(said)
"""


@pytest.mark.thorough
def test_torch_itself_falls_back_where_it_cannot_compile(directory_of: Directory, tmp_path):
    environment = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "CXX": "/bin/false"}
    found = subprocess.run(
        [sys.executable, "-c", WITHOUT_COMPILER, str(directory_of("llama"))],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert "compiled code: switched off" in found.stdout


# ── attention and packed rows ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma", "qwen2", "phi3", "opt", "gpt_neox"])
def test_own_attention_is_taken_where_it_agrees(family, directory_of: Directory):
    model, paths = load(directory_of(family)).causal_lm, FastPaths()
    try_attention(model, paths)
    assert paths.as_facts() == {OWN_ATTENTION: "taken"}
    assert model.config._attn_implementation == WRITTEN_OUT


def test_own_attention_that_is_wrong_gives_way_to_that_of_the_authors(directory_of: Directory):
    def doubled(*args, **kwargs):
        output, weights = written_out_attention(*args, **kwargs)
        return 2 * output, weights

    model, paths = load(directory_of("llama")).causal_lm, FastPaths()
    AttentionInterface.register(WRITTEN_OUT, doubled)
    try:
        try_attention(model, paths)
    finally:
        AttentionInterface.register(WRITTEN_OUT, written_out_attention)
    assert paths.is_off(OWN_ATTENTION)
    assert model.config._attn_implementation == "eager"


def test_packed_rows_that_are_wrong_give_way_to_padded_ones(directory_of: Directory, monkeypatch):
    model = load(directory_of("llama"))
    expected = gradients(model)
    assert model.paths.is_tried(PACKED, "llama")
    monkeypatch.setattr(reading, "_packed", lambda model, packed, places, stem: torch.zeros(len(places[0]), 32))
    other = load(directory_of("llama"))
    said = lines_of(other)
    for ours, theirs in zip(gradients(other), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(said) == 1 and "packed rows" in said[0]
