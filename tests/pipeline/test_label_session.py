"""`rlhfkit label` and `rlhfkit labels` at the real command line, with a person who votes at the page."""

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.errors import DataError
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.transfer import export_store
from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import label_session as label
from rlhfkit.pipeline import rounds as loop
from rlhfkit.rundir.directory import RunDir
from tests.feedback.labelling import numbered_pairs
from tests.people import Person, ctrl_c, free_port

PAIRS = [{"prompt": f"Say {number}:", "response_a": " good one", "response_b": " bad"} for number in range(8)]
PROMPTS = [{"prompt": f"prompt {number}:"} for number in range(12)]
RECIPE = """
name = "mine"
stages = ["sft", "preferences", "reward_model"]

[model]
path = "model"
device = "cpu"

[data]
max_prompt_tokens = 24
demonstrations = { path = "demonstrations.jsonl" }
prompts = { path = "prompts.jsonl" }

[sft]
max_tokens = 48

[preferences]
annotators = { type = "people" }

[rollout]
max_response_tokens = 6

[reward_model]
normalization_responses = 4
"""


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def call(command_line, monkeypatch):
    """Run the command line in this process → exit code, stdout, stderr."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return command_line


@pytest.fixture
def desk(tmp_path, directory_of, monkeypatch):
    """A directory with pairs, prompts, a model and a recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text(jsonl(PAIRS))
    (tmp_path / "prompts.jsonl").write_text(jsonl(PROMPTS))
    (tmp_path / "demonstrations.jsonl").write_text(jsonl({"prompt": f"Say {n}:", "completion": " yes"} for n in (1, 2)))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "model").symlink_to(directory_of("llama"))
    return tmp_path


@pytest.fixture
def run(desk):
    """A run that has its SFT model, and stopped before anybody labelled."""
    loop.run(load_recipe("recipe.toml", ['stages=["sft"]']), Path("run"), progress=Progress(quiet=True))
    run_dir = RunDir("run")
    recipe = load_recipe("recipe.toml").recipe
    run_dir.config.write_text(recipe.model_dump_json())
    return run_dir


@pytest.fixture
def labelled(desk):
    """labels.db, where a run keeps it: two pairs to train on, of which Ada and Bo disagree on one, and one to test."""
    with Store.open("labels.db") as store:
        for number, part in enumerate(("train", "train", "test"), start=1):
            store.add_pairs([Pair(f"p{number}", f"Say {number}:", " good", " bad", part=part)])
            store.add_votes([Vote(f"v{number}", f"p{number}", "Ada", Choice("preference", 3), "a", 2.0, 3.0)])
        store.add_votes([Vote("v4", "p2", "Bo", Choice("preference", -1), "a", 2.0, 3.0)])
    return desk / "labels.db"


def label_until_done(call, *arguments, num=None):
    """The command with a person at its page, who presses Ctrl-C at the end → person, exit code, stdout, stderr."""
    port = free_port()
    person = Person(port, num=num, then=ctrl_c)
    return person, *call("label", *arguments, "--port", port, "--no-browser")


def the_error(ended):
    """The line that the command ends with."""
    code, output, errors = ended
    assert (code, output) == (1, ""), errors
    assert "Traceback" not in errors
    assert "this is a bug" not in errors
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    return last


def training_command(output, *, recipe):
    """The command that `label` ends with, for a recipe of one's own."""
    line = output.splitlines()[-1].strip()
    words = shlex.split(line)
    assert words[:2] == ["rlhfkit", "run"]
    return [recipe if word == "RECIPE" else word for word in words[1:]]


# ── label ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
def test_label_pairs_serves_until_ctrl_c_and_ends_with_a_summary(desk):
    (desk / "rules.md").write_text("Be kind.")
    port = free_port()
    command = ["label", "--pairs", "pairs.jsonl", "--port", str(port), "--guidelines", "rules.md"]
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhfkit", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        person = Person(port, num=3).finish()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert person.guidelines == "Be kind."
    assert errors == f"the page is at http://127.0.0.1:{port}/; Ctrl-C ends it, and keeps every vote\n"
    assert re.match(r"labels\.db holds 8 pairs, [23] with all the votes asked for\n", output)
    assert "next: rlhfkit labels report labels.db\n" in output
    with Store.open("labels.db") as store:
        assert len(store.votes()) == 3


