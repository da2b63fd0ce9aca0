"""Direct preference optimisation: a policy learns from pairs by itself, without a reward model or samples."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhfkit.config.training import DpoConfig
from rlhfkit.machine.progress import Progress
from rlhfkit.metrics import Metrics
from rlhfkit.models.encoder import Encoder
from rlhfkit.models.language import LanguageModel
from rlhfkit.padding import Sequences
from rlhfkit.ppo.masked import check_shapes, masked_sum
from rlhfkit.records import Preference
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.pairs import of_each_pair, pair_passes
from rlhfkit.training.rates import decided
from rlhfkit.training.supervised import SupervisedTask, split_validation, train_supervised

__all__ = ["DpoPair", "Side", "dpo_loss", "encode_dpo_pairs", "ref_logprobs_of", "train_dpo"]

TEMPERATURE = 1.0
"""Of the logprobs: the model's own distribution, as in the paper, whatever PPO samples at."""


@dataclass(frozen=True, slots=True)
class Side:
    """A response after its prompt, in tokens."""

    prompt: list[int]
    response: list[int]
    """At least one token."""

    def __len__(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class DpoPair:
    """Two responses to a prompt, the first preferred."""

    chosen: Side
    rejected: Side
    prompt: Hashable
    """What tells which pairs are of the same prompt."""


def encode_dpo_pairs(
    preferences: Sequence[Preference], encoder: Encoder, *, max_prompt_tokens: int, max_tokens: int
) -> tuple[list[DpoPair], int]:
    """(pairs as the policy reads and writes them, how many of the preferences were cut or left out to fit).

    Prompts are cut as PPO's are, responses lose their end, and a pair is left out where nothing of one is left.
    """
    pairs, num_cut = [], 0
    for preference in preferences:
        prompt = encoder.encode(preference.prompt, max_tokens=max_prompt_tokens)
        joined = [encoder.joined(prompt.prompt, text) for text in (preference.chosen, preference.rejected)]
        num_cut += prompt.was_cut or any(len(before) + len(after) > max_tokens for before, after in joined)
        chosen, rejected = (Side(before, after[: max(0, max_tokens - len(before))]) for before, after in joined)
        if chosen.response and rejected.response:
            pairs.append(DpoPair(chosen, rejected, prompt.ids))
    return pairs, num_cut


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float,
    kind: Literal["sigmoid", "ipo"] = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """(B,) loss of pairs, from the logprobs (B,) of whole responses, each a sum over its tokens.

    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    sigmoid: -(1 - label_smoothing) log sigmoid(beta h) - label_smoothing log sigmoid(-beta h)
    ipo:     (h - 1 / (2 beta))^2

    beta h is the implicit reward of the chosen response less that of the rejected one; `ref_...` are those of the
    frozen reference. In "ipo" h stays a sum too, as in the paper, so that its goal is in the unit of the KL, nats per
    response; a mean over tokens, which others take there, wants 1 / (2 beta) nats from each token instead.
    Raises: ShapeError, because (B,) against (B, 1) would broadcast to all pairs of pairs in silence.
    Source: Rafailov et al. 2023, arXiv 2305.18290, eq. 7; label smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences & relationship to IPO", eq. 3; IPO: Azar et al. 2023, arXiv 2310.12036, eq. 17.
    """
    check_shapes(chosen=chosen, rejected=rejected, ref_chosen=ref_chosen, ref_rejected=ref_rejected)
    h = (chosen - ref_chosen) - (rejected - ref_rejected)
    if kind == "ipo":
        return (h - 1 / (2 * beta)).square()
    return -(1 - label_smoothing) * logsigmoid(beta * h) - label_smoothing * logsigmoid(-beta * h)


def train_dpo(
    model: LanguageModel,
    pairs: Sequence[DpoPair],
    ref_logprobs: Tensor,
    config: DpoConfig,
    *,
    stage: str,
    seed: int,
    log: RunLog,
    checkpoints: Checkpoints,
    progress: Progress,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """Train `model`, which is the reference now, on `pairs`; the last validation metrics.

    `ref_logprobs` (N, 2) are those of `ref_logprobs_of`. `evaluate` is asked whenever the rows held out are measured.
    Raises: TrainingError where the loss or a gradient is not finite.
    """
    config = config.model_copy(update={"optim": decided(config.optim, model, "dpo")})
    groups = [pair.prompt for pair in pairs]
    train, held_out = split_validation(len(pairs), config.validation_share, seed, groups=groups)

    def run(rows: Sequence[int], metrics: Metrics, *, denominator: int | None) -> None:
        for part, counts in pair_passes(pairs, rows, max_tokens=config.tokens_per_pass, device=model.device):
            chosen, rejected = pair_logprobs(model, [pairs[row] for row in part])
            ref_chosen, ref_rejected = ref_logprobs[part].to(chosen.device).unbind(1)
            loss = dpo_loss(
                chosen,
                rejected,
                ref_chosen,
                ref_rejected,
                beta=config.beta,
                kind=config.loss,
                label_smoothing=config.label_smoothing,
            ).sum()
            if counts:
                rewards = config.beta * (chosen - ref_chosen), config.beta * (rejected - ref_rejected)
                _measure(metrics, loss, *rewards)
            if denominator is not None:
                torch.autograd.backward(loss / denominator * counts)

    @torch.no_grad()
    def validate(metrics: Metrics) -> None:
        run(held_out, metrics, denominator=None)

    task = SupervisedTask(
        stage=stage,
        what="policy",
        module=model,
        num_rows=len(train),
        minibatch_rows=config.minibatch_pairs,
        backward=lambda rows, metrics: run([train[row] for row in rows], metrics, denominator=len(rows)),
        validate=validate,
        detail=_detail,
        evaluate=evaluate,
    )
    return train_supervised(task, config, seed=seed, log=log, checkpoints=checkpoints, progress=progress)


@torch.no_grad()
def ref_logprobs_of(
    model: LanguageModel,
    pairs: Sequence[DpoPair],
    *,
    max_tokens: int,
    on_finished: Callable[[int], None] = lambda num: None,
) -> Tensor:
    """(N, 2) logprobs of the chosen and the rejected responses under `model`, on the CPU."""

    def values_of(rows: list[int]) -> Tensor:
        return torch.stack(pair_logprobs(model, [pairs[row] for row in rows]), dim=1)

    return of_each_pair(pairs, values_of, width=2, max_tokens=max_tokens, device=model.device, on_finished=on_finished)


def pair_logprobs(model: LanguageModel, pairs: Sequence[DpoPair]) -> tuple[Tensor, Tensor]:
    """(logprobs of the chosen responses (B,), those of the rejected ones (B,)), summed over tokens, in one pass."""
    sides = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    sequences = Sequences.join(
        [side.prompt for side in sides],
        [side.response for side in sides],
        pad=model.encoder.pad_id,
        device=model.device,
    )
    logprobs = masked_sum(model.logprobs(sequences, temperature=TEMPERATURE), sequences.mask, dim=1)
    return logprobs[: len(pairs)], logprobs[len(pairs) :]


def _measure(metrics: Metrics, loss: Tensor, chosen: Tensor, rejected: Tensor) -> None:
    """Add what a part says; `chosen` and `rejected` (B,) are implicit rewards."""
    num = len(chosen)
    metrics.add("loss", loss, num)
    metrics.add("accuracy", (chosen > rejected).sum() + 0.5 * (chosen == rejected).sum(), num)
    metrics.add("margin", (chosen - rejected).sum(), num)
    metrics.add("chosen_reward", chosen.sum(), num)
    metrics.add("rejected_reward", rejected.sum(), num)


def _detail(metrics: Mapping[str, float]) -> str:
    words = [f"loss {metrics['loss']:.3f}"]
    if "validation/accuracy" in metrics:
        words.append(f"validation accuracy {metrics['validation/accuracy']:.2f}")
    if "evaluation/ref_kl" in metrics:
        words.append(f"KL {metrics['evaluation/ref_kl']:.1f} nats")
    return " · ".join(words)
