"""Memory of a rank, part by part.

What an update keeps was counted from autograd, and tests count it again (`kept_numbers`); the rest follows from what
the code holds. `training.memory` measures the same parts of a process whose models are loaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from rlhfkit.formulas.assumptions import Assumptions
from rlhfkit.formulas.shapes import DecoderShape
from rlhfkit.formulas.work import Work

__all__ = [
    "Layout",
    "MemoryOfRank",
    "Part",
    "Phase",
    "Sharding",
    "kept_numbers",
    "loaded_bytes",
    "memory_of",
    "parting_helps",
]

Phase = Literal["always", "update", "sampling", "scoring", "preparing", "host"]
BUSY: tuple[Phase, ...] = ("update", "sampling", "scoring")
"""What may be at its fullest beside what is there all the time; while a run is prepared, nothing else is there."""
Sharding = Literal["none", "fsdp"]

# Numbers (in the weights' type) that a layer keeps of a token, in units of its width. Llama's: the input of each norm,
# its output, queries, attention's output, both sums, with two float32 copies in bfloat16; four of the MLP's width
# (gate, its activation, up, their product). GPT-2's: the same without float32 copies, and two of the MLP's width.
WIDTHS_KEPT = {(True, 4): 8, (True, 2): 10, (False, 4): 6, (False, 2): 6}  # by (whether the MLP is gated, bytes)
INNER_KEPT = {True: 4, False: 2}
# The frozen matrices of a model with adapters need no inputs, but adapters do, in float32.
LORA_FLOAT32, LORA_BFLOAT16 = -2, 8
# Above the layers: the last norm.
TOP_WIDTHS = {(True, 4): 2, (True, 2): 3, (False, 4): 1, (False, 2): 1}
# Of logits: in float32 what the gradient needs, and the gradient.
LOGIT_BYTES = 8
# As in models.language: logits of so many numbers exist at a time, twice as many with a gradient.
MOST_LOGITS, GRADIENT_FACTOR = 2**23, 2
# As in distributed.ranks: gradients are exchanged in buckets of so many numbers.
BUCKET_NUMBERS = 2**24
# Tokens of the fullest microbatch, in those of a mean one.
FULLEST = 1.1
# As in training.memory: tokens beyond which a pass is no faster, and below which layers are rather computed twice.
MOST_TOKENS = {"cpu": 8192, "gpu": 65536}
ENOUGH_TOKENS, GRANULE_TOKENS = 1024, 64
PREPARING_SHARE = 0.95
"""Of the memory, that may be taken before anything is freed and taken again: the rest is rounding."""
FSDP_BLOCKS = 2
"""Layers whose whole weights are there at a time: the one that computes and the next."""


@dataclass(frozen=True)
class Layout:
    """How the work is laid out on ranks."""

    ranks: int
    sharding: Sharding
    """As `parallel.shard`. "none": each rank holds all models, and the rows are shared out. "fsdp": weights, gradients
    and Adam's averages of all models are parted as well, and gathered layer by layer."""
    on_cpu: bool


@dataclass(frozen=True)
class Part:
    """So much memory of a rank, in a phase."""

    name: str
    num_bytes: int
    phase: Phase = "always"


@dataclass(frozen=True)
class MemoryOfRank:
    """All parts, with the microbatch that they are of."""

    parts: tuple[Part, ...]
    microbatch_tokens: int
    """Most tokens of a forward and backward pass."""
    recompute: bool
    fits: bool
    usable_bytes: int
    """What may be taken: models and program, and the usable share of what they leave."""

    @property
    def peak_bytes(self) -> int:
        """Most that is held at a time, without slack."""
        return _peak(self.parts)

    @property
    def host_bytes(self) -> int:
        """Of the CPU's memory, beside an accelerator; of the rank that writes."""
        return sum(part.num_bytes for part in self.parts if part.phase == "host")

    @property
    def fullest_phase(self) -> str:
        """In which phase the peak is."""
        busiest = max(BUSY, key=lambda phase: _of_phase(self.parts, phase))
        return "preparing" if _of_phase(self.parts, "preparing") > _working_peak(self.parts) else busiest


