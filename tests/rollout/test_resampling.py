"""Dynamic sampling: groups whose responses all score alike give way to other prompts, for so many rounds at most."""

import pytest
import torch

from rlhfkit.config.load import load_recipe
from rlhfkit.config.ppo import PpoConfig
from rlhfkit.errors import ConfigError
from rlhfkit.rollout.resampling import Answered, flat_groups, with_variance
from rlhfkit.training.ppo import run_iteration
from tests.training import tiny


def answered(scores, name="first"):
    """Names in place of prompts and responses, which say where a row comes from."""
    rows = range(len(scores))
    return Answered(
        prompts=[f"{name} prompt {row}" for row in rows],
        responses=[f"{name} response {row}" for row in rows],
        scores=torch.tensor(scores),
        details={"twice": 2 * torch.tensor(scores)},
    )


def test_groups_that_score_alike_are_flat():
    scores = torch.tensor([1.0, 1.0, 0.0, 1.0, 5.0, 5.0 + 1e-7, 2.0, 2.1])
    assert flat_groups(scores, 2) == [0, 2]
    assert flat_groups(scores, 4) == []


def test_flat_groups_give_way_to_those_that_are_not():
    asked = []

    def answer(number, num):
        asked.append((number, num))
        return [answered([3.0, 3.0, 0.0, 1.0], "second"), answered([7.0, 8.0], "third")][number]

    found, metrics = with_variance(answered([1.0, 1.0, 0.0, 2.0, 4.0, 4.0]), group_size=2, rounds=5, answer=answer)
    assert asked == [(0, 2), (1, 1)]  # as many prompts as are flat, and no round once none is
    assert found.scores.tolist() == [7.0, 8.0, 0.0, 2.0, 0.0, 1.0]
    for row, score in enumerate(found.scores.tolist()):
        assert found.details["twice"][row] == 2 * score
        assert found.prompts[row].split(" prompt ") == found.responses[row].split(" response ")
    assert sorted(name.split()[0] for name in found.prompts) == ["first"] * 2 + ["second"] * 2 + ["third"] * 2
    assert metrics == {"rollout/flat_share": 2 / 3, "rollout/flat_share_left": 0.0, "rollout/resampled_prompts": 3.0}


def test_it_ends_though_every_score_is_the_same():
    found, metrics = with_variance(
        answered([1.0] * 4), group_size=2, rounds=3, answer=lambda number, num: answered([1.0] * 2 * num, "more")
    )
    assert found.prompts == answered([1.0] * 4).prompts
    assert metrics == {"rollout/flat_share": 1.0, "rollout/flat_share_left": 1.0, "rollout/resampled_prompts": 6.0}


def test_a_rollout_learns_from_groups_that_differ():
    """Only a response that begins with "a", or its neighbour, is worth something: most groups are flat."""

    def rollout(rounds):
        settings = {"estimator": "grpo", "group_size": 2, "rollout_episodes": 16, "minibatch_episodes": 16}
        config = PpoConfig(resample_rounds=rounds, **settings)
        reward = tiny.Scripted(lambda text: float(text[:1] in ("a", "b", "c")))
        trainer = tiny.trainer(config, reward=reward)
        return trainer, trainer.rollout.collect(0, kl_coef=0.0)

    _, plain = rollout(0)
    trainer, found = rollout(4)
    assert "rollout/flat_share" not in plain.metrics
    flat = len(flat_groups(plain.scores, 2))
    assert found.metrics["rollout/flat_share"] == flat / 8 > 0
    assert found.metrics["rollout/flat_share_left"] == len(flat_groups(found.scores, 2)) / 8 < flat / 8
    assert found.metrics["rollout/resampled_prompts"] >= flat
    _, again = rollout(4)
    assert torch.equal(again.inputs.ids, found.inputs.ids)  # the draws follow from the seed
    starts = [(found.inputs.ids[row, : found.inputs.prompt_tokens[row]].tolist()) for row in range(16)]
    assert starts[::2] == starts[1::2]
    assert run_iteration(trainer)[1]["policy/grad_norm"] > 0


def test_only_where_responses_are_compared_and_sampled_alone():
    with pytest.raises(ConfigError, match="resample_rounds 2 is about prompts whose responses all score alike"):
        PpoConfig(resample_rounds=2)
    with pytest.raises(ConfigError, match=r"ppo\.resample_rounds = 3 is of single responses"):
        load_recipe("guess", ["ppo={preset='dapo', rollout_episodes=64}"])
