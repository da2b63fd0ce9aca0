"""Memory by formulas, beside what autograd keeps, what models hold, and numbers worked out by hand."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from rlhfkit.config.model import LoraConfig
from rlhfkit.distributed import ranks
from rlhfkit.formulas import memory
from rlhfkit.formulas.assumptions import CPU_ASSUMPTIONS, GPU_ASSUMPTIONS
from rlhfkit.formulas.memory import Layout, kept_numbers, memory_of
from rlhfkit.formulas.shapes import NAMED, shape_of_config
from rlhfkit.formulas.work import Work
from rlhfkit.models import language
from rlhfkit.models.attention import implementations_for
from rlhfkit.models.fast.activation import use_fast_activations
from rlhfkit.models.layers import trunk_hidden
from rlhfkit.models.lora import add_lora
from rlhfkit.training import memory as training_memory
from rlhfkit.training.memory import bytes_kept

CPU = torch.device("cpu")
TOKENS = 64
SIZES = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 160, "vocab_size": 64}
GQA = {**SIZES, "num_key_value_heads": 2, "tie_word_embeddings": True}


def llama(layers):
    return LlamaConfig(num_hidden_layers=layers, **{**GQA, "num_key_value_heads": 6})


def qwen(layers):
    return Qwen2Config(num_hidden_layers=layers, **GQA)


def gpt2(layers):
    return GPT2Config(
        n_layer=layers,
        n_embd=96,
        n_head=6,
        vocab_size=64,
        n_positions=TOKENS,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=1,
        eos_token_id=1,
    )


def counted(config, dtype, *, fused, lora_rank=None):
    """Numbers that autograd keeps of a token."""
    model = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation("sdpa" if fused else implementations_for(CPU)[0])
    use_fast_activations(model, CPU)
    model = model.to(dtype).eval()
    if lora_rank is not None:
        model = add_lora(model.requires_grad_(False), LoraConfig(rank=lora_rank), notes=[])
    ids = torch.ones((2, TOKENS), dtype=torch.long)
    return bytes_kept(lambda: trunk_hidden(model, ids), model.parameters()) / ids.numel() / dtype.itemsize


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
@pytest.mark.parametrize("config", [llama, qwen, gpt2])
def test_what_a_layer_keeps_is_what_autograd_keeps(config, fused, dtype):
    shape = shape_of_config(config(2).to_dict(), name="", source="")
    layer, top = kept_numbers(shape, itemsize=dtype.itemsize, longest=TOKENS, lora_rank=None, fused=fused)
    two, four = (counted(config(layers), dtype, fused=fused) for layers in (2, 4))
    assert layer == pytest.approx((four - two) / 2, rel=0.02)
    assert top == pytest.approx(2 * two - four, rel=0.15)  # masks, norms' statistics


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [llama, qwen])
def test_what_a_layer_with_adapters_keeps_is_what_autograd_keeps(config, dtype):
    shape = shape_of_config(config(2).to_dict(), name="", source="")
    layer, _ = kept_numbers(shape, itemsize=dtype.itemsize, longest=TOKENS, lora_rank=4, fused=True)
    two, four = (counted(config(layers), dtype, fused=True, lora_rank=4) for layers in (2, 4))
    assert layer == pytest.approx((four - two) / 2, rel=0.02)


def test_adapters_have_as_many_parameters_as_peft_makes():
    shape = shape_of_config(qwen(3).to_dict(), name="", source="")
    model = add_lora(AutoModelForCausalLM.from_config(qwen(3)), LoraConfig(rank=4), notes=[])
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert shape.adapter_parameters(4) == trained


def test_constants_are_those_of_the_code():
    assert memory.MOST_LOGITS == language.MOST_LOGITS
    assert memory.GRADIENT_FACTOR == language.GRADIENT_FACTOR
    assert memory.BUCKET_NUMBERS == ranks.BUCKET_ELEMENTS
    assert {"cpu": training_memory.MOST_TOKENS["cpu"], "gpu": training_memory.MOST_TOKENS["cuda"]} == memory.MOST_TOKENS
    assert memory.ENOUGH_TOKENS == training_memory.ENOUGH_TOKENS
    assert memory.GRANULE_TOKENS == training_memory.GRANULE_TOKENS
    for assumptions in (CPU_ASSUMPTIONS, GPU_ASSUMPTIONS):
        assert assumptions.usable_share.value == training_memory.SHARE_OF_AVAILABLE
        assert assumptions.backward_factor.value == training_memory.BACKWARD_FACTOR
    assert CPU_ASSUMPTIONS.library_bytes.value == training_memory.LIBRARY_BYTES


WORK = Work(
    policy=NAMED["8B"],
    itemsize=2,
    reward_models=((NAMED["8B"], 2),),
    critic="separate",
    lora_rank=None,
    trained_layers=None,
    recompute="auto",
    iterations=10,
    episodes=64,
    minibatch_episodes=32,
    epochs=4,
    microbatch_tokens="auto",
    forward_tokens=8192,
    slots=64,
    prompt_tokens=256,
    response_tokens=256,
    mean_prompt_tokens=256,
    mean_response_tokens=256,
)
BILLION, GIB = 10**9, 2**30
WHOLE, TRUNK = 8_030_261_248, 8_030_261_248 - 128256 * 4096


def parts_of(work, *, num_ranks=1, sharding="none", on_cpu=False, memory_bytes=10**13):
    assumptions = CPU_ASSUMPTIONS if on_cpu else GPU_ASSUMPTIONS
    found = memory_of(work, Layout(num_ranks, sharding, on_cpu), assumptions, memory_bytes)
    return {(part.name, part.phase): part.num_bytes for part in found.parts}


def test_each_part_of_8b_on_one_gpu_is_what_arithmetic_says():
    parts = parts_of(WORK)
    assert parts["policy, weights", "always"] == parts["reference", "always"] == 2 * WHOLE
    assert parts["critic, weights", "always"] == parts["reward model", "always"] == 2 * TRUNK
    assert parts["float32 masters", "always"] == 4 * (WHOLE + TRUNK)
    assert parts["Adam's two averages", "always"] == 8 * (WHOLE + TRUNK)
    assert parts["gradients", "update"] == 4 * (WHOLE + TRUNK)
    assert parts["copy for a checkpoint", "host"] == (2 + 8 + 4) * (WHOLE + TRUNK)
    assert parts["KV cache", "sampling"] == 65 * 513 * (32 * 2 * 8 * 128) * 2  # slots and places, one of each spare


def test_fsdp_parts_what_is_trained_and_what_is_frozen_but_keeps_a_whole_policy_to_sample():
    whole, parts = parts_of(WORK), parts_of(WORK, num_ranks=8, sharding="fsdp")
    for name in ("reference", "reward model", "float32 masters", "Adam's two averages"):
        assert parts[name, "always"] == whole[name, "always"] // 8
    assert parts["policy, weights", "always"] == parts["critic, weights", "always"] == 0  # the masters are the weights
    assert parts["gradients", "update"] == whole["gradients", "update"] // 8
    assert parts["policy, whole, to sample", "always"] == 2 * WHOLE
    assert parts["copy for a checkpoint", "host"] == 12 * (WHOLE + TRUNK) // 8


def test_fsdp_begins_with_whole_weights_of_which_a_layer_at_a_time_becomes_float32():
    whole = parts_of(WORK, num_ranks=8, sharding="fsdp")["policy and critic, not parted yet", "preparing"]
    assert whole == 2 * (WHOLE + TRUNK) + 4 * WORK.policy.layer_parameters


def test_fsdp_parts_the_weights_under_adapters_and_leaves_adapters_whole():
    work = replace(WORK, lora_rank=16)
    whole, parts = parts_of(work), parts_of(work, num_ranks=8, sharding="fsdp")
    assert parts["policy, weights", "always"] == 2 * WHOLE // 8
    assert parts["Adam's two averages", "always"] == whole["Adam's two averages", "always"]
    assert parts["adapters", "always"] == whole["adapters", "always"]


def test_float32_weights_are_their_own_masters_parted_or_not():
    work = replace(WORK, itemsize=4)
    whole, parts = parts_of(work), parts_of(work, num_ranks=8, sharding="fsdp")
    assert (whole["float32 masters", "always"], whole["policy, weights", "always"]) == (0, 4 * WHOLE)
    assert parts["float32 masters", "always"] == 4 * (WHOLE + TRUNK) // 8
    assert parts["policy, weights", "always"] == 0


def test_ranks_without_sharding_hold_all_models_and_fewer_rows():
    one, two = parts_of(WORK), parts_of(WORK, num_ranks=2)
    assert two["float32 masters", "always"] == one["float32 masters", "always"]
    assert two["KV cache", "sampling"] == 33 * 513 * (32 * 2 * 8 * 128) * 2
    assert two["bucket of gradients", "update"] == 4 * 128256 * 4096  # the embeddings, which are one tensor


def test_adapters_need_no_reference_and_no_masters():
    parts = parts_of(replace(WORK, lora_rank=16))
    assert parts["reference", "always"] == parts["float32 masters", "always"] == 0
    adapters = 2 * NAMED["8B"].adapter_parameters(16)
    assert parts["Adam's two averages", "always"] == 8 * adapters


def test_last_layers_alone_have_the_rest_in_common():
    parts = parts_of(replace(WORK, trained_layers=4))
    layer = 2 * 4 * NAMED["8B"].layer_parameters
    assert parts["critic, weights", "always"] == parts["reward model", "always"] == pytest.approx(layer, rel=1e-4)
    assert parts["Adam's two averages", "always"] == 4 * (
        parts["critic, weights", "always"] + parts["reference", "always"]
    )


def test_a_checkpoint_copy_is_in_the_memory_of_a_cpu():
    assert ("copy for a checkpoint", "always") in parts_of(WORK, on_cpu=True)


def test_earlier_stages_leave_something_behind_on_a_cpu():
    after = parts_of(replace(WORK, is_first_stage=False), on_cpu=True)
    assert after.pop(("left behind by earlier stages", "always")) == CPU_ASSUMPTIONS.earlier_bytes.value
    assert after == parts_of(WORK, on_cpu=True)


def test_layers_are_computed_twice_where_memory_is_short():
    layout = Layout(1, "none", on_cpu=False)
    plenty = memory_of(WORK, layout, GPU_ASSUMPTIONS, 1000 * GIB)
    short = memory_of(WORK, layout, GPU_ASSUMPTIONS, 335 * GIB)
    assert (plenty.recompute, plenty.fits) == (False, True)
    assert (short.recompute, short.fits) == (True, True)
    assert short.peak_bytes < plenty.peak_bytes


def test_auto_takes_what_has_room_and_never_more():
    layout = Layout(1, "none", on_cpu=False)
    for gibibytes in (335, 350, 400, 1000):
        found = memory_of(WORK, layout, GPU_ASSUMPTIONS, gibibytes * GIB)
        assert found.fits
        assert found.peak_bytes <= found.usable_bytes
        assert 512 <= found.microbatch_tokens <= 32 * 512


def test_what_does_not_fit_does_not_fit():
    assert not memory_of(WORK, Layout(1, "none", on_cpu=False), GPU_ASSUMPTIONS, 80 * GIB).fits


def test_usable_memory_is_never_more_than_there_is():
    assert memory_of(WORK, Layout(1, "none", on_cpu=False), GPU_ASSUMPTIONS, 80 * GIB).usable_bytes == 80 * GIB
