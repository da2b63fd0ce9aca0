"""Episodes of several turns: what is learnt from, where rewards stand, and what an episode's end means."""

import re
from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from rlhfkit.config.ppo import PpoConfig, RolloutConfig
from rlhfkit.envs.text import TextStep, TurnLimit
from rlhfkit.errors import EnvError
from rlhfkit.models.language import LanguageModel, TextPolicy
from rlhfkit.models.value import ValueHead, ValueNetwork
from rlhfkit.padding import Sequences
from rlhfkit.records import Message, Prompt
from rlhfkit.rewards.source import ScoredText
from rlhfkit.rollout.experience import Experience
from rlhfkit.rollout.multi_turn import MultiTurnRollout, env_seed, play
from rlhfkit.training.advantages import advantages_and_returns
from tests.oracles import ppo as oracle
from tests.tiny import Directory, load
from tests.training import tiny

CHATML = (
    "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}<a>{% endif %}"
)


class Script:
    """Says a prompt, then one observation after the other; a response earns what `rewards` says of its turn."""

    def __init__(
        self,
        observations: Sequence[str] = ("kl", "l"),
        rewards: Sequence[float] = (1.0, 2.0, 4.0),
        *,
        prompt: Prompt | str = "abc",
        truncated: bool = False,
    ) -> None:
        self.observations, self.rewards, self.prompt, self.truncated = observations, rewards, prompt, truncated
        self.heard: list[str] = []

    def reset(self, seed: int) -> Prompt | str:
        self.heard = []
        return self.prompt

    def step(self, response: str) -> TextStep:
        turn = len(self.heard)
        self.heard.append(response)
        if turn == len(self.rewards) - 1:
            last = self.observations[turn] if self.truncated else ""
            return TextStep(last, self.rewards[turn], not self.truncated, self.truncated, won=True)
        return TextStep(self.observations[turn], self.rewards[turn], False)


class Echo:
    """Goes on for `seed % 3 + 1` turns and says back the letters that it heard; only its first turn pays."""

    def reset(self, seed: int) -> str:
        self.turns_left = seed % 3 + 1
        return "abcdefgh"[: 1 + seed % 5]

    def step(self, response: str) -> TextStep:
        self.turns_left -= 1
        return TextStep((response[::-1] or "l")[:3], float(len(response)), terminated=self.turns_left == 0)


