"""Writes docs/api.md from the docstrings of the public names: `python docs/make_api.py`, or `--print` to look at it.

The tables of docs/from_trl.md and docs/handover.md are written from those in the code, too.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import rlhfkit
from rlhfkit.api.evaluation import BeforeAndAfter
from rlhfkit.config.elsewhere import ELSEWHERE
from rlhfkit.handover.export import TARGETS
from rlhfkit.handover.terms import Target
from rlhfkit.rundir.results import (
    CalibrationBin,
    Estimate,
    ModelResults,
    PairGroup,
    RewardModelResults,
    SamplePair,
    SeedResult,
    WinRate,
    WinRates,
)

GROUPS = {
    "Trainers": ["PPOTrainer", "SFTTrainer", "RewardTrainer", "DPOTrainer", "ControlTrainer"],
    "Functions": [
        "evaluate",
        "sample",
        "probe",
        "explain",
        "tune",
        "load_control_policy",
        "load_recipe",
        "export_to",
        "import_from",
    ],
    "Settings": [name for name in rlhfkit.__all__ if name.endswith("Config")],
    "Runs": ["Recipe", "LoadedRecipe", "RunDir", "Progress"],
    "Errors": [name for name in rlhfkit.__all__ if name.endswith("Error")],
}
RESULTS = {
    BeforeAndAfter: "`print(found)` sums it up.",
    ModelResults: "One of its `models`.",
    Estimate: "A mean in it.",
    WinRates: "Its `win_rate`.",
    WinRate: "One of them.",
    SamplePair: "One of its `samples`.",
    RewardModelResults: "The keys of `RewardTrainer.report`.",
    PairGroup: "A group of pairs in it.",
    CalibrationBin: "A part of its calibration.",
    SeedResult: "What `ControlTrainer.evaluate` returns.",
}
REWARD_FUNCTIONS = """## Reward functions

A reward function is called by the names of its parameters, so that they may stand in any order, and only those that it
needs:

- `prompts`, `responses` (or `completions`): lists of text, one for each response; it returns one number for each.
- `prompt`, `response` (or `completion`): one text each; it is called for one response at a time and returns a number.
- any other name: the column of that name in the prompts' rows, as a list (or one value, with singular names). A
  default stands in where rows lack it.
- `**columns`: every column that all rows have.

It may be a coroutine, a generator, an object with `__call__`, or a class of such objects. One without a parameter for
the responses is refused before anything is trained. An object with `score(episodes)` gets episodes with `.prompt`,
`.prompt_text` and `.response`. More: [rewards](rewards.md).
"""
HEAD = """# The Python API

Made from the docstrings by `python docs/make_api.py`; do not edit it here. A test holds the two in step, and runs every
example: in them `model_dir` is the directory of a small model, and `out_dir` one that does not exist yet.

Everything is imported from `rlhfkit`, which imports torch only when a name that needs it is used. The mathematics is in
`rlhfkit.ppo`. Sections of settings are those of a [recipe](settings.md), where each of them is explained; the trainers
run the same code as `rlhfkit run`. From TRL: [moving a script over](from_trl.md). More:
[examples](../examples/README.md).

