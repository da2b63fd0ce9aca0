"""Weights that are parted among the ranks: the same gradients, texts and weights as of one process that holds all."""

import json
from dataclasses import replace

import pytest
import torch

from rlhfkit.config.model import LoraConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.training import OptimConfig, RewardModelConfig, SftConfig
from rlhfkit.distributed.ranks import become, ranks
from rlhfkit.distributed.sharding import own_rows, whole
from rlhfkit.errors import TrainingError
from rlhfkit.machine.progress import Progress
from rlhfkit.models.reward_model import Normalization
from rlhfkit.pipeline.parted import part_frozen, part_trained, whole_of
from rlhfkit.records import Prompt
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints, subset, trainable_tensors
from rlhfkit.training.ppo import run_iteration, train_ppo
from rlhfkit.training.ptx import Ptx
from rlhfkit.training.reward_model import measure, train_reward_model
from rlhfkit.training.sft import train_sft
from tests.distributed.test_same_results import PAIRS, TEXTS
from tests.distributed.together import together
from tests.tiny import FAMILIES, Directory, builder, ppo_trainer, save_family
from tests.training import tiny

SETTINGS = {
    "iterations": 3,
    "rollout_episodes": 6,
    "minibatch_episodes": 3,
    "epochs": 2,
    "min_eos_rate": 0.0,
    "checkpoint_minutes": 60,
    "optim": OptimConfig(learning_rate=1e-3),
}


def in_parts(work, *, shards=True):
    """`work` where weights are parted, if there are several ranks."""

    def parted():
        with become(replace(ranks(), shards=shards and ranks().size > 1)):
            return work()

    return parted


def trainer_of(model, run, *, lora=None, num_trained_layers=None, dtype="float32", recompute="auto", **settings):
    config = PpoConfig(**{**SETTINGS, **settings})
    rollout = RolloutConfig(max_response_tokens=10)
    made = builder(
        model,
        run,
        lora=lora,
        num_trained_layers=num_trained_layers,
        ppo=config,
        rollout=rollout,
        dtype=dtype,
        gradient_checkpointing=recompute,
    )
    return ppo_trainer(made)


def weights_of(trainer):
    """What learns, whole and as it computes."""
    return {name: whole(tensor).clone() for name, tensor in trainable_tensors(trainer.policy).items()}


def iterated(model, run, num=2, **settings):
    """(metrics, what was sampled first, weights) after some iterations."""
    texts = settings.pop("texts", ())
    trainer = trainer_of(model, run, **settings)
    if texts:
        trainer.ptx = Ptx(trainer.policy, texts, 0.5, 3, tokens_per_pass=16, seed=0)
    metrics, samples = [], []
    for _ in range(num):
        experience, found = run_iteration(trainer)
        samples.append(experience.inputs.ids)
        metrics.append({name: value for name, value in found.items() if not name.startswith("time/")})
    return metrics, samples, weights_of(trainer)


def assert_alike(found, expected, *, relative=1e-3, absolute=1e-4):
    (metrics, samples, weights), (their_metrics, their_samples, their_weights) = found, expected
    assert torch.equal(samples[0], their_samples[0])
    for line, its in zip(metrics, their_metrics, strict=True):
        assert line == pytest.approx(its, rel=relative, abs=absolute)
    assert weights.keys() == their_weights.keys()
    for name, tensor in their_weights.items():
        torch.testing.assert_close(weights[name].float(), tensor.float(), rtol=0, atol=absolute, msg=name)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_learns_the_same(family, directory_of: Directory, tmp_path):
    model = directory_of(family)
    expected = iterated(model, tmp_path / "one", value=ValueConfig(network="shared"))
    work = in_parts(lambda: iterated(model, tmp_path / "two", value=ValueConfig(network="shared")))
    for found in together(2, work, tmp_path):
        assert_alike(found, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("num", [2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"value": ValueConfig(network="separate")},
        {"value": ValueConfig(network="separate", optim=OptimConfig(learning_rate=3e-3), warmup_iterations=1)},
        {"estimator": "grpo", "group_size": 3},
        {"texts": TEXTS, "value": ValueConfig(network="shared")},
        {"lora": LoraConfig(rank=4), "value": ValueConfig(network="shared")},
        {"lora": LoraConfig(rank=4), "value": ValueConfig(network="separate")},
        {"num_trained_layers": 1, "value": ValueConfig(network="shared")},
        {"microbatch_tokens": 32, "value": ValueConfig(network="shared"), "entropy_coef": 0.01},
        {"recompute": True, "value": ValueConfig(network="separate")},
        {"recompute": True, "lora": LoraConfig(rank=4), "value": ValueConfig(network="shared")},
    ],
    ids=[
        "critic",
        "critic that warms up",
        "grpo",
        "texts beside",
        "lora",
        "lora and critic",
        "last layer",
        "microbatches",
        "layers computed twice",
        "twice with lora",
    ],
)
def test_every_way_to_learn_learns_the_same(settings, num, directory_of: Directory, tmp_path):
    model = directory_of("qwen3")
    expected = iterated(model, tmp_path / "one", **settings)
    for found in together(num, in_parts(lambda: iterated(model, tmp_path / "some", **settings)), tmp_path):
        assert_alike(found, expected)