def _of_phase(parts: tuple[Part, ...], phase: str) -> int:
    return sum(part.num_bytes for part in parts if part.phase == phase)


def _peak(parts: tuple[Part, ...]) -> int:
    return max(_working_peak(parts), _of_phase(parts, "preparing"))


def _working_peak(parts: tuple[Part, ...]) -> int:
    return _of_phase(parts, "always") + max(_of_phase(parts, phase) for phase in BUSY)


def parting_helps(whole: MemoryOfRank, parted: MemoryOfRank) -> bool:
    """Whether weights are rather parted among the ranks: where whole ones do not fit, and parted ones need less."""
    return not whole.fits and (parted.fits or parted.peak_bytes < whole.peak_bytes)


def kept_numbers(
    shape: DecoderShape, *, itemsize: int, longest: int, lora_rank: int | None, fused: bool
) -> tuple[float, float]:
    """Numbers, in the weights' type, that autograd keeps of a token: (by a layer, above all layers).

    `fused`: attention keeps no weights, as on a GPU; on a CPU it keeps one of each head and token of the sequence.
    """
    keys = 2 * shape.key_heads * shape.head_width
    widths = WIDTHS_KEPT[shape.gated, itemsize]
    layer: float = widths * shape.width + keys + INNER_KEPT[shape.gated] * shape.inner
    layer += 0 if fused else shape.heads * longest
    top = TOP_WIDTHS[shape.gated, itemsize] * shape.width
    if lora_rank is not None:
        layer += (LORA_FLOAT32 if itemsize == 4 else LORA_BFLOAT16) * shape.width
        layer += (shape.inner if itemsize == 2 else 0) + len(shape.matrices) * lora_rank * 4 / itemsize
    return layer, top


def memory_of(work: Work, layout: Layout, assumptions: Assumptions, memory_bytes: int) -> MemoryOfRank:
    """Memory of the fullest rank, with the largest microbatch that the recipe wants and that has room.

    Layers are computed twice where the recipe says so, or leaves it open and there is too little room else.
    """
    options = [False, True] if work.recompute == "auto" else [work.recompute]
    for recompute in options:
        found = _with_microbatch(work, layout, assumptions, memory_bytes, recompute=recompute)
        if found.fits and found.microbatch_tokens >= _enough(work, layout):
            return found
    return found


def _enough(work: Work, layout: Layout) -> int:
    """Tokens below which layers are rather computed twice; a minibatch may have fewer."""
    return min(ENOUGH_TOKENS, _minibatch_tokens(work, layout)) if work.microbatch_tokens == "auto" else 0