class Places(ValueNetwork):
    """A critic whose value of a state is a tenth of the tokens read so far."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def forward(self, sequences: Sequences) -> torch.Tensor:
        _, positions, _ = sequences.predicting()
        return (positions + 1) / 10


def collect(
    factory,
    *,
    critic: ValueNetwork | ValueHead | None = None,
    kl_coef: float = 0.0,
    reference_seed: int = 0,
    reward=None,
    max_response_tokens: int = 3,
    seed: int = 0,
    iteration: int = 0,
    tell=None,
    **ppo,
) -> Experience:
    config = PpoConfig(**{"rollout_episodes": 4, "minibatch_episodes": 4, **ppo})
    rollout = MultiTurnRollout(
        TextPolicy(tiny.language_model(), critic or Places(), temperature=1.0),
        tiny.reference(reference_seed),
        factory,
        reward=reward,
        rollout=RolloutConfig(max_response_tokens=max_response_tokens),
        ppo=config,
        max_prompt_tokens=16,
        seed=seed,
        tell=tell,
    )
    return rollout.collect(iteration, kl_coef=kl_coef)


def runs(row: torch.Tensor) -> list[list[int]]:
    """Places of the True entries, parted where there is a gap."""
    places = row.nonzero().flatten().tolist()
    cuts = [0, *(i for i in range(1, len(places)) if places[i] != places[i - 1] + 1), len(places)]
    return [places[start:end] for start, end in pairwise(cuts)]


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_what_the_policy_sampled_is_in_the_mask():
    envs = []

    def factory():
        envs.append(Script())
        return envs[-1]

    experience = collect(factory)
    encoder = tiny.encoder()
    for row, env in enumerate(envs):
        ids = experience.inputs.ids[row, 3:].tolist()  # after "abc"
        parts = runs(experience.mask[row])
        assert [encoder.decode([ids[place] for place in part]) for part in parts] == env.heard
        between = [ids[a[-1] + 1 : b[0]] for a, b in pairwise(parts)]
        assert [encoder.decode(part) for part in between] == ["kl", "l"]
        assert not experience.mask[row, parts[-1][-1] + 1 :].any()


def test_sampled_ids_are_kept_though_their_text_would_be_encoded_otherwise(directory_of: Directory):
    model = load(directory_of("llama"))  # random bytes, which are seldom UTF-8
    config = RolloutConfig(max_response_tokens=6)
    episodes = play(
        model,
        lambda: Script(("be", "or")),
        config,
        env_seeds=range(8),
        response_seed=lambda row, turn: 10 * row + turn,
        max_prompt_tokens=16,
    )
    changed = 0
    for episode in episodes:
        sampled = [token for token, is_sampled in zip(episode.ids, episode.mask, strict=True) if is_sampled]
        assert sampled == [token for turn in episode.turns for token in turn.response.ids]
        for turn in episode.turns:
            text = model.encoder.decode(turn.response.ids)
            changed += model.encoder.response_ids(Prompt(""), text, finished=False) != turn.response.ids
    assert changed > 10  # or this test would not see the difference


def test_one_pass_over_the_sequence_gives_the_logprobs_that_each_turn_was_sampled_with():
    experience = collect(Echo, rollout_episodes=16, minibatch_episodes=16)
    assert experience.metrics["sampler/logprob_max_difference"] < 1e-5
    assert experience.metrics["episode/turns"] > 1.5


def test_an_episode_does_not_depend_on_its_neighbours(directory_of: Directory):
    model = load(directory_of("llama"))

    def played(seeds: Sequence[int]):
        return play(
            model,
            Echo,
            RolloutConfig(max_response_tokens=5, slots=3),
            env_seeds=seeds,
            response_seed=lambda row, turn: 100 * seeds[row] + turn,
            max_prompt_tokens=16,
        )

    together = played(range(6))
    for seed in range(6):
        (alone,) = played([seed])
        assert (alone.ids, alone.mask, alone.text) == (
            together[seed].ids,
            together[seed].mask,
            together[seed].text,
        )


def test_the_same_seed_gives_the_same_bits_and_another_iteration_other_episodes():
    first, again, other = collect(Echo), collect(Echo), collect(Echo, iteration=1)
    for name in ("mask", "old_logprobs", "rewards", "next_values", "terminated"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert torch.equal(first.inputs.ids, again.inputs.ids)
    assert not torch.equal(first.inputs.ids[:, :4], other.inputs.ids[:, :4])


# ── rewards ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_reward_of_a_turn_stands_at_its_last_token():
    experience = collect(Script)
    for row in range(4):
        expected = torch.zeros(experience.mask.shape[1])
        for part, reward in zip(runs(experience.mask[row]), (1.0, 2.0, 4.0), strict=True):
            expected[part[-1]] = reward
        assert torch.equal(experience.rewards[row], expected)
    assert experience.scores.tolist() == [7.0] * 4
    assert experience.metrics["score/mean"] == 7.0
    assert experience.metrics["episode/won_share"] == 1.0


def test_every_sampled_token_pays_for_its_kl_and_no_other_does():
    experience = collect(lambda: Script(rewards=(0.0, 0.0, 0.0)), kl_coef=0.5, reference_seed=3)
    with torch.no_grad():
        expected = -0.5 * (experience.old_logprobs - tiny.reference(3)(experience.inputs))
    torch.testing.assert_close(experience.rewards, expected * experience.mask)
    assert experience.rewards[experience.mask].abs().min() > 0
    torch.testing.assert_close(experience.ref_kl, -2 * experience.rewards.sum(1))


def test_a_reward_source_scores_each_response_in_its_conversation_on_top_of_the_environment(directory_of: Directory):
    seen: list[ScoredText] = []

    class Source:
        def score(self, episodes: Sequence[ScoredText]) -> torch.Tensor:
            seen.extend(episodes)
            return torch.tensor([10.0 * len(episode.prompt.content) for episode in episodes])

    opening = Prompt((Message("user", "a"),))
    reference = load(directory_of("llama"), chat_template=CHATML)
    rollout = MultiTurnRollout(
        TextPolicy(load(directory_of("llama"), chat_template=CHATML), None, temperature=1.0),
        lambda sequences: reference.logprobs(sequences, temperature=1.0),
        lambda: Script(("b", "c"), prompt=opening),
        reward=Source(),
        rollout=RolloutConfig(max_response_tokens=2),
        ppo=PpoConfig(estimator="rloo", group_size=2, rollout_episodes=2, minibatch_episodes=2),
        max_prompt_tokens=32,
        seed=0,
    )
    experience = rollout.collect(0, kl_coef=0.0)
    assert [[turn.role for turn in episode.prompt.content] for episode in seen[:3]] == [
        ["user"],
        ["user", "assistant", "user"],
        ["user", "assistant", "user", "assistant", "user"],
    ]
    assert seen[1].prompt.content[1:] == (Message("assistant", seen[0].response), Message("user", "b"))
    paid = [experience.rewards[0, part[-1]].item() for part in runs(experience.mask[0])]
    assert paid == [1.0 + 10.0, 2.0 + 30.0, 4.0 + 50.0]


def test_penalties_count_for_each_response():
    experience = collect(lambda: Script(rewards=(5.0, 5.0, 5.0)), missing_eos_score=-1.0, max_response_tokens=2)
    ids = experience.inputs.ids[:, 3:]
    for row in range(4):
        for part in runs(experience.mask[row]):
            ended = ids[row, part[-1]].item() == tiny.EOS
            assert experience.rewards[row, part[-1]].item() == (5.0 if ended else -1.0)


def test_responses_of_a_group_begin_in_the_same_episode():
    experience = collect(Echo, estimator="rloo", group_size=2, rollout_episodes=6, minibatch_episodes=6)
    prompts = [experience.inputs.ids[row, : int(experience.inputs.prompt_tokens[row])].tolist() for row in range(6)]
    assert prompts[0::2] == prompts[1::2]
    assert len({tuple(prompt) for prompt in prompts}) > 1
    advantages, _ = advantages_and_returns(experience, PpoConfig(estimator="rloo", group_size=2))
    totals = experience.rewards.sum(1)
    for row in range(6):
        other = totals[row + 1 if row % 2 == 0 else row - 1]
        torch.testing.assert_close(
            advantages[row][experience.mask[row]], (totals[row] - other).expand(int(experience.mask[row].sum()))
        )


# ── GAE over gaps and ends ───────────────────────────────────────────────────────────────────────────────────────────


def expected_advantages(experience: Experience, *, value_after: list[float], gamma: float, gae_lambda: float):
    """By the float64 oracle, on rows from which the environment's tokens are taken out."""
    rows = []
    for row in range(len(experience.mask)):
        mask = experience.mask[row].numpy()
        rewards = experience.rewards[row].numpy()[mask].astype(np.float64)
        places = np.flatnonzero(mask)
        values = (places + int(experience.inputs.prompt_tokens[row])) / 10
        terminated = np.zeros(len(places), dtype=bool)
        terminated[-1] = np.isnan(value_after[row])
        ended = np.zeros(len(places), dtype=bool)
        ended[-1] = True
        next_values = np.append(values[1:], np.nan_to_num(value_after[row]))
        rows.append(oracle.gae(rewards, values, next_values, terminated, ended, gamma, gae_lambda))
    return rows


