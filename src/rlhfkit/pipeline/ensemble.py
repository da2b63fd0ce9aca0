"""Further members of a reward-model ensemble: trained as the first, or heads on its trunk; and what they are worth."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhfkit.config.rewards import RewardModelRewardConfig
from rlhfkit.distributed.ranks import on_first
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.reward_model import RewardModel
from rlhfkit.pipeline.context import RunContext
from rlhfkit.pipeline.model_reward import model_reward
from rlhfkit.pipeline.parted import whole_of
from rlhfkit.pipeline.reward_training import References, encoded, save_scored, train_pairs
from rlhfkit.records import Preference
from rlhfkit.rewards.ensemble import EnsembleReward
from rlhfkit.rewards.mix import combined, disagreement
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rundir.atomic import write_directory_atomically
from rlhfkit.rundir.directory import RunDir
from rlhfkit.rundir.log import RunLog
from rlhfkit.training.checkpoint import Checkpoints
from rlhfkit.training.reward_heads import drawn_with_replacement, further_heads
from rlhfkit.training.reward_model import EncodedPair, prompts_of

__all__ = ["accuracies", "heads_on", "measured_ensemble", "trained_member"]


def trained_member(ctx: RunContext, number: int, train: Sequence[Preference], references: References) -> Path:
    """Directory of a further member, trained from the same start with a head, an order and a draw of its own.

    It lies among the checkpoints of the stage, so that a stopped run does not train it again.
    """
    config, seed = ctx.recipe.reward_model, derive_seed(ctx.recipe.seed, "reward_model", "member", number)
    room = ctx.run.checkpoints / "reward_model" / f"member-{number}"
    made = room / "model"
    if made.exists():
        return made
    name = f"reward_model {number}"
    head = "reward_model" if config.ensemble.same_head else None
    model = ctx.builder.fresh_reward_model(name=name, head=head)
    pairs = encoded(train, model, config)
    if config.ensemble.resample:
        rows = drawn_with_replacement(prompts_of(pairs), seed=derive_seed(seed, "draw"))
        pairs = [pairs[row] for row in rows]
    ctx.progress.note(f"member {number + 1} of {config.ensemble.members} of the ensemble")
    with RunLog(RunDir(room), tensorboard=False, writes=ctx.writes, warn=ctx.progress.warn) as log:
        training = {
            "seed": seed,
            "log": log,
            "checkpoints": Checkpoints(room, warn=ctx.progress.warn),
            "progress": ctx.progress,
        }
        train_pairs(ctx, "reward_model", model, pairs, config, training)
    scales = references.scales(model)
    whole = whole_of(model, lambda: ctx.builder.fresh_reward_model(name=name))

    def save() -> None:
        assert whole is not None  # the first rank saves
        with write_directory_atomically(made) as directory:
            save_scored(whole, directory, scales, max_tokens=config.max_tokens)

    on_first(save)
    return made


def heads_on(ctx: RunContext, model: RewardModel, pairs: Sequence[EncodedPair]) -> Tensor:
    """Further heads on the trunk of the first member, which is trained."""
    config = ctx.recipe.reward_model
    seed = derive_seed(ctx.recipe.seed, "reward_model", "heads")
    num = config.ensemble.members - 1
    return further_heads(model, pairs, num=num, max_tokens=config.tokens_per_pass, seed=seed)


def measured_ensemble(ctx: RunContext, test: Sequence[Preference]) -> dict[str, Any]:
    """How often each member is right on held-out pairs, and all together; and how far they disagree."""
    config = ctx.recipe.reward_model.ensemble
    source = model_reward(ctx.builder, RewardModelRewardConfig(), None)
    assert isinstance(source, EnsembleReward)
    report = {"shared": config.shared, **accuracies(source, test)}
    members = ", ".join(f"{accuracy:.1%}" for accuracy in report["members"])
    ctx.progress.note(
        f"ensemble of {len(report['members'])}: right on {members}; together {report['mean']:.1%} by the mean, "
        f"{report['min']:.1%} by the worst case; they disagree by {report['disagreement']:.2f} on average"
    )
    return report


def accuracies(source: EnsembleReward, pairs: Sequence[Preference]) -> dict[str, Any]:
    """Share of the pairs whose chosen response scores higher, by each member, by their mean and their worst case.

    Beside them the mean disagreement, in deviations of the score on reference responses.
    """
    sides = [[ScoredText(pair.prompt, "", getattr(pair, side)) for pair in pairs] for side in ("chosen", "rejected")]
    chosen, rejected = (source.score_members(side) for side in sides)
    found: dict[str, Any] = {"members": [_share_right(a, b) for a, b in zip(chosen.T, rejected.T, strict=True)]}
    for how in ("mean", "min"):
        found[how] = _share_right(*(combined(side, how) for side in (chosen, rejected)))
    found["disagreement"] = float(disagreement(torch.cat([chosen, rejected])).mean())
    return found


def _share_right(chosen: Tensor, rejected: Tensor) -> float:
    return float((chosen > rejected).float().mean() + 0.5 * (chosen == rejected).float().mean())
