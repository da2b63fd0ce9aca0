"""Do the tests find faults? This plants one at a time into a copy of the package and runs the tests until one fails.

    python -m tests.planted_faults [NUMBER …] [--all-tests]

A fault is looked for by the tests of its room first, then by the whole quick suite (with --all-tests: by all tests).
What is planted are mistakes that people make and that still run: a sign, a wrong denominator, an index off by one.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """A wrong line in place of a right one."""

    file: str
    right: str
    """Stands once in the file."""
    wrong: str
    what: str


FAULTS = (
    # ── ppo ──────────────────────────────────────────────────────────────────────────────────────────────────────────
    Fault(
        "ppo/advantages.py",
        "masked_fill(ended | terminated, 0.0)",
        "masked_fill(terminated, 0.0)",
        "advantages run on past a truncated step",
    ),
    Fault(
        "ppo/advantages.py",
        "where_masked(next_values, mask & ~terminated)",
        "where_masked(next_values, mask & ~ended)",
        "no bootstrap where truncated",
    ),
    Fault("ppo/advantages.py", "decay.masked_fill(~mask, 1.0)", "decay", "an environment's tokens discount"),
    Fault(
        "ppo/advantages.py",
        "/ (group_size - 1)\n    return",
        "/ group_size\n    return",
        "leave-one-out divides by the whole group",
    ),
    Fault(
        "ppo/loss.py",
        "loss = torch.maximum(-advantages * r,",
        "loss = torch.minimum(-advantages * r,",
        "optimistic instead of pessimistic clip",
    ),
    Fault(
        "ppo/loss.py",
        "squares = torch.maximum(squares",
        "squares = torch.minimum(squares",
        "the same of the value loss",
    ),
    Fault("ppo/shaping.py", "return -kl_coef * kl +", "return kl_coef * kl +", "leaving the reference is rewarded"),
    Fault(
        "ppo/kl.py",
        "error * num_episodes / self.horizon_episodes)",
        "error / self.horizon_episodes)",
        "the coefficient adapts by iteration, not by episode",
    ),
    Fault(
        "ppo/logprobs.py",
        "logits = logits / temperature",
        "logits = logits * temperature",
        "temperature the wrong way round",
    ),
    # ── rollout ──────────────────────────────────────────────────────────────────────────────────────────────────────
    Fault("rollout/sampling.py", "log_distribution < threshold", "log_distribution <= threshold", "top-k keeps k - 1"),
    Fault(
        "rollout/sampling.py",
        "(logits.float() / config.temperature)",
        "logits.float()",
        "sampled at another temperature than trained",
    ),
    Fault(
        "rollout/generation.py",
        "places <= position[:, None]",
        "places < position[:, None]",
        "a token does not see itself",
    ),
    Fault(
        "rollout/generation.py",
        "generator.manual_seed(seed)) for seed in seeds",
        "generator.manual_seed(seeds[0])) for seed in seeds",
        "all rows draw the same numbers",
    ),
    Fault(
        "rollout/text.py",
        'derive_seed(self.seed, "prompts", epoch)',
        'derive_seed(self.seed, "prompts", 0)',
        "the same order of prompts in each epoch",
    ),
    Fault(
        "rollout/text_experience.py",
        "masked_sum(kl_estimate(old_logprobs, ref_logprobs,",
        "masked_sum(kl_estimate(ref_logprobs, old_logprobs,",
        "KL with the sign turned",
    ),
    Fault(
        "rollout/control.py",
        "shift**2 * self.count * len(values) / count",
        "shift**2 * self.count / count",
        "variance of merged moments",
    ),
    # ── training ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Fault(
        "training/update.py",
        "denominators, deviation = _denominators(trainer, mask[rows]), 0.0",
        "denominators, deviation = _denominators(trainer, mask), 0.0",
        "loss over the tokens of the rollout, not of the minibatch",
    ),
    Fault(
        "training/advantages.py",
        "return advantages, towards + experience.old_values",
        "return advantages, whiten(towards, mask) + experience.old_values",
        "returns from whitened advantages",
    ),
    Fault(
        "training/optim.py",
        "return (update + 1) / (warmup + 1)",
        "return update / (warmup + 1)",
        "the first update has rate 0",
    ),
    Fault(
        "training/optim.py",
        "p.dim() >= 2 and config.weight_decay",
        "p.dim() >= 1 and config.weight_decay",
        "norms and biases decay",
    ),
    Fault(
        "training/reward_model.py",
        "-logsigmoid(chosen - rejected - margin)",
        "-logsigmoid(chosen - rejected + margin)",
        "margin with the wrong sign",
    ),
    Fault(
        "training/checkpoint.py",
        "*self._ranked(past)[: self.keep_best]",
        "*self._ranked(past)[:0]",
        "the best checkpoint is removed",
    ),
    Fault(
        "training/optim.py",
        'self.updates_done = int(tensors["updates_done"])',
        "self.updates_done = 0",
        "the schedule starts over on resume",
    ),
    # ── models ───────────────────────────────────────────────────────────────────────────────────────────────────────
    Fault(
        "models/attention.py",
        "key_positions[:, None, :] < window",
        "key_positions[:, None, :] <= window",
        "sliding window one too wide",
    ),
    Fault(
        "models/attention.py",
        "scale = scaling if scaling is not None else width**-0.5",
        "scale = width**-0.5",
        "a model's own scale of attention is ignored",
    ),
    Fault(
        "models/language.py", "logits = logits / divisor", "logits = logits * divisor", "logits scaled the wrong way"
    ),
    Fault(
        "models/value.py",
        "self.head.linear.bias.fill_(-mean / std)",
        "self.head.linear.bias.fill_(mean / std)",
        "critic starts at the wrong mean",
    ),
    Fault("models/lora.py", "lora_alpha=config.alpha", "lora_alpha=config.rank", "alpha is ignored"),
    Fault(
        "models/reward_model.py",
        "torch.arange(len(ids), device=ids.device), lengths - 1",
        "torch.arange(len(ids), device=ids.device), lengths - 2",
        "score read before EOS",
    ),
    # ── data ─────────────────────────────────────────────────────────────────────────────────────────────────────────
    Fault(
        "padding.py",
        "targets[b, start + max(1, learnt_from[index]) : end] = True",
        "targets[b, start + 1 : end] = True",
        "SFT learns prompts",
    ),
    Fault(
        "padding.py",
        "same = segments[:, :, None] == segments[:, None, :]",
        "same = segments[:, :, None] >= segments[:, None, :]",
        "packed rows see each other",
    ),
    Fault(
        "padding.py",
        "return rows, positions - 1, self.ids[rows, positions]",
        "return rows, positions, self.ids[rows, positions]",
        "a token predicts itself",
    ),
    Fault("data/conversations.py", '"human": "user",', '"human": "assistant",', "roles exchanged"),
    Fault(
        "data/preferences.py",
        "chosen, rejected = (make_response(",
        "rejected, chosen = (make_response(",
        "chosen and rejected exchanged",
    ),
    Fault(
        "data/formats.py",
        "return tuple(before), last.content",
        "return turns, last.content",
        "a dialogue's earlier turns are lost",
    ),
    # ── rewards ──────────────────────────────────────────────────────────────────────────────────────────────────────
    Fault(
        "rewards/mix.py",
        "combined(weighted, self.how",
        "combined(part_scores, self.how",
        "weights of a mix are ignored",
    ),
    Fault("rewards/lexicon.py", "/ len(weights) if weights else 0.0", "if weights else 0.0", "sum in place of mean"),
    Fault(
        "rewards/bag_of_words.py",
        "[1, 0] * len(preferences)",
        "[0, 1] * len(preferences)",
        "the judge prefers what was rejected",
    ),
    # ── feedback ─────────────────────────────────────────────────────────────────────────────────────────────────────
    Fault(
        "feedback/exchange/majority.py",
        'counts["a"] > max(counts["b"], undecided)',
        'counts["a"] >= max(counts["b"], undecided)',
        "a tie goes to the first",
    ),
    Fault(
        "feedback/votes.py",
        'return "a" if self.strength > 0 else "b"',
        'return "b" if self.strength > 0 else "a"',
        "sides exchanged",
    ),
    Fault(
        "feedback/queue.py",
        "queue.c.num_votes + _num_leased_by_others < queue.c.num_needed",
        "queue.c.num_votes < queue.c.num_needed",
        "a pair is given to more people than it needs",
    ),
    Fault(
        "feedback/queue.py",
        'side: Side = "b" if excess > 0 else "a"',
        'side: Side = "a" if excess > 0 else "b"',
        "sides are not balanced",
    ),
)

# Tests that are run first, where they are not those of the fault's own room.
FIRST = {"padding.py": "tests/test_padding.py"}


def planted(fault: Fault, directory: Path) -> Path:
    """A copy of the package with the fault, in a `src` below `directory`."""
    source = directory / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    file = source / "rlhfkit" / fault.file
    text = file.read_text(encoding="utf-8")
    if text.count(fault.right) != 1:
        raise SystemExit(f"{fault.file} holds {fault.right!r} {text.count(fault.right)} times; expected once")
    file.write_text(text.replace(fault.right, fault.wrong), encoding="utf-8")
    return source


def found_by(fault: Fault, *options: str) -> str | None:
    """The first test that fails under the fault; None where none does."""
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "PYTHONPATH": str(planted(fault, Path(directory))), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", *options]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if run.returncode in (0, 5):
        return None
    lines = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0].split(" - ")[0] if lines else f"exit code {run.returncode}: {run.stderr[-200:]}"


def main() -> None:
    """Print which test finds each fault, and how many are found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="plant only these, counted from 1")
    parser.add_argument(
        "--all-tests", action="store_true", help="look for it with all tests, not the quick suite alone"
    )
    arguments = parser.parse_args()
    markers = ["-m", "not slow and not gpu"] if arguments.all_tests else []
    numbers = arguments.numbers or range(1, len(FAULTS) + 1)
    num_found = 0
    for number in numbers:
        fault, start = FAULTS[number - 1], time.monotonic()
        nearest = FIRST.get(fault.file, f"tests/{fault.file.split('/')[0]}")
        name = found_by(fault, nearest, *markers) or found_by(fault, "--numprocesses", "auto", *markers)
        num_found += name is not None
        print(
            f"{number:2} {fault.file}: {fault.what}: {name or 'NOT FOUND'} ({time.monotonic() - start:.0f} s)",
            flush=True,
        )
    print(f"{num_found} of {len(numbers)} found")


if __name__ == "__main__":
    main()