@pytest.mark.parametrize("truncated", [False, True])
def test_advantages_are_those_of_the_episode_without_its_gaps(truncated):
    settings = {"gamma": 0.99, "gae_lambda": 0.95}
    experience = collect(lambda: Script(("kl", "l", "abcd"), truncated=truncated), **settings)
    num_read = [int(experience.inputs.prompt_tokens[row]) + runs(experience.mask[row])[-1][-1] + 1 for row in range(4)]
    # Where it was cut off, the value of what the policy would have read next: all tokens, and "abcd".
    value_after = [(num + 4) / 10 if truncated else np.nan for num in num_read]
    _, returns = advantages_and_returns(experience, PpoConfig(**settings))
    advantages = returns - experience.old_values
    for row, expected in enumerate(expected_advantages(experience, value_after=value_after, **settings)):
        found = advantages[row][experience.mask[row]].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert not advantages[~experience.mask].any()


def test_a_truncated_episode_bootstraps_and_a_terminated_one_does_not():
    for truncated in (False, True):
        experience = collect(partial(Script, ("ab",), (1.0,), truncated=truncated))
        last = experience.ended
        assert torch.equal(experience.terminated, last & (not truncated))
        num_tokens = experience.mask.sum(1)
        value_after = (3 + num_tokens + 2) / 10 if truncated else torch.zeros(4)
        torch.testing.assert_close(experience.next_values[last], value_after)
        _, returns = advantages_and_returns(experience, PpoConfig(gae_lambda=0.0))
        torch.testing.assert_close(returns[last], 1.0 + value_after)
        assert experience.metrics["episode/truncated_share"] == float(truncated)


