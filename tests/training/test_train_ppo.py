"""The loop of PPO: it learns, keeps to its leash, stops when it is doomed, and goes on where it was killed."""

import dataclasses
import itertools
import json
import math
import os
import signal
import subprocess
import sys

import pytest
import torch

from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig, PpoConfig, ValueConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.errors import RewardError, TrainingError
from rlhfkit.machine.interrupts import Paused
from rlhfkit.machine.progress import Progress
from rlhfkit.ppo import AdaptiveKL
from rlhfkit.rewards.source import check_scores
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints, subset, trainable_tensors
from rlhfkit.training.ppo import run_iteration, train_ppo
from tests.training import tiny

FAST = OptimConfig(learning_rate=1e-2)


def settings(**changes):
    usual = {
        "iterations": 4,
        "rollout_episodes": 16,
        "minibatch_episodes": 8,
        "epochs": 2,
        "optim": FAST,
        "value": ValueConfig(optim=FAST),
        "kl": FixedKLConfig(coef=0.0),
        "checkpoint_minutes": 1e-9,
    }
    return PpoConfig(**{**usual, **changes})


def run(trainer, directory, *, check_first=lambda experience: None, progress=None, until=None):
    """What `train_ppo` says, in a run directory from which it may go on."""
    run_dir = RunDir(directory)
    checkpoints = Checkpoints(run_dir.checkpoints / "ppo", warn=pytest.fail)
    with RunLog(run_dir) as log:
        if not trainer.resume(checkpoints, log):
            log.forget("ppo")
        with (progress or Progress(quiet=True)).stage("ppo", total=1, unit="iteration") as stage:
            return train_ppo(
                trainer, log=log, checkpoints=checkpoints, progress=stage, check_first=check_first, until=until
            )


def metrics(directory):
    return [json.loads(line) for line in RunDir(directory).metrics.read_text().splitlines()]


def samples(directory):
    return RunDir(directory).samples.read_text()


def without_times(rows):
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def saved_iterations(directory):
    return sorted(int(path.name) for path in (RunDir(directory).checkpoints / "ppo").iterdir())


class FailsAt(tiny.Scripted):
    """Counts "a", and fails at call number `call`."""

    def __init__(self, call, failure):
        super().__init__(lambda text: float(text.count("a")))
        self.call, self.failure = call, failure

    def score(self, episodes):
        scores = super().score(episodes)
        return self.failure(scores) if self.num_calls == self.call else scores


def killed(scores):
    raise KeyboardInterrupt


def interrupted(scores):
    signal.raise_signal(signal.SIGINT)
    return scores


# ── learning ─────────────────────────────────────────────────────────────────────────────────────────────────────────

ESTIMATORS = {
    "ppo": {},
    "ppo with a shared trunk": {"value": ValueConfig(network="shared", coef=0.5)},
    "rloo": {"estimator": "rloo", "group_size": 4},
    "grpo": {"estimator": "grpo", "group_size": 4},
}


@pytest.mark.thorough
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_scripted_reward_is_learnt(tmp_path, estimator, seed):
    config = settings(
        iterations=20, rollout_episodes=32, minibatch_episodes=32, checkpoint_minutes=60, **ESTIMATORS[estimator]
    )
    run(tiny.trainer(config, seed=seed, policy_seed=seed), tmp_path)
    scores = [row["score/mean"] for row in metrics(tmp_path)]
    # Eight tokens hold eight "a" at most, and about one before training.
    assert sum(scores[:2]) / 2 < 2
    assert sum(scores[-2:]) / 2 > 4


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_reward_that_needs_the_context_is_learnt(tmp_path, estimator, seed):
    """One point for each letter that follows its predecessor in the alphabet, with a leash."""

    def neighbours(text):
        return float(sum(ord(b) - ord(a) == 1 for a, b in itertools.pairwise(text)))

    config = settings(
        iterations=120,
        rollout_episodes=64,
        minibatch_episodes=32,
        epochs=4,
        kl=FixedKLConfig(coef=0.01),
        checkpoint_minutes=60,
        **ESTIMATORS[estimator],
    )
    run(tiny.trainer(config, seed=seed, policy_seed=seed, reward=tiny.Scripted(neighbours)), tmp_path)
    scores = [row["score/mean"] for row in metrics(tmp_path)]
    assert sum(scores[:3]) / 3 < 1.5
    assert sum(scores[-5:]) / 5 > 4  # of 7


