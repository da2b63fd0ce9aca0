"""Rollout in a text environment: episodes of several turns, in which only the policy's own tokens are learnt from.

    prompt | response 1 | observation 1 | response 2 | observation 2 | response 3
             ✓✓✓✓✓✓✓✓✓✓                   ✓✓✓✓✓✓✓✓✓✓                   ✓✓✓✓✓✓✓✓✓✓     ✓ = mask

An episode is one sequence of tokens, exactly those that were sampled and those that the environment's words became, so
that one forward pass over it gives the logprobs of all turns. The environment's tokens are outside the mask. The reward
of a turn stands at its last token.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.distributed.ranks import ranks
from rlhfkit.envs.text import TextEnv, TextEnvFactory, TextStep, begin, proceed
from rlhfkit.machine.seeding import derive_seed
from rlhfkit.machine.watchdog import phase
from rlhfkit.models.cutting import words_on_cut
from rlhfkit.models.encoder import EncodedPrompt, Encoder
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.padding import Sequences
from rlhfkit.records import Message
from rlhfkit.rewards.source import Detailed, RewardSource, ScoredText, check_scores, scored_in_detail
from rlhfkit.rollout.constraints import Constraint, Moves, constraint_values
from rlhfkit.rollout.engine import Engine, Reference, Sample, sample_of
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.generation import Response, generate
from rlhfkit.rollout.text_experience import as_scored_text, evaluate_in_parts, experience_of, last_of_rows

__all__ = ["Episode", "MultiTurnRollout", "Turn", "env_seed", "join_episodes", "play", "score_turns"]

NUM_SEEDS = 2**29


@dataclass(frozen=True, slots=True)
class Turn:
    """A response, and what came of it."""

    scored: ScoredText
    """The response with all that was said before it, as a reward source sees it."""
    response: Response
    step: TextStep


@dataclass
class Episode:
    """One episode, while it is played and afterwards."""

    prompt: EncodedPrompt
    """The first prompt."""
    turns: list[Turn] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    """Tokens after the first prompt, to the end of the last response."""
    mask: list[bool] = field(default_factory=list)
    """Which of `ids` the policy sampled."""
    ids_after: list[int] = field(default_factory=list)
    """Tokens of the last observation: what the policy would have read next."""
    text: str = ""
    """All that was said after the first prompt."""
    terminated: bool = False
    truncated: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more is said."""
        return self.terminated or self.truncated

    @property
    def won(self) -> bool | None:
        """Whether the policy won, where there is such a thing."""
        return self.turns[-1].step.won

    def read(self) -> list[int]:
        """What the policy reads before its next response."""
        self.ids += self.ids_after
        self.mask += [False] * len(self.ids_after)
        self.ids_after = []
        return [*self.prompt.ids, *self.ids]

    def take(self, response: Response, env: TextEnv, encoder: Encoder, *, room_tokens: int | None) -> None:
        """Go on with `response` and what `env` says; truncated if less than `room_tokens` are then left to read."""
        so_far = self._so_far()
        scored = as_scored_text(so_far, response, encoder.decode(response.ids))
        step = proceed(env, scored.response)
        self.turns.append(Turn(scored, response, step))
        self.ids += response.ids
        self.mask += [True] * len(response.ids)
        self.ids_after = encoder.observation_ids(self.prompt.prompt, step.observation, after=response.ids)
        said = encoder.decode(response.ids)
        self.terminated, self.truncated = step.terminated, step.truncated and not step.terminated
        self.text += said + (encoder.observation(self.prompt.prompt, step.observation) if step.observation else "")
        num_read = len(self.prompt.ids) + len(self.ids) + len(self.ids_after)
        if not self.ended and room_tokens is not None and num_read > room_tokens:
            self.truncated = True

    def _so_far(self) -> EncodedPrompt:
        """All that was said up to now, as a prompt."""
        text = self.prompt.text + self.text
        if not self.turns:
            return self.prompt
        last = self.turns[-1]
        before = last.scored.prompt
        if isinstance(before.content, str):
            content: str | tuple[Message, ...] = text
        else:
            asked = Message("user", last.step.observation)
            content = (*before.content, Message("assistant", last.scored.response), asked)
        return EncodedPrompt(replace(before, content=content), text, (), was_cut=self.prompt.was_cut)


