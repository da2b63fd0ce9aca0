"""Text environments as Gymnasium ones over tokens, in the eyes of Gymnasium and of Stable-Baselines3."""

import subprocess
import sys
import tomllib
import warnings
from importlib import import_module
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rlhfkit.envs.check import check_gymnasium_env
from rlhfkit.envs.guess import GuessEnv
from rlhfkit.envs.registration import register
from rlhfkit.envs.text import TextStep
from rlhfkit.envs.token import Characters, TokenEnv, TokenizerVocabulary, guess
from rlhfkit.errors import EnvError
from rlhfkit.records import Message, Prompt
from tests.tiny import EOS, PAD, byte_tokenizer


class OneLetter:
    """Pays for saying the letter that it names: a task of one token."""

    def reset(self, seed: int) -> str:
        self.wanted = "abcd"[int(np.random.default_rng(seed).integers(4))]
        return f"{self.wanted}?"

    def step(self, response: str) -> TextStep:
        return TextStep("", float(response == self.wanted), terminated=True, won=response == self.wanted)


class Parrot:
    """Says everything back; ends at "stop"."""

    def reset(self, seed: int) -> Prompt:
        return Prompt((Message("system", "ab"), Message("user", "cd"), Message("assistant", "e"), Message("user", "f")))

    def step(self, response: str) -> TextStep:
        return TextStep(response.upper() or "?", float(len(response)), terminated=response == "stop", won=None)


def one_letter() -> TokenEnv:
    return TokenEnv(OneLetter(), Characters("abcd?"), max_tokens=3, max_response_tokens=1)


def parrot(max_tokens: int = 64) -> TokenEnv:
    vocabulary = Characters("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ:?\n ", ends="\n")
    return TokenEnv(Parrot(), vocabulary, max_tokens=max_tokens, max_response_tokens=5)


def say(env: TokenEnv, text: str) -> list[tuple]:
    return [env.step(np.int64(token)) for token in env.vocabulary.encode(text)]


# ── what happens ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_game_goes_token_by_token():
    env = guess()
    state, _ = env.reset(seed=0)
    text = "A number from 1 to 7. Guess:"
    assert env.vocabulary.decode(state) == text
    assert state[: len(text)].tolist() == env.vocabulary.encode(text)
    assert not state[len(text) :].any()  # PAD is 0
    game = GuessEnv()
    game.reset(0)
    expected = game.step(" 1\n")
    *before, last = say(env, " 1\n")
    assert [step[1:4] for step in before] == [(0.0, False, False)] * 2
    assert env.vocabulary.decode(last[0]) == f"{text} 1\n{expected.observation}"
    assert last[1:4] == (expected.reward, expected.terminated, False)


def test_the_best_strategy_wins_over_tokens_too():
    env = guess()
    for seed in range(20):
        _, info = env.reset(seed=seed)
        low, high, over, total = 1, 7, False, 0.0
        while not over:
            number = (low + high) // 2
            *_, (_, reward, over, _, info) = say(env, f" {number}\n")
            total += reward
            low, high = (number + 1, high) if info["text"].endswith("higher. Guess:") else (low, number - 1)
        assert (total, info["won"]) == (1.0, True)


def test_a_response_ends_at_its_length_limit():
    env = parrot()
    env.reset(seed=0)
    *before, last = say(env, "hello")
    assert [step[1] for step in before] == [0.0] * 4
    assert last[1:4] == (5.0, False, False)
    assert last[4]["text"].endswith("helloHELLO")


def test_eos_ends_a_response_and_is_no_part_of_its_text():
    env = parrot()
    env.reset(seed=0)
    say(env, "stop")[-1]
    *_, terminated, truncated, info = env.step(np.int64(Characters.eos_id))
    assert (terminated, truncated) == (True, False)
    assert info["text"].endswith("stopSTOP")


def test_a_conversation_is_read_as_a_transcript():
    _, info = parrot().reset(seed=0)
    assert info["text"] == "ab\n\nHuman: cd\n\nAssistant: e\n\nHuman: f\n\nAssistant:"


def test_words_that_fill_the_state_truncate_the_episode():
    env = parrot(max_tokens=59)
    _, info = env.reset(seed=0)
    assert len(info["text"]) == 49
    *_, last = say(env, "abcde")
    assert last[1:4] == (5.0, False, True)  # 49 + 5 + 5 = 59
    assert env.observation_space.contains(last[0])


