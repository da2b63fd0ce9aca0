"""What `rlhfkit doctor --processes` looks at: whether processes can work on one run together."""

from torch.distributed.fsdp import FSDPModule

from rlhfkit.distributed.ranks import Ranks, ranks
from rlhfkit.doctor import ranks as doctor
from tests.distributed.together import together


def verdicts():
    return {finding.name: (finding.verdict, finding.seen) for finding in doctor.examine_ranks()}


def test_processes_that_can_work_together_are_told_so(tmp_path):
    first, second = together(2, verdicts, tmp_path)
    assert {verdict for verdict, _ in first.values()} == {"ok"}
    assert (
        first.keys()
        == second.keys()
        == {
            "ranks.places",
            "ranks.versions",
            "ranks.gradient",
            "ranks.parted",
            "ranks.speed",
        }
    )
    assert "2 processes met" in first["ranks.places"][1]


def test_a_mean_in_place_of_a_sum_is_a_fault(tmp_path, monkeypatch):
    add_up = Ranks.add_up

    def average(self, tensors):
        tensors = list(tensors)
        add_up(self, tensors)
        for tensor in tensors:
            tensor /= self.size

    def with_the_trap():
        monkeypatch.setattr(Ranks, "add_up", average)
        return verdicts()

    first, _ = together(2, with_the_trap, tmp_path)
    assert first["ranks.gradient"][0] == "fault"
    assert "off by 0.5 of its size" in first["ranks.gradient"][1]


def test_a_mean_of_fsdp_is_a_fault(tmp_path, monkeypatch):
    def with_the_trap():
        for setting in ("set_gradient_divide_factor", "set_force_sum_reduction_for_comms"):
            monkeypatch.setattr(FSDPModule, setting, lambda self, value: None)
        return verdicts()

    first, _ = together(2, with_the_trap, tmp_path)
    assert first["ranks.parted"][0] == "fault"
    assert first["ranks.gradient"][0] == "ok"


def test_other_versions_are_named_with_their_host(tmp_path, monkeypatch):
    def with_another():
        if ranks().rank == 1:
            monkeypatch.setattr(doctor, "_version", lambda name: "0.1" if name == "torch" else "none")
        return verdicts()

    first, _ = together(2, with_another, tmp_path)
    verdict, seen = first["ranks.versions"]
    assert verdict == "fault"
    assert "torch 0.1 on " in seen and "(rank 1)" in seen
