import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from typing import Any

import pytest

from rlhfkit.errors import CheckpointError
from rlhfkit.report.model_card import render_model_card
from rlhfkit.report.page import render_report, report_or_warn, write_report
from rlhfkit.rundir.directory import RunDir
from tests.report.conftest import fake_evaluation, write_fake_run

HOSTILE = (
    """<script>alert(1)</script> </style></title> <img src=x onerror=alert(2)> "double" 'single' &amp; {{ 7 * 7 }}"""
)
VOID_ELEMENTS = {"meta", "link", "br"}


class Page(HTMLParser):
    """Elements and text of a page, which must be well nested."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID_ELEMENTS:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.text += data

    def headings(self) -> list[str | None]:
        """Ids of the sections."""
        return [attributes.get("id") for tag, attributes in self.elements if tag == "h2" and "id" in attributes]


def change(path: Any, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_report_of_a_whole_run_has_every_section(fake_run: RunDir):
    path = write_report(fake_run)
    assert path == fake_run.report
    page = Page(path.read_text(encoding="utf-8"))
    expected = ["numbers", "samples", "ppo", "development", "reward-model", "supervised", "settings", "origin", "words"]
    assert page.headings() == expected
    assert "PPO made the responses better." in page.text
    for words in ("0.02", "1.37", "86\u202f%", "73\u202f%", "6.21 nats", "bag of words", "10 min 01 s", "Synthetic"):
        assert words in page.text
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert links == [f"#{name}" for name in expected]


@pytest.mark.thorough
def test_report_is_small_and_the_same_run_gives_the_same_bytes(fake_run: RunDir):
    first = write_report(fake_run).read_bytes()
    assert len(first) < 500_000
    assert write_report(fake_run).read_bytes() == first


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a whole run, for tests that only read it."""
    return render_report(write_fake_run(tmp_path_factory.mktemp("whole")))


def test_page_loads_nothing_and_runs_nothing(whole: str):
    html, page = whole, Page(whole)
    policies = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    assert not re.search(r"https?://|//[a-z]|@import|javascript:", html)
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "img", "form", "base"}
        assert not any(name.startswith("on") for name in attributes)
        for name in ("href", "xlink:href", "src"):
            assert (attributes.get(name) or "#").startswith(("#", "data:,"))


def test_every_chart_has_a_title_a_description_and_a_caption(whole: str):
    charts = re.findall(r"<h3>([^<]+)</h3>\s*<figure>(.*?)</figure>", whole, flags=re.S)
    assert len(charts) > 15
    for title, figure in charts:
        assert re.search(rf'<svg viewBox="[^"]+" role="img" aria-label="{re.escape(title)}', figure)
        assert re.search(r"<figcaption>\s*\S[^<]{20,}</figcaption>", figure)


def test_ids_are_unique_and_every_reference_has_its_target(whole: str):
    page = Page(whole)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for value in attributes.values():
            assert set(re.findall(r"url\(#([^)]+)\)", value or "")) <= set(ids)


def hostile_run(run: RunDir, text: str) -> str:
    """The page of a run in which every text that comes from outside is `text`."""
    change(run.config, name=text, purpose=text, model={"path": text, text: text})
    change(run.manifest, platform=text, versions={text: text}, models=[text, {"path": text, text: text}])
    evaluation = json.loads(run.evaluation.read_text())
    for sample in evaluation["samples"]:
        sample.update(prompt=text, sft=text, policy=text)
    change(run.evaluation, samples=evaluation["samples"], judge_name=text, reward_name=text)
    groups = [{"label": text, "accuracy": 0.5, "count": 3}]
    if run.reward_model_report.exists():
        change(run.reward_model_report, baselines={text: 0.6}, by_length_difference=groups)
    samples = [{"iteration": at, "prompt": text, "response": text, "finish_reason": text} for at in range(4)]
    run.samples.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return write_report(run).read_text(encoding="utf-8")


def test_text_of_models_and_data_is_never_markup(fake_run: RunDir, whole: str):
    normal = {tag for tag, _ in Page(whole).elements}
    html = hostile_run(fake_run, HOSTILE)
    page = Page(html)
    assert {tag for tag, _ in page.elements} <= normal
    assert page.text.count(HOSTILE) > 30
    assert "<script" not in html
    assert html.count("</style>") == 1
    assert "49" not in re.findall(r"single&#39; &amp;amp; (\S+)", html)


@pytest.mark.parametrize(
    "text",
    [
        "هذا فيلم جميل",
        "🎬🍿 \U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u202e desrever",
        "$x^2$ \\frac{1}",
        "a\nb\tc",
        "x" * 5000,
    ],
)
def test_unusual_text_is_shown_as_it_is(quick_run: RunDir, text: str):
    html = hostile_run(quick_run, text)
    assert f'<p class="text" dir="auto">{text}</p>' in html


