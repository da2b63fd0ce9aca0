"""How keys lie in memory: as a CPU is quick at, or as the fused attention of a GPU takes them."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.models.attention import any_shape_attention
from rlhfkit.rollout import generation
from rlhfkit.rollout.generation import generate
from rlhfkit.rollout.kv_cache import SlotCache
from tests.rollout.test_generation import NUM_PROMPTS, ending_early, some_prompts
from tests.tiny import Directory, load

ROWS, WIDTH = 64, 56


class Made(TorchDispatchMode):
    """Bytes of the tensors that operations make, by type; views of what was there do not count."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        before = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in before:
                self.sizes.append((str(func), each.nbytes))
        return result


def copies_in_a_step(model, *, by_token: bool) -> list[tuple[str, int]]:
    """What a step of decoding makes by converting, of the size of a layer's keys in sight and more.

    Without inference mode, in which what attention is made of does not show.
    """
    with torch.no_grad():
        shapes = [(key.clone(), value.clone()) for key, value in shapes_of(model)]
        cache = SlotCache(shapes, ROWS, 64, by_token=by_token)
        token, position = torch.zeros(ROWS, dtype=torch.long), torch.full((ROWS,), WIDTH - 6)
        config = RolloutConfig(max_response_tokens=8)
        with Made() as made:
            generation._decode_step(model, cache, config, token, position, WIDTH, torch.zeros(ROWS))
    return [
        (name, size) for name, size in made.sizes if "_to_copy" in name and size >= cache.keys[0][0].nbytes * ROWS / 2
    ]


def shapes_of(model):
    from rlhfkit.rollout.kv_cache import Seen

    seen = Seen()
    model.trunk_with_cache(torch.zeros((1, 1), dtype=torch.long), past_key_values=seen)
    return seen.states


@pytest.mark.parametrize("family", ["gpt2", "qwen2"])
def test_fused_attention_reads_keys_by_token_without_a_copy_of_the_cache(family, directory_of: Directory):
    """It wants neighbouring numbers of a key side by side; else torch computes from a float32 copy of all of it."""
    model = load(directory_of(family), dtype=torch.bfloat16)
    model.causal_lm.set_attn_implementation("sdpa")
    assert copies_in_a_step(model, by_token=False)  # which shows that a copy would be seen
    assert not copies_in_a_step(model, by_token=True)


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "gemma2", "gpt_oss"])
def test_the_layout_of_keys_changes_no_token(family, directory_of: Directory, monkeypatch):
    model = ending_early(load(directory_of(family)))
    config = RolloutConfig(max_response_tokens=20, temperature=0.7, slots=4)
    expected = generate(model, some_prompts(), config, seeds=range(NUM_PROMPTS))
    layouts = []

    class ByToken(SlotCache):
        def __init__(self, shapes, num_slots, max_tokens):
            super().__init__(shapes, num_slots, max_tokens, by_token=True)
            layouts.append(self.keys[0].stride(2))

    monkeypatch.setattr(
        "rlhfkit.rollout.kv_cache.SlotCache.of", staticmethod(lambda *args: ByToken(shapes_of(args[0]), *args[1:]))
    )
    found = generate(model, some_prompts(), config, seeds=range(NUM_PROMPTS))
    assert layouts == [1]
    assert [response.ids for response in found] == [response.ids for response in expected]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=2e-5)


def test_keys_lie_by_token_where_attention_is_fused(directory_of: Directory):
    model = load(directory_of("gpt2"))
    with torch.no_grad():
        on_cpu = SlotCache.of(model, 2, 8)
        elsewhere = SlotCache([(k.to("meta"), v.to("meta")) for k, v in shapes_of(model)], 2, 8)
    assert on_cpu.keys[0].stride(3) == 1
    assert elsewhere.keys[0].stride(2) == 1
    assert on_cpu.keys[0].shape == elsewhere.keys[0].shape
    assert on_cpu.bytes_per_place == elsewhere.bytes_per_place


def test_while_sampling_on_a_gpu_no_attention_is_planned_for_each_shape():
    """A step has another width each time; the other kernels take any."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    assert before
    with any_shape_attention(torch.device("cuda")):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.mem_efficient_sdp_enabled() and torch.backends.cuda.math_sdp_enabled()
    assert torch.backends.cuda.cudnn_sdp_enabled() is before


def test_sampling_asks_for_it_where_the_model_is(directory_of: Directory, monkeypatch):
    asked = []

    def spy(device):
        asked.append(device)
        return any_shape_attention(torch.device("cuda"))

    def step(*inputs):
        asked.append(torch.backends.cuda.cudnn_sdp_enabled())
        return decode(*inputs)

    decode = generation._decode_step
    monkeypatch.setattr(generation, "any_shape_attention", spy)
    monkeypatch.setattr(generation, "_decode_step", step)
    generate(load(directory_of("gpt2")), [[1, 2]], RolloutConfig(max_response_tokens=3), seeds=None)
    assert asked == [torch.device("cpu"), False, False]
