"""A run that waits for people at the page: nothing is lost, and nobody is asked twice."""

import json
import re

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import ConfigError
from rlhfkit.feedback.store import Store
from rlhfkit.labelling import people
from rlhfkit.pipeline import evaluate as evaluation
from rlhfkit.pipeline import rounds as loop
from rlhfkit.pipeline import run as pipeline
from rlhfkit.rundir.directory import RunDir
from rlhfkit.web import server
from tests.people import Person, ctrl_c, free_port
from tests.pipeline.whole_runs import Talk, frozen, snapshot_of


@pytest.fixture(autouse=True)
def no_charts(monkeypatch):
    """Drawing takes longer than training such models."""
    for module in (loop, pipeline, evaluation):
        monkeypatch.setattr(module, "report_or_warn", lambda run_dir, warn: run_dir.report.touch())


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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
