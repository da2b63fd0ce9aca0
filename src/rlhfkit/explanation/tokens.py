"""What PPO saw of each token: the numbers of an Experience, row by row."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhfkit.explanation.pieces import names_of
from rlhfkit.models.encoder import Encoder
from rlhfkit.ppo import PolicyRatio, outside_clip
from rlhfkit.rollout.engine import Reference
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.text_experience import logprobs_in_parts
from rlhfkit.rundir.explanations import TokenNumbers

__all__ = ["Learnt", "token_numbers"]


@dataclass(frozen=True)
class Learnt:
    """What the estimator and the update made of an experience; (B, T), None where there is no such thing."""

    advantages: Tensor | None = None
    """The advantages to be shown."""
    returns: Tensor | None = None
    """What the critic learns; None without one."""
    is_whitened: bool = False
    """Whether the advantages are as the loss took them, whitened over a whole rollout."""
    logprobs: Tensor | None = None
    """Of the sampled tokens in the last epoch of the update, before the step of their minibatch."""
    clip_range: float = 0.0
    """Of that update, below 1."""
    clip_range_high: float = 0.0
    """The same above 1."""
    ratio: PolicyRatio = "token"
    """What its ratio is of."""


def token_numbers(
    experience: Experience,
    rows: Sequence[int],
    learnt: Learnt,
    *,
    reference: Reference,
    encoder: Encoder,
    max_tokens: int,
) -> list[TokenNumbers]:
    """The numbers of some rows of an experience of text, in the order of their tokens.

    What the reference says is computed again, for these rows alone, in passes of `max_tokens`.
    """
    chosen = torch.tensor(rows, device=experience.mask.device)
    inputs = experience.inputs[chosen]
    old = experience.old_logprobs[chosen]
    ratio = None if learnt.logprobs is None else torch.exp(learnt.logprobs[chosen] - old)
    columns: dict[str, Tensor | None] = {
        "logprob": old,
        "ref_logprob": logprobs_in_parts(reference, inputs, max_tokens=max_tokens),
        "reward": experience.rewards[chosen],
        "value": None if learnt.returns is None else experience.old_values[chosen],
        "advantage": None if learnt.advantages is None else learnt.advantages[chosen],
        "returns": None if learnt.returns is None else learnt.returns[chosen],
        "ratio": ratio,
        "is_clipped": None if learnt.logprobs is None else _is_clipped(learnt, chosen, old, inputs.mask),
    }
    found = []
    for number, mask in enumerate(inputs.mask):
        start = int(inputs.prompt_tokens[number])
        ids = inputs.ids[number, start : start + len(mask)][mask[: inputs.ids.shape[1] - start]]
        listed = {name: tuple(x[number][mask].tolist()) for name, x in columns.items() if x is not None}
        found.append(TokenNumbers(text=names_of(encoder, ids.tolist()), is_whitened=learnt.is_whitened, **listed))
    return found


def _is_clipped(learnt: Learnt, rows: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    assert learnt.logprobs is not None
    return outside_clip(
        learnt.logprobs[rows],
        old_logprobs,
        mask,
        clip_range=learnt.clip_range,
        clip_range_high=learnt.clip_range_high,
        ratio=learnt.ratio,
    )
