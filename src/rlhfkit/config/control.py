"""Settings of a control task: an environment of Gymnasium's and a small actor-critic that PPO trains in it."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from rlhfkit.config.ppo import PpoUpdateConfig
from rlhfkit.config.section import MAY_CHANGE, OpenShare, Section, Share, divisor_near
from rlhfkit.config.tracking import TrackingConfig
from rlhfkit.config.training import OptimConfig
from rlhfkit.config.tune import TuneConfig
from rlhfkit.config.watch import ControlWatchConfig
from rlhfkit.config.watchdog import WatchdogConfig

__all__ = [
    "ControlEvaluationConfig",
    "ControlPpoConfig",
    "ControlRecipe",
    "ControlValueConfig",
    "EnvConfig",
    "NetworkConfig",
]


class EnvConfig(Section):
    """The environment.

    Example:
        >>> from rlhfkit import EnvConfig
        >>> EnvConfig(id="Pendulum-v1", normalize_observations=True).id
        'Pendulum-v1'
    """

    id: Annotated[str, Field(examples=["CartPole-v1"])]
    """What Gymnasium calls it; "package.module:Name-v0" imports the module first."""
    kwargs: dict[str, Any] = Field(default_factory=dict)
    """Arguments of its constructor."""
    max_episode_steps: PositiveInt | None = None
    """Longer episodes are truncated; by default the environment's own limit."""
    vectorization: Literal["auto", "native", "sync", "async"] = "auto"
    """Gymnasium's own vector environment where it has one ("auto"), one after the other, or a process for each."""
    new_each_episode: bool | Literal["auto"] = "auto"
    """Make it anew for each episode, so that a killed run goes on exactly; "auto": where episodes depend on others."""
    check: bool = True
    """Try a few episodes first, and refuse an environment that breaks Gymnasium's contract."""
    normalize_observations: bool = False
    """Give observations mean 0 and deviation 1 by running statistics, and clip them at 10 deviations."""
    normalize_rewards: bool = False
    """Divide rewards by the running deviation of the discounted return, and clip them at 10."""


class NetworkConfig(Section):
    """Actor and critic: fully connected, with orthogonal weights at the start.

    Example:
        >>> from rlhfkit import NetworkConfig
        >>> NetworkConfig(hidden=(32, 32)).activation
        'tanh'
    """

    hidden: tuple[PositiveInt, ...] = (64, 64)
    """Widths of the hidden layers, the same in actor and critic."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Between the layers."""
    log_std: float = 0.0
    """Logarithm of the Gaussian's deviation at the start, for continuous actions; half the action's range is 1."""


class ControlValueConfig(Section):
    """The critic."""

    network: Literal["separate", "shared"] = "separate"
    """Its own network, or a head on the actor's hidden layers."""
    optim: OptimConfig | None = None
    """Its own optimizer; by default it shares the policy's, and gradients are clipped together."""
    coef: PositiveFloat = 0.5
    """Weight of the value loss beside the policy's, where they share the optimizer."""
    clip_range: NonNegativeFloat = 0.0
    """How far a value may move from the old one before its gradient stops; 0 = no clipping."""
    warmup_iterations: NonNegativeInt = 0
    """First iterations in which only the value learns."""
    gae_lambda: Share | None = None
    """Lambda of the returns that it learns; by default `ppo.gae_lambda`."""

    @model_validator(mode="after")
    def _trunk_has_one_optimizer(self) -> "ControlValueConfig":
        if self.network == "shared" and self.optim is not None:
            raise ValueError('network = "shared" is trained by the policy\'s optimizer; drop optim, or set "separate"')
        return self


