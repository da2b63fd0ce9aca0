"""Logit lens: the head of a model applied to what each of its layers leaves behind, before and after PPO."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhfkit.explanation.change import exact_kl
from rlhfkit.explanation.pieces import token_name
from rlhfkit.models.frozen_layers import final_norm
from rlhfkit.models.language import LanguageModel
from rlhfkit.models.layers import hidden_by_layer
from rlhfkit.padding import Sequences
from rlhfkit.rundir.explanations import Lens, LensToken

__all__ = ["lens_distributions", "lens_of"]


@torch.inference_mode()
def lens_distributions(model: LanguageModel, inputs: Sequences) -> Tensor:
    """(L, N, V) log-distributions after each of the L layers, where the N sampled tokens of one row are predicted.

    log softmax(head(norm(h[l])))                                the last one is what the model itself computes
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".
    """
    _, positions, _ = inputs.predicting()
    hidden = [of_layer[0, positions] for of_layer in hidden_by_layer(model.causal_lm, inputs.ids)]
    return torch.stack(
        [model.head(final_norm(model.causal_lm, state[None]))[0].float().log_softmax(-1) for state in hidden]
    )


@torch.inference_mode()
def lens_of(policy: LanguageModel, reference: LanguageModel, inputs: Sequences, *, num_tokens: int = 4) -> Lens | None:
    """What changes in which layer, for one row; None where the two models have different numbers of layers.

    Small models, and those whose head is not their embedding, read badly in their first layers.
    """
    after, before = lens_distributions(policy, inputs), lens_distributions(reference, inputs)
    if len(after) != len(before):
        return None
    kl = exact_kl(after, before)
    likeliest, old = after[-1].argmax(-1), before[-1].argmax(-1)
    changed = (likeliest != old).nonzero().flatten()
    places = changed[kl[-1, changed].argsort(descending=True)][:num_tokens].tolist()
    return Lens(
        kl=tuple(kl.mean(1).tolist()),
        agreement=tuple((after.argmax(-1) == likeliest).float().mean(1).tolist()),
        tokens=tuple(
            _rise(policy, place, int(likeliest[place]), int(old[place]), after[:, place], before[:, place])
            for place in places
        ),
    )


def _rise(policy: LanguageModel, place: int, new: int, old: int, after: Tensor, before: Tensor) -> LensToken:
    """How one token rises through the layers of the policy; `after`, `before` (L, V)."""

    def listed(logprobs: Tensor, token: int) -> tuple[float, ...]:
        return tuple(logprobs[:, token].exp().tolist())

    above = (after[:, new] > after[:, old]).tolist()
    return LensToken(
        index=place,
        new=token_name(policy.encoder, new),
        old=token_name(policy.encoder, old),
        new_after=listed(after, new),
        old_after=listed(after, old),
        new_before=listed(before, new),
        overtakes=_stays_from(above),
    )


def _stays_from(above: Sequence[bool]) -> int | None:
    """The first layer, from 1, from which on it stays above; None where it is not above in the end."""
    below = [layer for layer, is_above in enumerate(above, start=1) if not is_above]
    first = max(below, default=0) + 1
    return first if first <= len(above) else None
