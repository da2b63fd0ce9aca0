"""Before and after in an environment, on held-out episodes."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch

from rlhfkit.config.recipe import Recipe
from rlhfkit.envs.text import TextEnvFactory
from rlhfkit.evaluation.prompts import distance, distinct, estimate, held_to, prompt_results, share_estimate, win_rate
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.language import LanguageModel
from rlhfkit.rewards.source import RewardSource, check_scores
from rlhfkit.rollout.constraints import Constraint, constraint_values
from rlhfkit.rollout.multi_turn import Episode, env_seed, join_episodes, play, score_turns
from rlhfkit.rundir.results import ConstraintResults, EmaResults, Evaluation, ModelResults, SamplePair, WinRates

__all__ = ["compare_episodes"]


@dataclass(frozen=True)
class _Played:
    """One model's episodes with what is said of them."""

    episodes: list[Episode]
    groups: list[str] | None
    """Which recorded dialogue an episode replays, as one may come again; None where all episodes are independent."""
    returns: list[float]
    judge_scores: list[float] | None
    of_constraints: list[list[float]]
    """What each constraint says of every response, turn by turn."""
    ref_kl: torch.Tensor
    """(num_episodes,), in nats summed over an episode."""
    perplexity: float


def compare_episodes(
    sft: LanguageModel,
    policy: LanguageModel,
    factory: TextEnvFactory,
    *,
    reward: RewardSource | None,
    judge: RewardSource | None,
    constraints: Sequence[Constraint] = (),
    ema: LanguageModel | None = None,
    reward_name: str,
    judge_name: str,
    recipe: Recipe,
    on_finished: Callable[[int], None],
    on_cut: Callable[[str], None] | None = None,
) -> Evaluation:
    """Both models in the same held-out episodes with the same random numbers, side by side; `sft` is the reference.

    Scores, and the judge's, are summed over the turns of an episode. `on_cut` hears of prompts that had to be cut.
    `constraints` are those of PPO, which judge every response. `ema`, the average of the policy's weights, plays too
    where it is given.
    Raises: EnvError, RewardError where environment, reward, judge or the source of a constraint fail.
    """
    is_replay, seed = recipe.env is not None and recipe.env.type == "replay", recipe.evaluation_seed

    def played(model: LanguageModel) -> _Played:
        episodes = play(
            model,
            factory,
            recipe.rollout,
            env_seeds=[env_seed(seed, row, held_out=True) for row in range(recipe.evaluation.num_prompts)],
            response_seed=lambda row, turn: derive_seed(seed, "evaluation", row, turn),
            max_prompt_tokens=recipe.data.prompt_limit,
            on_finished=on_finished,
            on_cut=on_cut,
        )
        ref_kl, perplexity = distance(
            model,
            sft,
            join_episodes(episodes, model),
            temperature=recipe.rollout.temperature,
            max_tokens=recipe.ppo.forward_tokens,
        )
        turns = [turn.scored for episode in episodes for turn in episode.turns]
        return _Played(
            episodes=episodes,
            groups=[episode.prompt.text for episode in episodes] if is_replay else None,
            returns=summed(score_turns(episodes, reward).tolist(), episodes),
            judge_scores=None if judge is None else summed(judged(judge, episodes), episodes),
            of_constraints=[values.tolist() for values in constraint_values(constraints, turns)],
            ref_kl=ref_kl,
            perplexity=perplexity,
        )

    before, after = played(sft), played(policy)
    has_judge = before.judge_scores is not None and after.judge_scores is not None
    return Evaluation(
        num_prompts=len(before.episodes),
        in_environment=True,
        reward_is_truth=reward is None,
        models={"sft": _results(before), "policy": _results(after)},
        win_rate=_win_rates(after, before),
        reward_name=reward_name,
        judge_name=judge_name,
        samples=tuple(
            SamplePair(
                prompt=before.episodes[row].prompt.text,
                sft=before.episodes[row].text,
                policy=after.episodes[row].text,
                score_sft=before.returns[row],
                score_policy=after.returns[row],
                judge_sft=before.judge_scores[row] if before.judge_scores else None,
                judge_policy=after.judge_scores[row] if after.judge_scores else None,
            )
            for row in range(min(recipe.evaluation.num_samples, len(before.episodes)))
        ),
        prompts=prompt_results(
            [episode.prompt.text for episode in before.episodes],
            before.returns,
            after.returns,
            judge=(before.judge_scores or (), after.judge_scores or ()) if has_judge else None,
            ref_kl=after.ref_kl.tolist(),
        ),
        constraints=_held_to(constraints, before, after),
        ema=None if ema is None else _ema_results(constraints, before, after, played(ema)),
    )


def _ema_results(constraints: Sequence[Constraint], before: _Played, after: _Played, of_ema: _Played) -> EmaResults:
    return EmaResults(
        model=_results(of_ema),
        win_rate=_win_rates(of_ema, before),
        against_policy=_win_rates(of_ema, after),
        constraints=_held_to(constraints, before, of_ema),
    )


def _win_rates(ours: _Played, theirs: _Played) -> WinRates:
    has_judge = ours.judge_scores is not None and theirs.judge_scores is not None
    return WinRates(
        reward=win_rate(ours.returns, theirs.returns, ours.groups),
        judge=win_rate(ours.judge_scores or (), theirs.judge_scores or (), ours.groups) if has_judge else None,
    )


def _held_to(constraints: Sequence[Constraint], before: _Played, after: _Played) -> tuple[ConstraintResults, ...]:
    return held_to(
        constraints,
        [before.of_constraints, after.of_constraints],
        [_groups_of_turns(before), _groups_of_turns(after)],
    )


def _groups_of_turns(played: _Played) -> list[Hashable]:
    """Which turns hang together: those of an episode, or of a dialogue that came several times."""
    groups: Sequence[Hashable] = played.groups or range(len(played.episodes))
    return [group for group, episode in zip(groups, played.episodes, strict=True) for _ in episode.turns]


def judged(judge: RewardSource, episodes: Sequence[Episode]) -> list[float]:
    """What the judge alone says of every turn."""
    turns = [turn.scored for episode in episodes for turn in episode.turns]
    return check_scores(judge.score(turns), turns, source="the judge").tolist()


def summed(scores: Sequence[float], episodes: Sequence[Episode]) -> list[float]:
    """Sum over the turns of each episode."""
    rest = iter(scores)
    return [sum(next(rest) for _ in episode.turns) for episode in episodes]


def _results(played: _Played) -> ModelResults:
    turns = [turn for episode in played.episodes for turn in episode.turns]
    texts = [turn.scored.response for turn in turns]
    won = [episode.won for episode in played.episodes if episode.won is not None]
    return ModelResults(
        score=estimate(played.returns, played.groups),
        judge=None if played.judge_scores is None else estimate(played.judge_scores, played.groups),
        response_tokens=sum(len(turn.response.ids) for turn in turns) / len(turns),
        eos_rate=sum(turn.response.finished for turn in turns) / len(turns),
        distinct_1=distinct(texts, 1),
        distinct_2=distinct(texts, 2),
        perplexity=played.perplexity,
        ref_kl=float(played.ref_kl.mean()),
        won_share=share_estimate(won) if won else None,
        turns=len(turns) / len(played.episodes),
    )
