"""Evaluation while PPO runs: the same prompts and draws each time, and what is measured equals what plain loops do."""

import json
import math
import statistics

import pytest
import torch

from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.envs import FunctionEnvConfig
from rlhfkit.config.evaluation import EvaluationConfig, is_evaluated
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import LexiconRewardConfig
from rlhfkit.errors import ConfigError
from rlhfkit.evaluation.on_the_way import EvaluationOnTheWay, answers_in_env, answers_to_prompts
from rlhfkit.evaluation.prompts import distinct
from rlhfkit.ppo import Lagrangian
from rlhfkit.rollout.constraints import Constraint
from rlhfkit.rollout.generation import generate
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.ppo import run_iteration
from tests.distributed.together import together
from tests.evaluation.test_prompts import plain_logprobs
from tests.rollout.test_multi_turn import Echo
from tests.training import tiny

LENGTH = tiny.Scripted(lambda text: float(len(text) - 4))
TEMPERATURE = 0.7


def recipe(**changes):
    settings = {
        "name": "tiny",
        "stages": ("ppo",),
        "model": PretrainedModelConfig(path="models/tiny"),
        "data": DataConfig(prompts=RowsConfig(path="a.jsonl"), test_prompts=RowsConfig(path="b.jsonl")),
        "reward": LexiconRewardConfig(path="words.txt"),
        "rollout": RolloutConfig(max_response_tokens=8, temperature=TEMPERATURE),
        "ppo": PpoConfig(microbatch_tokens=64),
        "evaluation": EvaluationConfig(every_iterations=2, num_prompts_on_the_way=5),
    }
    return Recipe(**{**settings, **changes})


def answers(*, judge=LENGTH, reward=None, policy=None, constraints=(), **changes):
    acting = policy or tiny.policy(1, temperature=TEMPERATURE)
    reference = tiny.reference(0, temperature=TEMPERATURE)
    return answers_to_prompts(
        acting,
        reference,
        tiny.prompts(12),
        recipe(**changes),
        judge=judge,
        reward=reward,
        sample=lambda: generate,
        constraints=constraints,
    )


@pytest.fixture(scope="module")
def answered():
    return answers()


def test_numbers_are_those_of_plain_loops(answered):
    found, kls, ref_logprobs = answered.metrics(), [], []
    for prompt, response, text in zip(tiny.prompts(12), answered.responses, answered.texts, strict=True):
        own, ref = (
            plain_logprobs(tiny.language_model(seed), prompt, text, temperature=TEMPERATURE, ended=response.finished)
            for seed in (1, 0)
        )
        kls.append(sum(own) - sum(ref))
        ref_logprobs += ref
    judged = [len(text) - 4.0 for text in answered.texts]
    assert answered.ref_kl == pytest.approx(kls, abs=1e-4)
    assert found["evaluation/ref_kl"] == pytest.approx(statistics.fmean(kls), abs=1e-4)
    assert found["evaluation/ref_perplexity"] == pytest.approx(math.exp(-statistics.fmean(ref_logprobs)), rel=1e-4)
    assert answered.judge == judged and found["evaluation/judge"] == pytest.approx(statistics.fmean(judged))
    assert found["evaluation/judge_error"] == pytest.approx(statistics.stdev(judged) / 12**0.5)
    assert found["evaluation/response_tokens"] == statistics.fmean(len(one.ids) for one in answered.responses)
    assert found["evaluation/distinct_2"] == distinct(answered.texts, 2)
    assert "evaluation/score" not in found


def test_constraints_are_measured_on_the_same_responses(answered):
    letters = Constraint("letters", tiny.Scripted(len), Lagrangian(limit=3.0, is_upper=True, learning_rate=0.1))
    found = answers(constraints=[letters])
    lengths = [float(len(text)) for text in answered.texts]
    assert found.metrics() == {**answered.metrics(), "evaluation/constraint/letters": statistics.fmean(lengths)}
    assert found.rows()["constraint/letters"] == lengths


def test_the_same_weights_give_the_same_answers_and_others_give_others(answered):
    assert answers() == answered
    assert answers(policy=tiny.policy(2, temperature=TEMPERATURE)).texts != answered.texts


