from pathlib import Path

import pytest
import torch

from rlhfkit.machine import dtype as dtypes
from rlhfkit.machine.dtype import NO_BFLOAT16, ProductTimes, choose_dtype, measured_products

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_a_user_has_it(monkeypatch):
    monkeypatch.delenv(NO_BFLOAT16, raising=False)


def times(*, float32: float, bfloat16: float):
    return lambda device: ProductTimes(float32, bfloat16)


def never(device):
    raise AssertionError("nothing has to be measured")


@pytest.mark.parametrize(
    ("bfloat16", "taken"),
    [(0.2, "bfloat16"), (0.79, "bfloat16"), (0.81, "float32"), (1.0, "float32"), (300.0, "float32")],
)
def test_auto_takes_bfloat16_only_where_its_products_are_clearly_faster(bfloat16, taken):
    choice = choose_dtype("auto", CPU, measure=times(float32=1.0, bfloat16=bfloat16))
    assert choice.taken == taken
    assert choice.dtype == getattr(torch, taken)
    assert not choice.is_slow
    assert choice.factor == bfloat16


def test_the_line_at_the_start_says_the_type_and_the_measured_factor():
    slow = choose_dtype("auto", CPU, measure=times(float32=2.0, bfloat16=84.0)).words()
    assert slow == "computing in float32: products in bfloat16 take 42 times as long as in float32 on this CPU"
    fast = choose_dtype("auto", CPU, measure=times(float32=5.0, bfloat16=1.0)).words()
    assert fast == "computing in bfloat16: products in bfloat16 are 5 times as fast as in float32 on this CPU"


def test_a_type_asked_for_by_name_is_taken_and_told_where_it_is_slow():
    slow = choose_dtype("bfloat16", CPU, measure=times(float32=2.0, bfloat16=84.0))
    assert (slow.taken, slow.is_slow) == ("bfloat16", True)
    assert "slow here" in slow.words() and "42 times as long" in slow.words()
    quick = choose_dtype("bfloat16", CPU, measure=times(float32=2.0, bfloat16=1.0))
    assert (quick.taken, quick.is_slow) == ("bfloat16", False)


def test_float32_by_name_needs_no_measuring():
    assert choose_dtype("float32", CPU, measure=never).taken == "float32"


def test_a_run_that_goes_on_keeps_its_type_on_a_machine_that_would_choose_another():
    slow_here = times(float32=1.0, bfloat16=50.0)
    kept = choose_dtype("auto", CPU, recorded="bfloat16", measure=slow_here)
    assert (kept.taken, kept.is_slow) == ("bfloat16", True)
    assert "50 times as long" in kept.words() and "--fresh" in kept.words()
    other = choose_dtype("auto", CPU, recorded="float32", measure=times(float32=1.0, bfloat16=0.1))
    assert (other.taken, other.is_slow) == ("float32", False)


def test_a_name_in_the_recipe_comes_before_what_was_recorded():
    assert choose_dtype("float32", CPU, recorded="bfloat16", measure=never).taken == "float32"


def test_the_switch_makes_any_machine_one_without_bfloat16(monkeypatch):
    monkeypatch.setenv(NO_BFLOAT16, "1")
    assert choose_dtype("auto", CPU, measure=never).taken == "float32"
    assert choose_dtype("bfloat16", CPU, measure=never).is_slow
    monkeypatch.setenv(NO_BFLOAT16, "0")
    assert choose_dtype("auto", CPU, measure=times(float32=1.0, bfloat16=0.1)).taken == "bfloat16"


def test_auto_decides_by_the_hardware_that_linux_names():
    """An oracle of its own: AVX2 alone means no bfloat16, AMX means that it is several times as fast."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    native = {"avx512_bf16", "amx_bf16", "bf16"} & flags
    if "amx_bf16" in flags:
        assert choose_dtype("auto", CPU).taken == "bfloat16"
    elif "avx2" in flags and not native and "avx512f" not in flags:
        assert choose_dtype("auto", CPU).taken == "float32"
        assert measured_products(CPU).factor > 3
    else:
        pytest.skip("flags alone do not say which is faster here")


def test_measuring_changes_neither_threads_nor_random_numbers():
    dtypes.measured_products.cache_clear()
    threads = torch.get_num_threads()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    found = measured_products(CPU)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert found.float32 > 0 and found.bfloat16 > 0
    assert measured_products(CPU) is found  # once in a process
