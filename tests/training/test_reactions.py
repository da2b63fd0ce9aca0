"""The rules while a run trains: they warn once, do what the recipe lets them, and a killed run still ends the same."""

import json

import pytest
import torch

from rlhfkit.config.control import ControlWatchConfig
from rlhfkit.config.ppo import AdaptiveKLConfig, FixedKLConfig
from rlhfkit.config.training import OptimConfig, RewardModelConfig
from rlhfkit.config.watch import WatchConfig
from rlhfkit.errors import ConfigError
from rlhfkit.machine.progress import Progress
from rlhfkit.ppo import AdaptiveKL
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.ppo import train_ppo
from rlhfkit.training.reward_model import EncodedPair, train_reward_model
from tests.training import tiny
from tests.training.runs import four_letters, ppo_config, ppo_trainer, rate, rows, train


def length(text):
    return len(text) / 10


def growing(*reaction, iterations=20, schedule="linear", ema=None, **watch):
    """A trainer whose responses grow: `length_runaway` is named, and reacts."""
    settings = {"best_metric": "-ref_kl/sequence", "best_every_iterations": 2, "patience_iterations": 4, **watch}
    config = ppo_config(
        iterations=iterations,
        rollout_episodes=16,
        minibatch_episodes=8,
        optim=OptimConfig(learning_rate=3e-3, schedule=schedule),
        kl=FixedKLConfig(coef=0.0),
        ema=ema,
        watch=WatchConfig(length_runaway=reaction, eos_lost="off", **settings),
    )
    return ppo_trainer(config, length, max_response_tokens=32)


def logged(run, name):
    """Iteration → value, of a metric that few iterations have."""
    return {row["iteration"]: row[name] for row in rows(run) if name in row}


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.policy.named_parameters()}


def saved(run):
    return sorted(int(path.name) for path in (run.checkpoints / "ppo").iterdir())


# ── warnings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rule_warns_once_with_its_numbers_and_the_setting(tmp_path):
    run, said = train(growing("warn"), tmp_path)
    (warning,) = said
    (iteration,) = logged(run, "watch/length_runaway")
    assert warning.startswith(f"iteration {iteration}: Responses grow and grow (length_runaway): response_tokens/mean ")
    assert "if that is not meant, set ppo.length_penalty from 0 to 0.05, ppo.length_penalty_tokens to 13" in warning
    assert len(rows(run)) == 20


@pytest.mark.thorough
def test_a_rule_that_is_off_says_nothing_and_a_warning_changes_nothing(tmp_path):
    silent, said = train(growing(), tmp_path / "silent")
    assert said == []
    assert not any(name.startswith("watch/") for row in rows(silent) for name in row)
    run, _ = train(growing("warn"), tmp_path / "warned")
    without = [{name: value for name, value in row.items() if not name.startswith("watch/")} for row in rows(run)]
    assert without == rows(silent)


@pytest.mark.thorough
def test_a_resumed_run_does_not_warn_again(tmp_path):
    _, said = train(growing("warn"), tmp_path)
    assert len(said) == 1
    again = growing("warn")
    again.config = again.config.model_copy(update={"iterations": 24})
    run, said = train(again, tmp_path)
    assert (len(rows(run)), said) == (24, [])


def test_a_supervised_stage_warns_too(tmp_path):
    pairs = [EncodedPair([2 + row % 12, 1], [2 + (5 * row + 3) % 12, 1], 0.0) for row in range(40)]
    config = RewardModelConfig(epochs=20, minibatch_pairs=10, validation_share=0.0, optim=rate(1e-9))
    said = []
    progress = Progress(quiet=True)
    progress.warn = said.append
    run = RunDir(tmp_path)
    with RunLog(run) as log:
        train_reward_model(
            tiny.reward_model(),
            pairs,
            config,
            stage="reward_model",
            seed=0,
            log=log,
            checkpoints=Checkpoints(tmp_path / "checkpoints", warn=pytest.fail),
            progress=progress,
        )
    assert len(said) == 1
    assert said[0].startswith("iteration 71: The reward model is still a coin (not_learning): loss is ")


