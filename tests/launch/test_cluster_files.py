"""The files of examples/cluster/ say what KubeRay and SLURM need, and call rlhfkit as it can be called."""

import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from rlhfkit.cli.app import app
from rlhfkit.config.load import load_recipe

yaml = pytest.importorskip("yaml")

DIRECTORY = Path(__file__).parents[2] / "examples" / "cluster"
PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"


def job():
    return yaml.safe_load((DIRECTORY / "rayjob.yaml").read_text())


def commands(script):
    """What is given to rlhfkit in each line of a script that calls it."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "rlhfkit" in words:
            yield [word for word in words[words.index("rlhfkit") + 1 :] if word != "&"]


def check(words):
    """Parse a command, load its recipe with its overrides; what it was given."""
    command = typer.main.get_command(app).commands[words[0]]
    given = command.make_context(words[0], words[1:]).params
    load_recipe(given["recipe"], given["overrides"] or [])
    return given


def test_a_job_has_what_kuberay_needs():
    document = job()
    spec = document["spec"]
    cluster = spec["rayClusterSpec"]
    assert (document["apiVersion"], document["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["entrypoint"] and cluster["rayVersion"] and cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert "rayStartParams" in group and {"name", "image", "resources"} <= container.keys()
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert all({"groupName", "replicas"} <= group.keys() for group in cluster["workerGroupSpecs"])
    assert len({group["template"]["spec"]["containers"][0]["image"] for group in groups}) == 1


def test_a_job_has_a_place_for_each_trainer_and_sampler():
    (words,) = commands(job()["spec"]["entrypoint"])
    recipe = load_recipe("pairs", check(words)["overrides"]).recipe
    (group,) = job()["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert group["replicas"] == recipe.cluster.trainers + recipe.cluster.samplers


def test_the_script_for_slurm_is_a_script():
    subprocess.run(["bash", "-n", DIRECTORY / "slurm.sh"], check=True)
    (words,) = commands((DIRECTORY / "slurm.sh").read_text())
    assert check(words)["ray"] == "$address:$port"


def test_the_command_of_a_submitted_job_can_be_called():
    submitted = [line for line in PAGE.read_text().splitlines() if line.startswith("ray job submit")]
    assert submitted
    for line in submitted:
        (words,) = commands(line.partition(" -- ")[2])
        assert check(words)["ray"] == "auto"
