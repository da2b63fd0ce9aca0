"""From a model and prompts to labelled pairs in a store: sample, choose, put them before people, real or simulated."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from rlhfkit.config.schema import PeopleConfig, PreferencesConfig, RolloutConfig, SimulatedConfig, StoreConfig
from rlhfkit.data.rows import Loaded, SourceFile
from rlhfkit.errors import ConfigError, DataError, StoreError
from rlhfkit.feedback.exchange import Aggregated, preferences_of
from rlhfkit.feedback.pairs import LabelledPairs, choose_pairs, text_features
from rlhfkit.feedback.server import Address, serve_while
from rlhfkit.feedback.simulated import SimulatedAnnotators
from rlhfkit.feedback.store import Snapshot, Store, StoreSettings
from rlhfkit.feedback.votes import Pair, Part, Vote, pair_id, part_of_prompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.template import EncodedPrompt
from rlhfkit.progress import Progress
from rlhfkit.records import Preference, Prompt
from rlhfkit.rewards.grammar import GrammarReward
from rlhfkit.rollout.generation import generate
from rlhfkit.seeding import derive_seed, shuffled

__all__ = [
    "PairSampler",
    "label",
    "load_labels",
    "open_existing",
    "read_guidelines",
    "store_settings",
    "with_calibration",
    "with_strengths",
]

SECONDS_TO_UNDO = 10.0
"""How long the page stays when all is labelled, so that the last vote can be taken back."""


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

        A prompt is of one part in every round, by its hash. Pairs of the same two responses, or with an empty one, are
        left out.
        Raises: DataError where the prompts are too few for both parts.
        """
        config = self.config
        num_train, num_test = max(config.num_pairs, config.num_candidates), config.num_test_pairs
        parts = self._parts(num_test / (config.num_pairs + num_test))
        train = self._sampled("train", num_train, parts["train"], on_finished)
        if config.num_candidates > config.num_pairs:
            train = self._chosen(train, store.snapshot(), tell)
        test = self._sampled("test", num_test, parts["test"], on_finished) if num_test else []
        pairs = train + test
        if isinstance(config.annotators, PeopleConfig):
            return with_calibration(pairs, config.annotators.calibration_share, seed=self.seed)
        return pairs

    def _parts(self, test_share: float) -> dict[Part, list[EncodedPrompt]]:
        parts: dict[Part, list[EncodedPrompt]] = {"train": [], "test": []}
        for row in shuffled(len(self.prompts), derive_seed(self.seed, "preference prompts", self.config.round)):
            prompt = self.prompts[row]
            parts[part_of_prompt(prompt.prompt.content, test_share=test_share)].append(prompt)
        if not parts["train"] or (test_share > 0 and not parts["test"]):
            raise DataError(
                f"data.prompts has {len(self.prompts)} prompts, too few for training and test pairs; give more"
            )
        return parts

    def _sampled(
        self, part: Part, num: int, prompts: Sequence[EncodedPrompt], on_finished: Callable[[int], None]
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
        """`num_pairs` of the candidates, by what the labels so far leave open."""
        shares = _shares_for_a(known.votes)
        labelled = [pair for pair in known.pairs if pair.part == "train" and pair.id in shares]
        # Words and lengths: on hidden states of a small model the heads were hardly better than a coin.
        features = text_features([*candidates, *labelled])
        selection = choose_pairs(
            features[: len(candidates)],
            LabelledPairs(
                features[len(candidates) :],
                np.array([shares[pair.id] for pair in labelled]),
                np.array([pair.reason != "active" for pair in labelled], dtype=bool),
                [pair.prompt for pair in labelled],
                np.array([len(pair.response_a) - len(pair.response_b) for pair in labelled], dtype=float),
            ),
            num=self.config.num_pairs,
            prompts=[pair.prompt for pair in candidates],
            generator=np.random.default_rng(derive_seed(self.seed, "choice", self.config.round)),
            random_share=self.config.random_share,
        )
        tell(selection.message)
        return [
            replace(candidates[one.index], reason=one.reason, probability=one.probability) for one in selection.chosen
        ]


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


def label(store: Store, annotators: SimulatedConfig | PeopleConfig, progress: Progress, *, seed: int) -> None:
    """Let simulated people vote until no pair wants a vote, or show people a page and wait for them."""
    match annotators:
        case SimulatedConfig():
            people = SimulatedAnnotators(annotators, GrammarReward(), seed=seed)
            num_open = store.queue().num_waiting * annotators.votes_per_pair  # nobody else votes here
            with progress.stage("label", total=num_open, unit="vote") as stage:
                people.label(store, on_vote=stage.advance)
        case PeopleConfig():
            wait_for_people(store, annotators, progress)


def wait_for_people(store: Store, config: PeopleConfig, progress: Progress, *, title: str = "") -> None:
    """Show the labelling page until every pair has its votes, with the progress on the terminal.

    Raises: KeyboardInterrupt at Ctrl-C; every vote that was given is kept.
    """
    from rlhfkit.feedback.app import create_app  # needs the extra [web], which simulated people do not

    read_guidelines(store, config.guidelines)
    queue = store.queue()
    with progress.stage("label", total=queue.num_pairs, unit="pair", completed=queue.num_finished) as stage:
        done = queue.num_finished
        finished_at: float | None = None

        def is_open() -> bool:
            nonlocal done, finished_at
            finished = store.queue().num_finished
            stage.advance(finished - done)
            done = finished
            if finished < queue.num_pairs:
                finished_at = None  # a vote may be taken back
                return True
            finished_at = finished_at or time.monotonic()
            return time.monotonic() < finished_at + SECONDS_TO_UNDO

        def tell(address: Address) -> None:
            progress.note(f"people are asked at {address}")

        app = create_app(store, title=title, project=title)
        serve_while(app, is_open, host=config.host, port=config.port, on_ready=tell)


def read_guidelines(store: Store, path: str | None) -> None:
    """Make the text of a file the store's guidelines, as a new version if it differs.

    Raises: ConfigError where it cannot be read.
    """
    if path is None:
        return
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"guidelines {path} cannot be read ({error}); expected a text file in UTF-8") from error
    if store.guidelines()[1] != text:
        store.set_guidelines(text)


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
    """The preferences, each with its pair and its mean degree, 1 to 4, as further columns `pair` and `strength`."""
    return [
        replace(preference, prompt=replace(preference.prompt, columns={"pair": pair, "strength": strength}))
        for preference, pair, strength in zip(found.preferences, found.pair_ids, found.strengths, strict=True)
    ]


def open_existing(database: str | Path) -> Store:
    """The store in `database`.

    Raises: StoreError where there is none.
    """
    if "://" not in str(database) and not Path(database).expanduser().exists():
        raise StoreError(f"there is no store {database}; make one with: rlhfkit label RUN")
    return Store.open(database)


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
            f"the votes of {source.database} make no preference: {found.num_pairs} pairs of part {source.part}, "
            f"{found.num_without_votes} of them without a vote; label more pairs"
        )
    preferences = with_strengths(found)
    digest = hashlib.sha256(repr(preferences).encode("utf-8", "backslashreplace")).hexdigest()
    return Loaded(preferences, found.unusable, (SourceFile(source.database, digest, len(preferences)),))
