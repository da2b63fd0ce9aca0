"""Every example runs as it stands, on a tiny model."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM

EXAMPLES = Path(__file__).parents[2] / "examples"
WITHOUT_A_MODEL = ("01_ppo_by_hand.py", "06_right_answers.py")
WITH_A_MODEL = sorted(path.name for path in EXAMPLES.glob("0*.py") if path.name not in WITHOUT_A_MODEL)


@pytest.mark.thorough
def test_ppo_by_hand_solves_cartpole():
    module = runpy.run_path(str(EXAMPLES / "01_ppo_by_hand.py"))
    assert np.mean(module["train"](seed=1, env_steps=70_000)[-50:]) > 400


def test_ppo_by_hand_uses_the_mathematics_alone():
    text = (EXAMPLES / "01_ppo_by_hand.py").read_text()
    imported = [line for line in text.splitlines() if line.startswith(("from rlhfkit", "import rlhfkit"))]
    assert len(imported) == 1 and imported[0].startswith("from rlhfkit.ppo import")


@pytest.mark.slow
def test_right_answers_are_learnt_from_ones_and_zeros(tmp_path):
    ended = ran([str(EXAMPLES / "06_right_answers.py"), "sums"], tmp_path)
    right = [float(share) for share in re.findall(r"right ([\d.]+)%", ended.stdout)]
    assert len(right) == 6, ended.stderr
    assert right[0] < 20 and right[-1] > 55  # seen with seeds 0, 1, 2: 7 to 11 %, and 68 to 75 %


def test_the_page_of_examples_lists_each_of_them():
    listed = re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text())
    there = sorted(path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb"))
    assert sorted(listed) == there


def test_the_first_example_with_a_model_is_twenty_lines():
    assert len((EXAMPLES / "02_tune_with_a_function.py").read_text().splitlines()) <= 24


@pytest.mark.thorough
@pytest.mark.parametrize("name", WITH_A_MODEL)
def test_an_example_runs_in_a_fresh_process(name, model_dir, tmp_path):
    ended = ran([str(EXAMPLES / name), model_dir], tmp_path)
    assert ended.returncode == 0, ended.stderr
    AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")


@pytest.mark.thorough
def test_the_notebook_runs_from_its_first_cell_to_its_last_and_shows_itself(model_dir, tmp_path):
    cells = json.loads((EXAMPLES / "quickstart.ipynb").read_text())["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    (tmp_path / "cells.json").write_text(json.dumps(sources))
    (tmp_path / "run_cells.py").write_text(
        "import ast, json, sys\n"
        "space = {'__name__': '__main__'}\n"
        "for source in json.load(open('cells.json')):\n"
        "    tree = ast.parse(source)\n"
        "    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None\n"
        "    exec(compile(tree, 'cell', 'exec'), space)\n"
        "    value = last and eval(compile(ast.Expression(last.value), 'cell', 'eval'), space)\n"
        "    if hasattr(value, '_repr_html_'):\n"
        "        print('HTML', value._repr_html_().count('<polyline'), value._repr_html_().count('<tr>'))\n"
    )
    ended = ran(["run_cells.py"], tmp_path, MODEL=model_dir, ITERATIONS="2")
    assert ended.returncode == 0, ended.stderr
    # The trainer has two curves and a table of four prompts; the evaluation one row of scores and two of prompts.
    assert ended.stdout.splitlines() == ["HTML 2 5", "HTML 0 5"]
    assert (tmp_path / "tuned" / "config.json").exists()


def ran(words, directory, **variables):
    return subprocess.run(
        [sys.executable, *words], cwd=directory, env={**os.environ, **variables}, capture_output=True, text=True
    )