@pytest.mark.thorough
def test_lone_surrogates_and_control_characters_do_not_stop_the_report(fake_run: RunDir):
    assert "\\ud800" in hostile_run(fake_run, "\ud800 \x00 \x1b[31m")


def test_empty_responses_are_named(quick_run: RunDir):
    evaluation = json.loads(quick_run.evaluation.read_text())
    evaluation["samples"][0]["policy"] = ""
    change(quick_run.evaluation, samples=evaluation["samples"])
    assert "(empty)" in render_report(quick_run)


@pytest.mark.parametrize("name", ["config", "manifest", "metrics", "samples", "evaluation", "stages"])
def test_any_file_may_be_missing(quick_run: RunDir, name: str):
    assert not quick_run.reward_model_report.exists()
    getattr(quick_run, name).unlink()
    Page(render_report(quick_run))


def test_an_empty_run_has_a_report_that_says_so(tmp_path):
    page = Page(render_report(RunDir(tmp_path)))
    assert "Too early to say." in page.text
    assert tmp_path.name in page.text
    assert page.headings() == ["words"]


def test_a_run_in_progress_says_how_far_it_is(quick_run: RunDir):
    quick_run.evaluation.unlink()
    quick_run.manifest.unlink()
    quick_run.stages.write_text(json.dumps({"sft": {}, "preferences": {}, "reward_model": {}, "judge": {}}))
    rows = quick_run.metrics.read_text().splitlines()
    last = next(at for at, row in enumerate(rows) if json.loads(row).get("iteration") == 37 and '"ppo"' in row)
    # The line after iteration 37 is half written.
    quick_run.metrics.write_text("\n".join(rows[: last + 1]) + '\n{"stage": "ppo", "iterat')
    page = Page(render_report(quick_run))
    assert "Not evaluated yet." in page.text
    assert "PPO has done 37 of 120 iterations." in page.text
    assert "iteration 37 of 120" in page.text
    assert "to come" in page.text
    assert "Score in training" in page.text
    assert "unreadable" not in page.text


def test_unreadable_lines_are_left_out_and_counted(quick_run: RunDir):
    with quick_run.metrics.open("a") as file:
        file.write('garbage\n[1]\n\n{"stage": "ppo", "iteration": 121, "score/mean": NaN, "ref_kl/sequence": "x"}\n')
    assert "2 unreadable lines of metrics or samples left out (" in Page(render_report(quick_run)).text


def test_an_iteration_that_was_repeated_after_a_kill_counts_once(quick_run: RunDir):
    quick_run.evaluation.unlink()
    rows = [{"stage": "ppo", "iteration": at, "score/mean": value} for at, value in [(1, 0.0), (2, 9.0), (2, 1.0)]]
    quick_run.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = Page(render_report(quick_run)).text
    assert "PPO has done 2 of 120 iterations" in text
    assert "went from 0.00 to 1.00" in text


def test_a_single_iteration_can_be_shown(quick_run: RunDir):
    quick_run.metrics.write_text('{"stage": "ppo", "iteration": 1, "score/mean": 0.5, "ref_kl/sequence": 0.0}\n')
    Page(render_report(quick_run))


def test_evaluation_without_ppo_shows_one_model(quick_run: RunDir):
    evaluation = json.loads(quick_run.evaluation.read_text())
    change(quick_run.evaluation, models={"sft": evaluation["models"]["sft"]}, win_rate=None, samples=[])
    page = Page(render_report(quick_run))
    assert "95\u202f% interval: −0.10 to 0.14 before" in page.text
    assert "samples" not in page.headings()


def test_infinite_and_missing_values_are_tolerated(quick_run: RunDir):
    evaluation = json.loads(quick_run.evaluation.read_text())
    policy = evaluation["models"]["policy"]
    policy.update(perplexity=float("inf"), distinct_1=None)
    policy["score"] = {"mean": 1.0, "low": float("nan"), "high": float("nan")}
    change(quick_run.evaluation, models=evaluation["models"])
    assert "∞" in Page(render_report(quick_run)).text


def test_origin_has_versions_hashes_and_what_stages_noted(quick_run: RunDir):
    models = [{"name": "policy", "path": "run/policy", "sha256": "abc", "template": None}, "org/model"]
    change(quick_run.manifest, models=models, device="cpu")
    quick_run.stages.write_text(json.dumps({"sft": {"validation/loss": 3.14159, "num_cut": 0}, "judge": {}}))
    text = Page(render_report(quick_run)).text
    for words in ("torch 2.13.0+cpu", "device", "model: policy", "run/policy\nsha256 abc", "org/model"):
        assert words in text
    assert "validation/loss 3.14 · num_cut 0" in text
    assert "None" not in text


