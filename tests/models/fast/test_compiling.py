import shutil
import threading

import pytest
import torch
from torch._dynamo import eval_frame
from torch._dynamo.utils import counters

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.models.fast import weight_layout as reordering
from rlhfkit.models.fast.compiling import uncompiled, why_no_compiler
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.layers import layers_of
from rlhfkit.models.value import ValueHead
from rlhfkit.padding import Sequences
from rlhfkit.rollout.generation import generate
from tests.tiny import CPU, PAD, Directory, load

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="a CPU's programs need a C++ compiler"
)


def sequences() -> Sequences:
    prompts, responses = [[1, 2, 3], [4, 5, 6, 7, 8], [9]], [[10, 11, 12], [13, 14], [15, 16, 17, 18]]
    return Sequences.join(prompts, responses, pad=PAD)


def evaluated(model: LanguageModel) -> list[torch.Tensor]:
    """Logprobs, entropy, values, and the gradients that their sum has."""
    policy = TextPolicy(model, ValueHead(model.width, CPU), temperature=0.7)
    torch.nn.init.constant_(policy.critic.linear.weight, 0.1)
    model.requires_grad_(True)
    output = policy.evaluate(sequences())
    (output.logprobs.sum() + output.entropy.sum() + output.values.sum()).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return [output.logprobs, output.entropy, output.values, *gradients]


@pytest.fixture(autouse=True)
def _nothing_compiled_before():
    torch.compiler.reset()


def compare(plain: LanguageModel, compiled: LanguageModel) -> None:
    for found, expected in zip(evaluated(compiled), evaluated(plain), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    prompts = [[row % 200 + 1] * (row % 5 + 1) for row in range(9)]
    config = RolloutConfig(max_response_tokens=8, temperature=0.7, slots=4)
    theirs = generate(plain, prompts, config, seeds=range(9))
    before = counters["stats"]["unique_graphs"]
    ours = generate(compiled, prompts, config, seeds=range(9))
    # One program for all numbers of rows, from all slots to the last two, and for all lengths.
    assert counters["stats"]["unique_graphs"] == before + 1
    assert [response.ids for response in ours] == [response.ids for response in theirs]
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.tensor(our.logprobs), torch.tensor(their.logprobs), rtol=0, atol=1e-4)


@pytest.mark.thorough
@needs_compiler
@pytest.mark.parametrize("fewest_weights", [0, reordering.FEWEST_WEIGHTS])
def test_compiled_code_gives_the_logprobs_gradients_and_samples_of_the_plain_path(
    fewest_weights, directory_of: Directory, monkeypatch
):
    monkeypatch.setattr(reordering, "FEWEST_WEIGHTS", fewest_weights)
    plain, compiled = (load(directory_of("llama")) for _ in range(2))
    compiled.run_compiled()
    compare(plain, compiled)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma", "phi3"])
def test_compiled_code_of_other_families_agrees_with_the_plain_path(family, directory_of: Directory):
    plain, compiled = (load(directory_of(family)) for _ in range(2))
    compiled.run_compiled()
    compare(plain, compiled)


@pytest.mark.thorough
def test_names_of_weights_stay_as_they_are_when_layers_are_compiled(directory_of: Directory):
    model = load(directory_of("llama"))
    before = list(model.state_dict())
    model.run_compiled()
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_layers_are_found_in_any_architecture(family, directory_of: Directory):
    assert len(layers_of(load(directory_of(family)).causal_lm)) == 2


def test_a_machine_without_compiler_is_reported_what_to_install(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "no g++ or clang++ or c++ here; install one" in why_no_compiler(CPU)
    assert why_no_compiler(torch.device("cuda")) == ""  # which has its own


def test_threads_that_overlap_leave_compiling_on():
    """The first to come leaves first, so that each would put back what the other had set."""
    inside, both = threading.Event(), threading.Event()

    def first():
        with uncompiled():
            inside.set()
            both.wait()

    def second():
        inside.wait()
        with uncompiled():
            both.set()
            threads[0].join()
            assert eval_frame._stance.stance == "force_eager"

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert eval_frame._stance.stance == "default"
