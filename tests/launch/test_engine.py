"""PPO whose responses and scores come from workers: the same bits as at home, whoever works and whoever is lost."""

from contextlib import contextmanager
from dataclasses import replace
from itertools import count

import pytest
import torch

from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import FixedKLConfig, PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import ConfigError, GenerationError, RewardError
from rlhfkit.launch.engine import ClusterEngine
from rlhfkit.launch.messages import Blueprint, checksum
from rlhfkit.launch.pool import Pool
from rlhfkit.launch.sampler import Sampler
from rlhfkit.launch.scoring import ClusterReward, Scored
from rlhfkit.training.checkpoint import trainable_tensors
from rlhfkit.training.ppo import run_iteration
from tests.conftest import Directory
from tests.launch.in_process import Here
from tests.tiny import Ascii, builder, ppo_trainer

FAST = OptimConfig(learning_rate=1e-2)
CUT = {"max_staleness": 1, "partial_tokens": 2}
PPO = PpoConfig(
    iterations=3,
    rollout_episodes=8,
    minibatch_episodes=4,
    epochs=1,
    optim=FAST,
    value=ValueConfig(optim=FAST),
    kl=FixedKLConfig(coef=0.1),
    min_eos_rate=0.0,
)


class Store:
    """Where values are put and pulled; counts what is pulled."""

    def __init__(self):
        self.values, self.pulled, self._names = {}, [], count()

    def put(self, value):
        name = f"object {next(self._names)}"
        self.values[name] = value
        return name

    def get(self, name):
        self.pulled.append(name)
        return self.values[name]


class Scoring:
    def __init__(self, reward):
        self.reward = reward

    def work(self, chunk):
        return Scored(self.reward.score(chunk.episodes).tolist(), 0.1, "here", 1)


def made(directory_of, tmp_path, *, lora=None, chunk_rows=3, **settings):
    rollout = RolloutConfig(max_response_tokens=6, chunk_rows=chunk_rows, **settings)
    return builder(directory_of("llama"), tmp_path, ppo=PPO, rollout=rollout, lora=lora)


@contextmanager
def on_workers(build, *, samplers=2, kind=Sampler, transport=None, reward=None):
    """A trainer whose samplers are objects of this process, and the store between."""
    store = Store()
    transport = transport or Here(
        **{f"sampler-{place}": kind(threads=torch.get_num_threads(), get=store.get) for place in range(samplers)}
    )
    scorers = Here(a=Scoring(reward or Ascii()))
    pools = [Pool(each, slow_factor=3.0) for each in (transport, scorers)]
    blueprint = Blueprint(build.recipe, str(build.run.path), build.starting_point(), build.dtype_choice, ".")
    trainer = ppo_trainer(build, reward=ClusterReward(pools[1], lambda: "plan"))
    trainer.rollout.engine = ClusterEngine(pools[0], store.put, blueprint, gathered=None, importance_cap=None)
    trainer.store, trainer.transport, trainer.pool = store, transport, pools[0]
    for pool in pools:
        pool.start()
    try:
        yield trainer
    finally:
        for pool in pools:
            pool.stop()


def weights_after(trainer, iterations=3):
    for _ in range(iterations):
        run_iteration(trainer)
    return {name: tensor.clone() for name, tensor in trainable_tensors(trainer.policy).items()}


def assert_same(weights, others):
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.thorough
@pytest.mark.parametrize("settings", [{}, {"max_staleness": 1}, CUT])
@pytest.mark.parametrize("samplers", [1, 3])
def test_any_number_of_samplers_gives_the_bits_of_a_plain_run(directory_of: Directory, tmp_path, samplers, settings):
    plain = weights_after(ppo_trainer(made(directory_of, tmp_path / "plain", **settings)))
    with on_workers(made(directory_of, tmp_path, **settings), samplers=samplers) as trainer:
        assert_same(weights_after(trainer), plain)


@pytest.mark.parametrize("settings", [{}, pytest.param(CUT, marks=pytest.mark.thorough)])
def test_the_loss_of_a_sampler_changes_no_bit(directory_of: Directory, tmp_path, settings):
    plain = weights_after(ppo_trainer(made(directory_of, tmp_path / "plain", **settings)))
    with on_workers(made(directory_of, tmp_path, **settings), samplers=2) as trainer:
        calls = count()
        trainer.transport.on_work = lambda worker: next(calls) == 4 and trainer.transport.dead.add(worker)
        assert_same(weights_after(trainer), plain)
        assert len(trainer.transport.dead) == 1


