"""The page of a study in a real Chromium: light, dark, on a phone, and for a screen reader."""

from pathlib import Path

import pytest

from rlhfkit.report.study import render_study
from tests.report.studies import control_study, study
from tests.report.test_browser_explanation import CHROMIUM, PHONE, axe, browser

__all__ = ["browser"]

pytestmark = [
    pytest.mark.browser,
    pytest.mark.thorough,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"no Chromium at {CHROMIUM}; apt-get install chromium"),
]


@pytest.mark.parametrize("options", [{}, {"color_scheme": "dark"}, PHONE], ids=["light", "dark", "phone"])
@pytest.mark.parametrize(
    "results",
    [study(), study(num_done=0), study(num_done=9), control_study()],
    ids=["done", "preparing", "searching", "control"],
)
def test_axe_finds_nothing_serious_and_nothing_is_wider_than_the_page(browser, tmp_path: Path, options, results):
    file = tmp_path / "study.html"
    file.write_text(render_study(results))
    context = browser.new_context(bypass_csp=True, **options)
    page = context.new_page()
    page.goto(file.as_uri())
    page.evaluate(axe.Axe().axe_script)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    assert [rule["id"] for rule in found if rule["impact"] in ("serious", "critical")] == []
    assert page.evaluate("document.documentElement.scrollWidth") == page.viewport_size["width"]
    context.close()