def test_a_response_that_fills_the_state_truncates_the_episode():
    env = parrot(max_tokens=51)
    env.reset(seed=0)
    first, second = say(env, "ab")
    assert (first[2:4], second[2:4]) == ((False, False), (False, True))
    assert second[1] == 0.0


def test_without_a_seed_the_next_episode_follows_from_the_last():
    def episodes() -> list[str]:
        env = one_letter()
        env.reset(seed=5)
        return [env.reset()[1]["text"] for _ in range(12)]

    assert episodes() == episodes()
    assert len(set(episodes())) > 1


def test_the_tokens_may_be_those_of_a_hugging_face_tokenizer():
    vocabulary = TokenizerVocabulary(byte_tokenizer(), ends="\n")
    env = TokenEnv(GuessEnv(), vocabulary, max_tokens=96, max_response_tokens=4)
    state, info = env.reset(seed=0)
    assert info["text"] == "A number from 1 to 7. Guess:"
    assert (state[-1], vocabulary.end_ids) == (PAD, {EOS, *vocabulary.encode("\n")})
    *_, last = say(env, " 1\n")
    assert last[4]["text"].startswith("A number from 1 to 7. Guess: 1\n")
    assert len(last[4]["text"]) > 34  # and what the game says to it
    check_env(env, skip_render_check=True)


# ── faults ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_prompt_that_fills_the_state_is_refused():
    env = TokenEnv(OneLetter(), Characters("abcd?"), max_tokens=2, max_response_tokens=1)
    with pytest.raises(EnvError, match="max_tokens = 2, and the prompt alone has 2 tokens; raise it"):
        env.reset(seed=0)


def test_an_action_that_is_no_token_is_refused():
    env = one_letter()
    env.reset(seed=0)
    with pytest.raises(EnvError, match=r"action .*7.* is no token id; expected one of Discrete\(7\)"):
        env.step(np.int64(7))


@pytest.mark.parametrize(
    ("special_tokens", "ends", "message"),
    [
        ({"eos_token": "</s>"}, "", "the tokenizer has no pad_token; set it before"),
        ({}, ["no"], "'no' is 2 tokens for this tokenizer; expected one; choose another end"),
    ],
)
def test_a_tokenizer_that_will_not_do_is_reported(special_tokens, ends, message):
    with pytest.raises(EnvError, match=message):
        TokenizerVocabulary(byte_tokenizer(**special_tokens), ends=ends)


def test_a_character_that_the_alphabet_lacks_is_named():
    with pytest.raises(EnvError, match=r"the alphabet lacks \['y', 'z'\], of 'xyz'; add them to it"):
        Characters("x").encode("xyz")


# ── in the eyes of others ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [one_letter, parrot, guess])
def test_every_checker_is_content(make):
    from stable_baselines3.common.env_checker import check_env as check_env_of_sb3

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env_of_sb3(make())
        warnings.filterwarnings("ignore", message=".*render.*")  # Gymnasium tells that it cannot check rendering
        check_env(make())
    assert check_gymnasium_env(make()) == ()


def test_gymnasium_finds_the_environment_by_the_entry_point_that_the_package_names():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, function = project["entry-points"]["gymnasium.envs"]["rlhfkit"].split(":")
    assert getattr(import_module(module), function) is register
    register()
    register()  # twice is no error
    env = gymnasium.make("rlhfkit/Guess-v0", highest=15, max_guesses=4)
    _, info = env.reset(seed=0)
    assert info["text"] == "A number from 1 to 15. Guess:"
    check_env(env.unwrapped, skip_render_check=True)


def test_being_found_imports_nothing_heavy():
    heavy = ["torch", "transformers", "rlhfkit.envs.token"]
    probe = (
        "import gymnasium, sys; from rlhfkit.envs.registration import register; register(); "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.thorough
def test_ppo_of_stable_baselines3_learns_a_task_of_one_token():
    from stable_baselines3 import PPO

    model = PPO(
        "MlpPolicy",
        one_letter(),
        n_steps=128,
        batch_size=64,
        n_epochs=8,
        learning_rate=5e-3,
        gamma=1.0,
        seed=0,
        device="cpu",
    )
    model.learn(2560)
    env = one_letter()
    wins = 0
    for seed in range(40):
        state, _ = env.reset(seed=10_000 + seed)
        action, _ = model.predict(state, deterministic=True)
        wins += env.step(np.int64(action))[1] == 1.0
    assert wins == 40
