"""With no reward but the KL penalty the policy comes back to its reference, whatever makes the advantages."""

import json

import pytest

from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig, PpoConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.machine.progress import Progress
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ppo import kl_controller, train_ppo
from tests.training import tiny

FAST = OptimConfig(learning_rate=1e-2, adam_eps=1e-8)
ESTIMATORS = {
    "gae": {},
    "gae with a shared trunk": {"value": ValueConfig(network="shared", coef=0.1)},
    "rloo": {"estimator": "rloo", "group_size": 4},
    "grpo": {"estimator": "grpo", "group_size": 4},
}
COEFFICIENTS = {
    "fixed": FixedKLConfig(coef=0.1),
    "adaptive": AdaptiveKLConfig(type="adaptive", coef=0.1, target=0.1, horizon_episodes=1000),
}
CASES = [
    pytest.param(estimator, coefficient, marks=[] if (estimator, coefficient) in QUICK else pytest.mark.thorough)
    for QUICK in [(("gae", "fixed"), ("grpo", "adaptive"))]
    for estimator in ESTIMATORS
    for coefficient in COEFFICIENTS
]


@pytest.mark.thorough
@pytest.mark.parametrize(("estimator", "coefficient"), CASES)
def test_the_leash_alone_brings_the_policy_back_to_its_reference(tmp_path, estimator, coefficient):
    config = PpoConfig(
        iterations=20,
        rollout_episodes=64,
        minibatch_episodes=64,
        epochs=2,
        optim=FAST,
        kl=COEFFICIENTS[coefficient],
        checkpoint_minutes=60,
        min_eos_rate=0.0,
        **({"value": ValueConfig(optim=FAST)} | ESTIMATORS[estimator]),
    )
    trainer = tiny.trainer(config, reward=tiny.Scripted(lambda text: 1.0), reference_seed=1)
    trainer.kl = kl_controller(config.kl)
    run = RunDir(tmp_path)
    with RunLog(run) as log, Progress(quiet=True).stage("ppo", total=1, unit="iteration") as stage:
        train_ppo(trainer, log=log, checkpoints=Checkpoints(run.checkpoints, warn=pytest.fail), progress=stage)
    kls = [json.loads(line)["ref_kl/sequence"] for line in run.metrics.read_text().splitlines()]
    assert kls[0] > 1
    assert sum(kls[-3:]) / 3 < 0.5 * kls[0]
    assert max(kls) < 1.5 * kls[0]
