"""Settings of PPO on a language model, and of its rollout."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationInfo,
    model_validator,
)

from rlhfkit.config.constraints import ConstraintConfig
from rlhfkit.config.presets import PresetName, with_preset
from rlhfkit.config.section import MAY_CHANGE, LocalPath, OpenShare, Section, Share, divisor_near, type_or
from rlhfkit.config.training import OptimConfig
from rlhfkit.config.watch import WatchConfig

__all__ = [
    "AdaptiveKLConfig",
    "FixedKLConfig",
    "KLConfig",
    "PpoConfig",
    "PpoUpdateConfig",
    "PtxConfig",
    "RolloutConfig",
    "ValueConfig",
    "VllmConfig",
]


FORWARD_TOKENS = 8192


class VllmConfig(Section):
    """vLLM in place of the own sampler; see docs/vllm.md."""

    dtype: Literal["model", "float32", "bfloat16", "float16"] = "model"
    """Type it samples in; "model" is that of `model.dtype`."""
    kv_cache_gib: PositiveFloat = 1.0
    """Memory for its keys and values."""
    compile: bool | Literal["auto"] = "auto"
    """Compile at the start, on CUDA into graphs: starts minutes later, samples faster; "auto" only does on CUDA."""


class RolloutConfig(Section):
    """Sampling of responses, the same in PPO and in evaluation.

    Example:
        >>> from rlhfkit import RolloutConfig
        >>> RolloutConfig(max_response_tokens=128, temperature=0.7).max_response_tokens
        128
    """

    max_response_tokens: PositiveInt = 64
    """Sampling stops here if it has not met EOS."""
    temperature: PositiveFloat = 1.0
    """Divides the logits, in the rollout, in the update and in the reference alike."""
    top_k: NonNegativeInt = 0
    """Keep the k likeliest tokens; 0 keeps all. Cut sampling makes PPO's ratio wrong: leave it off in training."""
    top_p: OpenShare = 1.0
    """Keep the likeliest tokens up to this probability; 1 keeps all. See `top_k`."""
    stop_tokens: tuple[str, ...] = ()
    """Further tokens that end a response, as "\\n"; the token itself is part of the response."""
    slots: Annotated[PositiveInt, MAY_CHANGE] = 64
    """Rows sampled at the same time; a waiting prompt takes the place of a finished row."""
    engine: Literal["own", "vllm"] = "own"
    """What samples in PPO; all other stages sample with the own engine."""
    vllm: VllmConfig = VllmConfig()
    """Settings of the engine "vllm"."""
    chunk_rows: PositiveInt | None = None
    """Responses that are sampled together, wherever that is; none: all that a process has. Fixed chunks give the same
    bits on one process, on several and on a cluster, which takes 32 where this is not set."""
    max_staleness: Literal[0, 1] = 0
    """Updates by which the weights that sample may be behind: with 1 a cluster samples the next iteration while this
    one is learnt from, and the loss is corrected for it."""
    partial_tokens: PositiveInt | None = None
    """Cut a response in PPO after so many tokens, and go on with it in the next iteration by that one's weights; none:
    an iteration waits for its longest response. Needs `max_staleness` = 1."""
    importance_cap: Annotated[float, Field(ge=1.0)] = 2.0
    """Bound on the weight by which a token's loss is corrected where other weights, or vLLM, have sampled it."""

    @model_validator(mode="after")
    def _engine_can_sample_so(self) -> "RolloutConfig":
        if self.engine == "vllm" and not 0.01 <= self.temperature <= 2:
            raise ValueError(f'engine "vllm" knows temperatures from 0.01 to 2, not {self.temperature:g}; choose one')
        if self.partial_tokens is not None and not self.max_staleness:
            raise ValueError(
                f"partial_tokens {self.partial_tokens} has newer weights go on with responses that are cut, and "
                "max_staleness is 0; set it to 1, or leave partial_tokens out"
            )
        if self.engine == "vllm" and (self.top_k or self.top_p < 1):
            raise ValueError(
                f'engine "vllm" gives the logprobs of what top_k {self.top_k} and top_p {self.top_p:g} leave over, '
                "which no training pass computes; leave both out"
            )
        return self