def play(
    model: LanguageModel,
    factory: TextEnvFactory,
    rollout: RolloutConfig,
    *,
    env_seeds: Sequence[int],
    response_seed: Callable[[int, int], int],
    max_prompt_tokens: int,
    on_finished: Callable[[int], None] | None = None,
    on_cut: Callable[[str], None] | None = None,
    sample: Sample = generate,
) -> list[Episode]:
    """One episode for each of `env_seeds`, played side by side: the responses of a turn are sampled together.

    Several ranks share the episodes out, environments included, and each gets all.
    `response_seed(row, turn)` decides a response's randomness alone, so an episode does not depend on its neighbours.
    An episode in whose sequence a further response would not fit the model's context is truncated. First prompts that
    are longer than `max_prompt_tokens` are cut, and `on_cut` is given words that say how many, and by how much.
    Raises: EnvError where an environment fails.
    """
    own = ranks().share(len(env_seeds))
    encoder = model.encoder
    context = model.context_tokens
    room = None if context is None else context - rollout.max_response_tokens
    envs, episodes = [factory() for _ in own], []
    for row, env in zip(own, envs, strict=True):
        episodes.append(Episode(encoder.encode(begin(env, env_seeds[row]), max_tokens=max_prompt_tokens)))
    live, turn = list(range(len(episodes))), 0
    while live:
        with phase("generation"):
            responses = sample(
                model,
                [episodes[row].read() for row in live],
                rollout,
                seeds=[response_seed(own[row], turn) for row in live],
            )
        with phase("environment"):
            for row, response in zip(live, responses, strict=True):
                episodes[row].take(response, envs[row], encoder, room_tokens=room)
        num_before = len(live)
        live, turn = [row for row in live if not episodes[row].ended], turn + 1
        if on_finished is not None and len(live) < num_before:
            on_finished(num_before - len(live))
    whole = ranks().put_together(episodes, len(env_seeds))
    if on_finished is not None and len(own) < len(whole):
        on_finished(len(whole) - len(own))  # those of the others
    lost = [episode.prompt.share_lost for episode in whole if episode.prompt.was_cut]
    if on_cut is not None and lost:
        words = words_on_cut(lost, of=len(whole), max_tokens=max_prompt_tokens)
        on_cut(f"env: {words}; raise data.max_prompt_tokens, or let the environment begin with less")
    return whole


def join_episodes(episodes: Sequence[Episode], model: LanguageModel) -> Sequences:
    """The episodes as sequences, with the policy's tokens in the mask."""
    return Sequences.join(
        [episode.prompt.ids for episode in episodes],
        [episode.ids for episode in episodes],
        masks=[episode.mask for episode in episodes],
        pad=model.encoder.pad_id,
        device=model.device,
    )


def score_turns(episodes: Sequence[Episode], reward: RewardSource | None) -> Tensor:
    """(N,) reward of every turn of every episode, in order: the environment's, and what `reward` says of the response.

    Raises: RewardError where the reward source fails.
    """
    return score_turns_in_detail(episodes, reward)[0]


def score_turns_in_detail(episodes: Sequence[Episode], reward: RewardSource | None) -> Detailed:
    """The same, and what the reward tells of its scores, by name."""
    turns = [turn for episode in episodes for turn in episode.turns]
    scores = torch.tensor([float(turn.step.reward) for turn in turns], dtype=torch.float32)
    if reward is None:
        return scores, {}
    scored = [turn.scored for turn in turns]
    with phase("reward"):
        found, details = scored_in_detail(reward, scored)
        return scores + check_scores(found, scored, source="the reward source"), details


def env_seed(seed: int, index: int, *, held_out: bool = False) -> int:
    """Seed of the episode number `index`; held-out ones are never among those that PPO trains on.

    Those of training are below 2^30, the held-out ones from there on, below 2^31. They count upwards, so that an
    environment that goes through a list may do so; each from a place of its own, or `seed % n` would give the same
    items in the same order to both. An environment whose list both share must split it by the seed.
    """
    start = derive_seed(seed, "held-out environment" if held_out else "environment") % NUM_SEEDS
    return (2 * NUM_SEEDS if held_out else 0) + start + index % NUM_SEEDS


