"""The panel of a run adds up to what the run logged, and changes no bit of it."""

import json
from collections import defaultdict

import pytest
import torch

from rlhfkit.config.ppo import AdaptiveKLConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.explanation.on_the_way import PanelOnTheWay
from rlhfkit.machine.progress import Progress
from rlhfkit.records import Prompt
from rlhfkit.rollout.engine import FrozenReference
from rlhfkit.rollout.generation import generate
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.explanations import Explained
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ppo import kl_controller, train_ppo
from tests.training import tiny
from tests.training.test_constraints import CONFIG, constrained_trainer

FAST = OptimConfig(learning_rate=3e-2)
EPISODES = 8


def run(directory, *, has_panel):
    """(weights, metrics by iteration, explained responses by iteration)."""
    config = PpoConfig(
        iterations=3,
        rollout_episodes=EPISODES,
        minibatch_episodes=4,
        num_samples=EPISODES,
        epochs=2,
        optim=FAST,
        value=ValueConfig(optim=FAST),
        kl=AdaptiveKLConfig(coef=0.3, target=1.0, horizon_episodes=50),
        missing_eos_score=-2.0,
        min_eos_rate=0.0,
    )
    reward = tiny.Scripted(lambda text: float(text.count("a") + text.count("b")))
    trainer = tiny.trainer(config, reward=reward, rollout=RolloutConfig(max_response_tokens=6))
    trainer.kl = kl_controller(config.kl)
    trainer.rollout.reference = FrozenReference(tiny.language_model(0).requires_grad_(False), 1.0)
    return trained(trainer, directory, has_panel=has_panel)


def trained(trainer, directory, *, has_panel):
    run_dir, progress = RunDir(directory), Progress(quiet=True)
    with RunLog(run_dir, tensorboard=False) as log:
        if has_panel:
            encoder = trainer.policy.language_model.encoder
            panel = [encoder.encode(Prompt("abc"[: 1 + at % 3]), max_tokens=8) for at in range(EPISODES)]
            times = {"every": 1, "iterations": 3, "log": log}
            trainer.observers = [PanelOnTheWay(panel, sample=lambda: generate, reward=None, seed=0, **times)]
        with progress.stage("ppo", total=3, unit="iteration") as stage:
            train_ppo(trainer, log=log, checkpoints=Checkpoints(directory / "c", warn=print, keep=0), progress=stage)
    metrics = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    lines = run_dir.observations.read_text().splitlines() if has_panel else []
    explained = {
        row["iteration"]: [Explained.model_validate(one) for one in row["responses"]] for row in map(json.loads, lines)
    }
    return [p.detach().clone() for p in trainer.policy.parameters()], metrics, explained


def test_with_constraints_the_rewards_add_up_to_the_score_less_what_they_cost(tmp_path):
    config = CONFIG.model_copy(update={"iterations": 2, "min_eos_rate": 0.0, "num_samples": EPISODES})
    _, _, explained = trained(constrained_trainer(config), tmp_path, has_panel=True)
    costs = [abs(one.shaped_score - one.score) for rows in explained.values() for one in rows]
    assert max(costs) > 0.01
    for one in (one for rows in explained.values() for one in rows):
        assert sum(one.tokens.reward) == pytest.approx(one.shaped_score - one.kl_coef * one.ref_kl, abs=1e-5)


@pytest.fixture(scope="module")
def with_panel(tmp_path_factory):
    return run(tmp_path_factory.mktemp("panel"), has_panel=True)


def test_the_panel_changes_no_bit_of_training(with_panel, tmp_path):
    weights, metrics, _ = run(tmp_path, has_panel=False)
    assert all(torch.equal(one, other) for one, other in zip(weights, with_panel[0], strict=True))
    for row, other in zip(metrics, with_panel[1], strict=True):
        timed = {name for name in {**row, **other} if name.startswith("time/")}
        assert {**row, **dict.fromkeys(timed, 0)} == {**other, **dict.fromkeys(timed, 0)}


def test_what_ppo_learnt_from_adds_up_to_the_metrics(with_panel):
    _, metrics, explained = with_panel
    for row in metrics:
        rows = [one for one in explained[row["iteration"]] if one.is_of_rollout]
        assert len(rows) == EPISODES
        tokens = [one.tokens for one in rows]
        num = sum(len(each.logprob) for each in tokens)

        def mean(values):
            return pytest.approx(sum(values) / EPISODES, rel=1e-4, abs=1e-5)

        assert row["score/mean"] == mean([one.score for one in rows])
        assert row["score/shaped_mean"] == mean([one.shaped_score for one in rows])
        assert row["ref_kl/sequence"] == mean([sum(each.kl) for each in tokens])
        shaped = row["score/shaped_mean"] - row["kl_coef"] * row["ref_kl/sequence"]
        assert mean([sum(each.reward) for each in tokens]) == pytest.approx(shaped, rel=1e-4, abs=1e-5)
        assert row["ppo/clip_fraction"] == pytest.approx(sum(sum(each.is_clipped) for each in tokens) / num, abs=1e-5)
        whitened = torch.tensor([value for each in tokens for value in each.advantage])
        assert float(whitened.mean()) == pytest.approx(0, abs=1e-4)
        assert float(whitened.var(correction=0)) == pytest.approx(1, abs=1e-3)
        raw = torch.tensor([r - v for each in tokens for r, v in zip(each.returns, each.value, strict=True)])
        assert row["ppo/advantage_std"] == pytest.approx(float(raw.std(correction=0)), rel=1e-3)
    assert any(row["ppo/clip_fraction"] > 0 for row in metrics)


def test_the_panel_has_the_same_prompts_in_each_iteration_and_moves_with_the_policy(with_panel):
    by_iteration = defaultdict(list)
    for iteration, rows in with_panel[2].items():
        by_iteration[iteration] = [one for one in rows if not one.is_of_rollout]
    prompts = [[one.prompt for one in rows] for rows in by_iteration.values()]
    assert prompts[0] == prompts[1] == prompts[2]
    moved = [sum(position.kl for one in rows for position in one.positions) for rows in by_iteration.values()]
    assert moved[0] == pytest.approx(0, abs=1e-5)  # before the first update the policy is its reference
    assert moved[2] > 0.01
    assert all(one.tokens.ratio is None for rows in by_iteration.values() for one in rows)
