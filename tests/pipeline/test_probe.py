"""The stage `probe` and the command: a run's models before and after, its reward, or any model."""

import json

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.config.probe import ProbeConfig
from rlhfkit.errors import DataError, RewardError
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.probe import probe_model
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.probe_results import ProbeResults
from rlhfkit.rundir.results import read_results
from tests.small_recipe import small_recipe
from tests.tiny import save_family

LONGER = "def score(prompts, responses):\n    return [0.1 * len(text.split()) for text in responses]\n"
SECTIONS = """
[data]
max_prompt_tokens = 40
texts = { type = "grammar", num_rows = 48 }
prompts = { type = "grammar", num_rows = 12, seed_offset = 2 }

[pretrain]
minibatch_sequences = 16
max_tokens = 64

[reward]
type = "function"
function = "longer:score"

[ppo]
iterations = 1
rollout_episodes = 8
minibatch_episodes = 8
epochs = 1
min_eos_rate = 0.0

[probe]
names = ["swaps", "continuations", "leakage", "reward_edits"]
primary = "swaps"
num_samples = 1
max_rows = 12
"""


class Heard(Progress):
    def __init__(self):
        super().__init__(quiet=True)
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


def run_in(directory, stages, monkeypatch, progress=None):
    directory.mkdir(exist_ok=True)
    (directory / "longer.py").write_text(LONGER)
    (directory / "tiny.toml").write_text(small_recipe("tiny", stages, SECTIONS))
    monkeypatch.chdir(directory)
    monkeypatch.syspath_prepend(str(directory))
    pipeline.run(
        load_recipe(str(directory / "tiny.toml"), []), directory / "run", progress=progress or Progress(quiet=True)
    )
    return RunDir(directory / "run")


@pytest.mark.thorough
def test_a_run_with_probes_names_what_the_reward_pays_for_and_changes_no_bit_of_training(tmp_path, monkeypatch):
    heard = Heard()
    plain = run_in(tmp_path / "plain", ["pretrain", "ppo"], monkeypatch)
    run = run_in(tmp_path / "probed", ["pretrain", "ppo", "probe"], monkeypatch, heard)
    weights = [each.model("policy") / "model.safetensors" for each in (plain, run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert any(text.startswith("The reward pays for length") for text in heard.warnings)
    found = read_results(run.probes, ProbeResults)
    assert list(found.probes) == ["swaps", "continuations", "leakage", "reward_edits"] and found.primary == "swaps"
    by_name = {(measure.probe, measure.name): measure for measure in found.measures}
    assert by_name["reward_edits", "length"].reading == "found"
    assert by_name["swaps", "men_over_women_by_name"].before is not None
    assert by_name["swaps", "men_over_women_by_name"].is_primary
    assert (
        "What else changed" in run.report.read_text()
        and "What else changed" in (run.model("policy") / "README.md").read_text()
    )


def test_a_model_is_probed_by_command(command_line, tmp_path):
    model = save_family("gpt2", tmp_path / "model")
    code, output, _ = command_line("probe", model, "occupations", "--max-rows", "4", "--json")
    assert code == 0
    found = json.loads(output.splitlines()[-1])
    assert [measure["name"] for measure in found["measures"]] == ["stereotyped", "difference"]
    assert found["measures"][0]["before"] is None and "occupations" in output
    assert list(model.glob("probes*")) == []


def test_an_unknown_probe_is_refused_with_the_names(command_line, tmp_path):
    model = save_family("gpt2", tmp_path / "model")
    code, _, error = command_line("probe", model, "occupation")
    assert code == 1 and "'occupation' is neither a file of rows nor a probe; the probes are stereotypes" in error


def test_a_file_of_rows_that_will_not_do_is_found_before_the_first_stage(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "?"}\n')
    (tmp_path / "tiny.toml").write_text(small_recipe("tiny", ["pretrain", "probe"], SECTIONS))
    settings = [f'probe.names=["{tmp_path / "rows.jsonl"}"]', 'probe.primary=""']
    with pytest.raises(DataError, match=r"probe\.names: .*rows.jsonl:1 has the keys question"):
        pipeline.run(
            load_recipe(str(tmp_path / "tiny.toml"), settings), tmp_path / "run", progress=Progress(quiet=True)
        )
    assert not (tmp_path / "run").exists()


def test_probing_neither_changes_the_model_nor_needs_a_run(tmp_path):
    model = save_family("gpt2", tmp_path / "model")
    before = sorted(path.name for path in model.iterdir())
    config = ProbeConfig(names=("stereotypes",), max_rows=4)
    assert probe_model(str(model), config).measures == probe_model(str(model), config).measures
    assert sorted(path.name for path in model.iterdir()) == before


def test_a_reward_that_fails_is_an_error_where_it_alone_is_asked():
    from rlhfkit import probe

    def broken(prompts, responses):
        raise ValueError("no")

    with pytest.raises(RewardError, match="raised ValueError: no"):
        probe(reward=broken, names=["reward_edits"])
