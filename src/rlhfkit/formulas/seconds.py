"""Time of an iteration, part by part, of the rank that has most to do."""

from dataclasses import dataclass

from rlhfkit.formulas.machine import Machine
from rlhfkit.formulas.memory import MOST_TOKENS, Layout, MemoryOfRank
from rlhfkit.formulas.shapes import DecoderShape
from rlhfkit.formulas.work import Work

__all__ = ["Seconds", "seconds_of"]

FORWARD, BACKWARD = 2, 4
"""Operations for a weight and a token; frozen weights have half of the backward pass."""
ATTENTION = 4
"""Operations for a token, a token that it looks at, and a number of its heads; nothing is taken off for causality."""
ADAM_BYTES = 28
"""Read of a master: itself, gradient, both averages; written: itself and both averages."""


@dataclass(frozen=True)
class Seconds:
    """Of an iteration."""

    prefill: float
    decode: float
    scoring: float
    update: float
    optimizer: float
    exchange: float
    """Gradients and weights on their way between ranks; nothing is taken to run beside it."""
    evaluation: float
    """Evaluations on the way, shared out among all iterations."""

    @property
    def sampling(self) -> float:
        """Prompts read, and responses sampled."""
        return self.prefill + self.decode

    @property
    def other(self) -> float:
        """Scoring and learning."""
        return self.scoring + self.update + self.optimizer

    @property
    def iteration(self) -> float:
        """All of it."""
        return self.sampling + self.other + self.exchange + self.evaluation


