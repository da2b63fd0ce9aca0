"""The tables of plans in the docs are what the planner says."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_tables_of_plans_are_those_of_the_planner():
    made = runpy.run_path(str(ROOT / "docs" / "make_plans.py"))
    for page, text in made["pages"]().items():
        assert text == page.read_text(encoding="utf-8"), "run python docs/make_plans.py"


def test_every_assumption_is_on_the_page():
    text = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(ROOT / "docs" / "make_plans.py"))
    for name in made["plan"]("pairs", made["RECIPE"], model="8B", gpus="8xH100").as_dict()["assumptions"]:
        assert f"- {name} = " in text
