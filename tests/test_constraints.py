"""What `make install` takes is fixed to the version."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def locked():
    """The packages of uv.lock, as its tables."""
    return tomllib.loads((ROOT / "uv.lock").read_text())["package"]


def test_pip_and_uv_take_the_same_versions():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pinned = [(normalized(name), version) for name, _, version in (line.partition("==") for line in lines)]
    assert sorted(pinned) == sorted((each["name"], each["version"]) for each in locked() if each["name"] != "rlhfkit")


def test_the_lock_is_of_what_pyproject_asks_for():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [("", requirement) for requirement in project["dependencies"]]
    asked += [(name, requirement) for name, extra in project["optional-dependencies"].items() for requirement in extra]
    asked = {
        (extra, normalized(parsed.name), tuple(sorted(parsed.extras)), str(parsed.specifier))
        for extra, parsed in ((extra, Requirement(text)) for extra, text in asked)
    }
    (ours,) = [each for each in locked() if each["name"] == "rlhfkit"]
    held = {
        (
            "".join(re.findall(r"extra == '([\w-]+)'", each.get("marker", ""))),
            each["name"],
            tuple(sorted(each.get("extras", ()))),
            each.get("specifier", ""),
        )
        for each in ours["metadata"]["requires-dist"]
    }
    assert held == asked, "run `make lock`"
    assert ours["version"] == project["version"]


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
    extras = project["optional-dependencies"]
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
