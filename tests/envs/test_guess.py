"""The guessing game: its rules, and that its optimum is what dynamic programming over all states says."""

import re
from functools import cache

import numpy as np
import pytest

from rlhfkit.config.load import load_recipe
from rlhfkit.data import load_texts
from rlhfkit.envs.check import check_text_env
from rlhfkit.envs.guess import GuessEnv, best_return, transcripts
from rlhfkit.envs.text import TextStep


def hidden(env: GuessEnv, number: int) -> GuessEnv:
    """The environment, reset to a game with this number."""
    for seed in range(1000):
        env.reset(seed)
        if env._hidden == number:
            return env
    raise AssertionError(number)


def bisect(env: GuessEnv, seed: int) -> float:
    """Return of somebody who halves what is left."""
    env.reset(seed)
    low, high, total = 1, env.highest, 0.0
    while True:
        guess = (low + high) // 2
        step = env.step(f" {guess}\n")
        total += step.reward
        if step.terminated:
            return total
        low, high = (guess + 1, high) if step.observation.startswith("higher") else (low, guess - 1)


def value_by_playing(highest: int, max_guesses: int) -> float:
    """Expected return of the best strategy, by dynamic programming over the environment's own answers.

    A state is what the player knows: the hidden numbers that are still possible, and the guesses that are left. It uses
    nothing of the game but what `step` says, so it holds for these rules and no others.
    """
    games = {
        number: hidden(GuessEnv(highest=highest, max_guesses=max_guesses), number) for number in range(1, highest + 1)
    }

    def answer(number: int, past: tuple[int, ...], guess: int) -> TextStep:
        env = games[number]
        env._num_guesses, env._is_over = len(past), False
        return env.step(str(guess))

    @cache
    def wins(possible: frozenset[int], past: tuple[int, ...]) -> float:
        """Expected number of the possible numbers that the best continuation finds."""
        best = 0.0
        for guess in range(1, highest + 1):
            outcomes: dict[str, list[int]] = {}
            found = 0.0
            for number in possible:
                step = answer(number, past, guess)
                found += step.reward
                if not step.terminated:
                    outcomes.setdefault(step.observation, []).append(number)
            best = max(best, found + sum(wins(frozenset(rest), (*past, guess)) for rest in outcomes.values()))
        return best

    return wins(frozenset(range(1, highest + 1)), ()) / highest


# ── rules ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_game_goes_as_the_rules_say():
    env = hidden(GuessEnv(), 5)
    assert env.step(" 4\n") == TextStep("higher. Guess:", 0.0, terminated=False)
    assert env.step("6") == TextStep("lower. Guess:", 0.0, terminated=False)
    assert env.step(" 5\n") == TextStep("right", 1.0, terminated=True, won=True)


def test_guesses_run_out():
    env = hidden(GuessEnv(max_guesses=2), 5)
    env.step("1")
    assert env.step("2") == TextStep("out of guesses", 0.0, terminated=True, won=False)


@pytest.mark.parametrize("response", ["", "five", "5 or 6", "0", "8", "-5", "5.0"])
def test_what_is_no_number_of_the_game_costs_a_guess_and_gives_no_hint(response):
    env = hidden(GuessEnv(max_guesses=2), 5)
    assert env.step(response) == TextStep("what? Guess:", 0.0, terminated=False)
    assert env.step(response).terminated


def test_every_number_is_hidden_equally_often():
    env = GuessEnv()
    counts = np.zeros(8)
    for seed in range(3500):
        env.reset(seed)
        counts[env._hidden] += 1
    assert counts[0] == 0
    assert counts[1:] == pytest.approx(np.full(7, 500), abs=4 * 21)  # four deviations of a binomial count


def test_a_step_after_the_end_is_refused():
    env = hidden(GuessEnv(), 5)
    env.step("5")
    with pytest.raises(RuntimeError, match="the game is over; reset begins the next"):
        env.step("5")


def test_the_environment_passes_its_own_check():
    check_text_env(GuessEnv)


# ── optimum ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("highest", "max_guesses", "expected"),
    [(7, 3, 1.0), (8, 3, 7 / 8), (3, 2, 1.0), (4, 2, 3 / 4), (7, 1, 1 / 7), (5, 2, 3 / 5)],
)
def test_the_optimum_is_what_dynamic_programming_over_the_games_own_answers_gives(highest, max_guesses, expected):
    assert value_by_playing(highest, max_guesses) == pytest.approx(expected)
    assert best_return(highest, max_guesses) == pytest.approx(expected)


def test_halving_what_is_left_wins_every_game():
    assert {bisect(GuessEnv(), seed) for seed in range(100)} == {1.0}


# ── games played blindly ─────────────────────────────────────────────────────────────────────────────────────────────


def test_blind_games_are_won_as_often_as_chance_has_it():
    games = transcripts(3000, 0, highest=7, max_guesses=3)
    share = sum(game.endswith("right") for game in games) / len(games)
    assert share == pytest.approx(1 - (6 / 7) ** 3, abs=0.035)  # four deviations


def test_blind_games_read_as_the_game_reads():
    turn = r" [1-7]\n"
    game = rf"A number from 1 to 7\. Guess:{turn}((higher|lower)\. Guess:{turn}){{0,2}}(right|out of guesses)"
    games = transcripts(200, 0, highest=7, max_guesses=3)
    assert all(re.fullmatch(game, text) for text in games)
    assert games[:2] == transcripts(2, 0, highest=7, max_guesses=3)
    assert transcripts(2, 0, highest=7, max_guesses=3) != transcripts(2, 1, highest=7, max_guesses=3)


def test_the_recipe_reads_them_as_texts():
    recipe = load_recipe("guess", ["data.texts.num_rows=5"]).recipe
    loaded = load_texts(recipe.data.texts, seed=recipe.seed)
    assert loaded.records == transcripts(5, 0, highest=7, max_guesses=3)
    assert [(file.path, file.num_rows) for file in loaded.sources] == [("guess", 5)]