def _holds_the_policy(kind: object, read: ValidationInfo) -> object:
    in_loss = read.data.get("place") == "loss"
    if not in_loss and kind in ("k2", "k3"):
        raise ValueError(
            f'estimator = "{kind}" does not hold the policy near the reference: in a reward only k1 has the gradient '
            'of the KL divergence; leave it out, or set place to "loss"'
        )
    if in_loss and kind == "k1":
        raise ValueError(
            'estimator = "k1" does not hold the policy near the reference: in a loss its gradient is zero on average; '
            'leave it out, or set "k2" or "k3"'
        )
    return kind


def _usual_estimator(read: dict[str, Any]) -> Literal["k1", "k2"]:
    return "k2" if read.get("place") == "loss" else "k1"


KLPlace = Literal["reward", "loss"]
KLEstimator = Annotated[Literal["k1", "k2", "k3"], BeforeValidator(_holds_the_policy)]


class FixedKLConfig(Section):
    """Constant coefficient.

    Example:
        >>> from rlhfkit import FixedKLConfig, PPOConfig
        >>> PPOConfig(kl=FixedKLConfig(coef=0.1)).kl.coef
        0.1
    """

    type: Literal["fixed"] = "fixed"
    """Says which kind this is; in Python the class does."""
    coef: NonNegativeFloat = 0.05
    """Reward per nat."""
    place: KLPlace = "reward"
    """Where the penalty is: in each token's reward, or a term of the policy's loss, which no advantage sees."""
    estimator: KLEstimator = Field(default_factory=_usual_estimator)
    """Estimate per token: k1 in the reward; k2, or k3 with the ratio, in the loss. What does not hold the policy there
    is refused."""


class AdaptiveKLConfig(Section):
    """Coefficient that steers the KL to a target (Ziegler et al. 2019, arXiv 1909.08593).

    Example:
        >>> from rlhfkit import AdaptiveKLConfig, PPOConfig
        >>> PPOConfig(kl=AdaptiveKLConfig(target=4.0)).kl.target
        4.0
    """

    type: Literal["adaptive"] = "adaptive"
    """Says which kind this is; in Python the class does."""
    coef: PositiveFloat = 0.15
    """Reward per nat at the start."""
    target: PositiveFloat = 6.0
    """Wanted KL to the reference, in nats summed per sequence."""
    horizon_episodes: PositiveInt = 10_000
    """Episodes over which the coefficient adapts."""
    place: KLPlace = "reward"
    """Where the penalty is: in each token's reward, or a term of the policy's loss, which no advantage sees."""
    estimator: KLEstimator = Field(default_factory=_usual_estimator)
    """Estimate per token: k1 in the reward; k2, or k3 with the ratio, in the loss. What does not hold the policy there
    is refused."""


KLConfig = Annotated[
    Annotated[FixedKLConfig, Tag("fixed")] | Annotated[AdaptiveKLConfig, Tag("adaptive")],
    Discriminator(type_or("fixed")),
]


class ValueConfig(Section):
    """The critic.

    Example:
        >>> from rlhfkit import PPOConfig, ValueConfig
        >>> PPOConfig(value=ValueConfig(network="shared")).value.coef
        0.1
    """

    network: Literal["separate", "shared"] = "separate"
    """Its own network, or a head on the policy's trunk (half the memory, but the two tasks share weights)."""
    init: Literal["auto", "reward_model", "policy"] | LocalPath = "auto"
    """Its start: this run's reward model if there is one ("auto"), or the policy with a zero head, both of a separate
    network; or the critic of another run, whose directory is given, in its newest checkpoint."""
    optim: OptimConfig = OptimConfig()
    """Its optimizer; a shared trunk uses the policy's."""
    coef: PositiveFloat = 0.1
    """Weight of the value loss where the trunk is shared."""
    clip_range: NonNegativeFloat = 0.2
    """How far a value may move from the old one before its gradient stops; 0 = no clipping."""
    warmup_iterations: NonNegativeInt = 0
    """First iterations in which only the value learns."""
    gae_lambda: Share | None = None
    """Lambda of the returns that it learns; by default `ppo.gae_lambda`. 1 for long responses (arXiv 2503.01491)."""

    @property
    def other_run(self) -> str | None:
        """The run whose critic it begins with; None where it begins with a model of this one."""
        return None if self.init in ("auto", "reward_model", "policy") else self.init


