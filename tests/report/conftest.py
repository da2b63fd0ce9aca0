"""A run directory as the stages write it, with made-up but plausible numbers."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from rlhfkit.config.recipe import Recipe
from rlhfkit.rundir.directory import RunDir

REVIEWS = [
    ("the film is", " a bit long and not very good .", " a warm , funny and quietly moving story ."),
    ("an uneven mix of", " jokes that fall flat and a plot that goes nowhere .", " charm and wit that wins you over ."),
    ("it never", " quite comes together .", " loses its sense of wonder , and the cast is superb ."),
    ("despite its length ,", " the story drags .", " a rich and rewarding film with a great heart ."),
    ("the performances", " are wooden and the script is worse .", " are wonderful , and the music is a delight ."),
    (
        "a documentary about",
        " people who talk . and talk . and talk .\n\nit has no shape , no point of view and , after an hour , no "
        "audience either ; what could have been a portrait of a town becomes a list of faces whose names nobody "
        "bothered to write down .",
        " hope .",
    ),
]


def write_fake_run(path: Path, *, iterations: int = 120) -> RunDir:
    """A finished run of every stage."""
    random.seed(7)
    run = RunDir(path)
    path.mkdir(parents=True, exist_ok=True)
    run.config.write_text(json.dumps(fake_config(iterations), indent=2))
    run.manifest.write_text(json.dumps(FAKE_MANIFEST, indent=2))
    run.metrics.write_text("".join(json.dumps(row) + "\n" for row in fake_metrics(iterations)))
    run.samples.write_text("".join(json.dumps(row) + "\n" for row in fake_samples(iterations)))
    run.reward_model_report.write_text(json.dumps(FAKE_REWARD_MODEL))
    run.evaluation.write_text(json.dumps(fake_evaluation()))
    run.stages.write_text(json.dumps({stage: {} for stage in FAKE_MANIFEST["stages"]}))
    return run


def fake_config(iterations: int) -> dict[str, Any]:
    recipe = Recipe.model_validate(
        {
            "name": "demo",
            "purpose": "Teach a small model to write film reviews that people like, on one CPU in ten minutes.",
            "synthetic": True,
            "seed": 7,
            "stages": ["sft", "preferences", "reward_model", "judge", "ppo", "evaluate"],
            "model": {"path": "models/tiny-en"},
            "data": {
                "demonstrations": {"path": "reviews.jsonl"},
                "prompts": {"path": "prompts.jsonl"},
                "test_prompts": {"path": "test_prompts.jsonl"},
                "judge_preferences": {"path": ["positive.txt", "negative.txt"]},
            },
            "ppo": {"iterations": iterations, "kl": {"type": "adaptive", "target": 6.0}},
            "rollout": {"max_response_tokens": 48},
        }
    )
    return recipe.model_dump(mode="json")


HASHES = [f"{digit}f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08" for digit in range(3)]
FAKE_MANIFEST: dict[str, Any] = {
    "rlhfkit": "0.1.0",
    "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.3.0", "tokenizers": "0.22.1"},
    "seed": 7,
    "data": [
        {"path": "reviews.jsonl", "sha256": HASHES[0], "num_rows": 4800},
        {"path": "prompts.jsonl", "sha256": HASHES[1], "num_rows": 2000},
    ],
    "models": [{"path": "models/tiny-en", "sha256": HASHES[2]}],
    "platform": "Linux-6.1-x86_64 · 2 CPU cores",
    "stages": {
        "sft": {"seconds": 74.2},
        "preferences": {"seconds": 31.8},
        "reward_model": {"seconds": 58.0},
        "judge": {"seconds": 1.4},
        "ppo": {"seconds": 412.6},
        "evaluate": {"seconds": 22.9},
    },
}

FAKE_REWARD_MODEL: dict[str, Any] = {
    "accuracy": 0.737,
    "accuracy_low": 0.686,
    "accuracy_high": 0.783,
    "num_pairs": 312,
    "baselines": {"tfidf_logistic": 0.641, "shorter": 0.57, "longer": 0.43},
    "calibration": [
        {"confidence": 0.55, "accuracy": 0.53, "count": 61},
        {"confidence": 0.65, "accuracy": 0.62, "count": 70},
        {"confidence": 0.75, "accuracy": 0.76, "count": 74},
        {"confidence": 0.85, "accuracy": 0.81, "count": 65},
        {"confidence": 0.95, "accuracy": 0.9, "count": 42},
    ],
    "by_length_difference": [
        {"label": "chosen shorter by > 20 tokens", "accuracy": 0.69, "count": 50},
        {"label": "about as long", "accuracy": 0.74, "count": 201},
        {"label": "chosen longer by > 20 tokens", "accuracy": 0.77, "count": 61},
    ],
    "normalization": {"mean": -0.31, "std": 1.42},
}


def fake_metrics(iterations: int) -> list[dict[str, Any]]:
    noise = random.gauss
    rows: list[dict[str, Any]] = []
    for update in range(1, 151):
        row = {"stage": "sft", "iteration": update, "loss": 3.1 + 2.2 * math.exp(-update / 30) + noise(0, 0.06)}
        row["learning_rate"] = 1e-4 * (1 - update / 150)
        if update % 25 == 0:
            row["validation/loss"] = 3.16 + 2.1 * math.exp(-update / 30)
        rows.append(row)
    for update in range(1, 81):
        row = {
            "stage": "reward_model",
            "iteration": update,
            "loss": 0.5 + 0.2 * math.exp(-update / 25) + noise(0, 0.03),
        }
        row["accuracy"] = min(1.0, 0.78 - 0.28 * math.exp(-update / 25) + noise(0, 0.05))
        if update % 20 == 0:
            row["validation/loss"] = 0.55 + 0.15 * math.exp(-update / 25)
            row["validation/accuracy"] = 0.72 - 0.2 * math.exp(-update / 25)
        rows.append(row)
    for iteration in range(1, iterations + 1):
        done = 1 - math.exp(-3.2 * iteration / iterations)
        rows.append(
            {
                "stage": "ppo",
                "iteration": iteration,
                "score/mean": 0.02 + 1.38 * done + noise(0, 0.09),
                "score/std": 1.0 - 0.35 * done,
                "ref_kl/sequence": max(0.0, 6.3 * done + noise(0, 0.25)),
                "kl_coef": 0.15 * (1 + 0.4 * done),
                "response_tokens/mean": 21.0 + 3.0 * done + noise(0, 0.8),
                "eos_rate": min(1.0, 0.93 + 0.05 * done + noise(0, 0.02)),
                "ppo/entropy": 2.9 - 0.9 * done + noise(0, 0.04),
                "ppo/approx_kl": max(0.0, 0.0021 * (1.1 - done) + 0.0004 + noise(0, 0.0002)),
                "ppo/clip_fraction": max(0.0, 0.03 * (1.1 - done) + 0.01 + noise(0, 0.003)),
                "ppo/explained_variance": 0.75 - 2.4 * math.exp(-iteration / 7) + noise(0, 0.04),
                "ppo/ratio_first_epoch_max_deviation": abs(noise(0, 3e-6)),
                "ppo/policy_loss": noise(-0.01, 0.004),
                "ppo/value_loss": 0.2 + 0.9 * math.exp(-iteration / 9) + abs(noise(0, 0.02)),
                "time/iteration_seconds": 3.4 + abs(noise(0, 0.2)),
                "time/generation_seconds": 1.6,
            }
        )
    return rows


def fake_samples(iterations: int) -> list[dict[str, Any]]:
    rows = []
    for iteration in range(1, iterations + 1):
        for prompt, early, late in REVIEWS[iteration % 2 :: 2]:
            is_late = random.random() < iteration / iterations
            rows.append(
                {
                    "stage": "ppo",
                    "iteration": iteration,
                    "prompt": prompt,
                    "response": late if is_late else early,
                    "score": round(random.gauss(1.3 if is_late else -0.2, 0.3), 3),
                    "ref_kl": round(random.gauss(6 * iteration / iterations, 0.8), 2),
                    "finish_reason": "eos" if random.random() < 0.95 else "length",
                }
            )
    return rows


def fake_evaluation() -> dict[str, Any]:
    return {
        "num_prompts": 256,
        "models": {
            "sft": {
                "score": {"mean": 0.02, "low": -0.1, "high": 0.14, "std": 1.0},
                "judge": {"mean": -0.21, "low": -0.36, "high": -0.06, "std": 1.2},
                "judge_positive_share": {"mean": 0.449, "low": 0.389, "high": 0.51},
                "response_tokens": 21.3,
                "eos_rate": 0.93,
                "distinct_1": 0.241,
                "distinct_2": 0.667,
                "perplexity": 18.4,
                "ref_kl": 0.0,
            },
            "policy": {
                "score": {"mean": 1.37, "low": 1.28, "high": 1.46, "std": 0.7},
                "judge": {"mean": 0.84, "low": 0.7, "high": 0.98, "std": 1.1},
                "judge_positive_share": {"mean": 0.781, "low": 0.727, "high": 0.828},
                "response_tokens": 24.1,
                "eos_rate": 0.977,
                "distinct_1": 0.182,
                "distinct_2": 0.488,
                "perplexity": 21.7,
                "ref_kl": 6.21,
            },
        },
        "win_rate": {
            "reward": {"rate": 0.863, "low": 0.816, "high": 0.9, "ties": 0.0},
            "judge": {"rate": 0.734, "low": 0.677, "high": 0.785, "ties": 0.016},
        },
        "judge_name": "bag of words",
        "reward_name": "reward model",
        "samples": [
            {
                "prompt": prompt,
                "sft": early,
                "policy": late,
                "score_sft": round(random.gauss(-0.1, 0.5), 3),
                "score_policy": round(random.gauss(1.3, 0.5), 3),
                "judge_sft": round(random.gauss(-0.2, 0.6), 3),
                "judge_policy": round(random.gauss(0.6, 0.6), 3),
            }
            for prompt, early, late in REVIEWS * 2
        ],
    }


@pytest.fixture
def fake_run(tmp_path: Path) -> RunDir:
    return write_fake_run(tmp_path / "run")


@pytest.fixture
def quick_run(fake_run: RunDir) -> RunDir:
    """The same run with a single curve, for tests that are not about charts, which take most of the time."""
    rows = [row for row in fake_metrics(120) if row["stage"] == "ppo"]
    curve = [{key: row[key] for key in ("stage", "iteration", "score/mean")} for row in rows]
    fake_run.metrics.write_text("".join(json.dumps(row) + "\n" for row in curve))
    fake_run.reward_model_report.unlink()
    return fake_run
