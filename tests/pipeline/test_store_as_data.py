"""A reward model that learns from a store of votes, to which others may come."""

import json
from pathlib import Path

import pytest

from rlhfkit.config.data import RowsConfig
from rlhfkit.config.load import load_recipe
from rlhfkit.data import load_preferences
from rlhfkit.errors import ConfigError, DataError, StoreError
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.pipeline import evaluate as evaluation
from rlhfkit.pipeline import rounds as loop
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rundir.directory import RunDir
from tests.pipeline.whole_runs import Killed, Talk, frozen, metrics


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Drawing takes longer than training such models."""
    for module in (loop, pipeline, evaluation):
        monkeypatch.setattr(module, "report_or_warn", lambda run_dir, warn: run_dir.report.touch())


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
