"""`rlhfkit label`: put pairs into a store, show the page, and say what the votes amount to."""

import shlex
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhfkit.build import Builder
from rlhfkit.config.control import ControlRecipe
from rlhfkit.config.schema import (
    DataConfig,
    PeopleConfig,
    PreferencesConfig,
    PretrainedModelConfig,
    Recipe,
    RowsConfig,
)
from rlhfkit.data import load_prompts
from rlhfkit.errors import ConfigError
from rlhfkit.feedback.app import create_app
from rlhfkit.feedback.exchange import ExportFormat, ImportFormat, export_labels, import_labels, read_pairs
from rlhfkit.feedback.server import Address, serve
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.trust import TrustReport, trust_report
from rlhfkit.feedback.votes import Pair, Part
from rlhfkit.inputs import Inputs
from rlhfkit.labelling import PairSampler, open_existing, read_guidelines, store_settings, with_calibration
from rlhfkit.models.loading import quiet_transformers
from rlhfkit.progress import Progress
from rlhfkit.rundir import ModelName, RunDir
from rlhfkit.workspace import recipe_of

__all__ = [
    "LabelOptions",
    "export_store",
    "import_into_store",
    "label_pairs",
    "label_prompts",
    "label_run",
    "report_of",
]

TEST_SHARE = 0.2
"""Share of the prompts whose pairs measure a reward model and never train one."""


@dataclass(frozen=True)
class LabelOptions:
    """What the command line says."""

    database: str | None
    num_pairs: int
    people: PeopleConfig
    names: Sequence[str]
    """People who get a link with a token of their own."""
    seed: int
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
    names: tuple[ModelName, ...] = ("policy", "sft", "base")
    made = next((run.model(name) for name in names if run.model(name).exists()), None)
    if made is None:
        raise ConfigError(f"{directory} has no model yet; finish it with the command that began it")
    if recipe.data.prompts is None:
        raise ConfigError(f"the recipe of {directory} has no data.prompts; give --prompts FILE --model {made}")
    start = PretrainedModelConfig(
        path=str(made), **recipe.model.model_dump(include={"dtype", "device", "chat_template"})
    )
    asked = recipe.model_copy(update={"model": start, "stages": ("preferences",), "seed": options.seed})
    return _label(Recipe.model_validate(asked.model_dump() | {"rounds": 1, "env": None}), run, options, progress)


def label_prompts(prompts: Path, model: str, options: LabelOptions, progress: Progress) -> str:
    """Ask people about a model's responses to the prompts of a file; how it ended, for the terminal."""
    recipe = Recipe(
        name="labels",
        seed=options.seed,
        stages=("preferences",),
        model=PretrainedModelConfig(path=model),
        data=DataConfig(prompts=RowsConfig(path=str(prompts.absolute()))),
    )
    return _label(recipe, RunDir(Path()), options, progress)


def label_pairs(path: Path, options: LabelOptions, progress: Progress) -> str:
    """Ask people about the pairs of a file; how it ended, for the terminal."""
    pairs = with_calibration(
        read_pairs(path, test_share=TEST_SHARE), options.people.calibration_share, seed=options.seed
    )
    with _open(RunDir(Path()), options) as store:
        store.add_pairs(_not_known(store, pairs))
        return _ask(store, options, progress, database=database_of(RunDir(Path()), options.database))


def database_of(run: RunDir, database: str | None) -> str:
    """The store that is meant: as named, or the one of the run."""
    return database or str(run.labels)


def _label(recipe: Recipe, run: RunDir, options: LabelOptions, progress: Progress) -> str:
    inputs = Inputs(recipe, Builder(recipe, run))
    inputs.check(["preferences"])
    with _open(run, options) as store:
        if store.queue().num_finished == store.queue().num_pairs:
            store.add_pairs(_sampled(recipe, inputs, store, options, progress))
        return _ask(store, options, progress, database=database_of(run, options.database))


def _open(run: RunDir, options: LabelOptions) -> Store:
    return Store.open(database_of(run, options.database), settings=store_settings(options.people))


