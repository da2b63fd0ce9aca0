"""The loop of people's feedback: sample from the newest policy, label, train the reward model, PPO, and again.

Every round is a run of its own in `round-1`, `round-2`, …, which can be read and reported like any other. In each of
them PPO starts from the SFT model again, with a reward model that has learnt from the labels of all rounds so far: the
newest policy only writes the responses that people compare, so that errors of an earlier reward model are not built on
(Bai et al. 2022, arXiv 2204.05862, section 4.5).
"""

import shutil
from pathlib import Path
from typing import Any

from rlhfkit.config.load import LoadedRecipe
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.config.rewards import BagOfWordsRewardConfig, RewardConfig, RewardModelRewardConfig
from rlhfkit.config.stages import STAGE_SPECS, ModelName, Stage
from rlhfkit.distributed.ranks import on_first, ranks
from rlhfkit.machine.dtype import DtypeChoice
from rlhfkit.machine.progress import Progress
from rlhfkit.pipeline.evaluate import compare_with_last
from rlhfkit.pipeline.opening import open_run
from rlhfkit.pipeline.run import refuse_pause, run_stage
from rlhfkit.pipeline.run import run as run_stages
from rlhfkit.pipeline.workload import Workload
from rlhfkit.report.page import report_or_warn
from rlhfkit.rundir.atomic import read_json, write_directory_atomically, write_json
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.manifest import Manifest
from rlhfkit.rundir.resume import refuse_other_settings

__all__ = ["run"]

OF_ALL_ROUNDS = {
    "dtype",
    "device",
    "compile",
    "gradient_checkpointing",
    "lora",
    "num_trained_layers",
    "chat_template",
}
SETTINGS_WITH_PATHS = ("model.path", "preferences.sampled_from", "preferences.database", "evaluation.judge.path")


def run(
    loaded: LoadedRecipe,
    directory: Path,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    workload: Workload | None = None,
) -> None:
    """Run a recipe in `directory`, in rounds if it has several, from where an unfinished run of it stopped.

    `workload` is what its stages do beside, or in place of, what the recipe says.
    Raises: RlhfkitError with what to do; what was finished before stays. Paused where the workload says so.
    """
    recipe, progress = loaded.recipe, progress or Progress()
    if not isinstance(recipe, Recipe) or recipe.rounds == 1:
        run_stages(loaded, directory, fresh=fresh, progress=progress, workload=workload)
        return
    if workload is not None and workload.until is not None:
        refuse_pause(recipe, workload.until)
    run_dir = RunDir(directory)
    is_finished = not fresh and _is_taken_over(run_dir, recipe)
    finished = {} if fresh else run_dir.finished_stages()
    left = [stage for stage in recipe.stages if stage not in finished or _is_of_round(stage)]
    if not fresh:
        _refuse_changes(recipe, run_dir)
    with open_run(loaded, directory, fresh=fresh, progress=progress, left=[] if is_finished else left) as ctx:
        for stage in recipe.stages:
            if not _is_of_round(stage):
                run_stage(ctx, stage)
        for number in range(1, recipe.rounds + 1):
            _run_round(recipe, run_dir, number, progress, ctx.builder.dtype_choice, workload)
            if ctx.writes:
                report_or_warn(run_dir, progress.warn)  # for people who look in between
        if is_finished:
            progress.note("nothing was left to do; --fresh starts over")
        else:
            if ctx.writes:
                _take_over(run_dir, recipe, ctx.manifest)
                report_or_warn(run_dir, progress.warn)
            ranks().wait()


def _is_of_round(stage: Stage) -> bool:
    return STAGE_SPECS[stage].is_of_round


def _refuse_changes(recipe: Recipe, run_dir: RunDir) -> None:
    """Raises: CheckpointError where a stage of the whole run or of a round has read a setting that is another now."""
    refuse_other_settings(run_dir, recipe)
    for number in range(1, recipe.rounds + 1):
        own = round_recipe(recipe, run_dir, number)
        refuse_other_settings(run_dir.round(number), own, ignored=_own_paths(own, run_dir))


