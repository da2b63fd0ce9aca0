"""From a model and prompts to labelled pairs in a store: sample, choose, put them before people, real or simulated."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlhfkit.config.schema import PeopleConfig, PreferencesConfig, RolloutConfig, SimulatedConfig, StoreConfig
from rlhfkit.data.rows import Loaded, SourceFile
from rlhfkit.errors import ConfigError, DataError, RlhfkitError, StoreError
from rlhfkit.feedback.exchange import Aggregated, preferences_of
from rlhfkit.feedback.pairs import LabelledPairs, choose_pairs, text_features
from rlhfkit.feedback.server import Address, serve_while
from rlhfkit.feedback.simulated import SimulatedAnnotators
from rlhfkit.feedback.store import Snapshot, Store, StoreSettings
from rlhfkit.feedback.trust import TrustReport, is_random, trust_report
from rlhfkit.feedback.votes import Pair, Part, Vote, pair_id, part_of_prompt
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.machine.watchdog import unwatched
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.template import EncodedPrompt
from rlhfkit.records import Conversation, Preference, Prompt
from rlhfkit.rewards.grammar import GrammarReward
from rlhfkit.rollout.generation import generate

__all__ = [
    "PairSampler",
    "check_preferences",
    "is_missing",
    "label",
    "load_labels",
    "new_pairs",
    "nobody_can_go_on",
    "open_existing",
    "read_guidelines",
    "refuse_strangers",
    "store_settings",
    "trust_in",
    "with_calibration",
    "with_strengths",
]

SECONDS_TO_UNDO = 10.0
"""How long the page stays when all is labelled, so that the last vote can be taken back."""
PATIENCE_SECONDS = 600.0
"""How long a run waits for a database that went away while people label."""


LEAST_TEST_PROMPTS = 0.2
"""Share of the prompts whose pairs measure, however few pairs these are: pairs of one prompt hang together."""


@dataclass(frozen=True)
class PairSampler:
    """Samples pairs of a model's responses to prompts."""

    model: LanguageModel
    model_name: str
    """What the store calls the model; no annotator sees it."""
    prompts: Sequence[EncodedPrompt]
    rollout: RolloutConfig
    config: PreferencesConfig
    seed: int

    def num_responses(self) -> int:
        """How many responses `pairs` samples."""
        return 2 * (max(self.config.num_pairs, self.config.num_candidates) + self.config.num_test_pairs)

    def pairs(self, store: Store, *, on_finished: Callable[[int], None], tell: Callable[[str], None]) -> list[Pair]:
        """Training pairs, chosen where a label teaches most if there are more candidates, and random test pairs.

        A prompt is of one part in every round: of that which it has in the store, or by its hash. Pairs of the same two
        responses, or with an empty one, are left out. Asked again, as after an interruption, it gives the same pairs.
        Raises: DataError where the prompts are too few for both parts, or where no pair is left.
        """
        config, known = self.config, store.snapshot()
        num_train, num_test = max(config.num_pairs, config.num_candidates), config.num_test_pairs
        share = max(LEAST_TEST_PROMPTS, num_test / (config.num_pairs + num_test)) if num_test else 0.0
        parts = self._parts(share, {pair.prompt: pair.part for pair in known.pairs})
        train = self._sampled("train", num_train, parts["train"], on_finished, tell)
        test = self._sampled("test", num_test, parts["test"], on_finished, tell) if num_test else []
        if config.num_candidates > config.num_pairs:
            train = self._chosen(train, known, tell)
        pairs = train + test
        if isinstance(config.annotators, PeopleConfig):
            return with_calibration(pairs, config.annotators.calibration_share, seed=self.seed)
        return pairs

    def _parts(self, test_share: float, known: Mapping[str | Conversation, Part]) -> dict[Part, list[EncodedPrompt]]:
        parts: dict[Part, list[EncodedPrompt]] = {"train": [], "test": []}
        for row in shuffled(len(self.prompts), derive_seed(self.seed, "preference prompts", self.config.round)):
            prompt = self.prompts[row]
            content = prompt.prompt.content
            parts[known.get(content) or part_of_prompt(content, test_share=test_share)].append(prompt)
        if not parts["train"] or (test_share > 0 and not parts["test"]):
            stay = ", some of which the store has already for one of the two" if known else ""
            raise DataError(
                f"{len(self.prompts)} prompt{'s' * (len(self.prompts) != 1)}{stay}: too few for training and test "
                "pairs, as each prompt is for one of the two; give some dozens"
            )
        return parts

    def _sampled(
        self,
        part: Part,
        num: int,
        prompts: Sequence[EncodedPrompt],
        on_finished: Callable[[int], None],
        tell: Callable[[str], None],
    ) -> list[Pair]:
        drawn = [prompts[index % len(prompts)] for index in range(num)]
        sides = []
        for which in (0, 1):
            names = ("preferences", self.config.round, part, which)
            seeds = [derive_seed(self.seed, *names, row) for row in range(num)]
            responses = generate(
                self.model, [prompt.ids for prompt in drawn], self.rollout, seeds=seeds, on_finished=on_finished
            )
            sides.append([self.model.encoder.decode(response.ids) for response in responses])
        pairs = {
            pair.id: pair
            for pair in (
                self._pair(prompt.prompt, first, second, part)
                for prompt, first, second in zip(drawn, *sides, strict=True)
                if first.strip() and second.strip() and first != second
            )
        }
        why = "the same response twice, an empty one, or a pair that came before"
        if not pairs:
            raise DataError(
                f"none of {num} {part} pairs can be compared ({why}); raise rollout.temperature, or give another model "
                f"than {self.model_name}"
            )
        if len(pairs) < num:
            tell(f"{num - len(pairs)} of {num} {part} pairs left out: {why}")
        return list(pairs.values())

    def _pair(self, prompt: Prompt, first: str, second: str, part: Part) -> Pair:
        return Pair(
            id=pair_id(prompt.content, first, second, round=self.config.round),
            prompt=prompt.content,
            response_a=first,
            response_b=second,
            model_a=self.model_name,
            model_b=self.model_name,
            settings={
                "temperature": self.rollout.temperature,
                "max_response_tokens": self.rollout.max_response_tokens,
                "seed": self.seed,
            },
            round=self.config.round,
            reason="random",
            probability=1.0,
            part=part,
            origin=prompt.origin,
        )

    def _chosen(self, candidates: list[Pair], known: Snapshot, tell: Callable[[str], None]) -> list[Pair]:
        """`num_pairs` of the candidates, by what the labels of the rounds before leave open.

        Labels of this round do not count, and what was chosen stays, so that a run that goes on asks nothing else.
        """
        num, names = self.config.num_pairs, {pair.id for pair in candidates}
        kept = [pair for pair in known.pairs if pair.id in names]
        if len(kept) >= num:
            return kept
        shares = _shares_for_a(known.votes)
        labelled = [pair for pair in known.pairs if pair.id in shares and self._teaches(pair)]
        # Words and lengths: on hidden states of a small model the heads were hardly better than a coin.
        features = text_features([*candidates, *labelled])
        selection = choose_pairs(
            features[: len(candidates)],
            LabelledPairs(
                features[len(candidates) :],
                np.array([shares[pair.id] for pair in labelled]),
                np.array([is_random(pair) for pair in labelled], dtype=bool),
                [pair.prompt for pair in labelled],
                np.array([len(pair.response_a) - len(pair.response_b) for pair in labelled], dtype=float),
            ),
            num=num,
            prompts=[pair.prompt for pair in candidates],
            generator=np.random.default_rng(derive_seed(self.seed, "choice", self.config.round)),
            random_share=self.config.random_share,
        )
        tell(selection.message)
        chosen = [
            replace(candidates[one.index], reason=one.reason, probability=one.probability) for one in selection.chosen
        ]
        kept_names = {pair.id for pair in kept}
        return kept + [pair for pair in chosen if pair.id not in kept_names][: num - len(kept)]

    def _teaches(self, pair: Pair) -> bool:
        """Whether a labelled pair of the store can tell what to ask next."""
        is_earlier = pair.round < self.config.round or pair.reason == "given"
        return is_earlier and pair.part == "train"


