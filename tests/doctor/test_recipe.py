"""What doctor says of machines, packages and surroundings, and how it shows what it found."""

import dataclasses
import io
import json
import re
import socket
import subprocess
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rlhfkit.doctor import Finding, as_json, examine, summary, table_of
from rlhfkit.doctor.findings import checked, fault, ok, skipped, warning
from rlhfkit.doctor.hardware import (
    CpuFacts,
    Driver,
    Gpu,
    MemoryFacts,
    TorchFacts,
    cpu_facts,
    examine_cpu,
    examine_gpu,
    examine_memory,
    examine_threads,
    examine_torch,
    memory_facts,
)
from rlhfkit.doctor.packages import Installed, examine_extras, examine_packages, examine_python
from rlhfkit.doctor.reward import examine_accuracy, examine_report, judged_accuracy, rank_correlation
from rlhfkit.doctor.system import (
    examine_compiler,
    examine_disk,
    examine_hub,
    examine_port,
    examine_writing,
    nearest,
)
from rlhfkit.errors import ConfigError, DataError
from rlhfkit.records import Preference, Prompt

GIB = 1 << 30
H100 = Gpu("NVIDIA H100", 80 * GIB, (9, 0))


def one(findings):
    (finding,) = findings
    return finding


# ── torch, GPU, CPU ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("torch", "driver", "verdict", "words"),
    [
        (TorchFacts("2.13.0+cpu"), None, "ok", "2.13.0+cpu, built for CPU"),
        (TorchFacts("2.13.0", cuda="13.0"), None, "ok", "built for CUDA 13.0"),
        (TorchFacts("2.13.0", cuda="13.0", gpus=(H100,)), None, "ok", "built for CUDA 13.0"),
        (TorchFacts("2.9", is_rocm=True), None, "ok", "built for ROCm"),
        (TorchFacts("2.13.0+cpu"), Driver("580.65", ("RTX 4090",)), "warning", "beside RTX 4090, which stays idle"),
        (TorchFacts("2.13.0+cpu"), Driver("580.65", ("A", "A")), "warning", "beside 2 x A, which stays idle"),
        (TorchFacts("2.13.0", cuda="13.0"), Driver("570.1", ("A",)), "fault", "CUDA 13.0 needs 580 or newer"),
        (TorchFacts("2.13.0", cuda="12.6"), Driver("570.1", ("A",)), "warning", "torch finds no GPU"),
        (TorchFacts("2.13.0", cuda="12.6"), Driver("470.2", ("A",)), "fault", "the driver is 470.2"),
    ],
)
def test_the_build_of_torch_is_held_against_the_driver(torch, driver, verdict, words):
    finding = one(examine_torch(torch, driver))
    assert finding.verdict == verdict
    assert words in finding.seen
    assert bool(finding.remedy) == (verdict != "ok")


@pytest.mark.parametrize(
    ("architectures", "gpu", "verdict"),
    [
        (("sm_80", "sm_90"), H100, "ok"),
        (("sm_80", "compute_80"), H100, "ok"),  # is compiled when it is first used
        (("sm_50", "sm_80"), H100, "fault"),
        (("sm_80", "sm_90a"), H100, "ok"),
        (("sm_80",), Gpu("RTX 3090", 24 * GIB, (8, 6)), "ok"),
        (("sm_86",), Gpu("A100", 40 * GIB, (8, 0)), "fault"),
        (("sm_100", "sm_120"), Gpu("RTX 5090", 32 * GIB, (12, 0)), "ok"),
        ((), H100, "ok"),  # nothing tells
    ],
)
def test_a_gpu_needs_code_of_its_kind(architectures, gpu, verdict):
    assert one(examine_gpu(TorchFacts("2.13", "13.0", gpus=(gpu,), architectures=architectures))).verdict == verdict


def test_a_gpu_that_cannot_add_is_named():
    finding = one(examine_gpu(TorchFacts("2.13", "13.0", gpus=(H100,), works="CUDA error: no kernel image")))
    assert finding.verdict == "fault"
    assert finding.seen == "NVIDIA H100 with 80 GiB: CUDA error: no kernel image"