def test_passwords_in_addresses_are_not_shown(quick_run: RunDir):
    change(quick_run.config, reward={"type": "http", "url": "http://anna:hunter2@host/score"})
    html = render_report(quick_run)
    assert "hunter2" not in html
    assert "…@host/score" in html


def test_synthetic_runs_and_only_those_carry_the_badge(quick_run: RunDir):
    assert "Synthetic" in Page(render_report(quick_run)).text
    change(quick_run.config, synthetic=False)
    assert "Synthetic" not in Page(render_report(quick_run)).text


def test_development_follows_prompts_that_came_back(quick_run: RunDir):
    rows = [{"iteration": at, "prompt": "same", "response": f"answer {at}", "score": at} for at in range(9)]
    rows += [{"iteration": at, "prompt": f"other {at}", "response": "unseen", "score": 99} for at in range(9)]
    quick_run.samples.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    html = render_report(quick_run)
    assert re.findall(r"answer \d", html) == ["answer 0", "answer 2", "answer 4", "answer 6", "answer 8"]
    assert "unseen" not in html


def test_development_without_such_prompts_takes_iterations_evenly(quick_run: RunDir):
    rows = [{"iteration": at, "prompt": f"prompt {at}", "response": f"answer {at}"} for at in range(11)]
    quick_run.samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert re.findall(r"answer \d+", render_report(quick_run)) == [f"answer {at}" for at in (0, 2, 4, 6, 8, 10)]


def test_a_missing_run_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no run directory"):
        write_report(RunDir(tmp_path / "absent"))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config", "{", r"config\.json is damaged"),
        ("config", "[]", r"config\.json is a list, not an object"),
        ("evaluation", '{"num_prompts": 3}', r"evaluation\.json: models: Field required"),
        ("evaluation", '{"num_prompts": 3, "models": {"sft": {"score": 1}}}', r"models\.sft\.score"),
        ("reward_model_report", '{"accuracy": "high"}', r"reward_model\.json: accuracy"),
    ],
)
def test_a_damaged_file_is_an_error_that_names_it(fake_run: RunDir, name: str, content: str, words: str):
    getattr(fake_run, name).write_text(content)
    with pytest.raises(CheckpointError, match=words):
        render_report(fake_run)


