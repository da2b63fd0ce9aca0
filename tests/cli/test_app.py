"""The command line: exit codes, one line for an error, and what it tells people to do next."""

import subprocess
import sys
from types import ModuleType

import pytest

import rlhfkit
from rlhfkit.cli import app as cli
from rlhfkit.cli.run import closing_words
from rlhfkit.errors import DataError
from rlhfkit.machine.interrupts import Paused
from rlhfkit.rundir.atomic import write_json
from rlhfkit.rundir.directory import RunDir
from tests.report.studies import study

MINIMAL = """\
name = "minimal"
stages = ["sft"]
[model]
path = "some/model"
[data.demonstrations]
path = "demonstrations.jsonl"
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "minimal.toml"
    path.write_text(MINIMAL)
    return str(path)


@pytest.fixture
def pipeline(monkeypatch):
    """A pipeline that trains nothing, so that only the command line is tested."""
    fake = ModuleType("rlhfkit.pipeline.fake")
    for name in ("evaluate", "rounds", "generate"):
        monkeypatch.setitem(sys.modules, f"rlhfkit.pipeline.{name}", fake)
    return fake


def raises(error):
    def function(*arguments, **settings):
        raise error

    return function


# ── all commands ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_version_is_the_packages(invoke):
    assert invoke("--version") == (0, f"rlhfkit {rlhfkit.__version__}\n", "")


def test_no_command_shows_the_help(invoke):
    code, output, errors = invoke()
    assert code == 2
    assert "Usage: rlhfkit" in output + errors


def test_only_what_works_is_offered(invoke):
    _, output, _ = invoke("--help")
    commands = [line.split()[0] for line in output.partition("Commands:\n")[2].splitlines() if line.strip()]
    assert commands == [
        "run",
        "recipes",
        "generate",
        "evaluate",
        "report",
        "compare",
        "tune",
        "probe",
        "explain",
        "cluster",
        "doctor",
        "diagnose",
        "plan",
        "export",
        "import",
        "push",
        "average",
        "bench",
        "label",
        "dashboard",
        "labels",
    ]
    assert "..." not in output.partition("Commands:\n")[2]  # each command's line is whole


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["run"], ["run", "demo", "--nonsense"], ["generate", "x", "--temperature", "-1"], ["report"]],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(invoke, arguments):
    code, output, errors = invoke(*arguments)
    assert (code, output) == (2, "")
    assert "Error: " in errors


def test_python_dash_m_is_the_same_program():
    ended = subprocess.run([sys.executable, "-m", "rlhfkit", "--version"], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"rlhfkit {rlhfkit.__version__}\n")


def test_our_errors_are_one_line_and_exit_with_1(invoke, recipe, pipeline):
    pipeline.run = raises(DataError("rows.jsonl:3 has no prompt; add one"))
    assert invoke("run", recipe) == (1, "", "error: rows.jsonl:3 has no prompt; add one\n")


def test_unexpected_errors_are_one_line_too(invoke, recipe, pipeline):
    pipeline.run = raises(OSError("disk is full\nand more"))
    code, output, errors = invoke("run", recipe)
    assert (code, output) == (1, "")
    assert errors.startswith("error: OSError: disk is full (this is a bug, or something that this machine cannot do; ")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("error", [DataError("no prompt"), OSError("disk is full")])
def test_debug_shows_where_it_happened(invoke, recipe, pipeline, monkeypatch, error):
    pipeline.run = raises(error)
    monkeypatch.setattr(sys, "argv", ["rlhfkit", "run", recipe, "--debug"])
    with pytest.raises(type(error), match=str(error)):
        cli.main()


# ── run ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_run_hands_recipe_and_directory_to_the_pipeline(invoke, recipe, pipeline):
    calls = []
    pipeline.run = lambda loaded, run_dir, *, fresh, **rest: calls.append((loaded, str(run_dir), fresh))
    invoke("run", recipe)
    invoke("run", recipe, "seed=3", "sft.epochs=2")
    invoke("run", recipe, "--run-dir", "elsewhere", "--fresh", "seed=3")
    assert [(directory, fresh) for _, directory, fresh in calls] == [
        ("runs/minimal", False),
        ("runs/minimal-seed3", False),
        ("elsewhere", True),
    ]
    assert calls[1][0].overrides == ("seed=3", "sft.epochs=2")
    assert calls[1][0].recipe.sft.epochs == 2


def test_run_ends_with_what_was_written(invoke, recipe, pipeline):
    def run(loaded, run_dir, **rest):
        (run_dir / "sft").mkdir(parents=True)
        (run_dir / "metrics.jsonl").touch()

    pipeline.run = run
    code, output, errors = invoke("run", recipe)
    assert (code, errors) == (0, "")
    assert output.splitlines() == [
        "runs/minimal holds",
        "  sft/           the model before PPO",
        "  metrics.jsonl  every metric of every iteration",
        "next: rlhfkit generate runs/minimal --prompt '…'",
    ]


def test_an_interrupted_run_says_how_to_go_on(invoke, recipe, pipeline):
    pipeline.run = raises(KeyboardInterrupt())
    code, output, errors = invoke("run", recipe, "--fresh", "purpose=two words")
    assert (code, output) == (130, "")
    assert errors.splitlines()[-1] == (
        f"stopped; to go on from the last checkpoint: rlhfkit run {recipe} 'purpose=two words'"
    )


@pytest.mark.parametrize("until", [("--until", "2"), ("--until=2",)])
def test_a_paused_run_ends_well_and_says_how_to_go_on(invoke, recipe, pipeline, until):
    def run(loaded, run_dir, *, workload, **rest):
        raise Paused(f"PPO is paused after {workload.until} of 5 iterations")

    pipeline.run = run
    code, output, errors = invoke("run", recipe, *until, "--fresh", "seed=2")
    assert (code, errors) == (0, "")
    assert output == f"PPO is paused after 2 of 5 iterations; to go on: rlhfkit run {recipe} seed=2\n"


def test_a_run_on_a_cluster_does_not_pause(invoke, recipe):
    code, _, errors = invoke("run", recipe, "--until", "2", "--ray", "local")
    assert (code, errors) == (1, "error: --until 2 and --ray local exclude each other; leave one of them out\n")


def test_a_wrong_recipe_is_refused_with_all_its_faults(invoke, recipe):
    code, output, errors = invoke("run", recipe, "ppo.epochs=0", "ppo.clip_rang=1")
    assert (code, output) == (1, "")
    assert errors.startswith(f"error: recipe {recipe} has 2 faults:\n")
    assert "did you mean ppo.clip_range?" in errors


def test_closing_words_quote_a_directory_with_spaces(tmp_path):
    run = RunDir(tmp_path / "my run")
    run.model("policy").mkdir(parents=True)
    run.report.touch()
    *_, generate, look = closing_words(run).splitlines()
    assert generate == f"next: rlhfkit generate '{run.path}' --prompt '…'"
    assert look.endswith("my run'/report.html in a browser")


@pytest.mark.parametrize(
    ("called", "on_path", "command"),
    [
        ("/usr/bin/rlhfkit", "/usr/bin/rlhfkit", "rlhfkit"),
        (".venv/bin/rlhfkit", None, ".venv/bin/rlhfkit"),
        ("/site-packages/rlhfkit/__main__.py", None, "python -m rlhfkit"),
    ],
)
def test_the_next_command_is_one_that_works(called, on_path, command, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", [called])
    monkeypatch.setattr("shutil.which", lambda name: on_path)
    run = RunDir(tmp_path)
    run.model("policy").mkdir()
    assert closing_words(run).splitlines()[-1] == f"next: {command} generate {tmp_path} --prompt '…'"


MADE = {
    "sft alone": (["sft"], ["sft"], "generate DIR --prompt '…'"),
    "pre-training alone": (["pretrain"], ["base"], "generate DIR --prompt '…'"),
    "a reward model alone": (
        ["reward_model"],
        ["reward_model"],
        "run RECIPE reward.type=reward_model reward.path=DIR/reward_model   (PPO with this reward model)",
    ),
    "preferences alone": (
        ["preferences"],
        ["preferences.jsonl"],
        "run RECIPE data.preferences.path=DIR/preferences.jsonl   (a reward model of them)",
    ),
    "a judge alone": (["judge"], ["judge"], "diagnose DIR"),
    "ppo alone": (["ppo"], ["policy"], "generate DIR --prompt '…'"),
    "rounds": (["sft", "ppo"], ["sft", "round-1"], "generate DIR --prompt '…'"),
    "control": (["control"], ["policy", "report.html"], "open DIR/report.html in a browser"),
}


@pytest.mark.parametrize(("stages", "made", "step"), MADE.values(), ids=MADE)
def test_every_kind_of_run_says_what_to_do_next(tmp_path, stages, made, step, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rlhfkit"])
    monkeypatch.setattr("shutil.which", lambda name: "rlhfkit")
    run = RunDir(tmp_path)
    write_json(run.config, {"stages": stages})
    write_json(run.stages, {stage: {} for stage in stages})
    run.metrics.touch()
    for name in made:
        (tmp_path / name).touch() if "." in name else (tmp_path / name).mkdir()
    (first, *_) = [line for line in closing_words(run).splitlines() if line.startswith("next: ")]
    assert first == f"next: rlhfkit {step.replace('DIR', str(tmp_path))}".replace("rlhfkit open", "open")


def test_a_run_that_was_stopped_early_is_to_be_diagnosed_first(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rlhfkit"])
    monkeypatch.setattr("shutil.which", lambda name: "rlhfkit")
    run = RunDir(tmp_path)
    run.model("policy").mkdir()
    write_json(run.stages, {"ppo": {"stopped": "ppo.watch.eos_lost says stop in iteration 9; see there"}})
    *_, first, second = closing_words(run).splitlines()
    assert first == (
        f"next: rlhfkit diagnose {tmp_path}   (PPO was stopped early: ppo.watch.eos_lost says stop in iteration 9)"
    )
    assert second == f"      rlhfkit generate {tmp_path} --prompt '…'"


def test_closing_words_of_an_empty_run(tmp_path):
    assert closing_words(RunDir(tmp_path)) == f"{tmp_path} holds"


# ── the other commands ───────────────────────────────────────────────────────────────────────────────────────────────


def test_recipes_lists_and_prints_what_is_shipped(invoke):
    from rlhfkit.config.load import list_recipes, recipe_text

    code, output, _ = invoke("recipes")
    assert code == 0
    for summary in list_recipes():
        assert summary.name in output
        assert invoke("recipes", summary.name) == (0, recipe_text(summary.name), "")


def test_recipes_refuses_an_unknown_name(invoke):
    code, output, errors = invoke("recipes", "nonsense")
    assert (code, output) == (1, "")
    assert errors.startswith("error: no shipped recipe is called 'nonsense'; the shipped recipes are")


def test_generate_prints_a_response_for_each_prompt(invoke, pipeline, monkeypatch, tmp_path):
    received = []

    def generate(directory, prompts, **settings):
        received.append(settings)
        yield from (f"response to {prompt}" for prompt in prompts)

    pipeline.generate = generate
    assert invoke("generate", "model", "--prompt", "a b", "--chat", "--temperature", "0.5", "--seed", "7") == (
        0,
        "response to a b\n",
        "",
    )
    monkeypatch.setattr(sys, "stdin", iter_stdin("first\n\nsecond"))
    assert invoke("generate", "model", "--max-response-tokens", "5")[1] == "response to first\nresponse to second\n"
    assert received == [
        {"chat": True, "max_response_tokens": None, "temperature": 0.5, "seed": 7},
        {"chat": False, "max_response_tokens": 5, "temperature": None, "seed": 0},
    ]


def test_generate_takes_several_prompts_and_a_file_of_them(invoke, pipeline, tmp_path):
    pipeline.generate = lambda directory, prompts, **settings: (
        prompt if isinstance(prompt, str) else f"{prompt.content}" for prompt in prompts
    )
    assert invoke("generate", "m", "--prompt", "a", "--prompt", "b")[1] == "a\nb\n"
    (tmp_path / "p.txt").write_text("c\n\nd\n")
    assert invoke("generate", "m", "--prompt", "a", "--prompts", str(tmp_path / "p.txt"))[1] == "a\nc\nd\n"
    (tmp_path / "p.csv").write_text("id,prompt\n1,e\n2,f\n")
    assert invoke("generate", "m", "--prompts", str(tmp_path / "p.csv"))[1] == "e\nf\n"
    code, _, errors = invoke("generate", "m", "--prompts", str(tmp_path / "q.csv"))
    assert (code, errors.partition(" is not in ")[0]) == (1, f"error: --prompts: {tmp_path}/q.csv")


def iter_stdin(text, *, terminal=False):
    import io

    stdin = io.StringIO(text)
    stdin.isatty = lambda: terminal
    return stdin


def test_generate_asks_a_person_for_one_prompt_after_the_other(invoke, pipeline, monkeypatch):
    pipeline.generate = lambda directory, prompts, **settings: (prompt.upper() for prompt in prompts)
    monkeypatch.setattr(sys, "stdin", iter_stdin("first\n\nsecond\n", terminal=True))
    code, output, errors = invoke("generate", "model")
    assert (code, output) == (0, "FIRST\nSECOND\n")
    assert errors == "One prompt a line; Ctrl-D ends.\n> > > > "


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_commands_on_a_run_need_a_run(invoke, command):
    assert invoke(command, "my run") == (
        1,
        "",
        "error: my run is not a run directory, as it has no config.json; "
        "make one with: rlhfkit run RECIPE --run-dir 'my run'\n",
    )


def test_evaluate_hands_the_run_to_the_pipeline(invoke, pipeline, tmp_path):
    calls = []
    pipeline.evaluate_again = calls.append
    for name in ("config.json", "recipe.toml"):
        (tmp_path / name).write_text("{}")
    code, output, _ = invoke("evaluate", str(tmp_path))
    assert (code, calls) == (0, [tmp_path])
    assert output.startswith(f"{tmp_path} holds")


def test_report_prints_where_the_report_is(invoke, monkeypatch, tmp_path):
    fake = ModuleType("rlhfkit.report.page")
    fake.write_report = lambda run: run.report
    monkeypatch.setitem(sys.modules, "rlhfkit.report.page", fake)
    for name in ("config.json", "recipe.toml"):
        (tmp_path / name).touch()
    assert invoke("report", str(tmp_path)) == (0, f"{tmp_path / 'report.html'}\n", "")


def test_report_of_a_study_writes_its_page_and_says_where_results_are_missing(invoke, tmp_path):
    (tmp_path / "settings.json").touch()
    code, _, error = invoke("report", str(tmp_path))
    assert (code, "has no study.json" in error) == (1, True)
    (tmp_path / "study.json").write_text(study(num_done=0).model_dump_json())
    assert invoke("report", str(tmp_path)) == (0, f"{tmp_path / 'study.html'}\n", "")
    assert "Preparing: no trial has begun" in (tmp_path / "study.html").read_text()


def test_dashboard_of_a_directory_that_is_not_there_is_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["rlhfkit", "dashboard", str(tmp_path / "runs")])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == (
        f"error: there is no directory {tmp_path / 'runs'}; name one that holds runs, such as runs\n"
    )