def test_gpus_of_several_kinds_are_named():
    other = Gpu("RTX 3090", 24 * GIB, (8, 6))
    assert one(examine_gpu(TorchFacts("2.13", "13.0", gpus=(H100, other)))).verdict == "warning"


CPUINFO = """\
processor\t: 0
model name\t: Some CPU
flags\t\t: fpu sse2 avx2 avx512f amx_bf16

processor\t: 1
"""


def machine(root, **files):
    for name, content in files.items():
        path = root / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_the_processor_is_read_from_what_linux_tells(tmp_path):
    cpu = cpu_facts(machine(tmp_path, proc__cpuinfo=CPUINFO, sys__fs__cgroup__cpu_max="150000 100000\n"))
    assert (cpu.name, cpu.quota_cores) == ("Some CPU", 1.5)
    finding = one(examine_cpu(cpu))
    assert finding.verdict == "ok"
    assert finding.seen.endswith("AVX2, AVX-512, bfloat16 in AMX")


def test_a_machine_that_tells_nothing_is_no_fault(tmp_path):
    cpu = cpu_facts(tmp_path)
    assert (cpu.quota_cores, cpu.flags) == (None, None)
    assert one(examine_cpu(cpu)).verdict == "ok"


@pytest.mark.parametrize(
    ("flags", "verdict", "words"),
    [
        ({"sse2"}, "warning", "no vector instructions"),
        ({"sse2", "avx2"}, "ok", "without instructions for bfloat16"),
        ({"asimd", "bf16"}, "ok", "NEON, bfloat16 in NEON"),
    ],
)
def test_a_slow_processor_is_reported(flags, verdict, words):
    finding = one(examine_cpu(CpuFacts("Some CPU", 2, flags=frozenset(flags))))
    assert finding.verdict == verdict
    assert words in finding.seen


@pytest.mark.parametrize(
    ("threads", "cores", "quota", "environment", "verdict"),
    [
        (8, 8, None, {}, "ok"),
        (4, 8, None, {"OMP_NUM_THREADS": "4"}, "ok"),
        (1, 8, None, {"OMP_NUM_THREADS": "1"}, "warning"),
        (1, 8, None, {}, "ok"),  # somebody's set_num_threads is a decision
        (16, 8, None, {"OMP_NUM_THREADS": "16"}, "warning"),
        (8, 8, 2.0, {}, "warning"),
        (1, 8, 0.5, {}, "ok"),
    ],
)
def test_threads_are_held_against_cores(threads, cores, quota, environment, verdict):
    cpu = CpuFacts("Some CPU", cores, quota_cores=quota)
    assert one(examine_threads(TorchFacts("2.13", num_threads=threads), cpu, environment)).verdict == verdict


def test_memory_is_what_a_container_leaves(tmp_path):
    meminfo = "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n"
    root = machine(tmp_path, proc__meminfo=meminfo, sys__fs__cgroup__memory_max=f"{GIB}\n")
    facts = memory_facts(root)
    assert facts == MemoryFacts(16 * GIB, 8 * GIB, GIB)
    finding = one(examine_memory(facts))
    assert (finding.verdict, finding.seen) == ("warning", "1.0 of 16.0 GiB to be had, in a container of 1.0 GiB")
    machine(tmp_path, sys__fs__cgroup__memory_max="max\n")
    assert one(examine_memory(memory_facts(root))).verdict == "ok"


# ── packages ─────────────────────────────────────────────────────────────────────────────────────────────────────────

REQUIRES = {
    "ours": [
        "torch>=2.6",
        "numpy>=1.26",
        'old; python_version < "3"',
        'fastapi>=0.115; extra == "web"',
    ],
    "torchvision": ["torch==2.12.0"],
    "vllm": ["torch==2.11.0", "ray>=2"],
    "fastapi": ["starlette>=1"],
}
VERSIONS = {"ours": "1.0", "torch": "2.13.0+cpu", "numpy": "2.4"}


def installed(**versions):
    return Installed(VERSIONS | versions, REQUIRES, python="3.12.1")


def test_packages_that_fit_are_listed():
    finding = one(examine_packages(installed(), package="ours"))
    assert finding.verdict == "ok"
    assert finding.seen == "2 needed, all there and in accord: torch 2.13.0+cpu, numpy 2.4"