class MultiTurnRollout:
    """Collects experience from episodes in a text environment.

    An episode that terminates has nothing to bootstrap from. One that is truncated, by the environment's time limit or
    because the model's context is full, goes on in principle: it bootstraps from the value of what the policy would
    have read next. A response that reaches `max_response_tokens` does neither: this limit is a rule of the game, the
    environment answers the response as it stands, and `missing_eos_score` says what such a response is worth.
    """

    def __init__(
        self,
        policy: TextPolicy,
        reference: Reference,
        factory: TextEnvFactory,
        *,
        reward: RewardSource | None,
        rollout: RolloutConfig,
        ppo: PpoConfig,
        max_prompt_tokens: int,
        seed: int,
        engine: Engine | None = None,
        constraints: Sequence[Constraint] = (),
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """Play in environments of `factory`; `reward`, where there is one, is paid on top for every response.

        `tell` is given a sentence the first time that prompts had to be cut.
        """
        self.policy, self.reference, self.factory, self.reward = policy, reference, factory, reward
        self.rollout, self.ppo, self.max_prompt_tokens, self.seed = rollout, ppo, max_prompt_tokens, seed
        self.engine, self._tell, self.constraints = engine, tell, tuple(constraints)

    def collect(
        self,
        iteration: int,
        *,
        kl_coef: float,
        multipliers: Moves | None = None,
        on_finished: Callable[[int], None] | None = None,
    ) -> Experience:
        """The experience of one iteration; the same iteration gives the same draws in any process.

        `multipliers` gives those of the constraints, in order, which judge every response.
        Raises: EnvError, RewardError where environment or reward source fail.
        """
        model = self.policy.language_model
        num = self.ppo.rollout_episodes // self.ppo.group_size
        start = time.perf_counter()
        episodes = play(
            model,
            self.factory,
            self.rollout,
            env_seeds=[
                env_seed(self.seed, index)
                for index in range(iteration * num, (iteration + 1) * num)
                for _ in range(self.ppo.group_size)
            ],
            response_seed=lambda row, turn: derive_seed(self.seed, "response", iteration, row, turn),
            max_prompt_tokens=self.max_prompt_tokens,
            on_finished=on_finished,
            on_cut=self._tell,
            sample=sample_of(self.engine, model),
        )
        if any(episode.prompt.was_cut for episode in episodes):
            self._tell = None
        generation_seconds = time.perf_counter() - start
        start = time.perf_counter()
        raw_scores, details = score_turns_in_detail(episodes, self.reward)
        judged = [turn.scored for episode in episodes for turn in episode.turns]
        values_of_constraints = constraint_values(self.constraints, judged)
        reward_seconds = time.perf_counter() - start
        inputs = self.policy.read_once(join_episodes(episodes, model), max_tokens=self.ppo.forward_tokens)
        terminated = torch.tensor([episode.terminated for episode in episodes], device=model.device)
        return experience_of(
            self.policy,
            self.reference,
            inputs,
            ppo=self.ppo,
            kl_coef=kl_coef,
            ends=_ends_of_turns(episodes, inputs.mask),
            responses=[turn.response for episode in episodes for turn in episode.turns],
            raw_scores=raw_scores,
            terminated=last_of_rows(inputs.mask) & terminated[:, None],
            values_after=self._values_after(episodes),
            importance_cap=None if self.engine is None else self.engine.importance_cap,
            constraints=self.constraints,
            values_of_constraints=values_of_constraints,
            multipliers=() if multipliers is None else multipliers(values_of_constraints),
            metrics={
                **_metrics(episodes),
                **{f"score/{name}": float(numbers.mean()) for name, numbers in details.items()},
                "time/generation_seconds": generation_seconds,
                "time/reward_seconds": reward_seconds,
            },
            samples=[
                {
                    "prompt": episode.prompt.text,
                    "response": episode.text,
                    "finish_reason": episode.turns[-1].response.finish_reason,
                }
                for episode in episodes[: self.ppo.num_samples]
            ],
        )

    def state(self) -> dict[str, Tensor]:
        """Empty: an iteration's draws follow from its number."""
        return {}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Nothing to load; see `state`."""

    def weights_were_put_back(self) -> None:
        """Nothing to forget: every iteration samples for itself."""

    def _values_after(self, episodes: Sequence[Episode]) -> Tensor:
        """(B,) value of the state after the last response, observation included; 0 where the episode terminated.

        Where this does not fit the model's context, of what fits.
        """
        values = torch.zeros(len(episodes))
        cut = [row for row, episode in enumerate(episodes) if not episode.terminated]
        if not cut or self.policy.critic is None:
            return values
        model = self.policy.language_model
        read = [[*episodes[row].prompt.ids, *episodes[row].ids, *episodes[row].ids_after] for row in cut]
        # A value is asked for where a token is predicted, so any token may stand where the next response would begin.
        inputs = Sequences.join(
            [ids[: model.context_tokens] for ids in read],
            [[model.encoder.eos_id]] * len(cut),
            pad=model.encoder.pad_id,
            device=model.device,
        )
        *_, after = evaluate_in_parts(self.policy, inputs, max_tokens=self.ppo.forward_tokens)
        values[cut] = after[:, 0].cpu()
        return values


def _ends_of_turns(episodes: Sequence[Episode], mask: Tensor) -> Tensor:
    """(B, T) bool: the last token of each response.

    Not where the mask ends: an environment that says nothing leaves no gap between two responses.
    """
    ends = torch.zeros_like(mask)
    for row, episode in enumerate(episodes):
        sampled = [place for place, is_sampled in enumerate(episode.mask) if is_sampled]
        num = 0
        for turn in episode.turns:
            num += len(turn.response.ids)
            ends[row, sampled[num - 1]] = True
    return ends


def _metrics(episodes: Sequence[Episode]) -> dict[str, float]:
    won = [float(episode.won) for episode in episodes if episode.won is not None]
    return {
        "episode/turns": sum(len(episode.turns) for episode in episodes) / len(episodes),
        "episode/cut_prompt_share": sum(episode.prompt.was_cut for episode in episodes) / len(episodes),
        "episode/truncated_share": sum(episode.truncated for episode in episodes) / len(episodes),
        **({"episode/won_share": sum(won) / len(won)} if won else {}),
    }