@pytest.mark.thorough
def test_label_goes_on_where_it_was_and_its_last_line_trains(desk, call):
    first, code, _, _ = label_until_done(call, "--pairs", "pairs.jsonl", num=3)
    assert code == 0
    second, code, output, _ = label_until_done(call, "--pairs", "pairs.jsonl")
    assert code == 0
    assert len(first.finish().seen) == 3
    assert len(second.finish().seen) == 5
    assert output.startswith("labels.db holds 8 pairs, 7 with all the votes asked for\n")  # one is shared by three
    stages = "stages=['reward_model']"
    command = training_command(output, recipe="recipe.toml")
    code, output, errors = call(*command, stages, "--run-dir", "trained")
    assert code == 0, errors
    assert {row["chosen"] for row in map(json.loads, Path("trained/preferences.jsonl").read_text().splitlines())} == {
        " good one"
    }


def test_label_prompts_fits_the_models_context(desk, call):
    arguments = ("--prompts", "prompts.jsonl", "--model", "model", "--num-pairs", "5")
    person, code, _, errors = label_until_done(call, *arguments)
    person.finish()
    assert code == 0, errors
    with Store.open("labels.db") as store:
        assert {pair.model_a for pair in store.pairs()} == {"model"}
        assert {pair.settings["max_response_tokens"] for pair in store.pairs()} == {32}  # half of 64
        assert len(store.pairs()) == len(person.seen) == 5
        assert {pair.part for pair in store.pairs()} == {"train", "test"}


@pytest.mark.thorough
def test_label_run_samples_again_only_when_nothing_is_left(run, call):
    rounds = []
    for num in (2, None, None):
        person, code, output, errors = label_until_done(call, "run", "--num-pairs", "5", num=num)
        assert code == 0, errors
        person.finish()
        with Store.open(run.labels) as store:
            rounds.append([pair.round for pair in store.pairs()])
    assert rounds == [[1] * 5, [1] * 5, [1] * 5 + [2] * 5]
    assert not Path("labels.db").exists()
    # The recipe's own stage "preferences" would ask again, so the command leaves it out.
    command = training_command(output, recipe="?")
    assert command[:4] == ["run", "run/recipe.toml", "--run-dir", "run-labelled"]
    assert 'stages=["sft", "reward_model"]' in command
    code, output, errors = call(*command)
    assert code == 0, errors
    assert len(Path("run-labelled/preferences.jsonl").read_text().splitlines()) > 0


def test_label_keeps_the_votes_per_pair_of_a_store(labelled, call):
    for asked, overlap in ((("--votes-per-pair", "2"), 2), ((), 2), (("--votes-per-pair", "1"), 1)):
        person, code, _, _ = label_until_done(call, "--pairs", "pairs.jsonl", *asked, num=0)
        assert code == 0
        person.finish()
        with Store.open(labelled) as store:
            assert store.settings.overlap == overlap


def test_label_takes_another_port_and_gives_each_annotator_a_link(desk, call, monkeypatch):
    served = []
    real = label.serve
    port = free_port()

    def serve(app, *, on_ready, **settings):
        def ready(address):
            on_ready(address)
            served.append(address)
            ctrl_c()

        real(app, on_ready=ready, **settings)

    monkeypatch.setattr(label, "serve", serve)
    with Store.open("other.db") as store, label_serving(store, port):
        code, output, errors = call(
            "label", "--pairs", "pairs.jsonl", "--port", port, "--annotator", "Ada", "--annotator", "Bo"
        )
    assert code == 0, errors
    assert served[0].port != port
    first, ada, bo = errors.splitlines()
    url = f"http://127.0.0.1:{served[0].port}/"
    assert first == f"the page is at {url} (port {port} is taken); Ctrl-C ends it, and keeps every vote"
    tokens = [re.fullmatch(rf"  for (\w+): {re.escape(url)}\?token=(\S+)", line).groups() for line in (ada, bo)]
    with Store.open("labels.db") as store:
        assert [store.annotator_of(token) for _, token in tokens] == ["Ada", "Bo"]
    assert "  nobody has voted yet\n" in output
    assert output.endswith("label more pairs: no pair to train on has a majority yet\n")