def test_of_a_model_with_adapters_these_alone_are_sent(directory_of: Directory, tmp_path):
    build = made(directory_of, tmp_path, lora=LoraConfig(rank=2))
    plain = weights_after(ppo_trainer(made(directory_of, tmp_path / "plain", lora=LoraConfig(rank=2))))
    with on_workers(build, samplers=1) as trainer:
        assert_same(weights_after(trainer), plain)
        sent = [value for value in trainer.store.values.values() if isinstance(value, dict)]
    assert sent and all(".lora_" in name for tensors in sent for name in tensors)


def test_a_sampler_pulls_each_version_once_and_the_model_once(directory_of: Directory, tmp_path):
    with on_workers(made(directory_of, tmp_path), samplers=1) as trainer:
        weights_after(trainer)
        assert len(trainer.store.pulled) == len(set(trainer.store.pulled)) == 1 + 3


class Stale(Sampler):
    """Keeps the weights that it got first, and says that they are the new ones."""

    def _load(self, weights):
        if self._model is None:
            super()._load(weights)
        self._weights = weights.id


class Broken(Sampler):
    """Has the right weights, and computes something else, as on a broken device."""

    def _work(self, chunk):
        sampled = super()._work(chunk)
        return replace(sampled, probe=tuple(number - 1.0 for number in sampled.probe))


@pytest.mark.thorough
@pytest.mark.parametrize(("kind", "words"), [(Stale, "other weights"), (Broken, "other logprobs")])
def test_a_sampler_that_lies_is_found_out_before_anything_is_learnt_from_it(
    directory_of: Directory, tmp_path, kind, words
):
    plain = weights_after(ppo_trainer(made(directory_of, tmp_path / "plain")))
    store = Store()
    honest, liar = Sampler(threads=1, get=store.get), kind(threads=1, get=store.get)
    with on_workers(made(directory_of, tmp_path), transport=Here(honest=honest, liar=liar)) as trainer:
        honest._get = liar._get = trainer.store.get
        assert_same(weights_after(trainer), plain)
        found = [event for event in trainer.pool.events if event["who"] == "liar" and "why" in event]
    assert found and words in found[0]["why"] and "liar" in trainer.transport.restarted
    assert not [event for event in trainer.pool.events if event["who"] == "honest" and "why" in event]


def test_the_trainer_hears_why_no_sampler_can_work(directory_of: Directory, tmp_path):
    class Blind(Sampler):
        def _build(self, blueprint):
            raise ConfigError("there is no model here")

    with (
        on_workers(made(directory_of, tmp_path), samplers=1, kind=Blind) as trainer,
        pytest.raises(ConfigError, match=r"^on .*: there is no model here$"),
    ):
        run_iteration(trainer)


def test_a_reward_that_fails_elsewhere_ends_the_iteration_with_its_own_words(directory_of: Directory, tmp_path):
    class Failing:
        def score(self, episodes):
            raise RewardError("the judge is out")

    with (
        on_workers(made(directory_of, tmp_path), reward=Failing()) as trainer,
        pytest.raises(RewardError, match="the judge is out"),
    ):
        run_iteration(trainer)


def test_liars_alone_end_the_run_with_an_error_that_names_them(directory_of: Directory, tmp_path, monkeypatch):
    monkeypatch.setattr("rlhfkit.launch.pool.RETRY_SECONDS", 0.01)
    with (
        on_workers(made(directory_of, tmp_path), samplers=1, kind=Broken) as trainer,
        pytest.raises(GenerationError, match=r"no worker is left.*sampler-0"),
    ):
        trainer.pool.workers.clear()
        run_iteration(trainer)


def test_other_weights_have_another_checksum():
    weights = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2).bfloat16()}
    changed = {"a": weights["a"].clone(), "b": weights["b"]}
    changed["a"][1, 2] += 1e-6
    assert checksum(weights) == checksum({name: tensor.clone() for name, tensor in weights.items()})
    assert checksum(changed) != checksum(weights)
    assert checksum({"a": weights["b"], "b": weights["a"]}) != checksum(weights)
