"""The critic of another run: its values are those that it ended with, and what does not fit is refused at the start."""

import shutil

import pytest
import torch
from transformers import AutoConfig

from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.model import LoraConfig, PretrainedModelConfig
from rlhfkit.config.ppo import PpoConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import CheckpointError, ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.models.sequence_classification import is_known_to_transformers
from rlhfkit.padding import Sequences
from rlhfkit.pipeline.build import Given
from rlhfkit.pipeline.opening import open_run
from rlhfkit.pipeline.ppo import prepared_ppo, run_prepared
from tests import tiny
from tests.pipeline.test_given import PROMPTS, Asked, recipe

FAST = OptimConfig(learning_rate=1e-2, schedule="constant")
SEQUENCES = Sequences.join([[65, 66], [97]], [[98, 99, 100], [101, 102]], pad=tiny.PAD, device=tiny.CPU)


def opened(directory, model, *, init="auto", network="separate", lora=None, layers=None, **settings):
    wanted = recipe()
    ppo = {**dict(wanted.ppo), "value": ValueConfig(init=str(init), network=network, optim=FAST), "optim": FAST}
    source = PretrainedModelConfig(path=str(model), dtype="float32", lora=lora, num_trained_layers=layers)
    wanted = wanted.model_copy(update={"model": source, "ppo": PpoConfig(**{**ppo, **settings})})
    return open_run(
        LoadedRecipe(wanted, 'name = "given"\n', ()),
        directory,
        progress=Progress(quiet=True),
        given=Given(data={"prompts": PROMPTS}, reward=Asked()),
    )


@torch.no_grad()
def values_of(policy):
    return policy.evaluate(SEQUENCES).values


def trained(directory, model, **settings):
    """The values of the critic that a run ends with."""
    with opened(directory, model, **settings) as ctx:
        prepared = prepared_ppo(ctx)
        before = values_of(prepared.policy)
        run_prepared(ctx, prepared)
        after = values_of(prepared.policy)
        assert (after - before).abs().max() > 0.1
        return after


def first_values(directory, model, **settings):
    with opened(directory, model, **settings) as ctx:
        return values_of(prepared_ppo(ctx).policy)


@pytest.fixture(scope="module")
def finished(directory_of, tmp_path_factory):
    """(a run, the values of its critic)."""
    place = tmp_path_factory.mktemp("finished") / "first"
    return place, trained(place, directory_of("llama"))


def test_the_critic_begins_as_that_of_the_other_run_ended(finished, directory_of, tmp_path):
    place, values = finished
    torch.testing.assert_close(first_values(tmp_path / "b", directory_of("llama"), init=place), values)
    checkpoint = place / "checkpoints" / "ppo" / "00000002"
    torch.testing.assert_close(first_values(tmp_path / "c", directory_of("llama"), init=checkpoint), values)


@pytest.mark.thorough
def test_so_does_one_whose_family_has_no_sequence_classification_in_transformers(directory_of, tmp_path):
    model = directory_of("granite")
    assert not is_known_to_transformers(AutoConfig.from_pretrained(model))
    values = trained(tmp_path / "a", model)
    torch.testing.assert_close(first_values(tmp_path / "b", model, init=tmp_path / "a"), values)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"lora": LoraConfig(rank=2)}, {}),
        ({"lora": LoraConfig(rank=2)}, {"lora": LoraConfig(rank=3)}),
        ({}, {"lora": LoraConfig(rank=2)}),
        ({"layers": 1}, {}),
        ({}, {"layers": 1}),
    ],
    ids=["adapters, then all", "adapters, then others", "all, then adapters", "one layer, then all", "all, then one"],
)
def test_whatever_part_of_it_has_learnt_or_learns(theirs, ours, directory_of, tmp_path):
    values = trained(tmp_path / "first", directory_of("llama"), **theirs)
    found = first_values(tmp_path / "second", directory_of("llama"), init=tmp_path / "first", **ours)
    torch.testing.assert_close(found, values, rtol=1e-4, atol=1e-4)  # adapters are folded in