def _run_round(
    recipe: Recipe, run_dir: RunDir, number: int, progress: Progress, dtype: DtypeChoice, workload: Workload | None
) -> None:
    """One round, and how its policy compares with that of the round before."""
    own = round_recipe(recipe, run_dir, number)
    directory = run_dir.round(number)
    is_compared = number > 1 and "evaluate" in own.stages
    is_finished = set(own.stages) <= set(directory.finished_stages()) and directory.report.exists()
    if is_finished and (directory.against_last.exists() or not is_compared):
        progress.note(f"round {number} of {recipe.rounds}: finished before")
        return
    progress.note(f"round {number} of {recipe.rounds}")
    on_first(lambda: _follow(directory, _own_paths(own, run_dir)))
    # The text is of the whole; what this round is made of stands in its config.json.
    text = run_dir.recipe.read_text(encoding="utf-8")
    run_stages(LoadedRecipe(own, text, ()), directory.path, progress=progress, dtype=dtype, workload=workload)
    if is_compared and not directory.against_last.exists():
        last = run_dir.round(number - 1).model("policy")
        compare_with_last(own, directory, last, progress=progress)


def _own_paths(recipe: Recipe, run_dir: RunDir) -> dict[str, str]:
    """Settings of a round's recipe that name something in the directory of the whole run."""
    home = run_dir.path.absolute()
    settings = recipe.model_dump()
    named = {name: _setting(settings, name) for name in SETTINGS_WITH_PATHS}
    return {name: path for name, path in named.items() if isinstance(path, str) and Path(path).is_relative_to(home)}


def _setting(table: Any, name: str) -> Any:
    """What a dotted name stands for; None where there is no such table."""
    for key in name.split("."):
        table = table.get(key) if isinstance(table, dict) else None
    return table


def _follow(directory: RunDir, paths: dict[str, str]) -> None:
    """Let the settings of a round that has begun name what lies in the whole run, wherever that was moved."""
    if not directory.config.exists():
        return
    settings = read_json(directory.config)
    for name, path in paths.items():
        section, _, key = name.rpartition(".")
        if _setting(settings, name) is not None:
            _setting(settings, section)[key] = path
    write_json(directory.config, settings)


def round_recipe(recipe: Recipe, run_dir: RunDir, number: int) -> Recipe:
    """The recipe of one round: from the preferences on, with the model that the whole run has made.

    The seed stays, so that all rounds have the same data and the same draws, and differ by their labels alone.
    """
    run_dir = RunDir(run_dir.path.absolute())
    start = recipe.model
    if {"pretrain", "sft"} & set(recipe.stages):
        start = PretrainedModelConfig(
            path=str(run_dir.model("sft" if "sft" in recipe.stages else "base")),
            **start.model_dump(include=OF_ALL_ROUNDS),
        )
    newest = str(run_dir.round(number - 1).model("policy")) if number > 1 else recipe.preferences.sampled_from
    own = run_dir.simulated_labels if recipe.preferences.annotators.type == "simulated" else run_dir.labels
    preferences = recipe.preferences.model_copy(
        update={"round": number, "sampled_from": newest, "database": recipe.preferences.database or str(own)}
    )
    changes = {
        "rounds": 1,
        "stages": tuple(stage for stage in recipe.stages if _is_of_round(stage)),
        "model": start,
        "preferences": preferences,
        "evaluation": recipe.evaluation.model_copy(update={"judge": _judge(recipe, run_dir)}),
    }
    return Recipe.model_validate(recipe.model_copy(update=changes).model_dump())


def _judge(recipe: Recipe, run_dir: RunDir) -> RewardConfig | None:
    """One judge for all rounds, so that they can be compared."""
    if recipe.evaluation.judge is not None or "judge" not in recipe.stages:
        return recipe.evaluation.judge
    path = str(run_dir.model("judge"))
    if recipe.judge.type == "bag_of_words":
        return BagOfWordsRewardConfig(type="bag_of_words", path=path)
    return RewardModelRewardConfig(type="reward_model", path=path)


def _is_taken_over(run_dir: RunDir, recipe: Recipe) -> bool:
    finished = run_dir.finished_stages()
    return all(finished.get(stage, {}).get("round") == recipe.rounds for stage in filter(_is_of_round, recipe.stages))


def _take_over(run_dir: RunDir, recipe: Recipe, manifest: Manifest) -> None:
    """The last round's models and figures as those of the whole run."""
    last = run_dir.round(recipe.rounds)
    models: tuple[ModelName, ...] = ("policy", "reward_model", "ema")
    for name in (name for name in models if last.model(name).exists()):
        with write_directory_atomically(run_dir.model(name)) as directory:
            shutil.copytree(last.model(name), directory, dirs_exist_ok=True)
        manifest.add_model(name, str(run_dir.model(name)))
    for stage, record in last.finished_stages().items():
        run_dir.finish_stage(stage, {**record, "round": recipe.rounds})
