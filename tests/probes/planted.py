"""Language models and rewards whose bias is known, because it was put there."""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import torch

from rlhfkit.models.language import LanguageModel
from rlhfkit.rewards.source import ScoredText

LIKELY, UNLIKELY = 2.0, -4.0


def unigram(model: LanguageModel, logits: Mapping[str, float]) -> LanguageModel:
    """`model` (GPT-2 of bytes), so that every byte has a fixed logit, whatever stands before it; 0 for the others."""
    lm = model.causal_lm
    with torch.no_grad():
        lm.transformer.ln_f.weight.zero_()
        lm.transformer.ln_f.bias.zero_()
        lm.transformer.ln_f.bias[0] = 1.0
        lm.lm_head.weight.zero_()
        for letter, logit in logits.items():
            (token,) = model.encoder.continuation_ids(letter)
            lm.lm_head.weight[token, 0] = logit
    return model


class PlantedReward:
    """Noise that depends on seed and text alone, and `bonus` of the response on top."""

    def __init__(self, bonus: Callable[[str], float] = lambda response: 0.0, *, seed: int = 0) -> None:
        self.bonus, self.seed = bonus, seed

    def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
        return torch.tensor([self._noise(each.response) + self.bonus(each.response) for each in episodes])

    def _noise(self, text: str) -> float:
        digest = hashlib.blake2b(f"{self.seed} {text}".encode(), digest_size=16).digest()
        one, other = (int.from_bytes(part, "little") / 2**64 for part in (digest[:8], digest[8:]))
        return 0.3 * math.sqrt(-2 * math.log(one + 1e-18)) * math.cos(2 * math.pi * other)  # Box and Muller
