"""What an installed rlhfkit is made of, and what it works without."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "rlhfkit"

# What only extras bring. An import of one of them fails, as where the extra is not installed.
OPTIONAL = ["fastapi", "uvicorn", "starlette", "sacrebleu", "psycopg", "Box2D", "datasets", "pyarrow", "pandas"]
WITHOUT_EXTRAS = """
import importlib, pkgutil, sys
sys.modules.update(dict.fromkeys({optional!r}))
import rlhfkit
allowed = ("rlhfkit.web", "rlhfkit.pipeline.label_session", "rlhfkit.__main__")
for module in pkgutil.walk_packages(rlhfkit.__path__, "rlhfkit.", onerror=lambda name: None):
    if not module.name.startswith(allowed):
        importlib.import_module(module.name)
"""


@pytest.mark.thorough
def test_what_needs_no_page_is_imported_without_the_extras():
    code = WITHOUT_EXTRAS.format(optional=OPTIONAL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory with the wheel and the sdist, built without the net."""
    pytest.importorskip("hatchling", reason="the wheel is built with hatchling, which is not installed")
    directory = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return directory


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if not name.endswith("/")}
        (metadata,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        said = opened.read(metadata).decode()
    held = {name for name in names if ".dist-info/" not in name}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert held == {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert {
        "rlhfkit/py.typed",
        "rlhfkit/recipes/demo.toml",
        "rlhfkit/report/report.html.jinja",
        "rlhfkit/report/style.css",
        "rlhfkit/web/static/label.js",
        "rlhfkit/web/static/texts.json",
        "rlhfkit/web/templates/label.html.jinja",
    } <= held
    assert {"datasets", "web", "postgres"} <= set(re.findall(r"^Provides-Extra: (\S+)$", said, re.MULTILINE))


def test_the_sdist_has_what_its_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "constraints.txt",
        "uv.lock",
        "docs/architecture.md",
        "tests/conftest.py",
        "src/rlhfkit/py.typed",
    } <= names
    assert not any(name.startswith((".venv", "runs", ".git/")) for name in names)


def test_project_citation_and_changelog_are_of_one_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert version in (ROOT / "CHANGELOG.md").read_text()


def test_forms_for_issues_can_be_shown():
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.stem for form in forms] == ["bug", "config", "feature", "question"]
    for form in (yaml.safe_load(path.read_text()) for path in forms if path.stem != "config"):
        assert {"name", "description", "body"} <= form.keys()
        asked = [part for part in form["body"] if part["type"] != "markdown"]
        assert all(part["type"] in ("input", "textarea") and part["attributes"]["label"] for part in asked)
        assert len({part["id"] for part in asked}) == len(asked) > 0


def test_the_workflow_runs_the_checks_of_the_repository():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert ".ci/run" in [step.get("run") for step in workflow["jobs"]["checks"]["steps"]]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
