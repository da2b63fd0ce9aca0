"""From a model and prompts to labelled pairs in a store: sample, choose, put them before people, real or simulated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhfkit.config.feedback import PeopleConfig, PreferencesConfig
from rlhfkit.config.ppo import RolloutConfig
from rlhfkit.errors import DataError
from rlhfkit.feedback.active.choose import choose_pairs
from rlhfkit.feedback.active.features import text_features
from rlhfkit.feedback.active.labelled import LabelledPairs
from rlhfkit.feedback.states import Snapshot
from rlhfkit.feedback.store import Store
from rlhfkit.feedback.trust.votes import is_random
from rlhfkit.feedback.votes import Pair, Part, Vote, pair_id, part_of_prompt
from rlhfkit.machine.seeding import derive_seed, shuffled
from rlhfkit.models.encoder import EncodedPrompt
from rlhfkit.models.language import LanguageModel
from rlhfkit.records import Conversation, Prompt
from rlhfkit.rollout.generation import generate
from rlhfkit.wording import counted

__all__ = [
    "PairSampler",
    "with_calibration",
]


LEAST_TEST_PROMPTS = 0.2
"""Share of the prompts whose pairs measure, however few pairs these are: pairs of one prompt hang together."""


@dataclass(frozen=True)
class PairSampler:
    """Samples pairs of a model's responses to prompts."""

    model: LanguageModel
    model_name: str
    """What the store calls the model; no annotator sees it."""
    prompts: Sequence[EncodedPrompt]
    rollout: RolloutConfig
    config: PreferencesConfig
    seed: int

    def num_responses(self) -> int:
        """How many responses `pairs` samples."""
        return 2 * (max(self.config.num_pairs, self.config.num_candidates) + self.config.num_test_pairs)

    def pairs(self, store: Store, *, on_finished: Callable[[int], None], tell: Callable[[str], None]) -> list[Pair]:
        """Training pairs, chosen where a label teaches most if there are more candidates, and random test pairs.

        A prompt is of one part in every round: of that which it has in the store, or by its hash. Pairs of the same two
        responses, or with an empty one, are left out. Asked again, as after an interruption, it gives the same pairs.
        Raises: DataError where the prompts are too few for both parts, or where no pair is left.
        """
        config, known = self.config, store.snapshot()
        num_train, num_test = max(config.num_pairs, config.num_candidates), config.num_test_pairs
        share = max(LEAST_TEST_PROMPTS, num_test / (config.num_pairs + num_test)) if num_test else 0.0
        parts = self._parts(share, {pair.prompt: pair.part for pair in known.pairs})
        train = self._sampled("train", num_train, parts["train"], on_finished, tell)
        test = self._sampled("test", num_test, parts["test"], on_finished, tell) if num_test else []
        if config.num_candidates > config.num_pairs:
            train = self._chosen(train, known, tell)
        pairs = train + test
        if isinstance(config.annotators, PeopleConfig):
            return with_calibration(pairs, config.annotators.calibration_share, seed=self.seed)
        return pairs

    def _parts(self, test_share: float, known: Mapping[str | Conversation, Part]) -> dict[Part, list[EncodedPrompt]]:
        parts: dict[Part, list[EncodedPrompt]] = {"train": [], "test": []}
        for row in shuffled(len(self.prompts), derive_seed(self.seed, "preference prompts", self.config.round)):
            prompt = self.prompts[row]
            content = prompt.prompt.content
            parts[known.get(content) or part_of_prompt(content, test_share=test_share)].append(prompt)
        if not parts["train"] or (test_share > 0 and not parts["test"]):
            stay = ", some of which the store has already for one of the two" if known else ""
            raise DataError(
                f"{counted(len(self.prompts), 'prompt')}{stay}: too few for training and test "
                "pairs, as each prompt is for one of the two; give some dozens"
            )
        return parts

    def _sampled(
        self,
        part: Part,
        num: int,
        prompts: Sequence[EncodedPrompt],
        on_finished: Callable[[int], None],
        tell: Callable[[str], None],
    ) -> list[Pair]:
        drawn = [prompts[index % len(prompts)] for index in range(num)]
        sides = []
        for which in (0, 1):
            names = ("preferences", self.config.round, part, which)
            seeds = [derive_seed(self.seed, *names, row) for row in range(num)]
            responses = generate(
                self.model, [prompt.ids for prompt in drawn], self.rollout, seeds=seeds, on_finished=on_finished
            )
            sides.append([self.model.encoder.decode(response.ids) for response in responses])
        pairs = {
            pair.id: pair
            for pair in (
                self._pair(prompt.prompt, first, second, part)
                for prompt, first, second in zip(drawn, *sides, strict=True)
                if first.strip() and second.strip() and first != second
            )
        }
        why = "the same response twice, an empty one, or a pair that came before"
        if not pairs:
            raise DataError(
                f"none of {num} {part} pairs can be compared ({why}); raise rollout.temperature, or give another model "
                f"than {self.model_name}"
            )
        if len(pairs) < num:
            tell(f"{num - len(pairs)} of {num} {part} pairs left out: {why}")
        return list(pairs.values())

    def _pair(self, prompt: Prompt, first: str, second: str, part: Part) -> Pair:
        return Pair(
            id=pair_id(prompt.content, first, second, round=self.config.round),
            prompt=prompt.content,
            response_a=first,
            response_b=second,
            model_a=self.model_name,
            model_b=self.model_name,
            settings={
                "temperature": self.rollout.temperature,
                "max_response_tokens": self.rollout.max_response_tokens,
                "seed": self.seed,
            },
            round=self.config.round,
            reason="random",
            probability=1.0,
            part=part,
            origin=prompt.origin,
        )

    def _chosen(self, candidates: list[Pair], known: Snapshot, tell: Callable[[str], None]) -> list[Pair]:
        """`num_pairs` of the candidates, by what the labels of the rounds before leave open.

        Labels of this round do not count, and what was chosen stays, so that a run that goes on asks nothing else.
        """
        num, names = self.config.num_pairs, {pair.id for pair in candidates}
        kept = [pair for pair in known.pairs if pair.id in names]
        if len(kept) >= num:
            return kept
        shares = _shares_for_a(known.votes)
        labelled = [pair for pair in known.pairs if pair.id in shares and self._teaches(pair)]
        # Words and lengths: on hidden states of a small model the heads were hardly better than a coin.
        features = text_features([*candidates, *labelled])
        selection = choose_pairs(
            features[: len(candidates)],
            LabelledPairs(
                features[len(candidates) :],
                np.array([shares[pair.id] for pair in labelled]),
                np.array([is_random(pair) for pair in labelled], dtype=bool),
                [pair.prompt for pair in labelled],
                np.array([len(pair.response_a) - len(pair.response_b) for pair in labelled], dtype=float),
            ),
            num=num,
            prompts=[pair.prompt for pair in candidates],
            generator=np.random.default_rng(derive_seed(self.seed, "choice", self.config.round)),
            random_share=self.config.random_share,
        )
        tell(selection.message)
        chosen = [
            replace(candidates[one.index], reason=one.reason, probability=one.probability) for one in selection.chosen
        ]
        kept_names = {pair.id for pair in kept}
        return kept + [pair for pair in chosen if pair.id not in kept_names][: num - len(kept)]

    def _teaches(self, pair: Pair) -> bool:
        """Whether a labelled pair of the store can tell what to ask next."""
        is_earlier = pair.round < self.config.round or pair.reason == "given"
        return is_earlier and pair.part == "train"


def with_calibration(pairs: Sequence[Pair], share: float, *, seed: int) -> list[Pair]:
    """The pairs, a share of which now belongs to the pool that everybody labels; none that was chosen actively."""
    fair = [index for index, pair in enumerate(pairs) if pair.reason != "active"]
    num = min(len(fair), round(share * len(pairs)))
    pool = {fair[place] for place in shuffled(len(fair), derive_seed(seed, "calibration"))[:num]}
    return [replace(pair, is_calibration=index in pool) for index, pair in enumerate(pairs)]


def _shares_for_a(votes: Sequence[Vote]) -> dict[str, float]:
    """Pair → share of its votes that are for `response_a`, a tie for either half; skips say nothing."""
    said: dict[str, list[float]] = {}
    for vote in votes:
        if vote.choice.kind != "skip":
            side = vote.choice.preferred
            said.setdefault(vote.pair_id, []).append(0.5 if side is None else float(side == "a"))
    return {pair: sum(shares) / len(shares) for pair, shares in said.items()}
