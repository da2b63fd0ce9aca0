"""What gpu.py runs, a process for each part: prints its figures as a JSON object, anew whenever it knows more.

python benchmarks/gpu_parts.py PART --device cpu|cuda [--dry-run]

A figure that is true or false is a check: false makes the part a failed one.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


@dataclass
class Work:
    """What a part is told, and the figures that it has found."""

    device: str
    is_dry: bool
    shared: Path
    figures: dict[str, object] = field(default_factory=dict)

    def found(self, **figures: object) -> None:
        """Add figures, whose names are words with _ for spaces, and print all."""
        self.add({name.replace("_", " "): value for name, value in figures.items()})

    def add(self, figures: dict[str, object]) -> None:
        self.figures |= figures
        print(json.dumps(self.figures), flush=True)


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def last_json(command: list[object]) -> dict:
    """What a program prints last; its complaints go where this part's own go."""
    output = subprocess.run([str(word) for word in command], check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.strip().splitlines()[-1])


# ── the machine, and the tests ───────────────────────────────────────────────────────────────────────────────────────


def machine(work: Work) -> None:
    import torch
    import transformers

    from machine import measure

    work.found(torch=torch.__version__, cuda=torch.version.cuda, transformers=transformers.__version__)
    if work.device == "cuda":
        facts = torch.cuda.get_device_properties(0)
        work.found(gpu=facts.name, memory_GiB=facts.total_memory / 2**30)
    work.add({name.replace("_", " "): value for name, value in measure(work.device).items()})


