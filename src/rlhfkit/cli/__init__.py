"""The command line: parse, import late, call one function.

Nothing but typer is imported before a command runs, so that `--help` answers at once. The order here is that of --help.
"""

from rlhfkit.cli import run, compare, tune, probe, explain, cluster, check, plan, handover, average, bench, label  # noqa: F401, I001
from rlhfkit.cli.app import main

__all__ = ["main"]