def _minibatch_tokens(work: Work, layout: Layout) -> int:
    """Tokens of a rank's rows of a minibatch."""
    rows = -(-work.minibatch_episodes // layout.ranks)
    return max(work.longest, int(min(rows * work.longest, FULLEST * rows * work.mean_tokens)))


def _with_microbatch(
    work: Work, layout: Layout, assumptions: Assumptions, memory_bytes: int, *, recompute: bool
) -> MemoryOfRank:
    fixed = (*_program(work, assumptions), *_models(work, layout), *_learning(work, layout), *_sampling(work, layout))
    fixed += (*_scoring(work, layout), *_of_update(work, layout), *_preparing(work, layout, assumptions))
    loaded = loaded_bytes(work, layout) + sum(part.num_bytes for part in _program(work, assumptions))
    usable = min(memory_bytes, int(loaded + (memory_bytes - loaded) * assumptions.usable_share.value))
    per_token, above = _per_token(work, assumptions, fused=not layout.on_cpu, recompute=recompute)
    most = _minibatch_tokens(work, layout)
    room = usable - _of_phase(fixed, "always") - _of_phase(fixed, "update") - above
    if work.microbatch_tokens == "auto":
        tokens = min(max(work.longest, int(room / per_token)), most, MOST_TOKENS["cpu" if layout.on_cpu else "gpu"])
        tokens = max(work.longest, tokens // GRANULE_TOKENS * GRANULE_TOKENS)
    else:
        tokens = max(work.longest, min(work.microbatch_tokens, most))
    parts = (*fixed, Part("activations", int(per_token * tokens) + above, "update"))
    fits = _working_peak(parts) <= usable and _of_phase(parts, "preparing") <= PREPARING_SHARE * memory_bytes
    return MemoryOfRank(parts, tokens, recompute, fits, usable)


def _per_token(work: Work, assumptions: Assumptions, *, fused: bool, recompute: bool) -> tuple[float, int]:
    """(bytes of an update for each token of a microbatch, bytes for it whatever it has)."""
    layer, top = kept_numbers(
        work.policy, itemsize=work.itemsize, longest=work.longest, lora_rank=work.lora_rank, fused=fused
    )
    layers = work.policy.layers - work.layers_below
    networks = 2 if work.critic == "separate" else 1
    factor = assumptions.backward_factor.value * work.itemsize
    if not recompute:
        return factor * networks * (layers * layer + top), 0
    # Each layer keeps its input alone, and one at a time computes the rest again.
    return factor * (networks * (layers * work.policy.width + top) + layer), 0


def loaded_bytes(work: Work, layout: Layout) -> int:
    """The models, and the masters that stand beside them from the start."""
    return sum(part.num_bytes for part in _models(work, layout))


def _program(work: Work, assumptions: Assumptions) -> Iterator[Part]:
    yield Part("program", int(assumptions.program_bytes.value + assumptions.library_bytes.value))
    if not work.is_first_stage:
        yield Part("left behind by earlier stages", int(assumptions.earlier_bytes.value))


def _models(work: Work, layout: Layout) -> Iterator[Part]:
    """Weights, and the masters that stand beside them from the start."""
    parted = layout.sharding == "fsdp"
    over = layout.ranks if parted else 1
    shape, w = work.policy, work.itemsize
    # Parted weights that learn are the masters; parted models have no layers in common.
    twice = 0 if parted and work.lora_rank is None else 1
    below = 0 if parted else work.parameters_below
    frozen = work.parameters_below if parted else 0
    learning = work.trained_networks
    yield Part("policy, weights", w * (frozen + twice * (shape.parameters - frozen)) // over)
    if work.critic == "separate":
        own = shape.trunk_parameters - below - frozen
        yield Part("critic, weights", w * (frozen + twice * own) // over)
    if parted and not work.only_learns:
        yield Part("policy, whole, to sample", w * shape.parameters)
    has_reference = work.lora_rank is None and not work.only_learns
    yield Part("reference", w * (shape.parameters - below) // over if has_reference else 0)
    scoring = sum(
        size * (model.trunk_parameters - (below if model == shape else 0)) for model, size in work.reward_models
    )
    yield Part("reward model", scoring // over)
    yield Part("adapters", 4 * sum(learning) if work.lora_rank is not None else 0)
    has_masters = work.lora_rank is None and (parted or w < 4)
    yield Part("float32 masters", 4 * sum(learning) // over if has_masters else 0)


def _over(work: Work, layout: Layout) -> int:
    """Among how many ranks what learns is parted: adapters are whole on each."""
    return layout.ranks if layout.sharding == "fsdp" and work.lora_rank is None else 1


def _learning(work: Work, layout: Layout) -> Iterator[Part]:
    """What is there from the first update on."""
    over, trained = _over(work, layout), sum(work.trained_networks)
    yield Part("Adam's two averages", 8 * trained // over)
    is_mixed = work.learning_itemsize < 4
    of_weight = 4 if over > 1 else work.learning_itemsize + (4 if is_mixed else 0)
    average = 4 * work.trained_networks[0] if work.keeps_average else 0
    yield Part("average of the policy's weights", average // over)
    copied = trained * (of_weight + 8) + average
    yield Part("copy for a checkpoint", copied // over, "always" if layout.on_cpu else "host")
    if work.layers_below and layout.sharding == "none":
        numbers = 2 * work.episodes * work.longest * work.policy.width
        yield Part("what frozen layers made", work.itemsize * numbers)


def _preparing(work: Work, layout: Layout, assumptions: Assumptions) -> Iterator[Part]:
    """Before they are parted, policy and critic are whole on each rank, and a layer at a time becomes float32."""
    if layout.sharding == "none":
        return
    shape, w = work.policy, work.itemsize
    totals = [shape.parameters, *([shape.trunk_parameters] if work.critic == "separate" else [])]
    learning = sum(work.trained_networks) if work.lora_rank is not None else shape.layer_parameters
    whole = w * sum(totals) + 4 * learning
    yield Part("policy and critic, not parted yet", whole, "preparing")
    others = {"policy, whole, to sample", "reference", "reward model"}
    beside = [part for part in _models(work, layout) if part.name in others]
    for part in (*beside, *_program(work, assumptions)):
        yield Part(part.name, part.num_bytes, "preparing")


def _of_update(work: Work, layout: Layout) -> Iterator[Part]:
    trained = sum(work.trained_networks)
    yield Part("gradients", 4 * trained // _over(work, layout), "update")
    rows = -(-work.minibatch_episodes // layout.ranks)
    chunk = min(GRADIENT_FACTOR * MOST_LOGITS, rows * work.response_tokens * work.policy.vocabulary)
    yield Part("logits of a chunk", LOGIT_BYTES * chunk, "update")
    if layout.ranks > 1 and layout.sharding == "none":
        largest = work.policy.largest_tensor if work.lora_rank is None and not work.layers_below else 0
        yield Part("bucket of gradients", 4 * max(min(BUCKET_NUMBERS, trained), min(largest, trained)), "update")
    if layout.sharding == "fsdp":
        networks = 2 if work.critic == "separate" else 1
        yield Part("layers gathered, and their gradients", 2 * networks * _gathered(work), "update")


def _gathered(work: Work) -> int:
    """Whole weights that are there at a time while layers are gathered: two, and embeddings and head."""
    shape = work.policy
    root = shape.embedding_parameters * (1 if shape.tied else 2)
    return work.itemsize * (FSDP_BLOCKS * shape.layer_parameters + root)


def _sampling(work: Work, layout: Layout) -> Iterator[Part]:
    if work.only_learns:
        return
    shape, w = work.policy, work.itemsize
    slots = min(work.slots, -(-work.episodes // layout.ranks))
    yield Part("KV cache", (slots + 1) * (work.longest + 1) * w * shape.cache_numbers, "sampling")
    yield Part("logits of a step", slots * 3 * 4 * shape.vocabulary, "sampling")
    if layout.on_cpu:
        numbers = shape.layers * shape.layer_weights + shape.embedding_parameters
        yield Part("weights laid out for sampling", w * numbers, "sampling")


def _scoring(work: Work, layout: Layout) -> Iterator[Part]:
    if work.only_learns:
        return
    shape, w = work.policy, work.itemsize
    rows = -(-work.episodes // layout.ranks)
    tokens = min(max(work.forward_tokens, work.longest), rows * work.longest)
    layer, _ = kept_numbers(shape, itemsize=w, longest=work.longest, lora_rank=None, fused=not layout.on_cpu)
    logits = min(MOST_LOGITS, rows * work.response_tokens * shape.vocabulary)
    yield Part("a layer at a time", int(tokens * layer * w), "scoring")
    yield Part("logits of a chunk", logits * (w + 16), "scoring")
    if layout.sharding == "fsdp":
        yield Part("layers gathered", _gathered(work), "scoring")
