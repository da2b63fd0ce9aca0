"""Whether what is installed works together, by what each package says of the others; nothing is imported for it."""

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from rlhfkit.doctor.findings import Finding, ok, skipped, warning
from rlhfkit.doctor.findings import fault as fault_of

__all__ = ["Installed", "disagreements", "examine_extras", "examine_packages", "examine_python", "here", "unmet"]

SHOWN = ("torch", "transformers", "datasets", "gymnasium", "numpy")
NEIGHBOURS = ("torchvision", "torchaudio", "vllm", "ray", "flash-attn", "bitsandbytes", "accelerate")
"""Packages that are not ours to require, and that break when torch or transformers change below them."""

PURPOSES = {
    "datasets": "Parquet, `datasets` directories, the hub's datasets",
    "box2d": "LunarLander and its kind",
    "translation": "BLEU and chrF",
    "web": "pages: label, dashboard",
    "postgres": "votes in PostgreSQL",
    "dev": "",  # the tests say so themselves
}
OTHERS = {"vllm": "vLLM as sampler of PPO, in an environment of its own", "ray": "several machines"}
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Installed:
    """What is installed: versions, and what each package requires."""

    def __init__(self, versions: Mapping[str, str], requires: Mapping[str, list[str]], *, python: str) -> None:
        """Take names as on PyPI, in any spelling."""
        self.versions = {_normalized(name): version for name, version in versions.items()}
        self._requires = {_normalized(name): texts for name, texts in requires.items()}
        self.python = python

    def requirements(self, name: str, *, extra: str = "") -> Iterator[Requirement]:
        """What a package requires here; with `extra`, only what that adds."""
        for text in self._requires.get(_normalized(name), ()):
            requirement = Requirement(text)
            marker = requirement.marker
            plainly = marker is None or marker.evaluate({"extra": ""})
            if extra:
                if not plainly and marker is not None and marker.evaluate({"extra": extra}):
                    yield requirement
            elif plainly:
                yield requirement

    def extras(self, name: str) -> list[str]:
        """Names of a package's extras, as its requirements mention them, in order."""
        texts = " ".join(self._requires.get(_normalized(name), ()))
        return list(dict.fromkeys(re.findall(r"extra\s*==\s*[\"']([\w-]+)", texts)))


def here() -> Installed:
    """What is installed in this environment."""
    versions, requires = {}, {}
    for distribution in metadata.distributions():
        name = distribution.metadata["Name"]
        if name and _normalized(name) not in versions:  # the first on the path is the one that is imported
            versions[_normalized(name)] = distribution.version
            requires[_normalized(name)] = distribution.requires or []
    return Installed(versions, requires, python=platform.python_version())


def examine_python(installed: Installed, *, needed: str) -> Iterator[Finding]:
    """Whether this Python is one of those that `needed`, as ">=3.11", allows."""
    name, version = "machine.python", installed.python
    words = f"{version} at {sys.executable}"
    if not SpecifierSet(needed).contains(version, prereleases=True):
        yield fault_of(name, f"{words}; needed: {needed}", f"make an environment with Python {needed}")
    elif sys.prefix == sys.base_prefix:
        yield ok(name, f"{words}, outside a virtual environment")
    else:
        yield ok(name, words)


def examine_packages(installed: Installed, *, package: str = "rlhfkit") -> Iterator[Finding]:
    """Whether what the package needs is there, in versions that fit, and whether these fit each other."""
    name = "machine.packages"
    if _normalized(package) not in installed.versions:
        yield skipped(name, f"{package} runs from a folder, and is not installed, so nothing says what it needs")
        return
    needed = list(installed.requirements(package))
    faults = [words for requirement in needed if (words := unmet(requirement, installed))]
    if faults:
        yield fault_of(name, "; ".join(faults), f"pip install --upgrade {package}")
    quarrels = disagreements(installed, (package, *NEIGHBOURS), ignored=package)
    if quarrels:
        more = f" (and {len(quarrels) - 4} more)" if len(quarrels) > 4 else ""
        yield warning(
            name, "; ".join(quarrels[:4]) + more, "install versions that fit each other, in an environment of their own"
        )
    if not faults and not quarrels:
        shown = ", ".join(f"{each} {installed.versions[each]}" for each in SHOWN if each in installed.versions)
        yield ok(name, f"{len(needed)} needed, all there and in accord: {shown}")


