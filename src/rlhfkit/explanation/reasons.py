"""Why the reward gave a response its score, by several methods, each with the check that it passes or fails."""

from collections.abc import Sequence
from itertools import pairwise

from rlhfkit.errors import MissingDependencyError
from rlhfkit.explanation.deletion import FEWEST_TOKENS, Ablated, ablation, check_by_deletion, effects_of
from rlhfkit.explanation.gradients import Combine, prefix_scores, read_by, reward_gradients
from rlhfkit.explanation.pieces import sentences_of, spans_of
from rlhfkit.rewards.ensemble import EnsembleReward
from rlhfkit.rewards.model import RewardModelReward
from rlhfkit.rewards.source import RewardSource, ScoredText
from rlhfkit.rundir.explanations import Attribution, Reasons

__all__ = ["ABLATION", "GRADIENTS", "PREFIXES", "reasons_for"]

ABLATION = "leaving out single tokens"
GRADIENTS = "integrated gradients"
PREFIXES = "differences of prefix scores"


def reasons_for(reward: RewardSource, episode: ScoredText, pieces: Sequence[str], *, source: str, seed: int) -> Reasons:
    """What the score of one response rests on; `pieces` are the texts of its tokens, `source` names the reward.

    Any source of rewards is asked about the response without single tokens, runs of words and sentences. Of a reward
    model that rlhfkit trained, or an ensemble of them, there are prefix scores and integrated gradients too.
    Raises: RewardError where the reward source fails.
    """
    ablated = Ablated(reward, episode, pieces)
    attributions = [Attribution(method=ABLATION, values=ablation(ablated))]
    prefixes, notes = None, []
    members, combine = _members_of(reward)
    reads = [read for member in members if (read := read_by(member, episode, pieces))]
    if not members:
        notes.append(f"prefix scores and gradients are of reward models that rlhfkit trained; this is a {source}")
    elif len(reads) < len(members):
        notes.append("the reward model reads a part of the response alone, so nothing is said of its inside")
    else:
        prefixes = prefix_scores(reads, combine)
        steps = [after - before for before, after in pairwise(prefixes)]
        attributions.append(Attribution(method=PREFIXES, values=(0.0, *steps)))
        try:
            values, completeness = reward_gradients(reads, combine)
            attributions.append(Attribution(method=GRADIENTS, values=values, completeness=completeness))
        except MissingDependencyError as error:
            notes.append(str(error))
    if len(pieces) < FEWEST_TOKENS:
        notes.append(f"fewer than {FEWEST_TOKENS} tokens are too few to check an attribution")
    return Reasons(
        source=source,
        score=ablated.score,
        prefix_scores=prefixes,
        attributions=tuple(
            attribution.model_copy(update={"check": check_by_deletion(ablated, attribution.values, seed=seed)})
            for attribution in attributions
        ),
        spans=effects_of(ablated, spans_of(episode.response)),
        sentences=effects_of(ablated, sentences_of(episode.response)),
        notes=tuple(notes),
    )


def _members_of(reward: RewardSource) -> tuple[tuple[RewardModelReward, ...], Combine]:
    """The reward models that score, none where others do, and what their scores come to."""
    match reward:
        case RewardModelReward():
            return (reward,), lambda scores: scores[:, 0]
        case EnsembleReward():
            return reward.members, reward.combine
        case _:
            return (), lambda scores: scores[:, 0]
