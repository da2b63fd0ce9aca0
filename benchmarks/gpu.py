"""Everything that only a GPU can show, in one go of under nine minutes: a JSON file, and a table at the end.

    python benchmarks/gpu.py [--out gpu-bench/gpu.json] [--budget 540] [--shared ../shared]
    python benchmarks/gpu.py --only qwen sentiment       # some parts; what --out holds of the others stays
    python benchmarks/gpu.py --device cpu --dry-run      # small sizes: does the program itself work?

Each part runs in a process of its own with a limit of its own (gpu_parts.py has what it does), so that one that fails,
hangs or runs out of memory hides nothing of the others. The file is written anew after each. Nothing is fetched, and
nothing has to be installed but what rlhfkit needs: src/ is put on the path. The exit status is 1 where a part failed.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass(frozen=True)
class Part:
    name: str
    what: str
    seconds: float
    """At most, however much of the budget is left."""
    needs: tuple[str, ...] = ()
    """Modules, and paths below --shared (those with a slash), without which it is skipped."""
    peer_of: str = ""
    """The part that it is to be compared with."""


TRL = ("trl.experimental.ppo", "peers/trl_ppo.py")
PARTS = [
    Part("machine", "what the machine can do", 90),
    Part("tests", "pytest -m gpu", 120),
    Part("graph", "the sampler as a CUDA graph, beside the plain one", 130),
    Part("qwen", "PPO iteration, shape of Qwen2.5-0.5B: 256 episodes of 128 + 256 tokens", 170),
    Part("p1", "PPO iteration, 6m: 64 episodes of 32 + 48 tokens", 90),
    Part("p2", "PPO iteration, 124m: 16 episodes of 32 + 48 tokens", 100),
    Part("agreement", "logprobs of sampler and training pass, bfloat16", 60),
    Part("sentiment", "the recipe, four iterations", 90, ("models/pocket-17m/", "data/sent_rt_polarity/")),
    Part("transformers", "transformers' generate, the same sampling", 60, peer_of="graph"),
    Part("trl-p1", "TRL, the same work", 60, TRL, peer_of="p1"),
    Part("trl-p2", "TRL, the same work", 60, TRL, peer_of="p2"),
    Part("vllm", "vLLM, the same sampling", 90, ("vllm",), peer_of="graph"),
]
# With less left, a part would only load torch.
FEWEST_SECONDS = 15


def missing(part: Part, shared: Path) -> str | None:
    """Why a part cannot run here; None where it can."""
    for need in part.needs:
        if "/" in need:
            if not (shared / need).exists():
                return f"{shared / need} is not there"
        elif not is_installed(need):
            return f"{need} is not installed"
    return None


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # of what it is a part of
        return False


def last_object(text: str) -> dict:
    """The last line that is a JSON object; a part prints one whenever it knows more."""
    for line in reversed(text.splitlines()):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except json.JSONDecodeError:  # cut off where the process was killed
                continue
    return {}


def run_part(command: list[str], seconds: float) -> dict:
    """{status, seconds, reason, figures} of a command, which is killed with all that it started after `seconds`."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    start = time.monotonic()
    # Files and not pipes: what a killed part has printed stays, and nothing that it left behind can hold a pipe open.
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=errors, start_new_session=True
        )
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            kill_group(process)
        output.seek(0)
        errors.seek(0)
        figures, said = last_object(output.read()), errors.read()[-3000:]
    took = round(time.monotonic() - start, 1)
    wrong = [name for name, value in figures.items() if value is False]
    if code is None:
        return {"status": "failed", "seconds": took, "reason": f"not done after {seconds:.0f} s", "figures": figures}
    if code:
        lines = said.strip().splitlines() or [f"exit status {code}"]
        return {"status": "failed", "seconds": took, "reason": lines[-1], "figures": figures, "stderr": said}
    if wrong:
        return {"status": "failed", "seconds": took, "reason": f"not so: {', '.join(wrong)}", "figures": figures}
    return {"status": "done", "seconds": took, "figures": figures}