def tests(work: Work) -> None:
    """Only the files that have such tests: others may need packages that are not here."""
    files = sorted(str(path) for path in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in path.read_text())
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "-o", "addopts="]
    if work.is_dry:  # they need a GPU, so here they are only found
        listed = subprocess.run(
            [*command, "-q", "--collect-only", *files], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
        ).stdout
        work.found(tests_that_a_GPU_would_run=sum("::" in line for line in listed.splitlines()))
        return
    running = subprocess.Popen(
        [*command, "-v", "-o", "timeout=80", *files], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    for line in running.stdout:  # as they come, so that a hang does not hide those before it
        tell(line.rstrip())
        work.add(counted(line, work.figures))
    work.found(all_that_ran_passed=running.wait() == 0 and work.figures.get("passed", 0) > 0)


def counted(line: str, figures: dict) -> dict[str, object]:
    """What a line of `pytest -v` adds to the figures."""
    match = re.match(r"(\S+)::(.+?) (PASSED|FAILED|ERROR|SKIPPED)", line)
    if match is None:
        return {}
    _, name, outcome = match.groups()
    number = {outcome.lower(): figures.get(outcome.lower(), 0) + 1}
    return {**number, f"{name} passes": False} if outcome in ("FAILED", "ERROR") else number


# ── sampling ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def without_graphs() -> Iterator[None]:
    """Compiled steps are launched one kernel at a time."""
    from rlhfkit.rollout import generation

    before, generation.FEWEST_CAPTURED_STEPS = generation.FEWEST_CAPTURED_STEPS, sys.maxsize
    try:
        yield
    finally:
        generation.FEWEST_CAPTURED_STEPS = before


def graph(work: Work) -> None:
    """Plain, compiled, and captured: the same tokens in float32, and tokens per second in bfloat16."""
    same_tokens(work)
    sizes = {"6m": (64, 2)} if work.is_dry else {"6m": (64, 48), "124m": (64, 48), "0.5b": (256, 256)}
    gigabytes = copy_rate(work.device)
    for size, (rows, response) in sizes.items():
        speeds(work, size, rows, response, gigabytes)


def same_tokens(work: Work) -> None:
    import torch

    from rlhfkit.bench.language import language_model, random_prompts, word_encoder
    from rlhfkit.bench.shapes import SIZES
    from rlhfkit.config.ppo import RolloutConfig
    from rlhfkit.rollout.generation import generate

    shape, rows = SIZES["1m" if work.is_dry else "6m"], 4 if work.is_dry else 64
    model = language_model(shape, word_encoder(shape.vocabulary), torch.device(work.device), torch.float32)
    prompts = [prompt.ids for prompt in random_prompts(shape, rows, 32)]
    config = RolloutConfig(max_response_tokens=40 if work.is_dry else 128, slots=rows)

    def sample() -> list:
        return generate(model, prompts, config, seeds=range(rows))

    plain = sample()
    if work.is_dry:
        work.found(tokens_sampled=sum(len(response.ids) for response in plain))
        return
    model.run_compiled()
    with without_graphs():
        compiled = sample()
    work.add(compared("compiled", compiled, plain))
    if work.device == "cuda":  # nothing is captured elsewhere
        captured = sample()
        work.add(compared("captured", captured, plain))
        work.add({"captured: the tokens of compiled steps": [r.ids for r in captured] == [r.ids for r in compiled]})
        work.found(steps_were_captured=model.paths.as_facts().get("captured steps", "").startswith("taken"))
    work.add({f"fast path, {name}": words for name, words in model.paths.as_facts().items()})


def compared(name: str, found: list, plain: list) -> dict[str, object]:
    """How many rows have the plain sampler's tokens, and how far logprobs of these are apart."""
    same = [(a, b) for a, b in zip(found, plain, strict=True) if a.ids == b.ids]
    apart = [abs(x - y) for a, b in same for x, y in zip(a.logprobs, b.logprobs, strict=True)]
    return {
        f"{name}: rows with the plain tokens, float32": f"{len(same)} of {len(plain)}",
        f"{name}: their logprobs apart by at most": max(apart, default=None),
    }


def speeds(work: Work, size: str, rows: int, response: int, gigabytes: float) -> None:
    from rlhfkit.bench.language import bench_generate

    def measured(*, compiled: bool) -> dict:
        return bench_generate(
            size,
            rows=rows,
            response_tokens=response,
            dtype="bfloat16",
            compiled=compiled,
            device=work.device,
            repeats=1 if work.is_dry or size == "0.5b" else 2,
            tell=tell,
        )

    plain = measured(compiled=False)
    work.add({f"tokens/s, {size}, plain": plain["tokens_per_second"]})
    if work.is_dry:
        return
    if size != "0.5b":  # which takes long to compile
        with without_graphs():
            work.add({f"tokens/s, {size}, compiled": measured(compiled=True)["tokens_per_second"]})
    captured = measured(compiled=True)
    seconds = rows * response / captured["tokens_per_second"]
    work.add(
        {
            f"tokens/s, {size}": captured["tokens_per_second"],
            f"share of copying, {size}": captured["decode_gigabytes"] / gigabytes / seconds,
            f"peak MB, {size}": captured["peak_gpu_mb"],
        }
    )


def copy_rate(device: str) -> float:
    from machine import measure

    return measure(device)["copy_gigabytes_per_second"]


def agreement(work: Work) -> None:
    """How far the sampler's logprobs are from the training pass's in bfloat16, in nats, not compiled and compiled.

    Both are compared with float32 as well, which tells a difference that is small from one that was not measured.
    """
    rows, response = (8, 8) if work.is_dry else (64, 128)
    for name, model, exact, prompts in models_to_agree(work, rows):
        for mode in ("plain",) if work.is_dry or name == "0.5b" else ("plain", "compiled"):
            if mode == "compiled":
                model.run_compiled()
            sampler, training, float32 = three_logprobs(model, exact, prompts, response)
            apart = training - sampler
            work.add(
                {
                    f"{name}, {mode}: tokens": len(apart),
                    f"{name}, {mode}: largest difference": float(apart.abs().max()),
                    f"{name}, {mode}: its standard deviation": float(apart.std()),
                    f"{name}, {mode}: sampler from float32 at most": float((sampler - float32).abs().max()),
                    f"{name}, {mode}: training pass from float32 at most": float((training - float32).abs().max()),
                }
            )


def three_logprobs(model, exact, prompts: list, response: int) -> tuple:
    """(N,) logprobs of the tokens that `model` samples: its sampler's, its training pass's, and `exact`'s."""
    import torch

    from rlhfkit.config.ppo import RolloutConfig
    from rlhfkit.padding import Sequences
    from rlhfkit.rollout.generation import generate

    config = RolloutConfig(max_response_tokens=response, slots=len(prompts))
    sampled = generate(model, prompts, config, seeds=range(len(prompts)))
    sequences = Sequences.join(prompts, [each.ids for each in sampled], pad=model.encoder.pad_id, device=model.device)
    with torch.no_grad():
        training, float32 = (
            each.logprobs(sequences, temperature=config.temperature)[sequences.mask].cpu() for each in (model, exact)
        )
    return torch.tensor([number for each in sampled for number in each.logprobs]), training, float32


def models_to_agree(work: Work, rows: int) -> Iterator[tuple]:
    """(name, model, the same in float32, ids of prompts): one that has learnt, where it is there, and a large one."""
    import torch

    from rlhfkit.bench.language import language_model, random_prompts, word_encoder
    from rlhfkit.bench.shapes import SIZES
    from rlhfkit.config.model import PretrainedModelConfig
    from rlhfkit.models.encoder import Encoder
    from rlhfkit.models.language import LanguageModel
    from rlhfkit.models.loading import load_causal_lm, load_tokenizer

    device, types = torch.device(work.device), (torch.bfloat16, torch.float32)
    directory = work.shared / "models" / "pocket-17m"
    if directory.exists():
        config = PretrainedModelConfig(path=str(directory))
        tokenizer, _ = load_tokenizer(config)
        encoder = Encoder(tokenizer)
        pair = [
            LanguageModel(load_causal_lm(config, tokenizer, device=device, dtype=dtype)[0], encoder) for dtype in types
        ]
        yield directory.name, *pair, [encoder.tokenizer("The film begins well, and then")["input_ids"]] * rows
    size = "1m" if work.is_dry else "0.5b"
    shape = SIZES[size]
    encoder = word_encoder(shape.vocabulary)
    # Of one seed; float32's weights are not rounded, which is part of how far bfloat16 is from it.
    pair = [language_model(shape, encoder, device, dtype) for dtype in types]
    yield size, *pair, [prompt.ids for prompt in random_prompts(shape, rows, 32)]


# ── PPO ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ppo_of(size: str, iterations: int) -> Callable[[Work], None]:
    def part(work: Work) -> None:
        from rlhfkit.bench.language import bench_ppo
        from rlhfkit.bench.shapes import SIZES, QwenShape

        tiny = QwenShape(2, 64, 4, 512, 8, 8, 6, key_heads=2, inner=160) if size == "0.5b" else SIZES["1m"]
        small = {"episodes": 8, "response_tokens": 6, "compiled": False}
        found = bench_ppo(
            tiny if work.is_dry else size,
            dtype="bfloat16",
            device=work.device,
            iterations=1 if work.is_dry else iterations,
            tell=tell,
            **(small if work.is_dry else {}),
        )
        work.add(
            {
                "size": found["size"],
                "seconds of an iteration": found["iteration_seconds"],
                "seconds of sampling in it": found["generation_seconds"],
                "seconds of the first, with compiling": found["first_iteration_seconds"],
                "share of the limit": found["limit_share"],
                "share of the limit, sampling left out": found["limit_share_without_sampling"],
                "peak MB": found["peak_gpu_mb"],
                "peak MB, predicted": found["predicted_peak_mb"],
                "largest difference to the sampler's logprobs, nats": found["sampler_logprob_max_difference"],
                **{f"fast path, {name}": words for name, words in found["fast_paths"].items()},
            }
        )

    return part


def sentiment(work: Work) -> None:
    """The whole recipe from a model of weights, short; its figures are no result of learning."""
    less = ["ppo.iterations=4", "evaluation.num_prompts=64"]
    if work.is_dry:
        less = ["ppo.iterations=1", "evaluation.num_prompts=8", "data.demonstrations.rows=:1%", "ppo.min_eos_rate=0"]
        less += ["ppo.rollout_episodes=16", "ppo.minibatch_episodes=8", "reward_model.epochs=1"]
        less += [f"data.{name}.{side}.rows={part}" for name, part in ROWS.items() for side in ("chosen", "rejected")]
    with tempfile.TemporaryDirectory() as directory:
        run = Path(directory) / "run"
        command = [sys.executable, "-m", "rlhfkit", "run", "sentiment", "--run-dir", run, *less]
        command += [f"model.path={work.shared / 'models' / 'pocket-17m'}", f"model.device={work.device}"]
        command += [f"data.directory={work.shared / 'data' / 'sent_rt_polarity'}"]
        start = time.perf_counter()
        subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr)
        work.found(seconds_in_all=time.perf_counter() - start)
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        manifest = json.loads((run / "manifest.json").read_text())
    ppo = [row for row in rows if row["stage"] == "ppo"]
    work.add(
        {
            "PPO iterations": len(ppo),
            "seconds of an iteration": statistics.median(row["time/iteration_seconds"] for row in ppo),
            "score of the first, of the last": f"{ppo[0]['score/mean']:.2f}, {ppo[-1]['score/mean']:.2f}",
            "KL of the last, nats": ppo[-1]["ref_kl/sequence"],
            "sampler's logprobs, largest difference": max(row["sampler/logprob_max_difference"] for row in ppo),
        }
    )
    for stage, facts in manifest["stages"].items():
        memory = facts.get("memory", {})
        if memory.get("measured_peak_bytes"):
            pair = memory["predicted_peak_bytes"] / 2**20, memory["measured_peak_bytes"] / 2**20
            work.add({f"{stage}: peak MB predicted, measured": f"{pair[0]:,.0f}, {pair[1]:,.0f}"})
    work.add({f"fast path, {name}": words for name, words in manifest.get("fast_paths", {}).items()})