def new_pairs(store: Store, pairs: Sequence[Pair]) -> list[Pair]:
    """Pairs that the store does not have, each of the part that other pairs of its prompt have there.

    What the store knows of the others, such as how they were chosen, stays.
    """
    known = store.pairs()
    ids, parts = {pair.id for pair in known}, {pair.prompt: pair.part for pair in known if pair.prompt}
    return [replace(pair, part=parts.get(pair.prompt, pair.part)) for pair in pairs if pair.id not in ids]


def with_calibration(pairs: Sequence[Pair], share: float, *, seed: int) -> list[Pair]:
    """The pairs, a share of which now belongs to the pool that everybody labels; none that was chosen actively."""
    fair = [index for index, pair in enumerate(pairs) if pair.reason != "active"]
    num = min(len(fair), round(share * len(pairs)))
    pool = {fair[place] for place in shuffled(len(fair), derive_seed(seed, "calibration"))[:num]}
    return [replace(pair, is_calibration=index in pool) for index, pair in enumerate(pairs)]


def _shares_for_a(votes: Sequence[Vote]) -> dict[str, float]:
    """Pair → share of its votes that are for `response_a`, a tie for either half; skips say nothing."""
    said: dict[str, list[float]] = {}
    for vote in votes:
        if vote.choice.kind != "skip":
            side = vote.choice.preferred
            said.setdefault(vote.pair_id, []).append(0.5 if side is None else float(side == "a"))
    return {pair: sum(shares) / len(shares) for pair, shares in said.items()}