def unmet(requirement: Requirement, installed: Installed) -> str:
    """What is wrong with how a requirement is met, as "torch is 2.4.0, needed >=2.6"; empty where it is met."""
    version = installed.versions.get(_normalized(requirement.name))
    if version is None:
        return f"{requirement.name} is not installed, needed {requirement.specifier or 'in any version'}"
    try:
        Version(version)
    except InvalidVersion:
        return ""  # somebody's own build, of which nothing can be said
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} is {version}, needed {requirement.specifier}"


def disagreements(installed: Installed, roots: tuple[str, ...], *, ignored: str = "") -> list[str]:
    """What packages say against each other, among `roots` and all that these require; not what `ignored` says."""
    seen, waiting, found = set(), [_normalized(root) for root in roots], []
    while waiting:
        name = waiting.pop()
        if name in seen or name not in installed.versions:
            continue
        seen.add(name)
        for requirement in installed.requirements(name):
            waiting.append(_normalized(requirement.name))
            if name != _normalized(ignored) and (words := unmet(requirement, installed)):
                found.append(f"for {name} {installed.versions[name]}: {words}")
    return sorted(found)


def examine_extras(
    installed: Installed, *, package: str = "rlhfkit", chromium: Callable[[], str | None] | None = None
) -> Iterator[Finding]:
    """What only some users need: there, there in a version that does not fit, or not there."""
    for extra in installed.extras(package):
        purpose = PURPOSES.get(extra, "")
        if purpose or extra not in PURPOSES:
            yield _extra(installed, package, extra, purpose)
    for name, purpose in OTHERS.items():
        version = installed.versions.get(name)
        if version is None:
            yield skipped(f"optional.{name}", f"not installed; {purpose}")
            continue
        quarrels = disagreements(installed, (name,))
        if quarrels:
            yield warning(f"optional.{name}", "; ".join(quarrels[:3]), f"give {name} an environment of its own")
        else:
            yield ok(f"optional.{name}", version)
    path = (chromium or find_chromium)()
    if path is None:
        yield skipped("optional.chromium", "not found; only tests in a browser need it")
    else:
        yield ok("optional.chromium", path)


def _extra(installed: Installed, package: str, extra: str, purpose: str) -> Finding:
    name = f"optional.{extra}"
    needed = list(installed.requirements(package, extra=extra))
    install = f'pip install "{package}[{extra}]"'
    missing = [each.name for each in needed if _normalized(each.name) not in installed.versions]
    if missing:
        return skipped(name, f"not installed ({', '.join(missing)}); {purpose}".removesuffix("; "), install)
    faults = [words for each in needed if (words := unmet(each, installed))]
    faults += disagreements(installed, tuple(each.name for each in needed))
    # "gymnasium[box2d]" is there when what the extra of gymnasium adds is.
    for each in needed:
        for inner in each.extras:
            faults += [
                words for deep in installed.requirements(each.name, extra=inner) if (words := unmet(deep, installed))
            ]
    if faults and all("is not installed" in words for words in faults):
        return skipped(name, f"not whole: {'; '.join(faults)}; {purpose}".removesuffix("; "), install)
    if faults:
        return warning(name, "; ".join(dict.fromkeys(faults)), f"{install} --upgrade")
    return ok(name, ", ".join(f"{each.name} {installed.versions[_normalized(each.name)]}" for each in needed))


def find_chromium() -> str | None:
    """Path of a browser that Playwright can drive, without starting it."""
    cache = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
    own = sorted(cache.glob("chromium*"))
    if own:
        return str(own[-1])
    return next((path for name in CHROMIUM_NAMES if (path := shutil.which(name))), None)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
