"""Every name that is written is one that the tool has, with the meaning of its defaults: held against its own package.

verl and OpenRLHF are downloaded from PyPI; of NeMo RL, which is not there, a list of names is held.
"""

import argparse
import ast
import re
import subprocess
import sys
import zipfile
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rlhfkit import import_from
from rlhfkit.handover.export import TARGETS, export_to
from rlhfkit.handover.terms import IN_REWARD_FILE
from rlhfkit.handover.verl_defaults import OFF
from tests.handover.conftest import RECIPE, make_run

IN_CLASSES = {"critic.ppo_infer_max_token_len_per_gpu": "verl/workers/config/critic.py"}
"""Settings of verl that its YAML leaves to the class that reads it."""
OPEN = ("actor_rollout_ref.actor.optim.override_optimizer_config", "critic.optim.override_optimizer_config")
"""Settings that are null there, and take any names."""


def downloaded(requirement: str, directory: Path) -> Path:
    """The package's files, from PyPI; it is not installed, and none of it runs."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        directory,
        requirement,
    ]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{requirement}: PyPI does not answer")
    if ended.returncode:
        pytest.skip(f"{requirement} cannot be downloaded: {ended.stderr.strip().splitlines()[-1:]}")
    (wheel,) = directory.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(directory)
    name = requirement.partition("=")[0]
    return next(path for path in directory.rglob(name) if (path / "__init__.py").is_file())


@pytest.fixture(scope="module")
def verl(tmp_path_factory):
    return downloaded(f"verl=={TARGETS['verl'].version}", tmp_path_factory.mktemp("verl"))


@pytest.fixture(scope="module")
def openrlhf(tmp_path_factory):
    return downloaded(f"openrlhf=={TARGETS['openrlhf'].version}", tmp_path_factory.mktemp("openrlhf"))


# ── verl ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def own_config(verl: Path) -> dict:
    return yaml.safe_load((verl / "trainer" / "config" / "_generated_ppo_trainer.yaml").read_text())


def has(table: object, name: str) -> bool:
    for key in name.split("."):
        if not isinstance(table, dict) or key not in table:
            return False
        table = table[key]
    return True


@pytest.mark.thorough
def test_verl_has_every_name(verl):
    config = own_config(verl)
    names = [row.theirs for row in TARGETS["verl"].rows if not row.theirs.startswith(IN_REWARD_FILE)]
    unknown = [
        name
        for name in names
        if not has(config, name) and name not in IN_CLASSES and not any(name.startswith(f"{above}.") for above in OPEN)
    ]
    assert unknown == []
    for name, file in IN_CLASSES.items():
        assert re.search(rf"^    {name.rpartition('.')[2]}: ", (verl.parent / file).read_text(), re.MULTILINE), name
    assert all(has(config, name) for name in OPEN)


@pytest.mark.thorough
def test_verl_reads_what_its_configuration_alone_would_not_have(verl, run, tmp_path):
    """No key of a written file is new to its section, so that Hydra takes it."""
    export_to("verl", run, directory=tmp_path, gpus=2)
    written = yaml.safe_load((tmp_path / "ppo.yaml").read_text())

    def new(mine: dict, theirs: object, prefix: str = ""):
        for key, value in mine.items():
            name = f"{prefix}{key}"
            if name in OPEN or name in IN_CLASSES:
                continue
            if not isinstance(theirs, dict) or key not in theirs:
                yield name
            elif isinstance(value, dict):
                yield from new(value, theirs[key], f"{name}.")

    assert [name for name in new(written, own_config(verl)) if name not in ("defaults", "hydra")] == []


@pytest.mark.thorough
def test_the_defaults_of_verl_are_those_that_an_import_takes(verl):
    """Its own configuration, whole, gives the recipe that an empty one does."""
    whole = import_from("verl", verl / "trainer" / "config" / "_generated_ppo_trainer.yaml")
    nothing = import_from("verl", {"algorithm": {}, "data": {"train_batch_size": 1024}})

    def lines(text: str) -> list[str]:
        return [line.partition("  # ")[0] for line in text.splitlines()]

    assert lines(whole.text) == lines(nothing.text)
    assert [line.partition(" ")[0] for line in whole.not_understood] == [
        "the", "trainer.total_epochs", "actor_rollout_ref.actor.shuffle",
    ]  # fmt: skip
    config = own_config(verl)
    assert [name for name in OFF if not has(config, name)] == []


# ── OpenRLHF ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def parser_of(openrlhf: Path) -> argparse.ArgumentParser:
    """Its arguments, made by the statements of its own file that name them; nothing else of it runs."""
    tree = ast.parse((openrlhf / "cli" / "train_ppo_ray.py").read_text())
    main = next(node for node in tree.body if isinstance(node, ast.If))
    end = next(index for index, node in enumerate(main.body) if "parse_args" in ast.unparse(node))
    helpers = [node for node in tree.body if isinstance(node, ast.FunctionDef) and "argument" in node.name]
    known = {"argparse": argparse, "datetime": datetime}
    exec("\n".join(map(ast.unparse, [*helpers, *main.body[:end]])), known)
    parser: argparse.ArgumentParser = known["parser"]
    return parser


def arguments_of(directory: Path) -> list[str]:
    fake = directory / "python3"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    command = ["bash", directory / "launch.sh"]
    ended = subprocess.run(command, capture_output=True, text=True, env={"PATH": f"{directory}:/usr/bin:/bin"})
    return ended.stdout.splitlines()[2:]


CASES = [
    (),
    ("ppo.value.clip_range=0", "model.lora={rank=4, alpha=8}"),
    ("ppo.estimator=rloo", "rollout={max_response_tokens=40, engine='vllm'}", "ppo.missing_eos_score=-1"),
    ("ppo.missing_eos_penalty=2", "ppo.dual_clip=3", "model.lora={targets=['q_proj', 'v_proj']}"),
]


@pytest.mark.thorough
@pytest.mark.parametrize("overrides", CASES, ids=str)
def test_openrlhf_parses_every_argument(overrides, openrlhf, run, tmp_path):
    export_to("openrlhf", run, overrides, directory=tmp_path, gpus=2, substitute=True)
    words = arguments_of(tmp_path)
    known = parser_of(openrlhf)
    parsed = vars(known.parse_args(words))
    names = [word[2:] for word in words if word.startswith("--")]
    assert names and set(names) <= set(parsed)
    written = SimpleNamespace(**{name.replace(".", "__"): parsed[name] for name in names})
    assert written.algo__kl__init_coef == 0.07
    assert written.data__max_len == 24 + 40
    assert written.actor__adam__betas == [0.9, 0.98]
    assert written.actor__eps_clip_low_high == [0.15, 0.15]
    assert written.reward__clip_range == [-4.0, 4.0]


@pytest.mark.thorough
def test_openrlhf_parses_the_huge_number_that_switches_a_clip_off(openrlhf, tmp_path):
    made = make_run(tmp_path / "made", "llama", RECIPE.replace("clip_score = 4.0\n", ""))
    export_to("openrlhf", made, directory=tmp_path, gpus=2)
    assert parser_of(openrlhf).parse_args(arguments_of(tmp_path)).__dict__["reward.clip_range"] == [-1e9, 1e9]


@pytest.mark.thorough
def test_openrlhf_has_every_name(openrlhf):
    known = {option for action in parser_of(openrlhf)._actions for option in action.option_strings}
    assert [row.theirs for row in TARGETS["openrlhf"].rows if f"--{row.theirs}" not in known] == []


# ── citations ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.thorough
@pytest.mark.parametrize("tool", ["verl", "openrlhf"])
def test_each_line_that_is_cited_is_there(tool, request):
    package = request.getfixturevalue(tool)
    missing = []
    for row in TARGETS[tool].rows:
        for file, number in re.findall(r"([\w/]+\.(?:py|yaml))(?::(\d+))?", row.source):
            if file == "reward.py":
                continue
            path = package / file
            lines = path.read_text().splitlines() if path.is_file() else []
            if not lines or (number and not (len(lines) >= int(number) and lines[int(number) - 1].strip())):
                missing.append((row.theirs, file, number))
    assert missing == []


# ── NeMo RL ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nemo_rl_has_every_name():
    known = set()
    for line in (Path(__file__).parent / "nemo_rl_keys.txt").read_text().splitlines():
        if not line.startswith("#"):
            section, _, keys = line.partition(": ")
            known |= {f"{section}.{key}" for key in keys.split()}
    assert [row.theirs for row in TARGETS["nemo-rl"].rows if row.theirs not in known] == []
