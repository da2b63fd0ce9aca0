"""Constraints of PPO: what a further reward may not exceed, or may not fall short of."""

from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from rlhfkit.config.rewards import RewardConfig
from rlhfkit.config.section import Section

__all__ = ["ConstraintConfig"]


class ConstraintConfig(Section):
    """A further reward whose mean is held to a limit by a multiplier, while PPO maximises `reward` (arXiv 2310.12773).

    Example:
        >>> from rlhfkit.config.constraints import ConstraintConfig
        >>> from rlhfkit.config.rewards import LengthRewardConfig
        >>> ConstraintConfig(name="words", source=LengthRewardConfig(), at_most=30).limit
        30.0
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    """What curves and metrics call it."""
    source: RewardConfig
    """What gives the values, in a unit of its own; any reward may."""
    at_least: float | None = None
    """The mean shall not fall short of this. Set one of the two limits."""
    at_most: float | None = None
    """The mean shall not exceed this."""
    scale: PositiveFloat | None = None
    """What a unit of excess is; by default the deviation of the values over the first rollout."""
    learning_rate: PositiveFloat = 0.1
    """How fast the multiplier moves: what it gains in an iteration whose mean is a unit beyond the limit.
    With `damping`, for rewards of deviation 1."""
    damping: NonNegativeFloat = 0.5
    """What a unit of present excess adds to the multiplier, so that it does not swing around the right value."""
    mean_decay: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Decay of the running mean of the excess, by which the multiplier moves; 0 takes each rollout as it is."""
    initial_multiplier: NonNegativeFloat = 0.0
    """The multiplier at the start."""
    max_multiplier: PositiveFloat = 10.0
    """Cap of the multiplier: what a unit of excess costs at most, in units of the score."""

    @property
    def limit(self) -> float:
        """The limit, whichever it is."""
        limit = self.at_least if self.at_most is None else self.at_most
        assert limit is not None  # the check saw to it
        return limit

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(
                f"at_least {self.at_least} and at_most {self.at_most} of the constraint {self.name!r}: expected one of "
                "the two; for a range write two constraints"
            )
        if self.initial_multiplier > self.max_multiplier:
            raise ValueError(
                f"initial_multiplier {self.initial_multiplier:g} is above max_multiplier {self.max_multiplier:g}; "
                "lower it"
            )
        return self