# ── what is written ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_iteration_writes_its_metrics(tmp_path):
    run(tiny.trainer(settings(kl=FixedKLConfig(coef=0.1))), tmp_path)
    rows = metrics(tmp_path)
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    promised = """score/mean ref_kl/sequence kl_coef ppo/approx_kl ppo/clip_fraction ppo/entropy ppo/explained_variance
        ppo/ratio_first_epoch_max_deviation response_tokens/mean eos_rate time/iteration_seconds
        time/generation_seconds"""
    for row in rows:
        assert row["stage"] == "ppo"
        assert set(promised.split()) <= row.keys()
        assert row["kl_coef"] == 0.1
        assert row["ppo/ratio_first_epoch_max_deviation"] < 1e-4
    assert rows[0]["ref_kl/sequence"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["ref_kl/sequence"] > 0.1
    assert rows[0]["policy/learning_rate"] > rows[-1]["policy/learning_rate"] > 0


@pytest.mark.slow
def test_metrics_have_the_same_order_whatever_the_seed_of_hashes(tmp_path):
    script = (
        "import sys; from pathlib import Path; from tests.training.test_train_ppo import run, settings; "
        "from tests.training import tiny; run(tiny.trainer(settings(iterations=1)), Path(sys.argv[1]))"
    )
    orders = set()
    for seed in ("0", "1", "2", "3"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / seed)], check=True, env=environment)
        (row,) = metrics(tmp_path / seed)
        orders.add(tuple(row))
    assert len(orders) == 1