@pytest.mark.thorough
@pytest.mark.parametrize("shards", [True, False], ids=["parted", "whole"])
@pytest.mark.parametrize(
    "settings", [{}, {"lora": LoraConfig(rank=4)}, {"dtype": "bfloat16"}], ids=["all weights", "lora", "bfloat16"]
)
def test_the_average_of_the_weights_is_that_of_one_process(settings, shards, directory_of: Directory, tmp_path):
    model = directory_of("llama")

    def averaged(run):
        settings_of_ema = {"ema": 0.6, "value": ValueConfig(network="shared"), **settings}
        trainer = trainer_of(model, run, **settings_of_ema)
        run_iteration(trainer)
        averages = {name: whole(tensor).clone() for name, tensor in trainer.ema.state().items()}
        saved = Checkpoints(run / "checkpoints", warn=pytest.fail)
        with saved:
            saved.save(1, trainer.tensors(), {})
        with trainer.ema.in_place(trainer.policy):
            in_place = weights_of(trainer)
        other = trainer_of(model, run, **settings_of_ema)
        other.ema.load_state(subset("ema", Checkpoints(run / "checkpoints", warn=pytest.fail).load_newest().tensors))
        again = {name: whole(tensor).clone() for name, tensor in other.ema.state().items()}
        return averages, in_place, again, weights_of(trainer)

    expected, _, _, own = averaged(tmp_path / "one")
    absolute = 1e-4 if "dtype" not in settings else 0.05
    for averages, in_place, again, weights in together(
        2, in_parts(lambda: averaged(tmp_path / "two"), shards=shards), tmp_path
    ):
        assert averages.keys() == expected.keys()
        for name, average in expected.items():
            torch.testing.assert_close(averages[name], average, rtol=0, atol=absolute, msg=name)
            assert torch.equal(in_place[name], averages[name].to(in_place[name].dtype)), name
            assert torch.equal(again[name], averages[name]), name
        assert any(not torch.equal(in_place[name], weights[name]) for name in averages)
        for name, weight in own.items():
            torch.testing.assert_close(weights[name].float(), weight.float(), rtol=0, atol=absolute, msg=name)


@pytest.mark.thorough
@pytest.mark.parametrize("is_tied", [True, False], ids=["tied", "untied"])
def test_an_output_layer_may_be_the_embeddings(is_tied, tmp_path):
    model = save_family("llama", tmp_path / "model", tie_word_embeddings=is_tied)
    expected = iterated(model, tmp_path / "one", value=ValueConfig(network="shared"))
    assert ("language_model.causal_lm.lm_head.weight" in expected[2]) != is_tied
    work = in_parts(lambda: iterated(model, tmp_path / "two", value=ValueConfig(network="shared")))
    for found in together(2, work, tmp_path):
        assert_alike(found, expected)


