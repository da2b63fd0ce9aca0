"""What SECURITY.md promises: nothing is unpickled, no code runs unasked, no secret is written, no text is markup."""

import ast
import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

import rlhfkit
from rlhfkit.config.load import load_recipe
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.errors import RlhfkitError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.report.page import write_report
from rlhfkit.rundir.directory import RunDir
from tests.killing import RECIPES
from tests.report.conftest import write_fake_run
from tests.tiny import save_family

PACKAGE = Path(rlhfkit.__file__).parent
SOURCES = sorted(PACKAGE.rglob("*.py"))
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "subprocess"}
# They ask nvidia-smi for its version, let the compiler try a program of their own, and start this very command again as
# the ranks of a run or as the trials of a search: fixed words, no shell.
OWN_PROGRAMS = {
    "doctor/hardware.py": ["subprocess"],
    "doctor/system.py": ["subprocess"],
    "distributed/launching.py": ["subprocess"],
    "tuning/runs.py": ["subprocess"],
    "launch/errand.py": ["subprocess"],
    # This interpreter, with a program of the package that follows a run.
    "tracking/process.py": ["subprocess"],
    # The one place that runs what a model wrote, and tests out of rows: where nothing can be reached, or not at all.
    "rewards/sandbox.py": ["subprocess"],
    "rewards/confined.py": ["exec", "exec"],
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "torch.load",
    "torch.jit.load",
    "yaml.load",
    "pd.read_pickle",
}
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> {{7*7}}"


def faults_of(source: str) -> list[str]:
    """Calls and imports that could run what a file holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in FORBIDDEN_MODULES]
        elif isinstance(node, ast.ImportFrom):
            found += [str(node.module)] if str(node.module).split(".")[0] in FORBIDDEN_MODULES else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if name in FORBIDDEN_CALLS or given.get("allow_pickle") == "True":
                found.append(name)
            if given.get("trust_remote_code") == "True" or given.get("autoescape") == "False":
                found.append(f"{name} with {given}")
            may_ask = re.search(r"(?<!GenerationConfig)\.from_(pretrained|config)$", name)  # settings name no code
            if may_ask and "trust_remote_code" not in given:
                found.append(f"{name} that may ask whether code shall run")
            if re.search(r"(Auto\w*Model\w*|auto_class)\.from_pretrained$", name):
                found += [] if given.get("use_safetensors") == "True" else [f"{name} of any format"]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_in_the_package_runs_what_a_file_holds(path):
    known = OWN_PROGRAMS.get(str(path.relative_to(PACKAGE)), [])
    assert faults_of(path.read_text(encoding="utf-8")) == known


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "np.load(path, allow_pickle=True)",
        "AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)",
        "AutoTokenizer.from_pretrained(path)",
        "AutoModel.from_config(config)",
        "AutoTokenizer.from_pretrained(path, trust_remote_code=True)",
        "Environment(autoescape=False)",
        "eval(text)",
    ],
)
def test_the_scan_finds_what_it_looks_for(source):
    assert len(faults_of(source)) == 1


def test_templates_and_pages_never_switch_escaping_off():
    pages = [*PACKAGE.rglob("*.jinja"), *PACKAGE.rglob("*.js")]
    assert len(pages) > 5
    unsafe = re.compile(r"\|\s*safe\b|autoescape false|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(")
    assert [path.name for path in pages if unsafe.search(path.read_text(encoding="utf-8"))] == []


# ── code of others ───────────────────────────────────────────────────────────────────────────────────────────────────


def model_with_code(directory, marker):
    """A model's directory whose own Python code leaves a mark when it runs."""
    directory.mkdir()
    classes = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    (directory / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": classes}))
    (directory / "mine.py").write_text(
        f"from pathlib import Path\nfrom transformers import PretrainedConfig\nPath({str(marker)!r}).touch()\n"
        "class MineConfig(PretrainedConfig):\n    model_type = 'mine'\n"
    )
    (directory / "model.safetensors").write_bytes(b"")
    return directory


def run_on(model, tmp_path, *overrides):
    """What was warned of before the run failed, as it must with such a model."""
    warnings = []
    progress = Progress(quiet=True)
    progress.warn = warnings.append
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "foreign"\nstages = ["sft"]\n[model]\npath = "{model}"\n'
        '[data]\ndemonstrations = { type = "grammar", num_rows = 4 }\n'
    )
    with pytest.raises(RlhfkitError):
        pipeline.run(load_recipe(recipe, overrides), tmp_path / "run", progress=progress)
    return warnings