def test_a_package_that_is_too_old_or_missing_is_a_fault():
    finding = one(examine_packages(installed(torch="2.4.0"), package="ours"))
    assert (finding.verdict, finding.seen) == ("fault", "torch is 2.4.0, needed >=2.6")
    without = Installed({"ours": "1.0", "torch": "2.13"}, REQUIRES, python="3.12")
    finding = one(examine_packages(without, package="ours"))
    assert (finding.verdict, finding.seen) == ("fault", "numpy is not installed, needed >=1.26")


def test_neighbours_that_want_another_torch_are_told():
    finding = one(examine_packages(installed(torchvision="0.27.0"), package="ours"))
    assert finding.verdict == "warning"
    assert finding.seen == "for torchvision 0.27.0: torch is 2.13.0+cpu, needed ==2.12.0"


def test_a_package_that_runs_from_a_folder_says_nothing_of_its_needs():
    assert one(examine_packages(installed(), package="theirs")).verdict == "skipped"


@pytest.mark.parametrize(("version", "verdict"), [("3.10.4", "fault"), ("3.11.0", "ok"), ("3.15.0b1", "ok")])
def test_python_is_held_against_what_is_needed(version, verdict):
    assert one(examine_python(Installed({}, {}, python=version), needed=">=3.11")).verdict == verdict


def extras(**versions):
    found = examine_extras(installed(**versions), package="ours", chromium=lambda: None)
    return {finding.name.removeprefix("optional."): finding for finding in found}


def test_extras_are_there_or_not_or_do_not_fit():
    absent = extras()
    assert absent["web"].verdict == absent["vllm"].verdict == absent["chromium"].verdict == "skipped"
    assert absent["web"].remedy == 'pip install "ours[web]"'
    assert extras(fastapi="0.120", starlette="1.1")["web"].verdict == "ok"
    old = extras(fastapi="0.100", starlette="1.1")["web"]
    assert (old.verdict, old.seen) == ("warning", "fastapi is 0.100, needed >=0.115")
    deep = extras(fastapi="0.120", starlette="0.9")["web"]
    assert (deep.verdict, deep.seen) == ("warning", "for fastapi 0.120: starlette is 0.9, needed >=1")


def test_vllm_that_wants_another_torch_is_reported():
    found = extras(vllm="0.20", ray="2.50")
    assert found["ray"].verdict == "ok"
    assert found["vllm"].verdict == "warning"
    assert found["vllm"].seen == "for vllm 0.20: torch is 2.13.0+cpu, needed ==2.11.0"


# ── surroundings ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_nearest_directory_is_one_that_exists(tmp_path):
    assert nearest(tmp_path / "runs" / "mine") == tmp_path
    assert nearest(tmp_path) == tmp_path


def test_disk_and_writing_are_looked_at_where_the_run_will_be(tmp_path):
    assert str(tmp_path) in one(examine_disk(tmp_path / "runs")).seen
    assert one(examine_writing(tmp_path / "runs")).verdict == "ok"
    assert list(tmp_path.iterdir()) == []  # nothing is left


def test_a_place_that_cannot_be_written_to_is_a_fault(tmp_path):
    (tmp_path / "file").touch()
    assert one(examine_writing(tmp_path / "file")).verdict == "fault"
    if Path("/proc").is_dir():  # where nobody can make files, not even root
        finding = one(examine_writing(Path("/proc/runs")))
        assert finding.verdict == "fault"
        assert "/proc cannot be written" in finding.seen


def compiler(tmp_path, text):
    path = tmp_path / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return {"CXX": str(path)}


def test_a_compiler_is_tried(tmp_path):
    assert one(examine_compiler(compiler(tmp_path, "exit 0"))).verdict == "ok"
    finding = one(
        examine_compiler(compiler(tmp_path, "echo 'a.cpp:2: fatal error: Python.h: No such file' >&2; exit 1"))
    )
    assert finding.verdict == "warning"
    assert "(Python.h: No such file)" in finding.seen
    assert one(examine_compiler({"CXX": "no-such-compiler"})).seen.startswith("no C++ compiler (no-such-compiler)")


