"""The launch files of a small run, whole: a change of a line shows here.

They were read line by line against the tools' sources; see docs/handover.md. `python -m tests.handover.test_golden`
writes them again.
"""

import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rlhfkit import __version__
from rlhfkit.handover.export import export_to
from tests.handover.conftest import make_run

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
FILES = {"verl": ("ppo.yaml", "launch.sh"), "openrlhf": ("launch.sh",), "nemo-rl": ("ppo.yaml", "launch.sh")}


def launch_files(tool: str, run: Path, directory: Path) -> dict[str, str]:
    """Name → text, each comment in one line, without what is of this machine and version alone."""
    export_to(tool, run, directory=directory, gpus=2, substitute=True)
    texts = {name: re.sub(r"\n *#   ", " ", (directory / name).read_text()) for name in FILES[tool]}
    here = {str(run.resolve()): "RUN", f"rlhfkit {__version__}": "rlhfkit"}
    return {name: re.sub("|".join(map(re.escape, here)), lambda found: here[found[0]], text)
            for name, text in texts.items()}  # fmt: skip


@pytest.mark.parametrize("tool", FILES)
def test_launch_files_are_as_they_were_read(tool, run, tmp_path):
    for name, text in launch_files(tool, run, tmp_path).items():
        assert text == (GOLDEN / f"{tool}.{name}").read_text(), f"{tool}.{name}"


@pytest.mark.parametrize("tool", FILES)
def test_bash_reads_the_launch_script(tool):
    assert subprocess.run(["bash", "-n", GOLDEN / f"{tool}.launch.sh"], capture_output=True, text=True).stderr == ""


def test_bash_gives_openrlhf_the_arguments_that_were_meant(run, tmp_path):
    export_to("openrlhf", run, directory=tmp_path / "o u t", gpus=2)
    fake = tmp_path / "python3"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    ended = subprocess.run(
        ["bash", tmp_path / "o u t" / "launch.sh", "--train.seed", "9"],
        capture_output=True,
        text=True,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
    )
    words = ended.stdout.splitlines()
    assert words[:2] == ["-m", "openrlhf.cli.train_ppo_ray"]
    assert words[-2:] == ["--train.seed", "9"]  # what is given to the script goes last, and counts
    assert words[words.index("--actor.model_name_or_path") + 1] == str(tmp_path / "o u t" / "policy")
    assert words[words.index("--reward.clip_range") + 1 :][:2] == ["-4.0", "4.0"]


def test_the_page_has_the_tables_that_the_code_has():
    made = runpy.run_path(str(ROOT / "docs" / "make_api.py"))
    text = (ROOT / "docs" / "handover.md").read_text()
    assert made["with_units"](text) == text, "run python docs/make_api.py"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = make_run(Path(scratch) / "small", "llama")
        for tool in FILES:
            for name, text in launch_files(tool, made, Path(scratch) / tool).items():
                (GOLDEN / f"{tool}.{name}").write_text(text)
                print(f"{tool}.{name}", file=sys.stderr)
