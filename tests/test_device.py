import os

import torch

from rlhfkit import device
from rlhfkit.device import available_bytes, held_bytes, peak_bytes, reset_peak

CPU = torch.device("cpu")
SIZE = 200 * 2**20


def test_peak_looks_back_to_its_reset_and_no_further():
    reset_peak(CPU)
    before = held_bytes(CPU)
    torch.ones(SIZE // 4).sum()
    peak = peak_bytes(CPU)
    assert SIZE * 0.9 < peak - before < SIZE * 1.5
    reset_peak(CPU)
    assert peak_bytes(CPU) < peak - SIZE * 0.5


def test_what_is_available_is_some_of_what_the_machine_has():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert total / 1000 < available_bytes(CPU) < total


def test_the_limit_of_a_control_group_counts(monkeypatch):
    monkeypatch.setattr(device, "_limits_of_groups", lambda: iter([7 * 2**20, 9 * 2**20]))
    assert available_bytes(CPU) == 7 * 2**20