@pytest.fixture
def hub():
    """Address of a server, and the list of what it was asked; it answers with the status that is set."""

    class Answer(BaseHTTPRequestHandler):
        status, asked = 200, []

        def do_HEAD(self):
            self.asked.append((self.command, self.path))
            self.send_response(self.status)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", Answer
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_hub_is_asked_once_and_for_nothing(hub):
    address, answer = hub
    finding = one(examine_hub({"HF_ENDPOINT": address}))
    assert (finding.verdict, finding.seen) == ("ok", "127.0.0.1 can be reached")
    assert answer.asked == [("HEAD", "/")]
    answer.status = 503
    assert one(examine_hub({"HF_ENDPOINT": address})).seen == "127.0.0.1 cannot be reached (it answers 503)"


def test_a_hub_that_is_not_there_is_a_warning():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        finding = one(examine_hub({"HF_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}"}))
    assert finding.verdict == "warning"
    assert "HF_HUB_OFFLINE=1" in finding.remedy


def test_a_hub_that_is_switched_off_is_not_asked(hub):
    address, answer = hub
    assert one(examine_hub({"HF_HUB_OFFLINE": "1", "HF_ENDPOINT": address})).verdict == "ok"
    assert answer.asked == []


def test_a_taken_port_is_reported():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert one(examine_port(port)).seen == f"{port} at 127.0.0.1 is taken, so pages take the next free one"
    assert one(examine_port(port)).seen == f"{port} at 127.0.0.1 is free"


# ── rewards in numbers ───────────────────────────────────────────────────────────────────────────────────────────────


