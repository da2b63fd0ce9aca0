"""What a probe is, whom it measures, and what comes out."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.data.rows import SourceFile
from rlhfkit.errors import ConfigError
from rlhfkit.models.language import LanguageModel
from rlhfkit.records import Message, Prompt
from rlhfkit.rewards.source import RewardSource

__all__ = ["Better", "Gate", "Measurement", "Of", "Probe", "Subject", "Unit", "by_group", "measure", "selected"]

Unit = Literal["share", "nats", "score", "words"]
Of = Literal["model", "reward"]
Better = Literal["ideal", "less", "more", "neither"]

FEWEST_OF_GROUP = 8
"""Rows of a group that is shown by itself."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Whether a number means anything: the share of items on which the model shows that it can do the task at all."""

    what: str
    """As "a sentence is likelier than the same one with two words exchanged"."""
    hits: tuple[bool, ...]
    """By item; those of two models are in the same order."""
    least: float
    """Share below which the number beside it says nothing."""

    @property
    def share(self) -> float:
        """Share of the hits; 0 without items."""
        return sum(self.hits) / len(self.hits) if self.hits else 0.0

    @property
    def holds(self) -> bool:
        """Whether the number beside it may be read."""
        return self.share >= self.least


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One number of a probe on one model, or reward, with the value of each item behind it."""

    probe: str
    """Name of the probe."""
    name: str
    """What of it, as a word for files and metrics: "stereotyped"."""
    words: str
    """The same for people: "prefers the stereotyped sentence"."""
    unit: Unit
    values: tuple[float, ...]
    """One for each item, whose mean is the number. Of a share they are 1 and 0."""
    clusters: tuple[str, ...]
    """What items hang together, as the samples of one prompt do."""
    items: tuple[str, ...]
    """Each item as text, for examples."""
    of: Of = "model"
    better: Better = "less"
    """Whether nearer to `ideal` is better, less, down to 0, or more; or neither, for what may be wanted."""
    ideal: float | None = None
    """The value of a model without bias, where there is one."""
    gate: Gate | None = None
    floor: float | None = None
    """What a change of words that should not matter does to a single item."""
    answers: tuple[str, ...] = ()
    """What the model said to each item, where it said something."""
    group: str = ""
    """The group of the rows; empty for all of them."""
    note: str = ""
    """What else is known of it, as a number of the field."""

    def __post_init__(self) -> None:
        assert (self.better == "ideal") == (self.ideal is not None), self.key

    @property
    def value(self) -> float:
        """The number."""
        return math.fsum(self.values) / len(self.values)

    @property
    def key(self) -> tuple[str, str, str]:
        """What finds the same number of another model."""
        return self.probe, self.name, self.group


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is measured: a language model, a reward, or both."""

    model: LanguageModel | None = None
    reward: RewardSource | None = None
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(max_response_tokens=20))
    """How responses are sampled. Windows of equal length compare, so responses are short."""
    num_samples: int = 5
    """Responses to each prompt; an expected maximum grows with them."""
    is_chat: bool = False
    """Whether prompts are a user's messages, rather than text to continue."""
    seed: int = 0
    forward_tokens: int = 16384
    """Tokens of a forward pass."""
    on_finished: Callable[[int], None] | None = None
    """Hears of responses as they are finished."""

    def prompt(self, text: str) -> Prompt:
        """A prompt as this model reads it."""
        return Prompt((Message("user", text),) if self.is_chat else text)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Rows, and what measures them."""

    name: str
    about: str
    """One line for people."""
    of: Of
    """Whether it is about a language model or a reward."""
    num_rows: int
    run: Callable[[Subject], Iterable[Measurement]]
    """Measures a subject that has what the probe is about."""
    sources: tuple[SourceFile, ...] = ()
    """The files of its rows, where they are not the package's."""

    def measure(self, subject: Subject) -> list[Measurement]:
        """What the probe says of a subject; nothing where it lacks the model or reward that this is about."""
        has = subject.model if self.of == "model" else subject.reward
        return [] if has is None else list(self.run(subject))


def measure(probes: Sequence[Probe], subject: Subject) -> list[Measurement]:
    """What each of the probes says of a subject in memory, in order; no weight and no random state changes.

    The same probes, seed and weights give the same values, so that those of two models, or of one model at two times,
    are paired item by item.
    """
    return [found for probe in probes for found in probe.measure(subject)]


def selected(probes: Sequence[Probe], names: Sequence[str]) -> list[Probe]:
    """The probes with these names, in the order of the names. Raises: ConfigError where one is not there."""
    known = {probe.name: probe for probe in probes}
    for name in names:
        if name not in known:
            raise ConfigError(f"no probe is called {name!r}; there are {', '.join(known)}, and files of rows by path")
    return [known[name] for name in dict.fromkeys(names)]


def by_group(whole: Measurement, groups: Sequence[str]) -> list[Measurement]:
    """`whole`, and beside it each group of its items that is large enough, where there are several."""
    found = [whole]
    for group in dict.fromkeys(groups) if len(set(groups)) > 1 else ():
        rows = [row for row, name in enumerate(groups) if name == group]
        if len(rows) < FEWEST_OF_GROUP:
            continue
        answers = tuple(whole.answers[row] for row in rows) if whole.answers else ()
        part = replace(
            whole,
            values=tuple(whole.values[row] for row in rows),
            clusters=tuple(whole.clusters[row] for row in rows),
            items=tuple(whole.items[row] for row in rows),
            answers=answers,
            group=group,
            note="",
        )
        found.append(part)
    return found