def label(
    store: Store, annotators: SimulatedConfig | PeopleConfig, progress: Progress, *, seed: int, title: str
) -> None:
    """Let simulated people vote until no pair wants a vote, or show people a page and wait for them.

    `title` stands on the page.
    Raises: KeyboardInterrupt at Ctrl-C; every vote that was given is kept.
    """
    match annotators:
        case SimulatedConfig():
            people = SimulatedAnnotators(annotators, GrammarReward(), seed=seed)
            with progress.stage("label", total=people.num_open(store), unit="vote") as stage:
                people.label(store, on_vote=stage.advance)
        case PeopleConfig():
            _wait_for_people(store, annotators, progress, title=title)


def _wait_for_people(store: Store, config: PeopleConfig, progress: Progress, *, title: str) -> None:
    from rlhfkit.feedback.app import create_app  # needs the extra [web], which simulated people do not

    refuse_strangers(config)
    if nobody_can_go_on(store, config.names):
        return  # all was said before
    if text := read_guidelines(config.guidelines):
        store.set_guidelines(text)
    for risk in store.risks():
        progress.warn(risk)
    tokens = {name: store.add_annotator(name) for name in config.names}
    queue = store.queue()
    with progress.stage("label", total=queue.num_pairs, unit="pair", completed=queue.num_finished) as stage:
        watch = _Watch(store, config.names, stage.advance, progress.warn, queue.num_finished)

        def tell(address: Address) -> None:
            progress.note(f"people are asked at {address}; Ctrl-C stops, and keeps every vote")
            for name, token in tokens.items():
                progress.note(f"  for {name}: {address.shared_url}?token={token}")
            who = "all of them have" if tokens else "who is voting has"
            progress.note(f"the run goes on when every pair has its votes, or when {who} no pair left")

        app = create_app(store, title=title, project=store.name, allow_names=not tokens)
        with unwatched():
            serve_while(app, watch.is_open, host=config.host, port=config.port, on_ready=tell)
    if not nobody_can_go_on(store, config.names):
        raise RlhfkitError("the labelling page stopped before all was labelled; start again, every vote is kept")
    queue = store.queue()
    if queue.num_finished < queue.num_pairs:
        progress.warn(
            f"{queue.num_pairs - queue.num_finished} of {queue.num_pairs} pairs have fewer votes than asked for, "
            "because nobody was left to give them (some are for several people); what was said counts all the same"
        )


class _Watch:
    """Looks at a store until people are through, and for a moment longer, in which the last vote may be undone."""

    def __init__(
        self,
        store: Store,
        names: Sequence[str],
        advance: Callable[[int], None],
        warn: Callable[[str], None],
        num_finished: int,
    ) -> None:
        self.store, self.names, self.advance, self.warn = store, names, advance, warn
        self.num_finished = num_finished
        self.through_since: float | None = None
        self.silent_since: float | None = None

    def is_open(self) -> bool:
        """Whether the page stays; also where the database is away, for a while, since people's browsers wait too."""
        try:
            is_open = self._is_open()
        except StoreError as error:
            if self.silent_since is None:
                self.warn(f"{error}; the page stays, and waits for it up to {PATIENCE_SECONDS:.0f} s")
                self.silent_since = time.monotonic()
            if time.monotonic() > self.silent_since + PATIENCE_SECONDS:
                raise
            return True
        self.silent_since = None
        return is_open

    def _is_open(self) -> bool:
        num_finished = self.store.queue().num_finished
        if num_finished != self.num_finished:
            self.advance(num_finished - self.num_finished)
        self.num_finished = num_finished
        if not nobody_can_go_on(self.store, self.names):
            self.through_since = None  # a vote was taken back
            return True
        self.through_since = self.through_since or time.monotonic()
        return time.monotonic() < self.through_since + SECONDS_TO_UNDO


def nobody_can_go_on(store: Store, names: Sequence[str] = ()) -> bool:
    """Whether every pair has its votes, or none of the people has a pair left that they have not decided on.

    Pairs that only more people could finish, of the calibration pool or skipped, are waited for by nobody. The people
    are those of `names`, or else all who came to the page, as long as they are at it.
    """
    queue = store.queue()
    if queue.num_finished == queue.num_pairs:
        return True
    num_left = {name: store.progress(name).num_left for name in names or store.annotators(with_token=True)}
    waiting = {name for name, number in num_left.items() if number}
    if names or len(waiting) == len(num_left):
        return bool(names) and not waiting
    return queue.num_leased == 0


