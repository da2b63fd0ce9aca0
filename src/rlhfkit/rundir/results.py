"""What `reward_model.json`, `evaluation.json` and `comparison.json` hold: written by stages, read by the report."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.atomic import read_json

__all__ = [
    "CalibrationBin",
    "Comparison",
    "Confusion",
    "ConstraintResults",
    "ControlEvaluation",
    "EnsembleResults",
    "Estimate",
    "Evaluation",
    "LengthEffect",
    "Measure",
    "Method",
    "MethodPoint",
    "ModelResults",
    "Normalization",
    "PairGroup",
    "PromptResult",
    "Results",
    "RewardModelResults",
    "SamplePair",
    "SeedResult",
    "TaskResults",
    "WinRate",
    "WinRates",
    "read_results",
]


class Results(BaseModel):
    """A part of a results file; keys that a later version adds are passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True, protected_namespaces=())


class Estimate(Results):
    """A mean with its 95 % interval."""

    mean: float
    """The mean itself."""
    low: float | None = None
    """None where one value alone, or values that are all the same, allow no interval."""
    high: float | None = None
    """The interval's other end."""
    std: float | None = None
    """Deviation of the single values, not of the mean."""

    def words(self, write: Callable[[float], str]) -> str:
        """The interval, as "0.1 to 0.3"."""
        return "none" if self.low is None or self.high is None else f"{write(self.low)} to {write(self.high)}"


class ModelResults(Results):
    """One model's responses to the held-out prompts."""

    score: Estimate
    """What the reward says, without KL penalty."""
    judge: Estimate | None = None
    """What the independent judge says."""
    judge_positive_share: Estimate | None = None
    """Share of the responses to which the judge gives more than 0."""
    response_tokens: float | None = None
    """Mean length of a response."""
    eos_rate: float | None = None
    """Share of the responses that end by themselves."""
    distinct_1: float | None = None
    """Share of different words among all words of the responses."""
    distinct_2: float | None = None
    """The same for pairs of neighbouring words."""
    perplexity: float | None = None
    """Per token of the responses, under the reference model."""
    ref_kl: float | None = None
    """KL to the reference, in nats summed per sequence."""
    won_share: Estimate | None = None
    """Share of the episodes that were won, in an environment where one can win."""
    turns: float | None = None
    """Responses per episode, in an environment."""


class WinRate(Results):
    """How often the policy's response beats the SFT model's to the same prompt; a tie counts half."""

    rate: float
    """Share of the prompts on which the response after beats the one before."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    ties: float = 0.0
    """Share of ties."""


class WinRates(Results):
    """The comparison in the eyes of the reward, which was trained for, and of the judge, which was not."""

    reward: WinRate
    """By the reward."""
    judge: WinRate | None = None
    """By the judge, where there is one."""


class SamplePair(Results):
    """Both models' responses to one held-out prompt."""

    prompt: str
    """As the models read it."""
    sft: str
    """The response before."""
    policy: str
    """The response after."""
    score_sft: float | None = None
    """What the reward says of the response before."""
    score_policy: float | None = None
    """The same of the one after."""
    judge_sft: float | None = None
    """What the judge says of the response before."""
    judge_policy: float | None = None
    """The same of the one after."""


class PromptResult(Results):
    """What was said of the responses to one held-out prompt, or of one episode."""

    prompt: str
    """The beginning of the SHA-256 of the prompt, as the models read it; of an episode, of its first one."""
    score_sft: float
    """What the reward says of the response before."""
    score_policy: float
    """The same of the one after."""
    judge_sft: float | None = None
    """What the judge says of the response before, where there is one."""
    judge_policy: float | None = None
    """The same of the one after."""
    ref_kl: float
    """KL of the policy to the model before on its response, in nats summed over it."""


class Measure(Results):
    """One number of the field, of both models, each with its 95 % interval."""

    name: str
    """As the field calls it: "accuracy", "macro-F1", "chrF", "BLEU"."""
    is_share: bool
    """Whether it is a share, shown as per cent; else it is shown as it is."""
    sft: Estimate
    policy: Estimate
    difference: Estimate
    """Policy less SFT model, on the same prompts."""

    def shown(self, value: float) -> str:
        """A value of this measure as people write it: "71.2 %", or "34.9"."""
        return f"{100 * value:.1f}\u202f%" if self.is_share else f"{value:.1f}"

    def shown_difference(self, value: float) -> str:
        """A difference of two values, in points: "+9.2"."""
        return f"{100 * value if self.is_share else value:+.1f}".replace("-", "−")


