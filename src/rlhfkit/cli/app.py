"""The program: what all commands share, and how an error ends."""

import os
import shlex
import shutil
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhfkit.errors import CheckpointError, RlhfkitError
from rlhfkit.machine.interrupts import FailedRank, Spoken
from rlhfkit.machine.surroundings import make_do

if TYPE_CHECKING:
    from rlhfkit.rundir.directory import RunDir

__all__ = [
    "Debug",
    "RunArgument",
    "app",
    "existing_run",
    "main",
    "own_command",
    "program",
]


app = typer.Typer(
    name="rlhfkit",
    help="Take a pre-trained language model and make it behave as people prefer: SFT, reward model, PPO, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, as runs/demo.")]


def main() -> None:
    """Run the command line; exit code 0 done, 1 an error (one line on stderr), 2 wrong usage, 130 interrupted."""
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # or each retry of a download is a line of its own
    if "RANK" in os.environ:  # or torch adds pages of its own stack to what is said where another process is gone
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    make_do()
    try:
        app(prog_name="rlhfkit")
    except Spoken:
        sys.exit(1)
    except Exception as error:
        from rlhfkit.config.secrets import hidden

        if "--debug" in sys.argv:
            sys.excepthook = lambda kind, error, trace: print(
                hidden("".join(traceback.format_exception(error))), end="", file=sys.stderr
            )
            raise
        typer.echo(
            _printable(hidden(f"error: {error if isinstance(error, RlhfkitError) else _unexpected(error)}")), err=True
        )
        sys.exit(1)


def _printable(text: str) -> str:
    """The text without characters that steer a terminal: files of others may hold them, and messages quote files."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def _unexpected(error: Exception) -> str:
    reason = (str(error).splitlines() or [""])[0]
    kind = "" if isinstance(error, FailedRank) else f"{type(error).__name__}: "
    return (
        f"{kind}{reason} (this is a bug, or something that this machine cannot do; run again with --debug to see where)"
    )


def _show_version(wanted: bool) -> None:
    if wanted:
        from rlhfkit import __version__

        print(f"rlhfkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def program() -> str:
    """How the user has called us, for commands that can be copied."""
    called = Path(sys.argv[0])
    if called.parts[-2:] == ("rlhfkit", "__main__.py"):
        return "python -m rlhfkit"
    if called.name == "rlhfkit" and shutil.which("rlhfkit") is None:
        return shlex.quote(sys.argv[0])
    return "rlhfkit"


def own_command() -> list[str]:
    """What starts this very command again."""
    is_module = Path(sys.argv[0]).name == "__main__.py"
    return [sys.executable, *(("-m", "rlhfkit") if is_module else (sys.argv[0],)), *sys.argv[1:]]


def existing_run(path: Path) -> "RunDir":
    """The run in a directory that a command was given. Raises: CheckpointError where there is none."""
    from rlhfkit.rundir.directory import RunDir

    run = RunDir(path)
    if not run.is_run():
        missing = run.recipe if run.config.exists() else run.config
        raise CheckpointError(
            f"{path} is not a run directory, as it has no {missing.name}; "
            f"make one with: rlhfkit run RECIPE --run-dir {shlex.quote(str(path))}"
        )
    return run
