"""A plan as lines for people."""

from collections.abc import Iterator

from rlhfkit.formulas.memory import Part
from rlhfkit.planning.plan import Alternative, Plan
from rlhfkit.wording import binary, counted, duration, number

__all__ = ["lines_of"]

NAME_WIDTH = 32
PHASES = {
    "always": "Memory of a rank, all the time",
    "update": "while it updates",
    "sampling": "while it samples",
    "scoring": "while it scores",
    "preparing": "while the run is prepared, in all",
    "host": "of the CPU's memory, of the rank that writes",
}
SHARDINGS = {
    "none": "parallel.shard=none: every rank holds all models, and rows are shared out",
    "fsdp": "parallel.shard=fsdp: weights, gradients and averages are parted too, and gathered layer by layer",
}


def lines_of(plan: Plan) -> Iterator[str]:
    """What the command prints."""
    shape, memory = plan.work.policy, plan.laid.memory
    yield f"PPO of {plan.recipe}: {shape.name}, {_parameters(shape.parameters)} parameters, on {plan.machine.name}"
    yield ""
    yield _verdict(plan)
    yield f"  {SHARDINGS[plan.laid.layout.sharding]}"
    yield f"  microbatch of {memory.microbatch_tokens:,} tokens{', layers computed twice' if memory.recompute else ''}"
    yield ""
    yield from _memory_lines(plan)
    yield ""
    yield from _time_lines(plan)
    if not plan.fits:
        yield ""
        yield from _alternative_lines(plan.alternatives)
    yield ""
    yield from _assumption_lines(plan)


def _parameters(num: int) -> str:
    if num >= 1e9:
        return f"{num / 1e9:.2f} billion"
    return f"{num / 1e6:.1f} million" if num >= 1e6 else f"{num:,}"


def _verdict(plan: Plan) -> str:
    memory = plan.laid.memory
    needed, there = binary(memory.peak_bytes), binary(plan.machine.memory_bytes)
    usable = binary(memory.usable_bytes)
    when = " while the run is prepared" if memory.fullest_phase == "preparing" else ""
    verdict = "Fits" if plan.fits else "Does not fit"
    return f"{verdict}: {needed}{when} of a rank's {there}, of which {usable} may be taken at work"


def _memory_lines(plan: Plan) -> Iterator[str]:
    memory = plan.laid.memory
    for phase, title in PHASES.items():
        parts = [part for part in memory.parts if part.phase == phase and part.num_bytes]
        if not parts:
            continue
        mark = " (the fullest)" if phase == memory.fullest_phase else ""
        yield f"{title}{mark}"
        yield from (_row(part.name, binary(part.num_bytes)) for part in sorted(parts, key=_size, reverse=True))
    yield _row("allocator's slack", binary(max(0, plan.machine.memory_bytes - memory.usable_bytes)))


def _size(part: Part) -> int:
    return part.num_bytes


def _row(name: str, value: str) -> str:
    return f"  {name:<{NAME_WIDTH}} {value:>12}"


def _time_lines(plan: Plan) -> Iterator[str]:
    seconds, work = plan.laid.seconds, plan.work
    how = "by a trial" if plan.measured else "by formulas and the assumptions below"
    yield f"Time of an iteration, {how}"
    for name, value in (
        ("prompts read", seconds.prefill),
        ("responses sampled", seconds.decode),
        ("scored: reward, reference, policy", seconds.scoring),
        ("updates", seconds.update),
        ("optimizer", seconds.optimizer),
        ("between ranks", seconds.exchange),
        ("evaluated on the way, shared out", seconds.evaluation),
    ):
        if value:
            yield _row(name, _short(value))
    yield _row("all", _short(seconds.iteration))
    yield _row("response tokens", f"{number(plan.tokens_per_second)}/s")
    whole = f"{counted(work.iterations, 'iteration')}: {duration(3600 * plan.hours)}"
    ranks = plan.machine.ranks
    if plan.cost is not None:
        whole += f", {number(ranks * plan.hours)} GPU-hours, {plan.cost:,.2f} at {plan.price:g} each"
    yield f"  {whole}"


def _short(seconds: float) -> str:
    return duration(seconds) if seconds >= 60 else f"{seconds:.3g} s"


def _alternative_lines(alternatives: tuple[Alternative, ...]) -> Iterator[str]:
    num = len(alternatives)
    if not num:
        yield "Nothing that was tried makes it fit: neither settings nor more memory; the largest parts are above"
        return
    yield "This would fit:" if num == 1 else f"Each of these {num} would fit:"
    for alternative in alternatives:
        for place, step in enumerate(alternative.steps):
            memory, seconds = step.laid.memory, step.laid.seconds
            yield f"  {'and' if place else '- '} {step.words}{'' if step.keeps_result else ' (changes what is learnt)'}"
            yield (
                f"      {binary(memory.peak_bytes)} of {binary(memory.usable_bytes)}, "
                f"microbatch {memory.microbatch_tokens:,}, shard={step.laid.layout.sharding}, "
                f"{_short(seconds.iteration)} an iteration"
            )


def _assumption_lines(plan: Plan) -> Iterator[str]:
    machine = plan.machine
    yield "Taken from"
    yield f"  model: {plan.work.policy.source}"
    yield (
        f"  machine: {machine.flops / 1e12:.3g} TFLOP/s, {number(machine.bandwidth / 1e9)} GB/s, "
        f"{machine.link / 1e9:.3g} GB/s between ranks ({machine.source})"
    )
    if plan.measured is not None:
        yield f"  trial: {plan.measured.words}"
    for note in (*plan.work.notes, *([plan.work.policy.note] if plan.work.policy.note else [])):
        yield f"  {note}"
    yield "Assumptions"
    facts = plan.as_dict()["assumptions"]
    of_time = ("training_share", "forward_share", "reading_share", "layer_seconds")
    for name, assumption in facts.items():
        if plan.measured is not None and name in of_time:
            continue  # the trial has taken their place
        yield f"  {name} = {_value(name, assumption['value'])}: {assumption['why']}"


def _value(name: str, value: float) -> str:
    if name.endswith("_bytes"):
        return binary(value)
    return f"{1e6 * value:.0f} µs" if name.endswith("_seconds") else f"{value:g}"
