"""Waiting for people, and what a recipe says of them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhfkit.config.feedback import PeopleConfig, PreferencesConfig, SimulatedConfig
from rlhfkit.errors import ConfigError, RlhfkitError, StoreError
from rlhfkit.feedback.source import is_missing
from rlhfkit.feedback.states import StoreSettings
from rlhfkit.feedback.store import Store
from rlhfkit.labelling.simulated import SimulatedAnnotators
from rlhfkit.machine.progress import Progress
from rlhfkit.machine.watchdog import unwatched
from rlhfkit.rewards.grammar import GrammarReward

if TYPE_CHECKING:
    from rlhfkit.web.server import Address

__all__ = [
    "check_preferences",
    "label",
    "nobody_can_go_on",
    "read_guidelines",
    "refuse_strangers",
    "store_settings",
]

SECONDS_TO_UNDO = 10.0
"""How long the page stays when all is labelled, so that the last vote can be taken back."""


PATIENCE_SECONDS = 600.0
"""How long a run waits for a database that went away while people label."""


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
    from rlhfkit.web.app import create_app  # needs the extra [web], which simulated people do not
    from rlhfkit.web.server import serve_while

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

        def tell(address: "Address") -> None:
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
    """Check that a page that other machines reach has people with tokens. Raises: ConfigError."""
    from rlhfkit.web.server import Address

    if not people.names and not Address(people.host, people.port, people.port).is_local:
        raise ConfigError(
            f"host {people.host} lets other machines in, where people need a link with a token; name the people "
            "(--annotator NAME; in a recipe preferences.annotators.names), or leave the host out"
        )


def check_preferences(config: PreferencesConfig) -> None:
    """Check what people need, and the database, before anything is done.

    Raises: ConfigError, StoreError, MissingDependencyError.
    """
    if isinstance(config.annotators, PeopleConfig):
        import rlhfkit.web.app  # noqa: F401  # whether the extra [web] is installed

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