class Confusion(Results):
    """Who was taken for what."""

    labels: tuple[str, ...]
    """The true classes; the last column counts responses that are none of them."""
    sft: tuple[tuple[int, ...], ...]
    """Row: true class; column: response."""
    policy: tuple[tuple[int, ...], ...]

    @property
    def has_others(self) -> bool:
        """Whether any response names none of the classes."""
        return any(row[-1] for row in (*self.sft, *self.policy))


class TaskResults(Results):
    """The likeliest responses of both models, against the right ones."""

    num: int
    """Prompts, or sentences, that were answered."""
    measures: tuple[Measure, ...]
    """The first one decides."""
    confusion: Confusion | None = None


class ConstraintResults(Results):
    """What a constraint of PPO says of both models' responses, in its own unit."""

    name: str
    """What the recipe calls it."""
    limit: float
    """What the mean is held to."""
    is_upper: bool
    """Whether it may not be above the limit, rather than not below."""
    sft: Estimate
    """Before PPO."""
    policy: Estimate
    """After it."""

    @property
    def beyond(self) -> float:
        """By how much the mean after PPO is beyond the limit; negative where it is within."""
        over = self.policy.mean - self.limit
        return over if self.is_upper else -over

    @property
    def is_broken(self) -> bool:
        """Whether the whole interval of the mean after PPO is beyond the limit."""
        nearest = self.policy.low if self.is_upper else self.policy.high
        nearest = self.policy.mean if nearest is None else nearest
        return nearest > self.limit if self.is_upper else nearest < self.limit

    @property
    def wanted(self) -> str:
        """The limit in words: "at most 20"."""
        return f"at {'most' if self.is_upper else 'least'} {self.limit:g}"


class EmaResults(Results):
    """The average of the policy's weights (`ppo.ema`), on what the policy was evaluated on."""

    model: ModelResults
    win_rate: WinRates
    """How often its response beats the one before PPO."""
    against_policy: WinRates
    """How often its response beats the policy's."""
    task: TaskResults | None = None
    """What `evaluation.metric` asks for, of the model before and of the average."""
    constraints: tuple[ConstraintResults, ...] = ()
    """What PPO held to a limit, of the model before and of the average."""


class Evaluation(Results):
    """`evaluation.json`: before PPO ("sft") and after it ("policy")."""

    num_prompts: int
    """Prompts that were answered, or episodes that were played."""
    in_environment: bool = False
    """Whether scores are returns of whole episodes in an environment."""
    reward_is_truth: bool = False
    """Whether the environment itself pays, so that its reward is what is wanted and needs no judge."""
    models: dict[str, ModelResults]
    """"sft": the model before; "policy": the one after."""
    win_rate: WinRates | None = None
    """How often the response after beats the one before."""
    judge_name: str = "judge"
    """What the judge is called in reports."""
    reward_name: str = "reward"
    """The same of the reward."""
    samples: tuple[SamplePair, ...] = ()
    """Some prompts with both responses."""
    prompts: tuple[PromptResult, ...] = ()
    """Every prompt in numbers, in the order in which they were answered. Runs whose `evaluation.seed` and test prompts
    are the same can be compared row by row."""
    task: TaskResults | None = None
    """What `evaluation.metric` asks for."""
    constraints: tuple[ConstraintResults, ...] = ()
    """What PPO held to a limit."""
    ema: EmaResults | None = None
    """The average of the policy's weights, where the run kept one."""


class MethodPoint(Results):
    """A model, or the best of n, on the held-out prompts of a comparison."""

    at: int
    """Iterations, updates, or n."""
    ref_kl: float
    """KL to the SFT model, in nats summed per sequence; of the best of n the most that it can be."""
    score: Estimate | None = None
    """What the reward says."""
    judge: Estimate | None = None
    """What the judge says."""


class Method(Results):
    """One way from the SFT model to one that people prefer."""

    name: str
    """"ppo", "dpo", "raft" or "best_of_n"."""
    points: tuple[MethodPoint, ...]
    """On the way, the last one at its end."""
    seconds: float | None = None
    """What its stage took; none for the best of n, which trains nothing."""
    needs_reward: bool = True
    """Whether it needs the reward."""
    samples_per_response: int = 1
    """Responses that are drawn for one that is given, at the last point."""


