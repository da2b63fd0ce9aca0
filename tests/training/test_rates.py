"""What learning_rate = "auto" and adam_eps = "auto" stand for."""

import io

import pytest
import torch
from rich.console import Console
from torch import nn

from rlhfkit.config.control import ControlPpoConfig
from rlhfkit.config.ppo import PpoConfig, ValueConfig
from rlhfkit.config.training import OptimConfig, SftConfig
from rlhfkit.machine.progress import Progress
from rlhfkit.rundir.atomic import write_json
from rlhfkit.rundir.contents import read_facts
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.manifest import Manifest
from rlhfkit.training.rates import announced_ppo, announced_supervised, auto_learning_rate, decided, decided_ppo


# By hand: 8e-7 (7e9 / N)^0.8, 5e-6 (7e9 / N)^0.6, 1e-5 (7e9 / N)^0.5, 5e-6 (7e9 / N)^0.5.
@pytest.mark.parametrize(
    ("num_weights", "policy", "value", "sft", "reward_model"),
    [
        (17_000_000, 9.9e-5, 1.9e-4, 2.0e-4, 1.0e-4),
        (124_000_000, 2.0e-5, 5.6e-5, 7.5e-5, 3.8e-5),
        (1_000_000_000, 3.8e-6, 1.6e-5, 2.6e-5, 1.3e-5),
        (8_000_000_000, 7.2e-7, 4.6e-6, 9.4e-6, 4.7e-6),
        (164_160, 3e-4, 1e-3, 5e-4, 1e-3),  # the bounds
    ],
)
def test_the_rate_goes_by_size_and_stage(num_weights, policy, value, sft, reward_model):
    expected = {"policy": policy, "value": value, "sft": sft, "reward_model": reward_model}
    assert {role: auto_learning_rate(role, num_weights=num_weights, lora=False) for role in expected} == expected


@pytest.mark.parametrize(
    ("role", "num_weights", "published"),
    [
        ("policy", 124e6, 1e-5),  # Ziegler et al. 2019
        ("policy", 1e9, 3e-6),  # Huang et al. 2024
        ("policy", 6.9e9, 3e-6),
        ("policy", 8e9, 5e-7),  # OpenRLHF's example
        ("policy", 8e9, 3e-7),  # Tülu 3
        ("policy", 70e9, 1e-7),
        ("value", 6e9, 9e-6),  # InstructGPT
        ("value", 8e9, 9e-6),  # OpenRLHF's example
        ("sft", 7e9, 2e-5),  # Zephyr, Llama 2
        ("sft", 8e9, 5e-6),  # Tülu 3, OpenRLHF's example
        ("sft", 70e9, 2e-6),
        ("reward_model", 124e6, 5e-5),  # Ziegler et al. 2019
        ("reward_model", 6e9, 9e-6),  # InstructGPT
        ("reward_model", 8e9, 3e-6),  # Tülu 3
        ("reward_model", 8e9, 9e-6),  # OpenRLHF's example
    ],
)
def test_the_rate_is_within_a_factor_of_four_of_published_runs(role, num_weights, published):
    rate = auto_learning_rate(role, num_weights=int(num_weights), lora=False)
    assert published / 4 <= rate <= 4 * published


@pytest.mark.parametrize("num_weights", [7_000_000_000, 8_000_000_000, 70_000_000_000])
def test_full_ppo_of_a_large_model_stays_below_a_millionth(num_weights):
    assert auto_learning_rate("policy", num_weights=num_weights, lora=False) <= 1e-6


def test_adapters_get_ten_times_the_rate_up_to_a_bound():
    assert auto_learning_rate("policy", num_weights=8_000_000_000, lora=True) == 7.2e-6
    assert auto_learning_rate("sft", num_weights=8_000_000_000, lora=True) == 9.4e-5
    assert auto_learning_rate("sft", num_weights=17_000_000, lora=True) == 1e-3


class Weights(nn.Module):
    """So many weights, tied to a second name, with adapters or without; its critic has a tenth."""

    def __init__(self, num, *, adapters=0, critic=False):
        super().__init__()
        self.embed = nn.Parameter(torch.zeros(num, device="meta"))
        self.head = self.embed
        self.lora_A = nn.Parameter(torch.zeros(adapters, device="meta")) if adapters else None
        self.critic = Weights(num // 10) if critic else None


def test_tied_weights_count_once_and_adapters_not_at_all():
    assert decided(OptimConfig(), Weights(124_000_000), "sft").learning_rate == 7.5e-5
    assert decided(OptimConfig(), Weights(8_000_000_000, adapters=40_000_000), "sft").learning_rate == 9.4e-5


def test_policy_and_critic_are_counted_apart():
    made = decided_ppo(PpoConfig(), Weights(1_000_000_000, critic=True))
    assert made.optim.learning_rate == 3.8e-6
    assert made.value.optim.learning_rate == 6.4e-5  # 5e-6 (7e9 / 1e8)^0.6 = 6.40e-5
    control = decided_ppo(ControlPpoConfig(optim=OptimConfig()), Weights(1000))
    assert (control.optim.learning_rate, control.optim.adam_eps) == (3e-4, 1e-5)


@pytest.mark.parametrize(
    ("role", "eps"), [("policy", 1e-5), ("value", 1e-5), ("sft", 1e-8), ("reward_model", 1e-8), ("pretrain", 1e-8)]
)
def test_epsilon_is_small_except_in_ppo(role, eps):
    assert decided(OptimConfig(), Weights(1000), role).adam_eps == eps


def test_what_the_recipe_says_is_kept():
    optim = OptimConfig(learning_rate=3e-5, adam_eps=1e-6)
    assert decided(optim, Weights(8_000_000_000), "policy") == optim


def test_undecided_settings_make_no_optimizer():
    with pytest.raises(ValueError, match="learning_rate auto and adam_eps auto are not both numbers"):
        OptimConfig().numbers()


def test_chosen_rates_are_shown_recorded_and_read_back(tmp_path):
    said, run = io.StringIO(), RunDir(tmp_path)
    progress = Progress(console=Console(file=said, width=200))
    manifest = Manifest(run, seed=0, device="cpu", num_threads=1)
    sft, ppo = SftConfig(), PpoConfig(value=ValueConfig(optim=OptimConfig(learning_rate=1e-4)))
    write_json(run.config, {"name": "x", "sft": sft.model_dump(), "ppo": ppo.model_dump()})
    model = Weights(17_000_000, critic=True)
    assert read_facts(run).setting("sft", "optim", "learning_rate") == "auto"
    announced_supervised(sft, model, "sft", stage="sft", progress=progress, manifest=manifest)
    announced_ppo(ppo, model, stage="ppo", progress=progress, manifest=manifest)
    assert "sft: optim.learning_rate = 0.00019, by the model's size" in said.getvalue()  # 18.7 million
    assert "ppo: optim.learning_rate = 9.9e-05, by the model's size" in said.getvalue()
    facts = read_facts(run)
    assert facts.setting("sft", "optim", "learning_rate") == 1.9e-4
    assert facts.setting("ppo", "optim", "learning_rate") == 9.9e-5
    assert facts.setting("ppo", "value", "optim", "learning_rate") == 1e-4
    assert facts.setting("ppo", "value", "optim", "adam_eps") == 1e-5