def read_guidelines(path: str | None) -> str | None:
    """The text of the guidelines, if a file is named. Raises: ConfigError where it cannot be read."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        reason = error.strerror
    except UnicodeDecodeError as error:
        reason = str(error)
    raise ConfigError(f"guidelines {path} cannot be read ({reason}); expected a text file in UTF-8")


def refuse_strangers(people: PeopleConfig) -> None:
    """Nothing; but a page that other machines reach needs people with tokens. Raises: ConfigError."""
    if not people.names and not Address(people.host, people.port, people.port).is_local:
        raise ConfigError(
            f"host {people.host} lets other machines in, where people need a link with a token; name the people "
            "(--annotator NAME; in a recipe preferences.annotators.names), or leave the host out"
        )


def check_preferences(config: PreferencesConfig) -> None:
    """Nothing; but what people need, and the database, are tried before anything is done.

    Raises: ConfigError, StoreError, MissingDependencyError.
    """
    if isinstance(config.annotators, PeopleConfig):
        import rlhfkit.feedback.app  # noqa: F401  # whether the extra [web] is installed

        read_guidelines(config.annotators.guidelines)
        refuse_strangers(config.annotators)
    if config.database is None:
        return
    if is_missing(config.database):
        directory = Path(config.database).absolute().parent
        if not directory.is_dir():
            raise StoreError(f"preferences.database = {config.database}: there is no directory {directory}; make it")
        return
    try:
        Store.open(config.database).close()
    except StoreError as error:
        raise StoreError(f"preferences.database: {error}") from error


def store_settings(annotators: SimulatedConfig | PeopleConfig) -> StoreSettings:
    """How many votes a pair gets, and for how long it is one person's."""
    match annotators:
        case SimulatedConfig():
            return StoreSettings(overlap=annotators.votes_per_pair)
        case PeopleConfig():
            return StoreSettings(
                overlap=annotators.votes_per_pair,
                calibration_overlap=annotators.calibration_votes,
                lease_seconds=60 * annotators.lease_minutes,
            )


def with_strengths(found: Aggregated) -> list[Preference]:
    """The preferences, each with further columns: `pair`, mean degree `strength` (1 to 4), and `lead` in votes."""
    facts = zip(found.preferences, found.pair_ids, found.strengths, found.leads, strict=True)
    return [
        replace(given, prompt=replace(given.prompt, columns={"pair": pair, "strength": strength, "lead": lead}))
        for given, pair, strength, lead in facts
    ]


def open_existing(database: str | Path) -> Store:
    """The store in `database`.

    Raises: StoreError where there is none.
    """
    if is_missing(database):
        raise StoreError(f"there is no store {database}; make one with: rlhfkit label RUN")
    return Store.open(database)


def is_missing(database: str | Path) -> bool:
    """Whether `database` is a file that is not there; servers are asked only when they are opened."""
    name = str(database).removeprefix("sqlite:///")
    return "://" not in name and not Path(name).exists()


def load_labels(source: StoreConfig) -> Loaded[Preference]:
    """Preferences that the votes of a store amount to now, in the order of its pairs.

    Raises: StoreError where there is no such store; DataError where its votes make no preference.
    """
    with open_existing(source.database) as store:
        snapshot = store.snapshot()
    found = preferences_of(
        snapshot.pairs,
        snapshot.votes,
        part=None if source.part == "all" else source.part,
        use_margin=source.use_margin,
        min_votes=source.min_votes,
    )
    if not found.preferences:
        raise DataError(
            f"the votes of {source.database} make no preference: of {found.num_pairs} pairs {_of_part(source)}, "
            f"{found.num_without_votes} have no vote, {found.num_too_few} too few, {found.num_skipped} were skipped, "
            f"and {found.num_tied + found.num_both_bad} are undecided; label more pairs"
        )
    preferences = with_strengths(found)
    digest = hashlib.sha256(repr(preferences).encode("utf-8", "backslashreplace")).hexdigest()
    return Loaded(preferences, found.unusable, (SourceFile(source.database, digest, len(preferences)),))


def trust_in(store: Store, snapshot: Snapshot | None = None) -> TrustReport:
    """How far the votes of a store can be trusted, with the votes that its pairs get by plan."""
    settings = store.settings
    return trust_report(
        snapshot or store.snapshot(), overlap=settings.overlap, calibration_overlap=settings.calibration_overlap
    )


def _of_part(source: StoreConfig) -> str:
    return "in all" if source.part == "all" else f'of the part "{source.part}"'
