"""Preferences that people's votes amount to."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rlhfkit.errors import DataError
from rlhfkit.feedback.exchange.labels import Content, shared_turns, turns_of, votes_by_pair
from rlhfkit.feedback.votes import LARGEST_STRENGTH, Pair, Part, Side, Vote
from rlhfkit.records import Conversation, Preference, Prompt

__all__ = ["Aggregated", "Outcome", "Ties", "outcome_of", "preferences_of", "split_pair"]

Ties = Literal["drop", "ignore"]
Outcome = Literal["a", "b", "tie", "both_bad", "skipped", "too_few", "without_votes"]


@dataclass(frozen=True, slots=True)
class Aggregated:
    """Preferences of the majority, and what became of the pairs that are none; each pair is counted once."""

    preferences: list[Preference]
    """In the order of the pairs."""
    pair_ids: list[str]
    """Pair of each preference."""
    strengths: list[float]
    """Mean degree of the votes that agree with each preference, from 1 to 4."""
    leads: list[int]
    """Votes for each preference less those for the other response, at least 1."""
    num_pairs: int
    """Pairs of the part and rounds that were asked for."""
    num_tied: int
    """Pairs without a majority for either response: ties, or as many for the one as for the other."""
    num_both_bad: int
    """Pairs that most found bad on both sides."""
    num_skipped: int
    """Pairs that were only skipped."""
    num_too_few: int
    """Pairs with fewer votes than asked for."""
    num_without_votes: int
    unusable: tuple[str, ...]
    """One message for each pair with a majority that makes no preference, as its conversations part too early."""


def preferences_of(
    pairs: Sequence[Pair],
    votes: Sequence[Vote],
    *,
    part: Part | None = None,
    rounds: Collection[int] | None = None,
    use_margin: bool = False,
    min_votes: int = 1,
    ties: Ties = "drop",
) -> Aggregated:
    """Preferences that the standing `votes` amount to, by `outcome_of`, of one part and of some rounds only.

    Surplus votes count: a lease that ran out says nothing of the choice, and a person's work is not thrown away. The
    margin, if asked for, is the mean degree of the votes that agree, over the largest: more than 0, at most 1.
    Raises: DataError where votes and pairs do not belong together, as `votes_by_pair` says.
    """
    found = votes_by_pair(pairs, votes)
    outcomes: Counter[Outcome] = Counter()
    preferences, pair_ids, strengths, leads, unusable = [], [], [], [], []
    for pair in pairs:
        if (part is not None and pair.part != part) or (rounds is not None and pair.round not in rounds):
            continue
        outcome = outcome_of(found[pair.id], min_votes=min_votes, ties=ties)
        outcomes[outcome] += 1
        if outcome not in ("a", "b"):
            continue
        degrees = [abs(vote.choice.strength) for vote in found[pair.id] if vote.choice.preferred == outcome]
        strength = sum(degrees) / len(degrees)
        try:
            preference = _preference(pair, outcome, strength / LARGEST_STRENGTH if use_margin else None)
        except DataError as error:
            unusable.append(f'pair "{pair.id}": {error}')
            continue
        preferences.append(preference)
        pair_ids.append(pair.id)
        strengths.append(strength)
        leads.append(len(degrees) - sum(vote.choice.preferred not in (None, outcome) for vote in found[pair.id]))
    return Aggregated(
        preferences,
        pair_ids,
        strengths,
        leads,
        num_pairs=outcomes.total(),
        num_tied=outcomes["tie"],
        num_both_bad=outcomes["both_bad"],
        num_skipped=outcomes["skipped"],
        num_too_few=outcomes["too_few"],
        num_without_votes=outcomes["without_votes"],
        unusable=tuple(unusable),
    )


def outcome_of(votes: Sequence[Vote], *, min_votes: int = 1, ties: Ties = "drop") -> Outcome:
    """What the votes on one pair amount to.

    A response is preferred where more people are for it than for the other, and more than find neither better (ties
    and both bad; with ties = "ignore" only both bad). Skips do not count, towards `min_votes` neither.
    """
    counts = Counter(vote.choice.preferred or vote.choice.kind for vote in votes)
    num_said = counts.total() - counts["skip"]
    if num_said == 0:
        return "skipped" if votes else "without_votes"
    if num_said < min_votes:
        return "too_few"
    undecided = counts["both_bad"] + (counts["tie"] if ties == "drop" else 0)
    if counts["a"] > max(counts["b"], undecided):
        return "a"
    if counts["b"] > max(counts["a"], undecided):
        return "b"
    return "both_bad" if counts["both_bad"] > max(counts["a"], counts["b"], counts["tie"]) else "tie"


def split_pair(pair: Pair) -> tuple[Content, str, str]:
    """Prompt and the two responses as text; what conversations share becomes (part of) the prompt.

    Raises: DataError where the responses do not answer the same prompt, are equal, or one is blank.
    """
    prompt, one, other = pair.prompt, pair.response_a, pair.response_b
    if isinstance(one, str) and isinstance(other, str):
        answered: Content = prompt
    elif isinstance(one, str) or isinstance(other, str):
        raise DataError("one response is text and the other a conversation; expected two of a kind")
    else:
        before = turns_of(prompt) if prompt else ()
        if not one or not other:
            raise DataError("a conversation is empty; expected turns")
        answered, one, other = _last_turns((*before, *one), (*before, *other))
    if not isinstance(answered, str) and (not answered or answered[-1].role != "user"):
        last = answered[-1].role if answered else "nobody"
        raise DataError(f"the prompt ends with a turn of {last}; expected the user")
    if not one.strip() or not other.strip():
        raise DataError("a response is blank; expected text")
    if one == other:
        raise DataError("both responses are equal; expected two of which one is better")
    return answered, one, other


def _last_turns(one: Conversation, other: Conversation) -> tuple[Conversation, str, str]:
    """Shared turns and the two last ones, of conversations that share all but the assistant's last."""
    if one[:-1] != other[:-1]:
        raise DataError(
            f"the conversations part at turn {len(shared_turns(one, other)) + 1} of {len(one)} and {len(other)}; "
            "expected all turns but the last to be the same"
        )
    for turn in (one[-1], other[-1]):
        if turn.role != "assistant":
            raise DataError(f"a conversation ends with a turn of the {turn.role}; expected the assistant")
    return one[:-1], one[-1].content, other[-1].content


def _preference(pair: Pair, preferred: Side | Outcome, margin: float | None) -> Preference:
    content, one, other = split_pair(pair)
    if isinstance(content, str) and not content.strip():
        raise DataError("the prompt is blank; expected text that the responses answer")
    chosen, rejected = (one, other) if preferred == "a" else (other, one)
    return Preference(Prompt(content, origin=pair.origin or f"pair {pair.id}"), chosen, rejected, margin)
