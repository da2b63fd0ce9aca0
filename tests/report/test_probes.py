"""What else changed: in the report and on the model card, to the last number, and with no text that does something."""

import json
import shutil

import pytest
import yaml

from rlhfkit.probes.compare import compared
from rlhfkit.probes.probe import Gate, Measurement
from rlhfkit.report.model_card import render_model_card, write_model_card
from rlhfkit.report.page import write_report
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.probe_results import ProbeResults, ProbeSource, shown
from tests.report.conftest import write_fake_run
from tests.report.test_page import HOSTILE, Page

GOOD = Gate("a sentence is likelier than with two of its words exchanged", (True,) * 40, 0.7)
LOST = Gate(GOOD.what, (True,) * 10 + (False,) * 30, 0.7)


def measurement(probe, values, *, gate=GOOD, of="model", **others):
    items = tuple(f"{HOSTILE} {row}" for row in range(len(values)))
    settings = {"better": "ideal", "ideal": 0.5 if of == "model" else 0.0, "words": f"does {probe}"}
    return Measurement(
        probe=probe,
        name="x",
        unit="share" if of == "model" else "score",
        values=tuple(values),
        clusters=tuple(map(str, range(len(values)))),
        items=items,
        gate=gate,
        of=of,
        **{**settings, **others},
    )


