"""Writes the tables of plans in scale.md, English and Chinese: python docs/make_plans.py. A test holds them equal."""

import re
from pathlib import Path

from rlhfkit.planning import lines_of, plan

PAGES = [Path(__file__).parent / name for name in ("scale.md", "zh/scale.md")]
MACHINES = {"1 x 24 GB": "1xRTX4090", "1 x H200": "1xH200", "8 x H100": "8xH100", "64 x H100": "64xH100"}
MODELS = ["0.5B", "3B", "8B", "70B"]
TABLES = {
    "all weights, a critic of its own": [],
    "adapters and a shared critic": ["model.lora.rank=16", "ppo.value.network=shared"],
}
RECIPE = ["data.path=PAIRS.jsonl", "ppo.microbatch_tokens=auto"]
BLOCK = re.compile(r"(<!-- plans -->\n).*?(<!-- end of plans -->)", re.DOTALL)


def cell(model: str, gpus: str, overrides: list[str]) -> str:
    """As "none, 37 of 80 GiB, 12.3 s": parallel.shard, memory of a rank, an iteration."""
    found = plan("pairs", [*RECIPE, *overrides], model=model, gpus=gpus)
    memory = found.laid.memory
    needed = f"{memory.peak_bytes / 2**30:.0f} of {found.machine.memory_bytes / 2**30:.0f} GiB"
    if not found.fits:
        return f"does not fit: {needed}"
    return f"{found.laid.layout.sharding}, {needed}, {found.laid.seconds.iteration:.3g} s"


def table(overrides: list[str]) -> list[str]:
    """Rows of models, columns of machines."""
    rows = [
        f"| {model} | " + " | ".join(cell(model, gpus, overrides) for gpus in MACHINES.values()) for model in MODELS
    ]
    return [
        "| model | " + " | ".join(MACHINES) + " |",
        "|---" * (1 + len(MACHINES)) + "|",
        *(f"{row} |" for row in rows),
    ]


def block() -> str:
    """All tables, and the assumptions under them."""
    lines = []
    for title, overrides in TABLES.items():
        shown = f" (`{' '.join(overrides)}`)" if overrides else ""
        lines += [f"**{title[0].upper()}{title[1:]}**{shown}:", "", *table(overrides), ""]
    words = list(lines_of(plan("pairs", RECIPE, model="8B", gpus="8xH200")))
    lines += ["What they suppose:", "", *(f"- {line.strip()}" for line in words[words.index("Assumptions") + 1 :]), ""]
    return "\n".join(lines)


def pages() -> dict[Path, str]:
    """Each page with the tables as they are now."""
    tables = block()
    return {
        page: BLOCK.sub(lambda found: f"{found[1]}{tables}{found[2]}", page.read_text(encoding="utf-8"))
        for page in PAGES
    }


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
