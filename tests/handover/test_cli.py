"""`rlhfkit export` and `rlhfkit import`, as a person types them."""

import subprocess
import sys

import pytest

from rlhfkit.cli import app as cli
from rlhfkit.config.load import load_recipe
from rlhfkit.handover.export import export_to


@pytest.fixture
def invoke(monkeypatch, capsys):
    """Run the command line → exit code, stdout, stderr."""

    def invoke(*arguments):
        monkeypatch.setattr(sys, "argv", ["rlhfkit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return invoke


def test_export_says_what_was_written_and_what_to_know(invoke, run, tmp_path):
    code, output, errors = invoke("export", run, "--to", "verl", "--directory", tmp_path / "out", "--gpus", "2")
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'out'} holds critic/, launch.sh, policy/, ppo.yaml, prompts.jsonl")
    assert "to know:" in lines
    assert "  - prompts.jsonl has 160 rows of 12 prompts, for all iterations" in lines
    assert lines[-1] == f"next: read it, and then bash {tmp_path / 'out'}/launch.sh"


def test_by_default_it_lies_under_exported(invoke, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    invoke("export", run, "--to", "openrlhf", "--gpus", "2")
    assert (tmp_path / "exported" / "small-openrlhf" / "launch.sh").is_file()


def test_a_refusal_is_an_error_that_names_the_switch(invoke, run, tmp_path):
    arguments = ("export", run, "ppo.target_kl=0.1", "--to", "verl", "--directory", tmp_path / "out", "--gpus", "2")
    code, output, errors = invoke(*arguments)
    assert (code, output) == (1, "")
    assert errors.startswith("error: verl 0.9.1 cannot say 1 thing that small says:\n  ppo.target_kl = 0.1: ")
    assert errors.endswith("--substitute takes what is nearest for each of them\n")
    code, output, _ = invoke(*arguments, "--substitute")
    assert code == 0
    assert "substitutes:\n  - ppo.target_kl = 0.1: " in output


def test_import_prints_a_recipe_and_lists_the_rest_on_stderr(invoke, run, tmp_path):
    export_to("verl", run, directory=tmp_path / "out", gpus=2)
    code, output, errors = invoke("import", "verl", tmp_path / "out" / "ppo.yaml")
    assert code == 0
    (tmp_path / "mine.toml").write_text(output)
    assert load_recipe(tmp_path / "mine.toml").recipe.ppo.kl.coef == 0.07
    assert errors.startswith("not understood (3):\n  - actor_rollout_ref.model.custom_chat_template = ")


def test_import_writes_a_recipe(invoke, tmp_path):
    (tmp_path / "ppo.yaml").write_text("algorithm: {lam: 0.9}\n")
    code, output, _ = invoke("import", "verl", tmp_path / "ppo.yaml", "--to", tmp_path / "mine.toml")
    assert code == 0
    assert output.startswith(f"{tmp_path / 'mine.toml'}; next: ")
    assert load_recipe(tmp_path / "mine.toml").recipe.ppo.gae_lambda == 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("export", "demo"), "--to"),
        (("export", "demo", "--to", "trl"), "'trl' is no tool"),
        (("export", "demo", "--to", "verl"), "run it first"),
        (("import", "verl", "nowhere.yaml"), "cannot be read"),
        (("import", "trl", "nowhere.yaml"), "choose verl"),
    ],
    ids=str,
)
def test_errors_are_one_line(invoke, arguments, words):
    code, _, errors = invoke(*arguments)
    assert code != 0
    assert words in errors
    assert "Traceback" not in errors


def test_a_launch_script_that_is_given_nothing_starts_verl_with_its_own_directory(run, tmp_path):
    export_to("verl", run, directory=tmp_path, gpus=2)
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$HANDOVER" "$@"\n')
    fake.chmod(0o755)
    command = ["bash", "launch.sh", "trainer.nnodes=2"]
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=path)
    words = ["-m", "verl.trainer.main_ppo", "--config-path", str(tmp_path), "--config-name", "ppo", "trainer.nnodes=2"]
    assert ended.stdout.splitlines() == [str(tmp_path), *words]


def test_nemo_rl_is_told_where_its_checkout_is(run, tmp_path):
    export_to("nemo-rl", run, ["ppo.entropy_coef=0"], directory=tmp_path, gpus=2)
    command, path = ["bash", "launch.sh"], {"PATH": "/usr/bin:/bin"}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=path)
    assert ended.returncode != 0
    assert "set NEMO_RL to a checkout of https://github.com/NVIDIA-NeMo/RL" in ended.stderr
    (tmp_path / "uv").write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    (tmp_path / "uv").chmod(0o755)
    (tmp_path / "nemo").mkdir()
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin", "NEMO_RL": str(tmp_path / "nemo")}
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=path)
    written = tmp_path / "ppo.here.yaml"
    assert ended.stdout.splitlines() == [str(tmp_path / "nemo"), "run", "examples/run_ppo.py", "--config", str(written)]
    assert f'defaults: "{tmp_path}/nemo/examples/configs/ppo_math_1B.yaml"\n' in written.read_text()
