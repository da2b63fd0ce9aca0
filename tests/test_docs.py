"""What the documents show is true: examples run, recipes parse, commands exist, links and names lead somewhere.

In README.md, CONTRIBUTING.md, CHANGELOG.md and docs/*.md, and in the prose of their Chinese forms
- every ```python block is run. One that begins with the comment `# name.py` is a file, which commands, recipes and the
  later blocks of its page may use;
- every ```toml block is a recipe, if it has a name and stages, or else a part of one;
- every block ```jsonl TABLE, ```csv TABLE or ```txt TABLE is data for that table, with options of RowsConfig after it;
- every command line of rlhfkit is parsed, and its recipe loaded with its overrides;
- what is in `backticks` and looks like a setting or a Python file exists, and defaults in tables are the schema's.
"""

import itertools
import json
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple, get_args

import pytest
import torch
import typer

import rlhfkit
from rlhfkit import data
from rlhfkit.cli.app import app
from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.data import RowsConfig
from rlhfkit.config.load import load_recipe, recipe_kind, recipe_text
from rlhfkit.config.ppo import PpoConfig, RolloutConfig, ValueConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import RewardConfig
from rlhfkit.config.section import Section
from rlhfkit.config.stages import Role
from rlhfkit.config.training import DpoConfig, OptimConfig, RewardModelConfig, SftConfig
from rlhfkit.errors import TrainingError
from rlhfkit.evaluation.on_the_way import Answers
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline.inputs import LOADERS
from rlhfkit.records import Prompt
from rlhfkit.rollout.generation import Response
from rlhfkit.rollout.multi_turn import MultiTurnRollout
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.dpo import DpoPair, Side, train_dpo
from rlhfkit.training.observers import OBSERVING_SECONDS
from rlhfkit.training.ppo import train_ppo
from rlhfkit.training.rates import auto_learning_rate
from rlhfkit.training.reward_model import EncodedPair, train_reward_model
from rlhfkit.training.sft import LearntText, train_sft
from tests.training import tiny