# ── what a rule may do ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_a_rule_lowers_the_learning_rates_and_waits_before_it_does_so_again(tmp_path):
    run, said = train(growing("lower_learning_rate", patience_iterations=4, max_reactions=2), tmp_path)
    factors = logged(run, "watch/learning_rate_factor")
    (first, half), (second, quarter) = factors.items()
    assert (half, quarter) == (0.5, 0.25)
    assert second == first + 4
    # The schedule falls in a straight line: 40 updates, two epochs of two minibatches in an iteration.
    expected = {True: 1.0, False: 0.5}
    for row in rows(run):
        factor = expected[row["iteration"] <= first] * (0.5 if row["iteration"] > second else 1.0)
        last_update = 4 * row["iteration"] + 3
        assert row["policy/learning_rate"] == pytest.approx(3e-3 * (1 - last_update / 80) * factor, rel=1e-4)
        assert row["value/learning_rate"] == pytest.approx(1e-2 * (1 - last_update / 80) * factor, rel=1e-4)
    assert len(said) == 2
    assert said[0].endswith("the learning rates are 0.5 of the recipe's from here on")


@pytest.mark.thorough
def test_a_rule_raises_the_kl_coefficient_from_nothing_to_the_least_one_and_then_by_its_factor(tmp_path):
    run, _ = train(growing("raise_kl_coef", kl_coef_factor=3.0, least_kl_coef=0.02), tmp_path)
    changes = logged(run, "watch/kl_coef")
    assert list(changes.values()) == pytest.approx([0.02, 0.06, 0.18][: len(changes)])
    first = next(iter(changes))
    coefs = [row["kl_coef"] for row in rows(run)]
    assert set(coefs[: first + 1]) == {0.0}
    assert coefs[first + 1] == pytest.approx(0.02)


@pytest.mark.thorough
def test_an_adaptive_coefficient_goes_on_from_what_the_rule_made_of_it(tmp_path):
    trainer = growing("raise_kl_coef", max_reactions=1)
    adaptive = AdaptiveKLConfig(type="adaptive", coef=0.001, target=6.0, horizon_episodes=10_000)
    trainer.config = trainer.config.model_copy(update={"kl": adaptive})
    trainer.kl, trainer.kl_coef = AdaptiveKL(0.001, 6.0, 10_000), 0.001
    run, _ = train(trainer, tmp_path)
    ((iteration, coef),) = logged(run, "watch/kl_coef").items()
    assert coef == 0.05
    assert rows(run)[iteration + 1]["kl_coef"] == 0.05
    assert rows(run)[iteration + 2]["kl_coef"] == pytest.approx(0.05 * (1 + 0.2 * 16 / 10_000), rel=1e-4)


def test_a_rule_stops_the_stage_and_it_stays_stopped(tmp_path):
    run, said = train(growing("stop"), tmp_path)
    (iteration,) = logged(run, "watch/stopped")
    assert len(rows(run)) == iteration + 1 < 20
    reason = run.finished_stages()["ppo"]["stopped"]
    assert reason.startswith(f"ppo.watch.length_runaway says stop in iteration {iteration}")
    assert said[0].endswith("the stage ends here")
    assert saved(run)[-1] == iteration + 1
    again, said = train(growing("stop"), tmp_path)
    assert (len(rows(again)), said) == (iteration + 1, [])


@pytest.mark.thorough
def test_a_rule_rolls_back_to_the_best_checkpoint(tmp_path):
    # Nearest to the reference is best, so that the best one is the first that is looked at: after two iterations.
    trainer = growing("roll_back", "stop")
    run, said = train(trainer, tmp_path)
    (iteration,) = logged(run, "watch/rolled_back_to")
    assert logged(run, "watch/rolled_back_to") == {iteration: 1.0}
    assert said[0].endswith("the weights are those after iteration 1 again, the best so far; the stage ends here")
    assert 2 in saved(run)

    short = growing(ema=0.9)
    short.config = short.config.model_copy(update={"iterations": 2})
    train(short, tmp_path / "short")  # of the same schedule, as the optimizers were made for 20
    for name, expected in weights(short).items():
        assert torch.equal(weights(trainer)[name], expected), name
    for name, optimizer in short.optimizers.items():
        state, expected = trainer.optimizers[name].state(), optimizer.state()
        assert int(state.pop("updates_done")) == 4 * (iteration + 1)  # time goes on, and with it the schedule
        assert int(expected.pop("updates_done")) == 8
        assert all(torch.equal(state[key], expected[key]) for key in expected)

    averaged = growing("roll_back", ema=0.9)
    averaged.config = averaged.config.model_copy(update={"iterations": iteration + 1})
    train(averaged, tmp_path / "averaged")  # which ends where it has rolled back
    for name, expected in short.ema.averages.items():
        assert torch.equal(averaged.ema.averages[name], expected), name


