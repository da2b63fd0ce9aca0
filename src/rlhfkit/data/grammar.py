"""A synthetic world for demonstrations: restaurant reviews whose true score is known.

    Review of the Blue Door, a pizza place: The pizza was superb. The bread was stale. The wine was fine. …

A review has six to eight clauses, in the order of a visit. Each gives an opinion of one aspect, good or bad with equal
chance and whatever the others say. The true score adds 1 for a good and subtracts 1 for a bad opinion, and subtracts 1
for a clause that is none: an unknown sentence, an aspect that had its turn, another kitchen's dish. So scores of
reviews have mean 0 and deviation sqrt(7) = 2.65, the best review has 8, three deviations above the mean, and
repetition does not pay.

Reviews written with seeds that differ (modulo 8) are about different restaurants, so that held-out prompts exist.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import product
from typing import TypeVar

import numpy as np

from rlhfkit.config.data import GrammarConfig
from rlhfkit.data.rows import Loaded, SourceFile
from rlhfkit.errors import DataError
from rlhfkit.records import Demonstration, Preference, Prompt

__all__ = ["NUM_WORLDS", "demonstrations", "load", "preferences", "prompts", "texts", "true_score"]

T = TypeVar("T")

MOST_CLAUSES = 8
FEWEST_CLAUSES = 6
NUM_WORLDS = 8
"""Seeds that are equal modulo this write about the same restaurants."""

ADJECTIVES = (
    *("Blue", "Green", "Red", "White", "Black", "Golden", "Silver", "Copper"),
    *("Old", "New", "Little", "Happy", "Quiet", "Lucky", "Royal", "Wild"),
)
NOUNS = (
    *("Door", "Lion", "Garden", "Moon", "River", "Table", "Lamp", "Ship"),
    *("Rose", "Bridge", "Star", "Tower", "Mill", "Bear", "Crown", "Oak"),
)
KITCHENS = {
    "pizza": "pizza place",
    "curry": "curry house",
    "sushi": "sushi bar",
    "steak": "steak house",
    "pasta": "pasta place",
    "burger": "burger bar",
    "ramen": "ramen bar",
    "fish": "fish house",
}
"""Dish → kind of restaurant."""

OPINIONS = {
    "dish": (("superb", "tasty"), ("bland", "awful")),
    "bread": (("fresh", "warm"), ("stale", "dry")),
    "wine": (("superb", "fine"), ("sour", "weak")),
    "dessert": (("fresh", "light"), ("dry", "bland")),
    "waiter": (("kind", "quick"), ("rude", "slow")),
    "room": (("warm", "bright"), ("cold", "dirty")),
    "music": (("soft", "fine"), ("loud", "dull")),
    "price": (("fair", "low"), ("high", "unfair")),
}
"""Aspect → its good and its bad words. A word is good or bad wherever it stands."""

PROMPT = re.compile(rf"Review of the \w+ \w+, a ({'|'.join(KITCHENS)}) \w+:")
CLAUSE = re.compile(r"[^.]*\.|[^.]+\Z")


def texts(num_rows: int, seed: int) -> list[str]:
    """Whole reviews: prompt and response."""
    return [f"{row.prompt.content}{row.response}" for row in demonstrations(num_rows, seed)]


def demonstrations(num_rows: int, seed: int) -> list[Demonstration]:
    """Prompts, each with a review; the response begins with the blank after the prompt."""
    generator = np.random.default_rng([seed, 1])
    return [Demonstration(prompt, _review(prompt, generator)) for prompt in prompts(num_rows, seed)]


def preferences(num_rows: int, seed: int) -> list[Preference]:
    """Prompts, each with two reviews, of which the one with the higher true score is chosen."""
    generator = np.random.default_rng([seed, 2])
    pairs = []
    for prompt in prompts(num_rows, seed):
        scores = [0.0, 0.0]
        while scores[0] == scores[1]:
            reviews = [_review(prompt, generator) for _ in scores]
            scores = [true_score(str(prompt.content), review) for review in reviews]
        best = scores.index(max(scores))
        pairs.append(Preference(prompt, reviews[best], reviews[1 - best]))
    return pairs


def prompts(num_rows: int, seed: int) -> list[Prompt]:
    """Prompts in random order; a restaurant comes again only after all others of the seed's world."""
    world = [
        f"Review of the {adjective} {noun}, a {kitchen}:"
        for (first, adjective), (second, noun) in product(enumerate(ADJECTIVES), enumerate(NOUNS))
        for kitchen in KITCHENS.values()
        if (first + second) % NUM_WORLDS == seed % NUM_WORLDS
    ]
    order = np.random.default_rng([seed, 0]).permutation(len(world))
    return [Prompt(world[order[row % len(world)]], origin=f"grammar:{row + 1}") for row in range(num_rows)]


def true_score(prompt: str, response: str) -> float:
    """Good clauses less bad clauses less clauses that are no opinion of something new.

    Raises: DataError where the prompt does not ask for a review.
    """
    dish = _dish(prompt)
    score = 0
    judged = set()
    for clause in CLAUSE.findall(response):
        sentence = clause.strip()
        if not sentence:
            continue
        aspect, opinion = _CLAUSES[dish].get(sentence, ("", 0))
        if not aspect or aspect in judged:
            score -= 1
        else:
            judged.add(aspect)
            score += opinion
    return float(score)


def load(write: Callable[[int, int], Sequence[T]], source: GrammarConfig, seed: int) -> Loaded[T]:
    """What `write` (a function of this module) makes for a recipe with this seed."""
    records = list(write(source.num_rows, seed + source.seed_offset))
    sha256 = hashlib.sha256("\n".join(map(str, records)).encode()).hexdigest()
    return Loaded(records, (), (SourceFile("grammar", sha256, len(records)),))


def _clause(aspect: str, dish: str, word: str) -> str:
    return f"The {dish if aspect == 'dish' else aspect} was {word}."


_CLAUSES = {
    dish: {
        _clause(aspect, dish, word): (aspect, opinion)
        for aspect, (good, bad) in OPINIONS.items()
        for words, opinion in ((good, 1), (bad, -1))
        for word in words
    }
    for dish in KITCHENS
}
"""Dish → clause → its aspect and opinion."""


def _dish(prompt: str) -> str:
    asked = PROMPT.fullmatch(prompt.strip())
    if asked is None:
        raise DataError(
            f"{prompt[:60]!r} does not ask for a review; expected a prompt such as "
            '"Review of the Blue Door, a pizza place:"; score it with another reward'
        )
    return asked[1]


def _review(prompt: Prompt, generator: np.random.Generator) -> str:
    dish = _dish(str(prompt.content))
    num_clauses = int(generator.integers(FEWEST_CLAUSES, MOST_CLAUSES + 1))
    chosen = sorted(generator.choice(len(OPINIONS), size=num_clauses, replace=False))
    aspects = list(OPINIONS)
    review = ""
    for index in chosen:
        words = OPINIONS[aspects[index]][int(generator.integers(2))]
        review += " " + _clause(aspects[index], dish, words[int(generator.integers(len(words)))])
    return review
