"""The real packages, on this machine alone: what they have kept of a run is what `metrics.jsonl` says."""

import json
import struct
from collections import defaultdict
from pathlib import Path

import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.machine.interrupts import Paused
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline import run as pipeline
from rlhfkit.pipeline.workload import Workload
from rlhfkit.rundir.directory import RunDir
from rlhfkit.tracking.follow import state_of

pytestmark = pytest.mark.thorough


SECRET = "not-for-the-world-1"


class Heard(Progress):
    """A progress that keeps warnings and notes."""

    def __init__(self):
        super().__init__(quiet=True)
        self.warnings = []

    def warn(self, text):
        self.warnings.append(text)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A small run that a tracker follows: two iterations, a pause, and the other two; and its warnings."""
    monkeypatch.setenv("A_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)

    def train(tracker):
        overrides = ["num_seeds=1", "ppo.env_steps=4096", "evaluation.num_episodes=1", "evaluation.record=false"]
        loaded = load_recipe("cartpole", [*overrides, f'tracking.to=["{tracker}"]', f"tracking.name={SECRET} run"])
        run, heard = RunDir(tmp_path / "run"), Heard()
        with pytest.raises(Paused):
            pipeline.run(loaded, run.path, progress=heard, workload=Workload.pausing(2))
        first = state_of(run, tracker)
        pipeline.run(loaded, run.path, progress=heard)
        assert state_of(run, tracker).get("known_as") == first.get("known_as")
        return run, heard.warnings

    return train


def curves(run):
    """Name → values by iteration, of what the run wrote."""
    found = defaultdict(dict)
    for line in run.metrics.read_text().splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if name not in ("stage", "iteration", "seed"):
                found[f"control/seed-0/{name}"][row["iteration"]] = value
    assert len(found) > 10 and len(found["control/seed-0/ppo/entropy"]) == 4
    return found


def holds_no_secret(directory):
    return not any(SECRET.encode() in path.read_bytes() for path in Path(directory).rglob("*") if path.is_file())


def offline_records(path):
    """Records of a file of W&B: a log of LevelDB, whose blocks of 32 KiB hold parts of records."""
    proto = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    content, place, whole = path.read_bytes(), 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        whole += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last part
            record = proto.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_wandb_keeps_offline_what_the_run_wrote(trained, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run, warnings = trained("wandb")
    found, settings, names = defaultdict(dict), {}, set()
    for path in run.tracking.glob("wandb/offline-run-*/*.wandb"):
        for record in offline_records(path):
            if record.HasField("run"):
                names.add((record.run.run_id, record.run.display_name, record.run.project))
                settings |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
                assert record.run.host == "-" and not record.run.HasField("git")
            items = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name, value in items.items():
                if name.startswith("control/") and not name.endswith("/iteration"):
                    assert items["control/seed-0/iteration"] not in found[name]
                    found[name][items["control/seed-0/iteration"]] = value
    assert found == curves(run) and warnings == []
    assert names == {(state_of(run, "wandb")["known_as"], "${A_TOKEN} run", "rlhfkit")}
    assert settings["ppo"]["env_steps"] == 4096 and holds_no_secret(run.tracking)


def test_mlflow_keeps_what_the_run_wrote(trained, tmp_path):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    run, warnings = trained("mlflow")
    client, known_as = MlflowClient(), state_of(run, "mlflow")["known_as"]
    kept = client.get_run(known_as)
    expected = curves(run)
    found = {name: {each.step: each.value for each in client.get_metric_history(known_as, name)} for name in expected}
    assert found == expected and kept.data.metrics.keys() == expected.keys() and warnings == []
    assert all(len(client.get_metric_history(known_as, name)) == 4 for name in expected)
    assert kept.info.status == "FINISHED" and kept.info.run_name == "${A_TOKEN} run"
    assert kept.data.params["ppo.env_steps"] == "4096"
    assert SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()


def test_a_server_of_mlflow_that_does_not_answer_is_one_warning(trained, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run, warnings = trained("mlflow")
    assert len(warnings) == 2 and all(
        "127.0.0.1" in words and "hunter2" not in words for words in warnings
    )  # of two starts
    assert len(curves(run)["control/seed-0/ppo/entropy"]) == 4


def test_trackio_keeps_what_the_run_wrote(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    run, warnings = trained("trackio")
    known_as = state_of(run, "trackio")["known_as"]
    found = defaultdict(dict)
    for row in SQLiteStorage.get_logs("rlhfkit", known_as):
        for name, value in row.items():
            if name.startswith("control/"):
                assert row["step"] not in found[name]
                found[name][row["step"]] = value
    assert found == curves(run) and warnings == []
    assert known_as.startswith("${A_TOKEN} run-") and holds_no_secret(tmp_path / "trackio")
