"""What is stored as best, rolled back to, or exported by a run that stops, are the weights that earned the score."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch

from rlhfkit.config.constraints import ConstraintConfig
from rlhfkit.config.load import load_recipe
from rlhfkit.config.ppo import FixedKLConfig, PpoConfig
from rlhfkit.config.rewards import LengthRewardConfig
from rlhfkit.config.watch import WatchConfig
from rlhfkit.errors import ConfigError
from rlhfkit.evaluation.control import quick_return
from rlhfkit.evaluation.on_the_way import EvaluationOnTheWay
from rlhfkit.machine.interrupts import Paused
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline.control import control_trainer
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.best import Kept
from rlhfkit.training.checkpoint import Checkpoints, load_trainable, subset
from rlhfkit.training.ppo import train_ppo
from rlhfkit.training.reactions import Watch
from tests.training import tiny
from tests.training.runs import ppo_config, rows

WRECKING_UPDATE = 4 * 4  # the last of iteration 3


def train(trainer, directory, *, until=None):
    """What `train_ppo` says, and the checkpoints."""
    checkpoints = Checkpoints(RunDir(directory).checkpoints / "ppo", warn=pytest.fail)
    with RunLog(RunDir(directory)) as log, Progress(quiet=True).stage("ppo", total=1, unit="iteration") as stage:
        trainer.resume(checkpoints, log) or log.forget("ppo")
        stage.warn = lambda text: None
        said = train_ppo(trainer, log=log, checkpoints=checkpoints, progress=stage, until=until)
    return said, checkpoints


def wrecked_once(trainer):
    """The trainer, whose policy writes nothing but "b" after the last update of iteration 3, then learns on."""
    optimizer, step = trainer.optimizers["policy"], trainer.optimizers["policy"].step

    def step_and_wreck():
        norm = step()
        if optimizer.updates_done == WRECKING_UPDATE:
            with torch.no_grad():
                head = trainer.policy.language_model.causal_lm.lm_head.weight
                head.mul_(0.01)
        return norm

    optimizer.step = step_and_wreck
    return trainer


SETTINGS = {
    "by the clock": {"checkpoint_minutes": 1e-9},
    "where a rule may roll back": {"watch": WatchConfig(kl_negative="roll_back", best_every_iterations=1)},
    "both": {
        "checkpoint_minutes": 1e-9,
        "watch": WatchConfig(kl_negative="roll_back", best_every_iterations=1),
    },
}


@pytest.mark.thorough
@pytest.mark.parametrize("how", SETTINGS)
def test_the_best_checkpoint_holds_the_weights_that_earned_its_rank(tmp_path, how):
    config = ppo_config(iterations=6, rollout_episodes=32, kl=FixedKLConfig(coef=0.05), **SETTINGS[how])
    _, checkpoints = train(wrecked_once(tiny.trainer(config)), tmp_path)
    best = checkpoints.load_best()
    scores = {row["iteration"]: row["score/objective"] for row in rows(RunDir(tmp_path))}
    assert scores[4] < scores[3] - 0.5  # the weights after iteration 3 are worth little
    assert best.iteration <= 3
    assert best.best == pytest.approx(max(list(scores.values())[:4]), rel=1e-5)

    again = tiny.trainer(config)
    load_trainable(again.policy, subset("policy", best.tensors))
    experience = again.rollout.collect(best.iteration, kl_coef=0.05)  # the same draws
    assert experience.metrics["score/objective"] == best.best


def test_what_is_ranked_is_what_ppo_maximises_at_one_coefficient():
    config = PpoConfig(
        rollout_episodes=8, minibatch_episodes=8, kl=FixedKLConfig(coef=0.3), length_penalty=0.1, min_eos_rate=0.0
    )
    experience = tiny.trainer(config, reference_seed=1).rollout.collect(0, kl_coef=7.0)
    shaped = [
        text - 0.1 * length
        for text, length in zip(_raw_scores(experience), experience.mask.sum(1).tolist(), strict=True)
    ]
    expected = sum(shaped) / 8 - 0.3 * float(experience.ref_kl.mean())
    assert float(experience.ref_kl.mean()) > 0.5
    assert experience.metrics["score/objective"] == pytest.approx(expected, rel=1e-5)


def _raw_scores(experience):
    """How many "a", token 2, each response has."""
    responses = [
        ids[prompt : prompt + length]
        for ids, prompt, length in zip(
            experience.inputs.ids.tolist(),
            experience.inputs.prompt_tokens.tolist(),
            experience.mask.sum(1).tolist(),
            strict=True,
        )
    ]
    return [float(response.count(2)) for response in responses]


class Far:
    """A rollout whose KL to the reference is written beforehand."""

    def __init__(self, rollout, kls):
        self.rollout, self.kls = rollout, kls

    def state(self):
        return {}

    def load_state(self, tensors):
        pass

    def collect(self, iteration, *, kl_coef, on_finished=None):
        experience = self.rollout.collect(iteration, kl_coef=kl_coef)
        kl = self.kls[iteration]
        metrics = {**experience.metrics, "ref_kl/sequence": float(kl)}
        return dataclasses.replace(experience, ref_kl=torch.full_like(experience.ref_kl, kl), metrics=metrics)


def limited(kls, **changes):
    watch = WatchConfig(best_every_iterations=1)
    trainer = tiny.trainer(ppo_config(iterations=8, max_ref_kl=5.0, watch=watch, **changes))
    trainer.rollout = Far(trainer.rollout, kls)
    return trainer


def test_a_run_that_leaves_its_limit_ends_with_the_best_weights_within_it(tmp_path):
    trainer = limited([0, 1, 2, 9, 1, 9, 9, 9])
    said, _ = train(trainer, tmp_path)
    objectives = {row["iteration"]: row["score/objective"] for row in rows(RunDir(tmp_path))}
    best = max((0, 1, 2, 4), key=objectives.__getitem__)
    assert said.endswith(f"; the weights are those after iteration {best - 1}, the best before that")
    short = tiny.trainer(ppo_config(iterations=8))
    short.config = short.config.model_copy(update={"iterations": best})
    train(short, tmp_path / "short")
    for name, weight in short.policy.named_parameters():
        assert torch.equal(dict(trainer.policy.named_parameters())[name], weight), name


def test_a_run_that_leaves_its_limit_at_once_ends_with_the_weights_it_began_with(tmp_path):
    trainer = limited([0, 9, 9, 9])
    said, _ = train(trainer, tmp_path)
    assert said.endswith("; the weights are those that PPO began with, the best before that")
    for name, weight in tiny.policy(0).named_parameters():
        assert torch.equal(dict(trainer.policy.named_parameters())[name], weight), name


def test_a_stopped_run_ends_with_the_same_weights_when_it_is_started_again(tmp_path):
    trainers = [limited([0, 1, 2, 9, 9, 9]) for _ in range(2)]
    (said, again) = (train(trainer, tmp_path)[0] for trainer in trainers)
    assert said == again
    first, second = (dict(trainer.policy.named_parameters()) for trainer in trainers)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_best_of_iterations_that_were_lost_is_forgotten_where_the_run_goes_on_before_them(tmp_path):
    checkpoints = Checkpoints(RunDir(tmp_path).checkpoints / "ppo", warn=lambda text: None)
    trainer = limited([0] * 8)

    def save(iteration, best=None):
        state = {**trainer.state(), "log": {"metrics_bytes": 0, "samples_bytes": 0}}
        checkpoints.save(iteration, trainer.tensors(), state, best=best)
        checkpoints.wait()

    save(2)
    save(5, best=9.0)
    (checkpoints.directory / f"{5:08d}" / "tensors.safetensors").write_bytes(b"damaged")
    with RunLog(RunDir(tmp_path)) as log:
        assert trainer.resume(checkpoints, log)
    assert (trainer.iteration, trainer.watch.best, checkpoints.load_best()) == (2, None, None)
    save(6, best=1.0)
    for iteration in (7, 8, 9):
        save(iteration)
    assert checkpoints.load_best().iteration == 6


def test_without_weights_within_the_limit_the_last_ones_are_kept_and_it_is_said(tmp_path):
    said, _ = train(limited([9, 9, 9]), tmp_path)
    assert said.endswith("none of its weights were ranked before, so they are the last ones")


def test_the_best_weights_of_a_control_task_are_ranked_by_episodes_of_their_own(tmp_path):
    changes = ["ppo.env_steps=2048", "ppo.num_envs=8", "ppo.minibatch_steps=256", "env.normalize_observations=true"]
    changes += ['ppo.watch.reward_flat="roll_back"', "ppo.watch.best_every_iterations=2"]
    recipe = load_recipe("cartpole", changes).recipe
    trainer = control_trainer(recipe, 0)
    _, checkpoints = train(trainer, tmp_path)
    best = checkpoints.load_best()
    again = control_trainer(recipe, 0)
    load_trainable(again.policy, subset("policy", best.tensors))
    again.put_back_statistics(subset("rollout", best.tensors))
    assert quick_return(again.policy, recipe.env, seed=0) == best.best
    again.rollout.envs.close()
    trainer.rollout.envs.close()


class Judged:
    """An observer whose judge's scores are written beforehand, by iteration."""

    def __init__(self, scores, kls=None, words=None):
        self.scores, self.kls = scores, kls or [0.1 * iteration for iteration in range(20)]
        self.words = words

    def before_update(self, trainer, experience):
        if trainer.iteration not in self.scores:
            return {}
        score = self.scores[trainer.iteration]
        words = {} if self.words is None else {"evaluation/constraint/words": self.words[trainer.iteration]}
        return words | {
            "evaluation/judge": score,
            "evaluation/judge_error": 0.1,
            "evaluation/ref_kl": self.kls[trainer.iteration],
        }

    def after_update(self, trainer, experience):
        return {}


