import random

import numpy as np
import torch

from rlhfkit.machine.seeding import capture_rng, derive_seed, restore_rng, seed_everything, shuffled


def test_derived_seeds_are_the_same_in_every_process_and_version():
    assert derive_seed(0) == 2631537505891389924
    assert derive_seed(1, "response", 3, 7) == 1543335923947312528
    assert shuffled(8, 5) == [3, 6, 0, 2, 1, 4, 5, 7]


def test_other_names_give_other_seeds():
    seeds = {
        derive_seed(0, "a"),
        derive_seed(1, "a"),
        derive_seed(0, "b"),
        derive_seed(0, "a", 0),
        derive_seed(0, "a", 1),
        derive_seed(0, "a", "1"),
        derive_seed(0, "a1"),
        derive_seed(0, 1, "a"),
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_shuffled_is_a_permutation_and_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert sorted(shuffled(100, 1)) == list(range(100))
    assert shuffled(100, 1) != shuffled(100, 2)
    assert torch.equal(torch.rand(3), expected)


def draw() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.normal()),
        float(torch.rand(())),
        float(torch.randn(())),
    ]


def test_restored_generators_go_on_as_if_nothing_had_happened():
    seed_everything(3)
    draw()  # Gaussian generators draw in pairs and keep the second
    state = capture_rng()
    expected = [draw(), draw()]
    seed_everything(99)
    draw()
    restore_rng(state)
    assert [draw(), draw()] == expected


def test_the_same_seed_gives_the_same_draws_and_another_one_others():
    seed_everything(2**40)  # more than NumPy takes
    first = draw()
    seed_everything(2**40)
    assert draw() == first
    seed_everything(4)
    assert not set(draw()) & set(first)


def test_a_checkpoint_of_more_gpus_goes_on_where_there_are_fewer(monkeypatch):
    """Torch's own function for all of them raises an IndexError at the first GPU that is not there."""
    state = capture_rng()
    state["cuda"] = [torch.full((16,), number, dtype=torch.uint8) for number in range(3)]
    put_back = {}

    def set_rng_state(each, device):
        if device >= 2:
            raise IndexError("tuple index out of range")
        put_back[device] = each

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", set_rng_state)
    monkeypatch.setattr(torch.cuda.random, "set_rng_state", set_rng_state)
    restore_rng(state)
    assert {number: int(each[0]) for number, each in put_back.items()} == {0: 0, 1: 1}