class ControlPpoConfig(PpoUpdateConfig):
    """PPO on steps of vectorised environments.

    Example:
        >>> from rlhfkit import ControlPPOConfig
        >>> ControlPPOConfig(env_steps=100_000, num_envs=8, rollout_steps=125, minibatch_steps=250).iterations
        100
    """

    env_steps: PositiveInt = 100_000
    """Steps of all environments together, rounded up to whole rollouts."""
    num_envs: PositiveInt = 8
    """Environments side by side."""
    rollout_steps: PositiveInt = 128
    """Steps of each environment per iteration."""
    minibatch_steps: PositiveInt = Field(
        default_factory=lambda read: divisor_near(256, read.get("num_envs", 8) * read.get("rollout_steps", 128))
    )
    """Steps per optimizer step, from anywhere in the rollout; by default the divisor of its steps nearest to 256."""
    gamma: OpenShare = 0.99
    """Discount per step."""
    optim: OptimConfig = OptimConfig(learning_rate=3e-4, max_grad_norm=0.5)
    """The policy's optimizer."""
    value: ControlValueConfig = ControlValueConfig()
    """The critic."""
    watch: ControlWatchConfig = ControlWatchConfig()
    """What to do when training goes wrong."""

    # What text may choose, and control has one answer to.
    estimator: ClassVar[Literal["gae"]] = "gae"
    group_size: ClassVar[int] = 1
    whiten_rewards: ClassVar[bool] = False
    normalize_std: ClassVar[bool] = True
    whitens_advantages: ClassVar[bool] = True
    objective: ClassVar[Literal["clip"]] = "clip"
    ratio: ClassVar[Literal["token"]] = "token"
    loss_aggregation: ClassVar[Literal["token"]] = "token"
    loss_tokens: ClassVar[None] = None
    microbatch_tokens: ClassVar[None] = None
    max_ref_kl: ClassVar[None] = None

    @property
    def iterations(self) -> int:
        """Rounds of collect and update."""
        return -(-self.env_steps // (self.num_envs * self.rollout_steps))

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps in an iteration that is not cut short."""
        return self.epochs * -(-self.num_envs * self.rollout_steps // self.minibatch_steps)

    @property
    def minibatch_rows(self) -> int:
        """Rows of an experience per optimizer step."""
        return self.minibatch_steps

    @property
    def value_optim(self) -> OptimConfig | None:
        """Settings of the critic's own optimizer; None where it shares the policy's."""
        return self.value.optim

    @model_validator(mode="after")
    def _minibatch_fits(self) -> "ControlPpoConfig":
        rollout = self.num_envs * self.rollout_steps
        if rollout % self.minibatch_steps:
            raise ValueError(
                f"minibatch_steps {self.minibatch_steps} does not divide num_envs x rollout_steps = {rollout}; "
                "choose a divisor"
            )
        if rollout > self.env_steps:
            raise ValueError(
                f"env_steps {self.env_steps} is less than one rollout, num_envs x rollout_steps = {rollout}; "
                "raise it, or lower one of the two"
            )
        return self


class ControlEvaluationConfig(Section):
    """What the trained policy is worth: its likeliest action in episodes that training never saw."""

    num_episodes: PositiveInt = 100
    """Episodes for each seed."""
    record: bool = True
    """Record the episode whose return is the median of all, as a GIF, where the environment can be drawn."""


class ControlRecipe(Section):
    """A run on a control task."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]+$")]
    """Name of the recipe and of its run directory."""
    purpose: Annotated[str, MAY_CHANGE] = ""
    """One line that the report shows."""
    seed: NonNegativeInt = 0
    """All randomness follows from this."""
    num_seeds: PositiveInt = 1
    """Trainings, with the seeds from `seed` on, of which the report shows mean and spread."""
    stages: tuple[Literal["control"], ...] = ("control",)
    """What to do; "control" trains and evaluates."""
    env: EnvConfig
    """What to act in."""
    network: NetworkConfig = NetworkConfig()
    """What acts."""
    ppo: ControlPpoConfig = ControlPpoConfig()
    """How it learns."""
    evaluation: ControlEvaluationConfig = ControlEvaluationConfig()
    """How it is measured."""
    watchdog: Annotated[WatchdogConfig, MAY_CHANGE] = WatchdogConfig()
    """What happens when it gives no sign of life."""
    tracking: Annotated[TrackingConfig, MAY_CHANGE] = TrackingConfig()
    """Which other tools get the numbers of the run."""
    tune: Annotated[TuneConfig, MAY_CHANGE] = TuneConfig()
    """What `rlhfkit tune` searches."""
