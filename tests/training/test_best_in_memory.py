"""A training that leaves no files goes back to its best weights all the same."""

import torch

from rlhfkit.config.ppo import FixedKLConfig, PpoConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.config.watch import WatchConfig
from rlhfkit.machine.progress import Progress
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.best_in_memory import BestInMemory
from rlhfkit.training.checkpoint import Checkpoints, trainable_tensors
from rlhfkit.training.ppo import train_ppo
from tests.training import tiny

FAST = OptimConfig(learning_rate=3e-2)


def trained(directory, checkpoints):
    """Weights and last word of a training that its limit of the KL stops."""
    config = PpoConfig(
        iterations=12,
        rollout_episodes=16,
        minibatch_episodes=8,
        epochs=2,
        optim=FAST,
        value=ValueConfig(optim=FAST),
        kl=FixedKLConfig(coef=0.0),
        max_ref_kl=0.5,
        watch=WatchConfig(best_every_iterations=1),
        checkpoint_minutes=1e-9,
    )
    trainer = tiny.trainer(config)
    with RunLog(RunDir(directory)) as log, Progress(quiet=True).stage("ppo", total=12, unit="iteration") as stage:
        said = train_ppo(trainer, log=log, checkpoints=checkpoints, progress=stage)
    return {name: tensor.clone() for name, tensor in trainable_tensors(trainer.policy).items()}, said


def test_the_best_weights_are_put_back_as_from_the_disk(tmp_path):
    on_disk, said = trained(tmp_path / "one", Checkpoints(tmp_path / "checkpoints", warn=print))
    in_memory, said_too = trained(tmp_path / "other", BestInMemory())
    assert said == said_too and "the best before that" in said
    assert all(torch.equal(on_disk[name], in_memory[name]) for name in on_disk)


def test_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoints = BestInMemory()
    checkpoints.write(checkpoints.take(1, {"a": torch.ones(1)}, {"log": {}}), best=1.0)
    assert checkpoints.load_best().tensors["a"].tolist() == [1.0]
    assert checkpoints.load_newest() is None
    assert list(tmp_path.iterdir()) == []
