"""The section `env`: what PPO acts in, in place of single prompts."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from rlhfkit.config.data import GuessRules
from rlhfkit.config.section import Section

__all__ = ["FunctionEnvConfig", "GuessEnvConfig", "ReplayEnvConfig", "TextEnvConfig"]


class GuessEnvConfig(GuessRules):
    """The number-guessing game, whose optimum is known."""

    type: Literal["guess"] = "guess"
    """Says which kind this is; in Python the class does."""


class ReplayEnvConfig(Section):
    """Recorded dialogues: the user says what the user said, and the policy answers in its own words.

    The dialogues are `data.prompts`, in evaluation `data.test_prompts`; every answer gets the score of `reward`.
    """

    type: Literal["replay"] = "replay"
    """Says which kind this is; in Python the class does."""
    max_turns: PositiveInt = 3
    """Turns of the user in an episode, counted from the beginning of the dialogue."""


class FunctionEnvConfig(Section):
    """An environment of your own."""

    type: Literal["function"] = "function"
    """Says which kind this is; in Python the class does."""
    function: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """`package.module:factory`, importable from the working directory; called without arguments, gives a TextEnv."""
    max_turns: PositiveInt = 16
    """Responses after which an episode is cut off, truncated, if the environment has not ended it."""
    add_reward: bool = False
    """Pay every response the score of `reward` on top of what the environment pays."""
    check: bool = True
    """Try it before anything is trained; false for one that cannot be the same twice, which no run can repeat then."""


TextEnvConfig = Annotated[GuessEnvConfig | ReplayEnvConfig | FunctionEnvConfig, Field(discriminator="type")]
