"""Whether PPO of a recipe fits on some machine, how, how long an iteration takes, and what it costs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from rlhfkit.config.load import LoadedRecipe, load_recipe
from rlhfkit.config.recipe import Recipe
from rlhfkit.errors import ConfigError
from rlhfkit.formulas.accelerators import ACCELERATORS, Accelerator, accelerators_named
from rlhfkit.formulas.assumptions import reasons_of
from rlhfkit.formulas.machine import Machine, Measured, machine_of
from rlhfkit.formulas.memory import Layout, MemoryOfRank, loaded_bytes, memory_of, parting_helps
from rlhfkit.formulas.seconds import Seconds, seconds_of
from rlhfkit.formulas.shapes import DecoderShape, shape_named, shape_of_recipe
from rlhfkit.formulas.work import Work, work_of
from rlhfkit.planning.remedies import Change, applied, fitting_changes

__all__ = ["Alternative", "Laid", "Plan", "Step", "plan", "plan_of_work"]

MOST_ALTERNATIVES = 3
MOST_GPUS = 1024


@dataclass(frozen=True)
class Laid:
    """A way to lay the work out, and what it takes."""

    layout: Layout
    memory: MemoryOfRank
    seconds: Seconds

    @property
    def fits(self) -> bool:
        """Whether a rank has the memory."""
        return self.memory.fits


@dataclass(frozen=True)
class Step:
    """A change, and what is taken after it."""

    words: str
    """A setting as on the command line, or another machine."""
    keeps_result: bool
    """Whether it changes memory and time alone, and not what is learnt."""
    laid: Laid
    machine: str


@dataclass(frozen=True)
class Alternative:
    """Changes that together make it fit, one after the other."""

    steps: tuple[Step, ...]

    @property
    def words(self) -> str:
        """All of them, as on the command line."""
        return " ".join(step.words for step in self.steps)

    @property
    def laid(self) -> Laid:
        """What is taken in the end."""
        return self.steps[-1].laid


@dataclass(frozen=True)
class Plan:
    """What PPO of a recipe takes on a machine."""

    recipe: str
    work: Work
    machine: Machine
    laid: Laid
    alternatives: tuple[Alternative, ...]
    """What would make it fit, where it does not."""
    price: float | None
    """Of a GPU-hour."""
    measured: Measured | None = None

    @property
    def fits(self) -> bool:
        """Whether it fits as it is."""
        return self.laid.fits

    @property
    def tokens_per_second(self) -> float:
        """Response tokens that are sampled and learnt from, in a second of the whole."""
        return self.work.episodes * self.work.mean_response_tokens / self.laid.seconds.iteration

    @property
    def hours(self) -> float:
        """Of all iterations."""
        return self.work.iterations * self.laid.seconds.iteration / 3600

    @property
    def cost(self) -> float | None:
        """Price of all iterations on all ranks."""
        return None if self.price is None else self.price * self.machine.ranks * self.hours

    def as_dict(self) -> dict[str, Any]:
        """For programs; bytes, seconds and tokens, without units in words."""
        seconds, memory = self.laid.seconds, self.laid.memory
        return {
            "recipe": self.recipe,
            "model": {**_facts_of(self.work.policy), "bytes_per_weight": self.work.itemsize},
            "machine": {
                "name": self.machine.name,
                "ranks": self.machine.ranks,
                "memory_bytes": self.machine.memory_bytes,
                "flops": self.machine.flops,
                "bandwidth": self.machine.bandwidth,
                "link": self.machine.link,
                "source": self.machine.source,
            },
            "fits": self.fits,
            "sharding": self.laid.layout.sharding,
            "memory": {
                "peak_bytes": memory.peak_bytes,
                "usable_bytes": memory.usable_bytes,
                "host_bytes": memory.host_bytes,
                "fullest_phase": memory.fullest_phase,
                "parts": [asdict(part) for part in memory.parts if part.num_bytes],
            },
            "microbatch_tokens": memory.microbatch_tokens,
            "recompute": memory.recompute,
            "seconds": {**asdict(seconds), "iteration": seconds.iteration},
            "tokens_per_second": self.tokens_per_second,
            "iterations": self.work.iterations,
            "hours": self.hours,
            "price_per_gpu_hour": self.price,
            "cost": self.cost,
            "alternatives": [[_facts_of_step(step) for step in each.steps] for each in self.alternatives],
            "assumptions": reasons_of(self.machine.assumptions),
            "measured": None if self.measured is None else asdict(self.measured),
            "notes": [*self.work.notes, *([self.work.policy.note] if self.work.policy.note else [])],
        }


def _facts_of(shape: DecoderShape) -> dict[str, Any]:
    return {**asdict(shape), "parameters": shape.parameters}


def _facts_of_step(step: Step) -> dict[str, Any]:
    return {
        "change": step.words,
        "keeps_result": step.keeps_result,
        "machine": step.machine,
        "fits": step.laid.fits,
        "sharding": step.laid.layout.sharding,
        "peak_bytes": step.laid.memory.peak_bytes,
        "usable_bytes": step.laid.memory.usable_bytes,
        "microbatch_tokens": step.laid.memory.microbatch_tokens,
        "iteration_seconds": step.laid.seconds.iteration,
    }


def plan(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    gpus: str = "cpu",
    model: str | None = None,
    processes: int | None = None,
    price: float | None = None,
    response_tokens: float | None = None,
    measure: bool = False,
) -> Plan:
    """What PPO of a recipe takes; neither weights nor GPUs are needed.

    `recipe`: a shipped name or a file. `gpus`: as "8xH100", or "cpu" for this machine, whose rates are then measured in
    about a second. `model`: what to plan with instead of the recipe's, as "8B". `processes`: ranks, by default one a
    GPU. `price`: of a GPU-hour. `response_tokens`: mean length, by default the limit. `measure`: replace assumptions of
    time by a trial of the recipe here, which needs its model and its data.
    Raises: ConfigError, ModelError with what is known.
    """
    count, accelerator = accelerators_named(gpus)
    loaded = _loaded(recipe, overrides, model)
    assert isinstance(loaded.recipe, Recipe)
    shape = shape_of_recipe(loaded.recipe.model) if model is None else shape_named(model)
    ranks = _ranks(processes, count, accelerator)
    if measure and accelerator is not None:
        raise ConfigError(f"--measure tries the recipe on this machine, and the plan is for {gpus}; leave one out")
    if measure and model is not None:
        raise ConfigError(f"--measure loads the recipe's own model, and the plan is of {model}; leave one out")
    if accelerator is not None:
        itemsize = 4 if loaded.recipe.model.dtype == "float32" else 2
        work = work_of(loaded.recipe, shape, itemsize=itemsize, response_tokens=response_tokens)
        machine = machine_of(accelerator, ranks)
        return plan_of_work(loaded.recipe.name, work, machine, price=price, accelerator=accelerator)
    from rlhfkit.planning.trial import cpu_with_rates, tried

    machine, itemsize = cpu_with_rates(loaded.recipe, shape, ranks)
    work = work_of(loaded.recipe, shape, itemsize=itemsize, response_tokens=response_tokens)
    measured = None
    if measure:
        measured = tried(loaded, ranks)
        work = work.with_lengths(
            longest_prompt=measured.longest_prompt,
            mean_prompt=measured.mean_prompt,
            mean_response=response_tokens or measured.mean_response,
        )
        machine = _calibrated(work, machine, measured)
    return replace(plan_of_work(loaded.recipe.name, work, machine, price=price), measured=measured)


def _loaded(recipe: str, overrides: Sequence[str], model: str | None) -> LoadedRecipe:
    """The recipe; where only the model is missing and one is given for the plan, with that."""
    try:
        loaded = load_recipe(recipe, overrides)
    except ConfigError:
        if model is None or any(given.startswith("model.path=") for given in overrides):
            raise
        loaded = load_recipe(recipe, [*overrides, f"model.path={model}"])
    if not isinstance(loaded.recipe, Recipe):
        raise ConfigError(f"recipe {recipe} is a control task, which fits anywhere; plan a language recipe")
    return loaded


def _ranks(processes: int | None, count: int, accelerator: Accelerator | None) -> int:
    if accelerator is None:
        return processes or 1
    if processes is not None and processes > count:
        raise ConfigError(
            f"--processes {processes} on {count} x {accelerator.name}: a process needs a GPU of its own; give --gpus "
            f"{processes}x{accelerator.name}"
        )
    return processes or count


def _calibrated(work: Work, machine: Machine, measured: Measured) -> Machine:
    """The machine on which the formulas give what the trial took."""
    laid = _laid(work, machine, "none")
    return machine.calibrated(
        sampling=measured.sampling_seconds / laid.seconds.sampling,
        other=measured.other_seconds / laid.seconds.other,
        program_bytes=max(0, measured.held_bytes - loaded_bytes(work, laid.layout)),
    )


def plan_of_work(
    recipe: str,
    work: Work,
    machine: Machine,
    *,
    price: float | None = None,
    accelerator: Accelerator | None = None,
) -> Plan:
    """The plan of some work on some machine; with `accelerator`, other numbers of it are tried as well."""
    laid = _best(work, machine)
    alternatives = () if laid.fits else tuple(_alternatives(work, machine, accelerator))
    return Plan(recipe, work, machine, laid, alternatives, price)


def _laid(work: Work, machine: Machine, sharding: Literal["none", "fsdp"]) -> Laid:
    layout = Layout(machine.ranks, sharding, machine.on_cpu)
    memory = memory_of(work, layout, machine.assumptions, machine.memory_bytes)
    return Laid(layout, memory, seconds_of(work, layout, memory, machine))


def _best(work: Work, machine: Machine) -> Laid:
    """As the recipe says; where it leaves that open, as a run decides."""
    if machine.ranks == 1 or work.shard == "none":
        return _laid(work, machine, "none")
    parted = _laid(work, machine, "fsdp")
    if work.shard == "fsdp":
        return parted
    whole = _laid(work, machine, "none")
    return parted if parting_helps(whole.memory, parted.memory) else whole


def _alternatives(work: Work, machine: Machine, accelerator: Accelerator | None) -> list[Alternative]:
    """Three ways to make it fit, as far as there are so many: settings first, then more memory."""
    sets = fitting_changes(
        work, lambda changed: _best(changed, machine).fits, ranks=machine.ranks, most=MOST_ALTERNATIVES
    )
    found = [_changed(work, machine, changes) for changes in sets]
    if accelerator is not None:
        found = found[: MOST_ALTERNATIVES - 1] + _larger(work, machine, accelerator)
    return found[:MOST_ALTERNATIVES]


def _changed(work: Work, machine: Machine, changes: tuple[Change, ...]) -> Alternative:
    """The changes one after the other, each planned with those before it."""
    steps = [
        Step(change.words, change.keeps_result, _best(applied(work, changes[: number + 1]), machine), machine.name)
        for number, change in enumerate(changes)
    ]
    return Alternative(tuple(steps))


def _larger(work: Work, machine: Machine, accelerator: Accelerator) -> list[Alternative]:
    """The fewest more of the same that do, and of the next with more memory."""
    found = []
    by_memory = sorted(ACCELERATORS.values(), key=lambda other: other.memory_bytes)
    roomier = [other for other in by_memory if other.memory_bytes > accelerator.memory_bytes]
    if step := _fewest(work, accelerator, 2 * machine.ranks):
        found.append(Alternative((step,)))
    if step := next(filter(None, (_fewest(work, other, machine.ranks) for other in roomier)), None):
        found.append(Alternative((step,)))
    return found


def _fewest(work: Work, accelerator: Accelerator, ranks: int) -> Step | None:
    """`ranks` of an accelerator, or so often twice as many as it takes; None where no number will do."""
    while ranks <= MOST_GPUS:
        machine = machine_of(accelerator, ranks)
        if (laid := _best(work, machine)).fits:
            return Step(f"--gpus {ranks}x{accelerator.name}", True, laid, machine.name)
        ranks *= 2
    return None
