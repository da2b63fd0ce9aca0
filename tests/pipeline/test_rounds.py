"""Rounds of feedback, by simulated people and by people at the page: nothing is lost, asked twice or mixed up."""

import json
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rlhfkit.config.data import RowsConfig
from rlhfkit.config.feedback import PreferencesConfig
from rlhfkit.config.load import load_recipe
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.data import load_preferences
from rlhfkit.errors import CheckpointError, ConfigError, DataError, StoreError
from rlhfkit.feedback.exchange import preferences_of
from rlhfkit.feedback.source import new_pairs
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Pair, Vote, pair_id
from rlhfkit.labelling import people, simulated
from rlhfkit.labelling.people import nobody_can_go_on
from rlhfkit.labelling.sampling import PairSampler
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import evaluate as evaluation
from rlhfkit.pipeline import rounds as loop
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.evaluate import evaluate_again
from rlhfkit.pipeline.generate import generate
from rlhfkit.records import Prompt
from rlhfkit.report.page import write_report
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.results import Evaluation, read_results
from rlhfkit.web import server
from tests import tiny
from tests.people import Person, ctrl_c, free_port

RECIPE = """
# Two rounds in a few seconds.
name = "rounds"
synthetic = true
seed = 3
rounds = 2
stages = ["pretrain", "sft", "preferences", "reward_model", "ppo", "evaluate"]

[model]
type = "scratch"
num_layers = 1
width = 16
num_heads = 2
vocabulary_tokens = 384
context_tokens = 64

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

[rollout]
max_response_tokens = 12

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
"""
STAGES_OF_ROUND = ("preferences", "reward_model", "ppo", "evaluate")


class Talk(Progress):
    """Keeps what a person would read, and shows nothing."""

    def __init__(self):
        super().__init__(quiet=True)
        self.notes, self.warnings = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


class Killed(Talk):
    """Ctrl-C when so many units of a stage are done, at the stage's n-th time."""

    def __init__(self, name, time, completed=1):
        super().__init__()
        self.name, self.time, self.completed = name, time, completed

    @contextmanager
    def stage(self, name, **settings):
        self.time -= name == self.name
        with super().stage(name, **settings) as stage:
            advance = stage.advance

            def advance_or_stop(amount=1, detail=""):
                advance(amount, detail)
                if name == self.name and self.time == 0 and stage.completed >= self.completed:
                    raise KeyboardInterrupt

            stage.advance = advance_or_stop
            yield stage


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


def snapshot_of(database):
    with Store.open(database) as store:
        return store.snapshot()


def frozen(run_dir):
    return [json.loads(line) for line in run_dir.preferences.read_text().splitlines()]


