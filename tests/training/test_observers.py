"""Who looks at a training changes no bit of it, and what they saw survives a kill as the metrics do."""

import json
import random

import numpy as np
import pytest
import torch

from rlhfkit.config.ppo import FixedKLConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.machine.progress import Progress
from rlhfkit.rollout.generation import generate
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ppo import train_ppo
from tests.distributed.together import together
from tests.training import tiny

FAST = OptimConfig(learning_rate=1e-2)


class Curious:
    """Samples, and draws from every global generator there is."""

    def __init__(self, log=None):
        self.log, self.seen = log, []

    def before_update(self, trainer, experience):
        (response,) = generate(trainer.policy.language_model, [[2, 3]], RolloutConfig(max_response_tokens=4), seeds=[1])
        torch.rand(7), np.random.rand(7), random.random()
        self.seen.append((trainer.iteration, "before", weight_of(trainer), experience.scores.tolist()))
        if self.log is not None:
            self.log.write_observation("ppo", trainer.iteration, "curious", {"ids": response.ids})
        return {"curious/tokens": float(len(response.ids))}

    def after_update(self, trainer, experience):
        torch.rand(1)
        self.seen.append((trainer.iteration, "after", weight_of(trainer), experience.scores.tolist()))
        return {}


class Draws(tiny.Scripted):
    """A reward that draws from the global generators, as a user's may."""

    def score(self, episodes):
        return super().score(episodes) + torch.rand(len(episodes)) + np.random.rand() + random.random()


def weight_of(trainer):
    return float(next(iter(trainer.policy.parameters())).detach().sum())


def run(directory, *, curious, max_staleness=0, progress=None, iterations=3):
    """The weights, the lines of each file, and what was seen."""
    config = PpoConfig(
        iterations=iterations,
        rollout_episodes=8,
        minibatch_episodes=4,
        epochs=1,
        optim=FAST,
        value=ValueConfig(optim=FAST),
        kl=FixedKLConfig(coef=0.0),
        checkpoint_minutes=1e-9,
        min_eos_rate=0.0,
    )
    rollout = RolloutConfig(max_response_tokens=6, max_staleness=max_staleness)
    trainer = tiny.trainer(config, reward=Draws(lambda text: float(text.count("a"))), rollout=rollout)
    place = RunDir(directory)
    with RunLog(place, writes=ranks().is_first, tensorboard=False) as log:
        observer = Curious(log)
        trainer.observers = [observer] if curious else []
        checkpoints = Checkpoints(place.checkpoints / "ppo", warn=pytest.fail)
        trainer.resume(checkpoints, log) or log.forget("ppo")
        with (progress or Progress(quiet=True)).stage("ppo", total=1, unit="iteration") as stage:
            train_ppo(trainer, log=log, checkpoints=checkpoints, progress=stage)
        ranks().wait()
    weights = {name: parameter.detach().clone() for name, parameter in trainer.policy.named_parameters()}
    return weights, lines(place.metrics), lines(place.observations), observer.seen


def lines(path):
    rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def assert_same(weights, others):
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def begin_alike():
    """The global generators, which `Draws` uses."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    begin_alike()
    return run(tmp_path_factory.mktemp("watched"), curious=True)


@pytest.mark.parametrize("max_staleness", [0, pytest.param(1, marks=pytest.mark.thorough)])
def test_an_observer_changes_no_bit_of_training(watched, tmp_path, max_staleness):
    if max_staleness:
        begin_alike()
        watched = run(tmp_path / "watched", curious=True, max_staleness=1)
    begin_alike()
    weights, metrics, observations, _ = run(tmp_path / "alone", curious=False, max_staleness=max_staleness)
    same_weights, of_watched, seen, _ = watched
    assert_same(weights, same_weights)
    assert [{k: v for k, v in row.items() if k != "curious/tokens"} for row in of_watched] == metrics
    assert not observations and [row["iteration"] for row in seen] == [0, 1, 2]
    assert all(row["curious/tokens"] == len(one["ids"]) for row, one in zip(of_watched, seen, strict=True))


def test_it_looks_at_the_weights_that_acted_and_at_those_that_have_learnt(watched):
    *_, seen = watched
    assert [(iteration, when) for iteration, when, *_ in seen] == [
        (i, w) for i in range(3) for w in ("before", "after")
    ]
    weights = [weight for *_, weight, _ in seen]
    assert weights[0] != weights[1] == weights[2] != weights[3] == weights[4]
    assert seen[0][3] == seen[1][3] != seen[2][3]


def test_what_was_seen_after_the_checkpoint_is_seen_again_when_a_killed_run_goes_on(watched, tmp_path):
    begin_alike()
    with pytest.raises(KeyboardInterrupt):  # before the checkpoint of the second iteration
        run(tmp_path, curious=True, progress=tiny.Interrupting("ppo", 2))
    assert [row["iteration"] for row in lines(tmp_path / "observations.jsonl")] == [0, 1]
    weights, metrics, observations, seen = run(tmp_path, curious=True)
    assert_same(weights, watched[0])
    assert (metrics, observations) == watched[1:3]
    assert [iteration for iteration, *_ in seen] == [1, 1, 2, 2]


def test_of_several_ranks_all_look_and_the_first_writes(watched, tmp_path):
    def work():
        begin_alike()
        return run(tmp_path, curious=True)[1:3]

    _, metrics, observations, _ = watched
    found = together(2, work, tmp_path)
    assert [row["curious/tokens"] for row in found[0][0]] == [row["curious/tokens"] for row in metrics]
    assert found[0][1] == found[1][1] == observations
