"""Texts that the policy goes on learning beside PPO, so that it does not forget them: InstructGPT's PPO-ptx."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhfkit.errors import DataError
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.metrics import Metrics
from rlhfkit.models.language import TextPolicy
from rlhfkit.training.sft import LearntText, learn

__all__ = ["Ptx"]


@dataclass(frozen=True)
class Ptx:
    """The further term of PPO's loss, and its texts.

    loss = PPO's - coef * sum over the texts' learnt tokens of log p(token | tokens before) / their number

    Every minibatch of PPO has its own `num_texts`, all of them being learnt before one comes again. Which ones they
    are follows from the number of the minibatch alone, so a stopped run goes on with those that were next.
    Source: Ouyang et al. 2022, arXiv 2203.02155, eq. 2; the log-probabilities are those at temperature 1.
    """

    policy: TextPolicy
    texts: Sequence[LearntText]
    coef: float
    num_texts: int
    """Of a minibatch, all ranks together."""
    tokens_per_pass: int
    seed: int

    def __post_init__(self) -> None:
        if not self.texts:
            raise DataError("ppo.ptx has no rows to learn from; give more data, or set ppo.ptx.coef = 0")

    def texts_of(self, minibatch: int) -> list[LearntText]:
        """The texts of the minibatch of this number, counted over the whole run."""
        first = minibatch * self.num_texts
        places = [divmod(place, len(self.texts)) for place in range(first, first + self.num_texts)]
        orders = {
            epoch: shuffled(len(self.texts), derive_seed(self.seed, "ptx", epoch))
            for epoch in {epoch for epoch, _ in places}
        }
        return [self.texts[orders[epoch][place]] for epoch, place in places]

    def backward(self, minibatch: int, metrics: Metrics) -> None:
        """Add the gradient of this rank's share of the texts to that of PPO; the metric is the loss without `coef`."""
        learn(
            self.policy.language_model,
            self.texts_of(minibatch),
            metrics,
            tokens_per_pass=self.tokens_per_pass,
            width=None,
            coef=self.coef,
            logprobs=self.policy.packed_logprobs,
            name="ppo/ptx_loss",
        )