class Comparison(Results):
    """`comparison.json`: PPO and its baselines, on the same prompts."""

    num_prompts: int
    """Held-out prompts that all have answered."""
    kl: float
    """Where the methods are compared, in nats per sequence."""
    methods: tuple[Method, ...]
    """PPO is the first."""
    judge_name: str | None = None
    """What the judge is called; None where there is none."""
    reward_name: str = "reward"
    """The same of the reward."""
    reward_model_seconds: float | None = None
    """What the reward model took, where the reward is one of this run."""
    response_seconds: float | None = None
    """What one response of the SFT model took, with its score, sampled beside many others."""


class SeedResult(Results):
    """One training."""

    seed: int
    """Its seed."""
    episode_return: Estimate
    """Over the evaluation's episodes."""
    lowest: float
    """Return of the worst of these episodes."""
    highest: float
    """Return of the best."""
    num_episodes: int
    """How many were played."""
    env_steps: int
    """Steps of training."""
    training_seconds: float
    """How long it took."""


class ControlEvaluation(Results):
    """`evaluation.json` of a control task."""

    env_id: str
    seeds: tuple[SeedResult, ...]
    recorded_seed: int | None = None
    """Training whose episode is recorded, where there is a recording."""
    recorded_return: float | None = None


class CalibrationBin(Results):
    """Pairs on which the reward model was about equally sure."""

    confidence: float
    """Mean probability that it gave to its own choice."""
    accuracy: float
    count: int


class PairGroup(Results):
    """Pairs whose two responses differ by about as much, in length or in how good people found them."""

    label: str
    accuracy: float
    count: int


class Normalization(Results):
    """Raw score that became 0, and raw difference that became 1."""

    mean: float
    std: float


class LengthEffect(Results):
    """How the score of a reward model goes by the length of the response, over the reference responses."""

    correlation: float
    """Pearson's, of score and length."""
    score_per_token: float
    """Slope of the line through them, in normalised score per token."""


class EnsembleResults(Results):
    """The members of an ensemble, on the same pairs as the first of them."""

    shared: str
    """What they have in common: "nothing" or "trunk"."""
    members: tuple[float, ...]
    """Share of the pairs that each gets right."""
    mean: float
    """The same, by the mean of their scores."""
    min: float
    """The same, by the worst case."""
    disagreement: float
    """Deviation of the members' scores of one response, on average."""


class RewardModelResults(Results):
    """`reward_model.json`: the reward model on pairs it was not trained on."""

    accuracy: float
    """Share of the pairs whose chosen response gets the higher score."""
    accuracy_low: float | None = None
    """Lower end of its 95 % interval."""
    accuracy_high: float | None = None
    """Upper end."""
    num_pairs: int
    """How many pairs it was measured on."""
    baselines: dict[str, float] = {}
    """`tfidf_logistic`, `shorter`, `longer` → accuracy on the same pairs."""
    calibration: tuple[CalibrationBin, ...] = ()
    """Whether it is right as often as it says, by how sure it is."""
    by_length_difference: tuple[PairGroup, ...] = ()
    """By how much longer the chosen response is; empty where that tells no groups apart."""
    by_degree: tuple[PairGroup, ...] = ()
    """By how much better people found the chosen response."""
    ceiling: float | None = None
    """Accuracy of a perfect model on the labels of these pairs, as people disagree; where that is known."""
    normalization: Normalization | None = None
    """What its scores are scaled by."""
    length: LengthEffect | None = None
    """How its scores go by the length; None where no reference responses say so."""
    ensemble: EnsembleResults | None = None
    """All members, where there are several."""


AnyResults = TypeVar("AnyResults", bound=Results)


def read_results(path: Path, kind: type[AnyResults]) -> AnyResults | None:
    """Content of a results file, or nothing where there is none yet.

    Raises: CheckpointError where the file is damaged or does not have the keys of `kind`.
    """
    if not path.exists():
        return None
    try:
        return kind.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"])) or "the whole"
        raise CheckpointError(
            f"{path}: {key}: {fault['msg']} ({error.error_count()} faults); delete the file and run its stage again"
        ) from error
