"""`ControlTrainer` does what `rlhfkit run` does on a control task, and takes environments as they come."""

import gc
import json
import threading

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file

from rlhfkit import ConfigError, ControlPPOConfig, ControlTrainer, EnvError, PPOConfig, RunDir, load_control_policy
from rlhfkit.config.load import load_recipe
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline.run import run

SMALL = ControlPPOConfig(env_steps=512, num_envs=4, rollout_steps=32, minibatch_steps=64, epochs=2)
QUIET = Progress(quiet=True)


def trainer(env="CartPole-v1", **options):
    return ControlTrainer(env, **{"config": SMALL, "progress": QUIET, **options})


class Line(gymnasium.Env):
    """One observation, three actions; action 1 pays."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), float(action == 1), self.steps == 5, False, {}


@pytest.mark.thorough
def test_it_trains_to_the_bits_of_the_command_line(tmp_path):
    changes = ["ppo.env_steps=512", "ppo.num_envs=4", "ppo.rollout_steps=32", "ppo.minibatch_steps=64", "ppo.epochs=2"]
    loaded = load_recipe("cartpole", [*changes, "num_seeds=1", "evaluation.num_episodes=2", "evaluation.record=false"])
    recipe = loaded.recipe
    run(loaded, tmp_path / "run", progress=QUIET)
    trained = trainer(recipe.env, config=recipe.ppo, network=recipe.network, seed=recipe.seed).train()
    expected = load_file(tmp_path / "run" / "policy" / "seed-0" / "policy.safetensors")
    found = trained.policy.state_dict()
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def test_each_iteration_gives_its_metrics():
    trained = trainer(Line)  # whose resets cost no step
    assert [metrics["env_steps"] for metrics in trained] == [128, 256, 384, 512]
    assert len(trained.history) == 4


def test_the_steps_of_the_call_go_before_those_of_the_config():
    assert len(list(trainer(env_steps=256))) == 2


def test_nothing_is_left_on_the_disk_without_a_run_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with trainer() as trained:
        trained.train()
    assert list(tmp_path.iterdir()) == []


def writers():
    return [thread for thread in threading.enumerate() if type(thread).__name__ == "_AsyncWriterThread"]


def test_without_a_run_directory_nothing_is_written_for_tensorboard():
    trained = trainer()
    next(trained)
    assert writers() == [] and not trained.run_dir.tensorboard.exists()


def test_a_trainer_that_nobody_holds_writes_no_more(tmp_path):
    trained = trainer(run_dir=tmp_path / "run")
    next(trained)
    assert len(writers()) == 1
    del trained
    gc.collect()
    assert writers() == []
    assert trainer(run_dir=tmp_path / "run").history == []  # and the directory is free; no checkpoint was due


def test_training_twice_says_that_nothing_is_left(heard):
    trained = trainer(progress=heard).train()
    assert trained.train() is trained and len(trained.history) == 4
    assert "4 of 4 iterations are done; make a new trainer for more" in heard.lines[-1]
    assert not any("resumed" in line for line in heard.lines)


def test_faults_name_the_class_of_control_settings():
    with pytest.raises(ConfigError, match="config is of the class PPOConfig; ControlTrainer takes a ControlPPOConfig"):
        trainer(config=PPOConfig())
    with pytest.raises(TypeError, match=r"give config=ControlPPOConfig\(num_envs=…\)"):
        trainer(num_envs=3)
    with pytest.raises(TypeError, match=r"here it is a setting of config=ControlPPOConfig\(…\): rollout_steps"):
        trainer(n_steps=3)


@pytest.mark.thorough
def test_a_run_directory_holds_what_the_command_leaves(tmp_path):
    trained = trainer(run_dir=tmp_path / "run").train()
    directory = RunDir(tmp_path / "run")
    assert directory.report.exists() and directory.evaluation.exists()
    rows = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    policy = load_control_policy(tmp_path / "run")
    assert torch.equal(policy.head.weight, trained.policy.head.weight)


@pytest.mark.thorough
def test_a_training_that_stopped_goes_on_to_the_same_bits(tmp_path):
    whole = trainer().train()
    config = SMALL.model_copy(update={"checkpoint_minutes": 1e-9})
    with trainer(run_dir=tmp_path / "run", config=config) as first:
        next(first)
        next(first)
    second = trainer(run_dir=tmp_path / "run", config=config)
    assert len(list(second)) == 2 and len(second.history) == 4
    assert torch.equal(second.policy.head.weight, whole.policy.head.weight)


@pytest.mark.parametrize(
    "env",
    [Line, Line(), lambda: Line(), gymnasium.make("CartPole-v1"), gymnasium.make("CartPole-v1", max_episode_steps=9)],
)
def test_an_environment_may_be_an_object_or_a_function(env):
    config = SMALL.model_copy(update={"env_steps": 128})
    with trainer(env, config=config) as trained:
        trained.train()
        observation, _ = (env if isinstance(env, gymnasium.Env) else env()).reset(seed=0)
        assert trained.policy.predict(observation, deterministic=True) in range(3)


def test_one_of_ones_own_is_learnt():
    config = SMALL.model_copy(update={"env_steps": 4096})
    trained = trainer(Line, config=config).train()
    assert trained.evaluate(num_episodes=3).episode_return.mean == 5.0  # five steps, each of which may pay 1


def test_the_limit_of_a_wrapped_environment_stays():
    env = gymnasium.make("CartPole-v1", max_episode_steps=9)
    assert trainer(env).evaluate(num_episodes=2).highest <= 9


def test_two_functions_of_one_name_do_not_mix():
    class Shorter(Line):
        def step(self, action):
            return (*super().step(action)[:2], self.steps == 2, False, {})

    Shorter.__qualname__ = Line.__qualname__
    first, second = trainer(Line), trainer(Shorter)
    assert first.evaluate(num_episodes=1).highest <= 5
    assert second.evaluate(num_episodes=1).highest <= 2
    lengths = [trained.policy.predict(np.zeros(2, np.float32)) for trained in (first, second)]
    assert len(lengths) == 2
    list(first)
    assert first.history[-1]["episode_steps/mean"] == 5 and "watch/stopped" not in first.history[-1]


def test_what_is_no_environment_is_refused():
    with pytest.raises(ConfigError, match="env is of type int; expected an id of Gymnasium's, an environment, or"):
        trainer(3)


def test_an_environment_that_cannot_be_copied_is_refused():
    env = Line()
    env.file = open(__file__)  # noqa: SIM115
    with pytest.raises(EnvError, match=r"Line cannot be copied .*give a function that makes one"):
        trainer(env)
    env.file.close()


def test_threads_of_the_caller_come_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    trained = trainer()
    next(trained)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_it_shows_its_curve():
    trained = trainer(env_steps=256).train()
    shown = trained._repr_html_()
    assert "<polyline" in shown and "2/2 iterations" in shown and "http" not in shown


def test_saved_policies_are_read_again(tmp_path):
    trained = trainer(env_steps=128).train()
    trained.save(tmp_path / "policy")
    policy = load_control_policy(tmp_path / "policy")
    observation = np.array([0.1, 0.2, -0.1, 0.0], np.float32)
    assert policy.predict(observation) == trained.policy.predict(observation)