def kill_group(process: subprocess.Popen) -> None:
    with suppress(ProcessLookupError):  # all have ended by themselves
        os.killpg(process.pid, signal.SIGKILL)  # its own session, see start_new_session
    process.wait()


def table(results: dict[str, dict]) -> str:
    """A readable summary: a line a part, and below it a line a figure."""
    lines = []
    for part in PARTS:
        result = results.get(part.name)
        if result is None:
            continue
        took = f"{result['seconds']:.0f} s" if result["status"] != "skipped" else ""
        lines.append(f"{result['status']:<8}{part.name:<14}{took:>6}  {part.what}")
        if result.get("reason"):
            lines.append(f"{'':8}! {result['reason']}")
        width = max(map(len, result.get("figures", {})), default=0)
        lines += [f"{'':8}{name:<{width}}  {shown(value)}" for name, value in result.get("figures", {}).items()]
    return "\n".join(lines)


def shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def ratios(results: dict[str, dict]) -> None:
    """Put beside each peer's figures how many times as long it took as rlhfkit, or sampled as much."""
    for part in PARTS:
        theirs, ours = (results.get(name, {}).get("figures", {}) for name in (part.name, part.peer_of))
        for name in [name for name in theirs if name in ours and not name.startswith("rlhfkit")]:
            more_is_better = "tokens/s" in name
            pair = (ours[name], theirs[name]) if more_is_better else (theirs[name], ours[name])
            if all(isinstance(value, float) and value > 0 for value in pair):
                theirs[f"rlhfkit ahead, {name}"] = pair[0] / pair[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-bench/gpu.json"))
    parser.add_argument("--budget", type=float, default=540, help="seconds for all parts together")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="with peers/, models/ and data/")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="PART")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry-run", action="store_true", help="small sizes")
    args = parser.parse_args()
    shared, out, end = args.shared.resolve(), args.out.resolve(), time.monotonic() + args.budget
    out.parent.mkdir(parents=True, exist_ok=True)
    results = kept_results(out, args) if args.only else {}
    for part in PARTS:
        if args.only and part.name not in args.only:
            continue
        left = end - time.monotonic()
        if reason := missing(part, shared):
            results[part.name] = {"status": "skipped", "reason": reason}
        elif left < FEWEST_SECONDS:
            results[part.name] = {"status": "skipped", "reason": f"the budget of {args.budget:.0f} s is used up"}
        else:
            command = [sys.executable, HERE / "gpu_parts.py", part.name, "--device", args.device, "--shared", shared]
            command += ["--dry-run"] if args.dry_run else []
            results[part.name] = run_part([str(word) for word in command], min(part.seconds, left))
        print(f"{part.name}: {results[part.name]['status']}", file=sys.stderr, flush=True)
        ratios(results)
        write(out, args, results)
    if args.dry_run:
        print("A dry run: sizes are small, and the figures say nothing but that the program works.\n")
    print(table(results))
    print(f"\n{out}")
    sys.exit(any(result["status"] == "failed" for result in results.values()))


def kept_results(out: Path, args: argparse.Namespace) -> dict[str, dict]:
    """What the file holds of an earlier call, if that measured the same: a dry run's figures are no others' company."""
    if not out.exists():
        return {}
    before = json.loads(out.read_text())
    if (before["device"], before["dry_run"]) != (args.device, args.dry_run):
        sys.exit(f"{out} holds figures of another device, or of a dry run; give another --out")
    return before["parts"]


def write(out: Path, args: argparse.Namespace, results: dict[str, dict]) -> None:
    record = {
        "python": platform.python_version(),
        "device": args.device,
        "dry_run": args.dry_run,
        "budget_seconds": args.budget,
        "plan": [asdict(part) for part in PARTS],
        "parts": results,
    }
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(out)


if __name__ == "__main__":
    main()
