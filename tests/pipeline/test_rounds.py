"""Rounds of feedback, by simulated people and by people at the page: nothing is lost, asked twice or mixed up."""

import json
import re
import shutil

import pytest
from transformers import AutoModelForCausalLM

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import CheckpointError, ConfigError, StoreError
from rlhfkit.feedback.exchange import preferences_of
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.labelling import simulated
from rlhfkit.pipeline import evaluate as evaluation
from rlhfkit.pipeline import rounds as loop
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.evaluate import evaluate_again
from rlhfkit.pipeline.generate import generate
from rlhfkit.report.page import write_report
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import Evaluation, read_results
from tests.pipeline.whole_runs import Killed, Talk, frozen, metrics, snapshot_of
from tests.small_recipe import small_recipe

pytestmark = pytest.mark.thorough

RECIPE = small_recipe(
    "rounds",
    ["pretrain", "sft", "preferences", "reward_model", "ppo", "evaluate"],
    """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 48 }
demonstrations = { type = "grammar", num_rows = 24, seed_offset = 1 }
prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }
test_prompts = { type = "grammar", num_rows = 4, seed_offset = 3 }

[pretrain]
minibatch_sequences = 16
max_tokens = 64

[sft]
minibatch_sequences = 8
max_tokens = 64

[preferences]
num_pairs = 12
num_test_pairs = 6
num_candidates = 18

[reward_model]
minibatch_pairs = 4
normalization_responses = 8
checkpoint_minutes = 1e-9
optim = { learning_rate = 1e-3 }

[ppo]
iterations = 2
rollout_episodes = 8
minibatch_episodes = 8
epochs = 1
min_eos_rate = 0.0
checkpoint_minutes = 1e-9
optim = { learning_rate = 1e-2 }

[evaluation]
judge = { type = "grammar" }
""",
    rounds=2,
)
STAGES_OF_ROUND = ("preferences", "reward_model", "ppo", "evaluate")


@pytest.fixture(scope="session")
def rounds_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("rounds") / "rounds.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def run(rounds_file):
    """Run the recipe in a directory."""

    def run_in(directory, *overrides, fresh=False, progress=None):
        loop.run(load_recipe(rounds_file, overrides), directory, fresh=fresh, progress=progress or Talk())
        return RunDir(directory)

    return run_in


