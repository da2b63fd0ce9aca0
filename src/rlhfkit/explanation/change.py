"""What PPO has changed: distributions over the whole vocabulary at each token, and where likeliest responses part."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.explanation.pieces import token_name
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.padding import Sequences
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.rundir.explanations import Divergence, Position, Shift

__all__ = ["divergences", "exact_kl", "positions_of"]


def exact_kl(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """KL(policy || reference) in nats at each place (…), from log-distributions over the vocabulary (…, V).

    sum over tokens v of exp(logprobs[v]) * (logprobs[v] - ref_logprobs[v])      (0 where the policy's probability is)
    """
    probabilities = logprobs.exp()
    terms = probabilities * (logprobs - ref_logprobs)
    return torch.where(probabilities > 0, terms, 0.0).sum(-1)


@torch.inference_mode()
def positions_of(
    policy: LanguageModel, reference: LanguageModel, inputs: Sequences, *, temperature: float, num_shifts: int = 5
) -> list[tuple[Position, ...]]:
    """For each row the change at each of its sampled tokens, at the sampling temperature.

    A row at a time, since the logits of all tokens over all of the vocabulary exist at once.
    """
    found = []
    for row in range(len(inputs)):
        part = inputs[torch.tensor([row], device=inputs.ids.device)].trimmed()
        after, before = (_distributions(model, part, temperature) for model in (policy, reference))
        kl = exact_kl(after, before).tolist()
        gained = after.exp() - before.exp()
        up, down = gained.topk(num_shifts).indices, (-gained).topk(num_shifts).indices
        found.append(
            tuple(
                Position(
                    kl=kl[place],
                    up=_shifts(policy, up[place], before[place], after[place], gained[place]),
                    down=_shifts(policy, down[place], before[place], after[place], -gained[place]),
                )
                for place in range(len(kl))
            )
        )
    return found


def _distributions(model: LanguageModel, inputs: Sequences, temperature: float) -> Tensor:
    """(N, V) log-probabilities of the whole vocabulary where the N sampled tokens were drawn."""
    hidden, _ = model.predicting_hidden(inputs)
    return (model.head(hidden).float() / temperature).log_softmax(-1)


def _shifts(model: LanguageModel, tokens: Tensor, before: Tensor, after: Tensor, gained: Tensor) -> tuple[Shift, ...]:
    """The tokens that gained anything at all."""
    return tuple(_shift(model, token, before, after) for token in tokens.tolist() if float(gained[token]) > 1e-6)


def _shift(model: LanguageModel, token: int, before: Tensor, after: Tensor) -> Shift:
    return Shift(
        text=token_name(model.encoder, token), before=float(before[token].exp()), after=float(after[token].exp())
    )


def divergences(
    policy: LanguageModel, reference: LanguageModel, prompts: Sequence[EncodedPrompt], *, rollout: RolloutConfig
) -> list[Divergence]:
    """Where the likeliest responses of both part, for each prompt, with probabilities at the sampling temperature."""
    ids = [list(prompt.ids) for prompt in prompts]
    before, after = (generate(model, ids, rollout, seeds=None) for model in (reference, policy))
    return [
        _divergence(policy, reference, prompt.ids, old, new, temperature=rollout.temperature)
        for prompt, old, new in zip(prompts, before, after, strict=True)
    ]


@torch.inference_mode()
def _divergence(
    policy: LanguageModel,
    reference: LanguageModel,
    prompt: Sequence[int],
    old: Response,
    new: Response,
    *,
    temperature: float,
) -> Divergence:
    before, after = reference.encoder.decode(old.ids), policy.encoder.decode(new.ids)
    pairs = list(zip(old.ids, new.ids, strict=False))
    index = next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs))
    if index == len(pairs):  # one may be cut where the other goes on, or both are the same
        same = len(old.ids) == len(new.ids)
        return Divergence(
            before=before, after=after, shared=policy.encoder.decode(new.ids[:index]), index=None if same else index
        )
    token = [old.ids[index]]
    part = Sequences.join([[*prompt, *new.ids[:index]]], [token], pad=policy.encoder.pad_id, device=policy.device)
    at_policy, at_reference = (_distributions(model, part, temperature)[0] for model in (policy, reference))
    return Divergence(
        before=before,
        after=after,
        shared=policy.encoder.decode(new.ids[:index]),
        index=index,
        old=_shift(policy, old.ids[index], at_reference, at_policy),
        new=_shift(policy, new.ids[index], at_reference, at_policy),
    )
