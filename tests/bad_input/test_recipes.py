"""The user who makes mistakes, at the real command line.

A mistake ends with exit code 1 and one line that says what is wrong and what to do. What can be known beforehand is
known before anything is written; what comes to light in a stage leaves a run that goes on once it is fixed.
: recipes."""

import pytest

from tests.bad_input.desk import Desk, the_error


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("ppo.clip_rang=0.1", "ppo.clip_rang (from the command line): no such setting; did you mean ppo.clip_range?"),
        ('stages=["ppo", "sft"]', "stages ['ppo', 'sft'] are not in order; write ['sft', 'ppo']"),
        ("ppo.minibatch_episodes=3", "ppo: minibatch_episodes 3 does not divide rollout_episodes 4; choose a divisor"),
        ("ppo.estimator=rloo", "ppo: estimator 'rloo' compares responses to one prompt; set group_size to 2 or more"),
        (
            "ppo={missing_eos_score=-1, missing_eos_penalty=0.5}",
            "ppo: missing_eos_score -1 replaces the score from which missing_eos_penalty 0.5 would be subtracted; set",
        ),
        ('stages=["sft", "evaluate"]', 'the stage "evaluate" compares the model before PPO with the one after; add th'),
        ('reward={type="reward"}', 'reward.type = "reward" (from the command line): expected "reward_model", "functi'),
        ("ppo.iterations", "override 'ppo.iterations': expected section.key=value, as in ppo.iterations=2"),
    ],
)
def test_a_setting_that_will_not_do_is_named(desk: Desk, override: str, words: str):
    message = desk.refused(override)
    assert message.startswith("recipe recipe.toml: ")
    assert words in message


def test_all_faults_of_a_recipe_are_named_each_on_a_line(desk: Desk):
    code, output, errors = desk.run("ppo.epochs=0", "ppo.clip_rang=1", "model.device=gpu")
    assert (code, output) == (1, "")
    assert errors.splitlines() == [
        "error: recipe recipe.toml has 3 faults:",
        '  model.device = "gpu" (from the command line): expected "auto", "cpu", "cuda" or "mps"',
        "  ppo.epochs = 0 (from the command line): expected a number above 0",
        "  ppo.clip_rang (from the command line): no such setting; did you mean ppo.clip_range?",
    ]
    assert not desk.run_dir.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            'name = "mine"\nstages = [sft]\n',
            "recipe.toml is not valid TOML: Invalid value (at line 2, column 11); fix it",
        ),
        ('# \nname = "é"\n'.encode("latin-1"), "recipe.toml:2: byte 11 (0xe9) is not UTF-8; save the file as UTF-8"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named_with_its_line(desk: Desk, content: str | bytes, words: str):
    desk.write("recipe.toml", content)
    assert words in desk.refused()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("demmo", "there is neither a recipe nor a file 'demmo'; did you mean demo?; the shipped recipes are "),
        ("no/where.toml", "there is neither a recipe nor a file 'no/where.toml'; the shipped recipes are "),
        (".", ". is a directory; give a recipe's name or a TOML file"),
    ],
)
def test_an_unknown_recipe_is_answered_with_those_that_there_are(desk: Desk, name: str, words: str):
    code, output, errors = desk.call("run", name)
    assert (code, output) == (1, "")
    assert the_error(errors).startswith(words)
    assert not (desk.path / "runs").exists()


def test_wrong_usage_exits_with_2(desk: Desk):
    code, _, errors = desk.call("run", "recipe.toml", "--run_dir", "run")
    assert code == 2
    assert "No such option: --run_dir" in errors


def test_an_entropy_that_no_distribution_over_the_tokens_has_is_refused(desk: Desk):
    message = desk.refused("ppo.entropy_coef=0.001", "ppo.entropy_target=20")
    assert message.startswith("ppo.entropy_target = 20 nats per token is not below ")
    assert "the entropy of chance over the model's" in message
