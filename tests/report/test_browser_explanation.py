"""The page of an explanation in a real Chromium: light, dark, on a phone, and for a screen reader."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.report.explanation import render_explanation
from tests.report.explained import explanation

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
axe = pytest.importorskip("axe_core_python.sync_playwright", reason="axe-core-python is not installed")

CHROMIUM = Path("/usr/bin/chromium")
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.thorough,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}; apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_page(browser, tmp_path, options):
    file = tmp_path / "explanation.html"
    file.write_text(render_explanation(explanation(), name="run"))
    context = browser.new_context(bypass_csp=True, **options)
    page = context.new_page()
    page.goto(file.as_uri())
    page.evaluate(axe.Axe().axe_script)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    assert page.title() == "run · rlhfkit explanation"
    context.close()