def label_serving(store, port):
    from rlhfkit.web.app import create_app
    from rlhfkit.web.server import serving

    return serving(create_app(store), port=port)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "give one of RUN, --prompts and --pairs; there is none"),
        (("run", "--pairs", "pairs.jsonl"), "give one of RUN, --prompts and --pairs; there is RUN and --pairs"),
        (("--prompts", "prompts.jsonl"), "--prompts FILE and --model DIR belong together"),
        (("--pairs", "pairs.jsonl", "--model", "model"), "--prompts FILE and --model DIR belong together"),
        (("--pairs", "pairs.jsonl", "--calibration-share", "2"), "--calibration-share"),
        (("--pairs", "pairs.jsonl", "--votes-per-pair", "0"), "--votes-per-pair"),
    ],
    ids=["none", "two", "no model", "model of pairs", "share", "no votes"],
)
def test_wrong_usage_of_label_exits_with_2(desk, call, arguments, words):
    code, output, errors = call("label", *arguments)
    assert (code, output) == (2, "")
    assert words in " ".join(errors.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere",), "nowhere is not a run directory, as it has no config.json; make one with: rlhfkit run RECIPE"),
        (("--pairs", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--pairs", "prompts.jsonl"), "prompts.jsonl:1: the row has prompt; expected"),
        (("--prompts", "nowhere.jsonl", "--model", "model"), "data.prompts: nowhere.jsonl is not in"),
        (("--prompts", "prompts.jsonl", "--model", "nowhere"), "--model nowhere"),
        (("--prompts", "one.jsonl", "--model", "model"), "1 prompt: too few for training and test"),
        (
            ("--pairs", "pairs.jsonl", "--guidelines", "nowhere.md"),
            "guidelines nowhere.md cannot be read (No such file or directory); expected a text file in UTF-8",
        ),
        (
            ("--pairs", "pairs.jsonl", "--host", "0.0.0.0"),
            "host 0.0.0.0 lets other machines in, where people need a link with a token; name the people (--annotator",
        ),
        (
            ("--prompts", "prompts.jsonl", "--model", "model", "--host", "0.0.0.0"),
            "host 0.0.0.0 lets other machines in",
        ),
        (("--pairs", "pairs.jsonl", "--database", "nowhere/labels.db"), "nowhere/labels.db: unable to open database"),
        (("--pairs", "pairs.jsonl", "--database", "recipe.toml"), "recipe.toml: file is not a database; expected"),
        (
            ("--pairs", "pairs.jsonl", "--database", "postgresql://ada:secret@host/labels"),
            "database postgresql://…: the address holds a password, which would stand in files",
        ),
        (
            ("--pairs", "pairs.jsonl", "--database", "postgresql://nobody@127.0.0.1:1/labels"),
            "check that the server runs",
        ),
    ],
    ids=[
        "no run",
        "no pairs",
        "not pairs",
        "no prompts",
        "no such model",
        "one prompt",
        "no guidelines",
        "host",
        "host with a model",
        "no directory",
        "no database",
        "password",
        "no server",
    ],
)
def test_label_that_fails_before_the_page_is_up_leaves_nothing(desk, call, arguments, words):
    (desk / "one.jsonl").write_text(jsonl(PROMPTS[:1]))
    before = {path: path.read_bytes() for path in desk.iterdir() if path.is_file()}
    error = the_error(call("label", *arguments))
    assert words in error
    assert "secret" not in error
    assert {path: path.read_bytes() for path in desk.iterdir() if path.is_file()} == before


def test_label_of_a_run_without_a_model_or_prompts_says_what_to_do(run, call):
    shutil.rmtree(run.model("sft"))
    assert "run has no model yet; finish it with the command that began it" in the_error(call("label", "run"))
    shutil.copytree(Path("model").resolve(), run.model("sft"))
    settings = json.loads(run.config.read_text())
    settings["stages"], settings["data"]["prompts"] = ["sft"], None
    run.config.write_text(json.dumps(settings))
    assert "has no data.prompts; name prompts: rlhfkit label --prompts FILE --model run/sft" in the_error(
        call("label", "run")
    )
    assert not run.labels.exists()


def test_label_of_a_control_task_says_that_there_is_no_text(desk, call):
    run_dir = RunDir("control")
    run_dir.path.mkdir()
    run_dir.recipe.touch()
    run_dir.config.write_text(load_recipe("cartpole").recipe.model_dump_json())
    assert "control is a run of a control task, whose policy writes no text" in the_error(call("label", "control"))


# ── labels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_report_is_the_same_of_a_file_and_of_its_run_directory(labelled, call):
    run_dir = RunDir("finished")
    run_dir.path.mkdir()
    shutil.copy(labelled, run_dir.labels)
    code, output, errors = call("labels", "report", "labels.db")
    assert (code, errors) == (0, "")
    assert output == call("labels", "report", "finished")[1]
    code, output, _ = call("labels", "report", "labels.db", "--json")
    assert json.loads(output)["num_votes"] == 4


def test_report_of_a_run_finds_the_store_that_its_recipe_names(labelled, run, call):
    settings = json.loads(run.config.read_text())
    settings["preferences"]["database"] = str(labelled)
    run.config.write_text(json.dumps(settings))
    assert call("labels", "report", "run") == call("labels", "report", "labels.db")


@pytest.mark.parametrize("format", ["rlhfkit", "preferences", "hh", "argilla", "argilla-nested", "label-studio"])
def test_every_export_is_written_and_comes_back(labelled, call, format):
    code, output, errors = call("labels", "export", "labels.db", "out.json", "--format", format)
    assert (code, errors) == (0, "")
    num = 2 if format in ("preferences", "hh") else 3  # the pair on which Ada and Bo disagree makes no preference
    assert output.startswith(f"out.json: {num} records\n")
    if num == 2:
        assert "  left out: " in output
    if format == "argilla-nested":
        return  # it has no status, so it is not read back without a word
    code, output, errors = call("labels", "import", "new.db", "out.json", "--format", format)
    assert (code, errors) == (0, "")
    assert output.startswith(f"new.db: {num} new pairs, {2 if num == 2 else 4} new votes\n")
    again = call("labels", "import", "new.db", "out.json", "--format", format)
    votes = 2 if num == 2 else 4
    old = output.replace(f"{num} new pairs", "0 new pairs").replace(f"{votes} new v", "0 new v").splitlines()
    assert again[0] == 0
    assert set(again[1].splitlines()) - {f"  known already: {votes} votes"} <= set(old)
    assert again[1].splitlines()[0] == old[0]
    assert f"  known already: {votes} votes" in again[1]


def test_export_of_one_part_with_margin(labelled, call):
    code, _, _ = call(
        "labels", "export", "labels.db", "o.jsonl", "--format", "preferences", "--part", "test", "--margin"
    )
    assert code == 0
    (row,) = map(json.loads, Path("o.jsonl").read_text().splitlines())
    assert (row["prompt"], row["chosen"], row["rejected"], row["margin"]) == ("Say 3:", " good", " bad", 0.75)


def test_import_into_a_run_goes_to_its_people_and_not_to_simulated_ones(desk, call):
    run_dir = RunDir("run")
    run_dir.path.mkdir()
    Store.open(run_dir.simulated_labels).close()
    rows = [{"prompt": "Say it:", "chosen": " yes", "rejected": " no"}]
    Path("in.jsonl").write_text(jsonl(rows))
    code, output, errors = call("labels", "import", "run", "in.jsonl", "--format", "preferences", "--annotator", "Cy")
    assert (code, output) == (0, "run: 1 new pair, 1 new vote\n  left out: degrees, read as 3 (1)\n"), errors
    with Store.open(run_dir.labels) as store:
        assert [vote.annotator for vote in store.votes()] == ["Cy"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "nowhere.db"),
        ("report", "sqlite:///nowhere.db"),
        ("export", "nowhere.db", "out.jsonl", "--format", "hh"),
        ("report", "."),
    ],
    ids=["report", "URL", "export", "directory"],
)
def test_a_missing_store_is_reported_and_not_made(desk, call, arguments):
    Path("in.jsonl").write_text("")
    error = the_error(call("labels", *arguments))
    assert re.search(r"there is no store \S+; make one with: rlhfkit label RUN", error)
    assert not any(path.suffix == ".db" for path in desk.iterdir())


