"""Ensembles of reward models, loaded by their path as one, and the mean of their weights."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.errors import CheckpointError, ConfigError, ModelError
from rlhfkit.models.reward_model import LengthTrend, Normalization, Scale, members_of, write_heads
from rlhfkit.pipeline.average import average_reward_models, mean_of_weights
from rlhfkit.records import Prompt
from rlhfkit.rewards.ensemble import EnsembleReward
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from tests.tiny import builder, save_family

EPISODES = [ScoredText(Prompt("Once "), "Once ", text) for text in (" upon a time", "", " abc")]
TREND = LengthTrend(slope=0.25, mean_tokens=4.0, std=0.5, correlation=0.7)


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """What makes a reward model of ours in a new directory, by the name of its head."""
    base = save_family("llama", tmp_path_factory.mktemp("base"))

    def make(name, normalization, *, trend=None):
        directory = tmp_path_factory.mktemp("model") / "reward_model"
        model = builder(base, directory).fresh_reward_model(name=name)
        model.save(directory, normalization=normalization, max_tokens=64, trend=trend)
        return directory

    return make


@pytest.fixture(scope="module")
def three(reward_model):
    """Three single reward models."""
    return [reward_model(name, Normalization(0.1 * n, 1.0 + n)) for n, name in enumerate("abc")]


@pytest.fixture(scope="module")
def ensemble(three, tmp_path_factory):
    """The same three in one directory."""
    directory = tmp_path_factory.mktemp("ensemble") / "reward_model"
    shutil.copytree(three[0], directory)
    for number, member in enumerate(three[1:], start=1):
        shutil.copytree(member, directory / "members" / str(number))
    return directory


def source(directory, **config):
    return builder(directory, directory).reward(RewardModelRewardConfig(path=str(directory), **config))


def test_a_directory_with_members_scores_as_its_members_do_together(three, ensemble):
    alone = torch.stack([source(path).score(EPISODES) for path in three], dim=1)
    assert alone.std(dim=1).min() > 0
    assert torch.equal(source(ensemble, combine="min").score(EPISODES), alone.min(dim=1).values)
    mean, details = source(ensemble).score_in_detail(EPISODES)
    torch.testing.assert_close(mean, alone.mean(dim=1))
    torch.testing.assert_close(details["disagreement"], alone.std(dim=1, correction=0))
    less = source(ensemble, combine="mean_minus_variance", variance_coef=2.0).score(EPISODES)
    torch.testing.assert_close(less, alone.mean(dim=1) - 2.0 * alone.var(dim=1, correction=0))


def test_a_single_reward_model_is_no_ensemble(three):
    assert isinstance(source(three[0], combine="min"), RewardModelReward)


def test_members_stand_in_the_order_of_their_numbers(tmp_path):
    for number in (1, 2, 10):
        (tmp_path / "members" / str(number)).mkdir(parents=True)
    assert [path.name for path in members_of(tmp_path)] == ["1", "2", "10"]


def test_heads_on_one_trunk_score_as_whole_models_with_these_heads_would(three, tmp_path):
    together = tmp_path / "heads"
    shutil.copytree(three[0], together)
    head = load_file(three[1] / "model.safetensors")["score.weight"]
    write_heads(together, head, [Scale(Normalization(0.3, 0.5))])
    other = tmp_path / "other"
    shutil.copytree(three[0], other)
    save_file({**load_file(other / "model.safetensors"), "score.weight": head}, other / "model.safetensors")
    found = source(together)
    assert isinstance(found, EnsembleReward)
    scores = found.score_members(EPISODES)
    torch.testing.assert_close(scores[:, 0], source(three[0]).score(EPISODES))
    raw = source(other).score(EPISODES)  # normalised by 0 and 1
    torch.testing.assert_close(scores[:, 1], (raw - 0.3) / 0.5, rtol=1e-4, atol=1e-5)


def test_a_debiased_score_has_the_line_over_the_length_taken_out(reward_model):
    directory = reward_model("a", Normalization(0.5, 2.0), trend=TREND)
    plain, debiased = source(directory).score(EPISODES), source(directory, debias_length=True).score(EPISODES)
    tokens = source(directory).response_tokens(EPISODES)
    assert tokens.tolist() == [13.0, 1.0, 5.0]  # bytes, and EOS
    torch.testing.assert_close(debiased, (2.0 * plain - 0.25 * (tokens - 4.0)) / 0.5)


def test_without_a_line_over_the_length_nothing_can_be_taken_out(three):
    with pytest.raises(ConfigError, match="has no line of its scores over the length"):
        source(three[0], debias_length=True)


# ── the mean of weights ──────────────────────────────────────────────────────────────────────────────────────────────


def test_the_mean_of_weights_is_taken_tensor_by_tensor(three):
    mean, likeness, heads = mean_of_weights(three)
    stored = [load_file(path / "model.safetensors") for path in three]
    expected = sum(weights["score.weight"] for weights in stored) / 3
    torch.testing.assert_close(mean["score.weight"], expected)
    assert likeness == pytest.approx(1.0)  # one trunk
    assert heads < 0.9


def test_an_average_is_a_reward_model_on_the_scale_of_its_members(ensemble, tmp_path):
    rows = [{"prompt": "Once ", "chosen": " upon a time" * n, "rejected": " abc" + "d" * n} for n in range(1, 5)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = average_reward_models([ensemble], tmp_path / "average", pairs=tmp_path / "pairs.jsonl")
    assert len(found.members) == len(found.accuracies) == 3
    assert found.num_pairs == 4
    texts = [ScoredText(Prompt("Once "), "", row[side]) for side in ("chosen", "rejected") for row in rows]
    scores, members = source(tmp_path / "average").score(texts), source(ensemble).score_members(texts)
    assert float(scores.mean()) == pytest.approx(float(members.mean(0).mean()), abs=1e-3)
    assert float(scores.std(correction=0)) == pytest.approx(float(members.std(0, correction=0).mean()), abs=1e-3)
    assert members_of(tmp_path / "average") == []


def test_one_reward_model_has_no_average(three, tmp_path):
    with pytest.raises(ModelError, match=r"1 reward model in .*: expected at least two"):
        average_reward_models(three[:1], tmp_path / "average")


def test_an_average_takes_the_place_of_nothing_but_a_saved_model(three, ensemble, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    with pytest.raises(CheckpointError, match=r"it holds metrics\.jsonl, which saving would remove"):
        average_reward_models(three[:2], tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "{}"
    with pytest.raises(CheckpointError, match="it holds members"):
        average_reward_models([ensemble], ensemble)
    with pytest.raises(ModelError, match="is one of those to be averaged"):
        average_reward_models(three[:2], three[0])
    assert len(members_of(ensemble)) == 2


def test_models_of_other_shapes_and_origins_have_no_mean(three, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(three[0], other)
    weights = load_file(other / "model.safetensors")
    torch.manual_seed(0)
    foreign = {name: torch.randn_like(tensor) if tensor.dim() > 1 else tensor for name, tensor in weights.items()}
    save_file(foreign, other / "model.safetensors")
    with pytest.raises(ModelError, match="were not tuned from the same model"):
        mean_of_weights([three[0], other])
    save_file({**weights, "score.weight": torch.zeros(1, 3)}, other / "model.safetensors")
    with pytest.raises(ModelError, match=r"score.weight is .* and \(1, 3\)"):
        mean_of_weights([three[0], other])


def test_heads_on_one_trunk_have_no_average(three, tmp_path):
    together = tmp_path / "heads"
    shutil.copytree(three[0], together)
    write_heads(together, torch.zeros(1, 4), [Scale()])
    with pytest.raises(ModelError, match="heads on one trunk"):
        average_reward_models([together, three[1]], tmp_path / "average")


def test_models_that_read_other_tokens_have_no_average(three, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(three[1], other)
    (other / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"differ in tokenizer\.json"):
        average_reward_models([three[0], other], tmp_path / "average")


def test_the_scale_of_a_head_is_kept_beside_it(three, tmp_path):
    from rlhfkit.models.reward_model import read_scales

    together = tmp_path / "heads"
    shutil.copytree(three[0], together)
    scales = [Scale(Normalization(0.25, 4.0), TREND), Scale()]
    write_heads(together, torch.zeros(2, 4), scales)
    assert read_scales(together)[1:] == scales
    assert dataclasses.asdict(read_scales(together)[0].normalization) == {"mean": 0.0, "std": 1.0}
