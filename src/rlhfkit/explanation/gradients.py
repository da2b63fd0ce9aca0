"""Inside reward models: their score after each token, and integrated gradients on their embeddings."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhfkit.errors import MissingDependencyError
from rlhfkit.explanation.alignment import at_ends, shared_out
from rlhfkit.explanation.pieces import pieces_of
from rlhfkit.models.layers import trunk_hidden
from rlhfkit.models.lora import unwrapped
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rundir.explanations import Completeness

__all__ = ["Combine", "Read", "integrated_gradients", "prefix_scores", "read_by", "reward_gradients"]

Combine = Callable[[Tensor], Tensor]
"""What the scores (N, K) of all members come to (N,)."""
STEPS = (50, 150, 400)
"""Points on the way from the baseline: more where fewer leave too large an error."""
LARGEST_ERROR = 0.05
ROWS_OF_A_PASS = 25


@dataclass(frozen=True)
class Read:
    """A response as a reward model reads it."""

    reward: RewardModelReward
    ids: Tensor
    """(1, T) prompt and response."""
    start: int
    """Where the response begins."""
    pieces: list[str]
    """Text of each token of the response."""
    onto: list[str]
    """The same by the policy's tokens."""

    def scores(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """Normalised scores (N, heads) of hidden states (N, width) at the end of responses of so many tokens (N,)."""
        return self.reward.normalised(self.reward.model.read(hidden.float()), lengths.to(hidden.device))


def read_by(reward: RewardModelReward, episode: ScoredText, pieces: Sequence[str]) -> Read | None:
    """The response, whose tokens of the policy are `pieces`; None where the reward model reads only a part of it."""
    encoder = reward.model.encoder
    before, after = encoder.joined(episode.prompt, episode.response, finished=episode.finished)
    if len(before) + len(after) > reward.max_tokens or not after:
        return None
    onto = list(pieces)
    blanks = len("".join(onto)) - len("".join(onto).lstrip())
    if blanks and not isinstance(episode.prompt.content, str):  # which are not scored in a conversation
        onto = _without_first(onto, blanks)
    ids = torch.tensor([[*before, *after]], device=reward.model.device)
    return Read(reward, ids, len(before), pieces_of(encoder, after), onto)


def _without_first(pieces: Sequence[str], num: int) -> list[str]:
    """The pieces without the first `num` letters of all."""
    found = []
    for piece in pieces:
        cut = min(num, len(piece))
        found.append(piece[cut:])
        num -= cut
    return found


@torch.inference_mode()
def prefix_scores(reads: Sequence[Read], combine: Combine) -> tuple[float, ...]:
    """The score if the response ended with each token of the policy, of one forward pass of each member.

    The differences telescope to the score. The models have learnt to score at the end alone, so this is a hint.
    """
    columns: list[list[float]] = []
    for read in reads:
        hidden = trunk_hidden(read.reward.model.classifier, read.ids)[0, read.start - 1 :]
        for head in read.scores(hidden, torch.arange(len(hidden))).unbind(1):
            scores = head.tolist()
            columns.append(at_ends(scores[1:], read.pieces, read.onto, before=scores[0]))
    return tuple(combine(torch.tensor(columns).T).tolist())


def reward_gradients(reads: Sequence[Read], combine: Combine) -> tuple[tuple[float, ...], Completeness]:
    """(share of each token of the policy in score - score of the baseline, whether the shares add up to that).

    In the baseline each token of the response has the mean of all embeddings; the prompt stays as it is. An embedding
    of zeros would not do: a norm divides by the length of its input, and so sees no way from there to here. The
    embeddings of all members go that way together, and a token has the sum of its shares in all of them.
    Raises: MissingDependencyError without Captum.
    """

    def score(*ids: Tensor) -> Tensor:
        columns = []
        for read, rows in zip(reads, ids, strict=True):
            last = trunk_hidden(read.reward.model.classifier, rows)[:, -1]
            columns.append(read.scores(last, torch.full((len(rows),), len(read.pieces))))
        return combine(torch.cat(columns, dim=1))

    with ExitStack() as stack:
        layers, baselines = [], []
        for read in reads:
            layer, mean_id = stack.enter_context(_with_mean_token(unwrapped(read.reward.model.classifier)))
            layers.append(layer)
            baselines.append(read.ids.clone())
            baselines[-1][:, read.start :] = mean_id
        values, completeness = integrated_gradients(score, layers, [read.ids for read in reads], baselines)
    shares = [shared_out(own[read.start :], read.pieces, read.onto) for read, own in zip(reads, values, strict=True)]
    return tuple(map(math.fsum, zip(*shares, strict=True))), completeness


def integrated_gradients(
    score: Callable[..., Tensor], layers: Sequence[nn.Module], ids: Sequence[Tensor], baselines: Sequence[Tensor]
) -> tuple[list[list[float]], Completeness]:
    """(attribution of each token (T,) of each embedding, whether they add up), by layer integrated gradients.

    attribution[t] = sum over the width of (e[t] - e0[t]) * mean over the way from e0 to e of d score / d e[t]

    `score` takes ids (N, T) for each of the embeddings `layers` and gives (N,); `ids` and `baselines` are (1, T) each.
    Where the sum misses score(ids) - score(baselines) by 5 % or more, the way is cut into more steps, up to 400.
    Raises: MissingDependencyError without Captum.
    Source: Sundararajan et al. 2017, arXiv 1703.01365.
    """
    try:
        from captum.attr import LayerIntegratedGradients  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            f"integrated gradients need a package that is missing ({error.name}); pip install 'rlhfkit[explain]'"
        ) from error
    with torch.no_grad():
        expected = float(score(*ids)[0] - score(*baselines)[0])
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # no embedding hangs on another one
        method = LayerIntegratedGradients(score, list(layers))
    for num_steps in STEPS:
        found = method.attribute(
            tuple(ids), baselines=tuple(baselines), n_steps=num_steps, internal_batch_size=ROWS_OF_A_PASS
        )
        values = [of_layer[0].double().sum(-1).tolist() for of_layer in found]
        total = math.fsum(map(math.fsum, values))
        missed = abs(total - expected) / max(abs(expected), 1e-6)
        completeness = Completeness(
            total=total, expected=expected, error=missed, num_steps=num_steps, is_complete=missed < LARGEST_ERROR
        )
        if completeness.is_complete:
            break
    return values, completeness


class _WithMeanToken(nn.Module):
    """An embedding with one token more, which has the mean of all embeddings; gradients start behind it."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.num = int(embedding.get_parameter("weight").shape[0])
        with torch.no_grad():
            ids = torch.arange(self.num, device=embedding.get_parameter("weight").device)
            # As the layer gives them, since some families scale what they look up.
            self.mean = embedding(ids).float().mean(0)

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.embedding(ids.clamp(max=self.num - 1))
        found = torch.where((ids == self.num)[..., None], self.mean.to(found.dtype), found)
        return found.requires_grad_() if torch.is_grad_enabled() and not found.requires_grad else found


@contextmanager
def _with_mean_token(model: Any) -> Iterator[tuple[nn.Module, int]]:
    """In the block the model's embedding knows one token more; (the embedding, the id of that token)."""
    own = model.get_input_embeddings()
    layer = _WithMeanToken(own)
    model.set_input_embeddings(layer)
    try:
        yield layer, layer.num
    finally:
        model.set_input_embeddings(own)