def seconds_of(work: Work, layout: Layout, memory: MemoryOfRank, machine: Machine) -> Seconds:
    """Seconds of an iteration; a trial's factors are applied."""
    rows = -(-work.episodes // layout.ranks)
    sampling, other, rounds = machine.sampling_factor, machine.other_factor, 1 + work.resample_rounds
    return Seconds(
        prefill=rounds * sampling * _prefill(work, rows, machine),
        decode=rounds * sampling * _decode(work, rows, machine),
        scoring=other * _scoring(work, rows, machine, rounds=rounds),
        update=other * _update(work, rows, memory, machine),
        optimizer=other * _optimizer(work, layout, machine),
        exchange=_exchange(work, layout, memory, rows, machine),
        evaluation=_evaluation(work, -(-work.evaluated_prompts // layout.ranks), machine),
    )


def _trunk(shape: DecoderShape, tokens: float, length: float, *, layers: int | None = None) -> float:
    """Operations of a forward pass of the layers over `tokens` in sequences of `length`."""
    attention = ATTENTION * shape.heads * shape.head_width * length
    return tokens * (layers if layers is not None else shape.layers) * (FORWARD * shape.layer_weights + attention)


def _head(shape: DecoderShape, tokens: float) -> float:
    return FORWARD * tokens * shape.embedding_parameters


def _prefill(work: Work, rows: int, machine: Machine) -> float:
    operations = _trunk(work.policy, rows * work.mean_prompt_tokens, work.mean_prompt_tokens)
    return operations / (machine.flops * machine.assumptions.forward_share.value)


def _decode(work: Work, rows: int, machine: Machine) -> float:
    """Each step reads all weights and its rows' cache, or computes: the slower of the two, and the layers' own."""
    shape, assumed = work.policy, machine.assumptions
    tokens, slots = rows * work.mean_response_tokens, min(work.slots, rows)
    # As many steps as the longest response has, or as rows that wait for a slot make necessary.
    steps = max(work.response_tokens, tokens / slots)
    context = work.mean_prompt_tokens + work.mean_response_tokens / 2
    weights = shape.layers * shape.layer_weights + shape.embedding_parameters
    num_bytes = work.itemsize * (steps * weights + tokens * context * shape.cache_numbers)
    operations = _trunk(shape, tokens, context) + _head(shape, tokens)
    reading = num_bytes / (machine.bandwidth * assumed.reading_share.value)
    computing = operations / (machine.flops * assumed.forward_share.value)
    return max(reading, computing) + steps * shape.layers * assumed.layer_seconds.value


def _scoring(work: Work, rows: int, machine: Machine, *, rounds: int = 1) -> float:
    """Old logprobs, reference, old values of a critic of its own, reward models; what is in common is read once.

    Of several rounds of sampling each gets its scores, and the last responses alone the rest.
    """
    shape, tokens, length = work.policy, rows * work.mean_tokens, work.mean_tokens
    above = shape.layers - work.layers_below
    networks = 2 + (work.critic == "separate")
    operations = networks * _trunk(shape, tokens, length, layers=above)
    operations += 2 * _head(shape, rows * work.mean_response_tokens)
    operations += _trunk(shape, tokens, length, layers=work.layers_below)
    for model, _ in work.reward_models:
        operations += _trunk(model, tokens, length, layers=above if model == shape else None)
        operations += (rounds - 1) * _trunk(model, tokens, length)
    return operations / (machine.flops * machine.assumptions.forward_share.value)


def _update(work: Work, rows: int, memory: MemoryOfRank, machine: Machine) -> float:
    shape, tokens = work.policy, rows * work.mean_tokens * work.epochs
    trained = shape.layers - work.layers_below
    passes = (FORWARD + (BACKWARD if work.lora_rank is None else BACKWARD / 2)) / FORWARD
    networks = 2 if work.critic == "separate" else 1
    trunk = networks * _trunk(shape, tokens, work.mean_tokens, layers=trained)
    operations = trunk * (passes + memory.recompute)
    operations += passes * _head(shape, rows * work.mean_response_tokens * work.epochs)
    # Texts that are learnt beside, by the policy alone and every token of them, shared out as the rows are.
    texts = work.updates * work.ptx_sequences * work.mean_tokens * rows / work.episodes
    operations += (passes + memory.recompute) * _trunk(shape, texts, work.mean_tokens, layers=trained)
    operations += passes * _head(shape, texts)
    return operations / (machine.flops * machine.assumptions.training_share.value)


def _evaluation(work: Work, rows: int, machine: Machine) -> float:
    """Prompts answered and scored as in a rollout, so often as it is time."""
    if not work.evaluations:
        return 0.0
    sampled = machine.sampling_factor * (_prefill(work, rows, machine) + _decode(work, rows, machine))
    return work.evaluations / work.iterations * (sampled + machine.other_factor * _scoring(work, rows, machine))


def _optimizer(work: Work, layout: Layout, machine: Machine) -> float:
    over = layout.ranks if layout.sharding == "fsdp" else 1
    written = work.itemsize if work.learning_itemsize < 4 else 0
    num_bytes = work.updates * sum(work.trained_networks) * (ADAM_BYTES + written) / over
    return num_bytes / machine.bandwidth


def _exchange(work: Work, layout: Layout, memory: MemoryOfRank, rows: int, machine: Machine) -> float:
    """Bytes that a rank sends in rings: (N - 1) / N of what is gathered, twice that of what is summed."""
    if layout.ranks == 1:
        return 0.0
    share = (layout.ranks - 1) / layout.ranks
    gradients = 4 * sum(work.trained_networks)
    if layout.sharding == "none":
        num_bytes = 2 * share * gradients * work.updates
    else:
        shape, w = work.policy, work.itemsize
        networks = shape.parameters + (shape.trunk_parameters if work.critic == "separate" else 0)
        of_minibatch = -(-work.minibatch_episodes // layout.ranks) * work.mean_tokens
        passes = work.updates * max(1, -(-int(of_minibatch) // memory.microbatch_tokens))
        # Weights forward and again backward, gradients of each pass shared out.
        update = passes * (2 * w * networks + gradients)
        forward_tokens = max(work.forward_tokens, work.longest)
        chunks = max(1, -(-int(rows * work.mean_tokens) // min(forward_tokens, MOST_TOKENS["gpu"])))
        frozen = w * (networks + shape.parameters) + sum(i * model.trunk_parameters for model, i in work.reward_models)
        num_bytes = share * (update + chunks * frozen + 4 * shape.parameters)  # and masters, for the copy that samples
    return num_bytes / (machine.link * machine.assumptions.link_share.value)
