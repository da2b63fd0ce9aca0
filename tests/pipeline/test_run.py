"""A whole run of tiny models: the same seed gives the same bits, a killed run goes on, and nothing is done twice."""

import fcntl
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhfkit.config.load import load_recipe
from rlhfkit.config.stages import STAGE_SPECS
from rlhfkit.diagnosis.diagnose import diagnose
from rlhfkit.errors import CheckpointError, ConfigError, DataError, ModelError, TrainingError
from rlhfkit.machine.interrupts import Paused
from rlhfkit.machine.progress import Progress
from rlhfkit.models.reward_model import read_normalization
from rlhfkit.pipeline import evaluate as evaluation
from rlhfkit.pipeline import rounds
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.evaluate import evaluate_again
from rlhfkit.pipeline.fork import fork
from rlhfkit.pipeline.generate import generate
from rlhfkit.pipeline.workload import Workload
from rlhfkit.rundir.atomic import write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import Evaluation, RewardModelResults, read_results
from tests.pipeline.whole_runs import metrics
from tests.small_recipe import small_recipe
from tests.training import tiny

STAGES = ("pretrain", "sft", "preferences", "reward_model", "judge", "ppo", "evaluate")
RECIPE = small_recipe(
    "tiny",
    STAGES,
    """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 48 }
demonstrations = { type = "grammar", num_rows = 24, seed_offset = 1 }
prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }
test_prompts = { type = "grammar", num_rows = 6, seed_offset = 3 }
judge_preferences = { type = "grammar", num_rows = 24, seed_offset = 4 }

[pretrain]
minibatch_sequences = 16
max_tokens = 64
checkpoint_minutes = 1e-9

[sft]
minibatch_sequences = 8
max_tokens = 64
checkpoint_minutes = 1e-9

[preferences]
num_pairs = 12
num_test_pairs = 6

[reward_model]
minibatch_pairs = 4
normalization_responses = 8
checkpoint_minutes = 1e-9
optim = { learning_rate = 1e-3 }

[ppo]
iterations = 2
rollout_episodes = 8
minibatch_episodes = 8
epochs = 2
min_eos_rate = 0.0
checkpoint_minutes = 1e-9
optim = { learning_rate = 1e-3 }
kl = { type = "adaptive", target = 1.0, horizon_episodes = 100 }
""",
)


@pytest.fixture(scope="session")
def recipe_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def run(recipe_file):
    """Run the recipe in a directory."""

    def run_in(directory, *overrides, fresh=False, progress=None, until=None):
        loaded, workload = load_recipe(recipe_file, overrides), Workload.pausing(until)
        pipeline.run(loaded, directory, fresh=fresh, progress=progress or Progress(quiet=True), workload=workload)
        return RunDir(directory)

    return run_in


@pytest.fixture(scope="session")
def finished(run, tmp_path_factory):
    """A run of every stage; tests only look at it, or take a copy."""
    return run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.mark.thorough
@pytest.mark.parametrize("table", ["demonstrations", "texts"])
def test_texts_that_are_learnt_beside_ppo_go_on_where_a_run_was_stopped(table, run, tmp_path):
    beside = ("ppo.ptx.coef=1", f"ppo.ptx.data={table}", "ppo.ptx.minibatch_sequences=3")
    whole = run(tmp_path / "whole", *beside)
    with pytest.raises(Paused):
        run(tmp_path / "cut", *beside, until=1)
    assert metrics(run(tmp_path / "cut", *beside)) == metrics(whole)
    losses = [row["ppo/ptx_loss"] for row in metrics(whole) if row["stage"] == "ppo"]
    assert len(losses) == 2 and losses[0] != losses[1]
    with pytest.raises(CheckpointError, match=f"data.{table}.num_rows was"):
        run(tmp_path / "cut", *beside, f"data.{table}.num_rows=40")


