"""The labelling page in a real Chromium: by keyboard, without a network, on a phone, for a screen reader."""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.feedback.store import Store
from rlhfkit.feedback.votes import Choice, Pair, Vote
from rlhfkit.records import Message
from rlhfkit.web.app import create_app
from rlhfkit.web.server import serving
from tests.feedback.labelling import numbered_pairs, open_store

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python is not installed")

AXE = axe.Axe().axe_script
CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    f"--{flag}"
    for flag in (
        "no-sandbox",
        "disable-gpu",
        "disable-quic",
        "no-first-run",
        "disable-background-networking",
        "disable-component-update",
        "disable-sync",
    )
]
WINDOW = {"viewport": {"width": 1280, "height": 800}, "locale": "en"}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\"><b>bold</b>"
GUIDELINES = f"# Rules\n\nBe **fair** to {HOSTILE}.\n\n- one\n- `two`\n\n```\ncode\n```"

pytestmark = [
    pytest.mark.browser,
    pytest.mark.thorough,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright.expect.set_options(timeout=30_000)  # milliseconds, as other tests may have the cores
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def window(browser: Any) -> Any:
    """A window that tests use in turn, because a new one takes a while; a new port gives them a clean storage."""
    return browser.new_context(**WINDOW)


class Site:
    """A served store, and the windows that are open on it."""

    def __init__(self, browser: Any, window: Any, store: Store, stack: ExitStack, **options: Any) -> None:
        self.browser = browser
        self.free_window = window
        self.store = store
        self.stack = stack
        self.options = options
        self.complaints: list[str] = []
        self.addresses: set[str] = set()
        self.server = ExitStack()
        self.port = 0
        self.start()

    def start(self) -> None:
        app = create_app(self.store, title="Test", project="test", **self.options)
        self.port = self.server.enter_context(serving(app, port=self.port)).address.port

    def stop(self) -> None:
        self.server.close()

    @property
    def url(self) -> str:
        return f"http://localhost:{self.port}/"

    def new_page(self, context: dict[str, Any]) -> Any:
        if context or self.free_window is None:
            window = self.browser.new_context(**{**WINDOW, **context})
            self.stack.callback(window.close)
            return window.new_page()
        window, self.free_window = self.free_window, None
        window.clear_cookies()
        self.stack.callback(window.set_offline, False)
        page = window.new_page()
        self.stack.callback(page.close)
        return page

    def open(self, name: str | None = "Ada", *, waits_for: str = "#state-pair", **context: Any) -> Any:
        page = self.new_page(context)
        page.set_default_timeout(30_000)  # a machine may be busy
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.addresses.add(re.sub(r"(//[^/]*/).*", r"\1", request.url)))
        page.goto(self.url if name is None else f"{self.url}?token={self.store.add_annotator(name)}")
        page.wait_for_selector(f"{waits_for}:not([hidden])")
        return page


@pytest.fixture
def site(browser, window, tmp_path) -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:

        def make(pairs: Any = 3, *, guidelines: str = "", allow_names: bool = True, **settings: Any) -> Site:
            store = stack.enter_context(open_store(tmp_path, pairs, **settings))
            if guidelines:
                store.set_guidelines(guidelines)
            made = Site(browser, window, store, stack, allow_names=allow_names)
            stack.callback(made.stop)
            return made

        yield make


def ready(page: Any) -> None:
    """Wait until a pair is there and has been there long enough to be answered."""
    page.wait_for_selector("#state-pair:not([hidden])")
    page.wait_for_selector("body:not(.busy)")
    page.wait_for_timeout(210)


def shows(page: Any, selector: str, text: str) -> None:
    playwright.expect(page.locator(selector)).to_have_text(text)


def press(page: Any, key: str) -> None:
    """Answer by one key, and wait for the next pair or the end."""
    ready(page)
    page.keyboard.press(key)
    page.wait_for_selector("body:not(.busy)")  # busy from the key on


def strength(store: Store, name: str, pair_id: str, key: str) -> int:
    """What a key means for response_a, by the legend of the page: 1 is left much better, 9 right much better."""
    towards_left = {"1": 4, "2": 3, "3": 2, "4": 1, "6": -1, "7": -2, "8": -3, "9": -4}[key]
    return towards_left if store.shown_left(name, pair_id) == "a" else -towards_left


def findings(page: Any) -> list[str]:
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        f"{rule['id']}: {rule['nodes'][0]['html'][:150]}" for rule in found if rule["impact"] in ("serious", "critical")
    ]