def test_the_code_of_a_models_directory_does_not_run_unless_the_recipe_says_so(tmp_path):
    assert PretrainedModelConfig(path="x").trust_remote_code is False
    model = model_with_code(tmp_path / "model", tmp_path / "ran")
    assert run_on(model, tmp_path) == []
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("family", ["llama", "granite"])
@pytest.mark.parametrize("use", ["reward", "evaluation.judge"])
def test_nor_does_the_code_of_a_reward_models_directory_and_nobody_is_asked(use, family, tmp_path, monkeypatch):
    def ask(*_):
        (tmp_path / "asked").touch()
        return "y"

    monkeypatch.setattr("builtins.input", ask)
    model = save_family("llama", tmp_path / "model")
    scorer = save_family(family, tmp_path / "scorer")
    config = json.loads((scorer / "config.json").read_text())
    config |= {"architectures": ["Mine"], "auto_map": {"AutoModelForSequenceClassification": "mine.Mine"}}
    (scorer / "config.json").write_text(json.dumps({**config, "id2label": {"0": "good"}}))
    (scorer / "mine.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    rewards = {"reward": '{ type = "match" }', "evaluation.judge": '{ type = "grammar" }'}
    rewards[use] = f'{{ type = "reward_model", path = "{scorer}" }}'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        f'name = "foreign"\nstages = ["ppo", "evaluate"]\nmodel = {{ path = "{model}" }}\n'
        f"reward = {rewards['reward']}\nevaluation = {{ judge = {rewards['evaluation.judge']} }}\n"
        "rollout = { max_response_tokens = 8 }\n[data]\nmax_prompt_tokens = 48\n"
        'prompts = { type = "grammar", num_rows = 4 }\ntest_prompts = { type = "grammar", num_rows = 4 }\n'
    )
    with pytest.raises(RlhfkitError, match=f"{use}.*|.*scorer"):
        pipeline.run(load_recipe(recipe, []), tmp_path / "run", progress=Progress(quiet=True))
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "asked").exists()


