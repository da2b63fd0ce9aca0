"""The dashboard in a real Chromium: live, by keyboard, without a network, on a phone, in the dark."""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Side
from rlhfkit.web.app import create_app
from rlhfkit.web.dashboard import dashboard_link, dashboard_router
from rlhfkit.web.server import serving
from tests.feedback.labelling import open_store
from tests.feedback.run_directories import STAGES, append, make_run, ppo_row, sample_row
from tests.report.studies import study
from tests.web.test_browser_label import CHROMIUM, HOSTILE, PHONE, WINDOW, browser, findings
from tests.web.test_dashboard import cast, make_study

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
__all__ = ["browser"]
SCORE = ".chart:has(h3:text-is('Score'))"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.thorough,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}; apt-get install chromium"),
]


def hurry(route: Any) -> None:
    """The script, but for its patience: what it does every few seconds it does several times a second."""
    reply = route.fetch()
    body, num_changed = re.subn(r"(NEWS_MS|RUNS_MS|LABELS_MS|LONGEST_WAIT_MS) = [0-9_]+;", r"\1 = 200;", reply.text())
    assert num_changed == 4
    route.fulfill(response=reply, body=body)


class Seen:
    """A served directory of runs, and a window on it."""

    def __init__(self, browser: Any, port: int, stack: ExitStack) -> None:
        self.browser, self.port, self.stack = browser, port, stack
        self.asked: list[str] = []
        self.complaints: list[str] = []

    def open(self, place: str = "", **context: Any) -> Any:
        window = self.browser.new_context(**{**WINDOW, **context})
        self.stack.callback(window.close)
        window.route("**/dashboard.js", hurry)
        page = window.new_page()
        page.set_default_timeout(30_000)  # a machine may be busy
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.goto(f"http://localhost:{self.port}/dashboard{place}")
        return page


@pytest.fixture
def seen(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Seen]]:
    with ExitStack() as stack:

        def make(store: Store | None = None) -> Seen:
            router = dashboard_router(tmp_path / "runs", store=store)
            app = create_app(store, title="Test", routers=[router], links=[dashboard_link()])
            return Seen(browser, stack.enter_context(serving(app, port=0)).address.port, stack)

        yield make


def shows(page: Any, selector: str, text: str | re.Pattern[str]) -> None:
    playwright.expect(page.locator(selector)).to_have_text(text)


def value(page: Any, text: str) -> None:
    shows(page, f"{SCORE} .chart-value b", text)


