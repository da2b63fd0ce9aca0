"""Captured steps, with a stand-in for CUDA graphs that launches recorded operations anew, on the same memory."""

import warnings
from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.machine.fast_paths import FastPaths, agree
from rlhfkit.rollout import cuda_graph as capture
from rlhfkit.rollout import generation
from rlhfkit.rollout.cuda_graph import CapturedSteps
from rlhfkit.rollout.generation import generate
from rlhfkit.rollout.kv_cache import SlotCache
from tests.rollout.test_generation import NUM_PROMPTS, ending_early, some_prompts
from tests.tiny import FAMILIES, Directory, load


class Graph(TorchDispatchMode):
    """Does what a CUDA graph does: remembers operations with the tensors they read and wrote, and runs them again."""

    def __init__(self):
        super().__init__()
        self.launched = []
        self.replays = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.launched.append((func, args, kwargs, result))
        return result

    def replay(self):
        self.replays += 1
        for func, args, kwargs, result in self.launched:
            again = func(*args, **kwargs)
            for old, new in zip(tensors_of(result), tensors_of(again), strict=True):
                if old.data_ptr() != new.data_ptr():  # neither a view nor written in place
                    old.copy_(new)


def tensors_of(result):
    results = result if isinstance(result, tuple | list) else [result]
    return [each for each in results if isinstance(each, torch.Tensor)]


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that were captured; `generate` captures its steps on this CPU."""
    captured = []

    def new_graph():
        captured.append(Graph())
        return captured[-1]

    @contextmanager
    def capturing(graph, *, pool):
        assert pool == "pool"
        with graph:
            yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", new_graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    mode = ["default"]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: mode[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", mode.append)
    monkeypatch.setattr(
        generation._Sampler,
        "_prepared_step",
        lambda sampler: CapturedSteps(
            lambda *inputs: generation._decode_step(sampler.model, sampler.cache, sampler.config, *inputs),
            max_tokens=sampler.cache.max_tokens,
        ),
    )
    return captured


@pytest.mark.parametrize("seeds", [None, range(NUM_PROMPTS)])
@pytest.mark.parametrize("width_step", [8, 64])
def test_captured_steps_sample_what_plain_ones_do(seeds, width_step, directory_of: Directory, request, monkeypatch):
    model = ending_early(load(directory_of("qwen2")))
    config = RolloutConfig(max_response_tokens=20, temperature=0.7, top_p=0.9, slots=4)
    plain = generate(model, some_prompts(), config, seeds=seeds)
    graphs = request.getfixturevalue("graphs")
    monkeypatch.setattr(capture, "WIDTH_STEP", width_step)
    found = generate(model, some_prompts(), config, seeds=seeds)
    assert [response.ids for response in found] == [response.ids for response in plain]
    for mine, theirs in zip(found, plain, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=2e-5)
    assert len(graphs) > 1
    assert sum(graph.replays for graph in graphs) > 10


def test_a_shape_is_captured_when_it_comes_a_second_time(graphs):
    steps = CapturedSteps(lambda token, position, width, _: (token + width, position * 2.0), max_tokens=100)

    def step(rows: int, width: int) -> tuple[list[float], list[float]]:
        token, logprob = steps(torch.arange(rows), torch.arange(rows) + width, width, None)
        return token.tolist(), logprob.tolist()

    assert step(2, 3) == ([64, 65], [6.0, 8.0])
    assert not graphs
    assert step(2, 60) == ([64, 65], [120.0, 122.0])
    assert step(2, 64) == ([64, 65], [128.0, 130.0])
    assert [graph.replays for graph in graphs] == [2]
    assert step(3, 64) == ([64, 65, 66], [128.0, 130.0, 132.0])
    assert step(2, 65) == ([100, 101], [130.0, 132.0])
    assert len(graphs) == 1


@pytest.mark.parametrize("fault", ["capture fails", "other numbers"])
def test_a_graph_that_cannot_be_made_or_is_wrong_is_not_taken(fault, graphs, monkeypatch):
    said = []
    steps = CapturedSteps(
        lambda token, position, width, _: (token + width, position * 2.0), max_tokens=100, paths=FastPaths(said.append)
    )

    def failing(graph, *, pool):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    if fault == "capture fails":
        monkeypatch.setattr(torch.cuda, "graph", failing)
    else:
        monkeypatch.setattr(Graph, "replay", lambda graph: graph.launched[-1][3].mul_(2))
    for _ in range(4):
        token, logprob = steps(torch.arange(2), torch.arange(2) + 3, 3, None)
        assert (token.tolist(), logprob.tolist()) == ([64, 65], [6.0, 8.0])
    assert len(said) == 1 and "captured steps" in said[0]


def test_a_step_that_waits_for_the_cpu_is_never_captured(graphs):
    modes = []

    def counting(token, position, *_):
        modes.append(torch.cuda.get_sync_debug_mode())
        if modes[-1] == "error":
            raise RuntimeError("called a synchronizing CUDA operation")
        return token + 1, position

    steps = CapturedSteps(counting, max_tokens=8)
    one = torch.ones(1, dtype=torch.long)
    found = [steps(number * one, one, 1, None)[0].item() for number in range(4)]
    assert found == [1, 2, 3, 4]
    assert not graphs
    assert modes == ["default", "error", "default", "default", "default"]


def test_watching_a_step_says_nothing_to_the_user(graphs, monkeypatch, recwarn):
    said = []

    def set_mode(mode):
        if not said:  # as torch does, once in a process
            said.append(mode)
            warnings.warn("Synchronization debug mode is a prototype feature", UserWarning, stacklevel=1)

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    steps = CapturedSteps(lambda token, position, *_: (token + 1, position + 0.5), max_tokens=8)
    one = torch.ones(1, dtype=torch.long)
    for _ in range(3):
        steps(one, one, 1, None)
    assert said and not [each for each in recwarn if "prototype" in str(each.message)]


def test_an_error_of_a_step_is_not_taken_for_waiting(graphs):
    def broken(token, position, *_):
        if torch.cuda.get_sync_debug_mode() == "error":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return token, position

    steps = CapturedSteps(broken, max_tokens=8)
    one = torch.ones(1, dtype=torch.long)
    steps(one, one, 1, None)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        steps(one, one, 1, None)
    assert torch.cuda.get_sync_debug_mode() == "default"


def test_what_a_step_returned_is_not_written_over_by_the_next(graphs):
    steps = CapturedSteps(lambda token, position, *_: (token + 1, position + 0.5), max_tokens=8)
    one = torch.ones(1, dtype=torch.long)
    _, second, third = (steps(number * one, number * one, 1, None) for number in (1, 2, 3))
    assert [tensor.item() for tensor in (*second, *third)] == [3, 2.5, 4, 3.5]


@pytest.mark.parametrize("family", [*FAMILIES, "gemma2"])
def test_a_step_never_waits_for_the_host(family, directory_of: Directory, monkeypatch):
    """On the meta device whatever would bring a number to the host raises, as it would while a graph is captured."""
    model = load(directory_of(family))
    with torch.inference_mode():
        cache = SlotCache.of(model, 8, 32)
    if model.causal_lm._supports_sdpa:
        model.causal_lm.set_attn_implementation("sdpa")
    model.to("meta")
    for store in (cache.keys, cache.values):
        store[:] = [tensor.to("meta") for tensor in store]
    config = RolloutConfig(max_response_tokens=8, top_k=5, top_p=0.9)
    token, position, uniform = (torch.zeros(4, dtype=dtype, device="meta") for dtype in (torch.long, torch.long, None))
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a number would be copied to the device"))
    with torch.inference_mode(), NothingFromTheHost():
        sampled, logprob = generation._decode_step(model, cache, config, token, position, 16, uniform)
    assert (sampled.shape, logprob.shape) == ((4,), (4,))


class NothingFromTheHost(TorchDispatchMode):
    """Refuses operations that read or make a tensor on the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tensors_of([*args, *(kwargs or {}).values(), *tensors_of(result)]):
            assert tensor.device.type == "meta", f"{func} meets a tensor of {tensor.device}"
        return result


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "gpt_oss"])
def test_captured_steps_sample_what_plain_ones_do_on_a_gpu(family, directory_of: Directory):
    model = ending_early(load(directory_of(family))).to("cuda")
    config = RolloutConfig(max_response_tokens=40, temperature=0.7, slots=4)
    plain = generate(model, some_prompts(), config, seeds=range(NUM_PROMPTS))
    model.run_compiled()
    captured = generate(model, some_prompts(), config, seeds=range(NUM_PROMPTS))
    assert [response.ids for response in captured] == [response.ids for response in plain]
    for mine, theirs in zip(captured, plain, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)