def test_a_seed_of_its_own_gives_runs_of_all_seeds_the_same_answers(answered):
    assert answers(seed=9).texts != answered.texts
    assert answers(seed=9, evaluation=EvaluationConfig(every_iterations=2, seed=0)) == answered


def test_without_a_judge_the_reward_scores(answered):
    found = answers(judge=None, reward=tiny.count_a())
    assert found.texts == answered.texts and found.judge is None
    assert found.score == [float(text.count("a")) for text in found.texts]
    assert {"evaluation/score", "evaluation/score_error"} <= found.metrics().keys()


def test_several_ranks_share_the_answers_out(answered, tmp_path):
    for found in together(2, answers, tmp_path):
        assert found.texts == answered.texts
        assert found.ref_kl == pytest.approx(answered.ref_kl, abs=1e-5)
        assert found.judge == answered.judge


def test_in_an_environment_scores_are_its_own_and_the_judge_sums_over_the_turns():
    settings = recipe(
        env=FunctionEnvConfig(type="function", function="somewhere:Env"),
        data=DataConfig(max_prompt_tokens=16),
        evaluation=EvaluationConfig(every_iterations=2, num_prompts_on_the_way=5),
    )
    policy, reference = tiny.policy(1, temperature=TEMPERATURE), tiny.reference(0, temperature=TEMPERATURE)
    found = answers_in_env(policy, reference, Echo, settings, judge=LENGTH, reward=None, sample=lambda: generate)
    assert len(found.score) == len(found.judge) == len(found.ref_kl) == 5 < len(found.texts)
    assert sum(found.score) == sum(map(len, found.texts))  # what `Echo` pays
    assert sum(found.judge) == sum(len(text) - 4 for text in found.texts)


def test_an_observer_evaluates_the_weights_that_act_when_it_is_time(tmp_path):
    run = RunDir(tmp_path)
    trainer = tiny.trainer(
        PpoConfig(iterations=4, rollout_episodes=8, minibatch_episodes=8, epochs=1), policy_seed=1, reference_seed=0
    )

    def now():
        return answers_to_prompts(
            trainer.policy,
            tiny.reference(0),
            tiny.prompts(12),
            recipe(rollout=RolloutConfig(max_response_tokens=8)),
            judge=LENGTH,
            reward=None,
            sample=lambda: generate,
        )

    with RunLog(run, tensorboard=False) as log:
        trainer.observers = [EvaluationOnTheWay(now, every=2, iterations=4, log=log)]
        rows, expected = [], []
        for _ in range(4):
            expected.append(now().metrics())
            rows.append(run_iteration(trainer)[1])
    evaluated = [0, 2, 3]
    for iteration, row in enumerate(rows):
        found = {name: value for name, value in row.items() if name.startswith("evaluation/")}
        assert found == (expected[iteration] if iteration in evaluated else {})
    lines = [json.loads(line) for line in run.observations.read_text().splitlines()]
    assert [line["iteration"] for line in lines] == evaluated
    for line in lines:
        assert statistics.fmean(line["judge"]) == pytest.approx(rows[line["iteration"]]["evaluation/judge"])
        assert statistics.fmean(line["ref_kl"]) == pytest.approx(rows[line["iteration"]]["evaluation/ref_kl"], rel=1e-4)


@pytest.mark.parametrize(
    ("every", "iterations", "expected"), [(0, 5, []), (1, 3, [0, 1, 2]), (3, 8, [0, 3, 6, 7]), (9, 4, [0, 3])]
)
def test_it_is_time_at_the_beginning_every_so_often_and_at_the_end(every, iterations, expected):
    found = [
        iteration for iteration in range(iterations) if is_evaluated(iteration, every=every, iterations=iterations)
    ]
    assert found == expected


def test_held_out_prompts_are_needed():
    with pytest.raises(ConfigError, match=r"evaluation\.every_iterations = 2 .*data\.test_prompts"):
        recipe(data=DataConfig(prompts=RowsConfig(path="a.jsonl")))


def test_no_gradient_is_kept():
    policy = tiny.policy(1, temperature=TEMPERATURE)
    answers(policy=policy)
    assert all(parameter.grad is None for parameter in policy.parameters()) and torch.is_grad_enabled()
