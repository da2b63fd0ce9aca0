"""Fast paths, each with a plain one behind it: tried at the first use, and not taken where it raises or is wrong.

A fast path is code that needs something of the machine, as a compiler or a library's internals. The plain path gives
the same numbers up to rounding, so a run loses time by taking it, and nothing else.
"""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhfkit.machine.device import is_out_of_memory
from rlhfkit.wording import shortened

__all__ = ["FastPaths", "agree", "is_about_memory", "reason"]

T = TypeVar("T")

# What a fast path may raise where something of the machine is missing. Torch's errors of compiling and of operators
# are RuntimeErrors; a cache directory that cannot be written is an OSError; a name that a build of torch lacks an
# AttributeError.
FAILURES = (RuntimeError, OSError, ImportError, AttributeError)

# Two ways to add up the same numbers differ by this much of the largest of them.
ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-3, torch.bfloat16: 6e-2, torch.float16: 2e-2}
LONGEST_REASON = 160


class FastPaths:
    """Which fast paths are taken, by name, and why the others are not."""

    def __init__(self, tell: Callable[[str], None] = lambda line: None) -> None:
        """Begin with nothing tried; `tell` gets a line as soon as a path is switched off."""
        self.tell = tell
        self._taken: dict[str, str] = {}
        self._off: dict[str, str] = {}
        self._tried: set[tuple[str, Hashable]] = set()

    def is_off(self, name: str) -> bool:
        """Whether the plain path is to be taken."""
        return name in self._off

    def is_tried(self, name: str, case: Hashable = None) -> bool:
        """Whether `case` of a path has been tried, so that nothing has to be compared."""
        return (name, case) in self._tried

    def forget(self, name: str) -> None:
        """Try each case of a path anew; one that is switched off stays so."""
        self._tried = {(tried, case) for tried, case in self._tried if tried != name}

    def take(self, name: str, why: str = "") -> None:
        """Note that a path that needs no trial is taken."""
        if name not in self._off:
            self._taken[name] = why

    def switch_off(self, name: str, why: str) -> None:
        """From now on the plain path is taken."""
        if name not in self._off:
            self._taken.pop(name, None)
            self._off[name] = why
            self.tell(f"{name}: switched off, the plain path is taken, which gives the same numbers ({why})")

    def attempt(
        self,
        name: str,
        fast: Callable[[], T],
        plain: Callable[[], T],
        *,
        case: Hashable = None,
        same: Callable[[T, T], bool] | None = None,
    ) -> bool:
        """Whether `fast` can be taken: at the first time of a `case` both are run and must agree.

        Raises: what `plain` raises, which is no fault of the fast path; and that memory is out, whoever says it.
        """
        if self.is_off(name):
            return False
        if self.is_tried(name, case):
            return True
        try:
            found = fast()
        except FAILURES as error:
            if is_about_memory(error):
                raise
            plain()
            self.switch_off(name, reason(error))
            return False
        if not (same or agree)(found, plain()):
            self.switch_off(name, "its numbers differ from those of the plain path")
            return False
        self._tried.add((name, case))
        self.take(name)
        return True

    def as_facts(self) -> dict[str, str]:
        """For the manifest: name → "taken", or why not."""
        taken = {name: f"taken{f': {why}' if why else ''}" for name, why in self._taken.items()}
        return taken | {name: f"not taken: {why}" for name, why in self._off.items()}

    def words(self) -> str:
        """One line for the user; empty where nothing was tried."""
        parts = [", ".join(f"{name} ({why})" if why else name for name, why in self._taken.items())]
        parts += [f"without {name} ({why})" for name, why in self._off.items()]
        words = "; ".join(part for part in parts if part)
        return f"fast paths: {words}" if words else ""


def agree(found: Any, expected: Any) -> bool:
    """Whether two results are the same up to rounding; tensors, and tuples or lists of them."""
    if isinstance(expected, Tensor):
        return _tensors_agree(found, expected)
    if isinstance(expected, tuple | list):
        return len(found) == len(expected) and all(agree(*pair) for pair in zip(found, expected, strict=True))
    return bool(found == expected) or expected is None


def _tensors_agree(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if not expected.is_floating_point():
        return bool(torch.equal(found, expected))
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return False
    if not finite.any():
        return True
    largest = float(expected[finite].abs().max())
    allowed = ROUNDING[expected.dtype] * max(largest, 1e-30)
    return float((found[finite].double() - expected[finite].double()).abs().max()) <= allowed


def is_about_memory(error: BaseException) -> bool:
    """Whether memory is out, by the error or by what it was made of."""
    return any(is_out_of_memory(each) for each in _chain(error))


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    """The error, and what it was made of."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """The first line of an error, short enough for a line of output."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return shortened(first, LONGEST_REASON)