# ── keyboard ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_twenty_pairs_by_keyboard_with_an_undo_and_a_reload(site):
    made = site(20)
    page = made.open()
    keys = "123467891234678912"
    for number, key in enumerate(keys, start=1):
        assert page.inner_text("#prompt-text") == f"Prompt {number}"
        if number == 7:
            shown = page.inner_text("#left-text")
            page.reload()
            ready(page)
            assert (page.inner_text("#prompt-text"), page.inner_text("#left-text")) == (f"Prompt {number}", shown)
        press(page, key)
        if number == 5:
            press(page, "z")
            assert page.inner_text("#prompt-text") == "Prompt 5"
            assert page.get_attribute(".degree[aria-keyshortcuts='6']", "aria-pressed") == "true"
            press(page, key)
    press(page, "5")
    press(page, "b")
    page.wait_for_selector("#state-end:not([hidden])")
    assert page.inner_text("#end-voted") == "20"
    votes = {vote.pair_id: vote for vote in made.store.votes()}
    assert len(votes) == 20
    for number, key in enumerate(keys, start=1):
        pair_id = f"pair-{number}"
        assert votes[pair_id].choice.strength == strength(made.store, "Ada", pair_id, key)
        assert votes[pair_id].shown_left == made.store.shown_left("Ada", pair_id)
    assert [votes[f"pair-{number}"].choice.kind for number in (19, 20)] == ["tie", "both_bad"]
    assert len(made.store.events()) == 22, "20 votes, one that was taken back, one undo"
    assert made.addresses == {made.url}, "the page asks nobody but its own server"
    assert made.complaints == []