class PtxConfig(Section):
    """A loss on texts beside PPO's, so that the policy does not forget them (InstructGPT, arXiv 2203.02155, eq. 2)."""

    coef: NonNegativeFloat = 0.0
    """Its weight: at 1 a token of the texts weighs as one of the responses; 0 leaves it out."""
    data: Literal["demonstrations", "texts"] = "demonstrations"
    """The table of `data` that it learns: responses, as in SFT, or every token, as in pre-training."""
    minibatch_sequences: PositiveInt | None = None
    """Rows of it in each optimizer step; by default as many as `ppo.minibatch_episodes`."""


class PpoUpdateConfig(Section):
    """What an update of PPO needs to know (Schulman et al. 2017, arXiv 1707.06347), whatever the policy acts in."""

    epochs: PositiveInt = 4
    """Passes over each rollout."""
    clip_range: OpenShare = 0.2
    """How far the ratio may leave 1 before its gradient stops; below 1, where `clip_range_high` is set."""
    clip_range_high: PositiveFloat | None = None
    """The same above 1; by default `clip_range`. Larger, as 0.28, keeps rare tokens alive (arXiv 2503.14476)."""
    clip_schedule: Literal["constant", "linear"] = "constant"
    """Whether the clip range falls to zero over the iterations."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = None
    """Bound on the loss of bad actions whose ratio is large (arXiv 1912.09729); off by default."""
    gamma: OpenShare = 1.0
    """Discount per token or step."""
    gae_lambda: Share = 0.95
    """Decay of generalized advantage estimation."""
    entropy_coef: NonNegativeFloat = 0.0
    """Bonus per nat of entropy."""
    target_kl: PositiveFloat | None = None
    """Stop the epochs of an iteration once `approx_kl` passes this, in nats per action."""
    optim: OptimConfig = OptimConfig()
    """The policy's optimizer."""
    checkpoint_minutes: Annotated[PositiveFloat, MAY_CHANGE] = 2.0
    """Time between two checkpoints."""
    end_with: Literal["last", "best"] = "last"
    """Weights that a run ends with which nothing has stopped: the last, or the best by `watch.best_metric`."""


