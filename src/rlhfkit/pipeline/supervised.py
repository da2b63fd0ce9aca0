"""What the supervised stages have in common."""

from rlhfkit.config.stages import Stage
from rlhfkit.config.training import LoopConfig, SupervisedConfig
from rlhfkit.models.inspection import context_of
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.lora import unwrapped
from rlhfkit.models.reward_model import RewardModel
from rlhfkit.pipeline.context import RunContext
from rlhfkit.training.supervised import num_supervised_updates, num_training_rows

__all__ = ["warn_of_few", "within_context"]

FEW_UPDATES = 20
"""Below so many updates of a supervised stage weights hardly move, which is a warning."""


def within_context(max_tokens: int, model: LanguageModel | RewardModel) -> int:
    """`max_tokens`, or as many as the model's positions allow if that is less."""
    network = model.causal_lm if isinstance(model, LanguageModel) else model.classifier
    return min(max_tokens, context_of(unwrapped(network).config) or max_tokens)


def warn_of_few(
    ctx: RunContext, stage: Stage, num_rows: int, config: LoopConfig, *, minibatch_rows: int, unit: str
) -> None:
    """Warn where the rows make so few updates that little can be learnt; `unit` is what a row is called."""
    num_rows = num_training_rows(num_rows, config.validation_share if isinstance(config, SupervisedConfig) else 0.0)
    if (num_updates := num_supervised_updates(num_rows, minibatch_rows, config.epochs)) < FEW_UPDATES:
        ctx.progress.warn(
            f"{stage}: {num_rows} {unit} make {num_updates} updates, which teach little; raise {stage}.epochs or "
            f"{stage}.optim.learning_rate, lower {stage}.minibatch_{unit}, or give more data"
        )