def test_a_run_stops_with_the_weights_that_the_judge_found_best(tmp_path):
    watch = WatchConfig(best_metric="evaluation/judge", judge_falling="stop")
    trainer = tiny.trainer(ppo_config(iterations=12, watch=watch))
    trainer.watch = Watch(trainer.config, {"evaluation": {"every_iterations": 2}})
    trainer.observers = [Judged({0: 0.0, 2: 1.0, 4: 5.0, 6: 2.0, 8: 3.0, 10: 1.0, 11: 1.0})]
    said, checkpoints = train(trainer, tmp_path)
    assert said.startswith("ppo.watch.judge_falling says stop in iteration 8")
    assert said.endswith("; the weights are those after iteration 3, the best before that")
    assert checkpoints.load_best().best == 5.0


def judged(judge, *, kls=None, every=2, iterations=8, **watch):
    """A trainer that shall end with its best weights by a judge."""
    settings = WatchConfig(best_metric="evaluation/judge", **watch)
    trainer = tiny.trainer(ppo_config(iterations=iterations, end_with="best", watch=settings))
    trainer.watch = Watch(trainer.config, {"evaluation": {"every_iterations": every}})
    trainer.observers = [Judged(judge, kls)]
    return trainer


def assert_has_weights_after(trainer, iterations, directory):
    """Those of a run that was that short."""
    short = tiny.trainer(ppo_config(iterations=8))
    short.config = short.config.model_copy(update={"iterations": iterations})
    train(short, directory)
    for name, weight in short.policy.named_parameters():
        assert torch.equal(dict(trainer.policy.named_parameters())[name], weight), name


