"""Recipes whose PPO acts in an environment: guessing, recorded dialogues, and the user's own."""

import json
import sys

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import ConfigError, DataError, EnvError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import evaluate as evaluation
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.evaluate import evaluate_again
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import Evaluation, read_results
from tests.pipeline.whole_runs import Talk
from tests.tiny import Directory
from tests.training import tiny

SMALL = (
    "data.texts.num_rows=256",
    "model.num_layers=1",
    "model.width=16",
    "model.num_heads=2",
    "pretrain.epochs=3",
    "pretrain.optim.learning_rate=1e-2",
    "pretrain.minibatch_sequences=16",
    "ppo.iterations=2",
    "ppo.rollout_episodes=32",
    "ppo.minibatch_episodes=16",
    "ppo.epochs=1",
    "ppo.checkpoint_minutes=1e-9",
    "ppo.min_eos_rate=0",
    "evaluation.num_prompts=12",
)

WORLDS = """
from rlhfkit.envs.text import TextStep

class Vowels:
    "Pays for vowels, and never ends by itself."
    def reset(self, seed):
        return "abc"[seed % 3]
    def step(self, response):
        return TextStep(".", sum(letter in "aeiou" for letter in response) + 0.01 * len(response), False)

class Long(Vowels):
    def reset(self, seed):
        return "a b " * 30

class Broken(Vowels):
    def step(self, response):
        return "a", 1.0, False

def long(prompts, responses):
    return [float(len(response)) for response in responses]
"""

DIALOGUES = [
    {"messages": [{"role": "user", "content": f"Hi {number}"}, {"role": "assistant", "content": "Yes?"}] * turns
     + [{"role": "user", "content": "Bye"}]}
    for number, turns in ((1, 0), (2, 1), (3, 2), (4, 1))
]  # fmt: skip


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A working directory with environments and dialogues."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in (pipeline, evaluation):
        monkeypatch.setattr(module, "report_or_warn", lambda run_dir, *_, **__: run_dir.report.touch())
    (tmp_path / "my_worlds.py").write_text(WORLDS)
    (tmp_path / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES))
    yield tmp_path
    sys.modules.pop("my_worlds", None)


def run(directory, *overrides, progress=None):
    loaded = load_recipe("guess", [*SMALL, *overrides])
    pipeline.run(loaded, directory, progress=progress or Progress(quiet=True))
    return RunDir(directory)


def ppo_metrics(run_dir):
    rows = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if not name.startswith("time/")}
        for row in rows
        if row["stage"] == "ppo"
    ]


# ── guess ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_the_guess_recipe_runs_two_iterations_at_reduced_size(tmp_path):
    run_dir = run(tmp_path / "guess")
    assert tuple(run_dir.finished_stages()) == ("pretrain", "ppo", "evaluate")
    assert [row["iteration"] for row in ppo_metrics(run_dir)] == [0, 1]
    assert all(1 <= row["episode/turns"] <= 3 for row in ppo_metrics(run_dir))
    evaluation = read_results(run_dir.evaluation, Evaluation)
    assert (evaluation.num_prompts, evaluation.in_environment, evaluation.reward_is_truth) == (12, True, True)
    policy = evaluation.models["policy"]
    assert policy.score.mean == pytest.approx(policy.won_share.mean)  # a game pays 1 where it is won
    assert policy.judge is None
    assert "12 held-out episodes, each played" in run_dir.report.read_text()
    assert "Return" in run_dir.report.read_text()
    samples = [json.loads(line) for line in run_dir.samples.read_text().splitlines()]
    assert all(sample["prompt"] == "A number from 1 to 7. Guess:" for sample in samples)


@pytest.mark.thorough
def test_a_run_in_an_environment_that_is_killed_ends_with_the_same_bits(desk):
    whole = run(desk / "whole")
    for name, completed in (("ppo", 1), ("evaluate", 3)):
        with pytest.raises(KeyboardInterrupt):
            run(desk / "killed", progress=tiny.Interrupting(name, completed))
    killed = run(desk / "killed")
    assert ppo_metrics(killed) == ppo_metrics(whole)
    for name in ("samples", "evaluation"):
        assert getattr(killed, name).read_text() == getattr(whole, name).read_text()
    weights = "model.safetensors"
    assert (killed.model("policy") / weights).read_bytes() == (whole.model("policy") / weights).read_bytes()


