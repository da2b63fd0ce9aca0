"""The section `tune`: what a search for settings varies, and what it goes by."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlhfkit.config.section import Section

__all__ = ["KnobConfig", "KnobValue", "TuneConfig"]

KnobValue = bool | int | float | str
"""What a setting that is searched may be."""


class KnobConfig(Section):
    """Where a setting is searched: between two numbers, or among a few values.

    Example:
        >>> from rlhfkit.config.tune import KnobConfig
        >>> KnobConfig(low=1e-6, high=3e-5, log=True).is_integer
        False
    """

    low: int | float | None = None
    """The lowest value; whole numbers at both ends make it a whole number."""
    high: int | float | None = None
    """The highest value."""
    log: bool = False
    """Search by the logarithm, for what may differ by factors."""
    choices: tuple[KnobValue, ...] = ()
    """All values, in place of a range."""

    @property
    def is_integer(self) -> bool:
        """Whether only whole numbers are tried."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if self.choices:
            if self.low is not None or self.high is not None or self.log:
                raise ValueError(f"choices {list(self.choices)} stand alone; leave out low, high and log")
            if len(set(self.choices)) < 2:
                raise ValueError(f"choices {list(self.choices)}: expected two or more different ones")
        elif self.low is None or self.high is None:
            raise ValueError("expected low and high, or choices")
        elif not self.low < self.high:
            raise ValueError(f"low {self.low:g} is not below high {self.high:g}; exchange them")
        elif self.log and self.low <= 0:
            raise ValueError(f"low {self.low:g} has no logarithm; raise it above 0, or leave log out")
        return self


class TuneConfig(Section):
    """`rlhfkit tune`: a search for the settings of PPO. No run reads it.

    Example:
        >>> from rlhfkit.config.tune import TuneConfig
        >>> TuneConfig(trials=9).finalists
        3
    """

    kl: PositiveFloat | None = None
    """The KL budget, in nats per episode: a trial is worth its best held-out score within it. By default the target of
    `ppo.kl`, else 10; a control task has none."""
    trials: Annotated[PositiveInt, Field(ge=2)] = 27
    """Settings that are tried, the recipe's own among them."""
    space: dict[str, KnobConfig | Literal["fixed"]] = Field(default_factory=dict)
    """Setting → where it is searched, beside or in place of what is shipped; "fixed" takes one out."""
    sampler: Literal["gp", "tpe", "random"] = "gp"
    """What proposes settings: a Gaussian process, tree-structured Parzen estimators, or chance alone."""
    seed: NonNegativeInt = 0
    """Decides what is proposed; the seeds of the runs follow from that of the recipe."""
    num_random: PositiveInt = 9
    """Trials that spread evenly over the space before the sampler goes by what was seen."""
    reduction: Annotated[int, Field(ge=2)] = 2
    """At each rung one in so many trials goes on."""
    min_rung_iterations: PositiveInt = 20
    """Iterations before the first rung: earlier, fast rates look better than they are."""
    every_iterations: PositiveInt | None = None
    """Iterations between two evaluations; by default `evaluation.every_iterations`, else a twentieth of the run, and in
    either case often enough for the first rung to have two behind its start."""
    num_seeds: PositiveInt = 3
    """Seeds of the search; trials take them in turn, so that no setting is fitted to one."""
    finalists: PositiveInt = 3
    """The best trials, which are trained again with further seeds."""
    confirmation_seeds: NonNegativeInt = 2
    """Further seeds of each finalist."""
    test_seeds: Annotated[int, Field(ge=2)] = 5
    """Seeds, used nowhere before, with which the winner is compared with the recipe as it is."""
    max_length_ratio: Annotated[float, Field(gt=1.0)] = 2.0
    """Guard: how many times as long, or as short, as at the start responses may be."""
    max_distinct_loss: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Guard: the share of their variety (distinct-2) that responses may lose."""
    max_perplexity_ratio: Annotated[float, Field(gt=1.0)] = 3.0
    """Guard: how many times as unlikely, by the reference, responses may become (perplexity)."""
    max_eos_loss: Annotated[float, Field(gt=0.0, le=1.0)] = 0.3
    """Guard: by how much the share of responses that end by themselves may fall."""
