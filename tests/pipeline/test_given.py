"""A model, prompts and a reward that a caller has in memory take the places of what the recipe names."""

import pytest
import torch

from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.model import LoraConfig, PretrainedModelConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import FunctionRewardConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.machine.progress import Progress
from rlhfkit.models.lora import add_lora
from rlhfkit.pipeline.build import Given
from rlhfkit.pipeline.opening import open_run
from rlhfkit.pipeline.ppo import prepared_ppo, run_prepared
from rlhfkit.pipeline.run import run_stage
from rlhfkit.records import Prompt
from tests import tiny

PROMPTS = [Prompt(text) for text in ("Say a", "And b", "Why c")]


class Asked(tiny.Ascii):
    """It keeps what it was asked."""

    def __init__(self):
        self.asked = []

    def score(self, episodes):
        self.asked += [episode.prompt.content for episode in episodes]
        return super().score(episodes)


def recipe(**settings):
    return Recipe(
        name="given",
        stages=("ppo",),
        model=PretrainedModelConfig(path="no-such-model", dtype="float32", **settings),
        data=DataConfig(prompts=RowsConfig(path="no-such-file.jsonl")),
        reward=FunctionRewardConfig(type="function", function="no_such_module:reward"),
        rollout=RolloutConfig(max_response_tokens=6),
        ppo=PpoConfig(
            iterations=2,
            rollout_episodes=4,
            minibatch_episodes=4,
            epochs=1,
            min_eos_rate=0.0,
            optim=OptimConfig(learning_rate=1e-3),
        ),
    )


def opened(directory, given, **settings):
    loaded = LoadedRecipe(recipe(**settings), 'name = "given"\n', ())
    return open_run(loaded, directory, progress=Progress(quiet=True), given=given)


@pytest.fixture
def model(directory_of):
    return tiny.load(directory_of("llama"))


def weights(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_ppo_runs_on_what_is_in_memory_alone(model, tmp_path):
    before, reward = weights(model), Asked()
    with opened(tmp_path / "run", Given(model=model, data={"prompts": PROMPTS}, reward=reward)) as ctx:
        prepared = prepared_ppo(ctx)
        assert prepared.trainer.iteration == 0
        record = run_prepared(ctx, prepared)
    assert record["iterations"] == 2
    assert len(reward.asked) >= 8 and set(reward.asked) <= {prompt.content for prompt in PROMPTS}
    assert any(not torch.equal(before[name], tensor) for name, tensor in weights(model).items())  # trained in place


def test_the_reference_stays_what_was_given(model, tmp_path):
    before = weights(model)
    with opened(tmp_path / "run", Given(model=model, data={"prompts": PROMPTS}, reward=Asked())) as ctx:
        run_stage(ctx, "ppo")
    kept, trained = tiny.load(tmp_path / "run" / "base"), tiny.load(tmp_path / "run" / "policy")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(kept).items())
    assert all(torch.equal(weights(model)[name], tensor) for name, tensor in weights(trained).items())


@pytest.mark.thorough
def test_a_given_model_computes_as_one_read_from_its_directory(model, directory_of, tmp_path):
    policies = []
    for given, path in ((model, "no-such-model"), (None, str(directory_of("llama")))):
        loaded = LoadedRecipe(
            recipe().model_copy(update={"model": PretrainedModelConfig(path=path, dtype="float32")}), "", ()
        )
        directory = tmp_path / f"run-{len(policies)}"
        in_memory = Given(model=given, data={"prompts": PROMPTS}, reward=Asked())
        with open_run(loaded, directory, progress=Progress(quiet=True), given=in_memory) as ctx:
            run_stage(ctx, "ppo")
        policies.append(weights(tiny.load(directory / "policy")))
    assert all(torch.equal(tensor, policies[1][name]) for name, tensor in policies[0].items())


def test_adapters_are_put_on_a_given_model(model, tmp_path):
    before = weights(model)
    given = Given(model=model, data={"prompts": PROMPTS}, reward=Asked())
    with opened(tmp_path / "run", given, lora=LoraConfig(rank=2)) as ctx:
        run_stage(ctx, "ppo")
    merged = weights(tiny.load(tmp_path / "run" / "policy"))
    assert merged.keys() == before.keys()
    assert any(not torch.equal(before[name], tensor) for name, tensor in merged.items())


def test_a_given_model_that_has_adapters_is_refused(model, tmp_path):
    model.causal_lm = add_lora(model.causal_lm, LoraConfig(rank=2))
    with (
        pytest.raises(ConfigError, match="has adapters already; merge them first"),
        opened(tmp_path / "run", Given(model=model, data={"prompts": PROMPTS}, reward=Asked())),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_a_given_reward_is_tried_before_anything_is_written(model, tmp_path):
    class Fails:
        def score(self, episodes):
            raise DataError("it has no such column")

    with (
        pytest.raises(DataError, match="it has no such column"),
        opened(tmp_path / "run", Given(model=model, data={"prompts": PROMPTS}, reward=Fails())),
    ):
        pass
    assert not (tmp_path / "run").exists()


def test_what_is_not_given_is_read_as_the_recipe_says(model, tmp_path):
    with (
        pytest.raises(DataError, match=r"data\.prompts: .*no-such-file\.jsonl"),
        opened(tmp_path / "run", Given(model=model, reward=Asked())),
    ):
        pass