class PpoConfig(PpoUpdateConfig):
    """PPO of a language model, or a critic-free estimator in its place.

    Example:
        >>> from rlhfkit import PPOConfig
        >>> config = PPOConfig(iterations=20, rollout_episodes=128, minibatch_episodes=64, epochs=2)
        >>> config.updates_per_iteration
        4
    """

    preset: PresetName | None = None
    """A member of the family by its name, which sets those of the settings below that make it; what the recipe sets
    itself wins, and the run says at its start what became of it."""
    estimator: Literal["gae", "rloo", "grpo", "reinforce++", "reinforce++-baseline"] = "gae"
    """How advantages are made: GAE with a critic; from the scores of `group_size` responses to the same prompt; or what
    a token still earns, whitened over the rollout ("reinforce++"), with "-baseline" less the mean of its group."""
    group_size: PositiveInt = 1
    """Responses per prompt; an estimator that compares them needs at least 2."""
    resample_rounds: NonNegativeInt = 0
    """How often at most prompts whose responses all score alike, which teach nothing, give way to others in an
    iteration; 0 learns from them (arXiv 2503.14476)."""
    normalize_std: bool = True
    """Whether GRPO divides scores by their group's deviation; false is Dr. GRPO's (arXiv 2503.20783)."""
    objective: Literal["clip", "cispo"] = "clip"
    """PPO's clipped ratio, or CISPO's clipped weight of the logprob, which keeps its gradient (arXiv 2506.13585)."""
    ratio: Literal["token", "sequence"] = "token"
    """What the ratio of new to old policy is of: each token, or a whole response (GSPO, arXiv 2507.18071)."""
    loss_aggregation: Literal["token", "sequence", "constant"] = "token"
    """What the policy's loss is a mean over: tokens; responses of their tokens' means ("sequence", as GRPO's); or
    responses of their sums divided by `loss_tokens` ("constant", Dr. GRPO)."""
    loss_tokens: PositiveInt | None = None
    """The length that "constant" divides by; by default `rollout.max_response_tokens`."""
    entropy_target: PositiveFloat | None = None
    """Entropy in nats per token to which the coefficient of the bonus steers, from `entropy_coef` on; by default that
    stays as it is."""
    iterations: PositiveInt = 100
    """Rounds of collect and update."""
    rollout_episodes: PositiveInt = 64
    """Responses sampled per iteration."""
    minibatch_episodes: PositiveInt = Field(
        default_factory=lambda read: divisor_near(64, read.get("rollout_episodes", 64))
    )
    """Responses per optimizer step; must divide `rollout_episodes`, and is by default its divisor nearest to 64."""
    microbatch_tokens: Annotated[PositiveInt | Literal["auto"], MAY_CHANGE] = 8192
    """Tokens (padding included) in one forward and backward pass: bounds memory; "auto": as many as it has room for."""
    whiten_rewards: bool = False
    """Scale token rewards to deviation 1 (mean kept)."""
    clip_score: PositiveFloat | None = None
    """Bound on the score's magnitude; the clipped share is logged."""
    missing_eos_score: float | None = None
    """Score of a response without EOS, whatever the reward says; off where this is not set."""
    missing_eos_penalty: NonNegativeFloat = 0.0
    """Subtracted from the score of a response without EOS."""
    length_penalty: NonNegativeFloat = 0.0
    """Subtracted per token beyond `length_penalty_tokens`."""
    length_penalty_tokens: NonNegativeInt = 0
    """Length from which the penalty counts."""
    brevity_penalty: NonNegativeFloat = 0.0
    """Subtracted per token that is missing to `brevity_penalty_tokens`."""
    brevity_penalty_tokens: NonNegativeInt = 0
    """Length from which a response is long enough."""
    kl: KLConfig = FixedKLConfig()
    """The leash to the reference."""
    constraints: tuple[ConstraintConfig, ...] = ()
    """Further rewards that are held to a limit while PPO maximises `reward`."""
    value: ValueConfig = ValueConfig()
    """The critic."""
    ptx: PtxConfig = PtxConfig()
    """Texts that it goes on learning."""
    ema: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Decay per update of an average of the policy's weights, kept beside it, evaluated with it, and saved as `ema/`;
    none by default. 0.99 averages about the last hundred updates."""
    watch: WatchConfig = WatchConfig()
    """What to do when training goes wrong."""
    max_ref_kl: PositiveFloat | None = None
    """Stop PPO once the KL to the reference, in nats per sequence, is above this for three iterations in a row; the
    policy is then the best one within it."""
    min_eos_rate: Share = 0.05
    """The run refuses to start if fewer of the first responses end with EOS; 0 for tasks of fixed length."""
    num_samples: NonNegativeInt = 4
    """Responses written to `samples.jsonl` per iteration."""

    @property
    def forward_tokens(self) -> int:
        """Tokens in one forward pass that keeps nothing for a gradient."""
        return FORWARD_TOKENS if self.microbatch_tokens == "auto" else self.microbatch_tokens

    @property
    def updates_per_iteration(self) -> int:
        """Optimizer steps in an iteration that is not cut short."""
        return self.epochs * (self.rollout_episodes // self.minibatch_episodes)

    @property
    def minibatch_rows(self) -> int:
        """Rows of an experience per optimizer step."""
        return self.minibatch_episodes

    @property
    def ptx_table(self) -> str | None:
        """The table of `data` that is learnt beside; None where none is."""
        return self.ptx.data if self.ptx.coef else None

    @property
    def ptx_sequences(self) -> int:
        """Rows of it in each optimizer step."""
        return (self.ptx.minibatch_sequences or self.minibatch_episodes) if self.ptx.coef else 0

    @property
    def compares_responses(self) -> bool:
        """Whether advantages are made of several responses to the same prompt."""
        return self.estimator in ("rloo", "grpo", "reinforce++-baseline")

    @property
    def whitens_advantages(self) -> bool:
        """Whether advantages are scaled to deviation 1 over the whole rollout."""
        return self.estimator in ("gae", "reinforce++", "reinforce++-baseline")

    @property
    def kl_meets_deviations(self) -> bool:
        """Whether the KL penalty is weighed against numbers divided by their deviation, and not against scores."""
        if self.estimator == "grpo":
            return self.normalize_std
        return self.kl.place == "loss" and self.whitens_advantages

    def for_rollout(self, rollout: RolloutConfig) -> "PpoConfig":
        """These settings with the length that the aggregation "constant" divides by, where they do not say it."""
        return self if self.loss_tokens else self.model_copy(update={"loss_tokens": rollout.max_response_tokens})

    @property
    def value_optim(self) -> OptimConfig | None:
        """Settings of the critic's own optimizer; None where there is no critic, or it is part of the policy."""
        return self.value.optim if self.estimator == "gae" and self.value.network == "separate" else None

    @model_validator(mode="before")
    @classmethod
    def _preset_is_beneath(cls, settings: Any) -> Any:
        return with_preset(settings) if isinstance(settings, Mapping) else settings

    @model_validator(mode="after")
    def _settings_fit(self) -> "PpoConfig":
        if self.rollout_episodes % self.minibatch_episodes:
            raise ValueError(
                f"minibatch_episodes {self.minibatch_episodes} does not divide rollout_episodes "
                f"{self.rollout_episodes}; choose a divisor"
            )
        if self.rollout_episodes % self.group_size:
            raise ValueError(
                f"group_size {self.group_size} does not divide rollout_episodes {self.rollout_episodes}; "
                "choose a divisor"
            )
        if self.compares_responses and self.group_size < 2:
            raise ValueError(
                f"estimator {self.estimator!r} compares responses to one prompt; set group_size to 2 or more"
            )
        if self.estimator != "gae" and self.whiten_rewards:
            raise ValueError(
                f"estimator {self.estimator!r} compares whole responses and scales no rewards of tokens; leave "
                "whiten_rewards out"
            )
        if self.resample_rounds and not self.compares_responses:
            raise ValueError(
                f"resample_rounds {self.resample_rounds} is about prompts whose responses all score alike, which "
                f"estimator {self.estimator!r} does not compare; leave it out"
            )
        if not self.normalize_std and self.estimator != "grpo":
            raise ValueError(
                f"normalize_std = false is about the deviation of groups, by which estimator {self.estimator!r} does "
                'not divide; leave it out, or set estimator to "grpo"'
            )
        if self.objective == "cispo" and self.ratio != "token":
            raise ValueError(
                f"objective 'cispo' clips the weight of each token, and not of a response, as ratio {self.ratio!r} "
                "would; leave one of the two out"
            )
        if self.objective == "cispo" and self.dual_clip is not None:
            raise ValueError(
                f"dual_clip {self.dual_clip:g} bounds what objective 'cispo' bounds for all tokens already; leave it "
                "out, and set clip_range_high"
            )
        if self.loss_tokens is not None and self.loss_aggregation != "constant":
            raise ValueError(
                f'loss_tokens {self.loss_tokens} is the length of loss_aggregation "constant", which is '
                f"{self.loss_aggregation!r}; leave it out"
            )
        if self.missing_eos_score is not None and self.missing_eos_penalty:
            raise ValueError(
                f"missing_eos_score {self.missing_eos_score:g} replaces the score from which missing_eos_penalty "
                f"{self.missing_eos_penalty:g} would be subtracted; set one of the two"
            )
        if self.entropy_target is not None and not self.entropy_coef:
            raise ValueError(
                f"entropy_target {self.entropy_target:g} moves the coefficient of the bonus by factors, and "
                "entropy_coef is 0, which no factor moves; set it to where it shall begin, as to 0.001"
            )
        names = [constraint.name for constraint in self.constraints]
        if len(set(names)) < len(names):
            raise ValueError(f"constraints {names} name one twice; give each a name of its own")
        if isinstance(self.kl, AdaptiveKLConfig) and self.kl.horizon_episodes <= self.rollout_episodes:
            raise ValueError(
                f"kl.horizon_episodes {self.kl.horizon_episodes} is not more than one rollout ({self.rollout_episodes} "
                "episodes), so the coefficient would jump; raise it to at least ten rollouts"
            )
        return self