SCORES = {0: 0.0, 2: 1.0, 4: 5.0, 6: 6.0, 7: 3.0}


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("kls", "limit", "best"),
    [
        (None, None, 6),
        ([0, 1, 2, 3, 4, 5, 6, 7], 5.0, 4),  # of the evaluations, while the rollouts stay near
        ([0, 1, 2, 3, 4, 5, 6, 7], 0.5, 0),
    ],
)
def test_a_run_that_shall_ends_with_its_best_weights_within_the_limit(tmp_path, kls, limit, best):
    trainers = [judged(SCORES, kls=kls, best_max_ref_kl=limit) for _ in range(2)]
    for trainer in trainers:  # the second finds the run at its end
        said, _ = train(trainer, tmp_path / "run")
        assert said is None
        which = f"those after iteration {best - 1}" if best else "those that PPO began with"
        assert trainer.kept == Kept(best, f"the weights are {which}, the best by evaluation/judge")
    if best:
        assert_has_weights_after(trainers[1], best, tmp_path / "short")
    assert len(rows(RunDir(tmp_path / "run"))) == 8


@pytest.mark.parametrize(
    ("words", "limit", "best"),
    [
        ([20, 22, 21, 19.9, 20.1], {"at_most": 20.0}, 6),
        ([20, 19, 21, 22, 22], {"at_most": 20.0}, 2),
        ([20, 22, 21, 19.9, 20.1], {"at_least": 20.5}, 4),
        ([22, 22, 21, 25, 22], {"at_most": 20.0}, None),
    ],
)
def test_the_best_by_an_evaluation_is_one_that_keeps_the_constraints(tmp_path, words, limit, best):
    trainer = judged(SCORES)
    constraint = ConstraintConfig(name="words", source=LengthRewardConfig(), **limit)
    trainer.config = trainer.config.model_copy(update={"constraints": (constraint,)})
    trainer.watch = Watch(trainer.config, {"evaluation": {"every_iterations": 2}})
    held = dict(zip(SCORES, words, strict=True))
    trainer.observers = [Judged(SCORES, words=held)]
    train(trainer, tmp_path)
    assert trainer.kept.iterations == best


