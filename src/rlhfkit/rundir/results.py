"""What `reward_model.json` and `evaluation.json` hold: written by their stages, read by the report."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rlhfkit.errors import CheckpointError
from rlhfkit.rundir.atomic import read_json

__all__ = [
    "CalibrationBin",
    "Confusion",
    "ControlEvaluation",
    "Estimate",
    "Evaluation",
    "Measure",
    "ModelResults",
    "Normalization",
    "PairGroup",
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
    low: float | None = None
    """None where one value alone, or values that are all the same, allow no interval."""
    high: float | None = None
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
    eos_rate: float | None = None
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
    low: float
    high: float
    ties: float = 0.0
    """Share of ties."""


class WinRates(Results):
    """The comparison in the eyes of the reward, which was trained for, and of the judge, which was not."""

    reward: WinRate
    judge: WinRate | None = None


class SamplePair(Results):
    """Both models' responses to one held-out prompt."""

    prompt: str
    sft: str
    policy: str
    score_sft: float | None = None
    score_policy: float | None = None
    judge_sft: float | None = None
    judge_policy: float | None = None


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


class Evaluation(Results):
    """`evaluation.json`: before PPO ("sft") and after it ("policy")."""

    num_prompts: int
    """Prompts that were answered, or episodes that were played."""
    in_environment: bool = False
    """Whether scores are returns of whole episodes in an environment."""
    reward_is_truth: bool = False
    """Whether the environment itself pays, so that its reward is what is wanted and needs no judge."""
    models: dict[str, ModelResults]
    win_rate: WinRates | None = None
    judge_name: str = "judge"
    reward_name: str = "reward"
    samples: tuple[SamplePair, ...] = ()
    task: TaskResults | None = None
    """What `evaluation.metric` asks for."""


class SeedResult(Results):
    """One training."""

    seed: int
    episode_return: Estimate
    """Over the evaluation's episodes."""
    lowest: float
    highest: float
    num_episodes: int
    env_steps: int
    """Steps of training."""
    training_seconds: float


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


class RewardModelResults(Results):
    """`reward_model.json`: the reward model on pairs it was not trained on."""

    accuracy: float
    accuracy_low: float | None = None
    accuracy_high: float | None = None
    num_pairs: int
    baselines: dict[str, float] = {}
    """`tfidf_logistic`, `shorter`, `longer` → accuracy on the same pairs."""
    calibration: tuple[CalibrationBin, ...] = ()
    by_length_difference: tuple[PairGroup, ...] = ()
    by_degree: tuple[PairGroup, ...] = ()
    """By how much better people found the chosen response."""
    ceiling: float | None = None
    """Accuracy of a perfect model on the labels of these pairs, as people disagree; where that is known."""
    normalization: Normalization | None = None


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
