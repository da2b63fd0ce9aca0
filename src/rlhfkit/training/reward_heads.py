"""Further heads on the trunk of a trained reward model: an ensemble for the price of one."""

from collections.abc import Hashable, Sequence

import numpy as np
import torch
from scipy.optimize import minimize  # type: ignore[import-untyped]
from scipy.special import expit  # type: ignore[import-untyped]
from torch import Tensor

from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.reward_model import RewardModel, score_head
from rlhfkit.training.pairs import of_each_pair
from rlhfkit.training.reward_model import EncodedPair, prompts_of, score_pairs

__all__ = ["drawn_with_replacement", "fit_head", "further_heads", "pair_features"]


def drawn_with_replacement(prompts: Sequence[Hashable], *, seed: int) -> list[int]:
    """Rows of a bootstrap draw: as many prompts as there are, with replacement, each with all of its rows.

    `prompts` says of which prompt each row is. Rows of one prompt hang together, so they are drawn together.
    """
    rows: dict[Hashable, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows.setdefault(prompt, []).append(row)
    groups = list(rows.values())
    return [
        row for index in np.random.default_rng(seed).integers(len(groups), size=len(groups)) for row in groups[index]
    ]


def fit_head(differences: np.ndarray, margins: np.ndarray, anchor: np.ndarray, *, std: float) -> np.ndarray:
    """The head (d,) that is likeliest given N pairs, whose chosen less rejected features are `differences` (N, d).

    argmin_w  sum_i -log sigmoid(w · differences[i] - margins[i]) + |w - anchor|^2 / (2 std^2)

    With an anchor that is drawn from the prior N(0, std^2) the heads of an ensemble differ as much as the prior does
    where the pairs say nothing; without, they would all be 0 there, and agree.
    Source: Pearce et al. 2018, arXiv 1810.05546 (anchored ensembling).
    """

    def loss(head: np.ndarray) -> tuple[float, np.ndarray]:
        logits, away = differences @ head - margins, head - anchor
        value = np.logaddexp(0.0, -logits).sum() + (away @ away) / (2 * std**2)
        return float(value), -(expit(-logits) @ differences) + away / std**2

    found = minimize(loss, anchor, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x, dtype=np.float64)


@torch.no_grad()
def pair_features(model: RewardModel, pairs: Sequence[EncodedPair], *, max_tokens: int) -> Tensor:
    """What the head of `model` reads of each pair, chosen less rejected (N, width)."""
    width = score_head(model.classifier).weight.shape[1]

    def values_of(rows: list[int]) -> Tensor:
        chosen, rejected = score_pairs(model, [pairs[row] for row in rows])
        return (chosen - rejected)[:, 1:]

    model.further_heads = torch.eye(width)  # heads that read one feature each, so that parted weights come together too
    try:
        return of_each_pair(pairs, values_of, width=width, max_tokens=max_tokens, device=model.device)
    finally:
        model.further_heads = None


def further_heads(model: RewardModel, pairs: Sequence[EncodedPair], *, num: int, max_tokens: int, seed: int) -> Tensor:
    """`num` heads (num, width) on the trunk of `model`, fitted to draws of the pairs, with anchors of their own."""
    features = pair_features(model, pairs, max_tokens=max_tokens).double().numpy()
    margins, prompts = np.array([pair.margin for pair in pairs]), prompts_of(pairs)
    std = (features.shape[1] + 1) ** -0.5  # as heads begin
    heads = []
    for number in range(num):
        rows = drawn_with_replacement(prompts, seed=derive_seed(seed, "draw", number))
        anchor = np.random.default_rng(derive_seed(seed, "anchor", number)).normal(0.0, std, features.shape[1])
        heads.append(fit_head(features[rows], margins[rows], anchor, std=std))
    return torch.tensor(np.stack(heads), dtype=torch.float32)