@pytest.mark.thorough
def test_bfloat16_has_the_same_masters_and_learns_alike(directory_of: Directory, tmp_path):
    model = directory_of("llama")

    def first_masters(run):
        trainer = trainer_of(model, run, dtype="bfloat16", value=ValueConfig(network="shared"))
        optimizer = trainer.optimizers["policy"]
        assert trainer.policy.language_model.dtype == torch.bfloat16
        if not ranks().shards:
            return {name: master.detach().clone() for name, master in optimizer.masters.items()}
        return {name: whole(parameter).clone() for name, parameter in optimizer.parameters.items()}

    expected = first_masters(tmp_path / "one")
    for found in together(2, in_parts(lambda: first_masters(tmp_path / "two")), tmp_path):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], master) for name, master in expected.items())

    settings = {"dtype": "bfloat16", "value": ValueConfig(network="shared")}
    expected = iterated(model, tmp_path / "one", num=1, **settings)
    for found in together(2, in_parts(lambda: iterated(model, tmp_path / "two", num=1, **settings)), tmp_path):
        assert_alike(found, expected, relative=0.1, absolute=0.05)


def test_a_rank_has_its_part_of_weights_gradients_and_averages(directory_of: Directory, tmp_path):
    def held():
        trainer = trainer_of(directory_of("llama"), tmp_path / "run", value=ValueConfig(network="shared"))
        run_iteration(trainer)
        parameters = trainable_tensors(trainer.policy)
        state = trainer.optimizers["policy"].state()
        return (
            sum(own_rows(tensor).numel() for tensor in parameters.values()),
            sum(own_rows(tensor).numel() for tensor in state.values()),
        )

    weights, averages = held()
    found = together(2, in_parts(held), tmp_path)
    for own_weights, own_averages in found:
        assert own_weights < 0.52 * weights
        assert own_averages < 0.52 * averages
    assert sum(own_weights for own_weights, _ in found) >= weights


# ── checkpoints ──────────────────────────────────────────────────────────────────────────────────────────────────────


def gone_on(model, run, *, until, dtype="float32"):
    """Metrics and weights of a run that is gone on with in the directory `run`, if it is there."""
    trainer = trainer_of(model, run / "made", dtype=dtype, value=ValueConfig(network="shared"))
    trainer.config = trainer.config.model_copy(update={"iterations": until})
    directory = RunDir(run)
    checkpoints = Checkpoints(directory.checkpoints / "ppo", warn=pytest.fail)
    with (
        RunLog(directory, writes=ranks().is_first) as log,
        Progress(quiet=True).stage("ppo", total=1, unit="iteration") as stage,
    ):
        trainer.resume(checkpoints, log) or log.forget("ppo")
        train_ppo(trainer, log=log, checkpoints=checkpoints, progress=stage)
        ranks().wait()
    lines = [json.loads(line) for line in directory.metrics.read_text().splitlines()]
    numbers = [{k: v for k, v in line.items() if not k.startswith("time/") and k != "stage"} for line in lines]
    return numbers, weights_of(trainer)


def ranked(num, directory, work, *, shards=True):
    return together(num, in_parts(work, shards=shards), directory)[0]