@pytest.fixture(scope="session")
def finished(run, tmp_path_factory):
    """A run of both rounds, with its reports; tests only look at it, or take a copy."""
    return run(tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Drawing takes longer than training such models; `finished`, which is made before, has its charts."""
    for module in (loop, pipeline, evaluation):
        monkeypatch.setattr(module, "report_or_warn", lambda run_dir, warn: run_dir.report.touch())


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished.path, tmp_path / "copy")
    return RunDir(tmp_path / "copy")


def weights(run_dir, name):
    return (run_dir.model(name) / "model.safetensors").read_bytes()


def results_of(run_dir):
    """Everything that a run in rounds makes and that must not depend on how often it was stopped."""
    found = {"sft": weights(run_dir, "sft"), "policy": weights(run_dir, "policy"), "metrics": metrics(run_dir)}
    for number in (1, 2):
        directory = run_dir.round(number)
        for name in ("reward_model", "policy"):
            found[f"{number} {name}"] = weights(directory, name)
        for path in (directory.preferences, directory.test_preferences, directory.evaluation, directory.samples):
            found[f"{number} {path.name}"] = path.read_text()
        found[f"{number} metrics"] = metrics(directory)
    found["against last"] = run_dir.round(2).against_last.read_text()
    snapshot = snapshot_of(run_dir.simulated_labels)
    found["pairs"] = [(pair.id, pair.reason, pair.probability, pair.part) for pair in snapshot.pairs]
    found["votes"] = [(vote.id, vote.pair_id, vote.choice) for vote in snapshot.votes]
    return found


# ── a run in rounds ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_round_is_a_run_of_its_own(finished):
    for number in (1, 2):
        directory = finished.round(number)
        assert directory.is_run()
        assert tuple(directory.finished_stages()) == STAGES_OF_ROUND
        assert json.loads(directory.config.read_text())["rounds"] == 1
        assert AutoModelForCausalLM.from_pretrained(directory.model("policy")) is not None
        assert read_results(directory.evaluation, Evaluation).num_prompts == 4
        assert directory.report.exists()
    assert [path.name for path in finished.path.rglob(".*")] == []


def test_the_second_round_asks_about_the_policy_of_the_first(finished):
    pairs = snapshot_of(finished.simulated_labels).pairs
    models = {number: {pair.model_a for pair in pairs if pair.round == number} for number in (1, 2)}
    assert models == {1: {str(finished.model("sft"))}, 2: {str(finished.round(1).model("policy"))}}


def test_a_prompt_is_of_the_same_part_in_both_rounds(finished):
    parts = {}
    for pair in snapshot_of(finished.simulated_labels).pairs:
        parts.setdefault(pair.prompt, set()).add(pair.part)
    assert all(len(part) == 1 for part in parts.values())
    assert set.union(*parts.values()) == {"train", "test"}


def test_the_second_reward_model_learns_from_the_labels_of_both_rounds(finished):
    snapshot = snapshot_of(finished.simulated_labels)
    rounds = {pair.id: pair.round for pair in snapshot.pairs}
    first, second = ([rounds[row["pair"]] for row in frozen(finished.round(number))] for number in (1, 2))
    assert set(first) == {1}
    assert second[: len(first)] == first
    assert set(second[len(first) :]) == {2}
    assert len(second) == len(preferences_of(snapshot.pairs, snapshot.votes, part="train").preferences)
    assert weights(finished.round(1), "reward_model") != weights(finished.round(2), "reward_model")


def test_ppo_of_every_round_starts_from_the_sft_model(finished):
    def hash_of(run_dir, name):
        models = json.loads(run_dir.manifest.read_text())["models"]
        return next(model["sha256"] for model in models if model["name"] == name)

    assert {hash_of(finished.round(number), "start") for number in (1, 2)} == {hash_of(finished, "sft")}
    assert hash_of(finished, "policy") == hash_of(finished.round(2), "policy")


def test_the_whole_runs_models_are_the_last_rounds(finished):
    for name in ("policy", "reward_model"):
        assert weights(finished, name) == weights(finished.round(2), name)
        assert weights(finished, name) != weights(finished.round(1), name)
    assert set(finished.finished_stages()) == {"pretrain", "sft", *STAGES_OF_ROUND}


def test_the_report_shows_every_round_and_leads_to_its_own(finished):
    report = finished.report.read_text()
    for number in (1, 2):
        link = f"round-{number}/report.html"
        assert f'<a href="{link}">{number}</a>' in report
        assert (finished.path / link).exists()
        assert f"{len(frozen(finished.round(number)))}</td>" in report
    assert re.search(r"Mean score \S+ after round 1, \S+ after round 2", report)
    rate = read_results(finished.round(2).against_last, Evaluation).win_rate.judge.rate
    assert f"{rate:.0%}" in report.replace("\u202f%", "%").replace("\xa0%", "%").replace(" %", "%")
    assert "None" not in report


def test_the_report_of_a_run_that_is_under_way_shows_what_there_is(copy):
    shutil.rmtree(copy.round(2).path)
    report = write_report(copy).read_text()
    assert "Round 1 of 2: mean score" in report
    assert "round-2" not in report
    shutil.rmtree(copy.round(1).path)
    assert "None of 2 rounds is finished yet" in write_report(copy).read_text()


def test_the_whole_run_can_be_evaluated_and_answers(copy, monkeypatch):
    evaluate_again(copy.path)
    last = read_results(copy.round(2).evaluation, Evaluation)
    assert read_results(copy.evaluation, Evaluation).models["policy"] == last.models["policy"]
    (response,) = generate(copy.path, ["Review of the Blue Door, a pizza place:"])
    assert [response] == list(generate(copy.round(2).path, ["Review of the Blue Door, a pizza place:"]))


# ── stopped, and started again ───────────────────────────────────────────────────────────────────────────────────────


def test_a_run_that_is_killed_in_its_second_round_ends_with_the_same_bits(run, finished, tmp_path, monkeypatch):
    monkeypatch.setattr(simulated, "VOTES_AT_ONCE", 5)
    directory = tmp_path / "killed"
    for killed in (Killed("label", 2, 5), Killed("reward_model", 1, 2), Killed("ppo", 1), Killed("evaluate", 2)):
        with pytest.raises(KeyboardInterrupt):
            run(directory, progress=killed)
        assert not RunDir(directory).model("policy").exists()
    found = results_of(run(directory))
    expected = results_of(finished)
    model_of = str(finished.path), str(directory)  # the store names models by their directory
    assert [name for name in expected if str(found[name]).replace(*model_of[::-1]) != str(expected[name])] == []


def test_a_finished_run_does_nothing_again(run, copy):
    before = {path: path.stat().st_mtime_ns for path in copy.path.rglob("*.safetensors")}
    talk = Talk()
    run(copy.path, progress=talk)  # a copy lies elsewhere
    assert talk.notes == [
        "pretrain: finished before",
        "sft: finished before",
        "round 1 of 2: finished before",
        "round 2 of 2: finished before",
        "nothing was left to do; --fresh starts over",
    ]
    assert {path: path.stat().st_mtime_ns for path in copy.path.rglob("*.safetensors")} == before


def test_a_further_round_may_follow_also_where_the_run_was_moved(run, copy):
    before = weights(copy, "policy")
    talk = Talk()
    run(copy.path, "rounds=3", progress=talk)
    assert "changed since this run began: rounds was 2, is now 3" in talk.notes
    assert {pair.round for pair in snapshot_of(copy.simulated_labels).pairs} == {1, 2, 3}
    assert weights(copy, "policy") == weights(copy.round(3), "policy") != before


def test_a_moved_run_goes_on_in_the_middle_of_a_round(run, copy):
    for path in (copy.stages, copy.round(2).stages):
        stages = json.loads(path.read_text())
        for stage in ("ppo", "evaluate"):
            del stages[stage]
        path.write_text(json.dumps(stages))
    expected = weights(copy.round(2), "policy")
    for name in ("policy", "reward_model"):
        shutil.rmtree(copy.model(name))
    shutil.rmtree(copy.round(2).model("policy"))
    shutil.rmtree(copy.round(2).checkpoints)
    run(copy.path)
    assert weights(copy, "policy") == weights(copy.round(2), "policy") == expected


def test_settings_that_a_round_has_read_are_refused_before_anything_is_written(run, copy):
    stages = json.loads(copy.stages.read_text())
    copy.stages.write_text(json.dumps({name: stages[name] for name in ("pretrain", "sft")}))  # as in the second round
    before = copy.config.read_text()
    words = r"round-1 holds a run of other settings \(ppo\.clip_range was 0\.2, is now 0\.1\).* --fresh"
    with pytest.raises(CheckpointError, match=words):
        run(copy.path, "ppo.clip_range=0.1")
    assert copy.config.read_text() == before


def test_settings_of_the_whole_are_refused_too(run, copy):
    with pytest.raises(CheckpointError, match=r"copy holds a run of other settings \(sft\.epochs was 1, is now 2\)"):
        run(copy.path, "sft.epochs=2")


def test_another_start_model_is_refused_where_a_stage_before_the_rounds_has_begun(run, directory_of, tmp_path):
    changes = [
        f'model={{path="{directory_of("llama")}"}}',
        'stages=["sft", "preferences", "reward_model", "ppo", "evaluate"]',
        "data.max_prompt_tokens=52",
        "sft.checkpoint_minutes=1e-9",
    ]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", *changes, progress=Killed("sft", 1, completed=2))
    manifest = tmp_path / "run" / "manifest.json"
    table = json.loads(manifest.read_text())
    table["stages"]["sft"]["inputs"][0]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(table))
    with pytest.raises(CheckpointError, match=r"model\.path: .* has changed since the stage sft began"):
        run(tmp_path / "run", *changes)


def test_fresh_starts_over_but_never_removes_what_people_said(run, copy):
    for path in (copy.labels, copy.round(1).labels):
        with Store.open(path) as store:
            store.add_pairs([Pair("p", "Which?", "one", "two")])
            store.add_votes([Vote("vote", "p", "Ada", Choice("preference", 2), "a", 1.0, 1.0)])
    with pytest.raises(KeyboardInterrupt):
        run(copy.path, fresh=True, progress=Killed("sft", 1))
    assert sorted(path.name for path in copy.round(1).path.iterdir()) == ["labels.db"]
    assert not copy.simulated_labels.exists()
    assert not copy.round(2).path.exists()
    assert not copy.model("policy").exists()
    run(copy.path)  # the directory that only holds votes is free for the round
    for path in (copy.labels, copy.round(1).labels):
        assert [vote.id for vote in snapshot_of(path).votes] == ["vote"]
    assert copy.round(1).model("policy").exists()


def test_a_directory_with_nothing_but_votes_is_free_for_a_run(run, tmp_path):
    with Store.open(RunDir(tmp_path).labels) as store:
        store.add_pairs([Pair("p", "Which?", "one", "two")])
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, progress=Killed("pretrain", 1))  # beside SQLite's -wal and -shm, which are there meanwhile
    assert len(snapshot_of(RunDir(tmp_path).labels).pairs) == 1


def test_generate_takes_the_newest_rounds_policy(copy):
    assert copy.newest_model() == copy.model("policy")
    shutil.rmtree(copy.model("policy"))
    assert copy.newest_model() == copy.round(2).model("policy")
    shutil.copytree(copy.round(2).model("policy"), copy.round(10).model("policy"))
    assert copy.newest_model() == copy.round(10).model("policy")
    for number in (1, 2, 10):
        shutil.rmtree(copy.round(number).path)
    assert copy.newest_model() == copy.model("sft")


# ── faults of the recipe ─────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ('stages=["pretrain", "sft", "ppo"]', 'reward={type="grammar"}'),
            r"rounds = 2 goes round the stages preferences, reward_model and ppo; add \['preferences', 'reward_model'",
        ),
        (
            ("reward_model.init=base",),
            r'rounds begin at the SFT model, and know no base; set reward_model\.init = "sft"',
        ),
        (
            ('data.preferences={type="store", database="labels.db", part="train"}',),
            r'the stage "preferences" makes what data\.preferences would read; leave one of the two out',
        ),
        (
            ("preferences.database=postgresql://ada:secret@host/labels",),
            r"the address holds a password, which would stand in files .* PGPASSWORD or in ~/\.pgpass",
        ),
        (
            ("preferences.database=postgresql://host/labels?password=secret",),
            "the address holds the parameter 'password'",
        ),
        (("preferences.random_share=0",), r"random_share = 0.*a number above 0"),
    ],
    ids=["no preferences", "base", "preferences twice", "password", "password in the query", "nothing random"],
)
def test_a_recipe_that_cannot_go_round_is_refused(run, tmp_path, overrides, words):
    with pytest.raises(ConfigError, match=words):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (("preferences.sampled_from=nowhere",), Exception, r'preferences\.sampled_from = "nowhere"'),
        (("preferences.database=nowhere/labels.db",), StoreError, r"there is no directory \S+nowhere; make it"),
        (
            ("preferences.database=postgresql://nobody@127.0.0.1:1/labels",),
            StoreError,
            r"preferences\.database: postgresql.*check that the server runs",
        ),
        (
            ('preferences.annotators={type="people", guidelines="nowhere.md"}',),
            ConfigError,
            r"guidelines nowhere\.md cannot be read \(No such file or directory\); expected a text file in UTF-8",
        ),
        (
            ('preferences.annotators={type="people", host="0.0.0.0"}',),
            ConfigError,
            r"host 0\.0\.0\.0 lets other machines in, .*preferences\.annotators\.names",
        ),
    ],
    ids=["model", "directory", "server", "guidelines", "host"],
)
def test_what_labelling_needs_is_tried_before_anything_is_written(run, tmp_path, monkeypatch, overrides, error, words):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=words):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()
