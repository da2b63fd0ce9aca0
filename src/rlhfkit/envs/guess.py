"""Guess a number, with "higher" and "lower" for hints: the smallest game of several turns whose optimum is known.

    A number from 1 to 7. Guess: 4
    higher. Guess: 6
    lower. Guess: 5
    right

The return is 1 for the right number within `max_guesses`, and 0 otherwise. Whoever halves what is left finds one of
2^max_guesses - 1 numbers for certain, so with 7 numbers and 3 guesses the optimum is exactly 1, and only one strategy
reaches it; blind guessing wins 1 - (6/7)^3 = 37 %.
"""

import re

import numpy as np

from rlhfkit.envs.text import TextStep

__all__ = ["GuessEnv", "best_return", "transcripts"]

NUMBER = re.compile(r"\s*(\d+)\s*")


class GuessEnv:
    """A game: a hidden number, the same chance for each, and a few guesses.

    A response that is not a number from 1 to `highest` costs a guess and earns no hint.
    """

    def __init__(self, *, highest: int = 7, max_guesses: int = 3) -> None:
        """Hide a number from 1 to `highest`."""
        self.highest, self.max_guesses = highest, max_guesses
        self._hidden = 0
        self._num_guesses, self._is_over = 0, True

    def reset(self, seed: int) -> str:
        """The prompt, which ends where the number belongs."""
        self._hidden = int(np.random.default_rng(seed).integers(1, self.highest + 1))
        self._num_guesses, self._is_over = 0, False
        return f"A number from 1 to {self.highest}. Guess:"

    def step(self, response: str) -> TextStep:
        """The hint, or the end."""
        if self._is_over:
            raise RuntimeError("the game is over; reset begins the next")
        self._num_guesses += 1
        match = NUMBER.fullmatch(response)
        guess = int(match[1]) if match else 0
        self._is_over = guess == self._hidden or self._num_guesses == self.max_guesses
        if self._is_over:
            won = guess == self._hidden
            return TextStep("right" if won else "out of guesses", float(won), terminated=True, won=won)
        if not 1 <= guess <= self.highest:
            return TextStep("what? Guess:", 0.0, terminated=False)
        return TextStep(f"{'higher' if self._hidden > guess else 'lower'}. Guess:", 0.0, terminated=False)


def best_return(highest: int, max_guesses: int) -> float:
    """Expected return of the best strategy.

    W(n, g) = max over the guess k of 1 + W(k - 1, g - 1) + W(n - k, g - 1)        (0 where n or g is 0)

    is the number of hidden numbers, out of n that are still possible, that g guesses find; the return is W / n.
    """
    found = [0] * (highest + 1)
    for _ in range(max_guesses):
        found = [0, *(max(1 + found[k - 1] + found[n - k] for k in range(1, n + 1)) for n in range(1, highest + 1))]
    return found[highest] / highest


def transcripts(num_rows: int, seed: int, *, highest: int, max_guesses: int) -> list[str]:
    """Games of somebody who guesses blindly: the language of the game, and nothing of how to win it."""
    generator = np.random.default_rng([seed, 3])
    env = GuessEnv(highest=highest, max_guesses=max_guesses)
    texts = []
    for _ in range(num_rows):
        text, over = env.reset(int(generator.integers(2**31))), False
        while not over:
            response = f" {generator.integers(1, highest + 1)}\n"
            step = env.step(response)
            text, over = f"{text}{response}{step.observation}", step.terminated
        texts.append(text)
    return texts
