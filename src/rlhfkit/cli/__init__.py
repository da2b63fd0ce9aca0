"""The command line: parse, import late, call one function.

Nothing but typer is imported before a command runs, so that `--help` answers at once. The order here is that of --help.
"""

from rlhfkit.cli import run, check, plan, bench, label  # noqa: F401, I001
from rlhfkit.cli.app import main

__all__ = ["main"]
