import pytest
import torch

from rlhfkit.machine.fast_paths import FastPaths, agree


def broken(error):
    def raise_it():
        raise error

    return raise_it


def test_a_path_that_agrees_is_taken_and_compared_once():
    paths, calls = FastPaths(), []
    plain = torch.tensor([1.0, 2.0])

    def slow():
        calls.append("plain")
        return plain

    assert paths.attempt("p", lambda: plain + 1e-6, slow)
    assert paths.attempt("p", lambda: plain + 100, slow)  # tried already
    assert calls == ["plain"]
    assert paths.as_facts() == {"p": "taken"}
    assert paths.words() == "fast paths: p"


def test_each_case_of_a_path_is_compared():
    paths = FastPaths()
    assert paths.attempt("p", lambda: torch.ones(2), lambda: torch.ones(2), case="forward")
    assert not paths.attempt("p", lambda: torch.ones(2), lambda: torch.zeros(2), case="backward")
    assert paths.is_off("p")
    assert not paths.attempt("p", lambda: torch.ones(2), lambda: torch.ones(2), case="forward")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("could not create a primitive\nmore"),
        NotImplementedError("no kernel"),
        PermissionError(13, "Permission denied", "/cache"),
        AttributeError("no such operator"),
        ImportError("no triton"),
    ],
)
def test_a_path_that_raises_is_switched_off_with_one_line(error):
    said = []
    paths = FastPaths(said.append)
    assert not paths.attempt("reordered weights", broken(error), lambda: torch.ones(1))
    assert len(said) == 1
    assert said[0].startswith("reordered weights: switched off") and str(error).splitlines()[0] in said[0]
    assert paths.words() == f"fast paths: without reordered weights ({str(error).splitlines()[0]})"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_lack_of_memory_is_never_taken_for_a_fault_of_the_path(error):
    paths = FastPaths()
    with pytest.raises(type(error)):
        paths.attempt("p", broken(error), lambda: torch.ones(1))
    wrapped = RuntimeError("backend failed")
    wrapped.__cause__ = error
    with pytest.raises(RuntimeError, match="backend failed"):
        paths.attempt("p", broken(wrapped), lambda: torch.ones(1))
    assert not paths.is_off("p")


def test_what_the_plain_path_raises_too_is_no_fault_of_the_fast_one():
    paths = FastPaths()
    with pytest.raises(RuntimeError, match="shapes"):
        paths.attempt("p", broken(RuntimeError("shapes")), broken(RuntimeError("shapes")))
    assert not paths.is_off("p")


def test_an_error_of_another_kind_is_not_caught():
    with pytest.raises(ZeroDivisionError):
        FastPaths().attempt("p", broken(ZeroDivisionError()), lambda: torch.ones(1))


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        (torch.tensor([100.0, 0.1]), torch.tensor([100.0, 0.0]), True),  # rounding of the largest number
        (torch.tensor([100.0, 1.0]), torch.tensor([100.0, 0.0]), False),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, 2.0]), False),
        (torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]), True),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
        (torch.ones(2), torch.ones(2, dtype=torch.bfloat16), False),
        (torch.ones(2, 1), torch.ones(2), False),
        ((torch.ones(2), None), (torch.ones(2), None), True),
        ((torch.ones(2), torch.ones(1)), (torch.ones(2), torch.zeros(1)), False),
    ],
)
def test_numbers_agree_up_to_rounding(found, expected, same):
    assert agree(found, expected) is same