def test_curves_grow_while_the_run_is_written_to_and_only_news_is_sent(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    append(run.metrics, *(ppo_row(number) for number in range(5)))
    made = seen()
    page = made.open("#/run/demo")
    value(page, "0.4")
    append(run.metrics, ppo_row(5))
    with run.metrics.open("a") as file:
        file.write('{"stage": "ppo", "iterat')
    value(page, "0.5")
    shows(page, f"{SCORE} .chart-value span", "Iteration 5")
    shows(page, "#run-count", "6 of 50 iterations")
    with run.metrics.open("a") as file:
        file.write('ion": 6, "score/mean": 9.5}\n')
    value(page, "9.5")
    offsets = [int(found[1]) for url in made.asked if (found := re.search(r"metrics\?.*offset=(\d+)", url))]
    assert offsets[0] == 0
    assert offsets.count(0) == 1, "nothing is sent twice"
    assert offsets == sorted(offsets)
    assert made.complaints == []


def test_run_that_is_begun_anew_or_vanishes_does_not_break_the_page(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    append(run.metrics, *(ppo_row(number) for number in range(8)))
    made = seen()
    page = made.open("#/run/demo")
    value(page, "0.7")
    run.metrics.write_text(json.dumps(ppo_row(0, kl_coef=0.9)) + "\n")
    value(page, "0")
    shutil.rmtree(run.path)
    shows(page, "#notice", re.compile("This run is not there"))
    value(page, "0")  # what was seen stays
    make_run(run.path)
    append(run.metrics, ppo_row(3))
    value(page, "0.3")
    playwright.expect(page.locator("#notice")).to_be_hidden()
    assert made.complaints == []


def test_network_that_comes_back_is_noticed(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    append(run.metrics, ppo_row(1))
    page = seen().open("#/run/demo")
    value(page, "0.1")
    page.context.set_offline(True)
    shows(page, "#status", "No connection; trying again")
    append(run.metrics, ppo_row(2))
    page.context.set_offline(False)
    value(page, "0.2")
    shows(page, "#status", "Live")


def test_hidden_page_asks_nothing_until_it_is_seen_again(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    append(run.metrics, ppo_row(1))
    made = seen()
    page = made.open("#/run/demo")
    value(page, "0.1")
    hide = "hidden => { Object.defineProperty(document, 'hidden', { value: hidden, configurable: true });"
    page.evaluate(f"{hide} document.dispatchEvent(new Event('visibilitychange')); }}", True)
    page.wait_for_timeout(300)
    before = len(made.asked)
    append(run.metrics, ppo_row(2))
    page.wait_for_timeout(700)
    assert len(made.asked) == before
    page.evaluate(f"{hide} document.dispatchEvent(new Event('visibilitychange')); }}", False)
    value(page, "0.2")


def test_cursor_of_the_charts_moves_by_keyboard_and_says_what_it_shows(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    append(run.metrics, *(ppo_row(number) for number in range(21)))
    page = seen().open("#/run/demo")
    value(page, "2")
    plot = page.locator(f"{SCORE} .plot")
    plot.focus()
    for key, place in (
        ("ArrowLeft", 19),
        ("ArrowLeft", 18),
        ("PageDown", 16),
        ("Home", 0),
        ("ArrowLeft", 0),
        ("End", 20),
    ):
        page.keyboard.press(key)
        assert plot.get_attribute("aria-valuenow") == str(place), key
        assert plot.get_attribute("aria-valuetext") == f"Iteration {place}: {place / 10:g}"
    page.keyboard.press("Home")
    shows(page, ".chart:has(h3:text-is('Weight of the KL penalty')) .chart-value span", "Iteration 0")
    page.keyboard.press("Escape")
    value(page, "2")


def test_pointer_reads_a_curve_and_a_click_leads_to_the_samples(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    append(run.metrics, *(ppo_row(number) for number in range(11)))
    append(run.samples, *(sample_row(number, f"said in {number}") for number in range(11)))
    page = seen().open("#/run/demo")
    shows(page, ".sample .response p", "said in 10")
    box = page.locator(f"{SCORE} .plot").bounding_box()
    assert box is not None
    left, right = box["x"] + 46, box["x"] + box["width"] - 14  # the edges of the plot
    page.mouse.move(left + 0.3 * (right - left), box["y"] + 60)
    value(page, "0.3")
    page.mouse.click(left + 0.3 * (right - left), box["y"] + 60)
    shows(page, ".sample .response p", "said in 3")


def test_samples_are_chosen_by_keys_and_hostile_text_stays_text(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo", purpose=HOSTILE, name=HOSTILE)
    append(run.metrics, ppo_row(0))
    append(run.samples, sample_row(0, HOSTILE, prompt=HOSTILE), sample_row(1, "plain"))
    made = seen()
    page = made.open("#/run/demo")
    shows(page, ".sample .response p", "plain")
    page.focus("#sample-range")
    page.keyboard.press("ArrowLeft")
    shows(page, "#sample-place", "Iteration 0")
    shows(page, ".sample .response p", HOSTILE)
    shows(page, ".sample .prompt p", HOSTILE)
    shows(page, "#run-heading", HOSTILE)
    append(run.samples, sample_row(2, "new"))
    playwright.expect(page.locator("#sample-range")).to_have_attribute("max", "2")
    shows(page, ".sample .response p", HOSTILE)  # who reads is not pulled away
    page.keyboard.press("End")
    shows(page, ".sample .response p", "new")
    append(run.samples, sample_row(3, "newest"))
    shows(page, ".sample .response p", "newest")  # at the end it follows
    assert (
        page.evaluate("document.querySelectorAll('main script, main img, main b:not(.chart b, .legend b)').length") == 0
    )
    assert "taken" not in page.title().replace(HOSTILE, "")
    assert made.complaints == []


def test_rounds_are_drawn_together_and_lead_to_each_other(seen, tmp_path):
    whole = make_run(tmp_path / "runs" / "loop", finished=STAGES[:2])
    for number in (1, 2):
        append(make_run(whole.path / f"round-{number}").metrics, ppo_row(0), ppo_row(1 + number))
    page = seen().open("#/run/loop")
    shows(page, f"{SCORE} .legend", re.compile(r"Round 1.*0\.2.*Round 2.*0\.3"))
    page.click("#rounds a >> text=Round 2")
    shows(page, "#run-heading", "loop, Round 2")
    value(page, "0.3")
    page.click("#rounds a")
    shows(page, "#run-heading", "loop")


def test_list_shows_runs_as_they_come_and_keeps_the_focus(seen, tmp_path):
    (tmp_path / "runs").mkdir()
    made = seen()
    page = made.open()
    shows(page, "#runs-empty", re.compile("no runs here yet"))
    make_run(tmp_path / "runs" / "first")
    shows(page, ".run-title", "first")
    page.focus(".run")
    make_run(tmp_path / "runs" / "second").config.write_text("{")
    playwright.expect(page.locator(".run")).to_have_count(2)
    shows(page, "li:has(.pill.damaged) .run-note", re.compile("config.json is damaged"))
    assert page.evaluate("document.activeElement.querySelector('.run-title')?.textContent") == "first"
    page.keyboard.press("Enter")
    shows(page, "#run-heading", "first")
    shows(page, "#curves-empty", "No numbers yet.")
    page.go_back()
    playwright.expect(page.locator(".run")).to_have_count(2)
    assert made.complaints == []


def test_all_metrics_of_a_stage_are_drawn_when_asked_for(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    append(
        run.metrics, {"stage": "sft", "iteration": 0, "loss": 2.0, "validation/loss": 3.0}, ppo_row(0, **{"own/one": 4})
    )
    page = seen().open("#/run/demo")
    playwright.expect(page.locator(".chart")).to_have_count(2)
    page.check("#all-metrics")
    shows(page, ".chart:has(h3:text-is('own/one')) .chart-value b", "4")
    page.click("#stage-choice button >> text=Fine-tuning")
    shows(page, ".chart .legend", "training2validation3")


def test_study_is_a_line_that_leads_to_its_page(seen, tmp_path):
    directory = make_study(tmp_path / "runs" / "tune", study(num_done=1, name=HOSTILE))
    made = seen()
    page = made.open()
    shows(page, "#studies .run-title", HOSTILE)
    shows(page, "#studies .run-stage", "Searching · 1 of 27 trials")
    shows(page, "#studies .study-best", re.compile("Best: the default, judge's score 0.767 at KL 7.88"))
    assert page.locator("#runs .run").count() == 0
    assert page.is_hidden("#runs-empty")
    assert findings(page) == []
    directory.results.write_text(study(num_done=9).model_dump_json())
    shows(page, "#studies .run-stage", "Searching · 9 of 27 trials")
    directory.results.write_text(study(num_done=0).model_dump_json())
    shows(page, "#studies .run-stage", "Preparing · 0 of 27 trials")
    page.click("#studies .run")
    shows(page, ".verdict h2", "Preparing: no trial has begun")
    assert page.evaluate("getComputedStyle(document.querySelector('.verdict')).borderLeftStyle") == "solid"
    assert made.complaints == []


def labelled(store: Store) -> None:
    """Twenty-five pairs on which two people agree and a third always says the opposite."""
    for number in range(1, 26):
        left: Side = "a" if number % 2 else "b"
        for name, strength in (("Ada", 3), ("Grace", 3), ("Zoe", -3)):
            cast(store, name, f"pair-{number}", Choice("preference", strength), left=left)


def test_labels_show_queue_people_and_who_is_flagged(seen, tmp_path):
    (tmp_path / "runs").mkdir()
    with open_store(tmp_path, 25, overlap=3) as store:
        labelled(store)
        page = seen(store).open()
        shows(page, "#queue dd >> nth=0", "25")
        shows(page, "#agreement tr.flagged th", re.compile("Zoe.*flagged"))
        shows(page, "#agreement .alarms li >> nth=0", re.compile("agrees with another person in 0.0 %"))
        shows(page, "#agreement tr:has(th:text-is('Agreement, without ties')) .strong", "33.3 %")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_axe_finds_nothing_serious(seen, tmp_path, scheme, language):
    run = make_run(tmp_path / "runs" / "demo", finished=STAGES)
    make_run(tmp_path / "runs" / "quiet").config.write_text("{")
    append(run.metrics, *(ppo_row(number) for number in range(5)))
    append(run.samples, sample_row(0), sample_row(1))
    run.trust.write_text('{"num_votes": 0}')
    run.cluster.write_text(cluster_table())
    with open_store(tmp_path, 25, overlap=3) as store:
        labelled(store)
        page = seen(store).open(color_scheme=scheme, locale=language)
        page.wait_for_selector("#agreement .flagged")
        assert page.get_attribute("html", "data-language") == language
        assert findings(page) == []
        page.click("a.run >> text=demo")
        page.wait_for_selector(".sample")
        page.wait_for_selector("#run-agreement p")
        page.wait_for_selector("#cluster td.host")
        assert findings(page) == []


def test_on_a_phone_nothing_is_wider_than_the_page_and_axe_agrees(seen, tmp_path):
    run = make_run(tmp_path / "runs" / ("long-name" * 8))
    append(run.metrics, *(ppo_row(number) for number in range(5)))
    append(run.samples, sample_row(0, "word" * 200))
    run.cluster.write_text(cluster_table(host="host" * 50, why="why" * 90))
    with open_store(tmp_path, 25, overlap=3) as store:
        labelled(store)
        page = seen(store).open(**PHONE)
        page.wait_for_selector("#agreement .flagged")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert findings(page) == []
        page.tap(".run")
        page.wait_for_selector(".sample")
        value(page, "0.4")
        page.wait_for_selector("#cluster td.host")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert findings(page) == []


def cluster_table(*, host: str = "node-1", why: str = "its machine has ended", num: int = 6, **more: Any) -> str:
    states = ("idle", "working", "slow", "lost", "refused", "starting")
    rows = [{"name": f"sampler-{at}", "state": states[at % 6], "host": host, "pid": 40 + at} for at in range(num)]
    event = {"time": time.time(), "what": "lost", "who": "sampler-3", "why": why, "lost_seconds": 8.5}
    table = {"time": time.time(), "state": "running", "iteration": 7, "events": [event]}
    return json.dumps({**table, "sampler": {"workers": rows, "open_chunks": 5, "waiting_chunks": 2}, **more})


def test_workers_of_a_cluster_are_shown_as_they_come_and_go(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    page = seen().open("#/run/demo")
    page.wait_for_selector("#run-heading:text-is('demo')")
    assert page.is_hidden("#cluster")
    run.cluster.write_text(cluster_table(num=2))
    shows(page, "#cluster tr:has-text('sampler-1') .pill", "working")
    shows(page, "#cluster tr:has-text('sampler-3') .number", "8.5 s")
    page.focus("#cluster .table-box")
    run.cluster.write_text(cluster_table(num=3))
    shows(page, "#cluster tr:has-text('sampler-2') .pill", "slow")
    assert page.evaluate("document.activeElement.className") == "table-box"
    run.cluster.write_text(cluster_table(time=time.time() - 190))
    shows(page, ".cluster-summary .pill", "the driver is not running")
    shows(page, ".cluster-summary .fact >> nth=-1", "written 3 minutes ago")


def test_hostile_table_of_a_cluster_does_not_break_the_page(seen, tmp_path):
    run = make_run(tmp_path / "runs" / "demo")
    append(run.metrics, ppo_row(1))
    run.cluster.write_text(cluster_table(host=HOSTILE, why=HOSTILE, num=5000))
    view = seen()
    page = view.open("#/run/demo")
    shows(page, "#cluster td.host >> nth=0", HOSTILE)
    assert page.locator("#cluster .cluster-part >> nth=0 >> tbody tr").count() == 200
    run.cluster.write_text("{")
    shows(page, "#notice", re.compile(r"cluster\.json is damaged"))
    value(page, "0.1")
    run.cluster.write_text(cluster_table(host="healthy"))
    shows(page, "#cluster td.host >> nth=0", "healthy")
    assert page.is_hidden("#notice")
    assert view.complaints == []


def test_language_changes_and_the_place_stays(seen, tmp_path):
    append(make_run(tmp_path / "runs" / "demo").metrics, ppo_row(1))
    page = seen().open("#/run/demo")
    value(page, "0.1")
    page.select_option("#language", "zh")
    shows(page, ".chart h3 >> nth=0", "得分")
    shows(page, "#run-heading", "demo")
    assert page.get_attribute("html", "lang") == "zh-Hans"