@pytest.mark.thorough
def test_an_average_of_the_policy_is_a_model_beside_it_and_is_evaluated_with_it(run, finished, tmp_path):
    told = []
    progress = Progress(quiet=True)
    progress.warn = progress.note = told.append
    whole = run(tmp_path / "whole", "ppo.ema=0.5", progress=progress)
    assert any("weigh 6\u202f% in the end" in words for words in told)  # 0.5 to the power of 4 updates
    with pytest.raises(Paused):
        run(tmp_path / "cut", "ppo.ema=0.5", until=1)
    cut = run(tmp_path / "cut", "ppo.ema=0.5")
    names = ("policy", "ema")
    bits, of_cut = ([(each.model(name) / "model.safetensors").read_bytes() for name in names] for each in (whole, cut))
    assert bits == of_cut
    assert bits[0] == (finished.model("policy") / "model.safetensors").read_bytes()  # which an average leaves alone
    models = (AutoModelForCausalLM.from_pretrained(whole.model(name)) for name in ("ema", "policy", "sft"))
    for weights in zip(*(model.state_dict().values() for model in models), strict=True):
        to_policy, to_start, apart = (float((weights[i] - weights[j]).norm()) for i, j in ((0, 1), (0, 2), (1, 2)))
        assert 0 < to_policy < apart and 0 < to_start < apart
    found, before = (read_results(each.evaluation, Evaluation) for each in (whole, finished))
    assert (found.models, found.prompts, before.ema) == (before.models, before.prompts, None)
    assert found.ema.model.ref_kl != found.models["policy"].ref_kl
    assert found.ema.against_policy.judge is not None
    assert found.ema == read_results(cut.evaluation, Evaluation).ema
    assert len(list(generate(whole.model("ema"), ["the film is"], max_response_tokens=4))) == 1


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Drawing takes longer than training such models; `finished`, which is made before, has its charts."""
    for module in (pipeline, evaluation):
        monkeypatch.setattr(module, "report_or_warn", lambda run_dir, warn: run_dir.report.touch())


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "copy")
    return RunDir(tmp_path / "copy")


def test_every_stage_of_a_recipe_has_a_function():
    assert tuple(pipeline.STAGES) == tuple(STAGE_SPECS)


PRETRAIN_ONLY = ('stages=["pretrain"]', "data.texts.num_rows=16")


def results_of(run_dir):
    """Everything that a run makes and that must not depend on how often it was stopped."""
    models = {
        f"{name}/{file.name}": file.read_bytes()
        for name in ("base", "sft", "reward_model", "judge", "policy")
        for file in sorted(run_dir.model(name).iterdir())
        if (file.name != "config.json" or name == "judge") and file.name != "README.md"  # which the report writes
    }
    files = {
        path.name: path.read_text()
        for path in (
            run_dir.samples,
            run_dir.preferences,
            run_dir.test_preferences,
            run_dir.reward_model_report,
            run_dir.evaluation,
        )
    }
    last = run_dir.checkpoints / "ppo" / "00000002"
    checkpoint = {"checkpoint": (last / "tensors.safetensors").read_bytes()}
    kl_coef = {"kl_coef": json.loads((last / "state.json").read_text())["state"]["kl_coef"]}
    return {**models, **files, **checkpoint, **kl_coef, "metrics": metrics(run_dir)}


def assert_same_results(found, expected):
    found, expected = results_of(found), results_of(expected)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


# ── a whole run ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_stage_leaves_what_the_next_one_reads(finished):
    assert tuple(finished.finished_stages()) == STAGES
    assert [row["iteration"] for row in metrics(finished) if row["stage"] == "ppo"] == [0, 1]
    assert {row["stage"] for row in metrics(finished)} == {"pretrain", "sft", "reward_model", "ppo"}
    assert read_results(finished.evaluation, Evaluation).num_prompts == 6
    assert read_results(finished.reward_model_report, RewardModelResults).num_pairs <= 6
    assert len(finished.preferences.read_text().splitlines()) <= 12
    assert finished.report.exists()
    assert sorted(path.name for path in finished.checkpoints.iterdir()) == ["ppo"]
    assert [path.name for path in finished.path.rglob(".*")] == []


def test_the_manifest_says_what_the_run_was_made_of(finished):
    manifest = json.loads(finished.manifest.read_text())
    assert manifest["seed"] == 3
    assert {entry["use"] for entry in manifest["data"]} == {
        "texts",
        "demonstrations",
        "prompts",
        "test_prompts",
        "judge_preferences",
    }
    assert {entry["name"] for entry in manifest["models"]} == {"base", "start", "sft", "reward_model", "policy"}
    assert all(len(entry["sha256"]) == 64 for entry in manifest["models"] + manifest["data"])
    assert manifest["stages"]["ppo"]["preflight/ratio"] < 1e-4
    assert torch.__version__.startswith(manifest["versions"]["torch"])  # which may add how it was built


def test_transformers_alone_loads_the_models(finished):
    tokenizer = AutoTokenizer.from_pretrained(finished.model("policy"))
    policy = AutoModelForCausalLM.from_pretrained(finished.model("policy"))
    reward_model = AutoModelForSequenceClassification.from_pretrained(finished.model("reward_model"))
    ids = tokenizer("The pizza was superb.", return_tensors="pt")
    assert policy(**ids).logits.shape[-1] == len(tokenizer)
    assert reward_model(**ids).logits.shape == (1, 1)


def test_the_reward_of_the_starting_point_has_mean_0_and_deviation_1(finished):
    normalization = read_normalization(finished.model("reward_model"))
    assert normalization.std > 0
    assert (normalization.mean, normalization.std) != (0.0, 1.0)
    first = next(row for row in metrics(finished) if row["stage"] == "ppo")
    assert abs(first["score/mean"]) < 1.5  # of eight other responses
    report = json.loads(finished.reward_model_report.read_text())
    assert report["normalization"] == {"mean": normalization.mean, "std": normalization.std}


def test_ppo_begins_at_the_reference(finished):
    first = next(row for row in metrics(finished) if row["stage"] == "ppo")
    assert first["ref_kl/sequence"] == pytest.approx(0, abs=1e-5)
    assert first["ppo/ratio_first_epoch_max_deviation"] < 1e-4


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_bits(run, finished, tmp_path):
    assert_same_results(run(tmp_path / "again"), finished)


@pytest.mark.thorough
def test_another_seed_gives_another_policy(run, tmp_path):
    def base(seed):
        return (
            run(tmp_path / f"seed{seed}", *PRETRAIN_ONLY, f"seed={seed}").model("base") / "model.safetensors"
        ).read_bytes()

    assert base(1) != base(2)


@pytest.mark.thorough
def test_a_run_that_is_killed_in_every_stage_ends_with_the_same_bits(run, finished, tmp_path):
    directory = tmp_path / "killed"
    for name in ("pretrain", "sft", "pairs", "label", "reward_model", "normalise", "ppo", "evaluate"):
        with pytest.raises(KeyboardInterrupt):
            run(directory, progress=tiny.Interrupting(name, 2 if name != "ppo" else 1))
        assert not RunDir(directory).report.exists()
    assert_same_results(run(directory), finished)


def without_ppo(run_dir):
    """The run as it was before PPO."""
    for stage in ("ppo", "evaluate"):
        shutil.rmtree(run_dir.checkpoints / stage, ignore_errors=True)
    shutil.rmtree(run_dir.model("policy"))
    for path in (run_dir.evaluation, run_dir.report):
        path.unlink()
    write_json(run_dir.stages, {k: v for k, v in run_dir.finished_stages().items() if k not in ("ppo", "evaluate")})
    rows = run_dir.metrics.read_text().splitlines(keepends=True)
    run_dir.metrics.write_text("".join(row for row in rows if json.loads(row)["stage"] not in ("ppo", "evaluate")))


@pytest.mark.thorough
def test_a_run_that_pauses_in_ppo_leaves_the_later_stages_and_ends_with_the_same_bits(run, finished, copy):
    without_ppo(copy)
    for words in ("PPO is paused after 1 of 2 iterations", "nothing was left to do: PPO has 1 of 2 iterations already"):
        with pytest.raises(Paused, match=words):
            run(copy.path, until=1)
        assert not copy.model("policy").exists() and "ppo" not in copy.finished_stages()
    assert_same_results(run(copy.path), finished)


@pytest.mark.thorough
def test_a_fork_ends_with_the_bits_of_the_run_it_was_forked_from(run, finished, copy, recipe_file, tmp_path):
    without_ppo(copy)
    before = {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()}
    fork(copy, RunDir(tmp_path / "fork"), load_recipe(recipe_file))
    assert_same_results(run(tmp_path / "fork"), finished)
    assert {path: path.read_bytes() for path in copy.path.rglob("*") if path.is_file()} == before


@pytest.mark.thorough
def test_a_seed_of_the_evaluation_has_runs_of_all_seeds_answer_the_same_prompts(
    run, finished, copy, recipe_file, tmp_path
):
    write_json(copy.stages, {k: v for k, v in copy.finished_stages().items() if k != "evaluate"})
    for name, own in (("same", "evaluation.seed=3"), ("other", "evaluation.seed=4")):
        changes = ("seed=9", own)
        fork(copy, RunDir(tmp_path / name), load_recipe(recipe_file, changes))
        run(tmp_path / name, *changes)
    same, other = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("same", "other"))
    assert same == json.loads(finished.evaluation.read_text())  # whose seed is 3
    assert [row["prompt"] for row in same["prompts"]] != [row["prompt"] for row in other["prompts"]]


def test_a_run_that_pauses_does_not_go_on_after_a_ppo_that_has_ended(run, copy):
    write_json(copy.stages, {k: v for k, v in copy.finished_stages().items() if k != "evaluate"})
    with pytest.raises(Paused, match="PPO is finished, after 2 of 2 iterations; left to do: evaluate"):
        run(copy.path, until=1)
    assert "evaluate" not in copy.finished_stages()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ('stages=["pretrain"]', "this recipe has none"),
        ("rounds=2", "rounds = 2 runs it as many times"),
    ],
)
def test_where_no_one_ppo_can_pause_it_is_refused(recipe_file, tmp_path, change, why):
    loaded = load_recipe(recipe_file, [change])
    with pytest.raises(ConfigError, match=f"--until 1 counts the iterations of PPO, and {why}"):
        rounds.run(loaded, tmp_path / "run", workload=Workload.pausing(1))
    assert not (tmp_path / "run").exists()


def test_finished_stages_are_not_done_again(run, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.path.rglob("*.safetensors")}
    copy.report.unlink()
    told = []
    progress = Progress(quiet=True)
    progress.note = told.append
    run(copy.path, progress=progress)
    assert told == [*(f"{stage}: finished before" for stage in STAGES), "nothing was left to do; --fresh starts over"]
    assert {path: path.stat().st_mtime_ns for path in copy.path.rglob("*.safetensors")} == before
    assert copy.report.exists()


@pytest.mark.thorough
def test_few_updates_are_worth_a_word(run, tmp_path):
    warned = []
    progress = Progress(quiet=True)
    progress.warn = warned.append
    run(tmp_path / "few", "sft.minibatch_sequences=8", progress=progress)
    assert any(
        re.match(r"sft: \d+ sequences make \d+ updates, which teach little; raise sft.epochs", w) for w in warned
    )
    assert any(re.match(r"reward_model: \d+ pairs make \d+ updates", w) for w in warned)
    rows = [json.loads(line) for line in RunDir(tmp_path / "few").metrics.read_text().splitlines()]
    for stage in ("sft", "reward_model"):
        (announced,) = (int(w.split(" make ")[1].split()[0]) for w in warned if w.startswith(f"{stage}: "))
        assert announced == sum(row["stage"] == stage for row in rows)


# ── the run directory ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_fresh_starts_over(run, tmp_path):
    run_dir = run(tmp_path / "run", *PRETRAIN_ONLY)
    expected = (run_dir.model("base") / "model.safetensors").read_bytes()
    for path in (run_dir.path / "junk", run_dir.model("base") / "junk"):
        path.write_text("left")
    num_lines = len(metrics(run_dir))
    run(run_dir.path, *PRETRAIN_ONLY, fresh=True)
    assert list(run_dir.path.rglob("junk")) == []
    assert len(metrics(run_dir)) == num_lines
    assert (run_dir.model("base") / "model.safetensors").read_bytes() == expected


@pytest.mark.thorough
def test_fresh_takes_other_settings(run, tmp_path):
    run(tmp_path / "run", *PRETRAIN_ONLY)
    run_dir = run(tmp_path / "run", *PRETRAIN_ONLY, "model.width=8", fresh=True)
    assert json.loads(run_dir.config.read_text())["model"]["width"] == 8


@pytest.mark.thorough
def test_why_a_run_stopped_itself_is_kept_until_it_goes_on(run, copy):
    copy.stages.write_text(json.dumps({stage: {} for stage in STAGES[:5]}))
    shutil.rmtree(copy.checkpoints / "ppo")
    with pytest.raises(TrainingError, match="min_eos_rate") as error:
        run(copy.path, "ppo.min_eos_rate=0.99")
    assert json.loads(copy.manifest.read_text())["stages"]["ppo"]["error"] == str(error.value)
    assert diagnose(copy).progress.endswith(f"it stopped itself: {error.value}")
    run(copy.path)
    assert "error" not in json.loads(copy.manifest.read_text())["stages"]["ppo"]


def test_other_settings_are_refused_and_the_first_that_differs_is_named(run, copy):
    before = copy.config.read_text()
    with pytest.raises(
        CheckpointError, match=r"holds a run of other settings \(ppo\.clip_range was 0\.2, is now 0\.1\).* --fresh"
    ):
        run(copy.path, "ppo.clip_range=0.1", "ppo.gamma=0.5")
    assert copy.config.read_text() == before


def test_settings_that_this_version_does_not_know_are_refused(run, copy):
    copy.config.write_text('{"from": "another version"}')
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read by this version.* --fresh"):
        run(copy.path)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read by this version"):
        evaluate_again(copy.path)
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read by this version"):
        next(generate(copy.path, [PROMPT]))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_directory_that_is_no_run_is_left_alone(run, tmp_path, fresh):
    precious = tmp_path / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(CheckpointError, match="exists and is not a run directory; choose another --run-dir"):
        run(tmp_path, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_models_directory_is_no_run_though_it_has_a_config(run, copy, fresh):
    before = sorted(copy.model("policy").iterdir())
    with pytest.raises(CheckpointError, match="exists and is not a run directory"):
        run(copy.model("policy"), fresh=fresh)
    assert sorted(copy.model("policy").iterdir()) == before


def test_a_file_is_no_run_directory(run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="exists and is not a run directory"):
        run(tmp_path / "file")


def test_an_empty_directory_may_be_used_even_one_that_was_locked(run, tmp_path):
    (tmp_path / "lock").touch()
    assert run(tmp_path, *PRETRAIN_ONLY).model("base").exists()


@pytest.mark.parametrize("fresh", [True, False])
def test_a_second_process_is_refused(run, copy, fresh):
    code = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(copy.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout.readline() == "locked\n"
    try:
        with pytest.raises(CheckpointError, match="another process is working in"):
            run(copy.path, fresh=fresh)
        assert tuple(copy.finished_stages()) == STAGES
    finally:
        other.communicate()
    run(copy.path)


def test_the_lock_is_free_after_a_run_and_after_an_error(run, tmp_path):
    run_dir = run(tmp_path, *PRETRAIN_ONLY)
    with pytest.raises(CheckpointError, match="other settings"):
        run(tmp_path, "seed=9")
    with run_dir.lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_cannot_be_written_to_is_named(run, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(CheckpointError, match=r"cannot write to .*; choose another --run-dir"):
            run(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


def test_a_run_directory_that_cannot_be_made_is_named(run):
    with pytest.raises(CheckpointError, match=r"cannot write to /proc/run \(.*; choose another --run-dir"):
        run(Path("/proc/run"))


# ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_damaged_checkpoints_of_ppo_are_an_error_and_not_a_silent_new_beginning(run, copy):
    stages = json.loads(copy.stages.read_text())
    copy.stages.write_text(json.dumps({stage: stages[stage] for stage in STAGES[:-2]}))
    for path in copy.checkpoints.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"all checkpoints in .* are damaged"):
        run(copy.path)


# ── settings that take other ways ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_without_test_pairs_the_reward_model_is_trained_all_the_same(run, tmp_path):
    stages = 'stages=["pretrain", "sft", "preferences", "reward_model"]'
    # The only prompt is then for training.
    pairs = ("preferences.num_test_pairs=0", "preferences.num_pairs=6", "data.prompts.num_rows=1")
    run_dir = run(tmp_path, stages, *pairs)
    assert not run_dir.test_preferences.exists()
    assert not run_dir.reward_model_report.exists()
    assert run_dir.model("reward_model").exists()


@pytest.mark.thorough
def test_too_few_prompts_for_both_kinds_of_pairs_are_an_error(run, tmp_path):
    stages = 'stages=["pretrain", "preferences"]'
    with pytest.raises(DataError, match=r"1 prompt: too few for training and test pairs"):
        run(tmp_path, stages, "data.prompts.num_rows=1")


@pytest.mark.thorough
@pytest.mark.parametrize(
    "overrides",
    [
        ('ppo.value={network="shared"}',),
        ('ppo.estimator="rloo"', "ppo.group_size=4"),
        pytest.param(("ppo.preset=grpo", "ppo.group_size=4"), marks=pytest.mark.thorough),
        pytest.param(("ppo.preset=dr_grpo", "ppo.group_size=4"), marks=pytest.mark.thorough),
        ("model.lora={rank=2}",),
        ('model.dtype="bfloat16"',),
    ],
    ids=["shared critic", "rloo", "grpo", "dr_grpo", "lora", "bfloat16"],
)
def test_ppo_takes_each_kind_of_model_and_estimator(run, tmp_path, overrides):
    stages = 'stages=["pretrain", "ppo"]'
    reward = 'reward={type="function", function="tests.training.tiny:count_vowels"}'
    run_dir = run(tmp_path, stages, reward, *overrides)
    rows = [row for row in metrics(run_dir) if row["stage"] == "ppo"]
    assert [row["iteration"] for row in rows] == [0, 1]
    base, policy = (
        AutoModelForCausalLM.from_pretrained(run_dir.model(name)).state_dict() for name in ("base", "policy")
    )
    assert base.keys() == policy.keys()
    assert any(not torch.equal(base[name], policy[name]) for name in base)
    names = [entry["name"] for entry in json.loads(run_dir.manifest.read_text())["models"]]
    assert names == ["base", "start", "policy"]


@pytest.mark.thorough
def test_sft_cuts_sequences_to_the_models_context(run, tmp_path):
    overrides = ("model.context_tokens=52", "pretrain.max_tokens=512", "sft.max_tokens=512")
    run_dir = run(tmp_path, 'stages=["pretrain", "sft"]', *overrides)
    assert run_dir.finished_stages()["sft"]["num_cut"] > 20  # most reviews are longer


# ── generate and evaluate ────────────────────────────────────────────────────────────────────────────────────────────

PROMPT = "Review of the Blue Door, a pizza place:"


def test_generate_answers_each_prompt(finished):
    first, second = generate(finished.path, [PROMPT, PROMPT])
    assert first != second
    assert list(generate(finished.path, [PROMPT, PROMPT])) == [first, second]
    assert list(generate(finished.path, [PROMPT], seed=1)) != [first]


def test_generate_at_temperature_0_takes_the_likeliest_token_whatever_the_seed(finished):
    (found,) = generate(finished.path, [PROMPT], temperature=0, max_response_tokens=5)
    (again,) = generate(finished.path, [PROMPT], temperature=0, max_response_tokens=5, seed=9)
    tokenizer = AutoTokenizer.from_pretrained(finished.model("policy"))
    model = AutoModelForCausalLM.from_pretrained(finished.model("policy"))
    ids = tokenizer(PROMPT)["input_ids"]
    num_prompt = len(ids)
    for _ in range(5):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        logits[tokenizer.pad_token_id] = -math.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    assert found == again == tokenizer.decode(ids[num_prompt:], skip_special_tokens=True)


def test_generate_takes_the_newest_model_that_there_is(copy):
    def answers(directory):
        return list(generate(directory, [PROMPT], max_response_tokens=12))

    for name in ("policy", "sft", "base"):
        assert answers(copy.path) == answers(copy.model(name))  # a model's directory will do as well
        shutil.rmtree(copy.model(name))
    with pytest.raises(ModelError, match="has no model yet; finish it with the command that began it"):
        answers(copy.path)


def test_generate_refuses_a_length_that_leaves_no_room(finished):
    with pytest.raises(ConfigError, match=r"max_response_tokens = 64 leaves no room .* context of 64 tokens"):
        list(generate(finished.path, [PROMPT], max_response_tokens=64))


def test_evaluating_again_gives_the_same_numbers(finished, copy):
    copy.evaluation.unlink()
    copy.report.unlink()
    evaluate_again(copy.path)
    assert copy.evaluation.read_text() == finished.evaluation.read_text()
    assert copy.report.exists()


def test_evaluating_a_run_without_a_policy_is_refused(copy):
    shutil.rmtree(copy.model("policy"))
    with pytest.raises(CheckpointError, match="has no policy yet; finish it with the command that began it"):
        evaluate_again(copy.path)
