"""The type that a run computes in: chosen once, recorded, kept by whatever continues or measures the run."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhfkit.config.load import list_recipes, load_recipe, recipe_text
from rlhfkit.config.model import PretrainedModelConfig, ScratchModelConfig
from rlhfkit.doctor.hardware import examine_dtypes
from rlhfkit.doctor.recipe import examine_recipe
from rlhfkit.errors import CheckpointError
from rlhfkit.machine import dtype as dtypes
from rlhfkit.machine.dtype import NO_BFLOAT16, ProductTimes
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import rounds as loop
from rlhfkit.pipeline.build import Builder
from rlhfkit.rundir.directory import RunDir
from tests.doctor.test_rehearsal import RECIPE

SHORT = ('stages=["pretrain"]', "rounds=1", "data.texts.num_rows=16", "pretrain.epochs=1")


class Said(Progress):
    """Keeps what would be printed."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def _print(self, text: str, style: str | None = None) -> None:
        self.lines.append(text)


@pytest.fixture
def machine(monkeypatch):
    """A machine on which bfloat16 takes `factor` times as long as float32."""
    monkeypatch.delenv(NO_BFLOAT16, raising=False)

    def of_factor(factor: float) -> None:
        monkeypatch.setattr(dtypes, "measured_products", lambda device: ProductTimes(1.0, factor))

    return of_factor


def recipe(tmp_path, *overrides):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return load_recipe(path, [*SHORT, *overrides])


def run(tmp_path, *overrides, name="run", fresh=False):
    """(what was said of the type, the manifest's entry, the type of the saved weights)."""
    said = Said()
    loop.run(recipe(tmp_path, *overrides), tmp_path / name, fresh=fresh, progress=said)
    run_dir = RunDir(tmp_path / name)
    weights = load_file(run_dir.model("base") / "model.safetensors")
    entry = json.loads(run_dir.manifest.read_text())["dtype"]
    return [line for line in said.lines if "computing in" in line], entry, next(iter(weights.values())).dtype


def test_auto_is_the_default_of_both_models():
    assert PretrainedModelConfig(path="x").dtype == "auto"
    assert ScratchModelConfig(type="scratch").dtype == "auto"


def test_no_shipped_recipe_asks_for_a_type_that_many_machines_lack():
    tables = {name: tomllib.loads(recipe_text(name)) for name, *_ in list_recipes()}
    found = {name: table["model"].get("dtype") for name, table in tables.items() if "model" in table}
    tiny = {
        "demo",
        "demo_rounds",
        "demo_brief",
        "guess",
    }  # too small to gain from bfloat16; their numbers are published
    assert len(found) == 11
    assert found == {name: "float32" if name in tiny else "auto" for name in found}


@pytest.mark.thorough
@pytest.mark.parametrize(("factor", "taken"), [(0.3, torch.bfloat16), (40.0, torch.float32)])
def test_a_run_says_and_records_what_auto_took_and_keeps_the_recipes_word(tmp_path, machine, factor, taken):
    machine(factor)
    said, entry, dtype = run(tmp_path)
    assert len(said) == 1 and str(taken).removeprefix("torch.") in said[0]
    assert dtype == taken
    assert entry["asked"] == "auto" and entry["taken"] == str(taken).removeprefix("torch.")
    assert entry["bfloat16_per_float32"] == factor
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model"]["dtype"] == "auto"


@pytest.mark.thorough
def test_a_run_continues_in_its_type_where_the_machine_would_choose_another(tmp_path, machine):
    machine(0.3)
    run(tmp_path)
    machine(40.0)
    whole = 'stages=["pretrain"]'
    builder = Builder(recipe(tmp_path, whole).recipe, RunDir(tmp_path / "run"))
    assert builder.dtype == torch.bfloat16
    assert "slow here" in builder.dtype_choice.words()
    _, entry, dtype = run(tmp_path, fresh=True)
    assert (entry["taken"], dtype) == ("float32", torch.float32)


def test_the_same_type_by_name_or_by_auto_is_no_other_setting(tmp_path, machine):
    machine(40.0)
    run(tmp_path)
    run(tmp_path, 'model.dtype="float32"')
    run(tmp_path)
    with pytest.raises(CheckpointError, match=r"model.dtype was 'auto', is now 'bfloat16'"):
        run(tmp_path, 'model.dtype="bfloat16"')


@pytest.mark.thorough
def test_a_run_of_a_version_without_auto_continues_in_the_type_of_its_settings(tmp_path, machine):
    machine(40.0)
    run(tmp_path, 'model.dtype="bfloat16"')
    manifest = RunDir(tmp_path / "run").manifest
    content = json.loads(manifest.read_text())
    del content["dtype"]
    manifest.write_text(json.dumps(content))
    _, entry, _ = run(tmp_path)
    assert entry["taken"] == "bfloat16"