def test_flags_comment_and_skip_by_keyboard(site):
    made = site(3)
    page = made.open()
    for key in "qeo":
        page.keyboard.press(key)
    page.keyboard.press("c")
    page.keyboard.type("1 2 z skip ✓")
    page.keyboard.press("Escape")
    assert page.inner_text("#prompt-text") == "Prompt 1", "what is written into the comment answers nothing"
    press(page, "0")
    ready(page)
    page.keyboard.press("s")
    page.wait_for_selector("#skip-dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_selector("#skip-dialog:not([open])", state="attached")
    page.keyboard.press("s")
    page.wait_for_selector("#skip-dialog[open]")
    page.keyboard.press("2")
    shows(page, "#prompt-text", "Prompt 3")
    first, second = made.store.votes()
    flags = (first.flags_a, first.flags_b) if first.shown_left == "a" else (first.flags_b, first.flags_a)
    assert flags == (("unsafe", "off_topic"), ("wrong",))
    assert (first.choice.kind, first.comment) == ("tie", "1 2 z skip ✓")
    assert second.choice.skip_reason == "no_expertise"
    assert (second.flags_a, second.flags_b, second.comment) == ((), (), ""), "nothing is carried over to the next pair"


def test_key_that_is_held_or_hit_twice_answers_once(site):
    made = site(3)
    page = made.open()
    ready(page)
    page.keyboard.down("1")
    shows(page, "#prompt-text", "Prompt 2")
    page.keyboard.up("1")
    page.keyboard.press("1")
    assert len(made.store.votes()) == 1, "so soon after the last answer nobody has read the next pair"
    page.keyboard.down("z")
    shows(page, "#prompt-text", "Prompt 1")
    page.keyboard.down("z")
    page.keyboard.up("z")
    ready(page)
    page.keyboard.down("1")
    shows(page, "#prompt-text", "Prompt 2")
    ready(page)
    page.keyboard.down("1")
    page.wait_for_timeout(100)
    shows(page, "#prompt-text", "Prompt 2")
    assert len(made.store.events()) == 3, "a vote, its undo, a vote"


def test_keys_of_the_system_and_switched_off_keys_answer_nothing(site):
    made = site(3)
    page = made.open()
    ready(page)
    page.keyboard.press("Control+1")
    page.keyboard.press("Alt+b")
    page.keyboard.press("?")
    page.wait_for_selector("#help-dialog[open]")
    page.keyboard.press("1")
    page.uncheck("#single-keys")
    page.keyboard.press("Escape")
    page.keyboard.press("1")
    page.reload()
    ready(page)
    page.keyboard.press("1")
    page.wait_for_timeout(100)
    assert made.store.votes() == []
    page.click(".degree.left.d4")
    shows(page, "#prompt-text", "Prompt 2")
    assert len(made.store.votes()) == 1


def test_draft_survives_a_reload(site):
    made = site(3)
    page = made.open()
    page.keyboard.press("w")
    page.keyboard.press("c")
    page.keyboard.type("half a thought")
    page.reload()
    ready(page)
    assert page.input_value("#comment") == "half a thought"
    assert page.get_attribute(".flag[data-side='left'][data-flag='wrong']", "aria-pressed") == "true"
    page.click("#pair-heading")
    press(page, "9")
    (vote,) = made.store.votes()
    assert vote.comment == "half a thought"
    assert "wrong" in vote.flags_a + vote.flags_b


def test_layout_and_guidelines_are_remembered(site):
    made = site(3, guidelines=GUIDELINES)
    page = made.open()
    side_by_side = page.locator("#left-text").bounding_box()["y"] == page.locator("#right-text").bounding_box()["y"]
    assert side_by_side
    assert page.is_visible("#guidelines-text")
    page.keyboard.press("v")
    page.keyboard.press("g")
    page.reload()
    ready(page)
    assert page.locator("#left-text").bounding_box()["y"] < page.locator("#right-text").bounding_box()["y"]
    assert page.is_hidden("#guidelines")
    assert page.inner_text("#right-heading") == "Lower answer"
    assert page.get_attribute(".degree.right.d4", "aria-label") == "Lower is much better"


# ── network ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_answer_without_a_network_is_kept_and_counted_once(site):
    made = site(3)
    page = made.open()
    press(page, "1")
    ready(page)
    page.context.set_offline(True)
    page.keyboard.press("9")
    page.wait_for_selector("#state-waiting:not([hidden])")
    assert page.inner_text("#status") == "Offline, 1 waiting"
    assert page.inner_text("#waiting-heading") == "Your answer is safe"
    page.keyboard.press("z")
    assert page.inner_text("#prompt-text") == "Prompt 2"
    page.wait_for_timeout(210)
    page.keyboard.press("4")
    page.wait_for_selector("#state-waiting:not([hidden])")
    assert page.inner_text("#status") == "Offline, 3 waiting"
    assert len(made.store.events()) == 1
    page.context.set_offline(False)
    shows(page, "#prompt-text", "Prompt 3")
    assert page.inner_text("#status") == "Saved"
    votes = made.store.votes()
    assert [vote.pair_id for vote in votes] == ["pair-1", "pair-2"]
    assert votes[1].choice.strength == strength(made.store, "Ada", "pair-2", "4")
    assert len(made.store.events()) == 4


def test_answer_whose_receipt_was_lost_is_counted_once(site):
    made = site(3)
    page = made.open()
    ready(page)
    replies = []

    def lose_the_reply(route):
        replies.append(route.fetch().status)
        route.abort()

    page.route("**/api/vote", lose_the_reply, times=1)
    page.keyboard.press("1")
    shows(page, "#prompt-text", "Prompt 2")
    assert replies == [200]
    assert len(made.store.events()) == 1


def test_server_that_stops_and_starts_again_gets_what_was_answered_meanwhile(site):
    made = site(3)
    page = made.open()
    ready(page)
    made.stop()
    page.keyboard.press("2")
    page.wait_for_selector("#state-waiting:not([hidden])")
    made.start()
    page.evaluate("document.querySelector('#retry').click()")  # it may have tried again by itself already
    shows(page, "#prompt-text", "Prompt 2")
    assert [vote.pair_id for vote in made.store.votes()] == ["pair-1"]


def test_answer_waits_where_the_person_is_no_longer_signed_in_and_never_becomes_anothers(site):
    made = site(3)
    page = made.open()
    ready(page)
    page.context.clear_cookies()
    page.keyboard.press("1")
    page.wait_for_selector("#state-start:not([hidden])")
    for name, num_votes in (("Bob", 0), ("Ada", 1)):
        page.fill("#start-name", name)
        page.click("#start-form button")
        page.wait_for_selector("#state-pair:not([hidden])")
        assert len(made.store.votes()) == num_votes
        if name == "Bob":
            page.click("#sign-out")
            page.wait_for_selector("#state-start:not([hidden])")
    assert made.store.votes()[0].annotator == "Ada"


def test_answer_that_can_never_count_is_reported_and_does_not_block_the_rest(site):
    made = site(3)
    page = made.open()
    ready(page)
    page.route("**/api/vote", lambda route: route.continue_(post_data='{"id": "broken-0001"}'), times=1)
    page.keyboard.press("1")
    page.wait_for_selector("#lost:not([hidden])")
    assert "The request is not understood" in page.inner_text("#lost-text")
    page.click("#lost-dismiss")
    press(page, "1")
    assert len(made.store.votes()) == 1


def test_closed_page_gives_its_pair_back_to_the_others(site, monkeypatch):
    monkeypatch.setattr("rlhfkit.web.label_page.GRACE_SECONDS", -1.0)
    made = site(1)
    page = made.open("Ada")
    other = made.open("Bob", waits_for="#state-end")
    assert other.inner_text("#end-heading") == "Nothing for you right now"
    page.close()
    other.click("#look-again")
    other.wait_for_selector("#state-pair:not([hidden])")


def test_pair_that_went_to_somebody_else_is_replaced_and_the_person_is_reported(site):
    made = site(2, lease_seconds=0.3)
    page = made.open()
    shows(page, "#prompt-text", "Prompt 1")
    page.wait_for_timeout(350)
    assert made.store.lease("Bob").pair.id == "pair-1"
    made.store.vote(Vote("vote-of-bob", "pair-1", "Bob", Choice("tie"), "a", 1.0, 1.0))
    page.wait_for_selector("#toast:not([hidden])")
    shows(page, "#prompt-text", "Prompt 2")
    assert page.inner_text("#toast").startswith("You were away")


# ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_active_time_ends_two_minutes_after_the_last_input(site):
    made = site(2)
    page = made.open(locale="en-GB")  # a window of its own: its clock never goes back to normal
    page.clock.install()
    page.reload()
    ready(page)
    page.mouse.move(10, 10)
    page.clock.fast_forward(30_000)
    page.mouse.move(20, 20)
    page.clock.fast_forward(900_000)
    page.mouse.move(30, 30)
    page.clock.fast_forward(10_000)
    page.keyboard.press("1")
    shows(page, "#prompt-text", "Prompt 2")
    (vote,) = made.store.votes()
    assert vote.active_seconds == pytest.approx(30 + 120 + 10, abs=3)
    assert vote.wall_seconds == pytest.approx(30 + 900 + 10, abs=5)


# ── languages, devices, readers ──────────────────────────────────────────────────────────────────────────────────────


def test_language_is_switched_in_the_page_and_kept(site):
    made = site(3)
    page = made.open()
    press(page, "1")
    page.keyboard.press("q")
    page.select_option("#language", "zh")
    assert page.get_attribute("html", "lang") == "zh-Hans"
    assert page.inner_text("#left-heading") == "左侧回答"
    assert page.get_attribute(".degree.left.d4", "aria-label") == "左侧好得多"
    assert page.get_attribute(".flag[data-side='left']", "aria-pressed") == "true", "the draft stays"
    assert page.inner_text("#prompt-text") == "Prompt 2", "what models wrote stays as it is"
    page.reload()
    ready(page)
    assert page.get_attribute("html", "lang") == "zh-Hans"
    press(page, "1")
    assert [vote.language for vote in made.store.votes()] == ["en", "zh"]
    page.keyboard.press("?")
    assert page.inner_text("#help-title") == "所有按键"
    assert "Left" not in page.inner_text("body")


def test_phone_shows_everything_without_scrolling_sideways(site):
    long = "unbroken" * 60
    code = f"```python\n{'x = ' + '1 + ' * 100}1\n```"
    made = site([Pair("wide", long, long, code), *numbered_pairs(1)], guidelines=long)
    page = made.open(**PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.is_visible(".degree.left.d4")
    page.tap("#guidelines-button")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.tap("#guidelines-button")
    for selector in ("#comment-button", "#help-button"):
        page.tap(selector)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.keyboard.press("Escape")
    for box in page.locator(".degree, .flag, .actions button").all():
        size = box.bounding_box()
        assert min(size["width"], size["height"]) >= 24
    page.wait_for_timeout(200)
    page.tap(".degree.right.d2")
    shows(page, "#prompt-text", "Prompt 1")
    assert abs(made.store.votes()[0].choice.strength) == 2


def test_hostile_answers_are_shown_as_text_in_full(site):
    chat = (Message("user", HOSTILE), Message("<b>tool</b>", HOSTILE))
    pairs = [
        Pair("text", HOSTILE, f"```html\n{HOSTILE}\n```", f"first\n\nمرحبا HTML 5\n\n{HOSTILE}"),
        Pair("chat", "", chat, chat[:1]),
    ]
    made = site(pairs, guidelines=GUIDELINES)
    page = made.open()
    for _ in range(2):
        for selector in ("#left-text", "#right-text", "#guidelines-text"):
            assert HOSTILE in page.text_content(selector)
            assert page.locator(f"{selector} :is(script, img, b)").count() == 0
        if page.is_visible("#prompt"):
            assert {page.locator(f"{side} pre code").count() for side in ("#left-text", "#right-text")} == {0, 1}
            assert (
                page.locator(".answer p[dir=auto]").nth(1).evaluate("node => getComputedStyle(node).direction") == "rtl"
            )
            press(page, "5")
    assert "<b>tool</b>" in page.inner_text("#answers")
    assert page.title() == "Which answer is better? · Test"
    assert made.complaints == []


def test_long_answers_are_never_cut(site):
    lines = [f"line {number} " + "word " * 30 for number in range(400)]
    made = site([Pair("long", "x", "\n".join(lines), "\n\n".join(lines))])
    page = made.open()
    for selector in ("#left-text", "#right-text"):
        text = page.inner_text(selector)
        assert all(line.strip() in text for line in lines)
        sizes = page.locator(selector).evaluate("node => [node.scrollHeight, node.clientHeight]")
        assert sizes[0] <= sizes[1] + 1, "the page scrolls, the answer does not"
    assert page.locator("#scale").bounding_box()["y"] < 800, "the scale stays in sight"


def test_screen_reader_hears_what_happened_and_lands_at_the_next_pair(site):
    made = site(3)
    page = made.open()
    press(page, "1")
    shows(page, "#announce", "Saved. Pair 2.")
    assert page.evaluate("document.activeElement.id") == "pair-heading"
    page.keyboard.press("q")
    shows(page, "#announce", "Left: unsafe: set")
    press(page, "z")
    shows(page, "#announce", "Taken back. Your earlier answer is marked.")
    assert page.get_by_role("button", name="Left is much better", pressed=True).count() == 1
    assert page.get_by_role("region", name="Left answer").count() == 1
    assert page.get_by_role("main").count() == 1


def test_motion_is_left_out_where_people_ask_for_it(site):
    page = site(1).open(reduced_motion="reduce")
    assert page.evaluate("getComputedStyle(document.querySelector('.answers')).transitionDuration") in ("0s", "1e-05s")


def test_every_state_of_the_page_is_accessible(site):
    chat = (Message("user", "Hi"), Message("assistant", "```\ncode\n```"))
    made = site(
        [Pair("chat", "", chat, (chat[0], Message("assistant", "Hello"))), *numbered_pairs(1)], guidelines=GUIDELINES
    )
    for number, look in enumerate(
        ({"color_scheme": "light"}, {"color_scheme": "dark"}, {**PHONE, "color_scheme": "dark"})
    ):
        page = made.open(None, waits_for="#state-start", **look)
        dark = look["color_scheme"] == "dark"
        shade = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
        assert shade < 60 if dark else shade > 200
        assert findings(page) == []
        page.fill("#start-name", "Ada")
        page.keyboard.press("Enter")
        ready(page)
        page.keyboard.press("q")
        page.keyboard.press("c")
        page.keyboard.press("Escape")
        assert findings(page) == []
        for opener in "?s" if number < 2 else "":
            page.keyboard.press(opener)
            page.wait_for_selector("dialog[open]")
            assert findings(page) == []
            page.keyboard.press("Escape")
        page.keyboard.press("v")
        page.context.set_offline(True)
        page.wait_for_timeout(210)
        page.keyboard.press("2")
        page.wait_for_selector("#state-waiting:not([hidden])")
        page.context.set_offline(False)
        page.keyboard.press("z")
        ready(page)
        assert findings(page) == []
        if number == 2:
            press(page, "1")
            press(page, "1")
            page.wait_for_selector("#state-end:not([hidden])")
            assert findings(page) == []
    assert len(made.store.votes()) == 2


def test_waiting_and_token_pages_are_accessible(site):
    made = site(1, allow_names=False)
    assert findings(made.open(None, waits_for="#state-token")) == []
    page = made.open()
    ready(page)
    page.context.set_offline(True)
    page.keyboard.press("2")
    page.wait_for_selector("#state-waiting:not([hidden])")
    # axe runs in the page and needs no network.
    assert findings(page) == []