def test_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4], [10, 100, 1000, 10000]) == pytest.approx(1.0)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    # Ranks 1 2.5 2.5 4 and 1 2 3 4: covariance 4.5, sizes sqrt(4.5) and sqrt(5).
    assert rank_correlation([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert rank_correlation([1, 1, 1], [1, 2, 3]) == 0.0


@pytest.mark.parametrize(
    ("accuracy", "interval", "baselines", "verdict"),
    [
        (0.30, (0.22, 0.40), {"longer": 0.5}, "fault"),
        (0.50, (0.40, 0.60), {"longer": 0.5}, "warning"),
        (0.75, (0.705, 0.79), {"longer": 0.55, "tfidf_logistic": 0.7}, "ok"),
        (0.60, (0.55, 0.65), {"longer": 0.70}, "warning"),
        (0.68, (0.63, 0.72), {"longer": 0.70}, "warning"),  # not clearly better than the simple rule
    ],
)
def test_accuracy_is_held_against_a_coin_and_against_baselines(accuracy, interval, baselines, verdict):
    assert judged_accuracy("reward.accuracy", accuracy, interval, 400, baselines).verdict == verdict


class Longer:
    def score(self, episodes):
        return torch.tensor([float(len(episode.response)) for episode in episodes])


def test_pairs_of_one_prompt_do_not_count_as_so_many_witnesses():
    # 60 of 80 pairs are won, of 8 prompts all or none: no better than 6 of 8, and so not clearly better than a coin.
    won, lost = ("a longer answer", "short"), ("short", "a longer answer")
    pairs = [Preference(Prompt(f"prompt {at // 10}"), *(won if at < 60 else lost)) for at in range(80)]
    (finding,) = examine_accuracy(Longer(), [], pairs, None, seed=0)
    assert "not clearly better than a coin" in finding.seen
    alone = [dataclasses.replace(pair, prompt=Prompt(f"prompt {at}")) for at, pair in enumerate(pairs)]
    (finding,) = examine_accuracy(Longer(), [], alone, None, seed=0)
    assert "a coin" not in finding.seen


def test_a_report_of_a_reward_model_is_judged_by_the_interval_that_it_holds(tmp_path):
    report = {"accuracy": 0.75, "accuracy_low": 0.41, "accuracy_high": 0.93, "num_pairs": 80, "baselines": {}}
    (tmp_path / "reward_model.json").write_text(json.dumps(report))
    (finding,) = examine_report(tmp_path / "reward_model.json")
    assert "41.0% to 93.0%" in finding.seen
    assert finding.verdict == "warning"


# ── findings and how they are shown ──────────────────────────────────────────────────────────────────────────────────


def test_an_error_becomes_a_fault_with_its_remedy():
    def check():
        yield ok("a.first", "fine")
        raise DataError("rows.jsonl:2: the prompt is empty; expected text; remove the row")

    assert list(checked("a", check)) == [
        ok("a.first", "fine"),
        fault("a", "rows.jsonl:2: the prompt is empty; expected text", "remove the row"),
    ]


def test_a_semicolon_in_brackets_parts_nothing():
    def check():
        raise ConfigError("2 faults (the one; the other)")
        yield

    assert list(checked("a", check)) == [fault("a", "2 faults (the one; the other)")]


def test_what_nobody_foresaw_is_a_fault_too():
    def check():
        raise ZeroDivisionError("division by zero")
        yield

    finding = one(checked("a", check))
    assert finding.verdict == "fault"
    assert finding.seen == "could not be checked: ZeroDivisionError: division by zero"


FINDINGS = [
    ok("machine.python", "3.12.1"),
    warning("machine.hub", "hub.example cannot be reached", "give directories"),
    fault("model.first_prompt", "it reads [red]all[/red] of " + "long words " * 20, "cut it [bold]down[/bold]"),
    skipped("model.trial", "there is none"),
]


def shown(width, *, color):
    console = Console(file=io.StringIO(), width=width, force_terminal=color, color_system="standard" if color else None)
    console.print(table_of(FINDINGS))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_table_fits_and_says_everything_without_colour(width):
    text = shown(width, color=False)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    words = "".join(text.split())  # lines break anywhere where they are short
    for part in ("FAULTfirstprompt", "itreads[red]all[/red]of", "→cutit[bold]down[/bold]", "skippedtrial"):
        assert part in words
    assert words.endswith("1fault,1warning;1ok,1skippedFAULT:model.firstpromptwarning:machine.hub")


def test_colour_only_adds_to_the_words():
    assert re.sub(r"\x1b\[[\d;]*m", "", shown(80, color=True)) == shown(80, color=False)
    assert "\x1b[1;31mFAULT" in shown(80, color=True)


def test_findings_are_counted():
    assert summary([]) == "no faults, no warnings; 0 ok, 0 skipped"
    found = as_json(FINDINGS)
    assert found["healthy"] is False
    assert found["counts"] == {"ok": 1, "warning": 1, "fault": 1, "skipped": 1}
    assert found["findings"][1] == {
        "name": "machine.hub",
        "verdict": "warning",
        "seen": "hub.example cannot be reached",
        "remedy": "give directories",
        "numbers": {},
    }
    json.dumps(found)


# ── the command ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def invoke(command_line, monkeypatch, tmp_path):
    """Run the command line where the hub is switched off → exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    return partial(command_line, "doctor")


def test_this_machine_is_healthy_and_stays_as_it_is(invoke, tmp_path):
    code, output, _ = invoke()
    assert code == 0
    assert "no faults" in output
    assert max(map(len, output.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_json_is_the_last_line(invoke):
    code, output, _ = invoke("cartpole", "--json")
    found = json.loads(output.splitlines()[-1])
    assert code == 0
    assert found["healthy"] is True
    assert {finding["name"] for finding in found["findings"]} >= {"machine.torch", "environment.contract"}


def test_a_fault_is_exit_code_1(invoke):
    code, output, _ = invoke("hh", "--json")
    assert code == 1
    (named,) = [finding for finding in json.loads(output)["findings"] if finding["verdict"] == "fault"]
    assert named["name"] == "recipe.settings"
    assert "model.path is required" in named["seen"]


def test_a_flag_that_does_not_exist_is_exit_code_2(invoke):
    assert invoke("--nonsense")[0] == 2


def test_a_machine_without_torch_is_examined_all_the_same(tmp_path):
    program = """
import sys
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("libtorch.so: no such file")
sys.meta_path.insert(0, Broken())
from pathlib import Path
from rlhfkit.doctor import examine
found = {finding.name: finding for finding in examine()}
print(found["machine.torch"].verdict, found["machine.torch"].seen, found["machine.disk"].verdict, sep=" | ")
"""
    environment = {"HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert ended.stdout == "fault | cannot be imported: libtorch.so: no such file | ok\n", ended.stderr


def test_findings_come_one_after_the_other(tmp_path):
    first = next(examine(run_dir=tmp_path))
    assert isinstance(first, Finding)
    assert first.name == "machine.python"
