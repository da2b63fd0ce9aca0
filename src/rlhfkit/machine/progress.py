"""How far a stage is: a live bar on a terminal, a plain line now and then anywhere else."""

import copy
import html
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from rlhfkit.config.secrets import hidden
from rlhfkit.machine.watchdog import sign_of_life
from rlhfkit.wording import duration

__all__ = ["Progress", "StageProgress"]

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """What a person sees of a run, on stderr.

    Example:
        >>> from rlhfkit import Progress
        >>> Progress(quiet=True).note("nobody reads this")
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Write to `console`, by default stderr; `quiet` writes nothing at all."""
        self._show = None if quiet or console is not None else _updating_display()
        self._console = console or Console(stderr=True, quiet=quiet, force_jupyter=False)
        self._live = not quiet and self._console.file.isatty() and not self._console.is_dumb_terminal
        self._clock = clock
        self._words: Callable[[str], str] = hidden

    def in_words(self, words: Callable[[str], str]) -> "Progress":
        """The same display, for somebody whose lines are put into other words before they are shown."""
        other = copy.copy(self)
        before = self._words
        other._words = lambda text: words(before(text))
        return other

    @contextmanager
    def stage(self, name: str, *, total: int, unit: str, completed: int = 0) -> Iterator["StageProgress"]:
        """Report on a stage of `total` units, of which a resumed run has `completed` behind it."""
        bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[text]}", markup=False),
            console=self._console,
            refresh_per_second=2,
            disable=not self._live,
        )
        task = bars.add_task(name, total=max(total, 1), text="")
        last_line = self._clock()
        show = None if self._show is None else self._show()
        plain = self._plain if show is None else lambda text: None

        def report(stage: StageProgress) -> None:
            nonlocal last_line
            bars.update(task, completed=stage.completed, text=stage.text())
            if show is not None:
                show(_bar(name, stage.completed / max(total, 1), stage.text()))
            elif self._clock() - last_line >= SECONDS_BETWEEN_LINES:
                last_line = self._clock()
                self._plain(f"{name}: {stage.text()}")

        stage = StageProgress(total, unit, completed, self._clock, report, self.warn)
        with bars:
            report(stage)
            plain(f"{name}: {stage.count()}" + (", resumed" if completed else ""))
            try:
                yield stage
            except BaseException:
                self._plain(f"{name}: stopped at {stage.count()} after {duration(stage.seconds())}")
                raise
            bars.update(task, text=stage.summary())
            if show is not None:
                show(_bar(name, 1.0, stage.summary()))
            plain(f"{name}: {stage.summary()}")

    @contextmanager
    def board(self) -> Iterator[Callable[[RenderableType], None] | None]:
        """What draws something anew below the lines, each time over what stood there; None where that cannot be."""
        if not self._live:
            yield None
            return
        with Live(console=self._console, refresh_per_second=2) as live:
            yield live.update

    def note(self, text: str) -> None:
        """One line about a fact, as "3 rows skipped"."""
        self._print(text)

    def warn(self, text: str) -> None:
        """One line about something that is probably not wanted."""
        self._print(f"warning: {text}", style="yellow")

    def _plain(self, text: str) -> None:
        if not self._live:
            self._print(text)

    def _print(self, text: str, style: str | None = None) -> None:
        self._console.print(self._words(text), style=style, markup=False, highlight=False, soft_wrap=True)


def _bar(name: str, share: float, text: str) -> str:
    """A bar of HTML, for a notebook."""
    filled = f"<div style='width:{100 * min(share, 1):.0f}%;height:100%;background:#1f77b4'></div>"
    return (
        f"<div>{html.escape(name)} <span style='display:inline-block;width:12em;height:.7em;background:#ddd'>{filled}"
        f"</span> {html.escape(text)}</div>"
    )


def _updating_display() -> Callable[[], Callable[[str], None]] | None:
    """What opens a place in a notebook's output and writes HTML to it, each time over what stood there; else None."""
    ipython = sys.modules.get("IPython")  # a notebook has imported it
    shell = ipython and ipython.get_ipython()
    if shell is None or type(shell).__name__ != "ZMQInteractiveShell":
        return None
    from importlib import import_module

    display = import_module("IPython.display").display

    def opened() -> Callable[[str], None]:
        handle = display({"text/html": ""}, raw=True, display_id=True)
        return lambda text: handle.update({"text/html": text}, raw=True)

    return opened


class StageProgress:
    """How far one stage is."""

    def __init__(
        self,
        total: int,
        unit: str,
        completed: int,
        clock: Callable[[], float],
        report: Callable[["StageProgress"], None],
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.completed = completed
        self._total, self._unit = total, unit
        self._first, self._start, self._clock = completed, clock(), clock
        self._report, self._warn = report, warn
        self.detail = ""
        """How it goes, as of the last unit."""

    def advance(self, amount: int = 1, detail: str = "") -> None:
        """Note that `amount` more units are done; `detail` says how it goes, as "score 1.23 · KL 3.4 nats"."""
        sign_of_life()
        self.completed += amount
        self.detail = detail or self.detail
        self._report(self)

    def warn(self, text: str) -> None:
        """One line about something that is probably not wanted."""
        self._warn(text)

    def seconds(self) -> float:
        """Time that this process has spent on the stage."""
        return self._clock() - self._start

    def count(self) -> str:
        """As "34/100 iterations"."""
        return f"{self.completed}/{self._total} {self._unit}{'' if self._total == 1 else 's'}"

    def text(self) -> str:
        """As "34/100 iterations · 2 min 10 s left · score 1.23"; the time goes by this process's own speed."""
        done = self.completed - self._first
        seconds_left = self.seconds() / done * max(self._total - self.completed, 0) if done else None
        left = f"{duration(seconds_left)} left" if seconds_left is not None else ""
        return " · ".join(part for part in (self.count(), left, self.detail) if part)

    def summary(self) -> str:
        """As "100/100 iterations in 6 min 12 s · score 1.23"."""
        return " · ".join(part for part in (f"{self.count()} in {duration(self.seconds())}", self.detail) if part)