@pytest.mark.thorough
def test_what_was_taken_back_no_longer_counts_for_the_rules(tmp_path):
    run, said = train(growing("roll_back", "raise_kl_coef", least_kl_coef=2.0), tmp_path)
    (iteration,) = logged(run, "watch/rolled_back_to")  # the leash holds, so that it is once
    lengths = [row["response_tokens/mean"] for row in rows(run)]
    assert lengths[iteration + 1] < 0.7 * lengths[iteration]
    assert len(said) == 1


@pytest.mark.thorough
def test_without_a_checkpoint_to_go_back_to_the_rule_says_so(tmp_path):
    trainer = growing("roll_back", best_every_iterations=1000)
    run, said = train(trainer, tmp_path)
    assert said[0].endswith("there is no checkpoint yet to go back to")
    assert not logged(run, "watch/rolled_back_to")


@pytest.mark.thorough
def test_a_damaged_best_checkpoint_is_not_gone_back_to(tmp_path):
    warned = []
    trainer = growing("roll_back", iterations=16)

    class Damaging(Checkpoints):
        def load_best(self):
            self.wait()
            for path in self.directory.glob("*/tensors.safetensors"):
                path.write_bytes(path.read_bytes()[:-1])
            return super().load_best()

    checkpoints = Damaging(tmp_path / "checkpoints", warn=warned.append)
    with RunLog(RunDir(tmp_path)) as log, Progress(quiet=True).stage("ppo", total=1, unit="iteration") as stage:
        said = []
        stage.warn = said.append
        train_ppo(trainer, log=log, checkpoints=checkpoints, progress=stage)
    assert any("cannot be gone back to" in line for line in said)
    assert any("do not match their checksums" in line for line in warned)


def test_a_rule_whose_trouble_follows_from_another_leaves_it_to_the_other(tmp_path):
    watch = WatchConfig(approx_kl_high="warn", clip_fraction_high="stop", best_every_iterations=1)
    config = ppo_config(iterations=6, optim=rate(0.3), watch=watch)
    run, _ = train(ppo_trainer(config), tmp_path)
    assert len(rows(run)) == 6


@pytest.mark.thorough
def test_the_best_checkpoint_is_kept_only_where_a_rule_may_go_back_to_it(tmp_path):
    run, _ = train(ppo_trainer(ppo_config(iterations=10)), tmp_path / "none")
    assert saved(run) == [10]
    watch = WatchConfig(reward_falling=["roll_back"], best_every_iterations=3)
    run, _ = train(ppo_trainer(ppo_config(iterations=10, watch=watch)), tmp_path / "best")
    worth = {row["iteration"]: row["score/objective"] for row in rows(run) if row["iteration"] in (3, 6, 9)}
    best = max(worth, key=worth.get)
    record = json.loads((run.checkpoints / "ppo" / f"{best:08d}" / "state.json").read_text())
    assert record["best"] == pytest.approx(worth[best], rel=1e-5)


# ── killed and resumed ───────────────────────────────────────────────────────────────────────────────────────────────


class KilledAt(tiny.Scripted):
    """Fails at call number `call`."""

    def __init__(self, function, call):
        super().__init__(function)
        self.call = call

    def score(self, episodes):
        scores = super().score(episodes)
        if self.num_calls == self.call:
            raise KeyboardInterrupt
        return scores