@pytest.mark.thorough
def test_a_head_on_the_policy_begins_as_the_other_one_ended(directory_of, tmp_path):
    trained(tmp_path / "first", directory_of("llama"), network="shared")
    with opened(tmp_path / "second", directory_of("llama"), network="shared", init=tmp_path / "first") as ctx:
        head = prepared_ppo(ctx).policy.critic.linear
        found = ctx.builder.saved_critic().head()
    assert torch.equal(head.weight, found["weight"]) and torch.equal(head.bias, found["bias"])
    assert head.weight.abs().max() > 0


@pytest.mark.thorough
def test_a_run_that_began_so_goes_on_with_its_own_critic(finished, directory_of, tmp_path):
    whole = {"init": finished[0], "checkpoint_minutes": 1e-9}
    values = trained(tmp_path / "whole", directory_of("llama"), **whole)
    with opened(tmp_path / "paused", directory_of("llama"), **whole) as ctx:
        run_prepared(ctx, prepared_ppo(ctx))
    with opened(tmp_path / "paused", directory_of("llama"), **whole) as ctx:
        assert torch.equal(values_of(prepared_ppo(ctx).policy), values)
        (entry,) = (each for each in ctx.inputs.read_from_outside(["ppo"])["ppo"] if each["use"] == "ppo.value.init")
    assert entry["path"] == str(finished[0] / "checkpoints" / "ppo" / "00000002")  # another one is noticed


def test_a_critic_that_does_not_fit_is_refused_before_anything_is_written(finished, directory_of, tmp_path):
    place, llama = finished[0], directory_of("llama")
    wider = tiny.save_family("llama", tmp_path / "wider", hidden_size=40)
    deeper = tiny.save_family("llama", tmp_path / "deeper", num_hidden_layers=3)
    tokenizer = tiny.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|other|>"]})
    renamed = tiny.save_family("llama", tmp_path / "renamed", tokenizer=tokenizer, vocab_size=tiny.PAD + 1)
    (tmp_path / "empty").mkdir()
    for model, settings, words in (
        (wider, {"init": place}, r"critic of another size than .*: classifier.* is \(\d+, 32\) there, and \(\d+, 40\)"),
        (deeper, {"init": place}, r"another architecture than .*: \d+ weights differ, such as classifier.* here alone"),
        (renamed, {"init": place}, "reads the tokens of another tokenizer"),
        (llama, {"init": place, "network": "shared"}, 'ppo.value.network = "separate", a network of its own, and here'),
        (llama, {"init": tmp_path / "none"}, 'expected "auto", "reward_model", "policy" or the directory'),
        (llama, {"init": tmp_path / "empty"}, "is neither a run directory nor a checkpoint"),
        (llama, {"init": tmp_path / "run"}, 'expected "auto"'),
    ):
        with pytest.raises(ConfigError, match=words), opened(tmp_path / "run", model, **settings):
            pass
        assert not (tmp_path / "run").exists()


def test_a_run_without_a_critic_or_with_a_damaged_one_is_refused(finished, directory_of, tmp_path):
    place = tmp_path / "copy"
    shutil.copytree(finished[0], place)
    (tensors,) = (place / "checkpoints" / "ppo").glob("00000002/tensors.safetensors")
    tensors.write_bytes(tensors.read_bytes()[:-1])
    with (
        pytest.raises(CheckpointError, match="00000002 is damaged"),
        opened(tmp_path / "run", directory_of("llama"), init=place),
    ):
        pass
    shutil.rmtree(place / "checkpoints")
    with (
        pytest.raises(ConfigError, match="has no checkpoint of PPO; go on with it"),
        opened(tmp_path / "run", directory_of("llama"), init=place),
    ):
        pass
