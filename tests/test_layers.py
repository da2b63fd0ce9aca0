"""A module imports only from the layers above its own, as drawn in the map of the package."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rlhfkit

PACKAGE = Path(rlhfkit.__file__).parent

# In L0 and L1 each name may import the names before it; from L2 on, only the layers above, apart from EXCEPTIONS.
ORDERED_LAYERS = [
    ["errors", "records", "metrics", "wording", "config", "recipes", "rundir", "tracking"],
    ["padding", "machine", "stats", "ppo", "diagnosis", "report", "distributed"],
]
LAYERS = [
    ["data", "models", "envs", "rewards"],
    ["rollout"],
    ["training", "evaluation", "feedback", "formulas"],
    ["probes"],
    ["web"],
    ["labelling", "explanation"],
    ["pipeline"],
    ["api"],
    ["doctor", "bench"],
    ["planning"],
    ["tuning"],
    ["launch"],
    ["handover"],
    ["cli", "__main__"],
]
WITHOUT_TORCH = {
    "errors",
    "records",
    "metrics",
    "wording",
    "config",
    "recipes",
    "rundir",
    "tracking",
    "stats",
    "diagnosis",
    "report",
    "handover",
}
EXCEPTIONS = {
    ("rewards", "models"),  # a reward model is a model
    ("data", "envs.guess"),  # games played blindly are texts
    ("rewards", "data.grammar"),  # the true reward of synthetic texts is part of their grammar
    ("__main__", "cli"),
}

RANK = {name: rank for rank, name in enumerate(name for layer in ORDERED_LAYERS for name in layer)}
RANK |= {name: len(RANK) + depth for depth, layer in enumerate(LAYERS) for name in layer}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    """The folder or module right below the package that `path` belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """Dotted names of the modules that a file imports, at its top or later."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively; write the whole name"
            if node.module == "rlhfkit":
                yield from (f"rlhfkit.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def may_import(importer: str, module: str) -> bool:
    """Whether the part `importer` may import `module`, a dotted name without the package's."""
    part = module.split(".")[0]
    if importer == part or {(importer, part), (importer, module)} & EXCEPTIONS:
        return True
    return {importer, part} <= RANK.keys() and RANK[part] < RANK[importer]


def test_every_module_has_a_layer():
    assert {part_of(path) for path in MODULES} <= RANK.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_module_imports_only_from_above(path):
    own = {name.removeprefix("rlhfkit.") for name in imported(path) if name.startswith("rlhfkit.")}
    assert [module for module in sorted(own - {"__version__"}) if not may_import(part_of(path), module)] == []


def test_rooms_that_read_recipes_and_runs_import_no_torch():
    """Tried in a fresh process, because an import may hide behind another module."""
    modules = [
        ".".join(("rlhfkit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for path in MODULES
        if part_of(path) in WITHOUT_TORCH
    ]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'transformers'} & sys.modules.keys()\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


def test_only_launch_imports_ray():
    importers = {part_of(path) for path in MODULES for name in imported(path) if name.split(".")[0] == "ray"}
    assert importers <= {"launch"}


def test_names_say_what_is_inside():
    vague = {"utils", "util", "common", "core", "base", "helpers", "helper", "misc"}
    assert [path for path in PACKAGE.rglob("*") if path.stem in vague] == []


def test_the_rules_catch_what_they_forbid():
    assert may_import("training", "ppo")
    assert may_import("training", "ppo.loss")
    assert may_import("rewards", "models.reward_model")
    assert may_import("rewards", "data.grammar")
    assert not may_import("rewards", "data.rows")
    assert not may_import("ppo", "training")
    assert not may_import("models", "rewards")
    assert not may_import("training", "evaluation")
    assert not may_import("evaluation", "feedback")
    assert not may_import("errors", "config")