@pytest.mark.parametrize(
    ("format", "content", "words"),
    [
        (
            "preferences",
            jsonl([{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b"}]),
            "in.jsonl:2",
        ),
        ("hh", jsonl([{"chosen": "\n\nHuman: hi\n\nAssistant: a"}]), "in.jsonl:1"),
        ("rlhfkit", jsonl([{"pair": {"id": "p"}, "votes": []}]), "in.jsonl:1"),
        ("argilla", json.dumps([{"id": "p17", "prompt": "a"}]), "in.jsonl"),
        ("label-studio", json.dumps([{"id": 7, "data": {}}]), "in.jsonl"),
        ("preferences", "{", "in.jsonl"),
    ],
    ids=["preferences", "hh", "rlhfkit", "argilla", "label-studio", "no JSON"],
)
def test_a_broken_import_names_file_and_record_and_makes_no_store(desk, call, format, content, words):
    Path("in.jsonl").write_text(content)
    error = the_error(call("labels", "import", "new.db", "in.jsonl", "--format", format))
    assert words in error
    assert not Path("new.db").exists()


def test_labels_of_an_unknown_format_is_wrong_usage(labelled, call):
    assert call("labels", "export", "labels.db", "out", "--format", "xml")[0] == 2
    assert call("labels", "import", "labels.db", "out", "--format", "xml")[0] == 2


def test_an_export_never_takes_the_place_of_a_database(tmp_path):
    database = tmp_path / "labels.db"
    with Store.open(database) as store:
        store.add_pairs(numbered_pairs(2))
    for target in (database, link_to(database)):
        with pytest.raises(DataError, match="is a database, in which votes may be; choose another file"):
            export_store(str(database), target, format="rlhfkit", part=None, use_margin=False, min_votes=1)
    with Store.open(database) as store:
        assert len(store.pairs()) == 2


def link_to(path):
    link = path.with_name("export.json")
    link.symlink_to(path)
    return link


def test_an_export_to_a_directory_that_is_not_there_is_reported(tmp_path):
    Store.open(tmp_path / "labels.db").close()
    with pytest.raises(DataError, match=r"there is no directory .*none; make it"):
        export_store(
            str(tmp_path / "labels.db"), tmp_path / "none" / "x", format="hh", part=None, use_margin=False, min_votes=1
        )


def test_an_export_tells_what_stays_in_the_store(tmp_path):
    with Store.open(tmp_path / "labels.db") as store:
        store.add_pairs(numbered_pairs(2))
        store.set_guidelines("Be kind.")
        task = store.lease("Ada")
        store.vote(Vote("v", task.pair.id, "Ada", Choice("tie"), task.shown_left, 1.0, 1.0))
        store.undo("Ada", id="u")
    lines = export_store(
        str(tmp_path / "labels.db"), tmp_path / "x.json", format="rlhfkit", part=None, use_margin=False, min_votes=1
    )
    assert lines[1:] == ["  left out: votes that were taken back (1)", "  left out: texts of the guidelines (1)"]