def test_report_needs_no_torch(quick_run: RunDir):
    code = (
        "import sys; from rlhfkit.report.page import write_report; from rlhfkit.rundir.directory import RunDir; "
        f"write_report(RunDir({str(quick_run.path)!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def without_judge(run: RunDir) -> dict[str, Any]:
    """The evaluation of a run that had no judge."""
    content = json.loads(run.evaluation.read_text())
    for model in content["models"].values():
        del model["judge"], model["judge_positive_share"]
    del content["win_rate"]["judge"]
    for sample in content["samples"]:
        del sample["judge_sft"], sample["judge_policy"]
    return content


def measured(name: str, *, is_share: bool) -> dict[str, Any]:
    points = 1 if is_share else 100
    estimates = {
        side: {"mean": mean * points, "low": (mean - 0.03) * points, "high": (mean + 0.03) * points}
        for side, mean in (("sft", 0.61), ("policy", 0.7), ("difference", 0.09))
    }
    return {"name": name, "is_share": is_share, **estimates}


CONFUSION = {
    "labels": ["bad", "<i>good"],
    "sft": [[301, 202, 0], [188, 309, 0]],
    "policy": [[351, 152, 0], [148, 349, 0]],
}


def test_a_classification_shows_its_measures_and_who_was_taken_for_what(quick_run: RunDir):
    measures = [measured("accuracy", is_share=True), measured("macro-F1", is_share=True)]
    task = {"num": 1000, "measures": measures, "confusion": CONFUSION}
    quick_run.evaluation.write_text(json.dumps({**without_judge(quick_run), "task": task}))
    page = Page(render_report(quick_run))
    assert "PPO made the model better at its task." in page.text
    assert "confusion" in page.headings()
    told = " ".join(page.text.split())
    assert "Accuracy 61.0 % → 70.0 % likeliest responses; +9.0 points, 95 % interval: +6.0 to +12.0" in told
    assert "Before PPO true class bad <i>good bad 301 202 <i>good 188 309 After PPO" in told
    assert "After PPO true class bad <i>good bad 351 152 <i>good 148 349" in told
    assert "Judged positive" not in told
    assert "Win rate (judge)" not in told
    assert "Distinct-2" not in told.split("Words")[0]


def test_responses_that_are_no_class_have_a_column_of_their_own(quick_run: RunDir):
    table = {**CONFUSION, "sft": [[301, 200, 2], [188, 309, 0]]}
    task = {"num": 1000, "measures": [measured("accuracy", is_share=True)], "confusion": table}
    quick_run.evaluation.write_text(json.dumps({**without_judge(quick_run), "task": task}))
    told = " ".join(Page(render_report(quick_run)).text.split())
    assert "true class bad <i>good none of them bad 301 200 2 <i>good 188 309 0" in told


def test_a_translation_shows_its_measures_as_points(quick_run: RunDir):
    task = {"num": 260, "measures": [measured("chrF", is_share=False), measured("BLEU", is_share=False)]}
    quick_run.evaluation.write_text(json.dumps({**without_judge(quick_run), "task": task}))
    page = Page(render_report(quick_run))
    told = " ".join(page.text.split())
    assert "chrF 61.0 → 70.0 likeliest responses; +9.0 points" in told
    assert "On 260 held-out prompts, with the likeliest response to each: chrF from 61.0 before PPO to 70.0" in told
    assert "confusion" not in page.headings()


def test_a_constraint_has_a_card_and_a_row_of_the_model_card(quick_run: RunDir):
    before, after = ({"mean": mean, "low": mean - 0.5, "high": mean + 0.5} for mean in (27.0, 19.5))
    held = {"name": "words", "limit": 20.0, "is_upper": True, "sft": before, "policy": after}
    quick_run.evaluation.write_text(json.dumps({**fake_evaluation(), "constraints": [held]}))
    told = " ".join(Page(render_report(quick_run)).text.split())
    assert (
        "Constraint: words 27 → 19.5 wanted at most 20 on average; 95 % intervals: 26.5 to 27.5 before, 19 to 20 after"
    ) in told.replace("\u202f", " ")
    row = "| constraint words, at most 20 on average | 27 (26.5 to 27.5) | 19.5 (19 to 20) |"
    assert row in render_model_card(quick_run)


def test_an_average_of_the_weights_stands_beside_the_policy(quick_run: RunDir):
    content = fake_evaluation()
    of_policy = content["models"]["policy"]
    average = {**of_policy, "score": {"mean": 1.21, "low": 1.1, "high": 1.32}, "ref_kl": 4.5}
    content["ema"] = {
        "model": average,
        "win_rate": {**content["win_rate"], "reward": {"rate": 0.9, "low": 0.85, "high": 0.94, "ties": 0.0}},
        "against_policy": {
            side: {"rate": 0.52, "low": 0.46, "high": 0.58, "ties": 0.1} for side in ("reward", "judge")
        },
    }
    held = {"name": "words", "limit": 20.0, "is_upper": True, "sft": {"mean": 19.9}, "policy": {"mean": 21.2}}
    content["constraints"], content["ema"]["constraints"] = [held], [{**held, "policy": {"mean": 18.5}}]
    content["task"], content["ema"]["task"] = (
        {"num": 9, "measures": [{**measured("chrF", is_share=False), "policy": {"mean": mean}}]}
        for mean in (70.0, 66.0)
    )
    quick_run.evaluation.write_text(json.dumps(content))
    page = Page(render_report(quick_run))
    told = " ".join(page.text.split()).replace("\u202f", " ")
    assert "ema" in page.headings()
    assert "It beats the policy on 52 % of 256 prompts by bag of words (95 % interval: 46 % to 58 %" in told
    assert "score (reward model) 0.02 (−0.10 to 0.14) 1.37 (1.28 to 1.46) 1.21 (1.10 to 1.32)" in told
    assert "win rate (reward model) – 86 % 90 %" in told
    assert "KL to the reference, nats per sequence 0 6.21 4.5" in told
    assert "words (at most 20) 19.9 21.2 18.5" in told
    assert "chrF 61.0 70.0 66.0" in told
    quick_run.evaluation.write_text(json.dumps(fake_evaluation()))
    assert "ema" not in Page(render_report(quick_run)).headings()


def test_a_report_that_cannot_be_written_at_the_end_of_a_run_is_a_warning(fake_run: RunDir):
    fake_run.evaluation.write_text("{")
    warnings: list[str] = []
    report_or_warn(fake_run, warnings.append)
    (warning,) = warnings
    assert warning.startswith(f"{fake_run.report} cannot be written ({fake_run.evaluation} is damaged")
    assert warning.endswith(f"rlhfkit report {fake_run.path}")
