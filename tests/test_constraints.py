"""What `make install` takes is fixed to the version."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_has_an_exact_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]
    required = [requirement for requirement in required if not requirement.startswith("rlhfkit[")]
    names = {normalized(re.match(r"[\w.-]+", requirement).group()) for requirement in required}
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)  # no local build such as "+cpu"
    assert names <= {normalized(line.partition("==")[0]) for line in lines}


def test_every_lower_bound_is_a_version_that_was_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {name: extra for name, extra in project["optional-dependencies"].items() if name != "vllm"}
    required = [*project["dependencies"], *(requirement for extra in extras.values() for requirement in extra)]
    bounds = {}
    for requirement in required:
        if requirement.startswith("rlhfkit["):
            continue
        name, bound = re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement).groups()
        bounds[normalized(name)] = bound
    lines = [line for line in (ROOT / "constraints-lowest.txt").read_text().splitlines() if not line.startswith("#")]
    tested = {normalized(name): version for name, _, version in (line.partition("==") for line in lines)}
    assert bounds == tested
