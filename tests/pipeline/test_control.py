import io
import json
import re
import sys

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from rlhfkit.cli import app as cli
from rlhfkit.cli.run import closing_words
from rlhfkit.config.control import EnvConfig
from rlhfkit.config.load import list_recipes, load_recipe, recipe_text
from rlhfkit.envs.control import make_env
from rlhfkit.errors import CheckpointError, ConfigError, EnvError, TrainingError
from rlhfkit.evaluation import control as evaluation
from rlhfkit.evaluation.control import episode_returns
from rlhfkit.machine.interrupts import Paused
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.pipeline import control
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.control import load_control_policy
from rlhfkit.pipeline.evaluate import evaluate_again
from rlhfkit.pipeline.workload import Workload
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import ControlEvaluation, read_results
from rlhfkit.training.checkpoint import Checkpoints
from tests.envs import scripted
from tests.pipeline.whole_runs import Talk

SMALL = [
    "num_seeds=2",
    "ppo.env_steps=512",
    "ppo.num_envs=4",
    "ppo.rollout_steps=32",
    "ppo.minibatch_steps=64",
    "ppo.epochs=2",
    "evaluation.num_episodes=3",
]


def run(path, *overrides, recipe="cartpole", fresh=False, progress=None, until=None):
    loaded, workload = load_recipe(recipe, [*SMALL, *overrides]), Workload.pausing(until)
    pipeline.run(loaded, path, fresh=fresh, progress=progress or Progress(quiet=True), workload=workload)
    return RunDir(path)


def command(monkeypatch, capsys, *words):
    """Exit code, and what was printed to stdout and to stderr."""
    monkeypatch.setattr("sys.argv", ["rlhfkit", *words])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def weights(run, seed):
    return load_file(run.model("policy") / f"seed-{seed}" / "policy.safetensors")


CONTROL = [summary.name for summary in list_recipes() if '["control"]' in recipe_text(summary.name)]


@pytest.mark.thorough
@pytest.mark.parametrize("recipe", CONTROL)
def test_a_shipped_control_recipe_runs_from_training_to_report(recipe, tmp_path):
    if recipe == "lunarlander":
        pytest.importorskip("Box2D")
    done = run(tmp_path / "run", "num_seeds=1", "ppo.env_steps=256", "evaluation.num_episodes=1", recipe=recipe)
    rows = [json.loads(line) for line in done.metrics.read_text().splitlines()]
    assert [(row["stage"], row["seed"], row["iteration"]) for row in rows] == [("control", 0, 0), ("control", 0, 1)]
    assert rows[-1]["env_steps"] > 200
    page = done.report.read_text()
    assert "data:image/gif;base64," in page
    assert "<script" not in page
    assert done.episode.read_bytes()[:6] == b"GIF89a"


def test_every_seed_is_trained_evaluated_and_shown(tmp_path):
    done = run(tmp_path / "run", "seed=3")
    evaluation = json.loads(done.evaluation.read_text())
    assert [seed["seed"] for seed in evaluation["seeds"]] == [3, 4]
    assert [seed["num_episodes"] for seed in evaluation["seeds"]] == [3, 3]
    means = [seed["episode_return"]["mean"] for seed in evaluation["seeds"]]
    spread = f"{np.mean(means):.1f} ± {np.std(means, ddof=1):.1f} over 2 seeds"
    assert spread in done.report.read_text()
    assert not torch.equal(weights(done, 3)["head.weight"], weights(done, 4)["head.weight"])


@pytest.mark.thorough
def test_a_killed_run_continues_as_if_nothing_had_happened(tmp_path, monkeypatch):
    settings = ["env.normalize_observations=true", "env.normalize_rewards=true", "ppo.checkpoint_minutes=1e-9"]
    whole = run(tmp_path / "whole", *settings)
    save = Checkpoints.save
    saved = []

    def killed_after_the_sixth(self, *arguments, **rank):
        save(self, *arguments, **rank)
        saved.append(self.directory.name)
        if len(saved) == 6:  # seed 0 has four iterations
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", killed_after_the_sixth)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", *settings)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert saved[-1] == "seed-1"
    resumed = run(tmp_path / "killed", *settings)
    for seed in (0, 1):
        expected, found = weights(whole, seed), weights(resumed, seed)
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert untimed(whole) == untimed(resumed)