ROOT = Path(__file__).parents[1]
PACKAGE = Path(rlhfkit.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = typer.main.get_command(app)

TABLES = ("texts", "demonstrations", "prompts", "test_prompts", "preferences", "test_preferences", "judge_preferences")
MINIMAL = {
    "name": "minimal",
    "stages": ["sft", "reward_model", "judge", "ppo", "evaluate"],
    "model": {"path": "some/model"},
    "data": {table: {"path": "rows.jsonl"} for table in TABLES},
}


class Part(NamedTuple):
    """A fenced block, a line, or a piece of one."""

    page: Path
    line: int
    text: str
    kind: str = ""
    """The word after the fence; empty for prose."""
    options: str = ""
    """What follows that word."""


def parts(page: Path) -> Iterator[Part]:
    """Fenced blocks whole, and each line of prose."""
    block: Part | None = None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if fence := re.fullmatch(r"\s*```\s*(\S*)\s*(.*)", line):
            if block is None:
                block = Part(page, number, "", fence[1] or "fence", fence[2])
            else:
                yield block
                block = None
        elif block is not None:
            block = block._replace(text=f"{block.text}{line}\n")
        else:
            yield Part(page, number, line)
    assert block is None, f"{page.name}:{block.line}: the block has no end"


ALL = [part for page in PAGES for part in parts(page)]
IN_CHINESE = [ROOT / "README.zh-CN.md", *sorted((ROOT / "docs/zh").glob("*.md"))]
PROSE = [part for page in [*PAGES, *IN_CHINESE] for part in parts(page) if not part.kind]


def blocks(*kinds: str) -> list[Part]:
    return [part for part in ALL if part.kind in kinds]


def where(part: Part) -> str:
    return f"{part.page.name}:{part.line}"


def file_name(part: Part) -> str | None:
    """Of a block that begins with its file's name in a comment."""
    named = re.match(r"# ([\w-]+\.(?:py|toml))\n", part.text)
    return named[1] if named else None


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """An empty working directory, in which Python finds modules; what is imported from it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def lay_out(desk: Path, page: Path) -> None:
    """Write the files that a page shows."""
    for part in blocks("python", "toml"):
        if part.page == page and (name := file_name(part)):
            (desk / name).write_text(part.text, encoding="utf-8")


# ── examples ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("part", blocks("python"), ids=where)
def test_python_runs(part, desk, directory_of):
    lay_out(desk, part.page)
    if '"MODEL"' in part.text:
        (desk / "MODEL").symlink_to(directory_of("llama"))
    source = "\n" * part.line + part.text  # so that a traceback shows the page's own line
    exec(compile(source, str(part.page), "exec"), {"__name__": "example"})


@pytest.mark.parametrize("part", blocks("toml"), ids=where)
def test_toml_is_a_recipe_or_a_part_of_one(part):
    table = tomllib.loads(part.text)
    whole = table if {"name", "stages"} <= table.keys() else merged(minimal_for(table), table)
    recipe_kind(whole).model_validate(whole)


def minimal_for(table: dict[str, Any]) -> dict[str, Any]:
    """A small recipe that `table` may be a part of."""
    is_scratch = table.get("model", {}).get("type") == "scratch"
    return tomllib.loads(recipe_text("demo")) if is_scratch else MINIMAL


def merged(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`base` with `more` on top; a table of another `type` takes the place of the old one."""
    if more.get("type", base.get("type")) != base.get("type"):
        return more
    both = {
        key: merged(base[key], more[key])
        for key in base.keys() & more.keys()
        if isinstance(base[key], dict) and isinstance(more[key], dict)
    }
    return {**base, **more, **both}


@pytest.mark.parametrize("part", blocks("jsonl", "csv", "txt"), ids=where)
def test_rows_are_what_the_page_says(part, tmp_path):
    table, _, options = part.options.partition(" ")
    assert table, f"{where(part)}: say which table of [data] reads these rows, as in ```{part.kind} preferences"
    (tmp_path / f"rows.{part.kind}").write_text(part.text, encoding="utf-8")
    settings = tomllib.loads("\n".join(shlex.split(options)))
    load = getattr(data, f"load_{table}")
    loaded = load(RowsConfig(path=f"rows.{part.kind}", **settings), directory=tmp_path)
    assert (len(loaded.records), loaded.skipped) == (2, ())  # each shape is shown in two rows


@pytest.mark.parametrize("part", blocks("json"), ids=where)
def test_json_is_json(part):
    json.loads(part.text)


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def command_lines() -> Iterator[Part]:
    """Lines of blocks, and pieces in backticks, that call rlhfkit."""
    for part in blocks("fence", "sh", "bash", "console"):
        for offset, line in enumerate(part.text.replace("\\\n", "").splitlines(), start=1):
            yield part._replace(line=part.line + offset, text=line.strip().removeprefix("$ "))
    for part in PROSE:
        for piece in re.findall(r"`([^`]+)`", part.text):
            yield part._replace(text=re.sub(r"\.\.\.|[…\[\]\\|]", " ", piece))


def words_after_rlhfkit(line: str) -> list[str]:
    """What is given to rlhfkit; nothing where the line calls something else."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return []
    words = list(itertools.dropwhile(lambda word: re.fullmatch(r"[A-Z_]+=\S*", word), words))
    return words[1:] if words and Path(words[0]).name == "rlhfkit" else []


CALLS = [part for part in command_lines() if words_after_rlhfkit(part.text)]


@pytest.mark.parametrize("part", CALLS, ids=where)
def test_command_works(part, desk):
    lay_out(desk, part.page)
    words = words_after_rlhfkit(part.text)
    # `rlhfkit recipes demo > mine.toml` makes a file for the others; that of the page itself counts.
    for call in sorted(CALLS, key=lambda call: call.page == part.page):
        if (given := words_after_rlhfkit(call.text))[:1] == ["recipes"] and ">" in given:
            Path(given[-1]).write_text(recipe_text(given[1]), encoding="utf-8")
    given = list(itertools.takewhile(lambda word: word not in (">", "<", "|", "&&", ";"), words))
    name, arguments = given[0], given[1:]
    if name.startswith("-"):
        with pytest.raises(typer.Exit):
            COMMANDS.make_context("rlhfkit", given)
        return
    assert name in COMMANDS.commands, f"{where(part)}: rlhfkit has no command {name}"
    if not arguments and not part.kind:
        return  # the name of a command, in prose
    command = COMMANDS.commands[name]
    if isinstance(command, typer.core.TyperGroup):
        assert arguments[0] in command.commands, f"{where(part)}: rlhfkit {name} has no command {arguments[0]}"
        command, arguments = command.commands[arguments[0]], arguments[1:]
    parsed = command.make_context(name, arguments).params
    if name == "run" and not parsed["recipe"].isupper():
        load_recipe(parsed["recipe"], [given for given in parsed["overrides"] or [] if given != "section.key=value"])
    if name == "recipes" and parsed["name"] and not parsed["name"].isupper():
        assert recipe_text(parsed["name"])


# ── links and names ──────────────────────────────────────────────────────────────────────────────────────────────────


LINKS = [
    part._replace(text=target)
    for part in PROSE
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", part.text)
    if not re.match(r"[a-z]+:", target)
]


@pytest.mark.parametrize("part", LINKS, ids=lambda part: f"{where(part)} {part.text}")
def test_link_leads_somewhere(part):
    name, _, anchor = part.text.partition("#")
    target = (part.page.parent / name).resolve() if name else part.page
    assert target.exists()
    if anchor:
        titles = [re.fullmatch(r"#+\s+(.*?)\s*", line.text) for line in parts(target) if not line.kind]
        assert anchor in [slug(title[1]) for title in titles if title]


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def pieces(pattern: str) -> dict[str, str]:
    """What is in backticks and matches → where it stands."""
    return {
        piece: where(part)
        for part in PROSE
        for piece in re.findall(r"`([^`\s]+)`", part.text)
        if re.fullmatch(pattern, piece)
    }


def test_python_files_exist():
    named = pieces(r"[\w/]+\.py")
    shown = {file_name(part) for part in blocks("python")}
    assert {
        name: place
        for name, place in named.items()
        if not (PACKAGE / name).exists() and not (ROOT / name).exists() and name not in shown
    } == {}


def test_settings_exist():
    sections = "|".join(
        name
        for recipe in (Recipe, ControlRecipe)
        for name, field in recipe.model_fields.items()
        if fields_below(field.annotation)
    )
    named = pieces(rf"({sections})(\.\w+)+")
    files = {name: place for name, place in named.items() if re.search(r"\.(py|toml|jsonl?|html|txt)$", name)}
    assert {name: place for name, place in named.items() if name not in files and not is_setting(name)} == {}


def fields_below(annotation: Any) -> list[type[Section]]:
    """The sections that a setting of this type may hold."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [section for inner in get_args(annotation) for section in fields_below(inner)]


def is_setting(name: str) -> bool:
    sections: list[type[Section]] = [Recipe, ControlRecipe]
    for key in name.split("."):
        fields = [section.model_fields[key] for section in sections if key in section.model_fields]
        if not fields:
            return False
        sections = [section for field in fields for section in fields_below(field.annotation)]
    return True


def tables(header: str) -> Iterator[tuple[Part, list[str], re.Match[str]]]:
    """Rows, as cells without backticks, of each table whose first line matches."""
    heading = None
    for part in PROSE:
        cells = [cell.strip().replace("`", "") for cell in part.text.strip().strip("|").split(" | ")]
        if not part.text.startswith("|"):
            heading = None
        elif heading is None:
            heading = re.match(header, part.text) or False
        elif heading and not part.text.startswith("|-"):
            yield part, cells, heading


def test_defaults_in_tables_are_the_schemas():
    recipe = Recipe.model_validate(MINIMAL)
    wrong = []
    for part, (name, default, *_), heading in tables(r"\| (?:setting(?: of `(\w+)`)?|设置) \| (?:default|默认值) \|"):
        if heading[1]:
            sources = {types_of(source)[0]: source for source in fields_below(RewardConfig)}
            field = sources[heading[1]].model_fields[name]
            true = "required" if field.is_required() else said(field.default)
        else:
            true = said(reduce(getattr, name.split("."), recipe))
        if true != default:
            wrong.append(f"{where(part)}: {name} is {true}, not {default}")
    assert wrong == []


def types_of(section: type[Section]) -> tuple[str, ...]:
    return get_args(section.model_fields["type"].annotation)


def said(value: object) -> str:
    """A default as the tables write it: TOML, and "none" for nothing."""
    if value is None:
        return "none"
    if isinstance(value, tuple):
        return f"[{', '.join(map(said, value))}]"
    return json.dumps(value) if isinstance(value, str | bool | dict) else f"{value:g}"


def test_learning_rates_in_tables_are_those_that_auto_stands_for():
    rows = list(tables(r"\| what is trained \| rate of full training \|"))
    sizes = (17_000_000, 124_000_000, 1_000_000_000, 8_000_000_000)
    roles: tuple[Role, ...] = ("sft", "reward_model", "policy", "value", "dpo", "pretrain")
    for role, (part, (_, _, _, *rates), _) in zip(roles, rows, strict=True):
        expected = [auto_learning_rate(role, num_weights=size, lora=False) for size in sizes]
        assert [float(rate) for rate in rates] == expected, where(part)


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def documented_metrics(stage: str) -> set[str]:
    return {
        name for _, (names, *_), _ in tables(rf"\| metric of {stage} \|") for name in names.replace(",", " ").split()
    }


def written(run: RunDir) -> set[str]:
    lines = map(json.loads, run.metrics.read_text(encoding="utf-8").splitlines())
    return {name for line in lines for name in line} - {"stage", "iteration"}


def test_every_metric_of_ppo_is_explained(tmp_path):
    run = RunDir(tmp_path)
    optim = OptimConfig(learning_rate=1e-3)
    config = PpoConfig(
        iterations=1, rollout_episodes=4, minibatch_episodes=4, epochs=1, optim=optim, value=ValueConfig(optim=optim)
    )
    with RunLog(run) as log, Progress(quiet=True).stage("ppo", total=1, unit="iteration") as progress:
        checkpoints = Checkpoints(run.checkpoints, warn=pytest.fail)
        train_ppo(
            tiny.trainer(config),
            log=log,
            checkpoints=checkpoints,
            progress=progress,
            check_first=lambda experience: None,
        )
    # One of them is measured only where no prompt is answered twice, others only by settings.
    elsewhere = {"score/exchange_change", "ppo/kl_loss", "ppo/ptx_loss", "entropy_coef"}
    resampled = {"rollout/flat_share", "rollout/flat_share_left", "rollout/resampled_prompts"}
    assert documented_metrics("ppo") - elsewhere - resampled == written(run)


def test_every_metric_of_partial_rollouts_is_explained():
    config = PpoConfig(iterations=1, rollout_episodes=4, minibatch_episodes=4)
    whole, cut = (
        tiny.trainer(config, rollout=RolloutConfig(max_response_tokens=4, max_staleness=1, partial_tokens=tokens))
        for tokens in (None, 2)
    )
    found = {name for name in cut.rollout.collect(0, kl_coef=0.0).metrics if name.startswith("rollout/")}
    assert documented_metrics("partial rollouts") == found - set(whole.rollout.collect(0, kl_coef=0.0).metrics)


def test_every_metric_of_the_supervised_stages_is_explained(tmp_path):
    run = RunDir(tmp_path)
    common = {"seed": 0, "progress": Progress(quiet=True)}
    with RunLog(run) as log:
        for stage, train, model, rows, config in (
            ("sft", train_sft, tiny.language_model(), [LearntText([2, 3, 1], 1)] * 4, SftConfig(validation_share=0.5)),
            (
                "reward_model",
                train_reward_model,
                tiny.reward_model(),
                [EncodedPair([2, 3, 1], [4, 1], 0.0)] * 4,
                RewardModelConfig(validation_share=0.5),
            ),
        ):
            checkpoints = Checkpoints(run.checkpoints / stage, warn=pytest.fail)
            train(model, rows, config, stage=stage, log=log, checkpoints=checkpoints, **common)
        pairs = [DpoPair(Side([2], [3, 1]), Side([2], [4, 1]), number) for number in range(4)]
        checkpoints = Checkpoints(run.checkpoints / "dpo", warn=pytest.fail)
        config = DpoConfig(validation_share=0.5)
        train_dpo(
            tiny.language_model(),
            pairs,
            torch.zeros(4, 2),
            config,
            stage="dpo",
            log=log,
            checkpoints=checkpoints,
            **common,
        )
    of_raft = {"score", "best_score"}
    assert documented_metrics("supervised stages") - of_raft == written(run)


def test_every_metric_of_an_evaluation_on_the_way_is_explained():
    numbers = Answers(
        [Response([2], [0.0], "eos")],
        ["a"],
        judge=[0.0],
        score=[0.0],
        ref_kl=[0.0],
        ref_perplexity=1.0,
        constraints={"NAME": [0.0]},
    ).metrics()
    assert documented_metrics("an evaluation on the way") == {*numbers, OBSERVING_SECONDS}


def test_every_metric_of_an_environment_is_explained():
    config = PpoConfig(rollout_episodes=4, minibatch_episodes=4)
    acting = tiny.policy()
    rollout = MultiTurnRollout(
        acting,
        tiny.reference(),
        tiny.Won,
        reward=None,
        rollout=RolloutConfig(max_response_tokens=2),
        ppo=config,
        max_prompt_tokens=8,
        seed=0,
    )
    found = {name for name in rollout.collect(0, kl_coef=0.0).metrics if name.startswith("episode/")}
    assert documented_metrics("ppo in an environment") == found


def test_nothing_is_left_to_be_filled_in():
    left = re.compile(r"RESULTS-|\b(TODO|FIXME|TBD|XXX)\b")
    assert [where(part) for part in PROSE if left.search(part.text)] == []


# ── commands and scripts, on real files ──────────────────────────────────────────────────────────────────────────────

QUESTIONS = [f"How many apples are {number} and 1?" for number in range(40)]
ROWS = [{"chosen": f" {number + 1}.", "rejected": " No idea."} for number in range(40)]


@pytest.mark.parametrize(
    "part", [part for part in CALLS if part.page.name == "data.md" and "data.path=" in part.text], ids=where
)
def test_command_on_a_file_of_data_reads_every_table(part, desk):
    """The model is not read here; the file is, by what the recipe says of each table."""
    for name in ("prompt", "question"):
        rows = [{name: text, **row} for text, row in zip(QUESTIONS, ROWS, strict=True)]
        if name == "prompt":
            Path("PAIRS.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        else:
            lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
            Path("PAIRS.csv").write_text("\n".join(lines), encoding="utf-8")
    command, *arguments = words_after_rlhfkit(part.text)
    parsed = COMMANDS.commands[command].make_context(command, arguments).params
    recipe = load_recipe(parsed["recipe"], parsed["overrides"]).recipe
    tables = {name: getattr(recipe.data, name) for name in LOADERS if getattr(recipe.data, name) is not None}
    read = {name: LOADERS[name](source, on_bad_row="stop") for name, source in tables.items()}
    assert len(read) >= 5
    assert {text for loaded in read.values() for text in map(asked, loaded.records)} == set(QUESTIONS)


def asked(record: Any) -> str:
    return record.content if isinstance(record, Prompt) else record.prompt.content


def test_a_reward_in_a_script_is_found_and_used(desk, directory_of):
    """The script of the page on rewards as it stands, but for the length of its run."""
    (source,) = (part.text for part in blocks("python") if "__main__:brief" in part.text)
    (desk / "MODEL").symlink_to(directory_of("llama"))
    (desk / "PROMPTS.jsonl").write_text("".join(json.dumps({"prompt": f"Drink {n}:"}) + "\n" for n in range(40)))
    ppo = {"iterations": 1, "rollout_episodes": 8, "minibatch_episodes": 8, "epochs": 1, "min_eos_rate": 0.0}
    shorter = [f"ppo.{name}={value}" for name, value in ppo.items()]
    shorter += ["rollout.max_response_tokens=16", "data.max_prompt_tokens=32", 'stages=["ppo"]', "model.dtype=float32"]
    (desk / "brief_run.py").write_text(source.replace("settings = [", f"settings = [*{shorter!r}, "))
    with pytest.raises(TrainingError, match="all 8 scores are -1"):  # none of so few tokens ends by itself
        runpy.run_path(str(desk / "brief_run.py"), run_name="__main__")
    samples = [json.loads(line) for line in (desk / "runs/brief/samples.jsonl").read_text().splitlines()]
    assert [round(-100 * sample["score"]) for sample in samples] == [len(sample["response"]) for sample in samples]