def metrics(run_dir):
    rows = [json.loads(line) for line in run_dir.metrics.read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
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


# ── which pairs ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def model(directory_of):
    return tiny.load(directory_of("llama"))


@pytest.fixture
def store(tmp_path):
    with Store.open(tmp_path / "labels.db") as opened:
        yield opened


def sampler(model, *, name="model", num_prompts=40, temperature=1.0, **settings):
    prompts = [model.encoder.encode(Prompt(f"prompt {number}:"), max_tokens=20) for number in range(num_prompts)]
    rollout = RolloutConfig(max_response_tokens=6, temperature=temperature)
    return PairSampler(model, name, prompts, rollout, PreferencesConfig(**settings), seed=0)


def sampled(sampler, store, *, told=None):
    return sampler.pairs(store, on_finished=lambda number: None, tell=[].append if told is None else told.append)


def prefer_first(store, pairs):
    store.add_pairs(new_pairs(store, pairs))
    store.add_votes(Vote(f"vote {pair.id}", pair.id, "Ada", Choice("preference", 1), "a", 1.0, 1.0) for pair in pairs)


def test_pairs_are_random_and_it_is_said_while_there_are_no_labels(model, store):
    told = []
    pairs = sampled(sampler(model, num_pairs=10, num_candidates=30, num_test_pairs=4), store, told=told)
    assert told == ["all at random: there are no labels yet"]
    train = [pair for pair in pairs if pair.part == "train"]
    assert [(pair.reason, pair.probability) for pair in train] == 10 * [("random", pytest.approx(10 / 30))]
    assert len(pairs) == 14


@pytest.fixture
def taught(store):
    """A store with a first round of labels that can be learnt: one word is good, whatever the length."""
    words = [(f"good {letter}", f"bad  {letter}") for letter in "pqrst"]
    for number in range(80):
        good, bad = words[number % 5]
        pair = Pair(f"pair {number}", f"Say {number}:", good, bad, reason="random", probability=1.0)
        prefer_first(store, [pair])
    return store


SECOND = {"round": 2, "num_pairs": 20, "num_candidates": 80, "num_test_pairs": 5}


def test_pairs_are_chosen_when_labels_are_enough_and_the_store_keeps_why(model, taught):
    told = []
    pairs = sampled(sampler(model, **SECOND), taught, told=told)
    assert told[0].startswith("1 of 80 train pairs left out")
    assert re.match(r"5 at random, 15 for what they teach: ", told[1])
    taught.add_pairs(new_pairs(taught, pairs))
    kept = [(pair.reason, pair.probability) for pair in taught.pairs(round=2) if pair.part == "train"]
    assert sorted(kept, key=str) == 15 * [("active", None)] + 5 * [("random", pytest.approx(5 / 79))]
    assert [(pair.reason, pair.probability) for pair in taught.pairs(round=2) if pair.part == "test"] == 5 * [
        ("random", 1.0)
    ]


def test_asked_again_with_labels_of_its_own_round_the_same_pairs_come(model, taught):
    pairs = sampled(sampler(model, **SECOND), taught)
    taught.add_pairs(pairs[:8])  # killed while they were added
    prefer_first(taught, pairs[:8])
    assert sampled(sampler(model, **SECOND), taught) == pairs
    prefer_first(taught, pairs)
    assert sampled(sampler(model, **SECOND), taught) == pairs
    assert taught.add_pairs(new_pairs(taught, sampled(sampler(model, name="moved", **SECOND), taught))) == 0


def test_a_prompt_stays_in_the_part_that_the_store_knows(model, store):
    first = sampled(sampler(model, num_pairs=30, num_test_pairs=30), store)
    store.add_pairs(first)
    known = {pair.prompt: pair.part for pair in first}
    later = sampled(sampler(model, round=2, num_pairs=38, num_test_pairs=4), store)
    assert len(later) == 42
    assert all(known.get(pair.prompt, pair.part) == pair.part for pair in later)
    other = "test" if known["prompt 1:"] == "train" else "train"
    given = Pair(pair_id("prompt 1:", "x", "y"), "prompt 1:", "x", "y", part=other)
    assert [pair.part for pair in new_pairs(store, [given])] == [known["prompt 1:"]]


def test_pairs_that_cannot_be_compared_are_left_out_and_counted(model, store):
    told = []
    # Almost greedy, so that both responses are the same.
    with pytest.raises(DataError, match=r"none of 4 train pairs can be compared .* raise rollout\.temperature"):
        sampled(sampler(model, num_pairs=4, num_test_pairs=0, temperature=1e-4), store)
    pairs = sampled(sampler(model, num_pairs=40, num_test_pairs=0, num_prompts=1, temperature=0.25), store, told=told)
    assert told == [
        f"{40 - len(pairs)} of 40 train pairs left out: "
        "the same response twice, an empty one, or a pair that came before"
    ]


# ── people ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ONLY_LABELS = """
name = "labels"
seed = 1
stages = ["preferences"]

[model]
path = "MODEL"
device = "cpu"

[data]
max_prompt_tokens = 20
prompts = { path = "prompts.jsonl" }

[preferences]
num_pairs = 8
num_test_pairs = 2

[preferences.annotators]
type = "people"
port = PORT
calibration_share = 0.3
guidelines = "guidelines.md"

[rollout]
max_response_tokens = 6
"""


@pytest.fixture
def desk(tmp_path, directory_of, monkeypatch):
    """Where people label: run the recipe here, with a page on a port of its own."""
    monkeypatch.setattr(people, "SECONDS_TO_UNDO", 0.1)
    monkeypatch.chdir(tmp_path)
    prompts = [json.dumps({"prompt": f"prompt {number}:"}) + "\n" for number in range(12)]
    (tmp_path / "prompts.jsonl").write_text("".join(prompts))
    (tmp_path / "guidelines.md").write_text("Longer is better.")

    class Desk:
        path, port, run_dir = tmp_path, free_port(), RunDir(tmp_path / "run")

        def run(self, *overrides, **settings):
            text = ONLY_LABELS.replace("MODEL", str(directory_of("llama"))).replace("PORT", str(self.port))
            (tmp_path / "labels.toml").write_text(text)
            talk = Talk()
            loop.run(load_recipe("labels.toml", overrides), self.run_dir.path, progress=talk, **settings)
            return talk

    return Desk()


def test_a_run_waits_for_people_and_goes_on_by_itself(desk):
    person = Person(desk.port)
    talk = desk.run()
    person.finish()
    assert f"people are asked at http://127.0.0.1:{desk.port}/; Ctrl-C stops, and keeps every vote" in talk.notes
    assert "the run goes on when every pair has its votes, or when who is voting has no pair left" in talk.notes
    assert person.guidelines == "Longer is better."
    snapshot = snapshot_of(desk.run_dir.labels)
    assert len(snapshot.pairs) == len(person.seen) == len(snapshot.votes) == 10
    assert {vote.guidelines_version for vote in snapshot.votes} == {1}
    assert sum(pair.is_calibration for pair in snapshot.pairs) == 3
    rows = frozen(desk.run_dir)
    assert len(rows) == 8
    assert all(len(row["chosen"]) >= len(row["rejected"]) for row in rows)
    # One person cannot give the three votes that the shared pairs want, and is not waited for.
    assert talk.warnings == [
        "3 of 10 pairs have fewer votes than asked for, because nobody was left to give them (some are for "
        "several people); what was said counts all the same",
    ]
    assert desk.run().notes == ["preferences: finished before", "nothing was left to do; --fresh starts over"]


@pytest.mark.thorough
def test_ctrl_c_while_waiting_keeps_the_votes_and_the_next_start_goes_on(desk):
    person = Person(desk.port, num=4, then=ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        desk.run()
    first = snapshot_of(desk.run_dir.labels)
    assert len(first.votes) == len(person.finish().seen) == 4
    again = Person(desk.port)
    desk.run()
    second = snapshot_of(desk.run_dir.labels)
    assert second.pairs == first.pairs
    assert second.votes[:4] == first.votes
    assert {task["pair_id"] for task in again.finish().seen}.isdisjoint(vote.pair_id for vote in first.votes)
    assert len(second.votes) == 10


def test_a_run_with_names_waits_for_each_of_them(desk):
    people = []

    class Inviting(Talk):
        def note(self, text):
            super().note(text)
            if link := re.match(r"  for (\w+): \S+\?token=(\S+)$", text):
                people.append(Person(desk.port, token=link[2]))

    talk = Inviting()
    recipe = load_recipe(_written(desk), ['preferences.annotators.names=["Ada", "Bo"]'])
    loop.run(recipe, desk.run_dir.path, progress=talk)
    assert [len(person.finish().seen) > 0 for person in people] == [True, True]
    with Store.open(desk.run_dir.labels) as store:
        assert store.annotators() == ["Ada", "Bo"]
        assert [store.progress(name).num_left for name in ("Ada", "Bo")] == [0, 0]


def _written(desk):
    """The desk's recipe, as a file."""
    with pytest.raises(ConfigError):
        desk.run("preferences.annotators.host=0.0.0.0")
    return "labels.toml"


def test_nobody_is_waited_for_who_went_away_or_never_came(store):
    store.add_pairs([Pair(f"p{number}", f"Say {number}:", "yes", "no", is_calibration=True) for number in (1, 2)])
    for name in ("Ada", "Bo", "Cy"):
        store.add_annotator(name)
    assert not nobody_can_go_on(store)  # and nobody has begun

    def vote(name, pair):
        given = Vote(f"{name} {pair}", pair, name, Choice("preference", 1), "a", 1.0, 1.0)
        assert store.vote(given) == "recorded"

    vote("Ada", "p1")
    vote("Bo", "p1")
    assert not nobody_can_go_on(store)  # nobody is through
    assert store.lease("Bo").pair.id == "p2"
    vote("Ada", "p2")
    assert not nobody_can_go_on(store)  # Bo is reading
    store.release("Bo", "p2")
    assert nobody_can_go_on(store)
    assert nobody_can_go_on(store, ["Ada"])
    assert not nobody_can_go_on(store, ["Ada", "Cy"])
    vote("Bo", "p2")
    vote("Cy", "p1")
    vote("Cy", "p2")
    assert nobody_can_go_on(store, ["Dee"])  # every pair has its votes


@pytest.mark.thorough
def test_a_fresh_start_asks_nobody_again_what_was_answered(desk):
    person = Person(desk.port)
    desk.run()
    person.finish()
    before = snapshot_of(desk.run_dir.labels)
    talk = desk.run(fresh=True)
    assert snapshot_of(desk.run_dir.labels) == before
    assert not any("people are asked" in note for note in talk.notes)
    assert len(frozen(desk.run_dir)) == 8


def test_a_page_that_dies_is_no_end_of_labelling(desk, monkeypatch):
    monkeypatch.setattr(server, "serve_while", lambda *arguments, **settings: None)
    with pytest.raises(Exception, match="page stopped before all was labelled; start again, every vote is kept"):
        desk.run()
    assert not desk.run_dir.preferences.exists()


# ── a store as data ──────────────────────────────────────────────────────────────────────────────────────────────────

FROM_STORE = """
name = "store"
stages = ["reward_model"]

[model]
path = "MODEL"
device = "cpu"

[data]
max_prompt_tokens = 24
preferences = { type = "store", database = "labels.db", part = "train" }
test_preferences = { type = "store", database = "labels.db", part = "test" }

[reward_model]
minibatch_pairs = 2
checkpoint_minutes = 1e-9

[rollout]
max_response_tokens = 8
"""


class Votes:
    """Pairs of which the first response is better, added to labels.db one by one."""

    def __init__(self, path):
        self.path, self.count = path / "labels.db", 0

    def add(self, number, *, part="train", kind="preference"):
        with Store.open(self.path) as store:
            for _ in range(number):
                self.count += 1
                name = f"pair {self.count}"
                store.add_pairs([Pair(name, f"Say {self.count}:", " good", " bad", part=part)])
                choice = Choice(kind, 3 if kind == "preference" else 0)
                store.add_votes([Vote(f"vote {self.count}", name, "Ada", choice, "a", 1.0, 1.0)])


@pytest.fixture
def labelled(tmp_path, directory_of, monkeypatch):
    """A directory with a store, and a recipe that reads it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "store.toml").write_text(FROM_STORE.replace("MODEL", str(directory_of("llama"))))
    votes = Votes(tmp_path)
    votes.add(6)
    votes.add(2, part="test")
    return votes


def run_on_store(*overrides, progress=None, fresh=False):
    loop.run(load_recipe("store.toml", overrides), Path("run"), progress=progress or Talk(), fresh=fresh)
    return RunDir("run")


def test_the_reward_model_learns_from_a_store_and_the_manifest_names_it(labelled):
    run_dir = run_on_store()
    assert [row["prompt"] for row in frozen(run_dir)] == [f"Say {number}:" for number in range(1, 7)]
    tested = load_preferences(RowsConfig(path=str(run_dir.test_preferences.absolute()))).records
    assert [preference.prompt.content for preference in tested] == ["Say 7:", "Say 8:"]
    data = {entry["use"]: entry for entry in json.loads(run_dir.manifest.read_text())["data"]}
    assert {use: (entry["path"], entry["num_rows"]) for use, entry in data.items()} == {
        "preferences": ("labels.db", 6),
        "test_preferences": ("labels.db", 2),
    }
    assert all(len(entry["sha256"]) == 64 for entry in data.values())
    report = json.loads(run_dir.reward_model_report.read_text())
    assert report["num_pairs"] == 2
    assert [(row["label"], row["count"]) for row in report["by_degree"]] == [("better", 2)]


def test_the_ceiling_of_a_store_stands_beside_the_accuracy(labelled):
    with Store.open("labels.db") as store:  # Bo says the same as Ada of 7 pairs, the contrary of one
        store.add_votes(
            Vote(f"Bo {n}", f"pair {n}", "Bo", Choice("preference", 3 if n > 1 else -3), "a", 1.0, 1.0)
            for n in range(1, 9)
        )
    talk = Talk()
    report = json.loads(run_on_store(progress=talk).reward_model_report.read_text())
    # Agreement 7/8, so that each is right with q = (1 + sqrt(2 * 7/8 - 1)) / 2 = 0.933013; on both test pairs the two
    # agree: q² / (q² + (1 - q)²) = 0.870513 / 0.875000.
    assert report["ceiling"] == pytest.approx(0.994872, abs=1e-6)
    assert any("a perfect model 99.5%, as people disagree" in note for note in talk.notes)


@pytest.mark.thorough
def test_votes_that_come_while_it_trains_wait_for_a_fresh_start(labelled):
    with pytest.raises(KeyboardInterrupt):
        run_on_store(progress=Killed("reward_model", 1, 2))
    with Store.open("labels.db") as store:  # people write meanwhile
        labelled.add(4)
        run_dir = run_on_store()
        assert len(frozen(run_dir)) == 6
        assert store.queue().num_pairs == 12
    assert [row["iteration"] for row in metrics(run_dir) if row["stage"] == "reward_model"] == [0, 1, 2]
    num_rows = {entry["num_rows"] for entry in json.loads(run_dir.manifest.read_text())["data"]}
    assert num_rows == {6, 2}
    assert len(frozen(run_on_store(fresh=True))) == 10


@pytest.mark.parametrize(
    ("overrides", "error", "words"),
    [
        (
            ("data.preferences.database=nowhere.db",),
            StoreError,
            r"data\.preferences: there is no store nowhere\.db; make one with: rlhfkit label RUN",
        ),
        (("data.preferences.database=sqlite:///nowhere.db",), StoreError, "there is no store sqlite:///nowhere.db"),
        (("data.preferences.database=store.toml",), StoreError, "store.toml: file is not a database"),
        (
            ("data.preferences.min_votes=2",),
            DataError,
            r'data\.preferences: the votes of labels\.db make no preference: of 6 pairs of the part "train", 0 have no '
            r"vote, 6 too few, 0 were skipped, and 0 are undecided; label more pairs",
        ),
        (
            ("data.preferences.database=postgresql://nobody@127.0.0.1:1/labels",),
            StoreError,
            r"data\.preferences: postgresql.*connection.*check that the server runs",
        ),
        (("data.preferences.database=postgresql://ada:secret@host/labels",), ConfigError, "holds a password"),
        (("data.prompts={type='store', database='labels.db', part='train'}",), Exception, "data.prompts"),
    ],
    ids=["missing", "missing URL", "no database", "too few votes", "no server", "password", "prompts"],
)
def test_a_store_that_cannot_be_used_is_reported_before_anything_is_written(labelled, overrides, error, words):
    with pytest.raises(error, match=words) as told:
        run_on_store(*overrides)
    assert "secret" not in str(told.value).replace("would stand", "")
    assert "\n" not in str(told.value)
    assert not Path("run").exists()
    assert not Path("nowhere.db").exists()


def test_a_store_of_ties_makes_no_preference(tmp_path, labelled):
    Path("labels.db").unlink()
    labelled.add(2, kind="tie")
    labelled.add(1, kind="both_bad")
    labelled.add(1, part="test")
    with pytest.raises(DataError, match=r"of 3 pairs of the part \"train\", .* and 3 are undecided; label more pairs"):
        run_on_store()


def test_a_home_directory_is_filled_in(labelled, monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    recipe = load_recipe("store.toml", ["data.preferences.database=~/labels.db"]).recipe
    assert recipe.data.preferences.database == str(Path.cwd() / "labels.db")