def often(checkpoint_minutes=60.0):
    """A trainer that is rolled back again and again, as what the rule changes is too little."""
    trainer = growing(
        "roll_back",
        "lower_learning_rate",
        "raise_kl_coef",
        learning_rate_factor=0.9,
        least_kl_coef=0.001,
        patience_iterations=3,
        iterations=26,
        schedule="constant",
    )
    trainer.config = trainer.config.model_copy(update={"checkpoint_minutes": checkpoint_minutes})
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody kills, and its trainer."""
    trainer = often()
    run, _ = train(trainer, tmp_path_factory.mktemp("runs") / "whole")
    return run, trainer


@pytest.mark.thorough
def test_a_run_may_be_rolled_back_more_than_once(whole):
    run, trainer = whole
    assert list(logged(run, "watch/rolled_back_to").values()) == [1.0, 1.0]
    assert trainer.watch.learning_rate_factor == pytest.approx(0.81)


@pytest.mark.thorough
@pytest.mark.parametrize("checkpoint_minutes", [1e-9, 60.0])
@pytest.mark.parametrize("kill_at", [4, 10, 11, 13, 19])
def test_a_killed_run_ends_bit_for_bit_as_if_it_had_not_been(tmp_path, whole, kill_at, checkpoint_minutes):
    expected, unbroken = whole
    killed = often(checkpoint_minutes)
    killed.rollout.reward = KilledAt(length, kill_at)
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path)
    resumed = often(checkpoint_minutes)
    run, _ = train(resumed, tmp_path)
    assert rows(run) == rows(expected)
    assert run.samples.read_text() == expected.samples.read_text()
    assert resumed.watch.state() == unbroken.watch.state()
    assert resumed.kl_coef == unbroken.kl_coef
    for name, tensor in weights(unbroken).items():
        assert torch.equal(weights(resumed)[name], tensor), name
    for name, optimizer in unbroken.optimizers.items():
        state = resumed.optimizers[name].state()
        assert all(torch.equal(state[key], value) for key, value in optimizer.state().items())


# ── settings ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_reaction_is_one_word_or_several():
    watch = WatchConfig(kl_exploding="stop", eos_lost=["raise_kl_coef", "roll_back"], reward_flat="off")
    assert watch.reaction("kl_exploding") == ("stop",)
    assert watch.reaction("eos_lost") == ("raise_kl_coef", "roll_back")
    assert watch.reaction("reward_flat") == ()
    assert watch.reaction("kl_negative") == ("warn",)
    assert watch.may_roll_back
    assert not WatchConfig().may_roll_back


def test_an_unknown_reaction_and_an_unknown_rule_are_refused():
    with pytest.raises(ConfigError, match="lower_learning_rate"):
        WatchConfig(kl_exploding="panic")
    with pytest.raises(ConfigError, match="kl_explodes"):
        WatchConfig(kl_explodes="stop")


def test_a_control_task_has_no_kl_coefficient_to_raise():
    with pytest.raises(ConfigError, match="has no reference, and so no KL coefficient"):
        ControlWatchConfig(reward_falling="raise_kl_coef")


def test_a_best_metric_that_is_none_is_refused_in_the_first_iteration(tmp_path):
    with pytest.raises(ConfigError, match=r"'scoer/mean' is no metric of a rollout; choose one of .*score/mean"):
        train(growing("roll_back", best_metric="scoer/mean"), tmp_path)


def test_every_rule_of_ppo_and_of_control_has_its_setting():
    from rlhfkit.diagnosis import CONTROL_RULES, PPO_RULES

    assert {rule.name for rule in PPO_RULES} <= WatchConfig.model_fields.keys()
    assert {rule.name for rule in CONTROL_RULES} <= ControlWatchConfig.model_fields.keys()
    for rule in PPO_RULES:
        assert str(WatchConfig.model_fields[rule.name].description).startswith(rule.title.split(",")[0][:12])


@pytest.mark.thorough
def test_a_healthy_run_with_every_reaction_ends_like_one_without(tmp_path):
    everything = dict.fromkeys(("kl_exploding", "reward_falling", "eos_lost", "reward_flat"), ("roll_back", "stop"))
    config = ppo_config(watch=WatchConfig(**everything))
    watched, said = train(ppo_trainer(config, four_letters), tmp_path / "watched")
    plain, _ = train(ppo_trainer(ppo_config(), four_letters), tmp_path / "plain")
    assert said == []
    assert rows(watched) == rows(plain)