@pytest.mark.thorough
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("warmup_iterations", [0, 2])
def test_learning_rates_end_with_the_last_iteration_though_epochs_were_left_out(tmp_path, schedule, warmup_iterations):
    optim = OptimConfig(learning_rate=1e-2, schedule=schedule)
    config = settings(
        iterations=10,
        epochs=4,
        optim=optim,
        target_kl=1e-6,  # one epoch of two updates, where four of eight were planned
        value=ValueConfig(optim=optim, warmup_iterations=warmup_iterations),
    )
    run(tiny.trainer(config), tmp_path)
    rows = metrics(tmp_path)
    # While only the critic learns, the policy does not move, and all eight updates are made.
    num_updates = [8] * warmup_iterations + [2] * (10 - warmup_iterations)
    assert [2 * row["ppo/num_epochs"] for row in rows] == num_updates
    factor = {"linear": lambda left: left, "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left)}[schedule]
    for iteration, row in enumerate(rows):
        last = num_updates[iteration] - 1  # whose rate is the one that is logged
        left = {"value": 1 - (8 * iteration + last) / 80}
        if iteration >= warmup_iterations:
            planned = 8 * (10 - warmup_iterations)
            left["policy"] = 1 - (8 * (iteration - warmup_iterations) + last) / planned
        for name in ("policy", "value"):
            rate = row.get(f"{name}/learning_rate")
            assert rate == (pytest.approx(1e-2 * factor(left[name]), rel=1e-5) if name in left else None)


def test_a_few_responses_of_each_iteration_are_kept(tmp_path):
    run(tiny.trainer(settings(num_samples=3)), tmp_path)
    rows = [json.loads(line) for line in samples(tmp_path).splitlines()]
    assert [row["iteration"] for row in rows] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    for row in rows:
        assert row["score"] == row["response"].count("a")
        assert row["finish_reason"] in {"eos", "length"}


def test_only_the_first_experience_is_checked(tmp_path):
    checked = []
    run(tiny.trainer(settings(iterations=2)), tmp_path, check_first=checked.append)
    run(tiny.trainer(settings(iterations=4)), tmp_path, check_first=checked.append)
    (experience,) = checked
    assert float(experience.ref_kl.abs().max()) < 1e-5
    assert len(metrics(tmp_path)) == 4


# ── the leash ────────────────────────────────────────────────────────────────────────────────────────────────────────


def with_adaptive_kl(config):
    trainer = tiny.trainer(config)
    trainer.kl = AdaptiveKL(config.kl.coef, config.kl.target, config.kl.horizon_episodes)
    return trainer


ADAPTIVE = AdaptiveKLConfig(type="adaptive", coef=0.15, target=6.0, horizon_episodes=160)


def test_adaptive_kl_coefficient_follows_the_summed_kl_of_the_run(tmp_path):
    run(with_adaptive_kl(settings(kl=ADAPTIVE, iterations=6)), tmp_path)
    rows = metrics(tmp_path)
    coef = 0.15
    for row in rows:
        assert row["kl_coef"] == pytest.approx(coef, rel=1e-5)
        error = max(-0.2, min(0.2, row["ref_kl/sequence"] / 6.0 - 1))
        coef *= 1 + error * 16 / 160
    assert rows[1]["kl_coef"] == pytest.approx(0.15 * 0.98)  # the first KL is 0, so that the error is at its bound
    assert len({row["kl_coef"] for row in rows}) == 6


def test_kl_coefficient_is_in_the_checkpoint(tmp_path):
    run(with_adaptive_kl(settings(kl=ADAPTIVE, iterations=3)), tmp_path)
    saved = Checkpoints(RunDir(tmp_path).checkpoints / "ppo", warn=pytest.fail).load_newest()
    last = metrics(tmp_path)[-1]
    error = max(-0.2, min(0.2, last["ref_kl/sequence"] / 6.0 - 1))
    assert saved.state["kl_coef"] == pytest.approx(last["kl_coef"] * (1 + error * 16 / 160), rel=1e-5)
    other = with_adaptive_kl(settings(kl=ADAPTIVE, iterations=4))
    run(other, tmp_path)
    assert metrics(tmp_path)[-1]["kl_coef"] == pytest.approx(saved.state["kl_coef"], rel=1e-5)


def test_the_entropy_coefficient_follows_the_entropy_and_is_in_the_checkpoint(tmp_path):
    steered = {"entropy_coef": 0.1, "entropy_target": 0.5}  # nats; chance over the dozen letters has 2.6
    run(tiny.trainer(settings(iterations=3, **steered)), tmp_path)
    run(tiny.trainer(settings(iterations=4, **steered)), tmp_path)
    level = 0.1
    for row in metrics(tmp_path):
        error = max(-1.0, 1 - row["ppo/entropy"] / 0.5)
        level *= math.exp(0.1 * error)
        assert row["entropy_coef"] == pytest.approx(level * math.exp(2 * error), rel=1e-5)
    assert level < 0.07


def test_the_update_goes_by_the_coefficient_that_is_logged():
    steered = tiny.trainer(settings(entropy_coef=0.2, entropy_target=2.0))
    coef = run_iteration(steered)[1]["entropy_coef"]
    fixed = tiny.trainer(settings(entropy_coef=coef))
    run_iteration(fixed)
    assert abs(coef - 0.2) > 0.01
    for name, expected in weights(fixed).items():
        torch.testing.assert_close(weights(steered)[name], expected)


@pytest.mark.thorough
@pytest.mark.parametrize("target", [1.0, 2.0])
def test_the_entropy_comes_to_its_target_against_a_reward_that_would_end_it(target):
    rate = OptimConfig(learning_rate=3e-3, schedule="constant")
    bonus = {"entropy_coef": 0.1, "entropy_target": target}
    trainer = tiny.trainer(settings(iterations=80, optim=rate, value=ValueConfig(optim=rate), **bonus))
    entropies = [run_iteration(trainer)[1]["ppo/entropy"] for _ in range(80)]
    assert sum(entropies[-20:]) / 20 == pytest.approx(target, rel=0.15)


def test_a_strong_leash_holds_the_policy_near_its_reference(tmp_path):
    def last_kl(name, coef):
        run(tiny.trainer(settings(iterations=10, kl=FixedKLConfig(coef=coef))), tmp_path / name)
        return metrics(tmp_path / name)[-1]["ref_kl/sequence"]

    assert last_kl("strong", 1.0) < 0.5 * last_kl("none", 0.0)


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
        ref_kl = torch.full_like(experience.ref_kl, self.kls[iteration])
        return dataclasses.replace(experience, ref_kl=ref_kl)


@pytest.mark.parametrize(
    ("kls", "num_iterations"),
    [([0, 9, 9, 9, 9, 9], 4), ([0, 9, 9, 1, 9, 9], None), ([9, 1, 9, 9, 9, 1], 5), ([0, 5, 5, 5, 5, 5], None)],
)
def test_three_iterations_in_a_row_above_max_ref_kl_stop_the_run(tmp_path, kls, num_iterations):
    trainer = tiny.trainer(settings(iterations=6, max_ref_kl=5.0))
    trainer.rollout = Far(trainer.rollout, kls)
    stopped = run(trainer, tmp_path)
    if num_iterations is None:
        assert stopped is None
    else:
        assert "above ppo.max_ref_kl = 5 nats per sequence for 3 iterations in a row; raise ppo.kl.coef" in stopped
    assert len(metrics(tmp_path)) == (num_iterations or 6)
    assert saved_iterations(tmp_path)[-1] == (num_iterations or 6)


def test_a_run_that_stopped_itself_does_not_go_on_when_it_is_resumed(tmp_path):
    for _ in range(2):
        trainer = tiny.trainer(settings(iterations=6, max_ref_kl=5.0))
        trainer.rollout = Far(trainer.rollout, [9] * 6)
        assert "max_ref_kl" in run(trainer, tmp_path)
        assert len(metrics(tmp_path)) == 3


# ── kills and what is not finite ─────────────────────────────────────────────────────────────────────────────────────


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.policy.named_parameters()}