@pytest.mark.thorough
def test_evaluating_again_plays_the_same_episodes(desk):
    run_dir = run(desk / "run")
    before = run_dir.evaluation.read_text()
    run_dir.evaluation.unlink()
    evaluate_again(run_dir.path)
    assert run_dir.evaluation.read_text() == before


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_reaches_the_known_optimum_of_the_guessing_game(seed, tmp_path):
    loaded = load_recipe("guess", [f"seed={seed}"])
    pipeline.run(loaded, tmp_path / "guess", progress=Progress(quiet=True))
    evaluation = read_results(RunDir(tmp_path / "guess").evaluation, Evaluation)
    # Blind guessing wins 1 - (6/7)^3 = 0.37 of the games, and the best strategy all of them.
    assert evaluation.models["sft"].score.mean == pytest.approx(0.37, abs=0.1)
    assert evaluation.models["policy"].score.mean >= 0.98


# ── recorded dialogues ───────────────────────────────────────────────────────────────────────────────────────────────

REPLAY = (
    'env={type="replay", max_turns=2}',
    'reward={type="function", function="my_worlds:long"}',
    'evaluation.judge={type="lexicon", path="words.txt"}',
    'data.prompts={path="dialogues.jsonl"}',
    'data.test_prompts={path="dialogues.jsonl"}',
    "rollout.stop_tokens=[]",
    "model.context_tokens=128",
)


@pytest.mark.thorough
def test_recorded_dialogues_are_answered_turn_by_turn_and_scored_by_the_reward(desk):
    (desk / "words.txt").write_text("yes\t1\n")
    run_dir = run(desk / "run", *REPLAY, "evaluation.num_prompts=4")
    evaluation = read_results(run_dir.evaluation, Evaluation)
    assert not evaluation.reward_is_truth
    assert evaluation.models["policy"].turns == (1 + 2 + 2 + 2) / 4  # each of the dialogues once
    assert evaluation.models["policy"].judge is not None
    assert evaluation.win_rate.judge is not None
    assert {sample.prompt.strip().splitlines()[0] for sample in evaluation.samples} == {
        "Human: Bye",
        "Human: Hi 2",
        "Human: Hi 3",
        "Human: Hi 4",
    }
    longer = next(sample for sample in evaluation.samples if "Hi 2" in sample.prompt)
    assert "Human: Bye" in longer.policy
    assert "Yes?" not in longer.policy


def test_recorded_dialogues_need_conversations(desk):
    (desk / "words.txt").write_text("yes\t1\n")
    (desk / "plain.jsonl").write_text('{"prompt": "Once upon"}\n')
    with pytest.raises(DataError, match=r'^env\.type = "replay" needs conversations, and plain\.jsonl:1 has none'):
        run(desk / "run", *REPLAY, 'data.prompts={path="plain.jsonl"}')
    assert not (desk / "run").exists()


# ── an environment of one's own ──────────────────────────────────────────────────────────────────────────────────────


def own(name: str, *more: str) -> tuple[str, ...]:
    return (f'env={{type="function", function="my_worlds:{name}", max_turns=2}}', "rollout.stop_tokens=[]", *more)


@pytest.mark.thorough
def test_an_environment_of_ones_own_is_cut_off_at_its_limit(desk):
    run_dir = run(desk / "run", *own("Vowels"))
    assert [row["episode/truncated_share"] for row in ppo_metrics(run_dir)] == [1.0, 1.0]
    assert [row["episode/turns"] for row in ppo_metrics(run_dir)] == [2.0, 2.0]


@pytest.mark.thorough
def test_prompts_of_an_environment_that_are_cut_are_reported(desk):
    talk = Talk()
    run_dir = run(desk / "run", *own("Long"), "data.max_prompt_tokens=10", progress=talk)
    assert [row["episode/cut_prompt_share"] for row in ppo_metrics(run_dir)] == [1.0, 1.0]
    said = [note.partition(" tokens")[0] for note in talk.notes if note.startswith("env: ")]
    assert said == [f"env: {num} of {num} prompts were cut to 10" for num in (32, 12)]  # an iteration, the evaluation


@pytest.mark.thorough
def test_a_reward_may_be_paid_on_top(desk):
    add = 'reward={type="function", function="my_worlds:long"}'
    without = run(desk / "without", *own("Vowels"), 'stages=["pretrain", "ppo"]')
    both = run(
        desk / "both",
        'env={type="function", function="my_worlds:Vowels", max_turns=2, add_reward=true}',
        "rollout.stop_tokens=[]",
        'stages=["pretrain", "ppo"]',
        add,
    )
    assert ppo_metrics(both)[0]["score/mean"] > ppo_metrics(without)[0]["score/mean"] + 1


