"""Rejection-sampling fine-tuning learns the best of what the model says itself, and nothing else."""

import json

import pytest
import torch

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.training import OptimConfig, RaftConfig
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.rollout.generation import generate
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.raft import train_raft
from rlhfkit.training.sft import LearntText
from tests.training import tiny
from tests.training.test_sft import PLAIN, plain_loss

ROLLOUT = RolloutConfig(max_response_tokens=6)


class Letters:
    """Scores a response by how many of its letters are in the first half of the alphabet."""

    def score(self, episodes):
        return torch.tensor([float(sum(letter < "g" for letter in episode.response)) for episode in episodes])


def train(model, config, directory):
    run = RunDir(directory)
    with RunLog(run) as log:
        train_raft(
            model,
            tiny.prompts(3),
            config,
            reward=Letters(),
            rollout=ROLLOUT,
            sample=lambda: generate,
            stage="raft",
            seed=0,
            log=log,
            checkpoints=Checkpoints(run.checkpoints / "raft", warn=pytest.fail),
            progress=Progress(quiet=True),
        )
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


@pytest.mark.parametrize("microbatch_tokens", [1, 4096])
def test_gradient_is_of_the_best_responses_however_they_are_cut(tmp_path, microbatch_tokens):
    model, best, scores = tiny.language_model(), [], []
    for row, prompt in enumerate(tiny.prompts(3)):
        seeds = [derive_seed(0, "raft", row, which) for which in range(4)]
        responses = generate(model, [prompt.ids] * 4, ROLLOUT, seeds=seeds)
        texts = [model.encoder.decode(response.ids) for response in responses]
        scores.append([sum(letter in "abcdef" for letter in text) for text in texts])
        best.append(LearntText([*prompt.ids, *responses[scores[-1].index(max(scores[-1]))].ids], len(prompt.ids)))
    expected = plain_loss(model, best)
    torch.autograd.backward(expected)
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}

    trained = tiny.language_model()
    before = {name: weight.detach().clone() for name, weight in trained.named_parameters()}
    config = RaftConfig(
        epochs=1, num_responses=4, minibatch_prompts=3, microbatch_tokens=microbatch_tokens, optim=PLAIN
    )
    (row,) = train(trained, config, tmp_path)
    assert row["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert row["score"] == pytest.approx(sum(map(sum, scores)) / 12, rel=1e-5)
    assert row["best_score"] == pytest.approx(sum(map(max, scores)) / 3, rel=1e-5) and row["best_score"] > row["score"]
    for name, weight in trained.named_parameters():
        torch.testing.assert_close(before[name] - weight.detach(), gradients[name], rtol=1e-3, atol=1e-5)


@pytest.mark.thorough
def test_the_score_rises(tmp_path):
    config = RaftConfig(epochs=30, num_responses=4, minibatch_prompts=3, optim=OptimConfig(learning_rate=1e-2))
    rows = train(tiny.language_model(), config, tmp_path)
    first, last = (sum(row["score"] for row in part) / 5 for part in (rows[:5], rows[-5:]))
    assert last > first + 1
