"""Plain lines in a pipe, now and then; a bar on a terminal; nothing when quiet."""

import io
import sys
import types

import pytest
from rich.console import Console

from rlhfkit.machine.progress import Progress


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def piped(clock):
    output = io.StringIO()
    return Progress(console=Console(file=output, width=40), clock=clock), output


def test_first_and_last_line_always_appear(clock):
    progress, output = piped(clock)
    with progress.stage("ppo", total=3, unit="iteration") as stage:
        for _ in range(3):
            clock.seconds += 1
            stage.advance(1, "score 1.23")
    assert output.getvalue().splitlines() == ["ppo: 0/3 iterations", "ppo: 3/3 iterations in 3 s · score 1.23"]


def test_lines_between_come_every_half_minute_and_tell_the_time_left(clock):
    progress, output = piped(clock)
    with progress.stage("ppo", total=100, unit="iteration") as stage:
        for _ in range(70):
            clock.seconds += 1
            stage.advance(1, "score 1.23 · KL 3.4 nats")
    assert output.getvalue().splitlines()[1:-1] == [
        "ppo: 30/100 iterations · 1 min 10 s left · score 1.23 · KL 3.4 nats",
        "ppo: 60/100 iterations · 40 s left · score 1.23 · KL 3.4 nats",
    ]


def test_a_resumed_stage_counts_on_and_measures_only_its_own_speed(clock):
    progress, output = piped(clock)
    with progress.stage("ppo", total=100, unit="iteration", completed=90) as stage:
        clock.seconds += 60
        stage.advance()
    assert output.getvalue().splitlines() == [
        "ppo: 90/100 iterations, resumed",
        "ppo: 91/100 iterations · 9 min 00 s left",
        "ppo: 91/100 iterations in 1 min 00 s",
    ]


def test_a_stage_that_fails_says_where(clock):
    progress, output = piped(clock)
    with pytest.raises(KeyboardInterrupt), progress.stage("sft", total=5, unit="update") as stage:
        clock.seconds += 7200
        stage.advance(2)
        raise KeyboardInterrupt
    assert output.getvalue().splitlines()[-1] == "sft: stopped at 2/5 updates after 2 h 00 min"


def test_one_is_singular_and_nothing_to_do_is_no_error(clock):
    progress, output = piped(clock)
    with progress.stage("judge", total=1, unit="fit") as stage:
        stage.advance()
    with progress.stage("sft", total=0, unit="update"):
        pass
    assert output.getvalue().splitlines() == [
        "judge: 0/1 fit",
        "judge: 1/1 fit in 0 s",
        "sft: 0/0 updates",
        "sft: 0/0 updates in 0 s",
    ]


def test_notes_and_warnings_are_whole_lines_with_their_brackets(clock):
    progress, output = piped(clock)
    progress.note("3 rows skipped, see [data.prompts] in the recipe of this run")
    progress.warn("[b]careful[/b]")
    assert output.getvalue().splitlines() == [
        "3 rows skipped, see [data.prompts] in the recipe of this run",
        "warning: [b]careful[/b]",
    ]


def test_a_terminal_shows_a_bar_and_no_plain_lines(clock, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    output = Terminal()
    progress = Progress(console=Console(file=output, width=100), clock=clock)
    with progress.stage("ppo", total=2, unit="iteration") as stage:
        clock.seconds += 5
        stage.advance(1, "score 1.23")
        progress.note("a fact")
        stage.advance(1, "score 1.25")
    text = output.getvalue()
    assert "━" in text
    assert "2/2 iterations in 5 s · score 1.25" in text
    assert "ppo: " not in text
    assert "a fact" in text
    assert "\x1b[3" not in text  # NO_COLOR


def test_quiet_prints_nothing(capfd):
    progress = Progress(quiet=True)
    with progress.stage("ppo", total=1, unit="iteration") as stage:
        stage.advance(1, "score 1.23")
    progress.note("a fact")
    progress.warn("a danger")
    assert capfd.readouterr() == ("", "")


def test_a_notebook_shows_one_bar_that_is_written_over(monkeypatch):
    shown = []

    class Handle:
        def update(self, content, raw):
            shown[-1].append(content["text/html"])

    def display(content, raw, display_id):
        shown.append([])
        return Handle()

    class ZMQInteractiveShell:
        """What a notebook's kernel has."""

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = ZMQInteractiveShell
    ipython.display = types.ModuleType("IPython.display")
    ipython.display.display = display
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython.display)
    with Progress().stage("ppo", total=2, unit="iteration") as stage:
        stage.advance(1, "score <1>")
    assert len(shown) == 1 and "0/2 iterations" in shown[0][0]
    assert "width:50%" in shown[0][1] and "score &lt;1&gt;" in shown[0][1]
    with Progress(quiet=True).stage("ppo", total=2, unit="iteration") as stage:
        stage.advance(1)
    assert len(shown) == 1