def results():
    before = [
        measurement("still", [1.0, 0.0] * 20),
        measurement("fairer", [1.0] * 36 + [0.0] * 4),
        measurement("lost", [1.0] * 36 + [0.0] * 4),
        measurement("weak", [1.0] * 40, gate=LOST),
    ]
    after = [
        measurement("still", [1.0, 0.0] * 20),
        measurement("fairer", [1.0, 0.0] * 20, answers=(HOSTILE,) * 40),
        measurement("lost", [1.0, 0.0] * 20, gate=LOST),
        measurement("weak", [1.0] * 40, gate=LOST),
    ]
    reward = measurement("pays", [1.0 + 0.01 * row for row in range(12)], gate=None, of="reward", floor=0.2)
    measures = compared(before, [*after, reward], primary="still", seed=0)
    return ProbeResults(
        probes={measure.probe: "" for measure in measures},
        primary="still",
        before="SFT model",
        after="policy",
        reward="reward model",
        num_samples=5,
        response_tokens=20,
        measures=tuple(measures),
        sources=(ProbeSource(probe="still", path="mine.jsonl", sha256="0" * 64, num_rows=40),),
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = write_fake_run(tmp_path_factory.mktemp("probes") / "run", iterations=4)
    run.probes.write_text(results().model_dump_json())
    run.model("policy").mkdir()
    (run.model("policy") / "config.json").write_text("{}")
    return run


def test_each_reading_is_what_the_numbers_say():
    readings = {measure.probe: measure.reading for measure in results().measures}
    assert readings == {
        "still": "no evidence",
        "fairer": "better",
        "lost": "damage",
        "weak": "too weak",
        "pays": "found",
    }


def test_sentences_begin_with_the_primary_one_and_end_with_what_is_not_known():
    sentences = results().sentences()
    assert sentences[0].startswith("Still, does still (declared beforehand): No evidence of a change: 50.0")
    assert "A change under 15.0\u202f% would probably not have been seen" in sentences[0]  # six of forty
    assert sentences[1].startswith("Lost, does lost: Damage:") and "only because" in sentences[1]
    assert sentences[2].startswith("Pays: The reward does pays: 1.05 (95")
    assert sentences[-1] == "1 number (weak) say nothing, as the model is too weak for what is asked."
    assert not any("no change" in sentence for sentence in sentences)


def test_too_few_items_to_show_a_change_are_said_to_be():
    few = [measurement("few", [1.0, 0.0, 0.0])]
    (found,) = compared(few, few, primary="few", seed=0)
    assert found.detectable is None
    assert found.sentence.endswith(". 3 items may be too few to show any change.")


def test_the_report_has_the_section_and_texts_stay_text(run):
    page = Page(write_report(run).read_text())
    assert (run.model("policy") / "README.md").read_text() == render_model_card(run)
    assert "What else changed" in page.text and page.text.count("declared beforehand") >= 2
    for words in ("✖ damage", "▼ better", "– too weak to say", "● found", "mine.jsonl: 40 rows"):
        assert words in page.text
    assert HOSTILE in page.text
    assert not any(tag == "script" or "onerror" in attributes for tag, attributes in page.elements)
    assert ("#probes") in {attributes.get("href") for tag, attributes in page.elements if tag == "a"}


@pytest.mark.thorough
def test_the_report_has_what_several_seeds_have_in_common_beside_the_runs_own(run, tmp_path):
    copy = RunDir(shutil.copytree(run.path, tmp_path / "run"))
    over = results().model_copy(update={"num_seeds": 3, "primary": "lost"})
    copy.probes_over_seeds.write_text(over.model_dump_json())
    page = Page(write_report(copy).read_text())
    assert "What else changed over 3 seeds" in page.text and "Declared beforehand: lost" in page.text
    assert "#probes-over-seeds" in {attributes.get("href") for tag, attributes in page.elements if tag == "a"}
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert {"probes", "probes-over-seeds"} <= set(ids) and len(ids) == len(set(ids))
    assert "over 3 seeds" not in Page(write_report(run).read_text()).text


def test_a_run_in_rounds_shows_the_probes_of_the_newest_round_that_has_some(run, tmp_path):
    whole = write_fake_run(tmp_path / "run", iterations=2)
    whole.config.write_text(json.dumps({**json.loads(whole.config.read_text()), "rounds": 3}))
    assert "What else changed" not in Page(write_report(whole).read_text()).text
    for number in (1, 2, 3):
        one = write_fake_run(whole.round(number).path, iterations=2)
        one.recipe.touch()
        if number < 3:
            one.probes.write_text(results().model_copy(update={"before": f"start of {number}"}).model_dump_json())
    page = Page(write_report(whole).read_text())
    assert "What else changed, in round 2" in page.text and "start of 2" in page.text
    assert "start of 1" not in page.text


def test_the_card_has_front_matter_that_the_hub_reads(run):
    card = pytest.importorskip("huggingface_hub").ModelCard(render_model_card(run))
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-generation")
    assert card.data.base_model == "models/tiny-en" and "rlhf" in card.data.tags
    (reward, *_) = card.data.eval_results
    assert reward.metric_type == "win_rate" and 0 <= reward.metric_value <= 1
    for heading in ("## Training", "## Results", "## What else changed", "## Limits"):
        assert heading in card.text
    assert "Too weak for the probes weak" in card.text and "one seed" in card.text


def test_the_card_names_no_directory_of_this_machine(run, tmp_path):
    manifest = json.loads(run.manifest.read_text())
    manifest["data"] = [
        {"use": "prompts", "path": "/home/somebody/secret/rows.jsonl", "sha256": "0" * 64, "num_rows": 3}
    ]
    other = write_fake_run(tmp_path / "run", iterations=2)
    other.manifest.write_text(json.dumps(manifest))
    config = json.loads(other.config.read_text())
    (tmp_path / "my-model").mkdir()
    config["model"]["path"] = str(tmp_path / "my-model")
    other.config.write_text(json.dumps(config))
    card = render_model_card(other)
    assert "rows.jsonl" in card and "my-model" in card
    assert "/home/somebody" not in card and str(tmp_path) not in card
    assert "base_model" not in yaml.safe_load(card.split("---")[1])


def test_a_card_that_somebody_wrote_stays(run):
    readme = run.model("policy") / "README.md"
    assert write_model_card(run) == readme and readme.read_text() == render_model_card(run)
    readme.write_text("# Mine\n")
    assert write_model_card(run) is None and readme.read_text() == "# Mine\n"
    readme.unlink()


@pytest.mark.parametrize(
    ("value", "unit", "signed", "words"),
    [
        (0.613, "share", False, "61.3\u202f%"),
        (-0.0214, "share", True, "−2.1 points"),
        (0.4, "nats", True, "+0.40 nats"),
        (-0.001, "score", True, "0.00"),
        (None, "words", False, "–"),
    ],
)
def test_values_are_written_with_sign_and_unit(value, unit, signed, words):
    assert shown(value, unit, signed=signed) == words