def test_where_the_recipe_lets_it_run_that_is_said_loudly_first(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    model = model_with_code(tmp_path / "model", tmp_path / "ran")
    (warning,) = run_on(model, tmp_path, "model.trust_remote_code=true")
    assert f"model.trust_remote_code = true: Python code out of {model} runs now, with all that you may" in warning


def test_who_trusts_a_model_of_the_hub_is_reported_to_pin_it(tmp_path):
    recipe = load_recipe("demo", []).recipe
    for changes, is_told in (({}, True), ({"revision": "abc"}, False), ({"path": str(tmp_path)}, False)):
        model = PretrainedModelConfig(**{"path": "somebody/model", "trust_remote_code": True, **changes})
        stages = tuple(stage for stage in recipe.stages if stage != "pretrain")
        changed = recipe.model_copy(update={"model": model, "stages": stages})
        warning = Inputs(changed, None).foreign_code()
        assert ("set model.revision" in warning) == is_told


# ── files and secrets ────────────────────────────────────────────────────────────────────────────────────────────────


class Watch:
    """Collects what this process writes to, while it is on; an audit hook cannot be taken away again."""

    def __init__(self):
        self.on, self.written = False, set()
        sys.addaudithook(self.hear)

    def hear(self, event, arguments):
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes | Path):
            mode, flags = arguments[1], arguments[2]
            if (mode and set(mode) & set("wax+")) or (flags and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                self.written.add(os.fsdecode(arguments[0]))
        elif event in ("os.mkdir", "os.rename", "os.symlink", "os.link"):
            self.written.update(os.fsdecode(path) for path in arguments[:2] if isinstance(path, str | bytes | Path))


@pytest.fixture(scope="module")
def watch():
    return Watch()


@pytest.mark.thorough
def test_whatever_the_data_say_a_run_writes_in_its_directory_alone(tmp_path, watch, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "report_or_warn", lambda run_dir, warn: run_dir.report.touch())
    evil = ["../../evil", "/etc/evil", "..\\evil", "runs/../../evil", "$HOME/evil", "~/evil", "a\0b", "CON", HOSTILE]
    rows = [{"prompt": text, "id": text, "path": text, "file_name": text, "stage": text} for text in evil]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = 'prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }'
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPES["ppo"].replace(table, 'prompts = { path = "prompts.jsonl" }'))
    watch.on = True
    try:
        pipeline.run(load_recipe(recipe, []), tmp_path / "run", progress=Progress(quiet=True))
    finally:
        watch.on = False
    allowed = (str(tmp_path / "run"), "/dev/null", "/proc/")
    outside = {path for path in watch.written if path.startswith(("/", "..", "~")) and not path.startswith(allowed)}
    assert {path for path in outside if "__pycache__" not in path} == set()
    assert len(watch.written) > 20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.jsonl", "recipe.toml", "run"]


@pytest.mark.thorough
def test_no_file_of_a_run_holds_a_secret(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "PGPASSWORD", "REWARD_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "s3cret-value")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPES["sft"])
    overrides = ['reward={type="http", url="http://me:${REWARD_TOKEN}@host/score", token_env="REWARD_TOKEN"}']
    pipeline.run(load_recipe(recipe, overrides), tmp_path / "run", progress=Progress(quiet=True))
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"manifest.json", "config.json", "report.html"} <= {path.name for path in files}
    assert [path for path in files if b"s3cret-value" in path.read_bytes()] == []


# ── text of models ───────────────────────────────────────────────────────────────────────────────────────────────────


def hostile(run: RunDir) -> None:
    """Have prompts and responses of a run say HOSTILE."""
    evaluation = json.loads(run.evaluation.read_text())
    for sample in evaluation["samples"]:
        sample.update(prompt=HOSTILE, sft=HOSTILE, policy=HOSTILE)
    run.evaluation.write_text(json.dumps({**evaluation, "judge_name": HOSTILE, "reward_name": HOSTILE}))
    row = {"stage": "ppo", "iteration": 1, "prompt": HOSTILE, "response": HOSTILE, "finish_reason": HOSTILE}
    run.samples.write_text(json.dumps(row) + "\n")


def test_model_text_is_no_markup_in_the_report(tmp_path):
    run = write_fake_run(tmp_path / "run")
    hostile(run)
    check_page(write_report(run).read_text(encoding="utf-8"))


def test_model_text_is_no_markup_in_the_page_of_rounds(tmp_path):
    run = write_fake_run(tmp_path / "run")
    config = json.loads(run.config.read_text())
    for number in (1, 2):
        shutil.copytree(run.path, tmp_path / f"round-{number}")
        shutil.move(tmp_path / f"round-{number}", run.round(number).path)
        hostile(run.round(number))
        run.round(number).recipe.touch()
    hostile(run)
    run.config.write_text(json.dumps({**config, "rounds": 2, "purpose": HOSTILE}))
    page = write_report(run).read_text(encoding="utf-8")
    assert "Round by round" in page
    check_page(page)


def check_page(page: str) -> None:
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=x onerror=alert(2)&gt; {{7*7}}") > 1
    assert "<script" not in page
    assert "<img src=x" not in page