@pytest.mark.thorough
def test_the_same_number_of_ranks_goes_on_bit_for_bit(directory_of: Directory, tmp_path):
    model = directory_of("llama")
    numbers, weights = ranked(2, tmp_path, lambda: gone_on(model, tmp_path / "whole", until=3))
    ranked(2, tmp_path, lambda: gone_on(model, tmp_path / "parts", until=2))
    found, theirs = ranked(2, tmp_path, lambda: gone_on(model, tmp_path / "parts", until=3))
    assert found == numbers
    assert all(torch.equal(theirs[name], tensor) for name, tensor in weights.items())
    newest = max((tmp_path / "parts" / "checkpoints" / "ppo").glob("0*"))
    assert {path.name for path in newest.iterdir()} == {
        "SHA256SUMS",
        "state.json",
        "tensors.safetensors",
        "tensors-1.safetensors",
    }


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((2, True), (1, True)),
        ((2, True), (3, True)),
        ((1, True), (2, True)),
        ((2, False), (3, True)),
        ((3, True), (2, False)),
    ],
    ids=["parted on 2, then 1", "then 3", "1, then parted on 2", "whole on 2, then parted", "parted on 3, then whole"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_number_of_ranks_goes_on_from_the_same_state(before, after, dtype, directory_of: Directory, tmp_path):
    model = directory_of("llama")
    number, shards = before
    numbers, _ = ranked(number, tmp_path, lambda: gone_on(model, tmp_path / "run", until=1, dtype=dtype), shards=shards)
    number, shards = after
    found, _ = ranked(number, tmp_path, lambda: gone_on(model, tmp_path / "run", until=2, dtype=dtype), shards=shards)
    assert found[0] == numbers[0]
    # The ratio of the first update tells whether the weights that were put back are those that go on.
    assert found[1]["ppo/ratio_first_epoch_max_deviation"] < (1e-4 if dtype == "float32" else 0.2)
    assert found[1]["ref_kl/sequence"] != 0.0


def test_a_damaged_part_is_noticed(directory_of: Directory, tmp_path):
    model = directory_of("llama")
    ranked(2, tmp_path, lambda: gone_on(model, tmp_path / "run", until=1))
    newest = max((tmp_path / "run" / "checkpoints" / "ppo").glob("0*"))
    part = newest / "tensors-1.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    said = []
    checkpoints = Checkpoints(newest.parent, warn=said.append)
    with pytest.raises(Exception, match="damaged"):
        checkpoints.load_newest()
    assert "checksums" in said[0]


# ── supervised stages and scoring ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["sft", "reward model"])
def test_supervised_stages_learn_the_same_and_are_saved_whole(kind, tmp_path):
    fresh = tiny.language_model if kind == "sft" else tiny.reward_model
    optim = OptimConfig(learning_rate=1e-3)
    usual = {"validation_share": 0.2, "epochs": 2, "optim": optim}
    config = (
        SftConfig(minibatch_sequences=3, max_tokens=12, **usual)
        if kind == "sft"
        else RewardModelConfig(minibatch_pairs=3, **usual)
    )

    def trained():
        model = fresh()
        part_trained(model, what="language model" if kind == "sft" else "reward model", seed=0)
        run = RunDir(tmp_path / f"of-{ranks().size}")
        train, rows = (train_sft, TEXTS) if kind == "sft" else (train_reward_model, PAIRS)
        with RunLog(run, writes=ranks().is_first) as log:
            validation = train(
                model,
                rows,
                config,
                stage="sft" if kind == "sft" else "reward_model",
                seed=0,
                log=log,
                checkpoints=Checkpoints(run.checkpoints / "stage", warn=pytest.fail),
                progress=Progress(quiet=True),
            )
        accuracy = measure(model, PAIRS, max_tokens=64)["accuracy"] if kind != "sft" else None
        made = whole_of(model, fresh)
        ranks().wait()
        return validation, accuracy, None if made is None else {k: v.detach() for k, v in made.named_parameters()}

    validation, accuracy, weights = trained()
    first, second = together(2, in_parts(trained), tmp_path)
    assert second[2] is None  # the first rank saves
    for name, tensor in weights.items():
        torch.testing.assert_close(first[2][name], tensor, rtol=0, atol=2e-5)
    for found in (first, second):
        assert found[0] == pytest.approx(validation, rel=1e-4)
        assert found[1] == accuracy


def test_a_parted_reward_model_scores_the_same(tmp_path):
    episodes = [ScoredText(Prompt("abc"), "abc", "abcdefgh"[:length], True) for length in (1, 5, 3)]

    def scores():
        model = tiny.reward_model()
        part_frozen(model)
        return RewardModelReward(model, Normalization()).score(episodes)

    expected = scores()
    for found in together(2, in_parts(scores), tmp_path):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_gradient_that_is_not_finite_stops_all_before_the_weights_change(directory_of: Directory, tmp_path):
    def broken():
        trainer = trainer_of(directory_of("llama"), tmp_path / "run", value=ValueConfig(network="shared"))
        before = weights_of(trainer)
        optimizer = trainer.optimizers["policy"]
        experience, _ = trainer.rollout.collect(0, kl_coef=0.1), None
        output = trainer.policy.evaluate(experience.inputs[torch.tensor([ranks().rank])])
        output.logprobs.sum().backward()
        if ranks().rank == 1:
            next(p for p in optimizer.parameters.values() if p.grad is not None).grad.mul_(float("nan"))
        with pytest.raises(TrainingError, match="gradient of the policy is nan"):
            optimizer.step()
        return all(torch.equal(tensor, before[name]) for name, tensor in weights_of(trainer).items())

    assert together(2, in_parts(broken), tmp_path) == [True, True]