def assert_identical(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


VARIANTS = {
    "gae": {},
    "gae with everything": {
        "value": ValueConfig(network="shared", optim=FAST, warmup_iterations=2),
        "kl": ADAPTIVE,
        "target_kl": 0.05,
        "whiten_rewards": True,
        "entropy_coef": 0.01,
    },
    "grpo": {"estimator": "grpo", "group_size": 4},
}


@pytest.mark.thorough
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kill_at", [1, 2, 5])
def test_a_killed_run_goes_on_bit_for_bit(tmp_path, variant, kill_at):
    config = settings(iterations=5, **VARIANTS[variant])

    def made(reward=None):
        trainer = tiny.trainer(config, reward=reward)
        if isinstance(config.kl, AdaptiveKLConfig):
            trainer.kl = AdaptiveKL(config.kl.coef, config.kl.target, config.kl.horizon_episodes)
        return trainer

    whole = made()
    run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(made(FailsAt(kill_at, killed)), tmp_path / "killed")
    assert len(metrics(tmp_path / "killed")) == kill_at - 1
    resumed = made()
    run(resumed, tmp_path / "killed")

    assert_identical(weights(resumed), weights(whole))
    for name, optimizer in whole.optimizers.items():
        assert_identical(resumed.optimizers[name].state(), optimizer.state())
    assert resumed.kl_coef == whole.kl_coef
    assert without_times(metrics(tmp_path / "killed")) == without_times(metrics(tmp_path / "whole"))
    assert samples(tmp_path / "killed") == samples(tmp_path / "whole")


def test_an_iteration_that_was_written_but_not_saved_is_made_again(tmp_path):
    whole, resumed = tiny.trainer(settings()), tiny.trainer(settings())
    run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tiny.trainer(settings()), tmp_path / "killed", progress=tiny.Interrupting("ppo", 3))
    assert len(metrics(tmp_path / "killed")) == 3
    assert saved_iterations(tmp_path / "killed") == [1, 2]
    run(resumed, tmp_path / "killed")
    assert_identical(weights(resumed), weights(whole))
    assert without_times(metrics(tmp_path / "killed")) == without_times(metrics(tmp_path / "whole"))
    assert samples(tmp_path / "killed") == samples(tmp_path / "whole")


def test_a_run_without_a_checkpoint_begins_anew(tmp_path):
    seldom = settings(iterations=4, checkpoint_minutes=60)
    whole = tiny.trainer(seldom)
    run(whole, tmp_path / "whole")
    assert saved_iterations(tmp_path / "whole") == [4]
    with pytest.raises(KeyboardInterrupt):
        run(tiny.trainer(seldom, reward=FailsAt(3, killed)), tmp_path / "killed")
    assert len(metrics(tmp_path / "killed")) == 2
    resumed = tiny.trainer(seldom)
    run(resumed, tmp_path / "killed")
    assert_identical(weights(resumed), weights(whole))
    assert without_times(metrics(tmp_path / "killed")) == without_times(metrics(tmp_path / "whole"))


