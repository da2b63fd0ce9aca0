"""`rlhfkit label`, `labels` and `dashboard`: pairs into a store, the pages, and what the votes amount to."""

import json
import shlex
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.data import DataConfig, RowsConfig
from rlhfkit.config.feedback import PeopleConfig, PreferencesConfig
from rlhfkit.config.load import load_recipe
from rlhfkit.config.model import PretrainedModelConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.config.recipe import Recipe
from rlhfkit.data import load_prompts
from rlhfkit.errors import ConfigError
from rlhfkit.feedback.exchange import (
    preferences_of,
    read_pairs,
)
from rlhfkit.feedback.source import is_missing, new_pairs, trust_in
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.transfer import TEST_SHARE
from rlhfkit.feedback.trust.text import lines_of
from rlhfkit.feedback.votes import Pair, Part
from rlhfkit.labelling.people import nobody_can_go_on, read_guidelines, refuse_strangers, store_settings
from rlhfkit.labelling.sampling import PairSampler, with_calibration
from rlhfkit.machine.progress import Progress
from rlhfkit.models.inspection import context_of, inspect_model
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.pipeline.build import Builder
from rlhfkit.pipeline.inputs import Inputs
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.resume import recipe_of
from rlhfkit.web.app import create_app
from rlhfkit.web.dashboard import dashboard_link, dashboard_router
from rlhfkit.web.server import Address, serve
from rlhfkit.wording import counted

__all__ = [
    "LabelOptions",
    "label_pairs",
    "label_prompts",
    "label_run",
    "watch",
]


@dataclass(frozen=True)
class LabelOptions:
    """What the command line says."""

    database: str | None
    num_pairs: int
    people: PeopleConfig
    seed: int
    keeps_settings: bool
    """Whether a store that has pairs keeps the votes per pair that it was made with."""
    opens_browser: bool


def label_run(directory: Path, options: LabelOptions, progress: Progress) -> str:
    """Ask people about responses of a run's newest model; how it ended, for the terminal.

    New pairs are sampled where the store has none left that want a vote.
    Raises: ModelError where the run has no model yet; StoreError; DataError.
    """
    run = RunDir(directory)
    recipe = recipe_of(run)
    if isinstance(recipe, ControlRecipe):
        raise ConfigError(f"{directory} is a run of a control task, whose policy writes no text to compare")
    made = run.newest_model()
    if made is None:
        raise ConfigError(f"{directory} has no model yet; finish it with the command that began it")
    if recipe.data.prompts is None:
        raise ConfigError(
            f"the recipe of {directory} has no data.prompts; name prompts: "
            f"rlhfkit label --prompts FILE --model {shlex.quote(str(made))}"
        )
    start = PretrainedModelConfig(
        path=str(made), **recipe.model.model_dump(include={"dtype", "device", "chat_template"})
    )
    changes = {
        "model": start.model_dump(),
        "stages": ("preferences",),
        "seed": options.seed,
        "rounds": 1,
        "env": None,
        "preferences": {"annotators": options.people.model_dump()},
        "data": recipe.data.model_dump() | {"preferences": None, "test_preferences": None},
    }
    return _label(Recipe.model_validate(recipe.model_dump() | changes), run, options, progress, of=recipe)