@pytest.mark.thorough
def test_a_slow_type_by_name_is_a_warning_and_no_error(tmp_path, machine):
    machine(40.0)
    said, _, dtype = run(tmp_path, 'model.dtype="bfloat16"')
    assert said == [
        "warning: computing in bfloat16, which is slow here: products in bfloat16 take 40 times as long as in float32 "
        'on this CPU; set model.dtype = "auto" in a new run directory'
    ]
    assert dtype == torch.bfloat16
    assert run(tmp_path, 'model.dtype="float32"', name="quick")[0] == []


def test_rounds_compute_in_the_type_of_the_whole(tmp_path, machine):
    machine(0.3)
    whole = Builder(recipe(tmp_path, 'stages=["pretrain"]').recipe, RunDir(tmp_path / "whole"))
    machine(40.0)
    part = Builder(whole.recipe, RunDir(tmp_path / "round"), given_dtype=whole.dtype_choice)
    assert part.dtype == torch.bfloat16


def test_the_rehearsal_computes_in_the_type_of_the_run(tmp_path, machine, monkeypatch):
    machine(40.0)
    asked: list[Path] = []
    made = Builder.__post_init__

    def noted(self):
        made(self)
        asked.append((self.run.path.name, self.dtype_choice.taken))

    monkeypatch.setattr(Builder, "__post_init__", noted)
    found = recipe(tmp_path)
    from rlhfkit.doctor.rehearsal import rehearse

    machine(0.3)
    room = tmp_path / "room"
    room.mkdir()
    given = dtypes.choose_dtype("auto", torch.device("cpu"))
    machine(40.0)
    list(rehearse(found, RunDir(tmp_path / "run"), room, dtype=given))
    assert asked == [("room", "bfloat16")]


def test_doctor_measures_both_types_and_says_what_auto_takes(machine):
    machine(40.0)
    (finding,) = examine_dtypes({})
    assert finding.verdict == "ok"
    assert 'model.dtype = "auto" takes float32' in finding.seen and "40 times as long" in finding.seen
    # three products of 2 x 256 x 256 x 256 operations in one second
    assert finding.numbers["float32_gflops"] == pytest.approx(0.1006632960)
    assert finding.numbers["bfloat16_per_float32"] == 40.0


@pytest.mark.parametrize(("asked", "verdict"), [("bfloat16", "warning"), ("auto", "ok"), ("float32", "ok")])
def test_doctor_warns_of_a_recipe_that_asks_for_a_slow_type(tmp_path, machine, asked, verdict):
    machine(40.0)
    findings = examine_recipe(recipe(tmp_path, f'model.dtype="{asked}"'), tmp_path / "run")
    (finding,) = (finding for finding in findings if finding.name == "model.dtype")
    assert finding.verdict == verdict
    if verdict == "warning":
        assert "40 times as long" in finding.seen and 'model.dtype = "auto"' in finding.remedy


@pytest.mark.thorough
def test_evaluate_of_an_old_run_takes_the_type_that_was_recorded(tmp_path, machine):
    machine(0.3)
    run(tmp_path)
    machine(40.0)
    from rlhfkit.rundir.resume import recipe_of

    run_dir = RunDir(tmp_path / "run")
    assert Builder(recipe_of(run_dir), run_dir).dtype == torch.bfloat16


@pytest.mark.thorough
def test_a_run_says_once_and_records_which_fast_paths_it_took(tmp_path):
    said = Said()
    loop.run(recipe(tmp_path, 'stages=["pretrain", "sft"]'), tmp_path / "run", progress=said)
    (line,) = (line for line in said.lines if line.startswith("fast paths: "))
    assert "attention as two products" in line
    recorded = json.loads((tmp_path / "run" / "manifest.json").read_text())["fast_paths"]
    assert recorded["attention as two products"] == "taken"


@pytest.mark.thorough
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_run_with_ppo_says_its_fast_paths_once_when_all_have_been_tried(tmp_path, rounds):
    said = Said()
    stages = ["pretrain", "sft", "preferences", "reward_model", "ppo", "evaluate"]
    few = ("ppo.iterations=2", "ppo.min_eos_rate=0", f"rounds={rounds}", f"stages={json.dumps(stages)}")
    loop.run(recipe(tmp_path, *few), tmp_path / "run", progress=said)
    (line,) = (line for line in said.lines if line.startswith("fast paths: "))
    home = tmp_path / "run" / "round-1" if rounds > 1 else tmp_path / "run"
    for name in json.loads((home / "manifest.json").read_text())["fast_paths"]:
        assert name in line


@pytest.mark.thorough
def test_compile_without_a_compiler_is_a_note_and_the_plain_code(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    said = Said()
    overrides = ('stages=["pretrain", "sft"]', "model.compile=true", "data.demonstrations.num_rows=16", "sft.epochs=1")
    loop.run(recipe(tmp_path, *overrides), tmp_path / "run", progress=said)
    assert any("needs a C++ compiler" in line and "install one" in line for line in said.lines)
    recorded = json.loads((tmp_path / "run" / "manifest.json").read_text())["fast_paths"]
    assert recorded["compiled code"].startswith("not taken: ")