def test_the_models_context_ends_an_episode_as_truncated():
    experience = collect(lambda: Script(["kl"] * 100, [0.0] * 100), max_response_tokens=8)
    lengths = experience.inputs.lengths()
    assert (lengths <= 64).all()  # the context of this model
    assert (lengths + 2 + 8 > 64).all()  # no further turn would have fitted
    assert not experience.terminated.any()
    assert torch.equal(experience.ended.sum(1), torch.ones(4, dtype=torch.long))
    value_of_what_fits = (lengths + 2).clamp(max=64) / 10
    torch.testing.assert_close(experience.next_values[experience.ended], value_of_what_fits)


def test_an_observation_that_fills_the_context_is_valued_as_far_as_it_fits():
    experience = collect(lambda: Script(["k" * 200] * 2, [0.0] * 3))
    assert experience.metrics["episode/turns"] == 1.0
    assert experience.next_values[experience.ended].tolist() == pytest.approx([6.4] * 4)


class Talkative(Script):
    """Its prompt has 20 tokens in episodes of an odd seed, and 4 in the others."""

    def reset(self, seed: int) -> str:
        super().reset(seed)
        return "abcd" * (5 if seed % 2 else 1)


def test_first_prompts_that_are_cut_are_counted_and_reported_once():
    said: list[str] = []
    experience = collect(Talkative, tell=said.append)
    assert experience.metrics["episode/cut_prompt_share"] == 0.5
    assert said == [
        "env: 2 of 4 prompts were cut to 16 tokens, a cut one by 20% of its tokens on average, 20% at most; raise "
        "data.max_prompt_tokens, or let the environment begin with less"
    ]
    assert collect(Script, tell=said.append).metrics["episode/cut_prompt_share"] == 0.0
    assert len(said) == 1
    rollout = MultiTurnRollout(
        TextPolicy(tiny.language_model(), Places(), temperature=1.0),
        tiny.reference(0),
        Talkative,
        reward=None,
        rollout=RolloutConfig(max_response_tokens=3),
        ppo=PpoConfig(rollout_episodes=4, minibatch_episodes=4),
        max_prompt_tokens=16,
        seed=0,
        tell=said.append,
    )
    for iteration in range(2):
        rollout.collect(iteration, kl_coef=0.0)
    assert len(said) == 2