def test_between_planned_evaluations_there_are_some_for_a_kl_that_nears_the_limit(tmp_path):
    """Of iteration 3 the two before it let one expect 4 nats, half of the limit; the last one is always evaluated."""
    asked = []
    trainer = judged({}, every=100, best_max_ref_kl=8.0)
    trainer.rollout = Far(trainer.rollout, [1, 2, 3, 4, 5, 6, 7, 8])
    sampled = SimpleNamespace(rows=dict, metrics=lambda: {"evaluation/judge": 1.0, "evaluation/ref_kl": 1.0})
    log = SimpleNamespace(write_observation=lambda stage, iteration, what, rows: asked.append(iteration))
    trainer.observers = [EvaluationOnTheWay(lambda: sampled, every=100, iterations=8, log=log)]
    train(trainer, tmp_path)
    assert asked == [0, 3, 4, 5, 6, 7]


def test_a_run_that_pauses_ends_with_the_same_best_weights(tmp_path):
    with pytest.raises(Paused):
        train(judged(SCORES), tmp_path / "run", until=5)
    trainer = judged(SCORES)
    train(trainer, tmp_path / "run")
    assert trainer.kept.iterations == 6
    assert_has_weights_after(trainer, 6, tmp_path / "short")


def test_the_limit_of_the_best_takes_the_place_of_the_one_that_stops(tmp_path):
    watch = WatchConfig(best_every_iterations=1, best_max_ref_kl=0.5)
    trainer = tiny.trainer(ppo_config(iterations=8, max_ref_kl=5.0, watch=watch))
    trainer.rollout = Far(trainer.rollout, [0, 1, 2, 9, 1, 9, 9, 9])
    said, _ = train(trainer, tmp_path)
    assert said.endswith("; the weights are those that PPO began with, the best before that")


def test_without_ranked_weights_a_run_ends_with_the_last_and_says_so(tmp_path):
    trainer = judged(SCORES, kls=[9.0] * 8, best_max_ref_kl=0.5)
    train(trainer, tmp_path)
    assert trainer.kept == Kept(None, "none of its weights were ranked before, so they are the last ones")


def test_a_control_task_ends_with_its_best_weights_and_statistics(tmp_path):
    changes = ["ppo.env_steps=1024", "ppo.num_envs=8", "ppo.rollout_steps=32", "ppo.minibatch_steps=256"]
    changes += ["env.normalize_observations=true", "ppo.end_with=best", "ppo.watch.best_every_iterations=1"]
    recipe = load_recipe("cartpole", changes).recipe
    trainer = control_trainer(recipe, 0)
    _, checkpoints = train(trainer, tmp_path)
    best = checkpoints.load_best()
    assert trainer.kept.iterations == best.iteration
    assert quick_return(trainer.policy, recipe.env, seed=0) == best.best
    trainer.rollout.envs.close()


def test_a_rule_that_is_told_to_stop_does_so_although_another_one_warns_too(tmp_path):
    kls = [float(kl) for kl in range(0, 24, 2)]
    scores = {at: d * (1.5 - 0.9 * math.log(d)) if d else 0.0 for at, d in enumerate(map(math.sqrt, kls))}
    watch = WatchConfig(best_metric="evaluation/judge", judge_falling="stop")
    trainer = tiny.trainer(ppo_config(iterations=12, watch=watch))
    trainer.watch = Watch(trainer.config, {"evaluation": {"every_iterations": 1}})
    trainer.observers = [Judged(scores, kls)]
    said, _ = train(trainer, tmp_path)
    assert said.startswith("ppo.watch.judge_falling says stop")
    assert {"watch/over_optimized", "watch/judge_falling"} <= {name for row in rows(RunDir(tmp_path)) for name in row}
    best = max(scores, key=scores.get)
    assert f"the weights are those after iteration {best - 1}" in said


def test_a_metric_that_no_evaluation_measures_is_refused(tmp_path):
    watch = WatchConfig(best_metric="evaluation/juge", judge_falling="stop", best_every_iterations=1)
    trainer = tiny.trainer(ppo_config(iterations=6, watch=watch))
    trainer.watch = Watch(trainer.config, {"evaluation": {"every_iterations": 2}})
    trainer.observers = [Judged({0: 0.0, 2: 1.0})]
    with pytest.raises(ConfigError, match=r"'evaluation/juge' is no metric of a rollout; .*evaluation/judge_error"):
        train(trainer, tmp_path)
