"""What a run does when a rule sees that its training goes wrong."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlhfkit.config.section import Section

__all__ = ["Action", "ControlWatchConfig", "Reaction", "WatchConfig", "WatchSettings"]

Action = Literal["warn", "lower_learning_rate", "raise_kl_coef", "roll_back", "stop"]


def _as_tuple(value: object) -> object:
    """One action alone, or "off", as the recipe may write it."""
    if value == "off":
        return ()
    return (value,) if isinstance(value, str) else value


Reaction = Annotated[tuple[Action, ...], BeforeValidator(_as_tuple)]
"""One action, several, or "off"."""
WARN: Reaction = ("warn",)


class WatchSettings(Section):
    """What each rule may do, beyond the warning that goes with all but "off".

    "lower_learning_rate", "raise_kl_coef", "roll_back" (to the weights of the best checkpoint) and "stop" (the stage
    ends, with the weights of the best checkpoint); several in a list.
    """

    zero_advantages: Reaction = WARN
    """All advantages are zero: there is nothing to learn from."""
    nothing_moves: Reaction = WARN
    """The policy does not move: the learning rate is too low."""
    approx_kl_high: Reaction = WARN
    """Updates are far too large."""
    clip_fraction_high: Reaction = WARN
    """Most of what PPO wants is clipped."""
    grad_norm_exploding: Reaction = WARN
    """Gradients explode."""
    value_loss_growing: Reaction = WARN
    """The critic diverges."""
    critic_useless: Reaction = WARN
    """The critic foresees nothing."""
    entropy_collapse: Reaction = WARN
    """The policy says, or does, only one thing."""
    entropy_rising: Reaction = WARN
    """The policy becomes random."""
    reward_falling: Reaction = WARN
    """The reward falls."""
    reward_flat: Reaction = WARN
    """The reward does not rise."""
    learning_rate_factor: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """What "lower_learning_rate" multiplies the learning rates by, of policy and critic."""
    patience_iterations: PositiveInt = 10
    """Iterations that a rule waits after it has acted, before it acts again."""
    max_reactions: NonNegativeInt = 3
    """How often each rule may act."""
    best_metric: Annotated[str, Field(pattern=r"^-?[\w/]+$")] = "score/objective"
    """Metric of the rollout that makes the weights which acted in it the best; lower is better with a "-" before it.
    One of evaluations on the way, as "evaluation/judge", is looked at whenever it is measured."""
    best_every_iterations: PositiveInt = 5
    """Iterations between two looks at it, where something may roll back, or stop or end with the best weights."""

    def reaction(self, rule: str) -> Reaction:
        """What the rule may do."""
        reaction: Reaction = getattr(self, rule)
        return reaction

    @property
    def may_roll_back(self) -> bool:
        """Whether any rule may."""
        return self._any("roll_back")

    @property
    def may_stop(self) -> bool:
        """Whether any rule may end the stage."""
        return self._any("stop")

    def _any(self, action: Action) -> bool:
        return any(action in value for value in self.__dict__.values() if isinstance(value, tuple))


class WatchConfig(WatchSettings):
    """The rules for a language model."""

    temperature_extreme: Reaction = WARN
    """The temperature is far from 1."""
    few_prompts: Reaction = WARN
    """There are hardly any different prompts."""
    reward_of_prompt_alone: Reaction = WARN
    """The score depends on the prompt alone."""
    responses_identical: Reaction = WARN
    """All responses to a prompt are the same."""
    kl_weightless: Reaction = WARN
    """The KL penalty has no weight beside the reward."""
    kl_negative: Reaction = WARN
    """The KL to the reference is negative."""
    kl_exploding: Reaction = WARN
    """The policy has left its reference."""
    kl_over_limit: Reaction = WARN
    """The KL to the reference is above `ppo.max_ref_kl`, where PPO stops by itself."""
    length_runaway: Reaction = WARN
    """Responses grow and grow."""
    length_collapse: Reaction = WARN
    """Responses shrink to nothing."""
    eos_lost: Reaction = WARN
    """Responses do not end by themselves."""
    reward_saturated: Reaction = WARN
    """All responses get the same score."""
    over_optimized: Reaction = WARN
    """The policy is past the distance from its reference at which an evaluation on the way finds it best."""
    judge_falling: Reaction = WARN
    """The judge's score falls, as evaluations on the way find it."""
    best_max_ref_kl: PositiveFloat | None = None
    """Weights whose KL to the reference is above this are never the best; by default `ppo.max_ref_kl`. In nats per
    sequence, of what the best are ranked by: the rollout, or the evaluation on the way, which then is done as well
    wherever the KL comes to 50, 60, 70, 80, 90 or 95 % of this."""
    kl_coef_factor: Annotated[float, Field(gt=1.0)] = 2.0
    """What "raise_kl_coef" multiplies the KL coefficient by."""
    least_kl_coef: PositiveFloat = 0.05
    """What "raise_kl_coef" raises it to at least."""


class ControlWatchConfig(WatchSettings):
    """The rules for a control task."""

    best_metric: Annotated[str, Field(pattern=r"^-?[\w/]+$")] = "episode_return/mean"
    """As for language; the mean return is measured in ten episodes of their own, which no older weights played."""

    best_max_ref_kl: ClassVar[None] = None  # there is no reference

    @model_validator(mode="after")
    def _has_no_reference(self) -> "ControlWatchConfig":
        for name, value in self.__dict__.items():
            if isinstance(value, tuple) and "raise_kl_coef" in value:
                raise ValueError(
                    f'{name} = "raise_kl_coef": a control task has no reference, and so no KL coefficient; choose '
                    '"lower_learning_rate", "roll_back" or "stop"'
                )
        return self