ROWS = {"preferences": ":2%", "test_preferences": "99%:", "judge_preferences": "45%:47%"}
"""Of a dry run of `sentiment`."""


# ── peers ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def trl(size: str, batch: int, microbatch: int) -> Callable[[Work], None]:
    def part(work: Work) -> None:
        """The peer's program keeps to the CPU, by one word of its settings."""
        text = (work.shared / "peers" / "trl_ppo.py").read_text()
        if work.device == "cuda":
            text, num = re.subn(r"use_cpu=True", "use_cpu=False", text)
            if num != 1:
                sys.exit(
                    f"use_cpu=True stands {num} times in trl_ppo.py, expected once; so it cannot be moved to a GPU"
                )
        with tempfile.TemporaryDirectory() as directory:
            program = Path(directory) / "trl_ppo.py"
            program.write_text(text)
            command = [sys.executable, program, "--size", size, "--batch", batch, "--microbatch", microbatch]
            command += ["--response", 6, "--iterations", 2] if work.is_dry else []
            found = last_json([*command, "--bf16"])
        work.add(
            {
                "seconds of an iteration": found["iteration_seconds"],
                "seconds of sampling in it": found["generation_seconds"],
            }
        )

    return part


def sampler_of(program: str, *options: str) -> Callable[[Work], None]:
    def part(work: Work) -> None:
        for size in ("1m",) if work.is_dry else ("6m", "124m"):
            command = [sys.executable, HERE / program, "--size", size, "--dtype", "bfloat16", *options]
            command += ["--device", work.device] if program.startswith("transformers") else []
            command += ["--rows", 2, "--response-tokens", 4, "--repeats", 1] if work.is_dry else []
            work.add({f"tokens/s, {size}": last_json(command)["tokens_per_second"]})

    return part


PARTS: dict[str, Callable[[Work], None]] = {
    "machine": machine,
    "tests": tests,
    "graph": graph,
    "qwen": ppo_of("0.5b", iterations=1),
    "p1": ppo_of("6m", iterations=3),
    "p2": ppo_of("124m", iterations=2),
    "agreement": agreement,
    "sentiment": sentiment,
    "transformers": sampler_of("transformers_generate.py"),
    "trl-p1": trl("6m", batch=64, microbatch=16),
    "trl-p2": trl("124m", batch=16, microbatch=4),
    "vllm": sampler_of("vllm_generate.py"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared")
    args = parser.parse_args()
    PARTS[args.part](Work(args.device, args.dry_run, args.shared))


if __name__ == "__main__":
    main()