@pytest.mark.thorough
def test_a_run_that_pauses_goes_on_exactly(tmp_path):
    whole = run(tmp_path / "whole", "num_seeds=1")
    for until in (1, 3):
        with pytest.raises(Paused, match=f"PPO is paused after {until} of 4 iterations"):
            run(tmp_path / "paused", "num_seeds=1", until=until)
    assert untimed(run(tmp_path / "paused", "num_seeds=1", until=4)) == untimed(whole)
    finished = RunDir(tmp_path / "paused").finished_stages()["control"]
    stopped = read_json(RunDir(tmp_path / "paused").manifest)["stages"]["control"]["stopped_seconds"]
    assert 0 < stopped <= finished["seconds"]


def test_several_seeds_cannot_pause(tmp_path):
    with pytest.raises(ConfigError, match="num_seeds = 2 trains as many policies, one after the other; set num_seeds="):
        run(tmp_path / "run", until=1)
    assert not (tmp_path / "run").exists()


def untimed(run):
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


@pytest.mark.thorough
def test_a_seed_without_a_checkpoint_begins_anew_and_leaves_the_others_alone(tmp_path, monkeypatch):
    whole = run(tmp_path / "whole")
    update = control.ControlPipeline._train

    def killed_in_the_second(self, seed, *, is_first):
        if not is_first:
            self.log.write("control", 0, {"env_steps": 1}, labels={"seed": seed})
            raise KeyboardInterrupt
        update(self, seed, is_first=is_first)

    monkeypatch.setattr(control.ControlPipeline, "_train", killed_in_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed")
    monkeypatch.setattr(control.ControlPipeline, "_train", update)
    assert untimed(run(tmp_path / "killed")) == untimed(whole)


@pytest.mark.thorough
def test_evaluate_measures_again_with_the_same_result(tmp_path):
    done = run(tmp_path / "run")
    before = done.evaluation.read_text()
    done.evaluation.unlink()
    evaluate_again(done.path)
    assert done.evaluation.read_text() == before


@pytest.mark.thorough
def test_a_recorded_episode_has_the_return_that_is_said(tmp_path):
    done = run(tmp_path / "run", "evaluation.num_episodes=5")
    said = json.loads(done.evaluation.read_text())
    returns = [
        episode_return
        for seed in (0, 1)
        for episode_return in episode_returns(
            load_control_policy(done.model("policy") / f"seed-{seed}"),
            EnvConfig(id="CartPole-v1"),
            num_episodes=5,
            seed=seed,
        )
    ]
    assert said["recorded_return"] == sorted(returns)[5]


def test_an_environment_that_cannot_be_drawn_is_not_recorded(tmp_path):
    done = run(tmp_path / "run", f"env.id={scripted.TERMINATING}")
    assert not done.episode.exists()
    assert "data:image/gif" not in done.report.read_text()
    # steps 1 + 2 + 3, and 1 for each of the three actions that is not 0
    assert 6 <= json.loads(done.evaluation.read_text())["seeds"][0]["episode_return"]["mean"] <= 9


class Undrawn(scripted.Counter):
    """It says that it can be drawn, but what it wraps was not told to."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def render(self):
        return None


class Undrawable(Undrawn):
    def render(self):
        raise OSError("no display")


@pytest.mark.parametrize(("make", "why"), [(Undrawn, "render returned None"), (Undrawable, "OSError: no display")])
def test_an_environment_that_fails_to_draw_itself_costs_the_picture_and_not_the_numbers(make, why, tmp_path, capsys):
    env_id = scripted.register(make.__name__, make, ends=3)
    loaded = load_recipe("cartpole", [*SMALL, f"env.id={env_id}", "num_seeds=1"])
    pipeline.run(loaded, tmp_path / "run", progress=Progress())
    assert (tmp_path / "run" / "evaluation.json").exists()
    assert not (tmp_path / "run" / "episode.gif").exists()
    assert why in " ".join(capsys.readouterr().err.split())


class Overheating(scripted.Counter):
    """It fails late, after all that is tried before training."""

    num_steps = 0

    def step(self, action):
        type(self).num_steps += 1
        if self.num_steps > 400:
            raise RuntimeError("motor overheated")
        return super().step(action)


class Unmakeable(scripted.Counter):
    def __init__(self, render_mode=None):
        raise FileNotFoundError("track.csv")


def test_an_error_of_the_environment_is_reported_as_its_own(tmp_path):
    late = scripted.register("Overheating", Overheating, ends=7)
    with pytest.raises(EnvError, match=r"Overheating-v0: step raised RuntimeError: motor overheated \(at .*py:\d+"):
        run(tmp_path / "run", f"env.id={late}")
    with pytest.raises(EnvError, match=r"Unmakeable-v0.*making it raised FileNotFoundError: track.csv; fix"):
        run(tmp_path / "other", f"env.id={scripted.register('Unmakeable', Unmakeable)}")


def test_episodes_that_never_end_are_cut_and_named_and_the_run_is_not_lost(tmp_path, monkeypatch):
    endless = scripted.register("Endless", scripted.Counter)
    monkeypatch.setattr("rlhfkit.evaluation.control.MOST_STEPS", 50)
    talk = Talk()
    run_dir = run(tmp_path / "run", f"env.id={endless}", "env.check=false", progress=talk)
    said = f'env.id = "{endless}": 3 of 3 episodes did not end within 50 steps and were cut there, so their returns are'
    assert sum(warning.startswith(said) for warning in talk.warnings) == 2  # of each of the seeds
    assert read_results(run_dir.evaluation, ControlEvaluation).seeds[0].num_episodes == 3
    with pytest.raises(EnvError, match=r"2 of 2 episodes did not end within 50 steps; set env.max_episode_steps"):
        episode_returns(
            load_control_policy(run_dir.model("policy") / "seed-0"), EnvConfig(id=endless), num_episodes=2, seed=0
        )


def test_an_episode_whose_limit_is_known_is_played_to_it(tmp_path, monkeypatch):
    endless = scripted.register("Endless", scripted.Counter)
    monkeypatch.setattr("rlhfkit.evaluation.control.MOST_STEPS", 50)
    run_dir = run(tmp_path / "run", f"env.id={endless}", "env.check=false", "env.max_episode_steps=70")
    assert 70 * 71 / 2 <= read_results(run_dir.evaluation, ControlEvaluation).seeds[0].lowest <= 70 * 71 / 2 + 70


class Drawn(scripted.Counter):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def render(self):
        return np.full((4, 4, 3), self.steps % 256, dtype=np.uint8)


@pytest.mark.thorough
def test_a_recording_of_a_long_episode_keeps_few_pictures_and_its_length(tmp_path):
    long = scripted.register("Drawn", Drawn, ends=1000)
    path = tmp_path / "run"
    policy = load_control_policy(run(path, f"env.id={long}", "num_seeds=1").model("policy") / "seed-0")
    frames, stride = evaluation._frames(policy, make_env(EnvConfig(id=long), render_mode="rgb_array"), 0, 10_000)
    assert (len(frames), stride) == (251, 4)
    assert [int(frame[0, 0, 0]) for frame in frames[:3]] == [0, 4, 8]
    with Image.open(io.BytesIO(evaluation.record_episode(policy, EnvConfig(id=long), seed=0, index=0))) as gif:
        seconds = sum(gif.seek(n) or gif.info["duration"] for n in range(gif.n_frames)) / 1000
    assert seconds == pytest.approx(1000 / 50, rel=0.02)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        (scripted.DRIFTING, "gave another episode the second time"),
        (scripted.POISONED, "nan"),
        (scripted.register("Endless", scripted.Counter), "1000"),
    ],
)
def test_a_broken_environment_is_named_before_anything_is_written(env_id, message, tmp_path):
    with pytest.raises(EnvError, match=message):
        run(tmp_path / "run", f"env.id={env_id}")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.id=CartPol-v1", r'env.id = "CartPol-v1".*Did you mean: `CartPole`'),
        (
            "env.id=nowhere:Task-v0",
            r"env.id 'nowhere:Task-v0': there is no module 'nowhere'; write `package.module:name`",
        ),
        ("env.id=Race-v0", r'env.id = "Race-v0".*name the module that registers it: env.id = "my_module:Race-v0"'),
        ("env.kwargs.gravity=3", r"env.kwargs = {'gravity': 3}: .*unexpected keyword argument 'gravity'"),
        ("env.id=FrozenLake-v1 env.vectorization=native", "has no vector environment of its own"),
        ("ppo.minibatch_steps=100", "minibatch_steps 100 does not divide num_envs x rollout_steps = 128"),
        ("ppo.env_steps=100", "env_steps 100 is less than one rollout"),
        ("ppo.env_step=100", "did you mean ppo.env_steps?"),
        ("model.path=x", "model.*no such setting; a recipe has name"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(override, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, errors = command(monkeypatch, capsys, "run", "cartpole", *SMALL, *override.split(" "))
    assert code == 1
    assert re.search(message, errors.replace("\n", " "))
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_control_run_writes_no_text(tmp_path, monkeypatch, capsys):
    done = run(tmp_path / "run")
    code, _, errors = command(monkeypatch, capsys, "generate", str(done.path), "--prompt", "x")
    assert code == 1
    assert "whose policy writes no text; measure it with: rlhfkit evaluate" in errors


def test_the_closing_words_say_where_to_look(tmp_path):
    done = run(tmp_path / "run")
    words = closing_words(done)
    assert "episode.gif" in words
    assert "rlhfkit generate" not in words
    assert words.endswith("report.html in a browser")


def test_observations_of_any_kind_are_laid_flat(tmp_path):
    done = run(tmp_path / "run", "env.id=FrozenLake-v1", "num_seeds=1")
    assert weights(done, 0)["trunk.0.weight"].shape[1] == 16


@pytest.mark.thorough
def test_an_episode_may_be_given_a_limit(tmp_path):
    endless = scripted.register("Endless", scripted.Counter)
    for env_id, longest in ((endless, 9), ("CartPole-v1", 12)):
        done = run(tmp_path / str(longest), f"env.id={env_id}", f"env.max_episode_steps={longest}", "num_seeds=1")
        rows = [json.loads(line) for line in done.metrics.read_text().splitlines()]
        assert 8 <= rows[-1]["episode_steps/mean"] <= longest


def test_a_module_in_the_working_directory_that_the_id_names_is_imported(tmp_path, monkeypatch):
    (tmp_path / "my_task.py").write_text(
        "import gymnasium\n"
        "from tests.envs.scripted import Counter\n"
        "gymnasium.register('Mine-v0', entry_point=Counter, kwargs={'ends': 2})\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])  # which a command begins without the working directory
    done = run(tmp_path / "run", "env.id=my_task:Mine-v0", "num_seeds=1")
    assert json.loads(done.evaluation.read_text())["env_id"] == "my_task:Mine-v0"


class Plain(scripted.Counter):
    """Its constructor knows no render_mode, as many of people's own do not, whatever its metadata say."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, ends=3):
        super().__init__(ends=ends)


def test_an_environment_whose_constructor_knows_no_render_mode_is_trained_and_not_drawn(tmp_path):
    done = run(tmp_path / "run", f"env.id={scripted.register('Plain', Plain)}", "num_seeds=1")
    assert json.loads(done.evaluation.read_text())["recorded_return"] is None
    assert not done.episode.exists()


def test_an_id_without_a_version_is_the_newest_as_in_gymnasium(tmp_path):
    with pytest.warns(UserWarning, match="latest"):
        done = run(tmp_path / "run", "env.id=CartPole", "num_seeds=1")
    assert done.evaluation.exists()


class Vectors(gymnasium.vector.VectorEnv):
    """A vector environment of one's own that knows neither time limits nor how it would be put back."""

    def __init__(self, num_envs=1):
        raise AssertionError("not asked for")


@pytest.mark.thorough
def test_only_gymnasiums_own_vector_environments_are_taken_unasked(tmp_path):
    gymnasium.register("test/Vectors-v0", entry_point=scripted.Counter, vector_entry_point=Vectors, kwargs={"ends": 3})
    done = run(tmp_path / "run", "env.id=test/Vectors-v0", "env.max_episode_steps=2", "num_seeds=1")
    assert done.evaluation.exists()


@pytest.mark.thorough
@pytest.mark.parametrize(
    "change",
    [
        "ppo.optim.learning_rate=0.0005",
        "env.max_episode_steps=50",
        "network.hidden=[8]",
        "evaluation.num_episodes=4",
        "num_seeds=1",
        "seed=1",
    ],
)
def test_a_finished_run_refuses_other_settings_and_keeps_its_own(tmp_path, change):
    done = run(tmp_path / "run", "num_seeds=2")
    before = done.config.read_text()
    name = change.partition("=")[0]
    with pytest.raises(CheckpointError, match=rf"holds a run of other settings \({re.escape(name)}.*--fresh"):
        run(tmp_path / "run", change)
    assert done.config.read_text() == before


@pytest.mark.thorough
def test_what_changes_no_result_may_change(tmp_path):
    run(tmp_path / "run", "num_seeds=1", "ppo.checkpoint_minutes=5")
    run(tmp_path / "run", "num_seeds=1", "ppo.checkpoint_minutes=7", "watchdog.action=stop")


@pytest.mark.thorough
def test_a_policy_is_loaded_from_the_run_and_acts_in_the_environment(tmp_path):
    done = run(tmp_path / "run", "env.id=Pendulum-v1", "env.normalize_observations=true", "seed=3")
    env = gymnasium.make("Pendulum-v1")
    observation, _ = env.reset(seed=0)
    of_run = load_control_policy(done.path)
    for directory, seed in ((done.path, 3), (done.model("policy"), 3), (done.model("policy") / "seed-3", None)):
        assert load_control_policy(directory, seed=seed).predict(observation) == of_run.predict(observation)
    assert load_control_policy(str(done.path), seed=4).predict(observation) != of_run.predict(observation)
    assert env.action_space.contains(of_run.predict(observation))
    with pytest.raises(CheckpointError, match=r"holds policies of the seeds \[3, 4\]; expected one of seed 0"):
        load_control_policy(done.path, seed=0)
    with pytest.raises(CheckpointError, match=r"holds no control policy; expected policy\.json and"):
        load_control_policy(tmp_path)


def test_predict_in_the_environment_earns_what_the_evaluation_says(tmp_path):
    done = run(tmp_path / "run", "num_seeds=1", "evaluation.num_episodes=2")
    policy, env, returns = load_control_policy(done.path), gymnasium.make("CartPole-v1"), []
    for index in range(2):
        observation, _ = env.reset(seed=derive_seed(0, "evaluation", index))
        ended, total = False, 0.0
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(policy.predict(observation))
            ended, total = terminated or truncated, total + reward
        returns.append(total)
    assert json.loads(done.evaluation.read_text())["seeds"][0]["episode_return"]["mean"] == np.mean(returns)


class Remembering(scripted.Counter):
    """Observes how many episodes it has had, as a physical world may that is not cleared."""

    num_episodes = 0

    def reset(self, *, seed=None, options=None):
        self.num_episodes += 1
        return super().reset(seed=seed)

    def _observation(self):
        return super()._observation() + np.float32(self.num_episodes)


@pytest.mark.thorough
def test_a_killed_run_goes_on_exactly_where_episodes_depend_on_those_before(tmp_path, monkeypatch):
    settings = [f"env.id={scripted.register('Remembering', Remembering, ends=7)}", "num_seeds=1"]
    settings += ["ppo.checkpoint_minutes=1e-9"]
    whole = run(tmp_path / "whole", *settings)
    save, saved = Checkpoints.save, []

    def killed_after_the_second(self, *arguments, **rank):
        save(self, *arguments, **rank)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", killed_after_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", *settings)
    monkeypatch.setattr(Checkpoints, "save", save)
    resumed = run(tmp_path / "killed", *settings)
    assert all(torch.equal(weights(resumed, 0)[name], weight) for name, weight in weights(whole, 0).items())
    assert untimed(resumed) == untimed(whole)


def test_diverging_training_is_stopped(tmp_path):
    with pytest.raises(TrainingError, match="finite"):
        run(tmp_path / "run", "ppo.optim.learning_rate=1e30", "ppo.optim.max_grad_norm=1e30")


@pytest.mark.slow
def test_cartpole_is_solved_by_every_seed(tmp_path):
    pipeline.run(load_recipe("cartpole"), tmp_path / "run", progress=Progress(quiet=True))
    evaluation = json.loads(RunDir(tmp_path / "run").evaluation.read_text())
    assert [seed["episode_return"]["mean"] >= 475 for seed in evaluation["seeds"]] == [True] * 5