def label_prompts(prompts: Path, model: str, options: LabelOptions, progress: Progress) -> str:
    """Ask people about a model's responses to the prompts of a file; how it ended, for the terminal."""
    if not Path(model).expanduser().exists():
        progress.note(f"{model} is no directory here; looking for it on the hub")
    context = context_of(inspect_model(model, subject=f"--model {model}")) or 1 << 20
    rollout = RolloutConfig(max_response_tokens=min(RolloutConfig().max_response_tokens, context // 2))
    recipe = Recipe(
        name="labels",
        seed=options.seed,
        stages=("preferences",),
        model=PretrainedModelConfig(path=model),
        data=DataConfig(prompts=RowsConfig(path=str(prompts))),
        preferences=PreferencesConfig(annotators=options.people),
        rollout=rollout,
    )
    return _label(recipe, RunDir(Path()), options, progress)


def label_pairs(path: Path, options: LabelOptions, progress: Progress) -> str:
    """Ask people about the pairs of a file; how it ended, for the terminal."""
    guidelines = read_guidelines(options.people.guidelines)
    refuse_strangers(options.people)
    pairs = with_calibration(
        read_pairs(path, test_share=TEST_SHARE), options.people.calibration_share, seed=options.seed
    )
    with _opened(RunDir(Path()), options) as (store, database):
        store.add_pairs(new_pairs(store, pairs))
        _ask(store, options, progress, database=database, guidelines=guidelines)
        return _closing_words(store, database)


def _label(recipe: Recipe, run: RunDir, options: LabelOptions, progress: Progress, *, of: Recipe | None = None) -> str:
    inputs = Inputs(recipe, Builder(recipe, run))
    inputs.check(["preferences"])
    guidelines = read_guidelines(options.people.guidelines)
    with _opened(run, options) as (store, database):
        if nobody_can_go_on(store, options.people.names):
            store.add_pairs(new_pairs(store, _sampled(recipe, inputs, store, options, progress)))
        _ask(store, options, progress, database=database, guidelines=guidelines, runs=run.path)
        return _closing_words(store, database, run=run, recipe=of)


@contextmanager
def _opened(run: RunDir, options: LabelOptions) -> Iterator[tuple[Store, str]]:
    """The store, and its name; a new file goes again where something fails before it holds a pair."""
    database = options.database or str(run.labels)
    is_new = is_missing(database)
    settings = store_settings(options.people)
    store = Store.open(database)
    try:
        if not (options.keeps_settings and store.queue().num_pairs):
            store.close()
            store = Store.open(database, settings=settings)
        yield store, database
    except BaseException:
        if is_new and not store.queue().num_pairs:
            store.close()
            for ending in ("", "-wal", "-shm"):
                Path(database.removeprefix("sqlite:///") + ending).unlink(missing_ok=True)
        raise
    finally:
        store.close()


def _sampled(recipe: Recipe, inputs: Inputs, store: Store, options: LabelOptions, progress: Progress) -> list[Pair]:
    num_test = round(TEST_SHARE * options.num_pairs)
    config = PreferencesConfig(
        num_pairs=options.num_pairs - num_test,
        num_test_pairs=num_test,
        round=1 + max((pair.round for pair in store.pairs()), default=0),
        annotators=options.people,
    )
    with quiet_transformers():
        source = inputs.builder.starting_point()
        model = inputs.builder.language_model(source)
        limit = inputs.recipe.data.prompt_limit
        prompts = [
            model.encoder.encode(prompt, max_tokens=limit) for prompt in inputs.load("prompts", load_prompts).records
        ]
        sampler = PairSampler(model, source.path, prompts, recipe.rollout, config, recipe.seed)
        with progress.stage("pairs", total=sampler.num_responses(), unit="response") as stage:
            return sampler.pairs(store, on_finished=stage.advance, tell=progress.note)


def _ask(
    store: Store,
    options: LabelOptions,
    progress: Progress,
    *,
    database: str,
    guidelines: str | None,
    runs: Path | None = None,
) -> None:
    """Show the page, and beside it a look into `runs`, until Ctrl-C."""
    people = options.people
    if guidelines:
        store.set_guidelines(guidelines)
    for risk in store.risks():
        progress.warn(risk)
    tokens = {name: store.add_annotator(name) for name in people.names}

    def tell(address: Address) -> None:
        progress.note(f"the page is at {address}; Ctrl-C ends it, and keeps every vote")
        for name, token in tokens.items():
            progress.note(f"  for {name}: {address.shared_url}?token={token}")
        if options.opens_browser and address.is_local:
            webbrowser.open(f"{address.url}?token={next(iter(tokens.values()))}" if tokens else address.url)

    app = create_app(
        store,
        title=Path(database).stem,
        project=store.name,
        allow_names=not tokens,
        routers=[dashboard_router(runs or Path(), store=store)],
        links=[dashboard_link()],
    )
    serve(app, host=people.host, port=people.port, on_ready=tell)


def watch(runs: Path, *, port: int, opens_browser: bool, progress: Progress) -> None:
    """Show what the runs below a directory do, until Ctrl-C.

    Raises: ConfigError where there is no such directory.
    """
    if not runs.is_dir():
        raise ConfigError(f"there is no directory {runs}; name one that holds runs, such as runs")
    app = create_app(
        None,
        title=runs.resolve().name,
        project=str(runs.resolve()),
        routers=[dashboard_router(runs)],
        links=[dashboard_link()],
    )

    def tell(address: Address) -> None:
        progress.note(f"the runs in {runs} are shown at {address}; Ctrl-C ends it")
        if opens_browser:
            webbrowser.open(address.url)

    serve(app, port=port, on_ready=tell)


def _closing_words(store: Store, database: str, *, run: RunDir | None = None, recipe: Recipe | None = None) -> str:
    """What the store holds, how far it can be trusted, and the commands that use it."""
    queue, snapshot = store.queue(), store.snapshot()
    report = trust_in(store, snapshot)
    lines = [f"{database} holds {counted(queue.num_pairs, 'pair')}, {queue.num_finished} with all the votes asked for"]
    if report.num_votes:
        lines += [f"  {line}" if line else "" for line in lines_of(report)]
    else:
        lines.append("  nobody has voted yet")
    lines.append(f"next: rlhfkit labels report {shlex.quote(database)}")
    parts: tuple[Part, ...] = ("train", "test")
    found = [part for part in parts if preferences_of(snapshot.pairs, snapshot.votes, part=part).preferences]
    if "train" in found:
        lines.append(f"      {_training_command(database, found, run, recipe)}")
    else:
        lines.append("      label more pairs: no pair to train on has a majority yet")
    return "\n".join(lines)


def _training_command(database: str, parts: Sequence[Part], run: RunDir | None, recipe: Recipe | None) -> str:
    """The command that trains on the labels: of the run's own recipe, where its directory tells the whole of it."""
    command = ["rlhfkit run", "RECIPE"]
    if run is not None and recipe is not None and "reward_model" in recipe.stages and _is_whole(run, recipe):
        command = ["rlhfkit run", shlex.quote(str(run.recipe))]
        command.append(f"--run-dir {shlex.quote(str(run.path.with_name(f'{run.path.absolute().name}-labelled')))}")
        if "preferences" in recipe.stages:
            stages = [stage for stage in recipe.stages if stage != "preferences"]
            command.append(shlex.quote(f"stages={json.dumps(stages)}"))
        if recipe.rounds > 1:
            command.append("rounds=1")
    name = json.dumps(database, ensure_ascii=False)
    for part in parts:
        table = "preferences" if part == "train" else "test_preferences"
        command.append(shlex.quote(f'data.{table}={{type="store", database={name}, part="{part}"}}'))
    return " ".join(command)


def _is_whole(run: RunDir, recipe: Recipe) -> bool:
    """Whether the file in the run is its recipe, with nothing that only the command line said."""
    try:
        return load_recipe(str(run.recipe)).recipe == recipe
    except ConfigError:
        return False
