"""Does the model recite what it was trained on? The longest span of a response that stands in a training row."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from rlhfkit.probes.probe import Measurement, Subject
from rlhfkit.probes.samples import sampled, text_gate

__all__ = ["longest_copied", "measure_leakage"]


def longest_copied(text: str, grams: "Spans") -> int:
    """Words of the longest span of `text` that stands in the training rows."""
    words, longest = text.lower().split(), 0
    for start in range(len(words)):
        while start + longest < len(words) and tuple(words[start : start + longest + 1]) in grams.of(longest + 1):
            longest += 1
    return longest


class Spans:
    """All spans of the training rows, by their number of words; made as they are asked for."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._words = [text.lower().split() for text in texts]
        self._spans: dict[int, set[tuple[str, ...]]] = {}

    def of(self, num: int) -> set[tuple[str, ...]]:
        """The spans of `num` words."""
        if num not in self._spans:
            self._spans[num] = {
                tuple(words[at : at + num]) for words in self._words for at in range(len(words) - num + 1)
            }
        return self._spans[num]


def measure_leakage(
    subject: Subject, rows: Sequence[str], *, name: str, training: Sequence[str]
) -> Iterator[Measurement]:
    """Longest copied span, in words, of the likeliest continuation of the first half of training rows.

    `rows` are the rows that are begun, `training` all that may be copied from. Common phrases make a few words of any
    text, so what tells is the change, and spans of ten words or more.
    """
    halves = [" ".join(text.split()[: max(1, len(text.split()) // 2)]) for text in rows]
    read = replace(subject, is_chat=False)  # rows are texts to go on with
    answers = [found[0] for found in sampled(read, halves, num_samples=1, use=name, is_greedy=True)]
    spans = Spans(training)
    yield Measurement(
        probe=name,
        name="copied_span",
        words="longest span that stands in a training row",
        unit="words",
        values=tuple(float(longest_copied(answer, spans)) for answer in answers),
        clusters=tuple(map(str, range(len(rows)))),
        items=tuple(halves),
        answers=tuple(answers),
        gate=text_gate(answers),
    )