Under `torchrun --nproc-per-node 2 train.py` the same script works on several processes: the trainers, `evaluate` and
`sample` share the rows out, and weights too where they do not fit into one ([how](scale.md#from-python)). Every process
makes the same calls in the same order and gets the same numbers; the first one alone shows progress, and writes files,
those of `save` too.
"""


BEGIN, END = "<!-- made by docs/make_api.py -->", "<!-- to here -->"


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for group, names in GROUPS.items():
        parts.append(f"## {group}\n")
        parts += [part for name in names for part in entries(name)]
        if group == "Functions":
            parts += [REWARD_FUNCTIONS, "## Results\n"]
            parts += [
                f"### `{kind.__name__}`\n\n{words} {body(kind)}\n\n{fields(kind)}\n" for kind, words in RESULTS.items()
            ]
    return "\n".join(parts).rstrip() + "\n"


def entries(name: str) -> Iterator[str]:
    """A public name, then its methods."""
    value = getattr(rlhfkit, name)
    if name.endswith("Error"):
        builtin = value.__mro__[2].__name__ if name != "RlhfkitError" else "Exception"
        yield f"- `{name}` (also a `{builtin}`): {value.__doc__}"
        if name == sorted(GROUPS["Errors"])[-1]:
            yield ""
        return
    if not inspect.isclass(value):
        yield f"### `{name}`\n\n{signature(name, value)}\n\n{body(value)}\n"
        return
    if name.endswith("Config"):
        yield f"### `{name}`\n\n{body(value)}\n\n{fields(value)}\n"
        return
    yield f"### `{name}`\n\n{signature(name, value)}\n\n{body(value)}\n"
    if name.endswith("Trainer"):
        yield f"{body(value.__init__)}\n"
        for key, member in members(value):
            if isinstance(member, property | cached_property):
                yield f"- `.{key}`: {body(member)}"
        yield ""
        for key, member in members(value):
            if inspect.isfunction(member):
                yield f"#### `{name}.{key}`\n\n{signature(key, member)}\n\n{body(member)}\n"


def members(kind: type) -> Iterator[tuple[str, object]]:
    """Public members, its own first, then what it shares with others of the package."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("rlhfkit.")]
    names = dict.fromkeys(key for base in ours for key in vars(base) if key[0] != "_")
    return ((key, inspect.getattr_static(kind, key)) for key in names)


def signature(name: str, value: object) -> str:
    """How it is called, one parameter a line."""
    parameters = [
        parameter
        for parameter in inspect.signature(value).parameters.values()  # type: ignore[arg-type]
        if parameter.name != "self"
    ]
    shown = ", ".join(("*, " if first_keyword(parameters, p) else "") + with_default(p) for p in parameters)
    return f"```text\n{name}({shown})\n```"


def first_keyword(parameters: list[inspect.Parameter], parameter: inspect.Parameter) -> bool:
    """Whether the names from here on must be given."""
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return bool(keywords) and keywords[0] is parameter


def with_default(parameter: inspect.Parameter) -> str:
    """A parameter as it stands in the call."""
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"


def fields(section: type) -> str:
    """The settings of a section, or what a result holds, with their defaults."""
    return "\n".join(
        f"- `{name}`"
        + ("" if field.is_required() else f" = `{field.get_default(call_default_factory=True, validated_data={})!r}`")
        + f": {' '.join((field.description or '').split())}"
        for name, field in section.model_fields.items()  # type: ignore[attr-defined]
    )


def names_elsewhere() -> str:
    """The table of settings in docs/from_trl.md: names of others, and ours as Python has them."""
    classes = {
        "ppo": ("PPOConfig", "ControlPPOConfig"),
        "rollout": ("RolloutConfig",),
        "sft": ("SFTConfig",),
        "reward_model": ("RewardModelConfig",),
        "dpo": ("DPOConfig",),
    }

    def in_python(ours: str) -> str:
        section, key, *_ = ours.split(".")
        owner = next(name for name in classes[section] if key in getattr(rlhfkit, name).model_fields)
        return f"`{owner}{ours.removeprefix(section)}`"

    cells = [
        (", ".join(f"`{name}`" for name in names.theirs), ", ".join(map(in_python, names.ours)), names.note)
        for names in ELSEWHERE
    ]
    rows = [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in cells]
    return "\n".join(["| TRL, SB3 | here | |", "|---|---|---|", *rows])


def with_names_elsewhere(text: str) -> str:
    """The page docs/from_trl.md with that table as it is now."""
    return between_marks(text, names_elsewhere())


def units(target: Target) -> str:
    """The table of a tool in docs/handover.md: its settings, ours, units and where it reads them."""
    rows = [
        f"| {row.theirs} | {', '.join(f'`{ours}`' for ours in row.ours)} | {row.unit} | {row.source} |".replace(
            "|  |", "| |"
        )
        for row in target.rows
    ]
    head = f"| {target.name} {target.version} | here | unit, and what is converted | in {target.where} |"
    return "\n".join([head, "|---|---|---|---|", *rows])


def cannot_say(target: Target) -> str:
    """What a tool cannot say, with what `--substitute` takes."""
    lines: dict[str, list[str]] = {}
    for rule in target.rules:
        instead = rule.substitute if isinstance(rule.substitute, str) else "as the refusal says, with its number"
        why = f"{rule.why}; " + (f"nearest: {instead}" if instead else f"no substitute: {rule.remedy}")
        lines.setdefault(why, []).extend(rule.ours)
    return "\n".join(f"- {', '.join(f'`{name}`' for name in settings(names))}: {why}" for why, names in lines.items())


def settings(names: list[str]) -> list[str]:
    """Names of settings; the rules of a watch as one."""
    return list(dict.fromkeys("ppo.watch" if name.startswith("ppo.watch.") else name for name in names))


def with_units(text: str) -> str:
    """The page docs/handover.md with its tables as they are now."""
    parts = [
        f"### {target.name}\n\n{units(target)}\n\nWhat it cannot say:\n\n{cannot_say(target)}\n\n"
        "To know:\n\n" + "\n".join(f"- {remark}" for remark in target.remarks)
        for target in TARGETS.values()
    ]
    return between_marks(text, "\n\n".join(parts))


def between_marks(text: str, made: str) -> str:
    """A page with what is made put in its place."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


def body(value: object) -> str:
    """A docstring as Markdown: examples as code, arguments as a list."""
    lines = inspect.cleandoc(value.__doc__ or "").splitlines()
    shown: list[str] = []
    index = 0
    while index < len(lines):
        line = lines[index]
        if line in ("Example:", "Args:"):
            end = next((i for i in range(index + 1, len(lines)) if lines[i] and lines[i][0] != " "), len(lines))
            block = [inner[4:] for inner in lines[index + 1 : end]]
            while block and not block[-1]:
                block.pop()
            if line == "Example:":
                shown += ["```pycon", *block, "```", ""]
            else:
                shown += [re.sub(r"^(\w+): ", r"- `\1`: ", inner) if inner[:1] != " " else inner for inner in block] + [
                    ""
                ]
            index = end
        else:
            shown.append(line.replace("Raises:", "**Raises**").strip())
            index += 1
    return "\n".join(shown).strip()


if __name__ == "__main__":
    if "--print" in sys.argv:
        print(page(), end="")
    else:
        (Path(__file__).parent / "api.md").write_text(page(), encoding="utf-8")
        for name, made in (("from_trl.md", with_names_elsewhere), ("handover.md", with_units)):
            other = Path(__file__).parent / name
            other.write_text(made(other.read_text(encoding="utf-8")), encoding="utf-8")
