"""What `rlhfkit doctor` says a run will take, beside what it then takes: seconds and memory of each stage.

    python benchmarks/forecast.py [p1] [p2] [RECIPE SECTION.KEY=VALUE …]
    python benchmarks/forecast.py sentiment model.path=MODEL data.directory=DIRECTORY

`p1` and `p2` are the workloads of `rlhfkit bench ppo` at 6m and 124m, as recipes of a few iterations. Prints a line a
stage, and exits with 1 where a forecast is off by more than a quarter. Stages of less than five seconds are shown only.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from rlhfkit.bench.language import classifier, language_model, random_prompts, word_encoder
from rlhfkit.bench.shapes import CONTEXT_TOKENS, SIZES
from rlhfkit.config.load import load_recipe
from rlhfkit.doctor.forecast import examine_forecast
from rlhfkit.models.reward_model import Normalization, RewardModel
from rlhfkit.rundir.atomic import read_json
from rlhfkit.rundir.directory import RunDir

WORKLOADS = {"p1": ("6m", 64, 8), "p2": ("124m", 16, 4)}
RECIPE = """
name = "{name}"
stages = ["ppo"]
model = {{ path = "model", dtype = "bfloat16" }}
data = {{ prompts = {{ path = "prompts.jsonl" }}, max_prompt_tokens = 32, directory = "{home}" }}
reward = {{ type = "reward_model", path = "reward_model" }}
rollout = {{ max_response_tokens = 48 }}

[ppo]
iterations = {iterations}
epochs = 4
rollout_episodes = {episodes}
minibatch_episodes = {minibatch}
min_eos_rate = 0
optim = {{ learning_rate = 1e-6 }}
value = {{ network = "shared" }}
"""
ALLOWED, LEAST_SECONDS = 0.25, 5.0


def workload(name, home):
    """Path of a recipe, its models and prompts beside it."""
    size, episodes, iterations = WORKLOADS[name]
    shape, cpu = SIZES[size], torch.device("cpu")
    encoder = word_encoder(shape.vocabulary)
    encoder.tokenizer.model_max_length = CONTEXT_TOKENS
    (home / "model").mkdir()
    language_model(shape, encoder, cpu, torch.float32).save(home / "model")
    model = RewardModel(classifier(shape, cpu, torch.float32), encoder)
    (home / "reward_model").mkdir()
    model.save(home / "reward_model", normalization=Normalization())
    lines = [json.dumps({"prompt": prompt.text}) for prompt in random_prompts(shape, 256, 32)]
    (home / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    recipe = home / f"{name}.toml"
    recipe.write_text(
        RECIPE.format(name=name, home=home, iterations=iterations, episodes=episodes, minibatch=episodes // 4)
    )
    return [str(recipe), f"model.path={home / 'model'}", f"reward.path={home / 'reward_model'}"]


def compare(words, home):
    """Whether every forecast for the recipe was right."""
    run, words = RunDir(home / "run"), list(words)
    # Not the whole of the doctor, who says of random weights that they are no good.
    findings = list(examine_forecast(load_recipe(words[0], words[1:]), run))
    forecasts = {finding.name.partition(".")[2]: finding.numbers for finding in findings}
    if "whole" not in forecasts:
        sys.exit(f"no forecast: {findings[-1]}")
    subprocess.run([sys.executable, "-m", "rlhfkit", "run", *words, "--run-dir", str(run.path)], check=True)
    stages = read_json(run.manifest)["stages"]
    stages = {name: facts for name, facts in stages.items() if "seconds" in facts}
    stages["whole"] = {"seconds": sum(facts["seconds"] for facts in stages.values())}
    is_right = True
    for name, facts in stages.items():
        forecast = forecasts[name]
        is_right &= row(
            name, "seconds", forecast["seconds"], facts["seconds"], shown_only=facts["seconds"] < LEAST_SECONDS
        )
        if "peak_bytes" in forecast:
            is_right &= row(name, "MB", forecast["peak_bytes"] / 2**20, facts["memory"]["measured_peak_bytes"] / 2**20)
    return is_right


def row(stage, unit, forecast, measured, *, shown_only=False):
    off = forecast / measured - 1
    mark = "" if abs(off) <= ALLOWED else "  (short)" if shown_only else "  !"
    print(f"  {stage:13} {forecast:8.1f} forecast {measured:8.1f} measured {unit:8} {off:+.0%}{mark}", flush=True)
    return not mark or shown_only


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="+", metavar="WORD")
    words = parser.parse_args().words
    cases = [[word] for word in words] if set(words) <= set(WORKLOADS) else [words]
    is_right = True
    for case in cases:
        with tempfile.TemporaryDirectory() as home:
            home = Path(home)
            print(" ".join(case), flush=True)
            is_right &= compare(workload(case[0], home) if case[0] in WORKLOADS else case, home)
    sys.exit(not is_right)


if __name__ == "__main__":
    main()