def test_a_graph_that_cannot_be_made_in_a_later_call_is_not_taken(graphs, monkeypatch):
    """Each call of `generate` captures anew, so that what went well in the first may fail in the second."""
    said = []
    paths = FastPaths(said.append)

    def call() -> list[list[int]]:
        steps = CapturedSteps(lambda token, position, *_: (token + 1, position * 2.0), max_tokens=8, paths=paths)
        return [steps(torch.arange(2) + n, torch.arange(2), 3, None)[0].tolist() for n in range(4)]

    expected = [[1, 2], [2, 3], [3, 4], [4, 5]]
    assert call() == expected and not said

    def failing(graph, *, pool):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", failing)
    assert call() == expected
    assert len(said) == 1 and "captured steps" in said[0]


def test_a_token_that_rounding_decided_does_not_switch_graphs_off(graphs, monkeypatch):
    """A replay may round otherwise than the launched step, where a library chooses another kernel for it."""
    said = []

    def other_token(graph):
        graph.launched[0][3][0] += 1  # the first of eight rows

    def step(token, position, *_):
        return token + 1, position * 1.0

    monkeypatch.setattr(Graph, "replay", other_token)
    eight = torch.arange(8)
    for same, switched_off in ((generation._same_steps, 0), (agree, 1)):
        said.clear()
        steps = CapturedSteps(step, max_tokens=8, paths=FastPaths(said.append), same=same)
        for _ in range(3):
            steps(eight, eight, 3, None)
        assert len(said) == switched_off


@pytest.mark.thorough
def test_captured_steps_are_judged_as_compiled_ones_are(graphs, directory_of: Directory, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    model = load(directory_of("gpt2"))
    model.is_compiled = True
    sampler = generation._Sampler(model, [[1, 2]], RolloutConfig(max_response_tokens=40), seeds=None, offsets=None)
    sampler.device = torch.device("cuda")
    steps = sampler._prepared_step()
    assert isinstance(steps, CapturedSteps) and steps.same is generation._same_steps