def _not_known(store: Store, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs that the store does not have: what it knows of the others, such as their part, stays."""
    known = {pair.id for pair in store.pairs()}
    return [pair for pair in pairs if pair.id not in known]


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
        limit = recipe.data.max_prompt_tokens
        prompts = [
            model.encoder.encode(prompt, max_tokens=limit) for prompt in inputs.load("prompts", load_prompts).records
        ]
        sampler = PairSampler(model, source.path, prompts, recipe.rollout, config, recipe.seed)
        with progress.stage("pairs", total=sampler.num_responses(), unit="response") as stage:
            return sampler.pairs(store, on_finished=stage.advance, tell=progress.note)


def _ask(store: Store, options: LabelOptions, progress: Progress, *, database: str) -> str:
    """Show the page until Ctrl-C."""
    people = options.people
    read_guidelines(store, people.guidelines)
    tokens = {name: store.add_annotator(name) for name in options.names}
    if not tokens and not Address(people.host, people.port, people.port).is_local:
        raise ConfigError(
            f"--host {people.host} lets other machines in, which need a token; name the people with --annotator NAME"
        )

    def tell(address: Address) -> None:
        progress.note(f"the page is at {address}; Ctrl-C ends it, and keeps every vote")
        for name, token in tokens.items():
            progress.note(f"  for {name}: {address.url}?token={token}")
        if options.opens_browser and address.is_local:
            webbrowser.open(f"{address.url}?token={next(iter(tokens.values()))}" if tokens else address.url)

    app = create_app(store, title=Path(database).stem, project=database, allow_names=not tokens)
    serve(app, host=people.host, port=people.port, on_ready=tell)
    return _closing_words(store, database)


def _closing_words(store: Store, database: str) -> str:
    queue = store.queue()
    report = trust_report(
        store.snapshot(), overlap=store.settings.overlap, calibration_overlap=store.settings.calibration_overlap
    )
    where = shlex.quote(database)
    tables = " ".join(
        shlex.quote(f'data.{table}={{type="store", database="{database}", part="{part}"}}')
        for table, part in (("preferences", "train"), ("test_preferences", "test"))
    )
    lines = [f"{database} holds {queue.num_pairs} pairs, {queue.num_finished} of them with all their votes"]
    if report.num_votes:
        lines += [f"  {line}" if line else "" for line in report.lines()]
    else:
        lines.append("  nobody has voted yet")
    lines.append(f"next: rlhfkit labels report {where}")
    lines.append(f"      rlhfkit run RECIPE {tables}")
    return "\n".join(lines)


def report_of(store: str) -> TrustReport:
    """How far the votes of a store can be trusted. Raises: StoreError where there is none."""
    with open_existing(_database(store)) as opened:
        settings = opened.settings
        return trust_report(
            opened.snapshot(), overlap=settings.overlap, calibration_overlap=settings.calibration_overlap
        )


def export_store(
    store: str, path: Path, *, format: ExportFormat, part: Part | None, use_margin: bool, min_votes: int
) -> list[str]:
    """Write the labels of a store to a file; what was written, for the terminal. Raises: StoreError, DataError."""
    with open_existing(_database(store)) as opened:
        snapshot = opened.snapshot()
    written = export_labels(
        snapshot.pairs, snapshot.votes, path, format=format, part=part, use_margin=use_margin, min_votes=min_votes
    )
    return [f"{written.path}: {written.num_records} records", *_left_out(written.left_out)]


def import_into_store(store: str, path: Path, *, format: ImportFormat, annotator: str) -> list[str]:
    """Put the labels of a file into a store, a new one if need be; what came in, for the terminal.

    Raises: StoreError, DataError.
    """
    labels = import_labels(path, format=format, test_share=TEST_SHARE, annotator=annotator)
    with Store.open(_database(store)) as opened:
        num_pairs = opened.add_pairs(_not_known(opened, labels.pairs))
        num_votes = opened.add_votes(labels.votes)
    return [f"{store}: {num_pairs} new pairs, {num_votes} new votes", *_left_out(labels.left_out)]


def _left_out(left_out: dict[str, int]) -> list[str]:
    return [f"  left out: {what} ({number})" for what, number in left_out.items()]


def _database(store: str) -> str:
    """A run directory stands for its store."""
    if "://" in store or not Path(store).is_dir():
        return store
    run = RunDir(store)
    return str(run.labels if run.labels.exists() or not run.simulated_labels.exists() else run.simulated_labels)