@pytest.mark.thorough
def test_an_environment_that_is_never_the_same_may_go_untried(desk):
    dice = """
import itertools
from my_worlds import Vowels

NUMBERS = itertools.count()

class Dice(Vowels):
    def reset(self, seed):
        return f"{next(NUMBERS)}"
"""
    (desk / "my_dice.py").write_text(dice)
    env = 'env={{type="function", function="my_dice:Dice", max_turns=2, check={}}}'
    try:
        with pytest.raises(EnvError, match="seed 0 and the same responses gave another episode"):
            run(desk / "run", env.format("true"), "rollout.stop_tokens=[]")
        run(desk / "run", env.format("false"), "rollout.stop_tokens=[]", 'stages=["pretrain", "ppo"]')
    finally:
        sys.modules.pop("my_dice", None)


def test_a_broken_environment_is_refused_before_anything_is_trained(desk):
    with pytest.raises(
        EnvError, match=r'env\.type = "function": Broken: step returned \(.*\) \(tuple\); expected a TextStep'
    ):
        run(desk / "run", *own("Broken"))
    assert not (desk / "run").exists()


# ── faults of a recipe ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ('stages=["pretrain"]',),
            r'env\.type = "guess" is what PPO acts in; add the stage "ppo", or leave \[env\] out',
        ),
        (("env.highest=9",), r"env and data\.texts differ, \(9, 3\) and \(7, 3\); set highest and max_guesses alike"),
        (
            ('evaluation.metric="translation"',),
            r'evaluation\.metric = "translation" is of single responses; leave it out, or \[env\]',
        ),
        (('env={type="replay"}',), r'the stage "ppo" reads data\.prompts, which is not set; add \[data\.prompts\]'),
        (('env={type="chess"}',), r'env\.type = "chess".*: expected "guess", "replay" or "function"'),
        (('env={type="function", function="mine"}',), r"env\.function = \"mine\".*package\.module:factory"),
        (('data.prompts={type="guess", num_rows=3}',), r"data\.prompts\.type"),
    ],
)
def test_a_recipe_that_does_not_fit_its_environment_is_reported(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_recipe("guess", overrides)


def test_an_environment_that_pays_by_itself_needs_neither_prompts_nor_reward_nor_judge():
    recipe = load_recipe("guess").recipe
    assert recipe.data.prompts is None
    assert "judge" not in recipe.stages
    assert (recipe.uses_prompts, recipe.uses_reward) == (False, False)


@pytest.mark.thorough
def test_the_dialogue_recipe_runs_two_iterations_on_a_tiny_model(desk, directory_of: Directory):
    def transcript(number: int, last: str) -> str:
        return f"\n\nHuman: a{number}\n\nAssistant: b\n\nHuman: c\n\nAssistant: {last}"

    rows = [{"chosen": transcript(n, "good"), "rejected": transcript(n, "bad")} for n in range(40)]
    (desk / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = ("demonstrations", "prompts", "test_prompts", "preferences", "test_preferences", "judge_preferences")
    loaded = load_recipe(
        "dialogue",
        [
            f"model.path={directory_of('llama')}",
            'model.dtype="float32"',
            "data.max_prompt_tokens=48",
            *(f"data.{table}.path=test.jsonl" for table in tables),
            *(f'data.{table}.rows=":20"' for table in tables if "test" not in table),
            *(f'data.{table}.rows="-8:"' for table in tables if "test" in table),
            "reward_model.normalization_responses=8",
            "rollout.max_response_tokens=2",
            "ppo.iterations=2",
            "ppo.rollout_episodes=4",
            "ppo.minibatch_episodes=4",
            "ppo.min_eos_rate=0",
            "ppo.value.warmup_iterations=1",
            "evaluation.num_prompts=6",
        ],
    )
    pipeline.run(loaded, desk / "run", progress=Progress(quiet=True))
    run_dir = RunDir(desk / "run")
    assert tuple(run_dir.finished_stages()) == loaded.recipe.stages
    assert [row["iteration"] for row in ppo_metrics(run_dir)] == [0, 1]
    evaluation = read_results(run_dir.evaluation, Evaluation)
    assert (evaluation.num_prompts, evaluation.judge_name) == (6, "second reward model")
    assert evaluation.win_rate.judge is not None