def test_the_turn_limit_truncates():
    experience = collect(lambda: TurnLimit(Script(["kl"] * 100, [1.0] * 100), 2))
    assert experience.metrics["episode/turns"] == 2.0
    assert experience.metrics["episode/truncated_share"] == 1.0
    assert not experience.terminated.any()


def test_a_response_at_the_length_limit_ends_its_turn_and_not_the_episode():
    experience = collect(Script, max_response_tokens=1)
    assert experience.metrics["episode/turns"] == 3.0
    assert experience.metrics["eos_rate"] < 0.5
    assert torch.equal(experience.terminated, experience.ended)


def test_without_a_critic_nothing_is_bootstrapped():
    rollout = MultiTurnRollout(
        TextPolicy(tiny.language_model(), None, temperature=1.0),
        tiny.reference(),
        lambda: Script(("ab",), (1.0,), truncated=True),
        reward=None,
        rollout=RolloutConfig(max_response_tokens=3),
        ppo=PpoConfig(estimator="grpo", group_size=2, rollout_episodes=4, minibatch_episodes=4),
        max_prompt_tokens=16,
        seed=0,
    )
    assert not rollout.collect(0, kl_coef=0.0).next_values.any()


# ── conversations ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_conversation_goes_on_with_the_marks_of_its_template(directory_of: Directory):
    model: LanguageModel = load(directory_of("llama"), chat_template=CHATML)
    (episode,) = play(
        model,
        lambda: Script(("be", "or"), prompt=Prompt((Message("user", "Hi"),))),
        RolloutConfig(max_response_tokens=4),
        env_seeds=[0],
        response_seed=lambda row, turn: turn,
        max_prompt_tokens=30,
    )
    first = len(episode.turns[0].response.ids)
    gap = [token for token, is_sampled in zip(episode.ids, episode.mask, strict=True) if not is_sampled]
    after_cut = "<|endoftext|><u>be<|endoftext|><a>"
    assert episode.turns[0].response.finish_reason == "length"
    assert model.encoder.tokenizer.decode(gap).startswith(after_cut)
    assert not episode.mask[first]


# ── seeds and faults ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("num_items", [8, 64, 100, 1024])
def test_an_environment_that_goes_through_a_list_does_not_meet_it_in_the_order_of_training(num_items):
    for held_out in (False, True):
        items = [env_seed(0, index, held_out=held_out) % num_items for index in range(num_items)]
        assert sorted(items) == list(range(num_items))  # each once
    same = [seed for seed in range(50) if env_seed(seed, 0) % num_items == env_seed(seed, 0, held_out=True) % num_items]
    assert len(same) < 25
    assert all(2**30 <= env_seed(seed, index, held_out=True) < 2**31 for seed in range(9) for index in (0, 9))
    assert all(env_seed(seed, index) < 2**30 for seed in range(9) for index in (0, 9))


def test_held_out_episodes_are_never_trained_on():
    for seed in range(20):
        train = {env_seed(seed, index) for index in range(1000)}
        assert len(train) == 1000
        assert max(train) < min(env_seed(other, index, held_out=True) for other in range(20) for index in range(10))


class Broken(Script):
    def step(self, response: str) -> TextStep:
        return TextStep("a", None, False)


class Raising(Script):
    def step(self, response: str) -> TextStep:
        raise KeyError("door")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Broken, r"Broken: the reward of a step is None \(NoneType\); expected a number; return a float"),
        (
            Raising,
            r"Raising\.step\(.*\) raised KeyError: 'door' \(at .*test_multi_turn\.py:\d+\); fix the environment",
        ),
    ],
)
def test_a_fault_of_the_environment_stops_the_run_and_is_no_number(env, message):
    with pytest.raises(EnvError, match=re.compile(message)):
        collect(env)