def test_ctrl_c_finishes_the_iteration_and_saves_it(tmp_path, capsys):
    seldom = settings(iterations=4, checkpoint_minutes=60)
    whole = tiny.trainer(seldom)
    run(whole, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tiny.trainer(seldom, reward=FailsAt(3, interrupted)), tmp_path / "killed")
    assert "finishing this iteration, then saving; once more stops at once" in capsys.readouterr().err
    assert saved_iterations(tmp_path / "killed") == [3]
    resumed = tiny.trainer(seldom)
    run(resumed, tmp_path / "killed")
    assert_identical(weights(resumed), weights(whole))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_run_that_pauses_goes_on_bit_for_bit_with_the_schedules_of_the_whole(tmp_path):
    seldom = settings(iterations=5, checkpoint_minutes=60, clip_schedule="linear")
    assert seldom.optim.schedule == "linear"
    whole = tiny.trainer(seldom)
    run(whole, tmp_path / "whole")
    said = []
    for until in (2, 1, 2, 3):
        with pytest.raises(Paused) as paused:
            run(tiny.trainer(seldom), tmp_path / "paused", until=until)
        said.append((str(paused.value), saved_iterations(tmp_path / "paused")[-1], len(metrics(tmp_path / "paused"))))
    assert said == [
        ("PPO is paused after 2 of 5 iterations", 2, 2),
        ("nothing was left to do: PPO has 2 of 5 iterations already", 2, 2),
        ("nothing was left to do: PPO has 2 of 5 iterations already", 2, 2),
        ("PPO is paused after 3 of 5 iterations", 3, 3),
    ]
    resumed = tiny.trainer(seldom)
    run(resumed, tmp_path / "paused", until=5)
    assert_identical(weights(resumed), weights(whole))
    assert without_times(metrics(tmp_path / "paused")) == without_times(metrics(tmp_path / "whole"))


def test_global_randomness_of_a_users_reward_goes_on_too(tmp_path):
    class Noisy(FailsAt):
        def score(self, episodes):
            return super().score(episodes) + torch.randn(len(episodes))

    def run_with(reward, name):
        torch.manual_seed(5)
        trainer = tiny.trainer(settings(), reward=reward)
        torch.manual_seed(5)
        try:
            run(trainer, tmp_path / name)
        except KeyboardInterrupt:
            return None
        return weights(trainer)

    whole = run_with(Noisy(0, killed), "whole")
    assert run_with(Noisy(3, killed), "killed") is None
    assert_identical(run_with(Noisy(0, killed), "killed"), whole)


def test_a_reward_that_is_nan_stops_the_run_and_leaves_the_last_good_checkpoint(tmp_path):
    class Checked(FailsAt):
        def score(self, episodes):
            return check_scores(super().score(episodes), episodes, source="my reward")

    trainer = tiny.trainer(settings(), reward=Checked(3, lambda scores: scores * math.nan))
    with pytest.raises(RewardError, match="my reward returned nan for response 0"):
        run(trainer, tmp_path)
    assert len(metrics(tmp_path)) == 2
    assert saved_iterations(tmp_path)[-1] == 2


@pytest.mark.parametrize("place", ["old_values", "rewards"])
def test_a_rollout_with_nan_in_it_changes_no_weights_and_leaves_the_last_good_checkpoint(tmp_path, place):
    class Poisoned:
        def __init__(self, rollout):
            self.rollout = rollout

        def state(self):
            return {}

        def load_state(self, tensors):
            pass

        def collect(self, iteration, *, kl_coef, on_finished=None):
            experience = self.rollout.collect(iteration, kl_coef=kl_coef)
            if iteration == 2:
                getattr(experience, place)[0, 0] = math.nan
            return experience

    trainer = tiny.trainer(settings())
    trainer.rollout = Poisoned(trainer.rollout)
    with pytest.raises(TrainingError, match="PPO loss is not finite in iteration 2"):
        run(trainer, tmp_path)
    assert len(metrics(tmp_path)) == 2
    saved = Checkpoints(RunDir(tmp_path).checkpoints / "ppo", warn=pytest.fail).load_newest()
    assert saved.iteration == 2
    assert_identical(trainable_tensors(trainer.policy), subset("policy", saved.tensors))


def test_the_clip_range_may_fall_to_zero_over_the_iterations():
    falling, constant = (tiny.trainer(settings(iterations=4, clip_schedule=how)) for how in ("linear", "constant"))
    ranges = []
    for trainer in (falling, constant):
        for trainer.iteration in range(4):
            ranges.append(trainer.clip_range)
    assert ranges == pytest.approx([0.2, 0.15, 0.1, 0.05, 0.2, 0.2, 0.2, 0.2])


def test_the_responses_that_a_check_refuses_are_there_to_be_looked_at(tmp_path):
    def refuse(experience):
        raise TrainingError("nothing to learn")

    with pytest.raises(TrainingError, match="nothing to learn"):
        run(tiny.trainer(settings(num_samples=3)), tmp_path, check_first=refuse)
    assert [json.loads(line)["iteration"] for line in samples(tmp_path).splitlines()] == [0, 0, 0]
