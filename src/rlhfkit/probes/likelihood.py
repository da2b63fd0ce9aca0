"""Log-probabilities of texts, and the gate of all probes that read them: does the model know the order of words?"""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhfkit.machine.seeding import derive_seed
from rlhfkit.models.language import LanguageModel
from rlhfkit.padding import Sequences
from rlhfkit.probes.probe import Gate, Subject
from rlhfkit.records import Prompt
from rlhfkit.rollout.text_experience import logprobs_in_parts

__all__ = ["Likelihood", "likelihoods", "order_gate"]

LEAST_IN_ORDER = 0.7
"""As the language modelling score of the weakest model in StereoSet's paper: below it, preferences are noise."""
MOST_GATE_TEXTS = 200
FEWEST_WORDS = 4


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How likely a model finds a text."""

    logprob: float
    """Sum over its tokens, in nats."""
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Mean over the tokens."""
        return self.logprob / max(1, self.num_tokens)


def likelihoods(subject: Subject, texts: Sequence[str], *, prompts: Sequence[str] | None = None) -> list[Likelihood]:
    """Log-probability of each text at temperature 1, from its first token on, or after its prompt.

    The first token is predicted from BOS, or from EOS where the tokenizer has no BOS. Texts beyond the model's context
    lose their beginning.
    """
    model = subject.model
    assert model is not None
    before = prompts or [""] * len(texts)
    known: dict[tuple[str, str], int] = {}
    places = [known.setdefault(pair, len(known)) for pair in zip(before, texts, strict=True)]
    rows = [_ids(model, *pair) for pair in known]
    sequences = Sequences.join(
        [row[0] for row in rows], [row[1] for row in rows], pad=model.encoder.pad_id, device=model.device
    )
    logprobs = logprobs_in_parts(
        lambda part: model.logprobs(part, temperature=1.0), sequences, max_tokens=subject.forward_tokens
    )
    sums, sizes = logprobs.double().sum(1).tolist(), sequences.mask.sum(1).tolist()
    return [Likelihood(sums[place], sizes[place]) for place in places]


def _ids(model: LanguageModel, prompt: str, text: str) -> tuple[list[int], list[int]]:
    encoder = model.encoder
    if prompt:
        first, rest = encoder.joined(Prompt(prompt), text, finished=False)
    else:
        ids = encoder.prompt_ids(Prompt(text))
        bos = encoder.tokenizer.bos_token_id
        first, rest = ([ids[0]], ids[1:]) if ids[:1] == [bos] else ([encoder.eos_id], ids)
    room = (model.context_tokens or 1 << 20) - len(rest)
    return (list(first[-room:]), list(rest)) if room > 0 else ([rest[-room]], list(rest[1 - room :]))


def order_gate(subject: Subject, texts: Sequence[str]) -> Gate:
    """Gate: a sentence must be likelier than the same one with two neighbouring words exchanged.

    Which two is drawn by the text itself, so that it is the same for every model. Half of the sentences is chance.
    """
    chosen = list(dict.fromkeys(text for text in texts if len(text.split()) >= FEWEST_WORDS))[:MOST_GATE_TEXTS]
    found = likelihoods(subject, [*chosen, *map(_exchanged, chosen)]) if chosen else []
    pairs = zip(found[: len(chosen)], found[len(chosen) :], strict=True)
    hits = tuple(real.logprob > mixed.logprob for real, mixed in pairs)
    return Gate("a sentence is likelier than with two of its words exchanged", hits, LEAST_IN_ORDER)


def _exchanged(text: str) -> str:
    words = text.split()
    places = [at for at in range(len(words) - 1) if words[at].lower() != words[at + 1].lower()]
    if places:
        at = places[derive_seed(0, "order", text) % len(places)]
        words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)
