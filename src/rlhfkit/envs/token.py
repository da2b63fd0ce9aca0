"""A text environment as a true Gymnasium one, whose actions are tokens, for anybody's RL library to train on.

State: the token ids so far, padded to a fixed length. Action: the next token id. An action that ends a response, or
fills it up, lets the text environment answer; its words become tokens of the state, and its reward is this step's.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from rlhfkit.envs.guess import GuessEnv
from rlhfkit.envs.text import TextEnv, begin, proceed
from rlhfkit.errors import EnvError
from rlhfkit.records import Prompt

__all__ = ["Characters", "TokenEnv", "TokenizerVocabulary", "Vocabulary", "guess"]

Ids = NDArray[np.int64]


class Vocabulary(Protocol):
    """Text into tokens and back."""

    num_tokens: int
    """Ids are from 0 to this, exclusive."""
    pad_id: int
    """Fills up the state; as an action it is a token like any other."""
    end_ids: frozenset[int]
    """Tokens that end a response."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without PAD and EOS."""
        ...


class Characters:
    """A token a character: 0 is PAD, 1 is EOS, and then the characters of an alphabet."""

    pad_id = 0
    eos_id = 1

    def __init__(self, alphabet: str, *, ends: Iterable[str] = ()) -> None:
        """Know the characters of `alphabet`; those of `ends`, and EOS, end a response."""
        self._characters = dict.fromkeys(alphabet)
        self._ids = {character: index for index, character in enumerate(self._characters, start=2)}
        self._texts = dict(enumerate(self._characters, start=2))
        self.num_tokens = 2 + len(self._ids)
        self.end_ids = frozenset({self.eos_id, *(self._ids[end] for end in ends)})

    def encode(self, text: str) -> list[int]:
        """Ids of the characters.

        Raises: EnvError where one is not in the alphabet.
        """
        unknown = sorted(set(text) - set(self._ids))
        if unknown:
            raise EnvError(f"the alphabet lacks {unknown}, of {text[:60]!r}; add them to it")
        return [self._ids[character] for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        """The characters, without PAD and EOS."""
        return "".join(self._texts.get(int(token), "") for token in ids)


class TokenizerVocabulary:
    """The tokens of a Hugging Face tokenizer."""

    def __init__(self, tokenizer: Any, *, ends: Iterable[str] = ()) -> None:
        """Wrap `tokenizer`; EOS and the tokens `ends` end a response.

        Raises: EnvError where it lacks PAD or EOS, or one of `ends` is not a single token.
        """
        missing = [name for name in ("pad_token", "eos_token") if getattr(tokenizer, f"{name}_id") is None]
        if missing:
            raise EnvError(
                f"the tokenizer has no {' and no '.join(missing)}; set it before, as with add_special_tokens"
            )
        self.tokenizer = tokenizer
        self.num_tokens, self.pad_id = len(tokenizer), int(tokenizer.pad_token_id)
        endings = {end: self.encode(end) for end in ends}
        for end, ids in endings.items():
            if len(ids) != 1:
                raise EnvError(f"{end!r} is {len(ids)} tokens for this tokenizer; expected one; choose another end")
        self.end_ids = frozenset({int(tokenizer.eos_token_id), *(ids[0] for ids in endings.values())})

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens."""
        return [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, without special tokens."""
        return str(self.tokenizer.decode([int(token) for token in ids], skip_special_tokens=True))


class TokenEnv(gymnasium.Env[Ids, np.int64]):
    """A text environment, token by token.

    An episode that no longer fits into the state is truncated, as is one that its environment truncates. The text that
    was written so far is in `info["text"]`, and at the end `info["won"]`, where there is such a thing.
    """

    metadata = {"render_modes": ["ansi"]}  # noqa: RUF012  # so Gymnasium declares it

    def __init__(
        self,
        env: TextEnv,
        vocabulary: Vocabulary,
        *,
        max_tokens: int,
        max_response_tokens: int,
        render_mode: str | None = None,
    ) -> None:
        """States of `max_tokens` ids; a response ends after `max_response_tokens` at the latest."""
        self.env, self.vocabulary = env, vocabulary
        self.max_tokens, self.max_response_tokens = max_tokens, max_response_tokens
        self.render_mode = render_mode
        self.observation_space = spaces.MultiDiscrete(np.full(max_tokens, vocabulary.num_tokens), dtype=np.int64)
        self.action_space = spaces.Discrete(vocabulary.num_tokens)
        self._ids: list[int] = []
        self._num_sampled = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Ids, dict[str, Any]]:
        """The prompt's tokens.

        Raises: EnvError where they leave no room for a response.
        """
        super().reset(seed=seed)
        # Without a seed the next episode follows from the last seed, as everywhere in Gymnasium.
        prompt = begin(self.env, int(self.np_random.integers(2**31)) if seed is None else seed)
        self._ids, self._num_sampled = self.vocabulary.encode(_as_text(prompt)), 0
        if len(self._ids) >= self.max_tokens:
            raise EnvError(
                f"max_tokens = {self.max_tokens}, and the prompt alone has {len(self._ids)} tokens; raise it, so that "
                "responses and the environment's words fit in"
            )
        return self._state(), self._info()

    def step(self, action: np.int64) -> tuple[Ids, float, bool, bool, dict[str, Any]]:
        """The state with one more token; where it ended a response, with the environment's words after it too."""
        if not self.action_space.contains(action):
            raise EnvError(f"action {action!r} is no token id; expected one of {self.action_space}; check the policy")
        self._ids.append(int(action))
        self._num_sampled += 1
        is_end = int(action) in self.vocabulary.end_ids
        if not is_end and self._num_sampled < self.max_response_tokens:
            # A response that can never be finished is cut off with the state that it filled.
            return self._state(), 0.0, False, len(self._ids) >= self.max_tokens, self._info()
        step = proceed(self.env, self.vocabulary.decode(self._ids[-self._num_sampled :]))
        self._ids += self.vocabulary.encode(step.observation)
        self._num_sampled = 0
        is_full = len(self._ids) >= self.max_tokens
        truncated = not step.terminated and (step.truncated or is_full)
        info = self._info() | ({} if step.won is None else {"won": step.won})
        return self._state(), float(step.reward), step.terminated, truncated, info

    def render(self) -> str:
        """All that was said so far."""
        return self.vocabulary.decode(self._ids)

    def _state(self) -> Ids:
        """The ids, filled up with PAD; where they are too many, the first of them."""
        ids = self._ids[: self.max_tokens]
        return np.array([*ids, *[self.vocabulary.pad_id] * (self.max_tokens - len(ids))], dtype=np.int64)

    def _info(self) -> dict[str, Any]:
        return {"text": self.vocabulary.decode(self._ids)}


def _as_text(prompt: Prompt) -> str:
    """A conversation as a transcript."""
    if isinstance(prompt.content, str):
        return prompt.content
    names = {"user": "\n\nHuman: ", "assistant": "\n\nAssistant: "}
    return "".join(f"{names.get(turn.role, '')}{turn.content}" for turn in prompt.content) + "\n\nAssistant:"


def guess(*, highest: int = 7, max_guesses: int = 3, render_mode: str | None = None) -> TokenEnv:
    """The guessing game over characters, registered as `rlhfkit/Guess-v0`."""
    env = GuessEnv(highest=highest, max_guesses=max_guesses)
    longest_turn = len(str(highest)) + 3 + len("out of guesses")
    return TokenEnv(
        env,
        Characters("\n .:?ADEFGHINOTUabcdefghijklmnopqrstuvwxyz0123456789", ends="\n"),
        max_tokens=len(env.reset(0)) + max_guesses * longest_turn,
        max_response_tokens=len(str(highest)) + 2,
        render_mode=render_mode,
    )
